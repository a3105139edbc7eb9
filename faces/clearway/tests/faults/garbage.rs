//! Bytes that are no messages, and messages that make no sense.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::{
    common::*,
    traffic::{Vf, exchange},
};

/// What an adapter's resident memory may grow by under all the garbage of one test, bytes.
const GROWTH: u64 = 24 << 20;

/// Numbers that look random and are the same in every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// Writes what the other end takes, and reads what it answers until it closes or has nothing more to say.
/// A connection that is refused or cut is as good.
fn throw(socket: &Path, bytes: &[u8]) {
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = [0u8; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}

/// Spoils a conversation: cuts it, flips bits, swaps or repeats parts, makes lengths huge.
fn spoil(numbers: &mut Numbers, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut messages = messages.to_vec();
    let kind = numbers.below(6);
    if kind == 0 {
        let (a, b) = (numbers.below(messages.len()), numbers.below(messages.len()));
        messages.swap(a, b);
    }
    if kind == 1 {
        let which = numbers.below(messages.len());
        messages.insert(which, messages[which].clone());
    }
    let mut bytes = messages.concat();
    match kind {
        2 => bytes.truncate(numbers.below(bytes.len())),
        3 => {
            for _ in 0..=numbers.below(8) {
                let at = numbers.below(bytes.len());
                bytes[at] ^= 1 << numbers.below(8);
            }
        }
        4 => {
            let at = numbers.below(bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0x7F]);
        }
        5 => {
            let length = 1 + numbers.below(300);
            bytes.extend(numbers.bytes(length));
        }
        _ => {}
    }
    bytes
}

/// A device control header (40 bytes) with its payload.
fn control_message(
    kind: u16,
    id: u64,
    class: u16,
    request: u16,
    code: u32,
    room: u32,
    input: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(40 + input.len()).unwrap().to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(class.to_le_bytes());
    bytes.extend(request.to_le_bytes());
    bytes.extend(code.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(u32::try_from(input.len()).unwrap().to_le_bytes());
    bytes.extend(room.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(input);
    bytes
}

/// A vfio-user header (16 bytes) with its payload.
fn vfio_message(id: u16, command: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(u32::try_from(16 + payload.len()).unwrap().to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

/// The conversation of a working device control client: HELLO and then some requests.
fn control_conversation(numbers: &mut Numbers) -> Vec<Vec<u8>> {
    let hello = device_control_protocol::Hello {
        version: device_control_protocol::PROTOCOL_VERSION,
        name: device_control::DriverName::new("garbage").unwrap(),
    };
    let mut messages = vec![control_message(1, 0, 0, 0, 0, 0, &hello.emit())];
    for id in 1..8 {
        let length = numbers.below(200);
        let input = numbers.bytes(length);
        // Any class and code but what ends the adapter, which anybody who may connect may do.
        let class = 1 + numbers.below(3) as u16;
        let code = [0x0001_0101, 0x0001_0248, 0x0001_0263, 0x0022_0000, 1][numbers.below(5)];
        let code = code + numbers.below(16) as u32;
        messages.push(control_message(3, id, class, numbers.below(4) as u16, code, 4096, &input));
    }
    messages
}

/// The conversation of a working vfio-user client: VERSION and then some commands.
fn vfio_conversation(numbers: &mut Numbers) -> Vec<Vec<u8>> {
    let version = [&[0, 0, 1, 0][..], b"{\"capabilities\":{}}\0"].concat();
    let mut messages = vec![vfio_message(0, 1, &version)];
    for id in 1..12 {
        let command = 2 + numbers.below(14) as u16;
        let length = numbers.below(80);
        let mut payload = numbers.bytes(length);
        // Region accesses that pass the first checks: registers get random values.
        if matches!(command, 9 | 10) {
            payload = Vec::new();
            payload.extend((numbers.below(0x1_0000) as u64 & !3).to_le_bytes());
            payload.extend((if numbers.below(4) == 0 { 7u32 } else { 0 }).to_le_bytes());
            payload.extend(4u32.to_le_bytes());
            if command == 10 {
                payload.extend(numbers.bytes(4));
            }
        }
        messages.push(vfio_message(id, command, &payload));
    }
    messages
}

/// Throws `rounds` of it at one socket of an adapter while two VFs of it work, and looks at its memory.
fn survive(socket: &str, rounds: usize, conversation: fn(&mut Numbers) -> Vec<Vec<u8>>) {
    let directory = User::Same.directory();
    let mut adapter = Adapter::start(User::Same, directory.path(), 3);
    let target = adapter.attach(3).socket;
    assert_eq!(target.file_name().unwrap(), "vf0.sock");
    let mut a = Vf::open(&adapter.attach(1).socket);
    let mut b = Vf::open(&adapter.attach(2).socket);
    let client = adapter.client();
    let before = status_of(&client);
    let path = directory.path().join(socket);
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let mut round = |numbers: &mut Numbers, number: u32| {
        let messages = conversation(numbers);
        let bytes = match number % 3 {
            // Noise alone, up to more than any buffer.
            0 if number.is_multiple_of(50) => numbers.bytes(1 << 20),
            0 => {
                let length = numbers.below(400);
                numbers.bytes(length)
            }
            _ => spoil(numbers, &messages),
        };
        throw(&path, &bytes);
        if number.is_multiple_of(20) {
            exchange((&mut a, 1), (&mut b, 2), number);
        }
    };
    // What is made once, such as stacks and arenas of threads, is no growth.
    (0..rounds / 4).for_each(|number| round(&mut numbers, number as u32));
    let resident = adapter.resident();
    (0..rounds).for_each(|number| round(&mut numbers, number as u32));
    let growth = adapter.resident().saturating_sub(resident);
    println!("{socket}: resident memory grew by {} KiB over {rounds} connections", growth >> 10);
    assert!(growth < GROWTH, "{growth} bytes");
    adapter.assert_lives();
    let after = status_of(&client);
    assert_eq!(after.num_vfs, before.num_vfs);
    assert_eq!(after.vfs.len(), 3);
    assert!(after.vfs[1].function.connected && after.vfs[2].function.connected);
    exchange((&mut a, 1), (&mut b, 2), 1);
    // The VF that was thrown at works too.
    drop(a);
    let mut target = Vf::open(&target);
    exchange((&mut target, 3), (&mut b, 2), 2);
}

#[test]
fn garbage_on_the_control_socket_disturbs_nobody_and_costs_no_memory() {
    survive("control.sock", 400, control_conversation);
}

#[test]
fn garbage_on_a_vf_s_socket_disturbs_nobody_and_costs_no_memory() {
    survive("vf0.sock", 400, vfio_conversation);
}

#[test]
fn connections_that_say_nothing_keep_others_out_for_a_while_at_most() {
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, directory.path(), 1);
    let socket = adapter.attach(1).socket;
    let control = adapter::control_socket(directory.path());
    // More than are accepted, half of them within a message.
    let silent: Vec<_> = (0..100)
        .flat_map(|number| [&socket, &control].map(|path| (number, path)))
        .filter_map(|(number, path)| {
            let stream = UnixStream::connect(path);
            let mut stream = stream.ok()?;
            if number % 2 == 0 {
                let _ = stream.write_all(&[40, 0, 0]);
            }
            Some(stream)
        })
        .take(60)
        .collect();
    assert!(silent.len() > 8);
    // They are dropped by deadlines of the adapter's; nobody has to close them.
    wait_for("room for a client", || {
        let name = device_control::DriverName::new("test").unwrap();
        device_control::DeviceControlClient::connect(&control, &name, PATIENCE).ok()
    });
    let vf = Vf::open(&socket);
    drop((vf, silent));
}
