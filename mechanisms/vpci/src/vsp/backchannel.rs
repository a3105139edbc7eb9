//! Requests to the PF driver, and its configuration blocks (SPEC-PCIVIRT §3.6, §5.3, §5.4).

use std::time::Duration;

use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{HostMessage, reply};

use super::{BusState, Effect, PfRequest, PfRequestId, Presence, Stop, Vsp};

/// A request that the guest waits for.
#[derive(Copy, Clone, Debug)]
pub(super) struct PfPending {
    pub(super) deadline: Duration,
    transaction: u64,
    answer: PfAnswer,
}

/// How the guest is answered.
#[derive(Copy, Clone, Debug)]
pub(super) enum PfAnswer {
    Status,
    Block { length: u8 },
    Power(DevicePowerState),
}

impl Vsp {
    fn new_pf_request(&mut self) -> PfRequestId {
        self.next_pf_request += 1;
        let id = PfRequestId(self.next_pf_request);
        self.pf_outstanding.insert(id);
        id
    }

    /// Asks the PF driver for something that no message of the guest waits for.
    pub(super) fn tell_pf(&mut self, request: PfRequest, effects: &mut Vec<Effect>) {
        let id = self.new_pf_request();
        effects.push(Effect::Pf { id, request });
    }

    /// Asks the PF driver what the guest waits for.
    pub(super) fn ask_pf(
        &mut self,
        request: PfRequest,
        transaction: Option<u64>,
        answer: PfAnswer,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        if self.stop == Stop::Stopped {
            return self.answer(transaction, NtStatus::DEVICE_NOT_READY, effects);
        }
        if self.pf.len() >= self.config.max_pf_requests {
            self.counters.pf_overload += 1;
            return self.answer(transaction, NtStatus::INSUFFICIENT_RESOURCES, effects);
        }
        let id = self.new_pf_request();
        if let Some(transaction) = transaction {
            let deadline = now.saturating_add(self.config.pf_timeout);
            self.pf.insert(id, PfPending { deadline, transaction, answer });
        }
        effects.push(Effect::Pf { id, request });
    }

    /// The PF driver has done what [`Effect::Pf`] asked, or failed; `output` is what it gave. What comes too late,
    /// or was asked by a guest that is gone, changes nothing.
    pub fn pf_completed(
        &mut self,
        id: PfRequestId,
        output: Result<&[u8], NtStatus>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.pf_outstanding.remove(&id);
        let Some(PfPending { transaction, answer, .. }) = self.pf.remove(&id) else {
            return effects;
        };
        let mut payload = Vec::new();
        match (output, answer) {
            // A failure is a failure even if the PF driver says it as a success.
            (Err(status), _) => {
                let status = if status.is_success() { NtStatus::UNSUCCESSFUL } else { status };
                reply::emit_status(status, &mut payload);
            }
            (Ok(_), PfAnswer::Status) => reply::emit_status(NtStatus::SUCCESS, &mut payload),
            (Ok(data), PfAnswer::Block { length }) => {
                if data.len() != usize::from(length)
                    || reply::emit_block(data, &mut payload).is_err()
                {
                    reply::emit_status(NtStatus::UNSUCCESSFUL, &mut payload);
                }
            }
            (Ok(_), PfAnswer::Power(state)) => {
                self.power = state;
                self.update_bars(&mut effects);
                let slot = self.config.slot;
                reply::PowerStateReply { slot, state }.emit(&mut payload);
            }
        }
        self.complete(Some(transaction), payload, &mut effects);
        effects
    }

    pub(super) fn expire_pf_requests(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let is_due = |(_, pending): &(PfRequestId, PfPending)| pending.deadline <= now;
        let pending = std::mem::take(&mut self.pf);
        let (expired, others): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_due);
        self.pf = others.into_iter().collect();
        for (_, pending) in expired {
            self.counters.pf_timeouts += 1;
            self.answer(Some(pending.transaction), NtStatus::IO_TIMEOUT, effects);
        }
    }

    /// Answers what the guest waits for, now that the function goes.
    pub(super) fn abort_pf_requests(&mut self, effects: &mut Vec<Effect>) {
        for (_, pending) in std::mem::take(&mut self.pf) {
            self.answer(Some(pending.transaction), NtStatus::DEVICE_REMOVED, effects);
        }
    }

    /// The PF driver says that configuration blocks have to be read again: bit n of `block_mask` is block n. While
    /// the ring has no room, masks are put together. A guest whose bus is off is not told: its driver has yet to
    /// read them.
    pub fn invalidate_blocks(&mut self, block_mask: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.invalidated_blocks |= block_mask;
        self.send_invalidations(&mut effects);
        effects
    }

    pub(super) fn send_invalidations(&mut self, effects: &mut Vec<Effect>) {
        let listens = matches!(self.bus, BusState::D0 { .. })
            && !matches!(self.presence, Presence::Removed(_));
        if !listens {
            self.invalidated_blocks = 0;
        }
        if self.congested || self.invalidated_blocks == 0 {
            return;
        }
        let block_mask = std::mem::take(&mut self.invalidated_blocks);
        let slot = self.config.slot;
        self.send(&HostMessage::InvalidateBlock { slot, block_mask }, None, effects);
    }
}
