//! What NDIS knows of an adapter's switch, VPorts, VFs and receive filters. It changes only when the PF miniport driver has
//! done what it was asked; queries and enumerations are answered from it.

use std::collections::BTreeMap;

use ndis_protocol::{
    FilterId, FilterMatch, FunctionId, Name, NicSwitchInfo, NicSwitchParameters, ReceiveFilterInfo,
    ReceiveFilterParameters, SwitchId, SwitchType, VPortId, VPortInfo, VPortInfoFlags,
    VPortParameters, VfId, VfInfo, VlanCondition,
};

use crate::Requester;

/// The NIC switch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SwitchRecord {
    /// The switch.
    pub switch_id: SwitchId,
    /// Its name.
    pub name: Name,
    /// VFs enabled.
    pub num_vfs: u16,
    /// Queue pairs of the default VPort when it was created.
    pub default_vport_queue_pairs: u32,
}

impl SwitchRecord {
    /// As a query answers.
    #[must_use]
    pub fn parameters(&self) -> NicSwitchParameters {
        NicSwitchParameters {
            switch_type: SwitchType::External,
            switch_id: self.switch_id,
            name: self.name.clone(),
            num_vfs: u32::from(self.num_vfs),
            num_queue_pairs_for_default_vport: Some(self.default_vport_queue_pairs),
        }
    }
}

/// A VPort.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VPortRecord {
    /// As a query answers.
    pub parameters: VPortParameters,
    /// Who created it; NDIS for the default VPort.
    pub creator: Requester,
}

/// An allocated VF.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VfRecord {
    /// As an enumeration answers.
    pub info: VfInfo,
    /// Who allocated it.
    pub allocator: Requester,
}

/// A receive filter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilterRecord {
    /// As a query answers.
    pub parameters: ReceiveFilterParameters,
    /// What it takes.
    pub matches: FilterMatch,
    /// Who set it.
    pub setter: Requester,
}

/// Everything NDIS knows of the adapter's objects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cache {
    pub(crate) switch: Option<SwitchRecord>,
    pub(crate) vports: BTreeMap<VPortId, VPortRecord>,
    pub(crate) vfs: BTreeMap<VfId, VfRecord>,
    pub(crate) filters: BTreeMap<FilterId, FilterRecord>,
    last_filter_id: u32,
}

impl Cache {
    /// The NIC switch, if there is one.
    #[must_use]
    pub const fn switch(&self) -> Option<&SwitchRecord> {
        self.switch.as_ref()
    }

    /// The VPorts, by id.
    pub fn vports(&self) -> impl Iterator<Item = (VPortId, &VPortRecord)> {
        self.vports.iter().map(|(id, record)| (*id, record))
    }

    /// One VPort.
    #[must_use]
    pub fn vport(&self, id: VPortId) -> Option<&VPortRecord> {
        self.vports.get(&id)
    }

    /// The allocated VFs, by id.
    pub fn vfs(&self) -> impl Iterator<Item = (VfId, &VfRecord)> {
        self.vfs.iter().map(|(id, record)| (*id, record))
    }

    /// One allocated VF.
    #[must_use]
    pub fn vf(&self, id: VfId) -> Option<&VfRecord> {
        self.vfs.get(&id)
    }

    /// The receive filters, by id.
    pub fn filters(&self) -> impl Iterator<Item = (FilterId, &FilterRecord)> {
        self.filters.iter().map(|(id, record)| (*id, record))
    }

    /// One receive filter.
    #[must_use]
    pub fn filter(&self, id: FilterId) -> Option<&FilterRecord> {
        self.filters.get(&id)
    }

    /// The VPort of a function's VF, if it has one.
    #[must_use]
    pub fn vport_of_vf(&self, vf: VfId) -> Option<VPortId> {
        self.vports()
            .find(|(_, record)| record.parameters.attached_function == FunctionId::Vf(vf))
            .map(|(id, _)| id)
    }

    /// Receive filters that are set on a VPort.
    #[must_use]
    pub fn num_filters_on(&self, vport: VPortId) -> usize {
        self.filters.values().filter(|record| record.parameters.vport_id == vport).count()
    }

    /// Queue pairs that VPorts have, all but one of them, the default one included.
    pub(crate) fn queue_pairs_besides(&self, besides: Option<VPortId>) -> u32 {
        self.vports()
            .filter(|(id, _)| Some(*id) != besides)
            .map(|(_, record)| record.parameters.num_queue_pairs)
            .fold(0, u32::saturating_add)
    }

    /// Nondefault VPorts of the PF.
    pub(crate) fn num_nondefault_pf_vports(&self) -> usize {
        let of_pf = |(id, record): &(VPortId, &VPortRecord)| {
            !id.is_default() && record.parameters.attached_function == FunctionId::Pf
        };
        self.vports().filter(of_pf).count()
    }

    /// The lowest id from 1 to below `num_vports` that no VPort has.
    pub(crate) fn lowest_free_vport(&self, num_vports: u32) -> Option<VPortId> {
        (1..num_vports)
            .filter_map(VPortId::new)
            .find(|candidate| !self.vports.contains_key(candidate))
    }

    /// An id that no filter has. Ids count up, so that one that was cleared is not soon another's.
    pub(crate) fn next_filter_id(&self) -> Option<FilterId> {
        // One more candidate than there are filters cannot all be taken; 0 is none.
        (1..=u32::try_from(self.filters.len()).ok()?.checked_add(2)?)
            .filter_map(|step| FilterId::new(self.last_filter_id.wrapping_add(step)))
            .find(|candidate| !self.filters.contains_key(candidate))
    }

    pub(crate) fn insert_filter(&mut self, id: FilterId, record: FilterRecord) {
        self.last_filter_id = id.get();
        self.filters.insert(id, record);
    }

    /// The switch as OID_NIC_SWITCH_ENUM_SWITCHES answers.
    pub(crate) fn switch_info(&self, num_vports: u32) -> Option<NicSwitchInfo> {
        let switch = self.switch.as_ref()?;
        let mut info = NicSwitchInfo {
            switch_type: SwitchType::External,
            switch_id: switch.switch_id,
            name: switch.name.clone(),
            num_vfs: u32::from(switch.num_vfs),
            num_allocated_vfs: count(self.vfs.len()),
            num_vports,
            num_active_vports: count(self.vports.len()),
            ..NicSwitchInfo::default()
        };
        for (id, record) in &self.vports {
            if id.is_default() {
                info.num_queue_pairs_for_default_vport = record.parameters.num_queue_pairs;
            } else {
                info.num_queue_pairs_for_non_default_vports = info
                    .num_queue_pairs_for_non_default_vports
                    .saturating_add(record.parameters.num_queue_pairs);
            }
        }
        for record in self.filters.values() {
            let vlan = u32::from(matches!(record.matches.vlan, VlanCondition::Equal(_)));
            if record.parameters.vport_id.is_default() {
                info.num_active_default_vport_mac_addresses += 1;
                info.num_active_default_vport_vlan_ids += vlan;
            } else {
                info.num_active_non_default_vport_mac_addresses += 1;
                info.num_active_non_default_vport_vlan_ids += vlan;
            }
        }
        Some(info)
    }

    /// The VPorts as OID_NIC_SWITCH_ENUM_VPORTS answers.
    pub(crate) fn vport_infos(&self, function: Option<FunctionId>) -> Vec<VPortInfo> {
        let mut filters: BTreeMap<VPortId, u32> = BTreeMap::new();
        for record in self.filters.values() {
            *filters.entry(record.parameters.vport_id).or_default() += 1;
        }
        self.vports
            .values()
            .map(|record| &record.parameters)
            .filter(|parameters| function.is_none_or(|f| parameters.attached_function == f))
            .map(|parameters| VPortInfo {
                vport_id: parameters.vport_id,
                flags: VPortInfoFlags::from_bits_truncate(parameters.flags.bits()),
                switch_id: parameters.switch_id,
                name: parameters.name.clone(),
                attached_function: parameters.attached_function,
                num_queue_pairs: parameters.num_queue_pairs,
                interrupt_moderation: parameters.interrupt_moderation,
                state: parameters.state,
                processor_affinity: parameters.processor_affinity,
                lookahead_size: parameters.lookahead_size,
                num_filters: filters.get(&parameters.vport_id).copied().unwrap_or(0),
            })
            .collect()
    }

    /// The filters as OID_RECEIVE_FILTER_ENUM_FILTERS answers.
    pub(crate) fn filter_infos(&self, vport: Option<VPortId>) -> Vec<ReceiveFilterInfo> {
        self.filters()
            .filter(|(_, record)| vport.is_none_or(|v| record.parameters.vport_id == v))
            .map(|(filter_id, record)| ReceiveFilterInfo {
                filter_type: record.parameters.filter_type,
                filter_id,
            })
            .collect()
    }
}

/// A number of objects as the wire has it.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_ids_count_up_and_step_over_0_and_those_in_use() {
        let mut cache = Cache::default();
        let record = FilterRecord {
            parameters: ReceiveFilterParameters::new(
                VPortId::DEFAULT,
                FilterMatch::untagged([2, 0, 0, 0, 0, 1].into()),
            ),
            matches: FilterMatch::untagged([2, 0, 0, 0, 0, 1].into()),
            setter: Requester::Ndis,
        };
        let set = |cache: &mut Cache| {
            let id = cache.next_filter_id().unwrap();
            cache.insert_filter(id, record.clone());
            id.get()
        };
        assert_eq!((set(&mut cache), set(&mut cache)), (1, 2));
        cache.filters.remove(&FilterId::new(2).unwrap());
        assert_eq!(set(&mut cache), 3, "an id is not given again at once");
        cache.last_filter_id = u32::MAX - 1;
        assert_eq!(set(&mut cache), u32::MAX);
        assert_eq!(set(&mut cache), 2, "0 is none, 1 is in use");
        assert_eq!(set(&mut cache), 4, "3 is in use");
    }
}
