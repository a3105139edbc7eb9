//! Resources: BARs as Windows describes them.

use pcie_protocol::Bars;
use zerocopy::IntoBytes;

use crate::{
    VpciProtocolError,
    wire::{self, prefix},
};

const NULL: u8 = 0;
const MEMORY: u8 = 3;
const LARGE_MEMORY: u8 = 7;
/// Type 7: the length counts units of 2^8, 2^16, 2^32 bytes.
const LARGE_40: u16 = 0x0200;
const LARGE_48: u16 = 0x0400;
const LARGE_64: u16 = 0x0800;
const LARGE: u16 = LARGE_40 | LARGE_48 | LARGE_64;

/// Memory that a guest assigned to a BAR.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct MemoryResource {
    /// Guest physical address.
    pub address: u64,
    /// Bytes; not 0.
    pub length: u64,
}

impl MemoryResource {
    /// Parses a descriptor; `None` for one that says nothing.
    pub(crate) fn parse(wire: &wire::Mmio) -> Result<Option<Self>, VpciProtocolError> {
        const WHAT: &str = "MMIO resource descriptor";
        let length = u64::from(wire.length.get());
        let length = match wire.kind {
            NULL => return Ok(None),
            MEMORY => length,
            LARGE_MEMORY => match wire.flags.get() & LARGE {
                LARGE_40 => length << 8,
                LARGE_48 => length << 16,
                LARGE_64 => length << 32,
                _ => return Err(VpciProtocolError::field(WHAT, "flags", wire.flags.get())),
            },
            other => return Err(VpciProtocolError::field(WHAT, "type", other)),
        };
        let address = wire.address.get();
        if length == 0 {
            return Ok(None);
        }
        if address.checked_add(length - 1).is_none() {
            return Err(VpciProtocolError::field(WHAT, "address", address));
        }
        Ok(Some(Self { address, length }))
    }

    /// The descriptor. A length that no unit can express is a mistake of the caller, and an error.
    pub(crate) fn wire(this: Option<Self>) -> Result<wire::Mmio, VpciProtocolError> {
        let Some(Self { address, length }) = this else {
            return Ok(wire::Mmio {
                kind: NULL,
                share: 0,
                flags: 0.into(),
                address: 0.into(),
                length: 0.into(),
                padding: 0.into(),
            });
        };
        let units = [
            (0, MEMORY, 0),
            (8, LARGE_MEMORY, LARGE_40),
            (16, LARGE_MEMORY, LARGE_48),
            (32, LARGE_MEMORY, LARGE_64),
        ];
        let found = units.into_iter().find_map(|(shift, kind, flags)| {
            let scaled = u32::try_from(length >> shift).ok()?;
            (u64::from(scaled) << shift == length).then_some((scaled, kind, flags))
        });
        let (scaled, kind, flags) =
            found.ok_or(VpciProtocolError::field("MMIO resource descriptor", "length", length))?;
        Ok(wire::Mmio {
            kind,
            share: 0,
            flags: flags.into(),
            address: address.into(),
            length: scaled.into(),
            padding: 0.into(),
        })
    }

    pub(crate) fn parse_all(
        wire: &[wire::Mmio; 6],
    ) -> Result<Bars<Option<Self>>, VpciProtocolError> {
        let [b0, b1, b2, b3, b4, b5] = wire;
        Ok([
            Self::parse(b0)?,
            Self::parse(b1)?,
            Self::parse(b2)?,
            Self::parse(b3)?,
            Self::parse(b4)?,
            Self::parse(b5)?,
        ])
    }

    pub(crate) fn wire_all(
        bars: &Bars<Option<Self>>,
    ) -> Result<[wire::Mmio; 6], VpciProtocolError> {
        let [b0, b1, b2, b3, b4, b5] = *bars;
        Ok([
            Self::wire(b0)?,
            Self::wire(b1)?,
            Self::wire(b2)?,
            Self::wire(b3)?,
            Self::wire(b4)?,
            Self::wire(b5)?,
        ])
    }
}

/// The answer to GET_RESOURCES: which memory was assigned to each BAR. All zero while nothing was.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct ResourceList {
    /// The memory, once resources were assigned.
    pub assigned: Option<Bars<Option<MemoryResource>>>,
}

impl ResourceList {
    /// Parses the payload of the completion.
    ///
    /// # Errors
    /// [`VpciProtocolError`] if it is too short, of another version, or holds a malformed descriptor.
    pub fn parse(payload: &[u8]) -> Result<Self, VpciProtocolError> {
        const WHAT: &str = "reply to GET_RESOURCES";
        let wire: wire::ResourceList = prefix(WHAT, payload)?;
        match (wire.version.get(), wire.count.get()) {
            (0, 0) => Ok(Self { assigned: None }),
            (1, 6) => Ok(Self { assigned: Some(MemoryResource::parse_all(&wire.descriptors)?) }),
            (1, count) => Err(VpciProtocolError::field(WHAT, "count", count)),
            (version, _) => Err(VpciProtocolError::field(WHAT, "version", version)),
        }
    }

    /// Writes the payload of the completion.
    ///
    /// # Errors
    /// [`VpciProtocolError::Field`] for a length that a descriptor cannot say.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), VpciProtocolError> {
        let version = u16::from(self.assigned.is_some());
        let wire = wire::ResourceList {
            version: version.into(),
            revision: version.into(),
            count: (u32::from(version) * 6).into(),
            descriptors: MemoryResource::wire_all(&self.assigned.unwrap_or_default())?,
        };
        out.extend_from_slice(wire.as_bytes());
        Ok(())
    }
}
