//! The description of a function.

use pcivirt_protocol::VpciPnpId;

use crate::{
    SlotNumber, VpciProtocolError,
    wire::{self, NUMA_NODE_VALID},
};

/// A function of the bus, as BUS_RELATIONS and BUS_RELATIONS2 describe it (SPEC-VMBUS §4.4).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct FunctionDescription {
    /// By what a driver is found for it.
    pub ids: VpciPnpId,
    /// Where it is.
    pub slot: SlotNumber,
    /// By what a guest finds the software NIC that belongs to it (SPEC-VMBUS §7).
    pub serial: u32,
    /// The guest's NUMA node that it is near to; only BUS_RELATIONS2 says so.
    pub numa_node: Option<u16>,
}

impl FunctionDescription {
    pub(crate) fn parse(wire: &wire::Function) -> Result<Self, VpciProtocolError> {
        let slot = wire.slot.get();
        Ok(Self {
            ids: VpciPnpId {
                vendor_id: wire.vendor_id.get(),
                device_id: wire.device_id.get(),
                revision_id: wire.revision_id,
                prog_if: wire.prog_if,
                sub_class: wire.sub_class,
                base_class: wire.base_class,
                sub_vendor_id: wire.sub_vendor_id.get(),
                sub_system_id: wire.sub_system_id.get(),
            },
            slot: SlotNumber::from_wire(slot).ok_or(VpciProtocolError::field(
                "BUS_RELATIONS",
                "slot",
                slot,
            ))?,
            serial: wire.serial.get(),
            numa_node: None,
        })
    }

    pub(crate) fn parse2(wire: &wire::Function2) -> Result<Self, VpciProtocolError> {
        let valid = wire.flags.get() & NUMA_NODE_VALID != 0;
        let numa_node = valid.then(|| wire.numa_node.get());
        Ok(Self { numa_node, ..Self::parse(&wire.function)? })
    }

    pub(crate) fn wire(&self) -> wire::Function {
        wire::Function {
            vendor_id: self.ids.vendor_id.into(),
            device_id: self.ids.device_id.into(),
            revision_id: self.ids.revision_id,
            prog_if: self.ids.prog_if,
            sub_class: self.ids.sub_class,
            base_class: self.ids.base_class,
            sub_vendor_id: self.ids.sub_vendor_id.into(),
            sub_system_id: self.ids.sub_system_id.into(),
            slot: self.slot.to_wire().into(),
            serial: self.serial.into(),
        }
    }

    pub(crate) fn wire2(&self) -> wire::Function2 {
        wire::Function2 {
            function: self.wire(),
            flags: self.numa_node.map_or(0, |_| NUMA_NODE_VALID).into(),
            numa_node: self.numa_node.unwrap_or(0).into(),
            reserved: 0.into(),
        }
    }
}
