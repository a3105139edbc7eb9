//! The device of one function: its state, and its registers as a client reads and writes them.

use std::{collections::VecDeque, sync::Arc};

use avf_protocol::{
    MAX_QUEUE_PAIRS,
    registers::{DynCtl, Register},
    virtchnl::{Capabilities, EthStats},
};
use shared_memory::{DmaMap, DoorbellPage, PAGE_SIZE};

use crate::{
    AdminSettings, ConfigError, InterruptVectors, VfConfig, VfHost, VfSettings, mailbox::Message,
    registers::RegisterFile, virtchnl::VfState,
};

/// The pages of tail registers, which a client may have mapped.
#[derive(Clone, Debug)]
pub(crate) struct Doorbells {
    pub(crate) tx: DoorbellPage,
    pub(crate) rx: DoorbellPage,
}

impl Doorbells {
    /// Forgets all tails, and the ITRN registers in the RX page.
    pub(crate) fn clear(&self) {
        for word in 0..PAGE_SIZE / 4 {
            self.tx.store(word, 0);
            self.rx.store(word, 0);
        }
    }

    /// Clears the tails of the queues whose bits are set.
    pub(crate) fn clear_tails(&self, tx: u32, rx: u32) {
        for queue in queues(tx) {
            self.tx.store(queue.into(), 0);
        }
        for queue in queues(rx) {
            self.rx.store(queue.into(), 0);
        }
    }
}

/// The queues whose bits are set.
pub(crate) fn queues(bits: u32) -> impl Iterator<Item = u16> {
    (0..MAX_QUEUE_PAIRS).filter(move |queue| bits & 1 << queue != 0)
}

/// The control part of one Virtual Function, or of the PF's own queue pairs.
pub struct AvfDevice {
    pub(crate) config: VfConfig,
    pub(crate) admin: AdminSettings,
    pub(crate) doorbells: Doorbells,
    pub(crate) interrupts: Arc<InterruptVectors>,
    pub(crate) dma: DmaMap,
    pub(crate) registers: RegisterFile,
    pub(crate) vf: VfState,
    pub(crate) settings: VfSettings,
    /// Messages for which the driver has posted no buffer yet, oldest first.
    pub(crate) held: VecDeque<Message>,
    /// The link changed while too much was held: to be told when that is gone.
    pub(crate) link_event_owed: bool,
    /// The host's statistics at the last reset.
    pub(crate) statistics_base: EthStats,
    pub(crate) faults: u64,
}

impl AvfDevice {
    /// A function at power-on. `doorbells` are pages 0x0000 (TX) and 0x2000 (RX) of BAR0; `interrupts` has
    /// been made with the latter and as many vectors as `config` says.
    ///
    /// The DMA map is empty: bus mastering is off.
    pub fn new(
        config: VfConfig,
        doorbells: (DoorbellPage, DoorbellPage),
        interrupts: Arc<InterruptVectors>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        if interrupts.vectors() != config.vectors {
            return Err(ConfigError::VectorsDiffer {
                configured: config.vectors,
                made: interrupts.vectors(),
            });
        }
        let doorbells = Doorbells { tx: doorbells.0, rx: doorbells.1 };
        doorbells.clear();
        Ok(Self {
            config,
            admin: AdminSettings::default(),
            doorbells,
            interrupts,
            dma: DmaMap::empty(),
            registers: RegisterFile::new(),
            vf: VfState::new(config.queue_pairs, config.mac),
            settings: VfSettings::after_reset(config.queue_pairs, config.max_frame, config.mac),
            held: VecDeque::new(),
            link_event_owed: false,
            statistics_base: EthStats::default(),
            faults: 0,
        })
    }

    /// What the function was made of.
    pub fn config(&self) -> &VfConfig {
        &self.config
    }

    /// Everything the driver has set; what [`VfHost::apply`] was last called with.
    pub fn settings(&self) -> &VfSettings {
        &self.settings
    }

    /// The capabilities granted to the driver since the last reset; none before it asked.
    pub fn granted(&self) -> Capabilities {
        self.vf.granted
    }

    /// Whether a driver has begun since the last reset: it has negotiated the version, or asked for the VF's resources,
    /// with which a driver begins whose VF was reset under it.
    pub fn has_driver(&self) -> bool {
        self.vf.version_told || self.vf.resources_told
    }

    /// The queues that run, one bit each: TX and RX.
    pub fn running_queues(&self) -> (u32, u32) {
        self.vf.running()
    }

    /// Mailbox accesses outside of the DMA map since the device was made. The data path counts its own.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Reads a register of BAR0. Undefined offsets read 0; reading ICR01 clears it.
    pub fn read(&mut self, offset: u32) -> u32 {
        let Some(register) = Register::decode(offset) else { return 0 };
        let file = &self.registers;
        match register {
            Register::TxTail(queue) => self.doorbells.tx.load(queue.into()),
            Register::RxTail(queue) => self.doorbells.rx.load(queue.into()),
            Register::Itrn(index, register) => self.interrupts.itr(register + 1, index),
            Register::DynCtln(register) => self.interrupts.read_dyn_ctl(register + 1),
            Register::Icr01 => self.interrupts.read_icr01(),
            Register::Itr01(index) => self.interrupts.itr(0, index),
            Register::Icr0Ena1 => self.interrupts.read_icr0_ena1(),
            Register::StatCtl01 => file.stat_ctl01,
            Register::DynCtl01 => self.interrupts.read_dyn_ctl(0),
            Register::Arqbah => file.arq.base_high,
            Register::Arqbal => file.arq.base_low,
            Register::Arqlen => file.arq.length.0,
            Register::Arqh => file.arq.head_register(),
            Register::Arqt => file.arq.tail_register(),
            Register::Atqbah => file.atq.base_high,
            Register::Atqbal => file.atq.base_low,
            Register::Atqlen => file.atq.length.0,
            Register::Atqh => file.atq.head_register(),
            Register::Atqt => file.atq.tail_register(),
            Register::Rstat => file.reset_status,
            Register::Hena(index) => element(&file.hena, index),
            Register::Hkey(index) => element(&file.hkey, index),
            Register::Hlut(index) => element(&file.hlut, index),
        }
    }

    /// Writes a register of BAR0. Undefined offsets are ignored.
    pub fn write(&mut self, offset: u32, value: u32, now_ns: u64, host: &mut dyn VfHost) {
        let Some(register) = Register::decode(offset) else { return };
        match register {
            Register::TxTail(queue) => {
                self.doorbells.tx.store(queue.into(), value);
                host.doorbell();
            }
            Register::RxTail(queue) => {
                self.doorbells.rx.store(queue.into(), value);
                host.doorbell();
            }
            Register::Itrn(index, register) => {
                self.interrupts.set_itr(register + 1, index, value);
            }
            Register::Itr01(index) => self.interrupts.set_itr(0, index, value),
            Register::DynCtln(register) => {
                due(host, self.interrupts.write_dyn_ctl(register + 1, DynCtl(value), now_ns));
            }
            Register::DynCtl01 => {
                due(host, self.interrupts.write_dyn_ctl(0, DynCtl(value), now_ns));
            }
            Register::Icr0Ena1 => due(host, self.interrupts.write_icr0_ena1(value, now_ns)),
            Register::StatCtl01 => self.registers.stat_ctl01 = value,
            // Only reading does anything.
            Register::Icr01 => {}
            Register::Arqbah => self.registers.arq.base_high = value,
            Register::Arqbal => self.registers.arq.base_low = value,
            Register::Arqh => self.registers.arq.write_head(value),
            Register::Arqlen => self.write_arqlen(value),
            Register::Arqt => {
                self.registers.arq.write_tail(value);
                self.serve_mailbox(now_ns, host);
            }
            Register::Atqbah => self.registers.atq.base_high = value,
            Register::Atqbal => self.registers.atq.base_low = value,
            Register::Atqh => self.registers.atq.write_head(value),
            Register::Atqlen => drop(self.registers.atq.write_length(value)),
            Register::Atqt => {
                self.registers.atq.write_tail(value);
                self.serve_mailbox(now_ns, host);
            }
            // F writes 0 before it asks for a reset, which sets it again.
            Register::Rstat => self.registers.reset_status = value & 3,
            Register::Hena(index) => {
                set_element(&mut self.registers.hena, index, value);
                self.rss_registers_written(host);
            }
            Register::Hkey(index) => {
                set_element(&mut self.registers.hkey, index, value);
                self.rss_registers_written(host);
            }
            Register::Hlut(index) => {
                set_element(&mut self.registers.hlut, index, value);
                self.rss_registers_written(host);
            }
        }
    }

    /// Replaces the function's DMA map; an empty one is bus mastering off, with which nothing is read or
    /// written and the mailbox waits.
    pub fn set_dma_map(&mut self, map: DmaMap, now_ns: u64, host: &mut dyn VfHost) {
        self.dma = map;
        self.serve_mailbox(now_ns, host);
    }

    /// Whether the function may master the bus.
    pub(crate) fn is_bus_master(&self) -> bool {
        !self.dma.regions().is_empty()
    }
}

impl std::fmt::Debug for AvfDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AvfDevice")
            .field("config", &self.config)
            .field("registers", &self.registers)
            .field("vf", &self.vf)
            .finish_non_exhaustive()
    }
}

/// Tells the host of a message that is due later.
pub(crate) fn due(host: &mut dyn VfHost, deadline_ns: Option<u64>) {
    if let Some(deadline) = deadline_ns {
        host.interrupt_due(deadline);
    }
}

fn element(registers: &[u32], index: u8) -> u32 {
    registers.get(usize::from(index)).copied().unwrap_or(0)
}

fn set_element(registers: &mut [u32], index: u8, value: u32) {
    if let Some(register) = registers.get_mut(usize::from(index)) {
        *register = value;
    }
}
