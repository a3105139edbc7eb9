//! Requests about VFs (SPEC-NDIS-SRIOV §5.10–§5.23).

use ndis_protocol::{
    NdisNicSwitchVfParameters, NdisSriovVfVendorDeviceIdInfo, NdisStructure,
    NicSwitchFreeVfParameters, RequestorId, SriovBarResources, SriovProbedBars,
    SriovReadVfConfigBlock, SriovReadVfConfigSpace, SriovResetVf, SriovSetVfPowerState,
    SriovVfVendorDeviceId, SriovWriteVfConfigBlock, SriovWriteVfConfigSpace, SwitchId, VfId,
    VfInfo, VfInfoArray, VfParameters, WireStructure,
};
use pcivirt_protocol::{PCI_EXPRESS_CONFIG_SPACE_SIZE, VPCI_MAX_READ_WRITE_BLOCK_SIZE};

use crate::adapter::Ndis;
use crate::cache::{VfRecord, count};
use crate::completion::Reply;
use crate::refusal::Object;
use crate::route::Request;
use crate::{AllocateVf, NdisEvent, PfMiniport, Refusal, Requester, VendorDeviceId};

/// How far from its structure a request may want its data; more has no use, and answers are as long as that.
const MAX_BUFFER_OFFSET: u32 = 4096;

fn member(member: &'static str, value: impl Into<u64>, rule: &'static str) -> Refusal {
    Refusal::Member { member, value: value.into(), rule }
}

impl<M: PfMiniport> Ndis<M> {
    fn vf(&self, vf_id: VfId) -> Result<&VfRecord, Refusal> {
        self.cache.vf(vf_id).ok_or(Refusal::VfNotAllocated { vf_id, freeing: false })
    }

    /// A VF with which the requester may do what its guest notices: its own; NDIS itself speaks for the interface of
    /// the PF driver contract, which reaches all.
    fn own_vf(&self, request: &Request<'_>, vf_id: VfId) -> Result<(), Refusal> {
        let record = self.vf(vf_id)?;
        match request.requester {
            Requester::Ndis => Ok(()),
            Requester::Overlying(_) => {
                Self::only_owner(request, &record.allocator, Object::Vf(vf_id))
            }
        }
    }

    pub(crate) fn allocate_vf(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let mut parameters = VfParameters::parse(request.input)?;
        let num_vfs = self.named_switch(parameters.switch_id)?.num_vfs;
        if let Some(vf_id) = parameters.vf_id {
            let rule = "the PF miniport driver chooses the VF; pass 0xFFFF";
            return Err(member("VFId", vf_id.get(), rule));
        }
        if let Some(requestor_id) = parameters.requestor_id {
            let rule = "the PF miniport driver tells the requestor id; pass 0xFFFFFFFF";
            return Err(member("RequestorId", requestor_id.get(), rule));
        }
        for (name, mac) in [
            ("PermanentMacAddress", parameters.owner.permanent_mac),
            ("CurrentMacAddress", parameters.owner.current_mac),
        ] {
            if !mac.is_valid_unicast() {
                let [a, b, c, d, e, f] = mac.octets();
                let value = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
                return Err(member(name, value, "a VF NIC has a unicast address"));
            }
        }
        if count(self.cache.vfs.len()) >= u32::from(num_vfs) {
            return Err(Refusal::NoVfLeft { num_vfs: u32::from(num_vfs) });
        }
        request.room(u64::from(NdisNicSwitchVfParameters::SIZEOF))?;

        let allocate =
            AllocateVf { switch_id: parameters.switch_id, owner: parameters.owner.clone() };
        let allocated =
            self.miniport.allocate_vf(&allocate).map_err(|status| request.refused(status))?;
        let vf_id = allocated.vf_id;
        let broken = |what| Refusal::MiniportBroken { oid: request.oid, what };
        if self.cache.vfs.contains_key(&vf_id) {
            return Err(broken("a VF that is allocated already"));
        }
        if vf_id.get() >= num_vfs {
            // Nobody else has it, so it can be given back.
            let _ = self.miniport.free_vf(vf_id);
            return Err(broken("a VF that the switch does not have"));
        }
        parameters.vf_id = Some(vf_id);
        parameters.requestor_id = Some(allocated.requestor_id);
        let output = parameters.emit();
        let info = VfInfo {
            switch_id: parameters.switch_id,
            owner: parameters.owner,
            vf_id,
            requestor_id: allocated.requestor_id,
        };
        self.cache.vfs.insert(vf_id, VfRecord { info, allocator: request.requester.clone() });
        Ok(Reply::output(output, request.input.len()))
    }

    pub(crate) fn free_vf(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let NicSwitchFreeVfParameters { vf_id } = NicSwitchFreeVfParameters::parse(request.input)?;
        let record =
            self.cache.vf(vf_id).ok_or(Refusal::VfNotAllocated { vf_id, freeing: true })?;
        Self::only_owner(request, &record.allocator, Object::Vf(vf_id))?;
        if let Some(vport_id) = self.cache.vport_of_vf(vf_id) {
            return Err(Refusal::VfHasVPort { vf_id, vport_id, freeing: true });
        }
        self.miniport.free_vf(vf_id).map_err(|status| request.refused(status))?;
        self.cache.vfs.remove(&vf_id);
        self.subscribers.tell(&NdisEvent::VfFreed { vf_id });
        Ok(Reply::done(request.input.len()))
    }

    /// The card's buses have other numbers since a rebalance: notes where each allocated VF is now, by `location`. A VF
    /// that it names no requestor id for keeps the one it had.
    pub fn vfs_moved(&mut self, mut location: impl FnMut(VfId) -> Option<RequestorId>) {
        for (vf_id, record) in &mut self.cache.vfs {
            if let Some(requestor_id) = location(*vf_id) {
                record.info.requestor_id = requestor_id;
            }
        }
    }

    pub(crate) fn query_vf_parameters(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let (key, _) = NdisNicSwitchVfParameters::read(request.input)?;
        let raw = key.vf_id.get();
        let vf_id = VfId::new(raw).ok_or_else(|| member("VFId", raw, "it names no VF"))?;
        let VfInfo { switch_id, owner, vf_id, requestor_id } = self.vf(vf_id)?.info.clone();
        let parameters =
            VfParameters { switch_id, owner, vf_id: Some(vf_id), requestor_id: Some(requestor_id) };
        request.answer(parameters.emit())
    }

    pub(crate) fn enum_vfs(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let mut array = VfInfoArray::parse(request.input)?;
        if let Some(switch_id) = array.switch.filter(|id| *id != SwitchId::DEFAULT) {
            return Err(Refusal::NoSuchSwitch { switch_id, deleting: false });
        }
        array.elements = self.cache.vfs().map(|(_, record)| record.info.clone()).collect();
        request.answer(array.emit())
    }

    pub(crate) fn read_vf_config_space(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let read = SriovReadVfConfigSpace::parse(request.input)?;
        self.vf(read.vf_id)?;
        let mut data = config_space(read.offset, u64::from(read.length))?;
        check_buffer_offset(read.buffer_offset)?;
        request.room(read.buffer_size())?;
        self.miniport
            .read_vf_config_space(read.vf_id, read.offset, &mut data)
            .map_err(|status| request.refused(status))?;
        Ok(Reply::output(read.emit_with(&data), request.input.len()))
    }

    pub(crate) fn write_vf_config_space(
        &mut self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        self.active(request)?;
        let write = SriovWriteVfConfigSpace::parse(request.input)?;
        self.vf(write.vf_id)?;
        config_space(write.offset, write.data.len() as u64)?;
        self.miniport
            .write_vf_config_space(write.vf_id, write.offset, &write.data)
            .map_err(|status| request.refused(status))?;
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn read_vf_config_block(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let read = SriovReadVfConfigBlock::parse(request.input)?;
        self.vf(read.vf_id)?;
        let mut data = config_block(u64::from(read.length))?;
        check_buffer_offset(read.buffer_offset)?;
        request.room(read.buffer_size())?;
        self.miniport
            .read_vf_config_block(read.vf_id, read.block_id, &mut data)
            .map_err(|status| request.refused(status))?;
        Ok(Reply::output(read.emit_with(&data), request.input.len()))
    }

    pub(crate) fn write_vf_config_block(
        &mut self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        self.active(request)?;
        let write = SriovWriteVfConfigBlock::parse(request.input)?;
        self.vf(write.vf_id)?;
        config_block(write.data.len() as u64)?;
        self.miniport
            .write_vf_config_block(write.vf_id, write.block_id, &write.data)
            .map_err(|status| request.refused(status))?;
        self.subscribers.tell(&NdisEvent::ConfigBlockWritten {
            vf_id: write.vf_id,
            block_id: write.block_id,
            requester: request.requester.clone(),
        });
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn reset_vf(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let SriovResetVf { vf_id } = SriovResetVf::parse(request.input)?;
        self.own_vf(request, vf_id)?;
        self.miniport.reset_vf(vf_id).map_err(|status| request.refused(status))?;
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn set_vf_power_state(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let SriovSetVfPowerState { vf_id, power_state, wake_enable } =
            SriovSetVfPowerState::parse(request.input)?;
        self.own_vf(request, vf_id)?;
        self.miniport
            .set_vf_power_state(vf_id, power_state, wake_enable)
            .map_err(|status| request.refused(status))?;
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn vf_vendor_device_id(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let SriovVfVendorDeviceId { vf_id, .. } = SriovVfVendorDeviceId::parse(request.input)?;
        self.vf(vf_id)?;
        request.room(u64::from(NdisSriovVfVendorDeviceIdInfo::SIZEOF))?;
        let VendorDeviceId { vendor_id, device_id } =
            self.miniport.vf_vendor_device_id(vf_id).map_err(|status| request.refused(status))?;
        let output = SriovVfVendorDeviceId { vf_id, vendor_id, device_id }.emit();
        Ok(Reply::output(output, request.input.len()))
    }

    pub(crate) fn probed_bars(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        request.room(SriovProbedBars::SIZE as u64)?;
        let base_register_values =
            self.miniport.probed_bars().map_err(|status| request.refused(status))?;
        Ok(Reply::output(SriovProbedBars { base_register_values }.emit(), request.input.len()))
    }

    pub(crate) fn bar_resources(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let asked = SriovBarResources::parse(request.input)?;
        self.vf(asked.vf_id)?;
        check_buffer_offset(asked.bar_resources_offset)?;
        request.room(asked.buffer_size())?;
        let descriptor = self
            .miniport
            .bar_resources(asked.vf_id, asked.bar_index)
            .map_err(|status| request.refused(status))?;
        Ok(Reply::output(asked.emit_with(&descriptor), request.input.len()))
    }
}

/// Checks that an access stays within a configuration space; returns a buffer for it.
fn config_space(offset: u32, length: u64) -> Result<Vec<u8>, Refusal> {
    let size = PCI_EXPRESS_CONFIG_SPACE_SIZE as u64;
    if length == 0 || length > size {
        return Err(member("Length", length, "a configuration space has 4096 bytes"));
    }
    if u64::from(offset) + length > size {
        return Err(member("Offset", offset, "the access goes past the configuration space"));
    }
    Ok(vec![0; usize::try_from(length).unwrap_or(0)])
}

/// Checks the length of a configuration block; returns a buffer for it.
fn config_block(length: u64) -> Result<Vec<u8>, Refusal> {
    if length == 0 || length > VPCI_MAX_READ_WRITE_BLOCK_SIZE as u64 {
        return Err(member("Length", length, "a configuration block has 1 to 128 bytes"));
    }
    Ok(vec![0; usize::try_from(length).unwrap_or(0)])
}

fn check_buffer_offset(offset: u32) -> Result<(), Refusal> {
    if offset > MAX_BUFFER_OFFSET {
        let rule = "data follow their structure within 4096 bytes";
        return Err(member("BufferOffset", offset, rule));
    }
    Ok(())
}
