//! The way from a reset function to one that carries frames (SPEC-AVF Appendix A.1–A.7).

use std::{
    hash::{BuildHasher, RandomState},
    time::Instant,
};

use avf_protocol::{
    MacAddress, hash_enable,
    registers::{DYN_CTL01, DynCtl, ICR0_ENA1, RSTAT, cause, dyn_ctl, rx_tail, tx_tail},
    virtchnl::{
        Capabilities as Granted, Opcode, QueuePairInfo, Reply, Request, RxQueueInfo, TxQueueInfo,
        VectorMap, Version, VfResources,
    },
};

use super::{AvfControl, Capabilities, RebuildError, State};
use crate::{DriverError, Event, QueuePair, Result, vector::Vector};

/// COMMAND register of configuration space, and its Memory Space and Bus Master bits.
const PCI_COMMAND: u16 = 4;
const PCI_COMMAND_MEMORY_AND_MASTER: u16 = 0b110;

/// RSS key where the caller gives none: the widely used one of Microsoft's RSS verification suite,
/// repeated.
const RSS_KEY: [u8; 52] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa, 0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2,
    0x41, 0x67, 0x25, 0x3d,
];

/// Lookup table entries at most: what fits into a message with room to spare.
const MAX_LUT: u32 = 2048;

fn wanted_capabilities() -> Granted {
    Granted::L2
        | Granted::RSS_PF
        | Granted::WB_ON_ITR
        | Granted::ADV_LINK_SPEED
        | Granted::VLAN_V2
        | Granted::VLAN
        | Granted::USO
        | Granted::REQ_QUEUES
}

impl AvfControl {
    /// Makes the function active and, if configured and not yet done, without a trace of an earlier user.
    pub(crate) fn activate(&mut self, was_reset: bool) -> Result<()> {
        self.set_bus_master()?;
        self.wait_until_active()?;
        if self.config.reset_at_open && !was_reset {
            let (mailbox, bar) = (&mut self.mailbox, &*self.bar);
            mailbox.start(bar)?;
            self.reset()?;
        }
        Ok(())
    }

    /// Lets the device decode its registers, reach memory and interrupt.
    fn set_bus_master(&mut self) -> Result<()> {
        let transport = self.bar.transport();
        let mut command = [0; 2];
        transport.config_read(PCI_COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command) | PCI_COMMAND_MEMORY_AND_MASTER;
        transport.config_write(PCI_COMMAND, &command.to_le_bytes())
    }

    /// Starts the mailbox and agrees with the PF on version and resources. Returns how many queue
    /// pairs there will be.
    pub(crate) fn negotiate(&mut self) -> Result<u16> {
        self.start_mailbox()?;
        let mut resources = self.ask_resources()?;
        let wanted = self.config.queue_pairs;
        if resources.queue_pairs < wanted
            && resources.capabilities.contains(Granted::REQ_QUEUES)
            && self.ask_for_queues(resources.queue_pairs, wanted)?
        {
            self.start_mailbox()?;
            resources = self.ask_resources()?;
        }
        let queue_pairs = resources.queue_pairs.min(wanted);
        let max_frame = match resources.max_frame {
            0 => self.config.max_frame,
            limit => limit.min(self.config.max_frame),
        };
        let granted = resources.capabilities;
        self.capabilities = Capabilities {
            queue_pairs,
            vectors: resources.max_vectors,
            max_frame,
            rss: false,
            udp_segmentation: granted.contains(Granted::USO),
            vlan_stripping: false,
            vlan_insertion: false,
            vlan_filtering: false,
            granted,
        };
        self.resources = Some(resources);
        self.choose_mac(resources.default_mac);
        self.learn_vlan_mode()?;
        Ok(queue_pairs)
    }

    fn start_mailbox(&mut self) -> Result<()> {
        let started = self.mailbox.start(&*self.bar);
        self.watch(started)?;
        let version = match self.request(&Request::Version(Version::V1_1))? {
            Reply::Version(version) => version,
            _ => return Err(self.unusable(Opcode::Version, "it is empty")),
        };
        if version != Version::V1_1 {
            let problem = format!("the PF speaks {}.{}", version.major, version.minor);
            return Err(self.unusable(Opcode::Version, &problem));
        }
        Ok(())
    }

    fn ask_resources(&mut self) -> Result<VfResources> {
        let request = Request::GetVfResources(Some(wanted_capabilities()));
        let Reply::VfResources(resources) = self.request(&request)? else {
            return Err(self.unusable(Opcode::GetVfResources, "it is empty"));
        };
        if resources.num_vsis == 0 || resources.queue_pairs == 0 || resources.max_vectors < 2 {
            let problem = format!(
                "{} VSIs, {} queue pairs, {} vectors",
                resources.num_vsis, resources.queue_pairs, resources.max_vectors
            );
            return Err(self.unusable(Opcode::GetVfResources, &problem));
        }
        // Events from here on are read by what was granted.
        self.capabilities.granted = resources.capabilities;
        Ok(resources)
    }

    /// Asks for more queue pairs than the function `has`: as many as `wanted`, or as there are.
    /// `true` if the PF resets the function to give them (SPEC-AVF §4.8).
    fn ask_for_queues(&mut self, has: u16, wanted: u16) -> Result<bool> {
        let available = match self.request_queues(wanted)? {
            None => return Ok(true),
            Some(available) => available,
        };
        Ok((has + 1..wanted).contains(&available) && self.request_queues(available)?.is_none())
    }

    /// `None` if the function was reset to have `pairs` queue pairs, else how many could be had.
    fn request_queues(&mut self, pairs: u16) -> Result<Option<u16>> {
        let known = self.pending.len();
        match self.exchange(&Request::RequestQueues(pairs)) {
            Ok(refusal) => {
                let reply = Reply::parse(Opcode::RequestQueues, &refusal.payload);
                let Ok(Reply::RequestQueues(available)) = reply else { return Ok(Some(0)) };
                return Ok(Some(available));
            }
            // The announcement is the answer, and no news to the caller.
            Err(DriverError::NeedsRebuild) => {}
            // A PF may reset without announcing it.
            Err(DriverError::TimedOut { .. }) if !self.mailbox_is_on()? => {}
            Err(error) => return Err(error),
        }
        self.pending.truncate(known);
        self.wait_for_reset_begin()?;
        self.wait_until_active()?;
        Ok(None)
    }

    /// The address the caller wants, else the PF's, else the one in use, else one of our own
    /// making.
    fn choose_mac(&mut self, default: MacAddress) {
        self.mac = match self.config.mac {
            Some(address) => address,
            None if default.is_unicast() => default,
            None if self.mac.is_unicast() => self.mac,
            None => {
                let [a, b, c, d, e, f, ..] =
                    RandomState::new().hash_one(Instant::now()).to_le_bytes();
                // Locally administered, unicast.
                MacAddress([a & 0xFC | 0x02, b, c, d, e, f])
            }
        };
    }

    /// Configures and starts all queue pairs, after [`negotiate`](Self::negotiate). The pairs must
    /// be complete and in order.
    pub(crate) fn bring_up(
        &mut self,
        mut pairs: Vec<QueuePair>,
    ) -> std::result::Result<Vec<QueuePair>, Box<RebuildError>> {
        self.queue_pairs = u16::try_from(pairs.len()).unwrap_or(u16::MAX);
        match self.try_bring_up(&mut pairs) {
            Ok(()) => Ok(pairs),
            Err(error) => {
                // Some queues may be open already.
                self.generation.end();
                Err(Box::new(RebuildError { error, pairs }))
            }
        }
    }

    fn try_bring_up(&mut self, pairs: &mut [QueuePair]) -> Result<()> {
        self.set_bus_master()?;
        self.set_up_interrupts()?;
        self.set_up_rss()?;
        self.set_vlan_offloads()?;
        for (pair, index) in pairs.iter_mut().zip(0..) {
            let vector = self.queue_vector(index);
            let gate = self.generation.gate();
            pair.tx.restart(self.bar.doorbell(tx_tail(index)), gate.clone())?;
            pair.rx.restart(self.bar.doorbell(rx_tail(index)), gate, vector)?;
        }
        self.configure_queues()?;
        self.map_vectors()?;
        self.add_primary_address()?;
        self.restore_filters()?;
        self.set_poll_mode()?;
        // Buffers first: a queue that is enabled without any drops what comes before they do.
        for pair in pairs.iter_mut() {
            pair.rx.start()?;
        }
        self.request(&Request::EnableQueues(self.all_queues()))?;
        self.state = State::Running;
        self.next_reset_check = None;
        // What is told of resets so far is dealt with now.
        self.pending.retain(|event| !matches!(event, Event::ResetImpending | Event::ResetDetected));
        self.take_messages()
    }

    /// Gives the device an event descriptor for each vector, and arms the mailbox's.
    fn set_up_interrupts(&mut self) -> Result<()> {
        if !self.config.interrupts {
            return Ok(());
        }
        let needed = self.queue_pairs + 1;
        if self.capabilities.vectors < needed {
            return Err(DriverError::NotGranted("an interrupt vector for each queue pair"));
        }
        self.events = self.bar.transport().interrupts(needed)?;
        for event in &self.events {
            event.take();
        }
        self.write(DYN_CTL01, DynCtl::ENABLE.0)?;
        self.write(ICR0_ENA1, cause::ADMINQ)?;
        // The flush that all drivers do (SPEC-AVF §2.4).
        self.read(RSTAT).map(|_| ())
    }

    /// After the mailbox's interrupt fired: makes its descriptor unreadable and arms it again.
    pub(super) fn rearm_mailbox_interrupt(&mut self) -> Result<()> {
        let Some(event) = self.events.first() else { return Ok(()) };
        if event.take() {
            let posted = self.bar.post(DYN_CTL01, DynCtl::ENABLE.0);
            self.watch(posted)?;
        }
        Ok(())
    }

    fn queue_vector(&self, index: u16) -> Option<Vector> {
        let number = index + 1;
        let event = self.events.get(usize::from(number))?;
        Some(Vector::new(event.clone(), self.bar.clone(), number))
    }

    /// Spreads received frames over the queue pairs, or turns hashing off where there is one
    /// (SPEC-AVF §5.7).
    fn set_up_rss(&mut self) -> Result<()> {
        let Some(resources) = self.resources else { return Ok(()) };
        let usable = resources.capabilities.contains(Granted::RSS_PF)
            && (1..=MAX_LUT).contains(&resources.rss_lut_size)
            && (1..=MAX_LUT).contains(&resources.rss_key_size);
        if !usable {
            return Ok(());
        }
        let vsi_id = resources.vsi_id;
        if self.queue_pairs == 1 && !self.config.rss.always {
            // Spares the device the hash. A PF that does not know the message hashes for nothing.
            self.exchange(&Request::SetRssHena(0))?;
            return Ok(());
        }
        let key = self.config.rss.key.unwrap_or(RSS_KEY);
        let key: Vec<u8> =
            key.into_iter().cycle().zip(0..resources.rss_key_size).map(|(byte, _)| byte).collect();
        self.request(&Request::ConfigRssKey { vsi_id, key: &key })?;
        let lut: Vec<u8> = (0..resources.rss_lut_size)
            .map(|entry| entry % u32::from(self.queue_pairs))
            .map(|queue| queue.to_le_bytes())
            .map(|[queue, ..]| queue)
            .collect();
        self.request(&Request::ConfigRssLut { vsi_id, lut: &lut })?;
        self.capabilities.rss = true;
        let types = match self.config.rss.hash_types {
            Some(types) => types,
            None => {
                let answer = self.exchange(&Request::GetRssHenaCaps)?;
                match Reply::parse(Opcode::GetRssHenaCaps, &answer.payload) {
                    Ok(Reply::RssHenaCaps(types)) if answer.status == 0 => {
                        types & hash_enable::ADAPTIVE
                    }
                    // The PF's default is on after a reset.
                    _ => return Ok(()),
                }
            }
        };
        self.request(&Request::SetRssHena(types)).map(|_| ())
    }

    fn configure_queues(&mut self) -> Result<()> {
        let vsi_id = self.vsi_id();
        let pairs = (0..self.queue_pairs)
            .map(|index| {
                let (tx, rx) = self.memory.rings(index)?;
                Some(QueuePairInfo {
                    tx: TxQueueInfo {
                        vsi_id: vsi_id.into(),
                        queue_id: index.into(),
                        ring_len: self.config.tx_ring.into(),
                        dma_ring_addr: self.memory.iova_of(tx).into(),
                        ..TxQueueInfo::default()
                    },
                    rx: RxQueueInfo {
                        vsi_id: vsi_id.into(),
                        queue_id: index.into(),
                        ring_len: u32::from(self.config.rx_ring).into(),
                        databuffer_size: u32::from(self.config.buffer_size).into(),
                        max_pkt_size: u32::from(self.capabilities.max_frame).into(),
                        dma_ring_addr: self.memory.iova_of(rx).into(),
                        ..RxQueueInfo::default()
                    },
                })
            })
            .collect::<Option<Vec<_>>>()
            .unwrap_or_default();
        self.request(&Request::ConfigVsiQueues { vsi_id, pairs: &pairs }).map(|_| ())
    }

    /// The vector of each queue pair: one of its own, or shared where vectors are short.
    fn vector_of(&self, pair: u16) -> u16 {
        1 + pair % (self.capabilities.vectors - 1).max(1)
    }

    fn map_vectors(&mut self) -> Result<()> {
        let vsi_id = self.vsi_id();
        let mut maps: Vec<VectorMap> = Vec::new();
        for pair in 0..self.queue_pairs {
            let vector = self.vector_of(pair);
            let bit = 1u16 << pair;
            match maps.iter_mut().find(|map| map.vector_id.get() == vector) {
                Some(map) => map.rxq_map = (map.rxq_map.get() | bit).into(),
                None => maps.push(VectorMap {
                    vsi_id: vsi_id.into(),
                    vector_id: vector.into(),
                    rxq_map: bit.into(),
                    // Transmit completions are looked for, not announced.
                    txq_map: 0.into(),
                    rxitr_idx: 0.into(),
                    txitr_idx: 1.into(),
                }),
            }
        }
        self.request(&Request::ConfigIrqMap { vectors: &maps }).map(|_| ())
    }

    /// No interrupts, but descriptors written back promptly: what hardware needs for polling, and
    /// until a queue is armed.
    fn set_poll_mode(&mut self) -> Result<()> {
        let last = self
            .vector_of(self.queue_pairs - 1)
            .max(self.queue_pairs.min(self.capabilities.vectors - 1));
        for vector in 1..=last {
            self.write(dyn_ctl(vector), DynCtl::poll_mode(0, 2).0)?;
        }
        self.read(RSTAT).map(|_| ())
    }
}
