//! The frames of a measurement and what both ends do to them.
//!
//! The same for everything measured, DPDK's clients included (`bench/peers/virtio_client.c`): the sender
//! writes into every cache line of a frame, the receiver reads from every line, and a frame counts when the receiver has read it.

use std::sync::atomic::Ordering;

use shared_memory::SharedSlice;

/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;
/// Where a frame's number is: in its first line, behind the headers.
const NUMBER_AT: usize = 48;

/// The MAC address of VF `number`.
pub(crate) fn mac(number: u32) -> [u8; 6] {
    let [_, a, b, c] = number.to_be_bytes();
    // Not 02:00, which Linux's tulip driver misreads.
    [0x02, 0x15, 0x5D, a, b, c]
}

/// Ethernet, IPv4 and UDP headers of a frame of `size` bytes.
pub(crate) fn headers(size: u16, to: [u8; 6], from: [u8; 6]) -> [u8; HEADERS] {
    let [i0, i1] = size.saturating_sub(14).to_be_bytes();
    let [u0, u1] = size.saturating_sub(34).to_be_bytes();
    let mut ip = [0x45, 0, i0, i1, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    offload::write_ipv4_header_checksum(&mut ip);
    // UDP port 1 to port 2, without a checksum.
    let udp = [0, 1, 0, 2, u0, u1, 0, 0];
    let bytes = to.into_iter().chain(from).chain([0x08, 0x00]).chain(ip).chain(udp);
    let mut headers = [0; HEADERS];
    for (to, from) in headers.iter_mut().zip(bytes) {
        *to = from;
    }
    headers
}

/// Writes into every line of a frame; the first gets `number` behind the headers.
#[inline(always)]
pub(crate) fn write_lines(frame: SharedSlice<'_>, number: u32) {
    let mut line = NUMBER_AT;
    while frame.store_u32(line, number, Ordering::Relaxed).is_some() {
        line = (line + 64) & !63;
    }
}

/// Reads from every line of a frame; returns its number.
#[inline(always)]
pub(crate) fn read_lines(frame: SharedSlice<'_>) -> u32 {
    let number = frame.load_u32(NUMBER_AT, Ordering::Relaxed).unwrap_or_default();
    let mut line = 64;
    while let Some(word) = frame.load_u32(line, Ordering::Relaxed) {
        std::hint::black_box(word);
        line += 64;
    }
    number
}
