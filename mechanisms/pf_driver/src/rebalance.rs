//! A rebalance as the PnP manager runs it: ask, stop, change resources, start (SPEC-PCIVIRT §8.6, flows F1 to F4).

use device_control_protocol::ClientId;
use pcivirt_protocol::NtStatus;

use crate::pnp::PnpEvent;
use crate::{PfDriver, SriovDevice};

/// How a rebalance ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Rebalance {
    /// The device was stopped, has other resources, and runs again.
    Done {
        /// The client that was asked and allowed it, or left while it was asked; `None` if nobody was attached.
        asked: Option<ClientId>,
    },
    /// A client did not allow the stop: nothing has changed.
    Vetoed {
        /// The client.
        by: ClientId,
        /// The status that it gave.
        status: NtStatus,
    },
    /// The device is gone, or was being stopped, started or removed already. Resources have not changed, unless the device
    /// went while the restart was announced.
    Failed(NtStatus),
}

impl<D: SriovDevice + ?Sized> PfDriver<D> {
    /// Runs a rebalance on this thread, which waits for the subscriber twice: before the stop, which it may veto, and
    /// after the restart (or after the stop was called off), until it has taken notice. `change` is called in between, if
    /// the stop is allowed: it stops the device's functions, gives the device its new resources, and starts it again.
    ///
    /// Like the PnP methods: not while another of them runs. One that comes all the same fails, and disturbs nothing.
    pub fn rebalance(&self, change: impl FnOnce()) -> Rebalance {
        let query = self.pnp(PnpEvent::QueryStop);
        if !query.status.is_success() {
            return match query.asked {
                // Whoever answers is attached, unless it is the device that has gone.
                Some(by) if !self.pnp_state().is_removed() => match self.cancel_stop() {
                    NtStatus::DEVICE_REMOVED => Rebalance::Failed(NtStatus::DEVICE_REMOVED),
                    _ => Rebalance::Vetoed { by, status: query.status },
                },
                _ => Rebalance::Failed(query.status),
            };
        }
        let stopped = self.stop();
        if !stopped.is_success() {
            return Rebalance::Failed(stopped);
        }
        change();
        let started = self.start();
        if started.is_success() {
            Rebalance::Done { asked: query.asked }
        } else {
            Rebalance::Failed(started)
        }
    }
}
