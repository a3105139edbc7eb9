//! TX descriptors: data and context, as the driver posts them and as the device gives them back
//! (SPEC-AVF §5.2).
//!
//! The types wrap the two quadwords of a descriptor, which the device reads once into a local copy. All
//! accessors are shifts and masks.

/// What a TX descriptor is, from the low four bits of quadword 1.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum DescriptorType {
    /// 0: a piece of a packet.
    Data,
    /// 1: context of the packet that follows.
    Context,
    /// 8: flow director filter program; not served through the PF path.
    FilterProgram,
    /// 15: given back by the device.
    Done,
    /// Anything else: drop the packet and count an error.
    Other(u8),
}

/// Low nibble of quadword 1 in a completed descriptor; exactly this, whatever was there before.
pub const DTYPE_DONE: u64 = 0xF;
/// The most bytes one data descriptor can carry.
pub const MAX_BUFFER_LENGTH: u16 = 0x3FFF;
/// The most bytes of TSO payload in one packet, 18 bits.
pub const MAX_TSO_LENGTH: u32 = 0x3_FFFF;
/// The least frame the hardware sends, bytes.
pub const MIN_FRAME: u16 = 17;

const DTYPE_DATA: u64 = 0;
const DTYPE_CONTEXT: u64 = 1;
const DTYPE_FILTER: u64 = 8;

const EOP: u64 = 1 << 4;
const RS: u64 = 1 << 5;
const ICRC: u64 = 1 << 6;
const IL2TAG1: u64 = 1 << 7;
const DUMMY: u64 = 1 << 8;
const IIPT_SHIFT: u32 = 9;
const FCOET: u64 = 1 << 11;
const L4T_SHIFT: u32 = 12;
const MACLEN_SHIFT: u32 = 16;
const IPLEN_SHIFT: u32 = 23;
const L4LEN_SHIFT: u32 = 30;
const LENGTH_SHIFT: u32 = 34;
const L2TAG1_SHIFT: u32 = 48;

/// Bits `[shift, shift + width)` of `word`; `width` at most 16.
#[inline(always)]
const fn bits16(word: u64, shift: u32, width: u32) -> u16 {
    let [low, high, ..] = (word >> shift & ((1 << width) - 1)).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// Bits `[shift, shift + width)` of `word`; `width` at most 8.
#[inline(always)]
const fn bits8(word: u64, shift: u32, width: u32) -> u8 {
    (word >> shift & ((1 << width) - 1)).to_le_bytes()[0]
}

/// Bits `[shift, shift + width)` of `word`; `width` at most 32.
#[inline(always)]
const fn bits32(word: u64, shift: u32, width: u32) -> u32 {
    let [a, b, c, d, ..] = (word >> shift & ((1 << width) - 1)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// IIPT: the (inner) IP header of a packet.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(u8)]
pub enum IpType {
    /// No IP header, or no offload for it.
    #[default]
    None = 0,
    /// IPv6.
    Ipv6 = 1,
    /// IPv4, the driver has filled the header checksum.
    Ipv4 = 2,
    /// IPv4, the device computes the header checksum.
    Ipv4Checksum = 3,
}

impl IpType {
    #[inline(always)]
    const fn of(bits: u8) -> Self {
        match bits & 3 {
            1 => Self::Ipv6,
            2 => Self::Ipv4,
            3 => Self::Ipv4Checksum,
            _ => Self::None,
        }
    }
}

/// L4T: the L4 header whose checksum the device computes.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(u8)]
pub enum L4Type {
    /// No L4 offload.
    #[default]
    None = 0,
    /// TCP.
    Tcp = 1,
    /// SCTP (CRC32c).
    Sctp = 2,
    /// UDP.
    Udp = 3,
}

impl L4Type {
    #[inline(always)]
    const fn of(bits: u8) -> Self {
        match bits & 3 {
            1 => Self::Tcp,
            2 => Self::Sctp,
            3 => Self::Udp,
            _ => Self::None,
        }
    }
}

/// A TX descriptor of unknown kind, read once from the ring.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(transparent)]
pub struct TxDescriptor(pub [u64; 2]);

impl TxDescriptor {
    /// What kind it is.
    #[inline(always)]
    pub const fn kind(self) -> DescriptorType {
        match self.0[1] & 0xF {
            DTYPE_DATA => DescriptorType::Data,
            DTYPE_CONTEXT => DescriptorType::Context,
            DTYPE_FILTER => DescriptorType::FilterProgram,
            DTYPE_DONE => DescriptorType::Done,
            other => DescriptorType::Other(other.to_le_bytes()[0]),
        }
    }

    /// Whether the device has given it back.
    #[inline(always)]
    pub const fn is_done(self) -> bool {
        self.0[1] & 0xF == DTYPE_DONE
    }

    /// Reads it as a data descriptor, whatever its kind.
    #[inline(always)]
    pub const fn data(self) -> TxData {
        TxData(self.0)
    }

    /// Reads it as a context descriptor, whatever its kind.
    #[inline(always)]
    pub const fn context(self) -> TxContext {
        TxContext(self.0)
    }
}

/// Quadword 1 of a completed descriptor: the low nibble is 0xF, the rest stays; quadword 0 is not touched.
#[inline(always)]
pub const fn done(quadword1: u64) -> u64 {
    quadword1 | DTYPE_DONE
}

/// The offload fields that each data descriptor of a packet repeats; the device takes them from the first.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct TxOffload {
    /// The (inner) IP header.
    pub ip: IpType,
    /// The (inner) L4 header.
    pub l4: L4Type,
    /// Bytes before the (inner) IP header, or of the outer MAC header of a tunnel; even, at most 254.
    pub mac_length: u8,
    /// Bytes of the (inner) IP header; a multiple of 4, at most 508.
    pub ip_length: u16,
    /// Bytes of the L4 header; a multiple of 4, at most 60.
    pub l4_length: u8,
}

/// A TX data descriptor.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(transparent)]
pub struct TxData(pub [u64; 2]);

impl TxData {
    /// `length` bytes (at most 16,383) at DMA address `address`. ICRC is set, as all drivers do.
    #[inline(always)]
    pub const fn new(address: u64, length: u16) -> Self {
        Self([address, ICRC | ((length & MAX_BUFFER_LENGTH) as u64) << LENGTH_SHIFT])
    }

    /// The last descriptor of its packet.
    #[inline(always)]
    #[must_use]
    pub const fn with_end_of_packet(self) -> Self {
        Self([self.0[0], self.0[1] | EOP])
    }

    /// The device is to report this descriptor done.
    #[inline(always)]
    #[must_use]
    pub const fn with_report_status(self) -> Self {
        Self([self.0[0], self.0[1] | RS])
    }

    /// The device is to insert an 802.1Q tag.
    #[inline(always)]
    #[must_use]
    pub const fn with_l2tag1(self, tci: u16) -> Self {
        Self([self.0[0], self.0[1] | IL2TAG1 | (tci as u64) << L2TAG1_SHIFT])
    }

    /// Checksum offload fields.
    #[inline(always)]
    #[must_use]
    pub const fn with_offload(self, offload: TxOffload) -> Self {
        let fields = (offload.ip as u64) << IIPT_SHIFT
            | (offload.l4 as u64) << L4T_SHIFT
            | ((offload.mac_length as u64 >> 1) & 0x7F) << MACLEN_SHIFT
            | ((offload.ip_length as u64 >> 2) & 0x7F) << IPLEN_SHIFT
            | ((offload.l4_length as u64 >> 2) & 0xF) << L4LEN_SHIFT;
        Self([self.0[0], self.0[1] | fields])
    }

    /// DMA address of the buffer.
    #[inline(always)]
    pub const fn address(self) -> u64 {
        self.0[0]
    }

    /// Bytes of the buffer; 0 is malformed.
    #[inline(always)]
    pub const fn length(self) -> u16 {
        bits16(self.0[1], LENGTH_SHIFT, 14)
    }

    /// Whether the packet ends here.
    #[inline(always)]
    pub const fn end_of_packet(self) -> bool {
        self.0[1] & EOP != 0
    }

    /// Whether the device is to report it done.
    #[inline(always)]
    pub const fn report_status(self) -> bool {
        self.0[1] & RS != 0
    }

    /// Whether the packet is a dummy, which is completed and not sent.
    #[inline(always)]
    pub const fn is_dummy(self) -> bool {
        self.0[1] & DUMMY != 0
    }

    /// Whether the FCoE bit is set.
    #[inline(always)]
    pub const fn is_fcoe(self) -> bool {
        self.0[1] & FCOET != 0
    }

    /// The TCI of the tag to insert, if one is to be.
    #[inline(always)]
    pub const fn l2tag1(self) -> Option<u16> {
        if self.0[1] & IL2TAG1 != 0 { Some(bits16(self.0[1], L2TAG1_SHIFT, 16)) } else { None }
    }

    /// Whether this is a whole packet that asks for nothing: a data descriptor with EOP, no offload, tag,
    /// dummy or FCoE bit.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        const LOOKED_AT: u64 =
            0xF | EOP | DUMMY | FCOET | 3 << IIPT_SHIFT | 3 << L4T_SHIFT | IL2TAG1;
        self.0[1] & LOOKED_AT == DTYPE_DATA | EOP
    }

    /// Whether any offload (IP, L4 or tag) is asked for: false is the fast path.
    #[inline(always)]
    pub const fn wants_offload(self) -> bool {
        self.0[1] & (3 << IIPT_SHIFT | 3 << L4T_SHIFT | IL2TAG1) != 0
    }

    /// Checksum offload fields.
    #[inline(always)]
    pub const fn offload(self) -> TxOffload {
        TxOffload {
            ip: IpType::of(bits8(self.0[1], IIPT_SHIFT, 2)),
            l4: L4Type::of(bits8(self.0[1], L4T_SHIFT, 2)),
            mac_length: bits8(self.0[1], MACLEN_SHIFT, 7) << 1,
            ip_length: bits16(self.0[1], IPLEN_SHIFT, 7) << 2,
            l4_length: bits8(self.0[1], L4LEN_SHIFT, 4) << 2,
        }
    }
}

/// EIPT: the outer IP header of a tunnelled packet.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(u8)]
pub enum OuterIpType {
    /// Not tunnelled.
    #[default]
    None = 0,
    /// IPv6.
    Ipv6 = 1,
    /// IPv4, checksum filled by the driver.
    Ipv4 = 2,
    /// IPv4, checksum computed by the device.
    Ipv4Checksum = 3,
}

/// L4TUNT: what the tunnel runs over.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(u8)]
pub enum TunnelType {
    /// IP in IP, or none.
    #[default]
    None = 0,
    /// UDP: VXLAN, GENEVE.
    Udp = 1,
    /// GRE.
    Gre = 2,
    /// 3: not a type.
    Reserved = 3,
}

/// Tunnel fields of a context descriptor.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct TxTunnel {
    /// The outer IP header.
    pub outer_ip: OuterIpType,
    /// Bytes of the outer IP header; a multiple of 4, at most 508.
    pub outer_ip_length: u16,
    /// What the tunnel runs over.
    pub tunnel: TunnelType,
    /// Bytes from the end of the outer IP header to the inner IP header; even, at most 254.
    pub tunnel_length: u8,
    /// Whether the outer IPv4 identification stays the same in all segments.
    pub keep_outer_id: bool,
    /// How much to decrement the TTL, 4 bits.
    pub decrement_ttl: u8,
    /// Whether the device computes the outer UDP checksum.
    pub outer_udp_checksum: bool,
}

/// A TX context descriptor; the data descriptors of its packet follow it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(transparent)]
pub struct TxContext(pub [u64; 2]);

const CTX_CMD_SHIFT: u32 = 4;
const CTX_TSO: u64 = 1 << CTX_CMD_SHIFT;
const CTX_TSYN: u64 = 2 << CTX_CMD_SHIFT;
const CTX_IL2TAG2: u64 = 4 << CTX_CMD_SHIFT;
const CTX_IL2TAG2_UPPER: u64 = 8 << CTX_CMD_SHIFT;
const CTX_TSO_LENGTH_SHIFT: u32 = 30;
const CTX_MSS_SHIFT: u32 = 50;
const CTX_L2TAG2_SHIFT: u32 = 32;

impl Default for TxContext {
    fn default() -> Self {
        Self::new()
    }
}

impl TxContext {
    /// A context descriptor that asks for nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self([0, DTYPE_CONTEXT])
    }

    /// Asks for segmentation of `payload` bytes (all headers not counted, 18 bits) into pieces of at most
    /// `mss` bytes (14 bits).
    #[inline(always)]
    #[must_use]
    pub const fn with_segmentation(self, payload: u32, mss: u16) -> Self {
        let fields = CTX_TSO
            | ((payload & MAX_TSO_LENGTH) as u64) << CTX_TSO_LENGTH_SHIFT
            | (mss as u64 & 0x3FFF) << CTX_MSS_SHIFT;
        Self([self.0[0], self.0[1] | fields])
    }

    /// Asks for an inner (second) tag; `upper` is the second position of it.
    #[inline(always)]
    #[must_use]
    pub const fn with_l2tag2(self, tci: u16, upper: bool) -> Self {
        let command = CTX_IL2TAG2 | if upper { CTX_IL2TAG2_UPPER } else { 0 };
        Self([self.0[0] | (tci as u64) << CTX_L2TAG2_SHIFT, self.0[1] | command])
    }

    /// Describes the tunnel the packet is in.
    #[inline(always)]
    #[must_use]
    pub const fn with_tunnel(self, tunnel: TxTunnel) -> Self {
        let fields = tunnel.outer_ip as u64
            | ((tunnel.outer_ip_length as u64 >> 2) & 0x7F) << 2
            | (tunnel.tunnel as u64) << 9
            | (tunnel.keep_outer_id as u64) << 11
            | ((tunnel.tunnel_length as u64 >> 1) & 0x7F) << 12
            | (tunnel.decrement_ttl as u64 & 0xF) << 19
            | (tunnel.outer_udp_checksum as u64) << 23;
        Self([self.0[0] | fields, self.0[1]])
    }

    /// The payload bytes and the MSS, if segmentation is asked for. An MSS of 0 is malformed.
    #[inline(always)]
    pub const fn segmentation(self) -> Option<(u32, u16)> {
        if self.0[1] & CTX_TSO == 0 {
            return None;
        }
        let payload = bits32(self.0[1], CTX_TSO_LENGTH_SHIFT, 18);
        Some((payload, bits16(self.0[1], CTX_MSS_SHIFT, 14)))
    }

    /// Whether a time stamp is asked for; ignored without the PTP capability.
    #[inline(always)]
    pub const fn wants_time_stamp(self) -> bool {
        self.0[1] & CTX_TSYN != 0
    }

    /// The TCI of the second tag, if one is to be inserted.
    #[inline(always)]
    pub const fn l2tag2(self) -> Option<u16> {
        let tci = bits16(self.0[0], CTX_L2TAG2_SHIFT, 16);
        if self.0[1] & CTX_IL2TAG2 != 0 { Some(tci) } else { None }
    }

    /// Whether the second tag goes to its upper position.
    #[inline(always)]
    pub const fn l2tag2_upper(self) -> bool {
        self.0[1] & CTX_IL2TAG2_UPPER != 0
    }

    /// The tunnel the packet is in.
    #[inline(always)]
    pub const fn tunnel(self) -> TxTunnel {
        let word = self.0[0];
        TxTunnel {
            outer_ip: match word & 3 {
                1 => OuterIpType::Ipv6,
                2 => OuterIpType::Ipv4,
                3 => OuterIpType::Ipv4Checksum,
                _ => OuterIpType::None,
            },
            outer_ip_length: bits16(word, 2, 7) << 2,
            tunnel: match word >> 9 & 3 {
                1 => TunnelType::Udp,
                2 => TunnelType::Gre,
                3 => TunnelType::Reserved,
                _ => TunnelType::None,
            },
            tunnel_length: bits8(word, 12, 7) << 1,
            keep_outer_id: word & 1 << 11 != 0,
            decrement_ttl: bits8(word, 19, 4),
            outer_udp_checksum: word & 1 << 23 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_example_of_a_udp_frame_comes_out_bit_for_bit() {
        let offload = TxOffload {
            ip: IpType::Ipv4,
            l4: L4Type::Udp,
            mac_length: 14,
            ip_length: 20,
            l4_length: 8,
        };
        let descriptor = TxData::new(0x1234_5678_9ABC, 60)
            .with_end_of_packet()
            .with_report_status()
            .with_offload(offload);
        // SPEC-AVF appendix B: QW1 = 0 | CMD << 4 | 7 << 16 | 5 << 23 | 2 << 30 | 60 << 34.
        let command: u64 = 0x1 | 0x2 | 0x4 | 0x40 | 0x300;
        assert_eq!(command, 0x347);
        let expected = command << 4 | 7 << 16 | 5 << 23 | 2 << 30 | 60 << 34;
        assert_eq!(descriptor.0, [0x1234_5678_9ABC, expected]);
        assert_eq!(done(descriptor.0[1]) & 0xF, 0xF);
        assert!(TxDescriptor([0, done(expected)]).is_done());
        assert_eq!(descriptor.l2tag1(), None);
        assert_eq!(descriptor.with_l2tag1(0).l2tag1(), Some(0));
    }

    proptest! {
        #[test]
        fn data_descriptors_read_as_written(
            address: u64, length in 0u16..=MAX_BUFFER_LENGTH, tci: Option<u16>, eop: bool, rs: bool,
            ip in 0u8..4, l4 in 0u8..4, mac in 0u8..128, ipl in 0u16..128, l4l in 0u8..16,
        ) {
            let offload = TxOffload {
                ip: IpType::of(ip), l4: L4Type::of(l4),
                mac_length: mac << 1, ip_length: ipl << 2, l4_length: l4l << 2,
            };
            let mut descriptor = TxData::new(address, length).with_offload(offload);
            if eop { descriptor = descriptor.with_end_of_packet(); }
            if rs { descriptor = descriptor.with_report_status(); }
            if let Some(tci) = tci { descriptor = descriptor.with_l2tag1(tci); }
            prop_assert_eq!(TxDescriptor(descriptor.0).kind(), DescriptorType::Data);
            prop_assert_eq!(descriptor.address(), address);
            prop_assert_eq!(descriptor.length(), length);
            prop_assert_eq!(descriptor.offload(), offload);
            prop_assert_eq!(descriptor.l2tag1(), tci);
            prop_assert_eq!((descriptor.end_of_packet(), descriptor.report_status()), (eop, rs));
            prop_assert_eq!(descriptor.wants_offload(), ip != 0 || l4 != 0 || tci.is_some());
            prop_assert!(!descriptor.is_dummy() && !descriptor.is_fcoe());
        }

        #[test]
        fn context_descriptors_read_as_written(
            payload in 0u32..=MAX_TSO_LENGTH, mss in 0u16..0x4000, tag: Option<(u16, bool)>,
            eipt in 0u8..4, eiplen in 0u16..128, tun in 0u8..3, tunlen in 0u8..128,
            keep: bool, ttl in 0u8..16, cs: bool,
        ) {
            let tunnel = TxTunnel {
                outer_ip: [OuterIpType::None, OuterIpType::Ipv6, OuterIpType::Ipv4,
                           OuterIpType::Ipv4Checksum][usize::from(eipt)],
                outer_ip_length: eiplen << 2,
                tunnel: [TunnelType::None, TunnelType::Udp, TunnelType::Gre][usize::from(tun)],
                tunnel_length: tunlen << 1,
                keep_outer_id: keep,
                decrement_ttl: ttl,
                outer_udp_checksum: cs,
            };
            let mut context = TxContext::new().with_tunnel(tunnel);
            prop_assert_eq!(context.segmentation(), None);
            context = context.with_segmentation(payload, mss);
            if let Some((tci, upper)) = tag { context = context.with_l2tag2(tci, upper); }
            prop_assert_eq!(TxDescriptor(context.0).kind(), DescriptorType::Context);
            prop_assert_eq!(context.segmentation(), Some((payload, mss)));
            prop_assert_eq!(context.tunnel(), tunnel);
            prop_assert_eq!(context.l2tag2(), tag.map(|t| t.0));
            prop_assert_eq!(context.l2tag2_upper(), tag.is_some_and(|t| t.1));
        }
    }
}
