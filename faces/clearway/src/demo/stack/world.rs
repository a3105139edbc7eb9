//! The processes of the story.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use device_control::{DeviceControlClient, DriverName};
use user_vm::{AdapterStatistics, VmClient};
use virtual_switch::control::{PrivateControl, STATUS_CAPACITY, SwitchStatus};

use super::{client::StackClient, drops::drops};
use crate::{
    demo::processes::{Belongings, RoleProcess},
    nic::Nic,
};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Name of each VM's adapter.
pub(super) const ADAPTER: &str = "net0";

/// A VM: its host side is a process, its guest another.
pub(super) struct Vm {
    pub(super) name: &'static str,
    pub(super) address: &'static str,
    mac: &'static str,
}

/// The VMs.
pub(super) const VMS: [Vm; 2] = [
    Vm { name: "web", address: "10.78.0.1", mac: "00:15:5D:00:78:01" },
    Vm { name: "db", address: "10.78.0.2", mac: "00:15:5D:00:78:02" },
];

/// A VM that runs.
pub(super) struct RunningVm {
    process: RoleProcess,
    pub(super) client: VmClient,
}

impl RunningVm {
    /// Its adapter, as its guest counts.
    pub(super) fn adapter(&self) -> Result<AdapterStatistics> {
        let statistics = self.client.statistics()?;
        statistics.adapters.into_iter().next().context("the VM has no network adapter yet")
    }
}

/// Adapter, switch, stack and VMs, each a process of its own.
pub(super) struct World {
    directory: PathBuf,
    belongings: Belongings,
    adapter: Option<RoleProcess>,
    switch: RoleProcess,
    stack: RoleProcess,
    pub(super) vms: Vec<RunningVm>,
    pub(super) client: StackClient,
}

impl World {
    /// Starts all of it in this folder.
    pub(super) fn start(
        directory: &Path,
        belongings: &Belongings,
        patience: Duration,
    ) -> Result<Self> {
        let adapter = start_adapter(directory, belongings, patience)?;
        let nic = nic_directory(directory);
        let switch_directory = switch_directory(directory);
        let mut uplink = OsString::from("adapter:");
        uplink.push(&nic);
        let arguments: [OsString; 6] = [
            "switch".into(),
            "run".into(),
            "--directory".into(),
            switch_directory.clone().into(),
            "--uplink".into(),
            uplink,
        ];
        let switch_socket = switch_socket(directory);
        let switch = RoleProcess::start("the switch", arguments, &[], belongings)?
            .serving(&switch_socket, patience)?;
        let vms = VMS
            .iter()
            .map(|vm| start_vm(vm, directory, belongings, patience))
            .collect::<Result<Vec<_>>>()?;
        let configuration = directory.join("stack.toml");
        std::fs::write(&configuration, configuration_of(&nic, &switch_socket, directory))
            .context("the stack's configuration file")?;
        let stack_directory = directory.join("stack");
        let arguments: [OsString; 6] = [
            "stack".into(),
            "run".into(),
            "--config".into(),
            configuration.clone().into(),
            "--directory".into(),
            stack_directory.clone().into(),
        ];
        let stack_socket = stack_directory.join("control.sock");
        let stack = RoleProcess::start("the stack", arguments, &[], belongings)?
            .serving(&stack_socket, patience)?;
        let client = StackClient::connect(&stack_socket, patience)?;
        std::fs::remove_file(&configuration)?;
        Ok(Self {
            directory: directory.to_owned(),
            belongings: belongings.clone(),
            adapter: Some(adapter),
            switch,
            stack,
            vms,
            client,
        })
    }

    /// The folder of the adapter's sockets.
    pub(super) fn nic(&self) -> PathBuf {
        nic_directory(&self.directory)
    }

    /// An error if a process has ended that should not have.
    pub(super) fn ensure_it_runs(&mut self) -> Result<()> {
        if let Some(adapter) = &mut self.adapter {
            adapter.ensure_it_runs()?;
        }
        self.switch.ensure_it_runs()?;
        self.stack.ensure_it_runs()?;
        self.vms.iter_mut().try_for_each(|vm| vm.process.ensure_it_runs())
    }

    /// What adapter, switch and guests have counted as dropped, each with its place.
    pub(super) fn drops(&self) -> Result<Vec<String>> {
        let nic = Nic::connect(&self.nic(), "demo", TIMEOUT, |_| {})?.status()?;
        let name = DriverName::new("demo").context("a name for this client")?;
        let socket = switch_socket(&self.directory);
        let switch = DeviceControlClient::connect_when_ready(socket, &name, TIMEOUT)?;
        let status = PrivateControl::Status.code();
        let switch = switch.private(status, &[], STATUS_CAPACITY, TIMEOUT)?;
        let switch: SwitchStatus = serde_json::from_slice(&switch)?;
        let mut found = drops("adapter", &nic);
        found.extend(drops("switch", &switch));
        for (vm, running) in VMS.iter().zip(&self.vms) {
            found.extend(drops(vm.name, &running.adapter()?));
        }
        Ok(found)
    }

    /// Kills the adapter, as a fault would.
    pub(super) fn kill_adapter(&mut self) -> Result<()> {
        if let Some(adapter) = self.adapter.take() {
            adapter.kill()?;
        }
        Ok(())
    }

    /// Starts another adapter in the place of the one that is gone.
    pub(super) fn restart_adapter(&mut self, patience: Duration) -> Result<()> {
        self.adapter = Some(start_adapter(&self.directory, &self.belongings, patience)?);
        Ok(())
    }

    /// Ends all of it in good order; the process ids that are to be gone then.
    pub(super) fn end(self) -> Result<Vec<u32>> {
        let Self { adapter, switch, stack, vms, client, .. } = self;
        drop(client);
        let mut pids = Vec::new();
        for vm in vms {
            pids.push(vm.process.pid());
            // It ends with its program, which the signal ends too.
            let _ = vm.process.end();
        }
        for process in [Some(stack), Some(switch), adapter].into_iter().flatten() {
            pids.push(process.pid());
            process.end()?;
        }
        let vms = self.directory.join("clearway-vms");
        // Empty by now; what is not is found by whoever looks whether anything is left.
        let _ = std::fs::remove_dir(vms);
        Ok(pids)
    }
}

fn nic_directory(directory: &Path) -> PathBuf {
    directory.join("nic")
}

fn switch_directory(directory: &Path) -> PathBuf {
    directory.join("switch")
}

fn switch_socket(directory: &Path) -> PathBuf {
    virtual_switch::server::control_socket(&switch_directory(directory))
}

fn start_adapter(
    directory: &Path,
    belongings: &Belongings,
    patience: Duration,
) -> Result<RoleProcess> {
    let nic = nic_directory(directory);
    let arguments: [OsString; 5] =
        ["adapter".into(), "--vfs".into(), "4".into(), "--directory".into(), nic.clone().into()];
    RoleProcess::start("the adapter", arguments, &[], belongings)?
        .serving(&adapter::control_socket(&nic), patience)
}

fn start_vm(
    vm: &Vm,
    directory: &Path,
    belongings: &Belongings,
    patience: Duration,
) -> Result<RunningVm> {
    let worker = worker_socket(directory, vm);
    let program = std::env::current_exe().context("the path of this program")?;
    let address = format!("{}/24", vm.address);
    let mut arguments: Vec<OsString> =
        ["vm", "run", vm.name, "--ip", &address, "--worker"].map(Into::into).to_vec();
    arguments.extend([worker.clone().into(), "--".into(), program.into()]);
    arguments.extend(["traffic", "answer", "--patience", "3600"].map(Into::into));
    let role = format!("VM {}", vm.name);
    // Where the VM's own control socket is.
    let environment = [("XDG_RUNTIME_DIR", directory)];
    let process = RoleProcess::start(&role, arguments, &environment, belongings)?;
    let control = directory.join("clearway-vms").join(format!("{}.sock", vm.name));
    let process = process.serving(&worker, patience)?.serving(&control, patience)?;
    Ok(RunningVm { process, client: VmClient::new(vm.name, control)? })
}

fn worker_socket(directory: &Path, vm: &Vm) -> PathBuf {
    directory.join(format!("{}-worker.sock", vm.name))
}

fn configuration_of(nic: &Path, switch: &Path, directory: &Path) -> String {
    let mut text = format!(
        "[[nic]]\nname = \"nic0\"\ndirectory = {nic:?}\n\n\
         [[switch]]\nname = \"external\"\nsocket = {switch:?}\nnic = \"nic0\"\niov = true\n"
    );
    for vm in &VMS {
        let Vm { name, mac, .. } = vm;
        let socket = worker_socket(directory, vm);
        text += &format!(
            "\n[[vm]]\nname = \"{name}\"\nsocket = {socket:?}\n\
             [[vm.adapter]]\nname = \"{ADAPTER}\"\nswitch = \"external\"\nmac = \"{mac}\"\niov-weight = 0\n"
        );
    }
    text
}
