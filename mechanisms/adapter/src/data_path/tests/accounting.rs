//! Every frame is in a counter at every hop, and the counters of all hops agree: random frames among three
//! VFs and the wire, against a model that is only arithmetic.

use proptest::prelude::*;

use super::{packets::tagged, *};

const GROUP: [u8; 6] = [0x01, 0x00, 0x5E, 0, 0, 7];
/// Where a frame comes from or goes to, besides a VF.
const WIRE: usize = 3;

#[derive(Copy, Clone, Debug)]
enum Target {
    Vf(usize),
    /// An address that no VF has.
    Elsewhere,
    Everyone,
    Group,
}

#[derive(Copy, Clone, Debug)]
enum Tag {
    None,
    InFrame(u16),
    /// By the NIC, if a VF sends it; else it is in the frame.
    Inserted(u16),
}

#[derive(Clone, Debug)]
struct Send {
    from: usize,
    to: Target,
    spoofed: bool,
    tag: Tag,
    length: usize,
    pieces: usize,
}

fn sends() -> impl Strategy<Value = Send> {
    let to = prop_oneof![
        4 => (0usize..3).prop_map(Target::Vf),
        1 => Just(Target::Elsewhere),
        1 => Just(Target::Everyone),
        1 => Just(Target::Group),
    ];
    let tag = prop_oneof![
        3 => Just(Tag::None),
        1 => (5u16..7, 0u16..8).prop_map(|(id, priority)| Tag::InFrame(id | priority << 13)),
        1 => (5u16..7, 0u16..8).prop_map(|(id, priority)| Tag::Inserted(id | priority << 13)),
    ];
    let length = prop_oneof![3 => 4usize..300, 1 => 300usize..2000];
    (0usize..=WIRE, to, prop::bool::weighted(0.05), tag, length, 1usize..=3).prop_map(
        |(from, to, spoofed, tag, length, pieces)| Send { from, to, spoofed, tag, length, pieces },
    )
}

impl Send {
    fn destination(&self) -> [u8; 6] {
        match self.to {
            Target::Vf(number) => mac(number as u8),
            Target::Elsewhere => mac(200),
            Target::Everyone => [0xFF; 6],
            Target::Group => GROUP,
        }
    }

    /// Without any tag.
    fn bare(&self) -> Vec<u8> {
        let source = if self.spoofed { mac(99) } else { mac(self.from as u8) };
        [&self.destination()[..], &source, &[0x88, 0xB5], &pattern(self.length)].concat()
    }

    fn tci(&self) -> Option<u16> {
        match self.tag {
            Tag::None => None,
            Tag::InFrame(tci) | Tag::Inserted(tci) => Some(tci),
        }
    }

    /// The bytes that the sender has in its memory, or puts on the wire.
    fn bytes(&self) -> Vec<u8> {
        match self.tag {
            Tag::InFrame(tci) => tagged(&self.bare(), tci),
            Tag::Inserted(tci) if self.from == WIRE => tagged(&self.bare(), tci),
            _ => self.bare(),
        }
    }

    fn send(&self, rig: &mut Rig, wire: &wire::Wire) {
        let bytes = self.bytes();
        if self.from == WIRE {
            return wire.send(&bytes);
        }
        let inserted = match self.tag {
            Tag::Inserted(tci) => Some(tci),
            _ => None,
        };
        let pieces: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(self.pieces)).collect();
        rig.guest(self.from).send_with(&pieces, Default::default(), inserted, None);
    }
}

/// A VF of the model: what it takes, and what it then has.
struct Function {
    buffer_size: usize,
    max_frame_size: usize,
    strip: bool,
    /// Whether it limits itself to VLAN 5.
    filtering: bool,
    grouped: bool,
    buffers: usize,
    stats: FunctionStats,
    received: Vec<(Option<u16>, Vec<u8>)>,
}

impl Function {
    fn passes(&self, tci: Option<u16>) -> bool {
        !self.filtering || tci.is_none_or(|tci| tci & 0xFFF == 5)
    }

    fn deliver(&mut self, send: &Send) {
        let (in_frame, told) = if self.strip { (None, send.tci()) } else { (send.tci(), None) };
        let bytes = in_frame.map_or(send.bare(), |tci| tagged(&send.bare(), tci));
        let wanted = bytes.len().div_ceil(self.buffer_size);
        let stats = &mut self.stats.receive;
        if bytes.len() > self.max_frame_size || wanted > 5 {
            stats.too_long += 1;
        } else if wanted > self.buffers {
            stats.no_buffer += 1;
        } else {
            self.buffers -= wanted;
            stats.bytes += bytes.len() as u64;
            match send.to {
                Target::Everyone => stats.broadcast += 1,
                Target::Group => stats.multicast += 1,
                _ => stats.unicast += 1,
            }
            self.received.push((told, bytes));
        }
    }
}

/// The model of everything.
struct Model {
    functions: Vec<Function>,
    uplink: super::super::UplinkStats,
    sent: Vec<Vec<u8>>,
    room: usize,
}

impl Model {
    fn wire(&mut self, send: &Send) {
        let bytes = send.tci().map_or(send.bare(), |tci| tagged(&send.bare(), tci));
        if self.sent.len() < self.room {
            self.uplink.sent += 1;
            self.uplink.sent_bytes += bytes.len() as u64;
            self.sent.push(bytes);
        } else {
            self.uplink.sent_dropped += 1;
        }
    }

    fn forward(&mut self, send: &Send) {
        let from = send.from;
        if from == WIRE {
            self.uplink.received += 1;
            self.uplink.received_bytes += send.bytes().len() as u64;
        } else if send.spoofed {
            self.functions[from].stats.transmit.spoofed += 1;
            return;
        }
        let targets: Vec<usize> = match send.to {
            Target::Vf(to) => vec![to],
            Target::Elsewhere => vec![WIRE],
            Target::Everyone | Target::Group => {
                let takes = |to: &usize| {
                    let function = &self.functions[*to];
                    let grouped = function.grouped || matches!(send.to, Target::Everyone);
                    grouped && function.passes(send.tci())
                };
                (0..3).filter(takes).chain([WIRE]).filter(|to| *to != from).collect()
            }
        };
        let alone = matches!(send.to, Target::Vf(_) | Target::Elsewhere);
        let dropped = match targets.as_slice() {
            [to] if alone && *to == from => Some(false),
            [to] if alone && *to != WIRE && !self.functions[*to].passes(send.tci()) => Some(true),
            [] => Some(false),
            _ => None,
        };
        match (dropped, from) {
            (Some(_), WIRE) => self.uplink.received_dropped += 1,
            (Some(true), from) => self.functions[from].stats.transmit.vlan_not_allowed += 1,
            (Some(false), from) => self.functions[from].stats.transmit.no_receiver += 1,
            (None, from) => {
                if from != WIRE {
                    let stats = &mut self.functions[from].stats.transmit;
                    stats.bytes += send.bytes().len() as u64;
                    match send.to {
                        Target::Everyone => stats.broadcast += 1,
                        Target::Group => stats.multicast += 1,
                        _ => stats.unicast += 1,
                    }
                }
                for to in targets {
                    if to == WIRE {
                        self.wire(send);
                    } else {
                        self.functions[to].deliver(send);
                    }
                }
            }
        }
    }
}

/// Three VFs that differ: VF 1 takes frames of up to 600 bytes, and of VLAN 5 and without a tag only; VF 2 has
/// small buffers and has tags stripped; VF 0 and VF 2 are in the group.
fn functions(rig: &mut Rig, buffers: [u16; 3]) -> Vec<Function> {
    let group = vec![avf_protocol::MacAddress(GROUP)];
    let asked = [
        VfSettings { multicast: group.clone(), ..settings() },
        VfSettings { vlan_filtering: true, vlans: vec![5], ..settings() },
        VfSettings { multicast: group, vlan_strip: true, ..settings() },
    ];
    let mut functions = Vec::new();
    for (number, asked) in asked.iter().enumerate() {
        let guest = rig.guest(number);
        guest.buffer_size = if number == 2 { 256 } else { 2048 };
        let max_frame_size = if number == 1 { 600 } else { 9728 };
        guest.post(buffers[number]);
        let config = RxQueueConfig { max_frame_size, ..guest.rx_config() };
        let slot = vf(number as u16);
        rig.path.stop_queues(slot, 0, 1);
        rig.path.start_queues(slot, &[], &[(0, config)]).unwrap();
        rig.path.apply(slot, asked, MacAddress::new(mac(number as u8)));
        functions.push(Function {
            buffer_size: rig.guests[number].buffer_size.into(),
            max_frame_size: max_frame_size.into(),
            strip: asked.vlan_strip,
            filtering: asked.vlan_filtering,
            grouped: !asked.multicast.is_empty(),
            buffers: buffers[number].into(),
            stats: FunctionStats::default(),
            received: Vec::new(),
        });
    }
    functions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn c47_all_hops_count_the_same_frames(
        sends in prop::collection::vec(sends(), 0..80),
        // A VF whose driver has posted none takes no frames: see receive_rules.
        buffers in prop::array::uniform3(1u16..64),
        room in prop_oneof![Just(usize::MAX), 0usize..20],
    ) {
        let mut rig = offloads::any_vlan(3);
        let wire = rig.plug();
        wire.set_room(room);
        let functions = functions(&mut rig, buffers);
        let mut model = Model { functions, uplink: Default::default(), sent: Vec::new(), room };
        // One turn takes all that a ring of 64 descriptors holds, VF after VF, and the wire in the end.
        for turn in sends.chunks(20) {
            for from in 0..=WIRE {
                for send in turn.iter().filter(|send| send.from == from) {
                    send.send(&mut rig, &wire);
                    model.forward(send);
                }
            }
            rig.run();
        }
        let mut sent = 0;
        let mut arrived = 0;
        for (number, expected) in model.functions.iter().enumerate() {
            let stats = rig.stats(number as u16);
            prop_assert_eq!(stats, expected.stats, "VF {}", number);
            let mut received = Vec::new();
            while let Some((bytes, back)) = rig.guest(number).receive() {
                received.push((back.l2tag1(), bytes));
            }
            prop_assert_eq!(&received, &expected.received, "VF {}", number);
            prop_assert_eq!(received.len() as u64, stats.receive.frames());
            let posted = sends.iter().filter(|send| send.from == number).count() as u64;
            prop_assert_eq!(stats.transmit.frames() + stats.transmit.discards(), posted);
            sent += stats.transmit.unicast;
            arrived += stats.receive.frames() + stats.receive.discards();
        }
        let uplink = rig.path.uplink_stats();
        prop_assert_eq!(uplink, model.uplink);
        prop_assert_eq!(wire.take(), model.sent);
        // Where every frame has one receiver, what was sent is what arrived and what was counted as lost.
        if sends.iter().all(|send| matches!(send.to, Target::Vf(_) | Target::Elsewhere)) {
            let entered = sent + uplink.received - uplink.received_dropped;
            prop_assert_eq!(entered, arrived + uplink.sent + uplink.sent_dropped);
        }
    }
}

#[test]
fn c47_what_is_longer_than_its_sender_may_send_is_malformed_and_counted() {
    let mut rig = offloads::any_vlan(2);
    rig.path.apply(vf(0), &VfSettings { max_frame: 600, ..settings() }, MacAddress::ZERO);
    for length in [599usize, 600, 601, 602, 5000] {
        let bytes = frame(1, 0, &pattern(length - 14));
        let before = rig.stats(0).transmit;
        rig.guest(0).send(&bytes);
        rig.guest(0).send_with(&[&bytes[..20], &bytes[20..]], Default::default(), None, None);
        rig.guest(0).send_with(&[&bytes], Default::default(), Some(5), None);
        rig.run();
        let after = rig.stats(0).transmit;
        let passed = if length <= 600 { 3 } else { 0 };
        assert_eq!(after.unicast - before.unicast, passed, "{length} bytes");
        assert_eq!(after.malformed - before.malformed, 3 - passed);
    }
    assert_eq!(rig.stats(1).receive.frames(), 6);
}
