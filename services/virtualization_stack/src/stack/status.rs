//! What people are shown.

use super::Stack;
use crate::status::VirtualFunction;
use crate::{
    AdapterId, AdapterStatus, DataPath, Health, NicId, NicState, NicStatus, Reason, Standing, State,
};

impl Stack {
    /// An adapter as people are shown it.
    pub fn adapter_status(&self, id: AdapterId) -> Option<AdapterStatus> {
        let adapter = self.adapters.get(&id)?;
        let reasons = self.all_reasons(adapter);
        let active = matches!(adapter.state, State::Active(_));
        let health = if active && !reasons.iter().any(|r| r.standing() == Standing::Blocks) {
            Health::OkSriovActive
        } else if adapter.config.iov_weight > 0 && reasons.iter().any(Reason::is_degradation) {
            Health::Degraded
        } else {
            Health::Ok
        };
        let vport = adapter.vport.as_ref();
        let virtual_function =
            adapter.vf.as_ref().zip(adapter.home).map(|(vf, nic)| VirtualFunction {
                nic,
                vf: vf.id.get(),
                requestor_id: vf.requestor_id.to_string(),
                vport: vport.map(|vport| vport.id.get()),
                serial: vf.serial,
                data_path: adapter.guest.path,
            });
        Some(AdapterStatus {
            adapter: id,
            vm: adapter.config.vm,
            state: adapter.state,
            iov_weight: adapter.config.iov_weight,
            iov_queue_pairs_requested: adapter.config.iov_queue_pairs_requested,
            iov_queue_pairs_assigned: vport.map_or(0, |vport| vport.queue_pairs),
            iov_interrupt_moderation: vport.map_or(0, |vport| vport.moderation.to_wire()),
            iov_usage: i32::from(adapter.vf.is_some()),
            vf_data_path_active: adapter.guest.path == DataPath::Vf,
            virtual_function,
            reasons,
            health,
        })
    }

    /// Every adapter, in the order of their numbers.
    pub fn adapter_ids(&self) -> impl Iterator<Item = AdapterId> + '_ {
        self.adapters.keys().copied()
    }

    /// A NIC as people are shown it.
    pub fn nic_status(&self, id: NicId) -> Option<NicStatus> {
        let nic = self.nics.get(&id)?;
        let facts = nic.facts.as_ref();
        let iov_support_reasons = match facts {
            Some(facts) => facts.reasons(id, &nic.host_survey),
            None if nic.state == NicState::Absent => vec![Reason::PfRemoved { nic: id }],
            None => vec![Reason::PfStopping { nic: id }],
        };
        let in_use = self.adapters.values().filter(|adapter| adapter.home == Some(id));
        let pairs = in_use.filter_map(|adapter| adapter.vport.as_ref()).map(|v| v.queue_pairs);
        Some(NicStatus {
            nic: id,
            state: nic.state,
            iov_support: iov_support_reasons.is_empty(),
            iov_support_reasons,
            iov_virtual_function_count: facts.map_or(0, crate::nic::NicFacts::vfs),
            iov_virtual_functions_in_use: self.held(id),
            iov_queue_pair_count: facts.map_or(0, crate::nic::NicFacts::queue_pairs),
            iov_queue_pairs_in_use: pairs.sum(),
        })
    }
}
