//! Interface callbacks as requests: their codes, and the buffers their arguments travel in.
//!
//! Within one kernel a callback is a C function found in a table; between processes it is a request of class
//! [`Callback`](crate::RequestClass::Callback). What identifies it is its slot: **the code is the slot's byte offset in the
//! published table**, plus [`MITIGABLE_INTERFACE`] for the second interface. Code 0 is IRP_MN_QUERY_INTERFACE itself; it returns the
//! table in its published layout, with each slot holding the code to call, or zero for a null entry.
//!
//! A callback's input is a fixed structure with its *in* arguments in the published order, and then the data, if it has
//! data to take in. `Context` is left out, as the connection stands for it. Its output is its *out* argument. Lengths
//! must be exact; reserved members must be zero.
//!
//! | code | callback (SPEC-PCIVIRT §5) | input | output |
//! | --- | --- | --- | --- |
//! | 0 | IRP_MN_QUERY_INTERFACE | [`QueryInterface`] | the table |
//! | 16, 24 | InterfaceReference, InterfaceDereference | – | – |
//! | 32 | ReadVfConfig | [`ConfigAccess`] | `length` bytes |
//! | 40 | WriteVfConfig | [`ConfigAccess`], `length` bytes | – |
//! | 48 | ReadVfConfigBlock | [`BlockAccess`] | `length` bytes |
//! | 56 | WriteVfConfigBlock | [`BlockAccess`], `length` bytes | – |
//! | 64 | QueryProbedBars | – | [`ProbedBars`] |
//! | 72 | GetVendorAndDevice | [`VfArgument`] | [`VendorAndDevice`] |
//! | 80 | GetDeviceLocation | [`VfArgument`] | [`DeviceLocation`] |
//! | 88 | ResetVf | [`VfArgument`] | – |
//! | 96 | SetVfPowerState | [`SetPowerState`] | – |
//! | 104 | GetResourceForBar | [`BarArgument`] | CM_PARTIAL_RESOURCE_DESCRIPTOR |
//! | 112 | QueryLuid | – | LUID |
//! | 120 | QueryProbedBars_2 | [`VfArgument`] | [`ProbedBars`] |
//! | 128 | QueryVfLuid | [`VfArgument`] | LUID |
//! | 136 | QueryLuidVf | LUID | [`VfArgument`] |
//! | 0x10010, 0x10018 | InterfaceReference, InterfaceDereference of the mitigable interface | – | – |
//! | 0x10020 | ReadWriteMitigatedRegister | [`MitigatedRegisterAccess`]; `length` bytes if it writes | `length` bytes if it reads |

use core::fmt;
use core::mem::offset_of;
use pcivirt_protocol::{
    DevicePowerStateRaw, Guid, PCI_TYPE0_ADDRESSES, SriovDeviceInterfaceStandard,
    SriovDeviceInterfaceStandard2, VfIndex,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Added to the slot offsets of MITIGABLE_DEVICE_INTERFACE.
pub const MITIGABLE_INTERFACE: u32 = 0x1_0000;

macro_rules! callbacks {
    ($($(#[$doc:meta])* $name:ident = $code:expr, $text:literal;)*) => {
        /// The callbacks of a PF driver's interfaces.
        #[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u32)]
        pub enum CallbackCode {
            $($(#[$doc])* $name = $code,)*
        }

        impl CallbackCode {
            /// All callbacks, in ascending order of code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The published name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

callbacks! {
    /// IRP_MN_QUERY_INTERFACE: get a table, and a reference on it.
    QueryInterface = 0, "IRP_MN_QUERY_INTERFACE";
    /// Take one more reference.
    InterfaceReference = 16, "InterfaceReference";
    /// Give a reference back.
    InterfaceDereference = 24, "InterfaceDereference";
    /// SRIOV_READ_CONFIG.
    ReadVfConfig = 32, "ReadVfConfig";
    /// SRIOV_WRITE_CONFIG.
    WriteVfConfig = 40, "WriteVfConfig";
    /// SRIOV_READ_BLOCK.
    ReadVfConfigBlock = 48, "ReadVfConfigBlock";
    /// SRIOV_WRITE_BLOCK.
    WriteVfConfigBlock = 56, "WriteVfConfigBlock";
    /// SRIOV_QUERY_PROBED_BARS.
    QueryProbedBars = 64, "QueryProbedBars";
    /// SRIOV_GET_VENDOR_AND_DEVICE_IDS.
    GetVendorAndDevice = 72, "GetVendorAndDevice";
    /// SRIOV_GET_DEVICE_LOCATION.
    GetDeviceLocation = 80, "GetDeviceLocation";
    /// SRIOV_RESET_FUNCTION.
    ResetVf = 88, "ResetVf";
    /// SRIOV_SET_POWER_STATE.
    SetVfPowerState = 96, "SetVfPowerState";
    /// SRIOV_GET_RESOURCE_FOR_BAR.
    GetResourceForBar = 104, "GetResourceForBar";
    /// SRIOV_QUERY_LUID.
    QueryLuid = 112, "QueryLuid";
    /// SRIOV_QUERY_PROBED_BARS_2.
    QueryProbedBars2 = 120, "QueryProbedBars_2";
    /// SRIOV_QUERY_VF_LUID.
    QueryVfLuid = 128, "QueryVfLuid";
    /// SRIOV_QUERY_LUID_VF.
    QueryLuidVf = 136, "QueryLuidVf";
    /// InterfaceReference of the mitigable interface.
    MitigableInterfaceReference = MITIGABLE_INTERFACE + 16, "InterfaceReference (mitigable)";
    /// InterfaceDereference of the mitigable interface.
    MitigableInterfaceDereference = MITIGABLE_INTERFACE + 24, "InterfaceDereference (mitigable)";
    /// READ_WRITE_MITIGATED_REGISTER.
    ReadWriteMitigatedRegister = MITIGABLE_INTERFACE + 32, "ReadWriteMitigatedRegister";
}

// A code is the offset of its slot.
const _: () = {
    assert!(
        CallbackCode::ReadVfConfig as usize
            == offset_of!(SriovDeviceInterfaceStandard, read_vf_config)
    );
    assert!(
        CallbackCode::WriteVfConfig as usize
            == offset_of!(SriovDeviceInterfaceStandard, write_vf_config)
    );
    assert!(
        CallbackCode::ReadVfConfigBlock as usize
            == offset_of!(SriovDeviceInterfaceStandard, read_vf_config_block)
    );
    assert!(
        CallbackCode::WriteVfConfigBlock as usize
            == offset_of!(SriovDeviceInterfaceStandard, write_vf_config_block)
    );
    assert!(
        CallbackCode::QueryProbedBars as usize
            == offset_of!(SriovDeviceInterfaceStandard, query_probed_bars)
    );
    assert!(
        CallbackCode::GetVendorAndDevice as usize
            == offset_of!(SriovDeviceInterfaceStandard, get_vendor_and_device)
    );
    assert!(
        CallbackCode::GetDeviceLocation as usize
            == offset_of!(SriovDeviceInterfaceStandard, get_device_location)
    );
    assert!(CallbackCode::ResetVf as usize == offset_of!(SriovDeviceInterfaceStandard, reset_vf));
    assert!(
        CallbackCode::SetVfPowerState as usize
            == offset_of!(SriovDeviceInterfaceStandard, set_vf_power_state)
    );
    assert!(
        CallbackCode::GetResourceForBar as usize
            == offset_of!(SriovDeviceInterfaceStandard, get_resource_for_bar)
    );
    assert!(
        CallbackCode::QueryLuid as usize == offset_of!(SriovDeviceInterfaceStandard, query_luid)
    );
    assert!(
        CallbackCode::QueryProbedBars2 as usize
            == offset_of!(SriovDeviceInterfaceStandard2, query_probed_bars_2)
    );
    assert!(
        CallbackCode::QueryVfLuid as usize
            == offset_of!(SriovDeviceInterfaceStandard2, query_vf_luid)
    );
    assert!(
        CallbackCode::QueryLuidVf as usize
            == offset_of!(SriovDeviceInterfaceStandard2, query_luid_vf)
    );
};

impl CallbackCode {
    /// The callback a code stands for.
    pub fn from_u32(code: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|callback| callback.to_u32() == code)
    }

    /// The code as it is sent.
    pub const fn to_u32(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for CallbackCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Input of IRP_MN_QUERY_INTERFACE.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueryInterface {
    /// Which interface.
    pub interface_type: Guid,
    /// Bytes of the table the caller knows: 144 asks for the second version, 120 for the first.
    pub size: u16,
    /// Version the caller knows.
    pub version: u16,
}

const _: () = assert!(size_of::<QueryInterface>() == 20);

/// An argument that is a VF index alone.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VfArgument {
    /// The VF.
    pub vf_index: VfIndex,
}

const _: () = assert!(size_of::<VfArgument>() == 2);

/// Input of ReadVfConfig, and start of the input of WriteVfConfig.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigAccess {
    /// The VF.
    pub vf_index: VfIndex,
    /// Zero.
    pub reserved: u16,
    /// Byte offset in configuration space.
    pub offset: u32,
    /// Bytes to move.
    pub length: u32,
}

const _: () = assert!(size_of::<ConfigAccess>() == 12);

/// Input of ReadVfConfigBlock, and start of the input of WriteVfConfigBlock.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockAccess {
    /// The VF.
    pub vf_index: VfIndex,
    /// Zero.
    pub reserved: u16,
    /// The configuration block, whose number only the PF and VF drivers understand.
    pub block_id: u32,
    /// Bytes to move, 1 to 128.
    pub length: u32,
}

const _: () = assert!(size_of::<BlockAccess>() == 12);

/// Output of QueryProbedBars and QueryProbedBars_2.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProbedBars {
    /// For each BAR, what would be read from it after all ones were written.
    pub base_register_values: [u32; PCI_TYPE0_ADDRESSES],
}

const _: () = assert!(size_of::<ProbedBars>() == 24);

/// Output of GetVendorAndDevice.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VendorAndDevice {
    /// PCI vendor id, 0xFFFF for a VF that is not there.
    pub vendor_id: u16,
    /// PCI device id, 0xFFFF for a VF that is not there.
    pub device_id: u16,
}

const _: () = assert!(size_of::<VendorAndDevice>() == 4);

/// Output of GetDeviceLocation. Bus numbers may change at run time: not to be kept.
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceLocation {
    /// PCI segment.
    pub segment_number: u16,
    /// Bus number.
    pub bus_number: u8,
    /// ARI function number; without ARI, device · 8 + function.
    pub function_number: u8,
}

const _: () = assert!(size_of::<DeviceLocation>() == 4);

/// Input of SetVfPowerState.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetPowerState {
    /// The VF.
    pub vf_index: VfIndex,
    /// Zero.
    pub reserved: u16,
    /// State to enter.
    pub power_state: DevicePowerStateRaw,
    /// BOOLEAN: whether to arm wake-up (PME); must be 0 with D0.
    pub wake: u8,
    /// Zero.
    pub reserved2: [u8; 3],
}

const _: () = {
    assert!(size_of::<SetPowerState>() == 12);
    assert!(offset_of!(SetPowerState, wake) == 8);
};

/// Input of GetResourceForBar.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BarArgument {
    /// The VF.
    pub vf_index: VfIndex,
    /// The BAR, 0 to 5.
    pub bar_index: u16,
}

const _: () = assert!(size_of::<BarArgument>() == 4);

/// Input of ReadWriteMitigatedRegister; the data follow if it writes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MitigatedRegisterAccess {
    /// The VF.
    pub vf_index: VfIndex,
    /// BOOLEAN: 1 reads, 0 writes.
    pub read: u8,
    /// Zero.
    pub reserved: u8,
    /// The BAR, 0 to 5.
    pub bar_index: u16,
    /// Zero.
    pub reserved2: u16,
    /// Byte offset from the start of the BAR.
    pub offset: u64,
    /// Bytes to move, 1 to 8.
    pub length: u32,
    /// Zero.
    pub reserved3: u32,
}

const _: () = {
    assert!(size_of::<MitigatedRegisterAccess>() == 24);
    assert!(offset_of!(MitigatedRegisterAccess, read) == 2);
    assert!(offset_of!(MitigatedRegisterAccess, bar_index) == 4);
    assert!(offset_of!(MitigatedRegisterAccess, offset) == 8);
    assert!(offset_of!(MitigatedRegisterAccess, length) == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_callback_is_found_by_its_code_alone() {
        for callback in CallbackCode::ALL {
            assert_eq!(CallbackCode::from_u32(callback.to_u32()), Some(*callback));
        }
        for code in [1, 8, 33, 144, 0x1_0000, 0x1_0028, u32::MAX] {
            assert_eq!(CallbackCode::from_u32(code), None);
        }
    }

    #[test]
    fn a_mitigated_write_has_these_bytes() {
        let access = MitigatedRegisterAccess {
            vf_index: VfIndex(2),
            read: 0,
            reserved: 0,
            bar_index: 5,
            reserved2: 0,
            offset: 0x1000,
            length: 4,
            reserved3: 0,
        };
        assert_eq!(
            access.as_bytes(),
            [2, 0, 0, 0, 5, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
