use DataPath::{Synthetic, Vf as VfPath};
use VfEffect::{Associate, Complete, MoveFilters, NotifySynthetic, OfferVpci, RevokeVpci};
use proptest::prelude::*;

use super::*;
use crate::server::OFFER_DELAY;

const SERIAL: u32 = 7;

/// A NIC whose guest is up and can have a VF.
fn up(now: Instant) -> Vf {
    let mut vf = Vf::new(OFFER_DELAY);
    vf.initialized(true, now);
    vf
}

/// One whose guest has been offered its VF.
fn ready(now: Instant) -> Vf {
    let mut vf = up(now);
    vf.want(Some(SERIAL), now);
    vf.tick(now + OFFER_DELAY);
    vf.take();
    assert_eq!(vf.state(), VfState::Ready { serial: SERIAL, settled: true });
    vf
}

fn switched(now: Instant) -> Vf {
    let mut vf = ready(now);
    vf.guest_asks(VfPath, Some(1));
    vf.moved(true, now);
    assert_eq!(vf.take(), [MoveFilters(VfPath), Complete(1)]);
    assert_eq!(vf.state(), VfState::Switched { serial: SERIAL });
    vf
}

fn associate(allocated: bool) -> VfEffect {
    Associate { allocated, serial: SERIAL }
}

#[test]
fn a_guest_is_told_of_its_vf_first_and_offered_it_a_second_later() {
    let now = Instant::now();
    let mut vf = up(now);
    vf.want(Some(SERIAL), now);
    assert_eq!(vf.take(), [associate(true)]);
    assert_eq!(vf.deadline(), Some(now + OFFER_DELAY));
    vf.tick(now + OFFER_DELAY / 2);
    assert_eq!(vf.take(), []);
    vf.tick(now + OFFER_DELAY);
    assert_eq!(vf.take(), [OfferVpci(SERIAL)]);
    vf.tick(now + OFFER_DELAY * 2);
    assert_eq!((vf.take(), vf.deadline()), (vec![], None));
}

#[test]
fn a_guest_that_is_not_up_or_not_able_is_not_told() {
    let now = Instant::now();
    let mut vf = Vf::new(OFFER_DELAY);
    vf.want(Some(SERIAL), now);
    assert_eq!((vf.take(), vf.state()), (vec![], VfState::Available { serial: SERIAL }));
    vf.initialized(false, now);
    assert_eq!(vf.take(), []);
    vf.initialized(true, now);
    assert_eq!(vf.take(), [associate(true)]);
}

#[test]
fn filters_move_before_the_guest_is_told_that_they_did() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.guest_asks(Synthetic, Some(2));
    assert_eq!(vf.take(), [MoveFilters(Synthetic)]);
    vf.moved(true, now);
    assert_eq!(vf.take(), [Complete(2)]);
    assert_eq!(vf.state(), VfState::Ready { serial: SERIAL, settled: true });
    vf.guest_asks(Synthetic, Some(3));
    assert_eq!(vf.take(), [Complete(3)], "nothing to do");
}

#[test]
fn a_move_to_the_vf_that_fails_is_completed_and_taken_back() {
    let now = Instant::now();
    let mut vf = ready(now);
    vf.guest_asks(VfPath, Some(1));
    vf.moved(false, now);
    assert_eq!(vf.take(), [MoveFilters(VfPath), Complete(1), NotifySynthetic]);
    assert_eq!(vf.state(), VfState::Ready { serial: SERIAL, settled: false });
}

#[test]
fn after_a_failed_move_back_the_next_request_tries_again() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.guest_asks(Synthetic, Some(2));
    vf.moved(false, now);
    assert_eq!(vf.take(), [MoveFilters(Synthetic), Complete(2)]);
    vf.guest_asks(Synthetic, Some(3));
    assert_eq!(vf.take(), [MoveFilters(Synthetic)]);
}

#[test]
fn a_vf_lost_while_frames_take_it_goes_in_the_published_order() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.want(None, now);
    assert_eq!(vf.take(), [MoveFilters(Synthetic)]);
    // The guest's interface went down meanwhile, and it asks for what happens anyway.
    vf.guest_asks(Synthetic, Some(2));
    assert_eq!(vf.take(), []);
    vf.moved(true, now);
    assert_eq!(vf.take(), [Complete(2), NotifySynthetic, associate(false), RevokeVpci(SERIAL)]);
    assert_eq!(vf.state(), VfState::Unavailable);
    vf.guest_asks(Synthetic, Some(3));
    assert_eq!(vf.take(), [Complete(3)]);
    vf.guest_asks(VfPath, Some(4));
    assert_eq!(vf.take(), [Complete(4), NotifySynthetic]);
}

#[test]
fn a_vf_lost_before_it_was_used_needs_no_filter_moved() {
    let now = Instant::now();
    let mut vf = up(now);
    vf.want(Some(SERIAL), now);
    vf.take();
    vf.want(None, now);
    assert_eq!(vf.take(), [associate(false)], "it was not offered yet");
    let mut vf = ready(now);
    vf.want(None, now);
    assert_eq!(vf.take(), [associate(false), RevokeVpci(SERIAL)]);
}

#[test]
fn a_vf_lost_while_filters_move_to_it_is_completed_first() {
    let now = Instant::now();
    let mut vf = ready(now);
    vf.guest_asks(VfPath, Some(1));
    vf.want(None, now);
    assert_eq!(vf.take(), [MoveFilters(VfPath)]);
    vf.moved(true, now);
    assert_eq!(vf.take(), [Complete(1), MoveFilters(Synthetic)]);
    vf.moved(true, now);
    assert_eq!(vf.take(), [NotifySynthetic, associate(false), RevokeVpci(SERIAL)]);

    let mut vf = ready(now);
    vf.guest_asks(VfPath, Some(1));
    vf.want(None, now);
    vf.moved(false, now);
    assert_eq!(vf.take(), [MoveFilters(VfPath), Complete(1), MoveFilters(Synthetic)]);
    vf.moved(true, now);
    assert_eq!(vf.take(), [NotifySynthetic, associate(false), RevokeVpci(SERIAL)]);
}

#[test]
fn filters_that_could_not_be_moved_home_are_moved_again_before_the_vf_goes() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.guest_asks(Synthetic, Some(1));
    vf.moved(false, now);
    vf.guest_asks(VfPath, Some(2));
    vf.want(None, now);
    vf.take();
    vf.moved(false, now);
    assert_eq!(vf.take(), [Complete(2), MoveFilters(Synthetic)]);
    vf.moved(true, now);
    assert_eq!(vf.take(), [NotifySynthetic, associate(false), RevokeVpci(SERIAL)]);
}

#[test]
fn another_vf_takes_the_place_of_one_that_goes() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.want(Some(8), now);
    vf.moved(true, now);
    let gone = [MoveFilters(Synthetic), NotifySynthetic, associate(false), RevokeVpci(SERIAL)];
    let new = Associate { allocated: true, serial: 8 };
    assert_eq!(vf.take(), [&gone[..], &[new]].concat());
}

#[test]
fn a_closed_channel_keeps_the_vf_and_forgets_requests() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.closed();
    assert_eq!((vf.take(), vf.state()), (vec![], VfState::Switched { serial: SERIAL }));
    vf.initialized(true, now);
    assert_eq!(vf.take(), [associate(true)], "the new driver learns of it");

    let mut vf = ready(now);
    vf.guest_asks(VfPath, Some(1));
    vf.closed();
    vf.moved(true, now);
    assert_eq!(vf.take(), [MoveFilters(VfPath)], "nobody waits any more");
}

#[test]
fn a_guest_that_comes_back_without_the_capability_loses_the_vf() {
    let now = Instant::now();
    let mut vf = switched(now);
    vf.closed();
    vf.initialized(false, now);
    vf.moved(true, now);
    assert!(vf.take().ends_with(&[RevokeVpci(SERIAL)]));
    assert_eq!(vf.state(), VfState::Available { serial: SERIAL });
}

#[derive(Clone, Debug)]
enum Step {
    Want(Option<u32>),
    Ask(DataPath),
    Moved(bool),
    Tick,
    Closed,
    Initialized(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = prop_oneof![Just(Synthetic), Just(VfPath)];
    let step = prop_oneof![
        2 => prop::option::of(1..4u32).prop_map(Step::Want),
        4 => path.prop_map(Step::Ask),
        4 => prop::bool::weighted(0.8).prop_map(Step::Moved),
        2 => Just(Step::Tick),
        1 => Just(Step::Closed),
        2 => prop::bool::weighted(0.9).prop_map(Step::Initialized),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Every request is completed once, filters are moved one at a time, a VF is offered once and only while the
    /// guest knows of it, and never taken away while filters point to it.
    #[test]
    fn every_interleaving_keeps_the_order(steps in steps()) {
        let mut now = Instant::now();
        let mut vf = Vf::new(OFFER_DELAY);
        let (mut asked, mut open) = (0u64, std::collections::BTreeSet::new());
        let (mut offered, mut told, mut moving) = (None, None, None);
        let mut on_vf = false;
        let mut last_failed = false;
        for step in steps.into_iter().chain([Step::Moved(true), Step::Moved(true), Step::Moved(true)]) {
            match step {
                Step::Want(serial) => vf.want(serial, now),
                Step::Ask(path) => {
                    asked += 1;
                    open.insert(asked);
                    vf.guest_asks(path, Some(asked));
                }
                Step::Moved(done) => {
                    if let Some(to) = moving.take() {
                        if done {
                            on_vf = to == VfPath;
                        }
                        last_failed = !done && to == Synthetic;
                        vf.moved(done, now);
                    }
                }
                Step::Tick => {
                    now += OFFER_DELAY;
                    vf.tick(now);
                }
                Step::Closed => {
                    vf.closed();
                    open.clear();
                }
                Step::Initialized(able) => vf.initialized(able, now),
            }
            for effect in vf.take() {
                match effect {
                    Associate { allocated, serial } => {
                        if !allocated {
                            prop_assert_eq!(told, Some(serial), "the same serial as before");
                        }
                        told = allocated.then_some(serial);
                    }
                    Complete(request) => prop_assert!(open.remove(&request)),
                    MoveFilters(to) => prop_assert_eq!(moving.replace(to), None),
                    OfferVpci(serial) => {
                        prop_assert_eq!(offered.replace(serial), None);
                        prop_assert_eq!(told, Some(serial));
                    }
                    RevokeVpci(serial) => {
                        prop_assert_eq!(offered.take(), Some(serial));
                        prop_assert_eq!(told, None);
                        prop_assert!(!on_vf || last_failed);
                        on_vf = false; // With the VF goes its VPort.
                    }
                    NotifySynthetic => {}
                }
            }
        }
        if moving.is_none() {
            prop_assert!(open.is_empty(), "requests left open: {:?}", open);
        }
    }
}
