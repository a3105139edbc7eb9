//! What a VM leaves to the switch.

use netvsp::{ChecksumRequest, ReceiveMetadata, Segmentation, TransmitMetadata};
use offload::{ChecksumVerdict, HeaderLayout, L3Protocol, L4Protocol, Sum, classify, verify};
use proptest::prelude::*;

use super::{Bench, Packet, frame, mac, policy};
use crate::Offloads;

const LAYOUT: HeaderLayout = HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 20 };

/// A TCP packet with the checksum field seeded as guests do: the pseudo-header's sum, its length included or not.
pub(super) fn tcp(payload: &[u8], with_length: bool) -> Vec<u8> {
    let total = u16::try_from(40 + payload.len()).unwrap_or(0);
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let mut tcp = vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
    let mut seed = Sum::of(&ip[12..20]);
    seed.add_word(6);
    if with_length {
        seed.add_word(total - 20);
    }
    tcp[16..18].copy_from_slice(&seed.fold().to_be_bytes());
    [&mac(2)[..], &mac(1), &[8, 0], &ip, &tcp, payload].concat()
}

pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let info = classify(bytes, bytes.len());
    let verdicts = verify(bytes, &info, [bytes]);
    verdicts.ip == ChecksumVerdict::Good && verdicts.l4 == ChecksumVerdict::Good
}

pub(super) fn checksum(l4: Option<L4Protocol>) -> TransmitMetadata {
    let request = ChecksumRequest { l3: L3Protocol::Ipv4, ip_header: true, l4, layout: LAYOUT };
    TransmitMetadata { checksum: Some(request), ..TransmitMetadata::default() }
}

pub(super) fn segmentation(mss: u16) -> TransmitMetadata {
    let segmentation = Some(Segmentation { mss, l3: L3Protocol::Ipv4, layout: LAYOUT });
    TransmitMetadata { segmentation, ..TransmitMetadata::default() }
}

#[test]
fn a_checksum_is_filled_in_and_vouched_for() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    let payload: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    let packet = tcp(&payload, true);
    assert!(!is_whole(&packet));
    bench.send(1, Packet::asking(&packet, checksum(Some(L4Protocol::Tcp))));
    let [arrived] = &bench.ends[2].take()[..] else { panic!("one frame") };
    assert!(is_whole(&arrived.bytes));
    assert_eq!(arrived.bytes[54..], payload);
    let known = ReceiveMetadata { l4: Some(L4Protocol::Tcp), ..arrived.known };
    assert_eq!(arrived.known, known);
    assert_eq!(arrived.known.checksums.l4, ChecksumVerdict::Good);
}

#[test]
fn a_large_send_is_cut_for_a_port() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    let payload: Vec<u8> = (0..20_000u32).map(|i| (i / 7) as u8).collect();
    let packet = tcp(&payload, false);
    let mut packet = Packet::asking(&packet, segmentation(1460));
    // Headers in one piece, as Linux sends them, and pages behind.
    let whole = packet.pieces.remove(0);
    packet.pieces = vec![whole[..54].to_vec()];
    packet.pieces.extend(whole[54..].chunks(4096).map(<[u8]>::to_vec));
    bench.send(1, packet);
    let arrived = bench.ends[2].take();
    assert_eq!(arrived.len(), 20_000usize.div_ceil(1460));
    let mut joined = Vec::new();
    for segment in &arrived {
        assert!(segment.bytes.len() <= 1514 && is_whole(&segment.bytes));
        let sequence = u32::from_be_bytes(segment.bytes[38..42].try_into().unwrap());
        assert_eq!(sequence as usize, 1 + joined.len());
        joined.extend_from_slice(&segment.bytes[54..]);
    }
    assert_eq!(joined, payload);
    assert_eq!(bench.statistics(1).sent, 1);
}

#[test]
fn offloads_that_contradict_the_frame_cost_that_frame() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    let short = frame(mac(2), mac(1), b"no TCP here");
    bench.send(1, Packet::asking(&short, checksum(Some(L4Protocol::Tcp))));
    bench.send(1, Packet::asking(&short, segmentation(1000)));
    // Offloads and a tag in the bytes: the layout cannot be meant.
    let mut tagged = tcp(b"x", true);
    tagged.splice(12..12, [0x81, 0, 0, 0]);
    bench.send(1, Packet::asking(&tagged, checksum(Some(L4Protocol::Tcp))));
    assert!(bench.ends[2].take().is_empty());
    assert_eq!((bench.statistics(1).malformed, bench.statistics(1).sent), (3, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_is_asked_of_whatever_frame_is_done_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        (mac_len, ip_len, l4_len) in (0u16..300, 0u16..300, 0u16..100),
        mss in any::<u16>(),
        ip_header in any::<bool>(),
        segment in any::<bool>(),
    ) {
        let mut bench = Bench::new([policy(1), policy(2)]);
        let layout = HeaderLayout { mac_len, ip_len, l4_len };
        let l3 = L3Protocol::Ipv4;
        let request = ChecksumRequest { l3, ip_header, l4: Some(L4Protocol::Udp), layout };
        let asked = TransmitMetadata {
            checksum: Some(request),
            segmentation: segment.then_some(Segmentation { mss, l3, layout }),
            ..TransmitMetadata::default()
        };
        let bytes = [&mac(2)[..], &mac(1), &bytes].concat();
        let mut packet = Packet::plain(&bytes);
        packet.offloads = Offloads::Asked(asked);
        bench.send(1, packet);
        let seen = bench.statistics(1);
        prop_assert_eq!(seen.sent + seen.malformed, 1);
    }
}
