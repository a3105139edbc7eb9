//! Drivers that do not keep to the manual.

use proptest::{collection::vec, prelude::*};
use vfio_user_protocol::PciRegion;
use vfio_user_server::PciFunctionDevice;

use super::driver::*;
use crate::{ReceiveDrop, TxOutcome};

#[test]
fn a_chain_that_bites_its_tail_ends_with_the_descriptors_there_are() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    // One descriptor that points to itself, with too little room.
    let at = machine.descriptor(RX_LIST, 0);
    machine.store(at + 4, CHAINED | 16);
    machine.store(at + 12, at);
    machine.store(at, OWN);
    machine.function.deliver(&frame(MAC, 100)).unwrap();
    let status = machine.load(at);
    assert_eq!(status & 0xC300, 0xC300, "first, last, and not enough");
    assert_eq!(machine.function.deliver(&frame(MAC, 100)), Err(ReceiveDrop::NoDescriptor));

    // The same for transmission: the frame never ends, and the device has the descriptor once.
    let at = machine.descriptor(TX_LIST, machine.tx);
    machine.store(at + 4, CHAINED | FIRST | 64);
    machine.store(at + 12, at);
    machine.store(at, OWN);
    machine.write(1, 1);
    assert_eq!(machine.load(at) & OWN, 0);
    assert!(machine.sent().is_empty());
}

#[test]
fn descriptors_without_room_are_not_walked_for_ever() {
    let mut machine = Machine::new();
    machine.start(Layout::Ring { skip: 0 });
    // All of memory looks like descriptors of the device's without any bytes.
    for at in (0x4000..0x8000).step_by(16) {
        machine.store(at + 4, 0);
        machine.store(at, OWN);
    }
    machine.write(6, 0);
    machine.write(3, 0x4000);
    machine.write(4, 0x4000);
    machine.write(6, 0x40 | 1 << 1);
    machine.function.deliver(&frame(MAC, 60)).unwrap();
    assert_eq!(machine.function.device().counters().rx_truncated, 1);
    machine.write(6, 1 << 13);
    // A budget's worth in one turn.
    for at in (0x4000..0x8000).step_by(16) {
        machine.store(at, OWN);
    }
    // The last one leads to the first.
    machine.store(0x8000 - 16 + 4, END_OF_RING);
    let dma = machine.dma.clone();
    let mut device = crate::TulipDevice::new(crate::TulipConfig { mac: MAC, subsystem: (0, 0) });
    device.write(4 * 8, 0x4000, 0);
    device.write(6 * 8, 1 << 13, 0);
    assert_eq!(device.transmit(&dma, &mut |_| panic!("no frame")), TxOutcome::More);
    assert!(device.transmit_due());
    assert_eq!(device.transmit(&dma, &mut |_| panic!("no frame")), TxOutcome::Idle);
}

#[test]
fn addresses_that_are_not_mapped_stop_the_device_until_it_is_reset() {
    let bad = 0xFFF0_0000u32;
    type Break = fn(&mut Machine, u32);
    let breaks: [Break; 4] = [
        // The transmit list, a transmit buffer, the receive list, a receive buffer.
        |machine, bad| {
            let mode = machine.read(6);
            machine.write(6, mode & !0x2000);
            machine.write(4, bad);
            machine.write(6, mode);
        },
        |machine, bad| {
            machine.queue(bad, 64, FIRST | LAST);
            machine.write(1, 1);
        },
        |machine, bad| {
            machine.write(3, bad);
            assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::BusError));
        },
        |machine, bad| {
            let at = machine.descriptor(RX_LIST, 0);
            machine.store(at + 8, bad);
            assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::BusError));
        },
    ];
    for (number, broken) in breaks.iter().enumerate() {
        let mut machine = Machine::new();
        machine.start(Layout::Chain);
        broken(&mut machine, bad);
        // Fatal bus error, abnormal; a master abort; both processes stopped.
        let status = machine.read(5);
        assert_eq!(status & 0xA000, 0xA000, "{number}");
        assert_eq!(status >> 17 & 0x1FF, 1 << 6, "{number}");
        assert_eq!(machine.interrupt.take(), 1);
        let mut config = [0; 2];
        machine.function.region_read(PciRegion::Config, 6, &mut config).unwrap();
        assert_eq!(config[1] & 0x20, 0x20, "Received Master Abort");
        machine.send(&frame(BROADCAST, 60), 2000);
        machine.write(6, 0x2002);
        assert!(machine.sent().is_empty());
        assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::Stopped));
        machine.start(Layout::Chain);
        machine.send(&frame(BROADCAST, 60), 2000);
        assert_eq!(machine.sent().len(), 1);
    }
}

#[test]
fn without_bus_mastering_no_memory_is_touched() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    machine.function.region_write(PciRegion::Config, 4, &3u16.to_le_bytes()).unwrap();
    machine.send(&frame(BROADCAST, 60), 2000);
    assert!(machine.sent().is_empty());
    assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::Stopped));
    assert_eq!(machine.function.device().counters().bus_errors, 0);
    assert_eq!(machine.function.next_deadline(), None);
    machine.function.region_write(PciRegion::Config, 4, &7u16.to_le_bytes()).unwrap();
    assert_eq!(machine.sent().len(), 1, "it goes when it may");
}

#[test]
fn frames_without_a_beginning_and_frames_without_an_end_are_not_sent() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    let at = machine.descriptor(TX_LIST, machine.tx);
    machine.queue(0x1_8000, 64, LAST | INTERRUPT);
    machine.write(1, 1);
    assert_eq!(machine.load(at), 0x8000);
    // Longer than any wire lets pass.
    for number in 0..6 {
        machine.queue(0x1_8000, 1024, if number == 0 { FIRST } else { 0 });
    }
    machine.write(1, 1);
    let at = machine.descriptor(TX_LIST, machine.tx);
    machine.queue(0x1_8000, 64, LAST);
    machine.write(1, 1);
    assert_eq!(machine.load(at), 0xC000, "jabber");
    assert_eq!(machine.acknowledge() & 8, 8);
    assert!(machine.sent().is_empty());
    assert_eq!(machine.function.device().counters().tx_errors, 2);
    // A frame that begins anew forgets what came before.
    machine.queue(0x1_8000, 64, FIRST);
    machine.send(&frame(BROADCAST, 60), 2000);
    assert_eq!(machine.sent(), [frame(BROADCAST, 60)]);
    // A setup frame of another size makes no filter.
    machine.queue(0x1_8000, 64, SETUP);
    machine.write(1, 1);
    machine.function.deliver(&frame(MAC, 60)).unwrap();
}

#[test]
fn frames_that_are_no_frames_are_not_received() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    for length in [0, 1, 13, 1519, 9000] {
        let mut bytes = frame(MAC, length);
        bytes.resize(length, 0);
        assert_eq!(machine.function.deliver(&bytes), Err(ReceiveDrop::Length));
    }
    assert!(machine.function.deliver(&frame(MAC, 14)).is_ok());
}

#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Config(u64, Vec<u8>),
    Memory(u32, u32),
    Frame(usize),
    Poll,
}

fn events() -> impl Strategy<Value = Event> {
    let value = prop_oneof![
        any::<u32>(),
        (0u32..0x2_0000).prop_map(|address| address & !3),
        Just(0x2002),
        Just(0x2042)
    ];
    prop_oneof![
        6 => (0u64..16, value.clone()).prop_map(|(csr, value)| Event::Write(csr * 8, value.to_le_bytes().to_vec())),
        1 => (prop_oneof![any::<u64>(), Just(u64::MAX), 0u64..130], vec(any::<u8>(), 0..12)).prop_map(|(at, data)| Event::Write(at, data)),
        1 => (prop_oneof![any::<u64>(), Just(u64::MAX), 0u64..130], 0usize..12).prop_map(|(at, length)| Event::Read(at, length)),
        1 => (0u64..0x50, vec(any::<u8>(), 0..5)).prop_map(|(at, data)| Event::Config(at, data)),
        8 => (0u32..0x800, prop_oneof![value, Just(OWN), Just(OWN | FIRST | LAST | 64), Just(CHAINED | 100)])
            .prop_map(|(word, value)| Event::Memory(0x1000 + word * 4, value)),
        3 => (0usize..1600).prop_map(Event::Frame),
        1 => Just(Event::Poll),
    ]
}

proptest! {
    #[test]
    fn no_driver_can_break_the_adapter(events in vec(events(), 0..200)) {
        let mut machine = Machine::new();
        machine.start(Layout::Chain);
        for event in events {
            match event {
                Event::Write(at, data) => machine.function.region_write(PciRegion::Bar1, at, &data).unwrap(),
                Event::Read(at, length) => {
                    machine.function.region_read(PciRegion::Bar0, at, &mut vec![0; length]).unwrap();
                }
                Event::Config(at, data) => machine.function.region_write(PciRegion::Config, at, &data).unwrap(),
                Event::Memory(at, value) => machine.store(at, value),
                Event::Frame(length) => {
                    let _ = machine.function.deliver(&frame(MAC, length));
                }
                Event::Poll => machine.function.poll(),
            }
            prop_assert!(machine.sent().iter().all(|frame| frame.len() <= 2048));
        }
        // It is as good as new after a reset.
        machine.function.region_write(PciRegion::Config, 4, &7u16.to_le_bytes()).unwrap();
        machine.write(6, 0);
        machine.start(Layout::Chain);
        machine.sent();
        machine.send(&frame(BROADCAST, 60), 2000);
        prop_assert_eq!(machine.sent().len(), 1);
        machine.function.deliver(&frame(MAC, 60)).unwrap();
        prop_assert!(machine.receive().is_some());
    }
}
