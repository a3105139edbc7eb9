//! What is to be known of a QEMU before it is given a VF, asked by QMP. What does not fit has the option that it lacks.

use std::{collections::BTreeSet, path::Path};

use ndis_protocol::MacAddress;
use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError};

/// The first QEMU with a vfio-user client.
const OLDEST: (u64, u64) = (10, 1);
/// What the ids of our devices begin with.
const OURS: &str = "clearway-vf";

/// Why a QEMU cannot be given a VF.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The connection.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// It has no vfio-user client.
    #[error("QEMU {version} has no vfio-user client: use 10.1 or newer{}", if *.old { "" } else { ", built with vfio-user" })]
    NoVfioUser {
        /// Its version.
        version: String,
        /// Whether it is older.
        old: bool,
    },
    /// Guest memory that no NIC can reach.
    #[error(
        "the guest's memory {id:?} is not shared: start QEMU with -object memory-backend-memfd,id=mem,size=…,share=on \
         and -M …,memory-backend=mem"
    )]
    MemoryNotShared {
        /// QEMU's name for it.
        id: String,
    },
    /// No NIC for the VF to be joined with.
    #[error(
        "no virtio-net-pci of the guest has the address {mac}, which the stack's file says{}: start QEMU with \
         -device virtio-net-pci,id=…,mac={mac},failover=on,…",
        list(.others)
    )]
    NoSuchNic {
        /// The adapter's address.
        mac: MacAddress,
        /// Addresses of those that there are.
        others: Vec<MacAddress>,
    },
    /// The guest would take the VF for a NIC of its own.
    #[error(
        "the guest's virtio-net {mac} is not made to be joined with a VF: start QEMU with failover=on and an id for \
         that device, -device virtio-net-pci,id=net0,mac={mac},failover=on,…"
    )]
    NoFailover {
        /// Its address.
        mac: MacAddress,
    },
    /// Unplugging would have QEMU remove the device, at which it aborts.
    #[error(
        "a VF could be given to this guest, and not be taken from it: its PCI slots are hot-plugged by ACPI. Start QEMU \
         with -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
    )]
    AcpiHotPlug,
    /// No slot.
    #[error(
        "no PCI Express slot of the guest is free for a VF: start QEMU with \
         -device pcie-root-port,id=vfport0,chassis=100,slot=100,power_controller_present=off{}",
        if *.wrong > 0 { "; root ports without power_controller_present=off cannot give a VF back" } else { "" }
    )]
    NoPort {
        /// Free root ports that have a power controller.
        wrong: usize,
    },
}

fn list(macs: &[MacAddress]) -> String {
    if macs.is_empty() {
        return String::new();
    }
    let macs: Vec<_> = macs.iter().map(ToString::to_string).collect();
    format!("; there are {}", macs.join(", "))
}

/// A virtio-net of the guest.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Nic {
    /// QEMU's id of it; empty if it has none.
    pub(crate) id: String,
    pub(crate) mac: MacAddress,
    pub(crate) failover: bool,
}

/// What a QEMU said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) version: String,
    pub(crate) nics: Vec<Nic>,
}

impl Machine {
    /// Asks what is needed for any VF.
    pub(crate) fn survey(qmp: &mut Qmp) -> Result<Self, MachineError> {
        let version = check_version(qmp)?;
        check_memory(qmp)?;
        let mut machine = Self { version, nics: Vec::new() };
        machine.look_for_nics(qmp)?;
        Ok(machine)
    }

    /// Asks for the guest's NICs: some may have come since.
    pub(crate) fn look_for_nics(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        let mut nics = Vec::new();
        for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
            for id in children(qmp, folder, |kind| kind.starts_with("virtio-net-pci"))? {
                let path = format!("{folder}/{id}");
                let mac = qmp.property(&path, "mac")?;
                let Some(mac) = mac.as_str().and_then(|mac| mac.parse().ok()) else { continue };
                let failover = qmp.property(&path, "failover")?.as_bool().unwrap_or(false);
                let id = if folder.ends_with("anon") { String::new() } else { id };
                nics.push(Nic { id, mac, failover });
            }
        }
        self.nics = nics;
        Ok(())
    }

    /// The NIC with an address, with which a VF can be joined.
    pub(crate) fn nic(&self, mac: MacAddress) -> Result<&Nic, MachineError> {
        let Some(nic) = self.nics.iter().find(|nic| nic.mac == mac) else {
            let others = self.nics.iter().map(|nic| nic.mac).collect();
            return Err(MachineError::NoSuchNic { mac, others });
        };
        if nic.failover && !nic.id.is_empty() {
            Ok(nic)
        } else {
            Err(MachineError::NoFailover { mac })
        }
    }
}

fn check_version(qmp: &mut Qmp) -> Result<String, MachineError> {
    let answer = qmp.execute("query-version", json!({}))?;
    let number = |name: &str| answer.pointer(&format!("/qemu/{name}")).and_then(Value::as_u64);
    let (major, minor) = (number("major").unwrap_or(0), number("minor").unwrap_or(0));
    let version = format!("{major}.{minor}.{}", number("micro").unwrap_or(0));
    let known = qmp.execute("qom-list-types", json!({ "implements": "vfio-user-pci" }))?;
    if known.as_array().is_none_or(Vec::is_empty) {
        let old = (major, minor) < OLDEST;
        return Err(MachineError::NoVfioUser { version, old });
    }
    Ok(version)
}

fn check_memory(qmp: &mut Qmp) -> Result<(), MachineError> {
    let answer = qmp.execute("query-memdev", json!({}))?;
    for memory in answer.as_array().into_iter().flatten() {
        if memory.get("share").and_then(Value::as_bool) == Some(false) {
            let id = memory.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(MachineError::MemoryNotShared { id });
        }
    }
    Ok(())
}

/// Names of the children of some kinds.
fn children(
    qmp: &mut Qmp,
    folder: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<String>, QmpError> {
    let listed = qmp.execute("qom-list", json!({ "path": folder }))?;
    let text =
        |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
    let entries = listed.as_array().into_iter().flatten();
    let child = |entry: &Value| {
        let kind = text(entry, "type")?;
        let kind = kind.strip_prefix("child<")?.strip_suffix('>')?;
        wanted(kind).then(|| text(entry, "name")).flatten()
    };
    Ok(entries.filter_map(child).collect())
}

/// Devices of ours that a process before this one has left. Nobody serves them.
pub(crate) fn left_behind(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let devices = children(qmp, "/machine/peripheral", |kind| kind == "vfio-user-pci")?;
    Ok(devices.into_iter().filter(|id| id.starts_with(OURS)).collect())
}

/// Refuses a machine in which devices are unplugged by ACPI: QEMU removes them then, and aborts if they have MSI-X.
fn check_hot_plug(qmp: &mut Qmp) -> Result<(), MachineError> {
    // Machines without it have no ACPI hot-plug of this kind.
    let Ok(device) = qmp.property("/machine", "acpi-device") else { return Ok(()) };
    let Some(path) = device.as_str().filter(|path| !path.is_empty()) else { return Ok(()) };
    match qmp.property(path, "acpi-pci-hotplug-with-bridge-support") {
        Ok(Value::Bool(true)) => Err(MachineError::AcpiHotPlug),
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A root port with an empty slot, of which a guest that is asked to gives a device up, and QEMU leaves it where it is:
/// it removes a device when the slot's power is off, which a slot without power controller never is.
fn free_port(qmp: &mut Qmp) -> Result<String, MachineError> {
    let taken = taken_ports(&qmp.execute("query-pci", json!({}))?);
    let mut wrong = 0;
    for port in children(qmp, "/machine/peripheral", |kind| kind == "pcie-root-port")? {
        if taken.contains(&port) {
            continue;
        }
        let path = format!("/machine/peripheral/{port}");
        if qmp.property(&path, "power_controller_present")? == Value::Bool(false) {
            return Ok(port);
        }
        wrong += 1;
    }
    Err(MachineError::NoPort { wrong })
}

/// Ids of bridges that have something behind them.
fn taken_ports(pci: &Value) -> BTreeSet<String> {
    fn visit(devices: &Value, taken: &mut BTreeSet<String>) {
        for device in devices.as_array().into_iter().flatten() {
            let Some(behind) = device.pointer("/pci_bridge/devices") else { continue };
            if behind.as_array().is_some_and(|devices| !devices.is_empty())
                && let Some(id) = device.get("qdev_id").and_then(Value::as_str)
            {
                taken.insert(id.to_owned());
            }
            visit(behind, taken);
        }
    }
    let mut taken = BTreeSet::new();
    for bus in pci.as_array().into_iter().flatten() {
        if let Some(devices) = bus.get("devices") {
            visit(devices, &mut taken);
        }
    }
    taken
}

/// What plugs a function into a free slot, as the primary of a NIC: its id, and the arguments of `device_add`.
pub(crate) fn function(
    qmp: &mut Qmp,
    place: u32,
    nic: &Nic,
    socket: &Path,
) -> Result<(String, Value), MachineError> {
    check_hot_plug(qmp)?;
    let port = free_port(qmp)?;
    let before = children(qmp, "/machine/peripheral", |_| true)?;
    let mut ids = (0..u32::MAX).map(|again| match again {
        0 => format!("{OURS}{place}"),
        again => format!("{OURS}{place}-{again}"),
    });
    let id = ids.find(|id| !before.contains(id)).unwrap_or_default();
    let mut arguments = json!({
        "driver": "vfio-user-pci",
        "id": id,
        "bus": port,
        "socket": { "type": "unix", "path": socket },
    });
    // A NIC has one primary. One that a process before has left stays that, as far as QEMU is concerned; the guest joins
    // by the address.
    if !has_primary(qmp, nic, &before)?
        && let Some(object) = arguments.as_object_mut()
    {
        object.insert("failover_pair_id".to_owned(), Value::from(nic.id.clone()));
    }
    Ok((id, arguments))
}

/// Whether one of our functions is the primary of a NIC.
fn has_primary(qmp: &mut Qmp, nic: &Nic, devices: &[String]) -> Result<bool, QmpError> {
    for id in devices.iter().filter(|id| id.starts_with(OURS)) {
        match qmp.property(&format!("/machine/peripheral/{id}"), "failover_pair_id") {
            Ok(pair) if pair.as_str() == Some(&nic.id) => return Ok(true),
            Ok(_) => {}
            // Whose it is is not known; what goes wrong without is nothing but QEMU's migration.
            Err(QmpError::Refused { .. }) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether QEMU said that it has no such device.
pub(crate) fn is_not_there(error: &QmpError) -> bool {
    matches!(error, QmpError::Refused { reason, .. } if reason.contains("not found"))
}

/// Whether QEMU said that it is too early to press the button of a slot again.
pub(crate) fn is_too_early(error: &QmpError) -> bool {
    matches!(error, QmpError::Refused { reason, .. }
        if reason.contains("process of unplug") || reason.contains("guest is busy"))
}

/// Presses the attention button of a device's slot: a guest that has the device gives it up, and one that has given it
/// up takes it again. Both after 5 s, in which a second press would take the first one back.
pub(crate) fn press(qmp: &mut Qmp, device: &str) -> Result<(), QmpError> {
    qmp.execute("device_del", json!({ "id": device })).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_with_something_behind_them_are_taken() {
        let pci = json!([{ "bus": 0, "devices": [
            { "qdev_id": "", "slot": 0 },
            { "qdev_id": "rp0", "pci_bridge": { "bus": {}, "devices": [] } },
            { "qdev_id": "rp1", "pci_bridge": { "bus": {}, "devices": [
                { "qdev_id": "up", "pci_bridge": { "bus": {}, "devices": [{ "qdev_id": "x" }] } },
            ] } },
            { "qdev_id": "rp2", "pci_bridge": { "bus": {} } },
        ] }]);
        assert_eq!(taken_ports(&pci), BTreeSet::from(["rp1".to_owned(), "up".to_owned()]));
        assert!(taken_ports(&json!({})).is_empty());
    }

    #[test]
    fn a_nic_that_cannot_be_joined_is_refused_with_the_option_to_add() {
        let mac: MacAddress = "02:00:00:00:00:10".parse().unwrap();
        let nic = |id: &str, failover| Nic { id: id.to_owned(), mac, failover };
        let machine = |nics| Machine { version: String::new(), nics };
        assert!(machine(vec![nic("net0", true)]).nic(mac).is_ok());
        for nics in [vec![nic("net0", false)], vec![nic("", true)]] {
            let error = machine(nics).nic(mac).unwrap_err().to_string();
            assert!(error.contains("failover=on"), "{error}");
        }
        let other = "02:00:00:00:00:11".parse().unwrap();
        let error = machine(vec![nic("net0", true)]).nic(other).unwrap_err().to_string();
        assert!(
            error.contains("there are 02-00-00-00-00-10")
                || error.contains("there are 02:00:00:00:00:10"),
            "{error}"
        );
    }
}
