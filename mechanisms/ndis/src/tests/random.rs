//! Random sequences of requests, some of them failed by the driver: after each, the cache and the card agree, the rules of
//! the specification hold, and what was refused has changed nothing ([`Bench::send`] checks all three).

use ndis_protocol::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::testing::*;

/// One thing an overlying driver may do, sensible or not.
#[derive(Clone, Debug)]
enum Action {
    Speak(u8),
    FailNext(u8),
    AllocateVf,
    FreeVf(u16),
    ResetVf(u16),
    CreateVfVPort(u16, u32),
    CreatePfVPort(u32, u64),
    DeleteVPort(u32),
    Activate(u32),
    SetQueuePairs(u32, u32),
    SetFilter(u32, u8, u16),
    ClearFilter(u32),
    MoveFilter(u32, u32, u32),
    MoveFilterFromWhereItIs(u32, u32),
    Unbind(u8),
    Restart,
    Bytes { oid: usize, kind: usize, input: Vec<u8>, room: usize },
    Damaged { position: u16, value: u8, vf: u16 },
}

fn any_action() -> impl Strategy<Value = Action> {
    use Action as A;
    prop_oneof![
        2 => (0_u8..3).prop_map(A::Speak),
        1 => (0_u8..2).prop_map(A::FailNext),
        6 => Just(A::AllocateVf),
        3 => (0_u16..5).prop_map(A::FreeVf),
        1 => (0_u16..5).prop_map(A::ResetVf),
        6 => (0_u16..5, 0_u32..6).prop_map(|(vf, pairs)| A::CreateVfVPort(vf, pairs)),
        4 => (0_u32..6, 0_u64..4).prop_map(|(pairs, mask)| A::CreatePfVPort(pairs, mask)),
        4 => (0_u32..9).prop_map(A::DeleteVPort),
        2 => (0_u32..9).prop_map(A::Activate),
        2 => (0_u32..9, 0_u32..6).prop_map(|(vport, pairs)| A::SetQueuePairs(vport, pairs)),
        8 => (0_u32..9, any::<u8>(), 0_u16..3).prop_map(|(v, m, vlan)| A::SetFilter(v, m, vlan)),
        3 => (0_u32..20).prop_map(A::ClearFilter),
        2 => (0_u32..20, 0_u32..9, 0_u32..9).prop_map(|(f, a, b)| A::MoveFilter(f, a, b)),
        5 => (0_u32..20, 0_u32..9).prop_map(|(f, to)| A::MoveFilterFromWhereItIs(f, to)),
        1 => (0_u8..3).prop_map(A::Unbind),
        1 => Just(A::Restart),
        2 => (0..Oid::ALL.len(), 0_usize..4, vec(any::<u8>(), 0..80), 0_usize..200)
            .prop_map(|(oid, kind, input, room)| A::Bytes { oid, kind, input, room }),
        3 => (any::<u16>(), any::<u8>(), 0_u16..4)
            .prop_map(|(position, value, vf)| A::Damaged { position, value, vf }),
    ]
}

fn act(bench: &mut Bench, action: &Action) {
    const KINDS: [RequestKind; 4] =
        [RequestKind::Query, RequestKind::Set, RequestKind::QueryStatistics, RequestKind::Method];
    // What a request answers is not looked at: refused or not, the invariants have to hold.
    match action {
        Action::Speak(who) => bench.speak_for(&format!("driver{who}")),
        Action::FailNext(after) => {
            bench.ndis.miniport_mut().fail = Some((u32::from(*after), NdisStatus::FAILURE));
        }
        Action::AllocateVf => {
            let _ = bench.allocate_vf("vm1");
        }
        Action::FreeVf(vf) => {
            let _ = bench.free_vf(vf_id(*vf));
        }
        Action::ResetVf(vf) => {
            let _ = bench.reset_vf(vf_id(*vf));
        }
        Action::CreateVfVPort(vf, pairs) => {
            let _ = bench.create_vf_vport(vf_id(*vf), *pairs);
        }
        Action::CreatePfVPort(pairs, mask) => {
            let _ = bench.create_vport(&VPortParameters {
                processor_affinity: GroupAffinity { mask: *mask, group: 0 },
                ..VPortParameters::new(FunctionId::Pf, *pairs)
            });
        }
        Action::DeleteVPort(vport) => {
            let _ = bench.delete_vport(vport_id(*vport));
        }
        Action::Activate(vport) => {
            let change = VPortChange {
                state: Some(VPortState::Activated),
                ..VPortChange::new(vport_id(*vport))
            };
            let _ = bench.set(Oid::NicSwitchVportParameters, &change);
        }
        Action::SetQueuePairs(vport, pairs) => {
            let change =
                VPortChange { num_queue_pairs: Some(*pairs), ..VPortChange::new(vport_id(*vport)) };
            let _ = bench.set(Oid::NicSwitchVportParameters, &change);
        }
        Action::SetFilter(vport, last, vlan) => {
            let matches = match VlanId::new(*vlan) {
                Some(vlan) => FilterMatch::on_vlan(mac(*last), vlan),
                None => FilterMatch::untagged(mac(*last)),
            };
            let _ = bench.set_filter(vport_id(*vport), matches);
        }
        Action::ClearFilter(filter) => {
            let clear =
                ReceiveFilterClearParameters { queue_id: 0, filter_id: FilterId::new(*filter) };
            let _ = bench.set(Oid::ReceiveFilterClearFilter, &clear);
        }
        Action::MoveFilter(filter, from, to) => {
            if let Some(filter) = FilterId::new(*filter) {
                let _ = bench.move_filter(filter, vport_id(*from), vport_id(*to));
            }
        }
        Action::MoveFilterFromWhereItIs(filter, to) => {
            let known = FilterId::new(*filter)
                .and_then(|id| bench.ndis.cache().filter(id).map(|r| (id, r.parameters.vport_id)));
            if let Some((filter, from)) = known {
                let _ = bench.move_filter(filter, from, vport_id(*to));
            }
        }
        Action::Unbind(who) => {
            let name = driver(&format!("driver{who}"));
            let _ = bench.ndis.unbind(&name);
            bench.check_invariants();
        }
        Action::Restart => {
            bench.ndis.miniport_mut().fail = None;
            assert!(bench.ndis.halt().is_complete());
            bench.ndis.start().unwrap();
            bench.check_invariants();
        }
        Action::Bytes { oid, kind, input, room } => {
            let _ = bench.send(Oid::ALL[*oid], KINDS[*kind], input, *room);
        }
        Action::Damaged { position, value, vf } => {
            let mut input = VPortParameters::new(FunctionId::Vf(vf_id(*vf)), 1).emit();
            let index = usize::from(*position) % input.len();
            input[index] = *value;
            let _ = bench.send(Oid::NicSwitchCreateVport, RequestKind::Method, &input, 1024);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_sequence_breaks_the_rules(actions in vec(any_action(), 0..60), pool: bool, symmetric: bool) {
        type Flags = NicSwitchCapabilityFlags;
        let mut hardware = sample_hardware();
        hardware.nic_switch.flags.set(Flags::SINGLE_VPORT_POOL, pool);
        hardware
            .nic_switch
            .flags
            .set(Flags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT, !symmetric);
        let mut bench = Bench::with(hardware, sriov_keywords());
        bench.speak_for("driver0");
        for action in &actions {
            act(&mut bench, action);
            if symmetric {
                let mut pairs: Vec<_> = bench
                    .ndis
                    .cache()
                    .vports()
                    .filter(|(id, _)| !id.is_default())
                    .map(|(_, record)| record.parameters.num_queue_pairs)
                    .collect();
                pairs.dedup();
                prop_assert!(pairs.len() <= 1, "{pairs:?}");
            }
        }
        bench.ndis.miniport_mut().fail = None;
        prop_assert!(bench.ndis.halt().is_complete(), "everything can be released");
    }
}

#[test]
fn the_actions_reach_success_and_refusal() {
    // Guards the property above against becoming one that only sees refusals.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut most = [0; 3];
    for _ in 0..40 {
        let actions = vec(any_action(), 60).new_tree(&mut runner).unwrap().current();
        let mut bench = Bench::new();
        bench.speak_for("driver0");
        for action in &actions {
            act(&mut bench, action);
            let cache = bench.ndis.cache();
            let seen = [cache.vfs().count(), cache.vports().count(), cache.filters().count()];
            for (most, seen) in most.iter_mut().zip(seen) {
                *most = (*most).max(seen);
            }
        }
    }
    assert!(most[0] == 4 && most[1] >= 5 && most[2] >= 5, "{most:?}");
}
