//! VMBus control messages: what parses is emitted as it was understood; a server whose guest and devices do anything
//! in any order; a client whose server now and then says something else. The first byte chooses.
#![no_main]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vmbus::{
    client::{Client, ClientConfig, ClientEvent, OpenParams},
    server::{Effect, OfferHandle, OfferParams, Server, ServerConfig},
};
use vmbus_protocol::{
    ChannelId, ClientMessage, FeatureFlags, Gpadl, GpadlId, GpadlRange, Guid, INTERFACE_NETWORK,
    InitiateContact, MAX_CHANNELS, Negotiated, OpenChannel, OpenReservedChannel, ServerMessage,
    TargetInfo, USER_DEFINED_SIZE, VMBUS_SINT, Version, VpIndex,
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => round_trip(input),
        1 | 2 => server(input),
        _ => client(input),
    }
});

fn round_trip(mut input: Input<'_>) {
    let version = input.one_of(&Version::ALL);
    let features = FeatureFlags::from_bits_retain(input.dword());
    let connection = version.map(|version| Negotiated { version, features });
    let bytes = input.rest();
    if let Ok(message) = ClientMessage::parse(bytes, connection) {
        let again = ClientMessage::parse(message.emit().as_bytes(), connection);
        assert_eq!(again.as_ref(), Ok(&message));
        assert!(ServerMessage::parse(bytes, connection).is_err());
    }
    if let Ok(message) = ServerMessage::parse(bytes, connection) {
        let again = ServerMessage::parse(message.emit().as_bytes(), connection);
        assert_eq!(again.as_ref(), Ok(&message));
    }
}

/// A message of any type whose fields are the numbers of single bytes, or just bytes.
fn raw(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![input.byte() & 31, 0, 0, 0, 0, 0, 0, 0];
    let small = input.bit();
    let body = input.short();
    if small {
        bytes.extend(body.iter().flat_map(|byte| u32::from(*byte).to_le_bytes()));
    } else {
        bytes.extend(body);
    }
    bytes
}

fn pages(input: &mut Input<'_>) -> Gpadl {
    let count = u64::from(input.byte() % 100) + 1;
    let range = GpadlRange::pages((0..count).collect()).expect("some pages");
    Gpadl::new(vec![range]).expect("one range")
}

fn guest_message(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.byte() % 16;
    let channel = ChannelId(u32::from(input.byte() % 5));
    let gpadl = GpadlId(u32::from(input.byte() % 6));
    let message = match kind {
        0 | 1 => {
            let version =
                input.one_of(&Version::ALL).map_or_else(|| input.dword(), |version| version as u32);
            let multi_client = version >= Version::Rs3_1 as u32;
            let known = version >= Version::Copper as u32;
            let features = if known { input.dword() } else { 0 };
            ClientMessage::InitiateContact(InitiateContact {
                version,
                target_message_vp: VpIndex(3),
                target: TargetInfo {
                    sint: if multi_client { VMBUS_SINT } else { 0 },
                    vtl: 0,
                    features: FeatureFlags::from_bits_retain(features),
                },
                interrupt_page: 0,
                monitor_pages: None,
                client_id: None,
            })
        }
        2 => ClientMessage::RequestOffers,
        3..=5 => {
            let messages = pages(input).messages(channel, gpadl);
            messages[input.below(messages.len())].clone()
        }
        6 | 7 => ClientMessage::OpenChannel(OpenChannel {
            channel,
            open_id: 7,
            ring_gpadl: gpadl,
            target_vp: Some(VpIndex(0)),
            downstream_page_offset: input.byte().into(),
            user_data: [0; USER_DEFINED_SIZE],
            signal: None,
        }),
        8 => ClientMessage::OpenReservedChannel(OpenReservedChannel {
            channel,
            target_vp: VpIndex(0),
            target_sint: 2,
            ring_gpadl: gpadl,
            downstream_page_offset: 2,
        }),
        9 => ClientMessage::CloseReservedChannel { channel, target_vp: VpIndex(0), target_sint: 2 },
        10 => ClientMessage::CloseChannel(channel),
        11 => ClientMessage::GpadlTeardown { channel, gpadl },
        12 => ClientMessage::RelIdReleased(channel),
        13 => ClientMessage::ModifyChannel { channel, target_vp: Some(VpIndex(1)) },
        14 => match input.byte() % 3 {
            0 => ClientMessage::Unload,
            1 => ClientMessage::Pause,
            _ => ClientMessage::Resume,
        },
        _ => return raw(input),
    };
    message.emit().as_bytes().to_vec()
}

/// What a device believes of its channel, from effects alone.
#[derive(Default)]
struct Device {
    open: bool,
    gpadls: BTreeSet<GpadlId>,
}

#[derive(Default)]
struct Devices {
    known: BTreeMap<OfferHandle, Device>,
    owed: VecDeque<Effect>,
}

impl Devices {
    fn device(&mut self, offer: OfferHandle) -> &mut Device {
        self.known.get_mut(&offer).expect("an offer that was made")
    }

    fn take(&mut self, server: &mut Server) {
        while let Some(effect) = server.next_effect() {
            match &effect {
                Effect::Open { offer, request } => {
                    let device = self.device(*offer);
                    assert!(!device.open, "opened twice");
                    assert!(device.gpadls.contains(&request.ring_gpadl));
                    device.open = true;
                }
                Effect::Close { offer } | Effect::Modify { offer, .. } => {
                    assert!(self.device(*offer).open);
                }
                Effect::GpadlCreated { offer, gpadl, .. } => {
                    assert!(self.device(*offer).gpadls.insert(*gpadl));
                }
                Effect::GpadlTeardown { offer, gpadl } => {
                    assert!(self.device(*offer).gpadls.contains(gpadl));
                }
                Effect::Withdrawn { offer } => {
                    let device = self.device(*offer);
                    assert!(!device.open && device.gpadls.is_empty());
                }
                _ => {}
            }
            self.owed.push_back(effect);
        }
    }

    /// The oldest effect is done; a device stops using something before it says so.
    fn answer(&mut self, server: &mut Server, success: bool) {
        let Some(effect) = self.owed.pop_front() else { return };
        // One that was revoked meanwhile is refused.
        let _ = match effect {
            Effect::Open { offer, .. } => {
                self.device(offer).open &= success;
                server.open_complete(offer, success)
            }
            Effect::Close { offer } => {
                self.device(offer).open = false;
                server.close_complete(offer)
            }
            Effect::GpadlCreated { offer, gpadl, .. } => {
                if !success {
                    self.device(offer).gpadls.remove(&gpadl);
                }
                server.gpadl_complete(offer, gpadl, success)
            }
            Effect::GpadlTeardown { offer, gpadl } => {
                self.device(offer).gpadls.remove(&gpadl);
                server.gpadl_released(offer, gpadl)
            }
            Effect::Modify { offer, .. } => server.modify_complete(offer, success),
            _ => Ok(()),
        };
        self.take(server);
    }
}

fn params(instance: u32, subchannel_index: u16) -> OfferParams {
    let instance = Guid::new(instance, 0, 0, [0; 8]);
    OfferParams { subchannel_index, ..OfferParams::new(INTERFACE_NETWORK, instance) }
}

fn server(mut input: Input<'_>) {
    let config = ServerConfig { max_gpadls: 8, max_gpadl_pages: 400, ..ServerConfig::default() };
    let mut server = Server::new(config);
    let mut devices = Devices::default();
    let mut offers = Vec::new();
    while !input.is_empty() {
        match input.byte() % 16 {
            0..=6 => {
                let message = guest_message(&mut input);
                let takes = server.takes_messages();
                let result = server.handle_message(&message);
                assert!(takes || result.is_err(), "it said that it takes none");
            }
            7 | 8 => {
                if let Ok(offer) =
                    server.offer(params(u32::from(input.byte() % 3), u16::from(input.byte() % 2)))
                {
                    offers.push(offer);
                    devices.known.insert(offer, Device::default());
                }
            }
            9 if !offers.is_empty() => {
                let _ = server.revoke(offers[input.below(offers.len())]);
            }
            10 => server.reset(),
            11 => while server.next_message().is_some() {},
            _ => devices.answer(&mut server, !input.bit() || input.bit()),
        }
        devices.take(&mut server);
    }
    // Whatever it was, a guest that is gone leaves nothing behind.
    server.reset();
    devices.take(&mut server);
    while !devices.owed.is_empty() {
        devices.answer(&mut server, true);
    }
    assert!(server.is_idle(), "{server:?}");
}

fn client(mut input: Input<'_>) {
    let mut server = Server::new(ServerConfig {
        max_version: input.one_of(&Version::ALL).unwrap_or(Version::Copper),
        ..ServerConfig::default()
    });
    let mut devices = Devices::default();
    let mut client = Client::new(ClientConfig::default());
    let mut gpadls = Vec::new();
    let mut offers = Vec::new();
    while !input.is_empty() {
        let channel = ChannelId(u32::from(input.byte() % 4));
        match input.byte() % 16 {
            0 => {
                let _ = client.connect();
            }
            1 => {
                let _ = client.unload();
            }
            2 => {
                if let Ok(gpadl) = client.create_gpadl(channel, &pages(&mut input)) {
                    gpadls.push(gpadl);
                }
            }
            3 if !gpadls.is_empty() => {
                let _ = client.teardown_gpadl(gpadls[input.below(gpadls.len())]);
            }
            4 if !gpadls.is_empty() => {
                let ring_gpadl = gpadls[input.below(gpadls.len())];
                let open = OpenParams {
                    ring_gpadl,
                    downstream_page_offset: input.byte().into(),
                    target_vp: None,
                    user_data: [0; USER_DEFINED_SIZE],
                };
                let _ = client.open(channel, open);
            }
            5 => {
                let _ = client.close(channel);
            }
            6 => {
                let _ = client.modify(channel, VpIndex(1));
            }
            7 => {
                let _ = client.release(channel);
            }
            8 => {
                if let Ok(offer) = server.offer(params(input.byte().into(), 0)) {
                    offers.push(offer);
                    devices.known.insert(offer, Device::default());
                }
            }
            9 if !offers.is_empty() => {
                let _ = server.revoke(offers[input.below(offers.len())]);
            }
            10 | 11 => {
                let _ = client.handle_message(&raw(&mut input));
            }
            12 => {
                let _ = client.handle_message(input.short());
            }
            _ => {
                while let Some((_, message)) = client.next_message() {
                    let _ = server.handle_message(message.as_bytes());
                    devices.take(&mut server);
                }
                for _ in 0..input.byte() % 8 {
                    devices.answer(&mut server, true);
                }
                while let Some(message) = server.next_message() {
                    let _ = client.handle_message(message.message.as_bytes());
                }
            }
        }
        while let Some(event) = client.next_event() {
            if let ClientEvent::Unloaded = event {
                assert!(client.offers().next().is_none());
            }
        }
        assert!(client.offers().all(|offer| (1..MAX_CHANNELS).contains(&offer.channel.0)));
    }
}
