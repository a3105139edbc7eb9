//! An adapter with VFs, in this process or another, hosts of VMs on VMBus, and what the programs inside VMs do.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod estate;
pub mod vmbus;

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use adapter::{Adapter, AdapterConfig};
use libtest_mimic::{Arguments, Failed, Trial};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};
use user_vm::{
    GuestInterfaceKind, Program, RunningProgram, StartFailureKind, UserVm, UserVmConfig,
    UserVmError,
};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The `main` of a test program, which is also the VMs' processes and the tools inside them: each of these must get here
/// with one thread. What VMs' processes log is seen with CLEARWAY_LOG=debug.
pub fn run_tests(tests: &[(&'static str, fn())], at_a_time: usize) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("CLEARWAY_LOG"))
        .with_writer(std::io::stderr)
        .init();
    if let Some(code) = user_vm::enter_if_requested().or_else(tool_if_requested) {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(at_a_time);
    let run = |test: fn()| {
        move || -> Result<(), Failed> {
            test();
            Ok(())
        }
    };
    let trials = tests.iter().map(|(name, test)| Trial::test(*name, run(*test))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What a script writes that ends well.
pub fn output(vm: &UserVm, script: &str) -> String {
    let output = vm.output(shell(script)).unwrap();
    assert!(output.exit.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a tool in a VM and waits until it is ready; gives the rest of what it writes.
pub fn start_tool(vm: &UserVm, words: &[&str]) -> (RunningProgram, BufReader<impl Read + use<>>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let program = vm.start(tool(words).output(writer)).unwrap();
    let mut lines = BufReader::new(reader);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (program, lines)
}

pub fn succeeds(vm: &UserVm, words: &[&str]) {
    let output = vm.output(tool(words)).unwrap();
    assert!(output.exit.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What has stopped changing.
pub fn settled<T: PartialEq + std::fmt::Debug>(look: impl Fn() -> T) -> T {
    let mut last = look();
    let start = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = look();
        if now == last {
            return now;
        }
        assert!(start.elapsed() < PATIENCE, "never quiet: {now:?}");
        last = now;
    }
}

pub fn vf(number: u16) -> VfId {
    VfId::new(number).unwrap()
}

/// An adapter with VFs, each with a VPort and a filter for its address.
pub fn start_adapter(directory: &Path, vfs: u16, queue_pairs: u16) -> Adapter {
    let mut config = AdapterConfig::new("test", directory);
    config.total_vfs = vfs;
    let adapter = Adapter::start(config).unwrap();
    adapter.enable_vfs(vfs).unwrap();
    for number in 0..vfs {
        let address = MacAddress::new([2, 0, 0, 0, 1, u8::try_from(number).unwrap()]);
        let (id, _) = adapter.allocate_vf(address).unwrap();
        let vport = VPortId::new(u32::from(number) + 1).unwrap();
        let moderation = InterruptModeration::Undefined;
        adapter.create_vport(vport, FunctionId::Vf(id), queue_pairs, moderation).unwrap();
        let filter = ReceiveFilter { mac: address, vlan: VlanMatch::UntaggedOrZero, vport };
        adapter.set_filter(FilterId::new(u32::from(number) + 1).unwrap(), filter).unwrap();
    }
    adapter
}

/// A NIC for a test, and a place for sockets.
pub struct Host {
    pub adapter: Adapter,
    pub directory: tempfile::TempDir,
}

impl Host {
    pub fn new(vfs: u16) -> Self {
        Self::with_queue_pairs(vfs, 1)
    }

    pub fn with_queue_pairs(vfs: u16, queue_pairs: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { adapter: start_adapter(directory.path(), vfs, queue_pairs), directory }
    }

    /// VM `number`, with address 10.0.0.(number + 1), on the VF of that number.
    pub fn config(&self, number: u16, kind: GuestInterfaceKind) -> UserVmConfig {
        config(self.adapter.socket(FunctionId::Vf(vf(number))), number, kind)
    }
}

pub fn config(socket: PathBuf, number: u16, kind: GuestInterfaceKind) -> UserVmConfig {
    let mut config = UserVmConfig::new(format!("vm{number}"), socket);
    config.addresses = vec![format!("10.0.0.{}/24", number + 1).parse().unwrap()];
    config.interface = kind;
    config
}

/// Starts a VM; `None`, with the reason printed, where the host forbids what it needs.
pub fn spawn(config: &UserVmConfig) -> Option<UserVm> {
    match UserVm::spawn(config) {
        Ok(vm) => Some(vm),
        Err(UserVmError::Start { failure, .. })
            if failure.kind == StartFailureKind::NamespacesForbidden
                || failure.message.contains("/dev/net/tun") =>
        {
            eprintln!("skipped: {failure}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// The kinds of `eth0` that this host allows.
pub const KINDS: [GuestInterfaceKind; 2] = [GuestInterfaceKind::Veth, GuestInterfaceKind::Tap];

/// This program as a tool inside a VM.
pub fn tool(arguments: &[&str]) -> Program {
    Program::new(tool_command(arguments))
}

pub fn tool_command(arguments: &[&str]) -> Vec<OsString> {
    let mut command = vec![std::env::current_exe().unwrap().into_os_string(), TOOL.into()];
    command.extend(arguments.iter().map(OsString::from));
    command
}

pub fn shell(script: &str) -> Program {
    Program::new(["sh", "-c", script])
}

/// First argument of this program as a tool.
const TOOL: &str = "__tool";

/// What this program is asked to be, if it is not the test itself.
pub fn tool_if_requested() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [TOOL, rest @ ..] => {
            run_tool(rest);
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

fn run_tool(words: &[&str]) {
    match words {
        // Answers UDP packets until it is killed.
        ["echo"] => {
            let socket = UdpSocket::bind("0.0.0.0:7").unwrap();
            println!("ready");
            let mut bytes = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).unwrap();
                socket.send_to(&bytes[..length], from).unwrap();
            }
        }
        // Sends UDP packets of that many bytes until one is answered.
        ["ask", address, length] => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let sent = vec![0x5a; length.parse().unwrap()];
            let start = Instant::now();
            loop {
                let _ = socket.send_to(&sent, (*address, 7));
                let mut answer = vec![0; 2048];
                if let Ok(length) = socket.recv(&mut answer) {
                    assert_eq!(answer[..length], sent);
                    return;
                }
                assert!(start.elapsed() < PATIENCE, "no answer from {address}");
            }
        }
        // Takes one stream, checks it, and says how long it was.
        ["sink"] => {
            let listener = TcpListener::bind("0.0.0.0:9").unwrap();
            println!("ready");
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = vec![0; 64 << 10];
            let mut total = 0usize;
            loop {
                let count = stream.read(&mut bytes).unwrap();
                if count == 0 {
                    break;
                }
                for (index, byte) in bytes[..count].iter().enumerate() {
                    assert_eq!(usize::from(*byte), (total + index) % 251, "at {}", total + index);
                }
                total += count;
            }
            println!("{total}");
        }
        // Sends a stream of that many bytes.
        ["pour", address, length] => {
            let mut left: usize = length.parse().unwrap();
            let pattern: Vec<u8> = (0u8..251).collect::<Vec<_>>().repeat(256);
            let mut stream = TcpStream::connect((*address, 9)).unwrap();
            while left > 0 {
                let part = left.min(pattern.len());
                stream.write_all(&pattern[..part]).unwrap();
                left -= part;
            }
        }
        // Takes numbered packets until none has come for two seconds, and says how many came, how many more than once, and
        // how many after a later one. Tells the sender how many have come.
        ["collect", "numbers"] => {
            let socket = UdpSocket::bind("0.0.0.0:19").unwrap();
            println!("ready");
            let mut seen = std::collections::BTreeSet::new();
            let (mut doubled, mut late, mut next) = (0u64, 0u64, 0u64);
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(bytes[8..length].iter().all(|byte| *byte == number as u8));
                doubled += u64::from(!seen.insert(number));
                late += u64::from(number < next);
                next = next.max(number + 1);
                if seen.len() % 4 == 0 {
                    let _ = socket.send_to(&(seen.len() as u64).to_le_bytes(), from);
                }
            }
            println!("{} {doubled} {late}", seen.len());
        }
        // Sends numbered packets, so many each millisecond, until its standard input ends; says how many. Not more are on
        // their way than a socket's buffer holds, so that none is lost in the receiver's kernel.
        ["number", address, each] => {
            const WINDOW: u64 = 64;
            let each: u64 = each.parse().unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((*address, 19)).unwrap();
            socket.set_nonblocking(true).unwrap();
            let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let told = ended.clone();
            println!("ready");
            std::thread::spawn(move || {
                let _ = std::io::stdin().read(&mut [0]);
                told.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let (start, mut number, mut came) = (Instant::now(), 0u64, 0u64);
            let mut moved = Instant::now();
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                let mut bytes = [0; 8];
                while socket.recv(&mut bytes).is_ok() {
                    came = came.max(u64::from_le_bytes(bytes));
                    moved = Instant::now();
                }
                if moved.elapsed() > Duration::from_secs(1) {
                    // Lost: what is on its way is not waited for.
                    (came, moved) = (number, Instant::now());
                }
                let due = (each * start.elapsed().as_millis() as u64).min(came + WINDOW);
                while number < due {
                    let length = 16 + number % 1000;
                    let mut bytes = vec![number as u8; length as usize];
                    bytes[..8].copy_from_slice(&number.to_le_bytes());
                    if socket.send(&bytes).is_err() {
                        break;
                    }
                    number += 1;
                }
                std::thread::sleep(Duration::from_micros(300));
            }
            println!("{number}");
        }
        // An adapter with one VF, until its standard input ends.
        ["adapter", directory] => {
            let _adapter = start_adapter(Path::new(directory), 1, 1);
            println!("ready");
            let _ = std::io::stdin().read(&mut [0]);
        }
        // A VM at the terminal.
        ["run", socket, kind, command @ ..] => {
            let mut config = config(PathBuf::from(socket), 0, kind.parse().unwrap());
            config.command = command.iter().map(OsString::from).collect();
            match user_vm::run(&config) {
                Ok(exit) => std::process::exit(exit.code().into()),
                Err(error) => {
                    eprintln!("{error}");
                    std::process::exit(125);
                }
            }
        }
        other => panic!("no such tool: {other:?}"),
    }
}

/// A process of this program as a tool on the host, killed when dropped.
pub struct Tool(pub Child);

impl Tool {
    /// Starts it and waits until it says that it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        let command = tool_command(arguments);
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `ready`, for as long as patience lasts.
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "{what}: did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn process_exists(pid: u32) -> bool {
    // A process that was killed and not yet reaped by its parent is gone for everybody else.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    })
}
