//! A host side between a QEMU that is played, a real NIC, and a client as the virtualization stack is one.
#![allow(dead_code, unreachable_pub)]

#[path = "../../../vm_worker/tests/common/nic.rs"]
pub mod nic;
pub mod qemu;

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use device_control::{DeviceControlClient, DriverName, Target};
use pcivirt_protocol::NtStatus;
use qemu_partition::{QemuHost, QemuHostConfig, SlotTimes, StartError};
use serde::Serialize;
use tempfile::TempDir;
use vm_worker::control::{
    AdapterConfig, AdapterNumber, DeviceName, DeviceState, GuestState, OfferVf, PrivateControl,
    REPORT_CAPACITY, RemoveVf, STATUS_CAPACITY, SyntheticNicKind, SyntheticNicState, WorkerReport,
    WorkerStatus,
};

use qemu::{Machine, Qemu};

/// Nothing here takes as long as this, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(100);
pub const MAC: &str = "02:00:00:00:00:01";
pub const OTHER_MAC: &str = "02:00:00:00:00:02";
pub const READY: SyntheticNicState = SyntheticNicState::Ready { failover: true };

/// A guest that follows the button at once, or never.
pub const NEVER: SlotTimes =
    SlotTimes { patience: Duration::from_secs(3600), pause: Duration::from_millis(1) };
/// A guest that is asked again at once.
pub const IMPATIENT: SlotTimes =
    SlotTimes { patience: Duration::from_millis(20), pause: Duration::from_millis(1) };

pub struct Vm {
    pub client: Client,
    pub gone: Receiver<()>,
    pub host: QemuHost,
    pub qemu: Qemu,
    pub directory: TempDir,
}

impl Vm {
    pub fn start(machine: Machine) -> Self {
        Self::start_with(machine, NEVER)
    }

    pub fn start_with(machine: Machine, times: SlotTimes) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let qemu = Qemu::start(directory.path(), machine);
        let config = config(&directory, &qemu);
        let (tell, gone) = channel();
        let tell = move || tell.send(()).unwrap_or_default();
        let host = QemuHost::start_with(&config, times, tell).unwrap();
        let client = Client::connect(host.path().unwrap());
        Self { client, gone, host, qemu, directory }
    }

    /// With an adapter, whose NIC is ready.
    pub fn with_adapter(machine: Machine) -> Self {
        let mut vm = Self::start(machine);
        vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
        vm.client.expect_nic(0, READY);
        vm
    }
}

fn config(directory: &TempDir, qemu: &Qemu) -> QemuHostConfig {
    QemuHostConfig {
        name: "web".to_owned(),
        socket: directory.path().join("web.sock"),
        qmp: qemu.socket.clone(),
        resume: false,
    }
}

/// Why a host side does not start.
pub fn refused(machine: Machine) -> StartError {
    let directory = tempfile::tempdir().unwrap();
    let qemu = Qemu::start(directory.path(), machine);
    let error = QemuHost::start(&config(&directory, &qemu), || {}).unwrap_err();
    qemu.expect_nothing();
    error
}

pub fn adapter(number: u32, mac: &str) -> AdapterConfig {
    AdapterConfig {
        adapter: number,
        mac: mac.to_owned(),
        switch: "/nowhere".into(),
        port: "web".to_owned(),
        max_channels: 1,
        kind: SyntheticNicKind::VirtioNet,
    }
}

pub const fn name(serial: u32) -> DeviceName {
    DeviceName { adapter: 0, serial }
}

/// A client as the virtualization stack is one.
pub struct Client {
    control: DeviceControlClient,
    /// What was reported, in order.
    pub reports: Vec<WorkerReport>,
}

impl Client {
    pub fn connect(path: &std::path::Path) -> Self {
        let name = DriverName::new("stack").unwrap();
        let control = DeviceControlClient::connect(path, &name, LIMIT).unwrap();
        Self { control, reports: Vec::new() }
    }

    pub fn raw(&self, code: u32, input: &[u8], capacity: usize) -> Result<Vec<u8>, NtStatus> {
        self.control.private(code, input, capacity, LIMIT).map_err(|error| error.status())
    }

    pub fn ask(&self, control: PrivateControl, input: &impl Serialize) -> Result<(), NtStatus> {
        self.raw(control.code(), &serde_json::to_vec(input).unwrap(), 0).map(|_| ())
    }

    pub fn offer(&self, offer: &OfferVf) {
        self.ask(PrivateControl::OfferVf, offer).unwrap();
    }

    pub fn eject(&self, serial: u32) {
        self.ask(PrivateControl::EjectVf, &name(serial)).unwrap();
    }

    pub fn remove(&self, serial: u32) {
        let remove = RemoveVf { adapter: 0, serial, surprise: false };
        self.ask(PrivateControl::RemoveVf, &remove).unwrap();
    }

    pub fn remove_adapter(&self, adapter: u32) {
        self.ask(PrivateControl::RemoveAdapter, &AdapterNumber { adapter }).unwrap();
    }

    pub fn status(&self) -> WorkerStatus {
        let json = self.raw(PrivateControl::Status.code(), &[], STATUS_CAPACITY).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    pub fn next_report(&mut self) -> WorkerReport {
        let target = Target::Private(PrivateControl::NextReport.code());
        let request = self.control.send(target, &[], REPORT_CAPACITY).unwrap();
        let output = request.wait_output(LIMIT);
        let output = output.unwrap_or_else(|error| panic!("{error} after {:?}", self.reports));
        let report: WorkerReport = serde_json::from_slice(&output).unwrap();
        self.reports.push(report.clone());
        report
    }

    fn expect(&mut self, wanted: impl Fn(&WorkerReport) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !wanted(&self.next_report()) {
            assert!(Instant::now() < deadline, "{:?}", self.reports);
        }
    }

    pub fn expect_device(&mut self, of: u32, wanted: DeviceState) {
        self.expect(|report| {
            matches!(report, WorkerReport::Device { adapter: 0, serial, state }
                if *serial == of && *state == wanted)
        });
    }

    pub fn expect_nic(&mut self, of: u32, wanted: SyntheticNicState) {
        self.expect(|report| *report == WorkerReport::SyntheticNic { adapter: of, state: wanted });
    }

    /// The life that it is in.
    pub fn expect_guest(&mut self, wanted: GuestState) -> u64 {
        loop {
            if let WorkerReport::Guest { state, life } = self.next_report()
                && state == wanted
            {
                return life;
            }
        }
    }

    /// Why a VF was not offered.
    pub fn expect_failure(&mut self, of: u32) -> String {
        loop {
            if let WorkerReport::Device { serial, state, .. } = self.next_report()
                && serial == of
                && let DeviceState::OfferFailed { cause, .. } = state
            {
                return cause.unwrap();
            }
        }
    }
}
