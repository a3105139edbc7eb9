//! The software SR-IOV adapter: PF miniport and data path of a NIC.
