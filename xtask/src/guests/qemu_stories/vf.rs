//! A stock Debian kernel whose own iavf drives a VF, judged by what it prints.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Result, ensure};

use super::{
    guest::{COMMON, Hardware, LinuxGuest},
    scene::Scene,
};
use crate::guests::{PING_FUNCTIONS, stack::Stack};

/// What a guest does once its interface is up.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Then<'a> {
    /// Ends.
    End,
    /// Pings somebody and ends.
    Ping(Ipv4Addr),
    /// Does what a script says and ends.
    Run(&'a str),
}

/// What the guest does after its modules are loaded. Each step prints a mark.
pub(crate) fn script(address: Ipv4Addr, then: Then<'_>) -> String {
    let then = match then {
        Then::End => String::new(),
        Then::Run(script) => script.to_owned(),
        Then::Ping(peer) => format!(
            "none_lost -c 5 {peer} && echo MARK pinged small || echo MARK failed ping\n\
             none_lost -c 5 -s 1400 {peer} && echo MARK pinged large || echo MARK failed large ping\n"
        ),
    };
    format!(
        "{PING_FUNCTIONS}{COMMON}\
         n=0; until [ -e /sys/class/net/eth0 ]; do n=$((n+1)); [ $n -gt 600 ] && break; usleep 100000; done\n\
         [ -e /sys/class/net/eth0 ] || {{ echo MARK failed no interface; dmesg; }}\n\
         echo MARK driver $(basename $(readlink /sys/class/net/eth0/device/driver))\n\
         echo MARK mac $(cat /sys/class/net/eth0/address)\n\
         ip link set eth0 up\n\
         ip addr add {address}/24 dev eth0\n\
         n=0; until [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do n=$((n+1)); [ $n -gt 600 ] && break; usleep 100000; done\n\
         [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ] && echo MARK carrier || {{ echo MARK failed no carrier; dmesg; }}\n\
         echo MARK speed $(cat /sys/class/net/eth0/speed)\n\
         {then}\
         cat /proc/interrupts | grep iavf\n"
    )
}

/// Boots a guest on the VF of a socket, lets iavf bring it up, and pings.
pub(crate) fn run_on(
    scene: &Scene<'_>,
    socket: &Path,
    address: Ipv4Addr,
    ping: Option<Ipv4Addr>,
) -> Result<()> {
    let mut guest = up(scene, Hardware::vf(socket), address, ping.map_or(Then::End, Then::Ping))?;
    if let Some(peer) = ping {
        pinged(scene, &mut guest, peer)?;
    }
    guest.expect("end")?;
    Ok(())
}

/// Starts an adapter, a user-mode VM on one of its VFs and a guest on another, and has the guest ping the VM.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let stack = Stack::start_logging(scene.clearway, 4, &scene.logs)?;
    let vf = stack.attach("guest", "02:c1:ea:00:02:01", 4)?;
    let peer_vf = stack.attach("peer", "02:c1:ea:00:02:02", 1)?;
    let (address, peer_address) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
    let _peer = stack.run_vm("peer", &peer_vf, &format!("{peer_address}/24"))?;
    scene.say(&format!("the user-mode VM is up as {peer_address}"));
    let mut guest = up(scene, Hardware::vf(&vf.socket), address, Then::Ping(peer_address))?;
    pinged(scene, &mut guest, peer_address)?;
    guest.expect("end")?;
    let (one, two) = (stack.frames(&vf)?, stack.frames(&peer_vf)?);
    scene.say(&format!("the adapter counts {one:?} of the guest and {two:?} of the VM"));
    ensure!(one.dma_faults == 0 && two.dma_faults == 0, "a stock driver caused DMA faults");
    ensure!(
        one.received >= 10 && two.received >= 10,
        "the pings did not go through the NIC switch"
    );
    Ok(())
}

/// Boots a guest and waits until its own iavf has the link up.
pub(crate) fn up(
    scene: &Scene<'_>,
    hardware: Hardware<'_>,
    address: Ipv4Addr,
    then: Then<'_>,
) -> Result<LinuxGuest> {
    let mut guest = LinuxGuest::boot(scene, hardware, &script(address, then))?;
    is_up(scene, &mut guest)?;
    Ok(guest)
}

/// Waits until a guest that boots has the link up.
pub(crate) fn is_up(scene: &Scene<'_>, guest: &mut LinuxGuest) -> Result<()> {
    guest.expect("booted")?;
    scene.say("the guest has booted");
    let driver = guest.expect("driver")?;
    ensure!(driver == "iavf", "the interface's driver is {driver}");
    scene.say(&format!("its iavf is bound, MAC {}", guest.expect("mac")?));
    guest.expect("carrier")?;
    scene.say(&format!("its link is up, {} Mbit/s", guest.expect("speed")?));
    Ok(())
}

fn pinged(scene: &Scene<'_>, guest: &mut LinuxGuest, peer: Ipv4Addr) -> Result<()> {
    guest.expect("pinged small")?;
    guest.expect("pinged large")?;
    scene.say(&format!("it has pinged {peer}, with 64 and 1,408 bytes, and no answer was lost"));
    Ok(())
}
