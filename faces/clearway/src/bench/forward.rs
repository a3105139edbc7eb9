//! Frames from VF to VF with one forwarding thread: the generator's VF and the sink's VF are in one poll loop
//! on the client's CPU, the adapter's worker is on the forwarder's.

use std::time::Duration;

use anyhow::{Context, ensure};
use arrayvec::ArrayVec;
use avf_driver::{RxSegment, TxSegment};

use super::{
    cores::{Cores, apart, pin},
    nic::{Nic, Vf, VfOptions},
    path::{Counts, Path},
    sample::{Rate, RoundTrip},
    traffic::{headers, mac, read_lines, write_lines},
};

/// Frames handed over at a time, as in DPDK's clients.
pub(crate) const BURST: usize = 32;

/// Bytes of a buffer for frames of `size` bytes: what drivers use below a page, and one that holds the
/// whole frame above.
pub(crate) fn buffer_size(size: usize) -> u16 {
    if size <= 2048 {
        return 2048;
    }
    u16::try_from(size.next_multiple_of(128)).unwrap_or(16_256).min(16_256)
}

/// Descriptors of a ring where nothing else is asked for: many small frames, but large ones only so many
/// that ring times buffer stays inside the L2 cache.
pub(crate) fn ring(size: u16) -> u16 {
    match size {
        0..=256 => 1024,
        257..=1024 => 512,
        1025..=2048 => 256,
        _ => 64,
    }
}

/// Both ends of the traffic.
pub(crate) struct Ends {
    generator: Vf,
    sink: Vf,
    size: u16,
    number: u32,
    waiting: ArrayVec<TxSegment, BURST>,
    arrived: ArrayVec<RxSegment, BURST>,
    /// Destination addresses to send to in turn, if not only the sink's own.
    destinations: Vec<[u8; 6]>,
}

impl Ends {
    /// Opens the driver on two allocated VFs. Binds the calling thread to the client's CPU.
    pub(crate) fn open(
        nic: &Nic,
        from: u32,
        to: u32,
        size: u16,
        ring: u16,
        cores: Cores,
    ) -> anyhow::Result<Self> {
        pin(cores.client)?;
        let options = VfOptions { ring, buffer_size: buffer_size(size.into()) };
        let mut generator = nic.open(from, options)?;
        let sink = nic.open(to, options)?;
        // Every buffer gets the headers once; the driver does not look into them.
        let header = headers(size, mac(to), mac(from));
        let tx = &mut generator.pair.tx;
        let mut all = Vec::new();
        while let Some(buffer) = tx.reserve() {
            let bytes = tx.memory().bytes(&buffer).context("a buffer of the generator")?;
            bytes.fill(0x5A);
            bytes.write_from(&header);
            all.push(buffer);
        }
        ensure!(!all.is_empty(), "the generator has no buffers");
        all.into_iter().for_each(|buffer| tx.free(buffer));
        Ok(Self {
            generator,
            sink,
            size,
            number: 0,
            waiting: ArrayVec::new(),
            arrived: ArrayVec::new(),
            destinations: Vec::new(),
        })
    }

    /// Sends to these addresses in turn.
    pub(crate) fn spread_over(&mut self, destinations: Vec<[u8; 6]>) {
        self.destinations = destinations;
    }

    /// Whether 2 MiB pages back both ends' memory.
    fn huge_pages(&self) -> bool {
        self.generator.huge_pages() && self.sink.huge_pages()
    }

    /// Asks for the lines that a burst of frames will be written to, then writes them.
    #[inline(always)]
    fn fill(&mut self) {
        let tx = &mut self.generator.pair.tx;
        while !self.waiting.is_full() {
            let Some(buffer) = tx.reserve() else { break };
            if let Some(line) = tx.memory().part(&buffer, 0, 64) {
                line.prefetch_write();
            }
            self.waiting.push(TxSegment::frame(buffer, self.size));
        }
        for segment in &self.waiting {
            self.number = self.number.wrapping_add(1);
            if let Some(frame) = tx.memory().part(&segment.buffer, 0, self.size.into()) {
                if !self.destinations.is_empty() {
                    let turn = usize::try_from(self.number).unwrap_or(0) % self.destinations.len();
                    if let Some(destination) = self.destinations.get(turn) {
                        frame.write_from(destination);
                    }
                }
                write_lines(frame, self.number);
            }
        }
    }
}

impl Path for Ends {
    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn step(&mut self, counts: &mut Counts) {
        if self.waiting.is_empty() {
            self.fill();
        }
        let sent = self.generator.pair.tx.transmit(&mut self.waiting);
        counts.sends += 1;
        counts.full += u64::from(sent == 0);

        let rx = &mut self.sink.pair.rx;
        let frames = rx.receive(&mut self.arrived);
        counts.looks += 1;
        counts.empty += u64::from(frames == 0);
        counts.received += frames as u64;
        for segment in &self.arrived {
            if let Some(line) = rx.memory().part(&segment.buffer, 0, 64) {
                line.prefetch_read();
            }
        }
        for segment in self.arrived.drain(..) {
            if let Some(frame) = rx.memory().part(&segment.buffer, 0, segment.length.into()) {
                std::hint::black_box(read_lines(frame));
            }
            counts.bytes += u64::from(segment.length);
            rx.free(segment.buffer);
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.sink.pair.rx.is_stopped(), "the device stopped under way");
        Ok(())
    }

    fn cancel(&mut self) {
        for segment in self.waiting.drain(..) {
            self.generator.pair.tx.free(segment.buffer);
        }
    }

    fn stage(&mut self) -> Option<u32> {
        let tx = &mut self.generator.pair.tx;
        let buffer = tx.reserve()?;
        self.number = self.number.wrapping_add(1);
        if let Some(frame) = tx.memory().part(&buffer, 0, self.size.into()) {
            write_lines(frame, self.number);
        }
        self.waiting.push(TxSegment::frame(buffer, self.size));
        Some(self.number)
    }

    #[inline(always)]
    fn launch(&mut self) {
        self.generator.pair.tx.transmit(&mut self.waiting);
    }

    #[inline(always)]
    fn look(&mut self) -> Option<u32> {
        let rx = &mut self.sink.pair.rx;
        let mut last = None;
        rx.receive(&mut self.arrived);
        for segment in self.arrived.drain(..) {
            if let Some(frame) = rx.memory().part(&segment.buffer, 0, segment.length.into()) {
                last = Some(read_lines(frame));
            }
            rx.free(segment.buffer);
        }
        last
    }
}

/// Measures the rate from VF to VF on a fresh adapter; says also whether 2 MiB pages backed the buffers.
pub(crate) fn rate(
    size: u16,
    ring: u16,
    duration: Duration,
    cores: Cores,
) -> anyhow::Result<(Rate, bool)> {
    apart(|| {
        let (mut ends, _nic) = two_vfs(size, ring, cores)?;
        Ok((ends.rate(duration)?, ends.huge_pages()))
    })
}

/// Measures round trips from VF to VF on a fresh adapter.
pub(crate) fn round_trips(
    size: u16,
    duration: Duration,
    cores: Cores,
) -> anyhow::Result<RoundTrip> {
    apart(|| {
        let (mut ends, _nic) = two_vfs(size, ring(size), cores)?;
        ends.round_trips(duration)
    })
}

/// A fresh adapter with two VFs, and both ends open. Binds the calling thread to the client's CPU.
pub(crate) fn two_vfs(size: u16, ring: u16, cores: Cores) -> anyhow::Result<(Ends, Nic)> {
    let mut nic = Nic::start(2, cores)?;
    let (from, to) = (nic.allocate()?, nic.allocate()?);
    let ends = Ends::open(&nic, from, to, size, ring, cores)?;
    Ok((ends, nic))
}
