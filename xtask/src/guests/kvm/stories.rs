//! The stories: what happens in the outer guest, and what is to be read on the serial line.
//!
//! A story's script runs in L1, a stock kernel with KVM. Programs of ours are in its path. `guest PROGRAM …` runs the
//! program with the options that boot the inner guest, L2. `MARK failed …` on the line, of either guest, is an error.

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
    /// Modules that L1 has beside those for KVM.
    pub(crate) modules: &'static [&'static str],
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

const BOOT_KERNEL: Program = Program::Example { package: "kvm_partition", name: "boot_kernel" };

/// All of them, the quickest first.
pub(crate) const STORIES: &[Story] = &[
    Story {
        name: "kvm-here",
        about: "the outer guest has a /dev/kvm with all that a Hyper-V partition needs",
        programs: &[CAPABILITIES],
        modules: &[],
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
    },
    Story {
        name: "boots",
        about: "a stock kernel takes our partition for Hyper-V, connects to VMBus, and turns off",
        programs: &[BOOT_KERNEL],
        modules: &[],
        script: "guest boot_kernel || echo MARK failed boot_kernel says $?",
        inner: Some(Inner {
            modules: &["hv_vmbus", "hv_utils"],
            script: "dmesg > /tmp/log\n\
                     grep 'Hypervisor detected' /tmp/log || echo MARK L2 failed no hypervisor is detected\n\
                     grep 'Vmbus version' /tmp/log || echo MARK L2 failed no VMBus\n\
                     ls /sys/bus/vmbus/devices\n\
                     grep -E 'WARNING:|BUG:|Call Trace' /tmp/log && echo MARK L2 failed errors in the log",
        }),
        expected: &[
            "MARK booted",
            "MARK L2 booted",
            "Hypervisor detected: Microsoft Hyper-V",
            "Vmbus version:5.",
            "MARK L2 end",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(240),
    },
    Story {
        name: "netvsc",
        about: "hv_netvsc is bound to our NetVSP, and pings the host through a switch",
        programs: &[BOOT_KERNEL, Program::Clearway],
        modules: &["tun"],
        script: r#"cat > /tmp/stack.toml <<'END'
[[switch]]
name = "lab"
socket = "/tmp/switch/control.sock"

[[vm]]
name = "web"
socket = "/tmp/web.sock"

[[vm.adapter]]
name = "net0"
mac = "00:15:5D:00:00:01"
switch = "lab"
END
clearway switch run --directory /tmp/switch --name lab --uplink none --host-interface host0 > /tmp/switch.log 2>&1 &
clearway stack run --config /tmp/stack.toml --directory /tmp/stack > /tmp/stack.log 2>&1 &
n=0; until [ -e /sys/class/net/host0 ]; do n=$((n+1)); [ $n -gt 3000 ] && break; usleep 100000; done
ip addr add 10.78.0.1/24 dev host0 && ip link set host0 up || echo MARK failed no host interface
guest boot_kernel --worker /tmp/web.sock --name web || echo MARK failed boot_kernel says $?
clearway switch --directory /tmp/switch show || echo MARK failed no switch
cat /tmp/switch.log /tmp/stack.log
"#,
        inner: Some(Inner {
            modules: &["hv_vmbus", "hv_utils", "hv_netvsc"],
            script: r#"n=0; until [ -e /sys/class/net/eth0 ]; do n=$((n+1)); [ $n -gt 3000 ] && break; usleep 100000; done
[ -e /sys/class/net/eth0 ] || { dmesg; echo MARK L2 failed no interface; }
echo MARK L2 driver $(basename $(readlink /sys/class/net/eth0/device/driver)) $(cat /sys/class/net/eth0/address)
ip addr add 10.78.0.2/24 dev eth0
ip link set eth0 up
none_lost() { ping -W 60 "$@" > /tmp/ping; cat /tmp/ping; grep -q ' 0% packet loss' /tmp/ping; }
none_lost -c 5 10.78.0.1 && echo MARK L2 pinged small || { dmesg; echo MARK L2 failed ping; }
none_lost -c 5 -s 1400 10.78.0.1 && echo MARK L2 pinged large || { dmesg; echo MARK L2 failed large ping; }
dmesg | grep -E 'WARNING:|BUG:|Call Trace' && echo MARK L2 failed errors in the log
"#,
        }),
        expected: &[
            "MARK L2 booted",
            "MARK L2 driver hv_netvsc 00:15:5d:00:00:01",
            "MARK L2 pinged small",
            "MARK L2 pinged large",
            "MARK L2 end",
            "MARK end",
        ],
        memory: 1024,
        cpu: Duration::from_secs(360),
    },
    Story {
        name: "vf",
        about: "the data path goes to a VF that iavf drives, and pings the host by way of the NIC",
        programs: &[BOOT_KERNEL, Program::Clearway],
        modules: &["tun"],
        script: r#"cat > /tmp/stack.toml <<'END'
[[nic]]
name = "nic0"
directory = "/tmp/nic"

[[switch]]
name = "external"
socket = "/tmp/switch/control.sock"
nic = "nic0"
iov = true

[[vm]]
name = "web"
socket = "/tmp/web.sock"

[[vm.adapter]]
name = "net0"
mac = "00:15:5D:00:00:01"
switch = "external"
iov-weight = 100
END
clearway adapter --directory /tmp/nic --vfs 2 --uplink pcap:,/tmp/uplink.pcap > /tmp/adapter.log 2>&1 &
clearway switch run --directory /tmp/switch --name external --uplink adapter:/tmp/nic --host-interface host0 > /tmp/switch.log 2>&1 &
clearway stack run --config /tmp/stack.toml --directory /tmp/stack > /tmp/stack.log 2>&1 &
n=0; until [ -e /sys/class/net/host0 ]; do n=$((n+1)); [ $n -gt 3000 ] && break; usleep 100000; done
ip addr add 10.78.0.1/24 dev host0 && ip link set host0 up || echo MARK failed no host interface
guest boot_kernel --worker /tmp/web.sock --name web --memory-mib 384 || echo MARK failed boot_kernel says $?
clearway switch --directory /tmp/switch show || echo MARK failed no switch
clearway stack --directory /tmp/stack status || echo MARK failed no stack
cat /tmp/adapter.log /tmp/switch.log /tmp/stack.log
"#,
        inner: Some(Inner {
            modules: &["hv_vmbus", "hv_utils", "iavf", "pci_hyperv", "hv_netvsc"],
            script: r#"n=0; until [ -e /sys/class/net/eth0 ]; do n=$((n+1)); [ $n -gt 3000 ] && break; usleep 100000; done
ip addr add 10.78.0.2/24 dev eth0
ip link set eth0 up
n=0; until dmesg | grep 'Data path switched to VF'; do n=$((n+1)); [ $n -gt 300 ] && break; sleep 1; done
dmesg | grep -q 'Data path switched to VF' || { dmesg; echo MARK L2 failed the data path is not on the VF; }
none_lost() { ping -W 60 "$@" > /tmp/ping; cat /tmp/ping; grep -q ' 0% packet loss' /tmp/ping; }
none_lost -c 5 10.78.0.1 && echo MARK L2 pinged small || { dmesg; echo MARK L2 failed ping; }
none_lost -c 5 -s 1400 10.78.0.1 && echo MARK L2 pinged large || { dmesg; echo MARK L2 failed large ping; }
grep iavf /proc/interrupts
dmesg | grep -E 'WARNING:|BUG:|Call Trace' && echo MARK L2 failed errors in the log
"#,
        }),
        expected: &[
            "MARK L2 booted",
            "Data path switched to VF",
            "MARK L2 pinged small",
            "MARK L2 pinged large",
            "MARK L2 end",
            "MARK end",
        ],
        memory: 1536,
        cpu: Duration::from_secs(480),
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
