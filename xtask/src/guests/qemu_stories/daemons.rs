//! Stack, switch and adapter are killed, one after the other, while a guest is on its VF.

use anyhow::Result;

use super::{
    guest::LinuxGuest,
    lab::{Daemon, Lab, PEER, WEB},
    scene::Scene,
};

/// Kills each of them and starts it anew: the guest keeps its network or gets it back, and the stack says how it is.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let mut lab = Lab::start(scene)?;
    let _peer = lab.peer()?;
    let mut guest = lab.boot_obeying(&WEB, &["-no-reboot"])?;
    // From VF to VF, so that neither path leads through the switch.
    lab.give_vf(&PEER)?;
    lab.give_vf(&WEB)?;
    on_vf(&lab, &mut guest)?;
    scene.say("it has pinged by its VF");

    lab.kill(Daemon::Stack)?;
    guest.ask(&format!("pings_by eth2 {}", PEER.address))?;
    scene.say("without a stack it pings by its VF as before");
    // What was wished for by `set-adapter` has ended with it.
    lab.configure(100)?;
    lab.begin(Daemon::Stack)?;
    on_vf(&lab, &mut guest)?;
    to_and_fro(&lab, &mut guest)?;
    scene.say("the next stack has found its VF, taken it and given it again");

    lab.kill(Daemon::Switch)?;
    guest.ask(&format!("pings_by eth2 {}", PEER.address))?;
    scene.say("without a switch it pings by its VF as before");
    lab.begin(Daemon::Switch)?;
    on_vf(&lab, &mut guest)?;
    to_and_fro(&lab, &mut guest)?;
    scene.say("by the next switch it has pinged by its virtio-net");

    lab.kill(Daemon::Adapter)?;
    guest.ask("off_vf")?;
    guest.ask(&format!("reaches {}", PEER.address))?;
    guest.ask(&format!("pings_by eth1 {}", PEER.address))?;
    scene.say("without a NIC it pings by its virtio-net");
    lab.begin(Daemon::Adapter)?;
    guest.ask("on_vf")?;
    on_vf(&lab, &mut guest)?;
    to_and_fro(&lab, &mut guest)?;
    scene.say("it has a VF of the next NIC");
    guest.end()
}

/// Waits until the guest's path is its VF, as the stack sees it, and has the guest ping by it.
fn on_vf(lab: &Lab<'_>, guest: &mut LinuxGuest) -> Result<()> {
    lab.until(&PEER, "active")?;
    lab.until(&WEB, "active")?;
    guest.ask("on_vf")?;
    guest.ask(&format!("reaches {}", PEER.address))?;
    guest.ask(&format!("pings_by eth2 {}", PEER.address))?;
    Ok(())
}

/// Takes the guest's VF and gives it again.
fn to_and_fro(lab: &Lab<'_>, guest: &mut LinuxGuest) -> Result<()> {
    lab.take_vf(&WEB)?;
    guest.ask("off_vf")?;
    guest.ask(&format!("reaches {}", PEER.address))?;
    guest.ask(&format!("pings_by eth1 {}", PEER.address))?;
    lab.give_vf(&WEB)?;
    on_vf(lab, guest)
}
