//! Does in software what a frame still asks for, for a receiver that takes only what could be on a wire.

use arrayvec::ArrayVec;
use netvsp::{ChecksumRequest, ReceiveMetadata, Segmentation};
use offload::{
    ChecksumVerdict, ChecksumVerdicts, L3Protocol, L4Fill, L4Protocol, MAX_HEADER_LEN, SegmentKind,
    SegmentPlan, write_ipv4_header_checksum,
};
use shared_memory::SharedSlice;

use crate::{
    Frame, NotDelivered, Offloads, Staging,
    frame::{Pieces, behind, range},
};

/// Segments of one large send, at most.
const MAX_SEGMENTS: u32 = 1024;

/// A frame that needs nothing any more.
pub(crate) struct Finished<'f> {
    pub(crate) head: [u64; 2],
    pub(crate) pieces: &'f [SharedSlice<'f>],
    /// What is known of it; its tag is the frame's.
    pub(crate) known: ReceiveMetadata,
}

/// Hands the frames that `frame` becomes to `each`: itself, with its checksums, or its segments. The first that is
/// not taken ends it.
pub(crate) fn finish(
    frame: &Frame<'_>,
    staging: &mut Staging,
    mut each: impl FnMut(&Finished<'_>) -> Result<(), NotDelivered>,
) -> Result<(), NotDelivered> {
    staging.clear();
    let known = |checksums, l4, hash| ReceiveMetadata { checksums, l4, vlan_tci: frame.tci, hash };
    let asked = match frame.offloads {
        Offloads::Known(of) => {
            let known = known(of.checksums, of.l4, of.hash);
            return each(&Finished { head: frame.head, pieces: frame.pieces, known });
        }
        Offloads::Asked(asked) => asked,
    };
    match (asked.segmentation, asked.checksum) {
        (Some(segmentation), _) => {
            let known = known(good(segmentation.l3), Some(L4Protocol::Tcp), None);
            segments(frame, segmentation, known, staging, each)
        }
        (None, Some(request)) => {
            let mut pieces = Pieces::new();
            let l4 = if request.l4.is_some() {
                ChecksumVerdict::Good
            } else {
                ChecksumVerdict::NotChecked
            };
            let known = known(ChecksumVerdicts { l4, ..good(request.l3) }, request.l4, None);
            let head = fill(frame, request, staging, &mut pieces)?;
            each(&Finished { head, pieces: &pieces, known })
        }
        (None, None) => {
            let known = known(ChecksumVerdicts::default(), None, None);
            each(&Finished { head: frame.head, pieces: frame.pieces, known })
        }
    }
}

const fn good(l3: L3Protocol) -> ChecksumVerdicts {
    let ip = match l3 {
        L3Protocol::Ipv4 => ChecksumVerdict::Good,
        L3Protocol::Ipv6 => ChecksumVerdict::NotChecked,
    };
    ChecksumVerdicts { ip, l4: ChecksumVerdict::Good }
}

/// Fills checksums into a copy of the frame's head; returns its first 16 bytes.
fn fill<'s>(
    frame: &Frame<'s>,
    request: ChecksumRequest,
    staging: &'s Staging,
    pieces: &mut Pieces<'s>,
) -> Result<[u64; 2], NotDelivered> {
    let mut head = [0u8; MAX_HEADER_LEN];
    let length = frame.read_head(&mut head);
    let head = head.get_mut(..length).ok_or(NotDelivered::Malformed)?;
    let ip = usize::from(request.layout.mac_len);
    let l4_start = request.layout.l4_offset();
    if request.ip_header && !head.get_mut(ip..l4_start).is_some_and(write_ipv4_header_checksum) {
        return Err(NotDelivered::Malformed);
    }
    let mut body = Pieces::new();
    behind(frame.pieces, length, &mut body).ok_or(NotDelivered::Malformed)?;
    if let Some(l4) = request.l4 {
        let mut sum =
            L4Fill::new(l4, l4_start, frame.length).map_err(|_| NotDelivered::Malformed)?;
        sum.update(head);
        body.iter().for_each(|piece| piece.for_each_chunk(|bytes| sum.update(bytes)));
        if !sum.finish().apply(head) {
            return Err(NotDelivered::Malformed);
        }
    }
    let staged = staging.put(&[head]).ok_or(NotDelivered::NoBuffer)?;
    pieces.push(staged);
    pieces.try_extend_from_slice(&body).map_err(|_| NotDelivered::Malformed)?;
    staged.load_words().ok_or(NotDelivered::Malformed)
}

/// Cuts a large send.
fn segments(
    frame: &Frame<'_>,
    segmentation: Segmentation,
    known: ReceiveMetadata,
    staging: &mut Staging,
    mut each: impl FnMut(&Finished<'_>) -> Result<(), NotDelivered>,
) -> Result<(), NotDelivered> {
    let mut head = [0u8; MAX_HEADER_LEN];
    let length = frame.read_head(&mut head);
    let head = head.get(..length).ok_or(NotDelivered::Malformed)?;
    let Segmentation { mss, layout, .. } = segmentation;
    let headers = layout.payload_offset();
    let payload = frame
        .length
        .checked_sub(headers)
        .and_then(|payload| u32::try_from(payload).ok())
        .ok_or(NotDelivered::Malformed)?;
    let mut plan = SegmentPlan::new(head, layout, payload, mss, SegmentKind::Tcp)
        .map_err(|_| NotDelivered::Malformed)?;
    if plan.segment_count() > MAX_SEGMENTS {
        return Err(NotDelivered::Malformed);
    }
    while let Some(mut segment) = plan.next_segment() {
        let mut header = ArrayVec::<u8, MAX_HEADER_LEN>::new();
        // The plan takes no longer headers.
        let _ = header.try_extend_from_slice(segment.header);
        let mut body = Pieces::new();
        let part = segment.payload.clone();
        range(frame.pieces, headers + part.start, part.len(), &mut body)
            .ok_or(NotDelivered::Malformed)?;
        body.iter().for_each(|piece| piece.for_each_chunk(|bytes| segment.update(bytes)));
        segment.finish().apply(&mut header);
        staging.clear();
        let staged = staging.put(&[&header]).ok_or(NotDelivered::NoBuffer)?;
        let mut pieces = Pieces::new();
        pieces.push(staged);
        pieces.try_extend_from_slice(&body).map_err(|_| NotDelivered::Malformed)?;
        let head = staged.load_words().ok_or(NotDelivered::Malformed)?;
        each(&Finished { head, pieces: &pieces, known })?;
    }
    Ok(())
}
