//! The memory that a queue's frames lie in.

use netvsp_protocol::nvsp::ReceiveBufferSection;
use shared_memory::{DmaMap, SharedSlice};
use vmbus::GuestBuffer;

/// A NIC's receive buffer, divided.
#[derive(Clone, Debug)]
pub struct ReceiveBuffer {
    /// The guest's pages.
    pub buffer: GuestBuffer,
    /// The buffer's id, the transfer page set of packets to the guest.
    pub id: u16,
    /// How it is divided.
    pub section: ReceiveBufferSection,
}

/// Guest memory and the buffers that the guest handed over. Cloning is cheap; all clones see the same memory.
///
/// It stands beside its queue, so that frames can refer to it while the queue goes on.
#[derive(Clone, Debug, Default)]
pub struct QueueMemory {
    /// All of the guest's memory, for GPA-direct packets.
    pub(crate) guest: DmaMap,
    pub(crate) send: Option<GuestBuffer>,
    pub(crate) receive: Option<ReceiveBuffer>,
}

impl QueueMemory {
    /// No buffers yet.
    #[must_use]
    pub fn new(guest: DmaMap) -> Self {
        Self { guest, send: None, receive: None }
    }

    /// Takes a new map of guest memory.
    pub fn set_guest(&mut self, guest: DmaMap) {
        self.guest = guest;
    }

    /// Takes the send buffer, or lets go of it.
    pub fn set_send(&mut self, send: Option<GuestBuffer>) {
        self.send = send;
    }

    /// Takes the receive buffer, or lets go of it.
    pub fn set_receive(&mut self, receive: Option<ReceiveBuffer>) {
        self.receive = receive;
    }

    /// Where the frame of a suballocation goes: `length` bytes in as many slices as they lie in.
    pub(crate) fn suballocation(
        &self,
        index: u32,
        offset: u32,
        length: u32,
    ) -> Option<impl Iterator<Item = SharedSlice<'_>>> {
        let receive = self.receive.as_ref()?;
        let at = receive.section.sub_allocation_size.checked_mul(index)?.checked_add(offset)?;
        receive.buffer.slices(usize::try_from(at).ok()?, usize::try_from(length).ok()?)
    }
}
