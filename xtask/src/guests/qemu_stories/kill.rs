//! A QEMU that is killed while its guest is on its VF.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    lab::{Lab, PEER, WEB},
    scene::Scene,
};

/// Kills QEMU: the stack says that the VM is gone, its VF is free, and the next QEMU of the same VM gets a VF.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let lab = Lab::start(scene)?;
    let _peer = lab.peer()?;
    for life in 1..=scene.rounds.unwrap_or(2) {
        let mut guest = lab.boot_obeying(&WEB, &["-no-reboot"])?;
        guest.ask(&format!("reaches {}", PEER.address))?;
        lab.weigh(&WEB, 100)?;
        guest.ask("on_vf")?;
        lab.until(&WEB, "active")?;
        guest.ask(&format!("pings_by eth2 {}", PEER.address))?;
        ensure!(lab.vfs()? == 1, "the NIC has {} VFs and not the guest's alone", lab.vfs()?);
        scene.say(&format!("life {life}: it has pinged by its VF"));
        let qemu = i32::try_from(guest.qemu_process()?).ok().and_then(Pid::from_raw);
        kill_process(qemu.context("no process")?, Signal::KILL)?;
        let said = guest.said_at_end()?;
        ensure!(said.contains("SIGKILL"), "clearway vm qemu does not say what ended it: {said}");
        lab.until_it_is(&WEB, "one whose VM does not run", |adapter| {
            let reasons = adapter.get("reasons").and_then(Value::as_array);
            let mut codes = reasons.into_iter().flatten().filter_map(|reason| reason.get("code"));
            codes.any(|code| code == "VmNotRunning")
                && adapter.get("virtual_function").is_some_and(Value::is_null)
        })?;
        ensure!(lab.vfs()? == 0, "the NIC still has {} VFs", lab.vfs()?);
        scene.say("QEMU was killed; the stack says that the guest is gone, and its VF is free");
    }
    Ok(())
}
