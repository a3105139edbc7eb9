//! The guest's side of a VM: its network interface `eth0`, and the carrier between that and the VF.
//!
//! Nothing here knows who started the VM or who talks to it; the synthetic path of a partition will stand
//! beside `vf`, under the same carrier.

mod carrier;
mod counters;
mod filters;
mod frames;
mod interface;
mod network;
mod tap;
mod translate;
mod veth;
mod vf;
// Joined to the carrier by what is to come beside it.
#[allow(dead_code, unused_imports)]
mod vpci;

pub(crate) use carrier::{Carrier, CarrierConfig, Notice};
pub(crate) use network::{InterfaceConfig, Network, create_interface};
pub(crate) use vf::{VfConfig, VfPath};
