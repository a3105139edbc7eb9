//! A NIC, a switch that is played, a worker, and a guest, all in one process.

#![allow(dead_code, unreachable_pub)]

pub mod guest;
pub mod moving;
pub mod nic;
pub mod switch;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use device_control::{DeviceControlClient, DriverName, SentRequest, Target};
use partition::{
    Partition,
    host::VmbusHost,
    user::{UserPartition, UserPartitionConfig},
};
use pcivirt_protocol::NtStatus;
use serde::Serialize;
use tempfile::TempDir;
use vm_worker::{
    VmWorker, WorkerConfig,
    control::{
        AdapterConfig, AdapterNumber, DeviceName, DeviceState, GuestState, OfferVf, PrivateControl,
        REPORT_CAPACITY, RemoveVf, STATUS_CAPACITY, WorkerReport, WorkerStatus,
    },
};

use guest::Guest;

/// Nothing here takes as long as this, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Asks until it is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A worker with its partition, and a client of it.
pub struct Vm {
    pub client: Client,
    pub worker: VmWorker,
    pub partition: Arc<UserPartition>,
    pub directory: TempDir,
}

impl Vm {
    /// A worker, and the guest that it serves.
    pub fn start() -> (Self, Guest) {
        Self::start_on(|partition| partition)
    }

    /// Likewise, on a partition that is made of the user-mode one.
    pub fn start_on<P: Partition + 'static>(
        wrap: impl FnOnce(Arc<UserPartition>) -> Arc<P>,
    ) -> (Self, Guest) {
        let directory = tempfile::tempdir().unwrap();
        let config = UserPartitionConfig::with_memory(16 << 20);
        let (partition, socket) = UserPartition::new(&config).unwrap();
        let partition = Arc::new(partition);
        let server = vmbus::server::ServerConfig::default();
        let served = wrap(partition.clone());
        let host = VmbusHost::start(served.clone(), server).unwrap();
        let path = directory.path().join("web.sock");
        let config = WorkerConfig::new("web", &path);
        let worker = VmWorker::start(config, served, host).unwrap();
        let client = Client::connect(path);
        (Self { client, worker, partition, directory }, Guest::new(socket))
    }

    pub fn another_client(&self) -> Client {
        Client::connect(self.directory.path().join("web.sock"))
    }
}

/// A client of a worker, as the virtualization stack is one.
pub struct Client {
    control: DeviceControlClient,
    report: Option<SentRequest>,
    /// What was reported, in order.
    pub reports: Vec<WorkerReport>,
    pub devices: BTreeMap<DeviceName, DeviceState>,
    pub guest: Option<GuestState>,
    /// Which life of the guest was reported last.
    pub life: u64,
}

impl Client {
    fn connect(path: PathBuf) -> Self {
        let name = DriverName::new("stack").unwrap();
        let control = DeviceControlClient::connect(path, &name, LIMIT).unwrap();
        let (reports, devices) = (Vec::new(), BTreeMap::new());
        Self { control, report: None, reports, devices, guest: None, life: 0 }
    }

    pub fn raw(&self, code: u32, input: &[u8], capacity: usize) -> Result<Vec<u8>, NtStatus> {
        self.control.private(code, input, capacity, LIMIT).map_err(|error| error.status())
    }

    pub fn ask(&self, control: PrivateControl, input: &impl Serialize) -> Result<(), NtStatus> {
        self.raw(control.code(), &serde_json::to_vec(input).unwrap(), 0).map(|_| ())
    }

    pub fn status(&self) -> WorkerStatus {
        let json = self.raw(PrivateControl::Status.code(), &[], STATUS_CAPACITY).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    pub fn set_adapter(&self, config: &AdapterConfig) {
        self.ask(PrivateControl::SetAdapter, config).unwrap();
    }

    pub fn remove_adapter(&self, adapter: u32) -> Result<(), NtStatus> {
        self.ask(PrivateControl::RemoveAdapter, &AdapterNumber { adapter })
    }

    pub fn offer(&self, offer: &OfferVf) -> Result<(), NtStatus> {
        self.ask(PrivateControl::OfferVf, offer)
    }

    pub fn eject(&self, name: DeviceName) -> Result<(), NtStatus> {
        self.ask(PrivateControl::EjectVf, &name)
    }

    pub fn remove(&self, name: DeviceName, surprise: bool) {
        let DeviceName { adapter, serial } = name;
        self.ask(PrivateControl::RemoveVf, &RemoveVf { adapter, serial, surprise }).unwrap();
    }

    /// Takes the next report, if it comes in time.
    pub fn next_report(&mut self, limit: Duration) -> Option<WorkerReport> {
        let request = self.report.take().unwrap_or_else(|| {
            let target = Target::Private(PrivateControl::NextReport.code());
            self.control.send(target, &[], REPORT_CAPACITY).unwrap()
        });
        if !request.wait_for(limit) {
            self.report = Some(request);
            return None;
        }
        let report: WorkerReport =
            serde_json::from_slice(&request.wait_output(LIMIT).unwrap()).unwrap();
        match &report {
            WorkerReport::Guest { state, life } => {
                self.guest = Some(*state);
                self.life = *life;
            }
            WorkerReport::Device { adapter, serial, state } => {
                let name = DeviceName { adapter: *adapter, serial: *serial };
                self.devices.insert(name, state.clone());
            }
            WorkerReport::SyntheticNic { .. } => {}
        }
        self.reports.push(report.clone());
        Some(report)
    }

    /// Takes reports until the device is in this state.
    pub fn expect(&mut self, name: DeviceName, state: DeviceState) {
        let deadline = Instant::now() + LIMIT;
        while self.devices.get(&name) != Some(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                self.next_report(left).is_some(),
                "{name:?} did not become {state:?}: {:?}",
                self.reports
            );
        }
    }

    /// Takes reports until the guest is in this state.
    pub fn expect_guest(&mut self, state: GuestState) {
        let deadline = Instant::now() + LIMIT;
        while self.guest != Some(state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(self.next_report(left).is_some(), "the guest is not {state:?}");
        }
    }
}
