//! No uplink: a NIC without a cable.

use std::os::fd::BorrowedFd;

use crate::{FrameBurst, LinkState, Uplink, UplinkError, UplinkSpec, UplinkStatistics};

/// An uplink whose link is always down.
#[derive(Debug, Default)]
pub struct NoUplink {
    statistics: UplinkStatistics,
}

impl Uplink for NoUplink {
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError> {
        burst.clear();
        Ok(0)
    }

    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError> {
        self.statistics.transmit_no_link += burst.len() as u64;
        Ok(burst.len())
    }

    fn link(&mut self) -> LinkState {
        LinkState::DOWN
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn statistics(&self) -> UplinkStatistics {
        self.statistics
    }

    fn spec(&self) -> &UplinkSpec {
        &UplinkSpec::None
    }
}
