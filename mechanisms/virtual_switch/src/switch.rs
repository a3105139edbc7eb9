//! The switch: its ports, and one frame's way through.

use std::{
    any::Any,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use ndis_protocol::{FilterId, MacAddress, VPortId};
use nic_switch::{
    DropReason, Egress, EgressList, Ingress, NicSwitch, ReceiveFilter, SwitchError, VPortPolicy,
    Verdict, VlanMatch,
};
use serde::{Deserialize, Serialize};
use shared_memory::MemoryError;

use crate::{Frame, NotDelivered, Offloads, Port, Staging, frame::ETHERNET};

/// What a port's VM is, and may do. The same policy governs its VF.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct PortPolicy {
    /// Its address.
    pub mac: MacAddress,
    /// Which frames to that address it receives.
    pub receives: VlanMatch,
    /// VLAN mode, spoofing, promiscuity.
    pub vport: VPortPolicy,
}

/// What passed through a port. "Sent" is by whoever is behind it.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PortStatistics {
    /// Packets sent; a large send is one.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets received, as they came in at their ingress.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Sent with a source address that is not the port's own.
    pub spoofed: u64,
    /// Sent in a VLAN that may not pass.
    pub vlan_not_allowed: u64,
    /// Sent to nobody that receives, or to itself.
    pub no_receiver: u64,
    /// Sent, but no frame, or with offloads that make no sense.
    pub malformed: u64,
    /// To be received, but not wanted.
    pub not_wanted: u64,
    /// To be received, but without room.
    pub no_buffer: u64,
    /// To be received, but too long.
    pub too_long: u64,
}

impl PortStatistics {
    fn dropped(&mut self, reason: DropReason) {
        match reason {
            DropReason::SpoofedSource => self.spoofed += 1,
            DropReason::VlanNotAllowed => self.vlan_not_allowed += 1,
            DropReason::ToItself | DropReason::NoReceiver => self.no_receiver += 1,
        }
    }

    fn delivered(&mut self, length: usize, result: Result<(), NotDelivered>) {
        match result {
            Ok(()) => {
                self.received += 1;
                self.received_bytes += length as u64;
            }
            Err(NotDelivered::NotWanted) => self.not_wanted += 1,
            Err(NotDelivered::NoBuffer) => self.no_buffer += 1,
            Err(NotDelivered::TooLong) => self.too_long += 1,
            // The sender's fault, and counted there.
            Err(NotDelivered::Malformed) => {}
        }
    }
}

struct Connected {
    port: Box<dyn Port>,
    statistics: PortStatistics,
    receiving: bool,
    away: bool,
    /// Something was delivered that is not flushed.
    dirty: bool,
}

impl Connected {
    fn new(port: Box<dyn Port>) -> Box<Self> {
        Box::new(Self {
            port,
            statistics: PortStatistics::default(),
            receiving: false,
            away: false,
            dirty: false,
        })
    }

    /// Has the table know what has become of the port.
    fn refresh(&mut self, id: VPortId, table: &mut NicSwitch) {
        let receiving = self.port.is_receiving();
        if receiving != self.receiving {
            self.receiving = receiving;
            // A port that is connected has its VPort.
            let _ = table.set_receiving(id, receiving);
        }
        let away = self.port.is_away();
        if away != self.away {
            self.away = away;
            // As above; the host's own is never away.
            let _ = table.set_away(id, away);
        }
    }

    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered> {
        let result = self.port.deliver(frame, staging);
        self.statistics.delivered(frame.length, result);
        self.dirty = true;
        result
    }

    /// How many were delivered as they are, and their bytes.
    fn deliver_whole(&mut self, frames: &[Frame<'_>]) -> (usize, u64) {
        let whole = self.port.deliver_whole(frames);
        let bytes = frames.iter().take(whole).map(|frame| frame.length as u64).sum();
        self.statistics.received += whole as u64;
        self.statistics.received_bytes += bytes;
        self.dirty |= whole > 0;
        (whole, bytes)
    }
}

/// One VMSwitch's software data path.
pub struct VirtualSwitch {
    table: NicSwitch,
    /// By VPort number; 0 is where frames for unknown addresses arrive from the uplink. None behind the last one that
    /// is connected.
    ports: Vec<Option<Box<Connected>>>,
    /// Room for ports.
    room: usize,
    uplink: Option<Box<Connected>>,
    /// Of uplinks that were there before.
    past_uplinks: PortStatistics,
    list: EgressList,
    /// For what changes at a frame's ingress; away while a frame of it is forwarded.
    arriving: Option<Staging>,
    /// For what changes at its egresses.
    leaving: Staging,
    /// How long its thread was at work.
    busy: Duration,
    /// Frames of the last round, if all came by ports that are better looked at when there are more of them.
    gathered: usize,
}

impl std::fmt::Debug for VirtualSwitch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtualSwitch")
            .field("ports", &self.ports.iter().flatten().count())
            .field("uplink", &self.uplink.is_some())
            .finish_non_exhaustive()
    }
}

impl VirtualSwitch {
    /// A switch without uplink, with room for ports 0 to `ports` − 1.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn new(ports: usize) -> Result<Self, MemoryError> {
        Ok(Self {
            table: NicSwitch::new(ports),
            ports: Vec::with_capacity(ports),
            room: ports,
            uplink: None,
            past_uplinks: PortStatistics::default(),
            list: EgressList::with_capacity(ports),
            arriving: Some(Staging::new()?),
            leaving: Staging::new()?,
            busy: Duration::ZERO,
            gathered: 0,
        })
    }

    /// Connects a port under a number, 1 or more; for the host's own interface 0.
    ///
    /// # Errors
    /// The number is taken or beyond the switch's ports, or the address has a port in that VLAN.
    pub fn connect(
        &mut self,
        id: VPortId,
        policy: PortPolicy,
        port: Box<dyn Port>,
    ) -> Result<(), SwitchError> {
        if id != VPortId::DEFAULT {
            self.table.create_vport(id)?;
        }
        if let Err(error) = self.apply(id, policy) {
            if id != VPortId::DEFAULT {
                // It was made above.
                let _ = self.table.delete_vport(id);
            }
            return Err(error);
        }
        let index = id.index();
        if self.ports.len() <= index {
            self.ports.resize_with((index + 1).min(self.room), || None);
        }
        if let Some(place) = self.ports.get_mut(index) {
            *place = Some(Connected::new(port));
        }
        self.refresh(id);
        Ok(())
    }

    /// Replaces what a port is and may do; between two frames.
    ///
    /// # Errors
    /// There is no such port, or the address has a port in that VLAN. Then nothing changes.
    pub fn set_policy(&mut self, id: VPortId, policy: PortPolicy) -> Result<(), SwitchError> {
        let filter = Self::filter_of(id)?;
        let before = self.table.filter(filter).copied();
        if before.is_some() {
            self.table.clear_filter(filter)?;
        }
        let result = self.apply(id, policy);
        if let (Err(_), Some(before)) = (&result, before) {
            self.table.set_filter(filter, before)?;
        }
        result
    }

    /// One filter for each port, since each has one address.
    fn filter_of(id: VPortId) -> Result<FilterId, SwitchError> {
        let number = u32::try_from(id.index()).ok().and_then(|index| index.checked_add(1));
        number.and_then(FilterId::new).ok_or(SwitchError::OutsidePool(id))
    }

    fn apply(&mut self, id: VPortId, policy: PortPolicy) -> Result<(), SwitchError> {
        let PortPolicy { mac, receives, vport } = policy;
        let filter = ReceiveFilter { mac, vlan: receives, vport: id };
        self.table.set_filter(Self::filter_of(id)?, filter)?;
        // Which groups a guest listens to is left to it, as hosts do.
        self.table.set_guest_filters(id, [], true, vport.allow_promiscuous, None)?;
        self.table.set_policy(id, vport)
    }

    /// Disconnects a port and gives it back. Frames to its address go to the uplink from then on.
    pub fn disconnect(&mut self, id: VPortId) -> Option<Box<dyn Port>> {
        let connected = self.ports.get_mut(id.index())?.take()?;
        if let Ok(filter) = Self::filter_of(id) {
            // Both are there because the port was.
            let _ = self.table.clear_filter(filter);
        }
        let _ = match id {
            VPortId::DEFAULT => self.table.set_receiving(id, false),
            _ => self.table.delete_vport(id),
        };
        let used = self.ports.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.ports.truncate(used);
        Some(connected.port)
    }

    /// Connects the uplink, or none; gives back the one before. Its statistics go on.
    pub fn set_uplink(&mut self, uplink: Option<Box<dyn Port>>) -> Option<Box<dyn Port>> {
        let connected = uplink.map(|port| {
            Box::new(Connected { statistics: self.uplink_statistics(), ..*Connected::new(port) })
        });
        self.past_uplinks = self.uplink_statistics();
        let before = std::mem::replace(&mut self.uplink, connected);
        before.map(|connected| connected.port)
    }

    /// The uplink, if it is one of this kind: to look at or to control.
    pub fn uplink<P: Port>(&mut self) -> Option<&mut P> {
        let port: &mut dyn Any = self.uplink.as_mut()?.port.as_mut();
        port.downcast_mut()
    }

    /// A port, if it is one of this kind: to look at or to control.
    pub fn port<P: Port>(&mut self, id: VPortId) -> Option<&mut P> {
        let port: &mut dyn Any = self.ports.get_mut(id.index())?.as_mut()?.port.as_mut();
        port.downcast_mut()
    }

    /// What passed through a port.
    #[must_use]
    pub fn statistics(&self, id: VPortId) -> Option<PortStatistics> {
        Some(self.ports.get(id.index())?.as_ref()?.statistics)
    }

    /// What passed through the uplink, whichever it was.
    #[must_use]
    pub fn uplink_statistics(&self) -> PortStatistics {
        self.uplink.as_ref().map_or(self.past_uplinks, |connected| connected.statistics)
    }

    /// Its thread was at work for so long, in a round in which there was something to do.
    pub(crate) fn note_busy(&mut self, time: Duration) {
        self.busy += time;
    }

    /// Frames of the last round, if all came by ports that are better looked at when there are more of them.
    pub(crate) const fn gathered(&self) -> usize {
        self.gathered
    }

    /// How long its thread was at work since it was made: without the rounds in which nothing had come.
    #[must_use]
    pub const fn busy(&self) -> Duration {
        self.busy
    }

    /// Sees what has become of a port that was changed from outside of a round: whether it receives, and where.
    pub fn refresh(&mut self, id: VPortId) {
        if let Some(Some(connected)) = self.ports.get_mut(id.index()) {
            connected.refresh(id, &mut self.table);
        }
    }

    /// One round over all ports and the uplink. True if there was anything to do.
    pub fn poll(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let (mut gathered, mut others) = (0, false);
        for index in 0..self.ports.len() {
            let id = u32::try_from(index).ok().and_then(VPortId::new);
            let place = self.ports.get_mut(index).and_then(Option::take);
            // While a port's frames are forwarded it is not in its place: nothing goes back where it came from.
            let (Some(id), Some(mut connected)) = (id, place) else { continue };
            if self.poll_one(Ingress::VPort(id), &mut connected, now) {
                worked = true;
                let frames = connected.port.gathered();
                gathered += frames;
                others |= frames == 0;
            }
            connected.refresh(id, &mut self.table);
            if connected.away {
                connected.port.release(&mut |frame| {
                    let _ = self.deliver(frame, Egress { vport: None, tci: frame.tci });
                });
            }
            if let Some(place) = self.ports.get_mut(index) {
                *place = Some(connected);
            }
        }
        if let Some(mut uplink) = self.uplink.take() {
            others |= self.poll_one(Ingress::Uplink, &mut uplink, now);
            self.uplink = Some(uplink);
        }
        self.gathered = if others { 0 } else { gathered };
        for connected in self.ports.iter_mut().chain([&mut self.uplink]).flatten() {
            if std::mem::take(&mut connected.dirty) {
                connected.port.flush();
            }
        }
        worked | others
    }

    fn poll_one(&mut self, ingress: Ingress, connected: &mut Connected, now: Instant) -> bool {
        let Connected { port, statistics, .. } = connected;
        port.poll(now, &mut |frames| self.arrive_together(ingress, frames, statistics))
    }

    /// Whether a thread that serves the switch may sleep: every port was asked to tell of new frames, and none
    /// has any.
    pub fn prepare_to_wait(&mut self) -> bool {
        let mut ports = self.ports.iter_mut().chain([&mut self.uplink]).flatten();
        ports.all(|connected| connected.port.prepare_to_wait())
    }

    /// Adds what a thread that sleeps is to wait on.
    pub fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        self.all().for_each(|connected| connected.port.wait_on(fds));
    }

    /// When a thread that sleeps has to wake up at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.all().filter_map(|connected| connected.port.deadline()).min()
    }

    /// Tells all ports that the thread has woken up.
    pub fn woken(&mut self) {
        let ports = self.ports.iter_mut().chain([&mut self.uplink]).flatten();
        ports.for_each(|connected| connected.port.woken());
    }

    fn all(&self) -> impl Iterator<Item = &Connected> {
        self.ports.iter().chain([&self.uplink]).flatten().map(Box::as_ref)
    }

    /// Frames that came one behind the other: those of one flow are delivered together where the port can.
    fn arrive_together(
        &mut self,
        ingress: Ingress,
        frames: &[Frame<'_>],
        statistics: &mut PortStatistics,
    ) {
        if let [frame] = frames {
            self.arrive(ingress, frame, statistics);
            return;
        }
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let alike = rest.iter().position(|frame| !frame.goes_with(first)).unwrap_or(rest.len());
            let (alike, behind) = rest.split_at(alike.max(1));
            rest = behind;
            self.arrive_alike(ingress, alike, statistics);
        }
    }

    /// Frames of the same addresses, without tags if there are several.
    fn arrive_alike(
        &mut self,
        ingress: Ingress,
        mut frames: &[Frame<'_>],
        statistics: &mut PortStatistics,
    ) {
        loop {
            let (whole, bytes) = self.deliver_whole(ingress, frames);
            if whole == 0 {
                break;
            }
            statistics.sent += whole as u64;
            statistics.sent_bytes += bytes;
            frames = frames.get(whole..).unwrap_or_default();
        }
        frames.iter().for_each(|frame| self.arrive(ingress, frame, statistics));
    }

    /// Delivers frames of the same addresses, from the first on, as long as they go to one port as they are; returns how
    /// many, and their bytes.
    fn deliver_whole(&mut self, ingress: Ingress, frames: &[Frame<'_>]) -> (usize, u64) {
        let Some(first) = frames.first().filter(|first| first.is_plain()) else { return (0, 0) };
        let verdict = self.table.forward(ingress, &first.key(), &mut self.list);
        let Verdict::Unicast(Egress { vport: Some(id), tci: None }) = verdict else {
            return (0, 0);
        };
        let Some(Some(connected)) = self.ports.get_mut(id.index()) else { return (0, 0) };
        connected.deliver_whole(frames)
    }

    fn arrive(&mut self, ingress: Ingress, frame: &Frame<'_>, statistics: &mut PortStatistics) {
        if frame.length < ETHERNET {
            statistics.malformed += 1;
            return;
        }
        if frame.tci.is_some() || !frame.is_tagged_inside() {
            self.forward(ingress, frame, statistics);
            return;
        }
        // Offloads count from the frame's start, tag included, and would not fit a frame without it.
        if matches!(frame.offloads, Offloads::Asked(asked)
            if asked.checksum.is_some() || asked.segmentation.is_some())
        {
            statistics.malformed += 1;
            return;
        }
        // It is in its place except in here.
        let Some(mut staging) = self.arriving.take() else { return };
        staging.clear();
        match frame.take_tag_out(&staging) {
            Some((pieces, tci)) => {
                let mut head = [[0u8; 8]; 2];
                if let Some(first) = pieces.first() {
                    first.read_into(head.as_flattened_mut());
                }
                let untagged = Frame {
                    head: head.map(u64::from_le_bytes),
                    length: frame.length - offload::VLAN_TAG_LEN,
                    pieces: &pieces,
                    tci: Some(tci),
                    offloads: frame.offloads,
                };
                self.forward(ingress, &untagged, statistics);
            }
            None => statistics.malformed += 1,
        }
        self.arriving = Some(staging);
    }

    fn forward(&mut self, ingress: Ingress, frame: &Frame<'_>, statistics: &mut PortStatistics) {
        let mut list = std::mem::take(&mut self.list);
        match self.table.forward(ingress, &frame.key(), &mut list) {
            Verdict::Unicast(egress) => {
                let result = self.deliver(frame, egress);
                statistics.note(frame.length, result);
            }
            Verdict::Flood => {
                // It counts as sent if anybody was there.
                let mut result = Err(Loss::Nobody);
                for egress in list.as_slice() {
                    result = self.deliver(frame, *egress).or(result);
                }
                statistics.note(frame.length, result);
            }
            Verdict::Drop(reason) => statistics.dropped(reason),
        }
        self.list = list;
    }

    fn deliver(&mut self, frame: &Frame<'_>, egress: Egress) -> Result<(), Loss> {
        let connected = match egress.vport {
            Some(id) => self.ports.get_mut(id.index()).and_then(Option::as_mut),
            None => self.uplink.as_mut(),
        };
        let connected = connected.ok_or(Loss::Nobody)?;
        let frame = Frame { tci: egress.tci, ..*frame };
        match connected.deliver(&frame, &mut self.leaving) {
            Err(NotDelivered::Malformed) => Err(Loss::Malformed),
            // Whatever else is wrong is the receiver's loss, and counted there.
            _ => Ok(()),
        }
    }
}

/// Why a frame was not sent.
#[derive(Copy, Clone)]
enum Loss {
    Nobody,
    Malformed,
}

impl PortStatistics {
    fn note(&mut self, length: usize, result: Result<(), Loss>) {
        match result {
            Ok(()) => {
                self.sent += 1;
                self.sent_bytes += length as u64;
            }
            Err(Loss::Nobody) => self.no_receiver += 1,
            Err(Loss::Malformed) => self.malformed += 1,
        }
    }
}
