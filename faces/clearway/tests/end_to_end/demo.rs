//! `clearway demo`, as a user runs it.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::{common::*, vms::*};

/// Runs the demo with its temporary files in `directory`, which has to be empty afterwards.
fn demo(user: User, directory: &Path, arguments: &[&str]) -> Value {
    let before = names_in(directory);
    let directory_name = directory.to_str().unwrap();
    let arguments = [&["demo", "--json", "--mebibytes", "16"], arguments].concat();
    let output = user.clearway_with(&arguments, &[("TMPDIR", directory_name)]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    assert!(output.status.success(), "{}: {report:#}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    assert_eq!(report["ok"], true);
    assert_eq!(report["problems"], Value::Array(Vec::new()));
    assert_eq!(names_in(directory), before, "nothing is left");
    report
}

#[test]
fn the_demo_shows_traffic_a_reset_and_counters_that_agree_and_leaves_nothing() {
    if !vms_can_run() {
        return;
    }
    for user in User::all() {
        let directory = user.directory();
        let report = demo(user, directory.path(), &["--part", "vfs"]);
        let pings = &report["pings"];
        assert_eq!((pings["sent"].as_u64(), pings["received"].as_u64()), (Some(20), Some(20)));
        let stream = &report["bulk"]["stream"];
        assert_eq!(
            (stream["bytes"].as_u64(), stream["wrong_bytes"].as_u64()),
            (Some(16 << 20), Some(0))
        );
        assert!(report["reset"]["recovered_after_ms"].as_u64().unwrap() < 5000);
        assert!(report["reset"]["pings"]["received"].as_u64().unwrap() > 0);

        let timeline = report["timeline"].as_array().unwrap();
        let status = |what: &str| -> Vec<_> {
            timeline.iter().filter(|entry| entry["what"] == what).map(|e| &e["status"]).collect()
        };
        for (oid, times) in [
            ("OID_NIC_SWITCH_CREATE_SWITCH", 1),
            ("OID_RECEIVE_FILTER_SET_FILTER", 2),
            ("OID_NIC_SWITCH_ALLOCATE_VF", 2),
            ("OID_NIC_SWITCH_CREATE_VPORT", 2),
            ("OID_RECEIVE_FILTER_MOVE_FILTER", 4),
            ("OID_NIC_SWITCH_DELETE_VPORT", 2),
            ("OID_SRIOV_RESET_VF", 2),
            ("OID_NIC_SWITCH_FREE_VF", 2),
            ("OID_RECEIVE_FILTER_CLEAR_FILTER", 2),
        ] {
            assert_eq!(status(oid), vec!["NDIS_STATUS_SUCCESS"; times], "{oid}");
        }
        for direction in ["VF 0 to VF 1", "VF 1 to VF 0"] {
            assert_eq!(status(direction), ["agree"]);
        }
        let hops = report["hops"].as_array().unwrap();
        assert_eq!(hops.len(), 2);
        for hop in hops {
            let count = |what: &str| hop[what].as_u64().unwrap();
            assert_eq!(count("sent_by_vm"), count("entered_the_switch") + count("refused"));
            assert_eq!(
                count("entered_the_switch") - count("entered_to_groups"),
                count("left_the_switch") - count("left_to_groups") + count("without_a_buffer")
            );
            assert_eq!(count("left_the_switch"), count("received_by_vm"));
        }
        // 16 MiB in frames of 1460 bytes.
        assert!(hops[0]["received_by_vm"].as_u64().unwrap() > 11_000);
    }
}

#[test]
fn paths_move_under_traffic_lose_nothing_and_double_nothing() {
    if !vms_can_run() {
        return;
    }
    for user in User::all() {
        let directory = user.directory();
        let report = demo(user, directory.path(), &["--part", "stack", "--switches", "100"]);
        let moves = &report["moves"];
        let count = |value: &Value| value.as_u64().unwrap();
        assert!(count(&moves["graceful_switches"]) >= 100, "{moves:#}");
        assert!(count(&moves["graceful"]["sent"]) > 1000, "{moves:#}");
        for what in ["lost", "doubled", "wrong"] {
            assert_eq!(moves["graceful"][what], 0, "{moves:#}");
        }
        assert_eq!(moves["surprise"]["doubled"], 0, "{moves:#}");
        for paths in moves["paths"].as_array().unwrap() {
            for what in ["synthetic_sent", "synthetic_received", "vf_sent", "vf_received"] {
                assert!(count(&paths[what]) > 0, "{moves:#}");
            }
        }
        // The published sequence, as the stack tells it.
        let timeline = report["timeline"].as_array().unwrap();
        let told = |event: &str| {
            timeline
                .iter()
                .filter(|entry| entry["detail"].as_str().unwrap().contains(event))
                .count()
        };
        for event in [
            "VF 0 of NIC nic0 is allocated",
            "VF 1 of NIC nic0 is allocated",
            "nic0 wants to stop",
            "nic0 runs again",
            "nic0 is gone",
        ] {
            assert!(told(event) > 0, "{event}: {timeline:#?}");
        }
    }
}

#[test]
fn what_programs_sent_is_replayed_to_the_demo_s_vms_frame_for_frame() {
    if !vms_can_run() || !is_installed("ping") || !is_installed("bash") || !is_installed("ip") {
        return;
    }
    let directory = User::Same.directory();
    let capture = directory.path().join("uplink.pcap");
    let capture = capture.to_str().unwrap();
    record(directory.path(), capture);

    let temporary = User::Same.directory();
    let report = demo(User::Same, temporary.path(), &["--uplink", &format!("pcap:{capture}")]);
    let replay = &report["replay"];
    // 60 echo requests, 40 datagrams, and requests for an address that nobody answered.
    let frames = replay["frames_in_capture"].as_u64().unwrap();
    assert_eq!(replay["frames_on_the_uplink"], frames);
    assert_eq!(replay["not_replayable"], 0);
    let (vms, mut sum) = (replay["vms"].as_array().unwrap(), 0);
    for (vm, mac, unicast) in [(&vms[0], "8", 60), (&vms[1], "9", 40)] {
        assert!(vm["mac"].as_str().unwrap().ends_with(mac), "{replay:#}");
        assert_eq!(vm["in_capture"]["unicast"], unicast, "{replay:#}");
        let lost = vm["without_a_buffer"].as_u64().unwrap();
        let delivered = vm["delivered"]["unicast"].as_u64().unwrap();
        assert!((unicast - lost..=unicast).contains(&delivered), "{replay:#}");
        sum += unicast;
    }
    let broadcast = vms[0]["in_capture"]["broadcast"].as_u64().unwrap();
    assert!(broadcast > 0 && sum + broadcast <= frames, "{replay:#}");
}

/// Has programs in a VM send to two stations outside, and records it.
fn record(directory: &Path, capture: &str) {
    let uplink = format!("pcap:,{capture}");
    let nic = directory.join("nic");
    let mut adapter = Adapter::start_with(&nic, &["--vfs", "1", "--uplink", &uplink]);
    let vf = adapter.attach(1);
    let script = "set -e
        ip neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev eth0
        ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0
        for n in $(seq 40); do echo datagram $n >/dev/udp/10.0.0.9/9; done
        ping -q -c 60 -i 0.002 -W 0.01 10.0.0.8 || true
        ping -q -c 1 -W 0.01 10.0.0.77 || true
        cat";
    let sender = ["bash", "-c", script];
    let sender = Vm::run(directory, "sender", &vf.socket, "10.0.0.1/24", &sender);
    wait_for("the last frame", || {
        let sent = adapter.status().vfs[0].function.stats.transmit;
        (sent.unicast == 100 && sent.broadcast > 0).then_some(())
    });
    sender.finish();
    assert!(adapter.nic(&["shutdown"]).status.success());
    assert!(adapter.wait().success());
}

#[test]
fn captures_that_cannot_be_replayed_are_refused_before_anything_is_started() {
    let directory = User::Same.directory();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // A header, and a frame of which half is missing.
    let mut cut =
        vec![0xD4, 0xC3, 0xB2, 0xA1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
    cut.extend([0, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0]);
    cut.extend([0; 30]);
    let absent = directory.path().join("absent.pcap");
    for (path, words) in [
        (absent.to_str().unwrap().to_owned(), "No such file"),
        (file("empty.pcap", b""), "too short to be a pcap capture"),
        (file("text.pcap", b"this is a text, and no capture at all"), "is not a pcap capture"),
        (file("cut.pcap", &cut), "ends inside frame 1"),
    ] {
        let output = User::Same.clearway(&["demo", "--uplink", &format!("pcap:{path}")]);
        assert_refused(&output, &[&path, words, "tcpdump -w"]);
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn where_user_namespaces_are_forbidden_the_demo_says_so_and_what_to_do() {
    // A namespace in which no more can be made, for a user without privileges in it.
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && \
        exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs \"$0\" demo";
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "sh", "-c", script, CLEARWAY]);
    match unshare.output() {
        Ok(output) if !text(&output.stderr).contains("unshare:") => {
            assert_refused(&output, &["vm1", "user namespaces are forbidden", "sysctl -w"]);
        }
        other => println!("skipped: unshare and setpriv cannot be used here: {other:?}"),
    }
}
