//! An emulated adapter with a host behind it that answers ARP and pings, in this process.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Result;
use tulip_device::{FramePort, TulipConfig, TulipCounters, TulipFunction};
use vfio_user_server::{ServerOptions, VfioUserServer};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::network_endian::{U16, U32},
};

/// The guest's address. Linux swaps the bytes of one that begins with 02:00.
pub(crate) const MAC: &str = "00:15:5d:00:00:40";
const MAC_BYTES: [u8; 6] = [0x00, 0x15, 0x5D, 0x00, 0x00, 0x40];
/// The host's addresses.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const HOST_MAC: [u8; 6] = [0x00, 0x15, 0x5D, 0x00, 0x00, 0x01];

/// A served adapter; gone when this drops.
pub(crate) struct EmulatedAdapter {
    function: Arc<Mutex<TulipFunction<Port>>>,
    stop: Arc<AtomicBool>,
    host: Option<JoinHandle<HostCounters>>,
    _server: VfioUserServer,
}

/// What the host has seen.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct HostCounters {
    /// Frames from the guest.
    pub(crate) received: u64,
    /// Frames to the guest.
    pub(crate) sent: u64,
    /// Bytes of those.
    pub(crate) sent_bytes: u64,
}

/// Hands frames to the host's thread: a port may not wait, and may not call back.
struct Port(Sender<Vec<u8>>);

impl FramePort for Port {
    fn send(&mut self, frame: &[u8]) {
        let _ = self.0.send(frame.to_vec());
    }
}

impl EmulatedAdapter {
    /// Serves it on a socket.
    pub(crate) fn serve(socket: &Path) -> Result<Self> {
        let (sender, frames) = channel();
        let config = TulipConfig { mac: MAC_BYTES, subsystem: (0x1011, 0x500B) };
        let function = Arc::new(Mutex::new(TulipFunction::new(config, Port(sender))));
        let device = Arc::clone(&function);
        let server = VfioUserServer::bind(socket, device, ServerOptions::new("emulated adapter"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let host = std::thread::spawn({
            let (function, stop) = (Arc::clone(&function), Arc::clone(&stop));
            move || host(&function, &frames, &stop)
        });
        Ok(Self { function, stop, host: Some(host), _server: server })
    }

    /// What the adapter and the host behind it have counted. There is no host from now on.
    pub(crate) fn end(mut self) -> (TulipCounters, HostCounters) {
        let host = self.stop_host();
        (lock(&self.function).device().counters(), host)
    }

    /// Waits for as long as there is a host.
    pub(crate) fn wait(mut self) {
        if let Some(host) = self.host.take() {
            let _ = host.join();
        }
    }

    fn stop_host(&mut self) -> HostCounters {
        self.stop.store(true, Ordering::Relaxed);
        self.host.take().and_then(|host| host.join().ok()).unwrap_or_default()
    }
}

impl Drop for EmulatedAdapter {
    fn drop(&mut self) {
        self.stop_host();
    }
}

/// Contended by the server's thread and the host's.
fn lock(function: &Mutex<TulipFunction<Port>>) -> MutexGuard<'_, TulipFunction<Port>> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host(
    function: &Mutex<TulipFunction<Port>>,
    frames: &Receiver<Vec<u8>>,
    stop: &AtomicBool,
) -> HostCounters {
    let mut counters = HostCounters::default();
    while !stop.load(Ordering::Relaxed) {
        match frames.recv_timeout(Duration::from_millis(1)) {
            Ok(mut frame) => {
                counters.received += 1;
                if answer(&mut frame) && lock(function).deliver(&frame).is_ok() {
                    counters.sent += 1;
                    counters.sent_bytes += frame.len() as u64;
                }
            }
            Err(RecvTimeoutError::Timeout) => lock(function).poll(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    counters
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ethernet {
    to: [u8; 6],
    from: [u8; 6],
    kind: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Arp {
    ethernet: Ethernet,
    kinds: [u8; 6],
    operation: U16,
    sender_mac: [u8; 6],
    sender: U32,
    target_mac: [u8; 6],
    target: U32,
}

/// An ICMP message in an IPv4 packet without options.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Icmp {
    ethernet: Ethernet,
    version_and_length: u8,
    before_protocol: [u8; 8],
    protocol: u8,
    header_checksum: U16,
    source: U32,
    destination: U32,
    kind: u8,
    code: u8,
    checksum: U16,
}

/// Makes of a frame what the host says to it, if it says anything.
fn answer(frame: &mut [u8]) -> bool {
    const ARP_REQUEST: (u16, u16) = (0x0806, 1);
    const PING: (u16, u8, u8, u8) = (0x0800, 0x45, 1, 8);
    let host = u32::from(HOST);
    let turn = |ethernet: &mut Ethernet| {
        ethernet.to = std::mem::replace(&mut ethernet.from, HOST_MAC);
    };
    if let Ok((arp, _)) = Arp::mut_from_prefix(frame)
        && (arp.ethernet.kind.get(), arp.operation.get()) == ARP_REQUEST
        && arp.target.get() == host
    {
        turn(&mut arp.ethernet);
        arp.operation.set(2);
        arp.target_mac = std::mem::replace(&mut arp.sender_mac, HOST_MAC);
        std::mem::swap(&mut arp.sender, &mut arp.target);
        return true;
    }
    if let Ok((icmp, _)) = Icmp::mut_from_prefix(frame)
        && (icmp.ethernet.kind.get(), icmp.version_and_length, icmp.protocol, icmp.kind) == PING
        && icmp.destination.get() == host
    {
        turn(&mut icmp.ethernet);
        std::mem::swap(&mut icmp.source, &mut icmp.destination);
        icmp.kind = 0;
        // The type was 8 in the upper half of a word: the complement of the sum grows by as much.
        let (sum, carry) = icmp.checksum.get().overflowing_add(0x0800);
        icmp.checksum.set(sum + u16::from(carry));
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_answers_what_is_for_it_and_nothing_else() {
        let arp = |target: [u8; 4]| {
            let mut frame = vec![0xFF; 6];
            frame.extend(MAC_BYTES);
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(MAC_BYTES);
            frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
            frame.extend(target);
            frame.resize(60, 0);
            frame
        };
        assert!(!answer(&mut arp([10, 0, 0, 3])));
        let mut frame = arp(HOST.octets());
        assert!(answer(&mut frame));
        assert_eq!(frame[..12], [MAC_BYTES, HOST_MAC].concat());
        assert_eq!(frame[21..32], [&[2][..], &HOST_MAC, &HOST.octets()].concat());
        assert_eq!(frame[32..42], [&MAC_BYTES[..], &[10, 0, 0, 2]].concat());
        assert!(!answer(&mut frame), "an answer is not answered");
        assert!(!answer(&mut [0; 20]));
    }
}
