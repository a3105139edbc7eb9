//! The software SR-IOV adapter: PF miniport and data path of a NIC.

mod clock;
pub mod data_path;
