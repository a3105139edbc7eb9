//! A partition whose guest does what the test says, one list of operations at a time.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use kvm_partition::{
    KvmHost, KvmPartition, KvmPartitionConfig, RunOutcome,
    hypercall::{MSR_HYPERCALL, POST_MESSAGE},
};
use partition::Partition;
use shared_memory::{DmaAddress, PageSize};

use crate::guest::{self, DONE, Do, LIST, OP, SNIPPETS};

/// Nothing here takes as long, even in an emulator on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// Memory of a guest.
pub(crate) const MEMORY: u64 = 64 << 20;
/// Its hypercall page.
pub(crate) const HYPERCALL_PAGE: u64 = 0x30_0000;
/// Its page of event flags.
pub(crate) const EVENT_PAGE: u64 = 0x30_1000;
/// Its page of messages.
pub(crate) const MESSAGE_PAGE: u64 = 0x30_2000;
/// Inputs of its hypercalls.
pub(crate) const INPUT: u64 = 0x30_3000;
/// Pages for whatever a test wants, up to [`LIST`].
pub(crate) const SCRATCH: u64 = 0x31_0000;

pub(crate) const MSR_GUEST_OS_ID: u32 = 0x4000_0000;
pub(crate) const MSR_SCONTROL: u32 = 0x4000_0080;
pub(crate) const MSR_SIEFP: u32 = 0x4000_0082;
pub(crate) const MSR_SIMP: u32 = 0x4000_0083;
pub(crate) const MSR_EOM: u32 = 0x4000_0084;
pub(crate) const MSR_SINT0: u32 = 0x4000_0090;

/// #GP.
pub(crate) const GENERAL_PROTECTION: u64 = 13;

/// One test at a time: they count what the process holds.
static ONE: Mutex<()> = Mutex::new(());

/// KVM, for one test alone.
pub(crate) struct Stage {
    host: KvmHost,
    _alone: MutexGuard<'static, ()>,
}

/// KVM, or the reason why there is none, printed.
pub(crate) fn stage() -> Option<Stage> {
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match KvmHost::survey(Path::new(KvmHost::DEVICE)) {
        Ok(host) => Some(Stage { host, _alone: alone }),
        Err(error) if Path::new(KvmHost::DEVICE).exists() => {
            println!("skipped: {error}");
            None
        }
        Err(_) => {
            println!("skipped: no {}", KvmHost::DEVICE);
            None
        }
    }
}

/// An operation: what, with which registers, how often.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Op {
    code: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    repeat: u64,
}

impl Op {
    pub(crate) fn new(what: Do) -> Self {
        let code = what.address();
        Self { code, rax: 0, rcx: 0, rdx: 0, r8: 0, rdi: 0, rsi: 0, repeat: 1 }
    }

    /// At this address.
    pub(crate) fn at(what: Do, rdi: u64) -> Self {
        Self { rdi, ..Self::new(what) }
    }

    pub(crate) fn read_msr(index: u32) -> Self {
        Self { rcx: index.into(), ..Self::new(Do::ReadMsr) }
    }

    pub(crate) fn write_msr(index: u32, value: u64) -> Self {
        let (rax, rdx) = (value & 0xFFFF_FFFF, value >> 32);
        Self { rcx: index.into(), rax, rdx, ..Self::new(Do::WriteMsr) }
    }

    /// A hypercall by the page.
    pub(crate) fn call(control: u64, input: u64) -> Self {
        let rdi = HYPERCALL_PAGE;
        Self { rcx: control, rdx: input, rdi, r8: INPUT + 0x800, ..Self::new(Do::Jump) }
    }

    pub(crate) fn input(port: u16) -> Self {
        Self { rdx: port.into(), ..Self::new(Do::In8) }
    }

    pub(crate) fn output(port: u16, byte: u8) -> Self {
        Self { rdx: port.into(), rax: byte.into(), ..Self::new(Do::Out8) }
    }

    /// With RAX.
    pub(crate) fn with(self, rax: u64) -> Self {
        Self { rax, ..self }
    }

    pub(crate) fn with_rcx(self, rcx: u64) -> Self {
        Self { rcx, ..self }
    }

    pub(crate) fn with_rdx(self, rdx: u64) -> Self {
        Self { rdx, ..self }
    }

    pub(crate) fn with_rsi(self, rsi: u64) -> Self {
        Self { rsi, ..self }
    }

    /// So many times.
    pub(crate) fn times(self, repeat: u64) -> Self {
        Self { repeat, ..self }
    }
}

/// What became of an operation, the last of its repetitions.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Done {
    pub(crate) rax: u64,
    pub(crate) rdx: u64,
    /// The last fault of any repetition.
    pub(crate) fault: Option<u64>,
}

impl Done {
    /// A hypercall's status.
    pub(crate) fn status(&self) -> u16 {
        assert_eq!(self.fault, None);
        self.rax as u16
    }

    /// What a register of the processor's showed.
    pub(crate) fn msr(&self) -> u64 {
        assert_eq!(self.fault, None);
        self.rdx << 32 | self.rax & 0xFFFF_FFFF
    }
}

/// Holds the processor where the guest has come to the end of its list.
struct Strings {
    idle: Sender<()>,
    go: Receiver<()>,
    flood: Arc<AtomicU64>,
}

impl Write for Strings {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == DONE {
                // Once the test has let go, there is nothing to wait for.
                let _ = self.idle.send(());
                let _ = self.go.recv();
            } else {
                self.flood.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A running guest that does as it is told.
pub(crate) struct Puppet {
    pub(crate) partition: Arc<KvmPartition>,
    go: Option<Sender<()>>,
    idle: Receiver<()>,
    /// Bytes that it has written to its serial port.
    pub(crate) flood: Arc<AtomicU64>,
}

impl Puppet {
    /// A guest of one processor that has only begun.
    pub(crate) fn plain(stage: &Stage) -> Self {
        Self::with_processors(stage, 1)
    }

    pub(crate) fn with_processors(stage: &Stage, processors: u16) -> Self {
        let (idle_sender, idle) = channel();
        let (go, go_receiver) = channel();
        let flood = Arc::default();
        let strings = Strings { idle: idle_sender, go: go_receiver, flood: Arc::clone(&flood) };
        let config = KvmPartitionConfig {
            memory_bytes: MEMORY,
            pages: PageSize::Base,
            processors,
            console: Box::new(strings),
        };
        let partition = Arc::new(KvmPartition::new(&stage.host, config).unwrap());
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut kernel = File::from(fd);
        kernel.write_all(&guest::image()).unwrap();
        kernel.seek(SeekFrom::Start(0)).unwrap();
        let boot = kvm_partition::boot::Boot { kernel, initrd: None, command_line: String::new() };
        partition.boot(boot).unwrap();
        let this = Self { partition, go: Some(go), idle, flood };
        this.wait_idle();
        this.write(SNIPPETS, &Do::all());
        this
    }

    /// A guest that has set up what Hyper-V guests do.
    pub(crate) fn enlightened(stage: &Stage) -> Self {
        let this = Self::plain(stage);
        this.enlighten();
        this
    }

    pub(crate) fn enlighten(&self) {
        let all = self.run(&[
            Op::write_msr(MSR_GUEST_OS_ID, 0x8100_0000_0006_0001),
            Op::write_msr(MSR_HYPERCALL, HYPERCALL_PAGE | 1),
            Op::write_msr(MSR_SCONTROL, 1),
            Op::write_msr(MSR_SIEFP, EVENT_PAGE | 1),
            Op::write_msr(MSR_SIMP, MESSAGE_PAGE | 1),
            Op::write_msr(MSR_SINT0 + 2, 0x30),
            Op::write_msr(MSR_EOM, 0),
        ]);
        assert!(all.iter().all(|done| done.fault.is_none()), "{all:?}");
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.partition.memory().map().write_bytes(DmaAddress(gpa), bytes).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.partition.memory().map().read_bytes(DmaAddress(gpa), &mut bytes).unwrap();
        bytes
    }

    /// Has the guest do all this, and says what became of it. It must come to the end.
    pub(crate) fn run(&self, ops: &[Op]) -> Vec<Done> {
        self.start(ops);
        self.finish(ops)
    }

    /// Waits until the guest has done all this, with which it has begun.
    pub(crate) fn finish(&self, ops: &[Op]) -> Vec<Done> {
        self.wait_idle();
        let memory = self.partition.memory();
        let outcome = |at: usize| {
            let mut bytes = [0; 32];
            let from = DmaAddress(LIST + (at * OP + 64) as u64);
            memory.map().read_bytes(from, &mut bytes).unwrap();
            let word = |at: usize| u64::from_le_bytes(bytes[at * 8..][..8].try_into().unwrap());
            let fault = (word(3) > 0).then(|| word(2));
            Done { rax: word(0), rdx: word(1), fault }
        };
        (0..ops.len()).map(outcome).collect()
    }

    /// Has it do one thing.
    pub(crate) fn one(&self, op: Op) -> Done {
        self.run(&[op])[0]
    }

    /// Has the guest begin with all this.
    pub(crate) fn start(&self, ops: &[Op]) {
        let mut list = Vec::with_capacity((ops.len() + 1) * OP);
        for op in ops {
            let start = list.len();
            let Op { code, rax, rcx, rdx, r8, rdi, rsi, repeat } = *op;
            list.extend([code, rax, rcx, rdx, r8, rdi, rsi, repeat].map(u64::to_le_bytes).concat());
            list.resize(start + OP, 0);
        }
        list.resize(list.len() + OP, 0);
        self.write(LIST, &list);
        self.go.as_ref().unwrap().send(()).unwrap();
    }

    fn wait_idle(&self) {
        let begun = Instant::now();
        loop {
            if self.idle.recv_timeout(Duration::from_millis(100)).is_ok() {
                return;
            }
            if let Some(outcome) = self.partition.outcome() {
                panic!("the guest has ended: {outcome:?}");
            }
            assert!(begun.elapsed() < LIMIT, "the guest does not come to an end");
        }
    }

    /// Has the guest begin with this, which is its end.
    pub(crate) fn ends_by(&self, ops: &[Op]) -> RunOutcome {
        self.start(ops);
        assert!(self.partition.ended().wait(LIMIT).unwrap(), "the guest does not end");
        self.partition.outcome().unwrap()
    }

    /// Writes the input of a call that posts a message.
    pub(crate) fn message_at(
        &self,
        gpa: u64,
        connection: u32,
        kind: u32,
        size: u32,
        payload: &[u8],
    ) {
        let mut input = [connection, 0, kind, size].map(u32::to_le_bytes).concat();
        input.extend(payload);
        self.write(gpa, &input);
    }

    /// Has the guest post a message, and says how the call ended.
    pub(crate) fn post(&self, connection: u32, payload: &[u8]) -> u16 {
        self.message_at(INPUT, connection, 1, payload.len() as u32, payload);
        self.one(Op::call(POST_MESSAGE.into(), INPUT)).status()
    }

    /// The message in the slot of VMBus, if there is one. The slot is free after it.
    pub(crate) fn take_message(&self) -> Option<Vec<u8>> {
        let slot: [u8; 256] = self.read(MESSAGE_PAGE + 2 * 256);
        if slot[..4] == [0; 4] {
            return None;
        }
        let message = slot[16..][..usize::from(slot[4])].to_vec();
        self.write(MESSAGE_PAGE + 2 * 256, &[0; 4]);
        // Either the host sees that the slot is free, or this sees its flag.
        fence(Ordering::SeqCst);
        let pending: [u8; 1] = self.read(MESSAGE_PAGE + 2 * 256 + 5);
        if pending != [0] {
            self.run(&[Op::write_msr(MSR_EOM, 0)]);
        }
        Some(message)
    }

    /// Waits for a message.
    pub(crate) fn next_message(&self) -> Vec<u8> {
        let begun = Instant::now();
        loop {
            if let Some(message) = self.take_message() {
                return message;
            }
            assert!(begun.elapsed() < LIMIT, "no message comes");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it still does what it is told.
    pub(crate) fn lives(&self) {
        let done = self.one(Op::at(Do::Load32, HYPERCALL_PAGE).times(3));
        assert_eq!(done.fault, None);
        assert_eq!(self.partition.outcome(), None);
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // Its processor waits for the test, which no signal ends.
        self.go = None;
        self.partition.stop();
    }
}

/// What this process holds.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    /// Bytes of its own, without what it shares with guests.
    pub(crate) memory: u64,
    pub(crate) threads: usize,
}

impl Held {
    pub(crate) fn now() -> Self {
        let count = |path: &str| std::fs::read_dir(path).unwrap().count();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib: u64 = anonymous.trim().trim_end_matches("kB").trim().parse().unwrap();
        Self {
            descriptors: count("/proc/self/fd"),
            memory: kib << 10,
            threads: count("/proc/self/task"),
        }
    }

    /// Checks that since then no more has become held than this many bytes.
    pub(crate) fn check(&self, bytes: u64) {
        let begun = Instant::now();
        let now = loop {
            let now = Self::now();
            // A thread that has been joined is there for a moment yet.
            if (now.descriptors, now.threads) == (self.descriptors, self.threads) {
                break now;
            }
            assert!(begun.elapsed() < LIMIT / 10, "{now:?} are held, and {self:?} were before");
            std::thread::sleep(Duration::from_millis(10));
        };
        now.check_memory(self, bytes);
    }

    /// Checks that it has no more than this many bytes more than before.
    pub(crate) fn check_memory(&self, before: &Self, bytes: u64) {
        let grown = self.memory.saturating_sub(before.memory);
        assert!(grown <= bytes, "{grown} bytes more are held than before");
    }
}
