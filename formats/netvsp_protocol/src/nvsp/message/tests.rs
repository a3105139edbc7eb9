use proptest::prelude::*;

use super::*;
use crate::nvsp::ChannelType;

fn packet() -> impl Strategy<Value = SendRndisPacket> {
    (any::<bool>(), prop::option::of((0..0xFFFF_FFFFu32, any::<u32>()))).prop_map(
        |(control, section)| SendRndisPacket {
            channel_type: if control { ChannelType::Control } else { ChannelType::Data },
            section,
        },
    )
}

fn path() -> impl Strategy<Value = DataPath> {
    prop_oneof![Just(DataPath::Synthetic), Just(DataPath::Vf)]
}

fn version() -> impl Strategy<Value = NvspVersion> {
    prop::sample::select(NvspVersion::NEWEST_FIRST.to_vec())
}

fn client() -> impl Strategy<Value = ClientMessage> {
    use ClientMessage as M;
    prop_oneof![
        any::<u32>().prop_map(|version| M::Init { version }),
        any::<(u32, u32)>().prop_map(|(major, minor)| M::SendNdisVersion { major, minor }),
        any::<(u32, u16)>().prop_map(|(gpadl, id)| M::SendReceiveBuffer { gpadl, id }),
        any::<u16>().prop_map(|id| M::RevokeReceiveBuffer { id }),
        any::<(u32, u16)>().prop_map(|(gpadl, id)| M::SendSendBuffer { gpadl, id }),
        any::<u16>().prop_map(|id| M::RevokeSendBuffer { id }),
        packet().prop_map(M::SendRndisPacket),
        any::<u32>().prop_map(|s| M::SendRndisPacketComplete { status: NvspStatus(s) }),
        any::<(u32, u64)>().prop_map(|(mtu, bits)| M::SendNdisConfig {
            mtu,
            capabilities: NvspCapabilities::from_bits_retain(bits)
        }),
        path().prop_map(|path| M::SwitchDataPath { path }),
        any::<(u8, u8, u16, u32)>().prop_map(|(object_type, revision, size, oid)| M::OidQueryEx {
            header: NdisObjectHeader { object_type, revision, size: size.into() },
            oid
        }),
        any::<(u32, u32)>().prop_map(|(operation, count)| M::Subchannel { operation, count }),
        (135..=136u32).prop_map(M::PacketDirect),
        prop_oneof![109..=124u32, 126..=127u32, Just(130)].prop_map(M::Obsolete),
    ]
}

fn server() -> impl Strategy<Value = ServerMessage> {
    use ServerMessage as M;
    let section = any::<[u32; 4]>().prop_map(|[a, b, c, d]| ReceiveBufferSection {
        offset: a,
        sub_allocation_size: b,
        sub_allocations: c,
        end_offset: d,
    });
    prop_oneof![
        any::<[u32; 3]>().prop_map(|[a, b, c]| M::InitComplete {
            negotiated_version: a,
            max_mdl_chain: b,
            status: NvspStatus(c)
        }),
        section.prop_map(|section| M::SendReceiveBufferComplete {
            status: NvspStatus::SUCCESS,
            section: Some(section)
        }),
        (2..u32::MAX).prop_map(|status| M::SendReceiveBufferComplete {
            status: NvspStatus(status),
            section: None
        }),
        any::<(u32, u32)>().prop_map(|(s, section_size)| M::SendSendBufferComplete {
            status: NvspStatus(s),
            section_size
        }),
        packet().prop_map(M::SendRndisPacket),
        any::<u32>().prop_map(|s| M::SendRndisPacketComplete { status: NvspStatus(s) }),
        any::<(bool, u32)>().prop_map(|(allocated, serial_number)| M::SendVfAssociation {
            allocated,
            serial_number
        }),
        path().prop_map(|path| M::SwitchDataPath { path }),
        any::<(u32, u32)>()
            .prop_map(|(s, bytes)| M::OidQueryExComplete { status: NdisStatus(s), bytes }),
        any::<(u32, u32)>()
            .prop_map(|(s, count)| M::SubchannelComplete { status: NvspStatus(s), count }),
        any::<[u32; 16]>().prop_map(|table| M::SendIndirectionTable { table }),
    ]
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(client in client(), server in server(), version in version()) {
        let bytes = client.emit(version);
        prop_assert!(bytes.len() >= version.message_size());
        prop_assert_eq!(ClientMessage::parse(&bytes), Ok(client));
        let bytes = server.emit(version);
        prop_assert!(bytes.len() >= version.message_size());
        prop_assert_eq!(ServerMessage::parse(&bytes), Ok(server));
    }

    #[test]
    fn messages_need_their_fields_and_no_more(
        client in client(), server in server(), cut in 0usize..80,
    ) {
        // A shorter message parses to the same, or not at all; padding does not matter.
        let bytes = client.emit(NvspVersion::V61);
        if let Ok(seen) = ClientMessage::parse(&bytes[..cut.min(bytes.len())]) {
            prop_assert_eq!(seen, client);
        }
        let bytes = server.emit(NvspVersion::V61);
        if let Ok(seen) = ServerMessage::parse(&bytes[..cut.min(bytes.len())]) {
            prop_assert_eq!(seen, server);
        }
    }

    #[test]
    fn random_bytes_never_panic(
        kind in prop_oneof![0..140u32, any::<u32>()], body in prop::collection::vec(any::<u8>(), 0..90),
    ) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(body);
        for length in [0, 3, 4, bytes.len()] {
            let _ = ClientMessage::parse(&bytes[..length.min(bytes.len())]);
            let _ = ServerMessage::parse(&bytes[..length.min(bytes.len())]);
        }
    }

    #[test]
    fn the_frame_paths_parser_agrees_with_the_other(bytes in prop::array::uniform12(any::<u8>())) {
        let mut message = [0u8; 16];
        message[0] = 107;
        message[4..].copy_from_slice(&bytes);
        message[5..8].fill(0);
        let quick = SendRndisPacket::parse(&message);
        prop_assert_eq!(
            quick.map(ClientMessage::SendRndisPacket), ClientMessage::parse(&message)
        );
        let (low, high) = message.split_at(8);
        let words = [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
        prop_assert_eq!(SendRndisPacket::from_qwords(words), quick);
        if let Ok(packet) = quick
            && packet.section.is_some()
        {
            prop_assert_eq!(packet.emit(), message);
        }
    }
}

#[test]
fn messages_are_the_bytes_of_the_specification() {
    let init = ClientMessage::Init { version: NvspVersion::V61.to_wire() }.emit(NvspVersion::V61);
    let mut expected = vec![1, 0, 0, 0, 1, 0, 6, 0, 1, 0, 6, 0];
    expected.resize(40, 0);
    assert_eq!(*init, *expected);

    let complete = ServerMessage::accept(NvspVersion::V5).emit(NvspVersion::V5);
    let mut expected = vec![2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 34, 0, 0, 0, 1, 0, 0, 0];
    expected.resize(28, 0);
    assert_eq!(*complete, *expected);

    let config = ClientMessage::SendNdisConfig {
        mtu: 1514,
        capabilities: NvspCapabilities::SRIOV | NvspCapabilities::IEEE_8021Q,
    };
    let mut expected = vec![125, 0, 0, 0, 0xea, 5, 0, 0, 0, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0, 0, 0];
    expected.resize(28, 0);
    assert_eq!(*config.emit(NvspVersion::V5), *expected);

    let association = ServerMessage::SendVfAssociation { allocated: true, serial_number: 7 };
    let mut expected = vec![128, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
    expected.resize(40, 0);
    assert_eq!(*association.emit(NvspVersion::V61), *expected);

    let packet = SendRndisPacket { channel_type: ChannelType::Data, section: None };
    assert_eq!(packet.emit(), [107, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(NvspStatus::SUCCESS.packet_complete(), [108, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(NvspStatus::from_packet_complete(&[108, 0, 0, 0, 2, 0, 0, 0]), Some(NvspStatus(2)));
    assert_eq!(NvspStatus::from_packet_complete(&[107, 0, 0, 0, 2, 0, 0, 0]), None);
}

#[test]
fn the_send_table_follows_its_header_at_once_whatever_the_version() {
    for version in NvspVersion::NEWEST_FIRST {
        let bytes =
            ServerMessage::SendIndirectionTable { table: std::array::from_fn(|i| i as u32 % 3) }
                .emit(version);
        assert_eq!(bytes.len(), 76);
        assert_eq!(bytes[..16], [134, 0, 0, 0, 16, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..20], [1, 0, 0, 0]);
    }
}

#[test]
fn what_only_the_other_end_may_send_is_refused() {
    for kind in [2u32, 102, 105, 128, 132, 134] {
        let mut bytes = [0u8; 40];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        assert_eq!(ClientMessage::parse(&bytes), Err(ParseError::MessageType(kind)));
    }
    for kind in [1u32, 100, 101, 103, 104, 106, 109, 125, 130, 131, 135, 136] {
        let mut bytes = [0u8; 40];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        assert_eq!(ServerMessage::parse(&bytes), Err(ParseError::MessageType(kind)));
    }
}

#[test]
fn a_table_outside_of_its_message_is_refused() {
    let table = ServerMessage::SendIndirectionTable { table: [0; 16] };
    let mut bytes = table.emit(NvspVersion::V5).to_vec();
    bytes[8..12].copy_from_slice(&13u32.to_le_bytes());
    assert!(matches!(ServerMessage::parse(&bytes), Err(ParseError::Range { offset: 13, .. })));
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(ServerMessage::parse(&bytes).is_err());
    bytes[4] = 15;
    assert!(matches!(ServerMessage::parse(&bytes), Err(ParseError::Field { value: 15, .. })));
}
