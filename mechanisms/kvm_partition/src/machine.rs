//! The guest: its memory, processors and interrupts, and what the host's devices ask of it.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_SYNIC2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES,
    KVM_MSR_EXIT_REASON_FILTER, KvmIrqRouting, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use partition::{
    GuestMemory, MmioHandler, MmioPages, MsiBlock, Partition, PartitionError, PartitionEvent,
    PostError,
};
use shared_memory::{PageSize, create_memfd};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, MmapRegion};
use vmbus::EventFd;
use vmbus_protocol::{MAX_MESSAGE_SIZE, VMBUS_SINT, VpIndex};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    KvmHost,
    boot::{self, Boot},
    cmos::Cmos,
    console::Console,
    cpuid,
    error::{KvmError, RunOutcome},
    event_flags::{EventFlags, Raise},
    hypercall::{MSR_HYPERCALL, Retarget},
    interrupts::{Msi, Route, Routes},
    kernel::{self, DevicePages},
    layout::{self, Layout},
    ports,
    synic::{Posted, SINTS, Synic},
    vcpu,
};

/// What the guest has posted and nobody has taken, at most; beyond that it is told to try again.
const MAX_EVENTS: usize = 256;
/// Interrupt messages of one guest, at most.
const MAX_MSIS: usize = 2048;
/// Connections that a guest signals, at most.
const MAX_SIGNALS: usize = 4096;
/// Ranges of MMIO of one guest, at most.
const MAX_MMIO: usize = 1024;
/// How often a processor that is to end is told so.
const KICK_INTERVAL: Duration = Duration::from_millis(2);

/// What guest to make.
pub struct KvmPartitionConfig {
    /// Bytes of memory: a multiple of 2 MiB, at least 64 MiB.
    pub memory_bytes: u64,
    /// Which pages back it.
    pub pages: PageSize,
    /// Processors, from 1 on.
    pub processors: u16,
    /// Takes what the guest writes to its serial console, on the thread of its processor.
    pub console: Box<dyn Write + Send>,
}

impl std::fmt::Debug for KvmPartitionConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmPartitionConfig")
            .field("memory_bytes", &self.memory_bytes)
            .field("pages", &self.pages)
            .field("processors", &self.processors)
            .finish_non_exhaustive()
    }
}

/// A guest under KVM. Dropping it ends the guest.
#[derive(Debug)]
pub struct KvmPartition {
    machine: Arc<Machine>,
    flags: EventFlags,
    /// The processors until they are started.
    processors: Mutex<Option<Vec<VcpuFd>>>,
    /// Ends the processors, once they are started.
    reaper: Mutex<Option<JoinHandle<()>>>,
}

/// What the processors' threads and the host's share.
pub(crate) struct Machine {
    // Before `ram`: KVM lets go of the memory before it is unmapped.
    vm: VmFd,
    /// Device ranges; processors look them up at each access that is trapped.
    mmio: Mutex<Mmio>,
    pub(crate) ram: GuestMemoryMmap,
    memory: GuestMemory,
    layout: Layout,
    /// By VP index. A processor writes its own, whoever posts reads them.
    synics: Vec<Mutex<Synic>>,
    interrupts: Mutex<Interrupts>,
    signals: Mutex<BTreeMap<u32, EventFd>>,
    events: Mutex<Events>,
    events_ready: EventFd,
    /// Signalled when the guest has acknowledged a synthetic interrupt.
    room: EventFd,
    pub(crate) console: Console,
    pub(crate) cmos: Mutex<Cmos>,
    ending: Mutex<Option<RunOutcome>>,
    /// Tells the reaper to look at `ending`.
    wake_reaper: EventFd,
    pub(crate) stop: AtomicBool,
    outcome: Mutex<Option<RunOutcome>>,
    ended: EventFd,
}

#[derive(Default)]
struct Events {
    queue: VecDeque<PartitionEvent>,
    gone: bool,
    gone_told: bool,
}

#[derive(Default)]
struct Interrupts {
    routes: Routes,
    sints: BTreeMap<(u32, u8), SintEvents>,
    /// First data to the block.
    msis: BTreeMap<u32, Msis>,
    next_data: u32,
}

/// What interrupts a synthetic source.
#[derive(Clone)]
struct SintEvents {
    /// For messages: the guest's acknowledgement is told.
    message: EventFd,
    /// For event flags.
    flag: EventFd,
}

struct Msis {
    address: u64,
    /// Each message's GSI and event.
    messages: Vec<(u32, EventFd)>,
}

#[derive(Default)]
struct Mmio {
    ranges: BTreeMap<u64, MmioRange>,
    free_slots: Vec<u32>,
    slots: u32,
}

struct MmioRange {
    length: u64,
    kind: MmioKind,
}

enum MmioKind {
    Trapped(Arc<dyn MmioHandler>),
    Pages(DevicePages),
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("layout", &self.layout)
            .field("synics", &self.synics)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KvmPartition {
    /// Makes a guest that does not run yet. Devices may be offered to it from now on.
    pub fn new(host: &KvmHost, config: KvmPartitionConfig) -> Result<Self, KvmError> {
        let (wanted, most) = (config.processors, host.max_processors());
        if !(1..=most).contains(&wanted) {
            return Err(KvmError::Processors { wanted, most });
        }
        let layout = Layout::new(config.memory_bytes)?;
        let (ram, memory) = make_memory(&layout, config.pages)?;
        let vm = make_vm(host)?;
        kernel::map_ram(&vm, &ram)
            .map_err(|source| KvmError::Kvm { what: "give the guest memory", source })?;
        let processors = make_processors(host, &vm, wanted)?;
        let eventfd = || EventFd::new().map_err(KvmError::io("an eventfd"));
        let serial_irq = eventfd()?;
        let irq = kernel::event(&serial_irq).map_err(KvmError::io("an eventfd"))?;
        vm.register_irqfd(&irq, ports::SERIAL_IRQ)
            .map_err(KvmError::kvm("bind the serial port's interrupt"))?;
        let slots = u32::try_from(layout.ram().len()).unwrap_or(u32::MAX);
        let machine = Arc::new(Machine {
            vm,
            mmio: Mutex::new(Mmio { slots, ..Mmio::default() }),
            ram,
            memory,
            layout,
            synics: (0..wanted).map(|_| Mutex::default()).collect(),
            interrupts: Mutex::default(),
            signals: Mutex::default(),
            events: Mutex::default(),
            events_ready: eventfd()?,
            room: eventfd()?,
            console: Console::new(serial_irq, config.console),
            cmos: Mutex::default(),
            ending: Mutex::default(),
            wake_reaper: eventfd()?,
            stop: AtomicBool::new(false),
            outcome: Mutex::default(),
            ended: eventfd()?,
        });
        machine
            .set_routes(&lock(&machine.interrupts))
            .map_err(|source| KvmError::Kvm { what: "route interrupts", source })?;
        let raise: Arc<dyn Raise> = machine.clone();
        let flags = EventFlags::start(raise).map_err(KvmError::io("a thread for event flags"))?;
        Ok(Self {
            machine,
            flags,
            processors: Mutex::new(Some(processors)),
            reaper: Mutex::default(),
        })
    }

    /// Loads a kernel and starts the processors. Once.
    pub fn boot(&self, mut boot: Boot) -> Result<(), KvmError> {
        let machine = &self.machine;
        let Some(processors) = lock(&self.processors).take() else {
            return Err(KvmError::Started);
        };
        let count = u16::try_from(processors.len()).unwrap_or(u16::MAX);
        let entry = boot::load(&machine.ram, &machine.layout, count, &mut boot)?;
        if let Some(first) = processors.first() {
            let failed = KvmError::kvm;
            let reset = first.get_sregs().map_err(failed("read registers"))?;
            first
                .set_sregs(&boot::special_registers(entry, reset))
                .map_err(failed("set the first processor's special registers"))?;
            first
                .set_regs(&boot::registers(entry))
                .map_err(failed("set the first processor's registers"))?;
        }
        prepare_kicks()?;
        let mut threads = Vec::new();
        for (processor, index) in processors.into_iter().zip(0u16..) {
            let running = Arc::clone(machine);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || vcpu::run(&running, index, processor));
            match thread {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    machine.end(RunOutcome::Stopped);
                    machine.reap(threads);
                    return Err(KvmError::System { what: "a thread for a processor", source });
                }
            }
        }
        let ending = Arc::clone(machine);
        let reaper = std::thread::Builder::new()
            .name("vcpu-reaper".to_owned())
            .spawn(move || ending.reap(threads))
            .map_err(|source| {
                // Nobody waits for the processors then, but they end.
                machine.end(RunOutcome::Stopped);
                KvmError::System { what: "a thread that ends processors", source }
            })?;
        *lock(&self.reaper) = Some(reaper);
        Ok(())
    }

    /// Ends the guest's run, wherever it is, and waits until it has ended.
    pub fn stop(&self) {
        self.machine.end(RunOutcome::Stopped);
        let reaper = lock(&self.reaper).take();
        match reaper {
            Some(reaper) => drop(reaper.join()),
            // It was never started, or somebody else waits.
            None if lock(&self.processors).take().is_some() => self.machine.reap(Vec::new()),
            None => {}
        }
    }

    /// Readable once the guest has ended; then there is an [`Self::outcome`].
    pub fn ended(&self) -> &EventFd {
        &self.machine.ended
    }

    /// How it ended; `None` while it runs.
    pub fn outcome(&self) -> Option<RunOutcome> {
        lock(&self.machine.outcome).clone()
    }

    /// Its serial console.
    pub fn console(&self) -> &Console {
        &self.machine.console
    }

    /// Where it may have its devices: what a VM worker calls apertures.
    pub fn mmio_windows(&self) -> Vec<std::ops::Range<u64>> {
        self.machine.layout.mmio_windows().to_vec()
    }
}

impl Drop for KvmPartition {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One memory file for all memory, mapped for KVM and for the host's devices.
fn make_memory(
    layout: &Layout,
    pages: PageSize,
) -> Result<(GuestMemoryMmap, GuestMemory), KvmError> {
    let too_long = |_| layout::LayoutError(layout.bytes());
    let fd =
        create_memfd("clearway-guest", usize::try_from(layout.bytes()).map_err(too_long)?, pages)?;
    let clone = || fd.try_clone().map_err(KvmError::io("a descriptor"));
    let mut memory = GuestMemory::empty();
    let mut ranges = Vec::new();
    for ram in layout.ram() {
        let length = usize::try_from(ram.length).map_err(too_long)?;
        memory = memory.with(ram.gpa, clone()?, ram.file_offset, length)?;
        let file = FileOffset::new(File::from(clone()?), ram.file_offset);
        ranges.push((GuestAddress(ram.gpa), length, Some(file)));
    }
    let ram = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|error| {
        KvmError::System { what: "guest memory mapped", source: io::Error::other(error) }
    })?;
    Ok((ram, memory))
}

fn make_vm(host: &KvmHost) -> Result<VmFd, KvmError> {
    let failed = KvmError::kvm;
    let vm = host.kvm.create_vm().map_err(failed("make a VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(failed("place its identity map"))?;
    vm.set_tss_address(usize::try_from(layout::KVM_TSS).unwrap_or(0))
        .map_err(failed("place its task state"))?;
    vm.create_irq_chip().map_err(failed("make interrupt controllers"))?;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args = [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0];
    vm.enable_cap(&cap).map_err(failed("hand registers to this process"))?;
    // Only writes of the hypercall page's register come here.
    let denied = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_HYPERCALL,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied])
        .map_err(failed("trap the hypercall page's register"))?;
    Ok(vm)
}

/// IA32_MTRR_DEF_TYPE: enabled, and all memory is write-back.
const MTRR_DEFAULT: kvm_msr_entry = kvm_msr_entry { index: 0x2FF, reserved: 0, data: 1 << 11 | 6 };

fn make_processors(host: &KvmHost, vm: &VmFd, count: u16) -> Result<Vec<VcpuFd>, KvmError> {
    let failed = KvmError::kvm;
    let supported = host
        .kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("list what processors can do"))?;
    let mut processors = Vec::new();
    for id in 0..count {
        let vcpu = vm.create_vcpu(id.into()).map_err(failed("make a processor"))?;
        let synic = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
        vcpu.enable_cap(&synic).map_err(failed("enable a processor's SynIC"))?;
        let hyperv = kernel::hyperv_cpuid(&vcpu)
            .map_err(|source| KvmError::Kvm { what: "list what it has of Hyper-V", source })?;
        let list = cpuid::guest_cpuid(supported.as_slice(), hyperv.as_slice(), id, count);
        let list = CpuId::from_entries(&list).map_err(|error| KvmError::System {
            what: "room for a CPUID list",
            source: io::Error::other(format!("{error:?}")),
        })?;
        vcpu.set_cpuid2(&list).map_err(failed("set a processor's CPUID"))?;
        if let Ok(msrs) = Msrs::from_entries(&[MTRR_DEFAULT]) {
            vcpu.set_msrs(&msrs).map_err(failed("set a processor's registers"))?;
        }
        processors.push(vcpu);
    }
    Ok(processors)
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The signal that makes a processor leave the guest; it does nothing else.
fn kick_signal() -> libc::c_int {
    SIGRTMIN() + 4
}

fn prepare_kicks() -> Result<(), KvmError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_signal_handler(kick_signal(), on_kick);
    });
    result.map_err(|error| KvmError::System {
        what: "a signal to stop processors",
        source: error.into(),
    })
}

impl Machine {
    /// The run is over, for the first reason that is given.
    pub(crate) fn end(&self, outcome: RunOutcome) {
        lock(&self.ending).get_or_insert(outcome);
        self.stop.store(true, Ordering::SeqCst);
        self.wake_reaper.signal();
    }

    /// Waits for the end, and then for the processors.
    fn reap(&self, mut threads: Vec<JoinHandle<()>>) {
        while !self.stop.load(Ordering::SeqCst) {
            // Whatever wakes it, the flag counts.
            let _ = self.wake_reaper.wait(Duration::from_secs(3600));
        }
        while !threads.is_empty() {
            for thread in &threads {
                if !thread.is_finished() {
                    let _ = thread.kill(kick_signal());
                }
            }
            std::thread::sleep(KICK_INTERVAL);
            for at in (0..threads.len()).rev() {
                if threads.get(at).is_some_and(JoinHandle::is_finished) {
                    let _ = threads.swap_remove(at).join();
                }
            }
        }
        *lock(&self.outcome) = lock(&self.ending).clone();
        lock(&self.events).gone = true;
        self.events_ready.signal();
        self.ended.signal();
    }

    /// A processor has set up its SynIC.
    pub(crate) fn set_synic(&self, vp: u16, synic: Synic) {
        if let Some(own) = self.synics.get(usize::from(vp)) {
            *lock(own) = synic;
        }
    }

    /// A message that the guest posts; false if it is to try again.
    pub(crate) fn posted(&self, message: partition::VmbusMessage) -> bool {
        let mut events = lock(&self.events);
        if events.queue.len() >= MAX_EVENTS {
            return false;
        }
        events.queue.push_back(PartitionEvent::Message(message));
        self.events_ready.signal();
        true
    }

    /// The handler of an address, and the offset in its range.
    pub(crate) fn handler(&self, gpa: u64, size: usize) -> Option<(Arc<dyn MmioHandler>, u64)> {
        let mmio = lock(&self.mmio);
        let (start, range) = mmio.ranges.range(..=gpa).next_back()?;
        let offset = gpa - start;
        if offset.checked_add(size as u64)? > range.length {
            return None;
        }
        match &range.kind {
            MmioKind::Trapped(handler) => Some((Arc::clone(handler), offset)),
            MmioKind::Pages(_) => None,
        }
    }

    /// The guest moves an interrupt; false if there is none such.
    pub(crate) fn retarget(&self, wanted: &Retarget) -> bool {
        let mut interrupts = lock(&self.interrupts);
        let found = interrupts.msis.range(..=wanted.data).next_back().and_then(|(data, block)| {
            let [low, _] = [block.address & 0xFFFF_FFFF, block.address >> 32];
            let index = usize::try_from(wanted.data - data).ok()?;
            (low == u64::from(wanted.address)).then(|| block.messages.get(index))?
        });
        let Some(gsi) = found.map(|(gsi, _)| *gsi) else { return false };
        let apic_id = wanted.processors.iter().find(|vp| self.has(**vp)).copied().unwrap_or(0);
        let route = Route::Msi(Msi { apic_id, vector: wanted.vector });
        if interrupts.routes.get(gsi) != Some(route) {
            interrupts.routes.change(gsi, route);
            return self.set_routes(&interrupts).is_ok();
        }
        true
    }

    fn has(&self, vp: u32) -> bool {
        usize::try_from(vp).is_ok_and(|vp| vp < self.synics.len())
    }

    fn synic(&self, vp: u32) -> Synic {
        let own = usize::try_from(vp).ok().and_then(|vp| self.synics.get(vp));
        own.map(|synic| *lock(synic)).unwrap_or_default()
    }

    fn set_routes(&self, interrupts: &Interrupts) -> io::Result<()> {
        let table = KvmIrqRouting::from_entries(&interrupts.routes.entries())
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }

    /// What interrupts a source, made when it is first needed.
    fn sint(&self, vp: u32, sint: u8) -> io::Result<SintEvents> {
        let mut interrupts = lock(&self.interrupts);
        if let Some(events) = interrupts.sints.get(&(vp, sint)) {
            return Ok(events.clone());
        }
        let full = || io::Error::other("no interrupt is left");
        let gsi = interrupts.routes.add(Route::Sint { vp, sint }).ok_or_else(full)?;
        let events = SintEvents { message: EventFd::new()?, flag: EventFd::new()? };
        let bind = || -> io::Result<()> {
            self.set_routes(&interrupts)?;
            let (message, room) = (kernel::event(&events.message)?, kernel::event(&self.room)?);
            self.vm.register_irqfd_with_resample(&message, &room, gsi)?;
            self.vm.register_irqfd(&kernel::event(&events.flag)?, gsi)?;
            Ok(())
        };
        if let Err(error) = bind() {
            interrupts.routes.remove(gsi);
            return Err(error);
        }
        interrupts.sints.insert((vp, sint), events.clone());
        Ok(events)
    }

    /// Binds one interrupt message.
    fn bind_msi(&self, interrupts: &mut Interrupts, msi: Msi) -> io::Result<(u32, EventFd)> {
        let full = || io::Error::other("no interrupt is left");
        let event = EventFd::new()?;
        let gsi = interrupts.routes.add(Route::Msi(msi)).ok_or_else(full)?;
        let bound = kernel::event(&event).and_then(|irq| {
            self.set_routes(interrupts)?;
            Ok(self.vm.register_irqfd(&irq, gsi)?)
        });
        match bound {
            Ok(()) => Ok((gsi, event)),
            Err(error) => {
                interrupts.routes.remove(gsi);
                Err(error)
            }
        }
    }

    fn unbind_msi(&self, interrupts: &mut Interrupts, gsi: u32, event: &EventFd) {
        if let Ok(irq) = kernel::event(event) {
            let _ = self.vm.unregister_irqfd(&irq, gsi);
        }
        interrupts.routes.remove(gsi);
    }

    /// Checks that a range can be MMIO.
    fn check_range(&self, mmio: &Mmio, gpa: u64, length: u64) -> Result<(), PartitionError> {
        let refused = PartitionError::Mmio { gpa, length };
        let whole =
            gpa.is_multiple_of(layout::PAGE) && length.is_multiple_of(layout::PAGE) && length != 0;
        let Some(end) = gpa.checked_add(length).filter(|_| whole) else { return Err(refused) };
        let overlaps = |start: u64, length: u64| start < end && gpa < start.saturating_add(length);
        // KVM's own: IO-APIC, local APICs, what Intel processors need.
        let reserved = [u64::from(layout::IO_APIC)..layout::HIGH_MEMORY_START];
        if self.layout.ram().iter().any(|ram| overlaps(ram.gpa, ram.length))
            || reserved.iter().any(|range| overlaps(range.start, range.end - range.start))
            || mmio.ranges.iter().any(|(start, range)| overlaps(*start, range.length))
            || mmio.ranges.len() >= MAX_MMIO
        {
            return Err(refused);
        }
        Ok(())
    }
}

impl Raise for Machine {
    fn raise(&self, vp: VpIndex, flag: u16) {
        let vp = if self.has(vp.0) { vp.0 } else { 0 };
        if self.synic(vp).set_flag(&self.ram, VMBUS_SINT, flag)
            && let Ok(events) = self.sint(vp, VMBUS_SINT)
        {
            events.flag.signal();
        }
    }
}

impl Partition for KvmPartition {
    fn memory(&self) -> GuestMemory {
        self.machine.memory.clone()
    }

    fn next_event(&self) -> Option<PartitionEvent> {
        let mut events = lock(&self.machine.events);
        let next = events.queue.pop_front();
        if next.is_some() {
            if events.queue.is_empty() && !events.gone {
                self.machine.events_ready.take();
            }
            return next;
        }
        self.machine.events_ready.take();
        if events.gone && !events.gone_told {
            events.gone_told = true;
            return Some(PartitionEvent::Gone);
        }
        None
    }

    fn events_ready(&self) -> BorrowedFd<'_> {
        self.machine.events_ready.as_fd()
    }

    fn post_message(&self, vp: VpIndex, sint: u8, message: &[u8]) -> Result<(), PostError> {
        let machine = &self.machine;
        if message.len() > MAX_MESSAGE_SIZE {
            return Err(PostError::TooLong);
        }
        if machine.stop.load(Ordering::SeqCst) {
            return Err(PostError::Gone);
        }
        let vp = if machine.has(vp.0) { vp.0 } else { 0 };
        // A guest that names no source hears nothing.
        let Ok(events) = (if sint < SINTS { machine.sint(vp, sint) } else { return Ok(()) }) else {
            return Err(PostError::Gone);
        };
        let synic = machine.synic(vp);
        let mut posted = synic.post(&machine.ram, sint, message);
        if posted == Posted::Busy {
            // What was acknowledged so far does not count; what is from now on does.
            machine.room.take();
            posted = synic.post(&machine.ram, sint, message);
        }
        match posted {
            Posted::Written => {
                events.message.signal();
                Ok(())
            }
            Posted::Busy => Err(PostError::Busy),
            // It has turned its SynIC off: nobody would read it.
            Posted::NoSlot => Ok(()),
        }
    }

    fn room_ready(&self) -> BorrowedFd<'_> {
        self.machine.room.as_fd()
    }

    fn create_event_flag(&self, vp: VpIndex, flag: u16) -> Result<EventFd, PartitionError> {
        self.flags.create(flag, vp)
    }

    fn move_event_flag(&self, flag: u16, vp: VpIndex) -> Result<(), PartitionError> {
        self.flags.retarget(flag, vp)
    }

    fn remove_event_flag(&self, flag: u16) {
        self.flags.remove(flag);
    }

    fn create_signal(&self, connection_id: u32) -> Result<EventFd, PartitionError> {
        let mut signals = lock(&self.machine.signals);
        if signals.contains_key(&connection_id) || signals.len() >= MAX_SIGNALS {
            return Err(PartitionError::Bound(connection_id));
        }
        let failed = |source| PartitionError::System { what: "an eventfd for a channel", source };
        let event = EventFd::new().map_err(failed)?;
        kernel::bind_connection(&self.machine.vm, connection_id, event.as_fd()).map_err(failed)?;
        signals.insert(connection_id, event.clone());
        Ok(event)
    }

    fn remove_signal(&self, connection_id: u32) {
        let mut signals = lock(&self.machine.signals);
        if signals.remove(&connection_id).is_some() {
            let _ = kernel::unbind_connection(&self.machine.vm, connection_id);
        }
    }

    fn create_msi(
        &self,
        vector: u32,
        vps: &[VpIndex],
        count: usize,
    ) -> Result<MsiBlock, PartitionError> {
        let refused = || PartitionError::Msi(count);
        let mut interrupts = lock(&self.machine.interrupts);
        let held: usize = interrupts.msis.values().map(|block| block.messages.len()).sum();
        let (Ok(many), true) = (u32::try_from(count), (1..=32).contains(&count)) else {
            return Err(refused());
        };
        if held + count > MAX_MSIS {
            return Err(refused());
        }
        // Data values are told apart, so that no two messages have the same.
        let mut data = interrupts.next_data.max(1);
        let free = |data: u32| {
            let end = u64::from(data) + u64::from(many);
            let mut others = interrupts.msis.range(..u32::try_from(end).unwrap_or(u32::MAX));
            let last = others.next_back().map(|(first, block)| (*first, block.messages.len()));
            end <= u64::from(u32::MAX)
                && last.is_none_or(|(first, len)| u64::from(first) + len as u64 <= u64::from(data))
        };
        let mut tries = 0;
        while !free(data) {
            data = if data > u32::MAX / 2 { 1 } else { data + 32 };
            tries += 1;
            if tries > 2 * MAX_MSIS {
                return Err(refused());
            }
        }
        let vp = vps.iter().map(|vp| vp.0).find(|vp| self.machine.has(*vp)).unwrap_or(0);
        let mut messages = Vec::new();
        for index in 0..many {
            // The guest chooses the vectors; one that cannot be raises nothing until it is moved.
            let vector = u8::try_from(vector.wrapping_add(index)).unwrap_or(0);
            match self.machine.bind_msi(&mut interrupts, Msi { apic_id: vp, vector }) {
                Ok(message) => messages.push(message),
                Err(source) => {
                    for (gsi, event) in &messages {
                        self.machine.unbind_msi(&mut interrupts, *gsi, event);
                    }
                    return Err(PartitionError::System { what: "an interrupt message", source });
                }
            }
        }
        let address = u64::from(layout::LOCAL_APIC) | u64::from(vp & 0xFF) << 12;
        let events = messages.iter().map(|(_, event)| event.clone()).collect();
        interrupts.msis.insert(data, Msis { address, messages });
        interrupts.next_data = data + many;
        Ok(MsiBlock { address, data, events })
    }

    fn remove_msi(&self, address: u64, data: u32) {
        let mut interrupts = lock(&self.machine.interrupts);
        if interrupts.msis.get(&data).is_none_or(|block| block.address != address) {
            return;
        }
        if let Some(block) = interrupts.msis.remove(&data) {
            for (gsi, event) in &block.messages {
                self.machine.unbind_msi(&mut interrupts, *gsi, event);
            }
            let _ = self.machine.set_routes(&interrupts);
        }
    }

    fn intercept_mmio(
        &self,
        gpa: u64,
        length: u64,
        handler: Arc<dyn MmioHandler>,
    ) -> Result<(), PartitionError> {
        let mut mmio = lock(&self.machine.mmio);
        self.machine.check_range(&mmio, gpa, length)?;
        mmio.ranges.insert(gpa, MmioRange { length, kind: MmioKind::Trapped(handler) });
        Ok(())
    }

    fn map_mmio(&self, gpa: u64, length: u64, pages: MmioPages) -> Result<(), PartitionError> {
        let mut mmio = lock(&self.machine.mmio);
        self.machine.check_range(&mmio, gpa, length)?;
        let failed = |source| PartitionError::System { what: "device pages mapped", source };
        let size = usize::try_from(length).map_err(|_| PartitionError::Mmio { gpa, length })?;
        let MmioPages { fd, offset, writable } = pages;
        let file = FileOffset::new(File::from(fd), offset);
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let mapping = MmapRegion::build(Some(file), size, access, flags)
            .map_err(|error| failed(io::Error::other(error)))?;
        let slot = mmio.free_slots.pop().unwrap_or(mmio.slots);
        let pages = DevicePages::map(&self.machine.vm, slot, gpa, mapping, writable);
        if slot == mmio.slots {
            mmio.slots += 1;
        }
        match pages {
            Ok(pages) => {
                let kind = MmioKind::Pages(pages);
                mmio.ranges.insert(gpa, MmioRange { length, kind });
                Ok(())
            }
            Err(source) => {
                mmio.free_slots.push(slot);
                Err(failed(source))
            }
        }
    }

    fn remove_mmio(&self, gpa: u64) {
        let mut mmio = lock(&self.machine.mmio);
        if let Some(MmioRange { kind: MmioKind::Pages(pages), .. }) = mmio.ranges.remove(&gpa) {
            let slot = pages.unmap(&self.machine.vm);
            mmio.free_slots.push(slot);
        }
    }
}
