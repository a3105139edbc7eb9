//! Receive-side scaling: capabilities and parameters (SPEC-VMBUS §6.1).

use ndis_protocol::NdisObjectHeader;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32},
};

use crate::{
    ParseError,
    error::{front, length32, part},
    nvsp::MAX_RECEIVE_TABLE_ENTRIES,
};

/// Object type of RSS capabilities.
pub const OBJECT_TYPE_CAPABILITIES: u8 = 0x88;
/// Object type of RSS parameters.
pub const OBJECT_TYPE_PARAMETERS: u8 = 0x89;
/// Bytes of the hash key.
pub const HASH_KEY_SIZE: usize = 40;

/// Value of OID_GEN_RECEIVE_SCALE_CAPABILITIES.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct RssCapabilities {
    /// Hash function and the packets that are hashed: [`Self::TOEPLITZ`] and so on.
    pub flags: u32,
    /// Interrupt messages.
    pub interrupt_messages: u32,
    /// Receive queues: channels that the NIC can have.
    pub receive_queues: u32,
    /// Entries of the indirection table.
    pub table_entries: u16,
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NdisReceiveScaleCapabilities {
    header: NdisObjectHeader,
    flags: U32,
    interrupt_messages: U32,
    receive_queues: U32,
    table_entries: U16,
}

const _: () = assert!(size_of::<NdisReceiveScaleCapabilities>() == RssCapabilities::SIZE);

impl RssCapabilities {
    /// Bytes of revision 2.
    pub const SIZE: usize = 18;
    /// The Toeplitz hash.
    pub const TOEPLITZ: u32 = 0x1;
    /// TCP over IPv4 is hashed.
    pub const TCP_IPV4: u32 = 0x100;
    /// TCP over IPv6 is hashed.
    pub const TCP_IPV6: u32 = 0x200;

    /// The structure's bytes, in revision 2.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::SIZE] {
        let wire = NdisReceiveScaleCapabilities {
            header: NdisObjectHeader {
                object_type: OBJECT_TYPE_CAPABILITIES,
                revision: 2,
                size: 18.into(),
            },
            flags: self.flags.into(),
            interrupt_messages: self.interrupt_messages.into(),
            receive_queues: self.receive_queues.into(),
            table_entries: self.table_entries.into(),
        };
        zerocopy::transmute!(wire)
    }

    /// What the structure says; revision 1 has no table entries, which are 0 then.
    ///
    /// # Errors
    /// It is too short.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut whole = [0; Self::SIZE];
        if bytes.len() < 16 {
            let (needed, got) = (16, bytes.len());
            return Err(ParseError::TooShort { message: "RSS capabilities", needed, got });
        }
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        let wire: NdisReceiveScaleCapabilities = zerocopy::transmute!(whole);
        Ok(Self {
            flags: wire.flags.get(),
            interrupt_messages: wire.interrupt_messages.get(),
            receive_queues: wire.receive_queues.get(),
            table_entries: wire.table_entries.get(),
        })
    }
}

bitflags::bitflags! {
    /// What is hashed, and how: the "hash info" of RSS parameters.
    #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
    pub struct HashInfo: u32 {
        /// The Toeplitz function.
        const TOEPLITZ = 0x1;
        /// Addresses of IPv4.
        const IPV4 = 0x100;
        /// Addresses and ports of TCP over IPv4.
        const TCP_IPV4 = 0x200;
        /// Addresses of IPv6.
        const IPV6 = 0x400;
        /// Addresses and ports of TCP over IPv6.
        const TCP_IPV6 = 0x1000;
        /// Addresses and ports of UDP over IPv4.
        const UDP_IPV4 = 0x4000;
        /// Addresses and ports of UDP over IPv6.
        const UDP_IPV6 = 0x8000;
        /// Bits that are not known keep their value.
        const _ = !0;
    }
}

/// Value of OID_GEN_RECEIVE_SCALE_PARAMETERS.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct RssParameters {
    /// RSS is off; the rest means nothing then.
    pub disable: bool,
    /// What is hashed.
    pub hash: HashInfo,
    /// Queue of each hash value; [`MAX_RECEIVE_TABLE_ENTRIES`] at most, at least one.
    pub table: Vec<u32>,
    /// The hash key.
    pub key: [u8; HASH_KEY_SIZE],
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NdisReceiveScaleParameters {
    header: NdisObjectHeader,
    flags: U16,
    base_cpu: U16,
    hash_info: U32,
    table_size: U16,
    padding: U16,
    table_offset: U32,
    key_size: U16,
    padding_2: U16,
    key_offset: U32,
    masks_offset: U32,
    masks_count: U32,
    masks_entry_size: U32,
}

const _: () = {
    assert!(size_of::<NdisReceiveScaleParameters>() == 40);
    assert!(core::mem::offset_of!(NdisReceiveScaleParameters, table_offset) == 16);
    assert!(core::mem::offset_of!(NdisReceiveScaleParameters, key_size) == 20);
    assert!(core::mem::offset_of!(NdisReceiveScaleParameters, key_offset) == 24);
};

impl RssParameters {
    const NAME: &str = "RSS parameters";
    const FLAG_DISABLE: u16 = 0x10;

    /// What a guest's bytes say. The header is not looked at, as real hosts do not.
    ///
    /// # Errors
    /// Table or key lie outside of the structure or have a size that they may not have. Nothing is checked of a
    /// structure that turns RSS off.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        // The processor masks at the end are not used; older guests do not send them.
        const NEEDED: usize = 28;
        if bytes.len() < NEEDED {
            let got = bytes.len();
            return Err(ParseError::TooShort { message: Self::NAME, needed: NEEDED, got });
        }
        let mut whole = [0; 40];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        let wire: NdisReceiveScaleParameters = zerocopy::transmute!(whole);
        let hash = HashInfo::from_bits_retain(wire.hash_info.get());
        if wire.flags.get() & Self::FLAG_DISABLE != 0 {
            return Ok(Self { disable: true, hash, table: vec![0], key: [0; HASH_KEY_SIZE] });
        }
        let field = |field, value: U16| ParseError::Field {
            message: Self::NAME,
            field,
            value: u64::from(value.get()),
        };
        let table_size = usize::from(wire.table_size.get());
        if table_size == 0
            || !table_size.is_multiple_of(4)
            || table_size / 4 > MAX_RECEIVE_TABLE_ENTRIES
        {
            return Err(field("table_size", wire.table_size));
        }
        if usize::from(wire.key_size.get()) != HASH_KEY_SIZE {
            return Err(field("key_size", wire.key_size));
        }
        let offset = wire.table_offset.get();
        let table = part(Self::NAME, "table", bytes, offset, u32::from(wire.table_size.get()))?;
        let offset = wire.key_offset.get();
        let key = part(Self::NAME, "key", bytes, offset, u32::from(wire.key_size.get()))?;
        let table = table
            .chunks_exact(4)
            .map(|entry| entry.first_chunk().map_or(0, |entry| u32::from_le_bytes(*entry)))
            .collect();
        let key = key.first_chunk().copied().unwrap_or([0; HASH_KEY_SIZE]);
        Ok(Self { disable: false, hash, table, key })
    }

    /// The structure's bytes: table and key follow it. A table of more than [`MAX_RECEIVE_TABLE_ENTRIES`] is cut.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let table = self.table.get(..MAX_RECEIVE_TABLE_ENTRIES).unwrap_or(&self.table);
        let table: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let table_size = u16::try_from(table.len()).unwrap_or(0);
        let wire = NdisReceiveScaleParameters {
            header: NdisObjectHeader {
                object_type: OBJECT_TYPE_PARAMETERS,
                revision: 2,
                size: 40.into(),
            },
            flags: if self.disable { Self::FLAG_DISABLE } else { 0 }.into(),
            base_cpu: 0.into(),
            hash_info: self.hash.bits().into(),
            table_size: table_size.into(),
            padding: 0.into(),
            table_offset: 40.into(),
            key_size: 40.into(),
            padding_2: 0.into(),
            key_offset: length32(40 + table.len()).into(),
            masks_offset: 0.into(),
            masks_count: 0.into(),
            masks_entry_size: 0.into(),
        };
        [wire.as_bytes(), &table, &self.key].concat()
    }

    /// Whether every entry of the table is below `queues`.
    #[must_use]
    pub fn fits(&self, queues: u32) -> bool {
        self.table.iter().all(|entry| *entry < queues)
    }
}

/// Reads the object header that every one of these structures begins with.
///
/// # Errors
/// Fewer than four bytes.
pub fn object_header(bytes: &[u8]) -> Result<NdisObjectHeader, ParseError> {
    front("NDIS object header", bytes)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn parameters(table: Vec<u32>) -> RssParameters {
        let hash = HashInfo::TOEPLITZ | HashInfo::TCP_IPV4;
        RssParameters { disable: false, hash, table, key: std::array::from_fn(|i| i as u8) }
    }

    #[test]
    fn capabilities_are_eighteen_bytes() {
        let flags = RssCapabilities::TOEPLITZ | RssCapabilities::TCP_IPV4;
        let capabilities =
            RssCapabilities { flags, interrupt_messages: 1, receive_queues: 8, table_entries: 128 };
        let bytes = capabilities.emit();
        assert_eq!(bytes, [0x88, 2, 18, 0, 1, 1, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 128, 0]);
        assert_eq!(RssCapabilities::parse(&bytes), Ok(capabilities));
        let first = RssCapabilities::parse(&bytes[..16]).unwrap();
        assert_eq!((first.receive_queues, first.table_entries), (8, 0));
        assert!(RssCapabilities::parse(&bytes[..15]).is_err());
    }

    #[test]
    fn tables_and_keys_of_a_wrong_size_or_place_are_refused() {
        let good = parameters(vec![0, 1, 2, 3]).emit();
        assert!(RssParameters::parse(&good).is_ok());
        let change = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            RssParameters::parse(&bytes)
        };
        for size in [0u16, 3, 6, 516, 0xFFFC] {
            assert!(change(12, &size.to_le_bytes()).is_err(), "table of {size} bytes");
        }
        for size in [0u16, 39, 41, 52] {
            assert!(change(20, &size.to_le_bytes()).is_err(), "key of {size} bytes");
        }
        for offset in [good.len() as u32 - 15, u32::MAX] {
            assert!(change(16, &offset.to_le_bytes()).is_err(), "table at {offset}");
            assert!(change(24, &offset.to_le_bytes()).is_err(), "key at {offset}");
        }
        assert_eq!(change(4, &[0x10]).map(|p| p.disable), Ok(true));
    }

    #[test]
    fn entries_are_below_the_number_of_queues() {
        assert!(parameters(vec![0, 3]).fits(4));
        assert!(!parameters(vec![0, 4]).fits(4));
    }

    proptest! {
        #[test]
        fn parameters_are_parsed_as_emitted(
            table in vec(any::<u32>(), 1..=128), hash: u32,
            low in prop::array::uniform20(any::<u8>()), high in prop::array::uniform20(any::<u8>()),
        ) {
            let mut key = [0; 40];
            key[..20].copy_from_slice(&low);
            key[20..].copy_from_slice(&high);
            let hash = HashInfo::from_bits_retain(hash);
            let parameters = RssParameters { disable: false, hash, table, key };
            prop_assert_eq!(RssParameters::parse(&parameters.emit()), Ok(parameters));
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(prop_oneof![0..48u8, any::<u8>()], 0..100)) {
            let _ = RssParameters::parse(&bytes);
            let _ = RssCapabilities::parse(&bytes);
            let _ = object_header(&bytes);
        }
    }
}
