//! The serial console: COM1, and the terminal or file that a person joins to it.

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::{Mutex, PoisonError},
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
    serial: Mutex<Serial<Raise, NoEvents, Lossy>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

impl Console {
    pub(crate) fn new(interrupt: EventFd, output: Output) -> Self {
        Self { serial: Mutex::new(Serial::new(Raise(interrupt), Lossy(output))) }
    }

    /// Gives the guest bytes to read and says how many it took; it has room for 64 that it has not read.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let room = serial.fifo_capacity().min(bytes.len());
        let Some(bytes) = bytes.get(..room).filter(|bytes| !bytes.is_empty()) else { return 0 };
        // In loopback mode the port takes nothing from outside.
        serial.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// The guest reads a register.
    pub(crate) fn read(&self, register: u8) -> u8 {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).read(register)
    }

    /// The guest writes a register.
    pub(crate) fn write(&self, register: u8, value: u8) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = serial.write(register, value);
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
        let console = Arc::new(Console::new(interrupt.clone(), Box::new(Sink(sender))));
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
}
