//! Frames from synthetic adapter to synthetic adapter: both guests' NetVSC in one poll loop on the client's CPU, the
//! virtual switch's thread with both NetVSPs on the forwarder's. The rings are VMBus channels in guest memory; the
//! signals between them are eventfds, which polling guests ask for none of.

use std::time::Duration;

use anyhow::{Context, ensure};
use netvsp::{TransmitMetadata, client::NotSent};
use shared_memory::SharedSlice;
use virtual_switch::{VirtualSwitch, Worker};

use super::{
    cores::{Cores, apart, pin},
    forward::BURST,
    guest::{Guest, MTU, port},
    path::{Counts, Path},
    sample::{Rate, RoundTrip},
    traffic::{headers, mac},
};

/// Where the number of a frame is, behind its headers.
const NUMBER_AT: usize = 48;

/// Both ends of the traffic.
pub(crate) struct Ends {
    generator: Guest,
    sink: Guest,
    frame: Vec<u8>,
    size: u16,
    number: u32,
    worker: Worker,
}

impl Ends {
    /// A switch with two guests. Binds the calling thread to the client's CPU.
    pub(crate) fn open(size: u16, cores: Cores) -> anyhow::Result<Self> {
        let worker = Worker::start(VirtualSwitch::new(4)?, Some(cores.forwarder))?;
        pin(cores.client)?;
        let large = u32::from(size) > MTU;
        let generator = Guest::boot(worker.handle(), 1, large)?;
        let sink = Guest::boot(worker.handle(), 2, large)?;
        let mut frame = vec![0x5A; size.into()];
        for (to, from) in frame.iter_mut().zip(headers(size, mac(2), mac(1))) {
            *to = from;
        }
        Ok(Self { generator, sink, frame, size, number: 0, worker })
    }

    /// What switch and guests have counted.
    fn state(&self) -> String {
        let ports = self.worker.handle().run(|switch| {
            [1, 2].map(|number| port(number).ok().and_then(|id| switch.statistics(id)))
        });
        let guests = [&self.generator, &self.sink].map(|guest| guest.nic.statistics(0));
        format!("ports: {ports:?}, guests: {guests:?}")
    }

    #[inline(always)]
    fn write(&mut self) {
        self.number = self.number.wrapping_add(1);
        write_lines(&mut self.frame, self.number);
    }
}

/// Writes into every line of a frame; the first gets `number` behind the headers.
#[inline(always)]
pub(crate) fn write_lines(frame: &mut [u8], number: u32) {
    let number = number.to_ne_bytes();
    let mut line = NUMBER_AT;
    while let Some(place) = frame.get_mut(line..line + 4) {
        place.copy_from_slice(&number);
        line = (line + 64) & !63;
    }
}

/// Reads from every line of a frame, wherever it begins; returns its number.
#[inline(always)]
fn read_lines(frame: SharedSlice<'_>) -> u32 {
    let first = frame.load_bytes8(NUMBER_AT).unwrap_or_default().to_le_bytes();
    let mut line = 64;
    while let Some(word) = frame.load_bytes8(line) {
        std::hint::black_box(word);
        line += 64;
    }
    let [a, b, c, d, ..] = first;
    u32::from_ne_bytes([a, b, c, d])
}

/// Receives at `guest`: frames, bytes, and the number of the last one.
#[inline(always)]
pub(crate) fn receive(guest: &mut Guest) -> (u64, u64, Option<u32>) {
    let (mut frames, mut bytes, mut last) = (0, 0, None);
    guest.nic.poll(0, |burst| {
        for frame in burst.frames() {
            let mut number = 0;
            for (at, piece) in frame.pieces.iter().enumerate() {
                let read = std::hint::black_box(read_lines(*piece));
                if at == 0 {
                    number = read;
                }
            }
            frames += 1;
            bytes += u64::from(frame.length);
            last = Some(number);
        }
    });
    (frames, bytes, last)
}

impl Path for Ends {
    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn step(&mut self, counts: &mut Counts) {
        let metadata = TransmitMetadata::default();
        let mut sent = 0;
        while sent < BURST {
            self.write();
            match self.generator.nic.send(0, &self.frame, &metadata) {
                Ok(()) => sent += 1,
                Err(NotSent::NotUp | NotSent::NoBuffer | NotSent::RingFull | NotSent::TooLong) => {
                    break;
                }
            }
        }
        self.generator.nic.flush(0);
        // What was sent before is given back.
        self.generator.nic.poll(0, |_| ());
        counts.sends += 1;
        counts.full += u64::from(sent == 0);
        let (frames, bytes, _) = receive(&mut self.sink);
        counts.looks += 1;
        counts.empty += u64::from(frames == 0);
        counts.received += frames;
        counts.bytes += bytes;
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.sink.nic.control().is_up(), "the adapter went down under way");
        Ok(())
    }

    fn stage(&mut self) -> Option<u32> {
        self.generator.nic.poll(0, |_| ());
        self.write();
        Some(self.number)
    }

    #[inline(always)]
    fn launch(&mut self) {
        // A frame that does not go is one that does not come.
        let _ = self.generator.nic.send(0, &self.frame, &TransmitMetadata::default());
        self.generator.nic.flush(0);
    }

    #[inline(always)]
    fn look(&mut self) -> Option<u32> {
        receive(&mut self.sink).2
    }
}

/// Measures the rate between two guests on a fresh switch.
pub(crate) fn rate(size: u16, duration: Duration, cores: Cores) -> anyhow::Result<Rate> {
    apart(|| Ends::open(size, cores)?.rate(duration)).context("synthetic adapters")
}

/// Measures round trips between two guests on a fresh switch.
pub(crate) fn round_trips(
    size: u16,
    duration: Duration,
    cores: Cores,
) -> anyhow::Result<RoundTrip> {
    apart(|| {
        let mut ends = Ends::open(size, cores)?;
        ends.round_trips(duration).with_context(|| ends.state())
    })
    .context("synthetic adapters")
}
