//! The options by which QEMU makes a guest that can be given VFs.

use std::path::{Path, PathBuf};

use ndis_protocol::MacAddress;

/// A virtio-net of the guest, and a slot beside it for a VF.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct NicOptions {
    /// Its address, which the stack's file has for the adapter.
    pub mac: MacAddress,
    /// The vhost-user socket of its port on the switch.
    pub socket: PathBuf,
    /// Queue pairs, from 1.
    pub queues: u16,
}

/// A guest.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct GuestOptions {
    /// Name of the VM.
    pub name: String,
    /// Mebibytes of its memory.
    pub memory_mib: u64,
    /// Its processors.
    pub processors: u16,
    /// QEMU's accelerators, the first that works, as `kvm:tcg`.
    pub accelerator: String,
    /// Its NICs.
    pub nics: Vec<NicOptions>,
    /// QEMU's QMP socket.
    pub qmp: PathBuf,
}

/// The first number of chassis and slot of VFs' root ports: those of other ports are small.
const FIRST_SLOT: usize = 100;

impl GuestOptions {
    /// QEMU's options, one after the other. What the guest boots from, and its console, are others' business.
    pub fn arguments(&self) -> Vec<String> {
        let Self { name, memory_mib, processors, accelerator, nics, qmp } = self;
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-name", escaped(name));
        add("-M", format!("q35,accel={},memory-backend=mem", escaped(accelerator)));
        add("-cpu", "max".to_owned());
        add("-smp", processors.to_string());
        add("-m", format!("{memory_mib}M"));
        // The NIC and the switch read and write the guest's memory.
        add("-object", format!("memory-backend-memfd,id=mem,size={memory_mib}M,share=on"));
        // By ACPI a device would be removed when the guest gives it up, and by a power controller too.
        add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off".to_owned());
        add("-qmp", format!("unix:{},server=on,wait=off", path(qmp)));
        for (number, NicOptions { mac, socket, queues }) in nics.iter().enumerate() {
            let slot = FIRST_SLOT + number;
            add(
                "-device",
                format!(
                    "pcie-root-port,id=vfport{number},chassis={slot},slot={slot},power_controller_present=off"
                ),
            );
            add(
                "-chardev",
                format!("socket,id=vhost{number},path={},reconnect-ms=1000", path(socket)),
            );
            add(
                "-netdev",
                format!("vhost-user,id=host{number},chardev=vhost{number},queues={queues}"),
            );
            let mq = match queues {
                0 | 1 => String::new(),
                queues => format!(",mq=on,vectors={}", 2 * u32::from(*queues) + 2),
            };
            add(
                "-device",
                format!(
                    "virtio-net-pci,id=net{number},netdev=host{number},mac={mac},failover=on{mq}"
                ),
            );
        }
        arguments
    }
}

/// A value within an option: QEMU takes a comma that is doubled for one.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> GuestOptions {
        let nic = |mac: &str, queues| NicOptions {
            mac: mac.parse().unwrap(),
            socket: PathBuf::from("/tmp/a,b/net0"),
            queues,
        };
        GuestOptions {
            name: "web,1".to_owned(),
            memory_mib: 512,
            processors: 2,
            accelerator: "kvm:tcg".to_owned(),
            nics: vec![nic("02-00-00-00-00-0A", 1), nic("02-00-00-00-00-0B", 4)],
            qmp: PathBuf::from("/tmp/qmp"),
        }
    }

    #[test]
    fn each_nic_has_a_slot_and_failover_and_commas_are_doubled() {
        let arguments = guest().arguments();
        let has = |text: &str| arguments.iter().any(|argument| argument == text);
        assert!(has("web,,1"));
        assert!(has("memory-backend-memfd,id=mem,size=512M,share=on"));
        assert!(has("socket,id=vhost0,path=/tmp/a,,b/net0,reconnect-ms=1000"));
        assert!(has("virtio-net-pci,id=net0,netdev=host0,mac=02:00:00:00:00:0a,failover=on"));
        assert!(has(
            "virtio-net-pci,id=net1,netdev=host1,mac=02:00:00:00:00:0b,failover=on,mq=on,vectors=10"
        ));
        assert!(has("pcie-root-port,id=vfport1,chassis=101,slot=101,power_controller_present=off"));
    }
}
