//! A software adapter with VFs, in this process, and VFs in the hands of the AVF driver.

use adapter::{Adapter, AdapterConfig};
use anyhow::{Context, ensure};
use avf_driver::{AvfControl, AvfDriver, DriverConfig, MemorySource, QueuePair};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};

use super::{cores::Cores, traffic::mac};

/// The adapter; its worker is bound to the forwarder's CPU.
pub(crate) struct Nic {
    pub(crate) adapter: Adapter,
    /// Of the sockets; removed with them.
    _directory: tempfile::TempDir,
    vfs: u32,
    filters: u32,
}

/// What a driver is opened with.
#[derive(Copy, Clone, Debug)]
pub(crate) struct VfOptions {
    /// Descriptors of each ring.
    pub(crate) ring: u16,
    /// Bytes of a buffer.
    pub(crate) buffer_size: u16,
}

/// A VF and its driver.
pub(crate) struct Vf {
    pub(crate) pair: QueuePair,
    /// Keeps the device open.
    control: AvfControl,
}

impl Nic {
    /// Powers an adapter on, with `vfs` VFs enabled and none allocated.
    pub(crate) fn start(vfs: u16, cores: Cores) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("clearway-bench").tempdir()?;
        let mut config = AdapterConfig::new("bench", directory.path());
        config.total_vfs = vfs;
        config.receive_filters = 70_000;
        config.worker.cpu = Some(cores.forwarder);
        let adapter = Adapter::start(config).context("the adapter does not start")?;
        adapter.enable_vfs(vfs)?;
        Ok(Self { adapter, _directory: directory, vfs: 0, filters: 0 })
    }

    /// Allocates the next VF, with a VPort and a filter for its address; returns its number.
    pub(crate) fn allocate(&mut self) -> anyhow::Result<u32> {
        // The adapter gives the lowest free VF, and none are freed here.
        let number = self.vfs;
        let (vf, _) = self.adapter.allocate_vf(MacAddress::new(mac(number)))?;
        ensure!(u32::from(vf.get()) == number, "VF {} instead of {number}", vf.get());
        self.vfs += 1;
        let vport = vport(number)?;
        self.adapter.create_vport(vport, FunctionId::Vf(vf), 1, InterruptModeration::default())?;
        self.add_filter(mac(number), vport)?;
        Ok(number)
    }

    /// Adds a receive filter.
    pub(crate) fn add_filter(&mut self, mac: [u8; 6], vport: VPortId) -> anyhow::Result<()> {
        self.filters += 1;
        let id = FilterId::new(self.filters).context("a filter id")?;
        let mac = MacAddress::new(mac);
        self.adapter
            .set_filter(id, ReceiveFilter { mac, vlan: VlanMatch::UntaggedOrZero, vport })?;
        Ok(())
    }

    /// Receive filters set.
    pub(crate) fn filters(&self) -> u32 {
        self.filters
    }

    /// Opens the driver on an allocated VF.
    pub(crate) fn open(&self, number: u32, options: VfOptions) -> anyhow::Result<Vf> {
        let socket = self.adapter.socket(FunctionId::Vf(vf(number)?));
        let mut config = DriverConfig::new(socket);
        config.tx_ring = options.ring;
        config.rx_ring = options.ring;
        config.buffer_size = options.buffer_size;
        config.max_frame = 9728.min(options.buffer_size.saturating_mul(5));
        config.spare_buffers = 0;
        config.memory = MemorySource::Own { huge_pages: true };
        let (control, pairs) =
            AvfDriver::open(config).with_context(|| format!("VF {number} does not open"))?;
        let pair = pairs.into_iter().next().context("the VF has no queue pair")?;
        Ok(Vf { pair, control })
    }
}

impl Vf {
    /// Whether 2 MiB pages back its memory.
    pub(crate) fn huge_pages(&self) -> bool {
        self.control.memory().huge_pages()
    }
}

/// The VPort of a VF.
pub(crate) fn vport(number: u32) -> anyhow::Result<VPortId> {
    VPortId::new(number + 1).context("a VPort id")
}

fn vf(number: u32) -> anyhow::Result<VfId> {
    u16::try_from(number).ok().and_then(VfId::new).context("a VF number")
}
