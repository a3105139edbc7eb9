//! The adapter as a PCI function over vfio-user.

use rustix::time::{ClockId, clock_gettime};
use shared_memory::DmaMap;
use vfio_user_protocol::{Errno, PciIrq, PciRegion};
use vfio_user_server::{EventFd, IrqChange, PciFunctionDevice, Region};

use crate::{ConfigSpace, ReceiveDrop, TulipConfig, TulipDevice, TxOutcome, config_space, csr};

/// Where the frames of an adapter go. Called on the thread of the guest's register access; must not wait.
pub trait FramePort: Send {
    /// The guest sends a frame, without its checksum: at least 60 bytes unless its driver asked otherwise.
    fn send(&mut self, frame: &[u8]);
}

/// The interrupt pin: a level, signalled by an eventfd that masks itself.
#[derive(Debug, Default)]
struct InterruptPin {
    eventfd: Option<EventFd>,
    masked: bool,
}

impl InterruptPin {
    /// Signals the level, if it is asserted and nobody has been told.
    fn update(&mut self, asserted: bool) {
        if let Some(eventfd) = self.eventfd.as_ref().filter(|_| asserted && !self.masked) {
            self.masked = true;
            eventfd.signal();
        }
    }
}

/// A 21140A on a PCI bus, with a port behind it.
///
/// Served by a [`VfioUserServer`](vfio_user_server::VfioUserServer), which shares it by a lock with whoever brings
/// frames ([`Self::deliver`]) and sees to its timer ([`Self::poll`] at [`Self::next_deadline`]).
#[derive(Debug)]
pub struct TulipFunction<P> {
    config: ConfigSpace,
    device: TulipDevice,
    port: P,
    pin: InterruptPin,
    dma: DmaMap,
    /// Bus errors that configuration space has been told of.
    bus_errors: u64,
}

/// Nanoseconds since the machine started.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

impl<P: FramePort> TulipFunction<P> {
    /// An adapter after power-on, with its link up.
    pub fn new(config: TulipConfig, port: P) -> Self {
        Self {
            config: ConfigSpace::new(config.subsystem),
            device: TulipDevice::new(config),
            port,
            pin: InterruptPin::default(),
            dma: DmaMap::empty(),
            bus_errors: 0,
        }
    }

    /// The controller, for its counters and its link.
    pub fn device(&self) -> &TulipDevice {
        &self.device
    }

    /// The port.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// A frame for the guest, without its checksum.
    ///
    /// # Errors
    /// [`ReceiveDrop`].
    pub fn deliver(&mut self, frame: &[u8]) -> Result<(), ReceiveDrop> {
        if !self.config.bus_master() {
            return Err(ReceiveDrop::Stopped);
        }
        let received = self.device.receive(&self.dma, frame);
        self.settle();
        received
    }

    /// Whether frames can be delivered: the guest's driver has turned the receiver on.
    pub fn is_receiving(&self) -> bool {
        self.config.bus_master() && self.device.is_receiving()
    }

    /// Pulls the cable out, or puts it in.
    pub fn set_link(&mut self, up: bool) {
        self.device.set_link(up);
    }

    /// When [`Self::poll`] is due, nanoseconds of the machine's monotonic clock. Now, if a guest has more to send
    /// than one turn allows.
    pub fn next_deadline(&self) -> Option<u64> {
        let more = (self.device.transmit_due() && self.config.bus_master()).then_some(0);
        more.or(self.device.next_deadline())
    }

    /// Sees to the timer, and to what the guest has left to send.
    pub fn poll(&mut self) {
        self.device.poll(now());
        self.work();
    }

    /// Sends what is to be sent, and brings the interrupt up to date.
    fn work(&mut self) -> TxOutcome {
        let mut outcome = TxOutcome::Idle;
        if self.config.bus_master() && self.device.transmit_due() {
            let port = &mut self.port;
            outcome = self.device.transmit(&self.dma, &mut |frame| port.send(frame));
        }
        self.settle();
        outcome
    }

    fn settle(&mut self) {
        let bus_errors = self.device.counters().bus_errors;
        if std::mem::replace(&mut self.bus_errors, bus_errors) != bus_errors {
            self.config.record_master_abort();
        }
        let asserted = self.device.interrupt();
        self.config.set_interrupt_status(asserted);
        self.pin.update(asserted && self.config.interrupts_allowed());
    }

    fn read_registers(&mut self, offset: u64, data: &mut [u8]) {
        // A register is read once for each access, however small: CSR8 is cleared by it.
        let mut register = u64::MAX;
        let mut value = [0; 4];
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index as u64);
            if at & !3 != register {
                register = at & !3;
                let number = u32::try_from(register).unwrap_or(u32::MAX);
                value = self.device.read(number, now()).to_le_bytes();
            }
            let place = usize::try_from(at & 3).unwrap_or(0);
            *byte = value.get(place).copied().unwrap_or(0);
        }
    }

    fn write_registers(&mut self, offset: u64, data: &[u8]) {
        // Registers take whole 32-bit words only; anything else changes nothing.
        let (words, rest) = data.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return;
        }
        for (index, word) in words.iter().enumerate() {
            if let Ok(register) = u32::try_from(offset.saturating_add(4 * index as u64)) {
                self.device.write(register, u32::from_le_bytes(*word), now());
            }
        }
        self.work();
    }
}

impl<P: FramePort> PciFunctionDevice for TulipFunction<P> {
    fn region(&self, region: PciRegion) -> Region {
        match region {
            PciRegion::Config => Region::trapped(config_space::SIZE),
            PciRegion::Bar0 | PciRegion::Bar1 => Region::trapped(csr::REGISTERS_SIZE),
            _ => Region::ABSENT,
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        u32::from(irq == PciIrq::Intx)
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        match region {
            PciRegion::Config => self.config.read(offset, data),
            PciRegion::Bar0 | PciRegion::Bar1 => self.read_registers(offset, data),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match region {
            PciRegion::Config => {
                self.config.write(offset, data);
                self.work();
            }
            PciRegion::Bar0 | PciRegion::Bar1 => self.write_registers(offset, data),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        self.dma = map.clone();
    }

    fn set_irq(&mut self, irq: PciIrq, change: IrqChange) -> Result<(), Errno> {
        if irq != PciIrq::Intx {
            return Err(Errno::INVAL);
        }
        match change {
            IrqChange::Connect { eventfds, .. } => {
                self.pin = InterruptPin { eventfd: eventfds.into_iter().next(), masked: false };
            }
            IrqChange::Disconnect { .. } | IrqChange::DisableAll => {
                self.pin = InterruptPin::default();
            }
            IrqChange::Trigger(_) => {
                if let Some(eventfd) = &self.pin.eventfd {
                    eventfd.signal();
                }
            }
            IrqChange::Mask(_) => self.pin.masked = true,
            IrqChange::Unmask(_) => self.pin.masked = false,
        }
        self.settle();
        Ok(())
    }

    fn reset(&mut self) {
        self.config.reset();
        self.device.reset();
        self.settle();
    }

    fn connected(&mut self) {
        tracing::info!("a guest has connected to the emulated adapter");
    }

    fn disconnected(&mut self) {
        // The next client starts from power-on: nothing of the former one is visible to it.
        self.reset();
        tracing::info!("the guest of the emulated adapter is gone; it has been reset");
    }
}
