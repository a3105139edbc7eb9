//! Ethernet headers and VLAN tags.

/// Bytes of one 802.1Q tag.
pub const VLAN_TAG_LEN: usize = 4;
/// 802.1Q customer tag.
pub const TPID_8021Q: u16 = 0x8100;
/// 802.1ad service tag.
pub const TPID_8021AD: u16 = 0x88A8;
/// The older stacked tag that switches still send.
pub const TPID_QINQ: u16 = 0x9100;
/// IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86DD;
/// Link layer discovery.
pub const ETHERTYPE_LLDP: u16 = 0x88CC;

/// A VLAN tag as it stands in a frame.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct VlanTag {
    /// Tag protocol identifier: 0x8100, 0x88A8 or 0x9100.
    pub tpid: u16,
    /// Tag control information: priority (3 bits), drop eligible (1), VLAN id (12).
    pub tci: u16,
}

impl VlanTag {
    /// An 802.1Q tag.
    pub const fn dot1q(tci: u16) -> Self {
        Self { tpid: TPID_8021Q, tci }
    }

    /// VLAN id, 0 to 4095.
    #[inline]
    pub const fn vlan_id(self) -> u16 {
        self.tci & 0xFFF
    }

    /// Priority code point, 0 to 7.
    #[inline]
    pub const fn priority(self) -> u16 {
        self.tci >> 13
    }

    /// The four bytes that follow the source address.
    #[inline]
    pub const fn to_bytes(self) -> [u8; VLAN_TAG_LEN] {
        let [t0, t1] = self.tpid.to_be_bytes();
        let [c0, c1] = self.tci.to_be_bytes();
        [t0, t1, c0, c1]
    }
}

/// Whether an ethertype announces a VLAN tag.
#[inline(always)]
pub(crate) const fn is_tpid(ethertype: u16) -> bool {
    matches!(ethertype, TPID_8021Q | TPID_8021AD | TPID_QINQ)
}

/// The Ethernet header of a frame, with its outer VLAN tag if there is one.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct EtherHeader {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// The outer VLAN tag.
    pub tag: Option<VlanTag>,
    /// What follows the addresses and the outer tag; for a doubly tagged frame this is the inner TPID.
    pub ethertype: u16,
}

impl EtherHeader {
    /// Reads the header; `None` if the bytes end inside it.
    #[inline]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (head, rest) = frame.split_first_chunk::<14>()?;
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, e0, e1] = head;
        let mut ethertype = u16::from_be_bytes([e0, e1]);
        let mut tag = None;
        if is_tpid(ethertype) {
            let &[c0, c1, i0, i1] = rest.first_chunk::<4>()?;
            tag = Some(VlanTag { tpid: ethertype, tci: u16::from_be_bytes([c0, c1]) });
            ethertype = u16::from_be_bytes([i0, i1]);
        }
        Some(Self {
            destination: [d0, d1, d2, d3, d4, d5],
            source: [s0, s1, s2, s3, s4, s5],
            tag,
            ethertype,
        })
    }

    /// Bytes of the header in the frame, outer tag included.
    #[inline]
    pub const fn len(&self) -> usize {
        if self.tag.is_some() { 18 } else { 14 }
    }

    /// Never true.
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// Inserts a tag after the source address of the `length` frame bytes at the start of `buffer`.
///
/// Returns the new length, `length + 4`; `None`, with nothing changed, if there are no two addresses or the
/// buffer has no room.
#[inline]
pub fn insert_vlan_tag(buffer: &mut [u8], length: usize, tag: VlanTag) -> Option<usize> {
    let end = length.checked_add(VLAN_TAG_LEN)?;
    let tail = buffer.get_mut(12..end)?;
    tail.copy_within(..tail.len().checked_sub(VLAN_TAG_LEN)?, VLAN_TAG_LEN);
    *tail.first_chunk_mut::<VLAN_TAG_LEN>()? = tag.to_bytes();
    Some(end)
}

/// Removes the outer tag from the `length` frame bytes at the start of `buffer`.
///
/// Returns the tag; the frame is then `length - 4` bytes. `None`, with nothing changed, if there is no
/// whole tag.
#[inline]
pub fn strip_vlan_tag(buffer: &mut [u8], length: usize) -> Option<VlanTag> {
    let tail = buffer.get_mut(..length)?.get_mut(12..)?;
    let &[t0, t1, c0, c1] = tail.first_chunk::<VLAN_TAG_LEN>()?;
    let tag = VlanTag { tpid: u16::from_be_bytes([t0, t1]), tci: u16::from_be_bytes([c0, c1]) };
    if !is_tpid(tag.tpid) {
        return None;
    }
    tail.copy_within(VLAN_TAG_LEN.., 0);
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tag_inserted_is_the_tag_stripped(
            frame in prop::collection::vec(any::<u8>(), 14..200), tci in any::<u16>()
        ) {
            let mut buffer = frame.clone();
            buffer.resize(frame.len() + 4, 0);
            let tag = VlanTag::dot1q(tci);
            let length = insert_vlan_tag(&mut buffer, frame.len(), tag).unwrap();
            prop_assert_eq!(length, frame.len() + 4);
            prop_assert_eq!(EtherHeader::read(&buffer).unwrap().tag, Some(tag));
            prop_assert_eq!(strip_vlan_tag(&mut buffer, length), Some(tag));
            prop_assert_eq!(&buffer[..frame.len()], &frame[..]);
        }
    }

    #[test]
    fn a_frame_too_short_for_a_tag_stays_as_it_is() {
        let mut frame = [0x11; 15];
        frame[12] = 0x81;
        frame[13] = 0;
        let before = frame;
        assert_eq!(strip_vlan_tag(&mut frame, 15), None);
        assert_eq!(insert_vlan_tag(&mut frame, 14, VlanTag::dot1q(1)), None);
        assert_eq!(insert_vlan_tag(&mut frame, 8, VlanTag::dot1q(1)), None);
        assert_eq!(EtherHeader::read(&frame), None);
        assert_eq!(frame, before);
    }

    #[test]
    fn an_untagged_frame_has_nothing_to_strip() {
        let mut frame = [0x22; 60];
        assert_eq!(strip_vlan_tag(&mut frame, 60), None);
        assert_eq!(EtherHeader::read(&frame).unwrap().len(), 14);
    }
}
