//! SR-IOV requests about one VF or the PF: reset, power, identifiers and BARs (SPEC-NDIS-SRIOV §5.18–§5.26, §15).

use pcivirt_protocol::{
    CmPartialResourceDescriptor, DevicePowerState, DevicePowerStateRaw, Luid, PCI_TYPE0_ADDRESSES,
};
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::VfId;
use crate::object::{
    FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::vf::vf_id;

wire_structure! {
    /// NDIS_SRIOV_RESET_VF_PARAMETERS.
    NdisSriovResetVfParameters = "NDIS_SRIOV_RESET_VF_PARAMETERS", revisions [6], sizeof 6 {
        /// [`VfId`].
        4 vf_id: U16,
    }
}

/// Which VF to reset.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovResetVf {
    /// The VF.
    pub vf_id: VfId,
}

impl FixedStructure for SriovResetVf {
    type Wire = NdisSriovResetVfParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { vf_id: vf_id::<Self::Wire>(wire.vf_id)? })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovResetVfParameters { header: Default::default(), vf_id: U16::new(self.vf_id.get()) }
    }
}

wire_structure! {
    /// NDIS_SRIOV_SET_VF_POWER_STATE_PARAMETERS.
    NdisSriovSetVfPowerStateParameters = "NDIS_SRIOV_SET_VF_POWER_STATE_PARAMETERS", revisions [13], sizeof 16 {
        /// [`VfId`].
        4 vf_id: U16,
        /// Padding.
        6 padding: [u8; 2],
        /// NDIS_DEVICE_POWER_STATE.
        8 power_state: U32,
        /// Whether the VF may wake the machine.
        12 wake_enable: u8,
    }
}

/// The power state a VF shall go to.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovSetVfPowerState {
    /// The VF.
    pub vf_id: VfId,
    /// The state.
    pub power_state: DevicePowerState,
    /// Whether the VF may wake the machine; never with D0.
    pub wake_enable: bool,
}

impl FixedStructure for SriovSetVfPowerState {
    type Wire = NdisSriovSetVfPowerStateParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        let power_state = DevicePowerState::try_from(DevicePowerStateRaw(wire.power_state.get()))
            .map_err(|_| member::<Self::Wire>("PowerState", wire.power_state))?;
        let wake_enable = wire.wake_enable != 0;
        if wake_enable && power_state == DevicePowerState::D0 {
            return Err(member::<Self::Wire>("WakeEnable", wire.wake_enable));
        }
        Ok(Self { vf_id: vf_id::<Self::Wire>(wire.vf_id)?, power_state, wake_enable })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovSetVfPowerStateParameters {
            header: Default::default(),
            vf_id: U16::new(self.vf_id.get()),
            padding: [0; 2],
            power_state: U32::new(DevicePowerStateRaw::from(self.power_state).0),
            wake_enable: u8::from(self.wake_enable),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_CONFIG_STATE_PARAMETERS. Its semantics are not public; only the layout is.
    NdisSriovConfigStateParameters = "NDIS_SRIOV_CONFIG_STATE_PARAMETERS", revisions [12], sizeof 12 {
        /// A configuration block.
        4 block_id: U32,
        /// Bytes.
        8 length: U32,
    }
}

/// A configuration block's state, whose semantics are not public.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovConfigState {
    /// The block.
    pub block_id: u32,
    /// Bytes.
    pub length: u32,
}

impl FixedStructure for SriovConfigState {
    type Wire = NdisSriovConfigStateParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { block_id: wire.block_id.get(), length: wire.length.get() })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovConfigStateParameters {
            header: Default::default(),
            block_id: U32::new(self.block_id),
            length: U32::new(self.length),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_VF_VENDOR_DEVICE_ID_INFO.
    NdisSriovVfVendorDeviceIdInfo = "NDIS_SRIOV_VF_VENDOR_DEVICE_ID_INFO", revisions [10], sizeof 10 {
        /// [`VfId`].
        4 vf_id: U16,
        /// PCI vendor id.
        6 vendor_id: U16,
        /// PCI device id.
        8 device_id: U16,
    }
}

/// The identifiers a VF shows to its guest; in a request only the VF counts.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovVfVendorDeviceId {
    /// The VF.
    pub vf_id: VfId,
    /// PCI vendor id.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
}

impl FixedStructure for SriovVfVendorDeviceId {
    type Wire = NdisSriovVfVendorDeviceIdInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            vf_id: vf_id::<Self::Wire>(wire.vf_id)?,
            vendor_id: wire.vendor_id.get(),
            device_id: wire.device_id.get(),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovVfVendorDeviceIdInfo {
            header: Default::default(),
            vf_id: U16::new(self.vf_id.get()),
            vendor_id: U16::new(self.vendor_id),
            device_id: U16::new(self.device_id),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_PROBED_BARS_INFO.
    NdisSriovProbedBarsInfo = "NDIS_SRIOV_PROBED_BARS_INFO", revisions [8], sizeof 8 {
        /// Where the values start, bytes from the start of the structure.
        4 base_register_values_offset: U32,
    }
}

/// What each VF BAR reads back after writing all ones; 0 is a BAR that is not there (SPEC-NDIS-SRIOV §9).
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct SriovProbedBars {
    /// One value for each BAR.
    pub base_register_values: [u32; PCI_TYPE0_ADDRESSES],
}

impl SriovProbedBars {
    /// Bytes of the structure with its values.
    pub const SIZE: usize = 8 + 4 * PCI_TYPE0_ADDRESSES;
}

impl NdisStructure for SriovProbedBars {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        type Wire = NdisSriovProbedBarsInfo;
        let (wire, _) = Wire::read(bytes)?;
        let offset = wire.base_register_values_offset;
        if offset.get() < u32::from(Wire::SIZEOF) {
            return Err(member::<Wire>("BaseRegisterValuesOffset", offset));
        }
        let too_short = || ParseError::TooShort {
            structure: Wire::NAME,
            needed: usize::try_from(offset.get()).unwrap_or(usize::MAX).saturating_add(24),
            got: bytes.len(),
        };
        let values = usize::try_from(offset.get())
            .ok()
            .and_then(|start| bytes.get(start..))
            .and_then(|rest| <[U32; PCI_TYPE0_ADDRESSES]>::read_from_prefix(rest).ok())
            .ok_or_else(too_short)?
            .0;
        Ok(Self { base_register_values: values.map(U32::get) })
    }

    fn emit(&self) -> Vec<u8> {
        let mut bytes = NdisSriovProbedBarsInfo {
            header: Default::default(),
            base_register_values_offset: U32::new(u32::from(NdisSriovProbedBarsInfo::SIZEOF)),
        }
        .write(1);
        bytes.extend_from_slice(self.base_register_values.map(U32::new).as_bytes());
        bytes
    }
}

wire_structure! {
    /// NDIS_SRIOV_BAR_RESOURCES_INFO.
    NdisSriovBarResourcesInfo = "NDIS_SRIOV_BAR_RESOURCES_INFO", revisions [12], sizeof 12 {
        /// [`VfId`].
        4 vf_id: U16,
        /// The BAR.
        6 bar_index: U16,
        /// Where the resource descriptor is, bytes from the start of the structure.
        8 bar_resources_offset: U32,
    }
}

/// A BAR of a function: 0…5.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct BarIndex(u8);

impl BarIndex {
    /// The BAR with this number; `None` above 5.
    #[must_use]
    pub const fn new(raw: u16) -> Option<Self> {
        match raw {
            0..=5 => Some(Self(raw.to_le_bytes()[0])),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0 as u16
    }

    /// The value as an index into a table with one entry per BAR.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A request for the resource of one BAR of one VF; the descriptor in the answer is filled in at the offset.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovBarResources {
    /// The VF.
    pub vf_id: VfId,
    /// The BAR.
    pub bar_index: BarIndex,
    /// Where the descriptor goes, bytes from the start of the structure.
    pub bar_resources_offset: u32,
}

impl SriovBarResources {
    /// A request with room for the descriptor right behind it.
    #[must_use]
    pub fn new(vf_id: VfId, bar_index: BarIndex) -> Self {
        let bar_resources_offset = u32::from(NdisSriovBarResourcesInfo::SIZEOF);
        Self { vf_id, bar_index, bar_resources_offset }
    }

    /// Bytes that the buffer must have to hold the structure and the descriptor.
    #[must_use]
    pub fn buffer_size(&self) -> u64 {
        u64::from(self.bar_resources_offset) + size_of::<CmPartialResourceDescriptor>() as u64
    }

    /// The answer: the structure and, at the offset, the descriptor.
    #[must_use]
    pub fn emit_with(&self, descriptor: &CmPartialResourceDescriptor) -> Vec<u8> {
        let mut bytes = self.emit();
        bytes.resize(usize::try_from(self.bar_resources_offset).unwrap_or(bytes.len()), 0);
        bytes.extend_from_slice(descriptor.as_bytes());
        bytes
    }

    /// The descriptor in an answer to this request; `None` if the answer is too short.
    #[must_use]
    pub fn descriptor(&self, answer: &[u8]) -> Option<CmPartialResourceDescriptor> {
        let start = usize::try_from(self.bar_resources_offset).ok()?;
        let (descriptor, _) =
            CmPartialResourceDescriptor::read_from_prefix(answer.get(start..)?).ok()?;
        Some(descriptor)
    }
}

impl FixedStructure for SriovBarResources {
    type Wire = NdisSriovBarResourcesInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        let offset = wire.bar_resources_offset;
        if offset.get() < u32::from(Self::Wire::SIZEOF) {
            return Err(member::<Self::Wire>("BarResourcesOffset", offset));
        }
        Ok(Self {
            vf_id: vf_id::<Self::Wire>(wire.vf_id)?,
            bar_index: BarIndex::new(wire.bar_index.get())
                .ok_or_else(|| member::<Self::Wire>("BarIndex", wire.bar_index))?,
            bar_resources_offset: offset.get(),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovBarResourcesInfo {
            header: Default::default(),
            vf_id: U16::new(self.vf_id.get()),
            bar_index: U16::new(self.bar_index.get()),
            bar_resources_offset: U32::new(self.bar_resources_offset),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_PF_LUID_INFO.
    NdisSriovPfLuidInfo = "NDIS_SRIOV_PF_LUID_INFO", revisions [12], sizeof 12 {
        /// Low 32 bits.
        4 luid_low_part: U32,
        /// High 32 bits, signed as published.
        8 luid_high_part: I32,
    }
}

/// The PF's locally unique identifier.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovPfLuid {
    /// The identifier.
    pub luid: Luid,
}

impl FixedStructure for SriovPfLuid {
    type Wire = NdisSriovPfLuidInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        let luid =
            Luid { low_part: wire.luid_low_part.get(), high_part: wire.luid_high_part.get() };
        Ok(Self { luid })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovPfLuidInfo {
            header: Default::default(),
            luid_low_part: U32::new(self.luid.low_part),
            luid_high_part: I32::new(self.luid.high_part),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_VF_SERIAL_NUMBER_INFO.
    NdisSriovVfSerialNumberInfo = "NDIS_SRIOV_VF_SERIAL_NUMBER_INFO", revisions [8], sizeof 8 {
        /// The serial number.
        4 serial_number: U32,
    }
}

/// The number that pairs a VF NIC with its software NIC in the guest.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovVfSerialNumber {
    /// The number.
    pub serial_number: u32,
}

impl FixedStructure for SriovVfSerialNumber {
    type Wire = NdisSriovVfSerialNumberInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { serial_number: wire.serial_number.get() })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovVfSerialNumberInfo {
            header: Default::default(),
            serial_number: U32::new(self.serial_number),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_VF_INVALIDATE_CONFIG_BLOCK_INFO.
    NdisSriovVfInvalidateConfigBlockInfo = "NDIS_SRIOV_VF_INVALIDATE_CONFIG_BLOCK_INFO", revisions [16], sizeof 16 {
        /// Padding.
        4 padding: [u8; 4],
        /// Bit n is block n.
        8 block_mask: U64,
    }
}

/// The configuration blocks that a VF driver has to read again.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovVfInvalidateConfigBlock {
    /// Bit n is block n.
    pub block_mask: u64,
}

impl FixedStructure for SriovVfInvalidateConfigBlock {
    type Wire = NdisSriovVfInvalidateConfigBlockInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { block_mask: wire.block_mask.get() })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovVfInvalidateConfigBlockInfo {
            header: Default::default(),
            padding: [0; 4],
            block_mask: U64::new(self.block_mask),
        }
    }
}

wire_structure! {
    /// NDIS_SRIOV_OVERLYING_ADAPTER_INFO. Its semantics are not public; only the layout is.
    NdisSriovOverlyingAdapterInfo = "NDIS_SRIOV_OVERLYING_ADAPTER_INFO", revisions [20], sizeof 20 {
        /// Not public.
        4 flags: U32,
        /// An interface index.
        8 if_index: U32,
        /// Reserved.
        12 reserved: [U32; 2],
    }
}

/// The adapter over a VF, whose semantics are not public.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct SriovOverlyingAdapterInfo {
    /// Not public.
    pub flags: u32,
    /// An interface index.
    pub if_index: u32,
}

impl FixedStructure for SriovOverlyingAdapterInfo {
    type Wire = NdisSriovOverlyingAdapterInfo;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { flags: wire.flags.get(), if_index: wire.if_index.get() })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovOverlyingAdapterInfo {
            header: Default::default(),
            flags: U32::new(self.flags),
            if_index: U32::new(self.if_index),
            reserved: [U32::ZERO; 2],
        }
    }
}

#[cfg(test)]
mod tests;
