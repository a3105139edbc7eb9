//! A guest on both paths that begins anew.

use anyhow::Result;

use super::{
    guest::LinuxGuest,
    lab::{Lab, PEER, WEB, is_synthetic},
    scene::Scene,
};

/// Has a guest reboot while it is on its VF: it comes back with its virtio-net and its VF, again and again.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let lab = Lab::start(scene)?;
    let _peer = lab.peer()?;
    let mut guest = lab.boot_obeying(&WEB, &[])?;
    guest.ask(&format!("pings_by eth1 {}", PEER.address))?;
    lab.give_vf(&WEB)?;
    on_vf(&lab, &mut guest)?;
    scene.say("it has pinged by its VF");
    for life in 2..2 + scene.rounds.unwrap_or(2) {
        guest.ask("clean_log_so_far")?;
        guest.tell("reboot -f")?;
        is_synthetic(&mut guest)?;
        on_vf(&lab, &mut guest)?;
        scene.say(&format!("in its life {life} it has pinged by its VF"));
    }
    lab.take_vf(&WEB)?;
    guest.ask("off_vf")?;
    guest.ask(&format!("pings_by eth1 {}", PEER.address))?;
    lab.give_vf(&WEB)?;
    on_vf(&lab, &mut guest)?;
    scene.say("its VF was taken and given once more");
    guest.end()
}

/// Waits until the guest's path is its VF, as the stack and the guest see it, and has the guest ping by it.
fn on_vf(lab: &Lab<'_>, guest: &mut LinuxGuest) -> Result<()> {
    guest.ask("on_vf")?;
    lab.until(&WEB, "active")?;
    guest.ask(&format!("pings_by eth2 {}", PEER.address))?;
    Ok(())
}
