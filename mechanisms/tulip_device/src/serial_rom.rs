//! The serial ROM: a 93C46 with 64 words, and what is in it (SROM format, version 3).

use crate::csr::SerialPort;

/// Words of the ROM.
const WORDS: usize = 64;
/// Address bits of a command.
const ADDRESS_BITS: u32 = 6;
/// The start bit and the code of READ.
const READ: u16 = 0b110;

/// The contents of the ROM of an adapter with this address, one transceiver at `phy`.
pub(crate) fn contents(mac: [u8; 6], subsystem: (u16, u16), phy: u8) -> [u8; WORDS * 2] {
    let mut rom = [0; WORDS * 2];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (to, from) in rom.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &subsystem.0.to_le_bytes());
    put(2, &subsystem.1.to_le_bytes());
    // Format version and number of controllers.
    put(18, &[3, 1]);
    put(20, &mac);
    // Device number of the controller, and where its leaf is.
    const LEAF: u8 = 30;
    put(26, &[0, LEAF, 0]);
    let capabilities = 0x7800u16.to_le_bytes();
    let advertisement = 0x01E0u16.to_le_bytes();
    let full_duplex = 0x5000u16.to_le_bytes();
    let threshold_mode = 0x1800u16.to_le_bytes();
    put(LEAF.into(), &0x0800u16.to_le_bytes()); // the connection is sensed
    // No general-purpose pin is an output; there is one block: extended, MII, without sequences.
    put(usize::from(LEAF) + 2, &[0, 1, 0x80 | 12, 1, phy, 0, 0]);
    put(usize::from(LEAF) + 9, &capabilities);
    put(usize::from(LEAF) + 11, &advertisement);
    put(usize::from(LEAF) + 13, &full_duplex);
    put(usize::from(LEAF) + 15, &threshold_mode);
    let [c0, c1, ..] = crate::filter::crc32(rom.get(..126).unwrap_or_default()).to_le_bytes();
    let mut put = |offset: usize, byte| {
        if let Some(to) = rom.get_mut(offset) {
            *to = byte;
        }
    };
    put(126, c0);
    put(127, c1);
    rom
}

/// Where the chip is in a command.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum State {
    /// Waits for a start bit.
    Idle,
    /// So many bits of a command have come.
    Command { bits: u32, value: u16 },
    /// Gives out bits from this one on, most significant first, word after word.
    Reading { bit: usize },
    /// A command that has no meaning for a ROM: until the chip is deselected.
    Ignoring,
}

/// The chip behind four pins.
#[derive(Clone, Debug)]
pub(crate) struct SerialRom {
    contents: [u8; WORDS * 2],
    state: State,
    clock: bool,
    output: bool,
}

impl SerialRom {
    pub(crate) fn new(contents: [u8; WORDS * 2]) -> Self {
        // The line is pulled up while the chip drives nothing: so software learns how many address bits there are.
        Self { contents, state: State::Idle, clock: false, output: true }
    }

    /// The data-out pin.
    pub(crate) fn output(&self) -> bool {
        self.output
    }

    /// The pins change.
    pub(crate) fn pins(&mut self, port: SerialPort) {
        let selected = port.rom_select() && port.rom_chip_select();
        let rises = port.rom_clock() && !self.clock;
        self.clock = port.rom_clock();
        if !selected {
            (self.state, self.output) = (State::Idle, true);
        } else if rises {
            self.clock_in(port.rom_data_in());
        }
    }

    fn clock_in(&mut self, data: bool) {
        self.state = match self.state {
            State::Idle if data => State::Command { bits: 1, value: 1 },
            State::Idle => State::Idle,
            State::Command { bits, value } => {
                let (bits, value) = (bits + 1, value << 1 | u16::from(data));
                if bits < 3 + ADDRESS_BITS {
                    State::Command { bits, value }
                } else if value >> ADDRESS_BITS == READ {
                    // A zero comes before the data.
                    self.output = false;
                    State::Reading { bit: usize::from(value) % WORDS * 16 }
                } else {
                    State::Ignoring
                }
            }
            State::Reading { bit } => {
                let [low, high] =
                    self.contents.as_chunks::<2>().0.get(bit / 16).copied().unwrap_or_default();
                self.output = u16::from_le_bytes([low, high]) >> (15 - bit % 16) & 1 != 0;
                State::Reading { bit: (bit + 1) % (WORDS * 16) }
            }
            State::Ignoring => State::Ignoring,
        };
    }
}
