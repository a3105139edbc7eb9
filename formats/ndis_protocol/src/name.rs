//! Counted strings: names of switches, VPorts, VMs and queues (SPEC-NDIS-SRIOV §0.4).

use core::fmt;

use thiserror::Error;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{ParseError, WireStructure};

/// UTF-16 units in a counted string's field.
const FIELD_UNITS: usize = 257;

/// IF_COUNTED_STRING: a length in bytes and 257 UTF-16 units, the last of which stays a terminator.
#[derive(Copy, Clone, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NdisCountedString {
    /// Bytes in use, always even.
    pub length: U16,
    /// UTF-16 units, little endian.
    pub string: [U16; FIELD_UNITS],
}

const _: () = assert!(size_of::<NdisCountedString>() == 516);

impl fmt::Debug for NdisCountedString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Name::from_wire(self) {
            Ok(name) => write!(f, "{:?}", name.as_str()),
            Err(error) => write!(f, "<{error}>"),
        }
    }
}

/// Why text or bytes are not a name.
#[derive(Copy, Clone, Debug, Eq, Error, PartialEq)]
pub enum NameError {
    /// More than [`Name::MAX_UNITS`] UTF-16 units.
    #[error("it is longer than 256 UTF-16 units; shorten it")]
    TooLong,
    /// A length in bytes that is odd.
    #[error("its length in bytes is odd")]
    OddLength,
    /// Half of a surrogate pair.
    #[error("it is not UTF-16")]
    NotUtf16,
    /// A control character, which has no place in a name that people and logs see.
    #[error("it contains a control character; remove it")]
    ControlCharacter,
}

impl NameError {
    const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "it is longer than 256 UTF-16 units",
            Self::OddLength => "its length in bytes is odd",
            Self::NotUtf16 => "it is not UTF-16",
            Self::ControlCharacter => "it contains a control character",
        }
    }
}

/// A name: at most 256 UTF-16 units of text without control characters. May be empty.
#[derive(Clone, Default, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct Name(String);

impl Name {
    /// The most UTF-16 units a name has; one more stays free in the field for a terminator.
    pub const MAX_UNITS: usize = FIELD_UNITS - 1;

    /// Checks a text.
    ///
    /// # Errors
    /// [`NameError::TooLong`] or [`NameError::ControlCharacter`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.encode_utf16().count() > Self::MAX_UNITS {
            return Err(NameError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::ControlCharacter);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`NameError`] if it is not a name.
    pub fn from_wire(wire: &NdisCountedString) -> Result<Self, NameError> {
        let length = usize::from(wire.length.get());
        if length % 2 != 0 {
            return Err(NameError::OddLength);
        }
        let units = length / 2;
        if units > Self::MAX_UNITS {
            return Err(NameError::TooLong);
        }
        let text: Result<String, _> =
            char::decode_utf16(wire.string.iter().take(units).map(|unit| unit.get())).collect();
        Self::new(&text.map_err(|_| NameError::NotUtf16)?)
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> NdisCountedString {
        let mut wire = NdisCountedString { length: U16::ZERO, string: [U16::ZERO; FIELD_UNITS] };
        let mut length = 0_u16;
        for (slot, unit) in wire.string.iter_mut().take(Self::MAX_UNITS).zip(self.0.encode_utf16())
        {
            *slot = U16::new(unit);
            length += 2;
        }
        wire.length = U16::new(length);
        wire
    }

    /// Reads the wire form of a structure's member.
    pub(crate) fn from_member<W: WireStructure>(
        member: &'static str,
        wire: &NdisCountedString,
    ) -> Result<Self, ParseError> {
        Self::from_wire(wire).map_err(|error| ParseError::Name {
            structure: W::NAME,
            member,
            reason: error.reason(),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<&str> for Name {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_name;
    use proptest::prelude::*;

    #[test]
    fn the_wire_form_is_utf16_with_a_length_in_bytes() {
        let wire = Name::new("aé😀").unwrap().to_wire();
        assert_eq!(wire.length.get(), 8);
        assert_eq!(wire.as_bytes()[..10], [8, 0, 0x61, 0, 0xE9, 0, 0x3D, 0xD8, 0x00, 0xDE]);
        assert!(wire.as_bytes()[10..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        assert_eq!(Name::new(&"x".repeat(257)), Err(NameError::TooLong));
        assert_eq!(Name::new(&"😀".repeat(129)), Err(NameError::TooLong));
        assert_eq!(Name::new("two\nlines"), Err(NameError::ControlCharacter));
        let mut wire = Name::new("x").unwrap().to_wire();
        wire.length = U16::new(3);
        assert_eq!(Name::from_wire(&wire), Err(NameError::OddLength));
        wire.length = U16::new(514);
        assert_eq!(Name::from_wire(&wire), Err(NameError::TooLong));
        wire.length = U16::new(2);
        wire.string[0] = U16::new(0xD800);
        assert_eq!(Name::from_wire(&wire), Err(NameError::NotUtf16));
    }

    proptest! {
        #[test]
        fn names_round_trip(name in any_name()) {
            prop_assert_eq!(Name::from_wire(&name.to_wire()), Ok(name));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 516)) {
            let wire = NdisCountedString::read_from_bytes(&bytes).unwrap();
            if let Ok(name) = Name::from_wire(&wire) {
                prop_assert!(name.as_str().encode_utf16().count() <= Name::MAX_UNITS);
            }
        }
    }
}
