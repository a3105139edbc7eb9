//! Exchanging messages with the PF, and waiting for what it does.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use avf_protocol::{
    admin_queue::MAX_MESSAGE,
    registers::{ARQLEN, QueueLength, RSTAT, ResetState},
    virtchnl::{self, EventMessage, Opcode, Reply, Request},
};
use zerocopy::FromBytes;

use super::{AvfControl, State};
use crate::{DriverError, Event, Result, mailbox::Message, vector};

/// A wait between two looks at the device: short at first, since most answers are there at once.
struct Pause {
    next: Duration,
    deadline: Instant,
}

impl Pause {
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_millis(2);

    fn until(limit: Duration) -> Self {
        Self { next: Self::SHORTEST, deadline: Instant::now() + limit }
    }

    /// Sleeps a little, less if the server dies meanwhile. `false` once the time is up.
    fn sleep(&mut self, control: &AvfControl) -> Result<bool> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        vector::wait_readable(&[control.gone.as_fd()], Some(self.next.min(left)))?;
        self.next = (self.next * 2).min(Self::LONGEST);
        Ok(true)
    }
}

/// A PF that has not answered for this long may have reset the function and lost the announcement.
const LOOK_FOR_RESET: Duration = Duration::from_millis(50);

impl AvfControl {
    /// Sends a request without waiting for an answer.
    pub(super) fn send(&mut self, request: &Request<'_>) -> Result<()> {
        self.alive()?;
        let sent = self.mailbox.send(&*self.bar, request);
        self.watch(sent)
    }

    /// Sends a request and waits for the PF's answer.
    pub(super) fn request(&mut self, request: &Request<'_>) -> Result<Reply> {
        let opcode = request.opcode();
        let message = self.exchange(request)?;
        if message.status != 0 {
            return Err(DriverError::Virtchnl { operation: name(opcode), status: message.status });
        }
        Reply::parse(opcode, &message.payload)
            .map_err(|error| self.unusable(opcode, &error.to_string()))
    }

    /// Sends a request and waits for the PF's answer, whatever its status.
    pub(super) fn exchange(&mut self, request: &Request<'_>) -> Result<Message> {
        let opcode = request.opcode();
        let resets = self.resets_noticed();
        // What came before cannot answer what is sent now.
        self.take_messages()?;
        if self.resets_noticed() != resets {
            return Err(DriverError::NeedsRebuild);
        }
        self.send(request)?;
        let limit = self.config.timeouts.mailbox;
        let mut pause = Pause::until(limit);
        let mut look_for_reset = Instant::now() + LOOK_FOR_RESET;
        loop {
            while let Some(message) = self.next_message()? {
                if message.opcode == opcode.value() && opcode != Opcode::Event {
                    return Ok(message);
                }
                self.unasked(&message);
            }
            // A reset that was announced meanwhile takes the answer with it.
            if self.resets_noticed() != resets {
                return Err(DriverError::NeedsRebuild);
            }
            let check = self.bar.transport().check();
            self.watch(check)?;
            let more = pause.sleep(self)?;
            if !more || Instant::now() >= look_for_reset {
                look_for_reset = Instant::now() + LOOK_FOR_RESET;
                self.look_for_reset()?;
            }
            if !more && self.resets_noticed() == resets {
                return Err(DriverError::TimedOut { what: "the answer of the PF", limit });
            }
        }
    }

    /// Changes when a reset is noticed.
    fn resets_noticed(&self) -> (State, usize) {
        let announced = |event: &&Event| {
            matches!(event, Event::ResetImpending | Event::ResetDetected | Event::PfDriverClosed)
        };
        (self.state, self.pending.iter().filter(announced).count())
    }

    fn next_message(&mut self) -> Result<Option<Message>> {
        let message = self.mailbox.receive(&*self.bar);
        self.watch(message)
    }

    /// Takes all messages that are waiting; none of them can be an answer.
    pub(super) fn take_messages(&mut self) -> Result<()> {
        while self.mailbox.has_message() {
            match self.next_message()? {
                Some(message) => self.unasked(&message),
                None => break,
            }
        }
        Ok(())
    }

    /// A message that answers nothing: an event, or a stray.
    fn unasked(&mut self, message: &Message) {
        let event = (message.opcode == Opcode::Event.value())
            .then(|| EventMessage::read_from_prefix(&message.payload).ok())
            .flatten();
        let Some((event, _)) = event else {
            self.strays += 1;
            return;
        };
        let advanced = self.capabilities.granted.contains(virtchnl::Capabilities::ADV_LINK_SPEED);
        match virtchnl::Event::from_message(&event, advanced) {
            virtchnl::Event::LinkChange(link) => {
                if link != self.link {
                    self.link = link;
                    self.push(Event::LinkChange(link));
                }
            }
            virtchnl::Event::ResetImpending => {
                self.stop(State::NeedsRebuild, Event::ResetImpending)
            }
            virtchnl::Event::PfDriverClose => self.push(Event::PfDriverClosed),
            virtchnl::Event::Unknown(_) => self.strays += 1,
        }
    }

    /// Waits until a reset that was asked for has begun: the mailbox goes off (SPEC-AVF §7.2).
    pub(super) fn wait_for_reset_begin(&mut self) -> Result<()> {
        let limit = self.config.timeouts.reset;
        let mut pause = Pause::until(limit);
        while QueueLength(self.read(ARQLEN)?).is_enabled() {
            if !pause.sleep(self)? {
                return Err(DriverError::TimedOut { what: "the reset of the function", limit });
            }
        }
        Ok(())
    }

    /// Waits until the function can be used (SPEC-AVF §7.1).
    pub(super) fn wait_until_active(&mut self) -> Result<()> {
        let limit = self.config.timeouts.reset;
        let mut pause = Pause::until(limit);
        loop {
            match ResetState::of(self.read(RSTAT)?) {
                ResetState::Completed | ResetState::Active => return Ok(()),
                ResetState::InProgress | ResetState::Invalid => {}
            }
            if !pause.sleep(self)? {
                return Err(DriverError::TimedOut {
                    what: "the end of the function's reset",
                    limit,
                });
            }
        }
    }

    pub(super) fn unusable(&self, opcode: Opcode, problem: &str) -> DriverError {
        DriverError::Answer { operation: name(opcode), problem: problem.into() }
    }
}

/// The opcode as the specification writes it, for those the driver sends.
pub(super) fn name(opcode: Opcode) -> &'static str {
    match opcode {
        Opcode::Version => "VERSION",
        Opcode::ResetVf => "RESET_VF",
        Opcode::GetVfResources => "GET_VF_RESOURCES",
        Opcode::ConfigVsiQueues => "CONFIG_VSI_QUEUES",
        Opcode::ConfigIrqMap => "CONFIG_IRQ_MAP",
        Opcode::EnableQueues => "ENABLE_QUEUES",
        Opcode::DisableQueues => "DISABLE_QUEUES",
        Opcode::AddEthAddr => "ADD_ETH_ADDR",
        Opcode::DelEthAddr => "DEL_ETH_ADDR",
        Opcode::AddVlan | Opcode::AddVlanV2 => "ADD_VLAN",
        Opcode::DelVlan | Opcode::DelVlanV2 => "DEL_VLAN",
        Opcode::ConfigPromiscuousMode => "CONFIG_PROMISCUOUS_MODE",
        Opcode::GetStats => "GET_STATS",
        Opcode::ConfigRssKey => "CONFIG_RSS_KEY",
        Opcode::ConfigRssLut => "CONFIG_RSS_LUT",
        Opcode::GetRssHenaCaps => "GET_RSS_HENA_CAPS",
        Opcode::SetRssHena => "SET_RSS_HENA",
        Opcode::RequestQueues => "REQUEST_QUEUES",
        Opcode::GetOffloadVlanV2Caps => "GET_OFFLOAD_VLAN_V2_CAPS",
        Opcode::EnableVlanStripping | Opcode::EnableVlanStrippingV2 => "ENABLE_VLAN_STRIPPING",
        Opcode::DisableVlanStripping | Opcode::DisableVlanStrippingV2 => "DISABLE_VLAN_STRIPPING",
        Opcode::EnableVlanInsertionV2 => "ENABLE_VLAN_INSERTION",
        Opcode::DisableVlanInsertionV2 => "DISABLE_VLAN_INSERTION",
        _ => "message",
    }
}

const _: () = assert!(MAX_MESSAGE == crate::memory::MAILBOX_BUFFER);
