//! Offloads: what the adapter can do for a guest, and what the guest wants of it (SPEC-VMBUS §6.1).

use ndis_protocol::NdisObjectHeader;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian::U32};

use crate::ParseError;

/// Object type of the capability structure.
pub const OBJECT_TYPE_OFFLOAD: u8 = 0xA7;
/// Object type of OID_OFFLOAD_ENCAPSULATION's structure.
pub const OBJECT_TYPE_ENCAPSULATION: u8 = 0xA8;
/// The longest TCP packet, headers included, that large send takes, bytes.
pub const MAX_LARGE_SEND: u32 = 0xF53C;
/// The fewest segments for which a guest uses large send.
pub const MIN_LARGE_SEND_SEGMENTS: u32 = 2;

/// Checksums of one direction.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct ChecksumCapabilities {
    /// The IPv4 header.
    pub ipv4: bool,
    /// TCP over IPv4.
    pub tcp4: bool,
    /// UDP over IPv4.
    pub udp4: bool,
    /// TCP over IPv6.
    pub tcp6: bool,
    /// UDP over IPv6.
    pub udp6: bool,
}

impl ChecksumCapabilities {
    /// All of them.
    pub const ALL: Self = Self { ipv4: true, tcp4: true, udp4: true, tcp6: true, udp6: true };

    /// Those that both sets have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            ipv4: self.ipv4 && other.ipv4,
            tcp4: self.tcp4 && other.tcp4,
            udp4: self.udp4 && other.udp4,
            tcp6: self.tcp6 && other.tcp6,
            udp6: self.udp6 && other.udp6,
        }
    }
}

/// What the adapter does: the value of OID_TCP_OFFLOAD_CURRENT_CONFIG and _HARDWARE_CAPABILITIES.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct OffloadCapabilities {
    /// Checksums filled in on frames from the guest.
    pub transmit: ChecksumCapabilities,
    /// Checksums checked on frames to the guest.
    pub receive: ChecksumCapabilities,
    /// Large send version 2 over IPv4.
    pub large_send_v4: bool,
    /// Large send version 2 over IPv6.
    pub large_send_v6: bool,
}

#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NdisTcpIpChecksumOffload {
    ip4_transmit_encapsulation: U32,
    ip4_transmit: U32,
    ip4_receive_encapsulation: U32,
    ip4_receive: U32,
    ip6_transmit_encapsulation: U32,
    ip6_transmit: U32,
    ip6_receive_encapsulation: U32,
    ip6_receive: U32,
}

#[derive(Copy, Clone, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NdisTcpLargeSendOffloadV2 {
    ip4_encapsulation: U32,
    ip4_max_size: U32,
    ip4_min_segments: U32,
    ip6_encapsulation: U32,
    ip6_max_size: U32,
    ip6_min_segments: U32,
    ip6_options: U32,
}

/// NDIS_OFFLOAD up to revision 3. IPsec, large send version 1, receive coalescing and encapsulation are not offered,
/// and are zero.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NdisOffload {
    header: NdisObjectHeader,
    checksum: NdisTcpIpChecksumOffload,
    large_send_v1: [U32; 4],
    ipsec_v1: [U32; 7],
    large_send_v2: NdisTcpLargeSendOffloadV2,
    flags: U32,
    // Revision 2.
    ipsec_v2: [U32; 8],
    // Revision 3.
    receive_coalescing: U32,
    encapsulated_packet_task_offload: [U32; 2],
}

const _: () = {
    assert!(size_of::<NdisOffload>() == OffloadCapabilities::SIZE);
    assert!(core::mem::offset_of!(NdisOffload, large_send_v2) == 80);
    assert!(core::mem::offset_of!(NdisOffload, ipsec_v2) == OffloadCapabilities::SIZE_REVISION_1);
};

/// NDIS_ENCAPSULATION_IEEE_802_3.
const ENCAPSULATION_8023: u32 = 2;
/// Two bits for each ability, of which the value 1 is "supported".
const IP_OPTIONS: u32 = 1 << 0;
const TCP_OPTIONS: u32 = 1 << 2;
const TCP: u32 = 1 << 4;
const UDP: u32 = 1 << 6;
const IP_CHECKSUM: u32 = 1 << 8;

const fn bit(set: bool, bits: u32) -> u32 {
    if set { bits } else { 0 }
}

impl ChecksumCapabilities {
    const fn ip4(self) -> u32 {
        bit(self.ipv4, IP_CHECKSUM | IP_OPTIONS)
            | bit(self.tcp4, TCP | TCP_OPTIONS)
            | bit(self.udp4, UDP)
    }

    const fn ip6(self) -> u32 {
        bit(self.tcp6, TCP | TCP_OPTIONS) | bit(self.udp6, UDP)
    }

    const fn from_bits(ip4: u32, ip6: u32) -> Self {
        Self {
            ipv4: ip4 & IP_CHECKSUM != 0,
            tcp4: ip4 & TCP != 0,
            udp4: ip4 & UDP != 0,
            tcp6: ip6 & TCP != 0,
            udp6: ip6 & UDP != 0,
        }
    }
}

impl OffloadCapabilities {
    /// Bytes of revision 3.
    pub const SIZE: usize = 156;
    /// Bytes of revision 1.
    pub const SIZE_REVISION_1: usize = 112;
    /// Everything that this structure can name.
    pub const ALL: Self = Self {
        transmit: ChecksumCapabilities::ALL,
        receive: ChecksumCapabilities::ALL,
        large_send_v4: true,
        large_send_v6: true,
    };

    /// The structure's bytes, in revision 3.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::SIZE] {
        let encapsulation = |bits: u32| U32::new(if bits == 0 { 0 } else { ENCAPSULATION_8023 });
        let (tx4, tx6) = (self.transmit.ip4(), self.transmit.ip6());
        let (rx4, rx6) = (self.receive.ip4(), self.receive.ip6());
        let (v4, v6) = (self.large_send_v4, self.large_send_v6);
        let wire = NdisOffload {
            header: NdisObjectHeader {
                object_type: OBJECT_TYPE_OFFLOAD,
                revision: 3,
                size: 156.into(),
            },
            checksum: NdisTcpIpChecksumOffload {
                ip4_transmit_encapsulation: encapsulation(tx4),
                ip4_transmit: tx4.into(),
                ip4_receive_encapsulation: encapsulation(rx4),
                ip4_receive: rx4.into(),
                ip6_transmit_encapsulation: encapsulation(tx6),
                ip6_transmit: tx6.into(),
                ip6_receive_encapsulation: encapsulation(rx6),
                ip6_receive: rx6.into(),
            },
            large_send_v1: [0.into(); 4],
            ipsec_v1: [0.into(); 7],
            large_send_v2: NdisTcpLargeSendOffloadV2 {
                ip4_encapsulation: bit(v4, ENCAPSULATION_8023).into(),
                ip4_max_size: bit(v4, MAX_LARGE_SEND).into(),
                ip4_min_segments: bit(v4, MIN_LARGE_SEND_SEGMENTS).into(),
                ip6_encapsulation: bit(v6, ENCAPSULATION_8023).into(),
                ip6_max_size: bit(v6, MAX_LARGE_SEND).into(),
                ip6_min_segments: bit(v6, MIN_LARGE_SEND_SEGMENTS).into(),
                ip6_options: bit(v6, IP_OPTIONS | TCP_OPTIONS).into(),
            },
            flags: 0.into(),
            ipsec_v2: [0.into(); 8],
            receive_coalescing: 0.into(),
            encapsulated_packet_task_offload: [0.into(); 2],
        };
        zerocopy::transmute!(wire)
    }

    /// What the structure says, in any revision.
    ///
    /// # Errors
    /// It is shorter than revision 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.len() < Self::SIZE_REVISION_1 {
            let (needed, got) = (Self::SIZE_REVISION_1, bytes.len());
            return Err(ParseError::TooShort { message: "NDIS_OFFLOAD", needed, got });
        }
        let mut whole = [0; Self::SIZE];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        let wire: NdisOffload = zerocopy::transmute!(whole);
        let sum = &wire.checksum;
        Ok(Self {
            transmit: ChecksumCapabilities::from_bits(
                sum.ip4_transmit.get(),
                sum.ip6_transmit.get(),
            ),
            receive: ChecksumCapabilities::from_bits(sum.ip4_receive.get(), sum.ip6_receive.get()),
            large_send_v4: wire.large_send_v2.ip4_encapsulation.get() & ENCAPSULATION_8023 != 0,
            large_send_v6: wire.large_send_v2.ip6_encapsulation.get() & ENCAPSULATION_8023 != 0,
        })
    }

    /// What remains on after a guest's wish, of what `self` can do. `current` is what is on now.
    #[must_use]
    pub const fn with_parameters(&self, current: &Self, wish: &OffloadParameters) -> Self {
        let (mut tx, mut rx) = (current.transmit, current.receive);
        (tx.ipv4, rx.ipv4) = wish.ipv4.apply(tx.ipv4, rx.ipv4);
        (tx.tcp4, rx.tcp4) = wish.tcp4.apply(tx.tcp4, rx.tcp4);
        (tx.udp4, rx.udp4) = wish.udp4.apply(tx.udp4, rx.udp4);
        (tx.tcp6, rx.tcp6) = wish.tcp6.apply(tx.tcp6, rx.tcp6);
        (tx.udp6, rx.udp6) = wish.udp6.apply(tx.udp6, rx.udp6);
        let large_send_v4 = wish.large_send_v4.apply(current.large_send_v4);
        let large_send_v6 = wish.large_send_v6.apply(current.large_send_v6);
        Self {
            transmit: tx.and(self.transmit),
            receive: rx.and(self.receive),
            large_send_v4: large_send_v4 && self.large_send_v4,
            large_send_v6: large_send_v6 && self.large_send_v6,
        }
    }
}

/// A wish for one checksum.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
#[repr(u8)]
pub enum ChecksumSetting {
    /// As it is.
    #[default]
    NoChange = 0,
    /// Off.
    Off = 1,
    /// For sending only.
    Transmit = 2,
    /// For receiving only.
    Receive = 3,
    /// Both ways.
    Both = 4,
}

impl ChecksumSetting {
    const fn apply(self, transmit: bool, receive: bool) -> (bool, bool) {
        match self {
            Self::NoChange => (transmit, receive),
            Self::Off => (false, false),
            Self::Transmit => (true, false),
            Self::Receive => (false, true),
            Self::Both => (true, true),
        }
    }

    const fn from_wire(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::NoChange),
            1 => Some(Self::Off),
            2 => Some(Self::Transmit),
            3 => Some(Self::Receive),
            4 => Some(Self::Both),
            _ => None,
        }
    }

    /// From the digit of an RNDIS configuration parameter: bit 0 sending, bit 1 receiving.
    #[must_use]
    pub const fn from_keyword(digit: u32) -> Option<Self> {
        match digit {
            0 => Some(Self::Off),
            1 => Some(Self::Transmit),
            2 => Some(Self::Receive),
            3 => Some(Self::Both),
            _ => None,
        }
    }
}

/// A wish for large send.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
#[repr(u8)]
pub enum LargeSendSetting {
    /// As it is.
    #[default]
    NoChange = 0,
    /// Off.
    Off = 1,
    /// On.
    On = 2,
}

impl LargeSendSetting {
    const fn apply(self, current: bool) -> bool {
        match self {
            Self::NoChange => current,
            Self::Off => false,
            Self::On => true,
        }
    }

    const fn from_wire(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::NoChange),
            1 => Some(Self::Off),
            2 => Some(Self::On),
            _ => None,
        }
    }
}

/// What a guest wants: the value of OID_TCP_OFFLOAD_PARAMETERS.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct OffloadParameters {
    /// The IPv4 header checksum.
    pub ipv4: ChecksumSetting,
    /// TCP over IPv4.
    pub tcp4: ChecksumSetting,
    /// UDP over IPv4.
    pub udp4: ChecksumSetting,
    /// TCP over IPv6.
    pub tcp6: ChecksumSetting,
    /// UDP over IPv6.
    pub udp6: ChecksumSetting,
    /// Large send version 2 over IPv4.
    pub large_send_v4: LargeSendSetting,
    /// Large send version 2 over IPv6.
    pub large_send_v6: LargeSendSetting,
}

impl OffloadParameters {
    /// Bytes of revision 1, the least there may be.
    pub const SIZE: usize = 20;
    const NAME: &str = "NDIS_OFFLOAD_PARAMETERS";
    const OBJECT_TYPE: u8 = 0x80;

    /// What a guest's bytes say.
    ///
    /// # Errors
    /// They are too short, have another object type or revision 0, or a setting that does not exist.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let message = Self::NAME;
        let Some(fields) = bytes.first_chunk::<{ Self::SIZE }>() else {
            let got = bytes.len();
            return Err(ParseError::TooShort { message, needed: Self::SIZE, got });
        };
        let &[
            kind,
            revision,
            size_low,
            size_high,
            ip4,
            tcp4,
            udp4,
            tcp6,
            udp6,
            _,
            _,
            lso4,
            lso6,
            ..,
        ] = fields;
        let wrong = |field, value: u16| ParseError::Field { message, field, value: value.into() };
        if kind != Self::OBJECT_TYPE {
            return Err(wrong("object_type", u16::from(kind)));
        }
        let size = u16::from_le_bytes([size_low, size_high]);
        if revision == 0 || usize::from(size) < Self::SIZE {
            return Err(wrong("size", size));
        }
        let sum = |value: u8| {
            ChecksumSetting::from_wire(value).ok_or(wrong("checksum", u16::from(value)))
        };
        let lso = |value: u8| {
            LargeSendSetting::from_wire(value).ok_or(wrong("large_send", u16::from(value)))
        };
        Ok(Self {
            ipv4: sum(ip4)?,
            tcp4: sum(tcp4)?,
            udp4: sum(udp4)?,
            tcp6: sum(tcp6)?,
            udp6: sum(udp6)?,
            large_send_v4: lso(lso4)?,
            large_send_v6: lso(lso6)?,
        })
    }

    /// The structure's bytes, in revision 1.
    #[must_use]
    pub const fn emit(&self) -> [u8; Self::SIZE] {
        [
            Self::OBJECT_TYPE,
            1,
            20,
            0,
            self.ipv4 as u8,
            self.tcp4 as u8,
            self.udp4 as u8,
            self.tcp6 as u8,
            self.udp6 as u8,
            0,
            0,
            self.large_send_v4 as u8,
            self.large_send_v6 as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]
    }
}

/// OID_OFFLOAD_ENCAPSULATION: which framing the guest's packets have. Returns whether it is plain 802.3 for both IP
/// versions, the only one there is.
///
/// # Errors
/// The structure is too short or no such structure.
pub fn parse_encapsulation(bytes: &[u8]) -> Result<bool, ParseError> {
    const NAME: &str = "NDIS_OFFLOAD_ENCAPSULATION";
    #[derive(Copy, Clone, FromBytes, Immutable, KnownLayout)]
    #[repr(C)]
    struct Wire {
        header: NdisObjectHeader,
        ip4: [U32; 3],
        ip6: [U32; 3],
    }
    let wire: Wire = crate::error::front(NAME, bytes)?;
    if wire.header.object_type != OBJECT_TYPE_ENCAPSULATION {
        let value = u64::from(wire.header.object_type);
        return Err(ParseError::Field { message: NAME, field: "object_type", value });
    }
    // Enabled (1 is on), encapsulation type, header size.
    let plain = |[enabled, kind, size]: [U32; 3]| {
        enabled.get() != 1 || (kind.get() & ENCAPSULATION_8023 != 0 && size.get() == 14)
    };
    Ok(plain(wire.ip4) && plain(wire.ip6))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sums() -> impl Strategy<Value = ChecksumCapabilities> {
        any::<[bool; 5]>().prop_map(|[ipv4, tcp4, udp4, tcp6, udp6]| ChecksumCapabilities {
            ipv4,
            tcp4,
            udp4,
            tcp6,
            udp6,
        })
    }

    fn capabilities() -> impl Strategy<Value = OffloadCapabilities> {
        (sums(), sums(), any::<[bool; 2]>()).prop_map(
            |(transmit, receive, [large_send_v4, large_send_v6])| OffloadCapabilities {
                transmit,
                receive,
                large_send_v4,
                large_send_v6,
            },
        )
    }

    fn parameters() -> impl Strategy<Value = OffloadParameters> {
        let sum = || (0..5u8).prop_map(|v| ChecksumSetting::from_wire(v).unwrap());
        let lso = || (0..3u8).prop_map(|v| LargeSendSetting::from_wire(v).unwrap());
        (sum(), sum(), sum(), sum(), sum(), lso(), lso()).prop_map(
            |(ipv4, tcp4, udp4, tcp6, udp6, large_send_v4, large_send_v6)| OffloadParameters {
                ipv4,
                tcp4,
                udp4,
                tcp6,
                udp6,
                large_send_v4,
                large_send_v6,
            },
        )
    }

    proptest! {
        #[test]
        fn structures_are_parsed_as_emitted(caps in capabilities(), wish in parameters()) {
            let bytes = caps.emit();
            prop_assert_eq!(OffloadCapabilities::parse(&bytes), Ok(caps));
            prop_assert_eq!(OffloadCapabilities::parse(&bytes[..112]), Ok(caps));
            prop_assert_eq!(OffloadParameters::parse(&wish.emit()), Ok(wish));
        }

        #[test]
        fn a_wish_never_turns_on_what_cannot_be_done(
            can in capabilities(), now in capabilities(), wish in parameters(),
        ) {
            let result = can.with_parameters(&now, &wish);
            prop_assert_eq!(result.transmit.and(can.transmit), result.transmit);
            prop_assert_eq!(result.receive.and(can.receive), result.receive);
            prop_assert!(can.large_send_v4 || !result.large_send_v4);
            prop_assert!(can.large_send_v6 || !result.large_send_v6);
            let same = OffloadParameters::default();
            prop_assert_eq!(OffloadCapabilities::ALL.with_parameters(&now, &same), now);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..180)) {
            let _ = OffloadCapabilities::parse(&bytes);
            let _ = OffloadParameters::parse(&bytes);
            let _ = parse_encapsulation(&bytes);
        }
    }

    #[test]
    fn the_capability_structure_says_what_a_linux_guest_looks_for() {
        let bytes = OffloadCapabilities::ALL.emit();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..4], [0xA7, 3, 156, 0]);
        assert_eq!(word(8), 0x155, "IPv4: header with options, TCP with options, UDP");
        assert_eq!(word(24), 0x54, "IPv6: TCP with options, UDP");
        assert_eq!((word(80), word(84), word(88)), (2, 0xF53C, 2), "large send over IPv4");
        assert_eq!((word(92), word(96), word(100), word(104)), (2, 0xF53C, 2, 5), "and over IPv6");
    }

    #[test]
    fn wishes_with_settings_that_do_not_exist_are_refused() {
        let good = OffloadParameters::default().emit();
        for (at, value) in [(0, 0x81), (1, 0), (2, 19), (4, 5), (8, 0xFF), (11, 3), (12, 4)] {
            let mut bytes = good;
            bytes[at] = value;
            assert!(OffloadParameters::parse(&bytes).is_err(), "{value} at {at}");
        }
        assert!(OffloadParameters::parse(&good[..19]).is_err());
    }

    #[test]
    fn only_plain_ethernet_is_an_encapsulation_here() {
        let mut bytes = [0u8; 28];
        bytes[..4].copy_from_slice(&[0xA8, 1, 28, 0]);
        for at in [4, 16] {
            bytes[at] = 1;
            bytes[at + 4] = 2;
            bytes[at + 8] = 14;
        }
        assert_eq!(parse_encapsulation(&bytes), Ok(true));
        bytes[12] = 18;
        assert_eq!(parse_encapsulation(&bytes), Ok(false));
        bytes[0] = 0x80;
        assert!(parse_encapsulation(&bytes).is_err());
    }
}
