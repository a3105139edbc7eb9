//! What the buses of one guest share: guest physical addresses and interrupt vectors.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vpci_protocol::window;

use super::VpciError;

/// Bytes of address space for one bus: its configuration window and the BARs of its function.
const SLOT: u64 = 1 << 20;
/// Buses at a time.
const SLOTS: usize = 64;
/// Where the buses are: above any memory, in the upper of the ranges that a host lets guests use
/// (`vm_worker::APERTURES`). The BARs of VFs have 64 bits.
const FIRST: u64 = 1 << 40;
/// Vectors for devices: those below and above are exceptions' and the processor's own.
const VECTORS: Range<u32> = 0x30..0xE0;

/// Addresses and vectors of one guest, for all its virtual PCI buses.
#[derive(Debug)]
pub(crate) struct VpciResources {
    /// Buses and drivers that come and go contend; control only.
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    slots: [bool; SLOTS],
    /// By vector, from the first of [`VECTORS`].
    vectors: Vec<bool>,
}

fn take_first(taken: &mut [bool]) -> Option<usize> {
    let free = taken.iter().position(|taken| !taken)?;
    *taken.get_mut(free)? = true;
    Some(free)
}

impl VpciResources {
    /// All of a guest's addresses for buses, and the vectors of its first processor.
    pub(crate) fn new() -> Arc<Self> {
        let taken = Taken { slots: [false; SLOTS], vectors: vec![false; VECTORS.count()] };
        Arc::new(Self { taken: Mutex::new(taken) })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Addresses for one bus.
    pub(super) fn addresses(self: &Arc<Self>) -> Result<Addresses, VpciError> {
        let slot = take_first(&mut self.taken().slots).ok_or(VpciError::NoAddresses(SLOTS))?;
        Ok(Addresses { resources: Arc::clone(self), slot })
    }

    /// A vector of processor 0.
    pub(super) fn vector(self: &Arc<Self>) -> Result<Vector, VpciError> {
        let number = take_first(&mut self.taken().vectors);
        let number = number.ok_or(VpciError::NoVectors(VECTORS.count()))?;
        Ok(Vector { resources: Arc::clone(self), number })
    }
}

/// Addresses for one bus, until dropped.
#[derive(Debug)]
pub(super) struct Addresses {
    resources: Arc<VpciResources>,
    slot: usize,
}

impl Addresses {
    /// Where the configuration window is to be.
    pub(super) fn window(&self) -> u64 {
        FIRST + self.slot as u64 * SLOT
    }

    /// Where BARs can be.
    pub(super) fn aperture(&self) -> Range<u64> {
        self.window() + window::SIZE..self.window() + SLOT
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        if let Some(taken) = self.resources.taken().slots.get_mut(self.slot) {
            *taken = false;
        }
    }
}

/// An interrupt vector, until dropped.
#[derive(Debug)]
pub(super) struct Vector {
    resources: Arc<VpciResources>,
    number: usize,
}

impl Vector {
    /// The vector.
    pub(super) fn number(&self) -> u32 {
        // One of `VECTORS`.
        VECTORS.start + u32::try_from(self.number).unwrap_or(0)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Some(taken) = self.resources.taken().vectors.get_mut(self.number) {
            *taken = false;
        }
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn addresses_and_vectors_are_had_once_and_again_when_dropped() {
        let resources = VpciResources::new();
        let first = resources.addresses().unwrap();
        let all: Vec<_> = (1..SLOTS).map(|_| resources.addresses().unwrap()).collect();
        assert_eq!((first.window(), first.aperture()), (1 << 40, 0x100_0000_2000..0x100_0010_0000));
        assert_eq!(all.last().unwrap().aperture().end, (1 << 40) + SLOTS as u64 * SLOT);
        assert!(matches!(resources.addresses(), Err(VpciError::NoAddresses(64))));
        drop(first);
        assert_eq!(resources.addresses().unwrap().window(), 1 << 40);

        let vectors: Vec<_> = VECTORS.map(|_| resources.vector().unwrap()).collect();
        assert!(vectors.iter().map(Vector::number).eq(VECTORS));
        assert!(matches!(resources.vector(), Err(VpciError::NoVectors(176))));
        drop(vectors);
        assert_eq!(resources.vector().unwrap().number(), 0x30);
    }
}
