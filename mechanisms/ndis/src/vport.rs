//! Requests about VPorts (SPEC-NDIS-SRIOV §4, §5.7–§5.9).

use ndis_protocol::{
    FixedStructure, FunctionId, InterruptModeration, NdisNicSwitchVPortParameters, NdisStructure,
    NicSwitchCapabilityFlags, NicSwitchDeleteVPortParameters, SwitchId, VPortChange, VPortFlags,
    VPortId, VPortInfoArray, VPortParameters, VPortState, VfId, WireStructure,
};

use crate::adapter::Ndis;
use crate::cache::{VPortRecord, count};
use crate::capabilities::CurrentCapabilities;
use crate::completion::Reply;
use crate::refusal::Object;
use crate::route::Request;
use crate::{ChangeVPort, CreateVPort, PfMiniport, Refusal};

type Flags = NicSwitchCapabilityFlags;

/// A member that may not have its value.
fn member(member: &'static str, value: impl Into<u64>, rule: &'static str) -> Refusal {
    Refusal::Member { member, value: value.into(), rule }
}

impl<M: PfMiniport> Ndis<M> {
    fn vport(&self, vport_id: VPortId) -> Result<&VPortRecord, Refusal> {
        self.cache.vport(vport_id).ok_or(Refusal::NoSuchVPort { vport_id })
    }

    pub(crate) fn create_vport(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        let current = self.active(request)?;
        let mut parameters = VPortParameters::parse(request.input)?;
        self.named_switch(parameters.switch_id)?;
        check_unused_members(&parameters)?;
        let moderation = parameters.interrupt_moderation;
        if moderation != InterruptModeration::Undefined
            && !current.has(Flags::PER_VPORT_INTERRUPT_MODERATION)
        {
            return Err(Refusal::NotCapable { what: "moderate interrupts per VPort" });
        }
        parameters.state = match parameters.attached_function {
            FunctionId::Vf(vf_id) => self.check_vf_vport(request, vf_id, &parameters)?,
            FunctionId::Pf => check_pf_vport(&current, &parameters)?,
        };
        self.check_queue_pairs(&current, None, parameters.num_queue_pairs)?;
        parameters.vport_id = self.number_vport(&current, parameters.attached_function)?;
        let output = parameters.emit();
        request.room(output.len() as u64)?;

        let create = CreateVPort {
            vport_id: parameters.vport_id,
            name: parameters.name.clone(),
            attached_function: parameters.attached_function,
            num_queue_pairs: parameters.num_queue_pairs,
            interrupt_moderation: moderation,
            activated: parameters.state == VPortState::Activated,
            processor_affinity: parameters.processor_affinity,
            enforce_max_sg_list: parameters.flags.contains(VPortFlags::ENFORCE_MAX_SG_LIST),
        };
        self.miniport.create_vport(&create).map_err(|status| request.refused(status))?;
        let record = VPortRecord { parameters, creator: request.requester.clone() };
        self.cache.vports.insert(create.vport_id, record);
        Ok(Reply::output(output, request.input.len()))
    }

    /// Rules of a VF's VPort (§4 rules 1, 3, 4); returns the state it is created in.
    fn check_vf_vport(
        &self,
        request: &Request<'_>,
        vf_id: VfId,
        parameters: &VPortParameters,
    ) -> Result<VPortState, Refusal> {
        let vf = self.cache.vf(vf_id).ok_or(Refusal::VfNotAllocated { vf_id, freeing: false })?;
        Self::only_owner(request, &vf.allocator, Object::Vf(vf_id))?;
        if let Some(vport_id) = self.cache.vport_of_vf(vf_id) {
            return Err(Refusal::VfHasVPort { vf_id, vport_id, freeing: false });
        }
        if parameters.state == VPortState::Deactivated {
            let rule = "a VF's VPort is active as long as it exists";
            return Err(member("VPortState", parameters.state.to_wire(), rule));
        }
        if parameters.processor_affinity.mask != 0 {
            let rule = "the guest chooses the processors of a VF's VPort";
            return Err(member("ProcessorAffinity", parameters.processor_affinity.mask, rule));
        }
        Ok(VPortState::Activated)
    }

    /// Rule 9 of §4: `asked` queue pairs for a nondefault VPort, a new one or `changing`.
    fn check_queue_pairs(
        &self,
        current: &CurrentCapabilities,
        changing: Option<VPortId>,
        asked: u32,
    ) -> Result<(), Refusal> {
        let limit = if changing.is_some_and(VPortId::is_default) {
            self.hardware.max_default_vport_queue_pairs()
        } else {
            current.nic_switch.max_num_queue_pairs_per_non_default_vport
        };
        if asked == 0 || asked > limit {
            let rule = "a VPort has at least one and at most as many as the card allows";
            return Err(Refusal::QueuePairs { asked, limit, rule });
        }
        let symmetric = !current.has(Flags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT);
        if symmetric && !changing.is_some_and(VPortId::is_default) {
            let another = self
                .cache
                .vports()
                .find(|(id, _)| !id.is_default() && Some(*id) != changing)
                .map(|(_, record)| record.parameters.num_queue_pairs);
            if let Some(limit) = another.filter(|another| *another != asked) {
                let rule = "this card gives all nondefault VPorts the same number";
                return Err(Refusal::QueuePairs { asked, limit, rule });
            }
        }
        let total = current.nic_switch.max_num_queue_pairs;
        let free = total.saturating_sub(self.cache.queue_pairs_besides(changing));
        if asked > free {
            return Err(Refusal::NoQueuePairLeft { asked, free, total });
        }
        Ok(())
    }

    /// The lowest free id, if the pool has one for this function (§2.2, VPort budget).
    fn number_vport(
        &self,
        current: &CurrentCapabilities,
        function: FunctionId,
    ) -> Result<VPortId, Refusal> {
        let pf_limit = current.max_nondefault_pf_vports();
        if function == FunctionId::Pf && count(self.cache.num_nondefault_pf_vports()) >= pf_limit {
            return Err(Refusal::NoVPortLeft { limit: pf_limit, pool: "of the PF" });
        }
        let num_vports = current.nic_switch.max_num_vports;
        self.cache.lowest_free_vport(num_vports).ok_or(Refusal::NoVPortLeft {
            limit: num_vports.saturating_sub(1),
            pool: "of the switch",
        })
    }

    pub(crate) fn set_vport_parameters(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        let current = self.active(request)?;
        let change = VPortChange::parse(request.input)?;
        let vport_id = change.vport_id;
        let record = self.vport(vport_id)?;
        Self::only_owner(request, &record.creator, Object::VPort(vport_id))?;
        let activate = check_change(&current, record, &change)?;
        if let Some(asked) = change.num_queue_pairs {
            self.check_queue_pairs(&current, Some(vport_id), asked)?;
        }
        let apply = ChangeVPort {
            vport_id,
            name: change.name,
            interrupt_moderation: change.interrupt_moderation,
            activate,
            processor_affinity: change.processor_affinity,
            num_queue_pairs: change.num_queue_pairs,
        };
        let nothing = ChangeVPort {
            vport_id,
            name: None,
            interrupt_moderation: None,
            activate: false,
            processor_affinity: None,
            num_queue_pairs: None,
        };
        if apply != nothing {
            self.miniport.set_vport_parameters(&apply).map_err(|status| request.refused(status))?;
        }
        if let Some(record) = self.cache.vports.get_mut(&vport_id) {
            let parameters = &mut record.parameters;
            if let Some(name) = apply.name {
                parameters.name = name;
            }
            if let Some(moderation) = apply.interrupt_moderation {
                parameters.interrupt_moderation = moderation;
            }
            if apply.activate {
                parameters.state = VPortState::Activated;
            }
            if let Some(affinity) = apply.processor_affinity {
                parameters.processor_affinity = affinity;
            }
            if let Some(pairs) = apply.num_queue_pairs {
                parameters.num_queue_pairs = pairs;
            }
        }
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn query_vport_parameters(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let (key, revision) = NdisNicSwitchVPortParameters::read(request.input)?;
        let raw = key.vport_id.get();
        let vport_id =
            VPortId::new(raw).ok_or_else(|| member("VPortId", raw, "it names no VPort"))?;
        request.answer(self.vport(vport_id)?.parameters.emit_as(revision))
    }

    pub(crate) fn delete_vport(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let NicSwitchDeleteVPortParameters { vport_id } =
            NicSwitchDeleteVPortParameters::parse(request.input)?;
        if vport_id.is_default() {
            return Err(Refusal::DefaultVPort);
        }
        let record = self.vport(vport_id)?;
        Self::only_owner(request, &record.creator, Object::VPort(vport_id))?;
        let filters = self.cache.num_filters_on(vport_id);
        if filters > 0 {
            return Err(Refusal::VPortHasFilters { vport_id, filters });
        }
        self.miniport.delete_vport(vport_id).map_err(|status| request.refused(status))?;
        self.cache.vports.remove(&vport_id);
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn enum_vports(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let mut array = VPortInfoArray::parse(request.input)?;
        if let Some(switch_id) = array.switch.filter(|id| *id != SwitchId::DEFAULT) {
            return Err(Refusal::NoSuchSwitch { switch_id, deleting: false });
        }
        array.elements = self.cache.vport_infos(array.function);
        request.answer(array.emit())
    }
}

/// Members that a request to create a VPort must leave alone.
fn check_unused_members(parameters: &VPortParameters) -> Result<(), Refusal> {
    if !parameters.vport_id.is_default() {
        return Err(member("VPortId", parameters.vport_id.get(), "NDIS numbers VPorts; pass 0"));
    }
    if parameters.lookahead_size != 0 {
        return Err(member("LookaheadSize", parameters.lookahead_size, "it must be 0"));
    }
    if parameters.flags.contains(VPortFlags::PACKET_DIRECT_RX_ONLY) {
        return Err(Refusal::NotCapable { what: "receive by PacketDirect" });
    }
    let extension = parameters.extension;
    if extension.is_some_and(|extension| !extension.ndk_parameters.is_none()) {
        return Err(Refusal::NotCapable { what: "do RDMA on VPorts (NdkParams)" });
    }
    if extension.is_some_and(|extension| extension.qos_sq_id != 0) {
        return Err(Refusal::NotCapable { what: "schedule VPorts (QosSqId)" });
    }
    Ok(())
}

/// Rules of a nondefault PF VPort (§4 rules 4, 7); returns the state it is created in.
fn check_pf_vport(
    current: &CurrentCapabilities,
    parameters: &VPortParameters,
) -> Result<VPortState, Refusal> {
    if parameters.state == VPortState::Activated {
        let rule =
            "a PF's VPort is created deactivated and activated by OID_NIC_SWITCH_VPORT_PARAMETERS";
        return Err(member("VPortState", parameters.state.to_wire(), rule));
    }
    check_pf_affinity(current, parameters.processor_affinity.processors(), || {
        parameters.processor_affinity.mask
    })?;
    Ok(VPortState::Deactivated)
}

fn check_pf_affinity(
    current: &CurrentCapabilities,
    processors: u32,
    mask: impl Fn() -> u64,
) -> Result<(), Refusal> {
    let several = current.has(Flags::RSS_ON_PF_VPORTS);
    if processors == 1 || (several && processors > 1) {
        return Ok(());
    }
    let rule = if several {
        "a PF's VPort names the processors that may serve it"
    } else {
        "a PF's VPort names the one processor that serves it"
    };
    Err(member("ProcessorAffinity", mask(), rule))
}

/// Rules of a change (§4 rules 4, 6, 7, 10); returns whether it activates the VPort.
fn check_change(
    current: &CurrentCapabilities,
    record: &VPortRecord,
    change: &VPortChange,
) -> Result<bool, Refusal> {
    let vport_id = change.vport_id;
    let refused = |member, rule| Err(Refusal::VPortChange { vport_id, member, rule });
    let is_vf = record.parameters.attached_function != FunctionId::Pf;
    if change.flags.is_some() {
        return refused("Flags", "properties are given once, at creation");
    }
    if change.ndk_parameters.is_some() {
        return refused("NdkParams", "there is no RDMA");
    }
    if change.qos_sq_id.is_some() {
        return refused("QosSqId", "there are no scheduler queues");
    }
    if change.interrupt_moderation.is_some_and(|m| m != InterruptModeration::Undefined)
        && !current.has(Flags::PER_VPORT_INTERRUPT_MODERATION)
    {
        return Err(Refusal::NotCapable { what: "moderate interrupts per VPort" });
    }
    let activate = match change.state {
        None => false,
        Some(VPortState::Activated) => record.parameters.state != VPortState::Activated,
        Some(VPortState::Deactivated | VPortState::Undefined) => {
            return refused("VPortState", "activation is one-way; delete the VPort to end it");
        }
    };
    if let Some(affinity) = change.processor_affinity {
        if is_vf {
            return refused("ProcessorAffinity", "the guest chooses the processors of its VF");
        }
        check_pf_affinity(current, affinity.processors(), || affinity.mask)?;
    }
    if change.num_queue_pairs.is_some() {
        if is_vf {
            return refused("NumQueuePairs", "a VF's VPort has the same for life");
        }
        if !current.has(Flags::RSS_ON_PF_VPORTS) {
            return refused("NumQueuePairs", "only with RSS on PF VPorts (*RssOnHostVPorts)");
        }
    }
    Ok(activate)
}
