//! Models of a VM's ends: the NetVSP end in the switch, the VPCI end in the partition's host side, and the guest between
//! them, which may be well or ill behaved.

use std::collections::VecDeque;

use pcivirt_protocol::NtStatus;
use virtualization_stack::{
    AdapterConfig, AdapterKind, DataPath, NetVspCommand, NetVspReport, VfSerial, VpciCommand,
    VpciReport,
};

/// How a guest behaves.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mood {
    /// As it should: leaves the VF when the host asks.
    Good,
    /// As Linux: ignores the host's request to leave, and leaves when the device is ejected.
    Linux,
    /// Has no network driver.
    NoNetVsc,
    /// Its network driver knows no SR-IOV.
    NoSriov,
    /// Does not look at offered devices.
    NoVpci,
    /// Opens the bus, and has no driver for the VF.
    NoDriver,
    /// Its VF driver never gets the VF up.
    DriverFails,
    /// Answers nothing any more.
    Dead,
}

impl Mood {
    pub(crate) const ALL: [Self; 8] = [
        Self::Good,
        Self::Linux,
        Self::NoNetVsc,
        Self::NoSriov,
        Self::NoVpci,
        Self::NoDriver,
        Self::DriverFails,
        Self::Dead,
    ];

    pub(crate) fn is_well(self) -> bool {
        matches!(self, Self::Good | Self::Linux)
    }
}

/// One adapter, with both its ends and the guest's part of it.
pub(crate) struct AdapterModel {
    pub(crate) config: AdapterConfig,
    pub(crate) exists: bool,
    pub(crate) extension_revoked: bool,
    pub(crate) to_netvsp: VecDeque<NetVspCommand>,
    pub(crate) from_netvsp: VecDeque<NetVspReport>,
    pub(crate) to_vpci: VecDeque<(VfSerial, VpciCommand)>,
    pub(crate) from_vpci: VecDeque<(VfSerial, VpciReport)>,
    pub(crate) netvsc_up: bool,
    /// Whether its NetVSC knew SR-IOV when it came up.
    pub(crate) knows_sriov: bool,
    pub(crate) told: Option<VfSerial>,
    pub(crate) last_told: Option<VfSerial>,
    refused: Option<VfSerial>,
    /// It has asked without waiting for an answer.
    pub(crate) hostile: bool,
    pub(crate) path: DataPath,
    pub(crate) asked: Option<DataPath>,
    pub(crate) device: Option<VfSerial>,
    pub(crate) bus_opened: bool,
    pub(crate) driver_up: bool,
    pub(crate) ejecting: bool,
    pub(crate) ejected: bool,
    /// The stack has waited for the removal of the device in vain.
    pub(crate) removal_given_up: bool,
    pub(crate) violations: Vec<String>,
}

impl AdapterModel {
    pub(crate) fn new(config: AdapterConfig) -> Self {
        Self {
            config,
            exists: true,
            extension_revoked: false,
            to_netvsp: VecDeque::new(),
            from_netvsp: VecDeque::new(),
            to_vpci: VecDeque::new(),
            from_vpci: VecDeque::new(),
            netvsc_up: false,
            knows_sriov: false,
            told: None,
            last_told: None,
            refused: None,
            hostile: false,
            path: DataPath::Synthetic,
            asked: None,
            device: None,
            bus_opened: false,
            driver_up: false,
            ejecting: false,
            ejected: false,
            removal_given_up: false,
            violations: Vec::new(),
        }
    }

    /// Whether its synthetic NIC is a virtio-net: nobody is asked for a path, it is on the VF whose driver is up.
    pub(crate) fn is_virtio_net(&self) -> bool {
        self.config.kind == AdapterKind::VhostUser
    }

    /// The switch is gone, or the adapter's connection to it.
    pub(crate) fn switch_gone(&mut self) {
        if !self.is_virtio_net() {
            self.netvsp_gone();
        }
    }

    /// The driver of a virtio-net's VF puts it to work, or stops.
    fn use_vf(&mut self, path: DataPath) {
        if self.path != path {
            self.path = path;
            self.from_netvsp.push_back(NetVspReport::AsksDataPath(path));
        }
    }

    /// A guest that gives its device up has stopped its driver, if it is that by which the path is known.
    pub(crate) fn leave_if_virtio_net(&mut self) {
        if self.is_virtio_net() {
            self.use_vf(DataPath::Synthetic);
        }
    }

    /// The guest starts anew: its drivers are gone.
    pub(crate) fn reset(&mut self) {
        self.netvsp_gone();
        self.bus_opened = false;
        self.driver_up = false;
        // An eject nobody will answer any more is done with the channel's end.
        if core::mem::take(&mut self.ejecting) && !self.ejected {
            self.eject_complete();
        }
    }

    /// The NetVSP end, or its channel, is gone.
    pub(crate) fn netvsp_gone(&mut self) {
        self.to_netvsp.clear();
        self.from_netvsp.clear();
        self.netvsc_up = false;
        self.told = None;
        self.path = DataPath::Synthetic;
        self.asked = None;
    }

    /// The VM's host side is gone.
    pub(crate) fn host_gone(&mut self) {
        self.netvsp_gone();
        self.to_vpci.clear();
        self.from_vpci.clear();
        self.device = None;
        self.bus_opened = false;
        self.driver_up = false;
        self.ejecting = false;
        self.ejected = false;
    }

    fn ask(&mut self, path: DataPath) {
        self.asked = Some(path);
        self.from_netvsp.push_back(NetVspReport::AsksDataPath(path));
    }

    fn eject_complete(&mut self) {
        self.leave_if_virtio_net();
        self.ejecting = false;
        self.ejected = true;
        self.driver_up = false;
        if let Some(serial) = self.device {
            self.from_vpci.push_back((serial, VpciReport::EjectComplete));
        }
    }

    /// The NetVSP end carries out what it was told.
    pub(crate) fn netvsp(&mut self, mood: Mood) {
        let Some(command) = self.to_netvsp.pop_front() else { return };
        if !self.netvsc_up || self.is_virtio_net() {
            return;
        }
        match command {
            NetVspCommand::VfAvailable { serial } => {
                self.told = Some(serial);
                self.last_told = Some(serial);
            }
            NetVspCommand::VfLost { serial } => {
                if self.last_told != Some(serial) {
                    self.violations
                        .push(format!("{serial} is lost, told was {:?}", self.last_told));
                }
                self.told = None;
            }
            NetVspCommand::CompleteSwitch { active } => {
                if self.asked.is_none() && !self.hostile {
                    self.violations.push("a request was answered that nobody made".into());
                }
                if self.asked == Some(DataPath::Vf) && active != DataPath::Vf {
                    // It does not ask for this one again.
                    self.refused = self.told;
                }
                self.asked = None;
                // A device that is gone takes its path along, however late the answer is.
                self.path = if self.device.is_some() { active } else { DataPath::Synthetic };
            }
            NetVspCommand::SwitchDataPath(_) => {
                if mood == Mood::Good && self.path == DataPath::Vf && self.asked.is_none() {
                    self.ask(DataPath::Synthetic);
                }
            }
        }
    }

    /// The VPCI end carries out what it was told. `fails`: it cannot offer devices now.
    pub(crate) fn vpci(&mut self, fails: bool) {
        let Some((serial, command)) = self.to_vpci.pop_front() else { return };
        match command {
            VpciCommand::Offer(_) => {
                if self.device.is_some() {
                    self.violations.push("a device is offered while another is there".into());
                }
                if fails {
                    let failed =
                        VpciReport::OfferFailed { status: NtStatus::UNSUCCESSFUL, cause: None };
                    self.from_vpci.push_back((serial, failed));
                    return;
                }
                self.device = Some(serial);
                self.bus_opened = false;
                self.driver_up = false;
                self.ejecting = false;
                self.ejected = false;
                self.from_vpci.push_back((serial, VpciReport::Offered));
            }
            VpciCommand::ReplaceMitigatedRanges(_) => {}
            VpciCommand::Eject => {
                if self.device == Some(serial) {
                    self.ejecting = true;
                }
            }
            VpciCommand::Remove { .. } => {
                if self.device == Some(serial) {
                    self.device = None;
                    self.bus_opened = false;
                    self.driver_up = false;
                    self.ejecting = false;
                    self.leave_if_virtio_net();
                    self.path = DataPath::Synthetic;
                }
                self.from_vpci.push_back((serial, VpciReport::Removed));
            }
        }
    }

    /// Whether the guest has something to do of its own accord.
    pub(crate) fn can_act(&self, mood: Mood, running: bool, switch_runs: bool) -> bool {
        if !running || mood == Mood::Dead {
            return false;
        }
        let netvsc =
            (switch_runs || self.is_virtio_net()) && !self.netvsc_up && mood != Mood::NoNetVsc;
        netvsc
            || self.can_open(mood)
            || self.can_start(mood)
            || self.can_ask(mood)
            || self.can_eject(mood)
    }

    fn can_open(&self, mood: Mood) -> bool {
        let there = self.device.is_some() && !self.ejected;
        there && !self.bus_opened && mood != Mood::NoVpci
    }

    fn can_start(&self, mood: Mood) -> bool {
        let there = self.device.is_some() && !self.ejected && !self.ejecting;
        let drives = mood.is_well() || mood == Mood::DriverFails;
        there && self.bus_opened && !self.driver_up && drives
    }

    fn can_ask(&self, mood: Mood) -> bool {
        if self.is_virtio_net() {
            let works = mood.is_well() && self.driver_up && !self.ejecting && !self.ejected;
            return works && self.device.is_some() && self.path == DataPath::Synthetic;
        }
        mood.is_well()
            && self.driver_up
            && !self.ejecting
            && self.told.is_some()
            && self.told == self.device
            && self.told != self.refused
            && self.path == DataPath::Synthetic
            && self.asked.is_none()
    }

    fn can_eject(&self, mood: Mood) -> bool {
        self.ejecting && !self.ejected && mood != Mood::NoVpci && self.asked.is_none()
    }

    /// The guest does the next thing.
    pub(crate) fn act(&mut self, mood: Mood, switch_runs: bool) {
        if self.is_virtio_net() {
            self.act_with_virtio_net(mood);
        } else if self.can_eject(mood) {
            if self.path == DataPath::Vf && self.netvsc_up {
                self.ask(DataPath::Synthetic);
            } else {
                self.eject_complete();
            }
        } else if switch_runs && !self.netvsc_up && mood != Mood::NoNetVsc {
            self.netvsc_up = true;
            self.knows_sriov = mood != Mood::NoSriov;
            self.from_netvsp.push_back(NetVspReport::Ready { sriov: self.knows_sriov });
        } else if self.can_ask(mood) {
            self.ask(DataPath::Vf);
        } else if let Some(serial) = self.device {
            if !self.bus_opened {
                self.bus_opened = true;
                self.from_vpci.push_back((serial, VpciReport::BusOpened));
            } else if !self.driver_up {
                self.driver_up = true;
                self.from_vpci.push_back((serial, VpciReport::DeviceStarted));
            }
        }
    }

    /// The same of a guest with a virtio-net: its VF's driver may be up before the other one, and there is no virtual
    /// bus that somebody could be seen to open.
    fn act_with_virtio_net(&mut self, mood: Mood) {
        if self.can_eject(mood) {
            match self.path {
                DataPath::Vf => self.use_vf(DataPath::Synthetic),
                DataPath::Synthetic => self.eject_complete(),
            }
        } else if self.can_ask(mood) {
            self.use_vf(DataPath::Vf);
        } else if self.can_open(mood) {
            self.bus_opened = true;
        } else if self.can_start(mood) {
            self.driver_up = true;
            let serial = self.device.unwrap();
            self.from_vpci.push_back((serial, VpciReport::DeviceStarted));
        } else if mood != Mood::NoNetVsc {
            self.netvsc_up = true;
            self.knows_sriov = mood != Mood::NoSriov;
            self.from_netvsp.push_back(NetVspReport::Ready { sriov: self.knows_sriov });
        }
    }

    /// The guest leaves its VF of its own accord.
    pub(crate) fn leave(&mut self) {
        if self.is_virtio_net() {
            self.use_vf(DataPath::Synthetic);
        } else if self.path == DataPath::Vf && self.netvsc_up && self.asked.is_none() {
            self.ask(DataPath::Synthetic);
        }
    }
}
