//! What an adapter can do: SR-IOV and NIC switch capabilities (SPEC-NDIS-SRIOV §2.1, §2.2).

use zerocopy::little_endian::U32;

use crate::object::{FixedStructure, ParseError, wire_structure};

wire_structure! {
    /// NDIS_SRIOV_CAPABILITIES.
    NdisSriovCapabilities = "NDIS_SRIOV_CAPABILITIES", revisions [12], sizeof 12 {
        /// Reserved.
        4 flags: U32,
        /// [`SriovCapabilities`].
        8 sriov_capabilities: U32,
    }
}

bitflags::bitflags! {
    /// SR-IOV capabilities of a miniport driver (SPEC-NDIS-SRIOV §2.1).
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct SriovCapabilities: u32 {
        /// The device does SR-IOV.
        const SRIOV_SUPPORTED = 0x1;
        /// This is a PF miniport driver.
        const PF_MINIPORT = 0x2;
        /// This is a VF miniport driver.
        const VF_MINIPORT = 0x4;

        /// What a PF miniport driver reports.
        const PF = Self::SRIOV_SUPPORTED.bits() | Self::PF_MINIPORT.bits();
        /// What a VF miniport driver reports.
        const VF = Self::SRIOV_SUPPORTED.bits() | Self::VF_MINIPORT.bits();
    }
}

impl FixedStructure for SriovCapabilities {
    type Wire = NdisSriovCapabilities;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self::from_bits_retain(wire.sriov_capabilities.get()))
    }

    fn to_wire(&self) -> Self::Wire {
        NdisSriovCapabilities {
            header: Default::default(),
            flags: U32::ZERO,
            sriov_capabilities: U32::new(self.bits()),
        }
    }
}

wire_structure! {
    /// NDIS_NIC_SWITCH_CAPABILITIES. Revision 1 is of NDIS 6.20, 2 of 6.30, 3 of 6.60.
    NdisNicSwitchCapabilities = "NDIS_NIC_SWITCH_CAPABILITIES", revisions [32, 116, 132], sizeof 132 {
        /// Reserved.
        4 flags: U32,
        /// Reserved.
        8 ndis_reserved1: U32,
        /// Revision 1 only.
        12 num_total_mac_addresses: U32,
        /// Revision 1 only.
        16 num_mac_addresses_per_port: U32,
        /// Revision 1 only.
        20 num_vlans_per_port: U32,
        /// Reserved.
        24 ndis_reserved2: [U32; 2],
        /// [`NicSwitchCapabilityFlags`].
        32 nic_switch_capabilities: U32,
        /// Must be 1.
        36 max_num_switches: U32,
        /// VPorts, the default one included.
        40 max_num_vports: U32,
        /// Reserved.
        44 ndis_reserved4: U32,
        /// VFs.
        48 max_num_vfs: U32,
        /// Queue pairs over all VPorts.
        52 max_num_queue_pairs: U32,
        /// Reserved.
        56 ndis_reserved5: [U32; 3],
        /// Queue pairs of one nondefault VPort.
        68 max_num_queue_pairs_per_non_default_vport: U32,
        /// Reserved.
        72 ndis_reserved8: [U32; 5],
        /// Unicast filters.
        92 max_num_mac_addresses: U32,
        /// Reserved.
        96 ndis_reserved13: [U32; 5],
        /// Revision 3.
        116 max_num_rss_capable_non_default_pf_vports: U32,
        /// Revision 3.
        120 number_of_indirection_table_entries_for_default_vport: U32,
        /// Revision 3.
        124 number_of_indirection_table_entries_per_non_default_pf_vport: U32,
        /// Revision 3.
        128 max_num_queue_pairs_for_default_vport: U32,
    }
}

bitflags::bitflags! {
    /// What a NIC switch can do (SPEC-NDIS-SRIOV §2.2).
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct NicSwitchCapabilityFlags: u32 {
        /// VLAN id filtering per VPort in hardware.
        const VLAN_SUPPORTED = 0x0001;
        /// Interrupt moderation may differ between VPorts.
        const PER_VPORT_INTERRUPT_MODERATION = 0x0002;
        /// Nondefault VPorts may have different numbers of queue pairs.
        const ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT = 0x0004;
        /// A VF may use its queue pairs for RSS.
        const VF_RSS_SUPPORTED = 0x0008;
        /// No VPorts are reserved for VFs.
        const SINGLE_VPORT_POOL = 0x0010;
        /// RSS parameters differ between PF VPorts.
        const RSS_PARAMETERS_PER_PF_VPORT = 0x0020;
        /// The switch may exist without SR-IOV.
        const NIC_SWITCH_WITHOUT_IOV = 0x0040;
        /// PF VPorts may have several queue pairs (VMMQ).
        const RSS_ON_PF_VPORTS = 0x0080;
        /// An indirection table for each PF VPort.
        const RSS_PER_PF_VPORT_INDIRECTION_TABLE = 0x0100;
        /// A hash function for each PF VPort.
        const RSS_PER_PF_VPORT_HASH_FUNCTION = 0x0200;
        /// A hash type for each PF VPort.
        const RSS_PER_PF_VPORT_HASH_TYPE = 0x0400;
        /// A hash key for each PF VPort.
        const RSS_PER_PF_VPORT_HASH_KEY = 0x0800;
        /// The indirection table's size is the number of queues rounded up to a power of two.
        const RSS_PER_PF_VPORT_INDIRECTION_TABLE_SIZE_RESTRICTED = 0x1000;

        // Flags of later versions pass through.
        const _ = !0;
    }
}

/// The limits of a NIC switch and what it can do.
///
/// Emitted as revision 3 if `rss` is there, otherwise as revision 2. A revision 1 structure, which knows no
/// SR-IOV, parses as a switch that can do nothing.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchCapabilities {
    /// What the switch can do.
    pub flags: NicSwitchCapabilityFlags,
    /// NIC switches; must be 1.
    pub max_num_switches: u32,
    /// VPorts, the default one included; at least `max_num_vfs + 1`.
    pub max_num_vports: u32,
    /// VFs.
    pub max_num_vfs: u32,
    /// Queue pairs over all VPorts, the default one included; at least `max_num_vports`.
    pub max_num_queue_pairs: u32,
    /// Queue pairs of one nondefault VPort; a power of two.
    pub max_num_queue_pairs_per_non_default_vport: u32,
    /// Unicast filters; at least `max_num_vports`.
    pub max_num_mac_addresses: u32,
    /// RSS on PF VPorts (revision 3).
    pub rss: Option<NicSwitchRssCapabilities>,
}

/// RSS on the PF's VPorts: the members of revision 3 (SPEC-NDIS-SRIOV §2.2).
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct NicSwitchRssCapabilities {
    /// Nondefault PF VPorts that can do RSS.
    pub max_num_rss_capable_non_default_pf_vports: u32,
    /// Indirection table entries of the default VPort.
    pub number_of_indirection_table_entries_for_default_vport: u32,
    /// Indirection table entries of each nondefault PF VPort.
    pub number_of_indirection_table_entries_per_non_default_pf_vport: u32,
    /// Queue pairs of the default VPort; a power of two.
    pub max_num_queue_pairs_for_default_vport: u32,
}

impl FixedStructure for NicSwitchCapabilities {
    type Wire = NdisNicSwitchCapabilities;

    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            flags: NicSwitchCapabilityFlags::from_bits_retain(wire.nic_switch_capabilities.get()),
            max_num_switches: wire.max_num_switches.get(),
            max_num_vports: wire.max_num_vports.get(),
            max_num_vfs: wire.max_num_vfs.get(),
            max_num_queue_pairs: wire.max_num_queue_pairs.get(),
            max_num_queue_pairs_per_non_default_vport: wire
                .max_num_queue_pairs_per_non_default_vport
                .get(),
            max_num_mac_addresses: wire.max_num_mac_addresses.get(),
            rss: (revision >= 3).then(|| NicSwitchRssCapabilities {
                max_num_rss_capable_non_default_pf_vports: wire
                    .max_num_rss_capable_non_default_pf_vports
                    .get(),
                number_of_indirection_table_entries_for_default_vport: wire
                    .number_of_indirection_table_entries_for_default_vport
                    .get(),
                number_of_indirection_table_entries_per_non_default_pf_vport: wire
                    .number_of_indirection_table_entries_per_non_default_pf_vport
                    .get(),
                max_num_queue_pairs_for_default_vport: wire
                    .max_num_queue_pairs_for_default_vport
                    .get(),
            }),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let rss = self.rss.unwrap_or_default();
        NdisNicSwitchCapabilities {
            header: Default::default(),
            flags: U32::ZERO,
            ndis_reserved1: U32::ZERO,
            num_total_mac_addresses: U32::ZERO,
            num_mac_addresses_per_port: U32::ZERO,
            num_vlans_per_port: U32::ZERO,
            ndis_reserved2: [U32::ZERO; 2],
            nic_switch_capabilities: U32::new(self.flags.bits()),
            max_num_switches: U32::new(self.max_num_switches),
            max_num_vports: U32::new(self.max_num_vports),
            ndis_reserved4: U32::ZERO,
            max_num_vfs: U32::new(self.max_num_vfs),
            max_num_queue_pairs: U32::new(self.max_num_queue_pairs),
            ndis_reserved5: [U32::ZERO; 3],
            max_num_queue_pairs_per_non_default_vport: U32::new(
                self.max_num_queue_pairs_per_non_default_vport,
            ),
            ndis_reserved8: [U32::ZERO; 5],
            max_num_mac_addresses: U32::new(self.max_num_mac_addresses),
            ndis_reserved13: [U32::ZERO; 5],
            max_num_rss_capable_non_default_pf_vports: U32::new(
                rss.max_num_rss_capable_non_default_pf_vports,
            ),
            number_of_indirection_table_entries_for_default_vport: U32::new(
                rss.number_of_indirection_table_entries_for_default_vport,
            ),
            number_of_indirection_table_entries_per_non_default_pf_vport: U32::new(
                rss.number_of_indirection_table_entries_per_non_default_pf_vport,
            ),
            max_num_queue_pairs_for_default_vport: U32::new(
                rss.max_num_queue_pairs_for_default_vport,
            ),
        }
    }

    fn revision(&self) -> u8 {
        if self.rss.is_some() { 3 } else { 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_meaning, structure_properties};
    use crate::{NdisStructure, WireStructure};
    use proptest::prelude::*;

    fn switch() -> impl Strategy<Value = NicSwitchCapabilities> {
        (any::<[u32; 7]>(), proptest::option::of(any::<[u32; 4]>())).prop_map(|(m, rss)| {
            NicSwitchCapabilities {
                flags: NicSwitchCapabilityFlags::from_bits_retain(m[0]),
                max_num_switches: m[1],
                max_num_vports: m[2],
                max_num_vfs: m[3],
                max_num_queue_pairs: m[4],
                max_num_queue_pairs_per_non_default_vport: m[5],
                max_num_mac_addresses: m[6],
                rss: rss.map(|r| NicSwitchRssCapabilities {
                    max_num_rss_capable_non_default_pf_vports: r[0],
                    number_of_indirection_table_entries_for_default_vport: r[1],
                    number_of_indirection_table_entries_per_non_default_pf_vport: r[2],
                    max_num_queue_pairs_for_default_vport: r[3],
                }),
            }
        })
    }

    structure_properties!(
        sriov_capabilities,
        SriovCapabilities,
        any::<u32>().prop_map(SriovCapabilities::from_bits_retain)
    );
    structure_properties!(nic_switch_capabilities, NicSwitchCapabilities, switch());

    #[test]
    fn a_pf_reports_3_and_a_vf_5() {
        assert_eq!(SriovCapabilities::PF.emit()[8..], [3, 0, 0, 0]);
        assert_eq!(SriovCapabilities::VF.emit()[8..], [5, 0, 0, 0]);
        assert_meaning(&SriovCapabilities::PF.emit(), &SriovCapabilities::PF);
    }

    #[test]
    fn a_switch_of_ndis_6_20_can_do_nothing_of_ours() {
        let rich = NicSwitchCapabilities {
            max_num_switches: 1,
            max_num_vfs: 7,
            rss: Some(NicSwitchRssCapabilities::default()),
            ..Default::default()
        };
        assert_eq!(rich.emit().len(), 132);
        assert_eq!(NicSwitchCapabilities { rss: None, ..rich }.emit().len(), 116);
        let bytes = rich.to_wire().write(1);
        assert_eq!(bytes.len(), 32);
        assert_meaning(&bytes, &NicSwitchCapabilities::default());
    }
}
