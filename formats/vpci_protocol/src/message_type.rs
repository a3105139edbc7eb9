//! Message types.

use std::fmt;

macro_rules! message_types {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $guest:literal;)*) => {
        /// The type of a message, the first 32 bits of its payload (SPEC-VMBUS §4.3).
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
        #[repr(u32)]
        pub enum MessageType {
            $($(#[$doc])* $variant = 0x4249_0000 + $number,)*
        }

        impl MessageType {
            /// All types, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The published name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Whether it is a guest that sends it; if not, a host does.
            pub const fn is_from_guest(self) -> bool {
                match self {
                    $(Self::$variant => $guest,)*
                }
            }
        }
    };
}

message_types! {
    /// Host: all functions of the bus.
    BusRelations = 0x00, "BUS_RELATIONS", false;
    /// Guest: which functions has the bus?
    QueryBusRelations = 0x01, "QUERY_BUS_RELATIONS", true;
    /// Host: a function has to be looked at again.
    InvalidateDevice = 0x02, "INVALIDATE_DEVICE", false;
    /// Host: the bus has to be looked at again.
    InvalidateBus = 0x03, "INVALIDATE_BUS", false;
    /// Guest: put a function into a power state.
    DevicePowerStateChange = 0x04, "DEVICE_POWER_STATE_CHANGE", true;
    /// Guest: which BARs has a function?
    CurrentResourceRequirements = 0x05, "CURRENT_RESOURCE_REQUIREMENTS", true;
    /// Guest: which resources were assigned to a function?
    GetResources = 0x06, "GET_RESOURCES", true;
    /// Guest: the bus is to be on, and its configuration window is here.
    FdoD0Entry = 0x07, "FDO_D0_ENTRY", true;
    /// Guest: the bus is to be off.
    FdoD0Exit = 0x08, "FDO_D0_EXIT", true;
    /// Guest: read a configuration block.
    ReadBlock = 0x09, "READ_BLOCK", true;
    /// Guest: write a configuration block.
    WriteBlock = 0x0A, "WRITE_BLOCK", true;
    /// Host: let a function go.
    Eject = 0x0B, "EJECT", false;
    /// Host: may a function be stopped?
    QueryStop = 0x0C, "QUERY_STOP", false;
    /// Host: a stopped function is back.
    ReEnable = 0x0D, "RE_ENABLE", false;
    /// Guest: a function may not be stopped.
    QueryStopFailed = 0x0E, "QUERY_STOP_FAILED", true;
    /// Guest: a function has been let go.
    EjectComplete = 0x0F, "EJECT_COMPLETE", true;
    /// Guest: the resources of a function, interrupts as in 1.1.
    AssignedResources = 0x10, "ASSIGNED_RESOURCES", true;
    /// Guest: the resources of a function are free again.
    ReleaseResources = 0x11, "RELEASE_RESOURCES", true;
    /// Host: configuration blocks have to be read again.
    InvalidateBlock = 0x12, "INVALIDATE_BLOCK", false;
    /// Guest: is this version spoken?
    QueryProtocolVersion = 0x13, "QUERY_PROTOCOL_VERSION", true;
    /// Guest: make an interrupt, as in 1.1.
    CreateInterrupt = 0x14, "CREATE_INTERRUPT", true;
    /// Guest: an interrupt is not needed any more.
    DeleteInterrupt = 0x15, "DELETE_INTERRUPT", true;
    /// Guest: the resources of a function, interrupts as in 1.2.
    AssignedResources2 = 0x16, "ASSIGNED_RESOURCES2", true;
    /// Guest: make an interrupt, as in 1.2.
    CreateInterrupt2 = 0x17, "CREATE_INTERRUPT2", true;
    /// Guest: an interrupt is not needed any more, as in 1.2.
    DeleteInterrupt2 = 0x18, "DELETE_INTERRUPT2", true;
    /// Host: all functions of the bus, with NUMA nodes.
    BusRelations2 = 0x19, "BUS_RELATIONS2", false;
    /// Guest: the resources of a function, interrupts as in 1.4.
    AssignedResources3 = 0x1A, "ASSIGNED_RESOURCES3", true;
    /// Guest: make an interrupt, as in 1.4.
    CreateInterrupt3 = 0x1B, "CREATE_INTERRUPT3", true;
    /// Guest: reset a function.
    ResetDevice = 0x1C, "RESET_DEVICE", true;
    /// Guest: a command to the device's security manager.
    TdispCommand = 0x1D, "TDISP_COMMAND", true;
}

impl MessageType {
    /// The type with this number.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|message| message.to_wire() == number)
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_numbered_without_gaps() {
        assert_eq!(MessageType::ALL.len(), 0x1E);
        for (number, message) in (0x4249_0000..).zip(MessageType::ALL) {
            assert_eq!(message.to_wire(), number);
            assert_eq!(MessageType::from_wire(number), Some(*message));
        }
        assert_eq!(MessageType::from_wire(0x4249_001E), None);
        assert_eq!(MessageType::from_wire(0), None);
    }
}
