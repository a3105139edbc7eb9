//! Tells clients of device control what the drivers of VFs do ([`crate::control::PrivateControl::NextVfReport`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use device_control::{Client, ClientId, Completion, PendingRequest, Request, RequestId};
use ndis_protocol::VfId;
use pcivirt_protocol::NtStatus;

use crate::{
    adapter::lock,
    control::{VF_REPORT_CAPACITY, VfDriver, VfReport},
    vf_drivers::{Level, Version, VfDrivers},
};

/// Reports to all clients, and the thread that completes the requests that wait. It ends when this drops.
pub(crate) struct VfReports {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    drivers: Arc<VfDrivers>,
    clients: Mutex<BTreeMap<ClientId, Listener>>,
    ended: AtomicBool,
}

/// A client.
#[derive(Default)]
struct Listener {
    told: Told,
    /// NEXT_VF_REPORT that waits for news.
    waiting: Option<PendingRequest>,
}

/// What one client knows.
#[derive(Default)]
struct Told {
    /// Of each VF the state that it was told last.
    vfs: BTreeMap<VfId, Version>,
    /// The VF that it was told of last.
    last: Option<VfId>,
}

impl Told {
    /// Something that the client has not been told; it has been then. VFs take turns, so that one that changes all the
    /// time keeps no other from being told.
    fn next(&mut self, levels: &BTreeMap<VfId, Level>) -> Option<VfReport> {
        let all: BTreeSet<_> = self.vfs.keys().chain(levels.keys()).copied().collect();
        let (had, due): (Vec<_>, Vec<_>) = all.into_iter().partition(|vf| Some(*vf) <= self.last);
        let is_news = |vf: &VfId| self.vfs.get(vf) != levels.get(vf).map(|level| &level.version);
        let vf = due.into_iter().chain(had).find(is_news)?;
        self.last = Some(vf);
        let told = self.vfs.get(&vf).map(|told| told.life);
        let driver = match levels.get(&vf) {
            Some(Level { version, driver }) if told.is_none_or(|life| life == version.life) => {
                self.vfs.insert(vf, *version);
                driver.clone()
            }
            // Also if another one has its number by now, which is told next.
            _ => {
                self.vfs.remove(&vf);
                VfDriver::Gone
            }
        };
        Some(VfReport { vf: vf.get(), driver })
    }
}

impl Listener {
    /// Completes the request that waits, if there is news. Waits for nobody.
    fn tell(&mut self, levels: &BTreeMap<VfId, Level>) {
        let Some(request) = self.waiting.take() else { return };
        match self.told.next(levels) {
            Some(report) => {
                let json = serde_json::to_vec(&report).unwrap_or_default();
                if request.complete(Completion::output(json, VF_REPORT_CAPACITY)).is_err() {
                    // Nobody is there to be told anything any more.
                    tracing::debug!("a client left while it was told of a VF");
                }
            }
            None => self.waiting = Some(request),
        }
    }
}

impl Shared {
    /// Tells all clients that wait, whenever the bell rings.
    fn run(&self) {
        while self.drivers.bell().recv().is_ok() && !self.ended.load(Ordering::SeqCst) {
            let mut clients = lock(&self.clients);
            // Under the lock: no client is told of a state after a later one.
            let levels = self.drivers.levels();
            clients.values_mut().for_each(|listener| listener.tell(&levels));
        }
    }
}

impl VfReports {
    /// Starts the thread.
    pub(crate) fn start(drivers: Arc<VfDrivers>) -> std::io::Result<Self> {
        let ended = AtomicBool::new(false);
        let shared = Arc::new(Shared { drivers, clients: Mutex::default(), ended });
        let builder = std::thread::Builder::new().name("vf-reports".to_owned());
        let thread = builder.spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A client comes, and is to be told of all VFs that are there.
    pub(crate) fn connected(&self, client: &Client) {
        lock(&self.shared.clients).insert(client.id, Listener::default());
    }

    /// A client goes.
    pub(crate) fn disconnected(&self, client: &Client) {
        lock(&self.shared.clients).remove(&client.id);
    }

    /// A client asks for its next report.
    pub(crate) fn ask(&self, client: &Client, request: Request) {
        let mut clients = lock(&self.shared.clients);
        let Some(listener) = clients.get_mut(&client.id) else { return };
        if listener.waiting.is_some() {
            request.complete(NtStatus::DEVICE_BUSY);
        } else if request.output_capacity < VF_REPORT_CAPACITY {
            request.complete(Completion::too_small(VF_REPORT_CAPACITY));
        } else {
            listener.waiting = Some(request.pend());
            listener.tell(&self.shared.drivers.levels());
        }
    }

    /// A client gives its request up.
    pub(crate) fn cancel(&self, client: &Client, id: RequestId) {
        let mut clients = lock(&self.shared.clients);
        let Some(listener) = clients.get_mut(&client.id) else { return };
        if let Some(request) = listener.waiting.take_if(|request| request.id() == id) {
            let _ = request.complete(NtStatus::CANCELLED);
        }
    }
}

impl Drop for VfReports {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.drivers.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reports VFs had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use ndis_protocol::MacAddress;

    use super::*;
    use crate::{data_path::FunctionSlot, vf_drivers::DriverState};

    const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);

    fn vf(number: u16) -> VfId {
        VfId::new(number).unwrap()
    }

    fn running() -> VfDriver {
        VfDriver::Running { mac: MAC.to_string() }
    }

    /// What a client is told, until it knows all.
    fn all_news(told: &mut Told, drivers: &VfDrivers) -> Vec<(u16, VfDriver)> {
        let mut next = || told.next(&drivers.levels());
        let reports = std::iter::from_fn(|| next().map(|VfReport { vf, driver }| (vf, driver)));
        reports.take(100).collect()
    }

    fn with_vfs(count: u16) -> VfDrivers {
        let drivers = VfDrivers::new(8);
        (0..count).for_each(|number| drivers.allocated(vf(number), MAC));
        drivers
    }

    fn set_receiving(drivers: &VfDrivers, number: u16, receiving: bool) {
        drivers.set_receiving(FunctionSlot::vf(vf(number)), receiving);
    }

    #[test]
    fn who_comes_late_is_told_of_each_vf_as_it_is() {
        let drivers = with_vfs(3);
        drivers.say(vf(1), DriverState { begun: true, mac: MAC });
        set_receiving(&drivers, 2, true);
        drivers.allocated(vf(3), MAC);
        drivers.freed(vf(3));
        let mut told = Told::default();
        let all = [(0, VfDriver::Absent), (1, VfDriver::Present), (2, running())];
        assert_eq!(all_news(&mut told, &drivers), all);
        assert_eq!(told.next(&drivers.levels()), None);
    }

    #[test]
    fn of_many_changes_the_last_is_told_and_of_a_way_there_and_back_that_there_was_one() {
        let drivers = with_vfs(1);
        let mut told = Told::default();
        assert_eq!(all_news(&mut told, &drivers), [(0, VfDriver::Absent)]);
        for round in 0..5 {
            drivers.say(vf(0), DriverState { begun: true, mac: MAC });
            set_receiving(&drivers, 0, true);
            assert_eq!(all_news(&mut told, &drivers), [(0, running())], "{round}");
            set_receiving(&drivers, 0, false);
            drivers.say(vf(0), DriverState { begun: false, mac: MAC });
        }
        assert_eq!(all_news(&mut told, &drivers), [(0, VfDriver::Absent)]);
    }

    #[test]
    fn a_vf_that_is_freed_is_gone_once_also_when_its_number_is_in_use_again() {
        let drivers = with_vfs(2);
        let mut told = Told::default();
        set_receiving(&drivers, 1, true);
        assert_eq!(all_news(&mut told, &drivers), [(0, VfDriver::Absent), (1, running())]);
        for number in [0, 1] {
            set_receiving(&drivers, number, false);
            drivers.freed(vf(number));
        }
        drivers.allocated(vf(1), MAC);
        set_receiving(&drivers, 1, true);
        let news = [(0, VfDriver::Gone), (1, VfDriver::Gone), (1, running())];
        assert_eq!(all_news(&mut told, &drivers), news);
        drivers.freed(vf(1));
        assert_eq!(all_news(&mut told, &drivers), [(1, VfDriver::Gone)]);
    }

    #[test]
    fn a_vf_that_changes_all_the_time_leaves_the_others_their_turn() {
        let drivers = with_vfs(3);
        let mut told = Told::default();
        let mut numbers = Vec::new();
        for round in 0..6 {
            set_receiving(&drivers, 0, round % 2 == 0);
            numbers.extend(told.next(&drivers.levels()).map(|report| report.vf));
        }
        assert_eq!(numbers, [0, 1, 2, 0, 0, 0]);
    }
}
