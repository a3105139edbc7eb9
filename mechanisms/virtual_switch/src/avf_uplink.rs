//! The default VPort of an SR-IOV adapter as uplink.

use std::{os::fd::BorrowedFd, path::PathBuf, time::Instant};

use arrayvec::ArrayVec;
use avf_driver::{
    AvfControl, Check, DriverConfig, FrameOffload, MAX_CHAIN, QueuePair, RxChecksum, RxSegment,
    TxSegment, VlanConfig,
};
use netvsp::ReceiveMetadata;
use offload::{ChecksumVerdict, ChecksumVerdicts};
use shared_memory::SharedSlice;

use crate::{Frame, NotDelivered, Offloads, Port, Staging};

/// Segments received at a time.
const BURST: usize = 64;
/// Segments to send that wait for the end of the round: a few large sends.
const WAITING: usize = 256;
/// Bytes of the shortest frame on a wire, without FCS; what is shorter is padded with zeros.
const SHORTEST: u16 = 60;
/// Bursts of one poll.
const BURSTS: usize = 4;

/// A device that cannot be an uplink.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum UplinkUnsuitable {
    /// Frames of VLANs could not be sent.
    #[error(
        "the adapter inserts no VLAN tags: open it as AvfUplink::driver_config says, on an adapter with VLAN_V2"
    )]
    NoVlanInsertion,
}

/// The uplink by way of the AVF driver, on one queue pair. Its control side, which watches for resets, is
/// somebody else's.
#[derive(Debug)]
pub struct AvfUplink {
    pair: QueuePair,
    waiting: ArrayVec<TxSegment, WAITING>,
    /// Bytes of a buffer.
    buffer: usize,
    max_frame: usize,
}

impl AvfUplink {
    /// How the device on this socket is to be opened: with tags beside the frames, so that they can be switched.
    #[must_use]
    pub fn driver_config(socket: impl Into<PathBuf>) -> DriverConfig {
        let mut config = DriverConfig::new(socket);
        config.vlan = VlanConfig { strip: true, insert: true };
        config.interrupts = true;
        config
    }

    /// An uplink on this queue pair of the device that `control` controls, for frames of up to `max_frame` bytes.
    ///
    /// # Errors
    /// The device lacks what an uplink needs.
    pub fn new(
        control: &AvfControl,
        pair: QueuePair,
        max_frame: usize,
    ) -> Result<Self, UplinkUnsuitable> {
        if !control.capabilities().vlan_insertion {
            return Err(UplinkUnsuitable::NoVlanInsertion);
        }
        let buffer = control.memory().buffer_size();
        Ok(Self { pair, waiting: ArrayVec::new(), buffer, max_frame })
    }

    /// The queue pair, to be rebuilt after a reset.
    #[must_use]
    pub fn into_pair(mut self) -> QueuePair {
        self.drop_waiting();
        self.pair
    }

    /// Frames handed to the device so far, and how many of them it has sent for sure.
    pub fn progress(&mut self) -> (u64, u64) {
        let tx = &mut self.pair.tx;
        let handed = tx.counters().frames;
        // One descriptor is the least that a frame takes; one slot always stays empty.
        let descriptors = usize::from(tx.ring_length()).saturating_sub(1 + tx.room());
        (handed, handed.saturating_sub(descriptors as u64))
    }

    fn drop_waiting(&mut self) {
        for segment in self.waiting.drain(..) {
            self.pair.tx.free(segment.buffer);
        }
    }

    /// Copies a frame into buffers of the queue; false if there are too few.
    fn fill(&mut self, frame: &Frame<'_>, offload: FrameOffload) -> bool {
        let before = self.waiting.len();
        let mut left = frame.length;
        let mut bytes = Bytes::of(frame);
        while left > 0 {
            let here = left.min(self.buffer);
            let Some(buffer) = self.pair.tx.reserve() else { break };
            let Some(to) = self.pair.tx.memory().part(&buffer, 0, here) else {
                self.pair.tx.free(buffer);
                break;
            };
            bytes.copy_to(to);
            left -= here;
            let Ok(mut length) = u16::try_from(here) else { break };
            if frame.length < SHORTEST.into() {
                if let Some(rest) = self.pair.tx.memory().part(&buffer, here, SHORTEST.into()) {
                    rest.fill(0);
                }
                length = SHORTEST;
            }
            let segment = TxSegment { buffer, offset: 0, length, end: left == 0, offload };
            if let Err(full) = self.waiting.try_push(segment) {
                self.pair.tx.free(full.element().buffer);
                break;
            }
            if left == 0 {
                return true;
            }
        }
        for segment in self.waiting.drain(before..) {
            self.pair.tx.free(segment.buffer);
        }
        false
    }
}

/// The bytes of a frame, its checked head first.
struct Bytes<'f> {
    head: ArrayVec<u8, 16>,
    pieces: std::slice::Iter<'f, SharedSlice<'f>>,
    piece: SharedSlice<'f>,
}

impl<'f> Bytes<'f> {
    fn of(frame: &Frame<'f>) -> Self {
        let mut head: ArrayVec<u8, 16> = frame.head.iter().flat_map(|w| w.to_le_bytes()).collect();
        head.truncate(frame.length);
        let mut pieces = frame.pieces.iter();
        let mut skip = head.len();
        let mut piece = SharedSlice::empty();
        while skip > 0 {
            let Some(next) = pieces.next() else { break };
            let (before, rest) = next.split(skip);
            skip -= before.len();
            piece = rest;
        }
        Self { head, pieces, piece }
    }

    fn copy_to(&mut self, to: SharedSlice<'_>) {
        let copied = to.write_from(&self.head);
        self.head.drain(..copied);
        let (_, mut room) = to.split(copied);
        while !room.is_empty() {
            if self.piece.is_empty() {
                let Some(next) = self.pieces.next() else { return };
                self.piece = *next;
                continue;
            }
            let copied = self.piece.copy_to(room);
            (_, self.piece) = self.piece.split(copied);
            (_, room) = room.split(copied);
        }
    }
}

fn verdict(check: Check) -> ChecksumVerdict {
    match check {
        Check::Good => ChecksumVerdict::Good,
        Check::Bad => ChecksumVerdict::Bad,
        Check::Unchecked => ChecksumVerdict::NotChecked,
    }
}

/// What the device says of a frame in the last of its segments.
fn known(last: &RxSegment) -> ReceiveMetadata {
    let RxChecksum { ip, l4 } = last.checksum();
    let checksums = ChecksumVerdicts { ip: verdict(ip), l4: verdict(l4) };
    ReceiveMetadata::from_avf(last.packet_type(), checksums, last.vlan_tci(), last.rss_hash())
}

impl Port for AvfUplink {
    fn poll(&mut self, _now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        let mut worked = false;
        for _ in 0..BURSTS {
            let mut burst = ArrayVec::<RxSegment, BURST>::new();
            let rx = &mut self.pair.rx;
            if rx.receive(&mut burst) == 0 {
                break;
            }
            worked = true;
            for segments in burst.chunk_by(|one, _| !one.end()) {
                let mut pieces = ArrayVec::<SharedSlice<'_>, MAX_CHAIN>::new();
                pieces.extend(segments.iter().take(MAX_CHAIN).filter_map(|segment| {
                    rx.memory().part(&segment.buffer, 0, segment.length.into())
                }));
                let (Some(first), Some(last)) = (pieces.first(), segments.last()) else { continue };
                // What is shorter than the switch looks at is padded by zeros.
                let mut head = [[0u8; 8]; 2];
                first.read_into(head.as_flattened_mut());
                let offloads = known(last);
                forward(&[Frame {
                    head: head.map(u64::from_le_bytes),
                    length: pieces.iter().map(SharedSlice::len).sum(),
                    pieces: &pieces,
                    tci: offloads.vlan_tci,
                    offloads: &Offloads::Known(offloads),
                }]);
            }
            for segment in burst {
                rx.free(segment.buffer);
            }
        }
        worked
    }

    fn deliver(&mut self, frame: &Frame<'_>, _staging: &mut Staging) -> Result<(), NotDelivered> {
        let mut offload = FrameOffload::NONE;
        let mut segmented = false;
        if let Offloads::Asked(asked) = frame.offloads {
            let (fields, segmentation) = asked.to_avf();
            offload = offload.with_checksum(fields);
            if let Some((mss, headers)) = segmentation {
                offload = offload.with_segmentation(mss, headers);
                segmented = true;
            }
        }
        if frame.length > self.max_frame && !segmented {
            return Err(NotDelivered::TooLong);
        }
        if let Some(tci) = frame.tci {
            offload = offload.with_vlan(tci);
        }
        if self.fill(frame, offload) {
            return Ok(());
        }
        // Once more, with the waiting ones on their way.
        self.flush();
        if self.fill(frame, offload) { Ok(()) } else { Err(NotDelivered::NoBuffer) }
    }

    fn flush(&mut self) {
        self.pair.tx.transmit(&mut self.waiting);
        // What the ring has no room for is lost, as on a wire that is slower than its sender.
        self.drop_waiting();
    }

    fn prepare_to_wait(&mut self) -> bool {
        // A queue that was reset, or has no interrupts, is looked at when the thread wakes for other reasons.
        !matches!(self.pair.rx.arm(), Ok(true)) || self.pair.rx.is_stopped()
    }

    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        fds.extend(self.pair.rx.event_fd());
    }

    fn woken(&mut self) {
        self.pair.rx.acknowledge();
    }

    fn is_receiving(&self) -> bool {
        !self.pair.rx.is_stopped()
    }
}
