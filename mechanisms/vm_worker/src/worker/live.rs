//! A function that is offered to the guest: its VSP, and what the VSP's effects have made of the partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use device_control_protocol::{ProbedBars, VendorAndDevice};
use partition::{
    MmioPages, MsiBlock, Retarget,
    host::{DeviceEvent, HostChannel},
};
use pci_function::RawVfConfig;
use pcie_protocol::{BarIndex, header_offset};
use pcivirt_protocol::{NtStatus, VpciPnpId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vfio_user_client::{PciIrq, SharedRegion};
use vmbus::server::OfferParams;
use vmbus_protocol::{Guid, INTERFACE_VPCI, VpIndex};
use vpci::{
    Effect, FunctionConfig, VpciChannel, Vsp,
    vsp::{
        BusState, EJECT_GRACE, InterruptSource, InterruptTarget, PfRequestId, Presence, Removal,
    },
};
use vpci_protocol::{DeliveryMode, window};
use zerocopy::IntoBytes;

use super::{Cx, nics::NicNumber};
use crate::{
    control::{DeviceName, DeviceState, MitigatedRanges, OfferVf},
    log_budget::LogBudget,
    reply::Reply,
    vf::{
        Access, AccessKind, Kind, OpenedVf, RegisterAccess, RegisterPages, Registers, TrappedPages,
        Vf, Window, region, segments,
    },
};

/// Packets of the guest that are answered before others get their turn.
const BURST: usize = 32;

/// The VF behind the function: its server, its NIC, its number.
pub(super) type Behind<'a> = (&'a Vf, NicNumber, u16);

/// The function.
pub(super) struct Live {
    name: DeviceName,
    number: u64,
    vsp: Vsp,
    /// `None` once it was taken back.
    channel: Option<HostChannel>,
    /// While the guest has it open.
    ring: Option<VpciChannel>,
    /// There is something to read in the ring, or to write to it.
    more: bool,
    /// Configuration space as it was when the VF was opened.
    config: Vec<u8>,
    shared: Vec<(BarIndex, SharedRegion)>,
    /// Hangs up when the VF's server is gone.
    gone: OwnedFd,
    registers: Arc<Registers>,
    mitigated: MitigatedRanges,
    window: Option<u64>,
    bars: BTreeMap<BarIndex, Mapped>,
    interrupts: BTreeMap<InterruptSource, Interrupt>,
    /// A driver has had an interrupt routed, since the channel was opened.
    started: bool,
    /// Accesses that are done when the PF driver has answered.
    held: Vec<(BTreeSet<PfRequestId>, Reply<[u8; 8]>)>,
    /// For what the guest makes of it.
    log: LogBudget,
}

/// A BAR where the guest has put it.
struct Mapped {
    address: u64,
    size: u64,
    /// First addresses of the ranges that the partition was given.
    parts: Vec<u64>,
}

/// An interrupt that was routed at some time.
struct Interrupt {
    target: InterruptTarget,
    block: MsiBlock,
    /// Whether it is routed now.
    routed: bool,
}

/// The VF's configuration space, of which one register was just read.
struct Raw<'a> {
    config: &'a [u8],
    fresh: Option<(u16, u32)>,
}

impl RawVfConfig for Raw<'_> {
    fn read_dword(&self, register: u16) -> u32 {
        match self.fresh {
            Some((fresh, value)) if fresh == register & !3 => value,
            _ => self.config.read_dword(register),
        }
    }
}

/// The bus's instance: the first field is the serial number of its function, the second becomes the PCI domain in Linux
/// (SPEC-VMBUS §4).
fn instance(name: DeviceName) -> Guid {
    let low = |value: u32, bits: u32| u16::try_from(value & ((1 << bits) - 1)).unwrap_or(0);
    let domain = low(name.adapter, 4) << 12 | low(name.serial, 12);
    Guid::new(name.serial, domain, low(name.adapter, 16), *b"clearway")
}

/// What the guest calls the function when it moves interrupts: made of its bus's instance (SPEC-VMBUS §8.4), function 0.
fn device_id(name: DeviceName) -> u64 {
    let instance = instance(name);
    let byte = |index: usize| u64::from(instance.as_bytes().get(index).copied().unwrap_or(0));
    byte(5) << 24 | byte(4) << 16 | byte(7) << 8 | (byte(6) & 0xF8)
}

fn pnp_id(ids: VendorAndDevice, config: &[u8]) -> VpciPnpId {
    let byte = |offset: u16| config.get(usize::from(offset)).copied().unwrap_or(0);
    let word = |offset: u16| u16::from_le_bytes([byte(offset), byte(offset + 1)]);
    VpciPnpId {
        vendor_id: ids.vendor_id,
        device_id: ids.device_id,
        revision_id: byte(header_offset::REVISION_ID),
        prog_if: byte(header_offset::REVISION_ID + 1),
        sub_class: byte(header_offset::REVISION_ID + 2),
        base_class: byte(header_offset::REVISION_ID + 3),
        sub_vendor_id: word(header_offset::SUBSYSTEM_VENDOR_ID),
        sub_system_id: word(header_offset::SUBSYSTEM_VENDOR_ID + 2),
    }
}

impl Live {
    /// Offers a function to the guest.
    pub(super) fn offer(
        opened: OpenedVf,
        ids: VendorAndDevice,
        bars: &ProbedBars,
        (name, number): (DeviceName, u64),
        offer: &OfferVf,
        vf: &Vf,
        cx: &mut Cx,
    ) -> Result<Self, NtStatus> {
        let OpenedVf { config, shared, gone } = opened;
        let function = FunctionConfig::new(
            pnp_id(ids, &config),
            offer.serial,
            bars.base_register_values,
            cx.config.apertures.clone(),
            cx.config.processors,
        );
        let vsp = Vsp::new(function, config.as_slice()).map_err(|error| {
            tracing::warn!(serial = offer.serial, ?error, "a VF cannot be offered");
            NtStatus::NOT_SUPPORTED
        })?;
        let params = OfferParams::new(INTERFACE_VPCI, instance(name));
        let channel = cx.host.offer(params).map_err(|error| {
            tracing::warn!(serial = offer.serial, ?error, "a VF cannot be offered");
            NtStatus::INSUFFICIENT_RESOURCES
        })?;
        cx.claims_changed = true;
        Ok(Self {
            name,
            number,
            vsp,
            channel: Some(channel),
            ring: None,
            more: false,
            config,
            shared,
            gone,
            registers: Arc::clone(vf.registers()),
            mitigated: offer.mitigated_ranges.clone(),
            window: None,
            bars: BTreeMap::new(),
            interrupts: BTreeMap::new(),
            started: false,
            held: Vec::new(),
            log: LogBudget::default(),
        })
    }

    // ---- what there is to know

    /// How the function was taken from the guest, if it was.
    pub(super) fn removal(&self) -> Option<Removal> {
        match self.vsp.presence() {
            Presence::Removed(removal) => Some(removal),
            Presence::Present | Presence::Ejecting { .. } => None,
        }
    }

    /// What the guest has made of it.
    pub(super) fn state(&self) -> DeviceState {
        match self.vsp.bus() {
            BusState::Negotiated(_) | BusState::D0 { .. } if self.started => {
                DeviceState::DeviceStarted
            }
            BusState::Negotiated(_) | BusState::D0 { .. } => DeviceState::BusOpened,
            BusState::Closed | BusState::Negotiating | BusState::Failed(_) => DeviceState::Offered,
        }
    }

    /// Whether the VF's server is gone.
    pub(super) fn is_lost(&self) -> bool {
        let mut fds = [PollFd::new(&self.gone, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
    }

    /// Addresses of BARs, and the number of interrupts that are routed.
    pub(super) fn claims(&self) -> (BTreeMap<u8, u64>, u16) {
        let bars = self.bars.iter().map(|(bar, mapped)| (bar.get(), mapped.address)).collect();
        let routed = self.interrupts.values().filter(|interrupt| interrupt.routed).count();
        (bars, u16::try_from(routed).unwrap_or(u16::MAX))
    }

    /// Guest physical addresses that it occupies.
    pub(super) fn occupied(&self) -> Vec<Range<u64>> {
        self.vsp.claims()
    }

    /// Guest physical addresses that others occupy.
    pub(super) fn set_reserved(&mut self, reserved: Vec<Range<u64>>) {
        self.vsp.set_reserved(reserved);
    }

    /// What to wait for: readable, or hung up.
    pub(super) fn wait_on<'a>(&'a self, fds: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        fds.push((self.gone.as_fd(), PollFlags::RDHUP));
        if let Some(channel) = &self.channel {
            fds.push((channel.as_fd(), PollFlags::IN));
        }
        if let Some(ring) = &self.ring
            && !self.more
            && self.vsp.accepts_packets()
        {
            fds.push((ring.channel().as_fd(), PollFlags::IN));
        }
    }

    /// When there is something to do at the latest.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let more = self.more && self.vsp.accepts_packets();
        if more { Some(Duration::ZERO) } else { self.vsp.next_deadline() }
    }

    // ---- what happens

    /// Asks the guest to give the function up.
    pub(super) fn eject(&mut self, behind: Behind<'_>, cx: &mut Cx) {
        let effects = self.vsp.eject(EJECT_GRACE, cx.now());
        self.carry_out(effects, behind, cx);
        self.flush();
    }

    /// Takes the function away.
    pub(super) fn remove(&mut self, behind: Behind<'_>, cx: &mut Cx) {
        let now = cx.now();
        let effects = match self.vsp.bus().version() {
            Some(_) => self.vsp.surprise_remove(now),
            None => self.vsp.eject(EJECT_GRACE, now),
        };
        self.carry_out(effects, behind, cx);
    }

    /// Gives everything back. The VF is to be left next.
    pub(super) fn end(mut self: Box<Self>, cx: &mut Cx) {
        // The guest reads ones from here on, and no processor waits.
        self.held.clear();
        let bars: Vec<BarIndex> = self.bars.keys().copied().collect();
        for bar in bars {
            self.unmap(bar, cx);
        }
        self.unmap_window(cx);
        for interrupt in self.interrupts.values() {
            cx.partition.remove_msi(interrupt.block.address, interrupt.block.data);
        }
        cx.claims_changed = true;
        // The rings before their channel.
        self.ring = None;
        self.channel = None;
    }

    /// Other mitigated ranges.
    pub(super) fn set_mitigated(
        &mut self,
        ranges: MitigatedRanges,
        behind: Behind<'_>,
        cx: &mut Cx,
    ) {
        self.mitigated = ranges;
        let mapped: Vec<_> =
            self.bars.iter().map(|(bar, mapped)| (*bar, mapped.address, mapped.size)).collect();
        for (bar, address, size) in mapped {
            self.unmap(bar, cx);
            self.map(bar, address, size, behind, cx);
        }
    }

    /// The PF driver has done what the function asked, or failed.
    pub(super) fn pf_completed(
        &mut self,
        id: PfRequestId,
        answer: Result<&[u8], NtStatus>,
        behind: Behind<'_>,
        cx: &mut Cx,
    ) {
        let effects = self.vsp.pf_completed(id, answer);
        self.carry_out(effects, behind, cx);
        self.flush();
        for (waits_for, _) in &mut self.held {
            waits_for.remove(&id);
        }
        for (_, reply) in self.held.extract_if(.., |(waits_for, _)| waits_for.is_empty()) {
            reply.done([0; 8]);
        }
    }

    /// The PF driver says that configuration blocks are to be read again.
    pub(super) fn invalidate(&mut self, mask: u64, behind: Behind<'_>, cx: &mut Cx) {
        let effects = self.vsp.invalidate_blocks(mask);
        self.carry_out(effects, behind, cx);
        self.flush();
    }

    /// The guest moves an interrupt, if it is one of this function's.
    pub(super) fn retarget(
        &mut self,
        retarget: &Retarget,
        behind: Behind<'_>,
        cx: &mut Cx,
    ) -> bool {
        let Retarget { device_id: id, address, data, vector, processors } = retarget;
        if *id != device_id(self.name) {
            return false;
        }
        let processors = processors.iter().filter_map(|vp| u16::try_from(vp.0).ok()).collect();
        let delivery_mode = DeliveryMode::Fixed;
        let target = InterruptTarget { vector: (*vector).into(), delivery_mode, processors };
        match self.vsp.retarget(*address, *data, target) {
            Ok(effects) => {
                self.carry_out(effects, behind, cx);
                true
            }
            Err(_) => false,
        }
    }

    /// The guest accesses a trapped page.
    pub(super) fn access(&mut self, access: Access, behind: Behind<'_>, cx: &mut Cx) {
        let Access { kind, offset, length, value, reply } = access;
        let written = value.as_ref().and_then(|value| value.get(..length));
        let mut read = [0; 8];
        let effects = match (kind, written) {
            (AccessKind::Window(fresh), None) => {
                let raw = Raw { config: &self.config, fresh };
                if let Some(data) = read.get_mut(..length) {
                    self.vsp.window_read(offset, data, &raw);
                }
                return reply.done(read);
            }
            // A guest whose PF driver does not answer cannot have it asked without end.
            (AccessKind::Window(_), Some(_)) if !self.vsp.accepts_packets() => {
                return reply.done(read);
            }
            (AccessKind::Window(_), Some(data)) => self.vsp.window_write(offset, data),
            (AccessKind::Bar(bar), None) => {
                let Some(data) = read.get_mut(..length) else { return };
                if self.vsp.bar_read(bar, offset, data) {
                    return reply.done(read);
                }
                let access = RegisterAccess { bar, offset, length, value: None, reply };
                return self.register(access, behind, cx);
            }
            (AccessKind::Bar(bar), Some(data)) => match self.vsp.bar_write(bar, offset, data) {
                Some(effects) => effects,
                None => {
                    let access = RegisterAccess { bar, offset, length, value, reply };
                    return self.register(access, behind, cx);
                }
            },
        };
        let asked = effects.iter().filter_map(|effect| match effect {
            Effect::Pf { id, .. } => Some(*id),
            _ => None,
        });
        let asked: BTreeSet<_> = asked.collect();
        self.carry_out(effects, behind, cx);
        self.flush();
        match asked.is_empty() {
            true => reply.done(read),
            false => self.held.push((asked, reply)),
        }
    }

    /// An access to a register that is trapped and not the VSP's: mitigated, or beside something that is trapped.
    fn register(&self, access: RegisterAccess, (vf, nic, number): Behind<'_>, cx: &mut Cx) {
        let reads = access.value.is_none();
        let end = access.offset + access.length as u64;
        let ranges = self.mitigated.get(&access.bar.get());
        let mitigated = ranges.into_iter().flatten().any(|range| {
            let intercepts = if reads { range.reads } else { range.writes };
            intercepts
                && range.offset < end
                && access.offset < range.offset.saturating_add(range.length)
        });
        match mitigated {
            true => cx.nics.mitigated(nic, number, access),
            false => vf.access(access),
        }
    }

    /// Does what there is to do, after its descriptors or its deadline.
    pub(super) fn work(&mut self, behind: Behind<'_>, cx: &mut Cx) {
        while let Some(event) = self.channel.as_ref().and_then(HostChannel::next_event) {
            self.channel_event(event, behind, cx);
        }
        let now = cx.now();
        let effects = self.vsp.poll(now);
        self.carry_out(effects, behind, cx);
        if let Some(ring) = &mut self.ring
            && ring.channel_mut().woken().is_err()
        {
            self.ring_broken(behind, cx);
        }
        for _ in 0..BURST {
            let Some(ring) = &mut self.ring else { return };
            match ring.serve(&mut self.vsp, now) {
                Ok(Some(effects)) => self.carry_out(effects, behind, cx),
                Ok(None) => break,
                Err(error) => {
                    if self.log.spend() {
                        tracing::warn!(serial = self.name.serial, %error, "a VPCI channel is broken");
                    }
                    return self.ring_broken(behind, cx);
                }
            }
        }
        self.flush();
    }

    /// Publishes what was written, and asks to be woken.
    fn flush(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        // A ring that is broken is found to be so when it is served next.
        self.more = !matches!(ring.prepare_to_wait(), Ok(true));
    }

    /// The guest's ring cannot be used any more. What it says is not heard until it opens the channel anew.
    fn ring_broken(&mut self, behind: Behind<'_>, cx: &mut Cx) {
        self.ring = None;
        self.more = false;
        let effects = self.vsp.channel_closed();
        self.carry_out(effects, behind, cx);
    }

    fn channel_event(&mut self, event: DeviceEvent, behind: Behind<'_>, cx: &mut Cx) {
        let Some(channel) = &self.channel else { return };
        // What the guest has taken back meanwhile is refused by the server, and that is fine.
        match event {
            DeviceEvent::Open(opened) => match opened.channel() {
                Ok(ring) => {
                    self.ring = Some(VpciChannel::of_host(ring));
                    self.more = true;
                    self.started = false;
                    self.vsp.channel_opened();
                    let _ = channel.opened(true);
                }
                Err(error) => {
                    if self.log.spend() {
                        tracing::warn!(serial = self.name.serial, %error, "a VPCI channel cannot be opened");
                    }
                    let _ = channel.opened(false);
                }
            },
            DeviceEvent::Close => {
                self.ring = None;
                self.more = false;
                self.started = false;
                let effects = self.vsp.channel_closed();
                self.carry_out(effects, behind, cx);
                self.forget_interrupts(cx);
                if let Some(channel) = &self.channel {
                    let _ = channel.closed();
                }
            }
            DeviceEvent::GpadlTeardown(gpadl) => {
                let _ = channel.gpadl_released(gpadl);
            }
            DeviceEvent::Withdrawn => {}
        }
    }

    // ---- what the VSP wants done

    fn carry_out(&mut self, effects: Vec<Effect>, behind: Behind<'_>, cx: &mut Cx) {
        let mut rescind = false;
        for effect in effects {
            match effect {
                Effect::Send(packet) => {
                    if let Some(ring) = &mut self.ring
                        && ring.send(packet).is_err()
                    {
                        // Found to be broken when it is served next.
                        self.more = true;
                    }
                }
                Effect::MapWindow { address } => self.map_window(address, cx),
                Effect::UnmapWindow => self.unmap_window(cx),
                Effect::MapBar { bar, address, size } => self.map(bar, address, size, behind, cx),
                // What is not mapped reads as ones.
                Effect::IsolateBar { bar } | Effect::UnmapBar { bar } => self.unmap(bar, cx),
                Effect::Route { source, target } => self.route(source, target, behind.0, cx),
                Effect::Pf { id, request } => {
                    let (_, nic, vf) = behind;
                    cx.nics.request(nic, (self.name, self.number), id, &request, vf);
                }
                Effect::Rescind => rescind = true,
                Effect::Fail(fault) => {
                    if self.log.spend() {
                        tracing::warn!(serial = self.name.serial, %fault, "a guest's VPCI driver");
                    }
                }
                Effect::Removed(_) | Effect::StopAnswered(_) | Effect::CloseOverdue => {}
            }
        }
        if rescind {
            self.flush();
            // The rings before their channel. That the guest closes it is not heard any more.
            self.ring = None;
            self.more = false;
            self.channel = None;
            let effects = self.vsp.channel_closed();
            self.carry_out(effects, behind, cx);
            self.forget_interrupts(cx);
        }
    }

    fn map_window(&mut self, address: u64, cx: &mut Cx) {
        let registers = Arc::clone(&self.registers);
        let handler = Window::new(cx.events.clone(), self.name, self.number, registers);
        cx.claims_changed = true;
        match cx.partition.intercept_mmio(address, window::SIZE, Arc::new(handler)) {
            Ok(()) => self.window = Some(address),
            Err(error) => {
                if self.log.spend() {
                    tracing::warn!(serial = self.name.serial, %error, "a guest's configuration window");
                }
            }
        }
    }

    fn unmap_window(&mut self, cx: &mut Cx) {
        cx.claims_changed = true;
        if let Some(address) = self.window.take() {
            cx.partition.remove_mmio(address);
        }
    }

    fn map(&mut self, bar: BarIndex, address: u64, size: u64, (vf, ..): Behind<'_>, cx: &mut Cx) {
        cx.claims_changed = true;
        let shared = self.shared.iter().find(|(of, _)| *of == bar).map(|(_, shared)| shared);
        let areas = shared.map(|shared| shared.areas.as_slice()).unwrap_or_default();
        let areas: Vec<_> =
            areas.iter().map(|area| area.offset..area.offset.saturating_add(area.size)).collect();
        let of_bar = self.vsp.msi_x_pages().into_iter().filter(|(of, _)| *of == bar);
        let mitigated = self.mitigated.get(&bar.get()).into_iter().flatten();
        let mitigated =
            mitigated.map(|range| range.offset..range.offset.saturating_add(range.length));
        let trapped: Vec<_> = of_bar.map(|(_, pages)| pages).chain(mitigated).collect();
        let mut parts = Vec::new();
        for segment in segments(size, &areas, &trapped) {
            let gpa = address + segment.offset;
            let given = match (segment.kind, shared, region(bar)) {
                (Kind::Mapped(_), Some(shared), _) => match shared.fd.try_clone() {
                    Ok(fd) => {
                        let offset = shared.offset + segment.offset;
                        let pages = MmioPages { fd, offset, writable: true };
                        cx.partition.map_mmio(gpa, segment.length, pages)
                    }
                    Err(source) => {
                        let what = "a descriptor";
                        Err(partition::PartitionError::System { what, source })
                    }
                },
                (Kind::Trapped, ..) => {
                    let events = cx.events.clone();
                    let pages =
                        TrappedPages::new(events, self.name, self.number, bar, segment.offset);
                    cx.partition.intercept_mmio(gpa, segment.length, Arc::new(pages))
                }
                (_, _, Some(region)) => {
                    let registers = Arc::clone(vf.registers());
                    let pages = RegisterPages { registers, region, start: segment.offset };
                    cx.partition.intercept_mmio(gpa, segment.length, Arc::new(pages))
                }
                (_, _, None) => continue,
            };
            match given {
                Ok(()) => parts.push(gpa),
                Err(error) => {
                    if self.log.spend() {
                        tracing::warn!(serial = self.name.serial, %bar, %error, "a guest's BAR");
                    }
                }
            }
        }
        self.bars.insert(bar, Mapped { address, size, parts });
    }

    fn unmap(&mut self, bar: BarIndex, cx: &mut Cx) {
        cx.claims_changed = true;
        for gpa in self.bars.remove(&bar).into_iter().flat_map(|mapped| mapped.parts) {
            cx.partition.remove_mmio(gpa);
        }
    }

    /// Routes an interrupt. What it goes through is kept while it goes nowhere, so that a guest that masks and unmasks
    /// it finds it where it was.
    fn route(
        &mut self,
        source: InterruptSource,
        target: Option<InterruptTarget>,
        vf: &Vf,
        cx: &mut Cx,
    ) {
        let (irq, number) = match source {
            InterruptSource::MsiX(vector) => (PciIrq::Msix, vector),
            InterruptSource::Msi(message) => (PciIrq::Msi, message.into()),
        };
        let Some(target) = target else {
            vf.set_irq(irq, number, None);
            if let Some(interrupt) = self.interrupts.get_mut(&source) {
                interrupt.routed = false;
            }
            return;
        };
        let processors: Vec<_> = target.processors.iter().map(|vp| VpIndex((*vp).into())).collect();
        let there = |interrupt: &&mut Interrupt| {
            let MsiBlock { address, data, .. } = interrupt.block;
            interrupt.target == target
                || cx.partition.move_msi(address, data, target.vector, &processors).is_ok()
        };
        if let Some(interrupt) = self.interrupts.get_mut(&source).filter(there) {
            interrupt.target = target;
            interrupt.routed = true;
        } else {
            if let Some(Interrupt { block, .. }) = self.interrupts.remove(&source) {
                cx.partition.remove_msi(block.address, block.data);
            }
            match cx.partition.create_msi(target.vector, &processors, 1) {
                Ok(block) => {
                    self.interrupts.insert(source, Interrupt { target, block, routed: true });
                }
                Err(error) => {
                    if self.log.spend() {
                        tracing::warn!(serial = self.name.serial, %error, "an interrupt of a guest");
                    }
                }
            }
        }
        let interrupt = self.interrupts.get(&source);
        self.started |= interrupt.is_some();
        let event = interrupt.and_then(|interrupt| interrupt.block.events.first());
        vf.set_irq(irq, number, event.cloned());
    }

    /// The guest has closed the bus.
    fn forget_interrupts(&mut self, cx: &mut Cx) {
        self.interrupts.retain(|_, interrupt| {
            if !interrupt.routed {
                cx.partition.remove_msi(interrupt.block.address, interrupt.block.data);
            }
            interrupt.routed
        });
    }
}
