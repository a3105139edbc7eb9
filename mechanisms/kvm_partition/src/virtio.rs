//! Places for virtio devices: registers, an interrupt, and notifications that reach the device without an exit.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use partition::MmioHandler;
use vm_memory::GuestMemoryMmap;
use vmbus::EventFd;

use crate::{
    error::KvmError,
    kernel,
    layout::{MAX_VIRTIO, PAGE, VIRTIO_NOTIFY},
    machine::{KvmPartition, MmioKind, MmioRange, lock},
};

/// A device with the registers of virtio-mmio, version 2.
pub struct VirtioDevice {
    /// Answers accesses to its registers, on the thread of the guest's processor.
    pub registers: Arc<dyn MmioHandler>,
    /// Signalled when the guest notifies it. Such writes do not come to `registers`.
    pub notify: EventFd,
    /// Interrupts the guest when it is signalled: an edge.
    pub interrupt: EventFd,
}

impl std::fmt::Debug for VirtioDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioDevice").finish_non_exhaustive()
    }
}

impl KvmPartition {
    /// Its memory, for devices that read and write it by its addresses. It stays for as long as somebody has it.
    pub fn ram(&self) -> GuestMemoryMmap {
        self.machine.ram.clone()
    }

    /// Gives the guest a virtio device, before it is started; it finds them in this order. When the guest's run ends the
    /// device's registers are dropped, before [`Self::ended`] says so.
    ///
    /// # Errors
    /// It has been started, there are too many, or KVM refuses.
    pub fn add_virtio(&self, device: VirtioDevice) -> Result<(), KvmError> {
        let processors = lock(&self.processors);
        if processors.is_none() {
            return Err(KvmError::Started);
        }
        let machine = &self.machine;
        let mut mmio = lock(&machine.mmio);
        let places = machine.layout.clone().with_virtio(MAX_VIRTIO).virtio();
        let place = { places }.nth(mmio.virtio()).ok_or(KvmError::VirtioDevices)?;
        let event = |fd| kernel::event(fd).map_err(KvmError::io("an eventfd"));
        let at = IoEventAddress::Mmio(place.gpa + VIRTIO_NOTIFY);
        machine
            .vm
            .register_ioevent(&event(&device.notify)?, &at, NoDatamatch)
            .map_err(KvmError::kvm("bind a virtio device's notification"))?;
        machine
            .vm
            .register_irqfd(&event(&device.interrupt)?, place.irq)
            .map_err(KvmError::kvm("bind a virtio device's interrupt"))?;
        let kind = MmioKind::Trapped(device.registers);
        mmio.ranges.insert(place.gpa, MmioRange { length: PAGE, kind });
        Ok(())
    }
}
