//! More is asked for than there is.

use device_control::OidRequestKind;
use ndis_protocol::{
    FilterMatch, MacAddress, NdisStatus, NdisStructure, Oid, ReceiveFilterParameters, VPortId,
    VlanCondition,
};

use crate::{
    common::*,
    traffic::{Vf, exchange},
};

#[test]
fn one_vf_too_many_is_refused_in_words_and_changes_nothing() {
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, directory.path(), 2);
    let attached = [adapter.attach(1), adapter.attach(2)];
    let mut vfs = attached.each_ref().map(|attached| Vf::open(&attached.socket));
    let (before, names) = (adapter.still_status(), names_in(directory.path()));
    for _ in 0..3 {
        let third = adapter.nic(&["attach-vf", "--mac", "02:00:00:00:00:03"]);
        assert_refused(&third, &["OID_NIC_SWITCH_ALLOCATE_VF", "NDIS_STATUS_RESOURCES"]);
    }
    assert_eq!(adapter.still_status(), before);
    assert_eq!(names_in(directory.path()), names);
    let [a, b] = &mut vfs;
    exchange((a, 1), (b, 2), 1);
    drop(vfs);
    // One that is freed is there for the next.
    let Attached { vf, filter, .. } = &attached[0];
    let (vf, filter) = (vf.to_string(), filter.to_string());
    let detached = adapter.nic(&["detach-vf", "--vf", &vf, "--filter", &filter]);
    assert!(detached.status.success(), "{}", text(&detached.stderr));
    assert_eq!(adapter.attach(3).vf.to_string(), vf);
}

#[test]
fn more_queue_pairs_than_there_are_are_refused_and_change_nothing() {
    let directory = User::Same.directory();
    let file = directory.path().join("adapter.toml");
    // Four of the six are the default VPort's.
    let settings = "[adapter]\ntotal_vfs = 4\nqueue_pairs = 6\ndefault_vport_queue_pairs = 4\n";
    std::fs::write(&file, settings).unwrap();
    let sockets = directory.path().join("nic");
    let adapter =
        Adapter::start_with(&sockets, &["--config", file.to_str().unwrap(), "--vfs", "4"]);
    let attach = |last: u8, pairs: &str| {
        let mac = format!("02:00:00:00:00:{last:02x}");
        adapter.nic(&["attach-vf", "--mac", &mac, "--queue-pairs", pairs])
    };
    let mut before = adapter.still_status();
    for pairs in ["4", "16", "17", "65535"] {
        assert_refused(&attach(1, pairs), &["OID_NIC_SWITCH_CREATE_VPORT", "NDIS_STATUS_"]);
        assert_eq!(adapter.still_status(), before);
    }
    // What is left is given away to the last one.
    for last in [1, 2] {
        let output = attach(last, "1");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    before = adapter.still_status();
    assert_refused(&attach(3, "1"), &["OID_NIC_SWITCH_CREATE_VPORT", "NDIS_STATUS_"]);
    assert_eq!(adapter.still_status(), before);
}

#[test]
fn one_receive_filter_too_many_is_refused_and_changes_nothing() {
    let directory = User::Same.directory();
    let file = directory.path().join("adapter.toml");
    std::fs::write(&file, "[adapter]\ntotal_vfs = 2\nreceive_filters = 10\n").unwrap();
    let sockets = directory.path().join("nic");
    let adapter =
        Adapter::start_with(&sockets, &["--config", file.to_str().unwrap(), "--vfs", "2"]);
    let client = adapter.client();
    let set = |last: u8| {
        let mac = MacAddress::new([2, 0, 0, 0, 1, last]);
        let matches = FilterMatch { mac, vlan: VlanCondition::UntaggedOrZero, inner: false };
        let input = ReceiveFilterParameters::new(VPortId::DEFAULT, matches).emit();
        let oid = Oid::ReceiveFilterSetFilter.code();
        let kind = OidRequestKind::Method;
        NdisStatus(client.oid(kind, oid, &input, 8192, PATIENCE).unwrap().status.0)
    };
    let taken = (0..=255).take_while(|last| set(*last) == NdisStatus::SUCCESS).count();
    assert_eq!(taken, 10);
    let before = adapter.still_status();
    // What SPEC-NDIS-SRIOV publishes for one filter too many.
    assert_eq!(set(200), NdisStatus::FAILURE);
    let output = adapter.nic(&["attach-vf", "--mac", "02:00:00:00:00:01"]);
    assert_refused(&output, &["OID_RECEIVE_FILTER_SET_FILTER", "NDIS_STATUS_FAILURE"]);
    assert_eq!(adapter.still_status(), before);
}

#[test]
fn out_of_file_descriptors_a_vf_is_refused_and_those_that_are_there_work() {
    // A VF takes several descriptors: each of these limits is met at another of them.
    for limit in 93..=98 {
        run_out_of_descriptors(limit);
    }
}

fn run_out_of_descriptors(limit: u32) {
    let directory = User::Same.directory();
    let mut adapter = Adapter::start_with_descriptors(directory.path(), 64, limit);
    let mut vfs = [1, 2].map(|last| Vf::open(&adapter.attach(last).socket));
    let client = adapter.client();
    let refused = (3..=64).find_map(|last| {
        let mac = format!("02:00:00:00:00:{last:02x}");
        let output = adapter.nic(&["attach-vf", "--mac", &mac]);
        (!output.status.success()).then_some(output)
    });
    // Either the adapter says so, or it cannot even take the connection of the one who asks.
    let message = text(&refused.expect("too few descriptors for 64 VFs").stderr);
    println!("{limit} descriptors: {}", message.trim_end());
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    adapter.assert_lives();
    let count = status_of(&client).vfs.len();
    assert!((3..64).contains(&count), "{count} VFs");
    let [a, b] = &mut vfs;
    exchange((a, 1), (b, 2), 1);
    // What was refused left nothing behind: with descriptors again, it works.
    drop(vfs);
    wait_for("the VFs to be closed", || {
        status_of(&client).vfs.iter().all(|vf| !vf.function.connected).then_some(())
    });
    let sockets: Vec<_> =
        names_in(directory.path()).into_iter().filter(|name| name.starts_with("vf")).collect();
    assert_eq!(sockets.len(), count, "{sockets:?}");
    adapter.signal(rustix::process::Signal::TERM);
    assert!(adapter.wait().success());
    assert_eq!(names_in(directory.path()), [""; 0]);
}
