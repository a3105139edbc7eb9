//! The payloads of completion packets. Every one but [`ResourceList`](crate::ResourceList) begins with a status; when that is a failure,
//! nothing needs to follow.

use pcie_protocol::Bars;
use pcivirt_protocol::{DevicePowerState, DevicePowerStateRaw, NtStatus};
use zerocopy::IntoBytes;

use crate::{
    InterruptGeneration, MAX_BLOCK_SIZE, MemoryResource, SlotNumber, TranslatedMsi,
    VpciProtocolError,
    guest_message::{assigned_parts, msi_count, tdisp},
    wire::{self, prefix},
};

/// The status that a completion begins with.
///
/// # Errors
/// [`VpciProtocolError::Truncated`] for fewer than 4 bytes.
pub fn status(payload: &[u8]) -> Result<NtStatus, VpciProtocolError> {
    match payload.first_chunk::<4>() {
        Some(bytes) => Ok(NtStatus(u32::from_le_bytes(*bytes))),
        None => Err(VpciProtocolError::Truncated {
            what: "completion",
            needed: 4,
            length: payload.len(),
        }),
    }
}

/// A completion that is only a status.
pub fn emit_status(status: NtStatus, out: &mut Vec<u8>) {
    out.extend_from_slice(&status.0.to_le_bytes());
}

/// The reply to QUERY_PROTOCOL_VERSION. Guests look at the status alone.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ProtocolVersionReply {
    /// STATUS_SUCCESS, or STATUS_REVISION_MISMATCH.
    pub status: NtStatus,
    /// The version.
    pub version: u32,
}

impl ProtocolVersionReply {
    /// Parses the payload.
    ///
    /// # Errors
    /// [`VpciProtocolError::Truncated`].
    pub fn parse(payload: &[u8]) -> Result<Self, VpciProtocolError> {
        let wire: wire::NumberMessage = prefix("reply to QUERY_PROTOCOL_VERSION", payload)?;
        Ok(Self { status: NtStatus(wire.message.get()), version: wire.number.get() })
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let wire =
            wire::NumberMessage { message: self.status.0.into(), number: self.version.into() };
        out.extend_from_slice(wire.as_bytes());
    }
}

/// The successful reply to CURRENT_RESOURCE_REQUIREMENTS.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ResourceRequirements {
    /// For each BAR register, what is read after all ones were written; 0 where there is none.
    pub probed_bars: Bars<u32>,
}

impl ResourceRequirements {
    /// Parses the payload.
    ///
    /// # Errors
    /// [`VpciProtocolError::Truncated`].
    pub fn parse(payload: &[u8]) -> Result<Self, VpciProtocolError> {
        let wire: wire::Requirements = prefix("reply to CURRENT_RESOURCE_REQUIREMENTS", payload)?;
        Ok(Self { probed_bars: wire.bars.map(|bar| bar.get()) })
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let status = NtStatus::SUCCESS.0.into();
        let wire = wire::Requirements { status, bars: self.probed_bars.map(Into::into) };
        out.extend_from_slice(wire.as_bytes());
    }
}

/// The successful reply to CREATE_INTERRUPT of any generation.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct InterruptCreated {
    /// What the function is to send.
    pub interrupt: TranslatedMsi,
}

impl InterruptCreated {
    /// Parses the payload.
    ///
    /// # Errors
    /// [`VpciProtocolError::Truncated`].
    pub fn parse(payload: &[u8]) -> Result<Self, VpciProtocolError> {
        let wire: wire::InterruptCreated = prefix("reply to CREATE_INTERRUPT", payload)?;
        Ok(Self { interrupt: TranslatedMsi::parse(&wire.interrupt) })
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let wire = wire::InterruptCreated {
            status: NtStatus::SUCCESS.0.into(),
            reserved: 0.into(),
            interrupt: self.interrupt.wire(),
        };
        out.extend_from_slice(wire.as_bytes());
    }
}

/// The successful reply to DEVICE_POWER_STATE_CHANGE.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct PowerStateReply {
    /// The function.
    pub slot: SlotNumber,
    /// The state it is in now.
    pub state: DevicePowerState,
}

impl PowerStateReply {
    /// Parses the payload.
    ///
    /// # Errors
    /// [`VpciProtocolError`] if it is too short, or slot or state are none.
    pub fn parse(payload: &[u8]) -> Result<Self, VpciProtocolError> {
        const WHAT: &str = "reply to DEVICE_POWER_STATE_CHANGE";
        let wire: wire::PowerStateChange = prefix(WHAT, payload)?;
        let (slot, state) = (wire.slot.get(), wire.state.get());
        Ok(Self {
            slot: SlotNumber::from_wire(slot)
                .ok_or(VpciProtocolError::field(WHAT, "slot", slot))?,
            state: DevicePowerState::try_from(DevicePowerStateRaw(state))
                .map_err(|_| VpciProtocolError::field(WHAT, "state", state))?,
        })
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let wire = wire::PowerStateChange {
            message: NtStatus::SUCCESS.0.into(),
            slot: self.slot.to_wire().into(),
            state: DevicePowerStateRaw::from(self.state).0.into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(wire.as_bytes());
    }
}

/// The successful reply to ASSIGNED_RESOURCES of any generation.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ResourcesAssigned {
    /// The generation of the request.
    pub generation: InterruptGeneration,
    /// The function.
    pub slot: SlotNumber,
    /// The memory, as it was assigned.
    pub memory: Bars<Option<MemoryResource>>,
    /// For each interrupt that was asked for, what the function is to send; `None` where nothing was.
    pub interrupts: Vec<Option<TranslatedMsi>>,
}

impl ResourcesAssigned {
    /// Bytes of an entry in the reply: the reply to the third generation has entries of the second.
    const fn entry_size(generation: InterruptGeneration) -> usize {
        match generation {
            InterruptGeneration::V1 => InterruptGeneration::V1.entry_size(),
            InterruptGeneration::V2 | InterruptGeneration::V3 => {
                InterruptGeneration::V2.entry_size()
            }
        }
    }

    /// Parses the payload of the reply to a request of `generation`.
    ///
    /// # Errors
    /// [`VpciProtocolError`].
    pub fn parse(
        generation: InterruptGeneration,
        payload: &[u8],
    ) -> Result<Self, VpciProtocolError> {
        const WHAT: &str = "reply to ASSIGNED_RESOURCES";
        let (wire, entries) = assigned_parts(WHAT, Self::entry_size(generation), payload)?;
        let slot = wire.slot.get();
        let translated = |entry| {
            let wire: wire::Translated = prefix(WHAT, entry)?;
            let interrupt = TranslatedMsi::parse(&wire);
            Ok((interrupt.message_count != 0).then_some(interrupt))
        };
        Ok(Self {
            generation,
            slot: SlotNumber::from_wire(slot)
                .ok_or(VpciProtocolError::field(WHAT, "slot", slot))?,
            memory: MemoryResource::parse_all(&wire.descriptors)?,
            interrupts: entries.map(translated).collect::<Result<_, _>>()?,
        })
    }

    /// Writes the payload.
    ///
    /// # Errors
    /// [`VpciProtocolError::Field`] for too many interrupts, or a length that a descriptor cannot say; nothing is
    /// written then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), VpciProtocolError> {
        let wire = wire::Assigned {
            message_or_status: NtStatus::SUCCESS.0.into(),
            slot: self.slot.to_wire().into(),
            descriptors: MemoryResource::wire_all(&self.memory)?,
            msi_count: msi_count(self.interrupts.len())?.into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(wire.as_bytes());
        for interrupt in &self.interrupts {
            let end = out.len() + Self::entry_size(self.generation);
            if let Some(interrupt) = interrupt {
                out.extend_from_slice(interrupt.wire().as_bytes());
            }
            out.resize(end, 0);
        }
        Ok(())
    }
}

/// The data of the successful reply to a READ_BLOCK for `length` bytes.
///
/// Packets are padded, so that more bytes may come than were asked for; a host that has fewer to give says so by
/// a shorter packet.
///
/// # Errors
/// [`VpciProtocolError::Truncated`] if there is no data at all: Linux takes that for a failure too.
pub fn block(payload: &[u8], length: u8) -> Result<&[u8], VpciProtocolError> {
    let data = payload.get(4..).unwrap_or_default();
    if data.is_empty() {
        let (needed, length) = (5, payload.len());
        return Err(VpciProtocolError::Truncated { what: "reply to READ_BLOCK", needed, length });
    }
    Ok(data.get(..usize::from(length)).unwrap_or(data))
}

/// Writes the successful reply to READ_BLOCK.
///
/// # Errors
/// [`VpciProtocolError::Field`] unless there are 1 to 128 bytes.
pub fn emit_block(data: &[u8], out: &mut Vec<u8>) -> Result<(), VpciProtocolError> {
    if data.is_empty() || data.len() > MAX_BLOCK_SIZE {
        let length = data.len() as u64;
        return Err(VpciProtocolError::field("reply to READ_BLOCK", "length", length));
    }
    emit_status(NtStatus::SUCCESS, out);
    out.extend_from_slice(data);
    Ok(())
}

/// Slot and data of the successful reply to TDISP_COMMAND.
///
/// # Errors
/// [`VpciProtocolError`].
pub fn tdisp_response(payload: &[u8]) -> Result<(SlotNumber, &[u8]), VpciProtocolError> {
    const WHAT: &str = "reply to TDISP_COMMAND";
    let (slot, data) = tdisp(WHAT, payload)?;
    Ok((SlotNumber::from_wire(slot).ok_or(VpciProtocolError::field(WHAT, "slot", slot))?, data))
}

/// Writes the successful reply to TDISP_COMMAND.
pub fn emit_tdisp_response(slot: SlotNumber, data: &[u8], out: &mut Vec<u8>) {
    let wire = wire::Tdisp {
        message_or_status: NtStatus::SUCCESS.0.into(),
        slot: slot.to_wire().into(),
        data_length: (data.len() as u64).into(),
    };
    out.extend_from_slice(wire.as_bytes());
    out.extend_from_slice(data);
}
