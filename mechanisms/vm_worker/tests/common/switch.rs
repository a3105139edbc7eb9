//! A switch that is played: it does what a worker needs of one, notes it, and can be told to do nothing.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use device_control::{
    Client, ClientId, Completion, DeviceControlHandler, DeviceControlServer, DriverName,
    PendingRequest, Request, RequestId, ServerConfig,
};
use pcivirt_protocol::NtStatus;
use serde_json::json;
use tempfile::TempDir;
use virtual_switch::control::{
    ChannelName, ChannelUpcall, GpadlMapped, OpenChannel, PortName, PrivateControl, UPCALL_CAPACITY,
};
use vm_worker::control::AdapterConfig;

use super::wait_until;

#[derive(Default)]
pub struct State {
    pub ports: BTreeSet<String>,
    /// Channels that are open: port and index, who opened them, and the number of descriptors that came.
    pub open: BTreeMap<(String, u16), (ClientId, usize)>,
    pub mapped: Vec<GpadlMapped>,
    /// Lives of the guest in which channels were opened.
    pub lives: Vec<u64>,
    /// Opens and closes are not answered.
    pub hangs: bool,
    upcalls: BTreeMap<String, PendingRequest>,
    held: Vec<Request>,
}

/// What others see of it.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

pub struct Switch {
    pub shared: Shared,
    pub directory: Option<TempDir>,
    path: PathBuf,
    server: Option<DeviceControlServer>,
}

impl Switch {
    pub fn start(ports: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let mut this =
            Self { shared: Shared::default(), directory: Some(directory), path, server: None };
        this.serve(ports);
        this
    }

    /// Comes up, with these ports.
    pub fn serve(&mut self, ports: &[&str]) {
        let mut state = State::default();
        state.ports.extend(ports.iter().map(|port| (*port).to_owned()));
        *self.shared.lock() = state;
        let config = ServerConfig::new(&self.path, DriverName::new("external").unwrap());
        let handler = Arc::new(Handler(self.shared.clone()));
        self.server = Some(DeviceControlServer::start(config, handler).unwrap());
    }

    /// Ends, as a process does that is killed.
    pub fn kill(&mut self) {
        self.server = None;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The port asks for something.
    pub fn upcall(&self, port: &str, upcall: &ChannelUpcall) {
        let mut pending = None;
        wait_until("a request for upcalls", || {
            pending = self.shared.lock().upcalls.remove(port);
            pending.is_some()
        });
        let json = serde_json::to_vec(upcall).unwrap();
        pending.unwrap().complete(Completion::output(json, UPCALL_CAPACITY)).unwrap();
    }

    /// The port goes.
    pub fn delete(&self, port: &str) {
        let mut state = self.shared.lock();
        state.ports.remove(port);
        state.open.retain(|(of, _), _| of != port);
        if let Some(pending) = state.upcalls.remove(port) {
            let _ = pending.complete(NtStatus::NOT_FOUND);
        }
    }

    /// Answers what was not answered while it hung.
    pub fn wake(&self) {
        let held = {
            let mut state = self.shared.lock();
            state.hangs = false;
            std::mem::take(&mut state.held)
        };
        for request in held {
            request.complete(NtStatus::SUCCESS);
        }
    }

    pub fn channels(&self) -> usize {
        self.shared.lock().open.len()
    }

    pub fn adapter(&self, adapter: u32, port: &str) -> AdapterConfig {
        AdapterConfig {
            adapter,
            mac: "00:15:5d:00:00:01".to_owned(),
            switch: self.path.clone(),
            port: port.to_owned(),
            max_channels: 4,
            kind: vm_worker::control::SyntheticNicKind::NetVsc,
        }
    }
}

struct Handler(Shared);

impl DeviceControlHandler for Handler {
    fn disconnected(&self, client: &Client) {
        self.0.lock().open.retain(|_, (owner, _)| *owner != client.id);
    }

    fn cancel(&self, _client: &Client, id: RequestId) {
        let mut state = self.0.lock();
        let port = state.upcalls.iter().find(|(_, pending)| pending.id() == id);
        if let Some(port) = port.map(|(port, _)| port.clone()) {
            let _ = state.upcalls.remove(&port).unwrap().complete(NtStatus::CANCELLED);
        }
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        let mut state = self.0.lock();
        let input = request.input.as_slice();
        match PrivateControl::from_code(code).unwrap() {
            PrivateControl::Status => {
                let port = |port: &String| {
                    json!({
                        "port": port, "kind": { "kind": "synthetic" }, "mac": "00:15:5d:00:00:01",
                        "vlan": { "mode": "transparent" }, "guest": "closed", "vf": null,
                        "data_path": "synthetic", "channels": [],
                        "statistics": virtual_switch::PortStatistics::default(),
                    })
                };
                let ports: Vec<_> = state.ports.iter().map(port).collect();
                let status = json!({
                    "name": "external", "host": null, "ports": ports,
                    "uplink": {
                        "spec": "none", "connected": true, "link_up": true, "last_error": null,
                        "statistics": virtual_switch::PortStatistics::default(),
                    },
                });
                let capacity = request.output_capacity;
                request
                    .complete(Completion::output(serde_json::to_vec(&status).unwrap(), capacity));
            }
            PrivateControl::OpenChannel => {
                let open: OpenChannel = serde_json::from_slice(input).unwrap();
                assert!(state.ports.contains(&open.port));
                assert_eq!(request.fds.len(), open.memory.len() + 2);
                let fds = request.fds.len();
                state.lives.push(open.life);
                state.open.insert((open.port, open.channel), (client.id, fds));
                if state.hangs {
                    state.held.push(request);
                } else {
                    request.complete(NtStatus::SUCCESS);
                }
            }
            PrivateControl::CloseChannel => {
                if state.hangs {
                    state.held.push(request);
                    return;
                }
                let ChannelName { port, channel } = serde_json::from_slice(input).unwrap();
                state
                    .open
                    .retain(|(of, index), _| *of != port || (*index != channel && channel != 0));
                request.complete(NtStatus::SUCCESS);
            }
            PrivateControl::GpadlMapped => {
                state.mapped.push(serde_json::from_slice(input).unwrap());
                request.complete(NtStatus::SUCCESS);
            }
            PrivateControl::NextUpcall => {
                let PortName { port } = serde_json::from_slice(input).unwrap();
                if !state.ports.contains(&port) {
                    return request.complete(NtStatus::NOT_FOUND);
                }
                match state.upcalls.entry(port) {
                    Entry::Occupied(_) => request.complete(NtStatus::DEVICE_BUSY),
                    Entry::Vacant(entry) => {
                        entry.insert(request.pend());
                    }
                }
            }
            other => panic!("a worker asks for {other:?}"),
        }
    }
}
