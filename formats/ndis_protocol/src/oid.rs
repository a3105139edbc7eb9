//! OIDs of SR-IOV, NIC switch, VPort and receive filter, and the kinds of request (SPEC-NDIS-SRIOV §0.3, §5).

use core::fmt;

/// How an OID is asked: what the information buffer carries, and in which direction.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[repr(u32)]
pub enum RequestKind {
    /// Output only (NdisRequestQueryInformation).
    Query = 0,
    /// Input only (NdisRequestSetInformation).
    Set = 1,
    /// Output only, counters (NdisRequestQueryStatistics).
    QueryStatistics = 2,
    /// Input, and output in the same buffer (NdisRequestMethod).
    Method = 12,
}

impl RequestKind {
    /// Reads the wire value.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Query),
            1 => Some(Self::Set),
            2 => Some(Self::QueryStatistics),
            12 => Some(Self::Method),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Set => "set",
            Self::QueryStatistics => "query statistics",
            Self::Method => "method",
        })
    }
}

/// Who answers an OID (column "By" of SPEC-NDIS-SRIOV §5).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum HandledBy {
    /// NDIS, from its cache.
    Ndis,
    /// The PF miniport driver.
    PfMiniport,
    /// A query is answered by NDIS, a set by the PF miniport driver.
    NdisAndPfMiniport,
    /// The VF miniport driver, or NDIS, in the guest.
    Guest,
}

/// Who may send an OID (column "Issuer" of SPEC-NDIS-SRIOV §5).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Issuer {
    /// Any overlying driver.
    Overlying,
    /// NDIS itself and nobody else.
    NdisOnly,
    /// A driver or NDIS in the guest; never seen by a PF's NDIS.
    Guest,
}

macro_rules! oids {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, [$($kind:ident),+], $by:ident, $issuer:ident;)*) => {
        /// One OID of the catalogue of SPEC-NDIS-SRIOV §5.
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Debug)]
        #[repr(u32)]
        pub enum Oid {
            $($(#[$doc])* $variant = $code,)*
        }

        impl Oid {
            /// Every OID of the catalogue, in the order of SPEC-NDIS-SRIOV §5.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The OID with this code, if it is in the catalogue.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The published name, such as "OID_NIC_SWITCH_ALLOCATE_VF".
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!("OID_", $name),)*
                }
            }

            /// The kinds of request that the OID may be asked with.
            #[must_use]
            pub const fn kinds(self) -> &'static [RequestKind] {
                match self {
                    $(Self::$variant => &[$(RequestKind::$kind),+],)*
                }
            }

            /// Who answers it.
            #[must_use]
            pub const fn handled_by(self) -> HandledBy {
                match self {
                    $(Self::$variant => HandledBy::$by,)*
                }
            }

            /// Who may send it.
            #[must_use]
            pub const fn issuer(self) -> Issuer {
                match self {
                    $(Self::$variant => Issuer::$issuer,)*
                }
            }
        }
    };
}

oids! {
    /// What the card's NIC switch can do at all.
    NicSwitchHardwareCapabilities = 0x0001_022E, "NIC_SWITCH_HARDWARE_CAPABILITIES", [Query], Ndis, Overlying;
    /// What of it is enabled now.
    NicSwitchCurrentCapabilities = 0x0001_022F, "NIC_SWITCH_CURRENT_CAPABILITIES", [Query], Ndis, Overlying;
    /// Creates the NIC switch and its default VPort.
    NicSwitchCreateSwitch = 0x0001_0237, "NIC_SWITCH_CREATE_SWITCH", [Method], PfMiniport, NdisOnly;
    /// Parameters of a NIC switch: query by method, change by set.
    NicSwitchParameters = 0x0001_0238, "NIC_SWITCH_PARAMETERS", [Method, Set], NdisAndPfMiniport, Overlying;
    /// Deletes the NIC switch.
    NicSwitchDeleteSwitch = 0x0001_0239, "NIC_SWITCH_DELETE_SWITCH", [Set], PfMiniport, NdisOnly;
    /// Lists NIC switches.
    NicSwitchEnumSwitches = 0x0001_0240, "NIC_SWITCH_ENUM_SWITCHES", [Query], Ndis, Overlying;
    /// Creates a nondefault VPort.
    NicSwitchCreateVport = 0x0001_0241, "NIC_SWITCH_CREATE_VPORT", [Method], PfMiniport, Overlying;
    /// Parameters of a VPort: query by method, change by set.
    NicSwitchVportParameters = 0x0001_0242, "NIC_SWITCH_VPORT_PARAMETERS", [Method, Set], NdisAndPfMiniport, Overlying;
    /// Lists VPorts.
    NicSwitchEnumVports = 0x0001_0243, "NIC_SWITCH_ENUM_VPORTS", [Method], Ndis, Overlying;
    /// Deletes a nondefault VPort.
    NicSwitchDeleteVport = 0x0001_0244, "NIC_SWITCH_DELETE_VPORT", [Set], PfMiniport, Overlying;
    /// Allocates a VF for one VM.
    NicSwitchAllocateVf = 0x0001_0245, "NIC_SWITCH_ALLOCATE_VF", [Method], PfMiniport, Overlying;
    /// Frees a VF.
    NicSwitchFreeVf = 0x0001_0246, "NIC_SWITCH_FREE_VF", [Set], PfMiniport, Overlying;
    /// Parameters of an allocated VF.
    NicSwitchVfParameters = 0x0001_0247, "NIC_SWITCH_VF_PARAMETERS", [Method], Ndis, Overlying;
    /// Lists allocated VFs.
    NicSwitchEnumVfs = 0x0001_0248, "NIC_SWITCH_ENUM_VFS", [Method], Ndis, Overlying;
    /// Whether the card does SR-IOV at all.
    SriovHardwareCapabilities = 0x0001_0249, "SRIOV_HARDWARE_CAPABILITIES", [Query], Ndis, Overlying;
    /// Whether SR-IOV is enabled now.
    SriovCurrentCapabilities = 0x0001_0250, "SRIOV_CURRENT_CAPABILITIES", [Query], Ndis, Overlying;
    /// Reads from a VF's configuration space.
    SriovReadVfConfigSpace = 0x0001_0251, "SRIOV_READ_VF_CONFIG_SPACE", [Method], PfMiniport, Overlying;
    /// Writes to a VF's configuration space.
    SriovWriteVfConfigSpace = 0x0001_0252, "SRIOV_WRITE_VF_CONFIG_SPACE", [Set], PfMiniport, Overlying;
    /// Reads a configuration block of the PF/VF backchannel.
    SriovReadVfConfigBlock = 0x0001_0253, "SRIOV_READ_VF_CONFIG_BLOCK", [Method], PfMiniport, Overlying;
    /// Writes a configuration block of the PF/VF backchannel.
    SriovWriteVfConfigBlock = 0x0001_0254, "SRIOV_WRITE_VF_CONFIG_BLOCK", [Set], PfMiniport, Overlying;
    /// Function level reset of one VF.
    SriovResetVf = 0x0001_0255, "SRIOV_RESET_VF", [Set], PfMiniport, Overlying;
    /// Sets a VF's device power state.
    SriovSetVfPowerState = 0x0001_0256, "SRIOV_SET_VF_POWER_STATE", [Set], PfMiniport, Overlying;
    /// Vendor and device id that the guest sees.
    SriovVfVendorDeviceId = 0x0001_0257, "SRIOV_VF_VENDOR_DEVICE_ID", [Method], PfMiniport, Overlying;
    /// What the VF BARs read back after writing all ones.
    SriovProbedBars = 0x0001_0258, "SRIOV_PROBED_BARS", [Query], PfMiniport, NdisOnly;
    /// Physical address and length of one BAR of one VF.
    SriovBarResources = 0x0001_0259, "SRIOV_BAR_RESOURCES", [Method], PfMiniport, NdisOnly;
    /// The PF's locally unique identifier.
    SriovPfLuid = 0x0001_0260, "SRIOV_PF_LUID", [Query], Ndis, Overlying;
    /// Semantics not public.
    SriovConfigState = 0x0001_0261, "SRIOV_CONFIG_STATE", [Set], Guest, Guest;
    /// The serial number that pairs a VF with its software NIC, asked in the guest.
    SriovVfSerialNumber = 0x0001_0262, "SRIOV_VF_SERIAL_NUMBER", [Query], Guest, Guest;
    /// Semantics not public.
    SriovOverlyingAdapterInfo = 0x0001_0268, "SRIOV_OVERLYING_ADAPTER_INFO", [Set], Guest, Guest;
    /// Tells a VF driver which configuration blocks to read again.
    SriovVfInvalidateConfigBlock = 0x0001_0269, "SRIOV_VF_INVALIDATE_CONFIG_BLOCK", [Method], Guest, Guest;
    /// What the card can filter on.
    ReceiveFilterHardwareCapabilities = 0x0001_0221, "RECEIVE_FILTER_HARDWARE_CAPABILITIES", [Query], Ndis, Overlying;
    /// The filter and queue types in use.
    ReceiveFilterGlobalParameters = 0x0001_0222, "RECEIVE_FILTER_GLOBAL_PARAMETERS", [Query], Ndis, Overlying;
    /// Allocates a VM queue (VMQ mode).
    ReceiveFilterAllocateQueue = 0x0001_0223, "RECEIVE_FILTER_ALLOCATE_QUEUE", [Method], PfMiniport, Overlying;
    /// Frees a VM queue (VMQ mode).
    ReceiveFilterFreeQueue = 0x0001_0224, "RECEIVE_FILTER_FREE_QUEUE", [Set], PfMiniport, Overlying;
    /// Lists VM queues (VMQ mode).
    ReceiveFilterEnumQueues = 0x0001_0225, "RECEIVE_FILTER_ENUM_QUEUES", [Query], Ndis, Overlying;
    /// Parameters of a VM queue: query by method, change by set (VMQ mode).
    ReceiveFilterQueueParameters = 0x0001_0226, "RECEIVE_FILTER_QUEUE_PARAMETERS", [Method, Set], NdisAndPfMiniport, Overlying;
    /// Sets a receive filter.
    ReceiveFilterSetFilter = 0x0001_0227, "RECEIVE_FILTER_SET_FILTER", [Method], PfMiniport, Overlying;
    /// Clears a receive filter.
    ReceiveFilterClearFilter = 0x0001_0228, "RECEIVE_FILTER_CLEAR_FILTER", [Set], PfMiniport, Overlying;
    /// Lists receive filters.
    ReceiveFilterEnumFilters = 0x0001_0229, "RECEIVE_FILTER_ENUM_FILTERS", [Method], Ndis, Overlying;
    /// Parameters and tests of one receive filter.
    ReceiveFilterParameters = 0x0001_022A, "RECEIVE_FILTER_PARAMETERS", [Method], Ndis, Overlying;
    /// Tells that the allocation of VM queues is over (VMQ mode).
    ReceiveFilterQueueAllocationComplete = 0x0001_022B, "RECEIVE_FILTER_QUEUE_ALLOCATION_COMPLETE", [Method], PfMiniport, Overlying;
    /// What receive filtering is enabled now.
    ReceiveFilterCurrentCapabilities = 0x0001_022D, "RECEIVE_FILTER_CURRENT_CAPABILITIES", [Query], Ndis, Overlying;
    /// Moves a receive filter to another VPort, atomically.
    ReceiveFilterMoveFilter = 0x0001_0230, "RECEIVE_FILTER_MOVE_FILTER", [Set], PfMiniport, Overlying;
}

impl Oid {
    /// The OID's code.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// Whether the OID may be asked with this kind of request.
    #[must_use]
    pub fn allows(self, kind: RequestKind) -> bool {
        self.kinds().contains(&kind)
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_catalogue_has_every_oid_once() {
        assert_eq!(Oid::ALL.len(), 43);
        for (index, oid) in Oid::ALL.iter().enumerate() {
            assert_eq!(Oid::from_code(oid.code()), Some(*oid));
            assert!(oid.name().starts_with("OID_"));
            for other in &Oid::ALL[..index] {
                assert_ne!(oid.code(), other.code());
                assert_ne!(oid.name(), other.name());
            }
        }
    }

    #[test]
    fn names_are_the_published_ones() {
        assert_eq!(Oid::NicSwitchAllocateVf.name(), "OID_NIC_SWITCH_ALLOCATE_VF");
        assert_eq!(Oid::from_code(0x0001_0230), Some(Oid::ReceiveFilterMoveFilter));
        assert_eq!(Oid::from_code(0x0001_0101), None);
    }

    #[test]
    fn only_parameters_oids_have_two_kinds() {
        for oid in Oid::ALL {
            let two = oid.handled_by() == HandledBy::NdisAndPfMiniport;
            assert_eq!(oid.kinds().len(), if two { 2 } else { 1 }, "{oid}");
        }
    }

    proptest! {
        #[test]
        fn codes_and_kinds_are_open_on_the_wire(code: u32, kind: u32) {
            prop_assert!(Oid::from_code(code).is_none_or(|oid| oid.code() == code));
            prop_assert!(RequestKind::from_wire(kind).is_none_or(|k| k.to_wire() == kind));
        }
    }
}
