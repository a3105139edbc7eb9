//! The register file: the registers of BAR0 that are state of this crate (SPEC-AVF §2).

use avf_protocol::registers::{ADMIN_QUEUE_INDEX_MASK, QueueLength, ResetState};

/// One direction of the mailbox, as its registers say.
#[derive(Copy, Clone, Default, Debug)]
pub(crate) struct AdminQueue {
    pub(crate) base_low: u32,
    pub(crate) base_high: u32,
    pub(crate) length: QueueLength,
    head: u16,
    tail: u16,
}

impl AdminQueue {
    /// On, and not stopped by an error.
    pub(crate) fn is_running(&self) -> bool {
        self.length.is_enabled() && self.length.0 & QueueLength::CRITICAL == 0
    }

    /// DMA address of the descriptor at the head. The base may be written after the enable, so it is put
    /// together when a descriptor is needed.
    pub(crate) fn head_address(&self) -> Option<u64> {
        let base = u64::from(self.base_high) << 32 | u64::from(self.base_low);
        base.checked_add(u64::from(self.head()) * 32)
    }

    /// Index of the next descriptor to use; below the length, as drivers insist.
    pub(crate) fn head(&self) -> u16 {
        if self.head < self.length.length() { self.head } else { 0 }
    }

    /// The head register as read.
    pub(crate) fn head_register(&self) -> u32 {
        // A queue without a length keeps what was written.
        if self.length.length() == 0 { self.head.into() } else { self.head().into() }
    }

    /// The tail register as read.
    pub(crate) fn tail_register(&self) -> u32 {
        self.tail.into()
    }

    /// Whether the device owns a descriptor. A tail beyond the ring means nothing.
    pub(crate) fn has_descriptor(&self) -> bool {
        self.tail < self.length.length() && self.head() != self.tail
    }

    /// The descriptor at the head is used up.
    pub(crate) fn advance(&mut self) {
        let next = self.head() + 1;
        self.head = if next < self.length.length() { next } else { 0 };
    }

    pub(crate) fn write_head(&mut self, value: u32) {
        self.head = index(value);
    }

    pub(crate) fn write_tail(&mut self, value: u32) {
        self.tail = index(value);
    }

    /// Writes the length register; returns whether the queue was turned off.
    pub(crate) fn write_length(&mut self, value: u32) -> bool {
        let was = self.length.is_enabled();
        let kept = QueueLength::ENABLE | QueueLength::ERRORS | ADMIN_QUEUE_INDEX_MASK;
        self.length = QueueLength(value & kept);
        was && !self.length.is_enabled()
    }

    /// The ring cannot be reached: stops the queue until its length is written again.
    pub(crate) fn fail(&mut self) {
        self.length.0 |= QueueLength::CRITICAL;
    }

    /// What a VF reset does: off, everything else stays (SPEC-AVF §7.2).
    pub(crate) fn disable(&mut self) {
        self.length.0 &= !QueueLength::ENABLE;
    }
}

fn index(value: u32) -> u16 {
    u16::try_from(value & ADMIN_QUEUE_INDEX_MASK).unwrap_or(0)
}

/// Registers without a home elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct RegisterFile {
    pub(crate) atq: AdminQueue,
    pub(crate) arq: AdminQueue,
    /// VFGEN_RSTAT.
    pub(crate) reset_status: u32,
    /// VFINT_STAT_CTL01; admin queue events are never moderated.
    pub(crate) stat_ctl01: u32,
    /// VFQF_HENA, HKEY and HLUT, which count only without the RSS_PF capability.
    pub(crate) hena: [u32; 2],
    pub(crate) hkey: [u32; 13],
    pub(crate) hlut: [u32; 16],
}

impl RegisterFile {
    pub(crate) fn new() -> Self {
        Self {
            atq: AdminQueue::default(),
            arq: AdminQueue::default(),
            reset_status: ResetState::Active.value(),
            stat_ctl01: 0,
            hena: [0; 2],
            hkey: [0; 13],
            hlut: [0; 16],
        }
    }

    /// The VFR-domain registers, and the admin queues off (SPEC-AVF §7.2 steps 4 and 5).
    pub(crate) fn reset(&mut self) {
        let (mut atq, mut arq) = (self.atq, self.arq);
        atq.disable();
        arq.disable();
        *self = Self { atq, arq, reset_status: self.reset_status, ..Self::new() };
    }
}
