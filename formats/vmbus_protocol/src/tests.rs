//! The byte vectors of SPEC-VMBUS §8.1, round trips, and bytes at random.

use proptest::{collection::vec, option, prelude::*};

use crate::*;

const COPPER: Negotiated =
    Negotiated { version: Version::Copper, features: FeatureFlags::from_bits_retain(0xFF) };

fn plain(version: Version) -> Option<Negotiated> {
    Some(Negotiated::plain(version))
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn initiate_contact_has_the_published_bytes() {
    let client_id = Guid::new(0x0403_0201, 0x0605, 0x0807, [9, 10, 11, 12, 13, 14, 15, 16]);
    let mut contact = InitiateContact {
        version: 0x0006_0000,
        target_message_vp: VpIndex(0),
        target: TargetInfo { sint: 2, vtl: 0, features: FeatureFlags::from_bits_retain(0x2F) },
        interrupt_page: 0,
        monitor_pages: None,
        client_id: Some(client_id),
    };
    let mut expected =
        hex("0e 00 00 00 00 00 00 00 00 00 06 00 00 00 00 00 02 00 00 00 2f 00 00 00");
    expected.extend([0; 16]);
    expected.extend(1..=16);
    let message = ClientMessage::InitiateContact(contact);
    assert_eq!(message.emit().as_bytes(), expected);
    assert_eq!(ClientMessage::parse(&expected, None), Ok(message));

    contact.version = 0x0005_0003;
    contact.client_id = None;
    contact.target.features = FeatureFlags::empty();
    let mut expected =
        hex("0e 00 00 00 00 00 00 00 03 00 05 00 00 00 00 00 02 00 00 00 00 00 00 00");
    expected.extend([0; 16]);
    assert_eq!(ClientMessage::InitiateContact(contact).emit().as_bytes(), expected);
}

#[test]
fn version_responses_have_the_published_bytes() {
    let refusal = ServerMessage::VersionResponse(VersionResponse::Unsupported);
    let bytes = hex("0f 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
    assert_eq!(refusal.emit().as_bytes(), bytes);
    let accepted = ServerMessage::VersionResponse(VersionResponse::Supported {
        state: ConnectionState::Successful,
        value: 0x1234,
        features: None,
    });
    let bytes = hex("0f 00 00 00 00 00 00 00 01 00 00 00 34 12 00 00");
    assert_eq!(accepted.emit().as_bytes(), bytes);
    let long = |monitor_pages| {
        ServerMessage::VersionResponse(VersionResponse::Supported {
            state: ConnectionState::Successful,
            value: 4,
            features: Some(SupportedFeatures { features: FeatureFlags::CLIENT_ID, monitor_pages }),
        })
    };
    assert_eq!(long(None).emit().as_bytes().len(), 8 + 12);
    let pages = Some(MonitorPages { parent_to_child: 0x1000, child_to_parent: 0x2000 });
    assert_eq!(long(pages).emit().as_bytes().len(), 8 + 32);
    assert_eq!(long(pages).emit().as_bytes()[24..32], 0x1000u64.to_le_bytes());
}

#[test]
fn a_gpadl_of_40_pages_has_the_published_bytes() {
    let frames = (0x100..0x128).collect::<Vec<u64>>();
    let gpadl = Gpadl::new(vec![GpadlRange::pages(frames.clone()).unwrap()]).unwrap();
    let messages = gpadl.messages(ChannelId(1), GpadlId(0xE1E10));
    let [header, body] = &messages[..] else { panic!("{messages:?}") };
    let mut expected = hex("08 00 00 00 00 00 00 00 01 00 00 00 10 1e 0e 00 48 01 01 00");
    expected.extend(0x28000u64.to_le_bytes());
    expected.extend(frames[..26].iter().flat_map(|frame| frame.to_le_bytes()));
    assert_eq!(header.emit().as_bytes(), expected);
    assert_eq!(expected.len(), 236);
    let mut expected = hex("09 00 00 00 00 00 00 00 00 00 00 00 10 1e 0e 00");
    expected.extend(frames[26..].iter().flat_map(|frame| frame.to_le_bytes()));
    assert_eq!(body.emit().as_bytes(), expected);
    assert_eq!(expected.len(), 128);
}

#[test]
fn open_close_and_unload_have_the_published_bytes() {
    let open = ClientMessage::OpenChannel(OpenChannel {
        channel: ChannelId(1),
        open_id: 0,
        ring_gpadl: GpadlId(0xE1E10),
        target_vp: Some(VpIndex(3)),
        downstream_page_offset: 0x14,
        user_data: [0x55; 120],
        signal: None,
    });
    let mut expected =
        hex("05 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 10 1e 0e 00 03 00 00 00 14 00 00 00");
    expected.extend([0x55; 120]);
    assert_eq!(open.emit().as_bytes(), expected);
    assert_eq!(ClientMessage::parse(&expected, plain(Version::Iron)), Ok(open));
    let close = ClientMessage::CloseChannel(ChannelId(5));
    assert_eq!(close.emit().as_bytes(), hex("07 00 00 00 00 00 00 00 05 00 00 00"));
    assert_eq!(ClientMessage::Unload.emit().as_bytes(), hex("10 00 00 00 00 00 00 00"));
}

#[test]
fn the_network_interface_has_the_published_bytes() {
    use zerocopy::IntoBytes;
    let bytes = hex("63 51 61 f8 3e df c5 46 91 3f f2 d2 f9 65 ed 0e");
    assert_eq!(INTERFACE_NETWORK.as_bytes(), bytes);
    assert_eq!(channel_connection_id(1, VMBUS_SINT, 0), 0x2001);
}

#[test]
fn messages_have_the_published_sizes() {
    // Bodies, without the header; what is variable at its shortest.
    let guid = INTERFACE_VPCI;
    let client: Vec<(ClientMessage, usize)> = vec![
        (ClientMessage::RequestOffers, 0),
        (ClientMessage::GpadlTeardown { channel: ChannelId(1), gpadl: GpadlId(1) }, 8),
        (ClientMessage::RelIdReleased(ChannelId(1)), 4),
        (
            ClientMessage::OpenReservedChannel(OpenReservedChannel {
                channel: ChannelId(1),
                target_vp: VpIndex(0),
                target_sint: 2,
                ring_gpadl: GpadlId(1),
                downstream_page_offset: 2,
            }),
            20,
        ),
        (
            ClientMessage::CloseReservedChannel {
                channel: ChannelId(1),
                target_vp: VpIndex(0),
                target_sint: 2,
            },
            12,
        ),
        (
            ClientMessage::TlConnectRequest(TlConnectRequest {
                endpoint_id: guid,
                service_id: guid,
                silo_id: None,
            }),
            32,
        ),
        (
            ClientMessage::TlConnectRequest(TlConnectRequest {
                endpoint_id: guid,
                service_id: guid,
                silo_id: Some(guid),
            }),
            48,
        ),
        (ClientMessage::ModifyChannel { channel: ChannelId(1), target_vp: None }, 8),
        (ClientMessage::ModifyConnection(None), 16),
        (ClientMessage::Pause, 0),
        (ClientMessage::Resume, 0),
    ];
    for (message, size) in client {
        assert_eq!(message.emit().as_bytes().len(), 8 + size, "{message:?}");
    }
    let server = [
        (ServerMessage::RescindChannelOffer(ChannelId(1)), 4),
        (ServerMessage::AllOffersDelivered, 0),
        (ServerMessage::OpenChannelResult { channel: ChannelId(1), open_id: 1, status: 0 }, 12),
        (ServerMessage::GpadlCreated { channel: ChannelId(1), gpadl: GpadlId(1), status: 0 }, 12),
        (ServerMessage::GpadlTorndown(GpadlId(1)), 4),
        (ServerMessage::UnloadComplete, 0),
        (ServerMessage::CloseReservedResponse(ChannelId(1)), 4),
        (
            ServerMessage::TlConnectResult {
                endpoint_id: guid,
                service_id: guid,
                status: STATUS_CONNECTION_REFUSED,
            },
            36,
        ),
        (ServerMessage::ModifyChannelResponse { channel: ChannelId(1), status: 0 }, 8),
        (ServerMessage::ModifyConnectionResponse(ConnectionState::Successful), 1),
        (ServerMessage::PauseResponse, 0),
    ];
    for (message, size) in server {
        assert_eq!(message.emit().as_bytes().len(), 8 + size, "{message:?}");
    }
}

#[test]
fn messages_of_the_wrong_end_are_refused_in_both_directions() {
    for message in MessageType::ALL {
        let mut bytes = [0u8; MAX_MESSAGE_SIZE];
        bytes[0] = *message as u8;
        let (by_server, by_client) = match message.sender() {
            Sender::Server => (ClientMessage::parse(&bytes, Some(COPPER)).err(), None),
            Sender::Client => (None, ServerMessage::parse(&bytes, Some(COPPER)).err()),
        };
        let refused = by_server.or(by_client);
        assert_eq!(refused, Some(MessageError::WrongSender(*message)));
        // Nothing but contact, and the end of a reserved channel, before there is a connection.
        let early = ClientMessage::parse(&bytes, None).is_ok();
        let allowed = [MessageType::InitiateContact, MessageType::CloseReservedChannel];
        assert_eq!(early, allowed.contains(message), "{message:?}");
    }
    for number in [0u32, 30, 31, 0xFFFF_FFFF] {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let unknown = MessageError::Unknown(number);
        assert_eq!(ClientMessage::parse(&bytes, Some(COPPER)), Err(unknown));
        assert_eq!(ServerMessage::parse(&bytes, Some(COPPER)), Err(unknown));
    }
}

#[test]
fn messages_exist_from_their_version_on() {
    let from = |message: MessageType| {
        Version::ALL.into_iter().rev().find(|version| message.is_allowed(plain(*version)))
    };
    assert_eq!(from(MessageType::OpenChannel), Some(Version::Win8));
    assert_eq!(from(MessageType::OpenReservedChannel), Some(Version::Win10));
    assert_eq!(from(MessageType::TlConnectRequest), Some(Version::Win10));
    assert_eq!(from(MessageType::ModifyChannel), Some(Version::Rs3_0));
    assert_eq!(from(MessageType::ModifyChannelResponse), Some(Version::Iron));
    assert_eq!(from(MessageType::Pause), None);
    assert!(MessageType::Pause.is_allowed(Some(COPPER)));
    assert_eq!(from(MessageType::ModifyConnection), None);
    assert!(MessageType::ModifyConnection.is_allowed(Some(COPPER)));
}

#[test]
fn gpadls_that_cannot_be_are_refused() {
    let header = |byte_count, range_count, words: &[u64]| {
        GpadlAssembly::new(&GpadlHeader {
            channel: ChannelId(1),
            gpadl: GpadlId(1),
            byte_count,
            range_count,
            words: words.iter().copied().collect(),
        })
    };
    assert_eq!(header(0, 1, &[]), Err(GpadlError::ByteCount(0)));
    assert_eq!(header(17, 1, &[]), Err(GpadlError::ByteCount(17)));
    assert_eq!(header(16, 0, &[]), Err(GpadlError::NoRange));
    assert_eq!(header(16, 2, &[]), Err(GpadlError::CutOff { index: 2 }));
    let word = |byte_count: u64, byte_offset: u64| byte_count | byte_offset << 32;
    for (byte_count, byte_offset) in [(0, 0), (1, 4096), (1, 0xFFFF_FFFF)] {
        let bad = Gpadl::parse(&[word(byte_count, byte_offset), 1, 2], 1);
        assert!(matches!(bad, Err(GpadlError::BadRange { index: 0, .. })));
    }
    assert_eq!(Gpadl::parse(&[word(8192, 0), 1], 1), Err(GpadlError::CutOff { index: 0 }));
    assert_eq!(Gpadl::parse(&[word(1, 0), 1], 2), Err(GpadlError::CutOff { index: 1 }));
    assert_eq!(
        Gpadl::parse(&[word(0xFFFF_FFFF, 0xFFF), 1], 1),
        Err(GpadlError::CutOff { index: 0 })
    );
    // A message that is longer than what it carries.
    let mut assembly = header(16, 1, &[word(4096, 0)]).unwrap();
    assert_eq!(assembly.finish(), None);
    assembly.add(&[7, 8, 9]);
    let gpadl = assembly.finish().unwrap().unwrap();
    assert_eq!(gpadl.single_range().unwrap().page_frames, [7]);
}

fn guid() -> impl Strategy<Value = Guid> {
    any::<[u8; 16]>().prop_map(|bytes| zerocopy::transmute!(bytes))
}

fn features() -> impl Strategy<Value = FeatureFlags> {
    any::<u32>().prop_map(FeatureFlags::from_bits_retain)
}

fn pages() -> impl Strategy<Value = Option<MonitorPages>> {
    option::of((1u64.., 1u64..).prop_map(|(parent_to_child, child_to_parent)| MonitorPages {
        parent_to_child,
        child_to_parent,
    }))
}

fn connection() -> impl Strategy<Value = Negotiated> {
    (proptest::sample::select(Version::ALL.to_vec()), features()).prop_map(|(version, features)| {
        let has_features = version >= Version::Copper;
        Negotiated {
            version,
            features: if has_features { features } else { FeatureFlags::empty() },
        }
    })
}

fn contact() -> impl Strategy<Value = InitiateContact> {
    let version = prop_oneof![
        proptest::sample::select(Version::ALL.to_vec()).prop_map(|version| version as u32),
        any::<u32>()
    ];
    let parts = (version, any::<u32>(), any::<(u8, u8, u32, u64)>(), pages(), option::of(guid()));
    parts.prop_map(|(version, vp, (sint, vtl, features, page), monitor_pages, client_id)| {
        let from = |first: Version| version >= first as u32;
        InitiateContact {
            version,
            target_message_vp: VpIndex(vp),
            target: TargetInfo {
                sint: if from(Version::Rs3_1) { sint } else { 0 },
                vtl: if from(Version::Rs4) { vtl } else { 0 },
                features: FeatureFlags::from_bits_retain(if from(Version::Copper) {
                    features
                } else {
                    0
                }),
            },
            interrupt_page: if from(Version::Rs3_1) { 0 } else { page },
            monitor_pages,
            client_id: client_id.filter(|_| from(Version::Copper)),
        }
    })
}

/// A connection and a message that may be sent over it.
fn client_message() -> impl Strategy<Value = (Negotiated, ClientMessage)> {
    connection().prop_flat_map(|negotiated| {
        let id = || any::<u32>().prop_map(ChannelId);
        let vp = || any::<u32>().prop_map(|vp| (vp != u32::MAX).then_some(VpIndex(vp)));
        let open = (id(), any::<(u32, u32, u32)>(), vp(), vec(any::<u8>(), 120)).prop_flat_map(
            move |(channel, (open_id, gpadl, offset), target_vp, user_data)| {
                any::<(u32, u16, bool)>().prop_map(
                    move |(connection_id, event_flag, redirect_interrupt)| {
                        let signal =
                            SignalParameters { connection_id, event_flag, redirect_interrupt };
                        ClientMessage::OpenChannel(OpenChannel {
                            channel,
                            open_id,
                            ring_gpadl: GpadlId(gpadl),
                            target_vp,
                            downstream_page_offset: offset,
                            user_data: user_data.clone().try_into().unwrap(),
                            signal: negotiated.long_open().then_some(signal),
                        })
                    },
                )
            },
        );
        let header = (any::<(u32, u32, u16, u16)>(), vec(any::<u64>(), 0..=27)).prop_map(
            |((channel, gpadl, byte_count, range_count), words)| {
                ClientMessage::GpadlHeader(GpadlHeader {
                    channel: ChannelId(channel),
                    gpadl: GpadlId(gpadl),
                    byte_count,
                    range_count,
                    words: words.into_iter().collect(),
                })
            },
        );
        let body = (any::<(u32, u32)>(), vec(any::<u64>(), 0..=28)).prop_map(
            |((number, gpadl), words)| {
                ClientMessage::GpadlBody(GpadlBody {
                    number,
                    gpadl: GpadlId(gpadl),
                    words: words.into_iter().collect(),
                })
            },
        );
        let silo = negotiated.version >= Version::Rs5;
        let connect = (guid(), guid(), option::of(guid())).prop_map(
            move |(endpoint_id, service_id, silo_id)| {
                let silo_id = silo_id.filter(|_| silo);
                ClientMessage::TlConnectRequest(TlConnectRequest {
                    endpoint_id,
                    service_id,
                    silo_id,
                })
            },
        );
        let message = prop_oneof![
            Just(ClientMessage::RequestOffers),
            open,
            id().prop_map(ClientMessage::CloseChannel),
            header,
            body,
            (id(), any::<u32>()).prop_map(|(channel, gpadl)| {
                ClientMessage::GpadlTeardown { channel, gpadl: GpadlId(gpadl) }
            }),
            id().prop_map(ClientMessage::RelIdReleased),
            contact().prop_map(ClientMessage::InitiateContact),
            Just(ClientMessage::Unload),
            any::<(u32, u32, u32, u32, u32)>().prop_map(|(channel, vp, sint, gpadl, offset)| {
                ClientMessage::OpenReservedChannel(OpenReservedChannel {
                    channel: ChannelId(channel),
                    target_vp: VpIndex(vp),
                    target_sint: sint,
                    ring_gpadl: GpadlId(gpadl),
                    downstream_page_offset: offset,
                })
            }),
            any::<(u32, u32, u32)>().prop_map(|(channel, vp, target_sint)| {
                let (channel, target_vp) = (ChannelId(channel), VpIndex(vp));
                ClientMessage::CloseReservedChannel { channel, target_vp, target_sint }
            }),
            connect,
            (id(), vp()).prop_map(|(channel, target_vp)| ClientMessage::ModifyChannel {
                channel,
                target_vp
            }),
            pages().prop_map(ClientMessage::ModifyConnection),
            Just(ClientMessage::Pause),
            Just(ClientMessage::Resume),
        ];
        (Just(negotiated), message)
    })
}

fn offer() -> impl Strategy<Value = Offer> {
    let ids = (guid(), guid(), any::<(u16, u16, u16, u16)>(), vec(any::<u8>(), 120));
    (ids, any::<(u32, bool, u32)>(), option::of(0u8..0xFF)).prop_map(
        |(
            (interface_id, instance_id, numbers, user),
            (channel, dedicated, connection_id),
            monitor_id,
        )| {
            let (flags, mmio_megabytes, mmio_megabytes_optional, subchannel_index) = numbers;
            Offer {
                interface_id,
                instance_id,
                flags: OfferFlags::from_bits_retain(flags),
                mmio_megabytes,
                mmio_megabytes_optional,
                user_defined: UserDefined(user.try_into().unwrap()),
                subchannel_index,
                channel: ChannelId(channel),
                monitor_id,
                is_dedicated_interrupt: dedicated,
                connection_id,
            }
        },
    )
}

fn state() -> impl Strategy<Value = ConnectionState> {
    proptest::sample::select(vec![
        ConnectionState::Successful,
        ConnectionState::FailedLowResources,
        ConnectionState::FailedUnknown,
    ])
}

fn server_message() -> impl Strategy<Value = ServerMessage> {
    let id = || any::<u32>().prop_map(ChannelId);
    let more = option::of(
        (features(), pages())
            .prop_map(|(features, monitor_pages)| SupportedFeatures { features, monitor_pages }),
    );
    let version = prop_oneof![
        Just(VersionResponse::Unsupported),
        (state(), any::<u32>(), more).prop_map(|(state, value, features)| {
            VersionResponse::Supported { state, value, features }
        }),
    ];
    prop_oneof![
        offer().prop_map(ServerMessage::OfferChannel),
        id().prop_map(ServerMessage::RescindChannelOffer),
        Just(ServerMessage::AllOffersDelivered),
        (id(), any::<(u32, u32)>()).prop_map(|(channel, (open_id, status))| {
            ServerMessage::OpenChannelResult { channel, open_id, status }
        }),
        (id(), any::<(u32, i32)>()).prop_map(|(channel, (gpadl, status))| {
            ServerMessage::GpadlCreated { channel, gpadl: GpadlId(gpadl), status }
        }),
        any::<u32>().prop_map(|gpadl| ServerMessage::GpadlTorndown(GpadlId(gpadl))),
        version.prop_map(ServerMessage::VersionResponse),
        Just(ServerMessage::UnloadComplete),
        id().prop_map(ServerMessage::CloseReservedResponse),
        (guid(), guid(), any::<i32>()).prop_map(|(endpoint_id, service_id, status)| {
            ServerMessage::TlConnectResult { endpoint_id, service_id, status }
        }),
        (id(), any::<i32>()).prop_map(|(channel, status)| {
            ServerMessage::ModifyChannelResponse { channel, status }
        }),
        state().prop_map(ServerMessage::ModifyConnectionResponse),
        Just(ServerMessage::PauseResponse),
    ]
}

fn gpadl() -> impl Strategy<Value = Gpadl> {
    vec((1u32..100_000, 0u32..4096), 1..8).prop_map(|ranges| {
        let range = |(byte_count, byte_offset): (u32, u32)| GpadlRange {
            byte_offset,
            byte_count,
            page_frames: (0..u64::from((byte_offset + byte_count).div_ceil(4096))).collect(),
        };
        Gpadl::new(ranges.into_iter().map(range).collect()).unwrap()
    })
}

proptest! {
    #[test]
    fn client_messages_survive((negotiated, message) in client_message()) {
        prop_assume!(message.message_type().is_allowed(Some(negotiated)));
        let bytes = message.emit();
        prop_assert_eq!(ClientMessage::parse(bytes.as_bytes(), Some(negotiated)), Ok(message.clone()));
        // The slot of the hypervisor carries them all.
        let slot = MessageSlot::vmbus(bytes.as_bytes()).unwrap();
        prop_assert_eq!(slot.message(), Some(bytes.as_bytes()));
        // Cut short, they are refused, but for what may be of any length.
        let short = &bytes.as_bytes()[..bytes.as_bytes().len() - 1];
        let parsed = ClientMessage::parse(short, Some(negotiated));
        prop_assert_ne!(parsed, Ok(message));
    }

    #[test]
    fn server_messages_survive(message in server_message()) {
        let bytes = message.emit();
        prop_assert_eq!(ServerMessage::parse(bytes.as_bytes(), Some(COPPER)), Ok(message));
    }

    #[test]
    fn random_bytes_are_read_without_harm(
        number in 0u32..32, rest in vec(any::<u8>(), 0..250), negotiated in option::of(connection())
    ) {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.extend(rest);
        let _ = ClientMessage::parse(&bytes, negotiated);
        let _ = ServerMessage::parse(&bytes, negotiated);
    }

    #[test]
    fn gpadls_survive_their_messages(gpadl in gpadl()) {
        let messages = gpadl.messages(ChannelId(3), GpadlId(4));
        let mut messages = messages.iter();
        let Some(ClientMessage::GpadlHeader(header)) = messages.next() else { panic!("no header") };
        let mut assembly = GpadlAssembly::new(header).unwrap();
        for message in messages {
            prop_assert_eq!(assembly.finish(), None);
            let ClientMessage::GpadlBody(body) = message else { panic!("{message:?}") };
            assembly.add(&body.words);
        }
        prop_assert_eq!(assembly.finish(), Some(Ok(gpadl)));
    }

    #[test]
    fn random_range_data_is_read_without_harm(
        words in vec(prop_oneof![any::<u64>(), 0u64..100_000], 0..100), count: u16
    ) {
        if let Ok(gpadl) = Gpadl::parse(&words, count) {
            prop_assert!(gpadl.emit().len() <= words.len());
            prop_assert!(Gpadl::new(gpadl.ranges().to_vec()).is_some());
        }
    }

    #[test]
    fn user_defined_bytes_survive(
        provider in vec(any::<u8>(), 112), message: bool, flags in any::<(bool, bool, bool)>(),
        version: u32, silo_id in guid(), bytes in vec(any::<u8>(), 120)
    ) {
        let pipe_type = if message { PipeType::Message } else { PipeType::Byte };
        let provider = provider.try_into().unwrap();
        let pipe = PipeUserDefined { pipe_type, provider, gpa_direct: flags.0 };
        prop_assert_eq!(UserDefined::from(pipe).pipe(), Some(pipe));
        let socket = HvsockUserDefined {
            pipe_type,
            is_for_guest_accept: flags.1,
            is_for_container: flags.2,
            version,
            silo_id,
        };
        prop_assert_eq!(UserDefined::from(socket).hvsock(), Some(socket));
        let any = UserDefined(bytes.try_into().unwrap());
        let _ = (any.pipe(), any.hvsock());
    }
}
