//! Counters of the data path. Plain numbers: the worker thread owns them, readers ask the worker.

use nic_switch::{DropReason, MacKey};
use serde::{Deserialize, Serialize};

/// What a function received from the switch.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct ReceiveStats {
    /// Bytes, without FCS.
    pub bytes: u64,
    /// Unicast frames.
    pub unicast: u64,
    /// Multicast frames.
    pub multicast: u64,
    /// Broadcast frames.
    pub broadcast: u64,
    /// Frames for which the driver had posted too few buffers.
    pub no_buffer: u64,
    /// Frames larger than the queue takes.
    pub too_long: u64,
    /// Frames lost to a posted buffer outside of the function's DMA map.
    pub dma_faults: u64,
}

impl ReceiveStats {
    /// Counts one delivered frame.
    #[inline(always)]
    pub(crate) fn delivered(&mut self, destination: MacKey, length: usize) {
        self.bytes += length as u64;
        if !destination.is_group() {
            self.unicast += 1;
        } else if destination.is_broadcast() {
            self.broadcast += 1;
        } else {
            self.multicast += 1;
        }
    }

    /// Frames delivered.
    pub fn frames(&self) -> u64 {
        self.unicast + self.multicast + self.broadcast
    }

    /// Frames that were for the function and did not reach it.
    pub fn discards(&self) -> u64 {
        self.no_buffer + self.too_long + self.dma_faults
    }
}

/// What a function sent into the switch.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct TransmitStats {
    /// Bytes, without FCS.
    pub bytes: u64,
    /// Unicast frames.
    pub unicast: u64,
    /// Multicast frames.
    pub multicast: u64,
    /// Broadcast frames.
    pub broadcast: u64,
    /// Frames that the switch dropped because of their source address.
    pub spoofed: u64,
    /// Frames that the switch dropped because of their VLAN.
    pub vlan_not_allowed: u64,
    /// Frames that the switch dropped because nobody could take them.
    pub no_receiver: u64,
    /// Packets that the descriptors describe wrongly, or larger than allowed.
    pub malformed: u64,
    /// Packets with a buffer outside of the function's DMA map.
    pub dma_faults: u64,
}

impl TransmitStats {
    /// Counts one frame that entered the switch.
    #[inline(always)]
    pub(crate) fn sent(&mut self, destination: MacKey, length: usize) {
        self.bytes += length as u64;
        if !destination.is_group() {
            self.unicast += 1;
        } else if destination.is_broadcast() {
            self.broadcast += 1;
        } else {
            self.multicast += 1;
        }
    }

    /// Counts one frame that the switch refused.
    #[cold]
    pub(crate) fn dropped(&mut self, reason: DropReason) {
        match reason {
            DropReason::SpoofedSource => self.spoofed += 1,
            DropReason::VlanNotAllowed => self.vlan_not_allowed += 1,
            DropReason::ToItself | DropReason::NoReceiver => self.no_receiver += 1,
        }
    }

    /// Frames that entered the switch.
    pub fn frames(&self) -> u64 {
        self.unicast + self.multicast + self.broadcast
    }

    /// Frames that the switch refused.
    pub fn discards(&self) -> u64 {
        self.spoofed + self.vlan_not_allowed + self.no_receiver
    }

    /// Packets that never became a frame.
    pub fn errors(&self) -> u64 {
        self.malformed + self.dma_faults
    }
}

/// Both directions of one function.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct FunctionStats {
    /// From the switch to the function.
    pub receive: ReceiveStats,
    /// From the function to the switch.
    pub transmit: TransmitStats,
}

/// What crossed the physical port.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct UplinkStats {
    /// Frames that came in.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that came in and that the switch dropped.
    pub received_dropped: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that the uplink did not take.
    pub sent_dropped: u64,
}
