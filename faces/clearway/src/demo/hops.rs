//! Frames at the places that a frame from one VM to the other passes.

use adapter::control::VfStatus;
use serde::Serialize;
use user_vm::VmStatistics;

/// One direction between the two VMs.
#[derive(Debug, Serialize)]
pub(crate) struct Hop {
    pub(crate) direction: String,
    sent_by_vm: u64,
    entered_the_switch: u64,
    /// Of those, multicast: delivered only to VMs that listen to the group.
    entered_to_groups: u64,
    /// By the switch: nobody to receive, or against its policies.
    refused: u64,
    left_the_switch: u64,
    left_to_groups: u64,
    without_a_buffer: u64,
    received_by_vm: u64,
}

impl Hop {
    pub(crate) fn between(
        from: &VfStatus,
        to: &VfStatus,
        sender: &VmStatistics,
        receiver: &VmStatistics,
    ) -> Self {
        let (sent, left) = (&from.function.stats.transmit, &to.function.stats.receive);
        Self {
            direction: format!("VF {} to VF {}", from.vf, to.vf),
            sent_by_vm: sender.to_vf.frames,
            entered_the_switch: sent.frames(),
            entered_to_groups: sent.multicast,
            refused: sent.discards() + sent.errors(),
            left_to_groups: left.multicast,
            left_the_switch: left.frames(),
            without_a_buffer: left.discards(),
            received_by_vm: receiver.to_guest.frames,
        }
    }

    /// Whether nothing was lost without being counted, and nothing came from nowhere.
    pub(crate) fn agrees(&self) -> bool {
        let entered = self.entered_the_switch.checked_sub(self.entered_to_groups);
        let left = self.left_the_switch.checked_sub(self.left_to_groups);
        self.sent_by_vm == self.entered_the_switch + self.refused
            && entered == left.map(|left| left + self.without_a_buffer)
            && self.left_the_switch == self.received_by_vm
    }

    pub(crate) fn detail(&self) -> String {
        format!(
            "{} sent by the VM, {} into the switch ({} to groups), {} refused; {} out of it ({} to groups), \
             {} without a buffer; {} received by the VM",
            self.sent_by_vm,
            self.entered_the_switch,
            self.entered_to_groups,
            self.refused,
            self.left_the_switch,
            self.left_to_groups,
            self.without_a_buffer,
            self.received_by_vm
        )
    }
}
