//! VPorts: creation, change and deletion (SPEC-NDIS-SRIOV §4, §5.7, §5.8, §15).

use core::fmt;

use zerocopy::little_endian::{U16, U32};

use crate::nic_switch::switch_id;
use crate::object::{FixedStructure, ParseError, WireStructure, member, wire_structure};
use crate::{
    FunctionId, GroupAffinity, Name, NdisCountedString, NdisGroupAffinity, SwitchId, VPortId,
};

wire_structure! {
    /// NDIS_NIC_SWITCH_VPORT_PARAMETERS.
    NdisNicSwitchVPortParameters = "NDIS_NIC_SWITCH_VPORT_PARAMETERS", revisions [572, 748], sizeof 752 {
        /// [`VPortFlags`], and in a set request [`VPortChangeFlags`].
        4 flags: U32,
        /// [`SwitchId`].
        8 switch_id: U32,
        /// [`VPortId`].
        12 vport_id: U32,
        /// Name for people.
        16 vport_name: NdisCountedString,
        /// [`FunctionId`].
        532 attached_function_id: U16,
        /// Padding.
        534 padding1: [u8; 2],
        /// Queue pairs.
        536 num_queue_pairs: U32,
        /// [`InterruptModeration`].
        540 interrupt_moderation: U32,
        /// [`VPortState`].
        544 vport_state: U32,
        /// Padding.
        548 padding2: [u8; 4],
        /// Processors.
        552 processor_affinity: NdisGroupAffinity,
        /// Must be 0.
        568 lookahead_size: U32,
        /// Padding, revision 2.
        572 padding3: [u8; 4],
        /// Revision 2.
        576 ndk_params: [u8; 168],
        /// Revision 2.
        744 qos_sq_id: U32,
    }
}

bitflags::bitflags! {
    /// Properties of a VPort, the low half of the Flags member.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct VPortFlags: u32 {
        /// Ignored since NDIS 6.30.
        const LOOKAHEAD_SPLIT_ENABLED = 0x0001;
        /// Receives by PacketDirect only.
        const PACKET_DIRECT_RX_ONLY = 0x0002;
        /// Frames with more fragments than the limit are refused.
        const ENFORCE_MAX_SG_LIST = 0x8000;
    }
}

bitflags::bitflags! {
    /// What a set request changes, the high half of the Flags member (SPEC-NDIS-SRIOV §5.8).
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct VPortChangeFlags: u32 {
        /// The low half of Flags.
        const FLAGS = 0x0001_0000;
        /// VPortName.
        const NAME = 0x0002_0000;
        /// InterruptModeration.
        const INT_MOD = 0x0004_0000;
        /// VPortState.
        const STATE = 0x0008_0000;
        /// ProcessorAffinity.
        const PROCESSOR_AFFINITY = 0x0010_0000;
        /// NdkParams.
        const NDK_PARAMS = 0x0020_0000;
        /// QosSqId.
        const QOS_SQ_ID = 0x0040_0000;
        /// NumQueuePairs.
        const NUM_QUEUE_PAIRS = 0x0080_0000;
    }
}

/// State of a VPort (NDIS_NIC_SWITCH_VPORT_STATE).
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum VPortState {
    /// Not said.
    #[default]
    Undefined,
    /// Carries traffic.
    Activated,
    /// Exists, but carries nothing yet.
    Deactivated,
}

impl VPortState {
    /// Reads the wire value.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Undefined),
            1 => Some(Self::Activated),
            2 => Some(Self::Deactivated),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Undefined => 0,
            Self::Activated => 1,
            Self::Deactivated => 2,
        }
    }
}

/// How eagerly a VPort interrupts; what low, medium and high mean is the PF miniport driver's business
/// (SPEC-NDIS-SRIOV §4.10).
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum InterruptModeration {
    /// Not said: the driver's default.
    #[default]
    Undefined,
    /// Follows the traffic.
    Adaptive,
    /// An interrupt for each event.
    Disabled,
    /// Little moderation.
    Low,
    /// Some moderation.
    Medium,
    /// Much moderation.
    High,
}

impl InterruptModeration {
    /// Reads the wire value.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Undefined),
            1 => Some(Self::Adaptive),
            2 => Some(Self::Disabled),
            100 => Some(Self::Low),
            200 => Some(Self::Medium),
            300 => Some(Self::High),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Undefined => 0,
            Self::Adaptive => 1,
            Self::Disabled => 2,
            Self::Low => 100,
            Self::Medium => 200,
            Self::High => 300,
        }
    }
}

impl fmt::Display for InterruptModeration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Undefined => "undefined",
            Self::Adaptive => "adaptive",
            Self::Disabled => "off",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

/// NDK parameters of a VPort (RDMA); their inside is not part of the SR-IOV interface.
#[derive(Copy, Clone, Eq, PartialEq, Hash)]
pub struct NdkParameters(pub [u8; 168]);

impl NdkParameters {
    /// No RDMA.
    pub const NONE: Self = Self([0; 168]);

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Debug for NdkParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "NdkParameters(none)" } else { "NdkParameters(…)" })
    }
}

/// Members of revision 2 of a VPort's parameters.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct VPortExtension {
    /// RDMA.
    pub ndk_parameters: NdkParameters,
    /// QoS scheduler queue; 0 is none.
    pub qos_sq_id: u32,
}

/// A VPort as it is created and queried. A structure with change flags is a [`VPortChange`] instead and
/// is refused here.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct VPortParameters {
    /// Properties.
    pub flags: VPortFlags,
    /// The switch it is on.
    pub switch_id: SwitchId,
    /// The VPort; 0 in a request to create one, which NDIS numbers.
    pub vport_id: VPortId,
    /// Name for people.
    pub name: Name,
    /// The function it belongs to, for life.
    pub attached_function: FunctionId,
    /// Queue pairs.
    pub num_queue_pairs: u32,
    /// Interrupt moderation.
    pub interrupt_moderation: InterruptModeration,
    /// State.
    pub state: VPortState,
    /// Processors that serve it; PF VPorts only.
    pub processor_affinity: GroupAffinity,
    /// Must be 0.
    pub lookahead_size: u32,
    /// Members of revision 2.
    pub extension: Option<VPortExtension>,
}

impl VPortParameters {
    /// A VPort of a function with this many queue pairs and nothing else said: what a stack fills in
    /// to create one.
    #[must_use]
    pub fn new(attached_function: FunctionId, num_queue_pairs: u32) -> Self {
        Self {
            flags: VPortFlags::empty(),
            switch_id: SwitchId::DEFAULT,
            vport_id: VPortId::DEFAULT,
            name: Name::default(),
            attached_function,
            num_queue_pairs,
            interrupt_moderation: InterruptModeration::Undefined,
            state: VPortState::Undefined,
            processor_affinity: GroupAffinity::NONE,
            lookahead_size: 0,
            extension: None,
        }
    }
}

impl FixedStructure for VPortParameters {
    type Wire = NdisNicSwitchVPortParameters;

    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            flags: VPortFlags::from_bits(wire.flags.get())
                .ok_or_else(|| member::<Self::Wire>("Flags", wire.flags))?,
            switch_id: switch_id::<Self::Wire>(wire.switch_id)?,
            vport_id: vport_id::<Self::Wire>(wire.vport_id)?,
            name: Name::from_member::<Self::Wire>("VPortName", &wire.vport_name)?,
            attached_function: FunctionId::from_wire(wire.attached_function_id.get()),
            num_queue_pairs: wire.num_queue_pairs.get(),
            interrupt_moderation: interrupt_moderation::<Self::Wire>(wire.interrupt_moderation)?,
            state: vport_state::<Self::Wire>(wire.vport_state)?,
            processor_affinity: GroupAffinity::from_wire(&wire.processor_affinity),
            lookahead_size: wire.lookahead_size.get(),
            extension: (revision >= 2).then(|| VPortExtension {
                ndk_parameters: NdkParameters(wire.ndk_params),
                qos_sq_id: wire.qos_sq_id.get(),
            }),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let extension = self
            .extension
            .unwrap_or(VPortExtension { ndk_parameters: NdkParameters::NONE, qos_sq_id: 0 });
        NdisNicSwitchVPortParameters {
            header: Default::default(),
            flags: U32::new(self.flags.bits()),
            switch_id: U32::new(self.switch_id.get()),
            vport_id: U32::new(self.vport_id.get()),
            vport_name: self.name.to_wire(),
            attached_function_id: U16::new(self.attached_function.to_wire()),
            padding1: [0; 2],
            num_queue_pairs: U32::new(self.num_queue_pairs),
            interrupt_moderation: U32::new(self.interrupt_moderation.to_wire()),
            vport_state: U32::new(self.state.to_wire()),
            padding2: [0; 4],
            processor_affinity: self.processor_affinity.to_wire(),
            lookahead_size: U32::new(self.lookahead_size),
            padding3: [0; 4],
            ndk_params: extension.ndk_parameters.0,
            qos_sq_id: U32::new(extension.qos_sq_id),
        }
    }

    fn revision(&self) -> u8 {
        if self.extension.is_some() { 2 } else { 1 }
    }
}

/// Reads a VPortId member.
pub(crate) fn vport_id<W: WireStructure>(raw: U32) -> Result<VPortId, ParseError> {
    VPortId::new(raw.get()).ok_or_else(|| member::<W>("VPortId", raw))
}

/// Reads an InterruptModeration member.
pub(crate) fn interrupt_moderation<W: WireStructure>(
    raw: U32,
) -> Result<InterruptModeration, ParseError> {
    InterruptModeration::from_wire(raw.get()).ok_or_else(|| member::<W>("InterruptModeration", raw))
}

/// Reads a VPortState member.
pub(crate) fn vport_state<W: WireStructure>(raw: U32) -> Result<VPortState, ParseError> {
    VPortState::from_wire(raw.get()).ok_or_else(|| member::<W>("VPortState", raw))
}

/// A change of a VPort's parameters: the same bytes as [`VPortParameters`], of which only the members that
/// the change flags name are read.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct VPortChange {
    /// The VPort.
    pub vport_id: VPortId,
    /// New properties.
    pub flags: Option<VPortFlags>,
    /// New name.
    pub name: Option<Name>,
    /// New interrupt moderation.
    pub interrupt_moderation: Option<InterruptModeration>,
    /// New state.
    pub state: Option<VPortState>,
    /// New processors.
    pub processor_affinity: Option<GroupAffinity>,
    /// New RDMA parameters (revision 2).
    pub ndk_parameters: Option<NdkParameters>,
    /// New QoS scheduler queue (revision 2).
    pub qos_sq_id: Option<u32>,
    /// New number of queue pairs.
    pub num_queue_pairs: Option<u32>,
}

impl VPortChange {
    /// A change of nothing yet.
    #[must_use]
    pub fn new(vport_id: VPortId) -> Self {
        Self { vport_id, ..Self::default() }
    }
}

impl FixedStructure for VPortChange {
    type Wire = NdisNicSwitchVPortParameters;

    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError> {
        type Changed = VPortChangeFlags;
        let bad_flags = || member::<NdisNicSwitchVPortParameters>("Flags", wire.flags);
        let raw = wire.flags.get();
        let changed = Changed::from_bits(raw & 0xFFFF_0000).ok_or_else(bad_flags)?;
        if revision < 2 && changed.intersects(Changed::NDK_PARAMS | Changed::QOS_SQ_ID) {
            return Err(bad_flags());
        }
        let flags = if changed.contains(Changed::FLAGS) {
            Some(VPortFlags::from_bits(raw & 0xFFFF).ok_or_else(bad_flags)?)
        } else {
            None
        };
        let name = if changed.contains(Changed::NAME) {
            Some(Name::from_member::<Self::Wire>("VPortName", &wire.vport_name)?)
        } else {
            None
        };
        let interrupt_moderation = if changed.contains(Changed::INT_MOD) {
            Some(interrupt_moderation::<Self::Wire>(wire.interrupt_moderation)?)
        } else {
            None
        };
        let state = if changed.contains(Changed::STATE) {
            Some(vport_state::<Self::Wire>(wire.vport_state)?)
        } else {
            None
        };
        Ok(Self {
            vport_id: vport_id::<Self::Wire>(wire.vport_id)?,
            flags,
            name,
            interrupt_moderation,
            state,
            processor_affinity: changed
                .contains(Changed::PROCESSOR_AFFINITY)
                .then(|| GroupAffinity::from_wire(&wire.processor_affinity)),
            ndk_parameters: changed
                .contains(Changed::NDK_PARAMS)
                .then_some(NdkParameters(wire.ndk_params)),
            qos_sq_id: changed.contains(Changed::QOS_SQ_ID).then(|| wire.qos_sq_id.get()),
            num_queue_pairs: changed
                .contains(Changed::NUM_QUEUE_PAIRS)
                .then(|| wire.num_queue_pairs.get()),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        type Changed = VPortChangeFlags;
        let mut changed = Changed::empty();
        changed.set(Changed::FLAGS, self.flags.is_some());
        changed.set(Changed::NAME, self.name.is_some());
        changed.set(Changed::INT_MOD, self.interrupt_moderation.is_some());
        changed.set(Changed::STATE, self.state.is_some());
        changed.set(Changed::PROCESSOR_AFFINITY, self.processor_affinity.is_some());
        changed.set(Changed::NDK_PARAMS, self.ndk_parameters.is_some());
        changed.set(Changed::QOS_SQ_ID, self.qos_sq_id.is_some());
        changed.set(Changed::NUM_QUEUE_PAIRS, self.num_queue_pairs.is_some());
        let mut wire = VPortParameters {
            vport_id: self.vport_id,
            name: self.name.clone().unwrap_or_default(),
            interrupt_moderation: self.interrupt_moderation.unwrap_or_default(),
            state: self.state.unwrap_or_default(),
            processor_affinity: self.processor_affinity.unwrap_or_default(),
            extension: Some(VPortExtension {
                ndk_parameters: self.ndk_parameters.unwrap_or(NdkParameters::NONE),
                qos_sq_id: self.qos_sq_id.unwrap_or(0),
            }),
            ..VPortParameters::new(FunctionId::Pf, self.num_queue_pairs.unwrap_or(0))
        }
        .to_wire();
        wire.flags = U32::new(changed.bits() | self.flags.unwrap_or_default().bits());
        wire
    }

    fn revision(&self) -> u8 {
        if self.ndk_parameters.is_some() || self.qos_sq_id.is_some() { 2 } else { 1 }
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_DELETE_VPORT_PARAMETERS.
    NdisNicSwitchDeleteVPortParameters = "NDIS_NIC_SWITCH_DELETE_VPORT_PARAMETERS", revisions [12], sizeof 12 {
        /// Reserved.
        4 flags: U32,
        /// [`VPortId`].
        8 vport_id: U32,
    }
}

/// Which VPort to delete.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct NicSwitchDeleteVPortParameters {
    /// The VPort.
    pub vport_id: VPortId,
}

impl FixedStructure for NicSwitchDeleteVPortParameters {
    type Wire = NdisNicSwitchDeleteVPortParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { vport_id: vport_id::<Self::Wire>(wire.vport_id)? })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchDeleteVPortParameters {
            header: Default::default(),
            flags: U32::ZERO,
            vport_id: U32::new(self.vport_id.get()),
        }
    }
}

#[cfg(test)]
mod tests;
