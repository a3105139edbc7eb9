//! What a guest sends.

use pcie_protocol::Bars;
use pcivirt_protocol::{DevicePowerState, DevicePowerStateRaw};
use zerocopy::IntoBytes;

use crate::{
    InterruptGeneration, InterruptRequest, MAX_BLOCK_SIZE, MAX_MSI_RESOURCES, MemoryResource,
    MessageType, SlotNumber, TranslatedMsi, VpciProtocolError,
    wire::{self, prefix},
};

/// The generation of an ASSIGNED_RESOURCES message is that of the interrupts in it.
pub type ResourcesGeneration = InterruptGeneration;

/// The resources of a function as its guest has assigned them.
///
/// Guests that work by configuration space (Linux) send it with nothing in it.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct AssignedResources {
    /// Which form the interrupts have.
    pub generation: ResourcesGeneration,
    /// The function.
    pub slot: SlotNumber,
    /// The memory of each BAR.
    pub memory: Bars<Option<MemoryResource>>,
    /// The interrupts; `None` for an entry that asks for nothing.
    pub interrupts: Vec<Option<InterruptRequest>>,
}

/// A message from a guest (SPEC-VMBUS §4.3). Those marked *tx* ask for a completion.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum GuestMessage<'a> {
    /// *tx*: does the host speak this version? Any number.
    QueryProtocolVersion {
        /// Major above minor; see [`ProtocolVersion`](crate::ProtocolVersion).
        version: u32,
    },
    /// Asks for bus relations.
    QueryBusRelations,
    /// *tx*: the bus is to be on.
    FdoD0Entry {
        /// Guest physical address of the configuration window.
        mmio_start: u64,
    },
    /// *tx*: the bus is to be off.
    FdoD0Exit,
    /// *tx*: asks for the probed BARs.
    CurrentResourceRequirements {
        /// The function.
        slot: SlotNumber,
    },
    /// *tx*: asks for the resources that were assigned.
    GetResources {
        /// The function.
        slot: SlotNumber,
    },
    /// *tx*: the resources of a function.
    AssignedResources(AssignedResources),
    /// The resources of a function are free again. Linux asks for no completion.
    ReleaseResources {
        /// The function.
        slot: SlotNumber,
    },
    /// *tx*: the power state of a function.
    DevicePowerStateChange {
        /// The function.
        slot: SlotNumber,
        /// The state.
        state: DevicePowerState,
    },
    /// *tx*: an interrupt is to be made.
    CreateInterrupt {
        /// The form of the message.
        generation: InterruptGeneration,
        /// The function.
        slot: SlotNumber,
        /// What is wanted.
        interrupt: InterruptRequest,
    },
    /// An interrupt is not needed any more. Linux asks for no completion.
    DeleteInterrupt {
        /// Sent as DELETE_INTERRUPT2.
        second_form: bool,
        /// The function.
        slot: SlotNumber,
        /// What was handed out.
        interrupt: TranslatedMsi,
    },
    /// *tx*: reads a configuration block.
    ReadBlock {
        /// The function.
        slot: SlotNumber,
        /// Which block: a number that only the PF and VF drivers understand.
        block_id: u32,
        /// Bytes wanted, 1 to 128.
        length: u8,
    },
    /// *tx*: writes a configuration block.
    WriteBlock {
        /// The function.
        slot: SlotNumber,
        /// Which block.
        block_id: u32,
        /// 1 to 128 bytes.
        data: &'a [u8],
    },
    /// The function has been let go, as EJECT asked.
    EjectComplete {
        /// The function.
        slot: SlotNumber,
    },
    /// *tx*: resets a function. From version 1.5.
    ResetDevice {
        /// The function.
        slot: SlotNumber,
    },
    /// The function that QUERY_STOP asked for cannot be stopped. What follows the type is not published; that a
    /// slot does is this project's choice.
    QueryStopFailed {
        /// The function.
        slot: SlotNumber,
    },
    /// *tx*: a command to the device's security manager. Carried, not understood.
    TdispCommand {
        /// The function.
        slot: SlotNumber,
        /// The command.
        data: &'a [u8],
    },
}

fn slot(message: MessageType, slot: u32) -> Result<SlotNumber, VpciProtocolError> {
    SlotNumber::from_wire(slot).ok_or(VpciProtocolError::field(message.name(), "slot", slot))
}

fn slot_only(message: MessageType, payload: &[u8]) -> Result<SlotNumber, VpciProtocolError> {
    let wire: wire::SlotMessage = prefix(message.name(), payload)?;
    slot(message, wire.slot.get())
}

impl<'a> GuestMessage<'a> {
    /// The type of message that a payload begins with, whoever may send it.
    ///
    /// # Errors
    /// [`VpciProtocolError::NoType`] or [`VpciProtocolError::UnknownType`].
    pub fn message_type(payload: &[u8]) -> Result<MessageType, VpciProtocolError> {
        let number = payload.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        let number = number.ok_or(VpciProtocolError::NoType { length: payload.len() })?;
        MessageType::from_wire(number).ok_or(VpciProtocolError::UnknownType(number))
    }

    /// Parses the payload of a packet. Bytes after the message are not looked at.
    ///
    /// # Errors
    /// [`VpciProtocolError`]: to be answered with [`STATUS_BAD_DATA`](crate::STATUS_BAD_DATA).
    pub fn parse(payload: &'a [u8]) -> Result<Self, VpciProtocolError> {
        use MessageType as M;
        let message = Self::message_type(payload)?;
        Ok(match message {
            M::QueryProtocolVersion => {
                let wire: wire::NumberMessage = prefix(message.name(), payload)?;
                Self::QueryProtocolVersion { version: wire.number.get() }
            }
            M::QueryBusRelations => Self::QueryBusRelations,
            M::FdoD0Entry => {
                let wire: wire::FdoD0Entry = prefix(message.name(), payload)?;
                Self::FdoD0Entry { mmio_start: wire.mmio_start.get() }
            }
            M::FdoD0Exit => Self::FdoD0Exit,
            M::CurrentResourceRequirements => {
                Self::CurrentResourceRequirements { slot: slot_only(message, payload)? }
            }
            M::GetResources => Self::GetResources { slot: slot_only(message, payload)? },
            M::AssignedResources => assigned(message, InterruptGeneration::V1, payload)?,
            M::AssignedResources2 => assigned(message, InterruptGeneration::V2, payload)?,
            M::AssignedResources3 => assigned(message, InterruptGeneration::V3, payload)?,
            M::ReleaseResources => Self::ReleaseResources { slot: slot_only(message, payload)? },
            M::DevicePowerStateChange => {
                let wire: wire::PowerStateHead = prefix(message.name(), payload)?;
                let state = wire.state.get();
                Self::DevicePowerStateChange {
                    slot: slot(message, wire.slot.get())?,
                    state: DevicePowerState::try_from(DevicePowerStateRaw(state))
                        .map_err(|_| VpciProtocolError::field(message.name(), "state", state))?,
                }
            }
            M::CreateInterrupt => create(message, InterruptGeneration::V1, payload)?,
            M::CreateInterrupt2 => create(message, InterruptGeneration::V2, payload)?,
            M::CreateInterrupt3 => create(message, InterruptGeneration::V3, payload)?,
            M::DeleteInterrupt | M::DeleteInterrupt2 => {
                let wire: wire::DeleteInterrupt = prefix(message.name(), payload)?;
                Self::DeleteInterrupt {
                    second_form: message == M::DeleteInterrupt2,
                    slot: slot(message, wire.slot.get())?,
                    interrupt: TranslatedMsi::parse(&wire.interrupt),
                }
            }
            M::ReadBlock => {
                let wire: wire::BlockAccess = prefix(message.name(), payload)?;
                Self::ReadBlock {
                    slot: slot(message, wire.slot.get())?,
                    block_id: wire.block_id.get(),
                    length: block_length(message, wire.byte_count.get())?,
                }
            }
            M::WriteBlock => {
                let wire: wire::BlockAccess = prefix(message.name(), payload)?;
                let length = block_length(message, wire.byte_count.get())?.into();
                let data = payload.get(size_of::<wire::BlockAccess>()..).unwrap_or_default();
                let data = data.get(..length).ok_or(VpciProtocolError::Truncated {
                    what: message.name(),
                    needed: size_of::<wire::BlockAccess>() + length,
                    length: payload.len(),
                })?;
                Self::WriteBlock {
                    slot: slot(message, wire.slot.get())?,
                    block_id: wire.block_id.get(),
                    data,
                }
            }
            M::EjectComplete => Self::EjectComplete { slot: slot_only(message, payload)? },
            M::ResetDevice => Self::ResetDevice { slot: slot_only(message, payload)? },
            M::QueryStopFailed => Self::QueryStopFailed { slot: slot_only(message, payload)? },
            M::TdispCommand => {
                let (slot_number, data) = tdisp(message.name(), payload)?;
                Self::TdispCommand { slot: slot(message, slot_number)?, data }
            }
            M::BusRelations
            | M::BusRelations2
            | M::InvalidateDevice
            | M::InvalidateBus
            | M::Eject
            | M::QueryStop
            | M::ReEnable
            | M::InvalidateBlock => return Err(VpciProtocolError::WrongDirection(message)),
        })
    }

    /// The message's type.
    pub fn kind(&self) -> MessageType {
        match self {
            Self::QueryProtocolVersion { .. } => MessageType::QueryProtocolVersion,
            Self::QueryBusRelations => MessageType::QueryBusRelations,
            Self::FdoD0Entry { .. } => MessageType::FdoD0Entry,
            Self::FdoD0Exit => MessageType::FdoD0Exit,
            Self::CurrentResourceRequirements { .. } => MessageType::CurrentResourceRequirements,
            Self::GetResources { .. } => MessageType::GetResources,
            Self::AssignedResources(resources) => match resources.generation {
                InterruptGeneration::V1 => MessageType::AssignedResources,
                InterruptGeneration::V2 => MessageType::AssignedResources2,
                InterruptGeneration::V3 => MessageType::AssignedResources3,
            },
            Self::ReleaseResources { .. } => MessageType::ReleaseResources,
            Self::DevicePowerStateChange { .. } => MessageType::DevicePowerStateChange,
            Self::CreateInterrupt { generation, .. } => generation.create(),
            Self::DeleteInterrupt { second_form: false, .. } => MessageType::DeleteInterrupt,
            Self::DeleteInterrupt { second_form: true, .. } => MessageType::DeleteInterrupt2,
            Self::ReadBlock { .. } => MessageType::ReadBlock,
            Self::WriteBlock { .. } => MessageType::WriteBlock,
            Self::EjectComplete { .. } => MessageType::EjectComplete,
            Self::ResetDevice { .. } => MessageType::ResetDevice,
            Self::QueryStopFailed { .. } => MessageType::QueryStopFailed,
            Self::TdispCommand { .. } => MessageType::TdispCommand,
        }
    }

    /// The function that the message is about, if it is about one.
    pub fn slot(&self) -> Option<SlotNumber> {
        match self {
            Self::QueryProtocolVersion { .. }
            | Self::QueryBusRelations
            | Self::FdoD0Entry { .. }
            | Self::FdoD0Exit => None,
            Self::AssignedResources(resources) => Some(resources.slot),
            Self::CurrentResourceRequirements { slot }
            | Self::GetResources { slot }
            | Self::ReleaseResources { slot }
            | Self::DevicePowerStateChange { slot, .. }
            | Self::CreateInterrupt { slot, .. }
            | Self::DeleteInterrupt { slot, .. }
            | Self::ReadBlock { slot, .. }
            | Self::WriteBlock { slot, .. }
            | Self::EjectComplete { slot }
            | Self::ResetDevice { slot }
            | Self::QueryStopFailed { slot }
            | Self::TdispCommand { slot, .. } => Some(*slot),
        }
    }

    /// Writes the payload of the packet.
    ///
    /// # Errors
    /// [`VpciProtocolError::Field`] for what the message cannot say: too many interrupts, processors or bytes, a
    /// vector too large for the generation. Nothing is written then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), VpciProtocolError> {
        let start = out.len();
        self.emit_unguarded(out).inspect_err(|_| out.truncate(start))
    }

    fn emit_unguarded(&self, out: &mut Vec<u8>) -> Result<(), VpciProtocolError> {
        let message = self.kind().to_wire().into();
        match self {
            Self::QueryProtocolVersion { version } => {
                let wire = wire::NumberMessage { message, number: (*version).into() };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::QueryBusRelations | Self::FdoD0Exit => {
                out.extend_from_slice(message.as_bytes());
            }
            Self::FdoD0Entry { mmio_start } => {
                let mmio_start = (*mmio_start).into();
                let wire = wire::FdoD0Entry { message, padding: 0.into(), mmio_start };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::GetResources { slot } => {
                let slot = slot.to_wire().into();
                let wire = wire::GetResources { message, slot, reserved: [0.into(); 3] };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::CurrentResourceRequirements { slot }
            | Self::ReleaseResources { slot }
            | Self::EjectComplete { slot }
            | Self::ResetDevice { slot }
            | Self::QueryStopFailed { slot } => {
                let wire = wire::SlotMessage { message, slot: slot.to_wire().into() };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::AssignedResources(resources) => resources.emit(message, out)?,
            Self::DevicePowerStateChange { slot, state } => {
                let wire = wire::PowerStateChange {
                    message,
                    slot: slot.to_wire().into(),
                    state: DevicePowerStateRaw::from(*state).0.into(),
                    reserved: 0.into(),
                };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::CreateInterrupt { generation, slot, interrupt } => {
                let wire = wire::SlotMessage { message, slot: slot.to_wire().into() };
                out.extend_from_slice(wire.as_bytes());
                interrupt.emit(*generation, out)?;
                if *generation != InterruptGeneration::V1 {
                    // The reserved word at the end of both.
                    out.extend_from_slice(&[0; 2]);
                }
            }
            Self::DeleteInterrupt { slot, interrupt, .. } => {
                let slot = slot.to_wire().into();
                let wire = wire::DeleteInterrupt { message, slot, interrupt: interrupt.wire() };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::ReadBlock { slot, block_id, length } => {
                block_length(self.kind(), (*length).into())?;
                let wire = wire::BlockAccess {
                    message,
                    block_id: (*block_id).into(),
                    slot: slot.to_wire().into(),
                    byte_count: u32::from(*length).into(),
                };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::WriteBlock { slot, block_id, data } => {
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                block_length(self.kind(), length)?;
                let wire = wire::BlockAccess {
                    message,
                    block_id: (*block_id).into(),
                    slot: slot.to_wire().into(),
                    byte_count: length.into(),
                };
                out.extend_from_slice(wire.as_bytes());
                out.extend_from_slice(data);
            }
            Self::TdispCommand { slot, data } => {
                let slot = slot.to_wire().into();
                let data_length = (data.len() as u64).into();
                let wire = wire::Tdisp { message_or_status: message, slot, data_length };
                out.extend_from_slice(wire.as_bytes());
                out.extend_from_slice(data);
            }
        }
        Ok(())
    }
}

impl AssignedResources {
    /// What a guest sends that works by configuration space: nothing.
    pub fn empty(generation: ResourcesGeneration, slot: SlotNumber) -> Self {
        Self { generation, slot, memory: [None; 6], interrupts: Vec::new() }
    }

    fn emit(
        &self,
        message: zerocopy::little_endian::U32,
        out: &mut Vec<u8>,
    ) -> Result<(), VpciProtocolError> {
        let wire = wire::Assigned {
            message_or_status: message,
            slot: self.slot.to_wire().into(),
            descriptors: MemoryResource::wire_all(&self.memory)?,
            msi_count: msi_count(self.interrupts.len())?.into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(wire.as_bytes());
        for interrupt in &self.interrupts {
            let end = out.len() + self.generation.entry_size();
            if let Some(interrupt) = interrupt {
                interrupt.emit(self.generation, out)?;
            }
            out.resize(end, 0);
        }
        Ok(())
    }
}

/// The number of interrupts as a message says it.
pub(crate) fn msi_count(count: usize) -> Result<u32, VpciProtocolError> {
    let short = u32::try_from(count).ok().filter(|_| count <= MAX_MSI_RESOURCES);
    short.ok_or(VpciProtocolError::field("ASSIGNED_RESOURCES", "msi_count", count as u64))
}

fn block_length(message: MessageType, count: u32) -> Result<u8, VpciProtocolError> {
    let length = u8::try_from(count).ok();
    length
        .filter(|length| (1..=MAX_BLOCK_SIZE).contains(&usize::from(*length)))
        .ok_or(VpciProtocolError::field(message.name(), "byte_count", count))
}

fn create(
    message: MessageType,
    generation: InterruptGeneration,
    payload: &[u8],
) -> Result<GuestMessage<'_>, VpciProtocolError> {
    let slot = slot_only(message, payload)?;
    let descriptor = payload.get(size_of::<wire::SlotMessage>()..).unwrap_or_default();
    let interrupt = InterruptRequest::parse(generation, descriptor)?
        .ok_or(VpciProtocolError::field(message.name(), "vector_count", 0u32))?;
    Ok(GuestMessage::CreateInterrupt { generation, slot, interrupt })
}

/// The parts of ASSIGNED_RESOURCES and of its reply: the fixed part, and one slice for each interrupt.
pub(crate) fn assigned_parts<'a>(
    what: &'static str,
    entry_size: usize,
    payload: &'a [u8],
) -> Result<(wire::Assigned, std::slice::ChunksExact<'a, u8>), VpciProtocolError> {
    let wire: wire::Assigned = prefix(what, payload)?;
    let count = wire.msi_count.get();
    let needed = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_MSI_RESOURCES)
        .map(|count| count * entry_size)
        .ok_or(VpciProtocolError::field(what, "msi_count", count))?;
    let entries = payload.get(size_of::<wire::Assigned>()..).unwrap_or_default();
    let entries = entries.get(..needed).ok_or(VpciProtocolError::Truncated {
        what,
        needed: size_of::<wire::Assigned>() + needed,
        length: payload.len(),
    })?;
    Ok((wire, entries.chunks_exact(entry_size)))
}

fn assigned(
    message: MessageType,
    generation: ResourcesGeneration,
    payload: &[u8],
) -> Result<GuestMessage<'_>, VpciProtocolError> {
    let (wire, entries) = assigned_parts(message.name(), generation.entry_size(), payload)?;
    Ok(GuestMessage::AssignedResources(AssignedResources {
        generation,
        slot: slot(message, wire.slot.get())?,
        memory: MemoryResource::parse_all(&wire.descriptors)?,
        interrupts: entries
            .map(|entry| InterruptRequest::parse(generation, entry))
            .collect::<Result<_, _>>()?,
    }))
}

/// Slot and data of TDISP_COMMAND and of its reply.
pub(crate) fn tdisp<'a>(
    what: &'static str,
    payload: &'a [u8],
) -> Result<(u32, &'a [u8]), VpciProtocolError> {
    let wire: wire::Tdisp = prefix(what, payload)?;
    let data = payload.get(size_of::<wire::Tdisp>()..).unwrap_or_default();
    let length = wire.data_length.get();
    let data = usize::try_from(length).ok().and_then(|length| data.get(..length));
    let data = data.ok_or(VpciProtocolError::field(what, "data_length", length))?;
    Ok((wire.slot.get(), data))
}

const _: () = {
    assert!(InterruptGeneration::V1.descriptor_size() <= InterruptGeneration::V1.entry_size());
    assert!(InterruptGeneration::V2.descriptor_size() <= InterruptGeneration::V2.entry_size());
    assert!(InterruptGeneration::V3.descriptor_size() <= InterruptGeneration::V3.entry_size());
};
