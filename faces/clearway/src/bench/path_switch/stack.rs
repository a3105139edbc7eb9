//! The virtualization stack on a thread of its own: its requests go to a real adapter by device control, its words
//! about the data path to a port of a virtual switch. The VPCI end is played: a guest that takes every VF.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, unbounded};
use device_control::{DeviceControlClient, DriverName, SentRequest};
use ndis_protocol::{MacAddress, Name, VPortId, VfId};
use netvsp::server::VfCommand;
use netvsp_protocol::nvsp::DataPath as NvspPath;
use stack_process::nic_call;
use virtual_switch::{SwitchHandle, SyntheticPort};
use virtualization_stack::{
    AdapterConfig, AdapterId, DataPath, Effect, Input, NetVspCommand, NetVspReport, NicCall, NicId,
    RequestId, Stack, StackConfig, SwitchConfig, SwitchKind, Time, VmConfig, VmId, VmState,
    VmSwitchId, VpciCommand, VpciReport,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const NIC: NicId = NicId(0);
const SWITCH: VmSwitchId = VmSwitchId(0);
/// How long the thread waits for one thing before it looks for another.
const TURN: Duration = Duration::from_millis(1);

/// What the measuring thread hears.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Told {
    /// This VF, with this serial number, is the adapter's.
    Offered(AdapterId, VfId, u32),
    /// This path is active for the adapter.
    Active(AdapterId, DataPath),
}

/// The stack's thread; dropping it ends it.
pub(super) struct StackThread {
    pub(super) inputs: Sender<Input>,
    pub(super) told: Receiver<Told>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// The adapter whose port is in a switch; the ports of others are played.
#[derive(Clone)]
pub(super) struct Bonded {
    pub(super) adapter: AdapterId,
    pub(super) switch: SwitchHandle,
    pub(super) port: VPortId,
}

impl StackThread {
    /// Starts it on the adapter with this control socket.
    pub(super) fn start(socket: &Path, bonded: Bonded) -> anyhow::Result<Self> {
        let client = DeviceControlClient::connect(socket, &DriverName::new("stack")?, PATIENCE)?;
        let (inputs, from_outside) = unbounded();
        let (tell, told) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let mut carrier = Carrier {
            stack: Stack::new(StackConfig::default()),
            client,
            requests: BTreeMap::new(),
            inputs: VecDeque::new(),
            bonded,
            tell,
            start: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("stack".into()).spawn({
            let stop = Arc::clone(&stop);
            move || carrier.run(&from_outside, &stop)
        })?;
        let name = Name::new("bench").context("a VM's name")?;
        let kind = SwitchKind::External { nic: NIC, teamed: false };
        let config = SwitchConfig { name: "external".into(), kind, iov_enabled: true };
        let stack = Self { inputs, told, stop, thread: Some(thread) };
        stack.tell(Input::SwitchSet(SWITCH, config))?;
        stack.tell(Input::SwitchStarted(SWITCH))?;
        for vm in [VmId(0), VmId(1)] {
            let config = VmConfig { name: name.clone(), friendly_name: name.clone() };
            stack.tell(Input::VmSet(vm, config))?;
            stack.tell(Input::VmState(vm, VmState::Running))?;
        }
        stack.tell(Input::NicConnected(NIC))?;
        Ok(stack)
    }

    pub(super) fn tell(&self, input: Input) -> anyhow::Result<()> {
        self.inputs.send(input).ok().context("the stack's thread has ended")
    }

    /// Has an adapter made that is to have a VF.
    pub(super) fn add(&self, id: AdapterId, mac: [u8; 6]) -> anyhow::Result<()> {
        let mut config = AdapterConfig::new(VmId(id.0), MacAddress::new(mac));
        config.switch = Some(SWITCH);
        config.iov_weight = 100;
        self.tell(Input::AdapterSet(id, config))
    }

    /// Waits until something is told.
    pub(super) fn until<T>(
        &self,
        what: &str,
        mut wanted: impl FnMut(Told) -> Option<T>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            let told =
                self.told.recv_deadline(end).with_context(|| format!("{what} does not come"))?;
            if let Some(value) = wanted(told) {
                return Ok(value);
            }
        }
    }
}

impl Drop for StackThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(error = %format!("{error:#}"), "the stack's thread failed")
                }
                Err(_) => tracing::error!("the stack's thread panicked"),
            }
        }
    }
}

/// Carries the stack's effects out.
struct Carrier {
    stack: Stack,
    client: DeviceControlClient,
    requests: BTreeMap<RequestId, (NicCall, SentRequest)>,
    inputs: VecDeque<Input>,
    bonded: Bonded,
    tell: Sender<Told>,
    start: Instant,
}

impl Carrier {
    fn run(&mut self, outside: &Receiver<Input>, stop: &AtomicBool) -> anyhow::Result<()> {
        while !stop.load(Ordering::Acquire) {
            let mut worked = false;
            while let Ok(input) = outside.try_recv() {
                self.take(input)?;
                worked = true;
            }
            worked |= self.completions()?;
            if worked {
                continue;
            }
            // Answers of the adapter come quickly; while none is awaited, only others have news.
            match self.requests.values().find(|(call, _)| !call.is_long_poll()) {
                Some((_, sent)) => {
                    sent.wait_for(TURN);
                }
                None => {
                    if let Ok(input) = outside.recv_timeout(TURN) {
                        self.take(input)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, input: Input) -> anyhow::Result<()> {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            let now = Time::since_start(self.start.elapsed());
            for effect in self.stack.step(input, now)? {
                self.carry_out(effect)?;
            }
        }
        Ok(())
    }

    fn completions(&mut self) -> anyhow::Result<bool> {
        let done = self.requests.iter().filter(|(_, (_, sent))| sent.is_done());
        let done: Vec<RequestId> = done.map(|(id, _)| *id).collect();
        let any = !done.is_empty();
        for request in done {
            let Some((call, sent)) = self.requests.remove(&request) else { continue };
            let completion = sent.wait(PATIENCE)?;
            let result = nic_call::result(&call, &completion);
            if let Err(error) = &result {
                // What that means is the stack's to know.
                tracing::debug!(?call, ?error, "a request to the NIC failed");
            }
            self.take(Input::NicCompleted(NIC, request, result))?;
        }
        Ok(any)
    }

    fn carry_out(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Nic { request, call, .. } => {
                let (target, input) = nic_call::request(&call);
                let sent = self.client.send(target, &input, call.output_capacity())?;
                self.requests.insert(request, (call, sent));
            }
            Effect::CancelNic { request, .. } => drop(self.requests.remove(&request)),
            Effect::DisconnectNic { .. } => anyhow::bail!("the stack gives the NIC up"),
            Effect::NetVsp { adapter, command } => self.net_vsp(adapter, command)?,
            Effect::Vpci { adapter, serial, command } => {
                let report = |report| Input::Vpci(adapter, serial, report);
                match command {
                    VpciCommand::Offer(offer) => {
                        let _ = self.tell.send(Told::Offered(adapter, offer.vf, serial.0));
                        let reports =
                            [VpciReport::Offered, VpciReport::BusOpened, VpciReport::DeviceStarted];
                        self.inputs.extend(reports.map(report));
                    }
                    VpciCommand::Eject => self.inputs.push_back(report(VpciReport::EjectComplete)),
                    VpciCommand::Remove { .. } => {
                        self.inputs.push_back(report(VpciReport::Removed));
                    }
                    VpciCommand::ReplaceMitigatedRanges(_) => {}
                }
            }
            Effect::Publish(event) => event.log(),
            // Nothing here takes so long.
            Effect::SetTimer(_) => {}
        }
        Ok(())
    }

    fn net_vsp(&mut self, adapter: AdapterId, command: NetVspCommand) -> anyhow::Result<()> {
        if adapter == self.bonded.adapter {
            let command = match command {
                NetVspCommand::VfAvailable { serial } => VfCommand::Available { serial: serial.0 },
                NetVspCommand::VfLost { serial } => VfCommand::Lost { serial: serial.0 },
                NetVspCommand::SwitchDataPath(DataPath::Synthetic) => VfCommand::Leave,
                NetVspCommand::SwitchDataPath(DataPath::Vf) => return Ok(()),
                NetVspCommand::CompleteSwitch { active } => VfCommand::Complete {
                    active: match active {
                        DataPath::Synthetic => NvspPath::Synthetic,
                        DataPath::Vf => NvspPath::Vf,
                    },
                    request: None,
                },
            };
            let port = self.bonded.port;
            self.bonded.switch.run(move |switch| {
                if let Some(port) = switch.port::<SyntheticPort>(port) {
                    port.nic().vf_command(command);
                }
            })?;
        } else if let NetVspCommand::SwitchDataPath(path) = command {
            let asks = NetVspReport::AsksDataPath(path);
            self.inputs.push_back(Input::NetVsp(adapter, asks));
        }
        if let NetVspCommand::CompleteSwitch { active } = command {
            let _ = self.tell.send(Told::Active(adapter, active));
        }
        Ok(())
    }
}
