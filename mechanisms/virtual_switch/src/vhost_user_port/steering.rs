//! Which receive queue a frame takes.

use offload::{L3Protocol, MAX_HEADER_LEN, classify};
use shared_memory::SharedSlice;

/// Flows that are told apart.
const FLOWS: usize = 256;
/// The guest has not sent anything of this flow.
const UNKNOWN: u8 = u8::MAX;

/// Steers a flow to the queue pair by which the guest has sent of it last (virtio 1.2 §5.1.6.5.6.1).
#[derive(Debug)]
pub(super) struct Steering {
    pairs: [u8; FLOWS],
}

impl Default for Steering {
    fn default() -> Self {
        Self { pairs: [UNKNOWN; FLOWS] }
    }
}

impl Steering {
    /// The guest has sent a packet of so many bytes by this pair.
    pub(super) fn sent(&mut self, pieces: &[SharedSlice<'_>], length: usize, pair: u16) {
        let mut bytes = [0u8; MAX_HEADER_LEN];
        let mut known = 0;
        for piece in pieces {
            known += piece.read_into(bytes.get_mut(known..).unwrap_or_default());
        }
        let flow = flow(bytes.get(..known).unwrap_or_default(), length);
        if let Some(place) = self.pairs.get_mut(flow) {
            *place = u8::try_from(pair).unwrap_or(0);
        }
    }

    /// The pair for a frame that begins like this, of the first so many.
    pub(super) fn of(&self, head: &[u8], length: usize, pairs: u16) -> u16 {
        let flow = flow(head, length);
        match self.pairs.get(flow) {
            Some(pair) if u16::from(*pair) < pairs => (*pair).into(),
            _ => u16::try_from(flow).unwrap_or(0) % pairs.max(1),
        }
    }
}

/// The flow of a frame, the same in both directions.
fn flow(head: &[u8], length: usize) -> usize {
    let info = classify(head, length);
    let addresses = match info.l3 {
        Some(L3Protocol::Ipv4) => info.l3_offset() + 12..info.l3_offset() + 20,
        Some(L3Protocol::Ipv6) => info.l3_offset() + 8..info.l3_offset() + 40,
        None => 0..12,
    };
    let ports = if info.l4.is_some() { info.l4_offset()..info.l4_offset() + 4 } else { 0..0 };
    let ports = head.get(ports).unwrap_or_default();
    // Sums of 16-bit words do not know which came first.
    let words = head.get(addresses).unwrap_or_default().chunks(2).chain(ports.chunks(2));
    let words = words.filter_map(|word| word.first_chunk()).copied().map(u16::from_be_bytes);
    let sum = words.fold(0u32, |sum, word| sum.wrapping_add(word.into()));
    usize::try_from(sum.wrapping_mul(0x9E37_79B1) >> 24).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_take_the_queue_of_what_they_answer() {
        let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let back = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        let frame = |ip: [u8; 20], ports: [u8; 4]| {
            [&[0u8; 12][..], &[8, 0], &ip, &ports, &[0, 8, 0, 0]].concat()
        };
        let (there, here) = (frame(ip, [1, 2, 0, 53]), frame(back, [0, 53, 1, 2]));
        assert_eq!(flow(&there, there.len()), flow(&here, here.len()));
        let flows: std::collections::BTreeSet<_> = (0..=255u8)
            .map(|port| frame(ip, [9, port, 0, 53]))
            .map(|frame| flow(&frame, frame.len()))
            .collect();
        assert!(flows.len() > 100, "{}", flows.len());
    }
}
