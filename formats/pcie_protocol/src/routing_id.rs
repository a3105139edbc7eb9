//! Routing ids: where a function is, and where its VFs are (PCIe 6.0 §2.2.4.2, §9.2.1.2).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::PcieError;

/// The routing id of a function: bus number and device/function number (or 8-bit ARI function number).
/// It is the requester id of the function's DMA and interrupts.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoutingId(u16);

impl RoutingId {
    /// Function `device_function` (device × 8 + function, or the ARI function) of `bus`.
    pub const fn new(bus: u8, device_function: u8) -> Self {
        Self(u16::from_be_bytes([bus, device_function]))
    }

    /// From the 16 bits that travel in packets.
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The 16 bits that travel in packets: bus in the high byte.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device × 8 + function; under ARI the function number alone, 0 to 255.
    pub const fn device_function(self) -> u8 {
        self.0.to_be_bytes()[1]
    }

    /// The device number, 0 to 31, when the function is not interpreted by ARI.
    pub const fn device(self) -> u8 {
        self.device_function() >> 3
    }

    /// The function number, 0 to 7, when the function is not interpreted by ARI.
    pub const fn function(self) -> u8 {
        self.device_function() & 7
    }
}

impl fmt::Display for RoutingId {
    /// `bus:device.function`, as `lspci` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for RoutingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoutingId({self})")
    }
}

/// Where a function is in the machine: PCI segment (domain) and routing id.
///
/// Bus numbers can change when buses are renumbered: a location is not an identity, do not store it.
#[derive(
    Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct PciLocation {
    /// The segment (Linux: domain).
    pub segment: u16,
    /// Bus and function in the segment.
    pub routing_id: RoutingId,
}

impl fmt::Display for PciLocation {
    /// `segment:bus:device.function`, as `lspci -D` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.routing_id)
    }
}

impl FromStr for PciLocation {
    type Err = PcieError;

    /// Reads `segment:bus:device.function`; a missing segment is 0.
    fn from_str(text: &str) -> Result<Self, PcieError> {
        fn hex(text: &str, digits: usize) -> Option<u16> {
            let fits = (1..=digits).contains(&text.len());
            (fits && text.bytes().all(|c| c.is_ascii_hexdigit()))
                .then(|| u16::from_str_radix(text, 16).ok())
                .flatten()
        }
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let segment = hex(segment, 4)?;
            let bus = u8::try_from(hex(bus, 2)?).ok()?;
            let device = u8::try_from(hex(device, 2)?).ok().filter(|device| *device < 32)?;
            let function = u8::try_from(hex(function, 1)?).ok().filter(|function| *function < 8)?;
            let routing_id = RoutingId::new(bus, device << 3 | function);
            Some(Self { segment, routing_id })
        };
        parse().ok_or(PcieError::NotALocation)
    }
}

/// Which VF of a PF, from 0. (The PCIe specification counts VFs from 1: its VF *n* is our `VfIndex` *n* − 1.
/// Windows, SPEC-PCIVIRT and Linux count from 0.)
#[derive(
    Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct VfIndex(pub u16);

impl fmt::Display for VfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u16> for VfIndex {
    fn from(index: u16) -> Self {
        Self(index)
    }
}

impl From<VfIndex> for usize {
    fn from(vf: VfIndex) -> Self {
        Self::from(vf.0)
    }
}

/// First VF Offset and VF Stride of an SR-IOV capability (PCIe 6.0 §9.3.3.9, §9.3.3.10).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct VfRouting {
    /// Routing ids from the PF to its first VF.
    pub first_vf_offset: u16,
    /// Routing ids from one VF to the next.
    pub vf_stride: u16,
}

impl VfRouting {
    /// RID(VF n) = RID(PF) + First VF Offset + n × VF Stride, n from 0 (SPEC-NDIS-SRIOV §10).
    ///
    /// The specification's arithmetic is 16-bit and drops carries, but a VF may not lie on a bus before
    /// its PF's nor on its PF's own routing id, so that a sum that leaves 16 bits has no meaning.
    ///
    /// # Errors
    /// [`PcieError::NoVfRoutingId`] for such a sum, for a first VF offset of 0, and for a stride of 0 with
    /// any VF but the first.
    pub fn routing_id(self, pf: RoutingId, vf: VfIndex) -> Result<RoutingId, PcieError> {
        let Self { first_vf_offset, vf_stride } = self;
        let error = PcieError::NoVfRoutingId { pf, vf, first_vf_offset, vf_stride };
        if first_vf_offset == 0 || (vf_stride == 0 && vf.0 != 0) {
            return Err(error);
        }
        let steps = u32::from(vf_stride) * u32::from(vf.0);
        let raw = u32::from(pf.raw()) + u32::from(first_vf_offset) + steps;
        u16::try_from(raw).map(RoutingId::from_raw).map_err(|_| error)
    }

    /// How many buses beyond the PF's own `num_vfs` VFs reach: the bus numbers that software must set
    /// aside (capture) for this PF before it enables them (SPEC-PCIVIRT §9 GetResources).
    ///
    /// # Errors
    /// [`PcieError::NoVfRoutingId`] if the last VF has none.
    pub fn captured_buses(self, pf: RoutingId, num_vfs: u16) -> Result<u8, PcieError> {
        let Some(last) = num_vfs.checked_sub(1) else { return Ok(0) };
        // Routing ids rise with the index, so the last VF is on the highest bus.
        Ok(self.routing_id(pf, VfIndex(last))?.bus() - pf.bus())
    }

    /// Which of `num_vfs` VFs is at `routing_id`, if any.
    pub fn vf_at(self, pf: RoutingId, num_vfs: u16, routing_id: RoutingId) -> Option<VfIndex> {
        let distance = routing_id.raw().checked_sub(pf.raw())?.checked_sub(self.first_vf_offset)?;
        let index = match self.vf_stride {
            0 => (distance == 0).then_some(0)?,
            stride => (distance % stride == 0).then_some(distance / stride)?,
        };
        (self.first_vf_offset != 0 && index < num_vfs).then_some(VfIndex(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PF: RoutingId = RoutingId::new(3, 0);

    #[test]
    fn vfs_of_an_ari_pf_follow_it_on_the_same_bus_and_then_on_the_next() {
        let routing = VfRouting { first_vf_offset: 1, vf_stride: 1 };
        assert_eq!(routing.routing_id(PF, VfIndex(0)).unwrap().to_string(), "03:00.1");
        assert_eq!(routing.routing_id(PF, VfIndex(7)).unwrap().to_string(), "03:01.0");
        assert_eq!(routing.routing_id(PF, VfIndex(254)).unwrap(), RoutingId::new(3, 255));
        assert_eq!(routing.routing_id(PF, VfIndex(255)).unwrap(), RoutingId::new(4, 0));
        assert_eq!(routing.captured_buses(PF, 255), Ok(0));
        assert_eq!(routing.captured_buses(PF, 256), Ok(1));
        assert_eq!(routing.captured_buses(PF, 0), Ok(0));
    }

    #[test]
    fn vf_beyond_bus_255_has_no_routing_id() {
        let routing = VfRouting { first_vf_offset: 0x100, vf_stride: 2 };
        let pf = RoutingId::new(254, 0);
        assert_eq!(routing.routing_id(pf, VfIndex(127)).unwrap(), RoutingId::new(255, 254));
        assert_eq!(
            routing.routing_id(pf, VfIndex(128)),
            Err(PcieError::NoVfRoutingId {
                pf,
                vf: VfIndex(128),
                first_vf_offset: 0x100,
                vf_stride: 2
            })
        );
        assert!(routing.captured_buses(pf, 129).is_err());
    }

    #[test]
    fn offset_and_stride_of_zero_place_no_vf_on_another_function() {
        assert!(VfRouting { first_vf_offset: 0, vf_stride: 1 }.routing_id(PF, VfIndex(0)).is_err());
        let no_stride = VfRouting { first_vf_offset: 8, vf_stride: 0 };
        assert!(no_stride.routing_id(PF, VfIndex(0)).is_ok());
        assert!(no_stride.routing_id(PF, VfIndex(1)).is_err());
    }

    #[test]
    fn location_reads_as_lspci_writes_it() {
        let location: PciLocation = "0001:3b:1f.7".parse().unwrap();
        assert_eq!(location.segment, 1);
        assert_eq!(location.routing_id, RoutingId::new(0x3b, 0xFF));
        assert_eq!("3b:00.1".parse::<PciLocation>().unwrap().to_string(), "0000:3b:00.1");
        for wrong in
            ["", ".", "3b:00", "3b:20.0", "3b:00.8", "+1:00.0", "10000:00:00.0", "::.", "g0:00.0"]
        {
            assert_eq!(wrong.parse::<PciLocation>(), Err(PcieError::NotALocation), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn location_survives_its_text(segment: u16, raw: u16) {
            let location = PciLocation { segment, routing_id: RoutingId::from_raw(raw) };
            prop_assert_eq!(location.to_string().parse::<PciLocation>(), Ok(location));
        }

        #[test]
        fn random_text_is_a_location_or_an_error(text in "[0-9a-fA-F:. x-]{0,16}") {
            let _ = text.parse::<PciLocation>();
        }

        #[test]
        fn a_vf_is_found_at_its_routing_id(pf: u16, first_vf_offset: u16, vf_stride: u16, num_vfs in 1u16..512, vf in 0u16..512) {
            let routing = VfRouting { first_vf_offset, vf_stride };
            let pf = RoutingId::from_raw(pf);
            if let Ok(routing_id) = routing.routing_id(pf, VfIndex(vf)) {
                prop_assert!(routing_id > pf);
                let found = routing.vf_at(pf, num_vfs, routing_id);
                prop_assert_eq!(found, (vf < num_vfs).then_some(VfIndex(vf)));
            }
        }

        #[test]
        fn what_is_found_at_a_routing_id_lives_there(pf: u16, first_vf_offset: u16, vf_stride in 0u16..4, at: u16) {
            let routing = VfRouting { first_vf_offset, vf_stride };
            let (pf, at) = (RoutingId::from_raw(pf), RoutingId::from_raw(at));
            if let Some(vf) = routing.vf_at(pf, 256, at) {
                prop_assert_eq!(routing.routing_id(pf, vf), Ok(at));
            }
        }
    }
}
