//! The driver.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use shared_memory::SharedSlice;
use vfio_user_client::Client;

use crate::{
    Result, TulipDriverError,
    pins::Registers,
    rings::{BUFFER, Ring, Rings, SETUP_FRAME},
};

/// Digital Equipment Corporation's 21140.
const IDS: (u16, u16) = (0x1011, 0x0009);
/// The command register, and in it: memory space, bus master.
const COMMAND: u16 = 4;
const COMMAND_ON: u16 = 0b110;
/// CSR0: bursts of 32 longwords, aligned; stock drivers write the same.
const BUS_MODE: u32 = 0x01A0_8000;
const BUS_MODE_RESET: u32 = 1;
/// CSR6: MII, store and forward, full duplex, and both processes on.
const MODE_ON: u32 = 1 << 25 | 1 << 21 | 1 << 18 | 1 << 13 | 1 << 9 | 1 << 1;
/// CSR6: all frames are received, whoever they are for.
const MODE_PROMISCUOUS: u32 = 1 << 6;
/// The transceiver that the serial ROM names.
const TRANSCEIVER: u32 = 1;
/// Addresses that a perfect filter has.
const FILTER_ENTRIES: usize = 16;
const BROADCAST: [u8; 6] = [0xFF; 6];
/// Bytes of the checksum behind each received frame.
const FCS: usize = 4;
/// Bytes of the shortest frame, which the adapter pads to.
const SHORTEST: usize = 14;
/// How long a setup frame may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// TDES1's bits.
mod tdes1 {
    pub(super) const LAST: u32 = 1 << 30;
    pub(super) const FIRST: u32 = 1 << 29;
    pub(super) const SETUP: u32 = 1 << 27;
}

/// RDES0's bits.
mod rdes0 {
    pub(super) const LAST: u32 = 1 << 8;
    pub(super) const FIRST: u32 = 1 << 9;
    pub(super) const ERROR: u32 = 1 << 15;
    pub(super) const LENGTH_SHIFT: u32 = 16;
    pub(super) const LENGTH_MASK: u32 = 0x3FFF;
}

/// How the adapter is opened.
#[derive(Clone, Debug)]
pub struct TulipDriverConfig {
    /// The vfio-user socket on which it is served.
    pub socket: PathBuf,
    /// Descriptors of the receive ring, 8–4096.
    pub receive_ring: u16,
    /// Descriptors of the transmit ring, 8–4096.
    pub transmit_ring: u16,
    /// Ask for 2 MiB pages; base pages are used where the host has none to spare.
    pub huge_pages: bool,
    /// Receive frames to any address.
    pub promiscuous: bool,
    /// How long a register access may take.
    pub request_timeout: Duration,
}

impl TulipDriverConfig {
    /// Rings of 256, base pages, 5 s; frames to the adapter's own address and to all.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            receive_ring: 256,
            transmit_ring: 256,
            huge_pages: false,
            promiscuous: false,
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a frame was not sent.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum NotSent {
    /// The adapter has not sent enough of those before.
    Full,
    /// No frame has so many bytes, or so few.
    Length,
}

/// What passed.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct TulipStatistics {
    /// Frames put into the transmit ring.
    pub sent: u64,
    /// Frames received.
    pub received: u64,
    /// Frames that arrived damaged, or cut off.
    pub damaged: u64,
    /// Demands: messages to the server.
    pub demands: u64,
}

/// An adapter in the hands of its driver. One thread owns it.
#[derive(Debug)]
pub struct TulipDriver {
    registers: Registers,
    rings: Rings,
    mac: [u8; 6],
    receive_at: usize,
    transmit_at: usize,
    statistics: TulipStatistics,
}

impl TulipDriver {
    /// Opens an adapter: resets it, reads its address, sets up rings and filter, and starts both processes.
    ///
    /// # Errors
    /// There is none at the socket, or it does not do as a 21140 does.
    pub fn open(config: &TulipDriverConfig) -> Result<Self> {
        for entries in [config.receive_ring, config.transmit_ring] {
            if !(8..=4096).contains(&entries) {
                return Err(TulipDriverError::Ring { entries });
            }
        }
        let client = Client::connect(&config.socket, config.request_timeout)?;
        let mut ids = [0; 4];
        client.config_read(0, &mut ids)?;
        let [v0, v1, d0, d1] = ids;
        let (vendor, device) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
        if (vendor, device) != IDS {
            return Err(TulipDriverError::NotTulip { vendor, device });
        }
        client.reset()?;
        let rings = Rings::new(config.receive_ring, config.transmit_ring, config.huge_pages)?;
        let (address, length) = rings.extent();
        client.dma_map(address, length, rings.fd().as_fd(), 0)?;
        client.config_write(COMMAND, &COMMAND_ON.to_le_bytes())?;
        let registers = Registers(client);
        registers.write(0, BUS_MODE_RESET)?;
        registers.write(0, BUS_MODE)?;
        let version = registers.rom_version()?;
        if version != 3 {
            return Err(TulipDriverError::Rom { version });
        }
        let mac = registers.rom_address()?;
        let mut driver = Self {
            registers,
            rings,
            mac,
            receive_at: 0,
            transmit_at: 0,
            statistics: TulipStatistics::default(),
        };
        driver.start(config.promiscuous)?;
        Ok(driver)
    }

    fn start(&mut self, promiscuous: bool) -> Result<()> {
        for entry in 0..self.rings.entries(Ring::Receive) {
            self.rings.give(Ring::Receive, entry, BUFFER, 0);
        }
        for entry in 0..self.rings.entries(Ring::Transmit) {
            self.rings.take(Ring::Transmit, entry);
        }
        let registers = &self.registers;
        registers.write(3, self.rings.ring_address(Ring::Receive))?;
        registers.write(4, self.rings.ring_address(Ring::Transmit))?;
        // No interrupts: this driver polls.
        registers.write(7, 0)?;
        let mode = if promiscuous { MODE_ON | MODE_PROMISCUOUS } else { MODE_ON };
        registers.write(6, mode)?;
        self.set_filter(&[self.mac, BROADCAST])
    }

    /// The address in the serial ROM.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// What passed.
    #[must_use]
    pub fn statistics(&self) -> TulipStatistics {
        self.statistics
    }

    /// Whether the transceiver has a link.
    ///
    /// # Errors
    /// The server is gone, or does not answer.
    pub fn link(&self) -> Result<bool> {
        // A link that was lost is told once; the second reading is what is now.
        self.registers.transceiver(TRANSCEIVER, 1)?;
        Ok(self.registers.transceiver(TRANSCEIVER, 1)? & 1 << 2 != 0)
    }

    /// Receives frames to these addresses, 16 at most, and to no other; waits until the adapter has taken that in.
    ///
    /// # Errors
    /// The server is gone, or does not answer; the adapter does not take it in.
    pub fn set_filter(&mut self, addresses: &[[u8; 6]]) -> Result<()> {
        let begin = Instant::now();
        let refused = |registers: &Registers| -> Result<()> {
            let state = registers.read(5)? >> 20 & 0b111;
            Err(TulipDriverError::SetupFrame { state })
        };
        let entry = self.transmit_at;
        while self.rings.given_back(Ring::Transmit, entry).is_none() {
            self.demand()?;
            if begin.elapsed() > PATIENCE {
                return refused(&self.registers);
            }
        }
        let buffer = self.rings.buffer(Ring::Transmit, entry, SETUP_FRAME.into());
        // Every entry counts; those that are left over repeat the first.
        let first = addresses.first().copied().unwrap_or(BROADCAST);
        for number in 0..FILTER_ENTRIES {
            let address = addresses.get(number).copied().unwrap_or(first);
            for (word, pair) in address.chunks_exact(2).enumerate() {
                let (_, rest) = buffer.split(number * 12 + word * 4);
                rest.write_from(pair);
            }
        }
        self.rings.give(Ring::Transmit, entry, SETUP_FRAME, tdes1::SETUP);
        self.next_transmit();
        self.demand()?;
        while self.rings.given_back(Ring::Transmit, entry).is_none() {
            if begin.elapsed() > PATIENCE {
                return refused(&self.registers);
            }
            // An access that is answered: those before it have been done.
            self.registers.read(5)?;
        }
        Ok(())
    }

    fn next_transmit(&mut self) {
        self.transmit_at += 1;
        if self.transmit_at == self.rings.entries(Ring::Transmit) {
            self.transmit_at = 0;
        }
    }

    /// Puts a frame into the ring; the adapter looks there after [`Self::demand`].
    ///
    /// # Errors
    /// [`NotSent`].
    pub fn send(&mut self, frame: &[u8]) -> std::result::Result<(), NotSent> {
        self.send_with(frame.len(), |buffer| {
            buffer.write_from(frame);
        })
    }

    /// Puts a frame of so many bytes into the ring, written by `fill`.
    ///
    /// # Errors
    /// [`NotSent`].
    #[inline]
    pub fn send_with(
        &mut self,
        length: usize,
        fill: impl FnOnce(SharedSlice<'_>),
    ) -> std::result::Result<(), NotSent> {
        let size = u16::try_from(length)
            .ok()
            .filter(|size| length >= SHORTEST && *size <= BUFFER)
            .ok_or(NotSent::Length)?;
        let entry = self.transmit_at;
        self.rings.given_back(Ring::Transmit, entry).ok_or(NotSent::Full)?;
        fill(self.rings.buffer(Ring::Transmit, entry, length));
        self.rings.give(Ring::Transmit, entry, size, tdes1::FIRST | tdes1::LAST);
        self.next_transmit();
        self.statistics.sent += 1;
        Ok(())
    }

    /// Has the adapter look at the transmit ring.
    ///
    /// # Errors
    /// The server is gone, or takes no message.
    #[inline]
    pub fn demand(&mut self) -> Result<()> {
        self.statistics.demands += 1;
        self.registers.post(1, 1)
    }

    /// Hands up to `most` received frames, without their checksums, to `take`; returns how many.
    #[inline]
    pub fn receive(&mut self, most: usize, mut take: impl FnMut(SharedSlice<'_>)) -> usize {
        let mut frames = 0;
        while frames < most {
            let entry = self.receive_at;
            let Some(status) = self.rings.given_back(Ring::Receive, entry) else { break };
            let whole = rdes0::FIRST | rdes0::LAST;
            let length = status >> rdes0::LENGTH_SHIFT & rdes0::LENGTH_MASK;
            let length = usize::try_from(length).unwrap_or(0).saturating_sub(FCS);
            if status & rdes0::ERROR == 0 && status & whole == whole && length >= SHORTEST {
                take(self.rings.buffer(Ring::Receive, entry, length));
                self.statistics.received += 1;
                frames += 1;
            } else {
                self.statistics.damaged += 1;
            }
            self.rings.give(Ring::Receive, entry, BUFFER, 0);
            self.receive_at += 1;
            if self.receive_at == self.rings.entries(Ring::Receive) {
                self.receive_at = 0;
            }
        }
        frames
    }

    /// Finds out whether the server is there.
    ///
    /// # Errors
    /// It is gone.
    pub fn check(&self) -> Result<()> {
        Ok(self.registers.0.check()?)
    }
}
