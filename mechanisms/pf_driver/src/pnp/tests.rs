//! The machine alone: its table, and what holds for every sequence of events. The flows of SPEC-PCIVIRT §8.6, with real
//! threads that wait, are in `tests/pnp_flows.rs`.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

fn key(client: ClientId, id: u64) -> RequestKey {
    RequestKey { client, id: RequestId(id) }
}

fn plain(client: ClientId) -> Subscriber {
    Subscriber { client, removal_events: false }
}

fn extended(client: ClientId) -> Subscriber {
    Subscriber { client, removal_events: true }
}

/// Every state that can be told apart, with the name it has in the table.
fn states() -> Vec<(&'static str, PnpState)> {
    use Delivery::{Delivered, New};
    vec![
        ("Detached", PnpState::Detached),
        ("DetachedStopped", PnpState::DetachedStopped),
        ("Attached", PnpState::Attached(plain(A))),
        ("Attached (removal events)", PnpState::Attached(extended(A))),
        ("AttachedStopped", PnpState::AttachedStopped(plain(A))),
        ("AttachedStopped (removal events)", PnpState::AttachedStopped(extended(A))),
        ("StopPending, new", PnpState::StopPending(plain(A), New)),
        ("StopPending, new (removal events)", PnpState::StopPending(extended(A), New)),
        ("StopPending, delivered", PnpState::StopPending(plain(A), Delivered)),
        ("StopPending, delivered (removal events)", PnpState::StopPending(extended(A), Delivered)),
        ("RestartPending, new", PnpState::RestartPending(plain(A), New)),
        ("RestartPending, new (removal events)", PnpState::RestartPending(extended(A), New)),
        ("RestartPending, delivered", PnpState::RestartPending(plain(A), Delivered)),
        (
            "RestartPending, delivered (removal events)",
            PnpState::RestartPending(extended(A), Delivered),
        ),
        ("RemovePending, new", PnpState::RemovePending(extended(A), New)),
        ("RemovePending, delivered", PnpState::RemovePending(extended(A), Delivered)),
        ("SurpriseRemoved", PnpState::SurpriseRemoved(None)),
        ("SurpriseRemoved, new", PnpState::SurpriseRemoved(Some((extended(A), New)))),
        ("SurpriseRemoved, delivered", PnpState::SurpriseRemoved(Some((extended(A), Delivered)))),
        ("Removed", PnpState::Removed),
    ]
}

fn events() -> Vec<(&'static str, PnpEvent)> {
    let veto = NtStatus::UNSUCCESSFUL;
    vec![
        ("ATTACH", PnpEvent::Attach { request: key(A, 1), removal_events: false }),
        ("NOTIFICATION", PnpEvent::Notification { request: key(A, 1) }),
        ("EVENT_COMPLETE(ok)", PnpEvent::EventComplete { client: A, status: NtStatus::SUCCESS }),
        ("EVENT_COMPLETE(error)", PnpEvent::EventComplete { client: A, status: veto }),
        ("DETACH", PnpEvent::Detach { client: A }),
        ("QUERY_STOP", PnpEvent::QueryStop),
        ("STOP", PnpEvent::Stop),
        ("CANCEL_STOP", PnpEvent::CancelStop),
        ("START", PnpEvent::Start),
        ("QUERY_REMOVE", PnpEvent::QueryRemove),
        ("CANCEL_REMOVE", PnpEvent::CancelRemove),
        ("SURPRISE_REMOVAL", PnpEvent::SurpriseRemoval),
        ("REMOVE", PnpEvent::Remove),
    ]
}

fn short(status: NtStatus) -> &'static str {
    status.name().unwrap().trim_start_matches("STATUS_")
}

fn name_of(state: PnpState) -> &'static str {
    states().into_iter().find(|(_, known)| *known == state).unwrap().0
}

/// The documented table, as the code has it.
fn table() -> String {
    let mut out = String::from(
        "| event | from | answer | PnP thread | queued NOTIFICATIONs | to |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for (event_name, event) in events() {
        // States with the same row are listed together, in the order of their first.
        let mut rows: Vec<(String, Vec<&str>)> = Vec::new();
        for (state_name, state) in states() {
            let Transition { next, answer, release, flush } = state.transition(event);
            let answer = match (answer, event) {
                (NtStatus::PENDING, PnpEvent::Attach { .. } | PnpEvent::Notification { .. }) => {
                    "queued"
                }
                (NtStatus::PENDING, _) => "wait",
                (status, _) => short(status),
            };
            let thread =
                release.map_or(String::new(), |status| format!("goes on: {}", short(status)));
            let queue = flush.map_or("", short);
            // The subscriber is carried along, with what it asked for.
            let to = if next == state {
                "(same)"
            } else if next.subscriber() == state.subscriber() {
                name_of(next).trim_end_matches(" (removal events)")
            } else {
                name_of(next)
            };
            let row = format!("{answer} | {thread} | {queue} | {to}");
            match rows.iter_mut().find(|(known, _)| *known == row) {
                Some((_, from)) => from.push(state_name),
                None => rows.push((row, vec![state_name])),
            }
        }
        for (row, from) in rows {
            // "X (removal events)" beside "X" says nothing.
            let from: Vec<_> = from
                .iter()
                .filter(|name| {
                    !name
                        .strip_suffix(" (removal events)")
                        .is_some_and(|plain| from.contains(&plain))
                })
                .copied()
                .collect();
            writeln!(out, "| {event_name} | {} | {row} |", from.join("; ")).unwrap();
        }
    }
    out
}

#[test]
fn the_documented_table_is_the_code() {
    let documented = include_str!("transitions.md");
    if documented != table() {
        println!("{}", table());
        panic!("src/pnp/transitions.md differs from the code; the table above is the right one");
    }
}

fn step(machine: &mut PnpMachine, event: PnpEvent) -> (NtStatus, Vec<Effect>) {
    let Outcome { answer, effects } = machine.step(event);
    (answer, effects)
}

fn done(request: RequestKey, status: NtStatus) -> Effect {
    Effect::Complete { request, status }
}

fn attach(client: ClientId, id: u64) -> PnpEvent {
    PnpEvent::Attach { request: key(client, id), removal_events: false }
}

fn notification(client: ClientId, id: u64) -> PnpEvent {
    PnpEvent::Notification { request: key(client, id) }
}

#[test]
fn only_one_client_can_be_attached() {
    let mut machine = PnpMachine::new();
    assert_eq!(
        step(&mut machine, attach(A, 1)),
        (NtStatus::SUCCESS, vec![done(key(A, 1), NtStatus::SUCCESS)])
    );
    let taken = NtStatus::SHARING_VIOLATION;
    assert_eq!(step(&mut machine, attach(B, 1)), (taken, vec![done(key(B, 1), taken)]));
    assert_eq!(step(&mut machine, attach(A, 2)), (taken, vec![done(key(A, 2), taken)]));
    assert_eq!(machine.state(), PnpState::Attached(plain(A)));
}

#[test]
fn of_two_that_wait_for_a_safe_moment_the_first_is_attached() {
    let mut machine = PnpMachine::new();
    assert_eq!(step(&mut machine, PnpEvent::QueryStop), (NtStatus::SUCCESS, vec![]));
    assert_eq!(step(&mut machine, attach(A, 1)), (NtStatus::PENDING, vec![]));
    assert_eq!(step(&mut machine, attach(B, 1)), (NtStatus::PENDING, vec![]));
    assert_eq!(
        step(&mut machine, PnpEvent::Start),
        (
            NtStatus::SUCCESS,
            vec![done(key(A, 1), NtStatus::SUCCESS), done(key(B, 1), NtStatus::SHARING_VIOLATION)]
        )
    );
    assert_eq!(machine.state(), PnpState::Attached(plain(A)));
}

#[test]
fn a_waiting_attach_can_be_cancelled() {
    let mut machine = PnpMachine::new();
    machine.step(PnpEvent::QueryStop);
    machine.step(attach(A, 1));
    assert_eq!(
        step(&mut machine, PnpEvent::Cancel { request: key(A, 1) }),
        (NtStatus::SUCCESS, vec![done(key(A, 1), NtStatus::CANCELLED)])
    );
    assert_eq!(step(&mut machine, PnpEvent::CancelStop), (NtStatus::SUCCESS, vec![]));
    assert_eq!(machine.state(), PnpState::Detached);
}

#[test]
fn a_stranger_can_neither_poll_nor_answer_nor_detach() {
    let mut machine = PnpMachine::new();
    machine.step(attach(A, 1));
    machine.step(notification(A, 2));
    machine.step(PnpEvent::QueryStop);
    let before = machine.state();
    let refused = NtStatus::INVALID_DEVICE_STATE;
    assert_eq!(step(&mut machine, notification(B, 1)), (refused, vec![done(key(B, 1), refused)]));
    let answer = PnpEvent::EventComplete { client: B, status: NtStatus::SUCCESS };
    assert_eq!(step(&mut machine, answer), (refused, vec![]));
    assert_eq!(step(&mut machine, PnpEvent::Detach { client: B }), (NtStatus::SUCCESS, vec![]));
    assert_eq!(step(&mut machine, PnpEvent::ClientGone { client: B }).1, vec![]);
    assert_eq!(machine.state(), before);
}

#[test]
fn an_event_nobody_was_told_of_cannot_be_completed() {
    let mut machine = PnpMachine::new();
    machine.step(attach(A, 1));
    let answer = PnpEvent::EventComplete { client: A, status: NtStatus::SUCCESS };
    assert_eq!(step(&mut machine, answer), (NtStatus::INVALID_DEVICE_STATE, vec![]));
    machine.step(PnpEvent::QueryStop);
    assert_eq!(step(&mut machine, answer), (NtStatus::INVALID_DEVICE_STATE, vec![]));
    machine.step(notification(A, 2));
    assert_eq!(
        step(&mut machine, answer),
        (NtStatus::SUCCESS, vec![Effect::ReleasePnp { status: NtStatus::SUCCESS }])
    );
    assert_eq!(step(&mut machine, answer), (NtStatus::INVALID_DEVICE_STATE, vec![]));
}

#[test]
fn detach_cancels_the_notifications_and_frees_the_waiter() {
    let mut machine = PnpMachine::new();
    machine.step(attach(A, 1));
    machine.step(notification(A, 2));
    machine.step(notification(A, 3));
    assert_eq!(
        step(&mut machine, PnpEvent::QueryStop),
        (
            NtStatus::PENDING,
            vec![Effect::Notify { request: key(A, 2), event: SriovPfEvent::QUERY_STOP_DEVICE }]
        )
    );
    assert_eq!(
        step(&mut machine, PnpEvent::Detach { client: A }),
        (
            NtStatus::SUCCESS,
            vec![
                done(key(A, 3), NtStatus::CANCELLED),
                Effect::ReleasePnp { status: NtStatus::SUCCESS }
            ]
        )
    );
    assert_eq!(machine.state(), PnpState::DetachedStopped);
}

#[test]
fn an_extended_client_can_veto_an_orderly_removal() {
    let mut machine = PnpMachine::new();
    machine.step(PnpEvent::Attach { request: key(A, 1), removal_events: true });
    machine.step(notification(A, 2));
    assert_eq!(
        step(&mut machine, PnpEvent::QueryRemove),
        (
            NtStatus::PENDING,
            vec![Effect::Notify { request: key(A, 2), event: SriovPfEvent::QUERY_REMOVE_DEVICE }]
        )
    );
    let veto = PnpEvent::EventComplete { client: A, status: NtStatus::DEVICE_BUSY };
    assert_eq!(
        step(&mut machine, veto),
        (NtStatus::SUCCESS, vec![Effect::ReleasePnp { status: NtStatus::DEVICE_BUSY }])
    );
    assert_eq!(machine.state(), PnpState::Attached(extended(A)));
}

#[test]
fn a_client_that_did_not_ask_is_not_told_of_removal() {
    let mut machine = PnpMachine::new();
    machine.step(attach(A, 1));
    machine.step(notification(A, 2));
    assert_eq!(step(&mut machine, PnpEvent::QueryRemove), (NtStatus::SUCCESS, vec![]));
    assert_eq!(
        step(&mut machine, PnpEvent::SurpriseRemoval),
        (NtStatus::SUCCESS, vec![done(key(A, 2), NtStatus::DEVICE_REMOVED)])
    );
    assert_eq!(
        step(&mut machine, notification(A, 3)),
        (NtStatus::DEVICE_REMOVED, vec![done(key(A, 3), NtStatus::DEVICE_REMOVED)])
    );
}

#[test]
fn an_extended_client_is_told_once_of_a_surprise_removal_even_late() {
    let mut machine = PnpMachine::new();
    machine.step(PnpEvent::Attach { request: key(A, 1), removal_events: true });
    assert_eq!(step(&mut machine, PnpEvent::SurpriseRemoval), (NtStatus::SUCCESS, vec![]));
    let told = Effect::Notify { request: key(A, 2), event: SriovPfEvent::SURPRISE_REMOVE_DEVICE };
    assert_eq!(step(&mut machine, notification(A, 2)), (NtStatus::PENDING, vec![told]));
    assert_eq!(
        step(&mut machine, notification(A, 3)),
        (NtStatus::DEVICE_REMOVED, vec![done(key(A, 3), NtStatus::DEVICE_REMOVED)])
    );
    let answer = PnpEvent::EventComplete { client: A, status: NtStatus::SUCCESS };
    assert_eq!(step(&mut machine, answer), (NtStatus::SUCCESS, vec![]));
    assert_eq!(machine.state(), PnpState::SurpriseRemoved(None));
}

fn any_event() -> impl Strategy<Value = PnpEvent> {
    let client = prop::sample::select(vec![A, B, ClientId(3)]);
    let status = prop::sample::select(vec![NtStatus::SUCCESS, NtStatus::UNSUCCESSFUL]);
    prop_oneof![
        4 => (client.clone(), any::<bool>()).prop_map(|(client, removal_events)| {
            PnpEvent::Attach { request: key(client, 0), removal_events }
        }),
        4 => client.clone().prop_map(|client| PnpEvent::Notification { request: key(client, 0) }),
        3 => (client.clone(), status)
            .prop_map(|(client, status)| PnpEvent::EventComplete { client, status }),
        1 => client.clone().prop_map(|client| PnpEvent::Detach { client }),
        1 => client.clone().prop_map(|client| PnpEvent::ClientGone { client }),
        1 => (client, 0u64..40)
            .prop_map(|(client, id)| PnpEvent::Cancel { request: key(client, id) }),
        2 => Just(PnpEvent::QueryStop),
        1 => Just(PnpEvent::Stop),
        1 => Just(PnpEvent::CancelStop),
        1 => Just(PnpEvent::Start),
        1 => Just(PnpEvent::QueryRemove),
        1 => Just(PnpEvent::SurpriseRemoval),
        1 => Just(PnpEvent::Remove),
    ]
}

proptest! {
    /// Whatever happens in whatever order: every request is completed exactly once or still queued, every raised event
    /// is delivered at most once, and every PnP thread that waits is freed exactly once or still waits.
    #[test]
    fn nothing_is_lost_or_done_twice(events in prop::collection::vec(any_event(), 0..60)) {
        let mut machine = PnpMachine::new();
        let mut open = BTreeSet::new();
        let mut waiting = false;
        let mut deliveries: BTreeMap<u32, u32> = BTreeMap::new();
        let mut raised: BTreeMap<u32, u32> = BTreeMap::new();
        for (id, event) in (0u64..).zip(events) {
            let event = match event {
                PnpEvent::Attach { request, removal_events } => {
                    PnpEvent::Attach { request: key(request.client, id), removal_events }
                }
                PnpEvent::Notification { request } => {
                    PnpEvent::Notification { request: key(request.client, id) }
                }
                other => other,
            };
            if let PnpEvent::Attach { request, .. } | PnpEvent::Notification { request } = event {
                open.insert(request);
            }
            let before = machine.state();
            let Outcome { answer, effects } = machine.step(event);
            for effect in effects {
                match effect {
                    Effect::Complete { request, status } => {
                        prop_assert!(open.remove(&request));
                        prop_assert_ne!(status, NtStatus::PENDING);
                    }
                    Effect::Notify { request, event } => {
                        prop_assert!(open.remove(&request));
                        *deliveries.entry(event.0).or_default() += 1;
                    }
                    Effect::ReleasePnp { .. } => {
                        prop_assert!(waiting);
                        waiting = false;
                    }
                }
            }
            if let PnpEvent::QueryStop | PnpEvent::CancelStop | PnpEvent::Start | PnpEvent::QueryRemove = event
                && answer == NtStatus::PENDING
            {
                prop_assert!(!waiting);
                waiting = true;
            }
            // An event is raised by entering the state that waits for it.
            let state = machine.state();
            if state.waits_for() != before.waits_for() && let Some(event) = state.waits_for() {
                *raised.entry(event.0).or_default() += 1;
            }
            if state.is_removed() && !before.is_removed() {
                *raised.entry(SriovPfEvent::SURPRISE_REMOVE_DEVICE.0).or_default() += 1;
            }
            for (event, count) in &deliveries {
                prop_assert!(count <= raised.get(event).unwrap_or(&0));
            }
            prop_assert_eq!(waiting, state.waits_for().is_some());
            let queued: BTreeSet<_> =
                machine.queued_notifications().chain(machine.waiting_attaches()).collect();
            prop_assert_eq!(&open, &queued);
            if state.is_removed() {
                prop_assert!(queued.is_empty());
            }
            for request in machine.queued_notifications() {
                prop_assert_eq!(Some(request.client), state.subscriber().map(|s| s.client));
            }
            if machine.waiting_attaches().next().is_some() {
                prop_assert_eq!(state, PnpState::DetachedStopped);
            }
        }
    }
}
