//! Queries that NDIS answers from what it knows of the adapter (SPEC-NDIS-SRIOV §5.1, §5.2, §5.13, §5.21, §6).

use ndis_protocol::{NdisStructure, ReceiveFilterGlobalParameters, SriovCapabilities, SriovPfLuid};

use crate::adapter::Ndis;
use crate::completion::Reply;
use crate::route::Request;
use crate::{PfMiniport, Refusal};

impl<M: PfMiniport> Ndis<M> {
    /// A card without SR-IOV has no NIC switch to speak of.
    fn capable(&self) -> Result<(), Refusal> {
        if self.hardware.does_sriov() {
            Ok(())
        } else {
            Err(Refusal::NotCapable { what: "do SR-IOV" })
        }
    }

    pub(crate) fn nic_switch_hardware_capabilities(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        self.capable()?;
        request.answer(self.hardware.nic_switch.emit())
    }

    pub(crate) fn nic_switch_current_capabilities(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        request.answer(self.active(request)?.nic_switch.emit())
    }

    pub(crate) fn sriov_hardware_capabilities(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        self.capable()?;
        request.answer(self.hardware.sriov.emit())
    }

    pub(crate) fn sriov_current_capabilities(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        let sriov: SriovCapabilities = self.active(request)?.sriov;
        request.answer(sriov.emit())
    }

    pub(crate) fn receive_filter_hardware_capabilities(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        self.capable()?;
        request.answer(self.hardware.receive_filter.emit())
    }

    pub(crate) fn receive_filter_current_capabilities(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        request.answer(self.active(request)?.receive_filter.emit())
    }

    pub(crate) fn receive_filter_global_parameters(
        &self,
        request: &Request<'_>,
    ) -> Result<Reply, Refusal> {
        let filter = self.active(request)?.receive_filter;
        let parameters = ReceiveFilterGlobalParameters {
            enabled_filter_types: filter.enabled_filter_types,
            enabled_queue_types: filter.enabled_queue_types,
        };
        request.answer(parameters.emit())
    }

    pub(crate) fn query_pf_luid(&self, request: &Request<'_>) -> Result<Reply, Refusal> {
        self.capable()?;
        request.answer(SriovPfLuid { luid: self.miniport.pf_luid() }.emit())
    }
}
