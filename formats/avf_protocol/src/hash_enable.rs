//! HENA: which packet types are hashed for RSS (SPEC-AVF §5.7).

/// Unicast UDP over IPv4.
pub const IPV4_UNICAST_UDP: u64 = 1 << 29;
/// Multicast UDP over IPv4.
pub const IPV4_MULTICAST_UDP: u64 = 1 << 30;
/// UDP over IPv4.
pub const IPV4_UDP: u64 = 1 << 31;
/// TCP over IPv4, SYN without ACK.
pub const IPV4_TCP_SYN_NO_ACK: u64 = 1 << 32;
/// TCP over IPv4.
pub const IPV4_TCP: u64 = 1 << 33;
/// SCTP over IPv4.
pub const IPV4_SCTP: u64 = 1 << 34;
/// Anything else over IPv4.
pub const IPV4_OTHER: u64 = 1 << 35;
/// IPv4 fragments.
pub const IPV4_FRAGMENT: u64 = 1 << 36;
/// Unicast UDP over IPv6.
pub const IPV6_UNICAST_UDP: u64 = 1 << 39;
/// Multicast UDP over IPv6.
pub const IPV6_MULTICAST_UDP: u64 = 1 << 40;
/// UDP over IPv6.
pub const IPV6_UDP: u64 = 1 << 41;
/// TCP over IPv6, SYN without ACK.
pub const IPV6_TCP_SYN_NO_ACK: u64 = 1 << 42;
/// TCP over IPv6.
pub const IPV6_TCP: u64 = 1 << 43;
/// SCTP over IPv6.
pub const IPV6_SCTP: u64 = 1 << 44;
/// Anything else over IPv6.
pub const IPV6_OTHER: u64 = 1 << 45;
/// IPv6 fragments.
pub const IPV6_FRAGMENT: u64 = 1 << 46;
/// FCoE OX id.
pub const FCOE_OX: u64 = 1 << 48;
/// FCoE RX id.
pub const FCOE_RX: u64 = 1 << 49;
/// FCoE, other.
pub const FCOE_OTHER: u64 = 1 << 50;
/// L2 payload.
pub const L2_PAYLOAD: u64 = 1 << 63;

/// The set that Linux uses by default.
pub const DEFAULT: u64 = IPV4_UDP
    | IPV4_TCP
    | IPV4_SCTP
    | IPV4_OTHER
    | IPV4_FRAGMENT
    | IPV6_UDP
    | IPV6_TCP
    | IPV6_SCTP
    | IPV6_OTHER
    | IPV6_FRAGMENT
    | L2_PAYLOAD;

/// What the RSS_PCTYPE_V2 capability adds.
pub const PCTYPE_V2: u64 = IPV4_UNICAST_UDP
    | IPV4_MULTICAST_UDP
    | IPV4_TCP_SYN_NO_ACK
    | IPV6_UNICAST_UDP
    | IPV6_MULTICAST_UDP
    | IPV6_TCP_SYN_NO_ACK;

/// What an adaptive device hashes after every reset, and all it can hash.
pub const ADAPTIVE: u64 = DEFAULT | PCTYPE_V2;

const _: () = {
    let mut set = 0u64;
    let bits = [31, 33, 34, 35, 36, 41, 43, 44, 45, 46, 63];
    let mut i = 0;
    while i < bits.len() {
        #[allow(clippy::indexing_slicing)]
        {
            set |= 1 << bits[i];
        }
        i += 1;
    }
    assert!(set == DEFAULT);
};
