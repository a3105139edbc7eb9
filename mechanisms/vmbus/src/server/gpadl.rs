//! GPADLs of channels (SPEC-VMBUS §2).

use vmbus_protocol::{
    Gpadl, GpadlAssembly, GpadlBody, GpadlHeader, GpadlId, MessageType, STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL, ServerMessage,
};

use super::{
    Effect, OfferHandle, Refusal, Server, ServerError,
    channel::{OpenState, Presence},
};

/// How far a GPADL is.
#[derive(Debug)]
pub(super) enum GpadlState {
    /// Range data is missing.
    InProgress { assembly: GpadlAssembly, pages: usize },
    /// The device looks at it.
    Pending { pages: usize, ring_pages: Option<u32>, abandoned: bool },
    /// The device may use it.
    Accepted { pages: usize, ring_pages: Option<u32>, teardown: bool },
    /// The device is letting go of it.
    TearingDown { pages: usize, answer: bool },
}

impl GpadlState {
    /// What it counts for.
    pub(super) fn pages(&self) -> usize {
        match self {
            Self::InProgress { pages, .. }
            | Self::Pending { pages, .. }
            | Self::Accepted { pages, .. }
            | Self::TearingDown { pages, .. } => *pages,
        }
    }
}

/// The number of pages, if the GPADL can be rings: one range of whole pages.
fn ring_pages(gpadl: &Gpadl) -> Option<u32> {
    let range = gpadl.single_range()?;
    let whole = range.byte_offset == 0 && range.byte_count.is_multiple_of(4096);
    whole.then_some(range.byte_count / 4096)
}

impl Server {
    /// A GPADL begins.
    pub(super) fn gpadl_header(&mut self, header: &GpadlHeader) -> Result<(), Refusal> {
        let started = self.start_gpadl(header);
        if started.is_err() {
            self.post(&ServerMessage::GpadlCreated {
                channel: header.channel,
                gpadl: header.gpadl,
                status: STATUS_UNSUCCESSFUL,
            });
        }
        started
    }

    fn start_gpadl(&mut self, header: &GpadlHeader) -> Result<(), Refusal> {
        let gpadl = header.gpadl;
        let handle = self.named(header.channel)?;
        let Some(channel) = self.channels.get_mut(&handle) else {
            return Err(Refusal::NoChannel(header.channel));
        };
        if channel.is_reserved() {
            let message = MessageType::GpadlHeader;
            return Err(Refusal::ChannelState { channel: header.channel, message });
        }
        if self.assembling.contains_key(&gpadl) || channel.gpadls.contains_key(&gpadl) {
            return Err(Refusal::GpadlState { gpadl });
        }
        let assembly =
            GpadlAssembly::new(header).map_err(|source| Refusal::Gpadl { gpadl, source })?;
        // All words but one of each range are pages.
        let pages = usize::from(header.byte_count / 8).saturating_sub(header.range_count.into());
        if self.gpadls >= self.config.max_gpadls
            || self.gpadl_pages + pages > self.config.max_gpadl_pages
        {
            return Err(Refusal::GpadlLimit { gpadl });
        }
        self.gpadls += 1;
        self.gpadl_pages += pages;
        channel.gpadls.insert(gpadl, GpadlState::InProgress { assembly, pages });
        self.assembling.insert(gpadl, handle);
        // The header's own failure is answered by the caller.
        self.finish_gpadl(handle, gpadl)
    }

    /// More of a GPADL.
    pub(super) fn gpadl_body(&mut self, body: &GpadlBody) -> Result<(), Refusal> {
        let gpadl = body.gpadl;
        let unknown = Refusal::GpadlState { gpadl };
        let handle = *self.assembling.get(&gpadl).ok_or(unknown)?;
        let channel = self.channels.get_mut(&handle).ok_or(unknown)?;
        let id = channel.id;
        if let Some(GpadlState::InProgress { assembly, .. }) = channel.gpadls.get_mut(&gpadl) {
            assembly.add(&body.words);
        }
        let finished = self.finish_gpadl(handle, gpadl);
        if let (Err(_), Some(channel)) = (&finished, id) {
            let status = STATUS_UNSUCCESSFUL;
            self.post(&ServerMessage::GpadlCreated { channel, gpadl, status });
        }
        finished
    }

    /// Hands a GPADL to the device if it is complete.
    fn finish_gpadl(&mut self, offer: OfferHandle, gpadl: GpadlId) -> Result<(), Refusal> {
        let Some(channel) = self.channels.get_mut(&offer) else { return Ok(()) };
        let Some(state) = channel.gpadls.get_mut(&gpadl) else { return Ok(()) };
        let GpadlState::InProgress { assembly, pages } = state else { return Ok(()) };
        let pages = *pages;
        match assembly.finish() {
            None => Ok(()),
            Some(Ok(ready)) => {
                let ring_pages = ring_pages(&ready);
                if channel.presence == Presence::Revoked {
                    // Nobody will use it; the guest gets it back whenever it asks (SPEC-VMBUS §1.6, Rescind).
                    *state = GpadlState::Accepted { pages, ring_pages, teardown: false };
                    if let Some(channel) = channel.id {
                        let status = STATUS_SUCCESS;
                        self.post(&ServerMessage::GpadlCreated { channel, gpadl, status });
                    }
                } else {
                    *state = GpadlState::Pending { pages, ring_pages, abandoned: false };
                    self.effects.push_back(Effect::GpadlCreated { offer, gpadl, pages: ready });
                }
                self.assembling.remove(&gpadl);
                Ok(())
            }
            Some(Err(source)) => {
                channel.gpadls.remove(&gpadl);
                self.assembling.remove(&gpadl);
                self.forget_gpadl(pages);
                Err(Refusal::Gpadl { gpadl, source })
            }
        }
    }

    /// The device may use the GPADL's pages, or they are not the guest's.
    pub fn gpadl_complete(
        &mut self,
        offer: OfferHandle,
        gpadl: GpadlId,
        accepted: bool,
    ) -> Result<(), ServerError> {
        let channel = self.channels.get_mut(&offer).ok_or(ServerError::NoOffer)?;
        let state = channel.gpadls.get_mut(&gpadl).ok_or(ServerError::NotAsked)?;
        let GpadlState::Pending { pages, ring_pages, abandoned } = *state else {
            return Err(ServerError::NotAsked);
        };
        let id = channel.id;
        if accepted {
            *state = GpadlState::Accepted { pages, ring_pages, teardown: false };
        } else {
            channel.gpadls.remove(&gpadl);
            self.forget_gpadl(pages);
        }
        if let (false, Some(channel)) = (abandoned, id) {
            let status = if accepted { STATUS_SUCCESS } else { STATUS_UNSUCCESSFUL };
            self.post(&ServerMessage::GpadlCreated { channel, gpadl, status });
        }
        self.settle();
        Ok(())
    }

    /// The guest takes a GPADL back.
    pub(super) fn gpadl_teardown(
        &mut self,
        handle: OfferHandle,
        gpadl: GpadlId,
    ) -> Result<(), Refusal> {
        let refused = Refusal::GpadlState { gpadl };
        let channel = self.channels.get_mut(&handle).ok_or(refused)?;
        let closing = matches!(
            channel.open,
            OpenState::Closing { .. } | OpenState::Opening { close: true, .. }
        );
        let in_use = channel.ring_in_use() == Some(gpadl) && !closing;
        match channel.gpadls.get_mut(&gpadl) {
            Some(GpadlState::Accepted { teardown: teardown @ false, pages, .. }) if !in_use => {
                if channel.presence == Presence::Revoked {
                    let pages = *pages;
                    channel.gpadls.remove(&gpadl);
                    self.forget_gpadl(pages);
                    self.post(&ServerMessage::GpadlTorndown(gpadl));
                } else {
                    *teardown = true;
                }
            }
            _ => return Err(refused),
        }
        self.settle();
        Ok(())
    }

    /// The device uses the GPADL's pages no more.
    pub fn gpadl_released(
        &mut self,
        offer: OfferHandle,
        gpadl: GpadlId,
    ) -> Result<(), ServerError> {
        let channel = self.channels.get_mut(&offer).ok_or(ServerError::NoOffer)?;
        let Some(GpadlState::TearingDown { pages, answer }) = channel.gpadls.get(&gpadl) else {
            return Err(ServerError::NotAsked);
        };
        let (pages, answer) = (*pages, *answer);
        channel.gpadls.remove(&gpadl);
        self.forget_gpadl(pages);
        if answer {
            self.post(&ServerMessage::GpadlTorndown(gpadl));
        }
        self.settle();
        Ok(())
    }

    /// The device is gone, and uses no GPADL any more.
    pub(super) fn revoke_gpadls(&mut self, handle: OfferHandle, tell: bool) {
        let Some(channel) = self.channels.get_mut(&handle) else { return };
        let id = channel.id;
        let mut kept = std::collections::BTreeMap::new();
        for (gpadl, state) in std::mem::take(&mut channel.gpadls) {
            let pages = state.pages();
            let (answer, keep) = match state {
                GpadlState::Accepted { teardown: false, .. } => (None, Some(state)),
                GpadlState::Accepted { teardown: true, .. }
                | GpadlState::TearingDown { answer: true, .. } => {
                    (Some(ServerMessage::GpadlTorndown(gpadl)), None)
                }
                GpadlState::TearingDown { answer: false, .. } => (None, None),
                GpadlState::InProgress { .. } | GpadlState::Pending { .. } => {
                    let status = STATUS_UNSUCCESSFUL;
                    let failed = |channel| ServerMessage::GpadlCreated { channel, gpadl, status };
                    (id.map(failed), None)
                }
            };
            self.assembling.remove(&gpadl);
            if let (true, Some(answer)) = (tell, &answer) {
                self.post(answer);
            }
            match keep {
                Some(state) => {
                    kept.insert(gpadl, state);
                }
                None => self.forget_gpadl(pages),
            }
        }
        if let Some(channel) = self.channels.get_mut(&handle) {
            channel.gpadls = kept;
        }
    }
}
