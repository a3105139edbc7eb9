//! The guest's side of association and data-path switch (SPEC-VMBUS §7): which path the guest sends on.
//!
//! Level-triggered: the VF is used if the server associated one, a device with its serial number and the NIC's
//! address is there, and its driver is up.

use netvsp_protocol::{MacAddress, nvsp::DataPath};

/// Which path frames are sent on, and what is being asked.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum VfPath {
    /// The synthetic one.
    Synthetic,
    /// The synthetic one; the server was asked for the VF.
    AskedForVf,
    /// The VF.
    Vf,
    /// The synthetic one; the server was asked for it.
    AskedForSynthetic,
}

impl VfPath {
    /// Which path frames are to be sent on.
    #[must_use]
    pub const fn transmit(self) -> DataPath {
        match self {
            Self::Vf => DataPath::Vf,
            _ => DataPath::Synthetic,
        }
    }
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum VfEffect {
    /// Ask the server to move the data path.
    Ask(DataPath),
    /// Stop sending through the VF; comes before the server is asked for the synthetic path.
    Stop,
    /// Start sending through the VF; comes after the server said so.
    Start,
    /// The synthetic path is in use.
    Released,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Device {
    serial: u32,
    mac: MacAddress,
    up: bool,
}

#[derive(Debug)]
pub(super) struct Vf {
    path: VfPath,
    associated: Option<u32>,
    device: Option<Device>,
    /// The NIC's address, while it is up.
    mac: Option<MacAddress>,
    /// The server wanted the path back; it is not asked again until the VF's driver was down or the association changed.
    refused: bool,
    out: Vec<VfEffect>,
}

impl Vf {
    pub(super) fn new() -> Self {
        Self {
            path: VfPath::Synthetic,
            associated: None,
            device: None,
            mac: None,
            refused: false,
            out: Vec::new(),
        }
    }

    pub(super) fn path(&self) -> VfPath {
        self.path
    }

    pub(super) fn take(&mut self) -> Vec<VfEffect> {
        std::mem::take(&mut self.out)
    }

    pub(super) fn associated(&mut self, serial: Option<u32>) {
        self.associated = serial;
        self.refused = false;
        self.step();
    }

    pub(super) fn device(&mut self, device: Option<(u32, MacAddress)>) {
        self.device = device.map(|(serial, mac)| Device { serial, mac, up: false });
        self.refused = false;
        self.step();
    }

    pub(super) fn driver(&mut self, up: bool) {
        if let Some(device) = &mut self.device {
            device.up = up;
            if !up {
                self.refused = false;
            }
        }
        self.step();
    }

    pub(super) fn nic(&mut self, mac: Option<MacAddress>) {
        self.mac = mac;
        if mac.is_none() {
            // The channel is gone, and with it all that was asked.
            self.associated = None;
            if self.path == VfPath::Vf {
                self.out.push(VfEffect::Stop);
            }
            if self.path != VfPath::Synthetic {
                self.out.push(VfEffect::Released);
            }
            self.path = VfPath::Synthetic;
        }
        self.step();
    }

    /// The server completed a request.
    pub(super) fn completed(&mut self) {
        match self.path {
            VfPath::AskedForVf => {
                self.path = VfPath::Vf;
                if self.wanted() {
                    self.out.push(VfEffect::Start);
                    return;
                }
                // Nobody wants it any more; it was not used.
                self.ask(DataPath::Synthetic);
            }
            VfPath::AskedForSynthetic => {
                self.path = VfPath::Synthetic;
                self.out.push(VfEffect::Released);
                self.step();
            }
            VfPath::Synthetic | VfPath::Vf => {}
        }
    }

    /// The server wants the path, or has it already: it is asked for, so that its answer tells when frames come by the
    /// synthetic path only.
    pub(super) fn server_moved(&mut self, path: DataPath) {
        if path == DataPath::Vf {
            return;
        }
        self.refused = true;
        self.step();
    }

    fn wanted(&self) -> bool {
        let Some(device) = self.device else { return false };
        !self.refused
            && device.up
            && self.associated == Some(device.serial)
            && self.mac == Some(device.mac)
    }

    fn step(&mut self) {
        match (self.path, self.wanted()) {
            (VfPath::Synthetic, true) => self.ask(DataPath::Vf),
            (VfPath::Vf, false) => {
                self.out.push(VfEffect::Stop);
                self.ask(DataPath::Synthetic);
            }
            _ => {}
        }
    }

    fn ask(&mut self, path: DataPath) {
        self.out.push(VfEffect::Ask(path));
        self.path = match path {
            DataPath::Vf => VfPath::AskedForVf,
            DataPath::Synthetic => VfPath::AskedForSynthetic,
        };
    }
}

#[cfg(test)]
mod tests {
    use VfEffect::{Ask, Released, Start, Stop};

    use super::*;

    const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);

    fn on_vf() -> Vf {
        let mut vf = Vf::new();
        vf.nic(Some(MAC));
        vf.associated(Some(7));
        vf.device(Some((7, MAC)));
        assert_eq!(vf.take(), [], "its driver is not up");
        vf.driver(true);
        assert_eq!(vf.take(), [Ask(DataPath::Vf)]);
        assert_eq!(vf.path().transmit(), DataPath::Synthetic, "not before the server said so");
        vf.completed();
        assert_eq!(vf.take(), [Start]);
        assert_eq!(vf.path().transmit(), DataPath::Vf);
        vf
    }

    #[test]
    fn a_vf_is_used_after_the_answer_and_no_more_before_the_question() {
        let mut vf = on_vf();
        vf.driver(false);
        assert_eq!(vf.take(), [Stop, Ask(DataPath::Synthetic)]);
        assert_eq!(vf.path().transmit(), DataPath::Synthetic);
        vf.completed();
        assert_eq!(vf.take(), [Released]);
    }

    #[test]
    fn a_device_with_another_serial_or_address_is_not_the_vf() {
        for device in [(8, MAC), (7, MacAddress::new([2, 0, 0, 0, 0, 2]))] {
            let mut vf = Vf::new();
            vf.nic(Some(MAC));
            vf.associated(Some(7));
            vf.device(Some(device));
            vf.driver(true);
            assert_eq!(vf.take(), []);
        }
    }

    #[test]
    fn a_path_that_the_server_took_back_is_not_asked_for_again_at_once() {
        let mut vf = on_vf();
        vf.server_moved(DataPath::Synthetic);
        assert_eq!(vf.take(), [Stop, Ask(DataPath::Synthetic)]);
        // Said again, it is not asked again.
        vf.server_moved(DataPath::Synthetic);
        assert_eq!(vf.take(), []);
        vf.completed();
        assert_eq!(vf.take(), [Released]);
        vf.driver(true);
        assert_eq!(vf.take(), []);
        vf.associated(None);
        vf.device(None);
        assert_eq!(vf.take(), []);
        vf.associated(Some(8));
        vf.device(Some((8, MAC)));
        vf.driver(true);
        assert_eq!(vf.take(), [Ask(DataPath::Vf)]);
    }

    #[test]
    fn a_vf_that_vanishes_while_it_is_asked_for_is_given_back_unused() {
        let mut vf = Vf::new();
        vf.nic(Some(MAC));
        vf.associated(Some(7));
        vf.device(Some((7, MAC)));
        vf.driver(true);
        vf.device(None);
        vf.completed();
        assert_eq!(vf.take(), [Ask(DataPath::Vf), Ask(DataPath::Synthetic)]);
        vf.completed();
        assert_eq!(vf.take(), [Released]);
    }

    #[test]
    fn without_its_channel_the_nic_uses_no_vf() {
        let mut vf = on_vf();
        vf.nic(None);
        assert_eq!(vf.take(), [Stop, Released]);
        assert_eq!(vf.path(), VfPath::Synthetic);
    }
}
