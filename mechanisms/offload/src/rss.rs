//! Receive-side scaling (SPEC-AVF §5.7): which bytes of a packet are hashed, the Toeplitz hash, and the
//! queue that the lookup table names.

use crate::classify::{L3Protocol, L4Protocol, PacketInfo};

/// Bytes of the hash key.
pub const RSS_KEY_LEN: usize = 52;
/// Entries of the lookup table.
pub const LOOKUP_TABLE_LEN: usize = 64;
/// Bytes of the longest hash input: two IPv6 addresses and two ports.
const MAX_INPUT_LEN: usize = 36;

/// The packet types for which a hash is computed (HENA).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct HashEnable(pub u64);

impl HashEnable {
    /// No hashing.
    pub const NONE: Self = Self(0);
    /// IPv4 UDP to a unicast address.
    pub const IPV4_UNICAST_UDP: u64 = 1 << 29;
    /// IPv4 UDP to a multicast address.
    pub const IPV4_MULTICAST_UDP: u64 = 1 << 30;
    /// IPv4 UDP.
    pub const IPV4_UDP: u64 = 1 << 31;
    /// IPv4 TCP with SYN and without ACK.
    pub const IPV4_TCP_SYN: u64 = 1 << 32;
    /// IPv4 TCP.
    pub const IPV4_TCP: u64 = 1 << 33;
    /// IPv4 SCTP.
    pub const IPV4_SCTP: u64 = 1 << 34;
    /// IPv4 with anything else.
    pub const IPV4_OTHER: u64 = 1 << 35;
    /// IPv4 fragments.
    pub const IPV4_FRAGMENT: u64 = 1 << 36;
    /// IPv6 UDP to a unicast address.
    pub const IPV6_UNICAST_UDP: u64 = 1 << 39;
    /// IPv6 UDP to a multicast address.
    pub const IPV6_MULTICAST_UDP: u64 = 1 << 40;
    /// IPv6 UDP.
    pub const IPV6_UDP: u64 = 1 << 41;
    /// IPv6 TCP with SYN and without ACK.
    pub const IPV6_TCP_SYN: u64 = 1 << 42;
    /// IPv6 TCP.
    pub const IPV6_TCP: u64 = 1 << 43;
    /// IPv6 SCTP.
    pub const IPV6_SCTP: u64 = 1 << 44;
    /// IPv6 with anything else.
    pub const IPV6_OTHER: u64 = 1 << 45;
    /// IPv6 fragments.
    pub const IPV6_FRAGMENT: u64 = 1 << 46;
    /// Frames that are not IP. They have no hash input here; the bit is accepted and does nothing.
    pub const L2_PAYLOAD: u64 = 1 << 63;

    /// What is on after every reset: Linux's default set and the bits of RSS_PCTYPE_V2.
    pub const DEFAULT: Self = Self(
        Self::IPV4_UNICAST_UDP
            | Self::IPV4_MULTICAST_UDP
            | Self::IPV4_UDP
            | Self::IPV4_TCP_SYN
            | Self::IPV4_TCP
            | Self::IPV4_SCTP
            | Self::IPV4_OTHER
            | Self::IPV4_FRAGMENT
            | Self::IPV6_UNICAST_UDP
            | Self::IPV6_MULTICAST_UDP
            | Self::IPV6_UDP
            | Self::IPV6_TCP_SYN
            | Self::IPV6_TCP
            | Self::IPV6_SCTP
            | Self::IPV6_OTHER
            | Self::IPV6_FRAGMENT
            | Self::L2_PAYLOAD,
    );
    /// Every bit that a driver may set; what GET_RSS_HENA_CAPS reports.
    pub const SUPPORTED: Self = Self::DEFAULT;

    /// Whether any of `bits` is set.
    #[inline(always)]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }
}

/// The bytes of one packet that are hashed, in the order that Microsoft's RSS prescribes.
#[derive(Copy, Clone, Debug)]
pub struct RssInput {
    bytes: [u8; MAX_INPUT_LEN],
    length: u8,
}

/// Source and destination address, as they stand in the header.
enum Addresses<'a> {
    V4(&'a [u8; 8]),
    V6(&'a [u8; 32]),
}

/// Where the input of a packet's hash lies in its header.
struct Selection<'a> {
    addresses: Addresses<'a>,
    ports: Option<&'a [u8; 4]>,
}

impl<'a> Selection<'a> {
    #[inline(always)]
    fn of(header: &'a [u8], info: &PacketInfo, enabled: HashEnable) -> Option<Self> {
        let ip = header.get(info.l3_offset()..)?;
        let (addresses, multicast, shift) = match info.l3? {
            L3Protocol::Ipv4 => {
                let addresses = ip.get(12..)?.first_chunk::<8>()?;
                let &[_, _, _, _, first, ..] = addresses;
                (Addresses::V4(addresses), first & 0xF0 == 0xE0, 0)
            }
            L3Protocol::Ipv6 => {
                let addresses = ip.get(8..)?.first_chunk::<32>()?;
                let &[_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, first, ..] = addresses;
                (Addresses::V6(addresses), first == 0xFF, 10)
            }
        };
        let transport = header.get(info.l4_offset()..).unwrap_or_default();
        let (bits, has_ports) = match info.l4 {
            Some(L4Protocol::Tcp) => {
                let flags = transport.get(13).copied().unwrap_or(0);
                let syn = if flags & 0x12 == 0x02 { HashEnable::IPV4_TCP_SYN } else { 0 };
                (HashEnable::IPV4_TCP | syn, true)
            }
            Some(L4Protocol::Udp) if multicast => {
                (HashEnable::IPV4_UDP | HashEnable::IPV4_MULTICAST_UDP, true)
            }
            Some(L4Protocol::Udp) => (HashEnable::IPV4_UDP | HashEnable::IPV4_UNICAST_UDP, true),
            Some(L4Protocol::Sctp) => (HashEnable::IPV4_SCTP, true),
            _ if info.fragment => (HashEnable::IPV4_FRAGMENT, false),
            _ => (HashEnable::IPV4_OTHER, false),
        };
        // The bits of IPv6 are those of IPv4, ten further.
        if !enabled.has(bits << shift) {
            return None;
        }
        let ports = if has_ports { Some(transport.first_chunk::<4>()?) } else { None };
        Some(Self { addresses, ports })
    }
}

impl RssInput {
    /// Selects the input of a packet: `None` when its type is not enabled or has no input.
    ///
    /// `header` is the start of the frame and `info` what [`classify`](crate::classify) said of it.
    pub fn select(header: &[u8], info: &PacketInfo, enabled: HashEnable) -> Option<Self> {
        let selection = Selection::of(header, info, enabled)?;
        let mut input = Self { bytes: [0; MAX_INPUT_LEN], length: 0 };
        match selection.addresses {
            Addresses::V4(addresses) => input.append(addresses)?,
            Addresses::V6(addresses) => input.append(addresses)?,
        }
        if let Some(ports) = selection.ports {
            input.append(ports)?;
        }
        Some(input)
    }

    fn append(&mut self, bytes: &[u8]) -> Option<()> {
        let from = usize::from(self.length);
        self.bytes.get_mut(from..from.checked_add(bytes.len())?)?.copy_from_slice(bytes);
        self.length = self.length.checked_add(u8::try_from(bytes.len()).ok()?)?;
        Some(())
    }

    /// The bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// The Toeplitz hash of one key, by table: one lookup for each four bits of input. 4.5 KiB.
#[derive(Clone)]
pub struct Toeplitz {
    /// `[byte][value of the high nibble, then of the low]`.
    tables: [[[u32; 16]; 2]; MAX_INPUT_LEN],
}

impl Toeplitz {
    /// Builds the tables of a key.
    pub fn new(key: &[u8; RSS_KEY_LEN]) -> Self {
        let mut tables = [[[0u32; 16]; 2]; MAX_INPUT_LEN];
        for (byte, halves) in tables.iter_mut().enumerate() {
            for (half, table) in halves.iter_mut().enumerate() {
                for (value, entry) in table.iter_mut().enumerate() {
                    for bit in 0..4 {
                        if value & (8 >> bit) != 0 {
                            *entry ^= key_window(key, byte * 8 + half * 4 + bit);
                        }
                    }
                }
            }
        }
        Self { tables }
    }

    /// The hash of `input`; what lies beyond 36 bytes is not looked at.
    #[inline]
    pub fn hash(&self, input: &[u8]) -> u32 {
        self.hash_at(0, input)
    }

    /// The part of the hash that `bytes` add from byte `at` of the input on.
    #[inline(always)]
    fn hash_at(&self, at: usize, bytes: &[u8]) -> u32 {
        let tables = self.tables.get(at..).unwrap_or_default();
        let mut hash = 0;
        for (byte, [high, low]) in bytes.iter().zip(tables) {
            let (h, l) = (usize::from(byte >> 4), usize::from(byte & 0xF));
            if let (Some(h), Some(l)) = (high.get(h), low.get(l)) {
                hash ^= h ^ l;
            }
        }
        hash
    }

    /// The hash of a packet; `None` when its type is not enabled or has no input.
    #[inline]
    pub fn hash_packet(
        &self,
        header: &[u8],
        info: &PacketInfo,
        enabled: HashEnable,
    ) -> Option<u32> {
        let Selection { addresses, ports } = Selection::of(header, info, enabled)?;
        let (mut hash, at) = match addresses {
            Addresses::V4(addresses) => (self.hash_at(0, addresses), addresses.len()),
            Addresses::V6(addresses) => (self.hash_at(0, addresses), addresses.len()),
        };
        if let Some(ports) = ports {
            hash ^= self.hash_at(at, ports);
        }
        Some(hash)
    }
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Toeplitz")
    }
}

/// The 32 bits of the key that begin at bit `at`.
fn key_window(key: &[u8; RSS_KEY_LEN], at: usize) -> u32 {
    let mut window = 0;
    for bit in at..at + 32 {
        let set = key.get(bit / 8).is_some_and(|byte| byte & (0x80 >> (bit % 8)) != 0);
        window = window << 1 | u32::from(set);
    }
    window
}

/// The hash by its definition: for every set bit of the input, the 32 key bits from there on. Slow; what
/// [`Toeplitz`] is held against.
pub fn toeplitz_reference(key: &[u8; RSS_KEY_LEN], input: &[u8]) -> u32 {
    let mut hash = 0;
    for (index, byte) in input.iter().enumerate() {
        for bit in 0..8 {
            if byte & (0x80 >> bit) != 0 {
                hash ^= key_window(key, index * 8 + bit);
            }
        }
    }
    hash
}

/// The queue that the lookup table names for a hash: entry `hash mod 64`.
#[inline(always)]
pub fn lookup_queue(table: &[u8; LOOKUP_TABLE_LEN], hash: u32) -> u8 {
    let [low, ..] = hash.to_le_bytes();
    table.get(usize::from(low & 63)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    /// The key of Microsoft's "Verifying the RSS Hash Calculation"; 40 bytes there, zeros after.
    const MICROSOFT_KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn microsoft_key() -> [u8; RSS_KEY_LEN] {
        let mut key = [0; RSS_KEY_LEN];
        key[..40].copy_from_slice(&MICROSOFT_KEY);
        key
    }

    fn check(frame: &[u8], with_ports: u32, addresses_only: u32) {
        let toeplitz = Toeplitz::new(&microsoft_key());
        let info = classify(frame, frame.len());
        assert_eq!(toeplitz.hash_packet(frame, &info, HashEnable::DEFAULT), Some(with_ports));
        let input = RssInput::select(frame, &info, HashEnable::DEFAULT).unwrap();
        let addresses = &input.as_bytes()[..input.as_bytes().len() - 4];
        assert_eq!(toeplitz.hash(addresses), addresses_only);
        assert_eq!(toeplitz_reference(&microsoft_key(), addresses), addresses_only);
    }

    #[test]
    fn the_ipv4_test_vectors_of_microsoft_hold() {
        // Destination address and port, source address and port, hash with TCP, hash of addresses alone.
        let vectors = [
            ([161, 142, 100, 80], 1766, [66, 9, 149, 187], 2794, 0x51cc_c178, 0x323e_8fc2),
            ([65, 69, 140, 83], 4739, [199, 92, 111, 2], 14230, 0xc626_b0ea, 0xd718_262a),
            ([12, 22, 207, 184], 38024, [24, 19, 198, 95], 12898, 0x5c2b_394a, 0xd2d0_a5de),
            ([209, 142, 163, 6], 2217, [38, 27, 205, 30], 48228, 0xafc7_327f, 0x8298_9176),
            ([202, 188, 127, 2], 1303, [153, 39, 163, 191], 44251, 0x10e8_28a2, 0x5d18_09c5),
        ];
        for (to, to_port, from, from_port, with_ports, addresses_only) in vectors {
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from, to, 64);
            let mut frame = Vec::new();
            builder.tcp(from_port, to_port, 1, 1).write(&mut frame, &[0; 9]).unwrap();
            check(&frame, with_ports, addresses_only);
        }
    }

    #[test]
    fn the_ipv6_test_vectors_of_microsoft_hold() {
        let vectors = [
            ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x4020_7d3d, 0x2cc1_8cd5),
            ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0xdde5_1bbf, 0x0f0c_461c),
            (
                "fe80::200:f8ff:fe21:67cf",
                38024,
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                0x02d1_feef,
                0x4b61_e985,
            ),
        ];
        for (to, to_port, from, from_port, with_ports, addresses_only) in vectors {
            let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
            let builder =
                PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(octets(from), octets(to), 64);
            let mut frame = Vec::new();
            builder.tcp(from_port, to_port, 1, 1).write(&mut frame, &[]).unwrap();
            check(&frame, with_ports, addresses_only);
        }
    }

    proptest! {
        #[test]
        fn the_table_hash_is_the_reference_hash(
            key in prop::array::uniform32(any::<u8>()),
            rest in prop::array::uniform20(any::<u8>()),
            input in prop::collection::vec(any::<u8>(), 0..=36),
        ) {
            let mut whole = [0; RSS_KEY_LEN];
            whole[..32].copy_from_slice(&key);
            whole[32..].copy_from_slice(&rest);
            prop_assert_eq!(Toeplitz::new(&whole).hash(&input), toeplitz_reference(&whole, &input));
        }

        #[test]
        fn every_hash_names_its_entry(hash in any::<u32>()) {
            let table: [u8; 64] = std::array::from_fn(|i| i as u8 ^ 0x15);
            prop_assert_eq!(lookup_queue(&table, hash), table[(hash % 64) as usize]);
        }
    }

    /// A frame, the bits any of which let it be hashed, and the length of its input.
    fn selections() -> Vec<(Vec<u8>, u64, usize)> {
        let mut list = Vec::new();
        let mut add = |write: &dyn Fn(&mut Vec<u8>), bits, length| {
            let mut frame = Vec::new();
            write(&mut frame);
            list.push((frame, bits, length));
        };
        let v4 = |to| PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], to, 64);
        let v6 = |first| {
            let mut to = [1; 16];
            to[0] = first;
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([2; 16], to, 64)
        };
        type H = HashEnable;
        let uc = [10, 0, 0, 2];
        let mc = [239, 0, 0, 2];
        add(&|f| v4(uc).udp(1, 2).write(f, &[]).unwrap(), H::IPV4_UDP | H::IPV4_UNICAST_UDP, 12);
        add(&|f| v4(mc).udp(1, 2).write(f, &[]).unwrap(), H::IPV4_UDP | H::IPV4_MULTICAST_UDP, 12);
        add(&|f| v4(uc).tcp(1, 2, 3, 4).write(f, &[]).unwrap(), H::IPV4_TCP, 12);
        add(
            &|f| v4(uc).tcp(1, 2, 3, 4).syn().write(f, &[]).unwrap(),
            H::IPV4_TCP | H::IPV4_TCP_SYN,
            12,
        );
        add(&|f| v4(uc).tcp(1, 2, 3, 4).syn().ack(5).write(f, &[]).unwrap(), H::IPV4_TCP, 12);
        add(&|f| v4(uc).icmpv4_echo_request(1, 2).write(f, &[]).unwrap(), H::IPV4_OTHER, 8);
        add(&|f| v6(9).udp(1, 2).write(f, &[]).unwrap(), H::IPV6_UDP | H::IPV6_UNICAST_UDP, 36);
        add(&|f| v6(255).udp(1, 2).write(f, &[]).unwrap(), H::IPV6_UDP | H::IPV6_MULTICAST_UDP, 36);
        add(&|f| v6(9).tcp(1, 2, 3, 4).write(f, &[]).unwrap(), H::IPV6_TCP, 36);
        add(&|f| v6(9).icmpv6_echo_request(1, 2).write(f, &[]).unwrap(), H::IPV6_OTHER, 32);
        list
    }

    #[test]
    fn a_packet_is_hashed_exactly_when_its_type_is_enabled() {
        for (frame, bits, length) in selections() {
            let info = classify(&frame, frame.len());
            for bit in 0..64 {
                let input = RssInput::select(&frame, &info, HashEnable(1 << bit));
                let expected = (bits & (1 << bit) != 0).then_some(length);
                assert_eq!(input.map(|input| input.as_bytes().len()), expected, "{info:?} {bit}");
            }
            assert!(RssInput::select(&frame, &info, HashEnable::NONE).is_none());
        }
    }

    #[test]
    fn fragments_and_sctp_have_their_own_bits() {
        let mut frame = selections()[0].0.clone();
        frame[20] = 0x20; // more fragments
        let info = classify(&frame, frame.len());
        let only = |bit| RssInput::select(&frame, &info, HashEnable(bit)).map(|i| i.length);
        assert_eq!(only(HashEnable::IPV4_FRAGMENT), Some(8));
        assert_eq!(only(HashEnable::IPV4_UDP | HashEnable::IPV4_OTHER), None);

        let mut frame = selections()[2].0.clone();
        frame[23] = 132;
        let info = classify(&frame, frame.len());
        let only = |bit| RssInput::select(&frame, &info, HashEnable(bit)).map(|i| i.length);
        assert_eq!(only(HashEnable::IPV4_SCTP), Some(12));
        assert_eq!(only(HashEnable::IPV4_TCP | HashEnable::IPV4_OTHER), None);
    }

    #[test]
    fn what_is_not_ip_has_no_hash() {
        let frame = [0xFFu8; 64];
        let info = classify(&frame, 64);
        assert!(RssInput::select(&frame, &info, HashEnable::DEFAULT).is_none());
    }
}
