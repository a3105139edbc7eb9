//! Address filtering by setup frames (HRM chapter 4.2.3).

/// Bytes of a setup frame.
pub(crate) const SETUP_FRAME_SIZE: usize = 192;

/// How addresses are filtered.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) enum Filter {
    /// After a reset: nothing is accepted, unless CSR6 says otherwise.
    None,
    /// One of 16 addresses.
    Perfect(Box<[[u8; 6]; 16]>),
    /// None of 16 addresses.
    Inverse(Box<[[u8; 6]; 16]>),
    /// Group addresses by hash, and one other.
    Hash {
        /// A bit for each value of the hash.
        table: Box<[u16; 32]>,
        /// The one address.
        address: [u8; 6],
    },
    /// All addresses by hash.
    HashOnly {
        /// A bit for each value of the hash.
        table: Box<[u16; 32]>,
    },
}

/// The 16 bits that each longword of a setup frame carries.
fn half(frame: &[u8; SETUP_FRAME_SIZE], longword: usize) -> [u8; 2] {
    match frame.as_chunks::<4>().0.get(longword) {
        Some([low, high, ..]) => [*low, *high],
        None => [0; 2],
    }
}

fn address(frame: &[u8; SETUP_FRAME_SIZE], longword: usize) -> [u8; 6] {
    let [a, b] = half(frame, longword);
    let [c, d] = half(frame, longword + 1);
    let [e, f] = half(frame, longword + 2);
    [a, b, c, d, e, f]
}

impl Filter {
    /// The filter that a setup frame describes; the two bits are those of its descriptor.
    pub(crate) fn of(frame: &[u8; SETUP_FRAME_SIZE], filter_1: bool, filter_0: bool) -> Self {
        let addresses = || Box::new(std::array::from_fn(|entry| address(frame, 3 * entry)));
        let table = || Box::new(std::array::from_fn(|word| u16::from_le_bytes(half(frame, word))));
        match (filter_1, filter_0) {
            (false, false) => Self::Perfect(addresses()),
            (false, true) => Self::Hash { table: table(), address: address(frame, 39) },
            (true, false) => Self::Inverse(addresses()),
            (true, true) => Self::HashOnly { table: table() },
        }
    }

    /// Whether a frame to `destination` passes.
    pub(crate) fn passes(&self, destination: &[u8; 6]) -> bool {
        let group = destination[0] & 1 != 0;
        match self {
            Self::None => false,
            Self::Perfect(addresses) => addresses.contains(destination),
            Self::Inverse(addresses) => !addresses.contains(destination),
            Self::Hash { table, .. } if group => in_table(table, destination),
            Self::Hash { address, .. } => address == destination,
            Self::HashOnly { table } => in_table(table, destination),
        }
    }
}

fn in_table(table: &[u16; 32], destination: &[u8; 6]) -> bool {
    let hash = hash(destination);
    table.get(usize::from(hash / 16)).is_some_and(|word| word >> (hash % 16) & 1 != 0)
}

/// The hash of an address: the low 9 bits of its CRC.
pub(crate) fn hash(address: &[u8; 6]) -> u16 {
    let [low, high, ..] = (!crc32(address)).to_le_bytes();
    u16::from_le_bytes([low, high]) & 0x1FF
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut value = 0;
    let mut index = 0;
    while value < 256u32 {
        let mut crc = value;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
        {
            table[index] = crc;
        }
        index += 1;
        value += 1;
    }
    table
};

/// The frame check sequence of Ethernet, to be sent least significant byte first.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        let entry = CRC_TABLE.get(usize::from(low ^ byte)).copied().unwrap_or(0);
        crc >> 8 ^ entry
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_ethernet_and_the_broadcast_address_has_the_last_hash() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(hash(&[0xFF; 6]), 0xFF, "as drivers know");
    }

    fn setup(addresses: &[[u8; 6]]) -> [u8; SETUP_FRAME_SIZE] {
        let mut frame = [0; SETUP_FRAME_SIZE];
        for entry in 0..16 {
            let address = addresses.get(entry).unwrap_or(&addresses[0]);
            for (word, pair) in address.chunks(2).enumerate() {
                frame[entry * 12 + word * 4..][..2].copy_from_slice(pair);
            }
        }
        frame
    }

    #[test]
    fn perfect_and_inverse_filters_know_their_addresses() {
        let mine = [2, 0, 0, 0, 0, 1];
        let frame = setup(&[mine, [0xFF; 6]]);
        let perfect = Filter::of(&frame, false, false);
        let inverse = Filter::of(&frame, true, false);
        for (address, passes) in [(mine, true), ([0xFF; 6], true), ([2, 0, 0, 0, 0, 2], false)] {
            assert_eq!(perfect.passes(&address), passes);
            assert_eq!(inverse.passes(&address), !passes);
        }
        assert!(!Filter::None.passes(&mine));
    }

    #[test]
    fn a_hash_filter_takes_groups_by_hash_and_one_address() {
        let (mine, group) = ([2, 0, 0, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]);
        let mut frame = [0; SETUP_FRAME_SIZE];
        let bit = hash(&group);
        frame[usize::from(bit / 16) * 4 + usize::from(bit % 16 / 8)] |= 1 << (bit % 8);
        for (word, pair) in mine.chunks(2).enumerate() {
            frame[156 + word * 4..][..2].copy_from_slice(pair);
        }
        let filter = Filter::of(&frame, false, true);
        assert!(filter.passes(&mine) && filter.passes(&group));
        assert!(!filter.passes(&[2, 0, 0, 0, 0, 2]) && !filter.passes(&[0xFF; 6]));
        let only = Filter::of(&frame, true, true);
        assert!(only.passes(&group) && !only.passes(&[0xFF; 6]));
    }
}
