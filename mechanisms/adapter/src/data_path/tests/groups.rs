//! c30: unicast, multicast and broadcast to those who are to have them, counted wherever they pass.

use avf_protocol::receive::Cast;

use super::*;

const EVERYONE: [u8; 6] = [0xFF; 6];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const OTHER_GROUP: [u8; 6] = [0x01, 0x00, 0x5E, 0, 0, 7];

fn to(destination: [u8; 6], from: u8, length: usize) -> Vec<u8> {
    [&destination, &mac(from)[..], &[0x88, 0xB5], &pattern(length)].concat()
}

fn joined(groups: &[[u8; 6]]) -> VfSettings {
    let multicast = groups.iter().map(|group| avf_protocol::MacAddress(*group)).collect();
    VfSettings { multicast, ..settings() }
}

/// What each VF received: bytes and UMBCAST.
fn received(rig: &mut Rig, number: usize) -> Vec<(Vec<u8>, Cast)> {
    let mut frames = Vec::new();
    while let Some((bytes, back)) = rig.guest(number).receive() {
        frames.push((bytes, back.cast()));
    }
    rig.guest(number).repost();
    frames
}

#[test]
fn c30_broadcast_and_the_own_address_arrive_before_the_driver_asked_for_any() {
    let mut rig = Rig::new(3);
    let wire = rig.plug();
    for bytes in [to(EVERYONE, 0, 60), to(mac(1), 0, 60), to(GROUP, 0, 60)] {
        rig.guest(0).send(&bytes);
    }
    for bytes in [to(EVERYONE, 200, 60), to(mac(1), 200, 60), to(GROUP, 200, 60)] {
        wire.send(&bytes);
    }
    rig.run();
    assert_eq!(
        received(&mut rig, 1),
        [
            (to(EVERYONE, 0, 60), Cast::Broadcast),
            (to(mac(1), 0, 60), Cast::Unicast),
            (to(EVERYONE, 200, 60), Cast::Broadcast),
            (to(mac(1), 200, 60), Cast::Unicast),
        ]
    );
    // Nothing comes back to its sender, but for what others sent.
    assert_eq!(received(&mut rig, 0), [(to(EVERYONE, 200, 60), Cast::Broadcast)]);
    assert_eq!(wire.take(), [to(EVERYONE, 0, 60), to(GROUP, 0, 60)]);
    assert_eq!(rig.path.uplink_stats().received_dropped, 1, "nobody had joined the group");
}

#[test]
fn c30_multicast_arrives_where_it_was_added_and_nowhere_else() {
    let mut rig = Rig::new(4);
    let wire = rig.plug();
    rig.path.apply(vf(1), &joined(&[GROUP]), MacAddress::ZERO);
    rig.path.apply(vf(2), &joined(&[OTHER_GROUP, GROUP]), MacAddress::ZERO);
    let all = VfSettings { promiscuous_multicast: true, ..settings() };
    rig.path.apply(vf(3), &all, MacAddress::ZERO);
    for length in [46, 110, 300, 1500, 5000] {
        for group in [GROUP, OTHER_GROUP] {
            rig.guest(0).send(&to(group, 0, length));
            rig.run();
            let expected = vec![(to(group, 0, length), Cast::Multicast)];
            let first = if group == GROUP { expected.clone() } else { Vec::new() };
            assert_eq!(received(&mut rig, 1), first);
            assert_eq!(received(&mut rig, 2), expected);
            assert_eq!(received(&mut rig, 3), expected);
            assert_eq!(received(&mut rig, 0), []);
            assert_eq!(wire.take(), [to(group, 0, length)]);
        }
    }
    // Removed again.
    rig.path.apply(vf(2), &settings(), MacAddress::ZERO);
    rig.guest(0).send(&to(GROUP, 0, 60));
    rig.run();
    assert_eq!((received(&mut rig, 1).len(), received(&mut rig, 2).len()), (1, 0));
}

#[test]
fn c30_an_address_that_the_guest_added_is_its_own() {
    let mut rig = Rig::new(3);
    let wire = rig.plug();
    let second = mac(77);
    let own = MacAddress::new(mac(1));
    let more = VfSettings { unicast: vec![avf_protocol::MacAddress(second)], ..settings() };
    rig.path.apply(vf(1), &more, own);
    rig.guest(0).send(&to(second, 0, 60));
    wire.send(&to(second, 200, 60));
    // It may be the source as well.
    rig.guest(1).send(&to(mac(2), 77, 60));
    rig.run();
    assert_eq!(received(&mut rig, 1).len(), 2);
    assert_eq!(received(&mut rig, 2), [(to(mac(2), 77, 60), Cast::Unicast)]);
    rig.path.apply(vf(1), &settings(), own);
    rig.guest(0).send(&to(second, 0, 60));
    rig.guest(1).send(&to(mac(2), 77, 60));
    rig.run();
    assert_eq!((received(&mut rig, 1).len(), received(&mut rig, 2).len()), (0, 0));
    assert_eq!(wire.take(), [to(second, 0, 60)], "now it is somewhere behind the wire");
    assert_eq!(rig.stats(1).transmit.spoofed, 1);
}

#[test]
fn frames_to_many_are_counted_at_every_hop() {
    let mut rig = Rig::new(4);
    let wire = rig.plug();
    for number in [1, 2] {
        rig.path.apply(vf(number), &joined(&[GROUP]), MacAddress::ZERO);
    }
    let rounds = 10u64;
    for _ in 0..rounds {
        rig.guest(0).send(&to(GROUP, 0, 86));
        rig.guest(0).send(&to(EVERYONE, 0, 186));
        rig.guest(3).send(&to(EVERYONE, 3, 286));
        wire.send(&to(GROUP, 200, 386));
        wire.send(&to(EVERYONE, 200, 486));
        wire.send(&to(mac(3), 200, 586));
        rig.run();
        (0..4).for_each(|number| drop(received(&mut rig, number)));
    }
    let receive = |number: u16| {
        let receive = rig.stats(number).receive;
        assert_eq!(receive.discards(), 0);
        (receive.unicast, receive.multicast, receive.broadcast, receive.bytes)
    };
    assert_eq!(receive(0), (0, 0, 2 * rounds, (300 + 500) * rounds));
    let joined = (0, 2 * rounds, 3 * rounds, (100 + 200 + 300 + 400 + 500) * rounds);
    assert_eq!(receive(1), joined);
    assert_eq!(receive(2), joined);
    assert_eq!(receive(3), (rounds, 0, 2 * rounds, (200 + 500 + 600) * rounds));
    let first = rig.stats(0).transmit;
    assert_eq!((first.multicast, first.broadcast, first.bytes), (rounds, rounds, 300 * rounds));
    let last = rig.stats(3).transmit;
    assert_eq!((last.frames(), last.broadcast, last.bytes), (rounds, rounds, 300 * rounds));
    let uplink = rig.path.uplink_stats();
    assert_eq!((uplink.received, uplink.received_bytes), (3 * rounds, 1500 * rounds));
    assert_eq!((uplink.sent, uplink.sent_bytes), (3 * rounds, 600 * rounds));
    assert_eq!((uplink.received_dropped, uplink.sent_dropped), (0, 0));
    assert_eq!(wire.take().len() as u64, 3 * rounds);
}

#[test]
fn one_receiver_without_buffers_does_not_cost_the_others_their_copy() {
    let mut rig = Rig::new(4);
    rig.path.stop_queues(vf(2), 0, 1);
    rig.guest(2).post(2);
    rig.start(2);
    for _ in 0..5 {
        rig.guest(0).send(&to(EVERYONE, 0, 60));
    }
    rig.run();
    assert_eq!(received(&mut rig, 1).len(), 5);
    assert_eq!(rig.stats(2).receive.broadcast, 2);
    assert_eq!(rig.stats(2).receive.no_buffer, 3);
    assert_eq!(received(&mut rig, 3).len(), 5);
    assert_eq!(rig.stats(0).transmit.broadcast, 5);
}
