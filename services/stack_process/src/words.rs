//! Words that people write for what has numbers or names elsewhere.

use adapter::control::VlanMode;
use ndis_protocol::{InterruptModeration, VlanId};
use virtualization_stack::Policy;

/// Policies (SPEC-MANAGEMENT §7).
pub const POLICIES: [(&str, Policy); 11] = [
    ("port-acl", Policy::PortAcl),
    ("minimum-bandwidth", Policy::MinimumBandwidth),
    ("maximum-bandwidth", Policy::MaximumBandwidth),
    ("private-vlan", Policy::PrivateVlan),
    ("port-mirroring", Policy::PortMirroring),
    ("dhcp-guard", Policy::DhcpGuard),
    ("router-guard", Policy::RouterGuard),
    ("storm-limit", Policy::StormLimit),
    ("dynamic-ip-address-limit", Policy::DynamicIpAddressLimit),
    ("virtual-subnet", Policy::VirtualSubnet),
    ("extension", Policy::Extension),
];

/// IovInterruptModeration.
pub const MODERATIONS: [(&str, InterruptModeration); 6] = [
    ("default", InterruptModeration::Undefined),
    ("adaptive", InterruptModeration::Adaptive),
    ("off", InterruptModeration::Disabled),
    ("low", InterruptModeration::Low),
    ("medium", InterruptModeration::Medium),
    ("high", InterruptModeration::High),
];

/// The word for a policy.
pub fn policy_word(policy: Policy) -> &'static str {
    POLICIES.iter().find(|(_, its)| *its == policy).map_or("", |(word, _)| word)
}

/// Reads VLANs as they are written on a command line: `none`, `7`, `trunk:10,20` or `trunk:10,20:native=1`.
///
/// # Errors
/// What is wrong, and what can be written.
pub fn parse_vlan(text: &str) -> Result<VlanMode, String> {
    let forms = "write none, 7, trunk:10,20, or trunk:10,20:native=1; VLANs are 1 to 4094";
    let id = |text: &str| {
        let id = text.trim().parse().ok().and_then(VlanId::new).map(VlanId::get);
        id.ok_or_else(|| format!("{text:?} is not a VLAN; {forms}"))
    };
    let Some(trunk) = text.strip_prefix("trunk:") else {
        return match text {
            "none" => Ok(VlanMode::Transparent),
            _ => Ok(VlanMode::Access { vlan: id(text)? }),
        };
    };
    let (allowed, native) = match trunk.split_once(":native=") {
        Some((allowed, native)) => (allowed, id(native)?),
        None => (trunk, 0),
    };
    let allowed = allowed.split(',').map(id).collect::<Result<_, _>>()?;
    Ok(VlanMode::Trunk { native, allowed })
}

/// VLANs as [`parse_vlan`] reads them.
pub fn show_vlan(vlan: &VlanMode) -> String {
    match vlan {
        VlanMode::Transparent => "none".to_owned(),
        VlanMode::Access { vlan } => vlan.to_string(),
        VlanMode::Trunk { native, allowed } => {
            let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            let native = if *native == 0 { String::new() } else { format!(":native={native}") };
            format!("trunk:{}{native}", allowed.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_read_as_they_are_shown() {
        for text in ["none", "7", "trunk:10,20", "trunk:4094:native=1"] {
            assert_eq!(show_vlan(&parse_vlan(text).unwrap()), text);
        }
        for text in ["", "0", "4095", "trunk:", "trunk:1,x", "trunk:1:native=0", "access:1"] {
            assert!(parse_vlan(text).unwrap_err().contains("write none"), "{text}");
        }
    }

    #[test]
    fn every_policy_has_a_word() {
        for (word, policy) in POLICIES {
            assert_eq!(policy_word(policy), word);
            // As it is in JSON, but for the dashes.
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("{:?}", word.replace('-', "_")));
        }
    }
}
