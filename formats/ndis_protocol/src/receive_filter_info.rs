//! Enumeration of receive filters, and the types of filter in use (SPEC-NDIS-SRIOV §6.4, §15).

use zerocopy::little_endian::U32;

use crate::object::{
    ArrayLocation, FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::vport::vport_id;
use crate::{FilterId, FilterType, FilterTypes, QueueTypes, VPortId};

wire_structure! {
    /// NDIS_RECEIVE_FILTER_INFO.
    NdisReceiveFilterInfo = "NDIS_RECEIVE_FILTER_INFO", revisions [16], sizeof 16 {
        /// Reserved.
        4 flags: U32,
        /// [`FilterType`].
        8 filter_type: U32,
        /// [`FilterId`].
        12 filter_id: U32,
    }
}

/// A receive filter in an enumeration.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct ReceiveFilterInfo {
    /// What it is for.
    pub filter_type: FilterType,
    /// The filter.
    pub filter_id: FilterId,
}

impl FixedStructure for ReceiveFilterInfo {
    type Wire = NdisReceiveFilterInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            filter_type: FilterType::from_wire(wire.filter_type.get())
                .ok_or_else(|| member::<Self::Wire>("FilterType", wire.filter_type))?,
            filter_id: FilterId::new(wire.filter_id.get())
                .ok_or_else(|| member::<Self::Wire>("FilterId", wire.filter_id))?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveFilterInfo {
            header: Default::default(),
            flags: U32::ZERO,
            filter_type: U32::new(self.filter_type.to_wire()),
            filter_id: U32::new(self.filter_id.get()),
        }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_FILTER_INFO_ARRAY. Revision 1 is of NDIS 6.20, 2 of 6.30.
    NdisReceiveFilterInfoArray = "NDIS_RECEIVE_FILTER_INFO_ARRAY", revisions [20, 28], sizeof 28 {
        /// A receive queue; 0 with SR-IOV.
        4 queue_id: U32,
        /// Where the first element starts, bytes from the array's header.
        8 first_element_offset: U32,
        /// How many there are.
        12 num_elements: U32,
        /// From one to the next, bytes.
        16 element_size: U32,
        /// Revision 2: [`FilterEnumFlags`].
        20 flags: U32,
        /// Revision 2: [`VPortId`], if the flags say so.
        24 vport_id: U32,
    }
}

bitflags::bitflags! {
    /// What an enumeration of receive filters is limited to.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct FilterEnumFlags: u32 {
        /// Filters of one VPort only.
        const VPORT_ID_SPECIFIED = 0x1;
    }
}

/// Receive filters: with the limit in the request, with elements in the answer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveFilterInfoArray {
    /// A receive queue; 0 with SR-IOV.
    pub queue_id: u32,
    /// Only those of this VPort.
    pub vport: Option<VPortId>,
    /// The filters.
    pub elements: Vec<ReceiveFilterInfo>,
}

impl ReceiveFilterInfoArray {
    /// Writes the array in a given revision.
    #[must_use]
    pub fn emit_as(&self, revision: u8) -> Vec<u8> {
        type Wire = NdisReceiveFilterInfoArray;
        let revision = revision.clamp(1, Wire::highest_revision());
        let elements: Vec<_> = self.elements.iter().map(ReceiveFilterInfo::emit).collect();
        let location = ArrayLocation::after_header(
            Wire::size_of_revision(revision),
            &elements,
            NdisReceiveFilterInfo::SIZEOF,
        );
        let mut flags = FilterEnumFlags::empty();
        flags.set(FilterEnumFlags::VPORT_ID_SPECIFIED, self.vport.is_some());
        let mut bytes = Wire {
            header: Default::default(),
            queue_id: U32::new(self.queue_id),
            first_element_offset: U32::new(location.first_element_offset),
            num_elements: U32::new(location.num_elements),
            element_size: U32::new(location.element_size),
            flags: U32::new(flags.bits()),
            vport_id: U32::new(self.vport.unwrap_or_default().get()),
        }
        .write(revision);
        location.append(&mut bytes, &elements);
        bytes
    }
}

impl NdisStructure for ReceiveFilterInfoArray {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        type Wire = NdisReceiveFilterInfoArray;
        let (wire, revision) = Wire::read(bytes)?;
        let flags = FilterEnumFlags::from_bits(wire.flags.get())
            .ok_or_else(|| member::<Wire>("Flags", wire.flags))?;
        let vport = if flags.contains(FilterEnumFlags::VPORT_ID_SPECIFIED) {
            Some(vport_id::<Wire>(wire.vport_id)?)
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
                NdisReceiveFilterInfo::size_of_revision(1),
            )?
            .into_iter()
            .map(ReceiveFilterInfo::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { queue_id: wire.queue_id.get(), vport, elements })
    }

    fn emit(&self) -> Vec<u8> {
        self.emit_as(2)
    }
}

wire_structure! {
    /// NDIS_RECEIVE_FILTER_GLOBAL_PARAMETERS.
    NdisReceiveFilterGlobalParameters = "NDIS_RECEIVE_FILTER_GLOBAL_PARAMETERS", revisions [16], sizeof 16 {
        /// Reserved.
        4 flags: U32,
        /// [`FilterTypes`].
        8 enabled_filter_types: U32,
        /// [`QueueTypes`].
        12 enabled_queue_types: U32,
    }
}

/// The filter and queue types in use.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveFilterGlobalParameters {
    /// Filter types.
    pub enabled_filter_types: FilterTypes,
    /// Queue types.
    pub enabled_queue_types: QueueTypes,
}

impl FixedStructure for ReceiveFilterGlobalParameters {
    type Wire = NdisReceiveFilterGlobalParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            enabled_filter_types: FilterTypes::from_bits_retain(wire.enabled_filter_types.get()),
            enabled_queue_types: QueueTypes::from_bits_retain(wire.enabled_queue_types.get()),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveFilterGlobalParameters {
            header: Default::default(),
            flags: U32::ZERO,
            enabled_filter_types: U32::new(self.enabled_filter_types.bits()),
            enabled_queue_types: U32::new(self.enabled_queue_types.bits()),
        }
    }
}
