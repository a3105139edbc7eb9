//! Event flags: what signals a channel's eventfd becomes a bit in the guest's event page and an interrupt.
//!
//! One thread for all flags of a guest. KVM cannot set the bit itself.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use partition::PartitionError;
use rustix::event::epoll;
use vmbus::EventFd;
use vmbus_protocol::{MAX_CHANNELS, VpIndex};

/// What sets a flag of a processor and interrupts it.
pub(crate) trait Raise: Send + Sync {
    /// Sets it.
    fn raise(&self, vp: VpIndex, flag: u16);
}

/// The wake event's number among the flags'.
const WAKE: u64 = u64::MAX;

struct Flag {
    event: EventFd,
    vp: VpIndex,
}

struct Shared {
    /// Flag number to flag. The thread contends with those that add and remove flags, rarely.
    flags: Mutex<Flags>,
    epoll: OwnedFd,
    wake: EventFd,
}

#[derive(Default)]
struct Flags {
    flags: BTreeMap<u16, Flag>,
    stop: bool,
}

/// The event flags of a guest.
pub(crate) struct EventFlags {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl EventFlags {
    pub(crate) fn start(raise: Arc<dyn Raise>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = EventFd::new()?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { flags: Mutex::default(), epoll, wake });
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("event-flags".to_owned())
            .spawn(move || running.run(&*raise))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn create(&self, flag: u16, vp: VpIndex) -> Result<EventFd, PartitionError> {
        let mut flags = self.shared.flags();
        if flag == 0 || u32::from(flag) >= MAX_CHANNELS || flags.flags.contains_key(&flag) {
            return Err(PartitionError::EventFlag(flag));
        }
        let what = "an eventfd for a channel";
        let failed = |source| PartitionError::System { what, source };
        let event = EventFd::new().map_err(failed)?;
        let data = epoll::EventData::new_u64(flag.into());
        epoll::add(&self.shared.epoll, &event, data, epoll::EventFlags::IN)
            .map_err(|error| failed(error.into()))?;
        flags.flags.insert(flag, Flag { event: event.clone(), vp });
        Ok(event)
    }

    pub(crate) fn retarget(&self, flag: u16, vp: VpIndex) -> Result<(), PartitionError> {
        let mut flags = self.shared.flags();
        flags.flags.get_mut(&flag).ok_or(PartitionError::EventFlag(flag))?.vp = vp;
        Ok(())
    }

    pub(crate) fn remove(&self, flag: u16) {
        let mut flags = self.shared.flags();
        if let Some(flag) = flags.flags.remove(&flag) {
            let _ = epoll::delete(&self.shared.epoll, &flag.event);
        }
    }
}

impl Drop for EventFlags {
    fn drop(&mut self) {
        self.shared.flags().stop = true;
        self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for EventFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.shared.flags().flags.keys()).finish()
    }
}

impl Shared {
    fn flags(&self) -> MutexGuard<'_, Flags> {
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, raise: &dyn Raise) {
        let mut ready = [MaybeUninit::uninit(); 64];
        loop {
            let Ok((events, _)) = epoll::wait(&self.epoll, &mut ready, None) else { continue };
            // Flags are raised with the lock: once one is moved or removed, nothing of it comes any more.
            let flags = self.flags();
            if flags.stop {
                return;
            }
            for event in events {
                let number = u16::try_from(event.data.u64()).ok();
                if let Some((number, flag)) =
                    number.and_then(|number| Some((number, flags.flags.get(&number)?)))
                    && flag.event.take() > 0
                {
                    raise.raise(flag.vp, number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    struct Told(Mutex<mpsc::Sender<(u32, u16)>>);

    impl Raise for Told {
        fn raise(&self, vp: VpIndex, flag: u16) {
            self.0.lock().unwrap().send((vp.0, flag)).unwrap();
        }
    }

    #[test]
    fn a_signal_raises_the_flag_where_it_is_to_go_until_it_is_removed() {
        let (sender, told) = mpsc::channel();
        let flags = EventFlags::start(Arc::new(Told(Mutex::new(sender)))).unwrap();
        let next = || told.recv_timeout(Duration::from_secs(60)).unwrap();
        let event = flags.create(7, VpIndex(1)).unwrap();
        let other = flags.create(2047, VpIndex(0)).unwrap();
        event.signal();
        assert_eq!(next(), (1, 7));
        flags.retarget(7, VpIndex(3)).unwrap();
        event.signal();
        assert_eq!(next(), (3, 7));
        flags.remove(7);
        event.signal();
        other.signal();
        assert_eq!(next(), (0, 2047), "a removed flag is silent");
        flags.create(7, VpIndex(0)).unwrap().signal();
        assert_eq!(next(), (0, 7));
    }

    #[test]
    fn there_are_2047_flags_each_once() {
        let (sender, _told) = mpsc::channel();
        let flags = EventFlags::start(Arc::new(Told(Mutex::new(sender)))).unwrap();
        let _event = flags.create(1, VpIndex(0)).unwrap();
        for flag in [0, 1, 2048, u16::MAX] {
            assert!(matches!(
                flags.create(flag, VpIndex(0)),
                Err(PartitionError::EventFlag(f)) if f == flag
            ));
        }
        assert!(flags.retarget(2, VpIndex(0)).is_err());
        flags.remove(2);
    }
}
