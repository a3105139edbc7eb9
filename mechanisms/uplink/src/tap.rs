//! Uplink over a TAP device: the host's network stack is at the other end of the cable.
//!
//! The device is opened without offloads, so that the kernel finishes checksums, cuts large segments and
//! puts VLAN tags back before a frame gets here, and nothing is left to this side.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use linux_network::{LinkChange, NetworkError, RouteSocket, TapDevice, TapOptions, VnetHeader};
use rustix::io::Errno;

use crate::{
    ETHERNET_HEADER, FrameBurst, LinkState, Uplink, UplinkError, UplinkSpec, UplinkStatistics,
};

/// What Linux itself says a TAP device runs at.
const SPEED_MBPS: u32 = 10_000;

/// An uplink whose frames are those of a TAP device.
#[derive(Debug)]
pub struct TapUplink {
    tap: TapDevice,
    route: RouteSocket,
    index: u32,
    spec: UplinkSpec,
    max_frame: usize,
    lost: bool,
    statistics: UplinkStatistics,
}

impl TapUplink {
    /// Opens the TAP device `name`, creating it and setting it up if need be.
    ///
    /// A device that was made for this user beforehand (`ip tuntap add NAME mode tap user USER`) needs no
    /// privilege beyond access to `/dev/net/tun`; then setting it up is its owner's business.
    pub fn open(name: &str, max_frame: usize) -> Result<Self, UplinkError> {
        let failed = |action| {
            move |source: NetworkError| UplinkError::Interface {
                interface: name.to_owned(),
                action,
                source,
            }
        };
        let tap = TapDevice::open(name, TapOptions { offload: false })
            .map_err(failed("open it as a TAP device"))?;
        let mut route = RouteSocket::open().map_err(failed("watch its state"))?;
        let link = route
            .link(name)
            .and_then(|link| link.ok_or_else(|| NetworkError::NoInterface(name.to_owned())))
            .map_err(failed("find it"))?;
        let up = LinkChange { up: Some(true), ..Default::default() };
        if !link.up && route.change_link(link.index, &up).is_err() {
            tracing::warn!(
                interface = name,
                "the uplink's TAP device is down and may not be set up by this user; as root run `ip link set \
                 {name} up`"
            );
        }
        Ok(Self {
            tap,
            route,
            index: link.index,
            spec: UplinkSpec::Tap { name: name.to_owned() },
            max_frame,
            lost: false,
            statistics: UplinkStatistics::default(),
        })
    }

    /// Marks the device as gone and says so.
    fn lose(&mut self, source: io::Error) -> UplinkError {
        self.lost = true;
        UplinkError::InterfaceLost { interface: self.tap.name().to_owned(), source }
    }
}

impl Uplink for TapUplink {
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError> {
        burst.clear();
        if self.lost {
            return Ok(0);
        }
        let longest = burst.max_frame();
        while let Some(slot) = burst.reserve_with_sentinel() {
            match self.tap.receive(slot) {
                Ok((length, _)) if length > longest => self.statistics.received_too_long += 1,
                Ok((length, _)) if length < ETHERNET_HEADER => {
                    self.statistics.received_too_short += 1;
                }
                Ok((length, _)) => {
                    burst.commit(length);
                    self.statistics.received_frames += 1;
                    self.statistics.received_bytes += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Frames that came before it are taken first; the error comes again.
                Err(_) if !burst.is_empty() => break,
                Err(error) => return Err(self.lose(error)),
            }
        }
        Ok(burst.len())
    }

    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError> {
        let mut result = Ok(burst.len());
        for (done, frame) in burst.iter().enumerate() {
            if self.lost {
                self.statistics.transmit_no_link += 1;
                continue;
            }
            if !(ETHERNET_HEADER..=self.max_frame).contains(&frame.len()) {
                self.statistics.transmit_bad_length += 1;
                continue;
            }
            match self.tap.transmit(frame, &VnetHeader::default()) {
                Ok(()) => {
                    self.statistics.transmitted_frames += 1;
                    self.statistics.transmitted_bytes += frame.len() as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(done),
                Err(error) => match Errno::from_io_error(&error) {
                    // The interface is down.
                    Some(Errno::IO) => self.statistics.transmit_no_link += 1,
                    Some(Errno::BADFD) => {
                        self.statistics.transmit_no_link += 1;
                        result = Err(self.lose(error));
                    }
                    _ => self.statistics.transmit_errors += 1,
                },
            }
        }
        result
    }

    fn link(&mut self) -> LinkState {
        match self.route.link_at(self.index) {
            Ok(Some(link)) if link.up && !self.lost => LinkState::up(SPEED_MBPS),
            _ => LinkState::DOWN,
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.lost).then(|| self.tap.as_fd())
    }

    fn statistics(&self) -> UplinkStatistics {
        self.statistics
    }

    fn spec(&self) -> &UplinkSpec {
        &self.spec
    }
}
