//! Uplink over a cable to another NIC process.
//!
//! The two ends meet at a Unix socket, exchange the memory of one ring for each direction, and from then on
//! frames cross without system calls; the socket carries wake-ups, and its closing tells that the other end
//! is gone. Either end may start first, and each may go and come back: the link is up while both are there.
//!
//! The other end is trusted with nothing but its own frames: see `ring`. It may run as another user, since
//! reaching the socket's path is all that it needs.

mod meeting;
mod ring;
#[cfg(test)]
mod tests;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use meeting::{Meeting, Message};
use ring::{Consumer, Producer, Violation};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use shared_memory::{Access, MemoryError, PageSize, SharedMapping};

use crate::{
    ETHERNET_HEADER, FrameBurst, LinkState, Uplink, UplinkError, UplinkSpec, UplinkStatistics,
};

/// How often an end without a peer looks for one.
const RETRY: Duration = Duration::from_millis(50);
/// How long a peer may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// Nominal speed of a cable, Mbit/s.
const SPEED_MBPS: u32 = 100_000;
/// Messages of a peer that are looked at in one go.
const MESSAGES: usize = 16;

/// An end of a cable.
#[derive(Debug)]
pub struct CableUplink {
    socket: PathBuf,
    spec: UplinkSpec,
    max_frame: usize,
    meeting: Meeting,
    state: State,
    /// Whether the socket must be looked at before the next frames: a wake-up may be waiting.
    armed: bool,
    next_attempt: Option<Instant>,
    /// Whether the last attempt to meet failed for a reason of its own, which was told.
    failing: bool,
    /// Readable when anything happens on any of the descriptors in it.
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_set: bool,
    statistics: UplinkStatistics,
}

#[derive(Debug)]
enum State {
    /// There is no peer.
    Alone,
    /// A peer connected and has not greeted yet.
    Greeting { connection: OwnedFd, producer: Producer, until: Instant },
    /// Frames can pass.
    Connected { connection: OwnedFd, producer: Producer, consumer: Consumer, peer_max_frame: u32 },
}

impl CableUplink {
    /// Opens an end of the cable at `socket`. The other end need not be there.
    pub fn open(socket: &Path, max_frame: usize) -> Result<Self, UplinkError> {
        let failed = |action| {
            move |source: io::Error| UplinkError::CableSocket {
                socket: socket.to_owned(),
                action,
                source,
            }
        };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|errno| failed("create a timer for it")(errno.into()))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| failed("watch it")(errno.into()))?;
        let mut cable = Self {
            socket: socket.to_owned(),
            spec: UplinkSpec::Cable { socket: socket.to_owned() },
            max_frame,
            meeting: Meeting::new(socket),
            state: State::Alone,
            armed: false,
            next_attempt: None,
            failing: false,
            epoll,
            timer,
            timer_set: false,
            statistics: UplinkStatistics::default(),
        };
        cable.watch(cable.timer.as_fd()).map_err(failed("watch it"))?;
        // A path that cannot work is told at once.
        cable.attempt(Instant::now())?;
        Ok(cable)
    }

    fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match epoll::add(&self.epoll, fd, EventData::new_u64(0), EventFlags::IN) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes the worker after `wait`, or not at all if that is zero; false if that cannot be done.
    fn set_timer(&mut self, wait: Duration) -> bool {
        if wait.is_zero() && !self.timer_set {
            return true;
        }
        self.timer_set = !wait.is_zero();
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec::try_from(wait).unwrap_or(zero);
        let once = Itimerspec { it_interval: zero, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok()
    }

    /// Looks for a peer, if it is time.
    fn attempt(&mut self, now: Instant) -> Result<(), UplinkError> {
        if self.next_attempt.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.next_attempt = Some(now + RETRY);
        let result = self.meet(now);
        // An error is told once, until it worked again.
        let told = std::mem::replace(&mut self.failing, result.is_err());
        match result {
            Err(source) if !told => Err(UplinkError::CableSocket {
                socket: self.socket.clone(),
                action: "meet the other end there",
                source,
            }),
            _ => Ok(()),
        }
    }

    fn meet(&mut self, now: Instant) -> io::Result<()> {
        let connection = self.meeting.try_meet()?;
        if let Some(listener) = self.meeting.listener() {
            self.watch(listener.as_fd())?;
        }
        let Some(connection) = connection else {
            return Ok(());
        };
        let (memory, file) = SharedMapping::create("cable", ring::MEMORY, PageSize::Base)
            .map_err(io::Error::other)?;
        if meeting::greet(&connection, self.max_frame, &file).is_err() {
            // It is gone again.
            return Ok(());
        }
        self.watch(connection.as_fd())?;
        let producer = Producer::new(memory);
        self.state = State::Greeting { connection, producer, until: now + GREETING_TIMEOUT };
        Ok(())
    }

    /// Drops the peer. Another may come at once, unless this one never really was there.
    fn unplug(&mut self, now: Instant) {
        let greeted = matches!(self.state, State::Connected { .. });
        self.next_attempt = (!greeted).then(|| now + RETRY);
        self.state = State::Alone;
    }

    /// Drops a peer that broke the rules, and says so.
    fn expel(&mut self, problem: &'static str) -> UplinkError {
        self.state = State::Alone;
        // Not at once, or the two would quarrel for ever.
        self.next_attempt = Some(Instant::now() + GREETING_TIMEOUT);
        UplinkError::CablePeer { socket: self.socket.clone(), problem }
    }

    /// The link, without looking whether it has changed.
    fn link_now(&self) -> LinkState {
        match self.state {
            State::Connected { .. } => LinkState::up(SPEED_MBPS),
            State::Alone | State::Greeting { .. } => LinkState::DOWN,
        }
    }

    /// Does what is not about frames: meets a peer, reads what it says, notices that it is gone.
    fn service(&mut self, now: Instant) -> Result<(), UplinkError> {
        self.read_messages(now)?;
        match &self.state {
            State::Alone => self.attempt(now)?,
            State::Greeting { until, .. } if now >= *until => {
                return Err(self.expel("connected and said nothing"));
            }
            // A cable has two ends; whoever else comes is told so by the closing of its connection.
            State::Greeting { .. } | State::Connected { .. } => drop(self.meeting.accept()),
        }
        // The peer's greeting may have been there already.
        self.read_messages(now)
    }

    fn read_messages(&mut self, now: Instant) -> Result<(), UplinkError> {
        for _ in 0..MESSAGES {
            let connection = match &self.state {
                State::Alone => return Ok(()),
                State::Greeting { connection, .. } | State::Connected { connection, .. } => {
                    connection
                }
            };
            match meeting::receive(connection) {
                Message::None => return Ok(()),
                Message::Wake => {}
                Message::Closed => self.unplug(now),
                Message::Nonsense(problem) => return Err(self.expel(problem)),
                Message::Greeting(greeting) => {
                    let State::Greeting { connection, producer, .. } =
                        std::mem::replace(&mut self.state, State::Alone)
                    else {
                        return Err(self.expel("greeted twice"));
                    };
                    let fd = greeting.ring.as_fd();
                    let consumer = match SharedMapping::map(fd, 0, ring::MEMORY, Access::ReadWrite)
                    {
                        Ok(memory) => Consumer::new(memory),
                        Err(MemoryError::Map { .. }) => {
                            return Err(self.expel("has a ring that cannot be mapped here"));
                        }
                        Err(_) => {
                            return Err(self.expel("has a ring that is no memory file to trust"));
                        }
                    };
                    let peer_max_frame = greeting.max_frame;
                    self.state =
                        State::Connected { connection, producer, consumer, peer_max_frame };
                }
            }
        }
        Ok(())
    }
}

impl Uplink for CableUplink {
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError> {
        burst.clear();
        // While both ends are busy nobody sleeps, and the socket is looked at by `link` only.
        if std::mem::take(&mut self.armed) || !matches!(self.state, State::Connected { .. }) {
            self.service(Instant::now())?;
        }
        let State::Connected { consumer, .. } = &mut self.state else {
            return Ok(0);
        };
        match consumer.pop(burst, ETHERNET_HEADER) {
            Ok(popped) => {
                self.statistics.received_frames += popped.frames;
                self.statistics.received_bytes += popped.bytes;
                self.statistics.received_too_long += popped.too_long;
                self.statistics.received_too_short += popped.too_short;
                Ok(burst.len())
            }
            Err(Violation(problem)) => {
                burst.clear();
                Err(self.expel(problem))
            }
        }
    }

    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError> {
        let State::Connected { connection, producer, peer_max_frame, .. } = &mut self.state else {
            self.statistics.transmit_no_link += burst.len() as u64;
            return Ok(burst.len());
        };
        let longest = self.max_frame.min(usize::try_from(*peer_max_frame).unwrap_or(usize::MAX));
        let mut done = 0;
        let mut violation = None;
        for frame in burst.iter() {
            if violation.is_some() {
                self.statistics.transmit_no_link += 1;
            } else if !(ETHERNET_HEADER..=longest).contains(&frame.len()) {
                self.statistics.transmit_bad_length += 1;
            } else {
                match producer.push(frame) {
                    Ok(true) => {
                        self.statistics.transmitted_frames += 1;
                        self.statistics.transmitted_bytes += frame.len() as u64;
                    }
                    Ok(false) => break,
                    Err(Violation(problem)) => {
                        self.statistics.transmit_no_link += 1;
                        violation = Some(problem);
                    }
                }
            }
            done += 1;
        }
        if let Some(problem) = violation {
            return Err(self.expel(problem));
        }
        if producer.publish() {
            meeting::wake(connection);
        }
        Ok(done)
    }

    fn link(&mut self) -> LinkState {
        // An error is kept for the next call that can return it: the state it leaves is without a peer.
        if let Err(error) = self.service(Instant::now()) {
            tracing::warn!(%error, "the uplink's cable");
        }
        self.link_now()
    }

    fn arm(&mut self) -> Result<bool, UplinkError> {
        let now = Instant::now();
        self.armed = true;
        let link = self.link_now();
        self.service(now)?;
        // A link that has just changed would not be looked at during a sleep.
        let same = self.link_now() == link;
        let idle = match &mut self.state {
            State::Connected { consumer, .. } => consumer.arm(),
            State::Alone | State::Greeting { .. } => Ok(true),
        };
        let idle = idle.map_err(|Violation(problem)| self.expel(problem))?;
        // The listener and the connection wake the worker; a timer does where it must look by itself.
        let wait = match &self.state {
            State::Connected { .. } => Duration::ZERO,
            State::Alone => RETRY,
            State::Greeting { until, .. } => until.saturating_duration_since(now).max(RETRY),
        };
        Ok(self.set_timer(wait) && idle && same)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn statistics(&self) -> UplinkStatistics {
        self.statistics
    }

    fn spec(&self) -> &UplinkSpec {
        &self.spec
    }
}
