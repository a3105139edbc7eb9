//! Buffers that lie across the ends of DMA regions. What is adjacent for the device need not be so for us.

use avf_protocol::transmit::{TxContext, TxData, TxOffload};

use super::{
    packets::{L4, Recipe, look_into},
    *,
};

/// Page-sized regions right behind a guest's memory, each a mapping of its own; then a hole of a page, then
/// one region more.
const PAGES: u64 = 12;
const PAGE: u64 = 4096;
const BEHIND: u64 = MEMORY as u64;

fn scattered(rig: &mut Rig, number: u16) -> DmaMap {
    let region =
        |iova, mapping| DmaRegion { iova: DmaAddress(iova), mapping, access: Access::ReadWrite };
    let memory = rig.guests[usize::from(number)].memory.clone();
    let mut map = DmaMap::empty().with(region(0, memory)).unwrap();
    for page in (0..PAGES).chain([PAGES + 1]) {
        let (mapping, _) = SharedMapping::create("page", PAGE as usize, PageSize::Base).unwrap();
        map = map.with(region(BEHIND + page * PAGE, mapping)).unwrap();
    }
    rig.path.set_dma_map(vf(number), map.clone());
    map
}

/// Posts one whole packet that lies at `address`.
fn post(
    rig: &mut Rig,
    address: u64,
    length: usize,
    offload: TxOffload,
    context: Option<TxContext>,
) -> u16 {
    let guest = rig.guest(0);
    if let Some(TxContext(words)) = context {
        guest.descriptor(words);
    }
    let data = TxData::new(address, u16::try_from(length).unwrap()).with_offload(offload);
    let last = guest.descriptor(data.with_end_of_packet().with_report_status().0);
    guest.ring();
    last
}

#[test]
fn a_frame_across_the_ends_of_regions_is_sent_whole() {
    let mut rig = Rig::new(2);
    let map = scattered(&mut rig, 0);
    for length in [17, 100, 300, 4096, 4097, 9000, 9728] {
        let bytes = frame(1, 0, &pattern(length - 14));
        for before in [1, 13, 14, 127, 128, 129, length - 1] {
            let before = before.min(length - 1);
            let address = BEHIND + PAGE - before as u64;
            map.write_bytes(DmaAddress(address), &bytes).unwrap();
            let last = post(&mut rig, address, length, TxOffload::default(), None);
            rig.run();
            assert!(rig.guests[0].is_done(last));
            assert_eq!(rig.guest(1).receive_frame(), bytes, "{before} of {length} bytes before");
            rig.guest(1).repost();
        }
    }
    // From the guest's own memory into the first page.
    let bytes = frame(1, 0, &pattern(1000));
    map.write_bytes(DmaAddress(BEHIND - 500), &bytes).unwrap();
    post(&mut rig, BEHIND - 500, bytes.len(), TxOffload::default(), None);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
    assert_eq!(rig.stats(0).transmit.errors(), 0);
}

#[test]
fn frames_keep_their_order_around_one_that_lies_in_two_regions() {
    let mut rig = Rig::new(2);
    let map = scattered(&mut rig, 0);
    let split = frame(1, 0, &[7; 200]);
    map.write_bytes(DmaAddress(BEHIND + PAGE - 50), &split).unwrap();
    for number in 0..5 {
        rig.guest(0).send(&frame(1, 0, &[number; 60]));
        post(&mut rig, BEHIND + PAGE - 50, split.len(), TxOffload::default(), None);
    }
    rig.run();
    for number in 0..5 {
        assert_eq!(rig.guest(1).receive_frame(), frame(1, 0, &[number; 60]));
        assert_eq!(rig.guest(1).receive_frame(), split);
    }
}

#[test]
fn offloads_work_across_the_ends_of_regions() {
    let mut rig = Rig::with(2, 64, 2048, VlanMatch::Any);
    let map = scattered(&mut rig, 0);
    for before in [1, 20, 41, 60, 500] {
        let address = BEHIND + PAGE - before;
        let recipe = Recipe::new(false, L4::Tcp, &pattern(9001));
        map.write_bytes(DmaAddress(address), &recipe.seeded()).unwrap();
        post(&mut rig, address, recipe.build().len(), recipe.offload(), None);
        rig.run();
        assert_eq!(rig.guest(1).receive_frame(), recipe.build());
        let bytes = recipe.for_segmentation();
        map.write_bytes(DmaAddress(address), &bytes).unwrap();
        let context = TxContext::new().with_segmentation(9001, 1000);
        post(&mut rig, address, bytes.len(), recipe.offload(), Some(context));
        rig.run();
        let mut payload = Vec::new();
        while let Some((segment, _)) = rig.guest(1).receive() {
            let found = look_into(&segment);
            assert_eq!((found.ip_good, found.l4_good), (Some(true), Some(true)));
            payload.extend(found.payload);
        }
        assert_eq!(payload, recipe.payload);
        rig.guest(1).repost();
    }
}

#[test]
fn a_frame_that_runs_into_a_hole_is_a_fault_and_is_not_sent() {
    let mut rig = Rig::new(2);
    let map = scattered(&mut rig, 0);
    let hole = BEHIND + PAGES * PAGE;
    let bytes = frame(1, 0, &pattern(100));
    for (number, (address, length)) in [
        (hole - 100, 114),
        (hole - 1, 114),
        (hole, 114),
        (hole + PAGE - 1, 114),
        // Over a whole region and beyond, and around the hole.
        (hole - PAGE - 10, 5000),
        (hole - 100, 5000),
        (hole + PAGE + PAGE - 1, 114),
        (u64::MAX - 50, 114),
    ]
    .into_iter()
    .enumerate()
    {
        let last = post(&mut rig, address, length, TxOffload::default(), None);
        rig.run();
        assert!(rig.guests[0].is_done(last));
        let stats = rig.stats(0).transmit;
        assert_eq!((stats.dma_faults, stats.frames()), (number as u64 + 1, 0), "{address:#x}");
    }
    // What ends right before the hole is no fault.
    map.write_bytes(DmaAddress(hole - 114), &bytes).unwrap();
    post(&mut rig, hole - 114, 114, TxOffload::default(), None);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn a_packet_in_too_many_pieces_is_malformed() {
    let mut rig = Rig::new(2);
    scattered(&mut rig, 0);
    // Five pieces a descriptor: ten of them are one more than a packet may have.
    let guest = rig.guest(0);
    for _ in 0..9 {
        guest.descriptor(TxData::new(BEHIND + PAGE - 1, 16_383).0);
    }
    let last = TxData::new(BEHIND + PAGE - 1, 16_383).with_end_of_packet().with_report_status();
    let last = guest.descriptor(last.0);
    guest.ring();
    rig.run();
    assert!(rig.guests[0].is_done(last));
    assert_eq!(rig.stats(0).transmit.malformed, 1);
}

/// Receive buffers are not taken across regions: drivers lay them out by pages, and a region ends with one.
#[test]
fn a_posted_buffer_across_the_end_of_a_region_is_a_fault_that_is_counted() {
    let mut rig = Rig::new(2);
    scattered(&mut rig, 1);
    rig.guests[1].rx.store(0, 0, BEHIND + PAGE - 100, Ordering::Relaxed);
    let bytes = frame(1, 0, &pattern(186));
    rig.guest(0).send(&bytes);
    rig.guest(0).send(&bytes);
    rig.run();
    let receive = rig.stats(1).receive;
    assert_eq!((receive.dma_faults, receive.unicast), (1, 1));
    let (nothing, back) = rig.guest(1).receive().unwrap();
    assert!(nothing.is_empty() && back.has(avf_protocol::receive::legacy::RXE));
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}
