//! The beginning of an RNDIS PACKET that lies in one piece: read once, into a local copy.

use netvsp_protocol::{ParseError, packet::RndisPacket};
use shared_memory::SharedSlice;

/// Bytes of a message's beginning that are copied out where there is per-packet information: header, elements, and as
/// a rule the frame's headers.
pub(crate) const START: usize = 192;

/// The message at the front of `bytes`, if it is a frame of which nothing is said: from its header alone, of which
/// everything that is believed comes from one look. `None` for any other; then look at [`START`] bytes, anew.
#[inline(always)]
pub(crate) fn bare(bytes: SharedSlice<'_>) -> Option<Result<RndisPacket, ParseError>> {
    // With a frame there are more bytes than the header's 44.
    let words: [u64; 6] = bytes.load_words()?;
    let [.., info_length, _] = words;
    if info_length & 0xFFFF_FFFF != 0 {
        return None;
    }
    let header = words.map(u64::to_le_bytes);
    let available = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    Some(RndisPacket::parse(header.as_flattened(), available))
}

/// The first 16 bytes of a frame in one piece; zeros beyond its end.
#[inline(always)]
pub(crate) fn head(frame: SharedSlice<'_>) -> [u64; 2] {
    frame.load_words().unwrap_or_else(|| {
        let mut head = [[0; 8]; 2];
        frame.read_into(head.as_flattened_mut());
        head.map(u64::from_le_bytes)
    })
}

#[cfg(test)]
mod tests {
    use netvsp_protocol::packet::{PacketLayout, PerPacketInfo};
    use proptest::prelude::*;
    use shared_memory::{PageSize, SharedMapping};

    use super::*;

    proptest! {
        /// Whatever stands there, the quick look says what the whole one says, or nothing.
        #[test]
        fn a_bare_message_is_read_as_any_other(
            random in proptest::collection::vec(prop_oneof![0..70u32, any::<u32>()], 20),
            emitted: bool, hash: Option<u32>, length in 0..32u32, cut in 0..=80usize,
        ) {
            let mut bytes: Vec<u8> = random.iter().flat_map(|word| word.to_le_bytes()).collect();
            if emitted {
                let info = PerPacketInfo { hash, ..PerPacketInfo::default() };
                let layout = PacketLayout::packed(&info, length.min(20));
                layout.emit(&info, &mut bytes).unwrap();
            }
            let (memory, _) = SharedMapping::create("test", 4096, PageSize::Base).unwrap();
            let slice = memory.slice(8, cut).unwrap();
            slice.write_from(&bytes);
            let whole = RndisPacket::parse(&bytes[..cut], cut as u32);
            match bare(slice) {
                Some(read) => prop_assert_eq!(read, whole),
                None => prop_assert!(cut < 48 || bytes[32..36] != [0; 4]),
            }
        }
    }
}
