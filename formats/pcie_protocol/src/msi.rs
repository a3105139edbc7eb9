//! The MSI capability's control register (PCIe 6.0 §7.7.1). Functions of ours have MSI-X alone; this is
//! for reading the configuration space of hardware.

use bitfield_struct::bitfield;

/// Message Control for MSI, at offset 2 of the capability.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct MsiControl {
    /// Bit 0: interrupts are sent by MSI.
    pub enable: bool,
    /// Bits 3:1: log2 of the vectors the function asks for.
    #[bits(3)]
    pub multiple_message_capable: u8,
    /// Bits 6:4: log2 of the vectors software gave.
    #[bits(3)]
    pub multiple_message_enable: u8,
    /// Bit 7: the address has 64 bits.
    pub address_64_bit: bool,
    /// Bit 8: has mask and pending registers.
    pub per_vector_masking: bool,
    /// Bit 9: can send 32-bit data.
    pub extended_message_data_capable: bool,
    /// Bit 10: sends 32-bit data.
    pub extended_message_data_enable: bool,
    #[bits(5)]
    reserved: u8,
}

/// Bytes of an MSI capability with that control register.
pub const fn msi_capability_length(control: MsiControl) -> u16 {
    match (control.address_64_bit(), control.per_vector_masking()) {
        (false, false) => 0x0C,
        (true, false) => 0x10,
        (false, true) => 0x14,
        (true, true) => 0x18,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        let control = MsiControl::new()
            .with_enable(true)
            .with_multiple_message_capable(5)
            .with_multiple_message_enable(2)
            .with_address_64_bit(true)
            .with_per_vector_masking(true);
        assert_eq!(u16::from(control), 0x01AB);
        assert_eq!(msi_capability_length(control), 24);
        assert_eq!(msi_capability_length(MsiControl::new()), 12);
    }
}
