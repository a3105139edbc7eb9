//! NTSTATUS values (SPEC-PCIVIRT §0.2).

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An NTSTATUS: an open value, so that a status this list does not name still passes through unchanged.
///
/// The two top bits are the severity: 0 success, 1 informational, 2 warning, 3 error. As in the `NT_SUCCESS` test,
/// success and informational values count as success; [`NtStatus::PENDING`] is such a value.
#[derive(
    Copy,
    Clone,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct NtStatus(pub u32);

const _: () = assert!(size_of::<NtStatus>() == 4);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl NtStatus {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every status that has a name here, in ascending order of value.
            pub const NAMED: &'static [Self] = &[$(Self::$name),*];

            /// The published name, if this list has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// The request did what it asked for.
    SUCCESS = 0x0000_0000, "STATUS_SUCCESS";
    /// The request is held and will be completed later.
    PENDING = 0x0000_0103, "STATUS_PENDING";
    /// The device is busy with something that excludes the request.
    DEVICE_BUSY = 0x8000_0011, "STATUS_DEVICE_BUSY";
    /// The request failed for a reason that has no status of its own.
    UNSUCCESSFUL = 0xC000_0001, "STATUS_UNSUCCESSFUL";
    /// A member of the request has a value that it may not have.
    INVALID_PARAMETER = 0xC000_000D, "STATUS_INVALID_PARAMETER";
    /// The device does not exist.
    NO_SUCH_DEVICE = 0xC000_000E, "STATUS_NO_SUCH_DEVICE";
    /// The request is not one this device knows, or not one for this object.
    INVALID_DEVICE_REQUEST = 0xC000_0010, "STATUS_INVALID_DEVICE_REQUEST";
    /// The sender may not do this.
    ACCESS_DENIED = 0xC000_0022, "STATUS_ACCESS_DENIED";
    /// A buffer is shorter than the structure it has to hold.
    BUFFER_TOO_SMALL = 0xC000_0023, "STATUS_BUFFER_TOO_SMALL";
    /// Somebody else holds what only one can hold.
    SHARING_VIOLATION = 0xC000_0043, "STATUS_SHARING_VIOLATION";
    /// The object is going away.
    DELETE_PENDING = 0xC000_0056, "STATUS_DELETE_PENDING";
    /// The two sides speak different versions.
    REVISION_MISMATCH = 0xC000_0059, "STATUS_REVISION_MISMATCH";
    /// A limit on memory or on numbers is reached.
    INSUFFICIENT_RESOURCES = 0xC000_009A, "STATUS_INSUFFICIENT_RESOURCES";
    /// The device cannot serve requests yet.
    DEVICE_NOT_READY = 0xC000_00A3, "STATUS_DEVICE_NOT_READY";
    /// The other side did not answer in time.
    IO_TIMEOUT = 0xC000_00B5, "STATUS_IO_TIMEOUT";
    /// The device does not have this feature; a null entry of an interface table.
    NOT_SUPPORTED = 0xC000_00BB, "STATUS_NOT_SUPPORTED";
    /// The request was withdrawn before it was served.
    CANCELLED = 0xC000_0120, "STATUS_CANCELLED";
    /// The request makes no sense in the state the device is in.
    INVALID_DEVICE_STATE = 0xC000_0184, "STATUS_INVALID_DEVICE_STATE";
    /// The object named by the request does not exist.
    NOT_FOUND = 0xC000_0225, "STATUS_NOT_FOUND";
    /// The device has been removed.
    DEVICE_REMOVED = 0xC000_02B6, "STATUS_DEVICE_REMOVED";
}

impl NtStatus {
    /// Whether the status counts as success: severity success or informational.
    pub const fn is_success(self) -> bool {
        self.0 >> 31 == 0
    }

    /// Whether the status is of severity error.
    pub const fn is_error(self) -> bool {
        self.0 >> 30 == 3
    }

    /// `Ok` for a success, `Err` of the status itself otherwise.
    ///
    /// # Errors
    /// The status, if it does not count as success.
    pub const fn into_result(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }

    /// The status of a result: success, or the error.
    pub fn of<T>(result: &Result<T, Self>) -> Self {
        match result {
            Ok(_) => Self::SUCCESS,
            Err(status) => *status,
        }
    }
}

impl fmt::Display for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} (0x{:08X})", self.0),
            None => write!(f, "status 0x{:08X}", self.0),
        }
    }
}

impl fmt::Debug for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for NtStatus {}

impl From<u32> for NtStatus {
    fn from(value: u32) -> Self {
        Self(value)
    }
}

impl From<NtStatus> for u32 {
    fn from(status: NtStatus) -> Self {
        status.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_values_ascend() {
        assert_eq!(NtStatus::NAMED.len(), 20);
        for pair in NtStatus::NAMED.windows(2) {
            assert!(pair[0].0 < pair[1].0);
            assert_ne!(pair[0].name(), pair[1].name());
        }
    }

    #[test]
    fn severity_decides_success() {
        assert!(NtStatus::SUCCESS.is_success());
        assert!(NtStatus::PENDING.is_success());
        assert!(!NtStatus::DEVICE_BUSY.is_success());
        assert!(!NtStatus::DEVICE_BUSY.is_error());
        assert!(NtStatus::CANCELLED.is_error());
        assert_eq!(NtStatus::CANCELLED.into_result(), Err(NtStatus::CANCELLED));
        assert_eq!(NtStatus::of(&Err::<(), _>(NtStatus::NOT_FOUND)), NtStatus::NOT_FOUND);
    }

    #[test]
    fn an_unnamed_status_is_shown_as_its_number() {
        assert_eq!(NtStatus(0xC001_0014).to_string(), "status 0xC0010014");
        assert_eq!(NtStatus::NOT_SUPPORTED.to_string(), "STATUS_NOT_SUPPORTED (0xC00000BB)");
    }
}
