//! What the VSP wants done.

use device_control_protocol::{BlockAccess, CallbackCode, ConfigAccess, SetPowerState, VfArgument};
use pcie_protocol::BarIndex;
use pcivirt_protocol::{DevicePowerState, DevicePowerStateRaw, VfIndex};
use vpci_protocol::MessageType;
use zerocopy::IntoBytes;

use super::InterruptTarget;
use crate::Outgoing;

/// Something to be done, in the order of the list.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Effect {
    /// Write this to the ring.
    Send(Outgoing),
    /// From now on, accesses of the guest to the 8 KiB at `address` go to
    /// [`Vsp::window_read`](super::Vsp::window_read) and [`Vsp::window_write`](super::Vsp::window_write).
    MapWindow {
        /// Guest physical address.
        address: u64,
    },
    /// No more.
    UnmapWindow,
    /// The guest reaches the memory of `bar` at `address` from now on, but for the pages of
    /// [`Vsp::msi_x_pages`](super::Vsp::msi_x_pages), which are trapped.
    MapBar {
        /// The BAR.
        bar: BarIndex,
        /// Guest physical address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// The function is being taken away from a guest that has not let go of it: what was mapped for `bar` is to
    /// read as all ones and ignore writes from now on, as a PCI device does that was pulled out. Where a partition
    /// cannot replace a mapping under its guest, the function's memory may not serve anyone else before
    /// [`Effect::UnmapBar`].
    IsolateBar {
        /// The BAR.
        bar: BarIndex,
    },
    /// Nothing is mapped for `bar` any more.
    UnmapBar {
        /// The BAR.
        bar: BarIndex,
    },
    /// Where an interrupt of the function goes from now on. While it goes nowhere, it is to be remembered if it
    /// occurs, and delivered when it goes somewhere again (an eventfd that nobody reads does that).
    Route {
        /// Which interrupt of the function.
        source: InterruptSource,
        /// Where it goes.
        target: Option<InterruptTarget>,
    },
    /// Ask the PF driver, in the order of these effects, and report to
    /// [`Vsp::pf_completed`](super::Vsp::pf_completed), whatever comes of it. A trapped access that led to it is to be
    /// finished only then, so that a guest cannot ask for more than its processors can wait for.
    Pf {
        /// Names the request.
        id: PfRequestId,
        /// What to ask.
        request: PfRequest,
    },
    /// The answer to [`Vsp::query_stop`](super::Vsp::query_stop).
    StopAnswered(StopAnswer),
    /// The function is not the guest's any more. For all but [`Removal::TimedOut`] and [`Removal::Surprise`]
    /// nothing of it is mapped; for these, see [`Effect::IsolateBar`].
    Removed(Removal),
    /// Take the channel's offer back. The ring may not be used any more.
    Rescind,
    /// The guest has broken the protocol: nothing more is read from its ring. Whether the channel is taken back is
    /// for the caller to decide; until the channel is closed, the function stays where it is, out of reach.
    Fail(ChannelFault),
    /// The offer was taken back some time ago, and the guest has still not closed the channel. Said once.
    CloseOverdue,
}

/// An interrupt of the function.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum InterruptSource {
    /// A vector of its MSI-X table.
    MsiX(u16),
    /// A message of its MSI capability.
    Msi(u8),
}

/// Names a request to the PF driver.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct PfRequestId(pub(super) u64);

/// What the PF driver is asked (SPEC-PCIVIRT §5).
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum PfRequest {
    /// SRIOV_READ_BLOCK.
    ReadBlock {
        /// Which block.
        block_id: u32,
        /// Bytes, 1 to 128.
        length: u8,
    },
    /// SRIOV_WRITE_BLOCK.
    WriteBlock {
        /// Which block.
        block_id: u32,
        /// 1 to 128 bytes.
        data: Vec<u8>,
    },
    /// Write this to the VF's own configuration space: [`Decision::Forward`](pci_function::Decision::Forward).
    WriteConfig {
        /// Where.
        offset: u16,
        /// One or two bytes.
        data: Vec<u8>,
    },
    /// SRIOV_RESET_FUNCTION.
    Reset,
    /// SRIOV_SET_POWER_STATE.
    SetPowerState {
        /// The state.
        state: DevicePowerState,
        /// Whether PME is armed.
        wake: bool,
    },
}

impl PfRequest {
    /// The request as device control carries it: the callback, its input, and the bytes of output expected.
    pub fn callback(&self, vf: VfIndex) -> (CallbackCode, Vec<u8>, usize) {
        let (vf_index, reserved) = (vf, 0);
        match self {
            Self::ReadBlock { block_id, length } => {
                let access = BlockAccess {
                    vf_index,
                    reserved,
                    block_id: *block_id,
                    length: u32::from(*length),
                };
                let input = access.as_bytes().to_vec();
                (CallbackCode::ReadVfConfigBlock, input, usize::from(*length))
            }
            Self::WriteBlock { block_id, data } => {
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let access = BlockAccess { vf_index, reserved, block_id: *block_id, length };
                let input = [access.as_bytes(), data].concat();
                (CallbackCode::WriteVfConfigBlock, input, 0)
            }
            Self::WriteConfig { offset, data } => {
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let access =
                    ConfigAccess { vf_index, reserved, offset: u32::from(*offset), length };
                let input = [access.as_bytes(), data].concat();
                (CallbackCode::WriteVfConfig, input, 0)
            }
            Self::Reset => (CallbackCode::ResetVf, VfArgument { vf_index }.as_bytes().to_vec(), 0),
            Self::SetPowerState { state, wake } => {
                let power = SetPowerState {
                    vf_index,
                    reserved,
                    power_state: DevicePowerStateRaw::from(*state),
                    wake: u8::from(*wake),
                    reserved2: [0; 3],
                };
                (CallbackCode::SetVfPowerState, power.as_bytes().to_vec(), 0)
            }
        }
    }
}

/// Whether the function may be stopped (SPEC-PCIVIRT §8.5).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum StopAnswer {
    /// The guest has let go of it: nothing is mapped any more.
    Allowed,
    /// No guest uses it.
    NotInUse,
    /// The guest refuses.
    Refused,
    /// The guest has not answered in time. (Linux does not know the question.)
    TimedOut,
}

/// How a function was taken from its guest.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Removal {
    /// The guest has confirmed the ejection.
    Confirmed,
    /// The guest has closed its channel instead.
    ChannelClosed,
    /// No guest used it.
    NotInUse,
    /// The guest has not confirmed in time.
    TimedOut,
    /// It was removed without asking.
    Surprise,
}

impl Removal {
    /// Whether the guest had let go of the function before.
    pub fn is_graceful(self) -> bool {
        !matches!(self, Self::TimedOut | Self::Surprise)
    }
}

/// How a guest has broken the protocol.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum ChannelFault {
    /// Something came before a version was agreed on.
    #[error("the guest began with {}, and not with QUERY_PROTOCOL_VERSION", name(*.0))]
    BeforeVersion(Option<MessageType>),
    /// A version was agreed on already.
    #[error("the guest asked for a version after one was agreed on")]
    VersionAgain,
}

fn name(message: Option<MessageType>) -> &'static str {
    message.map_or("a packet of no known type", MessageType::name)
}
