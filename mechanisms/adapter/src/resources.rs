//! What the machine gives the adapter: a bus number, and memory for the BARs of its VFs. A rebalance gives it
//! others (SPEC-PCIVIRT §8.6).

use pci_function::{PciFunctionError, PhysicalFunction, VirtualizationRequest};
use pcie_protocol::{PciLocation, RoutingId, sr_iov_offset};

use crate::{Adapter, AdapterError, RequestError, adapter::lock};

/// Where the VF BARs are in the SR-IOV capability: BAR0 and BAR3, each with the next one's 32 bits.
const VF_BARS: [u64; 2] = [sr_iov_offset::VF_BARS as u64, sr_iov_offset::VF_BARS as u64 + 12];

/// A bus and two windows of memory. The adapter has device 0 on the bus: behind a root port, as on any machine.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Resources {
    bus: u8,
    /// Of the VF BARs 0 and 3: 256 VFs have room in each, whatever the system page size.
    vf_memory: [u64; 2],
}

/// The adapter has one of these at a time. With each of them there are buses for 256 VFs.
const ALTERNATIVES: [Resources; 2] = [
    Resources { bus: 1, vf_memory: [0x40_0000_0000, 0x41_0000_0000] },
    Resources { bus: 17, vf_memory: [0x48_0000_0000, 0x49_0000_0000] },
];

impl Resources {
    /// Those of power-on.
    pub(crate) const FIRST: Self = {
        let [first, _] = ALTERNATIVES;
        first
    };

    pub(crate) const fn location(self) -> PciLocation {
        PciLocation { segment: 0, routing_id: RoutingId::new(self.bus, 0) }
    }

    /// Others than those of a PF at `location`.
    fn instead_of(location: PciLocation) -> Self {
        let other = |resources: &&Self| resources.location() != location;
        ALTERNATIVES.iter().find(other).copied().unwrap_or(Self::FIRST)
    }

    /// Gives them to a PF, whose VFs must not be enabled.
    pub(crate) fn assign(self, pci: &mut PhysicalFunction) -> Result<(), PciFunctionError> {
        pci.set_location(self.location())?;
        // Without the capability there are no VFs, which need no memory.
        let Some(start) = pci.function().sr_iov_offset() else { return Ok(()) };
        for (register, address) in VF_BARS.into_iter().zip(self.vf_memory) {
            pci.config_write(u64::from(start) + register, &address.to_le_bytes())?;
        }
        Ok(())
    }
}

impl Adapter {
    /// Stops the VFs, gives the adapter another bus and other VF BARs, and starts the VFs again: what happens between
    /// IRP_MN_STOP_DEVICE and IRP_MN_START_DEVICE.
    ///
    /// For a guest that still uses its VF this is a reset by the PF, which its driver recovers from by itself. Until it
    /// has, frames for the VF's receive filters go to the default VPort: the queue pairs of the PF, VPorts and
    /// filters of the switch need none of the resources that change, and go on.
    ///
    /// # Errors
    /// When the PCI function refuses; it keeps its place then.
    pub fn change_resources(&self) -> Result<(), RequestError> {
        let state = lock(&self.state);
        // No guest reaches its VF until all of it is done.
        let mut functions: Vec<_> =
            state.vfs.values().map(|vf| lock(&vf.served.function)).collect();
        for function in &mut functions {
            function.reset_by_pf();
        }
        let mut pci = self.pci();
        let (before, num_vfs) = (pci.location(), pci.active_vfs());
        if num_vfs > 0 {
            pci.enable_virtualization(VirtualizationRequest::disable())?;
        }
        let assigned = Resources::instead_of(before).assign(&mut pci);
        if num_vfs > 0 {
            pci.enable_virtualization(VirtualizationRequest::enable(num_vfs))?;
        }
        assigned.map_err(|error| RequestError::Adapter(AdapterError::Pci(error)))?;
        tracing::info!(from = %before, to = %pci.location(), "the adapter has other resources");
        Ok(())
    }
}
