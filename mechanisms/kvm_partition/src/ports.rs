//! I/O ports: which there are, and what an access to one means. The rest read as ones and take nothing.

/// COM1.
pub const SERIAL_PORT: u16 = 0x3F8;
/// Its interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// ACPI's reset register.
pub const RESET_PORT: u16 = 0xCF9;
/// What resets.
pub const RESET_VALUE: u8 = 0x06;
/// ACPI's sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI's sleep status register: reads 0.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The sleep type that turns the machine off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// The keyboard controller's command and status.
const KEYBOARD_PORT: u16 = 0x64;
/// Its command that resets.
const KEYBOARD_RESET: u8 = 0xFE;

/// A port that there is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Port {
    /// A register of the serial port.
    Serial(u8),
    /// Chooses a register of the clock.
    ClockIndex,
    /// The clock's register.
    ClockData,
    /// Reads 0, and may end the guest.
    Control,
    /// A hypercall that KVM does not know.
    Retarget,
}

/// What the guest wants of the machine.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Request {
    /// A reset.
    Reset,
    /// To be turned off.
    Off,
}

/// The port of that number.
pub fn port(number: u16) -> Option<Port> {
    match number {
        0x70 => Some(Port::ClockIndex),
        0x71 => Some(Port::ClockData),
        KEYBOARD_PORT | RESET_PORT | SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT => Some(Port::Control),
        crate::hypercall::RETARGET_PORT => Some(Port::Retarget),
        _ => {
            let register = u8::try_from(number.checked_sub(SERIAL_PORT)?).ok()?;
            (register < 8).then_some(Port::Serial(register))
        }
    }
}

/// What the guest wants by writing to a [`Port::Control`].
pub fn request(number: u16, value: u8) -> Option<Request> {
    match (number, value) {
        (KEYBOARD_PORT, KEYBOARD_RESET) => Some(Request::Reset),
        (RESET_PORT, value) if value & 0x04 != 0 => Some(Request::Reset),
        // Bit 5 is SLP_EN, bits 2 to 4 the type.
        (SLEEP_CONTROL_PORT, value) if value & 0x3C == 0x20 | SLEEP_TYPE_OFF << 2 => {
            Some(Request::Off)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_asked_for_in_three_ways() {
        assert_eq!(request(0x64, 0xFE), Some(Request::Reset));
        assert_eq!(request(0x64, 0xD1), None);
        assert_eq!(request(0xCF9, 0x06), Some(Request::Reset));
        assert_eq!(request(0xCF9, 0x02), None);
        assert_eq!(request(0x600, 0x34), Some(Request::Off));
        assert_eq!(request(0x600, 0x14), None, "the type alone does nothing");
        assert_eq!(request(0x3F8, 0xFE), None);
    }

    #[test]
    fn ports_are_where_the_tables_say() {
        assert_eq!(port(0x3F7), None);
        assert_eq!(port(0x3F8), Some(Port::Serial(0)));
        assert_eq!(port(0x3FF), Some(Port::Serial(7)));
        assert_eq!(port(0x400), None);
        assert_eq!(port(0xE8), Some(Port::Retarget));
        assert_eq!(port(0), None);
        assert_eq!(port(u16::MAX), None);
    }
}
