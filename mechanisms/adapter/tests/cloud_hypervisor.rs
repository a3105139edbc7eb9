//! A VF through the vfio-user client of Cloud Hypervisor (its `--user-device`), which is a crate of rust-vmm's.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

mod common;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use avf_driver::{
    AvfDriver, DriverConfig, DriverMemory, Result,
    transport::{Interrupt, Transport},
};
use common::{Bench, End, PATIENCE, frame, mac};
use ndis_protocol::FunctionId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use shared_memory::DoorbellPage;
use vfio_user::Client;
use vfio_user_protocol::{PciIrq, PciRegion};

/// VFIO_IRQ_SET_DATA_EVENTFD and VFIO_IRQ_SET_ACTION_TRIGGER.
const TRIGGER_BY_EVENTFD: u32 = 1 << 2 | 1 << 5;

/// A function as that client reaches it.
struct CloudHypervisor(Mutex<Client>);

impl std::fmt::Debug for CloudHypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CloudHypervisor")
    }
}

impl CloudHypervisor {
    fn connect(socket: &Path) -> Self {
        Self(Mutex::new(Client::new(socket).unwrap()))
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.0.lock().unwrap()
    }
}

impl Transport for CloudHypervisor {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        self.client().region_read(PciRegion::Config.index(), offset.into(), data).unwrap();
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        self.client().region_write(PciRegion::Config.index(), offset.into(), data).unwrap();
        Ok(())
    }

    fn reset(&self) -> Result<bool> {
        // It takes the flag of DEVICE_GET_INFO for its contrary.
        self.client().reset().unwrap();
        Ok(true)
    }

    fn register_page(&self, _: usize) -> Result<Option<DoorbellPage>> {
        Ok(None)
    }

    fn read(&self, offset: u32) -> Result<u32> {
        let mut data = [0; 4];
        self.client().region_read(PciRegion::Bar0.index(), offset.into(), &mut data).unwrap();
        Ok(u32::from_le_bytes(data))
    }

    fn write(&self, offset: u32, value: u32) -> Result<()> {
        let data = value.to_le_bytes();
        self.client().region_write(PciRegion::Bar0.index(), offset.into(), &data).unwrap();
        Ok(())
    }

    fn share_memory(&self, memory: &DriverMemory) -> Result<()> {
        let size = u64::try_from(memory.mapping().len()).unwrap();
        let (address, fd) = (memory.iova().0, memory.fd().as_raw_fd());
        self.client().dma_map(memory.file_offset(), address, size, fd).unwrap();
        Ok(())
    }

    fn interrupts(&self, count: u16) -> Result<Vec<Arc<dyn Interrupt>>> {
        let events: Vec<Arc<Event>> = (0..count).map(|_| Arc::new(Event::new())).collect();
        let fds: Vec<_> = events.iter().map(|event| event.0.as_raw_fd()).collect();
        let mut client = self.client();
        let vectors = client.get_irq_info(PciIrq::Msix.index()).unwrap().count;
        assert!(vectors >= count.into());
        let (msix, count) = (PciIrq::Msix.index(), count.into());
        client.set_irqs(msix, TRIGGER_BY_EVENTFD, 0, count, &fds).unwrap();
        Ok(events.into_iter().map(|event| event as Arc<dyn Interrupt>).collect())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn gone_fd(&self) -> Result<OwnedFd> {
        Ok(Event::new().0)
    }
}

#[derive(Debug)]
struct Event(OwnedFd);

impl Event {
    fn new() -> Self {
        Self(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
    }
}

impl Interrupt for Event {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    fn wake(&self) {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).unwrap();
    }
}

#[test]
fn a_vf_sends_receives_and_interrupts_through_cloud_hypervisors_client() {
    let bench = Bench::new(2);
    let socket = bench.adapter.socket(FunctionId::Vf(common::vf(0)));
    let mut other = bench.open(1);
    for round in 0..2 {
        let function = CloudHypervisor::connect(&socket);
        // What a VMM maps into its guest, and what the guest would sleep on.
        let client = function.client();
        let bar = client.region(PciRegion::Bar0.index()).unwrap();
        assert_eq!((bar.size, bar.file_offset.is_some()), (65_536, true));
        assert!(!bar.sparse_areas.is_empty());
        drop(client);
        let config = DriverConfig { interrupts: true, ..DriverConfig::new("of another transport") };
        let (control, pairs) = AvfDriver::open_on(Arc::new(function), config).unwrap();
        let mut own = End { control, pairs };
        let sent = frame(mac(1), mac(0), &[round; 300]);
        own.send(&sent);
        assert_eq!(other.receive(), sent);
        own.pairs[0].rx.arm().unwrap();
        let answer = frame(mac(0), mac(1), &[round + 100; 1400]);
        other.send(&answer);
        let interrupt = own.pairs[0].rx.event_fd().unwrap();
        let limit = PATIENCE.try_into().unwrap();
        let woken = poll(&mut [PollFd::new(&interrupt, PollFlags::IN)], Some(&limit));
        assert_eq!(woken, Ok(1), "no interrupt came");
        assert_eq!(own.receive(), answer);
    }
}
