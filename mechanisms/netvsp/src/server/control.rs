//! The control core of a NIC: NVSP negotiation, buffers, subchannels, VF. RNDIS is in `rndis`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use netvsp_protocol::{
    NdisStatus,
    nvsp::{
        ClientMessage, MAX_MTU, MIN_MTU, MessageBytes, NvspCapabilities, NvspStatus, NvspVersion,
        ReceiveBufferSection, SEND_BUFFER_SECTION_SIZE, SEND_TABLE_ENTRIES, ServerMessage,
    },
    offload::OffloadCapabilities,
    oid::PacketFilter,
    packet::{RECEIVE_DATA_OFFSET, RECEIVE_TAIL},
};
use vmbus::GuestBuffer;

use super::{
    BufferKind, NicConfig, QueuePhase, QueueState, Upcall, VfControl,
    relay::Relay,
    vf::{Vf, VfState},
};
use crate::{Incoming, Outgoing, Outputs, ProtocolError, ReceiveBuffer, Steering};

/// Messages to the guest that may wait before nothing more is read of it.
pub(super) const MAX_WAITING: usize = 32;
/// The fewest suballocations that a receive buffer must make for each channel.
const MIN_SUB_ALLOCATIONS: u32 = 32;
/// Bytes of a cache line.
const CACHE_LINE: u32 = 64;

/// What the core wants done, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// All queues take this state.
    Queues(QueueState),
    /// All queues use this receive buffer, or none; the primary's queue gets all of its suballocations.
    ReceiveBuffer(Option<ReceiveBuffer>),
    /// All queues use this send buffer, or none.
    SendBuffer(Option<GuestBuffer>),
    /// The primary's queue is split for so many subchannels ([`super::VspQueue::split`]).
    SplitQueue(u16),
    /// For whoever holds the NIC.
    Upcall(Upcall),
}

/// One of the guest's two buffers.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Buffer {
    None,
    /// Its GPADL is being looked up.
    Mapping {
        gpadl: u32,
        id: u16,
        transaction: Option<u64>,
    },
    Ready {
        gpadl: u32,
        id: u16,
    },
    /// The guest took it back; there will not be another until the channel is opened anew.
    Revoked,
}

/// The subchannels that a guest asked for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Subchannels {
    None,
    /// Some are not open yet.
    Opening {
        granted: u16,
        /// A bit for each one that is open, the primary's included.
        open: u64,
    },
    Open {
        granted: u16,
    },
}

/// Whether RNDIS is up.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Rndis {
    Down,
    Up,
    Halted,
}

/// What was agreed on with the guest; gone when the channel closes.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) version: Option<NvspVersion>,
    /// MTU and capabilities of SEND_NDIS_CONFIG.
    config: Option<(u32, NvspCapabilities)>,
    ndis_version: Option<(u32, u32)>,
    receive: Buffer,
    sub_allocation_size: u32,
    send: Buffer,
    pub(super) rndis: Rndis,
    pub(super) filter: PacketFilter,
    pub(super) offloads: OffloadCapabilities,
    subchannels: Subchannels,
    dead: bool,
}

impl Session {
    fn new() -> Self {
        Self {
            version: None,
            config: None,
            ndis_version: None,
            receive: Buffer::None,
            sub_allocation_size: 0,
            send: Buffer::None,
            rndis: Rndis::Down,
            filter: PacketFilter::empty(),
            offloads: OffloadCapabilities::default(),
            subchannels: Subchannels::None,
            dead: false,
        }
    }
}

/// The control core of one synthetic NIC.
///
/// Events are methods; effects, and messages to the guest, are its [`Self::outputs`]. It does no I/O and has no clock.
#[derive(Debug)]
pub struct Control {
    pub(super) config: NicConfig,
    pub(super) session: Session,
    pub(super) vf: Vf,
    /// In place of `vf` where the host decides about it.
    pub(super) relay: Option<Relay>,
    pub(super) outputs: Outputs<Effect>,
}

fn out_of_order(message: &'static str, when: &'static str) -> ProtocolError {
    ProtocolError::OutOfOrder { message, when }
}

impl Control {
    /// The core of a NIC whose channel is not open. `max_channels` is cut to 1 to 64.
    #[must_use]
    pub fn new(config: NicConfig) -> Self {
        let (delay, relay) = match config.vf {
            VfControl::Own { offer_delay } => (offer_delay, None),
            VfControl::Host => (Duration::ZERO, Some(Relay::new())),
        };
        let (session, outputs) = (Session::new(), Outputs::new());
        Self { config: config.cut(), session, vf: Vf::new(delay), relay, outputs }
    }

    /// Another configuration, while the channel is not open: what is decided about the VF stays, and by whom.
    pub fn reconfigure(&mut self, config: NicConfig) {
        self.config = NicConfig { vf: self.config.vf, ..config.cut() };
    }

    /// What is to be done since the last time, and the messages that wait.
    pub fn outputs(&mut self) -> &mut Outputs<Effect> {
        &mut self.outputs
    }

    /// Messages that wait to be sent.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.outputs.waiting_count()
    }

    /// Whether the core takes packets: it does not while the guest leaves many messages unread.
    #[must_use]
    pub fn accepts_packets(&self) -> bool {
        self.outputs.waiting_count() < MAX_WAITING && !self.session.dead
    }

    /// The version agreed on, if INIT has been.
    #[must_use]
    pub fn version(&self) -> Option<NvspVersion> {
        self.session.version
    }

    /// Whether RNDIS is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.session.rndis == Rndis::Up
    }

    /// Where the VF is, if the NIC decides about it.
    #[must_use]
    pub fn vf_state(&self) -> VfState {
        self.vf.state()
    }

    /// The longest frame, bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.session.config.map_or(MIN_MTU, |(mtu, _)| mtu)
    }

    /// Channels that the guest may use now.
    #[must_use]
    pub fn channels(&self) -> u16 {
        match self.session.subchannels {
            Subchannels::Open { granted } => granted + 1,
            _ => 1,
        }
    }

    pub(super) fn up(&mut self, upcall: Upcall) {
        self.outputs.effect(Effect::Upcall(upcall));
    }

    pub(super) fn push(&mut self, outgoing: Outgoing) {
        self.outputs.message(outgoing);
    }

    pub(super) fn emit(&self, message: ServerMessage) -> MessageBytes {
        message.emit(self.session.version.unwrap_or(NvspVersion::V1))
    }

    /// The answer to a packet, if one was asked for.
    pub(super) fn answer(&mut self, transaction: Option<u64>, message: Option<ServerMessage>) {
        if let Some(transaction) = transaction {
            let message = message.map(|message| self.emit(message));
            self.push(Outgoing::Completion { transaction, message });
        }
    }

    fn queue_state(&self) -> QueueState {
        let session = &self.session;
        QueueState {
            phase: match (session.dead, session.rndis, session.receive) {
                (false, Rndis::Down, _) => QueuePhase::Starting,
                (false, Rndis::Up, Buffer::Ready { .. }) => QueuePhase::Running,
                _ => QueuePhase::Stopped,
            },
            version: session.version.unwrap_or(NvspVersion::V1),
            mtu: self.mtu(),
            filter: session.filter,
            sub_allocation_size: session.sub_allocation_size,
            receive_buffer_id: match session.receive {
                Buffer::Mapping { id, .. } | Buffer::Ready { id, .. } => id,
                Buffer::None | Buffer::Revoked => 0,
            },
        }
    }

    pub(super) fn update_queues(&mut self) {
        let state = self.queue_state();
        self.outputs.effect(Effect::Queues(state));
    }

    /// A packet that is no frame came on the primary channel.
    ///
    /// # Errors
    /// The guest broke the protocol; the core takes no packets until the channel was closed.
    pub fn packet(&mut self, packet: Incoming, now: Instant) -> Result<(), ProtocolError> {
        let result = match packet {
            Incoming::Message { transaction, bytes } => ClientMessage::parse(&bytes)
                .map_err(ProtocolError::Nvsp)
                .and_then(|message| self.message(message, transaction)),
            Incoming::Rndis { transaction, bytes } => match self.session.receive {
                Buffer::Ready { .. } => {
                    self.rndis(transaction, bytes, now);
                    Ok(())
                }
                _ => Err(out_of_order("an RNDIS message", "without a receive buffer")),
            },
            // What the host asks (VF association, data path) needs no answer.
            Incoming::Completion { .. } => Ok(()),
        };
        self.vf_effects();
        if let Err(error) = result {
            self.fail(0, error);
        }
        result
    }

    /// A channel is served no more, because of `error`.
    pub fn fail(&mut self, channel: u16, error: ProtocolError) {
        self.session.dead = true;
        self.update_queues();
        self.up(Upcall::Dead { channel, error });
    }

    fn message(
        &mut self,
        message: ClientMessage,
        transaction: Option<u64>,
    ) -> Result<(), ProtocolError> {
        let name = message.name();
        if let ClientMessage::Init { version } = message {
            return self.init(version, transaction);
        }
        let version = self.session.version.ok_or(out_of_order(name, "before INIT"))?;
        if message.since() > version {
            return Err(ProtocolError::NotInVersion { message: name, version });
        }
        match message {
            ClientMessage::Init { .. } => {}
            ClientMessage::SendNdisConfig { mtu, capabilities } => {
                self.ndis_config(mtu, capabilities, transaction)?;
            }
            ClientMessage::SendNdisVersion { major, minor } => {
                if self.session.ndis_version.replace((major, minor)).is_some() {
                    return Err(out_of_order(name, "twice"));
                }
                self.answer(transaction, None);
            }
            ClientMessage::SendReceiveBuffer { gpadl, id } => {
                self.receive_buffer(gpadl, id, transaction)?;
            }
            ClientMessage::SendSendBuffer { gpadl, id } => {
                if self.session.send != Buffer::None {
                    return Err(out_of_order(name, "twice"));
                }
                if !matches!(self.session.receive, Buffer::Ready { .. }) {
                    return Err(out_of_order(name, "before the receive buffer was taken"));
                }
                self.session.send = Buffer::Mapping { gpadl, id, transaction };
                self.up(Upcall::MapGpadl { gpadl, kind: BufferKind::Send });
            }
            ClientMessage::RevokeReceiveBuffer { .. } => {
                let Buffer::Ready { gpadl, .. } = self.session.receive else {
                    return Err(out_of_order(name, "without a receive buffer"));
                };
                self.session.receive = Buffer::Revoked;
                self.update_queues();
                self.outputs.effect(Effect::ReceiveBuffer(None));
                self.up(Upcall::GpadlReleased { gpadl });
                self.halted();
                self.answer(transaction, None);
            }
            ClientMessage::RevokeSendBuffer { .. } => {
                let Buffer::Ready { gpadl, .. } = self.session.send else {
                    return Err(out_of_order(name, "without a send buffer"));
                };
                self.session.send = Buffer::Revoked;
                self.outputs.effect(Effect::SendBuffer(None));
                self.up(Upcall::GpadlReleased { gpadl });
                self.answer(transaction, None);
            }
            ClientMessage::SwitchDataPath { path } => self.guest_asks_path(path, transaction),
            ClientMessage::OidQueryEx { .. } => {
                // Guests ask OIDs through RNDIS.
                let status = NdisStatus::NOT_SUPPORTED;
                let message = ServerMessage::OidQueryExComplete { status, bytes: 0 };
                self.answer(transaction, Some(message));
            }
            ClientMessage::Subchannel { operation, count } => {
                self.subchannel_request(operation, count, transaction);
            }
            // The queue takes those.
            ClientMessage::SendRndisPacket(_) | ClientMessage::SendRndisPacketComplete { .. } => {
                return Err(out_of_order(name, "as a message of its own"));
            }
            ClientMessage::PacketDirect(_) | ClientMessage::Obsolete(_) => {
                self.answer(transaction, None);
            }
        }
        Ok(())
    }

    fn init(&mut self, version: u32, transaction: Option<u64>) -> Result<(), ProtocolError> {
        if self.session.version.is_some() {
            return Err(out_of_order("INIT", "twice"));
        }
        let known =
            NvspVersion::from_wire(version).filter(|version| *version <= self.config.newest);
        self.session.version = known;
        let message = known.map_or_else(ServerMessage::refuse, ServerMessage::accept);
        self.answer(transaction, Some(message));
        self.update_queues();
        Ok(())
    }

    fn ndis_config(
        &mut self,
        mtu: u32,
        capabilities: NvspCapabilities,
        transaction: Option<u64>,
    ) -> Result<(), ProtocolError> {
        const NAME: &str = "SEND_NDIS_CONFIG";
        if self.session.config.is_some() {
            return Err(out_of_order(NAME, "twice"));
        }
        if self.session.receive != Buffer::None {
            return Err(out_of_order(NAME, "after the receive buffer"));
        }
        let mtu = if (MIN_MTU..=MAX_MTU).contains(&mtu) { mtu } else { MIN_MTU };
        self.session.config = Some((mtu, capabilities));
        self.answer(transaction, None);
        Ok(())
    }

    fn receive_buffer(
        &mut self,
        gpadl: u32,
        id: u16,
        transaction: Option<u64>,
    ) -> Result<(), ProtocolError> {
        const NAME: &str = "SEND_RECEIVE_BUFFER";
        if self.session.receive != Buffer::None {
            return Err(out_of_order(NAME, "twice"));
        }
        if self.session.ndis_version.is_none() {
            return Err(out_of_order(NAME, "before SEND_NDIS_VERSION"));
        }
        self.session.receive = Buffer::Mapping { gpadl, id, transaction };
        self.up(Upcall::MapGpadl { gpadl, kind: BufferKind::Receive });
        Ok(())
    }

    /// A GPADL was looked up ([`Upcall::MapGpadl`]); `None` if there is no such one, or it cannot be used.
    pub fn gpadl_mapped(&mut self, kind: BufferKind, buffer: Option<GuestBuffer>) {
        match kind {
            BufferKind::Receive => self.receive_buffer_mapped(buffer),
            BufferKind::Send => self.send_buffer_mapped(buffer),
        }
    }

    fn receive_buffer_mapped(&mut self, buffer: Option<GuestBuffer>) {
        let Buffer::Mapping { gpadl, id, transaction } = self.session.receive else { return };
        // SPEC-VMBUS §5.4: room for headers, the frame, and the tail that one client must not see used.
        // In whole cache lines, so that each frame begins with one, and an odd number of them, so that the first lines
        // of all frames spread over the caches' sets.
        let size = RECEIVE_DATA_OFFSET + self.mtu() + RECEIVE_TAIL;
        let size = (size.div_ceil(CACHE_LINE) | 1) * CACHE_LINE;
        let usable = buffer.and_then(|buffer| {
            let count = u32::try_from(buffer.len()).ok()? / size;
            (count >= MIN_SUB_ALLOCATIONS).then_some((buffer, count))
        });
        let Some((buffer, count)) = usable else {
            self.session.receive = Buffer::None;
            let status = NvspStatus::FAILURE;
            let message = ServerMessage::SendReceiveBufferComplete { status, section: None };
            self.answer(transaction, Some(message));
            return;
        };
        let section = ReceiveBufferSection {
            offset: 0,
            sub_allocation_size: size,
            sub_allocations: count,
            end_offset: size * count,
        };
        self.session.receive = Buffer::Ready { gpadl, id };
        self.session.sub_allocation_size = size;
        self.outputs.effect(Effect::ReceiveBuffer(Some(ReceiveBuffer { buffer, id, section })));
        self.update_queues();
        let status = NvspStatus::SUCCESS;
        let section = Some(section);
        let message = ServerMessage::SendReceiveBufferComplete { status, section };
        self.answer(transaction, Some(message));
    }

    fn send_buffer_mapped(&mut self, buffer: Option<GuestBuffer>) {
        let Buffer::Mapping { gpadl, id, transaction } = self.session.send else { return };
        let usable = buffer.filter(|buffer| buffer.len() >= SEND_BUFFER_SECTION_SIZE as usize);
        let (status, section_size) = if let Some(buffer) = usable {
            self.session.send = Buffer::Ready { gpadl, id };
            self.outputs.effect(Effect::SendBuffer(Some(buffer)));
            (NvspStatus::SUCCESS, SEND_BUFFER_SECTION_SIZE)
        } else {
            self.session.send = Buffer::None;
            (NvspStatus::FAILURE, 0)
        };
        let message = ServerMessage::SendSendBufferComplete { status, section_size };
        self.answer(transaction, Some(message));
    }

    fn subchannel_request(&mut self, operation: u32, count: u32, transaction: Option<u64>) {
        const ALLOCATE: u32 = 1;
        let most = u32::from(self.config.max_channels) - 1;
        let ready = matches!(self.session.receive, Buffer::Ready { .. })
            && self.session.subchannels == Subchannels::None;
        let granted = match u16::try_from(count) {
            Ok(granted) if ready && operation == ALLOCATE && granted > 0 && count <= most => {
                granted
            }
            _ => 0,
        };
        let status = if granted > 0 { NvspStatus::SUCCESS } else { NvspStatus::FAILURE };
        let message = ServerMessage::SubchannelComplete { status, count: u32::from(granted) };
        self.answer(transaction, Some(message));
        if granted > 0 {
            self.session.subchannels = Subchannels::Opening { granted, open: 1 };
            self.outputs.effect(Effect::SplitQueue(granted));
            self.up(Upcall::OfferSubchannels { count: granted });
        }
    }

    /// The guest opened a subchannel. After the last one it gets its send table.
    pub fn subchannel_opened(&mut self, index: u16) {
        let Subchannels::Opening { granted, open } = &mut self.session.subchannels else { return };
        if index > *granted {
            return;
        }
        *open |= 1 << index;
        let channels = u32::from(*granted) + 1;
        if open.count_ones() < channels {
            return;
        }
        self.session.subchannels = Subchannels::Open { granted: *granted };
        let mut table = [0; SEND_TABLE_ENTRIES];
        for (entry, index) in table.iter_mut().zip(0u32..) {
            *entry = index % channels;
        }
        let message = self.emit(ServerMessage::SendIndirectionTable { table });
        self.push(Outgoing::Message { transaction: 0, completion_requested: false, message });
    }

    /// The primary channel was opened.
    pub fn opened(&mut self) {
        self.update_queues();
    }

    /// The primary channel was closed; its subchannels with it. The guest keeps its VF (SPEC-VMBUS §7).
    pub fn closed(&mut self) {
        let buffers = [self.session.receive, self.session.send];
        let was_up = self.session.rndis == Rndis::Up;
        self.session = Session::new();
        self.outputs.forget_messages();
        self.vf_guest_closed();
        self.outputs.effect(Effect::ReceiveBuffer(None));
        self.outputs.effect(Effect::SendBuffer(None));
        for buffer in buffers {
            if let Buffer::Ready { gpadl, .. } = buffer {
                self.up(Upcall::GpadlReleased { gpadl });
            }
        }
        if was_up {
            self.up(Upcall::Steering(None));
            self.up(Upcall::Halted);
        }
        self.update_queues();
    }

    /// RNDIS went down.
    pub(super) fn halted(&mut self) {
        if self.session.rndis == Rndis::Up {
            self.session.rndis = Rndis::Halted;
            self.session.filter = PacketFilter::empty();
            self.up(Upcall::Halted);
        }
        self.update_queues();
    }

    /// RNDIS came up.
    pub(super) fn initialized(&mut self, now: Instant) {
        let Some(version) = self.session.version else { return };
        self.session.rndis = Rndis::Up;
        self.session.offloads = self.config.offloads;
        let capabilities = self.session.config.map_or(NvspCapabilities::empty(), |(_, c)| c);
        self.update_queues();
        self.up(Upcall::Initialized { version, mtu: self.mtu() });
        let able = self.config.sriov
            && version >= NvspVersion::V4
            && capabilities.contains(NvspCapabilities::SRIOV);
        self.vf_guest_up(able, now);
    }

    pub(super) fn steer(&mut self, steering: Option<Steering>) {
        self.up(Upcall::Steering(steering.map(Arc::new)));
    }
}
