//! How the driver reaches its function: a PCI function as its driver sees it, whatever lies between the two.
//!
//! [`VfioUser`] reaches a function on a vfio-user socket; [`crate::AvfDriver::open`] uses it. Others implement
//! [`Transport`] and hand it to [`crate::AvfDriver::open_on`]: a guest whose function is behind a virtual PCI bus,
//! for one.
//!
//! Nothing here is called per frame. Doorbells are pages that the transport maps once
//! ([`Transport::register_page`]); the queues store to them directly.

mod vfio_user;

use std::{
    fmt::Debug,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use shared_memory::DoorbellPage;

pub use vfio_user::VfioUser;

use crate::{DriverMemory, Result};

/// Pages of the register file in BAR0 (SPEC-AVF §2).
pub const REGISTER_PAGES: usize = 16;

/// A PCI function as the AVF driver reaches it.
///
/// # Order of calls
/// [`config_read`](Self::config_read) to see who it is; [`reset`](Self::reset) if the configuration says so;
/// [`register_page`](Self::register_page) for each page; [`share_memory`](Self::share_memory) once;
/// [`config_write`](Self::config_write) of COMMAND to turn on memory space and bus mastering; then registers.
/// [`interrupts`](Self::interrupts) at the first bring-up and again after each reset of the function. All from the
/// thread of the control part, but for [`post`](Self::post) and [`write`](Self::write), which queues call from
/// theirs. The transport is dropped when control and all queues are: the function is not used any more then.
///
/// # Errors
/// Each call may fail with [`DriverError::DeviceGone`](crate::DriverError::DeviceGone) once the function is not
/// there any more, and [`is_gone`](Self::is_gone) is true from then on. What else goes wrong is
/// [`DriverError::Transport`](crate::DriverError::Transport), or of this crate's own if it has the meaning. No call
/// may wait without a limit.
pub trait Transport: Debug + Send + Sync {
    /// Reads 1, 2 or 4 naturally aligned bytes of configuration space.
    ///
    /// # Errors
    /// See [`Transport`].
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()>;

    /// Writes 1, 2 or 4 naturally aligned bytes of configuration space.
    ///
    /// # Errors
    /// See [`Transport`].
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()>;

    /// Resets the function and leaves it with its BARs where they were; false if the transport cannot, and nothing
    /// happened: the driver then has the PF do it. Memory space and bus mastering may be off afterwards.
    ///
    /// # Errors
    /// See [`Transport`].
    fn reset(&self) -> Result<bool>;

    /// A page of BAR0's registers, below [`REGISTER_PAGES`], if it can be mapped: it is then read and written by
    /// loads and stores, and never by [`read`](Self::read), [`write`](Self::write) or [`post`](Self::post).
    ///
    /// # Errors
    /// See [`Transport`]. That a page cannot be mapped is none.
    fn register_page(&self, page: usize) -> Result<Option<DoorbellPage>>;

    /// Reads a 32-bit register of BAR0.
    ///
    /// # Errors
    /// See [`Transport`].
    fn read(&self, offset: u32) -> Result<u32>;

    /// Writes a 32-bit register of BAR0; the device has taken it when this returns.
    ///
    /// # Errors
    /// See [`Transport`].
    fn write(&self, offset: u32, value: u32) -> Result<()>;

    /// Writes a 32-bit register of BAR0, and need not wait for the device. In order with other writes.
    ///
    /// # Errors
    /// See [`Transport`].
    fn post(&self, offset: u32, value: u32) -> Result<()> {
        self.write(offset, value)
    }

    /// Makes memory reachable for the device, at [`DriverMemory::iova`], for as long as the transport is there.
    ///
    /// # Errors
    /// See [`Transport`]; the memory is none that this device can reach.
    fn share_memory(&self, memory: &DriverMemory) -> Result<()>;

    /// Has MSI-X vectors from 0 on raise interrupts, `count` of them, unmasked. Called again after a reset of the
    /// function; the interrupts are the same ones then.
    ///
    /// # Errors
    /// See [`Transport`]; [`DriverError::NotGranted`](crate::DriverError::NotGranted) if the function has fewer
    /// vectors.
    fn interrupts(&self, count: u16) -> Result<Vec<Arc<dyn Interrupt>>>;

    /// Finds out whether the function is still there. Called each millisecond: it must be cheap.
    ///
    /// # Errors
    /// [`DriverError::DeviceGone`](crate::DriverError::DeviceGone) if it is not.
    fn check(&self) -> Result<()>;

    /// Whether the function is known to be gone.
    fn is_gone(&self) -> bool;

    /// A descriptor that becomes readable, or hangs up, when the function goes.
    ///
    /// # Errors
    /// There are no descriptors left.
    fn gone_fd(&self) -> Result<OwnedFd>;
}

/// The interrupt of one vector: a descriptor that the device makes readable.
pub trait Interrupt: Debug + Send + Sync {
    /// Readable from when the device raises the interrupt, or [`wake`](Self::wake) is called, until
    /// [`take`](Self::take).
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Makes the descriptor unreadable; tells whether it was readable. Never waits.
    fn take(&self) -> bool;

    /// Makes the descriptor readable: whoever sleeps on it is to look at what else has happened.
    fn wake(&self);
}
