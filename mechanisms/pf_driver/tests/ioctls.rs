//! The nine I/O controls: what they answer, what they hold, and that bad ones change nothing.

mod common;

use common::*;
use device_control_protocol::{ClientId, Completion};
use pcivirt_protocol::*;
use pf_driver::pnp::PnpState;
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, IntoBytes};

const INVALIDATE: SriovIoctl = SriovIoctl::InvalidateBlock;
const UPDATE: SriovIoctl = SriovIoctl::MitigatedRangeUpdate;

fn status(status: NtStatus) -> Completion {
    Completion::status(status)
}

fn invalidation(completion: &Completion) -> SriovInvalidateBlock {
    assert_eq!(completion.status, NtStatus::SUCCESS);
    SriovInvalidateBlock::read_from_bytes(&completion.output).expect("16 bytes")
}

#[test]
fn an_unknown_code_is_refused() {
    let client = TestClient::new(&driver(), 1);
    for code in
        [IoctlCode(0), IOCTL_VPCI_READ_BLOCK, IoctlCode(0x0022_6040), IoctlCode(0x0022_6068)]
    {
        assert_eq!(
            client.send_code(code, &[0; 64], 64).completion(),
            status(NtStatus::INVALID_DEVICE_REQUEST)
        );
    }
}

#[test]
fn requests_of_a_subscriber_are_refused_to_others() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    assert_eq!(client.notification().status(), NtStatus::INVALID_DEVICE_STATE);
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::INVALID_DEVICE_STATE);
    assert_eq!(client.detach(), NtStatus::SUCCESS);
    let first = TestClient::attached(&driver, 2);
    assert_eq!(client.attach().status(), NtStatus::SHARING_VIOLATION);
    assert_eq!(first.attach().status(), NtStatus::SHARING_VIOLATION);
    assert_eq!(client.detach(), NtStatus::SUCCESS);
    first.notification().assert_pending();
}

#[test]
fn attach_takes_no_options_but_those_it_knows() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    for (input, expected) in [
        (&[2, 0, 0, 0][..], NtStatus::INVALID_PARAMETER),
        (&[1, 0, 0][..], NtStatus::BUFFER_TOO_SMALL),
        (&[1, 0, 0, 0, 0][..], NtStatus::INVALID_PARAMETER),
    ] {
        assert_eq!(client.send(SriovIoctl::Attach, input, 0).status(), expected);
    }
    assert_eq!(driver.pnp_state(), PnpState::Detached);
}

#[test]
fn a_notification_without_room_does_not_cost_the_event() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let small = client.send(SriovIoctl::Notification, &[], 3);
    assert_eq!(small.completion(), Completion::too_small(4));
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    wait_until_raised(&driver, SriovPfEvent::QUERY_STOP_DEVICE);
    let small = client.send(SriovIoctl::Notification, &[], 0);
    assert_eq!(small.completion(), Completion::too_small(4));
    assert_eq!(client.notification().event(), SriovPfEvent::QUERY_STOP_DEVICE);
    let short = client.send(SriovIoctl::EventComplete, &[0; 3], 0);
    assert_eq!(short.completion(), status(NtStatus::BUFFER_TOO_SMALL));
    stop.assert_waits();
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::SUCCESS);
}

#[test]
fn pending_requests_are_cancelled_one_by_one() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let update = SriovMitigatedRangeUpdateInput { vf_index: VfIndex(1) };
    let polls = [
        client.notification(),
        client.send(INVALIDATE, &[], 16),
        client.send(UPDATE, update.as_bytes(), 2),
    ];
    for (index, poll) in polls.iter().enumerate() {
        driver.cancel(ClientId(9), poll.id);
        poll.assert_pending();
        driver.cancel(client.id, poll.id);
        assert_eq!(poll.completion(), status(NtStatus::CANCELLED));
        // Cancelling what has ended does nothing.
        driver.cancel(client.id, poll.id);
        for later in &polls[index + 1..] {
            later.assert_pending();
        }
    }
}

#[test]
fn a_client_that_goes_takes_its_requests_along_and_no_others() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let other = TestClient::new(&driver, 2);
    let of_vf = |vf| SriovInvalidateBlock::of_vf(VfIndex(vf), 0);
    let mine = [client.notification(), client.send(INVALIDATE, of_vf(1).as_bytes(), 16)];
    let others = other.send(INVALIDATE, of_vf(2).as_bytes(), 16);
    driver.client_gone(client.id);
    for poll in mine {
        assert_eq!(poll.status(), NtStatus::CANCELLED);
    }
    assert_eq!(driver.pnp_state(), PnpState::Detached);
    others.assert_pending();
    driver.invalidate_block(VfIndex(2), 4);
    assert_eq!(invalidation(&others.completion()), SriovInvalidateBlock::of_vf(VfIndex(2), 4));
}

#[test]
fn invalidations_are_ored_until_the_stack_asks() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    driver.invalidate_block(VfIndex(2), 0b01);
    driver.invalidate_block(VfIndex(2), 0b10);
    driver.invalidate_block_of_all_vfs(1 << 63);
    let first = client.send(INVALIDATE, &[], 16).completion();
    assert_eq!(invalidation(&first), SriovInvalidateBlock::of_all_vfs(1 << 63));
    let second = client.send(INVALIDATE, &[], 16).completion();
    assert_eq!(invalidation(&second), SriovInvalidateBlock::of_vf(VfIndex(2), 0b11));
    let third = client.send(INVALIDATE, &[], 16);
    third.assert_pending();
    driver.invalidate_block(VfIndex(0), 8);
    assert_eq!(invalidation(&third.completion()), SriovInvalidateBlock::of_vf(VfIndex(0), 8));
}

#[test]
fn an_invalidation_whose_receiver_has_gone_is_told_to_the_next() {
    let driver = driver();
    // Nobody is there to receive the completion.
    drop(TestClient::new(&driver, 1).send(INVALIDATE, &[], 16));
    let second = TestClient::new(&driver, 2).send(INVALIDATE, &[], 16);
    driver.invalidate_block(VfIndex(3), 5);
    assert_eq!(invalidation(&second.completion()), SriovInvalidateBlock::of_vf(VfIndex(3), 5));
}

#[test]
fn a_vf_that_was_freed_is_forgotten() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    driver.invalidate_block(VfIndex(1), 5);
    driver.mitigated_ranges_changed(VfIndex(1));
    driver.forget_vf(VfIndex(1));
    let of_vf = SriovInvalidateBlock::of_vf(VfIndex(1), 0);
    let update = SriovMitigatedRangeUpdateInput { vf_index: VfIndex(1) };
    let polls =
        [client.send(INVALIDATE, of_vf.as_bytes(), 16), client.send(UPDATE, update.as_bytes(), 2)];
    for poll in &polls {
        poll.assert_pending();
    }
    driver.forget_vf(VfIndex(1));
    for poll in &polls {
        assert_eq!(poll.status(), NtStatus::CANCELLED);
    }
}

#[test]
fn mitigated_ranges_are_counted_and_listed_and_their_changes_told() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    let count = SriovMitigatedRangeCountInput { vf_index: VfIndex(1) };
    let counted =
        client.send(SriovIoctl::QueryMitigatedRangeCount, count.as_bytes(), 24).completion();
    let counted = SriovMitigatedRangeCountOutput::read_from_bytes(&counted.output).unwrap();
    assert_eq!(counted.range_count, [0, 0, 0, 2, 0, 0]);

    let query = SriovMitigatedRangesInput { vf_index: VfIndex(1), bar_number: 3, padding: 0 };
    let list = |capacity| {
        client.send(SriovIoctl::QueryMitigatedRanges, query.as_bytes(), capacity).completion()
    };
    assert_eq!(list(31), Completion::too_small(32));
    assert_eq!(list(32).output, driver.device().ranges.lock().unwrap().as_bytes());

    let update = SriovMitigatedRangeUpdateInput { vf_index: VfIndex(1) };
    let poll = client.send(UPDATE, update.as_bytes(), 2);
    assert_eq!(
        client.send(UPDATE, update.as_bytes(), 2).completion(),
        status(NtStatus::SHARING_VIOLATION)
    );
    driver.mitigated_ranges_changed(VfIndex(2));
    poll.assert_pending();
    driver.mitigated_ranges_changed(VfIndex(1));
    assert_eq!(poll.completion().output, [1, 0]);
    client.send(UPDATE, update.as_bytes(), 2).assert_pending();
}

#[test]
fn ranges_of_a_device_without_vfs_are_asked_for_with_index_0() {
    let device = TestDevice::new();
    device.num_vfs.store(0, Ordering::Relaxed);
    let client = TestClient::new(&driver_of(device), 1);
    let ask = |vf| {
        let input = SriovMitigatedRangeCountInput { vf_index: VfIndex(vf) };
        client.send(SriovIoctl::QueryMitigatedRangeCount, input.as_bytes(), 24).status()
    };
    assert_eq!(ask(0), NtStatus::SUCCESS);
    assert_eq!(ask(1), NtStatus::INVALID_PARAMETER);
}

#[test]
fn the_device_s_luid_can_be_asked_for() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    let luid = driver.device().luids.device();
    let ask = |capacity| client.send(SriovIoctl::ProxyQueryLuid, &[], capacity).completion();
    assert_eq!(ask(8).output, luid.as_bytes());
    assert_eq!(ask(7), Completion::too_small(8));
}

#[test]
fn bad_requests_get_the_published_status_and_change_nothing() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let before = (driver.pnp_state(), driver.device().snapshot());
    let of_no_vf = SriovInvalidateBlock::of_vf(VfIndex(TOTAL_VFS), 0);
    let cases: &[(SriovIoctl, &[u8], usize, Completion)] = &[
        (SriovIoctl::EventComplete, &[], 0, status(NtStatus::BUFFER_TOO_SMALL)),
        (INVALIDATE, &[0; 15], 16, status(NtStatus::BUFFER_TOO_SMALL)),
        (INVALIDATE, &[], 15, Completion::too_small(16)),
        (INVALIDATE, of_no_vf.as_bytes(), 16, status(NtStatus::INVALID_PARAMETER)),
        (SriovIoctl::QueryMitigatedRangeCount, &[0], 24, status(NtStatus::BUFFER_TOO_SMALL)),
        (SriovIoctl::QueryMitigatedRangeCount, &[0, 0], 23, Completion::too_small(24)),
        (SriovIoctl::QueryMitigatedRangeCount, &[4, 0], 24, status(NtStatus::INVALID_PARAMETER)),
        (SriovIoctl::QueryMitigatedRanges, &[0, 0, 0], 64, status(NtStatus::BUFFER_TOO_SMALL)),
        (SriovIoctl::QueryMitigatedRanges, &[0, 0, 6, 0], 64, status(NtStatus::INVALID_PARAMETER)),
        (SriovIoctl::QueryMitigatedRanges, &[4, 0, 3, 0], 64, status(NtStatus::INVALID_PARAMETER)),
        (UPDATE, &[0], 2, status(NtStatus::BUFFER_TOO_SMALL)),
        (UPDATE, &[0, 0], 1, Completion::too_small(2)),
        (UPDATE, &[4, 0], 2, status(NtStatus::INVALID_PARAMETER)),
    ];
    for (ioctl, input, capacity, expected) in cases {
        let completion = client.send(*ioctl, input, *capacity).completion();
        assert_eq!(completion, *expected, "{} {input:?}", ioctl.name());
        assert_eq!((driver.pnp_state(), driver.device().snapshot()), before);
    }
}

#[test]
fn a_device_without_mitigated_registers_says_so() {
    let client =
        TestClient::new(&driver_of(TestDevice { mitigable: false, ..TestDevice::new() }), 1);
    for ioctl in [SriovIoctl::QueryMitigatedRangeCount, SriovIoctl::QueryMitigatedRanges, UPDATE] {
        assert_eq!(client.send(ioctl, &[0; 4], 64).completion(), status(NtStatus::NOT_SUPPORTED));
    }
}

#[test]
fn removal_ends_what_is_pending_and_refuses_what_comes() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    let invalidate = client.send(INVALIDATE, &[], 16);
    let update = client.send(UPDATE, &[0, 0], 2);
    assert_eq!(driver.surprise_removal(), NtStatus::SUCCESS);
    assert_eq!(invalidate.status(), NtStatus::CANCELLED);
    assert_eq!(update.status(), NtStatus::CANCELLED);
    driver.invalidate_block(VfIndex(0), 1);
    for (ioctl, input, capacity) in [
        (SriovIoctl::Attach, &[][..], 0),
        (SriovIoctl::Notification, &[], 4),
        (INVALIDATE, &[], 16),
        (SriovIoctl::QueryMitigatedRangeCount, &[0, 0], 24),
        (SriovIoctl::QueryMitigatedRanges, &[0, 0, 3, 0], 64),
        (UPDATE, &[0, 0], 2),
        (SriovIoctl::ProxyQueryLuid, &[], 8),
    ] {
        let completion = client.send(ioctl, input, capacity).completion();
        assert_eq!(completion, status(NtStatus::DEVICE_REMOVED), "{}", ioctl.name());
    }
}

proptest! {
    /// Whatever bytes come, nothing panics, output never exceeds its room, and what is left pending can be cancelled.
    #[test]
    fn random_requests_are_answered_or_held(
        requests in prop::collection::vec(
            (0usize..9, prop::collection::vec(any::<u8>(), 0..20), 0usize..40), 0..40)
    ) {
        let driver = driver();
        let client = TestClient::new(&driver, 1);
        let before = driver.device().snapshot();
        let mut sent = Vec::new();
        for (ioctl, input, capacity) in requests {
            sent.push((client.send(SriovIoctl::ALL[ioctl], &input, capacity), capacity));
        }
        driver.client_gone(client.id);
        for (sent, capacity) in sent {
            prop_assert!(sent.completion().output.len() <= capacity);
        }
        prop_assert_eq!(driver.device().snapshot(), before);
        prop_assert_eq!(driver.pnp_state(), PnpState::Detached);
    }
}
