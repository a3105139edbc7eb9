//! Uplink over a packet socket: an existing interface of the host is the other end of the cable.
//!
//! Frames from another machine arrive as they were on the wire. Those from this host (a veth pair, a
//! bridge) may still be without checksum, or larger than a frame, since their sender counted on its device
//! to finish them; that is done here, as the NIC takes only whole frames.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
};

use linux_network::{
    ChecksumState, NetworkError, PacketOptions, PacketSocket, ReceivedPacket, RouteSocket,
    Segmentation, VnetHeader, finish_checksum, remove_length_from_seed,
};
use offload::{HeaderLayout, SegmentKind, SegmentPlan, VlanTag, classify, insert_vlan_tag};
use rustix::io::Errno;

use crate::{
    ETHERNET_HEADER, FrameBurst, LinkState, Uplink, UplinkError, UplinkSpec, UplinkStatistics,
};

/// Bytes of a large packet that hold all its headers.
const HEADERS: usize = 256;

/// An uplink that shares an interface of the host.
#[derive(Debug)]
pub struct PacketUplink {
    socket: PacketSocket,
    route: RouteSocket,
    interface: String,
    spec: UplinkSpec,
    speed_mbps: u32,
    max_frame: usize,
    lost: bool,
    large: Option<LargePacket>,
    /// Memory of the last large packet, for the next one.
    spare: Vec<u8>,
    statistics: UplinkStatistics,
}

/// A packet that stands for several frames and is handed out one by one.
#[derive(Debug)]
struct LargePacket {
    payload: Vec<u8>,
    plan: Box<SegmentPlan>,
    vlan: Option<VlanTag>,
}

impl PacketUplink {
    /// Opens a packet socket on the interface and makes it promiscuous.
    pub fn open(interface: &str, max_frame: usize) -> Result<Self, UplinkError> {
        let failed = |action| {
            move |source: NetworkError| UplinkError::Interface {
                interface: interface.to_owned(),
                action,
                source,
            }
        };
        let socket = PacketSocket::open(interface, PacketOptions { promiscuous: true })
            .map_err(failed("open a packet socket on it (this needs CAP_NET_RAW)"))?;
        let route = RouteSocket::open().map_err(failed("watch its state"))?;
        // Interfaces that have no speed say so with an error or a negative number.
        let speed = fs::read_to_string(format!("/sys/class/net/{interface}/speed"));
        let speed_mbps = speed.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Ok(Self {
            socket,
            route,
            interface: interface.to_owned(),
            spec: UplinkSpec::Packet { interface: interface.to_owned() },
            speed_mbps,
            max_frame,
            lost: false,
            large: None,
            spare: Vec::new(),
            statistics: UplinkStatistics::default(),
        })
    }

    /// Hands out frames of the large packet at hand, as many as there is room for.
    fn cut(&mut self, burst: &mut FrameBurst) {
        let Some(large) = &mut self.large else {
            return;
        };
        while !burst.is_full() {
            let Some(frame) = large.next_frame(burst) else {
                self.spare = std::mem::take(&mut large.payload);
                self.large = None;
                return;
            };
            count_received(&mut self.statistics, burst, frame);
        }
    }
}

/// Accounts for a frame that was put into the burst, or was too long for it.
fn count_received(statistics: &mut UplinkStatistics, burst: &mut FrameBurst, frame: Option<usize>) {
    match frame {
        Some(length) => {
            burst.commit(length);
            statistics.received_frames += 1;
            statistics.received_bytes += length as u64;
        }
        None => statistics.received_too_long += 1,
    }
}

impl LargePacket {
    /// Reads a packet that is to be cut; `None` if it makes no sense.
    fn new(
        packet: &[u8],
        segmentation: Segmentation,
        vlan: Option<VlanTag>,
        mut memory: Vec<u8>,
    ) -> Option<Self> {
        let mut header = [0; HEADERS];
        let known = packet.len().min(HEADERS);
        header.get_mut(..known)?.copy_from_slice(packet.get(..known)?);
        let info = classify(header.get(..known)?, packet.len());
        let l4 = info.l4_offset();
        let data_offset = header.get(l4 + 12)? >> 4;
        let layout = HeaderLayout {
            mac_len: info.l2_len,
            ip_len: info.l3_len,
            l4_len: u16::from(data_offset) * 4,
        };
        let payload = packet.get(layout.payload_offset()..)?;
        let length = u16::try_from(packet.len().checked_sub(l4)?).ok()?;
        remove_length_from_seed(header.get_mut(l4..)?, length)?;
        let length = u32::try_from(payload.len()).ok()?;
        let plan = SegmentPlan::new(
            header.get(..known)?,
            layout,
            length,
            segmentation.segment_size,
            SegmentKind::Tcp,
        )
        .ok()?;
        memory.clear();
        memory.extend_from_slice(payload);
        Some(Self { payload: memory, plan: Box::new(plan), vlan })
    }

    /// Writes the next frame into the burst's next slot: `None` after the last frame, `Some(None)` for one
    /// that does not fit.
    fn next_frame(&mut self, burst: &mut FrameBurst) -> Option<Option<usize>> {
        let mut segment = self.plan.next_segment()?;
        let slot = burst.reserve()?;
        let length = segment.frame_len();
        let mut write = || {
            let (header, rest) =
                slot.get_mut(..length)?.split_at_mut_checked(segment.header.len())?;
            header.copy_from_slice(segment.header);
            let payload = self.payload.get(segment.payload.clone())?;
            rest.get_mut(..payload.len())?.copy_from_slice(payload);
            segment.update(payload);
            Some(())
        };
        if write().is_none() {
            return Some(None);
        }
        segment.finish().apply(slot);
        Some(put_vlan_back(slot, length, self.vlan))
    }
}

/// Inserts the tag that the kernel took out; `None` if the frame is then too long for its slot.
fn put_vlan_back(slot: &mut [u8], length: usize, vlan: Option<VlanTag>) -> Option<usize> {
    match vlan {
        None => Some(length),
        Some(tag) => insert_vlan_tag(slot, length, tag),
    }
}

/// What became of a received packet.
enum Taken {
    Frame(usize),
    Large(LargePacket),
    TooLong,
    TooShort,
    Malformed,
}

fn take(packet: &ReceivedPacket<'_>, slot: &mut [u8], spare: &mut Vec<u8>) -> Taken {
    let bytes = packet.packet;
    if packet.truncated {
        return Taken::TooLong;
    }
    if bytes.len() < ETHERNET_HEADER {
        return Taken::TooShort;
    }
    let Ok(offload) = packet.header.parse(bytes.len()) else {
        return Taken::Malformed;
    };
    let vlan = packet.vlan.map(|tag| VlanTag { tpid: tag.tpid, tci: tag.tci });
    if let Some(segmentation) = offload.segmentation {
        let memory = std::mem::take(spare);
        return LargePacket::new(bytes, segmentation, vlan, memory)
            .map_or(Taken::Malformed, Taken::Large);
    }
    let Some(frame) = slot.get_mut(..bytes.len()) else {
        return Taken::TooLong;
    };
    frame.copy_from_slice(bytes);
    if let ChecksumState::Partial { start, offset } = offload.checksum
        && finish_checksum(frame, start, offset).is_none()
    {
        return Taken::Malformed;
    }
    put_vlan_back(slot, bytes.len(), vlan).map_or(Taken::TooLong, Taken::Frame)
}

impl Uplink for PacketUplink {
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError> {
        burst.clear();
        self.cut(burst);
        while !burst.is_full() && self.large.is_none() {
            let (statistics, large, spare) =
                (&mut self.statistics, &mut self.large, &mut self.spare);
            let room = burst.capacity() - burst.len();
            let taken = self.socket.receive(room, |packet| {
                let Some(slot) = burst.reserve().filter(|_| large.is_none()) else {
                    return false;
                };
                match take(packet, slot, spare) {
                    Taken::Frame(length) => count_received(statistics, burst, Some(length)),
                    Taken::Large(packet) => *large = Some(packet),
                    Taken::TooLong => statistics.received_too_long += 1,
                    Taken::TooShort => statistics.received_too_short += 1,
                    Taken::Malformed => statistics.received_malformed += 1,
                }
                true
            });
            self.cut(burst);
            if taken == 0 {
                break;
            }
        }
        Ok(burst.len())
    }

    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError> {
        let plain = VnetHeader::default();
        let mut done = 0;
        while let Some(frame) = burst.get(done) {
            // What comes first is good, or dropped here; the kernel takes good ones in one call.
            if !(ETHERNET_HEADER..=self.max_frame).contains(&frame.len()) {
                self.statistics.transmit_bad_length += 1;
                done += 1;
                continue;
            }
            let good = burst
                .iter()
                .skip(done)
                .take_while(|frame| (ETHERNET_HEADER..=self.max_frame).contains(&frame.len()));
            match self.socket.transmit(good.map(|frame| (&plain, frame))) {
                Ok(sent) => {
                    let bytes = burst.iter().skip(done).take(sent).map(|frame| frame.len() as u64);
                    self.statistics.transmitted_bytes += bytes.sum::<u64>();
                    self.statistics.transmitted_frames += sent as u64;
                    done += sent;
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN | Errno::NOBUFS) => return Ok(done),
                    Some(Errno::INTR) => {}
                    Some(Errno::NETDOWN | Errno::NXIO | Errno::NODEV) => {
                        self.statistics.transmit_no_link += 1;
                        done += 1;
                    }
                    Some(Errno::MSGSIZE) => {
                        self.statistics.transmit_bad_length += 1;
                        done += 1;
                    }
                    _ => {
                        self.statistics.transmit_errors += 1;
                        done += 1;
                    }
                },
            }
        }
        Ok(done)
    }

    fn link(&mut self) -> LinkState {
        self.statistics.received_missed = self.socket.dropped();
        match self.route.link_at(self.socket.interface_index()) {
            Ok(Some(link)) if link.up && link.running => LinkState::up(self.speed_mbps),
            _ => LinkState::DOWN,
        }
    }

    fn arm(&mut self) -> Result<bool, UplinkError> {
        // An interface that went down left an error behind, which would keep the descriptor readable.
        if let Some(error) = self.socket.take_error()
            && matches!(self.route.link_at(self.socket.interface_index()), Ok(None))
        {
            self.lost = true;
            let interface = self.interface.clone();
            return Err(UplinkError::InterfaceLost { interface, source: error });
        }
        Ok(self.large.is_none() && !self.socket.is_ready())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.lost).then(|| self.socket.as_fd())
    }

    fn statistics(&self) -> UplinkStatistics {
        self.statistics
    }

    fn spec(&self) -> &UplinkSpec {
        &self.spec
    }
}
