//! An interrupt of the function, as its driver waits for it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use avf_driver::transport::Interrupt;
use rustix::event::epoll;
use vmbus::EventFd;

use super::resources::Vector;

/// One descriptor for what the host signals, which may change, and for what wakes sleepers inside of the guest.
#[derive(Debug)]
pub(super) struct VpciInterrupt {
    pub(super) vector: Vector,
    /// Readable while one of the two is.
    both: OwnedFd,
    own: EventFd,
    /// What the host signals. The driver's control changes it, whoever sleeps takes it.
    host: Mutex<Option<EventFd>>,
}

fn watch(both: &OwnedFd, event: &EventFd) -> io::Result<()> {
    let data = epoll::EventData::new_u64(0);
    Ok(epoll::add(both, event, data, epoll::EventFlags::IN)?)
}

impl VpciInterrupt {
    pub(super) fn new(vector: Vector) -> io::Result<Self> {
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let own = EventFd::new()?;
        watch(&both, &own)?;
        Ok(Self { vector, both, own, host: Mutex::new(None) })
    }

    /// From now on the host signals this.
    pub(super) fn connect(&self, event: EventFd) -> io::Result<()> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = host.take() {
            // It may be the same once more.
            let _ = epoll::delete(&self.both, &before);
        }
        watch(&self.both, &event)?;
        *host = Some(event);
        Ok(())
    }
}

impl Interrupt for VpciInterrupt {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.both.as_fd()
    }

    fn take(&self) -> bool {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let raised = host.as_ref().is_some_and(|event| event.take() != 0);
        let woken = self.own.take() != 0;
        raised || woken
    }

    fn wake(&self) {
        self.own.signal();
    }
}

#[cfg(test)]
mod unit_tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::{super::VpciResources, *};

    fn is_readable(interrupt: &VpciInterrupt) -> bool {
        let at_once = Timespec::try_from(Duration::ZERO).unwrap();
        let mut set = [PollFd::from_borrowed_fd(interrupt.event_fd(), PollFlags::IN)];
        poll(&mut set, Some(&at_once)).unwrap() != 0
    }

    #[test]
    fn either_side_makes_it_readable_and_the_host_s_may_be_exchanged() {
        let resources = VpciResources::new();
        let interrupt = VpciInterrupt::new(resources.vector().unwrap()).unwrap();
        assert!(!interrupt.take() && !is_readable(&interrupt));
        interrupt.wake();
        assert!(is_readable(&interrupt) && interrupt.take());
        let (first, second) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let first_end = first.receiving_end().unwrap();
        interrupt.connect(first_end.clone()).unwrap();
        first.signal();
        assert!(is_readable(&interrupt) && interrupt.take());
        assert!(!is_readable(&interrupt) && !interrupt.take());
        // The same once more, then another.
        interrupt.connect(first_end).unwrap();
        first.signal();
        assert!(is_readable(&interrupt) && interrupt.take());
        interrupt.connect(second.receiving_end().unwrap()).unwrap();
        first.signal();
        assert!(!is_readable(&interrupt));
        second.signal();
        assert!(is_readable(&interrupt) && interrupt.take() && !is_readable(&interrupt));
    }
}
