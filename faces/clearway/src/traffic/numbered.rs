//! Numbered datagrams: what was lost and what came twice on the way from one VM to another, exactly.
//!
//! A sender keeps a window of datagrams under way, each with its number; the receiver answers each with an
//! acknowledgement of that number. Nothing is sent again. So every datagram and every acknowledgement that a path
//! loses or doubles is seen, while the window keeps buffers from overflowing: what is lost was lost by the path.
//!
//! Each line on the sender's standard input has it pause, wait for what is under way, ask the receiver for its count,
//! and print a [`Count`] as a line of JSON; the end of the input is the last such line.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, stdin},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

const MAGIC: u32 = u32::from_le_bytes(*b"CWNR");
/// Bytes of a datagram: from a header's to what fits into one frame of 1500 bytes.
const SIZES: std::ops::Range<usize> = size_of::<Header>()..1472;
/// Without an acknowledgement for so long, what is under way counts as lost, and the sender goes on.
const STALL: Duration = Duration::from_millis(500);
/// Between two questions for the receiver's count.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Without an answer for so long, there is no receiver.
const PATIENCE: Duration = Duration::from_secs(20);
/// Numbers that may be missing below the highest one seen, before the lowest of them count as lost for good.
const MISSING: usize = 1 << 16;

/// What a datagram is about.
mod kind {
    pub(super) const DATA: u32 = 1;
    pub(super) const ACKNOWLEDGEMENT: u32 = 2;
    pub(super) const QUESTION: u32 = 3;
    pub(super) const ANSWER: u32 = 4;
}

/// The first bytes of each datagram.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: U32,
    kind: U32,
    /// Which sender.
    session: U64,
    /// The number; of an answer, distinct numbers that were received.
    number: U64,
    /// Of an answer, numbers that came again.
    doubled: U64,
    /// Of an answer, datagrams with wrong contents.
    wrong: U64,
}

const _: () = assert!(size_of::<Header>() == 40);

impl Header {
    fn new(kind: u32, session: u64, number: u64) -> Self {
        let (magic, kind) = (U32::new(MAGIC), U32::new(kind));
        let (doubled, wrong) = (U64::ZERO, U64::ZERO);
        Self { magic, kind, session: U64::new(session), number: U64::new(number), doubled, wrong }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(bytes).ok()?;
        (header.magic.get() == MAGIC).then_some(header)
    }
}

/// What became of the datagrams of one sender so far.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Count {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Of these, received.
    pub(crate) received: u64,
    /// Received once more.
    pub(crate) doubled: u64,
    /// Received with other contents than were sent.
    pub(crate) wrong: u64,
    /// Acknowledgements received: one for each datagram received, and for each received once more.
    pub(crate) acknowledged: u64,
    /// Acknowledgements received once more than they were sent.
    pub(crate) acknowledged_again: u64,
    /// Microseconds of the longest time without an acknowledgement while some were due.
    pub(crate) longest_silence_us: u64,
    /// Milliseconds of sending.
    pub(crate) milliseconds: u64,
}

impl Count {
    /// Datagrams and acknowledgements that never arrived.
    pub(crate) fn lost(&self) -> u64 {
        (self.sent - self.received.min(self.sent))
            + (self.received + self.doubled).saturating_sub(self.acknowledged)
    }

    /// Datagrams and acknowledgements that arrived more than once.
    pub(crate) fn came_twice(&self) -> u64 {
        self.doubled + self.acknowledged_again
    }
}

/// Which numbers were seen.
#[derive(Debug, Default)]
struct Seen {
    /// All numbers below were seen, or count as lost.
    below: u64,
    /// Seen numbers above.
    above: BTreeSet<u64>,
    distinct: u64,
    again: u64,
}

impl Seen {
    /// Takes a number; whether it is new.
    fn take(&mut self, number: u64) -> bool {
        if number < self.below || !self.above.insert(number) {
            self.again += 1;
            return false;
        }
        self.distinct += 1;
        while self.above.remove(&self.below) {
            self.below += 1;
        }
        if self.above.len() > MISSING
            && let Some(first) = self.above.first()
        {
            self.below = *first;
        }
        true
    }
}

/// Bytes of the datagram with this number: all sizes come in turn.
fn length(number: u64) -> usize {
    let spread = (SIZES.end - SIZES.start) as u64;
    SIZES.start + usize::try_from(number.wrapping_mul(613) % spread).unwrap_or(0)
}

/// Makes a datagram.
fn fill(datagram: &mut [u8; SIZES.end], session: u64, number: u64) -> &[u8] {
    let length = length(number);
    let datagram = datagram.get_mut(..length).unwrap_or_default();
    let [fill, ..] = number.to_le_bytes();
    datagram.fill(fill);
    let header = Header::new(kind::DATA, session, number);
    // All sizes are at least a header's.
    let _ = header.write_to_prefix(datagram);
    datagram
}

/// Answers numbered datagrams until it is killed, or nothing came for `patience`.
pub(super) fn receive(port: u16, patience: Duration) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(patience))?;
    let (mut seen, mut session, mut wrong) = (Seen::default(), 0, 0u64);
    let (mut datagram, mut expected) = ([0u8; 2048], [0u8; SIZES.end]);
    loop {
        let (length, from) = match socket.recv_from(&mut datagram) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("nothing has come to port {port} for {} s", patience.as_secs());
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = datagram.get(..length).unwrap_or_default();
        let Some(mut header) = Header::read(bytes) else { continue };
        if header.session.get() != session {
            (seen, session, wrong) = (Seen::default(), header.session.get(), 0);
        }
        match header.kind.get() {
            kind::DATA => {
                let number = header.number.get();
                seen.take(number);
                if bytes != fill(&mut expected, session, number) {
                    wrong += 1;
                }
                header.kind = U32::new(kind::ACKNOWLEDGEMENT);
            }
            kind::QUESTION => {
                header.kind = U32::new(kind::ANSWER);
                header.number = U64::new(seen.distinct);
                header.doubled = U64::new(seen.again);
                header.wrong = U64::new(wrong);
            }
            _ => continue,
        }
        send_to(&socket, header.as_bytes(), from)?;
    }
}

/// Sends, also while there is no way to the other side: then it is lost.
fn send_to(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> Result<()> {
    match socket.send_to(bytes, to) {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NetworkDown
                    | ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("sending to {to}")),
    }
}

struct Sender {
    socket: UdpSocket,
    to: SocketAddr,
    session: u64,
    window: u64,
    next: u64,
    acknowledged: Seen,
    /// Datagrams whose acknowledgement is not waited for any more.
    given_up: u64,
    last_answer: Instant,
    longest_silence: Duration,
    /// The receiver's last answer, with the time of the question's round.
    answer: Option<Header>,
    sending: Duration,
}

/// Keeps `window` datagrams under way until the end of the standard input.
pub(super) fn send(to: SocketAddr, window: u64) -> Result<()> {
    ensure!(window > 0, "a window of 0 datagrams sends nothing");
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_nonblocking(true)?;
    let session = u64::from(std::process::id()) << 16 | u64::from(socket.local_addr()?.port());
    let mut sender = Sender {
        socket,
        to,
        session,
        window,
        next: 0,
        acknowledged: Seen::default(),
        given_up: 0,
        last_answer: Instant::now(),
        longest_silence: Duration::ZERO,
        answer: None,
        sending: Duration::ZERO,
    };
    // The receiver may not be there yet; nothing is lost by that.
    sender.ask()?;
    loop {
        let more = sender.run()?;
        super::print(&sender.count()?)?;
        if !more {
            return Ok(());
        }
    }
}

impl Sender {
    fn under_way(&self) -> u64 {
        self.next.saturating_sub(self.acknowledged.distinct + self.given_up)
    }

    /// Sends until there is a line on the standard input; false at its end.
    fn run(&mut self) -> Result<bool> {
        let mut datagram = [0u8; SIZES.end];
        let start = Instant::now();
        self.last_answer = start;
        let more = loop {
            while self.under_way() < self.window {
                send_to(&self.socket, fill(&mut datagram, self.session, self.next), self.to)?;
                self.next += 1;
            }
            let stdin = stdin();
            let stdin_fd = stdin.as_fd();
            if self.wait(Some(stdin_fd), STALL)? {
                let mut bytes = [0u8; 64];
                let count = stdin.lock().read(&mut bytes)?;
                if count == 0 || bytes.get(..count).is_some_and(|read| read.contains(&b'\n')) {
                    break count > 0;
                }
            }
            if self.last_answer.elapsed() > STALL {
                self.give_up();
            }
        };
        while self.under_way() > 0 && self.last_answer.elapsed() <= STALL {
            self.wait(None, STALL)?;
        }
        self.give_up();
        self.sending += start.elapsed();
        Ok(more)
    }

    fn give_up(&mut self) {
        self.longest_silence = self.longest_silence.max(match self.under_way() {
            0 => Duration::ZERO,
            _ => self.last_answer.elapsed(),
        });
        self.given_up += self.under_way();
        self.last_answer = Instant::now();
    }

    /// Takes in answers, waiting for one at most so long; true if `also` is readable.
    fn wait(&mut self, also: Option<std::os::fd::BorrowedFd<'_>>, limit: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(limit)?;
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        fds.extend(also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let readable = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let mut bytes = [0u8; 2048];
        loop {
            let length = match self.socket.recv(&mut bytes) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(readable),
                // Nobody listened there when an earlier datagram arrived.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(header) = bytes.get(..length).and_then(Header::read) else { continue };
            if header.session.get() != self.session {
                continue;
            }
            match header.kind.get() {
                kind::ACKNOWLEDGEMENT => {
                    self.acknowledged.take(header.number.get());
                    self.longest_silence = self.longest_silence.max(self.last_answer.elapsed());
                    self.last_answer = Instant::now();
                }
                kind::ANSWER => self.answer = Some(header),
                _ => {}
            }
        }
    }

    /// Asks for the receiver's count until it answers.
    fn ask(&mut self) -> Result<Header> {
        let start = Instant::now();
        self.answer = None;
        loop {
            let question = Header::new(kind::QUESTION, self.session, 0);
            send_to(&self.socket, question.as_bytes(), self.to)?;
            let asked = Instant::now();
            while self.answer.is_none() && asked.elapsed() < ASK_AGAIN {
                self.wait(None, ASK_AGAIN.saturating_sub(asked.elapsed()))?;
            }
            if let Some(answer) = self.answer.take() {
                return Ok(answer);
            }
            ensure!(start.elapsed() < PATIENCE, "nobody answers at {}", self.to);
        }
    }

    fn count(&mut self) -> Result<Count> {
        let answer = self.ask()?;
        let received = answer.number.get();
        let doubled = answer.doubled.get();
        // The receiver acknowledges each copy that it gets.
        let all = self.acknowledged.distinct + self.acknowledged.again;
        Ok(Count {
            sent: self.next,
            received,
            doubled,
            wrong: answer.wrong.get(),
            acknowledged: all.min(received + doubled),
            acknowledged_again: all.saturating_sub(received + doubled),
            longest_silence_us: u64::try_from(self.longest_silence.as_micros())?,
            milliseconds: u64::try_from(self.sending.as_millis())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_counts_once_in_any_order() {
        let mut seen = Seen::default();
        for number in [2, 0, 1, 2, 5, 0, 3, 4, 5] {
            seen.take(number);
        }
        assert_eq!((seen.distinct, seen.again, seen.below), (6, 3, 6));
        assert!(seen.above.is_empty());
    }

    #[test]
    fn numbers_that_never_come_do_not_make_it_grow() {
        let mut seen = Seen::default();
        for number in (1..).step_by(2).take(3 * MISSING) {
            seen.take(number);
        }
        assert!(seen.above.len() <= MISSING + 1);
        assert_eq!(seen.distinct, 3 * MISSING as u64);
    }

    #[test]
    fn a_count_knows_what_was_lost_either_way_and_what_came_twice() {
        let count =
            Count { sent: 10, received: 9, doubled: 2, acknowledged: 8, ..Count::default() };
        assert_eq!((count.lost(), count.came_twice()), (1 + 3, 2));
    }

    #[test]
    fn datagrams_of_all_sizes_carry_their_number() {
        let mut bytes = [0; SIZES.end];
        let sizes: BTreeSet<usize> = (0..5000).map(length).collect();
        assert_eq!(sizes.len(), SIZES.len());
        let datagram = fill(&mut bytes, 7, 1234);
        let header = Header::read(datagram).unwrap();
        assert_eq!((header.session.get(), header.number.get()), (7, 1234));
        assert!(Header::read(&datagram[..39]).is_none());
    }

    #[test]
    fn over_a_path_that_keeps_all_nothing_is_lost_or_doubled() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = receiver.local_addr().unwrap();
        drop(receiver);
        let thread =
            std::thread::spawn(move || receive(to.port(), Duration::from_millis(300)).unwrap_err());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut sender = Sender {
            socket,
            to,
            session: 1,
            window: 8,
            next: 0,
            acknowledged: Seen::default(),
            given_up: 0,
            last_answer: Instant::now(),
            longest_silence: Duration::ZERO,
            answer: None,
            sending: Duration::ZERO,
        };
        sender.ask().unwrap();
        let mut datagram = [0u8; SIZES.end];
        while sender.acknowledged.distinct < 1000 {
            while sender.under_way() < sender.window {
                let bytes = fill(&mut datagram, 1, sender.next);
                send_to(&sender.socket, bytes, to).unwrap();
                sender.next += 1;
            }
            sender.wait(None, STALL).unwrap();
        }
        while sender.under_way() > 0 {
            sender.wait(None, STALL).unwrap();
        }
        let count = sender.count().unwrap();
        assert_eq!((count.lost(), count.came_twice(), count.wrong), (0, 0, 0));
        assert_eq!(count.sent, count.received);
        assert!(thread.join().unwrap().to_string().contains("nothing has come"));
    }
}
