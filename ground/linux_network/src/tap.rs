//! TAP devices: an interface whose other side is a descriptor of this process.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags};
use zerocopy::IntoBytes;

use crate::{NetworkError, VnetHeader, sys};

/// How a TAP device is opened.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct TapOptions {
    /// Whether each packet is preceded by a [`VnetHeader`], and the kernel may leave checksums and TCP
    /// segmentation to this side. Without it every packet is a complete frame within the interface's MTU.
    pub offload: bool,
}

/// An open TAP device. It disappears with its last descriptor unless it was made persistent by others.
#[derive(Debug)]
pub struct TapDevice {
    fd: OwnedFd,
    name: String,
    offload: bool,
}

impl TapDevice {
    /// Opens the TAP device `name` of this thread's network namespace, creating it if there is none.
    ///
    /// Needs access to `/dev/net/tun`, and CAP_NET_ADMIN in the network namespace's user namespace or
    /// ownership of a persistent device.
    pub fn open(name: &str, options: TapOptions) -> Result<Self, NetworkError> {
        let request = sys::interface_name(name)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
            .map_err(|source| NetworkError::TunDevice(source.into()))?;
        let failed = |action| {
            move |source: rustix::io::Errno| NetworkError::Interface {
                interface: name.to_owned(),
                action,
                source: source.into(),
            }
        };
        sys::tap_attach(fd.as_fd(), request, options.offload)
            .map_err(failed("create or attach to it as a TAP device"))?;
        if options.offload {
            sys::tap_set_offload(fd.as_fd(), sys::TAP_OFFLOADS)
                .map_err(failed("enable its checksum and segmentation offloads"))?;
        }
        Ok(Self { fd, name: name.to_owned(), offload: options.offload })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the next packet that the kernel sent through the interface; WOULDBLOCK if there is none.
    ///
    /// Returns its length, which is that of `packet` if it was cut, and what the kernel left to do: nothing
    /// unless the device was opened with [`TapOptions::offload`].
    pub fn receive(&self, packet: &mut [u8]) -> io::Result<(usize, VnetHeader)> {
        let mut header = VnetHeader::default();
        if !self.offload {
            return Ok((rustix::io::read(&self.fd, packet)?, header));
        }
        let mut parts = [IoSliceMut::new(header.as_mut_bytes()), IoSliceMut::new(packet)];
        let read = rustix::io::readv(&self.fd, &mut parts)?;
        let length = read.checked_sub(size_of::<VnetHeader>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((length, header))
    }

    /// Gives a packet to the kernel as received by the interface.
    ///
    /// `header` is ignored unless the device was opened with [`TapOptions::offload`]. WOULDBLOCK cannot
    /// happen: the kernel drops what it has no room for. EIO means that the interface is down.
    pub fn transmit(&self, packet: &[u8], header: &VnetHeader) -> io::Result<()> {
        if self.offload {
            let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(packet)];
            rustix::io::writev(&self.fd, &parts)?;
        } else {
            rustix::io::write(&self.fd, packet)?;
        }
        Ok(())
    }

    /// Sets whether the interface has a carrier, as its users see it.
    pub fn set_carrier(&self, carrier: bool) -> Result<(), NetworkError> {
        sys::tap_set_carrier(self.fd.as_fd(), carrier).map_err(|source| NetworkError::Interface {
            interface: self.name.clone(),
            action: "set its carrier",
            source: source.into(),
        })
    }
}

impl AsFd for TapDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
