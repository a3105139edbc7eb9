//! Ending a VM under KVM from outside, by its worker.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use device_control::{ClientError, DeviceControlClient, DriverName, Target};
use pcivirt_protocol::NtStatus;
use vm_worker::control::{
    PrivateControl, REPORT_CAPACITY, SHUT_DOWN_CAPACITY, SHUT_DOWN_LIMIT_SECONDS, ShutDownAnswer,
    ShutDownGuest,
};

use super::names::RunningVm;

/// How long a worker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a VM whose plug is pulled may take to end.
const END: Duration = Duration::from_secs(20);

/// Ends a VM without its guest's consent, and waits until it has ended.
pub(super) fn pull_plug(vm: &RunningVm) -> Result<()> {
    let worker = connect(vm)?;
    let code = PrivateControl::Shutdown.code();
    match worker.private(code, &[], 0, TIMEOUT) {
        Ok(_) | Err(ClientError::Disconnected { .. }) => {}
        Err(error) => return Err(error).with_context(|| subject(vm)),
    }
    if !has_ended(&worker, Instant::now() + END) {
        bail!("{} does not end: kill its process", subject(vm));
    }
    Ok(())
}

/// Asks the guest to shut down, and waits until the VM has ended.
pub(super) fn shut_down(vm: &RunningVm, limit: Duration) -> Result<()> {
    let worker = connect(vm)?;
    let until = Instant::now() + limit;
    let (_, longest) = SHUT_DOWN_LIMIT_SECONDS;
    let seconds = u32::try_from(limit.as_secs()).unwrap_or(longest).clamp(1, longest);
    let request = ShutDownGuest { limit_seconds: Some(seconds), ..ShutDownGuest::default() };
    let request = serde_json::to_vec(&request)?;
    let code = PrivateControl::ShutDownGuest.code();
    let answer = worker.private(code, &request, SHUT_DOWN_CAPACITY, limit + TIMEOUT);
    let force = format!("`clearway vm stop --force {}` pulls its plug", vm.name);
    match answer {
        Ok(answer) => match serde_json::from_slice(&answer)? {
            ShutDownAnswer::Initiated => {}
            ShutDownAnswer::Refused { status } => {
                bail!(
                    "{}: the guest refuses to shut down, with {status:#010x}; {force}",
                    subject(vm)
                )
            }
        },
        Err(ClientError::Disconnected { .. }) => return Ok(()),
        // It may have ended instead of answering.
        Err(ClientError::Failed { status: NtStatus::DEVICE_REMOVED, .. })
            if has_ended(&worker, until) =>
        {
            return Ok(());
        }
        Err(error) => return Err(anyhow!("{}: {}; {force}", subject(vm), why(&error))),
    }
    if !has_ended(&worker, until) {
        bail!(
            "{}: the guest shuts down, but has not ended within {} s; wait longer (--timeout), or {force}",
            subject(vm),
            limit.as_secs()
        );
    }
    Ok(())
}

/// Why a guest cannot be asked.
fn why(error: &ClientError) -> String {
    let words = match error {
        ClientError::Failed { status, .. } => match *status {
            NtStatus::NOT_SUPPORTED => {
                "the guest cannot be asked to shut down: it is not offered that service"
            }
            NtStatus::DEVICE_NOT_READY => {
                "the guest has no driver for its shutdown service (Linux: hv_utils), or none yet"
            }
            NtStatus::DEVICE_BUSY => "the guest is being asked to shut down already",
            NtStatus::IO_TIMEOUT => "the guest does not answer",
            NtStatus::DEVICE_REMOVED => "the guest has left its shutdown service without an answer",
            _ => return error.to_string(),
        },
        _ => return error.to_string(),
    };
    words.to_owned()
}

fn subject(vm: &RunningVm) -> String {
    format!("VM {}, served at {}", vm.name, vm.socket.display())
}

fn connect(vm: &RunningVm) -> Result<DeviceControlClient> {
    let name = DriverName::new("clearway-vm")?;
    DeviceControlClient::connect(&vm.socket, &name, TIMEOUT).with_context(|| subject(vm))
}

/// Waits until a VM's worker is gone: it reports until it is.
fn has_ended(worker: &DeviceControlClient, until: Instant) -> bool {
    let next = Target::Private(PrivateControl::NextReport.code());
    while worker.is_connected() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        match worker.send(next, &[], REPORT_CAPACITY) {
            Ok(sent) => drop(sent.wait_for(left)),
            Err(_) => break,
        }
    }
    true
}
