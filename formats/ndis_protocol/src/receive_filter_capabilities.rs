//! What an adapter can filter on: receive filter capabilities (SPEC-NDIS-SRIOV §2.3).

use zerocopy::little_endian::U32;

use crate::object::{FixedStructure, ParseError, wire_structure};

wire_structure! {
    /// NDIS_RECEIVE_FILTER_CAPABILITIES. Revision 1 is of NDIS 6.20, 2 of 6.30.
    NdisReceiveFilterCapabilities = "NDIS_RECEIVE_FILTER_CAPABILITIES", revisions [56, 84], sizeof 84 {
        /// Reserved.
        4 flags: U32,
        /// [`FilterTypes`].
        8 enabled_filter_types: U32,
        /// [`QueueTypes`].
        12 enabled_queue_types: U32,
        /// VM queues; 0 with SR-IOV.
        16 num_queues: U32,
        /// [`QueueProperties`].
        20 supported_queue_properties: U32,
        /// [`FilterTests`].
        24 supported_filter_tests: U32,
        /// [`FilterHeaders`].
        28 supported_headers: U32,
        /// [`MacHeaderFields`].
        32 supported_mac_header_fields: U32,
        /// Filters on the MAC header.
        36 max_mac_header_filters: U32,
        /// Queue groups.
        40 max_queue_groups: U32,
        /// Queues of one group.
        44 max_queues_per_queue_group: U32,
        /// Lookahead split.
        48 min_lookahead_split_size: U32,
        /// Lookahead split.
        52 max_lookahead_split_size: U32,
        /// Revision 2, packet coalescing.
        56 supported_arp_header_fields: U32,
        /// Revision 2, packet coalescing.
        60 supported_ipv4_header_fields: U32,
        /// Revision 2, packet coalescing.
        64 supported_ipv6_header_fields: U32,
        /// Revision 2, packet coalescing.
        68 supported_udp_header_fields: U32,
        /// Revision 2, packet coalescing.
        72 max_field_tests_per_packet_coalescing_filter: U32,
        /// Revision 2, packet coalescing.
        76 max_packet_coalescing_filters: U32,
        /// Reserved.
        80 ndis_reserved: U32,
    }
}

bitflags::bitflags! {
    /// Types of receive filter that are enabled.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct FilterTypes: u32 {
        /// VM queue filters, which are also those of VPorts.
        const VMQ_FILTERS_ENABLED = 0x1;
        // Flags that this crate does not name pass through.
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// Types of receive queue that are enabled.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct QueueTypes: u32 {
        /// VM queues; not set when there is SR-IOV only.
        const VM_QUEUES_ENABLED = 0x1;
        // Flags that this crate does not name pass through.
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// Properties of receive queues.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct QueueProperties: u32 {
        /// An MSI-X interrupt for each queue.
        const MSI_X = 0x01;
        /// Queues for VMs.
        const VM_QUEUE = 0x02;
        /// The processor of a queue can change while it runs.
        const DYNAMIC_PROCESSOR_AFFINITY_CHANGE = 0x08;
        /// Queues can share an interrupt vector.
        const INTERRUPT_VECTOR_COALESCING = 0x10;
        // Flags that this crate does not name pass through.
        const _ = !0;

        /// What SR-IOV asks for (SPEC-NDIS-SRIOV §2.3).
        const REQUIRED_FOR_SRIOV = 0x1B;
    }
}

bitflags::bitflags! {
    /// Tests that a receive filter may make.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct FilterTests: u32 {
        /// The field equals the value.
        const EQUAL = 0x1;
        /// The masked field equals the value.
        const MASK_EQUAL = 0x2;
        /// The field differs from the value.
        const NOT_EQUAL = 0x4;
        // Flags that this crate does not name pass through.
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// Frame headers that a receive filter may test.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct FilterHeaders: u32 {
        /// The MAC header.
        const MAC = 0x1;
        // Flags that this crate does not name pass through.
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// Fields of the MAC header that a receive filter may test.
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct MacHeaderFields: u32 {
        /// Destination address.
        const DEST_ADDR = 0x1;
        /// VLAN id.
        const VLAN_ID = 0x8;
        // Flags that this crate does not name pass through.
        const _ = !0;
    }
}

/// What an adapter can filter on. Emitted as revision 2; revision 1 parses with the later members 0.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveFilterCapabilities {
    /// Types of filter that are enabled.
    pub enabled_filter_types: FilterTypes,
    /// Types of queue that are enabled.
    pub enabled_queue_types: QueueTypes,
    /// VM queues; 0 with SR-IOV, where VPorts take their role.
    pub num_queues: u32,
    /// Properties of queues.
    pub supported_queue_properties: QueueProperties,
    /// Tests a filter may make.
    pub supported_filter_tests: FilterTests,
    /// Headers a filter may test.
    pub supported_headers: FilterHeaders,
    /// Fields of the MAC header a filter may test.
    pub supported_mac_header_fields: MacHeaderFields,
    /// Filters on the MAC header.
    pub max_mac_header_filters: u32,
    /// Queue groups.
    pub max_queue_groups: u32,
    /// Queues of one group.
    pub max_queues_per_queue_group: u32,
    /// Smallest lookahead split, bytes.
    pub min_lookahead_split_size: u32,
    /// Largest lookahead split, bytes.
    pub max_lookahead_split_size: u32,
    /// Packet coalescing, which has nothing to do with SR-IOV.
    pub packet_coalescing: PacketCoalescingCapabilities,
}

/// Packet coalescing: the members of revision 2 of the receive filter capabilities.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct PacketCoalescingCapabilities {
    /// Fields of the ARP header.
    pub supported_arp_header_fields: u32,
    /// Fields of the IPv4 header.
    pub supported_ipv4_header_fields: u32,
    /// Fields of the IPv6 header.
    pub supported_ipv6_header_fields: u32,
    /// Fields of the UDP header.
    pub supported_udp_header_fields: u32,
    /// Tests of one filter.
    pub max_field_tests_per_packet_coalescing_filter: u32,
    /// Filters.
    pub max_packet_coalescing_filters: u32,
}

impl ReceiveFilterCapabilities {
    /// What a PF miniport with SR-IOV must report at least (SPEC-NDIS-SRIOV §2.3), with VLAN filtering or
    /// without and with this many filters.
    #[must_use]
    pub const fn sriov(max_mac_header_filters: u32, vlan_filtering: bool) -> Self {
        let fields = if vlan_filtering { 0x9 } else { 0x1 };
        Self {
            enabled_filter_types: FilterTypes::VMQ_FILTERS_ENABLED,
            enabled_queue_types: QueueTypes::empty(),
            num_queues: 0,
            supported_queue_properties: QueueProperties::REQUIRED_FOR_SRIOV,
            supported_filter_tests: FilterTests::EQUAL,
            supported_headers: FilterHeaders::MAC,
            supported_mac_header_fields: MacHeaderFields::from_bits_retain(fields),
            max_mac_header_filters,
            max_queue_groups: 0,
            max_queues_per_queue_group: 0,
            min_lookahead_split_size: 0,
            max_lookahead_split_size: 0,
            packet_coalescing: PacketCoalescingCapabilities {
                supported_arp_header_fields: 0,
                supported_ipv4_header_fields: 0,
                supported_ipv6_header_fields: 0,
                supported_udp_header_fields: 0,
                max_field_tests_per_packet_coalescing_filter: 0,
                max_packet_coalescing_filters: 0,
            },
        }
    }
}

impl FixedStructure for ReceiveFilterCapabilities {
    type Wire = NdisReceiveFilterCapabilities;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            enabled_filter_types: FilterTypes::from_bits_retain(wire.enabled_filter_types.get()),
            enabled_queue_types: QueueTypes::from_bits_retain(wire.enabled_queue_types.get()),
            num_queues: wire.num_queues.get(),
            supported_queue_properties: QueueProperties::from_bits_retain(
                wire.supported_queue_properties.get(),
            ),
            supported_filter_tests: FilterTests::from_bits_retain(
                wire.supported_filter_tests.get(),
            ),
            supported_headers: FilterHeaders::from_bits_retain(wire.supported_headers.get()),
            supported_mac_header_fields: MacHeaderFields::from_bits_retain(
                wire.supported_mac_header_fields.get(),
            ),
            max_mac_header_filters: wire.max_mac_header_filters.get(),
            max_queue_groups: wire.max_queue_groups.get(),
            max_queues_per_queue_group: wire.max_queues_per_queue_group.get(),
            min_lookahead_split_size: wire.min_lookahead_split_size.get(),
            max_lookahead_split_size: wire.max_lookahead_split_size.get(),
            packet_coalescing: PacketCoalescingCapabilities {
                supported_arp_header_fields: wire.supported_arp_header_fields.get(),
                supported_ipv4_header_fields: wire.supported_ipv4_header_fields.get(),
                supported_ipv6_header_fields: wire.supported_ipv6_header_fields.get(),
                supported_udp_header_fields: wire.supported_udp_header_fields.get(),
                max_field_tests_per_packet_coalescing_filter: wire
                    .max_field_tests_per_packet_coalescing_filter
                    .get(),
                max_packet_coalescing_filters: wire.max_packet_coalescing_filters.get(),
            },
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let coalescing = &self.packet_coalescing;
        NdisReceiveFilterCapabilities {
            header: Default::default(),
            flags: U32::ZERO,
            enabled_filter_types: U32::new(self.enabled_filter_types.bits()),
            enabled_queue_types: U32::new(self.enabled_queue_types.bits()),
            num_queues: U32::new(self.num_queues),
            supported_queue_properties: U32::new(self.supported_queue_properties.bits()),
            supported_filter_tests: U32::new(self.supported_filter_tests.bits()),
            supported_headers: U32::new(self.supported_headers.bits()),
            supported_mac_header_fields: U32::new(self.supported_mac_header_fields.bits()),
            max_mac_header_filters: U32::new(self.max_mac_header_filters),
            max_queue_groups: U32::new(self.max_queue_groups),
            max_queues_per_queue_group: U32::new(self.max_queues_per_queue_group),
            min_lookahead_split_size: U32::new(self.min_lookahead_split_size),
            max_lookahead_split_size: U32::new(self.max_lookahead_split_size),
            supported_arp_header_fields: U32::new(coalescing.supported_arp_header_fields),
            supported_ipv4_header_fields: U32::new(coalescing.supported_ipv4_header_fields),
            supported_ipv6_header_fields: U32::new(coalescing.supported_ipv6_header_fields),
            supported_udp_header_fields: U32::new(coalescing.supported_udp_header_fields),
            max_field_tests_per_packet_coalescing_filter: U32::new(
                coalescing.max_field_tests_per_packet_coalescing_filter,
            ),
            max_packet_coalescing_filters: U32::new(coalescing.max_packet_coalescing_filters),
            ndis_reserved: U32::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NdisStructure;
    use crate::testing::structure_properties;
    use proptest::prelude::*;

    fn filter() -> impl Strategy<Value = ReceiveFilterCapabilities> {
        any::<[u32; 18]>().prop_map(|m| ReceiveFilterCapabilities {
            enabled_filter_types: FilterTypes::from_bits_retain(m[0]),
            enabled_queue_types: QueueTypes::from_bits_retain(m[1]),
            num_queues: m[2],
            supported_queue_properties: QueueProperties::from_bits_retain(m[3]),
            supported_filter_tests: FilterTests::from_bits_retain(m[4]),
            supported_headers: FilterHeaders::from_bits_retain(m[5]),
            supported_mac_header_fields: MacHeaderFields::from_bits_retain(m[6]),
            max_mac_header_filters: m[7],
            max_queue_groups: m[8],
            max_queues_per_queue_group: m[9],
            min_lookahead_split_size: m[10],
            max_lookahead_split_size: m[11],
            packet_coalescing: PacketCoalescingCapabilities {
                supported_arp_header_fields: m[12],
                supported_ipv4_header_fields: m[13],
                supported_ipv6_header_fields: m[14],
                supported_udp_header_fields: m[15],
                max_field_tests_per_packet_coalescing_filter: m[16],
                max_packet_coalescing_filters: m[17],
            },
        })
    }

    structure_properties!(capabilities, ReceiveFilterCapabilities, filter());

    #[test]
    fn sriov_asks_for_vm_queue_properties_and_no_vm_queues() {
        let capabilities = ReceiveFilterCapabilities::sriov(64, true);
        let bytes = capabilities.emit();
        assert_eq!(bytes[..12], [0x80, 2, 84, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[12..24], [0, 0, 0, 0, 0, 0, 0, 0, 0x1B, 0, 0, 0]);
        assert_eq!(bytes[32..40], [9, 0, 0, 0, 64, 0, 0, 0]);
    }
}
