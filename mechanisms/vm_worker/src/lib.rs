//! VM worker: the host side of one partition. It offers the VM's synthetic NICs, whose rings it hands to a virtual
//! switch, and its VFs as PCI devices, whose registers, memory and interrupts it joins with the guest.
//!
//! It decides nothing: which NIC the VM has, and when it gets or loses a VF, it is told over device control
//! ([`control`]), and it reports what became of it. It assumes nothing about who the guest is, and waits for nobody:
//! neither for the guest, nor for a switch, nor for an adapter. It touches no frame.
//!
//! Follows SPEC-VMBUS §4 and §7, SPEC-PCIVIRT §6, §8 and §10. Layer: mechanisms (ARCHITECTURE.md), above `partition`,
//! `vpci` and `device_control`; a client of `virtual_switch` and of a NIC's `adapter`.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod control;
