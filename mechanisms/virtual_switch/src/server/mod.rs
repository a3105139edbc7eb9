//! A virtual switch behind its device control socket: ports are made and told of VFs by the virtualization stack, and
//! channels are opened by VM workers ([`control`](crate::control)).
//!
//! Nothing here is on the frame path. What control changes runs between two rounds of the switch's thread, which waits
//! for no other thread: what a port wants to be done, or has become, is noted without a lock, and a thread of its own
//! (`reports`) looks into it.

mod channels;
mod handler;
mod ports;
mod reports;
mod status;
mod uplink;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use ::uplink::{SpecError, UplinkError, UplinkSpec};
use device_control::{DeviceControlServer, DriverName, ServerConfig, ServerError};
use linux_network::{MacAddress, NetworkError, RouteSocket};
use ndis_protocol::VPortId;
use nic_switch::{SwitchError, VPortPolicy, VlanMatch};
use shared_memory::MemoryError;

pub use self::uplink::SwitchUplink;
use self::{
    handler::Handler,
    ports::Ports,
    reports::Reporter,
    uplink::{AdapterUplink, MAX_FRAME},
};
use crate::{
    PortPolicy, SwitchHandle, SwitchStopped, UplinkPort, VirtualSwitch, Worker,
    control::{AdapterUplink as AdapterLevel, MAX_PORTS, UplinkReport},
};

/// Name of the device control socket in the switch's folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The device control socket of a switch whose folder is `directory`.
#[must_use]
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join(CONTROL_SOCKET)
}

/// How a switch is to be.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// Its name, and its device's.
    pub name: String,
    /// Folder of its socket.
    pub directory: PathBuf,
    /// What it is connected to.
    pub uplink: SwitchUplink,
    /// TAP device by which the host itself is connected (AllowManagementOS).
    pub host_interface: Option<String>,
    /// CPU to which its thread is bound.
    pub cpu: Option<usize>,
}

impl SwitchConfig {
    /// A switch without uplink and host interface.
    #[must_use]
    pub fn new(name: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            directory: directory.into(),
            uplink: SwitchUplink::Other(UplinkSpec::None),
            host_interface: None,
            cpu: None,
        }
    }
}

/// Why a switch cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The name.
    #[error("{0:?} is not a name for a switch: 1 to 64 printable characters without spaces")]
    Name(String),
    /// Its uplink's name.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its uplink, or the host's interface.
    #[error("the switch cannot be connected to {interface}")]
    Uplink {
        /// To what.
        interface: String,
        /// Why.
        #[source]
        source: UplinkError,
    },
    /// The host's interface has no address.
    #[error("the address of the host interface {interface} cannot be read")]
    HostAddress {
        /// Its name.
        interface: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// The host's interface has no address that can be one.
    #[error(
        "the host interface {interface} has no unicast address: set one with `ip link set dev {interface} address`"
    )]
    HostPort {
        /// Its name.
        interface: String,
        /// Why.
        #[source]
        source: SwitchError,
    },
    /// Memory.
    #[error("there is no memory for the switch")]
    Memory(#[from] MemoryError),
    /// A thread, or the CPU that it is to run on.
    #[error("a thread of the switch cannot be started")]
    Thread(#[source] io::Error),
    /// The thread that drives it.
    #[error(transparent)]
    Stopped(#[from] SwitchStopped),
    /// The control socket.
    #[error("the device control socket cannot be served")]
    Control(#[source] ServerError),
}

/// The host's own interface.
#[derive(Clone, Debug)]
struct Host {
    interface: String,
    mac: MacAddress,
}

/// What is connected once nobody else serves the folder.
#[derive(Debug, Default)]
struct Connections {
    host: OnceLock<Host>,
    /// The uplink, if it is one by way of an adapter.
    adapter: OnceLock<AdapterUplink>,
}

/// A running switch. Dropping it ends it and removes its socket.
pub struct SwitchServer {
    // In the order in which they end: nobody asks any more, the uplink is let go of, nothing is reported any more, and
    // then the thread that drives the switch.
    control: Option<DeviceControlServer>,
    _connections: Arc<Connections>,
    _reporter: Reporter,
    _worker: Worker,
    shutdown: crossbeam_channel::Receiver<()>,
}

impl SwitchServer {
    /// Starts the switch and serves device control.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then. That an adapter is not there is none.
    pub fn start(config: SwitchConfig) -> Result<Self, StartError> {
        let device =
            DriverName::new(&config.name).map_err(|_| StartError::Name(config.name.clone()))?;
        let worker = Worker::start(VirtualSwitch::new(MAX_PORTS + 1)?, config.cpu)
            .map_err(StartError::Thread)?;
        let switch = worker.handle().clone();
        let (news, reporter) = Reporter::prepare();
        let uplink = match &config.uplink {
            SwitchUplink::Adapter(_) => Some(AdapterLevel::default()),
            SwitchUplink::Other(_) => None,
        };
        let ports = Ports::new(switch.clone(), news, UplinkReport { adapter: uplink });
        let ports = Arc::new(ports);
        let reporter = reporter.start(Arc::clone(&ports)).map_err(StartError::Thread)?;
        let (ask, shutdown) = crossbeam_channel::bounded(1);
        let connections = Arc::<Connections>::default();
        let handler = Handler {
            name: config.name.clone(),
            spec: config.uplink.clone(),
            connections: Arc::clone(&connections),
            ports: Arc::clone(&ports),
            switch: switch.clone(),
            shutdown: ask,
        };
        // The socket's lock comes first: whatever is opened below is not another instance's then.
        let path = control_socket(&config.directory);
        let control =
            DeviceControlServer::start(ServerConfig::new(path, device), Arc::new(handler))
                .map_err(StartError::Control)?;
        let server = Self {
            control: Some(control),
            _connections: Arc::clone(&connections),
            _reporter: reporter,
            _worker: worker,
            shutdown,
        };
        connect(&config, &switch, &ports, &connections)?;
        Ok(server)
    }

    /// Where device control is served.
    #[must_use]
    pub fn control_path(&self) -> Option<&Path> {
        self.control.as_ref().map(DeviceControlServer::path)
    }

    /// Becomes readable when a client has asked the switch to end.
    #[must_use]
    pub fn shutdown_requested(&self) -> &crossbeam_channel::Receiver<()> {
        &self.shutdown
    }
}

impl std::fmt::Debug for SwitchServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwitchServer").field("path", &self.control_path()).finish_non_exhaustive()
    }
}

/// Connects the host's own interface and the uplink.
fn connect(
    config: &SwitchConfig,
    switch: &SwitchHandle,
    ports: &Arc<Ports>,
    connections: &Connections,
) -> Result<(), StartError> {
    if let Some(interface) = &config.host_interface {
        // Set once, here.
        let _ = connections.host.set(connect_host(switch, interface)?);
    }
    match &config.uplink {
        SwitchUplink::Adapter(directory) => {
            let host = connections.host.get().map(|host| avf_driver::MacAddress(host.mac.0));
            let kept = AdapterUplink::start(directory.clone(), host, Arc::clone(ports));
            // As above.
            let _ = connections.adapter.set(kept.map_err(StartError::Thread)?);
        }
        SwitchUplink::Other(UplinkSpec::None) => {}
        SwitchUplink::Other(spec) => {
            let port = open(spec)?;
            switch.run(move |switch| switch.set_uplink(Some(Box::new(port))))?;
        }
    }
    Ok(())
}

fn open(spec: &UplinkSpec) -> Result<UplinkPort, StartError> {
    let opened = ::uplink::open(spec, MAX_FRAME);
    let opened =
        opened.map_err(|source| StartError::Uplink { interface: spec.to_string(), source })?;
    Ok(UplinkPort::new(opened, MAX_FRAME)?)
}

/// Connects the host's own interface to port 0.
fn connect_host(switch: &SwitchHandle, interface: &str) -> Result<Host, StartError> {
    let spec: UplinkSpec = format!("tap:{interface}").parse()?;
    let port = open(&spec)?;
    let link = RouteSocket::open().and_then(|mut route| route.link(interface));
    let link =
        link.and_then(|link| link.ok_or_else(|| NetworkError::NoInterface(interface.to_owned())));
    let interface = interface.to_owned();
    let mac = match link {
        Ok(link) => link.mac,
        Err(source) => return Err(StartError::HostAddress { interface, source }),
    };
    // The host is trusted: it may bridge.
    let policy = PortPolicy {
        mac: ndis_protocol::MacAddress::new(mac.0),
        receives: VlanMatch::UntaggedOrZero,
        vport: VPortPolicy { allow_spoofing: true, ..VPortPolicy::default() },
    };
    let connected =
        switch.run(move |switch| switch.connect(VPortId::DEFAULT, policy, Box::new(port)))?;
    match connected {
        Ok(()) => Ok(Host { interface, mac }),
        Err(source) => Err(StartError::HostPort { interface, source }),
    }
}
