//! Queue messages: CONFIG_VSI_QUEUES, CONFIG_IRQ_MAP, ENABLE/DISABLE_QUEUES and the large-VF forms
//! (SPEC-AVF §4.6).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I32, U16, U32, U64},
};

use super::wire;

/// `txq_info`: a TX queue's configuration, 24 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct TxQueueInfo {
    /// VSI the queue is of.
    pub vsi_id: U16,
    /// Queue index in the VSI.
    pub queue_id: U16,
    /// Descriptors in the ring; 0 leaves the queue unused.
    pub ring_len: U16,
    /// Head write-back; must be 0.
    pub headwb_enabled: U16,
    /// DMA address of the ring.
    pub dma_ring_addr: U64,
    /// DMA address of the head; unused.
    pub dma_headwb_addr: U64,
}
wire!(TxQueueInfo, 24; queue_id at 2, ring_len at 4, headwb_enabled at 6, dma_ring_addr at 8,
    dma_headwb_addr at 16);

/// `rxq_info`: an RX queue's configuration, 40 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RxQueueInfo {
    /// VSI the queue is of.
    pub vsi_id: U16,
    /// Queue index in the VSI.
    pub queue_id: U16,
    /// Descriptors in the ring; 0 leaves the queue unused.
    pub ring_len: U32,
    /// Bytes of header buffers; unused.
    pub hdr_size: U16,
    /// Header split; unused.
    pub splithdr_enabled: U16,
    /// Bytes of each packet buffer: 0, or 128…16256.
    pub databuffer_size: U32,
    /// The largest frame to receive, bytes.
    pub max_pkt_size: U32,
    /// Keep the FCS; only with the CRC capability.
    pub crc_disable: u8,
    /// RX descriptor format; only with the RX_FLEX_DESC capability.
    pub rxdid: u8,
    /// Bit 0: PTP time stamps.
    pub flags: u8,
    /// Unused.
    pub pad1: u8,
    /// DMA address of the ring.
    pub dma_ring_addr: U64,
    /// Header split position; unused.
    pub rx_split_pos: I32,
    /// Unused.
    pub pad2: U32,
}
wire!(RxQueueInfo, 40; queue_id at 2, ring_len at 4, hdr_size at 8, splithdr_enabled at 10,
    databuffer_size at 12, max_pkt_size at 16, crc_disable at 20, rxdid at 21, flags at 22,
    dma_ring_addr at 24, rx_split_pos at 32);

/// Bounds of a buffer size that is in use (SPEC-AVF §4.8).
pub struct DatabufferSize;

impl DatabufferSize {
    /// Least, bytes.
    pub const MIN: u32 = 128;
    /// Most, bytes.
    pub const MAX: u32 = 16_256;
}

/// One queue pair of CONFIG_VSI_QUEUES, 64 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct QueuePairInfo {
    /// The TX queue.
    pub tx: TxQueueInfo,
    /// The RX queue, which has the same `queue_id`.
    pub rx: RxQueueInfo,
}
wire!(QueuePairInfo, 64; rx at 24);

/// `vector_map`: what one MSI-X vector serves, 12 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct VectorMap {
    /// VSI the vector is of.
    pub vsi_id: U16,
    /// Vector; 0 is the admin queue's, and queues may share it.
    pub vector_id: U16,
    /// RX queues, one bit each.
    pub rxq_map: U16,
    /// TX queues, one bit each.
    pub txq_map: U16,
    /// ITR index of the RX queues, 0–3.
    pub rxitr_idx: U16,
    /// ITR index of the TX queues, 0–3.
    pub txitr_idx: U16,
}
wire!(VectorMap, 12; vector_id at 2, rxq_map at 4, txq_map at 6, rxitr_idx at 8, txitr_idx at 10);

/// `queue_select`: sets of queues, 12 bytes. Also the request of GET_STATS.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct QueueSelect {
    /// VSI the queues are of.
    pub vsi_id: U16,
    /// Unused.
    pub pad: U16,
    /// RX queues, one bit each.
    pub rx_queues: U32,
    /// TX queues, one bit each.
    pub tx_queues: U32,
}
wire!(QueueSelect, 12; rx_queues at 4, tx_queues at 8);

impl QueueSelect {
    /// The queues whose bits are set in `rx` and `tx`.
    pub fn new(vsi_id: u16, rx: u32, tx: u32) -> Self {
        Self { vsi_id: vsi_id.into(), pad: 0.into(), rx_queues: rx.into(), tx_queues: tx.into() }
    }
}

/// `queue_chunk` of the large-VF opcodes, 8 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct QueueChunk {
    /// 0 TX, 1 RX.
    pub queue_type: I32,
    /// First queue.
    pub start: U16,
    /// Queues.
    pub count: U16,
}
wire!(QueueChunk, 8; start at 4, count at 6);

/// `queue_vector` of MAP_QUEUE_VECTOR, 16 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct QueueVector {
    /// Queue.
    pub queue_id: U16,
    /// MSI-X vector.
    pub vector_id: U16,
    /// Unused.
    pub pad: U32,
    /// ITR index.
    pub itr_idx: I32,
    /// 0 TX, 1 RX.
    pub queue_type: I32,
}
wire!(QueueVector, 16; vector_id at 2, itr_idx at 8, queue_type at 12);
