//! VMs on VMBus, with programs that talk through the synthetic path.
//!
//! Like `vm.rs`, this program is everything: the test, the VMs' processes, and the tools that run inside them. The host
//! side of the VMs (VMBus, NetVSP, a virtual switch) is in the test's own process.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::{
    io::{BufRead, BufReader},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use common::{
    KINDS, PATIENCE, eventually, output, shell, start_tool, succeeds, tool,
    vmbus::{Machine, Nic, config, end_partition, switch},
};
use netvsp_protocol::oid::PacketFilter;
use user_vm::{AdapterStatistics, DataPath, GuestInterfaceKind, UserVm, UserVmConfig, UserVmError};
use virtual_switch::Worker;

const TESTS: [(&str, fn()); 11] = [
    ("programs_of_two_vms_talk_over_the_synthetic_path", programs_talk),
    ("a_stream_crosses_whole_in_large_packets", a_stream_crosses_whole),
    ("large_frames_cross", large_frames_cross),
    ("several_channels_carry_one_adapter", several_channels_carry_one_adapter),
    ("numbered_packets_arrive_once_and_in_order", numbered_packets_arrive),
    (
        "a_vm_starts_without_an_adapter_and_keeps_its_interface_when_adapters_come_and_go",
        nics_come_and_go,
    ),
    ("each_adapter_has_an_interface", each_adapter_has_an_interface),
    ("the_host_learns_what_the_guest_wants_to_receive", the_host_learns_of_filters),
    ("a_vm_without_traffic_sleeps", a_vm_without_traffic_sleeps),
    ("a_vm_ends_with_its_partition", a_vm_ends_with_its_partition),
    ("an_ordinary_user_can_run_all_of_this", an_ordinary_user_can_run_all_of_this),
];

fn main() -> ExitCode {
    common::run_tests(&TESTS, 2)
}

fn adapter(vm: &UserVm, number: usize) -> AdapterStatistics {
    vm.statistics().unwrap().adapters[number].clone()
}

/// Counters that have stopped moving.
fn settled(vm: &UserVm) -> AdapterStatistics {
    common::settled(|| adapter(vm, 0))
}

/// What the counters of a VM with nothing but a synthetic path must agree on when nothing moves.
fn hops_agree(counts: &AdapterStatistics) {
    assert_eq!(counts.path, Some(DataPath::Synthetic), "{counts:?}");
    let (sent, received) = (counts.from_guest, counts.to_guest);
    assert_eq!(counts.kernel.transmit_packets, sent.packets + sent.drops.total(), "{counts:?}");
    let synthetic = counts.synthetic.transmit;
    assert_eq!(
        (synthetic.packets, synthetic.frames, synthetic.bytes),
        (sent.packets, sent.frames, sent.bytes),
        "{counts:?}"
    );
    assert_eq!(
        counts.synthetic.receive.frames,
        received.packets + received.drops.total(),
        "{counts:?}"
    );
    assert_eq!(counts.kernel.receive_packets, received.packets, "{counts:?}");
    assert_eq!((counts.vf.transmit, counts.vf.receive), Default::default(), "{counts:?}");
}

/// Two VMs on one switch.
struct Pair {
    first: Machine,
    second: Machine,
    _nics: [Nic; 2],
    _switch: Worker,
}

fn pair(
    kind: GuestInterfaceKind,
    change: impl Fn(&mut UserVmConfig),
    channels: u16,
) -> Option<Pair> {
    let switch = switch();
    let start = |number: u8| {
        let mut config = config(number, kind);
        change(&mut config);
        Machine::with_nic(&config, switch.handle(), number + 1, channels)
    };
    let (first, first_nic) = start(0)?;
    let (second, second_nic) = start(1)?;
    Some(Pair { first, second, _nics: [first_nic, second_nic], _switch: switch })
}

fn programs_talk() {
    for kind in KINDS {
        let Some(pair) = pair(kind, |_| {}, 1) else { continue };
        let (first, second) = (&pair.first.vm, &pair.second.vm);
        assert_eq!(output(first, "cat /sys/class/net/eth0/address"), "00:15:5d:00:00:01\n");
        assert_eq!(output(first, "cat /sys/class/net/eth0/carrier"), "1\n");
        let (mut echo, _) = start_tool(second, &["echo"]);
        for length in ["0", "1", "18", "100", "1471", "1472"] {
            succeeds(first, &["ask", "10.0.0.2", length]);
        }
        echo.signal(9);
        echo.wait().unwrap();
        for vm in [first, second] {
            let counts = settled(vm);
            hops_agree(&counts);
            assert_eq!(counts.from_guest.drops.total() + counts.to_guest.drops.total(), 0);
            let state = &counts.synthetic_state;
            assert!(state.present && state.link_up && state.starts == 1, "{state:?}");
            assert_eq!((state.channels, state.version), (1, 0x0006_0001));
        }
        assert!(matches!(first.set_vf(None, true), Err(UserVmError::NoVf(_))));
        first.set_vf(Some(0), false).unwrap();
        assert!(matches!(first.set_vf(Some(5), true), Err(UserVmError::NoVf(_))));
    }
}

fn pour(from: &UserVm, to: &UserVm, address: &str, bytes: u64) {
    let (mut sink, mut lines) = start_tool(to, &["sink"]);
    let start = Instant::now();
    succeeds(from, &["pour", address, &bytes.to_string()]);
    let mut total = String::new();
    lines.read_line(&mut total).unwrap();
    eprintln!("{} MiB in {:?}", bytes >> 20, start.elapsed());
    assert_eq!(total, format!("{bytes}\n"));
    assert!(sink.wait().unwrap().success());
}

fn a_stream_crosses_whole() {
    for kind in KINDS {
        let Some(pair) = pair(kind, |_| {}, 1) else { continue };
        pour(&pair.first.vm, &pair.second.vm, "10.0.0.2", 32 << 20);
        let (sent, received) = (settled(&pair.first.vm), settled(&pair.second.vm));
        hops_agree(&sent);
        hops_agree(&received);
        // Large segments were cut by the switch, not by the guest.
        assert!(sent.from_guest.frames > 2 * sent.from_guest.packets, "{sent:?}");
        assert_eq!(sent.from_guest.drops.malformed + sent.from_guest.drops.too_long, 0, "{sent:?}");
        assert_eq!(received.from_guest.drops.malformed, 0);
    }
}

fn large_frames_cross() {
    let Some(pair) = pair(GuestInterfaceKind::Auto, |config| config.mtu = Some(9000), 1) else {
        return;
    };
    let (first, second) = (&pair.first.vm, &pair.second.vm);
    assert_eq!(output(first, "cat /sys/class/net/eth0/mtu"), "9000\n");
    let (echo, _) = start_tool(second, &["echo"]);
    succeeds(first, &["ask", "10.0.0.2", "2000"]);
    echo.signal(9);
    pour(first, second, "10.0.0.2", 8 << 20);
    let sent = settled(first);
    hops_agree(&sent);
    assert!(sent.from_guest.bytes / sent.from_guest.frames > 3000, "{sent:?}");
}

fn several_channels_carry_one_adapter() {
    let Some(pair) = pair(GuestInterfaceKind::Auto, |config| config.queue_pairs = 4, 4) else {
        return;
    };
    let (first, second) = (&pair.first.vm, &pair.second.vm);
    assert_eq!(adapter(first, 0).synthetic_state.channels, 4);
    pour(first, second, "10.0.0.2", 4 << 20);
    pour(second, first, "10.0.0.1", 4 << 20);
    for vm in [first, second] {
        let counts = settled(vm);
        hops_agree(&counts);
        assert_eq!(counts.from_guest.drops.total(), 0, "{counts:?}");
    }
}

fn numbered_packets_arrive() {
    let Some(pair) = pair(GuestInterfaceKind::Auto, |_| {}, 1) else { return };
    let (mut collect, mut collected) = start_tool(&pair.second.vm, &["collect", "numbers"]);
    let (stdin, until) = std::io::pipe().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let number = tool(&["number", "10.0.0.2", "4"]);
    let mut number =
        pair.first.vm.start(number.input(OwnedFd::from(stdin)).output(writer)).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    drop(until);
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready");
    let sent: u64 = lines.next().unwrap().parse().unwrap();
    assert!(number.wait().unwrap().success() && sent > 100, "{sent}");
    let mut arrived = String::new();
    collected.read_line(&mut arrived).unwrap();
    assert!(collect.wait().unwrap().success());
    assert_eq!(arrived, format!("{sent} 0 0\n"));
}

fn nics_come_and_go() {
    for kind in KINDS {
        let switch = switch();
        let Some((peer, _peer_nic)) = Machine::with_nic(&config(1, kind), switch.handle(), 2, 1)
        else {
            continue;
        };
        let started = Instant::now();
        let Some((machine, ())) = Machine::start(&config(0, kind), |_| ()) else { continue };
        eprintln!("{kind:?}: started without an adapter in {:?}", started.elapsed());
        let vm = &machine.vm;
        let index = output(vm, "cat /sys/class/net/eth0/ifindex");
        let carrier = || output(vm, "cat /sys/class/net/eth0/carrier");
        assert_eq!(carrier(), "0\n");
        let (_echo, _) = start_tool(&peer.vm, &["echo"]);
        for round in 1..=3u64 {
            let nic = Nic::offer(&machine.host, switch.handle(), 0, 1, 1);
            eventually("the adapter", || adapter(vm, 0).carrier);
            succeeds(vm, &["ask", "10.0.0.2", "100"]);
            assert_eq!(carrier(), "1\n");
            assert_eq!(output(vm, "cat /sys/class/net/eth0/ifindex"), index);
            assert_eq!(output(vm, "cat /sys/class/net/eth0/address"), "00:15:5d:00:00:01\n");
            let state = adapter(vm, 0).synthetic_state;
            assert_eq!((state.present, state.starts), (true, round));
            drop(nic);
            eventually("its end", || !adapter(vm, 0).carrier);
            assert_eq!(carrier(), "0\n");
            let counts = adapter(vm, 0);
            assert_eq!((counts.path, counts.synthetic_state.present), (None, false));
        }
    }
}

fn each_adapter_has_an_interface() {
    let switch = switch();
    let start = |host: &std::sync::Arc<partition::host::VmbusHost>| {
        // In another order than their numbers.
        [2, 0].map(|adapter| Nic::offer(host, switch.handle(), adapter, 10 + adapter as u8, 1))
    };
    let Some((machine, mut nics)) = Machine::start(&config(0, GuestInterfaceKind::Auto), start)
    else {
        return;
    };
    let vm = &machine.vm;
    eventually("both", || {
        let all = vm.statistics().unwrap().adapters;
        all.len() == 2 && all.iter().all(|adapter| adapter.carrier)
    });
    let all = vm.statistics().unwrap().adapters;
    let names: Vec<&str> = all.iter().map(|adapter| adapter.interface.as_str()).collect();
    assert_eq!(names, ["eth0", "eth2"]);
    assert_eq!([all[0].mac[5], all[1].mac[5]], [10, 12]);
    assert_eq!(output(vm, "cat /sys/class/net/eth2/address"), "00:15:5d:00:00:0c\n");
    // One goes, the other stays.
    nics[0] = Nic::offer(&machine.host, switch.handle(), 1, 11, 1);
    eventually("the third", || vm.statistics().unwrap().adapters.len() == 3);
    eventually("the first's end", || {
        let all = vm.statistics().unwrap().adapters;
        all[0].carrier && all[1].carrier && !all[2].carrier
    });
}

fn the_host_learns_of_filters() {
    let switch = switch();
    let config = config(0, GuestInterfaceKind::Auto);
    let Some((machine, nic)) = Machine::with_nic(&config, switch.handle(), 1, 1) else { return };
    let least = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
    let filter = || nic.told.last_filter().unwrap();
    eventually("a filter", || nic.told.last_filter().is_some_and(|filter| filter.contains(least)));
    // A program that listens to everything, as packet capture does.
    let flags = "/sys/class/net/eth0/flags";
    let change = format!("test -w {flags} && echo 0x1103 > {flags}");
    if !machine.vm.output(shell(&change)).unwrap().exit.success() {
        eprintln!("skipped: the interface's flags cannot be changed here");
        return;
    }
    eventually("promiscuity", || filter() == PacketFilter::PROMISCUOUS);
    output(&machine.vm, &format!("echo 0x1003 > {flags}"));
    eventually("its end", || filter().contains(least));
}

/// Hundredths of a second that a process has had a CPU.
fn cpu_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

fn a_vm_without_traffic_sleeps() {
    let Some(pair) = pair(GuestInterfaceKind::Auto, |config| config.queue_pairs = 4, 4) else {
        return;
    };
    let vm = &pair.first.vm;
    settled(vm);
    let before = cpu_time(vm.pid());
    std::thread::sleep(Duration::from_secs(2));
    let spent = cpu_time(vm.pid()) - before;
    assert!(spent < 40, "{spent} hundredths of a second in two seconds");
}

fn a_vm_ends_with_its_partition() {
    let Some((machine, ())) = Machine::start(&config(0, GuestInterfaceKind::Auto), |_| ()) else {
        return;
    };
    let vm = end_partition(machine);
    let end = vm.wait_for_end(PATIENCE);
    assert!(matches!(end, Err(UserVmError::Broken { .. })), "{end:?}");
    // What does not belong together is refused at once.
    let config = config(0, GuestInterfaceKind::Auto);
    assert!(matches!(UserVm::spawn(&config), Err(UserVmError::Partition(_))));
}

/// The other way round where the tests are run by an ordinary user, who cannot become root.
fn an_ordinary_user_can_run_all_of_this() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("this is an ordinary user");
        return;
    }
    let program = std::env::current_exe().unwrap();
    for test in [TESTS[0].0, TESTS[5].0] {
        let mut command = Command::new(&program);
        command.uid(NOBODY).gid(NOBODY).args(["--exact", test]);
        match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
            Ok(child) => {
                let output = child.wait_with_output().unwrap();
                let text = String::from_utf8_lossy(&output.stderr);
                let results = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{results}{text}");
                assert!(results.contains("1 passed"), "{results}");
                eprint!("{text}");
            }
            // The program lies where only root may go.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                eprintln!("skipped: user {NOBODY} may not run {}: {error}", program.display());
            }
            Err(error) => panic!("{error}"),
        }
    }
}
