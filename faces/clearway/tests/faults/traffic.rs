//! Frames with sequence numbers between VFs, by the AVF driver.

use std::{path::Path, time::Duration};

use arrayvec::ArrayVec;
use avf_driver::{AvfControl, AvfDriver, DriverConfig, QueuePair, RxSegment, TxSegment};

use crate::common::wait_for;

/// EtherType of local experiments (IEEE 802).
const ETHER_TYPE: [u8; 2] = [0x88, 0xB5];

/// A VF with its driver.
pub(crate) struct Vf {
    pub(crate) control: AvfControl,
    pub(crate) pair: QueuePair,
}

impl Vf {
    /// Opens the VF on a socket; a client before it may still be on its way out.
    pub(crate) fn open(socket: &Path) -> Self {
        Self::open_with(DriverConfig::new(socket))
    }

    pub(crate) fn open_with(config: DriverConfig) -> Self {
        let socket = config.socket.clone();
        let interrupts = config.interrupts;
        let (control, mut pairs) = wait_for("opening the VF", || {
            AvfDriver::open(DriverConfig { interrupts, ..DriverConfig::new(&socket) }).ok()
        });
        Self { control, pair: pairs.remove(0) }
    }

    /// Sends a frame from 02:…:`from` to 02:…:`to`; `false` if there is no room now.
    pub(crate) fn send(&mut self, from: u8, to: u8, number: u32) -> bool {
        let Some(buffer) = self.pair.tx.reserve() else { return false };
        let mut frame = [0u8; 60];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, to]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, from]);
        frame[12..14].copy_from_slice(&ETHER_TYPE);
        frame[14..18].copy_from_slice(&number.to_le_bytes());
        let memory = self.pair.tx.memory();
        memory.bytes(&buffer).unwrap().write_from(&frame);
        let mut burst = ArrayVec::<TxSegment, 1>::new();
        burst.push(TxSegment::frame(buffer, 60));
        let sent = self.pair.tx.transmit(&mut burst) == 1;
        if let Some(TxSegment { buffer, .. }) = burst.pop() {
            self.pair.tx.free(buffer);
        }
        sent
    }

    /// Sender and number of each frame that has come.
    pub(crate) fn receive(&mut self) -> Vec<(u8, u32)> {
        let memory = self.pair.rx.memory().clone();
        let mut segments = ArrayVec::<RxSegment, 64>::new();
        self.pair.rx.receive(&mut segments);
        let mut frames = Vec::new();
        for segment in segments {
            let mut frame = [0u8; 18];
            memory.bytes(&segment.buffer).unwrap().read_into(&mut frame);
            if frame[12..14] == ETHER_TYPE {
                let number = frame[14..18].try_into().unwrap();
                frames.push((frame[11], u32::from_le_bytes(number)));
            }
            self.pair.rx.free(segment.buffer);
        }
        frames
    }
}

/// One frame there and one back.
pub(crate) fn exchange(a: (&mut Vf, u8), b: (&mut Vf, u8), number: u32) {
    let ((a, a_mac), (b, b_mac)) = (a, b);
    wait_for("room", || a.send(a_mac, b_mac, number).then_some(()));
    wait_for("the frame", || b.receive().contains(&(a_mac, number)).then_some(()));
    wait_for("room", || b.send(b_mac, a_mac, number).then_some(()));
    wait_for("the frame", || a.receive().contains(&(b_mac, number)).then_some(()));
}

/// Frames in order from `from` to `to`, paced by what arrives: whatever is lost, is lost by a fault.
pub(crate) struct Stream {
    pub(crate) from: Vf,
    pub(crate) to: Vf,
    pub(crate) macs: (u8, u8),
    pub(crate) sent: u32,
    pub(crate) received: u32,
}

impl Stream {
    /// Frames on their way at most; fewer than a receive ring has descriptors.
    const WINDOW: u32 = 128;

    pub(crate) fn new(from: Vf, to: Vf, macs: (u8, u8)) -> Self {
        Self { from, to, macs, sent: 0, received: 0 }
    }

    /// Sends and receives what there is; frames of others are counted apart and returned.
    pub(crate) fn turn(&mut self, more: bool) -> u32 {
        let (mut others, before) = (0, self.received);
        while more && self.sent - self.received < Self::WINDOW {
            if !self.from.send(self.macs.0, self.macs.1, self.sent) {
                break;
            }
            self.sent += 1;
        }
        for (sender, number) in self.to.receive() {
            if sender == self.macs.0 {
                assert_eq!(number, self.received, "a frame was lost, doubled or reordered");
                self.received += 1;
            } else {
                others += 1;
            }
        }
        others += self.from.receive().len() as u32;
        if self.received == before {
            std::thread::sleep(Duration::from_micros(50));
        }
        others
    }

    /// Receives what is on its way.
    pub(crate) fn drain(&mut self) {
        wait_for("the last frames", || {
            self.turn(false);
            (self.received == self.sent).then_some(())
        });
    }
}
