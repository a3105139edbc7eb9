//! What a VM is to be.

use std::{
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Bytes of memory that a VM has for its DMA unless told otherwise.
pub const DEFAULT_MEMORY: u64 = 32 << 20;

/// One user-mode VM.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct UserVmConfig {
    /// The VM's name, which is also its host name.
    pub name: String,
    /// What carries its network adapters.
    pub path: GuestNetwork,
    /// Addresses of `eth0`.
    pub addresses: Vec<InterfaceAddress>,
    /// Default gateway, reached through `eth0`.
    pub gateway: Option<IpAddr>,
    /// Program and arguments that [`run`](crate::run) runs; without any the VM runs until it is shut down.
    pub command: Vec<OsString>,
    /// Bytes of the memory file that holds rings and packet buffers.
    pub memory: u64,
    /// Queue pairs to ask of a VF's PF, and channels to ask of a synthetic adapter; fewer may be granted.
    pub queue_pairs: u16,
    /// MTU of `eth0`, bytes; 1500 if `None`. No more than the longest frame of the VF, or of the synthetic adapter,
    /// allows.
    pub mtu: Option<u32>,
    /// What kind of interface `eth0` is.
    pub interface: GuestInterfaceKind,
    /// What to do when the VF of [`GuestNetwork::Vf`] is gone. On VMBus a VF comes and goes, and the synthetic
    /// adapter carries on.
    pub on_vf_loss: OnVfLoss,
    /// How long the VF, or the VMBus server, may take to answer at the start.
    pub start_timeout: Duration,
    /// Where to offer the control socket for `vm exec` and statistics; none if `None`. A missing directory is made, with
    /// mode 0700.
    pub control_socket: Option<PathBuf>,
}

impl UserVmConfig {
    /// A VM of this name on the VF at `vf_socket`, with everything else as usual.
    pub fn new(name: impl Into<String>, vf_socket: impl Into<PathBuf>) -> Self {
        Self::with(name.into(), GuestNetwork::Vf { socket: vf_socket.into() })
    }

    /// A VM of this name on a user-mode partition's VMBus, with everything else as usual.
    pub fn on_vmbus(name: impl Into<String>) -> Self {
        Self::with(name.into(), GuestNetwork::Vmbus)
    }

    fn with(name: String, path: GuestNetwork) -> Self {
        Self {
            name,
            path,
            addresses: Vec::new(),
            gateway: None,
            command: Vec::new(),
            memory: DEFAULT_MEMORY,
            queue_pairs: 1,
            mtu: None,
            interface: GuestInterfaceKind::Auto,
            on_vf_loss: OnVfLoss::Exit,
            start_timeout: Duration::from_secs(10),
            control_socket: None,
        }
    }
}

/// What carries a VM's network adapters.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestNetwork {
    /// One VF, from the start to the end; the VM makes its own memory.
    Vf {
        /// Its vfio-user socket.
        socket: PathBuf,
    },
    /// VMBus of a user-mode partition, whose memory is the VM's. Synthetic adapters come as NetVSP offers (`eth0`,
    /// `eth1` … up to [`MAX_ADAPTERS`]), VFs as VPCI offers. The partition's guest end is given to
    /// [`UserVm::spawn_on`](crate::UserVm::spawn_on) or [`run_on`](crate::run_on).
    Vmbus,
}

/// Network adapters of one VM, at most.
pub const MAX_ADAPTERS: usize = 8;

/// What a VM's `eth0` is made of.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestInterfaceKind {
    /// A TAP device where `/dev/net/tun` may be opened, else a veth pair.
    #[default]
    Auto,
    /// A TAP device.
    Tap,
    /// A veth pair, whose other end lies in a network namespace that nobody sees.
    Veth,
}

/// What a VM does when its VF is gone: the adapter died, or the VF was taken away.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnVfLoss {
    /// End the VM with an error.
    #[default]
    Exit,
    /// Keep the VM with `eth0` without carrier, until the socket serves a VF again.
    Wait,
}

/// A word that is not one of a setting's values.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("\"{given}\" is unknown: it is one of {values}")]
pub struct UnknownValue {
    given: String,
    values: &'static str,
}

impl FromStr for OnVfLoss {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        match text {
            "exit" => Ok(Self::Exit),
            "wait" => Ok(Self::Wait),
            _ => Err(UnknownValue { given: text.to_owned(), values: "exit, wait" }),
        }
    }
}

impl FromStr for GuestInterfaceKind {
    type Err = UnknownValue;

    fn from_str(text: &str) -> Result<Self, UnknownValue> {
        match text {
            "auto" => Ok(Self::Auto),
            "tap" => Ok(Self::Tap),
            "veth" => Ok(Self::Veth),
            _ => Err(UnknownValue { given: text.to_owned(), values: "auto, tap, veth" }),
        }
    }
}

/// An address with its prefix length, as in `10.0.0.1/24`.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network's prefix.
    pub prefix_length: u8,
}

/// Why an address was refused.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("\"{0}\" is not an address with a prefix length, such as 10.0.0.1/24 or fd00::1/64")]
pub struct AddressError(String);

impl FromStr for InterfaceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix_length: u8 = prefix.parse().ok()?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let usable = !address.is_unspecified()
                && !address.is_multicast()
                && address != IpAddr::V4(Ipv4Addr::BROADCAST);
            (prefix_length <= bits && usable).then_some(Self { address, prefix_length })
        };
        parse().ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_and_nonsense_is_refused() {
        for text in ["10.0.0.1/24", "fd00::1/64", "192.0.2.1/32", "::1/128"] {
            assert_eq!(text.parse::<InterfaceAddress>().unwrap().to_string(), text);
        }
        for text in ["10.0.0.1", "10.0.0.1/33", "fd00::1/129", "0.0.0.0/0", "224.0.0.1/4", "x/24"] {
            assert!(text.parse::<InterfaceAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_config_survives_the_way_to_the_vm_process() {
        let mut config = UserVmConfig::new("vm1", "/run/vf0.sock");
        config.addresses = vec!["10.0.0.1/24".parse().unwrap()];
        config.gateway = Some("10.0.0.254".parse().unwrap());
        config.command = vec!["ping".into(), "-c1".into()];
        config.control_socket = Some("/run/vm1.sock".into());
        let mut other = config.clone();
        other.path = GuestNetwork::Vmbus;
        for config in [config, other] {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<UserVmConfig>(&json).unwrap(), config);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_refused(text in "[0-9a-f:./]{0,24}") {
            if let Ok(address) = text.parse::<InterfaceAddress>() {
                prop_assert_eq!(address.to_string().parse::<InterfaceAddress>(), Ok(address));
            }
        }
    }
}
