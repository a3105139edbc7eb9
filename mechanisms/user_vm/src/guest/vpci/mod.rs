//! A PCI function that the guest gets over VMBus: the bus driver ([`VpciDevice`]), and the way on which the function's
//! own driver reaches it ([`VpciTransport`]).
//!
//! # For whoever owns the guest's bus
//!
//! One [`VpciResources`] serves all buses of a guest. For each offer of `INTERFACE_VPCI`:
//!
//! 1. [`VpciDevice::open`]. It returns at once after the channel is open; the function comes later.
//! 2. Poll the device ([`AsFd`](std::os::fd::AsFd)) with all else the bus thread waits for, no longer than until
//!    [`VpciDevice::next_deadline`]; whenever it is readable or the time has come, call [`VpciDevice::process`] and do
//!    what its events say:
//!    * [`VpciEvent::Ready`]: find the adapter with the same serial number; give it [`VpciDevice::transport`].
//!      Its thread then opens the driver:
//!
//!      ```ignore
//!      let transport = device.transport()?;               // on the bus thread
//!      // on the adapter's thread:
//!      let mut config = DriverConfig::without_socket();
//!      config.interrupts = true;
//!      config.memory = transport.memory(&config)?;        // pages of the guest
//!      let (control, pairs) = AvfDriver::open_on(Arc::new(transport), config)?;
//!      ```
//!
//!      To open the driver once more after it was closed, take another transport of the same device.
//!    * [`VpciEvent::EjectRequested`]: have the adapter leave the VF and close its driver; when all of it is dropped,
//!      [`VpciDevice::ejected`]. After the grace that the host's notice leaves (50 s) the function goes anyway.
//!    * [`VpciEvent::Gone`]: the driver has found out by its transport ([`avf_driver::Event::DeviceGone`]); drop it.
//!    * [`VpciEvent::BlocksInvalidated`]: [`VpciDevice::read_block`], if anybody cares for blocks.
//! 3. When VMBus rescinds the channel, [`VpciDevice::rescinded`], then [`VpciDevice::close`] when the driver is dropped.
//!    [`VpciDevice::is_finished`] says when there is nothing more to come without that.
//!
//! A transport may be used on any thread but the one that takes the host's messages
//! ([`VmbusGuest`](partition::guest::VmbusGuest)'s own): a trapped access waits for the host's answer, which that thread
//! brings. Any thread may wait for the bus thread's device or do its work for it meanwhile; so the driver may also be
//! opened on the bus thread.
//!
//! Registers cost a round trip to the host each; doorbells are mapped and cost a store.
//!
//! Follows SPEC-VMBUS §4.

mod config_space;
mod device;
mod error;
mod interrupt;
mod resources;
#[cfg(test)]
mod tests;
mod transport;

pub(crate) use device::{VpciDevice, VpciEvent};
pub(crate) use error::VpciError;
pub(crate) use resources::VpciResources;
pub(crate) use transport::VpciTransport;
