//! VMBus on the wire: control messages, GPADLs, ring buffers and their packets, as types.
