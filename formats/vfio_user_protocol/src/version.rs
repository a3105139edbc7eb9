//! VERSION: the protocol version and the JSON capabilities (vfio-user §VFIO_USER_VERSION).

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProtocolError;

/// The major version spoken here.
pub const MAJOR_VERSION: u16 = 0;
/// The newest minor version spoken here.
pub const MINOR_VERSION: u16 = 0;
/// Descriptors a side takes in one message if it does not say.
pub const DEFAULT_MAX_MSG_FDS: u32 = 1;
/// Bytes a side takes in one data transfer if it does not say.
pub const DEFAULT_MAX_DATA_XFER_SIZE: u32 = 1_048_576;
/// DMA ranges that can be mapped at a time if a side does not say.
pub const DEFAULT_MAX_DMA_MAPS: u32 = 65_535;
/// Page sizes of DMA ranges, OR-ed, if a side does not say.
pub const DEFAULT_PGSIZES: u64 = 4_096;
/// Longest JSON text looked at, bytes; many times what the known capabilities need.
pub const MAX_VERSION_DATA: usize = 16_384;

/// Payload of VERSION, before the JSON text.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VersionHeader {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

const _: () = assert!(size_of::<VersionHeader>() == 4);

/// The capabilities object. What is absent has the default that the constants say.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Descriptors that the sender can take in one message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u32>,
    /// Bytes that the sender can take in one data transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u32>,
    /// DMA ranges that can be mapped at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u32>,
    /// Page sizes of DMA ranges, OR-ed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// A second socket for commands of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// REGION_WRITE_MULTI is understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
}

/// The `twin_socket` capability.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct TwinSocket {
    /// The sender can use, or in a reply uses, a second socket.
    #[serde(default)]
    pub supported: bool,
    /// In a reply, which of the descriptors beside the message is the client's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u32>,
}

#[derive(Default, Serialize, Deserialize)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

/// A VERSION message: what a side proposes or answers.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Version {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// The capabilities; `None` when the message has no JSON text.
    pub capabilities: Option<Capabilities>,
}

impl Version {
    /// Parses the payload. The JSON text may end with NUL; keys that are not known here are passed over.
    pub fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let (header, data) = VersionHeader::read_from_prefix(payload)
            .map_err(|_| ProtocolError::Payload { command: "VERSION", size: payload.len() })?;
        if data.len() > MAX_VERSION_DATA {
            return Err(ProtocolError::TooLong(data.len()));
        }
        let text = match data {
            [text @ .., 0] => text,
            text => text,
        };
        let capabilities = if text.is_empty() {
            None
        } else {
            let data: VersionData = serde_json::from_slice(text)
                .map_err(|error| ProtocolError::VersionData(error.to_string()))?;
            Some(data.capabilities)
        };
        Ok(Self { major: header.major, minor: header.minor, capabilities })
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let header = VersionHeader { major: self.major, minor: self.minor };
        out.extend_from_slice(header.as_bytes());
        if let Some(capabilities) = self.capabilities {
            let data = VersionData { capabilities };
            // Plain numbers and booleans: serializing them to memory has no way to fail.
            out.extend_from_slice(&serde_json::to_vec(&data).unwrap_or_default());
            out.push(0);
        }
    }

    /// What a server answers to this proposal: the same major version, no newer a minor one, and of the
    /// `offered` capabilities those that the client named. `None` when the major version is another: the
    /// server then closes the connection.
    ///
    /// The answer's JSON text is never longer than the proposal's, which QEMU's client relies on, since each
    /// number in it is at most the client's.
    pub fn negotiate(&self, offered: &Capabilities) -> Option<Self> {
        if self.major != MAJOR_VERSION {
            return None;
        }
        fn least<T: Ord>(theirs: Option<T>, ours: Option<T>) -> Option<T> {
            Some(theirs?.min(ours?))
        }
        let capabilities = self.capabilities.map(|theirs| Capabilities {
            max_msg_fds: least(theirs.max_msg_fds, offered.max_msg_fds),
            max_data_xfer_size: least(theirs.max_data_xfer_size, offered.max_data_xfer_size),
            max_dma_maps: least(theirs.max_dma_maps, offered.max_dma_maps),
            pgsizes: theirs.pgsizes.zip(offered.pgsizes).map(|(theirs, ours)| theirs & ours),
            twin_socket: None,
            write_multiple: match (theirs.write_multiple, offered.write_multiple) {
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
        });
        // The oldest minor version there is: never newer than the client's.
        Some(Self { major: self.major, minor: MINOR_VERSION, capabilities })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFERED: Capabilities = Capabilities {
        max_msg_fds: Some(16),
        max_data_xfer_size: Some(1_048_576),
        max_dma_maps: Some(1024),
        pgsizes: Some(4096),
        twin_socket: None,
        write_multiple: None,
    };

    #[test]
    fn a_proposal_of_qemu_is_answered_with_a_shorter_subset() {
        let mut proposal = vec![0, 0, 0, 0];
        proposal.extend(
            br#"{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "max_dma_maps": 65535, "pgsizes": 4096, "migration": {"pgsize": 4096}}}"#,
        );
        proposal.push(0);
        let answer = Version::parse(&proposal).unwrap().negotiate(&OFFERED).unwrap();
        let capabilities = answer.capabilities.unwrap();
        assert_eq!(
            capabilities,
            Capabilities { max_msg_fds: Some(8), ..OFFERED },
            "the least of both for each"
        );
        let mut bytes = Vec::new();
        answer.emit(&mut bytes);
        assert!(bytes.len() <= proposal.len());
        assert_eq!(bytes.last(), Some(&0));
    }

    #[test]
    fn a_proposal_without_capabilities_is_answered_without() {
        let version = Version::parse(&[0, 0, 1, 0]).unwrap();
        assert_eq!(version.minor, 1);
        let answer = version.negotiate(&OFFERED).unwrap();
        assert_eq!(answer, Version { major: 0, minor: 0, capabilities: None });
    }

    #[test]
    fn another_major_version_has_no_answer() {
        assert_eq!(Version::parse(&[1, 0, 0, 0]).unwrap().negotiate(&OFFERED), None);
    }

    #[test]
    fn garbage_is_an_error() {
        for text in ["{", "[]x", "{\"capabilities\": 3}", "{\"capabilities\":{\"max_msg_fds\":-1}}"]
        {
            let mut bytes = vec![0, 0, 0, 0];
            bytes.extend(text.as_bytes());
            assert!(matches!(Version::parse(&bytes), Err(ProtocolError::VersionData(_))), "{text}");
        }
        let deep = [vec![0; 4], vec![b'['; MAX_VERSION_DATA]].concat();
        assert!(Version::parse(&deep).is_err());
        assert!(Version::parse(&vec![b' '; MAX_VERSION_DATA + 5]).is_err());
        assert!(Version::parse(&[0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn parse_gives_back_what_was_emitted(
            minor: u16, fds: Option<u32>, xfer: Option<u32>, maps: Option<u32>, pages: Option<u64>,
            multiple: Option<bool>, twin: Option<(bool, Option<u32>)>
        ) {
            let twin_socket =
                twin.map(|(supported, fd_index)| TwinSocket { supported, fd_index });
            let capabilities = Capabilities {
                max_msg_fds: fds, max_data_xfer_size: xfer, max_dma_maps: maps, pgsizes: pages,
                twin_socket, write_multiple: multiple,
            };
            let version = Version { major: 0, minor, capabilities: Some(capabilities) };
            let mut bytes = Vec::new();
            version.emit(&mut bytes);
            prop_assert_eq!(Version::parse(&bytes).unwrap(), version);
            let mut answer = Vec::new();
            version.negotiate(&OFFERED).unwrap().emit(&mut answer);
            prop_assert!(answer.len() <= bytes.len());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Version::parse(&bytes);
        }
    }
}
