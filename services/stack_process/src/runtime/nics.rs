//! NICs.

use std::time::{Duration, Instant};

use device_control::Completion;
use virtualization_stack::{Input, NicCall, NicId, RequestId};

use super::Runtime;
use super::links::{NotSent, What};
use crate::event::{Peer, ProcessEvent};
use crate::nic_call;
use crate::nic_request::NicRequest;

impl Runtime {
    pub(super) fn nic_call(&mut self, nic: NicId, request: RequestId, call: NicCall) {
        let (target, input) = nic_call::request(&call);
        let room = call.output_capacity();
        let what = What::Nic { request, call: call.clone(), sent: Instant::now() };
        match self.send(Peer::Nic(nic), target, &input, room, what) {
            // The stack is told, or was, that the NIC is gone.
            Ok(()) | Err(NotSent::NoConnection) => {}
            Err(NotSent::Refused) => {
                let refusal = Err(nic_call::not_sent(&call));
                self.inputs.push_back(Input::NicCompleted(nic, request, refusal));
            }
        }
    }

    pub(super) fn cancel_nic_call(&mut self, nic: NicId, request: RequestId) {
        self.forget_request(Peer::Nic(nic), request);
    }

    /// The stack does not want a NIC's connection any more, and takes the NIC for gone already.
    pub(super) fn give_up(&mut self, nic: NicId) {
        let peer = Peer::Nic(nic);
        if self.is_up(peer) {
            let refused = self.links.get(&peer).and_then(|link| link.last_error.clone());
            let error = refused.unwrap_or_else(|| "it is gone, or does not answer".to_owned());
            self.hang_up(peer, error);
        }
    }

    pub(super) fn nic_completed(
        &mut self,
        peer: Peer,
        request: RequestId,
        call: &NicCall,
        took: Duration,
        completion: &Completion,
    ) {
        let Peer::Nic(nic) = peer else { return };
        let result = nic_call::result(call, completion);
        let whose = (nic, self.stack.adapter_of(request));
        let done = NicRequest::new(whose, call, &result, took);
        self.publish(ProcessEvent::NicRequest(done));
        if let (NicCall::Attach, Err(error)) = (call, &result)
            && let Some(link) = self.links.get_mut(&peer)
        {
            link.turned_away = true;
            link.last_error = Some(format!(
                "its PF driver refused to be attached to ({error}): is it another stack's already?"
            ));
        }
        self.inputs.push_back(Input::NicCompleted(nic, request, result));
    }
}
