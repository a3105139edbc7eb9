//! A model of a NIC: NDIS rules about VFs, VPorts, filters and queue pairs (SPEC-NDIS-SRIOV §4, §6), and the PnP state
//! machine of a PF driver, which is the real one.
//!
//! A request that NDIS would refuse because it makes no sense is a fault of the stack, and noted as a violation.

use std::collections::{BTreeMap, VecDeque};

use device_control_protocol::ClientId;
use ndis_protocol::{
    FilterId, FilterMatch, FunctionId, NdisStatus, NicSwitchCapabilities, NicSwitchCapabilityFlags,
    NicSwitchInfo, ReceiveFilterCapabilities, RequestorId, SriovCapabilities, VPortId, VPortInfo,
    VPortParameters, VPortState, VfId, VfInfo, VfOwner,
};
use pcivirt_protocol::{NtStatus, SriovMitigatedRangesOutput, VfIndex};
use pf_driver::pnp::{Effect as PnpEffect, PnpEvent, PnpMachine, RequestKey};
use virtualization_stack::{CallError, NicCall, NicReply, RequestId};

use crate::random::Random;

/// What the PnP thread is doing.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum PnpThread {
    Idle,
    AskedToStop,
    Stopped,
    Vetoed,
    Restarting,
    AskedToRemove,
    MayBeRemoved,
}

#[derive(Clone, Debug)]
pub(crate) struct VPortModel {
    pub(crate) vf: u16,
    pub(crate) pairs: u32,
    pub(crate) foreign: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct VfModel {
    pub(crate) owner: Option<VfOwner>,
    pub(crate) foreign: bool,
    pub(crate) was_reset: bool,
}

pub(crate) struct NicModel {
    /// Whether its process runs.
    pub(crate) alive: bool,
    /// Whether the stack has a connection.
    pub(crate) connected: bool,
    /// Whether it completes requests.
    pub(crate) hung: bool,
    pub(crate) sriov: bool,
    pub(crate) capabilities: NicSwitchCapabilities,
    pub(crate) pnp: PnpMachine,
    pub(crate) thread: PnpThread,
    client: u64,
    pub(crate) incoming: VecDeque<(RequestId, NicCall)>,
    pub(crate) completed: VecDeque<(RequestId, Result<NicReply, CallError>)>,
    pub(crate) vfs: BTreeMap<u16, VfModel>,
    pub(crate) vports: BTreeMap<u32, VPortModel>,
    pub(crate) filters: BTreeMap<u32, (FilterMatch, u32)>,
    pub(crate) ranges: BTreeMap<u16, u32>,
    pub(crate) polls: BTreeMap<u16, RequestId>,
    /// Another's VPorts were deleted last; whoever sweeps may still know them.
    foreign_vports_gone: bool,
    /// The next requests are refused for no reason.
    pub(crate) refuses: u32,
    pub(crate) violations: Vec<String>,
}

impl NicModel {
    pub(crate) fn new(random: &mut Random) -> Self {
        let vfs = 1 + random.below(4) as u32;
        let per_vport = random.pick(&[1, 2, 4]);
        let mut flags = NicSwitchCapabilityFlags::VLAN_SUPPORTED
            | NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION
            | NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT;
        if random.once_in(4) {
            flags.remove(random.pick(&[
                NicSwitchCapabilityFlags::VLAN_SUPPORTED,
                NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION,
                NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT,
            ]));
        }
        let capabilities = NicSwitchCapabilities {
            flags,
            max_num_switches: 1,
            max_num_vports: vfs + 1,
            max_num_vfs: vfs,
            max_num_queue_pairs: 1 + vfs + random.below(6) as u32,
            max_num_queue_pairs_per_non_default_vport: per_vport,
            max_num_mac_addresses: vfs + 3 + random.below(20) as u32,
            rss: None,
        };
        Self {
            alive: true,
            connected: false,
            hung: false,
            sriov: true,
            capabilities,
            pnp: PnpMachine::new(),
            thread: PnpThread::Idle,
            client: 0,
            incoming: VecDeque::new(),
            completed: VecDeque::new(),
            vfs: BTreeMap::new(),
            vports: BTreeMap::new(),
            filters: BTreeMap::new(),
            ranges: BTreeMap::new(),
            polls: BTreeMap::new(),
            foreign_vports_gone: false,
            refuses: 0,
            violations: Vec::new(),
        }
    }

    fn client(&self) -> ClientId {
        ClientId(self.client)
    }

    /// A new connection.
    pub(crate) fn connect(&mut self) {
        self.client += 1;
        self.connected = true;
    }

    /// The connection ends; what was made stays.
    pub(crate) fn disconnect(&mut self) {
        if !self.connected {
            return;
        }
        self.connected = false;
        self.incoming.clear();
        self.completed.clear();
        self.polls.clear();
        let client = self.client();
        self.pnp(PnpEvent::ClientGone { client });
        self.completed.clear();
    }

    /// Its process ends, and everything with it.
    pub(crate) fn kill(&mut self) {
        self.disconnect();
        self.alive = false;
        self.pnp = PnpMachine::new();
        self.thread = PnpThread::Idle;
        self.vfs.clear();
        self.vports.clear();
        self.filters.clear();
        self.ranges.clear();
        self.hung = false;
        self.refuses = 0;
    }

    pub(crate) fn free_pairs(&self) -> u32 {
        let used: u32 = self.vports.values().map(|vport| vport.pairs).sum();
        self.capabilities.max_num_queue_pairs - 1 - used
    }

    /// Another driver takes a VF, with VPort and queue pairs.
    pub(crate) fn take_foreign(&mut self) {
        let free = (0..self.capabilities.max_num_vfs as u16).find(|vf| !self.vfs.contains_key(vf));
        let pairs = self.common_pairs().unwrap_or(1);
        if let Some(vf) = free.filter(|_| self.sriov && self.free_pairs() >= pairs) {
            self.vfs.insert(vf, VfModel { owner: None, foreign: true, was_reset: false });
            let vport = self.free_vport();
            self.vports.insert(vport, VPortModel { vf, pairs, foreign: true });
        }
    }

    pub(crate) fn free_foreign(&mut self) {
        self.foreign_vports_gone = self.vports.values().any(|vport| vport.foreign);
        self.vports.retain(|_, vport| !vport.foreign);
        self.vfs.retain(|_, vf| !vf.foreign);
    }

    fn common_pairs(&self) -> Option<u32> {
        let asymmetric = NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT;
        if self.capabilities.flags.contains(asymmetric) {
            return None;
        }
        self.vports.values().next().map(|vport| vport.pairs)
    }

    fn free_vport(&self) -> u32 {
        (1..).find(|id| !self.vports.contains_key(id)).unwrap()
    }

    /// One PnP event, and what the PnP thread makes of its answer.
    pub(crate) fn pnp(&mut self, event: PnpEvent) -> NtStatus {
        let outcome = self.pnp.step(event);
        for effect in outcome.effects {
            match effect {
                PnpEffect::Complete { request, status } => {
                    let result = match status {
                        NtStatus::SUCCESS => Ok(NicReply::Done),
                        status => Err(CallError::Nt(status)),
                    };
                    self.complete(request, result);
                }
                PnpEffect::Notify { request, event } => {
                    self.complete(request, Ok(NicReply::Event(event)));
                }
                PnpEffect::ReleasePnp { status } => {
                    self.thread = match (self.thread, status.is_success()) {
                        (PnpThread::AskedToStop, true) => PnpThread::Stopped,
                        (PnpThread::AskedToStop, false) => PnpThread::Vetoed,
                        (PnpThread::AskedToRemove, true) => PnpThread::MayBeRemoved,
                        _ => PnpThread::Idle,
                    };
                    if self.thread == PnpThread::Stopped {
                        self.has_stopped("stop");
                    }
                }
            }
        }
        outcome.answer
    }

    fn complete(&mut self, request: RequestKey, result: Result<NicReply, CallError>) {
        if self.connected && request.client == self.client() {
            self.completed.push_back((RequestId(request.id.0), result));
        }
    }

    /// A PF that stops because the stack allowed it has no VF of the stack left.
    fn has_stopped(&mut self, what: &str) {
        if self.connected && self.vfs.values().any(|vf| !vf.foreign) {
            self.violations.push(format!("the PF may {what} while VFs are allocated"));
        }
    }

    pub(crate) fn query_stop(&mut self) {
        if self.thread == PnpThread::Idle {
            self.thread = PnpThread::AskedToStop;
            match self.pnp(PnpEvent::QueryStop) {
                NtStatus::SUCCESS => self.thread = PnpThread::Stopped,
                NtStatus::PENDING => {}
                _ => self.thread = PnpThread::Idle,
            }
        }
    }

    pub(crate) fn query_remove(&mut self) {
        if self.thread == PnpThread::Idle {
            self.thread = PnpThread::AskedToRemove;
            match self.pnp(PnpEvent::QueryRemove) {
                NtStatus::PENDING => {}
                _ => self.thread = PnpThread::Idle,
            }
        }
    }

    /// The PnP manager goes on: a stopped device starts, a vetoed stop is called off, a device that may be removed is
    /// (`released`: the stack has not given up waiting for that) or is not. Says whether there was something.
    pub(crate) fn go_on(&mut self, remove: bool, released: bool) -> bool {
        match self.thread {
            PnpThread::Stopped | PnpThread::Vetoed => {
                let stopped = self.thread == PnpThread::Stopped;
                self.thread = PnpThread::Restarting;
                let event = if stopped { PnpEvent::Start } else { PnpEvent::CancelStop };
                if self.pnp(event) != NtStatus::PENDING {
                    self.thread = PnpThread::Idle;
                }
                true
            }
            PnpThread::MayBeRemoved => {
                self.thread = PnpThread::Idle;
                if remove {
                    if released && self.connected && !self.filters.is_empty() {
                        self.violations.push("the PF may be removed while filters are set".into());
                    }
                    if released {
                        self.has_stopped("be removed");
                    }
                    self.pnp(PnpEvent::Remove);
                } else {
                    self.pnp(PnpEvent::CancelRemove);
                }
                true
            }
            _ => false,
        }
    }

    /// Whether the device was taken out although its process runs.
    pub(crate) fn is_removed(&self) -> bool {
        self.pnp.state().is_removed()
    }

    /// Handles the next request.
    pub(crate) fn handle(&mut self) {
        let Some((request, call)) = self.incoming.pop_front() else { return };
        let key =
            RequestKey { client: self.client(), id: device_control_protocol::RequestId(request.0) };
        let client = self.client();
        match &call {
            NicCall::Attach => {
                self.pnp(PnpEvent::Attach { request: key, removal_events: true });
                return;
            }
            NicCall::Notification => {
                self.pnp(PnpEvent::Notification { request: key });
                return;
            }
            NicCall::EventComplete(status) => {
                let answer = self.pnp(PnpEvent::EventComplete { client, status: *status });
                if !answer.is_success() && !self.is_removed() {
                    self.violations.push("an event was completed that nobody waits for".into());
                }
                let result = answer.into_result().map(|()| NicReply::Done);
                self.completed.push_back((request, result.map_err(CallError::Nt)));
                return;
            }
            NicCall::MitigatedRangeUpdate(vf) => {
                if self.polls.insert(vf.0, request).is_some() {
                    self.violations.push(format!("two range updates wait for {vf}"));
                }
                return;
            }
            _ => {}
        }
        let result = self.answer(&call);
        self.completed.push_back((request, result));
    }

    fn answer(&mut self, call: &NicCall) -> Result<NicReply, CallError> {
        if self.is_removed() {
            return Err(CallError::Ndis(NdisStatus::ADAPTER_REMOVED));
        }
        let changes = !matches!(
            call,
            NicCall::SriovHardwareCapabilities
                | NicCall::SriovCurrentCapabilities
                | NicCall::NicSwitchCurrentCapabilities
                | NicCall::ReceiveFilterCurrentCapabilities
                | NicCall::EnumSwitches
                | NicCall::EnumVfs
                | NicCall::EnumVPorts
                | NicCall::EnumFilters(_)
        );
        if changes && self.thread == PnpThread::Stopped {
            self.violations.push(format!("{} reached a stopped PF", call.target()));
        }
        if changes && self.refuses > 0 {
            self.refuses -= 1;
            return Err(CallError::Ndis(NdisStatus::FAILURE));
        }
        if !self.sriov && !matches!(call, NicCall::SriovHardwareCapabilities) {
            return Err(CallError::Ndis(NdisStatus::NOT_SUPPORTED));
        }
        match self.rules(call) {
            Err(CallError::Ndis(NdisStatus::INVALID_PARAMETER)) => {
                self.violations.push(format!("NDIS refuses {call:?}"));
                Err(CallError::Ndis(NdisStatus::INVALID_PARAMETER))
            }
            result => result,
        }
    }

    fn rules(&mut self, call: &NicCall) -> Result<NicReply, CallError> {
        const INVALID: CallError = CallError::Ndis(NdisStatus::INVALID_PARAMETER);
        const EXHAUSTED: CallError = CallError::Ndis(NdisStatus::RESOURCES);
        Ok(match call {
            NicCall::SriovHardwareCapabilities | NicCall::SriovCurrentCapabilities => {
                NicReply::Sriov(SriovCapabilities::SRIOV_SUPPORTED | SriovCapabilities::PF_MINIPORT)
            }
            NicCall::NicSwitchCurrentCapabilities => NicReply::NicSwitch(self.capabilities),
            NicCall::ReceiveFilterCurrentCapabilities => {
                NicReply::ReceiveFilter(Box::new(ReceiveFilterCapabilities {
                    max_mac_header_filters: self.capabilities.max_num_mac_addresses,
                    ..Default::default()
                }))
            }
            NicCall::EnumSwitches => NicReply::Switches(vec![NicSwitchInfo {
                num_vfs: self.capabilities.max_num_vfs,
                num_queue_pairs_for_default_vport: 1,
                ..Default::default()
            }]),
            NicCall::EnumVfs => NicReply::Vfs(
                self.vfs
                    .iter()
                    .map(|(id, vf)| VfInfo {
                        switch_id: ndis_protocol::SwitchId::DEFAULT,
                        owner: vf.owner.clone().unwrap_or_else(|| VfOwner {
                            vm_name: Default::default(),
                            vm_friendly_name: Default::default(),
                            nic_name: Default::default(),
                            permanent_mac: ndis_protocol::MacAddress::ZERO,
                            current_mac: ndis_protocol::MacAddress::ZERO,
                        }),
                        vf_id: VfId::new(*id).unwrap(),
                        requestor_id: requestor(*id),
                    })
                    .collect(),
            ),
            NicCall::EnumVPorts => {
                NicReply::VPorts(self.vports.iter().map(|(id, vport)| info(*id, vport)).collect())
            }
            NicCall::EnumFilters(vport) => NicReply::Filters(
                self.filters
                    .iter()
                    .filter(|(_, (_, at))| *at == vport.get())
                    .map(|(id, _)| FilterId::new(*id).unwrap())
                    .collect(),
            ),
            NicCall::AllocateVf(parameters) => {
                let max = self.capabilities.max_num_vfs as u16;
                let Some(vf) = (0..max).find(|vf| !self.vfs.contains_key(vf)) else {
                    return Err(EXHAUSTED);
                };
                let owner = Some(parameters.owner.clone());
                self.vfs.insert(vf, VfModel { owner, foreign: false, was_reset: false });
                self.ranges.insert(vf, u32::from(vf) % 3);
                NicReply::Vf(VfId::new(vf).unwrap(), requestor(vf))
            }
            NicCall::CreateVPort(parameters) => self.create_vport(parameters)?,
            NicCall::SetVPortPolicy { vport, .. } => {
                self.own_vport(vport.get())?;
                NicReply::Done
            }
            NicCall::ChangeVPort(change) => {
                self.own_vport(change.vport_id.get())?;
                NicReply::Done
            }
            NicCall::DeleteVPort(vport) => {
                let id = vport.get();
                // Somebody else's stays, and whoever sweeps asks without knowing.
                let foreign = match self.vports.get(&id) {
                    Some(vport) => vport.foreign,
                    None => self.foreign_vports_gone,
                };
                if foreign {
                    return Err(CallError::Nt(NtStatus::ACCESS_DENIED));
                }
                self.own_vport(id)?;
                if self.filters.values().any(|(_, at)| *at == id) {
                    return Err(INVALID);
                }
                self.vports.remove(&id);
                NicReply::Done
            }
            NicCall::ResetVf(vf) => {
                let vf = self.vfs.get_mut(&vf.get()).ok_or(INVALID)?;
                vf.was_reset = true;
                NicReply::Done
            }
            NicCall::FreeVf(vf) => {
                let id = vf.get();
                let absent = CallError::Ndis(NdisStatus::FILE_NOT_FOUND);
                if self.vfs.get(&id).ok_or(absent)?.foreign {
                    return Err(CallError::Nt(NtStatus::ACCESS_DENIED));
                }
                if self.vports.values().any(|vport| vport.vf == id) {
                    return Err(INVALID);
                }
                self.vfs.remove(&id);
                self.ranges.remove(&id);
                self.polls.remove(&id);
                NicReply::Done
            }
            NicCall::SetFilter(parameters) => {
                let matches = parameters.matches().map_err(|_| INVALID)?;
                let at = parameters.vport_id.get();
                if at != 0 {
                    self.own_vport(at)?;
                }
                if let Some((id, (_, other))) =
                    self.filters.iter().find(|(_, (m, _))| *m == matches)
                {
                    self.violations.push(format!(
                        "{matches:?} is set on VPort {at} while filter {id} has it on VPort {other}"
                    ));
                }
                if self.filters.len() as u32 >= self.capabilities.max_num_mac_addresses {
                    return Err(CallError::Ndis(NdisStatus::FAILURE));
                }
                let id = (1..).find(|id| !self.filters.contains_key(id)).unwrap();
                self.filters.insert(id, (matches, at));
                NicReply::Filter(FilterId::new(id).unwrap())
            }
            NicCall::MoveFilter(moved) => {
                let to = moved.dest_vport_id.get();
                if to != 0 {
                    self.own_vport(to)?;
                }
                let filter = self.filters.get_mut(&moved.filter_id.get()).ok_or(INVALID)?;
                if filter.1 != moved.source_vport_id.get() {
                    return Err(INVALID);
                }
                filter.1 = to;
                NicReply::Done
            }
            NicCall::ClearFilter(filter) => {
                self.filters
                    .remove(&filter.get())
                    .ok_or(CallError::Ndis(NdisStatus::FILE_NOT_FOUND))?;
                NicReply::Done
            }
            NicCall::QueryMitigatedRangeCount(vf) => {
                let count = *self.ranges.get(&vf.0).ok_or(INVALID)?;
                NicReply::RangeCounts([count, 0, 0, count, 0, 0])
            }
            NicCall::QueryMitigatedRanges { vf, count, .. } => {
                self.ranges.get(&vf.0).ok_or(INVALID)?;
                let range = |page| SriovMitigatedRangesOutput::new(page, 1, true, true);
                NicReply::Ranges((0..u64::from(*count)).map(range).collect())
            }
            NicCall::Attach
            | NicCall::Notification
            | NicCall::EventComplete(_)
            | NicCall::MitigatedRangeUpdate(_) => NicReply::Done,
        })
    }

    fn own_vport(&self, id: u32) -> Result<(), CallError> {
        let exists = self.vports.get(&id).is_some_and(|vport| !vport.foreign);
        if exists { Ok(()) } else { Err(CallError::Ndis(NdisStatus::INVALID_PARAMETER)) }
    }

    fn create_vport(&mut self, parameters: &VPortParameters) -> Result<NicReply, CallError> {
        let invalid = CallError::Ndis(NdisStatus::INVALID_PARAMETER);
        let FunctionId::Vf(vf) = parameters.attached_function else { return Err(invalid) };
        let pairs = parameters.num_queue_pairs;
        let max = self.capabilities.max_num_queue_pairs_per_non_default_vport;
        let taken = self.vports.values().any(|vport| vport.vf == vf.get());
        if !self.vfs.contains_key(&vf.get()) || taken || pairs == 0 || pairs > max {
            return Err(invalid);
        }
        let moderates = NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION;
        if parameters.interrupt_moderation.to_wire() != 0
            && !self.capabilities.flags.contains(moderates)
        {
            return Err(invalid);
        }
        match self.common_pairs() {
            // Those of another driver, of which the stack knows nothing.
            Some(common) if common != pairs && self.vports.values().any(|v| v.foreign) => {
                return Err(CallError::Ndis(NdisStatus::NOT_SUPPORTED));
            }
            Some(common) if common != pairs => return Err(invalid),
            _ => {}
        }
        let full = self.vports.len() as u32 + 1 >= self.capabilities.max_num_vports;
        if full || pairs > self.free_pairs() {
            return Err(CallError::Ndis(NdisStatus::RESOURCES));
        }
        let id = self.free_vport();
        self.vports.insert(id, VPortModel { vf: vf.get(), pairs, foreign: false });
        Ok(NicReply::VPort(VPortId::new(id).unwrap()))
    }

    /// The ranges of a VF change.
    pub(crate) fn change_ranges(&mut self, vf: u16) {
        if let Some(count) = self.ranges.get_mut(&vf) {
            *count = (*count + 1) % 4;
            if let Some(request) = self.polls.remove(&vf) {
                self.completed.push_back((request, Ok(NicReply::RangesChanged(VfIndex(vf)))));
            }
        }
    }
}

fn requestor(vf: u16) -> RequestorId {
    RequestorId::new(0, 1, vf as u8 + 16).unwrap()
}

fn info(id: u32, vport: &VPortModel) -> VPortInfo {
    VPortInfo {
        vport_id: VPortId::new(id).unwrap(),
        flags: Default::default(),
        switch_id: ndis_protocol::SwitchId::DEFAULT,
        name: Default::default(),
        attached_function: FunctionId::Vf(VfId::new(vport.vf).unwrap()),
        num_queue_pairs: vport.pairs,
        interrupt_moderation: Default::default(),
        state: VPortState::Activated,
        processor_affinity: Default::default(),
        lookahead_size: 0,
        num_filters: 0,
    }
}
