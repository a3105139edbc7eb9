//! A guest's packets, configuration accesses and hypercalls into a virtual PCI bus, with events of the host's and
//! time in between. The effects have to make sense one after the other, and nothing is left when the channel closes.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use pci_function::{PciFunction, ResetKind, avf};
use pcie_protocol::BarIndex;
use pcivirt_protocol::{NtStatus, VpciPnpId};
use vpci::{
    Effect, FunctionConfig, Incoming, Outgoing, Vsp,
    vsp::{BusState, InterruptSource, InterruptTarget, PfRequest, PfRequestId, Presence},
};
use vpci_protocol::{GuestMessage, HostMessage, MessageType, window};

const WINDOW: u64 = 0xF800_0000;
const APERTURE: std::ops::Range<u64> = 0xF000_0000..0xF900_0000;
const PROBED: [u32; 6] = [0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0];

fn parse(bytes: &[u8]) {
    let mut again = Vec::new();
    if let Ok(message) = GuestMessage::parse(bytes) {
        message.emit(&mut again).expect("what was understood can be said");
        assert_eq!(GuestMessage::parse(&again).as_ref(), Ok(&message));
        assert!(HostMessage::parse(bytes).is_err());
    }
    again.clear();
    if let Ok(message) = HostMessage::parse(bytes) {
        message.emit(&mut again).expect("what was understood can be said");
        assert_eq!(HostMessage::parse(&again).as_ref(), Ok(&message));
    }
}

struct Host {
    vsp: Vsp,
    vf: PciFunction,
    window: Option<u64>,
    /// Address, size, and whether it still reaches the function.
    bars: BTreeMap<BarIndex, (u64, u64, bool)>,
    routes: BTreeMap<InterruptSource, InterruptTarget>,
    pf: VecDeque<(PfRequestId, PfRequest)>,
    /// Completions that the guest waits for.
    waits: BTreeSet<u64>,
    /// Interrupts that it was given: address and data.
    removed: bool,
    rescinded: bool,
    now: Duration,
}

impl Host {
    fn new() -> Self {
        let vf = avf::raw_virtual_function(17).expect("a published device");
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
        let config = FunctionConfig::new(ids, 0x1234_5678, PROBED, vec![APERTURE], 4);
        let mut vsp = Vsp::new(config, &vf).expect("a function that can be shown");
        vsp.channel_opened();
        Self {
            vsp,
            vf,
            window: None,
            bars: BTreeMap::new(),
            routes: BTreeMap::new(),
            pf: VecDeque::new(),
            waits: BTreeSet::new(),
            removed: false,
            rescinded: false,
            now: Duration::ZERO,
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(Outgoing::Completion { transaction, .. }) => {
                    assert!(self.waits.remove(&transaction), "nobody waits for that answer");
                }
                Effect::Send(Outgoing::Message { payload, .. }) => {
                    HostMessage::parse(&payload).expect("what a guest understands");
                }
                Effect::MapWindow { address } => {
                    assert!(APERTURE.contains(&address));
                    assert_eq!(self.window.replace(address), None, "a window is mapped once");
                }
                Effect::UnmapWindow => assert!(self.window.take().is_some()),
                Effect::MapBar { bar, address, size } => {
                    assert!(address.is_multiple_of(size) && address != 0);
                    assert!(APERTURE.start <= address && address + size <= APERTURE.end);
                    let window = self.window.expect("memory answers while the bus is on");
                    let apart = |start: u64, length: u64| {
                        address + size <= start || start + length <= address
                    };
                    assert!(apart(window, window::SIZE));
                    assert!(self.bars.values().all(|(start, length, _)| apart(*start, *length)));
                    assert_eq!(self.bars.insert(bar, (address, size, true)), None, "mapped once");
                }
                Effect::IsolateBar { bar } => {
                    let mapping = self.bars.get_mut(&bar).expect("it is mapped");
                    assert!(std::mem::replace(&mut mapping.2, false), "isolated once");
                }
                Effect::UnmapBar { bar } => assert!(self.bars.remove(&bar).is_some()),
                Effect::Route { source, target: Some(target) } => {
                    assert!(!target.processors.is_empty());
                    assert!(target.processors.iter().all(|vp| *vp < 4));
                    self.routes.insert(source, target);
                }
                Effect::Route { source, target: None } => {
                    assert!(self.routes.remove(&source).is_some());
                }
                Effect::Pf { id, request } => {
                    self.pf.push_back((id, request));
                }
                Effect::Removed(removal) => {
                    assert!(!std::mem::replace(&mut self.removed, true), "removed once");
                    assert!(self.routes.is_empty(), "no interrupt after the removal");
                    assert!(!self.bars.values().any(|(_, _, reaches)| *reaches));
                    assert!(!removal.is_graceful() || self.bars.is_empty());
                }
                Effect::Rescind => {
                    assert!(self.removed && !std::mem::replace(&mut self.rescinded, true));
                }
                Effect::StopAnswered(_) | Effect::Fail(_) | Effect::CloseOverdue => {}
            }
        }
    }

    /// The PF driver does the first of what it was asked.
    fn run_pf(&mut self, succeeds: bool) {
        let Some((id, request)) = self.pf.pop_front() else { return };
        let mut output = Vec::new();
        match request {
            PfRequest::ReadBlock { length, .. } => output.resize(length.into(), 0),
            PfRequest::WriteConfig { offset, data } => {
                self.vf.config_write(offset.into(), &data).expect("what mediation lets through");
            }
            PfRequest::Reset => {
                self.vf.reset(ResetKind::FunctionLevel);
            }
            PfRequest::WriteBlock { .. } | PfRequest::SetPowerState { .. } => {}
        }
        let output = if succeeds { Ok(&output[..]) } else { Err(NtStatus::ACCESS_DENIED) };
        let effects = self.vsp.pf_completed(id, output);
        self.carry_out(effects);
    }

    fn message(&mut self, transaction: Option<u64>, payload: &[u8]) {
        if !self.vsp.accepts_packets() || self.rescinded {
            return;
        }
        self.waits.extend(transaction);
        let effects = self.vsp.receive(Incoming::Message { transaction, payload }, self.now);
        self.carry_out(effects);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let effects = self.vsp.window_write(offset, data);
        self.carry_out(effects);
    }

    fn close(&mut self) {
        let effects = self.vsp.channel_closed();
        self.waits.clear();
        self.carry_out(effects);
        while !self.pf.is_empty() {
            self.run_pf(true);
        }
        assert_eq!(self.window, None);
        assert!(self.bars.is_empty() && self.routes.is_empty());
        assert!(self.vsp.claims().is_empty());
        assert_eq!(self.vsp.interrupt_count(), 0);
    }
}

/// A message of some type whose fields are likely to be small.
fn payload(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.byte();
    let Some(kind) = MessageType::ALL.get(usize::from(kind)) else {
        return input.short().to_vec();
    };
    let mut bytes = kind.to_wire().to_le_bytes().to_vec();
    match kind {
        MessageType::QueryProtocolVersion => {
            bytes.extend((0x1_0001 + u32::from(input.byte() % 6)).to_le_bytes());
        }
        MessageType::FdoD0Entry => {
            bytes.extend(0u32.to_le_bytes());
            let address = if input.byte() < 230 { WINDOW } else { input.qword() };
            bytes.extend(address.to_le_bytes());
        }
        _ => bytes.extend(input.short()),
    }
    bytes.resize(bytes.len() + usize::from(input.byte()), 0);
    bytes
}

fuzz_target!(|data: &[u8]| {
    parse(data);
    let mut input = Input::new(data);
    let mut host = Host::new();
    if input.bit() {
        host.message(Some(1 << 40), b"\x13\x00\x49\x42\x04\x00\x01\x00");
        host.message(
            Some(2 << 40),
            &[0x42490007u32.to_le_bytes(), [0; 4], (WINDOW as u32).to_le_bytes(), [0; 4]].concat(),
        );
    }
    let mut transaction = 0;
    while !input.is_empty() {
        let window = window::CONFIG_SPACE;
        match input.byte() % 20 {
            0..=5 => {
                let bytes = payload(&mut input);
                transaction += 1;
                host.message(input.bit().then_some(transaction), &bytes);
            }
            6 => {
                let which = input.byte();
                let transaction =
                    if which & 1 == 0 { (1 << 63) + u64::from(which / 2) } else { input.qword() };
                let payload = input.short();
                let effects =
                    host.vsp.receive(Incoming::Completion { transaction, payload }, host.now);
                host.carry_out(effects);
            }
            7..=9 => {
                let register = u64::from(input.byte());
                let length = [1, 2, 4, 4][usize::from(input.byte() & 3)];
                let data = input.take(length);
                host.write(window + register, data);
            }
            10 => {
                // BARs where they can be, and memory on.
                let at = u32::from(input.byte());
                host.write(window + 0x10, &(0xF000_0000 + (at << 16)).to_le_bytes());
                host.write(window + 0x14, &[0; 4]);
                host.write(window + 0x1C, &(0xF020_0000 + (at << 14)).to_le_bytes());
                host.write(window + 0x20, &[0; 4]);
                host.write(window + 4, &[6, 0]);
            }
            11 => {
                let offset = if input.bit() { input.qword() } else { input.word().into() };
                let mut data = [0; 9];
                let data = &mut data[..usize::from(input.byte()) % 10];
                host.vsp.window_read(offset, data, &host.vf);
                host.vsp.bar_read(BarIndex::BAR3, offset, data);
                host.write(offset, data);
            }
            12 => {
                let offset = input.word() % 0x140;
                let value = if input.bit() { 0xFEE0_0000 } else { u32::from(input.byte() & 31) };
                let bytes = value.to_le_bytes();
                let length = if input.byte() < 240 { 4 } else { input.below(5) };
                let effects = host.vsp.bar_write(BarIndex::BAR3, offset.into(), &bytes[..length]);
                host.carry_out(effects.unwrap_or_default());
            }
            13 => {
                let target =
                    InterruptTarget::fixed(input.byte().into(), u16::from(input.byte() % 6));
                let effects = host.vsp.retarget(0xFEE0_0000, u32::from(input.byte() & 31), target);
                host.carry_out(effects.unwrap_or_default());
            }
            14 => {
                host.now += Duration::from_secs(input.byte().into());
                let effects = host.vsp.poll(host.now);
                host.carry_out(effects);
                assert!(host.vsp.next_deadline().is_none_or(|deadline| deadline > host.now));
            }
            15 => {
                let effects = match input.byte() % 8 {
                    0 => host.vsp.eject(Duration::from_secs(60), host.now),
                    1 => host.vsp.surprise_remove(host.now),
                    2 => host.vsp.query_stop(Duration::from_secs(5), host.now),
                    3 => host.vsp.re_enable(),
                    4 => host.vsp.invalidate_blocks(input.qword()),
                    5 => host.vsp.set_congested(true),
                    6 => host.vsp.set_congested(false),
                    _ => Vec::new(),
                };
                host.carry_out(effects);
            }
            16 => {
                host.close();
                if !host.rescinded {
                    host.vsp.channel_opened();
                }
            }
            _ => host.run_pf(input.byte() < 200),
        }
        assert!(host.vsp.interrupt_count() <= 2048);
        assert!(host.vsp.claims().len() <= 7);
        assert!(host.pf.len() <= 4096, "the PF driver is asked without end");
        if let Presence::Ejecting { deadline } = host.vsp.presence() {
            assert!(host.vsp.next_deadline() <= Some(deadline));
        }
    }
    host.close();
    assert_eq!(host.vsp.bus(), BusState::Closed);
    host.now += Duration::from_secs(1000);
    let effects = host.vsp.poll(host.now);
    host.carry_out(effects);
    assert_eq!(host.vsp.next_deadline(), None);
});
