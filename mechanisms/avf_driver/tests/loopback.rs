//! The driver on a function that is served over vfio-user: life, traffic, resets and death.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use avf_device::VfConfig;
use avf_driver::{
    AvfDriver, DriverConfig, DriverError, Event, LinkStatus, MacAddress, MemorySource, Promiscuity,
    RxSegment, State, TxSegment, VlanConfig, Wait,
};
use avf_protocol::virtchnl::Capabilities;
use shared_memory::{DmaAddress, PageSize, SharedMapping};

use common::*;

#[test]
fn a_function_is_opened_carries_frames_and_is_closed_without_a_trace() {
    let loopback = Loopback::new();
    let (mut control, mut pair) = loopback.open();
    assert_eq!(control.mac(), MAC);
    assert_eq!(control.state(), State::Running);
    assert!(control.has_doorbell_pages());
    wait_for_link(&mut control);
    assert_eq!(control.link(), LinkStatus { up: true, mbps: 100_000 });
    loop_frames(&mut pair);
    let stats = control.stats().unwrap();
    assert_eq!((stats.tx_unicast, stats.rx_unicast), (8, 8));
    assert_eq!(control.stray_messages(), 0);
    loopback.with_function(|function| assert_eq!(function.device.running_queues(), (1, 1)));
    control.close(vec![pair]).unwrap();
    loopback.with_function(|function| {
        assert_eq!(function.device.running_queues(), (0, 0));
        assert_eq!(function.device.faults(), 0);
    });
    // And once more, on the same socket.
    let (_control, mut pair) = loopback.open();
    loop_frames(&mut pair);
}

#[test]
fn bursts_larger_than_the_ring_lose_and_reorder_nothing() {
    let loopback = Loopback::new();
    let (_control, mut pair) = loopback.open();
    let memory = pair.tx.memory().clone();
    let (mut burst, mut out) = (ArrayVec::<TxSegment, 64>::new(), ArrayVec::<RxSegment, 64>::new());
    let (mut sent, mut received) = (0u32, 0u32);
    wait_for("20,000 frames", || {
        while !burst.is_full() && sent < 20_000 && sent - received < 400 {
            let Some(buffer) = pair.tx.reserve() else { break };
            memory.bytes(&buffer).unwrap().write_from(&frame(sent, 64));
            burst.push(TxSegment::frame(buffer, 64));
            sent += 1;
        }
        pair.tx.transmit(&mut burst);
        pair.rx.receive(&mut out);
        for segment in out.drain(..) {
            let number = memory.part(&segment.buffer, 14, 4).unwrap().read_object::<[u8; 4]>(0);
            assert_eq!(u32::from_le_bytes(number.unwrap()), received);
            received += 1;
            pair.rx.free(segment.buffer);
        }
        (received == 20_000).then_some(())
    });
    assert_eq!(loopback.with_function(|function| function.host.dropped), 0);
    assert_eq!(pair.tx.counters().frames, 20_000);
    assert_eq!(pair.rx.counters().frames, 20_000);
}

#[test]
fn without_shared_doorbells_tails_go_by_message() {
    let loopback = Loopback::with(VfConfig::new(1, 1, MAC), false);
    let (control, mut pair) = loopback.open();
    assert!(!control.has_doorbell_pages());
    loop_frames(&mut pair);
}

#[test]
fn queue_pairs_carry_frames_each_on_its_own_thread() {
    let loopback = Loopback::new();
    let config = DriverConfig { queue_pairs: 4, ..loopback.config() };
    let (control, pairs) = AvfDriver::open(config).unwrap();
    assert_eq!(control.capabilities().queue_pairs, 4);
    assert!(control.capabilities().rss);
    let threads: Vec<_> = pairs
        .into_iter()
        .map(|mut pair| {
            std::thread::spawn(move || {
                loop_frames(&mut pair);
                pair
            })
        })
        .collect();
    let pairs = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    control.close(pairs).unwrap();
}

#[test]
fn more_queue_pairs_than_granted_are_asked_for_and_fewer_are_lived_with() {
    let few = VfConfig { queue_pairs: 1, ..VfConfig::new(1, 4, MAC) };
    let loopback = Loopback::with(few, true);
    let config = DriverConfig { queue_pairs: 3, ..loopback.config() };
    let (mut control, mut pairs) = AvfDriver::open(config).unwrap();
    assert_eq!(pairs.len(), 3);
    pairs.iter_mut().for_each(loop_frames);
    let events = control.poll_events(Instant::now()).unwrap();
    assert!(!events.contains(&Event::ResetImpending), "the reset was the driver's own wish");
    drop((control, pairs));

    let config = DriverConfig { queue_pairs: 9, ..loopback.config() };
    let (control, pairs) = wait_for("the socket", || AvfDriver::open(config_again(&config)).ok());
    assert_eq!((control.capabilities().queue_pairs, pairs.len()), (4, 4));
}

fn config_again(config: &DriverConfig) -> DriverConfig {
    DriverConfig { queue_pairs: config.queue_pairs, ..DriverConfig::new(&config.socket) }
}

#[test]
fn a_reset_by_the_pf_stops_the_queues_and_rebuild_brings_all_back() {
    let loopback = Loopback::new();
    let (mut control, mut pair) = loopback.open();
    let group = MacAddress([0x33, 0x33, 0, 0, 0, 1]);
    control.add_multicast(&[group]).unwrap();
    control.add_vlans(&[7, 9]).unwrap();
    control.set_promiscuity(Promiscuity { unicast: true, multicast: false }).unwrap();
    let settings = loopback.with_function(|function| function.device.settings().clone());
    for _ in 0..20 {
        loop_frames(&mut pair);
        // Frames on their way are lost with the reset.
        send(&mut pair, &frame(1, 100));
        loopback.with_function(|function| function.reset_by_pf());
        wait_for_event(&mut control, Event::ResetImpending);
        assert_eq!(control.state(), State::NeedsRebuild);
        assert!(pair.tx.is_stopped() && pair.rx.is_stopped());
        assert!(matches!(control.stats(), Err(DriverError::NeedsRebuild)));
        assert!(matches!(control.add_vlans(&[8]), Err(DriverError::NeedsRebuild)));
        pair = control.rebuild(vec![pair]).unwrap().remove(0);
        assert_eq!(control.state(), State::Running);
        let after = loopback.with_function(|function| function.device.settings().clone());
        assert_eq!(after, settings);
        wait_for_link(&mut control);
    }
    loop_frames(&mut pair);
}

#[test]
fn a_reset_by_the_user_works_the_same_and_rebuild_alone_resets_too() {
    let loopback = Loopback::new();
    let (mut control, mut pair) = loopback.open();
    loop_frames(&mut pair);
    control.reset().unwrap();
    assert!(pair.tx.is_stopped());
    loopback.with_function(|function| assert_eq!(function.device.running_queues(), (0, 0)));
    pair = control.rebuild(vec![pair]).unwrap().remove(0);
    loop_frames(&mut pair);
    pair = control.rebuild(vec![pair]).unwrap().remove(0);
    loop_frames(&mut pair);
    let failure = control.rebuild(Vec::new()).unwrap_err();
    assert!(matches!(failure.error, DriverError::QueuePairsMissing { given: 0, needed: 1 }));
    loop_frames(&mut pair);
}

#[test]
fn resets_at_any_moment_of_a_rebuild_only_delay_it() {
    let loopback = Loopback::new();
    let (mut control, pair) = loopback.open();
    let function = loopback.function.clone();
    let resets = std::thread::spawn(move || {
        for pause in (0..60).map(|number| 50 + number * number * 2) {
            std::thread::sleep(Duration::from_micros(pause));
            function.lock().unwrap().reset_by_pf();
        }
    });
    let mut pairs = vec![pair];
    let mut over = false;
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "the function never comes up");
        let last = resets.is_finished();
        control.poll_events(Instant::now()).unwrap();
        if control.state() == State::NeedsRebuild {
            pairs = match control.rebuild(pairs) {
                Ok(pairs) => pairs,
                Err(failure) => failure.pairs,
            };
        } else if over {
            break;
        }
        over = last;
    }
    resets.join().unwrap();
    loop_frames(&mut pairs[0]);
}

#[test]
fn a_silent_reset_is_noticed() {
    let loopback = Loopback::new();
    let (mut control, pair) = loopback.open();
    loopback.with_function(|function| {
        // As if the event was lost: the mailbox is off.
        let (device, host) = (&mut function.device, &mut function.host);
        device.write(avf_protocol::registers::ARQLEN, 0, 0, host);
    });
    wait_for_event(&mut control, Event::ResetDetected);
    let mut pair = control.rebuild(vec![pair]).unwrap().remove(0);
    loop_frames(&mut pair);
}

#[test]
fn the_death_of_the_server_is_an_event_and_final() {
    let mut loopback = Loopback::new();
    let config = DriverConfig { interrupts: true, ..loopback.config() };
    let (mut control, mut pairs) = AvfDriver::open(config).unwrap();
    let mut pair = pairs.remove(0);
    loop_frames(&mut pair);
    // One sleeps on the queue, one would on control.
    let sleeper = std::thread::spawn(move || {
        while !pair.rx.is_stopped() {
            let _ = pair.rx.wait(Some(PATIENCE));
        }
        pair
    });
    loopback.server = None;
    wait_for_event(&mut control, Event::DeviceGone);
    let mut pair = sleeper.join().unwrap();
    assert_eq!(control.state(), State::Gone);
    assert!(!control.link().up);
    assert!(control.poll_events(Instant::now()).unwrap().is_empty(), "it is told once");
    let mut burst = ArrayVec::<TxSegment, 5>::new();
    burst.push(TxSegment::frame(pair.tx.reserve().unwrap(), 60));
    assert_eq!(pair.tx.transmit(&mut burst), 0);
    assert!(matches!(control.stats(), Err(DriverError::DeviceGone)));
    assert!(matches!(control.reset(), Err(DriverError::DeviceGone)));
    let failure = control.rebuild(vec![pair]).unwrap_err();
    assert!(matches!(failure.error, DriverError::DeviceGone));
    drop((control, failure));
    // A new server at the same path is a new device.
    loopback.serve();
    let (_control, mut pair) = loopback.open();
    loop_frames(&mut pair);
}

#[test]
fn a_server_that_dies_during_a_call_does_not_hang_it() {
    let mut loopback = Loopback::new();
    let (mut control, _pair) = loopback.open();
    let server = loopback.server.take();
    let killer = std::thread::spawn(move || drop(server));
    let start = Instant::now();
    while control.stats().is_ok() {}
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(matches!(control.stats(), Err(DriverError::DeviceGone)));
    killer.join().unwrap();
}

#[test]
fn an_idle_queue_sleeps_until_a_frame_comes() {
    let loopback = Loopback::new();
    let config = DriverConfig { interrupts: true, queue_pairs: 2, ..loopback.config() };
    let (mut control, mut pairs) = AvfDriver::open(config).unwrap();
    wait_for_link(&mut control);
    let mut pair = pairs.pop().unwrap();
    assert_eq!(pair.index(), 1);
    assert_eq!(pair.rx.wait(Some(Duration::from_millis(30))).unwrap(), Wait::TimedOut);
    let mut expected = 0;
    for number in 0..200 {
        send(&mut pair, &frame(number, 60));
        while expected <= number {
            assert_eq!(pair.rx.wait(Some(PATIENCE)).unwrap(), Wait::Ready, "frame {number}");
            for got in try_receive(&mut pair) {
                assert_eq!(got, frame(expected, 60));
                expected += 1;
            }
        }
    }
    // The last interrupt may still be told, but then it is quiet.
    let mut wait = || pair.rx.wait(Some(Duration::from_millis(30))).unwrap();
    assert!(wait() == Wait::TimedOut || wait() == Wait::TimedOut);
    // The caller's own poll loop: arm, sleep on the descriptor, acknowledge.
    send(&mut pair, &frame(0, 60));
    wait_for("the event descriptor", || {
        if pair.rx.arm().unwrap() {
            return Some(());
        }
        let mut set = [rustix::event::PollFd::from_borrowed_fd(
            pair.rx.event_fd().unwrap(),
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut set, None).unwrap();
        pair.rx.acknowledge();
        None
    });
    assert_eq!(try_receive(&mut pair).len(), 1);
}

#[test]
fn link_changes_reach_a_sleeping_control_thread() {
    let loopback = Loopback::new();
    let config = DriverConfig { interrupts: true, ..loopback.config() };
    let (mut control, _pairs) = AvfDriver::open(config).unwrap();
    wait_for_link(&mut control);
    for up in [false, true, false] {
        let link = LinkStatus { up, mbps: 100_000 };
        loopback.with_function(|function| function.set_link(link));
        let event = control.event_fd().unwrap();
        let mut set =
            [rustix::event::PollFd::from_borrowed_fd(event.as_fd(), rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut set, None).unwrap(), 1);
        wait_for_event(&mut control, Event::LinkChange(link));
        assert_eq!(control.link(), link);
    }
}

#[test]
fn the_driver_works_in_memory_that_a_vm_shares() {
    let loopback = Loopback::new();
    let mut config = loopback.config();
    let length = config.memory_needed().unwrap();
    let offset = 64 << 10;
    let size = (offset + length).next_multiple_of(4096);
    let (mapping, fd) = SharedMapping::create("vm", size, PageSize::Base).unwrap();
    let iova = DmaAddress(0x8000_0000);
    config.memory = MemorySource::Given { mapping, fd, file_offset: 0, iova, offset, length };
    let (control, mut pairs) = AvfDriver::open(config).unwrap();
    assert_eq!(control.memory().iova(), iova);
    loop_frames(&mut pairs[0]);
}

#[test]
fn huge_pages_are_used_where_there_are_some_and_not_missed_where_not() {
    let loopback = Loopback::new();
    let memory = MemorySource::Own { huge_pages: true };
    let (_control, mut pairs) =
        AvfDriver::open(DriverConfig { memory, ..loopback.config() }).unwrap();
    loop_frames(&mut pairs[0]);
}

#[test]
fn tags_are_taken_out_and_put_in_where_the_pf_grants_it() {
    for (capability, filters) in [(Capabilities::VLAN_V2, true), (Capabilities::VLAN, true)] {
        let config = VfConfig::new(1, 1, MAC);
        let other = if capability == Capabilities::VLAN {
            Capabilities::VLAN_V2
        } else {
            Capabilities::VLAN
        };
        let capabilities = config.capabilities.without(other);
        let loopback = Loopback::with(VfConfig { capabilities, ..config }, true);
        for (strip, insert) in [(false, false), (true, true)] {
            let vlan = VlanConfig { strip, insert };
            let (control, pairs) = wait_for("the socket", || {
                AvfDriver::open(DriverConfig { vlan, ..loopback.config() }).ok()
            });
            let granted = control.capabilities();
            assert_eq!(granted.vlan_stripping, strip, "{capability:?}");
            assert_eq!(granted.vlan_filtering, filters);
            let settings = loopback.with_function(|function| function.device.settings().clone());
            assert_eq!(settings.vlan_strip, strip, "{capability:?}");
            control.close(pairs).unwrap();
        }
    }
}

#[test]
fn addresses_are_changed_and_checked() {
    let loopback = Loopback::new();
    let (mut control, pair) = loopback.open();
    let new = MacAddress([2, 0, 0, 0, 0, 9]);
    control.set_mac(new).unwrap();
    assert_eq!(control.mac(), new);
    let group = MacAddress([1, 0, 0x5E, 0, 0, 1]);
    let refused = |error| matches!(error, DriverError::Configuration(_));
    assert!(control.set_mac(group).is_err_and(refused));
    assert!(control.add_multicast(&[new]).is_err_and(refused));
    assert!(control.add_vlans(&[4095]).is_err_and(refused));
    control.add_multicast(&[group, group]).unwrap();
    control.remove_multicast(&[group, MacAddress::BROADCAST]).unwrap();
    control.remove_multicast(&[group]).unwrap();
    // The address outlives a reset.
    let pairs = control.rebuild(vec![pair]).unwrap();
    assert_eq!(control.mac(), new);
    control.close(pairs).unwrap();
}

#[test]
fn a_function_that_is_not_avf_is_refused() {
    let loopback = Loopback::new();
    loopback.with_function(|function| function.identity = [0x86, 0x80, 0xD3, 0x10]);
    let error = AvfDriver::open(loopback.config()).unwrap_err();
    assert!(matches!(error, DriverError::NotAvf { vendor: 0x8086, device: 0x10D3 }), "{error}");
}

#[test]
fn functions_are_opened_and_dropped_a_hundred_times() {
    let loopback = Loopback::new();
    for _ in 0..100 {
        let (_control, mut pair) = {
            let (control, mut pairs) =
                wait_for("the socket", || AvfDriver::open(loopback.config()).ok());
            (control, pairs.remove(0))
        };
        send(&mut pair, &frame(1, 60));
        assert_eq!(receive(&mut pair, 1), [frame(1, 60)]);
    }
}
