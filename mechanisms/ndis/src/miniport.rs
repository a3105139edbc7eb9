//! The PF miniport driver, as NDIS sees it.

use ndis_protocol::{
    BarIndex, FilterId, FilterMatch, FunctionId, GroupAffinity, InterruptModeration, Name,
    NdisStatus, NicSwitchCapabilities, ReceiveFilterCapabilities, RequestorId, SriovCapabilities,
    SwitchId, VPortId, VfId, VfOwner,
};
use pcivirt_protocol::{CmPartialResourceDescriptor, DevicePowerState, Luid, PCI_TYPE0_ADDRESSES};

use crate::ActiveFeatures;

/// The driver of an SR-IOV NIC's physical function: what [`Ndis`](crate::Ndis) turns OIDs into.
///
/// # Lifecycle
///
/// 1. *Capability queries* ([`sriov_capabilities`](Self::sriov_capabilities) and the three after it) may be called at any
///    time, also before `initialize`. What they answer may change while the adapter runs; the driver then has
///    [`Ndis::refresh_capabilities`](crate::Ndis::refresh_capabilities) called.
/// 2. [`initialize`](Self::initialize) comes first (SPEC-NDIS-SRIOV §11.1). It is told which features are active and
///    what the default switch will be, so a *static* driver can enable its VFs here and check later that
///    `create_switch` says the same. A *dynamic* driver does everything in `create_switch`. If it fails, `halt` is not
///    called.
/// 3. With SR-IOV active, [`create_switch`](Self::create_switch) follows at once. If it fails, `halt` follows.
/// 4. Then requests come, in any order that the rules of SPEC-NDIS-SRIOV §3–§6 allow: a VPort's VF is allocated, a
///    filter's VPort exists, a VF that is freed has no VPort, a VPort that is deleted has no filter, the switch that is
///    deleted has no filter, no nondefault VPort and no VF. Numbers are within the capabilities reported. Whatever
///    breaks a rule has been refused before it gets here.
/// 5. [`delete_switch`](Self::delete_switch), then [`halt`](Self::halt), end it; `initialize` may follow again.
/// 6. After [`surprise_removed`](Self::surprise_removed) only `halt` follows.
///
/// # Threads and time
///
/// Calls are serialized: one at a time, from any thread, which may block (control path, PASSIVE_LEVEL). A method must not call
/// back into NDIS. Each is done when it returns; there is no PENDING.
///
/// # Errors
///
/// A method that fails must have changed nothing: NDIS changes its cache only on success. The status goes to the issuer
/// as it is, so it should be one that the OID's page names: INVALID_PARAMETER, RESOURCES, NOT_SUPPORTED, FAILURE;
/// NOT_ACCEPTED while resetting or removed, REQUEST_ABORTED when given up. `Err(NdisStatus::SUCCESS)` counts as FAILURE.
pub trait PfMiniport: Send {
    /// What the card does of SR-IOV: [`SriovCapabilities::PF`] for one that does it.
    fn sriov_capabilities(&self) -> SriovCapabilities;

    /// Limits and features of the card's NIC switch (SPEC-NDIS-SRIOV §2.2).
    fn nic_switch_capabilities(&self) -> NicSwitchCapabilities;

    /// What the card can filter on (SPEC-NDIS-SRIOV §2.3).
    fn receive_filter_capabilities(&self) -> ReceiveFilterCapabilities;

    /// The PF's LUID: the same from before `initialize` until after `halt`.
    fn pf_luid(&self) -> Luid;

    /// Starts the adapter (MiniportInitializeEx).
    ///
    /// # Errors
    /// Any status; the adapter is as it was.
    fn initialize(&mut self, start: &MiniportStart) -> Result<(), NdisStatus>;

    /// Stops the adapter (MiniportHaltEx): frees what `initialize` took. A static driver disables its VFs here.
    fn halt(&mut self);

    /// The card is gone. Cannot be refused; nothing touches hardware any more.
    fn surprise_removed(&mut self);

    /// OID_NIC_SWITCH_CREATE_SWITCH: the switch and its default VPort, which is on the PF and active; VFs enabled.
    ///
    /// # Errors
    /// INVALID_PARAMETER if a static driver prepared another switch.
    fn create_switch(&mut self, switch: &CreateSwitch) -> Result<(), NdisStatus>;

    /// OID_NIC_SWITCH_PARAMETERS (set): the switch's name is all that can change.
    ///
    /// # Errors
    /// Any status; NDIS then stores nothing.
    fn set_switch_name(
        &mut self,
        switch_id: SwitchId,
        name: &Name,
    ) -> Result<ParameterChange, NdisStatus>;

    /// OID_NIC_SWITCH_DELETE_SWITCH: the switch and its default VPort. A dynamic driver disables its VFs.
    ///
    /// # Errors
    /// NOT_ACCEPTED while resetting, REQUEST_ABORTED, FAILURE.
    fn delete_switch(&mut self, switch_id: SwitchId) -> Result<(), NdisStatus>;

    /// OID_NIC_SWITCH_CREATE_VPORT: binds queue pairs to a nondefault VPort, whose id NDIS has chosen.
    ///
    /// # Errors
    /// RESOURCES if queue pairs or memory are short all the same.
    fn create_vport(&mut self, vport: &CreateVPort) -> Result<(), NdisStatus>;

    /// OID_NIC_SWITCH_VPORT_PARAMETERS (set): all of the change or nothing.
    ///
    /// # Errors
    /// Any status.
    fn set_vport_parameters(&mut self, change: &ChangeVPort) -> Result<(), NdisStatus>;

    /// OID_NIC_SWITCH_DELETE_VPORT: a nondefault VPort without filters. When it returns there is no more DMA for it and
    /// no frame will be received on it.
    ///
    /// # Errors
    /// Any status.
    fn delete_vport(&mut self, vport_id: VPortId) -> Result<(), NdisStatus>;

    /// OID_NIC_SWITCH_ALLOCATE_VF: chooses a VF that is not allocated and prepares it for the VM. The id is below the
    /// switch's number of VFs.
    ///
    /// # Errors
    /// RESOURCES if none is left.
    fn allocate_vf(&mut self, vf: &AllocateVf) -> Result<AllocatedVf, NdisStatus>;

    /// OID_NIC_SWITCH_FREE_VF: a VF without VPort, whose guest driver was halted or is gone.
    ///
    /// # Errors
    /// INVALID_PARAMETER if the driver knows no such VF.
    fn free_vf(&mut self, vf_id: VfId) -> Result<(), NdisStatus>;

    /// OID_SRIOV_READ_VF_CONFIG_SPACE: fills `data` as the guest has to see it (SPEC-NDIS-SRIOV §7). `offset` plus
    /// length is at most 4096.
    ///
    /// # Errors
    /// Any status.
    fn read_vf_config_space(
        &mut self,
        vf_id: VfId,
        offset: u32,
        data: &mut [u8],
    ) -> Result<(), NdisStatus>;

    /// OID_SRIOV_WRITE_VF_CONFIG_SPACE: the guest writes `data`; bounds as for reading.
    ///
    /// # Errors
    /// Any status.
    fn write_vf_config_space(
        &mut self,
        vf_id: VfId,
        offset: u32,
        data: &[u8],
    ) -> Result<(), NdisStatus>;

    /// OID_SRIOV_READ_VF_CONFIG_BLOCK: fills `data`, 1 to 128 bytes, from a block that the PF and VF drivers agree on.
    ///
    /// # Errors
    /// INVALID_PARAMETER for a block that is not known.
    fn read_vf_config_block(
        &mut self,
        vf_id: VfId,
        block_id: u32,
        data: &mut [u8],
    ) -> Result<(), NdisStatus>;

    /// OID_SRIOV_WRITE_VF_CONFIG_BLOCK: writes `data`, 1 to 128 bytes.
    ///
    /// # Errors
    /// INVALID_PARAMETER for a block that is not known.
    fn write_vf_config_block(
        &mut self,
        vf_id: VfId,
        block_id: u32,
        data: &[u8],
    ) -> Result<(), NdisStatus>;

    /// OID_SRIOV_RESET_VF: function level reset of this VF; neither the PF nor another VF may notice.
    ///
    /// # Errors
    /// Any status.
    fn reset_vf(&mut self, vf_id: VfId) -> Result<(), NdisStatus>;

    /// OID_SRIOV_SET_VF_POWER_STATE; `wake_enable` is never set together with D0.
    ///
    /// # Errors
    /// Any status.
    fn set_vf_power_state(
        &mut self,
        vf_id: VfId,
        state: DevicePowerState,
        wake_enable: bool,
    ) -> Result<(), NdisStatus>;

    /// OID_SRIOV_VF_VENDOR_DEVICE_ID: PCI vendor and device id that the guest shall see.
    ///
    /// # Errors
    /// Any status.
    fn vf_vendor_device_id(&mut self, vf_id: VfId) -> Result<VendorDeviceId, NdisStatus>;

    /// OID_SRIOV_PROBED_BARS: for each BAR slot of a VF, what would be read after writing all ones; 0 is none.
    ///
    /// # Errors
    /// Any status.
    fn probed_bars(&mut self) -> Result<[u32; PCI_TYPE0_ADDRESSES], NdisStatus>;

    /// OID_SRIOV_BAR_RESOURCES: physical address and length of one BAR of one VF.
    ///
    /// # Errors
    /// INVALID_PARAMETER for a BAR the VF does not have.
    fn bar_resources(
        &mut self,
        vf_id: VfId,
        bar: BarIndex,
    ) -> Result<CmPartialResourceDescriptor, NdisStatus>;

    /// OID_RECEIVE_FILTER_SET_FILTER: frames that match go to the VPort. Frames may arrive before it returns; then it must
    /// succeed.
    ///
    /// # Errors
    /// INVALID_PARAMETER, NOT_SUPPORTED, FAILURE.
    fn set_filter(&mut self, filter: &SetFilter) -> Result<(), NdisStatus>;

    /// OID_RECEIVE_FILTER_CLEAR_FILTER: when it returns, no frame is received by this filter any more.
    ///
    /// # Errors
    /// Any status.
    fn clear_filter(&mut self, filter_id: FilterId) -> Result<(), NdisStatus>;

    /// OID_RECEIVE_FILTER_MOVE_FILTER: atomic. At no time is a frame delivered to both VPorts or to none, and a
    /// failure leaves the filter where it was.
    ///
    /// # Errors
    /// Any status.
    fn move_filter(
        &mut self,
        filter_id: FilterId,
        source: VPortId,
        destination: VPortId,
    ) -> Result<(), NdisStatus>;
}

/// What an adapter is started with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MiniportStart {
    /// Which of SR-IOV, VMQ and RSS are active, by the keywords and the card.
    pub features: ActiveFeatures,
    /// Whether VLANs are filtered in hardware (*VMQVlanFiltering).
    pub vlan_filtering: bool,
    /// The switch that `create_switch` will ask for; `None` without SR-IOV.
    pub default_switch: Option<CreateSwitch>,
}

/// A NIC switch to create.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CreateSwitch {
    /// Its id, the default one.
    pub switch_id: SwitchId,
    /// Its name, for people.
    pub name: Name,
    /// VFs to enable; 0 leaves virtualization disabled.
    pub num_vfs: u16,
    /// Queue pairs of the default VPort, at least 1.
    pub default_vport_queue_pairs: u32,
}

/// When a change takes effect.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum ParameterChange {
    /// Now.
    Applied,
    /// When the adapter is restarted; NDIS stores it, and answers REINIT_REQUIRED.
    AfterRestart,
}

/// A nondefault VPort to create.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CreateVPort {
    /// Its id: the lowest free one.
    pub vport_id: VPortId,
    /// Its name, for people.
    pub name: Name,
    /// The function it belongs to for life.
    pub attached_function: FunctionId,
    /// Queue pairs, at least 1.
    pub num_queue_pairs: u32,
    /// Interrupt moderation.
    pub interrupt_moderation: InterruptModeration,
    /// Whether it is active from the start: a VF's VPort is, a PF's is not.
    pub activated: bool,
    /// Processors: one for a PF's VPort (a set of candidates with VMMQ), none for a VF's.
    pub processor_affinity: GroupAffinity,
    /// Refuse frames with more fragments than the limit.
    pub enforce_max_sg_list: bool,
}

/// A change of a VPort: what is `Some` changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChangeVPort {
    /// The VPort.
    pub vport_id: VPortId,
    /// New name.
    pub name: Option<Name>,
    /// New interrupt moderation.
    pub interrupt_moderation: Option<InterruptModeration>,
    /// Activates a PF VPort that was not active.
    pub activate: bool,
    /// New processors; PF VPorts only.
    pub processor_affinity: Option<GroupAffinity>,
    /// New number of queue pairs; PF VPorts of a switch with RSS on PF VPorts only.
    pub num_queue_pairs: Option<u32>,
}

/// A VF to allocate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllocateVf {
    /// The switch.
    pub switch_id: SwitchId,
    /// The VM it is for, and the addresses its NIC will show.
    pub owner: VfOwner,
}

/// A VF that was allocated.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct AllocatedVf {
    /// Zero-based, below the switch's number of VFs.
    pub vf_id: VfId,
    /// Its PCI location.
    pub requestor_id: RequestorId,
}

/// PCI identifiers that a guest sees.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct VendorDeviceId {
    /// PCI vendor id.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
}

/// A receive filter to set.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct SetFilter {
    /// Its id, unique on the adapter.
    pub filter_id: FilterId,
    /// The VPort that takes the frames.
    pub vport_id: VPortId,
    /// The frames; the address is a unicast one.
    pub matches: FilterMatch,
}
