//! What the receive descriptor says about a frame: packet type and checksum verdict.

use avf_protocol::{packet_type::PacketType, receive::legacy};
use offload::{ChecksumVerdict, L4Protocol, L4Verifier, PacketInfo, classify, verify_ipv4_header};

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
/// carrying UDP that states no checksum. `None` for everything else. `words` are the first 48 bytes of a frame of
/// `length`; all fields are read as they lie in memory, least byte first.
#[inline(always)]
pub(crate) fn inspect_common(words: &[u64; 6], length: usize) -> Option<(PacketType, u64)> {
    // Bytes 12 to 14: ethertype, version, header length.
    const IPV4_FIVE_WORDS: u64 = 0x45_0008;
    // Bytes 20, 21 and 23: more fragments, fragment offset, protocol.
    const FRAGMENT_AND_PROTOCOL: u64 = 0xFF00_FF3F << 32;
    const WHOLE_UDP: u64 = 17 << 56;
    let [_, w1, w2, w3, w4, w5] = *words;
    let datagram = big_endian(w2);
    let payload = big_endian(w4 >> 48);
    let common = (w1 >> 32) & 0xFF_FFFF == IPV4_FIVE_WORDS
        && w2 & FRAGMENT_AND_PROTOCOL == WHOLE_UDP
        && datagram + 14 <= length
        && payload + 20 == datagram
        && payload >= 8
        && w5 & 0xFFFF == 0;
    if !common {
        return None;
    }
    // The header lies from byte 14 to 34. Its sum is a multiple of 2^16 - 1 exactly if it is sound: it is not 0.
    let half = |word: u64| (word & 0xFFFF_FFFF) + (word >> 32);
    let sum = (w1 >> 48) + half(w2) + half(w3) + (w4 & 0xFFFF);
    let sound = sum.is_multiple_of(0xFFFF);
    Some((PacketType::IPV4_UDP, legacy::L3L4P | bit(!sound, legacy::IPE)))
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
