//! The guest's PCI Express slot for a VF, as far as it can be known from outside. No I/O, no clock.
//!
//! QEMU has one way to ask a guest to give a device up, the slot's attention button (`device_del`), and no way to ask
//! whether it has. A guest that gives a device up clears its command register; so that is looked at. And it is the same
//! button by which a guest takes the device again that was left in its slot.

use std::time::Duration;

/// How long things may take.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct SlotTimes {
    /// How long a guest may take to follow the button: 5 s in which it may be taken back, and then as long as its driver
    /// takes.
    pub patience: Duration,
    /// How long to wait before a button is pressed again that QEMU said it is too early for.
    pub pause: Duration,
}

impl Default for SlotTimes {
    fn default() -> Self {
        Self { patience: Duration::from_secs(20), pause: Duration::from_millis(500) }
    }
}

/// What the guest does with the slot. Times are from any fixed moment on.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Power {
    /// There is no device in it.
    Empty,
    /// QEMU has a function for it, and plugs it when the guest's virtio-net driver agrees to that.
    Hidden,
    /// The guest has given the device up, or has found none.
    Off,
    /// It was asked to take the device.
    TurningOn { until: Duration },
    /// It has the device, or has had the time to take it.
    On,
    /// It was asked to give the device up.
    TurningOff { until: Duration },
}

/// What is to be done with a slot.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Move {
    /// Plug the device.
    Plug,
    /// Press the button, for the guest to take the device.
    TurnOn,
    /// Press the button, for the guest to give the device up.
    TurnOff,
}

/// A slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    power: Power,
    /// Nothing is done before.
    pause: Duration,
    times: SlotTimes,
}

impl Slot {
    /// An empty slot, into which nothing is plugged before this time.
    pub(crate) const fn new(not_before: Duration, times: SlotTimes) -> Self {
        Self { power: Power::Empty, pause: not_before, times }
    }

    /// Whether no driver of the guest can be at the function, so that there may be another VF behind it.
    pub(crate) const fn is_free(&self) -> bool {
        matches!(self.power, Power::Empty | Power::Hidden | Power::Off)
    }

    /// What is to be done now, if the guest is to have the device, or is not to.
    pub(crate) fn next(&mut self, wanted: bool, now: Duration) -> Option<Move> {
        match self.power {
            // It may be that it has no driver, or follows no button: whoever asks again knows no better.
            Power::TurningOn { until } | Power::TurningOff { until } if until <= now => {
                self.power = Power::On;
            }
            // If QEMU should plug it all the same, it appears.
            Power::Hidden if !wanted => self.power = Power::Empty,
            _ => {}
        }
        let next = match (self.power, wanted) {
            (Power::Empty, true) => Move::Plug,
            (Power::Off, true) => Move::TurnOn,
            (Power::On, false) => Move::TurnOff,
            _ => return None,
        };
        (self.pause <= now).then_some(next)
    }

    /// It was done.
    pub(crate) fn done(&mut self, what: Move, now: Duration) {
        let until = now + self.times.patience;
        self.power = match what {
            Move::Plug | Move::TurnOn => Power::TurningOn { until },
            Move::TurnOff => Power::TurningOff { until },
        };
    }

    /// It could not be done yet.
    pub(crate) fn too_early(&mut self, now: Duration) {
        self.pause = now + self.times.pause;
    }

    /// QEMU has taken a function that was plugged, and keeps it from the guest.
    pub(crate) fn hidden(&mut self) {
        self.power = Power::Hidden;
    }

    /// QEMU has the function now. Says whether it has plugged it by itself.
    pub(crate) fn appeared(&mut self, now: Duration) -> bool {
        let by_itself = matches!(self.power, Power::Empty | Power::Hidden);
        if by_itself {
            self.power = Power::TurningOn { until: now + self.times.patience };
        }
        by_itself
    }

    /// The guest has set or cleared Bus Master Enable, or both. Says whether it has given the device up by that.
    pub(crate) fn command_written(&mut self, set: bool, cleared: bool) -> bool {
        match self.power {
            Power::TurningOn { .. } if set => self.power = Power::On,
            Power::TurningOff { .. } if cleared => {
                self.power = Power::Off;
                return true;
            }
            _ => {}
        }
        false
    }

    /// The guest begins anew, and looks into its slots: it finds the device if there is a VF behind it.
    pub(crate) fn guest_reset(&mut self, backed: bool) {
        self.power = match self.power {
            Power::Empty | Power::Hidden => self.power,
            _ if backed => Power::On,
            _ => Power::Off,
        };
    }

    /// When something is to be done that nobody tells of.
    pub(crate) fn deadline(&self, wanted: bool) -> Option<Duration> {
        match (self.power, wanted) {
            (Power::TurningOn { until } | Power::TurningOff { until }, _) => Some(until),
            (Power::Empty | Power::Off, true) | (Power::On, false) => Some(self.pause),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_guest_takes_a_device_gives_it_up_and_takes_it_again() {
        let mut slot = Slot::new(Duration::ZERO, SlotTimes::default());
        assert!(slot.is_free());
        assert_eq!(slot.next(false, at(0)), None);
        for (round, first) in [(0, Move::Plug), (100, Move::TurnOn)] {
            assert_eq!(slot.next(true, at(round)), Some(first));
            slot.done(first, at(round));
            assert!(!slot.is_free());
            assert!(!slot.command_written(false, true), "it looks at the device");
            assert!(!slot.command_written(true, false));
            assert_eq!((slot.next(true, at(round + 50)), slot.deadline(true)), (None, None));
            assert_eq!(slot.next(false, at(round + 60)), Some(Move::TurnOff));
            slot.done(Move::TurnOff, at(round + 60));
            assert_eq!(slot.next(false, at(round + 61)), None);
            assert!(!slot.command_written(true, false));
            assert!(slot.command_written(false, true));
            assert!(slot.is_free());
            assert_eq!((slot.next(false, at(round + 90)), slot.deadline(false)), (None, None));
        }
    }

    #[test]
    fn a_guest_that_does_not_follow_is_asked_again() {
        let mut slot = Slot::new(Duration::ZERO, SlotTimes::default());
        slot.done(Move::Plug, at(0));
        // No driver ever came; it has the device all the same.
        assert_eq!(slot.next(false, at(19)), None);
        assert_eq!(slot.next(false, at(20)), Some(Move::TurnOff));
        slot.done(Move::TurnOff, at(20));
        assert_eq!(slot.next(false, at(39)), None);
        assert_eq!(slot.deadline(false), Some(at(40)));
        assert_eq!(slot.next(false, at(40)), Some(Move::TurnOff));
    }

    #[test]
    fn a_button_that_may_not_be_pressed_yet_is_pressed_later() {
        let mut slot = Slot::new(Duration::ZERO, SlotTimes::default());
        slot.done(Move::Plug, at(0));
        slot.command_written(true, false);
        slot.too_early(at(3));
        assert_eq!(slot.next(false, at(3)), None);
        let later = slot.deadline(false).unwrap();
        assert!(later > at(3) && later < at(4));
        assert_eq!(slot.next(false, later), Some(Move::TurnOff));
    }

    #[test]
    fn a_guest_that_begins_anew_finds_what_is_there() {
        let mut slot = Slot::new(Duration::ZERO, SlotTimes::default());
        slot.guest_reset(false);
        assert_eq!(slot.next(true, at(0)), Some(Move::Plug));
        slot.done(Move::Plug, at(0));
        slot.guest_reset(true);
        assert_eq!(slot.next(true, at(1)), None);
        slot.done(Move::TurnOff, at(2));
        slot.guest_reset(true);
        assert_eq!(slot.next(false, at(3)), Some(Move::TurnOff), "it has forgotten the button");
        slot.guest_reset(false);
        assert!(slot.is_free());
    }

    #[test]
    fn a_function_that_qemu_hides_is_waited_for_and_given_up_without_asking_the_guest() {
        let mut slot = Slot::new(Duration::ZERO, SlotTimes::default());
        slot.done(Move::Plug, at(0));
        slot.hidden();
        assert_eq!((slot.next(true, at(50)), slot.deadline(true)), (None, None));
        assert!(slot.is_free(), "no driver can be at it");
        assert!(slot.appeared(at(60)) && !slot.is_free());
        assert!(!slot.appeared(at(60)), "it is there already");
        assert!(!slot.command_written(true, true));
        assert_eq!(slot.next(false, at(61)), Some(Move::TurnOff));
        let mut slot = Slot::new(Duration::ZERO, SlotTimes::default());
        slot.done(Move::Plug, at(0));
        slot.hidden();
        assert_eq!(slot.next(false, at(1)), None);
        assert_eq!(slot.next(true, at(2)), Some(Move::Plug), "QEMU knows it by its id");
    }
}
