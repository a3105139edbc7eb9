//! Which capabilities of KVM that a Hyper-V partition needs are there; exit status 1 if one is not.

use std::process::ExitCode;

use kvm_ioctls::Kvm;

/// `KVM_CAP_…` of linux/kvm.h.
const CAPABILITIES: [(&str, u64); 12] = [
    ("KVM_CAP_IRQCHIP", 0),
    ("KVM_CAP_USER_MEMORY", 3),
    ("KVM_CAP_IRQ_ROUTING", 25),
    ("KVM_CAP_IRQFD", 32),
    ("KVM_CAP_IOEVENTFD", 36),
    ("KVM_CAP_HYPERV", 44),
    ("KVM_CAP_IRQFD_RESAMPLE", 82),
    ("KVM_CAP_HYPERV_SYNIC2", 148),
    ("KVM_CAP_HYPERV_EVENTFD", 154),
    ("KVM_CAP_HYPERV_CPUID", 167),
    ("KVM_CAP_X86_USER_SPACE_MSR", 188),
    ("KVM_CAP_X86_MSR_FILTER", 189),
];

fn main() -> ExitCode {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("/dev/kvm cannot be opened: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut all = true;
    for (name, number) in CAPABILITIES {
        let value = kvm.check_extension_raw(number);
        println!("{name} {value}");
        all &= value > 0;
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
