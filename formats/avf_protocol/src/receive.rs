//! RX descriptors: the read form, and the legacy and flex write-back forms (SPEC-AVF §5.4).
//!
//! A device writes quadwords 0, 2 and 3 first and quadword 1, which carries DD, last by one 8-byte release
//! store. Of a posted descriptor only quadword 0 means anything: the rest may be stale write-back data.

use crate::packet_type::PacketType;

/// RXDID of the legacy (base) 32-byte write-back.
pub const RXDID_LEGACY: u8 = 1;
/// RXDID of the flex "NIC" write-back.
pub const RXDID_FLEX_NIC: u8 = 2;

/// DD in quadword 1, legacy and flex alike: the device is done with the descriptor.
pub const DD: u64 = 1;
/// EOP in quadword 1, legacy and flex alike: the frame ends here.
pub const EOP: u64 = 1 << 1;

/// Legacy quadword 1 bits.
pub mod legacy {
    /// The tag of the frame is in L2TAG1.
    pub const L2TAG1P: u64 = 1 << 2;
    /// L3 and L4 integrity were checked.
    pub const L3L4P: u64 = 1 << 3;
    /// The FCS was left in the buffer.
    pub const CRCP: u64 = 1 << 4;
    /// Flow director matched.
    pub const FLM: u64 = 1 << 11;
    /// FLTSTAT: the hash of quadword 0 is an RSS hash.
    pub const FLTSTAT_RSS: u64 = 3 << 12;
    /// Mask of FLTSTAT.
    pub const FLTSTAT_MASK: u64 = 3 << 12;
    /// Loopback.
    pub const LPBK: u64 = 1 << 14;
    /// IPv6 with extension headers: the checksum was not checked.
    pub const IPV6EXADD: u64 = 1 << 15;
    /// MAC error.
    pub const RXE: u64 = 1 << 19;
    /// IP header checksum error.
    pub const IPE: u64 = 1 << 22;
    /// L4 checksum error.
    pub const L4E: u64 = 1 << 23;
    /// Outer IP header checksum error.
    pub const EIPE: u64 = 1 << 24;
    /// The frame was too large.
    pub const OVERSIZE: u64 = 1 << 25;
    /// Packet length mismatch.
    pub const PPRS: u64 = 1 << 26;
    /// UMBCAST: multicast.
    pub const MULTICAST: u64 = 1 << 9;
    /// UMBCAST: broadcast.
    pub const BROADCAST: u64 = 2 << 9;
    /// Mask of UMBCAST.
    pub const UMBCAST_MASK: u64 = 3 << 9;
    pub(super) const PTYPE_SHIFT: u32 = 30;
    pub(super) const LENGTH_SHIFT: u32 = 38;
}

/// Flex quadword 1 bits.
pub mod flex {
    /// L3 and L4 integrity were checked.
    pub const L3L4P: u64 = 1 << 3;
    /// IP header checksum error.
    pub const IPE: u64 = 1 << 4;
    /// L4 checksum error.
    pub const L4E: u64 = 1 << 5;
    /// Outer IP header checksum error.
    pub const EIPE: u64 = 1 << 6;
    /// Outer UDP checksum error.
    pub const EUDPE: u64 = 1 << 7;
    /// Loopback.
    pub const LPBK: u64 = 1 << 8;
    /// IPv6 with extension headers.
    pub const IPV6EXADD: u64 = 1 << 9;
    /// MAC error.
    pub const RXE: u64 = 1 << 10;
    /// The FCS was left in the buffer.
    pub const CRCP: u64 = 1 << 11;
    /// The RSS hash is valid.
    pub const RSS_VALID: u64 = 1 << 12;
    /// The tag of the frame is in L2TAG1.
    pub const L2TAG1P: u64 = 1 << 13;
}

/// The most bytes one write-back can tell of, 14 bits.
pub const MAX_BUFFER_LENGTH: u16 = 0x3FFF;

/// A posted RX descriptor.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(transparent)]
pub struct RxRead(pub [u64; 4]);

impl RxRead {
    /// A packet buffer at DMA address `packet`; there is no header buffer, and DD is clear.
    #[inline(always)]
    pub const fn new(packet: u64) -> Self {
        Self([packet, 0, 0, 0])
    }

    /// DMA address of the packet buffer.
    #[inline(always)]
    pub const fn packet_address(self) -> u64 {
        self.0[0]
    }
}

/// Where a frame was addressed to (UMBCAST).
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub enum Cast {
    /// One station.
    #[default]
    Unicast,
    /// A group.
    Multicast,
    /// All.
    Broadcast,
    /// A mirrored frame.
    Mirrored,
}

/// A legacy (RXDID 1) write-back. As quadwords, `self.0`: 1 is stored last.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(transparent)]
pub struct RxLegacy(pub [u64; 4]);

impl RxLegacy {
    /// `length` bytes in this buffer (at most 16,383), DD set; the rest of the frame follows.
    #[inline(always)]
    pub const fn new(length: u16) -> Self {
        let length = ((length & MAX_BUFFER_LENGTH) as u64) << legacy::LENGTH_SHIFT;
        Self([0, DD | length, 0, 0])
    }

    /// The frame ends here; what it is.
    #[inline(always)]
    #[must_use]
    pub const fn with_end_of_packet(self, packet_type: PacketType) -> Self {
        self.with_status(EOP | (packet_type.0 as u64) << legacy::PTYPE_SHIFT)
    }

    /// Adds status and error bits of [`legacy`] to quadword 1.
    #[inline(always)]
    #[must_use]
    pub const fn with_status(self, bits: u64) -> Self {
        Self([self.0[0], self.0[1] | bits, self.0[2], self.0[3]])
    }

    /// Adds an RSS hash.
    #[inline(always)]
    #[must_use]
    pub const fn with_rss_hash(self, hash: u32) -> Self {
        let word0 = self.0[0] | (hash as u64) << 32;
        Self([word0, self.0[1] | legacy::FLTSTAT_RSS, self.0[2], self.0[3]])
    }

    /// Adds the TCI of a stripped tag.
    #[inline(always)]
    #[must_use]
    pub const fn with_l2tag1(self, tci: u16) -> Self {
        let word0 = self.0[0] | (tci as u64) << 16;
        Self([word0, self.0[1] | legacy::L2TAG1P, self.0[2], self.0[3]])
    }

    /// Whether DD is set: nothing else means anything before.
    #[inline(always)]
    pub const fn is_done(self) -> bool {
        self.0[1] & DD != 0
    }

    /// Whether the frame ends here.
    #[inline(always)]
    pub const fn end_of_packet(self) -> bool {
        self.0[1] & EOP != 0
    }

    /// Whether all of `bits` of [`legacy`] are set.
    #[inline(always)]
    pub const fn has(self, bits: u64) -> bool {
        self.0[1] & bits == bits
    }

    /// Bytes in this buffer.
    #[inline(always)]
    pub const fn length(self) -> u16 {
        let [low, high, ..] = (self.0[1] >> legacy::LENGTH_SHIFT & 0x3FFF).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// What the frame is.
    #[inline(always)]
    pub const fn packet_type(self) -> PacketType {
        PacketType((self.0[1] >> legacy::PTYPE_SHIFT & 0xFF).to_le_bytes()[0])
    }

    /// The RSS hash, if there is one.
    #[inline(always)]
    pub const fn rss_hash(self) -> Option<u32> {
        if self.0[1] & legacy::FLTSTAT_MASK != legacy::FLTSTAT_RSS {
            return None;
        }
        let [.., a, b, c, d] = self.0[0].to_le_bytes();
        Some(u32::from_le_bytes([a, b, c, d]))
    }

    /// The TCI of the stripped tag, if there was one.
    #[inline(always)]
    pub const fn l2tag1(self) -> Option<u16> {
        let [_, _, low, high, ..] = self.0[0].to_le_bytes();
        if self.0[1] & legacy::L2TAG1P != 0 { Some(u16::from_le_bytes([low, high])) } else { None }
    }

    /// The second tag, if L2TAG2P is set: its first position.
    #[inline(always)]
    pub const fn l2tag2(self) -> Option<u16> {
        let [.., low, high, _, _] = self.0[2].to_le_bytes();
        if self.0[2] & 1 != 0 { Some(u16::from_le_bytes([low, high])) } else { None }
    }

    /// Where the frame was addressed to.
    #[inline(always)]
    pub const fn cast(self) -> Cast {
        match self.0[1] & legacy::UMBCAST_MASK {
            legacy::MULTICAST => Cast::Multicast,
            legacy::BROADCAST => Cast::Broadcast,
            legacy::UMBCAST_MASK => Cast::Mirrored,
            _ => Cast::Unicast,
        }
    }
}

/// A flex "NIC" (RXDID 2) write-back. As quadwords, `self.0`: 1 is stored last.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(transparent)]
pub struct RxFlex(pub [u64; 4]);

const FLEX_PTYPE_SHIFT: u32 = 16;
const FLEX_LENGTH_SHIFT: u32 = 32;

impl RxFlex {
    /// `length` bytes in this buffer (at most 16,383), DD set; the rest of the frame follows.
    #[inline(always)]
    pub const fn new(length: u16) -> Self {
        let length = ((length & MAX_BUFFER_LENGTH) as u64) << FLEX_LENGTH_SHIFT;
        Self([RXDID_FLEX_NIC as u64 | length, DD, 0, 0])
    }

    /// The frame ends here; what it is.
    #[inline(always)]
    #[must_use]
    pub const fn with_end_of_packet(self, packet_type: PacketType) -> Self {
        let word0 = self.0[0] | (packet_type.0 as u64) << FLEX_PTYPE_SHIFT;
        Self([word0, self.0[1] | EOP, self.0[2], self.0[3]])
    }

    /// Adds where the frame was addressed to.
    #[inline(always)]
    #[must_use]
    pub const fn with_cast(self, cast: Cast) -> Self {
        Self([self.0[0] | (cast as u64) << 14, self.0[1], self.0[2], self.0[3]])
    }

    /// Adds status and error bits of [`flex`] to quadword 1.
    #[inline(always)]
    #[must_use]
    pub const fn with_status(self, bits: u64) -> Self {
        Self([self.0[0], self.0[1] | bits, self.0[2], self.0[3]])
    }

    /// Adds an RSS hash.
    #[inline(always)]
    #[must_use]
    pub const fn with_rss_hash(self, hash: u32) -> Self {
        self.with_status(flex::RSS_VALID | (hash as u64) << 32)
    }

    /// Adds the TCI of a stripped tag.
    #[inline(always)]
    #[must_use]
    pub const fn with_l2tag1(self, tci: u16) -> Self {
        self.with_status(flex::L2TAG1P | (tci as u64) << 16)
    }

    /// Whether DD is set: nothing else means anything before.
    #[inline(always)]
    pub const fn is_done(self) -> bool {
        self.0[1] & DD != 0
    }

    /// Whether the frame ends here.
    #[inline(always)]
    pub const fn end_of_packet(self) -> bool {
        self.0[1] & EOP != 0
    }

    /// Whether all of `bits` of [`flex`] are set.
    #[inline(always)]
    pub const fn has(self, bits: u64) -> bool {
        self.0[1] & bits == bits
    }

    /// Which write-back form this is.
    #[inline(always)]
    pub const fn rxdid(self) -> u8 {
        self.0[0].to_le_bytes()[0]
    }

    /// Bytes in this buffer.
    #[inline(always)]
    pub const fn length(self) -> u16 {
        let [low, high, ..] = (self.0[0] >> FLEX_LENGTH_SHIFT & 0x3FFF).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// What the frame is; flex types that the legacy table does not have are unknown.
    #[inline(always)]
    pub const fn packet_type(self) -> PacketType {
        match (self.0[0] >> FLEX_PTYPE_SHIFT & 0x3FF).to_le_bytes() {
            [packet_type, 0, ..] => PacketType(packet_type),
            _ => PacketType::UNKNOWN,
        }
    }

    /// The RSS hash, if there is one.
    #[inline(always)]
    pub const fn rss_hash(self) -> Option<u32> {
        let [.., a, b, c, d] = self.0[1].to_le_bytes();
        if self.has(flex::RSS_VALID) { Some(u32::from_le_bytes([a, b, c, d])) } else { None }
    }

    /// The TCI of the stripped tag, if there was one.
    #[inline(always)]
    pub const fn l2tag1(self) -> Option<u16> {
        let [_, _, low, high, ..] = self.0[1].to_le_bytes();
        if self.has(flex::L2TAG1P) { Some(u16::from_le_bytes([low, high])) } else { None }
    }

    /// Where the frame was addressed to.
    #[inline(always)]
    pub const fn cast(self) -> Cast {
        match self.0[0] >> 14 & 3 {
            1 => Cast::Multicast,
            2 => Cast::Broadcast,
            3 => Cast::Mirrored,
            _ => Cast::Unicast,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_example_of_a_tcp_frame_comes_out_bit_for_bit() {
        let descriptor = RxLegacy::new(64)
            .with_end_of_packet(PacketType::IPV4_TCP)
            .with_status(legacy::L3L4P)
            .with_rss_hash(0xDEAD_BEEF);
        // SPEC-AVF appendix B.
        let expected = 1 | 2 | 8 | 3 << 12 | 26 << 30 | 64 << 38;
        assert_eq!(descriptor.0, [0xDEAD_BEEF << 32, expected, 0, 0]);
        assert_eq!(descriptor.0[1] >> 52, 0, "header length and SPH stay 0");
    }

    proptest! {
        #[test]
        fn legacy_write_backs_read_as_written(
            length in 0u16..=MAX_BUFFER_LENGTH, ptype: u8, hash: Option<u32>, tci: Option<u16>,
        ) {
            let mut wb = RxLegacy::new(length).with_end_of_packet(PacketType(ptype))
                .with_status(legacy::BROADCAST | legacy::L4E);
            if let Some(hash) = hash { wb = wb.with_rss_hash(hash); }
            if let Some(tci) = tci { wb = wb.with_l2tag1(tci); }
            prop_assert!(wb.is_done() && wb.end_of_packet() && wb.has(legacy::L4E));
            prop_assert!(!wb.has(legacy::IPE));
            prop_assert_eq!(wb.length(), length);
            prop_assert_eq!(wb.packet_type(), PacketType(ptype));
            prop_assert_eq!(wb.rss_hash(), hash);
            prop_assert_eq!(wb.l2tag1(), tci);
            prop_assert_eq!(wb.l2tag2(), None);
            prop_assert_eq!(wb.cast(), Cast::Broadcast);
        }

        #[test]
        fn flex_write_backs_read_as_written(
            length in 0u16..=MAX_BUFFER_LENGTH, ptype: u8, hash: Option<u32>, tci: Option<u16>,
        ) {
            let mut wb = RxFlex::new(length).with_end_of_packet(PacketType(ptype))
                .with_cast(Cast::Multicast).with_status(flex::L3L4P);
            if let Some(hash) = hash { wb = wb.with_rss_hash(hash); }
            if let Some(tci) = tci { wb = wb.with_l2tag1(tci); }
            prop_assert!(wb.is_done() && wb.end_of_packet() && wb.has(flex::L3L4P));
            prop_assert_eq!(wb.rxdid(), RXDID_FLEX_NIC);
            prop_assert_eq!(wb.length(), length);
            prop_assert_eq!(wb.packet_type(), PacketType(ptype));
            prop_assert_eq!(wb.rss_hash(), hash);
            prop_assert_eq!(wb.l2tag1(), tci);
            prop_assert_eq!(wb.cast(), Cast::Multicast);
        }
    }
}
