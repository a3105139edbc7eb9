//! A VM's synthetic adapter.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use netvsp::{
    ReceiveMetadata,
    server::{self, NetVsp, Upcall},
};
use netvsp_protocol::nvsp::DataPath;
use offload::{MAX_HEADER_LEN, classify};

use crate::{Frame, NotDelivered, Offloads, Port, Staging, control::MAX_CHANNELS, finish::finish};

const _: () = assert!(MAX_CHANNELS <= 64);

/// The port of a VM whose adapter is served by a [`NetVsp`].
pub struct SyntheticPort {
    nic: NetVsp,
    tell: Box<dyn FnMut(Upcall) + Send>,
    /// Channels that are open, a bit each.
    open: u64,
    /// Somebody may have opened or closed some since.
    stale: bool,
    /// Channels with frames that the guest was not told of, a bit each.
    untold: u64,
}

/// The numbers of the bits that are set.
fn bits(mut set: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let index = u16::try_from(set.trailing_zeros()).ok().filter(|index| *index < 64)?;
        set &= set - 1;
        Some(index)
    })
}

impl SyntheticPort {
    /// A port for this adapter. What the adapter wants to be done is told to `tell`, on the thread that drives the
    /// switch: it hands it on, and the answer comes by [`Self::nic`].
    #[must_use]
    pub fn new(nic: NetVsp, tell: impl FnMut(Upcall) + Send + 'static) -> Self {
        Self { nic, tell: Box::new(tell), open: 0, stale: true, untold: 0 }
    }

    /// The adapter's server: to open and close its channels, to carry out its upcalls. Between two rounds; then
    /// [`crate::VirtualSwitch::refresh`].
    pub fn nic(&mut self) -> &mut NetVsp {
        self.stale = true;
        &mut self.nic
    }

    /// The adapter's server, to look at.
    #[must_use]
    pub fn nic_state(&self) -> &NetVsp {
        &self.nic
    }

    /// Channels that are open, a bit each.
    #[must_use]
    pub fn open_channels(&self) -> u64 {
        if self.stale { self.find_channels() } else { self.open }
    }

    /// Forgets what the adapter wanted to be done: of a guest whose channels are closed.
    pub fn forget_upcalls(&mut self) {
        while self.nic.next_upcall().is_some() {}
    }

    fn find_channels(&self) -> u64 {
        let open = (0..MAX_CHANNELS).filter(|index| self.nic.channel(*index).is_some());
        open.fold(0, |bits, index| bits | 1 << index)
    }

    /// Channels that are open, by their indexes.
    #[inline]
    fn channels(&mut self) -> impl Iterator<Item = u16> + use<> {
        if std::mem::take(&mut self.stale) {
            self.open = self.find_channels();
        }
        bits(self.open)
    }
}

impl std::fmt::Debug for SyntheticPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyntheticPort").field("nic", &self.nic).finish_non_exhaustive()
    }
}

impl Port for SyntheticPort {
    fn poll(&mut self, now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        let mut worked = false;
        if self.nic.deadline().is_some_and(|deadline| deadline <= now) {
            self.nic.tick(now);
            worked = true;
        }
        for index in self.channels() {
            let poll = self.nic.poll(index, now, |burst| {
                for frame in burst.frames() {
                    forward(&[Frame {
                        head: frame.head,
                        pieces: frame.pieces,
                        length: frame.length as usize,
                        tci: frame.metadata.vlan_tci,
                        offloads: &Offloads::Asked(*frame.metadata),
                    }]);
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
        for index in bits(std::mem::take(&mut self.untold)) {
            // What its ring has no room for is announced when it has.
            if !self.nic.announce(index) {
                self.untold |= 1 << index;
            }
        }
    }

    fn prepare_to_wait(&mut self) -> bool {
        self.channels().all(|index| self.nic.prepare_to_wait(index))
    }

    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        let open = bits(self.open_channels());
        fds.extend(open.filter_map(|index| Some(self.nic.channel(index)?.as_fd())));
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

    fn is_away(&self) -> bool {
        self.nic.control().data_path() == DataPath::Vf
    }
}
