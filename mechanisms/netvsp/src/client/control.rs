//! The control core of a guest's NIC: brings it up step by step, and keeps its VF and link.

use netvsp_protocol::{
    MacAddress, NdisStatus,
    nvsp::{
        ClientMessage, DataPath, NvspStatus, NvspVersion, ReceiveBufferSection, SEND_TABLE_ENTRIES,
        ServerMessage,
    },
    offload::{ChecksumSetting, LargeSendSetting, OffloadCapabilities, OffloadParameters},
    oid::{Oid, PacketFilter},
    rndis::{
        MAJOR_VERSION, MINOR_VERSION, Reply, Request, STATUS_CURRENT_OFFLOAD, STATUS_MEDIA_CONNECT,
        STATUS_MEDIA_DISCONNECT,
    },
    rss::{HashInfo, RssCapabilities, RssParameters},
};

use super::{
    Upcall, VscConfig,
    vf::{Vf, VfEffect, VfPath},
};
use crate::{Incoming, Outgoing, Outputs, ProtocolError};

/// Transactions of control messages: their low half is the number of no buffer.
const CONTROL: u64 = 0xFFFF_FFFF;
/// The longest message that a guest here takes.
const MAX_TRANSFER: u32 = 0x4000;

/// What the core wants done, in this order.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The primary's queue speaks this version.
    Version(NvspVersion),
    /// The server took the receive buffer.
    ReceiveBuffer {
        /// The buffer's id.
        id: u16,
        /// How it is divided.
        section: ReceiveBufferSection,
    },
    /// The server took the send buffer.
    SendBuffer {
        /// Bytes of one section.
        section_size: u32,
    },
    /// The primary's queue is split for so many subchannels.
    SplitQueue(u16),
    /// Queues may send, so many packets in one message, or no more.
    Queues {
        /// Whether they may.
        up: bool,
        /// Packets in one message.
        max_packets: u32,
    },
    /// Which channel to send on by hash.
    SendTable([u32; SEND_TABLE_ENTRIES]),
    /// For whoever holds the NIC.
    Upcall(Upcall),
}

/// What the core waits for while it brings the NIC up.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Step {
    /// The channel is not open.
    Closed,
    /// INIT_COMPLETE for this version.
    Init(NvspVersion),
    /// SEND_RECEIVE_BUFFER_COMPLETE.
    ReceiveBuffer,
    /// SEND_SEND_BUFFER_COMPLETE.
    SendBuffer,
    /// The answer to RNDIS INITIALIZE.
    Initialize,
    /// The answer to a query.
    Query(Oid),
    /// The answer to SET of offload parameters.
    SetOffloads,
    /// SUBCHANNEL's completion.
    Subchannels,
    /// All subchannels, and the send table.
    OpenSubchannels {
        granted: u16,
        /// A bit for each that is open, the primary's included.
        open: u64,
        table: bool,
    },
    /// The answer to SET of RSS parameters.
    SetRss,
    /// The answer to SET of the packet filter.
    SetFilter,
    /// The NIC is up.
    Up,
    /// It cannot be brought up, or the server broke the protocol.
    Failed,
}

/// The control core of one guest's NIC. Events are methods; effects, and messages to the server, are its [`Self::outputs`].
#[derive(Debug)]
pub struct Control {
    config: VscConfig,
    step: Step,
    version: NvspVersion,
    /// The transaction, or RNDIS request, that the step waits for.
    awaited: u64,
    request_id: u32,
    next_transaction: u64,
    /// The transaction of the data-path request that is out.
    path_request: Option<u64>,
    mac: MacAddress,
    mtu: u32,
    max_packets: u32,
    connected: bool,
    offloads: OffloadCapabilities,
    channels: u16,
    /// Which frames the guest wants, and which it last asked for.
    filter: PacketFilter,
    filter_asked: PacketFilter,
    vf: Vf,
    outputs: Outputs<Effect>,
}

impl Control {
    /// A NIC whose channel is not open.
    #[must_use]
    pub fn new(config: VscConfig) -> Self {
        Self {
            step: Step::Closed,
            version: config.newest,
            awaited: 0,
            request_id: 0,
            next_transaction: 0,
            path_request: None,
            mac: MacAddress::ZERO,
            mtu: config.mtu,
            max_packets: 1,
            connected: false,
            offloads: OffloadCapabilities::default(),
            channels: 1,
            filter: PacketFilter::DIRECTED | PacketFilter::ALL_MULTICAST | PacketFilter::BROADCAST,
            filter_asked: PacketFilter::empty(),
            vf: Vf::new(),
            outputs: Outputs::new(),
            config,
        }
    }

    /// What is to be done since the last time, and the messages that wait.
    pub fn outputs(&mut self) -> &mut Outputs<Effect> {
        &mut self.outputs
    }

    /// Whether the NIC is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.step == Step::Up
    }

    /// Which path frames are sent on.
    #[must_use]
    pub fn path(&self) -> VfPath {
        self.vf.path()
    }

    /// The version agreed on, or asked for.
    #[must_use]
    pub fn version(&self) -> NvspVersion {
        self.version
    }

    fn up(&mut self, upcall: Upcall) {
        self.outputs.effect(Effect::Upcall(upcall));
    }

    fn transaction(&mut self) -> u64 {
        self.next_transaction += 1;
        self.next_transaction << 32 | CONTROL
    }

    /// Sends a message; with `answer`, the step waits for its completion.
    fn send(&mut self, message: ClientMessage, answer: bool) -> u64 {
        let transaction = self.transaction();
        // As Linux: messages are as long as the newest version's whatever was agreed on.
        let message = message.emit(NvspVersion::V61);
        self.outputs.message(Outgoing::Message {
            transaction,
            completion_requested: answer,
            message,
        });
        transaction
    }

    fn ask(&mut self, message: ClientMessage, step: Step) {
        self.awaited = self.send(message, true);
        self.step = step;
    }

    fn rndis(&mut self, step: Step, request: impl FnOnce(u32) -> Vec<u8>) {
        self.request_id = self.request_id.wrapping_add(1);
        self.awaited = u64::from(self.request_id);
        self.step = step;
        let bytes = request(self.request_id);
        self.outputs.message(Outgoing::Rndis { bytes });
    }

    /// The primary channel is open: begins.
    pub fn opened(&mut self) {
        self.init(self.config.newest);
    }

    fn init(&mut self, version: NvspVersion) {
        self.ask(ClientMessage::Init { version: version.to_wire() }, Step::Init(version));
    }

    /// The channel is closed, by whomever.
    pub fn closed(&mut self) {
        self.step = Step::Closed;
        self.outputs.forget_messages();
        self.path_request = None;
        self.channels = 1;
        self.outputs.effect(Effect::Queues { up: false, max_packets: 1 });
        self.vf.nic(None);
        self.vf_effects();
    }

    /// A packet that is no frame came on the primary channel.
    ///
    /// # Errors
    /// The server broke the protocol, or cannot be used.
    pub fn packet(&mut self, packet: Incoming) -> Result<(), ProtocolError> {
        if matches!(self.step, Step::Closed | Step::Failed) {
            return Ok(());
        }
        let result = match packet {
            Incoming::Completion { transaction, bytes } => self.completion(transaction, &bytes),
            Incoming::Message { transaction, bytes } => self.message(transaction, &bytes),
            Incoming::Rndis { bytes, .. } => match bytes {
                Ok(bytes) => self.reply(&bytes),
                Err(error) => Err(ProtocolError::Nvsp(error)),
            },
        };
        self.vf_effects();
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    /// The NIC is used no more, because of `error`.
    pub fn fail(&mut self, error: ProtocolError) {
        if self.step == Step::Failed {
            return;
        }
        self.step = Step::Failed;
        self.outputs.effect(Effect::Queues { up: false, max_packets: 1 });
        self.vf.nic(None);
        self.vf_effects();
        self.up(Upcall::Failed(error));
    }

    fn completion(&mut self, transaction: u64, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.path_request == Some(transaction) {
            self.path_request = None;
            self.vf.completed();
            return Ok(());
        }
        // A completion that nothing waits for means nothing (SPEC-VMBUS §8.2).
        let waits = matches!(
            self.step,
            Step::Init(_) | Step::ReceiveBuffer | Step::SendBuffer | Step::Subchannels
        );
        if !waits || transaction != self.awaited {
            return Ok(());
        }
        let message = ServerMessage::parse(bytes).map_err(ProtocolError::Nvsp)?;
        match (self.step, message) {
            (Step::Init(version), ServerMessage::InitComplete { status, .. }) => {
                if status != NvspStatus::SUCCESS {
                    let older =
                        NvspVersion::NEWEST_FIRST.into_iter().find(|older| *older < version);
                    self.init(older.ok_or(ProtocolError::NoVersion)?);
                    return Ok(());
                }
                self.version = version;
                self.outputs.effect(Effect::Version(version));
                if version >= NvspVersion::V2 {
                    let (mtu, capabilities) = (self.config.mtu, self.config.capabilities);
                    self.send(ClientMessage::SendNdisConfig { mtu, capabilities }, false);
                }
                let (major, minor) = version.ndis_version();
                self.send(ClientMessage::SendNdisVersion { major, minor }, false);
                let (gpadl, id) = self.config.receive_buffer;
                self.ask(ClientMessage::SendReceiveBuffer { gpadl, id }, Step::ReceiveBuffer);
            }
            (Step::ReceiveBuffer, ServerMessage::SendReceiveBufferComplete { section, .. }) => {
                let answer =
                    |reason| ProtocolError::Answer { message: "SEND_RECEIVE_BUFFER", reason };
                let section = section.ok_or(answer("it was refused"))?;
                let size = section.sub_allocation_size;
                let end = size.checked_mul(section.sub_allocations);
                if section.offset != 0 || size == 0 || end.is_none() {
                    return Err(answer("its section makes no sense"));
                }
                let id = self.config.receive_buffer.1;
                self.outputs.effect(Effect::ReceiveBuffer { id, section });
                let (gpadl, id) = self.config.send_buffer;
                self.ask(ClientMessage::SendSendBuffer { gpadl, id }, Step::SendBuffer);
            }
            (Step::SendBuffer, ServerMessage::SendSendBufferComplete { status, section_size }) => {
                if status != NvspStatus::SUCCESS || !(256..=1 << 20).contains(&section_size) {
                    let reason = "it was refused";
                    return Err(ProtocolError::Answer { message: "SEND_SEND_BUFFER", reason });
                }
                self.outputs.effect(Effect::SendBuffer { section_size });
                self.rndis(Step::Initialize, |request_id| {
                    let (major, minor) = (MAJOR_VERSION, MINOR_VERSION);
                    Request::Initialize { request_id, major, minor, max_transfer: MAX_TRANSFER }
                        .emit()
                });
            }
            (Step::Subchannels, ServerMessage::SubchannelComplete { status, count }) => {
                let wanted = u32::from(self.config.channels) - 1;
                let granted = u16::try_from(count.min(wanted)).unwrap_or(0);
                if status != NvspStatus::SUCCESS || granted == 0 {
                    self.set_filter();
                    return Ok(());
                }
                self.step = Step::OpenSubchannels { granted, open: 1, table: false };
                self.outputs.effect(Effect::SplitQueue(granted));
                self.up(Upcall::OpenSubchannels { count: granted });
            }
            _ => {
                let reason = "another message came";
                return Err(ProtocolError::Answer { message: "an NVSP request", reason });
            }
        }
        Ok(())
    }

    fn message(&mut self, transaction: Option<u64>, bytes: &[u8]) -> Result<(), ProtocolError> {
        let message = ServerMessage::parse(bytes).map_err(ProtocolError::Nvsp)?;
        match message {
            ServerMessage::SendVfAssociation { allocated, serial_number } => {
                let serial = allocated.then_some(serial_number);
                self.vf.associated(serial);
                self.up(Upcall::VfAssociation(serial));
            }
            ServerMessage::SwitchDataPath { path } => self.vf.server_moved(path),
            ServerMessage::SendIndirectionTable { table } => {
                if table.iter().any(|index| *index >= u32::from(self.config.channels)) {
                    let reason = "it names a channel that does not exist";
                    return Err(ProtocolError::Answer { message: "the send table", reason });
                }
                self.outputs.effect(Effect::SendTable(table));
                if let Step::OpenSubchannels { table, .. } = &mut self.step {
                    *table = true;
                    self.subchannels_open();
                }
            }
            _ => {
                let (message, when) = ("an answer", "as a message of its own");
                return Err(ProtocolError::OutOfOrder { message, when });
            }
        }
        if let Some(transaction) = transaction {
            self.outputs.message(Outgoing::Completion { transaction, message: None });
        }
        Ok(())
    }

    /// A subchannel is open.
    pub fn subchannel_opened(&mut self, index: u16) {
        if let Step::OpenSubchannels { granted, open, .. } = &mut self.step
            && index <= *granted
        {
            *open |= 1 << index;
            self.subchannels_open();
        }
    }

    fn subchannels_open(&mut self) {
        let Step::OpenSubchannels { granted, open, table: true } = self.step else { return };
        if open.count_ones() != u32::from(granted) + 1 {
            return;
        }
        self.channels = granted + 1;
        let channels = u32::from(self.channels);
        let parameters = RssParameters {
            disable: false,
            hash: HashInfo::TOEPLITZ
                | HashInfo::IPV4
                | HashInfo::TCP_IPV4
                | HashInfo::IPV6
                | HashInfo::TCP_IPV6,
            table: (0..128).map(|entry| entry % channels).collect(),
            key: self.config.rss_key,
        };
        self.set(Step::SetRss, Oid::GEN_RECEIVE_SCALE_PARAMETERS, &parameters.emit());
    }

    fn set(&mut self, step: Step, oid: Oid, info: &[u8]) {
        self.rndis(step, |request_id| Request::Set { request_id, oid, info }.emit());
    }

    fn query(&mut self, oid: Oid) {
        self.rndis(Step::Query(oid), |request_id| {
            Request::Query { request_id, oid, info: &[] }.emit()
        });
    }

    fn set_filter(&mut self) {
        self.ask_filter(Step::SetFilter);
    }

    fn ask_filter(&mut self, step: Step) {
        self.filter_asked = self.filter;
        let filter = self.filter.bits().to_le_bytes();
        self.set(step, Oid::GEN_CURRENT_PACKET_FILTER, &filter);
    }

    /// Which frames the guest wants from now on; at first unicast ones to its address, broadcasts and all groups. An
    /// empty filter is not asked for: it would stop the NIC.
    pub fn set_packet_filter(&mut self, filter: PacketFilter) {
        if filter.is_empty() {
            return;
        }
        self.filter = filter;
        if self.step == Step::Up && self.filter != self.filter_asked {
            // Nobody waits for the answer.
            self.ask_filter(Step::Up);
        }
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let reply = Reply::parse(bytes).map_err(ProtocolError::Nvsp)?;
        let awaited = |request_id: u32| u64::from(request_id) == self.awaited;
        match (self.step, reply) {
            (_, Reply::IndicateStatus { status, buffer }) => self.indication(status, buffer),
            (
                Step::Initialize,
                Reply::InitializeComplete { request_id, status, max_packets, .. },
            ) if awaited(request_id) => {
                if status != NdisStatus::SUCCESS {
                    let reason = "it was refused";
                    return Err(ProtocolError::Answer { message: "RNDIS INITIALIZE", reason });
                }
                self.max_packets = max_packets;
                self.query(Oid::IEEE_802_3_PERMANENT_ADDRESS);
            }
            (Step::Query(oid), Reply::QueryComplete { request_id, status, info })
                if awaited(request_id) =>
            {
                self.answer(oid, (status == NdisStatus::SUCCESS).then_some(info))?;
            }
            (Step::SetOffloads, Reply::SetComplete { request_id, .. }) if awaited(request_id) => {
                if self.version >= NvspVersion::V5 && self.config.channels > 1 {
                    self.query(Oid::GEN_RECEIVE_SCALE_CAPABILITIES);
                } else {
                    self.set_filter();
                }
            }
            (Step::SetRss, Reply::SetComplete { request_id, .. }) if awaited(request_id) => {
                self.set_filter();
            }
            (Step::SetFilter, Reply::SetComplete { request_id, status }) if awaited(request_id) => {
                if status != NdisStatus::SUCCESS {
                    let reason = "it was refused";
                    return Err(ProtocolError::Answer { message: "the packet filter", reason });
                }
                self.step = Step::Up;
                self.outputs.effect(Effect::Queues { up: true, max_packets: self.max_packets });
                self.up(Upcall::Up {
                    mac: self.mac,
                    mtu: self.mtu,
                    offloads: self.offloads,
                    connected: self.connected,
                    channels: self.channels,
                });
                self.vf.nic(Some(self.mac));
                self.set_packet_filter(self.filter);
            }
            // A reply that nothing waits for.
            _ => {}
        }
        Ok(())
    }

    /// The value of an OID, or that there is none; asks for the next.
    fn answer(&mut self, oid: Oid, info: Option<&[u8]>) -> Result<(), ProtocolError> {
        let word =
            || info.and_then(|info| info.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        match oid {
            Oid::IEEE_802_3_PERMANENT_ADDRESS => {
                let mac = info.and_then(|info| info.first_chunk::<6>());
                let reason = "the NIC has no address";
                let message = "OID_802_3_PERMANENT_ADDRESS";
                let mac = mac.ok_or(ProtocolError::Answer { message, reason })?;
                self.mac = MacAddress::new(*mac);
                self.query(Oid::GEN_MAXIMUM_TOTAL_SIZE);
            }
            Oid::GEN_MAXIMUM_TOTAL_SIZE => {
                self.mtu = word().unwrap_or(self.config.mtu).min(self.config.mtu);
                self.query(Oid::GEN_MEDIA_CONNECT_STATUS);
            }
            Oid::GEN_MEDIA_CONNECT_STATUS => {
                self.connected = word() == Some(0);
                self.query(Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES);
            }
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
                self.offloads =
                    info.and_then(|info| OffloadCapabilities::parse(info).ok()).unwrap_or_default();
                let wish = OffloadParameters {
                    ipv4: ChecksumSetting::Both,
                    tcp4: ChecksumSetting::Both,
                    udp4: ChecksumSetting::Both,
                    tcp6: ChecksumSetting::Both,
                    udp6: ChecksumSetting::Both,
                    large_send_v4: LargeSendSetting::On,
                    large_send_v6: LargeSendSetting::On,
                };
                self.set(Step::SetOffloads, Oid::TCP_OFFLOAD_PARAMETERS, &wish.emit());
            }
            _ => {
                let queues = info
                    .and_then(|info| RssCapabilities::parse(info).ok())
                    .map_or(1, |capabilities| capabilities.receive_queues);
                let count = u32::from(self.config.channels).min(queues).saturating_sub(1);
                if count == 0 {
                    self.set_filter();
                } else {
                    self.ask(ClientMessage::Subchannel { operation: 1, count }, Step::Subchannels);
                }
            }
        }
        Ok(())
    }

    fn indication(&mut self, status: NdisStatus, buffer: &[u8]) {
        match status {
            STATUS_MEDIA_CONNECT | STATUS_MEDIA_DISCONNECT => {
                self.connected = status == STATUS_MEDIA_CONNECT;
                self.up(Upcall::Link { connected: self.connected });
            }
            STATUS_CURRENT_OFFLOAD => {
                if let Ok(offloads) = OffloadCapabilities::parse(buffer) {
                    self.offloads = offloads;
                    self.up(Upcall::Offloads(offloads));
                }
            }
            _ => {}
        }
    }

    /// A VF with this serial number and address appeared, or (`None`) vanished.
    pub fn vf_device(&mut self, device: Option<(u32, MacAddress)>) {
        self.vf.device(device);
        self.vf_effects();
    }

    /// The VF's driver came up, or is to go down: it may after [`Upcall::VfReleased`], or at once where the path is
    /// synthetic.
    pub fn vf_driver(&mut self, up: bool) {
        self.vf.driver(up);
        self.vf_effects();
    }

    fn vf_effects(&mut self) {
        for effect in self.vf.take() {
            match effect {
                VfEffect::Ask(path) => {
                    let message = ClientMessage::SwitchDataPath { path };
                    self.path_request = Some(self.send(message, true));
                }
                VfEffect::Stop => self.up(Upcall::StopVf),
                VfEffect::Start => self.up(Upcall::StartVf),
                VfEffect::Released => self.up(Upcall::VfReleased),
            }
        }
    }

    /// Whether the server was asked for `path` and has not answered.
    #[must_use]
    pub fn is_asking(&self, path: DataPath) -> bool {
        match path {
            DataPath::Vf => self.vf.path() == VfPath::AskedForVf,
            DataPath::Synthetic => self.vf.path() == VfPath::AskedForSynthetic,
        }
    }
}
