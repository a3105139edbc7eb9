//! Identifiers of the NIC switch's objects, checked once and then carried as types.
//!
//! The wire uses one bit pattern for several meanings (0xFFFF is the PF in one member and "no VF" in
//! another); here each meaning has its own type and "none" is `Option`.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// Wire value of the PF in an AttachedFunctionId member (NDIS_PF_FUNCTION_ID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_PF_FUNCTION_ID: u16 = 0xFFFF;
/// Wire value of "no VF" in a VFId member (NDIS_INVALID_VF_FUNCTION_ID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_INVALID_VF_FUNCTION_ID: u16 = 0xFFFF;
/// Wire value of "no requestor id" (NDIS_INVALID_RID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_INVALID_RID: u32 = 0xFFFF_FFFF;
/// Wire value of the default VPort (NDIS_DEFAULT_VPORT_ID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_DEFAULT_VPORT_ID: u32 = 0;
/// Wire value of "no VPort" (NDIS_INVALID_VPORT_ID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_INVALID_VPORT_ID: u32 = 0xFFFF_FFFF;
/// Wire value of the default NIC switch (NDIS_DEFAULT_SWITCH_ID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_DEFAULT_SWITCH_ID: u32 = 0;
/// Wire value of "no NIC switch" (NDIS_INVALID_SWITCH_ID, SPEC-NDIS-SRIOV §0.4).
pub const NDIS_INVALID_SWITCH_ID: u32 = 0xFFFF_FFFF;
/// The one receive queue id that exists in SR-IOV mode (NDIS_DEFAULT_RECEIVE_QUEUE_ID).
pub const NDIS_DEFAULT_RECEIVE_QUEUE_ID: u32 = 0;
/// NDIS_DEFAULT_RECEIVE_QUEUE_GROUP_ID.
pub const NDIS_DEFAULT_RECEIVE_QUEUE_GROUP_ID: u32 = 0;
/// NDIS_DEFAULT_RECEIVE_FILTER_ID: "not numbered yet"; filters that exist have ids from 1.
pub const NDIS_DEFAULT_RECEIVE_FILTER_ID: u32 = 0;
/// Queue pairs of the default VPort unless more are asked for (SPEC-NDIS-SRIOV §0.4).
pub const DEFAULT_QUEUE_PAIRS_FOR_DEFAULT_VPORT: u32 = 1;

/// A VF of a PF: zero-based, unique on the switch. 0xFFFF is never a VF id.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct VfId(u16);

impl VfId {
    /// The VF with this zero-based index; `None` for 0xFFFF, which the wire uses for "none" and "PF".
    #[must_use]
    pub const fn new(raw: u16) -> Option<Self> {
        if raw == NDIS_INVALID_VF_FUNCTION_ID { None } else { Some(Self(raw)) }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The value as an index into a table with one entry per VF.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for VfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VF {}", self.0)
    }
}

/// A VPort on a NIC switch. 0 is the default VPort, which exists as long as the switch does.
#[derive(Copy, Clone, Default, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct VPortId(u32);

impl VPortId {
    /// The default VPort: on the PF, always active.
    pub const DEFAULT: Self = Self(NDIS_DEFAULT_VPORT_ID);

    /// The VPort with this number; `None` for 0xFFFFFFFF, the wire's "no VPort".
    #[must_use]
    pub const fn new(raw: u32) -> Option<Self> {
        if raw == NDIS_INVALID_VPORT_ID { None } else { Some(Self(raw)) }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The value as an index into a table with one entry per VPort.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whether this is the default VPort.
    #[must_use]
    pub const fn is_default(self) -> bool {
        self.0 == NDIS_DEFAULT_VPORT_ID
    }
}

impl fmt::Display for VPortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VPort {}", self.0)
    }
}

/// A receive filter, unique on the adapter; never 0, which the wire uses for "not numbered yet".
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct FilterId(core::num::NonZeroU32);

impl FilterId {
    /// The filter with this number; `None` for 0.
    #[must_use]
    pub const fn new(raw: u32) -> Option<Self> {
        match core::num::NonZeroU32::new(raw) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for FilterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter {}", self.0)
    }
}

/// A NIC switch of an adapter. Only the default one, 0, exists in practice.
#[derive(Copy, Clone, Default, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct SwitchId(u32);

impl SwitchId {
    /// The default switch.
    pub const DEFAULT: Self = Self(NDIS_DEFAULT_SWITCH_ID);

    /// The switch with this number; `None` for 0xFFFFFFFF, the wire's "no switch".
    #[must_use]
    pub const fn new(raw: u32) -> Option<Self> {
        if raw == NDIS_INVALID_SWITCH_ID { None } else { Some(Self(raw)) }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SwitchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "switch {}", self.0)
    }
}

/// The PCI function that a VPort is attached to (an AttachedFunctionId member).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub enum FunctionId {
    /// The physical function.
    Pf,
    /// One virtual function.
    Vf(VfId),
}

impl FunctionId {
    /// Reads the wire value: 0xFFFF is the PF, all else a VF.
    #[must_use]
    pub const fn from_wire(raw: u16) -> Self {
        match VfId::new(raw) {
            Some(vf) => Self::Vf(vf),
            None => Self::Pf,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::Pf => NDIS_PF_FUNCTION_ID,
            Self::Vf(vf) => vf.get(),
        }
    }

    /// The VF, when the function is one.
    #[must_use]
    pub const fn vf(self) -> Option<VfId> {
        match self {
            Self::Pf => None,
            Self::Vf(vf) => Some(vf),
        }
    }
}

impl From<VfId> for FunctionId {
    fn from(vf: VfId) -> Self {
        Self::Vf(vf)
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pf => f.write_str("PF"),
            Self::Vf(vf) => vf.fmt(f),
        }
    }
}

/// A PCI requestor id with its segment, as NDIS_MAKE_RID packs it.
///
/// The public documents do not give the layout; SPEC-NDIS-SRIOV §10 chooses
/// `segment << 16 | bus << 8 | function`, so the low 16 bits are the id that PCIe carries.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct RequestorId(u32);

impl RequestorId {
    /// Packs a location (NDIS_MAKE_RID). `function` is the 8-bit ARI function, or device × 8 + function.
    ///
    /// `None` for segment, bus and function all ones, which is NDIS_INVALID_RID.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, function: u8) -> Option<Self> {
        Self::from_wire((segment as u32) << 16 | (bus as u32) << 8 | function as u32)
    }

    /// Reads the wire value; `None` for NDIS_INVALID_RID.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        if raw == NDIS_INVALID_RID { None } else { Some(Self(raw)) }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// PCI segment (domain).
    #[must_use]
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// PCI bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// 8-bit ARI function number (device × 8 + function in non-ARI terms).
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

impl fmt::Display for RequestorId {
    /// `segment:bus:device.function`, as Linux writes a PCI address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = self.function();
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.segment(),
            self.bus(),
            function >> 3,
            function & 7
        )
    }
}

/// An Ethernet MAC address.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xFF; 6]);
    /// 00:00:00:00:00:00: "none".
    pub const ZERO: Self = Self([0; 6]);

    /// The address with these octets, in transmission order.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets, in transmission order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether this is a group address (the broadcast address included).
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this is the broadcast address.
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
    }

    /// Whether all octets are zero.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Whether the address can belong to one station: neither a group address nor zero.
    #[must_use]
    pub const fn is_valid_unicast(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }

    /// Whether the address was chosen locally rather than assigned by its maker.
    #[must_use]
    pub const fn is_locally_administered(self) -> bool {
        self.0[0] & 2 != 0
    }
}

impl From<[u8; 6]> for MacAddress {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl From<MacAddress> for [u8; 6] {
    fn from(mac: MacAddress) -> Self {
        mac.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a MAC address of six octets.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[error("\"{0}\" is not a MAC address; write six hexadecimal octets, such as 02:00:5e:10:00:01")]
pub struct MacAddressError(String);

impl FromStr for MacAddress {
    type Err = MacAddressError;

    /// Accepts `aa:bb:cc:dd:ee:ff` and `aa-bb-cc-dd-ee-ff`, in either case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacAddressError(text.chars().take(40).collect());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

/// A VLAN identifier of IEEE 802.1Q: 1…4094. 0 (priority tag only) and 4095 (reserved) are not VLANs.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
pub struct VlanId(u16);

impl VlanId {
    /// The lowest VLAN id.
    pub const MIN: Self = Self(1);
    /// The highest VLAN id.
    pub const MAX: Self = Self(4094);

    /// The VLAN with this id; `None` outside 1…4094.
    #[must_use]
    pub const fn new(raw: u16) -> Option<Self> {
        if raw >= Self::MIN.0 && raw <= Self::MAX.0 { Some(Self(raw)) } else { None }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VLAN {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_wire_patterns_for_none_are_not_identifiers() {
        assert_eq!(VfId::new(0xFFFF), None);
        assert_eq!(VPortId::new(0xFFFF_FFFF), None);
        assert_eq!(SwitchId::new(0xFFFF_FFFF), None);
        assert_eq!(FilterId::new(0), None);
        assert_eq!(RequestorId::from_wire(0xFFFF_FFFF), None);
        assert_eq!(RequestorId::new(0xFFFF, 0xFF, 0xFF), None);
        assert_eq!(VlanId::new(0), None);
        assert_eq!(VlanId::new(4095), None);
        assert_eq!(FunctionId::from_wire(0xFFFF), FunctionId::Pf);
    }

    #[test]
    fn a_requestor_id_holds_the_pci_address_and_prints_it() {
        let rid = RequestorId::new(0x1234, 0x5E, 0x0A).unwrap();
        assert_eq!(rid.get(), 0x1234_5E0A);
        assert_eq!((rid.segment(), rid.bus(), rid.function()), (0x1234, 0x5E, 0x0A));
        assert_eq!(rid.to_string(), "1234:5e:01.2");
    }

    #[test]
    fn mac_addresses_know_their_kind() {
        assert!(MacAddress::BROADCAST.is_multicast() && MacAddress::BROADCAST.is_broadcast());
        assert!(!MacAddress::ZERO.is_valid_unicast() && !MacAddress::BROADCAST.is_valid_unicast());
        let local = MacAddress::new([2, 0, 0, 0, 0, 1]);
        assert!(local.is_valid_unicast() && local.is_locally_administered());
    }

    #[test]
    fn mac_text_with_wrong_shape_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "02:00-00:00:00:01",
            "+2:00:00:00:00:01",
            "0x:00:00:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn mac_text_round_trips(octets: [u8; 6]) {
            let mac = MacAddress::new(octets);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>(), Ok(mac));
            prop_assert_eq!(mac.to_string().replace(':', "-").to_uppercase().parse::<MacAddress>(), Ok(mac));
        }

        #[test]
        fn any_text_is_parsed_without_panic(text: String) {
            let _ = text.parse::<MacAddress>();
        }

        #[test]
        fn requestor_ids_round_trip(segment: u16, bus: u8, function: u8) {
            if let Some(rid) = RequestorId::new(segment, bus, function) {
                prop_assert_eq!(RequestorId::from_wire(rid.get()), Some(rid));
                prop_assert_eq!((rid.segment(), rid.bus(), rid.function()), (segment, bus, function));
            }
        }

        #[test]
        fn function_ids_round_trip(raw: u16) {
            prop_assert_eq!(FunctionId::from_wire(raw).to_wire(), raw);
        }
    }
}
