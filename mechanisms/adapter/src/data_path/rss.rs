//! Receive-side scaling: which of a function's queues takes a frame.

use avf_device::RssSettings;
use offload::{HashEnable, LOOKUP_TABLE_LEN, RSS_KEY_LEN, Toeplitz, lookup_queue};

use super::inspect::Inspection;

/// The hash of one key, and where its results lead.
pub(crate) struct RssSteering {
    enabled: HashEnable,
    hash: Toeplitz,
    key: [u8; RSS_KEY_LEN],
    table: [u8; LOOKUP_TABLE_LEN],
    /// Queues that take frames, a bit each.
    queues: u32,
    /// The lowest of them: takes what is not hashed, or hashed to a queue that is off.
    first: u16,
}

impl Default for RssSteering {
    fn default() -> Self {
        let key = [0; RSS_KEY_LEN];
        Self {
            enabled: HashEnable::NONE,
            hash: Toeplitz::new(&key),
            key,
            table: [0; LOOKUP_TABLE_LEN],
            queues: 0,
            first: 0,
        }
    }
}

impl RssSteering {
    /// Takes over what the driver has set.
    pub(crate) fn configure(&mut self, settings: &RssSettings) {
        if self.key != settings.key {
            self.key = settings.key;
            self.hash = Toeplitz::new(&settings.key);
        }
        self.table = settings.lut;
        self.enabled = HashEnable(if settings.enabled { settings.hash_enable } else { 0 });
    }

    /// Says which queues take frames, a bit each.
    pub(crate) fn set_queues(&mut self, queues: u32) {
        self.queues = queues;
        self.first = u16::try_from(queues.trailing_zeros()).unwrap_or(0) & 31;
    }

    /// The queue for all frames while nothing is hashed.
    #[inline(always)]
    pub(crate) fn unhashed(&self) -> Option<u16> {
        (self.enabled == HashEnable::NONE).then_some(self.first)
    }

    /// The queue for a frame, and its hash if its packet type is hashed.
    #[inline(always)]
    pub(crate) fn steer(&self, inspection: &Inspection, head: &[u8]) -> (u16, Option<u32>) {
        if self.enabled == HashEnable::NONE {
            return (self.first, None);
        }
        let hash = self.hash.hash_packet(head, &inspection.info, self.enabled);
        let Some(value) = hash else { return (self.first, None) };
        let queue = u16::from(lookup_queue(&self.table, value));
        let on = queue < 32 && self.queues & (1 << queue) != 0;
        (if on { queue } else { self.first }, hash)
    }
}
