//! vfio-user 0.0: message headers, commands and VFIO structures, as types.
//!
//! It opens no socket and knows no device: bytes become meaning ([`Request::parse`]) and back
//! ([`Request::emit`]), each command a wire structure with a checked size and a closed enum. Passing file
//! descriptors beside a message is the caller's part.
//!
//! Follows the vfio-user protocol specification (libvfio-user, QEMU `docs/interop/vfio-user.rst`; cited as
//! "vfio-user §Title") and the structures of `<linux/vfio.h>` that it builds on. All integers are in the
//! host's byte order, since both ends are on one host (§Protocol Specification).
//!
//! Layer: formats (ARCHITECTURE.md). Used by the vfio-user server.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod device;
mod dma;
mod feature;
mod header;
mod irq;
mod region;
mod request;
mod version;

pub use device::{DeviceInfo, PCI_IRQ_COUNT, PCI_REGION_COUNT, PciIrq, PciRegion};
pub use dma::{DmaAccess, DmaMap, DmaRw, DmaUnmap, DmaUnmapTarget};
pub use feature::{
    DeviceFeature, DmaLoggingControl, DmaLoggingRange, DmaLoggingReport, FeatureId,
    FeatureMigration, FeatureOperation, MigData, MigDeviceState, MigState,
};
pub use header::{Command, Errno, HEADER_SIZE, Header, MessageType};
pub use irq::{IrqAction, IrqData, IrqInfo, IrqSet, IrqSetHeader};
pub use region::{
    CapabilityHeader, IoFdKind, IoFdSubRegion, REGION_INFO_SIZE, RegionAccess, RegionInfo,
    RegionIoFds, SparseMmapArea, SparseMmapHeader, WriteMulti, WriteMultiEntry, emit_region_info,
    parse_region_info,
};
pub use request::{ProtocolError, Request};
pub use version::{
    Capabilities, DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_DMA_MAPS, DEFAULT_MAX_MSG_FDS,
    DEFAULT_PGSIZES, MAJOR_VERSION, MAX_VERSION_DATA, MINOR_VERSION, TwinSocket, Version,
    VersionHeader,
};
