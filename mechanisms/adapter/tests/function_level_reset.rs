//! Checklist item 60 through the whole of it: a function-level reset that its guest asks for while frames come in.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use arrayvec::ArrayVec;
use avf_driver::{
    AvfDriver, DriverConfig, RxSegment,
    transport::{Transport, VfioUser},
};
use avf_protocol::registers::{ARQLEN, ATQLEN, RSTAT};
use common::{Bench, End, PATIENCE, frame, mac};

const ROUNDS: u64 = 20;
/// Frames that come in between two looks.
const FRAMES: u64 = 500;
const COMMAND: u16 = 0x04;
const MEMORY_SPACE_AND_BUS_MASTER: [u8; 2] = [0x06, 0];
const CAPABILITIES: u16 = 0x34;
const PCI_EXPRESS: u8 = 0x10;
const DEVICE_CONTROL: u16 = 0x08;
const INITIATE_FUNCTION_LEVEL_RESET: u16 = 1 << 15;

/// Ends the sender, also when a check fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Where the register Device Control is.
fn device_control(function: &dyn Transport) -> u16 {
    let byte = |offset| {
        let mut byte = [0];
        function.config_read(offset, &mut byte).unwrap();
        byte[0]
    };
    let mut at = byte(CAPABILITIES);
    while byte(at.into()) != PCI_EXPRESS {
        at = byte(u16::from(at) + 1);
        assert_ne!(at, 0, "a PCI Express capability");
    }
    u16::from(at) + DEVICE_CONTROL
}

/// Takes so many frames.
fn receive(end: &mut End, count: u64) {
    let start = Instant::now();
    let rx = &mut end.pairs[0].rx;
    let mut received = 0;
    while received < count {
        let mut burst = ArrayVec::<RxSegment, 16>::new();
        received += rx.receive(&mut burst) as u64;
        burst.drain(..).for_each(|segment| rx.free(segment.buffer));
        assert!(start.elapsed() < PATIENCE, "{received} frames of {count} came");
        std::thread::yield_now();
    }
}

/// All memory that the function can reach.
fn memory(end: &End) -> Vec<u8> {
    let mapping = end.control.memory().mapping();
    let mut bytes = vec![0; mapping.len()];
    mapping.slice(0, mapping.len()).unwrap().read_into(&mut bytes);
    bytes
}

#[test]
fn c60_flr_under_traffic_is_complete_when_the_register_write_returns() {
    let bench = Bench::new(2);
    let mut sender = bench.open(0);
    let config = DriverConfig { rx_ring: 64, tx_ring: 64, ..bench.config(1) };
    let function = Arc::new(VfioUser::connect(&config.socket, PATIENCE).unwrap());
    let (control, pairs) = AvfDriver::open_on(Arc::clone(&function) as _, config).unwrap();
    let mut end = End { control, pairs };
    let register = device_control(&*function);
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _finished = Done(&done);
        scope.spawn(|| {
            let content = frame(mac(1), mac(0), &[7; 200]);
            while !done.load(Ordering::Acquire) {
                sender.send(&content);
                sent.fetch_add(1, Ordering::AcqRel);
                std::thread::yield_now();
            }
        });
        for round in 0..ROUNDS {
            receive(&mut end, 100 + round);
            let mut value = [0; 2];
            function.config_read(register, &mut value).unwrap();
            let reset = u16::from_le_bytes(value) | INITIATE_FUNCTION_LEVEL_RESET;
            function.config_write(register, &reset.to_le_bytes()).unwrap();

            // No waiting: the reset is over. Bus mastering is allowed, and yet nothing is written any more.
            function.config_write(COMMAND, &MEMORY_SPACE_AND_BUS_MASTER).unwrap();
            assert_eq!(function.read(RSTAT).unwrap(), 2);
            assert_eq!((function.read(ATQLEN).unwrap(), function.read(ARQLEN).unwrap()), (0, 0));
            let before = memory(&end);
            let (mark, start) = (sent.load(Ordering::Acquire), Instant::now());
            while sent.load(Ordering::Acquire) < mark + FRAMES {
                assert!(start.elapsed() < PATIENCE, "the sender is held up");
                std::thread::yield_now();
            }
            assert!(memory(&end) == before, "memory was written after the reset, round {round}");

            end.pairs = end.control.rebuild(std::mem::take(&mut end.pairs)).unwrap();
        }
        receive(&mut end, 1);
    });
}
