//! A stack with a real adapter, a played switch and played VMs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adapter::control::{AdapterStatus, PrivateControl as NicControl};
use adapter::{AdapterConfig, AdapterServer};
use device_control::{DeviceControlClient, DeviceControlServer, DriverName};
use ndis::{AdapterConfiguration, Keywords};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stack_process::control::{
    AdapterChange, AdapterReport, EVENTS_CAPACITY, Events, NextEvents, OUTCOME_CAPACITY, Outcome,
    PrivateControl, STATUS_CAPACITY, SetAdapter, StackStatus,
};
use stack_process::{Configuration, StackProcess};
use virtualization_stack::{ActiveStep, NicState, State, SyntheticStep};

use crate::guests::{Guests, PATIENCE};

pub struct World {
    pub nic: Option<AdapterServer>,
    pub switch: Option<DeviceControlServer>,
    pub web: Option<DeviceControlServer>,
    pub stack: Option<StackProcess>,
    pub guests: Arc<Guests>,
    pub directory: tempfile::TempDir,
}

/// Two adapters of one VM on one switch; `more` is added to the file.
fn configuration(directory: &Path, more: &str) -> PathBuf {
    let file = directory.join("stack.toml");
    let text = format!(
        r#"[[nic]]
name = "nic0"
directory = "nic0"
[[switch]]
name = "external"
socket = "switch/control.sock"
nic = "nic0"
iov = true
[[vm]]
name = "web"
socket = "web/control.sock"
[[vm.adapter]]
name = "net0"
mac = "00:15:5D:00:00:01"
switch = "external"
iov-weight = 100
queue-pairs = 2
[[vm.adapter]]
name = "net1"
mac = "00:15:5D:00:00:02"
switch = "external"
iov-weight = 100
vlan = 7
{more}"#
    );
    std::fs::write(&file, text).unwrap();
    file
}

impl World {
    /// Everything runs.
    pub fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let guests = Guests::new();
        let mut world = Self { nic: None, switch: None, web: None, stack: None, guests, directory };
        world.write(more);
        world.start_stack();
        world.start_nic();
        world.start_switch();
        world.start_web();
        world
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub fn write(&self, more: &str) {
        configuration(self.directory.path(), more);
    }

    pub fn start_stack(&mut self) {
        let configuration = Configuration::read(&self.path("stack.toml")).unwrap();
        self.stack = Some(StackProcess::start(configuration, &self.path("stack")).unwrap());
    }

    pub fn start_nic(&mut self) {
        let config =
            AdapterConfig { total_vfs: 4, ..AdapterConfig::new("nic0", self.path("nic0")) };
        let keywords = Keywords { sriov_preferred: true, num_vfs: Some(4), ..Keywords::default() };
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
        self.nic = Some(AdapterServer::start(config, configuration).unwrap());
    }

    pub fn start_switch(&mut self) {
        self.switch = Some(self.guests.start_switch(&self.path("switch/control.sock")));
    }

    pub fn start_web(&mut self) {
        self.web = Some(self.guests.start_vm("web", &self.path("web/control.sock")));
    }

    pub fn stop_web(&mut self) {
        self.guests.stop_vm("web", self.web.take().unwrap());
    }

    fn client(path: &Path) -> DeviceControlClient {
        let name = DriverName::new("test").unwrap();
        DeviceControlClient::connect_when_ready(path, &name, PATIENCE).unwrap()
    }

    pub fn ask<T: DeserializeOwned>(
        &self,
        control: PrivateControl,
        input: &impl Serialize,
        room: usize,
    ) -> T {
        let client = Self::client(&self.path("stack/control.sock"));
        let input = serde_json::to_vec(input).unwrap();
        let answer = client.private(control.code(), &input, room, PATIENCE).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    pub fn status(&self) -> StackStatus {
        self.ask(PrivateControl::Status, &(), STATUS_CAPACITY)
    }

    pub fn events(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let (mut after, last) = (0, self.status().last_event);
        while after < last {
            let events: Events =
                self.ask(PrivateControl::NextEvents, &NextEvents { after }, EVENTS_CAPACITY);
            assert_eq!(events.missed, 0);
            after = events.events.last().unwrap().sequence;
            texts.extend(events.events.into_iter().map(|record| record.text));
        }
        texts
    }

    /// Waits for events until the status is as it should be.
    #[track_caller]
    pub fn until(&self, what: &str, done: impl Fn(&StackStatus) -> bool) -> StackStatus {
        self.until_at(&self.path("stack/control.sock"), what, done)
    }

    /// The same with any stack.
    #[track_caller]
    pub fn until_at(
        &self,
        socket: &Path,
        what: &str,
        done: impl Fn(&StackStatus) -> bool,
    ) -> StackStatus {
        let client = Self::client(socket);
        let start = Instant::now();
        loop {
            let code = PrivateControl::Status.code();
            let answer = client.private(code, b"null", STATUS_CAPACITY, PATIENCE).unwrap();
            let status: StackStatus = serde_json::from_slice(&answer).unwrap();
            if done(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {status:#?}");
            let next = NextEvents { after: status.last_event };
            let input = serde_json::to_vec(&next).unwrap();
            let code = PrivateControl::NextEvents.code();
            let sent = client.send(device_control::Target::Private(code), &input, EVENTS_CAPACITY);
            // Not everything that is shown is an event.
            sent.unwrap().wait_for(Duration::from_secs(1));
        }
    }

    pub fn until_active(&self) -> StackStatus {
        self.until("VFs become active", |status| {
            adapters(status).all(|a| a.state == State::Active(ActiveStep::Resting))
                && status.nics[0].state == NicState::Ready
        })
    }

    pub fn until_synthetic(&self) -> StackStatus {
        self.until("VFs are given back", |status| {
            adapters(status).all(|a| a.state == State::Synthetic(SyntheticStep::Resting))
        })
    }

    pub fn set(&self, adapter: &str, change: AdapterChange) -> Outcome {
        let asked = SetAdapter { vm: "web".into(), adapter: adapter.into(), change };
        self.ask(PrivateControl::SetAdapter, &asked, OUTCOME_CAPACITY)
    }

    pub fn nic_client(&self) -> DeviceControlClient {
        Self::client(&self.path("nic0/control.sock"))
    }

    /// What the NIC says of itself.
    pub fn nic_status(&self) -> AdapterStatus {
        let room = adapter::control::STATUS_CAPACITY;
        let code = NicControl::Status.code();
        let answer = self.nic_client().private(code, &[], room, PATIENCE).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    /// Whether any reason of an adapter has this code.
    pub fn has_reason(adapter: &AdapterReport, code: &str) -> bool {
        adapter.reasons.iter().any(|reason| reason.code == code)
    }
}

pub fn adapters(status: &StackStatus) -> impl Iterator<Item = &AdapterReport> {
    status.vms.iter().flat_map(|vm| &vm.adapters)
}
