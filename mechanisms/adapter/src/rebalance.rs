//! Rebalances that clients ask for: the PnP manager of a software adapter.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use device_control::{
    Client, ClientId, Completion, DriverName, PendingRequest, Request, RequestId,
};
use ndis::{Ndis, NdisSriovDevice};
use ndis_protocol::RequestorId;
use pcie_protocol::VfIndex;
use pcivirt_protocol::{NtStatus, SriovPfEvent};
use pf_driver::{PfDriver, Rebalance, pnp::PnpState};

use crate::{
    Adapter, AdapterMiniport,
    adapter::lock,
    control::{PnpPhase, PnpStatus, RebalanceOutcome},
    server::nt_status,
};

/// Runs rebalances, one at a time, each on a thread of its own: it waits for the client that is attached for as
/// long as that takes (the virtualization stack owns the timeout, SPEC-PCIVIRT §8.3).
pub(crate) struct Rebalancer {
    pf: Arc<PfDriver<NdisSriovDevice<AdapterMiniport>>>,
    ndis: Arc<Mutex<Ndis<AdapterMiniport>>>,
    adapter: Arc<Adapter>,
    /// Names of the clients that are connected.
    names: Mutex<BTreeMap<ClientId, DriverName>>,
    current: Mutex<Current>,
}

/// The rebalance that is under way, or was the last.
#[derive(Default)]
struct Current {
    busy: bool,
    /// Who waits to hear how it ends.
    request: Option<(ClientId, PendingRequest)>,
    thread: Option<JoinHandle<()>>,
}

impl Rebalancer {
    pub(crate) fn new(
        pf: Arc<PfDriver<NdisSriovDevice<AdapterMiniport>>>,
        ndis: Arc<Mutex<Ndis<AdapterMiniport>>>,
        adapter: Arc<Adapter>,
    ) -> Self {
        Self { pf, ndis, adapter, names: Mutex::default(), current: Mutex::default() }
    }

    pub(crate) fn connected(&self, client: &Client) {
        lock(&self.names).insert(client.id, client.name.clone());
    }

    pub(crate) fn disconnected(&self, client: &Client) {
        lock(&self.names).remove(&client.id);
    }

    /// Name of a client. One that has gone has none any more.
    fn name(&self, client: ClientId) -> String {
        let names = lock(&self.names);
        names.get(&client).map_or("a client that has gone".into(), ToString::to_string)
    }

    /// Begins a rebalance; the request is completed when it has ended.
    pub(crate) fn begin(self: &Arc<Self>, client: &Client, request: Request) {
        let mut current = lock(&self.current);
        if current.busy {
            drop(current);
            request.complete(NtStatus::DEVICE_BUSY);
            return;
        }
        current.busy = true;
        current.request = Some((client.id, request.pend()));
        // The last thread is done: all that it still does is to return.
        let this = Arc::clone(self);
        let thread = std::thread::Builder::new().name("rebalance".into()).spawn(move || this.run());
        match thread {
            Ok(thread) => current.thread = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "no thread for a rebalance");
                drop(current);
                self.end(Completion::status(NtStatus::INSUFFICIENT_RESOURCES));
            }
        }
    }

    /// Gives up waiting for the end of a rebalance, which goes on: whoever is asked still has to answer.
    pub(crate) fn cancel(&self, client: &Client, id: RequestId) {
        let mut current = lock(&self.current);
        let asked =
            |(by, request): &mut (ClientId, PendingRequest)| *by == client.id && request.id() == id;
        let request = current.request.take_if(asked);
        drop(current);
        if let Some((_, request)) = request {
            // If its client has gone, nobody misses it.
            let _ = request.complete(NtStatus::CANCELLED);
        }
    }

    fn run(&self) {
        let start = Instant::now();
        let mut changed = Ok(());
        let rebalance = self.pf.rebalance(|| changed = self.change());
        let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let outcome = match (rebalance, changed) {
            (Rebalance::Failed(status), _) | (_, Err(status)) => Err(status),
            (Rebalance::Done { asked }, Ok(())) => Ok(RebalanceOutcome::Done {
                asked: asked.map(|client| self.name(client)),
                bus: self.adapter.pci().location().routing_id.bus(),
                milliseconds,
            }),
            (Rebalance::Vetoed { by, status }, Ok(())) => Ok(RebalanceOutcome::Vetoed {
                by: self.name(by),
                status: status.to_string(),
                milliseconds,
            }),
        };
        tracing::info!(?outcome, "a rebalance has ended");
        let completion = match outcome
            .and_then(|outcome| serde_json::to_vec(&outcome).map_err(|_| NtStatus::UNSUCCESSFUL))
        {
            Ok(output) => {
                let length = output.len();
                Completion::output(output, length)
            }
            Err(status) => Completion::status(status),
        };
        self.end(completion);
    }

    /// Between stop and start: no OID is under way, and none sees half of it.
    fn change(&self) -> Result<(), NtStatus> {
        let mut ndis = lock(&self.ndis);
        self.adapter.change_resources().map_err(|error| {
            tracing::warn!(%error, "the PF cannot be given other resources");
            nt_status(&error)
        })?;
        let pci = self.adapter.pci();
        ndis.vfs_moved(|vf| {
            let location = pci.vf_location(VfIndex::from(vf.get())).ok()?;
            let id = location.routing_id;
            RequestorId::new(location.segment, id.bus(), id.device_function())
        });
        Ok(())
    }

    fn end(&self, completion: Completion) {
        let mut current = lock(&self.current);
        current.busy = false;
        let request = current.request.take();
        drop(current);
        if let Some((_, request)) = request {
            let _ = request.complete(completion);
        }
    }

    /// Waits for the thread. The PF driver must have been removed, so that it waits for nobody.
    pub(crate) fn join(&self) {
        let thread = lock(&self.current).thread.take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a rebalance had panicked");
        }
    }

    /// The PF driver, for reports.
    pub(crate) fn status(&self) -> PnpStatus {
        let state = self.pf.pnp_state();
        let phase = match (state.waits_for(), state) {
            _ if state.is_removed() => PnpPhase::Removed,
            (Some(SriovPfEvent::QUERY_STOP_DEVICE), _) => PnpPhase::AskingToStop,
            (Some(SriovPfEvent::RESTART), _) => PnpPhase::AnnouncingRestart,
            (Some(_), _) => PnpPhase::AskingToRemove,
            (None, PnpState::DetachedStopped | PnpState::AttachedStopped(_)) => PnpPhase::Stopped,
            (None, _) => PnpPhase::Running,
        };
        let client = state.subscriber().map(|subscriber| self.name(subscriber.client));
        PnpStatus { phase, client }
    }
}
