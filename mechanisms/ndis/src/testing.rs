//! A PF miniport driver in memory that records what it is asked, holds NDIS to its contract, and fails on demand; and
//! a test bench that sends requests as bytes, as an overlying driver does.

use std::collections::BTreeMap;

use device_control_protocol::DriverName;
use ndis_protocol::*;
use pcivirt_protocol::{CmPartialResourceDescriptor, DevicePowerState, Luid};

use crate::*;

/// A card with 4 VFs, 8 VPorts, 16 queue pairs and 12 filters.
pub(crate) fn sample_hardware() -> HardwareCapabilities {
    type Flags = NicSwitchCapabilityFlags;
    HardwareCapabilities {
        sriov: SriovCapabilities::PF,
        nic_switch: NicSwitchCapabilities {
            flags: Flags::VLAN_SUPPORTED
                | Flags::PER_VPORT_INTERRUPT_MODERATION
                | Flags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT
                | Flags::VF_RSS_SUPPORTED
                | Flags::RSS_ON_PF_VPORTS,
            max_num_switches: 1,
            max_num_vports: 8,
            max_num_vfs: 4,
            max_num_queue_pairs: 16,
            max_num_queue_pairs_per_non_default_vport: 4,
            max_num_mac_addresses: 12,
            rss: Some(NicSwitchRssCapabilities {
                max_num_rss_capable_non_default_pf_vports: 3,
                number_of_indirection_table_entries_for_default_vport: 128,
                number_of_indirection_table_entries_per_non_default_pf_vport: 16,
                max_num_queue_pairs_for_default_vport: 4,
            }),
        },
        receive_filter: ReceiveFilterCapabilities::sriov(12, true),
    }
}

/// Keywords with which SR-IOV is active.
pub(crate) fn sriov_keywords() -> Keywords {
    Keywords { sriov_preferred: true, ..Keywords::default() }
}

/// The card as the driver sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Card {
    pub(crate) switch: Option<CreateSwitch>,
    pub(crate) vports: BTreeMap<VPortId, CreateVPort>,
    pub(crate) vfs: BTreeMap<VfId, VfOwner>,
    pub(crate) filters: BTreeMap<FilterId, SetFilter>,
}

/// The driver. Every request that breaks the contract of [`PfMiniport`] is a failed test.
#[derive(Debug)]
pub(crate) struct FakeMiniport {
    pub(crate) hardware: HardwareCapabilities,
    pub(crate) card: Card,
    /// What was asked, one line each.
    pub(crate) calls: Vec<String>,
    /// Let this many requests pass, then fail one with this status.
    pub(crate) fail: Option<(u32, NdisStatus)>,
    pub(crate) initialized: bool,
    pub(crate) removed: bool,
    pub(crate) rename_needs_restart: bool,
    /// Answers of ALLOCATE_VF that break the contract.
    pub(crate) wrong_vf: Option<u16>,
    pub(crate) config_space: Vec<u8>,
    pub(crate) block: Vec<u8>,
}

impl FakeMiniport {
    pub(crate) fn new(hardware: HardwareCapabilities) -> Self {
        Self {
            hardware,
            card: Card::default(),
            calls: Vec::new(),
            fail: None,
            initialized: false,
            removed: false,
            rename_needs_restart: false,
            wrong_vf: None,
            config_space: (0..4096).map(|i| i as u8).collect(),
            block: vec![0; 128],
        }
    }

    fn asked(&mut self, what: impl Into<String>) -> Result<(), NdisStatus> {
        assert!(self.initialized && !self.removed, "a request while not running");
        self.calls.push(what.into());
        match &mut self.fail {
            Some((0, status)) => {
                let status = *status;
                self.fail = None;
                Err(status)
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn allocated(&self, vf: VfId) {
        assert!(self.card.vfs.contains_key(&vf), "{vf} is not allocated");
    }
}

impl PfMiniport for FakeMiniport {
    fn sriov_capabilities(&self) -> SriovCapabilities {
        self.hardware.sriov
    }

    fn nic_switch_capabilities(&self) -> NicSwitchCapabilities {
        self.hardware.nic_switch
    }

    fn receive_filter_capabilities(&self) -> ReceiveFilterCapabilities {
        self.hardware.receive_filter
    }

    fn pf_luid(&self) -> Luid {
        Luid::from_u64(0x1234_5678_9ABC)
    }

    fn initialize(&mut self, start: &MiniportStart) -> Result<(), NdisStatus> {
        assert!(!self.initialized, "initialized twice");
        self.initialized = true;
        let result = self.asked(format!("initialize {}", start.features));
        self.initialized = result.is_ok();
        result
    }

    fn halt(&mut self) {
        assert!(self.initialized, "halted twice");
        self.calls.push("halt".to_owned());
        self.initialized = false;
        self.removed = false;
        self.card = Card::default();
    }

    fn surprise_removed(&mut self) {
        assert!(self.initialized && !self.removed);
        self.calls.push("surprise_removed".to_owned());
        self.removed = true;
    }

    fn create_switch(&mut self, switch: &CreateSwitch) -> Result<(), NdisStatus> {
        assert_eq!(self.card, Card::default(), "a second switch");
        assert!(u32::from(switch.num_vfs) <= self.hardware.nic_switch.max_num_vfs);
        self.asked(format!("create_switch {:?} {} VFs", switch.name, switch.num_vfs))?;
        self.card.switch = Some(switch.clone());
        Ok(())
    }

    fn set_switch_name(
        &mut self,
        switch_id: SwitchId,
        name: &Name,
    ) -> Result<ParameterChange, NdisStatus> {
        assert_eq!(self.card.switch.as_ref().map(|switch| switch.switch_id), Some(switch_id));
        self.asked(format!("set_switch_name {name:?}"))?;
        if self.rename_needs_restart {
            return Ok(ParameterChange::AfterRestart);
        }
        if let Some(switch) = &mut self.card.switch {
            switch.name = name.clone();
        }
        Ok(ParameterChange::Applied)
    }

    fn delete_switch(&mut self, switch_id: SwitchId) -> Result<(), NdisStatus> {
        assert_eq!(self.card.switch.as_ref().map(|switch| switch.switch_id), Some(switch_id));
        let Card { vports, vfs, filters, .. } = &self.card;
        assert!(vports.is_empty() && vfs.is_empty() && filters.is_empty(), "a switch in use");
        self.asked("delete_switch")?;
        self.card.switch = None;
        Ok(())
    }

    fn create_vport(&mut self, vport: &CreateVPort) -> Result<(), NdisStatus> {
        assert!(self.card.switch.is_some(), "a VPort without switch");
        assert!(!self.card.vports.contains_key(&vport.vport_id), "a VPort id twice");
        assert!((1..self.hardware.nic_switch.max_num_vports).contains(&vport.vport_id.get()));
        if let FunctionId::Vf(vf) = vport.attached_function {
            self.allocated(vf);
            let same = |v: &CreateVPort| v.attached_function == vport.attached_function;
            assert!(!self.card.vports.values().any(same), "a VF with two VPorts");
        }
        assert_eq!(vport.activated, vport.attached_function != FunctionId::Pf);
        self.asked(format!(
            "create_vport {} on {} with {} queue pairs",
            vport.vport_id.get(),
            vport.attached_function,
            vport.num_queue_pairs
        ))?;
        self.card.vports.insert(vport.vport_id, vport.clone());
        let pairs: u32 = self.card.vports.values().map(|v| v.num_queue_pairs).sum();
        assert!(pairs < self.hardware.nic_switch.max_num_queue_pairs, "too many queue pairs");
        Ok(())
    }

    fn set_vport_parameters(&mut self, change: &ChangeVPort) -> Result<(), NdisStatus> {
        self.asked(format!("set_vport_parameters {}", change.vport_id.get()))?;
        if change.vport_id.is_default() {
            return Ok(());
        }
        let vport = self.card.vports.get_mut(&change.vport_id).expect("the VPort exists");
        vport.activated |= change.activate;
        if let Some(name) = &change.name {
            vport.name = name.clone();
        }
        if let Some(moderation) = change.interrupt_moderation {
            vport.interrupt_moderation = moderation;
        }
        if let Some(affinity) = change.processor_affinity {
            vport.processor_affinity = affinity;
        }
        if let Some(pairs) = change.num_queue_pairs {
            vport.num_queue_pairs = pairs;
        }
        Ok(())
    }

    fn delete_vport(&mut self, vport_id: VPortId) -> Result<(), NdisStatus> {
        assert!(self.card.vports.contains_key(&vport_id), "the VPort exists");
        assert!(!self.card.filters.values().any(|f| f.vport_id == vport_id), "filters are left");
        self.asked(format!("delete_vport {}", vport_id.get()))?;
        self.card.vports.remove(&vport_id);
        Ok(())
    }

    fn allocate_vf(&mut self, vf: &AllocateVf) -> Result<AllocatedVf, NdisStatus> {
        let num_vfs = self.card.switch.as_ref().expect("a switch").num_vfs;
        assert!(self.card.vfs.len() < usize::from(num_vfs), "more VFs than there are");
        self.asked(format!("allocate_vf for {}", vf.owner.vm_name))?;
        let free = (0..num_vfs).find(|id| !self.card.vfs.contains_key(&vf_id(*id))).unwrap();
        let id = vf_id(self.wrong_vf.take().unwrap_or(free));
        self.card.vfs.insert(id, vf.owner.clone());
        let requestor_id = RequestorId::new(0, 3, id.get() as u8 + 2).unwrap();
        Ok(AllocatedVf { vf_id: id, requestor_id })
    }

    fn free_vf(&mut self, vf_id: VfId) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        let on_vf = |v: &CreateVPort| v.attached_function == FunctionId::Vf(vf_id);
        assert!(!self.card.vports.values().any(on_vf), "the VF still has a VPort");
        self.asked(format!("free_vf {}", vf_id.get()))?;
        self.card.vfs.remove(&vf_id);
        Ok(())
    }

    fn read_vf_config_space(
        &mut self,
        vf_id: VfId,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("read_vf_config_space {} {offset}+{}", vf_id.get(), data.len()))?;
        let start = offset as usize;
        data.copy_from_slice(&self.config_space[start..start + data.len()]);
        Ok(())
    }

    fn write_vf_config_space(
        &mut self,
        vf_id: VfId,
        offset: u32,
        data: &[u8],
    ) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("write_vf_config_space {} {offset}+{}", vf_id.get(), data.len()))?;
        let start = offset as usize;
        self.config_space[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read_vf_config_block(
        &mut self,
        vf_id: VfId,
        block_id: u32,
        data: &mut [u8],
    ) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("read_vf_config_block {} {block_id}", vf_id.get()))?;
        data.copy_from_slice(&self.block[..data.len()]);
        Ok(())
    }

    fn write_vf_config_block(
        &mut self,
        vf_id: VfId,
        block_id: u32,
        data: &[u8],
    ) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("write_vf_config_block {} {block_id}", vf_id.get()))?;
        self.block[..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn reset_vf(&mut self, vf_id: VfId) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("reset_vf {}", vf_id.get()))
    }

    fn set_vf_power_state(
        &mut self,
        vf_id: VfId,
        state: DevicePowerState,
        wake_enable: bool,
    ) -> Result<(), NdisStatus> {
        self.allocated(vf_id);
        assert!(!(wake_enable && state == DevicePowerState::D0));
        self.asked(format!("set_vf_power_state {} {state:?} wake {wake_enable}", vf_id.get()))
    }

    fn vf_vendor_device_id(&mut self, vf_id: VfId) -> Result<VendorDeviceId, NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("vf_vendor_device_id {}", vf_id.get()))?;
        Ok(VendorDeviceId { vendor_id: 0x8086, device_id: 0x1889 })
    }

    fn probed_bars(&mut self) -> Result<[u32; 6], NdisStatus> {
        self.asked("probed_bars")?;
        Ok([0xFFFF_0004, 0xFFFF_FFFF, 0, 0xFFFF_C004, 0xFFFF_FFFF, 0])
    }

    fn bar_resources(
        &mut self,
        vf_id: VfId,
        bar: BarIndex,
    ) -> Result<CmPartialResourceDescriptor, NdisStatus> {
        self.allocated(vf_id);
        self.asked(format!("bar_resources {} {}", vf_id.get(), bar.get()))?;
        let start = 0x1_0000_0000 + 0x1_0000 * u64::from(vf_id.get());
        CmPartialResourceDescriptor::memory(start, 0x1_0000, 0).ok_or(NdisStatus::FAILURE)
    }

    fn set_filter(&mut self, filter: &SetFilter) -> Result<(), NdisStatus> {
        assert!(!self.card.filters.contains_key(&filter.filter_id), "a filter id twice");
        self.vport_exists(filter.vport_id);
        self.asked(format!(
            "set_filter {} {} on VPort {}",
            filter.filter_id.get(),
            filter.matches.mac,
            filter.vport_id.get()
        ))?;
        self.card.filters.insert(filter.filter_id, *filter);
        Ok(())
    }

    fn clear_filter(&mut self, filter_id: FilterId) -> Result<(), NdisStatus> {
        assert!(self.card.filters.contains_key(&filter_id), "the filter exists");
        self.asked(format!("clear_filter {}", filter_id.get()))?;
        self.card.filters.remove(&filter_id);
        Ok(())
    }

    fn move_filter(
        &mut self,
        filter_id: FilterId,
        source: VPortId,
        destination: VPortId,
    ) -> Result<(), NdisStatus> {
        self.vport_exists(destination);
        self.asked(format!(
            "move_filter {} from VPort {} to VPort {}",
            filter_id.get(),
            source.get(),
            destination.get()
        ))?;
        let filter = self.card.filters.get_mut(&filter_id).expect("the filter exists");
        assert_eq!(filter.vport_id, source);
        filter.vport_id = destination;
        Ok(())
    }
}

impl FakeMiniport {
    fn vport_exists(&self, vport: VPortId) {
        assert!(vport.is_default() || self.card.vports.contains_key(&vport), "{vport} exists");
    }
}

pub(crate) fn vf_id(raw: u16) -> VfId {
    VfId::new(raw).unwrap()
}

pub(crate) fn vport_id(raw: u32) -> VPortId {
    VPortId::new(raw).unwrap()
}

pub(crate) fn filter_id(raw: u32) -> FilterId {
    FilterId::new(raw).unwrap()
}

pub(crate) fn mac(last: u8) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 0, last])
}

pub(crate) fn driver(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

/// A request to allocate a VF for a VM.
pub(crate) fn vf_request(vm: &str, last: u8) -> VfParameters {
    VfParameters {
        switch_id: SwitchId::DEFAULT,
        owner: VfOwner {
            vm_name: Name::new(vm).unwrap(),
            vm_friendly_name: Name::new("A virtual machine").unwrap(),
            nic_name: Name::new("Network Adapter").unwrap(),
            permanent_mac: mac(last),
            current_mac: mac(last),
        },
        vf_id: None,
        requestor_id: None,
    }
}

/// NDIS with a driver below and an overlying driver, "stack", above.
pub(crate) struct Bench {
    pub(crate) ndis: Ndis<FakeMiniport>,
    pub(crate) owner: DriverName,
}

pub(crate) type Answer<T = ()> = Result<T, NdisStatus>;

impl Bench {
    /// Started with SR-IOV active.
    pub(crate) fn new() -> Self {
        Self::with(sample_hardware(), sriov_keywords())
    }

    pub(crate) fn with(hardware: HardwareCapabilities, keywords: Keywords) -> Self {
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: None };
        let mut ndis = Ndis::new(FakeMiniport::new(hardware), configuration);
        ndis.start().unwrap();
        ndis.miniport_mut().calls.clear();
        Self { ndis, owner: driver("stack") }
    }

    /// Speaks for another overlying driver.
    pub(crate) fn speak_for(&mut self, name: &str) {
        self.owner = driver(name);
    }

    /// Sends a request and checks what holds for all of them.
    pub(crate) fn send(
        &mut self,
        oid: Oid,
        kind: RequestKind,
        input: &[u8],
        room: usize,
    ) -> OidCompletion {
        let before = self.ndis.cache().clone();
        let card = self.ndis.miniport().card.clone();
        let completion = self.ndis.oid_request(&self.owner, oid.code(), kind, input, room);
        assert_eq!(completion.bytes_written as usize, completion.output.len());
        assert!(completion.output.len() <= room);
        assert_eq!(
            completion.refusal.as_ref().map(Refusal::status).unwrap_or(completion.status),
            completion.status
        );
        assert_eq!(completion.status == NdisStatus::INVALID_LENGTH, completion.bytes_needed > 0);
        if completion.refusal.is_some() {
            assert_eq!(*self.ndis.cache(), before, "a refusal changed the cache");
            assert_eq!(self.ndis.miniport().card, card, "a refusal changed the card");
            assert!(completion.output.is_empty());
        }
        self.check_invariants();
        completion
    }

    /// The cache and the card agree, and the rules of the specification hold.
    pub(crate) fn check_invariants(&self) {
        let cache = self.ndis.cache();
        let card = &self.ndis.miniport().card;
        assert_eq!(cache.switch().is_some(), card.switch.is_some());
        let cached: Vec<_> =
            cache.vports().map(|(id, _)| id).filter(|id| !id.is_default()).collect();
        assert_eq!(cached, card.vports.keys().copied().collect::<Vec<_>>());
        for (id, vport) in &card.vports {
            let cached = &cache.vport(*id).unwrap().parameters;
            assert_eq!(cached.vport_id, *id);
            assert_eq!(cached.attached_function, vport.attached_function);
            assert_eq!(cached.num_queue_pairs, vport.num_queue_pairs);
            assert_eq!(cached.state == VPortState::Activated, vport.activated);
            assert_eq!(cached.interrupt_moderation, vport.interrupt_moderation);
            assert_eq!(cached.name, vport.name);
            assert_eq!(cached.processor_affinity, vport.processor_affinity);
        }
        assert_eq!(
            cache
                .vfs()
                .map(|(id, record)| (id, record.info.owner.clone()))
                .collect::<BTreeMap<_, _>>(),
            card.vfs
        );
        assert_eq!(
            cache
                .filters()
                .map(|(id, record)| (id, record.parameters.vport_id, record.matches))
                .collect::<Vec<_>>(),
            card.filters.values().map(|f| (f.filter_id, f.vport_id, f.matches)).collect::<Vec<_>>()
        );
        let limits = &self.ndis.hardware_capabilities().nic_switch;
        let pairs: u32 = cache.vports().map(|(_, r)| r.parameters.num_queue_pairs).sum();
        assert!(pairs <= limits.max_num_queue_pairs);
        assert!(cache.vports().count() <= limits.max_num_vports as usize);
        assert!(cache.filters().count() <= limits.max_num_mac_addresses as usize);
        for (id, record) in cache.vports() {
            if let FunctionId::Vf(vf) = record.parameters.attached_function {
                assert!(cache.vf(vf).is_some(), "{id} is on {vf}, which is not allocated");
                assert_eq!(cache.vport_of_vf(vf), Some(id), "{vf} has two VPorts");
                assert_eq!(record.parameters.state, VPortState::Activated);
            }
        }
        if let Some(default) = cache.vport(VPortId::DEFAULT) {
            assert_eq!(default.parameters.state, VPortState::Activated);
            assert_eq!(default.parameters.attached_function, FunctionId::Pf);
        }
    }

    pub(crate) fn set(&mut self, oid: Oid, input: &impl NdisStructure) -> Answer {
        let completion = self.send(oid, RequestKind::Set, &input.emit(), 0);
        if completion.is_success() { Ok(()) } else { Err(completion.status) }
    }

    /// A method whose answer has the same structure as its question.
    pub(crate) fn method<T: NdisStructure>(&mut self, oid: Oid, input: &T) -> Answer<T> {
        let completion = self.send(oid, RequestKind::Method, &input.emit(), 1 << 20);
        if completion.is_success() {
            Ok(T::parse(&completion.output).expect("the answer is well formed"))
        } else {
            Err(completion.status)
        }
    }

    pub(crate) fn query<T: NdisStructure>(&mut self, oid: Oid) -> Answer<T> {
        let completion = self.send(oid, RequestKind::Query, &[], 1 << 20);
        if completion.is_success() {
            Ok(T::parse(&completion.output).expect("the answer is well formed"))
        } else {
            Err(completion.status)
        }
    }

    pub(crate) fn allocate_vf(&mut self, vm: &str) -> Answer<VfId> {
        let last = vm.bytes().last().unwrap_or(0);
        let answer = self.method(Oid::NicSwitchAllocateVf, &vf_request(vm, last))?;
        Ok(answer.vf_id.expect("an allocated VF"))
    }

    pub(crate) fn create_vf_vport(&mut self, vf: VfId, pairs: u32) -> Answer<VPortId> {
        self.create_vport(&VPortParameters::new(FunctionId::Vf(vf), pairs))
    }

    pub(crate) fn create_vport(&mut self, parameters: &VPortParameters) -> Answer<VPortId> {
        Ok(self.method(Oid::NicSwitchCreateVport, parameters)?.vport_id)
    }

    pub(crate) fn set_filter(&mut self, vport: VPortId, matches: FilterMatch) -> Answer<FilterId> {
        let parameters = ReceiveFilterParameters::new(vport, matches);
        let answer = self.method(Oid::ReceiveFilterSetFilter, &parameters)?;
        assert_eq!(answer.vport_id, vport);
        Ok(answer.filter_id.expect("a numbered filter"))
    }

    pub(crate) fn move_filter(&mut self, filter: FilterId, from: VPortId, to: VPortId) -> Answer {
        self.set(
            Oid::ReceiveFilterMoveFilter,
            &ReceiveFilterMoveFilterParameters::new(filter, from, to),
        )
    }

    pub(crate) fn clear_filter(&mut self, filter: FilterId) -> Answer {
        let clear = ReceiveFilterClearParameters { queue_id: 0, filter_id: Some(filter) };
        self.set(Oid::ReceiveFilterClearFilter, &clear)
    }

    pub(crate) fn delete_vport(&mut self, vport_id: VPortId) -> Answer {
        self.set(Oid::NicSwitchDeleteVport, &NicSwitchDeleteVPortParameters { vport_id })
    }

    pub(crate) fn reset_vf(&mut self, vf_id: VfId) -> Answer {
        self.set(Oid::SriovResetVf, &SriovResetVf { vf_id })
    }

    pub(crate) fn free_vf(&mut self, vf_id: VfId) -> Answer {
        self.set(Oid::NicSwitchFreeVf, &NicSwitchFreeVfParameters { vf_id })
    }

    /// What the driver was asked since the last time.
    pub(crate) fn calls(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ndis.miniport_mut().calls)
    }
}
