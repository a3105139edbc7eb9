//! The mailbox: two admin queues through which the driver and the PF exchange virtchnl messages
//! (SPEC-AVF §3, Appendix A.3).
//!
//! It moves messages and knows nothing of their meaning. What the device writes is read once into
//! local values and checked; what makes no sense is counted and passed over.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use avf_protocol::{
    admin_queue::{AdminQueueDescriptor, MAX_MESSAGE, flags, opcode},
    registers::{
        ARQBAH, ARQBAL, ARQH, ARQLEN, ARQT, ATQBAH, ATQBAL, ATQH, ATQLEN, ATQT, QueueLength,
    },
    virtchnl::Request,
};
use shared_memory::{DescriptorRing, SharedSlice};
use zerocopy::transmute;

use crate::{
    DriverError, DriverMemory, Result,
    bar::Registers,
    memory::{MAILBOX_BUFFER, MAILBOX_ENTRIES},
};

/// Words of a descriptor; the first holds the flags.
type Words = [u64; 4];

/// A message from the PF.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Message {
    /// virtchnl opcode.
    pub(crate) opcode: u32,
    /// virtchnl status.
    pub(crate) status: i32,
    pub(crate) payload: Vec<u8>,
}

/// Both admin queues.
pub(crate) struct Mailbox {
    memory: Arc<DriverMemory>,
    transmit: DescriptorRing<4>,
    receive: DescriptorRing<4>,
    transmit_next: u16,
    receive_next: u16,
    /// Messages sent whose descriptor the device has not given back, at most.
    unreturned: u16,
    garbage: u64,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("transmit_next", &self.transmit_next)
            .field("receive_next", &self.receive_next)
            .field("garbage", &self.garbage)
            .finish_non_exhaustive()
    }
}

fn words(descriptor: AdminQueueDescriptor) -> Words {
    transmute!(descriptor)
}

fn descriptor(words: Words) -> AdminQueueDescriptor {
    transmute!(words)
}

const fn advance(index: u16) -> u16 {
    if index + 1 == MAILBOX_ENTRIES { 0 } else { index + 1 }
}

/// The two halves of a device address.
fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

impl Mailbox {
    pub(crate) fn new(memory: Arc<DriverMemory>) -> Result<Self> {
        let ring = |receive| {
            let (offset, _) = memory.mailbox(receive);
            DescriptorRing::new(memory.mapping(), offset, MAILBOX_ENTRIES)
        };
        Ok(Self {
            transmit: ring(false)?,
            receive: ring(true)?,
            transmit_next: 0,
            receive_next: 0,
            unreturned: 0,
            garbage: 0,
            memory,
        })
    }

    /// What the device has put into the mailbox that made no sense.
    pub(crate) fn garbage(&self) -> u64 {
        self.garbage
    }

    /// Sets both queues up from nothing; the device must be active and the queues off, or as a
    /// reset left them.
    pub(crate) fn start(&mut self, registers: &impl Registers) -> Result<()> {
        // Off first, so that a queue an earlier user left on does not run on half-written
        // addresses.
        registers.write(ATQLEN, 0)?;
        registers.write(ARQLEN, 0)?;
        for slot in 0..MAILBOX_ENTRIES {
            write(&self.transmit, slot, [0; 4]);
            write(&self.receive, slot, words(self.posted(slot)));
        }
        (self.transmit_next, self.receive_next, self.unreturned) = (0, 0, 0);
        let length = QueueLength::enabled(MAILBOX_ENTRIES).0;
        let (transmit, receive) = (self.memory.mailbox(false).0, self.memory.mailbox(true).0);
        let queues = [
            ("ATQBAL", transmit, ATQH, ATQT, ATQBAL, ATQBAH, ATQLEN),
            ("ARQBAL", receive, ARQH, ARQT, ARQBAL, ARQBAH, ARQLEN),
        ];
        for (name, offset, head, tail, base_low, base_high, length_register) in queues {
            let (low, high) = halves(self.memory.iova_of(offset));
            registers.write(head, 0)?;
            registers.write(tail, 0)?;
            registers.write(base_low, low)?;
            registers.write(base_high, high)?;
            registers.write(length_register, length)?;
            let value = registers.read(base_low)?;
            if value != low {
                return Err(DriverError::Register { register: name, value });
            }
        }
        registers.write(ARQT, u32::from(MAILBOX_ENTRIES - 1))
    }

    /// A free receive descriptor for a slot.
    fn posted(&self, slot: u16) -> AdminQueueDescriptor {
        let capacity = u16::try_from(MAILBOX_BUFFER).unwrap_or(u16::MAX);
        let iova = self.memory.iova_of(self.buffer_offset(true, slot));
        AdminQueueDescriptor::receive_buffer(capacity, iova)
    }

    fn buffer_offset(&self, receive: bool, slot: u16) -> usize {
        self.memory.mailbox(receive).1 + usize::from(slot) * MAILBOX_BUFFER
    }

    fn buffer(&self, receive: bool, slot: u16, length: usize) -> Result<SharedSlice<'_>> {
        Ok(self.memory.mapping().slice(self.buffer_offset(receive, slot), length)?)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// All descriptors are with a device that does not give them back.
    pub(crate) fn send(&mut self, registers: &impl Registers, request: &Request<'_>) -> Result<()> {
        let opcode = request.opcode();
        let mut payload = Vec::new();
        request
            .emit(&mut payload)
            .map_err(|error| DriverError::Configuration(error.to_string()))?;
        let slot = self.transmit_next;
        self.buffer(false, slot, payload.len())?.write_from(&payload);
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        let iova = self.memory.iova_of(self.buffer_offset(false, slot));
        let descriptor = AdminQueueDescriptor::send_to_pf(opcode.value(), length, iova);
        self.submit(registers, descriptor)
    }

    /// Tells the device that the driver goes (SPEC-AVF §3.4).
    pub(crate) fn shut_down(&mut self, registers: &impl Registers) -> Result<()> {
        self.submit(registers, AdminQueueDescriptor::queue_shutdown(true))
    }

    fn submit(&mut self, registers: &impl Registers, entry: AdminQueueDescriptor) -> Result<()> {
        // The slot to be filled was given back if the ring went round; one slot stays empty.
        if self.unreturned >= MAILBOX_ENTRIES - 1 {
            self.unreturned = self.count_unreturned();
        }
        if self.unreturned >= MAILBOX_ENTRIES - 1 {
            return Err(DriverError::Answer {
                operation: "mailbox",
                problem: "the device gives no mailbox descriptor back".into(),
            });
        }
        let slot = self.transmit_next;
        write(&self.transmit, slot, words(entry));
        self.transmit_next = advance(slot);
        self.unreturned += 1;
        registers.write(ATQT, u32::from(self.transmit_next))
    }

    /// Slots before `transmit_next` that the device has not marked done, in an unbroken run.
    fn count_unreturned(&self) -> u16 {
        let mut slot = self.transmit_next;
        let mut count = 0;
        while count < MAILBOX_ENTRIES - 1 {
            slot = if slot == 0 { MAILBOX_ENTRIES - 1 } else { slot - 1 };
            if self.is_done(slot) {
                break;
            }
            count += 1;
        }
        count
    }

    fn is_done(&self, slot: u16) -> bool {
        let entry = descriptor([self.transmit.load(slot, 0, Ordering::Acquire), 0, 0, 0]);
        entry.has(flags::DD)
    }

    /// The next message of the PF, if there is one: one load of memory if not.
    pub(crate) fn receive(&mut self, registers: &impl Registers) -> Result<Option<Message>> {
        // At most one round, whatever the device claims.
        for _ in 0..MAILBOX_ENTRIES {
            let slot = self.receive_next;
            // The done bit first, with acquire; then the rest, once.
            let first = self.receive.load(slot, 0, Ordering::Acquire);
            if !descriptor([first, 0, 0, 0]).has(flags::DD) {
                return Ok(None);
            }
            let mut all = self.receive.read(slot);
            if let Some(word) = all.first_mut() {
                *word = first;
            }
            let entry = descriptor(all);
            let message = self.read_message(slot, &entry);
            write(&self.receive, slot, words(self.posted(slot)));
            self.receive_next = advance(slot);
            registers.write(ARQT, u32::from(slot))?;
            match message? {
                Some(message) => return Ok(Some(message)),
                None => self.garbage += 1,
            }
        }
        Ok(None)
    }

    /// Whether a message is waiting: one load of memory.
    pub(crate) fn has_message(&self) -> bool {
        let first = self.receive.load(self.receive_next, 0, Ordering::Relaxed);
        descriptor([first, 0, 0, 0]).has(flags::DD)
    }

    fn read_message(&self, slot: u16, entry: &AdminQueueDescriptor) -> Result<Option<Message>> {
        let length = usize::from(entry.datalen.get());
        if entry.opcode.get() != opcode::SEND_TO_VF || length > MAX_MESSAGE.min(MAILBOX_BUFFER) {
            return Ok(None);
        }
        let mut payload = Vec::new();
        if entry.has(flags::BUF) {
            payload.resize(length, 0);
            self.buffer(true, slot, length)?.read_into(&mut payload);
        }
        let opcode = entry.cookie_high.get();
        Ok(Some(Message { opcode, status: entry.virtchnl_status(), payload }))
    }
}

/// Stores a descriptor, the word with the flags last.
fn write(ring: &DescriptorRing<4>, slot: u16, words: Words) {
    let [first, rest @ ..] = words;
    for (word, value) in (1..).zip(rest) {
        ring.store(slot, word, value, Ordering::Relaxed);
    }
    ring.store(slot, 0, first, Ordering::Release);
}

const _: () = assert!(size_of::<AdminQueueDescriptor>() == size_of::<Words>());

#[cfg(test)]
mod tests;
