//! Clients that do not keep to the rules.

use std::os::fd::{AsFd, OwnedFd};

use device_control::{DeviceControlClient, Target};
use pcivirt_protocol::NtStatus;
use rustix::fs::MemfdFlags;
use virtual_switch::control::{
    BufferKind, ChannelName, DataPath, GpadlMapped, MemoryRegion, OpenChannel, PageRange,
    PortCommand, PortConfig, PortName, PrivateControl, VfCommand,
};
use vmbus::EventFd;

use crate::common::{PATIENCE, VmWorker, World, call, connect, frame, mac, mac_text};

const INVALID: Result<(), NtStatus> = Err(NtStatus::INVALID_PARAMETER);

fn own(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

fn events() -> [OwnedFd; 2] {
    [(); 2].map(|()| own(&EventFd::new().unwrap()))
}

/// Tries to open a channel with this memory file.
fn open_with(
    client: &DeviceControlClient,
    request: &OpenChannel,
    memory: &impl AsFd,
) -> Result<(), NtStatus> {
    let [first, second] = events();
    call(client, PrivateControl::OpenChannel, request, &[own(memory), first, second])
}

#[test]
fn channels_that_cannot_be_are_refused_and_the_port_stays_as_it_was() {
    let world = World::new();
    let stack = world.stack();
    stack.port(1);
    stack.port(2);
    let mut two = world.guest("vm2");
    let mut worker = VmWorker::new(world.socket(), "vm1");
    let good = worker.open_request();
    let client = worker.client.clone();
    let open = |request: &OpenChannel| open_with(&client, request, &worker.memory.fd);
    let ring = |ring: PageRange| OpenChannel { ring, ..good.clone() };
    let region = |region: MemoryRegion| OpenChannel { memory: vec![region], ..good.clone() };
    let whole = good.memory[0];
    let pages = (good.ring.byte_count / 4096) as u64;
    for (what, request) in [
        ("no such channel", OpenChannel { channel: 64, ..good.clone() }),
        ("no rings at all", OpenChannel { downstream_page_offset: 0, ..good.clone() }),
        ("one ring", OpenChannel { downstream_page_offset: pages as u32, ..good.clone() }),
        ("beyond the rings", OpenChannel { downstream_page_offset: u32::MAX, ..good.clone() }),
        (
            "rings outside of memory",
            ring(PageRange { frames: vec![(1 << 40, pages)], ..good.ring.clone() }),
        ),
        (
            "runs that wrap",
            ring(PageRange { frames: vec![(u64::MAX, pages)], ..good.ring.clone() }),
        ),
        ("runs that lie", ring(PageRange { frames: vec![(0, u64::MAX)], ..good.ring.clone() })),
        ("rings within a page", ring(PageRange { byte_offset: 8, ..good.ring.clone() })),
        (
            "rings of 4 GiB",
            ring(PageRange {
                byte_offset: 0,
                byte_count: u32::MAX - 4095,
                frames: vec![(0, (1 << 20) - 1)],
            }),
        ),
        ("memory beyond its file", region(MemoryRegion { length: whole.length + 4096, ..whole })),
        ("memory of no bytes", region(MemoryRegion { length: 0, ..whole })),
        ("memory within a page", region(MemoryRegion { offset: 1, ..whole })),
        ("memory without end", region(MemoryRegion { length: u64::MAX, ..whole })),
        ("memory at the end of all", region(MemoryRegion { gpa: u64::MAX - 4095, ..whole })),
        ("no memory", OpenChannel { memory: vec![], ..good.clone() }),
    ] {
        assert_eq!(open(&request), INVALID, "{what}");
    }
    let subchannel = OpenChannel { channel: 1, ..good.clone() };
    assert_eq!(open(&subchannel), Err(NtStatus::INVALID_DEVICE_STATE), "it was not offered");
    let elsewhere = OpenChannel { port: "vm9".into(), ..good.clone() };
    assert_eq!(open(&elsewhere), Err(NtStatus::NOT_FOUND));
    let taken = OpenChannel { port: "vm2".into(), ..good.clone() };
    assert_eq!(open(&taken), Err(NtStatus::INVALID_DEVICE_STATE), "another worker's");
    // Overlapping regions; more of them than files; more than there may be.
    let overlapping = OpenChannel { memory: vec![whole, whole], ..good.clone() };
    let [first, second] = events();
    let fds = [own(&worker.memory.fd), own(&worker.memory.fd), first, second];
    assert_eq!(call(&client, PrivateControl::OpenChannel, &overlapping, &fds), INVALID);
    assert_eq!(open(&overlapping), INVALID);
    assert_eq!(open(&OpenChannel { memory: vec![whole; 7], ..good.clone() }), INVALID);
    // Descriptors that are something else.
    let file = tempfile::tempfile().unwrap();
    assert_eq!(open_with(&client, &good, &file), INVALID, "no memory file");
    let plain = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&plain, whole.length).unwrap();
    assert_eq!(open_with(&client, &good, &plain), INVALID, "one that can shrink");
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    for place in [1, 2] {
        let [first, second] = events();
        let mut fds = [own(&worker.memory.fd), first, second];
        fds[place] = own(&pipe);
        assert_eq!(call(&client, PrivateControl::OpenChannel, &good, &fds), INVALID);
    }
    assert_eq!(call(&client, PrivateControl::OpenChannel, &good, &[]), INVALID);
    // After all that it is opened as if nothing had been.
    worker.open().unwrap();
    worker.run_until("up", |worker| worker.up);
    let again = open_with(&client, &good, &worker.memory.fd);
    assert_eq!(again, Err(NtStatus::INVALID_DEVICE_STATE), "it is open");
    let bytes = frame(mac(2), mac(1), b"well");
    worker.send(&bytes);
    two.expect(&bytes);
}

#[test]
fn buffers_that_cannot_be_are_refused_to_the_guest_and_another_client_answers_nothing() {
    let world = World::new();
    let stack = world.stack();
    stack.port(1);
    let mut worker = VmWorker::new(world.socket(), "vm1");
    worker.maps = false;
    worker.open().unwrap();
    worker.run_until("a GPADL", |worker| !worker.asked.is_empty());
    let mapped = |frames: Vec<(u64, u64)>, byte_count| GpadlMapped {
        port: "vm1".into(),
        buffer: BufferKind::Receive,
        pages: Some(PageRange { byte_offset: 0, byte_count, frames }),
    };
    let answer = |client: &DeviceControlClient, mapped: &GpadlMapped| {
        call(client, PrivateControl::GpadlMapped, mapped, &[])
    };
    let stranger = connect(world.socket(), "stranger");
    let outside = mapped(vec![(1 << 30, 512)], 512 * 4096);
    assert_eq!(answer(&stranger, &outside), Err(NtStatus::INVALID_DEVICE_STATE));
    let close = ChannelName { port: "vm1".into(), channel: 0 };
    let closed = call(&stranger, PrivateControl::CloseChannel, &close, &[]);
    assert_eq!(closed, Err(NtStatus::NOT_FOUND));
    assert_eq!(answer(&worker.client, &mapped(vec![(0, 1 << 19)], 1 << 31)), INVALID, "2 GiB");
    // The guest was refused its buffer by that; what comes now answers nothing.
    assert_eq!(answer(&worker.client, &outside), INVALID);
    worker.run_until("the refusal", |worker| {
        worker.told.iter().any(|told| matches!(told, netvsp::client::Upcall::Failed(_)))
    });
    // It starts anew and is served.
    worker.close();
    worker.maps = true;
    worker.asked.clear();
    worker.open().unwrap();
    worker.run_until("up", |worker| worker.up);
}

#[test]
fn controls_that_make_no_sense_are_refused_one_by_one() {
    let world = World::new();
    let stack = world.stack();
    let port = stack.port(1);
    for code in 0..16 {
        for input in
            [&b""[..], b"{", b"[]", b"{\"port\":7}", b"\xFF\xFE", b"{\"port\":\"vm1\",\"x\":1}"]
        {
            let known = PrivateControl::from_code(code);
            if matches!(
                known,
                Some(
                    PrivateControl::Status | PrivateControl::NextReport | PrivateControl::Shutdown
                )
            ) {
                continue;
            }
            let done = stack.client.call(Target::Private(code), input, 100, PATIENCE).unwrap();
            let expected = match known {
                Some(_) => NtStatus::INVALID_PARAMETER,
                None => NtStatus::INVALID_DEVICE_REQUEST,
            };
            assert_eq!(done.status, expected, "{code} with {input:?}");
        }
    }
    let command = |port: &str, command| {
        let command = PortCommand { port: port.into(), command };
        stack.call(PrivateControl::PortCommand, &command)
    };
    let lost = VfCommand::VfLost { serial: 3 };
    assert_eq!(command("vm9", lost), Err(NtStatus::NOT_FOUND));
    assert_eq!(command("vm1", VfCommand::SwitchDataPath { to: DataPath::Vf }), INVALID);
    // Without a guest, and without a VF, they are just noted.
    command("vm1", lost).unwrap();
    command("vm1", VfCommand::CompleteSwitch { active: DataPath::Synthetic, request: 0 }).unwrap();
    let upcall = PrivateControl::NextUpcall;
    assert_eq!(stack.call(upcall, &PortName { port: "vm9".into() }), Err(NtStatus::NOT_FOUND));
    let small = Target::Private(PrivateControl::Status.code());
    let done = stack.client.call(small, &[], 10, PATIENCE).unwrap();
    assert_eq!(done.status, NtStatus::BUFFER_TOO_SMALL);
    assert!(done.needed > 10);
    stack.set(&port);
    assert_eq!(stack.status().ports.len(), 1);
}

#[test]
fn a_guest_that_breaks_the_protocol_loses_its_channel_and_nobody_else_anything() {
    let world = World::new();
    let stack = world.stack();
    for number in 1..4 {
        stack.port(number);
    }
    let (mut one, mut two) = (world.guest("vm1"), world.guest("vm2"));
    let mut three = world.guest("vm3");
    // The ring's write index leaves the ring.
    let ring = three.memory.mapping.slice(three.ring[0] as usize * 4096, 4).unwrap();
    ring.write_from(&u32::MAX.to_le_bytes());
    one.send(&frame(mac(3), mac(1), b"wakes the switch"));
    three.run_until("its end", |worker| {
        use virtual_switch::control::ChannelUpcall;
        worker.asked.iter().any(|asked| matches!(asked, ChannelUpcall::Dead { channel: 0, .. }))
    });
    for number in 0..50u8 {
        let bytes = frame(mac(2), mac(1), &[number]);
        one.send(&bytes);
        two.expect(&bytes);
    }
    three.close();
    three.open().unwrap();
    three.run_until("up", |worker| worker.up);
    let bytes = frame(mac(3), mac(1), b"again");
    one.send(&bytes);
    three.expect(&bytes);
    assert_eq!(stack.call(PrivateControl::SetPort, &PortConfig::new("vm4", mac_text(4))), Ok(()));
}
