//! What the receive descriptor says about a frame: packet type and checksum verdict.

use avf_protocol::{packet_type::PacketType, receive::legacy};
use offload::{ChecksumVerdict, L4Verifier, PacketInfo, classify, verify_ipv4_header};

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
/// carrying UDP that states no checksum. `None` for everything else.
#[inline(always)]
pub(crate) fn inspect_common(head: &[u8], length: usize) -> Option<(PacketType, u64)> {
    // Ethertype IPv4; version 4 and five header words.
    const IPV4: [u8; 3] = [0x08, 0x00, 0x45];
    let &[_, _, _, _, _, _, _, _, _, _, _, _, t0, t1, v, _, l0, l1, _, _, f0, f1, _, protocol, ..] =
        head.first_chunk::<34>()?;
    let udp = head.get(34..42)?.first_chunk::<8>()?;
    let &[_, _, _, _, u0, u1, c0, c1] = udp;
    let datagram = usize::from(u16::from_be_bytes([l0, l1]));
    let fragment = u16::from_be_bytes([f0, f1]) & 0x3FFF;
    let payload = usize::from(u16::from_be_bytes([u0, u1]));
    let common = [t0, t1, v] == IPV4
        && fragment == 0
        && protocol == 17
        && datagram + 14 <= length
        && payload + 20 == datagram
        && [c0, c1] == [0, 0];
    if !common {
        return None;
    }
    let words = head.get(14..34)?.first_chunk::<20>()?.as_chunks::<4>().0;
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let folded = (sum >> 32) + (sum & 0xFFFF_FFFF);
    let folded = (folded >> 16) + (folded & 0xFFFF);
    let folded = (folded >> 16) + (folded & 0xFFFF);
    let folded = (folded >> 16) + (folded & 0xFFFF);
    Some((PacketType::IPV4_UDP, legacy::L3L4P | bit(folded != 0xFFFF, legacy::IPE)))
}

/// Classifies a frame whose transport checksum this NIC has just computed.
pub(crate) fn inspect_filled(head: &[u8], length: usize) -> Inspection {
    let info = classify(head, length);
    let l4 = if info.l4.is_some() { ChecksumVerdict::Good } else { ChecksumVerdict::NotChecked };
    Inspection::new(head, info, l4)
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
