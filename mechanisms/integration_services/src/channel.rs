//! A core and its channel: what the guest does to the channel and what lies in its ring, and time.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use integration_protocol::MAX_MESSAGE_SIZE;
use partition::host::{DeviceEvent, HostChannel, OfferError, VmbusHost};
use vmbus::{Channel, ChannelDead, OutgoingPacket, PacketKind, SendError, server::OfferParams};

use crate::{HostTime, IntegrationService, session::Phase};

/// Packets handled before others have their turn.
const BURST: usize = 64;
/// Room that the longest message needs in a ring: a shutdown request, with all headers.
const LONGEST: u32 = 16 + 8 + 20 + 2060 + 8;
/// How often a service whose ring is full is looked at: what it waits for may be over.
const LOOK: Duration = Duration::from_millis(500);
/// Log lines that one guest can cause for one service.
const LOGGED: u32 = 20;

/// A service that is offered to a guest. Dropping it takes the offer back.
#[derive(Debug)]
pub struct ServiceChannel<S> {
    service: S,
    /// Before the channel that it came with.
    ring: Option<Channel>,
    host: HostChannel,
    /// Where a payload is copied to before anyone looks at it.
    payload: Vec<u8>,
    /// There is more to do at once.
    more: bool,
    /// The ring is full, since then.
    full: Option<Duration>,
    log_left: u32,
}

/// Why a ring is given up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Dead(#[from] ChannelDead),
    #[error(transparent)]
    Send(#[from] SendError),
}

impl<S: IntegrationService> ServiceChannel<S> {
    /// Offers a service.
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn offer(host: &VmbusHost, service: S) -> Result<Self, OfferError> {
        let kind = service.session().service();
        let params = OfferParams {
            flags: kind.offer_flags(),
            user_defined: kind.user_defined(),
            ..OfferParams::new(kind.interface_id(), kind.instance_id())
        };
        let host = host.offer(params)?;
        let payload = Vec::new();
        let (ring, full) = (None, None);
        Ok(Self { service, ring, host, payload, more: false, full, log_left: LOGGED })
    }

    /// The service.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// The service, to have it do something: followed by [`Self::work`].
    pub fn service_mut(&mut self) -> &mut S {
        &mut self.service
    }

    /// Descriptors to wait for.
    pub fn wait_on<'s>(&'s self, readable: &mut Vec<BorrowedFd<'s>>) {
        readable.push(self.host.as_fd());
        readable.extend(self.ring.as_ref().map(AsFd::as_fd));
    }

    /// When [`Self::work`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        if self.more {
            return Some(Duration::ZERO);
        }
        let due = self.service.deadline()?;
        Some(self.full.map_or(due, |since| due.max(since.saturating_add(LOOK))))
    }

    /// Does what there is to do, after its descriptors or its deadline. `time` reads the host's clock.
    pub fn work(&mut self, now: Duration, time: &mut dyn FnMut() -> HostTime) {
        while let Some(event) = self.host.next_event() {
            self.channel_event(event, now);
        }
        if let Err(error) = self.receive(now) {
            self.broken(&error);
        }
        self.service.poll(now);
        if let Err(error) = self.send(now, time) {
            self.broken(&error);
        }
    }

    fn channel_event(&mut self, event: DeviceEvent, now: Duration) {
        let service = self.service.session().service();
        // What the guest has taken back meanwhile is refused by the server, and that is fine.
        match event {
            DeviceEvent::Open(opened) => match opened.channel() {
                Ok(ring) => {
                    self.ring = Some(ring);
                    self.full = None;
                    self.service.opened(now);
                    let _ = self.host.opened(true);
                }
                Err(error) => {
                    if self.may_log() {
                        tracing::warn!(%service, %error, "a guest's channel cannot be opened");
                    }
                    let _ = self.host.opened(false);
                }
            },
            DeviceEvent::Close => {
                self.leave_ring();
                let _ = self.host.closed();
            }
            DeviceEvent::GpadlTeardown(gpadl) => {
                let _ = self.host.gpadl_released(gpadl);
            }
            DeviceEvent::Withdrawn => {}
        }
    }

    fn receive(&mut self, now: Duration) -> Result<(), Broken> {
        self.more = false;
        let Some(ring) = &mut self.ring else { return Ok(()) };
        ring.woken()?;
        for _ in 0..BURST {
            let Some(packet) = ring.receive()? else { return Ok(()) };
            // Nothing legal is longer; what is cut off of the rest is not missed.
            self.payload.resize(packet.payload.len().min(MAX_MESSAGE_SIZE), 0);
            packet.payload.read_into(&mut self.payload);
            if !matches!(packet.kind, PacketKind::InBand) {
                // No message at all.
                self.payload.clear();
            }
            let before = self.service.session().phase();
            let result = self.service.receive(&self.payload, now);
            let (service, phase) =
                (self.service.session().service(), self.service.session().phase());
            let may_log = self.log_left > 0 && (result.is_err() || before != phase);
            self.log_left -= u32::from(may_log);
            match (result, phase) {
                (Err(ignored), _) if may_log => {
                    tracing::debug!(%service, %ignored, "a guest's packet was ignored");
                }
                (Ok(()), Phase::Ready(versions)) if may_log => {
                    let (framework, version) = (versions.framework, versions.message);
                    tracing::info!(%service, %framework, %version, "an integration service is ready");
                }
                (Ok(()), Phase::Incompatible) if may_log => {
                    tracing::warn!(%service, "the guest speaks no version of an integration service");
                }
                _ => {}
            }
        }
        self.more = true;
        Ok(())
    }

    fn send(&mut self, now: Duration, time: &mut dyn FnMut() -> HostTime) -> Result<(), Broken> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        self.full = None;
        while self.service.deadline().is_some_and(|due| due <= now) {
            // First room, then the message: what waits for room becomes old.
            if !ring.request_room(LONGEST)? {
                self.full = Some(now);
                break;
            }
            let Some(message) = self.service.next_message(now, time) else { break };
            let packet = OutgoingPacket::InBand { transaction_id: 0, completion_requested: false };
            ring.send(packet, &message)?;
        }
        // Asks to be woken, too.
        self.more |= !ring.prepare_to_wait()?;
        Ok(())
    }

    /// The guest's ring cannot be used any more. What it says is not heard until it opens the channel anew.
    fn broken(&mut self, error: &Broken) {
        if self.may_log() {
            let service = self.service.session().service();
            tracing::warn!(%service, %error, "the ring of a guest's channel is broken");
        }
        self.leave_ring();
    }

    fn leave_ring(&mut self) {
        self.ring = None;
        self.more = false;
        self.full = None;
        self.service.closed();
    }

    fn may_log(&mut self) -> bool {
        let may = self.log_left > 0;
        self.log_left = self.log_left.saturating_sub(1);
        may
    }
}
