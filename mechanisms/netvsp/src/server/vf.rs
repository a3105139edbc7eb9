//! The VF beside a synthetic NIC: association and data-path switch (SPEC-VMBUS §7).
//!
//! Level-triggered: what is wanted is remembered, and each event moves the state towards it as far as it can go.

use std::time::{Duration, Instant};

use netvsp_protocol::nvsp::DataPath;

/// Where a NIC's VF is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum VfState {
    /// There is none.
    Unavailable,
    /// There is one, and the guest cannot be told, or not yet.
    Available {
        /// Its serial number.
        serial: u32,
    },
    /// The guest was told; the VPCI device is not offered yet.
    Advertised {
        /// Its serial number.
        serial: u32,
        /// When it will be.
        offer_at: Instant,
    },
    /// The guest has the VF; frames take the synthetic path.
    Ready {
        /// Its serial number.
        serial: u32,
        /// False after filters could not be moved: they may still point to the VF.
        settled: bool,
    },
    /// Filters are being moved.
    Switching {
        /// Its serial number.
        serial: u32,
        /// To which path.
        to: DataPath,
        /// The guest's request that is to be completed then.
        request: Option<u64>,
        /// What comes next.
        then: Then,
    },
    /// Frames take the VF.
    Switched {
        /// Its serial number.
        serial: u32,
    },
}

/// What follows a move of filters.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Then {
    /// Nothing.
    Stay,
    /// Another request of the guest.
    Move(
        /// To which path.
        DataPath,
        /// The request.
        Option<u64>,
    ),
    /// The VF is taken away.
    Remove,
}

/// What is to be done, in this order.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum VfEffect {
    /// SEND_VF_ASSOCIATION.
    Associate { allocated: bool, serial: u32 },
    /// SWITCH_DATA_PATH(synthetic) to the guest.
    NotifySynthetic,
    /// The guest's request is done.
    Complete(u64),
    /// Move filters.
    MoveFilters(DataPath),
    /// Offer the VPCI device.
    OfferVpci(u32),
    /// Take it away.
    RevokeVpci(u32),
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Vf {
    state: VfState,
    /// The VF that there should be.
    wanted: Option<u32>,
    /// Whether the guest can have one and is up.
    able: bool,
    /// How long after the guest was told of the VF its device is offered.
    offer_delay: Duration,
    out: Vec<VfEffect>,
}

impl Vf {
    pub(super) fn new(offer_delay: Duration) -> Self {
        let state = VfState::Unavailable;
        Self { state, wanted: None, able: false, offer_delay, out: Vec::new() }
    }

    pub(super) fn state(&self) -> VfState {
        self.state
    }

    /// What is to be done since the last time.
    pub(super) fn take(&mut self) -> Vec<VfEffect> {
        std::mem::take(&mut self.out)
    }

    /// A VF with this serial number is there, or none.
    pub(super) fn want(&mut self, wanted: Option<u32>, now: Instant) {
        self.wanted = wanted;
        self.advance(now);
    }

    /// The guest is up, and can have a VF or not. One that was told before has forgotten.
    pub(super) fn initialized(&mut self, able: bool, now: Instant) {
        self.able = able;
        if let Some(serial) = self.told() {
            if able {
                self.out.push(VfEffect::Associate { allocated: true, serial });
            } else {
                self.remove();
            }
        }
        self.advance(now);
    }

    /// The channel closed: the guest keeps its VF, and its requests are forgotten (SPEC-VMBUS §7).
    pub(super) fn closed(&mut self) {
        self.able = false;
        if let VfState::Switching { request, then, .. } = &mut self.state {
            *request = None;
            if let Then::Move(..) = then {
                *then = Then::Stay;
            }
        }
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            VfState::Advertised { offer_at, .. } => Some(offer_at),
            _ => None,
        }
    }

    pub(super) fn tick(&mut self, now: Instant) {
        if let VfState::Advertised { serial, offer_at } = self.state
            && now >= offer_at
        {
            self.out.push(VfEffect::OfferVpci(serial));
            self.state = VfState::Ready { serial, settled: true };
        }
    }

    /// The serial number that the guest was told.
    fn told(&self) -> Option<u32> {
        match self.state {
            VfState::Unavailable | VfState::Available { .. } => None,
            VfState::Advertised { serial, .. }
            | VfState::Ready { serial, .. }
            | VfState::Switching { serial, .. }
            | VfState::Switched { serial } => Some(serial),
        }
    }

    fn advance(&mut self, now: Instant) {
        let serial = match self.state {
            VfState::Unavailable => None,
            VfState::Available { serial } => Some(serial),
            _ => self.told(),
        };
        if serial.is_some() && serial != self.wanted {
            self.remove();
        }
        if self.state == VfState::Unavailable
            && let Some(serial) = self.wanted
        {
            self.state = VfState::Available { serial };
        }
        if let VfState::Available { serial } = self.state
            && self.able
        {
            self.out.push(VfEffect::Associate { allocated: true, serial });
            self.state = VfState::Advertised { serial, offer_at: now + self.offer_delay };
        }
    }

    /// Takes the VF away: filters first, then the guest is told, then the device goes.
    fn remove(&mut self) {
        match self.state {
            VfState::Unavailable | VfState::Available { .. } => self.state = VfState::Unavailable,
            VfState::Advertised { serial, .. } => {
                self.out.push(VfEffect::Associate { allocated: false, serial });
                self.state = VfState::Unavailable;
            }
            VfState::Ready { serial, settled: true } => {
                self.out.push(VfEffect::Associate { allocated: false, serial });
                self.out.push(VfEffect::RevokeVpci(serial));
                self.state = VfState::Unavailable;
            }
            VfState::Ready { serial, settled: false } | VfState::Switched { serial } => {
                self.switch(serial, DataPath::Synthetic, None, Then::Remove);
            }
            VfState::Switching { ref mut then, .. } => {
                if let Then::Move(_, Some(request)) = *then {
                    self.out.push(VfEffect::Complete(request));
                }
                *then = Then::Remove;
            }
        }
    }

    fn switch(&mut self, serial: u32, to: DataPath, request: Option<u64>, then: Then) {
        self.out.push(VfEffect::MoveFilters(to));
        self.state = VfState::Switching { serial, to, request, then };
    }

    fn complete(&mut self, request: Option<u64>) {
        self.out.extend(request.map(VfEffect::Complete));
    }

    /// The guest asks for a path; `request` is to be completed if it asked for that.
    pub(super) fn guest_asks(&mut self, path: DataPath, request: Option<u64>) {
        match (self.state, path) {
            (VfState::Unavailable | VfState::Available { .. }, DataPath::Vf) => {
                self.complete(request);
                self.out.push(VfEffect::NotifySynthetic);
            }
            (VfState::Advertised { serial, .. }, DataPath::Vf) => {
                self.out.push(VfEffect::OfferVpci(serial));
                self.switch(serial, path, request, Then::Stay);
            }
            (VfState::Ready { serial, .. }, DataPath::Vf)
            | (VfState::Ready { serial, settled: false }, DataPath::Synthetic)
            | (VfState::Switched { serial }, DataPath::Synthetic) => {
                self.switch(serial, path, request, Then::Stay);
            }
            (VfState::Switching { serial, to, request: pending, then }, _) => {
                self.ask_again(serial, to, pending, then, path, request);
            }
            (
                VfState::Unavailable
                | VfState::Available { .. }
                | VfState::Advertised { .. }
                | VfState::Ready { .. },
                DataPath::Synthetic,
            )
            | (VfState::Switched { .. }, DataPath::Vf) => self.complete(request),
        }
    }

    /// A request while filters are being moved. A guest waits for the answer to one before it asks again, but may
    /// ask while the host moves by itself.
    fn ask_again(
        &mut self,
        serial: u32,
        to: DataPath,
        pending: Option<u64>,
        then: Then,
        path: DataPath,
        request: Option<u64>,
    ) {
        let (pending, then) = match (pending, then) {
            (None, Then::Remove) => (request, then),
            (None, Then::Stay) if path == to => (request, then),
            (_, Then::Stay) => (pending, Then::Move(path, request)),
            (_, Then::Move(..) | Then::Remove) => {
                self.complete(request);
                (pending, then)
            }
        };
        self.state = VfState::Switching { serial, to, request: pending, then };
    }

    /// Filters were moved, or could not be.
    pub(super) fn moved(&mut self, done: bool, now: Instant) {
        let VfState::Switching { serial, to, request, then } = self.state else { return };
        self.complete(request);
        match (then, to, done) {
            // Even if they could not be moved: an earlier move home may have failed, too.
            (Then::Remove, DataPath::Vf, _) => {
                self.switch(serial, DataPath::Synthetic, None, Then::Remove);
            }
            (Then::Remove, _, _) => {
                self.out.push(VfEffect::NotifySynthetic);
                self.out.push(VfEffect::Associate { allocated: false, serial });
                self.out.push(VfEffect::RevokeVpci(serial));
                self.state = VfState::Unavailable;
                self.advance(now);
            }
            (_, DataPath::Vf, true) => self.state = VfState::Switched { serial },
            (_, DataPath::Vf, false) => {
                self.out.push(VfEffect::NotifySynthetic);
                self.state = VfState::Ready { serial, settled: false };
            }
            (_, DataPath::Synthetic, done) => {
                self.state = VfState::Ready { serial, settled: done };
            }
        }
        if let Then::Move(path, request) = then {
            self.guest_asks(path, request);
        }
    }
}

#[cfg(test)]
mod tests;
