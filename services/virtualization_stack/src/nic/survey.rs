//! What a NIC is asked when it is there: what it can do; and, on a new connection, what an earlier life of the stack has
//! left on it. That is cleared away: objects belong to the *name* of whoever made them, and stay when its connection ends.
//! What belongs to others is refused, and stays.

use std::collections::{BTreeMap, VecDeque};

use ndis_protocol::{NdisStatus, VPortId, VfId};
use pcivirt_protocol::NtStatus;

use super::NicFacts;
use crate::{CallError, NicCall, NicReply};

/// How often, in one survey, removals that were refused are tried again.
const ATTEMPTS: u32 = 64;

/// A survey that is going on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    facts: NicFacts,
    sweep: bool,
    questions: VecDeque<NicCall>,
    /// Filters, then VPorts, then VFs, each after those before.
    filters: Vec<NicCall>,
    vports: Vec<NicCall>,
    vfs: Vec<NicCall>,
    vf_of: BTreeMap<VPortId, VfId>,
    /// How often a removal that was refused may still be tried again.
    attempts: u32,
    pub(crate) swept_filters: u32,
    pub(crate) swept_vports: u32,
    pub(crate) swept_vfs: u32,
}

impl Survey {
    /// A survey; with `sweep` what was left behind is cleared away.
    pub(crate) fn new(sweep: bool) -> Self {
        let questions = VecDeque::from([
            NicCall::SriovHardwareCapabilities,
            NicCall::SriovCurrentCapabilities,
            NicCall::NicSwitchCurrentCapabilities,
            NicCall::ReceiveFilterCurrentCapabilities,
            NicCall::EnumSwitches,
        ]);
        Self { sweep, questions, attempts: ATTEMPTS, ..Self::default() }
    }

    /// The next request; `None` when all is known and done.
    pub(crate) fn next(&mut self) -> Option<NicCall> {
        self.questions
            .pop_front()
            .or_else(|| self.filters.pop())
            .or_else(|| self.vports.pop())
            .or_else(|| self.vfs.pop())
    }

    /// What was found out.
    pub(crate) fn into_facts(self) -> NicFacts {
        self.facts
    }

    /// Takes over an answer. A refusal says that there is none.
    pub(crate) fn learn(&mut self, call: &NicCall, result: Result<NicReply, CallError>) {
        match (call, result) {
            (NicCall::SriovHardwareCapabilities, Ok(NicReply::Sriov(sriov))) => {
                self.facts.hardware = !sriov.is_empty();
            }
            (NicCall::SriovCurrentCapabilities, Ok(NicReply::Sriov(sriov))) => {
                self.facts.current = !sriov.is_empty();
            }
            (NicCall::NicSwitchCurrentCapabilities, Ok(NicReply::NicSwitch(capabilities))) => {
                self.facts.nic_switch = Some(capabilities);
            }
            (
                NicCall::ReceiveFilterCurrentCapabilities,
                Ok(NicReply::ReceiveFilter(capabilities)),
            ) => self.facts.receive_filter = Some(*capabilities),
            (NicCall::EnumSwitches, Ok(NicReply::Switches(switches))) => {
                self.facts.switch = switches.into_iter().next();
                if self.sweep && self.facts.sriov_active() {
                    self.questions.extend([NicCall::EnumVfs, NicCall::EnumVPorts]);
                }
            }
            (NicCall::EnumVfs, Ok(NicReply::Vfs(vfs))) => {
                self.vfs.extend(vfs.iter().map(|vf| NicCall::FreeVf(vf.vf_id)));
            }
            (NicCall::EnumVPorts, Ok(NicReply::VPorts(vports))) => {
                self.questions.push_back(NicCall::EnumFilters(VPortId::DEFAULT));
                for vport in vports.iter().filter(|vport| !vport.vport_id.is_default()) {
                    self.questions.push_back(NicCall::EnumFilters(vport.vport_id));
                    if let Some(vf) = vport.attached_function.vf() {
                        self.vports.push(NicCall::DeleteVPort(vport.vport_id));
                        self.vf_of.insert(vport.vport_id, vf);
                    }
                }
            }
            (NicCall::EnumFilters(_), Ok(NicReply::Filters(filters))) => {
                self.filters.extend(filters.into_iter().map(NicCall::ClearFilter));
            }
            (
                NicCall::ClearFilter(_) | NicCall::DeleteVPort(_) | NicCall::FreeVf(_),
                Err(error),
            ) => self.try_again(call, &error),
            (NicCall::ClearFilter(_), Ok(_)) => self.swept_filters += 1,
            (NicCall::DeleteVPort(vport), Ok(_)) => {
                self.swept_vports += 1;
                // It was ours, so its VF is. RESET_VF asks nobody whose it is, and must not reach another's.
                self.questions.extend(self.vf_of.get(vport).map(|vf| NicCall::ResetVf(*vf)));
            }
            (NicCall::FreeVf(_), Ok(_)) => self.swept_vfs += 1,
            _ => {}
        }
    }

    /// A removal was refused: for good if the object is another's, or gone.
    fn try_again(&mut self, call: &NicCall, error: &CallError) {
        let anothers = matches!(
            error,
            CallError::Ndis(NdisStatus::INVALID_PARAMETER) | CallError::Nt(NtStatus::ACCESS_DENIED)
        );
        if anothers || error.is_absence() || self.attempts == 0 {
            return;
        }
        self.attempts -= 1;
        match call {
            NicCall::ClearFilter(_) => self.filters.push(call.clone()),
            NicCall::DeleteVPort(_) => self.vports.push(call.clone()),
            _ => self.vfs.push(call.clone()),
        }
    }
}
