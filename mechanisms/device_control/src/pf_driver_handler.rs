//! A PF driver behind a socket.

use crate::handler::{Client, DeviceControlHandler, Request};
use device_control_protocol::RequestId;
use pcivirt_protocol::IoctlCode;
use pf_driver::{IoctlRequest, PfDriver, SriovDevice};
use std::sync::Arc;

/// Carries I/O controls and interface callbacks to a [`PfDriver`], and tells it which clients have gone. It serves no OIDs and
/// no private controls: a handler that does puts itself around it, and passes on `ioctl`, `callback`, `cancel` and
/// `disconnected`.
pub struct PfDriverHandler<D: ?Sized> {
    driver: Arc<PfDriver<D>>,
}

impl<D: SriovDevice + ?Sized> PfDriverHandler<D> {
    /// A handler for a driver, which stays its owner's to stop and to remove.
    pub const fn new(driver: Arc<PfDriver<D>>) -> Self {
        Self { driver }
    }

    /// The driver.
    pub const fn driver(&self) -> &Arc<PfDriver<D>> {
        &self.driver
    }
}

impl<D: SriovDevice + ?Sized> DeviceControlHandler for PfDriverHandler<D> {
    fn ioctl(&self, client: &Client, code: IoctlCode, request: Request) {
        let Request { id, input, output_capacity, pending, .. } = request;
        self.driver.ioctl(IoctlRequest {
            client: client.id,
            id,
            code,
            input,
            output_capacity,
            complete: Box::new(move |completion| pending.complete(completion)),
        });
    }

    fn callback(&self, client: &Client, code: u32, request: Request) {
        let completion =
            self.driver.callback(client.id, code, &request.input, request.output_capacity);
        request.complete(completion);
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        self.driver.cancel(client.id, id);
    }

    fn disconnected(&self, client: &Client) {
        self.driver.client_gone(client.id);
    }
}
