//! Events.

use super::*;

#[test]
fn an_event_knows_whom_it_is_about_and_how_much_it_matters() {
    let event = Event::NoAnswer {
        adapter: AdapterId(3),
        waited_for: WaitedFor::Eject,
        milliseconds: 60_000,
    };
    assert_eq!((event.adapter(), event.level()), (Some(AdapterId(3)), Level::Warning));
    assert_eq!(event.to_string(), "adapter 3: the guest did not give up its VF within 60000 ms");
    assert_eq!(Event::PfRestarted { nic: NicId(1) }.adapter(), None);
}

#[test]
fn an_adapter_on_its_way_is_a_step_and_what_keeps_it_is_news() {
    let level = |reasons| Event::ReasonsChanged { adapter: AdapterId(0), reasons }.level();
    assert_eq!(level(vec![Reason::InProgress { state: State::START }]), Level::Step);
    assert_eq!(level(vec![Reason::WeightZero]), Level::Notice);
    assert_eq!(level(vec![]), Level::Notice);
}
