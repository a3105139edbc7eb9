//! A PF driver behind a socket: the whole contract at a distance, and processes that are killed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

#[path = "../../pf_driver/tests/common/mod.rs"]
mod device;

use device::{PnpThread, TestDevice, driver, wait_until_raised};
use device_control::*;
use pcivirt_protocol::*;
use pf_driver::pnp::PnpState;
use pf_driver::{MitigableDevice, NO_VENDOR_AND_DEVICE, PfDriver, SriovDevice};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = device::SOON;

struct Setup {
    driver: Arc<PfDriver<TestDevice>>,
    path: PathBuf,
    _server: DeviceControlServer,
    _directory: tempfile::TempDir,
}

fn name(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nic0.sock");
    let driver = driver();
    let handler = Arc::new(PfDriverHandler::new(driver.clone()));
    let server =
        DeviceControlServer::start(ServerConfig::new(&path, name("nic0")), handler).unwrap();
    Setup { driver, path, _server: server, _directory: directory }
}

impl Setup {
    fn stack(&self) -> RemoteSriovDevice {
        stack(&self.path)
    }
}

fn stack(path: &Path) -> RemoteSriovDevice {
    let client = DeviceControlClient::connect(path, &name("stack"), SOON).unwrap();
    RemoteSriovDevice::open(client, SOON).unwrap()
}

fn event_of(notification: SentRequest) -> SriovPfEvent {
    RemoteSriovDevice::event(&notification.wait_output(SOON).unwrap()).unwrap()
}

fn wait_until_gone(driver: &PfDriver<TestDevice>) {
    let start = std::time::Instant::now();
    while driver.references() != 0 || driver.pnp_state().subscriber().is_some() {
        assert!(start.elapsed() < SOON, "the client is still there");
        std::thread::yield_now();
    }
}

#[test]
fn every_callback_answers_at_a_distance_as_it_does_at_home() {
    let setup = setup();
    let home = setup.driver.device();
    let remote = setup.stack();
    assert_eq!(remote.entries(), home.entries());
    assert_eq!(setup.driver.references(), 2);
    let vf = VfIndex(1);

    remote.write_vf_config(vf, 0x40, &[1, 2, 3]).unwrap();
    let mut data = [0; 4];
    remote.read_vf_config(vf, 0x3F, &mut data).unwrap();
    assert_eq!(data, [1, 1, 2, 3]);
    remote.write_vf_config_block(vf, 5, &[9; 128]).unwrap();
    let mut block = [0; 128];
    remote.read_vf_config_block(vf, 5, &mut block).unwrap();
    assert_eq!(block, [9; 128]);
    remote.reset_vf(vf).unwrap();
    remote.set_vf_power_state(vf, DevicePowerState::D3, true).unwrap();
    remote.write_mitigated_register(vf, 2, 0x10, &[7, 8]).unwrap();
    let mut data = [0; 3];
    remote.read_mitigated_register(vf, 2, 0x10, &mut data).unwrap();
    assert_eq!(data, [7, 8, 0xEE]);
    let state = home.snapshot();
    assert_eq!(state.resets, [vf]);
    assert_eq!(state.power[1], (DevicePowerState::D3, true));

    assert_eq!(remote.query_probed_bars(), home.query_probed_bars());
    assert_eq!(remote.query_probed_bars_2(vf), home.query_probed_bars_2(vf));
    assert_eq!(remote.get_vendor_and_device(vf), home.get_vendor_and_device(vf));
    assert_eq!(remote.get_device_location(vf), home.get_device_location(vf));
    assert_eq!(remote.get_resource_for_bar(vf, 0), home.get_resource_for_bar(vf, 0));
    assert_eq!(remote.query_luid(), home.query_luid());
    assert_eq!(remote.query_vf_luid(vf), home.query_vf_luid(vf));
    assert_eq!(remote.query_luid_vf(home.query_vf_luid(vf).unwrap()), Ok(vf));
    assert_eq!(remote.mitigated_range_count(vf).unwrap(), [0, 0, 0, 2, 0, 0]);
    let ranges = MitigableDevice::mitigated_ranges(&remote, vf, 3).unwrap();
    assert_eq!(ranges, *home.ranges.lock().unwrap());
    assert_eq!(remote.proxy_query_luid().unwrap(), home.luids.device());

    // Errors come through, and void callbacks keep their way of saying so.
    let none = VfIndex(9);
    assert_eq!(remote.reset_vf(none), Err(NtStatus::INVALID_PARAMETER));
    assert_eq!(remote.get_resource_for_bar(none, 0), Err(NtStatus::INVALID_DEVICE_REQUEST));
    assert_eq!(remote.query_luid_vf(Luid::default()), Err(NtStatus::NOT_FOUND));
    assert_eq!(remote.get_vendor_and_device(none), NO_VENDOR_AND_DEVICE);
    assert_eq!(remote.get_device_location(none), Default::default());

    drop(remote);
    assert_eq!(setup.driver.references(), 0);
}

#[test]
fn a_rebalance_passes_through_the_socket() {
    let setup = setup();
    let stack = setup.stack();
    stack.attach(false, SOON).unwrap();
    let other = setup.stack();
    assert_eq!(other.attach(false, SOON).unwrap_err().status(), NtStatus::SHARING_VIOLATION);

    let first = stack.notification().unwrap();
    let stop = PnpThread::start(&setup.driver, |driver| driver.query_stop());
    assert_eq!(event_of(first), SriovPfEvent::QUERY_STOP_DEVICE);
    let second = stack.notification().unwrap();
    stop.assert_waits();
    stack.event_complete(NtStatus::SUCCESS).unwrap();
    assert_eq!(stop.status(), NtStatus::SUCCESS);
    let error = stack.event_complete(NtStatus::SUCCESS).unwrap_err();
    assert_eq!(error.status(), NtStatus::INVALID_DEVICE_STATE);

    let start = PnpThread::start(&setup.driver, |driver| driver.start());
    assert_eq!(event_of(second), SriovPfEvent::RESTART);
    stack.event_complete(NtStatus::SUCCESS).unwrap();
    assert_eq!(start.status(), NtStatus::SUCCESS);
    stack.detach().unwrap();
    other.attach(false, SOON).unwrap();
}

#[test]
fn attach_waits_while_the_device_is_stopped_and_holds_up_nothing_else() {
    let setup = setup();
    assert_eq!(setup.driver.query_stop(), NtStatus::SUCCESS);
    let stack = setup.stack();
    std::thread::scope(|scope| {
        let attach = scope.spawn(|| stack.attach(false, SOON));
        // The same connection serves other requests meanwhile.
        assert!(stack.query_luid().is_ok());
        assert_eq!(setup.driver.start(), NtStatus::SUCCESS);
        attach.join().unwrap().unwrap();
    });
    // And one that gives up leaves no trace.
    stack.detach().unwrap();
    assert_eq!(setup.driver.query_stop(), NtStatus::SUCCESS);
    let error = stack.attach(false, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert!(stack.query_luid().is_ok());
    assert_eq!(setup.driver.start(), NtStatus::SUCCESS);
    assert_eq!(setup.driver.pnp_state(), PnpState::Detached);
}

#[test]
fn long_polls_are_told_and_cancelled_at_a_distance() {
    let setup = setup();
    let stack = setup.stack();
    setup.driver.invalidate_block(VfIndex(1), 3);
    let block = stack.invalidate_block(None).unwrap().wait_output(SOON).unwrap();
    assert_eq!(
        RemoteSriovDevice::invalidation(&block),
        Some(SriovInvalidateBlock::of_vf(VfIndex(1), 3))
    );
    let poll = stack.invalidate_block(Some(VfIndex(2))).unwrap();
    let update = stack.mitigated_range_update(VfIndex(2)).unwrap();
    poll.cancel();
    assert_eq!(poll.wait(SOON).unwrap().status, NtStatus::CANCELLED);
    setup.driver.mitigated_ranges_changed(VfIndex(2));
    assert_eq!(update.wait_output(SOON).unwrap(), [2, 0]);
}

#[test]
fn removal_reaches_a_client_that_asked_for_it() {
    let setup = setup();
    let stack = setup.stack();
    stack.attach(true, SOON).unwrap();
    let notification = stack.notification().unwrap();
    assert_eq!(setup.driver.surprise_removal(), NtStatus::SUCCESS);
    assert_eq!(event_of(notification), SriovPfEvent::SURPRISE_REMOVE_DEVICE);
    assert_eq!(stack.query_luid(), Err(NtStatus::DEVICE_REMOVED));
    assert_eq!(stack.reset_vf(VfIndex(0)), Err(NtStatus::DEVICE_REMOVED));
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    /// SIGKILL; waits until it is gone.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one of the `process_…` functions below as a process of its own, and waits until it says that it is ready.
fn spawn(role: &str, path: &Path) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", role, "--ignored", "--nocapture"])
        .env("DEVICE_CONTROL_TEST_SOCKET", path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("ready")), "{role} failed");
    Process(child)
}

fn socket_of_this_process() -> Option<PathBuf> {
    std::env::var_os("DEVICE_CONTROL_TEST_SOCKET").map(PathBuf::from)
}

fn ready_until_killed() {
    println!("ready");
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "run by another test, as a process of its own"]
fn process_stack() {
    let Some(path) = socket_of_this_process() else { return };
    let stack = stack(&path);
    stack.attach(false, SOON).unwrap();
    let _first = stack.invalidate_block(None).unwrap();
    assert_eq!(event_of(stack.notification().unwrap()), SriovPfEvent::QUERY_STOP_DEVICE);
    // It never completes the event.
    ready_until_killed();
}

#[test]
#[ignore = "run by another test, as a process of its own"]
fn process_server() {
    let Some(path) = socket_of_this_process() else { return };
    let handler = Arc::new(PfDriverHandler::new(driver()));
    let _server =
        DeviceControlServer::start(ServerConfig::new(path, name("nic0")), handler).unwrap();
    ready_until_killed();
}

#[test]
fn a_stack_that_is_killed_while_the_pnp_thread_waits_for_it_is_detached() {
    let setup = setup();
    let stop = PnpThread::start(&setup.driver, |driver| {
        // Once it is attached.
        while driver.pnp_state().subscriber().is_none() {
            std::thread::yield_now();
        }
        driver.query_stop()
    });
    let mut child = spawn("process_stack", &setup.path);
    wait_until_raised(&setup.driver, SriovPfEvent::QUERY_STOP_DEVICE);
    stop.assert_waits();
    child.kill();
    assert_eq!(stop.status(), NtStatus::SUCCESS);
    wait_until_gone(&setup.driver);
    assert_eq!(setup.driver.start(), NtStatus::SUCCESS);
    // A new one finds everything as it should be.
    let stack = setup.stack();
    stack.attach(false, SOON).unwrap();
    setup.driver.invalidate_block(VfIndex(0), 1);
    assert!(stack.invalidate_block(None).unwrap().wait_for(SOON));
}

#[test]
fn a_server_that_is_killed_leaves_a_socket_that_the_next_one_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nic0.sock");
    let mut child = spawn("process_server", &path);
    let remote = stack(&path);
    assert!(remote.query_luid().is_ok());
    let config = ServerConfig::new(&path, name("nic0"));
    let handler = Arc::new(PfDriverHandler::new(driver()));
    let second = DeviceControlServer::start(config.clone(), handler.clone());
    assert!(matches!(second, Err(ServerError::Listen(ListenError::InUse { .. }))));

    child.kill();
    assert_eq!(remote.query_luid(), Err(NtStatus::DEVICE_REMOVED));
    assert!(path.exists());
    let error = DeviceControlClient::connect(&path, &name("stack"), SOON).unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");

    let server = DeviceControlServer::start(config, handler).unwrap();
    assert!(stack(&path).query_luid().is_ok());
    drop(server);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
