//! The guest's network: `lo`, and interfaces with what the VM was told to give them.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use linux_network::{LinkChange, MacAddress, NetworkError, RouteSocket};

use super::{interface::GuestInterface, tap::TapInterface, veth::VethInterface};
use crate::{GuestInterfaceKind, InterfaceAddress, InterfaceCounters};

/// How often an interface is looked at that is about to run.
const RUNNING_POLL: Duration = Duration::from_millis(2);

/// The guest's interface as its own side sees it.
#[derive(Debug)]
pub(crate) struct Network {
    route: RouteSocket,
    name: String,
    index: u32,
}

/// What an interface is to be like.
#[derive(Debug)]
pub(crate) struct InterfaceConfig<'a> {
    /// `eth0`, or another.
    pub(crate) name: &'a str,
    pub(crate) kind: GuestInterfaceKind,
    /// The kernel chooses one for now, if there is none.
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    /// Bytes of the largest packet that a path cuts into frames, if that is less than the kernel's limit.
    pub(crate) largest_segmented: Option<u32>,
    /// Packets that its queue holds, if not as many as usual.
    pub(crate) queue_length: Option<u32>,
    pub(crate) addresses: &'a [InterfaceAddress],
    pub(crate) gateway: Option<IpAddr>,
}

/// Sets up `lo` in this thread's network namespace.
pub(crate) fn set_up_loopback() -> Result<(), NetworkError> {
    let mut route = RouteSocket::open()?;
    if let Some(lo) = route.link("lo")? {
        route.change_link(lo.index, &LinkChange { up: Some(true), ..Default::default() })?;
    }
    Ok(())
}

/// Creates an interface in this thread's network namespace, up but without a carrier.
pub(crate) fn create_interface(
    config: &InterfaceConfig<'_>,
) -> Result<(Network, Box<dyn GuestInterface>), NetworkError> {
    let mut route = RouteSocket::open()?;
    let name = config.name;
    let up = LinkChange { up: Some(true), ..Default::default() };
    let tap = || TapInterface::create(name).map(|tap| Box::new(tap) as Box<dyn GuestInterface>);
    let mut interface = match config.kind {
        GuestInterfaceKind::Tap => tap()?,
        GuestInterfaceKind::Veth => Box::new(VethInterface::create(&mut route, name)?),
        GuestInterfaceKind::Auto => match tap() {
            Ok(tap) => tap,
            Err(NetworkError::TunDevice(error)) => {
                tracing::info!(%error, "{name} is a veth pair, since /dev/net/tun cannot be opened");
                Box::new(VethInterface::create(&mut route, name)?)
            }
            Err(error) => return Err(error),
        },
    };
    interface.set_carrier(false)?;
    let link = route.link(name)?.ok_or_else(|| NetworkError::NoInterface(name.to_owned()))?;
    let shape = LinkChange {
        mac: config.mac.map(MacAddress),
        mtu: Some(config.mtu),
        queue_length: config.queue_length,
        largest_segmented: config.largest_segmented,
        ..Default::default()
    };
    route.change_link(link.index, &shape)?;
    route.change_link(link.index, &up)?;
    for address in config.addresses {
        route.add_address(link.index, address.address, address.prefix_length)?;
    }
    if let Some(gateway) = config.gateway {
        route.set_default_route(link.index, gateway)?;
    }
    Ok((Network { route, name: name.to_owned(), index: link.index }, interface))
}

impl Network {
    /// Name of the interface.
    pub(crate) fn interface(&self) -> &str {
        &self.name
    }

    /// Index of the interface.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// What the guest's kernel counted.
    pub(crate) fn counters(&mut self) -> Result<InterfaceCounters, NetworkError> {
        let link = self.route.link_at(self.index)?;
        let counts = link.map(|link| link.statistics).unwrap_or_default();
        Ok(InterfaceCounters {
            receive_packets: counts.receive_packets,
            receive_bytes: counts.receive_bytes,
            receive_dropped: counts.receive_dropped,
            transmit_packets: counts.transmit_packets,
            transmit_bytes: counts.transmit_bytes,
            transmit_dropped: counts.transmit_dropped,
        })
    }

    /// Waits until packets pass: after the carrier comes the kernel takes a moment to start the interface's
    /// queue, and until then loses what the guest sends. Not waited for longer than `limit`.
    pub(crate) fn wait_until_running(&mut self, limit: Duration) {
        let start = Instant::now();
        while !matches!(self.route.link_at(self.index), Ok(Some(link)) if link.running)
            && start.elapsed() < limit
        {
            std::thread::sleep(RUNNING_POLL);
        }
    }
}
