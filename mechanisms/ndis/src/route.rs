//! The way of a request: what every request has to pass before its handler, and what observers are told.

use device_control_protocol::DriverName;
use ndis_protocol::{Issuer, NdisStatus, Oid, RequestKind};

use crate::adapter::Ndis;
use crate::capabilities::CurrentCapabilities;
use crate::completion::{OidCompletion, Reply};
use crate::event::{NdisEvent, Requester};
use crate::{AdapterState, Object, PfMiniport, Refusal};

/// One request on its way to its handler.
pub(crate) struct Request<'a> {
    pub(crate) oid: Oid,
    pub(crate) requester: &'a Requester,
    pub(crate) input: &'a [u8],
    pub(crate) capacity: usize,
}

impl Request<'_> {
    /// Checks that the answer has room.
    pub(crate) fn room(&self, needed: u64) -> Result<(), Refusal> {
        match u64::try_from(self.capacity) {
            Ok(capacity) if capacity < needed => {
                Err(Refusal::OutputTooSmall { needed, capacity: self.capacity })
            }
            _ => Ok(()),
        }
    }

    /// Answers with output, if it has room. Only for requests that change nothing.
    pub(crate) fn answer(&self, output: Vec<u8>) -> Result<Reply, Refusal> {
        self.room(output.len() as u64)?;
        Ok(Reply::output(output, self.input.len()))
    }

    /// The PF miniport driver's refusal.
    pub(crate) fn refused(&self, status: NdisStatus) -> Refusal {
        if status == NdisStatus::SUCCESS || status == NdisStatus::PENDING {
            let what = "an error that is none";
            return Refusal::MiniportBroken { oid: self.oid, what };
        }
        Refusal::Miniport { oid: self.oid, status }
    }
}

impl<M: PfMiniport> Ndis<M> {
    /// A request of an overlying driver.
    ///
    /// `input` is what the information buffer holds, `out_capacity` how many bytes may be answered; for a method both
    /// are the same buffer. A request that fails has changed nothing.
    pub fn oid_request(
        &mut self,
        owner: &DriverName,
        oid: u32,
        kind: RequestKind,
        input: &[u8],
        out_capacity: usize,
    ) -> OidCompletion {
        self.request(&Requester::Overlying(owner.clone()), oid, kind, input, out_capacity)
    }

    /// A request of NDIS itself.
    pub(crate) fn ndis_request(
        &mut self,
        oid: Oid,
        kind: RequestKind,
        input: &[u8],
        out_capacity: usize,
    ) -> OidCompletion {
        self.request(&Requester::Ndis, oid.code(), kind, input, out_capacity)
    }

    pub(crate) fn request(
        &mut self,
        requester: &Requester,
        code: u32,
        kind: RequestKind,
        input: &[u8],
        capacity: usize,
    ) -> OidCompletion {
        self.sequence += 1;
        let sequence = self.sequence;
        self.subscribers.tell(&NdisEvent::OidIssued {
            sequence,
            requester: requester.clone(),
            code,
            kind,
        });
        let completion = OidCompletion::from(self.route(requester, code, kind, input, capacity));
        if let Some(refusal) = &completion.refusal {
            tracing::debug!(%requester, code, %kind, status = %completion.status, %refusal, "OID refused");
        }
        self.subscribers.tell(&NdisEvent::OidCompleted {
            sequence,
            code,
            status: completion.status,
            refusal: completion.refusal.clone(),
        });
        completion
    }

    /// What every request has to pass, and then its handler.
    fn route(
        &mut self,
        requester: &Requester,
        code: u32,
        kind: RequestKind,
        input: &[u8],
        capacity: usize,
    ) -> Result<Reply, Refusal> {
        let oid = Oid::from_code(code).ok_or(Refusal::UnknownOid { code })?;
        match (oid.issuer(), requester) {
            (Issuer::Guest, _) => return Err(Refusal::GuestOnly { oid }),
            (Issuer::NdisOnly, Requester::Overlying(_)) => return Err(Refusal::NdisOnly { oid }),
            _ => {}
        }
        if !oid.allows(kind) {
            return Err(Refusal::RequestKind { oid, kind });
        }
        match self.state {
            AdapterState::Running => {}
            AdapterState::Halted => return Err(Refusal::Halted),
            AdapterState::Removed => {
                let clearing_filter = oid == Oid::ReceiveFilterClearFilter;
                return Err(Refusal::Removed { clearing_filter });
            }
        }
        let request = Request { oid, requester, input, capacity };
        let set = kind == RequestKind::Set;
        match oid {
            Oid::NicSwitchHardwareCapabilities => self.nic_switch_hardware_capabilities(&request),
            Oid::NicSwitchCurrentCapabilities => self.nic_switch_current_capabilities(&request),
            Oid::SriovHardwareCapabilities => self.sriov_hardware_capabilities(&request),
            Oid::SriovCurrentCapabilities => self.sriov_current_capabilities(&request),
            Oid::SriovPfLuid => self.query_pf_luid(&request),
            Oid::ReceiveFilterHardwareCapabilities => {
                self.receive_filter_hardware_capabilities(&request)
            }
            Oid::ReceiveFilterCurrentCapabilities => {
                self.receive_filter_current_capabilities(&request)
            }
            Oid::ReceiveFilterGlobalParameters => self.receive_filter_global_parameters(&request),

            Oid::NicSwitchCreateSwitch => self.create_switch(&request),
            Oid::NicSwitchParameters if set => self.set_switch_parameters(&request),
            Oid::NicSwitchParameters => self.query_switch_parameters(&request),
            Oid::NicSwitchDeleteSwitch => self.delete_switch(&request),
            Oid::NicSwitchEnumSwitches => self.enum_switches(&request),

            Oid::NicSwitchCreateVport => self.create_vport(&request),
            Oid::NicSwitchVportParameters if set => self.set_vport_parameters(&request),
            Oid::NicSwitchVportParameters => self.query_vport_parameters(&request),
            Oid::NicSwitchEnumVports => self.enum_vports(&request),
            Oid::NicSwitchDeleteVport => self.delete_vport(&request),

            Oid::NicSwitchAllocateVf => self.allocate_vf(&request),
            Oid::NicSwitchFreeVf => self.free_vf(&request),
            Oid::NicSwitchVfParameters => self.query_vf_parameters(&request),
            Oid::NicSwitchEnumVfs => self.enum_vfs(&request),

            Oid::SriovReadVfConfigSpace => self.read_vf_config_space(&request),
            Oid::SriovWriteVfConfigSpace => self.write_vf_config_space(&request),
            Oid::SriovReadVfConfigBlock => self.read_vf_config_block(&request),
            Oid::SriovWriteVfConfigBlock => self.write_vf_config_block(&request),
            Oid::SriovResetVf => self.reset_vf(&request),
            Oid::SriovSetVfPowerState => self.set_vf_power_state(&request),
            Oid::SriovVfVendorDeviceId => self.vf_vendor_device_id(&request),
            Oid::SriovProbedBars => self.probed_bars(&request),
            Oid::SriovBarResources => self.bar_resources(&request),

            Oid::ReceiveFilterSetFilter => self.set_filter(&request),
            Oid::ReceiveFilterClearFilter => self.clear_filter(&request),
            Oid::ReceiveFilterMoveFilter => self.move_filter(&request),
            Oid::ReceiveFilterEnumFilters => self.enum_filters(&request),
            Oid::ReceiveFilterParameters => self.query_filter_parameters(&request),

            Oid::ReceiveFilterAllocateQueue
            | Oid::ReceiveFilterFreeQueue
            | Oid::ReceiveFilterEnumQueues
            | Oid::ReceiveFilterQueueParameters
            | Oid::ReceiveFilterQueueAllocationComplete => Err(self.no_vm_queues(oid)),

            // Refused above: their issuer is the guest.
            Oid::SriovConfigState
            | Oid::SriovVfSerialNumber
            | Oid::SriovOverlyingAdapterInfo
            | Oid::SriovVfInvalidateConfigBlock => Err(Refusal::GuestOnly { oid }),
        }
    }

    /// What is enabled, or the refusal that SR-IOV is not active.
    pub(crate) fn active(&self, request: &Request<'_>) -> Result<CurrentCapabilities, Refusal> {
        self.current.ok_or(Refusal::NotActive {
            oid: request.oid,
            feature: "SR-IOV",
            cure: "set *SRIOV and *SriovPreferred to 1 and restart the adapter",
        })
    }

    /// Whoever is not the owner is refused.
    pub(crate) fn only_owner(
        request: &Request<'_>,
        owner: &Requester,
        object: Object,
    ) -> Result<(), Refusal> {
        match owner {
            Requester::Overlying(name) if request.requester != owner => {
                Err(Refusal::NotOwner { object, owner: name.clone() })
            }
            _ => Ok(()),
        }
    }

    fn no_vm_queues(&self, oid: Oid) -> Refusal {
        if self.features.sriov {
            let cure = "with SR-IOV active VPorts take the place of VM queues";
            Refusal::NotActive { oid, feature: "VM queues without SR-IOV", cure }
        } else {
            Refusal::NotCapable { what: "have VM queues: its PF miniport driver has none" }
        }
    }
}
