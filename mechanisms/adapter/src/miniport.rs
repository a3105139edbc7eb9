//! The PF miniport: the NDIS contract in front of the adapter.
//!
//! NDIS has checked, numbered and serialized the requests; what is left is to do them and to name failures.

use std::{collections::BTreeMap, sync::Arc};

use ndis::{
    AllocateVf, AllocatedVf, ChangeVPort, CreateSwitch, CreateVPort, MiniportStart,
    ParameterChange, PfMiniport, SetFilter, VendorDeviceId,
};
use ndis_protocol::{
    BarIndex, FilterHeaders, FilterId, FilterTests, FilterTypes, MacHeaderFields, Name, NdisStatus,
    NicSwitchCapabilities, NicSwitchCapabilityFlags, NicSwitchRssCapabilities, QueueProperties,
    QueueTypes, ReceiveFilterCapabilities, RequestorId, SriovCapabilities, SwitchId, VPortId, VfId,
    VlanCondition,
};
use nic_switch::{ReceiveFilter, SwitchError, VlanMatch};
use pci_function::avf;
use pcie_protocol::{PowerState, VfIndex};
use pcivirt_protocol::{
    CmPartialResourceDescriptor, DevicePowerState, Luid, PCI_TYPE0_ADDRESSES, cm_resource_memory,
};

use crate::{Adapter, RequestError};

/// Configuration blocks of a VF that hold what both drivers wrote last; SPEC-NDIS-SRIOV §8 lets 0–63 be
/// invalidated.
const BLOCKS: u32 = 64;
/// Entries of a function's RSS lookup table (SPEC-AVF §5.7).
const LOOKUP_TABLE_ENTRIES: u32 = 64;
/// Bytes of one configuration block.
const BLOCK_SIZE: usize = 128;

/// The adapter's PF miniport driver.
pub struct AdapterMiniport {
    adapter: Arc<Adapter>,
    luid: Luid,
    vlan_filtering: bool,
    /// Configuration blocks that were written: (VF, block).
    blocks: BTreeMap<(VfId, u32), [u8; BLOCK_SIZE]>,
}

impl AdapterMiniport {
    /// The miniport of an adapter that has been started; `luid` names the device until it is gone.
    pub fn new(adapter: Arc<Adapter>, luid: Luid) -> Self {
        Self { adapter, luid, vlan_filtering: true, blocks: BTreeMap::new() }
    }
}

/// What a failure is called in NDIS, after it has been logged with its reason.
fn status(request: &'static str, error: &RequestError) -> NdisStatus {
    tracing::warn!(request, %error, "a request failed");
    match error {
        RequestError::OutOfVfs(_) => NdisStatus::RESOURCES,
        RequestError::NoSuchVf(_)
        | RequestError::VfAttached(_)
        | RequestError::NoSuchVPort(_)
        | RequestError::Switch(_) => NdisStatus::INVALID_PARAMETER,
        RequestError::Virtualization(_) => NdisStatus::INVALID_STATE,
        RequestError::Adapter(crate::AdapterError::DataPath(_)) => NdisStatus::ADAPTER_REMOVED,
        RequestError::Adapter(_) => NdisStatus::RESOURCES,
    }
}

impl PfMiniport for AdapterMiniport {
    fn sriov_capabilities(&self) -> SriovCapabilities {
        SriovCapabilities::PF
    }

    fn nic_switch_capabilities(&self) -> NicSwitchCapabilities {
        let config = self.adapter.config();
        NicSwitchCapabilities {
            flags: NicSwitchCapabilityFlags::VLAN_SUPPORTED
                | NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION
                | NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT
                | NicSwitchCapabilityFlags::VF_RSS_SUPPORTED
                | NicSwitchCapabilityFlags::SINGLE_VPORT_POOL,
            max_num_switches: 1,
            max_num_vports: config.vports(),
            max_num_vfs: config.total_vfs.into(),
            max_num_queue_pairs: config.queue_pairs,
            max_num_queue_pairs_per_non_default_vport: config.queue_pairs_per_vport.into(),
            max_num_mac_addresses: config.receive_filters,
            rss: Some(NicSwitchRssCapabilities {
                max_num_rss_capable_non_default_pf_vports: 0,
                number_of_indirection_table_entries_for_default_vport: LOOKUP_TABLE_ENTRIES,
                number_of_indirection_table_entries_per_non_default_pf_vport: 0,
                max_num_queue_pairs_for_default_vport: config.default_vport_queue_pairs.into(),
            }),
        }
    }

    fn receive_filter_capabilities(&self) -> ReceiveFilterCapabilities {
        ReceiveFilterCapabilities {
            enabled_filter_types: FilterTypes::VMQ_FILTERS_ENABLED,
            enabled_queue_types: QueueTypes::empty(),
            num_queues: 0,
            supported_queue_properties: QueueProperties::REQUIRED_FOR_SRIOV,
            supported_filter_tests: FilterTests::EQUAL,
            supported_headers: FilterHeaders::MAC,
            supported_mac_header_fields: MacHeaderFields::DEST_ADDR | MacHeaderFields::VLAN_ID,
            max_mac_header_filters: self.adapter.config().receive_filters,
            ..ReceiveFilterCapabilities::default()
        }
    }

    fn pf_luid(&self) -> Luid {
        self.luid
    }

    fn initialize(&mut self, start: &MiniportStart) -> Result<(), NdisStatus> {
        self.vlan_filtering = start.vlan_filtering;
        Ok(())
    }

    fn halt(&mut self) {
        self.blocks.clear();
    }

    fn surprise_removed(&mut self) {}

    fn create_switch(&mut self, switch: &CreateSwitch) -> Result<(), NdisStatus> {
        let enabled = self.adapter.enable_vfs(switch.num_vfs);
        enabled.map_err(|error| status("create switch", &error))
    }

    fn set_switch_name(
        &mut self,
        _switch_id: SwitchId,
        _name: &Name,
    ) -> Result<ParameterChange, NdisStatus> {
        // The card has no use for it; NDIS keeps it.
        Ok(ParameterChange::Applied)
    }

    fn delete_switch(&mut self, _switch_id: SwitchId) -> Result<(), NdisStatus> {
        self.adapter.disable_vfs().map_err(|error| status("delete switch", &error))
    }

    fn create_vport(&mut self, vport: &CreateVPort) -> Result<(), NdisStatus> {
        let pairs =
            u16::try_from(vport.num_queue_pairs).map_err(|_| NdisStatus::INVALID_PARAMETER)?;
        self.adapter
            .create_vport(
                vport.vport_id,
                vport.attached_function,
                pairs,
                vport.interrupt_moderation,
            )
            .map_err(|error| status("create VPort", &error))
    }

    fn set_vport_parameters(&mut self, change: &ChangeVPort) -> Result<(), NdisStatus> {
        let id = change.vport_id;
        if change.num_queue_pairs.is_some() {
            // RSS on PF VPorts is not among the capabilities.
            return Err(NdisStatus::NOT_SUPPORTED);
        }
        if change.activate {
            let active = self.adapter.activate_vport(id);
            active.map_err(|error| status("activate VPort", &error))?;
        }
        if let Some(moderation) = change.interrupt_moderation {
            self.adapter
                .set_interrupt_moderation(id, moderation)
                .map_err(|error| status("set interrupt moderation", &error))?;
        }
        Ok(())
    }

    fn delete_vport(&mut self, vport_id: VPortId) -> Result<(), NdisStatus> {
        self.adapter.delete_vport(vport_id).map_err(|error| status("delete VPort", &error))
    }

    fn allocate_vf(&mut self, vf: &AllocateVf) -> Result<AllocatedVf, NdisStatus> {
        let (vf_id, location) = self
            .adapter
            .allocate_vf(vf.owner.current_mac)
            .map_err(|error| status("allocate VF", &error))?;
        let id = location.routing_id;
        let requestor_id = RequestorId::new(location.segment, id.bus(), id.device_function())
            .ok_or(NdisStatus::FAILURE)?;
        Ok(AllocatedVf { vf_id, requestor_id })
    }

    fn free_vf(&mut self, vf_id: VfId) -> Result<(), NdisStatus> {
        self.adapter.free_vf(vf_id).map_err(|error| status("free VF", &error))?;
        self.blocks.retain(|(vf, _), _| *vf != vf_id);
        Ok(())
    }

    fn read_vf_config_space(
        &mut self,
        vf_id: VfId,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), NdisStatus> {
        self.adapter
            .with_vf(vf_id, |function| function.config().config_read(offset.into(), data))
            .map_err(|error| status("read VF configuration", &error))?
            .map_err(|_| NdisStatus::INVALID_PARAMETER)
    }

    fn write_vf_config_space(
        &mut self,
        vf_id: VfId,
        offset: u32,
        data: &[u8],
    ) -> Result<(), NdisStatus> {
        self.adapter
            .with_vf(vf_id, |function| function.config_write(offset.into(), data))
            .map_err(|error| status("write VF configuration", &error))?
            .map_err(|_| NdisStatus::INVALID_PARAMETER)
    }

    fn read_vf_config_block(
        &mut self,
        vf_id: VfId,
        block_id: u32,
        data: &mut [u8],
    ) -> Result<(), NdisStatus> {
        if block_id >= BLOCKS {
            return Err(NdisStatus::INVALID_PARAMETER);
        }
        let block = self.blocks.get(&(vf_id, block_id)).copied().unwrap_or([0; BLOCK_SIZE]);
        let bytes = block.get(..data.len()).ok_or(NdisStatus::INVALID_PARAMETER)?;
        data.copy_from_slice(bytes);
        Ok(())
    }

    fn write_vf_config_block(
        &mut self,
        vf_id: VfId,
        block_id: u32,
        data: &[u8],
    ) -> Result<(), NdisStatus> {
        if block_id >= BLOCKS || data.len() > BLOCK_SIZE {
            return Err(NdisStatus::INVALID_PARAMETER);
        }
        let block = self.blocks.entry((vf_id, block_id)).or_insert([0; BLOCK_SIZE]);
        for (place, byte) in block.iter_mut().zip(data) {
            *place = *byte;
        }
        Ok(())
    }

    fn reset_vf(&mut self, vf_id: VfId) -> Result<(), NdisStatus> {
        self.adapter.reset_vf(vf_id).map_err(|error| status("reset VF", &error))
    }

    fn set_vf_power_state(
        &mut self,
        vf_id: VfId,
        state: DevicePowerState,
        _wake_enable: bool,
    ) -> Result<(), NdisStatus> {
        // Wake-up needs PME, which the function does not have.
        let state = match state {
            DevicePowerState::D0 => PowerState::D0,
            DevicePowerState::D3 => PowerState::D3hot,
            _ => return Err(NdisStatus::INVALID_PARAMETER),
        };
        self.adapter
            .with_vf(vf_id, |function| function.set_power_state(state))
            .map_err(|error| status("set VF power state", &error))
    }

    fn vf_vendor_device_id(&mut self, _vf_id: VfId) -> Result<VendorDeviceId, NdisStatus> {
        Ok(VendorDeviceId { vendor_id: avf::VENDOR_ID, device_id: avf::VF_DEVICE_ID })
    }

    fn probed_bars(&mut self) -> Result<[u32; PCI_TYPE0_ADDRESSES], NdisStatus> {
        self.adapter.pci().vf_probed_bars().map_err(|_| NdisStatus::INVALID_STATE)
    }

    fn bar_resources(
        &mut self,
        vf_id: VfId,
        bar: BarIndex,
    ) -> Result<CmPartialResourceDescriptor, NdisStatus> {
        let bar = pcie_protocol::BarIndex::ALL
            .get(usize::from(bar.get()))
            .copied()
            .ok_or(NdisStatus::INVALID_PARAMETER)?;
        let resource = self
            .adapter
            .pci()
            .vf_bar(VfIndex::from(vf_id.get()), bar)
            .ok_or(NdisStatus::INVALID_PARAMETER)?;
        CmPartialResourceDescriptor::memory(
            resource.address,
            resource.length,
            cm_resource_memory::BAR | cm_resource_memory::PREFETCHABLE,
        )
        .ok_or(NdisStatus::FAILURE)
    }

    fn set_filter(&mut self, filter: &SetFilter) -> Result<(), NdisStatus> {
        if filter.matches.inner {
            return Err(NdisStatus::NOT_SUPPORTED);
        }
        let vlan = match filter.matches.vlan {
            VlanCondition::UntaggedOrZero => VlanMatch::UntaggedOrZero,
            VlanCondition::Any => VlanMatch::Any,
            VlanCondition::Equal(_) if !self.vlan_filtering => {
                return Err(NdisStatus::NOT_SUPPORTED);
            }
            VlanCondition::Equal(id) => VlanMatch::Id(id.get()),
        };
        let wanted = ReceiveFilter { mac: filter.matches.mac, vlan, vport: filter.vport_id };
        self.adapter
            .set_filter(filter.filter_id, wanted)
            .map_err(|error| status("set filter", &error))
    }

    fn clear_filter(&mut self, filter_id: FilterId) -> Result<(), NdisStatus> {
        match self.adapter.clear_filter(filter_id) {
            Err(RequestError::Switch(SwitchError::NoSuchFilter(_))) => {
                Err(NdisStatus::FILE_NOT_FOUND)
            }
            result => result.map_err(|error| status("clear filter", &error)),
        }
    }

    fn move_filter(
        &mut self,
        filter_id: FilterId,
        source: VPortId,
        destination: VPortId,
    ) -> Result<(), NdisStatus> {
        self.adapter
            .move_filter(filter_id, source, destination)
            .map_err(|error| status("move filter", &error))
    }
}
