//! `eth0` as a TAP device.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use linux_network::{NetworkError, ReceivedPacket, TapDevice, TapOptions, VnetHeader};
use rustix::io::Errno;

use super::{frames::Frames, interface::GuestInterface};
use crate::Drops;

/// Bytes of the largest packet that the kernel sends, with its headers.
const LARGEST: usize = 68 << 10;

/// A TAP device of the guest.
#[derive(Debug)]
pub(crate) struct TapInterface {
    tap: TapDevice,
    packet: Box<[u8]>,
    /// Length and header of a packet in `packet` that was not taken.
    held: Option<(usize, VnetHeader)>,
}

impl TapInterface {
    /// Creates the TAP device in this thread's network namespace.
    pub(crate) fn create(name: &str) -> Result<Self, NetworkError> {
        let tap = TapDevice::open(name, TapOptions { offload: true })?;
        Ok(Self { tap, packet: vec![0; LARGEST].into_boxed_slice(), held: None })
    }
}

impl GuestInterface for TapInterface {
    fn receive(
        &mut self,
        limit: usize,
        take: &mut dyn FnMut(&ReceivedPacket<'_>) -> bool,
    ) -> io::Result<usize> {
        for taken in 0..limit {
            let (length, header) = match self.held.take() {
                Some(held) => held,
                None => match self.tap.receive(&mut self.packet) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                    Err(error) if taken == 0 => return Err(error),
                    // It comes again.
                    Err(_) => return Ok(taken),
                },
            };
            let packet = ReceivedPacket {
                packet: self.packet.get(..length).unwrap_or_default(),
                truncated: length == self.packet.len(),
                header,
                // The kernel puts tags back into packets that it gives to a TAP device.
                vlan: None,
            };
            if !take(&packet) {
                self.held = Some((length, header));
                return Ok(taken);
            }
        }
        Ok(limit)
    }

    fn transmit(&mut self, frames: &Frames, drops: &mut Drops) -> (u64, u64) {
        let (mut count, mut bytes) = (0, 0);
        for (header, frame) in frames.iter() {
            match self.tap.transmit(frame, header) {
                Ok(()) => {
                    count += 1;
                    bytes += frame.len() as u64;
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => drops.no_room += 1,
                    _ => drops.interface_error += 1,
                },
            }
        }
        (count, bytes)
    }

    fn set_carrier(&mut self, carrier: bool) -> Result<(), NetworkError> {
        self.tap.set_carrier(carrier)
    }

    fn is_ready(&self) -> bool {
        self.held.is_some()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}
