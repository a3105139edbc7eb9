//! Opening a device.

use std::sync::Arc;

use shared_memory::DescriptorRing;
use vfio_user_client::{Client, ClientError, DeviceInfo, PciRegion};

use crate::{
    AvfControl, DriverConfig, DriverError, DriverMemory, Result, RxQueue, TxQueue, bar::Bar,
    buffers::Depot, gate::Generation,
};

/// PCI vendor and the device ids of functions that speak AVF (SPEC-AVF §1.1).
const VENDOR: u16 = 0x8086;
const DEVICES: [u16; 4] = [0x1889, 0x154C, 0x1571, 0x37CD];

/// Opens AVF devices.
#[derive(Debug)]
pub enum AvfDriver {}

/// One queue pair of an open device. The halves may be taken apart and live on different threads; a
/// pair that goes to [`AvfControl::rebuild`] or [`AvfControl::close`] must be whole again.
#[derive(Debug)]
pub struct QueuePair {
    /// Sends.
    pub tx: TxQueue,
    /// Receives.
    pub rx: RxQueue,
}

impl QueuePair {
    /// The queue index, from 0. Both halves have it.
    pub fn index(&self) -> u16 {
        self.tx.index()
    }
}

impl AvfDriver {
    /// Connects to the socket, brings the function up and returns its control and its queue pairs,
    /// ready for frames (SPEC-AVF Appendix A). The link may still be down: [`AvfControl::link`].
    ///
    /// # Errors
    /// The configuration is impossible; nobody serves the socket; the server or the PF does not
    /// answer, refuses, or offers no AVF. After an error nothing is left behind but what the server
    /// remembers until the connection closes.
    pub fn open(mut config: DriverConfig) -> Result<(AvfControl, Vec<QueuePair>)> {
        config.check()?;
        let source = std::mem::take(&mut config.memory);
        let memory = Arc::new(DriverMemory::new(&config, source)?);
        let client = Client::connect(&config.socket, config.timeouts.request)?;
        identify(&client)?;
        let bar = Arc::new(Bar::open(client)?);
        let size = memory.mapping().len() as u64;
        bar.client().dma_map(memory.iova().0, size, memory.fd(), memory.file_offset())?;
        let depot = Arc::new(Depot::new(memory.buffer_numbers()));
        let generation = Generation::default();
        let mut control = AvfControl::new(config, memory, bar, generation)?;
        control.reset_at_open()?;
        let granted = match control.negotiate() {
            // The PF resets the function at its own time.
            Err(DriverError::NeedsRebuild) => {
                control.reset()?;
                control.negotiate()?
            }
            granted => granted?,
        };
        let pairs =
            (0..granted).map(|index| pair(&control, &depot, index)).collect::<Result<Vec<_>>>()?;
        let pairs = match control.bring_up(pairs) {
            Err(failure) if matches!(failure.error, DriverError::NeedsRebuild) => {
                control.rebuild(failure.pairs)
            }
            pairs => pairs,
        };
        let pairs = pairs.map_err(|failure| failure.error)?;
        Ok((control, pairs))
    }
}

fn pair(control: &AvfControl, depot: &Arc<Depot>, index: u16) -> Result<QueuePair> {
    let memory = control.memory();
    let config = control.config();
    let (tx, rx) = memory
        .rings(index)
        .ok_or_else(|| DriverError::Configuration(format!("there is no room for pair {index}")))?;
    let tx = DescriptorRing::new(memory.mapping(), tx, config.tx_ring)?;
    let rx = DescriptorRing::new(memory.mapping(), rx, config.rx_ring)?;
    let gate = control.generation().gate();
    let doorbell = |offset| control.bar().doorbell(offset);
    Ok(QueuePair {
        tx: TxQueue::new(
            index,
            memory.clone(),
            depot.clone(),
            tx,
            config.report,
            doorbell(avf_protocol::registers::tx_tail(index)),
            gate.clone(),
        ),
        rx: RxQueue::new(
            index,
            memory.clone(),
            depot.clone(),
            rx,
            doorbell(avf_protocol::registers::rx_tail(index)),
            gate,
        ),
    })
}

/// Refuses functions that are not AVF.
fn identify(client: &Client) -> Result<()> {
    let info = client.device_info()?;
    if info.flags & DeviceInfo::FLAG_PCI == 0 {
        let problem = "it serves no PCI function".into();
        return Err(ClientError::Protocol { command: "DEVICE_GET_INFO", problem }.into());
    }
    let [a, b, c, d] = client.region_read::<4>(PciRegion::Config, 0)?;
    let (vendor, device) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    if vendor != VENDOR || !DEVICES.contains(&device) {
        return Err(DriverError::NotAvf { vendor, device });
    }
    Ok(())
}
