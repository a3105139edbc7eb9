//! ACPI tables: processors, the IO-APIC, the serial port, virtio devices, and the VMBus with the MMIO windows that its
//! devices share.
//!
//! Reduced hardware: no PM timer, no SCI, no PCI host bridge. Bytes for guest memory, no I/O.

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
        Package, ResourceTemplate, Scope,
    },
    fadt::{FADTBuilder, Flags, PmProfile},
    gas,
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

use crate::{
    layout::{ACPI, IO_APIC, LOCAL_APIC, Layout, PAGE, VirtioPlace},
    ports::{
        RESET_PORT, RESET_VALUE, SERIAL_IRQ, SERIAL_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
        SLEEP_TYPE_OFF,
    },
};

const OEM: [u8; 6] = *b"CLRWAY";
const TABLE: [u8; 8] = *b"CLRWAYVM";
/// The interrupt in VMBS' resources: x86 guests do not use it, but there must be one.
const VMBUS_IRQ: u32 = 5;

/// Bytes that grow.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes::default();
    table.to_aml_bytes(&mut sink);
    sink.0
}

/// The tables, to lie from [`ACPI`]'s beginning on: the root is first. `None` if they are too long.
pub fn tables(layout: &Layout, processors: u16) -> Option<Vec<u8>> {
    let mut area = vec![0; Rsdp::len().next_multiple_of(64)];
    let mut place = |table: Vec<u8>| {
        let at = ACPI.start + area.len() as u64;
        area.extend(table);
        area.resize(area.len().next_multiple_of(64), 0);
        at
    };
    let dsdt = place(dsdt(layout));
    let fadt = place(fadt(dsdt));
    let madt = place(madt(processors));
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes(&xsdt));
    let root = bytes(&Rsdp::new(OEM, xsdt));
    area.get_mut(..root.len())?.copy_from_slice(&root);
    (area.len() as u64 <= ACPI.end - ACPI.start).then_some(area)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| {
        let (io, byte) = (gas::AddressSpace::SystemIo, gas::AccessSize::ByteAccess);
        gas::GAS::new(io, 8, 0, byte, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd);
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    bytes(&fadt.finalize())
}

fn madt(processors: u16) -> Vec<u8> {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..u8::try_from(processors).unwrap_or(u8::MAX) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    bytes(&madt)
}

fn dsdt(layout: &Layout) -> Vec<u8> {
    let [low, high] = layout.mmio_windows();
    let not_cached = AddressSpaceCacheable::NotCacheable;
    let dword = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let low =
        AddressSpace::new_memory(not_cached, true, dword(low.start), dword(low.end - 1), None);
    let not_cached = AddressSpaceCacheable::NotCacheable;
    let high = AddressSpace::new_memory(not_cached, true, high.start, high.end - 1, None);
    let windows = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&low, &high]));
    let module = Name::new("_HID".into(), &"ACPI0004");
    let module_id = Name::new("_UID".into(), &0u8);

    let vmbus_irq = Interrupt::new(true, true, false, false, VMBUS_IRQ);
    let vmbus_hid = Name::new("_HID".into(), &"VMBUS");
    let vmbus_uid = Name::new("_UID".into(), &0u8);
    let vmbus_state = Name::new("_STA".into(), &0x0Fu8);
    let vmbus_crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&vmbus_irq]));
    let vmbus = Device::new("VMBS".into(), vec![&vmbus_hid, &vmbus_uid, &vmbus_state, &vmbus_crs]);
    let vmod = Device::new("VMOD".into(), vec![&module, &module_id, &windows, &vmbus]);

    let serial_hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let serial_uid = Name::new("_UID".into(), &1u8);
    let serial_io = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let serial_irq = Interrupt::new(true, true, false, false, SERIAL_IRQ);
    let serial_crs = ResourceTemplate::new(vec![&serial_io, &serial_irq]);
    let serial_crs = Name::new("_CRS".into(), &serial_crs);
    let com1 = Device::new("COM1".into(), vec![&serial_hid, &serial_uid, &serial_crs]);

    let bus = Scope::new("\\_SB_".into(), vec![&vmod, &com1]);
    let off = Name::new("\\_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF, &0u8, &0u8, &0u8]));
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    dsdt.append_slice(&bytes(&bus));
    for (place, index) in layout.virtio().zip(0u8..) {
        dsdt.append_slice(&virtio(place, index));
    }
    dsdt.append_slice(&bytes(&off));
    dsdt.as_slice().to_vec()
}

/// A virtio device by registers: `LNRO0005`, as Linux' driver for them knows it.
fn virtio(place: VirtioPlace, index: u8) -> Vec<u8> {
    let dword = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &index);
    let registers = Memory32Fixed::new(true, dword(place.gpa), dword(PAGE));
    let irq = Interrupt::new(true, true, false, false, place.irq);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &irq]));
    let name = format!("VIO{index:X}");
    let device = Device::new(name.as_str().into(), vec![&hid, &uid, &crs]);
    bytes(&Scope::new("\\_SB_".into(), vec![&device]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(processors: u16) -> Vec<u8> {
        tables(&Layout::new(512 << 20).unwrap(), processors).unwrap()
    }

    fn table(area: &[u8], address: u64) -> &[u8] {
        let at = (address - ACPI.start) as usize;
        let length = u32::from_le_bytes(area[at + 4..at + 8].try_into().unwrap()) as usize;
        &area[at..at + length]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn has(table: &[u8], needle: &[u8]) -> bool {
        table.windows(needle.len()).any(|window| window == needle)
    }

    fn qword(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_root_leads_to_all_tables_and_their_sums_are_right() {
        let area = area(4);
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
        let xsdt = table(&area, qword(&area, 24));
        assert_eq!((&xsdt[..4], sum(xsdt), xsdt.len()), (&b"XSDT"[..], 0, 52));
        let fadt = table(&area, qword(xsdt, 36));
        assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
        assert_eq!(
            u32::from_le_bytes(fadt[112..116].try_into().unwrap()) & (1 << 20 | 1 << 10),
            1 << 20 | 1 << 10
        );
        assert_eq!(&fadt[116..129], [1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0, RESET_VALUE]);
        let madt = table(&area, qword(xsdt, 44));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
        let dsdt = table(&area, qword(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
    }

    #[test]
    fn vmbus_is_below_the_module_with_the_windows() {
        let area = area(1);
        let xsdt = table(&area, qword(&area, 24));
        let dsdt = table(&area, qword(table(&area, qword(xsdt, 36)), 140));
        for needle in [&b"VMOD"[..], b"ACPI0004\0", b"VMBS", b"VMBUS\0", b"COM1", b"_S5_"] {
            assert!(has(dsdt, needle), "{}", String::from_utf8_lossy(needle));
        }
        let low = [0xE000_0000u32, 0xFEBF_FFFF].map(u32::to_le_bytes).concat();
        let high = [0x10_0000_0000u64, 0x1F_FFFF_FFFF].map(u64::to_le_bytes).concat();
        assert!(has(dsdt, &low) && has(dsdt, &high));
        // Extended interrupt: consumer, edge-triggered, one, number 5.
        assert!(has(dsdt, &[0x89, 6, 0, 0x03, 1, 5, 0, 0, 0]));
    }

    #[test]
    fn virtio_devices_are_told_with_their_registers_and_interrupts() {
        let layout = |devices| Layout::new(512 << 20).unwrap().with_virtio(devices);
        let dsdt = |devices| dsdt(&layout(devices));
        let count = |table: &[u8], needle: &[u8]| {
            table.windows(needle.len()).filter(|window| *window == needle).count()
        };
        for devices in [0, 1, 8] {
            let table = dsdt(devices);
            assert_eq!(sum(&table), 0);
            assert_eq!(count(&table, b"LNRO0005\0"), devices);
        }
        let last = dsdt(8);
        let registers = [&[0x86, 9, 0, 1][..], &[0, 0x70, 0xC8, 0xFE], &[0, 0x10, 0, 0]].concat();
        // Extended interrupt: consumer, edge-triggered, one, number 23.
        let irq = [0x89, 6, 0, 0x03, 1, 23, 0, 0, 0];
        assert!(has(&last, &[registers, irq.to_vec()].concat()) && has(&last, b"VIO7"));
    }

    #[test]
    fn as_many_processors_and_devices_as_there_may_be_fit() {
        let layout = Layout::new(64 << 20).unwrap().with_virtio(8);
        assert!(tables(&layout, 254).is_some());
    }
}
