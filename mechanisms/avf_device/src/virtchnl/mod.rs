//! The PF's side of virtchnl: answers the VF's requests (SPEC-AVF §4).

mod filters;
mod queues;
mod resources;
mod rss;
mod vlan;

use avf_protocol::{
    MAX_QUEUE_PAIRS, MacAddress,
    virtchnl::{Capabilities, Opcode, Reply, Request, RequestError, Status, Version, promiscuous},
};

pub(crate) use self::queues::{QueueState, RxRing, TxRing};
use crate::{AvfDevice, VfHost, VfSettings, statistics};

const QUEUES: usize = MAX_QUEUE_PAIRS as usize;

/// What the PF knows of its VF besides the [`VfSettings`].
#[derive(Clone, Debug)]
pub(crate) struct VfState {
    /// Negotiated version; survives resets of the VF.
    pub(crate) version: Version,
    /// VERSION was answered since the last reset.
    pub(crate) version_told: bool,
    /// Capabilities granted since the last reset.
    pub(crate) granted: Capabilities,
    /// GET_VF_RESOURCES was answered since the last reset: the driver listens.
    pub(crate) resources_told: bool,
    /// Queue pairs the VF has; survives resets of the VF.
    pub(crate) queue_pairs: u16,
    /// The address that GET_VF_RESOURCES tells; survives resets of the VF.
    pub(crate) default_mac: MacAddress,
    /// The address that a driver without address kinds added last, and when (ns): its next primary address,
    /// if it soon removes the one it has.
    pub(crate) legacy_mac: Option<(MacAddress, u64)>,
    /// Promiscuous modes as asked for; whether they hold depends on trust.
    pub(crate) promiscuous: u16,
    pub(crate) tx: [QueueState<TxRing>; QUEUES],
    pub(crate) rx: [QueueState<RxRing>; QUEUES],
}

impl VfState {
    /// The state at power-on.
    pub(crate) fn new(queue_pairs: u16, default_mac: MacAddress) -> Self {
        Self {
            version: Version::V1_0,
            version_told: false,
            granted: Capabilities::NONE,
            resources_told: false,
            queue_pairs,
            default_mac,
            legacy_mac: None,
            promiscuous: 0,
            tx: [QueueState::default(); QUEUES],
            rx: [QueueState::default(); QUEUES],
        }
    }

    /// The queues that run, one bit each: TX and RX.
    pub(crate) fn running(&self) -> (u32, u32) {
        fn bits<R>(queues: &[QueueState<R>]) -> u32 {
            queues.iter().rev().fold(0, |bits, queue| bits << 1 | u32::from(queue.running))
        }
        (bits(&self.tx), bits(&self.rx))
    }
}

/// What to do when the request is done and answered.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum After {
    Nothing,
    /// Tell the VF of its link.
    LinkEvent,
    /// Reset the VF, as it asked.
    Reset,
    /// Reset the VF, after telling it.
    ResetByPf,
}

/// What came of a request.
pub(crate) struct Outcome {
    /// The answer; there is none to a reset.
    pub(crate) reply: Option<(Status, Reply)>,
    pub(crate) after: After,
}

impl From<Result<Reply, Status>> for Outcome {
    fn from(result: Result<Reply, Status>) -> Self {
        let reply = match result {
            Ok(reply) => (Status::Success, reply),
            Err(status) => (status, Reply::Empty),
        };
        Self { reply: Some(reply), after: After::Nothing }
    }
}

impl Outcome {
    fn then(mut self, after: After) -> Self {
        if self.reply.as_ref().is_some_and(|(status, _)| status.is_success()) {
            self.after = after;
        }
        self
    }
}

/// An acknowledged request without a payload in its answer.
const DONE: Result<Reply, Status> = Ok(Reply::Empty);

/// The capability without which an opcode is not served.
fn required(opcode: Opcode) -> Capabilities {
    match opcode {
        Opcode::AddVlan
        | Opcode::DelVlan
        | Opcode::EnableVlanStripping
        | Opcode::DisableVlanStripping => Capabilities::VLAN,
        Opcode::GetOffloadVlanV2Caps
        | Opcode::AddVlanV2
        | Opcode::DelVlanV2
        | Opcode::EnableVlanStrippingV2
        | Opcode::DisableVlanStrippingV2
        | Opcode::EnableVlanInsertionV2
        | Opcode::DisableVlanInsertionV2 => Capabilities::VLAN_V2,
        Opcode::ConfigRssKey
        | Opcode::ConfigRssLut
        | Opcode::GetRssHenaCaps
        | Opcode::SetRssHena => Capabilities::RSS_PF,
        Opcode::RequestQueues => Capabilities::REQ_QUEUES,
        Opcode::GetSupportedRxdids => Capabilities::RX_FLEX_DESC,
        _ => Capabilities::NONE,
    }
}

impl AvfDevice {
    /// Serves one request.
    pub(crate) fn answer(
        &mut self,
        opcode: u32,
        data: &[u8],
        now_ns: u64,
        host: &mut dyn VfHost,
    ) -> Outcome {
        if let Ok(opcode) = Opcode::try_from(opcode)
            && !self.vf.granted.contains(required(opcode))
        {
            return Err(Status::NotSupported).into();
        }
        let request = match Request::parse(opcode, data) {
            Ok(request) => request,
            Err(RequestError::TooShort { .. }) => return Err(Status::Parameter).into(),
            Err(RequestError::UnknownOpcode(_) | RequestError::NotModelled(_)) => {
                return Err(Status::NotSupported).into();
            }
        };
        let before = self.settings.clone();
        let outcome = self.serve(request, now_ns, host);
        self.apply_if_changed(&before, host);
        outcome
    }

    fn serve(&mut self, request: Request<'_>, now_ns: u64, host: &mut dyn VfHost) -> Outcome {
        match request {
            Request::Version(version) => self.negotiate_version(version).into(),
            Request::ResetVf => Outcome { reply: None, after: After::Reset },
            Request::GetVfResources(wanted) => {
                Outcome::from(self.get_vf_resources(wanted)).then(After::LinkEvent)
            }
            Request::ConfigTxQueue(queue) => self.config_tx_queue(&queue, host).into(),
            Request::ConfigRxQueue(queue) => self.config_rx_queue(&queue, host).into(),
            Request::ConfigVsiQueues { vsi_id, pairs } => {
                self.config_vsi_queues(vsi_id, pairs, host).into()
            }
            Request::ConfigIrqMap { vectors } => self.config_irq_map(vectors).into(),
            Request::EnableQueues(queues) => {
                Outcome::from(self.enable_queues(&queues, host)).then(After::LinkEvent)
            }
            Request::DisableQueues(queues) => self.disable_queues(&queues, host).into(),
            Request::AddEthAddr { vsi_id, list } => {
                self.add_addresses(vsi_id, list, now_ns, host).into()
            }
            Request::DelEthAddr { vsi_id, list } => {
                self.remove_addresses(vsi_id, list, now_ns).into()
            }
            Request::AddVlan { vsi_id, ids } => self.add_vlans(vsi_id, ids).into(),
            Request::DelVlan { vsi_id, ids } => self.remove_vlans(vsi_id, ids).into(),
            Request::ConfigPromiscuousMode { vsi_id, flags } => {
                self.config_promiscuous(vsi_id, flags).into()
            }
            Request::GetStats(queues) => self
                .check_vsi(queues.vsi_id.get())
                .map(|()| {
                    Reply::Stats(statistics::since(&self.statistics_base, &host.statistics()))
                })
                .into(),
            Request::ConfigRssKey { vsi_id, key } => self.config_rss_key(vsi_id, key).into(),
            Request::ConfigRssLut { vsi_id, lut } => self.config_rss_lut(vsi_id, lut).into(),
            Request::GetRssHenaCaps => self.rss_hena_caps().into(),
            Request::SetRssHena(types) => self.set_rss_hena(types).into(),
            Request::EnableVlanStripping => self.set_vlan_stripping(true).into(),
            Request::DisableVlanStripping => self.set_vlan_stripping(false).into(),
            Request::RequestQueues(pairs) => self.request_queues(pairs, host),
            Request::GetSupportedRxdids => self.supported_rxdids().into(),
            Request::GetOffloadVlanV2Caps => self.vlan_v2_capabilities().into(),
            Request::AddVlanV2 { vport_id, filters } => {
                self.add_vlan_filters(vport_id, filters).into()
            }
            Request::DelVlanV2 { vport_id, filters } => {
                self.remove_vlan_filters(vport_id, filters).into()
            }
            Request::EnableVlanStrippingV2(setting) => {
                self.toggle_vlan_stripping(&setting, true).into()
            }
            Request::DisableVlanStrippingV2(setting) => {
                self.toggle_vlan_stripping(&setting, false).into()
            }
            Request::EnableVlanInsertionV2(setting) => {
                self.toggle_vlan_insertion(&setting, true).into()
            }
            Request::DisableVlanInsertionV2(setting) => {
                self.toggle_vlan_insertion(&setting, false).into()
            }
            // Features that are never granted or advertised.
            Request::ConfigRssHfunc(_)
            | Request::GetMaxRssQregion
            | Request::EnableVlanFilteringV2(_)
            | Request::DisableVlanFilteringV2(_)
            | Request::EnableQueuesV2 { .. }
            | Request::DisableQueuesV2 { .. }
            | Request::MapQueueVector { .. }
            | Request::GetQosCaps => Err(Status::NotSupported).into(),
        }
    }

    /// Messages name the VSI they are about.
    fn check_vsi(&self, vsi_id: u16) -> Result<(), Status> {
        if vsi_id == self.config.vsi_id { Ok(()) } else { Err(Status::Parameter) }
    }

    pub(crate) fn has_advanced_link_speed(&self) -> bool {
        self.vf.granted.contains(Capabilities::ADV_LINK_SPEED)
    }

    /// Hands the settings to the host if they differ from `before`.
    pub(crate) fn apply_if_changed(&self, before: &VfSettings, host: &mut dyn VfHost) {
        if *before != self.settings {
            host.apply(&self.settings);
        }
    }

    /// A VF that may not be promiscuous is told that it is all the same.
    fn config_promiscuous(&mut self, vsi_id: u16, flags: u16) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        self.vf.promiscuous = flags;
        self.apply_promiscuous();
        DONE
    }

    pub(crate) fn apply_promiscuous(&mut self) {
        let may = self.admin.trusted || self.admin.allow_promiscuous;
        let flags = if may { self.vf.promiscuous } else { 0 };
        self.settings.promiscuous_unicast = flags & promiscuous::UNICAST != 0;
        self.settings.promiscuous_multicast = flags & promiscuous::MULTICAST != 0;
    }
}
