//! VMs whose adapters have two paths, with programs that talk while the path moves. Adapter, switch, stack and workers are
//! those that `clearway` runs, in this process.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::{
    io::{BufRead, BufReader, Lines, PipeReader, PipeWriter},
    os::fd::OwnedFd,
    process::ExitCode,
};

use common::{estate::Estate, eventually, shell, start_tool, succeeds, tool};
use user_vm::{DataPath, RunningProgram};

const TESTS: [(&str, fn()); 3] = [
    ("paths_move_under_numbered_packets_and_none_is_lost_or_doubled", paths_move),
    ("an_adapter_that_dies_costs_at_most_what_was_in_its_rings", an_adapter_dies),
    ("a_switch_that_dies_leaves_the_vf", a_switch_dies),
];

fn main() -> ExitCode {
    // Each of them has an adapter, a switch and two VMs that poll.
    common::run_tests(&TESTS, 1)
}

/// Numbered packets from the first VM to the second.
struct Numbers {
    until: Option<PipeWriter>,
    sending: RunningProgram,
    sent: Lines<BufReader<PipeReader>>,
    collecting: RunningProgram,
    collected: Box<dyn BufRead>,
}

impl Numbers {
    /// So many each millisecond.
    fn start(estate: &Estate, each: u32) -> Self {
        let (collecting, collected) = start_tool(estate.vm(1), &["collect", "numbers"]);
        let (stdin, until) = std::io::pipe().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let number = tool(&["number", "10.0.0.2", &each.to_string()]);
        let number = number.input(OwnedFd::from(stdin)).output(writer);
        let sending = estate.vm(0).start(number).unwrap();
        let mut sent = BufReader::new(reader).lines();
        assert_eq!(sent.next().unwrap().unwrap(), "ready");
        Self { until: Some(until), sending, sent, collecting, collected: Box::new(collected) }
    }

    /// How many were sent, how many of them came, how many twice, how many after a later one.
    fn end(mut self) -> [u64; 4] {
        drop(self.until.take());
        let sent: u64 = self.sent.next().unwrap().unwrap().parse().unwrap();
        assert!(self.sending.wait().unwrap().success());
        let mut line = String::new();
        self.collected.read_line(&mut line).unwrap();
        assert!(self.collecting.wait().unwrap().success());
        let counts: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        [sent, counts[0], counts[1], counts[2]]
    }
}

fn paths_move() {
    let Some(estate) = Estate::start(2) else { return };
    // They talk before there is any VF, as soon as the switch knows them.
    succeeds_at_last(&estate);
    estate.all_on(DataPath::Vf);
    let (mut echo, _lines) = start_tool(estate.vm(1), &["echo"]);
    succeeds(estate.vm(0), &["ask", "10.0.0.2", "1000"]);
    let numbers = Numbers::start(&estate, 4);
    for _ in 0..20 {
        for vm in [0, 1] {
            estate.vm(vm).set_vf(None, false).unwrap();
            assert_eq!(estate.statistics(vm).path, Some(DataPath::Synthetic));
        }
        for vm in [1, 0] {
            estate.vm(vm).set_vf(Some(0), true).unwrap();
            assert_eq!(estate.statistics(vm).path, Some(DataPath::Vf));
        }
    }
    for _ in 0..2 {
        estate.set_weight(0);
        estate.all_on(DataPath::Synthetic);
        for vm in [0, 1] {
            eventually("the VF's end", || !estate.statistics(vm).vf_state.present);
        }
        estate.set_weight(100);
        estate.all_on(DataPath::Vf);
    }
    let [sent, arrived, doubled, late] = numbers.end();
    for vm in [0, 1] {
        let counts = estate.statistics(vm);
        eprintln!("vm{vm}: {counts:?}");
        let sockets = estate.vm(vm).output(shell("grep Udp: /proc/net/snmp")).unwrap();
        eprint!("{}", String::from_utf8_lossy(&sockets.stdout));
        let moves = counts.data_path;
        assert_eq!((moves.to_vf, moves.to_synthetic), (23, 22), "{counts:?}");
        assert_eq!((moves.surprises, moves.timeouts), (0, 0), "{counts:?}");
        assert_eq!(counts.vf.lost_in_rings + counts.synthetic.lost_in_rings, 0, "{counts:?}");
        assert!(counts.vf.transmit.frames > 0 && counts.synthetic.receive.frames > 0);
    }
    eprintln!("{sent} sent, {arrived} arrived, {doubled} doubled, {late} late");
    assert_eq!((arrived, doubled), (sent, 0), "{late} came late");
    echo.signal(9);
    let _ = echo.wait();
}

/// An answer from the second VM to the first, over whatever path.
fn succeeds_at_last(estate: &Estate) {
    for vm in [0, 1] {
        eventually("a carrier", || estate.statistics(vm).carrier);
    }
    let (mut echo, _lines) = start_tool(estate.vm(1), &["echo"]);
    succeeds(estate.vm(0), &["ask", "10.0.0.2", "100"]);
    echo.signal(9);
    let _ = echo.wait();
}

fn an_adapter_dies() {
    let Some(mut estate) = Estate::start(2) else { return };
    estate.all_on(DataPath::Vf);
    let numbers = Numbers::start(&estate, 2);
    std::thread::sleep(std::time::Duration::from_millis(200));
    estate.adapter = None;
    estate.all_on(DataPath::Synthetic);
    // On the same switch they still reach each other.
    succeeds_at_last(&estate);
    let [sent, arrived, doubled, _] = numbers.end();
    let lost = sent - arrived;
    eprintln!("{lost} of {sent} lost with the adapter");
    assert_eq!(doubled, 0);
    for vm in [0, 1] {
        let counts = estate.statistics(vm);
        assert_eq!(counts.data_path.surprises, 1, "{counts:?}");
        assert!(counts.carrier && !counts.vf_state.present, "{counts:?}");
    }
    // Another adapter brings other VFs.
    estate.start_adapter();
    estate.all_on(DataPath::Vf);
    succeeds_at_last(&estate);
}

fn a_switch_dies() {
    let Some(mut estate) = Estate::start(2) else { return };
    estate.all_on(DataPath::Vf);
    estate.switch = None;
    for vm in [0, 1] {
        eventually("the adapter's end", || !estate.statistics(vm).synthetic_state.present);
        let counts = estate.statistics(vm);
        assert!(counts.carrier, "{counts:?}");
    }
    estate.start_switch();
    estate.all_on(DataPath::Vf);
    for vm in [0, 1] {
        eventually("the adapter again", || estate.statistics(vm).synthetic_state.present);
        assert_eq!(estate.statistics(vm).synthetic_state.starts, 2);
    }
    estate.all_on(DataPath::Vf);
    succeeds_at_last(&estate);
    assert!(estate.vm(0).wait_for_end(std::time::Duration::ZERO).is_ok());
}
