//! The transceiver behind MII management: a 100BASE-TX PHY on a wire without a length (IEEE 802.3 clause 22).

use crate::csr::SerialPort;

/// The transceiver's address.
pub(crate) const PHY_ADDRESS: u8 = 1;

mod register {
    pub(super) const CONTROL: u8 = 0;
    pub(super) const STATUS: u8 = 1;
    pub(super) const ID_1: u8 = 2;
    pub(super) const ID_2: u8 = 3;
    pub(super) const ADVERTISEMENT: u8 = 4;
    pub(super) const PARTNER: u8 = 5;
    pub(super) const EXPANSION: u8 = 6;
}

const CONTROL_RESET: u16 = 0x8000;
const CONTROL_RESTART: u16 = 0x0200;
/// Auto-negotiation, 100 Mb/s, full duplex.
const CONTROL_DEFAULT: u16 = 0x3100;
/// All of 10BASE-T and 100BASE-TX, auto-negotiation, extended registers.
const STATUS_ABILITIES: u16 = 0x7809;
const STATUS_NEGOTIATED: u16 = 0x0020;
const STATUS_LINK: u16 = 0x0004;
/// An organisation without a number of its own: no driver takes it for a part with quirks.
const ID: (u16, u16) = (0x0000, 0x0140);
const ADVERTISEMENT_DEFAULT: u16 = 0x01E1;
/// What the other end can do: the same, and it has seen us.
const PARTNER: u16 = 0x45E1;
const PARTNER_CAN_NEGOTIATE: u16 = 0x0001;

/// Where the management frame is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum State {
    /// Ones, before a frame.
    Idle,
    /// The zero of the start.
    Start,
    /// Operation and addresses, 12 bits.
    Header { bits: u32, value: u16 },
    /// So many bits were given out: two of turnaround, 16 of data.
    Reading { bits: u32, value: u16 },
    /// Turnaround and data come in, 18 bits.
    Writing { bits: u32, value: u32, register: u8, mine: bool },
}

/// The transceiver behind two pins.
#[derive(Clone, Debug)]
pub(crate) struct Mii {
    control: u16,
    advertisement: u16,
    link: bool,
    /// The link was down since the status was read.
    link_was_lost: bool,
    state: State,
    clock: bool,
    output: bool,
}

impl Mii {
    pub(crate) fn new() -> Self {
        Self {
            control: CONTROL_DEFAULT,
            advertisement: ADVERTISEMENT_DEFAULT,
            link: true,
            link_was_lost: false,
            state: State::Idle,
            clock: false,
            output: true,
        }
    }

    pub(crate) fn link(&self) -> bool {
        self.link
    }

    pub(crate) fn set_link(&mut self, up: bool) {
        self.link = up;
        self.link_was_lost |= !up;
    }

    /// The data line, while the transceiver drives it.
    pub(crate) fn output(&self) -> bool {
        self.output
    }

    /// The pins change.
    pub(crate) fn pins(&mut self, port: SerialPort) {
        let rises = port.management_clock() && !self.clock;
        self.clock = port.management_clock();
        if rises {
            // A line that nobody drives is pulled up.
            self.clock_in(port.management_read() || port.management_data_out());
        }
    }

    fn clock_in(&mut self, data: bool) {
        self.state = match self.state {
            State::Idle if data => State::Idle,
            State::Idle => State::Start,
            State::Start if data => State::Header { bits: 0, value: 0 },
            State::Start => State::Start,
            State::Header { bits, value } => {
                let (bits, value) = (bits + 1, value << 1 | u16::from(data));
                if bits < 12 { State::Header { bits, value } } else { self.header(value) }
            }
            State::Reading { bits, value } => {
                // The zero of the turnaround, then the data; after that the line is let go.
                self.output = match bits {
                    0 => false,
                    1..=16 => value >> (16 - bits) & 1 != 0,
                    _ => true,
                };
                if bits > 16 { State::Idle } else { State::Reading { bits: bits + 1, value } }
            }
            State::Writing { bits, value, register, mine } => {
                let (bits, value) = (bits + 1, value << 1 | u32::from(data));
                if bits < 18 {
                    State::Writing { bits, value, register, mine }
                } else {
                    if mine {
                        let [low, high, ..] = value.to_le_bytes();
                        self.write(register, u16::from_le_bytes([low, high]));
                    }
                    State::Idle
                }
            }
        };
    }

    /// Operation (2 bits), address of the transceiver (5), register (5).
    fn header(&mut self, value: u16) -> State {
        let [low, high] = value.to_le_bytes();
        let register = low & 0x1F;
        let address = (low >> 5 | high << 3) & 0x1F;
        let mine = address == PHY_ADDRESS;
        match value >> 10 {
            // Where no transceiver is, the line stays up.
            0b10 if !mine => State::Idle,
            0b10 => State::Reading { bits: 0, value: self.read(register) },
            0b01 => State::Writing { bits: 0, value: 0, register, mine },
            _ => State::Idle,
        }
    }

    fn read(&mut self, register: u8) -> u16 {
        match register {
            register::CONTROL => self.control,
            register::STATUS => {
                // The loss of a link is shown once, though it is back.
                let up = self.link && !std::mem::take(&mut self.link_was_lost);
                let link = if up { STATUS_LINK | STATUS_NEGOTIATED } else { 0 };
                STATUS_ABILITIES | link
            }
            register::ID_1 => ID.0,
            register::ID_2 => ID.1,
            register::ADVERTISEMENT => self.advertisement,
            register::PARTNER if self.link => PARTNER,
            register::EXPANSION if self.link => PARTNER_CAN_NEGOTIATE,
            _ => 0,
        }
    }

    fn write(&mut self, register: u8, value: u16) {
        match register {
            register::CONTROL if value & CONTROL_RESET != 0 => {
                self.control = CONTROL_DEFAULT;
                self.advertisement = ADVERTISEMENT_DEFAULT;
            }
            // Negotiation takes no time.
            register::CONTROL => self.control = value & !CONTROL_RESTART,
            register::ADVERTISEMENT => self.advertisement = value,
            _ => {}
        }
    }
}
