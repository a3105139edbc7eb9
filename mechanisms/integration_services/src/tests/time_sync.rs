//! A guest is told the time.

use std::time::SystemTime;

use integration_protocol::{
    FRAMEWORK_VERSIONS, TICKS_FROM_1601_TO_1970, TICKS_PER_SECOND, TimeSync, TimeSyncPurpose,
    Version,
};

use super::*;
use crate::TimeSyncService;

fn purposes(times: &[TimeSync]) -> Vec<TimeSyncPurpose> {
    times.iter().map(|time| time.purpose).collect()
}

#[test]
fn a_guest_sets_its_clock_and_then_takes_a_sample_every_five_seconds() {
    let mut world = World::ready(TimeSyncService::new(true));
    world.pass(seconds(20));
    let expected = (0..5).map(|number| TimeSync {
        host_time: START.utc + number * 5 * TICKS_PER_SECOND,
        reference: START.reference.map(|start| start + number * 5 * TICKS_PER_SECOND),
        purpose: if number == 0 { TimeSyncPurpose::Sync } else { TimeSyncPurpose::Sample },
    });
    assert_eq!(world.guest.times, expected.collect::<Vec<_>>());
    assert!(world.ignored.is_empty());
}

#[test]
fn older_messages_do_not_refer_to_the_counter() {
    for version in [Version::new(1, 0), Version::new(3, 0)] {
        let mut world = World::new(TimeSyncService::new(true));
        world.guest = GuestDriver::speaking(FRAMEWORK_VERSIONS, &[version]);
        world.open();
        world.pass(seconds(5));
        assert_eq!(world.guest.times.len(), 2);
        assert!(world.guest.times.iter().all(|time| time.reference.is_none()));
        assert_eq!(world.guest.times[1].host_time, START.utc + 5 * TICKS_PER_SECOND);
    }
}

#[test]
fn a_counter_that_cannot_be_read_is_tried_again() {
    let mut world = World::new(TimeSyncService::new(true));
    world.has_reference = false;
    world.open();
    world.pass(seconds(50));
    assert!(world.guest.times.is_empty());
    world.has_reference = true;
    world.pass(seconds(5));
    assert_eq!(purposes(&world.guest.times), [TimeSyncPurpose::Sync], "it was not told yet");
}

#[test]
fn a_host_whose_clock_was_set_has_its_guest_set_its_own() {
    use TimeSyncPurpose::{Sample, Sync};
    let mut world = World::ready(TimeSyncService::new(true));
    world.ahead = 9 * TICKS_PER_SECOND as i64 / 10;
    world.pass(seconds(5));
    assert_eq!(purposes(&world.guest.times), [Sync, Sample], "that much may be steered");
    world.ahead += TICKS_PER_SECOND as i64;
    world.pass(seconds(10));
    world.ahead -= 3600 * TICKS_PER_SECOND as i64;
    world.pass(seconds(10));
    assert_eq!(purposes(&world.guest.times[2..]), [Sync, Sample, Sync, Sample]);
    let last = world.guest.times[5];
    assert_eq!(last.host_time, START.utc + 25 * TICKS_PER_SECOND - 35_981 * TICKS_PER_SECOND / 10);
}

#[test]
fn a_guest_that_stood_still_sets_its_clock_and_is_not_told_old_times() {
    use TimeSyncPurpose::{Sample, Sync};
    let mut world = World::ready(TimeSyncService::new(true));
    world.pass(seconds(5));
    // It is told the next time, and nothing more for half a minute.
    world.pass_in_silence(seconds(34));
    assert_eq!(world.to_guest.len(), 1);
    world.pass_in_silence(seconds(1));
    assert_eq!(world.to_guest.len(), 2);
    world.guest_answers();
    // The first of the two answers comes too late for anybody.
    assert_eq!(world.ignored, [Ignored::Unasked]);
    world.pass(seconds(5));
    assert_eq!(purposes(&world.guest.times), [Sync, Sample, Sample, Sync, Sample]);
    // Its owner knows better than that.
    world.host.resynchronize(world.now);
    world.settle();
    world.pass(seconds(5));
    assert_eq!(purposes(&world.guest.times[5..]), [Sync, Sample]);
}

#[test]
fn an_answer_that_took_long_is_one_of_a_guest_that_stood_still() {
    let mut world = World::ready(TimeSyncService::new(true));
    world.now += seconds(5);
    world.host_sends();
    // The ring had no room for another.
    world.now += seconds(31);
    world.guest_answers();
    world.settle();
    assert_eq!(world.guest.times.last().unwrap().purpose, TimeSyncPurpose::Sync);
    assert!(world.ignored.is_empty());
}

#[test]
fn another_driver_is_told_to_set_the_clock_again() {
    let mut world = World::ready(TimeSyncService::new(true));
    world.pass(seconds(7));
    world.close();
    assert_eq!(world.host.deadline(), None);
    world.pass(seconds(100));
    world.open();
    world.settle();
    let told = purposes(&world.guest.times);
    assert_eq!(told, [TimeSyncPurpose::Sync, TimeSyncPurpose::Sample, TimeSyncPurpose::Sync]);
}

#[test]
fn times_are_counted_from_1601() {
    let time = |time| HostTime::new(time, None).utc;
    let epoch = SystemTime::UNIX_EPOCH;
    assert_eq!(time(epoch), TICKS_FROM_1601_TO_1970);
    assert_eq!(time(epoch + Duration::from_nanos(1_999)), TICKS_FROM_1601_TO_1970 + 19);
    // 2000-01-01: 30 years and 7 leap days later.
    let y2k = epoch + seconds((30 * 365 + 7) * 86_400);
    assert_eq!(time(y2k), 125_911_584_000_000_000);
    assert_eq!(time(epoch - seconds(11_644_473_600)), 0);
    assert_eq!(time(epoch - seconds(11_644_473_601)), 0);
    assert_eq!(HostTime::new(epoch, Some(3)).reference, Some(3));
}
