//! Private controls of a virtual switch: their codes and JSON payloads, for both ends of device control.
//!
//! # Who asks for what
//!
//! *The virtualization stack* makes ports ([`SetPort`](PrivateControl::SetPort)), gives commands about a port's VF
//! ([`PortCommand`]) and takes reports ([`PortReport`]). Reports are levels: of each port the whole state, told to a
//! client whenever it differs from what that client was told last. A client that connects is told of every port; one
//! that comes again has missed nothing that still matters. The uplink is reported in the same way ([`UplinkReport`]): a VF
//! is of no use to a guest as long as the switch does not reach it.
//!
//! *A VM worker* opens the channels of a port for its guest ([`OpenChannel`]) and carries out what the port asks for
//! ([`ChannelUpcall`]). Channels belong to the connection that opened them and close when it ends.
//!
//! # One VF, from the port's side
//!
//! | stack | port | guest |
//! | --- | --- | --- |
//! | `VfAvailable` | | NVSP 128 (1, serial); again for each driver that starts, until `VfLost` |
//! | | report `asks: vf` | NVSP 129 (VF) |
//! | filters are on the VF's VPort: `CompleteSwitch {vf}` | takes the VF: no floods, unicast to the uplink | completion |
//! | wants the VF back: `SwitchDataPath {synthetic}` | takes frames again | is told NVSP 129 (synthetic) |
//! | | takes frames again; report `asks: synthetic` when what went to the uplink before is out of it | NVSP 129 (synthetic) |
//! | filters are home: `CompleteSwitch {synthetic}` | | completion |
//! | `VfLost` | | NVSP 128 (0, serial) |
//!
//! A request of the guest stays open until the stack answers it, also across a restart of the stack; the next one is
//! reported after the answer. A port that was never told of a VF answers by itself. A stack that takes a path back
//! without having been asked (its NIC is gone) says `SwitchDataPath {synthetic}`, or answers the open request with
//! `CompleteSwitch {synthetic}`; both move the port's frames at once.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use netvsp_protocol::nvsp;
pub use nic_switch::VlanMode;
use serde::{Deserialize, Serialize};
use vmbus_protocol::{GpaRangeHeader, GpadlRange};

pub use crate::GuestPath;
use crate::PortStatistics;

/// A private control's code, its input and its output.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum PrivateControl {
    /// Nothing in, [`SwitchStatus`] as JSON out.
    Status = 1,
    /// [`PortConfig`] as JSON in, nothing out: there is this port. If it is there already its policy is replaced;
    /// `max_channels`, `sriov` and `friendly_name` count from the next time that the guest opens its primary channel.
    /// STATUS_INVALID_DEVICE_STATE if kind or address would change while channels are open, STATUS_INVALID_PARAMETER if
    /// something in it cannot be, STATUS_DEVICE_BUSY if another port has the address in that VLAN,
    /// STATUS_INSUFFICIENT_RESOURCES if there are [`MAX_PORTS`].
    SetPort = 2,
    /// [`PortName`] as JSON in, nothing out: the port and its channels are gone. STATUS_NOT_FOUND if it was not there.
    DeletePort = 3,
    /// [`PortCommand`] as JSON in, nothing out. STATUS_NOT_FOUND if there is no such port,
    /// STATUS_INVALID_DEVICE_REQUEST if it has no use for the command.
    PortCommand = 4,
    /// Nothing in, [`SwitchReport`] as JSON out. Pends until there is something that this client has not been told.
    /// STATUS_DEVICE_BUSY while another one of this client pends.
    NextReport = 5,
    /// [`OpenChannel`] as JSON in, with its descriptors; nothing out, when frames may pass. STATUS_NOT_FOUND if there is
    /// no such port, STATUS_INVALID_DEVICE_REQUEST if it is not synthetic, STATUS_INVALID_DEVICE_STATE if the channel is
    /// open, was not granted to the guest, or the primary belongs to another connection, STATUS_INVALID_PARAMETER if
    /// memory, rings or descriptors cannot be used.
    OpenChannel = 6,
    /// [`ChannelName`] as JSON in, nothing out, when nothing uses the rings any more. With the primary channel (0) all
    /// subchannels close, and the guest's buffers are let go of. STATUS_NOT_FOUND if this connection has no such
    /// channel open.
    CloseChannel = 7,
    /// [`GpadlMapped`] as JSON in, nothing out: the answer to [`ChannelUpcall::MapGpadl`]. STATUS_INVALID_PARAMETER if
    /// the pages cannot be used; the guest is told that its GPADL was refused then.
    GpadlMapped = 8,
    /// [`PortName`] as JSON in, [`ChannelUpcall`] as JSON out. Pends until the port asks for something of the guest that
    /// this connection plays. STATUS_NOT_FOUND if there is no such port, also once it is deleted; STATUS_DEVICE_BUSY while
    /// another one pends; STATUS_CANCELLED when another connection opens the port's primary channel.
    NextUpcall = 9,
    /// Nothing in, nothing out: the switch ends as on SIGTERM.
    Shutdown = 10,
}

impl PrivateControl {
    /// The control with this code.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Status,
            2 => Self::SetPort,
            3 => Self::DeletePort,
            4 => Self::PortCommand,
            5 => Self::NextReport,
            6 => Self::OpenChannel,
            7 => Self::CloseChannel,
            8 => Self::GpadlMapped,
            9 => Self::NextUpcall,
            10 => Self::Shutdown,
            _ => return None,
        })
    }

    /// Its code.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Ports of one switch, besides the host's.
pub const MAX_PORTS: usize = 127;
/// Channels of one port, the primary one included.
pub const MAX_CHANNELS: u16 = 64;
/// Regions of guest memory beside [`OpenChannel`], one descriptor each.
pub const MAX_REGIONS: usize = 6;
/// Bytes of a port's name: printable characters without spaces.
pub const MAX_PORT_NAME: usize = 128;
/// Bytes of a guest's buffer (NetVSP's receive buffer is 31 MiB at most).
pub const MAX_BUFFER_BYTES: u32 = 64 << 20;
/// Room that the answer of [`PrivateControl::Status`] may need, bytes.
pub const STATUS_CAPACITY: usize = 256 << 10;
/// Room that the answer of [`PrivateControl::NextReport`] may need, bytes.
pub const REPORT_CAPACITY: usize = 4096;
/// Bytes of an error in an [`UplinkReport`]; of a longer one its beginning is told.
pub const MAX_UPLINK_ERROR: usize = 512;
/// Room that the answer of [`PrivateControl::NextUpcall`] may need, bytes.
pub const UPCALL_CAPACITY: usize = 1024;

/// Names a port.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortName {
    /// Its name.
    pub port: String,
}

/// Names a channel of a port.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelName {
    /// The port.
    pub port: String,
    /// The channel: 0 is the primary one.
    pub channel: u16,
}

/// What a port is, and what is behind it.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// Its name, chosen by whoever makes it.
    pub port: String,
    /// What kind of adapter is connected.
    #[serde(default)]
    pub kind: PortKind,
    /// Address of the adapter, as `00:15:5d:00:00:01`.
    pub mac: String,
    /// VLAN mode.
    #[serde(default)]
    pub vlan: VlanMode,
    /// Whether foreign source addresses pass.
    #[serde(default)]
    pub allow_spoofing: bool,
    /// Channels that the guest may open, the primary one included: 1 to [`MAX_CHANNELS`].
    #[serde(default = "one")]
    pub max_channels: u16,
    /// Whether a guest that can have a VF is told of one.
    #[serde(default)]
    pub sriov: bool,
    /// What a guest shows as the adapter's name.
    #[serde(default)]
    pub friendly_name: String,
}

const fn one() -> u16 {
    1
}

impl PortConfig {
    /// A port for a synthetic adapter that takes untagged frames and is not told of VFs.
    #[must_use]
    pub fn new(port: impl Into<String>, mac: impl ToString) -> Self {
        Self {
            port: port.into(),
            kind: PortKind::default(),
            mac: mac.to_string(),
            vlan: VlanMode::default(),
            allow_spoofing: false,
            max_channels: 1,
            sriov: false,
            friendly_name: String::new(),
        }
    }
}

/// What kind of adapter a port connects.
#[derive(Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum PortKind {
    /// A synthetic one: NetVSP over VMBus channels.
    #[default]
    Synthetic,
    /// An emulated one (DEC 21140), served by vfio-user.
    Legacy {
        /// Where.
        socket: PathBuf,
    },
    /// A virtio-net, served by vhost-user, with as many queue pairs as the port has channels.
    VhostUser {
        /// Where.
        socket: PathBuf,
    },
}

/// A path of an adapter's frames.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataPath {
    /// Through the switch.
    #[default]
    Synthetic,
    /// Through the VF.
    Vf,
}

impl From<nvsp::DataPath> for DataPath {
    fn from(path: nvsp::DataPath) -> Self {
        match path {
            nvsp::DataPath::Synthetic => Self::Synthetic,
            nvsp::DataPath::Vf => Self::Vf,
        }
    }
}

impl From<DataPath> for nvsp::DataPath {
    fn from(path: DataPath) -> Self {
        match path {
            DataPath::Synthetic => Self::Synthetic,
            DataPath::Vf => Self::Vf,
        }
    }
}

impl std::fmt::Display for DataPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Synthetic => "synthetic",
            Self::Vf => "VF",
        })
    }
}

/// A command to a port, about its VF.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortCommand {
    /// The port.
    pub port: String,
    /// What is to be done.
    pub command: VfCommand,
}

/// What a port is told about its VF (`NetVspCommand` of the virtualization stack).
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VfCommand {
    /// There is a VF: NVSP message 128 (1, serial), to each driver of the guest that starts.
    VfAvailable {
        /// Its serial number.
        serial: u32,
    },
    /// It is not there any more: NVSP message 128 (0, the same serial). Without effect on another serial number.
    VfLost {
        /// Its serial number.
        serial: u32,
    },
    /// The data path is to be, or already was, moved by the host: NVSP message 129 to a guest that is on the other one.
    SwitchDataPath {
        /// To which path. Only [`DataPath::Synthetic`] can be; a guest takes the VF by itself.
        to: DataPath,
    },
    /// The guest's request is answered with an empty completion. If the path now active is not the one it asked for, 129
    /// with the active one follows. Without a request, the path is just noted.
    CompleteSwitch {
        /// The path that is active now: where the receive filters are.
        active: DataPath,
        /// The request that is answered ([`PortReport::request`]): one that the switch has heard since stays open.
        request: u64,
    },
    /// By which path the guest of a virtio-net takes frames: its driver is told nothing of its VF. For no other port.
    GuestPath {
        /// Which one.
        path: GuestPath,
    },
}

/// What has changed, as a whole.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchReport {
    /// A port.
    Port(PortReport),
    /// The uplink.
    Uplink(UplinkReport),
}

/// How the uplink is: all that the virtualization stack has to know of it.
#[derive(Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct UplinkReport {
    /// The default VPort of an adapter. `None` if the uplink is anything else, for which nobody has to wait.
    pub adapter: Option<AdapterUplink>,
}

/// An adapter's default VPort as uplink.
#[derive(Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AdapterUplink {
    /// The socket by which the switch drives it, while frames pass. Nothing else than this says that they do.
    pub up: Option<SocketIdentity>,
    /// Why it is down, as far as is known: at most [`MAX_UPLINK_ERROR`] bytes.
    pub error: Option<String>,
}

impl AdapterUplink {
    /// One that is down, because of this.
    #[must_use]
    pub fn down(error: &str) -> Self {
        let longest = error.len().min(MAX_UPLINK_ERROR);
        let end = (0..=longest).rev().find(|end| error.is_char_boundary(*end)).unwrap_or(0);
        Self { up: None, error: Some(error.get(..end).unwrap_or_default().to_owned()) }
    }
}

/// Which socket in the file system it is: of two that are at the same path one after the other, as of a process and its
/// successor, which one.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct SocketIdentity {
    device: u64,
    inode: u64,
    /// When it was made: numbers of inodes are used again. Seconds and nanoseconds since 1970.
    made: (i64, i64),
}

impl SocketIdentity {
    /// The one at a path now.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub fn at(path: &Path) -> io::Result<Self> {
        let socket = std::fs::metadata(path)?;
        let made = (socket.mtime(), socket.mtime_nsec());
        Ok(Self { device: socket.dev(), inode: socket.ino(), made })
    }
}

/// How a port is: all that the virtualization stack has to know of it.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct PortReport {
    /// The port.
    pub port: String,
    /// The guest's driver.
    pub guest: GuestState,
    /// How many times the guest's driver has started. A change means that it was closed in between, whatever `guest`
    /// was the last time: NVSP's answers and the VF are to be told anew.
    pub session: u64,
    /// In which life of the guest its primary channel was opened, the last time: as [`OpenChannel::life`] said.
    #[serde(default)]
    pub life: u64,
    /// The path that the guest has asked for (NVSP message 129) and waits to be answered.
    pub asks: Option<DataPath>,
    /// How many requests for a path were reported so far: a report with the same number is about the same request.
    pub request: u64,
    /// Serial number of the VF that the port knows of: `VfAvailable` without `VfLost`.
    pub vf: Option<u32>,
    /// The path that the stack made active last.
    pub active: DataPath,
}

/// How the guest's driver is.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// It is not up.
    #[default]
    Closed,
    /// RNDIS is initialized: data may flow.
    Ready {
        /// Whether it speaks a version with SR-IOV, and the configuration it was sent has SR-IOV on.
        sriov: bool,
    },
}

/// Opens a channel. Beside it, in this order: one memory file for each region of `memory`, the eventfd that the switch
/// signals to the guest, and the one that the guest signals to the switch (or its receiving end).
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenChannel {
    /// The port.
    pub port: String,
    /// The channel: 0 is the primary one; others after [`ChannelUpcall::OfferSubchannels`].
    pub channel: u16,
    /// The pages of both rings.
    pub ring: PageRange,
    /// Page of `ring` at which the ring from the host to the guest begins.
    pub downstream_page_offset: u32,
    /// The guest's memory, in at most [`MAX_REGIONS`] regions. For a subchannel it may be left out: then it is the
    /// primary channel's.
    #[serde(default)]
    pub memory: Vec<MemoryRegion>,
    /// Which life of the guest it is: a number that grows whenever it, or another in its place, begins anew. With the
    /// primary channel the switch takes it down for whoever is told of the guest by others, too ([`PortReport::life`]).
    #[serde(default)]
    pub life: u64,
}

/// A region of guest memory: a part of a memory file that can not shrink.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRegion {
    /// Guest physical address, a multiple of the page size.
    pub gpa: u64,
    /// Bytes, a multiple of the page size.
    pub length: u64,
    /// Where it begins in the file, bytes; a multiple of the page size.
    pub offset: u64,
}

/// Answers [`ChannelUpcall::MapGpadl`].
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpadlMapped {
    /// The port.
    pub port: String,
    /// What the GPADL is for.
    pub buffer: BufferKind,
    /// Its pages: one range. `None` if there is no such GPADL.
    pub pages: Option<PageRange>,
}

/// Which of the guest's buffers.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferKind {
    /// For frames to the guest.
    Receive,
    /// For frames from the guest.
    Send,
}

/// What a port asks of the guest's host side.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelUpcall {
    /// Look up a GPADL of the primary channel; the answer is [`PrivateControl::GpadlMapped`].
    MapGpadl {
        /// Its id.
        gpadl: u32,
        /// What it is for.
        buffer: BufferKind,
    },
    /// The guest took a buffer back, and nothing here uses its pages any more. After the primary channel was closed this
    /// holds for all GPADLs, and is not said of each.
    GpadlReleased {
        /// Its id.
        gpadl: u32,
    },
    /// Offer subchannels with indexes 1 to this.
    OfferSubchannels {
        /// How many.
        count: u16,
    },
    /// The guest broke the protocol on a channel: no channel of the port is served any more until the primary one was
    /// closed.
    Dead {
        /// Which channel.
        channel: u16,
        /// How.
        error: String,
    },
}

/// A range of guest pages, its page frame numbers as runs of adjacent ones.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRange {
    /// Where the range begins in its first page, bytes below 4,096.
    pub byte_offset: u32,
    /// Bytes, not 0.
    pub byte_count: u32,
    /// Runs of pages: number of the first one, and how many.
    pub frames: Vec<(u64, u64)>,
}

impl From<&GpadlRange> for PageRange {
    fn from(range: &GpadlRange) -> Self {
        let mut frames: Vec<(u64, u64)> = Vec::new();
        for frame in &range.page_frames {
            match frames.last_mut() {
                Some((first, count)) if first.checked_add(*count) == Some(*frame) => *count += 1,
                _ => frames.push((*frame, 1)),
            }
        }
        Self { byte_offset: range.byte_offset, byte_count: range.byte_count, frames }
    }
}

/// A page range that cannot be.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("runs of {pages} pages do not hold {byte_count} bytes from offset {byte_offset}")]
pub struct BadPageRange {
    pages: u64,
    byte_offset: u32,
    byte_count: u32,
}

impl TryFrom<&PageRange> for GpadlRange {
    type Error = BadPageRange;

    fn try_from(range: &PageRange) -> Result<Self, BadPageRange> {
        let PageRange { byte_offset, byte_count, ref frames } = *range;
        // What does not match, or wraps around, is refused before anything is allocated by it.
        let pages = frames.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        let wraps = frames.iter().any(|(first, count)| first.checked_add(*count).is_none());
        let header = GpaRangeHeader { byte_count, byte_offset };
        if wraps || header.page_count().is_none_or(|expected| u64::from(expected) != pages) {
            return Err(BadPageRange { pages, byte_offset, byte_count });
        }
        let page_frames = frames.iter().flat_map(|(first, count)| *first..*first + *count);
        Ok(Self { byte_offset, byte_count, page_frames: page_frames.collect() })
    }
}

/// What the switch is doing.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Its name.
    pub name: String,
    /// Its uplink.
    pub uplink: UplinkStatus,
    /// The host's own interface, if it has one.
    pub host: Option<HostStatus>,
    /// Its ports, by name.
    pub ports: Vec<PortStatus>,
    /// Microseconds for which the thread of its data path was at work since the switch started, without the rounds in which
    /// nothing had come, and without its rests after small ones.
    #[serde(default)]
    pub data_path_busy_us: u64,
}

/// The uplink.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// What it is, as it was given.
    pub spec: String,
    /// Whether whatever serves it is there: the adapter, the interface, the file, the other end.
    pub connected: bool,
    /// Whether the link is up.
    pub link_up: bool,
    /// As it is reported.
    #[serde(default)]
    pub report: UplinkReport,
    /// What last went wrong with it.
    pub last_error: Option<String>,
    /// What passed since the switch started. "Sent" is to the switch.
    pub statistics: PortStatistics,
}

/// The host's own interface.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub interface: String,
    /// Its address.
    pub mac: String,
    /// What passed.
    pub statistics: PortStatistics,
}

/// A port.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name.
    pub port: String,
    /// What kind of adapter is connected.
    pub kind: PortKind,
    /// Its address.
    pub mac: String,
    /// VLAN mode.
    pub vlan: VlanMode,
    /// The guest's driver.
    pub guest: GuestState,
    /// Serial number of the VF that it knows of.
    pub vf: Option<u32>,
    /// Where its frames are taken to.
    pub data_path: DataPath,
    /// Channels that are open.
    pub channels: Vec<u16>,
    /// What passed. "Sent" is by the guest.
    pub statistics: PortStatistics,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_range_that_lies_is_refused_before_anything_is_allocated() {
        let bad = |byte_offset, byte_count, frames: &[(u64, u64)]| {
            let range = PageRange { byte_offset, byte_count, frames: frames.to_vec() };
            GpadlRange::try_from(&range).is_err()
        };
        assert!(bad(0, 4096, &[]));
        assert!(bad(0, 0, &[]));
        assert!(bad(4096, 1, &[(0, 1)]));
        assert!(bad(0, 8192, &[(0, u64::MAX)]));
        assert!(bad(0, 8192, &[(u64::MAX, 2)]));
        assert!(bad(0, 8192, &[(1, u64::MAX), (1, u64::MAX)]));
        assert!(!bad(1, 4096, &[(9, 1), (3, 1)]));
    }

    #[test]
    fn every_code_is_its_control() {
        for code in 0..20 {
            if let Some(control) = PrivateControl::from_code(code) {
                assert_eq!(control.code(), code);
            }
        }
        assert_eq!(PrivateControl::from_code(10), Some(PrivateControl::Shutdown));
    }

    #[test]
    fn the_longest_report_of_an_uplink_has_room() {
        let adapter = Some(AdapterUplink::down(&"\u{1}\u{fffd}".repeat(MAX_UPLINK_ERROR)));
        let report = SwitchReport::Uplink(UplinkReport { adapter });
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.len() <= REPORT_CAPACITY, "{}", text.len());
        assert_eq!(serde_json::from_str::<SwitchReport>(&text).unwrap(), report);
    }

    #[test]
    fn a_socket_that_takes_the_place_of_another_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pf.sock");
        assert!(SocketIdentity::at(&path).is_err());
        let bind = || std::os::unix::net::UnixListener::bind(&path).unwrap();
        let first = bind();
        let identity = SocketIdentity::at(&path).unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop((first, client));
        assert_eq!(SocketIdentity::at(&path).unwrap(), identity, "it is what it was");
        std::fs::remove_file(&path).unwrap();
        // The kernel's clock for files stands still for some milliseconds at a time.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let _second = bind();
        assert_ne!(SocketIdentity::at(&path).unwrap(), identity);
    }

    #[test]
    fn commands_are_written_as_they_are_named() {
        let text = r#"{"port":"web","command":{"complete_switch":{"active":"vf","request":3}}}"#;
        let command: PortCommand = serde_json::from_str(text).unwrap();
        assert_eq!(command.command, VfCommand::CompleteSwitch { active: DataPath::Vf, request: 3 });
        assert_eq!(serde_json::to_string(&command).unwrap(), text);
        assert!(serde_json::from_str::<PortConfig>(r#"{"port":"a","mac":"","vlna":1}"#).is_err());
        let config = PortConfig {
            kind: PortKind::Legacy { socket: "/tmp/a.sock".into() },
            vlan: VlanMode::Trunk { native: 0, allowed: vec![5] },
            ..PortConfig::new("old", "02:00:00:00:00:01")
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<PortConfig>(&text).unwrap(), config);
        let text = r#"{"port":"a","mac":"","kind":{"kind":"vhost_user","socket":"/tmp/v"}}"#;
        let config: PortConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.kind, PortKind::VhostUser { socket: "/tmp/v".into() });
    }

    proptest! {
        #[test]
        fn page_ranges_survive_both_ways(
            frames in proptest::collection::vec(0u64..64, 1..200), offset in 0u32..4096,
        ) {
            let byte_count = frames.len() as u32 * 4096 - offset;
            let range = GpadlRange { byte_offset: offset, byte_count, page_frames: frames };
            let runs = PageRange::from(&range);
            prop_assert_eq!(GpadlRange::try_from(&runs).unwrap(), range);
        }
    }
}
