//! The thread of a host side: owns the connection to QEMU and all that the guest was given.

mod adapter;
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use device_control::{ClientId, Completion, DriverName, Request, RequestId};
use ndis_protocol::MacAddress;
use pcivirt_protocol::NtStatus;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vm_worker::{
    control::{
        AdapterConfig, AdapterNumber, DeviceName, DeviceState, GuestState, IntegrationStatus,
        MAX_ADAPTERS, OfferVf, PrivateControl, RemoveVf, ReplaceMitigatedRanges, ShutDownAnswer,
        ShutDownGuest, SyntheticNicKind, WorkerStatus,
    },
    reports::{Reports, first_life},
};

use crate::{
    QemuHostConfig,
    machine::{Machine, MachineError, left_behind, press},
    qmp::{Qmp, QmpNews},
    slot::SlotTimes,
};
use adapter::Adapter;
use place::Place;

/// What the thread is told, by all others.
pub(crate) enum Event {
    /// A client has connected.
    Connected(ClientId),
    /// It is gone.
    Disconnected(ClientId),
    /// It asks for something: a private control's code.
    Asked(ClientId, u32, Request),
    /// It gives a request up.
    Cancelled(ClientId, RequestId),
    /// QEMU has something to say.
    Qmp,
    /// The relay of a place has something to say.
    Relay(u32),
    /// A NIC may have something to say about the VF of an adapter.
    Nic(u32),
    /// End.
    Stop,
}

/// What adapters need of the worker.
pub(crate) struct Cx {
    /// As whom this connects to NICs.
    client: DriverName,
    /// What the sockets of relays are called, but for their ends.
    base: PathBuf,
    qmp: Qmp,
    machine: Machine,
    events: Sender<Event>,
    reports: Reports,
    start: Instant,
    times: SlotTimes,
    /// Nothing is plugged before: the guest gives up what a process before this one has left it.
    not_before: Duration,
    /// The guest ran already when this came: whether its virtio-net joins VFs cannot be asked, and is assumed.
    met_running: bool,
    /// Ids of the NICs whose drivers have agreed on VIRTIO_NET_F_STANDBY since the guest began.
    negotiated: BTreeSet<String>,
}

impl Cx {
    /// Time since the worker started.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Asks QEMU for its NICs again, since one is not known: it may have been plugged since.
    fn look_for_nics(&mut self) {
        if let Err(error) = self.machine.look_for_nics(&mut self.qmp) {
            tracing::debug!(%error, "QEMU does not say which NICs there are");
        }
    }
}

/// The worker.
pub(crate) struct Worker {
    cx: Cx,
    name: String,
    queue: Receiver<Event>,
    guest: GuestState,
    life: u64,
    adapters: BTreeMap<u32, Adapter>,
    /// Places with functions, of adapters that are no more.
    spare: Vec<Place>,
    gone: Box<dyn Fn() + Send>,
}

impl Worker {
    /// Asks QEMU what is to be known of it.
    pub(crate) fn new(
        config: &QemuHostConfig,
        times: SlotTimes,
        client: DriverName,
        mut qmp: Qmp,
        events: Sender<Event>,
        queue: Receiver<Event>,
        gone: Box<dyn Fn() + Send>,
    ) -> Result<Self, MachineError> {
        let machine = Machine::survey(&mut qmp)?;
        let status = qmp.execute("query-status", json!({}))?;
        let met_running = status.get("running").and_then(Value::as_bool).unwrap_or(true);
        let left = left_behind(&mut qmp)?;
        for device in &left {
            tracing::info!(
                device,
                "a VF of a process that is gone; the guest is asked to give it up"
            );
            if let Err(error) = press(&mut qmp, device) {
                tracing::warn!(device, %error, "the guest cannot be asked");
            }
        }
        tracing::info!(
            version = machine.version,
            nics = machine.nics.len(),
            "QEMU can be given VFs"
        );
        if config.resume {
            qmp.execute("cont", json!({}))?;
        }
        let cx = Cx {
            client,
            base: config.socket.with_extension(""),
            qmp,
            machine,
            events,
            reports: Reports::default(),
            start: Instant::now(),
            times,
            not_before: if left.is_empty() { Duration::ZERO } else { times.patience },
            met_running,
            negotiated: BTreeSet::new(),
        };
        Ok(Self {
            cx,
            name: config.name.clone(),
            queue,
            guest: GuestState::Running,
            life: first_life(),
            adapters: BTreeMap::new(),
            spare: Vec::new(),
            gone,
        })
    }

    /// The thread.
    pub(crate) fn run(mut self) {
        loop {
            let now = self.cx.now();
            let adapters = self.adapters.values().filter_map(Adapter::deadline);
            let spare = self.spare.iter().filter_map(|place| place.deadline(false));
            let due = adapters.chain(spare).min().filter(|_| self.guest != GuestState::Gone);
            let event = match due {
                Some(due) => self.queue.recv_timeout(due.saturating_sub(now)),
                None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.event(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.guest == GuestState::Gone {
                continue;
            }
            for adapter in self.adapters.values_mut() {
                adapter.work(&mut self.cx);
            }
            for place in &mut self.spare {
                if let Err((_, cause)) = place.work(None, &mut self.cx) {
                    tracing::debug!(cause, "the guest cannot be asked to give a function up");
                }
            }
        }
        for adapter in self.adapters.values_mut() {
            adapter.remove_device(&mut self.cx);
        }
    }

    fn event(&mut self, event: Event) {
        let Self { cx, adapters, spare, .. } = self;
        match event {
            Event::Connected(client) => {
                let devices = adapters.values().filter_map(Adapter::device).collect::<Vec<_>>();
                let nics = adapters.iter().map(|(number, adapter)| (*number, adapter.nic_state()));
                cx.reports.connected(client, (self.guest, self.life), devices, nics);
            }
            Event::Disconnected(client) => cx.reports.disconnected(client),
            Event::Cancelled(client, id) => cx.reports.cancel(client, id),
            Event::Asked(client, code, request) => self.asked(client, code, request),
            Event::Qmp => self.hear_qemu(),
            Event::Relay(number) => {
                if let Some(adapter) = adapters.values_mut().find(|a| a.place().number() == number)
                {
                    adapter.hear_relay(cx);
                } else if let Some(place) = spare.iter_mut().find(|place| place.number() == number)
                {
                    place.hear(cx);
                }
            }
            Event::Nic(number) => {
                if let Some(adapter) = adapters.get_mut(&number) {
                    adapter.hear_nic(cx);
                }
            }
            // Ends the loop before it comes here.
            Event::Stop => {}
        }
    }

    /// QEMU has something to say.
    fn hear_qemu(&mut self) {
        let QmpNews { resets, negotiated, gone } = self.cx.qmp.news();
        if resets > 0 {
            self.reset(resets);
        }
        let Self { cx, adapters, .. } = self;
        for id in negotiated {
            if !cx.machine.nics.iter().any(|nic| nic.id == id) {
                cx.look_for_nics();
            }
            for adapter in adapters.values_mut() {
                adapter.failover_negotiated(&id, cx);
            }
            if cx.machine.nics.iter().any(|nic| nic.id == id) {
                cx.negotiated.insert(id);
            }
        }
        if gone {
            self.end();
        }
    }

    /// The guest begins anew, and may have more than once.
    fn reset(&mut self, times: u64) {
        tracing::debug!(vm = self.name, "the guest begins anew");
        self.life = self.life.saturating_add(times);
        self.cx.met_running = false;
        self.cx.negotiated.clear();
        self.cx.reports.guest(GuestState::Reset, self.life);
        for adapter in self.adapters.values_mut() {
            adapter.guest_reset(&mut self.cx);
        }
        for place in &mut self.spare {
            place.guest_reset(false);
        }
    }

    fn end(&mut self) {
        if self.guest == GuestState::Gone {
            return;
        }
        tracing::info!(vm = self.name, "QEMU has ended");
        self.guest = GuestState::Gone;
        self.cx.reports.guest(GuestState::Gone, self.life);
        for adapter in self.adapters.values_mut() {
            adapter.remove_device(&mut self.cx);
        }
        (self.gone)();
    }

    // ---- what clients ask for

    fn asked(&mut self, client: ClientId, code: u32, request: Request) {
        let Some(control) = PrivateControl::from_code(code) else {
            return request.complete(NtStatus::INVALID_DEVICE_REQUEST);
        };
        if control == PrivateControl::NextReport {
            return self.cx.reports.ask(client, request);
        }
        let completion = match self.control(client, control, &request.input) {
            Ok(output) => Completion::output(output, request.output_capacity),
            Err(status) => Completion::status(status),
        };
        request.complete(completion);
    }

    fn control(
        &mut self,
        client: ClientId,
        control: PrivateControl,
        input: &[u8],
    ) -> Result<Vec<u8>, NtStatus> {
        let Self { cx, adapters, spare, .. } = self;
        match control {
            PrivateControl::Status => {
                return serde_json::to_vec(&self.status()).map_err(|_| NtStatus::UNSUCCESSFUL);
            }
            PrivateControl::SetAdapter => self.set_adapter(parse(input)?)?,
            PrivateControl::RemoveAdapter => {
                let AdapterNumber { adapter } = parse(input)?;
                let adapter = adapters.remove(&adapter).ok_or(NtStatus::NOT_FOUND)?;
                spare.extend(Some(adapter.retire(cx)).filter(Place::is_plugged));
            }
            PrivateControl::OfferVf => {
                let offer: OfferVf = parse(input)?;
                if self.guest == GuestState::Gone {
                    return Err(NtStatus::DEVICE_REMOVED);
                }
                adapters.get_mut(&offer.adapter).ok_or(NtStatus::NOT_FOUND)?.offer(offer, cx)?;
            }
            // A function that is mapped by nobody has no ranges that a guest could reach by itself.
            PrivateControl::ReplaceMitigatedRanges => {
                let ReplaceMitigatedRanges { adapter, serial, .. } = parse(input)?;
                find(adapters, DeviceName { adapter, serial })?;
            }
            PrivateControl::EjectVf => find(adapters, parse(input)?)?.eject(),
            PrivateControl::RemoveVf => {
                let RemoveVf { adapter, serial, surprise: _ } = parse(input)?;
                let name = DeviceName { adapter, serial };
                match find(adapters, name) {
                    Ok(adapter) => adapter.remove_device(cx),
                    Err(_) => cx.reports.device_to(client, name, DeviceState::Removed),
                }
            }
            PrivateControl::LetLeave => {
                let AdapterNumber { adapter } = parse(input)?;
                adapters.get(&adapter).ok_or(NtStatus::NOT_FOUND)?.let_leave();
            }
            PrivateControl::Shutdown => {
                cx.qmp.execute("quit", json!({})).map_err(|_| NtStatus::DEVICE_REMOVED)?;
            }
            // The power button: whether the guest heeds it shows by its end.
            PrivateControl::ShutDownGuest => {
                let ShutDownGuest { reboot, .. } = parse(input)?;
                if reboot {
                    return Err(NtStatus::NOT_SUPPORTED);
                }
                let asked = cx.qmp.execute("system_powerdown", json!({}));
                asked.map_err(|_| NtStatus::DEVICE_REMOVED)?;
                let answer = serde_json::to_vec(&ShutDownAnswer::Initiated);
                return answer.map_err(|_| NtStatus::UNSUCCESSFUL);
            }
            PrivateControl::NextReport => {}
        }
        Ok(Vec::new())
    }

    fn set_adapter(&mut self, config: AdapterConfig) -> Result<(), NtStatus> {
        if config.kind != SyntheticNicKind::VirtioNet {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let mac: MacAddress = config.mac.parse().map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let number = config.adapter;
        if let Some(adapter) = self.adapters.get_mut(&number) {
            if adapter.mac() == mac {
                adapter.configure(config);
            } else {
                adapter.set_mac(config, mac, &mut self.cx);
            }
            return Ok(());
        }
        if self.adapters.len() >= MAX_ADAPTERS {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let place = self.place(number);
        self.adapters.insert(number, Adapter::new(config, mac, place, &mut self.cx));
        Ok(())
    }

    /// A place that is left over, or a new one, with this number if no other has it.
    fn place(&mut self, number: u32) -> Place {
        if let Some(place) = self.spare.pop() {
            return place;
        }
        let taken = |wanted| self.adapters.values().any(|a| a.place().number() == wanted);
        let number = std::iter::once(number).chain(0..).find(|number| !taken(*number));
        Place::new(number.unwrap_or_default(), &self.cx)
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            name: self.name.clone(),
            guest: self.guest,
            vmbus: None,
            adapters: self.adapters.values().map(|adapter| adapter.status(&self.cx)).collect(),
            devices: self.adapters.values().filter_map(Adapter::device_status).collect(),
            integration: IntegrationStatus::default(),
        }
    }
}

/// The adapter that has a device.
fn find(adapters: &mut BTreeMap<u32, Adapter>, name: DeviceName) -> Result<&mut Adapter, NtStatus> {
    let adapter = adapters.get_mut(&name.adapter).ok_or(NtStatus::NOT_FOUND)?;
    let its = adapter.device().map(|(name, _)| name);
    if its == Some(name) { Ok(adapter) } else { Err(NtStatus::NOT_FOUND) }
}

fn parse<T: DeserializeOwned>(input: &[u8]) -> Result<T, NtStatus> {
    serde_json::from_slice(input).map_err(|error| {
        tracing::debug!(%error, "a control of the VM's host side cannot be read");
        NtStatus::INVALID_PARAMETER
    })
}
