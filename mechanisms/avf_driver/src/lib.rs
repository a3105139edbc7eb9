//! AVF driver in user space: poll mode, bursts, zero-copy buffers, over any vfio-user socket that
//! serves AVF, or any other [`transport`] to a function that does.
//!
//! It is a driver and no more: it moves frames between buffers and queues as it is told and looks
//! into none; it owns no thread, and does not decide where a frame goes, what to do about a lost
//! link, or whether to open a device again.
//!
//! | type | who holds it | what it does |
//! | --- | --- | --- |
//! | [`AvfDriver`] | – | opens a device |
//! | [`AvfControl`] | one control thread | mailbox: filters, statistics, link, events, reset, close |
//! | [`QueuePair`] = [`TxQueue`] + [`RxQueue`] | one data-path thread each | bursts of frames |
//! | [`DriverMemory`] | all | the memory shared with the device; [`Buffer`]s are in it |
//!
//! ```no_run
//! use arrayvec::ArrayVec;
//! use avf_driver::{AvfDriver, DriverConfig, TxSegment};
//!
//! let (mut control, mut pairs) = AvfDriver::open(DriverConfig::new("/run/clearway/vf0.sock"))?;
//! let mut pair = pairs.remove(0);
//! let (mut received, mut burst) = (ArrayVec::<_, 64>::new(), ArrayVec::<_, 64>::new());
//! loop {
//!     // Sends everything back where it came from, without a copy.
//!     pair.rx.receive(&mut received);
//!     burst.extend(received.drain(..).map(|segment| segment.forward()));
//!     pair.tx.transmit(&mut burst);
//!     for segment in burst.drain(..) {
//!         pair.tx.free(segment.buffer); // No room: dropped.
//!     }
//!     for event in control.poll_events(std::time::Instant::now())? {
//!         println!("{event:?}");
//!     }
//!     # if true { break }
//! }
//! # Ok::<(), avf_driver::DriverError>(())
//! ```
//!
//! # Resets
//!
//! The PF may reset the function at any time ([`Event::ResetImpending`], [`Event::ResetDetected`]),
//! and so may the user ([`AvfControl::reset`]). From then on every queue stands still: `transmit`
//! and `receive` return 0, `is_stopped` returns true, sleepers wake. Whoever holds the queue pairs
//! gives them to [`AvfControl::rebuild`], which waits for the reset to end, brings the function up
//! as it was (filters, tags, promiscuity) and returns the pairs ready for use. Frames in the rings
//! are lost; buffers in the caller's hands stay the caller's, and valid. When the server dies
//! ([`Event::DeviceGone`]) the same standstill is final: open the device anew.
//!
//! # What it trusts
//!
//! Nothing that the device writes: lengths, indexes, statuses and messages are read once, checked,
//! and counted if they make no sense. A server that hangs costs the control thread a timeout and
//! the data path nothing.
//!
//! Specification: SPEC-AVF (Appendix A is the sequence), vfio-user 0.0. Layer: mechanisms
//! (ARCHITECTURE.md); uses `avf_protocol`, `vfio_user_client`, `shared_memory`.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod bar;
mod buffers;
mod config;
mod control;
mod doorbell;
mod driver;
mod error;
mod event;
mod gate;
pub mod in_memory;
mod mailbox;
mod memory;
mod rx;
mod segment;
pub mod transport;
mod tx;
mod vector;

#[cfg(test)]
mod ring_tests;

pub use avf_protocol::{
    MacAddress,
    packet_type::PacketType,
    receive::Cast,
    transmit::{IpType, L4Type, TxOffload as ChecksumFields},
    virtchnl::{EthStats, LinkStatus},
};
pub use buffers::Buffer;
pub use config::{
    DriverConfig, MAX_CHAIN, MAX_QUEUE_PAIRS, RING_LENGTHS, ReportConfig, RssConfig, Timeouts,
    VlanConfig,
};
pub use control::{AvfControl, Capabilities, Promiscuity, RebuildError, State};
pub use driver::{AvfDriver, QueuePair};
pub use error::{DriverError, Result};
pub use event::Event;
pub use memory::{BufferView, DriverMemory, MemorySource};
pub use rx::{RxCounters, RxQueue, Wait};
pub use segment::{Check, FrameOffload, RxChecksum, RxSegment, TxSegment};
pub use tx::{TxCounters, TxQueue};
