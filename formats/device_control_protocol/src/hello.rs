//! How a connection starts, and who is at its ends.

use core::fmt;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of one connection to a device, never used twice by the same server. Requests and subscriptions belong to it
/// and end with it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}", self.0)
    }
}

/// Name of an overlying driver, or of a device: 1 to 64 bytes of printable ASCII without spaces.
///
/// An overlying driver is known by its name, not by its connection: whoever allocated a VF is the only one allowed to
/// free it (SPEC-NDIS-SRIOV §1), also after it was restarted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DriverName(String);

/// A name that is not one.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a name has 1 to {} printable ASCII characters and no space", DriverName::MAX_LENGTH)]
pub struct NameError;

impl DriverName {
    /// Most bytes of a name.
    pub const MAX_LENGTH: usize = 64;

    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] if it is empty, too long or has characters that a log line should not have.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty()
            || name.len() > Self::MAX_LENGTH
            || !name.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(NameError);
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        Self::new(core::str::from_utf8(bytes).map_err(|_| NameError)?)
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::str::FromStr for DriverName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

/// Payload of [`Message::Hello`](crate::Message::Hello): the version as u32, then the name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the client.
    pub version: u32,
    /// Name of the overlying driver.
    pub name: DriverName,
}

impl Hello {
    /// Most bytes of the payload.
    pub const MAX_LENGTH: usize = size_of::<u32>() + DriverName::MAX_LENGTH;

    /// The payload.
    pub fn emit(&self) -> Vec<u8> {
        [self.version.as_bytes(), self.name.as_str().as_bytes()].concat()
    }

    /// The version alone, which every version of this protocol has in the same place.
    pub fn parse_version(payload: &[u8]) -> Option<u32> {
        Some(u32::from_le_bytes(*payload.first_chunk()?))
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// [`NameError`] if it is cut off, or the name is not one.
    pub fn parse(payload: &[u8]) -> Result<Self, NameError> {
        let (version, name) = payload.split_first_chunk().ok_or(NameError)?;
        Ok(Self { version: u32::from_le_bytes(*version), name: DriverName::from_bytes(name)? })
    }
}

/// Fixed part of the payload of [`Message::Welcome`](crate::Message::Welcome).
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WelcomeHeader {
    version: u32,
    max_outstanding_requests: u32,
    max_outstanding_bytes: u32,
    reserved: u32,
    client_id: u64,
}

const _: () = {
    assert!(size_of::<WelcomeHeader>() == 24);
    assert!(offset_of!(WelcomeHeader, client_id) == 16);
};

/// Payload of [`Message::Welcome`](crate::Message::Welcome).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the server.
    pub version: u32,
    /// Most requests that may be outstanding.
    pub max_outstanding_requests: u32,
    /// Most bytes that they may add up to.
    pub max_outstanding_bytes: u32,
    /// The number the server knows this connection by.
    pub client_id: ClientId,
    /// Name of the device.
    pub device: DriverName,
}

impl Welcome {
    /// The payload.
    pub fn emit(&self) -> Vec<u8> {
        let header = WelcomeHeader {
            version: self.version,
            max_outstanding_requests: self.max_outstanding_requests,
            max_outstanding_bytes: self.max_outstanding_bytes,
            reserved: 0,
            client_id: self.client_id.0,
        };
        [header.as_bytes(), self.device.as_str().as_bytes()].concat()
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// [`NameError`] if it is cut off, or the name is not one.
    pub fn parse(payload: &[u8]) -> Result<Self, NameError> {
        let (header, name) = WelcomeHeader::read_from_prefix(payload).map_err(|_| NameError)?;
        Ok(Self {
            version: header.version,
            max_outstanding_requests: header.max_outstanding_requests,
            max_outstanding_bytes: header.max_outstanding_bytes,
            client_id: ClientId(header.client_id),
            device: DriverName::from_bytes(name)?,
        })
    }
}

/// Bit of [`AttachOptions::flags`]: notify of orderly and surprise removal as well.
pub const ATTACH_REMOVAL_EVENTS: u32 = 1;

/// Optional input of IOCTL_SRIOV_ATTACH, which as published has none: an extension of ours (SPEC-PCIVIRT §8.2).
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AttachOptions {
    /// [`ATTACH_REMOVAL_EVENTS`], or 0.
    pub flags: u32,
}

const _: () = assert!(size_of::<AttachOptions>() == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = DriverName> {
        "[!-~]{1,64}".prop_map(|name| DriverName::new(&name).unwrap())
    }

    proptest! {
        #[test]
        fn a_hello_survives_its_bytes(version: u32, name in name()) {
            let hello = Hello { version, name };
            let bytes = hello.emit();
            prop_assert!(bytes.len() <= Hello::MAX_LENGTH);
            prop_assert_eq!(Hello::parse_version(&bytes), Some(version));
            prop_assert_eq!(Hello::parse(&bytes), Ok(hello));
        }

        #[test]
        fn a_welcome_survives_its_bytes(version: u32, a: u32, b: u32, id: u64, device in name()) {
            let welcome = Welcome {
                version,
                max_outstanding_requests: a,
                max_outstanding_bytes: b,
                client_id: ClientId(id),
                device,
            };
            prop_assert_eq!(Welcome::parse(&welcome.emit()), Ok(welcome));
        }

        #[test]
        fn random_payloads_are_parsed_or_refused(bytes: Vec<u8>) {
            if let Ok(hello) = Hello::parse(&bytes) {
                prop_assert_eq!(hello.emit(), bytes.clone());
            }
            let _ = Welcome::parse(&bytes);
        }
    }

    #[test]
    fn names_that_would_spoil_a_log_line_are_refused() {
        for name in ["", "a b", "a\nb", "\u{1b}[2J", "vmswitch\u{e4}", &"x".repeat(65)] {
            assert_eq!(DriverName::new(name), Err(NameError), "{name:?}");
        }
        assert_eq!(DriverName::new("vmswitch/0").unwrap().as_str(), "vmswitch/0");
    }
}
