//! An adapter with VFs on its sockets, and ends that send and receive through the AVF driver.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing)]

pub mod setup;

use std::time::{Duration, Instant};

use adapter::{Adapter, AdapterConfig};
use arrayvec::ArrayVec;
use avf_driver::{AvfControl, AvfDriver, DriverConfig, QueuePair, RxSegment, TxSegment};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn vf(number: u16) -> VfId {
    VfId::new(number).unwrap()
}

pub fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

pub fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xB5], payload].concat()
}

/// An adapter with VFs, each with a VPort and a filter for its address.
pub struct Bench {
    pub adapter: Adapter,
    pub directory: tempfile::TempDir,
}

impl Bench {
    pub fn new(vfs: u16) -> Self {
        Self::with(vfs, 1, |_| {})
    }

    pub fn with(vfs: u16, queue_pairs: u16, change: impl FnOnce(&mut AdapterConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = AdapterConfig::new("test", directory.path());
        config.total_vfs = vfs;
        change(&mut config);
        let adapter = Adapter::start(config).unwrap();
        adapter.enable_vfs(vfs).unwrap();
        for number in 0..vfs {
            let address = MacAddress::new(mac(u8::try_from(number).unwrap()));
            let (id, _) = adapter.allocate_vf(address).unwrap();
            assert_eq!(id, vf(number));
            let vport = VPortId::new(u32::from(number) + 1).unwrap();
            let moderation = InterruptModeration::Undefined;
            adapter.create_vport(vport, FunctionId::Vf(id), queue_pairs, moderation).unwrap();
            let filter = ReceiveFilter { mac: address, vlan: VlanMatch::UntaggedOrZero, vport };
            adapter.set_filter(FilterId::new(u32::from(number) + 1).unwrap(), filter).unwrap();
        }
        Self { adapter, directory }
    }

    pub fn config(&self, number: u16) -> DriverConfig {
        DriverConfig::new(self.adapter.socket(FunctionId::Vf(vf(number))))
    }

    pub fn open(&self, number: u16) -> End {
        End::open(self.config(number))
    }
}

/// A function in the hands of the AVF driver.
pub struct End {
    pub control: AvfControl,
    pub pairs: Vec<QueuePair>,
}

impl End {
    pub fn open(config: DriverConfig) -> Self {
        let (control, pairs) = AvfDriver::open(config).unwrap();
        Self { control, pairs }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let tx = &mut self.pairs[0].tx;
        let memory = std::sync::Arc::clone(tx.memory());
        let mut burst = ArrayVec::<TxSegment, 16>::new();
        let size = memory.buffer_size();
        let count = bytes.len().div_ceil(size);
        for (at, part) in bytes.chunks(size).enumerate() {
            let buffer = tx.reserve().unwrap();
            memory.bytes(&buffer).unwrap().write_from(part);
            let mut segment = TxSegment::frame(buffer, u16::try_from(part.len()).unwrap());
            segment.end = at + 1 == count;
            burst.push(segment);
        }
        let start = Instant::now();
        while !burst.is_empty() {
            tx.transmit(&mut burst);
            assert!(start.elapsed() < PATIENCE, "the ring never drained");
        }
    }

    /// The next frame, from any queue pair.
    pub fn receive(&mut self) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.try_receive() {
                return frame;
            }
            assert!(start.elapsed() < PATIENCE, "no frame came");
            std::thread::yield_now();
        }
    }

    pub fn try_receive(&mut self) -> Option<Vec<u8>> {
        for pair in &mut self.pairs {
            let mut burst = ArrayVec::<RxSegment, 5>::new();
            if pair.rx.receive(&mut burst) > 0 {
                let mut frame = Vec::new();
                let memory = std::sync::Arc::clone(pair.rx.memory());
                let mut ends = 0;
                for segment in burst {
                    let mut part = vec![0; segment.length.into()];
                    memory.bytes(&segment.buffer).unwrap().read_into(&mut part);
                    if ends == 0 {
                        frame.extend(part);
                    }
                    ends += usize::from(segment.end());
                    pair.rx.free(segment.buffer);
                }
                assert_eq!(ends, 1, "one frame at a time in these tests");
                return Some(frame);
            }
        }
        None
    }
}
