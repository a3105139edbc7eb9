//! The synthetic path as the carrier uses it: packets in and out through NetVSC.

use std::os::fd::{AsFd, BorrowedFd};

use netvsp::client::{NetVsc, Upcall};
use netvsp_protocol::{MacAddress, offload::OffloadCapabilities, oid::PacketFilter};
use offload::VLAN_TAG_LEN;
use vmbus::Channel;

use super::{
    frames::Frames,
    translate::{self, Limits, WirePacket},
};
use crate::SyntheticState;

/// Channels of one adapter, at most.
const MAX_CHANNELS: u16 = 64;

/// What came of a poll.
#[derive(Copy, Clone, Default, Debug)]
pub(super) struct Received {
    /// Frames, those included that were not wanted.
    pub(super) frames: usize,
    /// Frames to groups, which were not wanted.
    pub(super) groups: u64,
    /// Frames that no buffer here can hold.
    pub(super) too_long: u64,
    /// There may be more.
    pub(super) more: bool,
}

/// A synthetic adapter whose primary channel is open.
#[derive(Debug)]
pub(crate) struct SyntheticPath {
    nic: NetVsc,
    limits: Limits,
    /// What NetVSC said of itself when it came up.
    up: Option<Up>,
    /// A bit for each channel that is open here.
    open: u64,
    /// A frame in one piece.
    frame: Vec<u8>,
    associated: Option<u32>,
}

#[derive(Copy, Clone, Debug)]
struct Up {
    mac: [u8; 6],
    mtu: u32,
    connected: bool,
    channels: u16,
}

impl SyntheticPath {
    /// A NIC whose primary channel was just opened.
    pub(crate) fn new(nic: NetVsc) -> Self {
        let limits = Limits::of_synthetic(0, OffloadCapabilities::default());
        Self { nic, limits, up: None, open: 1, frame: Vec::new(), associated: None }
    }

    /// A subchannel is open. False if it was not granted.
    pub(super) fn open_subchannel(&mut self, index: u16, channel: Channel) -> bool {
        let opened = index < MAX_CHANNELS && self.nic.open(index, channel);
        if opened {
            self.open |= 1 << index;
        }
        opened
    }

    fn channels(&self) -> impl Iterator<Item = u16> + use<> {
        let open = self.open;
        (0..MAX_CHANNELS).filter(move |index| open & 1 << index != 0)
    }

    /// What NetVSC wants done, or has to tell; what concerns the path itself was taken note of.
    pub(super) fn next_upcall(&mut self) -> Option<Upcall> {
        let upcall = self.nic.next_upcall()?;
        match upcall {
            Upcall::Up { mac, mtu, offloads, connected, channels } => {
                self.up = Some(Up { mac: mac.octets(), mtu, connected, channels });
                self.limits =
                    Limits::of_synthetic(usize::try_from(mtu).unwrap_or(usize::MAX), offloads);
            }
            Upcall::Link { connected } => {
                if let Some(up) = &mut self.up {
                    up.connected = connected;
                }
            }
            Upcall::Offloads(offloads) => self.limits.offloads = offloads,
            Upcall::VfAssociation(serial) => self.associated = serial,
            Upcall::Failed(_) => self.up = None,
            Upcall::OpenSubchannels { .. }
            | Upcall::StopVf
            | Upcall::StartVf
            | Upcall::VfReleased => {}
        }
        Some(upcall)
    }

    /// Its MAC address, while it is up.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        self.up.map(|up| up.mac)
    }

    /// The largest MTU that its frames allow, while it is up.
    pub(super) fn mtu(&self) -> Option<u32> {
        // An Ethernet header is in the one and not in the other.
        self.up.map(|up| up.mtu.saturating_sub(14))
    }

    /// Whether it is up and its link is, too.
    pub(super) fn link(&self) -> Option<bool> {
        self.up.map(|up| up.connected)
    }

    /// NetVSC's idea of the data path.
    pub(super) fn path(&self) -> netvsp::client::VfPath {
        self.nic.control().path()
    }

    /// What packets it takes.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Writes down where it stands.
    pub(super) fn describe(&self, state: &mut SyntheticState) {
        state.present = self.up.is_some();
        state.link_up = self.up.is_some_and(|up| up.connected);
        state.channels = self.up.map_or(0, |up| up.channels);
        state.version = self.nic.control().version().to_wire();
        state.associated_vf = self.associated;
    }

    /// Hands a packet over; false if there is no room for it now. The host sees it after [`flush`](Self::flush).
    pub(super) fn send(&mut self, packet: &WirePacket<'_>) -> bool {
        // With one channel there is nothing to choose.
        let channel = if self.open == 1 { 0 } else { self.nic.select_channel(packet.flow()) };
        let sent = match (&*packet.head, &*packet.body) {
            (head, []) => self.nic.send(channel, head, &packet.metadata),
            ([], body) => self.nic.send(channel, body, &packet.metadata),
            (head, body) => {
                self.frame.clear();
                self.frame.extend_from_slice(head);
                self.frame.extend_from_slice(body);
                self.nic.send(channel, &self.frame, &packet.metadata)
            }
        };
        sent.is_ok()
    }

    /// Lets the host see what was handed over; true if the rings took all of it.
    pub(super) fn flush(&mut self) -> bool {
        let mut all = true;
        for index in self.channels() {
            all &= self.nic.flush(index);
        }
        all
    }

    /// Buffers that the host has not given back.
    pub(super) fn in_flight(&self) -> u64 {
        self.channels().filter_map(|index| self.nic.outstanding(index)).map(u64::from).sum()
    }

    /// Receives what is there, burst by burst, and gives each to `deliver`, which empties it. Frames to groups only if
    /// they are wanted.
    pub(super) fn receive(
        &mut self,
        frames: &mut Frames,
        groups: bool,
        mut deliver: impl FnMut(&mut Frames),
    ) -> Received {
        let mut received = Received::default();
        for index in self.channels() {
            let (count, more) = self.nic.poll(index, |burst| {
                for frame in burst.frames() {
                    let [first, ..] = frame.destination();
                    if first & 1 != 0 && !groups {
                        received.groups += 1;
                    } else if copy(frames, &frame).is_none() {
                        received.too_long += 1;
                    }
                }
                deliver(frames);
            });
            received.frames += count;
            received.more |= more;
        }
        received
    }

    /// Asks for the interrupts of all channels; false if there is something to do already.
    pub(super) fn arm(&mut self) -> bool {
        self.channels().all(|index| self.nic.prepare_to_wait(index))
    }

    /// What to sleep on: readable when the host has done something.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.channels().filter_map(|index| Some(self.nic.channel(index)?.as_fd()))
    }

    /// Takes the interrupts.
    pub(super) fn acknowledge(&mut self) {
        for index in self.channels() {
            self.nic.woken(index);
        }
    }

    /// Tells which frames the interface wants.
    pub(super) fn set_packet_filter(&mut self, filter: PacketFilter) {
        self.nic.set_packet_filter(filter);
    }

    /// A VF with this serial number and address is there, or none.
    pub(super) fn vf_device(&mut self, device: Option<(u32, [u8; 6])>) {
        self.nic.vf_device(device.map(|(serial, mac)| (serial, MacAddress::new(mac))));
    }

    /// The VF's driver came up or goes down.
    pub(super) fn vf_driver(&mut self, up: bool) {
        self.nic.vf_driver(up);
    }
}

/// Copies a frame, with its tag in it.
fn copy(frames: &mut Frames, frame: &netvsp::Frame<'_, '_, netvsp::ReceiveMetadata>) -> Option<()> {
    let length = usize::try_from(frame.length).ok()?;
    let header = translate::from_synthetic(frame.metadata);
    match frame.metadata.vlan_tci {
        None => {
            frame.read_into(frames.next()?.get_mut(..length)?);
            frames.commit(length, header);
        }
        Some(tci) => {
            let place = frames.next()?.get_mut(..VLAN_TAG_LEN + length)?;
            frame.read_into(place.get_mut(VLAN_TAG_LEN..)?);
            translate::put_tag(place, tci)?;
            frames.commit(VLAN_TAG_LEN + length, header);
        }
    }
    Some(())
}
