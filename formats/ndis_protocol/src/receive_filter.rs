//! Receive filters: setting, clearing and moving (SPEC-NDIS-SRIOV §6.1–§6.3, §15).

use zerocopy::little_endian::U32;

use crate::object::{
    ArrayLocation, FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::vport::vport_id;
use crate::{FilterId, MacAddress, NDIS_DEFAULT_RECEIVE_FILTER_ID, VPortId, VlanId};

wire_structure! {
    /// NDIS_RECEIVE_FILTER_PARAMETERS. Revision 1 is of NDIS 6.20, 2 of 6.30.
    NdisReceiveFilterParameters = "NDIS_RECEIVE_FILTER_PARAMETERS", revisions [36, 44], sizeof 44 {
        /// [`FilterFlags`].
        4 flags: U32,
        /// [`FilterType`].
        8 filter_type: U32,
        /// A receive queue; 0 with SR-IOV.
        12 queue_id: U32,
        /// [`FilterId`]; 0 in a request to set one.
        16 filter_id: U32,
        /// Where the tests start, bytes from the start of the structure.
        20 field_parameters_array_offset: U32,
        /// How many tests there are.
        24 field_parameters_array_num_elements: U32,
        /// From one test to the next, bytes.
        28 field_parameters_array_element_size: U32,
        /// Bits of the filter id that the caller wants; 0.
        32 requested_filter_id_bit_count: U32,
        /// Revision 2, packet coalescing.
        36 max_coalescing_delay: U32,
        /// Revision 2: [`VPortId`].
        40 vport_id: U32,
    }
}

bitflags::bitflags! {
    /// Properties of a receive filter.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct FilterFlags: u32 {
        /// The tests look at the inner MAC header of encapsulated frames.
        const MATCH_INNER_MAC = 0x2;
    }
}

/// What a receive filter is for.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum FilterType {
    /// VM queues, and the VPorts that take their place with SR-IOV.
    #[default]
    VmQueue,
    /// Packet coalescing.
    PacketCoalescing,
}

impl FilterType {
    /// Reads the wire value; 0 is undefined and means nothing.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::VmQueue),
            2 => Some(Self::PacketCoalescing),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::VmQueue => 1,
            Self::PacketCoalescing => 2,
        }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_FILTER_FIELD_PARAMETERS.
    NdisReceiveFilterFieldParameters = "NDIS_RECEIVE_FILTER_FIELD_PARAMETERS", revisions [56], sizeof 56 {
        /// [`FieldFlags`].
        4 flags: U32,
        /// Frame header: 1 is the MAC header.
        8 frame_header: U32,
        /// [`FilterTest`].
        12 receive_filter_test: U32,
        /// [`MacHeaderField`].
        16 header_field: U32,
        /// Padding.
        20 padding: [u8; 4],
        /// What the field, or the masked field, is compared with; the mask of a masked test.
        24 field_value: [u8; 16],
        /// What a masked field is compared with.
        40 result_value: [u8; 16],
    }
}

/// Wire value of the MAC header (NdisFrameHeaderMac), the one header this crate knows tests of.
const FRAME_HEADER_MAC: u32 = 1;

bitflags::bitflags! {
    /// Properties of one test.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct FieldFlags: u32 {
        /// Only frames without VLAN tag or with VLAN id 0.
        const VLAN_UNTAGGED_OR_ZERO = 0x1;
    }
}

/// How a field is compared.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum FilterTest {
    /// The field equals the value.
    Equal,
    /// The field under a mask equals the result value.
    MaskEqual,
    /// The field differs from the value.
    NotEqual,
}

impl FilterTest {
    /// Reads the wire value; 0 is undefined and means nothing.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Equal),
            2 => Some(Self::MaskEqual),
            3 => Some(Self::NotEqual),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Equal => 1,
            Self::MaskEqual => 2,
            Self::NotEqual => 3,
        }
    }
}

/// A field of the MAC header.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum MacHeaderField {
    /// Destination address: the first six bytes of the value.
    DestinationAddress,
    /// Source address.
    SourceAddress,
    /// EtherType.
    Protocol,
    /// VLAN id: the first two bytes of the value, little endian.
    VlanId,
    /// Priority of the VLAN tag.
    Priority,
    /// Kind of packet.
    PacketType,
}

impl MacHeaderField {
    /// Reads the wire value; 0 is undefined and means nothing.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::DestinationAddress),
            2 => Some(Self::SourceAddress),
            3 => Some(Self::Protocol),
            4 => Some(Self::VlanId),
            5 => Some(Self::Priority),
            6 => Some(Self::PacketType),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::DestinationAddress => 1,
            Self::SourceAddress => 2,
            Self::Protocol => 3,
            Self::VlanId => 4,
            Self::Priority => 5,
            Self::PacketType => 6,
        }
    }
}

/// One test of a receive filter, on the MAC header.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct FieldParameters {
    /// Properties.
    pub flags: FieldFlags,
    /// How it is compared.
    pub test: FilterTest,
    /// What is compared.
    pub field: MacHeaderField,
    /// With what it is compared, or the mask.
    pub value: [u8; 16],
    /// With what the masked field is compared.
    pub result: [u8; 16],
}

impl FieldParameters {
    fn equal(field: MacHeaderField, significant: &[u8]) -> Self {
        let mut value = [0; 16];
        for (target, byte) in value.iter_mut().zip(significant) {
            *target = *byte;
        }
        Self { flags: FieldFlags::empty(), test: FilterTest::Equal, field, value, result: [0; 16] }
    }

    /// The test "the destination address is `mac`".
    #[must_use]
    pub fn destination_is(mac: MacAddress) -> Self {
        Self::equal(MacHeaderField::DestinationAddress, &mac.octets())
    }

    /// The test "the VLAN id is `vlan`".
    #[must_use]
    pub fn vlan_is(vlan: VlanId) -> Self {
        Self::equal(MacHeaderField::VlanId, &vlan.get().to_le_bytes())
    }

    /// The value, read as a MAC address.
    #[must_use]
    pub fn value_as_mac(&self) -> MacAddress {
        let [a, b, c, d, e, f, ..] = self.value;
        MacAddress::new([a, b, c, d, e, f])
    }

    /// The value, read as a VLAN id; `None` if it is not one.
    #[must_use]
    pub fn value_as_vlan(&self) -> Option<VlanId> {
        let [low, high, ..] = self.value;
        VlanId::new(u16::from_le_bytes([low, high]))
    }
}

impl FixedStructure for FieldParameters {
    type Wire = NdisReceiveFilterFieldParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        if wire.frame_header.get() != FRAME_HEADER_MAC {
            return Err(member::<Self::Wire>("FrameHeader", wire.frame_header));
        }
        Ok(Self {
            flags: FieldFlags::from_bits(wire.flags.get())
                .ok_or_else(|| member::<Self::Wire>("Flags", wire.flags))?,
            test: FilterTest::from_wire(wire.receive_filter_test.get()).ok_or_else(|| {
                member::<Self::Wire>("ReceiveFilterTest", wire.receive_filter_test)
            })?,
            field: MacHeaderField::from_wire(wire.header_field.get())
                .ok_or_else(|| member::<Self::Wire>("HeaderField", wire.header_field))?,
            value: wire.field_value,
            result: wire.result_value,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveFilterFieldParameters {
            header: Default::default(),
            flags: U32::new(self.flags.bits()),
            frame_header: U32::new(FRAME_HEADER_MAC),
            receive_filter_test: U32::new(self.test.to_wire()),
            header_field: U32::new(self.field.to_wire()),
            padding: [0; 4],
            field_value: self.value,
            result_value: self.result,
        }
    }
}

/// A receive filter: all its tests must pass.
///
/// Emitted as revision 2. Revision 1 has no VPort and parses as one of the default VPort.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct ReceiveFilterParameters {
    /// Properties.
    pub flags: FilterFlags,
    /// What it is for.
    pub filter_type: FilterType,
    /// A receive queue; 0 with SR-IOV.
    pub queue_id: u32,
    /// The filter; `None` in a request to set one, which NDIS numbers.
    pub filter_id: Option<FilterId>,
    /// The VPort that takes the frames.
    pub vport_id: VPortId,
    /// Bits of the filter id that the caller wants; 0 with SR-IOV.
    pub requested_filter_id_bit_count: u32,
    /// Packet coalescing, milliseconds.
    pub max_coalescing_delay: u32,
    /// The tests.
    pub fields: Vec<FieldParameters>,
}

impl ReceiveFilterParameters {
    /// A filter as SR-IOV knows it: a destination address and a VLAN condition.
    #[must_use]
    pub fn new(vport_id: VPortId, matches: FilterMatch) -> Self {
        let mut destination = FieldParameters::destination_is(matches.mac);
        let mut fields = Vec::with_capacity(2);
        match matches.vlan {
            VlanCondition::UntaggedOrZero => {
                destination.flags = FieldFlags::VLAN_UNTAGGED_OR_ZERO;
                fields.push(destination);
            }
            VlanCondition::Equal(vlan) => {
                fields.extend([destination, FieldParameters::vlan_is(vlan)]);
            }
            VlanCondition::Any => fields.push(destination),
        }
        Self {
            flags: if matches.inner { FilterFlags::MATCH_INNER_MAC } else { FilterFlags::empty() },
            filter_type: FilterType::VmQueue,
            queue_id: 0,
            filter_id: None,
            vport_id,
            requested_filter_id_bit_count: 0,
            max_coalescing_delay: 0,
            fields,
        }
    }

    /// What the tests say, if they are those that SR-IOV defines: the destination address equals, and at most
    /// once the VLAN id equals (SPEC-NDIS-SRIOV §6.1).
    ///
    /// # Errors
    /// [`ParseError::Member`] naming what is none of that.
    pub fn matches(&self) -> Result<FilterMatch, ParseError> {
        type Wire = NdisReceiveFilterFieldParameters;
        let mut mac = None;
        let mut untagged = false;
        let mut vlan = None;
        for field in &self.fields {
            if field.test != FilterTest::Equal {
                return Err(member::<Wire>("ReceiveFilterTest", field.test.to_wire()));
            }
            untagged |= field.flags.contains(FieldFlags::VLAN_UNTAGGED_OR_ZERO);
            let repeated = match field.field {
                MacHeaderField::DestinationAddress => mac.replace(field.value_as_mac()).is_some(),
                MacHeaderField::VlanId => {
                    let [low, high, ..] = field.value;
                    let raw = u16::from_le_bytes([low, high]);
                    let id = field.value_as_vlan();
                    vlan.replace(id.ok_or_else(|| member::<Wire>("FieldValue", raw))?).is_some()
                }
                _ => true,
            };
            if repeated {
                return Err(member::<Wire>("HeaderField", field.field.to_wire()));
            }
        }
        let none = u64::try_from(self.fields.len()).unwrap_or(u64::MAX);
        let no_address =
            || member::<NdisReceiveFilterParameters>("FieldParametersArrayNumElements", none);
        let vlan = match (untagged, vlan) {
            (false, None) => VlanCondition::Any,
            (true, None) => VlanCondition::UntaggedOrZero,
            (false, Some(vlan)) => VlanCondition::Equal(vlan),
            (true, Some(_)) => {
                return Err(member::<Wire>("Flags", FieldFlags::VLAN_UNTAGGED_OR_ZERO.bits()));
            }
        };
        Ok(FilterMatch {
            mac: mac.ok_or_else(no_address)?,
            vlan,
            inner: self.flags.contains(FilterFlags::MATCH_INNER_MAC),
        })
    }

    /// Writes the filter in a given revision.
    #[must_use]
    pub fn emit_as(&self, revision: u8) -> Vec<u8> {
        type Wire = NdisReceiveFilterParameters;
        let revision = revision.clamp(1, Wire::highest_revision());
        let elements: Vec<_> = self.fields.iter().map(FieldParameters::emit).collect();
        let location = ArrayLocation::after_header(
            Wire::size_of_revision(revision),
            &elements,
            NdisReceiveFilterFieldParameters::SIZEOF,
        );
        let mut bytes = Wire {
            header: Default::default(),
            flags: U32::new(self.flags.bits()),
            filter_type: U32::new(self.filter_type.to_wire()),
            queue_id: U32::new(self.queue_id),
            filter_id: U32::new(
                self.filter_id.map_or(NDIS_DEFAULT_RECEIVE_FILTER_ID, FilterId::get),
            ),
            field_parameters_array_offset: U32::new(location.first_element_offset),
            field_parameters_array_num_elements: U32::new(location.num_elements),
            field_parameters_array_element_size: U32::new(location.element_size),
            requested_filter_id_bit_count: U32::new(self.requested_filter_id_bit_count),
            max_coalescing_delay: U32::new(self.max_coalescing_delay),
            vport_id: U32::new(self.vport_id.get()),
        }
        .write(revision);
        location.append(&mut bytes, &elements);
        bytes
    }
}

impl NdisStructure for ReceiveFilterParameters {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        type Wire = NdisReceiveFilterParameters;
        let (wire, revision) = Wire::read(bytes)?;
        let location = ArrayLocation {
            first_element_offset: wire.field_parameters_array_offset.get(),
            num_elements: wire.field_parameters_array_num_elements.get(),
            element_size: wire.field_parameters_array_element_size.get(),
        };
        let fields = location
            .elements::<Wire>(
                bytes,
                Wire::size_of_revision(revision),
                NdisReceiveFilterFieldParameters::size_of_revision(1),
            )?
            .into_iter()
            .map(FieldParameters::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            flags: FilterFlags::from_bits(wire.flags.get())
                .ok_or_else(|| member::<Wire>("Flags", wire.flags))?,
            filter_type: FilterType::from_wire(wire.filter_type.get())
                .ok_or_else(|| member::<Wire>("FilterType", wire.filter_type))?,
            queue_id: wire.queue_id.get(),
            filter_id: FilterId::new(wire.filter_id.get()),
            vport_id: vport_id::<Wire>(wire.vport_id)?,
            requested_filter_id_bit_count: wire.requested_filter_id_bit_count.get(),
            max_coalescing_delay: wire.max_coalescing_delay.get(),
            fields,
        })
    }

    fn emit(&self) -> Vec<u8> {
        self.emit_as(2)
    }
}

/// The VLAN condition of a receive filter (SPEC-NDIS-SRIOV §6.1).
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum VlanCondition {
    /// Only frames without VLAN tag or with VLAN id 0.
    UntaggedOrZero,
    /// Only frames of this VLAN.
    Equal(VlanId),
    /// Neither flag nor test: frames of any VLAN; their tag goes out of band.
    Any,
}

/// What frames a receive filter of SR-IOV takes.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct FilterMatch {
    /// The destination address.
    pub mac: MacAddress,
    /// The VLAN condition.
    pub vlan: VlanCondition,
    /// Whether the inner MAC header of encapsulated frames is meant.
    pub inner: bool,
}

impl FilterMatch {
    /// Frames to this address without VLAN tag, the usual filter of a VM network adapter.
    #[must_use]
    pub const fn untagged(mac: MacAddress) -> Self {
        Self { mac, vlan: VlanCondition::UntaggedOrZero, inner: false }
    }

    /// Frames to this address on a VLAN.
    #[must_use]
    pub const fn on_vlan(mac: MacAddress, vlan: VlanId) -> Self {
        Self { mac, vlan: VlanCondition::Equal(vlan), inner: false }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_FILTER_CLEAR_PARAMETERS.
    NdisReceiveFilterClearParameters = "NDIS_RECEIVE_FILTER_CLEAR_PARAMETERS", revisions [16], sizeof 16 {
        /// Reserved.
        4 flags: U32,
        /// A receive queue; 0 with SR-IOV.
        8 queue_id: U32,
        /// [`FilterId`].
        12 filter_id: U32,
    }
}

/// Which receive filter to clear.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct ReceiveFilterClearParameters {
    /// A receive queue; 0 with SR-IOV.
    pub queue_id: u32,
    /// The filter; `None` for the id 0 that no filter has.
    pub filter_id: Option<FilterId>,
}

impl FixedStructure for ReceiveFilterClearParameters {
    type Wire = NdisReceiveFilterClearParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { queue_id: wire.queue_id.get(), filter_id: FilterId::new(wire.filter_id.get()) })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveFilterClearParameters {
            header: Default::default(),
            flags: U32::ZERO,
            queue_id: U32::new(self.queue_id),
            filter_id: U32::new(
                self.filter_id.map_or(NDIS_DEFAULT_RECEIVE_FILTER_ID, FilterId::get),
            ),
        }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_FILTER_MOVE_FILTER_PARAMETERS.
    NdisReceiveFilterMoveFilterParameters = "NDIS_RECEIVE_FILTER_MOVE_FILTER_PARAMETERS", revisions [24], sizeof 24 {
        /// [`FilterId`].
        4 filter_id: U32,
        /// A receive queue; 0 with SR-IOV.
        8 source_queue_id: U32,
        /// [`VPortId`].
        12 source_vport_id: U32,
        /// A receive queue; 0 with SR-IOV.
        16 dest_queue_id: U32,
        /// [`VPortId`].
        20 dest_vport_id: U32,
    }
}

/// From where to where a receive filter moves.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct ReceiveFilterMoveFilterParameters {
    /// The filter.
    pub filter_id: FilterId,
    /// A receive queue; 0 with SR-IOV.
    pub source_queue_id: u32,
    /// The VPort it is on.
    pub source_vport_id: VPortId,
    /// A receive queue; 0 with SR-IOV.
    pub dest_queue_id: u32,
    /// The VPort it goes to.
    pub dest_vport_id: VPortId,
}

impl ReceiveFilterMoveFilterParameters {
    /// A move between two VPorts.
    #[must_use]
    pub const fn new(filter_id: FilterId, source: VPortId, destination: VPortId) -> Self {
        Self {
            filter_id,
            source_queue_id: 0,
            source_vport_id: source,
            dest_queue_id: 0,
            dest_vport_id: destination,
        }
    }
}

impl FixedStructure for ReceiveFilterMoveFilterParameters {
    type Wire = NdisReceiveFilterMoveFilterParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            filter_id: FilterId::new(wire.filter_id.get())
                .ok_or_else(|| member::<Self::Wire>("FilterId", wire.filter_id))?,
            source_queue_id: wire.source_queue_id.get(),
            source_vport_id: VPortId::new(wire.source_vport_id.get())
                .ok_or_else(|| member::<Self::Wire>("SourceVPortId", wire.source_vport_id))?,
            dest_queue_id: wire.dest_queue_id.get(),
            dest_vport_id: VPortId::new(wire.dest_vport_id.get())
                .ok_or_else(|| member::<Self::Wire>("DestVPortId", wire.dest_vport_id))?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveFilterMoveFilterParameters {
            header: Default::default(),
            filter_id: U32::new(self.filter_id.get()),
            source_queue_id: U32::new(self.source_queue_id),
            source_vport_id: U32::new(self.source_vport_id.get()),
            dest_queue_id: U32::new(self.dest_queue_id),
            dest_vport_id: U32::new(self.dest_vport_id.get()),
        }
    }
}

#[cfg(test)]
mod tests;
