//! A stock iavf that is loaded, unloaded and configured under traffic: item 61 of SPEC-AVF §10.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result, ensure};

use super::{
    guest::Hardware,
    scene::Scene,
    vf::{Then, up},
};
use crate::guests::stack::Stack;

/// Rounds of each kind, if the time suffices.
const ROUNDS: u32 = 100;
/// Fewer rounds than this show nothing.
const FEWEST: u32 = 10;
/// Each kind of change, what a round of it is called, and the seconds it may take: about three minutes altogether. An
/// emulated guest on a busy machine does not always come to `ROUNDS` in that time.
const KINDS: [(&str, u32); 5] =
    [("loads", 60), ("ups", 40), ("mtus", 40), ("channels", 30), ("rings", 20)];
/// What memory of its own an adapter may have gained in the end, in KiB; it has some 2,000.
const GROWTH: u64 = 1024;
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Has the driver of a guest changed in every way while pings flow both ways.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let stack = Stack::start_logging(scene.clearway, 4, &scene.logs)?;
    let vf = stack.attach("guest", "02:c1:ea:00:03:01", 4)?;
    let peer_vf = stack.attach("peer", "02:c1:ea:00:03:02", 1)?;
    let program = stack.program().display();
    let traffic = format!(
        "while :; do {program} traffic ping {GUEST} --count 1000 --interval 2 || sleep 1; done \
         >/dev/null 2>&1"
    );
    let _peer = stack.run_vm_with("peer", &peer_vf, &format!("{PEER}/24"), &traffic)?;
    let script = script();
    let mut guest = up(scene, Hardware::vf(&vf.socket), GUEST, Then::Run(&script))?;
    guest.expect("traffic")?;
    let before = (Resources::of(stack.process())?, stack.frames(&vf)?);
    for (kind, _) in KINDS {
        let rounds: u32 = guest.expect(kind)?.parse().context("a number of rounds")?;
        scene.say(&format!("{rounds} of {ROUNDS} rounds under traffic: {}", meaning(kind)));
        ensure!(rounds >= FEWEST, "too few for the time: is the machine overloaded?");
        guest.expect("log is clean")?;
    }
    guest.expect("pinged small")?;
    guest.expect("pinged large")?;
    let after = (Resources::of(stack.process())?, stack.frames(&vf)?);
    scene.say(&format!(
        "after that no ping was lost; the adapter had {:?} and has {:?}, and counts {:?}",
        before.0, after.0, after.1
    ));
    ensure!(after.1.dma_faults == 0, "a stock driver caused DMA faults");
    ensure!(
        after.1.received > before.1.received && after.1.sent > before.1.sent,
        "no traffic went through the NIC switch"
    );
    after.0.not_more_than(&before.0)?;
    guest.expect("end")?;
    Ok(())
}

fn meaning(kind: &str) -> &'static str {
    match kind {
        "loads" => "iavf unloaded and loaded",
        "ups" => "the interface down and up",
        "mtus" => "MTU 9000 and 1500",
        "channels" => "ethtool -L, from 1 to 4 queue pairs",
        _ => "ethtool -G, from 64 to 4,096 descriptors",
    }
}

/// What a process holds.
#[derive(Copy, Clone, Debug)]
struct Resources {
    /// Memory of its own in KiB, without guests' memory and files.
    memory: u64,
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

impl Resources {
    fn of(process: u32) -> Result<Self> {
        let folder = format!("/proc/{process}");
        let status = fs::read_to_string(format!("{folder}/status"))?;
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok())
            .context("the adapter's status tells no RssAnon")?;
        Ok(Self {
            memory,
            descriptors: fs::read_dir(format!("{folder}/fd"))?.count(),
            threads: fs::read_dir(format!("{folder}/task"))?.count(),
            mappings: fs::read_to_string(format!("{folder}/maps"))?.lines().count(),
        })
    }

    fn not_more_than(&self, before: &Self) -> Result<()> {
        ensure!(self.descriptors <= before.descriptors, "the adapter leaks descriptors");
        ensure!(self.threads <= before.threads, "the adapter leaks threads");
        // The allocator may split or join its own.
        ensure!(self.mappings <= before.mappings + 8, "the adapter leaks mappings");
        ensure!(self.memory <= before.memory + GROWTH, "the adapter leaks memory");
        Ok(())
    }
}

/// What the guest does, each step with a mark. A round ends when a ping has passed.
fn script() -> String {
    let [loads, ups, mtus, channels, rings] =
        KINDS.map(|(kind, seconds)| format!("rounds {kind} {seconds}"));
    format!(
        r#"fail() {{ dmesg; echo MARK failed "$@"; }}
passes() {{
n=0; until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do n=$((n+1)); [ $n -gt 1000 ] && return 1; usleep 10000; done
n=0; until ping -q -c 1 -W 1 {PEER} >/dev/null 2>&1; do n=$((n+1)); [ $n -gt 20 ] && return 1; usleep 20000; done
}}
clean_log() {{
dmesg -r -c > /tmp/log
grep -E '^<[0-4]>.*iavf|WARNING:|BUG:|Call Trace|blocked for more than|NETDEV WATCHDOG|rcu.*stall' /tmp/log | head -n 20 > /tmp/bad
if [ -s /tmp/bad ]; then cat /tmp/bad; echo MARK failed errors in the log; else echo MARK log is clean; fi
}}
rounds() {{
kind=$1; until=$(($(now)+$2)); count=0
while [ $count -lt {ROUNDS} ] && [ $(now) -lt $until ]; do
count=$((count+1))
one_of_$kind || {{ fail round $count of $kind; break; }}
passes || {{ fail no ping in round $count of $kind; break; }}
done
echo MARK $kind $count; clean_log
}}
one_of_loads() {{
rmmod iavf || return 1
[ -e /sys/class/net/eth0 ] && return 1
insmod /modules/iavf.ko || return 1
n=0; until [ -e /sys/class/net/eth0 ]; do n=$((n+1)); [ $n -gt 2000 ] && return 1; usleep 10000; done
ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up
}}
one_of_ups() {{ ip link set eth0 down && ip link set eth0 up; }}
one_of_mtus() {{ ip link set eth0 mtu 9000 && passes && ip link set eth0 mtu 1500; }}
one_of_channels() {{ queue_pairs $((1 + count * 3 % 4)); }}
queue_pairs() {{
pairs=$1
ethtool -L eth0 combined $pairs || return 1
n=0; until [ $(grep -c iavf-eth0-TxRx /proc/interrupts) = $pairs ]; do
n=$((n+1)); [ $n -gt 500 ] && {{ ethtool -l eth0; cat /proc/interrupts; return 1; }}; usleep 10000
done
}}
one_of_rings() {{
case $((count % 4)) in 0) r="rx 512 tx 512";; 1) r="rx 64 tx 64";; 2) r="rx 4096 tx 4096";; 3) r="rx 96 tx 1024";; esac
ethtool -G eth0 $r
}}
flood() {{ while :; do ping -q -A -s 1000 -w 5 {PEER}; usleep 50000; done >/dev/null 2>&1; }}
flood & flood=$!
passes || fail no ping before
clean_log > /dev/null
echo MARK traffic
usleep 300000
{loads}
{ups}
{mtus}
{channels}
{rings}
kill $flood; killall ping
queue_pairs 1 && ethtool -G eth0 rx 4096 tx 4096 && passes || fail the last rings
none_lost -c 50 -i 0.05 {PEER} && echo MARK pinged small || fail ping
none_lost -c 50 -i 0.05 -s 1400 {PEER} && echo MARK pinged large || fail large ping
"#
    )
}
