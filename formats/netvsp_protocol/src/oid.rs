//! OIDs that a guest asks of its synthetic adapter, and the plain values of them (SPEC-VMBUS §6.1).

use core::fmt;

use ndis_protocol::NdisObjectHeader;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use crate::{
    ParseError,
    error::{front, length32, part},
};

/// An OID: an open value, since a guest may ask anything.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct Oid(pub u32);

macro_rules! oids {
    ($($name:ident = $value:literal;)*) => {
        #[expect(missing_docs, reason = "the published names, without their OID_")]
        impl Oid {
            $(pub const $name: Self = Self($value);)*

            /// Every OID that has a name here.
            pub const NAMED: &'static [Self] = &[$(Self::$name),*];

            /// The published name, such as "OID_GEN_LINK_SPEED", if this list has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(concat!("OID_", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

oids! {
    GEN_SUPPORTED_LIST = 0x0001_0101;
    GEN_HARDWARE_STATUS = 0x0001_0102;
    GEN_MEDIA_SUPPORTED = 0x0001_0103;
    GEN_MEDIA_IN_USE = 0x0001_0104;
    GEN_MAXIMUM_LOOKAHEAD = 0x0001_0105;
    GEN_MAXIMUM_FRAME_SIZE = 0x0001_0106;
    GEN_LINK_SPEED = 0x0001_0107;
    GEN_TRANSMIT_BUFFER_SPACE = 0x0001_0108;
    GEN_RECEIVE_BUFFER_SPACE = 0x0001_0109;
    GEN_TRANSMIT_BLOCK_SIZE = 0x0001_010A;
    GEN_RECEIVE_BLOCK_SIZE = 0x0001_010B;
    GEN_VENDOR_ID = 0x0001_010C;
    GEN_VENDOR_DESCRIPTION = 0x0001_010D;
    GEN_CURRENT_PACKET_FILTER = 0x0001_010E;
    GEN_CURRENT_LOOKAHEAD = 0x0001_010F;
    GEN_DRIVER_VERSION = 0x0001_0110;
    GEN_MAXIMUM_TOTAL_SIZE = 0x0001_0111;
    GEN_MAC_OPTIONS = 0x0001_0113;
    GEN_MEDIA_CONNECT_STATUS = 0x0001_0114;
    GEN_MAXIMUM_SEND_PACKETS = 0x0001_0115;
    GEN_VENDOR_DRIVER_VERSION = 0x0001_0116;
    GEN_NETWORK_LAYER_ADDRESSES = 0x0001_0118;
    GEN_RECEIVE_SCALE_CAPABILITIES = 0x0001_0203;
    GEN_RECEIVE_SCALE_PARAMETERS = 0x0001_0204;
    GEN_MAX_LINK_SPEED = 0x0001_0206;
    GEN_LINK_STATE = 0x0001_0207;
    GEN_RNDIS_CONFIG_PARAMETER = 0x0001_021B;
    GEN_FRIENDLY_NAME = 0x0002_0216;
    IEEE_802_3_PERMANENT_ADDRESS = 0x0101_0101;
    IEEE_802_3_CURRENT_ADDRESS = 0x0101_0102;
    IEEE_802_3_MULTICAST_LIST = 0x0101_0103;
    IEEE_802_3_MAXIMUM_LIST_SIZE = 0x0101_0104;
    OFFLOAD_ENCAPSULATION = 0x0101_010A;
    TCP_OFFLOAD_CURRENT_CONFIG = 0xFC01_020B;
    TCP_OFFLOAD_PARAMETERS = 0xFC01_020C;
    TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xFC01_020D;
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            // A Rust name cannot begin with a digit; the published one does.
            Some(name) => {
                f.write_str(name.trim_start_matches("OID_IEEE_").trim_start_matches("OID_"))
            }
            None => write!(f, "OID {:#010x}", self.0),
        }
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

bitflags::bitflags! {
    /// Which frames a guest wants to receive; none until it says so.
    #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
    pub struct PacketFilter: u32 {
        /// Those to the adapter's own address.
        const DIRECTED = 1 << 0;
        /// Those to addresses of the multicast list.
        const MULTICAST = 1 << 1;
        /// Those to any multicast address.
        const ALL_MULTICAST = 1 << 2;
        /// Broadcast.
        const BROADCAST = 1 << 3;
        /// All there are.
        const PROMISCUOUS = 1 << 5;
        /// Bits that are not known keep their value.
        const _ = !0;
    }
}

/// NDIS_LINK_STATE, the value of OID_GEN_LINK_STATE.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct LinkState {
    /// Whether the link is up.
    pub connected: bool,
    /// Bits per second from the guest.
    pub transmit_speed: u64,
    /// Bits per second to the guest.
    pub receive_speed: u64,
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NdisLinkState {
    header: NdisObjectHeader,
    media_connect_state: U32,
    media_duplex_state: U32,
    padding: U32,
    transmit_speed: U64,
    receive_speed: U64,
    pause_functions: U32,
    auto_negotiation: U32,
}

const _: () = assert!(size_of::<NdisLinkState>() == LinkState::SIZE);
const _: () = assert!(core::mem::offset_of!(NdisLinkState, transmit_speed) == 16);

impl LinkState {
    /// Bytes of the structure.
    pub const SIZE: usize = 40;
    const CONNECTED: u32 = 1;
    const DISCONNECTED: u32 = 2;
    const FULL_DUPLEX: u32 = 2;
    const PAUSE_UNKNOWN: u32 = 3;

    /// The structure's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::SIZE] {
        let connected = if self.connected { Self::CONNECTED } else { Self::DISCONNECTED };
        let wire = NdisLinkState {
            header: NdisObjectHeader { object_type: 0x80, revision: 1, size: 40.into() },
            media_connect_state: connected.into(),
            media_duplex_state: Self::FULL_DUPLEX.into(),
            padding: 0.into(),
            transmit_speed: self.transmit_speed.into(),
            receive_speed: self.receive_speed.into(),
            pause_functions: Self::PAUSE_UNKNOWN.into(),
            auto_negotiation: 0.into(),
        };
        zerocopy::transmute!(wire)
    }

    /// What the structure says.
    ///
    /// # Errors
    /// It is too short.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let wire: NdisLinkState = front("NDIS_LINK_STATE", bytes)?;
        Ok(Self {
            connected: wire.media_connect_state.get() == Self::CONNECTED,
            transmit_speed: wire.transmit_speed.get(),
            receive_speed: wire.receive_speed.get(),
        })
    }
}

/// The value of OID_GEN_RNDIS_CONFIG_PARAMETER: a keyword of the adapter's settings and its value.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ConfigParameter {
    /// The keyword, such as "*TCPChecksumOffloadIPv4" or "NetworkAddress".
    pub name: String,
    /// The value.
    pub value: ConfigValue,
}

/// Value of a [`ConfigParameter`].
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum ConfigValue {
    /// A number.
    Integer(u32),
    /// Text.
    Text(String),
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ConfigParameterHeader {
    name_offset: U32,
    name_length: U32,
    kind: U32,
    value_offset: U32,
    value_length: U32,
}

const _: () = assert!(size_of::<ConfigParameterHeader>() == 20);

impl ConfigParameter {
    /// Bytes of the longest name or text that is looked at.
    pub const MAX_TEXT: u32 = 256;
    const NAME: &str = "RNDIS_CONFIG_PARAMETER";
    const INTEGER: u32 = 0;
    const TEXT: u32 = 2;

    /// What a guest's bytes say. Offsets count from the structure's start.
    ///
    /// # Errors
    /// Name or value lie outside, are too long, or the type is neither integer nor text.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let header: ConfigParameterHeader = front(Self::NAME, bytes)?;
        let text = |field, offset: U32, length: U32| {
            let bytes = part(Self::NAME, field, bytes, offset.get(), length.get())?;
            if length.get() > Self::MAX_TEXT || !bytes.len().is_multiple_of(2) {
                let value = u64::from(length.get());
                return Err(ParseError::Field { message: Self::NAME, field, value });
            }
            let units = bytes.chunks_exact(2).map(|unit| match unit {
                [low, high] => u16::from_le_bytes([*low, *high]),
                _ => 0,
            });
            let text: String = char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect();
            Ok(text.trim_end_matches('\0').to_owned())
        };
        let name = text("name", header.name_offset, header.name_length)?;
        let value = match header.kind.get() {
            Self::INTEGER => {
                let (offset, length) = (header.value_offset.get(), header.value_length.get());
                let value = part(Self::NAME, "value", bytes, offset, length)?;
                ConfigValue::Integer(front::<U32>(Self::NAME, value)?.get())
            }
            Self::TEXT => {
                ConfigValue::Text(text("value", header.value_offset, header.value_length)?)
            }
            other => {
                let value = u64::from(other);
                return Err(ParseError::Field { message: Self::NAME, field: "type", value });
            }
        };
        Ok(Self { name, value })
    }

    /// The structure's bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let utf16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let name = utf16(&self.name);
        let (kind, value) = match &self.value {
            ConfigValue::Integer(value) => (Self::INTEGER, value.to_le_bytes().to_vec()),
            ConfigValue::Text(text) => (Self::TEXT, utf16(text)),
        };
        let header = ConfigParameterHeader {
            name_offset: 20.into(),
            name_length: length32(name.len()).into(),
            kind: kind.into(),
            value_offset: length32(20 + name.len()).into(),
            value_length: length32(value.len()).into(),
        };
        [header.as_bytes(), &name, &value].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_oid_has_its_own_code_and_name() {
        assert_eq!(Oid::NAMED.len(), 36);
        for (index, oid) in Oid::NAMED.iter().enumerate() {
            assert!(!Oid::NAMED[..index].contains(oid), "{oid}");
        }
        assert_eq!(Oid::GEN_LINK_STATE.name(), Some("OID_GEN_LINK_STATE"));
        assert_eq!(Oid(0x0101_0102).to_string(), "802_3_CURRENT_ADDRESS");
        assert_eq!(Oid(7).to_string(), "OID 0x00000007");
    }

    #[test]
    fn a_configuration_parameter_points_into_itself_only() {
        let value = ConfigValue::Text("1".into());
        let good = ConfigParameter { name: "*LsoV2IPv4".into(), value }.emit();
        assert!(ConfigParameter::parse(&good).is_ok());
        for (at, value) in [(0, 4000u32), (4, u32::MAX), (4, 3), (8, 1), (12, u32::MAX), (16, 300)]
        {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(ConfigParameter::parse(&bytes).is_err(), "{value} at {at}");
        }
        let long = ConfigParameter { name: "x".repeat(129), value: ConfigValue::Integer(1) };
        assert!(ConfigParameter::parse(&long.emit()).is_err());
    }

    proptest! {
        #[test]
        fn configuration_parameters_are_parsed_as_emitted(
            name in "[ -~]{0,40}", text in "[a-zA-Zäöü0-9]{0,40}", integer: u32,
        ) {
            for value in [ConfigValue::Integer(integer), ConfigValue::Text(text)] {
                let parameter = ConfigParameter { name: name.clone(), value };
                prop_assert_eq!(ConfigParameter::parse(&parameter.emit()), Ok(parameter));
            }
        }

        #[test]
        fn link_states_are_parsed_as_emitted(connected: bool, transmit_speed: u64, receive_speed: u64) {
            let state = LinkState { connected, transmit_speed, receive_speed };
            prop_assert_eq!(LinkState::parse(&state.emit()), Ok(state));
        }

        #[test]
        fn random_bytes_never_panic(
            words in prop::collection::vec(prop_oneof![0..64u32, any::<u32>()], 0..16)
        ) {
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            let _ = ConfigParameter::parse(&bytes);
            let _ = LinkState::parse(&bytes);
        }
    }
}
