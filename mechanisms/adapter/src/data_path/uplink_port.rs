//! The physical port: the uplink, its bursts and counters.

use std::os::fd::BorrowedFd;

use uplink::{FrameBurst, LinkState, Uplink, UplinkSpec};

use super::{deliver::Body, stats::UplinkStats};

/// Frames in one burst either way.
const BURST: usize = 32;
/// The link is looked at this often, nanoseconds.
const LINK_INTERVAL_NS: u64 = 100_000_000;

/// The physical port of the NIC.
pub(crate) struct UplinkPort {
    uplink: Box<dyn Uplink>,
    pub(crate) incoming: FrameBurst,
    outgoing: FrameBurst,
    pub(crate) stats: UplinkStats,
    link: LinkState,
    link_checked_ns: u64,
    /// The last thing that went wrong, for whoever asks.
    last_error: Option<String>,
}

/// The link that functions see. Without an uplink the NIC is a network of its own: there is no cable to wait
/// for, and VMs reach each other.
fn link_of(uplink: &mut dyn Uplink) -> LinkState {
    match uplink.spec() {
        UplinkSpec::None => LinkState { up: true, speed_mbps: 0 },
        _ => uplink.link(),
    }
}

impl UplinkPort {
    pub(crate) fn new(mut uplink: Box<dyn Uplink>, max_frame: usize) -> Self {
        Self {
            link: link_of(uplink.as_mut()),
            uplink,
            incoming: FrameBurst::new(BURST, max_frame),
            outgoing: FrameBurst::new(BURST, max_frame),
            stats: UplinkStats::default(),
            link_checked_ns: 0,
            last_error: None,
        }
    }

    /// Puts another uplink in place; what waits for the old one is sent first.
    pub(crate) fn replace(&mut self, uplink: Box<dyn Uplink>) {
        self.flush();
        self.uplink = uplink;
        self.link = link_of(self.uplink.as_mut());
        self.last_error = None;
    }

    pub(crate) fn link(&self) -> LinkState {
        self.link
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub(crate) fn uplink(&self) -> &dyn Uplink {
        self.uplink.as_ref()
    }

    pub(crate) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.uplink.wait_fd()
    }

    /// Prepares a sleep; false if there are frames already.
    pub(crate) fn arm(&mut self) -> bool {
        let armed = self.uplink.arm();
        self.note(armed).unwrap_or(true)
    }

    /// Looks at the link if it is time; returns the new state if it changed.
    #[inline]
    pub(crate) fn poll_link(&mut self, now_ns: u64) -> Option<LinkState> {
        if now_ns.saturating_sub(self.link_checked_ns) < LINK_INTERVAL_NS {
            return None;
        }
        self.link_checked_ns = now_ns;
        let link = link_of(self.uplink.as_mut());
        (std::mem::replace(&mut self.link, link) != link).then_some(link)
    }

    /// Takes in the next burst; returns how many frames.
    pub(crate) fn receive(&mut self) -> usize {
        let received = self.uplink.receive(&mut self.incoming);
        let count = self.note(received).unwrap_or(0);
        self.stats.received += count as u64;
        self.stats.received_bytes +=
            self.incoming.iter().map(|frame| frame.len() as u64).sum::<u64>();
        count
    }

    /// Queues one frame for the wire.
    pub(crate) fn send(&mut self, head: &[u8], body: Body<'_>) {
        if self.outgoing.is_full() {
            self.flush();
        }
        let length = head.len() + body.len();
        let Some(slot) = self.outgoing.reserve().filter(|slot| slot.len() >= length) else {
            self.stats.sent_dropped += 1;
            return;
        };
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(place) = slot.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(head);
        body.for_each_chunk(put);
        self.outgoing.commit(length);
    }

    /// Sends what is queued; what the medium does not take now is lost, as on a full wire.
    pub(crate) fn flush(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        let bytes: u64 = self.outgoing.iter().map(|frame| frame.len() as u64).sum();
        let before = self.uplink.statistics();
        let sent = self.uplink.transmit(&self.outgoing);
        self.note(sent);
        let after = self.uplink.statistics();
        let sent = after.transmitted_frames - before.transmitted_frames;
        self.stats.sent += sent;
        self.stats.sent_bytes += bytes.min(after.transmitted_bytes - before.transmitted_bytes);
        self.stats.sent_dropped += (self.outgoing.len() as u64).saturating_sub(sent);
        self.outgoing.clear();
    }

    fn note<T>(&mut self, result: Result<T, uplink::UplinkError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(uplink = %self.uplink.spec(), error = %error, "the uplink reports an error");
                self.last_error = Some(error.to_string());
                None
            }
        }
    }
}
