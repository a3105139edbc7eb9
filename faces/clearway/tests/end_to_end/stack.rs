//! `clearway stack` with an adapter, a switch and two VMs, each a process of its own: the VMs get VFs, and any of the
//! processes may be killed and come back.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use device_control::{DeviceControlClient, DriverName, Target};
use stack_process::control::{
    AdapterReport, EVENTS_CAPACITY, NextEvents, PrivateControl, STATUS_CAPACITY, StackStatus,
};
use virtualization_stack::DataPath;

use crate::{
    common::{CLEARWAY, text},
    vms::{is_installed, vms_can_run},
};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of the program. It is killed when this is dropped.
struct Process(Child);

impl Process {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let child = command(directory, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(CLEARWAY);
    command.env("XDG_RUNTIME_DIR", directory).current_dir(directory).args(arguments);
    command
}

struct World {
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vm = |name: &str, number: u8| {
            format!(
                r#"
[[vm]]
name = "{name}"
socket = "{name}.sock"
[[vm.adapter]]
name = "net0"
switch = "external"
mac = "00:15:5D:00:00:0{number}"
iov-weight = 100
"#
            )
        };
        let text = format!(
            r#"[[nic]]
name = "nic0"
directory = "nic0"
[[switch]]
name = "external"
socket = "external/control.sock"
nic = "nic0"
iov = true
{}{}"#,
            vm("web", 1),
            vm("db", 2)
        );
        std::fs::write(directory.path().join("stack.toml"), text).unwrap();
        Self { directory }
    }

    fn process(&self, arguments: &[&str]) -> Process {
        Process::start(self.directory.path(), arguments)
    }

    fn stack(&self) -> Process {
        self.process(&["stack", "--directory", "stack", "run", "--config", "stack.toml"])
    }

    fn nic(&self) -> Process {
        self.process(&["adapter", "--directory", "nic0", "--vfs", "4"])
    }

    fn switch(&self) -> Process {
        self.process(&["switch", "--directory", "external", "run", "--uplink", "adapter:nic0"])
    }

    fn vm(&self, name: &str, address: &str) -> Process {
        let socket = format!("{name}.sock");
        let program = ["--", "sleep", "600"];
        let options = ["vm", "run", name, "--worker", &socket, "--ip", address];
        self.process(&[options.as_slice(), program.as_slice()].concat())
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = command(self.directory.path(), arguments).output().unwrap();
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{error}");
        out
    }

    fn set_weight(&self, vm: &str, weight: &str) {
        let asked = ["set-adapter", vm, "net0", "--iov-weight", weight];
        self.run(&[["stack", "--directory", "stack"].as_slice(), &asked].concat());
    }

    fn client(&self) -> DeviceControlClient {
        let path: PathBuf = self.directory.path().join("stack/control.sock");
        let name = DriverName::new("test").unwrap();
        DeviceControlClient::connect_when_ready(path, &name, PATIENCE).unwrap()
    }

    /// Waits for events until the status is as it should be.
    #[track_caller]
    fn until(&self, what: &str, done: impl Fn(&StackStatus) -> bool) {
        let client = self.client();
        let start = Instant::now();
        loop {
            let code = PrivateControl::Status.code();
            let answer = client.private(code, &[], STATUS_CAPACITY, PATIENCE).unwrap();
            let status: StackStatus = serde_json::from_slice(&answer).unwrap();
            if done(&status) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {status:#?}");
            let next = serde_json::to_vec(&NextEvents { after: status.last_event }).unwrap();
            let code = PrivateControl::NextEvents.code();
            let sent = client.send(Target::Private(code), &next, EVENTS_CAPACITY).unwrap();
            // Not everything that is shown is an event.
            sent.wait_for(Duration::from_secs(1));
        }
    }

    #[track_caller]
    fn until_active(&self, what: &str) {
        self.until(what, |status| {
            adapters(status).all(|a| a.data_path == DataPath::Vf && a.reasons.is_empty())
        });
    }

    /// The first VM reaches the second one: at once, or as soon as its guest has heard who died.
    #[track_caller]
    fn ping(&self) {
        let ping = ["ping", "-q", "-c", "3", "-i", "0.2", "-W", "10", "10.9.0.2"];
        let ping = [["vm", "exec", "web", "--"].as_slice(), &ping].concat();
        let start = Instant::now();
        loop {
            let output = command(self.directory.path(), &ping).output().unwrap();
            if text(&output.stdout).contains("3 received") {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{}", text(&output.stdout));
        }
    }
}

fn adapters(status: &StackStatus) -> impl Iterator<Item = &AdapterReport> {
    status.vms.iter().flat_map(|vm| &vm.adapters)
}

fn has_reason(adapter: &AdapterReport, code: &str) -> bool {
    adapter.reasons.iter().any(|reason| reason.code == code)
}

#[test]
fn vms_get_vfs_and_every_process_may_die_and_come_back() {
    if !vms_can_run() || !is_installed("ping") {
        return;
    }
    let world = World::new();
    // The stack comes first: nothing that it manages is there.
    let mut stack = world.stack();
    let _db = world.vm("db", "10.9.0.2/24");
    let mut web = world.vm("web", "10.9.0.1/24");
    let mut switch = world.switch();
    let mut nic = world.nic();
    world.until_active("VFs become active");
    world.ping();

    world.set_weight("web", "0");
    world.until("the VF is given back", |status| {
        status.vms.iter().find(|vm| vm.name == "web").is_some_and(|vm| {
            vm.adapters[0].virtual_function.is_none() && has_reason(&vm.adapters[0], "WeightZero")
        })
    });
    world.ping();
    world.set_weight("web", "100");
    world.until_active("the VF is active again");

    let rebalanced = world.run(&["nic", "--directory", "nic0", "rebalance"]);
    assert!(rebalanced.contains("virtualization-stack was asked before"), "{rebalanced}");
    world.until_active("VFs are active after a rebalance");
    world.ping();

    drop(switch);
    world.until("the switch is missed", |status| !status.switches[0].connection.connected);
    // VFs do without it.
    world.ping();
    switch = world.switch();
    world.until("the switch is back", |status| status.switches[0].connection.connected);
    world.until_active("VFs stay with a switch that comes back");
    world.ping();

    drop(nic);
    world.until("the NIC is missed", |status| {
        adapters(status).all(|adapter| has_reason(adapter, "PfRemoved"))
    });
    // The switch does without it.
    world.ping();
    nic = world.nic();
    world.until_active("VFs of an adapter that came back");
    world.ping();

    drop(stack);
    world.ping();
    stack = world.stack();
    world.until_active("VFs from a stack that came back");
    world.ping();

    drop(web);
    world.until("the VM is missed", |status| {
        adapters(status).any(|adapter| has_reason(adapter, "VmNotRunning"))
            && status.nics[0].virtual_functions_in_use == 1
    });
    // Its guest ends with it, a moment later.
    let start = Instant::now();
    let stats = ["vm", "stats", "web"];
    while command(world.directory.path(), &stats).output().unwrap().status.success() {
        assert!(start.elapsed() < PATIENCE, "the guest outlives its host side");
    }
    web = world.vm("web", "10.9.0.1/24");
    world.until_active("the VF of a VM that came back");
    world.ping();

    let status = world.run(&["stack", "--directory", "stack", "status"]);
    assert_eq!(status.matches("OK (SR-IOV active)").count(), 2, "{status}");
    world.run(&["stack", "--directory", "stack", "shutdown"]);
    drop((stack, web, switch, nic));
}
