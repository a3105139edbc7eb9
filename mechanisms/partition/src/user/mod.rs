//! User-mode partition: the guest is an unprivileged process, the "hypervisor" a Unix socket between it and the
//! host (SOCK_SEQPACKET), and descriptors that the host passes over it.
//!
//! Guest memory is a memory file of the host's making that can neither shrink nor grow. Signals in both directions
//! and interrupts are eventfds, so that neither end is needed for the other to be woken; of those that signal the
//! guest it gets the receiving end only, so that nobody who signals it can be made to wait. MMIO that is intercepted
//! is asked for in messages; MMIO that is mapped is a descriptor.
//!
//! | from the host | carries |
//! | --- | --- |
//! | Memory | a range of guest memory: always first |
//! | Message | what [`Partition::post_message`](crate::Partition::post_message) posts |
//! | EventFlag, Signal, Msi, MmioPages | a descriptor, from now on |
//! | Removed | one of these, no more |
//! | MmioDone | the answer to an access |
//!
//! | from the guest | carries |
//! | --- | --- |
//! | Post | a message to a connection id |
//! | MmioRead, MmioWrite | an access to intercepted MMIO; one at a time, answered by MmioDone |
//! | Reset | its processors begin anew |

mod guest_end;
mod host_end;
mod socket;
mod wire;

#[cfg(test)]
mod tests;

pub use guest_end::{GuestMessage, MappedMmio, UserGuest};
pub use host_end::{UserPartition, UserPartitionConfig};
