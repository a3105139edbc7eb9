//! A stock iavf whose device is gone: item 62 of SPEC-AVF §10.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

use super::{
    guest::Hardware,
    scene::Scene,
    vf::{Then, up},
};
use crate::guests::stack::Stack;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// What the item allows for unbinding, of which iavf itself waits half a second for what does not come.
const MILLISECONDS: u32 = 2000;

/// Kills the adapter under a guest's driver, and has the guest unbind that driver.
///
/// The guest is idle meanwhile: QEMU 11.1.3 aborts when the adapter dies while a request of QEMU lies unread in its
/// socket. The read of the answer then ends with ECONNRESET, and `vfio_user_recv_hdr` (hw/vfio-user/proxy.c) sets an
/// error where one is set already.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let mut stack = Stack::start_logging(scene.clearway, 4, &scene.logs)?;
    let vf = stack.attach("guest", "02:c1:ea:00:04:01", 1)?;
    let script = script();
    let mut guest = up(scene, Hardware::vf(&vf.socket), GUEST, Then::Run(&script))?;
    guest.expect("waits")?;
    stack.kill()?;
    guest.tell("gone")?;
    let milliseconds: u32 = guest.expect("unbound")?.parse().context("milliseconds")?;
    scene.say(&format!(
        "the adapter was killed; by the guest's clock iavf was unbound in {milliseconds} ms"
    ));
    ensure!(milliseconds < MILLISECONDS, "that is too long");
    guest.expect("log is clean")?;
    guest.expect("end")?;
    Ok(())
}

/// What the guest does once it is told that its device is gone.
fn script() -> String {
    r#"fail() { dmesg; echo MARK failed "$@"; }
centiseconds() { read now rest < /proc/uptime; echo ${now%.*}${now#*.}; }
dmesg -c > /tmp/log
echo MARK waits
read line < /dev/ttyS0
device=$(basename $(readlink /sys/class/net/eth0/device))
before=$(centiseconds)
echo $device > /sys/bus/pci/drivers/iavf/unbind || fail unbind
after=$(centiseconds)
[ -e /sys/class/net/eth0 ] && fail the interface stayed
echo MARK unbound $(( (after - before) * 10 ))
dmesg -r > /tmp/log
cat /tmp/log
grep -E 'WARNING:|BUG:|Call Trace|blocked for more than|rcu.*stall' /tmp/log > /tmp/bad
if [ -s /tmp/bad ]; then cat /tmp/bad; echo MARK failed errors in the log; else echo MARK log is clean; fi
"#
    .to_owned()
}
