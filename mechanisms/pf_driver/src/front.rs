//! Callbacks as requests: decodes and checks the arguments, calls the device, encodes what it answers
//! (SPEC-PCIVIRT §4.4, §5). Nothing reaches the device unless all of it is right.

use crate::device::NO_VENDOR_AND_DEVICE;
use crate::{InterfaceEntries, MitigableDevice, SriovDevice};
use device_control_protocol::{
    BarArgument, BlockAccess, CallbackCode, Completion, ConfigAccess, DeviceLocation,
    MitigatedRegisterAccess, ProbedBars, QueryInterface, SetPowerState, VendorAndDevice,
    VfArgument,
};
use pcivirt_protocol::{
    CmPartialResourceDescriptor, DevicePowerState, GUID_MITIGABLE_DEVICE_INTERFACE,
    GUID_SRIOV_DEVICE_INTERFACE_STANDARD, InterfaceHeader, Luid,
    MITIGABLE_DEVICE_INTERFACE_VERSION, MITIGATED_REGISTER_MAX_LENGTH, MitigableDeviceInterface,
    NtStatus, PCI_EXPRESS_CONFIG_SPACE_SIZE, PCI_TYPE0_ADDRESSES, SRIOV_DEVICE_INTERFACE_VERSION_1,
    SRIOV_DEVICE_INTERFACE_VERSION_2, SriovDeviceInterfaceStandard, SriovDeviceInterfaceStandard2,
    VPCI_MAX_READ_WRITE_BLOCK_SIZE, VfIndex,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Runs one callback. Those of the INTERFACE header count references, and are not the device's business.
pub(crate) fn call<D: SriovDevice + ?Sized>(
    device: &D,
    callback: CallbackCode,
    input: &[u8],
    capacity: usize,
) -> Completion {
    Call { device, entries: device.entries(), input, capacity }
        .run(callback)
        .unwrap_or_else(Completion::status)
}

/// The function table that a query-interface request gets, with each slot holding the code to call.
pub(crate) fn interface_table<D: SriovDevice + ?Sized>(
    device: &D,
    input: &[u8],
) -> Result<Vec<u8>, NtStatus> {
    let query: QueryInterface = exactly(input)?;
    if query.version == 0 {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let size = usize::from(query.size);
    match query.interface_type {
        GUID_SRIOV_DEVICE_INTERFACE_STANDARD => {
            let entries = device.entries();
            if entries.is_version_2() && size >= size_of::<SriovDeviceInterfaceStandard2>() {
                Ok(version_2(entries).as_bytes().to_vec())
            } else if size >= size_of::<SriovDeviceInterfaceStandard>() {
                Ok(version_1(entries).as_bytes().to_vec())
            } else {
                Err(NtStatus::BUFFER_TOO_SMALL)
            }
        }
        GUID_MITIGABLE_DEVICE_INTERFACE if device.mitigable().is_none() => {
            Err(NtStatus::NOT_SUPPORTED)
        }
        GUID_MITIGABLE_DEVICE_INTERFACE if size >= size_of::<MitigableDeviceInterface>() => {
            let header = InterfaceHeader {
                version: MITIGABLE_DEVICE_INTERFACE_VERSION,
                interface_reference: CallbackCode::MitigableInterfaceReference.to_u32().into(),
                interface_dereference: CallbackCode::MitigableInterfaceDereference.to_u32().into(),
                ..header::<MitigableDeviceInterface>()
            };
            let code = CallbackCode::ReadWriteMitigatedRegister.to_u32();
            let table =
                MitigableDeviceInterface { header, read_write_mitigated_register: code.into() };
            Ok(table.as_bytes().to_vec())
        }
        GUID_MITIGABLE_DEVICE_INTERFACE => Err(NtStatus::BUFFER_TOO_SMALL),
        _ => Err(NtStatus::NOT_SUPPORTED),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "no table is longer than 144 bytes")]
fn header<T>() -> InterfaceHeader {
    InterfaceHeader {
        size: size_of::<T>() as u16,
        version: SRIOV_DEVICE_INTERFACE_VERSION_1,
        interface_reference: CallbackCode::InterfaceReference.to_u32().into(),
        interface_dereference: CallbackCode::InterfaceDereference.to_u32().into(),
        ..InterfaceHeader::default()
    }
}

fn slot(entries: InterfaceEntries, callback: CallbackCode) -> u64 {
    if entries.contains(callback) { callback.to_u32().into() } else { 0 }
}

fn version_1(entries: InterfaceEntries) -> SriovDeviceInterfaceStandard {
    let slot = |callback| slot(entries, callback);
    SriovDeviceInterfaceStandard {
        header: header::<SriovDeviceInterfaceStandard>(),
        read_vf_config: slot(CallbackCode::ReadVfConfig),
        write_vf_config: slot(CallbackCode::WriteVfConfig),
        read_vf_config_block: slot(CallbackCode::ReadVfConfigBlock),
        write_vf_config_block: slot(CallbackCode::WriteVfConfigBlock),
        query_probed_bars: slot(CallbackCode::QueryProbedBars),
        get_vendor_and_device: slot(CallbackCode::GetVendorAndDevice),
        get_device_location: slot(CallbackCode::GetDeviceLocation),
        reset_vf: slot(CallbackCode::ResetVf),
        set_vf_power_state: slot(CallbackCode::SetVfPowerState),
        get_resource_for_bar: slot(CallbackCode::GetResourceForBar),
        query_luid: slot(CallbackCode::QueryLuid),
    }
}

fn version_2(entries: InterfaceEntries) -> SriovDeviceInterfaceStandard2 {
    let header = InterfaceHeader {
        version: SRIOV_DEVICE_INTERFACE_VERSION_2,
        ..header::<SriovDeviceInterfaceStandard2>()
    };
    SriovDeviceInterfaceStandard2 {
        standard: SriovDeviceInterfaceStandard { header, ..version_1(entries) },
        query_probed_bars_2: slot(entries, CallbackCode::QueryProbedBars2),
        query_vf_luid: slot(entries, CallbackCode::QueryVfLuid),
        query_luid_vf: slot(entries, CallbackCode::QueryLuidVf),
    }
}

/// A structure that is the whole input.
pub(crate) fn exactly<T: FromBytes>(input: &[u8]) -> Result<T, NtStatus> {
    if input.len() > size_of::<T>() {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    T::read_from_bytes(input).map_err(|_| NtStatus::BUFFER_TOO_SMALL)
}

/// A structure, and the data after it.
fn with_data<T: FromBytes>(input: &[u8]) -> Result<(T, &[u8]), NtStatus> {
    T::read_from_prefix(input).map_err(|_| NtStatus::BUFFER_TOO_SMALL)
}

/// The data of a write, which must be as long as the arguments say.
fn data_of(data: &[u8], length: u32) -> Result<&[u8], NtStatus> {
    let length = usize::try_from(length).map_err(|_| NtStatus::INVALID_PARAMETER)?;
    match data.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(NtStatus::BUFFER_TOO_SMALL),
        std::cmp::Ordering::Equal => Ok(data),
        std::cmp::Ordering::Greater => Err(NtStatus::INVALID_PARAMETER),
    }
}

fn valid(condition: bool) -> Result<(), NtStatus> {
    if condition { Ok(()) } else { Err(NtStatus::INVALID_PARAMETER) }
}

/// BOOLEAN: 0 or 1.
fn boolean(value: u8) -> Result<bool, NtStatus> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(NtStatus::INVALID_PARAMETER),
    }
}

struct Call<'a, D: ?Sized> {
    device: &'a D,
    entries: InterfaceEntries,
    input: &'a [u8],
    capacity: usize,
}

impl<D: SriovDevice + ?Sized> Call<'_, D> {
    fn run(&self, callback: CallbackCode) -> Result<Completion, NtStatus> {
        let device = self.device;
        let present = match callback {
            CallbackCode::ReadWriteMitigatedRegister => device.mitigable().is_some(),
            other => self.entries.contains(other),
        };
        if !present {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        match callback {
            CallbackCode::ReadVfConfig => self.read_config(),
            CallbackCode::WriteVfConfig => self.write_config(),
            CallbackCode::ReadVfConfigBlock => self.read_block(),
            CallbackCode::WriteVfConfigBlock => self.write_block(),
            CallbackCode::QueryProbedBars => {
                self.no_input()?;
                self.reply::<ProbedBars>(|| {
                    Ok(ProbedBars { base_register_values: device.query_probed_bars()? })
                })
            }
            CallbackCode::QueryProbedBars2 => {
                let vf = self.vf_argument()?;
                self.reply::<ProbedBars>(|| {
                    Ok(ProbedBars { base_register_values: device.query_probed_bars_2(vf)? })
                })
            }
            CallbackCode::GetVendorAndDevice => {
                let VfArgument { vf_index } = exactly(self.input)?;
                let exists = vf_index.exists(device.num_vfs());
                self.reply::<VendorAndDevice>(|| {
                    Ok(if exists {
                        device.get_vendor_and_device(vf_index)
                    } else {
                        NO_VENDOR_AND_DEVICE
                    })
                })
            }
            CallbackCode::GetDeviceLocation => {
                let VfArgument { vf_index } = exactly(self.input)?;
                let exists = vf_index.exists(device.num_vfs());
                self.reply::<DeviceLocation>(|| {
                    Ok(if exists {
                        device.get_device_location(vf_index)
                    } else {
                        DeviceLocation::default()
                    })
                })
            }
            CallbackCode::ResetVf => {
                device.reset_vf(self.vf_argument()?)?;
                Ok(Completion::success())
            }
            CallbackCode::SetVfPowerState => self.set_power_state(),
            CallbackCode::GetResourceForBar => self.resource_for_bar(),
            CallbackCode::QueryLuid => {
                self.no_input()?;
                self.reply::<Luid>(|| device.query_luid())
            }
            CallbackCode::QueryVfLuid => {
                let vf = self.vf_argument()?;
                self.reply::<Luid>(|| device.query_vf_luid(vf))
            }
            CallbackCode::QueryLuidVf => {
                let luid: Luid = exactly(self.input)?;
                self.reply::<VfArgument>(|| {
                    Ok(VfArgument { vf_index: device.query_luid_vf(luid)? })
                })
            }
            CallbackCode::ReadWriteMitigatedRegister => {
                let mitigable = device.mitigable().ok_or(NtStatus::NOT_SUPPORTED)?;
                self.mitigated_register(mitigable)
            }
            CallbackCode::QueryInterface
            | CallbackCode::InterfaceReference
            | CallbackCode::InterfaceDereference
            | CallbackCode::MitigableInterfaceReference
            | CallbackCode::MitigableInterfaceDereference => Err(NtStatus::NOT_SUPPORTED),
        }
    }

    fn no_input(&self) -> Result<(), NtStatus> {
        valid(self.input.is_empty())
    }

    fn existing(&self, vf: VfIndex) -> Result<VfIndex, NtStatus> {
        valid(vf.exists(self.device.num_vfs()))?;
        Ok(vf)
    }

    fn vf_argument(&self) -> Result<VfIndex, NtStatus> {
        let VfArgument { vf_index } = exactly(self.input)?;
        self.existing(vf_index)
    }

    /// Answers with a structure, which is asked for only if there is room for it.
    fn reply<T: IntoBytes + Immutable>(
        &self,
        answer: impl FnOnce() -> Result<T, NtStatus>,
    ) -> Result<Completion, NtStatus> {
        if self.capacity < size_of::<T>() {
            return Ok(Completion::too_small(size_of::<T>()));
        }
        Ok(Completion::output(answer()?.as_bytes(), self.capacity))
    }

    /// Answers with `length` bytes, which are asked for only if there is room for them. `length` has been checked.
    fn reply_bytes(
        &self,
        length: u32,
        fill: impl FnOnce(&mut [u8]) -> Result<(), NtStatus>,
    ) -> Result<Completion, NtStatus> {
        let length = usize::try_from(length).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        if self.capacity < length {
            return Ok(Completion::too_small(length));
        }
        let mut data = vec![0; length];
        fill(&mut data)?;
        Ok(Completion::output(data, self.capacity))
    }

    /// Bounds of configuration space (§5.1). An access of no bytes is refused as well.
    fn config_access(&self, access: &ConfigAccess) -> Result<(), NtStatus> {
        valid(access.reserved == 0 && access.length != 0)?;
        let end = u64::from(access.offset) + u64::from(access.length);
        valid(end <= PCI_EXPRESS_CONFIG_SPACE_SIZE as u64)?;
        self.existing(access.vf_index).map(|_| ())
    }

    fn read_config(&self) -> Result<Completion, NtStatus> {
        let access: ConfigAccess = exactly(self.input)?;
        self.config_access(&access)?;
        self.reply_bytes(access.length, |data| {
            self.device.read_vf_config(access.vf_index, access.offset, data)
        })
    }

    fn write_config(&self) -> Result<Completion, NtStatus> {
        let (access, data) = with_data::<ConfigAccess>(self.input)?;
        self.config_access(&access)?;
        let data = data_of(data, access.length)?;
        self.device.write_vf_config(access.vf_index, access.offset, data)?;
        Ok(Completion::success())
    }

    /// Length of a configuration block transfer (§5.3): 1 to 128 bytes.
    fn block_access(&self, access: &BlockAccess) -> Result<(), NtStatus> {
        let longest = VPCI_MAX_READ_WRITE_BLOCK_SIZE as u64;
        valid(access.reserved == 0 && (1..=longest).contains(&access.length.into()))?;
        self.existing(access.vf_index).map(|_| ())
    }

    fn read_block(&self) -> Result<Completion, NtStatus> {
        let access: BlockAccess = exactly(self.input)?;
        self.block_access(&access)?;
        self.reply_bytes(access.length, |data| {
            self.device.read_vf_config_block(access.vf_index, access.block_id, data)
        })
    }

    fn write_block(&self) -> Result<Completion, NtStatus> {
        let (access, data) = with_data::<BlockAccess>(self.input)?;
        self.block_access(&access)?;
        let data = data_of(data, access.length)?;
        self.device.write_vf_config_block(access.vf_index, access.block_id, data)?;
        Ok(Completion::success())
    }

    fn set_power_state(&self) -> Result<Completion, NtStatus> {
        let request: SetPowerState = exactly(self.input)?;
        valid(request.reserved == 0 && request.reserved2 == [0; 3])?;
        let state = DevicePowerState::try_from(request.power_state)?;
        let wake = boolean(request.wake)?;
        valid(!(wake && state == DevicePowerState::D0))?;
        let vf = self.existing(request.vf_index)?;
        self.device.set_vf_power_state(vf, state, wake)?;
        Ok(Completion::success())
    }

    /// The one callback whose sample answers a VF that is not there differently (§4.4).
    fn resource_for_bar(&self) -> Result<Completion, NtStatus> {
        let BarArgument { vf_index, bar_index } = exactly(self.input)?;
        if !vf_index.exists(self.device.num_vfs()) {
            return Err(NtStatus::INVALID_DEVICE_REQUEST);
        }
        valid(usize::from(bar_index) < PCI_TYPE0_ADDRESSES)?;
        self.reply::<CmPartialResourceDescriptor>(|| {
            self.device.get_resource_for_bar(vf_index, bar_index)
        })
    }

    fn mitigated_register(&self, mitigable: &dyn MitigableDevice) -> Result<Completion, NtStatus> {
        let (access, data) = with_data::<MitigatedRegisterAccess>(self.input)?;
        let MitigatedRegisterAccess { bar_index, offset, length, .. } = access;
        valid(access.reserved == 0 && access.reserved2 == 0 && access.reserved3 == 0)?;
        let read = boolean(access.read)?;
        valid(usize::from(bar_index) < PCI_TYPE0_ADDRESSES)?;
        valid((1..=MITIGATED_REGISTER_MAX_LENGTH as u64).contains(&length.into()))?;
        valid(offset.checked_add(length.into()).is_some())?;
        let vf = self.existing(access.vf_index)?;
        if read {
            valid(data.is_empty())?;
            self.reply_bytes(length, |data| {
                mitigable.read_mitigated_register(vf, bar_index, offset, data)
            })
        } else {
            let data = data_of(data, length)?;
            mitigable.write_mitigated_register(vf, bar_index, offset, data)?;
            Ok(Completion::success())
        }
    }
}
