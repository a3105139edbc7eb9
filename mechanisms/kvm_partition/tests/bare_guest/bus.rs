//! A guest that speaks VMBus: its messages are made here and posted and taken by its processor.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use kvm_partition::hypercall::SIGNAL_EVENT;
use partition::host::{DeviceEvent, HostChannel, OpenedChannel, VmbusHost};
use vmbus::{
    client::{Client, ClientConfig, ClientEvent, OpenParams},
    server::{OfferParams, ServerConfig},
};
use vmbus_protocol::{
    ChannelId, ClientMessage, Gpadl, GpadlId, GpadlRange, Guid, INTERFACE_NETWORK,
    USER_DEFINED_SIZE,
};

use crate::puppet::{EVENT_PAGE, Held, LIMIT, Op, Puppet, SCRATCH, Stage, stage};

/// A call with its input in registers.
pub(crate) const FAST: u64 = 1 << 16;
/// Pages of both rings.
pub(crate) const RING_PAGES: u64 = 4;

pub(crate) struct Bus {
    pub(crate) client: Client,
    pub(crate) device: HostChannel,
    pub(crate) host: VmbusHost,
    pub(crate) puppet: Puppet,
}

impl Bus {
    pub(crate) fn new(stage: &Stage) -> Self {
        let puppet = Puppet::enlightened(stage);
        let host = VmbusHost::start(puppet.partition.clone(), ServerConfig::default()).unwrap();
        let params = OfferParams::new(INTERFACE_NETWORK, Guid::new(1, 2, 3, [4; 8]));
        let device = host.offer(params).unwrap();
        Self { client: Client::new(ClientConfig::default()), device, host, puppet }
    }

    /// What comes of what was asked for.
    pub(crate) fn next(&mut self) -> ClientEvent {
        loop {
            while let Some((connection, message)) = self.client.next_message() {
                assert_eq!(self.puppet.post(connection, message.as_bytes()), 0);
            }
            if let Some(event) = self.client.next_event() {
                return event;
            }
            let message = self.puppet.next_message();
            self.client.handle_message(&message).unwrap();
        }
    }

    /// Posts a message that no driver would.
    pub(crate) fn post(&self, message: &ClientMessage) {
        assert_eq!(self.puppet.post(4, message.emit().as_bytes()), 0);
    }

    pub(crate) fn connect(&mut self) -> ChannelId {
        self.client = Client::new(ClientConfig::default());
        self.client.connect().unwrap();
        assert!(matches!(self.next(), ClientEvent::Connected(_)));
        let ClientEvent::Offered(offer) = self.next() else { panic!("no offer") };
        assert_eq!(self.next(), ClientEvent::AllOffersDelivered);
        offer.channel
    }

    /// Shares pages and says whether they were accepted.
    pub(crate) fn share(&mut self, channel: ChannelId, frames: Vec<u64>) -> (GpadlId, bool) {
        let pages = Gpadl::new(vec![GpadlRange::pages(frames).unwrap()]).unwrap();
        let gpadl = self.client.create_gpadl(channel, &pages).unwrap();
        match self.next() {
            ClientEvent::GpadlCreated { gpadl: same, accepted, .. } if same == gpadl => {
                (gpadl, accepted)
            }
            other => panic!("{other:?} instead of a GPADL"),
        }
    }

    pub(crate) fn share_rings(&mut self, channel: ChannelId) -> GpadlId {
        let frames = (0..RING_PAGES).map(|page| (SCRATCH >> 12) + page).collect();
        for page in 0..RING_PAGES {
            self.puppet.write(SCRATCH + page * 4096, &[0; 4096]);
        }
        let (gpadl, accepted) = self.share(channel, frames);
        assert!(accepted);
        gpadl
    }

    pub(crate) fn open(&mut self, channel: ChannelId, ring_gpadl: GpadlId) -> Box<OpenedChannel> {
        let open = OpenParams {
            ring_gpadl,
            downstream_page_offset: (RING_PAGES / 2) as u32,
            target_vp: Some(vmbus_protocol::VpIndex(0)),
            user_data: [0; USER_DEFINED_SIZE],
        };
        self.client.open(channel, open).unwrap();
        self.post_all();
        let event = self.device.wait_event(LIMIT).unwrap();
        let Some(DeviceEvent::Open(opened)) = event else { panic!("{event:?} instead of an open") };
        self.device.opened(true).unwrap();
        assert_eq!(self.next(), ClientEvent::Opened { channel, success: true });
        opened
    }

    pub(crate) fn post_all(&mut self) {
        while let Some((connection, message)) = self.client.next_message() {
            assert_eq!(self.puppet.post(connection, message.as_bytes()), 0);
        }
    }

    pub(crate) fn expect_close(&self) {
        let event = self.device.wait_event(LIMIT).unwrap();
        assert!(matches!(event, Some(DeviceEvent::Close)), "{event:?} instead of a close");
        self.device.closed().unwrap();
    }

    /// Signals are passed in both directions.
    pub(crate) fn signals(&self, channel: ChannelId, opened: &OpenedChannel) {
        let _ = opened.to_host.take();
        let call = Op::call(u64::from(SIGNAL_EVENT) | FAST, opened.request.connection_id.into());
        assert_eq!(self.puppet.one(call).status(), 0);
        assert!(opened.to_host.wait(LIMIT).unwrap(), "the guest's signal does not come");
        let word = EVENT_PAGE + 2 * 256 + u64::from(channel.0 / 8);
        self.puppet.write(word, &[0]);
        opened.to_guest.signal();
        let begun = Instant::now();
        while self.puppet.read::<1>(word)[0] & 1 << (channel.0 % 8) == 0 {
            assert!(begun.elapsed() < LIMIT, "the host's signal does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn unload(&mut self) {
        self.client.unload().unwrap();
        assert_eq!(self.next(), ClientEvent::Unloaded);
        assert!(self.host.is_idle());
    }

    /// All that a driver does, from connecting to unloading.
    pub(crate) fn handshake(&mut self) {
        let channel = self.connect();
        let gpadl = self.share_rings(channel);
        let opened = self.open(channel, gpadl);
        self.signals(channel, &opened);
        drop(opened);
        self.client.close(channel).unwrap();
        self.post_all();
        self.expect_close();
        self.client.teardown_gpadl(gpadl).unwrap();
        assert_eq!(self.next(), ClientEvent::GpadlTorndown { channel, gpadl });
        self.unload();
    }
}

/// Set when it goes, also by a panic.
struct Over<'o>(&'o AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What this process may hold more after a guest has done its worst and gone: allocators keep some of it.
const KEPT: u64 = 32 << 20;

/// Lets guests do their worst while an honest one beside them does handshakes, and checks that nothing is left of them.
pub(crate) fn hostile(what: impl FnOnce(&Stage)) {
    let Some(stage) = stage() else { return };
    let mut neighbour = Bus::new(&stage);
    neighbour.handshake();
    let held = Held::now();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                neighbour.handshake();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let _over = Over(&over);
        what(&stage);
    });
    held.check(KEPT);
    neighbour.handshake();
}
