//! Checking the checksums of received frames.

use crate::{
    checksum::Sum,
    classify::{L3Protocol, L4Protocol, PacketInfo},
    fill::Running,
};

/// What a checksum check found.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub enum ChecksumVerdict {
    /// The checksum is right, or the sender stated that there is none (UDP zero over IPv4).
    Good,
    /// The checksum is wrong.
    Bad,
    /// There is nothing that could be checked: no such header, a fragment, a datagram cut short.
    #[default]
    NotChecked,
}

impl ChecksumVerdict {
    fn good_if(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// The verdicts on both checksums of a frame; for L3L4P, IPE and L4E of the receive descriptor.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct ChecksumVerdicts {
    /// The IPv4 header checksum; not checked for anything but IPv4.
    pub ip: ChecksumVerdict,
    /// The transport checksum.
    pub l4: ChecksumVerdict,
}

/// Checks the IPv4 header checksum. `header` is the start of the frame as given to
/// [`classify`](crate::classify).
#[inline]
pub fn verify_ipv4_header(header: &[u8], info: &PacketInfo) -> ChecksumVerdict {
    if info.l3 != Some(L3Protocol::Ipv4) {
        return ChecksumVerdict::NotChecked;
    }
    match header.get(info.l3_offset()..info.l4_offset()) {
        Some(ip) => ChecksumVerdict::good_if(Sum::of(ip).is_intact()),
        None => ChecksumVerdict::NotChecked,
    }
}

/// A running check of the transport checksum: created from the header, fed the whole frame in order, then
/// asked for its verdict.
#[derive(Clone, Debug)]
pub struct L4Verifier(State);

#[derive(Clone, Debug)]
enum State {
    Decided(ChecksumVerdict),
    Running { sum: Running, sctp: Option<u32> },
}

impl L4Verifier {
    /// Begins a check. `header` is the start of the frame and `info` what
    /// [`classify`](crate::classify) said of it.
    #[inline]
    pub fn new(header: &[u8], info: &PacketInfo) -> Self {
        Self(Self::begin(header, info).unwrap_or(State::Decided(ChecksumVerdict::NotChecked)))
    }

    #[inline(always)]
    fn begin(header: &[u8], info: &PacketInfo) -> Option<State> {
        let (l3, l4) = (info.l3?, info.l4?);
        let mut end = usize::try_from(info.datagram_end?).ok()?;
        if info.ipv6_rerouted {
            return None;
        }
        let start = info.l4_offset();
        let transport = header.get(start..)?;
        if l4 == L4Protocol::Udp {
            let &[_, _, _, _, l0, l1, c0, c1] = transport.first_chunk::<8>()?;
            if [c0, c1] == [0, 0] {
                // RFC 768: no checksum. Over IPv6 that is for the stack to judge (RFC 6935).
                return match l3 {
                    L3Protocol::Ipv4 => Some(State::Decided(ChecksumVerdict::Good)),
                    L3Protocol::Ipv6 => None,
                };
            }
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            if length < 8 || start + length > end {
                return Some(State::Decided(ChecksumVerdict::Bad));
            }
            end = start + length;
        }
        if l4 == L4Protocol::Sctp {
            let &[c0, c1, c2, c3] = transport.get(8..12)?.first_chunk()?;
            return Some(State::Running {
                sum: Running::crc32c(start, end),
                sctp: Some(u32::from_le_bytes([c0, c1, c2, c3])),
            });
        }
        let length = u32::try_from(end.checked_sub(start)?).ok()?;
        let seed = pseudo_header(header, info, l3, l4, length)?;
        Some(State::Running { sum: Running::ones_complement(start, end, seed), sctp: None })
    }

    /// Whether feeding bytes still matters; false when the verdict needs none.
    #[inline]
    pub fn wants_bytes(&self) -> bool {
        matches!(self.0, State::Running { .. })
    }

    /// Takes the next bytes of the frame, from its first byte on.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        if let State::Running { sum, .. } = &mut self.0 {
            sum.update(bytes);
        }
    }

    /// The verdict. Not checked if the frame ended before the datagram did.
    #[inline]
    pub fn finish(self) -> ChecksumVerdict {
        match self.0 {
            State::Decided(verdict) => verdict,
            State::Running { sum, .. } if !sum.is_complete() => ChecksumVerdict::NotChecked,
            State::Running { sum, sctp: Some(stated) } => {
                ChecksumVerdict::good_if(sum.crc() == stated)
            }
            State::Running { sum, sctp: None } => ChecksumVerdict::good_if(sum.sum().is_intact()),
        }
    }
}

/// The pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1); ICMP over IPv4 has none.
#[inline(always)]
fn pseudo_header(
    header: &[u8],
    info: &PacketInfo,
    l3: L3Protocol,
    l4: L4Protocol,
    length: u32,
) -> Option<Sum> {
    let ip = header.get(info.l3_offset()..)?;
    let (addresses, protocol) = match (l3, l4) {
        (L3Protocol::Ipv4, L4Protocol::Icmp) => return Some(Sum::ZERO),
        (L3Protocol::Ipv4, _) => (ip.get(12..20)?, *ip.get(9)?),
        (L3Protocol::Ipv6, L4Protocol::Tcp) => (ip.get(8..40)?, 6),
        (L3Protocol::Ipv6, L4Protocol::Udp) => (ip.get(8..40)?, 17),
        (L3Protocol::Ipv6, L4Protocol::Sctp) => (ip.get(8..40)?, 132),
        (L3Protocol::Ipv6, L4Protocol::Icmp) => (ip.get(8..40)?, 58),
    };
    let mut sum = Sum::of(addresses);
    sum.add_word(u16::from(protocol));
    sum.add_long(length);
    Some(sum)
}

/// Checks both checksums of a frame given in pieces.
///
/// `header` is the start of the frame and `info` what [`classify`](crate::classify) said of it; `pieces`
/// are all bytes of the frame in order, those of `header` again included.
#[inline]
pub fn verify<'a>(
    header: &[u8],
    info: &PacketInfo,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> ChecksumVerdicts {
    let ip = verify_ipv4_header(header, info);
    let mut l4 = L4Verifier::new(header, info);
    if l4.wants_bytes() {
        for piece in pieces {
            l4.update(piece);
        }
    }
    ChecksumVerdicts { ip, l4: l4.finish() }
}
