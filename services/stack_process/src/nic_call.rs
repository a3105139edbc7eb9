//! Requests of the stack to a NIC, as device control carries them.

use std::path::{Path, PathBuf};

use adapter::control::{PrivateControl, SetVPortPolicy, VlanMode};
use device_control::{Completion, OidRequestKind, Target};
use ndis_protocol::{NdisStatus, RequestKind, VlanId};
use pcivirt_protocol::NtStatus;
use virtualization_stack::{CallError, CallTarget, NicCall, NicReply, VlanSetting};

/// What is asked for, and its input.
pub fn request(call: &NicCall) -> (Target, Vec<u8>) {
    match call.target() {
        CallTarget::Oid(oid, kind) => {
            let kind = match kind {
                RequestKind::Query => OidRequestKind::Query,
                RequestKind::Set => OidRequestKind::Set,
                RequestKind::QueryStatistics => OidRequestKind::QueryStatistics,
                RequestKind::Method => OidRequestKind::Method,
            };
            (Target::Oid { oid: oid.code(), kind }, call.input())
        }
        CallTarget::Ioctl(ioctl) => (Target::Ioctl(ioctl.code()), call.input()),
        CallTarget::VPortPolicy => {
            (Target::Private(PrivateControl::SetVPortPolicy.code()), policy(call))
        }
    }
}

/// How it ended. OIDs end with an NDIS_STATUS, everything else with an NTSTATUS.
///
/// # Errors
/// The NIC refused it, or its answer makes no sense.
pub fn result(call: &NicCall, completion: &Completion) -> Result<NicReply, CallError> {
    match call.target() {
        CallTarget::Oid(..) => {
            let status = NdisStatus(completion.status.0);
            if status != NdisStatus::SUCCESS {
                return Err(CallError::Ndis(status));
            }
        }
        CallTarget::Ioctl(_) | CallTarget::VPortPolicy => {
            if !completion.status.is_success() {
                return Err(CallError::Nt(completion.status));
            }
        }
    }
    call.reply(&completion.output)
}

/// How a request ended that could not be sent although the connection is there: it was too large, or one too many.
pub(crate) fn not_sent(call: &NicCall) -> CallError {
    match call.target() {
        CallTarget::Oid(..) => CallError::Ndis(NdisStatus::RESOURCES),
        CallTarget::Ioctl(_) | CallTarget::VPortPolicy => {
            CallError::Nt(NtStatus::INSUFFICIENT_RESOURCES)
        }
    }
}

fn policy(call: &NicCall) -> Vec<u8> {
    let NicCall::SetVPortPolicy { vport, policy } = call else { return Vec::new() };
    let input = SetVPortPolicy {
        vport: vport.get(),
        allow_spoofing: policy.allow_spoofing,
        allow_promiscuous: false,
        vlan: vlan_mode(&policy.vlan),
    };
    // A structure of numbers has no way to fail.
    serde_json::to_vec(&input).unwrap_or_default()
}

/// VLANs as the data paths take them. Untagged frames need no policy: receive filters let no tagged one in.
pub(crate) fn vlan_mode(vlan: &VlanSetting) -> VlanMode {
    match vlan {
        VlanSetting::Untagged => VlanMode::Transparent,
        VlanSetting::Access(vlan) => VlanMode::Access { vlan: vlan.get() },
        VlanSetting::Trunk { native, allowed } => VlanMode::Trunk {
            native: native.map_or(0, VlanId::get),
            allowed: allowed.iter().map(|vlan| vlan.get()).collect(),
        },
    }
}

/// The other way round; `None` if a number is no VLAN.
pub(crate) fn vlan_setting(vlan: &VlanMode) -> Option<VlanSetting> {
    Some(match vlan {
        VlanMode::Transparent => VlanSetting::Untagged,
        VlanMode::Access { vlan } => VlanSetting::Access(VlanId::new(*vlan)?),
        VlanMode::Trunk { native, allowed } => VlanSetting::Trunk {
            native: match native {
                0 => None,
                native => Some(VlanId::new(*native)?),
            },
            allowed: allowed.iter().map(|vlan| VlanId::new(*vlan)).collect::<Option<_>>()?,
        },
    })
}

/// Where a NIC serves a VF by vfio-user.
pub(crate) fn vf_socket(directory: &Path, vf: u16) -> PathBuf {
    directory.join(format!("vf{vf}.sock"))
}

/// Where a NIC serves its default VPort by vfio-user.
pub(crate) fn pf_socket(directory: &Path) -> PathBuf {
    directory.join("pf.sock")
}

#[cfg(test)]
mod tests {
    use virtualization_stack::VPortPolicy;

    use super::*;

    #[test]
    fn vlans_are_the_same_there_and_back() {
        let vlan = |id| VlanId::new(id).unwrap();
        for setting in [
            VlanSetting::Untagged,
            VlanSetting::Access(vlan(7)),
            VlanSetting::Trunk { native: None, allowed: [vlan(1), vlan(4094)].into() },
            VlanSetting::Trunk { native: Some(vlan(2)), allowed: [vlan(3)].into() },
        ] {
            assert_eq!(vlan_setting(&vlan_mode(&setting)), Some(setting));
        }
        assert_eq!(vlan_setting(&VlanMode::Access { vlan: 4095 }), None);
        let allowed = vec![0];
        assert_eq!(vlan_setting(&VlanMode::Trunk { native: 0, allowed }), None);
    }

    #[test]
    fn a_vport_policy_is_what_the_adapter_takes() {
        let vport = ndis_protocol::VPortId::new(3).unwrap();
        let vlan = VlanSetting::Access(VlanId::new(9).unwrap());
        let policy = VPortPolicy { allow_spoofing: true, vlan };
        let (target, input) = request(&NicCall::SetVPortPolicy { vport, policy });
        assert_eq!(target, Target::Private(3));
        let policy: SetVPortPolicy = serde_json::from_slice(&input).unwrap();
        let vlan = VlanMode::Access { vlan: 9 };
        let expected =
            SetVPortPolicy { vport: 3, allow_spoofing: true, allow_promiscuous: false, vlan };
        assert_eq!(policy, expected);
    }

    #[test]
    fn statuses_are_told_apart_by_what_was_asked() {
        let failed = Completion::status(NtStatus::NOT_SUPPORTED);
        let oid = result(&NicCall::EnumVfs, &failed);
        assert_eq!(oid, Err(CallError::Ndis(NdisStatus(NtStatus::NOT_SUPPORTED.0))));
        let ioctl = result(&NicCall::Attach, &failed);
        assert_eq!(ioctl, Err(CallError::Nt(NtStatus::NOT_SUPPORTED)));
        let done = result(&NicCall::Attach, &Completion::status(NtStatus::SUCCESS));
        assert_eq!(done, Ok(NicReply::Done));
    }
}
