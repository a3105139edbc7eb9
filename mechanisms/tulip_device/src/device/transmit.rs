//! The transmit process (HRM chapter 4.3.5).

use shared_memory::{DmaAddress, DmaFault, DmaMap};

use super::TulipDevice;
use crate::{
    csr::process,
    descriptor::{Control, Descriptor, SETUP_DONE, TransmitStatus},
    filter::{Filter, SETUP_FRAME_SIZE},
};

/// Descriptors that one call works on.
const BUDGET: usize = 1024;
/// Where the jabber timer stops a frame, bytes.
const JABBER: usize = 2048;
/// Shorter frames are padded, bytes without the checksum.
const SHORTEST: usize = 60;

/// What a call of [`TulipDevice::transmit`] came to.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum TxOutcome {
    /// There is nothing left to be sent.
    Idle,
    /// There may be more: [`TulipDevice::transmit_due`] is still true, and others may come first.
    More,
}

/// A frame that has begun and not ended.
#[derive(Debug, Default)]
pub(crate) struct Partial {
    bytes: Vec<u8>,
    begun: bool,
    jabber: bool,
}

impl TulipDevice {
    /// Walks the transmit list: setup frames are taken in, frames given to `send`, without checksums. Works on a
    /// bounded number of descriptors.
    pub fn transmit(&mut self, dma: &DmaMap, send: &mut dyn FnMut(&[u8])) -> TxOutcome {
        for _ in 0..BUDGET {
            if !self.transmit_due() || !self.mode.start_transmit() {
                return TxOutcome::Idle;
            }
            match Descriptor::read(dma, self.next_transmit) {
                Ok(Some(descriptor)) => {
                    if self.transmit_one(dma, &descriptor, send).is_err() {
                        self.bus_error();
                        return TxOutcome::Idle;
                    }
                }
                Ok(None) => {
                    self.transmit_due = false;
                    self.status.set_transmit_unavailable(true);
                    self.status.set_transmit_state(process::TRANSMIT_SUSPENDED);
                    return TxOutcome::Idle;
                }
                Err(_) => {
                    self.bus_error();
                    return TxOutcome::Idle;
                }
            }
        }
        TxOutcome::More
    }

    fn transmit_one(
        &mut self,
        dma: &DmaMap,
        descriptor: &Descriptor,
        send: &mut dyn FnMut(&[u8]),
    ) -> Result<(), DmaFault> {
        let address = self.next_transmit;
        let control = descriptor.control;
        let skip = self.bus_mode.descriptor_skip();
        let next = descriptor.next(address, self.transmit_list, skip);
        if control.setup() {
            self.take_setup(dma, descriptor)?;
            Descriptor::give_back(dma, address, SETUP_DONE)?;
        } else {
            self.gather(dma, descriptor)?;
            let ended = control.last().then(|| std::mem::take(&mut self.partial));
            let status = ended.as_ref().map_or(TransmitStatus::new(), |frame| self.judge(frame));
            Descriptor::give_back(dma, address, status.into())?;
            if let Some(mut frame) = ended {
                if !status.error_summary() {
                    self.send_frame(dma, &mut frame, control, send);
                }
                // The buffer is used again.
                frame.bytes.clear();
                self.partial.bytes = frame.bytes;
            }
        }
        self.next_transmit = next;
        if control.interrupt() && (control.last() || control.setup()) {
            self.status.set_transmit_interrupt(true);
        }
        Ok(())
    }

    fn take_setup(&mut self, dma: &DmaMap, descriptor: &Descriptor) -> Result<(), DmaFault> {
        let control = descriptor.control;
        let [(address, size), _] = descriptor.buffers();
        if size != SETUP_FRAME_SIZE {
            // No filter can be made of it; the one there was stays.
            self.counters.tx_errors += 1;
            return Ok(());
        }
        let mut frame = [0; SETUP_FRAME_SIZE];
        dma.read_bytes(DmaAddress(address.into()), &mut frame)?;
        let (filter_1, filter_0) = (control.filter_1(), control.filter_0());
        self.filter = Filter::of(&frame, filter_1, filter_0);
        self.mode.set_hash_filtering(filter_0);
        self.mode.set_hash_only(filter_1 && filter_0);
        self.mode.set_inverse_filtering(filter_1 && !filter_0);
        Ok(())
    }

    /// Adds what a descriptor has to the frame.
    fn gather(&mut self, dma: &DmaMap, descriptor: &Descriptor) -> Result<(), DmaFault> {
        let frame = &mut self.partial;
        if descriptor.control.first() {
            frame.bytes.clear();
            (frame.begun, frame.jabber) = (true, false);
        }
        for (address, size) in descriptor.buffers() {
            let before = frame.bytes.len();
            if !frame.begun || size == 0 {
                continue;
            }
            if before + size > JABBER {
                frame.jabber = true;
                continue;
            }
            frame.bytes.resize(before + size, 0);
            let place = frame.bytes.get_mut(before..).unwrap_or_default();
            dma.read_bytes(DmaAddress(address.into()), place)?;
        }
        Ok(())
    }

    /// What becomes of a frame that has ended.
    fn judge(&mut self, frame: &Partial) -> TransmitStatus {
        let mut status = TransmitStatus::new();
        if frame.jabber {
            status.set_jabber(true);
            self.status.set_transmit_jabber(true);
        } else if !frame.begun {
            status.set_error_summary(true);
        } else if !self.link() && self.mode.loopback() == 0 {
            status.set_no_carrier(true);
            status.set_loss_of_carrier(true);
        }
        if u32::from(status) != 0 {
            status.set_error_summary(true);
            self.counters.tx_errors += 1;
        }
        status
    }

    fn send_frame(
        &mut self,
        dma: &DmaMap,
        frame: &mut Partial,
        control: Control,
        send: &mut dyn FnMut(&[u8]),
    ) {
        let bytes = &mut frame.bytes;
        if control.no_checksum() {
            // The driver has put a checksum there, which goes no further than this wire.
            bytes.truncate(bytes.len().saturating_sub(4));
        } else if !control.no_padding() && bytes.len() < SHORTEST {
            bytes.resize(SHORTEST, 0);
        }
        self.counters.tx_frames += 1;
        self.counters.tx_bytes += bytes.len() as u64;
        match self.mode.loopback() {
            0 => send(bytes),
            // What it is good for is the driver's to see.
            _ => drop(self.receive(dma, bytes)),
        }
    }
}
