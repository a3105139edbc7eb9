//! NDIS SR-IOV: OIDs and structures of NIC switch, VF, VPort and receive filter, as types.
