//! The ioctls that no safe crate has, and what else of the kernel's interface is not safe: memory slots, KVM's Hyper-V
//! CPUID list and event connections, the union in the shared run page.
//!
//! `unsafe` here: these ioctls pass structures of the kernel's layout by reference, memory slots hand an address range
//! to the kernel, and the run page is a union whose valid part the exit reason names.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd},
};

use kvm_bindings::{
    CpuId, KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_READONLY, KVMIO, kvm_cpuid2, kvm_hyperv_eventfd, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};
use vmm_sys_util::{
    eventfd::EventFd as KernelEventFd,
    ioctl::{ioctl_with_mut_ptr, ioctl_with_ref},
    ioctl_iow_nr, ioctl_iowr_nr,
};

use crate::synic::Synic;

ioctl_iow_nr!(KVM_HYPERV_EVENTFD, KVMIO, 0xBD, kvm_hyperv_eventfd);
ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xC1, kvm_cpuid2);

/// KVM_HYPERV_EVENTFD_DEASSIGN.
const DEASSIGN: u32 = 1;

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What KVM has of Hyper-V, for a processor's CPUID.
pub(crate) fn hyperv_cpuid(vcpu: &VcpuFd) -> io::Result<CpuId> {
    let mut list = CpuId::new(KVM_MAX_CPUID_ENTRIES)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // SAFETY: the list has room for as many entries as its header says, and KVM writes no more.
    done(unsafe {
        ioctl_with_mut_ptr(vcpu, KVM_GET_SUPPORTED_HV_CPUID(), list.as_mut_fam_struct_ptr())
    })?;
    Ok(list)
}

/// Binds a connection to an eventfd: the guest's signals reach it without an exit.
pub(crate) fn bind_connection(vm: &VmFd, id: u32, event: BorrowedFd<'_>) -> io::Result<()> {
    connection(vm, id, event.as_raw_fd(), 0)
}

/// Takes a connection back.
pub(crate) fn unbind_connection(vm: &VmFd, id: u32) -> io::Result<()> {
    connection(vm, id, -1, DEASSIGN)
}

fn connection(vm: &VmFd, conn_id: u32, fd: i32, flags: u32) -> io::Result<()> {
    let binding = kvm_hyperv_eventfd { conn_id, fd, flags, padding: [0; 3] };
    // SAFETY: KVM reads the structure during the call only; it takes its own reference to the eventfd.
    done(unsafe { ioctl_with_ref(vm, KVM_HYPERV_EVENTFD(), &binding) })
}

/// An eventfd as the KVM crates want it: another descriptor of the same one.
pub(crate) fn event(fd: impl AsFd) -> io::Result<KernelEventFd> {
    let fd = fd.as_fd().try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor is open, and owned by nobody else.
    Ok(unsafe { KernelEventFd::from_raw_fd(fd) })
}

/// Gives the guest memory of the host, from slot 0 on.
///
/// The memory must be the guest's for as long as `vm` lives: callers keep both together.
pub(crate) fn map_ram(vm: &VmFd, memory: &vm_memory::GuestMemoryMmap) -> io::Result<()> {
    for (region, slot) in memory.iter().zip(0u32..) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping of a memory file, which nothing but the guest and volatile or atomic accesses
        // touch, and which outlives `vm` as the caller promises.
        unsafe { vm.set_user_memory_region(slot) }?;
    }
    Ok(())
}

/// Pages of a file that the guest sees; unmapped from the guest first, then from this process.
#[derive(Debug)]
pub(crate) struct DevicePages {
    slot: u32,
    gpa: u64,
    _mapping: MmapRegion,
}

impl DevicePages {
    /// Gives them to the guest.
    pub(crate) fn map(
        vm: &VmFd,
        slot: u32,
        gpa: u64,
        mapping: MmapRegion,
        writable: bool,
    ) -> io::Result<Self> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if writable { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr: gpa,
            memory_size: mapping.size() as u64,
            userspace_addr: mapping.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping of a file's pages that nobody else in this process touches. It is unmapped
        // after the slot has been removed, or with the process.
        unsafe { vm.set_user_memory_region(region) }?;
        Ok(Self { slot, gpa, _mapping: mapping })
    }

    /// Takes them from the guest, and says which slot is free again.
    pub(crate) fn unmap(self, vm: &VmFd) -> u32 {
        let region = kvm_userspace_memory_region {
            slot: self.slot,
            guest_phys_addr: self.gpa,
            ..Default::default()
        };
        // SAFETY: a slot of no bytes is removed.
        let removed = unsafe { vm.set_user_memory_region(region) };
        if let Err(error) = removed {
            // The guest has it still: its pages must stay.
            tracing::error!(%error, "a memory slot cannot be removed");
            std::mem::forget(self._mapping);
        }
        self.slot
    }
}

/// What a KVM_EXIT_HYPERV is about.
#[derive(Copy, Clone, Debug)]
pub(crate) enum HypervExit {
    /// The guest has set up its SynIC.
    Synic(Synic),
    /// It calls.
    Hypercall { input: u64, parameter: u64 },
    /// Anything else.
    Other,
}

/// What the processor's last exit, a KVM_EXIT_HYPERV, is about.
pub(crate) fn hyperv_exit(vcpu: &mut VcpuFd) -> HypervExit {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_HYPERV {
        return HypervExit::Other;
    }
    // SAFETY: the exit reason says that this part of the union is the valid one; all of its bits are.
    let exit = unsafe { run.__bindgen_anon_1.hyperv };
    match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            // SAFETY: as above, by the exit's own type.
            let synic = unsafe { exit.u.synic };
            HypervExit::Synic(Synic {
                control: synic.control,
                event_page: synic.evt_page,
                message_page: synic.msg_page,
            })
        }
        KVM_EXIT_HYPERV_HCALL => {
            // SAFETY: as above, by the exit's own type.
            let call = unsafe { exit.u.hcall };
            let [parameter, _] = call.params;
            HypervExit::Hypercall { input: call.input, parameter }
        }
        _ => HypervExit::Other,
    }
}

/// Answers a hypercall.
pub(crate) fn answer_hypercall(vcpu: &mut VcpuFd, status: u64) {
    let run = vcpu.get_kvm_run();
    // KVM reads this part of the union after a hypercall.
    run.__bindgen_anon_1.hyperv.u.hcall.result = status;
}
