//! Which capabilities of a VF are shown, and where: found once, in a raw space that may be wrong.

use pcie_protocol::{
    CONFIG_SPACE_SIZE, CONVENTIONAL_CONFIG_SPACE_SIZE, CapabilityId, CapabilityWalk,
    ExpressCapabilities, ExtendedCapabilityId, ExtendedCapabilityWalk, MsiControl,
    PowerManagementCapabilities, PowerManagementCapability, PowerManagementControl, PowerState,
    msi_capability_length,
};

use super::{MediationPolicy, RawVfConfig};

/// A conventional capability that the guest sees.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Visible {
    pub(super) kind: VisibleKind,
    pub(super) offset: u16,
    pub(super) next: u8,
    end: u16,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum VisibleKind {
    Express,
    PowerManagement,
    MsiX,
    Msi,
}

impl VisibleKind {
    pub(super) fn id(self) -> CapabilityId {
        match self {
            Self::Express => CapabilityId::PCI_EXPRESS,
            Self::PowerManagement => CapabilityId::POWER_MANAGEMENT,
            Self::MsiX => CapabilityId::MSI_X,
            Self::Msi => CapabilityId::MSI,
        }
    }
}

/// An extended capability that the guest sees, or the empty header at 0x100.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct VisibleExtended {
    pub(super) id: ExtendedCapabilityId,
    pub(super) version: u8,
    pub(super) offset: u16,
    pub(super) next: u16,
    end: u16,
}

/// Never shown: they describe the host's fabric, or let a device address it past its IOMMU.
const NEVER: [ExtendedCapabilityId; 4] = [
    ExtendedCapabilityId::SR_IOV,
    ExtendedCapabilityId::ACS,
    ExtendedCapabilityId::ARI,
    ExtendedCapabilityId::ATS,
];

#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Where the first conventional capability is; 0 for none.
    pub(super) first: u8,
    capabilities: Vec<Visible>,
    extended: Vec<VisibleExtended>,
    /// MSI Message Control, if MSI is shown.
    pub(super) msi: Option<MsiControl>,
    d1: bool,
    d2: bool,
    power_management: bool,
    /// The way from D3hot to D0 keeps the VF's state.
    pub(super) no_soft_reset: bool,
}

impl Layout {
    pub(super) fn of(raw: &(impl RawVfConfig + ?Sized), policy: &MediationPolicy) -> Self {
        let space: Vec<u8> = (0u16..0x1000)
            .step_by(4)
            .flat_map(|register| raw.read_dword(register).to_le_bytes())
            .collect();
        let high = |offset: u16| {
            let [.., low, high] = raw.read_dword(offset & !3).to_le_bytes();
            u16::from_le_bytes([low, high])
        };
        let low = |offset: u16| {
            let [low, high, ..] = raw.read_dword(offset & !3).to_le_bytes();
            u16::from_le_bytes([low, high])
        };
        let mut layout = Self {
            first: 0,
            capabilities: Vec::new(),
            extended: Vec::new(),
            msi: None,
            d1: false,
            d2: false,
            power_management: false,
            no_soft_reset: true,
        };
        for found in CapabilityWalk::new(&space) {
            let (shown, kind, length) = match found.id {
                CapabilityId::PCI_EXPRESS => {
                    let version = ExpressCapabilities::from(high(found.offset)).version();
                    // Version 1 endpoints end with the link registers (PCIe 1.1 §7.8).
                    (policy.express, VisibleKind::Express, if version < 2 { 0x14 } else { 0x3C })
                }
                CapabilityId::POWER_MANAGEMENT => {
                    (policy.power_management, VisibleKind::PowerManagement, 8)
                }
                CapabilityId::MSI_X => (policy.msi_x, VisibleKind::MsiX, 12),
                CapabilityId::MSI => {
                    let control = MsiControl::from(high(found.offset));
                    (policy.msi, VisibleKind::Msi, msi_capability_length(control))
                }
                _ => continue,
            };
            let end = found.offset + length;
            let twice = layout.capabilities.iter().any(|other| other.kind == kind);
            let overlaps =
                layout.capabilities.iter().any(|v| found.offset < v.end && v.offset < end);
            if !shown || twice || overlaps || usize::from(end) > CONVENTIONAL_CONFIG_SPACE_SIZE {
                continue;
            }
            match kind {
                VisibleKind::Msi => layout.msi = Some(MsiControl::from(high(found.offset))),
                VisibleKind::PowerManagement => {
                    let capabilities = PowerManagementCapabilities::from(high(found.offset));
                    let control = low(found.offset + PowerManagementCapability::CONTROL_OFFSET);
                    layout.power_management = true;
                    layout.d1 = capabilities.d1_support();
                    layout.d2 = capabilities.d2_support();
                    layout.no_soft_reset = PowerManagementControl::from(control).no_soft_reset();
                }
                VisibleKind::Express | VisibleKind::MsiX => {}
            }
            layout.capabilities.push(Visible { kind, offset: found.offset, next: 0, end });
        }
        for visible in layout.capabilities.iter_mut().rev() {
            let offset = u8::try_from(visible.offset).unwrap_or(0);
            visible.next = std::mem::replace(&mut layout.first, offset);
        }
        layout.extended = extended(&space, policy);
        layout
    }

    /// The shown conventional capability at `register`.
    pub(super) fn at(&self, register: u16) -> Option<&Visible> {
        self.capabilities.iter().find(|v| (v.offset..v.end).contains(&register))
    }

    /// The shown extended capability at `register`.
    pub(super) fn extended_at(&self, register: u16) -> Option<&VisibleExtended> {
        self.extended.iter().find(|v| (v.offset..v.end).contains(&register))
    }

    /// Whether the VF has that power state.
    pub(super) fn supports(&self, state: PowerState) -> bool {
        match state {
            PowerState::D0 => true,
            PowerState::D1 => self.d1,
            PowerState::D2 => self.d2,
            PowerState::D3hot => self.power_management,
        }
    }
}

/// The extended capabilities that are shown. Since the list starts at 0x100, a hidden one there leaves an
/// empty header that points on, as Linux's vfio does.
fn extended(space: &[u8], policy: &MediationPolicy) -> Vec<VisibleExtended> {
    let found: Vec<_> = ExtendedCapabilityWalk::new(space).collect();
    let mut shown: Vec<_> = found
        .iter()
        .filter(|found| policy.extended.contains(&found.id) && !NEVER.contains(&found.id))
        .map(|&found| {
            // Its length is not said anywhere: it ends where the next one starts, shown or not.
            let starts = found_after(found.offset, space);
            VisibleExtended {
                id: found.id,
                version: found.version,
                offset: found.offset,
                next: 0,
                end: starts,
            }
        })
        .collect();
    let head = u16::try_from(CONVENTIONAL_CONFIG_SPACE_SIZE).unwrap_or(0x100);
    if !shown.is_empty() && !shown.iter().any(|shown| shown.offset == head) {
        let null = ExtendedCapabilityId::NULL;
        shown.insert(
            0,
            VisibleExtended { id: null, version: 0, offset: head, next: 0, end: head + 4 },
        );
    }
    // The one at 0x100 comes first, wherever the raw list had it.
    shown.sort_by_key(|shown| shown.offset);
    let mut next = 0;
    for shown in shown.iter_mut().rev() {
        shown.next = std::mem::replace(&mut next, shown.offset);
    }
    shown
}

/// Where the first extended capability after `offset` starts, or configuration space ends.
fn found_after(offset: u16, space: &[u8]) -> u16 {
    let end = u16::try_from(CONFIG_SPACE_SIZE).unwrap_or(0x1000);
    let starts = ExtendedCapabilityWalk::new(space).map(|found| found.offset);
    starts.filter(|start| *start > offset).min().unwrap_or(end)
}
