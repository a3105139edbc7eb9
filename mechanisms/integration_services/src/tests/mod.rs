//! The cores and guests that are played: good ones, and such as lie, repeat themselves, or say nothing.

mod heartbeat;
mod hostile;
mod negotiation;
mod shutdown;
mod time_sync;

use std::{collections::VecDeque, time::Duration};

use integration_protocol::{Message, MessageType, Service};

use crate::{HostTime, Ignored, IntegrationService, Phase, testing::GuestDriver};

/// The host's time when a test begins.
const START: HostTime = HostTime { utc: 133_000_000_000_000_000, reference: Some(5_000) };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A service and a guest, and the test's time.
struct World<S> {
    host: S,
    guest: GuestDriver,
    now: Duration,
    /// Whether the host's clock goes with time, and how far it is ahead, in 100 ns.
    ahead: i64,
    has_reference: bool,
    /// What is under way to the guest.
    to_guest: VecDeque<Vec<u8>>,
    ignored: Vec<Ignored>,
}

impl<S: IntegrationService> World<S> {
    fn new(host: S) -> Self {
        let guest = GuestDriver::new(host.session().service());
        Self {
            host,
            guest,
            now: seconds(100),
            ahead: 0,
            has_reference: true,
            to_guest: VecDeque::new(),
            ignored: Vec::new(),
        }
    }

    /// A world whose ends have agreed on versions.
    fn ready(host: S) -> Self {
        let mut world = Self::new(host);
        world.open();
        world.settle();
        assert!(matches!(world.host.session().phase(), Phase::Ready(_)));
        world
    }

    fn open(&mut self) {
        self.to_guest.clear();
        self.host.opened(self.now);
    }

    fn close(&mut self) {
        self.to_guest.clear();
        self.host.closed();
    }

    /// The host says what it has to say.
    fn host_sends(&mut self) -> usize {
        let passed = (self.now - seconds(100)).as_nanos() as i64 / 100;
        let reference = START.reference.filter(|_| self.has_reference);
        let time = HostTime {
            utc: START.utc.saturating_add_signed(passed + self.ahead),
            reference: reference.map(|reference| reference.saturating_add_signed(passed)),
        };
        self.host.poll(self.now);
        let before = self.to_guest.len();
        while self.host.deadline().is_some_and(|due| due <= self.now) {
            let Some(message) = self.host.next_message(self.now, &mut || time) else { break };
            self.to_guest.push_back(message);
        }
        assert!(self.host.deadline().is_none_or(|due| due > self.now), "nothing spins");
        self.to_guest.len() - before
    }

    /// The guest answers what has come.
    fn guest_answers(&mut self) {
        while let Some(packet) = self.to_guest.pop_front() {
            let answer = self.guest.answer(&packet).unwrap();
            self.say(&answer);
        }
    }

    fn say(&mut self, packet: &[u8]) {
        self.ignored.extend(self.host.receive(packet, self.now).err());
        assert_eq!(self.host.session().ignored(), self.ignored.len() as u64);
    }

    /// Both do what there is to do.
    fn settle(&mut self) {
        while self.host_sends() > 0 {
            self.guest_answers();
        }
    }

    /// Time passes while both do what there is to do.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.host.deadline().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// Time passes and the guest says nothing.
    fn pass_in_silence(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.host.deadline().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.host_sends();
        }
        self.now = end;
        self.host_sends();
    }
}

/// The same packet, changed.
fn with(packet: &[u8], change: impl FnOnce(&mut Message<'_>)) -> Vec<u8> {
    let mut message = Message::parse(packet).unwrap();
    change(&mut message);
    message.emit().unwrap()
}

/// The same packet with another body.
fn with_body(packet: &[u8], body: &[u8]) -> Vec<u8> {
    Message { body, ..Message::parse(packet).unwrap() }.emit().unwrap()
}

fn kind(packet: &[u8]) -> MessageType {
    Message::parse(packet).unwrap().message_type
}

#[test]
fn each_service_is_what_it_says() {
    assert_eq!(crate::ShutdownService::new().session().service(), Service::Shutdown);
    assert_eq!(crate::HeartbeatService::new().session().service(), Service::Heartbeat);
    assert_eq!(crate::TimeSyncService::new(true).session().service(), Service::TimeSync);
}
