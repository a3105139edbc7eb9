//! Offload metadata between the guest's kernel (virtio-net header) and the VF (AVF descriptors).
//!
//! Linux leaves a checksum open by naming where it starts and where it goes; an AVF descriptor names the
//! protocols and the lengths of the headers. What cannot be said the second way (a checksum inside a tunnel)
//! is finished here, so that every packet of the guest can go out.

use std::borrow::Cow;

use arrayvec::ArrayVec;
use avf_driver::{Check, ChecksumFields, FrameOffload, IpType, L4Type, RxChecksum};
use linux_network::{
    ChecksumState, PacketOffload, ReceivedPacket, Segmentation, SegmentationKind, VnetHeader,
    finish_checksum, remove_length_from_seed,
};
use offload::{L3Protocol, L4Protocol, PacketInfo, VLAN_TAG_LEN, classify};

/// Bytes of a packet that hold all headers the VF is told of.
const HEAD: usize = 256;
/// Bytes of the shortest frame that an AVF device sends (SPEC-AVF §5.3).
const SHORTEST: usize = 17;
/// Bytes of two addresses, after which a VLAN tag stands.
const ADDRESSES: usize = 12;
/// Segment payloads that an AVF device takes, bytes (SPEC-AVF §5.3).
const SEGMENT_SIZES: std::ops::RangeInclusive<u16> = 64..=9668;

/// A packet as it is handed to the VF.
#[derive(Debug)]
pub(super) struct WirePacket<'a> {
    /// Its first bytes.
    pub(super) head: ArrayVec<u8, { HEAD + VLAN_TAG_LEN }>,
    /// The rest.
    pub(super) body: Cow<'a, [u8]>,
    /// What the VF is to do.
    pub(super) offload: FrameOffload,
    /// Ethernet frames that it becomes on the wire.
    pub(super) frames: u64,
    /// Bytes of those frames.
    pub(super) bytes: u64,
}

/// Why a packet of the guest cannot go out.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Refusal {
    /// Longer than the VF takes.
    TooLong,
    /// Its metadata contradict it.
    Malformed,
}

impl WirePacket<'_> {
    /// Bytes to be handed over.
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Prepares a packet of the guest for a VF that takes frames of up to `max_frame` bytes.
pub(super) fn to_vf<'a>(
    received: &ReceivedPacket<'a>,
    max_frame: usize,
) -> Result<WirePacket<'a>, Refusal> {
    let packet = received.packet;
    let offload = received.header.parse(packet.len()).map_err(|_| Refusal::Malformed)?;
    if received.truncated {
        return Err(Refusal::TooLong);
    }
    let (first, body) = packet.split_at(packet.len().min(HEAD));
    let (addresses, rest) = first.split_at_checked(ADDRESSES).ok_or(Refusal::Malformed)?;
    let mut wire = WirePacket {
        head: ArrayVec::new(),
        body: Cow::Borrowed(body),
        offload: FrameOffload::NONE,
        frames: 1,
        bytes: 0,
    };
    wire.head.extend(addresses.iter().copied());
    if let Some(tag) = received.vlan {
        wire.head.extend(tag.tpid.to_be_bytes());
        wire.head.extend(tag.tci.to_be_bytes());
    }
    wire.head.extend(rest.iter().copied());
    let inserted = wire.head.len() - first.len();
    while wire.len() < SHORTEST {
        wire.head.push(0);
    }
    match offload {
        PacketOffload { segmentation: Some(segmentation), .. } => {
            segment(&mut wire, segmentation, max_frame)?;
        }
        PacketOffload { checksum: ChecksumState::Partial { start, offset }, .. } => {
            let moved = u16::try_from(inserted).ok().and_then(|by| start.checked_add(by));
            checksum(&mut wire, moved.ok_or(Refusal::Malformed)?, offset)?;
            wire.bytes = wire.len() as u64;
        }
        _ => wire.bytes = wire.len() as u64,
    }
    if !wire.offload.segments() && wire.len() > max_frame {
        return Err(Refusal::TooLong);
    }
    Ok(wire)
}

/// The descriptor fields that name the packet's headers, if they can name them.
fn fields(info: &PacketInfo, ip: IpType, l4: L4Type, l4_length: u8) -> Option<ChecksumFields> {
    let mac_length = u8::try_from(info.l2_len).ok().filter(|length| length.is_multiple_of(2))?;
    let ip_length =
        Some(info.l3_len).filter(|length| length.is_multiple_of(4) && *length <= 508)?;
    Some(ChecksumFields { ip, l4, mac_length, ip_length, l4_length })
}

/// Bytes of the TCP header at `offset`.
fn tcp_header_length(head: &[u8], offset: usize) -> Option<u8> {
    let length = (head.get(offset.checked_add(12)?)? >> 4) * 4;
    (length >= 20).then_some(length)
}

/// Has the VF compute a transport checksum, or computes it here.
fn checksum(wire: &mut WirePacket<'_>, start: u16, offset: u16) -> Result<(), Refusal> {
    let info = classify(&wire.head, wire.len());
    let ip = match info.l3 {
        Some(L3Protocol::Ipv4) => IpType::Ipv4,
        Some(L3Protocol::Ipv6) => IpType::Ipv6,
        None => IpType::None,
    };
    let named = if info.l4_offset() != usize::from(start) {
        None
    } else {
        match (info.l4, offset) {
            (Some(L4Protocol::Tcp), 16) => tcp_header_length(&wire.head, start.into())
                .and_then(|length| fields(&info, ip, L4Type::Tcp, length)),
            (Some(L4Protocol::Udp), 6) => fields(&info, ip, L4Type::Udp, 8),
            _ => None,
        }
    };
    if let Some(fields) = named {
        wire.offload = FrameOffload::NONE.with_checksum(fields);
        return Ok(());
    }
    let mut whole = wire.head.to_vec();
    whole.extend_from_slice(&wire.body);
    finish_checksum(&mut whole, start, offset).ok_or(Refusal::Malformed)?;
    wire.head.clear();
    wire.body = Cow::Owned(whole);
    Ok(())
}

/// Has the VF cut a TCP packet into frames.
fn segment(
    wire: &mut WirePacket<'_>,
    segmentation: Segmentation,
    max_frame: usize,
) -> Result<(), Refusal> {
    let length = wire.len();
    let info = classify(&wire.head, length);
    let ip = match (info.l3, segmentation.kind) {
        (Some(L3Protocol::Ipv4), SegmentationKind::TcpV4) => IpType::Ipv4Checksum,
        (Some(L3Protocol::Ipv6), SegmentationKind::TcpV6) => IpType::Ipv6,
        _ => return Err(Refusal::Malformed),
    };
    if info.l4 != Some(L4Protocol::Tcp) {
        return Err(Refusal::Malformed);
    }
    let mss = segmentation.segment_size;
    let prepare = || {
        let l4_length = tcp_header_length(&wire.head, info.l4_offset())?;
        let headers = info.l4_offset() + usize::from(l4_length);
        let payload = length.checked_sub(headers)?;
        let fields = fields(&info, ip, L4Type::Tcp, l4_length)?;
        let tcp_length = u16::try_from(length - info.l4_offset()).ok()?;
        Some((headers, payload, fields, tcp_length))
    };
    let (headers, payload, fields, tcp_length) = prepare().ok_or(Refusal::Malformed)?;
    if headers + usize::from(mss).min(payload) > max_frame {
        return Err(Refusal::TooLong);
    }
    if payload <= usize::from(mss) {
        // One frame after all: only the checksum is to be computed, with the length in its seed.
        let ip = if ip == IpType::Ipv4Checksum { IpType::Ipv4 } else { ip };
        wire.offload = FrameOffload::NONE.with_checksum(ChecksumFields { ip, ..fields });
        wire.bytes = length as u64;
        return Ok(());
    }
    if !SEGMENT_SIZES.contains(&mss) {
        return Err(Refusal::Malformed);
    }
    let header_length = u16::try_from(headers).map_err(|_| Refusal::Malformed)?;
    let tcp = wire.head.get_mut(info.l4_offset()..).ok_or(Refusal::Malformed)?;
    remove_length_from_seed(tcp, tcp_length).ok_or(Refusal::Malformed)?;
    wire.offload = FrameOffload::NONE.with_checksum(fields).with_segmentation(mss, header_length);
    wire.frames = payload.div_ceil(usize::from(mss)) as u64;
    wire.bytes = payload as u64 + wire.frames * headers as u64;
    Ok(())
}

/// What the guest's kernel is told of a frame that the VF received.
pub(super) fn from_vf(checksum: RxChecksum) -> VnetHeader {
    // What is bad or unknown the kernel checks itself.
    let state =
        if checksum.l4 == Check::Good { ChecksumState::Verified } else { ChecksumState::Complete };
    VnetHeader::emit(&PacketOffload { checksum: state, segmentation: None })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use linux_network::VlanTag;

    use super::*;

    const MAX_FRAME: usize = 1518;

    fn tcp(v6: bool, payload: usize) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let builder = if v6 {
            builder.ipv6([0xFD; 16], [0xFE; 16], 64)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut packet = Vec::new();
        builder.tcp(1, 2, 3, 4).write(&mut packet, &vec![0x5A; payload]).unwrap();
        packet
    }

    fn received(packet: &[u8], offload: PacketOffload) -> ReceivedPacket<'_> {
        ReceivedPacket { packet, truncated: false, header: VnetHeader::emit(&offload), vlan: None }
    }

    fn plain(packet: &[u8]) -> ReceivedPacket<'_> {
        let checksum = ChecksumState::Complete;
        received(packet, PacketOffload { checksum, segmentation: None })
    }

    fn bytes(wire: &WirePacket<'_>) -> Vec<u8> {
        [&wire.head, &*wire.body].concat()
    }

    #[test]
    fn a_plain_packet_goes_out_as_it_is_and_a_short_one_is_padded() {
        let packet = tcp(false, 1000);
        let wire = to_vf(&plain(&packet), MAX_FRAME).unwrap();
        assert_eq!(bytes(&wire), packet);
        assert_eq!((wire.frames, wire.bytes), (1, packet.len() as u64));
        let short = [[2; 12].as_slice(), &[8, 6]].concat();
        let wire = to_vf(&plain(&short), MAX_FRAME).unwrap();
        assert_eq!(bytes(&wire), [short.as_slice(), &[0; 3]].concat());
    }

    #[test]
    fn a_tag_stands_behind_the_addresses() {
        let packet = tcp(false, 100);
        let vlan = Some(VlanTag { tpid: 0x8100, tci: 0x6005 });
        let wire = to_vf(&ReceivedPacket { vlan, ..plain(&packet) }, MAX_FRAME).unwrap();
        let expected = [&packet[..12], &[0x81, 0, 0x60, 5], &packet[12..]].concat();
        assert_eq!(bytes(&wire), expected);
    }

    #[test]
    fn what_is_too_long_or_contradicts_itself_is_refused() {
        let packet = tcp(false, 1600);
        assert_eq!(to_vf(&plain(&packet), MAX_FRAME).unwrap_err(), Refusal::TooLong);
        let truncated = ReceivedPacket { truncated: true, ..plain(&packet[..100]) };
        assert_eq!(to_vf(&truncated, MAX_FRAME).unwrap_err(), Refusal::TooLong);
        assert_eq!(to_vf(&plain(&packet[..11]), MAX_FRAME).unwrap_err(), Refusal::Malformed);
        // Segmentation of the other kind of IP.
        let segmentation = Some(Segmentation {
            kind: SegmentationKind::TcpV6,
            ecn: false,
            segment_size: 100,
            header_length: 54,
        });
        let checksum = ChecksumState::Partial { start: 34, offset: 16 };
        let odd = received(&packet, PacketOffload { checksum, segmentation });
        assert_eq!(to_vf(&odd, MAX_FRAME).unwrap_err(), Refusal::Malformed);
    }

    #[test]
    fn a_checksum_that_descriptors_can_name_is_left_to_the_vf_and_another_is_finished_here() {
        for (v6, start) in [(false, 34), (true, 54)] {
            let packet = tcp(v6, 200);
            let checksum = ChecksumState::Partial { start, offset: 16 };
            let offload = PacketOffload { checksum, segmentation: None };
            let wire = to_vf(&received(&packet, offload), MAX_FRAME).unwrap();
            assert_ne!(wire.offload, FrameOffload::NONE);
            assert_eq!(bytes(&wire), packet);
            // Somewhere else in the packet, as in a tunnel.
            let checksum = ChecksumState::Partial { start: start + 40, offset: 4 };
            let offload = PacketOffload { checksum, segmentation: None };
            let wire = to_vf(&received(&packet, offload), MAX_FRAME).unwrap();
            assert_eq!(wire.offload, FrameOffload::NONE);
            let mut expected = packet.clone();
            finish_checksum(&mut expected, start + 40, 4).unwrap();
            assert_eq!(bytes(&wire), expected);
        }
    }

    #[test]
    fn large_packets_are_counted_as_the_frames_they_become() {
        for (v6, headers, kind) in
            [(false, 54, SegmentationKind::TcpV4), (true, 74, SegmentationKind::TcpV6)]
        {
            let packet = tcp(v6, 10_000);
            let start = u16::try_from(headers - 20).unwrap();
            let checksum = ChecksumState::Partial { start, offset: 16 };
            let segmentation = Some(Segmentation {
                kind,
                ecn: false,
                segment_size: 1400,
                header_length: u16::try_from(headers).unwrap(),
            });
            let offload = PacketOffload { checksum, segmentation };
            let wire = to_vf(&received(&packet, offload), MAX_FRAME).unwrap();
            assert!(wire.offload.segments());
            assert_eq!((wire.frames, wire.bytes), (8, 10_000 + 8 * headers as u64));
        }
    }
}
