//! Both ends against each other, and hostile ends against either.

mod frames;
mod garbage;
mod hostile_guest;
mod start;
mod threads;
mod vf_moves;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use netvsp_protocol::{MacAddress, nvsp::DataPath};
use shared_memory::{PageSize, SharedMapping};
use vmbus::{
    GuestBuffer,
    testing::{TestMemory, channel_in},
};

use crate::{
    ReceiveMetadata, TransmitMetadata,
    client::{self, LargeBuffers, NetVsc, VscConfig},
    server::{self, BufferKind, NetVsp, NicConfig},
};

pub(crate) const MAC: MacAddress = MacAddress::new([2, 0x15, 0x5d, 0, 0, 1]);
/// GPADLs of the receive and send buffers.
const RECEIVE: u32 = 0xE1;
const SEND: u32 = 0xE2;
/// Large sends that may be with the server.
const LARGE_SENDS: u32 = 8;
/// Pages of a ring, control page included.
const RING_PAGES: usize = 17;

/// A frame and what was said of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen<M> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) metadata: M,
}

/// What each end was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) server: Vec<server::Upcall>,
    pub(crate) client: Vec<client::Upcall>,
}

/// A guest and its host, in one thread. Upcalls are answered as a switch and a guest's kernel would.
pub(crate) struct Pair {
    pub(crate) memory: TestMemory,
    pub(crate) server: NetVsp,
    pub(crate) client: NetVsc,
    pub(crate) now: Instant,
    pub(crate) told: Told,
    /// Frames that the switch got by the synthetic path.
    pub(crate) forwarded: Vec<Seen<TransmitMetadata>>,
    /// Frames that the guest got by the synthetic path.
    pub(crate) received: Vec<Seen<ReceiveMetadata>>,
    /// Where the receive filters point.
    pub(crate) filters: DataPath,
    /// Moves of filters that were asked for and not done.
    pub(crate) moves: VecDeque<DataPath>,
    /// Whether they are done at once.
    pub(crate) moves_at_once: bool,
    /// Host memory to deliver from.
    host: SharedMapping,
    buffers: (GuestBuffer, GuestBuffer),
    channels: u16,
}

impl Pair {
    pub(crate) fn new(nic: NicConfig, mut config: VscConfig) -> Self {
        let mut memory = TestMemory::new(1400);
        let (receive, _) = memory.buffer(512 * 4096);
        let (send, _) = memory.buffer(48 * 4096);
        let (large, frames) = memory.buffer(LARGE_SENDS * LargeBuffers::PAGES as u32 * 4096);
        let channels = config.channels;
        config.receive_buffer.0 = RECEIVE;
        config.send_buffer.0 = SEND;
        let large = LargeBuffers::new(large, frames);
        let (host, _) = SharedMapping::create("host", 1 << 17, PageSize::Base).unwrap();
        Self {
            server: NetVsp::new(nic, memory.map.clone()),
            client: NetVsc::new(config, receive.clone(), send.clone(), Some(large)),
            memory,
            now: Instant::now(),
            told: Told::default(),
            forwarded: Vec::new(),
            received: Vec::new(),
            filters: DataPath::Synthetic,
            moves: VecDeque::new(),
            moves_at_once: true,
            host,
            buffers: (receive, send),
            channels,
        }
    }

    /// One that is up, with defaults.
    pub(crate) fn up() -> Self {
        let mut pair = Self::new(NicConfig::new(MAC), VscConfig::new(RECEIVE, SEND));
        pair.open();
        pair.settle();
        assert!(pair.client.control().is_up(), "{:?}", pair.told);
        pair
    }

    /// Opens the primary channel at both ends.
    pub(crate) fn open(&mut self) {
        let primary = channel_in(&mut self.memory, RING_PAGES).unwrap();
        assert!(self.server.open(0, primary.host));
        assert!(self.client.open(0, primary.guest));
    }

    pub(crate) fn close(&mut self) {
        self.client.close();
        self.server.close(0);
    }

    /// Runs both ends until neither has anything to do.
    pub(crate) fn settle(&mut self) {
        while self.step() {}
    }

    /// One turn of both ends; whether anything happened.
    pub(crate) fn step(&mut self) -> bool {
        let mut busy = false;
        for index in 0..self.channels {
            let forwarded = &mut self.forwarded;
            let poll = self.server.poll(index, self.now, |burst| {
                for frame in burst.frames() {
                    let mut bytes = vec![0; frame.length as usize];
                    frame.read_into(&mut bytes);
                    assert_eq!(frame.head[0].to_le_bytes(), bytes[..8]);
                    forwarded.push(Seen { bytes, metadata: *frame.metadata });
                }
            });
            busy |= poll.frames > 0 || poll.more;
            busy |= self.server_upcalls();
            let received = &mut self.received;
            let (frames, more) = self.client.poll(index, |burst| {
                for frame in burst.frames() {
                    let mut bytes = vec![0; frame.length as usize];
                    frame.read_into(&mut bytes);
                    received.push(Seen { bytes, metadata: *frame.metadata });
                }
            });
            busy |= frames > 0 || more;
            busy |= self.client_upcalls();
            busy |= !self.server.prepare_to_wait(index) || !self.client.prepare_to_wait(index);
        }
        busy
    }

    fn server_upcalls(&mut self) -> bool {
        let mut any = false;
        while let Some(upcall) = self.server.next_upcall() {
            any = true;
            match &upcall {
                server::Upcall::MapGpadl { gpadl, kind } => {
                    let buffer = match *gpadl {
                        RECEIVE => Some(self.buffers.0.clone()),
                        SEND => Some(self.buffers.1.clone()),
                        _ => None,
                    };
                    assert_eq!(*kind == BufferKind::Send, *gpadl == SEND);
                    self.server.gpadl_mapped(*kind, buffer);
                }
                server::Upcall::SwitchDataPath(to) => {
                    self.moves.push_back(*to);
                    if self.moves_at_once {
                        self.finish_move(true);
                    }
                }
                _ => {}
            }
            self.told.server.push(upcall);
        }
        any
    }

    /// Ends the oldest move of filters.
    pub(crate) fn finish_move(&mut self, done: bool) {
        let Some(to) = self.moves.pop_front() else { return };
        if done {
            self.filters = to;
        }
        self.server.data_path_switched(done, self.now);
    }

    fn client_upcalls(&mut self) -> bool {
        let mut any = false;
        while let Some(upcall) = self.client.next_upcall() {
            any = true;
            if let client::Upcall::OpenSubchannels { count } = upcall {
                for index in 1..=count {
                    let sub = channel_in(&mut self.memory, RING_PAGES).unwrap();
                    assert!(self.server.open(index, sub.host));
                    assert!(self.client.open(index, sub.guest));
                }
            }
            self.told.client.push(upcall);
        }
        any
    }

    pub(crate) fn later(&mut self, by: Duration) {
        self.now += by;
        self.server.tick(self.now);
    }

    /// Puts a frame of the host into the guest's receive buffer, and tells the guest.
    pub(crate) fn deliver(
        &mut self,
        channel: u16,
        bytes: &[u8],
        metadata: &ReceiveMetadata,
    ) -> Result<(), server::NotDelivered> {
        let slice = self.host.slice(0, bytes.len()).unwrap();
        slice.write_from(bytes);
        let result = self.server.deliver(channel, head(bytes), &[slice], metadata);
        self.server.announce(channel);
        result
    }

    /// The same from two pieces.
    pub(crate) fn deliver_pieces(&mut self, bytes: &[u8], at: usize) {
        let slice = self.host.slice(0, bytes.len()).unwrap();
        slice.write_from(bytes);
        let (first, second) = slice.split(at);
        let metadata = ReceiveMetadata::default();
        self.server.deliver(0, head(bytes), &[first, second], &metadata).unwrap();
        self.server.announce(0);
    }

    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<(), client::NotSent> {
        self.client.send(0, frame, &TransmitMetadata::default())
    }
}

pub(crate) fn head(bytes: &[u8]) -> [u64; 2] {
    let mut head = [0; 16];
    let length = bytes.len().min(16);
    head[..length].copy_from_slice(&bytes[..length]);
    let [a, b] = [&head[..8], &head[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
    [a, b]
}

/// A frame to the guest of `length` bytes whose contents depend on `number`.
pub(crate) fn frame(number: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|i| (i as u64 * 7 + number * 13) as u8).collect();
    bytes[..6].copy_from_slice(&MAC.octets());
    bytes[12..14].copy_from_slice(&[0x88, 0xB5]);
    if length >= 22 {
        bytes[14..22].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

pub(crate) fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[14..22].try_into().unwrap())
}
