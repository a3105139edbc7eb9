//! Which versions to speak: the host's list, and the guest's choice.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use crate::{IntegrationProtocolError, Version, error::prefix, message::VersionWire};

/// Versions in one message at most, of framework and service together.
pub const MAX_VERSIONS: usize = 100;

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Counts {
    framework: U16,
    message: U16,
    reserved: U32,
}

const _: () = assert!(size_of::<Counts>() == 8);

/// What two ends speak.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Versions {
    /// Version of the framework.
    pub framework: Version,
    /// Version of the service's messages.
    pub message: Version,
}

/// The body of a negotiation. A host's has all that it speaks, a guest's answer one version of each kind, or none if it
/// speaks none of them.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct Negotiate {
    /// Versions of the framework.
    pub framework: Vec<Version>,
    /// Versions of the service's messages.
    pub message: Vec<Version>,
}

impl Negotiate {
    /// A body as it came, which may be longer.
    ///
    /// # Errors
    /// [`IntegrationProtocolError`].
    pub fn parse(body: &[u8]) -> Result<Self, IntegrationProtocolError> {
        const WHAT: &str = "a negotiation";
        let (counts, rest) = prefix::<Counts>(WHAT, body)?;
        let (framework, message) =
            (usize::from(counts.framework.get()), usize::from(counts.message.get()));
        let count = framework + message;
        if count > MAX_VERSIONS {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            return Err(IntegrationProtocolError::field(WHAT, "the number of versions", count));
        }
        let truncated = || IntegrationProtocolError::Truncated {
            what: WHAT,
            needed: size_of::<Counts>() + count * size_of::<VersionWire>(),
            length: body.len(),
        };
        let (framework, rest) = <[VersionWire]>::ref_from_prefix_with_elems(rest, framework)
            .map_err(|_| truncated())?;
        let (message, _) =
            <[VersionWire]>::ref_from_prefix_with_elems(rest, message).map_err(|_| truncated())?;
        let versions =
            |list: &[VersionWire]| list.iter().map(|version| (*version).into()).collect();
        Ok(Self { framework: versions(framework), message: versions(message) })
    }

    /// The body's bytes.
    ///
    /// # Errors
    /// [`IntegrationProtocolError::Field`]: there are more than [`MAX_VERSIONS`].
    pub fn emit(&self) -> Result<Vec<u8>, IntegrationProtocolError> {
        let count = self.framework.len() + self.message.len();
        let number = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        if count > MAX_VERSIONS {
            let (what, field) = ("a negotiation", "the number of versions");
            return Err(IntegrationProtocolError::field(what, field, number(count)));
        }
        let counts = Counts {
            framework: number(self.framework.len()).into(),
            message: number(self.message.len()).into(),
            reserved: 0.into(),
        };
        let mut body = counts.as_bytes().to_vec();
        for version in self.framework.iter().chain(&self.message) {
            body.extend_from_slice(VersionWire::from(*version).as_bytes());
        }
        Ok(body)
    }

    /// What an answer chose: `None` if the guest speaks none of the host's versions.
    ///
    /// # Errors
    /// [`IntegrationProtocolError::Field`]: it is no answer, as it has several.
    pub fn choice(&self) -> Result<Option<Versions>, IntegrationProtocolError> {
        match (self.framework.as_slice(), self.message.as_slice()) {
            (&[framework], &[message]) => Ok(Some(Versions { framework, message })),
            ([], _) | (_, []) => Ok(None),
            (framework, message) => Err(IntegrationProtocolError::field(
                "an answer to a negotiation",
                "the number of versions",
                u64::try_from(framework.len() + message.len()).unwrap_or(u64::MAX),
            )),
        }
    }
}
