//! Everything a VF's driver may set, as one value that the data path takes over whole.

use avf_protocol::{
    MAX_QUEUE_PAIRS, MacAddress, RSS_KEY_SIZE, RSS_LUT_SIZE, hash_enable, registers::NO_ITR,
};

const QUEUES: usize = MAX_QUEUE_PAIRS as usize;

/// RSS of a VF (SPEC-AVF §5.7).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct RssSettings {
    /// Whether frames are hashed at all. Otherwise they go to queue 0 and carry no hash.
    pub enabled: bool,
    /// Packet types that are hashed, bits of [`hash_enable`]. Others go to queue 0.
    pub hash_enable: u64,
    /// Toeplitz key.
    pub key: [u8; RSS_KEY_SIZE],
    /// Queue by hash modulo 64. All entries are below the VF's number of queue pairs.
    pub lut: [u8; RSS_LUT_SIZE],
}

impl RssSettings {
    /// What holds after a reset of a VF with `queue_pairs` queue pairs: the default packet types, a fixed
    /// key, and the queues in turn.
    pub fn default_for(queue_pairs: u16) -> Self {
        let mut lut = [0; RSS_LUT_SIZE];
        for (entry, queue) in lut.iter_mut().zip((0..queue_pairs.max(1)).cycle()) {
            *entry = queue.to_le_bytes()[0];
        }
        Self { enabled: false, hash_enable: hash_enable::ADAPTIVE, key: DEFAULT_KEY, lut }
    }
}

/// The key until the driver sets one: any fixed bytes with an even mix of ones will do.
const DEFAULT_KEY: [u8; RSS_KEY_SIZE] = {
    let mut key = [0u8; RSS_KEY_SIZE];
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut i = 0;
    while i < RSS_KEY_SIZE {
        // Xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        #[allow(clippy::indexing_slicing)]
        {
            key[i] = state.to_le_bytes()[3];
        }
        i += 1;
    }
    key
};

/// Which vector one direction of a queue pair raises.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct QueueInterrupt {
    /// MSI-X vector; `None` raises nothing.
    pub vector: Option<u16>,
    /// ITR index, 0–3; 3 is none.
    pub itr: u8,
}

impl QueueInterrupt {
    /// Raises nothing.
    pub const NONE: Self = Self { vector: None, itr: NO_ITR };
}

/// The whole of what a VF's driver may set, besides the queues. Level-triggered: the newest value counts.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct VfSettings {
    /// Queue pairs the VF has.
    pub queue_pairs: u16,
    /// The largest frame of the VF, bytes.
    pub max_frame: u16,
    /// The address whose frames the VF gets; `None` after the driver removed it.
    pub primary_mac: Option<MacAddress>,
    /// More unicast addresses, each once.
    pub unicast: Vec<MacAddress>,
    /// Multicast addresses, each once. Broadcast is always received and not listed.
    pub multicast: Vec<MacAddress>,
    /// All unicast frames.
    pub promiscuous_unicast: bool,
    /// All multicast frames.
    pub promiscuous_multicast: bool,
    /// Whether only `vlans`, untagged and priority-tagged frames pass.
    pub vlan_filtering: bool,
    /// VLAN ids that pass, each once, 1–4095.
    pub vlans: Vec<u16>,
    /// Whether the 802.1Q tag of received frames moves to the descriptor.
    pub vlan_strip: bool,
    /// Whether tags in TX descriptors are inserted. If not, a packet that comes with one all the same is malformed:
    /// it must not leave without its tag, as a frame of another VLAN.
    pub vlan_insert: bool,
    /// RSS.
    pub rss: RssSettings,
    /// Vector of each TX queue; also changed while it runs.
    pub tx_interrupts: [QueueInterrupt; QUEUES],
    /// Vector of each RX queue; also changed while it runs.
    pub rx_interrupts: [QueueInterrupt; QUEUES],
}

impl VfSettings {
    /// What holds after a reset (SPEC-AVF §7.2): the primary address and broadcast, nothing else.
    pub(crate) fn after_reset(queue_pairs: u16, max_frame: u16, mac: MacAddress) -> Self {
        Self {
            queue_pairs,
            max_frame,
            primary_mac: mac.is_unicast().then_some(mac),
            unicast: Vec::new(),
            multicast: Vec::new(),
            promiscuous_unicast: false,
            promiscuous_multicast: false,
            vlan_filtering: false,
            vlans: Vec::new(),
            vlan_strip: false,
            vlan_insert: true,
            rss: RssSettings::default_for(queue_pairs),
            tx_interrupts: [QueueInterrupt::NONE; QUEUES],
            rx_interrupts: [QueueInterrupt::NONE; QUEUES],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_lookup_table_deals_out_the_queues_in_turn() {
        let rss = RssSettings::default_for(3);
        assert_eq!(rss.lut[..7], [0, 1, 2, 0, 1, 2, 0]);
        assert!(rss.key.iter().any(|byte| *byte != rss.key[0]));
    }
}
