//! The life of one device: a VF that is opened, offered, used, and taken away.
//!
//! | phase | event | next | reported |
//! |---|---|---|---|
//! | Opening | VF and PF driver have said what the function is | Live | Offered |
//! | Opening | one of them fails, or is not heard of in time | Closing | |
//! | Opening | remove, eject, the guest is gone | Closing | |
//! | Live | the guest negotiates a version | Live | BusOpened |
//! | Live | an interrupt is routed | Live | DeviceStarted |
//! | Live | the guest closes its channel | Live | Offered |
//! | Live | the guest confirms an ejection | Live, given up | EjectComplete |
//! | Live | remove, an ejection that is not confirmed, the VF's server is gone, the guest is gone | Closing | |
//! | Closing | nobody here uses the VF any more | gone | Removed, OfferFailed |

use std::time::Duration;

use device_control_protocol::{ProbedBars, VendorAndDevice};
use partition::Retarget;
use pcivirt_protocol::NtStatus;
use zerocopy::FromBytes;

use super::{Cx, live::Live, nics::NicNumber};
use crate::{
    control::{DeviceName, DeviceState, DeviceStatus, MitigatedRanges, OfferVf},
    event::Event,
    log_budget::LogBudget,
    vf::{Access, OpenedVf, Vf, VfEvent},
};

/// How long VF and PF driver have, together, to say what the function is.
const OPENING: Duration = Duration::from_secs(10);

/// A device.
pub(super) struct Device {
    pub(super) name: DeviceName,
    /// Of this offering.
    pub(super) number: u64,
    pub(super) offer: OfferVf,
    pub(super) state: DeviceState,
    pub(super) nic: NicNumber,
    phase: Phase,
    vf: Vf,
    log: LogBudget,
}

enum Phase {
    Opening(Box<Opening>),
    Live(Box<Live>),
    Closing {
        /// What it will have become.
        end: DeviceState,
    },
    Gone,
}

struct Opening {
    deadline: Duration,
    opened: Option<Box<OpenedVf>>,
    ids: Option<VendorAndDevice>,
    bars: Option<ProbedBars>,
}

/// What the PF driver has said of a VF that is being opened.
pub(super) enum Said {
    Ids(Result<VendorAndDevice, NtStatus>),
    Bars(Result<ProbedBars, NtStatus>),
}

impl Said {
    pub(super) fn ids(answer: Result<Vec<u8>, NtStatus>) -> Self {
        Self::Ids(read(answer))
    }

    pub(super) fn bars(answer: Result<Vec<u8>, NtStatus>) -> Self {
        Self::Bars(read(answer))
    }
}

fn read<T: FromBytes>(answer: Result<Vec<u8>, NtStatus>) -> Result<T, NtStatus> {
    answer.and_then(|output| T::read_from_bytes(&output).map_err(|_| NtStatus::UNSUCCESSFUL))
}

impl Device {
    /// Begins to open a VF.
    pub(super) fn open(offer: OfferVf, number: u64, cx: &mut Cx) -> std::io::Result<Self> {
        let name = DeviceName { adapter: offer.adapter, serial: offer.serial };
        let events = cx.events.clone();
        let tell = move |event| events.send(Event::Vf(name, number, event));
        let vf = Vf::start(offer.vf_socket.clone(), cx.partition.memory(), tell)?;
        let nic = cx.nics.acquire(&offer.nic, &cx.client, &cx.events)?;
        cx.nics.describe(nic, name, number, offer.vf);
        let deadline = cx.now() + OPENING;
        let opening = Opening { deadline, opened: None, ids: None, bars: None };
        let phase = Phase::Opening(Box::new(opening));
        let (state, log) = (DeviceState::Opening, LogBudget::default());
        Ok(Self { name, number, offer, state, nic, phase, vf, log })
    }

    /// Whether nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Its function, while there is one.
    pub(super) fn live(&self) -> Option<&Live> {
        match &self.phase {
            Phase::Live(live) => Some(live),
            _ => None,
        }
    }

    /// Its function, while there is one.
    pub(super) fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.phase {
            Phase::Live(live) => Some(live),
            _ => None,
        }
    }

    fn set_state(&mut self, state: DeviceState, cx: &mut Cx) {
        if self.state != state {
            // A guest may open and close its bus without end.
            if self.log.spend() {
                let DeviceName { adapter, serial } = self.name;
                tracing::info!(adapter, serial, ?state, "a device of the guest");
            }
            self.state = state.clone();
            cx.reports.device(self.name, state);
        }
    }

    /// Leaves the VF; then the device is what `end` says.
    fn close(&mut self, end: DeviceState, cx: &mut Cx) {
        let closing = Phase::Closing { end: end.clone() };
        match std::mem::replace(&mut self.phase, closing) {
            Phase::Opening(_) => {}
            Phase::Live(live) => {
                cx.nics.forget(self.nic, self.offer.vf);
                live.end(cx);
            }
            Phase::Closing { end: before } => {
                // Whoever removes it hears that it was; else holds what was said first.
                let end = if end == DeviceState::Removed { end } else { before };
                self.phase = Phase::Closing { end };
                return;
            }
            Phase::Gone => {
                self.phase = Phase::Gone;
                return;
            }
        }
        self.vf.close();
    }

    fn gone(&mut self, cx: &mut Cx) {
        let end = match &self.phase {
            Phase::Closing { end } => end.clone(),
            // Nobody has asked it to close.
            _ => DeviceState::Removed,
        };
        self.phase = Phase::Gone;
        cx.nics.release(self.nic);
        self.set_state(end, cx);
    }

    /// The device cannot be offered.
    fn fail(&mut self, status: NtStatus, cx: &mut Cx) {
        self.close(DeviceState::OfferFailed { status: status.0, cause: None }, cx);
    }

    /// News of the VF.
    pub(super) fn vf(&mut self, event: VfEvent, cx: &mut Cx) {
        match (event, &mut self.phase) {
            (VfEvent::Opened(opened), Phase::Opening(opening)) => {
                opening.opened = Some(opened);
                self.offer_if_known(cx);
            }
            (VfEvent::Opened(_), _) => {}
            (VfEvent::Failed(status), _) => {
                self.fail(status, cx);
                self.gone(cx);
            }
            (VfEvent::Closed, _) => self.gone(cx),
        }
    }

    /// News of the PF driver.
    pub(super) fn said(&mut self, said: Said, cx: &mut Cx) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        match said {
            Said::Ids(Ok(ids)) => opening.ids = Some(ids),
            Said::Bars(Ok(bars)) => opening.bars = Some(bars),
            Said::Ids(Err(status)) | Said::Bars(Err(status)) => return self.fail(status, cx),
        }
        self.offer_if_known(cx);
    }

    /// Offers the function once all is known of it.
    fn offer_if_known(&mut self, cx: &mut Cx) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        let (Some(ids), Some(bars), true) = (opening.ids, opening.bars, opening.opened.is_some())
        else {
            return;
        };
        let Some(opened) = opening.opened.take() else { return };
        let live =
            Live::offer(*opened, ids, &bars, (self.name, self.number), &self.offer, &self.vf, cx);
        match live {
            Ok(live) => {
                self.phase = Phase::Live(Box::new(live));
                cx.nics.watch(self.nic, self.offer.vf);
                self.set_state(DeviceState::Offered, cx);
            }
            Err(status) => self.fail(status, cx),
        }
    }

    /// Asks the guest to give the device up.
    pub(super) fn eject(&mut self, cx: &mut Cx) {
        match &mut self.phase {
            // No guest has seen it.
            Phase::Opening(_) => self.close(DeviceState::Removed, cx),
            Phase::Live(live) => {
                live.eject((&self.vf, self.nic, self.offer.vf), cx);
                self.settle(cx);
            }
            Phase::Closing { .. } | Phase::Gone => {}
        }
    }

    /// Takes the device away.
    pub(super) fn remove(&mut self, cx: &mut Cx) {
        if let Phase::Live(live) = &mut self.phase {
            live.remove((&self.vf, self.nic, self.offer.vf), cx);
        }
        self.close(DeviceState::Removed, cx);
    }

    /// Other mitigated ranges.
    pub(super) fn set_mitigated(&mut self, ranges: MitigatedRanges, cx: &mut Cx) {
        self.offer.mitigated_ranges.clone_from(&ranges);
        if let Phase::Live(live) = &mut self.phase {
            live.set_mitigated(ranges, (&self.vf, self.nic, self.offer.vf), cx);
        }
    }

    /// The guest accesses the function.
    pub(super) fn access(&mut self, access: Access, cx: &mut Cx) {
        if let Phase::Live(live) = &mut self.phase {
            live.access(access, (&self.vf, self.nic, self.offer.vf), cx);
            self.settle(cx);
        }
        // Else the reply is dropped: ones.
    }

    /// The guest moves one of its interrupts; false if it has none such.
    pub(super) fn retarget(&mut self, retarget: &Retarget, cx: &mut Cx) -> bool {
        match &mut self.phase {
            Phase::Live(live) => live.retarget(retarget, (&self.vf, self.nic, self.offer.vf), cx),
            _ => false,
        }
    }

    /// The PF driver has done what the function asked, or failed.
    pub(super) fn pf_completed(
        &mut self,
        id: vpci::vsp::PfRequestId,
        answer: Result<&[u8], NtStatus>,
        cx: &mut Cx,
    ) {
        if let Phase::Live(live) = &mut self.phase {
            live.pf_completed(id, answer, (&self.vf, self.nic, self.offer.vf), cx);
            self.settle(cx);
        }
    }

    /// The PF driver says that configuration blocks are to be read again.
    pub(super) fn invalidate(&mut self, mask: u64, cx: &mut Cx) {
        if let Phase::Live(live) = &mut self.phase {
            live.invalidate(mask, (&self.vf, self.nic, self.offer.vf), cx);
        }
    }

    /// Does what there is to do, after its descriptors or its deadline.
    pub(super) fn work(&mut self, cx: &mut Cx) {
        match &mut self.phase {
            Phase::Opening(opening) if opening.deadline <= cx.now() => {
                self.fail(NtStatus::IO_TIMEOUT, cx);
            }
            Phase::Live(live) => {
                if live.is_lost() {
                    tracing::warn!(serial = self.name.serial, "the server of a VF is gone");
                    return self.remove(cx);
                }
                live.work((&self.vf, self.nic, self.offer.vf), cx);
                self.settle(cx);
            }
            _ => {}
        }
    }

    /// Reports what the guest has made of the function, and leaves the VF when it was taken from a guest that had not let
    /// go of it.
    fn settle(&mut self, cx: &mut Cx) {
        let Phase::Live(live) = &self.phase else { return };
        match live.removal() {
            Some(removal) if removal.is_graceful() => {
                self.set_state(DeviceState::EjectComplete, cx);
            }
            Some(_) => self.close(DeviceState::Removed, cx),
            None => {
                let state = live.state();
                self.set_state(state, cx);
            }
        }
    }

    /// When [`Self::work`] is due at the latest.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Opening(opening) => Some(opening.deadline),
            Phase::Live(live) => live.deadline(),
            Phase::Closing { .. } | Phase::Gone => None,
        }
    }

    pub(super) fn status(&self) -> DeviceStatus {
        let DeviceName { adapter, serial } = self.name;
        let (bars, vectors) = self.live().map(Live::claims).unwrap_or_default();
        DeviceStatus {
            adapter,
            serial,
            vf: self.offer.vf,
            state: self.state.clone(),
            bars,
            vectors,
        }
    }
}
