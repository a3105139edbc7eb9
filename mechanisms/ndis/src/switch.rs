//! Requests about the NIC switch (SPEC-NDIS-SRIOV §3, §5.3–§5.6).

use ndis_protocol::{
    FixedStructure, FunctionId, NdisNicSwitchParameters, NdisStatus, NdisStructure,
    NicSwitchChange, NicSwitchDeleteSwitchParameters, NicSwitchInfoArray, NicSwitchParameters,
    SwitchId, VPortId, VPortParameters, VPortState, WireStructure,
};

use crate::adapter::Ndis;
use crate::cache::{SwitchRecord, VPortRecord};
use crate::completion::Reply;
use crate::route::Request;
use crate::{CreateSwitch, ParameterChange, PfMiniport, Refusal, Requester};

impl<M: PfMiniport> Ndis<M> {
    /// The switch, or the refusal that there is none.
    pub(crate) fn switch(&self) -> Result<&SwitchRecord, Refusal> {
        self.cache.switch().ok_or(Refusal::NoSwitch)
    }

    /// The switch that a request names.
    pub(crate) fn named_switch(&self, switch_id: SwitchId) -> Result<&SwitchRecord, Refusal> {
        let switch = self.switch()?;
        if switch.switch_id != switch_id {
            return Err(Refusal::NoSuchSwitch { switch_id, deleting: false });
        }
        Ok(switch)
    }

    pub(crate) fn create_switch(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        let current = self.active(request)?;
        let parameters = NicSwitchParameters::parse(request.input)?;
        let NicSwitchParameters { switch_id, num_vfs, .. } = parameters;
        if self.cache.switch().is_some() {
            return Err(Refusal::SwitchExists);
        }
        if switch_id != SwitchId::DEFAULT {
            return Err(Refusal::NoSuchSwitch { switch_id, deleting: false });
        }
        let num_vfs = match u16::try_from(num_vfs) {
            Ok(fits) if num_vfs <= self.hardware.nic_switch.max_num_vfs => fits,
            _ => {
                return Err(Refusal::Member {
                    member: "NumVFs",
                    value: u64::from(num_vfs),
                    rule: "the card has fewer VFs",
                });
            }
        };
        let pairs = parameters.num_queue_pairs_for_default_vport.unwrap_or(1);
        let limit = self.hardware.max_default_vport_queue_pairs();
        if pairs == 0 || pairs > limit || pairs > current.nic_switch.max_num_queue_pairs {
            let rule = "the default VPort has at least one and at most what the card allows";
            return Err(Refusal::QueuePairs { asked: pairs, limit, rule });
        }
        let output = parameters.emit();
        request.room(output.len() as u64)?;

        let create = CreateSwitch {
            switch_id,
            name: parameters.name,
            num_vfs,
            default_vport_queue_pairs: pairs,
        };
        self.miniport.create_switch(&create).map_err(|status| request.refused(status))?;
        let default_vport = VPortParameters {
            state: VPortState::Activated,
            ..VPortParameters::new(FunctionId::Pf, pairs)
        };
        self.cache.switch = Some(SwitchRecord {
            switch_id,
            name: create.name,
            num_vfs,
            default_vport_queue_pairs: pairs,
        });
        self.cache.vports.insert(
            VPortId::DEFAULT,
            VPortRecord { parameters: default_vport, creator: Requester::Ndis },
        );
        Ok(Reply::output(output, request.input.len()))
    }

    pub(crate) fn set_switch_parameters(
        &mut self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        self.active(request)?;
        let change = NicSwitchChange::parse(request.input)?;
        let switch_id = self.named_switch(change.switch_id)?.switch_id;
        let mut reply = Reply::done(request.input.len());
        let Some(name) = change.name else {
            return Ok(reply);
        };
        let applied = self
            .miniport
            .set_switch_name(switch_id, &name)
            .map_err(|status| request.refused(status))?;
        self.configuration.keywords.switch_name = name.clone();
        match applied {
            ParameterChange::Applied => {
                if let Some(switch) = &mut self.cache.switch {
                    switch.name = name;
                }
            }
            ParameterChange::AfterRestart => reply.status = NdisStatus::REINIT_REQUIRED,
        }
        Ok(reply)
    }

    pub(crate) fn query_switch_parameters(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let (key, revision) = NdisNicSwitchParameters::read(request.input)?;
        let switch_id = SwitchId::new(key.switch_id.get()).ok_or(Refusal::Member {
            member: "SwitchId",
            value: u64::from(key.switch_id.get()),
            rule: "it names no switch",
        })?;
        request.answer(self.named_switch(switch_id)?.parameters().emit_as(revision))
    }

    pub(crate) fn delete_switch(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let NicSwitchDeleteSwitchParameters { switch_id } =
            NicSwitchDeleteSwitchParameters::parse(request.input)?;
        if self.cache.switch().is_none_or(|switch| switch.switch_id != switch_id) {
            return Err(Refusal::NoSuchSwitch { switch_id, deleting: true });
        }
        let filters = self.cache.filters.len();
        let vports = self.cache.vports.len().saturating_sub(1);
        let vfs = self.cache.vfs.len();
        if filters + vports + vfs > 0 {
            return Err(Refusal::SwitchInUse { filters, vports, vfs });
        }
        self.miniport.delete_switch(switch_id).map_err(|status| request.refused(status))?;
        self.cache.switch = None;
        self.cache.vports.clear();
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn enum_switches(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        if !self.hardware.does_sriov() {
            return Err(Refusal::NotCapable { what: "have a NIC switch" });
        }
        let num_vports = self.hardware.nic_switch.max_num_vports;
        let elements = self.cache.switch_info(num_vports).into_iter().collect();
        request.answer(NicSwitchInfoArray { elements }.emit())
    }
}
