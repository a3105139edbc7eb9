//! What an adapter learns: completions of its requests, reports of its guest's ends, and losses. Facts only; what follows
//! from them is the table's business.

use ndis_protocol::{NdisStatus, NicSwitchCapabilityFlags};
use pcivirt_protocol::{NtStatus, PCI_TYPE0_ADDRESSES, VfIndex};

use super::{
    Context, Deadlines, Device, Filter, Guest, HoldOff, HoldOffKind, NetVsc, NetworkAdapter,
    Ranges, VPort, VirtualFunction,
};
use crate::call::MAX_MITIGATED_RANGES;
use crate::{
    AdapterKind, CallError, Effect, Event, GuestProgress, NetVspReport, NicCall, NicReply, Reason,
    Time, VlanSetting, VpciCommand, VpciReport,
};

impl NetworkAdapter {
    /// A request of this adapter is completed. Says whether the step's request was refused.
    pub(crate) fn completed(
        &mut self,
        call: &NicCall,
        result: Result<NicReply, CallError>,
        cx: &mut Context<'_>,
    ) -> bool {
        self.request = None;
        let refused = self.take_over(call, result, cx);
        if self.filters.is_empty() && self.vf.is_none() {
            self.home = None;
        }
        refused
    }

    fn take_over(
        &mut self,
        call: &NicCall,
        result: Result<NicReply, CallError>,
        cx: &mut Context<'_>,
    ) -> bool {
        match self.excused(call, result) {
            Ok(reply) => {
                if self.learn(call, reply, cx) {
                    self.refusal = None;
                    return false;
                }
                let answer = CallError::Malformed("an answer to another request".to_owned());
                self.note_refusal(call, &answer, cx);
                true
            }
            Err(error) => {
                self.note_refusal(call, &error, cx);
                true
            }
        }
    }

    /// Refusals that are as good as success.
    fn excused(
        &self,
        call: &NicCall,
        result: Result<NicReply, CallError>,
    ) -> Result<NicReply, CallError> {
        let Err(error) = result else { return result };
        let unsupported = matches!(
            error,
            CallError::Nt(NtStatus::NOT_SUPPORTED | NtStatus::INVALID_DEVICE_REQUEST)
        );
        match call {
            // What is to be gone is gone.
            NicCall::ClearFilter(_) | NicCall::FreeVf(_) if error.is_absence() => {
                Ok(NicReply::Done)
            }
            // A PF driver without the mitigable device interface.
            NicCall::QueryMitigatedRangeCount(_) if unsupported => {
                Ok(NicReply::RangeCounts([0; PCI_TYPE0_ADDRESSES]))
            }
            // A NIC that can enforce nothing enforces what there is to enforce without VLANs: receive filters.
            NicCall::SetVPortPolicy { policy, .. }
                if unsupported && policy.vlan == VlanSetting::Untagged =>
            {
                Ok(NicReply::Done)
            }
            _ => Err(error),
        }
    }

    /// Takes over what a successful request answered; false if it is no answer to that request.
    fn learn(&mut self, call: &NicCall, reply: NicReply, cx: &mut Context<'_>) -> bool {
        let adapter = self.id;
        match (call, reply) {
            (NicCall::AllocateVf(asked), NicReply::Vf(id, requestor_id)) => {
                let serial = cx.out.next_serial();
                self.vf = Some(VirtualFunction {
                    id,
                    requestor_id,
                    serial,
                    mac: asked.owner.current_mac,
                    queue_pairs_requested: self.config.iov_queue_pairs_requested,
                });
                self.guest.serial = Some(serial);
                let Some(nic) = self.home else { return false };
                let (vf, requestor_id) = (id.get(), requestor_id.to_string());
                cx.out.publish(Event::VfAllocated { adapter, nic, vf, requestor_id, serial });
            }
            (NicCall::CreateVPort(asked), NicReply::VPort(id)) => {
                let queue_pairs = asked.num_queue_pairs;
                self.vport = Some(VPort {
                    id,
                    queue_pairs,
                    moderation: asked.interrupt_moderation,
                    policy: None,
                });
                let vf = asked.attached_function.vf().map_or(u16::MAX, |vf| vf.get());
                let vport = id.get();
                cx.out.publish(Event::VPortCreated { adapter, vf, vport, queue_pairs });
            }
            (NicCall::SetVPortPolicy { policy, .. }, NicReply::Done) => {
                if let Some(vport) = &mut self.vport {
                    vport.policy = Some(policy.clone());
                    let vport = vport.id.get();
                    cx.out.publish(Event::VPortPolicySet { adapter, vport });
                }
            }
            (NicCall::ChangeVPort(change), NicReply::Done) => {
                if let (Some(vport), Some(moderation)) =
                    (&mut self.vport, change.interrupt_moderation)
                {
                    vport.moderation = moderation;
                    let (vport, moderation) = (vport.id.get(), moderation.to_wire());
                    cx.out.publish(Event::ModerationSet { adapter, vport, moderation });
                }
            }
            (NicCall::QueryMitigatedRangeCount(vf), NicReply::RangeCounts(counts)) => {
                if counts.iter().any(|count| *count > MAX_MITIGATED_RANGES) {
                    return false;
                }
                // The last comes first, so that popping yields them in order.
                self.ranges.asking = (0..).zip(counts).filter(|(_, count)| *count > 0).collect();
                self.ranges.asking.reverse();
                self.next_ranges(*vf, cx);
            }
            (NicCall::QueryMitigatedRanges { vf, bar, .. }, NicReply::Ranges(ranges)) => {
                self.ranges.answered.insert(*bar, ranges);
                self.next_ranges(*vf, cx);
            }
            (NicCall::SetFilter(asked), NicReply::Filter(id)) => {
                let Ok(matches) = asked.matches() else { return false };
                self.filters.push(Filter { id, matches, vport: asked.vport_id });
                let (filter, vport) = (id.get(), asked.vport_id.get());
                cx.out.publish(Event::FilterSet { adapter, filter, vport });
            }
            (NicCall::MoveFilter(moved), NicReply::Done) => {
                let to = moved.dest_vport_id;
                for filter in self.filters.iter_mut().filter(|f| f.id == moved.filter_id) {
                    filter.vport = to;
                }
                let (filter, from, to) =
                    (moved.filter_id.get(), moved.source_vport_id.get(), to.get());
                cx.out.publish(Event::FilterMoved { adapter, filter, from, to });
            }
            (NicCall::ClearFilter(id), NicReply::Done) => {
                self.filters.retain(|filter| filter.id != *id);
                cx.out.publish(Event::FilterCleared { adapter, filter: id.get() });
            }
            (NicCall::DeleteVPort(vport), NicReply::Done) => {
                self.vport = None;
                cx.out.publish(Event::VPortDeleted { adapter, vport: vport.get() });
            }
            (NicCall::ResetVf(vf), NicReply::Done) => {
                cx.out.publish(Event::VfReset { adapter, vf: vf.get() });
            }
            (NicCall::FreeVf(vf), NicReply::Done) => {
                self.vf = None;
                self.deadlines = Deadlines::default();
                cx.out.publish(Event::VfFreed { adapter, vf: vf.get() });
            }
            _ => return false,
        }
        true
    }

    /// Asks for the ranges of the next BAR, or takes over what was answered.
    fn next_ranges(&mut self, vf: VfIndex, cx: &mut Context<'_>) {
        if let Some((bar, count)) = self.ranges.asking.pop() {
            self.call(cx, NicCall::QueryMitigatedRanges { vf, bar, count });
            return;
        }
        let ranges = core::mem::take(&mut self.ranges.answered);
        let count = ranges.values().map(Vec::len).sum::<usize>();
        let changed = ranges != self.ranges.applied;
        self.ranges.applied = ranges;
        if changed
            && matches!(self.guest.device, Device::Offering | Device::Present)
            && let Some(serial) = self.guest.serial
        {
            let command = VpciCommand::ReplaceMitigatedRanges(self.ranges.applied.clone());
            cx.out.effects.push(Effect::Vpci { adapter: self.id, serial, command });
        }
        let ranges = u32::try_from(count).unwrap_or(u32::MAX);
        cx.out.publish(Event::MitigatedRangesApplied { adapter: self.id, vf: vf.0, ranges });
    }

    fn note_refusal(&mut self, call: &NicCall, error: &CallError, cx: &mut Context<'_>) {
        let (request, status) = (call.target().to_string(), error.status());
        let event =
            Event::Refused { adapter: self.id, request: request.clone(), status: status.clone() };
        cx.out.publish(event);
        if matches!(
            call,
            NicCall::QueryMitigatedRangeCount(_) | NicCall::QueryMitigatedRanges { .. }
        ) {
            self.ranges.stale = true;
        }
        let Some((nic, facts)) = cx.nic else { return };
        let exhausted = error.is_exhaustion();
        let reason = match call {
            NicCall::AllocateVf(_) if exhausted => {
                Reason::OutOfVfs { nic, held: cx.held, total: facts.vfs() }
            }
            NicCall::CreateVPort(_) if exhausted && self.pairs_tried > 1 => {
                self.pairs_limit = Some(self.pairs_tried / 2);
                Reason::OutOfQueuePairs { nic, total: facts.queue_pairs() }
            }
            // Unless all VPorts are in one pool, there is one for each VF (SPEC-NDIS-SRIOV §2.2).
            NicCall::CreateVPort(_)
                if exhausted
                    && cx.pairs.free > 0
                    && facts.can(NicSwitchCapabilityFlags::SINGLE_VPORT_POOL) =>
            {
                Reason::OutOfVPorts { nic, total: facts.vports() }
            }
            NicCall::CreateVPort(_) if exhausted => {
                Reason::OutOfQueuePairs { nic, total: facts.queue_pairs() }
            }
            NicCall::SetFilter(_)
                if exhausted || *error == CallError::Ndis(NdisStatus::FAILURE) =>
            {
                Reason::OutOfMacFilters { nic, total: facts.mac_filters() }
            }
            NicCall::SetVPortPolicy { policy, .. } if policy.vlan != VlanSetting::Untagged => {
                Reason::VlanUnsupported { nic, vlans: self.config.vlans() }
            }
            _ => Reason::NicRefused { nic, request, status },
        };
        self.refusal = Some((reason, cx.now.after(cx.timeouts.retry)));
    }

    /// The VF's mitigated ranges have changed, or nobody knows whether they have.
    pub(crate) fn ranges_changed(&mut self) {
        self.ranges.poll = None;
        self.ranges.stale = true;
    }

    /// The NetVSP end reports, or what stands for it.
    pub(crate) fn netvsp(&mut self, report: NetVspReport) {
        // A guest whose NetVSC is not up asks for nothing. Beside a virtio-net it is the VF's driver that says which path
        // is used, however the virtio-net's is.
        let asks_by_netvsc = self.config.kind != AdapterKind::VhostUser;
        match report {
            NetVspReport::Ready { sriov } => {
                self.guest.netvsc = NetVsc::Ready { sriov };
                self.end_hold_off(HoldOffKind::Guest);
            }
            // The VF stays: guests drive it by themselves (SPEC-VMBUS §7).
            NetVspReport::Closed => self.guest.netvsc = NetVsc::Closed,
            NetVspReport::AsksDataPath(path) => {
                if !asks_by_netvsc || self.guest.netvsc != NetVsc::Closed {
                    self.guest.asks = Some(path);
                }
                return;
            }
        }
        self.guest.told = false;
        if asks_by_netvsc {
            self.guest.asks = None;
        }
    }

    /// The switch is gone, and the NetVSP end with it. A virtio-net's driver stays as it is.
    pub(crate) fn switch_gone(&mut self) {
        if self.config.kind != AdapterKind::VhostUser {
            self.netvsp(NetVspReport::Closed);
        }
    }

    /// The VPCI end reports on the present offering.
    pub(crate) fn vpci_report(&mut self, report: VpciReport, cx: &mut Context<'_>) {
        let guest = &mut self.guest;
        let offered = matches!(guest.device, Device::Offering | Device::Present);
        match report {
            VpciReport::Offered if guest.device == Device::Offering => {
                guest.device = Device::Present;
            }
            VpciReport::OfferFailed { status, cause } if guest.device == Device::Offering => {
                guest.device = Device::Absent;
                self.offer_error = Some(cause.unwrap_or_else(|| status.to_string()));
            }
            VpciReport::BusOpened if offered => {
                guest.progress = guest.progress.max(GuestProgress::BusOpened);
            }
            VpciReport::DeviceStarted if offered => {
                guest.progress = guest.progress.max(GuestProgress::DeviceStarted);
            }
            VpciReport::EjectComplete if offered && !guest.ejected => {
                guest.ejected = true;
                if let Some(serial) = guest.serial {
                    cx.out.publish(Event::VfEjected { adapter: self.id, serial });
                }
            }
            VpciReport::Removed => {
                guest.device = Device::Absent;
                let silent = |hold_off: &HoldOff| {
                    matches!(hold_off.reason, Reason::PartitionNotResponding { .. })
                };
                if self.hold_off.as_ref().is_some_and(silent) {
                    self.hold_off = None;
                }
            }
            _ => {}
        }
    }

    /// The guest has started anew: its drivers are gone, what it was offered is still there.
    pub(crate) fn guest_reset(&mut self) {
        let Guest { serial, device, ejected, .. } = self.guest;
        let eject_asked = self.guest.eject_asked;
        self.guest = Guest { serial, device, eject_asked, ejected, ..Guest::default() };
        self.end_hold_off(HoldOffKind::Guest);
    }

    /// The VM's host side is gone, and the guest with it.
    pub(crate) fn guest_gone(&mut self) {
        self.guest = Guest { serial: self.guest.serial, ..Guest::default() };
        self.end_hold_off(HoldOffKind::Guest);
    }

    /// The NIC is gone, and everything on it. Its requests are not completed any more.
    pub(crate) fn nic_lost(&mut self) {
        self.request = None;
        self.home = None;
        self.filters.clear();
        self.vf = None;
        self.vport = None;
        self.ranges = Ranges::default();
        self.refusal = None;
        self.deadlines.retry = None;
        self.end_hold_off(HoldOffKind::Nic);
        // A device that vanishes with its NIC looks the same as one that was given back, and may be heard of before.
        if self.hold_off.as_ref().is_some_and(|held| held.reason == Reason::GuestReturnedVf) {
            self.hold_off = None;
        }
    }

    /// The VF has failed.
    pub(crate) fn vf_failed(&mut self, cx: &Context<'_>) {
        if let (Some(vf), Some(nic)) = (&self.vf, self.home) {
            let reason = Reason::VfHardwareError { nic, vf: vf.id.get() };
            // Longer than any request may take: the teardown begins before.
            let until = Some(cx.now.after(cx.timeouts.nic).after(cx.timeouts.retry));
            self.hold_off = Some(HoldOff { kind: HoldOffKind::Nic, reason, until });
        }
    }

    pub(crate) fn end_hold_off(&mut self, kind: HoldOffKind) {
        if self.hold_off.as_ref().is_some_and(|hold_off| hold_off.kind == kind) {
            self.hold_off = None;
        }
    }

    /// What the adapter's time has come for; says whether there was something.
    pub(crate) fn expire(&mut self, now: Time) -> bool {
        let over = |until: Time| until <= now;
        let hold_off = self.hold_off.as_ref().and_then(|hold_off| hold_off.until).is_some_and(over);
        let refusal = self.refusal.as_ref().is_some_and(|(_, until)| over(*until));
        if hold_off {
            self.hold_off = None;
        }
        if refusal {
            self.refusal = None;
        }
        hold_off || refusal
    }
}
