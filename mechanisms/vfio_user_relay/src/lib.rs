//! A PCI function on a vfio-user socket that stays, in front of a VF that comes and goes.
//!
//! QEMU connects to the socket of a device once, when the device is plugged, and never again: a function whose server
//! ends is dead until the machine ends, and QEMU 11.1 cannot unplug one that has MSI-X (GUESTS-QEMU). VFs end all the
//! time: they are freed, given to others, lost with their NIC. So QEMU is given the socket of a [`Relay`]. While there
//! is a VF behind it, accesses to registers and configuration space are the VF's to answer, and it gets the guest's
//! memory and eventfds: descriptors are passed on, so that neither a frame nor an interrupt passes here. While
//! there is none the function is *dormant*: it reads as ones, as a slot that is empty does, and writes are lost.
//!
//! It refuses to know what the function does, to decide when it has a VF, and to tell the guest of it. A VF of another
//! shape than the first one is refused, since a client asks for regions once.
//!
//! A guest's driver that is taken from the VF would leave what has been received and not been looked at. So the guest can
//! be held back at that point ([`Relay::hold_leaving`]) until frames have another way.
//!
//! Registers that the VF would have its driver map are accessed by message here: QEMU maps a region for as
//! long as the device is there, and the VF's memory ends before.
//!
//! Layer: mechanisms (ARCHITECTURE.md), above `vfio_user_server` and `vfio_user_client`. Used by `qemu_partition`.

mod function;
mod leaving;
mod relay;

pub use function::RelayNews;
pub use relay::{Relay, RelayError};
