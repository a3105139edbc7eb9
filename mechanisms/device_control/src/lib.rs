//! Device control over a Unix socket: a [`DeviceControlServer`] carries requests (I/O controls, interface callbacks, OIDs,
//! private controls) to a [`DeviceControlHandler`], and a [`DeviceControlClient`] sends them.
//!
//! It understands no request: what one means is the handler's business. [`PfDriverHandler`] is one for any PF driver;
//! whoever serves OIDs as well puts its own handler around it. Nothing that a client sends, or does not send, reaches
//! another client: each connection has its own threads, its own bounded queue and its own limits, and ends alone.
//!
//! Follows `device_control_protocol` for what goes over the socket and SPEC-PCIVIRT for what requests, pending and
//! cancellation are. Layer: mechanisms (ARCHITECTURE.md); above `pf_driver`, below the adapter and the daemon.

mod client;
mod connection;
mod credentials;
mod error;
mod handler;
mod pending;
mod pf_driver_handler;
mod remote_device;
mod server;
mod wire;

pub use client::DeviceControlClient;
pub use device_control_protocol::{
    ClientId, Completion, DriverName, OidRequestKind, RequestId, Target,
};
pub use error::{ClientError, ServerError};
pub use handler::{Client, DeviceControlHandler, PendingRequest, Request};
pub use listening_socket::ListenError;
pub use pending::SentRequest;
pub use pf_driver_handler::PfDriverHandler;
pub use remote_device::RemoteSriovDevice;
pub use server::{DeviceControlServer, ServerConfig};
