//! One adapter: the guest's virtio-net, the slot beside it, and the VF that is in it or not.

use std::{collections::BTreeMap, time::Duration};

use ::adapter::control::VfDriver;
use ndis_protocol::MacAddress;
use pcivirt_protocol::NtStatus;
use vm_worker::control::{
    AdapterConfig, AdapterStatus, DeviceName, DeviceState, DeviceStatus, OfferVf, SyntheticNicState,
};

use super::{Cx, Event, place::Place};
use crate::{
    nic::{ReportsError, VfDriverReports},
    slot::Move,
};

/// How the driver of a NIC is that joins a VF.
const READY: SyntheticNicState = SyntheticNicState::Ready { failover: true };
/// How that of a NIC is said to be that no VF can be joined with, or that QEMU does not have: whoever offers a VF is told
/// what is missing, and nobody waits for a driver.
const REFUSED: SyntheticNicState = READY;

/// An adapter.
pub(crate) struct Adapter {
    config: AdapterConfig,
    mac: MacAddress,
    nic: SyntheticNicState,
    last_error: Option<String>,
    place: Place,
    device: Option<Device>,
}

/// A VF that is offered, or about to be.
struct Device {
    offer: OfferVf,
    /// What was reported last.
    reported: DeviceState,
    /// It is behind the relay, and this is what its driver does.
    reports: Option<VfDriverReports>,
    /// The NIC has said something since it was connected to.
    heard: bool,
    driver: VfDriver,
    bus_master: bool,
    /// The guest was told of it.
    offered: bool,
    /// The guest is to give it up.
    ejecting: bool,
    /// Its driver is about to be taken from it.
    leaving: bool,
    ejected: bool,
}

impl Device {
    fn name(&self) -> DeviceName {
        DeviceName { adapter: self.offer.adapter, serial: self.offer.serial }
    }

    fn state(&self) -> DeviceState {
        match (&self.driver, self.bus_master) {
            _ if self.ejected => DeviceState::EjectComplete,
            _ if !self.offered => DeviceState::Opening,
            (VfDriver::Running { .. }, _) if !self.leaving => DeviceState::InUse,
            (VfDriver::Running { .. } | VfDriver::Present, _) => DeviceState::DeviceStarted,
            (_, true) => DeviceState::BusOpened,
            (_, false) => DeviceState::Offered,
        }
    }
}

impl Adapter {
    /// An adapter of the guest, whose NIC is looked for among QEMU's.
    pub(crate) fn new(config: AdapterConfig, mac: MacAddress, place: Place, cx: &mut Cx) -> Self {
        let nic = SyntheticNicState::Closed;
        let mut this = Self { config, mac, nic, last_error: None, place, device: None };
        this.find_nic(cx);
        cx.reports.synthetic_nic(this.config.adapter, this.nic);
        this
    }

    fn find_nic(&mut self, cx: &Cx) {
        let found = cx.machine.nic(self.mac);
        self.nic = match &found {
            Ok(nic) if cx.met_running || cx.negotiated.contains(&nic.id) => READY,
            Ok(_) => SyntheticNicState::Closed,
            Err(_) => REFUSED,
        };
        self.last_error = found.err().map(|error| error.to_string());
        if let Some(error) = &self.last_error {
            let adapter = self.config.adapter;
            tracing::warn!(adapter, error, "the guest's NIC cannot be joined with a VF");
        }
    }

    pub(crate) const fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The adapter is that of another NIC of the guest from now on. Its function stays: the guest joins by the address
    /// of the VF.
    pub(crate) fn set_mac(&mut self, config: AdapterConfig, mac: MacAddress, cx: &mut Cx) {
        self.remove_device(cx);
        (self.config, self.mac) = (config, mac);
        self.find_nic(cx);
        cx.reports.synthetic_nic(self.config.adapter, self.nic);
    }

    /// The end of the adapter. QEMU keeps the place, if it has its function.
    pub(crate) fn retire(mut self, cx: &mut Cx) -> Place {
        self.remove_device(cx);
        self.place
    }

    pub(crate) const fn place(&self) -> &Place {
        &self.place
    }

    /// Changes what nothing here depends on.
    pub(crate) fn configure(&mut self, config: AdapterConfig) {
        self.config = config;
    }

    pub(crate) const fn nic_state(&self) -> SyntheticNicState {
        self.nic
    }

    /// The VF that it has.
    pub(crate) fn device(&self) -> Option<(DeviceName, DeviceState)> {
        self.device.as_ref().map(|device| (device.name(), device.reported.clone()))
    }

    /// When it wants to be looked at if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.place.deadline(self.wanted())
    }

    /// Whether the guest is to have the device.
    fn wanted(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.reports.is_some() && !device.ejecting)
    }

    // ---- what the stack asks for

    pub(crate) fn offer(&mut self, offer: OfferVf, cx: &mut Cx) -> Result<(), NtStatus> {
        match &self.device {
            // A client that does not know whether it was heard says it again.
            Some(device) if device.offer == offer => return Ok(()),
            Some(_) => return Err(NtStatus::SHARING_VIOLATION),
            None => {}
        }
        self.device = Some(Device {
            offer,
            reported: DeviceState::Opening,
            reports: None,
            heard: false,
            driver: VfDriver::Absent,
            bus_master: false,
            offered: false,
            ejecting: false,
            leaving: false,
            ejected: false,
        });
        if cx.machine.nic(self.mac).is_err() {
            cx.look_for_nics();
        }
        if let Err(error) = cx.machine.nic(self.mac) {
            self.fail(NtStatus::NOT_SUPPORTED, error.to_string(), cx);
        } else if !self.place.is_free() {
            let waits = "the next VF waits until the guest has given the former one up, which it was asked to do";
            self.last_error = Some(waits.to_owned());
        }
        Ok(())
    }

    pub(crate) fn eject(&mut self) {
        if let Some(device) = &mut self.device {
            device.ejecting = true;
            // What the guest was never told of it need not give up.
            device.ejected |= !device.offered;
            // What its driver has not taken yet it never would.
            self.place.relay.hold_leaving();
        }
    }

    /// What the guest receives comes by the VF no more.
    pub(crate) fn let_leave(&self) {
        self.place.relay.let_leave();
    }

    /// Takes the VF away, whatever the guest does with it. One that has not given it up is asked to give up what is left.
    pub(crate) fn remove_device(&mut self, cx: &mut Cx) {
        self.place.relay.detach();
        if let Some(device) = self.device.take() {
            cx.reports.device(device.name(), DeviceState::Removed);
        }
    }

    // ---- what happens

    /// The guest's virtio-net driver has agreed on VIRTIO_NET_F_STANDBY.
    pub(crate) fn failover_negotiated(&mut self, id: &str, cx: &mut Cx) {
        if cx.machine.nic(self.mac).is_ok_and(|nic| nic.id == id) {
            self.set_nic(READY, cx);
        }
    }

    fn set_nic(&mut self, state: SyntheticNicState, cx: &mut Cx) {
        if self.nic != state {
            self.nic = state;
            cx.reports.synthetic_nic(self.config.adapter, state);
        }
    }

    pub(crate) fn guest_reset(&mut self, cx: &mut Cx) {
        if cx.machine.nic(self.mac).is_ok() {
            self.set_nic(SyntheticNicState::Closed, cx);
        }
        let backed = self.device.as_ref().is_some_and(|device| device.reports.is_some());
        self.place.guest_reset(backed);
        if let Some(device) = &mut self.device {
            (device.bus_master, device.leaving) = (false, false);
            // The VF that it has given up was taken away then: it does not find it again.
            device.ejected = device.ejecting && device.reports.is_none();
        }
    }

    /// The relay has something to say.
    pub(crate) fn hear_relay(&mut self, cx: &mut Cx) {
        let heard = self.place.hear(cx);
        if let Some(device) = &mut self.device {
            device.bus_master = heard.bus_master && device.reports.is_some();
            device.offered |= heard.appeared && device.reports.is_some() && !device.ejecting;
            device.ejected |= heard.given_up && device.ejecting;
            let runs = matches!(device.driver, VfDriver::Running { .. });
            device.leaving |= heard.leaving && device.ejecting;
            if heard.leaving && !runs {
                self.place.relay.let_leave();
            }
            if heard.vf_lost && device.reports.is_some() {
                tracing::warn!(adapter = self.config.adapter, "the VF is gone by surprise");
                self.remove_device(cx);
            }
        }
    }

    /// The NIC may have something to say.
    pub(crate) fn hear_nic(&mut self, cx: &mut Cx) {
        while let Some(device) = &mut self.device {
            let Some(reports) = &mut device.reports else { return };
            match reports.next() {
                Ok(None) => return,
                Ok(Some(VfDriver::Gone)) => return self.remove_device(cx),
                Ok(Some(driver)) => (device.heard, device.driver) = (true, driver),
                // The stack would take what it was told last for true: so it is asked again, or the VF is taken away.
                Err(error) => {
                    tracing::warn!(%error, "a NIC says nothing more of a VF");
                    let again = std::mem::take(&mut device.heard).then(|| reports_of(device, cx));
                    match again {
                        Some(Ok(reports)) => device.reports = Some(reports),
                        Some(Err(_)) | None => return self.remove_device(cx),
                    }
                }
            }
        }
    }

    /// Does what is to be done, and reports what became of the device.
    pub(crate) fn work(&mut self, cx: &mut Cx) {
        // A guest that begins anew finds by itself what is in its slots, and is not to be disturbed before it has: its
        // virtio-net driver comes after that.
        if self.place.is_free()
            && self.nic != SyntheticNicState::Closed
            && self
                .device
                .as_ref()
                .is_some_and(|device| device.reports.is_none() && !device.ejecting)
            && let Err(cause) = self.attach(cx)
        {
            return self.fail(NtStatus::NO_SUCH_DEVICE, cause, cx);
        }
        let nic = if self.wanted() { cx.machine.nic(self.mac).ok().cloned() } else { None };
        match self.place.work(nic.as_ref(), cx) {
            Ok(done) => {
                if let Some(device) = &mut self.device {
                    device.offered |= matches!(done, Some(Move::Plug | Move::TurnOn));
                    device.ejected |= device.ejecting && self.place.is_free();
                    if device.ejected && device.reports.take().is_some() {
                        self.place.relay.detach();
                    }
                }
            }
            // It stays with the guest, which is asked again.
            Err((Move::TurnOff, cause)) => {
                let adapter = self.config.adapter;
                if self.last_error.as_ref() != Some(&cause) {
                    tracing::warn!(adapter, cause, "the guest cannot be asked to give its VF up");
                }
                self.last_error = Some(cause);
            }
            Err((Move::Plug | Move::TurnOn, cause)) => {
                return self.fail(NtStatus::NOT_SUPPORTED, cause, cx);
            }
        }
        if let Some(device) = &mut self.device {
            let state = device.state();
            if state != device.reported {
                device.reported = state.clone();
                cx.reports.device(device.name(), state);
            }
        }
    }

    /// Puts the VF behind the relay.
    fn attach(&mut self, cx: &mut Cx) -> Result<(), String> {
        let Some(device) = &mut self.device else { return Ok(()) };
        self.place.relay.attach(&device.offer.vf_socket).map_err(|error| chain(&error))?;
        let reports = reports_of(device, cx).map_err(|error| chain(&error))?;
        device.reports = Some(reports);
        self.last_error = None;
        self.hear_nic(cx);
        Ok(())
    }

    /// The VF cannot be offered.
    fn fail(&mut self, status: NtStatus, cause: String, cx: &mut Cx) {
        tracing::warn!(adapter = self.config.adapter, cause, "the guest cannot be given its VF");
        self.place.relay.detach();
        if let Some(device) = self.device.take() {
            let state = DeviceState::OfferFailed { status: status.0, cause: Some(cause.clone()) };
            cx.reports.device(device.name(), state);
        }
        self.last_error = Some(cause);
    }

    pub(crate) fn status(&self, cx: &Cx) -> AdapterStatus {
        AdapterStatus {
            adapter: self.config.adapter,
            mac: self.mac.to_string(),
            switch: self.config.switch.clone(),
            port: self.config.port.clone(),
            connected: cx.machine.nic(self.mac).is_ok(),
            last_error: self.last_error.clone(),
            offered: self.nic != SyntheticNicState::Closed,
            channels: 0,
        }
    }

    pub(crate) fn device_status(&self) -> Option<DeviceStatus> {
        let device = self.device.as_ref()?;
        Some(DeviceStatus {
            adapter: device.offer.adapter,
            serial: device.offer.serial,
            vf: device.offer.vf,
            state: device.reported.clone(),
            bars: BTreeMap::new(),
            vectors: 0,
        })
    }
}

fn reports_of(device: &Device, cx: &Cx) -> Result<VfDriverReports, ReportsError> {
    let (events, number) = (cx.events.clone(), device.offer.adapter);
    let ring = move || drop(events.send(Event::Nic(number)));
    VfDriverReports::of(&device.offer.nic, device.offer.vf, &cx.client, ring)
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
