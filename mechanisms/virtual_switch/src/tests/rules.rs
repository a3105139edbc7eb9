//! Who gets which frame.

use proptest::prelude::*;

use super::{Bench, Packet, frame, id, in_vlan, mac, policy};

const FAR: [u8; 6] = [2, 0, 0, 0, 9, 9];

#[test]
fn unicast_goes_to_its_port_else_to_the_uplink_and_from_there_to_the_host() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    let near = frame(mac(2), mac(1), b"near");
    let far = frame(FAR, mac(1), b"far");
    bench.send(1, Packet::plain(&near));
    bench.send(1, Packet::plain(&far));
    assert_eq!(bench.ends[2].bytes(), [near]);
    assert_eq!(bench.uplink.bytes(), [far]);
    let in_for_1 = frame(mac(1), FAR, b"in");
    let in_for_nobody = frame([2, 0, 0, 0, 7, 7], FAR, b"unknown");
    bench.send_up(&in_for_1, None);
    bench.send_up(&in_for_nobody, None);
    assert_eq!(bench.ends[1].bytes(), [in_for_1]);
    assert_eq!(bench.ends[0].bytes(), [in_for_nobody]);
    assert_eq!((bench.statistics(1).sent, bench.statistics(1).received), (2, 1));
}

#[test]
fn broadcast_reaches_everyone_but_its_sender() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    let to_all = frame([0xFF; 6], mac(1), b"who is there");
    bench.send(1, Packet::plain(&to_all));
    for end in [&bench.ends[0], &bench.ends[2], &bench.uplink] {
        assert_eq!(end.bytes(), std::slice::from_ref(&to_all));
    }
    assert!(bench.ends[1].bytes().is_empty());
    assert_eq!(bench.statistics(1).sent, 1, "one packet, however many copies");
}

#[test]
fn a_spoofed_source_goes_nowhere_and_is_counted() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    bench.send(1, Packet::plain(&frame(mac(2), mac(3), b"I am three")));
    bench.send(1, Packet::plain(&frame([0xFF; 6], mac(2), b"I am two")));
    assert!(bench.ends.iter().all(|end| end.bytes().is_empty()));
    let seen = bench.statistics(1);
    assert_eq!((seen.spoofed, seen.sent), (2, 0));
}

#[test]
fn an_access_vlan_is_on_the_wire_and_never_in_the_guest() {
    let mut bench = Bench::new([in_vlan(1, 7), in_vlan(2, 7), in_vlan(3, 8)]);
    let to_all = frame([0xFF; 6], mac(1), b"seven");
    bench.send(1, Packet::plain(&to_all));
    let [at_2] = &bench.ends[2].take()[..] else { panic!("one frame") };
    assert_eq!((&at_2.bytes, at_2.tci), (&to_all, None));
    let [on_wire] = &bench.uplink.take()[..] else { panic!("one frame") };
    assert_eq!((&on_wire.bytes, on_wire.tci), (&to_all, Some(7)));
    assert!(bench.ends[3].take().is_empty());
    // From the wire, whether the tag stands in the frame or beside it.
    let inner = frame(mac(3), FAR, b"eight, and long enough for a head");
    let mut tagged = inner.clone();
    tagged.splice(12..12, [0x81, 0, 0x60, 8]);
    bench.send_up(&tagged, None);
    bench.send_up(&inner, Some(0x6008));
    for arrived in bench.ends[3].take() {
        assert_eq!((arrived.bytes, arrived.tci), (inner.clone(), None));
    }
    assert_eq!(bench.statistics(3).received, 2);
    bench.send_up(&inner, Some(7));
    assert!(bench.ends[3].take().is_empty(), "in another VLAN the address is nobody's");
}

#[test]
fn a_frame_that_ends_with_its_tag_is_none() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    let mut tagged = frame(mac(2), mac(1), b"");
    tagged.splice(12..12, [0x81, 0, 0, 0]);
    for length in 14..tagged.len() {
        bench.send(1, Packet::plain(&tagged[..length]));
    }
    assert!(bench.ends[2].take().is_empty());
    assert_eq!(bench.statistics(1).malformed, 4);
    bench.send(1, Packet::plain(&tagged));
    assert_eq!(bench.ends[2].bytes(), [frame(mac(2), mac(1), b"")]);
}

#[test]
fn a_port_that_cannot_receive_takes_nothing() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    bench.ends[2].wire().deaf = true;
    bench.run();
    bench.send(1, Packet::plain(&frame(mac(2), mac(1), b"hello?")));
    assert!(bench.ends[2].take().is_empty());
    bench.ends[2].wire().deaf = false;
    bench.run();
    bench.send(1, Packet::plain(&frame(mac(2), mac(1), b"hello")));
    assert_eq!(bench.ends[2].bytes(), [frame(mac(2), mac(1), b"hello")]);
}

#[test]
fn a_port_that_is_gone_leaves_its_address_to_the_uplink() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    assert!(bench.switch.disconnect(id(2)).is_some());
    assert!(bench.switch.disconnect(id(2)).is_none());
    let packet = frame(mac(2), mac(1), b"to where two has gone");
    bench.send(1, Packet::plain(&packet));
    assert_eq!(bench.uplink.bytes(), std::slice::from_ref(&packet));
    // Without an uplink it is lost, and counted.
    assert!(bench.switch.set_uplink(None).is_some());
    bench.send(1, Packet::plain(&packet));
    assert_eq!(bench.statistics(1).no_receiver, 1);
}

#[test]
fn a_refused_policy_changes_nothing() {
    let mut bench = Bench::new([policy(1), policy(2)]);
    assert!(bench.switch.set_policy(id(1), policy(2)).is_err(), "the address is taken");
    let packet = frame(mac(1), mac(2), b"still there");
    bench.send(2, Packet::plain(&packet));
    assert_eq!(bench.ends[1].bytes(), std::slice::from_ref(&packet));
    bench.switch.set_policy(id(1), in_vlan(1, 5)).unwrap();
    bench.send(2, Packet::plain(&packet));
    assert!(bench.ends[1].bytes().is_empty(), "it has gone to another VLAN");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_packet_is_counted_once_whatever_it_holds(
        packets in proptest::collection::vec(
            (1usize..4, proptest::collection::vec(any::<u8>(), 0..80), proptest::option::of(any::<u16>())),
            1..20,
        ),
        real in any::<bool>(),
    ) {
        let mut bench = Bench::new([policy(1), in_vlan(2, 7), policy(3)]);
        for (from, bytes, tci) in &packets {
            let mut bytes = bytes.clone();
            if real && bytes.len() >= 12 {
                bytes[6..12].copy_from_slice(&mac(*from as u8));
            }
            // In two pieces, wherever the cut may be.
            let cut = bytes.len() / 3;
            let mut packet = Packet::plain(&[]);
            packet.pieces = vec![bytes[..cut].to_vec(), bytes[cut..].to_vec()];
            packet.pieces.retain(|piece| !piece.is_empty());
            packet.tci = *tci;
            bench.send(*from, packet);
        }
        let counted: u64 = (1..4)
            .map(|port| bench.statistics(port))
            .map(|s| s.sent + s.spoofed + s.vlan_not_allowed + s.no_receiver + s.malformed)
            .sum();
        prop_assert_eq!(counted, packets.len() as u64);
    }
}
