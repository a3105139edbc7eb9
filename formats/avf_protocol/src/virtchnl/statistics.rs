//! GET_STATS (SPEC-AVF §4.6).

/// Statistics of a VSI, 96 bytes on the wire in this order. "rx" is what the VF received.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
#[repr(C)]
pub struct EthStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Unicast frames received.
    pub rx_unicast: u64,
    /// Multicast frames received.
    pub rx_multicast: u64,
    /// Broadcast frames received.
    pub rx_broadcast: u64,
    /// Frames for the VF that were dropped.
    pub rx_discards: u64,
    /// Frames of unknown protocol.
    pub rx_unknown_protocol: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Unicast frames sent.
    pub tx_unicast: u64,
    /// Multicast frames sent.
    pub tx_multicast: u64,
    /// Broadcast frames sent.
    pub tx_broadcast: u64,
    /// Frames from the VF that were dropped by policy.
    pub tx_discards: u64,
    /// Malformed packets from the VF.
    pub tx_errors: u64,
}

impl EthStats {
    /// Bytes of the message.
    pub const SIZE: usize = 96;

    /// The counters in wire order.
    pub const fn counters(&self) -> [u64; 12] {
        [
            self.rx_bytes,
            self.rx_unicast,
            self.rx_multicast,
            self.rx_broadcast,
            self.rx_discards,
            self.rx_unknown_protocol,
            self.tx_bytes,
            self.tx_unicast,
            self.tx_multicast,
            self.tx_broadcast,
            self.tx_discards,
            self.tx_errors,
        ]
    }

    /// The statistics of counters in wire order.
    pub const fn from_counters(counters: [u64; 12]) -> Self {
        let [
            rx_bytes,
            rx_unicast,
            rx_multicast,
            rx_broadcast,
            rx_discards,
            rx_unknown_protocol,
            tx_bytes,
            tx_unicast,
            tx_multicast,
            tx_broadcast,
            tx_discards,
            tx_errors,
        ] = counters;
        Self {
            rx_bytes,
            rx_unicast,
            rx_multicast,
            rx_broadcast,
            rx_discards,
            rx_unknown_protocol,
            tx_bytes,
            tx_unicast,
            tx_multicast,
            tx_broadcast,
            tx_discards,
            tx_errors,
        }
    }

    /// Appends the message.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        for counter in self.counters() {
            out.extend_from_slice(&counter.to_le_bytes());
        }
    }

    /// Reads a message; `None` if it is too short.
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let (words, _) = data.get(..Self::SIZE)?.as_chunks::<8>();
        let mut counters = [0; 12];
        for (counter, word) in counters.iter_mut().zip(words) {
            *counter = u64::from_le_bytes(*word);
        }
        Some(Self::from_counters(counters))
    }
}

super::wire!(EthStats, EthStats::SIZE; rx_unicast at 8, rx_discards at 32, tx_bytes at 48,
    tx_unicast at 56, tx_discards at 80, tx_errors at 88);
