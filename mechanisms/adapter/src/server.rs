//! The adapter behind its device control socket: OIDs go to NDIS, I/O controls and interface callbacks to the
//! PF driver contract, private controls to the adapter itself.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use avf_device::InterruptVectors;
use device_control::{
    Client, Completion, DeviceControlHandler, DeviceControlServer, DriverName, OidRequestKind,
    PfDriverHandler, Request, RequestId, ServerConfig, ServerError,
};
use ndis::{AdapterConfiguration, Ndis, NdisEvent, NdisSriovDevice, Requester, request_kind};
use ndis_protocol::{
    FunctionId, NdisStatus, NdisStructure, Oid, ReceiveFilterMoveFilterParameters, VPortId, VfId,
};
use nic_switch::VPortPolicy;
use pcivirt_protocol::{IoctlCode, NtStatus, VfIndex};
use pf_driver::{LuidGenerator, PfDriver};
use uplink::UplinkSpec;

use crate::{
    Adapter, AdapterConfig, AdapterError, AdapterMiniport, RequestError,
    adapter::lock,
    control::{
        AdapterStatus, FunctionStatus, NdisOid, PnpStatus, PrivateControl, SetVPortPolicy,
        UplinkStatus, VfNumber, VfStatus,
    },
    rebalance::Rebalancer,
    settle::{self, Settling},
    vf_reports::VfReports,
};

/// OIDs of NDIS itself that are kept for reports; callbacks of the PF driver contract make more.
const NDIS_OIDS: usize = 16;
/// Name of the device control socket in the adapter's folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// An error of starting an adapter with its control socket.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The adapter itself.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// NDIS could not start the PF miniport.
    #[error("NDIS cannot start the adapter")]
    Ndis(#[source] ndis::StartError),
    /// The control socket.
    #[error("the device control socket cannot be served")]
    Control(#[source] ServerError),
    /// A thread.
    #[error("a thread for filters that move, or for reports, cannot be started")]
    Thread(#[source] std::io::Error),
    /// The name.
    #[error("{0:?} is not a name for an adapter: 1 to 64 printable characters without spaces")]
    Name(String),
}

/// A running adapter: NIC, NDIS and device control. Dropping it halts the adapter and removes its sockets.
pub struct AdapterServer {
    control: Option<DeviceControlServer>,
    pf: Arc<PfDriver<NdisSriovDevice<AdapterMiniport>>>,
    rebalancer: Arc<Rebalancer>,
    ndis: Arc<Mutex<Ndis<AdapterMiniport>>>,
    adapter: Arc<Adapter>,
    shutdown: crossbeam_channel::Receiver<()>,
}

impl AdapterServer {
    /// Powers the adapter on, lets NDIS start it, and serves device control.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(
        config: AdapterConfig,
        configuration: AdapterConfiguration,
    ) -> Result<Self, StartError> {
        let name =
            DriverName::new(&config.name).map_err(|_| StartError::Name(config.name.clone()))?;
        let path = control_socket(&config.directory);
        let adapter = Arc::new(Adapter::start(config)?);
        let mut luids = LuidGenerator::new();
        let luid = luids.allocate();
        let miniport = AdapterMiniport::new(Arc::clone(&adapter), luid);
        let mut ndis = Ndis::new(miniport, configuration);
        let issued = Arc::<Mutex<Vec<NdisOid>>>::default();
        ndis.subscribe(note_ndis_oids(Arc::clone(&issued)));
        ndis.start().map_err(StartError::Ndis)?;
        let ndis = Arc::new(Mutex::new(ndis));
        let device = Arc::new(NdisSriovDevice::new(Arc::clone(&ndis), &mut luids));
        let (ask, shutdown) = crossbeam_channel::bounded(1);
        let pf = Arc::new(PfDriver::new(device));
        lock(&ndis).subscribe(tell_pf_driver(Arc::downgrade(&pf)));
        let rebalancer = Rebalancer::new(Arc::clone(&pf), Arc::clone(&ndis), Arc::clone(&adapter));
        let rebalancer = Arc::new(rebalancer);
        let handler = Handler {
            ndis: Arc::clone(&ndis),
            rebalancer: Arc::clone(&rebalancer),
            pf: PfDriverHandler::new(Arc::clone(&pf)),
            adapter: Arc::clone(&adapter),
            issued,
            shutdown: ask,
            settling: Settling::start(settle::LIMIT).map_err(StartError::Thread)?,
            vf_reports: VfReports::start(Arc::clone(adapter.drivers()))
                .map_err(StartError::Thread)?,
        };
        let control = DeviceControlServer::start(ServerConfig::new(path, name), Arc::new(handler))
            .map_err(StartError::Control)?;
        Ok(Self { control: Some(control), pf, rebalancer, ndis, adapter, shutdown })
    }

    /// The NIC.
    pub fn adapter(&self) -> &Arc<Adapter> {
        &self.adapter
    }

    /// Where device control is served.
    pub fn control_path(&self) -> Option<&Path> {
        self.control.as_ref().map(DeviceControlServer::path)
    }

    /// Becomes readable when a client has asked the adapter to end.
    pub fn shutdown_requested(&self) -> &crossbeam_channel::Receiver<()> {
        &self.shutdown
    }
}

impl Drop for AdapterServer {
    fn drop(&mut self) {
        // Subscribers hear that the device is gone, then nobody asks for anything any more, then the adapter
        // is halted in order.
        self.pf.remove();
        self.control = None;
        self.rebalancer.join();
        lock(&self.ndis).halt();
        // A connection that is just ending may still hold the adapter.
        self.adapter.close();
    }
}

/// An observer that writes down what NDIS itself issues. There are few: the switch, and at halt its end.
fn note_ndis_oids(issued: Arc<Mutex<Vec<NdisOid>>>) -> impl FnMut(&NdisEvent) + Send + 'static {
    let mut begun: Option<(u64, Instant)> = None;
    move |event| match event {
        NdisEvent::OidIssued { sequence, requester: Requester::Ndis, .. } => {
            begun = Some((*sequence, Instant::now()));
        }
        NdisEvent::OidCompleted { sequence, code, status, .. } => {
            let Some((_, start)) = begun.filter(|(number, _)| number == sequence) else { return };
            begun = None;
            let mut issued = lock(&issued);
            if issued.len() < NDIS_OIDS {
                issued.push(NdisOid {
                    name: ndis::oid_name(*code),
                    status: status.to_string(),
                    microseconds: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
                });
            }
        }
        _ => {}
    }
}

/// An observer that tells the PF driver contract what concerns it (SPEC-NDIS-SRIOV §8). A configuration block that an
/// overlying driver writes is news to the VF's driver; one that NDIS writes is what that driver has written itself.
fn tell_pf_driver(
    pf: Weak<PfDriver<NdisSriovDevice<AdapterMiniport>>>,
) -> impl FnMut(&NdisEvent) + Send + 'static {
    move |event| {
        let Some(pf) = pf.upgrade() else { return };
        match event {
            NdisEvent::ConfigBlockWritten {
                vf_id,
                block_id,
                requester: Requester::Overlying(_),
            } => {
                // Blocks beyond 63 cannot be named by a mask; the adapter has none.
                if let Some(mask) = 1u64.checked_shl(*block_id) {
                    pf.invalidate_block(VfIndex(vf_id.get()), mask);
                }
            }
            NdisEvent::VfFreed { vf_id } => pf.forget_vf(VfIndex(vf_id.get())),
            _ => {}
        }
    }
}

/// The device control socket of an adapter whose sockets are in `directory`.
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join(CONTROL_SOCKET)
}

struct Handler {
    ndis: Arc<Mutex<Ndis<AdapterMiniport>>>,
    rebalancer: Arc<Rebalancer>,
    pf: PfDriverHandler<NdisSriovDevice<AdapterMiniport>>,
    adapter: Arc<Adapter>,
    issued: Arc<Mutex<Vec<NdisOid>>>,
    shutdown: crossbeam_channel::Sender<()>,
    settling: Settling,
    vf_reports: VfReports,
}

impl DeviceControlHandler for Handler {
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        self.rebalancer.connected(client);
        self.vf_reports.connected(client);
        Ok(())
    }

    fn disconnected(&self, client: &Client) {
        self.pf.disconnected(client);
        self.rebalancer.disconnected(client);
        self.vf_reports.disconnected(client);
    }

    fn ioctl(&self, client: &Client, code: IoctlCode, request: Request) {
        self.pf.ioctl(client, code, request);
    }

    fn callback(&self, client: &Client, code: u32, request: Request) {
        self.pf.callback(client, code, request);
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        self.rebalancer.cancel(client, id);
        self.vf_reports.cancel(client, id);
        self.pf.cancel(client, id);
    }

    fn oid(&self, client: &Client, oid: u32, kind: OidRequestKind, request: Request) {
        let completion = lock(&self.ndis).oid_request(
            &client.name,
            oid,
            request_kind(kind),
            &request.input,
            request.output_capacity,
        );
        if let Some(refusal) = &completion.refusal {
            tracing::info!(client = %client.name, oid = %ndis::oid_name(oid), %refusal, "an OID was refused");
        }
        match self.left_vf(oid, &request.input).filter(|_| completion.status == NdisStatus::SUCCESS)
        {
            Some(vectors) => self.settling.wait(&vectors, move || request.complete(completion)),
            None => request.complete(completion),
        }
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        let done = match PrivateControl::from_code(code) {
            None => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
            Some(PrivateControl::Rebalance) => {
                self.rebalancer.begin(client, request);
                return;
            }
            Some(PrivateControl::NextVfReport) => {
                self.vf_reports.ask(client, request);
                return;
            }
            Some(control) => self.private_control(control, &request.input),
        };
        let completion = match done {
            Ok(output) => Completion::output(output, request.output_capacity),
            Err(Refused { status, cause }) => {
                tracing::warn!(%status, cause, "a private control failed");
                Completion::refused(status, &cause, request.output_capacity)
            }
        };
        request.complete(completion);
        if PrivateControl::from_code(code) == Some(PrivateControl::Shutdown) {
            // After the completion, so that its client hears of it. Full: somebody has asked already.
            let _ = self.shutdown.try_send(());
        }
    }
}

impl Handler {
    /// The interrupt vectors of the VF away from which an OID request moves a filter.
    fn left_vf(&self, oid: u32, input: &[u8]) -> Option<Arc<InterruptVectors>> {
        if Oid::from_code(oid) != Some(Oid::ReceiveFilterMoveFilter) {
            return None;
        }
        let moved = ReceiveFilterMoveFilterParameters::parse(input).ok()?;
        self.adapter.vf_interrupts(moved.source_vport_id)
    }

    fn private_control(&self, control: PrivateControl, input: &[u8]) -> Result<Vec<u8>, Refused> {
        match control {
            PrivateControl::Status => {
                let pnp = self.rebalancer.status();
                let mut status = self.adapter.status(pnp)?;
                status.ndis_oids.clone_from(&lock(&self.issued));
                Ok(serde_json::to_vec(&status).map_err(|_| NtStatus::UNSUCCESSFUL)?)
            }
            PrivateControl::SetUplink => {
                let text = std::str::from_utf8(input).map_err(|_| NtStatus::INVALID_PARAMETER)?;
                let spec = text.parse::<UplinkSpec>().map_err(|error| wrong(&error))?;
                self.adapter.set_uplink(&spec)?;
                Ok(Vec::new())
            }
            PrivateControl::SetVPortPolicy => {
                let change: SetVPortPolicy =
                    serde_json::from_slice(input).map_err(|error| wrong(&error))?;
                let (vport, policy) = policy(&change).ok_or(NtStatus::INVALID_PARAMETER)?;
                self.adapter.set_vport_policy(vport, policy)?;
                Ok(Vec::new())
            }
            PrivateControl::ResetVf => {
                let VfNumber { vf } =
                    serde_json::from_slice(input).map_err(|error| wrong(&error))?;
                let vf = VfId::new(vf).ok_or(NtStatus::INVALID_PARAMETER)?;
                self.adapter.pf_reset_vf(vf)?;
                Ok(Vec::new())
            }
            // Done once it is completed; and begun already.
            PrivateControl::Shutdown | PrivateControl::Rebalance | PrivateControl::NextVfReport => {
                Ok(Vec::new())
            }
        }
    }
}

/// A policy as the switch takes it; `None` if a number is out of range.
fn policy(change: &SetVPortPolicy) -> Option<(VPortId, VPortPolicy)> {
    let vport = VPortId::new(change.vport)?;
    let policy = VPortPolicy {
        allow_spoofing: change.allow_spoofing,
        allow_promiscuous: change.allow_promiscuous,
        vlan: change.vlan.policy()?,
    };
    Some((vport, policy))
}

/// A private control that failed, and why.
struct Refused {
    status: NtStatus,
    /// Empty where the status says it all.
    cause: String,
}

impl From<NtStatus> for Refused {
    fn from(status: NtStatus) -> Self {
        Self { status, cause: String::new() }
    }
}

impl From<RequestError> for Refused {
    fn from(error: RequestError) -> Self {
        Self { status: nt_status(&error), cause: in_words(&error) }
    }
}

/// Input that cannot be read.
fn wrong(error: &dyn Error) -> Refused {
    Refused { status: NtStatus::INVALID_PARAMETER, cause: in_words(error) }
}

/// An error with all that it was caused by.
fn in_words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Messages often end with their cause already.
        let cause = error.to_string();
        if !words.ends_with(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
        source = error.source();
    }
    words
}

pub(crate) fn nt_status(error: &RequestError) -> NtStatus {
    match error {
        RequestError::NoSuchVf(_) | RequestError::NoSuchVPort(_) => NtStatus::NOT_FOUND,
        RequestError::Adapter(AdapterError::DataPath(_)) => NtStatus::DEVICE_REMOVED,
        RequestError::Adapter(_) => NtStatus::INSUFFICIENT_RESOURCES,
        _ => NtStatus::INVALID_PARAMETER,
    }
}

impl Adapter {
    /// What the adapter is doing, for people and programs; `pnp` is what its PF driver does.
    pub fn status(&self, pnp: PnpStatus) -> Result<AdapterStatus, RequestError> {
        let (spec, last_error) = self.uplink_state()?;
        let function = |id| {
            Ok::<_, RequestError>(FunctionStatus {
                socket: self.socket(id).display().to_string(),
                connected: self.is_connected(id),
                stats: self.stats(id)?,
            })
        };
        let mut vfs = Vec::new();
        for vf in self.allocated_vfs() {
            vfs.push(VfStatus {
                vf: vf.id.get(),
                mac: vf.mac.to_string(),
                vport: vf.vport.map(VPortId::get),
                queue_pairs: vf.queue_pairs,
                driver: self.drivers().driver(vf.id),
                function: function(FunctionId::Vf(vf.id))?,
            });
        }
        Ok(AdapterStatus {
            name: self.config().name.clone(),
            num_vfs: self.pci().active_vfs(),
            ndis_oids: Vec::new(),
            pnp,
            uplink: UplinkStatus {
                spec,
                link_up: self.link_is_up(),
                last_error,
                replay_finished: self.replay_finished()?,
                stats: self.uplink_stats()?,
            },
            pf: function(FunctionId::Pf)?,
            vfs,
            copy_method: shared_memory::copy_method().to_owned(),
            data_path_slept_us: u64::try_from(self.data_path_slept().as_micros())
                .unwrap_or(u64::MAX),
        })
    }
}
