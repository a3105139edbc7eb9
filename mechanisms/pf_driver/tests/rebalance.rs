//! A whole rebalance, as the PnP manager runs it.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use pcivirt_protocol::{NtStatus, SriovPfEvent};
use pf_driver::{PfDriver, Rebalance, pnp::PnpState};

const QUERY_STOP: SriovPfEvent = SriovPfEvent::QUERY_STOP_DEVICE;
const RESTART: SriovPfEvent = SriovPfEvent::RESTART;

/// A rebalance that notes in which state resources were changed.
fn rebalance(
    driver: &Arc<PfDriver<TestDevice>>,
) -> (PnpThread<Rebalance>, Arc<Mutex<Vec<PnpState>>>) {
    let changed = Arc::<Mutex<Vec<PnpState>>>::default();
    let thread = PnpThread::start(driver, {
        let changed = Arc::clone(&changed);
        move |driver| driver.rebalance(|| changed.lock().unwrap().push(driver.pnp_state()))
    });
    (thread, changed)
}

#[test]
fn with_nobody_attached_resources_change_at_once() {
    let driver = driver();
    let (thread, changed) = rebalance(&driver);
    assert_eq!(thread.status(), Rebalance::Done { asked: None });
    assert_eq!(*changed.lock().unwrap(), [PnpState::DetachedStopped]);
    assert_eq!(driver.pnp_state(), PnpState::Detached);
}

#[test]
fn resources_change_between_the_two_answers_of_the_client() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let (thread, changed) = rebalance(&driver);
    assert_eq!(client.notification().event(), QUERY_STOP);
    assert!(changed.lock().unwrap().is_empty());
    let restart = client.notification();
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(restart.event(), RESTART);
    assert_eq!(changed.lock().unwrap().len(), 1);
    thread.assert_waits();
    // A second one meanwhile fails and disturbs nothing.
    let (second, unchanged) = rebalance(&driver);
    assert_eq!(second.status(), Rebalance::Failed(NtStatus::INVALID_DEVICE_STATE));
    assert!(unchanged.lock().unwrap().is_empty());
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(thread.status(), Rebalance::Done { asked: Some(client.id) });
}

#[test]
fn a_veto_names_its_client_and_changes_nothing() {
    let driver = driver();
    let client = TestClient::attached(&driver, 7);
    let (thread, changed) = rebalance(&driver);
    assert_eq!(client.notification().event(), QUERY_STOP);
    assert_eq!(client.event_complete(NtStatus::DEVICE_BUSY), NtStatus::SUCCESS);
    // It is told that the stop was called off, and the rebalance waits for it to take notice.
    assert_eq!(client.notification().event(), RESTART);
    thread.assert_waits();
    assert_eq!(client.event_complete(NtStatus::SUCCESS), NtStatus::SUCCESS);
    assert_eq!(thread.status(), Rebalance::Vetoed { by: client.id, status: NtStatus::DEVICE_BUSY });
    assert!(changed.lock().unwrap().is_empty());
}

#[test]
fn a_client_that_dies_midway_holds_nothing_up() {
    for vetoes_first in [false, true] {
        let driver = driver();
        let client = TestClient::attached(&driver, 1);
        let (thread, changed) = rebalance(&driver);
        assert_eq!(client.notification().event(), QUERY_STOP);
        let expected = if vetoes_first {
            client.event_complete(NtStatus::DEVICE_BUSY);
            Rebalance::Vetoed { by: client.id, status: NtStatus::DEVICE_BUSY }
        } else {
            Rebalance::Done { asked: Some(client.id) }
        };
        driver.client_gone(client.id);
        assert_eq!(thread.status(), expected);
        assert_eq!(changed.lock().unwrap().is_empty(), vetoes_first);
        assert_eq!(driver.pnp_state(), PnpState::Detached);
    }
}

#[test]
fn a_device_that_goes_meanwhile_ends_it() {
    let driver = driver();
    let client = TestClient::attached(&driver, 1);
    let (thread, changed) = rebalance(&driver);
    assert_eq!(client.notification().event(), QUERY_STOP);
    assert_eq!(driver.surprise_removal(), NtStatus::SUCCESS);
    assert_eq!(thread.status(), Rebalance::Failed(NtStatus::DEVICE_REMOVED));
    assert!(changed.lock().unwrap().is_empty());
}
