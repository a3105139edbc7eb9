//! The PF driver around a device: state that its requests share, and the PnP thread that must wait.

use crate::invalidation::Invalidations;
use crate::mitigation::RangeUpdates;
use crate::pnp::{Effect, PnpEvent, PnpMachine, PnpState, RequestKey};
use crate::{SriovDevice, front};
use device_control_protocol::{CallbackCode, ClientId, Completion, RequestId};
use pcivirt_protocol::{
    NtStatus, SriovInvalidateBlock, SriovMitigatedRangeUpdateOutput, SriovPfEvent, VfIndex,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zerocopy::IntoBytes;

/// How a request is completed: called exactly once, from any thread, and must neither block nor call the driver back.
/// It hands the completion back if there is nobody any more to receive it.
pub type CompleteRequest = Box<dyn FnOnce(Completion) -> Result<(), Completion> + Send>;

/// How often a PnP thread that waits says so in the log.
const WAIT_REPORT: Duration = Duration::from_secs(10);

/// The PF driver of one device: everything in the contract that is the same for every device.
///
/// # Lifecycle
///
/// Whoever owns the device calls the PnP methods ([`PfDriver::query_stop`] to [`PfDriver::remove`]), each on a thread that
/// may block, one at a time; [`PfDriver::surprise_removal`] and [`PfDriver::remove`] may interrupt another that waits.
/// Whoever carries requests calls [`PfDriver::ioctl`], [`PfDriver::cancel`] and [`PfDriver::callback`], from any thread, and
/// reports with [`PfDriver::client_gone`] each client that left, after its last request. The device itself calls
/// [`PfDriver::invalidate_block`] and its like, from any thread and under any lock of its own.
///
/// No method of the device is called while a lock of this driver is held.
pub struct PfDriver<D: ?Sized> {
    pub(crate) state: Mutex<State>,
    pub(crate) device: Arc<D>,
}

/// Contended by the threads that carry requests, the PnP thread and the device; held for short, bounded work only.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) pnp: PnpMachine,
    pub(crate) invalidations: Invalidations,
    pub(crate) range_updates: RangeUpdates,
    /// The requests that `pnp`, `invalidations` and `range_updates` hold, with the way to complete them.
    pub(crate) pending: BTreeMap<RequestKey, CompleteRequest>,
    /// The PnP thread that waits.
    waiter: Option<Arc<Waiter>>,
    /// References on the function tables that each client holds.
    references: BTreeMap<ClientId, u32>,
    /// NumVFs as of the last request: the device is not asked while the lock is held.
    pub(crate) num_vfs: u16,
}

/// Where a PnP thread waits (SPEC-PCIVIRT §8.1, UnblockEvent and EventStatus).
#[derive(Default)]
struct Waiter {
    status: Mutex<Option<NtStatus>>,
    freed: Condvar,
}

impl Waiter {
    fn free(&self, status: NtStatus) {
        *lock(&self.status) = Some(status);
        self.freed.notify_all();
    }

    /// Waits without a limit, as the contract demands: the stack owns the timeout (SPEC-PCIVIRT §8.3), and a stack that
    /// dies is detached. Says so now and then.
    fn wait(&self, event: SriovPfEvent, client: Option<ClientId>) -> NtStatus {
        let mut status = lock(&self.status);
        let mut waited = Duration::ZERO;
        loop {
            if let Some(status) = *status {
                return status;
            }
            let (guard, timeout) = self
                .freed
                .wait_timeout(status, WAIT_REPORT)
                .unwrap_or_else(PoisonError::into_inner);
            status = guard;
            if timeout.timed_out() {
                waited += WAIT_REPORT;
                let client = client.map(|client| client.0);
                tracing::warn!(%event, client, ?waited, "the client has not completed the event");
            }
        }
    }
}

/// What a step under the lock leaves to be done after it.
#[derive(Default)]
pub(crate) struct Finish {
    completions: Vec<(CompleteRequest, Completion, Undelivered)>,
    release: Option<(Arc<Waiter>, NtStatus)>,
}

/// What must not get lost if nobody receives a completion.
enum Undelivered {
    Forget,
    Invalidation(SriovInvalidateBlock),
    RangeUpdate(VfIndex),
}

/// What came of a PnP request.
pub(crate) struct Answered {
    pub(crate) status: NtStatus,
    /// The client that was waited for.
    pub(crate) asked: Option<ClientId>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(crate) fn complete(
        &mut self,
        request: RequestKey,
        completion: impl Into<Completion>,
        finish: &mut Finish,
    ) {
        if let Some(complete) = self.pending.remove(&request) {
            finish.completions.push((complete, completion.into(), Undelivered::Forget));
        }
    }

    /// One event of the PnP machine, and the bookkeeping its effects ask for.
    pub(crate) fn step(&mut self, event: PnpEvent, finish: &mut Finish) -> NtStatus {
        let outcome = self.pnp.step(event);
        for effect in outcome.effects {
            match effect {
                Effect::Complete { request, status } => self.complete(request, status, finish),
                Effect::Notify { request, event } => {
                    let output = event.as_bytes();
                    self.complete(request, Completion::output(output, output.len()), finish);
                }
                Effect::ReleasePnp { status } => {
                    finish.release = self.waiter.take().map(|waiter| (waiter, status));
                }
            }
        }
        if self.pnp.state().is_removed() {
            // SPEC-PCIVIRT §3.6: cancelled on removal.
            let mut gone = self.invalidations.clear();
            gone.extend(self.range_updates.clear());
            for request in gone {
                self.complete(request, NtStatus::CANCELLED, finish);
            }
        }
        outcome.answer
    }

    /// Completes the long polls that have something to tell.
    pub(crate) fn settle_polls(&mut self, finish: &mut Finish) {
        for (request, block) in self.invalidations.take_ready(self.num_vfs) {
            if let Some(complete) = self.pending.remove(&request) {
                let output = block.as_bytes();
                let completion = Completion::output(output, output.len());
                finish.completions.push((complete, completion, Undelivered::Invalidation(block)));
            }
        }
        for (request, vf) in self.range_updates.take_ready() {
            if let Some(complete) = self.pending.remove(&request) {
                let output = SriovMitigatedRangeUpdateOutput { vf_index: vf };
                let completion = Completion::output(output.as_bytes(), size_of_val(&output));
                finish.completions.push((complete, completion, Undelivered::RangeUpdate(vf)));
            }
        }
    }
}

impl<D: SriovDevice + ?Sized> PfDriver<D> {
    /// A driver for a device that runs.
    pub fn new(device: Arc<D>) -> Self {
        Self { state: Mutex::default(), device }
    }

    /// The device.
    pub const fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// State of the PnP machine at this moment.
    pub fn pnp_state(&self) -> PnpState {
        lock(&self.state).pnp.state()
    }

    /// References on the function tables that clients hold (SPEC-PCIVIRT §4.4).
    pub fn references(&self) -> u64 {
        lock(&self.state).references.values().map(|count| u64::from(*count)).sum()
    }

    /// IRP_MN_QUERY_STOP_DEVICE: asks the subscriber whether the device may stop for a rebalance, and waits for its answer.
    /// After an error (a veto) the device must not be stopped, and [`PfDriver::cancel_stop`] must follow.
    pub fn query_stop(&self) -> NtStatus {
        self.pnp(PnpEvent::QueryStop).status
    }

    /// IRP_MN_STOP_DEVICE: after an allowed [`PfDriver::query_stop`].
    pub fn stop(&self) -> NtStatus {
        self.pnp(PnpEvent::Stop).status
    }

    /// IRP_MN_CANCEL_STOP_DEVICE: the stop is called off. Tells the subscriber, and waits until it has taken notice.
    pub fn cancel_stop(&self) -> NtStatus {
        self.pnp(PnpEvent::CancelStop).status
    }

    /// IRP_MN_START_DEVICE, to be called when the lower drivers have completed it. After a stop it tells the subscriber, and
    /// waits until it has taken notice.
    pub fn start(&self) -> NtStatus {
        self.pnp(PnpEvent::Start).status
    }

    /// IRP_MN_QUERY_REMOVE_DEVICE: asks a subscriber that wants removal events whether the device may be removed, and
    /// waits for its answer. An error is a veto.
    pub fn query_remove(&self) -> NtStatus {
        self.pnp(PnpEvent::QueryRemove).status
    }

    /// IRP_MN_CANCEL_REMOVE_DEVICE: the removal is called off.
    pub fn cancel_remove(&self) -> NtStatus {
        self.pnp(PnpEvent::CancelRemove).status
    }

    /// IRP_MN_SURPRISE_REMOVAL: the device is gone. Nobody is asked and nobody waited for: pending requests end, a PnP
    /// thread that waits goes on with STATUS_DEVICE_REMOVED, and from now on callbacks are answered with it.
    pub fn surprise_removal(&self) -> NtStatus {
        self.pnp(PnpEvent::SurpriseRemoval).status
    }

    /// IRP_MN_REMOVE_DEVICE, or the driver is unloaded: like a surprise removal, and final.
    pub fn remove(&self) -> NtStatus {
        self.pnp(PnpEvent::Remove).status
    }

    /// Raise and wait (SPEC-PCIVIRT §8.3).
    pub(crate) fn pnp(&self, event: PnpEvent) -> Answered {
        let mut finish = Finish::default();
        let mut state = lock(&self.state);
        let answer = state.step(event, &mut finish);
        let now = state.pnp.state();
        let waiter = (answer == NtStatus::PENDING).then(|| {
            let waiter = Arc::<Waiter>::default();
            state.waiter = Some(Arc::clone(&waiter));
            waiter
        });
        drop(state);
        tracing::info!(?event, %answer, state = ?now, "PnP request");
        self.finish(finish);
        match (waiter, now.waits_for()) {
            (Some(waiter), Some(event)) => {
                let asked = now.subscriber().map(|subscriber| subscriber.client);
                Answered { status: waiter.wait(event, asked), asked }
            }
            _ => Answered { status: answer, asked: None },
        }
    }

    /// A configuration block that the VF's driver has read is stale: bit n of `block_mask` is block id n. Masks of several
    /// calls are ORed until the stack asks (SPEC-PCIVIRT §3.6). What a stack was told just before it died is not told
    /// again: a stack that starts reads all blocks.
    pub fn invalidate_block(&self, vf: VfIndex, block_mask: u64) {
        self.invalidate(SriovInvalidateBlock::of_vf(vf, block_mask));
    }

    /// The same for every VF.
    pub fn invalidate_block_of_all_vfs(&self, block_mask: u64) {
        self.invalidate(SriovInvalidateBlock::of_all_vfs(block_mask));
    }

    fn invalidate(&self, block: SriovInvalidateBlock) {
        self.tell(|state| state.invalidations.invalidate(block));
    }

    /// The mitigated ranges of a VF have changed: the stack has to ask for them again (SPEC-PCIVIRT §6).
    pub fn mitigated_ranges_changed(&self, vf: VfIndex) {
        self.tell(|state| state.range_updates.changed(vf));
    }

    /// A VF is not there any more, or belongs to somebody else from now on: what has not been told of it is forgotten, and
    /// requests that wait for it alone are cancelled.
    pub fn forget_vf(&self, vf: VfIndex) {
        let mut finish = Finish::default();
        let mut state = lock(&self.state);
        let mut gone = state.invalidations.forget_vf(vf);
        gone.extend(state.range_updates.forget_vf(vf));
        for request in gone {
            state.complete(request, NtStatus::CANCELLED, &mut finish);
        }
        drop(state);
        self.finish(finish);
    }

    fn tell(&self, what: impl FnOnce(&mut State)) {
        let mut finish = Finish::default();
        let mut state = lock(&self.state);
        if !state.pnp.state().is_removed() {
            what(&mut state);
            state.settle_polls(&mut finish);
        }
        drop(state);
        self.finish(finish);
    }

    /// Does what a step left to be done. No lock is held.
    pub(crate) fn finish(&self, finish: Finish) {
        if let Some((waiter, status)) = finish.release {
            waiter.free(status);
        }
        for (complete, completion, undelivered) in finish.completions {
            if complete(completion).is_err() {
                // Its client is gone. Each round of this uses up a pending request, so it ends.
                match undelivered {
                    Undelivered::Forget => {}
                    Undelivered::Invalidation(block) => self.invalidate(block),
                    Undelivered::RangeUpdate(vf) => self.mitigated_ranges_changed(vf),
                }
            }
        }
    }

    /// Gives up a request of a client. If it is pending it is completed with STATUS_CANCELLED; if not, it has been
    /// completed or is about to be.
    pub fn cancel(&self, client: ClientId, id: RequestId) {
        let request = RequestKey { client, id };
        let mut finish = Finish::default();
        let mut state = lock(&self.state);
        state.step(PnpEvent::Cancel { request }, &mut finish);
        if state.invalidations.cancel(request) || state.range_updates.cancel(request) {
            state.complete(request, NtStatus::CANCELLED, &mut finish);
        }
        drop(state);
        self.finish(finish);
    }

    /// A client has gone, whether it detached before or not: its pending requests are cancelled, its subscription ends and
    /// its references are given back.
    pub fn client_gone(&self, client: ClientId) {
        let mut finish = Finish::default();
        let mut state = lock(&self.state);
        state.step(PnpEvent::ClientGone { client }, &mut finish);
        let mut gone = state.invalidations.cancel_client(client);
        gone.extend(state.range_updates.cancel_client(client));
        for request in gone {
            state.complete(request, NtStatus::CANCELLED, &mut finish);
        }
        state.references.remove(&client);
        drop(state);
        self.finish(finish);
    }

    /// Runs an interface callback: `code` is a [`CallbackCode`], `input` its arguments (see the table of
    /// `device_control_protocol`), `output_capacity` the room for its output in bytes.
    pub fn callback(
        &self,
        client: ClientId,
        code: u32,
        input: &[u8],
        output_capacity: usize,
    ) -> Completion {
        let Some(callback) = CallbackCode::from_u32(code) else {
            return NtStatus::INVALID_DEVICE_REQUEST.into();
        };
        match callback {
            // A table can be given back after the device is gone.
            CallbackCode::InterfaceDereference | CallbackCode::MitigableInterfaceDereference => {
                return NtStatus::of(&self.dereference(client)).into();
            }
            _ if self.pnp_state().is_removed() => return NtStatus::DEVICE_REMOVED.into(),
            _ => {}
        }
        match callback {
            CallbackCode::QueryInterface => {
                let table = match front::interface_table(&*self.device, input) {
                    Ok(table) if table.len() > output_capacity => {
                        return Completion::too_small(table.len());
                    }
                    Ok(table) => table,
                    Err(status) => return status.into(),
                };
                match self.reference(client) {
                    Ok(()) => Completion::output(table, output_capacity),
                    Err(status) => status.into(),
                }
            }
            CallbackCode::InterfaceReference => NtStatus::of(&self.reference(client)).into(),
            CallbackCode::MitigableInterfaceReference if self.device.mitigable().is_some() => {
                NtStatus::of(&self.reference(client)).into()
            }
            other => front::call(&*self.device, other, input, output_capacity),
        }
    }

    fn reference(&self, client: ClientId) -> Result<(), NtStatus> {
        let mut state = lock(&self.state);
        let count = state.references.entry(client).or_default();
        *count = count.checked_add(1).ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
        Ok(())
    }

    fn dereference(&self, client: ClientId) -> Result<(), NtStatus> {
        let mut state = lock(&self.state);
        let count = state.references.get_mut(&client).ok_or(NtStatus::INVALID_DEVICE_STATE)?;
        *count = count.saturating_sub(1);
        if *count == 0 {
            state.references.remove(&client);
        }
        Ok(())
    }
}
