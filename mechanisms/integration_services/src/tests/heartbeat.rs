//! A guest is alive, or is not heard of.

use integration_protocol::{ApplicationState, Heartbeat};

use super::*;
use crate::{HeartbeatService, Pulse};

#[test]
fn a_guest_is_seen_every_two_seconds() {
    let mut world = World::new(HeartbeatService::new());
    assert_eq!(world.host.pulse(), Pulse::NeverSeen);
    assert_eq!((world.host.last_sequence(), world.host.last_seen()), (None, None));
    world.open();
    world.settle();
    assert_eq!(world.host.pulse(), Pulse::Alive);
    assert_eq!(world.guest.beats, [1], "the first comes at once");
    for beat in 2..100 {
        world.pass(seconds(2));
        assert_eq!(world.guest.beats.last(), Some(&beat));
        assert_eq!(world.host.last_sequence(), Some(beat + 1));
        assert_eq!(world.host.last_seen(), Some(world.now));
        assert_eq!(world.host.pulse(), Pulse::Alive);
    }
    assert_eq!(world.guest.beats.len(), 99);
    assert!(world.ignored.is_empty());
}

#[test]
fn a_guest_that_falls_silent_is_lost_after_ten_seconds_and_found_again() {
    let mut world = World::ready(HeartbeatService::new());
    world.pass(seconds(10));
    let (seen, sequence) = (world.host.last_seen(), world.host.last_sequence());
    // The next one is in two seconds, and is waited for for ten.
    world.pass_in_silence(seconds(12) - Duration::from_nanos(1));
    assert_eq!(world.host.pulse(), Pulse::Alive);
    world.pass_in_silence(Duration::from_nanos(1));
    assert_eq!(world.host.pulse(), Pulse::Lost);
    assert_eq!((world.host.last_seen(), world.host.last_sequence()), (seen, sequence));
    world.pass_in_silence(seconds(1_000));
    assert_eq!(world.host.pulse(), Pulse::Lost);
    // It was stopped, and goes on: it answers one, and then the rest.
    let answer = world.guest.answer(&world.to_guest.pop_front().unwrap()).unwrap();
    world.say(&answer);
    assert_eq!(world.host.pulse(), Pulse::Alive);
    assert_eq!(world.host.last_seen(), Some(world.now));
    world.guest_answers();
    world.pass(seconds(100));
    assert_eq!(world.host.pulse(), Pulse::Alive);
    assert!(world.ignored.is_empty());
    let beats = &world.guest.beats;
    assert!(beats.is_sorted() && beats.len() as u64 == *beats.last().unwrap(), "none was left out");
}

#[test]
fn a_guest_that_answers_late_but_answers_is_alive() {
    let mut world = World::ready(HeartbeatService::new());
    for _ in 0..50 {
        world.pass_in_silence(seconds(9));
        assert_eq!(world.host.pulse(), Pulse::Alive);
        world.guest_answers();
    }
    assert!(world.ignored.is_empty());
}

#[test]
fn a_host_that_slept_does_not_take_its_guest_for_lost() {
    let mut world = World::ready(HeartbeatService::new());
    world.pass(seconds(3));
    // Nobody called for an hour; all that was asked is answered.
    world.now += seconds(3600);
    world.host.poll(world.now);
    assert_eq!(world.host.pulse(), Pulse::Alive);
    assert_eq!(world.host_sends(), 1, "what was missed is not made up for");
    world.guest_answers();
    assert_eq!(world.host.pulse(), Pulse::Alive);
}

#[test]
fn a_guest_that_closes_the_channel_is_lost_until_another_driver_answers() {
    let mut world = World::ready(HeartbeatService::new());
    world.pass(seconds(4));
    let old = Heartbeat { sequence: 3, state: ApplicationState::UNKNOWN }.emit();
    let old = Message::request(MessageType::Heartbeat, 9, &old).emit().unwrap();
    let old = with(&old, |message| {
        message.flags = integration_protocol::HeaderFlags::from_bits_retain(5);
    });
    world.close();
    assert_eq!((world.host.pulse(), world.host.deadline()), (Pulse::Lost, None));
    world.pass(seconds(100));
    world.open();
    assert_eq!(world.host.pulse(), Pulse::Lost);
    world.host_sends();
    world.guest_answers();
    // The new driver has not beaten yet: what the old one might have said is not its.
    world.say(&old);
    assert_eq!(world.ignored, [Ignored::Unasked]);
    assert_eq!(world.host.pulse(), Pulse::Lost);
    world.settle();
    assert_eq!(world.host.pulse(), Pulse::Alive);
    assert_eq!(world.guest.beats, [1, 2, 3, 4], "numbers go on");
}

#[test]
fn a_guest_that_never_answered_was_never_seen() {
    let mut world = World::new(HeartbeatService::new());
    world.open();
    world.host_sends();
    world.guest_answers();
    world.pass_in_silence(seconds(100));
    assert_eq!(world.host.pulse(), Pulse::NeverSeen);
    world.close();
    assert_eq!(world.host.pulse(), Pulse::NeverSeen);
}

#[test]
fn answers_that_are_old_or_answer_what_was_never_sent_are_no_sign_of_life() {
    let mut world = World::ready(HeartbeatService::new());
    world.now += seconds(2);
    world.host_sends();
    let beat = world.to_guest.pop_front().unwrap();
    let answer = world.guest.answer(&beat).unwrap();
    let numbered = |sequence| {
        let body = Heartbeat { sequence, state: ApplicationState::HEALTHY }.emit();
        with_body(&answer, &body)
    };
    // The second was sent: the answer to it is a 3.
    for sequence in [0, 1, 2, 4, u64::MAX] {
        world.say(&numbered(sequence));
        assert_eq!(world.ignored.pop(), Some(Ignored::Unasked), "{sequence}");
        world.ignored.push(Ignored::Unasked);
        assert_eq!(world.host.last_sequence(), Some(2));
    }
    let empty = with(&answer, |message| message.body = &[]);
    world.say(&empty);
    assert!(matches!(world.ignored.last(), Some(Ignored::Malformed(_))));
    world.now += seconds(10);
    world.host.poll(world.now);
    assert_eq!(world.host.pulse(), Pulse::Lost, "it was only pretending");
    world.say(&numbered(3));
    assert_eq!((world.host.pulse(), world.host.last_sequence()), (Pulse::Alive, Some(3)));
    assert_eq!(world.host.application_state(), ApplicationState::HEALTHY);
    world.say(&numbered(3));
    assert_eq!(world.ignored.len(), 7, "once");
}

#[test]
fn an_answer_to_a_later_one_answers_the_earlier_ones_too() {
    let mut world = World::ready(HeartbeatService::new());
    world.pass_in_silence(seconds(6));
    let answers: Vec<_> =
        world.to_guest.drain(..).map(|beat| world.guest.answer(&beat).unwrap()).collect();
    assert_eq!(answers.len(), 3);
    world.say(&answers[2]);
    assert_eq!(world.host.last_sequence(), Some(5));
    world.say(&answers[0]);
    world.say(&answers[1]);
    assert_eq!(world.ignored, [Ignored::Unasked, Ignored::Unasked]);
}
