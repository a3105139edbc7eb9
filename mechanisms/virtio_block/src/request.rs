//! One request, from its descriptors to its status byte (VIRTIO 1.2 §5.2.6).

use std::{
    io,
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering},
};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::{
    image::{Access, Image, SECTOR},
    registers::QUEUE_SIZE,
    transfer::{Direction, MOST_SLICES, transfer},
};

/// Bytes of `struct virtio_blk_req`'s header.
const HEADER: usize = 16;
/// Bytes of a disk's name.
pub(crate) const NAME: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Bytes that are moved at once; between two such moves a request can be given up.
const STEP: usize = 4 << 20;

/// A range of guest memory, which may be none.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Segment {
    gpa: u64,
    length: u64,
}

/// The driver breaks the queue's rules: its requests cannot even be answered.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct BrokenQueue;

/// What there is to know of a request before it is carried out.
#[derive(Debug)]
pub(crate) struct Request {
    /// From the driver, then for the driver without the status byte.
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    status: GuestAddress,
    /// It has more segments than the device said it takes.
    too_long: bool,
}

/// The disk behind a device.
pub(crate) struct Disk<'a> {
    pub(crate) image: &'a Image,
    pub(crate) name: &'a [u8; NAME],
    /// Each write is on the disk when it is answered, since the driver knows no flush.
    pub(crate) write_through: bool,
}

/// How a request failed.
enum Failure {
    Io,
    Unsupported,
    /// Nobody waits for it any more.
    GivenUp,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl Request {
    /// Gathers a chain's descriptors.
    pub(crate) fn gather<M>(chain: DescriptorChain<M>) -> Result<Self, BrokenQueue>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut request = Self {
            readable: Vec::new(),
            writable: Vec::new(),
            status: GuestAddress(0),
            too_long: false,
        };
        let (mut last, mut goes_on) = (None, true);
        for descriptor in chain {
            goes_on = descriptor.has_next();
            let segment = Segment { gpa: descriptor.addr().0, length: u64::from(descriptor.len()) };
            let held = request.readable.len() + request.writable.len();
            if descriptor.is_write_only() {
                if segment.length > 0 {
                    last = Some(segment);
                }
            } else if last.is_some() {
                // §2.7.4.2: what the device writes comes last.
                return Err(BrokenQueue);
            }
            if held >= usize::from(QUEUE_SIZE) {
                request.too_long = true;
            } else if descriptor.is_write_only() {
                request.writable.push(segment);
            } else {
                request.readable.push(segment);
            }
        }
        // A chain that does not end where it says: in a loop, outside of its table or of memory, longer than 4 GiB.
        let Some(last) = last.filter(|_| !goes_on) else { return Err(BrokenQueue) };
        let at = last.gpa.checked_add(last.length - 1).ok_or(BrokenQueue)?;
        request.status = GuestAddress(at);
        while request.writable.last().is_some_and(|segment| segment.length == 0) {
            request.writable.pop();
        }
        if let Some(segment) = request.writable.last_mut() {
            segment.length -= 1;
        }
        Ok(request)
    }

    /// Does what is asked for, and says how many bytes of what the driver gave were written; `None` if it was given up.
    pub(crate) fn carry_out(
        mut self,
        memory: &GuestMemoryMmap,
        disk: &Disk<'_>,
        give_up: &AtomicBool,
    ) -> Result<Option<u32>, BrokenQueue> {
        let room = length(&self.writable);
        let (status, written) = match self.answer(memory, disk, give_up) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Failure::GivenUp) => return Ok(None),
        };
        let status = u8::try_from(status).map_err(|_| BrokenQueue)?;
        memory.write_obj(status, self.status).map_err(|_| BrokenQueue)?;
        // The count is of bytes from the beginning on: the status is among them if all before it is.
        let written = if written == room { written + 1 } else { written };
        Ok(Some(u32::try_from(written).unwrap_or(u32::MAX)))
    }

    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        disk: &Disk<'_>,
        give_up: &AtomicBool,
    ) -> Result<u64, Failure> {
        let header = take_header(memory, &mut self.readable).ok_or(Failure::Io)?;
        let [kind, _, sector_low, sector_high] = header;
        let sector = u64::from(sector_low) | u64::from(sector_high) << 32;
        if self.too_long {
            return Err(Failure::Io);
        }
        match kind {
            VIRTIO_BLK_T_IN => {
                let at = place(&self.writable, sector, disk.image)?;
                move_data(memory, &self.writable, Direction::ToGuest, disk.image, at, give_up)?;
                Ok(length(&self.writable))
            }
            VIRTIO_BLK_T_OUT if disk.image.access() == Access::ReadWrite => {
                let at = place(&self.readable, sector, disk.image)?;
                move_data(memory, &self.readable, Direction::FromGuest, disk.image, at, give_up)?;
                if disk.write_through {
                    disk.image.flush()?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_OUT => Err(Failure::Io),
            VIRTIO_BLK_T_FLUSH => {
                if disk.image.access() == Access::ReadWrite {
                    disk.image.flush()?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => write_name(memory, &self.writable, disk.name),
            _ => Err(Failure::Unsupported),
        }
    }
}

fn length(segments: &[Segment]) -> u64 {
    // Of at most 256 numbers of 32 bits.
    segments.iter().map(|segment| segment.length).sum()
}

/// The header's four words, taken from the segments' beginning.
fn take_header(memory: &GuestMemoryMmap, segments: &mut [Segment]) -> Option<[u32; 4]> {
    if length(segments) < HEADER as u64 {
        return None;
    }
    let mut bytes = [0; HEADER];
    let mut rest = bytes.as_mut_slice();
    for segment in segments {
        let count = segment.length.min(rest.len() as u64);
        let (part, others) = rest.split_at_mut_checked(usize::try_from(count).ok()?)?;
        memory.read_slice(part, GuestAddress(segment.gpa)).ok()?;
        segment.gpa = segment.gpa.checked_add(count)?;
        segment.length -= count;
        rest = others;
        if rest.is_empty() {
            break;
        }
    }
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    Some(words)
}

/// Where in the image the data is, if it is whole sectors within it.
fn place(data: &[Segment], sector: u64, image: &Image) -> Result<u64, Failure> {
    let length = length(data);
    let start = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
    let end = start.checked_add(length).ok_or(Failure::Io)?;
    if length.is_multiple_of(SECTOR) && end <= image.bytes() { Ok(start) } else { Err(Failure::Io) }
}

/// Moves data between guest memory and the image. Nothing is moved if a segment is not in memory.
fn move_data(
    memory: &GuestMemoryMmap,
    data: &[Segment],
    direction: Direction,
    image: &Image,
    mut at: u64,
    give_up: &AtomicBool,
) -> Result<(), Failure> {
    let access = match direction {
        Direction::ToGuest => Permissions::Write,
        Direction::FromGuest => Permissions::Read,
    };
    let in_memory = |segment: &Segment| {
        let length = usize::try_from(segment.length);
        length.is_ok_and(|length| memory.check_range(GuestAddress(segment.gpa), length, access))
    };
    if !data.iter().all(in_memory) {
        return Err(Failure::Io);
    }
    let (mut slices, mut held) = (Vec::new(), 0);
    let mut rest = data.iter().copied();
    let mut next = rest.next();
    while let Some(segment) = next {
        let length = usize::try_from(segment.length).map_err(|_| Failure::Io)?;
        let count = length.min(STEP - held);
        let gpa = GuestAddress(segment.gpa);
        for slice in memory.get_slices(gpa, count, access).map_err(|_| Failure::Io)? {
            slices.push(slice.map_err(|_| Failure::Io)?);
        }
        held += count;
        next = if count < length {
            let count = count as u64;
            Some(Segment { gpa: segment.gpa + count, length: segment.length - count })
        } else {
            rest.next()
        };
        // A range of memory may be several slices, if it goes from one region into the next.
        if next.is_none() || held == STEP || slices.len() > MOST_SLICES / 2 {
            if give_up.load(Ordering::SeqCst) {
                return Err(Failure::GivenUp);
            }
            transfer(image.fd(), &slices, direction, at)?;
            at += held as u64;
            slices.clear();
            held = 0;
        }
    }
    Ok(())
}

/// Writes the disk's name, as much as there is room for.
fn write_name(
    memory: &GuestMemoryMmap,
    data: &[Segment],
    name: &[u8; NAME],
) -> Result<u64, Failure> {
    let mut rest = name.as_slice();
    for segment in data {
        let count = usize::try_from(segment.length).map_or(rest.len(), |room| room.min(rest.len()));
        let (part, others) = rest.split_at_checked(count).ok_or(Failure::Io)?;
        memory.write_slice(part, GuestAddress(segment.gpa)).map_err(|_| Failure::Io)?;
        rest = others;
    }
    Ok((name.len() - rest.len()) as u64)
}
