//! The VF beside a synthetic NIC about which its host decides (SPEC-VMBUS §7): what the host says is passed on to the
//! guest, and what the guest asks to the host.
//!
//! The other machine (`vf`) decides by itself in which order a VF goes. Here that is the virtualization stack's
//! business: it asks the guest to leave, moves filters when the guest has left, answers, and tells the guest that the
//! VF is lost, each at its time. One request of the guest is with the host at a time, and is answered once; the next
//! one waits behind it.

use netvsp_protocol::nvsp::DataPath;

use super::vf::VfEffect;

/// What the host decides about the VF of a NIC ([`VfControl::Host`](super::VfControl::Host)).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum VfCommand {
    /// There is a VF with this serial number: each driver of the guest that starts is told.
    Available {
        /// Its serial number.
        serial: u32,
    },
    /// It is not there any more. Without effect on another serial number.
    Lost {
        /// Its serial number.
        serial: u32,
    },
    /// The guest is to leave the VF, or filters have left it already: frames take the synthetic path from now on.
    Leave,
    /// The guest's request, if there is one, is answered: this path is active now.
    Complete {
        /// The path.
        active: DataPath,
        /// The number of the request that is answered ([`VfReport::requests`] when it was seen): another one stays
        /// open. `None` answers whichever there is.
        request: Option<u64>,
    },
}

/// How the VF of a NIC is, about which its host decides.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct VfReport {
    /// Serial number of the VF that is there.
    pub serial: Option<u32>,
    /// Whether the guest can have one; false while it is not up.
    pub able: bool,
    /// The path that the guest asks for, and waits.
    pub asks: Option<DataPath>,
    /// How many requests were passed on so far.
    pub requests: u64,
    /// The path that the host made active last.
    pub active: DataPath,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Ask {
    path: DataPath,
    /// To be completed, if the guest asked for that.
    request: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Relay {
    serial: Option<u32>,
    able: bool,
    /// What this driver of the guest was told.
    told: Option<u32>,
    active: DataPath,
    /// The guest was given the VF, and was not given the synthetic path since. A driver that closes its channel and
    /// opens it again (a new MTU, other rings) remembers that, and does not ask again.
    on_vf: bool,
    /// With the host.
    open: Option<Ask>,
    /// Behind it; a later one takes its place.
    next: Option<Ask>,
    requests: u64,
    out: Vec<VfEffect>,
}

impl Relay {
    pub(super) const fn new() -> Self {
        Self {
            serial: None,
            able: false,
            told: None,
            active: DataPath::Synthetic,
            on_vf: false,
            open: None,
            next: None,
            requests: 0,
            out: Vec::new(),
        }
    }

    /// What is to be done since the last time.
    pub(super) fn take(&mut self) -> Vec<VfEffect> {
        std::mem::take(&mut self.out)
    }

    pub(super) fn report(&self) -> VfReport {
        VfReport {
            serial: self.serial,
            able: self.able,
            asks: self.open.map(|ask| ask.path),
            requests: self.requests,
            active: self.active,
        }
    }

    /// Where frames for the guest are taken to: to the VF while the guest uses it, and while no driver of the NIC is
    /// `up` that could take them instead. A guest that asks for the synthetic path takes frames there already; so it
    /// misses none while filters are on their way home.
    pub(super) fn path(&self, up: bool) -> DataPath {
        let leaves = self.open.is_some_and(|ask| ask.path == DataPath::Synthetic);
        let there = if up { self.on_vf && !leaves } else { true };
        if there { self.active } else { DataPath::Synthetic }
    }

    /// The guest is up, and can have a VF or not. What it was told of a VF it has forgotten, but not that it uses one.
    pub(super) fn initialized(&mut self, able: bool) {
        self.able = able;
        self.told = None;
        self.on_vf &= able;
        self.announce();
        if self.on_vf && self.active == DataPath::Synthetic {
            self.out.push(VfEffect::NotifySynthetic);
        }
    }

    /// The channel closed: the guest keeps its VF, and its requests are forgotten. If it was about to leave, it has.
    pub(super) fn closed(&mut self) {
        self.able = false;
        self.told = None;
        let last = self.next.take().or(self.open);
        self.on_vf &= last.is_none_or(|ask| ask.path == DataPath::Vf);
        self.open = None;
    }

    /// The guest has begun anew: whoever opens the channel next does not use the VF until it has asked for it.
    pub(super) fn began_anew(&mut self) {
        self.on_vf = false;
    }

    fn announce(&mut self) {
        if let Some(serial) = self.serial
            && self.able
            && self.told != Some(serial)
        {
            self.told = Some(serial);
            self.out.push(VfEffect::Associate { allocated: true, serial });
        }
    }

    fn retract(&mut self) {
        if let Some(serial) = self.told.take() {
            self.out.push(VfEffect::Associate { allocated: false, serial });
        }
    }

    pub(super) fn command(&mut self, command: VfCommand) {
        match command {
            VfCommand::Available { serial } => {
                if self.told != Some(serial) {
                    self.retract();
                }
                self.serial = Some(serial);
                self.announce();
            }
            VfCommand::Lost { serial } => {
                if self.serial == Some(serial) {
                    self.serial = None;
                    self.retract();
                }
            }
            VfCommand::Leave => {
                self.active = DataPath::Synthetic;
                if self.on_vf {
                    self.out.push(VfEffect::NotifySynthetic);
                }
            }
            VfCommand::Complete { active, request } => self.complete(active, request),
        }
    }

    fn complete(&mut self, active: DataPath, request: Option<u64>) {
        self.active = active;
        // The answer to a driver that is gone is none to the one after it.
        let answers = request.is_none_or(|request| request == self.requests);
        let refused = match self.open.take_if(|_| answers) {
            Some(Ask { path, request }) => {
                self.on_vf = active == DataPath::Vf && path == DataPath::Vf;
                self.out.extend(request.map(VfEffect::Complete));
                path != active
            }
            // It was moved without being asked for.
            None => active == DataPath::Synthetic && std::mem::take(&mut self.on_vf),
        };
        if refused && active == DataPath::Synthetic {
            self.out.push(VfEffect::NotifySynthetic);
        }
        if self.open.is_none()
            && let Some(ask) = self.next.take()
        {
            self.pass_on(ask);
        }
    }

    fn pass_on(&mut self, ask: Ask) {
        self.open = Some(ask);
        self.requests += 1;
        self.out.push(VfEffect::MoveFilters(ask.path));
    }

    /// The guest asks for a path; `request` is to be completed if it asked for that. Where no VF is concerned, nobody
    /// is bothered.
    pub(super) fn guest_asks(&mut self, path: DataPath, request: Option<u64>) {
        let ask = Ask { path, request };
        if self.open.is_some() {
            let overtaken = self.next.replace(ask).and_then(|ask| ask.request);
            self.out.extend(overtaken.map(VfEffect::Complete));
        } else if self.serial.is_some() || self.on_vf {
            self.pass_on(ask);
        } else {
            self.out.extend(request.map(VfEffect::Complete));
            if path == DataPath::Vf {
                self.out.push(VfEffect::NotifySynthetic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use DataPath::{Synthetic, Vf};
    use VfCommand::{Available, Leave, Lost};
    use VfEffect::{Associate, Complete, MoveFilters, NotifySynthetic};
    use proptest::prelude::*;

    use super::*;

    const SERIAL: u32 = 7;

    fn associate(allocated: bool) -> VfEffect {
        Associate { allocated, serial: SERIAL }
    }

    /// A NIC whose guest is up, knows of its VF, and uses it.
    fn on_vf() -> Relay {
        let mut relay = Relay::new();
        relay.initialized(true);
        relay.command(Available { serial: SERIAL });
        relay.guest_asks(Vf, Some(1));
        assert_eq!(relay.path(true), Synthetic, "not before the answer");
        relay.command(VfCommand::Complete { active: Vf, request: None });
        assert_eq!(relay.take(), [associate(true), MoveFilters(Vf), Complete(1)]);
        assert_eq!(relay.path(true), Vf);
        relay
    }

    #[test]
    fn a_willing_guest_leaves_asks_and_is_answered_before_the_vf_is_lost() {
        let mut relay = on_vf();
        relay.command(Leave);
        assert_eq!((relay.take(), relay.path(true)), (vec![NotifySynthetic], Synthetic));
        relay.guest_asks(Synthetic, Some(2));
        assert_eq!(relay.report().asks, Some(Synthetic));
        relay.command(VfCommand::Complete { active: Synthetic, request: None });
        relay.command(Lost { serial: SERIAL });
        assert_eq!(relay.take(), [MoveFilters(Synthetic), Complete(2), associate(false)]);
        relay.guest_asks(Synthetic, Some(3));
        relay.guest_asks(Vf, Some(4));
        assert_eq!(relay.take(), [Complete(3), Complete(4), NotifySynthetic], "nobody is asked");
        assert_eq!(relay.report().requests, 2);
    }

    #[test]
    fn a_guest_that_asks_to_leave_takes_frames_before_filters_move() {
        let mut relay = on_vf();
        relay.guest_asks(Synthetic, Some(2));
        assert_eq!((relay.path(true), relay.report().active), (Synthetic, Vf));
        // Filters could not be moved.
        relay.command(VfCommand::Complete { active: Vf, request: None });
        assert_eq!(relay.take(), [MoveFilters(Synthetic), Complete(2)]);
        assert_eq!(relay.path(true), Synthetic, "it takes the answer for a yes");
    }

    #[test]
    fn a_guest_that_ignores_the_notice_is_told_of_the_loss_and_may_still_ask() {
        let mut relay = on_vf();
        relay.command(Leave);
        relay.command(Lost { serial: SERIAL });
        assert_eq!(relay.take(), [NotifySynthetic, associate(false)]);
        relay.guest_asks(Synthetic, Some(2));
        assert_eq!(relay.take(), [MoveFilters(Synthetic)], "filters may still be on the VF");
        relay.command(VfCommand::Complete { active: Synthetic, request: None });
        assert_eq!(relay.take(), [Complete(2)]);
    }

    #[test]
    fn a_path_that_cannot_be_had_is_answered_and_taken_back() {
        let mut relay = Relay::new();
        relay.initialized(true);
        relay.command(Available { serial: SERIAL });
        relay.guest_asks(Vf, Some(1));
        relay.take();
        relay.command(Lost { serial: SERIAL });
        relay.command(VfCommand::Complete { active: Synthetic, request: None });
        assert_eq!(relay.take(), [associate(false), Complete(1), NotifySynthetic]);
    }

    #[test]
    fn the_answer_to_a_driver_that_is_gone_is_none_to_the_next_one() {
        for active in [Synthetic, Vf] {
            let mut relay = Relay::new();
            relay.initialized(true);
            relay.command(Available { serial: SERIAL });
            relay.guest_asks(Vf, Some(1));
            let seen = relay.report().requests;
            relay.closed();
            relay.initialized(true);
            relay.guest_asks(Vf, Some(2));
            relay.take();
            relay.command(VfCommand::Complete { active, request: Some(seen) });
            assert_eq!((relay.take(), relay.report().asks), (vec![], Some(Vf)), "it still waits");
            assert_eq!((relay.path(true), relay.report().active), (Synthetic, active));
            let request = Some(relay.report().requests);
            relay.command(VfCommand::Complete { active: Vf, request });
            assert_eq!((relay.take(), relay.path(true)), (vec![Complete(2)], Vf));
        }
    }

    #[test]
    fn a_path_taken_back_without_a_request_is_announced() {
        let mut relay = on_vf();
        relay.command(VfCommand::Complete { active: Synthetic, request: None });
        assert_eq!((relay.take(), relay.path(true)), (vec![NotifySynthetic], Synthetic));
    }

    #[test]
    fn requests_to_and_fro_are_passed_on_one_at_a_time() {
        let mut relay = on_vf();
        relay.guest_asks(Synthetic, Some(2));
        relay.guest_asks(Vf, Some(3));
        relay.guest_asks(Synthetic, Some(4));
        relay.guest_asks(Vf, Some(5));
        assert_eq!(relay.take(), [MoveFilters(Synthetic), Complete(3), Complete(4)]);
        relay.command(VfCommand::Complete { active: Synthetic, request: None });
        assert_eq!(relay.take(), [Complete(2), MoveFilters(Vf)]);
        relay.command(VfCommand::Complete { active: Vf, request: None });
        assert_eq!((relay.take(), relay.path(true)), (vec![Complete(5)], Vf));
    }

    #[test]
    fn a_driver_that_reopens_its_channel_uses_the_vf_as_before() {
        let mut relay = on_vf();
        relay.closed();
        assert_eq!(relay.path(false), Vf);
        relay.initialized(true);
        assert_eq!((relay.take(), relay.path(true)), (vec![associate(true)], Vf));
        // One that does not remember asks, and is answered.
        relay.guest_asks(Vf, Some(1));
        relay.command(VfCommand::Complete { active: Vf, request: None });
        assert_eq!((relay.take(), relay.path(true)), (vec![MoveFilters(Vf), Complete(1)], Vf));
        // Without SR-IOV it cannot.
        relay.closed();
        relay.initialized(false);
        assert_eq!(relay.path(true), Synthetic);
    }

    #[test]
    fn a_driver_that_reopens_its_channel_is_told_that_it_was_to_leave() {
        let mut relay = on_vf();
        relay.closed();
        relay.command(Leave);
        relay.take();
        relay.initialized(true);
        assert_eq!(relay.take(), [associate(true), NotifySynthetic]);
        assert_eq!(relay.path(true), Synthetic);
    }

    #[test]
    fn a_guest_that_began_anew_and_one_that_was_about_to_leave_ask_for_the_vf_anew() {
        for leaves in [true, false] {
            let mut relay = on_vf();
            if leaves {
                relay.guest_asks(Synthetic, Some(2));
                relay.take();
            }
            relay.closed();
            assert_eq!((relay.report().asks, relay.path(false)), (None, Vf));
            if !leaves {
                relay.began_anew();
            }
            relay.initialized(true);
            assert_eq!(relay.take(), [associate(true)]);
            assert_eq!(relay.path(true), Synthetic, "it was not given the VF");
            // The stack's answer to the driver before comes late, and completes nothing.
            relay.command(VfCommand::Complete { active: Vf, request: None });
            assert_eq!((relay.take(), relay.path(true)), (vec![], Synthetic));
            relay.guest_asks(Vf, Some(1));
            relay.command(VfCommand::Complete { active: Vf, request: None });
            assert_eq!((relay.take(), relay.path(true)), (vec![MoveFilters(Vf), Complete(1)], Vf));
        }
    }

    #[test]
    fn a_guest_that_cannot_have_a_vf_is_not_told() {
        let mut relay = Relay::new();
        relay.command(Available { serial: SERIAL });
        relay.initialized(false);
        assert_eq!(relay.take(), []);
        relay.command(Lost { serial: 8 });
        assert_eq!(relay.report().serial, Some(SERIAL), "another one was lost");
        relay.command(Lost { serial: SERIAL });
        assert_eq!(relay.take(), []);
    }

    #[test]
    fn another_vf_takes_the_place_of_one() {
        let mut relay = on_vf();
        relay.command(Available { serial: 8 });
        assert_eq!(relay.take(), [associate(false), Associate { allocated: true, serial: 8 }]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Command(VfCommand),
        Ask(DataPath),
        Closed,
        BeganAnew,
        Initialized(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let path = prop_oneof![Just(Synthetic), Just(Vf)];
        let command = prop_oneof![
            (1..4u32).prop_map(|serial| Available { serial }),
            (1..4u32).prop_map(|serial| Lost { serial }),
            Just(Leave),
            path.clone().prop_map(|active| VfCommand::Complete { active, request: None }),
        ];
        let step = prop_oneof![
            5 => command.prop_map(Step::Command),
            4 => path.prop_map(Step::Ask),
            1 => Just(Step::Closed),
            1 => Just(Step::BeganAnew),
            1 => any::<bool>().prop_map(Step::Initialized),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        /// Every request is completed once, one is with the host at a time, and the guest is told of one VF at a time.
        #[test]
        fn every_interleaving_keeps_the_order(steps in steps()) {
            let mut relay = Relay::new();
            let mut waiting = std::collections::BTreeSet::new();
            let (mut asked, mut told, mut up) = (0, None, false);
            for step in steps {
                match step {
                    Step::Command(command) => relay.command(command),
                    Step::Ask(path) if up => {
                        asked += 1;
                        waiting.insert(asked);
                        relay.guest_asks(path, Some(asked));
                    }
                    Step::Ask(_) => {}
                    Step::Closed => {
                        relay.closed();
                        waiting.clear();
                        (told, up) = (None, false);
                    }
                    Step::BeganAnew => relay.began_anew(),
                    Step::Initialized(able) => {
                        relay.initialized(able);
                        (told, up) = (None, true);
                    }
                }
                for effect in relay.take() {
                    match effect {
                        Associate { allocated: true, serial } => {
                            prop_assert_eq!(told.replace(serial), None);
                        }
                        Associate { allocated: false, serial } => {
                            prop_assert_eq!(told.take(), Some(serial));
                        }
                        Complete(request) => prop_assert!(waiting.remove(&request)),
                        MoveFilters(path) => prop_assert_eq!(relay.report().asks, Some(path)),
                        NotifySynthetic => {}
                        other => prop_assert!(false, "{:?} is not of this machine", other),
                    }
                }
                let open = usize::from(relay.open.is_some()) + usize::from(relay.next.is_some());
                prop_assert_eq!(waiting.len(), open);
                prop_assert!(relay.path(true) == Synthetic || relay.report().active == Vf);
            }
        }
    }
}
