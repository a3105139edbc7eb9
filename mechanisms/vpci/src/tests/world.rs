//! A host with one VF and a PF driver, and what its partition looks like; and a guest.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use pci_function::{PciFunction, ResetKind, avf};
use pcie_protocol::BarIndex;
use pcivirt_protocol::{NtStatus, VpciPnpId};
use vpci_protocol::{
    GuestMessage, HostMessage, InterruptGeneration, InterruptRequest, ProtocolVersion, SlotNumber,
    TranslatedMsi, reply, window,
};

use crate::{
    Effect, FunctionConfig, Incoming, Outgoing, Vsc, VscEffect, Vsp,
    vsc::{ReadyFunction, RequestId, VscConfig, VscReply},
    vsp::{
        ChannelFault, InterruptSource, InterruptTarget, PfRequest, PfRequestId, Removal, StopAnswer,
    },
};

pub(super) const WINDOW: u64 = 0xF800_0000;
pub(super) const APERTURE: std::ops::Range<u64> = 0xF000_0000..0xF900_0000;
pub(super) const PROBED: [u32; 6] = [0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0];
pub(super) const SLOT: SlotNumber = SlotNumber::ZERO;

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn config() -> FunctionConfig {
    let ids = VpciPnpId {
        vendor_id: 0x8086,
        device_id: 0x1889,
        revision_id: 2,
        prog_if: 0,
        sub_class: 0,
        base_class: 2,
        sub_vendor_id: 0x8086,
        sub_system_id: 7,
    };
    FunctionConfig::new(ids, 0x1234_5678, PROBED, vec![APERTURE], 4)
}

/// What the effects of a VSP add up to. Checks that they make sense, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Partition {
    pub(super) window: Option<u64>,
    /// Address and size, and whether it still reaches the function.
    pub(super) bars: BTreeMap<BarIndex, (u64, u64, bool)>,
    pub(super) routes: BTreeMap<InterruptSource, InterruptTarget>,
    pub(super) stop_answers: Vec<StopAnswer>,
    pub(super) removed: Option<Removal>,
    pub(super) rescinded: bool,
    pub(super) failed: Option<ChannelFault>,
    pub(super) overdue: usize,
}

impl Partition {
    /// Does what an effect says; what is for others comes back.
    fn carry_out(&mut self, effect: Effect) -> Option<Effect> {
        match effect {
            Effect::MapWindow { address } => {
                assert_eq!(self.window.replace(address), None, "a window is mapped once");
            }
            Effect::UnmapWindow => assert!(self.window.take().is_some(), "there was a window"),
            Effect::MapBar { bar, address, size } => {
                assert!(address.is_multiple_of(size) && address != 0);
                assert!(APERTURE.start <= address && address + size <= APERTURE.end);
                let window = self.window.expect("memory answers while the bus is on");
                let apart =
                    |start: u64, length: u64| address + size <= start || start + length <= address;
                assert!(apart(window, window::SIZE));
                assert!(self.bars.values().all(|(start, length, _)| apart(*start, *length)));
                assert_eq!(self.bars.insert(bar, (address, size, true)), None, "mapped once");
            }
            Effect::IsolateBar { bar } => {
                let mapping = self.bars.get_mut(&bar).expect("it is mapped");
                assert!(std::mem::replace(&mut mapping.2, false), "isolated once");
            }
            Effect::UnmapBar { bar } => {
                assert!(self.bars.remove(&bar).is_some(), "what is unmapped was mapped");
            }
            Effect::Route { source, target: Some(target) } => {
                assert!(!target.processors.is_empty());
                assert!(target.processors.iter().all(|vp| *vp < 4));
                assert_ne!(self.routes.insert(source, target.clone()), Some(target));
            }
            Effect::Route { source, target: None } => {
                assert!(self.routes.remove(&source).is_some());
            }
            Effect::StopAnswered(answer) => self.stop_answers.push(answer),
            Effect::Removed(removal) => {
                assert_eq!(self.removed.replace(removal), None, "removed once");
                assert!(self.routes.is_empty(), "no interrupt after the removal");
                let reached = self.bars.values().any(|(_, _, reaches)| *reaches);
                assert!(!reached, "nothing reaches the function after the removal");
                assert!(!removal.is_graceful() || self.bars.is_empty());
            }
            Effect::Rescind => {
                assert!(self.removed.is_some() && !self.rescinded);
                self.rescinded = true;
            }
            Effect::Fail(fault) => self.failed = Some(fault),
            Effect::CloseOverdue => self.overdue += 1,
            other @ (Effect::Send(_) | Effect::Pf { .. }) => return Some(other),
        }
        None
    }
}

/// A host: its VSP, its partition, a VF and the PF driver.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) vsp: Vsp,
    pub(super) partition: Partition,
    pub(super) vf: PciFunction,
    pub(super) blocks: BTreeMap<u32, Vec<u8>>,
    pub(super) pf: VecDeque<(PfRequestId, PfRequest)>,
    pub(super) sent: VecDeque<Outgoing>,
    pub(super) resets: usize,
    pub(super) now: Duration,
    next_transaction: u64,
}

impl Host {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: FunctionConfig) -> Self {
        let vf = avf::raw_virtual_function(17).unwrap();
        Self {
            vsp: Vsp::new(config, &vf).unwrap(),
            partition: Partition::default(),
            vf,
            blocks: BTreeMap::new(),
            pf: VecDeque::new(),
            sent: VecDeque::new(),
            resets: 0,
            now: Duration::ZERO,
            next_transaction: 1,
        }
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match self.partition.carry_out(effect) {
                Some(Effect::Send(packet)) => self.sent.push_back(packet),
                Some(Effect::Pf { id, request }) => self.pf.push_back((id, request)),
                _ => {}
            }
        }
    }

    pub(super) fn incoming(&mut self, packet: Incoming<'_>) {
        let effects = self.vsp.receive(packet, self.now);
        self.carry_out(effects);
    }

    /// The PF driver does all that it was asked.
    pub(super) fn run_pf(&mut self) {
        while let Some((id, request)) = self.pf.pop_front() {
            let output = match request {
                PfRequest::ReadBlock { block_id, length } => {
                    let mut block = self.blocks.get(&block_id).cloned().unwrap_or_default();
                    block.resize(length.into(), 0);
                    Ok(block)
                }
                PfRequest::WriteBlock { block_id: 0xBAD, .. } => Err(NtStatus::ACCESS_DENIED),
                PfRequest::WriteBlock { block_id, data } => {
                    self.blocks.insert(block_id, data);
                    Ok(Vec::new())
                }
                PfRequest::WriteConfig { offset, data } => {
                    self.vf.config_write(offset.into(), &data).unwrap();
                    Ok(Vec::new())
                }
                PfRequest::Reset => {
                    self.vf.reset(ResetKind::FunctionLevel);
                    self.resets += 1;
                    Ok(Vec::new())
                }
                PfRequest::SetPowerState { .. } => Ok(Vec::new()),
            };
            let output = output.as_ref().map(Vec::as_slice).map_err(|status| *status);
            let effects = self.vsp.pf_completed(id, output);
            self.carry_out(effects);
        }
    }

    pub(super) fn open(&mut self) {
        self.vsp.channel_opened();
    }

    pub(super) fn close(&mut self) {
        let effects = self.vsp.channel_closed();
        self.carry_out(effects);
        self.sent.clear();
        self.run_pf();
        assert_eq!(self.partition.window, None);
        assert!(self.partition.bars.is_empty() && self.partition.routes.is_empty());
        assert_eq!(self.vsp.interrupt_count(), 0);
    }

    pub(super) fn raw(&mut self, payload: &[u8]) -> u64 {
        let transaction = self.next_transaction;
        self.next_transaction += 1;
        self.incoming(Incoming::Message { transaction: Some(transaction), payload });
        transaction
    }

    /// The guest sends a message and gets the completion; what else is sent stays.
    pub(super) fn ask_raw(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let transaction = self.raw(payload);
        self.run_pf();
        let is_answer = |packet: &Outgoing| matches!(packet, Outgoing::Completion { transaction: answered, .. } if *answered == transaction);
        let answers = self.sent.iter().filter(|packet| is_answer(packet)).count();
        assert!(answers <= 1, "a message is answered once");
        let at = self.sent.iter().position(is_answer)?;
        match self.sent.remove(at) {
            Some(Outgoing::Completion { payload, .. }) => Some(payload),
            _ => None,
        }
    }

    pub(super) fn ask(&mut self, message: &GuestMessage<'_>) -> Vec<u8> {
        let mut payload = Vec::new();
        message.emit(&mut payload).unwrap();
        self.ask_raw(&payload).expect("an answer")
    }

    pub(super) fn status(&mut self, message: &GuestMessage<'_>) -> NtStatus {
        reply::status(&self.ask(message)).unwrap()
    }

    /// The guest sends a message and asks for no completion.
    pub(super) fn tell(&mut self, message: &GuestMessage<'_>) {
        let mut payload = Vec::new();
        message.emit(&mut payload).unwrap();
        self.incoming(Incoming::Message { transaction: None, payload: &payload });
        self.run_pf();
    }

    /// What the host sent without being asked.
    pub(super) fn messages(&mut self) -> Vec<HostMessage> {
        let sent = std::mem::take(&mut self.sent);
        sent.iter()
            .map(|packet| match packet {
                Outgoing::Message { payload, .. } => HostMessage::parse(payload).unwrap(),
                Outgoing::Completion { .. } => panic!("nobody waits for {packet:?}"),
            })
            .collect()
    }

    pub(super) fn negotiated(version: ProtocolVersion) -> Self {
        let mut host = Self::new();
        host.open();
        let version = GuestMessage::QueryProtocolVersion { version: version.to_wire() };
        assert_eq!(host.status(&version), NtStatus::SUCCESS);
        host
    }

    pub(super) fn d0() -> Self {
        let mut host = Self::negotiated(ProtocolVersion::V1_4);
        host.enter_d0();
        host
    }

    pub(super) fn enter_d0(&mut self) {
        let entry = GuestMessage::FdoD0Entry { mmio_start: WINDOW };
        assert_eq!(self.status(&entry), NtStatus::SUCCESS);
        assert!(matches!(self.messages()[..], [HostMessage::BusRelations { .. }]));
        assert_eq!(self.partition.window, Some(WINDOW));
    }

    pub(super) fn write(&mut self, register: u64, data: &[u8]) {
        self.write_window(window::CONFIG_SPACE + register, data);
    }

    pub(super) fn write_window(&mut self, offset: u64, data: &[u8]) {
        let effects = self.vsp.window_write(offset, data);
        self.carry_out(effects);
        self.run_pf();
    }

    pub(super) fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.vsp.window_read(window::CONFIG_SPACE + register, &mut data, &self.vf);
        u32::from_le_bytes(data)
    }

    /// The guest puts BAR 0 to 0xF0100000 and BAR 3 to 0xF0200000, and enables memory and bus mastering.
    pub(super) fn map_bars(&mut self) {
        self.write(0x10, &0xF010_0000u32.to_le_bytes());
        self.write(0x1C, &0xF020_0000u32.to_le_bytes());
        self.write(0x04, &6u16.to_le_bytes());
        let bars: Vec<_> = self.partition.bars.values().copied().collect();
        assert_eq!(bars, [(0xF010_0000, 0x1_0000, true), (0xF020_0000, 0x4000, true)]);
        assert!(self.vf.dma_allowed());
    }

    pub(super) fn running() -> Self {
        let mut host = Self::d0();
        host.map_bars();
        host
    }

    pub(super) fn create_interrupt(&mut self, vector: u32, processor: u16) -> TranslatedMsi {
        let answer = self.ask(&GuestMessage::CreateInterrupt {
            generation: InterruptGeneration::V3,
            slot: SLOT,
            interrupt: InterruptRequest::single(vector, processor),
        });
        assert_eq!(reply::status(&answer), Ok(NtStatus::SUCCESS));
        reply::InterruptCreated::parse(&answer).unwrap().interrupt
    }

    /// The guest's driver writes an entry of the MSI-X table.
    pub(super) fn write_msi_x(&mut self, vector: u16, interrupt: TranslatedMsi) {
        let offset = u64::from(vector) * 16;
        for (at, dword) in crate::vsc::msi_x_entry(interrupt).chunks(4).enumerate() {
            let effects = self.vsp.bar_write(avf::MSI_X_BAR, offset + 4 * at as u64, dword);
            self.carry_out(effects.expect("the table"));
        }
    }

    /// The guest's driver turns MSI-X on.
    pub(super) fn enable_msi_x(&mut self) {
        let offset = self.find_capability(0x11);
        self.write(offset + 2, &0x8000u16.to_le_bytes());
    }

    pub(super) fn find_capability(&mut self, id: u8) -> u64 {
        let mut at = u64::from(self.read(0x34) & 0xFF);
        while at != 0 {
            let header = self.read(at & !3).to_le_bytes();
            if header[0] == id {
                return at;
            }
            at = header[1].into();
        }
        panic!("no capability {id:#x}")
    }
}

/// A guest: its VSC, and what its driver gets to know.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) vsc: Vsc,
    pub(super) ready: Option<ReadyFunction>,
    pub(super) eject_requested: bool,
    pub(super) stop_requested: bool,
    pub(super) resumed: usize,
    pub(super) gone: usize,
    pub(super) blocks_invalidated: u64,
    pub(super) completed: BTreeMap<RequestId, Result<VscReply, NtStatus>>,
    pub(super) failed: Option<crate::vsc::VscError>,
    pub(super) close: bool,
    pub(super) sent: VecDeque<Outgoing>,
}

/// Both ends, and nothing between them that could lose anything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) host: Host,
    pub(super) guest: Guest,
}

impl World {
    pub(super) fn new(config: FunctionConfig, version: ProtocolVersion) -> Self {
        let vsc =
            VscConfig { max_version: version, ..VscConfig::new(WINDOW, 0xF000_0000..0xF800_0000) };
        let guest = Guest {
            vsc: Vsc::new(vsc),
            ready: None,
            eject_requested: false,
            stop_requested: false,
            resumed: 0,
            gone: 0,
            blocks_invalidated: 0,
            completed: BTreeMap::new(),
            failed: None,
            close: false,
            sent: VecDeque::new(),
        };
        Self { host: Host::with(config), guest }
    }

    pub(super) fn open(&mut self) {
        self.host.open();
        self.guest.close = false;
        let effects = self.guest.vsc.channel_opened(self.host.now);
        self.guest(effects);
    }

    /// The channel is closed, by whichever end.
    pub(super) fn close(&mut self) {
        let effects = self.guest.vsc.channel_closed();
        self.guest(effects);
        self.guest.sent.clear();
        self.host.close();
    }

    /// Does what the guest's effects say.
    pub(super) fn guest(&mut self, effects: Vec<VscEffect>) {
        for effect in effects {
            let guest = &mut self.guest;
            match effect {
                VscEffect::Send(packet) => guest.sent.push_back(packet),
                VscEffect::MmioWrite { address, data } => {
                    assert_eq!(self.host.partition.window, Some(WINDOW), "the window is there");
                    self.host.write_window(address - WINDOW, &data);
                }
                VscEffect::Ready(function) => guest.ready = Some(function),
                VscEffect::EjectRequested => guest.eject_requested = true,
                VscEffect::StopRequested => guest.stop_requested = true,
                VscEffect::Resumed => guest.resumed += 1,
                VscEffect::Gone => {
                    guest.gone += 1;
                    guest.ready = None;
                }
                VscEffect::BlocksInvalidated(mask) => guest.blocks_invalidated |= mask,
                VscEffect::Completed { request, result } => {
                    assert!(guest.completed.insert(request, result).is_none());
                }
                VscEffect::Failed(error) => guest.failed = Some(error),
                VscEffect::CloseChannel => guest.close = true,
            }
        }
    }

    pub(super) fn one_to_host(&mut self) -> bool {
        let Some(packet) = self.guest.sent.pop_front() else { return false };
        self.host.incoming(packet.as_incoming());
        true
    }

    pub(super) fn one_to_guest(&mut self) -> bool {
        let Some(packet) = self.host.sent.pop_front() else { return false };
        let effects = self.guest.vsc.receive(packet.as_incoming(), self.host.now);
        self.guest(effects);
        true
    }

    /// Until nobody has anything left to say.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            let moved = self.one_to_host() | self.one_to_guest() | !self.host.pf.is_empty();
            self.host.run_pf();
            if !moved {
                return;
            }
        }
        panic!("the two never stop talking");
    }

    /// Lets time pass, and lets both see to their deadlines.
    pub(super) fn pass(&mut self, time: Duration) {
        self.host.now += time;
        let effects = self.host.vsp.poll(self.host.now);
        self.host.carry_out(effects);
        let effects = self.guest.vsc.poll(self.host.now);
        self.guest(effects);
    }

    pub(super) fn up(version: ProtocolVersion) -> Self {
        let mut world = Self::new(config(), version);
        world.open();
        world.settle();
        assert!(world.guest.ready.is_some(), "{:?}", world.guest.vsc.state());
        world
    }
}
