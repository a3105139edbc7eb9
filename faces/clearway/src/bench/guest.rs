//! Guests with synthetic adapters: their memory, and NetVSC over a channel in it.

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use ndis_protocol::VPortId;
use netvsp::{
    client::{self, LargeBuffers, NetVsc, VscConfig},
    server::{BufferKind, NetVsp, NicConfig, Upcall, VfControl},
};
use netvsp_protocol::{MacAddress, nvsp::DataPath};
use nic_switch::{VPortPolicy, VlanMatch};
use shared_memory::{Access, DmaAddress, DmaMap, DmaRegion, PageSize, SharedMapping};
use virtual_switch::{PortPolicy, SwitchHandle, SyntheticPort};
use vmbus::{Channel, EventFd, GuestBuffer};

use super::traffic::mac;

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// GPADLs of the buffers.
const RECEIVE: u32 = 1;
const SEND: u32 = 2;
/// Pages of one ring, its control page included: 128 KiB of packets each way.
const RING_PAGES: usize = 33;
/// Bytes of each buffer.
const RECEIVE_BUFFER: usize = 2 << 20;
const SEND_BUFFER: usize = 1 << 20;
/// Frames that do not fit a section of the send buffer, at a time.
const LARGE: usize = 64;
/// Ethernet header and data, where frames are ordinary, and where they are large.
pub(crate) const MTU: u32 = 1514;
const LARGE_MTU: u32 = 9014;
/// The policy of a port that is like any other.
pub(crate) fn policy(number: u32) -> PortPolicy {
    PortPolicy {
        mac: ndis_protocol::MacAddress::new(mac(number)),
        receives: VlanMatch::UntaggedOrZero,
        vport: VPortPolicy::default(),
    }
}

/// The number of a port.
pub(crate) fn port(number: u32) -> anyhow::Result<VPortId> {
    VPortId::new(number).context("a port's number")
}

/// Where the pages of rings begin, for the guest.
const RINGS_AT: usize = 1 << 32;

/// A guest's memory, handed out from the bottom.
pub(crate) struct GuestMemory {
    /// As its host sees it: buffers at 0, rings at [`RINGS_AT`].
    pub(crate) map: DmaMap,
    /// Bytes of both.
    lengths: (usize, usize),
    next: usize,
    next_ring: usize,
}

impl GuestMemory {
    /// So many bytes, of 2 MiB pages where there are some, and so many for rings. Those are mapped twice over, page by
    /// page, and so lie in small pages.
    pub(crate) fn new(bytes: usize, rings: usize) -> anyhow::Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE);
        let create = |pages| SharedMapping::create("guest", bytes, pages);
        let (mapping, _) = create(PageSize::Huge2M).or_else(|_| create(PageSize::Base))?;
        let (ring_mapping, _) = SharedMapping::create("guest rings", rings, PageSize::Base)?;
        let region = |at: usize, mapping| DmaRegion {
            iova: DmaAddress(at as u64),
            mapping,
            access: Access::ReadWrite,
        };
        let map = DmaMap::empty().with(region(0, mapping))?.with(region(RINGS_AT, ring_mapping))?;
        Ok(Self { map, lengths: (bytes, rings), next: 0, next_ring: 0 })
    }

    /// A buffer of so many bytes, and the frame numbers of its pages.
    pub(crate) fn buffer(&mut self, bytes: usize) -> anyhow::Result<(GuestBuffer, Vec<u64>)> {
        let pages = bytes.div_ceil(PAGE);
        let first = self.next;
        self.next += pages;
        ensure!(self.next * PAGE <= self.lengths.0, "guest memory is used up");
        self.pages(first, pages)
    }

    fn pages(&self, first: usize, count: usize) -> anyhow::Result<(GuestBuffer, Vec<u64>)> {
        let frames: Vec<u64> = (first..first + count).map(|frame| frame as u64).collect();
        let buffer = GuestBuffer::new(&self.map, &frames, 0, u32::try_from(count * PAGE)?)?;
        Ok((buffer, frames))
    }

    /// An open channel: the host's end, and the guest's.
    pub(crate) fn channel(&mut self, pages: usize) -> anyhow::Result<(Channel, Channel)> {
        let first = RINGS_AT / PAGE + self.next_ring;
        self.next_ring += 2 * pages;
        ensure!(self.next_ring * PAGE <= self.lengths.1, "memory for rings is used up");
        let (rings, _) = self.pages(first, 2 * pages)?;
        let (up, down) = rings.rings(pages)?;
        up.clear();
        down.clear();
        let (to_host, to_guest) = (EventFd::new()?, EventFd::new()?);
        // Each end maps the rings for itself, as it does in its own process.
        let (host_up, host_down) = rings.rings(pages)?;
        let host = Channel::new(host_up, host_down, to_guest.clone(), to_host.clone())?;
        let guest = Channel::new(down, up, to_host, to_guest)?;
        Ok((host, guest))
    }
}

/// A guest with a synthetic adapter on a port of a switch.
pub(crate) struct Guest {
    pub(crate) nic: NetVsc,
    switch: SwitchHandle,
    port: VPortId,
    upcalls: Receiver<Upcall>,
    buffers: (GuestBuffer, GuestBuffer),
    _memory: GuestMemory,
}

impl Guest {
    /// Boots it: its adapter is up when this returns.
    pub(crate) fn boot(switch: &SwitchHandle, number: u32, large: bool) -> anyhow::Result<Self> {
        let config = NicConfig::new(MacAddress::new(mac(number)));
        Self::boot_with(switch, number, large, config, |_| ())
    }

    /// Boots one that may have a VF, about which its host decides; `asks` hears which path it asks for.
    pub(crate) fn boot_bonded(
        switch: &SwitchHandle,
        number: u32,
        asks: impl FnMut(DataPath) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut config = NicConfig::new(MacAddress::new(mac(number)));
        config.vf = VfControl::Host;
        Self::boot_with(switch, number, false, config, asks)
    }

    fn boot_with(
        switch: &SwitchHandle,
        number: u32,
        large: bool,
        nic_config: NicConfig,
        mut asks: impl FnMut(DataPath) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut memory = GuestMemory::new(
            RECEIVE_BUFFER + SEND_BUFFER + LARGE * LargeBuffers::PAGES * PAGE,
            2 * RING_PAGES * PAGE,
        )?;
        let (host, guest) = memory.channel(RING_PAGES)?;
        let (receive, _) = memory.buffer(RECEIVE_BUFFER)?;
        let (send, _) = memory.buffer(SEND_BUFFER)?;
        let (buffer, frames) = memory.buffer(LARGE * LargeBuffers::PAGES * PAGE)?;
        let mut config = VscConfig::new(RECEIVE, SEND);
        config.mtu = if large { LARGE_MTU } else { MTU };
        let large = LargeBuffers::new(buffer, frames);
        let mut nic = NetVsc::new(config, receive.clone(), send.clone(), Some(large));
        let mut server = NetVsp::new(nic_config, memory.map.clone());
        ensure!(server.open(0, host) && nic.open(0, guest), "the channel does not open");
        let (tell, upcalls) = channel();
        let synthetic = SyntheticPort::new(server, move |upcall| {
            if let Upcall::SwitchDataPath(path) = upcall {
                asks(path);
            }
            let _ = tell.send(upcall);
        });
        let port = port(number)?;
        switch.run(move |switch| switch.connect(port, policy(number), Box::new(synthetic)))??;
        let switch = switch.clone();
        let buffers = (receive, send);
        let mut guest = Self { nic, switch, port, upcalls, buffers, _memory: memory };
        let begin = Instant::now();
        while !guest.control()? {
            ensure!(begin.elapsed() < PATIENCE, "the adapter of guest {number} does not come up");
        }
        Ok(guest)
    }

    /// A turn of control; whether the adapter came up.
    fn control(&mut self) -> anyhow::Result<bool> {
        self.nic.poll(0, |_| ());
        let mut up = false;
        while let Some(upcall) = self.nic.next_upcall() {
            match upcall {
                client::Upcall::Up { .. } => up = true,
                client::Upcall::Failed(error) => bail!(error),
                _ => {}
            }
        }
        while let Ok(upcall) = self.upcalls.try_recv() {
            let Upcall::MapGpadl { kind, .. } = upcall else { continue };
            let (receive, send) = &self.buffers;
            let buffer = if kind == BufferKind::Receive { receive } else { send }.clone();
            let port = self.port;
            self.switch.run(move |switch| {
                if let Some(port) = switch.port::<SyntheticPort>(port) {
                    port.nic().gpadl_mapped(kind, Some(buffer));
                }
            })?;
        }
        Ok(up)
    }
}
