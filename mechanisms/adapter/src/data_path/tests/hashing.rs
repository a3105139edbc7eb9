//! c32, c33: SPEC-AVF §5.7, receive-side scaling; statistics across resets.

use avf_protocol::hash_enable;

use super::{
    packets::{L4, Recipe},
    *,
};

/// The key of Microsoft's verification suite, padded to the 52 bytes of this hardware.
const KEY: [u8; 40] = [
    0x6D, 0x5A, 0x56, 0xDA, 0x25, 0x5B, 0x0E, 0xC2, 0x41, 0x67, 0x25, 0x3D, 0x43, 0xA3, 0x8F, 0xB0,
    0xD0, 0xCA, 0x2B, 0xCB, 0xAE, 0x7B, 0x30, 0xB4, 0x77, 0xCB, 0x2D, 0xA3, 0x80, 0x30, 0xF2, 0x0C,
    0x6A, 0x42, 0xB7, 0x3B, 0xBE, 0xAC, 0x01, 0xFA,
];

fn rss(hash_enable: u64) -> RssSettings {
    let mut key = [0; 52];
    key[..40].copy_from_slice(&KEY);
    RssSettings { enabled: true, hash_enable, key, ..RssSettings::default_for(1) }
}

fn hash_of(rig: &mut Rig, bytes: &[u8]) -> Option<u32> {
    rig.guest(0).send(bytes);
    rig.run();
    let (received, back) = rig.guest(1).receive().expect("the frame arrives in queue 0");
    assert_eq!(received, bytes);
    rig.guest(1).repost();
    back.rss_hash()
}

fn apply(rig: &mut Rig, rss: RssSettings) {
    rig.path.apply(vf(1), &VfSettings { rss, ..settings() }, MacAddress::ZERO);
}

/// Source 66.9.149.187:2794, destination 161.142.100.80:1766, and their IPv6 counterparts.
fn vector(v6: bool, l4: L4) -> Vec<u8> {
    let recipe = Recipe::new(v6, l4, &pattern(20));
    let mut bytes = recipe.build();
    let ip = recipe.mac_length();
    if v6 {
        let source = [0x3F, 0xFE, 0x25, 0x01, 0x02, 0, 0x1F, 0xFF, 0, 0, 0, 0, 0, 0, 0, 7];
        let destination = [0x3F, 0xFE, 0x25, 0x01, 0x02, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1];
        bytes[ip + 8..ip + 40].copy_from_slice(&[source, destination].concat());
    } else {
        bytes[ip + 12..ip + 20].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
    }
    let l4 = recipe.l4_start();
    bytes[l4..l4 + 4].copy_from_slice(&[0x0A, 0xEA, 0x06, 0xE6]);
    bytes
}

#[test]
fn c32_hashes_are_those_of_the_reference_vectors() {
    let mut rig = Rig::new(2);
    apply(&mut rig, rss(hash_enable::DEFAULT));
    assert_eq!(hash_of(&mut rig, &vector(false, L4::Tcp)), Some(0x51CC_C178));
    assert_eq!(hash_of(&mut rig, &vector(false, L4::Udp)), Some(0x51CC_C178));
    assert_eq!(hash_of(&mut rig, &vector(false, L4::Other)), Some(0x323E_8FC2));
    assert_eq!(hash_of(&mut rig, &vector(true, L4::Tcp)), Some(0x4020_7D3D));
    assert_eq!(hash_of(&mut rig, &vector(true, L4::Other)), Some(0x2CC1_8CD5));
    // Frames longer than what the fast path reads at once, and from the wire.
    let mut long = Recipe::new(false, L4::Tcp, &pattern(1400)).build();
    long[14..38].copy_from_slice(&vector(false, L4::Tcp)[14..38]);
    assert_eq!(hash_of(&mut rig, &long), Some(0x51CC_C178));
    let wire = rig.plug();
    wire.send(&vector(true, L4::Tcp));
    rig.run();
    assert_eq!(rig.guest(1).receive().unwrap().1.rss_hash(), Some(0x4020_7D3D));
}

#[test]
fn c32_only_enabled_packet_types_are_hashed() {
    let mut rig = Rig::new(2);
    for (bits, hashed) in [
        (0, [false; 4]),
        (hash_enable::IPV4_TCP, [true, false, false, false]),
        (hash_enable::IPV4_UDP | hash_enable::IPV6_TCP, [false, true, true, false]),
        (hash_enable::IPV6_OTHER, [false, false, false, true]),
        (hash_enable::L2_PAYLOAD, [false; 4]),
    ] {
        apply(&mut rig, rss(bits));
        for ((v6, l4), expected) in
            [(false, L4::Tcp), (false, L4::Udp), (true, L4::Tcp), (true, L4::Other)]
                .into_iter()
                .zip(hashed)
        {
            let hash = hash_of(&mut rig, &vector(v6, l4));
            assert_eq!(hash.is_some(), expected, "{bits:#x}: {l4:?}, IPv6: {v6}");
        }
    }
    // Not asked for at all, whatever the bits say.
    apply(&mut rig, RssSettings { enabled: false, ..rss(hash_enable::DEFAULT) });
    assert_eq!(hash_of(&mut rig, &vector(false, L4::Tcp)), None);
}

#[test]
fn c32_a_table_that_names_queues_which_are_not_there_leads_to_the_first() {
    let mut rig = Rig::new(2);
    for entry in [1, 15, 16, 31, 32, 200, 255] {
        apply(&mut rig, RssSettings { lut: [entry; 64], ..rss(hash_enable::DEFAULT) });
        assert_eq!(hash_of(&mut rig, &vector(false, L4::Tcp)), Some(0x51CC_C178));
    }
    assert_eq!(rig.stats(1).receive.no_buffer, 0);
}

#[test]
fn c33_statistics_only_grow_until_a_reset_clears_them() {
    let mut rig = Rig::new(2);
    let mut before = FunctionStats::default();
    for round in 1..=50 {
        rig.guest(0).send(&frame(1, 0, &pattern(60)));
        rig.guest(1).send(&frame(0, 1, &pattern(100)));
        rig.run();
        (0..2).for_each(|number| drop(rig.guest(number).receive_frame()));
        (0..2).for_each(|number| rig.guest(number).repost());
        let now = rig.stats(1);
        assert_eq!((now.receive.unicast, now.transmit.unicast), (round, round));
        assert_eq!((now.receive.bytes, now.transmit.bytes), (round * 74, round * 114));
        assert!(now.receive.bytes > before.receive.bytes);
        before = now;
    }
    // Stopping and starting queues is no reset.
    rig.path.stop_queues(vf(1), 1, 1);
    assert_eq!(rig.stats(1), before);
    rig.path.clear_stats(vf(1));
    assert_eq!(rig.stats(1), FunctionStats::default());
    assert_eq!(rig.stats(0).transmit.unicast, 50, "that was another function's");
}
