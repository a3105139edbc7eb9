//! A guest that resets its VF by FLR, again and again, under traffic.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{
    guest::Hardware,
    scene::Scene,
    vf::{Then, up},
};
use crate::guests::stack::Stack;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Resets, after each of which pings are answered again.
const RESETS: u32 = 20;
/// Resets at once, after the last of which they are.
const AT_ONCE: u32 = 20;

/// Has a guest reset its VF.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let stack = Stack::start_logging(scene.clearway, 4, &scene.logs)?;
    let vf = stack.attach("guest", "02:c1:ea:00:06:01", 2)?;
    let peer_vf = stack.attach("peer", "02:c1:ea:00:06:02", 1)?;
    let _peer = stack.run_vm("peer", &peer_vf, &format!("{PEER}/24"))?;
    let script = format!("PEER={PEER}\n{}obey\n", include_str!("scripts/flr.guest.sh"));
    let mut guest = up(scene, Hardware::vf(&vf.socket), GUEST, Then::Run(&script))?;
    guest.expect("obeys")?;
    guest.ask("flood")?;
    let resets = scene.rounds.unwrap_or(RESETS);
    for _ in 0..resets {
        guest.ask("reset_one")?;
    }
    // Linux takes bus mastering from a device before it resets it: each queue that runs is a fault to the adapter.
    let frames = stack.frames(&vf)?;
    scene.say(&format!(
        "its VF was reset {resets} times, and it pinged after each; the adapter counts {frames:?}"
    ));
    guest.ask(&format!("reset_many {AT_ONCE}"))?;
    scene.say(&format!("its VF was reset {AT_ONCE} times at once, and it pings again"));
    guest.ask("calm")?;
    guest.ask("all_answered")?;
    let frames = stack.frames(&vf)?;
    scene.say(&format!("no ping was lost after that; the adapter counts {frames:?}"));
    guest.end()
}
