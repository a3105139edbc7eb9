//! The type 0 configuration header (PCIe 6.0 §7.5.1).

use std::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// Byte offsets of the type 0 header's registers.
pub mod header_offset {
    /// Vendor id, 16 bits.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device id, 16 bits.
    pub const DEVICE_ID: u16 = 0x02;
    /// [`Command`](super::Command), 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// [`Status`](super::Status), 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision id, 8 bits.
    pub const REVISION_ID: u16 = 0x08;
    /// [`ClassCode`](super::ClassCode), 24 bits.
    pub const CLASS_CODE: u16 = 0x09;
    /// Cache line size, 8 bits: no meaning in PCI Express.
    pub const CACHE_LINE_SIZE: u16 = 0x0C;
    /// Latency timer, 8 bits: 0 in PCI Express.
    pub const LATENCY_TIMER: u16 = 0x0D;
    /// [`HeaderType`](super::HeaderType), 8 bits.
    pub const HEADER_TYPE: u16 = 0x0E;
    /// Built-in self test, 8 bits.
    pub const BIST: u16 = 0x0F;
    /// Six base address registers of 32 bits.
    pub const BARS: u16 = 0x10;
    /// CardBus CIS pointer, 32 bits: 0 in PCI Express.
    pub const CARDBUS_CIS: u16 = 0x28;
    /// Subsystem vendor id, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2C;
    /// Subsystem id, 16 bits.
    pub const SUBSYSTEM_ID: u16 = 0x2E;
    /// Expansion ROM base address, 32 bits.
    pub const EXPANSION_ROM: u16 = 0x30;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES_POINTER: u16 = 0x34;
    /// Interrupt line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3C;
    /// Interrupt pin, 8 bits: 0 where the function has no INTx.
    pub const INTERRUPT_PIN: u16 = 0x3D;
    /// Bytes of the header; the first capability can start here.
    pub const END: u16 = 0x40;
}

/// The type 0 header, as the bytes lie in configuration space.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Type0Header {
    /// Vendor id.
    pub vendor_id: U16,
    /// Device id.
    pub device_id: U16,
    /// [`Command`] bits.
    pub command: U16,
    /// [`Status`] bits.
    pub status: U16,
    /// Revision id.
    pub revision_id: u8,
    /// Programming interface, sub-class, base class: see [`ClassCode::to_register`].
    pub class_code: [u8; 3],
    /// Cache line size.
    pub cache_line_size: u8,
    /// Latency timer.
    pub latency_timer: u8,
    /// [`HeaderType`] bits.
    pub header_type: u8,
    /// Built-in self test.
    pub bist: u8,
    /// Base address registers.
    pub bars: [U32; 6],
    /// CardBus CIS pointer.
    pub cardbus_cis: U32,
    /// Subsystem vendor id.
    pub subsystem_vendor_id: U16,
    /// Subsystem id.
    pub subsystem_id: U16,
    /// Expansion ROM base address.
    pub expansion_rom: U32,
    /// Offset of the first capability.
    pub capabilities_pointer: u8,
    /// Reserved.
    pub reserved: [u8; 7],
    /// Interrupt line.
    pub interrupt_line: u8,
    /// Interrupt pin.
    pub interrupt_pin: u8,
    /// Min_Gnt: 0 in PCI Express.
    pub min_gnt: u8,
    /// Max_Lat: 0 in PCI Express.
    pub max_lat: u8,
}

const _: () = {
    assert!(size_of::<Type0Header>() == header_offset::END as usize);
    assert!(offset_of!(Type0Header, command) == header_offset::COMMAND as usize);
    assert!(offset_of!(Type0Header, status) == header_offset::STATUS as usize);
    assert!(offset_of!(Type0Header, revision_id) == header_offset::REVISION_ID as usize);
    assert!(offset_of!(Type0Header, class_code) == header_offset::CLASS_CODE as usize);
    assert!(offset_of!(Type0Header, header_type) == header_offset::HEADER_TYPE as usize);
    assert!(offset_of!(Type0Header, bars) == header_offset::BARS as usize);
    assert!(offset_of!(Type0Header, cardbus_cis) == header_offset::CARDBUS_CIS as usize);
    assert!(
        offset_of!(Type0Header, subsystem_vendor_id) == header_offset::SUBSYSTEM_VENDOR_ID as usize
    );
    assert!(offset_of!(Type0Header, expansion_rom) == header_offset::EXPANSION_ROM as usize);
    assert!(
        offset_of!(Type0Header, capabilities_pointer)
            == header_offset::CAPABILITIES_POINTER as usize
    );
    assert!(offset_of!(Type0Header, interrupt_line) == header_offset::INTERRUPT_LINE as usize);
    assert!(offset_of!(Type0Header, interrupt_pin) == header_offset::INTERRUPT_PIN as usize);
};

/// The Command register (PCIe 6.0 §7.5.1.1.3).
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct Command {
    /// Bit 0: I/O BARs answer.
    pub io_space_enable: bool,
    /// Bit 1: memory BARs answer. Not implemented in VFs: their PF's VF MSE governs them.
    pub memory_space_enable: bool,
    /// Bit 2: the function may send requests: DMA and message-signalled interrupts.
    pub bus_master_enable: bool,
    /// Bit 3: 0 in PCI Express.
    pub special_cycle_enable: bool,
    /// Bit 4: 0 in PCI Express.
    pub memory_write_and_invalidate: bool,
    /// Bit 5: 0 in PCI Express.
    pub vga_palette_snoop: bool,
    /// Bit 6: poisoned TLPs are reported in Status.
    pub parity_error_response: bool,
    /// Bit 7: 0 in PCI Express.
    pub idsel_stepping: bool,
    /// Bit 8: errors are reported to the root complex.
    pub serr_enable: bool,
    /// Bit 9: 0 in PCI Express.
    pub fast_back_to_back_enable: bool,
    /// Bit 10: INTx is not asserted.
    pub interrupt_disable: bool,
    #[bits(5)]
    reserved: u8,
}

/// The Status register (PCIe 6.0 §7.5.1.1.4). Bits 8 and 11 to 15 are cleared by writing ones.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct Status {
    /// Bit 0: ready for configuration accesses at once after a reset.
    pub immediate_readiness: bool,
    #[bits(2)]
    reserved_1: u8,
    /// Bit 3: an INTx is pending.
    pub interrupt_status: bool,
    /// Bit 4: there is a capability list; always set in PCI Express.
    pub capabilities_list: bool,
    /// Bit 5: 0 in PCI Express.
    pub capable_66_mhz: bool,
    #[bits(1)]
    reserved_6: u8,
    /// Bit 7: 0 in PCI Express.
    pub fast_back_to_back_capable: bool,
    /// Bit 8: a poisoned TLP was sent or received while parity error response was on.
    pub master_data_parity_error: bool,
    /// Bits 9 and 10: 0 in PCI Express.
    #[bits(2)]
    pub devsel_timing: u8,
    /// Bit 11: the function answered a request with Completer Abort.
    pub signaled_target_abort: bool,
    /// Bit 12: a request of the function's was answered with Completer Abort.
    pub received_target_abort: bool,
    /// Bit 13: a request of the function's was answered with Unsupported Request.
    pub received_master_abort: bool,
    /// Bit 14: the function sent ERR_FATAL or ERR_NONFATAL while SERR# was enabled.
    pub signaled_system_error: bool,
    /// Bit 15: the function received a poisoned TLP.
    pub detected_parity_error: bool,
}

impl Status {
    /// The bits that are set by events and cleared by writing ones.
    pub const WRITE_ONE_TO_CLEAR: Self = Self(0xF900);
}

/// The Header Type register (PCIe 6.0 §7.5.1.1.9).
#[bitfield(u8)]
#[derive(Eq, PartialEq)]
pub struct HeaderType {
    /// 0 for a function, 1 for a bridge.
    #[bits(7)]
    pub layout: u8,
    /// The device has more functions than this one.
    pub multi_function: bool,
}

/// What kind of device a function is (PCIe 6.0 §7.5.1.1.6).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ClassCode {
    /// Base class, such as 0x02 for a network controller.
    pub base_class: u8,
    /// Sub-class, such as 0x00 for Ethernet.
    pub sub_class: u8,
    /// Programming interface.
    pub programming_interface: u8,
}

impl ClassCode {
    /// An Ethernet controller, 0x020000.
    pub const ETHERNET: Self = Self { base_class: 2, sub_class: 0, programming_interface: 0 };

    /// The three bytes of the register, lowest offset first.
    pub const fn to_register(self) -> [u8; 3] {
        [self.programming_interface, self.sub_class, self.base_class]
    }

    /// From the three bytes of the register, lowest offset first.
    pub const fn from_register(bytes: [u8; 3]) -> Self {
        let [programming_interface, sub_class, base_class] = bytes;
        Self { base_class, sub_class, programming_interface }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_and_status_bits_lie_where_the_specification_puts_them() {
        assert_eq!(u16::from(Command::new().with_io_space_enable(true)), 1);
        assert_eq!(u16::from(Command::new().with_memory_space_enable(true)), 2);
        assert_eq!(u16::from(Command::new().with_bus_master_enable(true)), 4);
        assert_eq!(u16::from(Command::new().with_parity_error_response(true)), 0x40);
        assert_eq!(u16::from(Command::new().with_serr_enable(true)), 0x100);
        assert_eq!(u16::from(Command::new().with_interrupt_disable(true)), 0x400);
        assert_eq!(u16::from(Status::new().with_interrupt_status(true)), 8);
        assert_eq!(u16::from(Status::new().with_capabilities_list(true)), 0x10);
        assert_eq!(u16::from(Status::new().with_master_data_parity_error(true)), 0x100);
        assert_eq!(u16::from(Status::new().with_received_master_abort(true)), 0x2000);
        assert_eq!(u16::from(Status::new().with_detected_parity_error(true)), 0x8000);
        assert_eq!(u8::from(HeaderType::new().with_multi_function(true)), 0x80);
    }

    #[test]
    fn class_code_of_an_ethernet_controller_reads_020000() {
        assert_eq!(ClassCode::ETHERNET.to_register(), [0, 0, 2]);
        let class = ClassCode { base_class: 1, sub_class: 8, programming_interface: 2 };
        assert_eq!(ClassCode::from_register(class.to_register()), class);
    }
}
