//! Descriptors (HRM chapter 4.2): four longwords, the first with the ownership.

use std::sync::atomic::Ordering;

use bitfield_struct::bitfield;
use shared_memory::{DmaAddress, DmaFault, DmaMap, TranslationCache};

/// Set while the device owns a descriptor.
pub(crate) const OWN: u32 = 1 << 31;

/// What a setup frame leaves in its first longword.
pub(crate) const SETUP_DONE: u32 = 0x7FFF_FFFF;

/// RDES0, as the device writes it.
#[bitfield(u32)]
pub(crate) struct ReceiveStatus {
    overflow: bool,
    crc_error: bool,
    dribbling: bool,
    mii_error: bool,
    watchdog: bool,
    /// Longer than an 802.3 length can say: an Ethernet type.
    pub(crate) frame_type: bool,
    collision: bool,
    pub(crate) too_long: bool,
    pub(crate) last: bool,
    pub(crate) first: bool,
    pub(crate) multicast: bool,
    runt: bool,
    #[bits(2)]
    pub(crate) data_type: u8,
    /// The frame did not fit the descriptors there were.
    pub(crate) descriptor_error: bool,
    pub(crate) error_summary: bool,
    /// Bytes, with the checksum.
    #[bits(14)]
    pub(crate) length: u16,
    pub(crate) filtering_fail: bool,
    own: bool,
}

/// TDES0, as the device writes it.
#[bitfield(u32)]
pub(crate) struct TransmitStatus {
    deferred: bool,
    underflow: bool,
    link_fail: bool,
    #[bits(4)]
    collisions: u8,
    heartbeat_fail: bool,
    excessive_collisions: bool,
    late_collision: bool,
    pub(crate) no_carrier: bool,
    pub(crate) loss_of_carrier: bool,
    #[bits(2)]
    reserved_12: u8,
    pub(crate) jabber: bool,
    pub(crate) error_summary: bool,
    #[bits(15)]
    reserved_16: u16,
    own: bool,
}

/// RDES1 and TDES1. The names are those of TDES1; of RDES1 there are the sizes, the end and the chain.
#[bitfield(u32)]
pub(crate) struct Control {
    #[bits(11)]
    pub(crate) size_1: u16,
    #[bits(11)]
    pub(crate) size_2: u16,
    pub(crate) filter_0: bool,
    pub(crate) no_padding: bool,
    /// The second address is that of the next descriptor.
    pub(crate) chained: bool,
    pub(crate) end_of_ring: bool,
    pub(crate) no_checksum: bool,
    pub(crate) setup: bool,
    pub(crate) filter_1: bool,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) interrupt: bool,
}

/// A descriptor that the device owns, read once.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Descriptor {
    pub(crate) control: Control,
    pub(crate) address_1: u32,
    pub(crate) address_2: u32,
}

impl Descriptor {
    /// Reads the descriptor at `address`; `None` while the driver owns it.
    pub(crate) fn read(dma: &DmaMap, address: u32) -> Result<Option<Self>, DmaFault> {
        let at = DmaAddress(address.into());
        let fault = DmaFault { address: at, length: 4, write: false };
        let first = dma
            .read_slice(&mut TranslationCache::default(), at, 4)?
            .load_u32(0, Ordering::Acquire)
            .ok_or(fault)?;
        if first & OWN == 0 {
            return Ok(None);
        }
        let mut rest = [0; 12];
        dma.read_bytes(DmaAddress(u64::from(address) + 4), &mut rest)?;
        let [c0, c1, c2, c3, a0, a1, a2, a3, b0, b1, b2, b3] = rest;
        Ok(Some(Self {
            control: Control::from(u32::from_le_bytes([c0, c1, c2, c3])),
            address_1: u32::from_le_bytes([a0, a1, a2, a3]),
            address_2: u32::from_le_bytes([b0, b1, b2, b3]),
        }))
    }

    /// Gives the descriptor at `address` back to the driver.
    pub(crate) fn give_back(dma: &DmaMap, address: u32, status: u32) -> Result<(), DmaFault> {
        let at = DmaAddress(address.into());
        let fault = DmaFault { address: at, length: 4, write: true };
        let slice = dma.write_slice(&mut TranslationCache::default(), at, 4)?;
        slice.store_u32(0, status & !OWN, Ordering::Release).ok_or(fault)
    }

    /// Address and bytes of both buffers; the second is none if the descriptor is chained.
    pub(crate) fn buffers(&self) -> [(u32, usize); 2] {
        let second = if self.control.chained() { 0 } else { self.control.size_2() };
        [(self.address_1, self.control.size_1().into()), (self.address_2, second.into())]
    }

    /// Where the next one is, of a list that begins at `base`, after `skip` longwords if neither says otherwise.
    pub(crate) fn next(&self, address: u32, base: u32, skip: u8) -> u32 {
        if self.control.end_of_ring() {
            base
        } else if self.control.chained() {
            self.address_2 & !3
        } else {
            address.wrapping_add(16 + 4 * u32::from(skip))
        }
    }
}
