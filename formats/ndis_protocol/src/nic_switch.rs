//! NIC switch: parameters, deletion and enumeration (SPEC-NDIS-SRIOV §5.3–§5.6, §15).

use zerocopy::little_endian::U32;

use crate::object::{
    ArrayLocation, FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::{Name, NdisCountedString, SwitchId};

/// Bits of the Flags member that say what a set request changes (NDIS_NIC_SWITCH_PARAMETERS_CHANGE_MASK).
pub const NDIS_NIC_SWITCH_PARAMETERS_CHANGE_MASK: u32 = 0xFFFF_0000;
/// The set request changes the switch's name.
pub const NDIS_NIC_SWITCH_PARAMETERS_SWITCH_NAME_CHANGED: u32 = 0x0001_0000;

wire_structure! {
    /// NDIS_NIC_SWITCH_PARAMETERS.
    NdisNicSwitchParameters = "NDIS_NIC_SWITCH_PARAMETERS", revisions [548, 552], sizeof 552 {
        /// What a set request changes.
        4 flags: U32,
        /// [`SwitchType`].
        8 switch_type: U32,
        /// [`SwitchId`].
        12 switch_id: U32,
        /// Name for people.
        16 switch_friendly_name: NdisCountedString,
        /// VFs to enable.
        532 num_vfs: U32,
        /// Reserved.
        536 ndis_reserved1: [U32; 3],
        /// Revision 2.
        548 num_queue_pairs_for_default_vport: U32,
    }
}

/// The kind of a NIC switch. NDIS knows one that is used.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum SwitchType {
    /// The switch of an adapter, with the physical port as its uplink.
    #[default]
    External,
}

impl SwitchType {
    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::External => 1,
        }
    }

    /// Reads the wire value.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        if raw == 1 { Some(Self::External) } else { None }
    }
}

/// A NIC switch as it is created and queried. A structure with change flags is a [`NicSwitchChange`]
/// instead and is refused here.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchParameters {
    /// Kind of the switch.
    pub switch_type: SwitchType,
    /// The switch.
    pub switch_id: SwitchId,
    /// Name for people.
    pub name: Name,
    /// VFs to enable.
    pub num_vfs: u32,
    /// Queue pairs of the default VPort; `None` is revision 1, which has one.
    pub num_queue_pairs_for_default_vport: Option<u32>,
}

impl FixedStructure for NicSwitchParameters {
    type Wire = NdisNicSwitchParameters;

    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError> {
        if wire.flags.get() != 0 {
            return Err(member::<Self::Wire>("Flags", wire.flags));
        }
        Ok(Self {
            switch_type: SwitchType::from_wire(wire.switch_type.get())
                .ok_or_else(|| member::<Self::Wire>("SwitchType", wire.switch_type))?,
            switch_id: switch_id::<Self::Wire>(wire.switch_id)?,
            name: Name::from_member::<Self::Wire>(
                "SwitchFriendlyName",
                &wire.switch_friendly_name,
            )?,
            num_vfs: wire.num_vfs.get(),
            num_queue_pairs_for_default_vport: (revision >= 2)
                .then(|| wire.num_queue_pairs_for_default_vport.get()),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchParameters {
            header: Default::default(),
            flags: U32::ZERO,
            switch_type: U32::new(self.switch_type.to_wire()),
            switch_id: U32::new(self.switch_id.get()),
            switch_friendly_name: self.name.to_wire(),
            num_vfs: U32::new(self.num_vfs),
            ndis_reserved1: [U32::ZERO; 3],
            num_queue_pairs_for_default_vport: U32::new(
                self.num_queue_pairs_for_default_vport.unwrap_or(0),
            ),
        }
    }

    fn revision(&self) -> u8 {
        if self.num_queue_pairs_for_default_vport.is_some() { 2 } else { 1 }
    }
}

/// Reads a SwitchId member.
pub(crate) fn switch_id<W: WireStructure>(raw: U32) -> Result<SwitchId, ParseError> {
    SwitchId::new(raw.get()).ok_or_else(|| member::<W>("SwitchId", raw))
}

/// A change of a NIC switch's parameters: the same bytes as [`NicSwitchParameters`], of which only the members
/// that the change flags name are read.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchChange {
    /// The switch.
    pub switch_id: SwitchId,
    /// Its new name.
    pub name: Option<Name>,
}

impl FixedStructure for NicSwitchChange {
    type Wire = NdisNicSwitchParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        let flags = wire.flags.get();
        if flags & !NDIS_NIC_SWITCH_PARAMETERS_SWITCH_NAME_CHANGED != 0 {
            return Err(member::<Self::Wire>("Flags", wire.flags));
        }
        let name = if flags & NDIS_NIC_SWITCH_PARAMETERS_SWITCH_NAME_CHANGED == 0 {
            None
        } else {
            let field = &wire.switch_friendly_name;
            Some(Name::from_member::<Self::Wire>("SwitchFriendlyName", field)?)
        };
        Ok(Self { switch_id: switch_id::<Self::Wire>(wire.switch_id)?, name })
    }

    fn to_wire(&self) -> Self::Wire {
        let mut wire =
            NicSwitchParameters { switch_id: self.switch_id, ..Default::default() }.to_wire();
        if let Some(name) = &self.name {
            wire.flags = U32::new(NDIS_NIC_SWITCH_PARAMETERS_SWITCH_NAME_CHANGED);
            wire.switch_friendly_name = name.to_wire();
        }
        wire
    }

    fn revision(&self) -> u8 {
        1
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_DELETE_SWITCH_PARAMETERS.
    NdisNicSwitchDeleteSwitchParameters = "NDIS_NIC_SWITCH_DELETE_SWITCH_PARAMETERS", revisions [12], sizeof 12 {
        /// Reserved.
        4 flags: U32,
        /// [`SwitchId`].
        8 switch_id: U32,
    }
}

/// Which NIC switch to delete.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchDeleteSwitchParameters {
    /// The switch.
    pub switch_id: SwitchId,
}

impl FixedStructure for NicSwitchDeleteSwitchParameters {
    type Wire = NdisNicSwitchDeleteSwitchParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { switch_id: switch_id::<Self::Wire>(wire.switch_id)? })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchDeleteSwitchParameters {
            header: Default::default(),
            flags: U32::ZERO,
            switch_id: U32::new(self.switch_id.get()),
        }
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_INFO.
    NdisNicSwitchInfo = "NDIS_NIC_SWITCH_INFO", revisions [572], sizeof 572 {
        /// Reserved.
        4 flags: U32,
        /// [`SwitchType`].
        8 switch_type: U32,
        /// [`SwitchId`].
        12 switch_id: U32,
        /// Name for people.
        16 switch_friendly_name: NdisCountedString,
        /// VFs enabled.
        532 num_vfs: U32,
        /// VFs allocated.
        536 num_allocated_vfs: U32,
        /// VPorts that can be, the default one included.
        540 num_vports: U32,
        /// VPorts that are, the default one included.
        544 num_active_vports: U32,
        /// Queue pairs of the default VPort.
        548 num_queue_pairs_for_default_vport: U32,
        /// Queue pairs of the nondefault VPorts.
        552 num_queue_pairs_for_non_default_vports: U32,
        /// MAC filters on the default VPort.
        556 num_active_default_vport_mac_addresses: U32,
        /// MAC filters on nondefault VPorts.
        560 num_active_non_default_vport_mac_addresses: U32,
        /// VLAN filters on the default VPort.
        564 num_active_default_vport_vlan_ids: U32,
        /// VLAN filters on nondefault VPorts.
        568 num_active_non_default_vport_vlan_ids: U32,
    }
}

/// A NIC switch and how much of it is in use.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchInfo {
    /// Kind of the switch.
    pub switch_type: SwitchType,
    /// The switch.
    pub switch_id: SwitchId,
    /// Name for people.
    pub name: Name,
    /// VFs enabled.
    pub num_vfs: u32,
    /// VFs allocated.
    pub num_allocated_vfs: u32,
    /// VPorts that can be, the default one included.
    pub num_vports: u32,
    /// VPorts that are, the default one included.
    pub num_active_vports: u32,
    /// Queue pairs of the default VPort.
    pub num_queue_pairs_for_default_vport: u32,
    /// Queue pairs of the nondefault VPorts, all together.
    pub num_queue_pairs_for_non_default_vports: u32,
    /// MAC filters on the default VPort.
    pub num_active_default_vport_mac_addresses: u32,
    /// MAC filters on nondefault VPorts.
    pub num_active_non_default_vport_mac_addresses: u32,
    /// VLAN filters on the default VPort.
    pub num_active_default_vport_vlan_ids: u32,
    /// VLAN filters on nondefault VPorts.
    pub num_active_non_default_vport_vlan_ids: u32,
}

impl FixedStructure for NicSwitchInfo {
    type Wire = NdisNicSwitchInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            switch_type: SwitchType::from_wire(wire.switch_type.get())
                .ok_or_else(|| member::<Self::Wire>("SwitchType", wire.switch_type))?,
            switch_id: switch_id::<Self::Wire>(wire.switch_id)?,
            name: Name::from_member::<Self::Wire>(
                "SwitchFriendlyName",
                &wire.switch_friendly_name,
            )?,
            num_vfs: wire.num_vfs.get(),
            num_allocated_vfs: wire.num_allocated_vfs.get(),
            num_vports: wire.num_vports.get(),
            num_active_vports: wire.num_active_vports.get(),
            num_queue_pairs_for_default_vport: wire.num_queue_pairs_for_default_vport.get(),
            num_queue_pairs_for_non_default_vports: wire
                .num_queue_pairs_for_non_default_vports
                .get(),
            num_active_default_vport_mac_addresses: wire
                .num_active_default_vport_mac_addresses
                .get(),
            num_active_non_default_vport_mac_addresses: wire
                .num_active_non_default_vport_mac_addresses
                .get(),
            num_active_default_vport_vlan_ids: wire.num_active_default_vport_vlan_ids.get(),
            num_active_non_default_vport_vlan_ids: wire.num_active_non_default_vport_vlan_ids.get(),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchInfo {
            header: Default::default(),
            flags: U32::ZERO,
            switch_type: U32::new(self.switch_type.to_wire()),
            switch_id: U32::new(self.switch_id.get()),
            switch_friendly_name: self.name.to_wire(),
            num_vfs: U32::new(self.num_vfs),
            num_allocated_vfs: U32::new(self.num_allocated_vfs),
            num_vports: U32::new(self.num_vports),
            num_active_vports: U32::new(self.num_active_vports),
            num_queue_pairs_for_default_vport: U32::new(self.num_queue_pairs_for_default_vport),
            num_queue_pairs_for_non_default_vports: U32::new(
                self.num_queue_pairs_for_non_default_vports,
            ),
            num_active_default_vport_mac_addresses: U32::new(
                self.num_active_default_vport_mac_addresses,
            ),
            num_active_non_default_vport_mac_addresses: U32::new(
                self.num_active_non_default_vport_mac_addresses,
            ),
            num_active_default_vport_vlan_ids: U32::new(self.num_active_default_vport_vlan_ids),
            num_active_non_default_vport_vlan_ids: U32::new(
                self.num_active_non_default_vport_vlan_ids,
            ),
        }
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_INFO_ARRAY.
    NdisNicSwitchInfoArray = "NDIS_NIC_SWITCH_INFO_ARRAY", revisions [16], sizeof 16 {
        /// Where the first element starts, bytes from the array's header.
        4 first_element_offset: U32,
        /// How many there are.
        8 num_elements: U32,
        /// From one to the next, bytes.
        12 element_size: U32,
    }
}

/// The NIC switches of an adapter: none or one.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchInfoArray {
    /// The switches.
    pub elements: Vec<NicSwitchInfo>,
}

impl NdisStructure for NicSwitchInfoArray {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        type Wire = NdisNicSwitchInfoArray;
        let (wire, revision) = Wire::read(bytes)?;
        let location = ArrayLocation {
            first_element_offset: wire.first_element_offset.get(),
            num_elements: wire.num_elements.get(),
            element_size: wire.element_size.get(),
        };
        let elements = location
            .elements::<Wire>(
                bytes,
                Wire::size_of_revision(revision),
                NdisNicSwitchInfo::size_of_revision(1),
            )?
            .into_iter()
            .map(NicSwitchInfo::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { elements })
    }

    fn emit(&self) -> Vec<u8> {
        let elements: Vec<_> = self.elements.iter().map(NicSwitchInfo::emit).collect();
        let location = ArrayLocation::after_header(16, &elements, NdisNicSwitchInfo::SIZEOF);
        let mut bytes = NdisNicSwitchInfoArray {
            header: Default::default(),
            first_element_offset: U32::new(location.first_element_offset),
            num_elements: U32::new(location.num_elements),
            element_size: U32::new(location.element_size),
        }
        .write(1);
        location.append(&mut bytes, &elements);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{any_name, assert_meaning, structure_properties};
    use proptest::prelude::*;

    fn any_switch_id() -> impl Strategy<Value = SwitchId> {
        (0..u32::MAX).prop_map(|raw| SwitchId::new(raw).unwrap())
    }

    fn any_parameters() -> impl Strategy<Value = NicSwitchParameters> {
        (any_switch_id(), any_name(), any::<u32>(), any::<Option<u32>>()).prop_map(
            |(switch_id, name, num_vfs, num_queue_pairs_for_default_vport)| NicSwitchParameters {
                switch_type: SwitchType::External,
                switch_id,
                name,
                num_vfs,
                num_queue_pairs_for_default_vport,
            },
        )
    }

    fn any_info() -> impl Strategy<Value = NicSwitchInfo> {
        (any_switch_id(), any_name(), any::<[u32; 10]>()).prop_map(|(switch_id, name, n)| {
            NicSwitchInfo {
                switch_type: SwitchType::External,
                switch_id,
                name,
                num_vfs: n[0],
                num_allocated_vfs: n[1],
                num_vports: n[2],
                num_active_vports: n[3],
                num_queue_pairs_for_default_vport: n[4],
                num_queue_pairs_for_non_default_vports: n[5],
                num_active_default_vport_mac_addresses: n[6],
                num_active_non_default_vport_mac_addresses: n[7],
                num_active_default_vport_vlan_ids: n[8],
                num_active_non_default_vport_vlan_ids: n[9],
            }
        })
    }

    structure_properties!(parameters, NicSwitchParameters, any_parameters());
    structure_properties!(
        change,
        NicSwitchChange,
        (any_switch_id(), proptest::option::of(any_name()))
            .prop_map(|(switch_id, name)| NicSwitchChange { switch_id, name })
    );
    structure_properties!(
        delete,
        NicSwitchDeleteSwitchParameters,
        any_switch_id().prop_map(|switch_id| NicSwitchDeleteSwitchParameters { switch_id })
    );
    structure_properties!(info, NicSwitchInfo, any_info());
    structure_properties!(
        info_array,
        NicSwitchInfoArray,
        proptest::collection::vec(any_info(), 0..4)
            .prop_map(|elements| NicSwitchInfoArray { elements })
    );

    #[test]
    fn create_switch_has_the_published_layout() {
        let parameters = NicSwitchParameters {
            name: Name::new("Default Switch").unwrap(),
            num_vfs: 64,
            num_queue_pairs_for_default_vport: Some(4),
            ..Default::default()
        };
        let bytes = parameters.emit();
        assert_eq!(bytes.len(), 552);
        assert_eq!(
            bytes[..22],
            [0x80, 2, 0x28, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 28, 0, b'D', 0, b'e', 0]
        );
        assert_eq!(bytes[532..], [64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        let revision_1 = parameters.emit_as(1);
        assert_eq!(revision_1.len(), 548);
        let read = NicSwitchParameters::parse(&revision_1).unwrap();
        assert_eq!(read.num_queue_pairs_for_default_vport, None);
    }

    #[test]
    fn a_change_reads_only_what_its_flags_name() {
        let mut bytes = NicSwitchParameters::default().emit();
        bytes[8] = 77; // a switch type that means nothing
        bytes[16] = 1; // a name that is none
        assert_meaning(&bytes, &NicSwitchChange::default());
        assert!(NicSwitchParameters::parse(&bytes).is_err());
        bytes[6] = 1;
        assert!(NicSwitchChange::parse(&bytes).is_err(), "now the name counts");
        bytes[6] = 2;
        let error = NicSwitchChange::parse(&bytes).unwrap_err();
        assert!(matches!(error, ParseError::Member { member: "Flags", .. }), "{error}");
    }

    #[test]
    fn larger_elements_of_a_later_sender_are_stepped_over() {
        let info = NicSwitchInfo { num_vfs: 3, ..Default::default() };
        let mut bytes = NicSwitchInfoArray::default().emit();
        bytes[4..16].copy_from_slice(&[20, 0, 0, 0, 2, 0, 0, 0, 0x44, 2, 0, 0]);
        bytes.resize(20, 0xEE);
        for _ in 0..2 {
            bytes.extend(info.emit());
            bytes.extend([0xEE; 8]);
        }
        assert_meaning(&bytes, &NicSwitchInfoArray { elements: vec![info.clone(), info] });
    }
}
