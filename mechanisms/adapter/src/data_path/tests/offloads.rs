//! c41, c43: SPEC-AVF §5.3, checksums that the sender leaves to the NIC, with a tag to insert or without.

use avf_protocol::{
    packet_type::PacketType,
    receive::legacy,
    transmit::{IpType, L4Type, TxOffload},
};

use super::{
    packets::{L4, Recipe, look_into, tagged},
    *,
};

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

/// VFs that take frames of any VLAN.
pub(super) fn any_vlan(vfs: u16) -> Rig {
    Rig::with(vfs, 64, 2048, VlanMatch::Any)
}

/// The packet type of a whole packet.
pub(super) fn packet_type(recipe: &Recipe) -> PacketType {
    match (recipe.l4, recipe.v6) {
        _ if recipe.fragment && recipe.v6 => PacketType::IPV6_FRAGMENT,
        _ if recipe.fragment => PacketType::IPV4_FRAGMENT,
        (L4::Tcp, false) => PacketType::IPV4_TCP,
        (L4::Tcp, true) => PacketType::IPV6_TCP,
        (L4::Udp, false) => PacketType::IPV4_UDP,
        (L4::Udp, true) => PacketType::IPV6_UDP,
        (L4::Sctp, false) => PacketType::IPV4_SCTP,
        (L4::Sctp, true) => PacketType::IPV6_SCTP,
        (L4::Icmp, false) => PacketType::IPV4_ICMP,
        (L4::Icmp, true) => PacketType::IPV6_ICMP,
        (L4::Other, false) => PacketType::IPV4_OTHER,
        (L4::Other, true) => PacketType::IPV6_OTHER,
    }
}

/// Checks the write-back of a packet whose checksums are right.
pub(super) fn assert_good(back: RxLegacy, recipe: &Recipe) {
    assert_eq!(back.packet_type(), packet_type(recipe), "{recipe:?}");
    let extended = recipe.v6 && recipe.extras != 0;
    for (bit, expected) in [
        (legacy::L3L4P, true),
        (legacy::IPE, false),
        (legacy::L4E, false),
        (legacy::IPV6EXADD, extended),
        (legacy::RXE, false),
    ] {
        assert_eq!(back.has(bit), expected, "{bit:#x} of {recipe:?}");
    }
}

/// Every transport over every IP, plain and with options or extension headers, tagged in the payload or not.
fn packets(lengths: &[usize]) -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp, L4::Sctp] {
            for extras in if v6 { [0, 1, 3, 7] } else { [0, 1, 5, 10] } {
                for tags in [vec![], vec![0x2005]] {
                    for length in lengths {
                        let recipe = Recipe::new(v6, l4, &pattern(*length));
                        recipes.push(Recipe { extras, tags: tags.clone(), options: 3, ..recipe });
                    }
                }
            }
        }
    }
    recipes
}

#[test]
fn c41_checksums_of_tcp_udp_and_sctp_are_filled_over_ipv4_and_ipv6() {
    let mut rig = any_vlan(2);
    // Odd and even, none, around the bytes that are read at once (128, 256), and more than a buffer.
    for recipe in packets(&[0, 1, 2, 31, 64, 101, 193, 194, 777, 1400, 3001]) {
        let right = recipe.build();
        let found = look_into(&right);
        assert_eq!((found.l4_good, found.ip_good), (Some(true), (!recipe.v6).then_some(true)));
        let seeded = recipe.seeded();
        assert_ne!(seeded, right);
        let last = rig.guest(0).send_with(&[&seeded], recipe.offload(), None, None);
        rig.run();
        assert!(rig.guests[0].is_done(last));
        let (received, back) = rig.guest(1).receive().expect("the packet arrives");
        assert_eq!(received, right, "{recipe:?}");
        assert_good(back, &recipe);
        rig.guest(1).repost();
    }
    assert_eq!(rig.stats(0).transmit.discards() + rig.stats(0).transmit.errors(), 0);
}

#[test]
fn c41_checksums_are_right_however_the_packet_lies_in_descriptors() {
    let mut rig = any_vlan(2);
    for recipe in packets(&[0, 1, 3, 200, 1401]) {
        let (right, seeded) = (recipe.build(), recipe.seeded());
        let field = recipe.checksum().start;
        // Bytes one by one up to the headers' end would be too many descriptors; these cut every header, the
        // checksum field, and the payload at odd places.
        for cuts in
            [vec![1], vec![13, 15, field + 1], vec![7, recipe.headers(), recipe.headers() + 1]]
        {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < seeded.len()).collect();
            cuts.insert(0, 0);
            cuts.push(seeded.len());
            let pieces: Vec<&[u8]> =
                cuts.windows(2).map(|pair| &seeded[pair[0]..pair[1]]).collect();
            rig.guest(0).send_with(&pieces, recipe.offload(), None, None);
            rig.run();
            let (received, back) = rig.guest(1).receive().expect("the packet arrives");
            assert_eq!(received, right, "{recipe:?} cut at {cuts:?}");
            assert_good(back, &recipe);
            rig.guest(1).repost();
        }
    }
}

#[test]
fn c41_an_ipv4_checksum_that_the_driver_filled_is_left_alone() {
    let mut rig = any_vlan(2);
    for l4 in [L4::Tcp, L4::Udp, L4::Sctp] {
        let recipe = Recipe::new(false, l4, &pattern(99));
        let mut seeded = recipe.seeded();
        let ip = recipe.mac_length() + 10;
        let right = recipe.build();
        let offload = TxOffload { ip: IpType::Ipv4, ..recipe.offload() };
        // The driver's checksum is wrong: the NIC neither mends nor hides that.
        rig.guest(0).send_with(&[&seeded], offload, None, None);
        rig.run();
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!(
            (look_into(&received).ip_good, look_into(&received).l4_good),
            (Some(false), Some(true))
        );
        assert!(back.has(legacy::L3L4P | legacy::IPE) && !back.has(legacy::L4E));
        // It is right.
        seeded[ip..ip + 2].copy_from_slice(&right[ip..ip + 2]);
        rig.guest(0).send_with(&[&seeded], offload, None, None);
        rig.run();
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!(received, right);
        assert_good(back, &recipe);
    }
}

#[test]
fn c41_the_ipv4_header_alone_can_be_filled() {
    let mut rig = any_vlan(2);
    for l4 in [L4::Tcp, L4::Udp, L4::Sctp, L4::Icmp, L4::Other] {
        let recipe = Recipe { extras: 2, ..Recipe::new(false, l4, &pattern(300)) };
        let right = recipe.build();
        let mut empty = right.clone();
        empty[24..26].copy_from_slice(&[0xEE; 2]);
        let offload = TxOffload { l4: L4Type::None, ..recipe.offload() };
        rig.guest(0).send_with(&[&empty], offload, None, None);
        rig.run();
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!(received, right);
        assert_good(back, &recipe);
    }
}

#[test]
fn c41_a_udp_checksum_of_zero_is_sent_as_all_ones() {
    let mut rig = any_vlan(2);
    for v6 in [false, true] {
        // A last word that makes everything add up to 0xFFFF: it is the checksum without it.
        let mut recipe = Recipe::new(v6, L4::Udp, &[0, 0]);
        recipe.payload = recipe.build()[recipe.checksum()].to_vec();
        rig.guest(0).send_with(&[&recipe.seeded()], recipe.offload(), None, None);
        rig.run();
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!(received[recipe.checksum()], [0xFF, 0xFF]);
        assert_eq!(look_into(&received).l4_good, Some(true));
        assert_good(back, &recipe);
    }
}

#[test]
fn c41_filled_checksums_are_right_on_the_wire_too() {
    let mut rig = any_vlan(1);
    let wire = rig.plug();
    for recipe in packets(&[0, 1, 201, 1400]) {
        let recipe = Recipe { to: 200, ..recipe };
        rig.guest(0).send_with(&[&recipe.seeded()], recipe.offload(), None, None);
        rig.run();
        assert_eq!(wire.take(), [recipe.build()], "{recipe:?}");
    }
}

#[test]
fn c43_a_tag_is_inserted_and_the_checksum_filled() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    let mut sent = 0;
    for recipe in packets(&[0, 1, 200, 1400]) {
        for tci in [0x0005, 0xE00A, 0x0000, 0xBFFF] {
            for to in [1, 200] {
                let recipe = Recipe { to, ..recipe.clone() };
                // An outer tag, if the payload has one already.
                let expected = tagged(&recipe.build(), tci);
                rig.guest(0).send_with(&[&recipe.seeded()], recipe.offload(), Some(tci), None);
                rig.run();
                if to == 200 {
                    assert_eq!(wire.take(), [expected]);
                } else {
                    let (received, back) = rig.guest(1).receive().unwrap();
                    assert_eq!(received, expected);
                    assert_eq!(look_into(&received).tags[0], tci);
                    assert_good(back, &recipe);
                    assert_eq!(back.l2tag1(), None, "it was not stripped");
                    rig.guest(1).repost();
                }
                sent += 1;
            }
        }
    }
    assert_eq!(rig.stats(0).transmit.unicast, sent);
}

#[test]
fn c43_a_tag_alone_is_inserted_also_into_what_no_offload_knows() {
    let mut rig = any_vlan(2);
    for length in [3, 46, 200, 1500, 9700] {
        let bytes = frame(1, 0, &pattern(length));
        rig.guest(0).send_with(&[&bytes], TxOffload::default(), Some(0x4064), None);
        rig.run();
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!(received, tagged(&bytes, 0x4064));
        assert_eq!((back.packet_type(), back.has(legacy::L3L4P)), (PacketType::L2, false));
        rig.guest(1).repost();
    }
}

/// A packet whose tag may not be inserted does not leave without it, as a frame of another VLAN.
#[test]
fn c31_with_insertion_off_a_packet_with_a_tag_is_malformed_and_others_pass() {
    let mut rig = any_vlan(2);
    let bytes = frame(1, 0, &pattern(100));
    for (on, before_start) in [(false, false), (true, false), (false, true), (true, true)] {
        let settings = VfSettings { vlan_insert: on, ..settings() };
        if before_start {
            rig.path.stop_queues(vf(0), 1, 0);
            let config = TxQueueConfig { insert_tags: on, ..rig.guest(0).tx_config() };
            rig.guest(0).tx_tail = 0;
            rig.path.start_queues(vf(0), &[(0, config)], &[]).unwrap();
        } else {
            rig.path.apply(vf(0), &settings, MacAddress::new(mac(0)));
        }
        let before = rig.stats(0).transmit;
        rig.guest(0).send_with(&[&bytes], TxOffload::default(), Some(0x4064), None);
        rig.guest(0).send(&bytes);
        rig.run();
        if on {
            assert_eq!(rig.guest(1).receive().unwrap().0, tagged(&bytes, 0x4064));
            rig.guest(1).repost();
        }
        assert_eq!(rig.guest(1).receive().unwrap().0, bytes);
        rig.guest(1).repost();
        assert!(rig.guest(1).receive().is_none());
        let after = rig.stats(0).transmit;
        assert_eq!(after.malformed - before.malformed, u64::from(!on));
        assert_eq!(after.unicast - before.unicast, 1 + u64::from(on));
    }
}

/// What the NIC did not compute it does not vouch for, whatever the descriptor says.
#[test]
fn a_checksum_filled_elsewhere_does_not_make_a_packet_good() {
    let mut rig = any_vlan(2);
    for v6 in [false, true] {
        let recipe = Recipe::new(v6, L4::Tcp, &pattern(200));
        let mut bytes = recipe.build();
        *bytes.last_mut().unwrap() ^= 0xFF;
        // As if the segment began in the payload; as if it were UDP, or SCTP.
        let away = TxOffload { ip_length: 100, ip: IpType::None, ..recipe.offload() };
        for offload in [
            away,
            TxOffload { l4: L4Type::Udp, ..recipe.offload() },
            TxOffload { l4: L4Type::Sctp, ..recipe.offload() },
        ] {
            rig.guest(0).send_with(&[&bytes], offload, None, None);
            rig.run();
            let (received, back) = rig.guest(1).receive().unwrap();
            assert_eq!(look_into(&received).l4_good, Some(false));
            assert!(back.has(legacy::L4E), "{offload:?}");
        }
    }
}

#[test]
fn checksums_that_the_packet_has_no_room_for_are_malformed() {
    let mut rig = any_vlan(2);
    let recipe = Recipe::new(false, L4::Tcp, &pattern(2));
    let bytes = recipe.seeded();
    let mut malformed = 0;
    for (mac_length, ip_length) in [(36, 20), (254, 20), (14, 508), (14, 40), (56, 0)] {
        let offload = TxOffload { mac_length, ip_length, ..recipe.offload() };
        let last = rig.guest(0).send_with(&[&bytes], offload, None, None);
        rig.run();
        assert!(rig.guests[0].is_done(last));
        malformed += 1;
        assert_eq!(rig.stats(0).transmit.malformed, malformed, "{offload:?}");
    }
    assert_eq!(rig.stats(1), FunctionStats::default());
}
