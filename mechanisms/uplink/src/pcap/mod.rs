//! Uplink over capture files: one is replayed to the NIC, into another goes what the NIC sends.
//!
//! Classic pcap with an Ethernet link type, with timestamps in microseconds or nanoseconds, in either byte
//! order. The link is up for as long as the uplink is open, also after the end of the replay.

mod record;
mod replay;
#[cfg(test)]
mod tests;

use std::{
    os::fd::BorrowedFd,
    path::Path,
    time::{Instant, SystemTime},
};

use record::Recorder;
use replay::Replayer;

use crate::{
    ETHERNET_HEADER, FrameBurst, LinkState, ReplayTiming, Uplink, UplinkError, UplinkSpec,
    UplinkStatistics,
};

/// An uplink that replays and records.
#[derive(Debug)]
pub struct PcapUplink {
    replay: Option<Replayer>,
    record: Option<Recorder>,
    spec: UplinkSpec,
    max_frame: usize,
    statistics: UplinkStatistics,
}

impl PcapUplink {
    /// Opens the capture to replay and creates the one to record into; either may be absent.
    ///
    /// Without a capture to record into, what the NIC sends is counted and forgotten.
    pub fn open(
        input: Option<&Path>,
        output: Option<&Path>,
        timing: ReplayTiming,
        max_frame: usize,
    ) -> Result<Self, UplinkError> {
        Ok(Self {
            replay: input.map(|path| Replayer::open(path, timing)).transpose()?,
            record: output.map(Recorder::create).transpose()?,
            spec: UplinkSpec::Pcap {
                input: input.map(Path::to_owned),
                output: output.map(Path::to_owned),
                timing,
            },
            max_frame,
            statistics: UplinkStatistics::default(),
        })
    }
}

impl Uplink for PcapUplink {
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError> {
        burst.clear();
        let Some(replay) = &mut self.replay else {
            return Ok(0);
        };
        let result = replay.fill(burst, &mut self.statistics);
        for frame in burst.iter() {
            self.statistics.received_frames += 1;
            self.statistics.received_bytes += frame.len() as u64;
        }
        // Frames read before the damaged one are good; the error is told when they are gone.
        match result {
            Err(error) if burst.is_empty() => Err(error),
            Err(error) => {
                replay.postpone(error);
                Ok(burst.len())
            }
            Ok(()) => Ok(burst.len()),
        }
    }

    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError> {
        let now = SystemTime::now();
        let mut result = Ok(burst.len());
        for frame in burst.iter() {
            if !(ETHERNET_HEADER..=self.max_frame).contains(&frame.len()) {
                self.statistics.transmit_bad_length += 1;
                continue;
            }
            let written = self.record.as_mut().map_or(Ok(true), |record| record.write(frame, now));
            match written {
                Ok(true) => {
                    self.statistics.transmitted_frames += 1;
                    self.statistics.transmitted_bytes += frame.len() as u64;
                }
                Ok(false) => self.statistics.transmit_errors += 1,
                Err(error) => {
                    self.statistics.transmit_errors += 1;
                    result = Err(error);
                }
            }
        }
        result
    }

    fn link(&mut self) -> LinkState {
        if let Some(record) = &mut self.record {
            record.flush_if_old(Instant::now());
        }
        LinkState::up(0)
    }

    fn arm(&mut self) -> Result<bool, UplinkError> {
        if let Some(record) = &mut self.record {
            record.flush()?;
        }
        Ok(self.replay.as_mut().is_none_or(Replayer::arm))
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.replay.as_ref().and_then(Replayer::wait_fd)
    }

    fn statistics(&self) -> UplinkStatistics {
        self.statistics
    }

    fn replay_finished(&self) -> Option<bool> {
        self.replay.as_ref().map(Replayer::is_finished)
    }

    fn spec(&self) -> &UplinkSpec {
        &self.spec
    }
}
