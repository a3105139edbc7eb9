//! The wire between the physical ports of two adapters, which is listened to.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use uplink::{FrameBurst, Uplink, UplinkSpec};

/// The longest frame that adapters send.
const MAX_FRAME: usize = 9728;
/// Frames that are taken at a time.
const BURST: usize = 64;
/// Bytes of frames that are kept; what comes after them is passed on alone.
const KEPT: usize = 64 << 20;
/// How often the wire looks whether it is still wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long an end that is full may take to make room.
const PATIENCE: Duration = Duration::from_secs(20);

/// The wire; cut when this drops.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<Result<Vec<Vec<u8>>>>>,
}

impl Wire {
    /// Connects two adapters whose uplinks are cables with these sockets.
    pub(crate) fn connect(one: &Path, two: &Path) -> Result<Self> {
        let open = |socket: &Path| {
            let spec = UplinkSpec::Cable { socket: socket.to_path_buf() };
            uplink::open(&spec, MAX_FRAME)
                .with_context(|| format!("a cable to {}", socket.display()))
        };
        let ends = [open(one)?, open(two)?];
        let stop = Arc::new(AtomicBool::new(false));
        let carrier = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || carry(ends, &stop)
        });
        Ok(Self { stop, carrier: Some(carrier) })
    }

    /// Cuts it; the frames that came from the first adapter.
    pub(crate) fn cut(mut self) -> Result<Vec<Vec<u8>>> {
        self.stop.store(true, Ordering::Relaxed);
        let carrier = self.carrier.take().context("it was cut before")?;
        carrier.join().map_err(|_| anyhow!("the wire has broken"))?
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Passes frames both ways until it is told to stop; those from the first end.
fn carry(mut ends: [Box<dyn Uplink>; 2], stop: &AtomicBool) -> Result<Vec<Vec<u8>>> {
    let mut burst = FrameBurst::new(BURST, MAX_FRAME);
    let (mut frames, mut bytes) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let [one, two] = &mut ends;
        let mut passed = one.receive(&mut burst)?;
        for frame in burst.iter() {
            bytes += frame.len();
            if bytes <= KEPT {
                frames.push(frame.to_vec());
            }
        }
        pass_on(&mut burst, two.as_mut())?;
        passed += two.receive(&mut burst)?;
        pass_on(&mut burst, one.as_mut())?;
        if passed == 0 && one.arm()? && two.arm()? {
            let (Some(one), Some(two)) = (one.wait_fd(), two.wait_fd()) else { continue };
            let mut fds = [one, two].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, Some(&LOOK)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(frames)
}

/// Sends all of a burst, as soon as there is room.
fn pass_on(burst: &mut FrameBurst, to: &mut dyn Uplink) -> Result<()> {
    let start = std::time::Instant::now();
    while !burst.is_empty() {
        let sent = to.transmit(burst)?;
        burst.advance(sent);
        if sent == 0 {
            anyhow::ensure!(start.elapsed() < PATIENCE, "an end of the wire takes no frames");
            std::thread::yield_now();
        }
    }
    Ok(())
}
