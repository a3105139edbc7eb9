//! Accesses of any size and alignment, taken apart into the dwords and byte enables of a PCI request.

use pcie_protocol::CONFIG_SPACE_SIZE;

use crate::PciFunctionError;

/// What one access writes to one dword: the value, and which of its bits are written (whole bytes).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct DwordWrite {
    pub(crate) value: u32,
    pub(crate) mask: u32,
}

impl DwordWrite {
    /// `old` after this write, where only `writable` bits change.
    pub(crate) fn merge(self, old: u32, writable: u32) -> u32 {
        let mask = self.mask & writable;
        old & !mask | self.value & mask
    }

    /// The part of the write that goes to the 16-bit register in the low half.
    pub(crate) fn low(self) -> WordWrite {
        let [v0, v1, ..] = self.value.to_le_bytes();
        let [m0, m1, ..] = self.mask.to_le_bytes();
        WordWrite { value: u16::from_le_bytes([v0, v1]), mask: u16::from_le_bytes([m0, m1]) }
    }

    /// The part of the write that goes to the 16-bit register in the high half.
    pub(crate) fn high(self) -> WordWrite {
        Self { value: self.value >> 16, mask: self.mask >> 16 }.low()
    }
}

/// What one access writes to one 16-bit register.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct WordWrite {
    pub(crate) value: u16,
    pub(crate) mask: u16,
}

impl WordWrite {
    /// `old` after this write, where only `writable` bits change.
    pub(crate) fn merge(self, old: u16, writable: u16) -> u16 {
        let mask = self.mask & writable;
        old & !mask | self.value & mask
    }

    /// The bits written as ones: for registers that are cleared or triggered by ones.
    pub(crate) fn ones(self) -> u16 {
        self.value & self.mask
    }
}

/// A dword made of two 16-bit registers.
pub(crate) fn dword(low: u16, high: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// The first byte of an access to configuration space, if all of it lies inside.
pub(crate) fn check_config_access(offset: u64, length: usize) -> Result<u16, PciFunctionError> {
    let error = PciFunctionError::OutsideConfigSpace { offset, length };
    let first = u16::try_from(offset).map_err(|_| error.clone())?;
    match usize::from(first).checked_add(length) {
        Some(end) if end <= CONFIG_SPACE_SIZE => Ok(first),
        _ => Err(error),
    }
}

/// Fills `data` with the bytes at `offset` of something read by aligned dwords.
pub(crate) fn read_bytes(offset: u64, data: &mut [u8], read: impl Fn(u64) -> u32) {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let bytes = read(at & !3).to_le_bytes();
        let wanted = bytes.get(skip(at)..).unwrap_or_default();
        let count = wanted.len().min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(wanted.get(..count).unwrap_or_default());
        rest = later;
        at += count as u64;
    }
}

/// The dword writes, ascending, of writing `data` at `offset`: each with the offset of its dword.
pub(crate) fn dword_writes(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, DwordWrite)> {
    let (mut at, mut rest) = (offset, data);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let register = at & !3;
        let skip = skip(at);
        let (now, later) = rest.split_at(rest.len().min(4 - skip));
        let (mut value, mut mask) = ([0; 4], [0; 4]);
        for ((value, mask), byte) in value.iter_mut().zip(&mut mask).skip(skip).zip(now) {
            (*value, *mask) = (*byte, 0xFF);
        }
        at += now.len() as u64;
        rest = later;
        let write = DwordWrite { value: u32::from_le_bytes(value), mask: u32::from_le_bytes(mask) };
        Some((register, write))
    })
}

/// Bytes of the first dword that an access at `offset` leaves out.
fn skip(offset: u64) -> usize {
    usize::from(offset.to_le_bytes()[0] & 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_unaligned_write_becomes_dwords_with_byte_enables() {
        let writes: Vec<_> = dword_writes(0x0E, &[1, 2, 3, 4, 5, 6, 7]).collect();
        assert_eq!(
            writes,
            [
                (0x0C, DwordWrite { value: 0x0201_0000, mask: 0xFFFF_0000 }),
                (0x10, DwordWrite { value: 0x0605_0403, mask: 0xFFFF_FFFF }),
                (0x14, DwordWrite { value: 0x0000_0007, mask: 0x0000_00FF }),
            ]
        );
    }

    proptest! {
        #[test]
        fn bytes_written_are_bytes_read(offset in 0u64..64, data in proptest::collection::vec(any::<u8>(), 0..32)) {
            let mut memory = [0u32; 32];
            for (register, write) in dword_writes(offset, &data) {
                let word = &mut memory[register as usize / 4];
                *word = write.merge(*word, u32::MAX);
            }
            let mut read = vec![0; data.len()];
            read_bytes(offset, &mut read, |register| memory[register as usize / 4]);
            prop_assert_eq!(read, data);
        }

        #[test]
        fn accesses_beyond_the_end_are_refused(offset: u64, length: usize) {
            let inside = offset.checked_add(length as u64).is_some_and(|end| end <= 4096);
            prop_assert_eq!(check_config_access(offset, length).is_ok(), inside);
        }
    }
}
