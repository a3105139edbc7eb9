//! How an OID request ends.

use device_control_protocol::{Completion, OidRequestKind};
use ndis_protocol::{NdisStatus, RequestKind};
use pcivirt_protocol::NtStatus;

use crate::Refusal;

/// How an OID request ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OidCompletion {
    /// The published status.
    pub status: NdisStatus,
    /// The output; empty unless the status is [`NdisStatus::SUCCESS`].
    pub output: Vec<u8>,
    /// Bytes of output.
    pub bytes_written: u32,
    /// Bytes of input that were used.
    pub bytes_read: u32,
    /// The size of the buffer it would have taken; 0 unless the status is [`NdisStatus::INVALID_LENGTH`].
    pub bytes_needed: u32,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
}

impl OidCompletion {
    /// Whether the request did what it asked for.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status == NdisStatus::SUCCESS
    }
}

impl From<Result<Reply, Refusal>> for OidCompletion {
    fn from(result: Result<Reply, Refusal>) -> Self {
        match result {
            Ok(reply) => Self {
                status: reply.status,
                bytes_written: u32::try_from(reply.output.len()).unwrap_or(u32::MAX),
                output: reply.output,
                bytes_read: u32::try_from(reply.bytes_read).unwrap_or(u32::MAX),
                bytes_needed: 0,
                refusal: None,
            },
            Err(refusal) => Self {
                status: refusal.status(),
                output: Vec::new(),
                bytes_written: 0,
                bytes_read: 0,
                bytes_needed: refusal.bytes_needed(),
                refusal: Some(refusal),
            },
        }
    }
}

impl From<OidCompletion> for Completion {
    /// As device control carries it: the status is the NDIS_STATUS unchanged.
    fn from(completion: OidCompletion) -> Self {
        Self {
            status: NtStatus(completion.status.0),
            output: completion.output,
            needed: completion.bytes_needed,
        }
    }
}

/// The kind of a request that came by device control.
#[must_use]
pub const fn request_kind(kind: OidRequestKind) -> RequestKind {
    match kind {
        OidRequestKind::Query => RequestKind::Query,
        OidRequestKind::Set => RequestKind::Set,
        OidRequestKind::QueryStatistics => RequestKind::QueryStatistics,
        OidRequestKind::Method => RequestKind::Method,
    }
}

/// The NTSTATUS with which an interface callback of pcivirt answers, when the OID it was turned into ended so.
///
/// NDIS statuses that are NTSTATUS values stay as they are; those of NDIS's own facility become the NTSTATUS that says
/// the same.
#[must_use]
pub const fn nt_status(status: NdisStatus) -> NtStatus {
    match status {
        NdisStatus::NOT_ACCEPTED => NtStatus::DEVICE_NOT_READY,
        NdisStatus::REQUEST_ABORTED => NtStatus::CANCELLED,
        NdisStatus::RESET_IN_PROGRESS => NtStatus::DEVICE_BUSY,
        NdisStatus::INVALID_LENGTH | NdisStatus::BUFFER_TOO_SHORT => NtStatus::BUFFER_TOO_SMALL,
        NdisStatus::INVALID_DATA => NtStatus::INVALID_PARAMETER,
        NdisStatus::INVALID_OID => NtStatus::NOT_SUPPORTED,
        NdisStatus::ADAPTER_REMOVED => NtStatus::DEVICE_REMOVED,
        NdisStatus::FILE_NOT_FOUND => NtStatus::NOT_FOUND,
        NdisStatus(value) => NtStatus(value),
    }
}

/// What a request that was carried out answers.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: NdisStatus,
    pub(crate) output: Vec<u8>,
    pub(crate) bytes_read: usize,
}

impl Reply {
    /// Success of a set: all of the input was used, there is no output.
    pub(crate) const fn done(bytes_read: usize) -> Self {
        Self { status: NdisStatus::SUCCESS, output: Vec::new(), bytes_read }
    }

    /// Success with output; the room was checked.
    pub(crate) const fn output(output: Vec<u8>, bytes_read: usize) -> Self {
        Self { status: NdisStatus::SUCCESS, output, bytes_read }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndis_statuses_become_the_ntstatus_that_says_the_same() {
        for (ndis, nt) in [
            (NdisStatus::SUCCESS, NtStatus::SUCCESS),
            (NdisStatus::INVALID_PARAMETER, NtStatus::INVALID_PARAMETER),
            (NdisStatus::RESOURCES, NtStatus::INSUFFICIENT_RESOURCES),
            (NdisStatus::NOT_SUPPORTED, NtStatus::NOT_SUPPORTED),
            (NdisStatus::FAILURE, NtStatus::UNSUCCESSFUL),
            (NdisStatus::INVALID_STATE, NtStatus::INVALID_DEVICE_STATE),
            (NdisStatus::INVALID_LENGTH, NtStatus::BUFFER_TOO_SMALL),
            (NdisStatus::FILE_NOT_FOUND, NtStatus::NOT_FOUND),
            (NdisStatus::ADAPTER_REMOVED, NtStatus::DEVICE_REMOVED),
        ] {
            assert_eq!(nt_status(ndis), nt);
        }
        for status in NdisStatus::NAMED {
            let success = *status == NdisStatus::SUCCESS || *status == NdisStatus::PENDING;
            assert_eq!(nt_status(*status).is_success(), success, "{status}");
        }
    }
}
