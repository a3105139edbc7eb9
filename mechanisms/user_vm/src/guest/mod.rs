//! The guest's side of a VM: its network interfaces, and the carriers between those and their paths.
//!
//! Nothing here knows who started the VM or who talks to it.
//!
//! | module | what it is |
//! | --- | --- |
//! | `network`, `interface`, `tap`, `veth` | an interface of the guest, and its far side |
//! | `carrier` | the thread between an interface and its paths |
//! | `paths` | which path is used: a state machine |
//! | `vf`, `synthetic` | the two paths, as the carrier uses them |
//! | `translate` | offload metadata |
//! | `bus` | VMBus: adapters and devices come and go |
//! | `vpci` | the VF behind VPCI |

mod adapters;
mod bus;
mod carrier;
mod counters;
mod filters;
mod frames;
mod interface;
mod network;
mod paths;
mod synthetic;
mod tap;
mod translate;
mod veth;
mod vf;
mod vpci;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use linux_network::NetworkError;

use self::{
    adapters::{Adapter, Adapters},
    bus::{Bus, BusStart},
    carrier::{Carrier, CarrierConfig, Command, Notice, VfSource},
    network::{InterfaceConfig, create_interface, set_up_loopback},
    vf::{VfConfig, VfPath},
};
use crate::{GuestNetwork, OnVfLoss, StartFailure, StartFailureKind, UserVmConfig, VmStatistics};

/// MTU of an interface unless told otherwise.
const USUAL_MTU: u32 = 1500;
/// Bytes of an Ethernet header with one VLAN tag, which a frame has beside its payload.
const FRAME_OVERHEAD: usize = 18;
/// The least MTU that IPv4 and Linux allow.
const LEAST_MTU: usize = 68;
/// How long the kernel may take to start an interface's queue before the VM counts as ready all the same.
const LINK_TIME: Duration = Duration::from_secs(2);

/// What the VM's main thread hears of its guest's side.
#[derive(Debug)]
pub(crate) enum GuestEvent {
    /// The VF of a VM that has nothing else is gone, and why.
    VfLost(String),
    /// A VF was found again.
    VfFound,
    /// The guest's side cannot go on.
    Failed(String),
    /// The answer to [`Guest::set_vf`], from one adapter.
    VfSet {
        /// The request.
        ticket: u64,
        /// Whether the data path is as it was asked to be.
        done: bool,
    },
}

/// Tells the VM's main thread. Clones tell the same one.
#[derive(Clone, Debug)]
struct Tell {
    events: Sender<GuestEvent>,
    /// Readable when there is an event.
    ready: Arc<OwnedFd>,
}

impl Tell {
    fn tell(&self, event: GuestEvent) {
        if self.events.send(event).is_ok() {
            carrier::signal(&self.ready);
        }
    }
}

/// The guest's side of a running VM.
#[derive(Debug)]
pub(crate) struct Guest {
    adapters: Arc<Adapters>,
    bus: Option<Bus>,
    events: Receiver<GuestEvent>,
    ready: Arc<OwnedFd>,
    next_ticket: u64,
}

fn interface_failed(error: NetworkError) -> StartFailure {
    StartFailure::new(StartFailureKind::Interface, &error)
}

impl Guest {
    /// Starts the guest's side: with the guest end of its partition, or on its VF.
    pub(crate) fn start(
        config: &UserVmConfig,
        partition: Option<OwnedFd>,
    ) -> Result<Self, StartFailure> {
        let ready = Arc::new(carrier::new_event().map_err(interface_failed)?);
        let (sender, events) = channel();
        let tell = Tell { events: sender, ready: Arc::clone(&ready) };
        let adapters = Arc::new(Adapters::default());
        set_up_loopback().map_err(interface_failed)?;
        let bus = match (&config.path, partition) {
            (GuestNetwork::Vf { socket }, _) => {
                let vf = |error| StartFailure::new(StartFailureKind::Vf, &error);
                let vf_config =
                    VfConfig::new(&config.name, socket, config.queue_pairs, config.memory)
                        .map_err(vf)?;
                let path = VfPath::open_within(&vf_config, config.start_timeout).map_err(vf)?;
                adapters.add(Self::on_vf(config, path, vf_config, tell)?);
                None
            }
            (GuestNetwork::Vmbus, Some(partition)) => {
                let start = BusStart { config, partition, adapters: &adapters, tell };
                Some(Bus::start(start)?)
            }
            (GuestNetwork::Vmbus, None) => {
                return Err(StartFailure {
                    kind: StartFailureKind::Vmbus,
                    message: "the VM was started without the guest end of a partition".to_owned(),
                });
            }
        };
        adapters.wait_until_running(LINK_TIME);
        Ok(Self { adapters, bus, events, ready, next_ticket: 0 })
    }

    fn on_vf(
        config: &UserVmConfig,
        path: VfPath,
        vf_config: VfConfig,
        tell: Tell,
    ) -> Result<Adapter, StartFailure> {
        let most = u32::try_from(path.max_frame().saturating_sub(FRAME_OVERHEAD).max(LEAST_MTU));
        let most = most.unwrap_or(u32::MAX);
        let mtu = config.mtu.unwrap_or(USUAL_MTU).min(most);
        if let Some(asked) = config.mtu.filter(|asked| *asked > most) {
            tracing::warn!(asked, most, "eth0 has the largest MTU that the VF's frames allow");
        }
        let (network, interface) = create_interface(&InterfaceConfig {
            name: "eth0",
            kind: config.interface,
            mac: Some(path.mac()),
            mtu,
            largest_segmented: None,
            queue_length: None,
            addresses: &config.addresses,
            gateway: config.gateway,
        })
        .map_err(interface_failed)?;
        let source = VfSource { config: vf_config, reconnect: config.on_vf_loss == OnVfLoss::Wait };
        let carrier = Carrier::start(CarrierConfig {
            vf: Some((path, source)),
            interface,
            name: network.interface().to_owned(),
            index: network.index(),
            tell: Box::new(move |notice| match notice {
                Notice::Lost(reason) => tell.tell(GuestEvent::VfLost(reason)),
                Notice::Found => tell.tell(GuestEvent::VfFound),
                Notice::Failed(reason) => tell.tell(GuestEvent::Failed(reason)),
                Notice::VfSet { ticket, done } => tell.tell(GuestEvent::VfSet { ticket, done }),
                // There is nothing but the VF, and it is the carrier's own.
                _ => {}
            }),
        })
        .map_err(interface_failed)?;
        Ok(Adapter { number: 0, network, carrier })
    }

    /// Readable when there is an event.
    pub(crate) fn event_fd(&self) -> impl AsFd {
        self.ready.as_fd()
    }

    /// The next event.
    pub(crate) fn next_event(&self) -> Option<GuestEvent> {
        carrier::clear(&self.ready);
        self.events.try_recv().ok()
    }

    /// Brings the VF's driver of an adapter up or down; of all, if `None`. Returns how the request is called in the answers,
    /// and how many will come.
    pub(crate) fn set_vf(&mut self, adapter: Option<u32>, up: bool) -> (u64, usize) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let count = self.adapters.command(adapter, || Command::SetVf { ticket, up });
        (ticket, count)
    }

    /// What was counted.
    pub(crate) fn statistics(&self) -> VmStatistics {
        let adapters = self.adapters.statistics();
        let first = adapters.first().cloned().unwrap_or_default();
        VmStatistics {
            vf: first.vf_state,
            eth0: first.kernel,
            to_vf: first.from_guest,
            to_guest: first.to_guest,
            adapters,
        }
    }

    /// Gives VFs back in good order, and ends VMBus.
    pub(crate) fn stop(self) {
        self.adapters.stop();
        if let Some(bus) = self.bus {
            bus.stop();
        }
    }
}
