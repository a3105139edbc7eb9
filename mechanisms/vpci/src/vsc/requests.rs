//! What the function's driver asks of the bus.

use std::time::Duration;

use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{
    GuestMessage, InterruptRequest, MessageType, SlotNumber, TranslatedMsi, reply,
};

use super::{Vsc, VscEffect, VscError, VscState};
use crate::Outgoing;

/// Names a request of the driver's.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct RequestId(u64);

/// What came of a request.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum VscReply {
    /// It was done.
    Done,
    /// An interrupt was made: what the function is to send.
    Interrupt(TranslatedMsi),
    /// The bytes of a configuration block; as many as were asked for, or fewer if the host has fewer.
    Block(Vec<u8>),
}

/// A message that the host is to complete.
#[derive(Copy, Clone, Debug)]
pub(super) struct Pending {
    pub(super) purpose: Purpose,
    pub(super) message: MessageType,
    pub(super) deadline: Duration,
}

/// Who waits for the completion.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Purpose {
    Version,
    Requirements,
    D0Entry,
    LeaveToRetry,
    Assigned,
    ShutDown,
    Driver(RequestId, Wanted),
}

/// What the driver waits for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Wanted {
    Done,
    Interrupt,
    Block { length: u8 },
}

/// A request that was sent, and what is to be done for it.
pub type Requested = Result<(RequestId, Vec<VscEffect>), VscError>;

impl Vsc {
    /// Sends a message that the host is to complete.
    pub(super) fn request(
        &mut self,
        message: &GuestMessage<'_>,
        purpose: Purpose,
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) -> Result<(), VscError> {
        let mut payload = Vec::new();
        message.emit(&mut payload)?;
        let transaction = self.next_transaction;
        self.next_transaction += 1;
        let deadline = now.saturating_add(self.config.timeout);
        self.pending.insert(transaction, Pending { purpose, message: message.kind(), deadline });
        let transaction = Some(transaction);
        effects.push(VscEffect::Send(Outgoing::Message { transaction, payload }));
        Ok(())
    }

    fn ready_slot(&self) -> Result<SlotNumber, VscError> {
        let function = self.function.filter(|_| self.state == VscState::Running);
        function.map(|function| function.slot).ok_or(VscError::NotReady)
    }

    fn drivers_request(
        &mut self,
        message: &GuestMessage<'_>,
        wanted: Wanted,
        now: Duration,
    ) -> Requested {
        let mut effects = Vec::new();
        let id = RequestId(self.next_transaction);
        self.request(message, Purpose::Driver(id, wanted), now, &mut effects)?;
        Ok((id, effects))
    }

    /// Makes an interrupt, in the generation of the version.
    ///
    /// # Errors
    /// [`VscError::NotReady`]; [`VscError::Request`] for what the generation cannot say.
    pub fn create_interrupt(&mut self, interrupt: InterruptRequest, now: Duration) -> Requested {
        let (slot, generation) = (self.ready_slot()?, self.version.interrupts());
        let message = GuestMessage::CreateInterrupt { generation, slot, interrupt };
        self.drivers_request(&message, Wanted::Interrupt, now)
    }

    /// Gives an interrupt back. As in Linux, nothing is answered.
    ///
    /// # Errors
    /// [`VscError::NotReady`].
    pub fn delete_interrupt(
        &mut self,
        interrupt: TranslatedMsi,
    ) -> Result<Vec<VscEffect>, VscError> {
        let slot = self.ready_slot()?;
        let mut effects = Vec::new();
        let message = GuestMessage::DeleteInterrupt { second_form: false, slot, interrupt };
        self.tell(&message, &mut effects);
        Ok(effects)
    }

    /// Reads `length` bytes, 1 to 128, of a configuration block.
    ///
    /// # Errors
    /// [`VscError::NotReady`]; [`VscError::Request`] for another length.
    pub fn read_block(&mut self, block_id: u32, length: u8, now: Duration) -> Requested {
        let slot = self.ready_slot()?;
        let message = GuestMessage::ReadBlock { slot, block_id, length };
        self.drivers_request(&message, Wanted::Block { length }, now)
    }

    /// Writes 1 to 128 bytes to a configuration block.
    ///
    /// # Errors
    /// [`VscError::NotReady`]; [`VscError::Request`] for another length.
    pub fn write_block(&mut self, block_id: u32, data: &[u8], now: Duration) -> Requested {
        let slot = self.ready_slot()?;
        let message = GuestMessage::WriteBlock { slot, block_id, data };
        self.drivers_request(&message, Wanted::Done, now)
    }

    /// Puts the function into a power state.
    ///
    /// # Errors
    /// [`VscError::NotReady`].
    pub fn set_power_state(&mut self, state: DevicePowerState, now: Duration) -> Requested {
        let slot = self.ready_slot()?;
        let message = GuestMessage::DevicePowerStateChange { slot, state };
        self.drivers_request(&message, Wanted::Done, now)
    }

    /// Resets the function. Its BARs are nowhere after that, and it is not enabled; before version 1.5 the host
    /// refuses.
    ///
    /// # Errors
    /// [`VscError::NotReady`].
    pub fn reset_device(&mut self, now: Duration) -> Requested {
        let slot = self.ready_slot()?;
        self.drivers_request(&GuestMessage::ResetDevice { slot }, Wanted::Done, now)
    }

    /// The host has completed something.
    pub(super) fn completed(
        &mut self,
        pending: Pending,
        payload: &[u8],
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        let Purpose::Driver(request, wanted) = pending.purpose else {
            return self.step(pending.purpose, pending.message, payload, now, effects);
        };
        let result = match reply::status(payload) {
            Ok(status) => status.into_result().and_then(|()| {
                let parsed = match wanted {
                    Wanted::Done => Ok(VscReply::Done),
                    Wanted::Interrupt => reply::InterruptCreated::parse(payload)
                        .map(|created| VscReply::Interrupt(created.interrupt)),
                    Wanted::Block { length } => {
                        reply::block(payload, length).map(|data| VscReply::Block(data.to_vec()))
                    }
                };
                parsed.map_err(|_| NtStatus::UNSUCCESSFUL)
            }),
            Err(_) => Err(NtStatus::UNSUCCESSFUL),
        };
        effects.push(VscEffect::Completed { request, result });
    }

    /// Ends what the driver waits for: the function goes.
    pub(super) fn abort_driver_requests(&mut self, effects: &mut Vec<VscEffect>) {
        let is_drivers =
            |(_, pending): &(u64, Pending)| matches!(pending.purpose, Purpose::Driver(..));
        let pending = std::mem::take(&mut self.pending);
        let (drivers, others): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_drivers);
        self.pending = others.into_iter().collect();
        for (_, pending) in drivers {
            if let Purpose::Driver(request, _) = pending.purpose {
                let result = Err(NtStatus::DEVICE_REMOVED);
                effects.push(VscEffect::Completed { request, result });
            }
        }
    }
}
