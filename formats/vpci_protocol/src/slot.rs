//! Slot numbers: which function of a virtual bus.

use std::fmt;

/// A function of the virtual bus: device 0 to 31, function 0 to 7 (SPEC-VMBUS §4.4). Network VFs are at slot 0.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Default)]
pub struct SlotNumber(u8);

impl SlotNumber {
    /// Device 0, function 0.
    pub const ZERO: Self = Self(0);

    /// From a device number (0 to 31) and a function number (0 to 7).
    pub fn new(device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self(function << 5 | device))
    }

    /// From the number on the wire: device in bits 0 to 4, function in bits 5 to 7, nothing above.
    pub fn from_wire(slot: u32) -> Option<Self> {
        u8::try_from(slot).ok().map(Self)
    }

    /// The number on the wire.
    pub fn to_wire(self) -> u32 {
        self.0.into()
    }

    /// Device number, 0 to 31.
    pub fn device(self) -> u8 {
        self.0 & 0x1F
    }

    /// Function number, 0 to 7.
    pub fn function(self) -> u8 {
        self.0 >> 5
    }
}

impl fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_and_function_lie_where_the_wire_has_them() {
        let slot = SlotNumber::new(3, 5).unwrap();
        assert_eq!(slot.to_wire(), 0xA3);
        assert_eq!((slot.device(), slot.function()), (3, 5));
        assert_eq!(slot.to_string(), "03.5");
        assert_eq!(SlotNumber::new(32, 0), None);
        assert_eq!(SlotNumber::new(0, 8), None);
        assert_eq!(SlotNumber::from_wire(0x100), None);
        for wire in 0..=0xFF {
            let slot = SlotNumber::from_wire(wire).unwrap();
            assert_eq!(slot.to_wire(), wire);
            assert_eq!(SlotNumber::new(slot.device(), slot.function()), Some(slot));
        }
    }
}
