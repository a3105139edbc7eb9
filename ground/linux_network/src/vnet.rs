//! The virtio-net header that TAP devices and packet sockets put before each packet.
//!
//! virtio 1.2 §5.1.6, in the legacy form without a buffer count, in the machine's byte order, as Linux
//! uses it for `IFF_VNET_HDR` and `PACKET_VNET_HDR`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a [`VnetHeader`].
pub const VNET_HEADER_LENGTH: usize = 10;

/// `csum_start` and `csum_offset` hold a checksum to be finished.
const FLAG_NEEDS_CHECKSUM: u8 = 1;
/// The checksums of the packet were verified.
const FLAG_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Bit beside the type: the segments carry congestion notifications.
const GSO_ECN: u8 = 0x80;

/// The header as it lies in memory.
#[derive(
    Copy, Clone, Eq, PartialEq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    /// Bytes of all headers; a hint.
    header_length: u16,
    /// Bytes of payload of each segment.
    gso_size: u16,
    /// From here to the end of the packet the checksum is to be computed.
    checksum_start: u16,
    /// Where, after `checksum_start`, it is to be put.
    checksum_offset: u16,
}

const _: () = assert!(size_of::<VnetHeader>() == VNET_HEADER_LENGTH);

/// What the header says about a packet.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct PacketOffload {
    /// The state of the packet's transport checksum.
    pub checksum: ChecksumState,
    /// How the packet is to be cut, if it is larger than a frame.
    pub segmentation: Option<Segmentation>,
}

/// Who vouches for a packet's transport checksum.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub enum ChecksumState {
    /// The checksum is in the packet and nobody looked at it.
    #[default]
    Complete,
    /// The checksum was verified.
    Verified,
    /// The field holds the checksum of the pseudo header only; the rest is to be added.
    Partial {
        /// Offset in the packet from which on the checksum is computed.
        start: u16,
        /// Where it goes, from `start`.
        offset: u16,
    },
}

/// A TCP packet that stands for several frames.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Segmentation {
    /// Over which network protocol.
    pub kind: SegmentationKind,
    /// Whether a congestion-window-reduced flag is in the first segment only.
    pub ecn: bool,
    /// Bytes of TCP payload of each segment but the last.
    pub segment_size: u16,
    /// Bytes of the headers, as a hint; may be 0.
    pub header_length: u16,
}

/// What is segmented.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// A header that makes no sense for its packet.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum VnetError {
    /// The checksum lies outside the packet.
    #[error("the checksum at {start}+{offset} lies outside the packet of {length} bytes")]
    ChecksumOutside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Bytes of the packet.
        length: usize,
    },
    /// A segmentation that was never agreed to.
    #[error("segmentation type {0:#x} was not offered")]
    SegmentationType(u8),
    /// Segments of no bytes, or segmentation without a checksum to finish.
    #[error("segmentation into {segment_size} bytes without the checksum that it needs")]
    Segmentation {
        /// `gso_size`.
        segment_size: u16,
    },
}

impl VnetHeader {
    /// What the header says about a packet of `length` bytes.
    pub fn parse(&self, length: usize) -> Result<PacketOffload, VnetError> {
        let checksum = if self.flags & FLAG_NEEDS_CHECKSUM != 0 {
            let (start, offset) = (self.checksum_start, self.checksum_offset);
            if usize::from(start) + usize::from(offset) + 2 > length {
                return Err(VnetError::ChecksumOutside { start, offset, length });
            }
            ChecksumState::Partial { start, offset }
        } else if self.flags & FLAG_DATA_VALID != 0 {
            ChecksumState::Verified
        } else {
            ChecksumState::Complete
        };
        let kind = match self.gso_type & !GSO_ECN {
            GSO_NONE => return Ok(PacketOffload { checksum, segmentation: None }),
            GSO_TCPV4 => SegmentationKind::TcpV4,
            GSO_TCPV6 => SegmentationKind::TcpV6,
            _ => return Err(VnetError::SegmentationType(self.gso_type)),
        };
        if self.gso_size == 0 || !matches!(checksum, ChecksumState::Partial { .. }) {
            return Err(VnetError::Segmentation { segment_size: self.gso_size });
        }
        let segmentation = Segmentation {
            kind,
            ecn: self.gso_type & GSO_ECN != 0,
            segment_size: self.gso_size,
            header_length: self.header_length,
        };
        Ok(PacketOffload { checksum, segmentation: Some(segmentation) })
    }

    /// The header that says `offload`.
    pub fn emit(offload: &PacketOffload) -> Self {
        let mut header = Self::default();
        match offload.checksum {
            ChecksumState::Complete => {}
            ChecksumState::Verified => header.flags = FLAG_DATA_VALID,
            ChecksumState::Partial { start, offset } => {
                header.flags = FLAG_NEEDS_CHECKSUM;
                header.checksum_start = start;
                header.checksum_offset = offset;
            }
        }
        if let Some(segmentation) = offload.segmentation {
            header.gso_type = match segmentation.kind {
                SegmentationKind::TcpV4 => GSO_TCPV4,
                SegmentationKind::TcpV6 => GSO_TCPV6,
            };
            if segmentation.ecn {
                header.gso_type |= GSO_ECN;
            }
            header.gso_size = segmentation.segment_size;
            header.header_length = segmentation.header_length;
        }
        header
    }
}

/// Adds a packet's data to the checksum field that holds the sum of its pseudo header
/// ([`ChecksumState::Partial`]); `None` if the field lies outside the packet.
pub fn finish_checksum(packet: &mut [u8], start: u16, offset: u16) -> Option<()> {
    let data = packet.get_mut(usize::from(start)..)?;
    let sum = data.chunks(2).map(|pair| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let checksum = !fold(sum.sum());
    // UDP, whose field is at 6, keeps 0 for "none".
    let checksum = if checksum == 0 && offset == 6 { 0xFFFF } else { checksum };
    *data.get_mut(usize::from(offset)..)?.first_chunk_mut()? = checksum.to_be_bytes();
    Some(())
}

/// Changes a TCP header's checksum field from the sum of the pseudo header with the length of all of the TCP
/// packet (as Linux leaves it in a packet to be segmented) to the sum without a length (as devices want it,
/// since each segment has its own); `None` if the field lies outside.
pub fn remove_length_from_seed(tcp_header: &mut [u8], tcp_length: u16) -> Option<()> {
    // In a one's-complement sum the complement is what is taken away.
    add_length_to_seed(tcp_header, !tcp_length)
}

/// The reverse: from the sum without a length to the one with it.
pub fn add_length_to_seed(tcp_header: &mut [u8], tcp_length: u16) -> Option<()> {
    let field = tcp_header.get_mut(16..)?.first_chunk_mut()?;
    let seed = fold(u64::from(u16::from_be_bytes(*field)) + u64::from(tcp_length));
    *field = seed.to_be_bytes();
    Some(())
}

/// A one's-complement sum, folded to 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offloads() -> impl Strategy<Value = PacketOffload> {
        let kind = prop_oneof![Just(SegmentationKind::TcpV4), Just(SegmentationKind::TcpV6)];
        let segmentation = (kind, any::<bool>(), 1..=u16::MAX, any::<u16>()).prop_map(
            |(kind, ecn, segment_size, header_length)| Segmentation {
                kind,
                ecn,
                segment_size,
                header_length,
            },
        );
        let partial = (0u16..1000, 0u16..100)
            .prop_map(|(start, offset)| ChecksumState::Partial { start, offset });
        prop_oneof![
            Just(PacketOffload::default()),
            Just(PacketOffload { checksum: ChecksumState::Verified, segmentation: None }),
            (partial, proptest::option::of(segmentation))
                .prop_map(|(checksum, segmentation)| PacketOffload { checksum, segmentation }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(offload in offloads()) {
            prop_assert_eq!(VnetHeader::emit(&offload).parse(1102), Ok(offload));
        }

        #[test]
        fn a_finished_checksum_makes_the_whole_sum_to_nothing(
            data in proptest::collection::vec(any::<u8>(), 20..200),
            start in 0u16..10,
            seed: u16,
        ) {
            let mut packet = data.clone();
            let field = usize::from(start) + 6;
            packet[field..field + 2].copy_from_slice(&seed.to_be_bytes());
            finish_checksum(&mut packet, start, 6).unwrap();
            // The seed is the sum of the pseudo header; with it and the checksum all comes to zero.
            let mut all = seed.to_be_bytes().to_vec();
            all.extend(&packet[usize::from(start)..]);
            prop_assert_eq!(sum_of(&all), 0xFFFF);
        }

        #[test]
        fn a_seed_without_length_differs_by_the_length(pseudo: u16, length in 20u16..) {
            let mut header = [0; 20];
            let seed = fold(u64::from(pseudo) + u64::from(length));
            header[16..18].copy_from_slice(&seed.to_be_bytes());
            remove_length_from_seed(&mut header, length).unwrap();
            let left = u16::from_be_bytes([header[16], header[17]]);
            // 0 and 0xFFFF are the same number in one's complement.
            prop_assert!(left == pseudo || (left ^ pseudo) == 0xFFFF && (left == 0 || pseudo == 0));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; VNET_HEADER_LENGTH], length in 0usize..70_000) {
            let header = VnetHeader::read_from_bytes(&bytes).unwrap();
            if let Ok(PacketOffload { checksum: ChecksumState::Partial { start, offset }, .. }) = header.parse(length) {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= length);
            }
        }
    }

    fn sum_of(bytes: &[u8]) -> u16 {
        fold(
            bytes
                .chunks(2)
                .map(|p| u64::from(p[0]) << 8 | u64::from(*p.get(1).unwrap_or(&0)))
                .sum(),
        )
    }

    #[test]
    fn a_checksum_outside_the_packet_is_refused() {
        assert_eq!(finish_checksum(&mut [0; 20], 14, 5), None);
        assert_eq!(finish_checksum(&mut [0; 20], 21, 0), None);
        assert_eq!(remove_length_from_seed(&mut [0; 17], 20), None);
    }

    #[test]
    fn segmentation_without_a_checksum_to_finish_is_refused() {
        let header = VnetHeader { gso_type: GSO_TCPV4, gso_size: 1448, ..Default::default() };
        assert_eq!(header.parse(9000), Err(VnetError::Segmentation { segment_size: 1448 }));
        let udp = VnetHeader { flags: 1, gso_type: 3, gso_size: 1448, ..Default::default() };
        assert_eq!(udp.parse(9000), Err(VnetError::SegmentationType(3)));
    }
}
