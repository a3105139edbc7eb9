//! Strategies and properties shared by the tests of all structures.

use core::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

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

/// One value of some structure, whichever: so that the properties are compiled once and not for each.
pub(crate) trait Case: Debug {
    /// `parse(emit(x)) == x`, also with more bytes behind, and an error with fewer.
    fn round_trips(&self);

    /// Random bytes, and a valid structure with random bytes written over it, parse without panic; what parses
    /// round trips.
    fn survives(&self, noise: &[u8], damage: &[(u16, u8)]);
}

impl<T: NdisStructure + Debug + PartialEq> Case for T {
    fn round_trips(&self) {
        let mut bytes = self.emit();
        assert_meaning(&bytes, self);
        if let Some(fewer) = bytes.len().checked_sub(1) {
            let error = T::parse(&bytes[..fewer]).unwrap_err();
            assert_eq!(error.bytes_needed(), Some(bytes.len()), "{error}");
        }
        bytes.extend_from_slice(&[0xA5; 9]);
        assert_meaning(&bytes, self);
    }

    fn survives(&self, noise: &[u8], damage: &[(u16, u8)]) {
        let _ = T::parse(noise);
        let mut bytes = self.emit();
        for (position, value) in damage {
            let index = usize::from(*position) % bytes.len();
            bytes[index] = *value;
        }
        if let Ok(parsed) = T::parse(&bytes) {
            assert_meaning(&parsed.emit(), &parsed);
        }
    }
}

/// The values of a structure as cases.
pub(crate) fn cases<T>(values: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Box<dyn Case>>
where
    T: NdisStructure + Debug + PartialEq + 'static,
{
    values.prop_map(|value| Box::new(value) as Box<dyn Case>).boxed()
}

fn runner() -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

/// Runs [`Case::round_trips`].
pub(crate) fn check_round_trips(cases: &BoxedStrategy<Box<dyn Case>>) {
    let result = runner().run(cases, |case| {
        case.round_trips();
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Runs [`Case::survives`].
pub(crate) fn check_damage(cases: BoxedStrategy<Box<dyn Case>>) {
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    let damage = proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8);
    let result = runner().run(&(cases, noise, damage), |(case, noise, damage)| {
        case.survives(&noise, &damage);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// The two properties every structure has.
macro_rules! structure_properties {
    ($module:ident, $type:ty, $strategy:expr) => {
        mod $module {
            use super::*;

            #[test]
            fn round_trips() {
                crate::testing::check_round_trips(&crate::testing::cases::<$type>($strategy));
            }

            #[test]
            fn damaged_bytes_never_panic() {
                crate::testing::check_damage(crate::testing::cases::<$type>($strategy));
            }
        }
    };
}
pub(crate) use structure_properties;
