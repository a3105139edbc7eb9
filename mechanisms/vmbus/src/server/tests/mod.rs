//! The server as stories, under the hostile rules of SPEC-VMBUS §8.2, and under messages at random.

mod random;

use vmbus_protocol::{
    ClientMessage, GpadlRange, INTERFACE_NETWORK, INTERFACE_VPCI, InitiateContact,
    OpenReservedChannel, STATUS_CONNECTION_REFUSED, STATUS_SUCCESS, STATUS_UNSUCCESSFUL,
    ServerMessage, SignalParameters, TargetInfo, TlConnectRequest, VersionResponse,
};

use super::*;

/// Devices that do at once what they are told, or only when asked to.
#[derive(Default)]
struct Devices {
    /// Effects that were seen, in order.
    seen: Vec<Effect>,
    /// What is not answered yet.
    owed: VecDeque<Effect>,
}

struct Host {
    server: Server,
    devices: Devices,
    automatic: bool,
}

impl Host {
    fn new() -> Self {
        let server = Server::new(ServerConfig::default());
        Self { server, devices: Devices::default(), automatic: true }
    }

    /// With one network channel, and a guest that has asked for it: channel 1.
    fn with_offer(version: Version) -> (Self, OfferHandle) {
        let mut host = Self::new();
        let offer = host.server.offer(network(1)).unwrap();
        host.connect(version);
        let messages = host.send(&ClientMessage::RequestOffers).unwrap();
        assert!(matches!(
            messages[..],
            [ServerMessage::OfferChannel(_), ServerMessage::AllOffersDelivered]
        ));
        (host, offer)
    }

    fn connect(&mut self, version: Version) {
        let answer = self.send(&contact(version as u32)).unwrap();
        assert!(
            matches!(
                answer[..],
                [ServerMessage::VersionResponse(VersionResponse::Supported { .. })]
            ),
            "{answer:?}"
        );
    }

    /// Sends a message, lets devices work, and returns what the server answers.
    fn send(&mut self, message: &ClientMessage) -> Result<Vec<ServerMessage>, Refusal> {
        let result = self.server.handle_message(message.emit().as_bytes());
        self.work();
        let answers = self.answers();
        match result {
            Ok(()) => Ok(answers),
            Err(refusal) if answers.is_empty() => Err(refusal),
            // A refusal that the guest is told of.
            Err(_) => Ok(answers),
        }
    }

    fn answers(&mut self) -> Vec<ServerMessage> {
        // Answers to versions and unloads come while there is no connection; the form of none depends on it.
        let newest = Negotiated { version: Version::Copper, features: FeatureFlags::all() };
        std::iter::from_fn(|| self.server.next_message())
            .map(|m| ServerMessage::parse(m.message.as_bytes(), Some(newest)).unwrap())
            .collect()
    }

    fn work(&mut self) {
        while let Some(effect) = self.server.next_effect() {
            self.devices.seen.push(effect.clone());
            self.devices.owed.push_back(effect);
            while self.automatic && !self.devices.owed.is_empty() {
                self.answer_one(true);
            }
        }
    }

    /// The devices do what they were asked first.
    fn answer_one(&mut self, success: bool) {
        let Some(effect) = self.devices.owed.pop_front() else { return };
        // A device that was revoked meanwhile is refused, and that is fine.
        let _ = match effect {
            Effect::GpadlCreated { offer, gpadl, .. } => {
                self.server.gpadl_complete(offer, gpadl, success)
            }
            Effect::GpadlTeardown { offer, gpadl } => self.server.gpadl_released(offer, gpadl),
            Effect::Open { offer, .. } => self.server.open_complete(offer, success),
            Effect::Close { offer } => self.server.close_complete(offer),
            Effect::Modify { offer, .. } => self.server.modify_complete(offer, success),
            _ => Ok(()),
        };
    }

    fn answer(&mut self, success: bool) -> Vec<ServerMessage> {
        self.answer_one(success);
        self.work();
        self.answers()
    }

    fn gpadl(&mut self, channel: u32, gpadl: u32, pages: u64) -> Vec<ServerMessage> {
        let mut answers = Vec::new();
        let range = GpadlRange::pages((0..pages).collect()).unwrap();
        let pages = Gpadl::new(vec![range]).unwrap();
        for message in pages.messages(ChannelId(channel), GpadlId(gpadl)) {
            // Bodies that follow a refused header are refused without an answer.
            answers.extend(self.send(&message).unwrap_or_default());
        }
        answers
    }

    fn seen(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.devices.seen)
    }
}

fn network(instance: u32) -> OfferParams {
    OfferParams::new(INTERFACE_NETWORK, Guid::new(instance, 0, 0, [0; 8]))
}

fn contact(version: u32) -> ClientMessage {
    let multi_client = version >= Version::Rs3_1 as u32;
    ClientMessage::InitiateContact(InitiateContact {
        version,
        target_message_vp: VpIndex(3),
        target: TargetInfo {
            sint: if multi_client { VMBUS_SINT } else { 0 },
            vtl: 0,
            features: FeatureFlags::from_bits_retain(if version >= Version::Copper as u32 {
                0x2F
            } else {
                0
            }),
        },
        interrupt_page: 0,
        monitor_pages: None,
        client_id: None,
    })
}

fn open(channel: u32, open_id: u32, gpadl: u32, offset: u32) -> ClientMessage {
    ClientMessage::OpenChannel(vmbus_protocol::OpenChannel {
        channel: ChannelId(channel),
        open_id,
        ring_gpadl: GpadlId(gpadl),
        target_vp: Some(VpIndex(0)),
        downstream_page_offset: offset,
        user_data: [0; USER_DEFINED_SIZE],
        signal: None,
    })
}

fn created(channel: u32, gpadl: u32, status: i32) -> ServerMessage {
    ServerMessage::GpadlCreated { channel: ChannelId(channel), gpadl: GpadlId(gpadl), status }
}

fn opened(channel: u32, open_id: u32, status: i32) -> ServerMessage {
    let channel = ChannelId(channel);
    ServerMessage::OpenChannelResult { channel, open_id, status: status.cast_unsigned() }
}

fn teardown(channel: u32, gpadl: u32) -> ClientMessage {
    ClientMessage::GpadlTeardown { channel: ChannelId(channel), gpadl: GpadlId(gpadl) }
}

#[test]
fn every_version_is_answered_in_its_own_form() {
    for version in Version::ALL {
        let mut host = Host::new();
        host.server.handle_message(contact(version as u32).emit().as_bytes()).unwrap();
        let answer = host.server.next_message().unwrap();
        let length = answer.message.as_bytes().len();
        assert_eq!(length, if version == Version::Copper { 20 } else { 16 });
        let honoured = version >= Version::Win8_1;
        assert_eq!(answer.target_vp, VpIndex(if honoured { 3 } else { 0 }));
        let value = if version >= Version::Rs3_1 { 4 } else { version as u32 };
        assert_eq!(answer.message.as_bytes()[12..16], value.to_le_bytes());
        let granted = host.server.connection().unwrap().features;
        assert_eq!(granted.bits(), if version == Version::Copper { 0x2D } else { 0 });
    }
}

#[test]
fn versions_that_are_not_spoken_are_refused_in_the_short_form() {
    let mut host = Host::new();
    for version in [0xD, 0x1_0001, 0x0002_0005, 0x0005_0004, 0x0006_0001, u32::MAX] {
        let answer = host.send(&contact(version)).unwrap();
        assert_eq!(answer, [ServerMessage::VersionResponse(VersionResponse::Unsupported)]);
        assert_eq!(host.server.connection(), None);
    }
    let config = ServerConfig { max_version: Version::Iron, ..ServerConfig::default() };
    host.server = Server::new(config);
    let answer = host.send(&contact(Version::Copper as u32)).unwrap();
    assert_eq!(answer, [ServerMessage::VersionResponse(VersionResponse::Unsupported)]);
    host.connect(Version::Iron);
}

#[test]
fn contact_for_another_interrupt_source_changes_nothing() {
    let (mut host, _) = Host::with_offer(Version::Iron);
    let ClientMessage::InitiateContact(mut other) = contact(Version::Iron as u32) else { panic!() };
    other.target.sint = 7;
    let message = ClientMessage::InitiateContact(other);
    let refused = host.server.handle_message(message.emit().as_bytes());
    assert_eq!(refused, Err(Refusal::NoServer { sint: 7, vtl: 0 }));
    let answer = host.server.next_message().unwrap();
    assert_eq!((answer.target_sint, answer.target_vp), (7, VpIndex(3)));
    assert!(host.server.connection().is_some());
    other.target = TargetInfo { sint: 2, vtl: 2, ..other.target };
    let message = ClientMessage::InitiateContact(other);
    assert_eq!(host.send(&message), Err(Refusal::NoServer { sint: 2, vtl: 2 }));
}

#[test]
fn a_channel_is_opened_closed_and_opened_again_while_it_closes() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    assert_eq!(host.gpadl(1, 10, 40), [created(1, 10, STATUS_SUCCESS)]);
    assert_eq!(host.send(&open(1, 77, 10, 20)).unwrap(), [opened(1, 77, STATUS_SUCCESS)]);
    let effects = host.seen();
    let Some(Effect::Open { request, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!((request.connection_id, request.event_flag), (0x2001, 1));
    assert_eq!(
        host.send(&open(1, 78, 10, 20)),
        Err(Refusal::ChannelState { channel: ChannelId(1), message: MessageType::OpenChannel })
    );
    assert_eq!(host.send(&teardown(1, 10)), Err(Refusal::GpadlState { gpadl: GpadlId(10) }));

    host.automatic = false;
    assert_eq!(host.send(&ClientMessage::CloseChannel(ChannelId(1))).unwrap(), []);
    assert_eq!(host.send(&open(1, 79, 10, 20)).unwrap(), [], "the device is still closing");
    assert_eq!(host.seen(), [Effect::Close { offer }]);
    assert_eq!(host.answer(true), []);
    assert!(matches!(host.seen()[..], [Effect::Open { .. }]));
    assert_eq!(host.answer(true), [opened(1, 79, STATUS_SUCCESS)]);
    // The ring is let go of only after the channel.
    assert_eq!(host.send(&ClientMessage::CloseChannel(ChannelId(1))).unwrap(), []);
    assert_eq!(host.send(&teardown(1, 10)).unwrap(), []);
    assert_eq!(host.seen(), [Effect::Close { offer }]);
    assert_eq!(host.answer(true), []);
    assert_eq!(host.seen(), [Effect::GpadlTeardown { offer, gpadl: GpadlId(10) }]);
    assert_eq!(host.answer(true), [ServerMessage::GpadlTorndown(GpadlId(10))]);
}

#[test]
fn an_open_that_the_device_refuses_leaves_the_channel_closed() {
    let (mut host, _) = Host::with_offer(Version::Win8);
    host.gpadl(1, 10, 40);
    host.automatic = false;
    host.send(&open(1, 5, 10, 20)).unwrap();
    assert_eq!(host.answer(false), [opened(1, 5, STATUS_UNSUCCESSFUL)]);
    host.automatic = true;
    assert_eq!(host.send(&open(1, 6, 10, 20)).unwrap(), [opened(1, 6, STATUS_SUCCESS)]);
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let (mut host, _) = Host::with_offer(Version::Iron);
    host.gpadl(1, 10, 40);
    for offset in [0, 1, 39, 40, u32::MAX] {
        let answer = host.send(&open(1, 1, 10, offset)).unwrap();
        assert_eq!(answer, [opened(1, 1, STATUS_UNSUCCESSFUL)], "{offset}");
    }
    assert_eq!(host.send(&open(1, 1, 11, 20)).unwrap(), [opened(1, 1, STATUS_UNSUCCESSFUL)]);
    let range = |byte_offset, byte_count, pages: u64| GpadlRange {
        byte_offset,
        byte_count,
        page_frames: (0..pages).collect(),
    };
    let odd = [
        vec![range(0, 4096 * 4 - 8, 4)],
        vec![range(8, 4096 * 4, 5)],
        vec![range(0, 8192, 2), range(0, 8192, 2)],
    ];
    for (number, ranges) in (20..).zip(odd) {
        let gpadl = Gpadl::new(ranges).unwrap();
        for message in gpadl.messages(ChannelId(1), GpadlId(number)) {
            host.send(&message).unwrap();
        }
        let answer = host.send(&open(1, 1, number, 2)).unwrap();
        assert_eq!(answer, [opened(1, 1, STATUS_UNSUCCESSFUL)]);
    }
}

#[test]
fn a_rescinded_channel_is_released_by_the_guest_before_it_comes_back() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    host.gpadl(1, 10, 40);
    host.send(&open(1, 1, 10, 20)).unwrap();
    host.server.revoke(offer).unwrap();
    assert_eq!(host.answers(), [ServerMessage::RescindChannelOffer(ChannelId(1))]);
    assert_eq!(host.server.revoke(offer), Err(ServerError::NoOffer));
    let again = host.server.offer(network(1)).unwrap();
    assert_eq!(host.answers(), [], "the guest still knows the old one");
    host.seen();
    // The server uses nothing of it, and gives all back at once.
    assert_eq!(host.send(&ClientMessage::CloseChannel(ChannelId(1))).unwrap(), []);
    assert_eq!(host.gpadl(1, 11, 3), [created(1, 11, STATUS_SUCCESS)]);
    for gpadl in [10, 11] {
        let answer = host.send(&teardown(1, gpadl)).unwrap();
        assert_eq!(answer, [ServerMessage::GpadlTorndown(GpadlId(gpadl))]);
    }
    assert_eq!(host.send(&open(1, 4, 10, 20)).unwrap(), [opened(1, 4, STATUS_UNSUCCESSFUL)]);
    assert_eq!(host.seen(), []);
    let answer = host.send(&ClientMessage::RelIdReleased(ChannelId(1))).unwrap();
    assert!(matches!(answer[..], [ServerMessage::OfferChannel(_)]));
    assert_eq!(host.server.channel_id(again), Some(ChannelId(1)));
}

#[test]
fn a_rescind_answers_what_is_outstanding() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    host.automatic = false;
    host.gpadl(1, 10, 40);
    assert_eq!(host.answer(true), [created(1, 10, STATUS_SUCCESS)]);
    host.gpadl(1, 11, 2);
    assert_eq!(host.answer(true), [created(1, 11, STATUS_SUCCESS)]);
    assert_eq!(host.send(&teardown(1, 11)).unwrap(), []);
    host.gpadl(1, 12, 2);
    host.send(&open(1, 9, 10, 20)).unwrap();
    host.server.revoke(offer).unwrap();
    assert_eq!(
        host.answers(),
        [
            opened(1, 9, STATUS_UNSUCCESSFUL),
            ServerMessage::GpadlTorndown(GpadlId(11)),
            created(1, 12, STATUS_UNSUCCESSFUL),
            ServerMessage::RescindChannelOffer(ChannelId(1)),
        ]
    );
    assert_eq!(host.server.open_complete(offer, true), Err(ServerError::NotAsked));
    let late = host.server.gpadl_complete(offer, GpadlId(12), true);
    assert_eq!(late, Err(ServerError::NotAsked));
    assert_eq!(host.server.gpadl_released(offer, GpadlId(11)), Err(ServerError::NotAsked));
}

#[test]
fn unload_waits_for_the_devices() {
    let (mut host, offer) = Host::with_offer(Version::Win8_1);
    host.gpadl(1, 10, 40);
    host.gpadl(1, 11, 4);
    host.send(&open(1, 1, 10, 20)).unwrap();
    host.automatic = false;
    host.seen();
    assert_eq!(host.send(&ClientMessage::Unload).unwrap(), []);
    assert_eq!(host.seen(), [Effect::Close { offer }]);
    let late = ClientMessage::RequestOffers;
    assert!(host.send(&late).is_err());
    assert_eq!(host.answer(true), []);
    let gpadls = [10, 11].map(|gpadl| Effect::GpadlTeardown { offer, gpadl: GpadlId(gpadl) });
    assert_eq!(host.seen(), gpadls);
    assert_eq!(host.answer(true), []);
    assert_eq!(host.answer(true), [ServerMessage::UnloadComplete]);
    assert_eq!(host.seen(), [Effect::Disconnected]);
    assert!(host.server.is_idle());
    host.automatic = true;
    host.connect(Version::Copper);
    let answer = host.send(&ClientMessage::RequestOffers).unwrap();
    assert_eq!(answer.len(), 2, "it is offered again");
}

#[test]
fn a_new_contact_releases_everything_first() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    host.gpadl(1, 10, 40);
    host.automatic = false;
    host.send(&open(1, 1, 10, 20)).unwrap();
    // In the middle of an open, the guest reboots.
    assert_eq!(host.send(&contact(Version::Copper as u32)).unwrap(), []);
    assert_eq!(host.send(&contact(Version::Win10 as u32)).unwrap(), [], "the last one counts");
    host.seen();
    assert_eq!(host.answer(true), []);
    assert_eq!(host.seen(), [Effect::Close { offer }]);
    host.answer(true);
    let answers = host.answer(true);
    assert_eq!(
        answers,
        [ServerMessage::VersionResponse(VersionResponse::Supported {
            state: vmbus_protocol::ConnectionState::Successful,
            value: Version::Win10 as u32,
            features: None,
        })]
    );
    assert_eq!(host.server.gpadls, 0);
    assert_eq!(host.server.gpadl_pages, 0);
}

#[test]
fn offers_are_sorted_and_added_while_connected() {
    let mut host = Host::new();
    for instance in [3, 1, 2] {
        host.server.offer(network(instance)).unwrap();
    }
    assert_eq!(host.server.offer(network(2)), Err(ServerError::Duplicate));
    let vpci = OfferParams::new(INTERFACE_VPCI, Guid::new(9, 0, 0, [0; 8]));
    host.server.offer(vpci).unwrap();
    host.connect(Version::Iron);
    let instances = |messages: &[ServerMessage]| {
        let of = |message: &ServerMessage| match message {
            ServerMessage::OfferChannel(offer) => Some(offer.instance_id.data1),
            _ => None,
        };
        messages.iter().filter_map(of).collect::<Vec<_>>()
    };
    let answers = host.send(&ClientMessage::RequestOffers).unwrap();
    assert_eq!(instances(&answers), [9, 1, 2, 3]);
    assert_eq!(answers.last(), Some(&ServerMessage::AllOffersDelivered));
    let twice = host.send(&ClientMessage::RequestOffers);
    assert_eq!(twice, Err(Refusal::OffersRequestedTwice));
    host.server.offer(network(4)).unwrap();
    assert_eq!(instances(&host.answers()), [4]);
}

#[test]
fn subchannels_follow_their_primary_channel_and_go_before_it() {
    let (mut host, primary) = Host::with_offer(Version::Iron);
    let subchannel = |index| OfferParams { subchannel_index: index, ..network(1) };
    assert_eq!(host.server.offer(subchannel(1)), Err(ServerError::NoPrimary));
    host.gpadl(1, 10, 40);
    host.send(&open(1, 1, 10, 20)).unwrap();
    host.server.offer(subchannel(1)).unwrap();
    let second = host.server.offer(subchannel(2)).unwrap();
    assert_eq!(host.answers().len(), 2);
    host.server.revoke(primary).unwrap();
    let rescinds = [2, 3, 1].map(|id| ServerMessage::RescindChannelOffer(ChannelId(id)));
    assert_eq!(host.answers(), rescinds);
    assert_eq!(host.server.revoke(second), Err(ServerError::NoOffer));

    let (mut host, _) = Host::with_offer(Version::Iron);
    host.gpadl(1, 10, 40);
    host.send(&open(1, 1, 10, 20)).unwrap();
    let first = host.server.offer(subchannel(1)).unwrap();
    host.seen();
    assert_eq!(host.answers().len(), 1);
    assert_eq!(host.send(&ClientMessage::Unload).unwrap(), [ServerMessage::UnloadComplete]);
    assert!(host.seen().contains(&Effect::Withdrawn { offer: first }));
    host.connect(Version::Iron);
    assert_eq!(host.send(&ClientMessage::RequestOffers).unwrap().len(), 2);
}

#[test]
fn interrupts_are_moved_once_at_a_time() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    let modify = |vp: Option<u32>| ClientMessage::ModifyChannel {
        channel: ChannelId(1),
        target_vp: vp.map(VpIndex),
    };
    let response = |status| ServerMessage::ModifyChannelResponse { channel: ChannelId(1), status };
    assert_eq!(host.send(&modify(Some(1))).unwrap(), [response(STATUS_UNSUCCESSFUL)]);
    host.gpadl(1, 10, 40);
    host.send(&open(1, 1, 10, 20)).unwrap();
    assert_eq!(host.send(&modify(None)).unwrap(), [response(STATUS_UNSUCCESSFUL)]);
    host.automatic = false;
    host.seen();
    assert_eq!(host.send(&modify(Some(1))).unwrap(), []);
    assert!(host.send(&modify(Some(2))).is_err());
    assert_eq!(host.seen(), [Effect::Modify { offer, target_vp: VpIndex(1) }]);
    assert_eq!(host.answer(true), [response(STATUS_SUCCESS)]);

    // Before 5.3 the last one wins, and nothing is answered.
    let (mut host, offer) = Host::with_offer(Version::Rs3_0);
    host.gpadl(1, 10, 40);
    host.send(&open(1, 1, 10, 20)).unwrap();
    host.automatic = false;
    host.seen();
    for vp in 1..5 {
        assert_eq!(host.send(&modify(Some(vp))).unwrap(), []);
    }
    assert_eq!(host.answer(true), []);
    assert_eq!(host.answer(true), []);
    let moved = [1, 4].map(|vp| Effect::Modify { offer, target_vp: VpIndex(vp) });
    assert_eq!(host.seen(), moved);
}

#[test]
fn a_reserved_channel_outlives_the_connection() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    host.gpadl(1, 10, 40);
    let reserved = ClientMessage::OpenReservedChannel(OpenReservedChannel {
        channel: ChannelId(1),
        target_vp: VpIndex(1),
        target_sint: 2,
        ring_gpadl: GpadlId(10),
        downstream_page_offset: 20,
    });
    assert_eq!(host.send(&reserved).unwrap(), [opened(1, 0, STATUS_SUCCESS)]);
    assert_eq!(host.gpadl(1, 11, 2), [created(1, 11, STATUS_UNSUCCESSFUL)]);
    assert!(host.send(&ClientMessage::CloseChannel(ChannelId(1))).is_err());
    assert_eq!(host.send(&ClientMessage::Unload).unwrap(), [ServerMessage::UnloadComplete]);
    host.connect(Version::Iron);
    let all = host.send(&ClientMessage::RequestOffers).unwrap();
    assert_eq!(all, [ServerMessage::AllOffersDelivered], "it is in use");
    host.seen();
    let close = ClientMessage::CloseReservedChannel {
        channel: ChannelId(1),
        target_vp: VpIndex(1),
        target_sint: 2,
    };
    let answers = host.send(&close).unwrap();
    assert_eq!(answers[0], ServerMessage::CloseReservedResponse(ChannelId(1)));
    assert!(matches!(answers[1..], [ServerMessage::OfferChannel(_)]), "{answers:?}");
    let gone = [Effect::Close { offer }, Effect::GpadlTeardown { offer, gpadl: GpadlId(10) }];
    assert_eq!(host.seen(), gone);
}

#[test]
fn a_reserved_channel_that_does_not_open_goes_with_the_connection() {
    let (mut host, offer) = Host::with_offer(Version::Iron);
    host.gpadl(1, 10, 40);
    host.automatic = false;
    let reserved = ClientMessage::OpenReservedChannel(OpenReservedChannel {
        channel: ChannelId(1),
        target_vp: VpIndex(1),
        target_sint: 2,
        ring_gpadl: GpadlId(10),
        downstream_page_offset: 20,
    });
    host.send(&reserved).unwrap();
    assert_eq!(host.send(&ClientMessage::Unload).unwrap(), [ServerMessage::UnloadComplete]);
    host.seen();
    let effect = host.devices.owed.pop_front();
    assert!(matches!(effect, Some(Effect::Open { .. })));
    host.server.open_complete(offer, false).unwrap();
    host.devices.owed.clear();
    host.automatic = true;
    host.work();
    assert_eq!(host.answers(), [opened(1, 0, STATUS_UNSUCCESSFUL)]);
    assert_eq!(host.seen(), [Effect::GpadlTeardown { offer, gpadl: GpadlId(10) }]);
    assert!(host.server.is_idle());
}

#[test]
fn a_paused_guest_hears_nothing_until_it_resumes() {
    let (mut host, _) = Host::with_offer(Version::Copper);
    assert_eq!(host.send(&ClientMessage::Pause).unwrap(), [ServerMessage::PauseResponse]);
    host.server.offer(network(2)).unwrap();
    assert_eq!(host.answers(), []);
    let refused = host.send(&ClientMessage::CloseChannel(ChannelId(1)));
    assert_eq!(refused, Err(Refusal::Paused(MessageType::CloseChannel)));
    let answers = host.send(&ClientMessage::Resume).unwrap();
    assert!(matches!(answers[..], [ServerMessage::OfferChannel(_)]));
    assert!(host.send(&ClientMessage::Resume).is_err());
    host.send(&ClientMessage::Pause).unwrap();
    assert_eq!(host.send(&ClientMessage::Unload).unwrap(), [ServerMessage::UnloadComplete]);
}

#[test]
fn hvsockets_are_refused_by_a_message_that_the_version_has() {
    let guid = INTERFACE_VPCI;
    let request = TlConnectRequest { endpoint_id: guid, service_id: guid, silo_id: None };
    let request = ClientMessage::TlConnectRequest(request);
    let (mut host, _) = Host::with_offer(Version::Win10);
    assert_eq!(host.send(&request).unwrap(), []);
    let (mut host, _) = Host::with_offer(Version::Rs3_0);
    assert_eq!(
        host.send(&request).unwrap(),
        [ServerMessage::TlConnectResult {
            endpoint_id: guid,
            service_id: guid,
            status: STATUS_CONNECTION_REFUSED
        }]
    );
}

#[test]
fn a_guest_chooses_how_it_signals_but_not_what_another_channel_has() {
    let mut host = Host::new();
    host.server.offer(network(1)).unwrap();
    host.server.offer(network(2)).unwrap();
    host.connect(Version::Copper);
    host.send(&ClientMessage::RequestOffers).unwrap();
    let long = |channel: u32, connection_id, event_flag| {
        let ClientMessage::OpenChannel(mut open) = open(channel, 1, 10 + channel, 20) else {
            panic!()
        };
        open.signal =
            Some(SignalParameters { connection_id, event_flag, redirect_interrupt: false });
        ClientMessage::OpenChannel(open)
    };
    host.gpadl(1, 11, 40);
    host.gpadl(2, 12, 40);
    assert_eq!(host.send(&long(1, 0x5000, 99)).unwrap(), [opened(1, 1, STATUS_SUCCESS)]);
    for (connection_id, event_flag) in
        [(0x5000, 98), (0x5001, 99), (0x5001, 0), (0x5001, 2048), (1, 98), (4, 98)]
    {
        let answer = host.send(&long(2, connection_id, event_flag)).unwrap();
        assert_eq!(answer, [opened(2, 1, STATUS_UNSUCCESSFUL)], "{connection_id} {event_flag}");
    }
    assert_eq!(host.send(&long(2, 0x5001, 98)).unwrap(), [opened(2, 1, STATUS_SUCCESS)]);
}

#[test]
fn messages_of_a_server_and_of_no_connection_are_refused() {
    let mut host = Host::new();
    for message in MessageType::ALL {
        let mut bytes = [0u8; 240];
        bytes[0] = *message as u8;
        let early = [MessageType::InitiateContact, MessageType::CloseReservedChannel];
        if !early.contains(message) {
            assert!(host.server.handle_message(&bytes).is_err(), "{message:?}");
        }
    }
    let (mut host, _) = Host::with_offer(Version::Copper);
    for number in [1u8, 2, 4, 6, 10, 12, 15, 17, 20, 23, 24, 26, 28, 0, 30, 255] {
        let mut bytes = [0u8; 240];
        bytes[0] = number;
        let refused = host.server.handle_message(&bytes);
        assert!(matches!(refused, Err(Refusal::Message(_))), "{number}");
    }
    assert_eq!(host.answers(), []);
    assert!(host.server.connection().is_some());
}

#[test]
fn gpadls_are_bounded_and_named_once() {
    let config = ServerConfig { max_gpadls: 3, max_gpadl_pages: 100, ..ServerConfig::default() };
    let mut host = Host { server: Server::new(config), ..Host::new() };
    host.server.offer(network(1)).unwrap();
    host.connect(Version::Iron);
    host.send(&ClientMessage::RequestOffers).unwrap();
    assert_eq!(host.gpadl(1, 1, 60), [created(1, 1, STATUS_SUCCESS)]);
    assert_eq!(host.gpadl(1, 1, 2), [created(1, 1, STATUS_UNSUCCESSFUL)], "the name is used");
    assert_eq!(host.gpadl(1, 2, 41), [created(1, 2, STATUS_UNSUCCESSFUL)], "too large");
    assert_eq!(host.gpadl(1, 2, 5), [created(1, 2, STATUS_SUCCESS)]);
    assert_eq!(host.gpadl(1, 3, 5), [created(1, 3, STATUS_SUCCESS)]);
    assert_eq!(host.gpadl(1, 4, 5), [created(1, 4, STATUS_UNSUCCESSFUL)], "too many");
    assert_eq!(host.gpadl(9, 5, 5), [created(9, 5, STATUS_UNSUCCESSFUL)], "no such channel");
    assert_eq!(host.send(&teardown(1, 9)), Err(Refusal::GpadlState { gpadl: GpadlId(9) }));
    host.send(&teardown(1, 1)).unwrap();
    assert!(host.send(&teardown(1, 1)).is_err());
    assert_eq!((host.server.gpadls, host.server.gpadl_pages), (2, 10));
}

#[test]
fn a_guest_that_takes_no_messages_is_not_listened_to() {
    let (mut host, _) = Host::with_offer(Version::Iron);
    let bad = open(1, 1, 99, 20).emit();
    let mut answered = 0;
    while host.server.takes_messages() {
        assert!(host.server.handle_message(bad.as_bytes()).is_err());
        answered += 1;
        assert!(answered < 10_000);
    }
    assert_eq!(host.server.handle_message(bad.as_bytes()), Err(Refusal::Busy));
    assert_eq!(host.answers().len(), answered);
    assert!(host.server.takes_messages());
}
