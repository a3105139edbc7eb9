//! The TOML file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ndis_protocol::{InterruptModeration, MacAddress, VlanId};
use toml::de::{DeTable, DeValue};
use virtualization_stack::{
    AdapterKind, MAX_TRUNK_VLANS, Policy, SilentGuest, Timeouts, VlanSetting,
};

use super::entry::{Entry, Setting, list, number};
use super::{
    AdapterSettings, Configuration, ConfigurationError, Fault, Met, NicSettings, Place,
    SwitchReach, SwitchSettings, VmSettings, check_count, check_name,
};
use crate::words::{MODERATIONS, POLICIES};

pub(super) fn parse(text: &str, path: &Path) -> Result<Configuration, ConfigurationError> {
    let line_of = |at| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| ConfigurationError::Syntax {
        path: path.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let root = Entry::new(text, "", table.get_ref(), 0);
    let mut reader = Reader { folder: folder(path), ..Reader::default() };
    match reader.read(&root) {
        Ok(()) => Ok(Configuration { file: Some(path.to_owned()), ..reader.configuration }),
        Err(Fault { place: Place { line, key }, cause, next }) => {
            Err(ConfigurationError::Setting { path: path.to_owned(), line, key, cause, next })
        }
    }
}

/// The folder that paths in a file are relative to.
fn folder(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new(""));
    // Other processes are told these paths, and may work elsewhere.
    std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .unwrap_or_else(|_| folder.to_owned())
}

#[derive(Default)]
struct Reader {
    folder: PathBuf,
    configuration: Configuration,
    nics: Met,
    nics_with_switch: Met,
    switches: Met,
    vms: Met,
    macs: Met,
    sockets: Met,
}

impl Reader {
    fn read(&mut self, root: &Entry<'_>) -> Result<(), Fault> {
        root.known(&["stack", "timeouts", "nic", "switch", "vm"])?;
        if let Some(stack) = root.table("stack")? {
            stack.known(&["silent-guest"])?;
            let words =
                [("veto", SilentGuest::Veto), ("surprise-remove", SilentGuest::SurpriseRemove)];
            let silent_guest = stack.word("silent-guest", &words)?;
            self.configuration.silent_guest =
                silent_guest.map_or_else(Default::default, |s| s.value);
        }
        if let Some(entry) = root.table("timeouts")? {
            timeouts(&entry, &mut self.configuration.timeouts)?;
        }
        for entry in root.tables("nic", "[[nic]]")? {
            self.nic(&entry)?;
        }
        for entry in root.tables("switch", "[[switch]]")? {
            self.switch(&entry)?;
        }
        for entry in root.tables("vm", "[[vm]]")? {
            self.vm(&entry)?;
        }
        Ok(())
    }

    fn path(&self, setting: &Setting<&str>) -> Result<PathBuf, Fault> {
        if setting.value.is_empty() {
            return Err(setting.place.fault("this is no path", "write one"));
        }
        Ok(self.folder.join(setting.value))
    }

    fn socket(&mut self, entry: &Entry<'_>, key: &str) -> Result<PathBuf, Fault> {
        let setting = entry.required(key)?;
        let path = self.path(&setting)?;
        self.sockets.once("the socket", &path.display().to_string(), &setting.place)?;
        Ok(path)
    }

    fn nic(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        entry.known(&["name", "directory"])?;
        let name = entry.required("name")?;
        check_name(name.value, &name.place)?;
        self.nics.once("a NIC", name.value, &name.place)?;
        let directory = self.socket(entry, "directory")?;
        self.configuration.nics.push(NicSettings { name: name.value.to_owned(), directory });
        Ok(())
    }

    fn switch(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        entry.known(&["name", "socket", "kind", "nic", "teamed", "iov"])?;
        let name = entry.required("name")?;
        check_name(name.value, &name.place)?;
        self.switches.once("a switch", name.value, &name.place)?;
        let socket = self.socket(entry, "socket")?;
        let nic = entry.text("nic")?;
        let teamed = entry.flag("teamed")?.unwrap_or_default();
        let kinds = [("external", "external"), ("internal", "internal"), ("private", "private")];
        let kind = entry.word("kind", &kinds)?;
        let kind = match (kind.as_ref().map(|kind| kind.value), &nic) {
            (None | Some("external"), Some(nic)) => {
                let known = &self.configuration.nics;
                if !known.iter().any(|its| its.name == nic.value) {
                    let names: Vec<_> = known.iter().map(|nic| nic.name.as_str()).collect();
                    return Err(unknown("NIC", nic.value, &names, &nic.place));
                }
                self.nics_with_switch.once("a switch with the NIC", nic.value, &nic.place)?;
                SwitchReach::External { nic: nic.value.to_owned(), teamed }
            }
            (Some("external"), None) => {
                let next = "add nic = \"…\", or write \"internal\": that also fits an uplink that is no SR-IOV NIC";
                return Err(entry.place("kind").fault("an external switch has a NIC", next));
            }
            (Some("private"), None) => SwitchReach::Private,
            (_, None) => SwitchReach::Internal,
            (Some(kind), Some(nic)) => {
                let cause =
                    format!("an {kind} switch has no NIC").replace("an private", "a private");
                return Err(nic
                    .place
                    .fault(cause, "take the NIC away, or write kind = \"external\""));
            }
        };
        let external = matches!(kind, SwitchReach::External { .. });
        if teamed && !external {
            let next = "take it away, or name the NIC";
            return Err(entry.place("teamed").fault("only an external switch can be teamed", next));
        }
        let iov = entry.flag("iov")?.unwrap_or_default();
        let name = name.value.to_owned();
        self.configuration.switches.push(SwitchSettings { name, socket, kind, iov });
        Ok(())
    }

    fn vm(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        entry.known(&["name", "socket", "adapter"])?;
        let name = entry.required("name")?;
        check_name(name.value, &name.place)?;
        self.vms.once("a VM", name.value, &name.place)?;
        let socket = self.socket(entry, "socket")?;
        let entries = entry.tables("adapter", "[[vm.adapter]]")?;
        check_count(entries.len(), &entry.place("adapter"))?;
        let mut names = Met::default();
        let mut adapters = Vec::new();
        for entry in entries {
            adapters.push(self.adapter(&entry, &mut names)?);
        }
        let name = name.value.to_owned();
        self.configuration.vms.push(VmSettings { name, socket, adapters });
        Ok(())
    }

    fn adapter(&mut self, entry: &Entry<'_>, names: &mut Met) -> Result<AdapterSettings, Fault> {
        entry.known(&[
            "name",
            "switch",
            "mac",
            "iov-weight",
            "queue-pairs",
            "interrupt-moderation",
            "vlan",
            "mac-spoofing",
            "policies",
            "allow-policy-bypass",
            "channels",
            "kind",
            "socket",
        ])?;
        let name = entry.required("name")?;
        check_name(name.value, &name.place)?;
        names.once("an adapter of this VM named", name.value, &name.place)?;
        let mac = entry.required("mac")?;
        let address: MacAddress = mac.value.parse().map_err(|_| {
            let cause = format!("{:?} is not a MAC address", mac.value);
            mac.place.fault(cause, "write six hexadecimal octets, such as 00:15:5D:00:00:01")
        })?;
        if !address.is_valid_unicast() {
            let cause = format!("{address} is not the address of one adapter");
            return Err(mac.place.fault(cause, "the first octet is even, and not all are zero"));
        }
        self.macs.once("an adapter with the address", &address.to_string(), &mac.place)?;
        let mut adapter = AdapterSettings::new(name.value, address);
        let kinds = [
            ("synthetic", AdapterKind::Synthetic),
            ("legacy", AdapterKind::Legacy),
            ("vhost-user", AdapterKind::VhostUser),
        ];
        if let Some(kind) = entry.word("kind", &kinds)? {
            adapter.kind = kind.value;
        }
        match (adapter.kind, entry.text("socket")?) {
            (AdapterKind::Legacy | AdapterKind::VhostUser, _) => {
                adapter.socket = Some(self.socket(entry, "socket")?);
            }
            (AdapterKind::Synthetic, None) => {}
            (AdapterKind::Synthetic, Some(socket)) => {
                let next = "take it away, or write kind = \"legacy\" or kind = \"vhost-user\"";
                return Err(socket.place.fault("a synthetic adapter has no socket", next));
            }
        }
        if let Some(switch) = entry.text("switch")? {
            let known = &self.configuration.switches;
            if !known.iter().any(|its| its.name == switch.value) {
                let names: Vec<_> = known.iter().map(|switch| switch.name.as_str()).collect();
                return Err(unknown("switch", switch.value, &names, &switch.place));
            }
            adapter.switch = Some(switch.value.to_owned());
        }
        if let Some(vlan) = entry.any("vlan") {
            adapter.vlan = vlan_setting(entry, &vlan)?;
        }
        let number = |key, range| entry.number(key, range);
        adapter.iov_weight = number("iov-weight", 0..=100)?.unwrap_or(adapter.iov_weight);
        adapter.queue_pairs = number("queue-pairs", 1..=u32::MAX)?.unwrap_or(adapter.queue_pairs);
        let channels = number("channels", 1..=64)?.and_then(|channels| channels.try_into().ok());
        adapter.channels = channels.unwrap_or(adapter.channels);
        let moderation = entry.word("interrupt-moderation", &MODERATIONS)?;
        adapter.interrupt_moderation =
            moderation.map_or(InterruptModeration::Undefined, |moderation| moderation.value);
        adapter.mac_spoofing = entry.flag("mac-spoofing")?.unwrap_or_default();
        adapter.allow_policy_bypass = entry.flag("allow-policy-bypass")?.unwrap_or_default();
        let policies = entry.words("policies", &POLICIES)?.unwrap_or_default();
        adapter.policies = policies.into_iter().collect::<BTreeSet<Policy>>();
        Ok(adapter)
    }
}

fn unknown(what: &str, name: &str, known: &[&str], place: &Place) -> Fault {
    let next = if known.is_empty() {
        format!("add a [[{}]] with that name before", what.to_lowercase())
    } else {
        format!("there are {}", known.join(", "))
    };
    place.fault(format!("there is no {what} {name}"), next)
}

fn timeouts(entry: &Entry<'_>, timeouts: &mut Timeouts) -> Result<(), Fault> {
    let Timeouts { expose, offer, switch, eject, remove, pf_stop, pf_removal, nic, retry } =
        timeouts;
    let settings = [
        ("expose", expose),
        ("offer", offer),
        ("switch", switch),
        ("eject", eject),
        ("remove", remove),
        ("pf-stop", pf_stop),
        ("pf-removal", pf_removal),
        ("nic", nic),
        ("retry", retry),
    ];
    let keys: Vec<_> = settings.iter().map(|(key, _)| *key).collect();
    entry.known(&keys)?;
    for (key, timeout) in settings {
        *timeout = entry.seconds(key)?.unwrap_or(*timeout);
    }
    Ok(())
}

const VLAN_FORMS: &str =
    "write 7, { access = 7 }, or { trunk = [10, 20], native = 1 }; VLANs are 1 to 4094";

fn vlan_setting(entry: &Entry<'_>, setting: &Setting<&DeValue<'_>>) -> Result<VlanSetting, Fault> {
    let place = &setting.place;
    let id = |value: &DeValue<'_>| {
        let number = number(value, &(1..=4094), place)
            .map_err(|fault| Fault { next: VLAN_FORMS.to_owned(), ..fault })?;
        let id = u16::try_from(number).ok().and_then(VlanId::new);
        id.ok_or_else(|| place.fault(format!("{number} is not a VLAN"), VLAN_FORMS))
    };
    let table = match setting.value {
        DeValue::Integer(_) => return id(setting.value).map(VlanSetting::Access),
        DeValue::Table(table) => table,
        _ => return Err(place.fault("this is no VLAN setting", VLAN_FORMS)),
    };
    let inner = entry.inner("vlan".to_owned(), table, "vlan");
    inner.known(&["access", "trunk", "native"])?;
    let (access, trunk, native) = (inner.any("access"), inner.any("trunk"), inner.any("native"));
    match (access, trunk, native) {
        (Some(access), None, None) => id(access.value).map(VlanSetting::Access),
        (None, Some(trunk), native) => {
            let allowed: BTreeSet<VlanId> =
                list(trunk.value, place)?.map(id).collect::<Result<_, _>>()?;
            if allowed.is_empty() || allowed.len() > MAX_TRUNK_VLANS {
                let cause = format!("a trunk of {} VLANs", allowed.len());
                let next =
                    format!("name 1 to {MAX_TRUNK_VLANS}: each is a receive filter of the NIC");
                return Err(place.fault(cause, next));
            }
            let native = native.map(|native| id(native.value)).transpose()?;
            Ok(VlanSetting::Trunk { native, allowed })
        }
        _ => Err(place.fault("neither access nor trunk, or both", VLAN_FORMS)),
    }
}
