//! VMBus server: the host's end of the channel protocol, for one guest.
//!
//! No I/O, no threads, no clock. Messages of the guest and calls of the devices come in; messages to the guest
//! ([`Server::next_message`]) and work for the devices ([`Server::next_effect`]) come out. What the guest may not
//! do is refused ([`Refusal`]) and changes nothing.
//!
//! | channel | on | becomes | and |
//! | --- | --- | --- | --- |
//! | closed | OPEN_CHANNEL with an accepted ring | opening | [`Effect::Open`] |
//! | opening | [`Server::open_complete`] | open, or closed | OPEN_CHANNEL_RESULT |
//! | opening | CLOSE_CHANNEL, UNLOAD | opening, to be closed | |
//! | open | CLOSE_CHANNEL, UNLOAD | closing | [`Effect::Close`] |
//! | closing | OPEN_CHANNEL | closing, to be opened again | |
//! | closing | [`Server::close_complete`] | closed, or opening | what was held up by it goes on |
//! | any | [`Server::revoke`] | revoked | RESCIND_CHANNEL_OFFER |
//! | revoked | REL_ID_RELEASED, UNLOAD | gone | |
//!
//! | GPADL | on | becomes | and |
//! | --- | --- | --- | --- |
//! | none | GPADL_HEADER | in progress | |
//! | in progress | the last GPADL_BODY | pending | [`Effect::GpadlCreated`] |
//! | pending | [`Server::gpadl_complete`] | accepted, or none | GPADL_CREATED |
//! | accepted | GPADL_TEARDOWN, UNLOAD | tearing down, once its ring is closed | [`Effect::GpadlTeardown`] |
//! | tearing down | [`Server::gpadl_released`] | none | GPADL_TORNDOWN |

mod channel;
mod connection;
mod gpadl;
mod messages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use vmbus_protocol::{
    CONNECTION_ID, ChannelId, FeatureFlags, Gpadl, GpadlError, GpadlId, Guid, MAX_CHANNELS,
    MULTI_CLIENT_CONNECTION_ID, MessageBytes, MessageError, MessageType, MonitorPages, Negotiated,
    OfferFlags, USER_DEFINED_SIZE, UserDefined, VMBUS_SINT, Version, VpIndex,
};

use channel::{Channel, OpenState, Presence};
use connection::Connection;

/// A device's channel, as the host names it. Never used twice.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct OfferHandle(u64);

/// What a server supports, and how much it holds for a guest.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ServerConfig {
    /// The highest version spoken.
    pub max_version: Version,
    /// Features granted to a guest that asks for them, from 6.0 on.
    pub features: FeatureFlags,
    /// The connection id that guests from 5.0 on are told to post to.
    pub message_connection_id: u32,
    /// GPADLs of all channels, at most.
    pub max_gpadls: usize,
    /// Pages of all GPADLs, at most; the server holds 8 bytes for each while the GPADL is being made.
    pub max_gpadl_pages: usize,
    /// Messages to the guest that may wait before no more are taken from it.
    pub max_queued_messages: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_version: Version::Copper,
            features: FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS
                | FeatureFlags::MODIFY_CONNECTION
                | FeatureFlags::CLIENT_ID
                | FeatureFlags::PAUSE_RESUME,
            message_connection_id: MULTI_CLIENT_CONNECTION_ID,
            max_gpadls: 4096,
            max_gpadl_pages: 1 << 18,
            max_queued_messages: 256,
        }
    }
}

/// What a device offers.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct OfferParams {
    /// What kind of device.
    pub interface_id: Guid,
    /// Which device.
    pub instance_id: Guid,
    /// 0: the device's primary channel.
    pub subchannel_index: u16,
    /// What the guest is to know about it.
    pub flags: OfferFlags,
    /// MMIO space the device needs, MiB.
    pub mmio_megabytes: u16,
    /// MMIO space the device would like, MiB.
    pub mmio_megabytes_optional: u16,
    /// The device's own bytes.
    pub user_defined: UserDefined,
    /// Channels of one interface are offered in this order.
    pub order: u64,
}

impl OfferParams {
    /// The primary channel of a device, with nothing special about it.
    pub fn new(interface_id: Guid, instance_id: Guid) -> Self {
        Self {
            interface_id,
            instance_id,
            subchannel_index: 0,
            flags: OfferFlags::empty(),
            mmio_megabytes: 0,
            mmio_megabytes_optional: 0,
            user_defined: UserDefined::default(),
            order: 0,
        }
    }

    fn key(&self) -> (Guid, u64, Guid, u16) {
        (self.interface_id, self.order, self.instance_id, self.subchannel_index)
    }

    fn is_same_channel(&self, other: &Self) -> bool {
        self.interface_id == other.interface_id
            && self.instance_id == other.instance_id
            && self.subchannel_index == other.subchannel_index
    }

    fn is_subchannel_of(&self, primary: &Self) -> bool {
        self.subchannel_index != 0
            && primary.subchannel_index == 0
            && self.interface_id == primary.interface_id
            && self.instance_id == primary.instance_id
    }
}

/// How a guest opened a channel.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OpenRequest {
    /// The guest's name of the channel.
    pub channel: ChannelId,
    /// The rings' memory: accepted, of whole pages.
    pub ring_gpadl: GpadlId,
    /// At which of its pages the ring from host to guest begins; both rings have at least two pages.
    pub downstream_page_offset: u32,
    /// The processor to interrupt; `None`: never.
    pub target_vp: Option<VpIndex>,
    /// The connection id by which the guest signals the host.
    pub connection_id: u32,
    /// The event flag by which the host signals the guest.
    pub event_flag: u16,
    /// The device client's own bytes.
    pub user_data: [u8; USER_DEFINED_SIZE],
}

/// What a device, or whoever stands for it, is to do.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Effect {
    /// The guest is connected.
    Connected(Negotiated),
    /// The guest gave its monitor pages, or took them back.
    MonitorPages(Option<MonitorPages>),
    /// Everything of the connection is released.
    Disconnected,
    /// Look whether the pages may be used, then [`Server::gpadl_complete`].
    GpadlCreated {
        /// Whose.
        offer: OfferHandle,
        /// Which.
        gpadl: GpadlId,
        /// The pages.
        pages: Gpadl,
    },
    /// Use the pages no more, then [`Server::gpadl_released`].
    GpadlTeardown {
        /// Whose.
        offer: OfferHandle,
        /// Which.
        gpadl: GpadlId,
    },
    /// Begin to use the rings, then [`Server::open_complete`].
    Open {
        /// Whose.
        offer: OfferHandle,
        /// How.
        request: OpenRequest,
    },
    /// Use the rings no more, then [`Server::close_complete`].
    Close {
        /// Whose.
        offer: OfferHandle,
    },
    /// Interrupt another processor, then [`Server::modify_complete`].
    Modify {
        /// Whose.
        offer: OfferHandle,
        /// Which.
        target_vp: VpIndex,
    },
    /// A subchannel ended with the connection; its handle is not valid any more.
    Withdrawn {
        /// Which.
        offer: OfferHandle,
    },
}

/// A message to the guest.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OutgoingMessage {
    /// The message.
    pub message: MessageBytes,
    /// The processor it is for.
    pub target_vp: VpIndex,
    /// The interrupt source it is for.
    pub target_sint: u8,
}

/// Why a message of the guest was not acted upon.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It is no message that a guest may send now.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// So many answers wait for the guest that it must take some first.
    #[error("the guest does not take the messages sent to it; it must, before it sends more")]
    Busy,
    /// The connection is being released.
    #[error("{} came while the connection is being released", .0.name())]
    Disconnecting(MessageType),
    /// The connection is paused.
    #[error("{} came while the connection is paused", .0.name())]
    Paused(MessageType),
    /// Offers were requested before.
    #[error("offers were requested twice")]
    OffersRequestedTwice,
    /// There is no such channel.
    #[error("channel {0} is not offered")]
    NoChannel(ChannelId),
    /// The channel is not in a state for this.
    #[error("{} does not fit the state of channel {channel}", .message.name())]
    ChannelState {
        /// Which channel.
        channel: ChannelId,
        /// What came.
        message: MessageType,
    },
    /// There is no such GPADL, or not in that state.
    #[error("GPADL {gpadl} does not exist or is in use")]
    GpadlState {
        /// Which.
        gpadl: GpadlId,
    },
    /// The range data is bad.
    #[error("GPADL {gpadl}")]
    Gpadl {
        /// Which.
        gpadl: GpadlId,
        /// Why.
        #[source]
        source: GpadlError,
    },
    /// The guest has too many GPADLs, or too large ones.
    #[error("GPADL {gpadl} exceeds what one guest may have")]
    GpadlLimit {
        /// Which.
        gpadl: GpadlId,
    },
    /// The GPADL cannot hold rings split there.
    #[error("GPADL {gpadl} cannot be the rings of a channel, split at page {offset}")]
    BadRing {
        /// Which.
        gpadl: GpadlId,
        /// Where the second ring begins.
        offset: u32,
    },
    /// The guest chose an event flag or connection id that is not free.
    #[error("the event flag {event_flag} or connection id {connection_id:#x} is not to be had")]
    SignalParameters {
        /// The event flag.
        event_flag: u16,
        /// The connection id.
        connection_id: u32,
    },
    /// A processor is missing, or the channel has no interrupts.
    #[error("the interrupt of channel {0} cannot be moved")]
    NoInterrupt(ChannelId),
    /// The guest asks for an interrupt source or trust level that is not this server's.
    #[error("contact for interrupt source {sint} and VTL {vtl}, which have no server")]
    NoServer {
        /// The interrupt source.
        sint: u8,
        /// The trust level.
        vtl: u8,
    },
}

/// Why a device's call was not acted upon.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum ServerError {
    /// The handle is not valid (any more).
    #[error("the channel is not offered any more")]
    NoOffer,
    /// The channel is offered already.
    #[error("a channel with these ids and this subchannel index is offered already")]
    Duplicate,
    /// A subchannel without a primary channel.
    #[error("a subchannel needs its primary channel to be open")]
    NoPrimary,
    /// So many channels cannot be named.
    #[error("there are more channels than a guest can be told of")]
    TooMany,
    /// Nothing of the kind is outstanding.
    #[error("the device was not asked for this")]
    NotAsked,
}

/// The server's end of one guest's VMBus.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    connection: Connection,
    channels: BTreeMap<OfferHandle, Channel>,
    /// By the guest's name.
    ids: BTreeMap<ChannelId, OfferHandle>,
    /// GPADLs whose range data is not complete: whose they are.
    assembling: BTreeMap<GpadlId, OfferHandle>,
    gpadls: usize,
    gpadl_pages: usize,
    next_handle: u64,
    messages: VecDeque<OutgoingMessage>,
    effects: VecDeque<Effect>,
}

impl Server {
    /// A server for a guest that has not connected.
    pub fn new(config: ServerConfig) -> Self {
        Self {
            config,
            connection: Connection::Disconnected,
            channels: BTreeMap::new(),
            ids: BTreeMap::new(),
            assembling: BTreeMap::new(),
            gpadls: 0,
            gpadl_pages: 0,
            next_handle: 1,
            messages: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// Whether a guest may post messages to this connection id.
    pub fn has_connection_id(&self, connection_id: u32) -> bool {
        let own = [CONNECTION_ID, MULTI_CLIENT_CONNECTION_ID, self.config.message_connection_id];
        own.contains(&connection_id)
    }

    /// What the connection speaks, if there is one.
    pub fn connection(&self) -> Option<Negotiated> {
        match &self.connection {
            Connection::Connected(connected) => Some(connected.negotiated),
            _ => None,
        }
    }

    /// Whether messages of the guest are taken. If not, leave them where they are until [`Self::next_message`] has
    /// been called often enough.
    pub fn takes_messages(&self) -> bool {
        // A guest that has paused can only end that; what it may send makes the queue no longer.
        self.messages.len() < self.config.max_queued_messages || self.is_paused()
    }

    fn is_paused(&self) -> bool {
        matches!(&self.connection, Connection::Connected(connected) if connected.paused)
    }

    /// The next message to the guest, to be posted in this order. None comes while the guest has paused.
    pub fn next_message(&mut self) -> Option<OutgoingMessage> {
        if let Connection::Connected(connected) = &self.connection
            && connected.paused
        {
            // What answers the pause itself goes out before.
            connected.messages_before_pause.checked_sub(1)?;
        }
        let message = self.messages.pop_front()?;
        if let Connection::Connected(connected) = &mut self.connection {
            connected.messages_before_pause = connected.messages_before_pause.saturating_sub(1);
        }
        Some(message)
    }

    /// The next thing to do for a device.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A device offers a channel. The guest is told now, or when it asks.
    pub fn offer(&mut self, params: OfferParams) -> Result<OfferHandle, ServerError> {
        let live = |channel: &&Channel| channel.presence != Presence::Revoked;
        if self.channels.values().filter(live).any(|c| c.params.is_same_channel(&params)) {
            return Err(ServerError::Duplicate);
        }
        let open = |channel: &&Channel| matches!(channel.open, OpenState::Open { .. });
        if params.subchannel_index != 0
            && !self
                .channels
                .values()
                .filter(live)
                .filter(open)
                .any(|channel| params.is_subchannel_of(&channel.params))
        {
            return Err(ServerError::NoPrimary);
        }
        if self.channels.values().filter(live).count() >= MAX_CHANNELS as usize - 1 {
            return Err(ServerError::TooMany);
        }
        let handle = OfferHandle(self.next_handle);
        self.next_handle += 1;
        self.channels.insert(handle, Channel::new(params));
        self.offer_waiting();
        Ok(handle)
    }

    /// A device takes its channel back: it uses neither rings nor GPADLs from now on, and answers nothing that it
    /// was asked. Subchannels go with their primary channel, before it.
    pub fn revoke(&mut self, offer: OfferHandle) -> Result<(), ServerError> {
        let channel = self.channels.get(&offer).ok_or(ServerError::NoOffer)?;
        if channel.presence == Presence::Revoked {
            return Err(ServerError::NoOffer);
        }
        let primary = channel.params.clone();
        let subchannels = self.channels.iter().filter(|(_, channel)| {
            channel.presence != Presence::Revoked && channel.params.is_subchannel_of(&primary)
        });
        let subchannels = subchannels.map(|(handle, _)| *handle).collect::<Vec<_>>();
        for handle in subchannels.into_iter().chain([offer]) {
            self.revoke_one(handle);
        }
        self.settle();
        Ok(())
    }

    /// The guest's processors were reset, or it is gone: as UNLOAD, but there is nobody to tell, and reserved
    /// channels go too.
    pub fn reset(&mut self) {
        self.begin_release(connection::Next::Nothing, true);
        self.settle();
    }

    /// Whether nothing of the guest is held, and no device is working for it.
    pub fn is_idle(&self) -> bool {
        matches!(self.connection, Connection::Disconnected)
            && self.channels.values().all(|channel| channel.is_clean())
    }

    /// The channel's name for the guest, if the guest knows of it.
    pub fn channel_id(&self, offer: OfferHandle) -> Option<ChannelId> {
        self.channels.get(&offer)?.id
    }

    /// Accounts for a GPADL that is no more.
    fn forget_gpadl(&mut self, pages: usize) {
        self.gpadls = self.gpadls.saturating_sub(1);
        self.gpadl_pages = self.gpadl_pages.saturating_sub(pages);
    }

    /// Queues a message for where the connection has its messages sent.
    fn post(&mut self, message: &vmbus_protocol::ServerMessage) {
        let target_vp = match &self.connection {
            Connection::Connected(connected) => connected.target_vp,
            Connection::Releasing { target_vp, .. } => *target_vp,
            Connection::Disconnected => VpIndex(0),
        };
        self.post_to(message, target_vp, VMBUS_SINT);
    }

    fn post_to(
        &mut self,
        message: &vmbus_protocol::ServerMessage,
        target_vp: VpIndex,
        target_sint: u8,
    ) {
        let message = message.emit();
        self.messages.push_back(OutgoingMessage { message, target_vp, target_sint });
    }
}
