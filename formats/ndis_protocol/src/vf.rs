//! VFs: allocation, release and enumeration (SPEC-NDIS-SRIOV §5.10–§5.12, §15).

use zerocopy::little_endian::{U16, U32};

use crate::nic_switch::switch_id;
use crate::object::{
    ArrayLocation, FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::{
    MacAddress, NDIS_INVALID_RID, NDIS_INVALID_VF_FUNCTION_ID, Name, NdisCountedString,
    RequestorId, SwitchId, VfId,
};

/// Bytes of a MAC address field (NDIS_MAX_PHYS_ADDRESS_LENGTH).
const MAC_FIELD: usize = 32;

/// Octets of an Ethernet address: the only MacAddressLength there is.
const MAC_LENGTH: u16 = 6;

wire_structure! {
    /// NDIS_NIC_SWITCH_VF_PARAMETERS.
    NdisNicSwitchVfParameters = "NDIS_NIC_SWITCH_VF_PARAMETERS", revisions [1632], sizeof 1632 {
        /// Reserved.
        4 flags: U32,
        /// [`SwitchId`].
        8 switch_id: U32,
        /// Identifies the VM.
        12 vm_name: NdisCountedString,
        /// The VM's name for people.
        528 vm_friendly_name: NdisCountedString,
        /// The VM's network adapter.
        1044 nic_name: NdisCountedString,
        /// Octets in use of the two addresses.
        1560 mac_address_length: U16,
        /// Permanent address of the VF NIC in the guest.
        1562 permanent_mac_address: [u8; MAC_FIELD],
        /// Current address of the VF NIC in the guest.
        1594 current_mac_address: [u8; MAC_FIELD],
        /// [`VfId`]; 0xFFFF in a request to allocate one.
        1626 vf_id: U16,
        /// [`RequestorId`]; 0xFFFFFFFF in a request to allocate a VF.
        1628 requestor_id: U32,
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_VF_INFO: the same members as [`NdisNicSwitchVfParameters`].
    NdisNicSwitchVfInfo = "NDIS_NIC_SWITCH_VF_INFO", revisions [1632], sizeof 1632 {
        /// Reserved.
        4 flags: U32,
        /// [`SwitchId`].
        8 switch_id: U32,
        /// Identifies the VM.
        12 vm_name: NdisCountedString,
        /// The VM's name for people.
        528 vm_friendly_name: NdisCountedString,
        /// The VM's network adapter.
        1044 nic_name: NdisCountedString,
        /// Octets in use of the two addresses.
        1560 mac_address_length: U16,
        /// Permanent address of the VF NIC in the guest.
        1562 permanent_mac_address: [u8; MAC_FIELD],
        /// Current address of the VF NIC in the guest.
        1594 current_mac_address: [u8; MAC_FIELD],
        /// [`VfId`].
        1626 vf_id: U16,
        /// [`RequestorId`].
        1628 requestor_id: U32,
    }
}

/// Whom a VF is for: informational, but for the addresses, which the guest's VF NIC will show.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct VfOwner {
    /// Identifies the VM.
    pub vm_name: Name,
    /// The VM's name for people.
    pub vm_friendly_name: Name,
    /// The VM's network adapter.
    pub nic_name: Name,
    /// Permanent address of the VF NIC in the guest.
    pub permanent_mac: MacAddress,
    /// Current address of the VF NIC in the guest.
    pub current_mac: MacAddress,
}

/// A VF as it is allocated and queried.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct VfParameters {
    /// The switch it is on.
    pub switch_id: SwitchId,
    /// Whom it is for.
    pub owner: VfOwner,
    /// The VF; `None` in a request to allocate one.
    pub vf_id: Option<VfId>,
    /// Its requestor id; `None` in a request to allocate a VF.
    pub requestor_id: Option<RequestorId>,
}

/// A VF in an enumeration.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct VfInfo {
    /// The switch it is on.
    pub switch_id: SwitchId,
    /// Whom it is for.
    pub owner: VfOwner,
    /// The VF.
    pub vf_id: VfId,
    /// Its requestor id.
    pub requestor_id: RequestorId,
}

fn mac_field(mac: MacAddress) -> [u8; MAC_FIELD] {
    let mut field = [0; MAC_FIELD];
    for (target, octet) in field.iter_mut().zip(mac.octets()) {
        *target = octet;
    }
    field
}

/// Reads the members that VF parameters and info share.
macro_rules! vf_owner {
    ($wire:ident) => {{
        let [p0, p1, p2, p3, p4, p5, ..] = $wire.permanent_mac_address;
        let [c0, c1, c2, c3, c4, c5, ..] = $wire.current_mac_address;
        if $wire.flags.get() != 0 {
            return Err(member::<Self::Wire>("Flags", $wire.flags));
        }
        if $wire.mac_address_length.get() != MAC_LENGTH {
            return Err(member::<Self::Wire>("MacAddressLength", $wire.mac_address_length));
        }
        VfOwner {
            vm_name: Name::from_member::<Self::Wire>("VMName", &$wire.vm_name)?,
            vm_friendly_name: Name::from_member::<Self::Wire>(
                "VMFriendlyName",
                &$wire.vm_friendly_name,
            )?,
            nic_name: Name::from_member::<Self::Wire>("NicName", &$wire.nic_name)?,
            permanent_mac: MacAddress::new([p0, p1, p2, p3, p4, p5]),
            current_mac: MacAddress::new([c0, c1, c2, c3, c4, c5]),
        }
    }};
}

impl FixedStructure for VfParameters {
    type Wire = NdisNicSwitchVfParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            owner: vf_owner!(wire),
            switch_id: switch_id::<Self::Wire>(wire.switch_id)?,
            vf_id: VfId::new(wire.vf_id.get()),
            requestor_id: RequestorId::from_wire(wire.requestor_id.get()),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchVfParameters {
            header: Default::default(),
            flags: U32::ZERO,
            switch_id: U32::new(self.switch_id.get()),
            vm_name: self.owner.vm_name.to_wire(),
            vm_friendly_name: self.owner.vm_friendly_name.to_wire(),
            nic_name: self.owner.nic_name.to_wire(),
            mac_address_length: U16::new(MAC_LENGTH),
            permanent_mac_address: mac_field(self.owner.permanent_mac),
            current_mac_address: mac_field(self.owner.current_mac),
            vf_id: U16::new(self.vf_id.map_or(NDIS_INVALID_VF_FUNCTION_ID, VfId::get)),
            requestor_id: U32::new(self.requestor_id.map_or(NDIS_INVALID_RID, RequestorId::get)),
        }
    }
}

impl FixedStructure for VfInfo {
    type Wire = NdisNicSwitchVfInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            owner: vf_owner!(wire),
            switch_id: switch_id::<Self::Wire>(wire.switch_id)?,
            vf_id: vf_id::<Self::Wire>(wire.vf_id)?,
            requestor_id: RequestorId::from_wire(wire.requestor_id.get())
                .ok_or_else(|| member::<Self::Wire>("RequestorId", wire.requestor_id))?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchVfInfo {
            header: Default::default(),
            flags: U32::ZERO,
            switch_id: U32::new(self.switch_id.get()),
            vm_name: self.owner.vm_name.to_wire(),
            vm_friendly_name: self.owner.vm_friendly_name.to_wire(),
            nic_name: self.owner.nic_name.to_wire(),
            mac_address_length: U16::new(MAC_LENGTH),
            permanent_mac_address: mac_field(self.owner.permanent_mac),
            current_mac_address: mac_field(self.owner.current_mac),
            vf_id: U16::new(self.vf_id.get()),
            requestor_id: U32::new(self.requestor_id.get()),
        }
    }
}

/// Reads a VFId member that must name a VF.
pub(crate) fn vf_id<W: WireStructure>(raw: U16) -> Result<VfId, ParseError> {
    VfId::new(raw.get()).ok_or_else(|| member::<W>("VFId", raw))
}

wire_structure! {
    /// NDIS_NIC_SWITCH_FREE_VF_PARAMETERS.
    NdisNicSwitchFreeVfParameters = "NDIS_NIC_SWITCH_FREE_VF_PARAMETERS", revisions [10], sizeof 12 {
        /// Reserved.
        4 flags: U32,
        /// [`VfId`].
        8 vf_id: U16,
    }
}

/// Which VF to free.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct NicSwitchFreeVfParameters {
    /// The VF.
    pub vf_id: VfId,
}

impl FixedStructure for NicSwitchFreeVfParameters {
    type Wire = NdisNicSwitchFreeVfParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { vf_id: vf_id::<Self::Wire>(wire.vf_id)? })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisNicSwitchFreeVfParameters {
            header: Default::default(),
            flags: U32::ZERO,
            vf_id: U16::new(self.vf_id.get()),
        }
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_VF_INFO_ARRAY.
    NdisNicSwitchVfInfoArray = "NDIS_NIC_SWITCH_VF_INFO_ARRAY", revisions [24], sizeof 24 {
        /// [`VfEnumFlags`].
        4 flags: U32,
        /// [`SwitchId`], if the flags say so.
        8 switch_id: U32,
        /// Where the first element starts, bytes from the array's header.
        12 first_element_offset: U32,
        /// How many there are.
        16 num_elements: U32,
        /// From one to the next, bytes.
        20 element_size: U32,
    }
}

bitflags::bitflags! {
    /// What an enumeration of VFs is limited to.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct VfEnumFlags: u32 {
        /// VFs of one switch only.
        const SPECIFIC_SWITCH = 0x1;
    }
}

/// Allocated VFs: with the limit in the request, with elements in the answer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct VfInfoArray {
    /// Only those of this switch.
    pub switch: Option<SwitchId>,
    /// The VFs.
    pub elements: Vec<VfInfo>,
}

impl NdisStructure for VfInfoArray {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        type Wire = NdisNicSwitchVfInfoArray;
        let (wire, revision) = Wire::read(bytes)?;
        let flags = VfEnumFlags::from_bits(wire.flags.get())
            .ok_or_else(|| member::<Wire>("Flags", wire.flags))?;
        let switch = if flags.contains(VfEnumFlags::SPECIFIC_SWITCH) {
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
                NdisNicSwitchVfInfo::size_of_revision(1),
            )?
            .into_iter()
            .map(VfInfo::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { switch, elements })
    }

    fn emit(&self) -> Vec<u8> {
        let elements: Vec<_> = self.elements.iter().map(VfInfo::emit).collect();
        let location = ArrayLocation::after_header(24, &elements, NdisNicSwitchVfInfo::SIZEOF);
        let mut flags = VfEnumFlags::empty();
        flags.set(VfEnumFlags::SPECIFIC_SWITCH, self.switch.is_some());
        let mut bytes = NdisNicSwitchVfInfoArray {
            header: Default::default(),
            flags: U32::new(flags.bits()),
            switch_id: U32::new(self.switch.unwrap_or_default().get()),
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
    use crate::testing::{any_mac, any_name, assert_meaning, structure_properties};
    use proptest::prelude::*;

    fn any_vf() -> impl Strategy<Value = VfId> {
        (0..u16::MAX).prop_map(|raw| VfId::new(raw).unwrap())
    }

    fn any_switch() -> impl Strategy<Value = SwitchId> {
        (0..u32::MAX).prop_map(|raw| SwitchId::new(raw).unwrap())
    }

    fn any_owner() -> impl Strategy<Value = VfOwner> {
        (any_name(), any_name(), any_name(), any_mac(), any_mac()).prop_map(
            |(vm_name, vm_friendly_name, nic_name, permanent_mac, current_mac)| VfOwner {
                vm_name,
                vm_friendly_name,
                nic_name,
                permanent_mac,
                current_mac,
            },
        )
    }

    fn any_info() -> impl Strategy<Value = VfInfo> {
        (any_switch(), any_owner(), any_vf(), 0..u32::MAX).prop_map(
            |(switch_id, owner, vf_id, rid)| VfInfo {
                switch_id,
                owner,
                vf_id,
                requestor_id: RequestorId::from_wire(rid).unwrap(),
            },
        )
    }

    fn any_parameters() -> impl Strategy<Value = VfParameters> {
        (any_info(), any::<bool>(), any::<bool>()).prop_map(|(info, vf, rid)| VfParameters {
            switch_id: info.switch_id,
            owner: info.owner,
            vf_id: vf.then_some(info.vf_id),
            requestor_id: rid.then_some(info.requestor_id),
        })
    }

    structure_properties!(parameters, VfParameters, any_parameters());
    structure_properties!(info, VfInfo, any_info());
    structure_properties!(
        free,
        NicSwitchFreeVfParameters,
        any_vf().prop_map(|vf_id| NicSwitchFreeVfParameters { vf_id })
    );
    structure_properties!(
        info_array,
        VfInfoArray,
        (proptest::option::of(any_switch()), proptest::collection::vec(any_info(), 0..3))
            .prop_map(|(switch, elements)| VfInfoArray { switch, elements })
    );

    fn request() -> VfParameters {
        VfParameters {
            switch_id: SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: Name::new("vm").unwrap(),
                vm_friendly_name: Name::new("A machine").unwrap(),
                nic_name: Name::new("eth0").unwrap(),
                permanent_mac: MacAddress::new([2, 0, 0, 0, 0, 1]),
                current_mac: MacAddress::new([2, 0, 0, 0, 0, 2]),
            },
            vf_id: None,
            requestor_id: None,
        }
    }

    #[test]
    fn allocate_vf_has_the_published_layout() {
        let bytes = request().emit();
        assert_eq!(bytes.len(), 1632);
        assert_eq!(bytes[..4], [0x80, 1, 0x60, 6]);
        assert_eq!(bytes[1560..1568], [6, 0, 2, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[1594..1600], [2, 0, 0, 0, 0, 2]);
        assert_eq!(bytes[1626..], [0xFF; 6]);
    }

    #[test]
    fn addresses_that_are_not_ethernet_are_refused() {
        for length in [0, 5, 7, 32] {
            let mut bytes = request().emit();
            bytes[1560] = length;
            assert!(VfParameters::parse(&bytes).is_err(), "length {length}");
        }
    }

    #[test]
    fn free_vf_has_10_bytes_and_12_with_padding() {
        let free = NicSwitchFreeVfParameters { vf_id: VfId::new(7).unwrap() };
        let mut bytes = free.emit();
        assert_eq!(bytes, [0x80, 1, 10, 0, 0, 0, 0, 0, 7, 0]);
        bytes[2] = 12;
        assert_meaning(&bytes, &free);
        bytes[8..].fill(0xFF);
        assert!(NicSwitchFreeVfParameters::parse(&bytes).is_err());
    }
}
