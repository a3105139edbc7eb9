//! A vfio-user client's byte stream into a whole server, over a socket pair. Bit 0 of the first byte lets the
//! stream begin with a valid VERSION, bit 1 sends a memory file beside it (for DMA_MAP).
#![no_main]

use std::{
    io::{IoSlice, Read},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
};

use libfuzzer_sys::fuzz_target;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use shared_memory::{DmaMap, PageSize, create_memfd};
use vfio_user_server::{
    Errno, IrqChange, PciFunctionDevice, PciIrq, PciRegion, Region, ServerOptions, serve_connection,
};

const BAR: usize = 0x1_0000;

/// A function whose registers are plain memory.
struct Device {
    bar: Vec<u8>,
    config: Vec<u8>,
    ranges: usize,
    connected: bool,
}

impl Device {
    fn bytes(&mut self, region: PciRegion, offset: u64, length: usize) -> &mut [u8] {
        let from = usize::try_from(offset).expect("inside the region");
        let memory = if region == PciRegion::Bar0 { &mut self.bar } else { &mut self.config };
        // The server promises accesses inside the region; outside of it this panics.
        &mut memory[from..from + length]
    }
}

impl PciFunctionDevice for Device {
    fn region(&self, region: PciRegion) -> Region {
        match region {
            PciRegion::Bar0 => Region::trapped(BAR as u64),
            PciRegion::Config => Region::trapped(4096),
            _ => Region::ABSENT,
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        if irq == PciIrq::Msix { 5 } else { 0 }
    }

    fn region_read(&mut self, region: PciRegion, at: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.copy_from_slice(self.bytes(region, at, data.len()));
        Ok(())
    }

    fn region_write(&mut self, region: PciRegion, at: u64, data: &[u8]) -> Result<(), Errno> {
        self.bytes(region, at, data.len()).copy_from_slice(data);
        Ok(())
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        self.ranges = map.regions().len();
    }

    fn set_irq(&mut self, _: PciIrq, change: IrqChange) -> Result<(), Errno> {
        match change {
            IrqChange::Connect { start, eventfds } => {
                assert!(start as usize + eventfds.len() <= 5);
            }
            IrqChange::Disconnect { start, count } => assert!(start + count <= 5),
            IrqChange::Trigger(vectors) | IrqChange::Mask(vectors) | IrqChange::Unmask(vectors) => {
                assert!(vectors.iter().all(|vector| *vector < 5));
            }
            IrqChange::DisableAll => {}
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn connected(&mut self) {
        assert!(!self.connected);
        self.connected = true;
    }

    fn disconnected(&mut self) {
        assert!(self.connected && self.ranges == 0, "nothing of a client's is left");
        self.connected = false;
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((how, stream)) = data.split_first() else { return };
    let (client, server) = UnixStream::pair().expect("a socket pair");
    let mut bytes = Vec::new();
    if how & 1 != 0 {
        let version = b"\0\0\x01\0{\"capabilities\":{}}\0";
        bytes.extend([0, 0, 1, 0]);
        bytes.extend((16 + version.len() as u32).to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(version);
        send(&client, &bytes, None);
        bytes.clear();
    }
    bytes.extend(stream);
    let memory =
        (how & 2 != 0).then(|| create_memfd("fuzz", 1 << 16, PageSize::Base).expect("memory"));
    send(&client, &bytes, memory.as_ref().map(AsFd::as_fd));
    client.shutdown(Shutdown::Write).expect("a connected socket");
    let device = Device { bar: vec![0; BAR], config: vec![0; 4096], ranges: 0, connected: false };
    let device = Arc::new(Mutex::new(device));
    std::thread::scope(|scope| {
        // Answers are read all the time, so that no answer waits for room.
        scope.spawn(|| {
            let mut answers = [0u8; 16 << 10];
            while matches!((&client).read(&mut answers), Ok(1..)) {}
        });
        let options = ServerOptions::new("fuzz");
        let _ = serve_connection(server.into(), Arc::clone(&device), options);
    });
    assert!(!device.lock().expect("no panic").connected);
});

/// Sends all of it; there is room, since inputs are shorter than a socket's buffer.
fn send(client: &UnixStream, bytes: &[u8], fd: Option<std::os::fd::BorrowedFd<'_>>) {
    let fds: Vec<_> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !bytes.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let bytes = &bytes[..bytes.len().min(64 << 10)];
    let _ = rustix::net::sendmsg(client, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}
