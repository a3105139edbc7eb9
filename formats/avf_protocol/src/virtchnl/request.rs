//! Requests of a VF: bytes to meaning for the PF, meaning to bytes for a driver.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    Capabilities, EthAddr, MessageTooLong, Opcode, QueueChunk, QueuePairInfo, QueueSelect,
    QueueVector, RssHfunc, RxQueueInfo, TxQueueInfo, VectorMap, Version, VlanFilter, VlanSetting,
    lengths, resources::VersionMessage,
};

/// What a VF asks its PF (SPEC-AVF §4.6). Lists are borrowed from the message.
#[derive(Copy, Clone, PartialEq, Debug)]
#[allow(missing_docs)] // The fields are those of the messages, documented at their types.
pub enum Request<'a> {
    /// Negotiates the version.
    Version(Version),
    /// Resets the VF.
    ResetVf,
    /// Asks what the VF has; virtchnl 1.1 says which capabilities it wants.
    GetVfResources(Option<Capabilities>),
    /// Configures one TX queue.
    ConfigTxQueue(TxQueueInfo),
    /// Configures one RX queue.
    ConfigRxQueue(RxQueueInfo),
    /// Configures the listed queue pairs.
    ConfigVsiQueues { vsi_id: u16, pairs: &'a [QueuePairInfo] },
    /// Maps queues to the listed vectors.
    ConfigIrqMap { vectors: &'a [VectorMap] },
    /// Starts queues.
    EnableQueues(QueueSelect),
    /// Stops queues.
    DisableQueues(QueueSelect),
    /// Adds MAC filters.
    AddEthAddr { vsi_id: u16, list: &'a [EthAddr] },
    /// Removes MAC filters.
    DelEthAddr { vsi_id: u16, list: &'a [EthAddr] },
    /// Adds VLAN ids.
    AddVlan { vsi_id: u16, ids: &'a [U16] },
    /// Removes VLAN ids.
    DelVlan { vsi_id: u16, ids: &'a [U16] },
    /// Sets promiscuous modes, [`super::promiscuous`].
    ConfigPromiscuousMode { vsi_id: u16, flags: u16 },
    /// Reads statistics; only the VSI id matters.
    GetStats(QueueSelect),
    /// Chooses the RSS hash function.
    ConfigRssHfunc(RssHfunc),
    /// Sets the RSS key.
    ConfigRssKey { vsi_id: u16, key: &'a [u8] },
    /// Sets the RSS lookup table.
    ConfigRssLut { vsi_id: u16, lut: &'a [u8] },
    /// Asks which packet types can be hashed.
    GetRssHenaCaps,
    /// Sets which packet types are hashed.
    SetRssHena(u64),
    /// Turns VLAN stripping on.
    EnableVlanStripping,
    /// Turns VLAN stripping off.
    DisableVlanStripping,
    /// Asks for another number of queue pairs.
    RequestQueues(u16),
    /// Asks which RX descriptor formats there are.
    GetSupportedRxdids,
    /// Asks for the largest RSS queue region.
    GetMaxRssQregion,
    /// Asks for the VLAN capabilities.
    GetOffloadVlanV2Caps,
    /// Adds VLAN filters.
    AddVlanV2 { vport_id: u16, filters: &'a [VlanFilter] },
    /// Removes VLAN filters.
    DelVlanV2 { vport_id: u16, filters: &'a [VlanFilter] },
    /// Turns VLAN stripping on.
    EnableVlanStrippingV2(VlanSetting),
    /// Turns VLAN stripping off.
    DisableVlanStrippingV2(VlanSetting),
    /// Turns VLAN insertion on.
    EnableVlanInsertionV2(VlanSetting),
    /// Turns VLAN insertion off.
    DisableVlanInsertionV2(VlanSetting),
    /// Turns VLAN filtering on.
    EnableVlanFilteringV2(VlanSetting),
    /// Turns VLAN filtering off.
    DisableVlanFilteringV2(VlanSetting),
    /// Starts queues of a large VF.
    EnableQueuesV2 { vport_id: u16, chunks: &'a [QueueChunk] },
    /// Stops queues of a large VF.
    DisableQueuesV2 { vport_id: u16, chunks: &'a [QueueChunk] },
    /// Maps queues of a large VF to vectors.
    MapQueueVector { vport_id: u16, maps: &'a [QueueVector] },
    /// Asks for the QoS capabilities.
    GetQosCaps,
}

/// Why a request has no meaning here.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum RequestError {
    /// No such opcode; to be answered "not supported".
    #[error("virtchnl opcode {0} is not defined")]
    UnknownOpcode(u32),
    /// A defined opcode of a feature that this crate has no types for (ADQ, DCF, flow director, IPsec,
    /// advanced RSS, PTP, QoS, RDMA), or one that only a PF sends; to be answered "not supported".
    #[error("virtchnl request {0:?} is not modelled")]
    NotModelled(Opcode),
    /// The message is shorter than its header or its element count say; to be answered "parameter".
    #[error("virtchnl request {opcode:?} needs {need} bytes and has {have}")]
    TooShort {
        /// Opcode of the request.
        opcode: Opcode,
        /// Bytes it needs.
        need: usize,
        /// Bytes it has.
        have: usize,
    },
}

/// Header of the lists: an id and a count.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ListHeader {
    id: U16,
    count: U16,
}

/// Header of CONFIG_VSI_QUEUES, the VLAN v2 lists and MAP_QUEUE_VECTOR: padded to 8 bytes.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PaddedListHeader {
    id: U16,
    count: U16,
    pad: U32,
}

/// Header of the large-VF queue lists: the count is at 4.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ChunksHeader {
    id: U16,
    pad: U16,
    count: U16,
    rsvd: U16,
}

/// One message under the parser's eyes.
#[derive(Copy, Clone)]
struct Message<'a> {
    opcode: Opcode,
    data: &'a [u8],
}

impl<'a> Message<'a> {
    fn too_short(&self, need: usize) -> RequestError {
        RequestError::TooShort { opcode: self.opcode, need, have: self.data.len() }
    }

    /// The fixed part; what follows is ignored.
    fn head<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
    ) -> Result<(&'a T, &'a [u8]), RequestError> {
        T::ref_from_prefix(self.data).map_err(|_| self.too_short(size_of::<T>()))
    }

    /// A fixed-size message.
    fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned + Copy>(
        &self,
    ) -> Result<T, RequestError> {
        self.head::<T>().map(|(value, _)| *value)
    }

    /// `count` elements after a header of `offset` bytes; spare bytes are ignored.
    fn elements<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
        offset: usize,
        count: U16,
    ) -> Result<&'a [T], RequestError> {
        let count = usize::from(count.get());
        let too_short = self.too_short(offset + count * size_of::<T>());
        let rest = self.data.get(offset..).ok_or(too_short)?;
        <[T]>::ref_from_prefix_with_elems(rest, count)
            .map(|(elements, _)| elements)
            .map_err(|_| too_short)
    }

    /// A list behind a 4-byte header.
    fn list<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
    ) -> Result<(u16, &'a [T]), RequestError> {
        let (header, _) = self.head::<ListHeader>()?;
        Ok((header.id.get(), self.elements(size_of::<ListHeader>(), header.count)?))
    }

    /// A list behind an 8-byte header.
    fn padded_list<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
    ) -> Result<(u16, &'a [T]), RequestError> {
        let (header, _) = self.head::<PaddedListHeader>()?;
        Ok((header.id.get(), self.elements(size_of::<PaddedListHeader>(), header.count)?))
    }

    fn chunks(&self) -> Result<(u16, &'a [QueueChunk]), RequestError> {
        let (header, _) = self.head::<ChunksHeader>()?;
        Ok((header.id.get(), self.elements(size_of::<ChunksHeader>(), header.count)?))
    }
}

impl<'a> Request<'a> {
    /// The PF's side: what the VF asks. Any length from what the elements need is accepted, without
    /// the spare element at the end (SPEC-AVF §4.7).
    pub fn parse(opcode: u32, data: &'a [u8]) -> Result<Self, RequestError> {
        let opcode =
            Opcode::try_from(opcode).map_err(|unknown| RequestError::UnknownOpcode(unknown.0))?;
        let message = Message { opcode, data };
        Ok(match opcode {
            Opcode::Version => Self::Version(Version::from(message.head::<VersionMessage>()?.0)),
            Opcode::ResetVf => Self::ResetVf,
            Opcode::GetVfResources => {
                // Virtchnl 1.0 sends nothing, and so does old iPXE.
                let wanted = U32::read_from_prefix(data).ok();
                Self::GetVfResources(wanted.map(|(bits, _)| Capabilities(bits.get())))
            }
            Opcode::ConfigTxQueue => Self::ConfigTxQueue(message.whole()?),
            Opcode::ConfigRxQueue => Self::ConfigRxQueue(message.whole()?),
            Opcode::ConfigVsiQueues => {
                let (vsi_id, pairs) = message.padded_list()?;
                Self::ConfigVsiQueues { vsi_id, pairs }
            }
            Opcode::ConfigIrqMap => {
                let (count, _) = message.head::<U16>()?;
                Self::ConfigIrqMap { vectors: message.elements(2, *count)? }
            }
            Opcode::EnableQueues => Self::EnableQueues(message.whole()?),
            Opcode::DisableQueues => Self::DisableQueues(message.whole()?),
            Opcode::AddEthAddr => {
                let (vsi_id, list) = message.list()?;
                Self::AddEthAddr { vsi_id, list }
            }
            Opcode::DelEthAddr => {
                let (vsi_id, list) = message.list()?;
                Self::DelEthAddr { vsi_id, list }
            }
            Opcode::AddVlan => {
                let (vsi_id, ids) = message.list()?;
                Self::AddVlan { vsi_id, ids }
            }
            Opcode::DelVlan => {
                let (vsi_id, ids) = message.list()?;
                Self::DelVlan { vsi_id, ids }
            }
            Opcode::ConfigPromiscuousMode => {
                let header = message.whole::<ListHeader>()?;
                Self::ConfigPromiscuousMode { vsi_id: header.id.get(), flags: header.count.get() }
            }
            Opcode::GetStats => Self::GetStats(message.whole()?),
            Opcode::ConfigRssHfunc => Self::ConfigRssHfunc(message.whole()?),
            Opcode::ConfigRssKey => {
                let (vsi_id, key) = message.list()?;
                Self::ConfigRssKey { vsi_id, key }
            }
            Opcode::ConfigRssLut => {
                let (vsi_id, lut) = message.list()?;
                Self::ConfigRssLut { vsi_id, lut }
            }
            Opcode::GetRssHenaCaps => Self::GetRssHenaCaps,
            Opcode::SetRssHena => Self::SetRssHena(message.whole::<U64>()?.get()),
            Opcode::EnableVlanStripping => Self::EnableVlanStripping,
            Opcode::DisableVlanStripping => Self::DisableVlanStripping,
            Opcode::RequestQueues => Self::RequestQueues(message.whole::<U16>()?.get()),
            Opcode::GetSupportedRxdids => Self::GetSupportedRxdids,
            Opcode::GetMaxRssQregion => Self::GetMaxRssQregion,
            Opcode::GetOffloadVlanV2Caps => Self::GetOffloadVlanV2Caps,
            Opcode::AddVlanV2 => {
                let (vport_id, filters) = message.padded_list()?;
                Self::AddVlanV2 { vport_id, filters }
            }
            Opcode::DelVlanV2 => {
                let (vport_id, filters) = message.padded_list()?;
                Self::DelVlanV2 { vport_id, filters }
            }
            Opcode::EnableVlanStrippingV2 => Self::EnableVlanStrippingV2(message.whole()?),
            Opcode::DisableVlanStrippingV2 => Self::DisableVlanStrippingV2(message.whole()?),
            Opcode::EnableVlanInsertionV2 => Self::EnableVlanInsertionV2(message.whole()?),
            Opcode::DisableVlanInsertionV2 => Self::DisableVlanInsertionV2(message.whole()?),
            Opcode::EnableVlanFilteringV2 => Self::EnableVlanFilteringV2(message.whole()?),
            Opcode::DisableVlanFilteringV2 => Self::DisableVlanFilteringV2(message.whole()?),
            Opcode::EnableQueuesV2 => {
                let (vport_id, chunks) = message.chunks()?;
                Self::EnableQueuesV2 { vport_id, chunks }
            }
            Opcode::DisableQueuesV2 => {
                let (vport_id, chunks) = message.chunks()?;
                Self::DisableQueuesV2 { vport_id, chunks }
            }
            Opcode::MapQueueVector => {
                let (vport_id, maps) = message.padded_list()?;
                Self::MapQueueVector { vport_id, maps }
            }
            Opcode::GetQosCaps => Self::GetQosCaps,
            other => return Err(RequestError::NotModelled(other)),
        })
    }

    /// The opcode that carries this request.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::Version(_) => Opcode::Version,
            Self::ResetVf => Opcode::ResetVf,
            Self::GetVfResources(_) => Opcode::GetVfResources,
            Self::ConfigTxQueue(_) => Opcode::ConfigTxQueue,
            Self::ConfigRxQueue(_) => Opcode::ConfigRxQueue,
            Self::ConfigVsiQueues { .. } => Opcode::ConfigVsiQueues,
            Self::ConfigIrqMap { .. } => Opcode::ConfigIrqMap,
            Self::EnableQueues(_) => Opcode::EnableQueues,
            Self::DisableQueues(_) => Opcode::DisableQueues,
            Self::AddEthAddr { .. } => Opcode::AddEthAddr,
            Self::DelEthAddr { .. } => Opcode::DelEthAddr,
            Self::AddVlan { .. } => Opcode::AddVlan,
            Self::DelVlan { .. } => Opcode::DelVlan,
            Self::ConfigPromiscuousMode { .. } => Opcode::ConfigPromiscuousMode,
            Self::GetStats(_) => Opcode::GetStats,
            Self::ConfigRssHfunc(_) => Opcode::ConfigRssHfunc,
            Self::ConfigRssKey { .. } => Opcode::ConfigRssKey,
            Self::ConfigRssLut { .. } => Opcode::ConfigRssLut,
            Self::GetRssHenaCaps => Opcode::GetRssHenaCaps,
            Self::SetRssHena(_) => Opcode::SetRssHena,
            Self::EnableVlanStripping => Opcode::EnableVlanStripping,
            Self::DisableVlanStripping => Opcode::DisableVlanStripping,
            Self::RequestQueues(_) => Opcode::RequestQueues,
            Self::GetSupportedRxdids => Opcode::GetSupportedRxdids,
            Self::GetMaxRssQregion => Opcode::GetMaxRssQregion,
            Self::GetOffloadVlanV2Caps => Opcode::GetOffloadVlanV2Caps,
            Self::AddVlanV2 { .. } => Opcode::AddVlanV2,
            Self::DelVlanV2 { .. } => Opcode::DelVlanV2,
            Self::EnableVlanStrippingV2(_) => Opcode::EnableVlanStrippingV2,
            Self::DisableVlanStrippingV2(_) => Opcode::DisableVlanStrippingV2,
            Self::EnableVlanInsertionV2(_) => Opcode::EnableVlanInsertionV2,
            Self::DisableVlanInsertionV2(_) => Opcode::DisableVlanInsertionV2,
            Self::EnableVlanFilteringV2(_) => Opcode::EnableVlanFilteringV2,
            Self::DisableVlanFilteringV2(_) => Opcode::DisableVlanFilteringV2,
            Self::EnableQueuesV2 { .. } => Opcode::EnableQueuesV2,
            Self::DisableQueuesV2 { .. } => Opcode::DisableQueuesV2,
            Self::MapQueueVector { .. } => Opcode::MapQueueVector,
            Self::GetQosCaps => Opcode::GetQosCaps,
        }
    }

    /// A driver's side: replaces `out` by the message, with the exact length that real PFs demand.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), MessageTooLong> {
        out.clear();
        let elements = match self {
            Self::Version(version) => fixed(out, &VersionMessage::from(*version)),
            Self::GetVfResources(Some(wanted)) => fixed(out, &U32::new(wanted.0)),
            Self::ConfigTxQueue(queue) => fixed(out, queue),
            Self::ConfigRxQueue(queue) => fixed(out, queue),
            Self::ConfigVsiQueues { vsi_id, pairs } => padded_list(out, *vsi_id, pairs),
            Self::ConfigIrqMap { vectors } => {
                out.extend_from_slice(count(vectors).as_bytes());
                out.extend_from_slice(vectors.as_bytes());
                vectors.len()
            }
            Self::EnableQueues(queues) | Self::DisableQueues(queues) | Self::GetStats(queues) => {
                fixed(out, queues)
            }
            Self::AddEthAddr { vsi_id, list: addresses }
            | Self::DelEthAddr { vsi_id, list: addresses } => list(out, *vsi_id, addresses),
            Self::AddVlan { vsi_id, ids } | Self::DelVlan { vsi_id, ids } => {
                list(out, *vsi_id, ids)
            }
            Self::ConfigPromiscuousMode { vsi_id, flags } => {
                fixed(out, &ListHeader { id: (*vsi_id).into(), count: (*flags).into() })
            }
            Self::ConfigRssHfunc(hfunc) => fixed(out, hfunc),
            Self::ConfigRssKey { vsi_id, key: bytes }
            | Self::ConfigRssLut { vsi_id, lut: bytes } => list(out, *vsi_id, bytes),
            Self::SetRssHena(types) => fixed(out, &U64::new(*types)),
            Self::RequestQueues(pairs) => fixed(out, &U16::new(*pairs)),
            Self::AddVlanV2 { vport_id, filters } | Self::DelVlanV2 { vport_id, filters } => {
                padded_list(out, *vport_id, filters)
            }
            Self::EnableVlanStrippingV2(setting)
            | Self::DisableVlanStrippingV2(setting)
            | Self::EnableVlanInsertionV2(setting)
            | Self::DisableVlanInsertionV2(setting)
            | Self::EnableVlanFilteringV2(setting)
            | Self::DisableVlanFilteringV2(setting) => fixed(out, setting),
            Self::EnableQueuesV2 { vport_id, chunks }
            | Self::DisableQueuesV2 { vport_id, chunks } => {
                let header = ChunksHeader {
                    id: (*vport_id).into(),
                    pad: 0.into(),
                    count: count(chunks),
                    rsvd: 0.into(),
                };
                out.extend_from_slice(header.as_bytes());
                out.extend_from_slice(chunks.as_bytes());
                chunks.len()
            }
            Self::MapQueueVector { vport_id, maps } => padded_list(out, *vport_id, maps),
            Self::ResetVf
            | Self::GetVfResources(None)
            | Self::GetRssHenaCaps
            | Self::EnableVlanStripping
            | Self::DisableVlanStripping
            | Self::GetSupportedRxdids
            | Self::GetMaxRssQregion
            | Self::GetOffloadVlanV2Caps
            | Self::GetQosCaps => 0,
        };
        lengths::finish(self.opcode(), elements, out)
    }
}

/// A list's length; too long a list is refused by its byte length afterwards.
fn count<T>(elements: &[T]) -> U16 {
    U16::new(u16::try_from(elements.len()).unwrap_or(u16::MAX))
}

fn fixed<T: IntoBytes + Immutable>(out: &mut Vec<u8>, message: &T) -> usize {
    out.extend_from_slice(message.as_bytes());
    1
}

fn list<T: IntoBytes + Immutable>(out: &mut Vec<u8>, id: u16, elements: &[T]) -> usize {
    let header = ListHeader { id: id.into(), count: count(elements) };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(elements.as_bytes());
    elements.len()
}

fn padded_list<T: IntoBytes + Immutable>(out: &mut Vec<u8>, id: u16, elements: &[T]) -> usize {
    let header = PaddedListHeader { id: id.into(), count: count(elements), pad: 0.into() };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(elements.as_bytes());
    elements.len()
}
