//! Access to a VF's configuration space and to the configuration blocks of the PF/VF backchannel
//! (SPEC-NDIS-SRIOV §5.14–§5.17, §15).

use zerocopy::little_endian::{U16, U32};

use crate::VfId;
use crate::object::{
    FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::vf::vf_id;

/// Declares one of the four structures that carry data at an offset of the same buffer.
macro_rules! transfer {
    (
        $(#[$wire_doc:meta])* $wire:ident = $name:literal,
        $(#[$doc:meta])* $type:ident, $(#[$where_doc:meta])* $where:ident,
        $data:ident
    ) => {
        wire_structure! {
            $(#[$wire_doc])*
            $wire = $name, revisions [20], sizeof 20 {
                /// [`VfId`].
                4 vf_id: U16,
                /// Padding.
                6 padding: [u8; 2],
                $(#[$where_doc])*
                8 $where: U32,
                /// Bytes to transfer.
                12 length: U32,
                /// Where the data start, bytes from the start of the structure.
                16 buffer_offset: U32,
            }
        }

        transfer!(@$data $wire, $(#[$doc])* $type, $(#[$where_doc])* $where);
    };
    (@read $wire:ident, $(#[$doc:meta])* $type:ident, $(#[$where_doc:meta])* $where:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
        pub struct $type {
            /// The VF.
            pub vf_id: VfId,
            $(#[$where_doc])*
            pub $where: u32,
            /// Bytes to read.
            pub length: u32,
            /// Where in the buffer the data go, bytes from the start of the structure.
            pub buffer_offset: u32,
        }

        impl FixedStructure for $type {
            type Wire = $wire;

            fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
                Ok(Self {
                    vf_id: vf_id::<$wire>(wire.vf_id)?,
                    $where: wire.$where.get(),
                    length: wire.length.get(),
                    buffer_offset: buffer_offset::<$wire>(wire.buffer_offset)?,
                })
            }

            fn to_wire(&self) -> Self::Wire {
                $wire {
                    header: Default::default(),
                    vf_id: U16::new(self.vf_id.get()),
                    padding: [0; 2],
                    $where: U32::new(self.$where),
                    length: U32::new(self.length),
                    buffer_offset: U32::new(self.buffer_offset),
                }
            }
        }

        impl $type {
            /// Bytes that the buffer must have to hold the structure and the data.
            #[must_use]
            pub fn buffer_size(&self) -> u64 {
                u64::from(self.buffer_offset) + u64::from(self.length)
            }

            /// The answer: the structure and, at the offset, `data`.
            #[must_use]
            pub fn emit_with(&self, data: &[u8]) -> Vec<u8> {
                let mut bytes = self.emit();
                bytes.resize(usize::try_from(self.buffer_offset).unwrap_or(bytes.len()), 0);
                bytes.extend_from_slice(data);
                bytes
            }

            /// The data in an answer to this request; `None` if the answer is too short.
            #[must_use]
            pub fn data<'a>(&self, answer: &'a [u8]) -> Option<&'a [u8]> {
                let start = usize::try_from(self.buffer_offset).ok()?;
                let end = usize::try_from(self.buffer_size()).ok()?;
                answer.get(start..end)
            }
        }
    };
    (@write $wire:ident, $(#[$doc:meta])* $type:ident, $(#[$where_doc:meta])* $where:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, PartialEq, Hash)]
        pub struct $type {
            /// The VF.
            pub vf_id: VfId,
            $(#[$where_doc])*
            pub $where: u32,
            /// The bytes to write.
            pub data: Vec<u8>,
        }

        impl NdisStructure for $type {
            fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
                let (wire, _) = $wire::read(bytes)?;
                Ok(Self {
                    vf_id: vf_id::<$wire>(wire.vf_id)?,
                    $where: wire.$where.get(),
                    data: written::<$wire>(bytes, wire.buffer_offset, wire.length)?.to_vec(),
                })
            }

            fn emit(&self) -> Vec<u8> {
                let size = $wire::SIZEOF;
                let mut bytes = $wire {
                    header: Default::default(),
                    vf_id: U16::new(self.vf_id.get()),
                    padding: [0; 2],
                    $where: U32::new(self.$where),
                    length: U32::new(u32::try_from(self.data.len()).unwrap_or(u32::MAX)),
                    buffer_offset: U32::new(u32::from(size)),
                }
                .write(1);
                bytes.extend_from_slice(&self.data);
                bytes
            }
        }
    };
}

/// Checks a BufferOffset: data may not lie over the structure.
fn buffer_offset<W: WireStructure>(raw: U32) -> Result<u32, ParseError> {
    if raw.get() < u32::from(W::SIZEOF) {
        return Err(member::<W>("BufferOffset", raw));
    }
    Ok(raw.get())
}

/// The data of a write request.
fn written<W: WireStructure>(bytes: &[u8], offset: U32, length: U32) -> Result<&[u8], ParseError> {
    let offset = u64::from(buffer_offset::<W>(offset)?);
    let end = offset + u64::from(length.get());
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    range.and_then(|(start, end)| bytes.get(start..end)).ok_or(ParseError::TooShort {
        structure: W::NAME,
        needed: usize::try_from(end).unwrap_or(usize::MAX),
        got: bytes.len(),
    })
}

transfer!(
    /// NDIS_SRIOV_READ_VF_CONFIG_SPACE_PARAMETERS.
    NdisSriovReadVfConfigSpaceParameters = "NDIS_SRIOV_READ_VF_CONFIG_SPACE_PARAMETERS",
    /// A read from a VF's configuration space.
    SriovReadVfConfigSpace,
    /// Where in the configuration space, bytes.
    offset,
    read
);
transfer!(
    /// NDIS_SRIOV_WRITE_VF_CONFIG_SPACE_PARAMETERS.
    NdisSriovWriteVfConfigSpaceParameters = "NDIS_SRIOV_WRITE_VF_CONFIG_SPACE_PARAMETERS",
    /// A write to a VF's configuration space.
    SriovWriteVfConfigSpace,
    /// Where in the configuration space, bytes.
    offset,
    write
);
transfer!(
    /// NDIS_SRIOV_READ_VF_CONFIG_BLOCK_PARAMETERS.
    NdisSriovReadVfConfigBlockParameters = "NDIS_SRIOV_READ_VF_CONFIG_BLOCK_PARAMETERS",
    /// A read of a configuration block.
    SriovReadVfConfigBlock,
    /// The block, numbered by the PF and VF drivers.
    block_id,
    read
);
transfer!(
    /// NDIS_SRIOV_WRITE_VF_CONFIG_BLOCK_PARAMETERS.
    NdisSriovWriteVfConfigBlockParameters = "NDIS_SRIOV_WRITE_VF_CONFIG_BLOCK_PARAMETERS",
    /// A write of a configuration block.
    SriovWriteVfConfigBlock,
    /// The block, numbered by the PF and VF drivers.
    block_id,
    write
);
