//! Whether a frame's cost stays what it is as VFs and receive filters grow.
//!
//! Two VFs exchange 64-byte frames while the others are up and silent: their queues are enabled, and the
//! worker has to look at them. Filters beyond the VFs' own stand for more addresses; with *spread* traffic the
//! frames go to all of the sink's addresses in turn, so that every lookup hits another filter.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::{
    cores::{Cores, apart},
    forward::{Ends, ring},
    nic::{Nic, Vf, VfOptions, vport},
    path::Path,
    sample::Rate,
    traffic::mac,
};

/// Addresses beyond the VFs' own begin here.
const FIRST_EXTRA_ADDRESS: u32 = 0x10_0000;

/// One size of adapter.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug, Serialize)]
pub(crate) struct Scale {
    /// VFs up.
    pub(crate) vfs: u16,
    /// Receive filters set.
    pub(crate) filters: u32,
    /// Frames go to all addresses of the sink in turn.
    pub(crate) spread: bool,
}

/// The sizes measured: VFs grow, then filters, then filters that are all used.
pub(crate) const SCALES: [Scale; 9] = [
    Scale { vfs: 2, filters: 2, spread: false },
    Scale { vfs: 64, filters: 64, spread: false },
    Scale { vfs: 256, filters: 256, spread: false },
    Scale { vfs: 2, filters: 16, spread: false },
    Scale { vfs: 2, filters: 4096, spread: false },
    Scale { vfs: 2, filters: 65_536, spread: false },
    Scale { vfs: 2, filters: 16, spread: true },
    Scale { vfs: 2, filters: 4096, spread: true },
    Scale { vfs: 2, filters: 65_536, spread: true },
];

/// Measures 64-byte frames on an adapter of this size.
pub(crate) fn measure(scale: Scale, duration: Duration, cores: Cores) -> anyhow::Result<Rate> {
    apart(|| run(scale, duration, cores))
        .with_context(|| format!("{} VFs, {} filters", scale.vfs, scale.filters))
}

fn run(scale: Scale, duration: Duration, cores: Cores) -> anyhow::Result<Rate> {
    let mut nic = Nic::start(scale.vfs, cores)?;
    for _ in 0..scale.vfs {
        nic.allocate()?;
    }
    // The extra addresses are the sink's, VF 1's.
    let mut destinations = vec![mac(1)];
    while nic.filters() < scale.filters {
        let address = mac(FIRST_EXTRA_ADDRESS + nic.filters());
        nic.add_filter(address, vport(1)?)?;
        destinations.push(address);
    }
    let small = VfOptions { ring: 64, buffer_size: 2048 };
    let _silent = (2..u32::from(scale.vfs))
        .map(|number| nic.open(number, small))
        .collect::<anyhow::Result<Vec<Vf>>>()?;
    let mut ends = Ends::open(&nic, 0, 1, 64, ring(64), cores)?;
    if scale.spread {
        ends.spread_over(destinations);
    }
    ends.rate(duration)
}
