//! Hypercalls that reach the host: posting a message, and moving an interrupt; and the hypercall page, which is
//! rewritten so that the latter does.
//!
//! KVM answers HvRetargetDeviceInterrupt by itself: it does not know it. So once KVM has written its hypercall page,
//! that page is given a first instruction that sends this one call to an I/O port of ours, where RDX still has the
//! address of the call's input, and everything else to KVM's own instructions.

use std::collections::BTreeSet;

use partition::Retarget;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmbus_protocol::{MAX_MESSAGE_SIZE, VpIndex};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_X64_MSR_HYPERCALL.
pub const MSR_HYPERCALL: u32 = 0x4000_0001;
/// In it: the page is there.
pub const MSR_HYPERCALL_ENABLED: u64 = 1;
/// HvCallPostMessage.
pub const POST_MESSAGE: u16 = 0x5C;
/// HvCallSignalEvent; comes here only for connections that do not exist.
pub const SIGNAL_EVENT: u16 = 0x5D;
/// HvCallRetargetDeviceInterrupt.
pub const RETARGET_INTERRUPT: u16 = 0x7E;
/// The I/O port that a rewritten page writes for [`RETARGET_INTERRUPT`]; RAX becomes the call's status.
pub const RETARGET_PORT: u16 = 0xE8;

/// How a call ends.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Success = 0,
    /// No such call.
    InvalidCode = 2,
    /// Its input cannot be.
    InvalidInput = 3,
    /// A parameter of it is wrong.
    InvalidParameter = 5,
    /// There is no such connection.
    InvalidConnection = 0x12,
    /// Not now: try again.
    InsufficientBuffers = 0x13,
}

/// The call's code in its control value.
pub fn code(input: u64) -> u16 {
    let [low, high, ..] = input.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// Whether the parameters are in registers instead of memory.
pub fn is_fast(input: u64) -> bool {
    input & 1 << 16 != 0
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PostMessageInput {
    connection_id: u32,
    reserved: u32,
    message_type: u32,
    payload_size: u32,
    payload: [u8; MAX_MESSAGE_SIZE],
}

const _: () = assert!(size_of::<PostMessageInput>() == 256);

/// The connection and the payload of a message that the guest posts; its input is at `gpa`.
pub fn post_message(memory: &GuestMemoryMmap, gpa: u64) -> Result<(u32, Vec<u8>), Status> {
    let mut bytes = [0; size_of::<PostMessageInput>()];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).map_err(|_| Status::InvalidInput)?;
    let input = PostMessageInput::read_from_bytes(&bytes).map_err(|_| Status::InvalidInput)?;
    let payload = usize::try_from(input.payload_size).ok();
    let payload = payload.and_then(|size| input.payload.get(..size));
    let payload = payload.ok_or(Status::InvalidParameter)?;
    Ok((input.connection_id, payload.to_vec()))
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RetargetInput {
    partition_id: u64,
    device_id: u64,
    source: u32,
    reserved1: u32,
    address: u32,
    data: u32,
    reserved2: u64,
    vector: u32,
    flags: u32,
    /// A mask of processors, or the format of a set.
    mask_or_format: u64,
}

const _: () = {
    assert!(size_of::<RetargetInput>() == 56);
    assert!(core::mem::offset_of!(RetargetInput, address) == 24);
    assert!(core::mem::offset_of!(RetargetInput, vector) == 40);
};

/// The interrupt comes by MSI.
const SOURCE_MSI: u32 = 1;
/// The processors are a set, not a mask.
const FLAG_PROCESSOR_SET: u32 = 1 << 1;
/// The set has banks of 64 processors each, those of the bank mask that follows.
const SET_SPARSE: u64 = 0;
/// The set is all processors.
const SET_ALL: u64 = 1;

/// What the guest wants to move; the call's input is at `gpa`.
pub fn retarget(memory: &GuestMemoryMmap, gpa: u64) -> Result<Retarget, Status> {
    let mut bytes = [0; size_of::<RetargetInput>()];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).map_err(|_| Status::InvalidInput)?;
    let input = RetargetInput::read_from_bytes(&bytes).map_err(|_| Status::InvalidInput)?;
    // Below 16 there are no vectors of devices.
    let vector = u8::try_from(input.vector).ok().filter(|vector| *vector >= 16);
    let (Some(vector), SOURCE_MSI) = (vector, input.source) else {
        return Err(Status::InvalidParameter);
    };
    let mut processors = BTreeSet::new();
    let mut bank = |number: u32, bits: u64| {
        processors.extend((0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| number * 64 + bit));
    };
    if input.flags & FLAG_PROCESSOR_SET == 0 {
        bank(0, input.mask_or_format);
    } else if input.mask_or_format == SET_ALL {
        bank(0, 1);
    } else if input.mask_or_format == SET_SPARSE {
        let word = |index: u64| -> Result<u64, Status> {
            let at = gpa.checked_add(56 + index * 8).ok_or(Status::InvalidInput)?;
            memory.read_obj(GuestAddress(at)).map_err(|_| Status::InvalidInput)
        };
        let valid = word(0)?;
        let banks = (0..64u32).filter(|number| valid >> number & 1 != 0);
        for (index, number) in (1..).zip(banks) {
            bank(number, word(index)?);
        }
    }
    if processors.is_empty() {
        return Err(Status::InvalidParameter);
    }
    let RetargetInput { device_id, address, data, .. } = input;
    let processors = processors.into_iter().map(VpIndex).collect();
    Ok(Retarget { device_id, address: address.into(), data, vector, processors })
}

/// KVM's hypercall page as the guest is to have it, if it is one that is known: a VMCALL or VMMCALL and a RET.
pub fn rewrite(original: &[u8]) -> Option<Vec<u8>> {
    let known = matches!(original, [0x0F, 0x01, 0xC1 | 0xD9, 0xC3, ..]);
    let [port, 0] = RETARGET_PORT.to_le_bytes() else { return None };
    let [low, high] = RETARGET_INTERRUPT.to_le_bytes();
    let call = original.get(..4).filter(|_| known)?;
    let mut page = vec![
        0x66, 0x81, 0xF9, low, high, // cmp cx, 0x7E
        0x75, 0x03, // jne over the next two
        0xE7, port, // out RETARGET_PORT, eax
        0xC3, // ret
    ];
    page.extend_from_slice(call);
    Some(page)
}

/// Rewrites the hypercall page that the guest's register names. False: it is none that KVM wrote.
pub fn rewrite_page(memory: &GuestMemoryMmap, register: u64) -> bool {
    if register & MSR_HYPERCALL_ENABLED == 0 {
        return false;
    }
    let page = GuestAddress(register & !(crate::layout::PAGE - 1));
    let mut original = [0; 16];
    if memory.read_slice(&mut original, page).is_err() {
        return false;
    }
    rewrite(&original).is_some_and(|code| memory.write_slice(&code, page).is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    /// Input as Linux' pci-hyperv writes it.
    fn input(vector: u32, flags: u32, rest: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u64::MAX.to_le_bytes());
        bytes.extend(0x1234_5678u64.to_le_bytes());
        for word in [1u32, 0, 0xFEE0_1000, 77, 0, 0, vector, flags] {
            bytes.extend(word.to_le_bytes());
        }
        rest.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<Retarget, Status> {
        let memory = memory();
        memory.write_slice(bytes, GuestAddress(0x1000)).unwrap();
        retarget(&memory, 0x1000)
    }

    #[test]
    fn interrupts_move_to_masks_and_sets_of_processors() {
        let masked = parsed(&input(0x41, 0, &[0b101])).unwrap();
        let expected = Retarget {
            device_id: 0x1234_5678,
            address: 0xFEE0_1000,
            data: 77,
            vector: 0x41,
            processors: [0, 2].map(VpIndex).into(),
        };
        assert_eq!(masked, expected);
        let set = parsed(&input(0x41, 2, &[0, 0b101, 1 << 63, 1])).unwrap();
        assert_eq!(set, Retarget { processors: [63, 128].map(VpIndex).into(), ..expected.clone() });
        let all = parsed(&input(0x41, 2, &[1])).unwrap();
        assert_eq!(all, Retarget { processors: vec![VpIndex(0)], ..expected });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(parsed(&input(0x41, 0, &[0])), Err(Status::InvalidParameter));
        assert_eq!(parsed(&input(0x41, 2, &[0, 0])), Err(Status::InvalidParameter));
        assert_eq!(parsed(&input(0x141, 0, &[1])), Err(Status::InvalidParameter));
        assert_eq!(parsed(&input(3, 0, &[1])), Err(Status::InvalidParameter));
        let memory = memory();
        for gpa in [0x4000, 0x3FF0, u64::MAX] {
            assert_eq!(retarget(&memory, gpa), Err(Status::InvalidInput));
            assert_eq!(post_message(&memory, gpa), Err(Status::InvalidInput));
        }
        // A set whose banks reach behind memory.
        let bytes = input(0x41, 2, &[0]);
        let at = 0x4000 - bytes.len() as u64;
        memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        assert_eq!(retarget(&memory, at), Err(Status::InvalidInput));
    }

    #[test]
    fn messages_are_no_longer_than_they_may_be() {
        let memory = memory();
        let mut bytes = [7u8; 256];
        for (size, good) in [(0u32, true), (240, true), (241, false), (u32::MAX, false)] {
            bytes[..4].copy_from_slice(&4u32.to_le_bytes());
            bytes[12..16].copy_from_slice(&size.to_le_bytes());
            memory.write_slice(&bytes, GuestAddress(0x100)).unwrap();
            let expected =
                if good { Ok((4, vec![7; size as usize])) } else { Err(Status::InvalidParameter) };
            assert_eq!(post_message(&memory, 0x100), expected);
        }
    }

    #[test]
    fn one_call_goes_to_our_port_and_the_others_to_kvm() {
        let page = rewrite(&[0x0F, 0x01, 0xD9, 0xC3, 0xEE]).unwrap();
        assert_eq!(
            page,
            [
                0x66, 0x81, 0xF9, 0x7E, 0x00, // cmp cx, 0x7E
                0x75, 0x03, // jne
                0xE7, 0xE8, 0xC3, // out 0xE8, eax; ret
                0x0F, 0x01, 0xD9, 0xC3 // vmmcall; ret
            ]
        );
        assert!(rewrite(&[0x0F, 0x01, 0xC1, 0xC3]).is_some());
        assert_eq!(rewrite(&page), None, "never twice");
        assert_eq!(rewrite(&[0x90; 16]), None);
        assert_eq!(rewrite(&[0x0F, 0x01]), None);
        let memory = memory();
        memory.write_slice(&[0x0F, 0x01, 0xC1, 0xC3], GuestAddress(0x2000)).unwrap();
        assert!(!rewrite_page(&memory, 0x2000), "it is off");
        assert!(!rewrite_page(&memory, 0x9001), "not in memory");
        assert!(rewrite_page(&memory, 0x2001));
        assert!(!rewrite_page(&memory, 0x2001));
    }

    proptest! {
        #[test]
        fn random_input_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512), gpa: u64) {
            let memory = memory();
            memory.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
            let _ = retarget(&memory, 0x1000);
            let _ = post_message(&memory, 0x1000);
            let _ = retarget(&memory, gpa % 0x5000);
            let _ = rewrite(&bytes);
            let _ = rewrite_page(&memory, gpa);
        }
    }
}
