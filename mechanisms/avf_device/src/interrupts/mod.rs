//! Interrupt vectors of one function: arming, moderation, MSI-X masks and eventfds (SPEC-AVF §6).
//!
//! Shared without locks between the control code (register writes, virtchnl) and the data path's worker.
//! Messages are one-shot: sending disarms the vector, and whatever happens until the driver arms it again
//! makes it fire then. CLEARPBA is ignored, and neither ICR01 nor ring indices decide about messages,
//! because drivers differ in what they do with them.

mod vector;

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use avf_protocol::registers::{
    self, DynCtl, ITR_MASK, ITR_UNIT_NS, ITRN_VECTORS, NO_ITR, RX_DOORBELL_PAGE, cause,
};
use event_fd::{EventFd, NotAnEventFd};
use shared_memory::DoorbellPage;

use self::vector::{
    ARMED, Attempt, ENABLED, FUNCTION_MASK, GATE, PEND, PEND_NOW, PENDING_BIT, VECTOR_MASK,
    VectorState, WIRED,
};
use crate::config::MAX_VECTORS;

/// The interrupt vectors of one function.
pub struct InterruptVectors {
    vectors: Vec<Vector>,
    /// Vectors whose message waits for its interval, one bit each.
    waiting: AtomicU64,
    /// ICR01: causes of vector 0, cleared by reading.
    icr01: AtomicU32,
    icr0_ena1: AtomicU32,
    itr01: [AtomicU32; 3],
    /// The least time between two messages for queues, whatever the driver asks for, nanoseconds.
    least_interval_ns: AtomicU64,
    /// Holds the ITRN registers, which drivers may write without our seeing it.
    rx_doorbells: DoorbellPage,
    /// Whether `watchers` is to be looked at.
    watched: AtomicBool,
    watchers: Mutex<VecDeque<Watcher>>,
}

/// Who waits for one function's driver, at most.
const MAX_WATCHERS: usize = 16;

/// Is told once that all messages were handled.
type Watcher = Box<dyn FnOnce() + Send>;

struct Vector {
    state: VectorState,
    /// DYN_CTL as last written, for reading back.
    dyn_ctl: AtomicU32,
    /// The driver has armed it, and has not disarmed it since: messages may have.
    in_use: AtomicBool,
    eventfd: ArcSwapOption<EventFd>,
}

/// An eventfd that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    /// No such vector.
    #[error("vector {vector} does not exist: the function has {vectors}")]
    NoSuchVector {
        /// The vector asked for.
        vector: u16,
        /// How many there are.
        vectors: u16,
    },
    /// The descriptor is not an eventfd; anything else could block the data path.
    #[error("the file descriptor for vector {vector} cannot be signalled")]
    NotAnEventfd {
        /// The vector.
        vector: u16,
        /// What it is not.
        #[source]
        source: NotAnEventFd,
    },
}

impl InterruptVectors {
    /// `vectors` (2–17, others are cut to that) vectors, disarmed, disabled and without eventfds.
    /// `rx_doorbells` is page 0x2000 of BAR0, which also holds the ITRN registers.
    pub fn new(vectors: u16, rx_doorbells: &DoorbellPage) -> Self {
        let vectors = (0..vectors.clamp(2, MAX_VECTORS))
            .map(|vector| Vector {
                state: VectorState(AtomicU64::new(if vector == 0 { 0 } else { GATE })),
                dyn_ctl: AtomicU32::new(0),
                in_use: AtomicBool::new(false),
                eventfd: ArcSwapOption::empty(),
            })
            .collect();
        Self {
            vectors,
            waiting: AtomicU64::new(0),
            icr01: AtomicU32::new(0),
            icr0_ena1: AtomicU32::new(0),
            itr01: Default::default(),
            least_interval_ns: AtomicU64::new(0),
            rx_doorbells: rx_doorbells.clone(),
            watched: AtomicBool::new(false),
            watchers: Mutex::default(),
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }

    // ---- the data path ----

    /// A queue has something to report on `vector`, moderated by ITR `itr_index` (0–2; 3 is none, which leaves the
    /// least interval of [`Self::set_least_interval`]).
    ///
    /// Called by the worker once after a burst, when all write-backs are done. Takes no lock and allocates
    /// nothing; at most one system call, which signals an eventfd. Returns when (ns) the message is due if its interval holds it
    /// back: the worker is to call [`Self::expire_due`] (or [`Self::expire`]) then.
    #[inline]
    pub fn raise(&self, vector: u16, itr_index: u8, now_ns: u64) -> Option<u64> {
        if vector == 0 {
            self.icr01.fetch_or(cause::QUEUE_0, Ordering::AcqRel);
        }
        let [.., none] = PEND;
        let pend = PEND.get(usize::from(itr_index)).copied().unwrap_or(none);
        self.update(vector, pend, 0, now_ns)
    }

    /// Looks again at a vector whose message was not due; returns when it is, if it still is not.
    pub fn expire(&self, vector: u16, now_ns: u64) -> Option<u64> {
        self.update(vector, 0, 0, now_ns)
    }

    /// Looks again at all vectors whose messages were not due, those that wait because of a register write
    /// included; returns the next time (ns) to do so. One load when none waits.
    #[inline]
    pub fn expire_due(&self, now_ns: u64) -> Option<u64> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut waiting = self.waiting.swap(0, Ordering::AcqRel);
        let mut next: Option<u64> = None;
        while waiting != 0 {
            let vector = waiting.trailing_zeros();
            waiting &= waiting - 1;
            if let Ok(vector) = u16::try_from(vector)
                && let Some(due) = self.expire(vector, now_ns)
            {
                next = Some(next.map_or(due, |earlier| earlier.min(due)));
            }
        }
        next
    }

    // ---- whoever waits for the driver ----

    /// Queue vectors that the driver uses, and has not armed since something happened on them.
    fn unsettled(&self) -> impl Iterator<Item = &Vector> {
        let queues = self.vectors.iter().skip(1);
        queues.filter(|entry| entry.in_use.load(Ordering::Acquire) && !entry.state.is_quiet())
    }

    /// Whether the driver has seen all that queues had to report: each vector that it uses is armed, and nothing has
    /// happened since. A driver that polls, without interrupts, is taken for one that has.
    pub fn is_settled(&self) -> bool {
        self.unsettled().next().is_none()
    }

    /// When a driver that has `limit_ns` to handle a message will have handled all; `None` if it has. One that has left
    /// a message alone for longer polls, as drivers do under load: that time is past.
    pub fn settles_by(&self, now_ns: u64, limit_ns: u64) -> Option<u64> {
        // One that is still to be sent counts from now.
        let begun = self.unsettled().map(|entry| entry.state.fired_at().unwrap_or(now_ns));
        begun.max().map(|at| at.saturating_add(limit_ns))
    }

    /// Tells, once, when [`Self::is_settled`]: at once if it is, else by the thread on which the driver arms its last
    /// vector, or resets them. Of more than [`MAX_WATCHERS`] the first is told that waits longest.
    pub fn when_settled(&self, told: impl FnOnce() + Send + 'static) {
        let longest = {
            let mut watchers = self.watchers();
            watchers.push_back(Box::new(told));
            self.watched.store(true, Ordering::SeqCst);
            if watchers.len() > MAX_WATCHERS { watchers.pop_front() } else { None }
        };
        if let Some(told) = longest {
            told();
        }
        self.tell_watchers();
    }

    fn watchers(&self) -> MutexGuard<'_, VecDeque<Watcher>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After an arming; one load when nobody waits.
    fn tell_watchers(&self) {
        if self.watched.load(Ordering::SeqCst) && self.is_settled() {
            let told = {
                let mut watchers = self.watchers();
                self.watched.store(false, Ordering::SeqCst);
                std::mem::take(&mut *watchers)
            };
            told.into_iter().for_each(|told| told());
        }
    }

    // ---- the registers ----

    /// The admin queue has a message: latches ICR01.ADMINQ, whatever is enabled, and raises vector 0.
    pub(crate) fn raise_admin(&self, now_ns: u64) -> Option<u64> {
        self.icr01.fetch_or(cause::ADMINQ, Ordering::AcqRel);
        self.update(0, PEND_NOW, 0, now_ns)
    }

    /// DYN_CTL01 (vector 0) or DYN_CTLN1 is written. Returns when a message is due that its interval holds
    /// back.
    pub fn write_dyn_ctl(&self, vector: u16, value: DynCtl, now_ns: u64) -> Option<u64> {
        let entry = self.vectors.get(usize::from(vector))?;
        let transient = DynCtl::CLEARPBA | DynCtl::SWINT_TRIG | DynCtl::INTENA | DynCtl::INTENA_MSK;
        entry.dyn_ctl.store(value.0 & !transient, Ordering::Relaxed);
        self.set_itr(vector, value.itr_index(), u32::from(value.interval()));
        let (mut set, mut clear) = (0, 0);
        if !value.keeps_intena() {
            if value.intena() {
                set |= ARMED
            } else {
                clear |= ARMED
            }
            entry.in_use.store(value.intena(), Ordering::Release);
        }
        if value.software_trigger() {
            set |= PEND_NOW;
            if vector == 0 {
                self.icr01.fetch_or(cause::SWINT, Ordering::AcqRel);
            }
        }
        let due = self.update(vector, set, clear, now_ns);
        self.tell_watchers();
        due
    }

    /// Reads DYN_CTL01 or DYN_CTLN1: as written, INTENA as it is now.
    pub(crate) fn read_dyn_ctl(&self, vector: u16) -> u32 {
        let Some(entry) = self.vectors.get(usize::from(vector)) else { return 0 };
        let armed = if entry.state.has(ARMED) { DynCtl::INTENA } else { 0 };
        entry.dyn_ctl.load(Ordering::Relaxed) | armed
    }

    /// Reads ICR01, which clears it.
    pub(crate) fn read_icr01(&self) -> u32 {
        self.icr01.swap(0, Ordering::AcqRel)
    }

    /// Writes ICR0_ENA1. Drivers write it before or after DYN_CTL01, so it may fire vector 0.
    pub(crate) fn write_icr0_ena1(&self, value: u32, now_ns: u64) -> Option<u64> {
        self.icr0_ena1.store(value, Ordering::Relaxed);
        if value & cause::ADMINQ != 0 {
            self.update(0, GATE, 0, now_ns)
        } else {
            self.update(0, 0, GATE, now_ns)
        }
    }

    /// Reads ICR0_ENA1.
    pub(crate) fn read_icr0_ena1(&self) -> u32 {
        self.icr0_ena1.load(Ordering::Relaxed)
    }

    /// Writes an ITR register: interval in 2 µs units. Index 3 is no register.
    pub(crate) fn set_itr(&self, vector: u16, index: u8, interval: u32) {
        let interval = interval & ITR_MASK;
        if index >= NO_ITR {
            return;
        }
        match vector.checked_sub(1) {
            None => {
                if let Some(itr) = self.itr01.get(usize::from(index)) {
                    itr.store(interval, Ordering::Relaxed);
                }
            }
            Some(register) => {
                if let Some(word) = itrn_word(index, register) {
                    self.rx_doorbells.store(word, interval);
                }
            }
        }
    }

    /// Reads an ITR register.
    pub(crate) fn itr(&self, vector: u16, index: u8) -> u32 {
        let value = match vector.checked_sub(1) {
            None => self.itr01.get(usize::from(index)).map(|itr| itr.load(Ordering::Relaxed)),
            Some(register) => itrn_word(index, register).map(|word| self.rx_doorbells.load(word)),
        };
        value.unwrap_or(0) & ITR_MASK
    }

    // ---- moderation by the VPort ----

    /// Sets the least time between two messages for queues, nanoseconds: what the administrator decides for the
    /// VPort (SPEC-NDIS-SRIOV §4) holds on top of what the driver writes to ITR registers, and also where it maps
    /// a queue to no ITR or to vector 0. What the admin queue has to say, and software triggers, never wait.
    pub fn set_least_interval(&self, interval_ns: u64) {
        self.least_interval_ns.store(interval_ns, Ordering::Relaxed);
    }

    // ---- MSI-X ----

    /// Lets messages out, or holds them and their causes back: MSI-X Enable and Bus Master Enable, both.
    pub fn set_enabled(&self, enabled: bool, now_ns: u64) -> Option<u64> {
        self.update_all(ENABLED, enabled, now_ns)
    }

    /// Function Mask of the MSI-X capability: masked messages wait in the pending bits.
    pub fn set_function_mask(&self, masked: bool, now_ns: u64) -> Option<u64> {
        self.update_all(FUNCTION_MASK, masked, now_ns)
    }

    /// Mask bit of one vector's MSI-X table entry: a masked message waits in the pending bit. Unmasking
    /// sends it.
    pub fn set_vector_mask(&self, vector: u16, masked: bool, now_ns: u64) -> Option<u64> {
        let (set, clear) = if masked { (VECTOR_MASK, 0) } else { (0, VECTOR_MASK) };
        self.update(vector, set, clear, now_ns)
    }

    /// The MSI-X pending bit array: bit n is vector n.
    pub fn pending_bits(&self) -> u64 {
        let pending = |entry: &Vector| u64::from(entry.state.has(PENDING_BIT));
        self.vectors.iter().rev().fold(0, |bits, entry| bits << 1 | pending(entry))
    }

    /// Gives a vector an eventfd to write to, or takes it away. Without one the vector behaves as if it was
    /// masked. Whatever the client does with it, signalling it waits for nothing ([`event_fd`]).
    pub fn set_eventfd(
        &self,
        vector: u16,
        eventfd: Option<OwnedFd>,
        now_ns: u64,
    ) -> Result<Option<u64>, InterruptError> {
        let entry = self
            .vectors
            .get(usize::from(vector))
            .ok_or(InterruptError::NoSuchVector { vector, vectors: self.vectors() })?;
        let Some(eventfd) = eventfd else {
            let deadline = self.update(vector, 0, WIRED, now_ns);
            entry.eventfd.store(None);
            return Ok(deadline);
        };
        let eventfd = EventFd::from_peer(eventfd)
            .map_err(|source| InterruptError::NotAnEventfd { vector, source })?;
        entry.eventfd.store(Some(Arc::new(eventfd)));
        Ok(self.update(vector, WIRED, 0, now_ns))
    }

    /// Sends a message on a vector whatever its state, as a client's loopback test asks for.
    pub fn trigger(&self, vector: u16) {
        if let Some(entry) = self.vectors.get(usize::from(vector)) {
            entry.send();
        }
    }

    /// Forgets events, arming, pending bits and intervals of vector 0; what queue vectors' intervals are is
    /// in the doorbell page. Eventfds, masks and the enable stay.
    pub(crate) fn reset(&self) {
        self.icr0_ena1.store(0, Ordering::Relaxed);
        for itr in &self.itr01 {
            itr.store(0, Ordering::Relaxed);
        }
        for (vector, entry) in self.vectors.iter().enumerate() {
            entry.state.reset(if vector == 0 { GATE } else { 0 });
            entry.dyn_ctl.store(0, Ordering::Relaxed);
            entry.in_use.store(false, Ordering::Release);
        }
        self.waiting.store(0, Ordering::Release);
        self.icr01.store(0, Ordering::Release);
        self.tell_watchers();
    }

    /// After [`Self::reset`], what a function level reset does besides: MSI-X off and unmasked. The
    /// eventfds are the client's and stay.
    pub(crate) fn disable(&self) {
        for (vector, entry) in self.vectors.iter().enumerate() {
            let gate = if vector == 0 { GATE } else { 0 };
            entry.state.reset(gate | ENABLED | VECTOR_MASK | FUNCTION_MASK);
        }
    }

    fn update_all(&self, flag: u64, on: bool, now_ns: u64) -> Option<u64> {
        let (set, clear) = if on { (flag, 0) } else { (0, flag) };
        (0..self.vectors()).filter_map(|vector| self.update(vector, set, clear, now_ns)).min()
    }

    /// One transition of a vector and what follows from it.
    #[inline]
    fn update(&self, vector: u16, set: u64, clear: u64, now_ns: u64) -> Option<u64> {
        let entry = self.vectors.get(usize::from(vector))?;
        let spacing = |index: usize| {
            let index = u8::try_from(index).unwrap_or(NO_ITR);
            let asked = u64::from(self.itr(vector, index)) * ITR_UNIT_NS;
            asked.max(self.least_interval_ns.load(Ordering::Relaxed))
        };
        match entry.state.update(set, clear, now_ns, spacing) {
            Attempt::Nothing => None,
            Attempt::Send => {
                entry.send();
                None
            }
            Attempt::Wait(due) => {
                self.waiting.fetch_or(1 << vector, Ordering::AcqRel);
                Some(due)
            }
        }
    }
}

impl std::fmt::Debug for InterruptVectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InterruptVectors({})", self.vectors.len())
    }
}

impl Vector {
    fn send(&self) {
        match &*self.eventfd.load() {
            Some(eventfd) => eventfd.signal(),
            // Taken away since the transition: keep the message.
            None => drop(self.state.update(PENDING_BIT, WIRED, 0, |_| 0)),
        }
    }
}

/// Index in the RX doorbell page of an ITRN register; `None` if there is none.
#[inline]
fn itrn_word(index: u8, register: u16) -> Option<usize> {
    if index >= NO_ITR || u32::from(register) >= ITRN_VECTORS {
        return None;
    }
    usize::try_from((registers::itrn(index, register) - RX_DOORBELL_PAGE) / 4).ok()
}

#[cfg(test)]
mod tests;
