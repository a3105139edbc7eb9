//! A guest: VMBus client and VPCI drivers, in threads of the test.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use partition::{
    guest::{BusEvent, GuestChannel, GuestError, GuestRings, VmbusGuest},
    user::UserGuest,
};
use pcivirt_protocol::NtStatus;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmbus::client::ClientConfig;
use vmbus_protocol::{
    ChannelId, INTERFACE_NETWORK, INTERFACE_VPCI, Offer, USER_DEFINED_SIZE, VpIndex,
};
use vpci::{
    VpciChannel, Vsc, VscEffect,
    vsc::{ReadyFunction, RequestId, VscConfig, VscError, VscReply, msi_x_entry},
};
use vpci_protocol::{InterruptRequest, TranslatedMsi};

use super::LIMIT;

const NO_DATA: [u8; USER_DEFINED_SIZE] = [0; USER_DEFINED_SIZE];
/// Where buses are, one after the other.
const FIRST: u64 = 1 << 40;
const SLOT: u64 = 1 << 20;

pub struct Guest {
    pub bus: VmbusGuest,
    end: Arc<UserGuest>,
    /// Channels that are offered, and were not taken.
    offers: VecDeque<Offer>,
    /// Channels that were rescinded, and were not noticed.
    rescinded: VecDeque<ChannelId>,
    pub closed: bool,
    buses: u64,
}

impl Guest {
    pub fn new(socket: OwnedFd) -> Self {
        Self::on(Arc::new(UserGuest::new(socket, LIMIT).unwrap()))
    }

    fn on(end: Arc<UserGuest>) -> Self {
        let bus = VmbusGuest::start(Arc::clone(&end), ClientConfig::default()).unwrap();
        let (offers, rescinded) = (VecDeque::new(), VecDeque::new());
        Self { bus, end, offers, rescinded, closed: false, buses: 0 }
    }

    /// Another kernel takes over, which knows of nothing.
    pub fn restart(self) -> Self {
        let Self { bus, end, .. } = self;
        // The one that was takes no messages any more.
        drop(bus);
        Self::on(end)
    }

    pub fn connect(&self) {
        self.bus.connect(LIMIT).unwrap();
    }

    /// Takes what there is to hear.
    pub fn listen(&mut self, limit: Duration) {
        let mut limit = limit;
        while let Some(event) = self.bus.next_event(limit) {
            limit = Duration::ZERO;
            match event {
                BusEvent::Offered(offer) => self.offers.push_back(*offer),
                BusEvent::Rescinded(id) => self.rescinded.push_back(id),
                BusEvent::Closed => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn wait<T>(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.listen(Duration::ZERO);
            if let Some(value) = is_so(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "{what} did not come");
            self.listen(Duration::from_millis(50));
        }
    }

    /// Takes an offer that is as wanted, if there is one now.
    pub fn take_offer(&mut self, wanted: impl Fn(&Offer) -> bool) -> Option<Offer> {
        let at = self.offers.iter().position(wanted)?;
        self.offers.remove(at)
    }

    /// The next NIC's primary channel, or one of its subchannels.
    pub fn nic(&mut self, subchannel: u16) -> Offer {
        self.wait("a NIC", |guest| {
            guest.take_offer(|offer| {
                offer.interface_id == INTERFACE_NETWORK && offer.subchannel_index == subchannel
            })
        })
    }

    /// The bus of the function with this serial number.
    pub fn vpci(&mut self, serial: u32) -> Offer {
        self.wait("a function", |guest| {
            guest.take_offer(|offer| {
                offer.interface_id == INTERFACE_VPCI && offer.instance_id.data1 == serial
            })
        })
    }

    pub fn has_offers(&mut self) -> bool {
        self.listen(Duration::ZERO);
        !self.offers.is_empty()
    }

    /// Forgets offers that were taken back before anybody took them.
    pub fn drop_stale_offers(&mut self) {
        self.listen(Duration::ZERO);
        let rescinded = std::mem::take(&mut self.rescinded);
        for id in rescinded {
            match self.offers.iter().position(|offer| offer.channel == id) {
                Some(at) => {
                    self.offers.remove(at);
                    self.bus.release(id).unwrap();
                }
                None => self.rescinded.push_back(id),
            }
        }
    }

    pub fn is_rescinded(&mut self, id: ChannelId) -> bool {
        self.listen(Duration::ZERO);
        self.rescinded.contains(&id)
    }

    pub fn expect_rescinded(&mut self, id: ChannelId) {
        self.wait("a rescind", |guest| {
            let at = guest.rescinded.iter().position(|rescinded| *rescinded == id)?;
            guest.rescinded.remove(at)
        });
    }

    pub fn open(&self, offer: &Offer) -> Result<GuestChannel, GuestError> {
        self.bus.open(offer.channel, (4, 4), NO_DATA, LIMIT)
    }

    /// Takes leave of a channel that was rescinded.
    pub fn let_go(&mut self, channel: GuestChannel) {
        let id = channel.id();
        self.expect_rescinded(id);
        self.bus.close(channel, LIMIT).unwrap();
        self.bus.release(id).unwrap();
    }

    /// Opens a bus, and begins to bring its function up.
    pub fn open_bus(&mut self, offer: &Offer) -> Bus {
        let channel = self.open(offer).unwrap();
        self.begin(offer.channel, channel)
    }

    fn begin(&mut self, id: ChannelId, channel: GuestChannel) -> Bus {
        let (channel, rings) = channel.into_parts();
        let base = FIRST + self.buses % 32 * SLOT;
        self.buses += 1;
        let config = VscConfig::new(base, base + 0x2000..base + SLOT);
        let mut bus = Bus {
            id,
            channel: Some(VpciChannel::of_guest(channel)),
            rings: Some(rings),
            vsc: Vsc::new(config),
            start: Instant::now(),
            ready: None,
            eject_requested: false,
            gone: 0,
            invalidated: 0,
            completed: BTreeMap::new(),
            close: false,
            failed: None,
        };
        let effects = bus.vsc.channel_opened(bus.now());
        bus.carry_out(effects, &self.bus);
        bus.flush();
        bus
    }

    /// Brings the function of a serial number up.
    pub fn bring_up(&mut self, serial: u32) -> Bus {
        let offer = self.vpci(serial);
        let mut bus = self.open_bus(&offer);
        bus.pump(self, "the function", |bus| bus.ready.is_some());
        assert_eq!(bus.ready.as_ref().unwrap().description.serial, serial);
        bus
    }

    /// Begins to bring the function up that is offered now, if there is one.
    pub fn try_open_bus(&mut self) -> Option<Bus> {
        self.listen(Duration::ZERO);
        let offer = self.take_offer(|offer| offer.interface_id == INTERFACE_VPCI)?;
        let channel = self.open(&offer).ok()?;
        Some(self.begin(offer.channel, channel))
    }

    /// Takes leave of a bus that was rescinded.
    pub fn leave_bus(&mut self, mut bus: Bus) {
        self.expect_rescinded(bus.id);
        bus.channel = None;
        self.bus.close_rings(bus.rings.take().unwrap(), LIMIT).unwrap();
        self.bus.release(bus.id).unwrap();
    }

    /// Closes a bus.
    pub fn close_bus(&mut self, mut bus: Bus) {
        bus.channel = None;
        self.bus.close_rings(bus.rings.take().unwrap(), LIMIT).unwrap();
    }

    pub fn read(&self, address: u64) -> u32 {
        self.bus.guest().mmio_read(address, 4).unwrap() as u32
    }

    pub fn write(&self, address: u64, value: u32) {
        self.bus.guest().mmio_write(address, 4, value.into()).unwrap();
    }
}

/// A virtual PCI bus in the guest.
pub struct Bus {
    pub id: ChannelId,
    channel: Option<VpciChannel>,
    rings: Option<GuestRings>,
    pub vsc: Vsc,
    start: Instant,
    pub ready: Option<ReadyFunction>,
    pub eject_requested: bool,
    pub gone: usize,
    pub invalidated: u64,
    pub completed: BTreeMap<RequestId, Result<VscReply, NtStatus>>,
    pub close: bool,
    pub failed: Option<VscError>,
}

impl Bus {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn carry_out(&mut self, effects: Vec<VscEffect>, guest: &VmbusGuest) {
        for effect in effects {
            match effect {
                VscEffect::Send(packet) => {
                    // Rings that were taken back take nothing, perhaps.
                    let _ = self.channel.as_mut().unwrap().send(packet);
                }
                VscEffect::MmioWrite { address, data } => {
                    let mut value = [0; 8];
                    value[..data.len()].copy_from_slice(&data);
                    let value = u64::from_le_bytes(value);
                    // What a processor does must not wait for what the ring holds back.
                    self.flush();
                    guest.guest().mmio_write(address, data.len() as u8, value).unwrap();
                }
                VscEffect::Ready(function) => self.ready = Some(function),
                VscEffect::EjectRequested => self.eject_requested = true,
                VscEffect::StopRequested | VscEffect::Resumed => {}
                VscEffect::Gone => {
                    self.gone += 1;
                    self.ready = None;
                }
                VscEffect::BlocksInvalidated(mask) => self.invalidated |= mask,
                VscEffect::Completed { request, result } => {
                    self.completed.insert(request, result);
                }
                VscEffect::Failed(error) => self.failed = Some(error),
                VscEffect::CloseChannel => self.close = true,
            }
        }
    }

    fn flush(&mut self) {
        let _ = self.channel.as_mut().unwrap().flush();
    }

    /// Lets the driver run until it is so.
    pub fn pump(&mut self, guest: &mut Guest, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.turn(guest);
            if is_so(self) {
                return;
            }
            assert_eq!(self.failed, None);
            assert!(Instant::now() < deadline, "{what} did not come: {:?}", self.vsc.state());
            let channel = self.channel.as_mut().unwrap();
            if matches!(channel.prepare_to_wait(), Ok(true)) {
                let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                let mut fds = [PollFd::from_borrowed_fd(channel.channel().as_fd(), PollFlags::IN)];
                let _ = poll(&mut fds, Some(&pause));
            }
        }
    }

    /// Lets the driver do what there is to do.
    pub fn turn(&mut self, guest: &mut Guest) {
        let now = self.now();
        let _ = self.channel.as_mut().unwrap().channel_mut().woken();
        loop {
            let channel = self.channel.as_mut().unwrap();
            let vsc = &mut self.vsc;
            let Ok(Some(effects)) = channel.receive(|packet| vsc.receive(packet, now)) else {
                break;
            };
            self.carry_out(effects, &guest.bus);
        }
        let effects = self.vsc.poll(now);
        self.carry_out(effects, &guest.bus);
        self.flush();
        if guest.is_rescinded(self.id) {
            let effects = self.vsc.channel_closed();
            self.carry_out(effects, &guest.bus);
        }
    }

    /// Has the driver ask for something, and waits until it is done.
    pub fn ask(
        &mut self,
        guest: &mut Guest,
        ask: impl FnOnce(&mut Vsc, Duration) -> vpci::vsc::Requested,
    ) -> Result<VscReply, NtStatus> {
        let now = self.now();
        let (request, effects) = ask(&mut self.vsc, now).unwrap();
        self.carry_out(effects, &guest.bus);
        self.flush();
        self.pump(guest, "an answer", |bus| bus.completed.contains_key(&request));
        self.completed.remove(&request).unwrap()
    }

    /// The driver has let go of the function.
    pub fn ejected(&mut self, guest: &Guest) {
        let effects = self.vsc.ejected();
        self.carry_out(effects, &guest.bus);
        self.flush();
    }

    pub fn bar(&self, number: usize) -> u64 {
        self.ready.as_ref().unwrap().bars[number].unwrap().address
    }

    /// Makes an interrupt for a vector of the table, and turns MSI-X on.
    pub fn enable_interrupt(
        &mut self,
        guest: &mut Guest,
        entry: u64,
        vector: u32,
    ) -> TranslatedMsi {
        let interrupt = self.create_interrupt(guest, vector);
        self.route_interrupt(guest, entry, interrupt);
        super::wait_until("the interrupt's handle", || {
            guest.bus.guest().interrupt(vector, VpIndex(0)).is_some()
        });
        interrupt
    }

    /// Makes an interrupt.
    pub fn create_interrupt(&mut self, guest: &mut Guest, vector: u32) -> TranslatedMsi {
        let request = InterruptRequest::single(vector, 0);
        let made = self.ask(guest, |vsc, now| vsc.create_interrupt(request, now));
        let Ok(VscReply::Interrupt(interrupt)) = made else { panic!("{made:?}") };
        interrupt
    }

    /// Writes it into the table, and turns MSI-X on.
    pub fn route_interrupt(&mut self, guest: &mut Guest, entry: u64, interrupt: TranslatedMsi) {
        let table = self.bar(3) + entry * 16;
        for (at, dword) in (0..).step_by(4).zip(msi_x_entry(interrupt).as_chunks::<4>().0) {
            guest.write(table + at, u32::from_le_bytes(*dword));
        }
        let config = self.ready.as_ref().unwrap().config_space;
        let mut at = u64::from(guest.read(config + 0x34) & 0xFF);
        loop {
            let header = guest.read(config + at);
            if header & 0xFF == 0x11 {
                guest.write(config + at, header & 0xFFFF | 0x8000_0000);
                break;
            }
            at = u64::from(header >> 8 & 0xFF);
            assert_ne!(at, 0, "MSI-X");
        }
    }
}
