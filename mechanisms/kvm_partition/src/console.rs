//! The serial console: COM1, and the terminal or file that a person joins to it.

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmbus::EventFd;

/// Bytes that the guest has written and that nobody has taken.
type Output = Box<dyn Write + Send>;

/// Raises the serial port's interrupt.
pub(crate) struct Raise(pub(crate) EventFd);

impl Trigger for Raise {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.signal();
        Ok(())
    }
}

/// Drops what its output refuses: a console that nobody reads must not end the guest.
struct Lossy(Output);

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The guest writes a byte at a time, and waits meanwhile.
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// A guest's serial console.
///
/// What the guest writes goes to the output it was made with, on the thread of the guest's processor: an output that
/// waits makes the guest wait. What a person types comes in by [`Console::input`].
pub struct Console {
    /// Processors contend with the thread that brings input.
    port: Mutex<Port>,
    /// Tells whoever brings input that there is room again.
    room: EventFd,
}

struct Port {
    serial: Serial<Raise, NoEvents, Lossy>,
    /// Somebody has more input than there was room for.
    wanted: bool,
    /// Registers 0 and 1 are the divisor's.
    divisor_latch: bool,
    /// The guest wants to be interrupted by input.
    listens: bool,
    loopback: bool,
}

/// Bytes that the guest need not have read.
const ROOM: usize = 64;
/// The register with the enabled interrupts, of which bit 0 is for input.
const INTERRUPT_ENABLE: u8 = 1;
/// The register whose bit 7 is the divisor latch's.
const LINE_CONTROL: u8 = 3;
/// The register whose bit 4 puts the port into loopback mode.
const MODEM_CONTROL: u8 = 4;

impl Port {
    /// Whether a driver would hear of input. Before one has opened the port, and while it tests it, input would be lost.
    fn takes_input(&self) -> bool {
        self.listens && !self.loopback
    }

    /// Gives what there is room for.
    fn input(&mut self, bytes: &[u8]) -> usize {
        let room = self.serial.fifo_capacity().min(bytes.len());
        let Some(bytes) = bytes.get(..room).filter(|bytes| !bytes.is_empty()) else { return 0 };
        if self.takes_input() { self.serial.enqueue_raw_bytes(bytes).unwrap_or(0) } else { 0 }
    }

    /// Signals once that there is room, if somebody waits for it. Not before the guest has read all: once for 64 bytes.
    fn tell(&mut self, room: &EventFd) {
        if self.wanted && self.takes_input() && self.serial.fifo_capacity() == ROOM {
            self.wanted = false;
            room.signal();
        }
    }
}

impl Console {
    pub(crate) fn new(interrupt: EventFd, room: EventFd, output: Output) -> Self {
        let port = Port {
            serial: Serial::new(Raise(interrupt), Lossy(output)),
            wanted: false,
            divisor_latch: false,
            listens: false,
            loopback: false,
        };
        Self { port: Mutex::new(port), room }
    }

    /// Gives the guest bytes to read and says how many it took: none before its driver listens, and then as many as make
    /// 64 that it has not read. If it took fewer than there were, [`Console::room`] is signalled when it may take more.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.port();
        let taken = port.input(bytes);
        port.wanted = taken < bytes.len();
        taken
    }

    /// Becomes readable when the guest may take more, after [`Console::input`] had more than it took.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// The guest reads a register.
    pub(crate) fn read(&self, register: u8) -> u8 {
        let mut port = self.port();
        let value = port.serial.read(register);
        port.tell(&self.room);
        value
    }

    /// The guest writes a register.
    pub(crate) fn write(&self, register: u8, value: u8) {
        let mut port = self.port();
        match register {
            LINE_CONTROL => port.divisor_latch = value & 0x80 != 0,
            MODEM_CONTROL => port.loopback = value & 0x10 != 0,
            // A driver that looks for ports enables all there are for a moment; one that listens has done so before.
            INTERRUPT_ENABLE if !port.divisor_latch && value & 0x0F != 0x0F => {
                port.listens = value & 1 != 0;
            }
            _ => {}
        }
        let _ = port.serial.write(register, value);
        port.tell(&self.room);
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    struct Sink(mpsc::Sender<u8>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for byte in bytes {
                self.0.send(*byte).map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_both_ways_and_the_guest_is_interrupted() {
        let (sender, receiver) = mpsc::channel();
        let interrupt = EventFd::new().unwrap();
        let room = EventFd::new().unwrap();
        let console = Arc::new(Console::new(interrupt.clone(), room, Box::new(Sink(sender))));
        for byte in b"hello" {
            console.write(0, *byte);
        }
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), b"hello");
        // The guest enables the interrupt for received data.
        console.write(1, 1);
        assert_eq!(console.input(b"ls\n"), 3);
        assert_eq!(interrupt.take(), 1);
        assert_eq!([0; 3].map(|register| console.read(register)), *b"ls\n");
        assert_eq!(console.input(&[b'x'; 100]), 64, "what the guest does not read is bounded");
        assert_eq!(console.input(b"y"), 0);
        drop(receiver);
        console.write(0, b'!');
    }

    fn console() -> Console {
        let event = || EventFd::new().unwrap();
        Console::new(event(), event(), Box::new(io::sink()))
    }

    #[test]
    fn pasted_text_arrives_whole_and_nobody_polls_for_room() {
        let text: Vec<u8> = (0..1000).map(|n| b'a' + (n % 26) as u8).collect();
        let console = console();
        console.write(INTERRUPT_ENABLE, 1);
        let (mut rest, mut read, mut rounds) = (text.as_slice(), Vec::new(), 0);
        while !rest.is_empty() {
            rest = &rest[console.input(rest)..];
            assert_eq!(console.room().take(), 0, "it has read nothing yet");
            while console.read(5) & 1 != 0 {
                read.push(console.read(0));
            }
            assert_eq!(console.room().take(), u64::from(!rest.is_empty()));
            rounds += 1;
        }
        assert_eq!(read, text);
        assert_eq!(rounds, 1000usize.div_ceil(ROOM));
    }

    #[test]
    fn what_is_typed_before_a_driver_listens_is_kept_for_it() {
        let console = console();
        assert_eq!(console.input(b"x"), 0);
        // A driver finds the port, sets its speed, tries it out, and throws away what is in it.
        console.write(INTERRUPT_ENABLE, 0x0F);
        assert_eq!((console.room().take(), console.input(b"x")), (0, 0));
        console.write(INTERRUPT_ENABLE, 0);
        console.write(LINE_CONTROL, 0x83);
        console.write(INTERRUPT_ENABLE, 1);
        console.write(LINE_CONTROL, 0x03);
        console.write(MODEM_CONTROL, 0x1F);
        assert_eq!((console.room().take(), console.input(b"x"), console.read(0)), (0, 0, 0));
        console.write(INTERRUPT_ENABLE, 1);
        assert_eq!(console.room().take(), 0, "it hears nothing but itself");
        console.write(MODEM_CONTROL, 0x0B);
        assert_eq!(console.room().take(), 1);
        assert_eq!((console.input(b"x"), console.read(0)), (1, b'x'));
        // Linux turns the interrupt off while it prints.
        console.write(INTERRUPT_ENABLE, 0);
        assert_eq!((console.input(b"y"), console.room().take()), (0, 0));
        console.write(INTERRUPT_ENABLE, 1);
        assert_eq!((console.room().take(), console.input(b"y"), console.read(0)), (1, 1, b'y'));
        console.write(INTERRUPT_ENABLE, 0x0F);
        assert_eq!((console.input(b"z"), console.read(0)), (1, b'z'));
    }
}
