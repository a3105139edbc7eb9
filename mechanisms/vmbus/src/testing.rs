//! Channels whose two ends are in one process, over guest memory of their own: for the tests of devices.

use std::{io, os::fd::OwnedFd};

use shared_memory::{Access, DmaAddress, DmaMap, DmaRegion, PageSize, SharedMapping};

use crate::{Channel, EventFd, GuestBuffer};

/// Guest memory of a few pages at guest physical address 0, handed out from the bottom.
#[derive(Debug)]
pub struct TestMemory {
    /// All of it.
    pub mapping: SharedMapping,
    /// The memory file.
    pub fd: OwnedFd,
    /// As the host sees it: one region at 0.
    pub map: DmaMap,
    next_frame: u64,
}

impl TestMemory {
    /// `pages` pages of guest memory.
    pub fn new(pages: usize) -> Self {
        let (mapping, fd) =
            SharedMapping::create("vmbus-test", pages * 4096, PageSize::Base).expect("memory");
        let region =
            DmaRegion { iova: DmaAddress(0), mapping: mapping.clone(), access: Access::ReadWrite };
        let map = DmaMap::empty().with(region).expect("an empty map");
        Self { mapping, fd, map, next_frame: 0 }
    }

    /// The next `count` pages that nobody uses; their page frame numbers.
    pub fn allocate(&mut self, count: usize) -> Vec<u64> {
        let first = self.next_frame;
        self.next_frame += count as u64;
        let all = self.mapping.len() as u64 / 4096;
        assert!(self.next_frame <= all, "guest memory is used up");
        (first..self.next_frame).collect()
    }

    /// A buffer of `bytes` bytes (a multiple of the page size), and its page frame numbers.
    pub fn buffer(&mut self, bytes: u32) -> (GuestBuffer, Vec<u64>) {
        let frames = self.allocate(bytes as usize / 4096);
        (GuestBuffer::new(&self.map, &frames, 0, bytes).expect("guest memory"), frames)
    }
}

/// Both ends of an open channel.
#[derive(Debug)]
pub struct ChannelPair {
    /// The host's end (server, VSP).
    pub host: Channel,
    /// The guest's end (client, VSC).
    pub guest: Channel,
    /// What the guest signals; take the count to see how often it did.
    pub to_host: EventFd,
    /// What the host signals.
    pub to_guest: EventFd,
    /// Both rings: the first half guest to host, the second half host to guest. To play a hostile guest, write to
    /// it.
    pub rings: GuestBuffer,
}

/// A channel with rings of `pages` pages for each direction, control pages included, in `memory`.
pub fn channel_in(memory: &mut TestMemory, pages: usize) -> io::Result<ChannelPair> {
    let bytes = u32::try_from(pages * 2 * 4096).expect("rings of a sensible size");
    let (rings, _) = memory.buffer(bytes);
    let (upstream, downstream) = rings.rings(pages).expect("rings of at least two pages");
    upstream.clear();
    downstream.clear();
    let (to_host, to_guest) = (EventFd::new()?, EventFd::new()?);
    // Each end maps the rings for itself, as it does in its own process.
    let (host_in, host_out) = rings.rings(pages).expect("as above");
    let guest =
        Channel::new(downstream, upstream, to_host.clone(), to_guest.clone()).expect("fresh rings");
    let host =
        Channel::new(host_in, host_out, to_guest.clone(), to_host.clone()).expect("fresh rings");
    Ok(ChannelPair { host, guest, to_host, to_guest, rings })
}

/// A channel with rings of `pages` pages for each direction, control pages included, in guest memory of its own.
pub fn channel(pages: usize) -> ChannelPair {
    channel_in(&mut TestMemory::new(pages * 2), pages).expect("eventfds")
}
