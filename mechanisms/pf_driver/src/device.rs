//! What a PF driver has to provide: the callbacks of SRIOV_DEVICE_INTERFACE_STANDARD, of its second version, and of
//! MITIGABLE_DEVICE_INTERFACE (SPEC-PCIVIRT §4 to §6), as traits.

use device_control_protocol::{CallbackCode, DeviceLocation, VendorAndDevice};
use pcivirt_protocol::{
    CmPartialResourceDescriptor, DevicePowerState, Luid, NtStatus, PCI_INVALID_ID,
    PCI_TYPE0_ADDRESSES, SriovMitigatedRangesOutput, VfIndex,
};

/// The PF driver of an SR-IOV device, as the virtualization stack sees it.
///
/// # Lifecycle
///
/// 1. Whoever starts the device makes a value of this type, and gives it to a [`PfDriver`](crate::PfDriver), which
///    publishes it. From then on every method may be called.
/// 2. Methods are called from any thread, several at a time, and may block: callers are control paths (PASSIVE_LEVEL),
///    never a data path. A method must not wait for anything that its own caller still has to send.
/// 3. Callers that come through a [`PfDriver`](crate::PfDriver) have been checked: the entry is filled
///    ([`SriovDevice::entries`]), the VF index is below [`SriovDevice::num_vfs`] as it was when the call began, offsets
///    and lengths are within the published bounds, BAR indices are 0 to 5. A device must still answer any argument
///    without panicking, since VFs may disappear between the check and the call, and since its methods are public.
/// 4. Nobody calls while the PnP machine has the device stopped *because of* a rebalance and expects hardware state to
///    survive it: clients were told to let go before (SPEC-PCIVIRT §8.6). Calls that come nevertheless are answered
///    from what the driver knows, or with STATUS_DEVICE_NOT_READY.
/// 5. After surprise removal the [`PfDriver`](crate::PfDriver) answers callbacks itself, with STATUS_DEVICE_REMOVED.
///    Dropping the value is the end.
///
/// # Errors
///
/// Every method answers with the published status. STATUS_NOT_SUPPORTED is what an absent (null) entry answers, and what
/// the default bodies of this trait return. A method that fails must not have changed anything.
pub trait SriovDevice: Send + Sync + 'static {
    /// Which entries of the function tables are filled. Must not change during the device's life.
    ///
    /// The default has all entries of the first version and none of the second.
    fn entries(&self) -> InterfaceEntries {
        InterfaceEntries::STANDARD
    }

    /// Number of VFs that exist now (NumVFs while VF Enable is set, else 0). VF indices are below it.
    fn num_vfs(&self) -> u16;

    /// SRIOV_READ_CONFIG: fills `data` from the VF's configuration space as its guest has to see it (ids, command
    /// register, BARs and capabilities mediated; SPEC-NDIS-SRIOV §7). `offset` plus length is at most 4096.
    ///
    /// # Errors
    /// The published status; `data` is then not used.
    fn read_vf_config(&self, vf: VfIndex, offset: u32, data: &mut [u8]) -> Result<(), NtStatus>;

    /// SRIOV_WRITE_CONFIG: the guest writes `data`. It may be absorbed, emulated or passed through.
    ///
    /// # Errors
    /// The published status; nothing has been written then.
    fn write_vf_config(&self, vf: VfIndex, offset: u32, data: &[u8]) -> Result<(), NtStatus>;

    /// SRIOV_READ_BLOCK: fills all of `buffer`, 1 to 128 bytes, from a configuration block. Block ids are private to the
    /// PF and VF drivers.
    ///
    /// # Errors
    /// The published status; `buffer` is then not used.
    fn read_vf_config_block(
        &self,
        vf: VfIndex,
        block_id: u32,
        buffer: &mut [u8],
    ) -> Result<(), NtStatus>;

    /// SRIOV_WRITE_BLOCK: writes `buffer`, 1 to 128 bytes, to a configuration block.
    ///
    /// # Errors
    /// The published status; nothing has been written then.
    fn write_vf_config_block(
        &self,
        vf: VfIndex,
        block_id: u32,
        buffer: &[u8],
    ) -> Result<(), NtStatus>;

    /// SRIOV_QUERY_PROBED_BARS: for each BAR slot of a VF, what would be read after writing all ones. One answer for
    /// all VFs.
    ///
    /// # Errors
    /// The published status.
    fn query_probed_bars(&self) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus>;

    /// SRIOV_QUERY_PROBED_BARS_2: the same for one VF, for devices whose VFs differ. Preferred when present.
    ///
    /// # Errors
    /// The published status.
    fn query_probed_bars_2(&self, vf: VfIndex) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        let _ = vf;
        Err(NtStatus::NOT_SUPPORTED)
    }

    /// SRIOV_GET_VENDOR_AND_DEVICE_IDS: ids of a VF, whose configuration space holds none. Has no error path: a VF that
    /// is not there has [`NO_VENDOR_AND_DEVICE`].
    fn get_vendor_and_device(&self, vf: VfIndex) -> VendorAndDevice;

    /// SRIOV_GET_DEVICE_LOCATION: segment, bus and ARI function number of a VF. Bus numbers may change at run time. Has
    /// no error path: a VF that is not there has location zero.
    fn get_device_location(&self, vf: VfIndex) -> DeviceLocation;

    /// SRIOV_RESET_FUNCTION: function level reset of this VF; neither the PF nor another VF may notice.
    ///
    /// # Errors
    /// The published status.
    fn reset_vf(&self, vf: VfIndex) -> Result<(), NtStatus>;

    /// SRIOV_SET_POWER_STATE. `wake` arms PME, and is never set together with D0.
    ///
    /// # Errors
    /// The published status; the state has not changed then.
    fn set_vf_power_state(
        &self,
        vf: VfIndex,
        state: DevicePowerState,
        wake: bool,
    ) -> Result<(), NtStatus>;

    /// SRIOV_GET_RESOURCE_FOR_BAR: the translated resource of one BAR (0 to 5) of one VF. [`vf_resource_for_bar`] cuts it
    /// out of the resource that covers all VFs.
    ///
    /// # Errors
    /// The published status.
    ///
    /// [`vf_resource_for_bar`]: crate::vf_resource_for_bar
    fn get_resource_for_bar(
        &self,
        vf: VfIndex,
        bar_index: u16,
    ) -> Result<CmPartialResourceDescriptor, NtStatus>;

    /// SRIOV_QUERY_LUID: LUID of the physical device; created once and kept for the device's life.
    ///
    /// # Errors
    /// The published status.
    fn query_luid(&self) -> Result<Luid, NtStatus>;

    /// SRIOV_QUERY_VF_LUID: LUID of one VF.
    ///
    /// # Errors
    /// The published status.
    fn query_vf_luid(&self, vf: VfIndex) -> Result<Luid, NtStatus> {
        let _ = vf;
        Err(NtStatus::NOT_SUPPORTED)
    }

    /// SRIOV_QUERY_LUID_VF: the VF with this LUID.
    ///
    /// # Errors
    /// STATUS_NOT_FOUND for a LUID that no VF has.
    fn query_luid_vf(&self, luid: Luid) -> Result<VfIndex, NtStatus> {
        let _ = luid;
        Err(NtStatus::NOT_SUPPORTED)
    }

    /// The second, optional interface, of devices some of whose registers must be intercepted. Present or absent for
    /// the device's whole life.
    fn mitigable(&self) -> Option<&dyn MitigableDevice> {
        None
    }
}

/// A device some of whose registers are too dangerous for a guest: accesses to chosen pages of a BAR are trapped and come
/// here, to be filtered or emulated (SPEC-PCIVIRT §6).
///
/// Called like [`SriovDevice`]'s methods. Ranges may change at run time; the PF driver is then told by
/// [`PfDriver::mitigated_ranges_changed`](crate::PfDriver::mitigated_ranges_changed), and the stack asks again.
pub trait MitigableDevice: Send + Sync {
    /// The ranges of one BAR (0 to 5) of a VF that have to be intercepted. With no VFs, VF 0 is asked for.
    ///
    /// # Errors
    /// The published status.
    fn mitigated_ranges(
        &self,
        vf: VfIndex,
        bar_index: u16,
    ) -> Result<Vec<SriovMitigatedRangesOutput>, NtStatus>;

    /// READ_WRITE_MITIGATED_REGISTER with Read set: fills `data`, 1 to 8 bytes, from `offset` bytes into the BAR.
    ///
    /// # Errors
    /// The published status.
    fn read_mitigated_register(
        &self,
        vf: VfIndex,
        bar_index: u16,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), NtStatus>;

    /// READ_WRITE_MITIGATED_REGISTER with Read clear: writes `data`, 1 to 8 bytes, at `offset` bytes into the BAR.
    ///
    /// # Errors
    /// The published status; nothing has been written then.
    fn write_mitigated_register(
        &self,
        vf: VfIndex,
        bar_index: u16,
        offset: u64,
        data: &[u8],
    ) -> Result<(), NtStatus>;
}

/// What [`SriovDevice::get_vendor_and_device`] answers for a VF that is not there.
pub const NO_VENDOR_AND_DEVICE: VendorAndDevice =
    VendorAndDevice { vendor_id: PCI_INVALID_ID, device_id: PCI_INVALID_ID };

/// Which entries of SRIOV_DEVICE_INTERFACE_STANDARD and its second version a device fills; the others are null.
///
/// The entries of the INTERFACE header are always filled.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct InterfaceEntries {
    bits: u32,
}

impl InterfaceEntries {
    /// No entry.
    pub const NONE: Self = Self { bits: 0 };
    /// All entries of the first version.
    pub const STANDARD: Self = Self { bits: (1 << 15) - (1 << 4) };
    /// All entries of the second version.
    pub const STANDARD_2: Self = Self { bits: (1 << 18) - (1 << 4) };

    /// This and `callback`.
    #[must_use]
    pub const fn with(self, callback: CallbackCode) -> Self {
        Self { bits: self.bits | Self::bit(callback) }
    }

    /// This without `callback`.
    #[must_use]
    pub const fn without(self, callback: CallbackCode) -> Self {
        Self { bits: self.bits & !Self::bit(callback) }
    }

    /// Whether `callback` is filled.
    pub const fn contains(self, callback: CallbackCode) -> bool {
        self.bits & Self::bit(callback) != 0
    }

    /// Whether an entry of the second version is filled, so that the longer table is returned.
    pub const fn is_version_2(self) -> bool {
        self.bits & (Self::STANDARD_2.bits & !Self::STANDARD.bits) != 0
    }

    /// One bit per 8-byte slot of the table; none for what is not one of its callbacks.
    const fn bit(callback: CallbackCode) -> u32 {
        let code = callback.to_u32();
        if code >= CallbackCode::ReadVfConfig.to_u32() && code <= CallbackCode::QueryLuidVf.to_u32()
        {
            1 << (code / 8)
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_has_eleven_entries_and_the_second_three_more() {
        let in_table = |entries: InterfaceEntries| {
            CallbackCode::ALL.iter().filter(|callback| entries.contains(**callback)).count()
        };
        assert_eq!(in_table(InterfaceEntries::STANDARD), 11);
        assert_eq!(in_table(InterfaceEntries::STANDARD_2), 14);
        assert_eq!(in_table(InterfaceEntries::NONE), 0);
        assert!(!InterfaceEntries::STANDARD.is_version_2());
        assert!(InterfaceEntries::STANDARD_2.is_version_2());
    }

    #[test]
    fn an_entry_can_be_absent() {
        let entries = InterfaceEntries::STANDARD.without(CallbackCode::GetResourceForBar);
        assert!(!entries.contains(CallbackCode::GetResourceForBar));
        assert!(entries.contains(CallbackCode::QueryLuid));
        assert!(entries.with(CallbackCode::QueryVfLuid).is_version_2());
        assert_eq!(entries.with(CallbackCode::QueryInterface), entries);
        assert_eq!(entries.with(CallbackCode::ReadWriteMitigatedRegister), entries);
    }
}
