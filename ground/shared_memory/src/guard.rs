//! Memory that its owner can take away, and what happens then.
//!
//! A page of a mapped file that is not there any more (the file was made shorter, or the host has no huge page left
//! for it) is SIGBUS to whoever touches it, which ends the process. Here the signal is answered: the mapping that was
//! touched is replaced by anonymous memory of zeros, whoever owns it is told by a [`MemoryWatch`], and the access goes
//! on. Signals that are about anything else go to whoever handled them before.
//!
//! `unsafe` here: the signal handler, which calls nothing but mmap, write and sigaction, takes no lock and allocates
//! nothing. It finds mappings in a registry of slots that are written by one thread at a time and read under a sequence
//! number.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::null_mut,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence},
    },
};

use rustix::{event::EventfdFlags, io::Errno};

/// Says whether memory of one owner was taken away: a guest's, a client's.
///
/// Its descriptor becomes readable then, and stays so.
#[derive(Debug)]
pub struct MemoryWatch {
    lost: AtomicBool,
    event: OwnedFd,
}

impl MemoryWatch {
    /// A watch over no memory yet.
    ///
    /// # Errors
    /// The kernel gives no eventfd.
    pub fn new() -> Result<Arc<Self>, Errno> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { lost: AtomicBool::new(false), event }))
    }

    /// Whether any of it was taken away: what was in it reads as zeros, and what is written to it reaches nobody.
    #[inline]
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

impl AsFd for MemoryWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A place for one mapping.
struct Slot {
    used: AtomicBool,
    /// Odd while the rest is written.
    sequence: AtomicU32,
    start: AtomicUsize,
    length: AtomicUsize,
    writable: AtomicBool,
    watch: AtomicPtr<MemoryWatch>,
}

/// What a slot says.
#[derive(Copy, Clone)]
struct Guarded {
    start: usize,
    length: usize,
    writable: bool,
    watch: *const MemoryWatch,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            used: AtomicBool::new(false),
            sequence: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            writable: AtomicBool::new(false),
            watch: AtomicPtr::new(null_mut()),
        }
    }

    fn try_take(&self) -> bool {
        self.used.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// By whoever has taken the slot.
    fn write(&self, mapping: Guarded) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(mapping.start, Ordering::Relaxed);
        self.length.store(mapping.length, Ordering::Relaxed);
        self.writable.store(mapping.writable, Ordering::Relaxed);
        self.watch.store(mapping.watch.cast_mut(), Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// What it says, unless it is being written. That of a mapping which somebody uses is not.
    fn read(&self) -> Option<Guarded> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let mapping = Guarded {
            start: self.start.load(Ordering::Relaxed),
            length: self.length.load(Ordering::Relaxed),
            writable: self.writable.load(Ordering::Relaxed),
            watch: self.watch.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        let same = self.sequence.load(Ordering::Relaxed) == sequence;
        (sequence.is_multiple_of(2) && same).then_some(mapping)
    }
}

/// Slots, and more of them behind. There are as many as there were mappings at a time.
struct Slots {
    slots: [Slot; 64],
    next: AtomicPtr<Slots>,
}

impl Slots {
    const fn empty() -> Self {
        Self { slots: [const { Slot::empty() }; 64], next: AtomicPtr::new(null_mut()) }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: what is put there was leaked.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

static REGISTRY: Slots = Slots::empty();

fn take_slot() -> &'static Slot {
    let mut slots = &REGISTRY;
    loop {
        if let Some(slot) = slots.slots.iter().find(|slot| slot.try_take()) {
            return slot;
        }
        if let Some(next) = slots.next() {
            slots = next;
            continue;
        }
        let more = Box::into_raw(Box::new(Slots::empty()));
        let put =
            slots.next.compare_exchange(null_mut(), more, Ordering::AcqRel, Ordering::Relaxed);
        if put.is_err() {
            // SAFETY: somebody else has put theirs there, and nobody has seen this one.
            drop(unsafe { Box::from_raw(more) });
        }
    }
}

fn find(address: usize) -> Option<Guarded> {
    let mut slots = Some(&REGISTRY);
    while let Some(chunk) = slots {
        let holds = |mapping: &Guarded| address.wrapping_sub(mapping.start) < mapping.length;
        if let Some(found) = chunk.slots.iter().filter_map(Slot::read).find(holds) {
            return Some(found);
        }
        slots = chunk.next();
    }
    None
}

/// A mapping in the registry, until this is dropped: before the mapping is unmapped.
pub(crate) struct Guard {
    slot: &'static Slot,
    watch: Arc<MemoryWatch>,
}

impl Guard {
    /// Guards all pages of a mapping of this process' own.
    ///
    /// # Errors
    /// The signal cannot be handled.
    pub(crate) fn new(
        start: *mut u8,
        length: usize,
        writable: bool,
        watch: &Arc<MemoryWatch>,
    ) -> Result<Self, Errno> {
        install()?;
        let slot = take_slot();
        let watch = Arc::clone(watch);
        let start = start.expose_provenance();
        slot.write(Guarded { start, length, writable, watch: Arc::as_ptr(&watch) });
        Ok(Self { slot, watch })
    }

    pub(crate) fn watch(&self) -> &Arc<MemoryWatch> {
        &self.watch
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let nothing = Guarded { start: 0, length: 0, writable: false, watch: std::ptr::null() };
        self.slot.write(nothing);
        self.slot.used.store(false, Ordering::Release);
    }
}

/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Handles SIGBUS, from the first time on.
fn install() -> Result<(), Errno> {
    static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    let failed = || {
        let code = std::io::Error::last_os_error().raw_os_error();
        Errno::from_raw_os_error(code.unwrap_or(libc::EINVAL))
    };
    *INSTALLED.get_or_init(|| {
        // SAFETY: zeros are an action, and are overwritten.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: asks alone.
        if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut action) } != 0 {
            return Err(failed());
        }
        let _ = BEFORE.set(action);
        let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
        action.sa_sigaction = handler as libc::sighandler_t;
        // On the stack that the runtime keeps for signals, where it does.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the mask is this function's own.
        unsafe { libc::sigemptyset(&raw mut action.sa_mask) };
        // SAFETY: the handler does only what one may do in a signal's handler.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } != 0 {
            return Err(failed());
        }
        Ok(())
    })
}

/// # Safety
/// The kernel alone calls it, for SIGBUS.
unsafe extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: errno is this thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes what has happened.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // An access, and not somebody's kill(2), which has no address.
    let accessed = code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
    if !(accessed && find(address).is_some_and(|mapping| replace(&mapping))) {
        // SAFETY: with what the kernel passed.
        unsafe { pass_on(signal, info, context) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros in a mapping's place; false if there is no memory for that. Several threads may do it at once, for the
/// page is missing until one has.
fn replace(mapping: &Guarded) -> bool {
    let protection =
        if mapping.writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let start = std::ptr::with_exposed_provenance_mut(mapping.start);
    // SAFETY: the thread that was interrupted has borrowed the mapping, so that it is still there, and its guard says
    // where all of it is. Whoever uses it expects anything of its contents.
    let at = unsafe { libc::mmap(start, mapping.length, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: as above; the guard holds its watch.
    if let Some(watch) = unsafe { mapping.watch.as_ref() }
        && !watch.lost.swap(true, Ordering::AcqRel)
    {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes, to an eventfd of ours that does not block and that nobody else writes to.
        unsafe { libc::write(watch.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
    true
}

/// Does what was done before about a signal that is not about guarded memory.
///
/// # Safety
/// With what the kernel passed.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE.get();
    match before.map_or(libc::SIG_DFL, |before| before.sa_sigaction) {
        libc::SIG_DFL => unhandled(signal, info),
        // SAFETY: as above. What the kernel raises for an access cannot be ignored.
        libc::SIG_IGN if unsafe { (*info).si_code } > 0 => unhandled(signal, info),
        libc::SIG_IGN => {}
        handler if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) => {
            type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: it was installed as such a handler.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            // SAFETY: as the kernel would have called it.
            unsafe { handler(signal, info, context) };
        }
        handler => {
            // SAFETY: it was installed as such a handler.
            let handler =
                unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(handler) };
            // SAFETY: as the kernel would have called it.
            unsafe { handler(signal) };
        }
    }
}

/// Lets the signal end the process, as soon as its handler returns.
fn unhandled(signal: c_int, info: *const libc::siginfo_t) {
    // SAFETY: both may be called by a handler; the info is what the kernel passed.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        // An access is made again, and fails again.
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests;
