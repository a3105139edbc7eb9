//! SPEC-AVF §10, items 26, 27, 29, and the tail rules of §5.1: queues and their vectors.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_device::{QueueError, QueueInterrupt, RxFormat, RxQueueConfig, TxQueueConfig};
use avf_protocol::{
    registers,
    virtchnl::{
        Capabilities, QueuePairInfo, QueueSelect, Reply, Request, RxQueueInfo, Status, TxQueueInfo,
        VectorMap,
    },
};
use guest::{Call, Guest, RINGS, VSI, pair, vector_map};
use shared_memory::DmaAddress;

fn select(bits: u32) -> QueueSelect {
    QueueSelect::new(VSI, bits, bits)
}

#[test]
fn queues_start_as_they_were_configured_and_mapped() {
    let mut g = Guest::ready();
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair(0), pair(1)] });
    g.must(Request::ConfigIrqMap { vectors: &[vector_map(2, 0b10), vector_map(0, 0)] });
    g.host.take_calls();
    g.must(Request::EnableQueues(QueueSelect::new(VSI, 0b10, 0b11)));
    let tx = |queue: u16, vector, itr| {
        let ring = DmaAddress(RINGS + u64::from(queue) * 0x1000);
        (queue, TxQueueConfig { ring, length: 512, vector, itr, insert_tags: true })
    };
    let rx = RxQueueConfig {
        ring: DmaAddress(RINGS + 0x1800),
        length: 64,
        buffer_size: 1536,
        max_frame_size: 1522,
        format: RxFormat::Legacy,
        vector: Some(2),
        itr: 0,
    };
    assert_eq!(
        g.host.take_calls(),
        [Call::Start(vec![tx(0, None, 3), tx(1, Some(2), 1)], vec![(1, rx)])]
    );
    // What runs already is not started again.
    g.drain();
    g.must(Request::EnableQueues(select(0b11)));
    let calls = g.host.take_calls();
    let [Call::Start(tx, rx)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((tx.len(), rx.len(), rx[0].0), (0, 1, 0));
    g.drain();
    g.must(Request::EnableQueues(select(0b11)));
    assert!(g.host.take_calls().is_empty());
}

#[test]
fn c26_ring_length_0_leaves_queues_unused() {
    let mut g = Guest::ready();
    // As V sends them: unused rings of length 0, rxdid 0, 64-byte frames.
    let unused = |queue: u16| QueuePairInfo {
        tx: TxQueueInfo { vsi_id: VSI.into(), queue_id: queue.into(), ..Default::default() },
        rx: RxQueueInfo {
            vsi_id: VSI.into(),
            queue_id: queue.into(),
            max_pkt_size: 64.into(),
            ..Default::default()
        },
    };
    let pairs = [pair(0), unused(1), unused(2), unused(3)];
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &pairs });
    assert_eq!(g.ask(Request::EnableQueues(select(0b11))), Err(Status::Parameter));
    assert_eq!(g.device.running_queues(), (0, 0), "all or none");
    g.must(Request::EnableQueues(select(1)));
}

#[test]
fn c26_what_a_ring_must_not_be_is_refused_without_side_effects() {
    let mut g = Guest::ready();
    let good = pair(0);
    let with = |change: fn(&mut QueuePairInfo)| {
        let mut pair = good;
        change(&mut pair);
        pair
    };
    for bad in [
        with(|p| p.tx.headwb_enabled = 1.into()),
        with(|p| p.rx.queue_id = 1.into()),
        with(|p| p.tx.ring_len = 33.into()),
        with(|p| p.tx.ring_len = 8192.into()),
        with(|p| p.rx.ring_len = 0x1_0020.into()),
        with(|p| p.rx.ring_len = 8192.into()),
        with(|p| p.tx.dma_ring_addr = (RINGS + 64).into()),
        with(|p| p.rx.dma_ring_addr = 1.into()),
        with(|p| p.rx.databuffer_size = 0.into()),
        with(|p| p.rx.databuffer_size = 127.into()),
        with(|p| p.rx.databuffer_size = 16_257.into()),
        with(|p| (p.tx.queue_id, p.rx.queue_id) = (4.into(), 4.into())),
    ] {
        let pairs = [pair(1), bad];
        let asked = g.ask(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &pairs });
        assert_eq!(asked, Err(Status::Parameter), "{bad:?}");
        // Not even the good one was taken over.
        assert_eq!(g.ask(Request::EnableQueues(select(0b10))), Err(Status::Parameter));
    }
    let five = [pair(0), pair(1), pair(2), pair(3), pair(0)];
    for (vsi_id, pairs) in [(VSI, &five[..]), (VSI, &[]), (VSI + 1, &five[..1])] {
        let asked = g.ask(Request::ConfigVsiQueues { vsi_id, pairs });
        assert_eq!(asked, Err(Status::Parameter));
    }
}

#[test]
fn c26_frame_limits_are_clamped_and_rings_of_32_to_8160_accepted() {
    let mut g = Guest::ready();
    for (asked, given) in [(0, 64), (1522, 1522), (9728 + 26, 9728), (u32::MAX, 9728)] {
        for length in [32, 512, 8160] {
            let mut pair = pair(0);
            pair.rx.max_pkt_size = asked.into();
            pair.rx.ring_len = length.into();
            g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair] });
            g.host.take_calls();
            g.must(Request::EnableQueues(QueueSelect::new(VSI, 1, 0)));
            let calls = g.host.take_calls();
            let [Call::Start(_, rx)] = &calls[..] else { panic!("{calls:?}") };
            assert_eq!((rx[0].1.max_frame_size, u32::from(rx[0].1.length)), (given, length));
            g.drain();
            g.must(Request::DisableQueues(select(1)));
        }
    }
}

#[test]
fn c26_configuration_is_incremental_and_stops_what_it_changes() {
    let mut g = Guest::ready();
    g.start_queues(4);
    g.host.take_calls();
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair(2)] });
    assert_eq!(g.host.take_calls(), [Call::Stop(0b100, 0b100)]);
    assert_eq!(g.device.running_queues(), (0b1011, 0b1011));
    g.must(Request::ConfigTxQueue(pair(0).tx));
    assert_eq!(g.host.take_calls(), [Call::Stop(1, 0)]);
    g.must(Request::ConfigRxQueue(pair(1).rx));
    assert_eq!(g.host.take_calls(), [Call::Stop(0, 2)]);
    assert_eq!(g.device.running_queues(), (0b1010, 0b1001));
}

#[test]
fn c27_linux_maps_queue_vectors_and_then_vector_0_with_nothing() {
    let mut g = Guest::ready();
    let vectors: Vec<_> =
        (0..4).map(|q| vector_map(q + 1, 1 << q)).chain([vector_map(0, 0)]).collect();
    g.must(Request::ConfigIrqMap { vectors: &vectors });
    let settings = g.host.applied();
    for queue in 0..4 {
        let vector = Some(queue + 1);
        let index = usize::from(queue);
        assert_eq!(settings.rx_interrupts[index], QueueInterrupt { vector, itr: 0 });
        assert_eq!(settings.tx_interrupts[index], QueueInterrupt { vector, itr: 1 });
    }
    assert_eq!(settings.rx_interrupts[4], QueueInterrupt::NONE);
}

#[test]
fn c27_vector_0_may_serve_queues_and_tx_may_be_left_out() {
    let mut g = Guest::ready();
    // O: everything on vector 0 with ITR 3. Larger ITR indices mean none too.
    let o = VectorMap { rxitr_idx: 3.into(), txitr_idx: 99.into(), ..vector_map(0, 1) };
    g.must(Request::ConfigIrqMap { vectors: &[o] });
    let none = QueueInterrupt { vector: Some(0), itr: 3 };
    assert_eq!(g.host.applied().rx_interrupts[0], none);
    assert_eq!(g.host.applied().tx_interrupts[0], none);
    // V: the receive side only.
    let v = VectorMap { txq_map: 0.into(), ..vector_map(1, 0b10) };
    g.must(Request::ConfigIrqMap { vectors: &[v] });
    assert_eq!(g.host.applied().rx_interrupts[1].vector, Some(1));
    assert_eq!(g.host.applied().tx_interrupts[1], QueueInterrupt::NONE);
    assert_eq!(g.host.applied().rx_interrupts[0], none, "other vectors stay");
}

#[test]
fn c27_vectors_are_mapped_anew_while_queues_run() {
    let mut g = Guest::ready();
    g.start_queues(2);
    g.host.take_calls();
    g.must(Request::ConfigIrqMap { vectors: &[vector_map(1, 0), vector_map(3, 0b1)] });
    assert_eq!(g.host.take_calls(), [Call::Apply], "queues go on");
    assert_eq!(g.host.applied().rx_interrupts[0].vector, Some(3));
    assert_eq!(g.host.applied().rx_interrupts[1].vector, Some(2));
    // The listed vectors serve what is listed and nothing else.
    g.must(Request::ConfigIrqMap { vectors: &[vector_map(3, 0b10)] });
    assert_eq!(g.host.applied().rx_interrupts[0], QueueInterrupt::NONE);
    assert_eq!(g.host.applied().rx_interrupts[1].vector, Some(3));
}

#[test]
fn c27_maps_of_vectors_and_queues_that_do_not_exist_are_refused() {
    let mut g = Guest::ready();
    let before = g.device.settings().clone();
    for bad in [vector_map(9, 1), vector_map(1, 0b1_0000), vector_map(0xFFFF, 0)] {
        let asked = g.ask(Request::ConfigIrqMap { vectors: &[vector_map(1, 1), bad] });
        assert_eq!(asked, Err(Status::Parameter));
    }
    assert_eq!(*g.device.settings(), before);
}

#[test]
fn c29_disable_sends_what_was_posted_stops_before_it_answers_and_is_idempotent() {
    let mut g = Guest::ready();
    g.start_queues(2);
    g.host.take_calls();
    g.must(Request::DisableQueues(select(0b01)));
    assert_eq!(g.host.take_calls(), [Call::FinishTransmit(1), Call::Stop(1, 1)]);
    g.must(Request::DisableQueues(select(0b11)));
    assert_eq!(g.host.take_calls(), [Call::FinishTransmit(2), Call::Stop(2, 2)]);
    g.must(Request::DisableQueues(select(0b11)));
    g.must(Request::DisableQueues(select(0)));
    assert!(g.host.take_calls().is_empty());
    for bad in [select(0x10), select(u32::MAX), QueueSelect::new(VSI + 1, 1, 1)] {
        assert_eq!(g.ask(Request::DisableQueues(bad)), Err(Status::Parameter));
        assert_eq!(g.ask(Request::EnableQueues(bad)), Err(Status::Parameter));
    }
    assert_eq!(g.ask(Request::EnableQueues(select(0))), Err(Status::Parameter));
}

#[test]
fn a_host_that_cannot_start_queues_makes_enable_fail_and_none_run() {
    let mut g = Guest::ready();
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair(0)] });
    g.host.refuse_start = Some(QueueError::NoResources);
    assert_eq!(g.ask(Request::EnableQueues(select(1))), Err(Status::NoMemory));
    assert!(g.receive().is_none(), "no link event");
    assert_eq!(g.device.running_queues(), (0, 0));
    g.host.refuse_start = None;
    assert_eq!(g.ask(Request::EnableQueues(select(1))), Ok(Reply::Empty));
}

#[test]
fn c39_a_stale_tx_tail_is_forgotten_when_the_queue_stops_and_what_is_written_then_counts() {
    let mut g = Guest::ready();
    g.start_queues(1);
    g.tx_page.store(0, 300);
    g.must(Request::DisableQueues(select(1)));
    assert_eq!(g.tx_page.load(0), 0);
    // L never writes 0 to the TX tail of a queue that it opens again, and may send before it has enabled it.
    g.tx_page.store(0, 3);
    g.must(Request::EnableQueues(select(1)));
    assert_eq!(g.tx_page.load(0), 3);
    // A queue that runs keeps its tail when others start.
    g.drain();
    g.tx_page.store(0, 7);
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair(1)] });
    g.must(Request::EnableQueues(select(0b11)));
    assert_eq!(g.tx_page.load(0), 7);
}

#[test]
fn c40_an_rx_tail_written_before_config_is_there_after_enable() {
    let mut g = Guest::ready();
    g.write(registers::rx_tail(0), 63);
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair(0)] });
    g.must(Request::EnableQueues(select(1)));
    assert_eq!(g.rx_page.load(0), 63);
    g.drain();
    g.must(Request::DisableQueues(select(1)));
    assert_eq!(g.rx_page.load(0), 0);
}

#[test]
fn without_flex_descriptors_the_rxdid_is_ignored() {
    let mut g = Guest::ready_with(Capabilities::L2);
    let mut pair = pair(0);
    pair.rx.rxdid = 22;
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair] });
    g.host.take_calls();
    g.must(Request::EnableQueues(select(1)));
    let calls = g.host.take_calls();
    let [Call::Start(_, rx)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(rx[0].1.format, RxFormat::Legacy);
}
