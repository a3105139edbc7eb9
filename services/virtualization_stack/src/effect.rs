//! What the stack wants done, as values. The caller carries them out in the order in which they were given.

use std::collections::BTreeMap;

use ndis_protocol::{MacAddress, RequestorId, VfId};
use pcivirt_protocol::SriovMitigatedRangesOutput;

use crate::{AdapterId, DataPath, Event, NicCall, NicId, RequestId, Time, VfSerial};

/// One thing to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Issue a request to a NIC; its end comes back as [`Input::NicCompleted`](crate::Input::NicCompleted), for each
    /// request once, unless the connection ends before.
    Nic {
        /// Which NIC.
        nic: NicId,
        /// The request's number.
        request: RequestId,
        /// What to ask for.
        call: NicCall,
    },
    /// Cancel a request to a NIC, of which nothing more has to be heard.
    CancelNic {
        /// Which NIC.
        nic: NicId,
        /// The request.
        request: RequestId,
    },
    /// End the connection to a NIC that does not answer. The stack takes it for gone; a new connection is
    /// [`Input::NicConnected`](crate::Input::NicConnected).
    DisconnectNic {
        /// Which NIC.
        nic: NicId,
    },
    /// Tell the NetVSP end of an adapter, in its switch. Without one there is nothing to be done: so with an
    /// [`AdapterKind::VhostUser`](crate::AdapterKind::VhostUser).
    NetVsp {
        /// Whose.
        adapter: AdapterId,
        /// What.
        command: NetVspCommand,
    },
    /// Tell the VPCI end of an adapter, in its partition's host side. Without one there is nothing to be done.
    Vpci {
        /// Whose.
        adapter: AdapterId,
        /// Which offering of a VF it is about.
        serial: VfSerial,
        /// What.
        command: VpciCommand,
    },
    /// Call again with [`Input::Tick`](crate::Input::Tick) at this time, instead of whenever was said before. `None`:
    /// there is nothing to wait for.
    SetTimer(Option<Time>),
    /// Tell whoever wants to know.
    Publish(Event),
}

/// What the NetVSP end of an adapter is told (SPEC-VMBUS §7).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NetVspCommand {
    /// A VF is there for this adapter: NVSP message 128 (1, serial).
    VfAvailable {
        /// Its serial number.
        serial: VfSerial,
    },
    /// The VF is not there any more: NVSP message 128 (0, the same serial).
    VfLost {
        /// Its serial number.
        serial: VfSerial,
    },
    /// The data path is to be, or already was, moved by the host: NVSP message 129 to the guest.
    SwitchDataPath(DataPath),
    /// The guest's request (NVSP message 129) is answered with an empty completion. If the path now active is not the one
    /// it asked for, 129 with the active one follows.
    CompleteSwitch {
        /// The path that is active now.
        active: DataPath,
    },
}

/// What the VPCI end of an adapter is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VpciCommand {
    /// Offer the VF to the guest as a PCI device; answered by
    /// [`VpciReport::Offered`](crate::VpciReport::Offered) or
    /// [`VpciReport::OfferFailed`](crate::VpciReport::OfferFailed).
    Offer(Box<VpciOffer>),
    /// The mitigated ranges are these now, and not those before.
    ReplaceMitigatedRanges(MitigatedRanges),
    /// Ask the guest to give the device up (EJECT); answered by
    /// [`VpciReport::EjectComplete`](crate::VpciReport::EjectComplete) if the guest does.
    Eject,
    /// Take the device away: unmap its BARs, leave the VF, rescind the channel; whether or not there was an offer.
    /// Answered by [`VpciReport::Removed`](crate::VpciReport::Removed).
    Remove {
        /// Whether the guest did not agree.
        surprise: bool,
    },
}

/// Mitigated ranges of a VF: for each BAR that has any, those (SPEC-PCIVIRT §6).
pub type MitigatedRanges = BTreeMap<u8, Vec<SriovMitigatedRangesOutput>>;

/// A VF as it is offered to a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VpciOffer {
    /// The NIC.
    pub nic: NicId,
    /// The VF.
    pub vf: VfId,
    /// Its requestor id, for DMA and interrupt remapping.
    pub requestor_id: RequestorId,
    /// Its address, which is the adapter's.
    pub mac: MacAddress,
    /// Register ranges that the guest must not reach by itself.
    pub mitigated_ranges: MitigatedRanges,
}
