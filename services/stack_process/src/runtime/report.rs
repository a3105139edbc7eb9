//! What people are shown.

use ndis_protocol::InterruptModeration;
use virtualization_stack::{AdapterId, DataPath, NicId, Reason, VmId};

use super::{Adapter, Runtime};
use crate::configuration::SwitchReach;
use crate::control::{
    AdapterReport, ConnectionReport, NicReport, ReasonReport, StackStatus, SwitchReport, VfReport,
    VmReport,
};
use crate::event::Peer;
use crate::nic_call::vlan_mode;

impl Runtime {
    pub(super) fn status(&self) -> StackStatus {
        StackStatus {
            last_event: self.events.last(),
            nics: self.nics.keys().filter_map(|id| self.nic_report(*id)).collect(),
            switches: self.switches.keys().filter_map(|id| self.switch_report_of(*id)).collect(),
            vms: self.vms.keys().filter_map(|id| self.vm_report(*id)).collect(),
        }
    }

    fn connection(&self, peer: Peer) -> ConnectionReport {
        let Some(link) = self.links.get(&peer) else { return ConnectionReport::default() };
        ConnectionReport {
            socket: link.path.display().to_string(),
            connected: link.is_up(),
            last_error: link.last_error.clone(),
        }
    }

    fn nic_report(&self, id: NicId) -> Option<NicReport> {
        let name = self.nics.get(&id)?.name.clone();
        let connection = self.connection(Peer::Nic(id));
        let reasons = |reasons: Vec<Reason>| reasons.iter().map(|r| self.reason(r)).collect();
        // One that has no switch and was never there is not known to the stack.
        let Some(status) = self.stack.nic_status(id) else {
            return Some(NicReport {
                name,
                connection,
                state: virtualization_stack::NicState::Absent,
                iov_support: false,
                iov_support_reasons: reasons(vec![Reason::PfRemoved { nic: id }]),
                virtual_functions: 0,
                virtual_functions_in_use: 0,
                queue_pairs: 0,
                queue_pairs_in_use: 0,
            });
        };
        Some(NicReport {
            name,
            connection,
            state: status.state,
            iov_support: status.iov_support,
            iov_support_reasons: reasons(status.iov_support_reasons),
            virtual_functions: status.iov_virtual_function_count,
            virtual_functions_in_use: status.iov_virtual_functions_in_use,
            queue_pairs: status.iov_queue_pair_count,
            queue_pairs_in_use: status.iov_queue_pairs_in_use,
        })
    }

    fn switch_report_of(&self, id: virtualization_stack::VmSwitchId) -> Option<SwitchReport> {
        let settings = &self.switches.get(&id)?.settings;
        Some(SwitchReport {
            name: settings.name.clone(),
            connection: self.connection(Peer::Switch(id)),
            kind: settings.kind.name().to_owned(),
            nic: match &settings.kind {
                SwitchReach::External { nic, .. } => Some(nic.clone()),
                _ => None,
            },
            iov_enabled: settings.iov,
        })
    }

    fn vm_report(&self, id: VmId) -> Option<VmReport> {
        let vm = self.vms.get(&id)?;
        let mut adapters: Vec<_> = self
            .adapters
            .iter()
            .filter(|(_, adapter)| adapter.vm == id)
            .filter_map(|(id, adapter)| self.adapter_report(*id, adapter))
            .collect();
        adapters.sort_by_key(|adapter| adapter.number);
        Some(VmReport {
            name: vm.name.clone(),
            connection: self.connection(Peer::Vm(id)),
            state: vm.state,
            adapters,
        })
    }

    fn adapter_report(&self, id: AdapterId, adapter: &Adapter) -> Option<AdapterReport> {
        let status = self.stack.adapter_status(id)?;
        let settings = &adapter.settings;
        let virtual_function = status.virtual_function.map(|vf| VfReport {
            nic: self.names.nic(vf.nic),
            vf: vf.vf,
            requestor_id: vf.requestor_id,
            vport: vf.vport,
            serial: vf.serial.0,
        });
        let moderation = match virtual_function {
            Some(_) => status.iov_interrupt_moderation,
            None => InterruptModeration::to_wire(settings.interrupt_moderation),
        };
        Some(AdapterReport {
            name: settings.name.clone(),
            number: adapter.number,
            kind: settings.kind,
            switch: settings.switch.clone(),
            port: self.names.adapter(id),
            port_error: adapter.port_error.clone(),
            mac: settings.mac.to_string(),
            vlan: vlan_mode(&settings.vlan),
            mac_spoofing: settings.mac_spoofing,
            policies: settings.policies.iter().copied().collect(),
            allow_policy_bypass: settings.allow_policy_bypass,
            iov_weight: status.iov_weight,
            queue_pairs_requested: status.iov_queue_pairs_requested,
            queue_pairs_assigned: status.iov_queue_pairs_assigned,
            interrupt_moderation: moderation,
            state: status.state,
            phase: status.state.phase().to_owned(),
            data_path: match status.vf_data_path_active {
                true => DataPath::Vf,
                false => DataPath::Synthetic,
            },
            virtual_function,
            health: status.health,
            description: status.health.description().to_owned(),
            reasons: status.reasons.iter().map(|reason| self.reason(reason)).collect(),
        })
    }

    fn reason(&self, reason: &Reason) -> ReasonReport {
        ReasonReport {
            code: reason.code(),
            standing: reason.standing(),
            text: self.names.spell(&reason.to_string()),
            cure: reason.cure().to_string(),
            evidence: reason.clone(),
        }
    }
}
