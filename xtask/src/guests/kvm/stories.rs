//! The stories: what happens in the outer guest, and what is to be read on the serial line.
//!
//! A story's script runs in L1, a stock kernel with KVM. `clearway` is in its path. `guest …` is
//! `clearway vm run` with the options that boot the inner guest, L2. `MARK failed …` on the line, of either guest, is an error.
//! Before each script stands what all of its side share: `scripts/host.sh` in L1, `scripts/guest.sh` in L2.

use std::time::Duration;

use super::capture;
use crate::guests::{programs::Program, tools::Tool};

/// A story.
pub(crate) struct Story {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it shows, in one line.
    pub(crate) about: &'static str,
    /// Modules that L1 has beside those for KVM.
    pub(crate) modules: &'static [&'static str],
    /// What L1 has beside busybox.
    pub(crate) tools: &'static [Tool],
    /// What L1 does after its modules are loaded.
    pub(crate) script: &'static str,
    /// The inner guest.
    pub(crate) inner: Inner,
    /// What is to be read on the serial line, in this order, each somewhere in a line.
    pub(crate) expected: &'static [&'static str],
    /// What else is to be true of the serial line of one that passes, or what is not.
    pub(crate) check: fn(&str) -> Result<(), String>,
    /// L1's memory in MiB.
    pub(crate) memory: u32,
    /// Processor time it may use: several times what it takes.
    pub(crate) cpu: Duration,
}

/// Who is the guest of our partition.
pub(crate) enum Inner {
    /// A stock Linux.
    Linux(Linux),
    /// The bare guests of a test program, which is in L1's path instead of `clearway`.
    Test(Program),
}

impl Story {
    /// The tools of both guests.
    pub(crate) fn all_tools(&self) -> impl Iterator<Item = Tool> + use<> {
        let inner = match &self.inner {
            Inner::Linux(linux) => linux.tools,
            Inner::Test(_) => &[],
        };
        self.tools.iter().chain(inner).copied()
    }
}

/// A stock Linux, with busybox.
pub(crate) struct Linux {
    /// Modules of its kernel.
    pub(crate) modules: &'static [&'static str],
    /// What it has beside busybox.
    pub(crate) tools: &'static [Tool],
    /// What it does after they are loaded.
    pub(crate) script: &'static str,
    /// What a kernel after it does, with the same modules: `/next/vmlinuz` and `/next/initramfs`.
    pub(crate) next: Option<&'static str>,
}

impl Inner {
    /// The program that has our partition.
    pub(crate) fn program(&self) -> Program {
        match self {
            Self::Linux(_) => Program::Clearway,
            Self::Test(program) => *program,
        }
    }
}

/// Modules that L1 needs for `/dev/kvm`.
pub(crate) const KVM_MODULES: [&str; 4] = ["ccp", "irqbypass", "kvm", "kvm_amd"];

/// Modules of a guest with a VF.
const VF_MODULES: &[&str] = &["hv_vmbus", "hv_utils", "iavf", "pci_hyperv", "hv_netvsc"];
/// The same, with interfaces on top of the guest's.
const VF_AND_VLAN_MODULES: &[&str] =
    &["hv_vmbus", "hv_utils", "iavf", "pci_hyperv", "hv_netvsc", "8021q", "macvlan"];
/// Without the VF's driver.
const NO_VF_DRIVER: &[&str] = &["hv_vmbus", "hv_utils", "pci_hyperv", "hv_netvsc"];

/// What most inner guests share.
const LINUX: Linux = Linux { modules: VF_MODULES, tools: &[], script: "", next: None };

const fn with_vf(script: &'static str) -> Inner {
    Inner::Linux(Linux { script, ..LINUX })
}

/// What most stories share.
const BASE: Story = Story {
    name: "",
    about: "",
    modules: &["tun"],
    tools: &[],
    script: "",
    inner: with_vf(""),
    expected: &[],
    check: |_| Ok(()),
    memory: 1536,
    cpu: Duration::from_secs(600),
};

/// All of them, the quickest first.
pub(crate) const STORIES: &[Story] = &[
    Story {
        name: "boots",
        about: "a stock kernel takes our partition for Hyper-V, connects to VMBus, and turns off",
        modules: &[],
        script: "guest --memory 256 < /dev/null || echo MARK failed vm run says $?",
        inner: Inner::Linux(Linux {
            modules: &["hv_vmbus", "hv_utils"],
            script: "dmesg > /tmp/log\n\
                     grep 'Hypervisor detected' /tmp/log || echo MARK L2 failed no hypervisor is detected\n\
                     grep 'Vmbus version' /tmp/log || echo MARK L2 failed no VMBus\n\
                     ls /sys/bus/vmbus/devices",
            ..LINUX
        }),
        expected: &[
            "MARK booted",
            "MARK L2 booted",
            "Hypervisor detected: Microsoft Hyper-V",
            "Vmbus version:",
            "MARK L2 end",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(240),
        ..BASE
    },
    Story {
        name: "hostile",
        about: "bare guests do their worst, and harm themselves alone",
        modules: &[],
        script: include_str!("scripts/hostile.sh"),
        inner: Inner::Test(Program::Test { package: "kvm_partition", name: "bare_guest" }),
        expected: &["MARK booted", "test result: ok", "MARK end"],
        memory: 1024,
        cpu: Duration::from_secs(900),
        ..BASE
    },
    Story {
        name: "disk",
        about: "the guest reads and writes a disk, reads one that it may not write, and both are nobody else's meanwhile",
        modules: &[],
        script: include_str!("scripts/disk.sh"),
        inner: Inner::Linux(Linux {
            modules: &["virtio_mmio", "virtio_blk"],
            script: include_str!("scripts/disk.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 disks of 16384 and 2048 sectors, read-only 0 1, clearway-disk0",
            "MARK L2 read",
            "MARK L2 wrote",
            "disk image /tmp/disk.raw is in use",
            "MARK L2 end",
            "MARK the image has what the guest wrote",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(360),
        ..BASE
    },
    Story {
        name: "login",
        about: "the guest boots from its disk to a login prompt, and after a reboot finds there what it wrote",
        modules: &["loop", "crc32c_generic", "ext4"],
        script: include_str!("scripts/login.sh"),
        inner: Inner::Linux(Linux {
            modules: &["virtio_mmio", "virtio_blk", "crc32c_generic", "ext4"],
            script: include_str!("scripts/login.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "login:",
            "MARK L2 logged in, life 1, on /dev/vda / ext",
            "MARK L2 booted",
            "login:",
            "MARK L2 logged in, life 2",
            "MARK 2 lives are on the disk",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(480),
        ..BASE
    },
    Story {
        name: "netvsc",
        about: "hv_netvsc is bound to our NetVSP, and pings the host through a switch",
        modules: &["tun"],
        script: include_str!("scripts/netvsc.sh"),
        inner: Inner::Linux(Linux {
            modules: &["hv_vmbus", "hv_utils", "hv_netvsc"],
            script: include_str!("scripts/netvsc.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 driver hv_netvsc 00:15:5d:00:00:01",
            "MARK L2 pinged synthetic",
            "MARK L2 end",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(360),
        ..BASE
    },
    Story {
        name: "vf",
        about: "the data path goes to a VF that iavf drives; the VF is revoked and returned under pings, of which none is lost, and TCP",
        script: concat!("ROUNDS=1\n", include_str!("scripts/vf.sh")),
        inner: with_vf(include_str!("scripts/vf.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged synthetic",
            "Data path switched to VF",
            "MARK L2 pinged VF",
            "MARK revoked and returned 1 times",
            "MARK L2 lost nothing",
            "MARK L2 end",
            "MARK the stream is whole",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "revocations",
        about: "a VF is revoked and returned 100 times under pings, of which none is lost, and TCP",
        script: concat!("ROUNDS=100\n", include_str!("scripts/vf.sh")),
        inner: with_vf(include_str!("scripts/vf.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK revoked and returned 100 times",
            "MARK L2 lost nothing",
            "MARK L2 end",
            "MARK the stream is whole",
            "MARK end",
        ],
        cpu: Duration::from_secs(3600),
        ..BASE
    },
    Story {
        name: "surprise",
        about: "the adapter is killed: the guest goes on without its VF, and gets one of the next adapter",
        script: include_str!("scripts/surprise.sh"),
        inner: with_vf(include_str!("scripts/surprise.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 pinged without the VF",
            "MARK L2 pinged another VF",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "rebalance",
        about: "the PF stops and restarts under pings, of which none is lost, and TCP",
        script: include_str!("scripts/rebalance.sh"),
        inner: with_vf(include_str!("scripts/vf.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 lost nothing",
            "MARK L2 end",
            "MARK the stream is whole",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "modules",
        about: "the guest unloads pci-hyperv and hv_netvsc, and loads them again",
        script: include_str!("scripts/one-vf.sh"),
        inner: with_vf(include_str!("scripts/modules.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 pinged without pci_hyperv",
            "MARK L2 pinged VF again",
            "MARK L2 pinged after hv_netvsc",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "no-driver",
        about: "a guest without a driver for the VF stays on the synthetic path, and the stack says why",
        script: include_str!("scripts/no-driver.sh"),
        inner: Inner::Linux(Linux {
            modules: NO_VF_DRIVER,
            script: include_str!("scripts/no-driver.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "[GuestNoVfDriver]",
            "MARK L2 pinged synthetic",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "processors",
        about: "two processors: several channels, and the VF's interrupts move between them",
        script: include_str!("scripts/processors.sh"),
        inner: with_vf(include_str!("scripts/processors.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 2 processors, 2 channels",
            "MARK L2 pinged with interrupts on processor 1",
            "MARK L2 pinged with interrupts on processor 0",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "mtu",
        about: "the guest changes its MTU on the VF",
        script: include_str!("scripts/one-vf.sh"),
        inner: Inner::Linux(Linux {
            tools: &[Tool::Ethtool],
            script: include_str!("scripts/mtu.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 pinged at MTU 1200",
            "MARK L2 pinged at MTU 1500",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "reboot",
        about: "the guest reboots with its VF, and gets one in its next life",
        script: concat!("ANEW='reboot -f'\n", include_str!("scripts/reboot.sh")),
        inner: with_vf(include_str!("scripts/reboot.guest.sh")),
        expected: &[
            "MARK L2 pinged VF",
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "crash",
        about: "the guest crashes with its VF: it closes VMBus and starts anew, and gets a VF in its next life",
        script: concat!("ANEW=crash\n", include_str!("scripts/reboot.sh")),
        inner: with_vf(include_str!("scripts/reboot.guest.sh")),
        expected: &[
            "MARK L2 pinged VF",
            "Kernel panic - not syncing: sysrq triggered crash",
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "kexec",
        about: "the guest's kernel loads another one and jumps into it, with its VF, and that one gets the VF",
        script: concat!("MEMORY=768\n", include_str!("scripts/one-vf.sh")),
        inner: Inner::Linux(Linux {
            tools: &[Tool::Kexec],
            script: include_str!("scripts/kexec.guest.sh"),
            next: Some(include_str!("scripts/vf-again.guest.sh")),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 goes on to the next kernel",
            "MARK L2 booted",
            "MARK L2 pinged VF again",
            "MARK L2 end",
            "MARK end",
        ],
        memory: 2048,
        ..BASE
    },
    Story {
        name: "flr",
        about: "the guest resets its VF by FLR",
        script: include_str!("scripts/one-vf.sh"),
        inner: with_vf(include_str!("scripts/flr.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "flr",
            "MARK L2 pinged VF after reset 5",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "captures",
        about: "what leaves by the physical port is the same on both paths: VLAN, addresses, checksums",
        script: include_str!("scripts/captures.sh"),
        inner: Inner::Linux(Linux {
            modules: VF_AND_VLAN_MODULES,
            script: include_str!("scripts/captures.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 talked synthetic",
            "MARK L2 talked VF",
            "MARK L2 end",
            "MARK captured",
            "MARK end",
        ],
        check: capture::check,
        ..BASE
    },
    Story {
        name: "offloads",
        about: "TCP in large segments on both paths: what leaves by the physical port is whole, in frames of the MTU, with right checksums",
        modules: &["tun", "8021q", "af_packet"],
        tools: &[Tool::Tcpdump],
        script: include_str!("scripts/offloads.sh"),
        inner: Inner::Linux(Linux {
            tools: &[Tool::Tcpdump],
            script: include_str!("scripts/offloads.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 has sent large segments by eth0",
            "MARK synthetic: whole, in frames of the MTU",
            "MARK L2 has sent large segments by eth1",
            "MARK VF: whole, in frames of the MTU",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "driver",
        about: "the VF's driver gives it up: the guest goes on without it, and gets it back with its driver",
        script: include_str!("scripts/one-vf.sh"),
        inner: with_vf(include_str!("scripts/driver.guest.sh")),
        expected: &[
            "MARK L2 booted",
            "MARK L2 pinged VF",
            "MARK L2 pinged without the VF's driver",
            "MARK L2 pinged VF again",
            "MARK L2 end",
            "MARK end",
        ],
        ..BASE
    },
    Story {
        name: "shutdown",
        about: "`clearway vm stop` has the guest shut down by its integration service",
        modules: &["tun"],
        script: include_str!("scripts/shutdown.sh"),
        inner: Inner::Linux(Linux {
            modules: &["hv_vmbus", "hv_utils", "hv_netvsc"],
            script: include_str!("scripts/shutdown.guest.sh"),
            ..LINUX
        }),
        expected: &[
            "Shutdown IC version 3.2",
            "Heartbeat IC version 3.0",
            "TimeSync IC version 4.0",
            "hyperv",
            "MARK L2 was asked to shut down",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(360),
        ..BASE
    },
];

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
