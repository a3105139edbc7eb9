//! A synthetic NIC: its channels are offered to the guest here, and served by its switch.
//!
//! | phase | event | next | what happens |
//! |---|---|---|---|
//! | Connecting | the switch is there | Finding | the switch is asked for its ports |
//! | Finding | it has the port | Offered | the primary channel is offered |
//! | Finding | it has not | Finding, a little later | |
//! | Offered | the guest opens or closes a channel | Offered | the switch is asked to; its answer is the guest's |
//! | Offered | the port is gone | Finding | the channels are taken back |
//! | Offered | another configuration, or none | Leaving | channels are closed in the switch |
//! | Leaving | the switch has closed them, or does not answer | gone, or Connecting | the channels are taken back |
//! | any | the connection ends | Connecting | the channels are taken back: the switch has closed them |

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use device_control::Target;
use partition::host::{DeviceEvent, HostChannel, OpenedChannel};
use pcivirt_protocol::NtStatus;
use serde::Serialize;
use virtual_switch::control::{
    BufferKind, ChannelName, ChannelUpcall, GpadlMapped, MAX_REGIONS, MemoryRegion, OpenChannel,
    PageRange, PortKind, PortName, PrivateControl, STATUS_CAPACITY, SwitchStatus, UPCALL_CAPACITY,
};
use vmbus::server::OfferParams;
use vmbus_protocol::{GpadlId, Guid, INTERFACE_NETWORK};

use super::Cx;
use crate::{
    control::{AdapterConfig, AdapterStatus},
    event::Event,
    link::{Call, Link, LinkEvent},
    log_budget::LogBudget,
};

/// When a switch is asked again for a port that it does not have.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a switch has to close channels of a NIC that is taken away.
const LEAVING: Duration = Duration::from_secs(3);

/// A synthetic NIC.
pub(super) struct Adapter {
    config: AdapterConfig,
    /// Of this connection to the switch.
    number: u64,
    link: Link,
    phase: Phase,
    connected: bool,
    last_error: Option<String>,
    /// What the present offer has asked the switch for. Other answers are old ones.
    asked: BTreeMap<u64, Asked>,
    next_tag: u64,
    /// What comes after it.
    next: Next,
    /// For what the guest makes of it.
    log: LogBudget,
}

/// What is to become of an adapter.
enum Next {
    Stay,
    Go,
    Become(AdapterConfig),
}

enum Phase {
    Connecting,
    /// When the switch is asked again; `None` while it was not answered.
    Finding(Option<Duration>),
    Offered(Offered),
    Leaving {
        deadline: Duration,
        /// Held until the switch has closed them.
        offered: Offered,
    },
    Gone,
}

/// The channels, by index.
#[derive(Default)]
struct Offered {
    channels: Vec<Option<Channel>>,
    /// GPADLs that the switch uses.
    mapped: BTreeSet<GpadlId>,
    /// Those of them that the guest wants back.
    wanted_back: BTreeSet<GpadlId>,
    /// When the switch is asked again for what it wants.
    ask_again: Option<Duration>,
}

struct Channel {
    host: HostChannel,
    use_: Use,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Use {
    Closed,
    Opening,
    Open,
    Closing,
}

/// What is asked of a switch.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Asked {
    Status,
    Upcall,
    Open(u16),
    Close(u16),
    Mapped(GpadlId),
}

/// The NIC's instance: the same for the same number in each VM, so that a guest knows it again.
fn instance(adapter: u32) -> Guid {
    Guid::new(adapter, 0xC1EA, 0x4000, *b"clearway")
}

impl Offered {
    fn channel(&mut self, index: u16) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(index))?.as_mut()
    }

    /// Whether the switch has channels of it, or may come to have.
    fn is_in_use(&self) -> bool {
        self.channels.iter().flatten().any(|channel| channel.use_ != Use::Closed)
    }

    fn open_channels(&self) -> usize {
        let channels = self.channels.iter().flatten();
        channels.filter(|channel| matches!(channel.use_, Use::Open | Use::Closing)).count()
    }
}

impl Adapter {
    /// A NIC that is offered as soon as its switch is there.
    pub(super) fn start(config: AdapterConfig, cx: &mut Cx) -> std::io::Result<Self> {
        let number = cx.number();
        let link = connect(&config, number, cx)?;
        Ok(Self {
            config,
            number,
            link,
            phase: Phase::Connecting,
            connected: false,
            last_error: None,
            asked: BTreeMap::new(),
            next_tag: 0,
            next: Next::Stay,
            log: LogBudget::default(),
        })
    }

    /// Its connection.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Whether it is to stay.
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self.next, Next::Go)
    }

    /// What it is, or will be.
    pub(super) fn configure(&mut self, config: AdapterConfig, cx: &mut Cx) {
        let present = match &self.next {
            Next::Become(next) => next,
            Next::Stay | Next::Go => &self.config,
        };
        if *present == config && self.is_wanted() {
            return;
        }
        self.next = Next::Become(config);
        self.leave(cx);
    }

    /// It is to go.
    pub(super) fn remove(&mut self, cx: &mut Cx) {
        self.next = Next::Go;
        self.leave(cx);
    }

    fn ask(&mut self, asked: Asked, input: &impl Serialize, fds: Vec<OwnedFd>) {
        let (control, capacity) = match asked {
            Asked::Status => (PrivateControl::Status, STATUS_CAPACITY),
            Asked::Upcall => (PrivateControl::NextUpcall, UPCALL_CAPACITY),
            Asked::Open(_) => (PrivateControl::OpenChannel, 0),
            Asked::Close(_) => (PrivateControl::CloseChannel, 0),
            Asked::Mapped(_) => (PrivateControl::GpadlMapped, 0),
        };
        // Numbers and strings are always written.
        let input = match asked {
            Asked::Status => Vec::new(),
            _ => serde_json::to_vec(input).unwrap_or_default(),
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        self.asked.insert(tag, asked);
        let target = Target::Private(control.code());
        self.link.call(Call { tag, target, input, fds, capacity });
    }

    fn ask_upcall(&mut self) {
        let name = PortName { port: self.config.port.clone() };
        self.ask(Asked::Upcall, &name, Vec::new());
    }

    fn ask_close(&mut self, channel: u16) {
        let name = ChannelName { port: self.config.port.clone(), channel };
        self.ask(Asked::Close(channel), &name, Vec::new());
    }

    // ---- coming and going

    /// Takes the NIC from the guest, then does what comes next.
    fn leave(&mut self, cx: &mut Cx) {
        match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Offered(offered) if offered.is_in_use() => {
                self.ask_close(0);
                let deadline = cx.now() + LEAVING;
                self.phase = Phase::Leaving { deadline, offered };
            }
            leaving @ Phase::Leaving { .. } => self.phase = leaving,
            _ => self.left(cx),
        }
    }

    /// The NIC is not the guest's any more.
    fn left(&mut self, cx: &mut Cx) {
        self.phase = Phase::Gone;
        if let Next::Become(config) = std::mem::replace(&mut self.next, Next::Go) {
            // A switch that has not closed the channels does so when the connection ends.
            match Self::start(config, cx) {
                Ok(adapter) => *self = adapter,
                Err(error) => tracing::error!(%error, "a thread for a synthetic NIC"),
            }
        }
    }

    /// The channels, if there are any, are taken back. Nobody uses them any more.
    fn rescind(&mut self, phase: Phase) {
        self.asked.clear();
        self.phase = phase;
    }

    /// News of the switch.
    pub(super) fn switch(&mut self, event: LinkEvent, cx: &mut Cx) {
        match event {
            LinkEvent::Connected => {
                self.connected = true;
                self.last_error = None;
                if let Phase::Connecting = self.phase {
                    self.find();
                }
            }
            LinkEvent::Disconnected(reason) => {
                self.connected = false;
                if let Phase::Offered(_) = self.phase {
                    let adapter = self.config.adapter;
                    tracing::warn!(adapter, reason, "the switch of a NIC is gone");
                }
                self.last_error = Some(reason);
                match self.phase {
                    Phase::Leaving { .. } => self.left(cx),
                    Phase::Gone => {}
                    _ => self.rescind(Phase::Connecting),
                }
            }
            LinkEvent::Completed(tag, answer) => {
                if let Some(asked) = self.asked.remove(&tag) {
                    self.answered(asked, answer, cx);
                }
            }
        }
    }

    fn find(&mut self) {
        self.phase = Phase::Finding(None);
        self.ask(Asked::Status, &(), Vec::new());
    }

    fn answered(&mut self, asked: Asked, answer: Result<Vec<u8>, NtStatus>, cx: &mut Cx) {
        match (asked, &mut self.phase) {
            (Asked::Status, Phase::Finding(None)) => match self.look(answer) {
                Ok(()) => self.offer(cx),
                Err(reason) => {
                    self.last_error = Some(reason);
                    self.phase = Phase::Finding(Some(cx.now() + LOOK_AGAIN));
                }
            },
            (Asked::Upcall, Phase::Offered(_)) => match answer {
                Ok(upcall) => {
                    self.upcall(&upcall, cx);
                    self.ask_upcall();
                }
                // The connection's end is heard of by itself.
                Err(NtStatus::DEVICE_REMOVED) => {}
                // By a connection that has just ended here, and not yet there.
                Err(NtStatus::DEVICE_BUSY) => {
                    if let Phase::Offered(offered) = &mut self.phase {
                        offered.ask_again = Some(cx.now() + LOOK_AGAIN);
                    }
                }
                Err(status) => {
                    let adapter = self.config.adapter;
                    tracing::warn!(adapter, %status, "a NIC's port is gone from its switch");
                    self.last_error = Some(format!("the port does not serve this VM: {status}"));
                    self.rescind(Phase::Finding(Some(cx.now() + LOOK_AGAIN)));
                }
            },
            (Asked::Open(index), Phase::Offered(offered)) => {
                let Some(channel) = offered.channel(index) else { return };
                if channel.use_ == Use::Opening {
                    if let Err(status) = answer
                        && self.log.spend()
                    {
                        let adapter = self.config.adapter;
                        tracing::warn!(adapter, index, %status, "a switch opens no channel");
                    }
                    channel.use_ = if answer.is_ok() { Use::Open } else { Use::Closed };
                    let _ = channel.host.opened(answer.is_ok());
                }
            }
            // Whatever it says, the connection is the one that opened it: it is closed.
            (Asked::Close(index), Phase::Offered(offered)) => {
                if let Some(channel) = offered.channel(index)
                    && channel.use_ == Use::Closing
                {
                    channel.use_ = Use::Closed;
                    let _ = channel.host.closed();
                }
                if index == 0 {
                    offered.primary_closed();
                }
            }
            (Asked::Close(0), Phase::Leaving { .. }) => self.left(cx),
            (Asked::Mapped(gpadl), Phase::Offered(offered)) => {
                if let Err(status) = answer {
                    if self.log.spend() {
                        tracing::warn!(%gpadl, %status, "a switch does not take a guest's buffer");
                    }
                    offered.released(gpadl);
                }
            }
            _ => {}
        }
    }

    /// Whether the switch has the port.
    fn look(&self, answer: Result<Vec<u8>, NtStatus>) -> Result<(), String> {
        let output = answer.map_err(|status| format!("the switch does not answer: {status}"))?;
        let status: SwitchStatus = serde_json::from_slice(&output)
            .map_err(|error| format!("the switch's answer is no status: {error}"))?;
        let port = status.ports.iter().find(|port| port.port == self.config.port);
        match port.map(|port| &port.kind) {
            Some(PortKind::Synthetic) => Ok(()),
            Some(PortKind::Legacy { .. } | PortKind::VhostUser { .. }) => {
                Err(format!("port {} of {} is not synthetic", self.config.port, status.name))
            }
            None => Err(format!("{} has no port {}", status.name, self.config.port)),
        }
    }

    /// Offers the primary channel.
    fn offer(&mut self, cx: &mut Cx) {
        let params = OfferParams::new(INTERFACE_NETWORK, instance(self.config.adapter));
        match cx.host.offer(params) {
            Ok(host) => {
                self.last_error = None;
                let channels = vec![Some(Channel { host, use_: Use::Closed })];
                self.phase = Phase::Offered(Offered { channels, ..Offered::default() });
                self.ask_upcall();
            }
            Err(error) => {
                self.last_error = Some(error.to_string());
                self.phase = Phase::Finding(Some(cx.now() + LOOK_AGAIN));
            }
        }
    }

    // ---- channels

    fn upcall(&mut self, upcall: &[u8], cx: &mut Cx) {
        let adapter = self.config.adapter;
        let upcall: ChannelUpcall = match serde_json::from_slice(upcall) {
            Ok(upcall) => upcall,
            Err(error) => {
                tracing::warn!(adapter, %error, "a switch asks for something unknown");
                return;
            }
        };
        match upcall {
            ChannelUpcall::MapGpadl { gpadl, buffer } => self.map_gpadl(GpadlId(gpadl), buffer),
            ChannelUpcall::GpadlReleased { gpadl } => {
                if let Phase::Offered(offered) = &mut self.phase {
                    offered.released(GpadlId(gpadl));
                }
            }
            ChannelUpcall::OfferSubchannels { count } => self.offer_subchannels(count, cx),
            ChannelUpcall::Dead { channel, error } => {
                if self.log.spend() {
                    tracing::warn!(adapter, channel, error, "a guest's network driver");
                }
            }
        }
    }

    fn map_gpadl(&mut self, gpadl: GpadlId, buffer: BufferKind) {
        let Phase::Offered(offered) = &mut self.phase else { return };
        let memory = offered.channel(0).and_then(|channel| channel.host.gpadl(gpadl));
        let range = memory.as_ref().and_then(|memory| memory.pages.single_range());
        let pages = range.map(PageRange::from);
        if pages.is_some() {
            offered.mapped.insert(gpadl);
        }
        let mapped = GpadlMapped { port: self.config.port.clone(), buffer, pages };
        self.ask(Asked::Mapped(gpadl), &mapped, Vec::new());
    }

    fn offer_subchannels(&mut self, count: u16, cx: &mut Cx) {
        let most = self.config.max_channels.saturating_sub(1);
        let Phase::Offered(offered) = &mut self.phase else { return };
        for index in 1..=count.min(most) {
            let at = usize::from(index);
            if offered.channels.len() <= at {
                offered.channels.resize_with(at + 1, || None);
            }
            let Some(slot @ None) = offered.channels.get_mut(at) else { continue };
            let mut params = OfferParams::new(INTERFACE_NETWORK, instance(self.config.adapter));
            params.subchannel_index = index;
            match cx.host.offer(params) {
                Ok(host) => *slot = Some(Channel { host, use_: Use::Closed }),
                Err(error) => {
                    if self.log.spend() {
                        tracing::warn!(index, %error, "a subchannel cannot be offered");
                    }
                    return;
                }
            }
        }
    }

    /// Opens a channel of the guest's in the switch.
    fn ask_open(&mut self, index: u16, opened: &OpenedChannel, life: u64) -> Result<(), String> {
        let range = opened.ring.pages.single_range().ok_or("its rings are not in one range")?;
        let regions = opened.memory.regions();
        if regions.len() > MAX_REGIONS {
            return Err(format!("its memory is in more than {MAX_REGIONS} pieces"));
        }
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|error| error.to_string());
        let mut fds = Vec::new();
        let mut memory = Vec::new();
        for region in regions {
            fds.push(copy(region.as_fd())?);
            let length = u64::try_from(region.length).map_err(|error| error.to_string())?;
            memory.push(MemoryRegion { gpa: region.gpa, length, offset: region.offset });
        }
        fds.push(copy(opened.to_guest.as_fd())?);
        fds.push(copy(opened.to_host.as_fd())?);
        let open = OpenChannel {
            port: self.config.port.clone(),
            channel: index,
            ring: PageRange::from(range),
            downstream_page_offset: opened.request.downstream_page_offset,
            memory,
            life,
        };
        self.ask(Asked::Open(index), &open, fds);
        Ok(())
    }

    fn channel_event(&mut self, index: u16, event: DeviceEvent, cx: &Cx) {
        match event {
            DeviceEvent::Open(opened) => {
                let asked = self.ask_open(index, &opened, cx.life());
                if let Err(reason) = &asked {
                    let adapter = self.config.adapter;
                    if self.log.spend() {
                        tracing::warn!(
                            adapter,
                            index,
                            reason,
                            "a guest's channel cannot be opened"
                        );
                    }
                }
                let Some(channel) = self.channel(index) else { return };
                match asked {
                    Ok(()) => channel.use_ = Use::Opening,
                    Err(_) => drop(channel.host.opened(false)),
                }
            }
            DeviceEvent::Close => {
                let Some(channel) = self.channel(index) else { return };
                channel.use_ = Use::Closing;
                self.ask_close(index);
            }
            DeviceEvent::GpadlTeardown(gpadl) => {
                if let Phase::Offered(offered) | Phase::Leaving { offered, .. } = &mut self.phase {
                    offered.wanted_back.insert(gpadl);
                    if !offered.mapped.contains(&gpadl) {
                        offered.give_back(gpadl);
                    }
                }
            }
            DeviceEvent::Withdrawn => {
                if let Phase::Offered(offered) = &mut self.phase
                    && let Some(slot) = offered.channels.get_mut(usize::from(index))
                {
                    *slot = None;
                }
            }
        }
    }

    fn channel(&mut self, index: u16) -> Option<&mut Channel> {
        match &mut self.phase {
            Phase::Offered(offered) => offered.channel(index),
            // The switch closes all of them, and then they are taken back.
            _ => None,
        }
    }

    /// Does what there is to do, after its descriptors or its deadline.
    pub(super) fn work(&mut self, cx: &mut Cx) {
        match &self.phase {
            Phase::Finding(Some(when)) if *when <= cx.now() => return self.find(),
            Phase::Leaving { deadline, .. } if *deadline <= cx.now() => {
                let adapter = self.config.adapter;
                tracing::warn!(
                    adapter,
                    "a switch does not close the channels of a NIC that is removed"
                );
                return self.left(cx);
            }
            _ => {}
        }
        if let Phase::Offered(offered) = &mut self.phase
            && offered.ask_again.take_if(|when| *when <= cx.now()).is_some()
        {
            self.ask_upcall();
        }
        let count = match &self.phase {
            Phase::Offered(offered) | Phase::Leaving { offered, .. } => offered.channels.len(),
            _ => 0,
        };
        for index in 0..u16::try_from(count).unwrap_or(u16::MAX) {
            while let Some(event) = self.next_event(index) {
                self.channel_event(index, event, cx);
            }
        }
    }

    fn next_event(&self, index: u16) -> Option<DeviceEvent> {
        match &self.phase {
            Phase::Offered(offered) | Phase::Leaving { offered, .. } => {
                offered.channels.get(usize::from(index))?.as_ref()?.host.next_event()
            }
            _ => None,
        }
    }

    /// What to wait for: readable.
    pub(super) fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>) {
        if let Phase::Offered(offered) | Phase::Leaving { offered, .. } = &self.phase {
            fds.extend(offered.channels.iter().flatten().map(|channel| channel.host.as_fd()));
        }
    }

    /// When [`Self::work`] is due at the latest.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Finding(when) => *when,
            Phase::Offered(offered) => offered.ask_again,
            Phase::Leaving { deadline, .. } => Some(*deadline),
            Phase::Connecting | Phase::Gone => None,
        }
    }

    pub(super) fn status(&self) -> AdapterStatus {
        let channels = match &self.phase {
            Phase::Offered(offered) | Phase::Leaving { offered, .. } => offered.open_channels(),
            _ => 0,
        };
        AdapterStatus {
            adapter: self.config.adapter,
            mac: self.config.mac.clone(),
            switch: self.config.switch.clone(),
            port: self.config.port.clone(),
            connected: self.connected,
            last_error: self.last_error.clone(),
            offered: matches!(self.phase, Phase::Offered(_)),
            channels: u16::try_from(channels).unwrap_or(u16::MAX),
        }
    }
}

impl Offered {
    /// The switch does not use the GPADL any more.
    fn released(&mut self, gpadl: GpadlId) {
        self.mapped.remove(&gpadl);
        if self.wanted_back.contains(&gpadl) {
            self.give_back(gpadl);
        }
    }

    fn give_back(&mut self, gpadl: GpadlId) {
        self.wanted_back.remove(&gpadl);
        if let Some(channel) = self.channel(0) {
            // Gone with its connection, perhaps.
            let _ = channel.host.gpadl_released(gpadl);
        }
    }

    /// With the primary channel the switch has closed all others, and uses no GPADL any more.
    fn primary_closed(&mut self) {
        for gpadl in std::mem::take(&mut self.mapped) {
            self.released(gpadl);
        }
        self.channels.truncate(1);
    }
}

fn connect(config: &AdapterConfig, number: u64, cx: &Cx) -> std::io::Result<Link> {
    let (events, adapter) = (cx.events.clone(), config.adapter);
    let tell = move |event| events.send(Event::Switch(adapter, number, event));
    Link::start(config.switch.clone(), cx.client.clone(), tell)
}
