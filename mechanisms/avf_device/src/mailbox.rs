//! The mailbox: admin queues in guest memory (SPEC-AVF §3).
//!
//! Requests are taken in order, and no further while too many answers wait for buffers: so none is lost
//! and none piles up.

use std::sync::atomic::Ordering;

use avf_protocol::{
    admin_queue::{AdminQueueDescriptor, MAX_MESSAGE, ReturnCode, flags, opcode},
    virtchnl::{Event, Opcode, Reply, Status},
};
use shared_memory::{DmaAddress, DmaFault, TranslationCache};
use zerocopy::IntoBytes;

use crate::{AvfDevice, VfHost, device::due, virtchnl::After};

/// With this many messages held, requests wait.
const HELD_LIMIT: usize = 64;

/// A message to the VF.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Message {
    opcode: u32,
    status: Status,
    payload: Vec<u8>,
}

impl AvfDevice {
    /// Writes ARQLEN. What waits for a queue that is turned off is for nobody.
    pub(crate) fn write_arqlen(&mut self, value: u32) {
        if self.registers.arq.write_length(value) {
            self.held.clear();
            self.link_event_owed = false;
        }
    }

    /// Delivers what is held, then takes requests, as far as buffers and descriptors go.
    pub(crate) fn serve_mailbox(&mut self, now_ns: u64, host: &mut dyn VfHost) {
        self.deliver(now_ns, host);
        while self.held.len() < HELD_LIMIT && self.take_request(now_ns, host) {}
    }

    /// Takes the request at the head of the ATQ, if there is one. False when there is nothing more to do.
    fn take_request(&mut self, now_ns: u64, host: &mut dyn VfHost) -> bool {
        let queue = &self.registers.atq;
        if !queue.is_running() || !queue.has_descriptor() || !self.is_bus_master() {
            return false;
        }
        let address = queue.head_address().map(DmaAddress);
        let descriptor = address
            .and_then(|at| Some((at, self.dma.read_object::<AdminQueueDescriptor>(at).ok()?)));
        let Some((address, descriptor)) = descriptor else {
            self.faults += 1;
            self.registers.atq.fail();
            return false;
        };
        let mut after = After::Nothing;
        let mut answer = None;
        let code = match descriptor.opcode.get() {
            opcode::SEND_TO_PF => match self.payload(&descriptor) {
                Ok(payload) => {
                    let virtchnl_opcode = descriptor.cookie_high.get();
                    let outcome = self.answer(virtchnl_opcode, &payload, now_ns, host);
                    answer = outcome.reply.map(|(status, reply)| (virtchnl_opcode, status, reply));
                    after = outcome.after;
                    ReturnCode::Ok
                }
                Err(code) => code,
            },
            opcode::QUEUE_SHUTDOWN => ReturnCode::Ok,
            _ => ReturnCode::NotImplemented,
        };
        if matches!(after, After::Reset) {
            // Nobody may see the request done and the VF still active (SPEC-AVF §7.2).
            self.begin_reset();
        }
        if self.publish(address, &descriptor.completed(code)).is_err() {
            self.faults += 1;
        }
        self.registers.atq.advance();
        if let Some((virtchnl_opcode, status, reply)) = answer {
            self.post(virtchnl_opcode, status, &reply, now_ns, host);
        }
        match after {
            After::Nothing => {}
            After::LinkEvent => self.post_link_event(now_ns, host),
            After::Reset => self.reset_vf(host),
            After::ResetByPf => self.reset_by_pf(now_ns, host),
        }
        true
    }

    /// Reads a request's buffer.
    fn payload(&mut self, descriptor: &AdminQueueDescriptor) -> Result<Vec<u8>, ReturnCode> {
        let length = usize::from(descriptor.datalen.get());
        if !descriptor.has(flags::BUF) || length == 0 {
            return Ok(Vec::new());
        }
        if length > MAX_MESSAGE {
            return Err(ReturnCode::Invalid);
        }
        let mut payload = vec![0; length];
        self.dma.read_bytes(DmaAddress(descriptor.buffer()), &mut payload).map_err(|_| {
            self.faults += 1;
            ReturnCode::Io
        })?;
        Ok(payload)
    }

    /// Stores a descriptor so that its done bit, in the first word, becomes visible last.
    fn publish(
        &self,
        address: DmaAddress,
        descriptor: &AdminQueueDescriptor,
    ) -> Result<(), DmaFault> {
        let fault = DmaFault { address, length: descriptor.as_bytes().len(), write: true };
        let (first, rest) = descriptor.as_bytes().split_first_chunk::<4>().ok_or(fault)?;
        self.dma.write_bytes(address.checked_add(4).ok_or(fault)?, rest)?;
        let word = self.dma.write_slice(&mut TranslationCache::default(), address, 4)?;
        word.store_u32(0, u32::from_le_bytes(*first), Ordering::Release).ok_or(fault)
    }

    /// Sends a message to the VF, or holds it until there is a buffer.
    pub(crate) fn post(
        &mut self,
        opcode: u32,
        status: Status,
        reply: &Reply,
        now_ns: u64,
        host: &mut dyn VfHost,
    ) {
        if !self.registers.arq.length.is_enabled() {
            return;
        }
        let mut payload = Vec::new();
        reply.emit(&mut payload);
        self.held.push_back(Message { opcode, status, payload });
        self.deliver(now_ns, host);
    }

    /// Sends an event to the VF.
    pub(crate) fn post_event(&mut self, event: Event, now_ns: u64, host: &mut dyn VfHost) {
        let reply = Reply::Event(event.to_message(self.has_advanced_link_speed()));
        self.post(Opcode::Event.value(), Status::Success, &reply, now_ns, host);
    }

    /// Tells the VF of its link. While too much is held, one event stands for all.
    pub(crate) fn post_link_event(&mut self, now_ns: u64, host: &mut dyn VfHost) {
        if self.held.len() >= HELD_LIMIT {
            self.link_event_owed = true;
        } else {
            let event = Event::LinkChange(host.link());
            self.post_event(event, now_ns, host);
        }
    }

    /// Moves held messages into the buffers of the ARQ, as far as there are any.
    fn deliver(&mut self, now_ns: u64, host: &mut dyn VfHost) {
        loop {
            let queue = &self.registers.arq;
            if !queue.is_running() || !queue.has_descriptor() || !self.is_bus_master() {
                return;
            }
            let Some(message) = self.held.front() else {
                if !std::mem::take(&mut self.link_event_owed) {
                    return;
                }
                let event =
                    Event::LinkChange(host.link()).to_message(self.has_advanced_link_speed());
                self.held.push_back(Message {
                    opcode: Opcode::Event.value(),
                    status: Status::Success,
                    payload: event.as_bytes().to_vec(),
                });
                continue;
            };
            match self.fill(queue.head_address(), message) {
                Ok(buffer_faults) => {
                    self.faults += u64::from(buffer_faults);
                    self.held.pop_front();
                    self.registers.arq.advance();
                    due(host, self.interrupts.raise_admin(now_ns));
                }
                Err(()) => {
                    self.faults += 1;
                    self.registers.arq.fail();
                    return;
                }
            }
        }
    }

    /// Writes a message into the posted buffer and its descriptor; a buffer that cannot be reached makes the
    /// message empty. Returns whether that was so, or an error when the descriptor is out of reach.
    fn fill(&self, address: Option<u64>, message: &Message) -> Result<bool, ()> {
        let address = DmaAddress(address.ok_or(())?);
        let descriptor: AdminQueueDescriptor = self.dma.read_object(address).map_err(drop)?;
        let capacity = usize::from(descriptor.datalen.get());
        let payload = message.payload.get(..capacity).unwrap_or(&message.payload);
        let written = self.dma.write_bytes(DmaAddress(descriptor.buffer()), payload);
        let length = if written.is_ok() { payload.len() } else { 0 };
        let length = u16::try_from(length).unwrap_or(0);
        let filled = descriptor.filled(message.opcode, message.status.value(), length);
        self.publish(address, &filled).map_err(drop)?;
        Ok(written.is_err())
    }
}
