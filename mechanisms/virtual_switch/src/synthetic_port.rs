//! A VM's synthetic adapter.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use netvsp::{
    ReceiveMetadata,
    server::{self, NetVsp, Upcall},
};
use offload::{MAX_HEADER_LEN, classify};

use crate::{Frame, NotDelivered, Offloads, Port, Staging, finish::finish};

/// Channels of one adapter, at most.
const MAX_CHANNELS: u16 = 64;

/// The port of a VM whose adapter is served by a [`NetVsp`].
pub struct SyntheticPort {
    nic: NetVsp,
    tell: Box<dyn FnMut(Upcall) + Send>,
    /// Channels with frames that the guest was not told of, a bit each.
    untold: u64,
}

impl SyntheticPort {
    /// A port for this adapter. What the adapter wants to be done is told to `tell`, on the thread that drives the
    /// switch: it hands it on, and the answer comes by [`Self::nic`].
    #[must_use]
    pub fn new(nic: NetVsp, tell: impl FnMut(Upcall) + Send + 'static) -> Self {
        Self { nic, tell: Box::new(tell), untold: 0 }
    }

    /// The adapter's server: to open and close its channels, to carry out its upcalls.
    pub fn nic(&mut self) -> &mut NetVsp {
        &mut self.nic
    }

    /// Channels that are open.
    fn channels(&self) -> impl Iterator<Item = u16> + use<> {
        let open: u64 = (0..MAX_CHANNELS)
            .filter(|index| self.nic.channel(*index).is_some())
            .fold(0, |bits, index| bits | 1 << index);
        (0..MAX_CHANNELS).filter(move |index| open & 1 << index != 0)
    }
}

impl std::fmt::Debug for SyntheticPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyntheticPort").field("nic", &self.nic).finish_non_exhaustive()
    }
}

impl Port for SyntheticPort {
    fn poll(&mut self, now: Instant, forward: &mut dyn FnMut(&Frame<'_>)) -> bool {
        let mut worked = false;
        if self.nic.deadline().is_some_and(|deadline| deadline <= now) {
            self.nic.tick(now);
            worked = true;
        }
        for index in self.channels() {
            let poll = self.nic.poll(index, now, |burst| {
                for frame in burst.frames() {
                    forward(&Frame {
                        head: frame.head,
                        pieces: frame.pieces,
                        length: frame.length as usize,
                        tci: frame.metadata.vlan_tci,
                        offloads: Offloads::Asked(*frame.metadata),
                    });
                }
            });
            worked |= poll.frames > 0 || poll.more;
        }
        while let Some(upcall) = self.nic.next_upcall() {
            (self.tell)(upcall);
            worked = true;
        }
        worked
    }

    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered> {
        let Self { nic, untold, .. } = self;
        finish(frame, staging, |finished| {
            let mut known: ReceiveMetadata = finished.known;
            let mut channel = 0;
            if let Some(steering) = nic.steering() {
                (channel, known.hash) = match known.hash {
                    Some(hash) => (steering.of_hash(hash), known.hash),
                    None => {
                        let mut head = [0u8; MAX_HEADER_LEN];
                        let whole =
                            Frame { head: finished.head, pieces: finished.pieces, ..*frame };
                        let length = whole.read_head(&mut head);
                        let head = head.get(..length).unwrap_or_default();
                        let total = finished.pieces.iter().map(|piece| piece.len()).sum();
                        steering.channel(head, &classify(head, total))
                    }
                };
                if nic.channel(channel).is_none() {
                    channel = 0;
                }
            }
            nic.deliver(channel, finished.head, finished.pieces, &known).map_err(|reason| {
                match reason {
                    server::NotDelivered::NotWanted => NotDelivered::NotWanted,
                    server::NotDelivered::TooLong => NotDelivered::TooLong,
                    server::NotDelivered::NoBuffer | server::NotDelivered::RingFull => {
                        NotDelivered::NoBuffer
                    }
                }
            })?;
            *untold |= 1 << (channel & 63);
            Ok(())
        })
    }

    fn flush(&mut self) {
        let mut untold = std::mem::take(&mut self.untold);
        while untold != 0 {
            let index = untold.trailing_zeros();
            untold &= untold - 1;
            // Below 64. What its ring has no room for is announced when it has.
            if !self.nic.announce(u16::try_from(index).unwrap_or(0)) {
                self.untold |= 1 << index;
            }
        }
    }

    fn prepare_to_wait(&mut self) -> bool {
        self.channels().all(|index| self.nic.prepare_to_wait(index))
    }

    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        fds.extend(self.channels().filter_map(|index| Some(self.nic.channel(index)?.as_fd())));
    }

    fn woken(&mut self) {
        for index in self.channels() {
            self.nic.woken(index);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.nic.deadline()
    }

    fn is_receiving(&self) -> bool {
        self.nic.control().is_up()
    }
}
