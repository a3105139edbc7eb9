//! VMBus client: the guest's end of the channel protocol.
//!
//! No I/O, no threads, no clock. Messages of the server and calls of the guest's drivers come in; messages to the
//! server ([`Client::next_message`]) and news for the drivers ([`Client::next_event`]) come out. A server message
//! that fits nothing the client knows of is refused ([`ClientError::Unexpected`]) and changes nothing.
//!
//! | connection | on | becomes | and |
//! | --- | --- | --- | --- |
//! | disconnected | [`Client::connect`] | connecting | INITIATE_CONTACT of the highest version |
//! | connecting | VERSION_RESPONSE, unsupported | connecting, or disconnected | the next lower version |
//! | connecting | VERSION_RESPONSE, supported | connected | REQUEST_OFFERS |
//! | connected | [`Client::unload`] | unloading | UNLOAD |
//! | unloading | UNLOAD_COMPLETE | disconnected | nothing of it is in use any more |

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use vmbus_protocol::{
    ChannelId, ClientMessage, ConnectionState, FeatureFlags, Gpadl, GpadlId, Guid, InitiateContact,
    MAX_CHANNELS, MessageBytes, MessageError, MessageType, Negotiated, Offer, OpenChannel,
    STATUS_SUCCESS, ServerMessage, SignalParameters, TargetInfo, USER_DEFINED_SIZE, VMBUS_SINT,
    Version, VersionResponse, VpIndex,
};

/// What a client asks for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ClientConfig {
    /// The first version it asks for; then all lower ones, down to `min_version`.
    pub max_version: Version,
    /// The last version it asks for.
    pub min_version: Version,
    /// What it supports, for 6.0 on.
    pub features: FeatureFlags,
    /// Who it is, for 6.0 on.
    pub client_id: Guid,
    /// The processor that messages go to.
    pub target_vp: VpIndex,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            max_version: Version::Copper,
            min_version: Version::Win8,
            features: FeatureFlags::CLIENT_ID | FeatureFlags::MODIFY_CONNECTION,
            client_id: Guid::new(0, 0, 0, [0; 8]),
            target_vp: VpIndex(0),
        }
    }
}

/// What a driver is told.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum ClientEvent {
    /// The server speaks this version; offers follow.
    Connected(Negotiated),
    /// The server speaks no version of ours, or lacks something.
    ConnectionFailed,
    /// A channel.
    Offered(Offer),
    /// These were all there are now.
    AllOffersDelivered,
    /// Whether the memory was accepted.
    GpadlCreated {
        /// Whose.
        channel: ChannelId,
        /// Which.
        gpadl: GpadlId,
        /// If not, the name is free again.
        accepted: bool,
    },
    /// The memory is the guest's alone again.
    GpadlTorndown {
        /// Whose.
        channel: ChannelId,
        /// Which.
        gpadl: GpadlId,
    },
    /// Whether the channel is open.
    Opened {
        /// Which.
        channel: ChannelId,
        /// It is.
        success: bool,
    },
    /// Whether the interrupt was moved (from 5.3 on).
    Modified {
        /// Which channel's.
        channel: ChannelId,
        /// It was.
        success: bool,
    },
    /// The device is gone: tear the GPADLs down, then [`Client::release`].
    Rescinded(ChannelId),
    /// The server holds nothing any more.
    Unloaded,
}

/// Why a call or a message was not acted upon.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum ClientError {
    /// It is no message that a server may send now.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The message answers nothing that was asked.
    #[error("{} came unasked", .0.name())]
    Unexpected(MessageType),
    /// There is no connection, or there is one already.
    #[error("the connection is not in a state for this")]
    Connection,
    /// There is no such channel, or it is gone.
    #[error("channel {0} is not offered")]
    NoChannel(ChannelId),
    /// The channel is open, not open, or its GPADLs are not torn down yet.
    #[error("channel {0} is not in a state for this")]
    ChannelState(ChannelId),
    /// There is no such GPADL of that channel, or not in that state.
    #[error("GPADL {0} is not in a state for this")]
    GpadlState(GpadlId),
}

/// How to open a channel.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OpenParams {
    /// The rings' memory.
    pub ring_gpadl: GpadlId,
    /// At which of its pages the ring from host to guest begins.
    pub downstream_page_offset: u32,
    /// The processor to interrupt; `None`: never.
    pub target_vp: Option<VpIndex>,
    /// The driver's own bytes.
    pub user_data: [u8; USER_DEFINED_SIZE],
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum State {
    Disconnected,
    Connecting { version: Version },
    Connected { negotiated: Negotiated, connection_id: u32 },
    Unloading { negotiated: Negotiated },
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum OpenState {
    Closed,
    Opening { open_id: u32 },
    Open { modifying: bool },
}

#[derive(Debug)]
struct Channel {
    offer: Offer,
    open: OpenState,
    ring: Option<GpadlId>,
    rescinded: bool,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum GpadlState {
    Creating,
    Created,
    TearingDown,
}

/// The guest's end of its VMBus.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    state: State,
    channels: BTreeMap<ChannelId, Channel>,
    gpadls: BTreeMap<GpadlId, (ChannelId, GpadlState)>,
    next_gpadl: u32,
    next_open: u32,
    messages: VecDeque<(u32, MessageBytes)>,
    events: VecDeque<ClientEvent>,
}

impl Client {
    /// A client that has not connected.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            state: State::Disconnected,
            channels: BTreeMap::new(),
            gpadls: BTreeMap::new(),
            next_gpadl: 0xE1E10,
            next_open: 1,
            messages: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The next message to the server, with the connection id to post it to.
    pub fn next_message(&mut self) -> Option<(u32, MessageBytes)> {
        self.messages.pop_front()
    }

    /// The next piece of news.
    pub fn next_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// What the connection speaks, if there is one.
    pub fn connection(&self) -> Option<Negotiated> {
        match self.state {
            State::Connected { negotiated, .. } | State::Unloading { negotiated } => {
                Some(negotiated)
            }
            _ => None,
        }
    }

    /// The channels that are offered, also those that were rescinded and are not released.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.channels.values().map(|channel| &channel.offer)
    }

    /// GPADLs that the server may be using, of this channel.
    pub fn gpadls(&self, channel: ChannelId) -> impl Iterator<Item = GpadlId> + '_ {
        self.gpadls.iter().filter(move |(_, (of, _))| *of == channel).map(|(gpadl, _)| *gpadl)
    }

    /// Whether the server has taken the channel back.
    pub fn is_rescinded(&self, channel: ChannelId) -> bool {
        self.channels.get(&channel).is_some_and(|channel| channel.rescinded)
    }

    /// Connects, with the highest version first.
    pub fn connect(&mut self) -> Result<(), ClientError> {
        if self.state != State::Disconnected {
            return Err(ClientError::Connection);
        }
        self.contact(self.config.max_version);
        Ok(())
    }

    fn contact(&mut self, version: Version) {
        self.state = State::Connecting { version };
        let multi_client = version >= Version::Rs3_1;
        let has_features = version >= Version::Copper;
        let target = TargetInfo {
            sint: if multi_client { VMBUS_SINT } else { 0 },
            vtl: 0,
            features: if has_features { self.config.features } else { FeatureFlags::empty() },
        };
        let with_id = has_features && self.config.features.contains(FeatureFlags::CLIENT_ID);
        let message = ClientMessage::InitiateContact(InitiateContact {
            version: version as u32,
            target_message_vp: self.config.target_vp,
            target,
            interrupt_page: 0,
            monitor_pages: None,
            client_id: with_id.then_some(self.config.client_id),
        });
        self.messages.push_back((version.contact_connection_id(), message.emit()));
    }

    fn post(&mut self, message: &ClientMessage) -> Result<(), ClientError> {
        let State::Connected { connection_id, .. } = self.state else {
            return Err(ClientError::Connection);
        };
        self.messages.push_back((connection_id, message.emit()));
        Ok(())
    }

    fn connected(&self) -> Result<Negotiated, ClientError> {
        match self.state {
            State::Connected { negotiated, .. } => Ok(negotiated),
            _ => Err(ClientError::Connection),
        }
    }

    /// Disconnects. All channels are closed by it; all memory is the guest's again once
    /// [`ClientEvent::Unloaded`] comes.
    pub fn unload(&mut self) -> Result<(), ClientError> {
        let negotiated = self.connected()?;
        self.post(&ClientMessage::Unload)?;
        self.state = State::Unloading { negotiated };
        Ok(())
    }

    /// Shares memory with the device of a channel.
    pub fn create_gpadl(
        &mut self,
        channel: ChannelId,
        pages: &Gpadl,
    ) -> Result<GpadlId, ClientError> {
        self.connected()?;
        match self.channels.get(&channel) {
            Some(Channel { rescinded: false, .. }) => {}
            _ => return Err(ClientError::NoChannel(channel)),
        }
        let mut gpadl = GpadlId(self.next_gpadl);
        while gpadl.0 == 0 || self.gpadls.contains_key(&gpadl) {
            gpadl = GpadlId(gpadl.0.wrapping_add(1));
        }
        self.next_gpadl = gpadl.0.wrapping_add(1);
        for message in pages.messages(channel, gpadl) {
            self.post(&message)?;
        }
        self.gpadls.insert(gpadl, (channel, GpadlState::Creating));
        Ok(gpadl)
    }

    /// Takes memory back; it is the guest's again once [`ClientEvent::GpadlTorndown`] comes. That of the rings only
    /// after the channel was closed.
    pub fn teardown_gpadl(&mut self, gpadl: GpadlId) -> Result<(), ClientError> {
        self.connected()?;
        let refused = ClientError::GpadlState(gpadl);
        let Some((channel, state @ GpadlState::Created)) = self.gpadls.get_mut(&gpadl) else {
            return Err(refused);
        };
        let channel = *channel;
        if let Some(known) = self.channels.get(&channel)
            && known.ring == Some(gpadl)
            && !known.rescinded
        {
            return Err(refused);
        }
        *state = GpadlState::TearingDown;
        self.post(&ClientMessage::GpadlTeardown { channel, gpadl })
    }

    /// Opens a channel. Interrupts and packets may come before [`ClientEvent::Opened`].
    pub fn open(&mut self, channel: ChannelId, open: OpenParams) -> Result<(), ClientError> {
        let negotiated = self.connected()?;
        let known = self.channels.get_mut(&channel).ok_or(ClientError::NoChannel(channel))?;
        if known.rescinded || known.open != OpenState::Closed {
            return Err(ClientError::ChannelState(channel));
        }
        match self.gpadls.get(&open.ring_gpadl) {
            Some((of, GpadlState::Created)) if *of == channel => {}
            _ => return Err(ClientError::GpadlState(open.ring_gpadl)),
        }
        let open_id = self.next_open;
        self.next_open = self.next_open.wrapping_add(1);
        known.open = OpenState::Opening { open_id };
        known.ring = Some(open.ring_gpadl);
        let signal = SignalParameters {
            connection_id: known.offer.connection_id,
            event_flag: u16::try_from(channel.0).unwrap_or(u16::MAX),
            redirect_interrupt: false,
        };
        self.post(&ClientMessage::OpenChannel(OpenChannel {
            channel,
            open_id,
            ring_gpadl: open.ring_gpadl,
            target_vp: open.target_vp,
            downstream_page_offset: open.downstream_page_offset,
            user_data: open.user_data,
            signal: negotiated.long_open().then_some(signal),
        }))
    }

    /// Closes an open channel. No answer comes; its ring may be torn down at once.
    pub fn close(&mut self, channel: ChannelId) -> Result<(), ClientError> {
        self.connected()?;
        let known = self.channels.get_mut(&channel).ok_or(ClientError::NoChannel(channel))?;
        if !matches!(known.open, OpenState::Open { .. }) {
            return Err(ClientError::ChannelState(channel));
        }
        known.open = OpenState::Closed;
        known.ring = None;
        self.post(&ClientMessage::CloseChannel(channel))
    }

    /// Moves a channel's interrupt. From 5.3 on one at a time, and [`ClientEvent::Modified`] comes.
    pub fn modify(&mut self, channel: ChannelId, vp: VpIndex) -> Result<(), ClientError> {
        let version = self.connected()?.version;
        let known = self.channels.get_mut(&channel).ok_or(ClientError::NoChannel(channel))?;
        match &mut known.open {
            OpenState::Open { modifying: modifying @ false } if version >= Version::Rs3_0 => {
                *modifying = version >= Version::Iron;
            }
            _ => return Err(ClientError::ChannelState(channel)),
        }
        self.post(&ClientMessage::ModifyChannel { channel, target_vp: Some(vp) })
    }

    /// Forgets a channel: a rescinded one, so that its name is free, or a closed one that is not wanted. All its
    /// GPADLs must be torn down.
    pub fn release(&mut self, channel: ChannelId) -> Result<(), ClientError> {
        self.connected()?;
        let known = self.channels.get(&channel).ok_or(ClientError::NoChannel(channel))?;
        let closed = known.rescinded || known.open == OpenState::Closed;
        if !closed || self.gpadls(channel).next().is_some() {
            return Err(ClientError::ChannelState(channel));
        }
        self.channels.remove(&channel);
        self.post(&ClientMessage::RelIdReleased(channel))
    }

    /// Acts upon a message of the server.
    pub fn handle_message(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let message = ServerMessage::parse(bytes, self.connection())?;
        let unexpected = ClientError::Unexpected(message.message_type());
        if let ServerMessage::VersionResponse(response) = message {
            return self.version_response(response);
        }
        if let State::Unloading { .. } = self.state {
            // What was under way before the unload ends with it.
            if message == ServerMessage::UnloadComplete {
                self.state = State::Disconnected;
                self.channels.clear();
                self.gpadls.clear();
                self.events.push_back(ClientEvent::Unloaded);
            }
            return Ok(());
        }
        match message {
            ServerMessage::OfferChannel(offer) => {
                let id = offer.channel;
                if id.0 == 0 || id.0 >= MAX_CHANNELS || self.channels.contains_key(&id) {
                    return Err(unexpected);
                }
                let open = OpenState::Closed;
                self.channels.insert(id, Channel { offer, open, ring: None, rescinded: false });
                self.events.push_back(ClientEvent::Offered(offer));
            }
            ServerMessage::AllOffersDelivered => {
                self.events.push_back(ClientEvent::AllOffersDelivered);
            }
            ServerMessage::RescindChannelOffer(channel) => {
                let known = self.channels.get_mut(&channel).ok_or(unexpected)?;
                if known.rescinded {
                    return Err(unexpected);
                }
                known.rescinded = true;
                known.open = OpenState::Closed;
                known.ring = None;
                self.events.push_back(ClientEvent::Rescinded(channel));
            }
            ServerMessage::OpenChannelResult { channel, open_id, status } => {
                let known = self.channels.get_mut(&channel).ok_or(unexpected)?;
                if known.rescinded {
                    // It was asked for before the rescind; the rescind has said all.
                    return Ok(());
                }
                if known.open != (OpenState::Opening { open_id }) {
                    return Err(unexpected);
                }
                let success = status == STATUS_SUCCESS.cast_unsigned();
                if success {
                    known.open = OpenState::Open { modifying: false };
                } else {
                    known.open = OpenState::Closed;
                    known.ring = None;
                }
                self.events.push_back(ClientEvent::Opened { channel, success });
            }
            ServerMessage::GpadlCreated { channel, gpadl, status } => {
                let accepted = status >= 0;
                match self.gpadls.get_mut(&gpadl) {
                    Some((of, state @ GpadlState::Creating)) if *of == channel => {
                        *state = GpadlState::Created;
                    }
                    _ => return Err(unexpected),
                }
                if !accepted {
                    self.gpadls.remove(&gpadl);
                }
                self.events.push_back(ClientEvent::GpadlCreated { channel, gpadl, accepted });
            }
            ServerMessage::GpadlTorndown(gpadl) => {
                let Some((channel, GpadlState::TearingDown)) = self.gpadls.get(&gpadl) else {
                    return Err(unexpected);
                };
                let channel = *channel;
                self.gpadls.remove(&gpadl);
                self.events.push_back(ClientEvent::GpadlTorndown { channel, gpadl });
            }
            ServerMessage::ModifyChannelResponse { channel, status } => {
                match self.channels.get_mut(&channel).map(|known| &mut known.open) {
                    Some(OpenState::Open { modifying: modifying @ true }) => *modifying = false,
                    // Closed or rescinded meanwhile.
                    Some(_) => return Ok(()),
                    None => return Err(unexpected),
                }
                let success = status == STATUS_SUCCESS;
                self.events.push_back(ClientEvent::Modified { channel, success });
            }
            // Nothing of these is ever asked for.
            ServerMessage::VersionResponse(_)
            | ServerMessage::UnloadComplete
            | ServerMessage::CloseReservedResponse(_)
            | ServerMessage::TlConnectResult { .. }
            | ServerMessage::ModifyConnectionResponse(_)
            | ServerMessage::PauseResponse => return Err(unexpected),
        }
        Ok(())
    }

    fn version_response(&mut self, response: VersionResponse) -> Result<(), ClientError> {
        let State::Connecting { version } = self.state else {
            return Err(ClientError::Unexpected(MessageType::VersionResponse));
        };
        match response {
            VersionResponse::Unsupported => {
                let lower = Version::ALL.into_iter().find(|lower| *lower < version);
                match lower.filter(|lower| *lower >= self.config.min_version) {
                    Some(lower) => self.contact(lower),
                    None => self.connection_failed(),
                }
            }
            VersionResponse::Supported { state, value, features } => {
                if state != ConnectionState::Successful {
                    self.connection_failed();
                    return Ok(());
                }
                let features = match features {
                    Some(answer) if version >= Version::Copper => {
                        answer.features & self.config.features
                    }
                    _ => FeatureFlags::empty(),
                };
                let multi_client = version >= Version::Rs3_1;
                let connection_id =
                    if multi_client { value } else { version.contact_connection_id() };
                let negotiated = Negotiated { version, features };
                self.state = State::Connected { negotiated, connection_id };
                self.events.push_back(ClientEvent::Connected(negotiated));
                self.post(&ClientMessage::RequestOffers)?;
            }
        }
        Ok(())
    }

    fn connection_failed(&mut self) {
        self.state = State::Disconnected;
        self.events.push_back(ClientEvent::ConnectionFailed);
    }
}
