//! A server with a handler that does as it is told, and clients that do not follow the protocol.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub)]

use device_control::*;
use device_control_protocol::{HEADER_LENGTH, Hello, Message, MessageHeader, PROTOCOL_VERSION};
use pcivirt_protocol::NtStatus;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Long enough for anything that should happen.
pub const SOON: Duration = Duration::from_secs(10);

/// Answers a query with its input; any capacity.
pub const ECHO: u32 = 1;
/// Stays pending until the test, or a cancel, completes it.
pub const HOLD: u32 = 2;
/// Answers with `input[0..4]` bytes of output.
pub const FILL: u32 = 3;
/// Drops the request.
pub const DROP: u32 = 4;
/// Panics.
pub const PANIC: u32 = 5;
/// Answers with the file descriptors it was sent.
pub const FDS: u32 = 6;
/// Blocks until the test lets it go on.
pub const BLOCK: u32 = 7;

/// What the handler saw.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Connected(Client),
    Disconnected(Client),
    Held(ClientId, RequestId),
    Cancelled(ClientId, RequestId),
    Blocked(ClientId),
}

pub struct TestHandler {
    seen: Mutex<Sender<Seen>>,
    pub held: Mutex<BTreeMap<(ClientId, RequestId), PendingRequest>>,
    unblock: Mutex<Receiver<()>>,
    /// Refuses clients of this name.
    pub unwanted: DriverName,
}

impl DeviceControlHandler for TestHandler {
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        if client.name == self.unwanted {
            return Err(NtStatus::ACCESS_DENIED);
        }
        let _ = self.seen.lock().unwrap().send(Seen::Connected(client.clone()));
        Ok(())
    }

    fn disconnected(&self, client: &Client) {
        let _ = self.seen.lock().unwrap().send(Seen::Disconnected(client.clone()));
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        match code {
            ECHO => {
                let completion = Completion::output(request.input.clone(), request.output_capacity);
                request.complete(completion);
            }
            HOLD => {
                let id = request.id;
                self.held.lock().unwrap().insert((client.id, id), request.pend());
                let _ = self.seen.lock().unwrap().send(Seen::Held(client.id, id));
            }
            FILL => {
                let length = u32::read_from_bytes(&request.input).unwrap();
                request.complete(Completion {
                    status: NtStatus::SUCCESS,
                    output: vec![0x5A; length.try_into().unwrap()],
                    needed: 0,
                });
            }
            DROP => drop(request),
            PANIC => panic!("this is a test"),
            FDS => {
                let Request { fds, pending, .. } = request;
                pending.complete_with_fds(NtStatus::SUCCESS, fds).unwrap();
            }
            BLOCK => {
                let _ = self.seen.lock().unwrap().send(Seen::Blocked(client.id));
                let _ = self.unblock.lock().unwrap().recv_timeout(SOON);
                request.complete(NtStatus::SUCCESS);
            }
            _ => request.complete(NtStatus::INVALID_DEVICE_REQUEST),
        }
    }

    fn oid(&self, _client: &Client, oid: u32, kind: OidRequestKind, request: Request) {
        let mut output = oid.to_le_bytes().to_vec();
        output.extend((kind as u16).to_le_bytes());
        output.extend(&request.input);
        if request.output_capacity < output.len() {
            let needed = output.len().try_into().unwrap();
            // NDIS_STATUS_INVALID_LENGTH.
            request.complete(Completion { status: NtStatus(0xC001_0014), output: vec![], needed });
        } else {
            request.complete(Completion { status: NtStatus::SUCCESS, output, needed: 0 });
        }
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        if let Some(held) = self.held.lock().unwrap().remove(&(client.id, id)) {
            let _ = held.complete(NtStatus::CANCELLED);
        }
        let _ = self.seen.lock().unwrap().send(Seen::Cancelled(client.id, id));
    }
}

/// A server in a directory of its own.
pub struct TestServer {
    pub server: Option<DeviceControlServer>,
    pub handler: Arc<TestHandler>,
    pub path: std::path::PathBuf,
    seen: Mutex<Receiver<Seen>>,
    pub unblock: Sender<()>,
    _directory: tempfile::TempDir,
}

pub fn name(name: &str) -> DriverName {
    DriverName::new(name).unwrap()
}

pub fn start() -> TestServer {
    start_with(|_| {})
}

pub fn start_with(change: impl FnOnce(&mut ServerConfig)) -> TestServer {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nic0.sock");
    let (sender, seen) = channel();
    let (unblock, blocked) = channel();
    let handler = Arc::new(TestHandler {
        seen: Mutex::new(sender),
        held: Mutex::default(),
        unblock: Mutex::new(blocked),
        unwanted: name("unwanted"),
    });
    let mut config = ServerConfig::new(&path, name("nic0"));
    change(&mut config);
    let server = DeviceControlServer::start(config, handler.clone()).unwrap();
    TestServer {
        server: Some(server),
        handler,
        path,
        seen: Mutex::new(seen),
        unblock,
        _directory: directory,
    }
}

impl TestServer {
    pub fn connect(&self) -> DeviceControlClient {
        self.connect_as("vmswitch")
    }

    pub fn connect_as(&self, driver: &str) -> DeviceControlClient {
        let client = DeviceControlClient::connect(&self.path, &name(driver), SOON).unwrap();
        assert!(matches!(self.seen(), Seen::Connected(_)));
        client
    }

    /// What the handler sees next.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().recv_timeout(SOON).expect("the handler saw nothing")
    }

    pub fn saw_nothing(&self) -> bool {
        self.seen.lock().unwrap().try_recv().is_err()
    }

    /// Waits until a connection ends, and nothing else happens before.
    pub fn disconnected(&self) -> ClientId {
        match self.seen() {
            Seen::Disconnected(client) => client.id,
            other => panic!("{other:?}"),
        }
    }

    /// A connection of which the test says every byte. It has introduced itself.
    pub fn raw(&self) -> Raw {
        let mut raw = self.stranger();
        let hello = Hello { version: PROTOCOL_VERSION, name: name("raw") }.emit();
        let in_length = hello.len().try_into().unwrap();
        raw.send(&Message::Hello { in_length }, &hello);
        assert!(matches!(raw.receive().0, Message::Welcome { status: NtStatus::SUCCESS, .. }));
        assert!(matches!(self.seen(), Seen::Connected(_)));
        raw
    }

    /// A connection that has not introduced itself.
    pub fn stranger(&self) -> Raw {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Raw { stream }
    }

    /// The server still serves others.
    pub fn assert_alive(&self) {
        let client = self.connect_as("witness");
        assert_eq!(client.private(ECHO, b"hello", 5, SOON).unwrap(), b"hello");
        let id = client.id();
        drop(client);
        assert_eq!(self.disconnected(), id);
    }
}

pub struct Raw {
    pub stream: UnixStream,
}

impl Raw {
    pub fn send(&mut self, message: &Message, payload: &[u8]) {
        self.stream.write_all(message.header().as_bytes()).unwrap();
        self.stream.write_all(payload).unwrap();
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // The server may have hung up in between.
        let _ = self.stream.write_all(bytes);
    }

    pub fn receive(&mut self) -> (Message, Vec<u8>) {
        let mut header = [0; HEADER_LENGTH];
        self.stream.read_exact(&mut header).unwrap();
        let message = Message::parse(&MessageHeader::read_from_bytes(&header).unwrap()).unwrap();
        let mut payload = vec![0; message.payload_length().try_into().unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        (message, payload)
    }

    /// The server has hung up, or does so; whatever it said before is passed over.
    pub fn assert_closed(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the server did not hang up: {error}"),
            }
        }
    }
}

pub fn request(id: u64, code: u32, in_length: u32, out_capacity: u32) -> Message {
    Message::Request {
        id: RequestId(id),
        target: Target::Private(code),
        in_length,
        out_capacity,
        fd_count: 0,
    }
}

/// Waits for something that nobody announces.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "{what}");
        std::thread::yield_now();
    }
}
