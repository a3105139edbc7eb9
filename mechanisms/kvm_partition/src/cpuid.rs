//! What the guest's processors say they are: KVM's list, made a Hyper-V guest's.
//!
//! Pure: lists in, a list out.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The first leaf that belongs to hypervisors.
const HYPERVISOR: u32 = 0x4000_0000;
/// The last of Hyper-V's leaves that the guest is given.
const HYPERV_MAX: u32 = 0x4000_0005;
/// "Microsoft Hv", as EBX, ECX and EDX.
const HYPERV_VENDOR: [u32; 3] =
    [u32::from_le_bytes(*b"Micr"), u32::from_le_bytes(*b"osof"), u32::from_le_bytes(*b"t Hv")];

/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1, ECX: VMX. A guest of Hyper-V's has virtualization of its own only where that was asked for.
const VMX: u32 = 1 << 5;
/// Leaf 0x80000001, ECX: SVM, and what there is of it.
const SVM: u32 = 1 << 2;
const SVM_FEATURES: u32 = 0x8000_000A;
/// Leaf 1, EDX: EBX has a number of processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x40000003, EAX: re-enlightenment.
const REENLIGHTENMENT: u32 = 1 << 13;
/// Leaf 0x40000003, EDX: the debug registers.
const DEBUG: u32 = 1 << 11;
/// Leaf 0x40000004, EAX: the enlightened VMCS is recommended.
const ENLIGHTENED_VMCS: u32 = 1 << 14;

/// The list for processor `id` of `count`: all in one package, a core each.
///
/// `supported` is what KVM can do (KVM_GET_SUPPORTED_CPUID), `hyperv` what it has of Hyper-V
/// (KVM_GET_SUPPORTED_HV_CPUID).
pub fn guest_cpuid(
    supported: &[kvm_cpuid_entry2],
    hyperv: &[kvm_cpuid_entry2],
    id: u16,
    count: u16,
) -> Vec<kvm_cpuid_entry2> {
    let mut list: Vec<_> = supported
        .iter()
        .filter(|entry| entry.function & 0xFFFF_0000 != HYPERVISOR)
        // Other descriptions of the topology than those below.
        .filter(|entry| !matches!(entry.function, 0xB | 0x1F | 0x8000_0026))
        .filter(|entry| entry.function != SVM_FEATURES)
        .copied()
        .collect();
    let (id, count) = (u32::from(id), u32::from(count).max(1));
    let id_bits = (count - 1).checked_ilog2().map_or(0, |bits| bits + 1);
    for entry in &mut list {
        match entry.function {
            1 => {
                entry.ecx = entry.ecx & !VMX | HYPERVISOR_PRESENT;
                entry.ebx = entry.ebx & 0xFFFF | count.min(255) << 16 | (id & 0xFF) << 24;
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Caches: how many share them, and cores in the package.
            4 if entry.eax & 0x1F != 0 => {
                let shared = if entry.eax >> 5 & 7 == 3 { count } else { 1 };
                entry.eax = entry.eax & 0x3FFF
                    | (shared - 1).min(0xFFF) << 14
                    | (count - 1).min(0x3F) << 26;
            }
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => entry.ecx = entry.ecx & !0xF0FF | (count - 1).min(0xFF) | id_bits << 12,
            0x8000_001D if entry.eax & 0x1F != 0 => {
                let shared = if entry.eax >> 5 & 7 == 3 { count } else { 1 };
                entry.eax = entry.eax & 0x3FFF | (shared - 1).min(0xFFF) << 14;
            }
            0x8000_001E => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xFF, 0),
            _ => {}
        }
    }
    if supported.iter().any(|entry| entry.function == 0xB) {
        // A thread per core, then the cores of the package.
        for (index, eax, ebx, kind) in [(0, 0, 1, 1), (1, id_bits, count, 2), (2, 0, 0, 0)] {
            list.push(kvm_cpuid_entry2 {
                function: 0xB,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: index | kind << 8,
                edx: id,
                ..Default::default()
            });
        }
    }
    list.extend(hyperv.iter().filter_map(|entry| hyperv_leaf(*entry, count)));
    list
}

/// A leaf of Hyper-V's as the guest is given it.
fn hyperv_leaf(mut entry: kvm_cpuid_entry2, count: u32) -> Option<kvm_cpuid_entry2> {
    match entry.function {
        0x4000_0000 => {
            entry.eax = HYPERV_MAX;
            [entry.ebx, entry.ecx, entry.edx] = HYPERV_VENDOR;
        }
        0x4000_0001 | 0x4000_0002 => {}
        0x4000_0003 => {
            entry.eax &= !REENLIGHTENMENT;
            entry.edx &= !DEBUG;
        }
        0x4000_0004 => entry.eax &= !ENLIGHTENED_VMCS,
        HYPERV_MAX => entry.eax = entry.eax.max(count),
        _ => return None,
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn registers(list: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let found: Vec<_> = list
            .iter()
            .filter(|entry| (entry.function, entry.index) == (function, index))
            .collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
        [found[0].eax, found[0].ebx, found[0].ecx, found[0].edx]
    }

    fn supported() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, [0x1F, 0, 0, 0]),
            leaf(1, [0x0068_0F00, 0xAABB_0800, 0x20, 0]),
            leaf(0xB, [9; 4]),
            leaf(0x1F, [9; 4]),
            leaf(0x4000_0000, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]),
            leaf(0x4000_0001, [0xFFFF_FFFF; 4]),
            leaf(0x8000_0001, [0, 0, 0xFFFF_FFFF, 0]),
            leaf(0x8000_0008, [0x3030, 0, 0x1234_5678, 0]),
            leaf(0x8000_000A, [1, 2, 3, 4]),
            leaf(0x8000_001E, [9; 4]),
        ]
    }

    fn hyperv() -> Vec<kvm_cpuid_entry2> {
        (0x4000_0000..=0x4000_000A).map(|function| leaf(function, [u32::MAX; 4])).collect()
    }

    #[test]
    fn the_guest_sees_hyperv_and_nothing_of_kvm() {
        let list = guest_cpuid(&supported(), &hyperv(), 0, 1);
        let hypervisors: Vec<_> = list
            .iter()
            .filter(|entry| entry.function >> 16 == 0x4000)
            .map(|entry| entry.function & 0xFF)
            .collect();
        assert_eq!(hypervisors, [0, 1, 2, 3, 4, 5]);
        assert_eq!(
            registers(&list, 0x4000_0000, 0),
            [0x4000_0005, 0x7263_694D, 0x666F_736F, 0x7648_2074]
        );
        assert_eq!(registers(&list, 0x4000_0003, 0)[0], !(1 << 13));
        assert_eq!(registers(&list, 0x4000_0003, 0)[3], !(1 << 11));
        assert_eq!(registers(&list, 0x4000_0004, 0)[0], !(1 << 14));
        assert_eq!(registers(&list, 1, 0)[2], 1 << 31);
    }

    #[test]
    fn the_guest_has_no_virtualization_of_its_own() {
        let list = guest_cpuid(&supported(), &hyperv(), 0, 1);
        assert_eq!(registers(&list, 1, 0)[2] & 0x20, 0);
        assert_eq!(registers(&list, 0x8000_0001, 0)[2], !4);
        assert!(!list.iter().any(|entry| entry.function == 0x8000_000A));
    }

    #[test]
    fn processors_are_cores_of_one_package() {
        for (id, count, bits) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 2), (200, 254, 8)] {
            let list = guest_cpuid(&supported(), &hyperv(), id, count);
            let (id, count) = (u32::from(id), u32::from(count));
            assert_eq!(registers(&list, 1, 0)[1], id << 24 | count << 16 | 0x0800);
            assert_eq!(registers(&list, 1, 0)[3] & HTT != 0, count > 1);
            assert_eq!(registers(&list, 0xB, 0), [0, 1, 1 << 8, id]);
            assert_eq!(registers(&list, 0xB, 1), [bits, count, 2 << 8 | 1, id]);
            assert_eq!(
                registers(&list, 0x8000_0008, 0)[2] & 0xFFFF,
                bits << 12 | 0x0600 | (count - 1)
            );
            assert_eq!(registers(&list, 0x8000_001E, 0), [id, id, 0, 9]);
            assert!(!list.iter().any(|entry| entry.function == 0x1F));
        }
    }
}
