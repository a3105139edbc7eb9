//! Makes what a guest consists of: its memory, the VM and the processors.

use std::{fs::File, io};

use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_SYNIC2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES,
    KVM_MSR_EXIT_REASON_FILTER, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use partition::GuestMemory;
use shared_memory::{PageSize, create_memfd};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::{
    KvmHost, cpuid,
    error::KvmError,
    hypercall::MSR_HYPERCALL,
    kernel,
    layout::{self, Layout},
};

/// One memory file for all memory, mapped for KVM and for the host's devices.
pub(crate) fn make_memory(
    layout: &Layout,
    pages: PageSize,
) -> Result<(GuestMemoryMmap, GuestMemory), KvmError> {
    let too_long = |_| layout::LayoutError(layout.bytes());
    let fd =
        create_memfd("clearway-guest", usize::try_from(layout.bytes()).map_err(too_long)?, pages)?;
    let clone = || fd.try_clone().map_err(KvmError::io("a descriptor"));
    let mut memory = GuestMemory::empty();
    let mut ranges = Vec::new();
    for ram in layout.ram() {
        let length = usize::try_from(ram.length).map_err(too_long)?;
        memory = memory.with(ram.gpa, clone()?, ram.file_offset, length)?;
        let file = FileOffset::new(File::from(clone()?), ram.file_offset);
        ranges.push((GuestAddress(ram.gpa), length, Some(file)));
    }
    let ram = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(|error| {
        KvmError::System { what: "guest memory mapped", source: io::Error::other(error) }
    })?;
    Ok((ram, memory))
}

pub(crate) fn make_vm(host: &KvmHost) -> Result<VmFd, KvmError> {
    let failed = KvmError::kvm;
    let vm = host.kvm.create_vm().map_err(failed("make a VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(failed("place its identity map"))?;
    vm.set_tss_address(usize::try_from(layout::KVM_TSS).unwrap_or(0))
        .map_err(failed("place its task state"))?;
    vm.create_irq_chip().map_err(failed("make interrupt controllers"))?;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args = [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0];
    vm.enable_cap(&cap).map_err(failed("hand registers to this process"))?;
    // Only writes of the hypercall page's register come here.
    let denied = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_HYPERCALL,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[denied])
        .map_err(failed("trap the hypercall page's register"))?;
    Ok(vm)
}

/// IA32_MTRR_DEF_TYPE: enabled, and all memory is write-back.
const MTRR_DEFAULT: kvm_msr_entry = kvm_msr_entry { index: 0x2FF, reserved: 0, data: 1 << 11 | 6 };

pub(crate) fn make_processors(
    host: &KvmHost,
    vm: &VmFd,
    count: u16,
) -> Result<Vec<VcpuFd>, KvmError> {
    let failed = KvmError::kvm;
    let supported = host
        .kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("list what processors can do"))?;
    let mut processors = Vec::new();
    for id in 0..count {
        let vcpu = vm.create_vcpu(id.into()).map_err(failed("make a processor"))?;
        let synic = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
        vcpu.enable_cap(&synic).map_err(failed("enable a processor's SynIC"))?;
        let hyperv = kernel::hyperv_cpuid(&vcpu)
            .map_err(|source| KvmError::Kvm { what: "list what it has of Hyper-V", source })?;
        let list = cpuid::guest_cpuid(supported.as_slice(), hyperv.as_slice(), id, count);
        let list = CpuId::from_entries(&list).map_err(|error| KvmError::System {
            what: "room for a CPUID list",
            source: io::Error::other(format!("{error:?}")),
        })?;
        vcpu.set_cpuid2(&list).map_err(failed("set a processor's CPUID"))?;
        if let Ok(msrs) = Msrs::from_entries(&[MTRR_DEFAULT]) {
            vcpu.set_msrs(&msrs).map_err(failed("set a processor's registers"))?;
        }
        processors.push(vcpu);
    }
    Ok(processors)
}
