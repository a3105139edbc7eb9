//! rtnetlink: interfaces, their addresses, and routes of one network namespace.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, Stats64,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{NetworkError, sys};

/// Bytes of an answer; the longest, a link with all its attributes, has some 2 KiB.
const ANSWER_LENGTH: usize = 32 << 10;

/// An Ethernet address.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default, Debug)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An interface as it is now.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; zero if it has none of 6 bytes.
    pub mac: MacAddress,
    /// Bytes of payload of its longest frame.
    pub mtu: u32,
    /// Whether it was set up (IFF_UP).
    pub up: bool,
    /// Whether it has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// Whether packets pass (IFF_RUNNING): some time after the carrier came, the kernel starts the queue,
    /// and until then loses what is sent.
    pub running: bool,
    /// Whether somebody wants all frames, whoever they are addressed to.
    pub promiscuous: bool,
    /// Whether somebody wants the frames of all multicast groups.
    pub all_multicast: bool,
    /// What it counted.
    pub statistics: LinkStatistics,
}

/// Counters of an interface.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct LinkStatistics {
    /// Packets received.
    pub receive_packets: u64,
    /// Bytes received.
    pub receive_bytes: u64,
    /// Received packets that were dropped.
    pub receive_dropped: u64,
    /// Packets sent.
    pub transmit_packets: u64,
    /// Bytes sent.
    pub transmit_bytes: u64,
    /// Packets that were dropped instead of sent.
    pub transmit_dropped: u64,
}

/// What to change about an interface; `None` leaves it as it is.
#[derive(Copy, Clone, Default, Debug)]
pub struct LinkChange<'a> {
    /// Set it up or down.
    pub up: Option<bool>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// Whether it makes itself a link-local IPv6 address when it is set up.
    pub link_local: Option<bool>,
    /// Packets that its queue holds.
    pub queue_length: Option<u32>,
    /// Bytes of the largest packet that its segmentation takes, headers included; 65,536 at most for IPv4.
    pub largest_segmented: Option<u32>,
    /// The network namespace to move it to.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// A rtnetlink socket. It belongs to the network namespace of the thread that opened it, for good.
pub struct RouteSocket {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
}

impl fmt::Debug for RouteSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteSocket({})", self.socket.as_raw_fd())
    }
}

impl RouteSocket {
    /// Opens a socket into this thread's network namespace.
    pub fn open() -> Result<Self, NetworkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetworkError::Socket { kind: "rtnetlink", source })?;
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(ANSWER_LENGTH) })
    }

    /// The interface of this name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetworkError> {
        sys::interface_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(message, name)
    }

    /// The interface of this index, if there is one.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetworkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message, &index.to_string())
    }

    fn get_link(&mut self, message: LinkMessage, name: &str) -> Result<Option<Link>, NetworkError> {
        let action = format!("look up interface {name}");
        match self.request(&action, 0, RouteNetlinkMessage::GetLink(message)) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(read_link(&link))),
            Ok(_) => {
                Err(NetworkError::RouteAnswer { action, problem: "it is not a link".to_owned() })
            }
            Err(NetworkError::Route { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Changes the interface of this index.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), NetworkError> {
        let action = format!("change interface {index} ({change:?})");
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(link_local) = change.link_local {
            // In a message of its own, since within one the kernel sets the interface up before this.
            let mode = if link_local { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
            let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
            let mut message = message.clone();
            message.attributes.push(LinkAttribute::AfSpecUnspec(vec![inet6]));
            self.request(&action, NLM_F_ACK, RouteNetlinkMessage::SetLink(message))?;
        }
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags.set(LinkFlags::Up, up);
        }
        let attributes = &mut message.attributes;
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(change.queue_length.map(LinkAttribute::TxQueueLen));
        attributes.extend(change.largest_segmented.map(LinkAttribute::GsoMaxSize));
        attributes.extend(change.namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        self.request(&action, NLM_F_ACK, RouteNetlinkMessage::SetLink(message)).map(drop)
    }

    /// Makes a pair of interfaces of which each receives what the other sends.
    pub fn create_veth(&mut self, name: &str, peer: &str) -> Result<(), NetworkError> {
        sys::interface_name(name)?;
        sys::interface_name(peer)?;
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        let action = format!("create the veth pair {name} and {peer}");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(&action, flags, RouteNetlinkMessage::NewLink(message)).map(drop)
    }

    /// Deletes the interface of this index.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetworkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let action = format!("delete interface {index}");
        self.request(&action, NLM_F_ACK, RouteNetlinkMessage::DelLink(message)).map(drop)
    }

    /// Gives the interface of this index an address. IPv6 addresses are usable at once, without the
    /// second in which others could object to them.
    pub fn add_address(
        &mut self,
        index: u32,
        address: IpAddr,
        prefix_length: u8,
    ) -> Result<(), NetworkError> {
        let mut message = AddressMessage::default();
        message.header = AddressHeader {
            family: family(address),
            prefix_len: prefix_length,
            flags: if address.is_ipv6() {
                AddressHeaderFlags::Nodad
            } else {
                AddressHeaderFlags::empty()
            },
            index,
            ..Default::default()
        };
        message.attributes =
            vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if let IpAddr::V4(v4) = address
            && prefix_length < 31
        {
            let hosts = u32::MAX.checked_shr(prefix_length.into()).unwrap_or(0);
            let broadcast = (u32::from(v4) | hosts).into();
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        let action = format!("add address {address}/{prefix_length} to interface {index}");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(&action, flags, RouteNetlinkMessage::NewAddress(message)).map(drop)
    }

    /// Makes `gateway`, reached through the interface of this index, the default route.
    pub fn set_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<(), NetworkError> {
        const MAIN_TABLE: u8 = 254;
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            table: MAIN_TABLE,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..Default::default()
        };
        let gateway_address = match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes =
            vec![RouteAttribute::Gateway(gateway_address), RouteAttribute::Oif(index)];
        let action = format!("make {gateway} the default gateway");
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(&action, flags, RouteNetlinkMessage::NewRoute(message)).map(drop)
    }

    /// Sends one request and waits for its answer: a message, or `None` for a mere acknowledgement.
    fn request(
        &mut self,
        action: &str,
        flags: u16,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetworkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        let failed = |source| NetworkError::Route { action: action.to_owned(), source };
        self.socket.send(&buffer, 0).map_err(failed)?;
        loop {
            self.answer.clear();
            match self.socket.recv(&mut self.answer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            }
            let unreadable =
                |problem| NetworkError::RouteAnswer { action: action.to_owned(), problem };
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.answer)
                .map_err(|error| unreadable(error.to_string()))?;
            if answer.header.sequence_number != self.sequence {
                // The answer to a request that failed half-way before.
                continue;
            }
            return match answer.payload {
                NetlinkPayload::Error(error) => match error.code {
                    None => Ok(None),
                    Some(code) => Err(failed(io::Error::from_raw_os_error(code.get().abs()))),
                },
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                other => Err(unreadable(format!("unexpected {other:?}"))),
            };
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn read_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: MacAddress::default(),
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        running: flags.contains(LinkFlags::Running),
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        statistics: LinkStatistics::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) => {
                link.mac = MacAddress(address.as_slice().try_into().unwrap_or_default());
            }
            LinkAttribute::Promiscuity(count) => link.promiscuous |= *count > 0,
            LinkAttribute::AllMulticast(count) => link.all_multicast |= *count > 0,
            LinkAttribute::Stats64(statistics) => link.statistics = read_statistics(statistics),
            _ => {}
        }
    }
    link
}

fn read_statistics(statistics: &Stats64) -> LinkStatistics {
    LinkStatistics {
        receive_packets: statistics.rx_packets,
        receive_bytes: statistics.rx_bytes,
        receive_dropped: statistics.rx_dropped,
        transmit_packets: statistics.tx_packets,
        transmit_bytes: statistics.tx_bytes,
        transmit_dropped: statistics.tx_dropped,
    }
}
