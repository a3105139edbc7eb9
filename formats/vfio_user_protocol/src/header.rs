//! The 16-byte header before every message, the commands, and error numbers (vfio-user §Header).

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProtocolError;

/// Bytes of [`Header`].
pub const HEADER_SIZE: usize = size_of::<Header>();

/// The header of a command or a reply, as on the wire.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Header {
    /// Chosen by the sender of the command, echoed in the reply; nothing is assumed about it.
    pub message_id: u16,
    /// The [`Command`].
    pub command: u16,
    /// Bytes of the whole message, this header included.
    pub message_size: u32,
    /// Bits 3:0 type, bit 4 No_reply, bit 5 Error; see the constants.
    pub flags: u32,
    /// In a reply with the Error flag, an errno or 0.
    pub error: u32,
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(std::mem::offset_of!(Header, message_size) == 4);
const _: () = assert!(std::mem::offset_of!(Header, error) == 12);

impl Header {
    /// Mask of the message type.
    pub const TYPE_MASK: u32 = 0xF;
    /// Type of a command.
    pub const TYPE_COMMAND: u32 = 0;
    /// Type of a reply.
    pub const TYPE_REPLY: u32 = 1;
    /// The sender of the command wants no reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The command failed; `error` says why.
    pub const ERROR: u32 = 1 << 5;

    /// The header of a command with `payload` bytes after it.
    pub fn command(
        message_id: u16,
        command: Command,
        payload: usize,
    ) -> Result<Self, ProtocolError> {
        Ok(Self {
            message_id,
            command: command.into(),
            message_size: message_size(payload)?,
            flags: Self::TYPE_COMMAND,
            error: 0,
        })
    }

    /// The header of the successful reply to this command, with `payload` bytes after it.
    pub fn reply(&self, payload: usize) -> Result<Self, ProtocolError> {
        Ok(Self {
            message_id: self.message_id,
            command: self.command,
            message_size: message_size(payload)?,
            flags: Self::TYPE_REPLY,
            error: 0,
        })
    }

    /// The reply that says the command failed; it has no payload.
    pub fn error_reply(&self, error: Errno) -> Self {
        Self {
            message_id: self.message_id,
            command: self.command,
            message_size: 16,
            flags: Self::TYPE_REPLY | Self::ERROR,
            error: error.0,
        }
    }

    /// Whether this is a command or a reply; any other type is an error.
    pub fn message_type(&self) -> Result<MessageType, ProtocolError> {
        match self.flags & Self::TYPE_MASK {
            Self::TYPE_COMMAND => Ok(MessageType::Command),
            Self::TYPE_REPLY => Ok(MessageType::Reply),
            other => Err(ProtocolError::MessageType(other)),
        }
    }

    /// Whether the sender of this command wants no reply.
    pub fn no_reply(&self) -> bool {
        self.flags & Self::NO_REPLY != 0
    }

    /// Bytes that follow the header; an error when the size does not even cover the header.
    pub fn payload_size(&self) -> Result<usize, ProtocolError> {
        usize::try_from(self.message_size)
            .ok()
            .and_then(|size| size.checked_sub(HEADER_SIZE))
            .ok_or(ProtocolError::MessageSize(self.message_size))
    }
}

fn message_size(payload: usize) -> Result<u32, ProtocolError> {
    payload
        .checked_add(HEADER_SIZE)
        .and_then(|size| u32::try_from(size).ok())
        .ok_or(ProtocolError::TooLong(payload))
}

/// The type of a message.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum MessageType {
    /// Asks for something.
    Command,
    /// Answers a command of the other side.
    Reply,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// The commands of vfio-user (§Commands).
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
        #[repr(u16)]
        pub enum Command {
            $($(#[$doc])* $name = $value,)*
        }

        impl Command {
            /// Every command, in order of number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl TryFrom<u16> for Command {
            type Error = ProtocolError;

            fn try_from(value: u16) -> Result<Self, ProtocolError> {
                match value {
                    $($value => Ok(Self::$name),)*
                    other => Err(ProtocolError::UnknownCommand(other)),
                }
            }
        }

        impl From<Command> for u16 {
            fn from(command: Command) -> u16 {
                match command {
                    $(Command::$name => $value,)*
                }
            }
        }
    };
}

commands! {
    /// VERSION: proposes a version and capabilities; the first message.
    Version = 1,
    /// DMA_MAP: adds a range to the device's DMA address space.
    DmaMap = 2,
    /// DMA_UNMAP: removes it.
    DmaUnmap = 3,
    /// DEVICE_GET_INFO.
    DeviceGetInfo = 4,
    /// DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo = 5,
    /// DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds = 6,
    /// DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo = 7,
    /// DEVICE_SET_IRQS.
    DeviceSetIrqs = 8,
    /// REGION_READ.
    RegionRead = 9,
    /// REGION_WRITE.
    RegionWrite = 10,
    /// DMA_READ, from the server to the client.
    DmaRead = 11,
    /// DMA_WRITE, from the server to the client.
    DmaWrite = 12,
    /// DEVICE_RESET.
    DeviceReset = 13,
    /// REGION_WRITE_MULTI: several small writes in one message.
    RegionWriteMulti = 15,
    /// DEVICE_FEATURE: migration and DMA logging.
    DeviceFeature = 16,
    /// MIG_DATA_READ: the device's saved state, as a stream.
    MigDataRead = 17,
    /// MIG_DATA_WRITE.
    MigDataWrite = 18,
}

/// A UNIX error number, as replies carry it. Not `std::io::Error`, since it crosses the wire.
#[derive(Copy, Clone, Eq, PartialEq, Hash)]
pub struct Errno(pub u32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The symbol, where the number is one of the constants here.
            pub fn symbol(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(concat!("E", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// EPERM: not permitted.
    PERM = 1,
    /// ENOENT: no such thing.
    NOENT = 2,
    /// EIO: the device failed.
    IO = 5,
    /// E2BIG: larger than allowed.
    TOOBIG = 7,
    /// ENOMEM: no memory, or no room in a table.
    NOMEM = 12,
    /// EACCES: the region does not allow it.
    ACCES = 13,
    /// EBUSY.
    BUSY = 16,
    /// EEXIST: a DMA range overlaps another.
    EXIST = 17,
    /// ENODEV: the device is gone.
    NODEV = 19,
    /// EINVAL: the message makes no sense.
    INVAL = 22,
    /// EMFILE: descriptors were lost, since no more could be opened.
    MFILE = 24,
    /// ENOSPC: over a limit.
    NOSPC = 28,
    /// EOPNOTSUPP: not supported by this server.
    OPNOTSUPP = 95,
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol() {
            Some(symbol) => write!(f, "{symbol}"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_keep_their_published_numbers() {
        for command in Command::ALL {
            assert_eq!(Command::try_from(u16::from(*command)).unwrap(), *command);
        }
        assert!(Command::try_from(0).is_err());
        assert!(Command::try_from(14).is_err());
        assert!(Command::try_from(19).is_err());
        assert_eq!(u16::from(Command::RegionWriteMulti), 15);
    }

    #[test]
    fn a_reply_echoes_id_and_command() {
        let command = Header::command(0xBEEF, Command::RegionRead, 16).unwrap();
        assert_eq!(command.message_size, 32);
        let reply = command.reply(20).unwrap();
        assert_eq!((reply.message_id, reply.command, reply.flags), (0xBEEF, 9, 1));
        let error = command.error_reply(Errno::INVAL);
        assert_eq!((error.message_size, error.flags, error.error), (16, 0x21, 22));
    }

    #[test]
    fn a_size_below_the_header_is_refused() {
        let header = Header { message_size: 15, ..Header::default() };
        assert_eq!(header.payload_size(), Err(ProtocolError::MessageSize(15)));
    }
}
