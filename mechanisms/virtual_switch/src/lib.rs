//! Virtual switch: the software data path of one VMSwitch. It moves frames between ports: VMs' synthetic adapters,
//! and an uplink.
//!
//! It decides by the rules of [`nic_switch`], so that a VM is subject to the same MAC, VLAN and spoofing policy on
//! its synthetic path as on its VF; here each port is a VPort of that table, and the uplink is its physical port.
//! There is no learning: every address behind a port is assigned to it, and what is unknown lies behind the uplink.
//! It offers no channel; whoever plays a guest's host side opens one over the socket. Ports and policies change between two rounds, which makes each change
//! atomic towards frames.
//!
//! | module | what it does |
//! | --- | --- |
//! | `switch` | the ports, the table, the counters; one frame from ingress to all of its egresses |
//! | `port` | what a port is |
//! | `frame` | a frame inside the switch: pieces of shared memory, a tag, offloads |
//! | `finish` | does in software what a frame still asks for: checksums, segments |
//! | [`SyntheticPort`] | a VM's NetVSP |
//! | [`TulipPort`] | a VM's emulated adapter, served over vfio-user |
//! | [`VhostUserPort`] | a VM's virtio-net, served over vhost-user |
//! | [`Worker`] | the thread that drives a switch, and the handle by which control reaches it |
//! | [`AvfUplink`] | the default VPort of an SR-IOV adapter, by the AVF driver |
//! | [`UplinkPort`] | an interface, a capture or a cable as uplink; the host's own interface |
//! | [`control`] | what is asked and told over a switch's socket |
//! | [`server`] | a switch behind its socket: a process of its own |
//!
//! A frame is copied once, out of its sender's memory into its receiver's. Headers that change on the way (a tag
//! taken out, a checksum filled in, a segment's own) are made in a small staging area and copied from there.
//!
//! Follows DESIGN.md ("The data path") and SPEC-VMBUS §5 and §6. Layer: mechanisms (ARCHITECTURE.md).
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod avf_uplink;
pub mod control;
mod finish;
mod frame;
mod frame_queue;
mod port;
pub mod server;
mod staging;
mod switch;
mod synthetic_port;
#[cfg(test)]
mod tests;
mod tulip_port;
mod uplink_port;
mod vhost_user_port;
mod worker;

pub use avf_uplink::{AvfUplink, UplinkUnsuitable};
pub use frame::{Frame, Offloads};
pub use port::{NotDelivered, Port, ServeError};
pub use staging::Staging;
pub use switch::{PortPolicy, PortStatistics, VirtualSwitch};
pub use synthetic_port::SyntheticPort;
pub use tulip_port::{TulipHandle, TulipPort};
pub use uplink_port::UplinkPort;
pub use vhost_user_port::{GuestPath, VhostUserPort};
pub use worker::{SwitchHandle, SwitchStopped, Worker};
