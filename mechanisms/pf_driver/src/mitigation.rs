//! Which VFs' mitigated ranges have changed, and who waits to hear of it (SPEC-PCIVIRT §6). Sans I/O.

use crate::pnp::RequestKey;
use device_control_protocol::ClientId;
use pcivirt_protocol::VfIndex;
use std::collections::{BTreeMap, BTreeSet};

/// Changes that nobody has been told of, and the one request per VF that waits for them.
#[derive(Debug, Default)]
pub(crate) struct RangeUpdates {
    changed: BTreeSet<VfIndex>,
    waiting: BTreeMap<VfIndex, RequestKey>,
}

impl RangeUpdates {
    /// Whether a request waits for this VF already.
    pub(crate) fn is_armed(&self, vf: VfIndex) -> bool {
        self.waiting.contains_key(&vf)
    }

    /// A request waits for changes of one VF. There must be no other; see [`RangeUpdates::is_armed`].
    pub(crate) fn arm(&mut self, request: RequestKey, vf: VfIndex) {
        self.waiting.insert(vf, request);
    }

    /// The ranges of a VF have changed. Several changes are told once.
    pub(crate) fn changed(&mut self, vf: VfIndex) {
        self.changed.insert(vf);
    }

    /// Takes out the requests that can be completed now.
    pub(crate) fn take_ready(&mut self) -> Vec<(RequestKey, VfIndex)> {
        let ready: Vec<_> = self
            .changed
            .iter()
            .filter_map(|vf| self.waiting.remove(vf).map(|request| (request, *vf)))
            .collect();
        for (_, vf) in &ready {
            self.changed.remove(vf);
        }
        ready
    }

    /// Takes out a request.
    pub(crate) fn cancel(&mut self, request: RequestKey) -> bool {
        !self.take_where(|waiting, _| waiting == request).is_empty()
    }

    /// Takes out the requests of a client.
    pub(crate) fn cancel_client(&mut self, client: ClientId) -> Vec<RequestKey> {
        self.take_where(|request, _| request.client == client)
    }

    /// Forgets a VF that does not exist any more, and takes out the request that waits for it.
    pub(crate) fn forget_vf(&mut self, vf: VfIndex) -> Vec<RequestKey> {
        self.changed.remove(&vf);
        self.take_where(|_, waits_for| waits_for == vf)
    }

    /// Forgets everything, and takes out all requests.
    pub(crate) fn clear(&mut self) -> Vec<RequestKey> {
        self.changed.clear();
        self.take_where(|_, _| true)
    }

    fn take_where(&mut self, test: impl Fn(RequestKey, VfIndex) -> bool) -> Vec<RequestKey> {
        let mut taken = Vec::new();
        self.waiting.retain(|vf, request| {
            let takes = test(*request, *vf);
            if takes {
                taken.push(*request);
            }
            !takes
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device_control_protocol::RequestId;

    fn key(id: u64) -> RequestKey {
        RequestKey { client: ClientId(1), id: RequestId(id) }
    }

    #[test]
    fn several_changes_are_told_once_and_only_to_who_waits_for_that_vf() {
        let mut updates = RangeUpdates::default();
        updates.arm(key(1), VfIndex(1));
        assert!(updates.is_armed(VfIndex(1)));
        updates.changed(VfIndex(2));
        updates.changed(VfIndex(2));
        assert_eq!(updates.take_ready(), []);
        updates.arm(key(2), VfIndex(2));
        assert_eq!(updates.take_ready(), [(key(2), VfIndex(2))]);
        assert!(!updates.is_armed(VfIndex(2)));
        updates.arm(key(3), VfIndex(2));
        assert_eq!(updates.take_ready(), []);
    }

    #[test]
    fn what_waits_can_be_taken_out() {
        let mut updates = RangeUpdates::default();
        for (id, vf) in (0..).zip([4, 5, 6, 7]) {
            updates.arm(key(id), VfIndex(vf));
        }
        assert!(updates.cancel(key(0)));
        assert!(!updates.cancel(key(0)));
        assert_eq!(updates.forget_vf(VfIndex(5)), [key(1)]);
        updates.changed(VfIndex(6));
        assert_eq!(updates.clear(), [key(2), key(3)]);
        updates.arm(key(6), VfIndex(6));
        assert_eq!(updates.take_ready(), []);
        assert_eq!(updates.cancel_client(ClientId(1)), [key(6)]);
    }
}
