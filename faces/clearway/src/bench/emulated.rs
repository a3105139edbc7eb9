//! Frames from emulated adapter to emulated adapter: both guests' drivers in one poll loop on the client's CPU, all of
//! the host's threads (the virtual switch's, and two of each adapter) on the forwarder's.
//!
//! The guest's driver has the adapter look at its ring after each frame, as stock drivers do: a register access, which
//! is a message over a socket here. It asks for no interrupts, which stock drivers need for each frame or few.

use std::time::Duration;

use anyhow::{Context, ensure};
use ndis_protocol::MacAddress;
use tempfile::TempDir;
use tulip_driver::{NotSent, TulipDriver, TulipDriverConfig};
use virtual_switch::{TulipPort, VirtualSwitch, Worker};

use super::{
    cores::{Cores, apart, pin},
    forward::BURST,
    guest,
    path::{Counts, Path},
    sample::{Rate, RoundTrip},
    traffic::{headers, mac, read_lines, write_lines},
};

/// Bytes of the longest frame that it takes, a tag included.
pub(crate) const LONGEST: u16 = 1518;
/// Descriptors of each ring.
const RING: u16 = 256;

/// Both ends of the traffic.
pub(crate) struct Ends {
    generator: TulipDriver,
    sink: TulipDriver,
    headers: [u8; 42],
    size: u16,
    number: u32,
    failed: Option<tulip_driver::TulipDriverError>,
    _worker: Worker,
    _directory: TempDir,
}

impl Ends {
    /// A switch with two guests. Binds the calling thread to the client's CPU.
    pub(crate) fn open(size: u16, cores: Cores) -> anyhow::Result<Self> {
        ensure!(size <= LONGEST, "an emulated adapter takes no frames of {size} bytes");
        let directory = tempfile::Builder::new().prefix("clearway-bench").tempdir()?;
        let worker = Worker::start(VirtualSwitch::new(4)?, Some(cores.forwarder))?;
        // The adapters' threads stay where the one is that starts them.
        pin(cores.forwarder)?;
        for number in [1, 2] {
            let socket = directory.path().join(number.to_string());
            let address = MacAddress::new(mac(number));
            let emulated = TulipPort::serve(&socket, address, &format!("emulated {number}"))?;
            let port = guest::port(number)?;
            let policy = guest::policy(number);
            worker
                .handle()
                .run(move |switch| switch.connect(port, policy, Box::new(emulated)))??;
        }
        pin(cores.client)?;
        let driver = |number: u32| {
            let mut config = TulipDriverConfig::new(directory.path().join(number.to_string()));
            (config.receive_ring, config.transmit_ring) = (RING, RING);
            config.huge_pages = true;
            TulipDriver::open(&config)
        };
        let (generator, sink) = (driver(1)?, driver(2)?);
        let headers = headers(size, mac(2), mac(1));
        let failed = None;
        let (number, _worker, _directory) = (0, worker, directory);
        Ok(Self { generator, sink, headers, size, number, failed, _worker, _directory })
    }

    /// Sends one frame; false if there is no room.
    #[inline(always)]
    fn send(&mut self) -> bool {
        let (headers, number) = (&self.headers, self.number.wrapping_add(1));
        let sent = self.generator.send_with(self.size.into(), |frame| {
            frame.write_from(headers);
            write_lines(frame, number);
        });
        match sent {
            Ok(()) => {
                self.number = number;
                if let Err(error) = self.generator.demand() {
                    self.failed = Some(error);
                }
                true
            }
            Err(NotSent::Full | NotSent::Length) => false,
        }
    }

    #[inline(always)]
    fn receive(&mut self) -> (u64, u64, Option<u32>) {
        let (mut bytes, mut last) = (0, None);
        let frames = self.sink.receive(BURST, |frame| {
            last = Some(std::hint::black_box(read_lines(frame)));
            bytes += frame.len() as u64;
        });
        (frames as u64, bytes, last)
    }
}

impl Path for Ends {
    fn size(&self) -> u16 {
        self.size
    }

    fn step(&mut self, counts: &mut Counts) {
        // Not as many as in a burst of the others: each takes as long as some tens of theirs.
        counts.sends += 1;
        counts.full += u64::from(!self.send());
        let (frames, bytes, _) = self.receive();
        counts.looks += 1;
        counts.empty += u64::from(frames == 0);
        counts.received += frames;
        counts.bytes += bytes;
    }

    fn check(&self) -> anyhow::Result<()> {
        if let Some(error) = &self.failed {
            anyhow::bail!("the adapter failed under way: {error}");
        }
        Ok(())
    }

    fn stage(&mut self) -> Option<u32> {
        Some(self.number.wrapping_add(1))
    }

    fn launch(&mut self) {
        // A frame that does not go is one that does not come.
        self.send();
    }

    fn look(&mut self) -> Option<u32> {
        self.receive().2
    }
}

/// Measures the rate between two guests on a fresh switch.
pub(crate) fn rate(size: u16, duration: Duration, cores: Cores) -> anyhow::Result<Rate> {
    apart(|| Ends::open(size, cores)?.rate(duration)).context("emulated adapters")
}

/// Measures round trips between two guests on a fresh switch.
pub(crate) fn round_trips(
    size: u16,
    duration: Duration,
    cores: Cores,
) -> anyhow::Result<RoundTrip> {
    apart(|| Ends::open(size, cores)?.round_trips(duration)).context("emulated adapters")
}
