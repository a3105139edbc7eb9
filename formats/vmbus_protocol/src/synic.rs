//! What carries control messages: the hypervisor's message slot; and the monitor page (SPEC-VMBUS §1.1, §8.3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the longest control message, its header included.
pub const MAX_MESSAGE_SIZE: usize = 240;
/// The hypervisor's type of messages that VMBus posts.
pub const VMBUS_MESSAGE_TYPE: u32 = 1;
/// Slot flag: another message waits for the slot to become empty.
pub const MESSAGE_FLAG_PENDING: u8 = 1;

/// One slot of a processor's SynIC message page.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageSlot {
    /// 0: the slot is empty. Written last.
    pub message_type: u32,
    /// Bytes of the payload that are used.
    pub payload_size: u8,
    /// [`MESSAGE_FLAG_PENDING`] or 0.
    pub flags: u8,
    /// Zero.
    pub reserved: u16,
    /// The sender, or the port.
    pub sender: u64,
    /// The control message.
    pub payload: [u8; MAX_MESSAGE_SIZE],
}

const _: () = assert!(size_of::<MessageSlot>() == 256);

impl MessageSlot {
    /// The slot that carries a VMBus control message; `None` if it is too long.
    pub fn vmbus(message: &[u8]) -> Option<Self> {
        let mut payload = [0; MAX_MESSAGE_SIZE];
        payload.get_mut(..message.len())?.copy_from_slice(message);
        let payload_size = u8::try_from(message.len()).ok()?;
        let message_type = VMBUS_MESSAGE_TYPE;
        Some(Self { message_type, payload_size, flags: 0, reserved: 0, sender: 0, payload })
    }

    /// The control message that the slot carries, if it is one of VMBus.
    pub fn message(&self) -> Option<&[u8]> {
        if self.message_type != VMBUS_MESSAGE_TYPE {
            return None;
        }
        self.payload.get(..usize::from(self.payload_size))
    }
}

/// Trigger bits of 32 channels.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MonitorTriggerGroup {
    /// A bit for each channel that wants to be signalled.
    pub pending: u32,
    /// Which of them are armed.
    pub armed: u32,
}

/// What a trigger bit of a monitor page signals.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MonitorParameter {
    /// The connection to signal.
    pub connection_id: u32,
    /// Its flag number.
    pub flag_number: u16,
    /// Zero.
    pub reserved: u16,
}

/// The monitor page: a guest sets a bit here instead of signalling at once.
#[derive(Copy, Clone, Eq, PartialEq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MonitorPage {
    /// Bits 0 to 3: the group is enabled.
    pub trigger_state: u32,
    /// Zero.
    pub reserved1: u32,
    /// The trigger bits: monitor id n is bit n % 32 of group n / 32.
    pub trigger_groups: [MonitorTriggerGroup; 4],
    /// Zero.
    pub reserved2: [u8; 24],
    /// When each is looked at next.
    pub next_check_time: [[u32; 32]; 4],
    /// How long each may be held back, in units of 100 ns.
    pub latency: [[u16; 32]; 4],
    /// Zero.
    pub reserved3: [u8; 256],
    /// What each signals.
    pub parameters: [[MonitorParameter; 32]; 4],
    /// Zero.
    pub reserved4: [u8; 1984],
}

const _: () = {
    assert!(size_of::<MonitorPage>() == 4096);
    assert!(core::mem::offset_of!(MonitorPage, trigger_groups) == 8);
    assert!(core::mem::offset_of!(MonitorPage, next_check_time) == 64);
    assert!(core::mem::offset_of!(MonitorPage, latency) == 576);
    assert!(core::mem::offset_of!(MonitorPage, parameters) == 1088);
};
