//! Channels of synthetic ports: their rings and guest memory come as descriptors from whoever plays the guest's host
//! side.

use std::os::fd::{AsFd, OwnedFd};

use device_control::ClientId;
use netvsp::server;
use pcivirt_protocol::NtStatus;
use shared_memory::{Access, DmaAddress, DmaMap, DmaRegion, SharedMapping};
use vmbus::{Channel, EventFd, GuestBuffer};
use vmbus_protocol::GpadlRange;

use super::ports::{Ports, State, nic_config};
use crate::control::{
    BufferKind, ChannelName, GpadlMapped, MAX_BUFFER_BYTES, MAX_CHANNELS, MAX_REGIONS,
    MemoryRegion, OpenChannel, PageRange,
};

/// Bytes of both rings of a channel: each takes twice as much of this process' address space.
const MAX_RING_BYTES: u32 = 32 << 20;

fn invalid(port: &str, what: &str, error: &dyn std::fmt::Display) -> NtStatus {
    tracing::info!(port, what, %error, "a channel is refused");
    NtStatus::INVALID_PARAMETER
}

/// Guest memory, each region by its file.
fn map_memory(port: &str, regions: &[MemoryRegion], fds: &[OwnedFd]) -> Result<DmaMap, NtStatus> {
    let mut map = DmaMap::empty();
    for (region, fd) in regions.iter().zip(fds) {
        let length = usize::try_from(region.length).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let access = Access::ReadWrite;
        let mapping = SharedMapping::map(fd.as_fd(), region.offset, length, access)
            .map_err(|error| invalid(port, "its memory", &error))?;
        let region = DmaRegion { iova: DmaAddress(region.gpa), mapping, access };
        map = map.with(region).map_err(|error| invalid(port, "its memory", &error))?;
    }
    Ok(map)
}

/// Pages of guest memory as a buffer, of at most so many bytes.
fn buffer(
    port: &str,
    memory: &DmaMap,
    pages: &PageRange,
    most: u32,
) -> Result<GuestBuffer, NtStatus> {
    if pages.byte_count > most {
        return Err(invalid(port, "its pages", &"they are too many"));
    }
    let range = GpadlRange::try_from(pages).map_err(|e| invalid(port, "its pages", &e))?;
    let GpadlRange { byte_offset, byte_count, page_frames } = range;
    GuestBuffer::new(memory, &page_frames, byte_offset, byte_count)
        .map_err(|error| invalid(port, "its pages", &error))
}

fn event(port: &str, fd: &OwnedFd) -> Result<EventFd, NtStatus> {
    let fd = fd.try_clone().map_err(|error| invalid(port, "its eventfds", &error))?;
    EventFd::from_peer(fd).map_err(|error| invalid(port, "its eventfds", &error))
}

impl Ports {
    /// Opens a channel of a port for the client's guest.
    pub(super) fn open_channel(
        &self,
        client: ClientId,
        open: &OpenChannel,
        fds: &[OwnedFd],
    ) -> Result<(), NtStatus> {
        let OpenChannel { port: name, channel: index, ring, downstream_page_offset, memory, life } =
            open;
        let index = *index;
        let primary = index == 0;
        if index >= MAX_CHANNELS
            || memory.len() > MAX_REGIONS
            || (primary && memory.is_empty())
            || fds.len() != memory.len() + 2
        {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let Some((files, [to_guest, to_host])) = fds.split_last_chunk::<2>() else {
            return Err(NtStatus::INVALID_PARAMETER);
        };
        let mut state = self.lock();
        let port = state.synthetic(name)?;
        let owned = port.owner == Some(client);
        if port.channels.contains(&index)
            || (primary && port.owner.is_some())
            || (!primary && !owned)
        {
            return Err(NtStatus::INVALID_DEVICE_STATE);
        }
        let map =
            if memory.is_empty() { port.memory.clone() } else { map_memory(name, memory, files)? };
        let pages = buffer(name, &map, ring, MAX_RING_BYTES)?;
        let downstream = usize::try_from(*downstream_page_offset).unwrap_or(usize::MAX);
        let (from_guest, to) =
            pages.rings(downstream).map_err(|error| invalid(name, "its rings", &error))?;
        let channel = Channel::new(from_guest, to, event(name, to_guest)?, event(name, to_host)?)
            .map_err(|error| invalid(name, "its rings", &error))?;
        if primary {
            self.renew(&mut state, name, *life)?;
            let map = map.clone();
            self.change(&state, name, move |port| port.nic().set_guest_memory(map))?;
        }
        if !self.change(&state, name, move |port| port.nic().open(index, channel))? {
            return Err(NtStatus::INVALID_DEVICE_STATE);
        }
        let port = state.synthetic(name)?;
        port.channels.insert(index);
        if primary {
            port.owner = Some(client);
            port.memory = map;
            // It waited for the upcalls of a guest that it does not play.
            if let Some(waiting) = port.waiting.take_if(|waiting| waiting.client != client) {
                waiting.end(NtStatus::CANCELLED);
            }
        }
        self.look_at(&mut state, name);
        Ok(())
    }

    /// Prepares a NIC of which no channel is open for a guest in this life.
    fn renew(&self, state: &mut State, name: &str, life: u64) -> Result<(), NtStatus> {
        let port = state.ports.get(name).ok_or(NtStatus::NOT_FOUND)?;
        let mac = port.config.mac.parse().map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let config = nic_config(&port.config, mac);
        let synthetic = state.synthetic(name)?;
        let config = std::mem::take(&mut synthetic.stale).then_some(config);
        let anew = std::mem::replace(&mut synthetic.life, life) != life;
        self.change(state, name, move |port| {
            if let Some(config) = config {
                port.nic().reconfigure(config);
            }
            if anew {
                port.nic().guest_began_anew();
            }
        })
    }

    /// Closes a channel; with the primary one all.
    pub(super) fn close_channel(
        &self,
        client: ClientId,
        channel: &ChannelName,
    ) -> Result<(), NtStatus> {
        let ChannelName { port: name, channel: index } = channel;
        let index = *index;
        let mut state = self.lock();
        let port = state.synthetic(name)?;
        if port.owner != Some(client) || !port.channels.contains(&index) {
            return Err(NtStatus::NOT_FOUND);
        }
        if index == 0 {
            return self.close_all(&mut state, name);
        }
        port.channels.remove(&index);
        self.change(&state, name, move |port| port.nic().close(index))
    }

    /// Closes all channels of a port: nothing of its guest's memory is used any more.
    pub(super) fn close_all(&self, state: &mut State, name: &str) -> Result<(), NtStatus> {
        let port = state.synthetic(name)?;
        port.owner = None;
        port.channels.clear();
        port.memory = DmaMap::empty();
        self.change(state, name, |port| {
            let nic = port.nic();
            nic.close(0);
            nic.set_guest_memory(DmaMap::empty());
            port.forget_upcalls();
        })?;
        let port = state.synthetic(name)?;
        port.desk.take(&mut port.upcalls);
        // Of the guest that is gone.
        port.upcalls.clear();
        self.look_at(state, name);
        Ok(())
    }

    /// Answers a port that wants to know the pages of a GPADL.
    pub(super) fn gpadl_mapped(
        &self,
        client: ClientId,
        mapped: &GpadlMapped,
    ) -> Result<(), NtStatus> {
        let GpadlMapped { port: name, buffer: kind, pages } = mapped;
        let mut state = self.lock();
        let port = state.synthetic(name)?;
        if port.owner != Some(client) {
            return Err(NtStatus::INVALID_DEVICE_STATE);
        }
        let pages = pages.as_ref();
        let found = pages.map(|pages| buffer(name, &port.memory, pages, MAX_BUFFER_BYTES));
        let found = found.transpose();
        let usable = found.as_ref().ok().cloned().flatten();
        let kind = match kind {
            BufferKind::Receive => server::BufferKind::Receive,
            BufferKind::Send => server::BufferKind::Send,
        };
        self.change(&state, name, move |port| port.nic().gpadl_mapped(kind, usable))?;
        found.map(|_| ())
    }
}
