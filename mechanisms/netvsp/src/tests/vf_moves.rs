//! The VF: association, data-path switch under load, and its loss in every state.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    client::VfPath,
    server::{Upcall, VfState},
};

const SERIAL: u32 = 42;

/// A pair with a VF beside it: a queue each way, which lose nothing.
struct Bonded {
    pair: Pair,
    /// Frames that the guest sent through the VF.
    from_vf: Vec<u64>,
    /// Frames for the guest that are in the VF's receive ring.
    vf_ring: VecDeque<u64>,
    /// Frames that the guest took out of it.
    to_vf: Vec<u64>,
    sent: u64,
    delivered: u64,
    /// Deliveries that the synthetic path had no room for.
    refused: BTreeSet<u64>,
    not_sent: BTreeSet<u64>,
}

impl Bonded {
    fn new() -> Self {
        Self {
            pair: Pair::up(),
            from_vf: Vec::new(),
            vf_ring: VecDeque::new(),
            to_vf: Vec::new(),
            sent: 0,
            delivered: 0,
            refused: BTreeSet::new(),
            not_sent: BTreeSet::new(),
        }
    }

    /// One whose guest has its VF, with the driver down.
    fn offered() -> Self {
        let mut bonded = Self::new();
        bonded.pair.server.vf_available(SERIAL, bonded.pair.now);
        bonded.pair.settle();
        let heard = client::Upcall::VfAssociation(Some(SERIAL));
        assert_eq!(bonded.pair.told.client.last(), Some(&heard));
        bonded.pair.later(Duration::from_secs(1));
        bonded.pair.settle();
        let offered = bonded.pair.told.server.last();
        assert!(matches!(offered, Some(Upcall::OfferVpci { serial: SERIAL })), "{offered:?}");
        bonded.pair.client.vf_device(Some((SERIAL, MAC)));
        bonded
    }

    /// One whose frames take the VF.
    fn on_vf() -> Self {
        let mut bonded = Self::offered();
        bonded.pair.client.vf_driver(true);
        bonded.pair.settle();
        assert_eq!(bonded.pair.client.control().path(), VfPath::Vf);
        assert_eq!(bonded.pair.filters, DataPath::Vf);
        bonded
    }

    /// The guest sends a frame on the path that is in use.
    fn guest_sends(&mut self) {
        self.sent += 1;
        match self.pair.client.control().path().transmit() {
            DataPath::Vf => self.from_vf.push(self.sent),
            DataPath::Synthetic => {
                if self.pair.send(&frame(self.sent, 100)).is_err() {
                    self.not_sent.insert(self.sent);
                }
            }
        }
    }

    /// A frame for the guest comes to where the filters point.
    fn host_sends(&mut self) {
        self.delivered += 1;
        match self.pair.filters {
            DataPath::Vf => self.vf_ring.push_back(self.delivered),
            DataPath::Synthetic => {
                let bytes = frame(self.delivered, 100);
                if self.pair.deliver(0, &bytes, &ReceiveMetadata::default()).is_err() {
                    self.refused.insert(self.delivered);
                }
            }
        }
    }

    fn guest_drains_vf(&mut self) {
        self.to_vf.extend(self.vf_ring.drain(..));
    }

    /// Everything that was taken has arrived, once.
    fn check(&mut self) -> Result<(), TestCaseError> {
        self.pair.client.flush(0);
        self.pair.settle();
        self.guest_drains_vf();
        let once = |path: &[u64], synthetic: Vec<u64>, refused: &BTreeSet<u64>, all: u64| {
            let mut seen = BTreeSet::new();
            for number in path.iter().copied().chain(synthetic) {
                prop_assert!(seen.insert(number), "frame {} came twice", number);
            }
            for number in 1..=all {
                let lost = !seen.contains(&number) && !refused.contains(&number);
                prop_assert!(!lost, "frame {} was lost", number);
            }
            prop_assert_eq!(seen.len() + refused.len(), all as usize);
            Ok(())
        };
        let synthetic = self.pair.forwarded.iter().map(|seen| number(&seen.bytes)).collect();
        once(&self.from_vf, synthetic, &self.not_sent, self.sent)?;
        let synthetic = self.pair.received.iter().map(|seen| number(&seen.bytes)).collect();
        once(&self.to_vf, synthetic, &self.refused, self.delivered)
    }
}

#[test]
fn a_thousand_switches_under_load_lose_no_frame_and_double_none() {
    let mut bonded = Bonded::offered();
    bonded.pair.moves_at_once = false;
    for round in 0..1000 {
        bonded.pair.client.vf_driver(round % 2 == 0);
        for _ in 0..4 {
            bonded.guest_sends();
            bonded.host_sends();
            bonded.pair.step();
        }
        // The filters move while frames are on their way.
        bonded.pair.finish_move(true);
        for _ in 0..3 {
            bonded.guest_sends();
            bonded.host_sends();
        }
        bonded.pair.settle();
        for _ in 0..4 {
            bonded.guest_sends();
            bonded.host_sends();
        }
        bonded.guest_drains_vf();
        let expected = if round % 2 == 0 { VfPath::Vf } else { VfPath::Synthetic };
        assert_eq!(bonded.pair.client.control().path(), expected, "round {round}");
    }
    bonded.check().unwrap();
    assert!(bonded.not_sent.is_empty() && bonded.refused.is_empty());
    assert!(bonded.from_vf.len() >= 2000 && bonded.pair.forwarded.len() >= 2000);
    assert!(bonded.to_vf.len() >= 2000 && bonded.pair.received.len() >= 2000);
}

#[test]
fn the_guest_stops_using_the_vf_before_it_asks_and_starts_after_the_answer() {
    let mut bonded = Bonded::offered();
    bonded.pair.moves_at_once = false;
    bonded.pair.client.vf_driver(true);
    bonded.pair.settle();
    assert_eq!(bonded.pair.client.control().path().transmit(), DataPath::Synthetic);
    bonded.pair.finish_move(true);
    bonded.pair.settle();
    assert_eq!(bonded.pair.told.client.last(), Some(&client::Upcall::StartVf));
    assert_eq!(bonded.pair.client.control().path().transmit(), DataPath::Vf);
    bonded.pair.client.vf_driver(false);
    assert_eq!(bonded.pair.client.control().path().transmit(), DataPath::Synthetic);
    bonded.pair.settle();
    assert_eq!(bonded.pair.told.client.last(), Some(&client::Upcall::StopVf));
    bonded.pair.finish_move(true);
    bonded.pair.settle();
    assert_eq!(bonded.pair.told.client.last(), Some(&client::Upcall::VfReleased));
    bonded.check().unwrap();
}

#[test]
fn a_revoked_vf_goes_filters_first_and_loses_nothing() {
    let mut bonded = Bonded::on_vf();
    for _ in 0..50 {
        bonded.guest_sends();
        bonded.host_sends();
    }
    bonded.pair.told = Told::default();
    bonded.pair.server.vf_lost(bonded.pair.now);
    bonded.guest_sends();
    bonded.host_sends();
    bonded.pair.settle();
    assert_eq!(bonded.pair.filters, DataPath::Synthetic);
    let [Upcall::SwitchDataPath(DataPath::Synthetic), Upcall::RevokeVpci { serial: SERIAL }] =
        bonded.pair.told.server[..]
    else {
        panic!("{:?}", bonded.pair.told.server)
    };
    use client::Upcall::{StopVf, VfAssociation, VfReleased};
    assert_eq!(bonded.pair.told.client, [StopVf, VfAssociation(None), VfReleased]);
    bonded.pair.client.vf_device(None);
    bonded.guest_sends();
    bonded.host_sends();
    bonded.check().unwrap();
    assert_eq!(bonded.pair.server.control().vf_state(), VfState::Unavailable);
}

#[test]
fn a_vf_lost_in_each_state_leaves_the_synthetic_path_working() {
    type Prepare = fn(&mut Bonded);
    let states: [(&str, Prepare); 6] = [
        ("advertised", |b| {
            b.pair.server.vf_available(SERIAL, b.pair.now);
            b.pair.settle();
        }),
        ("ready", |b| *b = Bonded::offered()),
        ("asked for, not moved", |b| {
            *b = Bonded::offered();
            b.pair.moves_at_once = false;
            b.pair.client.vf_driver(true);
            b.pair.settle();
        }),
        ("in use", |b| *b = Bonded::on_vf()),
        ("being given back", |b| {
            *b = Bonded::on_vf();
            b.pair.moves_at_once = false;
            b.pair.client.vf_driver(false);
            b.pair.settle();
        }),
        ("its device gone first", |b| {
            *b = Bonded::on_vf();
            b.pair.client.vf_device(None);
        }),
    ];
    for (name, prepare) in states {
        for move_succeeds in [true, false] {
            let mut bonded = Bonded::new();
            prepare(&mut bonded);
            bonded.pair.server.vf_lost(bonded.pair.now);
            bonded.pair.settle();
            while !bonded.pair.moves.is_empty() {
                bonded.pair.finish_move(move_succeeds);
                bonded.pair.settle();
            }
            // With the VF goes its VPort, and frames for it take the default one.
            bonded.pair.filters = DataPath::Synthetic;
            bonded.pair.client.vf_device(None);
            bonded.pair.settle();
            bonded.pair.moves_at_once = true;
            assert_eq!(bonded.pair.server.control().vf_state(), VfState::Unavailable, "{name}");
            assert_eq!(bonded.pair.client.control().path(), VfPath::Synthetic, "{name}");
            bonded.guest_sends();
            bonded.host_sends();
            bonded.check().unwrap();
            // And the next VF is used like the first.
            bonded.pair.server.vf_available(8, bonded.pair.now);
            bonded.pair.later(Duration::from_secs(1));
            bonded.pair.settle();
            bonded.pair.client.vf_device(Some((8, MAC)));
            bonded.pair.client.vf_driver(true);
            bonded.pair.settle();
            assert_eq!(bonded.pair.client.control().path(), VfPath::Vf, "{name}");
        }
    }
}

#[test]
fn a_channel_closed_in_each_state_keeps_the_vf_for_the_next_driver() {
    for moved in [None, Some(true), Some(false)] {
        let mut bonded = Bonded::offered();
        bonded.pair.moves_at_once = moved.is_none();
        bonded.pair.client.vf_driver(true);
        bonded.pair.settle();
        bonded.pair.close();
        if let Some(done) = moved {
            bonded.pair.finish_move(done);
        }
        bonded.pair.moves_at_once = true;
        let on_vf = moved != Some(false);
        assert_eq!(bonded.pair.filters == DataPath::Vf, on_vf);
        bonded.pair.told = Told::default();
        bonded.pair.open();
        bonded.pair.settle();
        assert!(bonded.pair.client.control().is_up());
        let heard = client::Upcall::VfAssociation(Some(SERIAL));
        assert!(bonded.pair.told.client.contains(&heard));
        assert_eq!(bonded.pair.client.control().path(), VfPath::Vf, "its driver is still up");
        let offered_again = |u: &Upcall| matches!(u, Upcall::OfferVpci { .. });
        assert!(!bonded.pair.told.server.iter().any(offered_again));
        bonded.guest_sends();
        bonded.host_sends();
        bonded.check().unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    GuestSends(u8),
    HostSends(u8),
    Turn,
    Driver(bool),
    Device(bool),
    Available,
    Lost,
    Moved,
    Later,
    Drain,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Random interleavings of load, driver, revocation and moves. Moves succeed; then nothing is ever lost.
    #[test]
    fn every_interleaving_loses_nothing(
        steps in prop::collection::vec(
            prop_oneof![
                6 => (1..20u8).prop_map(Step::GuestSends),
                6 => (1..20u8).prop_map(Step::HostSends),
                8 => Just(Step::Turn),
                3 => any::<bool>().prop_map(Step::Driver),
                2 => prop::bool::weighted(0.7).prop_map(Step::Device),
                2 => Just(Step::Available),
                1 => Just(Step::Lost),
                4 => Just(Step::Moved),
                1 => Just(Step::Later),
                2 => Just(Step::Drain),
            ],
            0..120,
        ),
    ) {
        let mut bonded = Bonded::new();
        bonded.pair.moves_at_once = false;
        for step in steps {
            match step {
                Step::GuestSends(count) => (0..count).for_each(|_| bonded.guest_sends()),
                Step::HostSends(count) => (0..count).for_each(|_| bonded.host_sends()),
                Step::Turn => { bonded.pair.step(); }
                Step::Driver(up) => bonded.pair.client.vf_driver(up),
                Step::Device(true) => bonded.pair.client.vf_device(Some((SERIAL, MAC))),
                Step::Device(false) => bonded.pair.client.vf_device(None),
                Step::Available => bonded.pair.server.vf_available(SERIAL, bonded.pair.now),
                Step::Lost => bonded.pair.server.vf_lost(bonded.pair.now),
                Step::Moved => bonded.pair.finish_move(true),
                Step::Later => bonded.pair.later(Duration::from_secs(1)),
                Step::Drain => bonded.guest_drains_vf(),
            }
        }
        // It settles where wishes and facts call for.
        bonded.pair.moves_at_once = true;
        while !bonded.pair.moves.is_empty() {
            bonded.pair.finish_move(true);
            bonded.pair.settle();
        }
        bonded.pair.later(Duration::from_secs(1));
        bonded.check()?;
        let on_vf = bonded.pair.client.control().path() == VfPath::Vf;
        prop_assert_eq!(on_vf, bonded.pair.filters == DataPath::Vf);
        prop_assert!(matches!(
            bonded.pair.client.control().path(), VfPath::Vf | VfPath::Synthetic
        ));
        prop_assert_eq!(bonded.pair.server.outstanding(0), Some(0));
        prop_assert_eq!(bonded.pair.client.outstanding(0), Some(0));
    }
}
