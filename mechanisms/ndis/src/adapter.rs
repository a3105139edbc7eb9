//! One adapter as NDIS has it: its lifecycle, its requests, its observers.

use device_control_protocol::DriverName;
use ndis_protocol::{
    FilterId, IndicationCode, NdisStatus, NdisStructure, NicSwitchDeleteSwitchParameters,
    NicSwitchDeleteVPortParameters, NicSwitchFreeVfParameters, NicSwitchParameters, Oid,
    ReceiveFilterClearParameters, RequestKind, SriovResetVf, SwitchId, SwitchType, VPortId, VfId,
};
use pcivirt_protocol::Luid;
use thiserror::Error;

use crate::cache::Cache;
use crate::capabilities::{CapabilityFault, CurrentCapabilities, HardwareCapabilities};
use crate::completion::OidCompletion;
use crate::event::{NdisEvent, Requester, StatusIndication, Subscribers, SubscriptionId};
use crate::{ActiveFeatures, CreateSwitch, Keywords, MiniportStart, PfMiniport, Refusal};

/// How an adapter is set up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AdapterConfiguration {
    /// The standardized keywords.
    pub keywords: Keywords,
    /// Queue pairs of the default VPort; `None` is one, as NDIS 6.30 has it. There is no keyword for it.
    pub default_vport_queue_pairs: Option<u32>,
}

/// Where an adapter is in its life.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum AdapterState {
    /// Not started, or stopped.
    Halted,
    /// Takes requests.
    Running,
    /// The card is gone.
    Removed,
}

/// Why an adapter did not start. It is halted then, as before.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum StartError {
    /// It is not halted.
    #[error("the adapter is not halted; halt it before starting it again")]
    NotHalted,
    /// The driver's capabilities break a rule.
    #[error("the PF miniport driver's capabilities cannot be")]
    Capabilities(#[from] CapabilityFault),
    /// More VFs than the card has.
    #[error("NicSwitches\\0\\*NumVFs is {configured} and the card has {hardware} VFs; lower it")]
    NumVfs {
        /// As configured.
        configured: u16,
        /// As the card has.
        hardware: u32,
    },
    /// The driver's initialization failed.
    #[error("the PF miniport driver did not initialize: {0}")]
    Initialize(NdisStatus),
    /// The default switch was not created.
    #[error("OID_NIC_SWITCH_CREATE_SWITCH failed with {status}: {refusal}")]
    CreateSwitch {
        /// The status.
        status: NdisStatus,
        /// Why.
        refusal: Refusal,
    },
}

/// What an unbind or a halt released, and what it could not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReleaseReport {
    /// Requests that were done.
    pub released: u32,
    /// Requests that failed, and why. Their objects stay, unless the adapter was halted.
    pub failures: Vec<(Oid, Refusal)>,
}

/// NDIS over one PF miniport driver.
///
/// It owns the driver and serializes all calls to it; share it as `Arc<Mutex<Ndis<_>>>`, which only control paths lock.
/// Nothing here is on a data path.
#[derive(Debug)]
pub struct Ndis<M> {
    pub(crate) miniport: M,
    pub(crate) configuration: AdapterConfiguration,
    pub(crate) state: AdapterState,
    pub(crate) features: ActiveFeatures,
    pub(crate) hardware: HardwareCapabilities,
    pub(crate) current: Option<CurrentCapabilities>,
    pub(crate) cache: Cache,
    pub(crate) subscribers: Subscribers,
    pub(crate) sequence: u64,
}

impl<M: PfMiniport> Ndis<M> {
    /// NDIS over a driver, halted.
    pub fn new(miniport: M, configuration: AdapterConfiguration) -> Self {
        let hardware = HardwareCapabilities::of(&miniport);
        Self {
            miniport,
            configuration,
            state: AdapterState::Halted,
            features: ActiveFeatures::default(),
            hardware,
            current: None,
            cache: Cache::default(),
            subscribers: Subscribers::default(),
            sequence: 0,
        }
    }

    /// The driver.
    pub const fn miniport(&self) -> &M {
        &self.miniport
    }

    /// The driver, for what does not go through OIDs (links, statistics, its own settings).
    pub const fn miniport_mut(&mut self) -> &mut M {
        &mut self.miniport
    }

    /// How the adapter is set up, with the changes that were stored since.
    pub const fn configuration(&self) -> &AdapterConfiguration {
        &self.configuration
    }

    /// Where the adapter is in its life.
    pub const fn state(&self) -> AdapterState {
        self.state
    }

    /// The features that are active.
    pub const fn features(&self) -> ActiveFeatures {
        self.features
    }

    /// What the card can do.
    pub const fn hardware_capabilities(&self) -> &HardwareCapabilities {
        &self.hardware
    }

    /// What is enabled; `None` without SR-IOV.
    pub const fn current_capabilities(&self) -> Option<&CurrentCapabilities> {
        self.current.as_ref()
    }

    /// The adapter's objects.
    pub const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The PF's LUID.
    pub fn pf_luid(&self) -> Luid {
        self.miniport.pf_luid()
    }

    /// Has every event told to `observer`, on the thread that causes it and while NDIS is locked: it must be quick and
    /// must not call NDIS.
    pub fn subscribe(
        &mut self,
        observer: impl FnMut(&NdisEvent) + Send + 'static,
    ) -> SubscriptionId {
        self.subscribers.add(Box::new(observer))
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, id: SubscriptionId) {
        self.subscribers.remove(id);
    }

    /// Starts the adapter (SPEC-NDIS-SRIOV §11.1): decides the features, initializes the driver and, with SR-IOV active,
    /// creates the default switch.
    ///
    /// # Errors
    /// [`StartError`]; the adapter is halted.
    pub fn start(&mut self) -> Result<(), StartError> {
        if self.state != AdapterState::Halted {
            return Err(StartError::NotHalted);
        }
        let hardware = HardwareCapabilities::of(&self.miniport);
        hardware.check()?;
        let keywords = &self.configuration.keywords;
        let mut features = ActiveFeatures::decide(keywords);
        if features.sriov && !hardware.does_sriov() {
            tracing::warn!("the keywords ask for SR-IOV and the card does not do it");
            features.sriov = false;
        }
        let num_vfs = match keywords.num_vfs {
            Some(configured) if u32::from(configured) > hardware.nic_switch.max_num_vfs => {
                if features.sriov {
                    let hardware = hardware.nic_switch.max_num_vfs;
                    return Err(StartError::NumVfs { configured, hardware });
                }
                0
            }
            Some(configured) => configured,
            None => u16::try_from(hardware.nic_switch.max_num_vfs).unwrap_or(u16::MAX),
        };
        let default_vport_queue_pairs = self.configuration.default_vport_queue_pairs.unwrap_or(1);
        let default_switch = features.sriov.then(|| CreateSwitch {
            switch_id: SwitchId::DEFAULT,
            name: keywords.switch_name.clone(),
            num_vfs,
            default_vport_queue_pairs,
        });
        let start = MiniportStart {
            features,
            vlan_filtering: keywords.vmq_vlan_filtering,
            default_switch: default_switch.clone(),
        };
        let current =
            CurrentCapabilities::derive(&hardware, features, keywords, u32::from(num_vfs));
        self.miniport.initialize(&start).map_err(StartError::Initialize)?;
        self.hardware = hardware;
        self.features = features;
        self.current = current;
        self.cache = Cache::default();
        self.state = AdapterState::Running;
        tracing::info!(%features, num_vfs, "adapter initialized");
        let Some(switch) = default_switch else {
            return Ok(());
        };
        let parameters = NicSwitchParameters {
            switch_type: SwitchType::External,
            switch_id: switch.switch_id,
            name: switch.name,
            num_vfs: u32::from(switch.num_vfs),
            num_queue_pairs_for_default_vport: Some(switch.default_vport_queue_pairs),
        };
        let completion = self.ndis_request(
            Oid::NicSwitchCreateSwitch,
            RequestKind::Method,
            &parameters.emit(),
            parameters.emit().len(),
        );
        if let Some(refusal) = completion.refusal {
            self.stop_miniport();
            return Err(StartError::CreateSwitch { status: completion.status, refusal });
        }
        Ok(())
    }

    /// Stops the adapter (SPEC-NDIS-SRIOV §11.6): releases what every overlying driver still has, deletes the switch, and
    /// halts the driver. It is halted afterwards whatever failed on the way.
    pub fn halt(&mut self) -> ReleaseReport {
        let mut report = ReleaseReport::default();
        if self.state == AdapterState::Halted {
            return report;
        }
        for requester in self.requesters_with_objects() {
            self.release(&requester, &mut report);
        }
        if self.state == AdapterState::Running
            && let Some(switch) = self.cache.switch()
        {
            let parameters = NicSwitchDeleteSwitchParameters { switch_id: switch.switch_id };
            let completion = self.ndis_request(
                Oid::NicSwitchDeleteSwitch,
                RequestKind::Set,
                &parameters.emit(),
                0,
            );
            report.add(Oid::NicSwitchDeleteSwitch, completion);
        }
        self.stop_miniport();
        report
    }

    /// An overlying driver unbinds: everything that it still has is released, in the order filters, VPorts, VFs
    /// (which are reset first). Nobody else's objects are touched.
    pub fn unbind(&mut self, owner: &DriverName) -> ReleaseReport {
        let mut report = ReleaseReport::default();
        self.release(&Requester::Overlying(owner.clone()), &mut report);
        report
    }

    /// The card is gone: from here on requests are refused, and nothing reaches hardware. Objects are forgotten when
    /// their owners unbind, or when the adapter is halted.
    pub fn surprise_removed(&mut self) {
        if self.state == AdapterState::Running {
            self.state = AdapterState::Removed;
            self.miniport.surprise_removed();
            tracing::warn!("adapter removed by surprise");
        }
    }

    /// Asks the driver for its capabilities again, after they changed, and indicates those that did.
    ///
    /// # Errors
    /// [`CapabilityFault`] if the new ones cannot be; the old ones stay.
    pub fn refresh_capabilities(&mut self) -> Result<(), CapabilityFault> {
        let hardware = HardwareCapabilities::of(&self.miniport);
        hardware.check()?;
        let old_hardware = std::mem::replace(&mut self.hardware, hardware);
        let old_current = self.current;
        if self.state == AdapterState::Running && hardware.does_sriov() {
            let num_vfs = self.cache.switch().map_or(0, |switch| u32::from(switch.num_vfs));
            self.current = CurrentCapabilities::derive(
                &hardware,
                self.features,
                &self.configuration.keywords,
                num_vfs,
            );
        }
        if hardware.nic_switch != old_hardware.nic_switch {
            self.indicate(StatusIndication::NicSwitchHardwareCapabilities(hardware.nic_switch));
        }
        let nic_switch = self.current.map(|current| current.nic_switch);
        if nic_switch != old_current.map(|current| current.nic_switch) {
            self.indicate(StatusIndication::NicSwitchCurrentCapabilities(nic_switch));
        }
        if hardware.receive_filter != old_hardware.receive_filter {
            let capabilities = hardware.receive_filter;
            self.indicate(StatusIndication::ReceiveFilterHardwareCapabilities(capabilities));
        }
        let receive_filter = self.current.map(|current| current.receive_filter);
        if receive_filter != old_current.map(|current| current.receive_filter) {
            self.indicate(StatusIndication::ReceiveFilterCurrentCapabilities(receive_filter));
        }
        Ok(())
    }

    /// Indicates a status to the overlying drivers, unchanged.
    pub fn indicate_status(&mut self, code: IndicationCode, buffer: Vec<u8>) {
        self.indicate(StatusIndication::Other { code, buffer });
    }

    fn indicate(&mut self, indication: StatusIndication) {
        tracing::info!(code = %indication.code(), "status indicated");
        self.subscribers.tell(&NdisEvent::StatusIndicated(indication));
    }

    fn stop_miniport(&mut self) {
        self.miniport.halt();
        self.state = AdapterState::Halted;
        self.features = ActiveFeatures::default();
        self.current = None;
        self.cache = Cache::default();
        tracing::info!("adapter halted");
    }

    /// Everyone who has an object, the default VPort aside.
    fn requesters_with_objects(&self) -> Vec<Requester> {
        let filters = self.cache.filters().map(|(_, record)| &record.setter);
        let vports = self.cache.vports().map(|(_, record)| &record.creator);
        let vfs = self.cache.vfs().map(|(_, record)| &record.allocator);
        let mut all: Vec<_> = filters
            .chain(vports)
            .chain(vfs)
            .filter(|requester| **requester != Requester::Ndis)
            .cloned()
            .collect();
        all.sort();
        all.dedup();
        all
    }

    fn release(&mut self, requester: &Requester, report: &mut ReleaseReport) {
        let filters: Vec<FilterId> = owned(self.cache.filters(), |r| r.setter == *requester);
        let vports: Vec<VPortId> = owned(self.cache.vports(), |r| {
            r.creator == *requester && !r.parameters.vport_id.is_default()
        });
        let vfs: Vec<VfId> = owned(self.cache.vfs(), |r| r.allocator == *requester);
        if self.state == AdapterState::Removed {
            // There is no hardware to release anything of.
            self.cache.filters.retain(|id, _| !filters.contains(id));
            self.cache.vports.retain(|id, _| !vports.contains(id));
            self.cache.vfs.retain(|id, _| !vfs.contains(id));
            return;
        }
        let mut set = |oid: Oid, input: Vec<u8>| {
            let completion = self.request(requester, oid.code(), RequestKind::Set, &input, 0);
            report.add(oid, completion);
        };
        for filter in filters {
            let clear = ReceiveFilterClearParameters { queue_id: 0, filter_id: Some(filter) };
            set(Oid::ReceiveFilterClearFilter, clear.emit());
        }
        for vport_id in vports {
            let delete = NicSwitchDeleteVPortParameters { vport_id };
            set(Oid::NicSwitchDeleteVport, delete.emit());
        }
        for vf_id in vfs {
            set(Oid::SriovResetVf, SriovResetVf { vf_id }.emit());
            set(Oid::NicSwitchFreeVf, NicSwitchFreeVfParameters { vf_id }.emit());
        }
    }
}

/// The ids of the records that satisfy a condition.
fn owned<'a, Id, R: 'a>(
    records: impl Iterator<Item = (Id, &'a R)>,
    condition: impl Fn(&R) -> bool,
) -> Vec<Id> {
    records.filter(|(_, record)| condition(record)).map(|(id, _)| id).collect()
}

impl ReleaseReport {
    /// Whether everything was released.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    fn add(&mut self, oid: Oid, completion: OidCompletion) {
        match completion.refusal {
            Some(refusal) => {
                tracing::warn!(%oid, %refusal, "could not be released");
                self.failures.push((oid, refusal));
            }
            None => self.released += 1,
        }
    }
}
