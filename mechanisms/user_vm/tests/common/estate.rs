//! All that VMs with two paths need, each as it runs in a process of its own, here in the test's: an adapter, a switch, the
//! virtualization stack, and a worker for each VM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use adapter::{AdapterConfig, AdapterServer};
use device_control::{DeviceControlClient, DriverName};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::MacAddress;
use partition::{
    host::VmbusHost,
    user::{UserPartition, UserPartitionConfig},
};
use stack_process::{
    AdapterSettings, Configuration, NicSettings, StackProcess, SwitchReach, SwitchSettings,
    VmSettings,
    control::{AdapterChange, Outcome, PrivateControl, SetAdapter},
};
use user_vm::{
    AdapterStatistics, DataPath, GuestInterfaceKind, StartFailureKind, UserVm, UserVmError,
};
use virtual_switch::server::{SwitchConfig, SwitchServer, SwitchUplink};
use vm_worker::{VmWorker, WorkerConfig};
use vmbus::server::ServerConfig;

use super::{PATIENCE, eventually};

/// Bytes of a VM's memory.
const MEMORY: usize = 64 << 20;

/// A VM with its worker. The VM ends before the worker does.
pub struct Guest {
    pub vm: UserVm,
    _worker: VmWorker,
}

pub struct Estate {
    pub guests: Vec<Guest>,
    pub stack: Option<StackProcess>,
    pub switch: Option<SwitchServer>,
    pub adapter: Option<AdapterServer>,
    pub directory: tempfile::TempDir,
}

fn folder(root: &Path, name: &str) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn name_of(vm: usize) -> String {
    format!("vm{vm}")
}

impl Estate {
    /// So many VMs, with addresses 10.0.0.1 on, that may each have a VF. `None`, with the reason printed, where the
    /// system forbids what VMs need.
    pub fn start(vms: usize) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut estate =
            Self { guests: Vec::new(), stack: None, switch: None, adapter: None, directory };
        estate.start_adapter();
        estate.start_switch();
        for vm in 0..vms {
            let guest = estate.boot(vm)?;
            estate.guests.push(guest);
        }
        let root = estate.directory.path();
        let settings = |vm: usize| {
            let mac = MacAddress::new([0, 0x15, 0x5D, 0, 1, vm as u8]);
            let mut adapter = AdapterSettings::new("net0", mac);
            adapter.switch = Some("external".into());
            adapter.iov_weight = 100;
            VmSettings {
                name: name_of(vm),
                socket: root.join(format!("{}.sock", name_of(vm))),
                adapters: vec![adapter],
            }
        };
        let configuration = Configuration {
            nics: vec![NicSettings { name: "nic0".into(), directory: root.join("nic0") }],
            switches: vec![SwitchSettings {
                name: "external".into(),
                socket: virtual_switch::server::control_socket(&root.join("switch")),
                kind: SwitchReach::External { nic: "nic0".into(), teamed: false },
                iov: true,
            }],
            vms: (0..vms).map(settings).collect(),
            ..Configuration::default()
        };
        let stack = StackProcess::start(configuration, &folder(root, "stack")).unwrap();
        estate.stack = Some(stack);
        Some(estate)
    }

    pub fn start_adapter(&mut self) {
        let directory = folder(self.directory.path(), "nic0");
        let config = AdapterConfig { total_vfs: 4, ..AdapterConfig::new("nic0", directory) };
        let keywords = Keywords { sriov_preferred: true, num_vfs: Some(4), ..Keywords::default() };
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
        self.adapter = Some(AdapterServer::start(config, configuration).unwrap());
    }

    pub fn start_switch(&mut self) {
        let root = self.directory.path();
        let mut config = SwitchConfig::new("external", folder(root, "switch"));
        config.uplink = SwitchUplink::Adapter(root.join("nic0"));
        self.switch = Some(SwitchServer::start(config).unwrap());
    }

    fn boot(&self, vm: usize) -> Option<Guest> {
        let (partition, guest) =
            UserPartition::new(&UserPartitionConfig::with_memory(MEMORY)).unwrap();
        let partition = Arc::new(partition);
        let host = VmbusHost::start(partition.clone(), ServerConfig::default()).unwrap();
        let name = name_of(vm);
        let socket = self.directory.path().join(format!("{name}.sock"));
        let worker = VmWorker::start(WorkerConfig::new(name, socket), partition, host).unwrap();
        let config = super::vmbus::config(vm as u8, GuestInterfaceKind::Auto);
        match UserVm::spawn_on(&config, guest) {
            Ok(vm) => Some(Guest { vm, _worker: worker }),
            Err(UserVmError::Start { failure, .. })
                if failure.kind == StartFailureKind::NamespacesForbidden =>
            {
                eprintln!("skipped: {failure}");
                None
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    pub fn vm(&self, vm: usize) -> &UserVm {
        &self.guests[vm].vm
    }

    pub fn statistics(&self, vm: usize) -> AdapterStatistics {
        self.vm(vm).statistics().unwrap().adapters[0].clone()
    }

    /// Waits until all VMs send on this path.
    pub fn all_on(&self, path: DataPath) {
        for vm in 0..self.guests.len() {
            eventually(&format!("vm{vm} on {path:?}: {:?}", self.statistics(vm)), || {
                self.statistics(vm).path == Some(path)
            });
        }
    }

    /// Gives all VMs this weight: 0 takes their VFs away.
    pub fn set_weight(&self, weight: u32) {
        let stack = self.stack.as_ref().unwrap();
        let name = DriverName::new("test").unwrap();
        let client = DeviceControlClient::connect(stack.control_path(), &name, PATIENCE).unwrap();
        for vm in 0..self.guests.len() {
            let change = AdapterChange { iov_weight: Some(weight), ..AdapterChange::default() };
            let input = SetAdapter { vm: name_of(vm), adapter: "net0".into(), change };
            let code = PrivateControl::SetAdapter.code();
            let input = serde_json::to_vec(&input).unwrap();
            let capacity = stack_process::control::OUTCOME_CAPACITY;
            let answer = client.private(code, &input, capacity, PATIENCE).unwrap();
            let outcome: Outcome = serde_json::from_slice(&answer).unwrap();
            assert_eq!(outcome, Outcome::Done);
        }
    }
}

impl Drop for Estate {
    /// In the order in which nobody misses anybody.
    fn drop(&mut self) {
        self.guests.clear();
        self.stack = None;
        self.switch = None;
        self.adapter = None;
    }
}
