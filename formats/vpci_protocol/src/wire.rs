//! The structures as they lie in messages. Little endian, unaligned; what they mean is elsewhere.

use std::mem::offset_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use crate::VpciProtocolError;

/// The first bytes of `bytes` as a `T`.
pub(crate) fn prefix<T: FromBytes>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, VpciProtocolError> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| VpciProtocolError::Truncated {
        what,
        needed: size_of::<T>(),
        length: bytes.len(),
    })
}

macro_rules! wire {
    ($($(#[$doc:meta])* struct $name:ident: $size:literal { $($field:ident: $type:ty = $offset:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $type,)* }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(offset_of!($name, $field) == $offset);)*
            };
        )*
    };
}

wire! {
    /// A message of a type and a slot.
    struct SlotMessage: 8 {
        message: U32 = 0,
        slot: U32 = 4,
    }

    /// A message of a type and one number.
    struct NumberMessage: 8 {
        message: U32 = 0,
        number: U32 = 4,
    }

    struct FdoD0Entry: 16 {
        message: U32 = 0,
        padding: U32 = 4,
        mmio_start: U64 = 8,
    }

    /// DEVICE_POWER_STATE_CHANGE as it is read: the reserved word need not be there.
    struct PowerStateHead: 12 {
        message: U32 = 0,
        slot: U32 = 4,
        state: U32 = 8,
    }

    /// DEVICE_POWER_STATE_CHANGE as it is sent, and its reply.
    struct PowerStateChange: 16 {
        message: U32 = 0,
        slot: U32 = 4,
        state: U32 = 8,
        reserved: U32 = 12,
    }

    struct GetResources: 32 {
        message: U32 = 0,
        slot: U32 = 4,
        reserved: [U64; 3] = 8,
    }

    /// READ_BLOCK, and WRITE_BLOCK before its data.
    struct BlockAccess: 16 {
        message: U32 = 0,
        block_id: U32 = 4,
        slot: U32 = 8,
        byte_count: U32 = 12,
    }

    struct InvalidateBlock: 16 {
        message: U32 = 0,
        slot: U32 = 4,
        block_mask: U64 = 8,
    }

    struct Tdisp: 16 {
        message_or_status: U32 = 0,
        slot: U32 = 4,
        data_length: U64 = 8,
    }

    struct Function: 20 {
        vendor_id: U16 = 0,
        device_id: U16 = 2,
        revision_id: u8 = 4,
        prog_if: u8 = 5,
        sub_class: u8 = 6,
        base_class: u8 = 7,
        sub_vendor_id: U16 = 8,
        sub_system_id: U16 = 10,
        slot: U32 = 12,
        serial: U32 = 16,
    }

    struct Function2: 28 {
        function: Function = 0,
        flags: U32 = 20,
        numa_node: U16 = 24,
        reserved: U16 = 26,
    }

    struct Msi1: 16 {
        vector: u8 = 0,
        delivery_mode: u8 = 1,
        vector_count: U16 = 2,
        reserved: U32 = 4,
        processor_mask: U64 = 8,
    }

    struct Msi2: 70 {
        vector: u8 = 0,
        delivery_mode: u8 = 1,
        vector_count: U16 = 2,
        processor_count: U16 = 4,
        processors: [U16; 32] = 6,
    }

    struct Msi3: 74 {
        vector: U32 = 0,
        delivery_mode: u8 = 4,
        reserved: u8 = 5,
        vector_count: U16 = 6,
        processor_count: U16 = 8,
        processors: [U16; 32] = 10,
    }

    struct Translated: 16 {
        reserved: U16 = 0,
        message_count: U16 = 2,
        data: U32 = 4,
        address: U64 = 8,
    }

    struct Mmio: 20 {
        kind: u8 = 0,
        share: u8 = 1,
        flags: U16 = 2,
        address: U64 = 4,
        length: U32 = 12,
        padding: U32 = 16,
    }

    struct ResourceList: 128 {
        version: U16 = 0,
        revision: U16 = 2,
        count: U32 = 4,
        descriptors: [Mmio; 6] = 8,
    }

    /// ASSIGNED_RESOURCES and its reply, before the interrupts.
    struct Assigned: 136 {
        message_or_status: U32 = 0,
        slot: U32 = 4,
        descriptors: [Mmio; 6] = 8,
        msi_count: U32 = 128,
        reserved: U32 = 132,
    }

    struct Requirements: 28 {
        status: U32 = 0,
        bars: [U32; 6] = 4,
    }

    struct InterruptCreated: 24 {
        status: U32 = 0,
        reserved: U32 = 4,
        interrupt: Translated = 8,
    }

    struct DeleteInterrupt: 24 {
        message: U32 = 0,
        slot: U32 = 4,
        interrupt: Translated = 8,
    }
}

/// Bit 0 of [`Function2::flags`]: the NUMA node is valid.
pub(crate) const NUMA_NODE_VALID: u32 = 1;
