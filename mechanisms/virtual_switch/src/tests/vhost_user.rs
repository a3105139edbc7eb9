//! VMs with a virtio-net: a real vhost-user front-end, and a driver that is played in a memfd.

mod taken_memory;

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use netvsp::ReceiveMetadata;
use offload::L4Protocol;
use shared_memory::{PageSize, SharedMapping};
use tempfile::TempDir;
use vhost::{
    VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend, VhostUserProtocolFeatures, message::VhostUserHeaderFlag,
    },
};
use vhost_user_net::{
    Features,
    testing::{PlayedRing, WRITE},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    Arrived, End, MemoryPort, Packet, frame, id, mac,
    offloads::{checksum, is_whole, segmentation, tcp},
    policy,
};
use crate::{
    GuestPath, Offloads, Port, PortPolicy, PortStatistics, SwitchHandle, VhostUserPort,
    VirtualSwitch, Worker,
};

const PATIENCE: Duration = Duration::from_secs(20);
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7F00_0000_0000;
const MEMORY: usize = 0x40_0000;
const SIZE: u16 = 256;
/// Each ring has so much room, and each queue so much for buffers.
const RING: usize = 0x4000;
const BUFFERS: usize = 0x4_0000;
const QUEUE: usize = 0x8_0000;
/// A receive buffer; how many there are.
const BUFFER: usize = 0x800;
const POSTED: u16 = 64;
const PLAIN: Features = Features::VERSION_1
    .union(Features::MRG_RXBUF)
    .union(Features::EVENT_IDX)
    .union(Features::PROTOCOL_FEATURES);
const ABLE: Features = PLAIN
    .union(Features::CSUM)
    .union(Features::HOST_TSO4)
    .union(Features::GUEST_CSUM)
    .union(Features::GUEST_TSO4);

/// A front-end and its guest's driver.
struct Guest {
    frontend: Frontend,
    memory: SharedMapping,
    fd: OwnedFd,
    rings: Vec<PlayedRing>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    errors: Vec<EventFd>,
}

/// What a guest got: by which pair, the header, the bytes.
type Got = (usize, [u8; 12], Vec<u8>);

impl Guest {
    /// Connects, and agrees on features.
    fn connect(socket: &Path, features: Features, pairs: usize) -> Self {
        let mut frontend = Frontend::connect(socket, 2 * pairs as u64).unwrap();
        frontend.set_owner().unwrap();
        assert!(frontend.get_features().unwrap() & features.bits() == features.bits());
        let offered = frontend.get_protocol_features().unwrap();
        assert!(offered.contains(VhostUserProtocolFeatures::LOG_SHMFD));
        frontend.set_protocol_features(offered).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert!(frontend.get_queue_num().unwrap() >= 2 * pairs as u64);
        frontend.set_features(features.bits()).unwrap();
        let (memory, fd) = SharedMapping::create("guest", MEMORY, PageSize::Base).unwrap();
        let eventfds = || (0..2 * pairs).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let ring = |index| PlayedRing::new(&memory, RING * index, SIZE);
        Self {
            frontend,
            rings: (0..2 * pairs).map(ring).collect(),
            memory,
            fd,
            kicks: eventfds(),
            calls: eventfds(),
            errors: eventfds(),
        }
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY as u64,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.fd.as_raw_fd(),
        }
    }

    fn start(&self, index: usize, base: u16) -> vhost::Result<()> {
        let [table, available, used] = self.rings[index].places().map(|at| USER + at as u64);
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: table,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        self.frontend.set_vring_num(index, SIZE)?;
        self.frontend.set_vring_base(index, base)?;
        self.frontend.set_vring_addr(index, &config)?;
        self.frontend.set_vring_call(index, &self.calls[index])?;
        self.frontend.set_vring_err(index, &self.errors[index])?;
        self.frontend.set_vring_kick(index, &self.kicks[index])
    }

    /// Connects and comes up, with buffers in its receive queues.
    fn boot(socket: &Path, features: Features, pairs: usize) -> Self {
        let mut guest = Self::connect(socket, features, pairs);
        guest.come_up();
        guest
    }

    /// Has its queues run, with buffers in those for receiving.
    fn come_up(&mut self) {
        self.frontend.set_mem_table(&[self.region()]).unwrap();
        for index in 0..self.rings.len() {
            self.start(index, 0).unwrap();
            self.frontend.set_vring_enable(index, true).unwrap();
        }
        for pair in 0..self.rings.len() / 2 {
            for buffer in 0..POSTED {
                self.post(pair, buffer);
            }
        }
    }

    fn post(&mut self, pair: usize, buffer: u16) {
        let at = GUEST + (BUFFERS + 2 * pair * QUEUE + usize::from(buffer) * BUFFER) as u64;
        let ring = &mut self.rings[2 * pair];
        ring.describe(buffer, (at, BUFFER as u32), WRITE, 0);
        ring.make_available(buffer);
    }

    /// Sends a packet and waits until it is taken.
    fn send(&mut self, pair: usize, header: [u8; 12], bytes: &[u8]) {
        let at = BUFFERS + (2 * pair + 1) * QUEUE;
        let packet = [&header, bytes].concat();
        self.memory.slice(at, packet.len()).unwrap().write_from(&packet);
        let ring = &mut self.rings[2 * pair + 1];
        ring.describe(0, (GUEST + at as u64, packet.len() as u32), 0, 0);
        ring.make_available(0);
        self.kicks[2 * pair + 1].write(1).unwrap();
        let start = Instant::now();
        while self.rings[2 * pair + 1].take_used() != Some((0, 0)) {
            assert!(start.elapsed() < PATIENCE, "a packet is not taken");
            std::thread::yield_now();
        }
    }

    /// The next packet.
    fn receive(&mut self) -> Got {
        let start = Instant::now();
        loop {
            if let Some(got) = self.try_receive() {
                return got;
            }
            assert!(start.elapsed() < PATIENCE, "nothing comes");
            std::thread::yield_now();
        }
    }

    fn try_receive(&mut self) -> Option<Got> {
        for pair in 0..self.rings.len() / 2 {
            let Some((first, length)) = self.rings[2 * pair].take_used() else { continue };
            // All buffers of a packet are shown at once.
            let mut whole = self.take(pair, first, length);
            let header: [u8; 12] = whole[..12].try_into().unwrap();
            for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
                let (buffer, length) = self.rings[2 * pair].take_used().unwrap();
                whole.extend(self.take(pair, buffer, length));
            }
            return Some((pair, header, whole.split_off(12)));
        }
        None
    }

    /// Waits for a queue's interrupt.
    fn interrupted(&self, index: usize) {
        let start = Instant::now();
        while self.calls[index].read().is_err() {
            assert!(start.elapsed() < PATIENCE, "no interrupt");
            std::thread::yield_now();
        }
    }

    fn take(&mut self, pair: usize, buffer: u16, length: u32) -> Vec<u8> {
        let at = BUFFERS + 2 * pair * QUEUE + usize::from(buffer) * BUFFER;
        let mut bytes = vec![0; length as usize];
        self.memory.slice(at, bytes.len()).unwrap().read_into(&mut bytes);
        self.post(pair, buffer);
        bytes
    }
}

/// A switch with a virtio-net's port, 2, and a port of memory, 3.
struct Vm {
    worker: Worker,
    end: End,
    directory: TempDir,
}

impl Vm {
    fn new(pairs: u16, policy_of_3: PortPolicy) -> Self {
        let mut switch = VirtualSwitch::new(8).unwrap();
        let end = End::default();
        switch.connect(id(3), policy_of_3, Box::new(MemoryPort(end.clone()))).unwrap();
        let directory = TempDir::new().unwrap();
        let port = VhostUserPort::serve(&directory.path().join("v"), "port 2", pairs).unwrap();
        switch.connect(id(2), policy(2), Box::new(port)).unwrap();
        Self { worker: Worker::start(switch, None).unwrap(), end, directory }
    }

    fn boot(&self, features: Features, pairs: usize) -> Guest {
        let guest = Guest::boot(&self.directory.path().join("v"), features, pairs);
        self.seen(true);
        guest
    }

    fn switch(&self) -> &SwitchHandle {
        self.worker.handle()
    }

    fn port<R: Send + 'static>(&self, of: fn(&VhostUserPort) -> R) -> R {
        let looked =
            move |switch: &mut VirtualSwitch| of(switch.port::<VhostUserPort>(id(2)).unwrap());
        self.switch().run(looked).unwrap()
    }

    /// Waits until the switch knows that the guest receives, or does not.
    fn seen(&self, receiving: bool) {
        let start = Instant::now();
        while self.port(|port| port.is_receiving()) != receiving {
            assert!(start.elapsed() < PATIENCE, "receiving: not {receiving}");
            std::thread::yield_now();
        }
        self.switch().run(|switch| switch.poll(Instant::now())).unwrap();
    }

    fn send(&self, packet: Packet) {
        self.end.send(packet);
        // A port of memory has a frame, which by itself wakes nobody.
        self.switch().run(|_| ()).unwrap();
    }

    fn statistics(&self, port: u32) -> PortStatistics {
        self.switch().run(move |switch| switch.statistics(id(port)).unwrap()).unwrap()
    }
}

fn out(payload: &[u8]) -> Vec<u8> {
    frame(mac(3), mac(2), payload)
}

fn back(payload: &[u8]) -> Vec<u8> {
    frame(mac(2), mac(3), payload)
}

/// A TCP packet from port 2 to port 3, or the other way round.
fn large(payload: &[u8], with_length: bool, (to, from): (u8, u8)) -> Vec<u8> {
    let mut packet = tcp(payload, with_length);
    packet[..6].copy_from_slice(&mac(to));
    packet[6..12].copy_from_slice(&mac(from));
    packet
}

#[test]
fn frames_pass_both_ways_and_wake_whoever_sleeps() {
    let vm = Vm::new(1, policy(3));
    let mut guest = vm.boot(PLAIN, 1);
    for number in 0..200u16 {
        let payload: Vec<u8> =
            (0..46 + usize::from(number) * 37).map(|at| (at as u16 + number) as u8).collect();
        guest.send(0, [0; 12], &out(&payload));
        assert_eq!(vm.end.bytes(), [out(&payload)]);
        vm.send(Packet::plain(&back(&payload)));
        let (_, header, bytes) = guest.receive();
        let buffers = (12 + bytes.len()).div_ceil(BUFFER) as u8;
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers, 0]);
        assert!(bytes == back(&payload));
        guest.interrupted(0);
        guest.rings[0].set_used_event(guest.rings[0].used_index());
        if number % 50 == 0 {
            // The switch's thread sleeps; a kick wakes it.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let seen = vm.statistics(2);
    assert_eq!((seen.sent, seen.received), (200, 200));
    assert_eq!((seen.no_buffer, seen.malformed), (0, 0));
    // Not its own address; nothing at all.
    guest.send(0, [0; 12], &frame(mac(3), mac(9), &[1; 46]));
    guest.send(0, [0; 12], &[]);
    let seen = vm.statistics(2);
    assert_eq!((seen.spoofed, seen.malformed), (1, 1));
}

#[test]
fn what_a_guest_leaves_open_is_done_for_a_port_that_wants_whole_frames() {
    let vm = Vm::new(1, policy(3));
    let mut guest = vm.boot(ABLE, 1);
    let payload: Vec<u8> = (0..20_000u32).map(|i| (i / 7) as u8).collect();
    // A partial checksum.
    let packet = large(&payload[..1000], true, (3, 2));
    guest.send(0, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &packet);
    let [arrived] = &vm.end.take()[..] else { panic!("one frame") };
    // The guest itself has filled in the IP header's, had it been a real one.
    let mut whole = arrived.bytes.clone();
    offload::write_ipv4_header_checksum(&mut whole[14..34]);
    assert!(is_whole(&whole));
    // A large packet; the seed holds its length.
    let packet = large(&payload, true, (3, 2));
    let mss = 1460u16.to_le_bytes();
    guest.send(0, [1, 1, 54, 0, mss[0], mss[1], 34, 0, 16, 0, 0, 0], &packet);
    let arrived = vm.end.take();
    assert_eq!(arrived.len(), 20_000usize.div_ceil(1460));
    let mut joined = Vec::new();
    for segment in &arrived {
        assert!(is_whole(&segment.bytes));
        joined.extend_from_slice(&segment.bytes[54..]);
    }
    assert!(joined == payload);
    // The same from behind a tag: what the header says counts from the frame's start.
    let mut tagged = packet.clone();
    tagged.splice(12..12, [0x81, 0, 0, 0]);
    guest.send(0, [1, 1, 58, 0, mss[0], mss[1], 38, 0, 16, 0, 0, 0], &tagged);
    assert_eq!(vm.end.take().len(), arrived.len());
    // What contradicts itself, or was not offered, costs that packet.
    let before = vm.statistics(2).malformed;
    for header in [
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [0, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [1, 4, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [1, 3, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 255, 255, 16, 0, 0, 0],
    ] {
        guest.send(0, header, &packet);
    }
    assert_eq!(vm.statistics(2).malformed, before + 5);
    assert!(vm.end.take().is_empty());
}

#[test]
fn what_another_vm_leaves_open_a_guest_that_can_gets_as_it_is() {
    let payload: Vec<u8> = (0..20_000u32).map(|i| (i / 7) as u8).collect();
    let large = large(&payload, false, (2, 3));
    let vm = Vm::new(1, policy(3));
    let mut guest = vm.boot(ABLE, 1);
    vm.send(Packet::asking(&large, segmentation(1460)));
    let (_, header, bytes) = guest.receive();
    assert_eq!(header[..10], [1, 1, 54, 0, 0xB4, 0x05, 34, 0, 16, 0]);
    assert!(bytes.len() == large.len() && bytes[54..] == payload);
    // Its lengths and its IP header are whole, and its checksum once it is finished.
    let mut finished = bytes.clone();
    linux_network::finish_checksum(&mut finished, 34, 16).unwrap();
    assert!(is_whole(&finished));
    // A checksum alone.
    let small = self::large(&payload[..1000], true, (2, 3));
    vm.send(Packet::asking(&small, checksum(Some(L4Protocol::Tcp))));
    let (_, header, mut bytes) = guest.receive();
    assert_eq!(header[..10], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0]);
    linux_network::finish_checksum(&mut bytes, 34, 16).unwrap();
    assert!(is_whole(&bytes) && bytes[54..] == payload[..1000]);
    drop(guest);
    vm.seen(false);
    // A guest that cannot has it done.
    let mut guest = vm.boot(PLAIN, 1);
    vm.send(Packet::asking(&large, segmentation(1460)));
    let mut joined = Vec::new();
    while joined.len() < payload.len() {
        let (_, header, bytes) = guest.receive();
        assert_eq!(header[..2], [0, 0]);
        assert!(is_whole(&bytes));
        joined.extend_from_slice(&bytes[54..]);
    }
    assert!(joined == payload);
}

#[test]
fn a_flow_comes_back_by_the_queue_by_which_it_went() {
    let vm = Vm::new(2, policy(3));
    let mut guest = vm.boot(PLAIN | Features::MQ, 2);
    assert_eq!(vm.port(VhostUserPort::open_pairs), 3);
    for pair in [1, 0, 1] {
        guest.send(pair, [0; 12], &large(&[1; 100], true, (3, 2)));
        vm.send(Packet::plain(&large(&[2; 100], true, (2, 3))));
        assert_eq!(guest.receive().0, pair);
    }
    // The second pair goes: everything comes by the first.
    guest.frontend.set_vring_enable(2, false).unwrap();
    vm.send(Packet::plain(&large(&[2; 100], true, (2, 3))));
    assert_eq!(guest.receive().0, 0);
}

#[test]
fn a_queue_stops_and_starts_and_a_front_end_goes_and_comes() {
    let vm = Vm::new(1, policy(3));
    let mut guest = vm.boot(PLAIN, 1);
    for _ in 0..5 {
        guest.send(0, [0; 12], &out(&[1; 46]));
    }
    assert_eq!(guest.frontend.get_vring_base(1).unwrap(), 5);
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 0);
    vm.seen(false);
    vm.send(Packet::plain(&back(&[1; 46])));
    guest.start(1, 5).unwrap();
    guest.start(0, 0).unwrap();
    vm.seen(true);
    assert!(guest.try_receive().is_none());
    guest.send(0, [0; 12], &out(&[2; 46]));
    vm.send(Packet::plain(&back(&[3; 46])));
    assert_eq!(guest.receive().2, back(&[3; 46]));
    // While one is connected another is turned away.
    let other = Frontend::connect(vm.directory.path().join("v"), 2).unwrap();
    assert!(other.get_features().is_err());
    assert!(vm.port(VhostUserPort::is_connected));
    drop(guest);
    vm.seen(false);
    let mut guest = vm.boot(PLAIN, 1);
    vm.end.take();
    guest.send(0, [0; 12], &out(&[4; 46]));
    assert_eq!(vm.end.bytes(), [out(&[4; 46])]);
    // A port that goes takes its socket, and its front-end's connection.
    drop(vm.switch().run(|switch| switch.disconnect(id(2))).unwrap());
    assert!(!vm.directory.path().join("v").exists());
    assert!(guest.frontend.get_features().is_err());
}

#[test]
fn a_front_end_that_lies_ends_its_own_connection_and_the_next_one_is_served() {
    type Lie = fn(&mut Guest) -> bool;
    let lies: [(&str, Lie); 6] = [
        ("a file that is not memory", |guest| {
            let status = std::fs::File::open("/proc/self/status").unwrap();
            let mmap_handle = status.as_raw_fd();
            let region =
                VhostUserMemoryRegionInfo { memory_size: 4096, mmap_handle, ..guest.region() };
            guest.frontend.set_mem_table(&[region]).is_err()
        }),
        ("memory beyond its file", |guest| {
            let region = VhostUserMemoryRegionInfo { mmap_offset: 4096, ..guest.region() };
            guest.frontend.set_mem_table(&[region]).is_err()
        }),
        ("memory that overlaps", |guest| {
            let other = VhostUserMemoryRegionInfo { userspace_addr: 4096, ..guest.region() };
            guest.frontend.set_mem_table(&[guest.region(), other]).is_err()
        }),
        ("a ring without memory", |guest| guest.start(0, 0).is_err()),
        ("a size that is none", |guest| {
            guest.frontend.set_mem_table(&[guest.region()]).unwrap();
            guest.frontend.set_vring_num(0, 0).is_err()
        }),
        ("features that were not offered", |guest| guest.frontend.set_features(1 << 63).is_err()),
    ];
    let vm = Vm::new(1, policy(3));
    let socket = vm.directory.path().join("v");
    for (what, lie) in lies {
        let mut guest = Guest::connect(&socket, PLAIN, 1);
        assert!(lie(&mut guest), "{what}");
        // Whatever it says then, nobody hears it.
        assert!(guest.frontend.get_features().is_err(), "{what}");
        drop(guest);
        let mut guest = vm.boot(PLAIN, 1);
        guest.send(0, [0; 12], &out(&[1; 46]));
        drop(guest);
        vm.seen(false);
    }
    // A driver that breaks a queue is told, and the other queue goes on.
    let mut guest = vm.boot(PLAIN, 1);
    guest.rings[1].set_available(1000);
    guest.kicks[1].write(1).unwrap();
    let start = Instant::now();
    while guest.errors[1].read().is_err() {
        assert!(start.elapsed() < PATIENCE, "nobody is told");
        std::thread::yield_now();
    }
    assert_eq!(vm.port(VhostUserPort::broken_queues), 1);
    vm.send(Packet::plain(&back(&[3; 46])));
    assert_eq!(guest.receive().2, back(&[3; 46]));
}

#[test]
fn a_migration_learns_what_was_written_and_memory_may_be_added_meanwhile() {
    let vm = Vm::new(1, policy(3));
    let mut guest = vm.boot(PLAIN, 1);
    // A bit for each page.
    let bytes = (GUEST as usize + MEMORY) / 4096 / 8;
    let log = shared_memory::create_memfd("log", bytes, PageSize::Base).unwrap();
    let region = VhostUserDirtyLogRegion {
        mmap_size: bytes as u64,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    guest.frontend.set_log_base(0, Some(region)).unwrap();
    guest.frontend.set_features((PLAIN | Features::LOG_ALL).bits()).unwrap();
    vm.send(Packet::plain(&back(&[3; 46])));
    assert_eq!(guest.receive().2, back(&[3; 46]));
    let mut bits = vec![0; bytes];
    rustix::io::pread(&log, &mut bits, 0).unwrap();
    let dirty = |at: usize| {
        bits[(GUEST as usize + at) / 4096 / 8] >> ((GUEST as usize + at) / 4096 % 8) & 1
    };
    let [_, _, used] = guest.rings[0].places();
    assert_eq!((dirty(used), dirty(BUFFERS), dirty(BUFFERS + 0x1000)), (1, 1, 0));
    // More memory, and the rings go on.
    let (_, fd) = SharedMapping::create("more", 0x1_0000, PageSize::Base).unwrap();
    let more = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0x1_0000_0000,
        memory_size: 0x1_0000,
        userspace_addr: USER / 2,
        mmap_offset: 0,
        mmap_handle: fd.as_raw_fd(),
    };
    guest.frontend.add_mem_region(&more).unwrap();
    guest.send(0, [0; 12], &out(&[4; 46]));
    guest.frontend.remove_mem_region(&more).unwrap();
    guest.send(0, [0; 12], &out(&[5; 46]));
    assert_eq!(vm.end.bytes(), [out(&[4; 46]), out(&[5; 46])]);
    // The memory with its rings cannot go.
    assert!(guest.frontend.remove_mem_region(&guest.region()).is_err());
    vm.seen(false);
}

/// A VM whose switch has an uplink of memory, and a guest that receives.
fn with_uplink() -> (Vm, Guest, End) {
    let vm = Vm::new(1, policy(3));
    let uplink = End::default();
    let port = MemoryPort(uplink.clone());
    vm.switch().run(|switch| drop(switch.set_uplink(Some(Box::new(port))))).unwrap();
    let guest = vm.boot(PLAIN, 1);
    (vm, guest, uplink)
}

fn set_path(vm: &Vm, path: GuestPath) {
    let changed = vm.switch().run(move |switch| {
        switch.port::<VhostUserPort>(id(2)).unwrap().set_path(path, Some(7));
        switch.refresh(id(2));
    });
    changed.unwrap();
}

fn wait_for(vm: &Vm, end: &End, count: usize) -> Vec<Arrived> {
    let start = Instant::now();
    let mut arrived = Vec::new();
    while arrived.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} frames came", arrived.len());
        vm.switch().run(|_| ()).unwrap();
        arrived.extend(end.take());
    }
    arrived
}

#[test]
fn frames_wait_while_a_guest_takes_its_vf_and_go_to_it_in_order() {
    let (vm, mut guest, uplink) = with_uplink();
    set_path(&vm, GuestPath::Moving);
    for number in 0..3 {
        vm.send(Packet::plain(&back(&[number; 50])));
    }
    vm.switch().run(|_| ()).unwrap();
    assert!(guest.try_receive().is_none() && uplink.take().is_empty());
    set_path(&vm, GuestPath::Vf);
    vm.send(Packet::plain(&back(&[3; 50])));
    let arrived = wait_for(&vm, &uplink, 4);
    for (number, frame) in arrived.iter().enumerate() {
        assert_eq!(frame.bytes, back(&[number as u8; 50]));
    }
    // What waited is in the guest's VLAN; a port that is away has its VLAN mode for the others.
    assert_eq!(arrived[0].tci, Some(7));
    assert!(guest.try_receive().is_none());
}

#[test]
fn frames_that_come_back_from_a_vf_that_stops_wait_until_the_guest_is_on_its_virtio_net() {
    let (vm, mut guest, uplink) = with_uplink();
    set_path(&vm, GuestPath::Moving);
    set_path(&vm, GuestPath::Vf);
    let offloads = Offloads::Known(ReceiveMetadata::default());
    for number in 0..3 {
        let pieces = vec![back(&[number; 50])];
        uplink.send(Packet { pieces, tci: None, offloads });
        vm.switch().run(|_| ()).unwrap();
    }
    assert!(guest.try_receive().is_none() && uplink.take().is_empty());
    set_path(&vm, GuestPath::Moving);
    vm.send(Packet::plain(&back(&[3; 50])));
    assert!(guest.try_receive().is_none());
    set_path(&vm, GuestPath::Synthetic);
    for number in 0..4 {
        assert_eq!(guest.receive().2, back(&[number; 50]));
    }
    vm.send(Packet::plain(&back(&[4; 50])));
    assert_eq!(guest.receive().2, back(&[4; 50]));
    assert!(uplink.take().is_empty());
}

#[test]
fn frames_do_not_wait_for_a_driver_that_never_comes() {
    let (vm, mut guest, _uplink) = with_uplink();
    set_path(&vm, GuestPath::Moving);
    vm.send(Packet::plain(&back(&[1; 50])));
    // By itself, in its time.
    assert_eq!(guest.receive().2, back(&[1; 50]));
}
