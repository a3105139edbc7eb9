//! Private controls of a VM worker: their codes and JSON payloads, for both ends of device control.
//!
//! Whatever else is the host side of a VM serves them too: so the virtualization stack drives them all alike.
//!
//! What the worker reports are levels: of each object the latest state that the client has not been told. A client that
//! connects is told of all that is there; one that comes again has missed nothing that still matters.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A private control's code, its input and its output.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum PrivateControl {
    /// Nothing in, [`WorkerStatus`] as JSON out.
    Status = 1,
    /// [`AdapterConfig`] as JSON in, nothing out: the VM has this synthetic NIC. It is offered to the guest whenever its
    /// switch is there. The same again changes nothing; another switch, port or address takes the NIC from the guest
    /// and offers it anew. STATUS_NOT_SUPPORTED if guests of this host side have no NICs of that kind.
    SetAdapter = 2,
    /// [`AdapterNumber`] as JSON in, nothing out: the VM has this NIC no more. STATUS_NOT_FOUND if it had none.
    /// Devices of the adapter stay.
    RemoveAdapter = 3,
    /// [`OfferVf`] as JSON in, nothing out, at once: offer the VF to the guest as a PCI device. Reported as
    /// [`DeviceState::Offered`] or [`DeviceState::OfferFailed`]. STATUS_SHARING_VIOLATION if the adapter has
    /// another device with this serial number; the same again changes nothing. STATUS_DEVICE_REMOVED once the guest is gone,
    /// STATUS_INSUFFICIENT_RESOURCES beyond [`MAX_DEVICES`]. Several devices of one adapter may exist, as one may be going while the next one comes.
    OfferVf = 4,
    /// [`ReplaceMitigatedRanges`] as JSON in, nothing out: the device's mitigated ranges are these now. STATUS_NOT_FOUND
    /// if there is no such device.
    ReplaceMitigatedRanges = 5,
    /// [`DeviceName`] as JSON in, nothing out, at once: ask the guest to give the device up. Reported as
    /// [`DeviceState::EjectComplete`] if it does. STATUS_NOT_FOUND if there is no such device.
    EjectVf = 6,
    /// [`RemoveVf`] as JSON in, nothing out, at once: take the device away, agreed or not. Reported as
    /// [`DeviceState::Removed`], also for what was never offered.
    RemoveVf = 7,
    /// Nothing in, [`WorkerReport`] as JSON out. Pends until there is something that this client has not been told.
    NextReport = 8,
    /// Nothing in, nothing out: the VM ends.
    Shutdown = 9,
    /// [`ShutDownGuest`] as JSON in, [`ShutDownAnswer`] as JSON out: ask the guest to shut down, by its integration service.
    /// Pends until the guest has answered; that it has done it shows by its end or reset. STATUS_NOT_SUPPORTED if it
    /// is not offered the service, or does not know what it is asked for; STATUS_DEVICE_NOT_READY if it has no driver
    /// for it, or not yet; STATUS_DEVICE_BUSY while it is asked already; STATUS_IO_TIMEOUT if it does not answer;
    /// STATUS_DEVICE_REMOVED if it closes the service, begins anew or ends instead, or has ended before.
    ShutDownGuest = 10,
    /// [`AdapterNumber`] as JSON in, nothing out, at once: what the guest receives comes by its VF no more. A guest that
    /// gives its VF up waits for this, for a moment, once [`DeviceState::InUse`] is over. STATUS_NOT_FOUND if there is no such
    /// adapter; STATUS_INVALID_DEVICE_REQUEST of a host side whose guests hear it by NetVSP.
    LetLeave = 11,
}

impl PrivateControl {
    /// The control with this code.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Status,
            2 => Self::SetAdapter,
            3 => Self::RemoveAdapter,
            4 => Self::OfferVf,
            5 => Self::ReplaceMitigatedRanges,
            6 => Self::EjectVf,
            7 => Self::RemoveVf,
            8 => Self::NextReport,
            9 => Self::Shutdown,
            10 => Self::ShutDownGuest,
            11 => Self::LetLeave,
            _ => return None,
        })
    }

    /// Its code.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Synthetic NICs that one VM can have.
pub const MAX_ADAPTERS: usize = 8;
/// Devices that can exist at a time, those included that are going.
pub const MAX_DEVICES: usize = 64;
/// Mitigated ranges of one BAR.
pub const MAX_MITIGATED_RANGES: usize = 256;
/// Room that the answer of [`PrivateControl::Status`] may need, bytes.
pub const STATUS_CAPACITY: usize = 128 << 10;
/// Room that the answer of [`PrivateControl::NextReport`] may need, bytes.
pub const REPORT_CAPACITY: usize = 4096;
/// Length at most of why a VF could not be offered ([`DeviceState::OfferFailed`]), bytes: what is longer is cut.
pub const MAX_CAUSE_LENGTH: usize = 512;
/// Room that the answer of [`PrivateControl::ShutDownGuest`] may need, bytes.
pub const SHUT_DOWN_CAPACITY: usize = 256;
/// How long a guest has to answer that it shuts down, seconds, unless it is said otherwise; and at most.
pub const SHUT_DOWN_LIMIT_SECONDS: (u32, u32) = (30, 600);

/// A synthetic NIC of the VM.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Number of the adapter in this VM, from 0. Its instance GUID is made from it, so that the guest knows the NIC again.
    pub adapter: u32,
    /// Address, as `00:15:5d:00:00:01`. Nothing but the instance GUID and reports depend on it here; the switch's
    /// port has its own.
    pub mac: String,
    /// Device control socket of the switch.
    pub switch: PathBuf,
    /// The switch's port.
    pub port: String,
    /// Channels that the guest may open, the primary one included; at least 1.
    pub max_channels: u16,
    /// What it is.
    #[serde(default)]
    pub kind: SyntheticNicKind,
}

/// What a synthetic NIC is.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyntheticNicKind {
    /// A NetVSC, offered over VMBus.
    #[default]
    NetVsc,
    /// A virtio-net, which whoever made the VM has connected to the switch.
    VirtioNet,
}

/// Names a synthetic NIC.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterNumber {
    /// Number of the adapter in this VM.
    pub adapter: u32,
}

/// Bytes of a BAR that the guest must not reach by itself (SPEC-PCIVIRT §6). Whole pages.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MitigatedRange {
    /// First byte, from the start of the BAR.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Reads go to the PF driver. Those that do not are the VF's to answer.
    #[serde(default = "yes")]
    pub reads: bool,
    /// Writes go to the PF driver.
    #[serde(default = "yes")]
    pub writes: bool,
}

const fn yes() -> bool {
    true
}

/// For each BAR that has any, its mitigated ranges.
pub type MitigatedRanges = BTreeMap<u8, Vec<MitigatedRange>>;

/// A VF for the guest.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferVf {
    /// Whose it is.
    pub adapter: u32,
    /// Names this offering, and tells the guest which NIC the device belongs to. Never used again for another one.
    pub serial: u32,
    /// Where the VF is served by vfio-user.
    pub vf_socket: PathBuf,
    /// Device control socket of the NIC.
    pub nic: PathBuf,
    /// VF id.
    pub vf: u16,
    /// Its mitigated ranges.
    #[serde(default)]
    pub mitigated_ranges: MitigatedRanges,
    /// Address of the guest's NIC, as `00:15:5d:00:00:01`: the synthetic NIC that the guest joins the VF with has it too,
    /// or it will not.
    #[serde(default)]
    pub mac: Option<String>,
}

/// Changes what of a device is mitigated.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceMitigatedRanges {
    /// Whose device.
    pub adapter: u32,
    /// Which one.
    pub serial: u32,
    /// All of its mitigated ranges.
    pub mitigated_ranges: MitigatedRanges,
}

/// Names a device.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceName {
    /// Whose device.
    pub adapter: u32,
    /// Which one.
    pub serial: u32,
}

/// Takes a device away.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveVf {
    /// Whose device.
    pub adapter: u32,
    /// Which one.
    pub serial: u32,
    /// Whether the guest did not agree. What is done is the same: a guest that has given the device up notices nothing,
    /// and one that has not sees it pulled out.
    pub surprise: bool,
}

/// Asks the guest to shut down.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutDownGuest {
    /// It waits for no program that would object.
    #[serde(default)]
    pub force: bool,
    /// It starts again afterwards.
    #[serde(default)]
    pub reboot: bool,
    /// Why: a reason code of Windows (SHTDN_REASON_…), which the guest may log. That it was planned, unless it is said.
    #[serde(default)]
    pub reason: Option<u32>,
    /// How long it has to answer, seconds: at most and by default as [`SHUT_DOWN_LIMIT_SECONDS`] says.
    #[serde(default)]
    pub limit_seconds: Option<u32>,
}

/// What the guest has answered.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum ShutDownAnswer {
    /// It shuts down.
    Initiated,
    /// It does not.
    Refused {
        /// Why: an HRESULT.
        status: u32,
    },
}

/// What a client has not been told.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "report")]
pub enum WorkerReport {
    /// The guest.
    Guest {
        /// How it is.
        state: GuestState,
        /// Which life of the guest it is in: a number that grows whenever it, or another in its place, begins anew; the
        /// same that its switches are told. Whoever hears from a switch of a life that was not reported here yet knows
        /// that it was reset.
        #[serde(default)]
        life: u64,
    },
    /// A device.
    Device {
        /// Whose device.
        adapter: u32,
        /// Which one.
        serial: u32,
        /// How it is.
        state: DeviceState,
    },
    /// A synthetic NIC that is not a NetVSC, so that no switch knows how its driver is: a virtio-net. Told of each that
    /// the guest has, and again when it changes, or has changed and is the same again. A guest that begins anew has none
    /// that is ready until it is told so.
    SyntheticNic {
        /// Number of the adapter.
        adapter: u32,
        /// How its driver is.
        state: SyntheticNicState,
    },
}

/// How the guest's driver of a synthetic NIC that is not a NetVSC is.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyntheticNicState {
    /// There is none, or it is not ready.
    Closed,
    /// It sends and receives.
    Ready {
        /// Whether it joins a VF with the NIC: VIRTIO_NET_F_STANDBY was agreed on.
        failover: bool,
    },
}

/// How the guest is.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// It runs.
    Running,
    /// It runs, and has started anew since this client was last told: what it had done is undone, what is offered to it
    /// stays. Said before what the devices became by it; the switches say on connections of their own, sooner or later
    /// than this, what the NICs became, and in which life.
    Reset,
    /// It has ended. All devices follow as [`DeviceState::Removed`].
    Gone,
}

/// How a device is.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// The VF is being looked at; not reported.
    Opening,
    /// It is offered to the guest. Also when the guest closes the bus again.
    Offered,
    /// It could not be offered, and nothing of it is left. Told once, as [`Self::Removed`].
    OfferFailed {
        /// NTSTATUS.
        status: u32,
        /// Why, and what to do, in one sentence, if more is known than the status says. At most [`MAX_CAUSE_LENGTH`].
        #[serde(default)]
        cause: Option<String>,
    },
    /// The guest's VPCI driver has opened the bus.
    BusOpened,
    /// A driver in the guest has put the device to work: an interrupt was routed to it.
    DeviceStarted,
    /// The driver has enabled the VF's queues: the guest sends and receives by it. Back to [`Self::DeviceStarted`] when
    /// it disables them or is about to, and no more when its guest begins anew. Only of guests whose synthetic NIC is no NetVSC; of the others NetVSC says which path they use.
    InUse,
    /// The guest has given the device up, after it was asked. Nothing is mapped any more.
    EjectComplete,
    /// It is gone: nothing maps its BARs, nobody uses its VF. Told once to each client that is connected, then forgotten.
    Removed,
}

/// What the worker is doing.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Name of the VM.
    pub name: String,
    /// How the guest is: running or gone.
    pub guest: GuestState,
    /// Version of VMBus that the guest speaks, if it is connected.
    pub vmbus: Option<String>,
    /// Synthetic NICs, by number.
    pub adapters: Vec<AdapterStatus>,
    /// Devices, by adapter and serial number.
    pub devices: Vec<DeviceStatus>,
    /// The guest's integration services.
    #[serde(default)]
    pub integration: IntegrationStatus,
}

/// The integration services that the guest is offered.
#[derive(Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct IntegrationStatus {
    /// How each of them is.
    pub services: Vec<ServiceStatus>,
    /// Whether the guest is alive, if the heartbeat is among them.
    pub heartbeat: Option<HeartbeatStatus>,
}

/// An integration service.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Which one.
    pub service: ServiceName,
    /// How it is.
    pub state: ServiceState,
    /// Packets of the guest that made no sense and were ignored.
    pub ignored: u64,
}

/// Names an integration service.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceName {
    /// The guest can be asked to shut down.
    Shutdown,
    /// The guest is watched.
    Heartbeat,
    /// The guest is told the time.
    TimeSync,
}

/// How an integration service is.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ServiceState {
    /// It is offered; the guest has no driver for it, or not yet.
    Offered,
    /// The guest was told which versions there are.
    Negotiating,
    /// It is in use.
    Ready {
        /// Version of the framework that is spoken, as `3.0`.
        framework: String,
        /// Version of the service's messages.
        version: String,
    },
    /// The guest's driver speaks none of the versions.
    Incompatible,
}

/// What is known of the guest's life.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct HeartbeatStatus {
    /// Whether it is alive.
    pub pulse: GuestPulse,
    /// Sequence number of its last answer.
    pub last_sequence: Option<u64>,
    /// How long ago that was, milliseconds.
    pub last_seen_ms: Option<u64>,
}

/// Whether a guest is alive.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestPulse {
    /// No heartbeat was ever answered.
    NeverSeen,
    /// It answers.
    Alive,
    /// It has answered, and does not any more: for 10 s, or because its driver is gone.
    Lost,
}

/// A synthetic NIC.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct AdapterStatus {
    /// Number of the adapter.
    pub adapter: u32,
    /// Address.
    pub mac: String,
    /// Device control socket of the switch.
    pub switch: PathBuf,
    /// The switch's port.
    pub port: String,
    /// Whether its switch is there; of a virtio-net, whether QEMU has one that a VF can be joined with.
    pub connected: bool,
    /// What keeps it from its switch, or from a VF.
    pub last_error: Option<String>,
    /// Whether it is offered to the guest.
    pub offered: bool,
    /// Channels that the guest has open.
    pub channels: u16,
}

/// A device.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Whose device.
    pub adapter: u32,
    /// Which one.
    pub serial: u32,
    /// VF id.
    pub vf: u16,
    /// How it is.
    pub state: DeviceState,
    /// Guest physical address of each BAR that the guest has mapped.
    pub bars: BTreeMap<u8, u64>,
    /// Interrupt vectors that reach the guest.
    pub vectors: u16,
}
