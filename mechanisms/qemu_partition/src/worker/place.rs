//! Where a VF is put: a slot of the guest, the function in it, and the relay that the function is.
//!
//! QEMU has the socket of a function for as long as the function is in its slot, which is until the guest's machine ends.
//! So places outlive the adapters that they were made for.

use std::time::Duration;

use vfio_user_relay::Relay;

use super::{Cx, Event};
use crate::{
    machine::{Nic, function, is_not_there, is_too_early, press},
    qmp::QmpError,
    slot::{Move, Slot},
};

/// A place.
pub(crate) struct Place {
    number: u32,
    pub(crate) relay: Relay,
    slot: Slot,
    /// What QEMU calls the function, once it was plugged.
    function: Option<String>,
}

/// What has happened at a place.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Heard {
    /// The function has come into the guest, without this having been told that it would.
    pub(crate) appeared: bool,
    /// The guest has given the function up, after it was asked.
    pub(crate) given_up: bool,
    /// Bus Master Enable, as the guest has written it.
    pub(crate) bus_master: bool,
    /// Its driver is about to leave the function, and waits.
    pub(crate) leaving: bool,
    /// There is no VF any more, or the guest has lost the function that it was behind.
    pub(crate) vf_lost: bool,
}

impl Place {
    pub(crate) fn new(number: u32, cx: &Cx) -> Self {
        let mut socket = cx.base.clone().into_os_string();
        socket.push(format!("-vf{number}.sock"));
        let events = cx.events.clone();
        let ring = move || drop(events.send(Event::Relay(number)));
        let relay = Relay::new(socket.into(), format!("relay{number}"), ring);
        Self { number, relay, slot: Slot::new(cx.not_before, cx.times), function: None }
    }

    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Whether QEMU has the function: others can use the place, and nothing else takes its slot.
    pub(crate) const fn is_plugged(&self) -> bool {
        self.function.is_some()
    }

    /// Whether no driver of the guest can be at the function, so that there may be another VF behind it.
    pub(crate) const fn is_free(&self) -> bool {
        self.slot.is_free()
    }

    /// When it is to be looked at if nothing happens before.
    pub(crate) fn deadline(&self, wanted: bool) -> Option<Duration> {
        self.slot.deadline(wanted)
    }

    /// The guest begins anew, with a VF behind the function or without.
    pub(crate) fn guest_reset(&mut self, backed: bool) {
        self.slot.guest_reset(backed);
    }

    /// Looks at what the relay has to say.
    pub(crate) fn hear(&mut self, cx: &mut Cx) -> Heard {
        let news = self.relay.news();
        let appeared = news.connected && self.slot.appeared(cx.now());
        let given_up = self.slot.command_written(news.master_set, news.master_cleared);
        let lost = news.disconnected && !news.connected && self.function_lost(cx);
        Heard {
            appeared,
            given_up,
            bus_master: news.bus_master,
            leaving: news.leaving,
            vf_lost: news.vf_lost || lost,
        }
    }

    /// QEMU has hung up. It does not connect again: the function is dead, if QEMU still has it.
    fn function_lost(&mut self, cx: &mut Cx) -> bool {
        let Some(function) = self.function.take() else { return false };
        let now = cx.now();
        self.slot = match press(&mut cx.qmp, &function) {
            // It has ended, which is told soon.
            Err(QmpError::Gone) => {
                self.function = Some(function);
                return false;
            }
            Ok(()) => Slot::new(now + cx.times.patience, cx.times),
            Err(_) => Slot::new(now, cx.times),
        };
        tracing::warn!(function, "QEMU has left a function; the next VF gets another");
        true
    }

    /// Does what is to be done, if the guest is to have the function as the primary of this NIC, or is to have none. Says
    /// what was done.
    ///
    /// # Errors
    /// What cannot be done, and why. It is tried again later for as long as it is wanted.
    pub(crate) fn work(
        &mut self,
        wanted: Option<&Nic>,
        cx: &mut Cx,
    ) -> Result<Option<Move>, (Move, String)> {
        let now = cx.now();
        let Some(next) = self.slot.next(wanted.is_some(), now) else { return Ok(None) };
        let done = match (next, wanted, &self.function) {
            (Move::Plug, Some(nic), _) => self.plug(nic, cx),
            (Move::Plug, None, _) | (_, _, None) => Ok(false),
            (Move::TurnOn | Move::TurnOff, _, Some(function)) => {
                match press(&mut cx.qmp, function) {
                    Ok(()) => Ok(true),
                    Err(error) if is_too_early(&error) => Ok(false),
                    Err(error) if is_not_there(&error) => {
                        // QEMU has removed it after all.
                        self.function = None;
                        self.slot = Slot::new(now, cx.times);
                        return Ok((next == Move::TurnOff).then_some(next));
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
        };
        match done {
            Ok(true) => {
                self.slot.done(next, now);
                if next == Move::Plug && !self.relay.is_connected() {
                    // The guest's virtio-net driver has not agreed to it: QEMU plugs it by itself once it does.
                    self.slot.hidden();
                    return Ok(None);
                }
                Ok(Some(next))
            }
            Ok(false) => {
                self.slot.too_early(now);
                Ok(None)
            }
            Err(cause) => {
                self.slot.too_early(now);
                Err((next, cause))
            }
        }
    }

    fn plug(&mut self, nic: &Nic, cx: &mut Cx) -> Result<bool, String> {
        let function = function(&mut cx.qmp, self.number, nic, self.relay.socket());
        let (id, arguments) = function.map_err(|error| error.to_string())?;
        let added = cx.qmp.execute("device_add", arguments);
        // What QEMU was too busy to answer in time it may still do.
        if matches!(added, Ok(_) | Err(QmpError::TimedOut { .. })) {
            self.function = Some(id);
        }
        added.map(|_| true).map_err(|error| error.to_string())
    }
}
