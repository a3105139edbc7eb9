//! A VF behind its vfio-user socket, on a thread of its own, so that nobody waits for its server but a processor of the
//! guest that reads a register.

mod mmio;
mod segments;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use partition::GuestMemory;
use pcie_protocol::BarIndex;
use pcivirt_protocol::NtStatus;
use vfio_user_client::{Client, ClientError, PciIrq, PciRegion, SharedRegion};
use vmbus::EventFd;

use crate::reply::Reply;

pub(crate) use mmio::{Access, AccessKind, RegisterPages, TrappedPages, Window};
pub(crate) use segments::{Kind, segments};

/// How long a VF's server has to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of configuration space.
pub(crate) const CONFIG_SIZE: usize = 4096;
/// Mappable areas of one BAR that are looked at; a BAR with more of them is trapped as a whole.
const MAX_AREAS: usize = 64;

/// What becomes of a VF.
pub(crate) enum VfEvent {
    /// It is there, and has the guest's memory.
    Opened(Box<OpenedVf>),
    /// It cannot be had. Nothing of it is left, and nothing follows.
    Failed(NtStatus),
    /// Nobody here uses it any more. Nothing follows.
    Closed,
}

/// What is known of a VF.
pub(crate) struct OpenedVf {
    /// Its configuration space.
    pub(crate) config: Vec<u8>,
    /// What of its BARs may be mapped.
    pub(crate) shared: Vec<(BarIndex, SharedRegion)>,
    /// Hangs up when the server is gone.
    pub(crate) gone: OwnedFd,
}

enum Command {
    SetIrq { irq: PciIrq, number: u16, event: Option<EventFd> },
    Access(RegisterAccess),
    Close,
}

/// An access that is the VF's to answer, asked for by someone who does not wait.
pub(crate) struct RegisterAccess {
    pub(crate) bar: BarIndex,
    pub(crate) offset: u64,
    pub(crate) length: usize,
    /// `None`: a read.
    pub(crate) value: Option<[u8; 8]>,
    pub(crate) reply: Reply<[u8; 8]>,
}

/// The registers of a VF, for processors of the guest. They read as ones once the VF is closed.
#[derive(Default)]
pub(crate) struct Registers {
    /// Processors contend, and whoever closes the VF waits for an access that is under way.
    client: Mutex<Option<Client>>,
}

impl Registers {
    fn client(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, region: PciRegion, offset: u64, data: &mut [u8]) {
        let client = self.client();
        let read = client.as_ref().map(|client| client.region_read_into(region, offset, data));
        if !matches!(read, Some(Ok(()))) {
            data.fill(0xFF);
        }
    }

    fn write(&self, region: PciRegion, offset: u64, data: &[u8]) {
        if let Some(client) = &*self.client()
            && let Err(error) = client.region_write(region, offset, data)
        {
            tracing::debug!(?error, "a register of a VF was not written");
        }
    }

    fn access(&self, access: RegisterAccess) {
        let RegisterAccess { bar, offset, length, value, reply } = access;
        let Some(region) = region(bar) else { return };
        match value {
            Some(value) => {
                self.write(region, offset, value.get(..length).unwrap_or_default());
                reply.done([0; 8]);
            }
            None => {
                let mut value = [0; 8];
                self.read(region, offset, value.get_mut(..length).unwrap_or_default());
                reply.done(value);
            }
        }
    }
}

pub(crate) fn region(bar: BarIndex) -> Option<PciRegion> {
    [
        PciRegion::Bar0,
        PciRegion::Bar1,
        PciRegion::Bar2,
        PciRegion::Bar3,
        PciRegion::Bar4,
        PciRegion::Bar5,
    ]
    .get(usize::from(bar.get()))
    .copied()
}

/// A VF that is being opened, is open, or is being closed. Dropping it closes it, and waits for nothing.
pub(crate) struct Vf {
    commands: mpsc::Sender<Command>,
    registers: Arc<Registers>,
}

impl Vf {
    /// Opens the VF that is served at `socket`, and gives it `memory`.
    pub(crate) fn start(
        socket: PathBuf,
        memory: GuestMemory,
        tell: impl Fn(VfEvent) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, taken) = mpsc::channel();
        let registers = Arc::<Registers>::default();
        let shared = Arc::clone(&registers);
        std::thread::Builder::new()
            .name("vf".to_owned())
            .spawn(move || run(&socket, &memory, &taken, &shared, &tell))?;
        Ok(Self { commands, registers })
    }

    /// Its registers.
    pub(crate) fn registers(&self) -> &Arc<Registers> {
        &self.registers
    }

    /// Has an interrupt signal `event`, or nothing.
    pub(crate) fn set_irq(&self, irq: PciIrq, number: u16, event: Option<EventFd>) {
        let _ = self.commands.send(Command::SetIrq { irq, number, event });
    }

    /// Accesses a register, and tells `reply` of it.
    pub(crate) fn access(&self, access: RegisterAccess) {
        // If the thread has ended, the reply is dropped, and reads as ones.
        let _ = self.commands.send(Command::Access(access));
    }

    /// Resets the VF and leaves it; [`VfEvent::Closed`] follows.
    pub(crate) fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}

/// The status of a VF that cannot be opened.
fn status(error: &ClientError) -> NtStatus {
    match error {
        ClientError::Connect { .. } => NtStatus::NO_SUCH_DEVICE,
        ClientError::Gone => NtStatus::DEVICE_REMOVED,
        ClientError::TimedOut { .. } => NtStatus::IO_TIMEOUT,
        _ => NtStatus::UNSUCCESSFUL,
    }
}

fn run(
    socket: &Path,
    memory: &GuestMemory,
    commands: &mpsc::Receiver<Command>,
    registers: &Registers,
    tell: &impl Fn(VfEvent),
) {
    let client = match open(socket, memory) {
        Ok((client, opened)) => {
            *registers.client() = Some(client.clone());
            tell(VfEvent::Opened(Box::new(opened)));
            client
        }
        Err(error) => {
            tracing::warn!(socket = %socket.display(), ?error, "a VF cannot be opened");
            return tell(VfEvent::Failed(status(&error)));
        }
    };
    while let Ok(command) = commands.recv() {
        match command {
            Command::SetIrq { irq, number, event } => {
                let number = u32::from(number);
                let set = match &event {
                    Some(event) => {
                        client.set_irq_events(irq, number, &[std::os::fd::AsFd::as_fd(event)])
                    }
                    None => client.clear_irq_events(irq, number, 1),
                };
                if let Err(error) = set {
                    tracing::debug!(?error, number, "an interrupt of a VF was not routed");
                }
            }
            Command::Access(access) => registers.access(access),
            Command::Close => break,
        }
    }
    *registers.client() = None;
    // The server resets the function anyway when it sees the connection end; this says when it has.
    if let Err(error) = client.reset() {
        tracing::debug!(?error, "a VF that is left was not reset");
    }
    drop(client);
    tell(VfEvent::Closed);
}

fn open(socket: &Path, memory: &GuestMemory) -> Result<(Client, OpenedVf), ClientError> {
    let client = Client::connect(socket, PATIENCE)?;
    client.device_info()?;
    let gone = client.duplicate_fd()?;
    let mut config = vec![0; CONFIG_SIZE];
    client.region_read_into(PciRegion::Config, 0, &mut config)?;
    let mut shared = Vec::new();
    for bar in BarIndex::ALL {
        let Some(region) = region(bar) else { continue };
        if let Some(pages) = client.region_info(region)?.shared
            && pages.areas.len() <= MAX_AREAS
        {
            shared.push((bar, pages));
        }
    }
    for region in memory.regions() {
        let length = u64::try_from(region.length).unwrap_or(u64::MAX);
        let fd = std::os::fd::AsFd::as_fd(region);
        client.dma_map(region.gpa, length, fd, region.offset)?;
    }
    Ok((client, OpenedVf { config, shared, gone }))
}
