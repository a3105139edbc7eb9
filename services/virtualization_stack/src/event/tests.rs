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
