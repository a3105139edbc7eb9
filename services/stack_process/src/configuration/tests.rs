use std::path::Path;
use std::time::Duration;

use ndis_protocol::VlanId;
use proptest::prelude::*;
use virtualization_stack::{Policy, SilentGuest, Timeouts, VlanSetting};

use super::*;

const FILE: &str = "/etc/clearway/stack.toml";

fn parse(text: &str) -> Result<Configuration, ConfigurationError> {
    Configuration::parse(text, Path::new(FILE))
}

/// One NIC, one switch, one VM with one adapter; `more` is added to the adapter.
fn with(more: &str) -> String {
    format!(
        r#"[[nic]]
name = "nic0"
directory = "nic0"
[[switch]]
name = "external"
socket = "/tmp/sw.sock"
nic = "nic0"
iov = true
[[vm]]
name = "web"
socket = "/tmp/web.sock"
[[vm.adapter]]
name = "net0"
mac = "00:15:5D:00:00:01"
{more}"#
    )
}

#[track_caller]
fn refusal(text: &str) -> String {
    parse(text).expect_err("it is taken").to_string()
}

#[test]
fn the_example_has_the_values_that_it_says_are_the_defaults() {
    let text = include_str!("../../../../docs/stack.example.toml");
    let read = parse(text).unwrap();
    assert_eq!(read.timeouts, Timeouts::default());
    assert_eq!(read.silent_guest, SilentGuest::default());
    assert_eq!((read.nics.len(), read.switches.len(), read.vms.len()), (1, 2, 2));
    let nic = "nic0".to_owned();
    assert_eq!(read.switches[0].kind, SwitchReach::External { nic, teamed: false });
    assert_eq!(read.switches[1].kind, SwitchReach::Private);
    let [net0, net1] = read.vms[0].adapters.as_slice() else { panic!() };
    let mac = "00:15:5d:00:00:01".parse().unwrap();
    let expected = AdapterSettings {
        switch: Some("external".into()),
        iov_weight: 100,
        queue_pairs: 2,
        ..AdapterSettings::new("net0", mac)
    };
    assert_eq!(*net0, expected);
    assert_eq!(net1.vlan, VlanSetting::Access(VlanId::new(7).unwrap()));
    assert_eq!(net1.policies, [Policy::PortAcl].into());
    assert_eq!(read.vms[1].adapters[0].kind, AdapterKind::Legacy);
}

#[test]
fn a_virtio_net_has_a_socket_of_its_own() {
    let read = parse(&with("kind = \"vhost-user\"\nsocket = \"web.vhost\"")).unwrap();
    let adapter = &read.vms[0].adapters[0];
    assert_eq!(adapter.kind, AdapterKind::VhostUser);
    assert_eq!(adapter.socket.as_deref(), Some(Path::new("/etc/clearway/web.vhost")));
    // As it is written in the file, so it is told.
    assert_eq!(serde_json::to_string(&adapter.kind).unwrap(), "\"vhost-user\"");
}

#[test]
fn paths_are_relative_to_the_files_folder_and_times_may_have_fractions() {
    let text = format!("{}\n[timeouts]\neject = 0.25", with(""));
    let read = parse(&text).unwrap();
    assert_eq!(read.nics[0].directory, Path::new("/etc/clearway/nic0"));
    assert_eq!(read.timeouts.eject, Duration::from_millis(250));
    assert_eq!(read.timeouts.offer, Timeouts::default().offer);
}

#[test]
fn vlans_have_three_forms() {
    let vlan = |id| VlanId::new(id).unwrap();
    let read = |form: &str| {
        parse(&with(&format!("vlan = {form}"))).map(|read| read.vms[0].adapters[0].vlan.clone())
    };
    assert_eq!(read("7").unwrap(), VlanSetting::Access(vlan(7)));
    assert_eq!(read("{ access = 7 }").unwrap(), VlanSetting::Access(vlan(7)));
    let allowed = [vlan(10), vlan(20)].into();
    let trunk = VlanSetting::Trunk { native: Some(vlan(1)), allowed };
    assert_eq!(read("{ trunk = [10, 20], native = 1 }").unwrap(), trunk);
    for bad in [
        "0",
        "4095",
        "\"7\"",
        "{}",
        "{ access = 7, trunk = [1] }",
        "{ trunk = [] }",
        "{ native = 1 }",
    ] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.starts_with("/etc/clearway/stack.toml: line 15: "), "{error}");
        assert!(error.contains("VLAN") || error.contains("name 1 to 64"), "{error}");
    }
}

/// File, line, key, cause and next step, for each mistake that people make.
#[test]
fn a_mistake_is_named_with_its_place_its_cause_and_what_to_do() {
    let vm =
        "\n[[vm]]\nname = \"db\"\nsocket = \"/tmp/db.sock\"\n[[vm.adapter]]\nname = \"net0\"\n";
    let cases = [
        (
            with("swich = \"external\""),
            "line 15: [[vm.adapter]] swich: there is no such setting; there are name, switch, mac",
        ),
        (
            with("switch = \"extrenal\""),
            "line 15: [[vm.adapter]] switch: there is no switch extrenal; there are external",
        ),
        (
            with(&format!("{vm}mac = \"00-15-5d-00-00-01\"")),
            "line 21: [[vm.adapter]] mac: an adapter with the address 00:15:5d:00:00:01 is there already, in line 14; choose another",
        ),
        (
            with("").replace("00:15:5D:00:00:01", "01:15:5D:00:00:01"),
            "line 14: [[vm.adapter]] mac: 01:15:5d:00:00:01 is not the address of one adapter; the first octet is even",
        ),
        (
            with("").replace("00:15:5D:00:00:01", "00:15:5D"),
            "line 14: [[vm.adapter]] mac: \"00:15:5D\" is not a MAC address; write six hexadecimal octets",
        ),
        (
            with("iov-weight = 101"),
            "line 15: [[vm.adapter]] iov-weight: 101 is out of range; write a number from 0 to 100",
        ),
        (
            with("queue-pairs = 0"),
            "line 15: [[vm.adapter]] queue-pairs: 0 is out of range; write a number from 1",
        ),
        (with("vlan = 4095"), "line 15: [[vm.adapter]] vlan: 4095 is out of range; write 7, {"),
        (
            with("policies = [\"acl\"]"),
            "line 15: [[vm.adapter]] policies: \"acl\" is not known; there are port-acl, minimum-bandwidth",
        ),
        (
            with("mac-spoofing = \"on\""),
            "line 15: [[vm.adapter]] mac-spoofing: this is neither true nor false; write one of them",
        ),
        (
            with("socket = \"x\""),
            "line 15: [[vm.adapter]] socket: a synthetic adapter has no socket; take it away",
        ),
        (with("kind = \"legacy\""), "line 12: [[vm.adapter]]: socket is missing; add socket = "),
        (
            with("kind = \"vhost-user\""),
            "line 12: [[vm.adapter]]: socket is missing; add socket = ",
        ),
        (
            with("").replace("nic = \"nic0\"", "nic = \"nic1\""),
            "line 7: [[switch]] nic: there is no NIC nic1; there are nic0",
        ),
        (
            with("").replace("iov = true", "kind = \"private\""),
            "line 7: [[switch]] nic: a private switch has no NIC; take the NIC away",
        ),
        (
            with("[[switch]]\nname = \"two\"\nsocket = \"/tmp/2\"\nnic = \"nic0\""),
            "line 18: [[switch]] nic: a switch with the NIC nic0 is there already, in line 7",
        ),
        (
            with("[[switch]]\nname = \"two\"\nsocket = \"/tmp/sw.sock\""),
            "line 17: [[switch]] socket: the socket /tmp/sw.sock is there already, in line 6",
        ),
        (
            with("[[nic]]\nname = \"a b\"\ndirectory = \"x\""),
            "line 16: [[nic]] name: \"a b\" is no name; use 1 to 31 printable ASCII characters",
        ),
        (
            with("[[vm.adapter]]\nname = \"net0\"\nmac = \"00:15:5D:00:00:02\""),
            "line 16: [[vm.adapter]] name: an adapter of this VM named net0 is there already, in line 13",
        ),
        (
            with("[timeouts]\noffer = 0"),
            "line 16: [timeouts] offer: this is no time; write seconds",
        ),
        (
            with("[timeout]"),
            "line 15: timeout: there is no such setting; there are stack, timeouts",
        ),
        (
            with("[stack]\nsilent-guest = \"force\""),
            "line 16: [stack] silent-guest: \"force\" is not known; there are veto, surprise-remove",
        ),
        ("[vm]".to_owned(), "line 1: vm: this is not an array of tables; write [[vm]]"),
        (with("mac = "), "line 15: "),
    ];
    for (text, expected) in cases {
        let error = refusal(&text);
        let expected = format!("{FILE}: {expected}");
        assert!(error.starts_with(&expected), "\n  says {error}\nwanted {expected}");
    }
}

#[test]
fn a_vm_has_at_most_eight_adapters() {
    let adapter = |number: usize| {
        format!("[[vm.adapter]]\nname = \"more{number}\"\nmac = \"00:15:5D:00:01:0{number}\"\n")
    };
    let adapters = |count: usize| (0..count).map(adapter).collect::<String>();
    assert!(parse(&with(&adapters(7))).is_ok());
    let error = refusal(&with(&adapters(8)));
    assert!(error.contains("9 network adapters; a VM has at most 8"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Configuration::read(Path::new("/nonexistent/stack.toml")).unwrap_err();
    assert_eq!(error.to_string(), "the configuration file /nonexistent/stack.toml cannot be read");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_makes_the_reader_panic(
        key in "(name|socket|directory|nic|kind|switch|mac|vlan|policies|iov-weight|eject|adapter)",
        value in r#"("[a-z]*"|-?[0-9]{1,20}|0x[0-9a-f]{1,9}|[0-9]\.[0-9]|true|\[\]|\[1\]|\{\}|\{ trunk = 1 \}|nan)"#,
    ) {
        let _ = parse(&format!("{key} = {value}"));
        let _ = parse(&with(&format!("{key} = {value}")));
        for table in ["stack", "timeouts", "[nic]", "[switch]", "[vm]"] {
            let _ = parse(&format!("[{table}]\n{key} = {value}"));
        }
    }
}
