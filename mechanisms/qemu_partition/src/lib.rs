//! The host side of a VM whose guest runs in stock QEMU, started by whomever.
//!
//! The guest's synthetic path is a virtio-net, by vhost-user on a port of the virtual switch. Its VF comes as a PCI
//! Express device that is plugged by QMP beside it, with the same address; the guest's own net_failover joins the two and
//! sends by the VF while that has a link. What VMBus does for other guests, QEMU's machine protocol and PCI Express
//! hot-plug do here:
//!
//! * *offer*: `device_add` of a `vfio-user-pci` on the socket of a relay, behind which the VF is;
//! * *ready*: what the VF's driver does, as the NIC says it: its queues are enabled;
//! * *eject*: the attention button of the device's slot (`device_del`). The guest's driver leaves the VF, and the guest
//!   turns the slot off. QEMU would remove the device then, and QEMU 11.1 aborts at that if it has MSI-X; it does not
//!   where the slot has no power controller. So the function stays where it is, without VF: dormant;
//! * *offer* again: another VF behind the relay, and the button again.
//!
//! net_failover drops what comes by the standby for as long as the primary is there, also if that has no link. So a VF
//! cannot be taken from a guest by its link alone; and one that is gone by surprise is given up by the guest when it is
//! asked to, until when nothing reaches it.
//!
//! It serves the same device control as `vm_worker`, whose types it uses: the virtualization stack drives both alike. It
//! refuses to decide who gets a VF, to touch a frame, and to drive a QEMU in which that cannot go well: each
//! [`MachineError`] names the option that is missing. Connections and commands wait for QEMU and for a NIC for a limited
//! time, on a thread that has nothing else to do.
//!
//! Follows GUESTS-QEMU. Layer: mechanisms (ARCHITECTURE.md), above `vfio_user_relay`, `vm_worker` (its control),
//! `device_control`, and a client of a NIC's `adapter`.

mod command_line;
mod machine;
mod nic;
mod qmp;
mod server;
mod slot;
mod worker;

pub use command_line::{GuestOptions, NicOptions};
pub use machine::MachineError;
pub use qmp::QmpError;
pub use server::{QemuHost, QemuHostConfig, StartError};
pub use slot::SlotTimes;
