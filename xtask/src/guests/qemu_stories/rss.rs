//! A VF with several queue pairs, and many flows.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};

use super::{
    guest::{Hardware, LinuxGuest},
    scene::Scene,
    vf::{Then, up},
};
use crate::guests::stack::Stack;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const QUEUES: usize = 4;
/// How often is looked until the guest's table is the NIC's.
const PATIENCE: u32 = 20;

/// Has a guest receive many flows: on all queues, and after it has changed its table on those that this names.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let stack = Stack::start_logging(scene.clearway, 2, &scene.logs)?;
    let vf = stack.attach("guest", "02:c1:ea:00:08:01", 4)?;
    let peer_vf = stack.attach("peer", "02:c1:ea:00:08:02", 1)?;
    // Each port is a flow of its own.
    let flows = format!(
        "exec bash -c 'while :; do for port in {{5000..5063}}; do echo x > /dev/udp/{GUEST}/$port; done; sleep 0.1; done'"
    );
    let _peer = stack.run_vm_with("peer", &peer_vf, &format!("{PEER}/24"), &flows)?;
    let script = format!("{}obey\n", include_str!("scripts/rss.guest.sh"));
    let hardware = Hardware { processors: 4, ..Hardware::vf(&vf.socket) };
    let mut guest = up(scene, hardware, GUEST, Then::Run(&script))?;
    guest.expect("obeys")?;
    guest.ask(&format!("queues {QUEUES}"))?;
    let spread = received(&mut guest)?;
    scene.say(&format!("of 64 flows its queues have received {spread:?} frames"));
    ensure!(spread.iter().all(|frames| *frames > 0), "a queue has received none");
    ensure!(guest.ask("queues_in_table")? == "4", "not all queues are in the table");
    guest.ask("only_two_queues")?;
    ensure!(guest.ask("queues_in_table")? == "2", "not two queues are in the table");
    // iavf says so to its PF in its own time.
    for _ in 0..PATIENCE {
        let spread = received(&mut guest)?;
        scene.say(&format!("with two in the table they have received {spread:?}"));
        if spread.map(|frames| frames > 0) == [true, true, false, false] {
            return guest.end();
        }
    }
    bail!("the table is not what they are spread by")
}

/// What each queue receives in two seconds.
fn received(guest: &mut LinuxGuest) -> Result<[u64; QUEUES]> {
    let answer = guest.ask("received")?;
    let numbers: Option<Vec<u64>> = answer.split(' ').map(|word| word.parse().ok()).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).with_context(|| {
        format!("asked for what its {QUEUES} queues have received the guest says {answer:?}")
    })
}
