//! VMs on the VFs of a software NIC, with programs that talk through them.
//!
//! This program is everything: the test, the VM's own processes (`user_vm::enter_if_requested`), and the tools
//! that run inside VMs. It has no test harness of its own accord, since a VM's launcher must have one thread.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use common::{
    Host, KINDS, PATIENCE, Tool, config, eventually, output, process_exists, shell, spawn,
    start_tool, succeeds, tool_command, vf,
};
use ndis_protocol::FunctionId;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use user_vm::{
    GuestInterfaceKind, OnVfLoss, Program, ProgramExit, UserVm, UserVmError, VmClient, VmStatistics,
};

const TESTS: [(&str, fn()); 16] = [
    ("a_vm_has_namespaces_and_a_name_of_its_own", a_vm_has_namespaces_and_a_name_of_its_own),
    ("packets_of_all_sizes_are_answered_by_another_vm", packets_are_answered),
    ("a_stream_crosses_whole_and_every_hop_counts_the_same", a_stream_crosses_whole),
    ("what_a_program_sent_arrives_though_its_vm_ends", what_a_program_sent_arrives),
    ("several_queue_pairs_carry_one_vm", several_queue_pairs_carry_one_vm),
    ("programs_end_as_they_do_anywhere", programs_end_as_they_do_anywhere),
    ("a_killed_vm_leaves_nothing", a_killed_vm_leaves_nothing),
    ("a_vm_ends_with_whoever_started_it", a_vm_ends_with_whoever_started_it),
    ("a_reset_under_traffic_is_recovered_from", a_reset_under_traffic_is_recovered_from),
    ("a_vm_ends_with_its_vf_if_told_so", a_vm_ends_with_its_vf_if_told_so),
    ("a_vm_waits_for_another_vf_if_told_so", a_vm_waits_for_another_vf_if_told_so),
    ("a_vf_that_does_not_answer_is_a_clear_error", a_vf_that_does_not_answer_is_a_clear_error),
    ("the_control_socket_serves_others", the_control_socket_serves_others),
    ("a_vm_without_descriptors_lets_others_wait_and_sleeps", a_vm_without_descriptors_sleeps),
    ("a_command_has_the_terminal_and_its_exit_status_is_passed_on", a_command_has_the_terminal),
    ("an_ordinary_user_can_run_all_of_this", an_ordinary_user_can_run_all_of_this),
];

fn main() -> ExitCode {
    // Each test has several processes that poll; more than two at a time only make each other wait.
    common::run_tests(&TESTS, 2)
}

fn a_vm_has_namespaces_and_a_name_of_its_own() {
    let host = Host::new(1);
    for kind in KINDS {
        let mut config = host.config(0, kind);
        config.gateway = Some("10.0.0.254".parse().unwrap());
        config.addresses.push("fd00::1/64".parse().unwrap());
        let Some(vm) = spawn(&config) else {
            continue;
        };
        assert_eq!(output(&vm, "cat /proc/sys/kernel/hostname"), "vm0\n");
        assert_eq!(output(&vm, "id -u"), "0\n");
        // Its own processes only.
        assert!(output(&vm, "ls /proc | grep -c '^[0-9]'").trim().parse::<u32>().unwrap() < 8);
        let mut interfaces: Vec<String> = output(&vm, "tail -n +3 /proc/net/dev | cut -d: -f1")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        interfaces.sort();
        assert_eq!(interfaces, ["eth0", "lo"], "{kind:?}");
        assert_eq!(output(&vm, "cat /sys/class/net/eth0/address"), "02:00:00:00:01:00\n");
        assert_eq!(output(&vm, "cat /sys/class/net/eth0/mtu"), "1500\n");
        assert_eq!(output(&vm, "cat /sys/class/net/eth0/carrier"), "1\n");
        // 10.0.0.254 as the route to 0.0.0.0.
        assert!(output(&vm, "cat /proc/net/route").contains("eth0\t00000000\tFE00000A"));
        assert!(output(&vm, "cat /proc/net/if_inet6").contains("fd000000000000000000000000000001"));
        assert_eq!(output(&vm, "echo $CLEARWAY_VM"), "vm0\n");
        vm.shutdown();
        eventually("the VF's return", || !host.adapter.is_connected(FunctionId::Vf(vf(0))));
    }
}

/// Two VMs whose `eth0` is of this kind.
fn two_vms(host: &Host, kind: GuestInterfaceKind) -> Option<(UserVm, UserVm)> {
    Some((spawn(&host.config(0, kind))?, spawn(&host.config(1, kind))?))
}

/// Counters that have stopped moving.
fn settled(vm: &UserVm) -> VmStatistics {
    common::settled(|| vm.statistics().unwrap())
}

/// What every VM's counters must agree on when nothing moves.
fn hops_agree(counts: &VmStatistics) {
    let VmStatistics { vf, eth0, to_vf, to_guest, adapters: _ } = counts;
    assert_eq!(eth0.transmit_packets, to_vf.packets + to_vf.drops.total(), "{counts:?}");
    assert_eq!(to_vf.packets, vf.transmitted_packets, "{counts:?}");
    assert_eq!(vf.received_frames, to_guest.packets + to_guest.drops.total(), "{counts:?}");
    assert_eq!(eth0.receive_packets, to_guest.packets, "{counts:?}");
    assert_eq!(to_guest.packets, to_guest.frames, "{counts:?}");
}

fn packets_are_answered() {
    for kind in KINDS {
        let host = Host::new(2);
        let Some((first, second)) = two_vms(&host, kind) else {
            continue;
        };
        let (mut echo, _) = start_tool(&second, &["echo"]);
        for length in ["0", "1", "17", "18", "100", "1471", "1472"] {
            succeeds(&first, &["ask", "10.0.0.2", length]);
        }
        echo.signal(9);
        assert_eq!(echo.wait().unwrap(), ProgramExit::Signal(9));
        for vm in [&first, &second] {
            let counts = settled(vm);
            hops_agree(&counts);
            assert_eq!(counts.to_vf.drops.total() + counts.to_guest.drops.total(), 0, "{counts:?}");
        }
    }
}

fn a_stream_crosses_whole() {
    for kind in KINDS {
        let host = Host::new(2);
        let Some((first, second)) = two_vms(&host, kind) else {
            continue;
        };
        let (mut sink, mut lines) = start_tool(&second, &["sink"]);
        let start = Instant::now();
        succeeds(&first, &["pour", "10.0.0.2", "33554432"]);
        let mut total = String::new();
        lines.read_line(&mut total).unwrap();
        eprintln!("{kind:?}: 32 MiB in {:?}", start.elapsed());
        assert_eq!(total, "33554432\n");
        assert!(sink.wait().unwrap().success());
        let (sent, received) = (settled(&first), settled(&second));
        hops_agree(&sent);
        hops_agree(&received);
        // Large segments were cut by the VF, not by the guest.
        assert!(sent.to_vf.frames > 2 * sent.to_vf.packets, "{sent:?}");
        assert_eq!(sent.to_vf.drops.malformed + received.to_vf.drops.malformed, 0);
        // Every frame of the stream that left the one arrived at the other, or is accounted for as lost.
        let stats = |number| host.adapter.stats(FunctionId::Vf(vf(number))).unwrap();
        eprintln!("{:?}\n{:?}", stats(0), stats(1));
    }
}

fn what_a_program_sent_arrives() {
    let host = Host::new(2);
    let Some((first, second)) = two_vms(&host, GuestInterfaceKind::Auto) else {
        return;
    };
    let (mut sink, mut lines) = start_tool(&second, &["sink"]);
    // When the program ends, much of this is in its socket still.
    succeeds(&first, &["pour", "10.0.0.2", "3000000"]);
    first.shutdown();
    let exit = sink.wait_for(PATIENCE).unwrap();
    assert!(exit.is_some_and(|exit| exit.success()), "the stream has no end: {exit:?}");
    let mut total = String::new();
    lines.read_line(&mut total).unwrap();
    assert_eq!(total, "3000000\n");
}

fn several_queue_pairs_carry_one_vm() {
    let host = Host::with_queue_pairs(2, 4);
    let mut config = host.config(0, GuestInterfaceKind::Auto);
    config.queue_pairs = 4;
    let (Some(first), Some(second)) =
        (spawn(&config), spawn(&host.config(1, GuestInterfaceKind::Auto)))
    else {
        return;
    };
    assert_eq!(first.statistics().unwrap().vf.queue_pairs, 4);
    for (from, to, address) in [(&first, &second, "10.0.0.2"), (&second, &first, "10.0.0.1")] {
        let (mut sink, _lines) = start_tool(to, &["sink"]);
        succeeds(from, &["pour", address, "4194304"]);
        assert!(sink.wait().unwrap().success());
    }
    for vm in [first, second] {
        hops_agree(&settled(&vm));
    }
}

fn programs_end_as_they_do_anywhere() {
    let host = Host::new(1);
    let Some(vm) = spawn(&host.config(0, GuestInterfaceKind::Auto)) else {
        return;
    };
    let exit = |script: &str| vm.output(shell(script)).unwrap().exit;
    assert_eq!(exit("exit 3"), ProgramExit::Code(3));
    assert_eq!(exit("kill -TERM $$"), ProgramExit::Signal(15));
    let both = vm.output(shell("echo out; echo err >&2")).unwrap();
    assert_eq!((&both.stdout[..], &both.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let missing = vm.start(Program::new(["/no/such/program"]));
    assert!(
        matches!(missing, Err(UserVmError::Program { source, .. }) if source.kind() == std::io::ErrorKind::NotFound)
    );
    let long = vm.start(Program::new(["echo", &"x".repeat(1 << 20)]));
    assert!(matches!(long, Err(UserVmError::Program { .. })));

    // A program's whole process group gets its signals; orphans are reaped by process 1.
    let mut sleeping = vm.start(shell("sleep 1000; true")).unwrap();
    assert_eq!(sleeping.wait_for(Duration::from_millis(10)).unwrap(), None);
    sleeping.signal(15);
    assert_eq!(sleeping.wait().unwrap(), ProgramExit::Signal(15));
    assert!(exit("(sleep 0.05 &) ; exit 0").success());
    eventually("the end of all programs", || {
        output(&vm, "ls /proc | grep -c '^[0-9]'").trim() == "5"
            || output(&vm, "cat /proc/[0-9]*/comm").matches("sleep").count() == 0
    });
    // A program dies with its handle.
    let dropped = vm.start(shell("exec sleep 1001")).unwrap();
    let pid = dropped.pid();
    assert!(exit(&format!("test -e /proc/{pid}")).success());
    drop(dropped);
    eventually("the end of the program", || !exit(&format!("test -e /proc/{pid}")).success());
}

fn a_killed_vm_leaves_nothing() {
    let host = Host::new(2);
    let mut config = host.config(0, GuestInterfaceKind::Auto);
    config.control_socket = Some(host.directory.path().join("vm0.control"));
    let Some(vm) = spawn(&config) else {
        return;
    };
    let mut sleeping = vm.start(shell("exec sleep 1000")).unwrap();
    let pid = vm.pid();
    // The programs as the host sees them: children of process 1.
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let programs: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(programs.len(), 1);
    let start = Instant::now();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    assert!(matches!(sleeping.wait(), Err(UserVmError::Gone(_))));
    assert!(matches!(vm.wait_for_end(PATIENCE), Err(UserVmError::Gone(_))));
    eventually("the end of its processes", || {
        !process_exists(pid) && !programs.iter().any(|pid| process_exists(*pid))
    });
    eventually("the VF's return", || !host.adapter.is_connected(FunctionId::Vf(vf(0))));
    eprintln!("reclaimed in {:?}", start.elapsed());
    drop(vm);
    assert!(!config.control_socket.as_ref().unwrap().exists());
    // The VF serves the next VM of the same name.
    let again = spawn(&config).unwrap();
    assert!(again.statistics().unwrap().vf.present);
}

fn a_vm_ends_with_whoever_started_it() {
    let host = Host::new(1);
    let socket = host.adapter.socket(FunctionId::Vf(vf(0)));
    let command = tool_command(&[
        "run",
        socket.to_str().unwrap(),
        "auto",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]);
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("user namespaces are forbidden"), "{text}");
        eprintln!("skipped: {text}");
        return;
    }
    let launcher: u32 = children(child.id())[0];
    let vm = children(launcher)[0];
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the end of the VM", || !process_exists(vm) && !process_exists(launcher));
    eventually("the VF's return", || !host.adapter.is_connected(FunctionId::Vf(vf(0))));
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn a_reset_under_traffic_is_recovered_from() {
    let host = Host::new(2);
    let Some((first, second)) = two_vms(&host, GuestInterfaceKind::Auto) else {
        return;
    };
    let (mut sink, mut lines) = start_tool(&second, &["sink"]);
    std::thread::scope(|scope| {
        let pour = scope.spawn(|| succeeds(&first, &["pour", "10.0.0.2", "67108864"]));
        for (number, vm) in [(1, &second), (0, &first)] {
            let before = vm.statistics().unwrap();
            eventually("traffic", || {
                let now = vm.statistics().unwrap();
                now.to_guest.frames > before.to_guest.frames + 100 && !pour.is_finished()
            });
            host.adapter.pf_reset_vf(vf(number)).unwrap();
            eventually("the recovery", || vm.statistics().unwrap().vf.resets == 1);
        }
        pour.join().unwrap();
    });
    let mut total = String::new();
    lines.read_line(&mut total).unwrap();
    assert_eq!(total, "67108864\n");
    assert!(sink.wait().unwrap().success());
    for vm in [&first, &second] {
        let counts = settled(vm);
        assert!(counts.vf.present && counts.vf.link_up && counts.vf.resets == 1, "{counts:?}");
    }
}

fn a_vm_ends_with_its_vf_if_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut adapter = Tool::start(&["adapter", path]);
    let socket = vf_socket(path);
    let Some(vm) = spawn(&config(socket, 0, GuestInterfaceKind::Auto)) else {
        return;
    };
    let mut sleeping = vm.start(shell("exec sleep 1000")).unwrap();
    adapter.0.kill().unwrap();
    let error = vm.wait_for_end(PATIENCE).unwrap_err();
    assert!(matches!(error, UserVmError::VfLost { .. }), "{error:?}");
    assert!(sleeping.wait().is_err());
    eventually("the end of its process", || !process_exists(vm.pid()));
}

/// The only VF's socket in an adapter's directory.
fn vf_socket(directory: &str) -> std::path::PathBuf {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut sockets: Vec<_> = names
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("vf"))
        .collect();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    sockets.pop().unwrap()
}

fn a_vm_waits_for_another_vf_if_told_so() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let mut adapter = Tool::start(&["adapter", path]);
        let mut config = config(vf_socket(path), 0, kind);
        config.on_vf_loss = OnVfLoss::Wait;
        let Some(vm) = spawn(&config) else {
            continue;
        };
        let carrier = || output(&vm, "cat /sys/class/net/eth0/carrier");
        assert_eq!(carrier(), "1\n");
        adapter.0.kill().unwrap();
        adapter.0.wait().unwrap();
        eventually("the loss of the carrier", || carrier() == "0\n");
        let counts = vm.statistics().unwrap();
        assert!(!counts.vf.present && !counts.vf.link_up, "{counts:?}");
        // A new adapter starts over the stale sockets, and the VM finds its VF there.
        let _adapter = Tool::start(&["adapter", path]);
        eventually("the return of the carrier", || carrier() == "1\n");
        let counts = vm.statistics().unwrap();
        assert!(counts.vf.present && counts.vf.link_up && counts.vf.reconnects == 1, "{counts:?}");
        assert_eq!(output(&vm, "cat /sys/class/net/eth0/address"), "02:00:00:00:01:00\n");
    }
}

fn a_vf_that_does_not_answer_is_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vf0.sock");
    let mut config = config(socket.clone(), 0, GuestInterfaceKind::Auto);
    config.start_timeout = Duration::from_millis(100);
    match UserVm::spawn(&config) {
        Err(UserVmError::Start { failure, .. })
            if failure.kind == user_vm::StartFailureKind::NamespacesForbidden =>
        {
            eprintln!("skipped: {failure}");
        }
        Err(UserVmError::Start { failure, .. }) => {
            assert_eq!(failure.kind, user_vm::StartFailureKind::Vf);
            assert!(failure.message.contains(socket.to_str().unwrap()), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    config.name = "not a name".to_owned();
    assert!(matches!(UserVm::spawn(&config), Err(UserVmError::BadName(_))));
}

/// What process `pid` may have of descriptors; returns what it might before.
fn limit_descriptors(pid: u32, limit: Rlimit) -> Rlimit {
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).unwrap()
}

/// The number that the next descriptor of a VM's process gets, not counting those that it has for a moment only: the
/// carrier reads the guest kernel's lists of groups and VLANs four times a second, files in `/proc`.
fn next_descriptor(pid: u32) -> u64 {
    let lasts = |number: &u64| {
        fs::read_link(format!("/proc/{pid}/fd/{number}"))
            .is_ok_and(|file| !file.starts_with("/proc"))
    };
    (0..).find(|number| !lasts(number)).unwrap()
}

/// Whether all threads of process `pid` sleep: what a thread opens when it begins is open then.
fn all_sleep(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S'))
    })
}

/// How often the first thread of process `pid` has gone to sleep, and its CPU time in ticks of 10 ms.
fn sleeps_and_ticks(pid: u32) -> (u64, u64) {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/task/{pid}/{file}")).unwrap();
    let status = read("status");
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let stat = read("stat");
    let times = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    (sleeps.unwrap().trim().parse().unwrap(), times.map(|time| time.parse::<u64>().unwrap()).sum())
}

fn a_vm_without_descriptors_sleeps() {
    let host = Host::new(1);
    let socket = host.directory.path().join("vm.sock");
    let mut config = host.config(0, GuestInterfaceKind::Tap);
    config.control_socket = Some(socket.clone());
    let Some(vm) = spawn(&config) else {
        return;
    };
    eventually("the sleep of all its threads", || all_sleep(vm.pid()));
    // What it may have at most stays, so that what it has can be put back.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(next_descriptor(vm.pid())), maximum };
    let usual = limit_descriptors(vm.pid(), none);
    // Whoever says this is thrown out when its turn has come.
    let stranger = rustix_seqpacket(&socket);
    rustix::net::send(&stranger, b"GET / HTTP/1.1", rustix::net::SendFlags::empty()).unwrap();
    let answer = || {
        let flags = rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(&stranger, &mut [0u8; 16], flags).map(|(bytes, _)| bytes)
    };
    let (slept_before, ticks_before) = sleeps_and_ticks(vm.pid());
    // It looks after the stranger before each sleep; one that is called again at once never sleeps.
    eventually("the VM's sleep", || sleeps_and_ticks(vm.pid()).0 >= slept_before + 5);
    let spent = sleeps_and_ticks(vm.pid()).1 - ticks_before;
    assert!(spent <= 5, "it spins between its sleeps: {spent} ticks");
    assert_eq!(answer(), Err(rustix::io::Errno::AGAIN), "it serves without a descriptor");
    limit_descriptors(vm.pid(), usual);
    eventually("the stranger's turn", || answer() == Ok(0));
    assert!(VmClient::new("vm0", socket).unwrap().statistics().unwrap().vf.present);
    vm.shutdown();
}

fn the_control_socket_serves_others() {
    let host = Host::new(1);
    let control = host.directory.path().join("vm0.control");
    let mut config = host.config(0, GuestInterfaceKind::Auto);
    config.control_socket = Some(control.clone());
    assert!(matches!(VmClient::new("vm0", &control), Err(UserVmError::NotRunning { .. })));
    let Some(vm) = spawn(&config) else {
        return;
    };
    assert!(matches!(UserVm::spawn(&config), Err(UserVmError::AlreadyRuns(_))));
    let client = VmClient::new("vm0", &control).unwrap();
    assert!(client.statistics().unwrap().vf.present);
    let output = client.output(shell("cat /proc/sys/kernel/hostname")).unwrap();
    assert_eq!(output.stdout, b"vm0\n");
    // Somebody who speaks nonsense is thrown out, and nobody else notices.
    let noise = rustix_seqpacket(&control);
    rustix::net::send(&noise, b"GET / HTTP/1.1", rustix::net::SendFlags::empty()).unwrap();
    assert_eq!(
        rustix::net::recv(&noise, &mut [0u8; 16], rustix::net::RecvFlags::empty()).unwrap().0,
        0
    );
    assert!(client.statistics().unwrap().vf.present);
    client.shutdown().unwrap();
    assert!(matches!(vm.wait_for_end(PATIENCE), Err(UserVmError::Gone(_))));
    drop(vm);
    assert!(!control.exists());
}

fn rustix_seqpacket(path: &std::path::Path) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
    fd
}

/// Runs a VM with a command at a pseudo terminal; returns what it showed and its exit status.
///
/// `typed` is typed once `prompt` was shown.
fn at_terminal(host: &Host, command: &[&str], prompt: &str, typed: &str) -> Option<(String, i32)> {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    let socket = host.adapter.socket(FunctionId::Vf(vf(0)));
    let words = [&["run", socket.to_str().unwrap(), "auto"], command].concat();
    let words = tool_command(&words);
    // A session of its own with the terminal, as a login has.
    let mut setsid = Command::new("setsid");
    setsid.arg("--ctty").arg("--wait").args(&words);
    let clone = || Stdio::from(slave.try_clone().unwrap());
    let mut child = setsid.stdin(clone()).stdout(clone()).stderr(clone()).spawn().unwrap();
    drop((slave, setsid));
    let mut master = fs::File::from(master);
    let mut shown = String::new();
    let mut answered = false;
    let mut bytes = [0; 1024];
    loop {
        let mut ready = [PollFd::new(&master, PollFlags::IN)];
        let patience = PATIENCE.try_into().unwrap();
        assert_eq!(
            poll(&mut ready, Some(&patience)),
            Ok(1),
            "{command:?} fell silent after: {shown}"
        );
        let Ok(count) = master.read(&mut bytes) else {
            break;
        };
        shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        if !answered && shown.contains(prompt) {
            master.write_all(typed.as_bytes()).unwrap();
            answered = true;
        }
        if count == 0 {
            break;
        }
    }
    let status = child.wait().unwrap().code().unwrap();
    if shown.contains("user namespaces are forbidden") {
        eprintln!("skipped: {shown}");
        return None;
    }
    Some((shown, status))
}

fn a_command_has_the_terminal() {
    let host = Host::new(1);
    // It reads from the terminal, and its status is passed on.
    let script = "test -t 0 && test -t 1 && echo ask; read line; echo got $line; exit 7";
    let Some((shown, status)) = at_terminal(&host, &["sh", "-c", script], "ask", "hello\n") else {
        return;
    };
    assert!(shown.contains("got hello") && status == 7, "{status}: {shown}");
    // The interrupt key ends the program, not the VM before it.
    let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let (shown, status) = at_terminal(&host, &["sh", "-c", script], "ready", "\u{3}").unwrap();
    assert!(shown.contains("caught") && status == 9, "{status}: {shown}");
    let script = "echo ready; exec sleep 1000";
    let (shown, status) = at_terminal(&host, &["sh", "-c", script], "ready", "\u{3}").unwrap();
    assert_eq!(status, 130, "{shown}");
    // A shell has job control: without it, `fg` says so.
    if fs::exists("/bin/bash").unwrap() {
        let typed = "sleep 0.1 & fg; echo fg-$?; exit 5\n";
        let command = ["env", "PS1=ready ", "bash", "--norc", "-i"];
        let (shown, status) = at_terminal(&host, &command, "ready ", typed).unwrap();
        assert!(shown.contains("fg-0") && status == 5, "{status}: {shown}");
        assert!(!shown.contains("no job control"), "{shown}");
    }
    // SIGTERM is passed on.
    let socket = host.adapter.socket(FunctionId::Vf(vf(0)));
    let words = tool_command(&[
        "run",
        socket.to_str().unwrap(),
        "auto",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// The other way round where the tests are run by an ordinary user, who cannot become root.
fn an_ordinary_user_can_run_all_of_this() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("this is an ordinary user");
        return;
    }
    let program = std::env::current_exe().unwrap();
    for test in [
        "a_vm_has_namespaces_and_a_name_of_its_own",
        "packets_of_all_sizes_are_answered_by_another_vm",
        "a_killed_vm_leaves_nothing",
    ] {
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
