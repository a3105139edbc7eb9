//! The client as stories, and under a server that sends what it likes.

use proptest::prelude::*;
use vmbus_protocol::{
    GpadlRange, INTERFACE_NETWORK, OfferFlags, STATUS_UNSUCCESSFUL, SupportedFeatures, UserDefined,
};

use super::*;

fn supported(value: u32, features: Option<SupportedFeatures>) -> ServerMessage {
    let state = ConnectionState::Successful;
    ServerMessage::VersionResponse(VersionResponse::Supported { state, value, features })
}

fn offer(channel: u32) -> Offer {
    Offer {
        interface_id: INTERFACE_NETWORK,
        instance_id: Guid::new(channel, 0, 0, [0; 8]),
        flags: OfferFlags::empty(),
        mmio_megabytes: 0,
        mmio_megabytes_optional: 0,
        user_defined: UserDefined::default(),
        subchannel_index: 0,
        channel: ChannelId(channel),
        monitor_id: None,
        is_dedicated_interrupt: true,
        connection_id: 0x2000 + channel,
    }
}

fn hear(client: &mut Client, message: &ServerMessage) -> Result<(), ClientError> {
    client.handle_message(message.emit().as_bytes())
}

/// What the client sent, and where to.
fn said(client: &mut Client) -> Vec<(u32, ClientMessage)> {
    let connection = client.connection();
    std::iter::from_fn(|| client.next_message())
        .map(|(id, bytes)| (id, ClientMessage::parse(bytes.as_bytes(), connection).unwrap()))
        .collect()
}

fn events(client: &mut Client) -> Vec<ClientEvent> {
    std::iter::from_fn(|| client.next_event()).collect()
}

/// Connected by 5.3, with channel 1.
fn connected() -> Client {
    let config = ClientConfig { max_version: Version::Iron, ..ClientConfig::default() };
    let mut client = Client::new(config);
    client.connect().unwrap();
    hear(&mut client, &supported(0x77, None)).unwrap();
    hear(&mut client, &ServerMessage::OfferChannel(offer(1))).unwrap();
    said(&mut client);
    events(&mut client);
    client
}

fn pages(count: u64) -> Gpadl {
    Gpadl::new(vec![GpadlRange::pages((0..count).collect()).unwrap()]).unwrap()
}

#[test]
fn versions_are_asked_for_from_the_highest_down() {
    let mut client = Client::new(ClientConfig::default());
    client.connect().unwrap();
    assert_eq!(client.connect(), Err(ClientError::Connection));
    let refused = ServerMessage::VersionResponse(VersionResponse::Unsupported);
    for version in Version::ALL {
        let contact = said(&mut client);
        let [(id, ClientMessage::InitiateContact(contact))] = contact[..] else {
            panic!("{contact:?}")
        };
        assert_eq!(contact.version, version as u32);
        assert_eq!(id, if version >= Version::Rs3_1 { 4 } else { 1 });
        assert_eq!(contact.client_id.is_some(), version == Version::Copper);
        hear(&mut client, &refused).unwrap();
    }
    assert_eq!(events(&mut client), [ClientEvent::ConnectionFailed]);
    assert!(hear(&mut client, &refused).is_err());
}

#[test]
fn messages_go_where_the_server_says() {
    let config = ClientConfig { features: FeatureFlags::CLIENT_ID, ..ClientConfig::default() };
    let mut client = Client::new(config);
    client.connect().unwrap();
    said(&mut client);
    // Features that were not asked for do not count.
    let features = SupportedFeatures { features: FeatureFlags::all(), monitor_pages: None };
    hear(&mut client, &supported(0x1234, Some(features))).unwrap();
    assert_eq!(said(&mut client), [(0x1234, ClientMessage::RequestOffers)]);
    let negotiated = Negotiated { version: Version::Copper, features: FeatureFlags::CLIENT_ID };
    assert_eq!(events(&mut client), [ClientEvent::Connected(negotiated)]);
    assert!(hear(&mut client, &supported(1, None)).is_err(), "it is connected");

    let mut client = Client::new(ClientConfig { max_version: Version::Win8, ..config });
    client.connect().unwrap();
    said(&mut client);
    hear(&mut client, &supported(Version::Win8 as u32, None)).unwrap();
    assert_eq!(said(&mut client), [(1, ClientMessage::RequestOffers)]);
}

#[test]
fn a_server_that_lacks_something_is_not_asked_again() {
    let mut client = Client::new(ClientConfig::default());
    client.connect().unwrap();
    hear(
        &mut client,
        &ServerMessage::VersionResponse(VersionResponse::Supported {
            state: ConnectionState::FailedLowResources,
            value: 0,
            features: None,
        }),
    )
    .unwrap();
    assert_eq!(events(&mut client), [ClientEvent::ConnectionFailed]);
    client.connect().unwrap();
}

#[test]
fn a_channel_is_opened_used_closed_and_its_memory_taken_back() {
    let mut client = connected();
    let channel = ChannelId(1);
    let gpadl = client.create_gpadl(channel, &pages(40)).unwrap();
    assert_eq!(said(&mut client).len(), 2, "a header and a body");
    let open = OpenParams {
        ring_gpadl: gpadl,
        downstream_page_offset: 20,
        target_vp: Some(VpIndex(0)),
        user_data: [0; USER_DEFINED_SIZE],
    };
    assert_eq!(client.open(channel, open), Err(ClientError::GpadlState(gpadl)), "not accepted yet");
    hear(&mut client, &ServerMessage::GpadlCreated { channel, gpadl, status: 0 }).unwrap();
    client.open(channel, open).unwrap();
    assert_eq!(client.teardown_gpadl(gpadl), Err(ClientError::GpadlState(gpadl)));
    let result = |open_id, status| ServerMessage::OpenChannelResult { channel, open_id, status };
    assert!(hear(&mut client, &result(99, 0)).is_err());
    hear(&mut client, &result(1, 0)).unwrap();
    client.modify(channel, VpIndex(1)).unwrap();
    assert_eq!(client.modify(channel, VpIndex(2)), Err(ClientError::ChannelState(channel)));
    hear(&mut client, &ServerMessage::ModifyChannelResponse { channel, status: 0 }).unwrap();
    client.close(channel).unwrap();
    assert_eq!(client.release(channel), Err(ClientError::ChannelState(channel)), "it has memory");
    client.teardown_gpadl(gpadl).unwrap();
    hear(&mut client, &ServerMessage::GpadlTorndown(gpadl)).unwrap();
    assert!(hear(&mut client, &ServerMessage::GpadlTorndown(gpadl)).is_err());
    assert_eq!(
        events(&mut client),
        [
            ClientEvent::GpadlCreated { channel, gpadl, accepted: true },
            ClientEvent::Opened { channel, success: true },
            ClientEvent::Modified { channel, success: true },
            ClientEvent::GpadlTorndown { channel, gpadl },
        ]
    );
    client.release(channel).unwrap();
    assert_eq!(client.offers().count(), 0);
}

#[test]
fn a_rescinded_channel_is_closed_and_only_to_be_released() {
    let mut client = connected();
    let channel = ChannelId(1);
    let gpadl = client.create_gpadl(channel, &pages(4)).unwrap();
    hear(&mut client, &ServerMessage::RescindChannelOffer(channel)).unwrap();
    assert!(hear(&mut client, &ServerMessage::RescindChannelOffer(channel)).is_err());
    assert_eq!(client.create_gpadl(channel, &pages(4)), Err(ClientError::NoChannel(channel)));
    let status = STATUS_UNSUCCESSFUL;
    hear(&mut client, &ServerMessage::GpadlCreated { channel, gpadl, status }).unwrap();
    said(&mut client);
    client.release(channel).unwrap();
    assert_eq!(said(&mut client), [(0x77, ClientMessage::RelIdReleased(channel))]);
    hear(&mut client, &ServerMessage::OfferChannel(offer(1))).unwrap();
}

#[test]
fn an_unload_ends_all_that_was_under_way() {
    let mut client = connected();
    client.create_gpadl(ChannelId(1), &pages(4)).unwrap();
    client.unload().unwrap();
    assert_eq!(client.unload(), Err(ClientError::Connection));
    hear(&mut client, &ServerMessage::OfferChannel(offer(2))).unwrap();
    assert_eq!(client.gpadls(ChannelId(1)).count(), 1, "the server may still use it");
    hear(&mut client, &ServerMessage::UnloadComplete).unwrap();
    assert_eq!(events(&mut client), [ClientEvent::Unloaded]);
    assert_eq!((client.offers().count(), client.connection()), (0, None));
    client.connect().unwrap();
}

proptest! {
    /// A server that sends anything is survived; what it can make the client hold is bounded.
    #[test]
    fn messages_at_random_do_no_harm(
        messages in proptest::collection::vec(
            (0u8..31, proptest::collection::vec(0u8..4, 0..200)), 0..60
        )
    ) {
        let mut client = connected();
        let _ = client.create_gpadl(ChannelId(1), &pages(4));
        for (number, rest) in messages {
            let bytes = [vec![number, 0, 0, 0, 0, 0, 0, 0], rest].concat();
            let _ = client.handle_message(&bytes);
            prop_assert!(client.offers().count() < MAX_CHANNELS as usize);
        }
        let _ = (events(&mut client), client.unload());
    }
}
