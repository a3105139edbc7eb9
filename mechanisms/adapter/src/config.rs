//! What an adapter is made of.

use std::path::PathBuf;

use ndis_protocol::MacAddress;
use uplink::UplinkSpec;

use crate::data_path::WorkerConfig;

/// Hardware of the adapter: what the default switch (standardized keywords) then divides up.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// Name in logs and reports.
    pub name: String,
    /// Folder of its sockets: `pf.sock`, `vf0.sock`, … `control.sock`. Made with mode 0700 if missing.
    pub directory: PathBuf,
    /// TotalVFs of the SR-IOV capability, 0–256.
    pub total_vfs: u16,
    /// Queue pairs over all VPorts, the default one included.
    pub queue_pairs: u32,
    /// The most queue pairs of one nondefault VPort: a power of two, 1–16.
    pub queue_pairs_per_vport: u16,
    /// Queue pairs of the default VPort, 1–16.
    pub default_vport_queue_pairs: u16,
    /// Receive filters.
    pub receive_filters: u32,
    /// Largest frame, bytes without FCS and with tags, 1518–9728.
    pub max_frame: u16,
    /// MAC address of the PF.
    pub mac: MacAddress,
    /// What the physical port is connected to.
    pub uplink: UplinkSpec,
    /// How the data path thread runs.
    pub worker: WorkerConfig,
}

impl AdapterConfig {
    /// 64 VFs, 512 queue pairs, 65,536 receive filters, jumbo frames, no cable.
    pub fn new(name: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            directory: directory.into(),
            total_vfs: 64,
            queue_pairs: 512,
            queue_pairs_per_vport: 16,
            default_vport_queue_pairs: 4,
            receive_filters: 65_536,
            max_frame: 9728,
            mac: MacAddress::new([0x02, 0xC1, 0xEA, 0, 0, 1]),
            uplink: UplinkSpec::None,
            worker: WorkerConfig::default(),
        }
    }

    /// VPorts of the switch: the default one and one for each VF.
    pub fn vports(&self) -> u32 {
        u32::from(self.total_vfs) + 1
    }
}
