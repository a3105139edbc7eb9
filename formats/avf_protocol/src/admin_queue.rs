//! Admin queue (mailbox) descriptors (SPEC-AVF §3).

use std::mem::offset_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// Bytes of an admin queue descriptor.
pub const DESCRIPTOR_SIZE: usize = 32;
/// The largest message, bytes.
pub const MAX_MESSAGE: usize = 4096;
/// Messages above this many bytes set [`flags::LB`].
pub const LARGE_BUFFER: usize = 512;
/// Admin queue base addresses need be no more than this aligned, bytes (SPEC-AVF §3.3).
pub const QUEUE_ALIGNMENT: u64 = 64;

/// Bits of the flags field (SPEC-AVF §3.2).
pub mod flags {
    /// Descriptor done.
    pub const DD: u16 = 1 << 0;
    /// Command complete.
    pub const CMP: u16 = 1 << 1;
    /// Error; `retval` holds the code.
    pub const ERR: u16 = 1 << 2;
    /// VF error.
    pub const VFE: u16 = 1 << 3;
    /// The buffer is larger than 512 bytes.
    pub const LB: u16 = 1 << 9;
    /// The device reads the buffer.
    pub const RD: u16 = 1 << 10;
    /// VF command.
    pub const VFC: u16 = 1 << 11;
    /// A buffer is attached.
    pub const BUF: u16 = 1 << 12;
    /// No interrupt on completion.
    pub const SI: u16 = 1 << 13;
    /// Interrupt on error.
    pub const EI: u16 = 1 << 14;
    /// Flush on error.
    pub const FE: u16 = 1 << 15;
}

/// Admin queue opcodes.
pub mod opcode {
    /// Get version.
    pub const GET_VERSION: u16 = 0x0001;
    /// Queue shutdown; bit 0 of `param0` says that the driver unloads.
    pub const QUEUE_SHUTDOWN: u16 = 0x0003;
    /// A virtchnl message from the VF to the PF.
    pub const SEND_TO_PF: u16 = 0x0801;
    /// A virtchnl message from the PF to the VF.
    pub const SEND_TO_VF: u16 = 0x0802;
    /// Set the RSS key; only with the RSS_AQ capability.
    pub const SET_RSS_KEY: u16 = 0x0B02;
    /// Set the RSS lookup table; only with the RSS_AQ capability.
    pub const SET_RSS_LUT: u16 = 0x0B03;
    /// Get the RSS key; only with the RSS_AQ capability.
    pub const GET_RSS_KEY: u16 = 0x0B04;
    /// Get the RSS lookup table; only with the RSS_AQ capability.
    pub const GET_RSS_LUT: u16 = 0x0B05;
}

/// Admin queue return code, the low byte of `retval`. It tells of the mailbox only: the result of a
/// virtchnl request travels in the reply's `cookie_low`.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u16)]
pub enum ReturnCode {
    /// Success.
    Ok = 0,
    /// Operation not permitted.
    NotPermitted = 1,
    /// No such element.
    NoEntry = 2,
    /// Bad opcode.
    NoSuchOpcode = 3,
    /// I/O error.
    Io = 5,
    /// Try again.
    Again = 8,
    /// Out of memory.
    NoMemory = 9,
    /// Permission denied.
    Access = 10,
    /// Busy.
    Busy = 12,
    /// Exists already.
    Exists = 13,
    /// Invalid argument.
    Invalid = 14,
    /// No space left.
    NoSpace = 16,
    /// Not implemented.
    NotImplemented = 17,
}

/// An admin queue descriptor (SPEC-AVF §3.1).
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct AdminQueueDescriptor {
    /// [`flags`].
    pub flags: U16,
    /// [`opcode`].
    pub opcode: U16,
    /// Bytes of the message, or of the posted buffer.
    pub datalen: U16,
    /// [`ReturnCode`].
    pub retval: U16,
    /// virtchnl opcode.
    pub cookie_high: U32,
    /// virtchnl status, signed, in messages to the VF.
    pub cookie_low: U32,
    /// For [`opcode::QUEUE_SHUTDOWN`], bit 0: the driver unloads.
    pub param0: U32,
    /// Unused.
    pub param1: U32,
    /// DMA address of the buffer, high half.
    pub address_high: U32,
    /// DMA address of the buffer, low half.
    pub address_low: U32,
}

const _: () = assert!(size_of::<AdminQueueDescriptor>() == DESCRIPTOR_SIZE);
const _: () = assert!(offset_of!(AdminQueueDescriptor, datalen) == 4);
const _: () = assert!(offset_of!(AdminQueueDescriptor, cookie_high) == 8);
const _: () = assert!(offset_of!(AdminQueueDescriptor, param0) == 16);
const _: () = assert!(offset_of!(AdminQueueDescriptor, address_low) == 28);

impl AdminQueueDescriptor {
    /// A virtchnl request whose message of `datalen` bytes (at most 4096) lies at DMA address `buffer`.
    pub fn send_to_pf(virtchnl_opcode: u32, datalen: u16, buffer: u64) -> Self {
        let mut flags = flags::SI;
        if datalen > 0 {
            flags |= flags::BUF | flags::RD;
        }
        if usize::from(datalen) > LARGE_BUFFER {
            flags |= flags::LB;
        }
        Self {
            flags: flags.into(),
            opcode: opcode::SEND_TO_PF.into(),
            datalen: datalen.into(),
            cookie_high: virtchnl_opcode.into(),
            ..Self::default()
        }
        .with_buffer(if datalen > 0 { buffer } else { 0 })
    }

    /// Queue shutdown.
    pub fn queue_shutdown(driver_unloading: bool) -> Self {
        Self {
            flags: flags::SI.into(),
            opcode: opcode::QUEUE_SHUTDOWN.into(),
            param0: u32::from(driver_unloading).into(),
            ..Self::default()
        }
    }

    /// A free receive buffer of `capacity` bytes (at most 4096) at DMA address `buffer`.
    pub fn receive_buffer(capacity: u16, buffer: u64) -> Self {
        let large = if usize::from(capacity) > LARGE_BUFFER { flags::LB } else { 0 };
        Self { flags: (flags::BUF | large).into(), datalen: capacity.into(), ..Self::default() }
            .with_buffer(buffer)
    }

    /// The device's completion of a request: DD and CMP, and ERR unless the code is [`ReturnCode::Ok`].
    #[must_use]
    pub fn completed(mut self, code: ReturnCode) -> Self {
        let mut flags = self.flags.get() | flags::DD | flags::CMP;
        if code != ReturnCode::Ok {
            flags |= flags::ERR;
        }
        self.flags = flags.into();
        self.retval = (code as u16).into();
        self
    }

    /// The device's use of a posted buffer for a message of `length` bytes to the VF.
    #[must_use]
    pub fn filled(mut self, virtchnl_opcode: u32, status: i32, length: u16) -> Self {
        let mut flags = flags::DD | flags::CMP | (self.flags.get() & flags::LB);
        if length > 0 {
            flags |= flags::BUF;
        }
        self.flags = flags.into();
        self.opcode = opcode::SEND_TO_VF.into();
        self.datalen = length.into();
        self.retval = 0.into();
        self.cookie_high = virtchnl_opcode.into();
        self.cookie_low = status.cast_unsigned().into();
        self
    }

    /// Replaces the buffer's DMA address.
    #[must_use]
    pub fn with_buffer(mut self, buffer: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = buffer.to_le_bytes();
        self.address_low = U32::from_bytes([a, b, c, d]);
        self.address_high = U32::from_bytes([e, f, g, h]);
        self
    }

    /// DMA address of the buffer.
    pub fn buffer(&self) -> u64 {
        u64::from(self.address_high.get()) << 32 | u64::from(self.address_low.get())
    }

    /// Whether all of `bits` are set in the flags.
    pub fn has(&self, bits: u16) -> bool {
        self.flags.get() & bits == bits
    }

    /// virtchnl status of a message to the VF.
    pub fn virtchnl_status(&self) -> i32 {
        self.cookie_low.get().cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_on_the_wire_are_those_of_the_byte_examples() {
        let version = AdminQueueDescriptor::send_to_pf(1, 8, 0x1_2345_6000);
        assert_eq!(version.flags.get(), 0x3400);
        assert_eq!(version.completed(ReturnCode::Ok).flags.get(), 0x3403);
        assert_eq!(version.buffer(), 0x1_2345_6000);
        assert_eq!(AdminQueueDescriptor::send_to_pf(6, 1096, 0).flags.get(), 0x3600);
        assert_eq!(AdminQueueDescriptor::send_to_pf(51, 0, 0).flags.get(), 0x2000);
        let posted = AdminQueueDescriptor::receive_buffer(4096, 0x8000);
        assert_eq!(posted.filled(1, 0, 8).flags.get(), 0x1203);
        let refused = posted.filled(60, -64, 0);
        assert_eq!((refused.flags.get(), refused.cookie_low.get()), (0x0203, 0xFFFF_FFC0));
        assert_eq!(refused.virtchnl_status(), -64);
        let unknown = version.completed(ReturnCode::NotImplemented);
        assert!(unknown.has(flags::DD | flags::CMP | flags::ERR) && unknown.retval.get() == 17);
    }
}
