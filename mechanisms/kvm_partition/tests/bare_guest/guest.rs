//! The guest: a few instructions that do, one after the other, what a list in its memory says, and survive what goes
//! wrong with it. It is entered where a bzImage is, in 64-bit mode with the first 4 GiB mapped to themselves, and never
//! takes an interrupt; a fault ends the operation that raised it.
//!
//! `unsafe` here: two linker symbols tell where the instructions begin and end in this program.
#![allow(unsafe_code)]

/// What the guest writes to its serial port when it has come to the end of its list. The next list is there once that
/// write has returned.
pub(crate) const DONE: u8 = 0xA5;
/// Where the image is loaded: the interrupt descriptors, and behind them the code.
const IMAGE: u64 = 0x10_0000;
/// Where a bzImage is entered.
const ENTRY: u64 = IMAGE + 0x200;
/// Vectors that processors raise by themselves.
const FAULTS: u64 = 32;
/// The operations.
pub(crate) const LIST: u64 = 0x40_0000;
/// Bytes of one.
pub(crate) const OP: usize = 128;
/// The code of the operations, 16 bytes each.
pub(crate) const SNIPPETS: u64 = 0x20_0000;

core::arch::global_asm!(
    ".pushsection .rodata.clearway_bare_guest, \"a\", @progbits",
    ".balign 16",
    ".globl clearway_bare_guest",
    ".globl clearway_bare_guest_end",
    "clearway_bare_guest:",
    "jmp 40f",
    // The handlers of faults, 16 bytes each: which one it was, and out.
    ".balign 16",
    ".set clearway_vector, 0",
    ".rept 32",
    ".balign 16",
    ".byte 0x6A, clearway_vector",
    "jmp 45f",
    ".set clearway_vector, clearway_vector + 1",
    ".endr",
    ".balign 16",
    "40:",
    "lidt [rip + 46f]",
    // The end of a list, also of the empty one before the first.
    "41:",
    "mov edx, 0x3F8",
    "mov eax, {done}",
    "out dx, al",
    "mov r15d, {list}",
    // An operation: its code, RAX, RCX, RDX, R8, RDI, RSI, repetitions; RAX, RDX, the last fault, faults.
    "42:",
    "cmp qword ptr [r15], 0",
    "je 41b",
    "mov r14, [r15 + 56]",
    "43:",
    "mov esp, {stack}",
    "mov rax, [r15 + 8]",
    "mov rcx, [r15 + 16]",
    "mov rdx, [r15 + 24]",
    "mov r8, [r15 + 32]",
    "mov rdi, [r15 + 40]",
    "mov rsi, [r15 + 48]",
    "call qword ptr [r15]",
    "mov [r15 + 64], rax",
    "mov [r15 + 72], rdx",
    "44:",
    "dec r14",
    "jnz 43b",
    "add r15, {op}",
    "jmp 42b",
    // A fault: on to the next repetition.
    "45:",
    "pop rax",
    "mov [r15 + 80], rax",
    "inc qword ptr [r15 + 88]",
    "jmp 44b",
    "46:",
    ".word {idt_limit}",
    ".quad {idt}",
    "clearway_bare_guest_end:",
    ".popsection",
    done = const DONE,
    list = const LIST,
    op = const OP,
    stack = const kvm_partition::layout::STACK,
    idt = const IMAGE,
    idt_limit = const FAULTS * 16 - 1,
);

unsafe extern "C" {
    static clearway_bare_guest: u8;
    static clearway_bare_guest_end: u8;
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const clearway_bare_guest, &raw const clearway_bare_guest_end);
    // SAFETY: both labels stand in the one piece of read-only data above, the second behind the first.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The guest as a bzImage: a header that says where its 64-bit entry is, and what is loaded.
pub(crate) fn image() -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x1F1] = 1;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    // It is loaded at 1 MiB and has a 64-bit entry.
    bytes[0x211] = 1;
    bytes[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    bytes[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
    bytes[0x236] = 1;
    for vector in 0..FAULTS {
        // An interrupt gate of the code segment that the boot protocol names.
        let handler = ENTRY + 16 + vector * 16;
        let low = handler & 0xFFFF | 0x10 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
        bytes.extend(low.to_le_bytes());
        bytes.extend((handler >> 32).to_le_bytes());
    }
    bytes.extend(code());
    bytes
}

/// What an operation does: code that ends in a RET.
macro_rules! snippets {
    ($($(#[$doc:meta])* $name:ident: $code:expr,)*) => {
        /// What an operation does.
        #[derive(Copy, Clone, Eq, PartialEq, Debug)]
        pub(crate) enum Do { $($(#[$doc])* $name,)* }

        impl Do {
            const ALL: &'static [(Self, &'static [u8])] = &[$((Self::$name, &$code),)*];
        }
    };
}

snippets! {
    /// RDMSR: of RCX into RDX:RAX.
    ReadMsr: [0x0F, 0x32, 0xC3],
    /// WRMSR: RDX:RAX to RCX.
    WriteMsr: [0x0F, 0x30, 0xC3],
    /// CPUID of RAX and RCX.
    Cpuid: [0x0F, 0xA2, 0xC3],
    /// Jumps to RDI, which returns: the hypercall page, or code of the test's.
    Jump: [0xFF, 0xE7],
    /// VMCALL, whoever made the processor.
    Vmcall: [0x0F, 0x01, 0xC1, 0xC3],
    /// VMMCALL.
    Vmmcall: [0x0F, 0x01, 0xD9, 0xC3],
    /// IN of a byte.
    In8: [0xEC, 0xC3],
    /// IN of four.
    In32: [0xED, 0xC3],
    /// OUT of a byte.
    Out8: [0xEE, 0xC3],
    /// OUT of four.
    Out32: [0xEF, 0xC3],
    /// INS of RCX bytes to RDI.
    InString: [0xF3, 0x6C, 0xC3],
    /// OUTS of RCX bytes from RSI.
    OutString: [0xF3, 0x6E, 0xC3],
    /// Loads a byte at RDI.
    Load8: [0x8A, 0x07, 0xC3],
    /// Loads two.
    Load16: [0x66, 0x8B, 0x07, 0xC3],
    /// Loads four.
    Load32: [0x8B, 0x07, 0xC3],
    /// Loads eight.
    Load64: [0x48, 0x8B, 0x07, 0xC3],
    /// Stores a byte of RAX at RDI.
    Store8: [0x88, 0x07, 0xC3],
    /// Stores two.
    Store16: [0x66, 0x89, 0x07, 0xC3],
    /// Stores four.
    Store32: [0x89, 0x07, 0xC3],
    /// Stores eight.
    Store64: [0x48, 0x89, 0x07, 0xC3],
    /// Copies RCX bytes from RSI to RDI.
    Copy: [0xF3, 0xA4, 0xC3],
    /// LOCK CMPXCHG of eight bytes at RDI.
    CompareExchange: [0xF0, 0x48, 0x0F, 0xB1, 0x17, 0xC3],
    /// Allows SSE (CR4.OSFXSR).
    AllowSse: [0x0F, 0x20, 0xE0, 0x80, 0xCC, 0x02, 0x0F, 0x22, 0xE0, 0xC3],
    /// Stores 16 bytes at RDI.
    Store128: [0x0F, 0x11, 0x07, 0xC3],
    /// Stores a packed decimal of ten bytes at RDI.
    StoreDecimal: [0xDB, 0xE3, 0xD9, 0xEE, 0xDF, 0x37, 0xC3],
    /// Stops the processor for good: interrupts are off.
    Halt: [0xFA, 0xF4, 0xEB, 0xFD],
    /// Goes on for ever.
    Spin: [0xEB, 0xFE],
    /// Takes away the handlers of faults (RDI is at ten zeros), and faults.
    TripleFault: [0x0F, 0x01, 0x1F, 0x0F, 0x0B],
}

impl Do {
    /// Where the guest has its code.
    pub(crate) fn address(self) -> u64 {
        SNIPPETS + 16 * self as u64
    }

    /// All code, for [`SNIPPETS`].
    pub(crate) fn all() -> Vec<u8> {
        let mut bytes = vec![0xCC; 16 * Self::ALL.len()];
        for (which, code) in Self::ALL {
            let at = 16 * *which as usize;
            bytes[at..at + code.len()].copy_from_slice(code);
        }
        bytes
    }
}
