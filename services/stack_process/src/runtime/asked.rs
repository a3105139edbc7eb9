//! What people and programs ask over the control socket.

use device_control::{ClientId, Completion, PendingRequest, Request, RequestId};
use pcivirt_protocol::NtStatus;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Runtime;
use crate::control::{AdapterName, NextEvents, PrivateControl, SetAdapter};

/// Somebody who waits for events.
#[derive(Debug)]
pub(super) struct Waiting {
    client: ClientId,
    after: u64,
    room: usize,
    pending: PendingRequest,
}

fn parse<T: DeserializeOwned>(input: &[u8]) -> Result<T, NtStatus> {
    serde_json::from_slice(input).map_err(|_| NtStatus::INVALID_PARAMETER)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, NtStatus> {
    serde_json::to_vec(value).map_err(|_| NtStatus::UNSUCCESSFUL)
}

impl Runtime {
    pub(super) fn asked(&mut self, client: ClientId, control: PrivateControl, request: Request) {
        let answer = match control {
            PrivateControl::Status => json(&self.status()),
            PrivateControl::SetAdapter => {
                parse::<SetAdapter>(&request.input).and_then(|asked| json(&self.set_adapter(asked)))
            }
            PrivateControl::Retry => {
                parse::<AdapterName>(&request.input).and_then(|name| json(&self.retry(&name)))
            }
            PrivateControl::Reload => json(&self.reload()),
            PrivateControl::NextEvents => match parse::<NextEvents>(&request.input) {
                Ok(NextEvents { after }) => {
                    let room = request.output_capacity;
                    let pending = request.pend();
                    // Served when everything else is done, if there are any.
                    self.waiting.push(Waiting { client, after, room, pending });
                    return;
                }
                Err(status) => Err(status),
            },
            PrivateControl::Shutdown => {
                request.complete(NtStatus::SUCCESS);
                // After the completion, so that its client hears of it. Full: somebody has asked already.
                let _ = self.shutdown.try_send(());
                return;
            }
        };
        let room = request.output_capacity;
        request.complete(match answer {
            Ok(output) => Completion::output(output, room),
            Err(status) => Completion::status(status),
        });
    }

    /// Tells those who wait what they do not know.
    pub(super) fn serve_events(&mut self) {
        let last = self.events.last();
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| last > 0 && waiting.after != last);
        self.waiting = waiting;
        for Waiting { after, room, pending, .. } in ready {
            let completion = match self.events.after(after, room) {
                Some(json) => Completion::output(json, room),
                None => Completion::status(NtStatus::BUFFER_TOO_SMALL),
            };
            // Whoever has gone does not want to know.
            let _ = pending.complete(completion);
        }
    }

    pub(super) fn cancelled(&mut self, client: ClientId, request: RequestId) {
        let given_up =
            |waiting: &Waiting| waiting.client == client && waiting.pending.id() == request;
        if let Some(index) = self.waiting.iter().position(given_up) {
            let _ = self.waiting.swap_remove(index).pending.complete(NtStatus::CANCELLED);
        }
    }
}
