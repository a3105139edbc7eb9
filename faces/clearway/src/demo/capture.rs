//! What a capture holds for the VMs that are to receive it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};
use ndis_protocol::MacAddress;
use serde::Serialize;
use uplink::{FrameBurst, PcapUplink, ReplayTiming, Uplink};

/// Frames of a capture, by where they go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    /// Frames that can be replayed.
    pub(crate) frames: u64,
    /// Frames that cannot: cut off by the capture's snap length, or of no length that a NIC takes.
    pub(crate) not_replayable: u64,
    /// Frames in a VLAN. The demo's VMs are in none.
    tagged: u64,
    /// Frames to everyone.
    broadcast: u64,
    /// Frames to groups.
    groups: BTreeMap<[u8; 6], u64>,
    /// Frames to one station.
    unicast: BTreeMap<[u8; 6], u64>,
}

/// Frames for one station.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct Share {
    pub(crate) unicast: u64,
    pub(crate) broadcast: u64,
    pub(crate) multicast: u64,
}

impl Share {
    pub(crate) fn total(&self) -> u64 {
        self.unicast + self.broadcast + self.multicast
    }
}

impl Contents {
    /// Reads a capture, as an adapter would replay it.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let mut contents = Self::default();
        contents.not_replayable = read(path, |frame| contents.add(frame)).context(
            "the uplink has nothing to replay (captures are written by `tcpdump -w FILE` or an uplink pcap:,FILE)",
        )?;
        Ok(contents)
    }

    fn add(&mut self, frame: &[u8]) {
        self.frames += 1;
        let Some(&[d0, d1, d2, d3, d4, d5, .., t0, t1]) = frame.first_chunk::<14>() else { return };
        let destination = [d0, d1, d2, d3, d4, d5];
        // A tag with VLAN id 0 is a priority alone.
        let in_vlan = match frame.get(14..16) {
            Some(&[high, low]) if [t0, t1] == [0x81, 0x00] => [high & 0x0F, low] != [0, 0],
            _ => false,
        };
        if in_vlan {
            self.tagged += 1;
        } else if destination == [0xFF; 6] {
            self.broadcast += 1;
        } else if d0 & 1 != 0 {
            *self.groups.entry(destination).or_default() += 1;
        } else {
            *self.unicast.entry(destination).or_default() += 1;
        }
    }

    /// The `count` stations that most frames go to, the busiest first.
    pub(crate) fn busiest(&self, count: usize) -> Vec<MacAddress> {
        let mut stations: Vec<_> = self.unicast.iter().filter(|(mac, _)| **mac != [0; 6]).collect();
        stations.sort_by_key(|(mac, frames)| (std::cmp::Reverse(**frames), **mac));
        stations.into_iter().take(count).map(|(mac, _)| MacAddress::new(*mac)).collect()
    }

    /// What is for a station that listens to these groups.
    pub(crate) fn share(&self, station: [u8; 6], groups: &BTreeSet<[u8; 6]>) -> Share {
        Share {
            unicast: self.unicast.get(&station).copied().unwrap_or(0),
            broadcast: self.broadcast,
            multicast: self.multicast(groups),
        }
    }

    /// Frames to any of these groups.
    pub(crate) fn multicast(&self, groups: &BTreeSet<[u8; 6]>) -> u64 {
        groups.iter().filter_map(|group| self.groups.get(group)).sum()
    }

    /// Frames to everyone, or to any group.
    pub(crate) fn to_many(&self) -> u64 {
        self.broadcast + self.groups.values().sum::<u64>()
    }

    /// Frames to one station each.
    pub(crate) fn to_one(&self) -> u64 {
        self.unicast.values().sum()
    }

    /// Frames to everyone.
    pub(crate) fn broadcast(&self) -> u64 {
        self.broadcast
    }
}

/// What an adapter has recorded, by who sent it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    pub(crate) frames: u64,
    stations: BTreeMap<[u8; 6], Contents>,
}

impl Recording {
    /// Reads what is there by now; while the adapter is writing that may end inside a frame.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let mut recording = Self::default();
        read(path, |frame| {
            recording.frames += 1;
            if let Some(&[_, _, _, _, _, _, s0, s1, s2, s3, s4, s5]) = frame.first_chunk::<12>() {
                recording.stations.entry([s0, s1, s2, s3, s4, s5]).or_default().add(frame);
            }
        })?;
        Ok(recording)
    }

    /// What one station sent.
    pub(crate) fn from(&self, station: [u8; 6]) -> Contents {
        self.stations.get(&station).cloned().unwrap_or_default()
    }
}

/// Reads every frame that can be replayed; returns how many cannot.
fn read(path: &Path, mut each: impl FnMut(&[u8])) -> Result<u64> {
    let max_frame = usize::from(adapter::AdapterConfig::new("", "").max_frame);
    let mut capture = PcapUplink::open(Some(path), None, ReplayTiming::Fast, max_frame)?;
    let mut burst = FrameBurst::new(64, max_frame);
    while capture.replay_finished() == Some(false) {
        capture.receive(&mut burst)?;
        burst.iter().for_each(&mut each);
    }
    let statistics = capture.statistics();
    Ok(statistics.received_too_long
        + statistics.received_too_short
        + statistics.received_incomplete)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(destination: [u8; 6], tag: &[u8]) -> Vec<u8> {
        let mut frame = destination.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(tag);
        frame.extend([0x88, 0xB5]);
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn frames_are_counted_for_those_who_are_to_receive_them() {
        let group = [0x33, 0x33, 0, 0, 0, 1];
        let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut contents = Contents::default();
        for (destination, tag) in [
            (one, &[][..]),
            (one, &[0x81, 0, 0xE0, 0]),
            (one, &[0x81, 0, 0, 5]),
            (one, &[0x81, 0, 1, 0]),
            (two, &[]),
            ([0; 6], &[]),
            ([0; 6], &[]),
            ([0; 6], &[]),
            ([0xFF; 6], &[]),
            (group, &[]),
        ] {
            contents.add(&frame(destination, tag));
        }
        assert_eq!((contents.frames, contents.tagged), (10, 2));
        assert_eq!((contents.to_one(), contents.to_many()), (6, 2));
        // The address of no station is none of the busiest.
        let busiest: Vec<_> = contents.busiest(2).iter().map(|mac| mac.octets()).collect();
        assert_eq!(busiest, [one, two]);
        let deaf = contents.share(one, &BTreeSet::new());
        assert_eq!(deaf, Share { unicast: 2, broadcast: 1, multicast: 0 });
        assert_eq!(contents.share(two, &BTreeSet::from([group])).total(), 3);
    }
}
