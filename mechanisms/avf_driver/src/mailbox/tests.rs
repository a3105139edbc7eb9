//! Tests of the mailbox against a PF that is played in memory.

use std::cell::RefCell;

use avf_protocol::{
    admin_queue::ReturnCode,
    registers::{Register, ResetState},
    virtchnl::{Opcode, Version},
};
use proptest::prelude::*;

use super::*;
use crate::{DriverConfig, MemorySource};

/// A register file; what the device does with the rings is up to the test.
struct Played {
    memory: Arc<DriverMemory>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    registers: std::collections::HashMap<u32, u32>,
    writes: Vec<Register>,
    /// Device's next slots.
    transmit: u16,
    receive: u16,
    /// Descriptors are not given back.
    hangs: bool,
    /// Requests seen: opcode and payload.
    requests: Vec<(u32, Vec<u8>)>,
}

impl Registers for Played {
    fn read(&self, offset: u32) -> Result<u32> {
        Ok(self.state.borrow().registers.get(&offset).copied().unwrap_or(0))
    }

    fn write(&self, offset: u32, value: u32) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.registers.insert(offset, value);
        state.writes.push(Register::decode(offset).unwrap());
        if offset == ATQT {
            drop(state);
            self.take_requests();
        }
        Ok(())
    }
}

impl Played {
    fn new() -> (Mailbox, Self) {
        let config = DriverConfig::new("unused");
        let memory = Arc::new(DriverMemory::new(&config, MemorySource::default()).unwrap());
        let mailbox = Mailbox::new(memory.clone()).unwrap();
        (mailbox, Self { memory, state: RefCell::default() })
    }

    fn started() -> (Mailbox, Self) {
        let (mut mailbox, played) = Self::new();
        mailbox.start(&played).unwrap();
        (mailbox, played)
    }

    fn ring(&self, receive: bool) -> DescriptorRing<4> {
        let offset = self.memory.mailbox(receive).0;
        DescriptorRing::new(self.memory.mapping(), offset, MAILBOX_ENTRIES).unwrap()
    }

    fn bytes(&self, address: u64, length: usize) -> SharedSlice<'_> {
        let at = (address - self.memory.iova().0) as usize;
        self.memory.mapping().slice(at, length).unwrap()
    }

    fn take_requests(&self) {
        let tail = self.read(ATQT).unwrap() as u16;
        let mut state = self.state.borrow_mut();
        if state.hangs {
            return;
        }
        let ring = self.ring(false);
        while state.transmit != tail {
            let slot = state.transmit;
            let entry = descriptor(ring.read(slot));
            let mut payload = vec![0; usize::from(entry.datalen.get())];
            if !payload.is_empty() {
                self.bytes(entry.buffer(), payload.len()).read_into(&mut payload);
            }
            state.requests.push((entry.cookie_high.get(), payload));
            write(&ring, slot, words(entry.completed(ReturnCode::Ok)));
            state.transmit = advance(slot);
        }
    }

    /// Puts a message into the next posted buffer.
    fn post(&self, opcode: u32, status: i32, payload: &[u8]) {
        let slot = self.state.borrow().receive;
        let entry = descriptor(self.ring(true).read(slot));
        assert_eq!(entry.datalen.get(), 4096, "a whole buffer is posted");
        assert!(entry.has(flags::BUF | flags::LB) && !entry.has(flags::DD));
        self.bytes(entry.buffer(), payload.len()).write_from(payload);
        self.write_back(entry.filled(opcode, status, payload.len() as u16));
    }

    fn write_back(&self, entry: AdminQueueDescriptor) {
        let mut state = self.state.borrow_mut();
        write(&self.ring(true), state.receive, words(entry));
        state.receive = advance(state.receive);
    }
}

#[test]
fn both_queues_are_set_up_before_they_are_on_and_all_but_one_buffer_is_posted() {
    let (_, played) = Played::started();
    let read = |offset| played.read(offset).unwrap();
    assert_eq!((read(ATQH), read(ATQT), read(ATQLEN)), (0, 0, 0x8000_0020));
    assert_eq!((read(ARQH), read(ARQT), read(ARQLEN)), (0, 31, 0x8000_0020));
    let base = u64::from(read(ARQBAH)) << 32 | u64::from(read(ARQBAL));
    assert_eq!(base, played.memory.iova_of(played.memory.mailbox(true).0));
    let writes = played.state.borrow().writes.clone();
    let last = |register| writes.iter().rposition(|write| *write == register).unwrap();
    assert!(last(Register::Atqbal) < last(Register::Atqlen));
    assert!(last(Register::Arqbah) < last(Register::Arqlen));
    assert!(last(Register::Arqlen) < last(Register::Arqt));
}

#[test]
fn a_register_that_does_not_hold_its_value_is_no_working_device() {
    struct Dead;
    impl Registers for Dead {
        fn read(&self, _: u32) -> Result<u32> {
            Ok(u32::MAX)
        }
        fn write(&self, _: u32, _: u32) -> Result<()> {
            Ok(())
        }
    }
    let (mut mailbox, _) = Played::new();
    let error = mailbox.start(&Dead).unwrap_err();
    assert!(matches!(error, DriverError::Register { register: "ATQBAL", value: u32::MAX }));
    assert_eq!(ResetState::of(u32::MAX), ResetState::Invalid);
}

#[test]
fn requests_go_out_with_their_bytes_round_and_round_the_ring() {
    let (mut mailbox, played) = Played::started();
    for minor in 0..100u32 {
        mailbox.send(&played, &Request::Version(Version { major: 1, minor })).unwrap();
        let expected = [1u32.to_le_bytes(), minor.to_le_bytes()].concat();
        let seen = played.state.borrow().requests.last().cloned().unwrap();
        assert_eq!(seen, (Opcode::Version.value(), expected));
    }
    mailbox.send(&played, &Request::ResetVf).unwrap();
    let seen = played.state.borrow().requests.last().cloned().unwrap();
    assert_eq!(seen, (Opcode::ResetVf.value(), vec![]));
}

#[test]
fn a_device_that_gives_no_descriptor_back_is_an_error_after_a_ring_full() {
    let (mut mailbox, played) = Played::started();
    played.state.borrow_mut().hangs = true;
    for _ in 0..31 {
        mailbox.send(&played, &Request::ResetVf).unwrap();
    }
    let error = mailbox.send(&played, &Request::ResetVf).unwrap_err();
    assert!(matches!(error, DriverError::Answer { .. }), "{error:?}");
    played.state.borrow_mut().hangs = false;
    played.take_requests();
    mailbox.send(&played, &Request::ResetVf).unwrap();
}

#[test]
fn messages_come_in_order_and_their_buffers_are_posted_again() {
    let (mut mailbox, played) = Played::started();
    for number in 0..100u32 {
        assert!(!mailbox.has_message());
        assert_eq!(mailbox.receive(&played).unwrap(), None);
        let payload = vec![number as u8; number as usize];
        played.post(number, -5, &payload);
        assert!(mailbox.has_message());
        let message = mailbox.receive(&played).unwrap().unwrap();
        assert_eq!(message, Message { opcode: number, status: -5, payload });
        assert_eq!(played.read(ARQT).unwrap(), number % 32, "one slot stays with the driver");
    }
}

#[test]
fn garbage_is_counted_and_what_comes_after_it_is_seen() {
    let (mut mailbox, played) = Played::started();
    let posted = || descriptor(played.ring(true).read(played.state.borrow().receive));
    let mut wrong_opcode = posted().filled(1, 0, 8);
    wrong_opcode.opcode = 0x0801.into();
    played.write_back(wrong_opcode);
    played.write_back(posted().filled(1, 0, u16::MAX));
    played.post(17, 0, &[1; 16]);
    assert_eq!(mailbox.receive(&played).unwrap().unwrap().opcode, 17);
    assert_eq!(mailbox.garbage(), 2);
}

proptest! {
    #[test]
    fn random_descriptors_never_panic_or_hold_the_driver(
        entries in prop::collection::vec(any::<[u64; 4]>(), 32)
    ) {
        let (mut mailbox, played) = Played::started();
        for (slot, entry) in (0..).zip(&entries) {
            let [first, a, b, c] = *entry;
            write(&played.ring(true), slot, [first | 1, a, b, c]);
        }
        for _ in 0..40 {
            if let Some(message) = mailbox.receive(&played).unwrap() {
                prop_assert!(message.payload.len() <= MAX_MESSAGE);
            }
        }
        prop_assert_eq!(mailbox.receive(&played).unwrap(), None);
    }
}
