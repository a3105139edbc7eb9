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
