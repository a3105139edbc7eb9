//! What the caller decides about a device before it is opened.

use std::{path::PathBuf, time::Duration};

use avf_protocol::MacAddress;

use crate::{DriverError, MemorySource, Result, memory::Layout};

/// Queue pairs an AVF device has at most (SPEC-AVF §1.5).
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// Buffers that one received frame occupies at most (SPEC-AVF §5.5).
pub const MAX_CHAIN: usize = 5;
/// Descriptors in a ring: a multiple of 32 within these bounds (SPEC-AVF §4.8).
pub const RING_LENGTHS: std::ops::RangeInclusive<u16> = 64..=8160;

/// How a device is opened. [`DriverConfig::new`] gives defaults that suit a poll-mode user with one
/// queue pair.
#[derive(Debug)]
pub struct DriverConfig {
    /// The vfio-user socket on which the function is served; means nothing to [`crate::AvfDriver::open_on`].
    pub socket: PathBuf,
    /// Queue pairs wanted, 1–16; fewer are given where the PF grants fewer.
    pub queue_pairs: u16,
    /// Descriptors of a transmit ring: a multiple of 32, 64–8160.
    pub tx_ring: u16,
    /// Descriptors of a receive ring: a multiple of 32, 64–8160.
    pub rx_ring: u16,
    /// Bytes of a buffer: a multiple of 128, 128–16256.
    pub buffer_size: u16,
    /// Largest frame to receive, bytes without FCS; cut to what the device can. A frame spans at
    /// most [`MAX_CHAIN`] buffers.
    pub max_frame: u16,
    /// Buffers per queue pair beyond what its rings and caches hold: as many as the caller keeps
    /// for itself.
    pub spare_buffers: u32,
    /// Where rings and buffers live.
    pub memory: MemorySource,
    /// The primary MAC address; the PF's choice when absent.
    pub mac: Option<MacAddress>,
    /// How received frames spread over the queue pairs.
    pub rss: RssConfig,
    /// What the device does with VLAN tags.
    pub vlan: VlanConfig,
    /// Give receive queues interrupts (event descriptors), so that [`crate::RxQueue::wait`] sleeps.
    pub interrupts: bool,
    /// When the device reports transmitted frames back.
    pub report: ReportConfig,
    /// Reset the function first, so that nothing of an earlier user shows.
    pub reset_at_open: bool,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

impl DriverConfig {
    /// The defaults: one queue pair, rings of 512, buffers of 2,048 bytes, any frame the device
    /// can, no interrupts, base pages.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            queue_pairs: 1,
            tx_ring: 512,
            rx_ring: 512,
            buffer_size: 2048,
            max_frame: 9728,
            spare_buffers: 256,
            memory: MemorySource::default(),
            mac: None,
            rss: RssConfig::default(),
            vlan: VlanConfig::default(),
            interrupts: false,
            report: ReportConfig::default(),
            reset_at_open: true,
            timeouts: Timeouts::default(),
        }
    }

    /// The defaults of [`new`](Self::new) for a function that is not behind a socket:
    /// [`crate::AvfDriver::open_on`].
    pub fn without_socket() -> Self {
        Self::new(PathBuf::new())
    }

    /// Bytes of memory that rings and buffers take: the least length of [`MemorySource::Given`].
    ///
    /// # Errors
    /// The configuration asks for more memory than can be addressed.
    pub fn memory_needed(&self) -> Result<usize> {
        Ok(Layout::of(self)?.total())
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(DriverError::Configuration(what));
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs) {
            return refuse(format!(
                "{} queue pairs; 1 to {MAX_QUEUE_PAIRS} can be",
                self.queue_pairs
            ));
        }
        for (name, ring) in [("transmit", self.tx_ring), ("receive", self.rx_ring)] {
            if !RING_LENGTHS.contains(&ring) || !ring.is_multiple_of(32) {
                return refuse(format!(
                    "a {name} ring of {ring}; it must be a multiple of 32 from 64 to 8160"
                ));
            }
        }
        if !(128..=16256).contains(&self.buffer_size) || !self.buffer_size.is_multiple_of(128) {
            return refuse(format!(
                "buffers of {} bytes; they must be a multiple of 128 from 128 to 16256",
                self.buffer_size
            ));
        }
        if !(64..=16_383).contains(&self.max_frame) {
            return refuse(format!("frames of up to {} bytes; 64 to 16383 can be", self.max_frame));
        }
        if usize::from(self.max_frame) > MAX_CHAIN * usize::from(self.buffer_size) {
            return refuse(format!(
                "frames of {} bytes do not fit into {MAX_CHAIN} buffers of {} bytes",
                self.max_frame, self.buffer_size
            ));
        }
        if self.report.every == 0 || self.report.every > self.tx_ring / 2 {
            return refuse(format!(
                "a report every {} descriptors; 1 to half the transmit ring can be",
                self.report.every
            ));
        }
        Ok(())
    }
}

/// Receive side scaling. With one queue pair, hashing is turned off.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct RssConfig {
    /// The Toeplitz key; a fixed one of the driver's when absent.
    pub key: Option<[u8; 52]>,
    /// Packet types to hash as HENA bits (SPEC-AVF §5.7); the PF's default set when absent.
    pub hash_types: Option<u64>,
    /// Hash also with a single queue pair, for users that want the hash itself.
    pub always: bool,
}

/// VLAN offloads, used where the PF grants them ([`crate::Capabilities`] tells).
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct VlanConfig {
    /// Take 802.1Q tags out of received frames; they are in [`crate::RxSegment::vlan_tci`] then.
    pub strip: bool,
    /// Have tags inserted into transmitted frames ([`crate::FrameOffload::with_vlan`]).
    pub insert: bool,
}

/// When the device reports that frames were sent (the RS bit, SPEC-AVF §5.3). Each report costs the
/// device a write; buffers come back only by reports.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ReportConfig {
    /// At the end of the first frame after this many descriptors.
    pub every: u16,
    /// At the end of each burst as well: no buffer waits for traffic that may not come.
    pub at_burst_end: bool,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self { every: 32, at_burst_end: true }
    }
}

/// How long the driver waits.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Timeouts {
    /// For the server's reply to a vfio-user command.
    pub request: Duration,
    /// For the PF's reply to a virtchnl message.
    pub mailbox: Duration,
    /// For a reset to begin and to end.
    pub reset: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(5),
            mailbox: Duration::from_secs(2),
            reset: Duration::from_secs(20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut DriverConfig)) -> bool {
        let mut config = DriverConfig::new("unused");
        change(&mut config);
        matches!(config.check(), Err(DriverError::Configuration(_)))
    }

    #[test]
    fn impossible_configurations_are_refused_before_anything_is_sent() {
        assert!(!refused(|_| ()));
        assert!(refused(|c| c.queue_pairs = 0));
        assert!(refused(|c| c.queue_pairs = 17));
        assert!(refused(|c| c.tx_ring = 500));
        assert!(refused(|c| c.rx_ring = 32));
        assert!(refused(|c| c.rx_ring = 8192));
        assert!(refused(|c| c.buffer_size = 2000));
        assert!(refused(|c| c.buffer_size = 1024));
        assert!(refused(|c| c.max_frame = 60));
        assert!(refused(|c| c.report.every = 0));
        assert!(refused(|c| c.report.every = 300));
    }
}
