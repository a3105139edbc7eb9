//! What stock drivers ask of a VF beside frames: other MTUs, VLANs, groups, other addresses, all frames.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::{
    guest::{Hardware, LinuxGuest},
    scene::Scene,
    vf::{self, Then, is_up},
};
use crate::guests::stack::{AttachedVf, Stack};

const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
/// Nobody's, until somebody takes it.
const NEW_ADDRESS: &str = "fd00::99:1";

/// Two guests, each with its VF.
struct Guests {
    stack: Stack,
    vfs: [AttachedVf; 2],
    one: LinuxGuest,
    two: LinuxGuest,
}

/// Has two guests ask for all of it.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let stack = Stack::start_logging(scene.clearway, 2, &scene.logs)?;
    let vfs = [
        stack.attach_with("one", "02:c1:ea:00:07:01", &["--any-vlan"])?,
        stack.attach_with("two", "02:c1:ea:00:07:02", &["--any-vlan"])?,
    ];
    let script = format!("{}obey\n", include_str!("scripts/features.guest.sh"));
    // Both boot at once.
    let boot = |name, vf: &AttachedVf, address| {
        let modules = &["iavf", "8021q"];
        let hardware = Hardware { name, modules, ..Hardware::vf(&vf.socket) };
        LinuxGuest::boot(scene, hardware, &vf::script(address, Then::Run(&script)))
    };
    let (one, two) = (boot("one", &vfs[0], ADDRESSES[0])?, boot("two", &vfs[1], ADDRESSES[1])?);
    let mut guests = Guests { stack, vfs, one, two };
    for guest in [&mut guests.one, &mut guests.two] {
        is_up(scene, guest)?;
        guest.expect("obeys")?;
    }
    mtus(scene, &mut guests)?;
    vlans(scene, &mut guests)?;
    groups(scene, &mut guests)?;
    all_frames(scene, &mut guests)?;
    addresses(scene, &mut guests)?;
    guests.one.end()?;
    guests.two.end()
}

/// Each change of it resets the VF.
fn mtus(scene: &Scene<'_>, guests: &mut Guests) -> Result<()> {
    let Guests { stack, vfs: [vf, _], one, two } = guests;
    let ping = format!("pings {}", ADDRESSES[1]);
    one.ask(&format!("{ping} 1400"))?;
    for guest in [&mut *one, &mut *two] {
        guest.ask("mtu 9000")?;
    }
    one.ask(&format!("reaches {}", ADDRESSES[1]))?;
    let before = stack.count(vf, "transmit", "unicast")?;
    one.ask(&format!("{ping} 8900"))?;
    let frames = stack.count(vf, "transmit", "unicast")? - before;
    // Five pings, and what neighbours ask each other; in frames of 1,500 bytes they would be 30.
    ensure!((5..15).contains(&frames), "5 pings of 8,900 bytes were {frames} frames");
    for guest in [&mut *one, &mut *two] {
        guest.ask("mtu 1500")?;
    }
    one.ask(&format!("reaches {}", ADDRESSES[1]))?;
    one.ask(&format!("{ping} 8900"))?;
    scene.say("with an MTU of 9,000 bytes and of 1,500 again no ping of 8,900 bytes was lost");
    Ok(())
}

/// Interfaces of a VLAN on top of the VFs, and one in a VLAN that the other is not in.
fn vlans(scene: &Scene<'_>, guests: &mut Guests) -> Result<()> {
    let Guests { one, two, .. } = guests;
    one.ask("vlan 5 10.78.5.1")?;
    two.ask("vlan 5 10.78.5.2")?;
    one.ask("vlan 6 10.78.6.1")?;
    two.ask("vlan 7 10.78.6.2")?;
    one.ask("pings 10.78.5.2 1400")?;
    two.ask("pings 10.78.5.1 1400")?;
    one.ask("silent 10.78.6.2")?;
    scene.say("in one VLAN no ping was lost, and none came from one to another");
    Ok(())
}

/// A guest gets the frames of a group only once it has joined it: that of an IPv6 address that it takes.
fn groups(scene: &Scene<'_>, guests: &mut Guests) -> Result<()> {
    let Guests { stack, vfs: [_, vf], one, two } = guests;
    one.ask("takes fd00::1")?;
    two.ask("takes fd00::2")?;
    one.ask("reaches6 fd00::2")?;
    let multicast = || stack.count(vf, "receive", "multicast");
    let before = multicast()?;
    one.ask(&format!("silent6 {NEW_ADDRESS}"))?;
    let strange = multicast()? - before;
    ensure!(strange == 0, "{strange} frames came of a group that the guest is not in");
    two.ask(&format!("takes {NEW_ADDRESS}"))?;
    one.ask(&format!("reaches6 {NEW_ADDRESS}"))?;
    ensure!(multicast()? > before, "no frame came of the group that the guest has joined");
    scene.say("frames of a group came only once the guest had joined it");
    Ok(())
}

/// Promiscuous mode is granted and without effect, until the host allows it.
fn all_frames(scene: &Scene<'_>, guests: &mut Guests) -> Result<()> {
    let Guests { stack, vfs: [_, vf], one, two } = guests;
    two.ask("promiscuous on")?;
    let unicast = || stack.count(vf, "receive", "unicast");
    let before = unicast()?;
    one.ask("silent_station")?;
    let strange = unicast()? - before;
    // Neighbours ask each other now and then whether they are still there.
    ensure!(strange < 10, "{strange} frames for others came to a guest that may not see them");
    stack.allow(vf, &["--allow-promiscuous"])?;
    let before = unicast()?;
    one.ask("silent_station")?;
    let strange = unicast()? - before;
    ensure!(strange >= 20, "{strange} frames for others came to a guest that may see them");
    two.ask("promiscuous off")?;
    stack.allow(vf, &[])?;
    one.ask(&format!("pings {} 1400", ADDRESSES[1]))?;
    scene.say("frames for others came to a promiscuous guest only while the host allowed it");
    Ok(())
}

/// Another address is refused, until the host allows it.
fn addresses(scene: &Scene<'_>, guests: &mut Guests) -> Result<()> {
    let Guests { stack, vfs: [vf, _], one, .. } = guests;
    one.ask("keeps_address 02:c1:ea:00:07:77")?;
    one.ask(&format!("pings {} 1400", ADDRESSES[1]))?;
    stack.allow(vf, &["--allow-spoofing"])?;
    one.ask("takes_address 02:c1:ea:00:07:77")?;
    one.ask(&format!("reaches {}", ADDRESSES[1]))?;
    one.ask(&format!("pings {} 1400", ADDRESSES[1]))?;
    scene.say("another MAC address was refused until the host allowed it, and then pinged with");
    Ok(())
}
