//! Those who talk to a switch, played.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use device_control::{ClientError, DeviceControlClient, DriverName, SentRequest, Target};
use netvsp::{
    TransmitMetadata,
    client::{LargeBuffers, NetVsc, NotSent, Upcall, VscConfig},
};
use pcivirt_protocol::NtStatus;
use serde::{Serialize, de::DeserializeOwned};
use virtual_switch::{
    control::{
        BufferKind, ChannelName, ChannelUpcall, DataPath, GpadlMapped, GuestState, MemoryRegion,
        OpenChannel, PageRange, PortCommand, PortConfig, PortName, PortReport, PortStatus,
        PrivateControl, REPORT_CAPACITY, STATUS_CAPACITY, SwitchReport, SwitchStatus,
        UPCALL_CAPACITY, UplinkReport, VfCommand,
    },
    server::{SwitchConfig, SwitchServer},
};
use vmbus::{Channel, EventFd, testing::TestMemory};
use vmbus_protocol::GpadlRange;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const RECEIVE: u32 = 1;
const SEND: u32 = 2;
const RING_PAGES: usize = 17;
pub(crate) const SERIAL: u32 = 7;

pub(crate) fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, number]
}

pub(crate) fn mac_text(number: u8) -> String {
    ndis_protocol::MacAddress::new(mac(number)).to_string()
}

pub(crate) fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&to[..], &from, &[0x88, 0xB5], payload].concat();
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// Waits for `done` while `turn` is called.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not yet");
        std::thread::yield_now();
    }
}

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) server: SwitchServer,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut SwitchConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = SwitchConfig::new("external", directory.path().join("switch"));
        change(&mut config);
        let server = SwitchServer::start(config).unwrap();
        Self { directory, server }
    }

    pub(crate) fn socket(&self) -> &Path {
        self.server.control_path().unwrap()
    }

    pub(crate) fn stack(&self) -> Stack {
        Stack {
            client: connect(self.socket(), "stack"),
            pending: None,
            uplinks: VecDeque::new(),
            requests: BTreeMap::new(),
        }
    }

    /// A worker with a guest that is up on a port.
    pub(crate) fn guest(&self, port: &str) -> VmWorker {
        let mut worker = VmWorker::new(self.socket(), port);
        worker.open().unwrap();
        worker.run_until("up", |worker| worker.up);
        worker
    }
}

pub(crate) fn connect(socket: &Path, name: &str) -> DeviceControlClient {
    DeviceControlClient::connect(socket, &DriverName::new(name).unwrap(), PATIENCE).unwrap()
}

pub(crate) fn call(
    client: &DeviceControlClient,
    control: PrivateControl,
    input: &impl Serialize,
    fds: &[OwnedFd],
) -> Result<(), NtStatus> {
    let input = serde_json::to_vec(input).unwrap();
    let target = Target::Private(control.code());
    let sent = client.send_with_fds(target, &input, 0, fds, PATIENCE).unwrap();
    match sent.wait_output(PATIENCE) {
        Ok(_) => Ok(()),
        Err(ClientError::Failed { status, .. }) => Err(status),
        Err(error) => panic!("{error}"),
    }
}

fn pend(
    client: &DeviceControlClient,
    control: PrivateControl,
    input: &[u8],
    capacity: usize,
) -> SentRequest {
    client.send(Target::Private(control.code()), input, capacity).unwrap()
}

fn answer<T: DeserializeOwned>(request: SentRequest) -> Result<T, NtStatus> {
    match request.wait_output(PATIENCE) {
        Ok(output) => Ok(serde_json::from_slice(&output).unwrap()),
        Err(ClientError::Failed { status, .. }) => Err(status),
        Err(error) => panic!("{error}"),
    }
}

/// A virtualization stack.
pub(crate) struct Stack {
    pub(crate) client: DeviceControlClient,
    pending: Option<SentRequest>,
    /// Reports of the uplink, which came in between.
    pub(crate) uplinks: VecDeque<UplinkReport>,
    /// The last request of each port that was reported.
    requests: BTreeMap<String, u64>,
}

impl Stack {
    pub(crate) fn call(
        &self,
        control: PrivateControl,
        input: &impl Serialize,
    ) -> Result<(), NtStatus> {
        call(&self.client, control, input, &[])
    }

    pub(crate) fn set(&self, config: &PortConfig) {
        self.call(PrivateControl::SetPort, config).unwrap();
    }

    /// Makes a port for this number's address.
    pub(crate) fn port(&self, number: u8) -> PortConfig {
        let config = PortConfig { sriov: true, ..PortConfig::new(name(number), mac_text(number)) };
        self.set(&config);
        config
    }

    pub(crate) fn command(&self, port: &str, command: VfCommand) {
        let command = PortCommand { port: port.to_owned(), command };
        self.call(PrivateControl::PortCommand, &command).unwrap();
    }

    /// Answers the request that was reported last.
    pub(crate) fn complete(&self, port: &str, active: DataPath) {
        let request = self.requests.get(port).copied().unwrap_or_default();
        self.command(port, VfCommand::CompleteSwitch { active, request });
    }

    /// The next report, if there is one already or the switch has one to send.
    pub(crate) fn poll_report(&mut self) -> Option<PortReport> {
        loop {
            let client = &self.client;
            let pending = self.pending.get_or_insert_with(|| {
                pend(client, PrivateControl::NextReport, &[], REPORT_CAPACITY)
            });
            if !pending.is_done() {
                return None;
            }
            match answer(self.pending.take()?).unwrap() {
                SwitchReport::Port(report) => {
                    self.requests.insert(report.port.clone(), report.request);
                    return Some(report);
                }
                SwitchReport::Uplink(report) => self.uplinks.push_back(report),
            }
        }
    }

    /// Reports until one of the uplink is as wanted.
    pub(crate) fn uplink_report(&mut self, wanted: impl Fn(&UplinkReport) -> bool) -> UplinkReport {
        let mut found = None;
        wait_for("a report of the uplink", || {
            self.poll_report();
            found = std::iter::from_fn(|| self.uplinks.pop_front()).find(&wanted);
            found.is_some()
        });
        found.unwrap()
    }

    pub(crate) fn report(&mut self) -> PortReport {
        let mut report = None;
        wait_for("a report", || {
            report = self.poll_report();
            report.is_some()
        });
        report.unwrap()
    }

    /// Reports until one of this port is as wanted.
    pub(crate) fn report_of(
        &mut self,
        port: &str,
        wanted: impl Fn(&PortReport) -> bool,
    ) -> PortReport {
        loop {
            let report = self.report();
            if report.port == port && wanted(&report) {
                return report;
            }
        }
    }

    pub(crate) fn status(&self) -> SwitchStatus {
        let target = Target::Private(PrivateControl::Status.code());
        let output = self.client.call_output(target, &[], STATUS_CAPACITY, PATIENCE).unwrap();
        serde_json::from_slice(&output).unwrap()
    }

    pub(crate) fn port_status(&self, port: &str) -> PortStatus {
        self.status().ports.into_iter().find(|status| status.port == port).unwrap()
    }
}

pub(crate) fn name(number: u8) -> String {
    format!("vm{number}")
}

pub(crate) const READY: GuestState = GuestState::Ready { sriov: true };

/// A VM worker and its guest, on one port.
pub(crate) struct VmWorker {
    pub(crate) client: DeviceControlClient,
    pub(crate) port: String,
    pub(crate) nic: NetVsc,
    pub(crate) memory: TestMemory,
    pub(crate) ring: Vec<u64>,
    receive: Vec<u64>,
    send: Vec<u64>,
    upcall: Option<SentRequest>,
    /// What the switch asked for, beside GPADLs.
    pub(crate) asked: VecDeque<ChannelUpcall>,
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) up: bool,
    /// What NetVSC has told.
    pub(crate) told: Vec<Upcall>,
    /// Whether GPADLs are looked up as they are asked for.
    pub(crate) maps: bool,
    /// Which life of the guest it is.
    pub(crate) life: u64,
}

impl VmWorker {
    pub(crate) fn new(socket: &Path, port: &str) -> Self {
        let mut memory = TestMemory::new(1400);
        let (receive_buffer, receive) = memory.buffer(512 * 4096);
        let (send_buffer, send) = memory.buffer(48 * 4096);
        let (large, frames) = memory.buffer(8 * LargeBuffers::PAGES as u32 * 4096);
        let large = LargeBuffers::new(large, frames);
        let config = VscConfig::new(RECEIVE, SEND);
        let nic = NetVsc::new(config, receive_buffer, send_buffer, Some(large));
        let ring = memory.allocate(2 * RING_PAGES);
        Self {
            client: connect(socket, "worker"),
            port: port.to_owned(),
            nic,
            memory,
            ring,
            receive,
            send,
            upcall: None,
            asked: VecDeque::new(),
            received: Vec::new(),
            up: false,
            told: Vec::new(),
            maps: true,
            life: 1,
        }
    }

    pub(crate) fn open_request(&self) -> OpenChannel {
        let ring = GpadlRange::pages(self.ring.clone()).unwrap();
        let length = self.memory.mapping.len() as u64;
        OpenChannel {
            port: self.port.clone(),
            channel: 0,
            ring: PageRange::from(&ring),
            downstream_page_offset: RING_PAGES as u32,
            memory: vec![MemoryRegion { gpa: 0, length, offset: 0 }],
            life: self.life,
        }
    }

    /// Opens the primary channel.
    pub(crate) fn open(&mut self) -> Result<(), NtStatus> {
        let range = GpadlRange::pages(self.ring.clone()).unwrap();
        let rings =
            vmbus::GuestBuffer::new(&self.memory.map, &range.page_frames, 0, range.byte_count);
        let (upstream, downstream) = rings.unwrap().rings(RING_PAGES).unwrap();
        upstream.clear();
        downstream.clear();
        let (to_host, to_guest) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let own = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().unwrap();
        let fds = [own(&self.memory.fd), own(&to_guest), own(&to_host.receiving_end().unwrap())];
        call(&self.client, PrivateControl::OpenChannel, &self.open_request(), &fds)?;
        let channel = Channel::new(downstream, upstream, to_host, to_guest).unwrap();
        assert!(self.nic.open(0, channel));
        Ok(())
    }

    /// The guest closes its channel.
    pub(crate) fn close(&mut self) {
        self.up = false;
        self.nic.close();
        let channel = ChannelName { port: self.port.clone(), channel: 0 };
        call(&self.client, PrivateControl::CloseChannel, &channel, &[]).unwrap();
    }

    /// One turn of the guest's driver and of its host's control side.
    pub(crate) fn turn(&mut self) {
        let received = &mut self.received;
        self.nic.poll(0, |burst| {
            for frame in burst.frames() {
                let mut bytes = vec![0; frame.length as usize];
                frame.read_into(&mut bytes);
                received.push(bytes);
            }
        });
        self.nic.flush(0);
        while let Some(upcall) = self.nic.next_upcall() {
            self.up |= matches!(upcall, Upcall::Up { .. });
            self.told.push(upcall);
        }
        let (client, port) = (&self.client, &self.port);
        let upcall = self.upcall.get_or_insert_with(|| {
            let name = serde_json::to_vec(&PortName { port: port.clone() }).unwrap();
            pend(client, PrivateControl::NextUpcall, &name, UPCALL_CAPACITY)
        });
        if !upcall.is_done() {
            return;
        }
        let Some(request) = self.upcall.take() else { return };
        match answer::<ChannelUpcall>(request).unwrap() {
            ChannelUpcall::MapGpadl { gpadl, buffer } if self.maps => {
                let frames = match (gpadl, buffer) {
                    (RECEIVE, BufferKind::Receive) => &self.receive,
                    (SEND, BufferKind::Send) => &self.send,
                    other => panic!("{other:?}"),
                };
                let range = GpadlRange::pages(frames.clone()).unwrap();
                let pages = Some(PageRange::from(&range));
                let mapped = GpadlMapped { port: self.port.clone(), buffer, pages };
                call(&self.client, PrivateControl::GpadlMapped, &mapped, &[]).unwrap();
            }
            other => self.asked.push_back(other),
        }
    }

    pub(crate) fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        wait_for(what, || {
            self.turn();
            done(self)
        });
    }

    /// Sends a frame, waiting for room.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        wait_for("room", || {
            let sent = self.nic.send(0, bytes, &TransmitMetadata::default());
            self.turn();
            match sent {
                Ok(()) => true,
                Err(NotSent::NoBuffer | NotSent::RingFull) => false,
                Err(error) => panic!("{error:?}"),
            }
        });
    }

    /// Takes the frames that came.
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.received)
    }

    /// Waits for this one frame, and no other.
    pub(crate) fn expect(&mut self, bytes: &[u8]) {
        self.run_until("a frame", |worker| !worker.received.is_empty());
        assert_eq!(self.take(), [bytes]);
    }
}
