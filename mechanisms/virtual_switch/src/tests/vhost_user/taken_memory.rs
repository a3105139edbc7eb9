//! A guest whose memory goes away under its port.

use std::os::fd::AsFd;

use rustix::fs::MemfdFlags;
use shared_memory::{Access, MemoryWatch};

use super::*;

/// Comes up with memory that no seal keeps from shrinking.
fn boot_on_a_plain_file(socket: &Path) -> Guest {
    let mut guest = Guest::connect(socket, PLAIN, 1);
    guest.fd = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&guest.fd, MEMORY as u64).unwrap();
    // The guest's own view outlives its pages too.
    let watch = MemoryWatch::new().unwrap();
    let view = SharedMapping::map_guarded(guest.fd.as_fd(), 0, MEMORY, Access::ReadWrite, &watch);
    guest.memory = view.unwrap();
    let ring = |index| PlayedRing::new(&guest.memory, RING * index, SIZE);
    guest.rings = (0..2).map(ring).collect();
    guest.come_up();
    guest
}

#[test]
fn a_guest_whose_memory_is_taken_away_under_traffic_loses_its_connection_and_nobody_else_does() {
    let vm = Vm::new(1, policy(3));
    let other_socket = vm.directory.path().join("w");
    let port = VhostUserPort::serve(&other_socket, "port 4", 1).unwrap();
    let connected =
        vm.switch().run(|switch| switch.connect(id(4), policy(4), Box::new(port)).is_ok());
    assert!(connected.unwrap());
    let mut other = Guest::boot(&other_socket, PLAIN, 1);
    // Some pages at a time, and all of them: first those of buffers go, then those of rings.
    for left in [BUFFERS as u64, 0] {
        let mut guest = boot_on_a_plain_file(&vm.directory.path().join("v"));
        vm.seen(true);
        guest.send(0, [0; 12], &out(&[1; 46]));
        vm.send(Packet::plain(&back(&[2; 46])));
        assert_eq!(guest.receive().2, back(&[2; 46]));
        rustix::fs::ftruncate(&guest.fd, left).unwrap();
        let start = Instant::now();
        while vm.port(|port| port.is_receiving() || port.is_connected()) {
            assert!(start.elapsed() < PATIENCE, "the port goes on");
            vm.send(Packet::plain(&back(&[3; 46])));
        }
        assert!(guest.frontend.get_features().is_err());
        vm.end.take();
        // Another guest does not notice.
        other.send(0, [0; 12], &frame(mac(3), mac(4), &[4; 46]));
        assert_eq!(vm.end.bytes(), [frame(mac(3), mac(4), &[4; 46])]);
        vm.send(Packet::plain(&frame(mac(4), mac(3), &[5; 46])));
        assert_eq!(other.receive().2, frame(mac(4), mac(3), &[5; 46]));
    }
    // The port itself is none the worse for it.
    let mut guest = vm.boot(PLAIN, 1);
    guest.send(0, [0; 12], &out(&[6; 46]));
    assert_eq!(vm.end.bytes(), [out(&[6; 46])]);
}
