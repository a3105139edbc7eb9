//! Server and client against each other: every order in which messages, devices and drivers may come.
//!
//! Both ends keep to the rules here, so neither may refuse the other anything, but for what crosses a rescind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use vmbus_protocol::{
    ChannelId, Gpadl, GpadlId, GpadlRange, Guid, INTERFACE_NETWORK, MessageBytes,
    USER_DEFINED_SIZE, Version, VpIndex,
};

use crate::{
    client::{Client, ClientConfig, ClientEvent, OpenParams},
    server::{Effect, OfferHandle, OfferParams, Server, ServerConfig},
};

struct World {
    server: Server,
    client: Client,
    to_server: VecDeque<MessageBytes>,
    to_client: VecDeque<MessageBytes>,
    /// What devices were asked and have not done.
    owed: VecDeque<Effect>,
    /// Handle, instance and subchannel index.
    offers: Vec<(OfferHandle, u32, u16)>,
    /// What devices are using.
    in_use: BTreeMap<OfferHandle, BTreeSet<GpadlId>>,
    open: BTreeSet<OfferHandle>,
    /// What drivers know of their memory: accepted and not torn down.
    accepted: Vec<(ChannelId, GpadlId)>,
    /// The ring a driver has given to its open (or opening) channel.
    ring: BTreeMap<ChannelId, GpadlId>,
    opened: BTreeSet<ChannelId>,
    rescinds: usize,
    subchannels: usize,
    connected: usize,
    next_instance: u32,
}

impl World {
    fn new(max_version: Version, server_version: Version) -> Self {
        let config = ServerConfig { max_version: server_version, ..ServerConfig::default() };
        Self {
            server: Server::new(config),
            client: Client::new(ClientConfig { max_version, ..ClientConfig::default() }),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            owed: VecDeque::new(),
            offers: Vec::new(),
            in_use: BTreeMap::new(),
            open: BTreeSet::new(),
            accepted: Vec::new(),
            ring: BTreeMap::new(),
            opened: BTreeSet::new(),
            rescinds: 0,
            subchannels: 0,
            connected: 0,
            next_instance: 0,
        }
    }

    /// Lets messages, effects and events flow into their queues.
    fn collect(&mut self) {
        while let Some((connection_id, message)) = self.client.next_message() {
            assert!(self.server.has_connection_id(connection_id));
            self.to_server.push_back(message);
        }
        while let Some(message) = self.server.next_message() {
            self.to_client.push_back(message.message);
        }
        while let Some(effect) = self.server.next_effect() {
            match &effect {
                Effect::GpadlCreated { offer, gpadl, .. } => {
                    assert!(self.in_use.entry(*offer).or_default().insert(*gpadl));
                }
                Effect::Open { offer, .. } => assert!(self.open.insert(*offer)),
                Effect::Withdrawn { offer } => self.offers.retain(|(of, _, _)| of != offer),
                _ => {}
            }
            self.owed.push_back(effect);
        }
        while let Some(event) = self.client.next_event() {
            match event {
                ClientEvent::Connected(_) => self.connected += 1,
                ClientEvent::GpadlCreated { channel, gpadl, accepted: true } => {
                    self.accepted.push((channel, gpadl));
                }
                ClientEvent::Opened { channel, success } => {
                    if success {
                        self.opened.insert(channel);
                    } else {
                        self.ring.remove(&channel);
                    }
                }
                ClientEvent::Rescinded(channel) => {
                    self.opened.remove(&channel);
                    self.ring.remove(&channel);
                }
                ClientEvent::Unloaded => {
                    self.accepted.clear();
                    self.ring.clear();
                    self.opened.clear();
                }
                _ => {}
            }
        }
        // No page is the driver's alone while a device uses it.
        for (offer, gpadls) in &self.in_use {
            let Some(channel) = self.server.channel_id(*offer) else {
                assert!(gpadls.is_empty(), "{offer:?} uses memory of no channel");
                continue;
            };
            let shared = self.client.gpadls(channel).collect::<BTreeSet<_>>();
            assert!(gpadls.is_subset(&shared), "{gpadls:?} of {channel}, shared {shared:?}");
        }
    }

    fn step(&mut self, action: u8, choice: usize) {
        match action {
            0..=59 => self.deliver_to_server(),
            60..=119 => self.deliver_to_client(),
            120..=149 => self.device_works(choice),
            150..=169 => self.driver_shares(choice),
            170..=189 => self.driver_opens(choice),
            190..=199 => self.driver_closes(choice),
            200..=219 => self.driver_takes_back(choice),
            220..=229 => self.driver_releases(choice),
            230..=234 => {
                if let Some(channel) = pick(&self.opened, choice) {
                    let _ = self.client.modify(channel, VpIndex(1));
                }
            }
            235..=238 => self.host_offers(),
            239..=247 => self.host_offers_subchannel(choice),
            248..=249 => self.host_revokes(choice),
            250..=252 => drop(self.client.connect()),
            253 => drop(self.client.unload()),
            _ => {}
        }
        self.collect();
    }

    fn deliver_to_server(&mut self) {
        if !self.server.takes_messages() {
            return;
        }
        if let Some(message) = self.to_server.pop_front() {
            let result = self.server.handle_message(message.as_bytes());
            assert!(result.is_ok() || self.rescinds > 0, "{result:?} of {message:?}");
        }
    }

    fn deliver_to_client(&mut self) {
        if let Some(message) = self.to_client.pop_front() {
            self.client.handle_message(message.as_bytes()).unwrap();
        }
    }

    fn device_works(&mut self, choice: usize) {
        let Some(effect) = self.owed.pop_front() else { return };
        let success = !choice.is_multiple_of(5);
        let asked = match effect {
            Effect::GpadlCreated { offer, gpadl, .. } => {
                if !success {
                    self.in_use.entry(offer).or_default().remove(&gpadl);
                }
                self.server.gpadl_complete(offer, gpadl, success)
            }
            Effect::GpadlTeardown { offer, gpadl } => {
                self.in_use.entry(offer).or_default().remove(&gpadl);
                self.server.gpadl_released(offer, gpadl)
            }
            Effect::Open { offer, .. } => {
                if !success {
                    self.open.remove(&offer);
                }
                self.server.open_complete(offer, success)
            }
            Effect::Close { offer } => {
                assert!(self.open.remove(&offer));
                self.server.close_complete(offer)
            }
            // The channel may have been closed since.
            Effect::Modify { offer, .. } => self.server.modify_complete(offer, success).or(Ok(())),
            _ => Ok(()),
        };
        asked.unwrap();
    }

    fn driver_shares(&mut self, choice: usize) {
        let channels = self.client.offers().map(|offer| offer.channel).collect::<BTreeSet<_>>();
        let Some(channel) = pick(&channels, choice) else { return };
        let frames = (0..4 + choice as u64 % 70).collect();
        let gpadl = Gpadl::new(vec![GpadlRange::pages(frames).unwrap()]).unwrap();
        let _ = self.client.create_gpadl(channel, &gpadl);
    }

    fn driver_opens(&mut self, choice: usize) {
        if self.accepted.is_empty() {
            return;
        }
        let (channel, ring_gpadl) = self.accepted[choice % self.accepted.len()];
        let open = OpenParams {
            ring_gpadl,
            downstream_page_offset: 2,
            target_vp: Some(VpIndex(0)),
            user_data: [0; USER_DEFINED_SIZE],
        };
        if self.client.open(channel, open).is_ok() {
            self.ring.insert(channel, ring_gpadl);
        }
    }

    fn driver_closes(&mut self, choice: usize) {
        if let Some(channel) = pick(&self.opened, choice)
            && self.client.close(channel).is_ok()
        {
            self.opened.remove(&channel);
            self.ring.remove(&channel);
        }
    }

    fn driver_takes_back(&mut self, choice: usize) {
        if self.accepted.is_empty() {
            return;
        }
        let at = choice % self.accepted.len();
        if self.client.teardown_gpadl(self.accepted[at].1).is_ok() {
            self.accepted.swap_remove(at);
        }
    }

    fn driver_releases(&mut self, choice: usize) {
        let channels = self.client.offers().map(|offer| offer.channel).collect::<BTreeSet<_>>();
        if let Some(channel) = pick(&channels, choice)
            && self.client.is_rescinded(channel)
        {
            let _ = self.client.release(channel);
        }
    }

    fn host_offers(&mut self) {
        if self.offers.len() < 6 {
            self.next_instance += 1;
            // Few instances, so that some come back before the guest has released them.
            self.offer(self.next_instance % 5, 0);
        }
    }

    fn host_offers_subchannel(&mut self, choice: usize) {
        if let Some((_, instance, _)) = self.offers.get(choice % self.offers.len().max(1)) {
            self.offer(*instance, 1 + (choice % 3) as u16);
        }
    }

    fn offer(&mut self, instance: u32, subchannel_index: u16) {
        let instance_id = Guid::new(instance, 0, 0, [0; 8]);
        let params =
            OfferParams { subchannel_index, ..OfferParams::new(INTERFACE_NETWORK, instance_id) };
        if let Ok(offer) = self.server.offer(params) {
            self.subchannels += usize::from(subchannel_index > 0);
            self.offers.push((offer, instance, subchannel_index));
        }
    }

    fn host_revokes(&mut self, choice: usize) {
        if self.offers.is_empty() {
            return;
        }
        let (offer, instance, index) = self.offers.swap_remove(choice % self.offers.len());
        let mut gone = vec![offer];
        if index == 0 {
            let (with_it, rest) = self.offers.drain(..).partition(|(_, of, _)| *of == instance);
            self.offers = rest;
            gone.extend(Vec::into_iter(with_it).map(|(handle, _, _)| handle));
        }
        // The devices let go first, and answer nothing more.
        self.in_use.retain(|of, _| !gone.contains(of));
        self.open.retain(|of| !gone.contains(of));
        self.owed.retain(|effect| match effect {
            Effect::GpadlCreated { offer: of, .. }
            | Effect::GpadlTeardown { offer: of, .. }
            | Effect::Open { offer: of, .. }
            | Effect::Close { offer: of }
            | Effect::Modify { offer: of, .. } => !gone.contains(of),
            _ => true,
        });
        self.server.revoke(offer).unwrap();
        self.rescinds += 1;
    }

    /// Until nobody has anything to do.
    fn run_down(&mut self) {
        loop {
            self.collect();
            if self.to_server.is_empty() && self.to_client.is_empty() && self.owed.is_empty() {
                return;
            }
            self.deliver_to_server();
            self.deliver_to_client();
            self.device_works(1);
        }
    }
}

fn pick(from: &BTreeSet<ChannelId>, choice: usize) -> Option<ChannelId> {
    from.iter().nth(choice.checked_rem(from.len())?).copied()
}

/// A deterministic random sequence (SplitMix64).
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// One run; how many times the guest connected, and how many channels were rescinded and subchannels offered.
fn run(seed: u64, steps: usize) -> [usize; 3] {
    let mut random = Seed(seed);
    let version = |n: u64| Version::ALL[n as usize % Version::ALL.len()];
    let mut world = World::new(version(random.next()), version(random.next()));
    world.host_offers();
    world.client.connect().unwrap();
    for _ in 0..steps {
        let word = random.next();
        world.step(word as u8, (word >> 8) as usize);
    }
    world.run_down();
    let _ = world.client.unload();
    world.run_down();
    assert!(world.server.is_idle(), "{:?}", world.server);
    assert!(world.open.is_empty() && world.in_use.values().all(BTreeSet::is_empty));
    assert_eq!(world.client.connection(), None);
    assert_eq!(world.client.offers().count(), 0);
    [world.connected, world.rescinds, world.subchannels]
}

#[test]
fn recorded_seeds_end_clean() {
    let mut totals = [0; 3];
    for seed in 0..2000 {
        for (total, one) in totals.iter_mut().zip(run(seed, 300)) {
            *total += one;
        }
    }
    // The runs are of some use.
    assert!(totals.iter().all(|total| *total > 500), "{totals:?}");
}

proptest! {
    #[test]
    fn any_seed_ends_clean(seed: u64, steps in 1usize..600) {
        run(seed, steps);
    }
}
