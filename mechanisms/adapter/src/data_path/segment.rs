//! Transmit offloads: checksums that the sender left to the NIC, and segmentation.

use arrayvec::ArrayVec;
use avf_protocol::transmit::{IpType, L4Type, TxOffload};
use offload::{
    HeaderLayout, L4Fill, L4Protocol, MAX_HEADER_LEN, MAX_PAYLOAD_LEN, OffloadError, SegmentKind,
    SegmentPlan, write_ipv4_header_checksum,
};

use super::{
    deliver::Body,
    inspect::{Inspection, inspect, inspect_filled},
    transmit::Packet,
};

/// Most segments of one packet: those that the longest one makes at an MSS of 64 bytes, below which drivers do
/// not go (SPEC-AVF §5.3). A packet is work for the thread that serves all functions.
const MAX_SEGMENTS: u32 = MAX_PAYLOAD_LEN.div_ceil(64);

/// Fills the checksums that the descriptors ask for into `head`, and says what the frame then is.
pub(crate) fn finish_checksums(
    packet: &Packet<'_>,
    head: &mut [u8],
    body: Body<'_>,
) -> Result<Inspection, OffloadError> {
    let TxOffload { ip, l4, mac_length, ip_length, .. } = packet.offload;
    let ip_start = usize::from(mac_length);
    let l4_start = ip_start + usize::from(ip_length);
    if ip == IpType::Ipv4Checksum
        && !head.get_mut(ip_start..l4_start).is_some_and(write_ipv4_header_checksum)
    {
        return Err(OffloadError::WrongHeaderLength { header: "IPv4", stated: ip_length.into() });
    }
    let l4 = match l4 {
        L4Type::None => return Ok(inspect(head, body, packet.length)),
        L4Type::Tcp => L4Protocol::Tcp,
        L4Type::Udp => L4Protocol::Udp,
        L4Type::Sctp => L4Protocol::Sctp,
    };
    let mut fill = L4Fill::new(l4, l4_start, packet.length)?;
    fill.update(head);
    body.for_each_chunk(|bytes| fill.update(bytes));
    if !fill.finish().apply(head) {
        return Err(OffloadError::HeadersTooLong { stated: l4_start, limit: head.len() });
    }
    Ok(inspect_filled(head, body, packet.length, l4, l4_start))
}

/// Cuts a packet into segments and hands each to `emit`: its headers, its part of the payload, and what it is.
/// Returns how many; `None`, and none was handed on, if the descriptors ask for what cannot be done.
pub(crate) fn segment(
    packet: &Packet<'_>,
    head: &[u8],
    mss: u16,
    mut emit: impl FnMut(&[u8], Body<'_>, Inspection),
) -> Option<u16> {
    let TxOffload { l4, mac_length, ip_length, l4_length, .. } = packet.offload;
    let layout =
        HeaderLayout { mac_len: mac_length.into(), ip_len: ip_length, l4_len: l4_length.into() };
    let (kind, l4) = match l4 {
        L4Type::Tcp => (SegmentKind::Tcp, L4Protocol::Tcp),
        L4Type::Udp => (SegmentKind::Udp, L4Protocol::Udp),
        L4Type::None | L4Type::Sctp => return None,
    };
    let headers = layout.payload_offset();
    let payload = packet.length.saturating_sub(headers);
    let payload = u32::try_from(payload).unwrap_or(u32::MAX);
    let mut plan = SegmentPlan::new(head, layout, payload, mss, kind).ok()?;
    let count = Some(plan.segment_count()).filter(|count| *count <= MAX_SEGMENTS)?;
    while let Some(mut segment) = plan.next_segment() {
        let mut header = ArrayVec::<u8, MAX_HEADER_LEN>::new();
        // The plan takes no longer headers.
        let _ = header.try_extend_from_slice(segment.header);
        let body = Body::Guest {
            pieces: &packet.pieces,
            offset: headers + segment.payload.start,
            length: segment.payload.len(),
        };
        body.for_each_chunk(|bytes| segment.update(bytes));
        segment.finish().apply(&mut header);
        let length = header.len() + body.len();
        emit(&header, body, inspect_filled(&header, body, length, l4, layout.l4_offset()));
    }
    u16::try_from(count).ok()
}
