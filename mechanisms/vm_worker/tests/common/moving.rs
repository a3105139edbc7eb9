//! A partition whose guest can move its interrupts, as one with processors can.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};

use partition::{
    GuestMemory, MmioHandler, MmioPages, MsiBlock, Partition, PartitionError, PartitionEvent,
    PostError, Retarget, RetargetHandler, user::UserPartition,
};
use vmbus::EventFd;
use vmbus_protocol::VpIndex;

/// Where a message was moved.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Moved {
    pub message: (u64, u32),
    pub vector: u32,
    pub processors: Vec<VpIndex>,
}

/// A user-mode partition, but for that.
pub struct Moving {
    partition: Arc<UserPartition>,
    handler: Mutex<Option<Arc<dyn RetargetHandler>>>,
    pub moved: Mutex<Vec<Moved>>,
    /// Messages that were made.
    pub made: Mutex<Vec<(u64, u32)>>,
}

impl std::fmt::Debug for Moving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moving").finish_non_exhaustive()
    }
}

impl Moving {
    pub fn new(partition: Arc<UserPartition>) -> Self {
        let (handler, moved, made) = Default::default();
        Self { partition, handler, moved, made }
    }

    /// The guest's hypercall.
    pub fn hypercall(&self, retarget: &Retarget) -> bool {
        let handler = self.handler.lock().unwrap().clone();
        handler.unwrap().retarget(retarget.clone())
    }
}

impl Partition for Moving {
    fn memory(&self) -> GuestMemory {
        self.partition.memory()
    }
    fn next_event(&self) -> Option<PartitionEvent> {
        self.partition.next_event()
    }
    fn events_ready(&self) -> BorrowedFd<'_> {
        self.partition.events_ready()
    }
    fn post_message(&self, vp: VpIndex, sint: u8, message: &[u8]) -> Result<(), PostError> {
        self.partition.post_message(vp, sint, message)
    }
    fn room_ready(&self) -> BorrowedFd<'_> {
        self.partition.room_ready()
    }
    fn create_event_flag(&self, vp: VpIndex, flag: u16) -> Result<EventFd, PartitionError> {
        self.partition.create_event_flag(vp, flag)
    }
    fn move_event_flag(&self, flag: u16, vp: VpIndex) -> Result<(), PartitionError> {
        self.partition.move_event_flag(flag, vp)
    }
    fn remove_event_flag(&self, flag: u16) {
        self.partition.remove_event_flag(flag);
    }
    fn create_signal(&self, connection_id: u32) -> Result<EventFd, PartitionError> {
        self.partition.create_signal(connection_id)
    }
    fn remove_signal(&self, connection_id: u32) {
        self.partition.remove_signal(connection_id);
    }
    fn create_msi(
        &self,
        vector: u32,
        vps: &[VpIndex],
        count: usize,
    ) -> Result<MsiBlock, PartitionError> {
        let block = self.partition.create_msi(vector, vps, count)?;
        self.made.lock().unwrap().push((block.address, block.data));
        Ok(block)
    }
    fn move_msi(
        &self,
        address: u64,
        data: u32,
        vector: u32,
        vps: &[VpIndex],
    ) -> Result<(), PartitionError> {
        let moved = Moved { message: (address, data), vector, processors: vps.to_vec() };
        self.moved.lock().unwrap().push(moved);
        Ok(())
    }
    fn set_retarget_handler(&self, handler: Arc<dyn RetargetHandler>) {
        *self.handler.lock().unwrap() = Some(handler);
    }
    fn remove_msi(&self, address: u64, data: u32) {
        self.partition.remove_msi(address, data);
    }
    fn intercept_mmio(
        &self,
        gpa: u64,
        length: u64,
        handler: Arc<dyn MmioHandler>,
    ) -> Result<(), PartitionError> {
        self.partition.intercept_mmio(gpa, length, handler)
    }
    fn map_mmio(&self, gpa: u64, length: u64, pages: MmioPages) -> Result<(), PartitionError> {
        self.partition.map_mmio(gpa, length, pages)
    }
    fn remove_mmio(&self, gpa: u64) {
        self.partition.remove_mmio(gpa);
    }
}
