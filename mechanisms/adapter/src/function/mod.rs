//! One PCI function of the adapter: configuration space, AVF registers, doorbell memory and interrupts,
//! served by vfio-user.
//!
//! VFs and the PF's own queue pairs are the same kind of function. The vfio-user server calls it from the
//! function's thread; the PF miniport reaches it between messages through the same lock.

mod host;

use std::sync::Arc;

use avf_device::{AdminSettings, AvfDevice, InterruptVectors, ResetKind as AvfReset, VfConfig};
use avf_protocol::registers::{RX_DOORBELL_PAGE, TX_DOORBELL_PAGE};
use ndis_protocol::MacAddress;
use pci_function::{Effect, PciFunction, ResetKind};
use pcie_protocol::{BarIndex, PowerState};
use shared_memory::{DmaMap, DoorbellPage, MemoryError, PAGE_SIZE, PageSize, SharedMapping};
use vfio_user_protocol::{Errno, PciIrq, PciRegion, SparseMmapArea};
use vfio_user_server::{IrqChange, PciFunctionDevice, Region, RegionMemory};

use crate::{clock::now_ns, data_path::FunctionContext, vf_drivers::DriverState};

pub(crate) use host::{FunctionHost, FunctionPolicy, SharedLink};

/// Bytes of BAR0, the register file.
const BAR0_SIZE: u64 = 0x1_0000;
/// Bytes of BAR3, MSI-X table and pending bits.
const BAR3_SIZE: u64 = 0x4000;
/// Where the pending bits are in BAR3 (SPEC-AVF §1.2).
const PENDING_BITS: u64 = 0x2000;

/// A function that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// No memory for the doorbell pages.
    #[error("no memory for the doorbell pages of {name}")]
    Doorbells {
        /// The function.
        name: String,
        /// The reason.
        #[source]
        source: MemoryError,
    },
    /// The register file cannot be made.
    #[error("the register file of {name} cannot be made")]
    Device {
        /// The function.
        name: String,
        /// The reason.
        #[source]
        source: avf_device::ConfigError,
    },
}

/// One function: a VF, or the PF's own queue pairs.
pub(crate) struct AvfFunction {
    name: String,
    config: PciFunction,
    device: AvfDevice,
    host: FunctionHost,
    interrupts: Arc<InterruptVectors>,
    doorbells: RegionMemory,
    /// What the client has mapped; the device sees it while it is a bus master.
    dma: DmaMap,
    /// What was said of its driver last.
    said: DriverState,
}

impl AvfFunction {
    /// Makes a function and brings it into the data path.
    pub(crate) fn new(
        name: String,
        config: PciFunction,
        avf: VfConfig,
        host: FunctionHost,
    ) -> Result<Self, FunctionError> {
        // One file for each function: a client can map all of the file it is given.
        let length = (RX_DOORBELL_PAGE as usize) + PAGE_SIZE;
        let doorbells = |source| FunctionError::Doorbells { name: name.clone(), source };
        let (memory, file) =
            SharedMapping::create(&name, length, PageSize::Base).map_err(doorbells)?;
        let tx = DoorbellPage::new(&memory, TX_DOORBELL_PAGE as usize).map_err(doorbells)?;
        let rx = DoorbellPage::new(&memory, RX_DOORBELL_PAGE as usize).map_err(doorbells)?;
        let interrupts = Arc::new(InterruptVectors::new(avf.vectors, &rx));
        let device = AvfDevice::new(avf, (tx.clone(), rx.clone()), Arc::clone(&interrupts))
            .map_err(|source| FunctionError::Device { name: name.clone(), source })?;
        let context = FunctionContext {
            tx_doorbells: tx,
            rx_doorbells: rx,
            interrupts: Arc::clone(&interrupts),
        };
        let slot = host.slot;
        // A data path that has stopped has no use for the function.
        let _ = host.data_path.run(move |data_path| data_path.attach(slot, context));
        let page = |offset: u32| SparseMmapArea { offset: offset.into(), size: PAGE_SIZE as u64 };
        let doorbells = RegionMemory {
            file: Arc::new(file),
            offset: 0,
            areas: vec![page(TX_DOORBELL_PAGE), page(RX_DOORBELL_PAGE)],
        };
        let said = driver_state(&device, &host);
        host.say(said);
        Ok(Self { name, config, device, host, interrupts, doorbells, dma: DmaMap::empty(), said })
    }

    /// Says what the driver does, if that has changed.
    fn say(&mut self) {
        let state = driver_state(&self.device, &self.host);
        if state != self.said {
            self.said = state;
            self.host.say(state);
        }
    }

    /// Its interrupt vectors.
    pub(crate) fn interrupts(&self) -> &Arc<InterruptVectors> {
        &self.interrupts
    }

    /// Resets the function as its PF does, without asking the client.
    pub(crate) fn reset_by_pf(&mut self) {
        self.device.reset(AvfReset::Pf, now_ns(), &mut self.host);
        self.say();
    }

    /// Function level reset: everything to power-on.
    pub(crate) fn function_level_reset(&mut self) {
        let effects = self.config.reset(ResetKind::FunctionLevel);
        self.flr();
        self.carry_out(effects);
    }

    /// Tells the driver about the link.
    pub(crate) fn link_changed(&mut self) {
        self.device.link_changed(now_ns(), &mut self.host);
    }

    /// Changes what the administrator allows.
    pub(crate) fn set_policy(&mut self, policy: FunctionPolicy) {
        self.host.policy = policy;
        let admin = AdminSettings {
            allow_promiscuous: policy.allow_promiscuous,
            ..AdminSettings::default()
        };
        self.device.set_admin(admin, now_ns(), &mut self.host);
    }

    /// What the administrator allows.
    pub(crate) fn policy(&self) -> FunctionPolicy {
        self.host.policy
    }

    /// Says again what the driver asked for, to a VPort that the function was just attached to.
    pub(crate) fn reapply(&mut self) {
        let settings = self.device.settings().clone();
        avf_device::VfHost::apply(&mut self.host, &settings);
    }

    /// The configuration space as the guest sees it.
    pub(crate) fn config(&self) -> &PciFunction {
        &self.config
    }

    /// Sets the power state, as a write of the guest to PMCSR would.
    pub(crate) fn set_power_state(&mut self, state: PowerState) {
        let effects = self.config.set_power_state(state);
        self.carry_out(effects);
    }

    /// Sets the least time between two interrupts of a queue, nanoseconds.
    pub(crate) fn set_least_interrupt_interval(&mut self, interval_ns: u64) {
        self.interrupts.set_least_interval(interval_ns);
    }

    /// Writes to the configuration space and does what follows from it.
    pub(crate) fn config_write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let effects = self.config.config_write(offset, data).map_err(|_| Errno::INVAL)?;
        self.carry_out(effects);
        Ok(())
    }

    fn flr(&mut self) {
        self.device.reset(AvfReset::Flr, now_ns(), &mut self.host);
        self.say();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::FunctionLevelReset | Effect::SoftReset => self.flr(),
                Effect::BusMasterChanged { .. } | Effect::PowerStateChanged { .. } => {
                    self.update_bus_master();
                }
                // MSI-X is wired by the client's SET_IRQS; BAR addresses are the client's business.
                _ => {}
            }
        }
    }

    /// Gives the device and the data path the DMA map that the function may use now.
    fn update_bus_master(&mut self) {
        let allowed = self.config.dma_allowed();
        let map = if allowed { self.dma.clone() } else { DmaMap::empty() };
        self.device.set_dma_map(map.clone(), now_ns(), &mut self.host);
        let slot = self.host.slot;
        let _ = self.host.data_path.run(move |data_path| data_path.set_dma_map(slot, map));
        let due = self.interrupts.set_enabled(allowed, now_ns());
        if let Some(deadline) = due {
            avf_device::VfHost::interrupt_due(&mut self.host, deadline);
        }
        // Requests that have waited for the bus were served.
        self.say();
    }

    fn read_bar0(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        // Drivers use aligned 32-bit accesses; others get the bytes of the registers they touch.
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let register = u32::try_from(at & !3).map_err(|_| Errno::INVAL)?;
            let value = self.device.read(register).to_le_bytes();
            let skip = usize::try_from(at & 3).map_err(|_| Errno::INVAL)?;
            let count = (4 - skip).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            if let Some(bytes) = value.get(skip..skip + count) {
                now.copy_from_slice(bytes);
            }
            at += count as u64;
            rest = later;
        }
        Ok(())
    }

    fn write_bar0(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        // Registers take whole 32-bit words only; anything else changes nothing.
        let (words, rest) = data.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return Ok(());
        }
        for (at, word) in (offset..).step_by(4).zip(words) {
            let register = u32::try_from(at).map_err(|_| Errno::INVAL)?;
            let value = u32::from_le_bytes(*word);
            self.device.write(register, value, now_ns(), &mut self.host);
        }
        self.say();
        Ok(())
    }
}

/// What a function's driver does, as far as its register file knows.
fn driver_state(device: &AvfDevice, host: &FunctionHost) -> DriverState {
    let settings = device.settings();
    let mac = settings.primary_mac.as_ref().or(settings.unicast.first());
    let mac = mac.map_or(host.policy.mac, |mac| MacAddress::new(mac.0));
    DriverState { begun: device.has_driver(), mac }
}

impl Drop for AvfFunction {
    fn drop(&mut self) {
        let slot = self.host.slot;
        let _ = self.host.data_path.run(move |data_path| data_path.detach(slot));
    }
}

impl PciFunctionDevice for AvfFunction {
    fn region(&self, region: PciRegion) -> Region {
        match region {
            PciRegion::Config => Region::trapped(4096),
            PciRegion::Bar0 => {
                Region { memory: Some(self.doorbells.clone()), ..Region::trapped(BAR0_SIZE) }
            }
            PciRegion::Bar3 => Region::trapped(BAR3_SIZE),
            _ => Region::ABSENT,
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        match irq {
            PciIrq::Msix => self.interrupts.vectors().into(),
            _ => 0,
        }
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        match region {
            PciRegion::Config => self.config.config_read(offset, data).map_err(|_| Errno::INVAL),
            PciRegion::Bar0 => self.read_bar0(offset, data),
            PciRegion::Bar3 if offset >= PENDING_BITS => {
                let pending = self.interrupts.pending_bits().to_le_bytes();
                for (at, byte) in (offset - PENDING_BITS..).zip(data) {
                    let at = usize::try_from(at).unwrap_or(usize::MAX);
                    *byte = pending.get(at).copied().unwrap_or(0);
                }
                Ok(())
            }
            PciRegion::Bar3 => {
                self.config.msix_read(BarIndex::BAR3, offset, data).map_err(|_| Errno::INVAL)
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match region {
            PciRegion::Config => self.config_write(offset, data),
            PciRegion::Bar0 => self.write_bar0(offset, data),
            PciRegion::Bar3 => {
                let effects = self
                    .config
                    .msix_write(BarIndex::BAR3, offset, data)
                    .map_err(|_| Errno::INVAL)?;
                self.carry_out(effects);
                Ok(())
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        self.dma = map.clone();
        self.update_bus_master();
    }

    fn set_irq(&mut self, irq: PciIrq, change: IrqChange) -> Result<(), Errno> {
        if irq != PciIrq::Msix {
            return Err(Errno::INVAL);
        }
        let now = now_ns();
        let vector = |vector: u32| u16::try_from(vector).map_err(|_| Errno::INVAL);
        let mut due = None;
        match change {
            IrqChange::Connect { start, eventfds } => {
                for (number, eventfd) in (start..).zip(eventfds) {
                    due = self
                        .interrupts
                        .set_eventfd(vector(number)?, Some(eventfd.into()), now)
                        .map_err(|_| Errno::INVAL)?;
                }
            }
            IrqChange::Disconnect { start, count } => {
                for number in start..start.saturating_add(count) {
                    let _ = self.interrupts.set_eventfd(vector(number)?, None, now);
                }
            }
            IrqChange::DisableAll => {
                for number in 0..self.interrupts.vectors() {
                    let _ = self.interrupts.set_eventfd(number, None, now);
                }
            }
            IrqChange::Trigger(vectors) => {
                for number in vectors {
                    self.interrupts.trigger(vector(number)?);
                }
            }
            IrqChange::Mask(_) | IrqChange::Unmask(_) => return Err(Errno::INVAL),
        }
        if let Some(deadline) = due {
            avf_device::VfHost::interrupt_due(&mut self.host, deadline);
        }
        Ok(())
    }

    fn reset(&mut self) {
        let effects = self.config.reset(ResetKind::Conventional);
        self.flr();
        self.carry_out(effects);
    }

    fn connected(&mut self) {
        tracing::info!(function = %self.name, "a guest has connected");
    }

    fn disconnected(&mut self) {
        // The next client starts from power-on: nothing of the former one is visible to it.
        self.reset();
        tracing::info!(function = %self.name, "the guest is gone; the function has been reset");
    }
}
