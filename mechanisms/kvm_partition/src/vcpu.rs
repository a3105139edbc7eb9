//! A processor: runs the guest, and does what its exits ask for.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use partition::VmbusMessage;

use crate::{
    RunOutcome,
    hypercall::{self, MSR_HYPERCALL, Status},
    kernel::{self, HypervExit},
    machine::Machine,
    ports::{self, Port, Request},
};

/// What is to be done after an exit, once its data is not borrowed any more.
enum Next {
    Go,
    End(RunOutcome),
    Failed(String),
    Hyperv,
    Crashed,
    Retarget,
    WriteMsr { index: u32, data: u64 },
}

/// Ends the machine when a processor's thread ends for whatever reason: without one it is of no use.
struct Guard<'m>(&'m Machine, u16);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let reason = "its thread ended".to_owned();
        self.0.end(RunOutcome::Failed { processor: self.1, reason });
    }
}

/// The processor's thread.
pub(crate) fn run(machine: &Machine, index: u16, mut vcpu: VcpuFd) {
    let _guard = Guard(machine, index);
    let mut crashed = false;
    while !machine.stop.load(Ordering::SeqCst) {
        let next = match vcpu.run() {
            Ok(exit) => handle(machine, index, exit),
            // A signal, or a processor that waits to be started.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Next::Go,
            Err(error) => Next::Failed(format!("KVM_RUN: {error}")),
        };
        match next {
            Next::Go => {}
            Next::End(outcome) => machine.end(outcome),
            Next::Failed(reason) => machine.end(RunOutcome::Failed { processor: index, reason }),
            Next::Hyperv => hyperv(machine, index, &mut vcpu),
            // The guest says so, as often as it likes; what becomes of it is for itself to decide.
            Next::Crashed if std::mem::replace(&mut crashed, true) => {}
            Next::Crashed => {
                tracing::warn!(processor = index, "the guest says that it has crashed")
            }
            Next::Retarget => {
                if let Err(error) = retarget(machine, &vcpu) {
                    let reason = format!("its registers cannot be read: {error}");
                    machine.end(RunOutcome::Failed { processor: index, reason });
                }
            }
            Next::WriteMsr { index: MSR_HYPERCALL, data } => {
                set_hypercall_page(machine, &vcpu, data);
            }
            Next::WriteMsr { .. } => {}
        }
    }
}

fn handle(machine: &Machine, processor: u16, exit: VcpuExit<'_>) -> Next {
    match exit {
        VcpuExit::MmioRead(gpa, data) => {
            read_mmio(machine, gpa, data);
            Next::Go
        }
        VcpuExit::MmioWrite(gpa, data) => {
            write_mmio(machine, gpa, data);
            Next::Go
        }
        VcpuExit::IoIn(number, data) => {
            data.fill_with(|| read_port(machine, number));
            Next::Go
        }
        VcpuExit::IoOut(number, data) => write_port(machine, number, data),
        VcpuExit::Hyperv => Next::Hyperv,
        VcpuExit::X86Wrmsr(exit) => {
            *exit.error = 0;
            Next::WriteMsr { index: exit.index, data: exit.data }
        }
        VcpuExit::X86Rdmsr(exit) => {
            *exit.error = 1;
            Next::Go
        }
        VcpuExit::Shutdown => Next::End(RunOutcome::TripleFault { processor }),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Next::End(RunOutcome::Shutdown),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Next::End(RunOutcome::Reset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Next::Crashed,
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => {
            Next::Go
        }
        VcpuExit::InternalError => Next::Failed("KVM cannot run its instruction".to_owned()),
        VcpuExit::FailEntry(reason, _) => Next::Failed(format!("it refuses to run: {reason:#x}")),
        VcpuExit::MemoryFault { gpa, .. } => {
            Next::Failed(format!("the pages behind its address {gpa:#x} are not there any more"))
        }
        exit => Next::Failed(format!("an exit without a meaning: {exit:?}")),
    }
}

/// Accesses of sizes that no handler knows are made of bytes.
fn parts(data: usize) -> usize {
    if matches!(data, 1 | 2 | 4 | 8) { data } else { 1 }
}

fn read_mmio(machine: &Machine, gpa: u64, data: &mut [u8]) {
    let size = parts(data.len());
    for (part, index) in data.chunks_mut(size.max(1)).zip(0u64..) {
        part.fill(0xFF);
        let at = gpa.wrapping_add(index * size as u64);
        if let Some((handler, offset)) = machine.handler(at, part.len()) {
            handler.read(offset, part);
        }
    }
}

fn write_mmio(machine: &Machine, gpa: u64, data: &[u8]) {
    let size = parts(data.len());
    for (part, index) in data.chunks(size.max(1)).zip(0u64..) {
        let at = gpa.wrapping_add(index * size as u64);
        if let Some((handler, offset)) = machine.handler(at, part.len()) {
            handler.write(offset, part);
        }
    }
}

fn read_port(machine: &Machine, number: u16) -> u8 {
    match ports::port(number) {
        Some(Port::Serial(register)) => machine.console.read(register),
        Some(Port::ClockData) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |since| since.as_secs());
            machine.cmos.lock().unwrap_or_else(PoisonError::into_inner).read(now)
        }
        Some(Port::Control) => 0,
        Some(Port::ClockIndex | Port::Retarget) | None => 0xFF,
    }
}

fn write_port(machine: &Machine, number: u16, data: &[u8]) -> Next {
    match ports::port(number) {
        Some(Port::Serial(register)) => {
            data.iter().for_each(|byte| machine.console.write(register, *byte));
        }
        Some(Port::ClockIndex) => {
            let mut cmos = machine.cmos.lock().unwrap_or_else(PoisonError::into_inner);
            data.iter().for_each(|byte| cmos.select(*byte));
        }
        Some(Port::Control) => {
            for byte in data {
                match ports::request(number, *byte) {
                    Some(Request::Reset) => return Next::End(RunOutcome::Reset),
                    Some(Request::Off) => return Next::End(RunOutcome::Shutdown),
                    None => {}
                }
            }
        }
        Some(Port::Retarget) => return Next::Retarget,
        Some(Port::ClockData) | None => {}
    }
    Next::Go
}

fn hyperv(machine: &Machine, index: u16, vcpu: &mut VcpuFd) {
    match kernel::hyperv_exit(vcpu) {
        HypervExit::Synic(synic) => machine.set_synic(index, synic),
        HypervExit::Hypercall { input, parameter } => {
            let status = match hypercall::code(input) {
                hypercall::POST_MESSAGE if hypercall::is_fast(input) => Status::InvalidInput,
                hypercall::POST_MESSAGE => post(machine, parameter),
                // KVM signals those that there are.
                hypercall::SIGNAL_EVENT => Status::InvalidConnection,
                _ => Status::InvalidCode,
            };
            kernel::answer_hypercall(vcpu, status as u64);
        }
        HypervExit::Other => {}
    }
}

fn post(machine: &Machine, gpa: u64) -> Status {
    match hypercall::post_message(&machine.ram, gpa) {
        Ok((connection_id, payload)) => {
            if machine.posted(VmbusMessage { connection_id, payload }) {
                Status::Success
            } else {
                Status::InsufficientBuffers
            }
        }
        Err(status) => status,
    }
}

/// The rewritten hypercall page sends one call here, with RDX at its input.
fn retarget(machine: &Machine, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut registers = vcpu.get_regs()?;
    let status = match hypercall::retarget(&machine.ram, registers.rdx) {
        Ok(wanted) => match machine.retarget(wanted) {
            true => Status::Success,
            false => Status::InvalidParameter,
        },
        Err(status) => status,
    };
    registers.rax = status as u64;
    vcpu.set_regs(&registers)
}

/// The guest sets its hypercall page: KVM writes it, then it is rewritten, before any processor can run it.
fn set_hypercall_page(machine: &Machine, vcpu: &VcpuFd, data: u64) {
    let entry = kvm_msr_entry { index: MSR_HYPERCALL, reserved: 0, data };
    let Ok(msrs) = Msrs::from_entries(&[entry]) else { return };
    // KVM refuses pages outside memory, and takes none before the guest has said who it is.
    if vcpu.set_msrs(&msrs).unwrap_or(0) == 0 {
        return;
    }
    let Ok(mut msrs) = Msrs::from_entries(&[kvm_msr_entry { data: 0, ..entry }]) else { return };
    let set = vcpu.get_msrs(&mut msrs).unwrap_or(0) == 1;
    if set && msrs.as_slice().first().is_some_and(|msr| msr.data == data) {
        hypercall::rewrite_page(&machine.ram, data);
    }
}
