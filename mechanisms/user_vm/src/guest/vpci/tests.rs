//! A guest's VF over VMBus, end to end: an adapter, the host side of a partition, and the AVF driver in the guest; the
//! other VF of the adapter is driven over its socket.

use std::{
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use adapter::{AdapterConfig, AdapterServer, control_socket};
use arrayvec::ArrayVec;
use avf_driver::{
    AvfControl, AvfDriver, DriverConfig, DriverError, Event, QueuePair, RxSegment, State, TxSegment,
};
use device_control::{DeviceControlClient, DriverName, OidRequestKind};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::*;
use partition::{
    guest::{BusEvent, VmbusGuest},
    host::VmbusHost,
    user::{UserGuest, UserPartition, UserPartitionConfig},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_worker::{
    VmWorker, WorkerConfig,
    control::{
        DeviceName, DeviceState, OfferVf, PrivateControl, REPORT_CAPACITY, RemoveVf, WorkerReport,
    },
};
use vmbus::{client::ClientConfig, server::ServerConfig};
use vmbus_protocol::{ChannelId, INTERFACE_VPCI};

use super::*;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The adapter number in reports; nothing hangs on it here.
const ADAPTER: u32 = 0;

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 5, number]
}

fn frame(to: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    [&mac(to)[..], &mac(from), &[0x88, 0xB5], payload].concat()
}

fn connect(socket: &Path, name: &str) -> DeviceControlClient {
    let name = DriverName::new(name).unwrap();
    DeviceControlClient::connect(socket, &name, PATIENCE).unwrap()
}

/// An adapter, and the overlying driver that manages it.
struct Nic {
    server: AdapterServer,
    overlying: DeviceControlClient,
    directory: tempfile::TempDir,
}

impl Nic {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = AdapterConfig { total_vfs: 4, ..AdapterConfig::new("nic0", directory.path()) };
        let keywords = Keywords { sriov_preferred: true, num_vfs: Some(4), ..Keywords::default() };
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
        let server = AdapterServer::start(config, configuration).unwrap();
        let overlying = connect(&control_socket(directory.path()), "host");
        Self { server, overlying, directory }
    }

    fn oid<T: NdisStructure>(&self, oid: Oid, kind: OidRequestKind, input: &T) -> Vec<u8> {
        let answer = self.overlying.oid(kind, oid.code(), &input.emit(), 8192, PATIENCE).unwrap();
        assert_eq!(NdisStatus(answer.status.0), NdisStatus::SUCCESS, "{}", oid.name());
        answer.output
    }

    /// A VF with a VPort and a receive filter for its address.
    fn allocate(&self, number: u8) -> VfId {
        let parameters = VfParameters {
            switch_id: SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: Name::new("vm").unwrap(),
                vm_friendly_name: Name::new("vm").unwrap(),
                nic_name: Name::new("nic").unwrap(),
                permanent_mac: MacAddress::new(mac(number)),
                current_mac: MacAddress::new(mac(number)),
            },
            vf_id: None,
            requestor_id: None,
        };
        let answer = self.oid(Oid::NicSwitchAllocateVf, OidRequestKind::Method, &parameters);
        let vf = VfParameters::parse(&answer).unwrap().vf_id.unwrap();
        let vport = VPortParameters::new(FunctionId::Vf(vf), 1);
        let answer = self.oid(Oid::NicSwitchCreateVport, OidRequestKind::Method, &vport);
        let vport = VPortParameters::parse(&answer).unwrap().vport_id;
        let matches = FilterMatch::untagged(MacAddress::new(mac(number)));
        let filter = ReceiveFilterParameters::new(vport, matches);
        self.oid(Oid::ReceiveFilterSetFilter, OidRequestKind::Method, &filter);
        vf
    }

    /// A VF in the hands of a driver on the host.
    fn peer(&self, number: u8) -> End {
        let vf = self.allocate(number);
        let config = DriverConfig::new(self.server.adapter().socket(FunctionId::Vf(vf)));
        End::of(AvfDriver::open(config).unwrap())
    }
}

/// A VM, both sides of it, without NICs.
struct Vm {
    bus: Arc<VmbusGuest>,
    resources: Arc<VpciResources>,
    control: DeviceControlClient,
    worker: VmWorker,
    _directory: tempfile::TempDir,
}

impl Vm {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (partition, guest) =
            UserPartition::new(&UserPartitionConfig::with_memory(24 << 20)).unwrap();
        let partition = Arc::new(partition);
        let host = VmbusHost::start(partition.clone(), ServerConfig::default()).unwrap();
        let socket = directory.path().join("worker.sock");
        let worker = VmWorker::start(WorkerConfig::new("vm", &socket), partition, host).unwrap();
        let control = connect(&socket, "stack");
        let guest = Arc::new(UserGuest::new(guest, PATIENCE).unwrap());
        let bus = Arc::new(VmbusGuest::start(guest, ClientConfig::default()).unwrap());
        bus.connect(PATIENCE).unwrap();
        let resources = VpciResources::new();
        Self { bus, resources, control, worker, _directory: directory }
    }

    fn ask(&self, control: PrivateControl, input: &impl serde::Serialize) {
        let input = serde_json::to_vec(input).unwrap();
        self.control.private(control.code(), &input, 0, PATIENCE).unwrap();
    }

    fn offer(&self, nic: &Nic, vf: VfId, serial: u32) {
        let offer = OfferVf {
            adapter: ADAPTER,
            serial,
            vf_socket: nic.server.adapter().socket(FunctionId::Vf(vf)),
            nic: control_socket(nic.directory.path()),
            vf: vf.get(),
            mitigated_ranges: Default::default(),
            mac: None,
        };
        self.ask(PrivateControl::OfferVf, &offer);
    }

    fn eject(&self, serial: u32) {
        self.ask(PrivateControl::EjectVf, &DeviceName { adapter: ADAPTER, serial });
    }

    fn remove(&self, serial: u32, surprise: bool) {
        self.ask(PrivateControl::RemoveVf, &RemoveVf { adapter: ADAPTER, serial, surprise });
    }

    /// Waits until the worker reports a state of a device.
    fn wait_for(&self, serial: u32, wanted: DeviceState) {
        let code = PrivateControl::NextReport.code();
        loop {
            let report = self.control.private(code, &[], REPORT_CAPACITY, PATIENCE).unwrap();
            let report = serde_json::from_slice(&report).unwrap();
            if let WorkerReport::Device { serial: of, state, .. } = report
                && of == serial
            {
                if state == wanted {
                    return;
                }
                assert_ne!(state, DeviceState::Removed, "instead of {wanted:?}");
                assert!(!matches!(state, DeviceState::OfferFailed { .. }), "{state:?}");
            }
        }
    }

    fn next_event(&self) -> BusEvent {
        self.bus.next_event(PATIENCE).expect("news of the bus")
    }

    /// The guest's part of an offer.
    fn open_offered(&self) -> VpciDevice {
        let BusEvent::Offered(offer) = self.next_event() else { panic!("no offer") };
        assert_eq!(offer.interface_id, INTERFACE_VPCI);
        VpciDevice::open(&self.bus, offer.channel, &self.resources, PATIENCE).unwrap()
    }

    fn expect_rescind(&self, channel: ChannelId) {
        assert_eq!(self.next_event(), BusEvent::Rescinded(channel));
    }

    /// A VF that was given to the guest, and whose bus is up.
    fn plug(&self, nic: &Nic, vf: VfId, serial: u32) -> VpciDevice {
        self.offer(nic, vf, serial);
        let device = self.open_offered();
        let VpciEvent::Ready(function) = next(&device) else { panic!("not ready") };
        assert_eq!((function.serial, function.ids.vendor_id), (serial, 0x8086));
        assert_eq!((function.bars[0], function.bars[3]), (0x1_0000, 0x4000));
        assert_eq!(device.function(), Some(function));
        device
    }
}

/// Waits for what happens next on a bus, as a bus thread does.
fn next(device: &VpciDevice) -> VpciEvent {
    let start = Instant::now();
    loop {
        let mut events = device.process();
        if !events.is_empty() {
            assert_eq!(events.len(), 1, "{events:?}");
            return events.remove(0);
        }
        assert!(start.elapsed() < PATIENCE, "nothing happened on the bus");
        sleep(device, PATIENCE);
    }
}

/// Until the device has something to do, or a while has passed.
fn sleep(device: &VpciDevice, limit: Duration) {
    let due = device.next_deadline();
    let left = due.map_or(limit, |due| due.saturating_duration_since(Instant::now()).min(limit));
    let mut set = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
    poll(&mut set, Some(&Timespec::try_from(left).unwrap())).unwrap();
}

/// A driver for the function.
fn drive(device: &VpciDevice) -> End {
    let transport = device.transport().unwrap();
    let mut config = DriverConfig { interrupts: true, ..DriverConfig::without_socket() };
    config.memory = transport.memory(&config).unwrap();
    End::of(AvfDriver::open_on(Arc::new(transport), config).unwrap())
}

/// A function in the hands of the AVF driver.
struct End {
    control: AvfControl,
    pairs: Vec<QueuePair>,
}

impl End {
    fn of((control, pairs): (AvfControl, Vec<QueuePair>)) -> Self {
        Self { control, pairs }
    }

    /// Hands a frame to the driver; false if there is no room.
    fn try_send(&mut self, bytes: &[u8]) -> bool {
        let tx = &mut self.pairs[0].tx;
        let memory = Arc::clone(tx.memory());
        let Some(buffer) = tx.reserve() else { return false };
        memory.bytes(&buffer).unwrap().write_from(bytes);
        let segment = TxSegment::frame(buffer, u16::try_from(bytes.len()).unwrap());
        let mut burst = ArrayVec::<TxSegment, 1>::new();
        burst.push(segment);
        tx.transmit(&mut burst);
        let sent = burst.is_empty();
        for segment in burst {
            tx.free(segment.buffer);
        }
        sent
    }

    fn send(&mut self, bytes: &[u8]) {
        let start = Instant::now();
        while !self.try_send(bytes) {
            assert!(start.elapsed() < PATIENCE, "the ring never drained");
            thread::yield_now();
        }
    }

    fn try_receive(&mut self) -> Option<Vec<u8>> {
        let rx = &mut self.pairs[0].rx;
        let mut burst = ArrayVec::<RxSegment, 5>::new();
        if rx.receive(&mut burst) == 0 {
            return None;
        }
        let memory = Arc::clone(rx.memory());
        let mut frame = None;
        for segment in burst {
            let mut bytes = vec![0; segment.length.into()];
            memory.part(&segment.buffer, 0, bytes.len()).unwrap().read_into(&mut bytes);
            assert!(segment.end() && frame.replace(bytes).is_none(), "one frame of one buffer");
            rx.free(segment.buffer);
        }
        frame
    }

    fn receive(&mut self) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.try_receive() {
                return frame;
            }
            assert!(start.elapsed() < PATIENCE, "no frame came");
            thread::yield_now();
        }
    }

    /// Sleeps until the queue's interrupt comes, and takes the frame.
    fn receive_sleeping(&mut self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.try_receive() {
                return frame;
            }
            let woken = self.pairs[0].rx.wait(Some(PATIENCE)).unwrap();
            assert_eq!(woken, avf_driver::Wait::Ready, "no interrupt came");
        }
    }

    fn close(self) {
        self.control.close(self.pairs).unwrap();
    }
}

/// Frames of both directions between the guest's VF 0 and the host's VF 1.
fn exchange(guest: &mut End, peer: &mut End) {
    for round in 0..20u8 {
        let payload = vec![round; 46 + usize::from(round) * 70];
        guest.send(&frame(1, 0, &payload));
        assert_eq!(peer.receive(), frame(1, 0, &payload));
        peer.send(&frame(0, 1, &payload));
        assert_eq!(guest.receive(), frame(0, 1, &payload));
    }
}

/// A thread that serves a device as a guest's bus thread does, and passes its events on.
struct BusThread {
    events: mpsc::Receiver<VpciEvent>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl BusThread {
    fn start(device: &Arc<VpciDevice>) -> Self {
        let (sender, events) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (device, stopped) = (Arc::clone(device), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                for event in device.process() {
                    let _ = sender.send(event);
                }
                sleep(&device, Duration::from_millis(10));
            }
        });
        Self { events, stop, thread }
    }

    fn next(&self) -> VpciEvent {
        self.events.recv_timeout(PATIENCE).expect("an event of the bus")
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
    }
}

#[test]
fn frames_go_both_ways_over_a_function_that_came_by_vmbus() {
    let (nic, vm) = (Nic::new(), Vm::new());
    let mut peer = nic.peer(1);
    let free = vm.bus.pages().available();
    let device = vm.plug(&nic, nic.allocate(0), 7);
    let mut guest = drive(&device);
    vm.wait_for(7, DeviceState::DeviceStarted);
    assert_eq!(guest.control.mac().0, mac(0));
    assert!(guest.control.has_doorbell_pages(), "no access is trapped for a frame");
    exchange(&mut guest, &mut peer);
    // A sleeper wakes by the interrupt that the host delivers to the guest.
    let sleeper = thread::spawn(move || (guest.receive_sleeping(), guest));
    peer.send(&frame(0, 1, &[9; 64]));
    let (received, guest) = sleeper.join().unwrap();
    assert_eq!(received, frame(0, 1, &[9; 64]));
    guest.close();
    device.close(PATIENCE).unwrap();
    assert_eq!(vm.bus.pages().available(), free, "all memory was given back");
}

#[test]
fn the_driver_may_come_again_on_the_same_function_and_reset_it() {
    let (nic, vm) = (Nic::new(), Vm::new());
    let mut peer = nic.peer(1);
    let device = vm.plug(&nic, nic.allocate(0), 7);
    for round in 0..3 {
        let mut guest = drive(&device);
        exchange(&mut guest, &mut peer);
        if round == 1 {
            // As a guest's driver does that finds its queues stuck.
            guest.control.reset().unwrap();
            guest.pairs = guest.control.rebuild(guest.pairs).unwrap();
            exchange(&mut guest, &mut peer);
            peer.send(&frame(0, 1, &[8; 64]));
            assert_eq!(guest.receive_sleeping(), frame(0, 1, &[8; 64]));
        }
        // The last one is left as a guest leaves it that was killed.
        if round < 2 {
            guest.close();
        }
    }
    device.close(PATIENCE).unwrap();
}

#[test]
fn a_function_is_given_back_when_the_host_asks_and_another_may_follow() {
    let (nic, vm) = (Nic::new(), Vm::new());
    let mut peer = nic.peer(1);
    let vf = nic.allocate(0);
    let free = vm.bus.pages().available();
    for serial in [7, 8] {
        let device = vm.plug(&nic, vf, serial);
        let mut guest = drive(&device);
        exchange(&mut guest, &mut peer);
        vm.eject(serial);
        assert_eq!(next(&device), VpciEvent::EjectRequested);
        // Everything goes on working until the driver has let go.
        exchange(&mut guest, &mut peer);
        guest.close();
        device.ejected();
        assert_eq!(device.function(), None);
        vm.wait_for(serial, DeviceState::EjectComplete);
        vm.remove(serial, false);
        vm.expect_rescind(device.id());
        device.rescinded();
        assert!(device.is_finished() && device.process().is_empty());
        device.close(PATIENCE).unwrap();
        vm.wait_for(serial, DeviceState::Removed);
        assert_eq!(vm.bus.pages().available(), free);
    }
}

#[test]
fn a_function_that_is_pulled_out_while_it_sends_is_gone_and_nothing_is_left() {
    let (nic, vm) = (Nic::new(), Vm::new());
    let _peer = nic.peer(1);
    let free = vm.bus.pages().available();
    let device = Arc::new(vm.plug(&nic, nic.allocate(0), 7));
    let bus_thread = BusThread::start(&device);
    let mut guest = drive(&device);
    let transport = device.transport().unwrap();
    let start = Instant::now();
    let (mut sent, mut removed) = (0u32, false);
    let events = loop {
        sent += u32::from(guest.try_send(&frame(1, 0, &[5; 100])));
        if sent > 1000 && !removed {
            vm.remove(7, true);
            removed = true;
        }
        let events = guest.control.poll_events(Instant::now()).unwrap();
        if events.contains(&Event::DeviceGone) {
            break events;
        }
        assert!(start.elapsed() < PATIENCE, "the driver never found out");
    };
    assert_eq!(events, [Event::DeviceGone]);
    assert_eq!(bus_thread.next(), VpciEvent::Gone);
    assert_eq!(guest.control.state(), State::Gone);
    assert!(guest.pairs[0].rx.is_stopped() && !guest.try_send(&frame(1, 0, &[5; 100])));
    assert!(matches!(guest.control.stats(), Err(DriverError::DeviceGone)));
    // Whoever still asks the function is told so, and waits for nothing.
    let config = DriverConfig { interrupts: true, ..DriverConfig::without_socket() };
    let config = DriverConfig { memory: transport.memory(&config).unwrap(), ..config };
    let refused = AvfDriver::open_on(Arc::new(transport), config).unwrap_err();
    assert!(matches!(refused, DriverError::DeviceGone), "{refused:?}");
    assert!(matches!(device.transport(), Err(VpciError::Gone)));
    assert!(matches!(device.read_block(1, 4), Err(VpciError::Vsc(_))));
    vm.expect_rescind(device.id());
    bus_thread.stop();
    device.rescinded();
    drop(guest);
    Arc::into_inner(device).unwrap().close(PATIENCE).unwrap();
    vm.wait_for(7, DeviceState::Removed);
    assert_eq!(vm.bus.pages().available(), free);
}

#[test]
fn a_host_that_dies_takes_the_function_with_it() {
    let (nic, vm) = (Nic::new(), Vm::new());
    let device = vm.plug(&nic, nic.allocate(0), 7);
    let mut guest = drive(&device);
    let Vm { worker, bus, control, .. } = vm;
    drop((control, worker));
    let start = Instant::now();
    // The driver finds out by an access, or the bus thread by VMBus.
    while guest.control.state() != State::Gone {
        let _ = guest.control.poll_events(Instant::now());
        let _ = guest.control.stats();
        if let Some(BusEvent::Rescinded(_) | BusEvent::Closed) = bus.next_event(Duration::ZERO) {
            device.rescinded();
        }
        assert!(start.elapsed() < PATIENCE, "the driver never found out");
    }
    drop(guest);
    assert!(device.function().is_none() || device.transport().is_err());
}

#[test]
fn configuration_blocks_go_from_the_guest_to_the_pf_driver_and_back() {
    let (nic, vm) = (Nic::new(), Vm::new());
    let vf = nic.allocate(0);
    let device = Arc::new(vm.plug(&nic, vf, 7));
    let bus_thread = BusThread::start(&device);
    // From a thread that is not the bus thread, as a driver asks.
    device.write_block(3, b"from the guest").unwrap();
    assert_eq!(device.read_block(3, 14).unwrap(), b"from the guest");
    assert_eq!(device.read_block(4, 3).unwrap(), [0; 3]);
    let refused = device.read_block(10_000, 4).unwrap_err();
    assert!(matches!(refused, VpciError::Refused { .. }), "{refused:?}");
    assert!(matches!(device.read_block(3, 129), Err(VpciError::Vsc(_))));
    bus_thread.stop();
    // The PF's side writes a block: the guest is told that it must read it again.
    let write = SriovWriteVfConfigBlock { vf_id: vf, block_id: 5, data: b"from the PF".to_vec() };
    nic.oid(Oid::SriovWriteVfConfigBlock, OidRequestKind::Set, &write);
    assert_eq!(next(&device), VpciEvent::BlocksInvalidated(1 << 5));
    assert_eq!(device.read_block(5, 11).unwrap(), b"from the PF");
    Arc::into_inner(device).unwrap().close(PATIENCE).unwrap();
}
