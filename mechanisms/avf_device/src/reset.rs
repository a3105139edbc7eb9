//! Resets: by the VF, by the PF, and function level reset (SPEC-AVF §7).

use avf_protocol::{registers::ResetState, virtchnl::Event};
use shared_memory::DmaMap;

use crate::{
    AdminSettings, AvfDevice, VfHost, VfSettings,
    registers::RegisterFile,
    virtchnl::{QueueState, VfState},
};

/// A reset from outside. (The VF's own is a virtchnl message.)
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ResetKind {
    /// Function level reset: everything to power-on. Bus mastering is off afterwards (the DMA map is empty)
    /// and so are the interrupts ([`crate::InterruptVectors::set_enabled`]); the MAC address stays, and the negotiated version, which a stock
    /// driver whose function is reset under it does not negotiate again.
    Flr,
    /// The PF resets the VF, after telling it.
    Pf,
}

impl AvfDevice {
    /// Resets the function. On return nothing of it touches guest memory, and it is ready again.
    pub fn reset(&mut self, kind: ResetKind, now_ns: u64, host: &mut dyn VfHost) {
        match kind {
            ResetKind::Pf => self.reset_by_pf(now_ns, host),
            ResetKind::Flr => {
                self.begin_reset();
                self.dma = DmaMap::empty();
                self.stop_all_queues(host);
                self.registers = RegisterFile { reset_status: 0, ..RegisterFile::new() };
                let pairs = self.config.queue_pairs;
                if self.vf.queue_pairs != pairs
                    && let Ok(granted) = host.permit_queue_count(pairs)
                {
                    self.set_queue_pairs(granted);
                }
                self.reset_vf(host);
                self.interrupts.disable();
            }
        }
    }

    /// What the function's administrator decided. Additional addresses that are no longer permitted go. A pinned MAC address that the VF does not have yet reaches
    /// it by a reset, as its driver reads its address only then.
    pub fn set_admin(&mut self, admin: AdminSettings, now_ns: u64, host: &mut dyn VfHost) {
        self.admin = admin;
        if let Some(mac) = admin.pinned_mac
            && mac.is_unicast()
            && mac != self.vf.default_mac
        {
            self.vf.default_mac = mac;
            self.reset_by_pf(now_ns, host);
            return;
        }
        let before = self.settings.clone();
        self.apply_promiscuous();
        self.drop_forbidden_addresses(host);
        self.apply_if_changed(&before, host);
    }

    /// The function's link changed: tells the driver, if it has asked for the VF's resources.
    pub fn link_changed(&mut self, now_ns: u64, host: &mut dyn VfHost) {
        if self.vf.resources_told {
            self.post_link_event(now_ns, host);
        }
    }

    /// SPEC-AVF §7.3: announces the reset, then does it.
    pub(crate) fn reset_by_pf(&mut self, now_ns: u64, host: &mut dyn VfHost) {
        self.post_event(Event::ResetImpending, now_ns, host);
        self.begin_reset();
        self.reset_vf(host);
    }

    /// SPEC-AVF §7.2 step 1.
    pub(crate) fn begin_reset(&mut self) {
        self.registers.reset_status = ResetState::InProgress.value();
    }

    /// SPEC-AVF §7.2 steps 3 to 7, all in one go.
    pub(crate) fn reset_vf(&mut self, host: &mut dyn VfHost) {
        self.stop_all_queues(host);
        self.registers.reset();
        self.held.clear();
        self.link_event_owed = false;
        self.doorbells.clear();
        self.interrupts.reset();
        self.vf = VfState {
            version: self.vf.version,
            ..VfState::new(self.vf.queue_pairs, self.vf.default_mac)
        };
        self.settings = VfSettings::after_reset(
            self.vf.queue_pairs,
            self.config.max_frame,
            self.vf.default_mac,
        );
        self.statistics_base = host.statistics();
        host.apply(&self.settings);
        self.registers.reset_status = ResetState::Active.value();
    }

    fn stop_all_queues(&mut self, host: &mut dyn VfHost) {
        let (tx, rx) = self.vf.running();
        if tx | rx != 0 {
            host.stop_queues(tx, rx);
        }
        self.vf.tx = [QueueState::default(); _];
        self.vf.rx = [QueueState::default(); _];
    }
}
