//! What each client has not been told.

use std::collections::BTreeMap;

use device_control::{ClientId, Completion, PendingRequest, Request, RequestId};
use pcivirt_protocol::NtStatus;

use crate::control::{DeviceName, DeviceState, GuestState, WorkerReport};

/// Devices that one client is behind with, at most: beyond, it misses what is over.
const MAX_UNTOLD: usize = 4 * crate::control::MAX_DEVICES;

/// Reports, for all clients.
#[derive(Default, Debug)]
pub(crate) struct Reports {
    clients: BTreeMap<ClientId, Untold>,
}

#[derive(Default, Debug)]
struct Untold {
    guest: Option<(GuestState, u64)>,
    /// The latest state of each device that is news.
    devices: BTreeMap<DeviceName, DeviceState>,
    /// NEXT_REPORT that waits for news.
    waiting: Option<PendingRequest>,
}

impl Untold {
    fn next(&mut self) -> Option<WorkerReport> {
        if let Some((state, life)) = self.guest.take() {
            return Some(WorkerReport::Guest { state, life });
        }
        let (name, state) = self.devices.pop_first()?;
        Some(WorkerReport::Device { adapter: name.adapter, serial: name.serial, state })
    }

    /// Completes the request that waits, if there is news.
    fn tell(&mut self) {
        let Some(request) = self.waiting.take() else { return };
        match self.next() {
            Some(report) => {
                let json = serde_json::to_vec(&report).unwrap_or_default();
                if request
                    .complete(Completion::output(json, crate::control::REPORT_CAPACITY))
                    .is_err()
                {
                    // Nobody is there to be told anything any more.
                    tracing::debug!("a client left while it was told");
                }
            }
            None => self.waiting = Some(request),
        }
    }
}

impl Reports {
    /// A client comes, and is told of all that is there.
    pub(crate) fn connected(
        &mut self,
        client: ClientId,
        guest: (GuestState, u64),
        devices: impl IntoIterator<Item = (DeviceName, DeviceState)>,
    ) {
        let devices = devices.into_iter().filter(|(_, state)| *state != DeviceState::Opening);
        let untold = Untold { guest: Some(guest), devices: devices.collect(), waiting: None };
        self.clients.insert(client, untold);
    }

    /// A client goes.
    pub(crate) fn disconnected(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// A client asks for the next report.
    pub(crate) fn ask(&mut self, client: ClientId, request: Request) {
        let Some(untold) = self.clients.get_mut(&client) else { return };
        if untold.waiting.is_some() {
            request.complete(NtStatus::DEVICE_BUSY);
            return;
        }
        if request.output_capacity < crate::control::REPORT_CAPACITY {
            request.complete(Completion::too_small(crate::control::REPORT_CAPACITY));
            return;
        }
        untold.waiting = Some(request.pend());
        untold.tell();
    }

    /// A client gives its request up.
    pub(crate) fn cancel(&mut self, client: ClientId, id: RequestId) {
        let Some(untold) = self.clients.get_mut(&client) else { return };
        if let Some(request) = untold.waiting.take_if(|request| request.id() == id) {
            let _ = request.complete(NtStatus::CANCELLED);
        }
    }

    /// The guest's state is this now, in this life.
    pub(crate) fn guest(&mut self, state: GuestState, life: u64) {
        for untold in self.clients.values_mut() {
            untold.guest = Some((state, life));
            untold.tell();
        }
    }

    /// A device's state is this now.
    pub(crate) fn device(&mut self, name: DeviceName, state: DeviceState) {
        for untold in self.clients.values_mut() {
            untold.device(name, state);
        }
    }

    /// The same, to one client.
    pub(crate) fn device_to(&mut self, client: ClientId, name: DeviceName, state: DeviceState) {
        if let Some(untold) = self.clients.get_mut(&client) {
            untold.device(name, state);
        }
    }
}

impl Untold {
    fn device(&mut self, name: DeviceName, state: DeviceState) {
        self.devices.insert(name, state);
        if self.devices.len() > MAX_UNTOLD {
            let over = |state: &DeviceState| {
                matches!(state, DeviceState::Removed | DeviceState::OfferFailed { .. })
            };
            let first = self.devices.iter().find(|(_, state)| over(state)).map(|(name, _)| *name);
            if let Some(name) = first {
                self.devices.remove(&name);
            }
        }
        self.tell();
    }
}
