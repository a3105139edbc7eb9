//! Linux network interfaces and namespaces: TAP devices, packet sockets, rtnetlink, unprivileged namespaces.
//!
//! What the kernel offers for carrying Ethernet frames between itself and a process, as safe types; it knows
//! nothing of NICs or VMs, sleeps nowhere and starts no thread. Descriptors are non-blocking. The `unsafe`
//! for system calls that no crate of ours wraps lives in `sys`.
//!
//! Layer: ground (ARCHITECTURE.md). Used by the uplinks and by user-mode VMs.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod error;
mod namespace;
mod packet;
mod packet_ring;
mod route;
mod sys;
mod tap;
mod vnet;

pub use error::{ForbiddenBy, NetworkError};
pub use namespace::{Entered, Namespaces, enter_namespaces, enter_network_namespace};
pub use packet::{PacketOptions, PacketSocket, ReceivedPacket, VlanTag};
pub use route::{Link, LinkChange, LinkStatistics, MacAddress, RouteSocket};
pub use tap::{TapDevice, TapOptions};
pub use vnet::{
    ChecksumState, PacketOffload, Segmentation, SegmentationKind, VNET_HEADER_LENGTH, VnetError,
    VnetHeader, add_length_to_seed, finish_checksum, remove_length_from_seed,
};
