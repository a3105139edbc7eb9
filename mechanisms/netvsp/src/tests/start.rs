//! Bringing a NIC up, and taking it down.

use netvsp_protocol::{
    nvsp::{NvspCapabilities, NvspVersion},
    offload::OffloadCapabilities,
    oid::PacketFilter,
};

use super::*;
use crate::server::Upcall;

fn pair(newest: NvspVersion, channels: u16) -> Pair {
    let nic = NicConfig { max_channels: 8, newest, ..NicConfig::new(MAC) };
    let config = VscConfig { channels, ..VscConfig::new(RECEIVE, SEND) };
    Pair::new(nic, config)
}

#[test]
fn both_ends_agree_on_each_version_and_come_up() {
    for version in NvspVersion::NEWEST_FIRST {
        let mut pair = pair(version, 1);
        pair.open();
        pair.settle();
        assert!(pair.client.control().is_up(), "{version}: {:?}", pair.told);
        assert_eq!(pair.server.control().version(), Some(version));
        let up = client::Upcall::Up {
            mac: MAC,
            mtu: 1514,
            offloads: OffloadCapabilities::ALL,
            connected: true,
            channels: 1,
        };
        assert_eq!(pair.told.client.last(), Some(&up), "{version}");
        assert!(pair.told.server.iter().any(|upcall| matches!(
            upcall,
            Upcall::PacketFilter(filter) if filter.contains(PacketFilter::DIRECTED)
        )));
    }
}

#[test]
fn the_mtu_that_the_guest_asks_for_is_used_if_it_is_sensible() {
    for (asked, used) in [(1514, 1514), (9014, 9014), (9216, 9216), (9217, 1514), (100, 1514)] {
        let config = VscConfig { mtu: asked, ..VscConfig::new(RECEIVE, SEND) };
        let mut pair = Pair::new(NicConfig::new(MAC), config);
        pair.open();
        pair.settle();
        assert_eq!(pair.server.control().mtu(), used);
        if asked >= used {
            let bytes = frame(1, used as usize);
            pair.deliver(0, &bytes, &ReceiveMetadata::default()).unwrap();
            pair.send(&bytes).unwrap();
            pair.client.flush(0);
            pair.settle();
            assert_eq!((pair.received.len(), pair.forwarded.len()), (1, 1), "{asked}");
            let long = frame(1, used as usize + 1);
            let result = pair.deliver(0, &long, &ReceiveMetadata::default());
            assert_eq!(result, Err(server::NotDelivered::TooLong));
            assert_eq!(pair.server.statistics(0).unwrap().too_long, 1);
        }
    }
}

#[test]
fn a_guest_with_several_channels_gets_a_send_table_and_spreads_what_it_receives() {
    let mut pair = pair(NvspVersion::V61, 4);
    pair.open();
    pair.settle();
    assert!(pair.client.control().is_up(), "{:?}", pair.told);
    assert_eq!(pair.server.control().channels(), 4);
    assert_eq!(
        (0..8).map(|hash| pair.client.select_channel(hash)).collect::<Vec<_>>(),
        [0, 1, 2, 3, 0, 1, 2, 3]
    );
    let steering = pair.server.steering().expect("RSS is on").clone();
    assert_eq!((0..5).map(|hash| steering.of_hash(hash)).collect::<Vec<_>>(), [0, 1, 2, 3, 0]);
    for index in 0..4 {
        for i in 0..200 {
            let bytes = frame(u64::from(index) * 1000 + i, 60);
            pair.client.send(index, &bytes, &TransmitMetadata::default()).unwrap();
            pair.deliver(index, &bytes, &ReceiveMetadata::default()).unwrap();
            pair.settle();
        }
        assert_eq!(pair.server.statistics(index).unwrap().transmitted, 200);
        assert_eq!(pair.client.statistics(index).unwrap().received, 200);
    }
    pair.settle();
    for index in 0..4 {
        assert_eq!(pair.server.outstanding(index), Some(0));
        assert_eq!(pair.client.outstanding(index), Some(0));
    }
}

#[test]
fn a_guest_that_asks_for_more_channels_than_there_are_gets_what_there_is() {
    let nic = NicConfig { max_channels: 2, ..NicConfig::new(MAC) };
    let config = VscConfig { channels: 16, ..VscConfig::new(RECEIVE, SEND) };
    let mut pair = Pair::new(nic, config);
    pair.open();
    pair.settle();
    assert!(pair.client.control().is_up());
    assert_eq!(pair.server.control().channels(), 2);
}

#[test]
fn the_guest_learns_of_link_and_offloads() {
    let mut pair = Pair::up();
    pair.server.set_link(false, 10_000_000_000);
    pair.settle();
    assert_eq!(pair.told.client.last(), Some(&client::Upcall::Link { connected: false }));
    pair.server.set_link(true, 1_000_000_000);
    pair.settle();
    assert_eq!(pair.told.client.last(), Some(&client::Upcall::Link { connected: true }));
    let none = OffloadCapabilities::default();
    pair.server.set_offload_capabilities(none);
    pair.settle();
    assert_eq!(pair.told.client.last(), Some(&client::Upcall::Offloads(none)));
}

#[test]
fn a_closed_channel_gives_its_buffers_back_and_can_be_opened_again() {
    for rounds in 0..3 {
        let mut pair = Pair::new(NicConfig::new(MAC), VscConfig::new(RECEIVE, SEND));
        pair.open();
        // Closed in the middle of coming up, further on each time, and when up.
        for _ in 0..rounds * 3 {
            pair.step();
        }
        pair.close();
        pair.open();
        pair.settle();
        assert!(pair.client.control().is_up(), "after {rounds}: {:?}", pair.told);
        pair.told.server.clear();
        pair.close();
        pair.settle();
        let released: Vec<u32> = pair
            .told
            .server
            .iter()
            .filter_map(|upcall| match upcall {
                Upcall::GpadlReleased { gpadl } => Some(*gpadl),
                _ => None,
            })
            .collect();
        assert_eq!(released, [RECEIVE, SEND]);
        assert!(matches!(pair.told.server.last(), Some(Upcall::Halted)));
        let result = pair.deliver(0, &frame(1, 60), &ReceiveMetadata::default());
        assert_eq!(result, Err(server::NotDelivered::NotWanted));
    }
}

#[test]
fn a_nic_that_is_opened_again_sends_large_frames_as_before() {
    let mut pair = Pair::up();
    let (bytes, large) = frames::large_send(20_000);
    for round in 0..3 {
        pair.client.send(0, &bytes, &large).unwrap();
        pair.client.flush(0);
        pair.settle();
        assert_eq!(pair.forwarded.pop().unwrap().bytes, bytes, "round {round}");
        // All buffers are with the server when the channel closes; they are the guest's again.
        for _ in 0..LARGE_SENDS {
            pair.client.send(0, &bytes, &large).unwrap();
        }
        assert_eq!(pair.client.send(0, &bytes, &large), Err(client::NotSent::NoBuffer));
        pair.close();
        assert_eq!(pair.client.send(0, &bytes, &large), Err(client::NotSent::NotUp));
        pair.open();
        // A second opening is refused, and takes nothing with it.
        let again = channel_in(&mut pair.memory, RING_PAGES).unwrap();
        assert!(!pair.client.open(0, again.guest));
        pair.settle();
    }
}

#[test]
fn a_receive_buffer_that_cannot_be_used_is_refused() {
    let mut pair = Pair::new(NicConfig::new(MAC), VscConfig::new(RECEIVE, SEND));
    let (small, _) = pair.memory.buffer(8192);
    pair.buffers.0 = small;
    pair.open();
    pair.settle();
    assert!(matches!(pair.told.client.last(), Some(client::Upcall::Failed(_))));
    assert!(!pair.server.control().is_up());
}

#[test]
fn an_old_guest_is_told_nothing_of_vfs() {
    for (newest, capabilities) in [
        (NvspVersion::V2, NvspCapabilities::SRIOV),
        (NvspVersion::V61, NvspCapabilities::IEEE_8021Q),
    ] {
        let nic = NicConfig { newest, ..NicConfig::new(MAC) };
        let config = VscConfig { capabilities, ..VscConfig::new(RECEIVE, SEND) };
        let mut pair = Pair::new(nic, config);
        pair.server.vf_available(7, pair.now);
        pair.open();
        pair.settle();
        pair.later(Duration::from_secs(5));
        pair.settle();
        assert!(pair.client.control().is_up());
        assert_eq!(pair.server.control().vf_state(), server::VfState::Available { serial: 7 });
        assert!(!pair.told.server.iter().any(|u| matches!(u, Upcall::OfferVpci { .. })));
    }
}

#[test]
fn every_channel_has_its_share_of_the_pages_for_large_sends() {
    let mut pair = pair(NvspVersion::V61, 4);
    pair.open();
    pair.settle();
    let (bytes, large) = frames::large_send(20_000);
    for index in 0..4 {
        for _ in 0..2 {
            pair.client.send(index, &bytes, &large).unwrap();
        }
        assert_eq!(pair.client.send(index, &bytes, &large), Err(client::NotSent::NoBuffer));
    }
    pair.settle();
    assert_eq!(pair.forwarded.len(), 8);
    // Closed and opened again, the primary has all of them until they are shared out again.
    pair.close();
    pair.open();
    pair.settle();
    pair.client.send(3, &bytes, &large).unwrap();
}

#[test]
fn the_guest_chooses_which_frames_it_wants_at_any_time() {
    let mut pair = pair(NvspVersion::V61, 1);
    let filters = |pair: &Pair| -> Vec<PacketFilter> {
        let upcalls = pair.told.server.iter();
        upcalls
            .filter_map(|upcall| match upcall {
                Upcall::PacketFilter(filter) => Some(*filter),
                _ => None,
            })
            .collect()
    };
    let least = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
    pair.client.set_packet_filter(least);
    pair.open();
    pair.settle();
    assert_eq!(filters(&pair), [least]);
    pair.client.set_packet_filter(PacketFilter::PROMISCUOUS);
    // The same again, and nothing at all, are not asked for.
    pair.client.set_packet_filter(PacketFilter::PROMISCUOUS);
    pair.client.set_packet_filter(PacketFilter::empty());
    pair.settle();
    assert_eq!(filters(&pair), [least, PacketFilter::PROMISCUOUS]);
    assert!(pair.client.control().is_up());
}
