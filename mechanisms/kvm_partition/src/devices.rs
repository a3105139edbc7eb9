//! What the host's devices ask of the guest: messages, flags, signals, interrupt messages and MMIO.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use partition::{
    GuestMemory, MmioHandler, MmioPages, MsiBlock, Partition, PartitionError, PartitionEvent,
    PostError, ReferenceTime, RetargetHandler,
};
use vm_memory::{FileOffset, MmapRegion};
use vmbus::EventFd;
use vmbus_protocol::{MAX_MESSAGE_SIZE, VpIndex};

use crate::{
    interrupts::{Msi, Route},
    kernel::{self, DevicePages},
    layout,
    machine::{KvmPartition, MmioKind, MmioRange, Msis, lock},
    synic::{Posted, SINTS},
};

/// Interrupt messages of one guest, at most.
const MAX_MSIS: usize = 2048;
/// Connections that a guest signals, at most.
const MAX_SIGNALS: usize = 4096;

impl Partition for KvmPartition {
    fn memory(&self) -> GuestMemory {
        self.machine.memory.clone()
    }

    fn next_event(&self) -> Option<PartitionEvent> {
        let mut events = lock(&self.machine.events);
        let next = events.queue.pop_front();
        if next.is_some() {
            if events.queue.is_empty() && !events.gone {
                self.machine.events_ready.take();
            }
            return next;
        }
        self.machine.events_ready.take();
        if events.gone && !events.gone_told {
            events.gone_told = true;
            return Some(PartitionEvent::Gone);
        }
        None
    }

    fn events_ready(&self) -> BorrowedFd<'_> {
        self.machine.events_ready.as_fd()
    }

    fn post_message(&self, vp: VpIndex, sint: u8, message: &[u8]) -> Result<(), PostError> {
        let machine = &self.machine;
        if message.len() > MAX_MESSAGE_SIZE {
            return Err(PostError::TooLong);
        }
        if machine.stop.load(Ordering::SeqCst) {
            return Err(PostError::Gone);
        }
        let vp = if machine.has(vp.0) { vp.0 } else { 0 };
        // A guest that names no source hears nothing.
        let Ok(events) = (if sint < SINTS { machine.sint(vp, sint) } else { return Ok(()) }) else {
            return Err(PostError::Gone);
        };
        let synic = machine.synic(vp);
        let mut posted = synic.post(&machine.ram, sint, message);
        if posted == Posted::Busy {
            // What was acknowledged so far does not count; what is from now on does.
            machine.room.take();
            posted = synic.post(&machine.ram, sint, message);
        }
        match posted {
            Posted::Written => {
                events.message.signal();
                Ok(())
            }
            Posted::Busy => Err(PostError::Busy),
            // It has turned its SynIC off: nobody would read it.
            Posted::NoSlot => Ok(()),
        }
    }

    fn room_ready(&self) -> BorrowedFd<'_> {
        self.machine.room.as_fd()
    }

    fn reference_time(&self) -> Option<ReferenceTime> {
        let clock = self.machine.vm.get_clock().ok()?;
        let at = if clock.flags & kvm_bindings::KVM_CLOCK_REALTIME == 0 {
            SystemTime::now()
        } else {
            UNIX_EPOCH + Duration::from_nanos(clock.realtime)
        };
        // The guest counts 100 ns.
        Some(ReferenceTime { count: clock.clock / 100, at })
    }

    fn create_event_flag(&self, vp: VpIndex, flag: u16) -> Result<EventFd, PartitionError> {
        self.flags.create(flag, vp)
    }

    fn move_event_flag(&self, flag: u16, vp: VpIndex) -> Result<(), PartitionError> {
        self.flags.retarget(flag, vp)
    }

    fn remove_event_flag(&self, flag: u16) {
        self.flags.remove(flag);
    }

    fn create_signal(&self, connection_id: u32) -> Result<EventFd, PartitionError> {
        let mut signals = lock(&self.machine.signals);
        if signals.contains_key(&connection_id) || signals.len() >= MAX_SIGNALS {
            return Err(PartitionError::Bound(connection_id));
        }
        let failed = |source| PartitionError::System { what: "an eventfd for a channel", source };
        let event = EventFd::new().map_err(failed)?;
        kernel::bind_connection(&self.machine.vm, connection_id, event.as_fd()).map_err(failed)?;
        signals.insert(connection_id, event.clone());
        Ok(event)
    }

    fn remove_signal(&self, connection_id: u32) {
        let mut signals = lock(&self.machine.signals);
        if signals.remove(&connection_id).is_some() {
            let _ = kernel::unbind_connection(&self.machine.vm, connection_id);
        }
    }

    fn create_msi(
        &self,
        vector: u32,
        vps: &[VpIndex],
        count: usize,
    ) -> Result<MsiBlock, PartitionError> {
        let refused = || PartitionError::Msi(count);
        let mut interrupts = lock(&self.machine.interrupts);
        let held: usize = interrupts.msis.values().map(|block| block.messages.len()).sum();
        let (Ok(many), true) = (u32::try_from(count), (1..=32).contains(&count)) else {
            return Err(refused());
        };
        if held + count > MAX_MSIS {
            return Err(refused());
        }
        // Data values are told apart, so that no two messages have the same.
        let mut data = interrupts.next_data.max(1);
        let free = |data: u32| {
            let end = u64::from(data) + u64::from(many);
            let mut others = interrupts.msis.range(..u32::try_from(end).unwrap_or(u32::MAX));
            let last = others.next_back().map(|(first, block)| (*first, block.messages.len()));
            end <= u64::from(u32::MAX)
                && last.is_none_or(|(first, len)| u64::from(first) + len as u64 <= u64::from(data))
        };
        let mut tries = 0;
        while !free(data) {
            data = if data > u32::MAX / 2 { 1 } else { data + 32 };
            tries += 1;
            if tries > 2 * MAX_MSIS {
                return Err(refused());
            }
        }
        let vp = vps.iter().map(|vp| vp.0).find(|vp| self.machine.has(*vp)).unwrap_or(0);
        let mut messages = Vec::new();
        for index in 0..many {
            // The guest chooses the vectors; one that cannot be raises nothing until it is moved.
            let vector = u8::try_from(vector.wrapping_add(index)).unwrap_or(0);
            match self.machine.bind_msi(&mut interrupts, Msi { apic_id: vp, vector }) {
                Ok(message) => messages.push(message),
                Err(source) => {
                    for (gsi, event) in &messages {
                        self.machine.unbind_msi(&mut interrupts, *gsi, event);
                    }
                    return Err(PartitionError::System { what: "an interrupt message", source });
                }
            }
        }
        let address = u64::from(layout::LOCAL_APIC) | u64::from(vp & 0xFF) << 12;
        let events = messages.iter().map(|(_, event)| event.clone()).collect();
        interrupts.msis.insert(data, Msis { address, messages });
        interrupts.next_data = data + many;
        Ok(MsiBlock { address, data, events })
    }

    fn move_msi(
        &self,
        address: u64,
        data: u32,
        vector: u32,
        vps: &[VpIndex],
    ) -> Result<(), PartitionError> {
        let machine = &self.machine;
        let refused = || PartitionError::NotMovable(data);
        let mut interrupts = lock(&machine.interrupts);
        let block = interrupts.msis.get(&data).filter(|block| block.address == address);
        let Some([(gsi, _)]) = block.map(|block| block.messages.as_slice()) else {
            return Err(refused());
        };
        let gsi = *gsi;
        let vector = u8::try_from(vector).map_err(|_| refused())?;
        let apic_id = vps.iter().map(|vp| vp.0).find(|vp| machine.has(*vp)).ok_or_else(refused)?;
        let route = Route::Msi(Msi { apic_id, vector });
        if interrupts.routes.get(gsi) != Some(route) {
            interrupts.routes.change(gsi, route);
            machine.set_routes(&interrupts).map_err(|source| PartitionError::System {
                what: "an interrupt message moved",
                source,
            })?;
        }
        Ok(())
    }

    fn set_retarget_handler(&self, handler: Arc<dyn RetargetHandler>) {
        *lock(&self.machine.retargets) = Some(handler);
    }

    fn remove_msi(&self, address: u64, data: u32) {
        let mut interrupts = lock(&self.machine.interrupts);
        if interrupts.msis.get(&data).is_none_or(|block| block.address != address) {
            return;
        }
        if let Some(block) = interrupts.msis.remove(&data) {
            for (gsi, event) in &block.messages {
                self.machine.unbind_msi(&mut interrupts, *gsi, event);
            }
            let _ = self.machine.set_routes(&interrupts);
        }
    }

    fn intercept_mmio(
        &self,
        gpa: u64,
        length: u64,
        handler: Arc<dyn MmioHandler>,
    ) -> Result<(), PartitionError> {
        let mut mmio = lock(&self.machine.mmio);
        self.machine.check_range(&mmio, gpa, length)?;
        mmio.ranges.insert(gpa, MmioRange { length, kind: MmioKind::Trapped(handler) });
        Ok(())
    }

    fn map_mmio(&self, gpa: u64, length: u64, pages: MmioPages) -> Result<(), PartitionError> {
        let mut mmio = lock(&self.machine.mmio);
        self.machine.check_range(&mmio, gpa, length)?;
        let failed = |source| PartitionError::System { what: "device pages mapped", source };
        let size = usize::try_from(length).map_err(|_| PartitionError::Mmio { gpa, length })?;
        let MmioPages { fd, offset, writable } = pages;
        let file = FileOffset::new(File::from(fd), offset);
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let mapping = MmapRegion::build(Some(file), size, access, flags)
            .map_err(|error| failed(io::Error::other(error)))?;
        let slot = mmio.free_slots.pop().unwrap_or(mmio.slots);
        let pages = DevicePages::map(&self.machine.vm, slot, gpa, mapping, writable);
        if slot == mmio.slots {
            mmio.slots += 1;
        }
        match pages {
            Ok(pages) => {
                let kind = MmioKind::Pages(pages);
                mmio.ranges.insert(gpa, MmioRange { length, kind });
                Ok(())
            }
            Err(source) => {
                mmio.free_slots.push(slot);
                Err(failed(source))
            }
        }
    }

    fn remove_mmio(&self, gpa: u64) {
        let mut mmio = lock(&self.machine.mmio);
        if let Some(MmioRange { kind: MmioKind::Pages(pages), .. }) = mmio.ranges.remove(&gpa) {
            let slot = pages.unmap(&self.machine.vm);
            mmio.free_slots.push(slot);
        }
    }
}
