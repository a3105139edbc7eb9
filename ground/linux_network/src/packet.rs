//! Packet sockets: all Ethernet frames of one interface.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use arrayvec::ArrayVec;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    NetworkError, VNET_HEADER_LENGTH, VnetHeader,
    packet_ring::{PacketRing, SlotHeader},
    sys,
};

/// `tp_status` bits that say that the VLAN fields hold something.
const STATUS_VLAN_VALID: u32 = 1 << 4;
const STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// Tag protocol of a VLAN tag whose protocol the kernel did not tell (IEEE 802.1Q).
const TPID_8021Q: u16 = 0x8100;

/// How a packet socket is opened.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct PacketOptions {
    /// Whether the interface also takes frames for other addresses while the socket is open.
    pub promiscuous: bool,
}

/// A VLAN tag that the kernel took out of a frame.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct VlanTag {
    /// Tag protocol identifier.
    pub tpid: u16,
    /// Priority, drop eligibility and VLAN id.
    pub tci: u16,
}

/// One packet that arrived at the interface.
#[derive(Copy, Clone, Debug)]
pub struct ReceivedPacket<'a> {
    /// The packet, from its Ethernet header on.
    pub packet: &'a [u8],
    /// Whether it was longer than the kernel kept.
    pub truncated: bool,
    /// What the sender left to do.
    pub header: VnetHeader,
    /// The tag that was between the addresses and the EtherType, if the kernel took it out.
    pub vlan: Option<VlanTag>,
}

/// A packet socket on one interface. Frames that this host sends through the interface are not seen.
///
/// Packets may be larger than frames and without checksum in both directions, as their [`VnetHeader`] says.
#[derive(Debug)]
pub struct PacketSocket {
    // The ring goes first when the socket is dropped.
    ring: PacketRing,
    fd: OwnedFd,
    index: u32,
    dropped: u64,
}

impl PacketSocket {
    /// Opens a packet socket on `interface` of this thread's network namespace.
    ///
    /// Needs CAP_NET_RAW in the network namespace's user namespace.
    pub fn open(interface: &str, options: PacketOptions) -> Result<Self, NetworkError> {
        sys::interface_name(interface)?;
        // Protocol 0: nothing is received before the socket is bound to its interface.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
            .map_err(|source| NetworkError::Socket { kind: "packet", source: source.into() })?;
        let index = rustix::net::netdevice::name_to_index(&fd, interface)
            .map_err(|_| NetworkError::NoInterface(interface.to_owned()))?;
        let failed = |action| {
            move |source| NetworkError::Interface {
                interface: interface.to_owned(),
                action,
                source,
            }
        };
        for (option, action) in [
            (libc::PACKET_IGNORE_OUTGOING, "leave out the frames that this host sends"),
            (libc::PACKET_VNET_HDR, "ask for offload headers"),
        ] {
            sys::packet_set_option(fd.as_fd(), option, 1).map_err(failed(action))?;
        }
        if options.promiscuous {
            sys::packet_set_promiscuous(fd.as_fd(), index)
                .map_err(failed("make it promiscuous"))?;
        }
        let ring = PacketRing::attach(fd.as_fd()).map_err(failed("make a receive ring"))?;
        const ALL_PROTOCOLS: u16 = 3; // ETH_P_ALL
        sys::packet_bind(fd.as_fd(), index, ALL_PROTOCOLS)
            .map_err(failed("bind a packet socket to it"))?;
        Ok(Self { ring, fd, index, dropped: 0 })
    }

    /// Index of the interface.
    pub fn interface_index(&self) -> u32 {
        self.index
    }

    /// Whether a packet is waiting.
    pub fn is_ready(&self) -> bool {
        self.ring.is_ready()
    }

    /// Offers waiting packets to `take`, in order, at most `limit` of them.
    ///
    /// A packet for which `take` returns false stays and is offered again by the next call, which ends this
    /// one. Returns how many were taken.
    pub fn receive(
        &mut self,
        limit: usize,
        mut take: impl FnMut(&ReceivedPacket<'_>) -> bool,
    ) -> usize {
        for taken in 0..limit {
            let Some((header, slot)) = self.ring.peek() else {
                return taken;
            };
            // A slot that the kernel filled with nonsense is passed over; there is no such kernel.
            if read_slot(&header, slot).is_some_and(|packet| !take(&packet)) {
                return taken;
            }
            self.ring.release();
        }
        limit
    }

    /// Sends packets, each with its header, in order, until the interface takes no more.
    ///
    /// Returns how many were sent. An error is that of the first packet, of which nothing was sent:
    /// WOULDBLOCK or ENOBUFS where there is no room, ENETDOWN where the interface is down.
    pub fn transmit<'a>(
        &self,
        packets: impl Iterator<Item = (&'a VnetHeader, &'a [u8])>,
    ) -> io::Result<usize> {
        let parts = packets
            .take(sys::BURST)
            .map(|(header, packet)| [IoSlice::new(header.as_bytes()), IoSlice::new(packet)])
            .collect::<ArrayVec<_, { sys::BURST }>>();
        if parts.is_empty() {
            return Ok(0);
        }
        sys::send_packets(self.fd.as_fd(), &parts)
    }

    /// Packets that the kernel dropped because the ring was full, since the socket was opened.
    pub fn dropped(&mut self) -> u64 {
        // Asking clears the kernel's counter.
        self.dropped += u64::from(sys::packet_take_drops(self.fd.as_fd()).unwrap_or(0));
        self.dropped
    }

    /// Takes the error that the socket holds, such as ENETDOWN after its interface went down.
    pub fn take_error(&self) -> Option<io::Error> {
        match rustix::net::sockopt::socket_error(&self.fd) {
            Ok(Ok(())) => None,
            Ok(Err(error)) | Err(error) => Some(error.into()),
        }
    }
}

/// Finds the packet in a slot of the ring.
fn read_slot<'a>(header: &SlotHeader, slot: &'a [u8]) -> Option<ReceivedPacket<'a>> {
    let start = usize::from(header.mac);
    let packet = slot.get(start..start.checked_add(usize::try_from(header.captured).ok()?)?)?;
    let offload = slot.get(start.checked_sub(VNET_HEADER_LENGTH)?..start)?;
    let vlan = (header.status & STATUS_VLAN_VALID != 0).then_some(VlanTag {
        tci: header.vlan_tci,
        tpid: if header.status & STATUS_VLAN_TPID_VALID != 0 {
            header.vlan_tpid
        } else {
            TPID_8021Q
        },
    });
    Some(ReceivedPacket {
        packet,
        truncated: header.length > header.captured,
        header: VnetHeader::read_from_bytes(offload).ok()?,
        vlan,
    })
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
