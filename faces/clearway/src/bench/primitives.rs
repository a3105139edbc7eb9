//! What the synthetic path is made of, each by itself: a packet through a ring, a request and its completion between
//! two threads, a frame from the guest's ring to the switch.

use std::{
    hint::black_box,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use netvsp::{
    TransmitMetadata,
    client::{self, LargeBuffers, NetVsc, VscConfig},
    server::{self, BufferKind, NetVsp, NicConfig},
};
use netvsp_protocol::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use vmbus::{Channel, OutgoingPacket, PacketKind};

use super::{
    cores::{Cores, apart, nanoseconds, pin},
    guest::GuestMemory,
    sample::percentile,
    traffic::{headers, mac},
};

/// Bytes of a packet's payload: an NVSP message, and a whole frame.
pub(crate) const SIZES: [u16; 2] = [40, 1500];
/// Bytes of a frame to the switch.
const FRAMES: [u16; 2] = [64, 1500];
const TOGETHER: u32 = 32;
const RING_PAGES: usize = 33;
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was measured, each a median of some repetitions, ns.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Primitives {
    /// A packet written, published, read and released, each by itself; bytes and ns.
    pub(crate) ring: Vec<(u16, f64)>,
    /// The same, 32 together.
    pub(crate) ring_together: Vec<(u16, f64)>,
    /// A request and its completion between two threads that sleep in between: an eventfd each way.
    pub(crate) round_trip_asleep: f64,
    /// The same between two threads that poll.
    pub(crate) round_trip_polling: f64,
    /// A frame out of a guest's ring to whoever forwards it, completion included, in packets of one frame.
    pub(crate) transmit: Vec<(u16, f64)>,
    /// The same, eight frames in a packet, as stock drivers put them.
    pub(crate) transmit_together: Vec<(u16, f64)>,
}

/// Measures everything here.
pub(crate) fn measure(duration: Duration, cores: Cores) -> anyhow::Result<Primitives> {
    let each = duration / 10;
    let mut all = Primitives {
        round_trip_asleep: round_trip(each, cores, true).context("a round trip, asleep")?,
        round_trip_polling: round_trip(each, cores, false).context("a round trip, polling")?,
        ..Primitives::default()
    };
    apart(|| {
        pin(cores.client)?;
        for size in SIZES {
            all.ring.push((size, ring(size, 1, each)?));
            all.ring_together.push((size, ring(size, TOGETHER, each)?));
        }
        for size in FRAMES {
            all.transmit.push((size, transmit(size, false, each)?));
            all.transmit_together.push((size, transmit(size, true, each)?));
        }
        Ok(())
    })?;
    Ok(all)
}

const fn in_band(completion_requested: bool) -> OutgoingPacket<'static> {
    OutgoingPacket::InBand { transaction_id: 7, completion_requested }
}

/// The median over repetitions of `turn`, which returns how many there were and how long they took, ns each.
fn repeat(
    duration: Duration,
    mut turn: impl FnMut() -> anyhow::Result<(u32, Duration)>,
) -> anyhow::Result<f64> {
    let mut samples = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < duration || samples.len() < 16 {
        let (count, took) = turn()?;
        samples.push(took.as_secs_f64() * 1e9 / f64::from(count.max(1)));
    }
    // The first ones warm the caches.
    let mut samples = samples.split_off(samples.len() / 8);
    samples.sort_unstable_by(f64::total_cmp);
    Ok(percentile(&samples, 50))
}

/// One packet through a ring, written and read by one thread.
fn ring(size: u16, together: u32, duration: Duration) -> anyhow::Result<f64> {
    let mut memory = GuestMemory::new(4096, 2 * RING_PAGES * 4096)?;
    let (mut host, mut guest) = memory.channel(RING_PAGES)?;
    let payload = vec![0x5A; size.into()];
    let mut seen = vec![0; size.into()];
    let turns = 4096 / together;
    repeat(duration, || {
        let start = Instant::now();
        for _ in 0..turns {
            for _ in 0..together {
                guest.send(in_band(false), black_box(&payload))?;
            }
            guest.flush()?;
            while let Some(packet) = host.receive()? {
                black_box(packet.payload.read_into(&mut seen));
            }
            host.flush()?;
        }
        Ok((turns * together, start.elapsed()))
    })
}

/// Sleeps until the channel is signalled, if there is nothing in its ring.
fn wait(channel: &mut Channel, sleep: bool) -> anyhow::Result<()> {
    if sleep && channel.prepare_to_wait()? {
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)], Some(&limit))?;
        channel.woken()?;
    } else if !sleep {
        std::hint::spin_loop();
    }
    Ok(())
}

/// A request of 40 bytes to another thread, and its completion.
fn round_trip(duration: Duration, cores: Cores, sleep: bool) -> anyhow::Result<f64> {
    let mut memory = GuestMemory::new(4096, 2 * RING_PAGES * 4096)?;
    let (mut host, mut guest) = memory.channel(RING_PAGES)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| -> anyhow::Result<()> {
            pin(cores.forwarder)?;
            let mut message = [0; 40];
            while !over.load(Ordering::Relaxed) {
                let Some(packet) = host.receive()? else {
                    wait(&mut host, sleep)?;
                    continue;
                };
                packet.payload.read_into(&mut message);
                let transaction_id = packet.transaction_id;
                host.send(OutgoingPacket::Completion { transaction_id }, &message)?;
                host.flush()?;
            }
            Ok(())
        });
        let asking = scope.spawn(|| -> anyhow::Result<f64> {
            let result = pin(cores.client).and_then(|()| {
                let mut message = [1; 40];
                let mut samples = Vec::new();
                let begin = Instant::now();
                while begin.elapsed() < duration || samples.len() < 256 {
                    let start = Instant::now();
                    guest.send(in_band(true), &message)?;
                    guest.flush()?;
                    loop {
                        if let Some(packet) = guest.receive()? {
                            ensure!(matches!(packet.kind, PacketKind::Completion), "no completion");
                            packet.payload.read_into(&mut message);
                            break;
                        }
                        ensure!(start.elapsed() < PATIENCE, "no completion comes");
                        wait(&mut guest, sleep)?;
                    }
                    samples.push(nanoseconds(start));
                }
                let mut samples = samples.split_off(samples.len() / 8);
                samples.sort_unstable_by(f64::total_cmp);
                Ok(percentile(&samples, 50))
            });
            over.store(true, Ordering::Relaxed);
            guest.signal_peer();
            result
        });
        let result = asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?;
        answering.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))??;
        result
    })
}

/// A frame from a guest's ring to whoever forwards it.
fn transmit(size: u16, together: bool, duration: Duration) -> anyhow::Result<f64> {
    const COUNT: u32 = 48;
    let mut memory = GuestMemory::new(8 << 20, 2 * 129 * 4096)?;
    let (host, guest) = memory.channel(129)?;
    let (receive, _) = memory.buffer(2 << 20)?;
    let (send, _) = memory.buffer(1 << 20)?;
    let (large, frames) = memory.buffer(8 * LargeBuffers::PAGES * 4096)?;
    let mut server = NetVsp::new(NicConfig::new(MacAddress::new(mac(1))), memory.map.clone());
    let large = LargeBuffers::new(large, frames);
    let config = VscConfig::new(1, 2);
    let mut nic = NetVsc::new(config, receive.clone(), send.clone(), Some(large));
    ensure!(server.open(0, host) && nic.open(0, guest), "the channel does not open");
    let now = Instant::now();
    while !nic.control().is_up() {
        server.poll(0, now, |_| ());
        while let Some(upcall) = server.next_upcall() {
            if let server::Upcall::MapGpadl { kind, .. } = upcall {
                let buffer = if kind == BufferKind::Send { &send } else { &receive };
                server.gpadl_mapped(kind, Some(buffer.clone()));
            }
        }
        nic.poll(0, |_| ());
        while let Some(upcall) = nic.next_upcall() {
            if let client::Upcall::Failed(error) = upcall {
                bail!(error);
            }
        }
        ensure!(now.elapsed() < PATIENCE, "the adapter does not come up");
    }
    let mut frame = vec![0x5A; size.into()];
    for (to, from) in frame.iter_mut().zip(headers(size, mac(2), mac(1))) {
        *to = from;
    }
    let rounds = 64;
    repeat(duration, || {
        let mut took = Duration::ZERO;
        for _ in 0..rounds {
            for _ in 0..COUNT {
                let sent = nic.send(0, &frame, &TransmitMetadata::default());
                ensure!(sent.is_ok(), "no room for a frame");
                if !together {
                    nic.flush(0);
                }
            }
            nic.flush(0);
            let mut seen = 0;
            let start = Instant::now();
            while seen < usize::try_from(COUNT).unwrap_or(0) {
                let polled = server.poll(0, now, |burst| {
                    for frame in burst.frames() {
                        black_box((frame.head, frame.pieces));
                    }
                });
                seen += polled.frames;
            }
            took += start.elapsed();
            nic.poll(0, |_| ());
        }
        Ok((rounds * COUNT, took))
    })
}

impl Primitives {
    /// The values of all repetitions, one by one, as medians.
    pub(crate) fn median_of(all: &[Self]) -> Option<Self> {
        let first = all.first()?;
        let middle = |value: &dyn Fn(&Self) -> f64| {
            let mut values: Vec<f64> = all.iter().map(value).collect();
            values.sort_unstable_by(f64::total_cmp);
            percentile(&values, 50)
        };
        let sized = |of: &dyn Fn(&Self) -> &Vec<(u16, f64)>| {
            let sizes = of(first).iter().enumerate();
            let value = |one: &Self, at: usize| of(one).get(at).map_or(0.0, |(_, ns)| *ns);
            sizes.map(|(at, (size, _))| (*size, middle(&|one| value(one, at)))).collect()
        };
        Some(Self {
            ring: sized(&|one| &one.ring),
            ring_together: sized(&|one| &one.ring_together),
            round_trip_asleep: middle(&|one| one.round_trip_asleep),
            round_trip_polling: middle(&|one| one.round_trip_polling),
            transmit: sized(&|one| &one.transmit),
            transmit_together: sized(&|one| &one.transmit_together),
        })
    }
}
