//! A switch over its real socket: a played virtualization stack, played VM workers with real guests' ends, and a real
//! adapter as uplink.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;
mod hostile;
mod ports;
mod uplink;
mod vf;
