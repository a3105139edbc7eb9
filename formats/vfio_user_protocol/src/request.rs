//! A command's payload as a typed value, and back.

use zerocopy::{FromBytes, IntoBytes};

use crate::{
    Command, DeviceFeature, DeviceInfo, DmaMap, DmaRw, DmaUnmap, IrqInfo, IrqSet, MigData,
    RegionAccess, RegionInfo, RegionIoFds, Version, WriteMulti,
};

/// A message that breaks the protocol.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Neither a command nor a reply.
    #[error("message type {0} is neither command nor reply")]
    MessageType(u32),
    /// The size in a header does not even cover the header.
    #[error("message size {0} is below the header's 16 bytes")]
    MessageSize(u32),
    /// A payload is longer than the protocol can say, or than is ever needed.
    #[error("a payload of {0} bytes is too long")]
    TooLong(usize),
    /// No command has that number.
    #[error("command {0} is unknown")]
    UnknownCommand(u16),
    /// A payload does not have the command's size.
    #[error("{size} bytes are not a payload of {command}")]
    Payload {
        /// The command.
        command: &'static str,
        /// Bytes there were.
        size: usize,
    },
    /// Flags that are unknown or exclude each other.
    #[error("flags {flags:#x} make no sense in {what}")]
    Flags {
        /// The structure.
        what: &'static str,
        /// All flags.
        flags: u32,
    },
    /// The JSON text of VERSION cannot be read.
    #[error("the JSON text of VERSION cannot be read: {0}")]
    VersionData(String),
}

/// A command with its payload.
///
/// Structures that a client fills in as the larger buffer of the reply (those with `argsz`) may be followed by
/// more bytes, which are passed over; others must fit exactly.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Request<'a> {
    /// VERSION.
    Version(Version),
    /// DMA_MAP; a descriptor may come beside it.
    DmaMap(DmaMap),
    /// DMA_UNMAP.
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO.
    DeviceGetInfo(DeviceInfo),
    /// DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo(RegionInfo),
    /// DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds(RegionIoFds),
    /// DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo(IrqInfo),
    /// DEVICE_SET_IRQS; descriptors may come beside it.
    DeviceSetIrqs(IrqSet<'a>),
    /// REGION_READ.
    RegionRead(RegionAccess),
    /// REGION_WRITE; the data are `access.count` bytes.
    RegionWrite {
        /// Where.
        access: RegionAccess,
        /// What.
        data: &'a [u8],
    },
    /// DMA_READ.
    DmaRead(DmaRw),
    /// DMA_WRITE; the data are `access.count` bytes.
    DmaWrite {
        /// Where.
        access: DmaRw,
        /// What.
        data: &'a [u8],
    },
    /// DEVICE_RESET.
    DeviceReset,
    /// REGION_WRITE_MULTI, each entry with at most 8 bytes.
    RegionWriteMulti(WriteMulti<'a>),
    /// DEVICE_FEATURE with its data.
    DeviceFeature {
        /// Which feature, which operation.
        feature: DeviceFeature,
        /// The feature's data.
        data: &'a [u8],
    },
    /// MIG_DATA_READ.
    MigDataRead(MigData),
    /// MIG_DATA_WRITE; the data are `header.size` bytes.
    MigDataWrite {
        /// How much.
        header: MigData,
        /// What.
        data: &'a [u8],
    },
}

impl<'a> Request<'a> {
    /// Parses the payload of a command.
    pub fn parse(command: Command, payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let wrong = |name| ProtocolError::Payload { command: name, size: payload.len() };
        fn prefix<T: FromBytes>(
            payload: &[u8],
            wrong: impl Fn(&'static str) -> ProtocolError,
            name: &'static str,
        ) -> Result<T, ProtocolError> {
            T::read_from_prefix(payload).map(|(value, _)| value).map_err(|_| wrong(name))
        }
        Ok(match command {
            Command::Version => Self::Version(Version::parse(payload)?),
            Command::DmaMap => Self::DmaMap(prefix(payload, wrong, "DMA_MAP")?),
            Command::DmaUnmap => Self::DmaUnmap(prefix(payload, wrong, "DMA_UNMAP")?),
            Command::DeviceGetInfo => {
                Self::DeviceGetInfo(prefix(payload, wrong, "DEVICE_GET_INFO")?)
            }
            Command::DeviceGetRegionInfo => {
                Self::DeviceGetRegionInfo(prefix(payload, wrong, "DEVICE_GET_REGION_INFO")?)
            }
            Command::DeviceGetRegionIoFds => {
                Self::DeviceGetRegionIoFds(prefix(payload, wrong, "DEVICE_GET_REGION_IO_FDS")?)
            }
            Command::DeviceGetIrqInfo => {
                Self::DeviceGetIrqInfo(prefix(payload, wrong, "DEVICE_GET_IRQ_INFO")?)
            }
            Command::DeviceSetIrqs => Self::DeviceSetIrqs(IrqSet::parse(payload)?),
            Command::RegionRead => Self::RegionRead(
                RegionAccess::read_from_bytes(payload).map_err(|_| wrong("REGION_READ"))?,
            ),
            Command::RegionWrite => {
                let (access, data) =
                    RegionAccess::read_from_prefix(payload).map_err(|_| wrong("REGION_WRITE"))?;
                if data.len() as u64 != u64::from(access.count) {
                    return Err(wrong("REGION_WRITE"));
                }
                Self::RegionWrite { access, data }
            }
            Command::DmaRead => {
                Self::DmaRead(DmaRw::read_from_bytes(payload).map_err(|_| wrong("DMA_READ"))?)
            }
            Command::DmaWrite => {
                let (access, data) =
                    DmaRw::read_from_prefix(payload).map_err(|_| wrong("DMA_WRITE"))?;
                if data.len() as u64 != access.count {
                    return Err(wrong("DMA_WRITE"));
                }
                Self::DmaWrite { access, data }
            }
            Command::DeviceReset if payload.is_empty() => Self::DeviceReset,
            Command::DeviceReset => return Err(wrong("DEVICE_RESET")),
            Command::RegionWriteMulti => Self::RegionWriteMulti(
                WriteMulti::parse(payload).ok_or_else(|| wrong("REGION_WRITE_MULTI"))?,
            ),
            Command::DeviceFeature => {
                let (feature, data) = DeviceFeature::read_from_prefix(payload)
                    .map_err(|_| wrong("DEVICE_FEATURE"))?;
                Self::DeviceFeature { feature, data }
            }
            Command::MigDataRead => Self::MigDataRead(prefix(payload, wrong, "MIG_DATA_READ")?),
            Command::MigDataWrite => {
                let (header, data) =
                    MigData::read_from_prefix(payload).map_err(|_| wrong("MIG_DATA_WRITE"))?;
                if data.len() as u64 != u64::from(header.size) {
                    return Err(wrong("MIG_DATA_WRITE"));
                }
                Self::MigDataWrite { header, data }
            }
        })
    }

    /// Which command this is.
    pub fn command(&self) -> Command {
        match self {
            Self::Version(_) => Command::Version,
            Self::DmaMap(_) => Command::DmaMap,
            Self::DmaUnmap(_) => Command::DmaUnmap,
            Self::DeviceGetInfo(_) => Command::DeviceGetInfo,
            Self::DeviceGetRegionInfo(_) => Command::DeviceGetRegionInfo,
            Self::DeviceGetRegionIoFds(_) => Command::DeviceGetRegionIoFds,
            Self::DeviceGetIrqInfo(_) => Command::DeviceGetIrqInfo,
            Self::DeviceSetIrqs(_) => Command::DeviceSetIrqs,
            Self::RegionRead(_) => Command::RegionRead,
            Self::RegionWrite { .. } => Command::RegionWrite,
            Self::DmaRead(_) => Command::DmaRead,
            Self::DmaWrite { .. } => Command::DmaWrite,
            Self::DeviceReset => Command::DeviceReset,
            Self::RegionWriteMulti(_) => Command::RegionWriteMulti,
            Self::DeviceFeature { .. } => Command::DeviceFeature,
            Self::MigDataRead(_) => Command::MigDataRead,
            Self::MigDataWrite { .. } => Command::MigDataWrite,
        }
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Version(version) => version.emit(out),
            Self::DmaMap(map) => out.extend_from_slice(map.as_bytes()),
            Self::DmaUnmap(unmap) => out.extend_from_slice(unmap.as_bytes()),
            Self::DeviceGetInfo(info) => out.extend_from_slice(info.as_bytes()),
            Self::DeviceGetRegionInfo(info) => out.extend_from_slice(info.as_bytes()),
            Self::DeviceGetRegionIoFds(fds) => out.extend_from_slice(fds.as_bytes()),
            Self::DeviceGetIrqInfo(info) => out.extend_from_slice(info.as_bytes()),
            Self::DeviceSetIrqs(set) => set.emit(out),
            Self::RegionRead(access) => out.extend_from_slice(access.as_bytes()),
            Self::RegionWrite { access, data } => {
                out.extend_from_slice(access.as_bytes());
                out.extend_from_slice(data);
            }
            Self::DmaRead(access) => out.extend_from_slice(access.as_bytes()),
            Self::DmaWrite { access, data } => {
                out.extend_from_slice(access.as_bytes());
                out.extend_from_slice(data);
            }
            Self::DeviceReset => {}
            Self::RegionWriteMulti(writes) => writes.emit(out),
            Self::DeviceFeature { feature, data } => {
                out.extend_from_slice(feature.as_bytes());
                out.extend_from_slice(data);
            }
            Self::MigDataRead(header) => out.extend_from_slice(header.as_bytes()),
            Self::MigDataWrite { header, data } => {
                out.extend_from_slice(header.as_bytes());
                out.extend_from_slice(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{IrqAction, IrqData, WriteMultiEntry};

    fn round_trip(request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.emit(&mut bytes);
        assert_eq!(&Request::parse(request.command(), &bytes).unwrap(), request);
    }

    proptest! {
        #[test]
        fn parse_gives_back_what_was_emitted(
            a: u32, b: u32, c: u32, d: u32, x: u64, y: u64,
            data in prop::collection::vec(any::<u8>(), 0..300)
        ) {
            let argsz = a;
            round_trip(&Request::DmaMap(DmaMap { argsz, flags: b, offset: x ^ y, address: x, size: y }));
            round_trip(&Request::DmaUnmap(DmaUnmap { argsz, flags: b, address: x, size: y }));
            let info = DeviceInfo { argsz, flags: b, num_regions: c, num_irqs: d };
            round_trip(&Request::DeviceGetInfo(info));
            round_trip(&Request::DeviceGetRegionInfo(RegionInfo {
                argsz, flags: b, index: c, cap_offset: d, size: x, offset: y,
            }));
            let fds = RegionIoFds { argsz, flags: b, index: c, count: d };
            round_trip(&Request::DeviceGetRegionIoFds(fds));
            let irq = IrqInfo { argsz, flags: b, index: c, count: d };
            round_trip(&Request::DeviceGetIrqInfo(irq));
            for (data, count) in [
                (IrqData::None, d), (IrqData::EventFd, d), (IrqData::Bool(&data), data.len() as u32),
            ] {
                for action in [IrqAction::Mask, IrqAction::Unmask, IrqAction::Trigger] {
                    round_trip(&Request::DeviceSetIrqs(IrqSet { index: b, start: c, count, action, data }));
                }
            }
            let access = RegionAccess { offset: x, region: a, count: data.len() as u32 };
            round_trip(&Request::RegionRead(RegionAccess { count: b, ..access }));
            round_trip(&Request::RegionWrite { access, data: &data });
            let access = DmaRw { address: x, count: data.len() as u64 };
            round_trip(&Request::DmaRead(DmaRw { count: y, ..access }));
            round_trip(&Request::DmaWrite { access, data: &data });
            round_trip(&Request::DeviceReset);
            round_trip(&Request::DeviceFeature {
                feature: DeviceFeature { argsz, flags: b }, data: &data,
            });
            round_trip(&Request::MigDataRead(MigData { argsz, size: b }));
            round_trip(&Request::MigDataWrite {
                header: MigData { argsz, size: data.len() as u32 }, data: &data,
            });
        }

        #[test]
        fn coalesced_writes_come_back(
            writes in prop::collection::vec((any::<u64>(), any::<u32>(), 0u32..9, any::<[u8; 8]>()), 0..40)
        ) {
            let writes: Vec<_> = writes.into_iter()
                .map(|(offset, region, count, data)| WriteMultiEntry { offset, region, count, data })
                .collect();
            let mut entries = Vec::new();
            for write in &writes {
                entries.extend_from_slice(write.as_bytes());
            }
            let request = Request::RegionWriteMulti(WriteMulti::new(&entries).unwrap());
            let mut bytes = Vec::new();
            request.emit(&mut bytes);
            let Request::RegionWriteMulti(parsed) =
                Request::parse(Command::RegionWriteMulti, &bytes).unwrap()
            else { panic!() };
            prop_assert_eq!(parsed.iter().collect::<Vec<_>>(), writes);
        }

        #[test]
        fn random_payloads_never_panic(
            command in 0usize..Command::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = Request::parse(Command::ALL[command], &bytes);
        }
    }

    #[test]
    fn counts_that_lie_are_refused() {
        let access = RegionAccess { offset: 0, region: 0, count: 4 };
        let mut bytes = Vec::new();
        Request::RegionWrite { access, data: &[1, 2, 3] }.emit(&mut bytes);
        assert!(Request::parse(Command::RegionWrite, &bytes).is_err());
        bytes.extend([4, 5]);
        assert!(Request::parse(Command::RegionWrite, &bytes).is_err());
        assert!(Request::parse(Command::DeviceReset, &[0]).is_err());
        assert!(Request::parse(Command::RegionWriteMulti, &1u64.to_ne_bytes()).is_err());
    }

    #[test]
    fn buffers_sent_whole_for_the_reply_are_understood() {
        let mut bytes = Vec::new();
        let info = RegionInfo { argsz: 4096, index: 7, ..RegionInfo::default() };
        Request::DeviceGetRegionInfo(info).emit(&mut bytes);
        bytes.resize(4096, 0);
        let parsed = Request::parse(Command::DeviceGetRegionInfo, &bytes).unwrap();
        assert_eq!(parsed, Request::DeviceGetRegionInfo(info));
    }
}
