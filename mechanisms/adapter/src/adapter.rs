//! The adapter: PF, VFs and VPorts, and the sockets that functions are served on.
//!
//! This is the hardware and its PF miniport in one: [`crate::miniport`] puts the NDIS contract in front of it.
//! Requests are checked there and by NDIS; what is checked here is what hardware would check.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use avf_device::{InterruptVectors, VfConfig};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, SwitchError, VPortPolicy};
use pci_function::{PhysicalFunction, VirtualizationRequest, avf};
use pcie_protocol::{PciLocation, VfIndex};
use uplink::UplinkSpec;
use vfio_user_server::{ServerOptions, VfioUserServer};

use crate::{
    AdapterConfig, AdapterError, FunctionStats, UplinkStats,
    data_path::{DataPath, DataPathHandle, DataPathStopped, FunctionSlot, Worker},
    function::{AvfFunction, FunctionHost, FunctionPolicy, SharedLink},
    resources::Resources,
    vf_drivers::VfDrivers,
};

/// VSI id of the PF; VF n has n + 2.
const PF_VSI: u16 = 1;

/// A function and the socket it is served on. Fields drop in order: first the server, which calls the other.
pub(crate) struct Served {
    /// Gone once the adapter has been closed.
    server: Mutex<Option<VfioUserServer>>,
    pub(crate) function: Arc<Mutex<AvfFunction>>,
}

impl Served {
    fn is_connected(&self) -> bool {
        lock(&self.server).as_ref().is_some_and(VfioUserServer::is_connected)
    }
}

/// An allocated VF.
pub(crate) struct Vf {
    pub(crate) served: Served,
    /// Its VPort, once it has one.
    vport: Option<VPortId>,
    mac: MacAddress,
}

/// A VPort that is not the default one.
struct VPort {
    function: FunctionId,
    queue_pairs: u16,
    policy: VPortPolicy,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) vfs: BTreeMap<VfId, Vf>,
    vports: BTreeMap<VPortId, VPort>,
}

/// A software SR-IOV NIC. Dropping it ends its threads and removes its sockets.
pub struct Adapter {
    // Threads that call functions end before the worker that functions call.
    link_thread: Option<JoinHandle<()>>,
    link_changes: Option<crossbeam_channel::Sender<()>>,
    pub(crate) state: Arc<Mutex<State>>,
    pf: Served,
    pci: Mutex<PhysicalFunction>,
    link: Arc<SharedLink>,
    drivers: Arc<VfDrivers>,
    config: AdapterConfig,
    worker: Worker,
}

/// An allocated VF, for reports.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct AllocatedVf {
    /// Its id.
    pub id: VfId,
    /// The address assigned to it; zero leaves the choice to its guest.
    pub mac: MacAddress,
    /// Its VPort.
    pub vport: Option<VPortId>,
    /// Queue pairs it has.
    pub queue_pairs: u16,
}

/// What is refused for lack of a thing, or because of its state.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// All VFs are allocated.
    #[error("all {0} virtual functions are allocated")]
    OutOfVfs(u16),
    /// The VF is not allocated.
    #[error("virtual function {} is not allocated", .0.get())]
    NoSuchVf(VfId),
    /// The VF has a VPort.
    #[error("virtual function {} is attached to a VPort", .0.get())]
    VfAttached(VfId),
    /// There is no such VPort.
    #[error("there is no VPort {}", .0.get())]
    NoSuchVPort(VPortId),
    /// The switch refuses.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The PCI function refuses.
    #[error(transparent)]
    Virtualization(#[from] pci_function::VirtualizationError),
    /// The adapter fails.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl From<DataPathStopped> for RequestError {
    fn from(stopped: DataPathStopped) -> Self {
        Self::Adapter(stopped.into())
    }
}

impl Adapter {
    /// Powers the adapter on: data path, PF and its socket. VFs come with [`Self::enable_vfs`].
    ///
    /// # Errors
    /// When the uplink, a socket or a thread cannot be had.
    pub fn start(config: AdapterConfig) -> Result<Self, AdapterError> {
        let uplink = open_uplink(&config.uplink, config.max_frame)?;
        let vports = usize::try_from(config.vports()).unwrap_or(usize::MAX);
        let mut data_path = DataPath::new(vports, vports, config.max_frame.into(), uplink);
        let link = Arc::new(SharedLink::default());
        link.set(data_path.link());
        let (link_changes, changed) = crossbeam_channel::bounded(1);
        data_path.on_link_change({
            let (link, tell) = (Arc::clone(&link), link_changes.clone());
            move |state| {
                link.set(state);
                // Full: a look at the link is due already.
                let _ = tell.try_send(());
            }
        });
        let drivers = Arc::new(VfDrivers::new(vports));
        data_path.on_receiving_change({
            let drivers = Arc::clone(&drivers);
            move |slot, receiving| drivers.set_receiving(slot, receiving)
        });
        let worker =
            Worker::start(data_path, config.worker.clone()).map_err(AdapterError::Thread)?;
        let mut pci = avf::adapter(
            &avf::PhysicalFunctionConfig {
                msi_x_vectors: config.default_vport_queue_pairs + 1,
                total_vfs: config.total_vfs,
                ..avf::PhysicalFunctionConfig::default()
            },
            Resources::FIRST.location(),
        )
        .map_err(AdapterError::Pci)?;
        Resources::FIRST.assign(&mut pci).map_err(AdapterError::Pci)?;
        let host = FunctionHost {
            slot: FunctionSlot::PF,
            data_path: worker.handle().clone(),
            link: Arc::clone(&link),
            policy: FunctionPolicy {
                mac: config.mac,
                allow_spoofing: true,
                allow_promiscuous: false,
                queue_pairs: config.default_vport_queue_pairs,
            },
            drivers: Arc::clone(&drivers),
            vf: None,
        };
        // The PF's queue pairs without the SR-IOV capability: VFs are enabled by OIDs, not by whoever drives
        // the queue pairs.
        let queue_pairs = avf::virtual_function(config.default_vport_queue_pairs + 1)
            .map_err(AdapterError::Pci)?;
        let pf = serve("pf", PF_VSI, queue_pairs, host, &config)?;
        // With the PF's socket the folder is this adapter's: one that lives would have kept it.
        remove_stale_sockets(&config.directory);
        let state = Arc::<Mutex<State>>::default();
        let link_thread = std::thread::Builder::new()
            .name("link".into())
            .spawn({
                let (state, pf) = (Arc::clone(&state), Arc::clone(&pf.function));
                move || {
                    while changed.recv().is_ok() {
                        let functions: Vec<_> = lock(&state)
                            .vfs
                            .values()
                            .map(|vf| Arc::clone(&vf.served.function))
                            .chain([Arc::clone(&pf)])
                            .collect();
                        functions.iter().for_each(|function| lock(function).link_changed());
                    }
                }
            })
            .map_err(AdapterError::Thread)?;
        Ok(Self {
            link_thread: Some(link_thread),
            link_changes: Some(link_changes),
            state,
            pf,
            pci: Mutex::new(pci),
            link,
            drivers,
            config,
            worker,
        })
    }

    /// What it was made of.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The socket of a function: the PF's own queue pairs, or a VF.
    pub fn socket(&self, function: FunctionId) -> PathBuf {
        self.config.directory.join(match function {
            FunctionId::Pf => "pf.sock".to_owned(),
            FunctionId::Vf(vf) => format!("vf{}.sock", vf.get()),
        })
    }

    fn data_path(&self) -> &DataPathHandle {
        self.worker.handle()
    }

    /// The PF's PCI function with its SR-IOV capability.
    pub fn pci(&self) -> MutexGuard<'_, PhysicalFunction> {
        lock(&self.pci)
    }

    /// Brings the switch up: VFs exist, and the PF's queue pairs are on the default VPort.
    pub fn enable_vfs(&self, num_vfs: u16) -> Result<(), RequestError> {
        if num_vfs > 0 {
            self.pci().enable_virtualization(VirtualizationRequest::enable(num_vfs))?;
        }
        self.data_path().run(|data_path| data_path.bind(VPortId::DEFAULT, FunctionSlot::PF))??;
        Ok(())
    }

    /// Takes the switch down. All VFs must have been freed.
    pub fn disable_vfs(&self) -> Result<(), RequestError> {
        self.data_path().run(|data_path| data_path.unbind(VPortId::DEFAULT))??;
        let mut pci = self.pci();
        if pci.active_vfs() > 0 {
            pci.enable_virtualization(VirtualizationRequest::disable())?;
        }
        Ok(())
    }

    /// Allocates a VF and serves it on its socket. `mac` is the address that its guest is to have; zero
    /// leaves the choice to the guest.
    pub fn allocate_vf(&self, mac: MacAddress) -> Result<(VfId, PciLocation), RequestError> {
        let mut state = lock(&self.state);
        let enabled = self.pci().active_vfs();
        let vf = (0..enabled)
            .filter_map(VfId::new)
            .find(|vf| !state.vfs.contains_key(vf))
            .ok_or(RequestError::OutOfVfs(enabled))?;
        let location = self.pci().vf_location(VfIndex::from(vf.get()))?;
        // Before anybody can connect to it.
        self.drivers.allocated(vf, mac);
        let served = self.serve_vf(vf, mac, 1, false).inspect_err(|_| self.drivers.freed(vf))?;
        state.vfs.insert(vf, Vf { served, vport: None, mac });
        Ok((vf, location))
    }

    fn serve_vf(
        &self,
        vf: VfId,
        mac: MacAddress,
        queue_pairs: u16,
        allow_spoofing: bool,
    ) -> Result<Served, AdapterError> {
        let config = avf::virtual_function(queue_pairs + 1).map_err(AdapterError::Pci)?;
        let host = FunctionHost {
            slot: FunctionSlot::vf(vf),
            data_path: self.data_path().clone(),
            link: Arc::clone(&self.link),
            policy: FunctionPolicy { mac, allow_spoofing, allow_promiscuous: false, queue_pairs },
            drivers: Arc::clone(&self.drivers),
            vf: Some(vf),
        };
        serve(&format!("vf{}", vf.get()), PF_VSI + 1 + vf.get(), config, host, &self.config)
    }

    /// Frees a VF that has no VPort; its socket goes away, and to a guest that is still there the device.
    pub fn free_vf(&self, vf: VfId) -> Result<(), RequestError> {
        if let Ok(FunctionStats { receive, transmit }) = self.stats(FunctionId::Vf(vf)) {
            tracing::debug!(%vf, ?receive, ?transmit, "what passed the VF that is freed");
        }
        let mut state = lock(&self.state);
        match state.vfs.get(&vf) {
            None => return Err(RequestError::NoSuchVf(vf)),
            Some(Vf { vport: Some(_), .. }) => return Err(RequestError::VfAttached(vf)),
            Some(_) => {}
        }
        let freed = state.vfs.remove(&vf);
        self.drivers.freed(vf);
        // Ending the server waits for its thread: not under the lock that the link thread takes.
        drop(state);
        drop(freed);
        Ok(())
    }

    /// Creates a VPort on the switch and attaches a function to it. A VF's VPort is active at once, one of
    /// the PF after [`Self::activate_vport`].
    pub fn create_vport(
        &self,
        vport: VPortId,
        function: FunctionId,
        queue_pairs: u16,
        moderation: InterruptModeration,
    ) -> Result<(), RequestError> {
        let mut state = lock(&self.state);
        let slot = match function {
            FunctionId::Pf => FunctionSlot::PF,
            FunctionId::Vf(id) => {
                let vf = state.vfs.get(&id).ok_or(RequestError::NoSuchVf(id))?;
                if vf.vport.is_some() {
                    return Err(RequestError::VfAttached(id));
                }
                FunctionSlot::vf(id)
            }
        };
        self.data_path().run(move |data_path| data_path.switch().create_vport(vport))??;
        if let FunctionId::Vf(id) = function
            && queue_pairs > 1
        {
            // The function was made with one queue pair; its hardware is now given more.
            let mac = state.vfs.get(&id).map_or(MacAddress::ZERO, |vf| vf.mac);
            drop(state.vfs.remove(&id));
            match self.serve_vf(id, mac, queue_pairs, false) {
                Ok(served) => drop(state.vfs.insert(id, Vf { served, vport: None, mac })),
                Err(error) => {
                    self.data_path()
                        .run(move |data_path| data_path.switch().delete_vport(vport))??;
                    return Err(error.into());
                }
            }
        }
        if let FunctionId::Vf(id) = function
            && let Some(vf) = state.vfs.get_mut(&id)
        {
            let assigned = (vf.mac != MacAddress::ZERO).then_some(vf.mac);
            self.data_path().run(move |data_path| {
                data_path.bind(vport, slot)?;
                data_path.switch().set_assigned_address(vport, assigned)
            })??;
            vf.vport = Some(vport);
            let mut function = lock(&vf.served.function);
            function.set_least_interrupt_interval(least_interval_ns(moderation));
            function.reapply();
        }
        let policy = VPortPolicy::default();
        state.vports.insert(vport, VPort { function, queue_pairs, policy });
        Ok(())
    }

    /// Activates a VPort of the PF: frames for its filters go to the PF's own queue pairs.
    pub fn activate_vport(&self, vport: VPortId) -> Result<(), RequestError> {
        let state = lock(&self.state);
        let function = state.vports.get(&vport).ok_or(RequestError::NoSuchVPort(vport))?.function;
        if function == FunctionId::Pf {
            self.data_path().run(move |data_path| data_path.bind(vport, FunctionSlot::PF))??;
        }
        Ok(())
    }

    /// Sets the interrupt moderation of a VPort; the default VPort and those of the PF share the PF's.
    pub fn set_interrupt_moderation(
        &self,
        vport: VPortId,
        moderation: InterruptModeration,
    ) -> Result<(), RequestError> {
        let state = lock(&self.state);
        let function = match state.vports.get(&vport) {
            Some(vport) => vport.function,
            None if vport == VPortId::DEFAULT => FunctionId::Pf,
            None => return Err(RequestError::NoSuchVPort(vport)),
        };
        let served = match function {
            FunctionId::Pf => &self.pf,
            FunctionId::Vf(id) => &state.vfs.get(&id).ok_or(RequestError::NoSuchVf(id))?.served,
        };
        lock(&served.function).set_least_interrupt_interval(least_interval_ns(moderation));
        Ok(())
    }

    /// Deletes a nondefault VPort that has no receive filters left.
    pub fn delete_vport(&self, vport: VPortId) -> Result<(), RequestError> {
        let mut state = lock(&self.state);
        let function = state.vports.get(&vport).ok_or(RequestError::NoSuchVPort(vport))?.function;
        self.data_path().run(move |data_path| {
            data_path.switch().delete_vport(vport)?;
            data_path.forget_vport(vport);
            Ok::<_, SwitchError>(())
        })??;
        state.vports.remove(&vport);
        if let FunctionId::Vf(id) = function
            && let Some(vf) = state.vfs.get_mut(&id)
        {
            vf.vport = None;
        }
        Ok(())
    }

    /// Sets a receive filter.
    pub fn set_filter(&self, id: FilterId, filter: ReceiveFilter) -> Result<(), RequestError> {
        Ok(self.data_path().run(move |data_path| data_path.switch().set_filter(id, filter))??)
    }

    /// Clears a receive filter.
    pub fn clear_filter(&self, id: FilterId) -> Result<(), RequestError> {
        self.data_path().run(move |data_path| data_path.switch().clear_filter(id))??;
        Ok(())
    }

    /// Moves a receive filter: no frame is seen by both VPorts or by none.
    pub fn move_filter(
        &self,
        id: FilterId,
        from: VPortId,
        to: VPortId,
    ) -> Result<(), RequestError> {
        Ok(self
            .data_path()
            .run(move |data_path| data_path.switch().move_filter(id, from, to))??)
    }

    /// The interrupt vectors of the VF that a VPort belongs to.
    pub(crate) fn vf_interrupts(&self, vport: VPortId) -> Option<Arc<InterruptVectors>> {
        let function = lock(&self.state).vports.get(&vport)?.function;
        self.with_vf(function.vf()?, |function| Arc::clone(function.interrupts())).ok()
    }

    /// What a VPort may do beyond its filters.
    pub fn vport_policy(&self, vport: VPortId) -> Result<VPortPolicy, RequestError> {
        let state = lock(&self.state);
        state
            .vports
            .get(&vport)
            .map(|vport| vport.policy.clone())
            .ok_or(RequestError::NoSuchVPort(vport))
    }

    /// Changes what a nondefault VPort may do.
    pub fn set_vport_policy(
        &self,
        vport: VPortId,
        policy: VPortPolicy,
    ) -> Result<(), RequestError> {
        let mut state = lock(&self.state);
        let place = state.vports.get_mut(&vport).ok_or(RequestError::NoSuchVPort(vport))?;
        let for_switch = policy.clone();
        self.data_path()
            .run(move |data_path| data_path.switch().set_policy(vport, for_switch))??;
        place.policy = policy;
        let VPortPolicy { allow_spoofing, allow_promiscuous, .. } = place.policy;
        let function = place.function;
        if let FunctionId::Vf(id) = function
            && let Some(vf) = state.vfs.get(&id)
        {
            let mut function = lock(&vf.served.function);
            let policy = FunctionPolicy { allow_spoofing, allow_promiscuous, ..function.policy() };
            function.set_policy(policy);
        }
        Ok(())
    }

    /// Queue pairs of a nondefault VPort.
    pub fn vport_queue_pairs(&self, vport: VPortId) -> Option<u16> {
        lock(&self.state).vports.get(&vport).map(|vport| vport.queue_pairs)
    }

    /// Does something with an allocated VF's function.
    pub(crate) fn with_vf<R>(
        &self,
        vf: VfId,
        action: impl FnOnce(&mut AvfFunction) -> R,
    ) -> Result<R, RequestError> {
        let function = lock(&self.state)
            .vfs
            .get(&vf)
            .map(|vf| Arc::clone(&vf.served.function))
            .ok_or(RequestError::NoSuchVf(vf))?;
        let mut function = lock(&function);
        Ok(action(&mut function))
    }

    /// Function level reset of a VF; nothing else notices.
    pub fn reset_vf(&self, vf: VfId) -> Result<(), RequestError> {
        self.with_vf(vf, AvfFunction::function_level_reset)
    }

    /// Resets a VF as its PF does: its driver is told, and comes back by itself.
    pub fn pf_reset_vf(&self, vf: VfId) -> Result<(), RequestError> {
        self.with_vf(vf, AvfFunction::reset_by_pf)
    }

    /// Whether a guest is connected to a function's socket.
    pub fn is_connected(&self, function: FunctionId) -> bool {
        match function {
            FunctionId::Pf => self.pf.is_connected(),
            FunctionId::Vf(vf) => {
                lock(&self.state).vfs.get(&vf).is_some_and(|vf| vf.served.is_connected())
            }
        }
    }

    /// Counters of a function.
    pub fn stats(&self, function: FunctionId) -> Result<FunctionStats, RequestError> {
        let slot = match function {
            FunctionId::Pf => FunctionSlot::PF,
            FunctionId::Vf(vf) => FunctionSlot::vf(vf),
        };
        Ok(self.data_path().run(move |data_path| data_path.stats(slot))?)
    }

    /// Counters of the physical port.
    pub fn uplink_stats(&self) -> Result<UplinkStats, RequestError> {
        Ok(self.data_path().run(|data_path| data_path.uplink_stats())?)
    }

    /// What the physical port is connected to, and its last error.
    pub fn uplink_state(&self) -> Result<(String, Option<String>), RequestError> {
        Ok(self.data_path().run(|data_path| data_path.uplink_state())?)
    }

    /// Whether a replaying uplink is through with its capture; `None` for one that replays nothing.
    pub fn replay_finished(&self) -> Result<Option<bool>, RequestError> {
        Ok(self.data_path().run(|data_path| data_path.replay_finished())?)
    }

    /// Connects the physical port to something else.
    pub fn set_uplink(&self, spec: &UplinkSpec) -> Result<(), RequestError> {
        let uplink = open_uplink(spec, self.config.max_frame)?;
        Ok(self.data_path().run(move |data_path| data_path.set_uplink(uplink))?)
    }

    /// The VFs that are allocated.
    pub fn allocated_vfs(&self) -> Vec<AllocatedVf> {
        let state = lock(&self.state);
        let of = |(id, vf): (&VfId, &Vf)| AllocatedVf {
            id: *id,
            mac: vf.mac,
            vport: vf.vport,
            queue_pairs: lock(&vf.served.function).policy().queue_pairs,
        };
        state.vfs.iter().map(of).collect()
    }

    /// What the drivers of the VFs do.
    pub(crate) fn drivers(&self) -> &Arc<VfDrivers> {
        &self.drivers
    }

    /// How long the data path thread has slept since it started.
    pub fn data_path_slept(&self) -> std::time::Duration {
        self.data_path().slept()
    }

    /// Whether the physical port's link is up.
    pub fn link_is_up(&self) -> bool {
        self.link.get().up
    }
}

impl Adapter {
    /// Ends the serving of all functions and removes their sockets, whoever else still holds the adapter.
    pub fn close(&self) {
        let vfs = std::mem::take(&mut lock(&self.state).vfs);
        drop(vfs);
        let pf = lock(&self.pf.server).take();
        drop(pf);
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // The data path holds a sender too: it must let go of it, or the link thread never ends.
        let _ = self.data_path().run(|data_path| data_path.on_link_change(|_| {}));
        self.link_changes = None;
        if let Some(thread) = self.link_thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the link thread had panicked");
        }
        self.close();
    }
}

/// What the words for interrupt moderation mean here: the least time between two interrupts of a queue, ns.
/// Undefined, adaptive and off leave it to the guest's driver.
fn least_interval_ns(moderation: InterruptModeration) -> u64 {
    match moderation {
        InterruptModeration::Undefined
        | InterruptModeration::Adaptive
        | InterruptModeration::Disabled => 0,
        InterruptModeration::Low => 20_000,
        InterruptModeration::Medium => 80_000,
        InterruptModeration::High => 250_000,
    }
}

/// Removes the VF sockets of an adapter that was killed, so that nobody finds VFs that are not there. Sockets that
/// are served, and files that are no sockets, stay.
fn remove_stale_sockets(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("vf").and_then(|name| name.strip_suffix(".sock"));
        let is_stale = || {
            std::fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket())
                && UnixStream::connect(&path)
                    .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        if number.is_some_and(|number| number.parse::<u16>().is_ok()) && is_stale() {
            tracing::info!(socket = %path.display(), "removing the socket of an adapter that is gone");
            // One that cannot be removed is replaced when its VF is allocated.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Makes a function and serves it.
fn serve(
    name: &str,
    vsi: u16,
    pci: pci_function::PciFunction,
    host: FunctionHost,
    config: &AdapterConfig,
) -> Result<Served, AdapterError> {
    let policy = host.policy;
    let avf = VfConfig {
        max_frame: config.max_frame,
        ..VfConfig::new(vsi, policy.queue_pairs, avf_protocol::MacAddress(policy.mac.octets()))
    };
    let function =
        AvfFunction::new(name.to_owned(), pci, avf, host).map_err(AdapterError::Function)?;
    let function = Arc::new(Mutex::new(function));
    let path = config.directory.join(format!("{name}.sock"));
    let server = VfioUserServer::bind(&path, Arc::clone(&function), ServerOptions::new(name))
        .map_err(|source| AdapterError::Socket { path, source })?;
    Ok(Served { server: Mutex::new(Some(server)), function })
}

fn open_uplink(spec: &UplinkSpec, max_frame: u16) -> Result<Box<dyn uplink::Uplink>, AdapterError> {
    uplink::open(spec, max_frame.into())
        .map_err(|source| AdapterError::Uplink { spec: spec.to_string(), source })
}

/// A lock whose holder panicked is still a lock: the state behind it, as the cache of NDIS, is changed in whole steps.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
