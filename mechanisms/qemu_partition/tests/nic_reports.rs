//! A NIC that stops telling what the driver of a VF does, while the VF stays.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

use adapter::control::{VF_REPORT_CAPACITY, VfDriver, VfReport};
use common::{Vm, nic::Nic, qemu::Machine};
use device_control::{
    Client, Completion, DeviceControlHandler, DeviceControlServer, DriverName, PendingRequest,
    Request, ServerConfig,
};
use pcivirt_protocol::NtStatus;
use vm_worker::control::DeviceState;

/// The control socket of a NIC that answers as the test says.
struct Played {
    asked: Mutex<Sender<PendingRequest>>,
}

impl DeviceControlHandler for Played {
    fn private(&self, _client: &Client, _code: u32, request: Request) {
        self.asked.lock().unwrap().send(request.pend()).unwrap();
    }
}

fn play(path: &Path) -> (DeviceControlServer, Receiver<PendingRequest>) {
    let (asked, requests) = channel();
    let config = ServerConfig::new(path, DriverName::new("nic").unwrap());
    let played = Played { asked: Mutex::new(asked) };
    (DeviceControlServer::start(config, Arc::new(played)).unwrap(), requests)
}

fn say(requests: &Receiver<PendingRequest>, vf: u16, driver: VfDriver) {
    let output = serde_json::to_vec(&VfReport { vf, driver }).unwrap();
    let request = requests.recv_timeout(common::LIMIT).unwrap();
    request.complete(Completion::output(output, VF_REPORT_CAPACITY)).unwrap();
}

fn refuse(requests: &Receiver<PendingRequest>) {
    let request = requests.recv_timeout(common::LIMIT).unwrap();
    request.complete(NtStatus::DEVICE_NOT_READY).unwrap();
}

#[test]
fn a_nic_that_hangs_up_is_asked_again_and_one_that_says_nothing_any_more_has_its_vf_taken() {
    let nic = Nic::start(1);
    let mut vm = Vm::with_adapter(Machine::default());
    let path = vm.directory.path().join("nic");
    let (server, requests) = play(&path);
    let mut offer = nic.offer(0, 1, nic.allocate());
    offer.nic = path;
    let vf = offer.vf;
    vm.client.offer(&offer);
    vm.qemu.expect("device_add");
    vm.client.expect_device(1, DeviceState::Offered);
    say(&requests, vf, VfDriver::Present);
    vm.client.expect_device(1, DeviceState::DeviceStarted);
    // Another VF's is none of ours.
    say(&requests, vf + 1, VfDriver::Running { mac: common::MAC.to_owned() });
    refuse(&requests);
    // It has told on the first connection: there is a second one.
    say(&requests, vf, VfDriver::Running { mac: common::MAC.to_owned() });
    vm.client.expect_device(1, DeviceState::InUse);
    refuse(&requests);
    // It says nothing on the third.
    refuse(&requests);
    vm.client.expect_device(1, DeviceState::Removed);
    drop(server);
    vm.qemu.expect_nothing();
}

#[test]
fn a_vf_that_its_nic_says_is_freed_is_removed() {
    let nic = Nic::start(1);
    let mut vm = Vm::with_adapter(Machine::default());
    let path = vm.directory.path().join("nic");
    let (_server, requests) = play(&path);
    let mut offer = nic.offer(0, 1, nic.allocate());
    offer.nic = path;
    vm.client.offer(&offer);
    vm.qemu.expect("device_add");
    vm.client.expect_device(1, DeviceState::Offered);
    say(&requests, offer.vf, VfDriver::Gone);
    vm.client.expect_device(1, DeviceState::Removed);
}
