//! The PF driver contract of a NIC: each interface callback of pcivirt becomes an OID (SPEC-PCIVIRT §11).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_control_protocol::{DeviceLocation, VendorAndDevice};
use ndis_protocol::{
    BarIndex, FixedStructure, NdisStructure, Oid, RequestKind, SriovBarResources, SriovPfLuid,
    SriovProbedBars, SriovReadVfConfigBlock, SriovReadVfConfigSpace, SriovResetVf,
    SriovSetVfPowerState, SriovVfVendorDeviceId, SriovWriteVfConfigBlock, SriovWriteVfConfigSpace,
    VfId, WireStructure,
};
use pcivirt_protocol::{
    CmPartialResourceDescriptor, DevicePowerState, Luid, NtStatus, PCI_TYPE0_ADDRESSES, VfIndex,
};
use pf_driver::{
    InterfaceEntries, LuidGenerator, LuidTable, MitigableDevice, NO_VENDOR_AND_DEVICE, SriovDevice,
};

use crate::completion::nt_status;
use crate::{Ndis, PfMiniport};

/// An adapter as the virtualization stack sees it: [`SriovDevice`] over [`Ndis`].
///
/// It fills all entries of both versions of the interface. A callback locks NDIS for the time of its one OID, which NDIS
/// itself issues: pcivirt callbacks are no overlying driver's, and only VFs that are allocated can be reached.
pub struct NdisSriovDevice<M> {
    ndis: Arc<Mutex<Ndis<M>>>,
    luids: Arc<LuidTable>,
    mitigable: Option<Arc<dyn MitigableDevice>>,
}

impl<M> Clone for NdisSriovDevice<M> {
    /// Another handle on the same adapter.
    fn clone(&self) -> Self {
        Self {
            ndis: Arc::clone(&self.ndis),
            luids: Arc::clone(&self.luids),
            mitigable: self.mitigable.clone(),
        }
    }
}

impl<M: PfMiniport + 'static> NdisSriovDevice<M> {
    /// The device over an adapter, with LUIDs for as many VFs as its card has now.
    pub fn new(ndis: Arc<Mutex<Ndis<M>>>, luids: &mut LuidGenerator) -> Self {
        let max_num_vfs = {
            let ndis = ndis.lock().unwrap_or_else(PoisonError::into_inner);
            ndis.hardware_capabilities().nic_switch.max_num_vfs
        };
        let luids = LuidTable::new(luids, u16::try_from(max_num_vfs).unwrap_or(u16::MAX));
        Self { ndis, luids: Arc::new(luids), mitigable: None }
    }

    /// The same with registers that have to be intercepted.
    #[must_use]
    pub fn with_mitigable(mut self, mitigable: Arc<dyn MitigableDevice>) -> Self {
        self.mitigable = Some(mitigable);
        self
    }

    /// The adapter.
    pub const fn ndis(&self) -> &Arc<Mutex<Ndis<M>>> {
        &self.ndis
    }

    /// A panic under the lock leaves a cache that was not changed, or changed after the driver was; both are sound.
    fn lock(&self) -> MutexGuard<'_, Ndis<M>> {
        self.ndis.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(
        &self,
        oid: Oid,
        kind: RequestKind,
        input: &[u8],
        capacity: usize,
    ) -> Result<Vec<u8>, NtStatus> {
        let completion = self.lock().ndis_request(oid, kind, input, capacity);
        if completion.is_success() {
            Ok(completion.output)
        } else {
            Err(nt_status(completion.status))
        }
    }

    fn set(&self, oid: Oid, input: &impl NdisStructure) -> Result<(), NtStatus> {
        self.request(oid, RequestKind::Set, &input.emit(), 0).map(drop)
    }
}

/// The VF of an index; 0xFFFF is none.
fn vf(index: VfIndex) -> Result<VfId, NtStatus> {
    VfId::new(index.0).ok_or(NtStatus::INVALID_PARAMETER)
}

/// The length of a buffer in a request.
fn length(data: &[u8]) -> Result<u32, NtStatus> {
    u32::try_from(data.len()).map_err(|_| NtStatus::INVALID_PARAMETER)
}

/// Where the data of a request are: right behind its structure.
fn behind<W: WireStructure>() -> u32 {
    u32::from(W::SIZEOF)
}

/// Copies the data of an answer, which has the length asked for.
fn copy(target: &mut [u8], data: Option<&[u8]>) -> Result<(), NtStatus> {
    match data {
        Some(data) if data.len() == target.len() => {
            target.copy_from_slice(data);
            Ok(())
        }
        _ => Err(NtStatus::UNSUCCESSFUL),
    }
}

impl<M: PfMiniport + 'static> SriovDevice for NdisSriovDevice<M> {
    fn entries(&self) -> InterfaceEntries {
        InterfaceEntries::STANDARD_2
    }

    fn num_vfs(&self) -> u16 {
        self.lock().cache().switch().map_or(0, |switch| switch.num_vfs)
    }

    fn read_vf_config(&self, index: VfIndex, offset: u32, data: &mut [u8]) -> Result<(), NtStatus> {
        let read = SriovReadVfConfigSpace {
            vf_id: vf(index)?,
            offset,
            length: length(data)?,
            buffer_offset: behind::<<SriovReadVfConfigSpace as FixedStructure>::Wire>(),
        };
        let size = usize::try_from(read.buffer_size()).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let answer =
            self.request(Oid::SriovReadVfConfigSpace, RequestKind::Method, &read.emit(), size)?;
        copy(data, read.data(&answer))
    }

    fn write_vf_config(&self, index: VfIndex, offset: u32, data: &[u8]) -> Result<(), NtStatus> {
        let write = SriovWriteVfConfigSpace { vf_id: vf(index)?, offset, data: data.to_vec() };
        self.set(Oid::SriovWriteVfConfigSpace, &write)
    }

    fn read_vf_config_block(
        &self,
        index: VfIndex,
        block_id: u32,
        buffer: &mut [u8],
    ) -> Result<(), NtStatus> {
        let read = SriovReadVfConfigBlock {
            vf_id: vf(index)?,
            block_id,
            length: length(buffer)?,
            buffer_offset: behind::<<SriovReadVfConfigBlock as FixedStructure>::Wire>(),
        };
        let size = usize::try_from(read.buffer_size()).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let answer =
            self.request(Oid::SriovReadVfConfigBlock, RequestKind::Method, &read.emit(), size)?;
        copy(buffer, read.data(&answer))
    }

    fn write_vf_config_block(
        &self,
        index: VfIndex,
        block_id: u32,
        buffer: &[u8],
    ) -> Result<(), NtStatus> {
        let write = SriovWriteVfConfigBlock { vf_id: vf(index)?, block_id, data: buffer.to_vec() };
        self.set(Oid::SriovWriteVfConfigBlock, &write)
    }

    fn query_probed_bars(&self) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        let answer =
            self.request(Oid::SriovProbedBars, RequestKind::Query, &[], SriovProbedBars::SIZE)?;
        let bars = SriovProbedBars::parse(&answer).map_err(|_| NtStatus::UNSUCCESSFUL)?;
        Ok(bars.base_register_values)
    }

    fn query_probed_bars_2(&self, index: VfIndex) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        // The VFs of a NIC do not differ in their BARs.
        if !index.exists(self.num_vfs()) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        self.query_probed_bars()
    }

    fn get_vendor_and_device(&self, index: VfIndex) -> VendorAndDevice {
        let ids = || -> Result<VendorAndDevice, NtStatus> {
            let input = SriovVfVendorDeviceId { vf_id: vf(index)?, vendor_id: 0, device_id: 0 };
            let input = input.emit();
            let oid = Oid::SriovVfVendorDeviceId;
            let answer = self.request(oid, RequestKind::Method, &input, input.len())?;
            let ids = SriovVfVendorDeviceId::parse(&answer).map_err(|_| NtStatus::UNSUCCESSFUL)?;
            Ok(VendorAndDevice { vendor_id: ids.vendor_id, device_id: ids.device_id })
        };
        ids().unwrap_or(NO_VENDOR_AND_DEVICE)
    }

    fn get_device_location(&self, index: VfIndex) -> DeviceLocation {
        let ndis = self.lock();
        let record = VfId::new(index.0).and_then(|vf_id| ndis.cache().vf(vf_id));
        record.map_or(
            DeviceLocation { segment_number: 0, bus_number: 0, function_number: 0 },
            |record| {
                let location = record.info.requestor_id;
                DeviceLocation {
                    segment_number: location.segment(),
                    bus_number: location.bus(),
                    function_number: location.function(),
                }
            },
        )
    }

    fn reset_vf(&self, index: VfIndex) -> Result<(), NtStatus> {
        self.set(Oid::SriovResetVf, &SriovResetVf { vf_id: vf(index)? })
    }

    fn set_vf_power_state(
        &self,
        index: VfIndex,
        state: DevicePowerState,
        wake: bool,
    ) -> Result<(), NtStatus> {
        let set = SriovSetVfPowerState { vf_id: vf(index)?, power_state: state, wake_enable: wake };
        self.set(Oid::SriovSetVfPowerState, &set)
    }

    fn get_resource_for_bar(
        &self,
        index: VfIndex,
        bar_index: u16,
    ) -> Result<CmPartialResourceDescriptor, NtStatus> {
        let bar_index = BarIndex::new(bar_index).ok_or(NtStatus::INVALID_PARAMETER)?;
        let asked = SriovBarResources::new(vf(index)?, bar_index);
        let size = usize::try_from(asked.buffer_size()).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let answer =
            self.request(Oid::SriovBarResources, RequestKind::Method, &asked.emit(), size)?;
        asked.descriptor(&answer).ok_or(NtStatus::UNSUCCESSFUL)
    }

    fn query_luid(&self) -> Result<Luid, NtStatus> {
        let size = usize::from(<SriovPfLuid as FixedStructure>::Wire::SIZEOF);
        let answer = self.request(Oid::SriovPfLuid, RequestKind::Query, &[], size)?;
        let answer = SriovPfLuid::parse(&answer).map_err(|_| NtStatus::UNSUCCESSFUL)?;
        Ok(answer.luid)
    }

    fn query_vf_luid(&self, index: VfIndex) -> Result<Luid, NtStatus> {
        self.luids.vf_luid(index)
    }

    fn query_luid_vf(&self, luid: Luid) -> Result<VfIndex, NtStatus> {
        self.luids.luid_vf(luid)
    }

    fn mitigable(&self) -> Option<&dyn MitigableDevice> {
        self.mitigable.as_deref()
    }
}
