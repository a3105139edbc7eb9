//! The guest's integration services, and the client that waits for the guest's answer.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use device_control::{ClientId, Completion, PendingRequest, Request, RequestId};
use integration_services::{
    HeartbeatService, IntegrationServices, Phase, Pulse, Service, Session, ShutdownAction,
    ShutdownOutcome, ShutdownRefused, ShutdownRequest,
};
use partition::host::OfferError;
use pcivirt_protocol::NtStatus;

use super::{Cx, parse};
use crate::control::{
    GuestPulse, HeartbeatStatus, IntegrationStatus, SHUT_DOWN_CAPACITY, SHUT_DOWN_LIMIT_SECONDS,
    ServiceName, ServiceState, ServiceStatus, ShutDownAnswer, ShutDownGuest,
};

/// SHTDN_REASON_FLAG_PLANNED.
const PLANNED: u32 = 0x8000_0000;

/// The guest's integration services.
pub(super) struct Integration {
    /// `None` once they are taken back.
    services: Option<IntegrationServices>,
    /// Who has asked that the guest shut down.
    waiting: Option<(ClientId, PendingRequest)>,
}

impl Integration {
    /// Offers what the guest is to have.
    pub(super) fn offer(cx: &Cx) -> Result<Self, OfferError> {
        let which = &cx.config.integration_services;
        let services = IntegrationServices::offer(&cx.host, Arc::clone(&cx.partition), which)?;
        Ok(Self { services: Some(services), waiting: None })
    }

    /// Takes all of it back.
    pub(super) fn leave(&mut self) {
        self.services = None;
        self.answer(NtStatus::DEVICE_REMOVED);
    }

    pub(super) fn wait_on<'s>(&'s self, readable: &mut Vec<BorrowedFd<'s>>) {
        self.services.iter().for_each(|services| services.wait_on(readable));
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.services.as_ref()?.deadline()
    }

    /// Does what there is to do, after its descriptors or its deadline.
    pub(super) fn work(&mut self, now: Duration) {
        let Some(services) = &mut self.services else { return };
        services.work(now);
        let Some(outcome) = services.shutdown_outcome() else { return };
        let answer = match outcome {
            ShutdownOutcome::Initiated => ShutDownAnswer::Initiated,
            ShutdownOutcome::Refused(status) => ShutDownAnswer::Refused { status: status.0 },
            ShutdownOutcome::NoAnswer => return self.answer(NtStatus::IO_TIMEOUT),
            ShutdownOutcome::Closed => return self.answer(NtStatus::DEVICE_REMOVED),
        };
        self.answer(match serde_json::to_vec(&answer) {
            Ok(json) => Completion::output(json, SHUT_DOWN_CAPACITY),
            Err(_) => Completion::status(NtStatus::UNSUCCESSFUL),
        });
    }

    /// Completes the request that waits.
    fn answer(&mut self, completion: impl Into<Completion>) {
        if let Some((_, request)) = self.waiting.take()
            && request.complete(completion).is_err()
        {
            tracing::debug!("a client left while its guest was asked to shut down");
        }
    }

    /// A client wants the guest to shut down.
    pub(super) fn shut_down(
        &mut self,
        client: ClientId,
        request: Request,
        gone: bool,
        now: Duration,
    ) {
        if request.output_capacity < SHUT_DOWN_CAPACITY {
            return request.complete(Completion::too_small(SHUT_DOWN_CAPACITY));
        }
        match self.ask(&request.input, gone, now) {
            Ok(()) => self.waiting = Some((client, request.pend())),
            Err(status) => request.complete(status),
        }
    }

    fn ask(&mut self, input: &[u8], gone: bool, now: Duration) -> Result<(), NtStatus> {
        let ShutDownGuest { force, reboot, reason, limit_seconds } = parse(input)?;
        let (limit, longest) = SHUT_DOWN_LIMIT_SECONDS;
        let limit = limit_seconds.unwrap_or(limit);
        if !(1..=longest).contains(&limit) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let services = match &mut self.services {
            Some(services) if !gone => services,
            _ => return Err(NtStatus::DEVICE_REMOVED),
        };
        if !services.has_shutdown() {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let request = ShutdownRequest {
            action: if reboot { ShutdownAction::Restart } else { ShutdownAction::PowerOff },
            force,
            reason: reason.unwrap_or(PLANNED),
            limit_seconds: 0,
        };
        let limit = Duration::from_secs(limit.into());
        services.shut_down(request, limit, now).map_err(|refused| match refused {
            ShutdownRefused::NotReady => NtStatus::DEVICE_NOT_READY,
            ShutdownRefused::InProgress => NtStatus::DEVICE_BUSY,
            ShutdownRefused::NotSupported { .. } => NtStatus::NOT_SUPPORTED,
        })
    }

    /// A client gives its request up.
    pub(super) fn cancel(&mut self, client: ClientId, id: RequestId) {
        let is_meant =
            |(of, request): &(ClientId, PendingRequest)| *of == client && request.id() == id;
        if self.waiting.as_ref().is_some_and(is_meant) {
            self.services.iter_mut().for_each(IntegrationServices::cancel_shut_down);
            self.answer(NtStatus::CANCELLED);
        }
    }

    pub(super) fn status(&self, now: Duration) -> IntegrationStatus {
        let Some(services) = &self.services else { return IntegrationStatus::default() };
        let heartbeat = services.heartbeat().map(|heartbeat| self::heartbeat(heartbeat, now));
        IntegrationStatus { services: services.sessions().map(service).collect(), heartbeat }
    }
}

fn service(session: &Session) -> ServiceStatus {
    ServiceStatus {
        service: match session.service() {
            Service::Shutdown => ServiceName::Shutdown,
            Service::Heartbeat => ServiceName::Heartbeat,
            Service::TimeSync => ServiceName::TimeSync,
        },
        state: match session.phase() {
            Phase::Offered => ServiceState::Offered,
            Phase::Negotiating => ServiceState::Negotiating,
            Phase::Ready(versions) => ServiceState::Ready {
                framework: versions.framework.to_string(),
                version: versions.message.to_string(),
            },
            Phase::Incompatible => ServiceState::Incompatible,
        },
        ignored: session.ignored(),
    }
}

fn heartbeat(heartbeat: &HeartbeatService, now: Duration) -> HeartbeatStatus {
    let ago = heartbeat.last_seen().map(|seen| now.saturating_sub(seen).as_millis());
    HeartbeatStatus {
        pulse: match heartbeat.pulse() {
            Pulse::NeverSeen => GuestPulse::NeverSeen,
            Pulse::Alive => GuestPulse::Alive,
            Pulse::Lost => GuestPulse::Lost,
        },
        last_sequence: heartbeat.last_sequence(),
        last_seen_ms: ago.map(|ago| u64::try_from(ago).unwrap_or(u64::MAX)),
    }
}
