//! The PF driver contract at a distance: interface callbacks and I/O controls as typed calls.

use crate::client::DeviceControlClient;
use crate::error::ClientError;
use crate::pending::SentRequest;
use device_control_protocol::{
    ATTACH_REMOVAL_EVENTS, AttachOptions, BarArgument, BlockAccess, CallbackCode, ConfigAccess,
    DeviceLocation, MitigatedRegisterAccess, ProbedBars, QueryInterface, SetPowerState, Target,
    VendorAndDevice, VfArgument,
};
use pcivirt_protocol::{
    CmPartialResourceDescriptor, DevicePowerState, GUID_MITIGABLE_DEVICE_INTERFACE,
    GUID_SRIOV_DEVICE_INTERFACE_STANDARD, Guid, Luid, MITIGABLE_DEVICE_INTERFACE_VERSION,
    MitigableDeviceInterface, NtStatus, PCI_TYPE0_ADDRESSES, SRIOV_DEVICE_INTERFACE_VERSION_2,
    SriovDeviceInterfaceStandard, SriovDeviceInterfaceStandard2, SriovInvalidateBlock, SriovIoctl,
    SriovMitigatedRangeCountInput, SriovMitigatedRangeCountOutput, SriovMitigatedRangeUpdateInput,
    SriovMitigatedRangeUpdateOutput, SriovMitigatedRangesInput, SriovMitigatedRangesOutput,
    SriovPfEvent, SriovPnpEventComplete, SriovProxyQueryLuidOutput, VfIndex,
};
use pf_driver::{InterfaceEntries, MitigableDevice, NO_VENDOR_AND_DEVICE, SriovDevice};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A device whose PF driver is at the other end of a connection. It is a [`SriovDevice`], so that the virtualization stack
/// need not know where the PF driver is; its other methods are the I/O controls, typed.
///
/// It holds a reference on the function tables as long as it lives.
#[derive(Debug)]
pub struct RemoteSriovDevice {
    client: DeviceControlClient,
    timeout: Duration,
    entries: InterfaceEntries,
    mitigable: bool,
}

impl RemoteSriovDevice {
    /// Asks for the device's function tables. `timeout` is the longest that any later call waits.
    ///
    /// # Errors
    /// Those of a request.
    pub fn open(client: DeviceControlClient, timeout: Duration) -> Result<Self, ClientError> {
        let query = |interface_type: Guid, size: usize, version: u16| {
            let size = u16::try_from(size).unwrap_or(u16::MAX);
            let input = QueryInterface { interface_type, size, version };
            let target = Target::Callback(CallbackCode::QueryInterface.to_u32());
            client.call_output(target, input.as_bytes(), size.into(), timeout)
        };
        let table = query(
            GUID_SRIOV_DEVICE_INTERFACE_STANDARD,
            size_of::<SriovDeviceInterfaceStandard2>(),
            SRIOV_DEVICE_INTERFACE_VERSION_2,
        )?;
        let entries = entries_of(&table);
        let mitigable = match query(
            GUID_MITIGABLE_DEVICE_INTERFACE,
            size_of::<MitigableDeviceInterface>(),
            MITIGABLE_DEVICE_INTERFACE_VERSION,
        ) {
            Ok(table) => MitigableDeviceInterface::read_from_prefix(&table)
                .is_ok_and(|(table, _)| table.read_write_mitigated_register != 0),
            Err(error) if error.status() == NtStatus::NOT_SUPPORTED => false,
            Err(error) => return Err(error),
        };
        Ok(Self { client, timeout, entries, mitigable })
    }

    /// The connection.
    pub const fn client(&self) -> &DeviceControlClient {
        &self.client
    }

    /// Runs an interface callback, with its arguments and room for its output.
    ///
    /// # Errors
    /// Those of a request.
    pub fn callback(
        &self,
        callback: CallbackCode,
        input: &[u8],
        output_capacity: usize,
    ) -> Result<Vec<u8>, ClientError> {
        let target = Target::Callback(callback.to_u32());
        self.client.call_output(target, input, output_capacity, self.timeout)
    }

    /// IOCTL_SRIOV_ATTACH: subscribes to PnP events. While the device is stopped this waits, up to `timeout`; after that
    /// it is certainly not attached.
    ///
    /// # Errors
    /// STATUS_SHARING_VIOLATION if somebody is attached; those of a request.
    pub fn attach(&self, removal_events: bool, timeout: Duration) -> Result<(), ClientError> {
        let flags = if removal_events { ATTACH_REMOVAL_EVENTS } else { 0 };
        let options = AttachOptions { flags };
        let sent = self.ioctl(SriovIoctl::Attach, options.as_bytes(), 0)?;
        let result = sent.wait_output(timeout).map(|_| ());
        if let Err(ClientError::TimedOut { .. }) = result {
            // The request has been cancelled, perhaps too late.
            let _ = self.detach();
        }
        result
    }

    /// IOCTL_SRIOV_DETACH: ends the subscription.
    ///
    /// # Errors
    /// Those of a request.
    pub fn detach(&self) -> Result<(), ClientError> {
        self.ioctl(SriovIoctl::Detach, &[], 0)?.wait_output(self.timeout).map(|_| ())
    }

    /// IOCTL_SRIOV_NOTIFICATION: asks for the next PnP event, which [`RemoteSriovDevice::event`] reads.
    ///
    /// # Errors
    /// Those of a request that could not be sent.
    pub fn notification(&self) -> Result<SentRequest, ClientError> {
        self.ioctl(SriovIoctl::Notification, &[], size_of::<SriovPfEvent>())
    }

    /// The event in the output of a notification.
    pub fn event(output: &[u8]) -> Option<SriovPfEvent> {
        SriovPfEvent::read_from_bytes(output).ok()
    }

    /// IOCTL_SRIOV_EVENT_COMPLETE: answers an event; an error is a veto.
    ///
    /// # Errors
    /// STATUS_INVALID_DEVICE_STATE if there is no event to answer; those of a request.
    pub fn event_complete(&self, query_status: NtStatus) -> Result<(), ClientError> {
        let input = SriovPnpEventComplete { query_status };
        let sent = self.ioctl(SriovIoctl::EventComplete, input.as_bytes(), 0)?;
        sent.wait_output(self.timeout).map(|_| ())
    }

    /// IOCTL_SRIOV_INVALIDATE_BLOCK: asks for the next invalidation of one VF's configuration blocks, or any VF's;
    /// [`RemoteSriovDevice::invalidation`] reads it.
    ///
    /// # Errors
    /// Those of a request that could not be sent.
    pub fn invalidate_block(&self, vf: Option<VfIndex>) -> Result<SentRequest, ClientError> {
        let input = match vf {
            Some(vf) => SriovInvalidateBlock::of_vf(vf, 0),
            None => SriovInvalidateBlock::of_all_vfs(0),
        };
        let capacity = size_of::<SriovInvalidateBlock>();
        self.ioctl(SriovIoctl::InvalidateBlock, input.as_bytes(), capacity)
    }

    /// The invalidation in the output of such a request.
    pub fn invalidation(output: &[u8]) -> Option<SriovInvalidateBlock> {
        SriovInvalidateBlock::read_from_bytes(output).ok()
    }

    /// IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT: number of ranges of each BAR.
    ///
    /// # Errors
    /// Those of a request.
    pub fn mitigated_range_count(
        &self,
        vf: VfIndex,
    ) -> Result<[u32; PCI_TYPE0_ADDRESSES], ClientError> {
        let input = SriovMitigatedRangeCountInput { vf_index: vf };
        let capacity = size_of::<SriovMitigatedRangeCountOutput>();
        let sent = self.ioctl(SriovIoctl::QueryMitigatedRangeCount, input.as_bytes(), capacity)?;
        let target = sent.target();
        let output = sent.wait_output(self.timeout)?;
        let SriovMitigatedRangeCountOutput { range_count } = structure(&output, target)?;
        Ok(range_count)
    }

    /// IOCTL_SRIOV_QUERY_MITIGATED_RANGES: the ranges of one BAR. There is room for `count` of them, as the count said.
    ///
    /// # Errors
    /// STATUS_BUFFER_TOO_SMALL if there are more by now; those of a request.
    pub fn mitigated_ranges(
        &self,
        vf: VfIndex,
        bar_number: u8,
        count: u32,
    ) -> Result<Vec<SriovMitigatedRangesOutput>, ClientError> {
        let input = SriovMitigatedRangesInput { vf_index: vf, bar_number, padding: 0 };
        let one = size_of::<SriovMitigatedRangesOutput>();
        let capacity = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(one);
        let sent = self.ioctl(SriovIoctl::QueryMitigatedRanges, input.as_bytes(), capacity)?;
        let target = sent.target();
        let output = sent.wait_output(self.timeout)?;
        output.chunks(one).map(|range| structure(range, target)).collect()
    }

    /// IOCTL_SRIOV_MITIGATED_RANGE_UPDATE: asks to be told when the ranges of a VF change.
    ///
    /// # Errors
    /// Those of a request that could not be sent.
    pub fn mitigated_range_update(&self, vf: VfIndex) -> Result<SentRequest, ClientError> {
        let input = SriovMitigatedRangeUpdateInput { vf_index: vf };
        let capacity = size_of::<SriovMitigatedRangeUpdateOutput>();
        self.ioctl(SriovIoctl::MitigatedRangeUpdate, input.as_bytes(), capacity)
    }

    /// IOCTL_SRIOV_PROXY_QUERY_LUID: LUID of the physical device.
    ///
    /// # Errors
    /// Those of a request.
    pub fn proxy_query_luid(&self) -> Result<Luid, ClientError> {
        let capacity = size_of::<SriovProxyQueryLuidOutput>();
        let sent = self.ioctl(SriovIoctl::ProxyQueryLuid, &[], capacity)?;
        let target = sent.target();
        let output = sent.wait_output(self.timeout)?;
        let SriovProxyQueryLuidOutput { device_luid } = structure(&output, target)?;
        Ok(device_luid)
    }

    fn ioctl(
        &self,
        ioctl: SriovIoctl,
        input: &[u8],
        output_capacity: usize,
    ) -> Result<SentRequest, ClientError> {
        let target = Target::Ioctl(ioctl.code());
        self.client.send_with_fds(target, input, output_capacity, &[], self.timeout)
    }

    /// A callback whose answer is a structure.
    fn ask<T: FromBytes>(
        &self,
        callback: CallbackCode,
        input: &(impl IntoBytes + Immutable + ?Sized),
    ) -> Result<T, NtStatus> {
        let target = Target::Callback(callback.to_u32());
        self.callback(callback, input.as_bytes(), size_of::<T>())
            .and_then(|output| structure(&output, target))
            .map_err(|error| error.status())
    }

    /// A callback whose answer is bytes.
    fn fill(
        &self,
        callback: CallbackCode,
        input: &(impl IntoBytes + Immutable),
        data: &mut [u8],
    ) -> Result<(), NtStatus> {
        let output = self
            .callback(callback, input.as_bytes(), data.len())
            .map_err(|error| error.status())?;
        if output.len() != data.len() {
            return Err(NtStatus::UNSUCCESSFUL);
        }
        data.copy_from_slice(&output);
        Ok(())
    }

    /// A callback that only answers with its status.
    fn tell(
        &self,
        callback: CallbackCode,
        input: &(impl IntoBytes + Immutable),
        data: &[u8],
    ) -> Result<(), NtStatus> {
        let input = [input.as_bytes(), data].concat();
        self.callback(callback, &input, 0).map(|_| ()).map_err(|error| error.status())
    }
}

impl Drop for RemoteSriovDevice {
    fn drop(&mut self) {
        // Nobody waits for these; if the connection has ended, so have the references.
        let mut codes = vec![CallbackCode::InterfaceDereference];
        if self.mitigable {
            codes.push(CallbackCode::MitigableInterfaceDereference);
        }
        for code in codes {
            if let Ok(sent) = self.client.send(Target::Callback(code.to_u32()), &[], 0) {
                let _ = sent.wait(self.timeout.min(Duration::from_secs(1)));
            }
        }
    }
}

/// Which slots of a table are filled. A table of the first version has none of the second's.
fn entries_of(table: &[u8]) -> InterfaceEntries {
    let Ok((header, _)) = SriovDeviceInterfaceStandard::read_from_prefix(table) else {
        return InterfaceEntries::NONE;
    };
    let size = usize::from(header.header.size);
    CallbackCode::ALL
        .iter()
        .filter(|callback| {
            usize::try_from(callback.to_u32())
                .ok()
                .filter(|offset| offset + size_of::<u64>() <= size)
                .and_then(|offset| table.get(offset..)?.first_chunk())
                .is_some_and(|slot| u64::from_le_bytes(*slot) != 0)
        })
        .fold(InterfaceEntries::NONE, |entries, callback| entries.with(*callback))
}

fn structure<T: FromBytes>(output: &[u8], target: Target) -> Result<T, ClientError> {
    T::read_from_bytes(output).map_err(|_| ClientError::Failed {
        target,
        status: NtStatus::UNSUCCESSFUL,
        needed: 0,
        cause: String::new(),
    })
}

fn length_of(data: &[u8]) -> Result<u32, NtStatus> {
    u32::try_from(data.len()).map_err(|_| NtStatus::INVALID_PARAMETER)
}

impl SriovDevice for RemoteSriovDevice {
    fn entries(&self) -> InterfaceEntries {
        self.entries
    }

    /// The contract has no callback that says how many VFs there are: any index is passed on, and checked at the other end.
    fn num_vfs(&self) -> u16 {
        u16::MAX
    }

    fn read_vf_config(&self, vf: VfIndex, offset: u32, data: &mut [u8]) -> Result<(), NtStatus> {
        let length = length_of(data)?;
        let access = ConfigAccess { vf_index: vf, reserved: 0, offset, length };
        self.fill(CallbackCode::ReadVfConfig, &access, data)
    }

    fn write_vf_config(&self, vf: VfIndex, offset: u32, data: &[u8]) -> Result<(), NtStatus> {
        let length = length_of(data)?;
        let access = ConfigAccess { vf_index: vf, reserved: 0, offset, length };
        self.tell(CallbackCode::WriteVfConfig, &access, data)
    }

    fn read_vf_config_block(
        &self,
        vf: VfIndex,
        block_id: u32,
        buffer: &mut [u8],
    ) -> Result<(), NtStatus> {
        let length = length_of(buffer)?;
        let access = BlockAccess { vf_index: vf, reserved: 0, block_id, length };
        self.fill(CallbackCode::ReadVfConfigBlock, &access, buffer)
    }

    fn write_vf_config_block(
        &self,
        vf: VfIndex,
        block_id: u32,
        buffer: &[u8],
    ) -> Result<(), NtStatus> {
        let length = length_of(buffer)?;
        let access = BlockAccess { vf_index: vf, reserved: 0, block_id, length };
        self.tell(CallbackCode::WriteVfConfigBlock, &access, buffer)
    }

    fn query_probed_bars(&self) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        let bars: ProbedBars = self.ask(CallbackCode::QueryProbedBars, &[0u8; 0])?;
        Ok(bars.base_register_values)
    }

    fn query_probed_bars_2(&self, vf: VfIndex) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        let argument = VfArgument { vf_index: vf };
        let bars: ProbedBars = self.ask(CallbackCode::QueryProbedBars2, &argument)?;
        Ok(bars.base_register_values)
    }

    fn get_vendor_and_device(&self, vf: VfIndex) -> VendorAndDevice {
        self.ask(CallbackCode::GetVendorAndDevice, &VfArgument { vf_index: vf })
            .unwrap_or(NO_VENDOR_AND_DEVICE)
    }

    fn get_device_location(&self, vf: VfIndex) -> DeviceLocation {
        self.ask(CallbackCode::GetDeviceLocation, &VfArgument { vf_index: vf }).unwrap_or_default()
    }

    fn reset_vf(&self, vf: VfIndex) -> Result<(), NtStatus> {
        self.tell(CallbackCode::ResetVf, &VfArgument { vf_index: vf }, &[])
    }

    fn set_vf_power_state(
        &self,
        vf: VfIndex,
        state: DevicePowerState,
        wake: bool,
    ) -> Result<(), NtStatus> {
        let request = SetPowerState {
            vf_index: vf,
            reserved: 0,
            power_state: state.into(),
            wake: wake.into(),
            reserved2: [0; 3],
        };
        self.tell(CallbackCode::SetVfPowerState, &request, &[])
    }

    fn get_resource_for_bar(
        &self,
        vf: VfIndex,
        bar_index: u16,
    ) -> Result<CmPartialResourceDescriptor, NtStatus> {
        self.ask(CallbackCode::GetResourceForBar, &BarArgument { vf_index: vf, bar_index })
    }

    fn query_luid(&self) -> Result<Luid, NtStatus> {
        self.ask(CallbackCode::QueryLuid, &[0u8; 0])
    }

    fn query_vf_luid(&self, vf: VfIndex) -> Result<Luid, NtStatus> {
        self.ask(CallbackCode::QueryVfLuid, &VfArgument { vf_index: vf })
    }

    fn query_luid_vf(&self, luid: Luid) -> Result<VfIndex, NtStatus> {
        let VfArgument { vf_index } = self.ask(CallbackCode::QueryLuidVf, &luid)?;
        Ok(vf_index)
    }

    fn mitigable(&self) -> Option<&dyn MitigableDevice> {
        self.mitigable.then_some(self as &dyn MitigableDevice)
    }
}

impl MitigableDevice for RemoteSriovDevice {
    fn mitigated_ranges(
        &self,
        vf: VfIndex,
        bar_index: u16,
    ) -> Result<Vec<SriovMitigatedRangesOutput>, NtStatus> {
        let bar = u8::try_from(bar_index).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let counts = self.mitigated_range_count(vf).map_err(|error| error.status())?;
        let count = counts.get(usize::from(bar)).copied().ok_or(NtStatus::INVALID_PARAMETER)?;
        Self::mitigated_ranges(self, vf, bar, count).map_err(|error| error.status())
    }

    fn read_mitigated_register(
        &self,
        vf: VfIndex,
        bar_index: u16,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), NtStatus> {
        let access = register_access(vf, true, bar_index, offset, data)?;
        self.fill(CallbackCode::ReadWriteMitigatedRegister, &access, data)
    }

    fn write_mitigated_register(
        &self,
        vf: VfIndex,
        bar_index: u16,
        offset: u64,
        data: &[u8],
    ) -> Result<(), NtStatus> {
        let access = register_access(vf, false, bar_index, offset, data)?;
        self.tell(CallbackCode::ReadWriteMitigatedRegister, &access, data)
    }
}

fn register_access(
    vf: VfIndex,
    read: bool,
    bar_index: u16,
    offset: u64,
    data: &[u8],
) -> Result<MitigatedRegisterAccess, NtStatus> {
    Ok(MitigatedRegisterAccess {
        vf_index: vf,
        read: read.into(),
        reserved: 0,
        bar_index,
        reserved2: 0,
        offset,
        length: length_of(data)?,
        reserved3: 0,
    })
}
