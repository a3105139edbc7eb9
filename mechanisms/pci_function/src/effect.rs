//! Effects: what an access to a function means for the device behind it.
//!
//! They are computed from the function's state before and after each dword written, so that they cannot
//! disagree with it, and so that a reset reports all that it changed.

use pcie_protocol::{BarIndex, Bars, PowerState, SystemPageSize};

use crate::{MsixMessage, PciFunction};

/// Something that the device must do, or know, because of an access to the function.
///
/// One access can have several effects; they are to be carried out in the order of the list, before the
/// access is answered. The function's own registers have their new values already.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// The function was reset alone (PCIe 6.0 §6.6.2): stop its DMA and interrupts, forget its state. For
    /// a PF, its VFs are gone too. Changes of registers that came with the reset follow as effects.
    FunctionLevelReset,
    /// The function came back from D3hot and does not keep its state (NoSoftReset is clear, PCIe 6.0
    /// §5.3.1.4.1): as [`Effect::FunctionLevelReset`].
    SoftReset,
    /// The power state changed. Below D0 the function sends nothing and its memory does not answer.
    PowerStateChanged {
        /// The state before.
        from: PowerState,
        /// The state now.
        to: PowerState,
    },
    /// Bus Master Enable changed: whether the function may do DMA and send interrupts (in D0).
    BusMasterChanged {
        /// Whether it may.
        enabled: bool,
    },
    /// Memory Space Enable changed: whether the function's memory answers (in D0).
    MemoryEnableChanged {
        /// Whether it answers.
        enabled: bool,
    },
    /// A BAR has another address. Each half of a 64-bit BAR that is written is a move of its own; software
    /// turns memory off while it moves and sizes BARs, and one asks [`PciFunction::decode`] afterwards.
    BarMoved {
        /// Which BAR.
        bar: BarIndex,
        /// Its address now.
        address: u64,
    },
    /// MSI-X was turned on or off, or all vectors masked or unmasked.
    MsixControlChanged {
        /// Interrupts are sent by MSI-X.
        enabled: bool,
        /// All vectors are masked.
        masked: bool,
    },
    /// An entry of the MSI-X table changed.
    MsixVectorChanged {
        /// Which vector.
        vector: u16,
        /// Whether it is masked by its entry.
        masked: bool,
        /// Where its message goes.
        message: MsixMessage,
    },
    /// A message that had been held back is to be sent now; its pending bit is clear already.
    MsixMessage {
        /// Which vector.
        vector: u16,
        /// The message.
        message: MsixMessage,
    },
    /// NumVFs changed; First VF Offset and VF Stride may have.
    NumVfsChanged {
        /// NumVFs now.
        num_vfs: u16,
    },
    /// Whether the port above forwards by ARI; First VF Offset and VF Stride may have changed.
    AriCapableHierarchyChanged {
        /// Whether it does.
        enabled: bool,
    },
    /// The page size to which VF memory is aligned changed; the VF BARs may have grown or shrunk.
    SystemPageSizeChanged {
        /// The size.
        size: SystemPageSize,
    },
    /// The VFs appear or disappear.
    VfEnableChanged {
        /// Whether they exist.
        enabled: bool,
        /// How many appear; or how many there were that disappear.
        num_vfs: u16,
    },
    /// VF MSE changed: whether the memory of the VFs answers (while they exist and the PF is in D0).
    VfMemoryEnableChanged {
        /// Whether it answers.
        enabled: bool,
    },
    /// A VF BAR has another address; see [`Effect::BarMoved`].
    VfBarMoved {
        /// Which VF BAR.
        bar: BarIndex,
        /// The address of VF 0's memory now.
        address: u64,
    },
}

/// What resets a function.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum ResetKind {
    /// Power-on, PERST#, a reset of the link or of the machine (vfio-user DEVICE_RESET): everything.
    Conventional,
    /// Function level reset (PCIe 6.0 §6.6.2): everything but what belongs to the link or the hierarchy.
    FunctionLevel,
    /// The way from D3hot to D0 without NoSoftReset (PCIe 6.0 §5.3.1.4.1).
    Soft,
}

/// The part of a function's state that has effects.
#[derive(Debug)]
pub(crate) struct Observed {
    power_state: PowerState,
    bus_master: bool,
    memory_enable: bool,
    bars: Bars<Option<u64>>,
    msi_x: Option<(bool, bool)>,
    sr_iov: Option<ObservedSrIov>,
}

#[derive(Copy, Clone, Debug)]
struct ObservedSrIov {
    vf_enable: bool,
    vf_memory_enable: bool,
    num_vfs: u16,
    ari: bool,
    page_size: SystemPageSize,
    vf_bars: Bars<Option<u64>>,
}

impl Observed {
    pub(crate) fn of(function: &PciFunction) -> Self {
        Self {
            power_state: function.power_state(),
            bus_master: function.bus_master_enabled(),
            memory_enable: function.memory_enabled(),
            bars: function.bar_addresses(),
            msi_x: function.msi_x().map(|msi_x| (msi_x.enabled(), msi_x.function_masked())),
            sr_iov: function.sr_iov().map(|sr_iov| ObservedSrIov {
                vf_enable: sr_iov.vf_enable(),
                vf_memory_enable: sr_iov.vf_memory_enable(),
                num_vfs: sr_iov.num_vfs(),
                ari: sr_iov.ari_capable_hierarchy(),
                page_size: sr_iov.system_page_size(),
                vf_bars: sr_iov.vf_bar_addresses(),
            }),
        }
    }

    /// Adds the effects that lead from this state to `now`.
    pub(crate) fn changes(&self, now: &Self, effects: &mut Vec<Effect>) {
        if self.power_state != now.power_state {
            effects.push(Effect::PowerStateChanged { from: self.power_state, to: now.power_state });
        }
        if self.bus_master != now.bus_master {
            effects.push(Effect::BusMasterChanged { enabled: now.bus_master });
        }
        for (bar, address) in moved(&self.bars, &now.bars) {
            effects.push(Effect::BarMoved { bar, address });
        }
        if self.memory_enable != now.memory_enable {
            effects.push(Effect::MemoryEnableChanged { enabled: now.memory_enable });
        }
        if let (true, Some((enabled, masked))) = (self.msi_x != now.msi_x, now.msi_x) {
            effects.push(Effect::MsixControlChanged { enabled, masked });
        }
        if let (Some(before), Some(now)) = (&self.sr_iov, &now.sr_iov) {
            before.changes(now, effects);
        }
    }
}

impl ObservedSrIov {
    fn changes(&self, now: &Self, effects: &mut Vec<Effect>) {
        // VFs that disappear do so before anything they were placed by changes.
        if self.vf_enable && !now.vf_enable {
            effects.push(Effect::VfEnableChanged { enabled: false, num_vfs: self.num_vfs });
        }
        if self.num_vfs != now.num_vfs {
            effects.push(Effect::NumVfsChanged { num_vfs: now.num_vfs });
        }
        if self.ari != now.ari {
            effects.push(Effect::AriCapableHierarchyChanged { enabled: now.ari });
        }
        if self.page_size != now.page_size {
            effects.push(Effect::SystemPageSizeChanged { size: now.page_size });
        }
        for (bar, address) in moved(&self.vf_bars, &now.vf_bars) {
            effects.push(Effect::VfBarMoved { bar, address });
        }
        if !self.vf_enable && now.vf_enable {
            effects.push(Effect::VfEnableChanged { enabled: true, num_vfs: now.num_vfs });
        }
        if self.vf_memory_enable != now.vf_memory_enable {
            effects.push(Effect::VfMemoryEnableChanged { enabled: now.vf_memory_enable });
        }
    }
}

fn moved(
    before: &Bars<Option<u64>>,
    now: &Bars<Option<u64>>,
) -> impl Iterator<Item = (BarIndex, u64)> {
    BarIndex::ALL.into_iter().filter_map(|bar| {
        let address = (*bar.of(now))?;
        (*bar.of(before) != Some(address)).then_some((bar, address))
    })
}
