//! The complete flows of SPEC-PCIVIRT §8.6, with a PnP thread that really waits.

mod common;

use common::*;
use pcivirt_protocol::{NtStatus, SriovPfEvent};
use pf_driver::pnp::{PnpState, Subscriber};

const QUERY_STOP: SriovPfEvent = SriovPfEvent::QUERY_STOP_DEVICE;
const RESTART: SriovPfEvent = SriovPfEvent::RESTART;

fn attached_state(client: &TestClient) -> PnpState {
    PnpState::Attached(Subscriber { client: client.id, removal_events: false })
}

#[test]
fn f1_normal_rebalance_with_a_client_attached() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let first = client.notification();

    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    assert_eq!(first.event(), QUERY_STOP);
    let second = client.notification();
    stop.assert_waits();
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::SUCCESS);
    assert_eq!(driver.stop(), NtStatus::SUCCESS);
    second.assert_pending();

    let start = PnpThread::start(&driver, |driver| driver.start());
    assert_eq!(second.event(), RESTART);
    let third = client.notification();
    start.assert_waits();
    // A restart has no query to answer: even an error lets it go on.
    assert_eq!(client.event_complete(NtStatus::UNSUCCESSFUL), NtStatus::SUCCESS);
    assert_eq!(start.status(), NtStatus::SUCCESS);
    third.assert_pending();
    assert_eq!(driver.pnp_state(), attached_state(&client));
}

#[test]
fn f2_veto() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let first = client.notification();
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    assert_eq!(first.event(), QUERY_STOP);
    let second = client.notification();
    assert_eq!(client.event_complete(NtStatus::DEVICE_BUSY), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::DEVICE_BUSY);

    let cancel = PnpThread::start(&driver, |driver| driver.cancel_stop());
    assert_eq!(second.event(), RESTART);
    cancel.assert_waits();
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(cancel.status(), NtStatus::SUCCESS);
    assert_eq!(driver.pnp_state(), attached_state(&client));
}

#[test]
fn f3_client_dies_mid_way() {
    for restart in [false, true] {
        let driver = driver();
        let client = TestClient::attached(&driver, 1);
        let first = client.notification();
        let stop = PnpThread::start(&driver, |driver| driver.query_stop());
        assert_eq!(first.event(), QUERY_STOP);
        let second = client.notification();
        stop.assert_waits();
        driver.client_gone(client.id);
        assert_eq!(stop.status(), NtStatus::SUCCESS);
        assert_eq!(second.status(), NtStatus::CANCELLED);

        // It comes back, but does not know of the rebalance that is going on.
        let client = TestClient::new(&driver, 2);
        let attach = client.attach();
        attach.assert_pending();
        let status = if restart { driver.start() } else { driver.cancel_stop() };
        assert_eq!(status, NtStatus::SUCCESS);
        assert_eq!(attach.status(), NtStatus::SUCCESS);
        assert_eq!(driver.pnp_state(), attached_state(&client));
    }
}

#[test]
fn f3_client_detaches_mid_way() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let first = client.notification();
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    assert_eq!(first.event(), QUERY_STOP);
    assert_eq!(client.detach(), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::SUCCESS);
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::INVALID_DEVICE_STATE);
    client.attach().assert_pending();
}

#[test]
fn f4_late_subscriber() {
    let driver = driver();
    assert_eq!(driver.query_stop(), NtStatus::SUCCESS);
    let client = TestClient::new(&driver, 1);
    let attach = client.attach();
    attach.assert_pending();
    assert_eq!(driver.stop(), NtStatus::SUCCESS);
    attach.assert_pending();
    // Nobody is attached, so nobody is waited for.
    assert_eq!(driver.start(), NtStatus::SUCCESS);
    assert_eq!(attach.status(), NtStatus::SUCCESS);

    // No restart for who did not see the stop: the first event is that of the next rebalance.
    let notification = client.notification();
    notification.assert_pending();
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    assert_eq!(notification.event(), QUERY_STOP);
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::SUCCESS);
}

#[test]
fn f5_event_before_poll() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    wait_until_raised(&driver, QUERY_STOP);
    stop.assert_waits();
    assert_eq!(client.notification().event(), QUERY_STOP);
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::SUCCESS);
}

#[test]
fn f6_poll_again_before_completion() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let first = client.notification();
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    assert_eq!(first.event(), QUERY_STOP);
    // The event was delivered: it is not reported twice, however often the client asks.
    let more = [client.notification(), client.notification()];
    for notification in &more {
        notification.assert_pending();
    }
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::SUCCESS);
    for notification in &more {
        notification.assert_pending();
    }
    let start = PnpThread::start(&driver, |driver| driver.start());
    assert_eq!(more[0].event(), RESTART);
    more[1].assert_pending();
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(start.status(), NtStatus::SUCCESS);
}

#[test]
fn f7_surprise_removal() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let polls = [client.notification(), client.notification()];
    assert_eq!(driver.surprise_removal(), NtStatus::SUCCESS);
    for poll in polls {
        assert_eq!(poll.status(), NtStatus::DEVICE_REMOVED);
    }
    assert_eq!(client.notification().status(), NtStatus::DEVICE_REMOVED);
    assert_eq!(client.detach(), NtStatus::SUCCESS);
    assert_eq!(client.attach().status(), NtStatus::DEVICE_REMOVED);
    assert_eq!(driver.query_stop(), NtStatus::DEVICE_REMOVED);
    assert_eq!(driver.remove(), NtStatus::SUCCESS);
    assert_eq!(driver.pnp_state(), PnpState::Removed);
}

#[test]
fn f7_surprise_removal_with_removal_events() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    assert_eq!(client.attach_for_removal().status(), NtStatus::SUCCESS);
    let polls = [client.notification(), client.notification()];
    // Nobody is asked: the removal does not wait, and cannot be vetoed.
    assert_eq!(driver.surprise_removal(), NtStatus::SUCCESS);
    assert_eq!(polls[0].event(), SriovPfEvent::SURPRISE_REMOVE_DEVICE);
    assert_eq!(polls[1].status(), NtStatus::DEVICE_REMOVED);
    assert_eq!(client.event_complete(NtStatus::UNSUCCESSFUL), NtStatus::SUCCESS);
    assert_eq!(driver.pnp_state(), PnpState::SurpriseRemoved(None));
}

#[test]
fn f7_surprise_removal_frees_a_pnp_thread_that_waits() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let first = client.notification();
    let stop = PnpThread::start(&driver, |driver| driver.query_stop());
    assert_eq!(first.event(), QUERY_STOP);
    stop.assert_waits();
    assert_eq!(driver.surprise_removal(), NtStatus::SUCCESS);
    assert_eq!(stop.status(), NtStatus::DEVICE_REMOVED);
}

#[test]
fn an_orderly_removal_can_be_vetoed_only_by_who_asked_to_be_asked() {
    let driver = driver();
    let client = TestClient::new(&driver, 1);
    assert_eq!(client.attach_for_removal().status(), NtStatus::SUCCESS);
    let notification = client.notification();
    let remove = PnpThread::start(&driver, |driver| driver.query_remove());
    assert_eq!(notification.event(), SriovPfEvent::QUERY_REMOVE_DEVICE);
    remove.assert_waits();
    assert_eq!(client.event_complete(NtStatus::DEVICE_BUSY), NtStatus::SUCCESS);
    assert_eq!(remove.status(), NtStatus::DEVICE_BUSY);
    assert_eq!(driver.cancel_remove(), NtStatus::SUCCESS);
    assert_eq!(client.detach(), NtStatus::SUCCESS);

    let plain = TestClient::attached(&driver, 2);
    let notification = plain.notification();
    assert_eq!(driver.query_remove(), NtStatus::SUCCESS);
    notification.assert_pending();
    assert_eq!(driver.remove(), NtStatus::SUCCESS);
    assert_eq!(notification.status(), NtStatus::DEVICE_REMOVED);
}

/// Many clients attach while many rebalances come and go, and some clients die: nobody hangs, and never are two attached.
#[test]
fn attach_and_rebalance_race_without_a_hang() {
    const ROUNDS: u64 = 200;
    let driver = driver();
    std::thread::scope(|scope| {
        let rebalancing = scope.spawn(|| {
            for _ in 0..ROUNDS {
                let stop = PnpThread::start(&driver, |driver| driver.query_stop()).status();
                let restart = PnpThread::start(&driver, move |driver| {
                    if stop.is_success() { driver.start() } else { driver.cancel_stop() }
                });
                assert_eq!(restart.status(), NtStatus::SUCCESS);
            }
        });
        for worker in 0..4u64 {
            let driver = &driver;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let client = TestClient::new(driver, 1 + worker * ROUNDS + round);
                    match client.attach().status() {
                        NtStatus::SUCCESS => {}
                        NtStatus::SHARING_VIOLATION => continue,
                        other => panic!("attach: {other}"),
                    }
                    let notification = client.notification();
                    if round % 3 == 0 {
                        let veto = round % 2 == 0;
                        let status = if veto { NtStatus::UNSUCCESSFUL } else { NtStatus::SUCCESS };
                        // There may be an event or not.
                        client.event_complete(status);
                    }
                    driver.client_gone(client.id);
                    let status = notification.status();
                    assert!(
                        matches!(status, NtStatus::SUCCESS | NtStatus::CANCELLED),
                        "notification: {status}"
                    );
                }
            });
        }
        rebalancing.join().unwrap();
    });
    assert_eq!(driver.pnp_state(), PnpState::Detached);
}
