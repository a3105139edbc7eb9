//! Enumeration of VPorts (SPEC-NDIS-SRIOV §5.9, §15).

use zerocopy::little_endian::{U16, U32};

use crate::nic_switch::switch_id;
use crate::object::{
    ArrayLocation, FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::vport::{interrupt_moderation, vport_id, vport_state};
use crate::{
    FunctionId, GroupAffinity, InterruptModeration, Name, NdisCountedString, NdisGroupAffinity,
    SwitchId, VPortId, VPortState,
};

wire_structure! {
    /// NDIS_NIC_SWITCH_VPORT_INFO.
    NdisNicSwitchVPortInfo = "NDIS_NIC_SWITCH_VPORT_INFO", revisions [576], sizeof 576 {
        /// [`VPortId`].
        4 vport_id: U32,
        /// [`VPortInfoFlags`].
        8 flags: U32,
        /// [`SwitchId`].
        12 switch_id: U32,
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
        /// 0.
        568 lookahead_size: U32,
        /// Receive filters set on the VPort.
        572 num_filters: U32,
    }
}

bitflags::bitflags! {
    /// Properties of a VPort in an enumeration.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct VPortInfoFlags: u32 {
        /// Ignored since NDIS 6.30.
        const LOOKAHEAD_SPLIT_ENABLED = 0x1;
        /// Receives by PacketDirect only.
        const PACKET_DIRECT_RX_ONLY = 0x2;
        /// Generic flow tables are on.
        const GFT_ENABLED = 0x4;
    }
}

/// A VPort in an enumeration.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct VPortInfo {
    /// The VPort.
    pub vport_id: VPortId,
    /// Properties.
    pub flags: VPortInfoFlags,
    /// The switch it is on.
    pub switch_id: SwitchId,
    /// Name for people.
    pub name: Name,
    /// The function it belongs to.
    pub attached_function: FunctionId,
    /// Queue pairs.
    pub num_queue_pairs: u32,
    /// Interrupt moderation.
    pub interrupt_moderation: InterruptModeration,
    /// State.
    pub state: VPortState,
    /// Processors that serve it.
    pub processor_affinity: GroupAffinity,
    /// 0.
    pub lookahead_size: u32,
    /// Receive filters set on it.
    pub num_filters: u32,
}

impl FixedStructure for VPortInfo {
    type Wire = NdisNicSwitchVPortInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            vport_id: vport_id::<Self::Wire>(wire.vport_id)?,
            flags: VPortInfoFlags::from_bits(wire.flags.get())
                .ok_or_else(|| member::<Self::Wire>("Flags", wire.flags))?,
            switch_id: switch_id::<Self::Wire>(wire.switch_id)?,
            name: Name::from_member::<Self::Wire>("VPortName", &wire.vport_name)?,
            attached_function: FunctionId::from_wire(wire.attached_function_id.get()),
            num_queue_pairs: wire.num_queue_pairs.get(),
            interrupt_moderation: interrupt_moderation::<Self::Wire>(wire.interrupt_moderation)?,
            state: vport_state::<Self::Wire>(wire.vport_state)?,
            processor_affinity: GroupAffinity::from_wire(&wire.processor_affinity),
            lookahead_size: wire.lookahead_size.get(),
            num_filters: wire.num_filters.get(),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchVPortInfo {
            header: Default::default(),
            vport_id: U32::new(self.vport_id.get()),
            flags: U32::new(self.flags.bits()),
            switch_id: U32::new(self.switch_id.get()),
            vport_name: self.name.to_wire(),
            attached_function_id: U16::new(self.attached_function.to_wire()),
            padding1: [0; 2],
            num_queue_pairs: U32::new(self.num_queue_pairs),
            interrupt_moderation: U32::new(self.interrupt_moderation.to_wire()),
            vport_state: U32::new(self.state.to_wire()),
            padding2: [0; 4],
            processor_affinity: self.processor_affinity.to_wire(),
            lookahead_size: U32::new(self.lookahead_size),
            num_filters: U32::new(self.num_filters),
        }
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_VPORT_INFO_ARRAY.
    NdisNicSwitchVPortInfoArray = "NDIS_NIC_SWITCH_VPORT_INFO_ARRAY", revisions [28], sizeof 28 {
        /// [`VPortEnumFlags`].
        4 flags: U32,
        /// [`SwitchId`], if the flags say so.
        8 switch_id: U32,
        /// [`FunctionId`], if the flags say so.
        12 attached_function_id: U16,
        /// Padding.
        14 padding: [u8; 2],
        /// Where the first element starts, bytes from the array's header.
        16 first_element_offset: U32,
        /// How many there are.
        20 num_elements: U32,
        /// From one to the next, bytes.
        24 element_size: U32,
    }
}

bitflags::bitflags! {
    /// What an enumeration of VPorts is limited to.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct VPortEnumFlags: u32 {
        /// VPorts of one function only.
        const SPECIFIC_FUNCTION = 0x1;
        /// VPorts of one switch only.
        const SPECIFIC_SWITCH = 0x2;
    }
}

/// VPorts: with the limits in the request, with elements in the answer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct VPortInfoArray {
    /// Only those of this function.
    pub function: Option<FunctionId>,
    /// Only those of this switch.
    pub switch: Option<SwitchId>,
    /// The VPorts.
    pub elements: Vec<VPortInfo>,
}

impl NdisStructure for VPortInfoArray {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        type Wire = NdisNicSwitchVPortInfoArray;
        let (wire, revision) = Wire::read(bytes)?;
        let flags = VPortEnumFlags::from_bits(wire.flags.get())
            .ok_or_else(|| member::<Wire>("Flags", wire.flags))?;
        let function = flags
            .contains(VPortEnumFlags::SPECIFIC_FUNCTION)
            .then(|| FunctionId::from_wire(wire.attached_function_id.get()));
        let switch = if flags.contains(VPortEnumFlags::SPECIFIC_SWITCH) {
            Some(switch_id::<Wire>(wire.switch_id)?)
        } else {
            None
        };
        let location = ArrayLocation {
            first_element_offset: wire.first_element_offset.get(),
            num_elements: wire.num_elements.get(),
            element_size: wire.element_size.get(),
        };
        let elements = location
            .elements::<Wire>(
                bytes,
                Wire::size_of_revision(revision),
                NdisNicSwitchVPortInfo::size_of_revision(1),
            )?
            .into_iter()
            .map(VPortInfo::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { function, switch, elements })
    }

    fn emit(&self) -> Vec<u8> {
        let elements: Vec<_> = self.elements.iter().map(VPortInfo::emit).collect();
        let location = ArrayLocation::after_header(28, &elements, NdisNicSwitchVPortInfo::SIZEOF);
        let mut flags = VPortEnumFlags::empty();
        flags.set(VPortEnumFlags::SPECIFIC_FUNCTION, self.function.is_some());
        flags.set(VPortEnumFlags::SPECIFIC_SWITCH, self.switch.is_some());
        let mut bytes = NdisNicSwitchVPortInfoArray {
            header: Default::default(),
            flags: U32::new(flags.bits()),
            switch_id: U32::new(self.switch.unwrap_or_default().get()),
            attached_function_id: U16::new(self.function.map_or(0, FunctionId::to_wire)),
            padding: [0; 2],
            first_element_offset: U32::new(location.first_element_offset),
            num_elements: U32::new(location.num_elements),
            element_size: U32::new(location.element_size),
        }
        .write(1);
        location.append(&mut bytes, &elements);
        bytes
    }
}
