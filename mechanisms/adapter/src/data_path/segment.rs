//! Transmit offloads: checksums that the sender left to the NIC, and segmentation.

use arrayvec::ArrayVec;
use avf_protocol::transmit::{IpType, L4Type, TxOffload};
use offload::{
    HeaderLayout, L4Fill, L4Protocol, MAX_HEADER_LEN, OffloadError, SegmentKind, SegmentPlan,
    write_ipv4_header_checksum,
};

use super::{
    deliver::Body,
    inspect::{Inspection, inspect, inspect_filled},
    transmit::Packet,
};

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
    Ok(inspect_filled(head, packet.length))
}

/// Cuts a packet into segments and hands each to `emit`: its headers, its part of the payload, and what it is.
pub(crate) fn segment(
    packet: &Packet<'_>,
    head: &[u8],
    mss: u16,
    mut emit: impl FnMut(&[u8], Body<'_>, Inspection),
) -> Result<(), OffloadError> {
    let TxOffload { l4, mac_length, ip_length, l4_length, .. } = packet.offload;
    let layout =
        HeaderLayout { mac_len: mac_length.into(), ip_len: ip_length, l4_len: l4_length.into() };
    let kind = match l4 {
        L4Type::Tcp => SegmentKind::Tcp,
        L4Type::Udp => SegmentKind::Udp,
        L4Type::None | L4Type::Sctp => return Err(OffloadError::NoChecksum(L4Protocol::Sctp)),
    };
    let headers = layout.payload_offset();
    let payload = packet.length.saturating_sub(headers);
    let mut plan =
        SegmentPlan::new(head, layout, u32::try_from(payload).unwrap_or(u32::MAX), mss, kind)?;
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
        emit(&header, body, inspect_filled(&header, length));
    }
    Ok(())
}
