//! Requests to NICs as people follow them: each OID and pcivirt call with its name, what it was about, how it ended, and
//! how long that took.

use std::fmt;
use std::time::Duration;

use ndis_protocol::{NdisStatus, RequestKind};
use pcivirt_protocol::NtStatus;
use serde::{Deserialize, Serialize};
use virtualization_stack::{AdapterId, CallError, CallTarget, NicCall, NicId, NicReply};

/// A request to a NIC that is completed. Its texts are published names, and so of bounded length.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NicRequest {
    /// For which adapter; `None` if it is about the NIC alone.
    pub adapter: Option<AdapterId>,
    /// Which NIC.
    pub nic: NicId,
    /// Published name of the OID or I/O control, or that of the adapter's own control.
    pub request: String,
    /// Whether it was issued as a query, set or method request; `None` if it is no OID.
    pub kind: Option<OidKind>,
    /// The VF it is about, or that it has given.
    pub vf: Option<u16>,
    /// The VPort it is about, that it has made, or to which a filter goes.
    pub vport: Option<u32>,
    /// The receive filter it is about, or that it has set.
    pub filter: Option<u32>,
    /// Published name of the NDIS_STATUS of an OID, of the NTSTATUS of anything else.
    pub status: String,
    /// Whether it waits for an event: it takes as long as that takes to come.
    pub waits_for_event: bool,
    /// From when it was sent until it was completed.
    pub microseconds: u64,
}

/// How an OID is issued.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OidKind {
    /// A query.
    Query,
    /// A set request.
    Set,
    /// A query of statistics.
    QueryStatistics,
    /// A method request.
    Method,
}

impl From<RequestKind> for OidKind {
    fn from(kind: RequestKind) -> Self {
        match kind {
            RequestKind::Query => Self::Query,
            RequestKind::Set => Self::Set,
            RequestKind::QueryStatistics => Self::QueryStatistics,
            RequestKind::Method => Self::Method,
        }
    }
}

impl NicRequest {
    /// As it ended.
    pub(crate) fn new(
        (nic, adapter): (NicId, Option<AdapterId>),
        call: &NicCall,
        result: &Result<NicReply, CallError>,
        took: Duration,
    ) -> Self {
        let target = call.target();
        let (kind, success) = match target {
            CallTarget::Oid(_, kind) => (Some(kind.into()), NdisStatus::SUCCESS.to_string()),
            CallTarget::Ioctl(_) | CallTarget::VPortPolicy => (None, NtStatus::SUCCESS.to_string()),
        };
        let request = match target {
            CallTarget::VPortPolicy => "SetVPortPolicy".to_owned(),
            published => published.to_string(),
        };
        let status = match result {
            Ok(_) => success,
            Err(CallError::Ndis(status)) => status.to_string(),
            Err(CallError::Nt(status)) => status.to_string(),
            Err(CallError::Malformed(_)) => format!("{success} with an answer that is none"),
        };
        let Objects { vf, vport, filter } = Objects::of(call, result.as_ref().ok());
        let waits_for_event = call.is_long_poll();
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self {
            adapter,
            nic,
            request,
            kind,
            vf,
            vport,
            filter,
            status,
            waits_for_event,
            microseconds,
        }
    }
}

impl NicRequest {
    /// What it is about, as it stands in a sentence: ` for VF 1 on VPort 2`.
    pub fn objects(&self) -> String {
        let vf = self.vf.map(|vf| format!(" for VF {vf}"));
        let filter = self.filter.map(|filter| format!(" for filter {filter}"));
        let vport = self.vport.map(|vport| format!(" on VPort {vport}"));
        [vf, filter, vport].into_iter().flatten().collect()
    }
}

/// What a request is about.
#[derive(Default)]
struct Objects {
    vf: Option<u16>,
    vport: Option<u32>,
    filter: Option<u32>,
}

impl Objects {
    fn of(call: &NicCall, reply: Option<&NicReply>) -> Self {
        let none = Self::default;
        let asked = match call {
            NicCall::QueryMitigatedRangeCount(vf)
            | NicCall::QueryMitigatedRanges { vf, .. }
            | NicCall::MitigatedRangeUpdate(vf) => Self { vf: Some(vf.0), ..none() },
            NicCall::ResetVf(vf) | NicCall::FreeVf(vf) => Self { vf: Some(vf.get()), ..none() },
            NicCall::CreateVPort(parameters) => {
                Self { vf: parameters.attached_function.vf().map(|vf| vf.get()), ..none() }
            }
            NicCall::ChangeVPort(change) => Self { vport: Some(change.vport_id.get()), ..none() },
            NicCall::EnumFilters(vport)
            | NicCall::DeleteVPort(vport)
            | NicCall::SetVPortPolicy { vport, .. } => Self { vport: Some(vport.get()), ..none() },
            NicCall::SetFilter(parameters) => {
                Self { vport: Some(parameters.vport_id.get()), ..none() }
            }
            NicCall::MoveFilter(parameters) => Self {
                vport: Some(parameters.dest_vport_id.get()),
                filter: Some(parameters.filter_id.get()),
                ..none()
            },
            NicCall::ClearFilter(filter) => Self { filter: Some(filter.get()), ..none() },
            _ => none(),
        };
        match reply {
            Some(NicReply::Vf(vf, _)) => Self { vf: Some(vf.get()), ..asked },
            Some(NicReply::VPort(vport)) => Self { vport: Some(vport.get()), ..asked },
            Some(NicReply::Filter(filter)) => Self { filter: Some(filter.get()), ..asked },
            _ => asked,
        }
    }
}

impl fmt::Display for NicRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(adapter) = self.adapter {
            write!(f, "{adapter}: ")?;
        }
        // NICs are named by the word before their number and the space behind it.
        write!(f, "{} to {}", self.request, self.nic)?;
        write!(f, "{} ended with {} after {} µs", self.objects(), self.status, self.microseconds)
    }
}

#[cfg(test)]
mod tests {
    use ndis_protocol::{FilterId, ReceiveFilterMoveFilterParameters, VPortId, VfId};
    use pcivirt_protocol::VfIndex;

    use super::*;

    const WHOSE: (NicId, Option<AdapterId>) = (NicId(2), Some(AdapterId(3)));

    #[test]
    fn a_request_says_what_it_was_about_how_it_ended_and_how_long_it_took() {
        let vport = |id| VPortId::new(id).unwrap();
        let call = NicCall::MoveFilter(ReceiveFilterMoveFilterParameters {
            filter_id: FilterId::new(7).unwrap(),
            source_queue_id: 0,
            source_vport_id: VPortId::DEFAULT,
            dest_queue_id: 0,
            dest_vport_id: vport(4),
        });
        let took = Duration::from_nanos(85_900);
        let moved = NicRequest::new(WHOSE, &call, &Ok(NicReply::Done), took);
        assert_eq!(
            moved.to_string(),
            "adapter 3: OID_RECEIVE_FILTER_MOVE_FILTER to NIC 2 for filter 7 on VPort 4 ended with \
             NDIS_STATUS_SUCCESS after 85 µs"
        );
        assert_eq!(moved.kind, Some(OidKind::Set));
        let json = serde_json::to_string(&moved).unwrap();
        assert_eq!(serde_json::from_str::<NicRequest>(&json).unwrap(), moved);

        let vf = VfId::new(5).unwrap();
        let refused = Err(CallError::Ndis(NdisStatus::RESOURCES));
        let full = NicRequest::new((NicId(2), None), &NicCall::FreeVf(vf), &refused, took);
        assert_eq!((full.vf, full.kind), (Some(5), Some(OidKind::Set)));
        assert!(
            full.to_string().ends_with("for VF 5 ended with NDIS_STATUS_RESOURCES after 85 µs")
        );

        // What a request has made is what it was about.
        let reply = NicReply::VPort(vport(6));
        let made = NicRequest::new(WHOSE, &NicCall::EnumVfs, &Ok(reply), took);
        assert_eq!((made.vport, made.kind), (Some(6), Some(OidKind::Method)));

        let poll = NicCall::MitigatedRangeUpdate(VfIndex(1));
        let unknown = Err(CallError::Nt(NtStatus::NOT_SUPPORTED));
        let poll = NicRequest::new(WHOSE, &poll, &unknown, Duration::ZERO);
        assert_eq!((poll.kind, poll.vf, poll.waits_for_event), (None, Some(1), true));
        assert!(poll.to_string().contains("STATUS_NOT_SUPPORTED"), "{poll}");
    }
}
