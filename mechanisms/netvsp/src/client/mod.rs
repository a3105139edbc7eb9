//! NetVSC: the guest end.
