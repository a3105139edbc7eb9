//! What the receive descriptor says about a frame: packet type and checksum verdict.

use avf_protocol::{packet_type::PacketType, receive::legacy};
use offload::{ChecksumVerdict, L4Protocol, L4Verifier, PacketInfo, classify, verify_ipv4_header};
use shared_memory::SharedSlice;

use super::deliver::Body;

/// What is known of a frame's contents.
#[derive(Copy, Clone)]
pub(crate) struct Inspection {
    /// Its layers.
    pub(crate) info: PacketInfo,
    /// As the descriptor names it.
    pub(crate) packet_type: PacketType,
    /// Status and error bits of [`legacy`].
    pub(crate) status: u64,
}

/// Classifies a frame and checks its checksums, as the hardware does for what comes from the wire.
#[inline]
pub(crate) fn inspect(head: &[u8], body: Body<'_>, length: usize) -> Inspection {
    let info = classify(head, length);
    let mut check = L4Verifier::new(head, &info);
    if check.wants_bytes() {
        check.update(head);
        body.for_each_chunk(|bytes| check.update(bytes));
    }
    Inspection::new(head, info, check.finish())
}

/// [`inspect`] for the most common frames, in a few instructions: IPv4 without options, tags or fragments,
/// carrying UDP that states no checksum. `None` for everything else. `head` are the first 16 bytes.
#[inline(always)]
pub(crate) fn inspect_common(head: [u64; 2], frame: SharedSlice<'_>) -> Option<(PacketType, u64)> {
    // All fields are read as they lie in memory, least byte first.
    const IPV4: u64 = 0x0008;
    const VERSION_4_FIVE_WORDS: u64 = 0x45;
    const UDP: u64 = 17;
    // The bits of flags and fragment offset that a fragment has: more fragments, and the offset.
    const FRAGMENT: u64 = 0xFF3F;
    let [_, second] = head;
    if (second >> 32) & 0xFFFF != IPV4 {
        return None;
    }
    let (a, b) = (frame.load_bytes8(14)?, frame.load_bytes8(22)?);
    let (c, udp) = (frame.load_bytes8(26)? >> 32, frame.load_bytes8(34)?);
    let datagram = big_endian(a >> 16);
    let payload = big_endian(udp >> 32);
    let common = a & 0xFF == VERSION_4_FIVE_WORDS
        && (a >> 48) & FRAGMENT == 0
        && (b >> 8) & 0xFF == UDP
        && datagram + 14 <= frame.len()
        && payload + 20 == datagram
        && payload >= 8
        && udp >> 48 == 0;
    if !common {
        return None;
    }
    let sum = (a & 0xFFFF_FFFF) + (a >> 32) + (b & 0xFFFF_FFFF) + (b >> 32) + c;
    let sum = (sum & 0xFFFF) + ((sum >> 16) & 0xFFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    Some((PacketType::IPV4_UDP, legacy::L3L4P | bit(sum != 0xFFFF, legacy::IPE)))
}

/// The 16-bit number whose bytes, most significant first, are the low two of `word`.
#[inline(always)]
fn big_endian(word: u64) -> usize {
    let [high, low, ..] = word.to_le_bytes();
    usize::from(u16::from_be_bytes([high, low]))
}

/// Classifies a frame for which this NIC has just computed the checksum of an `l4` packet from `l4_start` to its
/// end. If that is not what the frame is, it is checked like any other.
pub(crate) fn inspect_filled(
    head: &[u8],
    body: Body<'_>,
    length: usize,
    l4: L4Protocol,
    l4_start: usize,
) -> Inspection {
    let info = classify(head, length);
    let ends_with_datagram = info.datagram_end.is_some_and(|end| end as usize == length);
    if info.l4 == Some(l4) && info.l4_offset() == l4_start && ends_with_datagram {
        Inspection::new(head, info, ChecksumVerdict::Good)
    } else {
        inspect(head, body, length)
    }
}

impl Inspection {
    #[inline(always)]
    fn new(head: &[u8], info: PacketInfo, l4: ChecksumVerdict) -> Self {
        let ip = verify_ipv4_header(head, &info);
        let checked = match info.l4 {
            Some(_) => l4 != ChecksumVerdict::NotChecked,
            None => ip != ChecksumVerdict::NotChecked,
        };
        let status = bit(checked, legacy::L3L4P)
            | bit(ip == ChecksumVerdict::Bad, legacy::IPE)
            | bit(l4 == ChecksumVerdict::Bad, legacy::L4E)
            | bit(info.ipv6_extensions, legacy::IPV6EXADD);
        Self { info, packet_type: PacketType(info.packet_type.code()), status }
    }
}

#[inline(always)]
const fn bit(set: bool, mask: u64) -> u64 {
    if set { mask } else { 0 }
}
