//! Checksums of captured frames.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// Whether the checksums of an IPv4 header and of what it carries are right; whatever has none is right.
pub(crate) fn is_sound(packet: &SlicedPacket<'_>) -> bool {
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return true };
    let header = ip.header().to_header();
    let transport = match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            icmp.checksum() == icmp.header().icmp_type.calc_checksum(icmp.payload())
        }
        Some(TransportSlice::Udp(udp)) => {
            let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
            right == Ok(udp.checksum())
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let right = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload());
            right == Ok(tcp.checksum())
        }
        _ => true,
    };
    transport && header.calc_header_checksum() == header.header_checksum
}
