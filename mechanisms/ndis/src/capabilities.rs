//! Capabilities of an adapter: what the card can do, checked against the rules of SPEC-NDIS-SRIOV §2, and what of it
//! is enabled.

use ndis_protocol::{
    FilterHeaders, FilterTests, FilterTypes, MacHeaderFields, NicSwitchCapabilities,
    NicSwitchCapabilityFlags, QueueProperties, QueueTypes, ReceiveFilterCapabilities,
    SriovCapabilities,
};
use thiserror::Error;

use crate::{ActiveFeatures, Keywords, PfMiniport};

/// A rule that the capabilities of a PF miniport driver break. Such a driver is not started.
#[derive(Copy, Clone, Debug, Eq, Error, PartialEq)]
pub enum CapabilityFault {
    /// The driver is that of a VF.
    #[error("it reports SR-IOV capabilities {0:#x} of a VF; a PF miniport driver reports 0x3")]
    NotAPf(u32),
    /// MaxNumSwitches.
    #[error("it reports {0} NIC switches; there must be 1")]
    Switches(u32),
    /// MaxNumVPorts.
    #[error(
        "it reports {vports} VPorts for {vfs} VFs; there must be one for each and the default one"
    )]
    VPorts {
        /// MaxNumVPorts.
        vports: u32,
        /// MaxNumVFs.
        vfs: u32,
    },
    /// MaxNumQueuePairs.
    #[error("it reports {pairs} queue pairs for {vports} VPorts; there must be one for each")]
    QueuePairs {
        /// MaxNumQueuePairs.
        pairs: u32,
        /// MaxNumVPorts.
        vports: u32,
    },
    /// A number that is not a power of two.
    #[error("{member} is {value}; it must be a power of two")]
    PowerOfTwo {
        /// The member.
        member: &'static str,
        /// Its value.
        value: u32,
    },
    /// MaxNumMacAddresses.
    #[error("it reports {filters} unicast filters for {vports} VPorts; there must be one for each")]
    MacAddresses {
        /// MaxNumMacAddresses.
        filters: u32,
        /// MaxNumVPorts.
        vports: u32,
    },
    /// Hash flags that do not go together.
    #[error("per-VPort hash function, type and key come all together or not at all")]
    HashFlags,
    /// Receive filters.
    #[error("its receive filter capabilities lack {0}, which SR-IOV needs")]
    ReceiveFilter(&'static str),
}

/// What an adapter can do.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct HardwareCapabilities {
    /// SR-IOV.
    pub sriov: SriovCapabilities,
    /// NIC switch.
    pub nic_switch: NicSwitchCapabilities,
    /// Receive filters.
    pub receive_filter: ReceiveFilterCapabilities,
}

impl HardwareCapabilities {
    pub(crate) fn of(miniport: &impl PfMiniport) -> Self {
        Self {
            sriov: miniport.sriov_capabilities(),
            nic_switch: miniport.nic_switch_capabilities(),
            receive_filter: miniport.receive_filter_capabilities(),
        }
    }

    /// Whether the card does SR-IOV.
    #[must_use]
    pub const fn does_sriov(&self) -> bool {
        self.sriov.contains(SriovCapabilities::SRIOV_SUPPORTED)
    }

    /// Checks the rules of SPEC-NDIS-SRIOV §2.1–§2.3; a card without SR-IOV has none to keep.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), CapabilityFault> {
        if !self.does_sriov() {
            return Ok(());
        }
        if self.sriov.contains(SriovCapabilities::VF_MINIPORT)
            || !self.sriov.contains(SriovCapabilities::PF_MINIPORT)
        {
            return Err(CapabilityFault::NotAPf(self.sriov.bits()));
        }
        self.check_switch()?;
        self.check_receive_filter()
    }

    fn check_switch(&self) -> Result<(), CapabilityFault> {
        let NicSwitchCapabilities {
            flags,
            max_num_switches,
            max_num_vports: vports,
            max_num_vfs: vfs,
            max_num_queue_pairs: pairs,
            max_num_queue_pairs_per_non_default_vport: per_vport,
            max_num_mac_addresses: filters,
            rss,
        } = self.nic_switch;
        if max_num_switches != 1 {
            return Err(CapabilityFault::Switches(max_num_switches));
        }
        if vports <= vfs {
            return Err(CapabilityFault::VPorts { vports, vfs });
        }
        if pairs < vports {
            return Err(CapabilityFault::QueuePairs { pairs, vports });
        }
        if filters < vports {
            return Err(CapabilityFault::MacAddresses { filters, vports });
        }
        let default_vport = rss.map_or(1, |rss| rss.max_num_queue_pairs_for_default_vport);
        for (member, value) in [
            ("MaxNumQueuePairsPerNonDefaultVPort", per_vport),
            ("MaxNumQueuePairsForDefaultVPort", default_vport),
        ] {
            if !value.is_power_of_two() {
                return Err(CapabilityFault::PowerOfTwo { member, value });
            }
        }
        let hash = NicSwitchCapabilityFlags::RSS_PER_PF_VPORT_HASH_FUNCTION
            | NicSwitchCapabilityFlags::RSS_PER_PF_VPORT_HASH_TYPE
            | NicSwitchCapabilityFlags::RSS_PER_PF_VPORT_HASH_KEY;
        if flags.intersects(hash) && !flags.contains(hash) {
            return Err(CapabilityFault::HashFlags);
        }
        Ok(())
    }

    fn check_receive_filter(&self) -> Result<(), CapabilityFault> {
        let filter = &self.receive_filter;
        for (holds, what) in [
            (
                filter.enabled_filter_types.contains(FilterTypes::VMQ_FILTERS_ENABLED),
                "VM queue filters",
            ),
            (
                !filter.enabled_queue_types.contains(QueueTypes::VM_QUEUES_ENABLED)
                    && filter.num_queues == 0,
                "the absence of VM queues, whose role VPorts have",
            ),
            (
                filter.supported_queue_properties.contains(QueueProperties::REQUIRED_FOR_SRIOV),
                "queue properties",
            ),
            (filter.supported_filter_tests.contains(FilterTests::EQUAL), "the test for equality"),
            (filter.supported_headers.contains(FilterHeaders::MAC), "tests of the MAC header"),
            (
                filter.supported_mac_header_fields.contains(MacHeaderFields::DEST_ADDR),
                "tests of the destination address",
            ),
        ] {
            if !holds {
                return Err(CapabilityFault::ReceiveFilter(what));
            }
        }
        Ok(())
    }

    /// Receive filters that there can be.
    pub(crate) fn max_filters(&self) -> u32 {
        self.nic_switch.max_num_mac_addresses.min(self.receive_filter.max_mac_header_filters)
    }

    /// Queue pairs that the default VPort can have.
    pub(crate) fn max_default_vport_queue_pairs(&self) -> u32 {
        self.nic_switch.rss.map_or(1, |rss| rss.max_num_queue_pairs_for_default_vport)
    }
}

/// What of an adapter is enabled: with SR-IOV active, what the keywords leave of the card.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct CurrentCapabilities {
    /// SR-IOV.
    pub sriov: SriovCapabilities,
    /// NIC switch.
    pub nic_switch: NicSwitchCapabilities,
    /// Receive filters.
    pub receive_filter: ReceiveFilterCapabilities,
}

impl CurrentCapabilities {
    /// What is enabled; `None` without SR-IOV. `num_vfs` are the VFs of the switch, or those it will have.
    pub(crate) fn derive(
        hardware: &HardwareCapabilities,
        features: ActiveFeatures,
        keywords: &Keywords,
        num_vfs: u32,
    ) -> Option<Self> {
        if !features.sriov {
            return None;
        }
        let mut current = Self {
            sriov: hardware.sriov,
            nic_switch: hardware.nic_switch,
            receive_filter: hardware.receive_filter,
        };
        current.nic_switch.max_num_vfs = hardware.nic_switch.max_num_vfs.min(num_vfs);
        let fields = &mut current.receive_filter.supported_mac_header_fields;
        if !keywords.vmq_vlan_filtering {
            fields.remove(MacHeaderFields::VLAN_ID);
        }
        if !fields.contains(MacHeaderFields::VLAN_ID) {
            current.nic_switch.flags.remove(NicSwitchCapabilityFlags::VLAN_SUPPORTED);
        }
        if !keywords.rss_on_host_vports {
            type Flags = NicSwitchCapabilityFlags;
            current.nic_switch.flags.remove(
                Flags::RSS_ON_PF_VPORTS
                    | Flags::RSS_PARAMETERS_PER_PF_VPORT
                    | Flags::RSS_PER_PF_VPORT_INDIRECTION_TABLE
                    | Flags::RSS_PER_PF_VPORT_HASH_FUNCTION
                    | Flags::RSS_PER_PF_VPORT_HASH_TYPE
                    | Flags::RSS_PER_PF_VPORT_HASH_KEY
                    | Flags::RSS_PER_PF_VPORT_INDIRECTION_TABLE_SIZE_RESTRICTED,
            );
        }
        Some(current)
    }

    /// Whether VLANs are filtered in hardware.
    #[must_use]
    pub const fn filters_vlans(&self) -> bool {
        self.receive_filter.supported_mac_header_fields.contains(MacHeaderFields::VLAN_ID)
    }

    pub(crate) const fn has(&self, flag: NicSwitchCapabilityFlags) -> bool {
        self.nic_switch.flags.contains(flag)
    }

    /// How many VPorts of the PF there can be besides the default one (SPEC-NDIS-SRIOV §2.2, VPort budget).
    pub(crate) const fn max_nondefault_pf_vports(&self) -> u32 {
        let nondefault = self.nic_switch.max_num_vports.saturating_sub(1);
        if self.has(NicSwitchCapabilityFlags::SINGLE_VPORT_POOL) {
            nondefault
        } else {
            nondefault.saturating_sub(self.nic_switch.max_num_vfs)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample_hardware;
    use ndis_protocol::NicSwitchRssCapabilities;

    #[test]
    fn a_card_that_keeps_the_rules_is_accepted() {
        assert_eq!(sample_hardware().check(), Ok(()));
        assert_eq!(HardwareCapabilities::default().check(), Ok(()), "no SR-IOV, no rules");
    }

    #[test]
    fn each_rule_is_held() {
        type Break = fn(&mut HardwareCapabilities);
        let breaks: [(Break, CapabilityFault); 11] = [
            (|c| c.sriov = SriovCapabilities::VF, CapabilityFault::NotAPf(5)),
            (|c| c.nic_switch.max_num_switches = 2, CapabilityFault::Switches(2)),
            (|c| c.nic_switch.max_num_vports = 4, CapabilityFault::VPorts { vports: 4, vfs: 4 }),
            (
                |c| c.nic_switch.max_num_queue_pairs = 7,
                CapabilityFault::QueuePairs { pairs: 7, vports: 8 },
            ),
            (
                |c| c.nic_switch.max_num_mac_addresses = 7,
                CapabilityFault::MacAddresses { filters: 7, vports: 8 },
            ),
            (
                |c| c.nic_switch.max_num_queue_pairs_per_non_default_vport = 3,
                CapabilityFault::PowerOfTwo {
                    member: "MaxNumQueuePairsPerNonDefaultVPort",
                    value: 3,
                },
            ),
            (
                |c| c.nic_switch.rss = Some(NicSwitchRssCapabilities::default()),
                CapabilityFault::PowerOfTwo { member: "MaxNumQueuePairsForDefaultVPort", value: 0 },
            ),
            (
                |c| {
                    c.nic_switch.flags |= NicSwitchCapabilityFlags::RSS_PER_PF_VPORT_HASH_KEY;
                },
                CapabilityFault::HashFlags,
            ),
            (
                |c| c.receive_filter.num_queues = 1,
                CapabilityFault::ReceiveFilter("the absence of VM queues, whose role VPorts have"),
            ),
            (
                |c| c.receive_filter.supported_queue_properties = QueueProperties::MSI_X,
                CapabilityFault::ReceiveFilter("queue properties"),
            ),
            (
                |c| c.receive_filter.supported_filter_tests = FilterTests::NOT_EQUAL,
                CapabilityFault::ReceiveFilter("the test for equality"),
            ),
        ];
        for (break_it, fault) in breaks {
            let mut capabilities = sample_hardware();
            break_it(&mut capabilities);
            assert_eq!(capabilities.check(), Err(fault));
        }
    }

    #[test]
    fn without_sriov_nothing_is_enabled() {
        let features = ActiveFeatures { vmq: true, ..Default::default() };
        let keywords = Keywords::default();
        assert_eq!(CurrentCapabilities::derive(&sample_hardware(), features, &keywords, 4), None);
    }

    #[test]
    fn what_the_keywords_switch_off_is_not_enabled() {
        let features = ActiveFeatures { sriov: true, ..Default::default() };
        let keywords = Keywords {
            vmq_vlan_filtering: false,
            rss_on_host_vports: false,
            ..Keywords::default()
        };
        let hardware = sample_hardware();
        let current = CurrentCapabilities::derive(&hardware, features, &keywords, 2).unwrap();
        assert!(!current.filters_vlans());
        assert_eq!(current.nic_switch.max_num_vfs, 2);
        let gone =
            NicSwitchCapabilityFlags::VLAN_SUPPORTED | NicSwitchCapabilityFlags::RSS_ON_PF_VPORTS;
        assert_eq!(current.nic_switch.flags, hardware.nic_switch.flags - gone);
        assert_eq!(current.max_nondefault_pf_vports(), 5);
    }
}
