//! A driver that does anything to the emulated adapter: registers, configuration space, descriptors and memory,
//! with frames from the wire in between. After a reset it is as good as new.
#![no_main]

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use shared_memory::{Access, DmaAddress, DmaMap, DmaRegion, PageSize, SharedMapping};
use tulip_device::{FramePort, TulipConfig, TulipFunction};
use vfio_user_protocol::PciRegion;
use vfio_user_server::PciFunctionDevice;

const MAC: [u8; 6] = [2, 0, 0, 0x11, 0x22, 0x33];
const MEMORY: usize = 0x1_0000;
/// Nothing that the good driver at the end uses.
const LISTS: usize = 0x4000;
const OWN: u32 = 1 << 31;

#[derive(Default)]
struct Wire {
    sent: usize,
    last: Vec<u8>,
}

impl FramePort for Wire {
    fn send(&mut self, frame: &[u8]) {
        assert!(frame.len() <= 2048, "{} bytes", frame.len());
        self.sent += 1;
        self.last.clear();
        self.last.extend(frame);
    }
}

struct Machine<'m> {
    function: TulipFunction<Wire>,
    memory: &'m SharedMapping,
}

impl Machine<'_> {
    fn write(&mut self, csr: u64, value: u32) {
        let _ = self.function.region_write(PciRegion::Bar1, csr * 8, &value.to_le_bytes());
    }

    fn store(&self, at: usize, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.slice(at, bytes.len()).expect("inside memory").write_from(&bytes);
    }

    fn load(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.memory.slice(at, 4).expect("inside memory").read_into(&mut bytes);
        u32::from_le_bytes(bytes)
    }
}

fn frame(to: [u8; 6], length: usize) -> Vec<u8> {
    let mut bytes = [&to[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xB5]].concat();
    bytes.resize(length, 0x5A);
    bytes
}

/// Words that a register or a descriptor may well hold.
fn word(input: &mut Input<'_>) -> u32 {
    match input.byte() % 8 {
        0 => input.dword(),
        1 | 2 => input.below(LISTS) as u32 & !3,
        3 => input.below(MEMORY) as u32,
        4 => 0x2002 | u32::from(input.byte()),
        5 => OWN,
        6 => u32::from(input.byte()) << 24 | u32::from(input.word()),
        _ => input.byte().into(),
    }
}

thread_local! {
    static MAPPING: SharedMapping =
        SharedMapping::create("guest", MEMORY, PageSize::Base).expect("memory").0;
}

fuzz_target!(|data: &[u8]| MAPPING.with(|memory| session(Input::new(data), memory)));

fn session(mut input: Input<'_>, memory: &SharedMapping) {
    memory.slice(0, MEMORY).expect("all of it").write_from(&[0; MEMORY]);
    let config = TulipConfig { mac: MAC, subsystem: (0x1011, 0x500B) };
    let mut machine = Machine { function: TulipFunction::new(config, Wire::default()), memory };
    let region =
        DmaRegion { iova: DmaAddress(0), mapping: memory.clone(), access: Access::ReadWrite };
    let dma = DmaMap::empty().with(region).expect("one range");
    machine.function.connected();
    machine.function.dma_map_changed(&dma);
    let _ = machine.function.region_write(PciRegion::Config, 4, &[7, 0]);
    while !input.is_empty() {
        match input.byte() % 16 {
            0..=3 => {
                let csr = u64::from(input.byte() % 16);
                let value = word(&mut input);
                machine.write(csr, value);
            }
            4 => machine.write(1 + u64::from(input.byte() % 2), 1),
            5 => {
                let at = if input.bit() { input.qword() } else { input.byte().into() };
                let region = if input.bit() { PciRegion::Bar0 } else { PciRegion::Config };
                let _ = machine.function.region_write(region, at, input.short());
            }
            6 => {
                let at = if input.bit() { input.qword() } else { input.byte().into() };
                let region = if input.bit() { PciRegion::Bar0 } else { PciRegion::Config };
                let mut data = vec![0; input.below(16)];
                let _ = machine.function.region_read(region, at, &mut data);
            }
            7..=9 => {
                // A descriptor, owned by the device or not.
                let at = input.below(LISTS / 16) * 16;
                let words = [0; 4].map(|_| word(&mut input));
                machine.store(at, &words);
            }
            10 => {
                let bytes = input.short();
                let at = input.below(LISTS);
                memory.slice(at, bytes.len()).expect("inside memory").write_from(bytes);
            }
            11 | 12 => {
                let to = if input.bit() { MAC } else { [0xFF; 6] };
                let length = input.below(1600).max(14);
                let _ = machine.function.deliver(&frame(to, length));
            }
            13 => {
                let _ = machine.function.deliver(input.short());
            }
            14 => machine.function.set_link(input.bit()),
            _ => machine.function.poll(),
        }
        let counters = machine.function.device().counters();
        // What loops back does not reach the wire.
        assert!(machine.function.port_mut().sent as u64 <= counters.tx_frames);
    }
    // A driver that resets it finds a good adapter.
    machine.function.set_link(true);
    let _ = machine.function.region_write(PciRegion::Config, 4, &[7, 0]);
    machine.write(6, 0);
    machine.write(0, 1);
    let (rx, tx, filter, buffer) = (0x4000, 0x5000, 0x6000, 0x7000);
    // A setup frame with the adapter's address in all places, then one frame.
    let [a, b, c] = [0, 2, 4].map(|at| u32::from(u16::from_le_bytes([MAC[at], MAC[at + 1]])));
    let addresses = [a, b, c].repeat(16);
    machine.store(filter, &addresses);
    let bytes = frame([0xFF; 6], 60);
    memory.slice(buffer, 60).expect("inside memory").write_from(&bytes);
    machine.store(rx, &[OWN, 1 << 25 | 1536, 0x8000, 0]);
    machine.store(tx, &[OWN, 1 << 27 | 192, filter as u32, 0]);
    machine.store(tx + 16, &[OWN, 1 << 30 | 1 << 29 | 1 << 25 | 60, buffer as u32, 0]);
    machine.write(3, rx as u32);
    machine.write(4, tx as u32);
    machine.function.port_mut().sent = 0;
    machine.write(6, 0x2002 | 1 << 18);
    machine.write(1, 1);
    assert_eq!(machine.function.port_mut().sent, 1);
    assert_eq!(machine.function.port_mut().last, bytes);
    let bytes = frame(MAC, 60);
    assert_eq!(machine.function.deliver(&bytes), Ok(()));
    assert_eq!(machine.load(rx) & OWN, 0);
    let mut received = [0; 60];
    memory.slice(0x8000, 60).expect("inside memory").read_into(&mut received);
    assert_eq!(received[..], bytes);
}
