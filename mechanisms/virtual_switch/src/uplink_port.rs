//! An interface, a capture or a cable as a port: the uplink where no SR-IOV adapter is bound, and the host's own
//! interface.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use netvsp::ReceiveMetadata;
use offload::{TPID_8021Q, VLAN_TAG_LEN};
use shared_memory::{MemoryError, PageSize, SharedMapping, SharedSlice};
use uplink::{FrameBurst, LinkState, Uplink, UplinkError, UplinkSpec};

use crate::{
    Frame, NotDelivered, Offloads, Port, Staging,
    finish::{Finished, finish},
};

/// Frames in one burst either way.
const BURST: usize = 32;
/// Bursts of one poll.
const BURSTS: usize = 4;
/// How often the medium is looked after: ends of a cable find each other by it.
const LINK_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of two addresses, behind which a tag stands.
const ADDRESSES: usize = 12;

/// A port whose other side is an [`Uplink`]. Whatever leaves by it is complete: tags in their places, checksums filled
/// in, large sends cut.
pub struct UplinkPort {
    uplink: Box<dyn Uplink>,
    incoming: FrameBurst,
    /// Where frames that came in are seen by the rest of the switch, each at a multiple of `stride`.
    memory: SharedMapping,
    stride: usize,
    outgoing: FrameBurst,
    max_frame: usize,
    link: LinkState,
    look_at: Instant,
    lost: u64,
    last_error: Option<String>,
}

impl std::fmt::Debug for UplinkPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UplinkPort").field("spec", self.uplink.spec()).finish_non_exhaustive()
    }
}

impl UplinkPort {
    /// A port for frames of up to `max_frame` bytes.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn new(mut uplink: Box<dyn Uplink>, max_frame: usize) -> Result<Self, MemoryError> {
        let stride = max_frame.next_multiple_of(64);
        let length = (stride * BURST).next_multiple_of(shared_memory::PAGE_SIZE);
        let (memory, _) = SharedMapping::create("uplink", length, PageSize::Base)?;
        Ok(Self {
            link: uplink.link(),
            uplink,
            incoming: FrameBurst::new(BURST, max_frame),
            memory,
            stride,
            outgoing: FrameBurst::new(BURST, max_frame),
            max_frame,
            look_at: Instant::now() + LINK_INTERVAL,
            lost: 0,
            last_error: None,
        })
    }

    /// The link as it is now. Makes system calls.
    pub fn link(&mut self) -> LinkState {
        self.link = self.uplink.link();
        self.link
    }

    /// What last went wrong.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Frames that the medium did not take.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn note<T>(&mut self, result: Result<T, UplinkError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                // Once per cause.
                tracing::warn!(uplink = %self.uplink.spec(), %error, "an uplink reports an error");
                self.last_error = Some(error.to_string());
                None
            }
        }
    }

    fn put(&mut self, finished: &Finished<'_>, tci: Option<u16>) -> Result<(), NotDelivered> {
        let bytes: usize = finished.pieces.iter().map(SharedSlice::len).sum();
        let length = bytes + if tci.is_some() { VLAN_TAG_LEN } else { 0 };
        if length > self.max_frame {
            return Err(NotDelivered::TooLong);
        }
        if self.outgoing.is_full() {
            self.send();
        }
        let slot = self.outgoing.reserve().and_then(|slot| slot.get_mut(..length));
        write(slot.ok_or(NotDelivered::NoBuffer)?, finished, tci).ok_or(NotDelivered::Malformed)?;
        self.outgoing.commit(length);
        Ok(())
    }

    /// Sends what is queued; what the medium does not take now is lost, as on a wire that is slower than its sender.
    fn send(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        let before = self.uplink.statistics().transmitted_frames;
        let sent = self.uplink.transmit(&self.outgoing);
        self.note(sent);
        let sent = self.uplink.statistics().transmitted_frames - before;
        self.lost += (self.outgoing.len() as u64).saturating_sub(sent);
        self.outgoing.clear();
    }
}

/// Writes a frame and its tag into a slot of their length, the checked head last; `None` if it is no frame.
fn write(slot: &mut [u8], finished: &Finished<'_>, tci: Option<u16>) -> Option<()> {
    let tag = if tci.is_some() { VLAN_TAG_LEN } else { 0 };
    let mut rest = slot.get_mut(tag..)?;
    for piece in finished.pieces {
        let copied = piece.read_into(rest);
        rest = rest.get_mut(copied..)?;
    }
    let mut head = [[0; 8]; 2];
    let words = head.iter_mut().zip(finished.head);
    words.for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    let known = head.as_flattened().len().min(slot.len() - tag);
    slot.get_mut(tag..tag + known)?.copy_from_slice(head.as_flattened().get(..known)?);
    if let Some(tci) = tci {
        slot.get_mut(..ADDRESSES + tag)?.copy_within(tag.., 0);
        let (protocol, control) =
            slot.get_mut(ADDRESSES..ADDRESSES + tag)?.split_first_chunk_mut::<2>()?;
        *protocol = TPID_8021Q.to_be_bytes();
        control.copy_from_slice(&tci.to_be_bytes());
    }
    Some(())
}

impl Port for UplinkPort {
    fn poll(&mut self, now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        if now >= self.look_at {
            self.look_at = now + LINK_INTERVAL;
            self.link();
        }
        let mut worked = false;
        for _ in 0..BURSTS {
            let received = self.uplink.receive(&mut self.incoming);
            if self.note(received).is_none_or(|count| count == 0) {
                break;
            }
            worked = true;
            for (index, bytes) in self.incoming.iter().enumerate() {
                let Ok(slice) = self.memory.slice(index * self.stride, bytes.len()) else { break };
                slice.write_from(bytes);
                // What is shorter than the switch looks at is padded by zeros.
                let mut head = [[0; 8]; 2];
                slice.read_into(head.as_flattened_mut());
                forward(&[Frame {
                    head: head.map(u64::from_le_bytes),
                    pieces: &[slice],
                    length: bytes.len(),
                    tci: None,
                    offloads: &Offloads::Known(ReceiveMetadata::default()),
                }]);
            }
        }
        worked
    }

    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered> {
        finish(frame, staging, |finished| self.put(finished, frame.tci))
    }

    fn flush(&mut self) {
        self.send();
    }

    fn prepare_to_wait(&mut self) -> bool {
        let armed = self.uplink.arm();
        self.note(armed).unwrap_or(true)
    }

    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        fds.extend(self.uplink.wait_fd());
    }

    fn woken(&mut self) {}

    fn deadline(&self) -> Option<Instant> {
        // The others have nothing to look after.
        matches!(self.uplink.spec(), UplinkSpec::Cable { .. }).then_some(self.look_at)
    }

    fn is_receiving(&self) -> bool {
        true
    }
}
