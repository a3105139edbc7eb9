//! Reasons that lie in the host and in the physical NIC (SPEC-MANAGEMENT §2.1, §3.1).

use core::fmt;
use serde::{Deserialize, Serialize};

/// What the platform lacks. The complete published list.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum HostReason {
    /// No second-level address translation.
    NoSlat,
    /// The IOMMU cannot remap interrupts.
    NoInterruptRemapping,
    /// The IOMMU cannot remap DMA.
    NoDmaRemapping,
    /// There is an IOMMU, and the system is configured not to use it.
    IommuDisabledByConfig,
    /// Chipset or firmware settings do not show an IOMMU.
    CheckChipsetAndBios,
    /// The firmware describes the hardware wrongly.
    FirmwareTablesWrong,
    /// No PCI Express bus.
    NoPciExpressBus,
    /// The firmware keeps control of PCI Express (_OSC).
    NoOscControl,
    /// No root port has ACS.
    NoAcsAtRootPorts,
}

impl HostReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NoSlat,
        Self::NoInterruptRemapping,
        Self::NoDmaRemapping,
        Self::IommuDisabledByConfig,
        Self::CheckChipsetAndBios,
        Self::FirmwareTablesWrong,
        Self::NoPciExpressBus,
        Self::NoOscControl,
        Self::NoAcsAtRootPorts,
    ];
}

impl fmt::Display for HostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlat => "the processor has no second-level address translation (EPT or NPT)",
            Self::NoInterruptRemapping => "the chipset cannot remap interrupts",
            Self::NoDmaRemapping => "the chipset cannot remap DMA",
            Self::IommuDisabledByConfig => "the system is configured not to use the IOMMU",
            Self::CheckChipsetAndBios => {
                "no IOMMU is to be seen: the chipset or the firmware settings lack I/O virtualization"
            }
            Self::FirmwareTablesWrong => "the firmware describes the IOMMU wrongly",
            Self::NoPciExpressBus => "the machine reports no PCI Express bus",
            Self::NoOscControl => {
                "the firmware does not hand control of PCI Express to the system (_OSC)"
            }
            Self::NoAcsAtRootPorts => "no root port has access control services (ACS)",
        })
    }
}

/// SriovSupport of a physical NIC, with its published numbers (SPEC-MANAGEMENT §3.1).
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub enum SriovSupport {
    /// 0: undetermined.
    Unknown = 0,
    /// 1: nothing stands against it.
    #[default]
    Supported = 1,
    /// 2: the path to it lacks ACS.
    MissingAcs = 2,
    /// 3: the device or its driver does not do SR-IOV.
    MissingPfDriver = 3,
    /// 4: not enough PCI Express bus numbers.
    NoBusResources = 4,
    /// 5: no SLAT, or no remapping of interrupts or DMA, or remapping is off.
    NoIoMmuSupport = 5,
    /// 6: not enough address space for the BARs of VFs.
    NoVfBarSpace = 6,
    /// 7: the firmware does not hand over control of PCI Express.
    NoOscSupport = 7,
}

impl SriovSupport {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Supported,
        Self::MissingAcs,
        Self::MissingPfDriver,
        Self::NoBusResources,
        Self::NoIoMmuSupport,
        Self::NoVfBarSpace,
        Self::NoOscSupport,
    ];
}

impl fmt::Display for SriovSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "it is not known whether it can do SR-IOV",
            Self::Supported => "it can do SR-IOV",
            Self::MissingAcs => "the path to it lacks access control services (ACS)",
            Self::MissingPfDriver => "the device or its driver does not do SR-IOV",
            Self::NoBusResources => "there are not enough PCI Express bus numbers for its VFs",
            Self::NoIoMmuSupport => "the host has no working IOMMU for it",
            Self::NoVfBarSpace => "there is not enough address space for the BARs of its VFs",
            Self::NoOscSupport => "the firmware does not hand over control of PCI Express",
        })
    }
}
