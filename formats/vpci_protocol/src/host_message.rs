//! What a host sends.

use zerocopy::{FromBytes, IntoBytes};

use crate::{
    FunctionDescription, GuestMessage, MessageType, SlotNumber, VpciProtocolError,
    wire::{self, prefix},
};

/// Functions of a bus at most: as many as there are slot numbers.
pub const MAX_FUNCTIONS: usize = 256;

/// A message from a host (SPEC-VMBUS §4.3). Only QUERY_STOP asks for a completion.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum HostMessage {
    /// All functions of the bus: one that is missing is gone.
    BusRelations {
        /// Sent as BUS_RELATIONS2, which says NUMA nodes. Without, those of `functions` are not sent.
        with_numa: bool,
        /// The functions.
        functions: Vec<FunctionDescription>,
    },
    /// Let a function go, then answer with EJECT_COMPLETE.
    Eject {
        /// The function.
        slot: SlotNumber,
    },
    /// Configuration blocks have to be read again.
    InvalidateBlock {
        /// The function.
        slot: SlotNumber,
        /// Bit n: block n.
        block_mask: u64,
    },
    /// May the function be stopped? The completion says yes, QUERY_STOP_FAILED no. What follows the type is not
    /// published; that a slot does is this project's choice.
    QueryStop {
        /// The function.
        slot: SlotNumber,
    },
    /// The function that was stopped is back. The slot is this project's choice.
    ReEnable {
        /// The function.
        slot: SlotNumber,
    },
    /// Look at a function again. The slot is this project's choice.
    InvalidateDevice {
        /// The function.
        slot: SlotNumber,
    },
    /// Ask for the bus relations again.
    InvalidateBus,
}

impl HostMessage {
    /// Parses the payload of a packet. Bytes after the message are not looked at.
    ///
    /// # Errors
    /// [`VpciProtocolError`].
    pub fn parse(payload: &[u8]) -> Result<Self, VpciProtocolError> {
        use MessageType as M;
        let message = GuestMessage::message_type(payload)?;
        let slot = || {
            let wire: wire::SlotMessage = prefix(message.name(), payload)?;
            let slot = wire.slot.get();
            SlotNumber::from_wire(slot).ok_or(VpciProtocolError::field(
                message.name(),
                "slot",
                slot,
            ))
        };
        Ok(match message {
            M::BusRelations => Self::BusRelations {
                with_numa: false,
                functions: functions(message, payload, FunctionDescription::parse)?,
            },
            M::BusRelations2 => Self::BusRelations {
                with_numa: true,
                functions: functions(message, payload, FunctionDescription::parse2)?,
            },
            M::Eject => Self::Eject { slot: slot()? },
            M::InvalidateBlock => {
                let wire: wire::InvalidateBlock = prefix(message.name(), payload)?;
                Self::InvalidateBlock { slot: slot()?, block_mask: wire.block_mask.get() }
            }
            M::QueryStop => Self::QueryStop { slot: slot()? },
            M::ReEnable => Self::ReEnable { slot: slot()? },
            M::InvalidateDevice => Self::InvalidateDevice { slot: slot()? },
            M::InvalidateBus => Self::InvalidateBus,
            _ => return Err(VpciProtocolError::WrongDirection(message)),
        })
    }

    /// The message's type.
    pub fn kind(&self) -> MessageType {
        match self {
            Self::BusRelations { with_numa: false, .. } => MessageType::BusRelations,
            Self::BusRelations { with_numa: true, .. } => MessageType::BusRelations2,
            Self::Eject { .. } => MessageType::Eject,
            Self::InvalidateBlock { .. } => MessageType::InvalidateBlock,
            Self::QueryStop { .. } => MessageType::QueryStop,
            Self::ReEnable { .. } => MessageType::ReEnable,
            Self::InvalidateDevice { .. } => MessageType::InvalidateDevice,
            Self::InvalidateBus => MessageType::InvalidateBus,
        }
    }

    /// Writes the payload of the packet.
    ///
    /// # Errors
    /// [`VpciProtocolError::Field`] for more than [`MAX_FUNCTIONS`] functions.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), VpciProtocolError> {
        let message = self.kind().to_wire().into();
        match self {
            Self::BusRelations { with_numa, functions } => {
                let count = functions.len();
                let number = u32::try_from(count).ok().filter(|_| count <= MAX_FUNCTIONS);
                let number = number.ok_or(VpciProtocolError::field(
                    self.kind().name(),
                    "count",
                    count as u64,
                ))?;
                let wire = wire::NumberMessage { message, number: number.into() };
                out.extend_from_slice(wire.as_bytes());
                for function in functions {
                    match with_numa {
                        false => out.extend_from_slice(function.wire().as_bytes()),
                        true => out.extend_from_slice(function.wire2().as_bytes()),
                    }
                }
            }
            Self::InvalidateBlock { slot, block_mask } => {
                let slot = slot.to_wire().into();
                let wire =
                    wire::InvalidateBlock { message, slot, block_mask: (*block_mask).into() };
                out.extend_from_slice(wire.as_bytes());
            }
            Self::InvalidateBus => out.extend_from_slice(message.as_bytes()),
            Self::Eject { slot }
            | Self::QueryStop { slot }
            | Self::ReEnable { slot }
            | Self::InvalidateDevice { slot } => {
                let wire = wire::SlotMessage { message, slot: slot.to_wire().into() };
                out.extend_from_slice(wire.as_bytes());
            }
        }
        Ok(())
    }
}

fn functions<T: FromBytes>(
    message: MessageType,
    payload: &[u8],
    parse: fn(&T) -> Result<FunctionDescription, VpciProtocolError>,
) -> Result<Vec<FunctionDescription>, VpciProtocolError> {
    let wire: wire::NumberMessage = prefix(message.name(), payload)?;
    let number = wire.number.get();
    let count = usize::try_from(number).ok().filter(|count| *count <= MAX_FUNCTIONS);
    let count = count.ok_or(VpciProtocolError::field(message.name(), "count", number))?;
    let mut rest = payload.get(size_of::<wire::NumberMessage>()..).unwrap_or_default();
    let mut functions = Vec::new();
    for _ in 0..count {
        functions.push(parse(&prefix(message.name(), rest)?)?);
        rest = rest.get(size_of::<T>()..).unwrap_or_default();
    }
    Ok(functions)
}
