//! virtchnl messages: what one end emits, the other parses; random bytes are refused or parsed, never worse.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use avf_protocol::{
    MacAddress,
    virtchnl::{
        Capabilities, EthAddr, EthStats, Event, LinkStatus, MacFilterKind, MaxRssQregion, Opcode,
        QueueChunk, QueuePairInfo, QueueSelect, QueueVector, Reply, Request, RequestError,
        RssHfunc, RxQueueInfo, TxQueueInfo, VectorMap, Version, VfResources, VlanFilter,
        VlanSetting, VlanV2Capabilities, exact_length,
    },
};
use proptest::{collection::vec, prelude::*};
use zerocopy::{FromBytes, little_endian::U16};

/// Bytes from which any of the wire structures can be cut.
fn cut<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).map(|(value, _)| value).unwrap_or_else(|_| T::new_zeroed())
}

/// Every request, with elements made of `bytes`.
fn requests<'a>(id: u16, bytes: &'a [u8], lists: &'a Lists) -> Vec<Request<'a>> {
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let setting: VlanSetting = cut(bytes);
    let select: QueueSelect = cut(bytes);
    vec![
        Request::Version(Version { major: 1, minor: u32::from(id) }),
        Request::ResetVf,
        Request::GetVfResources(None),
        Request::GetVfResources(Some(Capabilities(word as u32))),
        Request::ConfigTxQueue(cut::<TxQueueInfo>(bytes)),
        Request::ConfigRxQueue(cut::<RxQueueInfo>(bytes)),
        Request::ConfigVsiQueues { vsi_id: id, pairs: &lists.pairs },
        Request::ConfigIrqMap { vectors: &lists.vectors },
        Request::EnableQueues(select),
        Request::DisableQueues(select),
        Request::AddEthAddr { vsi_id: id, list: &lists.addresses },
        Request::DelEthAddr { vsi_id: id, list: &lists.addresses },
        Request::AddVlan { vsi_id: id, ids: &lists.ids },
        Request::DelVlan { vsi_id: id, ids: &lists.ids },
        Request::ConfigPromiscuousMode { vsi_id: id, flags: 3 },
        Request::GetStats(select),
        Request::ConfigRssHfunc(cut::<RssHfunc>(bytes)),
        Request::ConfigRssKey { vsi_id: id, key: bytes },
        Request::ConfigRssLut { vsi_id: id, lut: bytes },
        Request::GetRssHenaCaps,
        Request::SetRssHena(word),
        Request::EnableVlanStripping,
        Request::DisableVlanStripping,
        Request::RequestQueues(id),
        Request::GetSupportedRxdids,
        Request::GetMaxRssQregion,
        Request::GetOffloadVlanV2Caps,
        Request::AddVlanV2 { vport_id: id, filters: &lists.filters },
        Request::DelVlanV2 { vport_id: id, filters: &lists.filters },
        Request::EnableVlanStrippingV2(setting),
        Request::DisableVlanStrippingV2(setting),
        Request::EnableVlanInsertionV2(setting),
        Request::DisableVlanInsertionV2(setting),
        Request::EnableVlanFilteringV2(setting),
        Request::DisableVlanFilteringV2(setting),
        Request::EnableQueuesV2 { vport_id: id, chunks: &lists.chunks },
        Request::DisableQueuesV2 { vport_id: id, chunks: &lists.chunks },
        Request::MapQueueVector { vport_id: id, maps: &lists.maps },
        Request::GetQosCaps,
    ]
}

struct Lists {
    pairs: Vec<QueuePairInfo>,
    vectors: Vec<VectorMap>,
    addresses: Vec<EthAddr>,
    ids: Vec<U16>,
    filters: Vec<VlanFilter>,
    chunks: Vec<QueueChunk>,
    maps: Vec<QueueVector>,
}

impl Lists {
    fn of(bytes: &[u8], count: usize) -> Self {
        fn list<T: FromBytes>(bytes: &[u8], count: usize) -> Vec<T> {
            (0..count).map(|i| cut(&bytes[i..])).collect()
        }
        Self {
            pairs: list(bytes, count),
            vectors: list(bytes, count),
            addresses: list(bytes, count),
            ids: list(bytes, count),
            filters: list(bytes, count),
            chunks: list(bytes, count),
            maps: list(bytes, count),
        }
    }
}

proptest! {
    #[test]
    fn requests_parse_as_emitted_with_the_exact_length_and_without_the_spare_element(
        id: u16, bytes in vec(any::<u8>(), 100..200), count in 0usize..17,
    ) {
        let lists = Lists::of(&bytes, count);
        let mut out = Vec::new();
        for request in requests(id, &bytes, &lists) {
            request.emit(&mut out).unwrap();
            let opcode = request.opcode();
            prop_assert_eq!(Request::parse(opcode.value(), &out), Ok(request));
            let elements = match request {
                Request::GetVfResources(None) => 0,
                Request::GetVfResources(Some(_)) => 1,
                Request::ConfigRssKey { .. } | Request::ConfigRssLut { .. } => bytes.len(),
                _ => count,
            };
            prop_assert_eq!(exact_length(opcode, elements), Some(out.len()));
            // Receivers take more, and less by the spare element.
            out.push(0xEE);
            prop_assert_eq!(Request::parse(opcode.value(), &out), Ok(request));
            out.pop();
            let spare = match opcode {
                Opcode::ConfigVsiQueues => 64,
                Opcode::ConfigIrqMap => 12,
                Opcode::AddEthAddr | Opcode::DelEthAddr => 8,
                Opcode::AddVlan | Opcode::DelVlan => 2,
                Opcode::ConfigRssKey | Opcode::ConfigRssLut => 1,
                Opcode::EnableQueuesV2 | Opcode::DisableQueuesV2 if count == 0 => 8,
                Opcode::MapQueueVector if count == 0 => 16,
                _ => 0,
            };
            out.truncate(out.len() - spare);
            prop_assert_eq!(Request::parse(opcode.value(), &out), Ok(request));
            if !out.is_empty() && opcode != Opcode::GetVfResources {
                out.pop();
                let short = matches!(
                    Request::parse(opcode.value(), &out),
                    Err(RequestError::TooShort { .. })
                );
                prop_assert!(short, "{:?} with {} bytes", opcode, out.len());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_the_parsers(opcode in 0u32..130, data in vec(any::<u8>(), 0..300)) {
        let _ = Request::parse(opcode, &data);
        if let Ok(opcode) = Opcode::try_from(opcode) {
            let _ = Reply::parse(opcode, &data);
        }
    }

    #[test]
    fn replies_parse_as_emitted(bytes in vec(any::<u8>(), 100..101), counters: [u64; 12]) {
        let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let resources = VfResources {
            num_vsis: 1, queue_pairs: 16, max_vectors: 17, max_frame: 9728,
            capabilities: Capabilities(word as u32), rss_key_size: 52, rss_lut_size: 64,
            vsi_id: 9, vsi_type: 6, qset_handle: 0, default_mac: MacAddress([2, 3, 4, 5, 6, 7]),
        };
        let replies = [
            (Opcode::Version, Reply::Version(Version::V1_1), 8),
            (Opcode::GetVfResources, Reply::VfResources(resources), 36),
            (Opcode::GetStats, Reply::Stats(EthStats::from_counters(counters)), 96),
            (Opcode::GetRssHenaCaps, Reply::RssHenaCaps(word), 8),
            (Opcode::RequestQueues, Reply::RequestQueues(4), 2),
            (Opcode::GetSupportedRxdids, Reply::SupportedRxdids(word), 8),
            (Opcode::GetMaxRssQregion, Reply::MaxRssQregion(cut::<MaxRssQregion>(&bytes)), 8),
            (
                Opcode::GetOffloadVlanV2Caps,
                Reply::VlanV2Capabilities(cut::<VlanV2Capabilities>(&bytes)),
                40,
            ),
            (
                Opcode::Event,
                Reply::Event(Event::LinkChange(LinkStatus { up: true, mbps: 1 }).to_message(true)),
                16,
            ),
            (Opcode::AddVlan, Reply::Empty, 0),
        ];
        let mut out = Vec::new();
        for (opcode, reply, length) in replies {
            reply.emit(&mut out);
            prop_assert_eq!(out.len(), length);
            prop_assert_eq!(Reply::parse(opcode, &out), Ok(reply));
            if length > 1 {
                prop_assert!(Reply::parse(opcode, &out[..length - 1]).is_err());
            }
        }
    }
}

#[test]
fn resources_lie_where_the_network_boot_driver_reads_them() {
    let resources = VfResources {
        num_vsis: 1,
        queue_pairs: 4,
        max_vectors: 5,
        max_frame: 9728,
        capabilities: Capabilities::L2,
        rss_key_size: 52,
        rss_lut_size: 64,
        vsi_id: 0x1234,
        vsi_type: 6,
        qset_handle: 0,
        default_mac: MacAddress([2, 0, 0, 0, 0, 9]),
    };
    let mut out = Vec::new();
    Reply::VfResources(resources).emit(&mut out);
    assert_eq!(&out[20..22], [0x34, 0x12]);
    assert_eq!(&out[30..36], [2, 0, 0, 0, 0, 9]);
}

#[test]
fn addresses_keep_their_kind() {
    for kind in [MacFilterKind::Legacy, MacFilterKind::Primary, MacFilterKind::Extra] {
        assert_eq!(EthAddr::new(MacAddress::BROADCAST, kind).kind(), kind);
    }
}
