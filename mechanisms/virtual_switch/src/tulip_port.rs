//! A VM's emulated adapter ("Legacy Network Adapter"): a DEC 21140A over vfio-user.
//!
//! Three threads meet here, and the switch's waits for none of the others:
//!
//! ```text
//!  guest's register access ─▶ vfio-user thread ─┐ lock ┌─▶ queue of frames ─▶ the switch's thread
//!                                               function
//!  guest's memory, INTx ◀──── pump thread ──────┘      └── queue of frames ◀─ the switch's thread
//! ```
//!
//! The function is shared by a lock between the thread that serves the guest's register accesses and the *pump*,
//! which brings frames to the guest, sees to the adapter's timer, and goes on sending where a guest has queued more
//! than one access may send. Both queues are bounded: a guest that sends more than the switch takes loses frames,
//! and so does one that takes less than it is sent.

use std::{
    io,
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use ndis_protocol::MacAddress;
use offload::{TPID_8021Q, VLAN_TAG_LEN};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};
use shared_memory::{DmaMap, SharedSlice};
use tulip_device::{FramePort, MAX_FRAME, TulipConfig, TulipCounters, TulipFunction};
use vfio_user_server::{
    Errno, IrqChange, PciFunctionDevice, PciIrq, PciRegion, Region, ServerOptions, VfioUserServer,
};

use crate::{
    Frame, NotDelivered, Offloads, Port, ServeError, Staging,
    finish::{Finished, finish},
    frame_queue::{FrameReceiver, FrameSender, FrameWaker, frame_queue},
};

/// Subsystem ids of the board that is played: DEC's own.
const SUBSYSTEM: (u16, u16) = (0x1011, 0x500B);
/// Frames of one poll, and of one turn of the pump.
const BURST: usize = 128;
/// Bytes of the shortest frame on a wire, without FCS; what is shorter is padded with zeros.
const SHORTEST: usize = 60;
/// Bytes of two addresses, behind which a tag stands.
const ADDRESSES: usize = 12;

/// What it is, for errors.
const KIND: &str = "the emulated adapter";

/// What passes between the guest and the switch, of which both threads of the adapter know.
#[derive(Debug, Default)]
struct Facts {
    /// The guest's receiver is on.
    receiving: AtomicBool,
    /// The pump is to end.
    stop: AtomicBool,
    /// Frames of the guest's that found the queue to the switch full.
    overrun: AtomicU64,
}

/// Frames from the guest to the switch.
#[derive(Debug)]
struct Uplink {
    frames: FrameSender,
    facts: Arc<Facts>,
    untold: bool,
}

impl FramePort for Uplink {
    fn send(&mut self, frame: &[u8]) {
        let put = self.frames.put(frame.len(), |slot| {
            slot.write_from(frame);
        });
        if put {
            self.untold = true;
        } else {
            self.facts.overrun.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The function, and what is to be seen to after each of its calls.
#[derive(Debug)]
struct Served {
    function: TulipFunction<Uplink>,
    facts: Arc<Facts>,
    /// When the pump will look at the function again, at the latest.
    pump_at: Option<u64>,
    pump: FrameWaker,
    switch: FrameWaker,
}

impl Served {
    fn settle(&mut self) {
        let uplink = self.function.port_mut();
        if std::mem::take(&mut uplink.untold) {
            uplink.frames.wake();
        }
        let receiving = self.function.is_receiving();
        if self.facts.receiving.swap(receiving, Ordering::AcqRel) != receiving {
            // The switch sees it in its next round, which is to be now.
            self.switch.wake();
        }
        if let Some(deadline) = self.function.next_deadline()
            && self.pump_at.is_none_or(|at| deadline < at)
        {
            self.pump_at = Some(deadline);
            self.pump.wake();
        }
    }
}

impl PciFunctionDevice for Served {
    fn region(&self, region: PciRegion) -> Region {
        self.function.region(region)
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        self.function.irq_count(irq)
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        self.function.region_read(region, offset, data)
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let result = self.function.region_write(region, offset, data);
        self.settle();
        result
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        self.function.dma_map_changed(map);
    }

    fn set_irq(&mut self, irq: PciIrq, change: IrqChange) -> Result<(), Errno> {
        self.function.set_irq(irq, change)
    }

    fn reset(&mut self) {
        self.function.reset();
        self.settle();
    }

    fn connected(&mut self) {
        self.function.connected();
        self.settle();
    }

    fn disconnected(&mut self) {
        self.function.disconnected();
        self.settle();
    }
}

fn lock(served: &Mutex<Served>) -> MutexGuard<'_, Served> {
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaches an emulated adapter from threads other than the switch's. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct TulipHandle {
    /// Contended by the vfio-user thread and the pump.
    served: Arc<Mutex<Served>>,
}

impl TulipHandle {
    /// What passed between the guest's memory and the adapter.
    #[must_use]
    pub fn counters(&self) -> TulipCounters {
        lock(&self.served).function.device().counters()
    }

    /// Frames of the guest's that the switch could not take as fast as they came.
    #[must_use]
    pub fn overrun(&self) -> u64 {
        lock(&self.served).facts.overrun.load(Ordering::Relaxed)
    }

    /// Pulls the cable out, or puts it in.
    pub fn set_link(&self, up: bool) {
        lock(&self.served).function.set_link(up);
    }
}

/// The port of a VM with an emulated adapter. Dropping it ends the adapter; its guest sees the function vanish.
///
/// A stock Linux guest misreads some addresses; see [`TulipConfig::mac_is_misread`].
#[derive(Debug)]
pub struct TulipPort {
    handle: TulipHandle,
    facts: Arc<Facts>,
    from_guest: FrameReceiver,
    to_guest: FrameSender,
    untold: bool,
    /// Ends before the server, which waits for the function's lock.
    _pump: Pump,
    server: VfioUserServer,
}

impl TulipPort {
    /// Serves an adapter with this address on a socket, which appears there (mode 0600) and vanishes with the port.
    /// `name` is for logs.
    ///
    /// # Errors
    /// The socket cannot be made or is served already; there is no memory, descriptor or thread.
    pub fn serve(socket: &Path, mac: MacAddress, name: &str) -> Result<Self, ServeError> {
        let config = TulipConfig { mac: mac.octets(), subsystem: SUBSYSTEM };
        if config.mac_is_misread() {
            tracing::warn!(
                name,
                %mac,
                "Linux's tulip driver takes this address for another; its frames will count as spoofed"
            );
        }
        let facts = Arc::new(Facts::default());
        let no_room = ServeError::of(KIND, "there is no room for frames");
        let (frames, from_guest) = frame_queue().map_err(&no_room)?;
        let (to_guest, for_guest) = frame_queue().map_err(&no_room)?;
        let switch = frames.waker();
        let uplink = Uplink { frames, facts: Arc::clone(&facts), untold: false };
        let served = Arc::new(Mutex::new(Served {
            function: TulipFunction::new(config, uplink),
            facts: Arc::clone(&facts),
            pump_at: None,
            pump: to_guest.waker(),
            switch,
        }));
        let server = VfioUserServer::bind(socket, Arc::clone(&served), ServerOptions::new(name))
            .map_err(ServeError::of(KIND, "its socket"))?;
        let pump = Pump::start(name, Arc::clone(&served), Arc::clone(&facts), for_guest)
            .map_err(ServeError::of(KIND, "its thread"))?;
        let handle = TulipHandle { served };
        Ok(Self { handle, facts, from_guest, to_guest, untold: false, _pump: pump, server })
    }

    /// For threads other than the switch's.
    #[must_use]
    pub fn handle(&self) -> TulipHandle {
        self.handle.clone()
    }

    /// Whether a guest's monitor is connected to the socket.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.server.is_connected()
    }

    fn put(&mut self, finished: &Finished<'_>, tci: Option<u16>) -> Result<(), NotDelivered> {
        let bytes: usize = finished.pieces.iter().map(SharedSlice::len).sum();
        let tag = if tci.is_some() { VLAN_TAG_LEN } else { 0 };
        if bytes < ADDRESSES + 2 || bytes + tag > MAX_FRAME {
            return Err(NotDelivered::TooLong);
        }
        let length = (bytes + tag).max(SHORTEST);
        let put = self.to_guest.put(length, |slot| write(slot, finished, bytes, tci));
        if !put {
            return Err(NotDelivered::NoBuffer);
        }
        self.untold = true;
        Ok(())
    }
}

/// Writes a frame of `bytes` bytes, its tag into its place, and zeros behind it.
fn write(slot: SharedSlice<'_>, finished: &Finished<'_>, bytes: usize, tci: Option<u16>) {
    let tag = if tci.is_some() { VLAN_TAG_LEN } else { 0 };
    let (_, mut rest) = slot.split(tag);
    for piece in finished.pieces {
        let copied = piece.copy_to(rest);
        (_, rest) = rest.split(copied);
    }
    rest.fill(0);
    // What was checked is what is delivered.
    let [first, second] = finished.head.map(u64::to_le_bytes);
    let mut head = [0u8; 16];
    head.iter_mut().zip(first.into_iter().chain(second)).for_each(|(to, from)| *to = from);
    let (head, _) = head.split_at(bytes.min(head.len()));
    let (addresses, behind) = head.split_at(ADDRESSES.min(head.len()));
    slot.write_from(addresses);
    let (_, rest) = slot.split(ADDRESSES);
    match tci {
        None => {
            rest.write_from(behind);
        }
        Some(tci) => {
            let [p0, p1] = TPID_8021Q.to_be_bytes();
            let [t0, t1] = tci.to_be_bytes();
            rest.write_from(&[p0, p1, t0, t1]);
            let (_, rest) = rest.split(VLAN_TAG_LEN);
            rest.write_from(behind);
        }
    }
}

impl Port for TulipPort {
    fn poll(&mut self, _now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        let frames = self.from_guest.take(BURST, |frame| {
            let Some(head) = frame.load_words() else { return };
            forward(&[Frame {
                head,
                pieces: &[frame],
                length: frame.len(),
                tci: None,
                offloads: Offloads::NONE,
            }]);
        });
        frames > 0
    }

    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered> {
        if !self.is_receiving() {
            return Err(NotDelivered::NotWanted);
        }
        finish(frame, staging, |finished| self.put(finished, frame.tci))
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.untold) {
            self.to_guest.wake();
        }
    }

    fn prepare_to_wait(&mut self) -> bool {
        self.from_guest.prepare_to_wait()
    }

    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        fds.push(self.from_guest.as_fd());
    }

    fn woken(&mut self) {
        self.from_guest.woken();
    }

    fn is_receiving(&self) -> bool {
        self.facts.receiving.load(Ordering::Acquire)
    }
}

/// Brings frames to the guest, and sees to what is due.
#[derive(Debug)]
struct Pump {
    facts: Arc<Facts>,
    wake: FrameWaker,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    fn start(
        name: &str,
        served: Arc<Mutex<Served>>,
        facts: Arc<Facts>,
        frames: FrameReceiver,
    ) -> io::Result<Self> {
        let wake = lock(&served).pump.clone();
        let thread = std::thread::Builder::new().name(format!("emulated {name}")).spawn({
            let facts = Arc::clone(&facts);
            move || pump(&served, &facts, frames)
        })?;
        Ok(Self { facts, wake, thread: Some(thread) })
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.facts.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pump of an emulated adapter had panicked");
        }
    }
}

/// Nanoseconds of the machine's monotonic clock.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

fn pump(served: &Mutex<Served>, facts: &Facts, mut frames: FrameReceiver) {
    let mut buffer = [0; MAX_FRAME];
    while !facts.stop.load(Ordering::Acquire) {
        let mut served_now = lock(served);
        let count = frames.take(BURST, |frame| {
            let length = frame.read_into(&mut buffer);
            if let Some(bytes) = buffer.get(..length) {
                // What it does not take it has counted.
                let _ = served_now.function.deliver(bytes);
            }
        });
        let deadline = served_now.function.next_deadline();
        if deadline.is_some_and(|deadline| deadline <= now()) {
            served_now.function.poll();
        }
        served_now.pump_at = served_now.function.next_deadline();
        let deadline = served_now.pump_at;
        served_now.settle();
        drop(served_now);
        if count == 0 && frames.prepare_to_wait() {
            wait(frames.as_fd(), deadline);
        }
        frames.woken();
    }
}

/// Waits for frames, for a wake-up, or for a deadline.
fn wait(fd: BorrowedFd<'_>, deadline: Option<u64>) {
    let limit = deadline.map(|deadline| {
        let left = deadline.saturating_sub(now());
        Timespec {
            tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(left % 1_000_000_000).unwrap_or(0),
        }
    });
    // An interrupted wait is a short one.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], limit.as_ref());
}
