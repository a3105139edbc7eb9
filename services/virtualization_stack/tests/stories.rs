//! The documented outcomes, one by one: the published sequences, and what happens when somebody does not answer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::time::Duration;

use ndis_protocol::{
    FilterId, MacAddress, Name, NdisStatus, NicSwitchCapabilities, NicSwitchCapabilityFlags,
    NicSwitchInfo, RequestorId, SriovCapabilities, VPortId, VfId,
};
use pcivirt_protocol::{NtStatus, SriovPfEvent};
use virtualization_stack::*;

const NIC: NicId = NicId(1);
const SWITCH: VmSwitchId = VmSwitchId(1);
const VM: VmId = VmId(1);
const ADAPTER: AdapterId = AdapterId(1);
const SERIAL: VfSerial = VfSerial(1);

/// A stack with one NIC, switch, VM and adapter; the NIC answers as it should unless told otherwise.
struct Story {
    stack: Stack,
    now: Time,
    /// Names of requests and words to the guest's ends, in their order.
    said: Vec<String>,
    notification: Option<RequestId>,
    refuses: Option<(&'static str, CallError)>,
    /// VFs of the NIC's switch.
    vfs: u32,
    events: Vec<Event>,
}

impl Story {
    fn new(config: StackConfig) -> Self {
        Self::of(AdapterKind::Synthetic, config)
    }

    fn of(kind: AdapterKind, config: StackConfig) -> Self {
        let mut story = Self {
            stack: Stack::new(config),
            now: Time::ZERO,
            said: Vec::new(),
            notification: None,
            refuses: None,
            vfs: 4,
            events: Vec::new(),
        };
        let name = Name::new("vm1").unwrap();
        let external = SwitchKind::External { nic: NIC, teamed: false };
        let config = SwitchConfig { name: "external".into(), kind: external, iov_enabled: true };
        story.tell(Input::SwitchSet(SWITCH, config));
        story.tell(Input::SwitchStarted(SWITCH));
        story.tell(Input::VmSet(VM, VmConfig { name: name.clone(), friendly_name: name }));
        story.tell(Input::VmState(VM, VmState::Running));
        story.tell(Input::AdapterSet(ADAPTER, AdapterConfig { kind, ..adapter() }));
        story.tell(Input::NetVsp(ADAPTER, NetVspReport::Ready { sriov: true }));
        story
    }

    /// A guest with a virtio-net, on its VF.
    fn active_with_virtio_net() -> Self {
        let mut story = Self::of(AdapterKind::VhostUser, StackConfig::default());
        story.tell(Input::NicConnected(NIC));
        story.vpci(VpciReport::Offered);
        story.vpci(VpciReport::DeviceStarted);
        story.asks(DataPath::Vf);
        assert_eq!((story.state().as_str(), story.codes()), ("Active: resting", vec![]));
        story.said.clear();
        story
    }

    /// The same, the NIC connected and the VF offered to the guest.
    fn offered() -> Self {
        let mut story = Self::new(StackConfig::default());
        story.tell(Input::NicConnected(NIC));
        story.vpci(VpciReport::Offered);
        story
    }

    fn active() -> Self {
        let mut story = Self::offered();
        story.vpci(VpciReport::BusOpened);
        story.vpci(VpciReport::DeviceStarted);
        story.asks(DataPath::Vf);
        assert_eq!(story.state(), "Active: resting");
        story.said.clear();
        story
    }

    fn state(&self) -> String {
        self.stack.state(ADAPTER).unwrap().to_string()
    }

    fn codes(&self) -> Vec<String> {
        self.stack.reasons(ADAPTER).iter().map(Reason::code).collect()
    }

    fn tell(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.stack.step(input, self.now).unwrap() {
                match effect {
                    Effect::Nic { nic, request, call } => {
                        self.said.push(call.target().to_string());
                        match self.answer(request, &call) {
                            Some(result) => {
                                inputs.push_back(Input::NicCompleted(nic, request, result));
                            }
                            None => self.notification = Some(request),
                        }
                    }
                    Effect::NetVsp { command, .. } => self.said.push(format!("{command:?}")),
                    Effect::Vpci { command: VpciCommand::Offer(_), .. } => {
                        self.said.push("Offer".into());
                    }
                    Effect::Vpci { command, .. } => self.said.push(format!("{command:?}")),
                    Effect::Publish(event) => self.events.push(event),
                    Effect::SetTimer(_) | Effect::CancelNic { .. } => {}
                    Effect::DisconnectNic { .. } => self.said.push("Disconnect".into()),
                }
            }
        }
    }

    fn answer(&self, _request: RequestId, call: &NicCall) -> Option<Result<NicReply, CallError>> {
        let name = call.target().to_string();
        if let Some((_, error)) = self.refuses.as_ref().filter(|(refused, _)| *refused == name) {
            return Some(Err(error.clone()));
        }
        let flags = NicSwitchCapabilityFlags::VLAN_SUPPORTED
            | NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT;
        Some(Ok(match call {
            NicCall::Notification => return None,
            NicCall::MitigatedRangeUpdate(_) => {
                return Some(Err(CallError::Nt(NtStatus::NOT_SUPPORTED)));
            }
            NicCall::QueryMitigatedRangeCount(_) => {
                return Some(Err(CallError::Nt(NtStatus::NOT_SUPPORTED)));
            }
            NicCall::SriovHardwareCapabilities | NicCall::SriovCurrentCapabilities => {
                NicReply::Sriov(SriovCapabilities::SRIOV_SUPPORTED)
            }
            NicCall::NicSwitchCurrentCapabilities => NicReply::NicSwitch(NicSwitchCapabilities {
                flags,
                max_num_switches: 1,
                max_num_vports: 5,
                max_num_vfs: 4,
                max_num_queue_pairs: 8,
                max_num_queue_pairs_per_non_default_vport: 2,
                max_num_mac_addresses: 16,
                rss: None,
            }),
            NicCall::ReceiveFilterCurrentCapabilities => {
                return Some(Err(CallError::Ndis(NdisStatus::NOT_SUPPORTED)));
            }
            NicCall::EnumSwitches => NicReply::Switches(vec![NicSwitchInfo {
                num_vfs: self.vfs,
                num_queue_pairs_for_default_vport: 1,
                ..Default::default()
            }]),
            NicCall::EnumVfs => NicReply::Vfs(Vec::new()),
            NicCall::EnumVPorts => NicReply::VPorts(Vec::new()),
            NicCall::EnumFilters(_) => NicReply::Filters(Vec::new()),
            NicCall::AllocateVf(_) => {
                NicReply::Vf(VfId::new(0).unwrap(), RequestorId::new(0, 1, 16).unwrap())
            }
            NicCall::CreateVPort(_) => NicReply::VPort(VPortId::new(1).unwrap()),
            NicCall::SetFilter(_) => NicReply::Filter(FilterId::new(7).unwrap()),
            _ => NicReply::Done,
        }))
    }

    fn vpci(&mut self, report: VpciReport) {
        self.tell(Input::Vpci(ADAPTER, SERIAL, report));
    }

    fn asks(&mut self, path: DataPath) {
        self.tell(Input::NetVsp(ADAPTER, NetVspReport::AsksDataPath(path)));
    }

    fn pf_event(&mut self, event: SriovPfEvent) {
        let request = self.notification.unwrap();
        self.tell(Input::NicCompleted(NIC, request, Ok(NicReply::Event(event))));
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.tell(Input::Tick);
    }
}

fn adapter() -> AdapterConfig {
    let mut config = AdapterConfig::new(VM, MacAddress::new([2, 0, 0, 0, 0, 1]));
    config.switch = Some(SWITCH);
    config.iov_weight = 100;
    config
}

#[test]
fn a_vf_starts_up_in_the_published_order() {
    let story = Story::offered();
    let start = story.said.iter().position(|said| said.contains("SET_FILTER")).unwrap();
    assert_eq!(
        story.said[start..],
        [
            "OID_RECEIVE_FILTER_SET_FILTER",
            "OID_NIC_SWITCH_ALLOCATE_VF",
            "OID_NIC_SWITCH_CREATE_VPORT",
            "the VPort policy control",
            "IOCTL_SRIOV_MITIGATED_RANGE_UPDATE",
            "IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT",
            "OID_RECEIVE_FILTER_MOVE_FILTER",
            "VfAvailable { serial: serial 1 }",
            "Offer",
        ]
    );
    assert_eq!(story.codes(), ["InProgress"]);
}

#[test]
fn a_vf_is_taken_back_in_the_published_order() {
    let mut story = Story::active();
    story.tell(Input::AdapterSet(ADAPTER, AdapterConfig { iov_weight: 0, ..adapter() }));
    story.asks(DataPath::Synthetic);
    story.vpci(VpciReport::EjectComplete);
    story.vpci(VpciReport::Removed);
    assert_eq!(
        story.said,
        [
            "SwitchDataPath(Synthetic)",
            "OID_RECEIVE_FILTER_MOVE_FILTER",
            "CompleteSwitch { active: Synthetic }",
            "VfLost { serial: serial 1 }",
            "Eject",
            "Remove { surprise: false }",
            "OID_NIC_SWITCH_DELETE_VPORT",
            "OID_SRIOV_RESET_VF",
            "OID_NIC_SWITCH_FREE_VF",
        ]
    );
    assert_eq!(
        (story.state().as_str(), story.codes()),
        ("Synthetic: resting", vec!["WeightZero".into()])
    );
}

#[test]
fn a_guest_that_is_long_in_using_its_vf_keeps_it_and_it_is_said_why() {
    let mut story = Story::offered();
    story.vpci(VpciReport::BusOpened);
    assert_eq!(story.codes(), ["InProgress"]);
    story.pass(60);
    assert_eq!(
        (story.state().as_str(), story.codes()),
        ("Offered: waiting", vec!["GuestNoVfDriver".into()])
    );
    story.pass(3600);
    // Its driver is up at last.
    story.vpci(VpciReport::DeviceStarted);
    assert_eq!(story.codes(), ["GuestVfFailed"]);
    story.asks(DataPath::Vf);
    assert_eq!((story.state().as_str(), story.codes()), ("Active: resting", vec![]));
}

#[test]
fn a_vf_that_is_not_used_in_time_is_for_whoever_waits_for_one() {
    let mut story = Story::new(StackConfig::default());
    story.vfs = 1;
    story.tell(Input::NicConnected(NIC));
    story.vpci(VpciReport::Offered);
    story.vpci(VpciReport::BusOpened);
    let second = AdapterId(2);
    let mac = MacAddress::new([2, 0, 0, 0, 0, 2]);
    let config = AdapterConfig { mac, ..adapter() };
    story.tell(Input::AdapterSet(second, config));
    story.tell(Input::NetVsp(second, NetVspReport::Ready { sriov: true }));
    assert_eq!(story.stack.reasons(second)[0].code(), "OverSubscribed");
    story.pass(59);
    assert_eq!(story.state(), "Offered: waiting");
    story.pass(1);
    assert_eq!(story.state(), "Revoking: eject");
    story.vpci(VpciReport::EjectComplete);
    story.vpci(VpciReport::Removed);
    assert_eq!(story.stack.state(second).unwrap().to_string(), "Offered: exposing");
    story.pass(3600);
    assert_eq!(story.codes(), ["GuestNoVfDriver"]);
    // It is asked again when its guest starts anew.
    story.tell(Input::GuestReset(VM));
    assert_eq!(story.codes(), ["GuestNotReady"]);
    story.tell(Input::NetVsp(ADAPTER, NetVspReport::Ready { sriov: true }));
    assert_eq!(story.codes()[0], "OverSubscribed");
}

#[test]
fn a_guest_that_leaves_its_vf_only_when_that_is_ejected_is_asked_to_leave_once() {
    let mut story = Story::active();
    let weigh = |story: &mut Story, iov_weight| {
        story.tell(Input::AdapterSet(ADAPTER, AdapterConfig { iov_weight, ..adapter() }));
    };
    weigh(&mut story, 0);
    assert_eq!(story.state(), "Revoking: switch");
    story.pass(2);
    assert_eq!(story.state(), "Revoking: eject");
    // As Linux does it: its driver is gone, then the device is given up.
    story.asks(DataPath::Synthetic);
    story.vpci(VpciReport::EjectComplete);
    story.vpci(VpciReport::Removed);
    weigh(&mut story, 100);
    let second = VfSerial(2);
    story.tell(Input::Vpci(ADAPTER, second, VpciReport::Offered));
    story.asks(DataPath::Vf);
    assert_eq!(story.state(), "Active: resting");
    story.said.clear();
    weigh(&mut story, 0);
    assert_eq!(story.said, ["VfLost { serial: serial 2 }", "Eject"]);
}

#[test]
fn a_guest_with_a_virtio_net_leaves_its_vf_by_giving_it_up() {
    let mut story = Story::active_with_virtio_net();
    let config = AdapterConfig { iov_weight: 0, kind: AdapterKind::VhostUser, ..adapter() };
    story.tell(Input::AdapterSet(ADAPTER, config));
    assert_eq!(story.said, ["VfLost { serial: serial 1 }", "Eject"]);
    story.said.clear();
    // Its driver stops, whatever the virtio-net's does, and the NIC's frames are for the switch again.
    story.tell(Input::NetVsp(ADAPTER, NetVspReport::Closed));
    story.asks(DataPath::Synthetic);
    assert_eq!(story.state(), "Revoking: eject");
    story.vpci(VpciReport::EjectComplete);
    story.vpci(VpciReport::Removed);
    assert_eq!(
        story.said,
        [
            "OID_RECEIVE_FILTER_MOVE_FILTER",
            "CompleteSwitch { active: Synthetic }",
            "Remove { surprise: false }",
            "OID_NIC_SWITCH_DELETE_VPORT",
            "OID_SRIOV_RESET_VF",
            "OID_NIC_SWITCH_FREE_VF",
        ]
    );
}

#[test]
fn a_guest_with_a_virtio_net_that_does_not_give_its_vf_up_loses_it() {
    let mut story = Story::active_with_virtio_net();
    let config = AdapterConfig { iov_weight: 0, kind: AdapterKind::VhostUser, ..adapter() };
    story.tell(Input::AdapterSet(ADAPTER, config));
    story.pass(60);
    assert_eq!(story.said.last().unwrap(), "Remove { surprise: true }");
    // That its path is gone shows by the device.
    story.asks(DataPath::Synthetic);
    story.vpci(VpciReport::Removed);
    assert_eq!(story.codes(), ["WeightZero"]);
    assert_eq!(story.state(), "Synthetic: resting");
}

#[test]
fn a_guest_with_a_virtio_net_that_starts_anew_is_on_its_vf_when_that_s_driver_is_up() {
    let mut story = Story::active_with_virtio_net();
    story.tell(Input::GuestReset(VM));
    assert_eq!(story.said, ["OID_RECEIVE_FILTER_MOVE_FILTER"]);
    assert_eq!(
        (story.state().as_str(), story.codes()),
        ("Offered: waiting", vec!["InProgress".into()])
    );
    // Its switch matters as little as in which order its drivers come up.
    story.tell(Input::SwitchStopped(SWITCH));
    story.vpci(VpciReport::DeviceStarted);
    story.asks(DataPath::Vf);
    assert_eq!((story.state().as_str(), story.codes()), ("Active: resting", vec![]));
    story.tell(Input::NetVsp(ADAPTER, NetVspReport::Ready { sriov: true }));
    story.tell(Input::SwitchStarted(SWITCH));
    story.tell(Input::SwitchStopped(SWITCH));
    assert_eq!((story.state().as_str(), story.codes()), ("Active: resting", vec![]));
    story.tell(Input::NetVsp(ADAPTER, NetVspReport::Ready { sriov: false }));
    let Some(Reason::GuestUnsupported { lacks }) = story.stack.reasons(ADAPTER).pop() else {
        panic!("{:?}", story.codes());
    };
    assert_eq!(lacks, GuestGap::VirtioNetWithoutStandby);
    assert_eq!(story.state(), "Revoking: eject");
}

#[test]
fn a_guest_that_starts_anew_while_its_filters_move_is_still_waited_for() {
    let mut story = Story::active_with_virtio_net();
    let move_filter = "OID_RECEIVE_FILTER_MOVE_FILTER";
    story.refuses = Some((move_filter, CallError::Ndis(NdisStatus::FAILURE)));
    story.tell(Input::GuestReset(VM));
    story.tell(Input::NetVsp(ADAPTER, NetVspReport::Ready { sriov: true }));
    assert_eq!(story.state(), "Active: leaving");
    story.refuses = None;
    story.pass(5);
    assert_eq!(
        (story.state().as_str(), story.codes()),
        ("Offered: waiting", vec!["InProgress".into()])
    );
    story.pass(55);
    assert_eq!(story.codes(), ["GuestNoVfDriver"]);
}

#[test]
fn vf_is_reclaimed_when_the_guest_never_answers_switch_nor_eject() {
    let mut story = Story::active();
    story.tell(Input::AdapterSet(ADAPTER, AdapterConfig { iov_weight: 0, ..adapter() }));
    assert_eq!(story.state(), "Revoking: switch");
    story.pass(2);
    assert_eq!(story.state(), "Revoking: eject");
    story.said.clear();
    story.pass(60);
    // Filters first, then the guest is told, then the device goes.
    assert_eq!(
        story.said,
        [
            "OID_RECEIVE_FILTER_MOVE_FILTER",
            "SwitchDataPath(Synthetic)",
            "Remove { surprise: true }"
        ]
    );
    // Not even its host side answers.
    story.pass(5);
    assert_eq!(story.state(), "Synthetic: resting");
}

#[test]
fn a_pf_that_stops_gets_its_vfs_back_and_gives_them_again_when_it_restarts() {
    let mut story = Story::active();
    story.pf_event(SriovPfEvent::QUERY_STOP_DEVICE);
    assert!(!story.said.contains(&"IOCTL_SRIOV_EVENT_COMPLETE".to_owned()));
    story.asks(DataPath::Synthetic);
    story.vpci(VpciReport::EjectComplete);
    story.vpci(VpciReport::Removed);
    assert_eq!(story.said.last().unwrap(), "IOCTL_SRIOV_EVENT_COMPLETE");
    assert_eq!(story.codes(), ["PfStopping"]);
    story.pf_event(SriovPfEvent::RESTART);
    assert_eq!(story.state(), "Offered: exposing");
}

#[test]
fn a_stop_is_vetoed_or_forced_when_a_guest_does_not_answer() {
    let vetoed = |event: &Event| matches!(event, Event::PfStopVetoed { held: 1, .. });
    let mut story = Story::active();
    story.pf_event(SriovPfEvent::QUERY_STOP_DEVICE);
    story.pass(2);
    story.pass(8);
    assert!(story.events.iter().any(vetoed));
    assert_eq!(story.stack.nic_status(NIC).unwrap().state, NicState::Vetoed);

    let config = StackConfig { silent_guest: SilentGuest::SurpriseRemove, ..Default::default() };
    let mut story = Story::new(config);
    story.tell(Input::NicConnected(NIC));
    story.vpci(VpciReport::Offered);
    story.asks(DataPath::Vf);
    story.pf_event(SriovPfEvent::QUERY_STOP_DEVICE);
    story.pass(10);
    story.vpci(VpciReport::Removed);
    assert_eq!(story.stack.nic_status(NIC).unwrap().state, NicState::Stopped);
}

#[test]
fn an_adapter_that_disappears_is_a_surprise_removal_for_the_guest() {
    let mut story = Story::active();
    story.tell(Input::NicDisconnected(NIC));
    assert_eq!(
        story.said,
        ["SwitchDataPath(Synthetic)", "VfLost { serial: serial 1 }", "Remove { surprise: true }"]
    );
    story.vpci(VpciReport::Removed);
    assert_eq!(story.codes(), ["PfRemoved"]);
}

#[test]
fn a_vf_that_vanishes_before_its_nic_does_is_not_held_against_the_guest() {
    let mut story = Story::active();
    // The VF's own connection ends first.
    story.vpci(VpciReport::Removed);
    assert_eq!(story.codes(), ["GuestReturnedVf"]);
    story.tell(Input::NicDisconnected(NIC));
    assert_eq!(story.codes(), ["PfRemoved"]);
    // The next one is offered as soon as there is a NIC.
    story.tell(Input::NicConnected(NIC));
    assert_eq!(
        (story.state().as_str(), story.codes()),
        ("Offered: exposing", vec!["InProgress".into()])
    );
}

#[test]
fn several_reasons_hold_at_once_and_each_goes_with_its_cause() {
    let mut story = Story::new(StackConfig::default());
    let mut config = AdapterConfig { iov_weight: 0, ..adapter() };
    config.policies.insert(Policy::DhcpGuard);
    story.tell(Input::AdapterSet(ADAPTER, config.clone()));
    story.tell(Input::Host(vec![HostReason::NoDmaRemapping]));
    assert_eq!(
        story.codes(),
        ["Host:NoDmaRemapping", "WeightZero", "PfRemoved", "PolicyForcesSoftware"]
    );
    story.tell(Input::Host(Vec::new()));
    config.iov_weight = 1;
    story.tell(Input::AdapterSet(ADAPTER, config.clone()));
    story.tell(Input::NicConnected(NIC));
    assert_eq!(story.codes(), ["PolicyForcesSoftware"]);
    assert_eq!(story.stack.adapter_status(ADAPTER).unwrap().health, Health::Degraded);
    config.allow_policy_bypass = true;
    story.tell(Input::AdapterSet(ADAPTER, config));
    story.vpci(VpciReport::Offered);
    story.asks(DataPath::Vf);
    assert_eq!(story.codes(), ["PolicyBypassed"]);
    assert_eq!(story.stack.adapter_status(ADAPTER).unwrap().health, Health::OkSriovActive);
}

#[test]
fn what_a_nic_refuses_is_undone_and_tried_again_later() {
    let mut story = Story::new(StackConfig::default());
    story.refuses = Some(("OID_NIC_SWITCH_CREATE_VPORT", CallError::Ndis(NdisStatus::RESOURCES)));
    story.tell(Input::NicConnected(NIC));
    assert_eq!(story.said.last().unwrap(), "OID_NIC_SWITCH_FREE_VF");
    assert_eq!(story.codes(), ["OutOfQueuePairs"]);
    story.refuses = None;
    story.pass(5);
    assert_eq!(story.state(), "Offered: exposing");
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let mut story = Story::active();
    let mut refused = |config: AdapterConfig| {
        story.stack.step(Input::AdapterSet(ADAPTER, config), story.now).unwrap_err()
    };
    let property = |error| matches!(error, StackError::Property { .. });
    assert!(property(refused(AdapterConfig { iov_weight: 101, ..adapter() })));
    assert!(property(refused(AdapterConfig { iov_queue_pairs_requested: 0, ..adapter() })));
    assert!(property(refused(AdapterConfig { mac: MacAddress::BROADCAST, ..adapter() })));
    assert_eq!(story.state(), "Active: resting");
    for number in 2..=8 {
        let mac = MacAddress::new([2, 0, 0, 0, 0, number]);
        let config = AdapterConfig { mac, iov_weight: 0, ..adapter() };
        story.tell(Input::AdapterSet(AdapterId(number.into()), config));
    }
    let config = AdapterConfig { mac: MacAddress::new([2, 0, 0, 0, 0, 9]), ..adapter() };
    let ninth = story.stack.step(Input::AdapterSet(AdapterId(9), config), story.now);
    assert_eq!(ninth, Err(StackError::TooManyAdapters { vm: VM, most: 8 }));
}

#[test]
fn no_vf_is_given_on_a_nic_whose_switch_has_not_got_its_uplink_back() {
    let mut story = Story::active();
    let down = || Uplink::Down { error: "nobody answers".into() };
    // The NIC dies, and another takes its place before the switch has noticed, or has connected anew.
    story.tell(Input::SwitchUplink(SWITCH, down()));
    assert_eq!(story.state(), "Active: resting", "a VF that is there stays");
    story.tell(Input::NicDisconnected(NIC));
    story.vpci(VpciReport::Removed);
    assert_eq!(story.codes(), ["PfRemoved"], "what follows from it is no cause of its own");
    story.said.clear();
    story.tell(Input::NicConnected(NIC));
    assert!(!story.said.iter().any(|said| said.contains("ALLOCATE_VF")), "{:?}", story.said);
    assert_eq!(story.codes(), ["SwitchUplinkDown"]);
    let reason = story.stack.reasons(ADAPTER).remove(0);
    assert_eq!(reason.to_string(), "the uplink of switch 1 on NIC 1 is down: nobody answers");
    assert_eq!((reason.standing(), reason.cure()), (Standing::Blocks, Cure::ConnectUplink));
    assert!(reason.is_degradation());
    // Of the uplink of a switch that has ended nothing is known.
    story.tell(Input::SwitchStopped(SWITCH));
    assert_eq!(story.codes(), ["SwitchNotRunning", "GuestNotReady"]);
    story.tell(Input::SwitchUplink(SWITCH, down()));
    story.tell(Input::SwitchStarted(SWITCH));
    story.tell(Input::NetVsp(ADAPTER, NetVspReport::Ready { sriov: true }));
    assert_eq!(story.codes(), ["SwitchUplinkDown"]);
    story.tell(Input::SwitchUplink(SWITCH, Uplink::Up));
    assert!(story.said.iter().any(|said| said.contains("ALLOCATE_VF")), "{:?}", story.said);
}

#[test]
fn events_and_reasons_have_one_json_and_one_line() {
    let reason = Reason::QueuePairsReduced { requested: 4, assigned: 2 };
    let event = Event::ReasonsChanged { adapter: ADAPTER, reasons: vec![reason] };
    let json = serde_json::to_string(&event).unwrap();
    assert_eq!(
        json,
        r#"{"event":"reasons_changed","adapter":1,"reasons":[{"code":"QueuePairsReduced","requested":4,"assigned":2}]}"#
    );
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    assert_eq!(event.to_string(), "adapter 1: the VF has 2 of the 4 queue pairs asked for");
}
