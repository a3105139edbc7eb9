//! virtchnl: the messages between a VF and its PF (SPEC-AVF §4).
//!
//! [`Request`] and [`Reply`] are the meaning; the structures in the modules are the bytes, unaligned and
//! little-endian. [`Request::parse`] is the PF's side and lenient in lengths, [`Request::emit`] is the VF's
//! and exact; [`Reply`] the other way round.

mod capabilities;
mod event;
mod filters;
mod lengths;
mod opcode;
mod queues;
mod reply;
mod request;
mod resources;
mod rss;
mod statistics;
mod vlan;

pub use capabilities::Capabilities;
pub use event::{Event, EventMessage, LinkStatus, event_code, severity};
pub use filters::{EthAddr, MacFilterKind, promiscuous};
pub use lengths::{MessageTooLong, exact_length};
pub use opcode::{Opcode, Status, UnknownOpcode};
pub use queues::{
    DatabufferSize, QueueChunk, QueuePairInfo, QueueSelect, QueueVector, RxQueueInfo, TxQueueInfo,
    VectorMap,
};
pub use reply::{Reply, ReplyError};
pub use request::{Request, RequestError};
pub use resources::{VSI_TYPE_SRIOV, Version, VfResources};
pub use rss::{HashFunction, MaxRssQregion, RssHfunc};
pub use statistics::EthStats;
pub use vlan::{VlanFilter, VlanFilterTag, VlanSetting, VlanV2Capabilities, support};

/// `wire!(Type, size; field at offset, …)`: compile-time checks of a layout.
macro_rules! wire {
    ($type:ty, $size:expr $(; $($field:ident at $offset:expr),*)?) => {
        const _: () = assert!(size_of::<$type>() == $size);
        $($(const _: () = assert!(std::mem::offset_of!($type, $field) == $offset);)*)?
    };
}
use wire;
