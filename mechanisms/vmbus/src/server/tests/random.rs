//! Messages, offers and answers at random.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vmbus_protocol::{ClientMessage, GpadlRange, OpenReservedChannel, ServerMessage};

use super::{super::*, Host, contact, network, open};

/// What a guest or a device may do next.
#[derive(Clone, Debug)]
enum Step {
    Message(Box<ClientMessage>),
    Bytes(Vec<u8>),
    Offer(u32, u16),
    Revoke(usize),
    Answer(bool),
    Take,
    Reset,
    /// Nothing but reserved channels may be in use.
    CheckUnloaded,
}

fn message(message: ClientMessage) -> Step {
    Step::Message(Box::new(message))
}

fn step() -> impl Strategy<Value = Step> {
    let channel = || (1u32..4).prop_map(ChannelId);
    let gpadl = || (1u32..5).prop_map(GpadlId);
    let version = proptest::sample::select(Version::ALL.to_vec());
    let frames = 1u64..60;
    prop_oneof![
        2 => version.prop_map(|version| message(contact(version as u32))),
        4 => Just(message(ClientMessage::RequestOffers)),
        8 => (channel(), gpadl(), frames, 0usize..3).prop_map(|(channel, gpadl, pages, part)| {
            let range = GpadlRange::pages((0..pages).collect()).unwrap();
            let messages = Gpadl::new(vec![range]).unwrap().messages(channel, gpadl);
            message(messages[part.min(messages.len() - 1)].clone())
        }),
        4 => (channel(), gpadl()).prop_map(|(channel, gpadl)| {
            message(ClientMessage::GpadlTeardown { channel, gpadl })
        }),
        8 => (1u32..4, 1u32..5, 1u32..10).prop_map(|(channel, gpadl, offset)| {
            message(open(channel, 7, gpadl, offset))
        }),
        2 => (channel(), gpadl()).prop_map(|(channel, ring_gpadl)| {
            message(ClientMessage::OpenReservedChannel(OpenReservedChannel {
                channel,
                target_vp: VpIndex(0),
                target_sint: 2,
                ring_gpadl,
                downstream_page_offset: 2,
            }))
        }),
        2 => channel().prop_map(|channel| message(ClientMessage::CloseReservedChannel {
            channel,
            target_vp: VpIndex(0),
            target_sint: 2,
        })),
        4 => channel().prop_map(|channel| message(ClientMessage::CloseChannel(channel))),
        3 => channel().prop_map(|channel| message(ClientMessage::RelIdReleased(channel))),
        2 => (channel(), 0u32..4).prop_map(|(channel, vp)| {
            let target_vp = Some(VpIndex(vp));
            message(ClientMessage::ModifyChannel { channel, target_vp })
        }),
        1 => Just(message(ClientMessage::Unload)),
        1 => Just(message(ClientMessage::Pause)),
        2 => Just(message(ClientMessage::Resume)),
        2 => (0u8..32, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(number, rest)| {
            Step::Bytes([vec![number, 0, 0, 0, 0, 0, 0, 0], rest].concat())
        }),
        4 => (0u32..3, 0u16..2).prop_map(|(instance, index)| Step::Offer(instance, index)),
        2 => any::<usize>().prop_map(Step::Revoke),
        16 => any::<bool>().prop_map(|failure| Step::Answer(!failure)),
        8 => Just(Step::Take),
        1 => Just(Step::Reset),
    ]
}

/// What a device believes of a channel, from its effects alone.
#[derive(Default, Debug)]
struct Model {
    open: bool,
    gpadls: std::collections::BTreeSet<GpadlId>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a guest sends and devices do: no panic; a device is never asked what contradicts what it was asked
    /// before; and an UNLOAD at the end leaves nothing behind.
    #[test]
    fn every_sequence_ends_clean(steps in proptest::collection::vec(step(), 1..150)) {
        let mut host = Host::new();
        host.automatic = false;
        let mut offers: Vec<OfferHandle> = Vec::new();
        let mut models: BTreeMap<OfferHandle, Model> = BTreeMap::new();
        let finish = [
            vec![Step::Take, message(ClientMessage::Unload)],
            vec![Step::Answer(true); 600],
            vec![Step::CheckUnloaded, Step::Reset],
            vec![Step::Answer(true); 600],
        ].concat();
        let start = [
            Step::Offer(0, 0),
            Step::Offer(1, 0),
            message(contact(Version::Iron as u32)),
            message(ClientMessage::RequestOffers),
        ];
        for step in start.into_iter().chain(steps).chain(finish) {
            match step {
                Step::Message(message) => {
                    let _ = host.server.handle_message(message.emit().as_bytes());
                }
                Step::Bytes(bytes) => {
                    let _ = host.server.handle_message(&bytes);
                }
                Step::Offer(instance, index) => {
                    let params = OfferParams { subchannel_index: index, ..network(instance) };
                    if let Ok(offer) = host.server.offer(params) {
                        offers.push(offer);
                        models.insert(offer, Model::default());
                    }
                }
                Step::Revoke(which) => {
                    if !offers.is_empty() {
                        let offer = offers[which % offers.len()];
                        let _ = host.server.revoke(offer);
                    }
                }
                Step::Answer(success) => {
                    // A device stops using something before it says so.
                    match host.devices.owed.front() {
                        Some(Effect::Open { offer, .. }) if !success => {
                            models.get_mut(offer).unwrap().open = false;
                        }
                        Some(Effect::Close { offer }) => models.get_mut(offer).unwrap().open = false,
                        Some(Effect::GpadlCreated { offer, gpadl, .. }) if !success => {
                            models.get_mut(offer).unwrap().gpadls.remove(gpadl);
                        }
                        Some(Effect::GpadlTeardown { offer, gpadl }) => {
                            models.get_mut(offer).unwrap().gpadls.remove(gpadl);
                        }
                        _ => {}
                    }
                    host.answer_one(success);
                }
                Step::Take => drop(host.answers()),
                Step::Reset => host.server.reset(),
                Step::CheckUnloaded => {
                    let released =
                        |channel: &Channel| channel.is_clean() || channel.is_reserved();
                    // Without a connection there was nothing to unload.
                    prop_assert!(host.server.channels.values().all(released), "{:?}", host.server);
                    let last = host.answers().pop();
                    let told = matches!(
                        last,
                        None | Some(
                            ServerMessage::UnloadComplete
                                | ServerMessage::VersionResponse(_)
                                | ServerMessage::OpenChannelResult { .. }
                                | ServerMessage::CloseReservedResponse(_)
                        )
                    );
                    prop_assert!(told, "{last:?}");
                }
            }
            host.work();
            for effect in std::mem::take(&mut host.devices.seen) {
                match effect {
                    Effect::Open { offer, request } => {
                        let model = models.get_mut(&offer).unwrap();
                        prop_assert!(!model.open, "opened twice");
                        prop_assert!(model.gpadls.contains(&request.ring_gpadl));
                        model.open = true;
                    }
                    Effect::Close { offer } => prop_assert!(models[&offer].open),
                    Effect::GpadlCreated { offer, gpadl, .. } => {
                        prop_assert!(models.get_mut(&offer).unwrap().gpadls.insert(gpadl));
                    }
                    Effect::GpadlTeardown { offer, gpadl } => {
                        prop_assert!(models[&offer].gpadls.contains(&gpadl));
                    }
                    Effect::Modify { offer, .. } => prop_assert!(models[&offer].open),
                    Effect::Withdrawn { offer } => {
                        prop_assert!(!models[&offer].open && models[&offer].gpadls.is_empty());
                    }
                    _ => {}
                }
            }
        }
        prop_assert!(host.server.is_idle(), "{:?}", host.server);
        prop_assert_eq!((host.server.gpadls, host.server.gpadl_pages), (0, 0));
        prop_assert!(host.server.assembling.is_empty() && host.server.ids.is_empty());
    }
}
