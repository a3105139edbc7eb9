//! `eth0` as one end of a veth pair, for users who may not open `/dev/net/tun`.
//!
//! The other end lies in a network namespace that holds nothing else and that no process is in; the sockets
//! here keep it alive. So the guest sees an `eth0` and nothing more, and taking the other end down takes
//! `eth0`'s carrier away.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use linux_network::{
    LinkChange, NetworkError, PacketOptions, PacketSocket, ReceivedPacket, RouteSocket,
    enter_network_namespace,
};
use rustix::io::Errno;

use super::{frames::Frames, interface::GuestInterface};
use crate::Drops;

/// The hidden end; nobody sees the name.
const PEER: &str = "vf";

/// A veth pair's hidden end.
#[derive(Debug)]
pub(crate) struct VethInterface {
    socket: PacketSocket,
    /// A rtnetlink socket into the hidden namespace.
    hidden: RouteSocket,
    index: u32,
}

impl VethInterface {
    /// Creates the pair, with its near end in this thread's network namespace.
    pub(crate) fn create(route: &mut RouteSocket, name: &str) -> Result<Self, NetworkError> {
        route.create_veth(name, PEER)?;
        let peer = route.link(PEER)?.ok_or_else(|| NetworkError::NoInterface(PEER.to_owned()))?;
        let hide = move || {
            enter_network_namespace()?;
            let namespace = File::open("/proc/thread-self/ns/net").map_err(|source| {
                NetworkError::Namespace { action: "find the hidden network namespace", source }
            })?;
            let away = LinkChange { namespace: Some(namespace.as_fd()), ..Default::default() };
            route.change_link(peer.index, &away)?;
            let mut hidden = RouteSocket::open()?;
            let peer =
                hidden.link(PEER)?.ok_or_else(|| NetworkError::NoInterface(PEER.to_owned()))?;
            // It must say nothing of its own, and take whatever the guest's MTU is.
            let quiet = LinkChange {
                link_local: Some(false),
                mtu: Some(u16::MAX.into()),
                up: Some(false),
                ..Default::default()
            };
            hidden.change_link(peer.index, &quiet)?;
            let socket = PacketSocket::open(PEER, PacketOptions { promiscuous: true })?;
            Ok(Self { socket, hidden, index: peer.index })
        };
        // Another thread, since the namespace of this one must stay what it is.
        thread::scope(|scope| scope.spawn(hide).join()).unwrap_or_else(|_| {
            Err(NetworkError::Namespace {
                action: "hide the far end of the veth pair",
                source: io::Error::other("the thread that does it panicked"),
            })
        })
    }
}

impl GuestInterface for VethInterface {
    fn receive(
        &mut self,
        limit: usize,
        take: &mut dyn FnMut(&ReceivedPacket<'_>) -> bool,
    ) -> io::Result<usize> {
        Ok(self.socket.receive(limit, take))
    }

    fn transmit(&mut self, frames: &Frames, drops: &mut Drops) -> (u64, u64) {
        let (mut count, mut bytes, mut done) = (0, 0, 0);
        while done < frames.len() {
            match self.socket.transmit(frames.iter().skip(done)) {
                Ok(sent) => {
                    let sent_frames = frames.iter().skip(done).take(sent);
                    bytes += sent_frames.map(|(_, frame)| frame.len() as u64).sum::<u64>();
                    count += sent as u64;
                    done += sent;
                }
                Err(error) => {
                    match Errno::from_io_error(&error) {
                        Some(Errno::INTR) => continue,
                        Some(Errno::AGAIN | Errno::NOBUFS) => drops.no_room += 1,
                        Some(Errno::NETDOWN) => drops.no_link += 1,
                        Some(Errno::MSGSIZE) => drops.too_long += 1,
                        _ => drops.interface_error += 1,
                    }
                    done += 1;
                }
            }
        }
        (count, bytes)
    }

    fn set_carrier(&mut self, carrier: bool) -> Result<(), NetworkError> {
        let change = LinkChange { up: Some(carrier), ..Default::default() };
        self.hidden.change_link(self.index, &change)?;
        // Taking it down leaves an error behind, which would keep the socket readable.
        let _ = self.socket.take_error();
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.socket.is_ready()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn missed(&mut self) -> u64 {
        self.socket.dropped()
    }
}
