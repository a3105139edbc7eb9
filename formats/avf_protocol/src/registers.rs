//! BAR0: register offsets, decoding, and bit fields (SPEC-AVF §2).
//!
//! All registers are 32 bits wide and naturally aligned.

/// Tail registers of TX queues: 4 bytes each from here (QTX_TAIL1).
pub const TX_TAIL: u32 = 0x0000;
/// Tail registers of RX queues: 4 bytes each from here (QRX_TAIL1).
pub const RX_TAIL: u32 = 0x2000;
/// Throttling intervals of queue vectors (VFINT_ITRN1): 0x40 bytes for each of 3 indices, 4 for each vector.
pub const ITRN: u32 = 0x2800;
/// Control of queue vectors (VFINT_DYN_CTLN1): 4 bytes for each vector, the first is vector 1.
pub const DYN_CTLN: u32 = 0x3800;
/// Causes of vector 0, cleared by reading (VFINT_ICR01).
pub const ICR01: u32 = 0x4800;
/// Throttling intervals of vector 0 (VFINT_ITR01): 3 registers.
pub const ITR01: u32 = 0x4C00;
/// Which causes may fire vector 0 (VFINT_ICR0_ENA1).
pub const ICR0_ENA1: u32 = 0x5000;
/// Throttling index of vector 0's other causes (VFINT_STAT_CTL01).
pub const STAT_CTL01: u32 = 0x5400;
/// Control of vector 0 (VFINT_DYN_CTL01).
pub const DYN_CTL01: u32 = 0x5C00;
/// Receive admin queue, base address high.
pub const ARQBAH: u32 = 0x6000;
/// Transmit admin queue, head.
pub const ATQH: u32 = 0x6400;
/// Transmit admin queue, length and enable.
pub const ATQLEN: u32 = 0x6800;
/// Receive admin queue, base address low.
pub const ARQBAL: u32 = 0x6C00;
/// Receive admin queue, tail.
pub const ARQT: u32 = 0x7000;
/// Receive admin queue, head.
pub const ARQH: u32 = 0x7400;
/// Transmit admin queue, base address high.
pub const ATQBAH: u32 = 0x7800;
/// Transmit admin queue, base address low.
pub const ATQBAL: u32 = 0x7C00;
/// Receive admin queue, length and enable.
pub const ARQLEN: u32 = 0x8000;
/// Transmit admin queue, tail: the mailbox doorbell.
pub const ATQT: u32 = 0x8400;
/// Reset status (VFGEN_RSTAT).
pub const RSTAT: u32 = 0x8800;
/// RSS packet-type hash enable (VFQF_HENA): 2 registers.
pub const HENA: u32 = 0xC400;
/// RSS key (VFQF_HKEY): 13 registers.
pub const HKEY: u32 = 0xCC00;
/// RSS lookup table (VFQF_HLUT): 16 registers of four entries.
pub const HLUT: u32 = 0xD000;

/// The page of TX tails, which can be shared with the guest (SPEC-AVF §2.5).
pub const TX_DOORBELL_PAGE: u32 = 0x0000;
/// The page of RX tails and ITRN registers, which can be shared with the guest (SPEC-AVF §2.5).
pub const RX_DOORBELL_PAGE: u32 = 0x2000;

/// Bits of a tail register that count.
pub const TAIL_MASK: u32 = 0x1FFF;
/// Bits of an admin queue head or tail that count.
pub const ADMIN_QUEUE_INDEX_MASK: u32 = 0x3FF;
/// Bits of an ITR register that count; 2 µs units.
pub const ITR_MASK: u32 = 0xFFF;
/// Nanoseconds in one unit of an ITR register.
pub const ITR_UNIT_NS: u64 = 2_000;
/// Tail registers that drivers without the large-VF opcodes use, each direction.
pub const TAIL_REGISTERS: u32 = 16;
/// DYN_CTLN registers: vectors 1 to 64.
pub const DYN_CTLN_REGISTERS: u32 = 64;
/// ITRN registers of each index: vectors 1 to 16.
pub const ITRN_VECTORS: u32 = 16;

/// Cause bits of ICR01 and ICR0_ENA1.
pub mod cause {
    /// Queue 0, when it is mapped to vector 0 (ICR01).
    pub const QUEUE_0: u32 = 1 << 1;
    /// Queue 1 (ICR01).
    pub const QUEUE_1: u32 = 1 << 2;
    /// Queue 2 (ICR01).
    pub const QUEUE_2: u32 = 1 << 3;
    /// Link status change.
    pub const LINK_STAT_CHANGE: u32 = 1 << 25;
    /// The receive admin queue has a message.
    pub const ADMINQ: u32 = 1 << 30;
    /// Software interrupt (ICR01).
    pub const SWINT: u32 = 1 << 31;
}

/// A register of BAR0, by meaning.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Register {
    /// QTX_TAIL1 of a queue, 0–15.
    TxTail(u16),
    /// QRX_TAIL1 of a queue, 0–15.
    RxTail(u16),
    /// VFINT_ITRN1: index 0–2 and register 0–15, which is vector − 1.
    Itrn(u8, u16),
    /// VFINT_DYN_CTLN1: register 0–63, which is vector − 1.
    DynCtln(u16),
    /// VFINT_ICR01.
    Icr01,
    /// VFINT_ITR01, index 0–2.
    Itr01(u8),
    /// VFINT_ICR0_ENA1.
    Icr0Ena1,
    /// VFINT_STAT_CTL01.
    StatCtl01,
    /// VFINT_DYN_CTL01.
    DynCtl01,
    /// VF_ARQBAH1.
    Arqbah,
    /// VF_ATQH1.
    Atqh,
    /// VF_ATQLEN1.
    Atqlen,
    /// VF_ARQBAL1.
    Arqbal,
    /// VF_ARQT1.
    Arqt,
    /// VF_ARQH1.
    Arqh,
    /// VF_ATQBAH1.
    Atqbah,
    /// VF_ATQBAL1.
    Atqbal,
    /// VF_ARQLEN1.
    Arqlen,
    /// VF_ATQT1.
    Atqt,
    /// VFGEN_RSTAT.
    Rstat,
    /// VFQF_HENA, 0–1.
    Hena(u8),
    /// VFQF_HKEY, 0–12.
    Hkey(u8),
    /// VFQF_HLUT, 0–15.
    Hlut(u8),
}

/// The element of an array of 4-byte registers at `base` that `offset` names.
const fn element(offset: u32, base: u32, count: u32) -> Option<u8> {
    if offset < base || offset >= base + count * 4 {
        return None;
    }
    // At most 64 elements.
    Some(((offset - base) / 4).to_le_bytes()[0])
}

impl Register {
    /// The register at a byte offset of BAR0; `None` if there is none or the offset is not a multiple of 4.
    pub const fn decode(offset: u32) -> Option<Self> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        if let Some(queue) = element(offset, TX_TAIL, TAIL_REGISTERS) {
            return Some(Self::TxTail(queue as u16));
        }
        if let Some(queue) = element(offset, RX_TAIL, TAIL_REGISTERS) {
            return Some(Self::RxTail(queue as u16));
        }
        if let Some(register) = element(offset, ITRN, 3 * ITRN_VECTORS) {
            return Some(Self::Itrn(register / 16, (register % 16) as u16));
        }
        if let Some(register) = element(offset, DYN_CTLN, DYN_CTLN_REGISTERS) {
            return Some(Self::DynCtln(register as u16));
        }
        if let Some(index) = element(offset, ITR01, 3) {
            return Some(Self::Itr01(index));
        }
        if let Some(index) = element(offset, HENA, 2) {
            return Some(Self::Hena(index));
        }
        if let Some(index) = element(offset, HKEY, 13) {
            return Some(Self::Hkey(index));
        }
        if let Some(index) = element(offset, HLUT, 16) {
            return Some(Self::Hlut(index));
        }
        Some(match offset {
            ICR01 => Self::Icr01,
            ICR0_ENA1 => Self::Icr0Ena1,
            STAT_CTL01 => Self::StatCtl01,
            DYN_CTL01 => Self::DynCtl01,
            ARQBAH => Self::Arqbah,
            ATQH => Self::Atqh,
            ATQLEN => Self::Atqlen,
            ARQBAL => Self::Arqbal,
            ARQT => Self::Arqt,
            ARQH => Self::Arqh,
            ATQBAH => Self::Atqbah,
            ATQBAL => Self::Atqbal,
            ARQLEN => Self::Arqlen,
            ATQT => Self::Atqt,
            RSTAT => Self::Rstat,
            _ => return None,
        })
    }

    /// The byte offset in BAR0.
    pub const fn offset(self) -> u32 {
        match self {
            Self::TxTail(queue) => tx_tail(queue),
            Self::RxTail(queue) => rx_tail(queue),
            Self::Itrn(index, register) => itrn(index, register),
            Self::DynCtln(register) => DYN_CTLN + register as u32 * 4,
            Self::Icr01 => ICR01,
            Self::Itr01(index) => ITR01 + index as u32 * 4,
            Self::Icr0Ena1 => ICR0_ENA1,
            Self::StatCtl01 => STAT_CTL01,
            Self::DynCtl01 => DYN_CTL01,
            Self::Arqbah => ARQBAH,
            Self::Atqh => ATQH,
            Self::Atqlen => ATQLEN,
            Self::Arqbal => ARQBAL,
            Self::Arqt => ARQT,
            Self::Arqh => ARQH,
            Self::Atqbah => ATQBAH,
            Self::Atqbal => ATQBAL,
            Self::Arqlen => ARQLEN,
            Self::Atqt => ATQT,
            Self::Rstat => RSTAT,
            Self::Hena(index) => HENA + index as u32 * 4,
            Self::Hkey(index) => HKEY + index as u32 * 4,
            Self::Hlut(index) => HLUT + index as u32 * 4,
        }
    }
}

/// Offset of the tail of TX queue `queue`.
#[inline]
pub const fn tx_tail(queue: u16) -> u32 {
    TX_TAIL + queue as u32 * 4
}

/// Offset of the tail of RX queue `queue`.
#[inline]
pub const fn rx_tail(queue: u16) -> u32 {
    RX_TAIL + queue as u32 * 4
}

/// Offset of ITRN register `register` (vector − 1) of ITR `index` (0–2).
#[inline]
pub const fn itrn(index: u8, register: u16) -> u32 {
    ITRN + index as u32 * 0x40 + register as u32 * 4
}

/// Offset of the control register of MSI-X vector `vector`; 0 has its own.
#[inline]
pub const fn dyn_ctl(vector: u16) -> u32 {
    match vector {
        0 => DYN_CTL01,
        _ => DYN_CTLN + (vector as u32 - 1) * 4,
    }
}

/// Length register of an admin queue: ATQLEN and ARQLEN.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct QueueLength(pub u32);

impl QueueLength {
    /// The queue is on.
    pub const ENABLE: u32 = 1 << 31;
    /// Critical error.
    pub const CRITICAL: u32 = 1 << 30;
    /// Overflow.
    pub const OVERFLOW: u32 = 1 << 29;
    /// VF error.
    pub const VF_ERROR: u32 = 1 << 28;
    /// The three error bits.
    pub const ERRORS: u32 = Self::CRITICAL | Self::OVERFLOW | Self::VF_ERROR;

    /// An enabled queue of `length` descriptors (1–1023).
    pub const fn enabled(length: u16) -> Self {
        Self((length as u32 & ADMIN_QUEUE_INDEX_MASK) | Self::ENABLE)
    }

    /// Descriptors in the ring.
    pub const fn length(self) -> u16 {
        // 10 bits.
        let [low, high, ..] = (self.0 & ADMIN_QUEUE_INDEX_MASK).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Whether the queue is on.
    pub const fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }
}

/// What VFGEN_RSTAT says (SPEC-AVF §7.1).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ResetState {
    /// 0: a reset is in progress.
    InProgress,
    /// 1: the reset is done, the PF is not.
    Completed,
    /// 2: the VF is usable.
    Active,
    /// 3: not a state; what a missing device reads as.
    Invalid,
}

impl ResetState {
    /// The state in a register value.
    pub const fn of(value: u32) -> Self {
        match value & 3 {
            0 => Self::InProgress,
            1 => Self::Completed,
            2 => Self::Active,
            _ => Self::Invalid,
        }
    }

    /// The register value.
    pub const fn value(self) -> u32 {
        match self {
            Self::InProgress => 0,
            Self::Completed => 1,
            Self::Active => 2,
            Self::Invalid => 3,
        }
    }
}

/// DYN_CTL01 and DYN_CTLN1 (SPEC-AVF §2.2).
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct DynCtl(pub u32);

/// The ITR index that touches no ITR register.
pub const NO_ITR: u8 = 3;

impl DynCtl {
    /// Arms the vector.
    pub const INTENA: u32 = 1;
    /// Asks to clear the pending bit; devices ignore it (SPEC-AVF §6.3).
    pub const CLEARPBA: u32 = 1 << 1;
    /// Software trigger: fire now.
    pub const SWINT_TRIG: u32 = 1 << 2;
    /// The software interrupt has an ITR index of its own.
    pub const SW_ITR_INDX_ENA: u32 = 1 << 24;
    /// Write back on ITR expiry although the interrupt is off.
    pub const WB_ON_ITR: u32 = 1 << 30;
    /// Leave INTENA as it is.
    pub const INTENA_MSK: u32 = 1 << 31;

    /// Arms the vector and touches no ITR.
    pub const ENABLE: Self = Self(Self::INTENA | (NO_ITR as u32) << 3);
    /// Disarms the vector and touches no ITR.
    pub const DISABLE: Self = Self((NO_ITR as u32) << 3);
    /// Fires at once, as Linux's watchdog does.
    pub const FORCE_WRITE_BACK: Self =
        Self(Self::INTENA | Self::SWINT_TRIG | (NO_ITR as u32) << 3 | Self::SW_ITR_INDX_ENA);

    /// Arms the vector and sets ITR `index` (0–2) to `interval` (2 µs units).
    pub const fn enable_with_interval(index: u8, interval: u16) -> Self {
        Self(Self::INTENA).with_interval(index, interval)
    }

    /// Poll mode: write-back on ITR `index` with `interval` (2 µs units), no interrupt.
    pub const fn poll_mode(index: u8, interval: u16) -> Self {
        Self(Self::WB_ON_ITR).with_interval(index, interval)
    }

    /// Adds an ITR index and interval.
    pub const fn with_interval(self, index: u8, interval: u16) -> Self {
        Self(self.0 | (index as u32 & 3) << 3 | (interval as u32 & ITR_MASK) << 5)
    }

    /// Whether bit 0 is set.
    pub const fn intena(self) -> bool {
        self.0 & Self::INTENA != 0
    }

    /// Whether INTENA is to be left as it is.
    pub const fn keeps_intena(self) -> bool {
        self.0 & Self::INTENA_MSK != 0
    }

    /// Whether the software trigger is set.
    pub const fn software_trigger(self) -> bool {
        self.0 & Self::SWINT_TRIG != 0
    }

    /// ITR index, 0–3.
    pub const fn itr_index(self) -> u8 {
        (self.0 >> 3 & 3).to_le_bytes()[0]
    }

    /// Interval in 2 µs units, 12 bits.
    pub const fn interval(self) -> u16 {
        let [low, high, ..] = (self.0 >> 5 & ITR_MASK).to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_decodes_from_its_own_offset_and_nothing_else_does() {
        let mut found = 0;
        for offset in 0..0x1_0000 {
            if let Some(register) = Register::decode(offset) {
                assert_eq!(register.offset(), offset);
                found += 1;
            }
        }
        // 16 + 16 tails, 48 ITRN, 64 DYN_CTLN, 3 ITR01, 2 HENA, 13 HKEY, 16 HLUT, 15 single ones.
        assert_eq!(found, 16 + 16 + 48 + 64 + 3 + 2 + 13 + 16 + 15);
        assert_eq!(Register::decode(0xD03C), Some(Register::Hlut(15)));
        assert_eq!(Register::decode(0x28BC), Some(Register::Itrn(2, 15)));
        assert_eq!(Register::decode(u32::MAX), None);
    }

    #[test]
    fn the_values_that_stock_drivers_write_read_as_meant() {
        assert_eq!(DynCtl::ENABLE.0, 0x19);
        assert_eq!(DynCtl::DISABLE.0, 0x18);
        assert_eq!(DynCtl::FORCE_WRITE_BACK.0, 0x0100_001D);
        assert_eq!(DynCtl::poll_mode(0, 2).0, 0x4000_0040);
        let dpdk = DynCtl(0x1B);
        assert!(dpdk.intena() && dpdk.itr_index() == NO_ITR && !dpdk.keeps_intena());
        let linux = DynCtl::enable_with_interval(1, 25);
        assert_eq!((linux.itr_index(), linux.interval()), (1, 25));
        assert_eq!(dyn_ctl(0), DYN_CTL01);
        assert_eq!(dyn_ctl(1), DYN_CTLN);
        assert_eq!(QueueLength::enabled(32).0, 0x8000_0020);
    }
}
