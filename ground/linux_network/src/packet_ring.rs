//! The receive ring of a packet socket (TPACKET_V2), mapped into this process.
//!
//! Why a ring: its slots do not count against `net.core.rmem_max`, which at its default holds three large TCP
//! segments, and receiving from it takes no system call.
//!
//! `unsafe` here: the mapping, and references to the bytes of a slot. The kernel and this process own each slot
//! in turn; its status word says who does. The kernel is the only other party.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::sys;

/// Bytes of a slot: the largest segmented packet (64 KiB), its headers, and what the kernel puts before it.
const SLOT_SIZE: usize = 68 << 10;
/// Bytes of a block, in which slots do not cross the end.
const BLOCK_SIZE: usize = 1 << 20;
/// Blocks of a ring.
const BLOCKS: usize = 16;
const SLOTS_PER_BLOCK: usize = BLOCK_SIZE / SLOT_SIZE;
const SLOTS: usize = BLOCKS * SLOTS_PER_BLOCK;

const STATUS_KERNEL: u32 = 0;
const STATUS_USER: u32 = 1;

/// `struct tpacket2_hdr` at the start of a slot (linux/if_packet.h).
#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SlotHeader {
    /// Who owns the slot, and what else is known of the packet.
    pub(crate) status: u32,
    /// Bytes of the packet as it was.
    pub(crate) length: u32,
    /// Bytes of it that are in the slot.
    pub(crate) captured: u32,
    /// Where in the slot it starts.
    pub(crate) mac: u16,
    net: u16,
    seconds: u32,
    nanoseconds: u32,
    pub(crate) vlan_tci: u16,
    pub(crate) vlan_tpid: u16,
    padding: [u8; 4],
}

const _: () = assert!(size_of::<SlotHeader>() == 32);
const _: () = assert!(SLOT_SIZE.is_multiple_of(16) && SLOT_SIZE <= BLOCK_SIZE);

/// A mapped receive ring.
#[derive(Debug)]
pub(crate) struct PacketRing {
    base: NonNull<u8>,
    /// The slot that the kernel fills next.
    next: usize,
}

// SAFETY: the mapping is plain memory that belongs to the ring alone and may be used from any one thread.
unsafe impl Send for PacketRing {}

impl PacketRing {
    /// Gives the packet socket `fd` a receive ring and maps it.
    pub(crate) fn attach(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let number = |value: usize| u32::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
        sys::packet_set_option(fd, libc::PACKET_VERSION, 1 /* TPACKET_V2 */)?;
        sys::packet_set_ring(
            fd,
            number(BLOCK_SIZE)?,
            number(BLOCKS)?,
            number(SLOT_SIZE)?,
            number(SLOTS)?,
        )?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                BLOCKS * BLOCK_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, next: 0 })
    }

    fn slot(&self) -> NonNull<u8> {
        let offset =
            self.next / SLOTS_PER_BLOCK * BLOCK_SIZE + self.next % SLOTS_PER_BLOCK * SLOT_SIZE;
        // SAFETY: `next` is below SLOTS, so the slot lies inside the mapping.
        unsafe { self.base.add(offset) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the first word of a slot is its status, aligned to the slot, and accessed atomically by
        // both sides.
        unsafe { self.slot().cast::<AtomicU32>().as_ref() }
    }

    /// Whether the kernel has filled the next slot.
    pub(crate) fn is_ready(&self) -> bool {
        self.status().load(Ordering::Acquire) & STATUS_USER != 0
    }

    /// The next slot with its header, if the kernel has filled it.
    pub(crate) fn peek(&self) -> Option<(SlotHeader, &[u8])> {
        if !self.is_ready() {
            return None;
        }
        // SAFETY: the slot is inside the mapping and ours until `release`, which needs `&mut self`.
        let bytes = unsafe { std::slice::from_raw_parts(self.slot().as_ptr(), SLOT_SIZE) };
        let (header, _) = SlotHeader::read_from_prefix(bytes).ok()?;
        Some((header, bytes))
    }

    /// Gives the next slot back to the kernel and goes on to the one after it.
    pub(crate) fn release(&mut self) {
        self.status().store(STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % SLOTS;
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the range is what `attach` mapped, and no slice of it outlives us.
        let _ =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), BLOCKS * BLOCK_SIZE) };
    }
}
