//! Regions: DEVICE_GET_REGION_INFO with its capability chain, DEVICE_GET_REGION_IO_FDS, REGION_READ,
//! REGION_WRITE and REGION_WRITE_MULTI.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProtocolError;

/// Bytes of [`RegionInfo`].
pub const REGION_INFO_SIZE: usize = size_of::<RegionInfo>();

/// `struct vfio_region_info`: payload of DEVICE_GET_REGION_INFO, and the start of its reply.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionInfo {
    /// In a request the largest reply payload wanted, in a reply the size of the full one, bytes.
    pub argsz: u32,
    /// See the constants.
    pub flags: u32,
    /// The region; see [`crate::PciRegion`].
    pub index: u32,
    /// Where the first capability starts, from the start of this structure; 0 without.
    pub cap_offset: u32,
    /// Bytes of the region; 0 when the device has no such region.
    pub size: u64,
    /// What to add to an offset in the region to get an offset in the file that may be mapped.
    pub offset: u64,
}

const _: () = assert!(size_of::<RegionInfo>() == 32);
const _: () = assert!(std::mem::offset_of!(RegionInfo, size) == 16);

impl RegionInfo {
    /// May be read.
    pub const FLAG_READ: u32 = 1 << 0;
    /// May be written.
    pub const FLAG_WRITE: u32 = 1 << 1;
    /// May be mapped; the file comes beside the full reply.
    pub const FLAG_MMAP: u32 = 1 << 2;
    /// Has capabilities.
    pub const FLAG_CAPS: u32 = 1 << 3;
}

/// `struct vfio_info_cap_header`: the start of each capability.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CapabilityHeader {
    /// Which capability.
    pub id: u16,
    /// Its version.
    pub version: u16,
    /// Where the next one starts, from the start of [`RegionInfo`]; 0 ends the chain.
    pub next: u32,
}

const _: () = assert!(size_of::<CapabilityHeader>() == 8);

impl CapabilityHeader {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`: parts of the region may be mapped.
    pub const SPARSE_MMAP: u16 = 1;
    /// `VFIO_REGION_INFO_CAP_TYPE`: a device-specific region.
    pub const TYPE: u16 = 2;
    /// `VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`: the MSI-X table may be mapped too.
    pub const MSIX_MAPPABLE: u16 = 3;
}

/// `struct vfio_region_info_cap_sparse_mmap` after its header, before the areas.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SparseMmapHeader {
    /// Areas that follow.
    pub nr_areas: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<SparseMmapHeader>() == 8);

/// `struct vfio_region_sparse_mmap_area`: a part of a region that may be mapped.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SparseMmapArea {
    /// First byte in the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<SparseMmapArea>() == 16);

/// Writes a region info reply with its sparse mmap capability, if there are areas. `argsz`, `cap_offset`
/// and the capability flag of `info` are filled in.
pub fn emit_region_info(
    mut info: RegionInfo,
    areas: &[SparseMmapArea],
    out: &mut Vec<u8>,
) -> Result<(), ProtocolError> {
    let capability = match areas {
        [] => 0,
        areas => size_of::<CapabilityHeader>() + size_of::<SparseMmapHeader>() + size_of_val(areas),
    };
    let too_long = || ProtocolError::TooLong(capability);
    info.argsz = u32::try_from(REGION_INFO_SIZE + capability).map_err(|_| too_long())?;
    info.flags &= !RegionInfo::FLAG_CAPS;
    info.cap_offset = 0;
    if !areas.is_empty() {
        info.flags |= RegionInfo::FLAG_CAPS;
        info.cap_offset = 32;
    }
    out.extend_from_slice(info.as_bytes());
    if !areas.is_empty() {
        let header = CapabilityHeader { id: CapabilityHeader::SPARSE_MMAP, version: 1, next: 0 };
        let nr_areas = u32::try_from(areas.len()).map_err(|_| too_long())?;
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(SparseMmapHeader { nr_areas, reserved: 0 }.as_bytes());
        out.extend_from_slice(areas.as_bytes());
    }
    Ok(())
}

/// Parses a region info reply: the structure and the areas of its sparse mmap capability. Unknown
/// capabilities are passed over; a chain that does not advance or leaves the payload is an error.
pub fn parse_region_info(
    payload: &[u8],
) -> Result<(RegionInfo, Vec<SparseMmapArea>), ProtocolError> {
    let broken = || ProtocolError::Payload {
        command: "reply to DEVICE_GET_REGION_INFO",
        size: payload.len(),
    };
    let (info, _) = RegionInfo::read_from_prefix(payload).map_err(|_| broken())?;
    let mut areas = Vec::new();
    let mut at = if info.flags & RegionInfo::FLAG_CAPS == 0 { 0 } else { info.cap_offset };
    let mut before = 0;
    while at != 0 {
        let start = usize::try_from(at).map_err(|_| broken())?;
        if start < REGION_INFO_SIZE || start <= before {
            return Err(broken());
        }
        before = start;
        let bytes = payload.get(start..).ok_or_else(broken)?;
        let (header, rest) = CapabilityHeader::read_from_prefix(bytes).map_err(|_| broken())?;
        if header.id == CapabilityHeader::SPARSE_MMAP {
            let (sparse, rest) = SparseMmapHeader::read_from_prefix(rest).map_err(|_| broken())?;
            let count = usize::try_from(sparse.nr_areas).map_err(|_| broken())?;
            let length = count.checked_mul(size_of::<SparseMmapArea>()).ok_or_else(broken)?;
            let found = rest.get(..length).ok_or_else(broken)?;
            areas.extend(
                found
                    .chunks_exact(size_of::<SparseMmapArea>())
                    .filter_map(|bytes| SparseMmapArea::read_from_bytes(bytes).ok()),
            );
        }
        at = header.next;
    }
    Ok((info, areas))
}

/// Payload of DEVICE_GET_REGION_IO_FDS, and the start of its reply.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionIoFds {
    /// In a request the largest reply payload wanted, in a reply the size of the full one, bytes.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// In a reply, the [`IoFdSubRegion`]s that follow.
    pub count: u32,
}

impl RegionIoFds {
    /// Bytes of this structure, as `argsz` says them.
    pub const SIZE: u32 = 16;
}

const _: () = assert!(size_of::<RegionIoFds>() == RegionIoFds::SIZE as usize);

/// One part of a region for which a write is announced on a descriptor.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoFdSubRegion {
    /// First byte in the region.
    pub offset: u64,
    /// Bytes; 0 when the width of the access does not matter.
    pub size: u64,
    /// Which of the descriptors beside the message.
    pub fd_index: u32,
    /// An [`IoFdKind`].
    pub kind: u32,
    /// `KVM_IOEVENTFD_FLAG_*` or `KVM_IOREGION_*`.
    pub flags: u32,
    /// 0.
    pub padding: u32,
    /// The value an ioeventfd matches, or what an ioregionfd says back.
    pub data: u64,
}

const _: () = assert!(size_of::<IoFdSubRegion>() == 40);

/// How a write is announced.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum IoFdKind {
    /// An eventfd is signalled; the value is lost unless it is matched.
    IoEventFd = 0,
    /// A message on a socket carries offset and value.
    IoRegionFd = 1,
}

/// Payload of REGION_READ and REGION_WRITE, before the data, and of their replies.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionAccess {
    /// First byte in the region.
    pub offset: u64,
    /// The region; see [`crate::PciRegion`].
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

const _: () = assert!(size_of::<RegionAccess>() == 16);

/// One write of REGION_WRITE_MULTI.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WriteMultiEntry {
    /// First byte in the region.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// Bytes of `data` that count, 1 to 8.
    pub count: u32,
    /// The bytes to write, from the start.
    pub data: [u8; 8],
}

const _: () = assert!(size_of::<WriteMultiEntry>() == 24);

impl WriteMultiEntry {
    /// The bytes to write; `None` when the count is over 8.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.data.get(..usize::try_from(self.count).ok()?)
    }
}

/// The writes of one REGION_WRITE_MULTI, each with at most 8 bytes of data.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct WriteMulti<'a> {
    /// Whole [`WriteMultiEntry`]s.
    entries: &'a [u8],
}

impl<'a> WriteMulti<'a> {
    /// From the bytes of whole [`WriteMultiEntry`]s; `None` if there is a part of one, or a count over 8.
    pub fn new(entries: &'a [u8]) -> Option<Self> {
        let writes = Self { entries };
        (entries.len().is_multiple_of(size_of::<WriteMultiEntry>())
            && writes.iter().all(|write| write.bytes().is_some()))
        .then_some(writes)
    }

    /// From a payload: a 64-bit count and as many entries.
    pub(crate) fn parse(payload: &'a [u8]) -> Option<Self> {
        let (count, entries) = u64::read_from_prefix(payload).ok()?;
        let writes = Self::new(entries)?;
        (writes.len() == count).then_some(writes)
    }

    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.len().as_bytes());
        out.extend_from_slice(self.entries);
    }

    /// How many writes.
    pub fn len(&self) -> u64 {
        (self.entries.len() / size_of::<WriteMultiEntry>()) as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The writes, in order.
    pub fn iter(&self) -> impl Iterator<Item = WriteMultiEntry> + use<'a> {
        self.entries
            .chunks_exact(size_of::<WriteMultiEntry>())
            .filter_map(|bytes| WriteMultiEntry::read_from_bytes(bytes).ok())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_region_with_doorbell_pages_is_as_published() {
        let info = RegionInfo { flags: 7, index: 0, size: 0x1_0000, ..RegionInfo::default() };
        let areas = [
            SparseMmapArea { offset: 0, size: 0x1000 },
            SparseMmapArea { offset: 0x2000, size: 0x1000 },
        ];
        let mut bytes = Vec::new();
        emit_region_info(info, &areas, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 80);
        assert_eq!(&bytes[0..16], &[80, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(&bytes[32..48], &[1, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let (parsed, found) = parse_region_info(&bytes).unwrap();
        assert_eq!((parsed.argsz, parsed.cap_offset, found.as_slice()), (80, 32, &areas[..]));
    }

    #[test]
    fn a_capability_chain_that_loops_is_refused() {
        let info = RegionInfo { flags: 8, cap_offset: 32, ..RegionInfo::default() };
        let mut bytes = info.as_bytes().to_vec();
        bytes.extend(CapabilityHeader { id: 99, version: 1, next: 32 }.as_bytes());
        assert!(parse_region_info(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn parse_gives_back_what_was_emitted(
            size: u64, offset: u64, index: u32,
            areas in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20)
        ) {
            let areas: Vec<_> =
                areas.into_iter().map(|(offset, size)| SparseMmapArea { offset, size }).collect();
            let info = RegionInfo { flags: 3, index, size, offset, ..RegionInfo::default() };
            let mut bytes = Vec::new();
            emit_region_info(info, &areas, &mut bytes).unwrap();
            let (parsed, found) = parse_region_info(&bytes).unwrap();
            prop_assert_eq!(parsed.argsz as usize, bytes.len());
            prop_assert_eq!((parsed.size, parsed.offset, parsed.index), (size, offset, index));
            prop_assert_eq!(found, areas);
        }

        #[test]
        fn random_replies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_region_info(&bytes);
        }
    }
}
