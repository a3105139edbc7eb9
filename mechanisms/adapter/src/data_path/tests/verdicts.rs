//! c48: SPEC-AVF §5.4–5.6, what the write-back says about a frame: packet type, L3L4P, IPE, L4E.

use avf_protocol::{packet_type::PacketType, receive::legacy};
use proptest::prelude::*;

use super::{
    offloads::{any_vlan, assert_good, packet_type},
    packets::{L4, Recipe, look_into},
    *,
};

/// The status bits that the tests here compare.
const VERDICT: u64 = legacy::L3L4P | legacy::IPE | legacy::L4E | legacy::IPV6EXADD | legacy::RXE;

/// Sends one frame by all ways to VF 1; all must come to the same packet type and verdict, which it returns.
fn verdict(rig: &mut Rig, wire: &wire::Wire, bytes: &[u8]) -> (PacketType, u64) {
    let cut = (bytes.len() / 2).max(1);
    rig.guest(0).send(bytes);
    rig.guest(0).send_with(&[&bytes[..cut], &bytes[cut..]], Default::default(), None, None);
    rig.guest(0).send_with(&[&bytes[..1], &bytes[1..]], Default::default(), None, None);
    wire.send(bytes);
    rig.run();
    let mut found = Vec::new();
    while let Some((received, back)) = rig.guest(1).receive() {
        assert_eq!(received, bytes);
        found.push((back.packet_type(), back.0[1] & VERDICT));
    }
    rig.guest(1).repost();
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|one| *one == found[0]), "{found:x?}");
    found[0]
}

#[test]
fn c48_what_is_not_ip_is_named_and_not_checked() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for (ethertype, expected) in [
        (0x88B5u16, PacketType::L2),
        (0x0806, PacketType::ARP),
        (0x88CC, PacketType::L2_LLDP),
        // Ethertypes of IP with no IP behind them.
        (0x0800, PacketType::L2),
        (0x86DD, PacketType::L2),
    ] {
        for length in [3, 46, 1000] {
            let mut bytes = frame(1, 0, &vec![0xFF; length]);
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            assert_eq!(verdict(&mut rig, &wire, &bytes), (expected, 0));
        }
    }
}

#[test]
fn c48_checksums_right_and_wrong_over_ipv4_and_ipv6() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp, L4::Sctp, L4::Icmp] {
            for tags in [vec![], vec![5], vec![5, 6]] {
                for length in [0, 1, 90, 91, 230, 1400, 4000] {
                    let recipe =
                        Recipe { tags: tags.clone(), ..Recipe::new(v6, l4, &pattern(length)) };
                    let kind = packet_type(&recipe);
                    let right = recipe.build();
                    assert_eq!(verdict(&mut rig, &wire, &right), (kind, legacy::L3L4P));
                    // Ethernet's padding does not count.
                    let padded = [right.as_slice(), &[0xEE; 11]].concat();
                    assert_eq!(verdict(&mut rig, &wire, &padded), (kind, legacy::L3L4P));
                    // The last byte of the packet is wrong.
                    let mut wrong = right.clone();
                    let at = wrong.len() - 1;
                    wrong[at] ^= 0x01;
                    let bad = legacy::L3L4P | legacy::L4E;
                    assert_eq!(verdict(&mut rig, &wire, &wrong), (kind, bad), "{recipe:?}");
                    if !v6 {
                        // The time to live is in no other checksum.
                        let ttl = recipe.mac_length() + 8;
                        wrong[ttl] ^= 1;
                        let both = bad | legacy::IPE;
                        assert_eq!(verdict(&mut rig, &wire, &wrong), (kind, both));
                        let mut header = right.clone();
                        header[ttl] ^= 1;
                        let bad = legacy::L3L4P | legacy::IPE;
                        assert_eq!(verdict(&mut rig, &wire, &header), (kind, bad));
                    }
                }
            }
        }
    }
}

#[test]
fn c48_extension_headers_are_told_and_looked_through() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for extras in 1..8 {
        for l4 in [L4::Tcp, L4::Udp, L4::Sctp, L4::Icmp] {
            let recipe = Recipe { extras, ..Recipe::new(true, l4, &pattern(100)) };
            let good = legacy::L3L4P | legacy::IPV6EXADD;
            let mut bytes = recipe.build();
            assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), good));
            *bytes.last_mut().unwrap() ^= 0x80;
            let bad = good | legacy::L4E;
            assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), bad));
        }
    }
}

#[test]
fn c48_fragments_have_no_transport_to_check() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for v6 in [false, true] {
        let recipe = Recipe { fragment: true, ..Recipe::new(v6, L4::Udp, &pattern(200)) };
        let mut bytes = recipe.build();
        *bytes.last_mut().unwrap() ^= 0x80;
        let expected = if v6 { legacy::IPV6EXADD } else { legacy::L3L4P };
        assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), expected));
        if !v6 {
            bytes[22] ^= 1;
            let bad = legacy::L3L4P | legacy::IPE;
            assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), bad));
        }
    }
}

#[test]
fn c48_a_udp_checksum_of_zero_is_none_over_ipv4_and_a_matter_of_the_stack_over_ipv6() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for length in [0, 10, 100, 1000] {
        for v6 in [false, true] {
            let recipe = Recipe::new(v6, L4::Udp, &pattern(length));
            let mut bytes = recipe.build();
            bytes[recipe.checksum()].fill(0);
            let expected = if v6 { 0 } else { legacy::L3L4P };
            assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), expected));
            if !v6 {
                bytes[22] ^= 1;
                let bad = legacy::L3L4P | legacy::IPE;
                assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), bad));
            }
        }
    }
}

#[test]
fn c48_what_is_cut_short_is_not_vouched_for() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp] {
            for length in [3, 200] {
                let recipe = Recipe::new(v6, l4, &pattern(length));
                let bytes = recipe.build();
                let short = &bytes[..bytes.len() - 1];
                assert_eq!(verdict(&mut rig, &wire, short), (packet_type(&recipe), 0));
            }
        }
    }
    // A UDP length that is longer than its datagram, or shorter than its own header.
    for length in [0u16, 7, 300] {
        let recipe = Recipe::new(false, L4::Udp, &pattern(100));
        let mut bytes = recipe.build();
        let at = recipe.l4_start() + 4;
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        let bad = legacy::L3L4P | legacy::L4E;
        assert_eq!(verdict(&mut rig, &wire, &bytes), (PacketType::IPV4_UDP, bad));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// `etherparse` computes the checksums of a frame with a byte changed in a place that leaves the lengths
    /// and protocols as they are; the write-back must say the same.
    #[test]
    fn c48_verdicts_agree_with_etherparse(
        v6: bool,
        l4 in prop_oneof![Just(L4::Tcp), Just(L4::Udp), Just(L4::Sctp)],
        extras in 0u8..8,
        options in 0u8..=10,
        tags in prop::collection::vec(any::<u16>(), 0..=2),
        payload in prop::collection::vec(any::<u8>(), 0..600),
        place in 0usize..1000,
        flip in any::<u8>(),
    ) {
        let recipe = Recipe { extras, options, tags, ..Recipe::new(v6, l4, &payload) };
        let mut bytes = recipe.build();
        let (ip, l4_start) = (recipe.mac_length(), recipe.l4_start());
        // Addresses, ports, checksums of both headers, and the payload.
        let mut places: Vec<usize> =
            if v6 { (ip + 8..ip + 40).collect() } else { (ip + 8..ip + 9).chain(ip + 10..ip + 20).collect() };
        places.extend(l4_start..l4_start + 4);
        places.extend(recipe.checksum());
        places.extend(recipe.headers()..bytes.len());
        bytes[places[place % places.len()]] ^= flip;
        let found = look_into(&bytes);
        let mut expected = legacy::L3L4P;
        if v6 && extras != 0 {
            expected |= legacy::IPV6EXADD;
        }
        if found.ip_good == Some(false) {
            expected |= legacy::IPE;
        }
        let stated = &bytes[recipe.checksum()];
        let none = l4 == L4::Udp && stated == [0, 0];
        if none && v6 {
            expected &= !legacy::L3L4P;
        } else if !none && found.l4_good == Some(false) {
            expected |= legacy::L4E;
        }
        let mut rig = any_vlan(2);
        let wire = rig.plug();
        prop_assert_eq!(verdict(&mut rig, &wire, &bytes), (packet_type(&recipe), expected));
    }

    /// The short way for common frames says what the long way says, for any header at all.
    #[test]
    fn c48_the_common_case_is_no_special_case(
        changes in prop::collection::vec((0usize..60, any::<u8>()), 0..4),
        length in 0usize..200,
        checksum: bool,
    ) {
        let mut bytes = offloads::udp4(1, 0, 7, 9, &pattern(length));
        if checksum {
            bytes[40..42].fill(0);
        }
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(14 + at) {
                *place = byte;
            }
        }
        let mut rig = any_vlan(2);
        let wire = rig.plug();
        verdict(&mut rig, &wire, &bytes);
    }
}

/// Found by the test above: an IP packet that ends before the UDP header it announces.
#[test]
fn c48_a_udp_header_beyond_its_datagram_is_none() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    for udp_length in 0..8u16 {
        let mut bytes = offloads::udp4(1, 0, 7, 9, &pattern(30));
        bytes[16..18].copy_from_slice(&(20 + udp_length).to_be_bytes());
        bytes[38..40].copy_from_slice(&udp_length.to_be_bytes());
        bytes[40..42].fill(0);
        bytes[24..26].fill(0);
        let checksum = offload::ipv4_header_checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        let expected = (PacketType::IPV4_OTHER, legacy::L3L4P);
        assert_eq!(verdict(&mut rig, &wire, &bytes), expected);
    }
}

/// L4 offload from one VM to another says "good" because the NIC computed it, also at the far end of a chain
/// of descriptors.
#[test]
fn c48_a_filled_checksum_is_good_at_the_receiver() {
    let mut rig = any_vlan(2);
    let recipe = Recipe::new(true, L4::Tcp, &pattern(9000));
    let bytes = recipe.seeded();
    let pieces: Vec<&[u8]> = bytes.chunks(1500).collect();
    rig.guest(0).send_with(&pieces, recipe.offload(), None, None);
    rig.run();
    let (received, back) = rig.guest(1).receive().unwrap();
    assert_eq!(received, recipe.build());
    assert_good(back, &recipe);
}
