//! Offload metadata between the guest's kernel (virtio-net header) and the paths that carry its packets.
//!
//! Linux leaves a checksum open by naming where it starts and where it goes; descriptors of a VF, and per-packet
//! information of NetVSP, name the protocols and the lengths of the headers. Both are said by one value
//! ([`TransmitMetadata`]). What cannot be said so (a checksum inside a tunnel) is finished here, so that every packet of
//! the guest can go out.

use std::{borrow::Cow, ops::RangeInclusive};

use arrayvec::ArrayVec;
use avf_driver::{Check, ChecksumFields, FrameOffload, IpType, L4Type, RxChecksum};
use linux_network::{
    ChecksumState, PacketOffload, ReceivedPacket, Segmentation, SegmentationKind, VnetHeader,
    finish_checksum, remove_length_from_seed,
};
use netvsp::{ReceiveMetadata, TransmitMetadata};
use netvsp_protocol::offload::{MAX_LARGE_SEND, OffloadCapabilities};
use offload::{ChecksumVerdict, L3Protocol, L4Protocol, PacketInfo, VLAN_TAG_LEN, classify};

/// Bytes of a packet that hold all headers the path is told of.
const HEAD: usize = 256;
/// Bytes of two addresses, after which a VLAN tag stands.
const ADDRESSES: usize = 12;
/// Bytes of an Ethernet header without a tag.
const ETHERNET: usize = 14;
/// The tag of 802.1Q, which a path may carry beside the frame.
const DOT1Q: u16 = 0x8100;

/// What a path takes.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) struct Limits {
    /// Bytes of the longest frame, with its Ethernet header. A tag beside the frame does not count.
    pub(super) max_frame: usize,
    /// Bytes of the shortest.
    pub(super) shortest: usize,
    /// Bytes of the longest packet that it cuts into frames.
    pub(super) max_segmented: usize,
    /// Payload bytes that the segments may have.
    pub(super) segment_sizes: RangeInclusive<u16>,
    /// Whether a tag of 802.1Q goes beside the frame, instead of into it.
    pub(super) tag_beside: bool,
    /// What it does to packets.
    pub(super) offloads: OffloadCapabilities,
}

impl Limits {
    /// Those of a VF with frames of up to `max_frame` bytes (SPEC-AVF §5.3).
    pub(super) fn of_vf(max_frame: usize) -> Self {
        Self {
            max_frame,
            shortest: 17,
            max_segmented: usize::MAX,
            segment_sizes: 64..=9668,
            tag_beside: false,
            offloads: OffloadCapabilities::ALL,
        }
    }

    /// Those of a synthetic adapter (SPEC-VMBUS §6).
    pub(super) fn of_synthetic(max_frame: usize, offloads: OffloadCapabilities) -> Self {
        Self {
            max_frame,
            shortest: ETHERNET,
            max_segmented: ETHERNET + MAX_LARGE_SEND as usize,
            segment_sizes: 1..=u16::MAX,
            tag_beside: true,
            offloads,
        }
    }
}

/// A packet as it is handed to a path.
#[derive(Debug)]
pub(super) struct WirePacket<'a> {
    /// Its first bytes.
    pub(super) head: ArrayVec<u8, { HEAD + VLAN_TAG_LEN }>,
    /// The rest.
    pub(super) body: Cow<'a, [u8]>,
    /// What the path is to do, and the tag beside the frame.
    pub(super) metadata: TransmitMetadata,
    /// Ethernet frames that it becomes on the wire.
    pub(super) frames: u64,
    /// Bytes of those frames, tags included.
    pub(super) bytes: u64,
}

/// Why a packet of the guest cannot go out.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Refusal {
    /// Longer than the path takes.
    TooLong,
    /// Its metadata contradict it, or ask for what the path cannot do.
    Malformed,
}

impl WirePacket<'_> {
    /// Bytes to be handed over.
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// The same wish in an AVF descriptor's terms.
    pub(super) fn avf_offload(&self) -> FrameOffload {
        if self.metadata.checksum.is_none() && self.metadata.segmentation.is_none() {
            return FrameOffload::NONE;
        }
        let (fields, segmentation) = self.metadata.to_avf();
        let offload = FrameOffload::NONE.with_checksum(fields);
        match segmentation {
            Some((mss, headers)) => offload.with_segmentation(mss, headers),
            None => offload,
        }
    }

    /// A number that all packets of one connection have in common, and few others.
    pub(super) fn flow(&self) -> u32 {
        // Addresses and ports of IPv4 and IPv6, somewhere in these bytes; what differs between packets of a
        // connection (lengths, sequence numbers, checksums) must not count.
        let info = classify(&self.head, self.len());
        let addresses = match info.l3 {
            Some(L3Protocol::Ipv4) => info.l3_offset() + 12..info.l3_offset() + 20,
            Some(L3Protocol::Ipv6) => info.l3_offset() + 8..info.l3_offset() + 40,
            None => 0..12,
        };
        let ports = match info.l4 {
            Some(L4Protocol::Tcp | L4Protocol::Udp) => info.l4_offset()..info.l4_offset() + 4,
            _ => 0..0,
        };
        let bytes = [addresses, ports].map(|range| self.head.get(range).unwrap_or_default());
        bytes.into_iter().flatten().fold(0x811C_9DC5, |hash: u32, byte| {
            // FNV-1a.
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        })
    }
}

/// Takes the tag of 802.1Q behind the addresses out of a frame that has one.
fn take_tag(rest: &[u8]) -> Option<(u16, &[u8])> {
    let (tag, rest) = rest.split_first_chunk::<VLAN_TAG_LEN>()?;
    let [a, b, c, d] = *tag;
    (u16::from_be_bytes([a, b]) == DOT1Q).then_some((u16::from_be_bytes([c, d]), rest))
}

/// Prepares a packet of the guest for a path.
pub(super) fn to_path<'a>(
    received: &ReceivedPacket<'a>,
    limits: &Limits,
) -> Result<WirePacket<'a>, Refusal> {
    let packet = received.packet;
    let offload = received.header.parse(packet.len()).map_err(|_| Refusal::Malformed)?;
    if received.truncated {
        return Err(Refusal::TooLong);
    }
    let (first, body) = packet.split_at(packet.len().min(HEAD));
    let (addresses, mut rest) = first.split_at_checked(ADDRESSES).ok_or(Refusal::Malformed)?;
    let mut wire = WirePacket {
        head: ArrayVec::new(),
        body: Cow::Borrowed(body),
        metadata: TransmitMetadata::default(),
        frames: 1,
        bytes: 0,
    };
    wire.head.extend(addresses.iter().copied());
    let mut beside = None;
    match received.vlan {
        Some(tag) if limits.tag_beside && tag.tpid == DOT1Q => beside = Some(tag.tci),
        Some(tag) => {
            wire.head.extend(tag.tpid.to_be_bytes());
            wire.head.extend(tag.tci.to_be_bytes());
        }
        None if limits.tag_beside => {
            if let Some((tci, untagged)) = take_tag(rest) {
                beside = Some(tci);
                rest = untagged;
            }
        }
        None => {}
    }
    wire.head.extend(rest.iter().copied());
    let (before, after) = (first.len(), wire.head.len());
    while wire.len() < limits.shortest {
        wire.head.push(0);
    }
    match offload {
        PacketOffload { segmentation: Some(segmentation), .. } => {
            segment(&mut wire, segmentation, limits)?;
        }
        PacketOffload { checksum: ChecksumState::Partial { start, offset }, .. } => {
            let moved = (usize::from(start) + after).checked_sub(before);
            let start = moved.and_then(|start| u16::try_from(start).ok());
            checksum(&mut wire, start.ok_or(Refusal::Malformed)?, offset, limits)?;
            wire.bytes = wire.len() as u64;
        }
        _ => wire.bytes = wire.len() as u64,
    }
    if wire.metadata.segmentation.is_none() && wire.len() > limits.max_frame {
        return Err(Refusal::TooLong);
    }
    if let Some(tci) = beside {
        wire.metadata.vlan_tci = Some(tci);
        wire.bytes += wire.frames * VLAN_TAG_LEN as u64;
    }
    Ok(wire)
}

/// The fields that name the packet's headers, if they can name them.
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

/// Has the path compute a transport checksum, or computes it here.
fn checksum(
    wire: &mut WirePacket<'_>,
    start: u16,
    offset: u16,
    limits: &Limits,
) -> Result<(), Refusal> {
    let info = classify(&wire.head, wire.len());
    let sums = limits.offloads.transmit;
    let (ip, tcp, udp) = match info.l3 {
        Some(L3Protocol::Ipv4) => (IpType::Ipv4, sums.tcp4, sums.udp4),
        Some(L3Protocol::Ipv6) => (IpType::Ipv6, sums.tcp6, sums.udp6),
        None => (IpType::None, false, false),
    };
    let named = if info.l4_offset() != usize::from(start) {
        None
    } else {
        match (info.l4, offset) {
            (Some(L4Protocol::Tcp), 16) if tcp => tcp_header_length(&wire.head, start.into())
                .and_then(|length| fields(&info, ip, L4Type::Tcp, length)),
            (Some(L4Protocol::Udp), 6) if udp => fields(&info, ip, L4Type::Udp, 8),
            _ => None,
        }
    };
    if let Some(fields) = named {
        wire.metadata = TransmitMetadata::from_avf(fields, None, None);
        return Ok(());
    }
    let mut whole = wire.head.to_vec();
    whole.extend_from_slice(&wire.body);
    finish_checksum(&mut whole, start, offset).ok_or(Refusal::Malformed)?;
    wire.head.clear();
    wire.body = Cow::Owned(whole);
    Ok(())
}

/// Has the path cut a TCP packet into frames.
fn segment(
    wire: &mut WirePacket<'_>,
    segmentation: Segmentation,
    limits: &Limits,
) -> Result<(), Refusal> {
    let length = wire.len();
    let info = classify(&wire.head, length);
    let (ip, can) = match (info.l3, segmentation.kind) {
        (Some(L3Protocol::Ipv4), SegmentationKind::TcpV4) => {
            (IpType::Ipv4Checksum, limits.offloads.large_send_v4)
        }
        (Some(L3Protocol::Ipv6), SegmentationKind::TcpV6) => {
            (IpType::Ipv6, limits.offloads.large_send_v6)
        }
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
    if headers + usize::from(mss).min(payload) > limits.max_frame {
        return Err(Refusal::TooLong);
    }
    if payload <= usize::from(mss) {
        // One frame after all: only the checksum is to be computed, with the length in its seed.
        let start = u16::try_from(info.l4_offset()).map_err(|_| Refusal::Malformed)?;
        checksum(wire, start, 16, limits)?;
        wire.bytes = length as u64;
        return Ok(());
    }
    if !can || !limits.segment_sizes.contains(&mss) {
        return Err(Refusal::Malformed);
    }
    if length > limits.max_segmented {
        return Err(Refusal::TooLong);
    }
    let tcp = wire.head.get_mut(info.l4_offset()..).ok_or(Refusal::Malformed)?;
    remove_length_from_seed(tcp, tcp_length).ok_or(Refusal::Malformed)?;
    wire.metadata = TransmitMetadata::from_avf(fields, Some(mss), None);
    wire.frames = payload.div_ceil(usize::from(mss)) as u64;
    wire.bytes = payload as u64 + wire.frames * headers as u64;
    Ok(())
}

/// What is bad or unknown the kernel checks itself.
fn checked(good: bool) -> VnetHeader {
    let checksum = if good { ChecksumState::Verified } else { ChecksumState::Complete };
    VnetHeader::emit(&PacketOffload { checksum, segmentation: None })
}

/// What the guest's kernel is told of a frame that the VF received.
pub(super) fn from_vf(checksum: RxChecksum) -> VnetHeader {
    checked(checksum.l4 == Check::Good)
}

/// What the guest's kernel is told of a frame that the synthetic adapter received.
pub(super) fn from_synthetic(metadata: &ReceiveMetadata) -> VnetHeader {
    checked(metadata.checksums.l4 == ChecksumVerdict::Good)
}

/// Puts the tag that came beside a frame of `length` bytes into it; `None` if it has no room. The frame begins at the
/// [`VLAN_TAG_LEN`]th byte; with its tag it begins at the first.
pub(super) fn put_tag(place: &mut [u8], tci: u16) -> Option<()> {
    place.copy_within(VLAN_TAG_LEN..VLAN_TAG_LEN + ADDRESSES, 0);
    let tag = place.get_mut(ADDRESSES..ADDRESSES + VLAN_TAG_LEN)?;
    let (tpid, rest) = tag.split_at_mut(2);
    tpid.copy_from_slice(&DOT1Q.to_be_bytes());
    rest.copy_from_slice(&tci.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use linux_network::VlanTag;
    use proptest::prelude::*;

    use super::*;

    fn vf() -> Limits {
        Limits::of_vf(1518)
    }

    fn synthetic() -> Limits {
        Limits::of_synthetic(1514, OffloadCapabilities::ALL)
    }

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
        let wire = to_path(&plain(&packet), &vf()).unwrap();
        assert_eq!(bytes(&wire), packet);
        assert_eq!((wire.frames, wire.bytes), (1, packet.len() as u64));
        let short = [[2; 12].as_slice(), &[8, 6]].concat();
        let wire = to_path(&plain(&short), &vf()).unwrap();
        assert_eq!(bytes(&wire), [short.as_slice(), &[0; 3]].concat());
    }

    #[test]
    fn a_tag_stands_behind_the_addresses() {
        let packet = tcp(false, 100);
        let vlan = Some(VlanTag { tpid: 0x8100, tci: 0x6005 });
        let wire = to_path(&ReceivedPacket { vlan, ..plain(&packet) }, &vf()).unwrap();
        let expected = [&packet[..12], &[0x81, 0, 0x60, 5], &packet[12..]].concat();
        assert_eq!(bytes(&wire), expected);
    }

    #[test]
    fn what_is_too_long_or_contradicts_itself_is_refused() {
        let packet = tcp(false, 1600);
        assert_eq!(to_path(&plain(&packet), &vf()).unwrap_err(), Refusal::TooLong);
        let truncated = ReceivedPacket { truncated: true, ..plain(&packet[..100]) };
        assert_eq!(to_path(&truncated, &vf()).unwrap_err(), Refusal::TooLong);
        assert_eq!(to_path(&plain(&packet[..11]), &vf()).unwrap_err(), Refusal::Malformed);
        // Segmentation of the other kind of IP.
        let segmentation = Some(Segmentation {
            kind: SegmentationKind::TcpV6,
            ecn: false,
            segment_size: 100,
            header_length: 54,
        });
        let checksum = ChecksumState::Partial { start: 34, offset: 16 };
        let odd = received(&packet, PacketOffload { checksum, segmentation });
        assert_eq!(to_path(&odd, &vf()).unwrap_err(), Refusal::Malformed);
    }

    #[test]
    fn a_checksum_that_descriptors_can_name_is_left_to_the_vf_and_another_is_finished_here() {
        for (v6, start) in [(false, 34), (true, 54)] {
            let packet = tcp(v6, 200);
            let checksum = ChecksumState::Partial { start, offset: 16 };
            let offload = PacketOffload { checksum, segmentation: None };
            let wire = to_path(&received(&packet, offload), &vf()).unwrap();
            assert_ne!(wire.avf_offload(), FrameOffload::NONE);
            assert_eq!(bytes(&wire), packet);
            // Somewhere else in the packet, as in a tunnel.
            let checksum = ChecksumState::Partial { start: start + 40, offset: 4 };
            let offload = PacketOffload { checksum, segmentation: None };
            let wire = to_path(&received(&packet, offload), &vf()).unwrap();
            assert_eq!(wire.avf_offload(), FrameOffload::NONE);
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
            let wire = to_path(&received(&packet, offload), &vf()).unwrap();
            assert!(wire.avf_offload().segments());
            assert_eq!((wire.frames, wire.bytes), (8, 10_000 + 8 * headers as u64));
        }
    }

    #[test]
    fn a_tag_goes_beside_the_frame_where_the_path_wants_it_so() {
        let packet = tcp(false, 100);
        let tagged = [&packet[..12], &[0x81, 0, 0x60, 5], &packet[12..]].concat();
        let vlan = Some(VlanTag { tpid: 0x8100, tci: 0x6005 });
        let checksum = ChecksumState::Partial { start: 38, offset: 16 };
        let in_frame = received(&tagged, PacketOffload { checksum, segmentation: None });
        let checksum = ChecksumState::Partial { start: 34, offset: 16 };
        let offload = PacketOffload { checksum, segmentation: None };
        let beside = ReceivedPacket { vlan, ..received(&packet, offload) };
        for given in [in_frame, beside] {
            let wire = to_path(&given, &synthetic()).unwrap();
            assert_eq!(bytes(&wire), packet);
            assert_eq!(wire.metadata.vlan_tci, Some(0x6005));
            assert_eq!(wire.metadata.checksum.unwrap().layout.l4_offset(), 34);
            assert_eq!(wire.bytes, tagged.len() as u64);
        }
        // Another kind of tag stays where it is.
        let vlan = Some(VlanTag { tpid: 0x88A8, tci: 7 });
        let wire = to_path(&ReceivedPacket { vlan, ..plain(&packet) }, &synthetic()).unwrap();
        assert_eq!(wire.metadata.vlan_tci, None);
        assert_eq!(wire.len(), packet.len() + 4);
    }

    #[test]
    fn a_tag_that_came_beside_a_frame_is_put_into_it() {
        let packet = tcp(false, 100);
        let mut place = [&[0; 4], &packet[..]].concat();
        put_tag(&mut place, 0x6005).unwrap();
        assert_eq!(place, [&packet[..12], &[0x81, 0, 0x60, 5], &packet[12..]].concat());
    }

    #[test]
    fn what_a_path_was_not_granted_is_done_here_or_refused() {
        let mut limits = synthetic();
        limits.offloads = OffloadCapabilities::default();
        let packet = tcp(false, 200);
        let checksum = ChecksumState::Partial { start: 34, offset: 16 };
        let offload = PacketOffload { checksum, segmentation: None };
        let wire = to_path(&received(&packet, offload), &limits).unwrap();
        assert_eq!(wire.metadata, TransmitMetadata::default());
        let mut expected = packet.clone();
        finish_checksum(&mut expected, 34, 16).unwrap();
        assert_eq!(bytes(&wire), expected);
        let packet = tcp(false, 10_000);
        let segmentation = Some(Segmentation {
            kind: SegmentationKind::TcpV4,
            ecn: false,
            segment_size: 1400,
            header_length: 54,
        });
        let large = received(&packet, PacketOffload { checksum, segmentation });
        assert_eq!(to_path(&large, &limits).unwrap_err(), Refusal::Malformed);
        let wire = to_path(&large, &synthetic()).unwrap();
        assert_eq!(wire.metadata.segmentation.unwrap().mss, 1400);
    }

    #[test]
    fn packets_of_one_connection_have_one_flow() {
        let wire = |payload| to_path(&plain(&tcp(false, payload)), &vf()).unwrap().flow();
        assert_eq!(wire(10), wire(1000));
        let other = to_path(&plain(&tcp(true, 10)), &vf()).unwrap().flow();
        assert_ne!(wire(10), other);
    }

    proptest! {
        #[test]
        fn any_packet_is_prepared_or_refused(
            packet in prop::collection::vec(any::<u8>(), 0..400),
            kind in 0..3u8, start: u16, offset: u16, segment_size: u16, tag: bool, beside: bool,
        ) {
            let checksum = ChecksumState::Partial { start: start % 420, offset: offset % 64 };
            let kind = match kind {
                0 => None,
                1 => Some(SegmentationKind::TcpV4),
                _ => Some(SegmentationKind::TcpV6),
            };
            let segmentation =
                kind.map(|kind| Segmentation { kind, ecn: false, segment_size, header_length: 0 });
            let vlan = tag.then_some(VlanTag { tpid: 0x8100, tci: 1 });
            let offload = PacketOffload { checksum, segmentation };
            let given = ReceivedPacket { vlan, ..received(&packet, offload) };
            let limits = if beside { synthetic() } else { vf() };
            if let Ok(wire) = to_path(&given, &limits) {
                prop_assert!(wire.len() >= limits.shortest && wire.frames > 0);
                wire.flow();
                wire.avf_offload();
            }
        }
    }
}
