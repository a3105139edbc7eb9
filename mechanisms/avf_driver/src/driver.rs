//! Opening a device.

use std::sync::Arc;

use shared_memory::DescriptorRing;

use crate::{
    AvfControl, DriverConfig, DriverError, DriverMemory, Result, RxQueue, TxQueue,
    bar::Bar,
    buffers::Depot,
    gate::Generation,
    transport::{Transport, VfioUser},
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
        let memory = make_memory(&mut config)?;
        let transport = VfioUser::connect(&config.socket, config.timeouts.request)?;
        Self::start(Arc::new(transport), memory, config)
    }

    /// As [`open`](Self::open), for a function that is reached in another way; the configuration's socket means
    /// nothing. What is in `config.memory` must be memory that the transport can make reachable.
    ///
    /// # Errors
    /// As [`open`](Self::open); of the transport.
    pub fn open_on(
        transport: Arc<dyn Transport>,
        mut config: DriverConfig,
    ) -> Result<(AvfControl, Vec<QueuePair>)> {
        let memory = make_memory(&mut config)?;
        Self::start(transport, memory, config)
    }

    fn start(
        transport: Arc<dyn Transport>,
        memory: Arc<DriverMemory>,
        config: DriverConfig,
    ) -> Result<(AvfControl, Vec<QueuePair>)> {
        identify(&*transport)?;
        let was_reset = config.reset_at_open && transport.reset()?;
        let bar = Arc::new(Bar::open(transport)?);
        bar.transport().share_memory(&memory)?;
        let depot = Arc::new(Depot::new(memory.buffer_numbers()));
        let generation = Generation::default();
        let mut control = AvfControl::new(config, memory, bar, generation)?;
        control.activate(was_reset)?;
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

/// Checks the configuration and makes the memory that it asks for.
fn make_memory(config: &mut DriverConfig) -> Result<Arc<DriverMemory>> {
    config.check()?;
    let source = std::mem::take(&mut config.memory);
    Ok(Arc::new(DriverMemory::new(config, source)?))
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
fn identify(transport: &dyn Transport) -> Result<()> {
    let mut ids = [0; 4];
    transport.config_read(0, &mut ids)?;
    let [a, b, c, d] = ids;
    let (vendor, device) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    if vendor != VENDOR || !DEVICES.contains(&device) {
        return Err(DriverError::NotAvf { vendor, device });
    }
    Ok(())
}
