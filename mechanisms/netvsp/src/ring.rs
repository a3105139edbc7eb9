//! Writing to a ring what may have to wait for room.

use std::collections::VecDeque;

use netvsp_protocol::nvsp::{NvspStatus, SendRndisPacket};
use vmbus::{OutgoingPacket, RingSender, SendError};

use crate::{BURST_FRAMES, ProtocolError};

/// Bytes of the longest message that tells of frames.
const MESSAGE: usize = 40;

/// Writes a packet; false if the ring has no room now.
#[inline]
pub(crate) fn write(
    ring: &mut RingSender,
    packet: OutgoingPacket<'_>,
    payload: &[u8],
) -> Result<bool, ProtocolError> {
    match ring.write(packet, payload) {
        Ok(()) => Ok(true),
        Err(SendError::Full { .. }) => Ok(false),
        Err(error) => Err(ProtocolError::from_send(error)),
    }
}

/// A message that tells of RNDIS messages, as long as the newest version has it.
#[inline]
pub(crate) fn rndis_message(packet: SendRndisPacket) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    let (front, _) = message.split_at_mut(SendRndisPacket::SIZE);
    front.copy_from_slice(&packet.emit());
    message
}

/// Completions of the other end's packets, in the order of those. What the ring has no room for waits, and nothing
/// should be received until it is gone.
#[derive(Debug)]
pub(crate) struct Completions {
    waiting: VecDeque<(u64, NvspStatus)>,
}

impl Completions {
    /// None.
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(BURST_FRAMES) }
    }

    /// Whether some wait.
    #[inline]
    pub(crate) fn wait(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Completes these transactions with messages of `size` bytes, at least 8.
    #[inline]
    pub(crate) fn write(
        &mut self,
        ring: &mut RingSender,
        done: &[(u64, NvspStatus)],
        size: usize,
    ) -> Result<(), ProtocolError> {
        for &(transaction, status) in done {
            if self.wait() || !complete(ring, transaction, status, size)? {
                self.waiting.push_back((transaction, status));
            }
        }
        Ok(())
    }

    /// Writes those that wait; true if none is left.
    pub(crate) fn drain(
        &mut self,
        ring: &mut RingSender,
        size: usize,
    ) -> Result<bool, ProtocolError> {
        while let Some(&(transaction, status)) = self.waiting.front() {
            if !complete(ring, transaction, status, size)? {
                return Ok(false);
            }
            self.waiting.pop_front();
        }
        Ok(true)
    }
}

#[inline]
fn complete(
    ring: &mut RingSender,
    transaction_id: u64,
    status: NvspStatus,
    size: usize,
) -> Result<bool, ProtocolError> {
    let mut message = [0; MESSAGE];
    let (front, _) = message.split_at_mut(8);
    front.copy_from_slice(&status.packet_complete());
    let payload = message.get(..size).unwrap_or(&message);
    write(ring, OutgoingPacket::Completion { transaction_id }, payload)
}
