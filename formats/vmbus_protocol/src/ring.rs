//! A ring's control page and the packets in its data area (SPEC-VMBUS §3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Byte offset in the control page of the index of the next byte to write; written by the sender.
pub const CONTROL_PAGE_IN: usize = 0;
/// Byte offset in the control page of the index of the next byte to read; written by the receiver.
pub const CONTROL_PAGE_OUT: usize = 4;
/// Byte offset in the control page of the word that is 1 while the receiver wants no signals.
pub const CONTROL_PAGE_INTERRUPT_MASK: usize = 8;
/// Byte offset in the control page of the number of free bytes the sender waits for, or 0.
pub const CONTROL_PAGE_PENDING_SEND_SIZE: usize = 12;
/// Byte offset in the control page of what the sender supports.
pub const CONTROL_PAGE_FEATURE_BITS: usize = 64;
/// Feature bit: pending_send_size is looked at, and answered by a signal.
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// Bytes behind every packet.
pub const PACKET_FOOTER_SIZE: usize = 8;
/// Bytes of the longest packet that a descriptor can express, without its footer.
pub const MAX_PACKET_LENGTH: usize = 0xFFFF * 8;
/// Descriptor flag: the receiver is to answer with a completion packet.
pub const PACKET_FLAG_COMPLETION_REQUESTED: u16 = 1;

/// The first 16 bytes of a packet.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketDescriptor {
    /// A [`PacketType`].
    pub packet_type: u16,
    /// Where the payload begins, in units of 8 bytes from the start of the packet.
    pub data_offset8: u16,
    /// Length of the packet without its footer, in units of 8 bytes.
    pub length8: u16,
    /// [`PACKET_FLAG_COMPLETION_REQUESTED`] or 0.
    pub flags: u16,
    /// The sender's name of the packet, repeated by its completion.
    pub transaction_id: u64,
}

const _: () = assert!(size_of::<PacketDescriptor>() == 16);

/// The last 8 bytes of a packet.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketFooter {
    /// Zero.
    pub reserved: u32,
    /// Byte offset of the packet in the data area.
    pub offset: u32,
}

const _: () = assert!(size_of::<PacketFooter>() == PACKET_FOOTER_SIZE);

/// What a packet is.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
#[repr(u16)]
pub enum PacketType {
    /// The payload is all there is.
    InBand = 6,
    /// Ranges of a buffer that both ends know; host to guest.
    TransferPages = 7,
    /// Ranges of guest pages; guest to host.
    GpaDirect = 9,
    /// The answer to a packet that asked for one.
    Completion = 0xB,
}

impl PacketType {
    /// The type with this number, if devices may use it.
    #[inline]
    pub const fn from_wire(value: u16) -> Option<Self> {
        match value {
            6 => Some(Self::InBand),
            7 => Some(Self::TransferPages),
            9 => Some(Self::GpaDirect),
            0xB => Some(Self::Completion),
            _ => None,
        }
    }
}

/// What stands behind the descriptor of a transfer-page or GPA-direct packet, before the ranges.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangeListHeader {
    /// Transfer pages: the buffer that the ranges are of. GPA direct: reserved.
    pub transfer_page_set_id: u16,
    /// Ignored.
    pub reserved: u16,
    /// Ranges that follow.
    pub range_count: u32,
}

const _: () = assert!(size_of::<RangeListHeader>() == 8);

/// One range of a transfer-page packet.
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TransferPageRange {
    /// Bytes.
    pub byte_count: u32,
    /// Where it begins in the buffer.
    pub byte_offset: u32,
}

const _: () = assert!(size_of::<TransferPageRange>() == 8);

/// The beginning of a range of guest pages, in a GPA-direct packet or a GPADL; its page frame numbers follow.
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GpaRangeHeader {
    /// Bytes, not 0.
    pub byte_count: u32,
    /// Where the range begins in its first page, below 4,096.
    pub byte_offset: u32,
}

const _: () = assert!(size_of::<GpaRangeHeader>() == 8);

impl GpaRangeHeader {
    /// How many page frame numbers follow, if the range is valid: not empty, beginning in its first page.
    #[inline]
    pub fn page_count(self) -> Option<u32> {
        if self.byte_count == 0 || self.byte_offset > 0xFFF {
            return None;
        }
        let bytes = u64::from(self.byte_offset) + u64::from(self.byte_count);
        u32::try_from(bytes.div_ceil(4096)).ok()
    }
}
