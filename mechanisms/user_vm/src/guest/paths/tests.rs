use proptest::prelude::*;

use super::*;
use DataPath::{Synthetic, Vf as OnVf};
use NetVscPath::{AskedForSynthetic, AskedForVf};

/// A selection with a clock, and a NetVSC that does what it is told.
struct Adapter {
    selection: Selection,
    now: Instant,
    netvsc: NetVscPath,
    driver_up: bool,
    /// Whether the host answers at once.
    answers: bool,
    returned: u32,
}

impl Adapter {
    fn new() -> Self {
        Self {
            selection: Selection::new(),
            now: Instant::now(),
            netvsc: NetVscPath::Synthetic,
            driver_up: false,
            answers: true,
            returned: 0,
        }
    }

    /// Sending on the VF, long settled.
    fn on_vf() -> Self {
        let mut adapter = Self::new();
        adapter.selection.synthetic_up(true);
        adapter.selection.vf_up(true);
        adapter.run();
        adapter.quiet();
        assert_eq!(adapter.selection.transmit(), Transmit::On(OnVf));
        adapter
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
        self.selection.tick(self.now);
        self.run();
    }

    /// Does what the selection wants done, as the carrier does.
    fn run(&mut self) {
        while let Some(effect) = self.selection.next_effect() {
            match effect {
                Effect::VfDriver(up) => {
                    self.driver_up = up;
                    self.netvsc_step();
                }
                Effect::ReturnVf => {
                    self.returned += 1;
                    self.driver_up = false;
                    self.netvsc_step();
                }
            }
        }
    }

    fn netvsc_step(&mut self) {
        let asked = match (self.netvsc, self.driver_up) {
            (NetVscPath::Synthetic, true) => AskedForVf,
            (NetVscPath::Vf, false) => AskedForSynthetic,
            (path, _) => path,
        };
        self.observe(asked);
        if self.answers {
            self.answer();
        }
    }

    fn observe(&mut self, path: NetVscPath) {
        self.netvsc = path;
        self.selection.netvsc(path, self.now);
    }

    fn answer(&mut self) {
        match self.netvsc {
            AskedForVf => self.observe(NetVscPath::Vf),
            AskedForSynthetic => self.observe(NetVscPath::Synthetic),
            _ => return,
        }
        self.netvsc_step();
        self.run();
    }

    /// All rings are empty.
    fn quiet(&mut self) {
        for _ in 0..3 {
            if self.selection.draining().is_some() {
                self.selection.drained(self.now);
            }
            self.run();
            if let Some(path) = self.selection.emptying() {
                self.selection.emptied(path);
            }
            self.run();
        }
    }

    fn transmit(&self) -> Transmit {
        self.selection.transmit()
    }

    fn groups(&self) -> (bool, bool) {
        (self.selection.takes_groups(Synthetic), self.selection.takes_groups(OnVf))
    }
}

#[test]
fn a_vm_with_a_vf_alone_sends_there_while_its_link_is_up() {
    let mut adapter = Adapter::new();
    assert_eq!(adapter.transmit(), Transmit::Nowhere);
    adapter.selection.vf_up(true);
    assert_eq!((adapter.transmit(), adapter.groups()), (Transmit::On(OnVf), (false, true)));
    adapter.selection.vf_link(false, adapter.now);
    assert_eq!(adapter.transmit(), Transmit::Nowhere);
    adapter.selection.vf_link(true, adapter.now);
    assert_eq!(adapter.transmit(), Transmit::On(OnVf));
    adapter.selection.vf_gone();
    assert_eq!(adapter.transmit(), Transmit::Nowhere);
    assert_eq!(adapter.selection.statistics(), DataPathStatistics::default());
}

#[test]
fn the_vf_is_used_after_the_answer_and_when_the_synthetic_rings_are_empty() {
    let mut adapter = Adapter::new();
    adapter.selection.synthetic_up(true);
    adapter.answers = false;
    assert_eq!((adapter.transmit(), adapter.groups()), (Transmit::On(Synthetic), (true, false)));
    adapter.selection.vf_up(true);
    adapter.run();
    assert_eq!((adapter.netvsc, adapter.transmit()), (AskedForVf, Transmit::On(Synthetic)));
    adapter.later(Duration::from_micros(70));
    adapter.answer();
    assert_eq!(adapter.selection.draining(), Some(Synthetic));
    assert_eq!((adapter.transmit(), adapter.groups()), (Transmit::Hold, (true, true)));
    adapter.selection.drained(adapter.now);
    assert_eq!(adapter.transmit(), Transmit::On(OnVf));
    adapter.selection.emptied(Synthetic);
    assert_eq!(adapter.groups(), (false, true));
    adapter.later(Duration::from_micros(30));
    adapter.selection.sent(OnVf, false, adapter.now);
    adapter.later(Duration::from_secs(1));
    adapter.selection.sent(OnVf, false, adapter.now);
    let expected =
        DataPathStatistics { to_vf: 1, last_us: 100, worst_us: 100, ..Default::default() };
    assert_eq!(adapter.selection.statistics(), expected);
}

#[test]
fn the_vf_is_drained_before_the_host_is_asked_and_emptied_before_it_is_returned() {
    let mut adapter = Adapter::on_vf();
    adapter.answers = false;
    adapter.selection.return_vf(false, adapter.now);
    adapter.run();
    assert_eq!((adapter.netvsc, adapter.transmit()), (NetVscPath::Vf, Transmit::Hold));
    assert_eq!(adapter.selection.draining(), Some(OnVf));
    adapter.selection.drained(adapter.now);
    adapter.run();
    assert_eq!((adapter.netvsc, adapter.transmit()), (AskedForSynthetic, Transmit::On(Synthetic)));
    // Until the host has answered, groups come by the VF only.
    assert_eq!((adapter.groups(), adapter.returned), ((false, true), 0));
    adapter.later(Duration::from_micros(40));
    // Nothing to send before the answer does not make the move shorter.
    adapter.selection.sent(Synthetic, true, adapter.now);
    adapter.later(Duration::from_micros(10));
    adapter.answer();
    assert_eq!((adapter.groups(), adapter.returned), ((true, true), 0));
    assert_eq!(adapter.selection.emptying(), Some(OnVf));
    adapter.selection.emptied(OnVf);
    adapter.run();
    assert_eq!((adapter.groups(), adapter.returned), ((true, false), 1));
    adapter.selection.sent(Synthetic, true, adapter.now);
    let moves = adapter.selection.statistics();
    assert_eq!((moves.to_vf, moves.to_synthetic, moves.last_us), (1, 1, 50));
    assert_eq!((moves.surprises, moves.timeouts), (0, 0));
}

#[test]
fn the_guest_moves_its_path_by_hand_as_often_as_it_likes() {
    let mut adapter = Adapter::on_vf();
    for _ in 0..1000 {
        adapter.selection.set_vf(false, adapter.now);
        assert_eq!(adapter.selection.vf_is_set(false), None);
        adapter.run();
        adapter.quiet();
        assert_eq!(adapter.selection.vf_is_set(false), Some(true));
        assert_eq!(adapter.transmit(), Transmit::On(Synthetic));
        adapter.selection.set_vf(true, adapter.now);
        adapter.run();
        adapter.quiet();
        assert_eq!(adapter.selection.vf_is_set(true), Some(true));
        assert_eq!(adapter.transmit(), Transmit::On(OnVf));
    }
    let moves = adapter.selection.statistics();
    assert_eq!((moves.to_vf, moves.to_synthetic), (1001, 1000));
    assert_eq!((moves.surprises, moves.timeouts, adapter.returned), (0, 0, 0));
}

#[test]
fn a_vf_that_vanishes_is_left_at_once() {
    let mut adapter = Adapter::on_vf();
    adapter.selection.vf_gone();
    adapter.driver_up = false;
    adapter.answers = false;
    adapter.netvsc_step();
    assert_eq!(adapter.transmit(), Transmit::On(Synthetic));
    adapter.answer();
    let moves = adapter.selection.statistics();
    assert_eq!((moves.surprises, moves.to_synthetic), (1, 0));
    // Also in the middle of a graceful move.
    let mut adapter = Adapter::on_vf();
    adapter.selection.return_vf(false, adapter.now);
    adapter.selection.vf_gone();
    assert_eq!(adapter.selection.draining(), None);
    adapter.driver_up = false;
    adapter.netvsc_step();
    assert_eq!((adapter.transmit(), adapter.returned), (Transmit::On(Synthetic), 0));
    // And when the host has just asked for the path back: each end of the VF path is counted once.
    let mut adapter = Adapter::on_vf();
    adapter.observe(AskedForSynthetic);
    adapter.selection.vf_gone();
    adapter.observe(NetVscPath::Synthetic);
    let moves = adapter.selection.statistics();
    assert_eq!((moves.surprises, moves.to_synthetic), (1, 0));
}

#[test]
fn a_host_that_wants_the_path_back_gets_it() {
    let mut adapter = Adapter::on_vf();
    // NetVSC asks by itself then.
    adapter.observe(AskedForSynthetic);
    assert_eq!((adapter.transmit(), adapter.selection.draining()), (Transmit::Hold, Some(OnVf)));
    adapter.selection.drained(adapter.now);
    assert_eq!(adapter.transmit(), Transmit::On(Synthetic));
    adapter.observe(NetVscPath::Synthetic);
    let moves = adapter.selection.statistics();
    assert_eq!((moves.to_synthetic, moves.surprises), (1, 0));
    assert_eq!(adapter.selection.vf_is_set(true), Some(false));
    // What is left in the VF's rings still comes, groups included.
    assert_eq!(adapter.groups(), (true, true));
    adapter.selection.emptied(OnVf);
    assert_eq!(adapter.groups(), (true, false));
    // Then the host ejects it.
    adapter.driver_up = false;
    adapter.selection.return_vf(false, adapter.now);
    adapter.run();
    adapter.quiet();
    assert_eq!(adapter.returned, 1);
}

#[test]
fn without_the_synthetic_adapter_the_vf_carries_all_and_back() {
    let mut adapter = Adapter::on_vf();
    adapter.selection.synthetic_gone(adapter.now);
    adapter.netvsc = NetVscPath::Synthetic;
    assert_eq!((adapter.transmit(), adapter.groups()), (Transmit::On(OnVf), (false, true)));
    assert_eq!(adapter.selection.vf_is_set(true), Some(true));
    assert_eq!(adapter.selection.statistics().synthetic_lost, 1);
    adapter.driver_up = false;
    adapter.selection.synthetic_up(true);
    adapter.run();
    adapter.quiet();
    assert_eq!((adapter.netvsc, adapter.transmit()), (NetVscPath::Vf, Transmit::On(OnVf)));
    // It goes while the VF is on its way out: there is nobody to be asked.
    adapter.answers = false;
    adapter.selection.return_vf(false, adapter.now);
    adapter.selection.drained(adapter.now);
    adapter.run();
    adapter.selection.synthetic_gone(adapter.now);
    adapter.quiet();
    assert_eq!((adapter.transmit(), adapter.returned), (Transmit::Nowhere, 1));
}

#[test]
fn what_never_answers_is_left_when_its_limit_is_over() {
    let mut adapter = Adapter::on_vf();
    adapter.answers = false;
    adapter.selection.return_vf(false, adapter.now);
    adapter.later(DRAIN_LIMIT);
    assert_eq!((adapter.netvsc, adapter.transmit()), (AskedForSynthetic, Transmit::On(Synthetic)));
    adapter.later(ANSWER_LIMIT);
    assert_eq!(adapter.selection.emptying(), Some(OnVf));
    adapter.later(EMPTY_LIMIT);
    assert_eq!(adapter.returned, 1);
    assert_eq!(adapter.selection.statistics().timeouts, 3);
    // A host that does not empty the synthetic rings does not keep the guest from the VF.
    let mut adapter = Adapter::new();
    adapter.selection.synthetic_up(true);
    adapter.selection.vf_up(true);
    adapter.run();
    assert_eq!(adapter.transmit(), Transmit::Hold);
    adapter.later(SETTLE_LIMIT);
    assert_eq!(adapter.transmit(), Transmit::On(OnVf));
}

#[test]
fn a_vf_that_is_reset_is_returned_without_waiting_for_its_rings() {
    let mut adapter = Adapter::on_vf();
    adapter.selection.return_vf(true, adapter.now);
    adapter.run();
    adapter.quiet();
    assert_eq!((adapter.transmit(), adapter.returned), (Transmit::On(Synthetic), 1));
    // A link that is lost while it drains ends the wait, but not the wish to return it.
    let mut adapter = Adapter::on_vf();
    adapter.selection.return_vf(false, adapter.now);
    adapter.selection.vf_link(false, adapter.now);
    adapter.run();
    adapter.quiet();
    assert_eq!(adapter.returned, 1);
}

proptest! {
    /// Whatever happens in whatever order: packets are held for no longer than the limits, go to a path that is there, and
    /// are never lost while one is; a VF is returned once at most.
    #[test]
    fn no_order_of_events_leaves_the_guest_without_a_path(
        steps in prop::collection::vec((0..13u8, 0..600u64), 1..120),
    ) {
        let mut adapter = Adapter::new();
        let (mut synthetic, mut attached, mut gone) = (false, 0u32, 0u32);
        for (step, wait) in steps {
            adapter.later(Duration::from_millis(wait));
            let now = adapter.now;
            match step {
                0 if !synthetic => {
                    synthetic = true;
                    adapter.driver_up = false;
                    adapter.selection.synthetic_up(true);
                }
                1 if synthetic => {
                    synthetic = false;
                    adapter.selection.synthetic_gone(now);
                    adapter.netvsc = NetVscPath::Synthetic;
                }
                2 if attached == gone + adapter.returned => {
                    attached += 1;
                    adapter.selection.vf_up(true);
                }
                3 if attached > gone + adapter.returned => {
                    gone += 1;
                    adapter.selection.vf_gone();
                    adapter.driver_up = false;
                    if synthetic {
                        adapter.netvsc_step();
                    }
                }
                4 | 5 if attached > gone + adapter.returned => {
                    adapter.selection.return_vf(step == 5, now);
                }
                6 | 7 => adapter.selection.set_vf(step == 6, now),
                8 | 9 if attached > gone + adapter.returned => {
                    adapter.selection.vf_link(step == 8, now);
                }
                10 | 11 => adapter.answers = step == 10,
                12 if synthetic && adapter.netvsc == NetVscPath::Vf => {
                    adapter.observe(NetVscPath::Synthetic);
                }
                _ => {}
            }
            adapter.run();
            if adapter.answers && synthetic {
                adapter.answer();
            }
            let there = attached > gone + adapter.returned;
            prop_assert!(adapter.returned + gone <= attached);
            match adapter.transmit() {
                Transmit::On(Synthetic) => prop_assert!(synthetic),
                Transmit::On(OnVf) => prop_assert!(there),
                Transmit::Nowhere => prop_assert!(!synthetic),
                Transmit::Hold => prop_assert!(synthetic || there),
            }
            prop_assert!(!synthetic || adapter.groups() != (false, false));
        }
        adapter.later(DRAIN_LIMIT);
        adapter.later(SETTLE_LIMIT);
        prop_assert_ne!(adapter.transmit(), Transmit::Hold);
    }
}
