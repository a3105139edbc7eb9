//! A stock kernel whose own net_failover joins a virtio-net, by vhost-user on a switch, with a VF that a virtualization stack
//! gives it and takes away: all of it as a person would start it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{
    lab::{Lab, WEB},
    scene::Scene,
};
use crate::guests::PING_FUNCTIONS;

/// Has a guest lose its VF and get it back a few times.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    take_and_give(scene, scene.rounds.unwrap_or(5))
}

/// The same a hundred times.
pub(crate) fn cycles(scene: &Scene<'_>) -> Result<()> {
    take_and_give(scene, scene.rounds.unwrap_or(100))
}

/// Has a guest lose its VF and get it back, under pings and a TCP stream.
fn take_and_give(scene: &Scene<'_>, rounds: u32) -> Result<()> {
    let lab = Lab::start(scene)?;
    let peer = lab.peer()?;
    let script = format!("{PING_FUNCTIONS}{}", include_str!("scripts/failover.guest.sh"));
    let mut guest = lab.boot(&WEB, &script, &[])?;
    guest.expect("booted")?;
    guest.expect("pinged synthetic")?;
    scene.say("it has pinged a user-mode VM by its virtio-net");
    lab.give_vf(&WEB)?;
    let driver = guest.expect("VF")?;
    ensure!(driver == "iavf", "the VF's driver is {driver}");
    guest.expect("pinged VF")?;
    scene.say("net_failover has joined its VF, and it has pinged by that");
    guest.expect("under traffic")?;
    let (mut longest_leave, mut longest_return) = (Duration::ZERO, Duration::ZERO);
    for round in 1..=rounds {
        longest_leave = longest_leave.max(lab.take_vf(&WEB)?);
        longest_return = longest_return.max(lab.give_vf(&WEB)?);
        if round.is_multiple_of(10) {
            scene.say(&format!("{round} of {rounds} rounds"));
        }
    }
    scene.say(&format!(
        "its VF was revoked and returned {rounds} times, in {longest_leave:.1?} and {longest_return:.1?} at most"
    ));
    guest.tell("over")?;
    let sent = guest.expect("sent")?;
    let lost = guest.expect("lost")?;
    guest.expect("end")?;
    let received = peer.received()?;
    ensure!(received == sent, "the peer has received {received}, and not {sent}");
    scene.say(&format!("its TCP stream is whole; pings: lost {lost}"));
    let numbers: Vec<i64> = lost.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [lost, own, standby] = numbers[..] else { bail!("the guest says {lost:?}") };
    ensure!(
        lost <= own,
        "{lost} pings were not answered, of which its own kernel has dropped {own}"
    );
    ensure!(standby == 0, "{standby} frames came by the standby while it had a primary");
    Ok(())
}
