//! What comes over the socket, to whom it goes.

use std::sync::Arc;

use device_control::{Client, Completion, DeviceControlHandler, Request, RequestId};
use pcivirt_protocol::NtStatus;
use serde::de::DeserializeOwned;

use super::{Connections, SwitchUplink, ports::Ports, status::status};
use crate::{SwitchHandle, control::PrivateControl};

pub(super) struct Handler {
    pub(super) name: String,
    pub(super) spec: SwitchUplink,
    pub(super) connections: Arc<Connections>,
    pub(super) ports: Arc<Ports>,
    pub(super) switch: SwitchHandle,
    pub(super) shutdown: crossbeam_channel::Sender<()>,
}

fn parse<T: DeserializeOwned>(request: &Request) -> Result<T, NtStatus> {
    serde_json::from_slice(&request.input).map_err(|error| {
        tracing::info!(target = %request.target, %error, "a control cannot be read");
        NtStatus::INVALID_PARAMETER
    })
}

impl DeviceControlHandler for Handler {
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        let own = rustix::process::geteuid().as_raw();
        if client.uid == own || client.uid == 0 { Ok(()) } else { Err(NtStatus::ACCESS_DENIED) }
    }

    fn disconnected(&self, client: &Client) {
        self.ports.disconnected(client.id);
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        self.ports.cancel(client.id, id);
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        let control = PrivateControl::from_code(code);
        let done = match control {
            None => Err(NtStatus::INVALID_DEVICE_REQUEST),
            Some(PrivateControl::NextReport) => return self.ports.next_report(client.id, request),
            Some(PrivateControl::NextUpcall) => match parse(&request) {
                Ok(name) => return self.ports.next_upcall(client.id, &name, request),
                Err(status) => Err(status),
            },
            Some(control) => self.control(client, control, &request),
        };
        // What only carries descriptors is done with them.
        let completion = match done {
            Ok(output) => Completion::output(output, request.output_capacity),
            Err(status) => Completion::status(status),
        };
        request.complete(completion);
        if control == Some(PrivateControl::Shutdown) {
            // After the completion, so that its client hears of it. Full: somebody has asked already.
            let _ = self.shutdown.try_send(());
        }
    }
}

impl Handler {
    fn control(
        &self,
        client: &Client,
        control: PrivateControl,
        request: &Request,
    ) -> Result<Vec<u8>, NtStatus> {
        match control {
            PrivateControl::Status => {
                let levels = (self.ports.uplink(), self.ports.listed());
                let status =
                    status(&self.name, &self.spec, &self.connections, levels, &self.switch)?;
                return serde_json::to_vec(&status).map_err(|_| NtStatus::UNSUCCESSFUL);
            }
            PrivateControl::SetPort => self.ports.set(parse(request)?)?,
            PrivateControl::DeletePort => self.ports.delete(&parse(request)?)?,
            PrivateControl::PortCommand => self.ports.command(&parse(request)?)?,
            PrivateControl::OpenChannel => {
                self.ports.open_channel(client.id, &parse(request)?, &request.fds)?;
            }
            PrivateControl::CloseChannel => {
                self.ports.close_channel(client.id, &parse(request)?)?
            }
            PrivateControl::GpadlMapped => self.ports.gpadl_mapped(client.id, &parse(request)?)?,
            // Done once it is completed; and those that pend are elsewhere.
            PrivateControl::Shutdown | PrivateControl::NextReport | PrivateControl::NextUpcall => {}
        }
        Ok(Vec::new())
    }
}
