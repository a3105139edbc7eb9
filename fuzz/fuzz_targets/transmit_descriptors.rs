//! TX descriptors and frames of a hostile guest into the data path of two VFs. The first bytes are the tail and
//! the number of descriptors; descriptors follow, and then what their buffers hold.
#![no_main]

use std::sync::{Arc, atomic::Ordering};

use adapter::data_path::{DataPath, FunctionContext, FunctionSlot};
use avf_device::{
    InterruptVectors, QueueInterrupt, RssSettings, RxFormat, RxQueueConfig, TxQueueConfig,
    VfSettings,
};
use avf_protocol::transmit::TxData;
use libfuzzer_sys::fuzz_target;
use ndis_protocol::{FilterId, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};
use shared_memory::{
    Access, DescriptorRing, DmaAddress, DmaMap, DmaRegion, DoorbellPage, PageSize, SharedMapping,
};

const MEMORY: usize = 512 << 10;
const TX_RING: usize = 0;
const RX_RING: usize = 0x1000;
/// Nothing ever points here.
const CANARY: usize = 0x3000;
const RX_BUFFERS: u64 = 0x4_0000;
const TX_BUFFERS: usize = 0x1_0000;
const LENGTH: u16 = 64;

struct Guest {
    memory: SharedMapping,
    tx: DescriptorRing<2>,
    tx_doorbells: DoorbellPage,
}

fn vf(number: u16) -> FunctionSlot {
    FunctionSlot::vf(VfId::new(number).expect("a small number"))
}

fn mac(number: u16) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 1, number as u8])
}

fn settings() -> VfSettings {
    VfSettings {
        queue_pairs: 1,
        max_frame: 9728,
        primary_mac: None,
        unicast: Vec::new(),
        multicast: Vec::new(),
        promiscuous_unicast: false,
        promiscuous_multicast: true,
        vlan_filtering: false,
        vlans: Vec::new(),
        vlan_strip: true,
        vlan_insert: true,
        rss: RssSettings::default_for(1),
        tx_interrupts: [QueueInterrupt::NONE; 16],
        rx_interrupts: [QueueInterrupt::NONE; 16],
    }
}

fn guest(path: &mut DataPath, number: u16) -> Guest {
    let (memory, _) = SharedMapping::create("guest", MEMORY, PageSize::Base).expect("memory");
    let (pages, _) = SharedMapping::create("doorbells", 8192, PageSize::Base).expect("memory");
    let tx_doorbells = DoorbellPage::new(&pages, 0).expect("a page");
    let rx_doorbells = DoorbellPage::new(&pages, 4096).expect("a page");
    let interrupts = Arc::new(InterruptVectors::new(2, &rx_doorbells));
    let context = FunctionContext {
        tx_doorbells: tx_doorbells.clone(),
        rx_doorbells: rx_doorbells.clone(),
        interrupts,
    };
    path.attach(vf(number), context);
    let region =
        DmaRegion { iova: DmaAddress(0), mapping: memory.clone(), access: Access::ReadWrite };
    path.set_dma_map(vf(number), DmaMap::empty().with(region).expect("one range"));
    let vport = VPortId::new(u32::from(number) + 1).expect("a small number");
    path.switch().create_vport(vport).expect("room");
    path.bind(vport, vf(number)).expect("a VPort");
    let filter = ReceiveFilter { mac: mac(number), vlan: VlanMatch::Any, vport };
    let id = FilterId::new(u32::from(number) + 1).expect("a small number");
    path.switch().set_filter(id, filter).expect("room");
    let rx = DescriptorRing::<4>::new(&memory, RX_RING, LENGTH).expect("inside memory");
    for index in 0..LENGTH {
        rx.store(index, 0, RX_BUFFERS + u64::from(index) * 2048, Ordering::Relaxed);
    }
    let tx = DescriptorRing::new(&memory, TX_RING, LENGTH).expect("inside memory");
    let tx_config =
        TxQueueConfig { ring: DmaAddress(TX_RING as u64), length: LENGTH, vector: None, itr: 1, insert_tags: true };
    let rx_config = RxQueueConfig {
        ring: DmaAddress(RX_RING as u64),
        length: LENGTH,
        buffer_size: 2048,
        max_frame_size: 9728,
        format: RxFormat::Legacy,
        vector: None,
        itr: 0,
    };
    path.start_queues(vf(number), &[(0, tx_config)], &[(0, rx_config)]).expect("valid rings");
    path.apply(vf(number), &settings(), mac(number));
    rx_doorbells.store(0, u32::from(LENGTH) - 1);
    Guest { memory, tx, tx_doorbells }
}

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk::<3>() else { return };
    let mut path = DataPath::new(3, 3, 9728, Box::new(uplink::NoUplink::default()));
    let (hostile, other) = (guest(&mut path, 0), guest(&mut path, 1));
    let count = usize::from(head[0] % LENGTH as u8);
    let mut descriptors = rest.chunks_exact(16).take(count);
    let mut index = 0;
    for descriptor in descriptors.by_ref() {
        let word =
            |at: usize| u64::from_le_bytes(descriptor[at..at + 8].try_into().expect("eight bytes"));
        // Most addresses are in memory: in and around the buffers.
        let address = word(0);
        let address = if address % 8 == 0 {
            address
        } else {
            TX_BUFFERS as u64 + address % (MEMORY - TX_BUFFERS + 4096) as u64
        };
        hostile.tx.store(index, 0, address, Ordering::Relaxed);
        hostile.tx.store(index, 1, word(8), Ordering::Relaxed);
        index += 1;
    }
    let bytes = rest.get(usize::from(index) * 16..).unwrap_or_default();
    // Frames that may reach the other VF, and what the input has.
    let frame = [&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0][..], bytes].concat();
    for place in 0..4 {
        let at = TX_BUFFERS + place * 0x8000;
        let bytes = &frame[..frame.len().min(0x8000)];
        hostile.memory.slice(at, bytes.len()).expect("inside memory").write_from(bytes);
    }
    let mut now = 1_000_000;
    for tail in
        [u32::from(index), u32::from(head[1]), u32::from_le_bytes([head[1], head[2], 0, head[0]])]
    {
        hostile.tx_doorbells.store(0, tail);
        for _ in 0..8 {
            path.poll(now);
            now += 1_000;
        }
    }
    // Neither a fault nor a frame changes what nobody pointed at, and the other VF can still send.
    let mut canary = [0u8; 4096];
    other.memory.slice(CANARY, canary.len()).expect("inside memory").read_into(&mut canary);
    assert!(canary.iter().all(|byte| *byte == 0));
    let before = path.stats(vf(1)).transmit.frames();
    let frame = [2, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 1, 0x88, 0xB5];
    other.memory.slice(TX_BUFFERS, 60).expect("inside memory").write_from(&frame);
    let words = TxData::new(TX_BUFFERS as u64, 60).with_end_of_packet().0;
    other.tx.store(0, 0, words[0], Ordering::Relaxed);
    other.tx.store(0, 1, words[1], Ordering::Relaxed);
    other.tx_doorbells.store(0, 1);
    for _ in 0..8 {
        path.poll(now);
        now += 1_000;
    }
    assert_eq!(path.stats(vf(1)).transmit.frames(), before + 1);
});
