//! Function tables returned by query-interface (SPEC-PCIVIRT §4, §9, §10.1).
//!
//! A pointer is a 64-bit slot here; zero is a null entry, which a consumer must tolerate (SPEC-PCIVIRT §2).

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of [`SriovDeviceInterfaceStandard`].
pub const SRIOV_DEVICE_INTERFACE_VERSION_1: u16 = 1;
/// Version of [`SriovDeviceInterfaceStandard2`]: not published, our choice (SPEC-PCIVIRT §4.2).
pub const SRIOV_DEVICE_INTERFACE_VERSION_2: u16 = 2;
/// Version of [`MitigableDeviceInterface`].
pub const MITIGABLE_DEVICE_INTERFACE_VERSION: u16 = 1;

/// INTERFACE: what every function table starts with.
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct InterfaceHeader {
    /// Bytes of the whole table; tells its versions apart.
    pub size: u16,
    /// Version of the table.
    pub version: u16,
    /// Zero.
    pub padding: u32,
    /// First argument of every callback.
    pub context: u64,
    /// Called to keep the driver loaded.
    pub interface_reference: u64,
    /// Called when the table is not used any more.
    pub interface_dereference: u64,
}

const _: () = {
    assert!(size_of::<InterfaceHeader>() == 32);
    assert!(offset_of!(InterfaceHeader, version) == 2);
    assert!(offset_of!(InterfaceHeader, context) == 8);
    assert!(offset_of!(InterfaceHeader, interface_reference) == 16);
    assert!(offset_of!(InterfaceHeader, interface_dereference) == 24);
};

/// SRIOV_DEVICE_INTERFACE_STANDARD: the PF driver's callbacks.
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SriovDeviceInterfaceStandard {
    /// Size 120, version 1.
    pub header: InterfaceHeader,
    /// SRIOV_READ_CONFIG.
    pub read_vf_config: u64,
    /// SRIOV_WRITE_CONFIG.
    pub write_vf_config: u64,
    /// SRIOV_READ_BLOCK.
    pub read_vf_config_block: u64,
    /// SRIOV_WRITE_BLOCK.
    pub write_vf_config_block: u64,
    /// SRIOV_QUERY_PROBED_BARS.
    pub query_probed_bars: u64,
    /// SRIOV_GET_VENDOR_AND_DEVICE_IDS.
    pub get_vendor_and_device: u64,
    /// SRIOV_GET_DEVICE_LOCATION.
    pub get_device_location: u64,
    /// SRIOV_RESET_FUNCTION.
    pub reset_vf: u64,
    /// SRIOV_SET_POWER_STATE.
    pub set_vf_power_state: u64,
    /// SRIOV_GET_RESOURCE_FOR_BAR.
    pub get_resource_for_bar: u64,
    /// SRIOV_QUERY_LUID.
    pub query_luid: u64,
}

const _: () = {
    assert!(size_of::<SriovDeviceInterfaceStandard>() == 120);
    assert!(offset_of!(SriovDeviceInterfaceStandard, read_vf_config) == 32);
    assert!(offset_of!(SriovDeviceInterfaceStandard, write_vf_config) == 40);
    assert!(offset_of!(SriovDeviceInterfaceStandard, read_vf_config_block) == 48);
    assert!(offset_of!(SriovDeviceInterfaceStandard, write_vf_config_block) == 56);
    assert!(offset_of!(SriovDeviceInterfaceStandard, query_probed_bars) == 64);
    assert!(offset_of!(SriovDeviceInterfaceStandard, get_vendor_and_device) == 72);
    assert!(offset_of!(SriovDeviceInterfaceStandard, get_device_location) == 80);
    assert!(offset_of!(SriovDeviceInterfaceStandard, reset_vf) == 88);
    assert!(offset_of!(SriovDeviceInterfaceStandard, set_vf_power_state) == 96);
    assert!(offset_of!(SriovDeviceInterfaceStandard, get_resource_for_bar) == 104);
    assert!(offset_of!(SriovDeviceInterfaceStandard, query_luid) == 112);
};

/// SRIOV_DEVICE_INTERFACE_STANDARD_2: the same callbacks and three more, for devices whose VFs may differ.
///
/// It answers to the same GUID as the first version; a consumer tells them apart by `size`.
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SriovDeviceInterfaceStandard2 {
    /// The first version's entries; size 144, version 2.
    pub standard: SriovDeviceInterfaceStandard,
    /// SRIOV_QUERY_PROBED_BARS_2.
    pub query_probed_bars_2: u64,
    /// SRIOV_QUERY_VF_LUID.
    pub query_vf_luid: u64,
    /// SRIOV_QUERY_LUID_VF.
    pub query_luid_vf: u64,
}

const _: () = {
    assert!(size_of::<SriovDeviceInterfaceStandard2>() == 144);
    assert!(offset_of!(SriovDeviceInterfaceStandard2, query_probed_bars_2) == 120);
    assert!(offset_of!(SriovDeviceInterfaceStandard2, query_vf_luid) == 128);
    assert!(offset_of!(SriovDeviceInterfaceStandard2, query_luid_vf) == 136);
};

/// MITIGABLE_DEVICE_INTERFACE: the callback for accesses to intercepted registers.
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MitigableDeviceInterface {
    /// Size 40, version 1.
    pub header: InterfaceHeader,
    /// READ_WRITE_MITIGATED_REGISTER.
    pub read_write_mitigated_register: u64,
}

const _: () = {
    assert!(size_of::<MitigableDeviceInterface>() == 40);
    assert!(offset_of!(MitigableDeviceInterface, read_write_mitigated_register) == 32);
};

/// PCI_VIRTUALIZATION_INTERFACE: what the host's PCI driver does for a PF driver (SPEC-PCIVIRT §9).
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PciVirtualizationInterface {
    /// Size 80.
    pub header: InterfaceHeader,
    /// Write to a VF's configuration space.
    pub set_virtual_function_data: u64,
    /// Read from a VF's configuration space.
    pub get_virtual_function_data: u64,
    /// Segment, bus and function number of a VF.
    pub get_location: u64,
    /// Number of extra bus numbers captured for this PF.
    pub get_resources: u64,
    /// Set NumVFs and VF Enable.
    pub enable_virtualization: u64,
    /// The VF BARs as probed at enumeration.
    pub get_virtual_function_probed_bars: u64,
}

const _: () = {
    assert!(size_of::<PciVirtualizationInterface>() == 80);
    assert!(offset_of!(PciVirtualizationInterface, set_virtual_function_data) == 32);
    assert!(offset_of!(PciVirtualizationInterface, get_virtual_function_data) == 40);
    assert!(offset_of!(PciVirtualizationInterface, get_location) == 48);
    assert!(offset_of!(PciVirtualizationInterface, get_resources) == 56);
    assert!(offset_of!(PciVirtualizationInterface, enable_virtualization) == 64);
    assert!(offset_of!(PciVirtualizationInterface, get_virtual_function_probed_bars) == 72);
};

/// VPCI_INTERFACE_STANDARD: what a guest's VPCI bus driver does for a VF driver (SPEC-PCIVIRT §10.1).
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VpciInterfaceStandard {
    /// Size 56.
    pub header: InterfaceHeader,
    /// Synchronous twin of IOCTL_VPCI_WRITE_BLOCK.
    pub write_vf_config_block: u64,
    /// Synchronous twin of IOCTL_VPCI_READ_BLOCK.
    pub read_vf_config_block: u64,
    /// Number that links the VF with its software NIC; unique per exposed VF.
    pub serial_number: u32,
    /// Zero.
    pub padding: u32,
}

const _: () = {
    assert!(size_of::<VpciInterfaceStandard>() == 56);
    assert!(offset_of!(VpciInterfaceStandard, write_vf_config_block) == 32);
    assert!(offset_of!(VpciInterfaceStandard, read_vf_config_block) == 40);
    assert!(offset_of!(VpciInterfaceStandard, serial_number) == 48);
};
