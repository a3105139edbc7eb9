//! A VM's virtio-net, reached by vhost-user: of QEMU, Cloud Hypervisor, or a DPDK application.
//!
//! Two threads meet here, and the switch's waits for nobody:
//!
//! ```text
//!  front-end ◀─ socket ─▶ vhost-user thread ─ asks, and waits ─▶ inbox ─▶ the switch's thread ─▶ rings, eventfds
//! ```
//!
//! What the front-end wants of the rings (start, stop, other memory) is done by the switch's thread between two rounds.

mod held;
mod offloads;
mod steering;

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Instant,
};

use arrayvec::ArrayVec;
use linux_network::PacketOffload;
use offload::{MAX_HEADER_LEN, TPID_8021Q, VLAN_TAG_LEN};
use owner_thread::{Inbox, inbox};
use serde::{Deserialize, Serialize};
use shared_memory::SharedSlice;
use vhost_user_net::{
    Device, Features, MAX_BURST, MAX_QUEUE_PAIRS, NotPut, Packet, Sent, SentBurst, VhostUserServer,
    WholePacket,
};

use self::{held::Held, offloads::Passed, steering::Steering};
use crate::{Frame, NotDelivered, Offloads, Port, ServeError, Staging, finish::finish};

/// Packets of one queue in one round.
pub(crate) const BURST: usize = 128;
/// Bytes of two addresses, behind which a tag stands.
const ADDRESSES: usize = 12;

/// What it is, for errors.
const KIND: &str = "the vhost-user port";

/// The port of a VM with a virtio-net. Dropping it ends the connection with its front-end.
#[derive(Debug)]
pub struct VhostUserPort {
    device: Device,
    /// Goes before the server, whose thread waits for answers from here.
    inbox: Inbox<Device>,
    server: VhostUserServer,
    /// For headers of the guest's that do not go on as they are.
    staging: Staging,
    steering: Steering,
    path: GuestPath,
    /// From the first time on that the guest has a VF.
    held: Option<Held>,
    /// Those that wait are the VF's.
    to_vf: bool,
    /// The VLAN that the guest is in without knowing.
    vlan: Option<u16>,
    /// Packets of the last poll.
    gathered: usize,
}

/// By which path the guest of a virtio-net takes frames.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestPath {
    /// By its virtio-net.
    #[default]
    Synthetic,
    /// By neither yet, or not any more: a VF's driver is there, and does not receive. Frames wait, for five seconds at most.
    Moving,
    /// By a VF. Frames go out by the uplink; what comes from there all the same waits, as above: the VF does not receive
    /// any more.
    Vf,
}

impl VhostUserPort {
    /// Serves a virtio-net with so many queue pairs on a socket, which appears there (mode 0600) and vanishes with the
    /// port. `name` is for logs.
    ///
    /// # Errors
    /// The socket cannot be made or is served already; there is no memory, descriptor or thread.
    pub fn serve(socket: &Path, name: &str, pairs: u16) -> Result<Self, ServeError> {
        let pairs = pairs.clamp(1, MAX_QUEUE_PAIRS);
        let device = Device::new(pairs).map_err(ServeError::of(KIND, "its queues"))?;
        let staging = Staging::new().map_err(ServeError::of(KIND, "its memory"))?;
        let (handle, inbox) = inbox().map_err(ServeError::of(KIND, "its inbox"))?;
        let server = VhostUserServer::bind(socket, name, handle, pairs)
            .map_err(ServeError::of(KIND, "its socket or thread"))?;
        Ok(Self {
            device,
            inbox,
            server,
            staging,
            steering: Steering::default(),
            path: GuestPath::default(),
            held: None,
            to_vf: false,
            vlan: None,
            gathered: 0,
        })
    }

    /// Says by which path the guest takes frames, and in which VLAN it is without knowing.
    pub fn set_path(&mut self, path: GuestPath, vlan: Option<u16>) {
        if path != GuestPath::Synthetic && self.held.is_none() {
            // Without, frames of a move are lost.
            self.held =
                Held::new().inspect_err(|error| tracing::warn!(%error, "frames cannot wait")).ok();
        }
        self.to_vf |= (self.path, path) == (GuestPath::Moving, GuestPath::Vf);
        (self.path, self.vlan) = (path, vlan);
    }

    /// Gives the guest's driver what has waited for it, or for long enough.
    fn release_to_guest(&mut self, now: Instant) -> bool {
        let Self { device, held: Some(held), path, to_vf, .. } = self else { return false };
        let late = held.until().is_some_and(|until| until <= now);
        if held.is_empty() || *to_vf || !(late || *path == GuestPath::Synthetic) {
            return false;
        }
        // What it has no buffer for is lost, as it would have been before.
        held.release(|frame| {
            let _ =
                put(device, 0, (frame.head, frame.pieces), frame.tci, &PacketOffload::default());
        });
        device.flush();
        true
    }

    /// Whether a front-end is connected to the socket.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.server.is_connected()
    }

    /// Queue pairs whose receive queues run, a bit each.
    #[must_use]
    pub fn open_pairs(&self) -> u64 {
        let open = (0..self.device.pairs()).filter(|pair| self.device.is_receiving(*pair));
        open.fold(0, |bits, pair| bits | 1 << (pair & 63))
    }

    /// Queues that were broken by what their drivers did, since the port was made.
    #[must_use]
    pub fn broken_queues(&self) -> u64 {
        self.device.broken()
    }
}

/// Puts a frame, its tag into its place, into a receive queue.
fn put(
    device: &mut Device,
    pair: u16,
    (head, pieces): ([u64; 2], &[SharedSlice<'_>]),
    tci: Option<u16>,
    offload: &PacketOffload,
) -> Result<(), NotDelivered> {
    let bytes: usize = pieces.iter().map(SharedSlice::len).sum();
    let head = head.map(u64::to_le_bytes);
    let head = head.as_flattened();
    let head = head.get(..bytes).unwrap_or(head);
    let (addresses, behind) = head.split_at(ADDRESSES.min(head.len()));
    let [p0, p1] = TPID_8021Q.to_be_bytes();
    let [t0, t1] = tci.unwrap_or(0).to_be_bytes();
    let tag = [p0, p1, t0, t1];
    let tag: &[u8] = if tci.is_some() { &tag } else { &[] };
    let parts = [addresses, tag, behind];
    let put = device.put(pair, offload, bytes + tag.len(), &parts, pieces.iter().copied());
    put.map_err(|reason| match reason {
        NotPut::NotRunning => NotDelivered::NotWanted,
        NotPut::NoBuffer => NotDelivered::NoBuffer,
        NotPut::TooLong => NotDelivered::TooLong,
    })
}

/// A guest's packet, of which nothing is said.
#[inline(always)]
fn frame_of(packet: Packet<'_>) -> Frame<'_> {
    let Packet { head, pieces, length } = packet;
    Frame { head, pieces, length, tci: None, offloads: Offloads::NONE }
}

/// A frame that goes to a guest as it is, if it does.
#[inline]
fn whole<'f>(frame: &Frame<'f>, features: Features) -> Option<WholePacket<'f>> {
    let ([bytes], None) = (frame.pieces, frame.tci) else { return None };
    let verified = match frame.offloads {
        Offloads::Known(known) => offloads::is_verified(known, features),
        Offloads::Asked(asked) if asked.checksum.is_none() && asked.segmentation.is_none() => false,
        Offloads::Asked(_) => return None,
    };
    Some(WholePacket { verified, head: frame.head, bytes: *bytes })
}

/// Hands what a guest has sent, by this pair, to the switch. What is no frame goes as a frame of no bytes, which is counted
/// there.
fn forward_burst(
    burst: SentBurst<'_, '_>,
    staging: &mut Staging,
    mut steering: Option<(&mut Steering, u16)>,
    forward: &mut dyn FnMut(&[Frame<'_>]),
) {
    // Those that need nothing, for as long as there is no other.
    let mut frames = ArrayVec::<Frame<'_>, MAX_BURST>::new();
    for sent in burst {
        let (packet, offload) = match sent {
            Sent::Plain(packet) => {
                if let Some((steering, pair)) = &mut steering {
                    steering.sent(packet.pieces, packet.length, *pair);
                }
                // There is room for all of a burst.
                frames.push(frame_of(packet));
                continue;
            }
            Sent::Other(unread) => unread.read().unzip(),
        };
        if let (Some((steering, pair)), Some(packet)) = (&mut steering, &packet) {
            steering.sent(packet.pieces, packet.length, *pair);
        }
        forward(&frames);
        frames.clear();
        staging.clear();
        let forwarded = packet.zip(offload).and_then(|(packet, offload)| {
            offloads::from_guest(&frame_of(packet), &offload, staging, forward)
        });
        if forwarded.is_none() {
            forward_nothing(forward);
        }
    }
    forward(&frames);
}

fn forward_nothing(forward: &mut dyn FnMut(&[Frame<'_>])) {
    let offloads = Offloads::NONE;
    forward(&[Frame { head: [0; 2], pieces: &[], length: 0, tci: None, offloads }]);
}

impl Port for VhostUserPort {
    fn poll(&mut self, now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        let released = self.release_to_guest(now);
        let Self { device, inbox, staging, steering, gathered, .. } = self;
        // The server, which sends to it, is there as long as the port is.
        let mut worked = inbox.serve(device) == Some(true);
        worked |= released;
        let receiving = receiving_pairs(device);
        *gathered = 0;
        for pair in 0..device.pairs() {
            let packets = device.transmitted(pair, BURST, |burst| {
                let steering = (receiving > 1).then_some((&mut *steering, pair));
                forward_burst(burst, staging, steering, forward);
            });
            worked |= packets > 0;
            *gathered += packets;
        }
        worked
    }

    fn gathered(&self) -> usize {
        self.gathered
    }

    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered> {
        if !self.is_receiving() {
            return Err(NotDelivered::NotWanted);
        }
        if self.path != GuestPath::Synthetic
            && let Some(held) = &mut self.held
        {
            let kept = finish(frame, staging, |finished| {
                if held.take(finished, frame.tci) { Ok(()) } else { Err(NotDelivered::NoBuffer) }
            });
            if kept.is_ok() {
                return kept;
            }
        }
        let Self { device, steering, .. } = self;
        let pair = match receiving_pairs(device) {
            0 | 1 => 0,
            pairs => {
                let mut head = [0u8; MAX_HEADER_LEN];
                let length = frame.read_head(&mut head);
                steering.of(head.get(..length).unwrap_or_default(), frame.length, pairs)
            }
        };
        let features = device.features();
        staging.clear();
        if let Some(passed) = offloads::pass_on(frame, features, staging)? {
            let Passed { head, pieces, offload } = passed;
            return put(device, pair, (head, &pieces), frame.tci, &offload);
        }
        finish(frame, staging, |finished| {
            let offload = offloads::of_known(&finished.known, features);
            put(device, pair, (finished.head, finished.pieces), frame.tci, &offload)
        })
    }

    fn deliver_whole(&mut self, frames: &[Frame<'_>]) -> usize {
        let Self { device, path, .. } = self;
        // Which pair's queue a frame takes is seen when it is looked into.
        if *path != GuestPath::Synthetic || receiving_pairs(device) > 1 {
            return 0;
        }
        let features = device.features();
        device.put_whole(0, frames.iter().map_while(|frame| whole(frame, features)))
    }

    fn flush(&mut self) {
        self.device.flush();
    }

    fn prepare_to_wait(&mut self) -> bool {
        self.device.prepare_to_wait() && self.inbox.is_empty()
    }

    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        fds.extend([self.device.as_fd(), self.inbox.as_fd()]);
    }

    fn woken(&mut self) {
        self.inbox.woken();
        self.device.woken();
    }

    fn is_receiving(&self) -> bool {
        self.device.is_receiving(0)
    }

    fn is_away(&self) -> bool {
        self.path == GuestPath::Vf
    }

    fn release(&mut self, to_uplink: &mut dyn FnMut(&Frame<'_>)) {
        if std::mem::take(&mut self.to_vf)
            && let Some(held) = &mut self.held
        {
            let vlan = self.vlan;
            held.release(|frame| to_uplink(&Frame { tci: vlan.or(frame.tci), ..*frame }));
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.held.as_ref()?.until()
    }
}

/// Pairs from the first on whose receive queues run: more than one only if the driver knows several.
#[inline]
fn receiving_pairs(device: &Device) -> u16 {
    if !device.features().contains(Features::MQ) {
        return 1;
    }
    let mut pairs = 0..device.pairs();
    pairs.find(|pair| !device.is_receiving(*pair)).unwrap_or(device.pairs())
}

/// Bytes by which a tag in its place moves what is behind it.
const fn moved_by(tci: Option<u16>) -> usize {
    if tci.is_some() { VLAN_TAG_LEN } else { 0 }
}
