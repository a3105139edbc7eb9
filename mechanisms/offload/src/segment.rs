//! TCP and UDP segmentation (TSO, USO; SPEC-AVF §5.3): from one header and up to 2^18-1 bytes of payload to
//! the headers of the segments, leaving payload copying and its checksumming to the caller.

use std::ops::Range;

use crate::{
    OffloadError,
    checksum::{Sum, write_ipv4_header_checksum},
    classify::{IP_TCP, IP_UDP, L3Protocol, L4Protocol},
    fill::{ChecksumPatch, Running, finish},
};

/// The longest MAC, IP and transport headers together that segmentation takes, bytes.
pub const MAX_HEADER_LEN: usize = 256;
/// The most payload that a context descriptor can state (18 bits), bytes.
pub const MAX_PAYLOAD_LEN: u32 = (1 << 18) - 1;

/// Lengths of the headers of a frame, bytes, as its descriptors state them.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct HeaderLayout {
    /// Ethernet header with the tags in the payload.
    pub mac_len: u16,
    /// IP header with options or extension headers.
    pub ip_len: u16,
    /// Transport header with options.
    pub l4_len: u16,
}

impl HeaderLayout {
    /// From the descriptor fields MACLEN (2-byte words), IPLEN and L4LEN (4-byte words).
    #[inline]
    pub fn from_descriptor(maclen: u8, iplen: u8, l4len: u8) -> Self {
        Self {
            mac_len: u16::from(maclen) * 2,
            ip_len: u16::from(iplen) * 4,
            l4_len: u16::from(l4len) * 4,
        }
    }

    /// Where the transport header begins.
    #[inline]
    pub fn l4_offset(&self) -> usize {
        usize::from(self.mac_len) + usize::from(self.ip_len)
    }

    /// Where the payload begins.
    #[inline]
    pub fn payload_offset(&self) -> usize {
        self.l4_offset() + usize::from(self.l4_len)
    }
}

/// What is segmented.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum SegmentKind {
    /// A TCP stream (TSO).
    Tcp,
    /// UDP datagrams of equal size (USO).
    Udp,
}

/// One frame's segmentation.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    /// The guest's header; patched in place for each segment.
    header: [u8; MAX_HEADER_LEN],
    layout: HeaderLayout,
    l3: L3Protocol,
    kind: SegmentKind,
    payload_len: u32,
    mss: u16,
    /// Payload bytes already handed out, and segments.
    done: u32,
    index: u32,
    /// From the guest's header.
    sequence: u32,
    flags: u8,
    identification: u16,
}

/// One segment: its header, which part of the payload follows it, and its checksum so far.
#[derive(Debug)]
pub struct Segment<'a> {
    /// MAC, IP and transport headers; complete except for the transport checksum.
    pub header: &'a [u8],
    /// The segment's bytes of the payload, counted from the payload's first byte.
    pub payload: Range<usize>,
    sum: Running,
    l4: L4Protocol,
}

impl Segment<'_> {
    /// Bytes of the whole segment as a frame.
    #[inline]
    pub fn frame_len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// Takes the next bytes of this segment's payload.
    #[inline]
    pub fn update(&mut self, payload: &[u8]) {
        self.sum.update(payload);
    }

    /// The transport checksum, once all of the segment's payload was taken; offsets are those of the
    /// segment.
    #[inline]
    pub fn finish(self) -> ChecksumPatch {
        finish(&self.sum, self.l4)
    }
}

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

impl SegmentPlan {
    /// Plans the segments of a frame.
    ///
    /// `header` is the start of the frame, at least the headers that `layout` states; `payload_len` the
    /// bytes that follow the headers; `mss` the payload bytes of a full segment. The transport checksum
    /// field holds the pseudo-header's sum without the length, as the guest seeded it.
    pub fn new(
        header: &[u8],
        layout: HeaderLayout,
        payload_len: u32,
        mss: u16,
        kind: SegmentKind,
    ) -> Result<Self, OffloadError> {
        if mss == 0 {
            return Err(OffloadError::ZeroMss);
        }
        if payload_len > MAX_PAYLOAD_LEN {
            return Err(OffloadError::PayloadTooLong { length: payload_len });
        }
        let header_len = layout.payload_offset();
        if header_len > MAX_HEADER_LEN {
            return Err(OffloadError::HeadersTooLong { stated: header_len, limit: MAX_HEADER_LEN });
        }
        let beyond =
            OffloadError::HeadersBeyondData { stated: header_len, available: header.len() };
        let given = header.get(..header_len).ok_or(beyond)?;
        if layout.mac_len < 14 {
            return Err(OffloadError::WrongHeaderLength {
                header: "MAC",
                stated: usize::from(layout.mac_len),
            });
        }
        let ip = given.get(usize::from(layout.mac_len)..layout.l4_offset()).ok_or(beyond)?;
        let l4 = given.get(layout.l4_offset()..).ok_or(beyond)?;
        let l3 = check_ip(ip, kind)?;
        let (sequence, flags) = check_l4(l4, kind)?;
        let identification = match (l3, ip.get(4..6).and_then(|field| field.first_chunk())) {
            (L3Protocol::Ipv4, Some(field)) => u16::from_be_bytes(*field),
            _ => 0,
        };
        let datagram = header_len - usize::from(layout.mac_len)
            + usize::from(mss).min(usize::try_from(payload_len).unwrap_or(usize::MAX));
        if datagram > usize::from(u16::MAX) {
            return Err(OffloadError::SegmentTooLong { length: datagram });
        }
        let mut own = [0; MAX_HEADER_LEN];
        own.get_mut(..header_len).ok_or(beyond)?.copy_from_slice(given);
        Ok(Self {
            header: own,
            layout,
            l3,
            kind,
            payload_len,
            mss,
            done: 0,
            index: 0,
            sequence,
            flags,
            identification,
        })
    }

    /// Segments in all; at least one.
    #[inline]
    pub fn segment_count(&self) -> u32 {
        self.payload_len.div_ceil(u32::from(self.mss)).max(1)
    }

    /// Bytes of the longest segment as a frame.
    #[inline]
    pub fn max_frame_len(&self) -> usize {
        let payload = u32::from(self.mss).min(self.payload_len);
        self.layout.payload_offset() + usize::try_from(payload).unwrap_or(usize::MAX)
    }

    /// The next segment; `None` after the last.
    #[inline]
    pub fn next_segment(&mut self) -> Option<Segment<'_>> {
        if self.index >= self.segment_count() {
            return None;
        }
        let left = self.payload_len - self.done;
        let length = u16::try_from(left).unwrap_or(u16::MAX).min(self.mss);
        let last = u32::from(length) == left;
        let start = usize::try_from(self.done).ok()?;
        let header_len = self.layout.payload_offset();
        let header = self.header.get_mut(..header_len)?;
        let (_, above_mac) = header.split_at_mut_checked(usize::from(self.layout.mac_len))?;
        let (ip, l4) = above_mac.split_at_mut_checked(usize::from(self.layout.ip_len))?;
        let l4_and_payload = self.layout.l4_len + length;

        match self.l3 {
            L3Protocol::Ipv4 => {
                let &mut [_, _, ref mut t0, ref mut t1, ref mut i0, ref mut i1] =
                    ip.first_chunk_mut::<6>()?;
                [*t0, *t1] = (self.layout.ip_len + l4_and_payload).to_be_bytes();
                // Identification rises by one a segment, modulo 2^16.
                #[expect(clippy::cast_possible_truncation, reason = "modulo 2^16 is meant")]
                let identification = self.identification.wrapping_add(self.index as u16);
                [*i0, *i1] = identification.to_be_bytes();
                write_ipv4_header_checksum(ip);
            }
            L3Protocol::Ipv6 => {
                let &mut [_, _, _, _, ref mut p0, ref mut p1] = ip.first_chunk_mut::<6>()?;
                [*p0, *p1] = (self.layout.ip_len - 40 + l4_and_payload).to_be_bytes();
            }
        }
        let protocol = match self.kind {
            SegmentKind::Tcp => {
                let head = l4.first_chunk_mut::<14>()?;
                let &mut [
                    _,
                    _,
                    _,
                    _,
                    ref mut s0,
                    ref mut s1,
                    ref mut s2,
                    ref mut s3,
                    ..,
                    ref mut flags,
                ] = head;
                [*s0, *s1, *s2, *s3] = self.sequence.wrapping_add(self.done).to_be_bytes();
                let mut kept = self.flags;
                if !last {
                    kept &= !(TCP_FIN | TCP_PSH);
                }
                if self.index != 0 {
                    kept &= !TCP_CWR;
                }
                *flags = kept;
                L4Protocol::Tcp
            }
            SegmentKind::Udp => {
                let &mut [_, _, _, _, ref mut l0, ref mut l1, ..] = l4.first_chunk_mut::<8>()?;
                [*l0, *l1] = l4_and_payload.to_be_bytes();
                L4Protocol::Udp
            }
        };
        // The seed in the checksum field has the rest of the pseudo-header.
        let mut sum = Sum::of(l4);
        sum.add_word(l4_and_payload);
        let frame_len = header_len + usize::from(length);
        let sum =
            Running::ones_complement(self.layout.l4_offset(), frame_len, sum).skip_to(header_len);
        self.done += u32::from(length);
        self.index += 1;
        Some(Segment { header, payload: start..start + usize::from(length), sum, l4: protocol })
    }
}

fn check_ip(ip: &[u8], kind: SegmentKind) -> Result<L3Protocol, OffloadError> {
    let expected = match kind {
        SegmentKind::Tcp => IP_TCP,
        SegmentKind::Udp => IP_UDP,
    };
    let first = ip.first().copied().unwrap_or(0);
    match first >> 4 {
        4 => {
            if ip.len() < 20 || usize::from(first & 0xF) * 4 != ip.len() {
                return Err(OffloadError::WrongHeaderLength { header: "IPv4", stated: ip.len() });
            }
            match ip.get(9) {
                Some(&found) if found != expected => {
                    Err(OffloadError::WrongProtocol { found, expected })
                }
                _ => Ok(L3Protocol::Ipv4),
            }
        }
        6 => {
            if ip.len() < 40 {
                return Err(OffloadError::WrongHeaderLength { header: "IPv6", stated: ip.len() });
            }
            match ip.get(6) {
                // With extension headers the chain names the protocol; the descriptor is believed.
                Some(&found) if found != expected && ip.len() == 40 => {
                    Err(OffloadError::WrongProtocol { found, expected })
                }
                _ => Ok(L3Protocol::Ipv6),
            }
        }
        version => Err(OffloadError::NotIp { version }),
    }
}

/// Checks the transport header; for TCP yields sequence number and flags.
fn check_l4(l4: &[u8], kind: SegmentKind) -> Result<(u32, u8), OffloadError> {
    let stated = l4.len();
    match kind {
        SegmentKind::Tcp => {
            let wrong = OffloadError::WrongHeaderLength { header: "TCP", stated };
            let head = l4.first_chunk::<20>().ok_or(wrong)?;
            let &[_, _, _, _, s0, s1, s2, s3, _, _, _, _, offset, flags, ..] = head;
            if usize::from(offset >> 4) * 4 != stated {
                return Err(wrong);
            }
            Ok((u32::from_be_bytes([s0, s1, s2, s3]), flags))
        }
        SegmentKind::Udp if stated != 8 => {
            Err(OffloadError::WrongHeaderLength { header: "UDP", stated })
        }
        SegmentKind::Udp => Ok((0, 0)),
    }
}
