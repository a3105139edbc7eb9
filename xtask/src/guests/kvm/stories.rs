//! The stories: what happens in the outer guest, and what is to be read on the serial line.
//!
//! A story's script runs in L1, a stock kernel with KVM. Programs of ours are in its path; the inner guest, L2, is
//! `/guest/vmlinux` with `/guest/initramfs`. `MARK failed …` on the line, of either guest, is an error.

use std::time::Duration;

use crate::guests::programs::Program;

/// A story.
pub(crate) struct Story {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it shows, in one line.
    pub(crate) about: &'static str,
    /// Programs that L1 has.
    pub(crate) programs: &'static [Program],
    /// What L1 does after its modules are loaded.
    pub(crate) script: &'static str,
    /// The inner guest, if it has one.
    pub(crate) inner: Option<Inner>,
    /// What is to be read on the serial line, in this order, each somewhere in a line.
    pub(crate) expected: &'static [&'static str],
    /// L1's memory in MiB.
    pub(crate) memory: u32,
    /// Processor time it may use: several times what it takes.
    pub(crate) cpu: Duration,
}

/// What the inner guest is made of, beside its kernel and busybox.
pub(crate) struct Inner {
    /// Modules of its kernel.
    pub(crate) modules: &'static [&'static str],
    /// What it does after they are loaded.
    pub(crate) script: &'static str,
}

/// Modules that L1 needs for `/dev/kvm`.
pub(crate) const KVM_MODULES: [&str; 4] = ["ccp", "irqbypass", "kvm", "kvm_amd"];

const CAPABILITIES: Program = Program::Example { package: "xtask", name: "kvm_capabilities" };

/// All of them, the quickest first.
pub(crate) const STORIES: &[Story] = &[Story {
    name: "kvm-here",
    about: "the outer guest has a /dev/kvm with all that a Hyper-V partition needs",
    programs: &[CAPABILITIES],
    script: "[ -c /dev/kvm ] || echo MARK failed no /dev/kvm\n\
             kvm_capabilities || echo MARK failed a capability is missing",
    inner: None,
    expected: &[
        "MARK booted",
        "KVM_CAP_HYPERV 1",
        "KVM_CAP_HYPERV_SYNIC2 1",
        "KVM_CAP_HYPERV_EVENTFD 1",
        "KVM_CAP_HYPERV_CPUID 1",
    ],
    memory: 512,
    cpu: Duration::from_secs(120),
}];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn stories_have_names_of_their_own_and_something_to_expect() {
        let names: BTreeSet<&str> = STORIES.iter().map(|story| story.name).collect();
        assert_eq!(names.len(), STORIES.len());
        assert!(STORIES.iter().all(|story| !story.expected.is_empty() && !story.about.is_empty()));
    }
}
