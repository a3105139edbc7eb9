//! The device: its registers, which the guest's processors reach, and the thread that owns its queue.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use partition::MmioHandler;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmbus::EventFd;

use crate::{
    image::Image,
    registers::{Effect, Live, QUEUE_SIZE, QueueSetup, Registers, feature},
    request::{BrokenQueue, Disk, NAME, Request},
};

/// What disk to make.
#[derive(Debug)]
pub struct BlockDeviceConfig {
    /// What is on it.
    pub image: Arc<Image>,
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// What the guest is told as its name: the first 20 bytes.
    pub name: String,
}

/// A guest's disk. Dropping it ends its thread; a request that is under way is given up unanswered.
///
/// As an [`MmioHandler`] it is to be placed at [`REGISTERS_LENGTH`](crate::REGISTERS_LENGTH) bytes of the guest's MMIO.
/// A write that resets the device, or stops its queue, waits until the request that is under way has come to its next
/// step, at most 4 MiB of data or one flush: afterwards nothing of the guest's memory is touched any more.
#[derive(Debug)]
pub struct BlockDevice {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Held by a processor during its access, also while that waits for the thread; never taken by the thread.
    registers: Mutex<Registers>,
    memory: GuestMemoryMmap,
    /// Causes of the interrupt that the driver has not acknowledged.
    interrupts: AtomicU32,
    needs_reset: AtomicBool,
    engine: Mutex<Engine>,
    /// The engine is not busy any more.
    idle: Condvar,
    /// The request that is under way is to be given up.
    give_up: AtomicBool,
    notify: EventFd,
    interrupt: EventFd,
}

/// What the thread works on.
#[derive(Default, Debug)]
struct Engine {
    running: Option<Running>,
    /// The thread has taken it.
    busy: bool,
    ended: bool,
}

/// A queue by which requests come.
#[derive(Debug)]
struct Running {
    queue: Queue,
    features: u64,
}

/// Why the thread has nothing to do.
enum Pause {
    /// There is no request.
    Idle,
    /// It was told to give up.
    GivenUp,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockDevice {
    /// Makes a device whose driver has not come yet.
    ///
    /// # Errors
    /// No eventfd, or no thread.
    pub fn start(config: BlockDeviceConfig) -> io::Result<Self> {
        let BlockDeviceConfig { image, memory, name } = config;
        let registers = Registers::new(image.bytes(), image.access());
        let shared = Arc::new(Shared {
            registers: Mutex::new(registers),
            memory,
            interrupts: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            engine: Mutex::default(),
            idle: Condvar::new(),
            give_up: AtomicBool::new(false),
            notify: EventFd::new()?,
            interrupt: EventFd::new()?,
        });
        let mut bytes = [0; NAME];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || own.run(&image, &bytes))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// To be signalled when the guest writes to the register at [`NOTIFY_OFFSET`](crate::NOTIFY_OFFSET), so that the
    /// write need not come to [`MmioHandler::write`].
    pub fn notify(&self) -> &EventFd {
        &self.shared.notify
    }

    /// Signalled when the device interrupts the guest: an edge.
    pub fn interrupt(&self) -> &EventFd {
        &self.shared.interrupt
    }
}

impl MmioHandler for BlockDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let shared = &self.shared;
        let live = Live {
            interrupts: shared.interrupts.load(Ordering::SeqCst),
            needs_reset: shared.needs_reset.load(Ordering::SeqCst),
        };
        lock(&shared.registers).read(offset, data, live);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let shared = &self.shared;
        let mut registers = lock(&shared.registers);
        match registers.write(offset, data) {
            Effect::Nothing => {}
            Effect::Notify => shared.notify.signal(),
            Effect::Acknowledge(causes) => {
                shared.interrupts.fetch_and(!causes, Ordering::SeqCst);
            }
            Effect::Start { queue, features } => shared.begin(queue, features),
            Effect::Stop => shared.quiesce(),
            Effect::Reset => {
                shared.quiesce();
                shared.needs_reset.store(false, Ordering::SeqCst);
                shared.interrupts.store(0, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.shared.give_up.store(true, Ordering::SeqCst);
        lock(&self.shared.engine).ended = true;
        self.shared.notify.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The driver is ready: requests may come.
    fn begin(&self, setup: QueueSetup, features: u64) {
        let Some(queue) = make_queue(setup, features, &self.memory) else {
            self.break_down();
            return;
        };
        lock(&self.engine).running = Some(Running { queue, features });
        // There may be requests already.
        self.notify.signal();
    }

    /// Takes the queue from the thread.
    fn quiesce(&self) {
        let mut engine = lock(&self.engine);
        self.give_up.store(true, Ordering::SeqCst);
        while engine.busy {
            engine = self.idle.wait(engine).unwrap_or_else(PoisonError::into_inner);
        }
        engine.running = None;
        self.give_up.store(engine.ended, Ordering::SeqCst);
    }

    /// The driver breaks the rules: nothing is done for it until it resets the device.
    fn break_down(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn raise(&self, cause: u32) {
        self.interrupts.fetch_or(cause, Ordering::SeqCst);
        self.interrupt.signal();
    }

    /// The thread.
    fn run(&self, image: &Image, name: &[u8; NAME]) {
        loop {
            // However long it takes; what wakes it is looked at anyhow.
            if self.notify.wait(Duration::from_secs(3600)).is_err() {
                std::thread::yield_now();
            }
            self.notify.take();
            let mut running = {
                let mut engine = lock(&self.engine);
                if engine.ended {
                    return;
                }
                let Some(running) = engine.running.take() else { continue };
                engine.busy = true;
                running
            };
            let write_through = running.features & feature::FLUSH == 0;
            let disk = Disk { image, name, write_through };
            let done = self.serve(&mut running.queue, &disk);
            if done.is_err() {
                self.break_down();
            }
            let mut engine = lock(&self.engine);
            engine.busy = false;
            engine.running = done.is_ok().then_some(running);
            self.idle.notify_all();
        }
    }

    /// Answers requests until there are no more.
    fn serve(&self, queue: &mut Queue, disk: &Disk<'_>) -> Result<Pause, BrokenQueue> {
        let memory = &self.memory;
        loop {
            queue.disable_notification(memory)?;
            loop {
                if self.give_up.load(Ordering::SeqCst) {
                    return Ok(Pause::GivenUp);
                }
                let Some(chain) = queue.iter(memory)?.next() else { break };
                let head = chain.head_index();
                if head >= queue.size() {
                    return Err(BrokenQueue);
                }
                let request = Request::gather(chain)?;
                let Some(written) = request.carry_out(memory, disk, &self.give_up)? else {
                    return Ok(Pause::GivenUp);
                };
                queue.add_used(memory, head, written)?;
                if queue.needs_notification(memory)? {
                    self.raise(VIRTIO_MMIO_INT_VRING);
                }
            }
            if !queue.enable_notification(memory)? {
                return Ok(Pause::Idle);
            }
        }
    }
}

impl From<virtio_queue::Error> for BrokenQueue {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

/// The queue, if it can be one: a size that is a power of two, and rings that are aligned and in memory. `Queue::is_valid`
/// asks the same, and logs what a guest could make it log as often as it likes.
fn make_queue(setup: QueueSetup, features: u64, memory: &GuestMemoryMmap) -> Option<Queue> {
    let size = u16::try_from(setup.size).ok()?;
    let mut queue = Queue::new(QUEUE_SIZE).ok()?;
    queue.try_set_size(size).ok()?;
    let [descriptors, available, used] =
        [setup.descriptors, setup.available, setup.used].map(GuestAddress);
    queue.try_set_desc_table_address(descriptors).ok()?;
    queue.try_set_avail_ring_address(available).ok()?;
    queue.try_set_used_ring_address(used).ok()?;
    let size = usize::from(size);
    let (read, write) = (Permissions::Read, Permissions::Write);
    let whole = memory.check_range(descriptors, 16 * size, read)
        && memory.check_range(available, 6 + 2 * size, read)
        && memory.check_range(used, 6 + 8 * size, write)
        // To `Queue` such a ring is none.
        && available.0 != 0;
    if !whole {
        return None;
    }
    queue.set_event_idx(features & feature::EVENT_IDX != 0);
    queue.set_ready(true);
    Some(queue)
}
