//! Frames as the data path sees them: segments, each one buffer, the last of a frame marked.

use avf_protocol::{
    packet_type::{PacketType, Payload},
    receive::{Cast, RxLegacy, legacy},
    transmit::{TxData, TxOffload as ChecksumFields},
};

use crate::Buffer;

/// What the device is to do to one frame on its way out. Build it once per kind of frame; it is two
/// words.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct FrameOffload {
    /// Bits of quadword 1 of each data descriptor.
    pub(crate) data: u64,
    /// Segment payload of TSO or USO, bytes; 0 is none.
    pub(crate) mss: u16,
    /// Bytes of all headers, with TSO or USO.
    pub(crate) headers: u16,
}

impl FrameOffload {
    /// Nothing: the frame is sent as it is.
    pub const NONE: Self = Self { data: 0, mss: 0, headers: 0 };

    /// Has the device compute checksums: `fields.ip` says which IP header (and whether its
    /// checksum), `fields.l4` which L4 checksum, and the lengths say where the headers are.
    ///
    /// The L4 checksum field must hold the pseudo-header sum, with the length included unless the
    /// frame is segmented too (SPEC-AVF §5.3).
    #[must_use]
    pub const fn with_checksum(self, fields: ChecksumFields) -> Self {
        // All but the buffer length, which is zero, and what every descriptor has anyway.
        let bits = TxData::new(0, 0).with_offload(fields).0[1];
        Self { data: self.data | bits, ..self }
    }

    /// Has the device cut the frame into segments of `mss` payload bytes (64–9,668) behind
    /// `headers` bytes of headers (SPEC-AVF §5.3). Needs [`with_checksum`](Self::with_checksum) for
    /// the header fields; TCP, or UDP where [`crate::Capabilities::udp_segmentation`] was granted.
    #[must_use]
    pub const fn with_segmentation(self, mss: u16, headers: u16) -> Self {
        Self { mss, headers, ..self }
    }

    /// Has the device insert an 802.1Q tag; needs [`crate::Capabilities::vlan_insertion`].
    #[must_use]
    pub const fn with_vlan(self, tci: u16) -> Self {
        Self { data: self.data | TxData::new(0, 0).with_l2tag1(tci).0[1], ..self }
    }

    /// Whether the device is asked for segmentation.
    pub const fn segments(self) -> bool {
        self.mss != 0
    }
}

/// One buffer's part of a frame to send. A frame is one or more segments, the last marked.
#[derive(Debug)]
pub struct TxSegment {
    /// The buffer; the queue owns it once the segment is transmitted.
    pub buffer: Buffer,
    /// First byte in the buffer.
    pub offset: u16,
    /// Bytes, at least 1.
    pub length: u16,
    /// Whether the frame ends here.
    pub end: bool,
    /// What the device is to do; counts on a frame's first segment only.
    pub offload: FrameOffload,
}

impl TxSegment {
    /// A whole frame of `length` bytes from the buffer's first byte, sent as it is.
    #[inline]
    pub const fn frame(buffer: Buffer, length: u16) -> Self {
        Self { buffer, offset: 0, length, end: true, offload: FrameOffload::NONE }
    }

    /// The same with offloads.
    #[inline]
    #[must_use]
    pub fn with_offload(self, offload: FrameOffload) -> Self {
        Self { offload, ..self }
    }
}

/// What the device says of a checksum.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Check {
    /// It was not checked, or the frame has none.
    Unchecked,
    /// It is right.
    Good,
    /// It is wrong.
    Bad,
}

/// What the device says of a frame's checksums (SPEC-AVF §5.5).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct RxChecksum {
    /// The IPv4 header checksum; `Good` for IPv6, which has none.
    pub ip: Check,
    /// The TCP, UDP or SCTP checksum.
    pub l4: Check,
}

/// One buffer's part of a received frame.
///
/// What the device says of the frame (checksums, hash, tag, type) is in the frame's last segment.
#[derive(Debug)]
pub struct RxSegment {
    /// The buffer, whose first byte is the segment's; owned by whoever holds the segment.
    pub buffer: Buffer,
    /// Bytes: never more than the buffer has.
    pub length: u16,
    pub(crate) words: [u64; 2],
}

impl RxSegment {
    #[inline(always)]
    fn write_back(&self) -> RxLegacy {
        RxLegacy([self.words[0], self.words[1], 0, 0])
    }

    /// Whether the frame ends here.
    #[inline]
    pub fn end(&self) -> bool {
        self.write_back().end_of_packet()
    }

    /// What the frame is, of the innermost headers the device knows.
    #[inline]
    pub fn packet_type(&self) -> PacketType {
        self.write_back().packet_type()
    }

    /// The RSS hash, if the device computed one.
    #[inline]
    pub fn rss_hash(&self) -> Option<u32> {
        self.write_back().rss_hash()
    }

    /// The tag that the device took out of the frame.
    #[inline]
    pub fn vlan_tci(&self) -> Option<u16> {
        self.write_back().l2tag1()
    }

    /// Where the frame was addressed to.
    #[inline]
    pub fn cast(&self) -> Cast {
        self.write_back().cast()
    }

    /// What the device says of the frame's checksums. It vouches for nothing when it did not check,
    /// when an IPv6 extension header stood in the way, or when lengths did not match.
    #[inline]
    pub fn checksum(&self) -> RxChecksum {
        let write_back = self.write_back();
        let distrusted = self.words[1] & (legacy::IPV6EXADD | legacy::PPRS) != 0;
        let payload = write_back.packet_type().payload();
        if !write_back.has(legacy::L3L4P)
            || distrusted
            || matches!(payload, Payload::Unknown | Payload::L2)
        {
            return RxChecksum { ip: Check::Unchecked, l4: Check::Unchecked };
        }
        let check = |error| if self.words[1] & error != 0 { Check::Bad } else { Check::Good };
        let ip = check(legacy::IPE | legacy::EIPE);
        let l4 = match payload {
            Payload::Tcp | Payload::Udp | Payload::Sctp if ip == Check::Good => check(legacy::L4E),
            _ => Check::Unchecked,
        };
        RxChecksum { ip, l4 }
    }

    /// The same bytes as a segment to send on, without a copy; for a queue of the same driver.
    #[inline]
    pub fn forward(self) -> TxSegment {
        let end = self.end();
        TxSegment {
            buffer: self.buffer,
            offset: 0,
            length: self.length,
            end,
            offload: FrameOffload::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(write_back: RxLegacy) -> RxSegment {
        RxSegment {
            buffer: Buffer(0),
            length: write_back.length(),
            words: [write_back.0[0], write_back.0[1]],
        }
    }

    #[test]
    fn checksums_are_believed_only_when_the_device_checked_them() {
        let tcp = RxLegacy::new(60).with_end_of_packet(PacketType::IPV4_TCP);
        let checked = tcp.with_status(legacy::L3L4P);
        let result = |write_back| {
            let RxChecksum { ip, l4 } = segment(write_back).checksum();
            (ip, l4)
        };
        use Check::{Bad, Good, Unchecked};
        assert_eq!(result(tcp), (Unchecked, Unchecked));
        assert_eq!(result(checked), (Good, Good));
        assert_eq!(result(checked.with_status(legacy::L4E)), (Good, Bad));
        assert_eq!(result(checked.with_status(legacy::IPE)), (Bad, Unchecked));
        assert_eq!(result(checked.with_status(legacy::IPV6EXADD)), (Unchecked, Unchecked));
        assert_eq!(result(checked.with_status(legacy::PPRS)), (Unchecked, Unchecked));
        let fragment = RxLegacy::new(60)
            .with_end_of_packet(PacketType::IPV4_FRAGMENT)
            .with_status(legacy::L3L4P);
        assert_eq!(result(fragment), (Good, Unchecked));
        let arp = RxLegacy::new(60).with_end_of_packet(PacketType::ARP).with_status(legacy::L3L4P);
        assert_eq!(result(arp), (Unchecked, Unchecked));
    }

    #[test]
    fn a_received_segment_is_forwarded_with_its_end_mark() {
        let middle = segment(RxLegacy::new(2048)).forward();
        assert_eq!((middle.length, middle.end), (2048, false));
        let last = RxLegacy::new(100).with_end_of_packet(PacketType::L2);
        assert!(segment(last).forward().end);
    }
}
