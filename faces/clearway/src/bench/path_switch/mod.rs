//! How long the data path takes to move between the synthetic adapter and the VF, under load, and what is lost or
//! doubled meanwhile.
//!
//! Everything is real but the PCI bus: an adapter with its control socket, a virtual switch with the adapter's default
//! VPort as uplink, the virtualization stack moving receive filters by OIDs, NetVSC and the AVF driver in one guest.
//! The guest exchanges numbered frames with a peer that has a VF of its own; it brings its VF's driver up and down,
//! which asks the host for the path by NVSP message 129. A move is measured from that request to the first frame that
//! went, and to the first that came, on the other path.
//!
//! Adapter and switch poll on a CPU each; guest and peer are one thread on the second of them, which sleeps between
//! two bursts, as do the control threads. On a machine of two CPUs that is what the load can be.

mod stack;

use std::time::{Duration, Instant};

use adapter::{AdapterServer, control_socket};
use anyhow::{Context, ensure};
use arrayvec::ArrayVec;
use avf_driver::{AvfControl, AvfDriver, DriverConfig, QueuePair, RxSegment, TxSegment};
use ndis::{AdapterConfiguration, Keywords};
use netvsp::{TransmitMetadata, client::VfPath};
use netvsp_protocol::{MacAddress, nvsp::DataPath};
use serde::Serialize;
use shared_memory::SharedSlice;
use virtual_switch::{AvfUplink, VirtualSwitch, Worker};
use virtualization_stack::{AdapterId, DataPath as StackPath, Input, NetVspReport};

use super::{
    cores::{Cores, apart, nanoseconds, pin},
    guest::{Guest, port},
    sample::{as_f64, percentile},
    traffic::{headers, mac},
};
use stack::{Bonded, PATIENCE, StackThread, Told};

/// Moves in both directions together, where nothing else is asked for.
pub(crate) const MOVES: u32 = 1000;
/// The guest with both paths, and its peer.
const GUEST: u32 = 1;
const PEER: u32 = 2;
const BONDED: AdapterId = AdapterId(0);
const OTHER: AdapterId = AdapterId(1);
const SIZE: u16 = 64;
/// Where a frame says its number and how it went.
const NUMBER_AT: usize = 44;
/// Frames each way in one turn, and the sleep between two.
const FRAMES: usize = 4;
const PAUSE: Duration = Duration::from_micros(50);
/// Turns between two moves.
const TURNS: u32 = 20;
/// After the last frame, until what has not come is lost.
const SETTLE: Duration = Duration::from_millis(200);

/// Median and worst of one kind of move, µs.
#[derive(Copy, Clone, Default, Debug, Serialize)]
pub(crate) struct Took {
    /// From the request to the peer's reading of the first frame that was sent on the other path.
    pub(crate) sent_us: (f64, f64),
    /// From the request to the guest's reading of the first frame that arrived on the other path.
    pub(crate) arrived_us: (f64, f64),
}

/// Moves of the data path.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct PathSwitches {
    /// How many, in both directions together.
    pub(crate) moves: u32,
    /// Frames a second while they were made, each way.
    pub(crate) frames_per_second: f64,
    /// Frames of the guest and of its peer.
    pub(crate) frames: u64,
    /// Of those, never received.
    pub(crate) lost: u64,
    /// Received twice.
    pub(crate) doubled: u64,
    pub(crate) to_vf: Took,
    pub(crate) to_synthetic: Took,
}

/// Moves the path so many times.
pub(crate) fn measure(moves: u32, cores: Cores) -> anyhow::Result<PathSwitches> {
    apart(|| Bench::start(cores)?.run(moves)).context("moves of the data path")
}

/// Numbers of frames that are to come, once each.
#[derive(Default)]
struct Ledger {
    sent: u64,
    /// A bit for each number.
    seen: Vec<u64>,
    doubled: u64,
}

impl Ledger {
    fn next(&mut self) -> u32 {
        self.sent += 1;
        u32::try_from(self.sent - 1).unwrap_or(u32::MAX)
    }

    fn note(&mut self, number: u32) {
        let (word, bit) = (number as usize / 64, number % 64);
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if let Some(word) = self.seen.get_mut(word) {
            self.doubled += *word >> bit & 1;
            *word |= 1 << bit;
        }
    }

    fn received(&self) -> u64 {
        self.seen.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// A VF in the hands of its driver.
struct Vf {
    pair: QueuePair,
    /// Room of a transmit ring that is empty.
    room: usize,
    _control: AvfControl,
}

impl Vf {
    fn open(directory: &std::path::Path, vf: u16) -> anyhow::Result<Self> {
        let config = DriverConfig::new(directory.join(format!("vf{vf}.sock")));
        let (control, pairs) = AvfDriver::open(config)?;
        let mut pair = pairs.into_iter().next().context("the VF has no queue pair")?;
        let room = pair.tx.room();
        Ok(Self { pair, room, _control: control })
    }

    /// Whether all that was sent has been reported sent.
    fn is_drained(&mut self) -> bool {
        self.pair.tx.room() == self.room
    }

    fn send(&mut self, frame: &[u8]) -> bool {
        let tx = &mut self.pair.tx;
        let Some(buffer) = tx.reserve() else { return false };
        if let Some(bytes) = tx.memory().part(&buffer, 0, frame.len()) {
            bytes.write_from(frame);
        }
        let mut burst = ArrayVec::<TxSegment, 1>::new();
        burst.push(TxSegment::frame(buffer, SIZE));
        let sent = tx.transmit(&mut burst) == 1;
        burst.drain(..).for_each(|segment| tx.free(segment.buffer));
        sent
    }

    fn receive(&mut self, mut take: impl FnMut(SharedSlice<'_>)) {
        let rx = &mut self.pair.rx;
        let mut burst = ArrayVec::<RxSegment, 64>::new();
        while rx.receive(&mut burst) > 0 {
            for segment in burst.drain(..) {
                if let Some(frame) = rx.memory().part(&segment.buffer, 0, segment.length.into()) {
                    take(frame);
                }
                rx.free(segment.buffer);
            }
        }
    }
}

fn write(frame: &mut [u8], number: u32, path: DataPath) {
    let mut bytes = number.to_le_bytes().into_iter().chain([u8::from(path == DataPath::Vf)]);
    for place in frame.iter_mut().skip(NUMBER_AT) {
        let Some(byte) = bytes.next() else { break };
        *place = byte;
    }
}

fn read(frame: SharedSlice<'_>) -> Option<(u32, DataPath)> {
    let mut bytes = [0; 5];
    frame.split(NUMBER_AT).1.read_into(&mut bytes);
    let [a, b, c, d, path] = bytes;
    let path = if path == 1 { DataPath::Vf } else { DataPath::Synthetic };
    (frame.len() >= NUMBER_AT + bytes.len()).then_some((u32::from_le_bytes([a, b, c, d]), path))
}

/// A move that is under way.
struct Move {
    to: DataPath,
    asked: Instant,
    sent: Option<f64>,
    arrived: Option<f64>,
}

struct Bench {
    guest: Guest,
    vf: Vf,
    peer: Vf,
    to_peer: Vec<u8>,
    to_guest: Vec<u8>,
    /// Frames to the peer, and to the guest.
    there: Ledger,
    back: Ledger,
    /// The guest waits for its VF's ring to drain before it asks for the other path.
    leaving: bool,
    moving: Option<Move>,
    took: [Vec<(f64, f64)>; 2],
    _stack: StackThread,
    _worker: Worker,
    _uplink: AvfControl,
    _server: AdapterServer,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn start(cores: Cores) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("clearway-bench").tempdir()?;
        let mut config = adapter::AdapterConfig::new("bench", directory.path());
        config.total_vfs = 2;
        config.worker.cpu = Some(cores.forwarder);
        let keywords = Keywords { sriov_preferred: true, num_vfs: Some(2), ..Keywords::default() };
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
        let server = AdapterServer::start(config, configuration)?;

        let mut switch = VirtualSwitch::new(4)?;
        let pf = AvfUplink::driver_config(directory.path().join("pf.sock"));
        let (uplink, pairs) = AvfDriver::open(pf).context("the adapter's default VPort")?;
        let pair = pairs.into_iter().next().context("the PF has no queue pair")?;
        switch.set_uplink(Some(Box::new(AvfUplink::new(&uplink, pair, 9728)?)));
        let worker = Worker::start(switch, Some(cores.client))?;
        pin(cores.client)?;

        let bonded =
            Bonded { adapter: BONDED, switch: worker.handle().clone(), port: port(GUEST)? };
        let stack = StackThread::start(&control_socket(directory.path()), bonded)?;
        for (id, number) in [(BONDED, GUEST), (OTHER, PEER)] {
            stack.add(id, mac(number))?;
        }
        let asks = stack.inputs.clone();
        let mut guest = Guest::boot_bonded(worker.handle(), GUEST, move |path| {
            let path = match path {
                DataPath::Synthetic => StackPath::Synthetic,
                DataPath::Vf => StackPath::Vf,
            };
            let _ = asks.send(Input::NetVsp(BONDED, NetVspReport::AsksDataPath(path)));
        })?;
        for id in [BONDED, OTHER] {
            stack.tell(Input::NetVsp(id, NetVspReport::Ready { sriov: true }))?;
        }
        let (mut bonded, mut other) = (None, None);
        stack.until("a VF for each of two adapters", |told| {
            if let Told::Offered(id, vf, serial) = told {
                *(if id == BONDED { &mut bonded } else { &mut other }) = Some((vf.get(), serial));
            }
            bonded.zip(other)
        })?;
        let (Some((vf, serial)), Some((peer, _))) = (bonded, other) else { unreachable!() };
        stack.tell(Input::NetVsp(OTHER, NetVspReport::AsksDataPath(StackPath::Vf)))?;
        stack.until("the peer's path", |told| {
            (told == Told::Active(OTHER, StackPath::Vf)).then_some(())
        })?;
        let vf = Vf::open(directory.path(), vf)?;
        let peer = Vf::open(directory.path(), peer)?;
        guest.nic.vf_device(Some((serial, MacAddress::new(mac(GUEST)))));
        let frame = |to, from| {
            let mut frame = vec![0; SIZE.into()];
            for (to, from) in frame.iter_mut().zip(headers(SIZE, mac(to), mac(from))) {
                *to = from;
            }
            frame
        };
        Ok(Self {
            guest,
            vf,
            peer,
            to_peer: frame(PEER, GUEST),
            to_guest: frame(GUEST, PEER),
            there: Ledger::default(),
            back: Ledger::default(),
            leaving: false,
            moving: None,
            took: [Vec::new(), Vec::new()],
            _stack: stack,
            _worker: worker,
            _uplink: uplink,
            _server: server,
            _directory: directory,
        })
    }

    fn send(&mut self) {
        // While the VF's ring drains, what is to be sent waits.
        for _ in 0..if self.leaving { 0 } else { FRAMES } {
            let path = self.guest.nic.control().path().transmit();
            let number = self.there.next();
            write(&mut self.to_peer, number, path);
            let sent = match path {
                DataPath::Vf => self.vf.send(&self.to_peer),
                DataPath::Synthetic => {
                    let metadata = TransmitMetadata::default();
                    self.guest.nic.send(0, &self.to_peer, &metadata).is_ok()
                }
            };
            if !sent {
                // Nobody took it: it is not on its way.
                self.there.sent -= 1;
                break;
            }
        }
        self.guest.nic.flush(0);
        for _ in 0..FRAMES {
            let number = self.back.next();
            write(&mut self.to_guest, number, DataPath::Vf);
            if !self.peer.send(&self.to_guest) {
                self.back.sent -= 1;
                break;
            }
        }
    }

    fn receive(&mut self) {
        let Self { guest, vf, peer, there, back, moving, .. } = self;
        peer.receive(|frame| {
            let Some((number, path)) = read(frame) else { return };
            there.note(number);
            if let Some(moving) = moving.as_mut().filter(|moving| moving.to == path) {
                moving.sent.get_or_insert_with(|| nanoseconds(moving.asked));
            }
        });
        let mut arrived = |path, frame: SharedSlice<'_>| {
            let Some((number, _)) = read(frame) else { return };
            back.note(number);
            if let Some(moving) = moving.as_mut().filter(|moving| moving.to == path) {
                moving.arrived.get_or_insert_with(|| nanoseconds(moving.asked));
            }
        };
        vf.receive(|frame| arrived(DataPath::Vf, frame));
        guest.nic.poll(0, |burst| {
            for frame in burst.frames() {
                if let [piece] = frame.pieces {
                    arrived(DataPath::Synthetic, *piece);
                }
            }
        });
        while guest.nic.next_upcall().is_some() {}
    }

    /// Begins a move to the other path.
    fn ask(&mut self) {
        let to = match self.guest.nic.control().path() {
            VfPath::Vf => DataPath::Synthetic,
            _ => DataPath::Vf,
        };
        if to == DataPath::Synthetic {
            self.leaving = true;
            if !self.vf.is_drained() {
                return;
            }
            self.leaving = false;
        }
        self.moving = Some(Move { to, asked: Instant::now(), sent: None, arrived: None });
        self.guest.nic.vf_driver(to == DataPath::Vf);
    }

    fn turn(&mut self) {
        self.send();
        self.receive();
        if let Some(Move { to, sent: Some(sent), arrived: Some(arrived), .. }) = self.moving {
            let [to_vf, to_synthetic] = &mut self.took;
            let took = if to == DataPath::Vf { to_vf } else { to_synthetic };
            took.push((sent / 1000.0, arrived / 1000.0));
            self.moving = None;
        }
        std::thread::sleep(PAUSE);
    }

    fn run(mut self, moves: u32) -> anyhow::Result<PathSwitches> {
        // The synthetic path is in use from the first frame on.
        for _ in 0..1000 {
            self.turn();
        }
        let begin = Instant::now();
        let before = self.back.sent;
        for number in 0..moves {
            for _ in 0..TURNS {
                self.turn();
            }
            let asked = Instant::now();
            while self.moving.is_none() {
                self.ask();
                if self.moving.is_none() {
                    self.turn();
                }
                ensure!(asked.elapsed() < PATIENCE, "move {number}: the VF's ring does not drain");
            }
            while self.moving.is_some() {
                self.turn();
                ensure!(asked.elapsed() < PATIENCE, "move {number}: the path does not move");
            }
        }
        let rate = as_f64(self.back.sent - before) / begin.elapsed().as_secs_f64();
        let settled = Instant::now();
        while settled.elapsed() < SETTLE {
            self.receive();
            std::thread::sleep(PAUSE);
        }
        let [to_vf, to_synthetic] = &mut self.took;
        let ledgers = [&self.there, &self.back];
        Ok(PathSwitches {
            moves,
            frames_per_second: rate,
            frames: ledgers.map(|of| of.sent).iter().sum(),
            lost: ledgers.map(|of| of.sent.saturating_sub(of.received())).iter().sum(),
            doubled: ledgers.map(|of| of.doubled).iter().sum(),
            to_vf: took(to_vf),
            to_synthetic: took(to_synthetic),
        })
    }
}

fn took(samples: &[(f64, f64)]) -> Took {
    let spread = |mut values: Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        (percentile(&values, 50), percentile(&values, 100))
    };
    Took {
        sent_us: spread(samples.iter().map(|(sent, _)| *sent).collect()),
        arrived_us: spread(samples.iter().map(|(_, arrived)| *arrived).collect()),
    }
}
