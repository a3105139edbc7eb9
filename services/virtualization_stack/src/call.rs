//! Requests to a NIC as values: OIDs and I/O controls, with the published buffers on both ways
//! (SPEC-NDIS-SRIOV §5, §6; SPEC-PCIVIRT §3, §6).

use core::fmt;

use device_control_protocol::{ATTACH_REMOVAL_EVENTS, AttachOptions};
use ndis_protocol::{
    FilterId, NdisStatus, NdisStructure, NicSwitchCapabilities, NicSwitchDeleteVPortParameters,
    NicSwitchFreeVfParameters, NicSwitchInfo, NicSwitchInfoArray, Oid, ParseError,
    ReceiveFilterCapabilities, ReceiveFilterClearParameters, ReceiveFilterInfoArray,
    ReceiveFilterMoveFilterParameters, ReceiveFilterParameters, RequestKind, RequestorId,
    SriovCapabilities, SriovResetVf, VPortChange, VPortId, VPortInfo, VPortInfoArray,
    VPortParameters, VfId, VfInfo, VfInfoArray, VfParameters,
};
use pcivirt_protocol::{
    NtStatus, PCI_TYPE0_ADDRESSES, SriovIoctl, SriovMitigatedRangeCountInput,
    SriovMitigatedRangeCountOutput, SriovMitigatedRangeUpdateInput,
    SriovMitigatedRangeUpdateOutput, SriovMitigatedRangesInput, SriovMitigatedRangesOutput,
    SriovPfEvent, SriovPnpEventComplete, VfIndex,
};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::VPortPolicy;

/// Most mitigated ranges of one VF's BAR that the stack takes over.
pub const MAX_MITIGATED_RANGES: u32 = 256;

/// Room for the answer of an OID that answers one structure, bytes.
const ONE_STRUCTURE: usize = 2048;
/// Room for the answer of an enumeration, bytes: 256 VFs.
const ENUMERATION: usize = 512 << 10;

/// One request to a NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NicCall {
    /// IOCTL_SRIOV_ATTACH, asking for removal events. Pends while the PF is stopped.
    Attach,
    /// IOCTL_SRIOV_NOTIFICATION. Pends until there is an event.
    Notification,
    /// IOCTL_SRIOV_EVENT_COMPLETE: an error status is a veto.
    EventComplete(NtStatus),
    /// IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT.
    QueryMitigatedRangeCount(VfIndex),
    /// IOCTL_SRIOV_QUERY_MITIGATED_RANGES of one BAR.
    QueryMitigatedRanges {
        /// Whose.
        vf: VfIndex,
        /// Which BAR, 0 to 5.
        bar: u8,
        /// How many there are.
        count: u32,
    },
    /// IOCTL_SRIOV_MITIGATED_RANGE_UPDATE. Pends until the VF's ranges have changed.
    MitigatedRangeUpdate(VfIndex),
    /// OID_SRIOV_HARDWARE_CAPABILITIES.
    SriovHardwareCapabilities,
    /// OID_SRIOV_CURRENT_CAPABILITIES.
    SriovCurrentCapabilities,
    /// OID_NIC_SWITCH_CURRENT_CAPABILITIES.
    NicSwitchCurrentCapabilities,
    /// OID_RECEIVE_FILTER_CURRENT_CAPABILITIES.
    ReceiveFilterCurrentCapabilities,
    /// OID_NIC_SWITCH_ENUM_SWITCHES.
    EnumSwitches,
    /// OID_NIC_SWITCH_ENUM_VFS.
    EnumVfs,
    /// OID_NIC_SWITCH_ENUM_VPORTS.
    EnumVPorts,
    /// OID_RECEIVE_FILTER_ENUM_FILTERS of one VPort.
    EnumFilters(VPortId),
    /// OID_NIC_SWITCH_ALLOCATE_VF.
    AllocateVf(Box<VfParameters>),
    /// OID_NIC_SWITCH_CREATE_VPORT.
    CreateVPort(Box<VPortParameters>),
    /// What the NIC enforces on a VPort in place of the software switch. No OID does this; the adapter has a private
    /// control for it.
    SetVPortPolicy {
        /// The VPort.
        vport: VPortId,
        /// What.
        policy: VPortPolicy,
    },
    /// OID_RECEIVE_FILTER_SET_FILTER.
    SetFilter(ReceiveFilterParameters),
    /// OID_RECEIVE_FILTER_MOVE_FILTER.
    MoveFilter(ReceiveFilterMoveFilterParameters),
    /// OID_RECEIVE_FILTER_CLEAR_FILTER.
    ClearFilter(FilterId),
    /// OID_NIC_SWITCH_VPORT_PARAMETERS, set.
    ChangeVPort(Box<VPortChange>),
    /// OID_NIC_SWITCH_DELETE_VPORT.
    DeleteVPort(VPortId),
    /// OID_SRIOV_RESET_VF.
    ResetVf(VfId),
    /// OID_NIC_SWITCH_FREE_VF.
    FreeVf(VfId),
}

/// By which request a [`NicCall`] is made.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum CallTarget {
    /// An OID.
    Oid(Oid, RequestKind),
    /// An I/O control.
    Ioctl(SriovIoctl),
    /// The NIC's private control for VPort policies. Its buffer is the NIC's own business.
    VPortPolicy,
}

impl fmt::Display for CallTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oid(oid, _) => oid.fmt(f),
            Self::Ioctl(ioctl) => f.write_str(ioctl.name()),
            Self::VPortPolicy => f.write_str("the VPort policy control"),
        }
    }
}

/// What a successful request answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NicReply {
    /// Nothing but its success.
    Done,
    /// Output of NOTIFICATION.
    Event(SriovPfEvent),
    /// Output of QUERY_MITIGATED_RANGE_COUNT.
    RangeCounts([u32; PCI_TYPE0_ADDRESSES]),
    /// Output of QUERY_MITIGATED_RANGES.
    Ranges(Vec<SriovMitigatedRangesOutput>),
    /// Output of MITIGATED_RANGE_UPDATE.
    RangesChanged(VfIndex),
    /// SR-IOV capabilities.
    Sriov(SriovCapabilities),
    /// NIC switch capabilities.
    NicSwitch(NicSwitchCapabilities),
    /// Receive filter capabilities.
    ReceiveFilter(Box<ReceiveFilterCapabilities>),
    /// NIC switches.
    Switches(Vec<NicSwitchInfo>),
    /// Allocated VFs.
    Vfs(Vec<VfInfo>),
    /// VPorts.
    VPorts(Vec<VPortInfo>),
    /// Receive filters of a VPort.
    Filters(Vec<FilterId>),
    /// Output of ALLOCATE_VF.
    Vf(VfId, RequestorId),
    /// Output of CREATE_VPORT.
    VPort(VPortId),
    /// Output of SET_FILTER.
    Filter(FilterId),
}

/// Why a request did not succeed. It has changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CallError {
    /// NDIS or the PF miniport driver refused it.
    #[error("refused with {0}")]
    Ndis(NdisStatus),
    /// The PF driver refused it, or a private control did.
    #[error("refused with {0}")]
    Nt(NtStatus),
    /// It succeeded, and its answer makes no sense: the NIC is broken.
    #[error("answered with something that is no answer: {0}")]
    Malformed(String),
}

impl CallError {
    /// Whether something limited is used up.
    pub fn is_exhaustion(&self) -> bool {
        matches!(
            self,
            Self::Ndis(NdisStatus::RESOURCES) | Self::Nt(NtStatus::INSUFFICIENT_RESOURCES)
        )
    }

    /// Whether the object to be removed does not exist (any more).
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Ndis(NdisStatus::FILE_NOT_FOUND) | Self::Nt(NtStatus::NOT_FOUND))
    }

    /// Whether the device is gone.
    pub fn is_removal(&self) -> bool {
        matches!(self, Self::Ndis(NdisStatus::ADAPTER_REMOVED) | Self::Nt(NtStatus::DEVICE_REMOVED))
    }

    /// Published name of the status.
    pub(crate) fn status(&self) -> String {
        match self {
            Self::Ndis(status) => status.to_string(),
            Self::Nt(status) => status.to_string(),
            Self::Malformed(what) => what.clone(),
        }
    }
}

impl NicCall {
    /// By which request it is made.
    pub const fn target(&self) -> CallTarget {
        use RequestKind::{Method, Query, Set};
        match self {
            Self::Attach => CallTarget::Ioctl(SriovIoctl::Attach),
            Self::Notification => CallTarget::Ioctl(SriovIoctl::Notification),
            Self::EventComplete(_) => CallTarget::Ioctl(SriovIoctl::EventComplete),
            Self::QueryMitigatedRangeCount(_) => {
                CallTarget::Ioctl(SriovIoctl::QueryMitigatedRangeCount)
            }
            Self::QueryMitigatedRanges { .. } => {
                CallTarget::Ioctl(SriovIoctl::QueryMitigatedRanges)
            }
            Self::MitigatedRangeUpdate(_) => CallTarget::Ioctl(SriovIoctl::MitigatedRangeUpdate),
            Self::SriovHardwareCapabilities => {
                CallTarget::Oid(Oid::SriovHardwareCapabilities, Query)
            }
            Self::SriovCurrentCapabilities => CallTarget::Oid(Oid::SriovCurrentCapabilities, Query),
            Self::NicSwitchCurrentCapabilities => {
                CallTarget::Oid(Oid::NicSwitchCurrentCapabilities, Query)
            }
            Self::ReceiveFilterCurrentCapabilities => {
                CallTarget::Oid(Oid::ReceiveFilterCurrentCapabilities, Query)
            }
            Self::EnumSwitches => CallTarget::Oid(Oid::NicSwitchEnumSwitches, Query),
            Self::EnumVfs => CallTarget::Oid(Oid::NicSwitchEnumVfs, Method),
            Self::EnumVPorts => CallTarget::Oid(Oid::NicSwitchEnumVports, Method),
            Self::EnumFilters(_) => CallTarget::Oid(Oid::ReceiveFilterEnumFilters, Method),
            Self::AllocateVf(_) => CallTarget::Oid(Oid::NicSwitchAllocateVf, Method),
            Self::CreateVPort(_) => CallTarget::Oid(Oid::NicSwitchCreateVport, Method),
            Self::SetVPortPolicy { .. } => CallTarget::VPortPolicy,
            Self::SetFilter(_) => CallTarget::Oid(Oid::ReceiveFilterSetFilter, Method),
            Self::MoveFilter(_) => CallTarget::Oid(Oid::ReceiveFilterMoveFilter, Set),
            Self::ClearFilter(_) => CallTarget::Oid(Oid::ReceiveFilterClearFilter, Set),
            Self::ChangeVPort(_) => CallTarget::Oid(Oid::NicSwitchVportParameters, Set),
            Self::DeleteVPort(_) => CallTarget::Oid(Oid::NicSwitchDeleteVport, Set),
            Self::ResetVf(_) => CallTarget::Oid(Oid::SriovResetVf, Set),
            Self::FreeVf(_) => CallTarget::Oid(Oid::NicSwitchFreeVf, Set),
        }
    }

    /// Whether it may pend without limit, waiting for an event.
    pub const fn is_long_poll(&self) -> bool {
        matches!(self, Self::Attach | Self::Notification | Self::MitigatedRangeUpdate(_))
    }

    /// The input buffer. Empty for [`CallTarget::VPortPolicy`].
    pub fn input(&self) -> Vec<u8> {
        match self {
            Self::Attach => AttachOptions { flags: ATTACH_REMOVAL_EVENTS }.as_bytes().to_vec(),
            Self::EventComplete(query_status) => {
                SriovPnpEventComplete { query_status: *query_status }.as_bytes().to_vec()
            }
            Self::QueryMitigatedRangeCount(vf_index) => {
                SriovMitigatedRangeCountInput { vf_index: *vf_index }.as_bytes().to_vec()
            }
            Self::QueryMitigatedRanges { vf, bar, .. } => {
                SriovMitigatedRangesInput { vf_index: *vf, bar_number: *bar, padding: 0 }
                    .as_bytes()
                    .to_vec()
            }
            Self::MitigatedRangeUpdate(vf_index) => {
                SriovMitigatedRangeUpdateInput { vf_index: *vf_index }.as_bytes().to_vec()
            }
            Self::EnumVfs => VfInfoArray::default().emit(),
            Self::EnumVPorts => VPortInfoArray::default().emit(),
            Self::EnumFilters(vport) => {
                ReceiveFilterInfoArray { vport: Some(*vport), ..Default::default() }.emit()
            }
            Self::AllocateVf(parameters) => parameters.emit(),
            Self::CreateVPort(parameters) => parameters.emit(),
            Self::SetFilter(parameters) => parameters.emit(),
            Self::MoveFilter(parameters) => parameters.emit(),
            Self::ClearFilter(filter) => {
                ReceiveFilterClearParameters { queue_id: 0, filter_id: Some(*filter) }.emit()
            }
            Self::ChangeVPort(change) => change.emit(),
            Self::DeleteVPort(vport_id) => {
                NicSwitchDeleteVPortParameters { vport_id: *vport_id }.emit()
            }
            Self::ResetVf(vf_id) => SriovResetVf { vf_id: *vf_id }.emit(),
            Self::FreeVf(vf_id) => NicSwitchFreeVfParameters { vf_id: *vf_id }.emit(),
            _ => Vec::new(),
        }
    }

    /// Room for the output, bytes.
    pub fn output_capacity(&self) -> usize {
        match self {
            Self::EnumVfs | Self::EnumVPorts | Self::EnumFilters(_) => ENUMERATION,
            Self::Notification => size_of::<SriovPfEvent>(),
            Self::QueryMitigatedRangeCount(_) => size_of::<SriovMitigatedRangeCountOutput>(),
            Self::QueryMitigatedRanges { count, .. } => {
                let count = usize::try_from((*count).min(MAX_MITIGATED_RANGES)).unwrap_or(0);
                count * size_of::<SriovMitigatedRangesOutput>()
            }
            Self::MitigatedRangeUpdate(_) => size_of::<SriovMitigatedRangeUpdateOutput>(),
            _ => match self.target() {
                CallTarget::Oid(_, RequestKind::Query | RequestKind::Method) => ONE_STRUCTURE,
                _ => 0,
            },
        }
    }

    /// Reads the output of a successful request.
    ///
    /// # Errors
    /// [`CallError::Malformed`] if it is no answer to this request.
    pub fn reply(&self, output: &[u8]) -> Result<NicReply, CallError> {
        let broken = |error: ParseError| CallError::Malformed(error.to_string());
        Ok(match self {
            Self::Notification => NicReply::Event(exactly(output)?),
            Self::QueryMitigatedRangeCount(_) => {
                let SriovMitigatedRangeCountOutput { range_count } = exactly(output)?;
                NicReply::RangeCounts(range_count)
            }
            Self::QueryMitigatedRanges { count, .. } => {
                let ranges = <[SriovMitigatedRangesOutput]>::ref_from_bytes(output)
                    .map_err(|_| malformed("an array of mitigated ranges", output))?;
                if u32::try_from(ranges.len()) != Ok(*count) {
                    return Err(malformed("as many mitigated ranges as were counted", output));
                }
                NicReply::Ranges(ranges.to_vec())
            }
            Self::MitigatedRangeUpdate(_) => {
                let SriovMitigatedRangeUpdateOutput { vf_index } = exactly(output)?;
                NicReply::RangesChanged(vf_index)
            }
            Self::SriovHardwareCapabilities | Self::SriovCurrentCapabilities => {
                NicReply::Sriov(SriovCapabilities::parse(output).map_err(broken)?)
            }
            Self::NicSwitchCurrentCapabilities => {
                NicReply::NicSwitch(NicSwitchCapabilities::parse(output).map_err(broken)?)
            }
            Self::ReceiveFilterCurrentCapabilities => NicReply::ReceiveFilter(Box::new(
                ReceiveFilterCapabilities::parse(output).map_err(broken)?,
            )),
            Self::EnumSwitches => {
                NicReply::Switches(NicSwitchInfoArray::parse(output).map_err(broken)?.elements)
            }
            Self::EnumVfs => NicReply::Vfs(VfInfoArray::parse(output).map_err(broken)?.elements),
            Self::EnumVPorts => {
                NicReply::VPorts(VPortInfoArray::parse(output).map_err(broken)?.elements)
            }
            Self::EnumFilters(_) => {
                let elements = ReceiveFilterInfoArray::parse(output).map_err(broken)?.elements;
                NicReply::Filters(elements.into_iter().map(|info| info.filter_id).collect())
            }
            Self::AllocateVf(_) => {
                let answer = VfParameters::parse(output).map_err(broken)?;
                match (answer.vf_id, answer.requestor_id) {
                    (Some(vf), Some(requestor)) => NicReply::Vf(vf, requestor),
                    _ => return Err(malformed("a VF", output)),
                }
            }
            Self::CreateVPort(_) => {
                let vport = VPortParameters::parse(output).map_err(broken)?.vport_id;
                if vport.is_default() {
                    return Err(malformed("a nondefault VPort", output));
                }
                NicReply::VPort(vport)
            }
            Self::SetFilter(_) => {
                let answer = ReceiveFilterParameters::parse(output).map_err(broken)?;
                NicReply::Filter(answer.filter_id.ok_or_else(|| malformed("a filter", output))?)
            }
            _ => NicReply::Done,
        })
    }
}

fn malformed(expected: &str, output: &[u8]) -> CallError {
    CallError::Malformed(format!("{} bytes that are not {expected}", output.len()))
}

fn exactly<T: FromBytes + KnownLayout + Immutable>(output: &[u8]) -> Result<T, CallError> {
    T::read_from_bytes(output).map_err(|_| malformed("the published structure", output))
}
