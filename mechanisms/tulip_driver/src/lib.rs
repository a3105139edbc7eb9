//! DEC 21140 driver in user space: the emulated adapter as its guest's driver uses it, over any vfio-user socket
//! that serves one.
//!
//! For measuring the emulated adapter beside the other two kinds, and for tests of what serves it. It does as
//! stock drivers do: it finds the address in the serial ROM and the link in the transceiver, both bit by bit, sets
//! the filter up by a frame, and keeps a ring of descriptors in each direction. It polls: it asks for no interrupt,
//! owns no thread, and never waits but for the answer to a register access, up to a limit.
//!
//! | step | call |
//! | --- | --- |
//! | open | [`TulipDriver::open`] |
//! | put frames into the ring | [`TulipDriver::send`], [`TulipDriver::send_with`] |
//! | tell the adapter | [`TulipDriver::demand`]: a register access, and so a message to the server |
//! | take frames | [`TulipDriver::receive`] |
//!
//! Nothing that the adapter writes is trusted: a length is cut to its buffer, and a status that makes no sense costs
//! that frame.
//!
//! Follows the public *DECchip 21140A PCI Fast Ethernet LAN Controller Hardware Reference Manual* (cited as HRM) and the
//! *Digital Semiconductor 21X4 Serial ROM Format* 3.03. Layer: mechanisms (ARCHITECTURE.md).
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod driver;
mod error;
mod pins;
mod rings;
#[cfg(test)]
mod tests;

pub use driver::{NotSent, TulipDriver, TulipDriverConfig, TulipStatistics};
pub use error::{Result, TulipDriverError};
