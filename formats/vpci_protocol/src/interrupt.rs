//! Interrupts: what a guest asks for, and the message that it gets for it.

use zerocopy::IntoBytes;

use crate::{
    MessageType, VpciProtocolError,
    wire::{self, prefix},
};

/// Vectors of one interrupt request at most (multi-message MSI).
pub const MAX_VECTORS_PER_REQUEST: u16 = 32;

/// Processors of one interrupt request at most, in generations 2 and 3.
pub const MAX_PROCESSORS: usize = 32;

/// How an interrupt finds its processor among those of the request.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum DeliveryMode {
    /// To all of them.
    Fixed,
    /// To that of the lowest priority.
    LowestPriority,
}

/// The generations of interrupt messages.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum InterruptGeneration {
    /// Versions 1.0 and 1.1: 8-bit vector, a mask of processors 0 to 63.
    V1,
    /// From version 1.2: 8-bit vector, up to 32 processors by number.
    V2,
    /// From version 1.4: 32-bit vector, up to 32 processors by number.
    V3,
}

impl InterruptGeneration {
    /// All three.
    pub const ALL: [Self; 3] = [Self::V1, Self::V2, Self::V3];

    /// The type of its CREATE_INTERRUPT message.
    pub const fn create(self) -> MessageType {
        match self {
            Self::V1 => MessageType::CreateInterrupt,
            Self::V2 => MessageType::CreateInterrupt2,
            Self::V3 => MessageType::CreateInterrupt3,
        }
    }

    /// Bytes of its descriptor as it is read.
    pub(crate) const fn descriptor_size(self) -> usize {
        match self {
            Self::V1 => size_of::<wire::Msi1>(),
            Self::V2 => size_of::<wire::Msi2>(),
            Self::V3 => size_of::<wire::Msi3>(),
        }
    }

    /// Bytes of an entry of ASSIGNED_RESOURCES.
    pub(crate) const fn entry_size(self) -> usize {
        match self {
            Self::V1 => 16,
            Self::V2 => 72,
            Self::V3 => 80,
        }
    }
}

/// An interrupt that a guest wants to have from a function.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct InterruptRequest {
    /// The (first) vector; with more than one, they follow each other.
    pub vector: u32,
    /// How its processor is found.
    pub delivery_mode: DeliveryMode,
    /// How many vectors, 1 to 32.
    pub vector_count: u16,
    /// The processors, by VP index. Not sorted; a guest may name none.
    pub processors: Vec<u16>,
}

const MSI: &str = "MSI descriptor";

impl InterruptRequest {
    /// A request for one vector on one processor.
    pub fn single(vector: u32, processor: u16) -> Self {
        Self {
            vector,
            delivery_mode: DeliveryMode::Fixed,
            vector_count: 1,
            processors: vec![processor],
        }
    }

    /// Parses a descriptor; `None` for one that asks for nothing (no vectors).
    pub(crate) fn parse(
        generation: InterruptGeneration,
        bytes: &[u8],
    ) -> Result<Option<Self>, VpciProtocolError> {
        let (vector, mode, count, processors) = match generation {
            InterruptGeneration::V1 => {
                let wire: wire::Msi1 = prefix(MSI, bytes)?;
                let mask = wire.processor_mask.get();
                let processors = (0..64).filter(|vp| mask >> vp & 1 != 0).collect();
                (wire.vector.into(), wire.delivery_mode, wire.vector_count.get(), processors)
            }
            InterruptGeneration::V2 => {
                let wire: wire::Msi2 = prefix(MSI, bytes)?;
                let processors = processors(wire.processor_count.get(), &wire.processors)?;
                (wire.vector.into(), wire.delivery_mode, wire.vector_count.get(), processors)
            }
            InterruptGeneration::V3 => {
                let wire: wire::Msi3 = prefix(MSI, bytes)?;
                let processors = processors(wire.processor_count.get(), &wire.processors)?;
                (wire.vector.get(), wire.delivery_mode, wire.vector_count.get(), processors)
            }
        };
        if count == 0 {
            return Ok(None);
        }
        if count > MAX_VECTORS_PER_REQUEST {
            return Err(VpciProtocolError::field(MSI, "vector_count", count));
        }
        let delivery_mode = match mode {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            other => return Err(VpciProtocolError::field(MSI, "delivery_mode", other)),
        };
        Ok(Some(Self { vector, delivery_mode, vector_count: count, processors }))
    }

    /// Writes the descriptor of `generation`.
    pub(crate) fn emit(
        &self,
        generation: InterruptGeneration,
        out: &mut Vec<u8>,
    ) -> Result<(), VpciProtocolError> {
        if self.vector_count == 0 || self.vector_count > MAX_VECTORS_PER_REQUEST {
            return Err(VpciProtocolError::field(MSI, "vector_count", self.vector_count));
        }
        let short_vector = || {
            u8::try_from(self.vector)
                .map_err(|_| VpciProtocolError::field(MSI, "vector", self.vector))
        };
        let delivery_mode = match self.delivery_mode {
            DeliveryMode::Fixed => 0,
            DeliveryMode::LowestPriority => 1,
        };
        let vector_count = self.vector_count.into();
        match generation {
            InterruptGeneration::V1 => {
                let mut mask = 0u64;
                for vp in &self.processors {
                    mask |= 1u64.checked_shl((*vp).into()).ok_or(VpciProtocolError::field(
                        MSI,
                        "processor",
                        *vp,
                    ))?;
                }
                let wire = wire::Msi1 {
                    vector: short_vector()?,
                    delivery_mode,
                    vector_count,
                    reserved: 0.into(),
                    processor_mask: mask.into(),
                };
                out.extend_from_slice(wire.as_bytes());
            }
            InterruptGeneration::V2 => {
                let (processor_count, processors) = self.processor_array()?;
                let wire = wire::Msi2 {
                    vector: short_vector()?,
                    delivery_mode,
                    vector_count,
                    processor_count: processor_count.into(),
                    processors,
                };
                out.extend_from_slice(wire.as_bytes());
            }
            InterruptGeneration::V3 => {
                let (processor_count, processors) = self.processor_array()?;
                let wire = wire::Msi3 {
                    vector: self.vector.into(),
                    delivery_mode,
                    reserved: 0,
                    vector_count,
                    processor_count: processor_count.into(),
                    processors,
                };
                out.extend_from_slice(wire.as_bytes());
            }
        }
        Ok(())
    }

    fn processor_array(
        &self,
    ) -> Result<(u16, [zerocopy::little_endian::U16; MAX_PROCESSORS]), VpciProtocolError> {
        let mut array = [0.into(); MAX_PROCESSORS];
        let count = self.processors.len();
        let short = u16::try_from(count).ok().filter(|_| count <= MAX_PROCESSORS);
        let short = short.ok_or(VpciProtocolError::field(MSI, "processor_count", count as u64))?;
        for (entry, vp) in array.iter_mut().zip(&self.processors) {
            *entry = (*vp).into();
        }
        Ok((short, array))
    }
}

fn processors(
    count: u16,
    array: &[zerocopy::little_endian::U16; MAX_PROCESSORS],
) -> Result<Vec<u16>, VpciProtocolError> {
    let used = array.get(..usize::from(count));
    let used = used.ok_or(VpciProtocolError::field(MSI, "processor_count", count))?;
    Ok(used.iter().map(|vp| vp.get()).collect())
}

/// The message that a function sends for an interrupt, as the host translated it (SPEC-VMBUS §4.4).
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct TranslatedMsi {
    /// Where the function writes.
    pub address: u64,
    /// What it writes; for message n of a multi-message MSI it adds n.
    pub data: u32,
    /// How many messages.
    pub message_count: u16,
}

impl TranslatedMsi {
    pub(crate) fn parse(wire: &wire::Translated) -> Self {
        Self {
            address: wire.address.get(),
            data: wire.data.get(),
            message_count: wire.message_count.get(),
        }
    }

    pub(crate) fn wire(self) -> wire::Translated {
        wire::Translated {
            reserved: 0.into(),
            message_count: self.message_count.into(),
            data: self.data.into(),
            address: self.address.into(),
        }
    }
}
