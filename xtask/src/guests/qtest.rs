//! QEMU without a guest: memory, ports and PCI functions by the qtest protocol.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{
    machine::Machine,
    qemu::{Qemu, vfio_user_device},
};

/// How long anything may take that has no event to wait for but an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where BARs are put: in the hole below 4 GiB, 1 MiB for each function.
const BAR_WINDOW: u32 = 0xE000_0000;
const WINDOW_SIZE: u32 = 0x10_0000;

/// A machine (q35, 64 MiB of memory in a memfd) whose vfio-user devices are each on a root port of their own.
pub(crate) struct Qtest {
    machine: Machine,
    stream: BufReader<UnixStream>,
    _folder: TempDir,
}

impl Qtest {
    /// Starts QEMU with the given vfio-user sockets; the n-th becomes function 0 of bus n + 1.
    pub(crate) fn start(qemu: &Qemu, sockets: &[&Path]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("qtest.sock");
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let mut command = qemu.command();
        command.args(["-nodefaults", "-display", "none", "-no-user-config"]);
        command.args(["-M", "q35,memory-backend=mem", "-accel", "qtest", "-m", "64M"]);
        command.args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"]);
        command.arg("-qtest").arg(format!("unix:{}", path.display()));
        command.args(["-qtest-log", "/dev/null"]);
        for (index, socket) in sockets.iter().enumerate() {
            let slot = index + 1;
            command.arg("-device");
            command.arg(format!(
                "pcie-root-port,id=rp{index},chassis={slot},slot={slot},addr={slot:x}"
            ));
            let (id, bus) = (format!("vf{index}"), format!("rp{index}"));
            command.arg("-device").arg(vfio_user_device(&id, &bus, socket));
        }
        let mut machine = Machine::start(command, folder.path().join("qemu.log"))?;
        let stream = accept(&listener, &mut machine)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { machine, stream: BufReader::new(stream), _folder: folder })
    }

    /// Sends one command and gives what follows `OK`.
    fn command(&mut self, command: &str) -> Result<String> {
        let failed = |machine: &Machine| {
            format!("QEMU did not answer {command:?}; it said: {}", machine.errors())
        };
        writeln!(self.stream.get_mut(), "{command}").with_context(|| failed(&self.machine))?;
        loop {
            let mut line = String::new();
            let length = self.stream.read_line(&mut line).with_context(|| failed(&self.machine))?;
            ensure!(length > 0, failed(&self.machine));
            let line = line.trim();
            match line.strip_prefix("OK") {
                Some(rest) => return Ok(rest.trim().to_owned()),
                None if line.starts_with("IRQ") => {}
                None => bail!("QEMU answered {line:?} to {command:?}"),
            }
        }
    }

    fn number(&mut self, command: &str) -> Result<u64> {
        let text = self.command(command)?;
        let digits = text.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).with_context(|| format!("{text:?} is no number"))
    }

    /// Reads 32 bits of memory or of a BAR.
    pub(crate) fn read32(&mut self, address: u64) -> Result<u32> {
        Ok(u32::try_from(self.number(&format!("readl {address:#x}"))?)?)
    }

    /// Writes 32 bits of memory or of a BAR.
    pub(crate) fn write32(&mut self, address: u64, value: u32) -> Result<()> {
        self.command(&format!("writel {address:#x} {value:#x}")).map(drop)
    }

    /// Reads bytes of memory.
    pub(crate) fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        if length == 0 {
            // QEMU asserts that there is something to read.
            return Ok(Vec::new());
        }
        let text = self.command(&format!("read {address:#x} {length:#x}"))?;
        let digits = text.trim_start_matches("0x");
        ensure!(digits.len() == length * 2, "asked for {length} bytes, got {text:?}");
        let byte = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
        digits.as_bytes().chunks_exact(2).map(byte).collect()
    }

    /// Writes bytes of memory.
    pub(crate) fn write(&mut self, address: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.command(&format!("write {address:#x} {:#x} 0x{digits}", data.len())).map(drop)
    }

    fn config_address(&mut self, bus: u8, device: u8, register: u16) -> Result<()> {
        let address = 0x8000_0000
            | u32::from(bus) << 16
            | u32::from(device) << 11
            | u32::from(register & 0xFC);
        self.command(&format!("outl 0xcf8 {address:#x}")).map(drop)
    }

    fn config_read(&mut self, bus: u8, device: u8, register: u16) -> Result<u32> {
        self.config_address(bus, device, register)?;
        Ok(u32::try_from(self.number("inl 0xcfc")?)?)
    }

    fn config_write(&mut self, bus: u8, device: u8, register: u16, value: u32) -> Result<()> {
        self.config_address(bus, device, register)?;
        self.command(&format!("outl 0xcfc {value:#x}")).map(drop)
    }

    /// Waits until `look` finds something, for what QEMU does on its own, such as passing an interrupt on.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            ensure!(start.elapsed() < TIMEOUT, "waited {TIMEOUT:?} in vain for {what}");
            std::thread::yield_now();
        }
    }
}

fn accept(listener: &UnixListener, machine: &mut Machine) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("waiting for QEMU"),
        }
        if let Some(status) = machine.ended()? {
            bail!("QEMU ended with {status}: {}", machine.errors());
        }
        ensure!(start.elapsed() < TIMEOUT, "QEMU did not come up: {}", machine.errors());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A PCI function behind a root port, with its BARs where the machine can reach them.
#[derive(Clone, Debug)]
pub(crate) struct PciFunction {
    bus: u8,
    /// Address and bytes of each BAR; `None` where there is none, or it is the upper half of one.
    pub(crate) bars: [Option<(u64, u64)>; 6],
    /// Vendor and device.
    pub(crate) ids: (u16, u16),
    msix: Option<Msix>,
}

#[derive(Copy, Clone, Debug)]
struct Msix {
    capability: u16,
    table: u64,
    vectors: u16,
}

/// Bits of the command register.
const MEMORY_SPACE: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;

impl PciFunction {
    /// Brings up the function of the socket with this index: the root port's bus number and window, then the BARs as
    /// firmware would, memory space and bus mastering.
    pub(crate) fn enable(qtest: &mut Qtest, index: usize) -> Result<Self> {
        let slot = u8::try_from(index + 1)?;
        let window = BAR_WINDOW + u32::from(slot - 1) * WINDOW_SIZE;
        // Primary 0, secondary and subordinate the bus of that slot; a window of 1 MiB, no prefetchable one.
        qtest.config_write(0, slot, 0x18, u32::from(slot) << 16 | u32::from(slot) << 8)?;
        qtest.config_write(0, slot, 0x20, window >> 16 | window)?;
        qtest.config_write(0, slot, 0x24, 0x0000_FFF0)?;
        qtest.config_write(0, slot, 0x04, MEMORY_SPACE | BUS_MASTER)?;

        let ids = qtest.config_read(slot, 0, 0)?.to_le_bytes();
        let [vendor_low, vendor_high, device_low, device_high] = ids;
        let ids = (
            u16::from_le_bytes([vendor_low, vendor_high]),
            u16::from_le_bytes([device_low, device_high]),
        );
        ensure!(ids.0 != 0xFFFF, "there is no function on bus {slot}");
        let mut function = Self { bus: slot, bars: [None; 6], ids, msix: None };
        let mut next = window;
        let mut upper = false;
        for (number, bar) in function.bars.iter_mut().enumerate() {
            if std::mem::take(&mut upper) {
                continue;
            }
            let register = 0x10 + 4 * u16::try_from(number)?;
            qtest.config_write(slot, 0, register, u32::MAX)?;
            let mask = qtest.config_read(slot, 0, register)?;
            if mask == 0 {
                continue;
            }
            ensure!(mask & 1 == 0, "BAR {number} is of I/O space");
            upper = mask & 0b110 == 0b100;
            let size = (mask & !0xF).wrapping_neg();
            ensure!(
                size.is_power_of_two() && size < WINDOW_SIZE,
                "BAR {number} has {size:#x} bytes"
            );
            next = next.next_multiple_of(size);
            qtest.config_write(slot, 0, register, next)?;
            if upper {
                qtest.config_write(slot, 0, register + 4, 0)?;
            }
            *bar = Some((u64::from(next), u64::from(size)));
            next += size;
        }
        qtest.config_write(slot, 0, 0x04, MEMORY_SPACE | BUS_MASTER)?;
        function.msix = function.find_msix(qtest)?;
        Ok(function)
    }

    /// The address of a BAR.
    pub(crate) fn bar(&self, number: usize) -> Result<u64> {
        let bar = self.bars.get(number).copied().flatten();
        bar.map(|(address, _)| address).with_context(|| format!("there is no BAR {number}"))
    }

    /// Sets bus mastering on or off.
    pub(crate) fn bus_master(&self, qtest: &mut Qtest, on: bool) -> Result<()> {
        let value = if on { MEMORY_SPACE | BUS_MASTER } else { MEMORY_SPACE };
        qtest.config_write(self.bus, 0, 0x04, value)
    }

    fn find_msix(&self, qtest: &mut Qtest) -> Result<Option<Msix>> {
        let mut at = qtest.config_read(self.bus, 0, 0x34)? & 0xFC;
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let register = u16::try_from(at)?;
            let header = qtest.config_read(self.bus, 0, register)?;
            if header & 0xFF == 0x11 {
                let table = qtest.config_read(self.bus, 0, register + 4)?;
                let bar = self.bar(usize::try_from(table & 7)?)?;
                return Ok(Some(Msix {
                    capability: register,
                    table: bar + u64::from(table & !7),
                    vectors: u16::try_from((header >> 16) & 0x7FF)? + 1,
                }));
            }
            at = header >> 8 & 0xFC;
        }
        Ok(None)
    }

    /// MSI-X vectors the function has.
    pub(crate) fn vectors(&self) -> u16 {
        self.msix.map_or(0, |msix| msix.vectors)
    }

    /// Turns MSI-X on with vector `i` aimed at the word `target + 4 * i` of memory, to which it writes
    /// [`message`]`(i)`.
    pub(crate) fn aim_msix(&self, qtest: &mut Qtest, target: u64) -> Result<()> {
        let msix = self.msix.context("the function has no MSI-X")?;
        let enabled = 0x8000_0000 | u32::from(msix.vectors - 1) << 16;
        qtest.config_write(self.bus, 0, msix.capability, enabled)?;
        for vector in 0..msix.vectors {
            let entry = msix.table + 16 * u64::from(vector);
            let address = target + 4 * u64::from(vector);
            qtest.write32(address, 0)?;
            qtest.write32(entry, u32::try_from(address)?)?;
            qtest.write32(entry + 4, 0)?;
            qtest.write32(entry + 8, message(vector))?;
            qtest.write32(entry + 12, 0)?;
        }
        Ok(())
    }

    /// Turns MSI-X off.
    pub(crate) fn disable_msix(&self, qtest: &mut Qtest) -> Result<()> {
        let msix = self.msix.context("the function has no MSI-X")?;
        qtest.config_write(self.bus, 0, msix.capability, 0)
    }
}

/// What vector `vector` writes when it fires.
pub(crate) fn message(vector: u16) -> u32 {
    0xC1EA_0000 | u32::from(vector)
}
