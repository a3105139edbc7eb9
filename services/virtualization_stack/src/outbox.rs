//! What a step of the stack yields, collected while it runs; and the requests to NICs that are outstanding.

use std::collections::BTreeMap;

use crate::{AdapterId, Effect, Event, NicCall, NicId, RequestId, Time, VfSerial};

/// Whose request it is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// An adapter's step.
    Adapter(AdapterId),
    /// The long poll for an adapter's mitigated ranges.
    RangePoll(AdapterId, VfSerial),
    /// A NIC's ATTACH.
    Attach,
    /// A NIC's survey.
    Survey,
    /// A NIC's NOTIFICATION.
    Notification,
    /// A NIC's EVENT_COMPLETE.
    EventComplete,
}

/// A request that is not completed yet.
#[derive(Clone, Debug)]
pub(crate) struct Outstanding {
    pub(crate) nic: NicId,
    pub(crate) owner: Owner,
    pub(crate) call: NicCall,
    /// When the NIC is taken for gone; `None` for long polls.
    pub(crate) deadline: Option<Time>,
}

/// Effects of the step that runs, and outstanding requests.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) effects: Vec<Effect>,
    pub(crate) outstanding: BTreeMap<RequestId, Outstanding>,
    last_request: u64,
    last_serial: u32,
}

impl Outbox {
    /// Nothing is outstanding; serial numbers come after this one.
    pub(crate) fn new(last_serial: u32) -> Self {
        Self { last_serial, ..Self::default() }
    }

    pub(crate) fn issue(
        &mut self,
        nic: NicId,
        owner: Owner,
        call: NicCall,
        deadline: Time,
    ) -> RequestId {
        self.last_request += 1;
        let request = RequestId(self.last_request);
        let deadline = (!call.is_long_poll()).then_some(deadline);
        let outstanding = Outstanding { nic, owner, call: call.clone(), deadline };
        self.outstanding.insert(request, outstanding);
        self.effects.push(Effect::Nic { nic, request, call });
        request
    }

    /// Gives a request up. If its completion comes all the same, nobody hears of it.
    pub(crate) fn cancel(&mut self, request: RequestId) {
        if let Some(Outstanding { nic, .. }) = self.outstanding.remove(&request) {
            self.effects.push(Effect::CancelNic { nic, request });
        }
    }

    pub(crate) fn publish(&mut self, event: Event) {
        self.effects.push(Effect::Publish(event));
    }

    /// A serial number that no VF had before. 0 is none.
    pub(crate) fn next_serial(&mut self) -> VfSerial {
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        VfSerial(self.last_serial)
    }
}
