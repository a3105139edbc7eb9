//! The receive process (HRM chapter 4.3.4).

use shared_memory::{DmaAddress, DmaFault, DmaMap};

use super::{MAX_FRAME, TulipDevice};
use crate::{
    csr::process,
    descriptor::{Descriptor, ReceiveStatus},
    filter::crc32,
};

/// Descriptors that one frame can take.
const MAX_DESCRIPTORS: usize = 64;
/// Bytes of an Ethernet header.
const HEADER: usize = 14;
/// Longer frames are marked, bytes with the checksum.
const ORDINARY: usize = 1518;
/// Larger values of the type field are types, not lengths.
const LONGEST_LENGTH: u16 = 1500;

/// Why a frame was not received.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum ReceiveDrop {
    /// The receiver is off, or the device waits for a reset.
    Stopped,
    /// The link is down.
    LinkDown,
    /// It is shorter than a header, or longer than [`MAX_FRAME`].
    Length,
    /// The driver does not want frames to this address.
    Filtered,
    /// The driver has given no descriptor.
    NoDescriptor,
    /// A descriptor points to memory that is not there.
    BusError,
}

/// Kept from frame to frame, so that nothing is allocated for one.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    descriptors: Vec<(u32, Descriptor)>,
    bytes: Vec<u8>,
}

impl TulipDevice {
    pub(super) fn demand_receive(&mut self) {
        if self.mode.start_receive() && !self.halted {
            self.status.set_receive_state(process::RECEIVE_WAITING);
        }
    }

    /// A frame comes from the wire, without its checksum.
    ///
    /// # Errors
    /// [`ReceiveDrop`].
    pub fn receive(&mut self, dma: &DmaMap, frame: &[u8]) -> Result<(), ReceiveDrop> {
        let received = self.try_receive(dma, frame);
        let counters = &mut self.counters;
        match received {
            Ok(()) => {
                counters.rx_frames += 1;
                counters.rx_bytes += frame.len() as u64;
            }
            Err(ReceiveDrop::Filtered) => counters.rx_filtered += 1,
            Err(ReceiveDrop::NoDescriptor) => {
                counters.rx_no_descriptor += 1;
                // 16 bits, and one that says that they were not enough.
                self.missed =
                    if self.missed & 0xFFFF == 0xFFFF { 0x1_0000 } else { self.missed + 1 };
            }
            Err(ReceiveDrop::BusError) => self.bus_error(),
            Err(ReceiveDrop::Stopped | ReceiveDrop::LinkDown | ReceiveDrop::Length) => {
                counters.rx_dropped += 1;
            }
        }
        received
    }

    fn try_receive(&mut self, dma: &DmaMap, frame: &[u8]) -> Result<(), ReceiveDrop> {
        if !self.mode.start_receive() || self.halted {
            return Err(ReceiveDrop::Stopped);
        }
        if !self.link() && self.mode.loopback() == 0 {
            return Err(ReceiveDrop::LinkDown);
        }
        let destination = frame.first_chunk::<6>().filter(|_| frame.len() >= HEADER);
        let destination = *destination.ok_or(ReceiveDrop::Length)?;
        if frame.len() > MAX_FRAME {
            return Err(ReceiveDrop::Length);
        }
        let group = destination[0] & 1 != 0;
        let passes = self.filter.passes(&destination);
        let wanted = passes
            || self.mode.promiscuous()
            || self.mode.receive_all()
            || group && self.mode.all_multicast();
        if !wanted {
            return Err(ReceiveDrop::Filtered);
        }
        let mut scratch = std::mem::take(&mut self.receiving);
        scratch.bytes.clear();
        scratch.bytes.extend_from_slice(frame);
        scratch.bytes.extend_from_slice(&crc32(frame).to_le_bytes());
        let filled = self.fill(dma, &mut scratch, group, passes);
        self.receiving = scratch;
        match filled {
            Ok(true) => Ok(()),
            Ok(false) => Err(ReceiveDrop::NoDescriptor),
            Err(_) => Err(ReceiveDrop::BusError),
        }
    }

    /// Writes a frame to as many descriptors as it takes. False if there is none.
    fn fill(
        &mut self,
        dma: &DmaMap,
        scratch: &mut Scratch,
        group: bool,
        passes: bool,
    ) -> Result<bool, DmaFault> {
        let Scratch { descriptors, bytes } = scratch;
        let complete = self.collect(dma, descriptors, bytes.len())?;
        if descriptors.is_empty() {
            return Ok(false);
        }
        let mut rest = bytes.as_slice();
        for (_, descriptor) in descriptors.iter() {
            for (address, size) in descriptor.buffers() {
                let (now, later) = rest.split_at(size.min(rest.len()));
                dma.write_bytes(DmaAddress(address.into()), now)?;
                rest = later;
            }
        }
        let type_field = bytes.get(12..14).and_then(|field| field.first_chunk::<2>());
        let type_field = type_field.map_or(0, |field| u16::from_be_bytes(*field));
        let written = bytes.len() - rest.len();
        let ended = ReceiveStatus::new()
            .with_frame_type(type_field > LONGEST_LENGTH)
            .with_too_long(bytes.len() > ORDINARY)
            .with_multicast(group)
            .with_filtering_fail(!passes && self.mode.receive_all())
            .with_data_type(u8::from(self.mode.loopback() != 0))
            .with_descriptor_error(!complete)
            .with_error_summary(!complete)
            .with_last(true)
            .with_length(u16::try_from(written).unwrap_or(0));
        let count = descriptors.len();
        for (number, (address, descriptor)) in descriptors.iter().enumerate() {
            let status = if number + 1 == count { ended } else { ReceiveStatus::new() };
            let status = status.with_first(number == 0);
            Descriptor::give_back(dma, *address, status.into())?;
            let skip = self.bus_mode.descriptor_skip();
            self.next_receive = descriptor.next(*address, self.receive_list, skip);
        }
        self.status.set_receive_interrupt(true);
        self.status.set_receive_state(process::RECEIVE_WAITING);
        if !complete {
            self.counters.rx_truncated += 1;
            self.status.set_receive_unavailable(true);
        }
        Ok(true)
    }

    /// Finds descriptors for so many bytes; whether they are enough.
    fn collect(
        &mut self,
        dma: &DmaMap,
        descriptors: &mut Vec<(u32, Descriptor)>,
        bytes: usize,
    ) -> Result<bool, DmaFault> {
        descriptors.clear();
        let (mut address, mut room) = (self.next_receive, 0);
        let skip = self.bus_mode.descriptor_skip();
        while room < bytes {
            // A list that comes back to itself has no more descriptors than it has.
            let again = descriptors.iter().any(|(known, _)| *known == address);
            if again || descriptors.len() == MAX_DESCRIPTORS {
                return Ok(false);
            }
            let Some(descriptor) = Descriptor::read(dma, address)? else {
                if descriptors.is_empty() {
                    self.status.set_receive_unavailable(true);
                    self.status.set_receive_state(process::RECEIVE_SUSPENDED);
                }
                return Ok(false);
            };
            room += descriptor.buffers().iter().map(|(_, size)| size).sum::<usize>();
            descriptors.push((address, descriptor));
            address = descriptor.next(address, self.receive_list, skip);
        }
        Ok(true)
    }
}
