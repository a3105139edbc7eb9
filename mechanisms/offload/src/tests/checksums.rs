use proptest::prelude::*;

use super::{Recipe, Transport, build, crc32c_by_division, recipes, sctp};
use crate::{
    ChecksumVerdict::{Bad, Good, NotChecked},
    ChecksumVerdicts, L4Fill, L4Protocol, OffloadError, PacketInfo, Sum, classify,
    fill_l4_checksum, verify,
};

fn verdicts(frame: &[u8]) -> ChecksumVerdicts {
    verify(frame, &classify(frame, frame.len()), [frame])
}

/// Cuts a frame at the given places.
fn pieces<'a>(frame: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.min(&frame.len()).to_owned()).collect();
    cuts.extend([0, frame.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &frame[pair[0]..pair[1]]).collect()
}

/// The transport checksum's offset and length in a frame.
fn field(info: &PacketInfo) -> Option<(usize, usize)> {
    let (offset, length) = match info.l4? {
        L4Protocol::Tcp => (16, 2),
        L4Protocol::Udp => (6, 2),
        L4Protocol::Icmp => (2, 2),
        L4Protocol::Sctp => (8, 4),
    };
    Some((info.l4_offset() + offset, length))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_right_frame_is_good_in_any_pieces_and_a_flipped_bit_is_found(
        recipe in recipes(),
        cuts in prop::collection::vec(0usize..400, 0..5),
        flip in (0usize..400, 0u32..8),
    ) {
        let mut frame = build(&recipe);
        let info = classify(&frame, frame.len());
        let ip = if recipe.v6 { NotChecked } else { Good };
        let l4 = if info.l4.is_some() { Good } else { NotChecked };
        let found = verify(&frame, &info, pieces(&frame, &cuts));
        prop_assert_eq!(found, ChecksumVerdicts { ip, l4 });

        // A bit of the transport's payload or header that changes no length.
        let end = info.datagram_end.unwrap() as usize;
        if let Some((at, length)) = field(&info) && end > at + length {
            let at = at + length + flip.0 % (end - at - length);
            frame[at] ^= 1 << flip.1;
            let found = verify(&frame, &info, pieces(&frame, &cuts));
            prop_assert_eq!(found, ChecksumVerdicts { ip, l4: Bad });
        }
    }

    #[test]
    fn a_flipped_bit_in_the_ipv4_header_is_found(recipe in recipes(), at in 12usize..20, bit in 0u32..8) {
        let mut frame = build(&Recipe { v6: false, ..recipe });
        let info = classify(&frame, frame.len());
        frame[info.l3_offset() + at] ^= 1 << bit;
        prop_assert_eq!(verdicts(&frame).ip, Bad);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), damage in 0usize..90) {
        let _ = verdicts(&bytes);
        let mut frame = build(&Recipe {
            vlans: vec![], v6: bytes.len() % 2 == 0, extras: 7, fragment: false,
            transport: Transport::Udp, payload: vec![0; 20], padding: 0,
        });
        let end = frame.len().min(damage + bytes.len());
        frame[damage..end].copy_from_slice(&bytes[..end - damage]);
        let _ = verdicts(&frame);
    }

    /// The guest seeds the field with the pseudo-header's sum (with length); we finish it.
    #[test]
    fn a_seeded_frame_gets_the_checksum_that_etherparse_computes(
        recipe in recipes(), cuts in prop::collection::vec(0usize..400, 0..5)
    ) {
        let right = build(&Recipe { padding: 0, fragment: false, ..recipe });
        let info = classify(&right, right.len());
        let Some(l4 @ (L4Protocol::Tcp | L4Protocol::Udp)) = info.l4 else { return Ok(()) };
        let (at, _) = field(&info).unwrap();
        let mut seeded = right.clone();
        seeded[at..at + 2].copy_from_slice(&seed(&right, &info, true).to_be_bytes());

        let mut fill = L4Fill::new(l4, info.l4_offset(), seeded.len()).unwrap();
        for piece in pieces(&seeded, &cuts) {
            fill.update(piece);
        }
        let patch = fill.finish();
        prop_assert_eq!(patch.offset(), at);
        prop_assert_eq!(patch.bytes(), &right[at..at + 2]);
        prop_assert!(fill_l4_checksum(&mut seeded, l4, info.l4_offset()).is_ok());
        prop_assert_eq!(seeded, right);
    }

    #[test]
    fn sctp_is_filled_and_checked_with_crc32c(
        payload in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(30usize..60, 0..5),
        at in 0usize..300,
    ) {
        let right = sctp(&payload);
        let info = classify(&right, right.len());
        prop_assert_eq!(verify(&right, &info, pieces(&right, &cuts)).l4, Good);

        let mut empty = right.clone();
        empty[42..46].copy_from_slice(&[0xAB; 4]);
        let mut fill = L4Fill::new(L4Protocol::Sctp, 34, empty.len()).unwrap();
        for piece in pieces(&empty, &cuts) {
            fill.update(piece);
        }
        prop_assert!(fill.finish().apply(&mut empty));
        prop_assert_eq!(&empty, &right);

        let at = 34 + at % (right.len() - 34);
        empty[at] ^= 0x40;
        prop_assert_eq!(verify(&empty, &info, pieces(&empty, &cuts)).l4, Bad);
    }
}

/// The pseudo-header's folded sum, as a guest leaves it in the checksum field.
pub(super) fn seed(frame: &[u8], info: &PacketInfo, with_length: bool) -> u16 {
    let ip = &frame[info.l3_offset()..];
    let mut sum = if ip[0] >> 4 == 4 { Sum::of(&ip[12..20]) } else { Sum::of(&ip[8..40]) };
    sum.add_word(if info.l4 == Some(L4Protocol::Tcp) { 6 } else { 17 });
    if with_length {
        sum.add_long((frame.len() - info.l4_offset()) as u32);
    }
    sum.fold()
}

fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    build(&Recipe {
        vlans: vec![],
        v6,
        extras: 0,
        fragment: false,
        transport: Transport::Udp,
        payload: payload.to_vec(),
        padding: 0,
    })
}

#[test]
fn the_check_value_of_crc32c_holds() {
    assert_eq!(crc32c_by_division(b"123456789"), 0xE306_9283);
}

#[test]
fn udp_without_checksum_is_good_over_ipv4_and_unchecked_over_ipv6() {
    for (v6, expected) in [(false, Good), (true, NotChecked)] {
        let mut frame = udp(v6, b"hello");
        let at = if v6 { 60 } else { 40 };
        frame[at..at + 2].copy_from_slice(&[0, 0]);
        assert_eq!(verdicts(&frame).l4, expected);
    }
}

#[test]
fn a_udp_length_beyond_its_datagram_is_bad() {
    for length in [0u16, 7, 14, 0xFFFF] {
        let mut frame = udp(false, b"hello");
        frame[38..40].copy_from_slice(&length.to_be_bytes());
        assert_eq!(verdicts(&frame).l4, Bad, "{length}");
    }
}

#[test]
fn a_udp_sum_of_zero_is_sent_as_all_ones() {
    // The last word of the payload is chosen so that everything adds up to 0xFFFF.
    let mut right = udp(false, &[0, 0]);
    let checksum = [right[40], right[41]];
    right[42..44].copy_from_slice(&checksum);
    let info = classify(&right, right.len());
    let seed = seed(&right, &info, true);
    right[40..42].copy_from_slice(&seed.to_be_bytes());
    fill_l4_checksum(&mut right, L4Protocol::Udp, 34).unwrap();
    assert_eq!(right[40..42], [0xFF, 0xFF]);
    assert_eq!(verdicts(&right).l4, Good);
}

#[test]
fn a_datagram_cut_short_or_rerouted_is_not_checked() {
    let frame = udp(false, b"hello");
    let short = &frame[..frame.len() - 1];
    assert_eq!(verdicts(short), ChecksumVerdicts { ip: Good, l4: NotChecked });
    // Fewer bytes fed than the frame has.
    let info = classify(&frame, frame.len());
    assert_eq!(verify(&frame, &info, [short]).l4, NotChecked);
    let rerouted = PacketInfo { ipv6_rerouted: true, ..info };
    assert_eq!(verify(&frame, &rerouted, [frame.as_slice()]).l4, NotChecked);
}

#[test]
fn a_header_beyond_the_frame_is_refused() {
    let refused = L4Fill::new(L4Protocol::Tcp, 34, 53).err();
    assert_eq!(refused, Some(OffloadError::HeadersBeyondData { stated: 54, available: 53 }));
    assert!(L4Fill::new(L4Protocol::Tcp, 34, 54).is_ok());
    assert!(L4Fill::new(L4Protocol::Tcp, usize::MAX, 54).is_err());
    let refused = L4Fill::new(L4Protocol::Icmp, 34, 64).err();
    assert_eq!(refused, Some(OffloadError::NoChecksum(L4Protocol::Icmp)));
}
