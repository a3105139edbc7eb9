//! The services over a partition's VMBus, with a guest's drivers at the other end of their channels.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use integration_protocol::{Heartbeat, REASON_PLANNED, TICKS_PER_SECOND, TimeSyncPurpose, Version};
use integration_services::{
    HostTime, IntegrationServices, Phase, Pulse, Service, ShutdownAction, ShutdownOutcome,
    ShutdownRefused, ShutdownRequest, Status, testing::GuestDriver,
};
use partition::{
    Partition,
    guest::{BusEvent, GuestChannel, VmbusGuest},
    host::VmbusHost,
    user::{UserGuest, UserPartition, UserPartitionConfig},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shared_memory::DmaAddress;
use vmbus::{OutgoingPacket, SendError};
use vmbus_protocol::{Offer, OfferFlags, PipeType, USER_DEFINED_SIZE};

const LIMIT: Duration = Duration::from_secs(60);
const MEMORY: usize = 4 << 20;
/// The rings of Linux's `hv_utils`.
const RING: (usize, usize) = (4, 4);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A guest's driver and its channel.
struct Driver {
    channel: GuestChannel,
    driver: GuestDriver,
    /// It takes nothing.
    asleep: bool,
}

struct World {
    services: Option<IntegrationServices>,
    partition: Arc<UserPartition>,
    bus: VmbusGuest,
    offers: BTreeMap<Service, Offer>,
    rescinded: usize,
    drivers: BTreeMap<Service, Driver>,
    /// The host's time, which is the test's.
    now: Duration,
    // Last: the guest ends before its host.
    _host: VmbusHost,
}

impl World {
    fn new(which: &[Service]) -> Self {
        let config = UserPartitionConfig::with_memory(MEMORY);
        let (partition, socket) = UserPartition::new(&config).unwrap();
        let partition = Arc::new(partition);
        let host = VmbusHost::start(partition.clone(), Default::default()).unwrap();
        let which = which.iter().copied().collect();
        let services = IntegrationServices::offer(&host, partition.clone(), &which).unwrap();
        let guest = Arc::new(UserGuest::new(socket, LIMIT).unwrap());
        let bus = VmbusGuest::start(guest, Default::default()).unwrap();
        bus.connect(LIMIT).unwrap();
        let mut world = Self {
            services: Some(services),
            partition,
            bus,
            offers: BTreeMap::new(),
            rescinded: 0,
            drivers: BTreeMap::new(),
            now: seconds(50),
            _host: host,
        };
        world.until("the offers", |world| world.offers.len() == which.len());
        world
    }

    fn services(&mut self) -> &mut IntegrationServices {
        self.services.as_mut().unwrap()
    }

    /// The guest loads its driver.
    fn open(&mut self, service: Service, driver: GuestDriver) {
        let Self { services, bus, offers, now, .. } = self;
        let services = services.as_mut().unwrap();
        let id = offers[&service].channel;
        let channel = std::thread::scope(|scope| {
            let open = scope.spawn(|| bus.open(id, RING, [0; USER_DEFINED_SIZE], LIMIT).unwrap());
            while !open.is_finished() {
                services.work(*now);
                std::thread::yield_now();
            }
            open.join().unwrap()
        });
        self.drivers.insert(service, Driver { channel, driver, asleep: false });
    }

    /// And unloads it.
    fn close(&mut self, service: Service) -> GuestDriver {
        let Driver { channel, driver, .. } = self.drivers.remove(&service).unwrap();
        let Self { services, bus, now, .. } = self;
        std::thread::scope(|scope| {
            let close = scope.spawn(|| bus.close(channel, LIMIT).unwrap());
            while !close.is_finished() {
                services.iter_mut().for_each(|services| services.work(*now));
                std::thread::yield_now();
            }
        });
        driver
    }

    fn driver(&mut self, service: Service) -> &mut Driver {
        self.drivers.get_mut(&service).unwrap()
    }

    fn phase(&self, service: Service) -> Phase {
        let services = self.services.as_ref().unwrap();
        services.sessions().find(|session| session.service() == service).unwrap().phase()
    }

    fn is_ready(&self, service: Service) -> bool {
        matches!(self.phase(service), Phase::Ready(_))
    }

    /// Both ends do what there is to do.
    fn turn(&mut self) {
        while let Some(event) = self.bus.next_event(Duration::ZERO) {
            match event {
                BusEvent::Offered(offer) => {
                    let mut all = Service::ALL.into_iter();
                    let service = all.find(|service| service.interface_id() == offer.interface_id);
                    self.offers.insert(service.unwrap(), *offer);
                }
                BusEvent::Rescinded(_) => self.rescinded += 1,
                BusEvent::Closed => panic!("the host has hung up"),
            }
        }
        let now = self.now;
        self.services.iter_mut().for_each(|services| services.work(now));
        self.drivers.values_mut().for_each(Driver::turn);
    }

    /// Both ends do what there is to do, until it is so. Their time does not pass.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.turn();
            if is_so(self) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} did not come");
            let mut readable = Vec::new();
            if let Some(services) = &self.services {
                services.wait_on(&mut readable);
            }
            readable.extend(self.drivers.values().map(|driver| driver.channel.channel.as_fd()));
            let mut fds: Vec<_> = readable
                .into_iter()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            // News of the bus come without a descriptor.
            let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            poll(&mut fds, Some(&pause)).unwrap();
        }
    }
}

impl Driver {
    fn turn(&mut self) {
        let Self { channel, driver, asleep } = self;
        if *asleep {
            return;
        }
        // Rings that are broken say nothing.
        let channel = &mut channel.channel;
        let _ = channel.woken();
        while let Ok(Some(packet)) = channel.receive() {
            let mut payload = vec![0; packet.payload.len()];
            packet.payload.read_into(&mut payload);
            let Some(answer) = driver.answer(&payload) else { continue };
            let packet = OutgoingPacket::InBand { transaction_id: 0, completion_requested: false };
            channel.send(packet, &answer).unwrap();
        }
        let _ = channel.prepare_to_wait();
    }

    fn send(&mut self, payload: &[u8]) -> Result<(), SendError> {
        let packet = OutgoingPacket::InBand { transaction_id: 7, completion_requested: true };
        let result = self.channel.channel.send(packet, payload);
        self.channel.channel.flush().unwrap();
        result
    }
}

fn power_off() -> ShutdownRequest {
    let action = ShutdownAction::PowerOff;
    ShutdownRequest { action, force: false, reason: REASON_PLANNED, limit_seconds: 0 }
}

#[test]
fn a_guest_is_told_the_time_beats_and_shuts_down_when_it_is_asked() {
    let mut world = World::new(&Service::ALL);
    for (service, offer) in &world.offers {
        assert_eq!(offer.instance_id, service.instance_id());
        assert_eq!(offer.flags, OfferFlags::NAMED_PIPE_MODE);
        assert_eq!(offer.user_defined.pipe().unwrap().pipe_type, PipeType::Message);
    }
    for service in Service::ALL {
        assert_eq!(world.phase(service), Phase::Offered);
        world.open(service, GuestDriver::new(service));
        world.until("versions", |world| world.is_ready(service));
    }

    // A partition without a reference counter: the time as it is when it is told.
    world.until("the time", |world| !world.driver(Service::TimeSync).driver.times.is_empty());
    let time = world.driver(Service::TimeSync).driver.times[0];
    assert_eq!((time.purpose, time.reference), (TimeSyncPurpose::Sync, None));
    let ours = HostTime::new(SystemTime::now(), None).utc;
    assert!(ours.abs_diff(time.host_time) < LIMIT.as_secs() * TICKS_PER_SECOND);

    for beat in 1..5 {
        world.until("a heartbeat", |world| {
            world.services().heartbeat().unwrap().last_sequence() == Some(beat + 1)
        });
        assert_eq!(world.services().heartbeat().unwrap().pulse(), Pulse::Alive);
        world.now += seconds(2);
    }

    for (status, expected) in [
        (Status::FAIL, ShutdownOutcome::Refused(Status::FAIL)),
        (Status::SUCCESS, ShutdownOutcome::Initiated),
    ] {
        world.driver(Service::Shutdown).driver.status = status;
        let now = world.now;
        world.services().shut_down(power_off(), seconds(10), now).unwrap();
        let mut outcome = None;
        world.until("an answer", |world| {
            outcome = world.services().shutdown_outcome();
            outcome.is_some()
        });
        assert_eq!(outcome, Some(expected));
    }
    assert_eq!(world.driver(Service::Shutdown).driver.shutdowns, [power_off(); 2]);
    let ignored: Vec<_> = world.services().sessions().map(|session| session.ignored()).collect();
    assert_eq!(ignored, [0; 3]);
}

#[test]
fn only_what_is_wanted_is_offered_and_all_is_taken_back() {
    let mut world = World::new(&[]);
    assert_eq!(world.services().deadline(), None);
    let refused = world.services().shut_down(power_off(), seconds(1), seconds(1));
    assert_eq!(refused, Err(ShutdownRefused::NotReady));
    assert!(!world.services().has_shutdown() && world.services().heartbeat().is_none());

    let mut world = World::new(&[Service::Shutdown, Service::Heartbeat]);
    world.open(Service::Heartbeat, GuestDriver::new(Service::Heartbeat));
    world.until("a heartbeat", |world| {
        world.services().heartbeat().unwrap().pulse() == Pulse::Alive
    });
    assert_eq!(world.offers.len(), 2);
    world.services = None;
    world.until("the end of both", |world| world.rescinded == 2);
    world.close(Service::Heartbeat);
}

#[test]
fn a_driver_that_is_unloaded_and_loaded_again_begins_anew() {
    let service = Service::Shutdown;
    let mut world = World::new(&[service]);
    for round in 0..20 {
        let version = service.versions()[round % 4];
        world.open(service, GuestDriver::speaking(&[Version::new(3, 0)], &[version]));
        world.until("versions", |world| world.is_ready(service));
        assert!(matches!(world.phase(service), Phase::Ready(now) if now.message == version));
        if round % 3 == 0 {
            world.driver(service).asleep = true;
            let now = world.now;
            world.services().shut_down(power_off(), seconds(10), now).unwrap();
        }
        let driver = world.close(service);
        assert_eq!(driver.negotiations, 1);
        assert_eq!(world.phase(service), Phase::Offered);
        let outcome = (round % 3 == 0).then_some(ShutdownOutcome::Closed);
        assert_eq!(world.services().shutdown_outcome(), outcome);
    }
}

#[test]
fn a_guest_that_takes_nothing_has_a_full_ring_and_is_served_when_it_wakes() {
    let mut world = World::new(&Service::ALL);
    for service in Service::ALL {
        world.open(service, GuestDriver::new(service));
        world.until("versions", |world| world.is_ready(service));
        world.driver(service).asleep = true;
    }
    let beaten = world.driver(Service::Heartbeat).driver.beats.len();
    // An hour; the owner is not kept busy by rings that are full.
    for _ in 0..3600 {
        world.now += seconds(1);
        let now = world.now;
        world.services().work(now);
        assert!(world.services().deadline().unwrap() > now);
    }
    assert_eq!(world.services().heartbeat().unwrap().pulse(), Pulse::Lost);
    let now = world.now;
    world.services().shut_down(power_off(), seconds(10), now).unwrap();
    world.now += seconds(10);
    let now = world.now;
    world.services().work(now);
    assert_eq!(world.services().shutdown_outcome(), Some(ShutdownOutcome::NoAnswer));

    for service in Service::ALL {
        world.driver(service).asleep = false;
    }
    world.until("a sign of life", |world| {
        world.services().heartbeat().unwrap().pulse() == Pulse::Alive
    });
    world.until("the time", |world| {
        let told = &world.driver(Service::TimeSync).driver.times;
        told.last().is_some_and(|last| last.purpose == TimeSyncPurpose::Sync) && told.len() > 1
    });
    world.now += seconds(2);
    let before = world.driver(Service::Heartbeat).driver.beats.len();
    assert!((beaten..beaten + 200).contains(&before), "what fits a ring, and no more: {before}");
    world.until("another heartbeat", |world| {
        world.driver(Service::Heartbeat).driver.beats.len() > before
    });
}

#[test]
fn packets_that_nobody_asked_for_are_counted_and_stop_nothing() {
    let service = Service::Heartbeat;
    let mut world = World::new(&[service]);
    world.open(service, GuestDriver::new(service));
    world.until("a heartbeat", |world| {
        world.services().heartbeat().unwrap().pulse() == Pulse::Alive
    });
    let beat = Heartbeat { sequence: 99, state: integration_protocol::ApplicationState::HEALTHY };
    let junk = [vec![], vec![0xFF; 8], beat.emit(), vec![0xAA; 5000], vec![1, 0, 0, 0, 0, 0, 0, 0]];
    let mut sent = 0;
    for round in 0..500 {
        let packet = &junk[round % junk.len()];
        match world.driver(service).send(packet) {
            Ok(()) => sent += 1,
            Err(SendError::Full { .. }) => world.turn(),
            Err(error) => panic!("{error}"),
        }
    }
    world.until("all of it", |world| {
        world.services().sessions().map(|session| session.ignored()).sum::<u64>() == sent
    });
    world.now += seconds(2);
    world.until("the next heartbeat", |world| {
        world.services().heartbeat().unwrap().last_sequence() == Some(3)
    });
}

#[test]
fn a_ring_that_is_scribbled_over_ends_the_conversation_until_the_next() {
    let mut world = World::new(&Service::ALL);
    for service in Service::ALL {
        world.open(service, GuestDriver::new(service));
        world.until("versions", |world| world.is_ready(service));
    }
    world.until("a heartbeat", |world| {
        world.services().heartbeat().unwrap().pulse() == Pulse::Alive
    });
    let ones = vec![0xFF; MEMORY];
    world.partition.memory().map().write_bytes(DmaAddress(0), &ones).unwrap();
    world.now += seconds(5);
    let now = world.now;
    world.services().shut_down(power_off(), seconds(10), now).unwrap();
    world.services().work(now);
    for service in Service::ALL {
        assert_eq!(world.phase(service), Phase::Offered, "{service}");
    }
    assert_eq!(world.services().shutdown_outcome(), Some(ShutdownOutcome::Closed));
    assert_eq!(world.services().heartbeat().unwrap().pulse(), Pulse::Lost);
    assert_eq!(world.services().deadline(), None);
    for service in Service::ALL {
        let driver = world.close(service);
        world.open(service, driver);
        world.until("versions", |world| world.is_ready(service));
    }
}
