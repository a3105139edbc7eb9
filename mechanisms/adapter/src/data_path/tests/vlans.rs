//! c31, c43: VLAN tags through the data path: stripped into descriptors, put in and taken out by the NIC
//! switch, and kept from guests that do not want them.

use avf_protocol::{receive::legacy, transmit::TxOffload};
use nic_switch::{VPortPolicy, VlanPolicy, VlanSet};

use super::{
    offloads::{any_vlan, assert_good},
    packets::{L4, Recipe, look_into, tagged},
    *,
};

impl Rig {
    /// Sets the VLAN mode of a VF's VPort.
    fn set_vlan(&mut self, number: u32, vlan: VlanPolicy) {
        let policy = VPortPolicy { vlan, ..VPortPolicy::default() };
        self.path.switch().set_policy(VPortId::new(number + 1).unwrap(), policy).unwrap();
    }

    fn strip(&mut self, number: u16, vlan_strip: bool) {
        self.path.apply(vf(number), &VfSettings { vlan_strip, ..settings() }, MacAddress::ZERO);
    }

    /// A VF with filters for its address in the given VLANs; no VLAN stands for untagged.
    fn filters(&mut self, number: u8, vlans: &[Option<u16>]) {
        let vport = VPortId::new(u32::from(number) + 1).unwrap();
        self.path.switch().clear_filter(FilterId::new(u32::from(number) + 1).unwrap()).unwrap();
        for (at, vlan) in vlans.iter().enumerate() {
            let vlan = vlan.map_or(VlanMatch::UntaggedOrZero, VlanMatch::Id);
            let filter = ReceiveFilter { mac: MacAddress::new(mac(number)), vlan, vport };
            let id = FilterId::new(100 + u32::from(number) * 10 + at as u32).unwrap();
            self.path.switch().set_filter(id, filter).unwrap();
        }
    }
}

/// The next frame as its driver hands it to the stack: the tag in the descriptor and the bytes.
fn next(rig: &mut Rig, number: usize) -> Option<(Option<u16>, Vec<u8>)> {
    let (bytes, back) = rig.guest(number).receive()?;
    rig.guest(number).repost();
    Some((back.l2tag1(), bytes))
}

#[test]
fn c31_a_stripped_tag_is_in_the_descriptor_and_never_lost() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    // Priority tags, the drop eligible bit, and VLAN ids at both ends.
    for tci in [0x0001, 0x0FFF, 0xA064, 0x5FFE, 0xE000, 0x0000] {
        for length in [3, 46, 110, 200, 300, 1500, 5000, 9700] {
            let bare = frame(1, 0, &pattern(length));
            let full = tagged(&bare, tci);
            for strip in [true, false, true] {
                rig.strip(1, strip);
                let expected = if strip { (Some(tci), bare.clone()) } else { (None, full.clone()) };
                // Tagged by the sender, tagged by the NIC, from the wire.
                rig.guest(0).send(&full);
                rig.guest(0).send_with(&[&bare], TxOffload::default(), Some(tci), None);
                wire.send(&full);
                rig.run();
                for way in ["in the payload", "inserted", "from the wire"] {
                    assert_eq!(next(&mut rig, 1), Some(expected.clone()), "{tci:#x} {way}");
                }
                // What has no tag gets none.
                rig.guest(0).send(&bare);
                wire.send(&bare);
                rig.run();
                assert_eq!(next(&mut rig, 1), Some((None, bare.clone())));
                assert_eq!(next(&mut rig, 1), Some((None, bare.clone())));
            }
        }
    }
}

#[test]
fn c31_of_two_tags_the_outer_one_is_stripped_and_other_ethertypes_stay() {
    let mut rig = any_vlan(2);
    rig.strip(1, true);
    let recipe = Recipe { tags: vec![0x0002, 0x0003], ..Recipe::new(false, L4::Udp, b"inner") };
    let inner = Recipe { tags: vec![0x0003], ..recipe.clone() };
    rig.guest(0).send(&recipe.build());
    // Inserted before the one that is there.
    rig.guest(0).send_with(&[&inner.build()], TxOffload::default(), Some(2), None);
    rig.run();
    for _ in 0..2 {
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!((received, back.l2tag1()), (inner.build(), Some(2)));
        assert_good(back, &inner);
    }
    // A service tag (802.1ad) is none of ours: it is left where it is.
    let mut service = tagged(&frame(1, 0, &pattern(60)), 9);
    service[12..14].copy_from_slice(&[0x88, 0xA8]);
    rig.guest(0).send(&service);
    rig.run();
    assert_eq!(next(&mut rig, 1), Some((None, service)));
}

#[test]
fn c31_stripping_keeps_the_verdict_and_the_packet_type() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    rig.strip(1, true);
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp, L4::Sctp] {
            for length in [0, 1, 100, 201, 1401] {
                let bare = Recipe::new(v6, l4, &pattern(length));
                let full = Recipe { tags: vec![0x2064], ..bare.clone() };
                rig.guest(0).send(&full.build());
                rig.guest(0).send_with(&[&bare.seeded()], bare.offload(), Some(0x2064), None);
                rig.guest(0).send_with(&[&full.seeded()], full.offload(), None, None);
                wire.send(&full.build());
                rig.run();
                for _ in 0..4 {
                    let (received, back) = rig.guest(1).receive().unwrap();
                    assert_eq!((received, back.l2tag1()), (bare.build(), Some(0x2064)));
                    assert_good(back, &bare);
                }
                // A wrong checksum is still seen behind the tag.
                let mut wrong = full.build();
                wrong[bare.checksum().start + 4] ^= 0x10;
                rig.guest(0).send(&wrong);
                rig.run();
                let (_, back) = rig.guest(1).receive().unwrap();
                assert!(back.has(legacy::L3L4P | legacy::L4E | legacy::L2TAG1P));
                rig.guest(1).repost();
            }
        }
    }
}

#[test]
fn a_tag_that_is_cut_off_is_malformed() {
    let mut rig = any_vlan(2);
    rig.strip(1, true);
    let whole = tagged(&frame(1, 0, &[]), 5);
    assert_eq!(whole.len(), 18);
    for length in 14..18 {
        rig.guest(0).send(&whole[..length]);
        rig.guest(0).send_with(&[&whole[..7], &whole[7..length]], TxOffload::default(), None, None);
    }
    rig.run();
    assert_eq!(rig.stats(0).transmit.malformed, 8);
    assert_eq!(rig.guest(1).receive(), None);
    rig.guest(0).send(&whole);
    rig.run();
    assert_eq!(next(&mut rig, 1), Some((Some(5), frame(1, 0, &[]))));
}

#[test]
fn an_access_vlan_is_on_the_wire_and_never_in_the_guest() {
    let mut rig = any_vlan(4);
    let wire = rig.plug();
    for number in 0..3 {
        // VF 2 is in another VLAN.
        let vlan = if number == 2 { 8 } else { 7 };
        rig.filters(number, &[Some(vlan)]);
        rig.set_vlan(number.into(), VlanPolicy::Access(vlan));
    }
    rig.strip(1, true);
    for length in [46, 110, 120, 300, 1500, 9700] {
        let payload = pattern(length);
        // To a VF in the VLAN, to one in another, and out.
        for to in [1, 2, 200] {
            rig.guest(0).send(&frame(to, 0, &payload));
        }
        // From the wire: in the VLAN, in the other one, and without any.
        wire.send(&tagged(&frame(1, 200, &payload), 0x4007));
        wire.send(&tagged(&frame(1, 200, &payload), 8));
        wire.send(&frame(1, 200, &payload));
        rig.run();
        assert_eq!(next(&mut rig, 1), Some((None, frame(1, 0, &payload))));
        assert_eq!(next(&mut rig, 1), Some((None, frame(1, 200, &payload))));
        assert_eq!(next(&mut rig, 1), None);
        assert_eq!(next(&mut rig, 2), None);
        // The VF of the other VLAN has no filter in this one: it may be behind the wire.
        let out = [tagged(&frame(2, 0, &payload), 7), tagged(&frame(200, 0, &payload), 7)];
        assert_eq!(wire.take(), out);
    }
    assert_eq!(rig.path.uplink_stats().received_dropped, 12);
    // A guest that tags by itself is refused; a priority tag is its own affair.
    rig.guest(0).send(&tagged(&frame(1, 0, &pattern(60)), 7));
    rig.guest(0).send_with(&[&frame(1, 0, &pattern(60))], TxOffload::default(), Some(9), None);
    rig.run();
    assert_eq!(rig.stats(0).transmit.vlan_not_allowed, 2);
    rig.guest(0).send(&tagged(&frame(200, 0, &pattern(60)), 0xA000));
    rig.run();
    assert_eq!(wire.take(), [tagged(&frame(200, 0, &pattern(60)), 0xA007)]);
    // Broadcasts stay in their VLAN too: VF 3 is in all of them, and sees the tag.
    let everyone = [&[0xFF; 6], &mac(0)[..], &[0x88, 0xB5], &pattern(50)].concat();
    rig.guest(0).send(&everyone);
    rig.run();
    assert_eq!(next(&mut rig, 1), Some((None, everyone.clone())));
    assert_eq!(next(&mut rig, 2), None);
    assert_eq!(next(&mut rig, 3), Some((None, tagged(&everyone, 7))));
    assert_eq!(wire.take(), [tagged(&everyone, 7)]);
}

#[test]
fn an_access_vlan_goes_around_checksums_and_segments() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    rig.filters(0, &[Some(7)]);
    rig.filters(1, &[Some(7)]);
    rig.set_vlan(0, VlanPolicy::Access(7));
    rig.set_vlan(1, VlanPolicy::Access(7));
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp] {
            let recipe = Recipe::new(v6, l4, &pattern(1203));
            rig.guest(0).send_with(&[&recipe.seeded()], recipe.offload(), None, None);
            rig.run();
            let (received, back) = rig.guest(1).receive().unwrap();
            assert_eq!(received, recipe.build());
            assert_good(back, &recipe);
            rig.guest(1).repost();
            let outward = Recipe { to: 200, ..recipe };
            let context = avf_protocol::transmit::TxContext::new().with_segmentation(1203, 500);
            rig.guest(0).send_with(
                &[&outward.for_segmentation()],
                outward.offload(),
                None,
                Some(context),
            );
            rig.run();
            let found: Vec<_> = wire.take().iter().map(|frame| look_into(frame)).collect();
            assert_eq!(found.len(), 3);
            for one in &found {
                assert_eq!((one.tags.as_slice(), one.l4_good), (&[7][..], Some(true)));
            }
            let payload: Vec<u8> = found.into_iter().flat_map(|one| one.payload).collect();
            assert_eq!(payload, outward.payload);
        }
    }
}

#[test]
fn a_trunk_passes_its_vlans_tagged_and_the_native_one_untagged() {
    let mut rig = any_vlan(3);
    let wire = rig.plug();
    let trunk = VlanPolicy::Trunk { native: 5, allowed: VlanSet::from_iter([10, 11]) };
    rig.set_vlan(0, trunk.clone());
    rig.set_vlan(1, trunk);
    for length in [46, 120, 1500] {
        let bare = frame(1, 0, &pattern(length));
        for (sent, inserted) in
            [(bare.clone(), None), (tagged(&bare, 0x200A), None), (bare.clone(), Some(0x200A))]
        {
            rig.guest(0).send_with(&[&sent], TxOffload::default(), inserted, None);
            rig.run();
            let expected = match inserted {
                Some(tci) => tagged(&sent, tci),
                None => sent.clone(),
            };
            assert_eq!(next(&mut rig, 1), Some((None, expected)));
        }
        // On the wire the native VLAN has its tag, and from it, too.
        let out = frame(200, 0, &pattern(length));
        rig.guest(0).send(&out);
        rig.guest(0).send(&tagged(&out, 11));
        wire.send(&tagged(&bare, 5));
        wire.send(&tagged(&bare, 10));
        wire.send(&tagged(&bare, 12));
        wire.send(&bare);
        rig.run();
        assert_eq!(wire.take(), [tagged(&out, 5), tagged(&out, 11)]);
        assert_eq!(next(&mut rig, 1), Some((None, bare.clone())));
        assert_eq!(next(&mut rig, 1), Some((None, tagged(&bare, 10))));
        assert_eq!(next(&mut rig, 1), None, "12 and untagged do not pass");
    }
    assert_eq!(rig.path.uplink_stats().received_dropped, 6);
    rig.guest(0).send(&tagged(&frame(1, 0, &pattern(60)), 12));
    rig.run();
    assert_eq!(rig.stats(0).transmit.vlan_not_allowed, 1);
    // With stripping on, the tags that pass are told.
    rig.strip(1, true);
    rig.guest(0).send(&tagged(&frame(1, 0, &pattern(60)), 0x200A));
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    rig.run();
    assert_eq!(next(&mut rig, 1), Some((Some(0x200A), frame(1, 0, &pattern(60)))));
    assert_eq!(next(&mut rig, 1), Some((None, frame(1, 0, &pattern(60)))));
}

#[test]
fn c31_with_vlan_filtering_only_the_vlans_added_and_untagged_frames_pass() {
    let mut rig = any_vlan(2);
    let wire = rig.plug();
    let limited = VfSettings { vlan_filtering: true, vlans: vec![5, 4095], ..settings() };
    let bare = frame(1, 0, &pattern(60));
    let passed = |rig: &mut Rig, tci: Option<u16>| {
        let bytes = tci.map_or(bare.clone(), |tci| tagged(&bare, tci));
        rig.guest(0).send(&bytes);
        wire.send(&bytes);
        if let Some(tci) = tci {
            rig.guest(0).send_with(&[&bare], TxOffload::default(), Some(tci), None);
        } else {
            rig.guest(0).send(&bare);
        }
        rig.run();
        let mut count = 0;
        while let Some((received, _)) = rig.guest(1).receive() {
            assert_eq!(received, bytes);
            count += 1;
        }
        rig.guest(1).repost();
        assert!(count == 0 || count == 3, "all ways alike");
        count == 3
    };
    // Not filtering: all pass.
    for tci in [None, Some(5), Some(6), Some(0xE000)] {
        assert!(passed(&mut rig, tci));
    }
    rig.path.apply(vf(1), &limited, MacAddress::ZERO);
    for (tci, expected) in [
        (None, true),
        (Some(0xE000), true),
        (Some(5), true),
        (Some(0x6005), true),
        (Some(4095), true),
        (Some(6), false),
        (Some(4094), false),
    ] {
        assert_eq!(passed(&mut rig, tci), expected, "{tci:x?}");
    }
    assert_eq!(rig.stats(0).transmit.vlan_not_allowed, 4);
    assert_eq!(rig.path.uplink_stats().received_dropped, 2);
    // One removed, one added; then no filtering any more.
    rig.path.apply(vf(1), &VfSettings { vlans: vec![6], ..limited }, MacAddress::ZERO);
    assert!(!passed(&mut rig, Some(5)) && passed(&mut rig, Some(6)));
    rig.path.apply(vf(1), &settings(), MacAddress::ZERO);
    assert!(passed(&mut rig, Some(5)));
}
