//! The routing table: which global system interrupt (GSI) leads where.
//!
//! Pure: KVM is given [`Routes::entries`] whenever the table has changed.

use std::collections::BTreeMap;

use kvm_bindings::{
    KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_hv_sint,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};

/// Pins of the IO-APIC: the first GSIs.
pub const IO_APIC_PINS: u32 = 24;
/// GSIs that KVM can route.
pub const MAX_GSIS: u32 = 4096;

/// Where an interrupt goes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Route {
    /// A synthetic interrupt source.
    Sint {
        /// The processor's VP index.
        vp: u32,
        /// The source, 0 to 15.
        sint: u8,
    },
    /// A message to a local APIC.
    Msi(Msi),
}

/// A message to a local APIC: fixed delivery, edge-triggered, physical destination.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Msi {
    /// The processor's APIC id, which is its VP index.
    pub apic_id: u32,
    /// The vector.
    pub vector: u8,
}

/// The table.
#[derive(Clone, Default, Debug)]
pub struct Routes {
    routes: BTreeMap<u32, Route>,
    /// No GSI below is free.
    first_free: u32,
}

impl Routes {
    /// Adds a route and says by which GSI; `None` if all are in use.
    pub fn add(&mut self, route: Route) -> Option<u32> {
        let candidates = self.first_free.max(IO_APIC_PINS)..MAX_GSIS;
        let free = { candidates }.find(|gsi| !self.routes.contains_key(gsi))?;
        self.routes.insert(free, route);
        self.first_free = free + 1;
        Some(free)
    }

    /// Leads a GSI elsewhere. Without effect if there is none.
    pub fn change(&mut self, gsi: u32, route: Route) {
        if let Some(old) = self.routes.get_mut(&gsi) {
            *old = route;
        }
    }

    /// Removes a route. Without effect if there is none.
    pub fn remove(&mut self, gsi: u32) {
        if self.routes.remove(&gsi).is_some() {
            self.first_free = self.first_free.min(gsi);
        }
    }

    /// Where a GSI leads.
    pub fn get(&self, gsi: u32) -> Option<Route> {
        self.routes.get(&gsi).copied()
    }

    /// The table as KVM takes it: the IO-APIC's pins and all routes.
    pub fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pins = (0..IO_APIC_PINS).map(|pin| kvm_irq_routing_entry {
            gsi: pin,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                irqchip: kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin },
            },
            ..Default::default()
        });
        pins.chain(self.routes.iter().map(|(gsi, route)| entry(*gsi, *route))).collect()
    }
}

fn entry(gsi: u32, route: Route) -> kvm_irq_routing_entry {
    let (type_, u) = match route {
        Route::Sint { vp, sint } => (
            KVM_IRQ_ROUTING_HV_SINT,
            kvm_irq_routing_entry__bindgen_ty_1 {
                hv_sint: kvm_irq_routing_hv_sint { vcpu: vp, sint: sint.into() },
            },
        ),
        Route::Msi(Msi { apic_id, vector }) => (
            KVM_IRQ_ROUTING_MSI,
            kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: crate::layout::LOCAL_APIC | (apic_id & 0xFF) << 12,
                    address_hi: apic_id & !0xFF,
                    data: vector.into(),
                    __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
                },
            },
        ),
    };
    kvm_irq_routing_entry { gsi, type_, u, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_come_first_and_every_route_has_a_gsi_of_its_own() {
        let mut routes = Routes::default();
        let sint = routes.add(Route::Sint { vp: 1, sint: 2 }).unwrap();
        let msi = routes.add(Route::Msi(Msi { apic_id: 3, vector: 0x41 })).unwrap();
        assert_eq!((sint, msi), (24, 25));
        let entries = routes.entries();
        assert_eq!(entries.len(), 26);
        assert!(entries.iter().zip(0..).all(|(entry, gsi)| entry.gsi == gsi));
        assert_eq!(entries[24].type_, KVM_IRQ_ROUTING_HV_SINT);
        assert_eq!(entries[25].type_, KVM_IRQ_ROUTING_MSI);
        routes.change(msi, Route::Msi(Msi { apic_id: 0, vector: 0x50 }));
        assert_eq!(routes.get(msi), Some(Route::Msi(Msi { apic_id: 0, vector: 0x50 })));
        routes.remove(sint);
        routes.change(sint, Route::Sint { vp: 0, sint: 0 });
        assert_eq!(routes.get(sint), None);
        assert_eq!(routes.add(Route::Sint { vp: 0, sint: 2 }), Some(24));
    }

    #[test]
    fn there_is_an_end_of_gsis() {
        let mut routes = Routes::default();
        let added = std::iter::from_fn(|| routes.add(Route::Sint { vp: 0, sint: 0 })).count();
        assert_eq!(added as u32, MAX_GSIS - IO_APIC_PINS);
    }
}
