//! What each client has not been told: levels, of each object the latest, so that a client that does not ask costs no more
//! than one that does.
//!
//! For every host side of a VM that serves [`crate::control`].

use std::collections::BTreeMap;

use device_control::{ClientId, Completion, PendingRequest, Request, RequestId};
use pcivirt_protocol::NtStatus;

use crate::control::{
    DeviceName, DeviceState, GuestState, MAX_ADAPTERS, MAX_CAUSE_LENGTH, MAX_DEVICES,
    REPORT_CAPACITY, SyntheticNicState, WorkerReport,
};

/// Devices that one client is behind with, at most: beyond, it misses what is over.
const MAX_UNTOLD: usize = 4 * MAX_DEVICES;

/// Number of a guest's first life under a host side that begins now: nanoseconds since the machine was started, of which a
/// guest needs more than one to begin anew. So no later host side on this machine has one that is not greater.
pub fn first_life() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Reports, for all clients.
#[derive(Default, Debug)]
pub struct Reports {
    clients: BTreeMap<ClientId, Untold>,
}

#[derive(Default, Debug)]
struct Untold {
    guest: Option<(GuestState, u64)>,
    /// The latest state of each synthetic NIC that is news.
    synthetic_nics: BTreeMap<u32, SyntheticNicState>,
    /// The latest state of each device that is news.
    devices: BTreeMap<DeviceName, DeviceState>,
    /// NEXT_REPORT that waits for news.
    waiting: Option<PendingRequest>,
}

impl Reports {
    /// A client comes, and is told of all that is there: of the guest and the life that it is in, of the devices, and of
    /// the synthetic NICs that no switch tells of.
    pub fn connected(
        &mut self,
        client: ClientId,
        guest: (GuestState, u64),
        devices: impl IntoIterator<Item = (DeviceName, DeviceState)>,
        synthetic_nics: impl IntoIterator<Item = (u32, SyntheticNicState)>,
    ) {
        let devices = devices.into_iter().filter(|(_, state)| *state != DeviceState::Opening);
        let untold = Untold {
            guest: Some(guest),
            synthetic_nics: synthetic_nics.into_iter().take(MAX_ADAPTERS).collect(),
            devices: devices.map(|(name, state)| (name, sayable(state))).collect(),
            waiting: None,
        };
        self.clients.insert(client, untold);
    }

    /// A client goes.
    pub fn disconnected(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// A client asks for the next report.
    pub fn ask(&mut self, client: ClientId, request: Request) {
        let Some(untold) = self.clients.get_mut(&client) else { return };
        if untold.waiting.is_some() {
            request.complete(NtStatus::DEVICE_BUSY);
            return;
        }
        if request.output_capacity < REPORT_CAPACITY {
            request.complete(Completion::too_small(REPORT_CAPACITY));
            return;
        }
        untold.waiting = Some(request.pend());
        untold.tell();
    }

    /// A client gives its request up.
    pub fn cancel(&mut self, client: ClientId, id: RequestId) {
        let Some(untold) = self.clients.get_mut(&client) else { return };
        if let Some(request) = untold.waiting.take_if(|request| request.id() == id) {
            let _ = request.complete(NtStatus::CANCELLED);
        }
    }

    /// The guest's state is this now, in this life.
    pub fn guest(&mut self, state: GuestState, life: u64) {
        for untold in self.clients.values_mut() {
            untold.guest = Some((state, life));
            untold.tell();
        }
    }

    /// The state of a synthetic NIC that no switch tells of is this now.
    pub fn synthetic_nic(&mut self, adapter: u32, state: SyntheticNicState) {
        for untold in self.clients.values_mut() {
            untold.synthetic_nics.insert(adapter, state);
            if untold.synthetic_nics.len() > MAX_ADAPTERS {
                untold.synthetic_nics.pop_last();
            }
            untold.tell();
        }
    }

    /// A device's state is this now.
    pub fn device(&mut self, name: DeviceName, state: DeviceState) {
        let state = sayable(state);
        for untold in self.clients.values_mut() {
            untold.device(name, state.clone());
        }
    }

    /// The same, to one client.
    pub fn device_to(&mut self, client: ClientId, name: DeviceName, state: DeviceState) {
        if let Some(untold) = self.clients.get_mut(&client) {
            untold.device(name, sayable(state));
        }
    }
}

/// What is said of a device, of a length that a report has room for.
fn sayable(mut state: DeviceState) -> DeviceState {
    if let DeviceState::OfferFailed { cause: Some(cause), .. } = &mut state {
        let whole = |end: &usize| cause.is_char_boundary(*end);
        let end = (0..=MAX_CAUSE_LENGTH.min(cause.len())).rev().find(whole);
        cause.truncate(end.unwrap_or(0));
    }
    state
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

    fn next(&mut self) -> Option<WorkerReport> {
        if let Some((state, life)) = self.guest.take() {
            return Some(WorkerReport::Guest { state, life });
        }
        if let Some((adapter, state)) = self.synthetic_nics.pop_first() {
            return Some(WorkerReport::SyntheticNic { adapter, state });
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
                if request.complete(Completion::output(json, REPORT_CAPACITY)).is_err() {
                    // Nobody is there to be told anything any more.
                    tracing::debug!("a client left while it was told");
                }
            }
            None => self.waiting = Some(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientId = ClientId(1);

    fn told(reports: &mut Reports) -> Vec<WorkerReport> {
        let untold = reports.clients.get_mut(&CLIENT).unwrap();
        std::iter::from_fn(|| untold.next()).collect()
    }

    #[test]
    fn a_client_is_told_of_the_guest_then_its_nics_then_its_devices_and_of_each_what_is_new() {
        let device = DeviceName { adapter: 0, serial: 7 };
        let ready = SyntheticNicState::Ready { failover: true };
        let nic = |state| WorkerReport::SyntheticNic { adapter: 0, state };
        let of_device = |state| WorkerReport::Device { adapter: 0, serial: 7, state };
        let mut reports = Reports::default();
        let guest = (GuestState::Running, 1);
        reports.connected(CLIENT, guest, [(device, DeviceState::InUse)], [(0, ready)]);
        let running = WorkerReport::Guest { state: GuestState::Running, life: 1 };
        assert_eq!(told(&mut reports), [running, nic(ready), of_device(DeviceState::InUse)]);
        reports.device(device, DeviceState::Offered);
        reports.synthetic_nic(0, SyntheticNicState::Closed);
        reports.guest(GuestState::Reset, 2);
        // The same again is told again: something was in between.
        reports.synthetic_nic(0, ready);
        let reset = WorkerReport::Guest { state: GuestState::Reset, life: 2 };
        assert_eq!(told(&mut reports), [reset, nic(ready), of_device(DeviceState::Offered)]);
        assert_eq!(told(&mut reports), []);
    }

    #[test]
    fn a_client_that_does_not_ask_costs_no_more_the_longer_it_does_not() {
        let mut reports = Reports::default();
        reports.connected(CLIENT, (GuestState::Running, 1), [], []);
        for number in 0..100_000 {
            let device = DeviceName { adapter: 0, serial: number };
            reports.device(device, DeviceState::Removed);
            reports.synthetic_nic(number, SyntheticNicState::Closed);
        }
        assert_eq!(told(&mut reports).len(), 1 + MAX_ADAPTERS + MAX_UNTOLD);
    }

    #[test]
    fn the_longest_cause_is_told_whole_characters_of_it() {
        for text in ["\u{1}", "ä", "—", "🦀", "\"", "a"] {
            let cause = Some(text.repeat(MAX_CAUSE_LENGTH));
            let state = sayable(DeviceState::OfferFailed { status: u32::MAX, cause });
            let report =
                WorkerReport::Device { adapter: u32::MAX, serial: u32::MAX, state: state.clone() };
            let said = serde_json::to_vec(&report).unwrap();
            assert!(said.len() <= REPORT_CAPACITY, "{text:?}: {}", said.len());
            assert_eq!(serde_json::from_slice::<WorkerReport>(&said).unwrap(), report);
            let DeviceState::OfferFailed { cause: Some(cause), .. } = state else { panic!() };
            assert!(!cause.is_empty() && cause.chars().all(|c| text.contains(c)));
        }
    }
}
