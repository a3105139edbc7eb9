//! Process 1 of a VM: it sets the VM up, serves those who talk to it, and reaps.

use std::{
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::ExitCode,
    time::Instant,
};

use linux_network::NetworkError;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::Pid,
};

use super::{drain::drain, init, listener::Listener, programs::Programs};
use crate::{
    GuestNetwork, OnVfLoss, StartFailure, StartFailureKind, UserVmConfig,
    channel::{Channel, Received, Reply, Request},
    guest::{Guest, GuestEvent},
};

/// Connections at a time, so that nobody uses up the VM's descriptors.
const MAX_CONNECTIONS: usize = 64;

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
    listener: Option<Listener>,
    guest: Guest,
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
    /// The change of data paths that it waits for.
    change: Option<Change>,
}

/// A change of data paths that was asked for.
#[derive(Copy, Clone, Debug)]
struct Change {
    ticket: u64,
    /// Adapters that have not answered.
    left: usize,
    /// Whether all others did as they were told.
    done: bool,
}

impl Connection {
    fn new(channel: Channel, owner: bool) -> Self {
        Self { channel, program: None, owner, change: None }
    }
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
        fds: Vec<OwnedFd>,
    ) -> Result<impl FnOnce(Channel) -> Self + use<>, StartFailure> {
        let setup = |error: NetworkError| StartFailure::new(StartFailureKind::Setup, &error);
        let plain = |error: io::Error| StartFailure::new(StartFailureKind::Setup, &error);
        init::set_up(&config.name).map_err(setup)?;
        let (children, signalled) = UnixStream::pair().map_err(plain)?;
        children.set_nonblocking(true).map_err(plain)?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, signalled)
            .map_err(plain)?;

        let mut fds = fds.into_iter();
        let partition = if config.path == GuestNetwork::Vmbus { fds.next() } else { None };
        let listener = fds.next().map(Listener::new);
        let guest = Guest::start(config, partition)?;
        let on_vf_loss = config.on_vf_loss;
        Ok(move |channel| Self {
            connections: vec![Connection::new(channel, true)],
            listener,
            guest,
            programs: Programs::default(),
            on_vf_loss,
            children,
        })
    }

    fn serve(mut self) -> ExitCode {
        self.tell_owner(&Reply::Ready);
        while self.turn() {}
        // The kernel kills all that is left in the VM when this process ends.
        self.guest.stop();
        ExitCode::SUCCESS
    }

    /// Sleeps until something happens, and handles it; false when the VM is to end.
    fn turn(&mut self) -> bool {
        if !self.sleep() {
            return false;
        }
        self.reap();
        while let Some(event) = self.guest.next_event() {
            if !self.handle_event(event) {
                return false;
            }
        }
        self.accept();
        for mut connection in std::mem::take(&mut self.connections) {
            match self.handle(&mut connection) {
                Next::Keep => self.connections.push(connection),
                Next::Close => {
                    if let Some(listener) = &mut self.listener {
                        listener.room(Instant::now());
                    }
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
        let event = self.guest.event_fd();
        let mut set =
            vec![PollFd::new(&self.children, PollFlags::IN), PollFd::new(&event, PollFlags::IN)];
        let connections = self.connections.iter();
        set.extend(connections.map(|other| PollFd::new(&other.channel, PollFlags::IN)));
        let mut limit = None;
        if let Some(listener) = &self.listener
            && self.connections.len() < MAX_CONNECTIONS
        {
            match listener.wait_for(Instant::now()) {
                Ok(socket) => set.push(PollFd::new(socket, PollFlags::IN)),
                Err(left) => limit = Timespec::try_from(left).ok(),
            }
        }
        matches!(poll(&mut set, limit.as_ref()), Ok(_) | Err(Errno::INTR))
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

    fn handle_event(&mut self, event: GuestEvent) -> bool {
        match (event, self.on_vf_loss) {
            (GuestEvent::VfLost(reason), OnVfLoss::Exit) => {
                self.tell_owner(&Reply::VfLost(reason));
                false
            }
            (GuestEvent::VfLost(reason), OnVfLoss::Wait) => {
                tracing::warn!(reason, "the VF is gone; waiting for another");
                true
            }
            (GuestEvent::VfFound, _) => {
                tracing::warn!("a VF is there again");
                true
            }
            (GuestEvent::Failed(reason), _) => {
                self.tell_owner(&Reply::Broken(reason));
                false
            }
            (GuestEvent::VfSet { ticket, done }, _) => {
                self.vf_is_set(ticket, done);
                true
            }
        }
    }

    /// An adapter has changed its data path as it was asked to, or cannot.
    fn vf_is_set(&mut self, ticket: u64, done: bool) {
        let waits = |connection: &&mut Connection| {
            connection.change.is_some_and(|change| change.ticket == ticket)
        };
        // Whoever asked may be gone.
        let Some(connection) = self.connections.iter_mut().find(waits) else {
            return;
        };
        if let Some(change) = &mut connection.change {
            change.done &= done;
            change.left = change.left.saturating_sub(1);
            if change.left == 0 {
                let _ = connection.channel.try_send(&Reply::VfSet(change.done));
                connection.change = None;
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
        let Some(listener) = &mut self.listener else {
            return;
        };
        while self.connections.len() < MAX_CONNECTIONS
            && let Some(fd) = listener.accept(Instant::now())
        {
            self.connections.push(Connection::new(Channel::from_fd(fd), false));
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
                self.connections.extend(adopted.map(|channel| Connection::new(channel, false)));
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
            Request::SetVf { .. } if connection.change.is_some() => return gone,
            Request::SetVf { adapter, up } => {
                let (ticket, left) = self.guest.set_vf(adapter, up);
                if left > 0 {
                    connection.change = Some(Change { ticket, left, done: true });
                    return Next::Keep;
                }
                Reply::VfSet(false)
            }
            Request::Statistics => Reply::Statistics(Box::new(self.guest.statistics())),
        };
        match connection.channel.try_send(&reply) {
            Ok(()) => Next::Keep,
            Err(_) => gone,
        }
    }
}
