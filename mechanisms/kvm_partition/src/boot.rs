//! Direct kernel boot: an ELF `vmlinux` entered through PVH, or a `bzImage` entered at its 64-bit entry.
//!
//! Loads files into guest memory and makes the first pages and the first registers. No ioctls.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::{
    KernelLoader, KernelLoaderResult,
    bootparam::{boot_e820_entry, boot_params, setup_header},
    bzimage::BzImage,
    elf::{Elf, PvhBootCapability},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{Immutable, IntoBytes};

use crate::{
    acpi,
    layout::{
        ACPI, COMMAND_LINE, COMMAND_LINE_SIZE, GDT, HIGH_MEMORY, Layout, MEMORY_MAP, MODULE_LIST,
        PAGE, PAGE_TABLES, RESET_VECTOR, STACK, START_INFO, ZERO_PAGE,
    },
    ports::{RESET_PORT, RESET_VALUE},
};

/// What to boot.
#[derive(Debug)]
pub struct Boot {
    /// The kernel: a `vmlinux` with a PVH note, or a `bzImage`.
    pub kernel: File,
    /// The initial RAM file system.
    pub initrd: Option<File>,
    /// The kernel's command line, at most 2047 bytes without NUL.
    pub command_line: String,
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is neither kind of kernel.
    #[error(
        "the kernel is neither a vmlinux (ELF) nor a bzImage, or does not fit into guest memory: {0}"
    )]
    Kernel(String),
    /// The ELF file has no PVH entry.
    #[error("the vmlinux has no PVH note: it was built without CONFIG_PVH; use its bzImage")]
    NoPvh,
    /// The bzImage has no 64-bit entry.
    #[error("the bzImage has no 64-bit entry point: it is of another architecture or before 3.8")]
    NoEntry64,
    /// The initial RAM file system.
    #[error("the initrd of {0} bytes does not fit into guest memory behind the kernel")]
    InitrdSize(u64),
    /// A file cannot be read.
    #[error("reading the {0}")]
    Read(&'static str, #[source] io::Error),
    /// The command line.
    #[error("the command line is longer than 2047 bytes or has a NUL in it")]
    CommandLine,
    /// The first pages.
    #[error("the first pages of guest memory cannot be written")]
    Pages,
}

/// How the kernel is entered.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Entry {
    /// In 32-bit mode without paging, with EBX at the start info.
    Pvh(u64),
    /// In 64-bit mode, with RSI at the zero page.
    Linux64(u64),
}

/// Bit 0 of a bzImage's `xloadflags`: it has a 64-bit entry, 512 bytes behind its beginning.
const XLF_KERNEL_64: u16 = 1;
/// `hvm_start_info`'s magic number.
const PVH_MAGIC: u32 = 0x336E_C578;
/// Room for the kernel to grow behind what is loaded, where it does not say how much it needs.
const KERNEL_ROOM: u64 = 32 << 20;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);

/// Loads everything into guest memory and says how to enter the kernel.
pub fn load(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    processors: u16,
    boot: &mut Boot,
) -> Result<Entry, BootError> {
    let mut line = boot.command_line.clone().into_bytes();
    if line.len() >= COMMAND_LINE_SIZE || line.contains(&0) {
        return Err(BootError::CommandLine);
    }
    line.push(0);
    let write = |at: u64, bytes: &[u8]| {
        memory.write_slice(bytes, GuestAddress(at)).map_err(|_| BootError::Pages)
    };
    write(COMMAND_LINE, &line)?;
    let tables = acpi::tables(layout, processors).ok_or(BootError::Pages)?;
    write(ACPI.start, &tables)?;
    write(GDT, GDT_ENTRIES.as_bytes())?;
    write(RESET_VECTOR, &RESET_CODE)?;

    let start = Some(GuestAddress(HIGH_MEMORY));
    let elf = Elf::load(memory, None, &mut boot.kernel, start);
    let (loaded, header) = match elf {
        Ok(loaded) => (loaded, None),
        Err(elf) => {
            let failed = |error| BootError::Read("kernel", error);
            boot.kernel.seek(SeekFrom::Start(0)).map_err(failed)?;
            let loaded = BzImage::load(memory, None, &mut boot.kernel, start)
                .map_err(|error| BootError::Kernel(format!("{elf}; {error}")))?;
            (loaded, loaded.setup_header)
        }
    };
    let initrd = match &mut boot.initrd {
        Some(file) => Some(load_initrd(memory, layout, &loaded, header.as_ref(), file)?),
        None => None,
    };
    match header {
        None => {
            let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
                return Err(BootError::NoPvh);
            };
            write_start_info(layout, initrd, write)?;
            Ok(Entry::Pvh(entry.0))
        }
        Some(header) => {
            if header.xloadflags & XLF_KERNEL_64 == 0 {
                return Err(BootError::NoEntry64);
            }
            let zero_page = zero_page(layout, header, initrd);
            memory.write_obj(zero_page, GuestAddress(ZERO_PAGE)).map_err(|_| BootError::Pages)?;
            write_page_tables(write)?;
            Ok(Entry::Linux64(loaded.kernel_load.0 + 0x200))
        }
    }
}

/// All the firmware there is, in real mode: it resets the machine.
const RESET_CODE: [u8; 9] = {
    let [low, high] = RESET_PORT.to_le_bytes();
    [
        0xBA,
        low,
        high, // mov dx, RESET_PORT
        0xB0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xEE,        // out dx, al
        0xF4,        // hlt
        0xEB,
        0xFD, // jmp to hlt
    ]
};

/// Puts the initial RAM file system as high as may be, and says where it is and how long.
fn load_initrd(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    kernel: &KernelLoaderResult,
    header: Option<&setup_header>,
    file: &mut File,
) -> Result<(u64, u64), BootError> {
    let failed = |error| BootError::Read("initrd", error);
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let (highest, room) = header.map_or((u64::MAX, KERNEL_ROOM), |header| {
        (u64::from(header.initrd_addr_max).saturating_add(1), header.init_size.into())
    });
    let refused = BootError::InitrdSize(size);
    let behind = kernel.kernel_end.saturating_add(room);
    let top = layout.low_end().min(highest);
    let Some(at) = top.checked_sub(size).map(|at| at & !(PAGE - 1)).filter(|at| *at >= behind)
    else {
        return Err(refused);
    };
    let Ok(count) = usize::try_from(size) else { return Err(refused) };
    memory
        .read_exact_volatile_from(GuestAddress(at), file, count)
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok((at, size))
}

fn write_start_info(
    layout: &Layout,
    initrd: Option<(u64, u64)>,
    write: impl Fn(u64, &[u8]) -> Result<(), BootError>,
) -> Result<(), BootError> {
    let map = layout.map();
    for (entry, index) in map.iter().zip(0u64..) {
        let kind: u64 = if entry.usable { 1 } else { 2 };
        write(MEMORY_MAP + index * 24, [entry.start, entry.length, kind].as_bytes())?;
    }
    if let Some((at, size)) = initrd {
        write(MODULE_LIST, [at, size, 0, 0].as_bytes())?;
    }
    let info = StartInfo {
        magic: PVH_MAGIC,
        version: 1,
        flags: 0,
        modules: initrd.is_some().into(),
        module_list: MODULE_LIST,
        command_line: COMMAND_LINE,
        rsdp: ACPI.start,
        memory_map: MEMORY_MAP,
        memory_map_entries: u32::try_from(map.len()).unwrap_or(0),
        reserved: 0,
    };
    write(START_INFO, info.as_bytes())
}

fn zero_page(layout: &Layout, header: setup_header, initrd: Option<(u64, u64)>) -> boot_params {
    let mut page = boot_params { hdr: header, ..Default::default() };
    // Loaded by none of the loaders that have a number.
    page.hdr.type_of_loader = 0xFF;
    let low = |address: u64| u32::try_from(address).unwrap_or(0);
    page.hdr.cmd_line_ptr = low(COMMAND_LINE);
    page.acpi_rsdp_addr = ACPI.start;
    if let Some((at, size)) = initrd {
        page.hdr.ramdisk_image = low(at);
        page.hdr.ramdisk_size = low(size);
    }
    let map = layout.map();
    page.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    for (slot, entry) in page.e820_table.iter_mut().zip(map) {
        let kind = if entry.usable { 1 } else { 2 };
        *slot = boot_e820_entry { addr: entry.start, size: entry.length, r#type: kind };
    }
    page
}

/// Present, writable.
const PRESENT: u64 = 3;
/// A page of 2 MiB.
const LARGE: u64 = 1 << 7;

fn write_page_tables(write: impl Fn(u64, &[u8]) -> Result<(), BootError>) -> Result<(), BootError> {
    let (pdpt, directories) = (PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    write(PAGE_TABLES, (pdpt | PRESENT).as_bytes())?;
    for gib in 0..4 {
        let directory = directories + gib * PAGE;
        write(pdpt + gib * 8, (directory | PRESENT).as_bytes())?;
        let entries: Vec<u64> =
            (0..512).map(|entry| gib << 30 | entry << 21 | PRESENT | LARGE).collect();
        write(directory, entries.as_bytes())?;
    }
    Ok(())
}

/// What the descriptors say of each segment, at index 2 (code), 3 (data) and 4 (task): the Linux boot protocol's
/// selectors 0x10 and 0x18.
const GDT_ENTRIES: [u64; 5] =
    [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067];

fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xFFFF_FFFF,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// The first processor's registers.
pub fn registers(entry: Entry) -> kvm_regs {
    let registers = kvm_regs { rflags: 2, ..Default::default() };
    match entry {
        Entry::Pvh(rip) => kvm_regs { rip, rbx: START_INFO, ..registers },
        Entry::Linux64(rip) => {
            kvm_regs { rip, rsi: ZERO_PAGE, rsp: STACK, rbp: STACK, ..registers }
        }
    }
}

/// The first processor's special registers; `reset` are those it has after reset.
pub fn special_registers(entry: Entry, mut reset: kvm_sregs) -> kvm_sregs {
    const PE: u64 = 1;
    const ET: u64 = 1 << 4;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LME_LMA: u64 = 1 << 8 | 1 << 10;
    reset.gdt.base = GDT;
    reset.gdt.limit = u16::try_from(size_of_val(&GDT_ENTRIES) - 1).unwrap_or(0);
    let data = kvm_segment { db: 1, ..segment(0x18, 3) };
    [reset.ds, reset.es, reset.fs, reset.gs, reset.ss] = [data; 5];
    reset.tr = kvm_segment { limit: 0x67, g: 0, s: 0, ..segment(0x20, 11) };
    match entry {
        Entry::Pvh(_) => {
            reset.cs = kvm_segment { db: 1, ..segment(0x10, 11) };
            reset.cr0 = PE | ET;
            reset.cr4 = 0;
        }
        Entry::Linux64(_) => {
            reset.cs = kvm_segment { l: 1, ..segment(0x10, 11) };
            reset.cr0 = PE | ET | PG;
            reset.cr3 = PAGE_TABLES;
            reset.cr4 = PAE;
            reset.efer = LME_LMA;
        }
    }
    reset
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MEMORY: u64 = 64 << 20;

    fn memory() -> (GuestMemoryMmap, Layout) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        (memory, Layout::new(MEMORY).unwrap())
    }

    fn file(bytes: &[u8]) -> File {
        let fd = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    /// An ELF file with a segment at 16 MiB and, if wanted, a PVH note.
    fn vmlinux(pvh: bool) -> Vec<u8> {
        let code = [0xF4; 64];
        let note: Vec<u8> = [
            &4u32.to_le_bytes()[..],
            &8u32.to_le_bytes(),
            &18u32.to_le_bytes(),
            b"Xen\0",
            &0x0100_0010u64.to_le_bytes(),
        ]
        .concat();
        let mut bytes = vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([2u16, 62].map(u16::to_le_bytes).concat());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([0x0100_0000u64, 64, 0].map(u64::to_le_bytes).concat());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend([64u16, 56, if pvh { 2 } else { 1 }, 64, 0, 0].map(u16::to_le_bytes).concat());
        let mut segment = |kind: u32, at: u64, offset: u64, size: u64| {
            bytes.extend([kind, 5].map(u32::to_le_bytes).concat());
            bytes.extend([offset, at, at, size, size, 4].map(u64::to_le_bytes).concat());
        };
        segment(1, 0x0100_0000, 4096, code.len() as u64);
        if pvh {
            segment(4, 0, 8192, note.len() as u64);
        }
        bytes.resize(4096, 0);
        bytes.extend(code);
        bytes.resize(8192, 0);
        bytes.extend(note);
        bytes
    }

    fn bz_image(xloadflags: u16) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[0x1F1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
        bytes[0x211] = 1;
        bytes[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        bytes[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
        bytes[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        bytes.extend([0x90; 4096]);
        bytes[0x202..0x206].copy_from_slice(&0x5372_6448u32.to_le_bytes());
        bytes
    }

    fn boot(kernel: &[u8]) -> Boot {
        Boot {
            kernel: file(kernel),
            initrd: Some(file(&[0xAB; 5000])),
            command_line: "console=ttyS0".to_owned(),
        }
    }

    fn qword(memory: &GuestMemoryMmap, at: u64) -> u64 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn a_guest_that_restarts_by_firmware_finds_code_that_resets() {
        let (memory, layout) = memory();
        load(&memory, &layout, 1, &mut boot(&vmlinux(true))).unwrap();
        let mut code = [0; 9];
        memory.read_slice(&mut code, GuestAddress(0xF_0000 + 0xFFF0)).unwrap();
        assert_eq!(code, [0xBA, 0xF9, 0x0C, 0xB0, 0x06, 0xEE, 0xF4, 0xEB, 0xFD]);
    }

    #[test]
    fn a_vmlinux_is_entered_through_pvh() {
        let (memory, layout) = memory();
        let entry = load(&memory, &layout, 2, &mut boot(&vmlinux(true))).unwrap();
        assert_eq!(entry, Entry::Pvh(0x0100_0010));
        assert_eq!(qword(&memory, 0x0100_0000), u64::from_le_bytes([0xF4; 8]));
        assert_eq!(qword(&memory, START_INFO), 1 << 32 | 0x336E_C578);
        assert_eq!(qword(&memory, START_INFO + 8), 1 << 32, "one module");
        let pointers = [16, 24, 32, 40, 48].map(|at| qword(&memory, START_INFO + at));
        assert_eq!(pointers, [MODULE_LIST, COMMAND_LINE, ACPI.start, MEMORY_MAP, 3]);
        let initrd = MEMORY - 8192;
        assert_eq!([0, 8].map(|at| qword(&memory, MODULE_LIST + at)), [initrd, 5000]);
        assert_eq!(qword(&memory, initrd + 4992), u64::from_le_bytes([0xAB; 8]));
        let map = [0, 8, 16].map(|at| qword(&memory, MEMORY_MAP + 48 + at));
        assert_eq!(map, [HIGH_MEMORY, MEMORY - HIGH_MEMORY, 1]);
        assert_eq!(registers(entry).rbx, START_INFO);
        let special = special_registers(entry, kvm_sregs::default());
        assert_eq!((special.cr0, special.cs.db, special.cs.l, special.efer), (0x11, 1, 0, 0));
    }

    #[test]
    fn a_bz_image_is_entered_in_64_bit_mode() {
        let (memory, layout) = memory();
        let entry = load(&memory, &layout, 1, &mut boot(&bz_image(1))).unwrap();
        assert_eq!(entry, Entry::Linux64(0x10_0200));
        let page: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let (header, rsdp) = (page.hdr, page.acpi_rsdp_addr);
        let (loader, line) = (header.type_of_loader, header.cmd_line_ptr);
        assert_eq!((loader, line), (0xFF, 0x2_0000));
        let (at, size) = (header.ramdisk_image, header.ramdisk_size);
        assert_eq!((u64::from(at), size), (MEMORY - 8192, 5000));
        assert_eq!((rsdp, page.e820_entries), (ACPI.start, 3));
        let special = special_registers(entry, kvm_sregs::default());
        assert_eq!((special.cr3, special.efer, special.cs.l), (PAGE_TABLES, 0x500, 1));
        // 2 MiB at 3 GiB + 4 MiB, by way of all three levels.
        let pdpt = qword(&memory, special.cr3) & !0xFFF;
        let directory = qword(&memory, pdpt + 3 * 8) & !0xFFF;
        assert_eq!(qword(&memory, directory + 2 * 8), 0xC040_0083);
        assert_eq!(registers(entry).rsi, ZERO_PAGE);
    }

    #[test]
    fn what_cannot_be_booted_is_refused_with_its_cause() {
        let (memory, layout) = memory();
        let load = |boot: &mut Boot| load(&memory, &layout, 1, boot).unwrap_err().to_string();
        assert!(load(&mut boot(&vmlinux(false))).contains("no PVH note"));
        assert!(load(&mut boot(&bz_image(0))).contains("no 64-bit entry"));
        assert!(load(&mut boot(b"#!/bin/sh\n")).contains("neither"));
        assert!(load(&mut boot(b"")).contains("neither"));
        let mut long = Boot { command_line: "x".repeat(2048), ..boot(&vmlinux(true)) };
        assert!(load(&mut long).contains("2047"));
        let huge = boot(&vmlinux(true));
        huge.initrd.as_ref().unwrap().set_len(MEMORY).unwrap();
        assert!(load(&mut { huge }).contains("does not fit"));
    }
}
