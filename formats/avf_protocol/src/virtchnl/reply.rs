//! Replies and events of a PF: meaning to bytes for the PF, bytes to meaning for a driver.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U64},
};

use super::{
    EthStats, EventMessage, MaxRssQregion, Opcode, Version, VfResources, VlanV2Capabilities,
    resources::{VersionMessage, VfResourcesMessage},
};

/// What a PF sends back (SPEC-AVF §4.6). Requests not listed are answered without a payload, and so is
/// almost every failure.
#[derive(Copy, Clone, PartialEq, Debug)]
pub enum Reply {
    /// No payload.
    Empty,
    /// VERSION: the version both speak.
    Version(Version),
    /// GET_VF_RESOURCES.
    VfResources(VfResources),
    /// GET_STATS.
    Stats(EthStats),
    /// GET_RSS_HENA_CAPS: the packet types that can be hashed.
    RssHenaCaps(u64),
    /// REQUEST_QUEUES, in a failure: the queue pairs that can be had.
    RequestQueues(u16),
    /// GET_SUPPORTED_RXDIDS: bit n is RXDID n.
    SupportedRxdids(u64),
    /// GET_MAX_RSS_QREGION.
    MaxRssQregion(MaxRssQregion),
    /// GET_OFFLOAD_VLAN_V2_CAPS.
    VlanV2Capabilities(VlanV2Capabilities),
    /// EVENT.
    Event(EventMessage),
}

/// A reply that is shorter than its meaning needs.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("virtchnl reply {opcode:?} needs {need} bytes and has {have}")]
pub struct ReplyError {
    /// Opcode of the reply.
    pub opcode: Opcode,
    /// Bytes it needs.
    pub need: usize,
    /// Bytes it has.
    pub have: usize,
}

impl Reply {
    /// The PF's side: replaces `out` by the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Empty => {}
            Self::Version(version) => {
                out.extend_from_slice(VersionMessage::from(*version).as_bytes());
            }
            Self::VfResources(resources) => {
                out.extend_from_slice(VfResourcesMessage::from(resources).as_bytes());
            }
            Self::Stats(statistics) => statistics.emit(out),
            Self::RssHenaCaps(bits) | Self::SupportedRxdids(bits) => {
                out.extend_from_slice(&bits.to_le_bytes());
            }
            Self::RequestQueues(pairs) => out.extend_from_slice(&pairs.to_le_bytes()),
            Self::MaxRssQregion(region) => out.extend_from_slice(region.as_bytes()),
            Self::VlanV2Capabilities(capabilities) => {
                out.extend_from_slice(capabilities.as_bytes());
            }
            Self::Event(event) => out.extend_from_slice(event.as_bytes()),
        }
    }

    /// A driver's side: what the PF answered. Longer payloads are accepted; an empty one is
    /// [`Reply::Empty`], which for a successful request that has a payload is the caller's to refuse.
    pub fn parse(opcode: Opcode, data: &[u8]) -> Result<Self, ReplyError> {
        if data.is_empty() {
            return Ok(Self::Empty);
        }
        let too_short = |need| ReplyError { opcode, need, have: data.len() };
        Ok(match opcode {
            Opcode::Version => Self::Version(Version::from(&read::<VersionMessage>(opcode, data)?)),
            Opcode::GetVfResources => {
                Self::VfResources((&read::<VfResourcesMessage>(opcode, data)?).into())
            }
            Opcode::GetStats => {
                Self::Stats(EthStats::parse(data).ok_or_else(|| too_short(EthStats::SIZE))?)
            }
            Opcode::GetRssHenaCaps => Self::RssHenaCaps(read::<U64>(opcode, data)?.get()),
            Opcode::GetSupportedRxdids => Self::SupportedRxdids(read::<U64>(opcode, data)?.get()),
            Opcode::RequestQueues => Self::RequestQueues(read::<U16>(opcode, data)?.get()),
            Opcode::GetMaxRssQregion => Self::MaxRssQregion(read(opcode, data)?),
            Opcode::GetOffloadVlanV2Caps => Self::VlanV2Capabilities(read(opcode, data)?),
            Opcode::Event => Self::Event(read(opcode, data)?),
            _ => Self::Empty,
        })
    }
}

fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    opcode: Opcode,
    data: &[u8],
) -> Result<T, ReplyError> {
    T::read_from_prefix(data).map(|(value, _)| value).map_err(|_| ReplyError {
        opcode,
        need: size_of::<T>(),
        have: data.len(),
    })
}
