//! The GUIDs of the contract (SPEC-PCIVIRT §2.1).

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A GUID in the layout of the published structure: the first three groups little endian, the rest as bytes.
#[derive(
    Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Guid {
    /// First group.
    pub data1: u32,
    /// Second group.
    pub data2: u16,
    /// Third group.
    pub data3: u16,
    /// Fourth and fifth group, in the order they are written.
    pub data4: [u8; 8],
}

const _: () = assert!(size_of::<Guid>() == 16);

impl Guid {
    /// A GUID from its groups, in the order they are written.
    pub const fn new(data1: u32, data2: u16, data3: u16, data4: [u8; 8]) -> Self {
        Self { data1, data2, data3, data4 }
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i] = self.data4;
        write!(
            f,
            "{:08X}-{:04X}-{:04X}-{a:02X}{b:02X}-{c:02X}{d:02X}{e:02X}{g:02X}{h:02X}{i:02X}",
            self.data1, self.data2, self.data3
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Device interface class of a device whose PF driver follows this contract.
pub const GUID_DEVINTERFACE_VIRTUALIZABLE_DEVICE: Guid =
    Guid::new(0xA13A_7A93, 0x11F0, 0x4BD2, [0xA9, 0xF5, 0x6B, 0x5C, 0x5B, 0x88, 0x52, 0x7D]);
/// Query-interface id of [`SriovDeviceInterfaceStandard`](crate::SriovDeviceInterfaceStandard) and its second version.
pub const GUID_SRIOV_DEVICE_INTERFACE_STANDARD: Guid =
    Guid::new(0x937E_E9B6, 0x0ED3, 0x411C, [0x98, 0x2B, 0x1F, 0x56, 0x4A, 0xFB, 0xAB, 0xD3]);
/// Query-interface id of [`MitigableDeviceInterface`](crate::MitigableDeviceInterface).
pub const GUID_MITIGABLE_DEVICE_INTERFACE: Guid =
    Guid::new(0xADFD_9567, 0x4245, 0x497E, [0x85, 0x72, 0x78, 0xD4, 0x5C, 0x16, 0x22, 0xB8]);
/// Device interface class of a device that may be assigned to a VM directly.
pub const GUID_DEVINTERFACE_DIRECTLY_ASSIGNABLE_DEVICE: Guid =
    Guid::new(0x0DB3_E0F9, 0x3536, 0x4213, [0x95, 0x72, 0xAD, 0x77, 0xE2, 0x24, 0xBE, 0x27]);
/// Query-interface id of [`PciVirtualizationInterface`](crate::PciVirtualizationInterface): host PCI driver to PF driver.
pub const GUID_PCI_VIRTUALIZATION_INTERFACE: Guid =
    Guid::new(0x6489_7B47, 0x3A4A, 0x4D75, [0xBC, 0x74, 0x89, 0xDD, 0x6C, 0x07, 0x82, 0x93]);
/// Type of the virtual PCI bus in a guest.
pub const GUID_BUS_VPCI: Guid =
    Guid::new(0xC066_F39A, 0xDE00, 0x4667, [0x89, 0x41, 0x33, 0x68, 0xED, 0x5D, 0x83, 0xB5]);
/// Query-interface id of [`VpciInterfaceStandard`](crate::VpciInterfaceStandard): guest VPCI bus to VF driver.
pub const GUID_VPCI_INTERFACE_STANDARD: Guid =
    Guid::new(0x12E6_5E71, 0xB651, 0x4067, [0x83, 0x1A, 0x13, 0x83, 0x20, 0x3C, 0xB0, 0xCB]);
/// Device interface class of a device under a guest's virtual PCI bus.
pub const GUID_DEVINTERFACE_VPCI: Guid =
    Guid::new(0x5786_3182, 0xC948, 0x4692, [0x97, 0xE3, 0x34, 0xB5, 0x76, 0x62, 0xA3, 0xE0]);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn guids_print_as_published() {
        let published = [
            (GUID_DEVINTERFACE_VIRTUALIZABLE_DEVICE, "A13A7A93-11F0-4BD2-A9F5-6B5C5B88527D"),
            (GUID_SRIOV_DEVICE_INTERFACE_STANDARD, "937EE9B6-0ED3-411C-982B-1F564AFBABD3"),
            (GUID_MITIGABLE_DEVICE_INTERFACE, "ADFD9567-4245-497E-8572-78D45C1622B8"),
            (GUID_DEVINTERFACE_DIRECTLY_ASSIGNABLE_DEVICE, "0DB3E0F9-3536-4213-9572-AD77E224BE27"),
            (GUID_PCI_VIRTUALIZATION_INTERFACE, "64897B47-3A4A-4D75-BC74-89DD6C078293"),
            (GUID_BUS_VPCI, "C066F39A-DE00-4667-8941-3368ED5D83B5"),
            (GUID_VPCI_INTERFACE_STANDARD, "12E65E71-B651-4067-831A-1383203CB0CB"),
            (GUID_DEVINTERFACE_VPCI, "57863182-C948-4692-97E3-34B57662A3E0"),
        ];
        for (guid, text) in published {
            assert_eq!(guid.to_string(), text);
        }
    }

    #[test]
    fn the_first_groups_are_little_endian_in_memory() {
        assert_eq!(
            GUID_DEVINTERFACE_VPCI.as_bytes(),
            [
                0x82, 0x31, 0x86, 0x57, 0x48, 0xC9, 0x92, 0x46, 0x97, 0xE3, 0x34, 0xB5, 0x76, 0x62,
                0xA3, 0xE0
            ]
        );
    }
}
