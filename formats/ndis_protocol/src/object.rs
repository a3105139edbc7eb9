//! NDIS_OBJECT_HEADER, the rules by which structures are read and written, and the array rule.
//!
//! Every structure has two types: its bytes (`Ndis…`, [`WireStructure`]) and its meaning (the name without
//! the prefix, [`NdisStructure`]). [`NdisStructure::parse`] is the only way from the first to the second.

use thiserror::Error;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::NdisStatus;

/// The header's object type of every structure of this crate (NDIS_OBJECT_TYPE_DEFAULT).
pub const NDIS_OBJECT_TYPE_DEFAULT: u8 = 0x80;

/// NDIS_OBJECT_HEADER: the four bytes every structure starts with (SPEC-NDIS-SRIOV §0.3).
#[derive(
    Copy, Clone, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NdisObjectHeader {
    /// [`NDIS_OBJECT_TYPE_DEFAULT`].
    pub object_type: u8,
    /// Revision of the structure, from 1.
    pub revision: u8,
    /// Bytes of the structure in that revision, without data that follow it.
    pub size: U16,
}

const _: () = assert!(size_of::<NdisObjectHeader>() == 4);

/// Why bytes are not the structure they should be.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ParseError {
    /// The buffer ends before the structure, its array or its data do.
    #[error(
        "{structure} takes {needed} bytes and the buffer has {got}; send a buffer of the size in BytesNeeded"
    )]
    TooShort {
        /// The structure's published name.
        structure: &'static str,
        /// Bytes it takes.
        needed: usize,
        /// Bytes there are.
        got: usize,
    },
    /// The header's type is not [`NDIS_OBJECT_TYPE_DEFAULT`].
    #[error("{structure} has object type {object_type:#04x} in its header; it must be 0x80")]
    ObjectType {
        /// The structure's published name.
        structure: &'static str,
        /// The type that was found.
        object_type: u8,
    },
    /// The header's revision is not one of the published ones.
    #[error(
        "{structure} has revision {revision} in its header; the highest published one is {highest}"
    )]
    Revision {
        /// The structure's published name.
        structure: &'static str,
        /// The revision that was found.
        revision: u8,
        /// The highest revision there is.
        highest: usize,
    },
    /// The header's size is not that of its revision.
    #[error("{structure} says {size} bytes in its header; revision {revision} has {expected}")]
    Size {
        /// The structure's published name.
        structure: &'static str,
        /// The revision in the header.
        revision: u8,
        /// The size that was found.
        size: u16,
        /// The size of that revision.
        expected: u16,
    },
    /// A member has a value that it may not have.
    #[error("{structure}.{member} may not be {value:#x}")]
    Member {
        /// The structure's published name.
        structure: &'static str,
        /// The member's published name.
        member: &'static str,
        /// The value that was found.
        value: u64,
    },
    /// A name is not text.
    #[error("{structure}.{member} is not a name: {reason}")]
    Name {
        /// The structure's published name.
        structure: &'static str,
        /// The member's published name.
        member: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ParseError {
    /// The status that answers such a request: the common rule of SPEC-NDIS-SRIOV §0.2.
    #[must_use]
    pub const fn status(&self) -> NdisStatus {
        match self {
            Self::TooShort { .. } => NdisStatus::INVALID_LENGTH,
            _ => NdisStatus::INVALID_PARAMETER,
        }
    }

    /// Bytes that the buffer should have had, when it was too short.
    #[must_use]
    pub const fn bytes_needed(&self) -> Option<usize> {
        match self {
            Self::TooShort { needed, .. } => Some(*needed),
            _ => None,
        }
    }
}

/// The bytes of a structure, in its highest revision.
///
/// Multi-byte members are unaligned little-endian integers and padding is spelled out, so the Rust type
/// has exactly the published offsets whatever the machine.
pub trait WireStructure: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// The published name, such as "NDIS_NIC_SWITCH_PARAMETERS".
    const NAME: &'static str;
    /// Bytes of each revision; the first entry is revision 1.
    const REVISIONS: &'static [u16];
    /// What `sizeof` of the highest revision is in C: its size with trailing padding.
    const SIZEOF: u16;

    /// The header.
    fn header(&self) -> &NdisObjectHeader;
    /// The header, to be filled in.
    fn header_mut(&mut self) -> &mut NdisObjectHeader;

    /// The highest revision.
    #[must_use]
    fn highest_revision() -> u8 {
        u8::try_from(Self::REVISIONS.len()).unwrap_or(u8::MAX)
    }

    /// Bytes of `revision`; 0 if there is no such revision.
    #[must_use]
    fn size_of_revision(revision: u8) -> u16 {
        usize::from(revision)
            .checked_sub(1)
            .and_then(|index| Self::REVISIONS.get(index))
            .copied()
            .unwrap_or(0)
    }

    /// Reads the structure from the front of `bytes` and returns it with its revision. Members that the
    /// revision does not have are zero.
    ///
    /// # Errors
    /// [`ParseError`] if the buffer is shorter than the revision, or type, revision or size of the
    /// header are not the published ones. A revision that is not published is refused, since nobody
    /// could know what its new members ask for.
    fn read(bytes: &[u8]) -> Result<(Self, u8), ParseError> {
        let structure = Self::NAME;
        let smallest = usize::from(Self::size_of_revision(1));
        let (header, _) = NdisObjectHeader::read_from_prefix(bytes)
            .map_err(|_| ParseError::TooShort { structure, needed: smallest, got: bytes.len() })?;
        let NdisObjectHeader { object_type, revision, size } = header;
        if object_type != NDIS_OBJECT_TYPE_DEFAULT {
            return Err(ParseError::ObjectType { structure, object_type });
        }
        let expected = Self::size_of_revision(revision);
        if expected == 0 {
            let highest = Self::REVISIONS.len();
            return Err(ParseError::Revision { structure, revision, highest });
        }
        let padded = revision == Self::highest_revision() && size.get() == Self::SIZEOF;
        if size.get() != expected && !padded {
            return Err(ParseError::Size { structure, revision, size: size.get(), expected });
        }
        let needed = usize::from(expected);
        let source = bytes.get(..needed).ok_or(ParseError::TooShort {
            structure,
            needed,
            got: bytes.len(),
        })?;
        let mut wire = Self::new_zeroed();
        if let Some(target) = wire.as_mut_bytes().get_mut(..needed) {
            target.copy_from_slice(source);
        }
        Ok((wire, revision))
    }

    /// The structure's bytes in `revision`, with its header filled in. A revision that does not exist
    /// becomes the nearest one that does.
    #[must_use]
    fn write(mut self, revision: u8) -> Vec<u8> {
        let revision = revision.clamp(1, Self::highest_revision());
        let size = Self::size_of_revision(revision);
        *self.header_mut() = NdisObjectHeader {
            object_type: NDIS_OBJECT_TYPE_DEFAULT,
            revision,
            size: U16::new(size),
        };
        let mut bytes = self.as_bytes().to_vec();
        bytes.truncate(usize::from(size));
        bytes
    }
}

/// Declares the bytes of a structure: each member with its offset, as in SPEC-NDIS-SRIOV §15, all of
/// them and the size of the highest revision checked at compile time.
macro_rules! wire_structure {
    (
        $(#[$doc:meta])*
        $type:ident = $name:literal, revisions [$($size:literal),+], sizeof $sizeof:literal {
            $($(#[$member_doc:meta])* $offset:literal $member:ident : $member_type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(
            Copy, Clone, Debug, Eq, PartialEq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $type {
            /// Type, revision and size.
            pub header: $crate::NdisObjectHeader,
            $($(#[$member_doc])* pub $member: $member_type,)*
        }

        const _: () = {
            let [.., highest] = [$($size),+];
            assert!(size_of::<$type>() == highest);
            assert!(size_of::<$type>() <= $sizeof);
            assert!(core::mem::offset_of!($type, header) == 0);
            $(assert!(core::mem::offset_of!($type, $member) == $offset);)*
        };

        impl $crate::WireStructure for $type {
            const NAME: &'static str = $name;
            const REVISIONS: &'static [u16] = &[$($size),+];
            const SIZEOF: u16 = $sizeof;

            fn header(&self) -> &$crate::NdisObjectHeader {
                &self.header
            }

            fn header_mut(&mut self) -> &mut $crate::NdisObjectHeader {
                &mut self.header
            }
        }
    };
}
pub(crate) use wire_structure;

/// The meaning of a structure: cannot hold nonsense.
pub trait NdisStructure: Sized {
    /// Reads the structure from the front of a buffer.
    ///
    /// # Errors
    /// [`ParseError`] for anything that is not a published form of the structure.
    fn parse(bytes: &[u8]) -> Result<Self, ParseError>;

    /// Writes the structure, in the lowest revision that can hold it unless its documentation says
    /// otherwise. `parse(emit(x)) == x`.
    fn emit(&self) -> Vec<u8>;
}

/// A structure without data behind it: its bytes alone determine its meaning.
pub trait FixedStructure: Sized {
    /// The bytes.
    type Wire: WireStructure;

    /// Turns bytes, whose header was checked, into meaning.
    ///
    /// # Errors
    /// [`ParseError::Member`] or [`ParseError::Name`] for members that mean nothing.
    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError>;

    /// Turns meaning into bytes; the header is filled in by [`WireStructure::write`].
    fn to_wire(&self) -> Self::Wire;

    /// The revision that [`NdisStructure::emit`] writes.
    fn revision(&self) -> u8 {
        Self::Wire::highest_revision()
    }

    /// Writes the structure in a given revision, which may leave members out; used to answer a caller
    /// in the revision it asked with.
    fn emit_as(&self, revision: u8) -> Vec<u8> {
        self.to_wire().write(revision)
    }
}

impl<T: FixedStructure> NdisStructure for T {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (wire, revision) = T::Wire::read(bytes)?;
        T::from_wire(&wire, revision)
    }

    fn emit(&self) -> Vec<u8> {
        self.to_wire().write(self.revision())
    }
}

/// Shorthand for a member that may not have its value.
pub(crate) fn member<W: WireStructure>(member: &'static str, value: impl Into<u64>) -> ParseError {
    ParseError::Member { structure: W::NAME, member, value: value.into() }
}

/// Where the elements of an array are, as its header says (SPEC-NDIS-SRIOV §15, array rule).
#[derive(Copy, Clone, Debug)]
pub(crate) struct ArrayLocation {
    pub(crate) first_element_offset: u32,
    pub(crate) num_elements: u32,
    pub(crate) element_size: u32,
}

impl ArrayLocation {
    /// The elements' bytes: they start at the offset and advance by the element size of the sender, never
    /// by a size compiled in here.
    ///
    /// `header_size` is where the array's own header ends, `smallest_element` the size of the element's
    /// first revision.
    ///
    /// # Errors
    /// [`ParseError::TooShort`] if the array goes past the buffer; [`ParseError::Member`] if it overlaps its
    /// header or its elements are smaller than they can be.
    pub(crate) fn elements<'a, W: WireStructure>(
        &self,
        bytes: &'a [u8],
        header_size: u16,
        smallest_element: u16,
    ) -> Result<Vec<&'a [u8]>, ParseError> {
        if self.num_elements == 0 {
            return Ok(Vec::new());
        }
        if self.first_element_offset < u32::from(header_size) {
            return Err(member::<W>("FirstElementOffset", self.first_element_offset));
        }
        if self.element_size < u32::from(smallest_element.max(1)) {
            return Err(member::<W>("ElementSize", self.element_size));
        }
        let offset = u64::from(self.first_element_offset);
        let needed = u64::from(self.num_elements) * u64::from(self.element_size) + offset;
        let (Ok(needed), Ok(start), Ok(step)) = (
            usize::try_from(needed),
            usize::try_from(self.first_element_offset),
            usize::try_from(self.element_size),
        ) else {
            return Err(member::<W>("NumElements", self.num_elements));
        };
        let array = bytes.get(start..needed).ok_or(ParseError::TooShort {
            structure: W::NAME,
            needed,
            got: bytes.len(),
        })?;
        Ok(array.chunks_exact(step).collect())
    }

    /// The location of elements written directly behind a header of `header_size` bytes.
    pub(crate) fn after_header(header_size: u16, elements: &[Vec<u8>], element_size: u16) -> Self {
        Self {
            first_element_offset: u32::from(header_size),
            num_elements: u32::try_from(elements.len()).unwrap_or(u32::MAX),
            element_size: u32::from(element_size),
        }
    }

    /// Appends the elements where [`ArrayLocation::after_header`] says they are, each padded to the element
    /// size.
    pub(crate) fn append(&self, bytes: &mut Vec<u8>, elements: &[Vec<u8>]) {
        let (Ok(start), Ok(step)) =
            (usize::try_from(self.first_element_offset), usize::try_from(self.element_size))
        else {
            return;
        };
        debug_assert_eq!(bytes.len(), start, "the header is written before its elements");
        for element in elements {
            let end = bytes.len().saturating_add(step);
            bytes.extend_from_slice(element);
            bytes.resize(end, 0);
        }
    }
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "the macro declares public structures, here within a test")]
mod tests {
    use super::*;
    use zerocopy::little_endian::U32;

    wire_structure! {
        /// Three revisions, the last with two bytes of padding in C.
        NdisSample = "NDIS_SAMPLE", revisions [8, 12, 14], sizeof 16 {
            /// Revision 1.
            4 first: U32,
            /// Revision 2.
            8 second: U32,
            /// Revision 3.
            12 third: U16,
        }
    }

    fn sample() -> NdisSample {
        NdisSample {
            header: NdisObjectHeader::default(),
            first: U32::new(1),
            second: U32::new(2),
            third: U16::new(3),
        }
    }

    #[test]
    fn a_lower_revision_has_fewer_members_and_they_read_as_zero() {
        let bytes = sample().write(2);
        assert_eq!(bytes, [0x80, 2, 12, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        let (read, revision) = NdisSample::read(&bytes).unwrap();
        assert_eq!((revision, read.second.get(), read.third.get()), (2, 2, 0));
    }

    #[test]
    fn the_padded_size_of_the_highest_revision_is_accepted() {
        let mut bytes = sample().write(3);
        bytes[2] = 16;
        assert!(NdisSample::read(&bytes).is_ok());
        let mut bytes = sample().write(2);
        bytes[2] = 16;
        assert_eq!(
            NdisSample::read(&bytes).unwrap_err(),
            ParseError::Size { structure: "NDIS_SAMPLE", revision: 2, size: 16, expected: 12 }
        );
    }

    #[test]
    fn headers_that_are_not_published_are_refused() {
        let mut wrong_type = sample().write(1);
        wrong_type[0] = 0x81;
        let error = NdisSample::read(&wrong_type).unwrap_err();
        assert_eq!(error.status(), NdisStatus::INVALID_PARAMETER);
        for revision in [0, 4, 255] {
            let mut bytes = sample().write(1);
            bytes[1] = revision;
            let error = NdisSample::read(&bytes).unwrap_err();
            assert!(matches!(error, ParseError::Revision { highest: 3, .. }), "{error}");
        }
    }

    #[test]
    fn a_buffer_shorter_than_the_revision_says_what_it_takes() {
        let bytes = sample().write(2);
        for length in 0..bytes.len() {
            let error = NdisSample::read(&bytes[..length]).unwrap_err();
            assert_eq!(error.status(), NdisStatus::INVALID_LENGTH);
            assert_eq!(error.bytes_needed(), Some(if length < 4 { 8 } else { 12 }));
        }
    }

    #[test]
    fn array_elements_advance_by_the_senders_element_size() {
        let bytes: Vec<u8> = (0..40).collect();
        let location = ArrayLocation { first_element_offset: 10, num_elements: 3, element_size: 9 };
        let elements = location.elements::<NdisSample>(&bytes, 8, 8).unwrap();
        assert_eq!(elements.iter().map(|e| e[0]).collect::<Vec<_>>(), [10, 19, 28]);
    }

    #[test]
    fn arrays_outside_their_buffer_are_refused() {
        let bytes = [0; 40];
        let refused = |first_element_offset, num_elements, element_size| {
            ArrayLocation { first_element_offset, num_elements, element_size }
                .elements::<NdisSample>(&bytes, 8, 8)
                .unwrap_err()
        };
        assert_eq!(refused(8, 5, 8).bytes_needed(), Some(48));
        assert!(refused(u32::MAX, u32::MAX, u32::MAX).bytes_needed().is_some());
        assert_eq!(refused(4, 1, 8).bytes_needed(), None);
        assert_eq!(refused(8, 1, 7).bytes_needed(), None);
        assert_eq!(refused(8, u32::MAX, 0).bytes_needed(), None);
    }
}
