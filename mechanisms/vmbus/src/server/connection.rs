//! The connection: contact, release, and what holds the release up.

use vmbus_protocol::{
    ConnectionState, FeatureFlags, InitiateContact, Negotiated, ServerMessage, SupportedFeatures,
    VMBUS_SINT, Version, VersionResponse, VpIndex,
};

use super::{
    Effect, Refusal, Server,
    channel::{AfterClose, OpenState, Presence},
    gpadl::GpadlState,
};

/// Interrupt sources that a processor has.
const SINT_COUNT: u8 = 16;

#[derive(Debug)]
pub(super) enum Connection {
    Disconnected,
    Connected(Connected),
    /// Devices are still letting go of the guest's memory.
    Releasing {
        next: Next,
        target_vp: VpIndex,
        was_connected: bool,
    },
}

#[derive(Debug)]
pub(super) struct Connected {
    pub(super) negotiated: Negotiated,
    pub(super) target_vp: VpIndex,
    pub(super) offers_requested: bool,
    pub(super) paused: bool,
    /// Messages at the head of the queue that were there before the pause.
    pub(super) messages_before_pause: usize,
}

/// What follows a release.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    UnloadComplete,
    Contact(InitiateContact),
}

impl Server {
    /// The guest connects, or asks whether a version is spoken.
    pub(super) fn initiate_contact(&mut self, contact: InitiateContact) -> Result<(), Refusal> {
        let multi_client = contact.version >= Version::Rs3_1 as u32;
        let (sint, vtl) = (contact.target.sint, contact.target.vtl);
        if multi_client && (sint != VMBUS_SINT || vtl != 0) {
            if sint < SINT_COUNT && vtl == 0 && !self.is_paused() {
                let refused = ServerMessage::VersionResponse(VersionResponse::Unsupported);
                self.post_to(&refused, contact.target_message_vp, sint);
            }
            return Err(Refusal::NoServer { sint, vtl });
        }
        self.begin_release(Next::Contact(contact), false);
        self.settle();
        Ok(())
    }

    /// Begins to release everything of the guest.
    pub(super) fn begin_release(&mut self, next: Next, with_reserved: bool) {
        // What waits is of a connection that the guest does not have any more.
        self.messages.clear();
        let (target_vp, was_connected) = match &self.connection {
            Connection::Disconnected => (VpIndex(0), false),
            Connection::Connected(connected) => (connected.target_vp, true),
            Connection::Releasing { target_vp, was_connected, .. } => (*target_vp, *was_connected),
        };
        self.connection = Connection::Releasing { next, target_vp, was_connected };
        let revoked = |(handle, channel): (&_, &super::Channel)| {
            (channel.presence == Presence::Revoked).then_some(*handle)
        };
        for handle in self.channels.iter().filter_map(revoked).collect::<Vec<_>>() {
            self.remove(handle);
        }
        for channel in self.channels.values_mut() {
            channel.presence = Presence::Waiting;
            if !channel.is_reserved() || with_reserved {
                channel.releasing = true;
            }
        }
    }

    /// Does what can be done next: takes memory back from devices, ends the release when nothing is left to wait
    /// for, and offers what can be offered again.
    pub(super) fn settle(&mut self) {
        let mut forgotten = Vec::new();
        for (handle, channel) in &mut self.channels {
            let offer = *handle;
            // What outlived its connection as a reserved channel and is none any more goes too.
            channel.releasing |= matches!(channel.presence, Presence::Waiting | Presence::Released)
                && !channel.is_reserved()
                && !channel.is_clean();
            if channel.releasing {
                match &mut channel.open {
                    OpenState::Closed => {}
                    OpenState::Opening { close, .. } => *close = true,
                    OpenState::Open { request, .. } => {
                        let request = *request;
                        channel.open = OpenState::Closing { request, then: AfterClose::Nothing };
                        self.effects.push_back(Effect::Close { offer });
                    }
                    OpenState::Closing { then, .. } => {
                        if matches!(then, AfterClose::Open { .. }) {
                            *then = AfterClose::Nothing;
                        }
                    }
                }
                channel.gpadls.retain(|gpadl, state| match state {
                    GpadlState::InProgress { pages, .. } => {
                        self.assembling.remove(gpadl);
                        forgotten.push(*pages);
                        false
                    }
                    _ => true,
                });
            }
            let closed = channel.open == OpenState::Closed;
            let ring = channel.ring_in_use();
            for (gpadl, state) in &mut channel.gpadls {
                match state {
                    GpadlState::Pending { abandoned, .. } => *abandoned |= channel.releasing,
                    GpadlState::TearingDown { answer, .. } => *answer &= !channel.releasing,
                    GpadlState::Accepted { pages, teardown, .. } => {
                        let wanted = *teardown || channel.releasing;
                        let free = ring != Some(*gpadl) && (closed || *teardown);
                        if wanted && free && channel.presence != Presence::Revoked {
                            let (pages, answer) = (*pages, !channel.releasing);
                            *state = GpadlState::TearingDown { pages, answer };
                            self.effects.push_back(Effect::GpadlTeardown { offer, gpadl: *gpadl });
                        }
                    }
                    GpadlState::InProgress { .. } => {}
                }
            }
            if channel.releasing && channel.is_clean() {
                channel.releasing = false;
                if let Some(id) = channel.id.take() {
                    self.ids.remove(&id);
                }
            }
        }
        for pages in forgotten {
            self.forget_gpadl(pages);
        }
        let held_up = self.channels.values().any(|channel| channel.releasing);
        if let Connection::Releasing { .. } = self.connection
            && !held_up
        {
            self.finish_release();
        }
        self.offer_waiting();
    }

    fn finish_release(&mut self) {
        let released = std::mem::replace(&mut self.connection, Connection::Disconnected);
        let Connection::Releasing { next, target_vp, was_connected } = released else { return };
        let subchannels = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.params.subchannel_index != 0 && channel.is_clean());
        for offer in subchannels.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            self.remove(offer);
            self.effects.push_back(Effect::Withdrawn { offer });
        }
        if was_connected {
            self.effects.push_back(Effect::Disconnected);
        }
        match next {
            Next::Nothing => {}
            Next::UnloadComplete => {
                self.post_to(&ServerMessage::UnloadComplete, target_vp, VMBUS_SINT);
            }
            Next::Contact(contact) => self.negotiate(&contact),
        }
    }

    fn negotiate(&mut self, contact: &InitiateContact) {
        let version = Version::from_wire(contact.version);
        let version = version.filter(|version| *version <= self.config.max_version);
        let honours_vp = contact.version >= Version::Win8_1 as u32;
        let target_vp = if honours_vp { contact.target_message_vp } else { VpIndex(0) };
        let Some(version) = version else {
            let refused = ServerMessage::VersionResponse(VersionResponse::Unsupported);
            self.post_to(&refused, target_vp, VMBUS_SINT);
            return;
        };
        let features = if version >= Version::Copper {
            contact.target.features & self.config.features
        } else {
            FeatureFlags::empty()
        };
        let negotiated = Negotiated { version, features };
        self.connection = Connection::Connected(Connected {
            negotiated,
            target_vp,
            offers_requested: false,
            paused: false,
            messages_before_pause: 0,
        });
        self.effects.push_back(Effect::Connected(negotiated));
        if contact.monitor_pages.is_some() {
            self.effects.push_back(Effect::MonitorPages(contact.monitor_pages));
        }
        let has_features = version >= Version::Copper;
        self.post(&ServerMessage::VersionResponse(VersionResponse::Supported {
            state: ConnectionState::Successful,
            value: if version >= Version::Rs3_1 {
                self.config.message_connection_id
            } else {
                version as u32
            },
            features: has_features.then_some(SupportedFeatures { features, monitor_pages: None }),
        }));
    }
}
