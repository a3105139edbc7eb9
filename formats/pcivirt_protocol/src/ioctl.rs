//! I/O control codes (SPEC-PCIVIRT §3.1, §10.1).

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `FILE_DEVICE_UNKNOWN`, the device type of every pcivirt code.
pub const FILE_DEVICE_UNKNOWN: u32 = 0x22;
/// `FILE_DEVICE_BUS_EXTENDER`, the device type of every vpci code.
pub const FILE_DEVICE_BUS_EXTENDER: u32 = 0x2A;
/// `FILE_READ_DATA`, the access every pcivirt code asks for.
pub const FILE_READ_DATA: u32 = 1;
/// `FILE_WRITE_DATA`.
pub const FILE_WRITE_DATA: u32 = 2;
/// `METHOD_BUFFERED`: one system buffer, input copied in, output copied out.
pub const METHOD_BUFFERED: u32 = 0;
/// `METHOD_NEITHER`: buffers are passed as they are.
pub const METHOD_NEITHER: u32 = 3;
/// Function number of pcivirt code 0; the codes count from 1.
pub const SRIOV_IOCTL_FUNCTION_BASE: u32 = 0x810;

/// An I/O control code: an open value; [`SriovIoctl::from_code`] gives it a meaning.
#[derive(
    Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct IoctlCode(pub u32);

const _: () = assert!(size_of::<IoctlCode>() == 4);

impl IoctlCode {
    /// A code from its parts: device type, function number, transfer method and access.
    pub const fn new(device_type: u32, function: u32, method: u32, access: u32) -> Self {
        Self((device_type << 16) | (access << 14) | (function << 2) | method)
    }

    /// The code of pcivirt request `index`. The header's macro is given a transfer method as well, and ignores it.
    const fn sriov(index: u32) -> Self {
        Self::new(
            FILE_DEVICE_UNKNOWN,
            SRIOV_IOCTL_FUNCTION_BASE + index,
            METHOD_BUFFERED,
            FILE_READ_DATA,
        )
    }

    const fn vpci(function: u32) -> Self {
        Self::new(
            FILE_DEVICE_BUS_EXTENDER,
            function,
            METHOD_NEITHER,
            FILE_READ_DATA | FILE_WRITE_DATA,
        )
    }

    /// Device type, bits 16 to 31.
    pub const fn device_type(self) -> u32 {
        self.0 >> 16
    }

    /// Access asked for, bits 14 and 15.
    pub const fn access(self) -> u32 {
        (self.0 >> 14) & 3
    }

    /// Function number, bits 2 to 13.
    pub const fn function(self) -> u32 {
        (self.0 >> 2) & 0xFFF
    }

    /// Transfer method, bits 0 and 1.
    pub const fn method(self) -> u32 {
        self.0 & 3
    }
}

impl fmt::Display for IoctlCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SriovIoctl::from_code(*self) {
            Some(ioctl) => f.write_str(ioctl.name()),
            None => write!(f, "IOCTL 0x{:08X}", self.0),
        }
    }
}

impl fmt::Debug for IoctlCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Long poll for the next PnP event of the PF.
pub const IOCTL_SRIOV_NOTIFICATION: IoctlCode = IoctlCode::sriov(1);
/// The client has dealt with the event.
pub const IOCTL_SRIOV_EVENT_COMPLETE: IoctlCode = IoctlCode::sriov(2);
/// Subscribe to PnP events of the PF.
pub const IOCTL_SRIOV_ATTACH: IoctlCode = IoctlCode::sriov(3);
/// End the subscription.
pub const IOCTL_SRIOV_DETACH: IoctlCode = IoctlCode::sriov(4);
/// Long poll for configuration blocks that a VF has to read again.
pub const IOCTL_SRIOV_INVALIDATE_BLOCK: IoctlCode = IoctlCode::sriov(5);
/// Number of mitigated ranges of each BAR.
pub const IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT: IoctlCode = IoctlCode::sriov(6);
/// The mitigated ranges of one BAR.
pub const IOCTL_SRIOV_QUERY_MITIGATED_RANGES: IoctlCode = IoctlCode::sriov(7);
/// Long poll for a change of a VF's mitigated ranges.
pub const IOCTL_SRIOV_MITIGATED_RANGE_UPDATE: IoctlCode = IoctlCode::sriov(8);
/// LUID of the physical device.
pub const IOCTL_SRIOV_PROXY_QUERY_LUID: IoctlCode = IoctlCode::sriov(9);

/// VF driver to guest VPCI bus: long poll for invalidated configuration blocks.
pub const IOCTL_VPCI_INVALIDATE_BLOCK: IoctlCode = IoctlCode::vpci(1);
/// VF driver to guest VPCI bus: read a configuration block.
pub const IOCTL_VPCI_READ_BLOCK: IoctlCode = IoctlCode::vpci(2);
/// VF driver to guest VPCI bus: write a configuration block.
pub const IOCTL_VPCI_WRITE_BLOCK: IoctlCode = IoctlCode::vpci(3);

const _: () = {
    assert!(IOCTL_SRIOV_NOTIFICATION.0 == 0x0022_6044);
    assert!(IOCTL_SRIOV_EVENT_COMPLETE.0 == 0x0022_6048);
    assert!(IOCTL_SRIOV_ATTACH.0 == 0x0022_604C);
    assert!(IOCTL_SRIOV_DETACH.0 == 0x0022_6050);
    assert!(IOCTL_SRIOV_INVALIDATE_BLOCK.0 == 0x0022_6054);
    assert!(IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT.0 == 0x0022_6058);
    assert!(IOCTL_SRIOV_QUERY_MITIGATED_RANGES.0 == 0x0022_605C);
    assert!(IOCTL_SRIOV_MITIGATED_RANGE_UPDATE.0 == 0x0022_6060);
    assert!(IOCTL_SRIOV_PROXY_QUERY_LUID.0 == 0x0022_6064);
    assert!(IOCTL_VPCI_INVALIDATE_BLOCK.0 == 0x002A_C007);
    assert!(IOCTL_VPCI_READ_BLOCK.0 == 0x002A_C00B);
    assert!(IOCTL_VPCI_WRITE_BLOCK.0 == 0x002A_C00F);
};

/// The nine requests of the contract.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SriovIoctl {
    /// [`IOCTL_SRIOV_NOTIFICATION`].
    Notification,
    /// [`IOCTL_SRIOV_EVENT_COMPLETE`].
    EventComplete,
    /// [`IOCTL_SRIOV_ATTACH`].
    Attach,
    /// [`IOCTL_SRIOV_DETACH`].
    Detach,
    /// [`IOCTL_SRIOV_INVALIDATE_BLOCK`].
    InvalidateBlock,
    /// [`IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT`].
    QueryMitigatedRangeCount,
    /// [`IOCTL_SRIOV_QUERY_MITIGATED_RANGES`].
    QueryMitigatedRanges,
    /// [`IOCTL_SRIOV_MITIGATED_RANGE_UPDATE`].
    MitigatedRangeUpdate,
    /// [`IOCTL_SRIOV_PROXY_QUERY_LUID`].
    ProxyQueryLuid,
}

impl SriovIoctl {
    /// All nine, in the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Notification,
        Self::EventComplete,
        Self::Attach,
        Self::Detach,
        Self::InvalidateBlock,
        Self::QueryMitigatedRangeCount,
        Self::QueryMitigatedRanges,
        Self::MitigatedRangeUpdate,
        Self::ProxyQueryLuid,
    ];

    /// The request a code stands for, or `None` for a code that is not of this contract.
    pub const fn from_code(code: IoctlCode) -> Option<Self> {
        Some(match code {
            IoctlCode(c) if c == IOCTL_SRIOV_NOTIFICATION.0 => Self::Notification,
            IoctlCode(c) if c == IOCTL_SRIOV_EVENT_COMPLETE.0 => Self::EventComplete,
            IoctlCode(c) if c == IOCTL_SRIOV_ATTACH.0 => Self::Attach,
            IoctlCode(c) if c == IOCTL_SRIOV_DETACH.0 => Self::Detach,
            IoctlCode(c) if c == IOCTL_SRIOV_INVALIDATE_BLOCK.0 => Self::InvalidateBlock,
            IoctlCode(c) if c == IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT.0 => {
                Self::QueryMitigatedRangeCount
            }
            IoctlCode(c) if c == IOCTL_SRIOV_QUERY_MITIGATED_RANGES.0 => Self::QueryMitigatedRanges,
            IoctlCode(c) if c == IOCTL_SRIOV_MITIGATED_RANGE_UPDATE.0 => Self::MitigatedRangeUpdate,
            IoctlCode(c) if c == IOCTL_SRIOV_PROXY_QUERY_LUID.0 => Self::ProxyQueryLuid,
            _ => return None,
        })
    }

    /// The code of the request.
    pub const fn code(self) -> IoctlCode {
        match self {
            Self::Notification => IOCTL_SRIOV_NOTIFICATION,
            Self::EventComplete => IOCTL_SRIOV_EVENT_COMPLETE,
            Self::Attach => IOCTL_SRIOV_ATTACH,
            Self::Detach => IOCTL_SRIOV_DETACH,
            Self::InvalidateBlock => IOCTL_SRIOV_INVALIDATE_BLOCK,
            Self::QueryMitigatedRangeCount => IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT,
            Self::QueryMitigatedRanges => IOCTL_SRIOV_QUERY_MITIGATED_RANGES,
            Self::MitigatedRangeUpdate => IOCTL_SRIOV_MITIGATED_RANGE_UPDATE,
            Self::ProxyQueryLuid => IOCTL_SRIOV_PROXY_QUERY_LUID,
        }
    }

    /// The published name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Notification => "IOCTL_SRIOV_NOTIFICATION",
            Self::EventComplete => "IOCTL_SRIOV_EVENT_COMPLETE",
            Self::Attach => "IOCTL_SRIOV_ATTACH",
            Self::Detach => "IOCTL_SRIOV_DETACH",
            Self::InvalidateBlock => "IOCTL_SRIOV_INVALIDATE_BLOCK",
            Self::QueryMitigatedRangeCount => "IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT",
            Self::QueryMitigatedRanges => "IOCTL_SRIOV_QUERY_MITIGATED_RANGES",
            Self::MitigatedRangeUpdate => "IOCTL_SRIOV_MITIGATED_RANGE_UPDATE",
            Self::ProxyQueryLuid => "IOCTL_SRIOV_PROXY_QUERY_LUID",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_found_by_its_code() {
        for (index, ioctl) in (1..).zip(SriovIoctl::ALL) {
            assert_eq!(SriovIoctl::from_code(ioctl.code()), Some(ioctl));
            let code = ioctl.code();
            assert_eq!(code.device_type(), FILE_DEVICE_UNKNOWN);
            assert_eq!(code.access(), FILE_READ_DATA);
            assert_eq!(code.method(), METHOD_BUFFERED);
            assert_eq!(code.function(), SRIOV_IOCTL_FUNCTION_BASE + index);
            assert_eq!(code.to_string(), ioctl.name());
        }
        assert_eq!(SriovIoctl::from_code(IOCTL_VPCI_READ_BLOCK), None);
        assert_eq!(IOCTL_VPCI_READ_BLOCK.to_string(), "IOCTL 0x002AC00B");
    }
}
