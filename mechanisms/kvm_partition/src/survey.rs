//! Whether this machine's KVM can run such guests, and if not, what it lacks, in words.

use std::{fmt, path::Path};

use kvm_bindings::{
    KVM_CAP_ENABLE_CAP_VM, KVM_CAP_HYPERV_CPUID, KVM_CAP_HYPERV_EVENTFD, KVM_CAP_HYPERV_SYNIC2,
    KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_MP_STATE,
    KVM_CAP_READONLY_MEM, KVM_CAP_USER_MEMORY, KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR,
};
use kvm_ioctls::Kvm;

/// The version of KVM's interface that all kernels of this century have.
const API_VERSION: i32 = 12;

/// What is needed, by its name and what for.
const NEEDED: [(u32, &str, &str); 13] = [
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest memory shared with other processes"),
    (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", "device pages that the guest only reads"),
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    (KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "several processors"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "MSIs and SynIC interrupts by eventfd"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "interrupts by eventfd"),
    (KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE", "to learn that a message slot is free"),
    (KVM_CAP_ENABLE_CAP_VM, "KVM_CAP_ENABLE_CAP_VM", "to trap one register of Hyper-V's"),
    (KVM_CAP_HYPERV_SYNIC2, "KVM_CAP_HYPERV_SYNIC2", "Hyper-V's messages and event flags"),
    (KVM_CAP_HYPERV_EVENTFD, "KVM_CAP_HYPERV_EVENTFD", "channel signals without a VM exit"),
    (KVM_CAP_HYPERV_CPUID, "KVM_CAP_HYPERV_CPUID", "to tell the guest what of Hyper-V there is"),
    (KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR", "to see the hypercall page set"),
    (KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER", "to see the hypercall page set"),
];

/// A capability that this machine's KVM lacks.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Missing {
    /// Its name in `linux/kvm.h`.
    pub name: &'static str,
    /// What for.
    pub purpose: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.purpose)
    }
}

/// Why there can be no KVM partitions here.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// There is none, or this user may not use it.
    #[error(
        "/dev/kvm cannot be opened: load kvm-intel or kvm-amd, or enable virtualization in the firmware or in the \
         outer hypervisor, and join the group kvm"
    )]
    Open(#[source] std::io::Error),
    /// Something answers, but not as KVM does.
    #[error("/dev/kvm is not Linux's KVM: its interface has version {0}, not 12")]
    Version(i32),
    /// It lacks something.
    #[error("this KVM cannot run such guests: it lacks {}", list(.0))]
    Missing(Vec<Missing>),
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(Missing::to_string).collect::<Vec<_>>().join(", ")
}

/// A KVM that can run such guests.
#[derive(Debug)]
pub struct KvmHost {
    pub(crate) kvm: Kvm,
}

impl KvmHost {
    /// Opens `/dev/kvm` and checks that it has all that is needed.
    pub fn survey() -> Result<Self, SurveyError> {
        let open = |error: kvm_ioctls::Error| SurveyError::Open(error.into());
        if !Path::new("/dev/kvm").exists() {
            return Err(SurveyError::Open(std::io::ErrorKind::NotFound.into()));
        }
        let kvm = Kvm::new().map_err(open)?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(SurveyError::Version(version));
        }
        let missing = missing(|number| kvm.check_extension_raw(number.into()) > 0);
        if missing.is_empty() { Ok(Self { kvm }) } else { Err(SurveyError::Missing(missing)) }
    }

    /// Processors that a guest may have.
    pub fn max_processors(&self) -> u16 {
        // The APIC ids of the MADT's simple entries are bytes, and 0xFF means all.
        u16::try_from(self.kvm.get_max_vcpus()).unwrap_or(u16::MAX).min(254)
    }
}

fn missing(has: impl Fn(u32) -> bool) -> Vec<Missing> {
    let lacking = NEEDED.iter().filter(|(number, ..)| !has(*number));
    lacking.map(|(_, name, purpose)| Missing { name, purpose }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_words() {
        assert_eq!(missing(|_| true), []);
        let missing = missing(|number| number != KVM_CAP_HYPERV_SYNIC2);
        let said = SurveyError::Missing(missing).to_string();
        assert_eq!(
            said,
            "this KVM cannot run such guests: it lacks KVM_CAP_HYPERV_SYNIC2 (Hyper-V's messages and event flags)"
        );
    }

    #[test]
    fn this_machine_has_all_or_is_told_what_it_lacks() {
        match KvmHost::survey() {
            Ok(host) => assert!(host.max_processors() >= 1),
            Err(error) => {
                println!("{error}");
                assert!(error.to_string().contains("kvm") || error.to_string().contains("KVM"));
            }
        }
    }
}
