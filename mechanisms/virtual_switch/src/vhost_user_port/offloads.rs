//! Between virtio-net's headers and what the switch says of a frame.
//!
//! A guest says where a checksum begins and where it goes; the switch says whose it is. A large packet's checksum
//! field holds the pseudo-header's sum with the packet's length in virtio, and without it here.

use linux_network::{
    ChecksumState, PacketOffload, Segmentation as VirtioSegmentation, SegmentationKind,
    add_length_to_seed, remove_length_from_seed,
};
use netvsp::{ChecksumRequest, ReceiveMetadata, Segmentation, TransmitMetadata};
use offload::{
    ChecksumVerdict, HeaderLayout, L3Protocol, L4Protocol, MAX_HEADER_LEN, Sum, VLAN_TAG_LEN,
    classify, write_ipv4_header_checksum,
};
use vhost_user_net::Features;

use super::moved_by;
use crate::{
    Frame, NotDelivered, Offloads, Staging,
    frame::{Pieces, behind},
};

/// Where TCP and UDP have their checksums, in their headers.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// The congestion-window-reduced flag, in the TCP header's byte 13.
const TCP_FLAGS: usize = 13;
const TCP_CWR: u8 = 0x80;

/// Hands a guest's packet to `forward` with what its header asks for; `None` if the two contradict each other.
pub(super) fn from_guest(
    frame: &Frame<'_>,
    header: &PacketOffload,
    staging: &Staging,
    forward: &mut dyn FnMut(&[Frame<'_>]),
) -> Option<()> {
    let ChecksumState::Partial { start, offset } = header.checksum else {
        // A large packet always has a partial checksum.
        forward(std::slice::from_ref(frame));
        return Some(());
    };
    let mut head = [0u8; MAX_HEADER_LEN];
    let length = frame.read_head(&mut head);
    let head = head.get_mut(..length)?;
    let info = classify(head, frame.length);
    let known = info.l4_offset() == usize::from(start);
    let l4 = info.l4.filter(|l4| known && checksum_offset(*l4) == Some(offset));
    match (header.segmentation, l4, info.l3) {
        (Some(segmentation), Some(L4Protocol::Tcp), Some(l3)) => {
            let of = match segmentation.kind {
                SegmentationKind::TcpV4 => L3Protocol::Ipv4,
                SegmentationKind::TcpV6 => L3Protocol::Ipv6,
            };
            let l4_len = tcp_length(head.get(usize::from(start)..)?)?;
            let layout = HeaderLayout { mac_len: info.l2_len, ip_len: info.l3_len, l4_len };
            if of != l3 || layout.payload_offset() > head.len() {
                return None;
            }
            let bytes = u16::try_from(frame.length.checked_sub(start.into())?).ok()?;
            remove_length_from_seed(head.get_mut(usize::from(start)..)?, bytes)?;
            let pieces = replace_head(frame, head, staging)?;
            let asked = TransmitMetadata {
                segmentation: Some(Segmentation { mss: segmentation.segment_size, l3, layout }),
                ..TransmitMetadata::default()
            };
            hand_on(frame, &pieces, asked, staging, forward)
        }
        (Some(_), ..) => None,
        (None, Some(l4), Some(l3)) => {
            let l4_len = match l4 {
                L4Protocol::Tcp => tcp_length(head.get(usize::from(start)..)?)?,
                _ => l4.min_header_len(),
            };
            let layout = HeaderLayout { mac_len: info.l2_len, ip_len: info.l3_len, l4_len };
            let request = ChecksumRequest { l3, ip_header: false, l4: Some(l4), layout };
            let asked = TransmitMetadata { checksum: Some(request), ..TransmitMetadata::default() };
            hand_on(frame, frame.pieces, asked, staging, forward)
        }
        // Something of which only the guest knows what it is: within a tunnel, say.
        (None, ..) => {
            let field = usize::from(start) + usize::from(offset);
            let mut body = Pieces::new();
            behind(frame.pieces, length, &mut body)?;
            let mut sum = Sum::of(head.get(usize::from(start)..)?);
            // An odd byte at the head's end is the first half of a word.
            let mut at = length - usize::from(start);
            for piece in &body {
                piece.for_each_chunk(|bytes| {
                    sum.add_bytes_at(at, bytes);
                    at += bytes.len();
                });
            }
            let checksum = match sum.checksum() {
                0 if offset == UDP_CHECKSUM => 0xFFFF,
                checksum => checksum,
            };
            head.get_mut(field..)?.first_chunk_mut().map(|to| *to = checksum.to_be_bytes())?;
            let pieces = replace_head(frame, head, staging)?;
            hand_on(frame, &pieces, TransmitMetadata::default(), staging, forward)
        }
    }
}

const fn checksum_offset(l4: L4Protocol) -> Option<u16> {
    match l4 {
        L4Protocol::Tcp => Some(TCP_CHECKSUM),
        L4Protocol::Udp => Some(UDP_CHECKSUM),
        _ => None,
    }
}

/// Bytes of a TCP header, from its data offset.
fn tcp_length(tcp: &[u8]) -> Option<u16> {
    let words = u16::from(tcp.get(12)? >> 4);
    (words >= 5).then_some(words * 4)
}

/// The pieces of a frame with other first bytes.
fn replace_head<'s, 'f: 's>(
    frame: &Frame<'f>,
    head: &[u8],
    staging: &'s Staging,
) -> Option<Pieces<'s>> {
    let mut pieces = Pieces::new();
    pieces.push(staging.put(&[head])?);
    behind(frame.pieces, head.len(), &mut pieces)?;
    Some(pieces)
}

/// Hands on a frame of these pieces; a tag in its bytes is taken out, for what is asked counts from behind it.
fn hand_on(
    frame: &Frame<'_>,
    pieces: &[shared_memory::SharedSlice<'_>],
    mut asked: TransmitMetadata,
    staging: &Staging,
    forward: &mut dyn FnMut(&[Frame<'_>]),
) -> Option<()> {
    let offloads = Offloads::Asked(asked);
    let frame = Frame { pieces, offloads: &offloads, ..*frame };
    if !frame.is_tagged_inside() {
        forward(&[frame]);
        return Some(());
    }
    let (pieces, tci) = frame.take_tag_out(staging)?;
    let mut head = [[0u8; 8]; 2];
    pieces.first()?.read_into(head.as_flattened_mut());
    let tag = u16::try_from(VLAN_TAG_LEN).ok()?;
    let layouts = [
        asked.checksum.as_mut().map(|checksum| &mut checksum.layout),
        asked.segmentation.as_mut().map(|segmentation| &mut segmentation.layout),
    ];
    for layout in layouts.into_iter().flatten() {
        layout.mac_len = layout.mac_len.checked_sub(tag)?;
    }
    forward(&[Frame {
        head: head.map(u64::from_le_bytes),
        pieces: &pieces,
        length: frame.length.checked_sub(VLAN_TAG_LEN)?,
        tci: Some(tci),
        offloads: &Offloads::Asked(asked),
    }]);
    Some(())
}

/// A frame that a guest gets with its offloads still to be done.
pub(super) struct Passed<'f> {
    pub(super) head: [u64; 2],
    pub(super) pieces: Pieces<'f>,
    pub(super) offload: PacketOffload,
}

/// What is asked of a frame, if the guest does that itself; `None` if it is to be done for it.
///
/// # Errors
/// The offloads contradict the frame.
pub(super) fn pass_on<'s, 'f: 's>(
    frame: &Frame<'f>,
    features: Features,
    staging: &'s Staging,
) -> Result<Option<Passed<'s>>, NotDelivered> {
    let Offloads::Asked(asked) = frame.offloads else { return Ok(None) };
    if !features.contains(Features::GUEST_CSUM) {
        return Ok(None);
    }
    let passed = match (asked.segmentation, asked.checksum) {
        (Some(segmentation), _) => pass_large(frame, &segmentation, features, staging),
        (None, Some(ChecksumRequest { l3, ip_header, l4: Some(l4), layout })) => {
            pass_checksum(frame, (l3, ip_header, l4), layout, staging)
        }
        _ => return Ok(None),
    };
    passed.ok_or(NotDelivered::Malformed)
}

fn pass_checksum<'s, 'f: 's>(
    frame: &Frame<'f>,
    (l3, ip_header, l4): (L3Protocol, bool, L4Protocol),
    layout: HeaderLayout,
    staging: &'s Staging,
) -> Option<Option<Passed<'s>>> {
    let Some(offset) = checksum_offset(l4) else { return Some(None) };
    let start = layout.l4_offset();
    if start + usize::from(offset) + 2 > frame.length {
        return None;
    }
    let mut pieces = Pieces::new();
    let mut first = frame.head;
    if ip_header && l3 == L3Protocol::Ipv4 {
        let mut head = [0u8; MAX_HEADER_LEN];
        let length = frame.read_head(&mut head);
        let head = head.get_mut(..length)?;
        let ip = head.get_mut(usize::from(layout.mac_len)..start)?;
        if !write_ipv4_header_checksum(ip) {
            return None;
        }
        pieces = replace_head(frame, head, staging)?;
        first = pieces.first()?.load_words()?;
    } else {
        behind(frame.pieces, 0, &mut pieces)?;
    }
    let start = u16::try_from(start + moved_by(frame.tci)).ok()?;
    let checksum = ChecksumState::Partial { start, offset };
    let offload = PacketOffload { checksum, segmentation: None };
    Some(Some(Passed { head: first, pieces, offload }))
}

/// Who sends a large packet may leave its lengths and the IP header's checksum open, for each segment has its own.
fn pass_large<'s, 'f: 's>(
    frame: &Frame<'f>,
    segmentation: &Segmentation,
    features: Features,
    staging: &'s Staging,
) -> Option<Option<Passed<'s>>> {
    let Segmentation { mss, l3, layout } = *segmentation;
    let (kind, wanted) = match l3 {
        L3Protocol::Ipv4 => (SegmentationKind::TcpV4, Features::GUEST_TSO4),
        L3Protocol::Ipv6 => (SegmentationKind::TcpV6, Features::GUEST_TSO6),
    };
    let (mac, start, headers) =
        (usize::from(layout.mac_len), layout.l4_offset(), layout.payload_offset());
    // A packet whose length its headers cannot say is cut.
    let Ok(datagram) = u16::try_from(frame.length.checked_sub(mac)?) else { return Some(None) };
    if !features.contains(wanted) {
        return Some(None);
    }
    let mut head = [0u8; MAX_HEADER_LEN];
    let length = frame.read_head(&mut head);
    let head = head.get_mut(..length)?;
    if headers > length || headers >= frame.length || mss == 0 || layout.l4_len < 20 {
        return None;
    }
    let ecn = head.get(start + TCP_FLAGS)? & TCP_CWR != 0;
    if ecn && !features.contains(Features::GUEST_ECN) {
        return Some(None);
    }
    let ip = head.get_mut(mac..start)?;
    match l3 {
        L3Protocol::Ipv4 => {
            *ip.get_mut(2..)?.first_chunk_mut()? = datagram.to_be_bytes();
            if !write_ipv4_header_checksum(ip) {
                return None;
            }
        }
        L3Protocol::Ipv6 => {
            let payload = datagram.checked_sub(40)?;
            *ip.get_mut(4..)?.first_chunk_mut()? = payload.to_be_bytes();
        }
    }
    let bytes = u16::try_from(frame.length.checked_sub(start)?).ok()?;
    add_length_to_seed(head.get_mut(start..)?, bytes)?;
    let pieces = replace_head(frame, head, staging)?;
    let moved = moved_by(frame.tci);
    let checksum =
        ChecksumState::Partial { start: u16::try_from(start + moved).ok()?, offset: TCP_CHECKSUM };
    let header_length = u16::try_from(headers + moved).ok()?;
    let large = VirtioSegmentation { kind, ecn, segment_size: mss, header_length };
    let offload = PacketOffload { checksum, segmentation: Some(large) };
    Some(Some(Passed { head: pieces.first()?.load_words()?, pieces, offload }))
}

/// What a guest is told of a frame that needs nothing any more.
pub(super) fn of_known(known: &ReceiveMetadata, features: Features) -> PacketOffload {
    let verified = is_verified(known, features);
    let checksum = if verified { ChecksumState::Verified } else { ChecksumState::Complete };
    PacketOffload { checksum, segmentation: None }
}

/// Whether a guest that can hear so is told that a frame's checksum is good.
pub(super) fn is_verified(known: &ReceiveMetadata, features: Features) -> bool {
    let good = known.l4.is_some() && known.checksums.l4 == ChecksumVerdict::Good;
    good && features.contains(Features::GUEST_CSUM)
}
