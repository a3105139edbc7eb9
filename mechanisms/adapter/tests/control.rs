//! The adapter behind its control socket: rebalances from outside, configuration blocks, VFs that are freed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use adapter::control::{
    CAUSE_CAPACITY, PnpPhase, PrivateControl, REBALANCE_CAPACITY, RebalanceOutcome,
};
use avf_driver::Event;
use common::{
    End, PATIENCE, frame, mac,
    setup::{Setup, connect, recover},
    vf,
};
use device_control::{ClientError, OidRequestKind, RemoteSriovDevice, SentRequest, Target};
use ndis_protocol::*;
use pcivirt_protocol::{NtStatus, SriovInvalidateBlock, SriovPfEvent, VfIndex};
use pf_driver::SriovDevice;

const QUERY_STOP: SriovPfEvent = SriovPfEvent::QUERY_STOP_DEVICE;
const RESTART: SriovPfEvent = SriovPfEvent::RESTART;

impl Setup {
    fn stack(&self) -> RemoteSriovDevice {
        RemoteSriovDevice::open(connect(self.directory.path(), "stack"), PATIENCE).unwrap()
    }

    /// Asks for a rebalance.
    fn rebalance(&self) -> SentRequest {
        let code = PrivateControl::Rebalance.code();
        self.host.send(Target::Private(code), &[], REBALANCE_CAPACITY).unwrap()
    }

    fn wait_for_phase(&self, phase: PnpPhase) {
        let start = Instant::now();
        while self.status().pnp.phase != phase {
            assert!(start.elapsed() < PATIENCE, "the PF driver is not {phase:?}");
            std::thread::yield_now();
        }
    }
}

fn outcome(rebalance: SentRequest) -> RebalanceOutcome {
    serde_json::from_slice(&rebalance.wait_output(PATIENCE).unwrap()).unwrap()
}

fn event(notification: SentRequest) -> SriovPfEvent {
    RemoteSriovDevice::event(&notification.wait_output(PATIENCE).unwrap()).unwrap()
}

/// It has not been completed.
#[track_caller]
fn assert_pending(request: &SentRequest) {
    assert!(!request.wait_for(Duration::from_millis(20)), "it did not wait");
}

fn exchange(from: &mut End, to: &mut End, addresses: (u8, u8), content: u8) {
    let sent = frame(mac(addresses.1), mac(addresses.0), &[content; 100]);
    from.send(&sent);
    assert_eq!(to.receive(), sent);
}

#[test]
fn a_rebalance_that_the_stack_allows_moves_the_vfs_and_their_drivers_recover() {
    let setup = Setup::new();
    let (mut one, mut two) = (setup.guest(0), setup.guest(1));
    let stack = setup.stack();
    stack.attach(false, PATIENCE).unwrap();
    let before = stack.get_device_location(VfIndex(1));
    let bar_before = stack.get_resource_for_bar(VfIndex(1), 0).unwrap();
    let probed = stack.query_probed_bars().unwrap();

    let first = stack.notification().unwrap();
    let rebalance = setup.rebalance();
    assert_eq!(event(first), QUERY_STOP);
    // Nothing has happened yet: VFs go on until the stack has taken them out of its VMs and says so.
    exchange(&mut one, &mut two, (0, 1), 1);
    assert_eq!(stack.get_device_location(VfIndex(1)), before);
    let status = setup.status().pnp;
    assert_eq!((status.phase, status.client.as_deref()), (PnpPhase::AskingToStop, Some("stack")));
    let second = stack.notification().unwrap();
    assert_pending(&rebalance);
    stack.event_complete(NtStatus::SUCCESS).unwrap();

    // The device runs again, elsewhere; the stack reads where, before it says that it has taken notice.
    assert_eq!(event(second), RESTART);
    assert_pending(&rebalance);
    let after = stack.get_device_location(VfIndex(1));
    assert_ne!(after.bus_number, before.bus_number);
    assert_eq!(after.function_number, before.function_number);
    let bar_after = stack.get_resource_for_bar(VfIndex(1), 0).unwrap();
    let ((old, size), (new, new_size)) =
        (bar_before.memory_range().unwrap(), bar_after.memory_range().unwrap());
    assert_ne!(new, old);
    assert_eq!((new_size, size), (0x1_0000, 0x1_0000));
    assert_eq!(stack.query_probed_bars().unwrap(), probed);
    assert_eq!(setup.status().pnp.phase, PnpPhase::AnnouncingRestart);
    stack.event_complete(NtStatus::SUCCESS).unwrap();
    let done = outcome(rebalance);
    let RebalanceOutcome::Done { asked, bus, .. } = &done else { panic!("{done}") };
    assert_eq!((asked.as_deref(), *bus), (Some("stack"), after.bus_number));

    // VFs, VPorts and filters are those of before; their drivers were told of a reset and go on.
    let host_sees = setup.oid(
        Oid::NicSwitchVfParameters,
        OidRequestKind::Method,
        &VfParameters {
            switch_id: SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: Name::default(),
                vm_friendly_name: Name::default(),
                nic_name: Name::default(),
                permanent_mac: MacAddress::ZERO,
                current_mac: MacAddress::ZERO,
            },
            vf_id: Some(vf(1)),
            requestor_id: None,
        },
    );
    let requestor = VfParameters::parse(&host_sees).unwrap().requestor_id.unwrap();
    assert_eq!(requestor.bus(), after.bus_number);
    recover(&mut one);
    recover(&mut two);
    exchange(&mut one, &mut two, (0, 1), 2);
    exchange(&mut two, &mut one, (1, 0), 3);

    // And once more, with nobody attached: back to where it was.
    stack.detach().unwrap();
    let done = outcome(setup.rebalance());
    assert!(matches!(done, RebalanceOutcome::Done { asked: None, .. }), "{done}");
    assert_eq!(stack.get_device_location(VfIndex(1)), before);
}

#[test]
fn a_rebalance_that_the_stack_vetoes_changes_nothing_and_no_driver_notices() {
    let setup = Setup::new();
    let (mut one, mut two) = (setup.guest(0), setup.guest(1));
    let stack = setup.stack();
    stack.attach(false, PATIENCE).unwrap();
    let before = stack.get_device_location(VfIndex(0));
    // The event before the poll: it waits for the next notification.
    let rebalance = setup.rebalance();
    setup.wait_for_phase(PnpPhase::AskingToStop);
    // Another one meanwhile is refused.
    let second = setup.rebalance().wait(PATIENCE).unwrap();
    assert_eq!(second.status, NtStatus::DEVICE_BUSY);
    assert_eq!(event(stack.notification().unwrap()), QUERY_STOP);
    stack.event_complete(NtStatus::ACCESS_DENIED).unwrap();
    assert_eq!(event(stack.notification().unwrap()), RESTART);
    stack.event_complete(NtStatus::SUCCESS).unwrap();
    let vetoed = outcome(rebalance);
    let RebalanceOutcome::Vetoed { by, status, .. } = &vetoed else { panic!("{vetoed}") };
    assert_eq!((by.as_str(), status.as_str()), ("stack", "STATUS_ACCESS_DENIED (0xC0000022)"));
    assert_eq!(stack.get_device_location(VfIndex(0)), before);
    exchange(&mut one, &mut two, (0, 1), 1);
    for end in [&mut one, &mut two] {
        let events = end.control.poll_events(Instant::now()).unwrap();
        assert!(!events.contains(&Event::ResetImpending), "{events:?}");
    }
}

/// A process that attaches, hears that the device is to stop, and never answers. It is killed by its test.
#[test]
#[ignore = "run by another test, as a process of its own"]
fn process_stack() {
    let Some(directory) = std::env::var_os("ADAPTER_TEST_DIRECTORY").map(PathBuf::from) else {
        return;
    };
    let stack = RemoteSriovDevice::open(connect(&directory, "doomed"), PATIENCE).unwrap();
    stack.attach(false, PATIENCE).unwrap();
    println!("ready");
    assert_eq!(event(stack.notification().unwrap()), QUERY_STOP);
    loop {
        std::thread::park();
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stack_that_is_killed_midway_holds_no_rebalance_up() {
    let setup = Setup::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_stack", "--ignored", "--nocapture"])
        .env("ADAPTER_TEST_DIRECTORY", setup.directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut process = Process(child);
    let mut lines = std::io::BufRead::lines(output).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("ready")), "the process did not attach");

    let rebalance = setup.rebalance();
    setup.wait_for_phase(PnpPhase::AskingToStop);
    assert_pending(&rebalance);
    process.0.kill().unwrap();
    let done = outcome(rebalance);
    let RebalanceOutcome::Done { asked: Some(_), .. } = done else { panic!("{done}") };
    // The next one attaches to a device that runs.
    let stack = setup.stack();
    stack.attach(false, PATIENCE).unwrap();
    assert_eq!(setup.status().pnp.phase, PnpPhase::Running);
}

#[test]
fn whoever_asked_may_give_up_and_the_rebalance_goes_on() {
    let setup = Setup::new();
    let stack = setup.stack();
    stack.attach(false, PATIENCE).unwrap();
    let rebalance = setup.rebalance();
    assert_eq!(event(stack.notification().unwrap()), QUERY_STOP);
    rebalance.cancel();
    assert_eq!(rebalance.wait(PATIENCE).unwrap().status, NtStatus::CANCELLED);
    assert_eq!(setup.status().pnp.phase, PnpPhase::AskingToStop);
    stack.event_complete(NtStatus::SUCCESS).unwrap();
    assert_eq!(event(stack.notification().unwrap()), RESTART);
    stack.event_complete(NtStatus::SUCCESS).unwrap();
    setup.wait_for_phase(PnpPhase::Running);
    stack.detach().unwrap();
    // Not before its thread has said so, another can begin.
    let start = Instant::now();
    while setup.rebalance().wait(PATIENCE).unwrap().status == NtStatus::DEVICE_BUSY {
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn an_adapter_ends_while_a_client_owes_it_an_answer() {
    let setup = Setup::new();
    let stack = setup.stack();
    stack.attach(false, PATIENCE).unwrap();
    let rebalance = setup.rebalance();
    setup.wait_for_phase(PnpPhase::AskingToStop);
    drop(setup.server);
    // Told so, or cut off: in any case not left waiting.
    if let Ok(completion) = rebalance.wait(PATIENCE) {
        assert_eq!(completion.status, NtStatus::DEVICE_REMOVED);
    }
}

fn write_block(setup: &Setup, vf_id: VfId, block_id: u32, data: &[u8]) {
    let write = SriovWriteVfConfigBlock { vf_id, block_id, data: data.to_vec() };
    setup.oid(Oid::SriovWriteVfConfigBlock, OidRequestKind::Set, &write);
}

fn invalidation(request: SentRequest) -> SriovInvalidateBlock {
    RemoteSriovDevice::invalidation(&request.wait_output(PATIENCE).unwrap()).unwrap()
}

#[test]
fn blocks_that_the_host_writes_are_invalidated_once_with_their_masks_ored() {
    let setup = Setup::new();
    let ((first, _), (second, _)) = (setup.allocate_vf(0), setup.allocate_vf(1));
    let stack = setup.stack();
    write_block(&setup, first, 3, b"speed");
    write_block(&setup, first, 63, b"limits");
    write_block(&setup, first, 3, b"speed again");
    let index = VfIndex(first.get());
    let told = invalidation(stack.invalidate_block(Some(index)).unwrap());
    assert_eq!(told, SriovInvalidateBlock::of_vf(index, 1 << 3 | 1 << 63));
    let mut block = [0; 11];
    stack.read_vf_config_block(index, 3, &mut block).unwrap();
    assert_eq!(&block, b"speed again");

    // Told once. What the VF's own driver writes, by the callback, is no news to it.
    let poll = stack.invalidate_block(Some(index)).unwrap();
    stack.write_vf_config_block(index, 5, b"from the guest").unwrap();
    write_block(&setup, second, 0, b"another VF");
    assert_pending(&poll);
    write_block(&setup, first, 7, b"more");
    assert_eq!(invalidation(poll), SriovInvalidateBlock::of_vf(index, 1 << 7));
    let any = invalidation(stack.invalidate_block(None).unwrap());
    assert_eq!(any, SriovInvalidateBlock::of_vf(VfIndex(second.get()), 1));
}

#[test]
fn the_next_owner_of_a_vf_hears_nothing_of_what_the_former_one_missed() {
    let setup = Setup::new();
    let stack = setup.stack();
    let (vf_id, _) = setup.allocate_vf(0);
    let index = VfIndex(vf_id.get());
    write_block(&setup, vf_id, 9, b"for the former owner");
    setup.free_vf(vf_id);
    assert_eq!(setup.allocate_vf(1).0, vf_id);
    let poll = stack.invalidate_block(Some(index)).unwrap();
    assert_pending(&poll);
    let mut block = [0xFF; 4];
    stack.read_vf_config_block(index, 9, &mut block).unwrap();
    assert_eq!(block, [0; 4]);
    // A poll for a VF that is freed ends.
    setup.free_vf(vf_id);
    assert_eq!(poll.wait(PATIENCE).unwrap().status, NtStatus::CANCELLED);
}

#[test]
fn an_uplink_that_is_refused_is_refused_with_the_cause() {
    let setup = Setup::new();
    let refused = |spec: &str, room| {
        let code = PrivateControl::SetUplink.code();
        match setup.host.private(code, spec.as_bytes(), room, PATIENCE) {
            Err(ClientError::Failed { status, cause, .. }) => (status, cause),
            other => panic!("{spec}: {other:?}"),
        }
    };
    let absent = setup.directory.path().join("absent.pcap");
    let spec = format!("pcap:{}", absent.display());
    let (status, cause) = refused(&spec, CAUSE_CAPACITY);
    assert_eq!(status, NtStatus::INSUFFICIENT_RESOURCES);
    assert!(cause.contains(&absent.display().to_string()), "{cause}");
    assert!(cause.ends_with("No such file or directory (os error 2)"), "{cause}");
    let (status, cause) = refused("wormhole:here", CAUSE_CAPACITY);
    assert_eq!(status, NtStatus::INVALID_PARAMETER);
    assert!(cause.contains("wormhole"), "{cause}");
    // Who leaves no room for a cause gets the status, and who leaves little the beginning.
    assert_eq!(refused("wormhole:here", 0), (NtStatus::INVALID_PARAMETER, String::new()));
    assert_eq!(refused("wormhole:here", 5).1, cause[..5]);
}
