//! What a driver does, from finding the adapter to taking it down.

use vfio_user_protocol::{PciIrq, PciRegion};
use vfio_user_server::{IrqChange, PciFunctionDevice};

use super::driver::*;
use crate::{ReceiveDrop, TulipConfig, TulipDevice, filter::crc32};

#[test]
fn the_serial_rom_tells_its_size_the_address_and_the_media() {
    let mut machine = Machine::new();
    // A driver that sends too many address bits sees the zero before the data early: there are six.
    assert_eq!(machine.read_rom(0xFF, 8) & 0x4_0000, 0);
    let rom: Vec<u8> =
        (0..64).flat_map(|at| (machine.read_rom(at, 6) as u16).to_le_bytes()).collect();
    assert_eq!(rom[..4], [0x11, 0x10, 0x0B, 0x50]);
    assert_eq!(rom[20..26], MAC);
    // Not the first eight bytes twice, by which drivers know the oldest boards.
    assert_ne!(rom[..8], rom[16..24]);
    // Version 3, one controller; its leaf: sensed, no pins, one block, MII, the first transceiver.
    assert_eq!(rom[18..20], [3, 1]);
    let leaf = usize::from(u16::from_le_bytes([rom[27], rom[28]]));
    assert_eq!(rom[leaf..leaf + 9], [0, 8, 0, 1, 0x8C, 1, 0, 0, 0]);
    assert_eq!(rom[leaf + 9..leaf + 17], [0x00, 0x78, 0xE0, 0x01, 0x00, 0x50, 0x00, 0x18]);
    assert!(rom[leaf + 17..126].iter().all(|byte| *byte == 0));
    let [c0, c1, ..] = crc32(&rom[..126]).to_le_bytes();
    assert_eq!(rom[126..], [c0, c1]);
}

#[test]
fn addresses_that_stock_drivers_misread_are_known() {
    let misread = |mac| TulipConfig { mac, subsystem: (0, 0) }.mac_is_misread();
    // As seen with Linux 6.12: 02:00:00:00:00:40 became 00:02:00:00:40:00.
    assert!(misread([2, 0, 0, 0, 0, 0x40]));
    assert!(!misread([0x00, 0x15, 0x5D, 0, 0, 0x40]) && !misread([2, 1, 0, 0, 0, 0]));
}

#[test]
fn the_only_transceiver_has_a_link_until_the_cable_is_pulled() {
    let mut machine = Machine::new();
    let found: Vec<u32> = (0..32).filter(|phy| machine.read_mii(*phy, 1) != 0xFFFF).collect();
    assert_eq!(found, [1]);
    assert_eq!(machine.read_mii(1, 1), 0x782D);
    assert_eq!(machine.read_mii(1, 0), 0x3100);
    assert_eq!((machine.read_mii(1, 4), machine.read_mii(1, 5)), (0x01E1, 0x45E1));
    machine.write_mii(1, 4, 0x0061);
    machine.write_mii(7, 4, 0xFFFF);
    assert_eq!(machine.read_mii(1, 4), 0x0061);
    machine.write_mii(1, 0, 0x1200);
    assert_eq!(machine.read_mii(1, 0), 0x1000, "negotiated at once");
    machine.write_mii(1, 0, 0x8000);
    assert_eq!((machine.read_mii(1, 0), machine.read_mii(1, 4)), (0x3100, 0x01E1));
    machine.function.set_link(false);
    assert_eq!((machine.read_mii(1, 1), machine.read_mii(1, 5)), (0x7809, 0));
    machine.function.set_link(true);
    // That it was lost is told once.
    assert_eq!(machine.read_mii(1, 1), 0x7809);
    assert_eq!(machine.read_mii(1, 1), 0x782D);
}

#[test]
fn frames_go_both_ways_over_rings_and_chains() {
    for layout in [Layout::Ring { skip: 0 }, Layout::Ring { skip: 12 }, Layout::Chain] {
        let mut machine = Machine::new();
        machine.start(layout);
        // More frames than there are descriptors.
        for number in 0..3 * ENTRIES as usize {
            let out = frame([2, 0, 0, 0, 0, 7], 60 + number * 40);
            machine.send(&out, if number % 2 == 0 { 2000 } else { out.len().div_ceil(3) });
            assert_eq!(machine.sent(), [out], "{layout:?}");
            let into = frame(MAC, 60 + number * 40);
            machine.function.deliver(&into).unwrap();
            let (status, mut bytes) = machine.receive().unwrap();
            // First, last, an Ethernet type, nothing wrong.
            assert_eq!(status & 0xFFFF, 0x0320);
            let checksum = bytes.split_off(into.len());
            assert_eq!((bytes, checksum), (into.clone(), crc32(&into).to_le_bytes().to_vec()));
            assert_eq!(machine.receive(), None);
            assert_eq!(machine.acknowledge() & 0x41, 0x41);
        }
        let counters = machine.function.device().counters();
        assert_eq!((counters.tx_frames, counters.rx_frames), (24, 24));
        assert_eq!((counters.tx_errors, counters.rx_truncated, counters.bus_errors), (0, 0, 0));
    }
}

#[test]
fn the_interrupt_is_a_level_that_is_told_once_until_it_is_unmasked() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    assert_eq!(machine.interrupt.take(), 0);
    machine.function.deliver(&frame(MAC, 60)).unwrap();
    machine.function.deliver(&frame(MAC, 60)).unwrap();
    assert_eq!(machine.interrupt.take(), 1);
    let mut config = [0; 2];
    machine.function.region_read(PciRegion::Config, 6, &mut config).unwrap();
    assert_eq!(config[0] & 8, 8, "Interrupt Status");
    // The driver has done nothing about it: it comes again.
    machine.function.set_irq(PciIrq::Intx, IrqChange::Unmask(vec![0])).unwrap();
    assert_eq!(machine.interrupt.take(), 1);
    assert_eq!(machine.read(5) & 0x1_8040, 0x1_0040);
    machine.write(5, 0x1_FFFF);
    machine.function.set_irq(PciIrq::Intx, IrqChange::Unmask(vec![0])).unwrap();
    assert_eq!(machine.interrupt.take(), 0);
    // Masked in CSR7, by its summary, or in the command register.
    for mask in [0x1_0001, 0x8040, 0] {
        machine.write(7, mask);
        machine.function.deliver(&frame(MAC, 60)).unwrap();
        assert_eq!(machine.interrupt.take(), 0, "{mask:#x}");
    }
    machine.function.region_write(PciRegion::Config, 4, &0x407u16.to_le_bytes()).unwrap();
    machine.write(7, 0x1_0040);
    assert_eq!(machine.interrupt.take(), 0);
    machine.function.region_write(PciRegion::Config, 4, &7u16.to_le_bytes()).unwrap();
    assert_eq!(machine.interrupt.take(), 1);
}

#[test]
fn only_what_the_filter_wants_is_received() {
    let mut machine = Machine::new();
    machine.start(Layout::Ring { skip: 0 });
    let (other, group) = ([2, 0, 0, 0, 0, 7], [0x33, 0x33, 0, 0, 0, 1]);
    let takes = |machine: &mut Machine, address| {
        let taken = machine.function.deliver(&frame(address, 60));
        let received = machine.receive();
        assert_eq!(taken.is_ok(), received.is_some());
        received.map(|(status, _)| status)
    };
    assert!(takes(&mut machine, MAC).is_some());
    assert_eq!(takes(&mut machine, BROADCAST).unwrap() & 1 << 10, 1 << 10, "to a group");
    assert_eq!(takes(&mut machine, other), None);
    assert_eq!(takes(&mut machine, group), None);
    assert_eq!(machine.function.device().counters().rx_filtered, 2);
    // A new address, as an interface gets one.
    machine.set_filter(&[other, BROADCAST]);
    machine.write(1, 1);
    assert!(takes(&mut machine, other).is_some());
    assert_eq!(takes(&mut machine, MAC), None);
    // By hash.
    let mut setup = [0; 192];
    let bit = crate::filter::hash(&group);
    setup[usize::from(bit / 16) * 4 + usize::from(bit % 16 / 8)] = 1 << (bit % 8);
    for (word, pair) in MAC.chunks(2).enumerate() {
        setup[156 + word * 4..][..2].copy_from_slice(pair);
    }
    machine.queue_setup(&setup, 1 << 22);
    machine.write(1, 1);
    assert_eq!(machine.read(6) & 0b1_0101, 0b0_0001);
    assert!(takes(&mut machine, MAC).is_some() && takes(&mut machine, group).is_some());
    assert_eq!(takes(&mut machine, BROADCAST), None);
    // All but some.
    machine.queue_setup(&setup, 1 << 28);
    machine.write(1, 1);
    assert_eq!(machine.read(6) & 0b1_0101, 0b1_0000);
    // All groups, all frames; what the filter does not want is marked if the driver wants to know.
    machine.set_filter(&[MAC]);
    machine.write(1, 1);
    let mode = machine.read(6);
    machine.write(6, mode | 1 << 7);
    assert!(takes(&mut machine, group).is_some());
    assert_eq!(takes(&mut machine, other), None);
    machine.write(6, mode | 1 << 6);
    assert_eq!(takes(&mut machine, other).unwrap() & 1 << 30, 0);
    machine.write(6, mode | 1 << 30);
    assert_eq!(takes(&mut machine, other).unwrap() & 1 << 30, 1 << 30);
}

#[test]
fn a_driver_that_is_slow_loses_frames_and_is_told_how_many() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    for _ in 0..ENTRIES {
        machine.function.deliver(&frame(MAC, 100)).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(machine.function.deliver(&frame(MAC, 100)), Err(ReceiveDrop::NoDescriptor));
    }
    assert_eq!(machine.read(5) >> 17 & 7, 4, "suspended");
    assert_eq!(machine.acknowledge() & 0x80C0, 0x80C0);
    assert_eq!((machine.read(8), machine.read(8)), (3, 0));
    for _ in 0..ENTRIES {
        assert!(machine.receive().is_some());
    }
    machine.write(2, 1);
    assert_eq!(machine.read(5) >> 17 & 7, 3, "waiting");
    machine.function.deliver(&frame(MAC, 100)).unwrap();
    assert!(machine.receive().is_some());
}

#[test]
fn a_long_frame_takes_several_descriptors_or_is_cut_off() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    for entry in 0..ENTRIES {
        machine.give_receive(entry, 300);
    }
    let long = frame(MAC, 1514);
    machine.function.deliver(&long).unwrap();
    let (status, bytes) = machine.receive().unwrap();
    assert_eq!((bytes.len(), &bytes[..1514]), (1518, &long[..]));
    assert_eq!(status & 0x8080, 0, "neither wrong nor too long");
    // A VLAN tag more is marked, and is there.
    machine.function.deliver(&frame(MAC, 1518)).unwrap();
    let (status, bytes) = machine.receive().unwrap();
    assert_eq!((status & 0x8080, bytes.len()), (0x80, 1522));
    // Room for half of it.
    for entry in 0..ENTRIES {
        machine.give_receive(entry, 90);
    }
    machine.function.deliver(&long).unwrap();
    let (status, bytes) = machine.receive().unwrap();
    assert_eq!((status & 0xC000, &bytes[..]), (0xC000, &long[..8 * 90]));
    assert_eq!(machine.function.device().counters().rx_truncated, 1);
}

#[test]
fn short_frames_are_padded_unless_the_driver_says_otherwise() {
    let mut machine = Machine::new();
    machine.start(Layout::Ring { skip: 0 });
    machine.send(&frame(BROADCAST, 20), 2000);
    assert_eq!(machine.sent()[0].len(), 60);
    let bytes = frame(BROADCAST, 20);
    machine.dma.write_bytes(shared_memory::DmaAddress(0x1_8000), &bytes).unwrap();
    for (control, length) in [(1 << 23, 20), (1 << 26, 16)] {
        machine.queue(0x1_8000, 20, FIRST | LAST | control);
        machine.write(1, 1);
        assert_eq!(machine.sent()[0].len(), length);
    }
    assert_eq!(machine.acknowledge() & 1, 1);
}

#[test]
fn both_buffers_of_a_descriptor_are_used_unless_it_is_chained() {
    let mut machine = Machine::new();
    machine.start(Layout::Ring { skip: 0 });
    let bytes = frame(BROADCAST, 100);
    machine.dma.write_bytes(shared_memory::DmaAddress(0x1_8000), &bytes[..40]).unwrap();
    machine.dma.write_bytes(shared_memory::DmaAddress(0x1_9000), &bytes[40..]).unwrap();
    let at = machine.descriptor(TX_LIST, machine.tx);
    machine.queue(0x1_8000, 60 << 11 | 40, FIRST | LAST);
    machine.store(at + 12, 0x1_9000);
    machine.write(1, 1);
    assert_eq!(machine.sent(), [bytes]);
}

#[test]
fn without_a_link_nothing_is_sent_and_nothing_comes() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    machine.function.set_link(false);
    let at = machine.descriptor(TX_LIST, machine.tx);
    machine.send(&frame(BROADCAST, 60), 2000);
    assert!(machine.sent().is_empty());
    assert_eq!(machine.load(at), 0x8C00, "error, loss of carrier, no carrier");
    assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::LinkDown));
    machine.function.set_link(true);
    machine.send(&frame(BROADCAST, 60), 2000);
    assert_eq!(machine.sent().len(), 1);
}

#[test]
fn a_driver_hears_itself_in_loopback_and_nobody_else_does() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    let mode = machine.read(6);
    machine.write(6, mode | 1 << 10);
    machine.send(&frame(MAC, 80), 2000);
    assert!(machine.sent().is_empty());
    let (status, bytes) = machine.receive().unwrap();
    assert_eq!((status >> 12 & 3, &bytes[..80]), (1, &frame(MAC, 80)[..]));
}

#[test]
fn processes_stop_when_they_are_told_and_start_again() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    let mode = machine.read(6);
    machine.write(6, mode & !0x2002);
    // This is what a driver waits for.
    assert_eq!(machine.read(5) & 0x007E_0000, 0);
    assert_eq!(machine.acknowledge() & 0x102, 0x102);
    assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::Stopped));
    machine.send(&frame(BROADCAST, 60), 2000);
    assert!(machine.sent().is_empty());
    machine.write(6, mode);
    assert_eq!(machine.sent().len(), 1, "what was queued meanwhile goes");
    machine.function.deliver(&frame(MAC, 60)).unwrap();
    // A reset by CSR0, and one of the bus.
    machine.write(0, 1);
    assert_eq!((machine.read(3), machine.read(5), machine.read(6)), (0, 0xFC00_0000, 0x3200_0040));
    machine.start(Layout::Chain);
    machine.function.reset();
    let mut command = [0; 2];
    machine.function.region_read(PciRegion::Config, 4, &mut command).unwrap();
    assert_eq!((command, machine.read(7)), ([0, 0], 0));
    assert_eq!(machine.function.deliver(&frame(MAC, 60)), Err(ReceiveDrop::Stopped));
}

#[test]
fn the_timer_runs_once_or_again_and_again() {
    const UNIT: u64 = 81_920;
    let mut device = TulipDevice::new(TulipConfig { mac: MAC, subsystem: (0, 0) });
    device.write(7 * 8, 0x8800, 0);
    device.write(11 * 8, 100, 1000);
    assert_eq!(device.next_deadline(), Some(1000 + 100 * UNIT));
    assert_eq!(device.read(11 * 8, 1000 + 40 * UNIT), 60);
    device.poll(999 + 100 * UNIT);
    assert!(!device.interrupt());
    device.poll(1000 + 100 * UNIT);
    assert!(device.interrupt());
    assert_eq!(device.read(5 * 8, 0) & 0x1_FFFF, 0x8800);
    device.write(5 * 8, 0x800, 0);
    assert!(!device.interrupt());
    assert_eq!(device.next_deadline(), None);
    // Continuous, at 10 Mb/s.
    device.write(6 * 8, 1 << 22, 0);
    device.write(11 * 8, 1 << 16 | 5, 0);
    for round in 1..4 {
        assert_eq!(device.next_deadline(), Some(round * 50 * UNIT));
        device.poll(round * 50 * UNIT);
        assert!(device.interrupt());
        device.write(5 * 8, 0x800, 0);
    }
    device.write(11 * 8, 0, 0);
    assert_eq!(device.next_deadline(), None);
}

#[test]
fn transmit_lists_are_polled_if_the_driver_asks_for_it() {
    let mut device = TulipDevice::new(TulipConfig { mac: MAC, subsystem: (0, 0) });
    device.write(0, 2 << 17, 0);
    assert_eq!(device.next_deadline(), None);
    device.write(6 * 8, 1 << 13, 0);
    assert_eq!(device.next_deadline(), Some(800_000));
    device.poll(800_000);
    assert!(device.transmit_due());
    assert_eq!(device.next_deadline(), Some(1_600_000));
    device.write(6 * 8, 0, 0);
    assert_eq!((device.next_deadline(), device.transmit_due()), (None, false));
}

#[test]
fn the_next_guest_finds_an_adapter_after_power_on() {
    let mut machine = Machine::new();
    machine.start(Layout::Chain);
    machine.function.disconnected();
    assert_eq!(machine.read(3), 0);
    assert_eq!(machine.function.irq_count(PciIrq::Intx), 1);
    assert_eq!(machine.function.irq_count(PciIrq::Msix), 0);
    let sizes = [PciRegion::Config, PciRegion::Bar0, PciRegion::Bar1, PciRegion::Bar2]
        .map(|region| machine.function.region(region).size);
    assert_eq!(sizes, [256, 128, 128, 0]);
}
