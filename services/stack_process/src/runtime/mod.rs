//! The thread that owns the stack: what happens goes in as inputs, and effects are carried out before anything else is
//! looked at.

mod asked;
mod desired;
mod greeting;
mod links;
mod nics;
mod report;
mod switches;
mod workers;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use device_control::DriverName;
use virtual_switch::control::UplinkReport;
use virtualization_stack::{
    AdapterId, AdapterKind, Effect, Input, NetVspCommand, NetVspReport, NicId, Stack, StackConfig,
    StackError, Time, VfSerial, VmId, VmState, VmSwitchId, VpciCommand,
};

use crate::Configuration;
use crate::configuration::{AdapterSettings, NicSettings, SwitchSettings};
use crate::event::{AnyEvent, EventRing, Peer, ProcessEvent};
use crate::message::{Message, Ticket};
use crate::names::Names;
use asked::Waiting;
use greeting::Greeting;
use links::{Link, Sent};

/// How long something that a switch has refused is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// A VM.
#[derive(Debug)]
struct Vm {
    name: String,
    socket: std::path::PathBuf,
    /// As its host side says.
    state: VmState,
    /// The latest life of its guest that was heard of, from its host side or from a switch; 0 is none.
    life: u64,
    /// What its host side was told of its adapters on this connection.
    told: BTreeMap<u32, vm_worker::control::AdapterConfig>,
    /// How the drivers of its virtio-nets are, by number, as its host side said last on this connection, in this life of
    /// the guest.
    synthetic_nics: BTreeMap<u32, vm_worker::control::SyntheticNicState>,
}

/// A switch.
#[derive(Debug)]
struct Switch {
    settings: SwitchSettings,
    /// The ports that it was told of on this connection; `None` until it was asked which it has.
    told: Option<BTreeMap<String, virtual_switch::control::PortConfig>>,
    /// When ports that it refused are tried again.
    retry: Option<Instant>,
    /// How its uplink is, as it says on this connection.
    uplink: UplinkReport,
}

/// A VM network adapter.
#[derive(Debug)]
struct Adapter {
    vm: VmId,
    /// Its number in the VM.
    number: u32,
    settings: AdapterSettings,
    /// The switch that has its port: the one it is connected to, or the one before as long as it has a VF of that.
    port_switch: Option<VmSwitchId>,
    /// It is being removed.
    leaving: bool,
    /// What its port last reported, on this connection to its switch.
    port: Option<PortLevels>,
    /// The last request of its port that the stack has taken in: the one that it answers.
    request: u64,
    port_error: Option<String>,
    /// The VF that its VM's host side was told to offer, and that is not reported gone.
    offered: Option<VfSerial>,
    /// The guest of a virtio-net sends and receives by that VF, as its host side said last.
    in_use: bool,
    /// By which path the guest of a virtio-net takes frames, as its VM's host side said last, if it did.
    path: Option<virtual_switch::GuestPath>,
}

impl Adapter {
    /// Whether its synthetic NIC is a virtio-net: its port has no NetVSP, and its VM's host side says how it is.
    fn is_virtio_net(&self) -> bool {
        self.settings.kind == AdapterKind::VhostUser
    }
}

/// What a port last reported.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct PortLevels {
    guest: virtual_switch::control::GuestState,
    session: u64,
    request: u64,
    vf: Option<u32>,
    active: virtual_switch::control::DataPath,
}

/// The runtime.
pub(crate) struct Runtime {
    configuration: Configuration,
    names: Names,
    stack: Stack,
    /// The number before the first serial number of this life, and how many were seen given out.
    first_serial: u32,
    serials: u32,
    start: Instant,
    timer: Option<Time>,
    inputs: VecDeque<Input>,
    nics: BTreeMap<NicId, NicSettings>,
    switches: BTreeMap<VmSwitchId, Switch>,
    vms: BTreeMap<VmId, Vm>,
    adapters: BTreeMap<AdapterId, Adapter>,
    ids: desired::Ids,
    /// Until NICs are connected.
    greeting: Option<Greeting>,
    driver: DriverName,
    links: BTreeMap<Peer, Link>,
    requests: BTreeMap<Ticket, Sent>,
    last_ticket: u64,
    last_attempt: u64,
    events: EventRing,
    waiting: Vec<Waiting>,
    messages: Receiver<Message>,
    sender: Sender<Message>,
    shutdown: Sender<()>,
}

impl Runtime {
    /// A runtime of a configuration, as the client `driver` of all others.
    pub(crate) fn new(
        configuration: Configuration,
        driver: DriverName,
        first_serial: u32,
        (sender, messages): (Sender<Message>, Receiver<Message>),
        shutdown: Sender<()>,
    ) -> Result<Self, StackError> {
        let config = StackConfig {
            timeouts: configuration.timeouts,
            silent_guest: configuration.silent_guest,
            host_override: false,
            last_serial: first_serial,
        };
        let mut runtime = Self {
            configuration: Configuration::default(),
            names: Names::default(),
            stack: Stack::new(config),
            first_serial,
            serials: 0,
            start: Instant::now(),
            timer: None,
            inputs: VecDeque::new(),
            nics: BTreeMap::new(),
            switches: BTreeMap::new(),
            vms: BTreeMap::new(),
            adapters: BTreeMap::new(),
            ids: desired::Ids::default(),
            greeting: None,
            driver,
            links: BTreeMap::new(),
            requests: BTreeMap::new(),
            last_ticket: 0,
            last_attempt: 0,
            events: EventRing::default(),
            waiting: Vec::new(),
            messages,
            sender,
            shutdown,
        };
        runtime.greeting = Some(Greeting::of(std::iter::empty()));
        runtime.configure(configuration)?;
        runtime.greeting = Some(Greeting::of(runtime.links.keys().copied()));
        Ok(runtime)
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        loop {
            self.settle();
            let message = match self.next_time() {
                Some(at) => self.messages.recv_deadline(at),
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => self.time(),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Connected { peer, attempt, client } => self.connected(peer, attempt, client),
            Message::CannotConnect { peer, attempt, error } => {
                self.cannot_connect(peer, attempt, error);
            }
            Message::Done(ticket) => self.done(ticket),
            Message::Asked { client, control, request } => self.asked(client, control, request),
            Message::Cancelled { client, request } => self.cancelled(client, request),
            Message::Reload => {
                let outcome = self.reload();
                tracing::info!(?outcome, "the configuration was read again");
            }
            // Ends the loop before it comes here.
            Message::Stop => {}
        }
    }

    /// Feeds the stack until nothing follows any more, then tells whoever waits for events.
    fn settle(&mut self) {
        loop {
            while let Some(input) = self.inputs.pop_front() {
                match self.step(input) {
                    Ok(()) => {}
                    // Desired state is checked when it is set; what is reported about is known.
                    Err(error) => tracing::error!(%error, "the stack refuses an input"),
                }
            }
            if !self.follow() {
                break;
            }
        }
        self.serve_events();
    }

    /// One input, and what follows from it.
    fn step(&mut self, input: Input) -> Result<(), StackError> {
        let effects = self.effects_of(input)?;
        effects.into_iter().for_each(|effect| self.carry_out(effect));
        Ok(())
    }

    /// One input; what follows from it is to be carried out at once.
    fn effects_of(&mut self, input: Input) -> Result<Vec<Effect>, StackError> {
        if let Input::NetVsp(id, NetVspReport::AsksDataPath(_)) = input
            && let Some(adapter) = self.adapters.get_mut(&id)
        {
            adapter.request = adapter.port.map_or(0, |port| port.request);
        }
        self.stack.step(input, Time::since_start(self.start.elapsed()))
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Nic { nic, request, call } => self.nic_call(nic, request, call),
            Effect::CancelNic { nic, request } => self.cancel_nic_call(nic, request),
            Effect::DisconnectNic { nic } => self.give_up(nic),
            Effect::NetVsp { adapter, command } => {
                if let NetVspCommand::VfAvailable { serial } = command {
                    self.saw(serial);
                }
                self.port_command(adapter, command);
            }
            Effect::Vpci { adapter, serial, command } => {
                if matches!(command, VpciCommand::Offer(_)) {
                    self.saw(serial);
                }
                self.device_command(adapter, serial, command);
            }
            Effect::SetTimer(timer) => self.timer = timer,
            Effect::Publish(event) => self.events.push(AnyEvent::Stack(event), &self.names),
        }
    }

    fn publish(&mut self, event: ProcessEvent) {
        self.events.push(AnyEvent::Process(event), &self.names);
    }

    /// When something is to be done if nothing happens before.
    fn next_time(&self) -> Option<Instant> {
        let stack = self.timer.map(|at| self.start + at.elapsed());
        let ports = self.switches.values().filter_map(|switch| switch.retry);
        let greeting = self.greeting.as_ref().map(|greeting| greeting.until);
        ports.chain(stack).chain(greeting).min()
    }

    fn time(&mut self) {
        let now = Instant::now();
        if self.timer.is_some_and(|at| self.start + at.elapsed() <= now) {
            self.inputs.push_back(Input::Tick);
        }
        let due = self.switches.iter().filter(|(_, s)| s.retry.is_some_and(|at| at <= now));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(switch) = self.switches.get_mut(&id) {
                switch.retry = None;
            }
            self.tell_ports(id);
        }
    }

    /// Takes notice that a serial number is given out.
    fn saw(&mut self, serial: VfSerial) {
        self.serials = self.serials.max(serial.0.wrapping_sub(self.first_serial));
    }

    /// Whether a serial number was given out in this life of the stack.
    const fn is_ours(&self, serial: u32) -> bool {
        let number = serial.wrapping_sub(self.first_serial);
        number != 0 && number <= self.serials
    }
}
