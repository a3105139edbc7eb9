//! What observers of an adapter's NDIS layer are told: every OID, and the status indications (SPEC-NDIS-SRIOV §14).

use std::fmt;

use device_control_protocol::DriverName;
use ndis_protocol::{
    IndicationCode, NdisStatus, NdisStructure, NicSwitchCapabilities, Oid,
    ReceiveFilterCapabilities, RequestKind, VfId,
};

use crate::Refusal;

/// Who sends a request.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Requester {
    /// NDIS itself.
    Ndis,
    /// An overlying driver, known by its name.
    Overlying(DriverName),
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ndis => f.write_str("NDIS"),
            Self::Overlying(name) => name.fmt(f),
        }
    }
}

/// Something happened in the NDIS layer. Observers take the time themselves: NDIS has no clock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NdisEvent {
    /// A request begins.
    OidIssued {
        /// Counts requests of this adapter from 1.
        sequence: u64,
        /// Who sent it.
        requester: Requester,
        /// Its code.
        code: u32,
        /// How it is asked.
        kind: RequestKind,
    },
    /// The request is done.
    OidCompleted {
        /// That of its [`NdisEvent::OidIssued`].
        sequence: u64,
        /// Its code.
        code: u32,
        /// How it ended.
        status: NdisStatus,
        /// Why it was refused.
        refusal: Option<Refusal>,
    },
    /// A configuration block of a VF was written (OID_SRIOV_WRITE_VF_CONFIG_BLOCK). One that NDIS itself wrote comes from
    /// the VF's own driver, by the WriteVfConfigBlock callback; one that an overlying driver wrote is news to it.
    ConfigBlockWritten {
        /// Whose block.
        vf_id: VfId,
        /// Which block.
        block_id: u32,
        /// Who wrote it.
        requester: Requester,
    },
    /// A VF was freed: by its owner, or because that unbound or the adapter halts.
    VfFreed {
        /// The VF.
        vf_id: VfId,
    },
    /// A status is indicated to the overlying drivers.
    StatusIndicated(StatusIndication),
}

/// A status indication. Those about capabilities carry the whole structure; upper layers must read their limits again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StatusIndication {
    /// The enabled capabilities of the NIC switch changed; `None` when there are none any more.
    NicSwitchCurrentCapabilities(Option<NicSwitchCapabilities>),
    /// The card's NIC switch capabilities changed.
    NicSwitchHardwareCapabilities(NicSwitchCapabilities),
    /// The enabled receive filter capabilities changed; `None` when there are none any more.
    ReceiveFilterCurrentCapabilities(Option<ReceiveFilterCapabilities>),
    /// The card's receive filter capabilities changed.
    ReceiveFilterHardwareCapabilities(ReceiveFilterCapabilities),
    /// Any other, with its buffer.
    Other {
        /// Its code.
        code: IndicationCode,
        /// Its buffer.
        buffer: Vec<u8>,
    },
}

impl StatusIndication {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> IndicationCode {
        match self {
            Self::NicSwitchCurrentCapabilities(_) => {
                IndicationCode::NIC_SWITCH_CURRENT_CAPABILITIES
            }
            Self::NicSwitchHardwareCapabilities(_) => {
                IndicationCode::NIC_SWITCH_HARDWARE_CAPABILITIES
            }
            Self::ReceiveFilterCurrentCapabilities(_) => {
                IndicationCode::RECEIVE_FILTER_CURRENT_CAPABILITIES
            }
            Self::ReceiveFilterHardwareCapabilities(_) => {
                IndicationCode::RECEIVE_FILTER_HARDWARE_CAPABILITIES
            }
            Self::Other { code, .. } => *code,
        }
    }

    /// Its buffer, as it is on the wire.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        match self {
            Self::NicSwitchCurrentCapabilities(capabilities) => {
                capabilities.as_ref().map(NdisStructure::emit).unwrap_or_default()
            }
            Self::NicSwitchHardwareCapabilities(capabilities) => capabilities.emit(),
            Self::ReceiveFilterCurrentCapabilities(capabilities) => {
                capabilities.as_ref().map(NdisStructure::emit).unwrap_or_default()
            }
            Self::ReceiveFilterHardwareCapabilities(capabilities) => capabilities.emit(),
            Self::Other { buffer, .. } => buffer.clone(),
        }
    }
}

/// The name of an OID for people: the published one, or the code.
#[must_use]
pub fn oid_name(code: u32) -> String {
    Oid::from_code(code).map_or_else(|| format!("OID {code:#010x}"), |oid| oid.name().to_owned())
}

/// Names a subscription.
#[derive(Copy, Clone, Debug, Eq, Hash, PartialEq)]
pub struct SubscriptionId(u64);

type Observer = Box<dyn FnMut(&NdisEvent) + Send>;

/// Those who want to be told.
#[derive(Default)]
pub(crate) struct Subscribers {
    observers: Vec<(SubscriptionId, Observer)>,
    next: u64,
}

impl Subscribers {
    pub(crate) fn add(&mut self, observer: Observer) -> SubscriptionId {
        let id = SubscriptionId(self.next);
        self.next += 1;
        self.observers.push((id, observer));
        id
    }

    pub(crate) fn remove(&mut self, id: SubscriptionId) {
        self.observers.retain(|(known, _)| *known != id);
    }

    pub(crate) fn tell(&mut self, event: &NdisEvent) {
        for (_, observer) in &mut self.observers {
            observer(event);
        }
    }
}

impl fmt::Debug for Subscribers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} subscribers", self.observers.len())
    }
}
