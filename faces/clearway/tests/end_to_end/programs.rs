//! Ordinary programs in two VMs, which talk through the NIC switch.

use serde_json::Value;

use crate::{common::*, vms::*};

#[test]
fn iperf3_runs_between_two_vms_and_every_frame_is_accounted_for() {
    if !vms_can_run() || !is_installed("iperf3") {
        return;
    }
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, &directory.path().join("nic"), 2);
    let (one, two) = (adapter.attach(1), adapter.attach(2));
    let path = directory.path();
    let server = ["iperf3", "--server", "--one-off", "--forceflush"];
    let mut server = Vm::run(path, "server", &one.socket, "10.0.0.1/24", &server);
    server.wait_for_line("listening");
    let script = "iperf3 --client 10.0.0.1 --time 2 --json && cat";
    let client = Vm::run(path, "client", &two.socket, "10.0.0.2/24", &["sh", "-c", script]);
    server.finish();
    let client = client.finish();

    let report: Value = serde_json::from_str(&client).unwrap();
    let end = |which: &str| report["end"][which]["bytes"].as_u64().unwrap();
    // Both ends of the stream agree but for what was under way when the time was over.
    assert!(end("sum_received") > 0 && end("sum_received") <= end("sum_sent"), "{report}");

    let status = adapter.status();
    let stats = |vf: u16| status.vfs.iter().find(|entry| entry.vf == vf).unwrap().function.stats;
    for (from, to) in [(stats(one.vf), stats(two.vf)), (stats(two.vf), stats(one.vf))] {
        let arrived = to.receive.unicast + to.receive.broadcast + to.receive.discards();
        let (least, most) =
            (from.transmit.unicast, from.transmit.unicast + from.transmit.broadcast);
        // Frames of a VM that were sent when the other had ended went to nobody, or out.
        let nobody = from.transmit.no_receiver + status.uplink.stats.sent_dropped;
        assert!(arrived <= most && arrived + nobody >= least, "{from:?} {to:?}");
        assert_eq!(from.transmit.errors() + from.transmit.spoofed, 0, "{from:?}");
    }
    assert!(stats(one.vf).receive.bytes > end("sum_received"), "frames have headers");
}
