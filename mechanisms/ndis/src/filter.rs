//! Requests about receive filters (SPEC-NDIS-SRIOV §6).

use ndis_protocol::{
    FilterId, FilterType, NDIS_DEFAULT_RECEIVE_QUEUE_ID, NdisReceiveFilterInfoArray,
    NdisReceiveFilterParameters, NdisStructure, ReceiveFilterClearParameters,
    ReceiveFilterInfoArray, ReceiveFilterMoveFilterParameters, ReceiveFilterParameters, VPortId,
    VlanCondition, WireStructure,
};

use crate::adapter::Ndis;
use crate::cache::{FilterRecord, count};
use crate::completion::Reply;
use crate::refusal::Object;
use crate::route::Request;
use crate::{PfMiniport, Refusal, SetFilter};

fn member(member: &'static str, value: impl Into<u64>, rule: &'static str) -> Refusal {
    Refusal::Member { member, value: value.into(), rule }
}

/// With SR-IOV every VPort has one receive queue, the default one (§4 rule 14).
fn default_queue(name: &'static str, queue_id: u32) -> Result<(), Refusal> {
    if queue_id != NDIS_DEFAULT_RECEIVE_QUEUE_ID {
        return Err(member(name, queue_id, "with SR-IOV the only receive queue is 0"));
    }
    Ok(())
}

impl<M: PfMiniport> Ndis<M> {
    /// A VPort on which the requester may set filters: its own, or the default one.
    fn filterable_vport(&self, request: &Request<'_>, vport_id: VPortId) -> Result<(), Refusal> {
        let record = self.cache.vport(vport_id).ok_or(Refusal::NoSuchVPort { vport_id })?;
        Self::only_owner(request, &record.creator, Object::VPort(vport_id))
    }

    pub(crate) fn set_filter(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        let current = self.active(request)?;
        let mut parameters = ReceiveFilterParameters::parse(request.input)?;
        let (_, revision) = NdisReceiveFilterParameters::read(request.input)?;
        self.switch()?;
        if parameters.filter_type != FilterType::VmQueue {
            let rule = "with SR-IOV filters are those of VM queues, 1";
            return Err(member("FilterType", parameters.filter_type.to_wire(), rule));
        }
        default_queue("QueueId", parameters.queue_id)?;
        if let Some(filter_id) = parameters.filter_id {
            return Err(member("FilterId", filter_id.get(), "NDIS numbers filters; pass 0"));
        }
        if parameters.requested_filter_id_bit_count != 0 {
            let value = parameters.requested_filter_id_bit_count;
            return Err(member("RequestedFilterIdBitCount", value, "it must be 0"));
        }
        let vport_id = parameters.vport_id;
        self.filterable_vport(request, vport_id)?;
        let matches = parameters.matches()?;
        if !matches.mac.is_valid_unicast() {
            let [a, b, c, d, e, f] = matches.mac.octets();
            let value = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
            return Err(member("FieldValue", value, "a filter is for a unicast address"));
        }
        if matches.vlan != VlanCondition::Any && !current.filters_vlans() {
            let what = "filter VLANs; set *VMQVlanFiltering to 1, or leave VLANs to software";
            return Err(Refusal::NotCapable { what });
        }
        let limit = self.hardware.max_filters();
        if count(self.cache.filters.len()) >= limit {
            return Err(Refusal::NoFilterLeft { limit });
        }
        let filter_id = self.cache.next_filter_id().ok_or(Refusal::NoFilterLeft { limit })?;
        parameters.filter_id = Some(filter_id);
        let output = parameters.emit_as(revision);
        request.room(output.len() as u64)?;

        self.miniport
            .set_filter(&SetFilter { filter_id, vport_id, matches })
            .map_err(|status| request.refused(status))?;
        let setter = request.requester.clone();
        self.cache.insert_filter(filter_id, FilterRecord { parameters, matches, setter });
        Ok(Reply::output(output, request.input.len()))
    }

    pub(crate) fn clear_filter(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let clear = ReceiveFilterClearParameters::parse(request.input)?;
        default_queue("QueueId", clear.queue_id)?;
        let unknown = |filter_id| Refusal::NoSuchFilter { filter_id, clearing: true };
        let filter_id = clear.filter_id.ok_or_else(|| unknown(0))?;
        let record = self.cache.filter(filter_id).ok_or_else(|| unknown(filter_id.get()))?;
        Self::only_owner(request, &record.setter, Object::Filter(filter_id))?;
        self.miniport.clear_filter(filter_id).map_err(|status| request.refused(status))?;
        self.cache.filters.remove(&filter_id);
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn move_filter(&mut self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let ReceiveFilterMoveFilterParameters {
            filter_id,
            source_queue_id,
            source_vport_id,
            dest_queue_id,
            dest_vport_id,
        } = ReceiveFilterMoveFilterParameters::parse(request.input)?;
        default_queue("SourceQueueId", source_queue_id)?;
        default_queue("DestQueueId", dest_queue_id)?;
        let record = self
            .cache
            .filter(filter_id)
            .ok_or(Refusal::NoSuchFilter { filter_id: filter_id.get(), clearing: false })?;
        Self::only_owner(request, &record.setter, Object::Filter(filter_id))?;
        let actual = record.parameters.vport_id;
        if actual != source_vport_id {
            return Err(Refusal::FilterElsewhere {
                filter_id,
                source_vport: source_vport_id,
                actual,
            });
        }
        self.filterable_vport(request, dest_vport_id)?;
        if source_vport_id != dest_vport_id {
            self.miniport
                .move_filter(filter_id, source_vport_id, dest_vport_id)
                .map_err(|status| request.refused(status))?;
        }
        if let Some(record) = self.cache.filters.get_mut(&filter_id) {
            record.parameters.vport_id = dest_vport_id;
        }
        Ok(Reply::done(request.input.len()))
    }

    pub(crate) fn enum_filters(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let mut array = ReceiveFilterInfoArray::parse(request.input)?;
        let (_, revision) = NdisReceiveFilterInfoArray::read(request.input)?;
        default_queue("QueueId", array.queue_id)?;
        array.elements = self.cache.filter_infos(array.vport);
        request.answer(array.emit_as(revision))
    }

    pub(crate) fn query_filter_parameters(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.active(request)?;
        let (key, revision) = NdisReceiveFilterParameters::read(request.input)?;
        default_queue("QueueId", key.queue_id.get())?;
        let raw = key.filter_id.get();
        let record = FilterId::new(raw)
            .and_then(|filter_id| self.cache.filter(filter_id))
            .ok_or(Refusal::NoSuchFilter { filter_id: raw, clearing: false })?;
        request.answer(record.parameters.emit_as(revision))
    }
}
