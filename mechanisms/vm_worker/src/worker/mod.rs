//! The worker's thread: owns all that there is of the VM on this side, waits for everybody at once and for nobody alone.

mod adapter;
mod device;
mod integration;
mod live;
mod nics;

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use device_control::{ClientId, Completion, DriverName, Request};
use ndis_protocol::MacAddress;
use partition::{
    Partition,
    host::{OfferError, VmbusHost},
};
use pcivirt_protocol::{NtStatus, SriovInvalidateBlock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use vmbus::EventFd;
use zerocopy::FromBytes;

use crate::{
    WorkerConfig,
    control::{
        AdapterConfig, AdapterNumber, DeviceName, DeviceState, GuestState, MAX_ADAPTERS,
        MAX_DEVICES, MAX_MITIGATED_RANGES, MitigatedRanges, OfferVf, PrivateControl, RemoveVf,
        ReplaceMitigatedRanges, SyntheticNicKind, WorkerStatus,
    },
    event::{Event, Events},
    link::LinkEvent,
    reports::{Reports, first_life},
};
use adapter::Adapter;
use device::{Device, Said};
use integration::Integration;
use nics::{Nics, Wait};

/// Characters of a port's name, at most.
const MAX_PORT_NAME: usize = 256;
/// Events handled before descriptors are looked at.
const BURST: usize = 64;

/// What adapters and devices need of the worker.
pub(crate) struct Cx {
    config: WorkerConfig,
    /// As whom this connects to switches and NICs.
    client: DriverName,
    partition: Arc<dyn Partition>,
    host: VmbusHost,
    events: Events,
    reports: Reports,
    nics: Nics,
    start: Instant,
    /// A window or BAR has moved.
    claims_changed: bool,
    numbers: u64,
    first_life: u64,
}

impl Cx {
    /// Time since the worker started.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Which life of the guest it is. No later worker on this host has a number that is not greater.
    pub(crate) fn life(&self) -> u64 {
        self.first_life.saturating_add(self.host.restarts())
    }

    /// A number that was never given before.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// The worker.
pub(crate) struct Worker {
    cx: Cx,
    queue: mpsc::Receiver<Event>,
    wake: EventFd,
    shutdown: EventFd,
    guest: GuestState,
    restarts: u64,
    adapters: BTreeMap<u32, Adapter>,
    devices: BTreeMap<DeviceName, Device>,
    integration: Integration,
    /// There may be events that were not handled yet.
    more: bool,
    /// The worker ends when all is given back.
    stopping: bool,
}

/// What the worker's thread is made with.
pub(crate) struct Parts {
    pub(crate) config: WorkerConfig,
    pub(crate) client: DriverName,
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) host: VmbusHost,
    pub(crate) events: Events,
    pub(crate) queue: mpsc::Receiver<Event>,
    pub(crate) wake: EventFd,
    pub(crate) shutdown: EventFd,
}

/// How long a worker that ends waits for switches and VFs to be left.
const LAST_WORDS: Duration = Duration::from_secs(4);

impl Worker {
    /// Offers the integration services; everything else is for [`Self::run`].
    pub(crate) fn new(parts: Parts) -> Result<Self, OfferError> {
        let Parts { config, client, partition, host, events, queue, wake, shutdown } = parts;
        let cx = Cx {
            config,
            client,
            partition,
            host,
            events,
            reports: Reports::default(),
            nics: Nics::default(),
            start: Instant::now(),
            claims_changed: false,
            numbers: 0,
            first_life: first_life(),
        };
        let integration = Integration::offer(&cx)?;
        Ok(Self {
            cx,
            queue,
            wake,
            shutdown,
            guest: GuestState::Running,
            restarts: 0,
            adapters: BTreeMap::new(),
            devices: BTreeMap::new(),
            integration,
            more: false,
            stopping: false,
        })
    }

    /// The thread.
    pub(crate) fn run(mut self) {
        while !self.stopping {
            self.turn(None);
        }
        self.leave_all();
        let deadline = self.cx.now() + LAST_WORDS;
        while !(self.adapters.is_empty() && self.devices.is_empty()) && self.cx.now() < deadline {
            self.turn(Some(deadline));
        }
    }

    /// Waits for something, and does it.
    fn turn(&mut self, deadline: Option<Duration>) {
        self.wait(deadline);
        // Whoever tells something signals afterwards.
        self.wake.take();
        self.more = true;
        for _ in 0..BURST {
            let Ok(event) = self.queue.try_recv() else {
                self.more = false;
                break;
            };
            self.event(event);
        }
        self.look_at_guest();
        let Self { cx, adapters, devices, integration, .. } = self;
        cx.nics.poll(cx.now());
        integration.work(cx.now());
        for adapter in adapters.values_mut() {
            adapter.work(cx);
        }
        for device in devices.values_mut() {
            device.work(cx);
        }
        self.forget_gone();
        self.share_claims();
    }

    fn forget_gone(&mut self) {
        self.adapters.retain(|_, adapter| !adapter.is_gone());
        self.devices.retain(|_, device| !device.is_gone());
    }

    fn wait(&mut self, deadline: Option<Duration>) {
        let due = self.adapters.values().filter_map(Adapter::deadline);
        let due = due.chain(self.devices.values().filter_map(Device::deadline));
        let due = due.chain(self.cx.nics.deadline()).chain(self.integration.deadline());
        let due = due.chain(deadline).min();
        let now = self.cx.now();
        let limit = due.map(|due| due.saturating_sub(now));
        let mut fds = vec![
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(self.cx.host.started(), PollFlags::IN),
        ];
        if self.guest != GuestState::Gone {
            fds.push(PollFd::new(self.cx.host.gone(), PollFlags::IN));
        }
        let mut readable = Vec::new();
        for adapter in self.adapters.values() {
            adapter.wait_on(&mut readable);
        }
        self.integration.wait_on(&mut readable);
        fds.extend(readable.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let mut of_devices = Vec::new();
        for live in self.devices.values().filter_map(Device::live) {
            live.wait_on(&mut of_devices);
        }
        fds.extend(of_devices.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let limit = if self.more { Some(Duration::ZERO) } else { limit };
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        if let Err(error) = poll(&mut fds, limit.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "the worker cannot wait");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Notices a guest that began anew, or has ended.
    fn look_at_guest(&mut self) {
        self.cx.host.started().take();
        let gone = matches!(self.cx.host.gone().wait(Duration::ZERO), Ok(true));
        if gone && self.guest != GuestState::Gone {
            tracing::info!(vm = self.cx.config.name, "the guest is gone");
            self.guest = GuestState::Gone;
            self.cx.reports.guest(GuestState::Gone, self.cx.life());
            for device in self.devices.values_mut() {
                device.remove(&mut self.cx);
            }
        }
        let restarts = self.cx.host.restarts();
        if restarts != self.restarts {
            self.restarts = restarts;
            if !gone {
                tracing::debug!(vm = self.cx.config.name, "the guest has begun anew");
                let life = self.cx.first_life.saturating_add(restarts);
                self.cx.reports.guest(GuestState::Reset, life);
            }
        }
    }

    /// Tells each function which addresses the others occupy.
    fn share_claims(&mut self) {
        if !std::mem::take(&mut self.cx.claims_changed) {
            return;
        }
        let claims: Vec<_> = self
            .devices
            .values()
            .filter_map(|device| Some((device.name, device.live()?.occupied())))
            .collect();
        for device in self.devices.values_mut() {
            let name = device.name;
            let others = claims.iter().filter(|(of, _)| *of != name);
            let reserved = others.flat_map(|(_, claims)| claims.clone()).collect();
            if let Some(live) = device.live_mut() {
                live.set_reserved(reserved);
            }
        }
    }

    /// Gives everything back.
    fn leave_all(&mut self) {
        let Self { cx, adapters, devices, .. } = self;
        for adapter in adapters.values_mut() {
            adapter.remove(cx);
        }
        for device in devices.values_mut() {
            device.remove(cx);
        }
        self.integration.leave();
    }

    fn event(&mut self, event: Event) {
        let Self { cx, adapters, devices, .. } = self;
        match event {
            Event::Connected(client) => {
                let devices = devices.values().map(|device| (device.name, device.state.clone()));
                let guest = (self.guest, cx.first_life.saturating_add(self.restarts));
                cx.reports.connected(client.id, guest, devices, []);
            }
            Event::Disconnected(client) => cx.reports.disconnected(client),
            Event::Cancelled(client, id) => {
                cx.reports.cancel(client, id);
                self.integration.cancel(client, id);
            }
            Event::Asked(client, code, request) => self.asked(client, code, request),
            Event::Switch(adapter, number, event) => {
                if let Some(adapter) = adapters.get_mut(&adapter)
                    && adapter.number() == number
                {
                    adapter.switch(event, cx);
                }
            }
            Event::Nic(number, event) => self.nic(number, event),
            Event::Vf(name, number, event) => {
                if let Some(device) = find(devices, name, number) {
                    device.vf(event, cx);
                }
            }
            Event::Access(name, number, access) => {
                if let Some(device) = find(devices, name, number) {
                    device.access(access, cx);
                }
            }
            Event::Retarget(retarget, reply) => {
                let moved = devices.values_mut().any(|device| device.retarget(&retarget, cx));
                reply.done(moved);
            }
            Event::Stop => self.stopping = true,
        }
    }

    fn nic(&mut self, number: u64, event: LinkEvent) {
        let Self { cx, devices, .. } = self;
        let (tag, answer) = match event {
            LinkEvent::Connected => return cx.nics.connected(number),
            LinkEvent::Disconnected(reason) => return cx.nics.disconnected(number, &reason),
            LinkEvent::Completed(tag, answer) => (tag, answer),
        };
        let status = answer.as_ref().map(|_| ()).map_err(|status| *status);
        let now = cx.now();
        let Some((nic, wait)) = cx.nics.answered(number, tag, status, now) else { return };
        match wait {
            Wait::Nothing => {}
            Wait::Ids(name, number) => {
                if let Some(device) = find(devices, name, number) {
                    device.said(Said::ids(answer), cx);
                }
            }
            Wait::Bars(name, number) => {
                if let Some(device) = find(devices, name, number) {
                    device.said(Said::bars(answer), cx);
                }
            }
            Wait::Pf(name, number, id) => {
                if let Some(device) = find(devices, name, number) {
                    let answer = answer.as_ref().map(Vec::as_slice).map_err(|status| *status);
                    device.pf_completed(id, answer, cx);
                }
            }
            Wait::Invalidation(vf) => {
                let Ok(output) = answer else { return };
                let Ok(block) = SriovInvalidateBlock::read_from_bytes(&output) else { return };
                for device in devices.values_mut() {
                    if device.nic == nic && device.offer.vf == vf {
                        device.invalidate(block.block_mask, cx);
                    }
                }
            }
            Wait::Mitigated(reply, reads) => {
                // Refused: ones, as the reply is dropped.
                let Ok(output) = answer else { return };
                let mut value = if reads { [0xFF; 8] } else { [0; 8] };
                for (byte, read) in value.iter_mut().zip(output) {
                    *byte = read;
                }
                reply.done(value);
            }
        }
    }

    // ---- what clients ask for

    fn asked(&mut self, client: ClientId, code: u32, request: Request) {
        let Some(control) = PrivateControl::from_code(code) else {
            return request.complete(NtStatus::INVALID_DEVICE_REQUEST);
        };
        if control == PrivateControl::NextReport {
            return self.cx.reports.ask(client, request);
        }
        if control == PrivateControl::ShutDownGuest {
            let gone = self.guest == GuestState::Gone;
            return self.integration.shut_down(client, request, gone, self.cx.now());
        }
        let completion = match self.control(client, control, &request.input) {
            Ok(output) => Completion::output(output, request.output_capacity),
            Err(status) => Completion::status(status),
        };
        request.complete(completion);
        if control == PrivateControl::Shutdown {
            // After the completion, so that its client hears of it.
            self.shutdown.signal();
        }
    }

    fn control(
        &mut self,
        client: ClientId,
        control: PrivateControl,
        input: &[u8],
    ) -> Result<Vec<u8>, NtStatus> {
        // What has ended in this very turn is there no more: its end was reported already.
        self.forget_gone();
        match control {
            PrivateControl::Status => {
                return serde_json::to_vec(&self.status()).map_err(|_| NtStatus::UNSUCCESSFUL);
            }
            PrivateControl::SetAdapter => self.set_adapter(parse(input)?)?,
            PrivateControl::RemoveAdapter => {
                let AdapterNumber { adapter } = parse(input)?;
                let adapter = self.adapters.get_mut(&adapter).filter(|one| one.is_wanted());
                adapter.ok_or(NtStatus::NOT_FOUND)?.remove(&mut self.cx);
            }
            PrivateControl::OfferVf => self.offer_vf(parse(input)?)?,
            PrivateControl::ReplaceMitigatedRanges => {
                let ReplaceMitigatedRanges { adapter, serial, mitigated_ranges } = parse(input)?;
                check_ranges(&mitigated_ranges)?;
                let device = self.devices.get_mut(&DeviceName { adapter, serial });
                let device = device.ok_or(NtStatus::NOT_FOUND)?;
                device.set_mitigated(mitigated_ranges, &mut self.cx);
            }
            PrivateControl::EjectVf => {
                let name: DeviceName = parse(input)?;
                let device = self.devices.get_mut(&name).ok_or(NtStatus::NOT_FOUND)?;
                device.eject(&mut self.cx);
            }
            PrivateControl::RemoveVf => {
                let RemoveVf { adapter, serial, surprise: _ } = parse(input)?;
                let name = DeviceName { adapter, serial };
                match self.devices.get_mut(&name) {
                    Some(device) => device.remove(&mut self.cx),
                    None => self.cx.reports.device_to(client, name, DeviceState::Removed),
                }
            }
            PrivateControl::LetLeave => return Err(NtStatus::INVALID_DEVICE_REQUEST),
            PrivateControl::NextReport
            | PrivateControl::Shutdown
            | PrivateControl::ShutDownGuest => {}
        }
        Ok(Vec::new())
    }

    fn set_adapter(&mut self, config: AdapterConfig) -> Result<(), NtStatus> {
        if config.kind != SyntheticNicKind::NetVsc {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let named = (1..=MAX_PORT_NAME).contains(&config.port.len());
        if !named || config.max_channels == 0 || config.mac.parse::<MacAddress>().is_err() {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        if let Some(adapter) = self.adapters.get_mut(&config.adapter) {
            adapter.configure(config, &mut self.cx);
            return Ok(());
        }
        if self.adapters.len() >= MAX_ADAPTERS {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let number = config.adapter;
        let adapter =
            Adapter::start(config, &mut self.cx).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        self.adapters.insert(number, adapter);
        Ok(())
    }

    fn offer_vf(&mut self, offer: OfferVf) -> Result<(), NtStatus> {
        check_ranges(&offer.mitigated_ranges)?;
        if self.guest == GuestState::Gone {
            return Err(NtStatus::DEVICE_REMOVED);
        }
        let name = DeviceName { adapter: offer.adapter, serial: offer.serial };
        match self.devices.get(&name) {
            // A client that does not know whether it was heard says it again.
            Some(device) if device.offer == offer => return Ok(()),
            Some(_) => return Err(NtStatus::SHARING_VIOLATION),
            None if self.devices.len() >= MAX_DEVICES => {
                return Err(NtStatus::INSUFFICIENT_RESOURCES);
            }
            None => {}
        }
        let number = self.cx.number();
        let device = Device::open(offer, number, &mut self.cx)
            .map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        self.devices.insert(name, device);
        Ok(())
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            name: self.cx.config.name.clone(),
            guest: self.guest,
            vmbus: self.cx.host.connection().map(|connection| connection.version.to_string()),
            adapters: self.adapters.values().map(Adapter::status).collect(),
            devices: self.devices.values().map(Device::status).collect(),
            integration: self.integration.status(self.cx.now()),
        }
    }
}

/// The device that is meant, and not a later one of the same name.
fn find(
    devices: &mut BTreeMap<DeviceName, Device>,
    name: DeviceName,
    number: u64,
) -> Option<&mut Device> {
    devices.get_mut(&name).filter(|device| device.number == number)
}

fn parse<T: DeserializeOwned>(input: &[u8]) -> Result<T, NtStatus> {
    serde_json::from_slice(input).map_err(|error| {
        tracing::debug!(%error, "a control of the worker cannot be read");
        NtStatus::INVALID_PARAMETER
    })
}

fn check_ranges(ranges: &MitigatedRanges) -> Result<(), NtStatus> {
    const PAGE: u64 = 4096;
    let good = ranges.iter().all(|(bar, ranges)| {
        *bar < 6
            && ranges.len() <= MAX_MITIGATED_RANGES
            && ranges.iter().all(|range| {
                range.length > 0
                    && range.offset.is_multiple_of(PAGE)
                    && range.length.is_multiple_of(PAGE)
                    && range.offset.checked_add(range.length).is_some()
            })
    });
    if good { Ok(()) } else { Err(NtStatus::INVALID_PARAMETER) }
}
