//! The client of the published `vfio_user` crate, which Cloud Hypervisor uses, as a peer.

use std::os::fd::{AsFd, AsRawFd};

use shared_memory::{Access, DmaAddress, PageSize, SharedMapping, create_memfd};

use super::{
    Served,
    device::{Event, MSIX_VECTORS, TestDevice},
};
use crate::{EventFd, PciIrq};

#[test]
fn the_published_client_uses_every_part_of_a_function() {
    let served = Served::new();
    let mut client = vfio_user::Client::new(&served.path).unwrap();

    let sizes: Vec<u64> = (0..9).map(|index| client.region(index).unwrap().size).collect();
    assert_eq!(sizes, [0x1_0000, 0, 0, 0x4000, 0, 0, 0, 4096, 0]);
    let bar0 = client.region(0).unwrap();
    let areas: Vec<_> = bar0.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, [(0, 0x1000), (0x2000, 0x1000)]);
    let file = bar0.file_offset.as_ref().unwrap();
    let mapped =
        SharedMapping::map(file.file().as_fd(), file.start() + 0x2000, 4096, Access::ReadWrite)
            .unwrap();

    // A mapped doorbell and a trapped register are the same memory here.
    client.region_write(0, 0x2004, &0xABCD_u32.to_le_bytes()).unwrap();
    assert_eq!(mapped.as_slice().read_object::<u32>(4), Some(0xABCD));
    client.region_write(7, 4, &[0x06, 0x04]).unwrap();
    let mut command = [0; 2];
    client.region_read(7, 4, &mut command).unwrap();
    assert_eq!(command, [0x06, 0x04]);

    let memory = create_memfd("guest", 0x4000, PageSize::Base).unwrap();
    client.dma_map(0x1000, 0x10_0000, 0x3000, memory.as_raw_fd()).unwrap();
    let guest = SharedMapping::map(memory.as_fd(), 0, 0x4000, Access::ReadWrite).unwrap();
    guest.as_slice().write_object(0x1008, &0x1234_5678_u32).unwrap();
    let seen = served.device.lock().unwrap().map.read_object::<u32>(DmaAddress(0x10_0008));
    assert_eq!(seen, Ok(0x1234_5678));

    let info = client.get_irq_info(PciIrq::Msix.index()).unwrap();
    assert_eq!((info.count, info.flags), (MSIX_VECTORS, 1));
    let eventfds = [EventFd::new().unwrap(), EventFd::new().unwrap()];
    let raw: Vec<_> = eventfds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    client.set_irqs(2, 0x24, 1, 2, &raw).unwrap();
    served.device.lock().unwrap().vectors[&2].signal();
    assert_eq!((eventfds[0].take(), eventfds[1].take()), (0, 1));

    client.reset().unwrap();
    client.dma_unmap(0x10_0000, 0x3000).unwrap();
    client.dma_map(0, 0x20_0000, 0x1000, memory.as_raw_fd()).unwrap();
    client.shutdown().unwrap();
    drop(client);

    let irq = |irq, what, vectors| Event::Irq(irq, what, vectors);
    assert_eq!(
        TestDevice::wait_for(&served.device, &Event::Disconnected),
        [
            Event::Connected,
            Event::Map(vec![(0x10_0000, 0x3000)]),
            irq(PciIrq::Msix, "connect", vec![1, 2]),
            Event::Reset,
            Event::Map(vec![]),
            Event::Map(vec![(0x20_0000, 0x1000)]),
            Event::Map(vec![]),
            irq(PciIrq::Intx, "disable", vec![]),
            irq(PciIrq::Msix, "disable", vec![]),
            Event::Disconnected,
        ]
    );
    // And the next one finds it as the first did.
    served.client();
}
