//! One front-end's connection: what it asks for, checked, and handed to the device between two of its rounds.
//!
//! The message format is the `vhost` crate's business. Whatever is refused here ends the connection: a front-end that
//! goes on after a refusal would have a device other than it believes.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use event_fd::EventFd;
use owner_thread::Handle;
use shared_memory::MemoryWatch;
use vhost::vhost_user::{
    Error, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
        VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig,
        VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags,
        VhostUserVringState,
    },
};

use crate::{
    Features,
    device::{Device, Notifiers, QueueSetup},
    memory::{DirtyLog, GuestMemory, RegionAddress},
    ring::{Addresses, MAX_SIZE, RingError},
};

/// Regions of a guest's memory, at most.
const MAX_REGIONS: usize = 64;

/// What is known of one queue.
#[derive(Debug, Default)]
struct Vring {
    size: Option<u16>,
    at: Option<Addresses>,
    base: u32,
    enabled: bool,
    running: bool,
    notifiers: Notifiers,
}

/// A connection's state.
#[derive(Debug)]
pub(crate) struct Session {
    device: Handle<Device>,
    /// Over all that the front-end lets the device map.
    watch: Arc<MemoryWatch>,
    offered: Features,
    features: Features,
    memory: GuestMemory,
    vrings: Vec<Vring>,
}

fn refused(why: &'static str) -> Error {
    Error::InvalidOperation(why)
}

fn because(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(std::io::Error::other(error))
}

fn eventfd(file: Option<File>) -> Result<Option<Arc<EventFd>>> {
    let eventfd = file.map(|file| EventFd::from_peer(OwnedFd::from(file)));
    Ok(eventfd.transpose().map_err(because)?.map(Arc::new))
}

fn address_of(region: &VhostUserMemoryRegion) -> (RegionAddress, u64) {
    let at = RegionAddress {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        length: region.memory_size,
    };
    (at, region.mmap_offset)
}

impl Session {
    /// A session with a device with so many queue pairs, which nobody has set up.
    pub(crate) fn new(device: Handle<Device>, pairs: u16, watch: Arc<MemoryWatch>) -> Self {
        Self {
            device,
            watch,
            offered: Features::offered(pairs),
            features: Features::empty(),
            memory: GuestMemory::default(),
            vrings: std::iter::repeat_with(Vring::default).take(2 * usize::from(pairs)).collect(),
        }
    }

    /// Whether the front-end has accepted that there is more than the first messages of the protocol.
    pub(crate) fn has_agreed(&self) -> bool {
        self.features.contains(Features::PROTOCOL_FEATURES)
    }

    /// Has the thread of the device do something between two rounds.
    fn on_device<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Device) -> R + Send + 'static,
    ) -> Result<R> {
        self.device.run(change).map_err(because)
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = usize::try_from(index).ok().and_then(|index| self.vrings.get_mut(index));
        vring.ok_or(refused("a queue is beyond what the port has room for"))
    }

    /// A queue that is to be set up, and so does not run.
    fn idle(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        if vring.running { Err(refused("a queue that runs is set up")) } else { Ok(vring) }
    }

    fn set_memory(&mut self, memory: GuestMemory) -> Result<()> {
        let running = self.vrings.iter().enumerate().filter(|(_, vring)| vring.running);
        let rings: Vec<(usize, Addresses)> =
            running.filter_map(|(index, vring)| Some((index, vring.at?))).collect();
        self.memory = memory.clone();
        let watch = Arc::clone(&self.watch);
        self.on_device(move |device| device.set_memory(memory, watch, &rings))?.map_err(because)
    }

    fn start(&mut self, index: u32) -> Result<()> {
        let features = self.features;
        let vring = self.idle(index)?;
        let (Some(at), Some(size)) = (vring.at, vring.size) else {
            return Err(refused("a queue without size or addresses is started"));
        };
        // Without the protocol's features there is no message by which it could be enabled.
        vring.enabled |= !features.contains(Features::PROTOCOL_FEATURES);
        let setup = QueueSetup {
            at,
            size,
            base: vring.base,
            enabled: vring.enabled,
            notifiers: vring.notifiers.clone(),
        };
        vring.running = true;
        let number = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        let started: std::result::Result<(), RingError> =
            self.on_device(move |device| device.start(number, setup))?;
        started.map_err(because)
    }

    /// Tells the device of other eventfds of a queue that runs.
    fn notifiers_changed(&mut self, index: u8) -> Result<()> {
        let vring = self.vring(index.into())?;
        if vring.running {
            let notifiers = vring.notifiers.clone();
            self.on_device(move |device| device.set_notifiers(index.into(), notifiers))?;
        }
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // "Back-ends should either ignore this message, or use it to disable all rings."
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::RESET_DEVICE))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let features = Features::from_bits(features)
            .filter(|features| self.offered.contains(*features))
            .ok_or(Error::FeatureMismatch)?;
        let running = self.vrings.iter().any(|vring| vring.running);
        if running && (features ^ self.features) - Features::LOG_ALL != Features::empty() {
            return Err(refused("features change while queues run"));
        }
        self.features = features;
        self.on_device(move |device| device.set_features(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut memory = GuestMemory::default();
        for (region, file) in regions.iter().zip(&files) {
            let (at, offset) = address_of(region);
            memory = memory.with(at, file.as_fd(), offset, &self.watch).map_err(because)?;
        }
        self.set_memory(memory)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| (1..=MAX_SIZE).contains(&(*size).into()));
        let size = size.ok_or(RingError::Size { size: num }).map_err(because)?;
        self.idle(index)?.size = Some(size);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        // Whether the used ring is logged is asked for by these flags, and where by the last address. It is written to
        // like the rest of the guest's memory, and noted like the rest as soon as there is a log.
        let at = Addresses { descriptors: descriptor, driver: available, device: used };
        let vring = self.vring(index)?;
        vring.at = Some(at);
        if !vring.running {
            return Ok(());
        }
        let number = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.on_device(move |device| device.relocate(number, at))?.map_err(because)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.idle(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let number = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        if self.vring(index)?.running {
            let base = self.on_device(move |device| device.stop(number))?;
            let vring = self.vring(index)?;
            vring.base = base.unwrap_or(vring.base);
            vring.running = false;
            vring.notifiers.kick = None;
        }
        Ok(VhostUserVringState::new(index, self.vring(index)?.base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = eventfd(fd)?;
        if kick.is_none() {
            return Err(refused("a queue without kicks is to be polled for ever"));
        }
        let vring = self.vring(index.into())?;
        vring.notifiers.kick = kick;
        if vring.running { self.notifiers_changed(index) } else { self.start(index.into()) }
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?.notifiers.call = eventfd(fd)?;
        self.notifiers_changed(index)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(index.into())?.notifiers.error = eventfd(fd)?;
        self.notifiers_changed(index)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        // STATUS is not among what the `vhost` crate can receive, and CONFIG is the front-end's own for a NIC.
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let known = VhostUserProtocolFeatures::from_bits(features).ok_or(Error::FeatureMismatch)?;
        if self.get_protocol_features()?.contains(known) {
            Ok(())
        } else {
            Err(Error::FeatureMismatch)
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // rust-vmm's front-ends read this as queues, QEMU and DPDK as queue pairs. The latter may believe that they have
        // room for more pairs than there are, and are told when they set them up.
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        vring.enabled = enable;
        if vring.running {
            let number = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
            self.on_device(move |device| device.set_enabled(number, enable))?;
        }
        Ok(())
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::CONFIG))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::CONFIG))
    }

    fn set_gpu_socket(&mut self, _: vhost::vhost_user::GpuBackend) -> Result<()> {
        Err(refused("this is no graphics adapter"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::SHARED_OBJECT))
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::INFLIGHT_SHMFD))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::INFLIGHT_SHMFD))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.memory.regions() >= MAX_REGIONS {
            return Err(refused("the guest's memory has too many regions"));
        }
        let (at, offset) = address_of(region);
        let memory = self.memory.with(at, file.as_fd(), offset, &self.watch).map_err(because)?;
        self.set_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (at, _) = address_of(region);
        let memory = self.memory.without(at).map_err(because)?;
        self.set_memory(memory)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::DEVICE_STATE))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::DEVICE_STATE))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::SHMEM))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let (offset, length) = (log.mmap_offset, log.mmap_size);
        let log = DirtyLog::map(file.as_fd(), offset, length, &self.watch).map_err(because)?;
        self.on_device(move |device| device.set_log(log))
    }
}
