//! What a client asks and what it gets.

use std::{
    io::{Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use shared_memory::{DmaAddress, PageSize, create_memfd};
use vfio_user_protocol::{
    Command, DeviceFeature, DeviceInfo, DmaMap, DmaRw, DmaUnmap, Errno, FeatureId,
    FeatureOperation, Header, IrqAction, IrqData, IrqInfo, IrqSet, MigData, RegionAccess,
    RegionInfo, RegionIoFds, Request, parse_region_info,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Served,
    device::{Event, TestDevice},
    raw_client::{RawClient, message, version_message},
};
use crate::{
    DisconnectReason, EventFd, ListenError, PciIrq, ServerError, ServerOptions, VfioUserServer,
    serve_connection,
};

const BAR0: u32 = 0;
const BAR3: u32 = 3;
const CONFIG: u32 = 7;

fn memory(pages: usize) -> OwnedFd {
    create_memfd("guest", pages * 4096, PageSize::Base).unwrap()
}

fn map(address: u64, size: u64, flags: u32) -> Request<'static> {
    Request::DmaMap(DmaMap { argsz: 32, flags, offset: 0, address, size })
}

fn unmap(address: u64, size: u64, flags: u32) -> Request<'static> {
    Request::DmaUnmap(DmaUnmap { argsz: 24, flags, address, size })
}

fn read(region: u32, offset: u64, count: u32) -> Request<'static> {
    Request::RegionRead(RegionAccess { offset, region, count })
}

fn write(region: u32, offset: u64, data: &[u8]) -> Request<'_> {
    let access = RegionAccess { offset, region, count: data.len() as u32 };
    Request::RegionWrite { access, data }
}

fn payload(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.emit(&mut bytes);
    bytes
}

#[test]
fn the_version_answer_names_no_more_than_the_client_did() {
    let served = Served::new();
    let mut client = RawClient::new(&served.path);
    client.send(&version_message(), &[]);
    let (answer, fds) = client.receive_or_end().unwrap().unwrap();
    assert_eq!(&answer[..4], &[0, 0, 0, 0]);
    assert_eq!(&answer[4..], b"{\"capabilities\":{\"max_msg_fds\":8}}\0");
    assert!(fds.is_empty());
    assert_eq!(client.call_raw(Command::Version, &[0; 4], &[]).unwrap_err(), Errno::INVAL);
    client.call(&read(CONFIG, 0, 4), &[]).expect("a second VERSION changes nothing");
}

#[test]
fn a_client_that_does_not_begin_with_version_is_dropped_and_the_device_hears_nothing() {
    let served = Served::new();
    let client = RawClient::new(&served.path);
    client.send(&message(Command::DeviceReset, 0, &[]), &[]);
    assert!(client.ends());
    for garbage in [&b"\x01\0\0\0"[..], b"\0\0\0\0{\0", b"\0\0", b"\0\0\0\0[1,2]\0"] {
        let client = RawClient::new(&served.path);
        client.send(&message(Command::Version, 0, garbage), &[]);
        assert!(client.ends(), "{garbage:?}");
    }
    let client = RawClient::new(&served.path);
    client.send(&message(Command::Version, Header::NO_REPLY, &[0; 4]), &[]);
    assert!(client.ends());
    assert!(served.device.lock().unwrap().events.is_empty());
    served.client();
}

#[test]
fn region_information_comes_in_two_steps_with_the_descriptor_on_the_second() {
    let served = Served::new();
    let mut client = served.client();
    let mut ask = |index, argsz| {
        let info = RegionInfo { argsz, index, ..RegionInfo::default() };
        client.call(&Request::DeviceGetRegionInfo(info), &[])
    };
    assert_eq!(ask(BAR0, 31).unwrap_err(), Errno::INVAL);
    assert_eq!(ask(9, 32).unwrap_err(), Errno::INVAL);
    for argsz in [32, 79] {
        let (answer, fds) = ask(BAR0, argsz).unwrap();
        let info = RegionInfo::read_from_bytes(&answer).unwrap();
        let expected = RegionInfo {
            argsz: 80,
            flags: 0xF,
            index: 0,
            cap_offset: 32,
            size: 0x1_0000,
            offset: 0,
        };
        assert_eq!((info, fds.len()), (expected, 0));
    }
    for argsz in [80, 4096] {
        let (answer, fds) = ask(BAR0, argsz).unwrap();
        assert_eq!((answer.len(), fds.len()), (80, 1));
        let (info, areas) = parse_region_info(&answer).unwrap();
        let areas: Vec<_> = areas.iter().map(|area| (area.offset, area.size)).collect();
        assert_eq!((info.argsz, areas), (80, vec![(0, 0x1000), (0x2000, 0x1000)]));
        let size = rustix::fs::fstat(&fds[0]).unwrap().st_size;
        assert_eq!(size, 0x1_0000);
    }
    for (index, flags, size) in [(BAR3, 1, 0x4000), (CONFIG, 3, 4096), (1, 0, 0)] {
        let (answer, fds) = ask(index, 32).unwrap();
        let expected = RegionInfo { argsz: 32, flags, index, cap_offset: 0, size, offset: 0 };
        assert_eq!(RegionInfo::read_from_bytes(&answer).unwrap(), expected);
        assert!(fds.is_empty());
    }
}

#[test]
fn device_and_interrupt_information_are_as_a_pci_function_has_them() {
    let served = Served::new();
    let mut client = served.client();
    let info = |argsz| Request::DeviceGetInfo(DeviceInfo { argsz, ..DeviceInfo::default() });
    assert_eq!(client.call(&info(15), &[]).unwrap_err(), Errno::INVAL);
    let (answer, _) = client.call(&info(16), &[]).unwrap();
    let expected = DeviceInfo { argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 };
    assert_eq!(DeviceInfo::read_from_bytes(&answer).unwrap(), expected);

    let irq = |index| Request::DeviceGetIrqInfo(IrqInfo { argsz: 16, index, ..IrqInfo::default() });
    for (index, flags, count) in [(0, 7, 1), (1, 1, 0), (2, 1, 5), (3, 1, 0), (4, 1, 0)] {
        let (answer, _) = client.call(&irq(index), &[]).unwrap();
        let expected = IrqInfo { argsz: 16, flags, index, count };
        assert_eq!(IrqInfo::read_from_bytes(&answer).unwrap(), expected);
    }
    assert_eq!(client.call(&irq(5), &[]).unwrap_err(), Errno::INVAL);

    let fds = RegionIoFds { argsz: 16, index: BAR0, ..RegionIoFds::default() };
    let (answer, _) = client.call(&Request::DeviceGetRegionIoFds(fds), &[]).unwrap();
    assert_eq!(RegionIoFds::read_from_bytes(&answer).unwrap(), fds);
}

#[test]
fn accesses_outside_of_a_region_never_reach_the_device() {
    let served = Served::new();
    let mut client = served.client();
    let mut errno = |request: &Request<'_>| client.call(request, &[]).err();
    assert_eq!(errno(&read(CONFIG, 4092, 4)), None);
    assert_eq!(errno(&read(CONFIG, 4093, 4)), Some(Errno::INVAL));
    assert_eq!(errno(&read(CONFIG, u64::MAX, 4)), Some(Errno::INVAL));
    assert_eq!(errno(&read(CONFIG, 0, u32::MAX)), Some(Errno::INVAL));
    assert_eq!(errno(&read(1, 0, 1)), Some(Errno::INVAL));
    assert_eq!(errno(&read(9, 0, 1)), Some(Errno::INVAL));
    assert_eq!(errno(&read(CONFIG, 4096, 0)), None, "nothing, at the end");
    assert_eq!(errno(&write(CONFIG, 4095, &[1, 2])), Some(Errno::INVAL));
    assert_eq!(errno(&write(BAR3, 0, &[1])), Some(Errno::ACCES));
    assert_eq!(errno(&read(BAR3, 0, 4)), Some(Errno::IO), "the device's own error");
    assert_eq!(served.device.lock().unwrap().config, vec![0; 4096]);
}

#[test]
fn posted_writes_get_no_answer_and_are_done_before_the_next_command() {
    let served = Served::new();
    let mut client = served.client();
    let mut burst = Vec::new();
    for value in 0..100u8 {
        let write = write(CONFIG, u64::from(value), std::slice::from_ref(&value));
        burst.extend(message(Command::RegionWrite, Header::NO_REPLY, &payload(&write)));
    }
    // Refused, but that is not said either.
    let outside = payload(&write(CONFIG, 4096, &[1]));
    burst.extend(message(Command::RegionWrite, Header::NO_REPLY, &outside));
    burst.extend(message(Command::RegionRead, 0, &payload(&read(CONFIG, 0, 100))));
    client.send(&burst, &[]);
    let (answer, _) = client.receive_or_end().unwrap().unwrap();
    assert_eq!(answer[16..], (0..100).collect::<Vec<u8>>());
}

#[test]
fn coalesced_writes_are_done_in_order() {
    let served = Served::new();
    let mut client = served.client();
    let mut body = 2u64.to_ne_bytes().to_vec();
    for (offset, count, data) in [(0u64, 4u32, [1u8; 8]), (2, 2, [9; 8])] {
        body.extend(offset.to_ne_bytes());
        body.extend(CONFIG.to_ne_bytes());
        body.extend(count.to_ne_bytes());
        body.extend(data);
    }
    let (answer, _) = client.call_raw(Command::RegionWriteMulti, &body, &[]).unwrap();
    assert_eq!(answer, 2u64.to_ne_bytes());
    assert_eq!(served.device.lock().unwrap().config[..5], [1, 1, 9, 9, 0]);
    body[24 + 8 + 12] = 9;
    let refused = client.call_raw(Command::RegionWriteMulti, &body, &[]).unwrap_err();
    assert_eq!(refused, Errno::INVAL);
}

#[test]
fn dma_ranges_are_the_functions_iommu_domain() {
    let served = Served::new();
    let mut client = served.client();
    let fd = memory(4);
    let fds = [fd.as_fd()];
    let mut errno = |request: &Request<'_>, fds: &[BorrowedFd<'_>]| client.call(request, fds).err();
    assert_eq!(errno(&map(0x1_0000, 0x4000, 3), &fds), None);
    assert_eq!(errno(&map(0xC_0000, 0x2000, 1), &[]), None, "ROM: no descriptor");
    assert_eq!(errno(&map(0x1_3000, 0x1000, 3), &fds), Some(Errno::EXIST));
    assert_eq!(errno(&map(0xC_1000, 0x1000, 3), &fds), Some(Errno::EXIST));
    assert_eq!(errno(&map(0x8_0000, 0x5000, 3), &fds), Some(Errno::INVAL), "lies about the size");
    assert_eq!(errno(&map(0x8_0000, 0x1000, 0), &fds), Some(Errno::INVAL));
    assert_eq!(errno(&map(0x8_0000, 0x1000, 3), &[fd.as_fd(); 2]), Some(Errno::INVAL));
    let pipe = rustix::pipe::pipe().unwrap().0;
    assert_eq!(errno(&map(0x8_0000, 0x1000, 3), &[pipe.as_fd()]), Some(Errno::PERM));
    assert_eq!(errno(&unmap(0x1_0000, 0x1000, 0), &[]), Some(Errno::NOENT), "not the whole range");
    assert_eq!(errno(&unmap(0, 0x1000, 2), &[]), Some(Errno::INVAL), "all, but of a range");
    assert_eq!(errno(&unmap(0xC_0000, 0x2000, 0), &[]), None);
    assert_eq!(errno(&map(0xC_0000, 0x1000, 1), &fds), None);
    let (answer, _) = client.call(&unmap(0, 0, 2), &[]).unwrap();
    assert_eq!(answer, payload(&unmap(0, 0, 2)), "the request, as the answer");
    assert_eq!(
        served.device.lock().unwrap().events,
        [
            Event::Connected,
            Event::Map(vec![(0x1_0000, 0x4000)]),
            Event::Map(vec![(0x1_0000, 0x4000), (0xC_0000, 0x1000)]),
            Event::Map(vec![]),
        ]
    );
}

#[test]
fn a_client_may_map_no_more_than_its_share() {
    let served = Served::new();
    let fd = memory(1);
    for _ in 0..2 {
        let mut client = served.client();
        for i in 0..8 {
            client.call(&map(i * 0x1000, 0x1000, 3), &[fd.as_fd()]).unwrap();
        }
        let ninth = client.call(&map(0x10_0000, 0x1000, 3), &[fd.as_fd()]).unwrap_err();
        assert_eq!(ninth, Errno::NOSPC);
        let unbacked = client.call(&map(0x10_0000, 0x1000, 3), &[]).unwrap_err();
        assert_eq!(unbacked, Errno::NOSPC, "remembering costs memory too");
    }
}

#[test]
fn unmapping_is_answered_only_when_the_device_has_let_go() {
    let served = Served::new();
    let mut client = served.client();
    let fd = memory(1);
    client.call(&map(0, 0x1000, 3), &[fd.as_fd()]).unwrap();
    let gate = Arc::clone(&served.device.lock().unwrap().map_gate);
    *gate.0.lock().unwrap() = false;
    client.send(&message(Command::DmaUnmap, 0, &payload(&unmap(0, 0x1000, 0))), &[]);
    client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client.stream.read(&mut [0; 16]).is_err(), "answered though the map is in use");
    client.stream.set_read_timeout(None).unwrap();
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    client.receive_or_end().unwrap().unwrap();
}

#[test]
fn memory_that_is_taken_away_ends_its_clients_connection_and_nothing_else() {
    let served = Served::new();
    let mut client = served.client();
    let plain = rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&plain, 0x2000).unwrap();
    client.call(&map(0x1000, 0x2000, 3), &[plain.as_fd()]).unwrap();
    // While nobody touches what is missing, nothing has happened.
    rustix::fs::ftruncate(&plain, 0x1000).unwrap();
    let access = |address: u64| {
        let device = served.device.lock().unwrap();
        device.map.read_object::<u64>(DmaAddress(address)).unwrap()
    };
    assert_eq!(access(0x1000), 0);
    client.call(&map(0x8000, 0x1000, 3), &[memory(1).as_fd()]).unwrap();
    assert_eq!(access(0x2000), 0);
    assert!(client.ends());
    let events = TestDevice::wait_for(&served.device, &Event::Disconnected);
    assert!(events.contains(&Event::Map(Vec::new())), "nothing of the client's is left");
    let mut client = served.client();
    client.call(&map(0x1000, 0x1000, 3), &[memory(1).as_fd()]).unwrap();
}

#[test]
fn interrupts_are_wired_rewired_and_taken_away_as_qemu_does() {
    let served = Served::new();
    let mut client = served.client();
    let eventfds: Vec<_> = (0..3).map(|_| EventFd::new().unwrap()).collect();
    let fds: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
    let set = |index, start, count, action, data| {
        Request::DeviceSetIrqs(IrqSet { index, start, count, action, data })
    };
    use IrqAction::{Mask, Trigger, Unmask};
    let mut errno = |request: &Request<'_>, fds: &[BorrowedFd<'_>]| client.call(request, fds).err();
    // Enabling MSI-X: one vector without a descriptor first.
    assert_eq!(errno(&set(2, 0, 1, Trigger, IrqData::EventFd), &[]), None);
    assert_eq!(errno(&set(2, 0, 3, Trigger, IrqData::EventFd), &fds), None);
    assert_eq!(errno(&set(2, 0, 3, Trigger, IrqData::Bool(&[1, 0, 1])), &[]), None);
    let counts: Vec<_> = eventfds.iter().map(EventFd::take).collect();
    assert_eq!(counts, [1, 0, 1]);
    assert_eq!(errno(&set(2, 1, 2, Trigger, IrqData::EventFd), &[]), None);
    assert_eq!(errno(&set(2, 0, 0, Trigger, IrqData::None), &[]), None);
    assert_eq!(errno(&set(0, 0, 1, Mask, IrqData::None), &[]), None);
    assert_eq!(errno(&set(0, 0, 1, Unmask, IrqData::None), &[]), None);
    let good = served.device.lock().unwrap().events.clone();
    for (request, fds, expected) in [
        (set(2, 0, 2, Trigger, IrqData::EventFd), &fds[..], Errno::INVAL),
        (set(2, 3, 3, Trigger, IrqData::EventFd), &fds[..], Errno::INVAL),
        (set(2, u32::MAX, 2, Trigger, IrqData::EventFd), &fds[..2], Errno::INVAL),
        (set(2, 0, 1, Trigger, IrqData::None), &fds[..1], Errno::INVAL),
        (set(2, 0, 0, Trigger, IrqData::EventFd), &[], Errno::INVAL),
        (set(2, 0, 6, Trigger, IrqData::None), &[], Errno::INVAL),
        (set(2, 0, 1, Mask, IrqData::None), &[], Errno::OPNOTSUPP),
        (set(0, 0, 1, Mask, IrqData::EventFd), &fds[..1], Errno::OPNOTSUPP),
        (set(5, 0, 0, Trigger, IrqData::None), &[], Errno::INVAL),
        (set(1, 0, 1, Trigger, IrqData::EventFd), &fds[..1], Errno::INVAL),
    ] {
        assert_eq!(errno(&request, fds), Some(expected), "{request:?}");
    }
    let pipe = rustix::pipe::pipe().unwrap();
    let not_an_eventfd = errno(&set(2, 0, 1, Trigger, IrqData::EventFd), &[pipe.1.as_fd()]);
    assert_eq!(not_an_eventfd, Some(Errno::INVAL));
    let irq = Event::Irq;
    let expected = [
        Event::Connected,
        irq(PciIrq::Msix, "disconnect", vec![0]),
        irq(PciIrq::Msix, "connect", vec![0, 1, 2]),
        irq(PciIrq::Msix, "trigger", vec![0, 2]),
        irq(PciIrq::Msix, "disconnect", vec![1, 2]),
        irq(PciIrq::Msix, "disable", vec![]),
        irq(PciIrq::Intx, "mask", vec![0]),
        irq(PciIrq::Intx, "unmask", vec![0]),
    ];
    assert_eq!(good, expected);
    assert_eq!(served.device.lock().unwrap().events, expected, "what was refused changed nothing");
}

#[test]
fn what_is_not_offered_is_said_not_to_be_supported() {
    let served = Served::new();
    let mut client = served.client();
    let operation = FeatureOperation::Probe { get: true, set: true };
    let feature = DeviceFeature::new(8, FeatureId::Migration, operation);
    let header = MigData { argsz: 8, size: 0 };
    let access = DmaRw { address: 0, count: 0 };
    for (request, expected) in [
        (Request::DeviceFeature { feature, data: &[] }, Errno::OPNOTSUPP),
        (Request::MigDataRead(header), Errno::OPNOTSUPP),
        (Request::MigDataWrite { header, data: &[] }, Errno::OPNOTSUPP),
        (Request::DmaRead(access), Errno::INVAL),
        (Request::DmaWrite { access, data: &[] }, Errno::INVAL),
    ] {
        assert_eq!(client.call(&request, &[]).unwrap_err(), expected, "{request:?}");
    }
    let mut unknown = message(Command::DeviceReset, 0, &[]);
    unknown[2] = 14;
    client.send(&unknown, &[]);
    assert_eq!(client.receive_or_end().unwrap().unwrap_err(), Errno::OPNOTSUPP);
    client.call(&Request::DeviceReset, &[]).expect("still connected");
}

#[test]
fn a_second_client_is_turned_away_and_served_when_the_first_is_gone() {
    let served = Served::new();
    let mut first = served.client();
    let second = RawClient::new(&served.path);
    assert!(second.ends());
    first.call(&read(CONFIG, 0, 4), &[]).expect("the first is not disturbed");
    assert!(served.server.is_connected());
    drop(first);
    TestDevice::wait_for(&served.device, &Event::Disconnected);
    served.client().call(&read(CONFIG, 0, 4), &[]).unwrap();
}

#[test]
fn a_client_that_hears_of_its_version_is_connected_however_fast_it_goes_on() {
    for _ in 0..100 {
        let served = Served::new();
        let mut client = served.client();
        assert!(served.server.is_connected());
        // As a driver does that sends the next request with each reply.
        client.call(&read(CONFIG, 0, 4), &[]).unwrap();
        assert!(served.server.is_connected());
    }
}

#[test]
fn a_client_that_says_nothing_does_not_keep_others_out_for_long() {
    let served = Served::with(|options| options.handshake_timeout = Duration::from_millis(20));
    let silent = RawClient::new(&served.path);
    (&silent.stream).write_all(&version_message()[..10]).unwrap();
    assert!(silent.ends());
    let mut client = served.client();
    std::thread::sleep(Duration::from_millis(40));
    client.call(&read(CONFIG, 0, 4), &[]).expect("the deadline is for the handshake alone");
}

#[test]
fn this_side_can_end_a_connection_even_from_within_the_device() {
    let served = Served::new();
    let client = served.client();
    {
        let _device = served.device.lock().unwrap();
        served.server.disconnect_client();
    }
    assert!(client.ends());
    let events = TestDevice::wait_for(&served.device, &Event::Disconnected);
    assert_eq!(events.last(), Some(&Event::Disconnected));
    served.client();
}

#[test]
fn stopping_the_server_ends_the_client_and_removes_the_path() {
    let served = Served::new();
    let client = served.client();
    (&client.stream).write_all(&[1, 2, 3]).unwrap();
    let Served { server, device, path, _root } = served;
    server.shutdown();
    assert!(client.ends());
    assert!(!path.exists());
    assert_eq!(device.lock().unwrap().events.last(), Some(&Event::Disconnected));
    let options = ServerOptions::new("again");
    let _again = VfioUserServer::bind(&path, device, options).unwrap();
    RawClient::connected(&path).unwrap();
}

#[test]
fn a_socket_pair_can_be_served_without_a_path() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let device = TestDevice::shared();
    let server = std::thread::spawn({
        let device = Arc::clone(&device);
        move || serve_connection(ours.into(), device, ServerOptions::new("pair")).unwrap()
    });
    let mut client = RawClient { stream: theirs };
    client.send(&version_message(), &[]);
    client.receive_or_end().unwrap().unwrap();
    client.call(&write(BAR0, 0x2000, &[1, 2, 3, 4]), &[]).unwrap();
    assert_eq!(device.lock().unwrap().bar0.as_slice().read_object(0x2000), Some([1u8, 2, 3, 4]));
    drop(client);
    assert!(matches!(server.join().unwrap(), DisconnectReason::ClientClosed));
}

#[test]
fn a_message_may_come_byte_by_byte_or_with_others() {
    let served = Served::new();
    let mut client = RawClient::new(&served.path);
    for byte in version_message() {
        client.send(&[byte], &[]);
    }
    client.receive_or_end().unwrap().unwrap();
    let fd = memory(1);
    let bytes = message(Command::DmaMap, 0, &payload(&map(0, 0x1000, 3)));
    // The descriptor with the first byte, as the kernel attaches it, and then with a byte of the payload.
    client.send(&bytes[..1], &[fd.as_fd()]);
    client.send(&bytes[1..], &[]);
    client.receive_or_end().unwrap().unwrap();
    client.call(&unmap(0, 0, 2), &[]).unwrap();
    client.send(&bytes[..20], &[]);
    client.send(&bytes[20..], &[fd.as_fd()]);
    client.receive_or_end().unwrap().unwrap();
    assert_eq!(served.device.lock().unwrap().map.regions().len(), 1);
    let two = [
        message(Command::DeviceReset, 0, &[]),
        message(Command::RegionRead, 0, &payload(&read(CONFIG, 0, 8))),
    ];
    client.send(&two.concat(), &[]);
    client.receive_or_end().unwrap().unwrap();
    assert_eq!(client.receive_or_end().unwrap().unwrap().0.len(), 24);
    assert_eq!(IrqInfo::default().as_bytes().len(), 16);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("vf0.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let bind = || VfioUserServer::bind(&path, TestDevice::shared(), ServerOptions::new("test"));
    let first = bind().unwrap();
    let second = bind();
    assert!(matches!(second, Err(ServerError::Listen(ListenError::InUse { .. }))), "{second:?}");
    // The second one asked whether the first is there; that connection may still be on its way out.
    while RawClient::connected(&path).is_none() {
        std::thread::yield_now();
    }
    drop(first);
    assert!(!path.exists());
}
