//! A VPCI offer: the VF's driver, and the adapter that the VF belongs to.
//!
//! A VF belongs to the adapter that the host associated its serial number with (SPEC-VMBUS §7). Until the host has, the
//! function is there without a driver.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Instant,
};

use avf_driver::DriverError;
use linux_network::RouteSocket;
use vmbus_protocol::{ChannelId, Offer};

use super::{ANSWER, BusThread, Inbox, Message, RETRY, VfEnd, VfPath};
use crate::guest::{
    carrier::Command,
    filters::KernelFilters,
    vpci::{VpciDevice, VpciEvent, VpciTransport},
};

/// How often a driver that does not come up is tried.
const ATTEMPTS: u32 = 20;

/// Where a VF's driver is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Driver {
    /// Nowhere.
    None,
    /// Being opened, or brought up again, for this adapter.
    Opening(u32),
    /// With the carrier of this adapter.
    With(u32),
}

/// A function that was offered.
#[derive(Debug)]
pub(super) struct Device {
    channel: ChannelId,
    /// None while its channel cannot be opened, or when it is closed.
    device: Option<VpciDevice>,
    /// Its serial number, while it is ready.
    serial: Option<u32>,
    driver: Driver,
    /// The host wants it back.
    ejecting: bool,
    rescinded: bool,
    attempts: u32,
    retry: Option<Instant>,
}

impl Device {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let device = self.device.as_ref().and_then(VpciDevice::next_deadline);
        device.into_iter().chain(self.retry).min()
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.as_ref().map(AsFd::as_fd)
    }
}

impl BusThread {
    fn device(&mut self, channel: ChannelId) -> Option<&mut Device> {
        self.devices.iter_mut().find(|device| device.channel == channel)
    }

    pub(super) fn device_offered(&mut self, offer: &Offer) {
        let mut device = Device {
            channel: offer.channel,
            device: None,
            serial: None,
            driver: Driver::None,
            ejecting: false,
            rescinded: false,
            attempts: 0,
            retry: None,
        };
        match VpciDevice::open(&self.bus, offer.channel, &self.resources, ANSWER) {
            Ok(opened) => device.device = Some(opened),
            Err(error) => tracing::warn!(%error, "a virtual PCI bus cannot be opened"),
        }
        self.devices.push(device);
    }

    /// A channel is gone; false if it is no device's.
    pub(super) fn device_rescinded(&mut self, channel: ChannelId) -> bool {
        let Some(device) = self.device(channel) else {
            return false;
        };
        device.rescinded = true;
        device.serial = None;
        if let Some(device) = &device.device {
            device.rescinded();
        }
        self.vf_is_gone(channel);
        true
    }

    /// Has whoever holds the VF of a device drop it; closes a device that is rescinded when nobody does.
    fn vf_is_gone(&mut self, channel: ChannelId) {
        let Some(device) = self.device(channel) else {
            return;
        };
        match device.driver {
            Driver::With(number) => {
                if let Some(nic) = self.nics.iter().find(|nic| nic.number == number) {
                    nic.carrier().command(Command::VfGone);
                }
            }
            // It finds out by itself.
            Driver::Opening(_) => {}
            Driver::None => self.close_device(channel),
        }
    }

    /// Closes a device that is rescinded, and that no driver uses.
    fn close_device(&mut self, channel: ChannelId) {
        let idle = |device: &Device| device.rescinded && device.driver == Driver::None;
        let Some(at) = self.devices.iter().position(|d| d.channel == channel && idle(d)) else {
            return;
        };
        match self.devices.swap_remove(at).device {
            Some(device) => {
                if let Err(error) = device.close(ANSWER) {
                    tracing::info!(%error, "a virtual PCI bus could not be closed in good order");
                }
            }
            None => {
                let _ = self.bus.release(channel);
            }
        }
    }

    /// Does what the devices have to do.
    pub(super) fn look_after_devices(&mut self) {
        let events: Vec<(ChannelId, VpciEvent)> = self
            .devices
            .iter()
            .filter_map(|device| Some((device.channel, device.device.as_ref()?)))
            .flat_map(|(channel, device)| device.process().into_iter().map(move |e| (channel, e)))
            .collect();
        for (channel, event) in events {
            match event {
                VpciEvent::Ready(function) => {
                    tracing::info!(serial = function.serial, "a VF is there");
                    if let Some(device) = self.device(channel) {
                        device.serial = Some(function.serial);
                        device.attempts = 0;
                        device.ejecting = false;
                    }
                    self.join_devices();
                }
                VpciEvent::EjectRequested => self.eject(channel),
                VpciEvent::Gone => {
                    if let Some(device) = self.device(channel) {
                        device.serial = None;
                    }
                    self.vf_is_gone(channel);
                }
                VpciEvent::Failed(error) => {
                    tracing::warn!(%error, "a virtual PCI bus cannot be brought up");
                }
                // The AVF driver keeps nothing in them.
                VpciEvent::BlocksInvalidated(_) => {}
            }
        }
    }

    /// The host wants a VF back.
    fn eject(&mut self, channel: ChannelId) {
        let Some(device) = self.device(channel) else {
            return;
        };
        device.ejecting = true;
        device.retry = None;
        match device.driver {
            Driver::With(number) => {
                if let Some(nic) = self.nics.iter().find(|nic| nic.number == number) {
                    nic.carrier().command(Command::EjectVf);
                }
            }
            // When it is opened, it is closed again.
            Driver::Opening(_) => {}
            Driver::None => self.ejected(channel),
        }
    }

    fn ejected(&mut self, channel: ChannelId) {
        if let Some(device) = self.device(channel) {
            device.serial = None;
            if let Some(device) = &device.device {
                device.ejected();
            }
        }
        self.close_device(channel);
    }

    /// Opens the drivers of VFs whose adapters are known.
    pub(super) fn join_devices(&mut self) {
        let now = Instant::now();
        let busy: Vec<u32> = self
            .devices
            .iter()
            .filter_map(|device| match device.driver {
                Driver::Opening(number) | Driver::With(number) => Some(number),
                Driver::None => None,
            })
            .collect();
        for device in &mut self.devices {
            if device.driver != Driver::None
                || device.ejecting
                || device.rescinded
                || device.retry.is_some_and(|at| now < at)
            {
                continue;
            }
            let (Some(serial), Some(bus)) = (device.serial, &device.device) else {
                continue;
            };
            let nic = self.nics.iter().find(|nic| nic.associated == Some(serial));
            let Some(nic) = nic.filter(|nic| !busy.contains(&nic.number)) else {
                continue;
            };
            device.retry = None;
            match bus.transport() {
                Ok(transport) => {
                    device.driver = Driver::Opening(nic.number);
                    let opening = Opening {
                        interface: format!("eth{}", nic.number),
                        channel: device.channel,
                        inbox: self.inbox.clone(),
                    };
                    let queue_pairs = self.queue_pairs;
                    opening.run(move |interface| open_vf(transport, queue_pairs, interface), false);
                }
                Err(error) => tracing::warn!(%error, serial, "the VF cannot be reached"),
            }
        }
    }

    /// A driver was opened, or brought up again, or not.
    pub(super) fn vf_opened(
        &mut self,
        channel: ChannelId,
        vf: Result<Box<VfPath>, String>,
        after_reset: bool,
    ) {
        let Some(device) = self.device(channel) else {
            return;
        };
        let Driver::Opening(number) = device.driver else {
            return;
        };
        device.driver = Driver::None;
        let wanted = !device.ejecting && !device.rescinded;
        match vf {
            Ok(vf) => {
                device.attempts = 0;
                let serial = device.serial.filter(|_| wanted);
                let carrier = self.adapters.handle(number);
                match (serial, carrier) {
                    (Some(serial), Some(carrier)) => {
                        if let Some(device) = self.device(channel) {
                            device.driver = Driver::With(number);
                        }
                        carrier.command(Command::Vf { vf, serial, after_reset });
                        return;
                    }
                    _ => close_vf(*vf),
                }
            }
            Err(error) => {
                device.attempts += 1;
                tracing::warn!(error, "the VF's driver does not come up");
                device.retry =
                    (wanted && device.attempts < ATTEMPTS).then(|| Instant::now() + RETRY);
            }
        }
        self.driver_dropped(channel);
    }

    /// No driver uses the device any more.
    fn driver_dropped(&mut self, channel: ChannelId) {
        match self.device(channel) {
            Some(device) if device.rescinded => self.close_device(channel),
            Some(device) if device.ejecting => self.ejected(channel),
            _ => self.join_devices(),
        }
    }

    /// A carrier gave its VF back.
    pub(super) fn vf_returned(&mut self, number: u32, vf: VfPath, end: VfEnd) {
        let device = self.devices.iter_mut().find(|d| d.driver == Driver::With(number));
        let Some(device) = device else {
            return close_vf(vf);
        };
        let channel = device.channel;
        let wanted = !device.ejecting && !device.rescinded && device.serial.is_some();
        match end {
            VfEnd::Reset if wanted => {
                device.driver = Driver::Opening(number);
                let opening = Opening {
                    interface: format!("eth{number}"),
                    channel,
                    inbox: self.inbox.clone(),
                };
                opening.run(move |_| rebuild_vf(vf), true);
                return;
            }
            VfEnd::Gone => drop(vf),
            VfEnd::Ejected | VfEnd::Reset => close_vf(vf),
        }
        device.driver = Driver::None;
        if end == VfEnd::Gone && wanted {
            // The driver believes so before the bus does, or has lost its way: it is opened again if the function is
            // still there then.
            device.retry = Some(Instant::now() + RETRY);
        }
        self.driver_dropped(channel);
    }

    pub(super) fn retry_devices(&mut self, now: Instant) {
        if self.devices.iter().any(|device| device.retry.is_some_and(|at| now >= at)) {
            for device in &mut self.devices {
                device.retry = device.retry.filter(|at| now < *at);
            }
            self.join_devices();
        }
    }
}

/// A driver on its way up, on a thread of its own.
struct Opening {
    interface: String,
    channel: ChannelId,
    inbox: Inbox,
}

impl Opening {
    fn run(
        self,
        open: impl FnOnce(&str) -> Result<VfPath, String> + Send + 'static,
        after_reset: bool,
    ) {
        let Self { interface, channel, inbox } = self;
        let failed = inbox.clone();
        let work = move || {
            let vf = open(&interface).map(Box::new);
            inbox.send(Message::VfOpened { channel, vf, after_reset });
        };
        if let Err(error) = std::thread::Builder::new().name("vf driver".to_owned()).spawn(work) {
            let vf = Err(format!("no thread for it: {error}"));
            failed.send(Message::VfOpened { channel, vf, after_reset });
        }
    }
}

fn open_vf(transport: VpciTransport, queue_pairs: u16, interface: &str) -> Result<VfPath, String> {
    let mut vf = VfPath::open_on(transport, queue_pairs).map_err(|error| explain(&error))?;
    // Now, so that the carrier need not.
    let mut route = RouteSocket::open().map_err(|error| error.to_string())?;
    if let Ok(Some(link)) = route.link(interface) {
        vf.update_filters(&KernelFilters::new(interface, link.index, route).read());
    }
    Ok(vf)
}

fn rebuild_vf(mut vf: VfPath) -> Result<VfPath, String> {
    for _ in 1..ATTEMPTS {
        match vf.rebuild() {
            Ok(()) => return Ok(vf),
            Err(error @ DriverError::DeviceGone) => return Err(explain(&error)),
            Err(error) => {
                tracing::warn!(%error, "the VF could not be brought up again yet");
                std::thread::sleep(RETRY);
            }
        }
    }
    vf.rebuild().map_err(|error| explain(&error))?;
    Ok(vf)
}

fn explain(error: &DriverError) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    message
}

fn close_vf(vf: VfPath) {
    if let Err(error) = vf.close() {
        tracing::info!(%error, "the VF could not be given back in good order");
    }
}

/// What the compiler should hold: a device may be looked after by the bus thread whatever thread its driver is on.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<VpciDevice>>();
};
