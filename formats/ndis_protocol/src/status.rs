//! NDIS status values (SPEC-NDIS-SRIOV §0.2).

use core::fmt;

/// An NDIS_STATUS: an open value, so that a status this list does not name still passes through unchanged.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct NdisStatus(pub u32);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl NdisStatus {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every status that has a name here.
            pub const NAMED: &'static [Self] = &[$(Self::$name),*];

            /// The published name, such as "NDIS_STATUS_INVALID_LENGTH", if this list has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(concat!("NDIS_STATUS_", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    /// The request did what it asked for.
    SUCCESS = 0x0000_0000;
    /// The request is held and will be completed later.
    PENDING = 0x0000_0103;
    /// The adapter is resetting or gone and takes no such request.
    NOT_ACCEPTED = 0x0001_0003;
    /// The request failed for a reason that has no status of its own.
    FAILURE = 0xC000_0001;
    /// A member of the request's structure has a value that it may not have.
    INVALID_PARAMETER = 0xC000_000D;
    /// Something of which there is a limited number is used up.
    RESOURCES = 0xC000_009A;
    /// The adapter lacks the feature, or it is not enabled.
    NOT_SUPPORTED = 0xC000_00BB;
    /// The request makes no sense in the state the adapter is in.
    INVALID_STATE = 0xC000_0184;
    /// The request was given up before it was done.
    REQUEST_ABORTED = 0xC001_000C;
    /// The adapter is being reset.
    RESET_IN_PROGRESS = 0xC001_000D;
    /// A buffer is too short; BytesNeeded says what it takes.
    INVALID_LENGTH = 0xC001_0014;
    /// The data of the request are not valid.
    INVALID_DATA = 0xC001_0015;
    /// A buffer is too short for what has to be returned.
    BUFFER_TOO_SHORT = 0xC001_0016;
    /// There is no such OID.
    INVALID_OID = 0xC001_0017;
    /// The adapter has been removed.
    ADAPTER_REMOVED = 0xC001_0018;
    /// The object named by the request does not exist.
    FILE_NOT_FOUND = 0xC001_001B;
    /// The change is stored and takes effect when the adapter is restarted.
    REINIT_REQUIRED = 0xC023_0030;
}

impl NdisStatus {
    /// Whether the value's severity is success or informational, as `NT_SUCCESS` tests.
    ///
    /// [`NdisStatus::NOT_ACCEPTED`] and [`NdisStatus::PENDING`] pass this test although nothing was
    /// done yet; compare with [`NdisStatus::SUCCESS`] to know that a request is done.
    #[must_use]
    pub const fn is_success_severity(self) -> bool {
        self.0 >> 31 == 0
    }
}

impl fmt::Display for NdisStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "NDIS status 0x{:08X}", self.0),
        }
    }
}

impl fmt::Debug for NdisStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for NdisStatus {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_status_has_its_own_value_and_name() {
        assert_eq!(NdisStatus::NAMED.len(), 17);
        for (index, status) in NdisStatus::NAMED.iter().enumerate() {
            for other in &NdisStatus::NAMED[..index] {
                assert_ne!(status, other);
                assert_ne!(status.name(), other.name());
            }
        }
    }

    #[test]
    fn statuses_print_their_published_name() {
        assert_eq!(NdisStatus::FILE_NOT_FOUND.to_string(), "NDIS_STATUS_FILE_NOT_FOUND");
        assert_eq!(NdisStatus(0xC023_0099).to_string(), "NDIS status 0xC0230099");
        assert!(NdisStatus::SUCCESS.is_success_severity());
        assert!(!NdisStatus::REINIT_REQUIRED.is_success_severity());
    }
}
