//! The PCI Express capability, version 2 (PCIe 6.0 §7.5.3).

use std::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use crate::CapabilityHeader;

/// What kind of port or function it is. Open: it holds types that are not named here too.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct PortType(pub u8);

impl PortType {
    /// A PCI Express endpoint. VFs are endpoints too.
    pub const ENDPOINT: Self = Self(0b0000);
    /// An endpoint that needs I/O space.
    pub const LEGACY_ENDPOINT: Self = Self(0b0001);
    /// A root port.
    pub const ROOT_PORT: Self = Self(0b0100);
    /// The upstream port of a switch.
    pub const SWITCH_UPSTREAM_PORT: Self = Self(0b0101);
    /// A downstream port of a switch.
    pub const SWITCH_DOWNSTREAM_PORT: Self = Self(0b0110);
    /// An endpoint inside the root complex.
    pub const ROOT_COMPLEX_INTEGRATED_ENDPOINT: Self = Self(0b1001);

    const fn into_bits(self) -> u8 {
        self.0
    }

    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

/// PCI Express Capabilities register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct ExpressCapabilities {
    /// Bits 3:0: 2 for this layout.
    #[bits(4)]
    pub version: u8,
    /// Bits 7:4.
    #[bits(4)]
    pub port_type: PortType,
    /// Bit 8: ports only.
    pub slot_implemented: bool,
    /// Bits 13:9: MSI vector of this capability's interrupts.
    #[bits(5)]
    pub interrupt_message_number: u8,
    #[bits(1)]
    undefined: u8,
    /// Bit 15.
    pub flit_mode_supported: bool,
}

/// Device Capabilities register.
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct DeviceCapabilities {
    /// Bits 2:0: largest payload, 128 << n bytes.
    #[bits(3)]
    pub max_payload_size_supported: u8,
    /// Bits 4:3.
    #[bits(2)]
    pub phantom_functions_supported: u8,
    /// Bit 5.
    pub extended_tag_field_supported: bool,
    /// Bits 8:6.
    #[bits(3)]
    pub l0s_acceptable_latency: u8,
    /// Bits 11:9.
    #[bits(3)]
    pub l1_acceptable_latency: u8,
    #[bits(3)]
    undefined: u8,
    /// Bit 15: set in every function of PCIe 1.1 and later.
    pub role_based_error_reporting: bool,
    /// Bit 16.
    pub err_cor_subclass_capable: bool,
    /// Bit 17.
    pub rx_mps_fixed: bool,
    /// Bits 25:18.
    pub captured_slot_power_limit_value: u8,
    /// Bits 27:26.
    #[bits(2)]
    pub captured_slot_power_limit_scale: u8,
    /// Bit 28: the function can be reset alone; required of PFs and VFs.
    pub function_level_reset_capable: bool,
    /// Bit 29.
    pub mixed_mps_supported: bool,
    #[bits(2)]
    reserved: u8,
}

/// Device Control register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct DeviceControl {
    /// Bit 0.
    pub correctable_error_reporting_enable: bool,
    /// Bit 1.
    pub non_fatal_error_reporting_enable: bool,
    /// Bit 2.
    pub fatal_error_reporting_enable: bool,
    /// Bit 3.
    pub unsupported_request_reporting_enable: bool,
    /// Bit 4: set after a reset.
    pub enable_relaxed_ordering: bool,
    /// Bits 7:5: payload in force, 128 << n bytes.
    #[bits(3)]
    pub max_payload_size: u8,
    /// Bit 8.
    pub extended_tag_field_enable: bool,
    /// Bit 9.
    pub phantom_functions_enable: bool,
    /// Bit 10.
    pub aux_power_pm_enable: bool,
    /// Bit 11: set after a reset.
    pub enable_no_snoop: bool,
    /// Bits 14:12: largest read request, 128 << n bytes; 512 bytes after a reset.
    #[bits(3)]
    pub max_read_request_size: u8,
    /// Bit 15: writing one resets the function; reads as zero.
    pub initiate_function_level_reset: bool,
}

/// Device Status register. Bits 0 to 3 and 6 are cleared by writing ones.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct DeviceStatus {
    /// Bit 0.
    pub correctable_error_detected: bool,
    /// Bit 1.
    pub non_fatal_error_detected: bool,
    /// Bit 2.
    pub fatal_error_detected: bool,
    /// Bit 3.
    pub unsupported_request_detected: bool,
    /// Bit 4.
    pub aux_power_detected: bool,
    /// Bit 5: the function waits for completions; software waits for it to clear before a reset.
    pub transactions_pending: bool,
    /// Bit 6.
    pub emergency_power_reduction_detected: bool,
    #[bits(9)]
    reserved: u16,
}

impl DeviceStatus {
    /// The bits that are set by events and cleared by writing ones.
    pub const WRITE_ONE_TO_CLEAR: Self = Self(0x004F);
}

/// Link Capabilities register.
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct LinkCapabilities {
    /// Bits 3:0: index of the highest speed: 1 is 2.5 GT/s, 2 is 5, 3 is 8, 4 is 16, 5 is 32, 6 is 64.
    #[bits(4)]
    pub max_link_speed: u8,
    /// Bits 9:4: lanes.
    #[bits(6)]
    pub maximum_link_width: u8,
    /// Bits 11:10.
    #[bits(2)]
    pub aspm_support: u8,
    /// Bits 14:12.
    #[bits(3)]
    pub l0s_exit_latency: u8,
    /// Bits 17:15.
    #[bits(3)]
    pub l1_exit_latency: u8,
    /// Bit 18.
    pub clock_power_management: bool,
    /// Bit 19.
    pub surprise_down_error_reporting_capable: bool,
    /// Bit 20.
    pub data_link_layer_link_active_reporting_capable: bool,
    /// Bit 21.
    pub link_bandwidth_notification_capability: bool,
    /// Bit 22: set in every function of PCIe 3.0 and later.
    pub aspm_optionality_compliance: bool,
    #[bits(1)]
    reserved: u8,
    /// Bits 31:24.
    pub port_number: u8,
}

/// Link Control register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct LinkControl {
    /// Bits 1:0.
    #[bits(2)]
    pub aspm_control: u8,
    /// Bit 2.
    pub ptm_propagation_delay_adaptation: bool,
    /// Bit 3.
    pub read_completion_boundary: bool,
    /// Bit 4: ports only.
    pub link_disable: bool,
    /// Bit 5: ports only.
    pub retrain_link: bool,
    /// Bit 6.
    pub common_clock_configuration: bool,
    /// Bit 7.
    pub extended_synch: bool,
    /// Bit 8.
    pub enable_clock_power_management: bool,
    /// Bit 9.
    pub hardware_autonomous_width_disable: bool,
    /// Bit 10: ports only.
    pub link_bandwidth_management_interrupt_enable: bool,
    /// Bit 11: ports only.
    pub link_autonomous_bandwidth_interrupt_enable: bool,
    #[bits(1)]
    reserved: u8,
    /// Bit 13.
    pub flit_mode_disable: bool,
    /// Bits 15:14: ports only.
    #[bits(2)]
    pub drs_signaling_control: u8,
}

/// Link Status register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct LinkStatus {
    /// Bits 3:0: index of the speed, as in [`LinkCapabilities`].
    #[bits(4)]
    pub current_link_speed: u8,
    /// Bits 9:4: lanes.
    #[bits(6)]
    pub negotiated_link_width: u8,
    #[bits(1)]
    undefined: u8,
    /// Bit 11: ports only.
    pub link_training: bool,
    /// Bit 12.
    pub slot_clock_configuration: bool,
    /// Bit 13.
    pub data_link_layer_link_active: bool,
    /// Bit 14: ports only.
    pub link_bandwidth_management_status: bool,
    /// Bit 15: ports only.
    pub link_autonomous_bandwidth_status: bool,
}

/// Device Capabilities 2 register.
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct DeviceCapabilities2 {
    /// Bits 3:0.
    #[bits(4)]
    pub completion_timeout_ranges_supported: u8,
    /// Bit 4.
    pub completion_timeout_disable_supported: bool,
    /// Bit 5: ports only.
    pub ari_forwarding_supported: bool,
    /// Bit 6: ports only.
    pub atomic_op_routing_supported: bool,
    /// Bit 7.
    pub atomic_op_completer_32_supported: bool,
    /// Bit 8.
    pub atomic_op_completer_64_supported: bool,
    /// Bit 9.
    pub cas_completer_128_supported: bool,
    /// Bit 10.
    pub no_ro_enabled_pr_pr_passing: bool,
    /// Bit 11.
    pub ltr_mechanism_supported: bool,
    /// Bits 13:12.
    #[bits(2)]
    pub tph_completer_supported: u8,
    #[bits(2)]
    undefined: u8,
    /// Bit 16.
    pub tag_10_bit_completer_supported: bool,
    /// Bit 17.
    pub tag_10_bit_requester_supported: bool,
    /// Bits 19:18.
    #[bits(2)]
    pub obff_supported: u8,
    /// Bit 20.
    pub extended_fmt_field_supported: bool,
    /// Bit 21.
    pub end_end_tlp_prefix_supported: bool,
    /// Bits 23:22.
    #[bits(2)]
    pub max_end_end_tlp_prefixes: u8,
    /// Bits 25:24.
    #[bits(2)]
    pub emergency_power_reduction_supported: u8,
    /// Bit 26.
    pub emergency_power_reduction_initialization_required: bool,
    #[bits(1)]
    reserved: u8,
    /// Bit 28.
    pub dmwr_completer_supported: bool,
    /// Bits 30:29.
    #[bits(2)]
    pub dmwr_lengths_supported: u8,
    /// Bit 31.
    pub frs_supported: bool,
}

/// Device Control 2 register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct DeviceControl2 {
    /// Bits 3:0.
    #[bits(4)]
    pub completion_timeout_value: u8,
    /// Bit 4.
    pub completion_timeout_disable: bool,
    /// Bit 5: ports only.
    pub ari_forwarding_enable: bool,
    /// Bit 6.
    pub atomic_op_requester_enable: bool,
    /// Bit 7: ports only.
    pub atomic_op_egress_blocking: bool,
    /// Bit 8.
    pub ido_request_enable: bool,
    /// Bit 9.
    pub ido_completion_enable: bool,
    /// Bit 10.
    pub ltr_mechanism_enable: bool,
    /// Bit 11.
    pub emergency_power_reduction_request: bool,
    /// Bit 12.
    pub tag_10_bit_requester_enable: bool,
    /// Bits 14:13.
    #[bits(2)]
    pub obff_enable: u8,
    /// Bit 15: ports only.
    pub end_end_tlp_prefix_blocking: bool,
}

/// Link Capabilities 2 register.
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct LinkCapabilities2 {
    #[bits(1)]
    reserved_0: u8,
    /// Bits 7:1: bit 0 of this field is 2.5 GT/s, bit 1 is 5 GT/s, and so on.
    #[bits(7)]
    pub supported_link_speeds: u8,
    /// Bit 8.
    pub crosslink_supported: bool,
    /// Bits 15:9.
    #[bits(7)]
    pub lower_skp_os_generation_supported: u8,
    /// Bits 22:16.
    #[bits(7)]
    pub lower_skp_os_reception_supported: u8,
    /// Bit 23.
    pub retimer_presence_detect_supported: bool,
    /// Bit 24.
    pub two_retimers_presence_detect_supported: bool,
    #[bits(6)]
    reserved_25: u8,
    /// Bit 31.
    pub drs_supported: bool,
}

/// Link Control 2 register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct LinkControl2 {
    /// Bits 3:0: index of the speed, as in [`LinkCapabilities`].
    #[bits(4)]
    pub target_link_speed: u8,
    /// Bit 4.
    pub enter_compliance: bool,
    /// Bit 5.
    pub hardware_autonomous_speed_disable: bool,
    /// Bit 6.
    pub selectable_de_emphasis: bool,
    /// Bits 9:7.
    #[bits(3)]
    pub transmit_margin: u8,
    /// Bit 10.
    pub enter_modified_compliance: bool,
    /// Bit 11.
    pub compliance_sos: bool,
    /// Bits 15:12.
    #[bits(4)]
    pub compliance_preset: u8,
}

/// Link Status 2 register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct LinkStatus2 {
    /// Bit 0.
    pub current_de_emphasis_level: bool,
    /// Bit 1.
    pub equalization_complete: bool,
    /// Bit 2.
    pub equalization_phase_1_successful: bool,
    /// Bit 3.
    pub equalization_phase_2_successful: bool,
    /// Bit 4.
    pub equalization_phase_3_successful: bool,
    /// Bit 5.
    pub link_equalization_request: bool,
    /// Bit 6.
    pub retimer_presence_detected: bool,
    /// Bit 7.
    pub two_retimers_presence_detected: bool,
    /// Bits 9:8.
    #[bits(2)]
    pub crosslink_resolution: u8,
    /// Bit 10.
    pub flit_mode_status: bool,
    #[bits(1)]
    reserved: u8,
    /// Bits 14:12.
    #[bits(3)]
    pub downstream_component_presence: u8,
    /// Bit 15.
    pub drs_message_received: bool,
}

/// The capability's bytes, version 2: 0x3C of them for every kind of port.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExpressCapability {
    /// Id 0x10.
    pub header: CapabilityHeader,
    /// [`ExpressCapabilities`].
    pub capabilities: U16,
    /// [`DeviceCapabilities`].
    pub device_capabilities: U32,
    /// [`DeviceControl`].
    pub device_control: U16,
    /// [`DeviceStatus`].
    pub device_status: U16,
    /// [`LinkCapabilities`].
    pub link_capabilities: U32,
    /// [`LinkControl`].
    pub link_control: U16,
    /// [`LinkStatus`].
    pub link_status: U16,
    /// Ports with slots only.
    pub slot_capabilities: U32,
    /// Ports with slots only.
    pub slot_control: U16,
    /// Ports with slots only.
    pub slot_status: U16,
    /// Root ports only.
    pub root_control: U16,
    /// Root ports only.
    pub root_capabilities: U16,
    /// Root ports only.
    pub root_status: U32,
    /// [`DeviceCapabilities2`].
    pub device_capabilities_2: U32,
    /// [`DeviceControl2`].
    pub device_control_2: U16,
    /// Reserved.
    pub device_status_2: U16,
    /// [`LinkCapabilities2`].
    pub link_capabilities_2: U32,
    /// [`LinkControl2`].
    pub link_control_2: U16,
    /// [`LinkStatus2`].
    pub link_status_2: U16,
    /// Reserved.
    pub slot_capabilities_2: U32,
    /// Reserved.
    pub slot_control_2: U16,
    /// Reserved.
    pub slot_status_2: U16,
}

impl ExpressCapability {
    /// Offset of [`DeviceCapabilities`] in the capability.
    pub const DEVICE_CAPABILITIES_OFFSET: u16 = 0x04;
    /// Offset of [`DeviceControl`] in the capability.
    pub const DEVICE_CONTROL_OFFSET: u16 = 0x08;
    /// Offset of [`DeviceStatus`] in the capability.
    pub const DEVICE_STATUS_OFFSET: u16 = 0x0A;
    /// Offset of [`LinkControl`] in the capability.
    pub const LINK_CONTROL_OFFSET: u16 = 0x10;
    /// Offset of [`DeviceControl2`] in the capability.
    pub const DEVICE_CONTROL_2_OFFSET: u16 = 0x28;
    /// Offset of [`LinkControl2`] in the capability.
    pub const LINK_CONTROL_2_OFFSET: u16 = 0x30;
}

const _: () = {
    type C = ExpressCapability;
    assert!(size_of::<C>() == 0x3C);
    assert!(offset_of!(C, device_capabilities) == C::DEVICE_CAPABILITIES_OFFSET as usize);
    assert!(offset_of!(C, device_control) == C::DEVICE_CONTROL_OFFSET as usize);
    assert!(offset_of!(C, device_status) == C::DEVICE_STATUS_OFFSET as usize);
    assert!(offset_of!(C, link_capabilities) == 0x0C);
    assert!(offset_of!(C, link_control) == C::LINK_CONTROL_OFFSET as usize);
    assert!(offset_of!(C, link_status) == 0x12);
    assert!(offset_of!(C, slot_capabilities) == 0x14);
    assert!(offset_of!(C, root_control) == 0x1C);
    assert!(offset_of!(C, root_status) == 0x20);
    assert!(offset_of!(C, device_capabilities_2) == 0x24);
    assert!(offset_of!(C, device_control_2) == C::DEVICE_CONTROL_2_OFFSET as usize);
    assert!(offset_of!(C, link_capabilities_2) == 0x2C);
    assert!(offset_of!(C, link_control_2) == C::LINK_CONTROL_2_OFFSET as usize);
    assert!(offset_of!(C, slot_capabilities_2) == 0x34);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        let capabilities =
            ExpressCapabilities::new().with_version(2).with_port_type(PortType::ROOT_PORT);
        assert_eq!(u16::from(capabilities), 0x0042);
        let device = DeviceCapabilities::new().with_function_level_reset_capable(true);
        assert_eq!(u32::from(device), 1 << 28);
        let device = DeviceCapabilities::new().with_role_based_error_reporting(true);
        assert_eq!(u32::from(device), 1 << 15);
        let control = DeviceControl::new().with_initiate_function_level_reset(true);
        assert_eq!(u16::from(control), 0x8000);
        assert_eq!(u16::from(DeviceControl::new().with_max_read_request_size(7)), 0x7000);
        assert_eq!(u16::from(DeviceControl::new().with_max_payload_size(7)), 0x00E0);
        assert_eq!(u16::from(DeviceStatus::new().with_transactions_pending(true)), 0x20);
        let link = LinkCapabilities::new().with_max_link_speed(4).with_maximum_link_width(8);
        assert_eq!(u32::from(link), 0x84);
        assert_eq!(u32::from(LinkCapabilities::new().with_port_number(1)), 0x0100_0000);
        assert_eq!(
            u32::from(LinkCapabilities::new().with_aspm_optionality_compliance(true)),
            1 << 22
        );
        assert_eq!(u16::from(LinkStatus::new().with_slot_clock_configuration(true)), 0x1000);
        assert_eq!(u16::from(LinkControl::new().with_common_clock_configuration(true)), 0x40);
        assert_eq!(u32::from(DeviceCapabilities2::new().with_frs_supported(true)), 1 << 31);
        assert_eq!(u32::from(DeviceCapabilities2::new().with_ltr_mechanism_supported(true)), 0x800);
        assert_eq!(u16::from(DeviceControl2::new().with_ari_forwarding_enable(true)), 0x20);
        assert_eq!(u32::from(LinkCapabilities2::new().with_supported_link_speeds(0xF)), 0x1E);
    }
}
