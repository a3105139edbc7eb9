//! How the driver of a VF reaches it over a virtual PCI bus.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use avf_driver::{
    DriverConfig, DriverError, DriverMemory, MemorySource,
    transport::{Interrupt, Transport},
};
use partition::{
    guest::VmbusGuest,
    user::{MappedMmio, UserGuest},
};
use pcie_protocol::{
    BAR_COUNT, BarIndex, CapabilityId, Command, DeviceCapabilities, DeviceControl,
    ExpressCapability, MSI_X_ENTRY_SIZE, MsiXControl, MsiXLocation, header_offset,
};
use shared_memory::{Access, DmaAddress, DoorbellPage, PAGE_SIZE, SharedMapping};
use vmbus_protocol::VpIndex;
use vpci::vsc::{BarPlace, VscReply, msi_x_entry};
use vpci_protocol::{InterruptRequest, TranslatedMsi};

use super::{
    VpciError,
    config_space::{ConfigSpace, mmio_write},
    device::{Function, MadeInterrupt, Shared},
    interrupt::VpciInterrupt,
};

/// The BAR with the registers (SPEC-AVF §2).
const REGISTERS: BarIndex = BarIndex::BAR0;
/// The processor that takes all interrupts.
const PROCESSOR: u16 = 0;
/// How long the host has to begin to deliver an interrupt that is unmasked.
const DELIVERY: Duration = Duration::from_secs(5);
/// How long a function has to come back from a reset (PCIe 6.0 §6.6.2).
const RESET: Duration = Duration::from_secs(5);
/// Between two looks at what no descriptor tells of.
const PAUSE: Duration = Duration::from_micros(200);

/// Registers of the MSI-X capability, by their offset in it (PCIe 6.0 §7.7.2).
const CONTROL: u16 = 2;
const TABLE: u16 = 4;

/// A VF behind a virtual PCI bus, for [`avf_driver::AvfDriver::open_on`].
///
/// Registers are trapped accesses: each waits for the host. Doorbell pages are mapped. Interrupts are made by the bus;
/// the driver's memory is the guest's own, at its guest physical addresses ([`Self::memory`]).
///
/// When the transport is dropped, which is when the driver is, the function can neither reach memory nor interrupt any
/// more, and its pages go back to the guest.
#[derive(Debug)]
pub(crate) struct VpciTransport {
    shared: Arc<Shared>,
    function: Arc<Function>,
    registers: BarPlace,
    msi_x: MsiX,
    /// Where the PCI Express capability is.
    express: Option<u16>,
    /// Given back with the transport. Its driver's control part alone asks for it.
    pages: Mutex<Vec<GuestPages>>,
}

/// The function's MSI-X capability.
#[derive(Copy, Clone, Debug)]
struct MsiX {
    /// Offset of the control register in configuration space.
    control: u16,
    vectors: u16,
    /// Guest physical address of the table.
    table: u64,
}

/// Pages of guest memory, until dropped.
#[derive(Debug)]
struct GuestPages {
    bus: Arc<VmbusGuest>,
    frames: Vec<u64>,
}

impl Drop for GuestPages {
    fn drop(&mut self) {
        self.bus.pages().release(&self.frames);
    }
}

impl MsiX {
    /// What the capability at `capability` says; `None` if it makes no sense.
    fn read(
        config: ConfigSpace<'_>,
        capability: u16,
        function: &Function,
    ) -> io::Result<Option<Self>> {
        let control = capability + CONTROL;
        let table = capability + TABLE;
        let vectors = MsiXControl::from(config.read_u16(control)?).table_size_minus_one() + 1;
        let Ok(table) = MsiXLocation::from_register(config.read_u32(table)?) else {
            return Ok(None);
        };
        let Some(bar) = table.bar.of(&function.ready.bars) else { return Ok(None) };
        let end = u64::from(table.offset) + u64::from(vectors) * u64::from(MSI_X_ENTRY_SIZE);
        let table = bar.address + u64::from(table.offset);
        Ok((end <= bar.size).then_some(Self { control, vectors, table }))
    }
}

impl VpciTransport {
    pub(super) fn new(shared: Arc<Shared>, function: Arc<Function>) -> Result<Self, VpciError> {
        let registers = REGISTERS.of(&function.ready.bars).ok_or(VpciError::Lacks("BAR 0"))?;
        let config = ConfigSpace { guest: shared.guest(), address: function.ready.config_space };
        // It fails if there is no host any more.
        let gone = |error| {
            tracing::debug!(%error, "the host does not answer an access");
            VpciError::Gone
        };
        let capabilities = config.capabilities().map_err(gone)?;
        let find = |id| capabilities.iter().find(|found| found.id == id).map(|found| found.offset);
        let msi_x = find(CapabilityId::MSI_X).ok_or(VpciError::Lacks("MSI-X capability"))?;
        let msi_x = MsiX::read(config, msi_x, &function).map_err(gone)?;
        let msi_x = msi_x.ok_or(VpciError::Lacks("MSI-X table in a BAR"))?;
        let express = find(CapabilityId::PCI_EXPRESS);
        Ok(Self { shared, function, registers, msi_x, express, pages: Mutex::default() })
    }

    /// Pages of the guest for the driver's rings and buffers, as many as `config` needs. They are the transport's, and
    /// go with it.
    ///
    /// # Errors
    /// The configuration is impossible; there are not so many pages together.
    pub(crate) fn memory(&self, config: &DriverConfig) -> Result<MemorySource, DriverError> {
        let length = config.memory_needed()?;
        let count = length.div_ceil(PAGE_SIZE);
        let bus = self.shared.bus();
        let no_memory = || failed("allocating guest memory", VpciError::NoMemory(count));
        let frames = bus.pages().allocate(count).ok_or_else(no_memory)?;
        let first = frames.first().copied().unwrap_or_default() * PAGE_SIZE as u64;
        let pages = GuestPages { bus: Arc::clone(bus), frames };
        let length = count * PAGE_SIZE;
        let memory = self.guest().memory();
        let region = memory
            .regions()
            .iter()
            .find(|region| region.gpa <= first && first - region.gpa < region.length as u64);
        let region = region.ok_or_else(no_memory)?;
        let file_offset = region.offset + (first - region.gpa);
        let mapping = SharedMapping::map(region.as_fd(), file_offset, length, Access::ReadWrite)?;
        let fd = region.as_fd().try_clone_to_owned().map_err(|source| DriverError::Io {
            operation: "duplicating the descriptor of guest memory",
            source,
        })?;
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push(pages);
        let iova = DmaAddress(first);
        Ok(MemorySource::Given { mapping, fd, file_offset, iova, offset: 0, length })
    }

    fn guest(&self) -> &UserGuest {
        self.shared.guest()
    }

    fn config(&self) -> ConfigSpace<'_> {
        ConfigSpace { guest: self.guest(), address: self.function.ready.config_space }
    }

    /// An access that failed did so because there is no host any more.
    fn accessed<T>(&self, result: io::Result<T>) -> avf_driver::Result<T> {
        self.check()?;
        result.map_err(|error| {
            tracing::debug!(%error, "the host does not answer an access");
            self.function.set_gone();
            DriverError::DeviceGone
        })
    }

    /// The file behind a page of the registers, if the host maps it, and where in it the page is.
    fn mapped_page(&self, page: usize) -> Option<(MappedMmio, u64)> {
        let size = PAGE_SIZE as u64;
        let wanted = self.registers.address + page as u64 * size;
        // A range that is mapped may begin before the page.
        (0..=page as u64).rev().find_map(|first| {
            let start = self.registers.address + first * size;
            let mapped = self.guest().mapped_mmio(start).filter(|mapped| mapped.writable)?;
            let offset = wanted - start;
            (offset + size <= mapped.length).then(|| (mapped.clone(), mapped.offset + offset))
        })
    }

    fn make_interrupt(&self) -> Result<MadeInterrupt, VpciError> {
        let interrupt = VpciInterrupt::new(self.shared.resources.vector()?)
            .map_err(VpciError::system("creating an interrupt's descriptor"))?;
        let request = InterruptRequest::single(interrupt.vector.number(), PROCESSOR);
        let what = "to create an interrupt";
        match self.shared.request(what, |vsc, now| vsc.create_interrupt(request, now))? {
            VscReply::Interrupt(message) => Ok((Arc::new(interrupt), message)),
            VscReply::Done | VscReply::Block(_) => Err(VpciError::Lacks("interrupts")),
        }
    }

    /// Writes an entry of the MSI-X table, unmasked.
    fn write_entry(&self, vector: usize, message: TranslatedMsi) -> io::Result<()> {
        let entry = self.msi_x.table + vector as u64 * u64::from(MSI_X_ENTRY_SIZE);
        for (address, dword) in (entry..).step_by(4).zip(msi_x_entry(message).as_chunks::<4>().0) {
            mmio_write(self.guest(), address, dword)?;
        }
        Ok(())
    }

    fn set_msi_x(&self, enable: bool) -> io::Result<()> {
        let control = MsiXControl::from(self.config().read_u16(self.msi_x.control)?);
        let control = control.with_enable(enable).with_function_mask(false);
        self.config().write(self.msi_x.control, &u16::from(control).to_le_bytes())
    }

    /// Waits until the host has passed on by what it signals an interrupt.
    fn connect(&self, interrupt: &VpciInterrupt) -> Result<(), VpciError> {
        let vector = interrupt.vector.number();
        let deadline = Instant::now() + DELIVERY;
        loop {
            if let Some(event) = self.guest().interrupt(vector, VpIndex(PROCESSOR.into())) {
                let connected = interrupt.connect(event);
                return connected.map_err(VpciError::system("watching an interrupt"));
            }
            if self.function.is_gone() {
                return Err(VpciError::Gone);
            }
            if Instant::now() >= deadline {
                return Err(VpciError::NotDelivered(vector));
            }
            thread::sleep(PAUSE);
        }
    }

    /// A function level reset. The BARs and what enables them are gone after it, and are put back (PCIe 6.0 §6.6.2).
    fn reset_function(&self) -> io::Result<bool> {
        let config = self.config();
        let Some(express) = self.express else { return Ok(false) };
        let capabilities = config.read_u32(express + ExpressCapability::DEVICE_CAPABILITIES_OFFSET);
        if !DeviceCapabilities::from(capabilities?).function_level_reset_capable() {
            return Ok(false);
        }
        let command = config.read_u16(header_offset::COMMAND)?;
        let bar = |number: usize| header_offset::BARS + 4 * u16::try_from(number).unwrap_or(0);
        let mut bars = [0; BAR_COUNT];
        for (number, value) in bars.iter_mut().enumerate() {
            *value = config.read_u32(bar(number))?;
        }
        config.write(header_offset::COMMAND, &u16::from(Command::new()).to_le_bytes())?;
        let control = express + ExpressCapability::DEVICE_CONTROL_OFFSET;
        let initiate =
            DeviceControl::from(config.read_u16(control)?).with_initiate_function_level_reset(true);
        config.write(control, &u16::from(initiate).to_le_bytes())?;
        let deadline = Instant::now() + RESET;
        while config.read_u16(header_offset::VENDOR_ID)? == u16::MAX && !self.function.is_gone() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(PAUSE);
        }
        for (number, value) in bars.iter().enumerate() {
            config.write(bar(number), &value.to_le_bytes())?;
        }
        config.write(header_offset::COMMAND, &command.to_le_bytes())?;
        Ok(true)
    }

    /// Has the function reach nothing and nobody any more.
    fn stop_function(&self) -> io::Result<()> {
        let command = self.config().read_u16(header_offset::COMMAND)?;
        // Ones: nobody answers.
        if command == u16::MAX {
            return Ok(());
        }
        let command = Command::from(command).with_bus_master_enable(false);
        self.config().write(header_offset::COMMAND, &u16::from(command).to_le_bytes())?;
        self.set_msi_x(false)
    }
}

impl Drop for VpciTransport {
    fn drop(&mut self) {
        if self.function.is_gone() {
            return;
        }
        if let Err(error) = self.stop_function() {
            tracing::debug!(%error, "the host does not answer an access");
        }
    }
}

impl Transport for VpciTransport {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> avf_driver::Result<()> {
        let result = self.config().read(offset, data);
        self.accessed(result)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> avf_driver::Result<()> {
        let result = self.config().write(offset, data);
        self.accessed(result)
    }

    fn reset(&self) -> avf_driver::Result<bool> {
        match self.reset_function() {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(DriverError::TimedOut { what: "a function level reset", limit: RESET })
            }
            result => self.accessed(result),
        }
    }

    fn register_page(&self, page: usize) -> avf_driver::Result<Option<DoorbellPage>> {
        let Some((mapped, offset)) = self.mapped_page(page) else { return Ok(None) };
        let mapping = SharedMapping::map(mapped.fd.as_fd(), offset, PAGE_SIZE, Access::ReadWrite);
        let page = mapping.and_then(|mapping| DoorbellPage::new(&mapping, 0));
        Ok(page.inspect_err(|error| tracing::debug!(%error, "a register page is trapped")).ok())
    }

    fn read(&self, offset: u32) -> avf_driver::Result<u32> {
        let value = self.guest().mmio_read(self.registers.address + u64::from(offset), 4);
        // Only the low bytes were asked for.
        self.accessed(value).map(|value| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0))
    }

    fn write(&self, offset: u32, value: u32) -> avf_driver::Result<()> {
        let address = self.registers.address + u64::from(offset);
        let result = mmio_write(self.guest(), address, &value.to_le_bytes());
        self.accessed(result)
    }

    fn share_memory(&self, memory: &DriverMemory) -> avf_driver::Result<()> {
        let (first, length) = (memory.iova().0, memory.mapping().len() as u64);
        let inside = self.guest().memory().regions().iter().any(|region| {
            first >= region.gpa && first - region.gpa + length <= region.length as u64
        });
        if inside {
            return Ok(());
        }
        let problem = "the driver's memory is not the guest's; see VpciTransport::memory";
        Err(DriverError::Configuration(problem.into()))
    }

    fn interrupts(&self, count: u16) -> avf_driver::Result<Vec<Arc<dyn Interrupt>>> {
        self.check()?;
        if count > self.msi_x.vectors {
            return Err(DriverError::NotGranted("an interrupt vector for each queue pair"));
        }
        let mut made = self.function.interrupts();
        while made.len() < usize::from(count) {
            let next = self.make_interrupt();
            made.push(next.map_err(|error| self.error("making an interrupt", error))?);
        }
        let wanted = made.get(..usize::from(count)).unwrap_or_default();
        let written = wanted
            .iter()
            .enumerate()
            .try_for_each(|(vector, (_, message))| self.write_entry(vector, *message));
        self.accessed(written.and_then(|()| self.set_msi_x(true)))?;
        let mut interrupts = Vec::new();
        for (interrupt, _) in wanted {
            let connected = self.connect(interrupt);
            connected.map_err(|error| self.error("connecting an interrupt", error))?;
            interrupts.push(Arc::clone(interrupt) as Arc<dyn Interrupt>);
        }
        Ok(interrupts)
    }

    fn check(&self) -> avf_driver::Result<()> {
        if self.function.is_gone() { Err(DriverError::DeviceGone) } else { Ok(()) }
    }

    fn is_gone(&self) -> bool {
        self.function.is_gone()
    }

    fn gone_fd(&self) -> avf_driver::Result<OwnedFd> {
        self.function
            .gone()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| DriverError::Io { operation: "duplicating a descriptor", source })
    }
}

impl VpciTransport {
    fn error(&self, operation: &'static str, error: VpciError) -> DriverError {
        match error {
            VpciError::Gone => {
                self.function.set_gone();
                DriverError::DeviceGone
            }
            _ if self.function.is_gone() => DriverError::DeviceGone,
            error => failed(operation, error),
        }
    }
}

fn failed(operation: &'static str, error: VpciError) -> DriverError {
    DriverError::Transport { operation, source: Box::new(error) }
}
