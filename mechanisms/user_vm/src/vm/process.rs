//! Process 1 of a VM: it sets the VM up, serves those who talk to it, and reaps.

use std::{
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::ExitCode,
    time::Duration,
};

use linux_network::NetworkError;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::SocketFlags,
    process::Pid,
};

use super::{drain::drain, init, programs::Programs};
use crate::{
    GuestNetwork, OnVfLoss, StartFailure, StartFailureKind, UserVmConfig, VmStatistics,
    channel::{Channel, Received, Reply, Request},
    guest::{
        Carrier, CarrierConfig, InterfaceConfig, Network, Notice, VfConfig, VfPath,
        create_interface,
    },
};

/// Connections at a time, so that nobody uses up the VM's descriptors.
const MAX_CONNECTIONS: usize = 64;
/// MTU of `eth0` unless told otherwise.
const USUAL_MTU: u32 = 1500;
/// Bytes of an Ethernet header with one VLAN tag, which a frame has beside its payload.
const FRAME_OVERHEAD: usize = 18;
/// The least MTU that IPv4 and Linux allow.
const LEAST_MTU: usize = 68;

/// How long the kernel may take to start `eth0`'s queue before the VM counts as ready all the same.
const LINK_TIME: Duration = Duration::from_secs(2);

pub(super) fn run(channel: Channel) -> ExitCode {
    let start = match channel.receive(None) {
        Ok(Received::Message(Request::Start(config), fds)) => Some((config, fds)),
        _ => None,
    };
    let Some((config, fds)) = start else {
        return ExitCode::FAILURE;
    };
    match Vm::set_up(*config, fds, channel) {
        Ok(vm) => vm.serve(),
        Err((failure, channel)) => {
            let _ = channel.try_send(&Reply::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

/// A running VM.
struct Vm {
    /// The first is that of whoever started the VM; the VM ends with it.
    connections: Vec<Connection>,
    listener: Option<OwnedFd>,
    carrier: Carrier,
    network: Network,
    programs: Programs,
    on_vf_loss: OnVfLoss,
    /// Readable after SIGCHLD.
    children: UnixStream,
}

/// Somebody who talks to the VM.
struct Connection {
    channel: Channel,
    /// The program that it started and waits for.
    program: Option<Pid>,
    owner: bool,
}

/// What becomes of a connection after a message.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Next {
    Keep,
    Close,
    EndVm,
}

impl Vm {
    fn set_up(
        config: UserVmConfig,
        fds: Vec<OwnedFd>,
        channel: Channel,
    ) -> Result<Self, (StartFailure, Channel)> {
        match Self::build(&config, fds) {
            Ok(build) => Ok(build(channel)),
            Err(failure) => Err((failure, channel)),
        }
    }

    /// Does all that can fail; what it returns makes the VM.
    fn build(
        config: &UserVmConfig,
        mut fds: Vec<OwnedFd>,
    ) -> Result<impl FnOnce(Channel) -> Self + use<>, StartFailure> {
        let setup = |error: NetworkError| StartFailure::new(StartFailureKind::Setup, &error);
        let plain = |error: io::Error| StartFailure::new(StartFailureKind::Setup, &error);
        init::set_up(&config.name).map_err(setup)?;
        let (children, signalled) = UnixStream::pair().map_err(plain)?;
        children.set_nonblocking(true).map_err(plain)?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, signalled)
            .map_err(plain)?;

        let vf = |error| StartFailure::new(StartFailureKind::Vf, &error);
        let GuestNetwork::Vf { socket } = &config.path else {
            return Err(StartFailure {
                kind: StartFailureKind::Vmbus,
                message: "the VM has no guest end of a partition".to_owned(),
            });
        };
        let vf_config =
            VfConfig::new(&config.name, socket, config.queue_pairs, config.memory).map_err(vf)?;
        let path = VfPath::open_within(&vf_config, config.start_timeout).map_err(vf)?;
        let most = u32::try_from(path.max_frame().saturating_sub(FRAME_OVERHEAD).max(LEAST_MTU));
        let most = most.unwrap_or(u32::MAX);
        let mtu = config.mtu.unwrap_or(USUAL_MTU).min(most);
        if let Some(asked) = config.mtu.filter(|asked| *asked > most) {
            tracing::warn!(asked, most, "eth0 has the largest MTU that the VF's frames allow");
        }
        let interface_config = InterfaceConfig {
            kind: config.interface,
            mac: path.mac(),
            mtu,
            addresses: &config.addresses,
            gateway: config.gateway,
        };
        let interface = |error| StartFailure::new(StartFailureKind::Interface, &error);
        let (mut network, far_side) = create_interface(&interface_config).map_err(interface)?;
        let carrier = Carrier::start(CarrierConfig {
            vf: path,
            config: vf_config,
            reconnect: config.on_vf_loss == OnVfLoss::Wait,
            interface: far_side,
            name: network.interface().to_owned(),
            index: network.index(),
        })
        .map_err(interface)?;
        if carrier.counters().2.link_up {
            network.wait_until_running(LINK_TIME);
        }
        let listener = fds.pop();
        let on_vf_loss = config.on_vf_loss;
        Ok(move |channel| Self {
            connections: vec![Connection { channel, program: None, owner: true }],
            listener,
            carrier,
            network,
            programs: Programs::default(),
            on_vf_loss,
            children,
        })
    }

    fn serve(mut self) -> ExitCode {
        self.tell_owner(&Reply::Ready);
        while self.turn() {}
        // The kernel kills all that is left in the VM when this process ends.
        self.carrier.stop();
        ExitCode::SUCCESS
    }

    /// Sleeps until something happens, and handles it; false when the VM is to end.
    fn turn(&mut self) -> bool {
        if !self.sleep() {
            return false;
        }
        self.reap();
        while let Some(notice) = self.carrier.take_notice() {
            if !self.handle_notice(notice) {
                return false;
            }
        }
        self.accept();
        for mut connection in std::mem::take(&mut self.connections) {
            match self.handle(&mut connection) {
                Next::Keep => self.connections.push(connection),
                Next::Close => {
                    if let Some(pid) = connection.program {
                        self.programs.signal(pid, libc::SIGKILL);
                    }
                }
                Next::EndVm => return false,
            }
        }
        true
    }

    fn sleep(&self) -> bool {
        let notice = self.carrier.notice_fd();
        let mut set =
            vec![PollFd::new(&self.children, PollFlags::IN), PollFd::new(&notice, PollFlags::IN)];
        let connections = self.connections.iter();
        set.extend(connections.map(|other| PollFd::new(&other.channel, PollFlags::IN)));
        if let Some(listener) = &self.listener
            && self.connections.len() < MAX_CONNECTIONS
        {
            set.push(PollFd::new(listener, PollFlags::IN));
        }
        matches!(poll(&mut set, None), Ok(_) | Err(Errno::INTR))
    }

    fn reap(&mut self) {
        let mut bytes = [0; 64];
        while matches!((&self.children).read(&mut bytes), Ok(count) if count > 0) {}
        for (pid, exit) in self.programs.reap() {
            let waiting = self.connections.iter_mut().find(|other| other.program == Some(pid));
            if let Some(connection) = waiting {
                connection.program = None;
                let _ = connection.channel.try_send(&Reply::Ended(exit));
            }
        }
    }

    fn handle_notice(&mut self, notice: Notice) -> bool {
        match (notice, self.on_vf_loss) {
            (Notice::Lost(reason), OnVfLoss::Exit) => {
                self.tell_owner(&Reply::VfLost(reason));
                false
            }
            (Notice::Lost(reason), OnVfLoss::Wait) => {
                tracing::warn!(reason, "the VF is gone; waiting for another");
                true
            }
            (Notice::Found, _) => {
                tracing::warn!("a VF is there again");
                true
            }
            (Notice::Failed(reason), _) => {
                self.tell_owner(&Reply::Broken(reason));
                false
            }
        }
    }

    fn tell_owner(&self, reply: &Reply) {
        // An owner that does not listen is noticed when its connection closes.
        if let Some(owner) = self.connections.iter().find(|connection| connection.owner) {
            let _ = owner.channel.try_send(reply);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        while self.connections.len() < MAX_CONNECTIONS {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(fd) => self.connections.push(Connection {
                    channel: Channel::from_fd(fd),
                    program: None,
                    owner: false,
                }),
                Err(_) => return,
            }
        }
    }

    /// Handles what came over a connection, if anything did.
    fn handle(&mut self, connection: &mut Connection) -> Next {
        let gone = if connection.owner { Next::EndVm } else { Next::Close };
        let (request, fds) = match connection.channel.try_receive() {
            Ok(Received::Message(request, fds)) => (request, fds),
            Ok(Received::Nothing) => return Next::Keep,
            Ok(Received::Closed) | Err(_) => return gone,
        };
        let reply = match request {
            Request::Shutdown => {
                drain();
                return Next::EndVm;
            }
            Request::Start(_) => return gone,
            Request::Adopt if connection.owner => {
                let room = MAX_CONNECTIONS.saturating_sub(self.connections.len());
                let adopted = fds.into_iter().take(room).map(Channel::from_fd);
                self.connections.extend(adopted.map(|channel| Connection {
                    channel,
                    program: None,
                    owner: false,
                }));
                return Next::Keep;
            }
            Request::Adopt => return gone,
            Request::Run(_) if connection.program.is_some() => return gone,
            Request::Run(program) => match self.programs.run(&program, fds) {
                Ok(pid) => {
                    connection.program = Some(pid);
                    Reply::Started(pid.as_raw_nonzero().get())
                }
                Err(error) => Reply::NotStarted(error.raw_os_error()),
            },
            Request::Signal(number) => {
                if let Some(pid) = connection.program {
                    self.programs.signal(pid, number);
                }
                return Next::Keep;
            }
            Request::SetVf { .. } => Reply::VfSet(false),
            Request::Statistics => Reply::Statistics(Box::new(self.statistics())),
        };
        match connection.channel.try_send(&reply) {
            Ok(()) => Next::Keep,
            Err(_) => gone,
        }
    }

    fn statistics(&mut self) -> VmStatistics {
        let (to_vf, to_guest, vf) = self.carrier.counters();
        let eth0 = self.network.counters().unwrap_or_default();
        VmStatistics { vf, eth0, to_vf, to_guest, adapters: Vec::new() }
    }
}
