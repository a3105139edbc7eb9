//! Strategies and properties shared by the tests of all structures.

use core::fmt::Debug;

use proptest::prelude::*;

use crate::{MacAddress, Name, NdisStructure};

/// Any name, the longest included.
pub(crate) fn any_name() -> impl Strategy<Value = Name> {
    prop_oneof![
        4 => "[^\\p{Cc}]{0,40}",
        1 => "[a-z]{256}",
        1 => "😀{128}",
    ]
    .prop_map(|text| Name::new(&text).unwrap())
}

/// Any MAC address.
pub(crate) fn any_mac() -> impl Strategy<Value = MacAddress> {
    any::<[u8; 6]>().prop_map(MacAddress::new)
}

/// Asserts what bytes mean.
pub(crate) fn assert_meaning<T: NdisStructure + Debug + PartialEq>(bytes: &[u8], meaning: &T) {
    assert_eq!(T::parse(bytes).as_ref(), Ok(meaning));
}

/// `parse(emit(x)) == x`, also with more bytes behind, and an error with fewer.
pub(crate) fn round_trips<T: NdisStructure + Debug + PartialEq>(meaning: &T) {
    let mut bytes = meaning.emit();
    assert_meaning(&bytes, meaning);
    if let Some(fewer) = bytes.len().checked_sub(1) {
        let error = T::parse(&bytes[..fewer]).unwrap_err();
        assert_eq!(error.bytes_needed(), Some(bytes.len()), "{error}");
    }
    bytes.extend_from_slice(&[0xA5; 9]);
    assert_meaning(&bytes, meaning);
}

/// Random bytes, and a valid structure with random bytes written over it, parse without panic; what parses
/// round trips.
pub(crate) fn survives<T: NdisStructure + Debug + PartialEq>(
    meaning: &T,
    noise: &[u8],
    damage: &[(u16, u8)],
) {
    let _ = T::parse(noise);
    let mut bytes = meaning.emit();
    for (position, value) in damage {
        let index = usize::from(*position) % bytes.len();
        bytes[index] = *value;
    }
    if let Ok(parsed) = T::parse(&bytes) {
        assert_meaning(&parsed.emit(), &parsed);
    }
}

/// The two properties every structure has.
macro_rules! structure_properties {
    ($module:ident, $type:ty, $strategy:expr) => {
        mod $module {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(128))]

                #[test]
                fn round_trips(meaning in $strategy) {
                    crate::testing::round_trips::<$type>(&meaning);
                }

                #[test]
                fn damaged_bytes_never_panic(
                    meaning in $strategy,
                    noise in proptest::collection::vec(any::<u8>(), 0..200),
                    damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8),
                ) {
                    crate::testing::survives::<$type>(&meaning, &noise, &damage);
                }
            }
        }
    };
}
pub(crate) use structure_properties;
