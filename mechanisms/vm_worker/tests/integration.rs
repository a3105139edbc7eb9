//! Integration services: the worker asks its guest to shut down, and sees whether it is alive.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::{
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{LIMIT, guest::Guest, wait_until};
use device_control::{DeviceControlClient, DriverName, SentRequest, Target};
use integration_services::{
    ShutdownAction, ShutdownRequest, Status, Version, testing::GuestDriver,
};
use partition::{
    guest::GuestRings,
    host::VmbusHost,
    user::{UserPartition, UserPartitionConfig},
};
use pcivirt_protocol::NtStatus;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use tempfile::TempDir;
use vm_worker::{
    IntegrationService, VmWorker, WorkerConfig,
    control::{
        GuestPulse, PrivateControl, SHUT_DOWN_CAPACITY, STATUS_CAPACITY, ServiceName, ServiceState,
        ShutDownAnswer, WorkerStatus,
    },
};
use vmbus::{Channel, OutgoingPacket};

struct Vm {
    client: DeviceControlClient,
    // Before the directory that its socket is in.
    worker: VmWorker,
    socket: PathBuf,
    _directory: TempDir,
}

impl Vm {
    fn start(services: &[IntegrationService]) -> (Self, Guest) {
        let directory = tempfile::tempdir().unwrap();
        let (partition, guest) =
            UserPartition::new(&UserPartitionConfig::with_memory(4 << 20)).unwrap();
        let partition = Arc::new(partition);
        let host = VmbusHost::start(partition.clone(), Default::default()).unwrap();
        let socket = directory.path().join("web.sock");
        let mut config = WorkerConfig::new("web", &socket);
        assert!(config.integration_services.is_empty(), "a guest may have no drivers for them");
        config.integration_services = services.iter().copied().collect();
        let worker = VmWorker::start(config, partition, host).unwrap();
        let client = Self::connect(&socket);
        let guest = Guest::new(guest);
        guest.connect();
        (Self { client, worker, socket, _directory: directory }, guest)
    }

    fn connect(socket: &PathBuf) -> DeviceControlClient {
        DeviceControlClient::connect(socket, &DriverName::new("stack").unwrap(), LIMIT).unwrap()
    }

    fn status(&self) -> WorkerStatus {
        let code = PrivateControl::Status.code();
        let json = self.client.private(code, &[], STATUS_CAPACITY, LIMIT).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    fn state(&self, service: ServiceName) -> ServiceState {
        let services = self.status().integration.services;
        services.into_iter().find(|one| one.service == service).unwrap().state
    }

    fn is_ready(&self, service: ServiceName) -> bool {
        matches!(self.state(service), ServiceState::Ready { .. })
    }

    fn pulse(&self) -> GuestPulse {
        self.status().integration.heartbeat.unwrap().pulse
    }

    fn send(&self, what: serde_json::Value) -> SentRequest {
        let target = Target::Private(PrivateControl::ShutDownGuest.code());
        let input = serde_json::to_vec(&what).unwrap();
        self.client.send(target, &input, SHUT_DOWN_CAPACITY).unwrap()
    }

    fn shut_down(&self, what: serde_json::Value) -> Result<ShutDownAnswer, NtStatus> {
        answer(self.send(what))
    }
}

fn answer(request: SentRequest) -> Result<ShutDownAnswer, NtStatus> {
    let json = request.wait_output(LIMIT).map_err(|error| error.status())?;
    Ok(serde_json::from_slice(&json).unwrap())
}

/// A driver of the guest, on a thread of its own.
struct Driver {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// While it is set, nothing is taken.
    asleep: Arc<AtomicBool>,
    shutdowns: mpsc::Receiver<ShutdownRequest>,
    rings: Option<GuestRings>,
}

impl Driver {
    fn load(guest: &mut Guest, service: IntegrationService, driver: GuestDriver) -> Self {
        let interface = service.interface_id();
        let mut offer = None;
        wait_until("the offer", || {
            guest.listen(Duration::ZERO);
            offer = guest.take_offer(|offer| offer.interface_id == interface);
            offer.is_some()
        });
        let (channel, rings) = guest.open(&offer.unwrap()).unwrap().into_parts();
        let (told, shutdowns) = mpsc::channel();
        let (stop, asleep) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let ends = (Arc::clone(&stop), Arc::clone(&asleep));
        let thread = std::thread::spawn(move || serve(channel, driver, &ends.0, &ends.1, &told));
        Self { thread: Some(thread), stop, asleep, shutdowns, rings: Some(rings) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn unload(mut self, guest: &Guest) {
        self.end();
        guest.bus.close_rings(self.rings.take().unwrap(), LIMIT).unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(
    mut channel: Channel,
    mut driver: GuestDriver,
    stop: &AtomicBool,
    asleep: &AtomicBool,
    told: &mpsc::Sender<ShutdownRequest>,
) {
    while !stop.load(Ordering::Relaxed) {
        let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)], Some(&pause))
            .unwrap();
        if asleep.load(Ordering::Relaxed) {
            continue;
        }
        // Rings that were taken back say nothing.
        let _ = channel.woken();
        while let Ok(Some(packet)) = channel.receive() {
            let mut payload = vec![0; packet.payload.len()];
            packet.payload.read_into(&mut payload);
            let answer = driver.answer(&payload).unwrap();
            for request in driver.shutdowns.drain(..) {
                // Nobody may want to know.
                let _ = told.send(request);
            }
            let packet = OutgoingPacket::InBand { transaction_id: 0, completion_requested: false };
            channel.send(packet, &answer).unwrap();
        }
        let _ = channel.prepare_to_wait();
    }
}

#[test]
fn a_guest_comes_alive_is_asked_to_shut_down_and_answers() {
    let (vm, mut guest) = Vm::start(&IntegrationService::ALL);
    let status = vm.status().integration;
    assert_eq!(status.services.len(), 3);
    assert!(status.services.iter().all(|one| one.state == ServiceState::Offered));
    assert_eq!(status.heartbeat.unwrap().pulse, GuestPulse::NeverSeen);
    assert_eq!(vm.shut_down(json!({})), Err(NtStatus::DEVICE_NOT_READY));

    let drivers = IntegrationService::ALL
        .map(|service| Driver::load(&mut guest, service, GuestDriver::new(service)));
    for service in [ServiceName::Shutdown, ServiceName::Heartbeat, ServiceName::TimeSync] {
        wait_until("versions", || vm.is_ready(service));
    }
    let ready = |version: &str| ServiceState::Ready {
        framework: "3.0".to_owned(),
        version: version.to_owned(),
    };
    assert_eq!(vm.state(ServiceName::Shutdown), ready("3.2"));
    assert_eq!(vm.state(ServiceName::Heartbeat), ready("3.0"));
    assert_eq!(vm.state(ServiceName::TimeSync), ready("3.0"), "there is no reference counter");
    wait_until("a sign of life", || vm.pulse() == GuestPulse::Alive);
    // The worker's own time: another one comes by itself.
    wait_until("another", || vm.status().integration.heartbeat.unwrap().last_sequence.unwrap() > 2);

    let [shutdown, heartbeat, _] = drivers;
    assert_eq!(vm.shut_down(json!({"force": true})), Ok(ShutDownAnswer::Initiated));
    let asked = shutdown.shutdowns.recv_timeout(LIMIT).unwrap();
    assert_eq!((asked.action, asked.force), (ShutdownAction::PowerOff, true));
    assert_eq!(asked.reason, 0x8000_0000);
    let reboot = json!({"reboot": true, "reason": 0x8002_0003u32, "limit_seconds": 60});
    assert_eq!(vm.shut_down(reboot), Ok(ShutDownAnswer::Initiated));
    let asked = shutdown.shutdowns.recv_timeout(LIMIT).unwrap();
    assert_eq!((asked.action, asked.force), (ShutdownAction::Restart, false));
    assert_eq!(asked.reason, 0x8002_0003);

    heartbeat.unload(&guest);
    assert_eq!(vm.pulse(), GuestPulse::Lost);
    shutdown.unload(&guest);
    assert_eq!(vm.shut_down(json!({})), Err(NtStatus::DEVICE_NOT_READY));
    let ignored: u64 = vm.status().integration.services.iter().map(|one| one.ignored).sum();
    assert_eq!(ignored, 0);
}

#[test]
fn what_a_guest_refuses_or_does_not_know_is_said() {
    let (vm, mut guest) = Vm::start(&[IntegrationService::Shutdown]);
    let mut driver =
        GuestDriver::speaking(&[Version::new(1, 0)], &[Version::new(1, 0), Version::new(3, 0)]);
    driver.status = Status(0x8007_0015);
    let _driver = Driver::load(&mut guest, IntegrationService::Shutdown, driver);
    wait_until("versions", || vm.is_ready(ServiceName::Shutdown));
    assert!(vm.status().integration.heartbeat.is_none());
    let refused = ShutDownAnswer::Refused { status: 0x8007_0015 };
    assert_eq!(vm.shut_down(json!({})), Ok(refused));
    assert_eq!(vm.shut_down(json!({"reboot": true})), Err(NtStatus::NOT_SUPPORTED));
    for bad in [
        json!({"reboot": 1}),
        json!({"hibernate": true}),
        json!(null),
        json!({"limit_seconds": 0}),
        json!({"limit_seconds": 601}),
        json!({"reason": -1}),
    ] {
        assert_eq!(vm.shut_down(bad.clone()), Err(NtStatus::INVALID_PARAMETER), "{bad}");
    }
    let code = PrivateControl::ShutDownGuest.code();
    let short = vm.client.private(code, b"{}", SHUT_DOWN_CAPACITY - 1, LIMIT).unwrap_err();
    assert_eq!(short.status(), NtStatus::BUFFER_TOO_SMALL);
}

#[test]
fn a_vm_without_the_service_cannot_be_asked() {
    let (vm, _guest) = Vm::start(&[]);
    assert_eq!(vm.shut_down(json!({})), Err(NtStatus::NOT_SUPPORTED));
    let status = vm.status().integration;
    assert!(status.services.is_empty() && status.heartbeat.is_none());
}

#[test]
fn a_guest_that_does_not_answer_is_waited_for_no_longer_than_was_said() {
    let (vm, mut guest) = Vm::start(&[IntegrationService::Shutdown]);
    let service = IntegrationService::Shutdown;
    let driver = Driver::load(&mut guest, service, GuestDriver::new(service));
    wait_until("versions", || vm.is_ready(ServiceName::Shutdown));
    driver.asleep.store(true, Ordering::Relaxed);
    assert_eq!(vm.shut_down(json!({"limit_seconds": 1})), Err(NtStatus::IO_TIMEOUT));

    // One at a time, whoever asks; and whoever leaves makes room.
    let first = vm.send(json!({}));
    assert!(!first.wait_for(Duration::from_millis(20)));
    let other = Vm::connect(&vm.socket);
    let code = PrivateControl::ShutDownGuest.code();
    let busy = other.private(code, b"{}", SHUT_DOWN_CAPACITY, LIMIT).unwrap_err();
    assert_eq!(busy.status(), NtStatus::DEVICE_BUSY);
    first.cancel();
    assert_eq!(answer(first), Err(NtStatus::CANCELLED));
    let target = Target::Private(code);
    let second = other.send(target, b"{}", SHUT_DOWN_CAPACITY).unwrap();
    assert!(!second.wait_for(Duration::from_millis(20)));
    drop((second, other));
    let mut third = None;
    wait_until("room", || {
        let request = vm.send(json!({}));
        let waits = !request.wait_for(Duration::from_millis(20));
        third = Some(request);
        waits
    });
    // It wakes, and answers all that it was asked: only the last is waited for.
    driver.asleep.store(false, Ordering::Relaxed);
    assert_eq!(answer(third.unwrap()), Ok(ShutDownAnswer::Initiated));
    assert!(driver.shutdowns.iter().take(3).count() == 3);
}

#[test]
fn a_guest_that_goes_instead_of_answering_is_gone() {
    let (vm, mut guest) = Vm::start(&[IntegrationService::Shutdown]);
    let service = IntegrationService::Shutdown;
    let driver = Driver::load(&mut guest, service, GuestDriver::new(service));
    wait_until("versions", || vm.is_ready(ServiceName::Shutdown));
    driver.asleep.store(true, Ordering::Relaxed);
    let request = vm.send(json!({}));
    assert!(!request.wait_for(Duration::from_millis(20)));
    driver.unload(&guest);
    assert_eq!(answer(request), Err(NtStatus::DEVICE_REMOVED));

    let mut guest = guest.restart();
    guest.connect();
    let driver = Driver::load(&mut guest, service, GuestDriver::new(service));
    wait_until("versions", || vm.is_ready(ServiceName::Shutdown));
    driver.asleep.store(true, Ordering::Relaxed);
    let request = vm.send(json!({}));
    assert!(!request.wait_for(Duration::from_millis(20)));
    let mut driver = driver;
    driver.end();
    drop(guest);
    assert_eq!(answer(request), Err(NtStatus::DEVICE_REMOVED));
    wait_until("its end", || vm.shut_down(json!({})) == Err(NtStatus::DEVICE_REMOVED));
}

#[test]
fn a_worker_that_ends_takes_the_services_back_and_leaves_nobody_waiting() {
    let (vm, mut guest) = Vm::start(&IntegrationService::ALL);
    let service = IntegrationService::Shutdown;
    let mut driver = Driver::load(&mut guest, service, GuestDriver::new(service));
    wait_until("versions", || vm.is_ready(ServiceName::Shutdown));
    driver.asleep.store(true, Ordering::Relaxed);
    let request = vm.send(json!({}));
    assert!(!request.wait_for(Duration::from_millis(20)));
    let Vm { client, worker, .. } = vm;
    drop(worker);
    assert!(answer(request).is_err());
    drop(client);
    driver.end();
    guest.expect_rescinded(driver.rings.take().unwrap().id());
}
