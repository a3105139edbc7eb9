//! From an open channel to a function that is ready, and what the host says meanwhile and later.

use std::time::Duration;

use pcie_protocol::{BarIndex, Command, decode_probed_bars, header_offset};
use pcivirt_protocol::NtStatus;
use vpci_protocol::{
    AssignedResources, FunctionDescription, GuestMessage, HostMessage, InterruptGeneration,
    MessageType, ProtocolVersion, SlotNumber, reply, window,
};

use super::{
    Stop, Vsc, VscEffect, VscError, VscState, addresses,
    requests::{Pending, Purpose},
};
use crate::Outgoing;

impl Vsc {
    /// Sends a message that the host does not complete.
    pub(super) fn tell(&self, message: &GuestMessage<'_>, effects: &mut Vec<VscEffect>) {
        let mut payload = Vec::new();
        // These messages have only slots in them.
        if message.emit(&mut payload).is_ok() {
            effects.push(VscEffect::Send(Outgoing::Message { transaction: None, payload }));
        }
    }

    /// Sends a message of the bring-up, and waits for its completion.
    fn ask(
        &mut self,
        message: &GuestMessage<'_>,
        purpose: Purpose,
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        if let Err(error) = self.request(message, purpose, now, effects) {
            self.fail(error, effects);
        }
    }

    pub(super) fn ask_version(
        &mut self,
        version: ProtocolVersion,
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        self.version = version;
        self.state = VscState::Negotiating(version);
        let message = GuestMessage::QueryProtocolVersion { version: version.to_wire() };
        self.ask(&message, Purpose::Version, now, effects);
    }

    fn ask_relations(&mut self, now: Duration, effects: &mut Vec<VscEffect>) {
        self.relations_deadline = Some(now.saturating_add(self.config.timeout));
        self.tell(&GuestMessage::QueryBusRelations, effects);
    }

    fn enumerate(&mut self, now: Duration, effects: &mut Vec<VscEffect>) {
        self.state = VscState::Enumerating;
        self.ask_relations(now, effects);
    }

    // ---- answers

    /// The answer to a message of the bring-up.
    pub(super) fn step(
        &mut self,
        purpose: Purpose,
        message: MessageType,
        payload: &[u8],
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        let status = match reply::status(payload) {
            Ok(status) => status,
            Err(source) => return self.fail(VscError::Answer { message, source }, effects),
        };
        match (purpose, status.is_success()) {
            (Purpose::Version, true) => self.enumerate(now, effects),
            (Purpose::Version, false) if status == NtStatus::REVISION_MISMATCH => {
                let lower = ProtocolVersion::ALL.into_iter().rev();
                match lower.into_iter().find(|version| *version < self.version) {
                    Some(version) => self.ask_version(version, now, effects),
                    None => {
                        let (lowest, highest) = (self.version, self.config.max_version);
                        self.fail(VscError::NoVersion { lowest, highest }, effects);
                    }
                }
            }
            (Purpose::Requirements, true) => match reply::ResourceRequirements::parse(payload) {
                Ok(requirements) => {
                    if let Err(error) = self.place_bars(&requirements) {
                        return self.fail(error, effects);
                    }
                    match self.in_d0 {
                        true => self.assign(now, effects),
                        false => self.enter_d0(now, effects),
                    }
                }
                Err(source) => self.fail(VscError::Answer { message, source }, effects),
            },
            (Purpose::D0Entry, true) => {
                self.in_d0 = true;
                self.assign(now, effects);
            }
            (Purpose::D0Entry, false) if !self.retried => {
                self.retried = true;
                self.leave_d0(VscState::LeavingD0, Purpose::LeaveToRetry, now, effects);
            }
            (Purpose::LeaveToRetry, true) => {
                self.forget_function();
                self.enumerate(now, effects);
            }
            (Purpose::Assigned, true) => {
                self.state = VscState::Running;
                self.enable_function(effects);
                effects.extend(self.function().map(VscEffect::Ready));
            }
            (Purpose::ShutDown, _) => self.shut_down_done(effects),
            (Purpose::Driver(..), _) => {}
            (_, false) => self.fail(VscError::Refused { message, status }, effects),
        }
    }

    fn place_bars(&mut self, requirements: &reply::ResourceRequirements) -> Result<(), VscError> {
        self.bars = decode_probed_bars(&requirements.probed_bars)?;
        self.places = addresses::place(&self.bars, &self.config.aperture)?;
        Ok(())
    }

    fn enter_d0(&mut self, now: Duration, effects: &mut Vec<VscEffect>) {
        self.state = VscState::EnteringD0;
        let message = GuestMessage::FdoD0Entry { mmio_start: self.config.window };
        self.ask(&message, Purpose::D0Entry, now, effects);
    }

    /// RELEASE_RESOURCES and FDO_D0_EXIT.
    fn leave_d0(
        &mut self,
        state: VscState,
        purpose: Purpose,
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        self.state = state;
        if let Some(FunctionDescription { slot, .. }) = self.function {
            self.tell(&GuestMessage::ReleaseResources { slot }, effects);
        }
        self.in_d0 = false;
        self.ask(&GuestMessage::FdoD0Exit, purpose, now, effects);
    }

    fn assign(&mut self, now: Duration, effects: &mut Vec<VscEffect>) {
        let Some(FunctionDescription { slot, .. }) = self.function else { return };
        self.state = VscState::Assigning;
        // As Linux: the second form for all that came after it.
        let generation = self.version.interrupts().min(InterruptGeneration::V2);
        let empty = AssignedResources::empty(generation, slot);
        self.ask(&GuestMessage::AssignedResources(empty), Purpose::Assigned, now, effects);
    }

    fn config_write(&self, register: u16, data: &[u8], effects: &mut Vec<VscEffect>) {
        let address = window::CONFIG_SPACE + u64::from(register);
        let address = self.config.window.saturating_add(address);
        effects.push(VscEffect::MmioWrite { address, data: data.to_vec() });
    }

    fn write_command(&self, command: Command, effects: &mut Vec<VscEffect>) {
        self.config_write(header_offset::COMMAND, &u16::from(command).to_le_bytes(), effects);
    }

    /// Selects the function, writes its BARs with memory off, and turns memory and bus mastering on.
    fn enable_function(&self, effects: &mut Vec<VscEffect>) {
        let Some(FunctionDescription { slot, .. }) = self.function else { return };
        effects.push(VscEffect::MmioWrite {
            address: self.config.window.saturating_add(window::SLOT_SELECT),
            data: slot.to_wire().to_le_bytes().to_vec(),
        });
        self.write_command(Command::new(), effects);
        for index in BarIndex::ALL {
            let (Some(bar), Some(place)) = (index.of(&self.bars), index.of(&self.places)) else {
                continue;
            };
            let register = header_offset::BARS + 4 * u16::from(index.get());
            let (low, high) = bar.registers(place.address);
            self.config_write(register, &low.to_le_bytes(), effects);
            if let Some(high) = high {
                self.config_write(register + 4, &high.to_le_bytes(), effects);
            }
        }
        let on = Command::new().with_memory_space_enable(true).with_bus_master_enable(true);
        self.write_command(on, effects);
    }

    // ---- messages

    pub(super) fn message(
        &mut self,
        transaction: Option<u64>,
        payload: &[u8],
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        let listens = !matches!(
            self.state,
            VscState::Closed
                | VscState::Negotiating(_)
                | VscState::ShuttingDown
                | VscState::Failed(_)
        );
        let message = HostMessage::parse(payload).ok().filter(|_| listens);
        match message {
            Some(HostMessage::BusRelations { functions, .. }) => {
                self.relations(&functions, now, effects);
            }
            Some(HostMessage::Eject { slot }) if self.is_mine(slot) => self.eject(now, effects),
            Some(HostMessage::InvalidateBlock { slot, block_mask })
                if self.is_mine(slot) && self.state == VscState::Running =>
            {
                effects.push(VscEffect::BlocksInvalidated(block_mask));
            }
            Some(HostMessage::QueryStop { slot }) => {
                return self.query_stop(slot, transaction, now, effects);
            }
            Some(HostMessage::ReEnable { slot }) if self.is_mine(slot) => self.resume(effects),
            Some(HostMessage::InvalidateBus | HostMessage::InvalidateDevice { .. }) => {
                self.ask_relations(now, effects);
            }
            // EJECT of a function that is not used is answered at once.
            Some(HostMessage::Eject { slot }) => {
                self.tell(&GuestMessage::EjectComplete { slot }, effects);
            }
            _ => {}
        }
        self.complete(transaction, NtStatus::SUCCESS, effects);
    }

    pub(super) fn complete(
        &self,
        transaction: Option<u64>,
        status: NtStatus,
        effects: &mut Vec<VscEffect>,
    ) {
        if let Some(transaction) = transaction {
            let mut payload = Vec::new();
            reply::emit_status(status, &mut payload);
            effects.push(VscEffect::Send(Outgoing::Completion { transaction, payload }));
        }
    }

    fn is_mine(&self, slot: SlotNumber) -> bool {
        self.function.is_some_and(|function| function.slot == slot)
    }

    /// The functions of the bus: of several, the first is used.
    fn relations(
        &mut self,
        functions: &[FunctionDescription],
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        self.relations_deadline = None;
        if let Some(known) = self.function {
            // Where it is near to may be said or not.
            let same = |other: &FunctionDescription| {
                (known.slot, known.serial, known.ids) == (other.slot, other.serial, other.ids)
            };
            if functions.iter().any(same) {
                return;
            }
            self.function_gone(effects);
            self.forget_function();
        }
        let waits = matches!(self.state, VscState::Enumerating | VscState::Empty);
        match functions.first() {
            Some(function) if waits => {
                let slot = function.slot;
                self.function = Some(*function);
                self.state = VscState::Sizing;
                let message = GuestMessage::CurrentResourceRequirements { slot };
                self.ask(&message, Purpose::Requirements, now, effects);
            }
            None if waits => self.state = VscState::Empty,
            _ => {}
        }
    }

    /// Tells the driver that its function is not there any more, and ends its requests.
    pub(super) fn function_gone(&mut self, effects: &mut Vec<VscEffect>) {
        self.abort_driver_requests(effects);
        if self.function.is_some() && self.state == VscState::Running {
            effects.push(VscEffect::Gone);
        }
    }

    /// The bus goes on without its function.
    pub(super) fn forget_function(&mut self) {
        self.function = None;
        self.ejecting = None;
        self.stop = Stop::Running;
        self.pending.retain(|_, pending| pending.purpose == Purpose::ShutDown);
        if !matches!(self.state, VscState::ShuttingDown) {
            self.state = VscState::Empty;
        }
    }

    // ---- ejection

    fn eject(&mut self, now: Duration, effects: &mut Vec<VscEffect>) {
        if self.state != VscState::Running {
            self.send_eject_complete(effects);
            return self.forget_function();
        }
        if self.ejecting.is_none() {
            self.ejecting = Some(now.saturating_add(self.config.eject_grace));
            effects.push(VscEffect::EjectRequested);
        }
    }

    /// The driver has let go of the function, as [`VscEffect::EjectRequested`] asked. What it still waits for ends.
    pub fn ejected(&mut self) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        if self.ejecting.take().is_some() {
            self.abort_driver_requests(&mut effects);
            self.write_command(Command::new(), &mut effects);
            self.send_eject_complete(&mut effects);
            self.forget_function();
        }
        effects
    }

    pub(super) fn send_eject_complete(&self, effects: &mut Vec<VscEffect>) {
        if let Some(FunctionDescription { slot, .. }) = self.function {
            self.tell(&GuestMessage::EjectComplete { slot }, effects);
        }
    }

    // ---- stop

    fn query_stop(
        &mut self,
        slot: SlotNumber,
        transaction: Option<u64>,
        now: Duration,
        effects: &mut Vec<VscEffect>,
    ) {
        let uses = self.state == VscState::Running && self.is_mine(slot);
        if !uses || self.stop != Stop::Running {
            return self.complete(transaction, NtStatus::SUCCESS, effects);
        }
        let deadline = now.saturating_add(self.config.timeout);
        self.stop = Stop::Asked { transaction, deadline };
        effects.push(VscEffect::StopRequested);
    }

    /// Whether the driver has stopped using the function, as [`VscEffect::StopRequested`] asked.
    pub fn stop_answer(&mut self, stopped: bool) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        self.answer_stop(stopped, &mut effects);
        effects
    }

    pub(super) fn answer_stop(&mut self, stopped: bool, effects: &mut Vec<VscEffect>) {
        let Stop::Asked { transaction, .. } = self.stop else { return };
        match (stopped, self.function) {
            (false, Some(FunctionDescription { slot, .. })) => {
                self.stop = Stop::Running;
                self.tell(&GuestMessage::QueryStopFailed { slot }, effects);
            }
            _ => {
                self.stop = Stop::Stopped;
                self.complete(transaction, NtStatus::SUCCESS, effects);
            }
        }
    }

    fn resume(&mut self, effects: &mut Vec<VscEffect>) {
        if self.state == VscState::Running && self.stop == Stop::Stopped {
            self.stop = Stop::Running;
            self.enable_function(effects);
            effects.push(VscEffect::Resumed);
        }
    }

    // ---- the end

    /// Gives everything back: the bus goes off, then [`VscEffect::CloseChannel`] says that the channel can be closed.
    /// The driver must not be using the function any more.
    pub fn shut_down(&mut self, now: Duration) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        match self.state {
            VscState::Closed | VscState::Failed(_) | VscState::ShuttingDown => {}
            VscState::Negotiating(_) => self.shut_down_done(&mut effects),
            _ => {
                self.abort_driver_requests(&mut effects);
                self.leave_d0(VscState::ShuttingDown, Purpose::ShutDown, now, &mut effects);
                self.relations_deadline = None;
                self.forget_function();
            }
        }
        effects
    }

    pub(super) fn shut_down_done(&mut self, effects: &mut Vec<VscEffect>) {
        self.forget();
        self.state = VscState::Closed;
        effects.push(VscEffect::CloseChannel);
    }

    /// No answer came in time.
    pub(super) fn expired(&mut self, pending: Pending, effects: &mut Vec<VscEffect>) {
        match pending.purpose {
            Purpose::Driver(request, _) => {
                let result = Err(NtStatus::IO_TIMEOUT);
                effects.push(VscEffect::Completed { request, result });
            }
            Purpose::ShutDown => self.shut_down_done(effects),
            _ => self.fail(VscError::TimedOut(pending.message), effects),
        }
    }
}
