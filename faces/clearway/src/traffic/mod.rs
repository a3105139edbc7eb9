//! What the demo runs inside its VMs: ping, a bulk transfer and numbered datagrams, without any tool installed there.
//!
//! These are ordinary programs on ordinary sockets; they know nothing of VFs.

mod numbered;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto, recv,
        sendto, socket_with,
    },
};
use serde::{Deserialize, Serialize};

pub(crate) use numbered::Count;

/// Traffic for the demo.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum TrafficCommand {
    /// Send ICMP echo requests and print the outcome as JSON.
    Ping {
        /// Whom.
        to: Ipv4Addr,
        /// How many.
        #[arg(long, default_value_t = 10)]
        count: u16,
        /// Milliseconds between two.
        #[arg(long, default_value_t = 20)]
        interval: u64,
    },
    /// Print the multicast groups that eth0 listens to, as JSON.
    Groups,
    /// Receive one TCP stream, check its contents, print the outcome as JSON.
    Receive {
        /// TCP port.
        #[arg(long, default_value_t = 5201)]
        port: u16,
        /// Give up when nobody has connected for so long, seconds.
        #[arg(long, default_value_t = 30)]
        patience: u64,
    },
    /// Send one TCP stream of a known pattern.
    Send {
        /// Whom.
        to: Ipv4Addr,
        /// TCP port.
        #[arg(long, default_value_t = 5201)]
        port: u16,
        /// Mebibytes.
        #[arg(long, default_value_t = 256)]
        mebibytes: u64,
    },
    /// Answer numbered datagrams.
    Answer {
        /// UDP port.
        #[arg(long, default_value_t = 5202)]
        port: u16,
        /// End when nothing has come for so long, seconds.
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// Keep numbered datagrams under way until the end of the standard input; print what became of them as a line of
    /// JSON for each line of it, and at its end.
    Number {
        /// Whom.
        to: Ipv4Addr,
        /// UDP port.
        #[arg(long, default_value_t = 5202)]
        port: u16,
        /// Datagrams under way at a time.
        #[arg(long, default_value_t = 64)]
        window: u64,
    },
}

/// How a ping went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PingOutcome {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) duplicates: u64,
    pub(crate) fastest_us: u64,
    pub(crate) median_us: u64,
    pub(crate) slowest_us: u64,
    /// The longest time without a reply, from the first request to the last reply.
    pub(crate) longest_silence_us: u64,
}

/// How a stream arrived.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StreamOutcome {
    pub(crate) bytes: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) milliseconds: u64,
}

/// The pattern of a stream: byte `n` is `n mod 251`; a block holds whole periods.
const PERIOD: usize = 251;
const BLOCK: usize = PERIOD * 1024;

pub(crate) fn run(command: &TrafficCommand) -> Result<()> {
    match command {
        TrafficCommand::Ping { to, count, interval } => {
            print(&ping(*to, *count, Duration::from_millis(*interval))?)
        }
        TrafficCommand::Groups => print(&groups()?),
        TrafficCommand::Receive { port, patience } => {
            print(&receive(*port, Duration::from_secs(*patience))?)
        }
        TrafficCommand::Send { to, port, mebibytes } => {
            send(SocketAddr::from((*to, *port)), mebibytes << 20)
        }
        TrafficCommand::Answer { port, patience } => {
            numbered::receive(*port, Duration::from_secs(*patience))
        }
        TrafficCommand::Number { to, port, window } => {
            numbered::send(SocketAddr::from((*to, *port)), *window)
        }
    }
}

fn print(outcome: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(outcome)?);
    Ok(())
}

/// Echo requests, each with its number; the VM's user may open raw sockets.
fn ping(to: Ipv4Addr, count: u16, interval: Duration) -> Result<PingOutcome> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )
    .context("a raw socket for ICMP")?;
    let identifier = std::process::id().to_le_bytes();
    let [id0, id1, ..] = identifier;
    let mut sent_at = vec![None; usize::from(count)];
    let mut replies = Vec::new();
    let mut outcome = PingOutcome::default();
    let begin = Instant::now();
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let mut request = [0u8; 64];
        if let Some(header) = request.first_chunk_mut::<8>() {
            *header = [8, 0, 0, 0, id0, id1, high, low];
        }
        let sum = offload::Sum::of(&request).checksum().to_be_bytes();
        if let Some(place) = request.get_mut(2..4) {
            place.copy_from_slice(&sum);
        }
        if let Some(place) = sent_at.get_mut(usize::from(number)) {
            *place = Some(Instant::now());
        }
        // Nobody may have the address yet, or the link be down: then this one is lost.
        if sendto(&socket, &request, SendFlags::empty(), &SocketAddrV4::new(to, 0)).is_ok() {
            outcome.sent += 1;
        }
        collect(&socket, interval, [id0, id1], &mut sent_at, &mut replies, &mut outcome)?;
    }
    let last = Instant::now();
    while outcome.received < outcome.sent && last.elapsed() < Duration::from_secs(1) {
        let rest = Duration::from_millis(100);
        collect(&socket, rest, [id0, id1], &mut sent_at, &mut replies, &mut outcome)?;
    }
    let times = std::iter::once(begin).chain(replies.iter().map(|(time, _)| *time));
    let silences = times.clone().zip(times.skip(1)).map(|(from, to)| to - from);
    outcome.longest_silence_us = u64::try_from(silences.max().unwrap_or_default().as_micros())?;
    let mut rtts: Vec<u64> = replies.into_iter().map(|(_, rtt)| rtt).collect();
    rtts.sort_unstable();
    outcome.fastest_us = rtts.first().copied().unwrap_or(0);
    outcome.median_us = rtts.get(rtts.len() / 2).copied().unwrap_or(0);
    outcome.slowest_us = rtts.last().copied().unwrap_or(0);
    Ok(outcome)
}

/// Takes in replies for so long.
fn collect(
    socket: &OwnedFd,
    time: Duration,
    identifier: [u8; 2],
    sent_at: &mut [Option<Instant>],
    replies: &mut Vec<(Instant, u64)>,
    outcome: &mut PingOutcome,
) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs())?,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Ok(());
        }
        let mut packet = [0u8; 512];
        let (length, _) = recv(socket, &mut packet, RecvFlags::DONTWAIT)?;
        // An IPv4 header with its length in the low nibble, then the ICMP message.
        let Some(bytes) = packet.get(..length) else { continue };
        let header = usize::from(bytes.first().copied().unwrap_or(0) & 0xF) * 4;
        let Some(&[0, 0, _, _, id0, id1, high, low]) =
            bytes.get(header..).and_then(|icmp| icmp.first_chunk::<8>())
        else {
            continue;
        };
        if [id0, id1] != identifier {
            continue;
        }
        match sent_at.get_mut(usize::from(u16::from_be_bytes([high, low]))).map(Option::take) {
            Some(Some(sent)) => {
                outcome.received += 1;
                replies.push((Instant::now(), u64::try_from(sent.elapsed().as_micros())?));
            }
            _ => outcome.duplicates += 1,
        }
    }
}

/// Lines of `/proc/net/dev_mcast`: index, name, two counts, and the address in hexadecimal digits.
fn groups() -> Result<BTreeSet<[u8; 6]>> {
    let path = "/proc/thread-self/net/dev_mcast";
    let text = std::fs::read_to_string(path).context(path)?;
    let group = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let name = fields.next()?;
        let [_, _, group @ ..] = u64::from_str_radix(fields.nth(2)?, 16).ok()?.to_be_bytes();
        (name == "eth0").then_some(group)
    };
    Ok(text.lines().filter_map(group).collect())
}

fn receive(port: u16, patience: Duration) -> Result<StreamOutcome> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    // Whoever started us waits for this line.
    eprintln!("listening");
    let timeout = Timespec { tv_sec: i64::try_from(patience.as_secs())?, tv_nsec: 0 };
    let mut fds = [PollFd::new(&listener, PollFlags::IN)];
    if poll(&mut fds, Some(&timeout))? == 0 {
        bail!("nobody has connected to port {port} for {} s", patience.as_secs());
    }
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(patience))?;
    let expected: Vec<u8> = (0..BLOCK + PERIOD).map(pattern).collect();
    let mut block = vec![0u8; BLOCK];
    let mut outcome = StreamOutcome::default();
    let mut start = None;
    let mut phase = 0;
    loop {
        let count = stream.read(&mut block)?;
        if count == 0 {
            break;
        }
        start.get_or_insert_with(Instant::now);
        let (got, want) = (block.get(..count), expected.get(phase..phase + count));
        if got != want {
            let pairs = got.unwrap_or(&[]).iter().zip(want.unwrap_or(&[]));
            outcome.wrong_bytes += pairs.filter(|(got, want)| got != want).count() as u64;
        }
        phase = (phase + count) % PERIOD;
        outcome.bytes += count as u64;
    }
    let taken = start.map(|start| start.elapsed()).unwrap_or_default();
    outcome.milliseconds = u64::try_from(taken.as_millis())?;
    Ok(outcome)
}

fn pattern(n: usize) -> u8 {
    u8::try_from(n % PERIOD).unwrap_or(0)
}

/// Connects, also to somebody who is not listening yet.
fn connect(to: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&to, patience) {
            Ok(stream) => return Ok(stream),
            Err(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused
                    && start.elapsed() < patience =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error).with_context(|| format!("connecting to {to}")),
        }
    }
}

fn send(to: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = connect(to, Duration::from_secs(20))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let block: Vec<u8> = (0..BLOCK).map(pattern).collect();
    let mut left = bytes;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
        stream.write_all(block.get(..count).unwrap_or(&[]))?;
        left -= count as u64;
    }
    stream.flush()?;
    Ok(())
}
