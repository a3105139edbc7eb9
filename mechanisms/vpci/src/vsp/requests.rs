//! The guest's messages.

use std::time::Duration;

use pcivirt_protocol::NtStatus;
use vpci_protocol::{
    AssignedResources, GuestMessage, InterruptGeneration, ProtocolVersion, ResourceList,
    STATUS_BAD_DATA, SlotNumber, reply,
};

use super::{
    BusState, ChannelFault, Effect, PfRequest, Presence, Stop, StopAnswer, Vsp,
    backchannel::PfAnswer,
};

/// Whether a message makes no sense without a completion, since all it does is to ask.
fn asks(message: &GuestMessage<'_>) -> bool {
    !matches!(
        message,
        GuestMessage::QueryBusRelations
            | GuestMessage::FdoD0Exit
            | GuestMessage::ReleaseResources { .. }
            | GuestMessage::DeleteInterrupt { .. }
            | GuestMessage::EjectComplete { .. }
            | GuestMessage::QueryStopFailed { .. }
    )
}

/// Whether a message needs the bus to be on.
fn needs_d0(message: &GuestMessage<'_>) -> bool {
    matches!(
        message,
        GuestMessage::AssignedResources(_)
            | GuestMessage::CreateInterrupt { .. }
            | GuestMessage::DevicePowerStateChange { .. }
            | GuestMessage::ReadBlock { .. }
            | GuestMessage::WriteBlock { .. }
            | GuestMessage::ResetDevice { .. }
            | GuestMessage::TdispCommand { .. }
    )
}

/// Whether `version` has interrupts of `generation`.
fn speaks(version: ProtocolVersion, generation: InterruptGeneration) -> bool {
    generation <= version.interrupts()
}

impl Vsp {
    pub(super) fn message(
        &mut self,
        transaction: Option<u64>,
        payload: &[u8],
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let version = match self.bus {
            BusState::Closed | BusState::Failed(_) => {
                self.counters.wrong_state += 1;
                return;
            }
            BusState::Negotiating => return self.negotiate(transaction, payload, effects),
            BusState::Negotiated(version) | BusState::D0 { version, .. } => version,
        };
        let message = match GuestMessage::parse(payload) {
            Ok(message) if transaction.is_some() || !asks(&message) => message,
            _ => {
                self.counters.malformed += 1;
                return self.answer(transaction, STATUS_BAD_DATA, effects);
            }
        };
        if let Some(slot) = message.slot()
            && !self.has(slot)
        {
            self.counters.wrong_slot += 1;
            return self.answer(transaction, STATUS_BAD_DATA, effects);
        }
        if needs_d0(&message) && !matches!(self.bus, BusState::D0 { .. }) {
            self.counters.wrong_state += 1;
            return self.answer(transaction, NtStatus::INVALID_DEVICE_STATE, effects);
        }
        self.dispatch(transaction, version, message, now, effects);
    }

    fn has(&self, slot: SlotNumber) -> bool {
        slot == self.config.slot && !matches!(self.presence, Presence::Removed(_))
    }

    /// The first message of a channel.
    fn negotiate(&mut self, transaction: Option<u64>, payload: &[u8], effects: &mut Vec<Effect>) {
        let asked = match GuestMessage::parse(payload) {
            Ok(GuestMessage::QueryProtocolVersion { version }) if transaction.is_some() => version,
            _ => {
                let kind = GuestMessage::message_type(payload).ok();
                return self.fail(ChannelFault::BeforeVersion(kind), effects);
            }
        };
        let spoken =
            ProtocolVersion::from_wire(asked).filter(|version| *version <= self.config.max_version);
        let (status, version) = match spoken {
            Some(version) => {
                self.bus = BusState::Negotiated(version);
                (NtStatus::SUCCESS, version.to_wire())
            }
            None => (NtStatus::REVISION_MISMATCH, self.config.max_version.to_wire()),
        };
        let mut reply = Vec::new();
        reply::ProtocolVersionReply { status, version }.emit(&mut reply);
        self.complete(transaction, reply, effects);
    }

    fn fail(&mut self, fault: ChannelFault, effects: &mut Vec<Effect>) {
        self.pf.clear();
        self.power_off(effects);
        self.bus = BusState::Failed(fault);
        effects.push(Effect::Fail(fault));
    }

    fn dispatch(
        &mut self,
        transaction: Option<u64>,
        version: ProtocolVersion,
        message: GuestMessage<'_>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            GuestMessage::QueryProtocolVersion { .. } => {
                self.fail(ChannelFault::VersionAgain, effects);
            }
            GuestMessage::QueryBusRelations => {
                self.send_bus_relations(version, effects);
                self.complete(transaction, Vec::new(), effects);
            }
            GuestMessage::FdoD0Entry { mmio_start } => {
                let status = self.d0_entry(version, mmio_start, effects);
                self.answer(transaction, status, effects);
                self.send_invalidations(effects);
            }
            GuestMessage::FdoD0Exit => {
                self.power_off(effects);
                self.answer(transaction, NtStatus::SUCCESS, effects);
            }
            GuestMessage::CurrentResourceRequirements { .. } => {
                let mut reply = Vec::new();
                let probed_bars = self.config.probed_bars;
                reply::ResourceRequirements { probed_bars }.emit(&mut reply);
                self.complete(transaction, reply, effects);
            }
            GuestMessage::GetResources { .. } => {
                let mut reply = Vec::new();
                match (ResourceList { assigned: self.assigned }).emit(&mut reply) {
                    Ok(()) => self.complete(transaction, reply, effects),
                    Err(_) => self.answer(transaction, NtStatus::UNSUCCESSFUL, effects),
                }
            }
            GuestMessage::AssignedResources(resources) => {
                match self.assign(version, resources, effects) {
                    Ok(reply) => self.complete(transaction, reply, effects),
                    Err(status) => self.answer(transaction, status, effects),
                }
            }
            GuestMessage::ReleaseResources { .. } => {
                self.release_resources(effects);
                self.answer(transaction, NtStatus::SUCCESS, effects);
            }
            GuestMessage::DevicePowerStateChange { state, .. } => {
                let request = PfRequest::SetPowerState { state, wake: false };
                self.ask_pf(request, transaction, PfAnswer::Power(state), now, effects);
            }
            GuestMessage::CreateInterrupt { generation, interrupt, .. } => {
                let created = match speaks(version, generation) {
                    true => self.interrupts.create(generation, interrupt),
                    false => Err(STATUS_BAD_DATA),
                };
                match created {
                    Ok(interrupt) => {
                        self.update_routes(effects);
                        let mut reply = Vec::new();
                        reply::InterruptCreated { interrupt }.emit(&mut reply);
                        self.complete(transaction, reply, effects);
                    }
                    Err(status) => {
                        self.counters.refused_interrupts += 1;
                        self.answer(transaction, status, effects);
                    }
                }
            }
            GuestMessage::DeleteInterrupt { interrupt, .. } => {
                let status = NtStatus::of(&self.interrupts.delete(interrupt));
                match status.is_success() {
                    true => self.update_routes(effects),
                    false => self.counters.refused_interrupts += 1,
                }
                self.answer(transaction, status, effects);
            }
            GuestMessage::ReadBlock { block_id, length, .. } => {
                let request = PfRequest::ReadBlock { block_id, length };
                self.ask_pf(request, transaction, PfAnswer::Block { length }, now, effects);
            }
            GuestMessage::WriteBlock { block_id, data, .. } => {
                let request = PfRequest::WriteBlock { block_id, data: data.to_vec() };
                self.ask_pf(request, transaction, PfAnswer::Status, now, effects);
            }
            GuestMessage::ResetDevice { .. } if version.has_reset_device() => {
                self.function_reset();
                self.update_bars(effects);
                self.update_routes(effects);
                self.ask_pf(PfRequest::Reset, transaction, PfAnswer::Status, now, effects);
            }
            // No device here has a security manager.
            GuestMessage::ResetDevice { .. } | GuestMessage::TdispCommand { .. } => {
                self.answer(transaction, NtStatus::NOT_SUPPORTED, effects);
            }
            GuestMessage::EjectComplete { .. } => {
                let status = match self.presence {
                    Presence::Ejecting { .. } => NtStatus::SUCCESS,
                    Presence::Present | Presence::Removed(_) => STATUS_BAD_DATA,
                };
                self.answer(transaction, status, effects);
                match status.is_success() {
                    true => self.ejected(now, effects),
                    false => self.counters.wrong_state += 1,
                }
            }
            GuestMessage::QueryStopFailed { .. } => {
                let asked = matches!(self.stop, Stop::Asked { .. });
                let status = if asked { NtStatus::SUCCESS } else { STATUS_BAD_DATA };
                self.answer(transaction, status, effects);
                match asked {
                    true => self.stop_answered(StopAnswer::Refused, effects),
                    false => self.counters.wrong_state += 1,
                }
            }
        }
    }

    fn d0_entry(
        &mut self,
        version: ProtocolVersion,
        window: u64,
        effects: &mut Vec<Effect>,
    ) -> NtStatus {
        if let BusState::D0 { .. } = self.bus {
            self.counters.wrong_state += 1;
            return NtStatus::INVALID_DEVICE_STATE;
        }
        if !self.window_fits(window) {
            self.counters.refused_addresses += 1;
            return STATUS_BAD_DATA;
        }
        self.bus = BusState::D0 { version, window };
        self.selected_slot = 0;
        effects.push(Effect::MapWindow { address: window });
        self.send_bus_relations(version, effects);
        NtStatus::SUCCESS
    }

    fn assign(
        &mut self,
        version: ProtocolVersion,
        resources: AssignedResources,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<u8>, NtStatus> {
        let AssignedResources { generation, slot, memory, interrupts } = resources;
        if !speaks(version, generation) {
            self.counters.malformed += 1;
            return Err(STATUS_BAD_DATA);
        }
        self.check_assigned(&memory).inspect_err(|_| self.counters.refused_addresses += 1)?;
        let mut created = Vec::new();
        for interrupt in interrupts {
            let one = interrupt.map(|request| self.interrupts.create(generation, request));
            match one.transpose() {
                Ok(one) => created.push(one),
                Err(status) => {
                    self.counters.refused_interrupts += 1;
                    for interrupt in created.into_iter().flatten() {
                        // It was made just now.
                        let _ = self.interrupts.delete(interrupt);
                    }
                    return Err(status);
                }
            }
        }
        self.write_assigned(&memory, effects);
        self.update_routes(effects);
        self.assigned = Some(memory);
        let reply = reply::ResourcesAssigned { generation, slot, memory, interrupts: created };
        let mut payload = Vec::new();
        // As many interrupts as came in a message go into one.
        reply.emit(&mut payload).map_err(|_| NtStatus::UNSUCCESSFUL)?;
        Ok(payload)
    }

    pub(super) fn completion(
        &mut self,
        transaction: u64,
        payload: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        match self.stop {
            Stop::Asked { transaction: asked, .. } if asked == transaction => {
                // An empty completion says yes.
                let status = reply::status(payload).unwrap_or(NtStatus::SUCCESS);
                let answer = match status.is_success() {
                    true => StopAnswer::Allowed,
                    false => StopAnswer::Refused,
                };
                self.stop_answered(answer, effects);
            }
            _ => self.counters.unexpected_completions += 1,
        }
    }
}
