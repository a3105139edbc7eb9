//! The messages between both ends.

use vmbus_protocol::MAX_MESSAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the longest message.
pub(super) const MAX_BYTES: usize = size_of::<Header>() + MAX_MESSAGE_SIZE;

/// What a message begins with; the meaning of `first` and `second` is the kind's.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: u32,
    small: u32,
    first: u64,
    second: u64,
}

const _: () = assert!(size_of::<Header>() == 24);

/// What a removed or given descriptor is for.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub(super) enum Name {
    EventFlag(u16),
    Signal(u32),
    Msi { address: u64, data: u32 },
    Mmio { gpa: u64 },
}

/// From the host.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum FromHost {
    /// With a descriptor. `more`: another follows.
    Memory {
        gpa: u64,
        length: u64,
        more: bool,
    },
    Message {
        vp: u32,
        sint: u8,
        payload: Vec<u8>,
    },
    /// With a descriptor.
    EventFlag {
        flag: u16,
        vp: u32,
    },
    /// No new descriptor: the flag's processor is another.
    EventFlagMoved {
        flag: u16,
        vp: u32,
    },
    /// With a descriptor.
    Signal {
        connection_id: u32,
    },
    /// With a descriptor.
    Msi {
        address: u64,
        data: u32,
        vector: u32,
        vp: u32,
    },
    /// With a descriptor.
    MmioPages {
        gpa: u64,
        length: u64,
        offset: u64,
        writable: bool,
    },
    Removed(Name),
    MmioDone {
        value: u64,
    },
}

/// From the guest.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum FromGuest {
    Post { connection_id: u32, payload: Vec<u8> },
    MmioRead { gpa: u64, size: u8 },
    MmioWrite { gpa: u64, size: u8, value: u64 },
    Reset,
}

fn emit(kind: u32, small: u32, first: u64, second: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Header { kind, small, first, second }.as_bytes().to_vec();
    bytes.extend_from_slice(rest);
    bytes
}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(value: u64) -> (u32, u32) {
    let low = value & u64::from(u32::MAX);
    // Both fit by construction.
    (u32::try_from(value >> 32).unwrap_or(0), u32::try_from(low).unwrap_or(0))
}

impl FromHost {
    pub(super) fn emit(&self) -> Vec<u8> {
        match self {
            Self::Memory { gpa, length, more } => emit(1, u32::from(*more), *gpa, *length, &[]),
            Self::Message { vp, sint, payload } => emit(2, *vp, u64::from(*sint), 0, payload),
            Self::EventFlag { flag, vp } => emit(3, *vp, u64::from(*flag), 0, &[]),
            Self::EventFlagMoved { flag, vp } => emit(4, *vp, u64::from(*flag), 0, &[]),
            Self::Signal { connection_id } => emit(5, *connection_id, 0, 0, &[]),
            Self::Msi { address, data, vector, vp } => {
                emit(6, *data, *address, pair(*vector, *vp), &[])
            }
            Self::MmioPages { gpa, length, offset, writable } => {
                emit(7, u32::from(*writable), *gpa, *length, &offset.to_le_bytes())
            }
            Self::Removed(Name::EventFlag(flag)) => emit(8, 0, u64::from(*flag), 0, &[]),
            Self::Removed(Name::Signal(id)) => emit(9, *id, 0, 0, &[]),
            Self::Removed(Name::Msi { address, data }) => emit(10, *data, *address, 0, &[]),
            Self::Removed(Name::Mmio { gpa }) => emit(11, 0, *gpa, 0, &[]),
            Self::MmioDone { value } => emit(12, 0, *value, 0, &[]),
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (Header { kind, small, first, second }, rest) = Header::read_from_prefix(bytes).ok()?;
        Some(match kind {
            1 => Self::Memory { gpa: first, length: second, more: small != 0 },
            2 if rest.len() <= MAX_MESSAGE_SIZE => {
                Self::Message { vp: small, sint: u8::try_from(first).ok()?, payload: rest.to_vec() }
            }
            3 => Self::EventFlag { flag: u16::try_from(first).ok()?, vp: small },
            4 => Self::EventFlagMoved { flag: u16::try_from(first).ok()?, vp: small },
            5 => Self::Signal { connection_id: small },
            6 => {
                let (vector, vp) = halves(second);
                Self::Msi { address: first, data: small, vector, vp }
            }
            7 => {
                let offset = u64::from_le_bytes(rest.try_into().ok()?);
                Self::MmioPages { gpa: first, length: second, offset, writable: small != 0 }
            }
            8 => Self::Removed(Name::EventFlag(u16::try_from(first).ok()?)),
            9 => Self::Removed(Name::Signal(small)),
            10 => Self::Removed(Name::Msi { address: first, data: small }),
            11 => Self::Removed(Name::Mmio { gpa: first }),
            12 => Self::MmioDone { value: first },
            _ => return None,
        })
    }
}

impl FromGuest {
    pub(super) fn emit(&self) -> Vec<u8> {
        match self {
            Self::Post { connection_id, payload } => emit(1, *connection_id, 0, 0, payload),
            Self::MmioRead { gpa, size } => emit(2, u32::from(*size), *gpa, 0, &[]),
            Self::MmioWrite { gpa, size, value } => emit(3, u32::from(*size), *gpa, *value, &[]),
            Self::Reset => emit(4, 0, 0, 0, &[]),
        }
    }

    /// What the guest sent, if it is something: accesses are of 1, 2, 4 or 8 bytes within a page.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (Header { kind, small, first, second }, rest) = Header::read_from_prefix(bytes).ok()?;
        let access = || {
            let size = u8::try_from(small).ok()?;
            let within = first & 0xFFF;
            (matches!(size, 1 | 2 | 4 | 8) && within + u64::from(size) <= 4096).then_some(size)
        };
        Some(match kind {
            1 if rest.len() <= MAX_MESSAGE_SIZE => {
                Self::Post { connection_id: small, payload: rest.to_vec() }
            }
            2 => Self::MmioRead { gpa: first, size: access()? },
            3 => Self::MmioWrite { gpa: first, size: access()?, value: second },
            4 => Self::Reset,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_of_the_host_survive(
            kind in 0u8..12, numbers in any::<(u64, u64, u64, u32, u32)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..=240)
        ) {
            let (gpa, length, offset, vp, data) = numbers;
            let flag = data as u16;
            let message = match kind {
                0 => FromHost::Memory { gpa, length, more: data.is_multiple_of(2) },
                1 => FromHost::Message { vp, sint: data as u8, payload },
                2 => FromHost::EventFlag { flag, vp },
                3 => FromHost::EventFlagMoved { flag, vp },
                4 => FromHost::Signal { connection_id: data },
                5 => FromHost::Msi { address: gpa, data, vector: length as u32, vp },
                6 => FromHost::MmioPages { gpa, length, offset, writable: data.is_multiple_of(2) },
                7 => FromHost::Removed(Name::EventFlag(flag)),
                8 => FromHost::Removed(Name::Signal(data)),
                9 => FromHost::Removed(Name::Msi { address: gpa, data }),
                10 => FromHost::Removed(Name::Mmio { gpa }),
                _ => FromHost::MmioDone { value: gpa },
            };
            let bytes = message.emit();
            prop_assert!(bytes.len() <= MAX_BYTES);
            prop_assert_eq!(FromHost::parse(&bytes), Some(message));
        }

        #[test]
        fn messages_of_the_guest_survive(
            kind in 0u8..4, numbers in any::<(u64, u64, u32)>(), log in 0u32..4,
            payload in proptest::collection::vec(any::<u8>(), 0..=240)
        ) {
            let (gpa, value, connection_id) = numbers;
            let size = 1u8 << log;
            let gpa = gpa & !7;
            let message = match kind {
                0 => FromGuest::Post { connection_id, payload },
                1 => FromGuest::MmioRead { gpa, size },
                2 => FromGuest::MmioWrite { gpa, size, value },
                _ => FromGuest::Reset,
            };
            prop_assert_eq!(FromGuest::parse(&message.emit()), Some(message));
        }

        #[test]
        fn random_bytes_are_read_without_harm(
            kind in 0u8..16, bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let bytes = [vec![kind, 0, 0, 0], bytes].concat();
            let _ = (FromHost::parse(&bytes), FromGuest::parse(&bytes));
            let _ = (FromHost::parse(&bytes[..3]), FromGuest::parse(&bytes[..3]));
        }
    }
}
