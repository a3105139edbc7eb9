//! What the guest writes to its console, on its way to a terminal, a pipe or a file.
//!
//! The guest writes bytes, each with its processor waiting. They are collected here and written by a thread. When a
//! reader is slow the guest waits, so that nothing is lost; when the VM is to end, nobody waits for a reader.

use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// Bytes that may wait for a slow reader before the guest does.
const MOST_WAITING: usize = 64 << 10;

/// A guest's output, through all of its lives.
pub(super) struct Output {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The writer has something to do.
    work: Condvar,
    /// The writer has done something.
    done: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The writer has taken something that it has not written yet.
    writing: bool,
    /// Nobody waits any more: what there is no room for is lost.
    lossy: bool,
    /// No more comes.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    /// Writes to this file from now on.
    pub(super) fn start(to: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || write(&writer, &to))?;
        Ok(Self { shared })
    }

    /// Where a guest writes.
    pub(super) fn guest_end(&self) -> GuestEnd {
        GuestEnd(Arc::clone(&self.shared))
    }

    /// No guest waits for a reader any more: what there is no room for is lost.
    pub(super) fn release(&self) {
        self.shared.lock().lossy = true;
        self.shared.done.notify_all();
    }

    /// Waits until all has been written, at most `limit`.
    pub(super) fn drain(&self, limit: Option<Duration>) {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut state = self.shared.lock();
        while state.writing || !state.waiting.is_empty() {
            let Some(until) = until else {
                state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.closed, state.lossy) = (true, true);
        drop(state);
        self.shared.work.notify_all();
        self.shared.done.notify_all();
    }
}

/// The writer's thread.
fn write(shared: &Shared, to: &OwnedFd) {
    let mut state = shared.lock();
    loop {
        while state.waiting.is_empty() {
            if state.closed {
                return;
            }
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = std::mem::take(&mut state.waiting);
        state.writing = true;
        drop(state);
        let written = write_all(to, &bytes);
        state = shared.lock();
        state.writing = false;
        if let Err(error) = written {
            tracing::debug!(%error, "the guest's console has no reader any more");
            // Who stays away once does not come back.
            state.lossy = true;
            state.waiting.clear();
        }
        shared.done.notify_all();
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever shares the file with this process has made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut set = [PollFd::from_borrowed_fd(to.as_fd(), PollFlags::OUT)];
                match poll(&mut set, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where one guest writes.
pub(super) struct GuestEnd(Arc<Shared>);

impl Write for GuestEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.waiting.len() >= MOST_WAITING {
            if state.lossy {
                return Ok(bytes.len());
            }
            state = self.0.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let room = MOST_WAITING - state.waiting.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        state.waiting.extend_from_slice(taken);
        drop(state);
        self.0.work.notify_one();
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use std::{fs::File, io::Read, sync::mpsc};

    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn all_that_a_guest_writes_arrives_however_slow_the_reader() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let output = Output::start(write).unwrap();
        let mut guest = output.guest_end();
        let written = bytes(5 * MOST_WAITING);
        let text = written.clone();
        let guest = std::thread::spawn(move || guest.write_all(&text).unwrap());
        let mut received = vec![0; written.len()];
        File::from(read).read_exact(&mut received).unwrap();
        guest.join().unwrap();
        output.drain(None);
        assert!(received == written);
    }

    #[test]
    fn a_reader_that_reads_nothing_keeps_no_vm_from_ending() {
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let output = Output::start(write).unwrap();
        let mut guest = output.guest_end();
        let (told, hear) = mpsc::channel();
        let guest = std::thread::spawn(move || {
            // More than the pipe and the buffer have room for.
            guest.write_all(&bytes(2 << 20)).unwrap();
            told.send(()).unwrap();
        });
        assert!(hear.recv_timeout(Duration::from_millis(50)).is_err(), "it waits for the reader");
        output.release();
        hear.recv_timeout(Duration::from_secs(20)).unwrap();
        guest.join().unwrap();
        output.drain(Some(Duration::from_millis(1)));
    }

    #[test]
    fn a_reader_that_goes_away_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let output = Output::start(write).unwrap();
        output.guest_end().write_all(&bytes(5 * MOST_WAITING)).unwrap();
        output.drain(None);
    }

    #[test]
    fn a_file_that_does_not_block_loses_nothing() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::empty()).unwrap();
        let output = Output::start(write).unwrap();
        let mut guest = output.guest_end();
        let written = bytes(3 * MOST_WAITING);
        let text = written.clone();
        let guest = std::thread::spawn(move || guest.write_all(&text).unwrap());
        let mut received = vec![0; written.len()];
        File::from(read).read_exact(&mut received).unwrap();
        guest.join().unwrap();
        assert!(received == written);
    }
}
