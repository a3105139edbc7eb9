//! SPEC-AVF §5.3, §5.5: checksums, segmentation, VLAN tags.

use super::mac;

/// Ethernet, IPv4 and UDP with correct checksums.
pub(super) fn udp4(to: u8, from: u8, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .udp(source, destination)
        .write(&mut frame, payload)
        .unwrap();
    frame
}
