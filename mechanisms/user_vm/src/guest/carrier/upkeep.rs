//! What happens to the carrier's paths: they come, go, are reset, lose their link; and what is done about it.

use std::time::Instant;

use avf_driver::{DriverError, Event, MacAddress, State};
use linux_network::NetworkError;
use netvsp::client::Upcall;

use super::{
    Command, Notice, VfEnd,
    worker::{RETRY, Round, Worker},
};
use crate::{
    CarrierDirection, DataPath, Drops, VfState,
    guest::{
        counters::States,
        paths::{Effect, Transmit},
        synthetic::SyntheticPath,
        vf::{Totals, VfPath},
    },
};

/// Rebuilds that may fail before the VF counts as gone.
const REBUILDS: u32 = 20;

impl Worker {
    /// Looks after everything but frames, once a round. `emptying` is the path whose receive rings were to be emptied when
    /// the round began.
    pub(super) fn look_after_paths(
        &mut self,
        now: Instant,
        emptying: Option<DataPath>,
        round: Round,
    ) {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command, now);
        }
        self.look_after_vf(now);
        self.hear_synthetic(now);
        match self.selection.draining() {
            Some(DataPath::Vf) if self.vf.as_mut().is_none_or(|vf| vf.in_flight() == 0) => {
                self.selection.drained(now);
            }
            Some(DataPath::Synthetic) => {
                let empty = |path: &mut SyntheticPath| path.flush() && path.in_flight() == 0;
                if self.synthetic.as_mut().is_none_or(empty) {
                    self.selection.drained(now);
                }
            }
            _ => {}
        }
        match emptying {
            Some(path @ DataPath::Vf) if round.from_vf == 0 => self.selection.emptied(path),
            Some(path @ DataPath::Synthetic) if round.from_synthetic == 0 => {
                self.selection.emptied(path);
            }
            _ => {}
        }
        self.selection.tick(now);
        self.carry_out(now);
        self.follow_selection();
        self.answer_requests();
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Synthetic(mut path) => {
                if let (Some(serial), Some(vf)) = (self.serial, &self.vf) {
                    path.vf_device(Some((serial, vf.mac())));
                }
                path.set_packet_filter(self.wanted.packet_filter());
                self.synthetic = Some(*path);
            }
            Command::Subchannel(index, channel) => {
                if let Some(synthetic) = &mut self.synthetic
                    && !synthetic.open_subchannel(index, channel)
                {
                    tracing::warn!(index, "a subchannel that was opened is not wanted");
                }
            }
            Command::CloseSynthetic => {
                self.drop_synthetic(now);
                (self.tell)(Notice::SyntheticClosed);
            }
            Command::Vf { vf, serial, after_reset } => {
                self.vf = Some(*vf);
                self.serial = Some(serial);
                self.vf_end = VfEnd::Ejected;
                self.shared.counters.update(|states| {
                    states.vf.resets += u64::from(after_reset);
                });
                if let Err(error) = self.settle_vf() {
                    self.fail(error.to_string());
                }
            }
            Command::EjectVf => {
                if let Some(vf) = &self.vf {
                    self.vf_end = VfEnd::Ejected;
                    self.selection.return_vf(vf.is_stopped(), now);
                }
            }
            Command::VfGone => {
                if self.vf.is_some() {
                    self.lose(&DriverError::DeviceGone, now);
                }
            }
            Command::SetVf { ticket, up } => {
                // Who asked for the contrary before will not get it.
                let (superseded, same) =
                    self.requests.drain(..).partition(|(_, wanted)| *wanted != up);
                self.requests = same;
                let superseded: Vec<(u64, bool)> = superseded;
                for (ticket, _) in superseded {
                    (self.tell)(Notice::VfSet { ticket, done: false });
                }
                self.requests.push((ticket, up));
                self.selection.set_vf(up, now);
            }
        }
    }

    /// Answers who has what was asked for, or cannot have it.
    fn answer_requests(&mut self) {
        let Self { requests, selection, tell, .. } = self;
        requests.retain(|(ticket, up)| match selection.vf_is_set(*up) {
            Some(done) => {
                tell(Notice::VfSet { ticket: *ticket, done });
                false
            }
            None => true,
        });
    }

    /// Does what the selection wants done.
    fn carry_out(&mut self, now: Instant) {
        while let Some(effect) = self.selection.next_effect() {
            match effect {
                Effect::VfDriver(up) => {
                    if let Some(synthetic) = &mut self.synthetic {
                        synthetic.vf_driver(up);
                    }
                    self.hear_synthetic(now);
                }
                Effect::ReturnVf => self.return_vf(self.vf_end, now),
            }
        }
    }

    /// Gives the VF back, with what is in its rings.
    fn return_vf(&mut self, end: VfEnd, now: Instant) {
        self.publish();
        let Some(mut vf) = self.vf.take() else {
            return;
        };
        self.serial = None;
        self.totals = Totals::default();
        self.shared.counters.path(DataPath::Vf).lost_in_rings(vf.in_flight());
        self.shared.counters.update(|states| gone(&mut states.vf));
        if let Some(synthetic) = &mut self.synthetic {
            synthetic.vf_device(None);
        }
        self.hear_synthetic(now);
        (self.tell)(Notice::VfReturned(Box::new(vf), end));
    }

    /// Does what the synthetic adapter asks for, and takes note of where its data path is.
    fn hear_synthetic(&mut self, now: Instant) {
        while let Some(synthetic) = &mut self.synthetic {
            // Each step on its own, since a request and its answer may come together.
            let path = synthetic.path();
            let upcall = synthetic.next_upcall();
            self.selection.netvsc(path, now);
            let Some(upcall) = upcall else {
                return;
            };
            match upcall {
                Upcall::Up { .. } => self.synthetic_is_up(),
                Upcall::Link { connected } => self.selection.synthetic_up(connected),
                Upcall::OpenSubchannels { count } => (self.tell)(Notice::OpenSubchannels(count)),
                Upcall::VfAssociation(serial) => (self.tell)(Notice::VfAssociation(serial)),
                Upcall::Failed(error) => {
                    self.drop_synthetic(now);
                    (self.tell)(Notice::SyntheticFailed(error.to_string()));
                }
                // The path says so.
                Upcall::Offloads(_) | Upcall::StopVf | Upcall::StartVf | Upcall::VfReleased => {}
            }
        }
    }

    fn synthetic_is_up(&mut self) {
        let Some(synthetic) = &self.synthetic else {
            return;
        };
        let (Some(mac), Some(mtu), Some(link)) =
            (synthetic.mac(), synthetic.mtu(), synthetic.link())
        else {
            return;
        };
        if self.wanted.mac() != Some(mac)
            && let Err(error) = self.filters.set_address(mac)
        {
            self.fail(error.to_string());
        }
        match self.filters.limit_mtu(mtu) {
            Ok(false) => {}
            Ok(true) => tracing::warn!(mtu, "the synthetic adapter takes no larger MTU"),
            Err(error) => self.fail(error.to_string()),
        }
        self.shared.counters.update(|states| states.synthetic.starts += 1);
        // Whoever sees the carrier sees the rest.
        self.publish();
        self.selection.synthetic_up(link);
        (self.tell)(Notice::SyntheticUp);
    }

    fn drop_synthetic(&mut self, now: Instant) {
        if let Some(mut synthetic) = self.synthetic.take() {
            let path = self.shared.counters.path(DataPath::Synthetic);
            let left = u64::from(!synthetic.flush());
            path.lost_in_rings(synthetic.in_flight() + left);
            self.shared.counters.update(|states| {
                states.synthetic.present = false;
                states.synthetic.link_up = false;
                states.synthetic.channels = 0;
                states.synthetic.associated_vf = None;
            });
            self.selection.synthetic_gone(now);
        }
    }

    /// Handles what happened to the VF: link changes, resets, its end.
    fn look_after_vf(&mut self, now: Instant) {
        let Some(vf) = &mut self.vf else {
            if self.source.as_ref().is_some_and(|source| source.reconnect)
                && now >= self.next_attempt
            {
                self.next_attempt = now + RETRY;
                self.find();
            }
            return;
        };
        match vf.control().poll_events(now) {
            Ok(events) => {
                for event in events {
                    match event {
                        Event::LinkChange(_) => {
                            let up = self.vf.as_ref().is_some_and(VfPath::link_up);
                            self.selection.vf_link(up, now);
                            self.publish();
                        }
                        // Nothing passes until the PF is back, which resets the function.
                        Event::PfDriverClosed => self.selection.vf_link(false, now),
                        Event::DeviceGone => return self.lose(&DriverError::DeviceGone, now),
                        _ => {}
                    }
                }
            }
            Err(error) => return self.lose(&error, now),
        }
        let Some(vf) = &mut self.vf else {
            return;
        };
        match vf.control().state() {
            State::Running => {}
            State::Gone => self.lose(&DriverError::DeviceGone, now),
            // Somebody else has the time to bring it up again.
            State::NeedsRebuild if self.source.is_none() => {
                if self.vf_end != VfEnd::Reset {
                    self.vf_end = VfEnd::Reset;
                    tracing::info!("the VF was reset; the synthetic path carries on");
                }
                self.selection.return_vf(true, now);
            }
            State::NeedsRebuild if now >= self.next_attempt => self.rebuild(now),
            State::NeedsRebuild => {}
        }
    }

    fn rebuild(&mut self, now: Instant) {
        let Some(vf) = &mut self.vf else {
            return;
        };
        tracing::info!("the VF was reset; bringing it up again");
        self.shared.counters.path(DataPath::Vf).lost_in_rings(vf.in_flight());
        match vf.rebuild() {
            Ok(()) => {
                self.failed_rebuilds = 0;
                self.shared.counters.update(|states| states.vf.resets += 1);
                if let Err(error) = self.settle_vf() {
                    self.fail(error.to_string());
                }
            }
            Err(error) => {
                self.failed_rebuilds += 1;
                self.next_attempt = now + RETRY;
                if matches!(error, DriverError::DeviceGone) || self.failed_rebuilds > REBUILDS {
                    self.lose(&error, now);
                } else {
                    tracing::warn!(%error, "the VF could not be brought up again yet");
                }
            }
        }
    }

    /// The VF is gone.
    fn lose(&mut self, error: &DriverError, now: Instant) {
        self.failed_rebuilds = 0;
        self.selection.vf_gone();
        if self.source.is_none() {
            return self.return_vf(VfEnd::Gone, now);
        }
        self.publish();
        if let Some(mut vf) = self.vf.take() {
            self.shared.counters.path(DataPath::Vf).lost_in_rings(vf.in_flight());
        }
        self.totals = Totals::default();
        self.shared.counters.update(|states| gone(&mut states.vf));
        self.next_attempt = now + RETRY;
        (self.tell)(Notice::Lost(error.to_string()));
    }

    /// Looks for a VF on the socket of the one that is gone.
    fn find(&mut self) {
        let Some(source) = &self.source else {
            return;
        };
        match VfPath::open(&source.config) {
            Ok(vf) => {
                self.vf = Some(vf);
                self.shared.counters.update(|states| states.vf.reconnects += 1);
                match self.settle_vf() {
                    Ok(()) => (self.tell)(Notice::Found),
                    Err(error) => self.fail(error.to_string()),
                }
            }
            Err(error) => tracing::debug!(%error, "no VF yet"),
        }
    }

    /// Makes the interface and a VF that was just brought up agree: address, filters, link.
    pub(super) fn settle_vf(&mut self) -> Result<(), NetworkError> {
        let Some(vf) = &mut self.vf else {
            return Ok(());
        };
        let mac = vf.mac();
        if let (Some(serial), Some(synthetic)) = (self.serial, &mut self.synthetic) {
            // The interface has the synthetic adapter's address; NetVSC uses no VF with another.
            synthetic.vf_device(Some((serial, mac)));
        } else {
            self.filters.set_address(mac)?;
        }
        self.wanted = self.filters.read();
        vf.update_filters(&self.wanted);
        let link = vf.link_up();
        self.selection.vf_up(link);
        self.publish();
        Ok(())
    }

    /// Makes the interface's carrier, and what is told of it, agree with the selection.
    pub(super) fn follow_selection(&mut self) {
        let transmit = self.selection.transmit();
        let carrier = transmit != Transmit::Nowhere;
        let changed = self.carrier != carrier;
        if changed {
            self.carrier = carrier;
            if let Err(error) = self.interface.set_carrier(carrier) {
                self.fail(error.to_string());
            }
        }
        if self.selection.take_changed() || changed {
            let data_path = self.selection.statistics();
            self.shared.counters.update(|states| {
                states.carrier = carrier;
                states.data_path = data_path;
                match transmit {
                    Transmit::On(path) => states.path = Some(path),
                    Transmit::Nowhere => states.path = None,
                    Transmit::Hold => {}
                }
            });
        }
    }

    /// Looks at what the guest's kernel wants to receive.
    pub(super) fn tick(&mut self) {
        self.wanted = self.filters.read();
        self.keep_address();
        if let Some(vf) = &mut self.vf
            && vf.control().state() == State::Running
        {
            vf.update_filters(&self.wanted);
        }
        if let Some(synthetic) = &mut self.synthetic {
            synthetic.set_packet_filter(self.wanted.packet_filter());
        }
        self.publish();
    }

    /// An address that the guest gave its interface becomes the VF's, or is taken back. A synthetic adapter keeps the
    /// address that the host gave it.
    fn keep_address(&mut self) {
        let synthetic = self.synthetic.as_ref().and_then(SyntheticPath::mac);
        let own = synthetic.or_else(|| self.vf.as_ref().map(VfPath::mac));
        let (Some(wanted), Some(own)) = (self.wanted.mac(), own) else {
            return;
        };
        if wanted == own {
            return;
        }
        if let (None, Some(vf)) = (self.serial.or(synthetic.map(|_| 0)), &mut self.vf) {
            if vf.control().state() != State::Running {
                return;
            }
            match vf.control().set_mac(MacAddress(wanted)) {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "the VF refuses the guest's address"),
            }
        } else {
            tracing::warn!("the synthetic adapter keeps its address");
        }
        if let Err(error) = self.filters.set_address(own) {
            tracing::warn!(%error, "the interface keeps an address that is not its adapter's");
        }
    }

    /// Passes on what driver and interface counted.
    pub(super) fn publish(&mut self) {
        let missed = self.interface.missed();
        let drops = Drops { no_room: missed.saturating_sub(self.missed), ..Default::default() };
        self.missed = missed;
        self.shared.counters.from_guest.add(&CarrierDirection { drops, ..Default::default() });
        let totals = self.vf.as_ref().and_then(VfPath::totals);
        // While a VF could not be rebuilt it has no queues, and nothing that they counted.
        let grown = totals.map(|totals| {
            let before = std::mem::replace(&mut self.totals, totals);
            totals.since(&before)
        });
        if let Some(grown) = grown {
            let drops = Drops { receive_error: grown.receive_errors, ..Default::default() };
            self.shared.counters.to_guest.add(&CarrierDirection { drops, ..Default::default() });
        }
        self.shared.counters.update(|states: &mut States| {
            if let (Some(vf), Some(grown)) = (&self.vf, grown) {
                vf.describe(&mut states.vf);
                states.vf.received_frames += grown.received_frames;
                states.vf.received_bytes += grown.received_bytes;
                states.vf.transmitted_packets += grown.transmitted_packets;
                states.vf.transmitted_bytes += grown.transmitted_bytes;
                states.mac = vf.mac();
            }
            if let Some(synthetic) = &self.synthetic {
                synthetic.describe(&mut states.synthetic);
                if let Some(mac) = synthetic.mac() {
                    states.mac = mac;
                }
            }
        });
    }

    /// The thread ends.
    pub(super) fn end(mut self) {
        self.publish();
        if let Some(vf) = self.vf.take()
            && let Err(error) = vf.close()
        {
            tracing::info!(%error, "the VF could not be given back in good order");
        }
    }
}

fn gone(state: &mut VfState) {
    state.present = false;
    state.link_up = false;
    state.link_speed_mbps = 0;
}
