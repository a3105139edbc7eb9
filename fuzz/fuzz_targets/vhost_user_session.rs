//! A front-end and its guest against a whole vhost-user port: messages in any order, with any numbers and descriptors,
//! while rings hold anything, split and packed. Whatever comes, the next front-end is served.
#![no_main]

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::OnceLock,
    time::Duration,
};

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use linux_network::{ChecksumState, PacketOffload};
use owner_thread::{Handle, OwnerThread};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use shared_memory::{PageSize, SharedMapping, create_memfd};
use vhost_user_net::{Device, Sent, VhostUserServer, WholePacket};

const PAIRS: u16 = 2;
const MEMORY: usize = 0x2_0000;
const GUEST: u64 = 0x1_0000;
const USER: u64 = 0x7000_0000;
const PATIENCE: Duration = Duration::from_secs(5);

/// A device whose thread does what it is told alone, behind a socket.
struct World {
    device: Handle<Device>,
    path: PathBuf,
    packet: SharedMapping,
    _thread: OwnerThread<Device>,
    _server: VhostUserServer,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let device = Device::new(PAIRS).expect("descriptors");
        let thread = OwnerThread::start("device", device, |mut device, inbox| {
            while inbox.serve(&mut device).is_some() {
                inbox.sleep(Vec::new(), None);
            }
        });
        let thread = thread.expect("a thread");
        let device = thread.handle().clone();
        let path = std::env::temp_dir().join(format!("clearway-fuzz-vhost-{}", std::process::id()));
        let server = VhostUserServer::bind(&path, "fuzz", device.clone(), PAIRS);
        let (packet, _) = SharedMapping::create("packet", 1 << 16, PageSize::Base).expect("memory");
        World { device, path, packet, _thread: thread, _server: server.expect("a socket") }
    })
}

impl World {
    /// A round of the switch's.
    fn round(&self, length: usize) {
        let packet = self.packet.clone();
        let polled = self.device.run(move |device| {
            for pair in 0..PAIRS {
                let taken = device.transmitted(pair, 64, |burst| {
                    for sent in burst {
                        let packet = match sent {
                            Sent::Plain(packet) => Some(packet),
                            Sent::Other(unread) => unread.read().map(|(packet, _)| packet),
                        };
                        if let Some(packet) = packet {
                            let bytes: usize = packet.pieces.iter().map(|piece| piece.len()).sum();
                            assert_eq!(packet.length, bytes);
                        }
                    }
                });
                assert!(taken <= 64);
                let pieces = [packet.slice(0, length).expect("inside")];
                let head = [0; 16];
                let head = &head[..length.min(16)];
                let checksum = ChecksumState::Complete;
                let offload = PacketOffload { checksum, segmentation: None };
                let _ = device.put(pair, &offload, length, &[head], pieces.into_iter());
                let whole = pieces.map(|bytes| WholePacket { verified: true, head: [0; 2], bytes });
                let put = device.put_whole(pair, whole.into_iter());
                assert!(put <= 1);
            }
            device.flush();
            if device.prepare_to_wait() {
                device.woken();
            }
        });
        polled.expect("the device's thread lives");
    }
}

/// A front-end's connection, and whether it is still there.
struct FrontEnd {
    stream: UnixStream,
    alive: bool,
}

impl FrontEnd {
    /// The one before may still be on its way out.
    fn connect(world: &World) -> Self {
        loop {
            let stream = UnixStream::connect(&world.path).expect("the server lives");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let mut front_end = Self { stream, alive: true };
            // GET_FEATURES.
            front_end.send(1, 1, &[], &[]);
            if front_end.answer().is_some_and(|answer| answer.len() == 8) {
                return front_end;
            }
            std::thread::yield_now();
        }
    }

    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = u32::try_from(payload.len()).expect("short");
        let mut bytes: Vec<u8> =
            [request, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let parts = [IoSlice::new(&bytes)];
        let flags = SendFlags::NOSIGNAL;
        self.alive &= rustix::net::sendmsg(&self.stream, &parts, &mut control, flags).is_ok();
    }

    /// An answer's payload; `None` if the connection has ended.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let mut header = [0u8; 12];
        let read = self.stream.read_exact(&mut header);
        if let Err(error) = &read {
            let waited = matches!(error.kind(), std::io::ErrorKind::WouldBlock);
            assert!(!waited, "no answer and no end");
            self.alive = false;
            return None;
        }
        let size = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let mut payload = vec![0; size as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(payload)
    }
}

/// The message's payload: such as it should be, by and large.
fn payload(request: u32, input: &mut Input<'_>) -> Vec<u8> {
    let queue = |input: &mut Input<'_>| u32::from(input.byte() % 5);
    let place = |input: &mut Input<'_>| USER + (input.below(MEMORY / 16 + 2) * 16) as u64;
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    match request {
        // SET_FEATURES, SET_PROTOCOL_FEATURES.
        2 => words(&[if input.bit() { 0x1_4000_8000 | input.qword() } else { input.qword() }]),
        16 => words(&[input.qword() & 0x8009]),
        // SET_MEM_TABLE.
        5 => {
            let regions = u64::from(input.byte() % 4);
            let mut table = regions.to_le_bytes().to_vec();
            for region in 0..regions {
                let size = if input.byte() < 250 { MEMORY as u64 } else { input.qword() };
                let at = region * MEMORY as u64;
                table.extend(words(&[GUEST + at, size, USER + at, 0]));
            }
            table
        }
        // SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE.
        8 | 10 | 11 | 18 => {
            let mut state = queue(input).to_le_bytes().to_vec();
            let value = match (request, input.byte()) {
                (8, 0..200) => u32::from(input.byte()),
                (10, 0..200) => {
                    input.one_of(&[0, 0x8000, 0x8000_8000]).unwrap_or_else(|| input.dword())
                }
                (18, _) => u32::from(input.bit()),
                _ => input.dword(),
            };
            state.extend(value.to_le_bytes());
            state
        }
        // SET_VRING_ADDR.
        9 => {
            let mut address = queue(input).to_le_bytes().to_vec();
            address.extend([0; 4]);
            address.extend(words(&[place(input), place(input), place(input), 0]));
            address
        }
        // SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR.
        12..=14 => words(&[u64::from(queue(input))]),
        // SET_LOG_BASE.
        6 => words(&[if input.byte() < 200 { 4096 } else { input.qword() }, 0]),
        // ADD_MEM_REG, REM_MEM_REG.
        37 | 38 => {
            let at = u64::from(input.byte() % 4) * MEMORY as u64;
            words(&[0, GUEST + at, MEMORY as u64, USER + at, 0])
        }
        _ => input.short().to_vec(),
    }
}

/// What a guest writes.
fn scribble(input: &mut Input<'_>, memory: &SharedMapping) {
    let at = input.below(MEMORY / 16) * 16;
    let Ok(place) = memory.slice(at, 16) else { return };
    match input.byte() % 3 {
        // A descriptor of either kind.
        0 => {
            let address = GUEST + input.below(MEMORY + 64) as u64;
            let length = u64::from(input.word() & 0x7FF);
            let second = length | u64::from(input.word()) << 32 | u64::from(input.word()) << 48;
            place.write_object(0, &[address, second]);
        }
        // An index, or flags.
        1 => {
            place.write_object(0, &[input.word() & 3, input.word() & 0xFF]);
        }
        _ => {
            place.write_from(input.take(16));
        }
    }
}

fuzz_target!(|data: &[u8]| session(Input::new(data)));

fn session(mut input: Input<'_>) {
    let world = world();
    let (memory, file) = SharedMapping::create("guest", MEMORY, PageSize::Base).expect("memory");
    let other: OwnedFd = create_memfd("other", 4096, PageSize::Base).expect("memory");
    let flags = rustix::event::EventfdFlags::CLOEXEC;
    let event = rustix::event::eventfd(0, flags).expect("an eventfd");
    let mut front_end = FrontEnd::connect(world);
    if input.bit() {
        // The beginning that all have: protocol features are there, and accepted.
        let offered = 0x1_4000_8000u64 | (u64::from(input.bit()) << 34);
        front_end.send(2, 1, &offered.to_le_bytes(), &[]);
        front_end.send(16, 1, &0x8009u64.to_le_bytes(), &[]);
        let table: Vec<u8> =
            [1, GUEST, MEMORY as u64, USER, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        front_end.send(5, 1, &table, &[file.as_fd()]);
    }
    let mut steps = 0;
    while !input.is_empty() && front_end.alive && steps < 200 {
        steps += 1;
        match input.byte() % 8 {
            0..=3 => {
                let known =
                    [1u32, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 36, 37, 38];
                let request = if input.byte() < 250 {
                    known[input.below(known.len())]
                } else {
                    input.dword()
                };
                let payload = payload(request, &mut input);
                let fds: Vec<BorrowedFd<'_>> = match (request, input.byte()) {
                    (12..=14, 0..240) => vec![event.as_fd()],
                    (5, 0..240) => {
                        vec![file.as_fd(); payload.first().copied().unwrap_or(0).min(8).into()]
                    }
                    (37, 0..240) => vec![file.as_fd()],
                    (6, 0..240) => vec![other.as_fd()],
                    (_, 250..) => vec![file.as_fd(), event.as_fd()],
                    _ => Vec::new(),
                };
                front_end.send(request, if input.bit() { 9 } else { 1 }, &payload, &fds);
            }
            4 | 5 => scribble(&mut input, &memory),
            6 => {
                let _ = std::fs::File::from(event.try_clone().expect("descriptors"))
                    .write_all(&1u64.to_ne_bytes());
            }
            _ => world.round(input.below(4000)),
        }
        world.round(60);
    }
    // Nothing is left of it, and another is served.
    drop(front_end);
    drop(FrontEnd::connect(world));
    world.round(60);
}
