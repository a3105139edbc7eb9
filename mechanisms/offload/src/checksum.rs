//! The Internet checksum (RFC 1071) as a sum that can be taken piecewise and combined at any offset.

/// A one's-complement sum of 16-bit words, not yet folded.
///
/// Kept in the machine's byte order while it grows (RFC 1071 §2 B), so that adding bytes is adding words.
/// Bytes that begin at an odd offset of the summed message are added with [`Sum::add_bytes_at`].
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of `bytes`, the first of which is at an even offset.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self(u64::from(fold_native(sum_native(bytes))))
    }

    /// Adds bytes that begin at an even offset of the message.
    #[inline]
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(Self::of(bytes));
    }

    /// Adds bytes that begin at `offset` of the message; only its parity matters.
    #[inline]
    pub fn add_bytes_at(&mut self, offset: usize, bytes: &[u8]) {
        self.add_at(offset, Self::of(bytes));
    }

    /// Adds a 16-bit word at an even offset.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        self.0 += u64::from(word.to_be());
    }

    /// Adds a 32-bit word at an even offset.
    #[inline]
    pub fn add_long(&mut self, word: u32) {
        self.0 += u64::from(word.to_be());
    }

    /// Adds the sum of another part of the message, which begins at an even offset.
    #[inline]
    pub fn add(&mut self, part: Self) {
        // Folded before adding, so that no number of parts can overflow in practice (2^47 of them would).
        self.0 += u64::from(fold_native(part.0));
    }

    /// Adds the sum of another part of the message that begins at `offset`; only its parity matters.
    #[inline]
    pub fn add_at(&mut self, offset: usize, part: Self) {
        let folded = fold_native(part.0);
        // RFC 1071 §2 B: the sum of bytes displaced by one is the sum with its bytes swapped.
        self.0 += u64::from(if offset & 1 == 1 { folded.swap_bytes() } else { folded });
    }

    /// The sum folded to 16 bits, as the number it is on the wire.
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(fold_native(self.0))
    }

    /// What goes into a checksum field: the complement of the folded sum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Whether a message summed together with its checksum field is intact.
    #[inline]
    pub fn is_intact(self) -> bool {
        fold_native(self.0) == 0xFFFF
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded below 2^16 before the cast")]
fn fold_native(sum: u64) -> u16 {
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + ((sum >> 16) & 0xFFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    sum as u16
}

/// Bytes taken in one step of the vectorized loop.
const STEP: usize = 64;

#[inline(always)]
fn sum_native(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    let (steps, rest) = bytes.as_chunks::<STEP>();
    if !steps.is_empty() {
        // A lane sums words modulo 2^64 and their high halves apart; the low halves' sum is what is left.
        // The compiler makes this an add, a shift and an add of whole vectors.
        let mut words = [0u64; STEP / 8];
        let mut highs = [0u64; STEP / 8];
        for step in steps {
            let (step, _) = step.as_chunks::<8>();
            for ((all, high), word) in words.iter_mut().zip(highs.iter_mut()).zip(step) {
                let word = u64::from_ne_bytes(*word);
                *all = all.wrapping_add(word);
                *high += word >> 32;
            }
        }
        // 2^18-byte messages leave the halves' sums of a lane below 2^45.
        for (all, high) in words.into_iter().zip(highs) {
            sum += high + all.wrapping_sub(high << 32);
        }
    }
    let (words, tail) = rest.as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        sum += (word & 0xFFFF_FFFF) + (word >> 32);
    }
    let (longs, tail) = tail.as_chunks::<4>();
    for long in longs {
        sum += u64::from(u32::from_ne_bytes(*long));
    }
    match *tail {
        [a, b, c] => sum += u64::from(u32::from_ne_bytes([a, b, c, 0])),
        [a, b] => sum += u64::from(u16::from_ne_bytes([a, b])),
        [a] => sum += u64::from(u16::from_ne_bytes([a, 0])),
        _ => {}
    }
    sum
}

/// The checksum that belongs into an IPv4 header, given the whole header (options included); the bytes
/// now in its checksum field count as zero.
#[inline]
pub fn ipv4_header_checksum(header: &[u8]) -> u16 {
    let (before, rest) = header.split_at(header.len().min(10));
    let mut sum = Sum::of(before);
    sum.add_bytes(rest.get(2..).unwrap_or_default());
    sum.checksum()
}

/// Computes and stores the checksum of an IPv4 header; `header` is exactly that, options included.
/// Returns whether the header was long enough to have one.
#[inline]
pub fn write_ipv4_header_checksum(header: &mut [u8]) -> bool {
    let Some(field) = header.get_mut(10..12) else { return false };
    field.copy_from_slice(&[0, 0]);
    let checksum = Sum::of(header).checksum();
    let Some(field) = header.get_mut(10..12) else { return false };
    field.copy_from_slice(&checksum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::of(&bytes).checksum(), 0x220d);
    }

    #[test]
    fn a_known_ipv4_header_gets_its_checksum() {
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xAA, 0xAA, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(ipv4_header_checksum(&header), 0xb861);
        assert!(write_ipv4_header_checksum(&mut header));
        assert_eq!(header[10..12], [0xb8, 0x61]);
        assert!(Sum::of(&header).is_intact());
        assert!(!write_ipv4_header_checksum(&mut [0; 11]));
    }

    #[test]
    fn all_ones_of_any_length_do_not_overflow() {
        for length in [0, 1, 2, 63, 64, 65, 9000, 1 << 18] {
            let bytes = vec![0xFF; length];
            assert_eq!(Sum::of(&bytes).fold(), reference(&bytes), "{length}");
        }
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_reference_sum(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), reference(&bytes));
        }

        #[test]
        fn a_message_may_be_summed_in_any_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..700),
            cuts in prop::collection::vec(0usize..700, 0..6),
            parts_first in any::<bool>(),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut sum = Sum::ZERO;
            for pair in cuts.windows(2) {
                let piece = &bytes[pair[0]..pair[1]];
                if parts_first {
                    sum.add_at(pair[0], Sum::of(piece));
                } else {
                    sum.add_bytes_at(pair[0], piece);
                }
            }
            prop_assert_eq!(sum.fold(), reference(&bytes));
        }

        #[test]
        fn words_are_bytes(word in any::<u16>(), long in any::<u32>()) {
            let mut sum = Sum::ZERO;
            sum.add_word(word);
            sum.add_long(long);
            let mut bytes = word.to_be_bytes().to_vec();
            bytes.extend(long.to_be_bytes());
            prop_assert_eq!(sum.fold(), reference(&bytes));
        }
    }
}
