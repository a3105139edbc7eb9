//! Whether this machine's KVM can run such guests, and if not, what it lacks, in words.

use std::{
    ffi::CString,
    fmt, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

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
    /// There is none.
    #[error(
        "there is no {}: load kvm-intel or kvm-amd, or enable virtualization in the firmware or in the outer hypervisor",
        .0.display()
    )]
    Absent(PathBuf),
    /// This user may not use it.
    #[error("this user may not open {}: join its group, mostly kvm, and log in again", .0.display())]
    Forbidden(PathBuf),
    /// It cannot be opened.
    #[error("{} cannot be opened", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// Something answers, but not as KVM does.
    #[error("{} is not Linux's KVM, whose interface has version 12", .0.display())]
    NotKvm(PathBuf),
    /// It lacks something.
    #[error(
        "this KVM cannot run such guests: it lacks {}; they need Linux 5.10 or later as the host",
        list(.0)
    )]
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
    /// Where KVM is.
    pub const DEVICE: &str = "/dev/kvm";

    /// Opens KVM's device, mostly [`Self::DEVICE`], and checks that it has all that is needed.
    ///
    /// # Errors
    /// [`SurveyError`] says in one line what is wrong and what to do.
    pub fn survey(device: &Path) -> Result<Self, SurveyError> {
        let open = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => SurveyError::Absent(device.to_owned()),
            io::ErrorKind::PermissionDenied => SurveyError::Forbidden(device.to_owned()),
            _ => SurveyError::Open(device.to_owned(), source),
        };
        let path = CString::new(device.as_os_str().as_bytes()).map_err(|e| open(e.into()))?;
        let kvm = Kvm::new_with_path(path).map_err(|error| open(error.into()))?;
        if kvm.get_api_version() != API_VERSION {
            return Err(SurveyError::NotKvm(device.to_owned()));
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_missing_is_said_in_words() {
        assert_eq!(missing(|_| true), []);
        let missing = missing(|number| number != KVM_CAP_HYPERV_SYNIC2);
        let said = SurveyError::Missing(missing).to_string();
        assert_eq!(
            said,
            "this KVM cannot run such guests: it lacks KVM_CAP_HYPERV_SYNIC2 (Hyper-V's messages and event flags); \
             they need Linux 5.10 or later as the host"
        );
    }

    fn refused(device: &str) -> String {
        KvmHost::survey(Path::new(device)).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_kvm_is_said_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvm");
        let device = path.to_str().unwrap();
        assert_eq!(
            refused(device),
            format!(
                "there is no {device}: load kvm-intel or kvm-amd, or enable virtualization in the firmware or in the \
                 outer hypervisor"
            )
        );
        std::fs::write(&path, "").unwrap();
        assert_eq!(
            refused(device),
            format!("{device} is not Linux's KVM, whose interface has version 12")
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        if rustix::process::geteuid().is_root() {
            println!("skipped: root may open everything");
        } else {
            assert!(refused(device).starts_with(&format!("this user may not open {device}: join")));
        }
    }

    #[test]
    fn this_machine_has_all_or_is_told_what_it_lacks() {
        match KvmHost::survey(Path::new(KvmHost::DEVICE)) {
            Ok(host) => assert!(host.max_processors() >= 1),
            Err(error) => {
                println!("{error}");
                assert!(error.to_string().contains("kvm") || error.to_string().contains("KVM"));
            }
        }
    }
}
