//! Versions first.

use integration_protocol::{
    FRAMEWORK_VERSIONS, MessageType, Negotiate, Service, Version, Versions,
};

use super::*;
use crate::{
    HeartbeatService, ShutdownAction, ShutdownRefused, ShutdownRequest, ShutdownService,
    TimeSyncService,
};

/// Every guest that speaks one version of each kind, and what comes of it.
fn each_pair<S: IntegrationService>(service: impl Fn() -> S) {
    let known = service().session().service().versions();
    let unknown = [Version::new(0, 9), Version::new(2, 0), Version::new(9, 0)];
    for framework in FRAMEWORK_VERSIONS.iter().chain(&unknown) {
        for message in known.iter().chain(&unknown) {
            let mut world = World::new(service());
            world.guest = GuestDriver::speaking(&[*framework], &[*message]);
            assert_eq!(world.host.session().phase(), Phase::Offered);
            world.open();
            assert_eq!(world.host.session().phase(), Phase::Negotiating);
            world.settle();
            let expected = if FRAMEWORK_VERSIONS.contains(framework) && known.contains(message) {
                let versions = Versions { framework: *framework, message: *message };
                assert_eq!(world.host.session().versions(), Some(versions));
                Phase::Ready(versions)
            } else {
                Phase::Incompatible
            };
            assert_eq!(world.host.session().phase(), expected);
            assert_eq!((world.guest.negotiations, world.ignored.len()), (1, 0));
            world.pass(seconds(60));
            assert_eq!(world.host.session().phase(), expected);
            assert_eq!(world.guest.negotiations, 1, "it is not asked again");
        }
    }
}

#[test]
fn every_pair_of_versions_is_agreed_upon_or_refused() {
    each_pair(ShutdownService::new);
    each_pair(HeartbeatService::new);
    each_pair(|| TimeSyncService::new(true));
}

#[test]
fn a_guest_takes_the_newest_that_both_speak() {
    let world = World::ready(ShutdownService::new());
    let newest = Versions { framework: Version::new(3, 0), message: Version::new(3, 2) };
    assert_eq!(world.host.session().phase(), Phase::Ready(newest));
    // Without a counter that both ends read, no times that refer to it.
    let world = World::ready(TimeSyncService::new(true));
    assert_eq!(world.host.session().versions().unwrap().message, Version::new(4, 0));
    let world = World::ready(TimeSyncService::new(false));
    assert_eq!(world.host.session().versions().unwrap().message, Version::new(3, 0));
}

#[test]
fn a_guest_that_never_answers_is_asked_once_and_waited_for() {
    let mut world = World::new(HeartbeatService::new());
    world.open();
    assert_eq!(world.host_sends(), 1);
    assert_eq!(kind(&world.to_guest[0]), MessageType::Negotiate);
    world.pass_in_silence(seconds(1_000_000));
    assert_eq!(world.to_guest.len(), 1);
    assert_eq!(world.host.deadline(), None);
    assert_eq!(world.host.session().phase(), Phase::Negotiating);
    // It is slow, that is all.
    world.guest_answers();
    assert!(matches!(world.host.session().phase(), Phase::Ready(_)));
}

#[test]
fn answers_that_come_twice_or_to_another_question_are_ignored() {
    let mut world = World::new(ShutdownService::new());
    world.open();
    // Before the question was even asked.
    let early =
        Negotiate { framework: vec![Version::new(3, 0)], message: vec![Version::new(3, 2)] };
    let early = early.emit().unwrap();
    let mut early = Message::request(MessageType::Negotiate, 1, &early);
    early.flags = integration_protocol::HeaderFlags::from_bits_retain(5);
    world.say(&early.emit().unwrap());
    assert_eq!(world.ignored, [Ignored::Unasked]);
    world.host_sends();
    let answer = world.guest.answer(&world.to_guest.pop_front().unwrap()).unwrap();
    world.say(&with(&answer, |message| message.transaction ^= 1));
    world.say(&with(&answer, |message| message.message_type = MessageType::Shutdown));
    world.say(&with(&answer, |message| message.message_type = MessageType::KeyValueExchange));
    world.say(&with(&answer, |message| message.flags = Default::default()));
    world.say(&with(&answer, |message| message.flags = integration_protocol::HeaderFlags::all()));
    assert_eq!(
        world.ignored[1..],
        [
            Ignored::Unasked,
            Ignored::OtherType(MessageType::Shutdown),
            Ignored::OtherType(MessageType::KeyValueExchange),
            Ignored::NotAnAnswer,
            Ignored::NotAnAnswer,
        ]
    );
    assert_eq!(world.host.session().phase(), Phase::Negotiating);
    world.say(&answer);
    let phase = world.host.session().phase();
    assert!(matches!(phase, Phase::Ready(_)));
    // Twice, and with another choice.
    world.say(&answer);
    let other =
        Negotiate { framework: vec![Version::new(1, 0)], message: vec![Version::new(1, 0)] };
    let other = other.emit().unwrap();
    let other = with_body(&answer, &other);
    world.say(&other);
    assert_eq!(world.ignored[6..], [Ignored::Unasked, Ignored::Unasked]);
    assert_eq!(world.host.session().phase(), phase);
}

#[test]
fn a_choice_that_was_not_offered_or_is_none_is_not_taken() {
    let mut world = World::new(HeartbeatService::new());
    world.open();
    world.host_sends();
    let answer = world.guest.answer(&world.to_guest.pop_front().unwrap()).unwrap();
    let choosing = |framework: &[Version], message: &[Version]| {
        let list = Negotiate { framework: framework.to_vec(), message: message.to_vec() };
        let body = list.emit().unwrap();
        with_body(&answer, &body)
    };
    let v = |major| Version::new(major, 0);
    world.say(&choosing(&[v(3)], &[v(4)]));
    world.say(&choosing(&[v(2)], &[v(3)]));
    let wrong = |framework, message| Ignored::NotOffered(Versions { framework, message });
    assert_eq!(world.ignored, [wrong(v(3), v(4)), wrong(v(2), v(3))]);
    world.say(&choosing(&[v(3), v(1)], &[v(3)]));
    let empty = with(&answer, |message| message.body = &[]);
    world.say(&empty);
    assert!(matches!(world.ignored[2..], [Ignored::Malformed(_), Ignored::Malformed(_)]));
    assert_eq!(world.host.session().phase(), Phase::Negotiating);
    // That it failed is a choice of nothing.
    world.say(&with(&answer, |message| message.status = integration_protocol::Status::FAIL));
    assert_eq!(world.host.session().phase(), Phase::Incompatible);
    world.say(&answer);
    assert_eq!(world.ignored[4..], [Ignored::Unasked]);
}

#[test]
fn a_driver_that_is_loaded_again_begins_anew() {
    let mut world = World::ready(ShutdownService::new());
    world.close();
    assert_eq!(world.host.session().phase(), Phase::Offered);
    assert_eq!(world.host.deadline(), None);
    let request = ShutdownRequest {
        action: ShutdownAction::PowerOff,
        force: false,
        reason: 0,
        limit_seconds: 0,
    };
    let refused = world.host.request(request, seconds(1), world.now);
    assert_eq!(refused, Err(ShutdownRefused::NotReady));
    // An older one this time.
    world.guest = GuestDriver::speaking(&[Version::new(1, 0)], &[Version::new(1, 0)]);
    world.open();
    world.settle();
    assert_eq!(world.host.session().versions().unwrap().message, Version::new(1, 0));
    assert_eq!(world.guest.negotiations, 1);
    // And opened without having been closed.
    world.open();
    assert_eq!(world.host.session().phase(), Phase::Negotiating);
    world.settle();
    assert_eq!(world.guest.negotiations, 2);
}

#[test]
fn a_service_that_is_not_offered_for_all_its_versions_says_so() {
    let mut world = World::new(TimeSyncService::new(false));
    world.open();
    world.host_sends();
    let list = world.to_guest[0].clone();
    let list = Negotiate::parse(Message::parse(&list).unwrap().body).unwrap();
    assert_eq!(list.message, Service::TimeSync.versions()[..2]);
    world.guest = GuestDriver::speaking(FRAMEWORK_VERSIONS, &[Version::new(4, 0)]);
    world.guest_answers();
    assert_eq!(world.host.session().phase(), Phase::Incompatible);
}
