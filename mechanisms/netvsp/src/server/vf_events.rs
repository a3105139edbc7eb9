//! The VF's events and messages: what joins the state machines in `vf` and `relay` to the control core (SPEC-VMBUS §7).

use std::time::Instant;

use netvsp_protocol::nvsp::{
    DataPath, NvspVersion, SWITCH_DATA_PATH_TRANSACTION_ID, ServerMessage,
    VF_ASSOCIATION_TRANSACTION_ID,
};

use super::{
    Upcall, VfCommand, VfReport,
    control::{Control, MAX_WAITING, Rndis},
    relay::Relay,
    vf::VfEffect,
};
use crate::Outgoing;

impl Control {
    /// There is a VF with this serial number for the NIC. Its VPCI device is offered when the guest knows of it.
    pub fn vf_available(&mut self, serial: u32, now: Instant) {
        self.vf.want(Some(serial), now);
        self.vf_effects();
    }

    /// The VF is to go, or is gone: surprise removal, reset, or the host's decision.
    pub fn vf_lost(&mut self, now: Instant) {
        self.vf.want(None, now);
        self.vf_effects();
    }

    /// Receive filters were moved ([`Upcall::SwitchDataPath`]), or could not be.
    pub fn data_path_switched(&mut self, done: bool, now: Instant) {
        self.vf.moved(done, now);
        self.vf_effects();
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.vf.deadline()
    }

    /// Time went by.
    pub fn tick(&mut self, now: Instant) {
        self.vf.tick(now);
        self.vf_effects();
    }

    /// What the host decides. Without effect where the NIC decides by itself.
    pub fn vf_command(&mut self, command: VfCommand) {
        if let Some(relay) = &mut self.relay {
            relay.command(command);
        }
        self.vf_effects();
    }

    /// The guest has begun anew since its channel closed: who opens it next uses the VF only when it has asked for it. A
    /// driver that merely closed the channel goes on where it was.
    pub fn guest_began_anew(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.began_anew();
        }
    }

    /// How the VF is; `None` where the NIC decides about it.
    #[must_use]
    pub fn vf_report(&self) -> Option<VfReport> {
        self.relay.as_ref().map(Relay::report)
    }

    /// Where frames for the guest are to be taken to, as far as the host has decided: by the VF's VPort while the guest
    /// uses it. Always the synthetic path where the NIC decides by itself.
    #[must_use]
    pub fn data_path(&self) -> DataPath {
        self.relay.as_ref().map_or(DataPath::Synthetic, |relay| relay.path(self.is_up()))
    }

    pub(super) fn guest_asks_path(&mut self, path: DataPath, request: Option<u64>) {
        match &mut self.relay {
            Some(relay) => relay.guest_asks(path, request),
            None => self.vf.guest_asks(path, request),
        }
    }

    pub(super) fn vf_guest_up(&mut self, able: bool, now: Instant) {
        match &mut self.relay {
            Some(relay) => relay.initialized(able),
            None => self.vf.initialized(able, now),
        }
    }

    pub(super) fn vf_guest_closed(&mut self) {
        match &mut self.relay {
            Some(relay) => relay.closed(),
            None => self.vf.closed(),
        }
    }

    pub(super) fn vf_effects(&mut self) {
        let effects = match &mut self.relay {
            Some(relay) => relay.take(),
            None => self.vf.take(),
        };
        for effect in effects {
            match effect {
                VfEffect::Associate { allocated, serial } => {
                    let message =
                        ServerMessage::SendVfAssociation { allocated, serial_number: serial };
                    self.notify(VF_ASSOCIATION_TRANSACTION_ID, message);
                }
                VfEffect::NotifySynthetic => {
                    let message = ServerMessage::SwitchDataPath { path: DataPath::Synthetic };
                    self.notify(SWITCH_DATA_PATH_TRANSACTION_ID, message);
                }
                VfEffect::Complete(transaction) => self.answer(Some(transaction), None),
                VfEffect::MoveFilters(to) => self.up(Upcall::SwitchDataPath(to)),
                VfEffect::OfferVpci(serial) => self.up(Upcall::OfferVpci { serial }),
                VfEffect::RevokeVpci(serial) => self.up(Upcall::RevokeVpci { serial }),
            }
        }
    }

    /// A message about the VF, which only a guest that is up and knows such messages gets. A guest that does not
    /// read its ring makes nothing grow: of messages that wait, each kind is kept once, the newest.
    fn notify(&mut self, transaction: u64, message: ServerMessage) {
        if self.session.version < Some(NvspVersion::V4) || self.session.rndis == Rndis::Down {
            return;
        }
        if self.outputs.waiting_count() >= MAX_WAITING {
            self.outputs.forget_if(|waiting| {
                matches!(waiting, Outgoing::Message { transaction: other, .. } if *other == transaction)
            });
        }
        let message = self.emit(message);
        self.push(Outgoing::Message { transaction, completion_requested: true, message });
    }
}
