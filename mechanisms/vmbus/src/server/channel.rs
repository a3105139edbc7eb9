//! One channel's state.

use std::collections::BTreeMap;

use vmbus_protocol::{
    ChannelId, GpadlId, MessageType, Offer, OfferFlags, STATUS_SUCCESS, STATUS_UNSUCCESSFUL,
    ServerMessage, VMBUS_SINT, Version, VpIndex, channel_connection_id,
};

use super::{
    Connection, Effect, OfferHandle, OfferParams, OpenRequest, Refusal, Server, ServerError,
    gpadl::GpadlState,
};

/// What the guest knows of a channel.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Presence {
    /// Nothing yet.
    Waiting,
    /// It is offered.
    Offered,
    /// The guest gave it back; it is offered again in the next connection.
    Released,
    /// The device took it back; it is gone once the guest has released it.
    Revoked,
}

/// How a channel is being used.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum OpenState {
    Closed,
    /// The device is opening it.
    Opening {
        request: OpenRequest,
        kind: OpenKind,
        /// It is to be closed once it is open.
        close: bool,
    },
    Open {
        request: OpenRequest,
        kind: OpenKind,
        modify: Modify,
    },
    /// The device is closing it.
    Closing {
        request: OpenRequest,
        /// What the guest wants next.
        then: AfterClose,
    },
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum OpenKind {
    /// OPEN_CHANNEL, with its number.
    Usual { open_id: u32 },
    /// OPEN_RESERVED_CHANNEL, with where to answer.
    Reserved { target_vp: VpIndex, target_sint: u8 },
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum AfterClose {
    Nothing,
    /// Open it again.
    Open {
        request: OpenRequest,
        kind: OpenKind,
    },
    /// CLOSE_RESERVED_RESPONSE.
    Answer {
        target_vp: VpIndex,
        target_sint: u8,
    },
}

/// Requests to move the interrupt.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Modify {
    Idle,
    /// The device is at it.
    Working,
    /// Another came meanwhile (before 5.3).
    Again(VpIndex),
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) params: OfferParams,
    pub(super) presence: Presence,
    /// The guest's name for it, as long as the guest may use it.
    pub(super) id: Option<ChannelId>,
    pub(super) open: OpenState,
    pub(super) gpadls: BTreeMap<GpadlId, GpadlState>,
    /// Everything of the guest is to be released.
    pub(super) releasing: bool,
}

impl Channel {
    pub(super) fn new(params: OfferParams) -> Self {
        Self {
            params,
            presence: Presence::Waiting,
            id: None,
            open: OpenState::Closed,
            gpadls: BTreeMap::new(),
            releasing: false,
        }
    }

    /// Whether neither rings nor GPADLs are in use.
    pub(super) fn is_clean(&self) -> bool {
        self.open == OpenState::Closed && self.gpadls.is_empty()
    }

    /// Whether it outlives the connection.
    pub(super) fn is_reserved(&self) -> bool {
        matches!(
            self.open,
            OpenState::Opening { kind: OpenKind::Reserved { .. }, close: false, .. }
                | OpenState::Open { kind: OpenKind::Reserved { .. }, .. }
        )
    }

    /// The GPADL of the rings that are in use.
    pub(super) fn ring_in_use(&self) -> Option<GpadlId> {
        match self.open {
            OpenState::Closed => None,
            OpenState::Opening { request, .. }
            | OpenState::Open { request, .. }
            | OpenState::Closing { request, .. } => Some(request.ring_gpadl),
        }
    }
}

impl Server {
    /// Offers what the guest has not been told of, if it has asked.
    pub(super) fn offer_waiting(&mut self) {
        let Connection::Connected(connected) = &self.connection else { return };
        if !connected.offers_requested {
            return;
        }
        let version = connected.negotiated;
        let revoked = |params: &OfferParams| {
            let mut channels = self.channels.values();
            channels.any(|c| c.presence == Presence::Revoked && c.params.is_same_channel(params))
        };
        let mut waiting = self
            .channels
            .iter()
            .filter(|(_, c)| c.presence == Presence::Waiting && c.is_clean())
            // The guest must have released a channel before it is offered another in its place.
            .filter(|(_, c)| !revoked(&c.params))
            .map(|(handle, c)| (c.params.key(), *handle))
            .collect::<Vec<_>>();
        waiting.sort_unstable();
        for (_, handle) in waiting {
            let free = (1..vmbus_protocol::MAX_CHANNELS).map(ChannelId);
            let Some(id) = free.into_iter().find(|id| !self.ids.contains_key(id)) else { break };
            let Some(channel) = self.channels.get_mut(&handle) else { continue };
            channel.presence = Presence::Offered;
            channel.id = Some(id);
            self.ids.insert(id, handle);
            let params = &channel.params;
            let known = OfferFlags::ENUMERATE_DEVICE_INTERFACE
                | OfferFlags::NAMED_PIPE_MODE
                | OfferFlags::TLNPI_PROVIDER;
            let features = version.features;
            let mut flags = params.flags & known;
            if features.contains(vmbus_protocol::FeatureFlags::CONFIDENTIAL_CHANNELS) {
                flags |= params.flags
                    & (OfferFlags::CONFIDENTIAL_RING | OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY);
            }
            if features.contains(vmbus_protocol::FeatureFlags::PINNED_MEMORY) {
                flags |= params.flags & OfferFlags::PINNED_EXTERNAL_MEMORY;
            }
            let offer = Offer {
                interface_id: params.interface_id,
                instance_id: params.instance_id,
                flags,
                mmio_megabytes: params.mmio_megabytes,
                mmio_megabytes_optional: params.mmio_megabytes_optional,
                user_defined: params.user_defined,
                subchannel_index: params.subchannel_index,
                channel: id,
                monitor_id: None,
                is_dedicated_interrupt: true,
                connection_id: channel_connection_id(id.0, VMBUS_SINT, 0),
            };
            self.post(&ServerMessage::OfferChannel(offer));
        }
    }

    /// The offered (or revoked) channel that the guest means.
    pub(super) fn named(&self, channel: ChannelId) -> Result<OfferHandle, Refusal> {
        let handle = self.ids.get(&channel).copied().ok_or(Refusal::NoChannel(channel))?;
        match self.channels.get(&handle).map(|channel| channel.presence) {
            Some(Presence::Offered | Presence::Revoked) => Ok(handle),
            _ => Err(Refusal::NoChannel(channel)),
        }
    }

    /// Opens a channel, now or once it is closed.
    pub(super) fn open_channel(
        &mut self,
        handle: OfferHandle,
        request: OpenRequest,
        kind: OpenKind,
        message: MessageType,
    ) -> Result<(), Refusal> {
        let state = Refusal::ChannelState { channel: request.channel, message };
        let Some(channel) = self.channels.get(&handle) else {
            return Err(Refusal::NoChannel(request.channel));
        };
        match &channel.open {
            _ if channel.presence == Presence::Revoked => {
                self.post_open_result(request.channel, kind, false);
                return Err(state);
            }
            OpenState::Closed | OpenState::Closing { then: AfterClose::Nothing, .. } => {}
            _ => return Err(state),
        }
        if let Err(refusal) = self.check_open(handle, &request) {
            self.post_open_result(request.channel, kind, false);
            return Err(refusal);
        }
        let Some(channel) = self.channels.get_mut(&handle) else { return Err(state) };
        if let OpenState::Closing { then, .. } = &mut channel.open {
            *then = AfterClose::Open { request, kind };
        } else {
            channel.open = OpenState::Opening { request, kind, close: false };
            self.effects.push_back(Effect::Open { offer: handle, request });
        }
        Ok(())
    }

    /// Whether the rings and the way of signalling are to be had.
    fn check_open(&self, handle: OfferHandle, request: &OpenRequest) -> Result<(), Refusal> {
        let gpadl = request.ring_gpadl;
        let channel = self.channels.get(&handle).ok_or(Refusal::NoChannel(request.channel))?;
        let Some(GpadlState::Accepted { ring_pages, teardown: false, .. }) =
            channel.gpadls.get(&gpadl)
        else {
            return Err(Refusal::GpadlState { gpadl });
        };
        let offset = request.downstream_page_offset;
        let bad_ring = Refusal::BadRing { gpadl, offset };
        let pages = ring_pages.ok_or(bad_ring)?;
        // A control page and a page of data, each.
        if offset < 2 || pages.checked_sub(offset).is_none_or(|rest| rest < 2) {
            return Err(bad_ring);
        }
        let (event_flag, connection_id) = (request.event_flag, request.connection_id);
        let taken = self.channels.iter().filter(|(other, _)| **other != handle).any(
            |(_, other)| match other.open {
                OpenState::Closed => false,
                OpenState::Opening { request, .. }
                | OpenState::Open { request, .. }
                | OpenState::Closing { request, .. } => {
                    request.event_flag == event_flag || request.connection_id == connection_id
                }
            },
        );
        let out_of_range = u32::from(event_flag) >= vmbus_protocol::MAX_CHANNELS;
        if taken || event_flag == 0 || out_of_range || self.has_connection_id(connection_id) {
            return Err(Refusal::SignalParameters { event_flag, connection_id });
        }
        Ok(())
    }

    fn post_open_result(&mut self, channel: ChannelId, kind: OpenKind, success: bool) {
        let status = if success { STATUS_SUCCESS } else { STATUS_UNSUCCESSFUL }.cast_unsigned();
        match kind {
            OpenKind::Usual { open_id } => {
                self.post(&ServerMessage::OpenChannelResult { channel, open_id, status });
            }
            OpenKind::Reserved { target_vp, target_sint } => {
                let result = ServerMessage::OpenChannelResult { channel, open_id: 0, status };
                self.post_to(&result, target_vp, target_sint);
            }
        }
    }

    /// The device has opened the channel, or could not.
    pub fn open_complete(&mut self, offer: OfferHandle, success: bool) -> Result<(), ServerError> {
        let channel = self.channels.get_mut(&offer).ok_or(ServerError::NoOffer)?;
        let OpenState::Opening { request, kind, close } = channel.open else {
            return Err(ServerError::NotAsked);
        };
        let tell = !channel.releasing;
        channel.open = match (success, close) {
            (false, _) => OpenState::Closed,
            (true, false) => OpenState::Open { request, kind, modify: Modify::Idle },
            (true, true) => {
                self.effects.push_back(Effect::Close { offer });
                OpenState::Closing { request, then: AfterClose::Nothing }
            }
        };
        if tell {
            self.post_open_result(request.channel, kind, success);
        }
        self.settle();
        Ok(())
    }

    /// The guest closes a channel.
    pub(super) fn close_channel(
        &mut self,
        handle: OfferHandle,
        id: ChannelId,
    ) -> Result<(), Refusal> {
        let state = Refusal::ChannelState { channel: id, message: MessageType::CloseChannel };
        let channel = self.channels.get_mut(&handle).ok_or(Refusal::NoChannel(id))?;
        if channel.presence == Presence::Revoked {
            // The server has let go of it before.
            return Ok(());
        }
        match &mut channel.open {
            OpenState::Opening { kind: OpenKind::Usual { .. }, close: close @ false, .. } => {
                *close = true;
            }
            OpenState::Open { kind: OpenKind::Usual { .. }, request, .. } => {
                let request = *request;
                channel.open = OpenState::Closing { request, then: AfterClose::Nothing };
                self.effects.push_back(Effect::Close { offer: handle });
            }
            // Opened again while it was being closed, and now not.
            OpenState::Closing { then: then @ AfterClose::Open { .. }, .. } => {
                *then = AfterClose::Nothing;
            }
            _ => return Err(state),
        }
        self.settle();
        Ok(())
    }

    /// The guest closes a reserved channel; it may do so without a connection.
    pub(super) fn close_reserved(
        &mut self,
        id: ChannelId,
        target_vp: VpIndex,
        target_sint: u8,
    ) -> Result<(), Refusal> {
        let handle = self.ids.get(&id).copied().ok_or(Refusal::NoChannel(id))?;
        let message = MessageType::CloseReservedChannel;
        let state = Refusal::ChannelState { channel: id, message };
        let channel = self.channels.get_mut(&handle).ok_or(Refusal::NoChannel(id))?;
        let then = AfterClose::Answer { target_vp, target_sint };
        match channel.open {
            OpenState::Open { kind: OpenKind::Reserved { .. }, request, .. } => {
                channel.open = OpenState::Closing { request, then };
                self.effects.push_back(Effect::Close { offer: handle });
                Ok(())
            }
            // Revoked: the server has let go of it before.
            OpenState::Closed if channel.presence == Presence::Revoked => {
                let answer = ServerMessage::CloseReservedResponse(id);
                self.post_to(&answer, target_vp, target_sint);
                Ok(())
            }
            _ => Err(state),
        }
    }

    /// The device uses the rings no more.
    pub fn close_complete(&mut self, offer: OfferHandle) -> Result<(), ServerError> {
        let channel = self.channels.get_mut(&offer).ok_or(ServerError::NoOffer)?;
        let OpenState::Closing { then, .. } = channel.open else {
            return Err(ServerError::NotAsked);
        };
        channel.open = OpenState::Closed;
        let id = channel.id;
        match then {
            AfterClose::Nothing => {}
            AfterClose::Open { request, kind } => {
                // The guest may have taken the GPADL back meanwhile; a refusal is told to it.
                let _ = self.open_channel(offer, request, kind, MessageType::OpenChannel);
            }
            AfterClose::Answer { target_vp, target_sint } => {
                if let Some(id) = id {
                    let answer = ServerMessage::CloseReservedResponse(id);
                    self.post_to(&answer, target_vp, target_sint);
                }
            }
        }
        self.settle();
        Ok(())
    }

    /// The guest wants a channel's interrupt on another processor.
    pub(super) fn modify_channel(
        &mut self,
        handle: OfferHandle,
        id: ChannelId,
        target_vp: Option<VpIndex>,
    ) -> Result<(), Refusal> {
        let answered = self.connection().is_some_and(|c| c.version >= Version::Iron);
        let message = MessageType::ModifyChannel;
        let channel = self.channels.get_mut(&handle).ok_or(Refusal::NoChannel(id))?;
        let failed =
            ServerMessage::ModifyChannelResponse { channel: id, status: STATUS_UNSUCCESSFUL };
        let refusal = match (&mut channel.open, target_vp) {
            (OpenState::Open { request, modify, kind: OpenKind::Usual { .. } }, Some(vp))
                if request.target_vp.is_some() =>
            {
                match modify {
                    Modify::Idle => {
                        *modify = Modify::Working;
                        self.effects.push_back(Effect::Modify { offer: handle, target_vp: vp });
                        return Ok(());
                    }
                    Modify::Working | Modify::Again(_) if !answered => {
                        *modify = Modify::Again(vp);
                        return Ok(());
                    }
                    // One answer is owed already, and it is to be the only one.
                    _ => return Err(Refusal::ChannelState { channel: id, message }),
                }
            }
            (OpenState::Open { .. }, _) => Refusal::NoInterrupt(id),
            _ => Refusal::ChannelState { channel: id, message },
        };
        if answered {
            self.post(&failed);
        }
        Err(refusal)
    }

    /// The device interrupts the processor it was told to, or could not change it.
    pub fn modify_complete(
        &mut self,
        offer: OfferHandle,
        success: bool,
    ) -> Result<(), ServerError> {
        let answered = self.connection().is_some_and(|c| c.version >= Version::Iron);
        let channel = self.channels.get_mut(&offer).ok_or(ServerError::NoOffer)?;
        let OpenState::Open { modify, .. } = &mut channel.open else {
            // Closed meanwhile.
            return Err(ServerError::NotAsked);
        };
        match std::mem::replace(modify, Modify::Idle) {
            Modify::Idle => return Err(ServerError::NotAsked),
            Modify::Working => {}
            Modify::Again(target_vp) => {
                *modify = Modify::Working;
                self.effects.push_back(Effect::Modify { offer, target_vp });
            }
        }
        if let (true, Some(channel)) = (answered, channel.id) {
            let status = if success { STATUS_SUCCESS } else { STATUS_UNSUCCESSFUL };
            self.post(&ServerMessage::ModifyChannelResponse { channel, status });
        }
        Ok(())
    }

    /// The device is gone.
    pub(super) fn revoke_one(&mut self, handle: OfferHandle) {
        let Some(channel) = self.channels.get_mut(&handle) else { return };
        let answered = matches!(&self.connection, Connection::Connected(c)
            if c.negotiated.version >= Version::Iron);
        let connected = matches!(self.connection, Connection::Connected(_));
        let tell = connected && channel.presence == Presence::Offered && !channel.releasing;
        let id = channel.id;
        let open = std::mem::replace(&mut channel.open, OpenState::Closed);
        // What the device was asked for and will not answer now.
        if let (true, Some(id)) = (tell, id) {
            match open {
                OpenState::Opening { kind, .. }
                | OpenState::Closing { then: AfterClose::Open { kind, .. }, .. } => {
                    self.post_open_result(id, kind, false);
                }
                OpenState::Open { modify: Modify::Working | Modify::Again(_), .. } if answered => {
                    let status = STATUS_UNSUCCESSFUL;
                    self.post(&ServerMessage::ModifyChannelResponse { channel: id, status });
                }
                _ => {}
            }
        }
        if let (
            OpenState::Closing { then: AfterClose::Answer { target_vp, target_sint }, .. },
            Some(id),
        ) = (open, id)
        {
            self.post_to(&ServerMessage::CloseReservedResponse(id), target_vp, target_sint);
        }
        self.revoke_gpadls(handle, tell);
        if let (true, Some(id)) = (tell, id) {
            if let Some(channel) = self.channels.get_mut(&handle) {
                channel.presence = Presence::Revoked;
            }
            self.post(&ServerMessage::RescindChannelOffer(id));
        } else {
            self.remove(handle);
        }
        self.effects.retain(|effect| !effect.is_for(handle));
    }

    /// Forgets a channel altogether.
    pub(super) fn remove(&mut self, handle: OfferHandle) {
        let Some(channel) = self.channels.remove(&handle) else { return };
        if let Some(id) = channel.id {
            self.ids.remove(&id);
        }
        for (gpadl, state) in channel.gpadls {
            self.assembling.remove(&gpadl);
            self.forget_gpadl(state.pages());
        }
    }

    /// The guest gives its references to a channel back.
    pub(super) fn release_channel(
        &mut self,
        handle: OfferHandle,
        id: ChannelId,
    ) -> Result<(), Refusal> {
        let channel = self.channels.get_mut(&handle).ok_or(Refusal::NoChannel(id))?;
        if channel.presence == Presence::Revoked {
            self.remove(handle);
        } else if channel.open == OpenState::Closed {
            channel.presence = Presence::Released;
            channel.releasing = true;
        } else {
            let message = MessageType::RelIdReleased;
            return Err(Refusal::ChannelState { channel: id, message });
        }
        self.settle();
        Ok(())
    }
}

impl Effect {
    /// Whether a device would do it that has gone.
    fn is_for(&self, handle: OfferHandle) -> bool {
        match self {
            Self::GpadlCreated { offer, .. }
            | Self::GpadlTeardown { offer, .. }
            | Self::Open { offer, .. }
            | Self::Close { offer }
            | Self::Modify { offer, .. }
            | Self::Withdrawn { offer } => *offer == handle,
            Self::Connected(_) | Self::MonitorPages(_) | Self::Disconnected => false,
        }
    }
}
