//! What a capture holds for the VMs that are to receive it.

use std::{collections::BTreeMap, fs::File, path::Path};

use anyhow::{Context, Result};
use ndis_protocol::MacAddress;
use pcap_file::pcap::PcapReader;

/// Frames of a capture, by where they go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    /// All frames.
    pub(crate) frames: u64,
    /// Frames to everyone.
    pub(crate) broadcast: u64,
    /// Frames to groups.
    pub(crate) multicast: u64,
    /// Untagged frames by unicast destination.
    pub(crate) unicast: BTreeMap<[u8; 6], u64>,
}

impl Contents {
    /// Reads a capture.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("the capture {}", path.display()))?;
        let mut reader = PcapReader::new(file)
            .with_context(|| format!("{} is not a pcap file", path.display()))?;
        let mut contents = Self::default();
        while let Some(packet) = reader.next_packet() {
            let number = contents.frames + 1;
            let packet = packet.with_context(|| format!("frame {number} of {}", path.display()))?;
            contents.frames += 1;
            let Some(&[d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, t0, t1]) =
                packet.data.first_chunk::<14>()
            else {
                continue;
            };
            let destination = [d0, d1, d2, d3, d4, d5];
            if destination == [0xFF; 6] {
                contents.broadcast += 1;
            } else if d0 & 1 != 0 {
                contents.multicast += 1;
            } else if [t0, t1] != [0x81, 0x00] {
                *contents.unicast.entry(destination).or_default() += 1;
            }
        }
        Ok(contents)
    }

    /// The `count` stations that most frames go to, the busiest first.
    pub(crate) fn busiest(&self, count: usize) -> Vec<MacAddress> {
        let mut stations: Vec<_> = self.unicast.iter().collect();
        stations.sort_by_key(|(mac, frames)| (std::cmp::Reverse(**frames), **mac));
        stations.into_iter().take(count).map(|(mac, _)| MacAddress::new(*mac)).collect()
    }
}
