//! Configuration space of the PF, its VFs and a lone VF: reads and writes of any size and place, resets between.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pci_function::{ResetKind, avf};
use pcie_protocol::{BarIndex, PciLocation, RoutingId, VfIndex};

fuzz_target!(|data: &[u8]| {
    let location = PciLocation { segment: 0, routing_id: RoutingId::new(1, 0) };
    let config = avf::PhysicalFunctionConfig { total_vfs: 8, ..Default::default() };
    let mut pf = avf::adapter(&config, location).expect("a published device");
    let mut alone = avf::virtual_function(5).expect("a published device");
    for operation in data.chunks_exact(12) {
        let Some((head, value)) = operation.split_first_chunk::<4>() else { continue };
        let [kind, length, low, high] = *head;
        let offset = u64::from(u16::from_le_bytes([low, high]));
        let bytes = &value[..usize::from(length) % 9];
        let mut read = [0u8; 8];
        let into = &mut read[..bytes.len()];
        match kind % 8 {
            0..=2 => {
                let _ = pf.config_write(offset, bytes);
                let _ = pf.config_read(offset, into);
            }
            3 | 4 => {
                let _ = alone.config_write(offset, bytes);
                let _ = alone.config_read(offset, into);
            }
            5 => {
                let vf = VfIndex::from(u16::from(length) % 16);
                if let Some(vf) = pf.vf_mut(vf) {
                    let _ = vf.config_write(offset, bytes);
                }
                let _ = pf.vf_data(vf, offset, into);
                let _ = pf.set_vf_data(vf, offset, bytes);
            }
            6 => {
                let _ = pf.function_mut().msix_write(BarIndex::BAR3, offset, bytes);
                let _ = alone.msix_write(BarIndex::BAR3, offset, bytes);
                let _ = alone.msix_read(BarIndex::BAR3, offset, into);
            }
            _ => {
                let address = u64::from_le_bytes(*value.first_chunk().expect("eight bytes"));
                let _ = (pf.decode(address), alone.decode(address));
                let _ = alone.reset(ResetKind::Conventional);
                let _ = pf.vf_probed_bars();
            }
        }
        assert!(pf.active_vfs() <= 8);
    }
});
