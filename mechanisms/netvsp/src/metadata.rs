//! What is said of a frame beside its bytes, in terms that NetVSP, the switch and an AVF queue pair share.

use avf_protocol::{
    packet_type::{PacketType, Payload},
    transmit::{IpType, L4Type, TxOffload},
};
use netvsp_protocol::{
    ParseError,
    offload::MAX_LARGE_SEND,
    packet::{LargeSend, PerPacketInfo, RxChecksum, TxChecksum, VlanInfo},
};
use offload::{
    ChecksumVerdict, ChecksumVerdicts, HeaderLayout, L3Protocol, L4Protocol, MAX_HEADER_LEN,
    classify,
};

/// Checksums that are to be filled in before the frame is on a wire.
///
/// The transport checksum field holds the pseudo-header's sum, as [`offload::L4Fill`] and AVF want it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ChecksumRequest {
    /// The network protocol.
    pub l3: L3Protocol,
    /// Whether the IPv4 header checksum is wanted.
    pub ip_header: bool,
    /// TCP or UDP, if its checksum is wanted.
    pub l4: Option<L4Protocol>,
    /// Where the headers are. Without `l4`, the transport header's length is 0.
    pub layout: HeaderLayout,
}

/// TCP segmentation: what [`offload::SegmentPlan`] and an AVF context descriptor want to know.
///
/// The TCP checksum field holds the pseudo-header's sum without the length.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Segmentation {
    /// Payload bytes of a full segment.
    pub mss: u16,
    /// The network protocol.
    pub l3: L3Protocol,
    /// Where the headers are.
    pub layout: HeaderLayout,
}

/// What a guest says of a frame that it sends.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct TransmitMetadata {
    /// Checksums to fill in.
    pub checksum: Option<ChecksumRequest>,
    /// Segmentation; includes all checksums.
    pub segmentation: Option<Segmentation>,
    /// The tag of the frame, which is not in its bytes.
    pub vlan_tci: Option<u16>,
    /// The flow's hash, as the guest computed it.
    pub hash: Option<u32>,
}

/// What a guest is told of a frame that it receives.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct ReceiveMetadata {
    /// What is known of the checksums.
    pub checksums: ChecksumVerdicts,
    /// Whose transport checksum it is that the verdict is about.
    pub l4: Option<L4Protocol>,
    /// The tag of the frame, which is not in its bytes.
    pub vlan_tci: Option<u16>,
    /// The flow's hash.
    pub hash: Option<u32>,
}

const fn wrong(field: &'static str, value: usize) -> ParseError {
    ParseError::Field { message: "PACKET", field, value: value as u64 }
}

/// Bytes of the Ethernet header with the tags that are in the frame (two at most).
#[inline]
fn mac_length(head: &[u8]) -> u16 {
    let mut at = 12;
    for length in [14, 18] {
        let tag =
            head.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u16::from_be_bytes(*b));
        if !matches!(tag, Some(0x8100 | 0x88A8 | 0x9100)) {
            return length;
        }
        at += 4;
    }
    22
}

/// Bytes of a TCP header, from its data offset.
#[inline]
fn tcp_length(head: &[u8], tcp: usize, frame_length: usize) -> Result<u16, ParseError> {
    let nibble = head.get(tcp + 12).ok_or(wrong("tcp_header_offset", tcp))? >> 4;
    let length = usize::from(nibble) * 4;
    if length < 20 || tcp + length > frame_length {
        return Err(wrong("tcp_data_offset", length));
    }
    Ok(u16::from(nibble) * 4)
}

fn layout(head: &[u8], transport: u16, l4_len: u16) -> Result<HeaderLayout, ParseError> {
    let mac_len = mac_length(head);
    match transport.checked_sub(mac_len) {
        Some(ip_len) if ip_len >= 20 => Ok(HeaderLayout { mac_len, ip_len, l4_len }),
        _ => Err(wrong("transport_header_offset", usize::from(transport))),
    }
}

impl TransmitMetadata {
    /// Bytes of a frame's beginning that [`Self::from_wire`] may want to look at.
    pub(crate) const HEAD: usize = MAX_HEADER_LEN;

    /// Whether [`Self::from_wire`] needs more than the first 16 bytes.
    #[inline]
    pub(crate) fn wants_headers(info: &PerPacketInfo) -> bool {
        info.checksum.is_some() || info.large_send.is_some()
    }

    /// From per-packet information and the frame's beginning.
    #[inline]
    pub(crate) fn from_wire(
        info: &PerPacketInfo,
        head: &[u8],
        frame_length: usize,
    ) -> Result<Self, ParseError> {
        let mut metadata = Self {
            checksum: None,
            segmentation: None,
            vlan_tci: info.vlan.map(VlanInfo::tci),
            hash: info.hash,
        };
        match info.large_send {
            // A large send with an MSS of 0 asks for nothing: some guests send the element always.
            Some(lso) if lso.mss() != 0 => {
                metadata.segmentation = Some(segmentation(lso, head, frame_length)?);
            }
            _ => {
                if let Some(request) = info.checksum {
                    metadata.checksum = checksum(TxChecksum(request), head, frame_length)?;
                }
            }
        }
        Ok(metadata)
    }

    /// As a guest says it.
    #[must_use]
    pub fn to_wire(&self) -> PerPacketInfo {
        let offset = |layout: HeaderLayout| u16::try_from(layout.l4_offset()).unwrap_or(0);
        let checksum = self.checksum.map(|request| {
            let offset = offset(request.layout);
            let mut sum = match request.l3 {
                L3Protocol::Ipv4 => TxChecksum::ipv4(offset),
                L3Protocol::Ipv6 => TxChecksum::ipv6(offset),
            };
            match request.l4 {
                Some(L4Protocol::Tcp) => sum = sum.with_tcp(),
                Some(L4Protocol::Udp) => sum = sum.with_udp(),
                _ => {}
            }
            if request.ip_header { sum.with_ip_header().0 } else { sum.0 }
        });
        let large_send = self
            .segmentation
            .map(|s| LargeSend::v2(u32::from(s.mss), offset(s.layout), s.l3 == L3Protocol::Ipv6));
        PerPacketInfo {
            checksum,
            large_send,
            vlan: self.vlan_tci.map(VlanInfo::from_tci),
            hash: self.hash,
            packet_id: None,
        }
    }

    /// The same for an AVF queue: offload fields of the data descriptors, and MSS and bytes of headers if the frame
    /// is to be segmented. The tag goes where the VPort's VLAN setting says.
    #[must_use]
    pub fn to_avf(&self) -> (TxOffload, Option<(u16, u16)>) {
        let (l3, ip_header, l4, layout) = match (&self.segmentation, &self.checksum) {
            (Some(s), _) => (s.l3, true, Some(L4Protocol::Tcp), s.layout),
            (None, Some(c)) => (c.l3, c.ip_header, c.l4, c.layout),
            (None, None) => return (TxOffload::default(), None),
        };
        let fields = TxOffload {
            ip: match (l3, ip_header) {
                (L3Protocol::Ipv4, true) => IpType::Ipv4Checksum,
                (L3Protocol::Ipv4, false) => IpType::Ipv4,
                (L3Protocol::Ipv6, _) => IpType::Ipv6,
            },
            l4: match l4 {
                Some(L4Protocol::Tcp) => L4Type::Tcp,
                Some(L4Protocol::Udp) => L4Type::Udp,
                _ => L4Type::None,
            },
            // A MAC header has 22 bytes at most here, a TCP header 60.
            mac_length: u8::try_from(layout.mac_len).unwrap_or(0),
            ip_length: layout.ip_len,
            l4_length: u8::try_from(layout.l4_len).unwrap_or(0),
        };
        let headers = u16::try_from(layout.payload_offset()).unwrap_or(u16::MAX);
        (fields, self.segmentation.map(|s| (s.mss, headers)))
    }

    /// From an AVF queue's descriptors: the inverse of [`Self::to_avf`].
    #[must_use]
    pub fn from_avf(fields: TxOffload, mss: Option<u16>, vlan_tci: Option<u16>) -> Self {
        let l3 = match fields.ip {
            IpType::None => None,
            IpType::Ipv6 => Some(L3Protocol::Ipv6),
            IpType::Ipv4 | IpType::Ipv4Checksum => Some(L3Protocol::Ipv4),
        };
        let Some(l3) = l3 else { return Self { vlan_tci, ..Self::default() } };
        let layout = HeaderLayout {
            mac_len: u16::from(fields.mac_length),
            ip_len: fields.ip_length,
            l4_len: u16::from(fields.l4_length),
        };
        if let Some(mss) = mss {
            let segmentation = Some(Segmentation { mss, l3, layout });
            return Self { segmentation, vlan_tci, ..Self::default() };
        }
        let l4 = match fields.l4 {
            L4Type::Tcp => Some(L4Protocol::Tcp),
            L4Type::Udp => Some(L4Protocol::Udp),
            L4Type::None | L4Type::Sctp => None,
        };
        let ip_header = fields.ip == IpType::Ipv4Checksum;
        let asked = ip_header || l4.is_some();
        let checksum = asked.then_some(ChecksumRequest { l3, ip_header, l4, layout });
        Self { checksum, vlan_tci, ..Self::default() }
    }
}

#[inline]
fn checksum(
    request: TxChecksum,
    head: &[u8],
    frame_length: usize,
) -> Result<Option<ChecksumRequest>, ParseError> {
    let l4 = match (request.tcp(), request.udp()) {
        (true, false) => Some(L4Protocol::Tcp),
        (false, true) => Some(L4Protocol::Udp),
        (false, false) => None,
        (true, true) => return Err(wrong("checksum", request.0 as usize)),
    };
    let ip_header = request.ip_header() && request.is_ipv4();
    if l4.is_none() && !ip_header {
        return Ok(None);
    }
    let l3 = match (request.is_ipv4(), request.is_ipv6()) {
        (true, false) => L3Protocol::Ipv4,
        (false, true) => L3Protocol::Ipv6,
        _ => return Err(wrong("checksum", request.0 as usize)),
    };
    let mut transport = request.transport_offset();
    if transport == 0 {
        // Not every guest says where; then the frame does.
        let info = classify(head, frame_length);
        if info.l3 != Some(l3) || (l4.is_some() && info.l4 != l4) {
            return Err(wrong("checksum", request.0 as usize));
        }
        transport = u16::try_from(info.l4_offset()).unwrap_or(u16::MAX);
    }
    let at = usize::from(transport);
    let l4_len = match l4 {
        Some(L4Protocol::Tcp) => tcp_length(head, at, frame_length)?,
        Some(_) if at + 8 <= frame_length => 8,
        None if at <= frame_length => 0,
        _ => return Err(wrong("transport_header_offset", at)),
    };
    let layout = layout(head, transport, l4_len)?;
    Ok(Some(ChecksumRequest { l3, ip_header, l4, layout }))
}

#[inline]
fn segmentation(
    lso: LargeSend,
    head: &[u8],
    frame_length: usize,
) -> Result<Segmentation, ParseError> {
    let Ok(mss) = u16::try_from(lso.mss()) else {
        return Err(wrong("mss", lso.mss() as usize));
    };
    if !lso.is_v2() {
        return Err(wrong("large_send", lso.0 as usize));
    }
    let l3 = if lso.is_ipv6() { L3Protocol::Ipv6 } else { L3Protocol::Ipv4 };
    let l4_len = tcp_length(head, usize::from(lso.tcp_offset()), frame_length)?;
    let layout = layout(head, lso.tcp_offset(), l4_len)?;
    if layout.payload_offset() > MAX_HEADER_LEN || layout.payload_offset() >= frame_length {
        return Err(wrong("large_send_headers", layout.payload_offset()));
    }
    Ok(Segmentation { mss, l3, layout })
}

/// The longest frame that a large send may be, bytes: the limit stated, and the longest headers.
pub(crate) const MAX_LARGE_FRAME: u32 = MAX_LARGE_SEND + 256;
const _: () = assert!(MAX_HEADER_LEN == 256);

impl ReceiveMetadata {
    /// From what an AVF queue says of a received frame: its packet type, its verdicts, its tag, its hash.
    #[must_use]
    pub fn from_avf(
        packet_type: PacketType,
        checksums: ChecksumVerdicts,
        vlan_tci: Option<u16>,
        hash: Option<u32>,
    ) -> Self {
        let l4 = match packet_type.payload() {
            Payload::Tcp => Some(L4Protocol::Tcp),
            Payload::Udp => Some(L4Protocol::Udp),
            _ => None,
        };
        Self { checksums, l4, vlan_tci, hash }
    }

    /// As a server says it.
    #[inline]
    #[must_use]
    pub fn to_wire(&self) -> PerPacketInfo {
        use ChecksumVerdict::{Bad, Good, NotChecked};
        let mut flags = match self.checksums.ip {
            Good => RxChecksum::IP_SUCCEEDED,
            Bad => RxChecksum::IP_FAILED,
            NotChecked => RxChecksum::empty(),
        };
        flags |= match (self.l4, self.checksums.l4) {
            (Some(L4Protocol::Tcp), Good) => RxChecksum::TCP_SUCCEEDED,
            (Some(L4Protocol::Tcp), Bad) => RxChecksum::TCP_FAILED,
            (Some(L4Protocol::Udp), Good) => RxChecksum::UDP_SUCCEEDED,
            (Some(L4Protocol::Udp), Bad) => RxChecksum::UDP_FAILED,
            _ => RxChecksum::empty(),
        };
        PerPacketInfo {
            checksum: (!flags.is_empty()).then_some(flags.bits()),
            large_send: None,
            vlan: self.vlan_tci.map(VlanInfo::from_tci),
            hash: self.hash,
            packet_id: None,
        }
    }

    /// As a guest reads it.
    #[inline]
    pub(crate) fn from_wire(info: &PerPacketInfo) -> Self {
        let flags = RxChecksum::from_bits_retain(info.checksum.unwrap_or(0));
        let verdict = |failed, succeeded| {
            if flags.contains(failed) {
                ChecksumVerdict::Bad
            } else if flags.contains(succeeded) {
                ChecksumVerdict::Good
            } else {
                ChecksumVerdict::NotChecked
            }
        };
        let tcp = verdict(RxChecksum::TCP_FAILED, RxChecksum::TCP_SUCCEEDED);
        let udp = verdict(RxChecksum::UDP_FAILED, RxChecksum::UDP_SUCCEEDED);
        let (l4, verdict_l4) = match (tcp, udp) {
            (ChecksumVerdict::NotChecked, ChecksumVerdict::NotChecked) => (None, tcp),
            (ChecksumVerdict::NotChecked, udp) => (Some(L4Protocol::Udp), udp),
            (tcp, _) => (Some(L4Protocol::Tcp), tcp),
        };
        let ip = verdict(RxChecksum::IP_FAILED, RxChecksum::IP_SUCCEEDED);
        Self {
            checksums: ChecksumVerdicts { ip, l4: verdict_l4 },
            l4,
            vlan_tci: info.vlan.map(VlanInfo::tci),
            hash: info.hash,
        }
    }
}

#[cfg(test)]
mod tests;
