//! Receive-side scaling towards a guest: which of its channels a frame takes.

use netvsp_protocol::rss::{HASH_KEY_SIZE, HashInfo, RssParameters};
use offload::{HashEnable, PacketInfo, RSS_KEY_LEN, RssInput, Toeplitz};

/// A guest's RSS parameters, ready for use. An immutable value: a worker picks up a new one between bursts.
#[derive(Clone)]
pub struct Steering {
    toeplitz: Box<Toeplitz>,
    enabled: HashEnable,
    table: Vec<u16>,
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering")
            .field("enabled", &self.enabled)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Steering {
    /// For parameters whose table entries were checked; `None` if they turn RSS off.
    #[must_use]
    pub fn new(parameters: &RssParameters) -> Option<Self> {
        if parameters.disable || !parameters.hash.contains(HashInfo::TOEPLITZ) {
            return None;
        }
        // The longest input has 36 bytes, so that 40 bytes of key are all that is ever used of 52.
        let mut key = [0; RSS_KEY_LEN];
        let (front, _) = key.split_at_mut(HASH_KEY_SIZE);
        front.copy_from_slice(&parameters.key);
        let table = parameters.table.iter().map(|entry| u16::try_from(*entry).unwrap_or(0));
        Some(Self {
            toeplitz: Box::new(Toeplitz::new(&key)),
            enabled: enabled(parameters.hash),
            table: table.collect(),
        })
    }

    /// The channel for a frame whose first bytes and classification these are, and its hash. What is not hashed
    /// takes channel 0.
    #[inline]
    #[must_use]
    pub fn channel(&self, header: &[u8], info: &PacketInfo) -> (u16, Option<u32>) {
        let Some(input) = RssInput::select(header, info, self.enabled) else { return (0, None) };
        let hash = self.toeplitz.hash(input.as_bytes());
        (self.of_hash(hash), Some(hash))
    }

    /// The channel of a hash value.
    #[inline]
    #[must_use]
    pub fn of_hash(&self, hash: u32) -> u16 {
        let entries = self.table.len().max(1);
        self.table.get(hash as usize % entries).copied().unwrap_or(0)
    }
}

fn enabled(hash: HashInfo) -> HashEnable {
    type H = HashEnable;
    let pairs = [
        (HashInfo::IPV4, H::IPV4_OTHER | H::IPV4_FRAGMENT | H::IPV4_SCTP),
        (HashInfo::TCP_IPV4, H::IPV4_TCP | H::IPV4_TCP_SYN),
        (HashInfo::UDP_IPV4, H::IPV4_UDP | H::IPV4_UNICAST_UDP | H::IPV4_MULTICAST_UDP),
        (HashInfo::IPV6, H::IPV6_OTHER | H::IPV6_FRAGMENT | H::IPV6_SCTP),
        (HashInfo::TCP_IPV6, H::IPV6_TCP | H::IPV6_TCP_SYN),
        (HashInfo::UDP_IPV6, H::IPV6_UDP | H::IPV6_UNICAST_UDP | H::IPV6_MULTICAST_UDP),
    ];
    let bits = pairs.iter().filter(|(info, _)| hash.contains(*info)).map(|(_, bits)| bits);
    HashEnable(bits.fold(0, |all, bits| all | bits))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn flows_spread_over_the_channels_of_the_table_and_stay_where_they_are() {
        let parameters = RssParameters {
            disable: false,
            hash: HashInfo::TOEPLITZ | HashInfo::TCP_IPV4,
            table: (0..128).map(|i| i % 4).collect(),
            key: std::array::from_fn(|i| (i * 37) as u8),
        };
        let steering = Steering::new(&parameters).unwrap();
        let mut seen = [0; 4];
        for port in 0..400 {
            let mut frame = Vec::new();
            let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9);
            ip.tcp(port, 80, 1, 1).write(&mut frame, &[]).unwrap();
            let info = offload::classify(&frame, frame.len());
            let (channel, hash) = steering.channel(&frame, &info);
            assert_eq!(steering.channel(&frame, &info), (channel, hash));
            assert_eq!(steering.of_hash(hash.unwrap()), channel);
            seen[usize::from(channel)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        let arp = [0xFF; 60];
        assert_eq!(steering.channel(&arp, &offload::classify(&arp, 60)), (0, None));
        let off = RssParameters { disable: true, ..parameters };
        assert!(Steering::new(&off).is_none());
    }
}
