//! Every reason has its sentence, its standing and its cure.

use super::*;

#[test]
fn host_and_nic_reasons_are_the_published_lists() {
    let host: Vec<_> =
        HostReason::ALL.map(|reason| Reason::Host { reason }.code()).into_iter().collect();
    assert_eq!(host.len(), 9);
    assert_eq!(host[0], "Host:NoSlat");
    for (number, support) in (0u32..).zip(SriovSupport::ALL) {
        assert_eq!(support as u32, number);
    }
}

#[test]
fn sentences_are_one_sentence_without_its_full_stop() {
    let reasons = [
        Reason::WeightZero,
        Reason::PolicyForcesSoftware { policies: vec![Policy::PortAcl, Policy::DhcpGuard] },
        Reason::OverSubscribed { nic: NicId(1), total: 2, ahead: 3 },
        Reason::InProgress { state: State::START },
        Reason::VmNotRunning { vm: VmId(1), state: VmState::Off, kind: AdapterKind::VhostUser },
        Reason::GuestUnsupported { lacks: GuestGap::VirtioNetWithoutStandby },
        Reason::GuestNoVfDriver { waited_ms: 1 },
        Reason::OfferFailed { error: None },
        Reason::OfferFailed { error: Some("its bus has no PCIe: add a root port.".to_owned()) },
    ];
    for reason in reasons {
        let text = reason.to_string();
        assert!(!text.ends_with('.') && !text.is_empty(), "{text}");
        assert!(!reason.cure().to_string().is_empty());
        let json = serde_json::to_string(&reason).unwrap();
        assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason);
    }
    let policies =
        Reason::PolicyForcesSoftware { policies: vec![Policy::PortAcl, Policy::DhcpGuard] };
    assert_eq!(policies.to_string(), "policies need the software switch: port ACLs, DHCP guard");
}
