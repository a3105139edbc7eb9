//! A guest is asked to shut down.

use integration_protocol::{FRAMEWORK_VERSIONS, REASON_PLANNED, Status, Version};

use super::*;
use crate::{ShutdownAction, ShutdownOutcome, ShutdownRefused, ShutdownRequest, ShutdownService};

const LIMIT: Duration = Duration::from_secs(20);

fn request(action: ShutdownAction, force: bool) -> ShutdownRequest {
    ShutdownRequest { action, force, reason: REASON_PLANNED, limit_seconds: 0 }
}

fn power_off() -> ShutdownRequest {
    request(ShutdownAction::PowerOff, false)
}

#[test]
fn what_is_asked_reaches_the_guest_and_its_answer_comes_back() {
    let mut world = World::ready(ShutdownService::new());
    for action in [ShutdownAction::PowerOff, ShutdownAction::Restart, ShutdownAction::Hibernate] {
        for force in [false, true] {
            for (status, outcome) in [
                (Status::SUCCESS, ShutdownOutcome::Initiated),
                (Status::FAIL, ShutdownOutcome::Refused(Status::FAIL)),
                (Status(0x8007_0015), ShutdownOutcome::Refused(Status(0x8007_0015))),
            ] {
                world.guest.status = status;
                let mut request = request(action, force);
                request.reason = status.0 ^ 0x0002_0003;
                request.limit_seconds = 7;
                world.host.request(request, LIMIT, world.now).unwrap();
                assert_eq!(world.host.in_progress(), Some(action));
                assert_eq!(world.host.take_outcome(), None);
                world.settle();
                assert_eq!(world.guest.shutdowns.pop(), Some(request));
                assert_eq!(world.host.in_progress(), None);
                assert_eq!(world.host.take_outcome(), Some(outcome));
                assert_eq!(world.host.take_outcome(), None, "it is told once");
            }
        }
    }
    assert!(world.guest.shutdowns.is_empty() && world.ignored.is_empty());
    assert_eq!(world.host.deadline(), None);
}

#[test]
fn a_guest_is_not_asked_for_what_its_driver_does_not_know() {
    let since = [
        (Version::new(1, 0), 1),
        (Version::new(3, 0), 1),
        (Version::new(3, 1), 2),
        (Version::new(3, 2), 3),
    ];
    for (spoken, count) in since {
        let mut world = World::new(ShutdownService::new());
        world.guest = GuestDriver::speaking(FRAMEWORK_VERSIONS, &[spoken]);
        world.open();
        world.settle();
        let actions =
            [ShutdownAction::PowerOff, ShutdownAction::Restart, ShutdownAction::Hibernate];
        for (index, action) in actions.into_iter().enumerate() {
            let asked = world.host.request(request(action, false), LIMIT, world.now);
            if index < count {
                assert_eq!(asked, Ok(()));
                world.settle();
                assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::Initiated));
            } else {
                let needed = action.since();
                assert_eq!(asked, Err(ShutdownRefused::NotSupported { spoken, needed }));
            }
        }
        assert_eq!(world.guest.shutdowns.len(), count);
    }
}

#[test]
fn a_guest_without_a_driver_is_not_asked() {
    let mut world = World::new(ShutdownService::new());
    assert_eq!(world.host.request(power_off(), LIMIT, world.now), Err(ShutdownRefused::NotReady));
    world.open();
    world.host_sends();
    assert_eq!(world.host.request(power_off(), LIMIT, world.now), Err(ShutdownRefused::NotReady));
    assert_eq!(world.host.take_outcome(), None);
}

#[test]
fn one_request_at_a_time() {
    let mut world = World::ready(ShutdownService::new());
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    let second = request(ShutdownAction::Restart, true);
    assert_eq!(world.host.request(second, LIMIT, world.now), Err(ShutdownRefused::InProgress));
    world.host_sends();
    assert_eq!(world.host.request(second, LIMIT, world.now), Err(ShutdownRefused::InProgress));
    world.guest_answers();
    assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::Initiated));
    world.host.request(second, LIMIT, world.now).unwrap();
    world.settle();
    assert_eq!(world.guest.shutdowns, [power_off(), second]);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_and_its_late_answer_is_no_other_ones() {
    let mut world = World::ready(ShutdownService::new());
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    world.pass_in_silence(LIMIT - Duration::from_nanos(1));
    assert_eq!(world.host.take_outcome(), None);
    world.pass_in_silence(Duration::from_nanos(1));
    assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::NoAnswer));
    assert_eq!(world.host.deadline(), None);
    // It is asked again, and only then answers the first.
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    world.host_sends();
    let late = world.guest.answer(&world.to_guest.pop_front().unwrap()).unwrap();
    world.say(&late);
    assert_eq!(world.ignored, [Ignored::Unasked]);
    assert_eq!(world.host.take_outcome(), None);
    world.guest.status = Status::FAIL;
    world.guest_answers();
    assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::Refused(Status::FAIL)));
    // Twice.
    world.say(&late);
    assert_eq!(world.ignored.len(), 2);
    assert_eq!(world.host.take_outcome(), None);
}

#[test]
fn a_request_that_nobody_waits_for_is_not_sent_and_not_reported() {
    let mut world = World::ready(ShutdownService::new());
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    world.host.cancel();
    assert_eq!(world.host_sends(), 0);
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    world.host_sends();
    world.host.cancel();
    world.guest_answers();
    assert_eq!(world.ignored, [Ignored::Unasked]);
    assert_eq!(world.host.take_outcome(), None);
}

#[test]
fn a_guest_that_goes_instead_of_answering_has_closed() {
    let mut world = World::ready(ShutdownService::new());
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    world.host_sends();
    world.close();
    assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::Closed));
    let mut world = World::ready(ShutdownService::new());
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    world.open();
    assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::Closed));
    world.settle();
    assert!(world.guest.shutdowns.is_empty(), "the next driver is not asked for it");
}

#[test]
fn answers_without_a_request_are_ignored() {
    let mut world = World::ready(ShutdownService::new());
    world.host.request(power_off(), LIMIT, world.now).unwrap();
    // Before it was sent.
    let bytes = Message::request(MessageType::Shutdown, 2, &[]).emit().unwrap();
    let answer = with(&bytes, |message| {
        message.flags = integration_protocol::HeaderFlags::from_bits_retain(5);
    });
    world.say(&answer);
    assert_eq!(world.ignored, [Ignored::Unasked]);
    world.settle();
    assert_eq!(world.host.take_outcome(), Some(ShutdownOutcome::Initiated));
    world.say(&with(&answer, |message| message.message_type = MessageType::Heartbeat));
    assert_eq!(world.ignored[1..], [Ignored::OtherType(MessageType::Heartbeat)]);
}
