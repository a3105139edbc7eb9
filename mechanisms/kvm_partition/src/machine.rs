//! The guest: its memory, processors and interrupts, and what the host's devices ask of it.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use kvm_bindings::KvmIrqRouting;
use kvm_ioctls::{VcpuFd, VmFd};
use partition::{
    GuestMemory, MmioHandler, PartitionError, PartitionEvent, Retarget, RetargetHandler,
};
use shared_memory::PageSize;
use vm_memory::GuestMemoryMmap;
use vmbus::EventFd;
use vmbus_protocol::{VMBUS_SINT, VpIndex};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    KvmHost,
    boot::{self, Boot},
    cmos::Cmos,
    console::Console,
    error::{KvmError, RunOutcome},
    event_flags::{EventFlags, Raise},
    interrupts::{Msi, Route, Routes},
    kernel::{self, DevicePages},
    layout::{self, Layout},
    make::{make_memory, make_processors, make_vm},
    ports,
    synic::Synic,
    vcpu,
};

/// What the guest has posted and nobody has taken, at most; beyond that it is told to try again.
const MAX_EVENTS: usize = 256;
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
    pub(crate) machine: Arc<Machine>,
    pub(crate) flags: EventFlags,
    /// The processors until they are started.
    pub(crate) processors: Mutex<Option<Vec<VcpuFd>>>,
    /// Ends the processors, once they are started.
    reaper: Mutex<Option<JoinHandle<()>>>,
}

/// What the processors' threads and the host's share.
pub(crate) struct Machine {
    // Before `ram`: KVM lets go of the memory before it is unmapped.
    pub(crate) vm: VmFd,
    /// Device ranges; processors look them up at each access that is trapped.
    pub(crate) mmio: Mutex<Mmio>,
    pub(crate) ram: GuestMemoryMmap,
    pub(crate) memory: GuestMemory,
    pub(crate) layout: Layout,
    /// By VP index. A processor writes its own, whoever posts reads them.
    synics: Vec<Mutex<Synic>>,
    pub(crate) interrupts: Mutex<Interrupts>,
    pub(crate) retargets: Mutex<Option<Arc<dyn RetargetHandler>>>,
    pub(crate) signals: Mutex<BTreeMap<u32, EventFd>>,
    pub(crate) events: Mutex<Events>,
    pub(crate) events_ready: EventFd,
    /// Signalled when the guest has acknowledged a synthetic interrupt.
    pub(crate) room: EventFd,
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
pub(crate) struct Events {
    pub(crate) queue: VecDeque<PartitionEvent>,
    pub(crate) gone: bool,
    pub(crate) gone_told: bool,
}

#[derive(Default)]
pub(crate) struct Interrupts {
    pub(crate) routes: Routes,
    pub(crate) sints: BTreeMap<(u32, u8), SintEvents>,
    /// First data to the block.
    pub(crate) msis: BTreeMap<u32, Msis>,
    pub(crate) next_data: u32,
}

/// What interrupts a synthetic source.
#[derive(Clone)]
pub(crate) struct SintEvents {
    /// For messages: the guest's acknowledgement is told.
    pub(crate) message: EventFd,
    /// For event flags.
    pub(crate) flag: EventFd,
}

pub(crate) struct Msis {
    pub(crate) address: u64,
    /// Each message's GSI and event.
    pub(crate) messages: Vec<(u32, EventFd)>,
}

#[derive(Default)]
pub(crate) struct Mmio {
    pub(crate) ranges: BTreeMap<u64, MmioRange>,
    pub(crate) free_slots: Vec<u32>,
    pub(crate) slots: u32,
}

impl Mmio {
    /// How many virtio devices there are.
    pub(crate) fn virtio(&self) -> usize {
        self.ranges.range(layout::VIRTIO).count()
    }

    /// Takes the virtio devices from the guest: each ends when it is dropped.
    fn take_virtio(&mut self) -> Vec<MmioRange> {
        let places: Vec<u64> = self.ranges.range(layout::VIRTIO).map(|(gpa, _)| *gpa).collect();
        places.iter().filter_map(|gpa| self.ranges.remove(gpa)).collect()
    }
}

pub(crate) struct MmioRange {
    pub(crate) length: u64,
    pub(crate) kind: MmioKind,
}

pub(crate) enum MmioKind {
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

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
            retargets: Mutex::default(),
            signals: Mutex::default(),
            events: Mutex::default(),
            events_ready: eventfd()?,
            room: eventfd()?,
            console: Console::new(serial_irq, eventfd()?, config.console),
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

    /// Loads a kernel and starts the processors. Once: a guest that cannot be started has ended.
    pub fn boot(&self, boot: Boot) -> Result<(), KvmError> {
        let Some(processors) = lock(&self.processors).take() else {
            return Err(KvmError::Started);
        };
        let started = self.start(boot, processors);
        if started.is_err() {
            self.machine.end(RunOutcome::Stopped);
            self.machine.reap(Vec::new());
        }
        started
    }

    fn start(&self, mut boot: Boot, processors: Vec<VcpuFd>) -> Result<(), KvmError> {
        let machine = &self.machine;
        let count = u16::try_from(processors.len()).unwrap_or(u16::MAX);
        let layout = machine.layout.clone().with_virtio(lock(&machine.mmio).virtio());
        let entry = boot::load(&machine.ram, &layout, count, &mut boot)?;
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
            // Nobody waits for the processors then, but they end.
            .map_err(KvmError::io("a thread that ends processors"))?;
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
        // Before anybody hears of the end: who begins anew, or has the same disks next, is not written under.
        let devices = lock(&self.mmio).take_virtio();
        drop(devices);
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
    pub(crate) fn retarget(&self, mut wanted: Retarget) -> bool {
        wanted.processors.retain(|vp| self.has(vp.0));
        let handler = lock(&self.retargets).clone();
        !wanted.processors.is_empty() && handler.is_some_and(|handler| handler.retarget(wanted))
    }

    pub(crate) fn has(&self, vp: u32) -> bool {
        usize::try_from(vp).is_ok_and(|vp| vp < self.synics.len())
    }

    pub(crate) fn synic(&self, vp: u32) -> Synic {
        let own = usize::try_from(vp).ok().and_then(|vp| self.synics.get(vp));
        own.map(|synic| *lock(synic)).unwrap_or_default()
    }

    pub(crate) fn set_routes(&self, interrupts: &Interrupts) -> io::Result<()> {
        let table = KvmIrqRouting::from_entries(&interrupts.routes.entries())
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }

    /// What interrupts a source, made when it is first needed.
    pub(crate) fn sint(&self, vp: u32, sint: u8) -> io::Result<SintEvents> {
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
    pub(crate) fn bind_msi(
        &self,
        interrupts: &mut Interrupts,
        msi: Msi,
    ) -> io::Result<(u32, EventFd)> {
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

    pub(crate) fn unbind_msi(&self, interrupts: &mut Interrupts, gsi: u32, event: &EventFd) {
        if let Ok(irq) = kernel::event(event) {
            let _ = self.vm.unregister_irqfd(&irq, gsi);
        }
        interrupts.routes.remove(gsi);
    }

    /// Checks that a range can be MMIO.
    pub(crate) fn check_range(
        &self,
        mmio: &Mmio,
        gpa: u64,
        length: u64,
    ) -> Result<(), PartitionError> {
        let refused = PartitionError::Mmio { gpa, length };
        let whole =
            gpa.is_multiple_of(layout::PAGE) && length.is_multiple_of(layout::PAGE) && length != 0;
        let Some(end) = gpa.checked_add(length).filter(|_| whole) else { return Err(refused) };
        let overlaps = |start: u64, length: u64| start < end && gpa < start.saturating_add(length);
        // KVM's own: IO-APIC, local APICs, what Intel processors need.
        let reserved = u64::from(layout::IO_APIC);
        if self.layout.ram().iter().any(|ram| overlaps(ram.gpa, ram.length))
            || overlaps(reserved, layout::HIGH_MEMORY_START - reserved)
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
