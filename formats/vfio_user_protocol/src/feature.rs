//! Device features (migration, DMA logging) and the migration data stream.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProtocolError;

/// Payload of DEVICE_FEATURE, before the data, and of its reply.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeature {
    /// In a request the largest reply payload wanted, in a reply the size of the full one, bytes.
    pub argsz: u32,
    /// Bits 15:0 the feature, above them the operation.
    pub flags: u32,
}

const _: () = assert!(size_of::<DeviceFeature>() == 8);

/// What DEVICE_FEATURE does.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum FeatureOperation {
    /// Reads the feature's data.
    Get,
    /// Writes it.
    Set,
    /// Asks whether the given methods are supported.
    Probe {
        /// Reading.
        get: bool,
        /// Writing.
        set: bool,
    },
}

/// The features of vfio-user.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum FeatureId {
    /// `VFIO_DEVICE_FEATURE_MIGRATION`.
    Migration,
    /// `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`.
    MigDeviceState,
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`.
    DmaLoggingStart,
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP`.
    DmaLoggingStop,
    /// `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`.
    DmaLoggingReport,
    /// One that this version does not know.
    Other(u16),
}

impl FeatureId {
    /// The feature of that number.
    pub fn from_index(index: u16) -> Self {
        match index {
            1 => Self::Migration,
            2 => Self::MigDeviceState,
            6 => Self::DmaLoggingStart,
            7 => Self::DmaLoggingStop,
            8 => Self::DmaLoggingReport,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub fn index(self) -> u16 {
        match self {
            Self::Migration => 1,
            Self::MigDeviceState => 2,
            Self::DmaLoggingStart => 6,
            Self::DmaLoggingStop => 7,
            Self::DmaLoggingReport => 8,
            Self::Other(other) => other,
        }
    }
}

impl DeviceFeature {
    /// Mask of the feature's number.
    pub const INDEX_MASK: u32 = 0xFFFF;
    /// Read.
    pub const FLAG_GET: u32 = 1 << 16;
    /// Write.
    pub const FLAG_SET: u32 = 1 << 17;
    /// Ask.
    pub const FLAG_PROBE: u32 = 1 << 18;

    /// The payload for an operation on a feature.
    pub fn new(argsz: u32, feature: FeatureId, operation: FeatureOperation) -> Self {
        let operation = match operation {
            FeatureOperation::Get => Self::FLAG_GET,
            FeatureOperation::Set => Self::FLAG_SET,
            FeatureOperation::Probe { get, set } => {
                Self::FLAG_PROBE
                    | if get { Self::FLAG_GET } else { 0 }
                    | if set { Self::FLAG_SET } else { 0 }
            }
        };
        Self { argsz, flags: u32::from(feature.index()) | operation }
    }

    /// Which feature.
    pub fn feature(&self) -> FeatureId {
        let [low, high, ..] = self.flags.to_le_bytes();
        FeatureId::from_index(u16::from_le_bytes([low, high]))
    }

    /// What is to be done; an impossible combination is an error.
    pub fn operation(&self) -> Result<FeatureOperation, ProtocolError> {
        let get = self.flags & Self::FLAG_GET != 0;
        let set = self.flags & Self::FLAG_SET != 0;
        let known = Self::INDEX_MASK | Self::FLAG_GET | Self::FLAG_SET | Self::FLAG_PROBE;
        match (self.flags & Self::FLAG_PROBE != 0, get, set) {
            _ if self.flags & !known != 0 => {}
            (true, get, set) => return Ok(FeatureOperation::Probe { get, set }),
            (false, true, false) => return Ok(FeatureOperation::Get),
            (false, false, true) => return Ok(FeatureOperation::Set),
            (false, _, _) => {}
        }
        Err(ProtocolError::Flags { what: "DEVICE_FEATURE", flags: self.flags })
    }
}

/// Data of [`FeatureId::Migration`].
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FeatureMigration {
    /// See the constants.
    pub flags: u64,
}

const _: () = assert!(size_of::<FeatureMigration>() == 8);

impl FeatureMigration {
    /// The state can be read while stopped; always set.
    pub const STOP_COPY: u64 = 1 << 0;
    /// Peer-to-peer states; not used by vfio-user.
    pub const P2P: u64 = 1 << 1;
    /// The state can be read while running.
    pub const PRE_COPY: u64 = 1 << 2;
}

/// Data of [`FeatureId::MigDeviceState`].
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct MigDeviceState {
    /// A [`MigState`].
    pub device_state: u32,
    /// Not used by vfio-user: the data go through MIG_DATA_READ and MIG_DATA_WRITE.
    pub data_fd: u32,
}

const _: () = assert!(size_of::<MigDeviceState>() == 8);

/// A state of the migration state machine (`enum vfio_device_mig_state`).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum MigState {
    /// Failed; only a reset helps.
    Error,
    /// Changes nothing, inside or outside.
    Stop,
    /// Runs.
    Running,
    /// Stopped, and its state can be read.
    StopCopy,
    /// Stopped, and takes a new state.
    Resuming,
    /// Not used by vfio-user.
    RunningP2p,
    /// Runs, and its state can be read.
    PreCopy,
    /// Not used by vfio-user.
    PreCopyP2p,
}

impl MigState {
    /// Every state, in order of number.
    pub const ALL: [Self; 8] = [
        Self::Error,
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::RunningP2p,
        Self::PreCopy,
        Self::PreCopyP2p,
    ];

    /// The state of that number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Error => 0,
            Self::Stop => 1,
            Self::Running => 2,
            Self::StopCopy => 3,
            Self::Resuming => 4,
            Self::RunningP2p => 5,
            Self::PreCopy => 6,
            Self::PreCopyP2p => 7,
        }
    }
}

/// Data of [`FeatureId::DmaLoggingStart`], before the ranges.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaLoggingControl {
    /// The granule wanted, and in the reply the one chosen, bytes.
    pub page_size: u64,
    /// [`DmaLoggingRange`]s that follow; 0 means everything.
    pub num_ranges: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DmaLoggingControl>() == 16);

/// A range whose writes are logged.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaLoggingRange {
    /// First DMA address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

const _: () = assert!(size_of::<DmaLoggingRange>() == 16);

/// Data of [`FeatureId::DmaLoggingReport`]; in the reply a bitmap of 64-bit words follows.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DmaLoggingReport {
    /// First DMA address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that one bit stands for.
    pub page_size: u64,
}

const _: () = assert!(size_of::<DmaLoggingReport>() == 24);

/// Payload of MIG_DATA_READ and MIG_DATA_WRITE, before the data, and of the reply to the former.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct MigData {
    /// Largest reply payload wanted, or size of the full one, bytes.
    pub argsz: u32,
    /// Bytes of migration data.
    pub size: u32,
}

const _: () = assert!(size_of::<MigData>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_exclude_each_other_except_in_a_probe() {
        let operation = |flags| DeviceFeature { argsz: 8, flags }.operation().ok();
        assert_eq!(operation(1 << 16 | 1), Some(FeatureOperation::Get));
        assert_eq!(operation(1 << 17 | 2), Some(FeatureOperation::Set));
        assert_eq!(operation(7 << 16), Some(FeatureOperation::Probe { get: true, set: true }));
        assert_eq!(operation(3 << 16), None);
        assert_eq!(operation(2), None);
        assert_eq!(operation(1 << 19 | 1 << 16), None);
    }

    #[test]
    fn features_and_states_keep_their_published_numbers() {
        for index in 0..20 {
            assert_eq!(FeatureId::from_index(index).index(), index);
        }
        for number in 0..8 {
            assert_eq!(MigState::from_number(number).unwrap().number(), number);
        }
        assert_eq!(MigState::from_number(8), None);
        let feature = DeviceFeature::new(16, FeatureId::MigDeviceState, FeatureOperation::Set);
        assert_eq!(feature.flags, 0x2_0002);
        assert_eq!(feature.feature(), FeatureId::MigDeviceState);
    }
}
