//! RNDIS PACKET: one frame with its per-packet information (SPEC-VMBUS §6).
//!
//! [`RndisPacket::parse`] looks at a local copy of the message's beginning and yields where the frame lies and what
//! is said of it; it never looks at the frame. [`PacketLayout`] writes the beginning.

use core::ops::Range;

use crate::{ParseError, rndis::TYPE_PACKET};

/// Bytes of the message before its per-packet information: header and body.
pub const PACKET_HEADER_SIZE: usize = 44;
/// Offsets in the body count from here.
pub const BODY_OFFSET: u32 = 8;
/// Where a server puts the frame in a suballocation, bytes (SPEC-VMBUS §6, Receive layout).
pub const RECEIVE_DATA_OFFSET: u32 = 256;
/// Bytes of a suballocation that are kept free at its end because of a bug in one client (SPEC-VMBUS §5.4).
pub const RECEIVE_TAIL: u32 = 36;
/// Bytes of an element of per-packet information before its data.
pub const PPI_HEADER_SIZE: usize = 12;
/// The most bytes of per-packet information that a sender here writes.
pub const MAX_PPI_BYTES: usize = 5 * (PPI_HEADER_SIZE + 4);

const TYPE_CHECKSUM: u32 = 0;
const TYPE_LSO: u32 = 2;
const TYPE_VLAN: u32 = 6;
const TYPE_HASH: u32 = 8;
const TYPE_PACKET_ID: u32 = 1;
const INTERNAL: u32 = 1 << 31;
const PACKET_ID_VERSION: u8 = 1;

/// Checksums to be filled in (per-packet information 0, from a guest).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct TxChecksum(pub u32);

impl TxChecksum {
    const IPV4: u32 = 1 << 0;
    const IPV6: u32 = 1 << 1;
    const TCP: u32 = 1 << 2;
    const UDP: u32 = 1 << 3;
    const IP_HEADER: u32 = 1 << 4;

    /// Over IPv4, with the transport header at `offset` (at most 1023).
    #[must_use]
    pub const fn ipv4(offset: u16) -> Self {
        Self(Self::IPV4 | (offset as u32 & 0x3FF) << 16)
    }

    /// Over IPv6, with the transport header at `offset` (at most 1023).
    #[must_use]
    pub const fn ipv6(offset: u16) -> Self {
        Self(Self::IPV6 | (offset as u32 & 0x3FF) << 16)
    }

    /// And the TCP checksum.
    #[must_use]
    pub const fn with_tcp(self) -> Self {
        Self(self.0 | Self::TCP)
    }

    /// And the UDP checksum.
    #[must_use]
    pub const fn with_udp(self) -> Self {
        Self(self.0 | Self::UDP)
    }

    /// And the IPv4 header checksum.
    #[must_use]
    pub const fn with_ip_header(self) -> Self {
        Self(self.0 | Self::IP_HEADER)
    }

    /// Whether the packet is IPv4.
    #[must_use]
    pub const fn is_ipv4(self) -> bool {
        self.0 & Self::IPV4 != 0
    }

    /// Whether the packet is IPv6.
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        self.0 & Self::IPV6 != 0
    }

    /// Whether the TCP checksum is wanted.
    #[must_use]
    pub const fn tcp(self) -> bool {
        self.0 & Self::TCP != 0
    }

    /// Whether the UDP checksum is wanted.
    #[must_use]
    pub const fn udp(self) -> bool {
        self.0 & Self::UDP != 0
    }

    /// Whether the IPv4 header checksum is wanted.
    #[must_use]
    pub const fn ip_header(self) -> bool {
        self.0 & Self::IP_HEADER != 0
    }

    /// Where the transport header begins, bytes from the frame's start; 0 if it is not said.
    #[must_use]
    pub const fn transport_offset(self) -> u16 {
        low16(self.0 >> 16 & 0x3FF)
    }
}

const fn low16(value: u32) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

bitflags::bitflags! {
    /// What is known of a received frame's checksums (per-packet information 0, from a server).
    #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
    pub struct RxChecksum: u32 {
        /// The TCP checksum is wrong.
        const TCP_FAILED = 1 << 0;
        /// The UDP checksum is wrong.
        const UDP_FAILED = 1 << 1;
        /// The IPv4 header checksum is wrong.
        const IP_FAILED = 1 << 2;
        /// The TCP checksum is right.
        const TCP_SUCCEEDED = 1 << 3;
        /// The UDP checksum is right.
        const UDP_SUCCEEDED = 1 << 4;
        /// The IPv4 header checksum is right.
        const IP_SUCCEEDED = 1 << 5;
        /// The frame never left the host; its checksums may not be filled in.
        const LOOPBACK = 1 << 6;
        /// The TCP checksum in the frame is not the one computed.
        const TCP_VALUE_INVALID = 1 << 7;
        /// The IPv4 header checksum in the frame is not the one computed.
        const IP_VALUE_INVALID = 1 << 8;
        /// Bits that are not known keep their value.
        const _ = !0;
    }
}

/// A large TCP send to be cut into segments (per-packet information 2).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct LargeSend(pub u32);

impl LargeSend {
    /// Version 2: `mss` payload bytes a segment (below 2^20), the TCP header at `tcp_offset` (below 1024).
    #[must_use]
    pub const fn v2(mss: u32, tcp_offset: u16, ipv6: bool) -> Self {
        Self(mss & 0xF_FFFF | (tcp_offset as u32 & 0x3FF) << 20 | 1 << 30 | (ipv6 as u32) << 31)
    }

    /// Payload bytes of a full segment.
    #[must_use]
    pub const fn mss(self) -> u32 {
        self.0 & 0xF_FFFF
    }

    /// Where the TCP header begins, bytes from the frame's start.
    #[must_use]
    pub const fn tcp_offset(self) -> u16 {
        low16(self.0 >> 20 & 0x3FF)
    }

    /// Whether it is version 2, the one that is offered.
    #[must_use]
    pub const fn is_v2(self) -> bool {
        self.0 & 1 << 30 != 0
    }

    /// Whether the packet is IPv6.
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        self.0 & 1 << 31 != 0
    }
}

/// An 802.1Q tag that is not in the frame (per-packet information 6). Its layout is not that of a TCI.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct VlanInfo(pub u32);

impl VlanInfo {
    /// From a TCI as it stands in a tag: priority 15..13, DEI 12, VLAN id 11..0.
    #[must_use]
    pub const fn from_tci(tci: u16) -> Self {
        let tci = tci as u32;
        Self(tci >> 13 | (tci >> 12 & 1) << 3 | (tci & 0xFFF) << 4)
    }

    /// The TCI as it stands in a tag.
    #[must_use]
    pub const fn tci(self) -> u16 {
        low16((self.0 & 7) << 13 | (self.0 >> 3 & 1) << 12 | (self.0 >> 4 & 0xFFF))
    }
}

/// Which packet of a coalesced group this is (per-packet information "internal 1"; RSC over VMBus).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct PacketId {
    /// Bit 0: one of several; bit 1: the first of them; bit 2: the last.
    pub flags: u8,
    /// The group.
    pub id: u16,
}

impl PacketId {
    /// One of several packets.
    pub const MULTI: u8 = 1;
    /// The first of them.
    pub const FIRST: u8 = 2;
    /// The last of them.
    pub const LAST: u8 = 4;
}

/// What is said of a packet. The first element of each type counts.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct PerPacketInfo {
    /// Checksums: [`TxChecksum`] from a guest, [`RxChecksum`] from a server.
    pub checksum: Option<u32>,
    /// Large send.
    pub large_send: Option<LargeSend>,
    /// Tag.
    pub vlan: Option<VlanInfo>,
    /// Hash of the flow, as the sender computed it.
    pub hash: Option<u32>,
    /// Coalesced group.
    pub packet_id: Option<PacketId>,
}

/// A PACKET message as its header describes it.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct RndisPacket {
    /// Bytes of the message; the next one of a batch begins behind it.
    pub message_length: u32,
    /// Where the frame is, bytes from the message's start; it lies in the message.
    pub data: Range<u32>,
    /// What is said of it.
    pub info: PerPacketInfo,
}

const NAME: &str = "PACKET";

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

const fn field(field: &'static str, value: u32) -> ParseError {
    ParseError::Field { message: NAME, field, value: value as u64 }
}

impl RndisPacket {
    /// Reads the message whose first bytes are `start` (a local copy), of which `available` bytes exist in all.
    ///
    /// The per-packet information must lie in `start`: where it does not, the header is split, which is refused.
    ///
    /// # Errors
    /// The message is no PACKET, does not fit in `available`, has out-of-band data or a VC, or offsets, lengths or
    /// elements of per-packet information that point outside of the message or make no sense.
    #[inline]
    pub fn parse(start: &[u8], available: u32) -> Result<Self, ParseError> {
        let too_short =
            ParseError::TooShort { message: NAME, needed: PACKET_HEADER_SIZE, got: start.len() };
        let header: &[u8; PACKET_HEADER_SIZE] = start.first_chunk().ok_or(too_short)?;
        let words: [u32; 11] = core::array::from_fn(|i| word(header, i * 4).unwrap_or(0));
        let [kind, length, data_offset, data_length, _, oob_length, oob_count, ppi_offset, ..] =
            words;
        let [.., ppi_length, vc_handle, _] = words;
        if kind != TYPE_PACKET {
            return Err(ParseError::MessageType(kind));
        }
        if length < BODY_OFFSET + 36 || length > available {
            return Err(field("length", length));
        }
        let body_length = length - BODY_OFFSET;
        if oob_length | oob_count | vc_handle != 0 {
            return Err(field("oob_or_vc", oob_length | oob_count | vc_handle));
        }
        let range = |name, offset: u32, length: u32| match offset.checked_add(length) {
            Some(end) if end <= body_length => Ok(BODY_OFFSET + offset..BODY_OFFSET + end),
            _ => Err(ParseError::Range {
                message: NAME,
                field: name,
                offset,
                length,
                available: body_length as usize,
            }),
        };
        let data = range("data", data_offset, data_length)?;
        let info = if ppi_length == 0 {
            PerPacketInfo::default()
        } else {
            let at = range("per_packet_info", ppi_offset, ppi_length)?;
            let elements = start
                .get(at.start as usize..at.end as usize)
                .ok_or(field("per_packet_info_split", at.end))?;
            PerPacketInfo::parse(elements)?
        };
        Ok(Self { message_length: length, data, info })
    }
}

impl PerPacketInfo {
    /// Walks the elements.
    #[inline]
    fn parse(mut elements: &[u8]) -> Result<Self, ParseError> {
        let mut info = Self::default();
        while !elements.is_empty() {
            let (Some(size), Some(kind), Some(offset)) =
                (word(elements, 0), word(elements, 4), word(elements, 8))
            else {
                return Err(field("per_packet_info.size", 0));
            };
            // A size of 0 would have us walk for ever; offsets point at data inside the element.
            let (element, rest) = match elements.split_at_checked(size as usize) {
                Some(split) if size as usize >= PPI_HEADER_SIZE => split,
                _ => return Err(field("per_packet_info.size", size)),
            };
            if (offset as usize) < PPI_HEADER_SIZE || offset > size {
                return Err(field("per_packet_info.offset", offset));
            }
            elements = rest;
            let value = word(element, offset as usize);
            match (kind, value) {
                (TYPE_CHECKSUM, Some(value)) => info.checksum = info.checksum.or(Some(value)),
                (TYPE_LSO, Some(value)) => {
                    info.large_send = info.large_send.or(Some(LargeSend(value)));
                }
                (TYPE_VLAN, Some(value)) => info.vlan = info.vlan.or(Some(VlanInfo(value))),
                (TYPE_HASH, Some(value)) => info.hash = info.hash.or(Some(value)),
                (TYPE_CHECKSUM | TYPE_LSO | TYPE_VLAN, None) => {
                    return Err(field("per_packet_info.size", size));
                }
                (kind, Some(value)) if kind == INTERNAL | TYPE_PACKET_ID => {
                    let [version, flags, low, high] = value.to_le_bytes();
                    if version == PACKET_ID_VERSION && info.packet_id.is_none() {
                        let id = u16::from_le_bytes([low, high]);
                        info.packet_id = Some(PacketId { flags, id });
                    }
                }
                // Types that are of no interest here; receivers pass them over.
                _ => {}
            }
        }
        Ok(info)
    }

    /// Bytes that the elements take.
    #[inline]
    #[must_use]
    pub fn emitted_length(&self) -> u32 {
        let count = u32::from(self.checksum.is_some())
            + u32::from(self.large_send.is_some())
            + u32::from(self.vlan.is_some())
            + u32::from(self.hash.is_some())
            + u32::from(self.packet_id.is_some());
        count * 16
    }
}

/// Where a sender puts what in a PACKET message.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct PacketLayout {
    /// Bytes of the whole message.
    pub message_length: u32,
    /// Where the frame begins, bytes from the message's start.
    pub data_offset: u32,
    /// Bytes of the frame.
    pub data_length: u32,
}

impl PacketLayout {
    /// The frame right behind the elements of `info`; nothing behind it.
    #[must_use]
    pub fn packed(info: &PerPacketInfo, data_length: u32) -> Self {
        let data_offset = 44 + info.emitted_length();
        Self { message_length: data_offset.saturating_add(data_length), data_offset, data_length }
    }

    /// As a server lays a frame out in a suballocation of `size` bytes.
    #[must_use]
    pub const fn received(data_length: u32, size: u32) -> Self {
        Self { message_length: size, data_offset: RECEIVE_DATA_OFFSET, data_length }
    }

    /// Writes header and per-packet information to the front of `out`; returns how many bytes that are, or `None`
    /// if they do not fit in `out` or before the frame.
    #[inline]
    pub fn emit(&self, info: &PerPacketInfo, out: &mut [u8]) -> Option<usize> {
        let ppi_length = info.emitted_length();
        let end = PACKET_HEADER_SIZE + ppi_length as usize;
        let out = out.get_mut(..end)?;
        if end > self.data_offset as usize {
            return None;
        }
        let (header, mut elements) = out.split_at_mut(PACKET_HEADER_SIZE);
        let ppi_offset = if ppi_length == 0 { 0 } else { 36 };
        let words = [
            TYPE_PACKET,
            self.message_length,
            self.data_offset - BODY_OFFSET,
            self.data_length,
            0,
            0,
            0,
            ppi_offset,
            ppi_length,
            0,
            0,
        ];
        for (target, word) in header.chunks_exact_mut(4).zip(words) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        let mut put = |kind: u32, value: u32| {
            let taken = core::mem::take(&mut elements);
            let (element, rest) = taken.split_at_mut_checked(16).unwrap_or_default();
            elements = rest;
            for (target, word) in element.chunks_exact_mut(4).zip([16, kind, 12, value]) {
                target.copy_from_slice(&word.to_le_bytes());
            }
        };
        if let Some(value) = info.checksum {
            put(TYPE_CHECKSUM, value);
        }
        if let Some(value) = info.large_send {
            put(TYPE_LSO, value.0);
        }
        if let Some(value) = info.vlan {
            put(TYPE_VLAN, value.0);
        }
        if let Some(value) = info.hash {
            put(TYPE_HASH, value);
        }
        if let Some(PacketId { flags, id }) = info.packet_id {
            let [low, high] = id.to_le_bytes();
            put(
                INTERNAL | TYPE_PACKET_ID,
                u32::from_le_bytes([PACKET_ID_VERSION, flags, low, high]),
            );
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn info() -> impl Strategy<Value = PerPacketInfo> {
        let id = any::<(u8, u16)>().prop_map(|(flags, id)| PacketId { flags, id });
        (
            option::of(any::<u32>()),
            option::of(any::<u32>().prop_map(LargeSend)),
            option::of(any::<u32>().prop_map(VlanInfo)),
            option::of(any::<u32>()),
            option::of(id),
        )
            .prop_map(|(checksum, large_send, vlan, hash, packet_id)| PerPacketInfo {
                checksum,
                large_send,
                vlan,
                hash,
                packet_id,
            })
    }

    fn emit(info: &PerPacketInfo, layout: PacketLayout) -> Vec<u8> {
        let mut bytes = vec![0; layout.message_length as usize];
        layout.emit(info, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn packets_are_parsed_as_emitted(info in info(), length in 0..2000u32, more in 0..100u32) {
            let layout = PacketLayout::packed(&info, length);
            let bytes = emit(&info, layout);
            let packet = RndisPacket::parse(&bytes, layout.message_length + more).unwrap();
            prop_assert_eq!(packet.info, info);
            prop_assert_eq!(packet.message_length, layout.message_length);
            prop_assert_eq!(packet.data, layout.data_offset..layout.data_offset + length);

            let layout = PacketLayout::received(length, 256 + 2000 + 36);
            let packet = RndisPacket::parse(&emit(&info, layout), layout.message_length).unwrap();
            prop_assert_eq!(packet.data, 256..256 + length);
        }

        #[test]
        fn random_headers_never_panic_and_point_into_the_message(
            words in vec(prop_oneof![0..200u32, any::<u32>()], 10..40), available in 0..300u32,
        ) {
            let words = [1, available].into_iter().chain(words);
            let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            if let Ok(packet) = RndisPacket::parse(&bytes, available) {
                prop_assert!(packet.data.start <= packet.data.end);
                prop_assert!(packet.data.end <= packet.message_length);
                prop_assert!(packet.message_length <= available);
            }
        }

        #[test]
        fn random_elements_end(
            words in vec(prop_oneof![0..20u32, any::<u32>()], 0..30), cut in 0..4usize
        ) {
            let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = PerPacketInfo::parse(&bytes);
        }

        #[test]
        fn a_tag_keeps_its_bits(tci: u16) {
            prop_assert_eq!(VlanInfo::from_tci(tci).tci(), tci);
        }
    }

    fn with_ppi(ppi: &[u32]) -> Vec<u8> {
        let ppi_length = ppi.len() as u32 * 4;
        let words = [1, 44 + ppi_length, 36, 0, 0, 0, 0, 36, ppi_length, 0, 0];
        words.into_iter().chain(ppi.iter().copied()).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn elements_of_size_zero_or_beyond_the_message_are_refused() {
        for ppi in [
            &[0, 0, 12, 0][..],
            &[16, 0, 12, 0, 0, 0, 12],
            &[11, 0, 12, 0],
            &[17, 0, 12, 0],
            &[u32::MAX, 0, 12, 0],
            &[16, 0, 11, 0],
            &[16, 0, 17, 0],
            &[16, 0, 14, 0],
            &[12, 0, 12],
            &[16, 0],
        ] {
            let bytes = with_ppi(ppi);
            let error = RndisPacket::parse(&bytes, bytes.len() as u32).unwrap_err();
            assert!(matches!(error, ParseError::Field { .. }), "{ppi:?}: {error}");
        }
        let bytes = with_ppi(&[16, 0, 12, 7, 12, 77, 12, 16, 0, 12, 8]);
        let packet = RndisPacket::parse(&bytes, bytes.len() as u32).unwrap();
        assert_eq!(packet.info.checksum, Some(7), "the first counts, unknown ones are passed over");
    }

    #[test]
    fn a_split_header_is_refused() {
        let bytes = with_ppi(&[16, 0, 12, 7]);
        for start in [0, 8, 43, 44, 59] {
            assert!(RndisPacket::parse(&bytes[..start], 60).is_err(), "{start} bytes of it");
        }
        assert!(RndisPacket::parse(&bytes, 60).is_ok());
        assert!(RndisPacket::parse(&bytes, 59).is_err());
    }

    #[test]
    fn out_of_band_data_and_virtual_circuits_are_refused() {
        let good = with_ppi(&[]);
        assert!(RndisPacket::parse(&good, 44).is_ok());
        for at in [20, 24, 36] {
            let mut bytes = good.clone();
            bytes[at] = 1;
            assert!(RndisPacket::parse(&bytes, 44).is_err(), "at {at}");
        }
    }

    #[test]
    fn per_packet_information_is_the_bits_of_the_specification() {
        let sum = TxChecksum::ipv4(34).with_tcp().with_ip_header();
        assert_eq!(sum.0, 1 | 4 | 16 | 34 << 16);
        assert!(sum.is_ipv4() && sum.tcp() && sum.ip_header() && !sum.udp() && !sum.is_ipv6());
        assert_eq!(sum.transport_offset(), 34);
        let lso = LargeSend::v2(1448, 54, true);
        assert_eq!(lso.0, 1448 | 54 << 20 | 3 << 30);
        assert_eq!(
            (lso.mss(), lso.tcp_offset(), lso.is_v2(), lso.is_ipv6()),
            (1448, 54, true, true)
        );
        assert_eq!(VlanInfo::from_tci(0xB123).0, 5 | 1 << 3 | 0x123 << 4);
        assert!(RxChecksum::from_bits_retain(1 << 5).contains(RxChecksum::IP_SUCCEEDED));
    }
}
