//! A NetVSP offer: its channels and its buffers, from the offer to the last page given back.

use std::{collections::BTreeMap, time::Instant};

use netvsp::client::{LargeBuffers, NetVsc, VscConfig};
use partition::guest::{GuestError, GuestRings, SharedBuffer, VmbusGuest};
use vmbus::GuestBuffer;
use vmbus_protocol::{ChannelId, Guid, Offer, USER_DEFINED_SIZE};

use super::{ANSWER, BusThread, RETRY};
use crate::guest::{
    carrier::{CarrierHandle, Command},
    synthetic::SyntheticPath,
};

/// Pages of a ring in each direction, its control page included.
const RING_PAGES: usize = 33;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes that a frame has beside its payload, as NetVSP counts: the Ethernet header.
const ETHERNET: u32 = 14;
const NO_DATA: [u8; USER_DEFINED_SIZE] = [0; USER_DEFINED_SIZE];

/// What is shared with the host while the primary channel is open.
#[derive(Debug)]
struct Open {
    /// The primary's first, then the subchannels'.
    rings: Vec<GuestRings>,
    receive: SharedBuffer,
    send: SharedBuffer,
    /// Page frames for large sends.
    large: Vec<u64>,
}

/// A synthetic adapter that was offered.
#[derive(Debug)]
pub(super) struct Nic {
    /// That of its interface.
    pub(super) number: u32,
    instance: Guid,
    carrier: CarrierHandle,
    /// The primary channel as it is offered now.
    offered: Option<ChannelId>,
    /// The one that is open, or being closed.
    open: Option<Open>,
    /// The carrier was told to let go of what is open.
    closing: bool,
    /// Subchannels as they are offered now, by index; those that are open are marked.
    subchannels: BTreeMap<u16, (ChannelId, bool)>,
    /// Subchannels that NetVSC wants, from index 1 on.
    wanted: u16,
    /// Channels that were rescinded and are to be forgotten once nothing uses them.
    rescinded: Vec<ChannelId>,
    /// When to try again what failed.
    retry: Option<Instant>,
    /// Serial number of the VF that the host associated.
    pub(super) associated: Option<u32>,
}

impl Nic {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    pub(super) fn carrier(&self) -> &CarrierHandle {
        &self.carrier
    }
}

/// Pages of the receive buffer, of the send buffer, and for large sends: shares of what is free.
fn shares(free: u64) -> (usize, usize, usize) {
    let free = usize::try_from(free).unwrap_or(usize::MAX);
    let large = (free / 32 / LargeBuffers::PAGES).clamp(2, 32) * LargeBuffers::PAGES;
    ((free / 8).clamp(128, 2048), (free / 32).clamp(16, 256), large)
}

impl BusThread {
    fn nic(&mut self, number: u32) -> Option<&mut Nic> {
        self.nics.iter_mut().find(|nic| nic.number == number)
    }

    pub(super) fn nic_offered(&mut self, offer: &Offer) {
        let known = self.nics.iter_mut().find(|nic| nic.instance == offer.instance_id);
        let number = match known {
            Some(nic) => {
                nic.offered = Some(offer.channel);
                nic.number
            }
            None => {
                let number = self.number_of(offer.instance_id);
                let Some((number, carrier)) =
                    number.and_then(|number| Some((number, self.carrier_of(number)?)))
                else {
                    tracing::warn!("one synthetic adapter more than can be is not used");
                    return;
                };
                self.nics.push(Nic {
                    number,
                    instance: offer.instance_id,
                    carrier,
                    offered: Some(offer.channel),
                    open: None,
                    closing: false,
                    subchannels: BTreeMap::new(),
                    wanted: 0,
                    rescinded: Vec::new(),
                    retry: None,
                    associated: None,
                });
                number
            }
        };
        self.open_nic(number);
    }

    /// Opens the primary channel of an adapter that is offered and not open.
    fn open_nic(&mut self, number: u32) {
        let (queue_pairs, mtu) = (self.queue_pairs, self.wishes.mtu);
        let bus = std::sync::Arc::clone(&self.bus);
        let Some(nic) = self.nic(number) else {
            return;
        };
        let (None, Some(channel)) = (&nic.open, nic.offered) else {
            return;
        };
        nic.retry = None;
        nic.wanted = 0;
        match open(&bus, channel, mtu + ETHERNET, queue_pairs) {
            Ok((path, open)) => {
                nic.open = Some(open);
                nic.carrier.command(Command::Synthetic(Box::new(path)));
            }
            Err(error) => {
                tracing::warn!(%error, "the synthetic adapter of eth{number} cannot be opened yet");
                nic.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// The adapter is up.
    pub(super) fn nic_up(&mut self, number: u32) {
        tracing::debug!("eth{number}'s synthetic adapter is up");
        self.join_devices();
    }

    pub(super) fn subchannel_offered(&mut self, offer: &Offer) {
        let nic = self.nics.iter_mut().find(|nic| nic.instance == offer.instance_id);
        let Some(nic) = nic else {
            return;
        };
        nic.subchannels.insert(offer.subchannel_index, (offer.channel, false));
        let number = nic.number;
        self.open_subchannels(number);
    }

    pub(super) fn subchannels_wanted(&mut self, number: u32, count: u16) {
        if let Some(nic) = self.nic(number) {
            nic.wanted = count;
        }
        self.open_subchannels(number);
    }

    /// Opens the subchannels that are both wanted and offered.
    fn open_subchannels(&mut self, number: u32) {
        let bus = std::sync::Arc::clone(&self.bus);
        let Some(nic) = self.nic(number) else {
            return;
        };
        let Some(open) = nic.open.as_mut().filter(|_| !nic.closing) else {
            return;
        };
        for (index, (channel, is_open)) in &mut nic.subchannels {
            if *is_open || *index > nic.wanted {
                continue;
            }
            match bus.open(*channel, (RING_PAGES, RING_PAGES), NO_DATA, ANSWER) {
                Ok(opened) => {
                    let (end, rings) = opened.into_parts();
                    open.rings.push(rings);
                    *is_open = true;
                    nic.carrier.command(Command::Subchannel(*index, end));
                }
                Err(error) => {
                    tracing::warn!(%error, index, "a subchannel of eth{number} cannot be opened");
                }
            }
        }
    }

    /// A channel is gone; false if it is no adapter's.
    pub(super) fn nic_rescinded(&mut self, channel: ChannelId) -> bool {
        let bus = std::sync::Arc::clone(&self.bus);
        for nic in &mut self.nics {
            let primary = nic.offered == Some(channel);
            let sub = nic.subchannels.values().any(|(id, _)| *id == channel);
            if !primary && !sub {
                continue;
            }
            nic.subchannels.retain(|_, (id, _)| *id != channel);
            if primary {
                nic.offered = None;
                nic.retry = None;
                nic.associated = None;
            }
            if nic.open.is_some() {
                // A subchannel goes with its primary, or the host has lost its senses.
                nic.rescinded.push(channel);
                if !std::mem::replace(&mut nic.closing, true) {
                    nic.carrier.command(Command::CloseSynthetic);
                }
            } else {
                let _ = bus.release(channel);
            }
            return true;
        }
        false
    }

    /// The carrier uses the adapter's channels no more.
    pub(super) fn nic_closed(&mut self, number: u32) {
        let bus = std::sync::Arc::clone(&self.bus);
        let Some(nic) = self.nic(number) else {
            return;
        };
        if let Some(open) = nic.open.take() {
            close(&bus, open);
        }
        nic.closing = false;
        nic.associated = None;
        for (_, is_open) in nic.subchannels.values_mut() {
            *is_open = false;
        }
        for channel in std::mem::take(&mut nic.rescinded) {
            let _ = bus.release(channel);
        }
        if nic.offered.is_some() && nic.retry.is_none() {
            self.open_nic(number);
        }
    }

    /// The carrier gave the adapter up.
    pub(super) fn nic_failed(&mut self, number: u32) {
        if let Some(nic) = self.nic(number) {
            nic.retry = nic.offered.map(|_| Instant::now() + RETRY);
        }
        self.nic_closed(number);
    }

    pub(super) fn associated(&mut self, number: u32, serial: Option<u32>) {
        if let Some(nic) = self.nic(number) {
            nic.associated = serial;
        }
        self.join_devices();
    }

    pub(super) fn retry_nics(&mut self, now: Instant) {
        let due: Vec<u32> = self
            .nics
            .iter()
            .filter(|nic| nic.retry.is_some_and(|at| now >= at))
            .map(|nic| nic.number)
            .collect();
        for number in due {
            self.open_nic(number);
        }
    }
}

/// Shares buffers with the host, opens the primary channel and puts a NetVSC on it.
fn open(
    bus: &VmbusGuest,
    channel: ChannelId,
    mtu: u32,
    channels: u16,
) -> Result<(SyntheticPath, Open), GuestError> {
    let (receive, send, large) = shares(bus.pages().available());
    let receive = bus.share(channel, receive, ANSWER)?;
    let send = match bus.share(channel, send, ANSWER) {
        Ok(send) => send,
        Err(error) => {
            let _ = bus.unshare(receive, ANSWER);
            return Err(error);
        }
    };
    let mut open = Open { rings: Vec::new(), receive, send, large: Vec::new() };
    match open_on(bus, channel, mtu, channels, large, &mut open) {
        Ok(path) => Ok((path, open)),
        Err(error) => {
            close(bus, open);
            Err(error)
        }
    }
}

fn open_on(
    bus: &VmbusGuest,
    channel: ChannelId,
    mtu: u32,
    channels: u16,
    large: usize,
    open: &mut Open,
) -> Result<SyntheticPath, GuestError> {
    open.large = bus.pages().allocate(large).ok_or(GuestError::NoMemory(large))?;
    let bytes = u32::try_from(open.large.len() * PAGE).map_err(|_| GuestError::NoMemory(large))?;
    let memory = bus.guest().memory().map();
    let pages = GuestBuffer::new(memory, &open.large, 0, bytes)?;
    let config =
        VscConfig { mtu, channels, ..VscConfig::new(open.receive.gpadl().0, open.send.gpadl().0) };
    let mut nic = NetVsc::new(
        config,
        open.receive.buffer.clone(),
        open.send.buffer.clone(),
        Some(LargeBuffers::new(pages, open.large.clone())),
    );
    let opened = bus.open(channel, (RING_PAGES, RING_PAGES), NO_DATA, ANSWER)?;
    let (end, rings) = opened.into_parts();
    open.rings.push(rings);
    if !nic.open(0, end) {
        return Err(GuestError::Refused("the primary channel"));
    }
    Ok(SyntheticPath::new(nic))
}

/// Closes what nothing in this process uses any more. What the host does not give back stays out of use.
fn close(bus: &VmbusGuest, open: Open) {
    let Open { rings, receive, send, large } = open;
    let mut closed = true;
    for rings in rings.into_iter().rev() {
        closed &= bus.close_rings(rings, ANSWER).is_ok();
    }
    for buffer in [receive, send] {
        if let Err(error) = bus.unshare(buffer, ANSWER) {
            tracing::info!(%error, "a synthetic adapter's buffer is not given back");
        }
    }
    if closed {
        bus.pages().release(&large);
    }
}
