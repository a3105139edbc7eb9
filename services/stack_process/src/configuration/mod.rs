//! The configuration: which NICs, switches and VMs there are, where their processes are reached, and what is wanted of
//! each VM network adapter.

mod entry;
mod file;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ndis_protocol::{InterruptModeration, MacAddress};
use thiserror::Error;
use virtualization_stack::{
    AdapterKind, MAX_ADAPTERS_PER_VM, Policy, SilentGuest, Timeouts, VlanSetting,
};

/// The configuration of a stack. What [`Configuration::read`] returns is consistent: names are unique and known, and no
/// MAC address is used twice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// Table `[stack]`: what happens to guests that hold VFs and do not answer while their PF waits.
    pub silent_guest: SilentGuest,
    /// Table `[timeouts]`.
    pub timeouts: Timeouts,
    /// Tables `[[nic]]`.
    pub nics: Vec<NicSettings>,
    /// Tables `[[switch]]`.
    pub switches: Vec<SwitchSettings>,
    /// Tables `[[vm]]`.
    pub vms: Vec<VmSettings>,
}

/// A NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicSettings {
    /// Its name.
    pub name: String,
    /// Folder of its sockets.
    pub directory: PathBuf,
}

/// A switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwitchSettings {
    /// Its name.
    pub name: String,
    /// Its control socket.
    pub socket: PathBuf,
    /// What it connects.
    pub kind: SwitchReach,
    /// IovEnabled.
    pub iov: bool,
}

/// What a switch connects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SwitchReach {
    /// VMs, the host and this NIC.
    External {
        /// The NIC.
        nic: String,
        /// Whether its uplink is a team of NICs in the host.
        teamed: bool,
    },
    /// VMs and the host.
    Internal,
    /// VMs alone.
    Private,
}

impl SwitchReach {
    /// As the file has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::External { .. } => "external",
            Self::Internal => "internal",
            Self::Private => "private",
        }
    }
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSettings {
    /// Its name.
    pub name: String,
    /// Control socket of its host side.
    pub socket: PathBuf,
    /// Its network adapters: the guest's ethN are in this order.
    pub adapters: Vec<AdapterSettings>,
}

/// A VM network adapter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdapterSettings {
    /// Its name, among its VM's.
    pub name: String,
    /// Its kind.
    pub kind: AdapterKind,
    /// Where an emulated adapter is served by vfio-user, or a virtio-net by vhost-user.
    pub socket: Option<PathBuf>,
    /// Its switch.
    pub switch: Option<String>,
    /// Its address.
    pub mac: MacAddress,
    /// Its VLANs.
    pub vlan: VlanSetting,
    /// IovWeight.
    pub iov_weight: u32,
    /// IovQueuePairsRequested.
    pub queue_pairs: u32,
    /// IovInterruptModeration.
    pub interrupt_moderation: InterruptModeration,
    /// MacAddressSpoofing.
    pub mac_spoofing: bool,
    /// Policies that need the software switch.
    pub policies: BTreeSet<Policy>,
    /// AllowPolicyBypass.
    pub allow_policy_bypass: bool,
    /// Channels of the synthetic path that the guest may open.
    pub channels: u16,
}

impl AdapterSettings {
    /// An adapter as it is without further settings.
    pub fn new(name: impl Into<String>, mac: MacAddress) -> Self {
        Self {
            name: name.into(),
            kind: AdapterKind::Synthetic,
            socket: None,
            switch: None,
            mac,
            vlan: VlanSetting::Untagged,
            iov_weight: 0,
            queue_pairs: 1,
            interrupt_moderation: InterruptModeration::Undefined,
            mac_spoofing: false,
            policies: BTreeSet::new(),
            allow_policy_bypass: false,
            channels: 1,
        }
    }
}

/// What is wrong with a configuration. Nothing of it was used.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    /// It cannot be read.
    #[error("the configuration file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{}: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A setting is wrong.
    #[error("{}: line {line}: {key}: {cause}; {next}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The setting.
        key: String,
        /// What is wrong.
        cause: String,
        /// What to do.
        next: String,
    },
}

/// Where something is said: the line, and the key.
#[derive(Clone, Debug)]
struct Place {
    line: usize,
    key: String,
}

/// What is wrong at a place.
#[derive(Debug)]
struct Fault {
    place: Place,
    cause: String,
    next: String,
}

impl Place {
    fn fault(&self, cause: impl Into<String>, next: impl Into<String>) -> Fault {
        Fault { place: self.clone(), cause: cause.into(), next: next.into() }
    }
}

impl Configuration {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigurationError`], which names file, line, key, cause and next step.
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads a text that is, or could be, in the file `path`. Paths in it are relative to that file's folder.
    ///
    /// # Errors
    /// As [`Configuration::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigurationError> {
        file::parse(text, path)
    }
}

/// Names and addresses that were met, and where.
#[derive(Default)]
struct Met(BTreeMap<String, usize>);

impl Met {
    fn once(&mut self, what: &str, name: &str, place: &Place) -> Result<(), Fault> {
        match self.0.insert(name.to_owned(), place.line) {
            None => Ok(()),
            Some(line) => Err(place.fault(
                format!("{what} {name} is there already, in line {line}"),
                "choose another",
            )),
        }
    }
}

/// Whether a name can be one: it becomes part of ports' names and of log lines.
fn check_name(name: &str, place: &Place) -> Result<(), Fault> {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if name.is_empty() || name.len() > 31 || !name.bytes().all(fits) {
        let cause = format!("{name:?} is no name");
        return Err(
            place.fault(cause, "use 1 to 31 printable ASCII characters without / and spaces")
        );
    }
    Ok(())
}

fn check_count(adapters: usize, place: &Place) -> Result<(), Fault> {
    if adapters > MAX_ADAPTERS_PER_VM {
        let cause = format!("{adapters} network adapters");
        return Err(place.fault(cause, format!("a VM has at most {MAX_ADAPTERS_PER_VM}")));
    }
    Ok(())
}
