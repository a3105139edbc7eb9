//! The server against clients good and bad, over real sockets.

mod device;
mod hostile;
mod published_client;
mod raw_client;
mod stories;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use self::{device::TestDevice, raw_client::RawClient};
use crate::{Limits, ServerOptions, VfioUserServer};

/// A test device behind a live server.
struct Served {
    server: VfioUserServer,
    device: Arc<Mutex<TestDevice>>,
    path: PathBuf,
    _root: TempDir,
}

impl Served {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ServerOptions)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vf0.sock");
        let device = TestDevice::shared();
        let mut options = ServerOptions::new("test");
        options.limits = Limits { dma_ranges: 8, dma_bytes: 1 << 30 };
        change(&mut options);
        let server = VfioUserServer::bind(&path, Arc::clone(&device), options).unwrap();
        Self { server, device, path, _root: root }
    }

    /// A client that has agreed on a version. The one before it may still be on its way out.
    fn client(&self) -> RawClient {
        loop {
            if let Some(client) = RawClient::connected(&self.path) {
                return client;
            }
            std::thread::yield_now();
        }
    }
}
