//! What left by the physical port, as the outer guest prints its capture: each data path is to show the same frames.
//!
//! The guest sends the same on one path and then on the other, to a peer that is not there; a ping of a size of its own
//! says which path the frames after it are from.

use std::{collections::BTreeSet, fmt};

use avf_protocol::MacAddress;
use etherparse::{IcmpEchoHeader, Icmpv4Type, NetSlice, SlicedPacket, TransportSlice};
use pcap_file::pcap::PcapReader;

use crate::guests::checksums::is_sound;

/// Where the guest sends to, and what it sends from.
const PEER: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 0x99]);
const GUEST: MacAddress = MacAddress([0x00, 0x15, 0x5D, 0, 0, 1]);
/// The VLAN of its port.
const VLAN: u16 = 7;
/// Bytes of the pings that begin the two paths.
const BEGINS: [usize; 2] = [701, 702];

/// A frame, without what differs from one to the next (numbers, ports, times).
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
struct Seen {
    source: MacAddress,
    vlan: Option<u16>,
    kind: Kind,
    /// Bytes of its IPv4 packet.
    length: usize,
    /// Whether the checksums of the IPv4 header and of what it carries are right.
    sound: bool,
}

#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
enum Kind {
    /// A ping of this many bytes.
    Ping(usize),
    Udp,
    TcpSyn,
    Other,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} bytes from {}", self.kind, self.length, self.source)?;
        match self.vlan {
            Some(vlan) => write!(f, " in VLAN {vlan}")?,
            None => write!(f, " untagged")?,
        }
        f.write_str(if self.sound { "" } else { " with a wrong checksum" })
    }
}

/// Checks the capture on a serial line.
///
/// # Errors
/// What is not as it should be: in words.
pub(super) fn check(serial: &str) -> Result<(), String> {
    let hex: String = serial
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "MARK capture")
        .skip(1)
        .take_while(|line| *line != "MARK captured")
        .collect();
    let bytes = decode(&hex).ok_or("the capture on the serial line is no hexadecimal text")?;
    let mut paths: [BTreeSet<Seen>; 2] = Default::default();
    let mut path = None;
    let mut reader = PcapReader::new(bytes.as_slice()).map_err(|error| error.to_string())?;
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(|error| error.to_string())?;
        let Some(seen) = seen(&packet.data) else { continue };
        match seen.kind {
            Kind::Ping(length) if BEGINS.contains(&length) => {
                path = BEGINS.iter().position(|begin| *begin == length);
            }
            _ => {
                let path = path.and_then(|path| paths.get_mut(path));
                path.ok_or_else(|| format!("{seen} before any path began"))?.insert(seen);
            }
        }
    }
    let [synthetic, vf] = paths;
    judge(&synthetic, &vf)
}

fn judge(synthetic: &BTreeSet<Seen>, vf: &BTreeSet<Seen>) -> Result<(), String> {
    for seen in synthetic.union(vf) {
        if seen.vlan != Some(VLAN) || seen.source != GUEST || !seen.sound {
            return Err(format!("{seen} has left by the physical port"));
        }
    }
    for kind in [Kind::Ping(1472), Kind::Udp, Kind::TcpSyn] {
        if !synthetic.iter().any(|seen| seen.kind == kind) {
            return Err(format!("no {kind:?} has left by the physical port on the synthetic path"));
        }
    }
    match (synthetic.difference(vf).next(), vf.difference(synthetic).next()) {
        (Some(seen), _) => Err(format!("{seen} was seen on the synthetic path alone")),
        (_, Some(seen)) => Err(format!("{seen} was seen on the VF alone")),
        (None, None) => Ok(()),
    }
}

/// What a frame is, if it is to the peer.
fn seen(frame: &[u8]) -> Option<Seen> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let addresses = frame.first_chunk::<12>()?;
    let (destination, source) = addresses.split_first_chunk::<6>()?;
    if *destination != PEER.0 {
        return None;
    }
    let source = MacAddress(*source.first_chunk()?);
    let vlan = packet.vlan_ids().first().map(|id| id.value());
    let other = Seen { source, vlan, kind: Kind::Other, length: frame.len(), sound: true };
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return Some(other) };
    let header = ip.header().to_header();
    let payload = ip.payload().payload;
    let kind = match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(IcmpEchoHeader { .. }) => Kind::Ping(icmp.payload().len()),
            _ => Kind::Other,
        },
        Some(TransportSlice::Udp(_)) => Kind::Udp,
        Some(TransportSlice::Tcp(tcp)) if tcp.syn() => Kind::TcpSyn,
        _ => Kind::Other,
    };
    let sound = is_sound(&packet);
    Some(Seen { kind, length: header.header_len() + payload.len(), sound, ..other })
}

fn decode(hex: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use avf_protocol::MacAddress;
    use etherparse::PacketBuilder;
    use pcap_file::pcap::{PcapPacket, PcapWriter};
    use std::{borrow::Cow, time::Duration};

    fn frame(source: MacAddress, vlan: u16, kind: Kind) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2(source.0, PEER.0)
            .single_vlan(vlan.try_into().unwrap())
            .ipv4([10, 78, 0, 2], [10, 78, 0, 9], 64);
        let mut frame = Vec::new();
        match kind {
            Kind::Ping(size) => {
                ip.icmpv4_echo_request(1, 1).write(&mut frame, &vec![5; size]).unwrap();
            }
            Kind::Udp => ip.udp(4000, 53).write(&mut frame, b"name").unwrap(),
            _ => ip.tcp(4000, 80, 1, 1000).syn().write(&mut frame, &[]).unwrap(),
        }
        frame
    }

    const SENT: [Kind; 3] = [Kind::Ping(1472), Kind::Udp, Kind::TcpSyn];

    fn path(begins: usize) -> Vec<Vec<u8>> {
        let kinds = [Kind::Ping(begins)].into_iter().chain(SENT);
        kinds.map(|kind| frame(GUEST, VLAN, kind)).collect()
    }

    fn serial(frames: &[Vec<u8>]) -> String {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            let data = Cow::Borrowed(frame.as_slice());
            let packet = PcapPacket { timestamp: Duration::ZERO, orig_len: length, data };
            writer.write_packet(&packet).unwrap();
        }
        let bytes = writer.into_writer();
        let lines: Vec<String> = bytes
            .chunks(30)
            .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\r\n")
            .collect();
        format!("MARK booted\r\nMARK capture\r\n{}MARK captured\r\nMARK end\r\n", lines.concat())
    }

    #[test]
    fn the_same_on_both_paths_is_as_it_should_be() {
        assert_eq!(check(&serial(&[path(BEGINS[0]), path(BEGINS[1])].concat())), Ok(()));
        // Once more than on the other path is the same: what is not answered is sent again.
        let again = [path(BEGINS[0]), path(BEGINS[1]), vec![frame(GUEST, VLAN, Kind::TcpSyn)]];
        assert_eq!(check(&serial(&again.concat())), Ok(()));
    }

    #[test]
    fn what_differs_is_told() {
        let spoofed = frame(MacAddress([2, 0, 0, 0, 0, 0x66]), VLAN, Kind::Udp);
        let tagged = frame(GUEST, 5, Kind::Udp);
        let mut corrupt = frame(GUEST, VLAN, Kind::Udp);
        *corrupt.last_mut().unwrap() ^= 1;
        for (wrong, words) in [
            (spoofed, "from 02:00:00:00:00:66 in VLAN 7 has left"),
            (tagged, "in VLAN 5 has left"),
            (corrupt, "with a wrong checksum has left"),
            (frame(GUEST, VLAN, Kind::Ping(40)), "was seen on the VF alone"),
        ] {
            let frames = [path(BEGINS[0]), path(BEGINS[1]), vec![wrong]].concat();
            let why = check(&serial(&frames)).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
        let why = check(&serial(&path(BEGINS[0]))).unwrap_err();
        assert!(why.contains("on the synthetic path alone"), "{why}");
        assert!(check(&serial(&[])).unwrap_err().contains("no Ping(1472)"));
        assert!(check("MARK booted\nMARK end\n").is_err());
    }
}
