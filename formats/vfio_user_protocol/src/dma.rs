//! DMA ranges: DMA_MAP, DMA_UNMAP, and the server's DMA_READ and DMA_WRITE.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProtocolError;

/// Payload of DMA_MAP.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// See the constants.
    pub flags: u32,
    /// Byte offset in the file that comes with the message; 0 without one.
    pub offset: u64,
    /// First DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<DmaMap>() == 32);
const _: () = assert!(std::mem::offset_of!(DmaMap, address) == 16);

/// What the device may do with a DMA range.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum DmaAccess {
    /// Read only.
    Read,
    /// Write only.
    Write,
    /// Both.
    ReadWrite,
}

impl DmaMap {
    /// The device may read.
    pub const FLAG_READ: u32 = 1 << 0;
    /// The device may write.
    pub const FLAG_WRITE: u32 = 1 << 1;

    /// The access that the flags grant; unknown flags, or none, are an error.
    pub fn access(&self) -> Result<DmaAccess, ProtocolError> {
        match self.flags {
            1 => Ok(DmaAccess::Read),
            2 => Ok(DmaAccess::Write),
            3 => Ok(DmaAccess::ReadWrite),
            flags => Err(ProtocolError::Flags { what: "DMA_MAP", flags }),
        }
    }
}

/// Payload of DMA_UNMAP, and of its reply.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaUnmap {
    /// Largest reply payload wanted, bytes.
    pub argsz: u32,
    /// See the constants.
    pub flags: u32,
    /// First DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<DmaUnmap>() == DmaUnmap::SIZE as usize);

/// What a DMA_UNMAP removes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum DmaUnmapTarget {
    /// One range, which must be exactly one that was mapped.
    Range {
        /// First DMA address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// Every range.
    All,
}

impl DmaUnmap {
    /// Bytes of this structure, as `argsz` says them.
    pub const SIZE: u32 = 24;
    /// Asks for the dirty pages of the range (`VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`); no longer part of
    /// the protocol.
    pub const FLAG_GET_DIRTY_BITMAP: u32 = 1 << 0;
    /// Removes every range (`VFIO_DMA_UNMAP_FLAG_ALL`); address and size must be 0.
    pub const FLAG_ALL: u32 = 1 << 1;

    /// What is to be removed; unknown flags are an error.
    pub fn target(&self) -> Result<DmaUnmapTarget, ProtocolError> {
        match self.flags {
            0 => Ok(DmaUnmapTarget::Range { address: self.address, size: self.size }),
            Self::FLAG_ALL if self.address == 0 && self.size == 0 => Ok(DmaUnmapTarget::All),
            flags => Err(ProtocolError::Flags { what: "DMA_UNMAP", flags }),
        }
    }
}

/// Payload of DMA_READ and DMA_WRITE, before the data, and of their replies.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaRw {
    /// First DMA address.
    pub address: u64,
    /// Bytes of data.
    pub count: u64,
}

const _: () = assert!(size_of::<DmaRw>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmapping_all_takes_no_range() {
        let all = DmaUnmap { argsz: 24, flags: DmaUnmap::FLAG_ALL, address: 0, size: 0 };
        assert_eq!(all.target().unwrap(), DmaUnmapTarget::All);
        assert!(DmaUnmap { size: 4096, ..all }.target().is_err());
        assert!(DmaUnmap { flags: DmaUnmap::FLAG_GET_DIRTY_BITMAP, ..all }.target().is_err());
    }

    #[test]
    fn a_mapping_grants_something_known() {
        let access = |flags| DmaMap { flags, ..DmaMap::default() }.access().ok();
        assert_eq!(access(0), None);
        assert_eq!(access(1), Some(DmaAccess::Read));
        assert_eq!(access(2), Some(DmaAccess::Write));
        assert_eq!(access(3), Some(DmaAccess::ReadWrite));
        assert_eq!(access(7), None);
    }
}
