//! Reading a capture and handing out its frames when they are due.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pcap_file::{
    DataLink, PcapError, TsResolution,
    pcap::{PcapHeader, PcapReader, RawPcapPacket},
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::{ETHERNET_HEADER, FrameBurst, ReplayTiming, UplinkError, UplinkStatistics};

/// Bytes of a frame beyond which its length must be a mistake (what capture programs allow at most).
const MAX_CAPTURED: u32 = 262_144;

/// A capture on its way to the NIC.
#[derive(Debug)]
pub(super) struct Replayer {
    path: PathBuf,
    reader: PcapReader<File>,
    header: PcapHeader,
    /// Frames read so far.
    frames: u64,
    /// The frame that is next; kept until it is due and there is room.
    next: Vec<u8>,
    state: State,
    schedule: Option<Schedule>,
    postponed: Option<UplinkError>,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum State {
    /// The next frame must be read.
    Reading,
    /// `next` holds a frame with this timestamp.
    Holding(Duration),
    /// The capture is at its end, or damaged from here on.
    Finished,
}

/// When frames are due, if they keep their distances.
#[derive(Debug)]
struct Schedule {
    /// When the first frame was handed out, and its timestamp.
    origin: Option<(Instant, Duration)>,
    timer: OwnedFd,
}

impl Schedule {
    /// How long until a frame with this timestamp is due.
    fn wait(&mut self, timestamp: Duration, now: Instant) -> Duration {
        let (start, first) = *self.origin.get_or_insert((now, timestamp));
        // Frames that were captured out of order are due at once.
        timestamp.saturating_sub(first).saturating_sub(now.saturating_duration_since(start))
    }
}

impl Replayer {
    pub(super) fn open(path: &Path, timing: ReplayTiming) -> Result<Self, UplinkError> {
        let failed = |action| {
            move |source| UplinkError::CaptureFile { path: path.to_owned(), action, source }
        };
        let file = File::open(path).map_err(failed("open it to replay it"))?;
        let reader = PcapReader::new(file).map_err(|error| not_a_capture(path, error))?;
        let header = reader.header();
        if header.datalink != DataLink::ETHERNET {
            let problem =
                format!("its frames are {:?}, and only Ethernet can be replayed", header.datalink);
            return Err(UplinkError::NotACapture { path: path.to_owned(), problem });
        }
        let schedule = match timing {
            ReplayTiming::Fast => None,
            ReplayTiming::Original => {
                let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
                let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
                    .map_err(|errno| failed("create its timer")(errno.into()))?;
                Some(Schedule { origin: None, timer })
            }
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            header,
            frames: 0,
            next: Vec::new(),
            state: State::Reading,
            schedule,
            postponed: None,
        })
    }

    /// Appends the frames that are due, as many as there is room for.
    pub(super) fn fill(
        &mut self,
        burst: &mut FrameBurst,
        statistics: &mut UplinkStatistics,
    ) -> Result<(), UplinkError> {
        if let Some(error) = self.postponed.take() {
            return Err(error);
        }
        let now = Instant::now();
        while !burst.is_full() {
            match self.state {
                State::Finished => break,
                State::Reading => self.read(burst.max_frame(), statistics)?,
                State::Holding(timestamp) => {
                    let wait = self.schedule.as_mut().map(|s| s.wait(timestamp, now));
                    if wait.is_some_and(|wait| wait > Duration::ZERO) {
                        break;
                    }
                    burst.push(&self.next);
                    self.state = State::Reading;
                }
            }
        }
        Ok(())
    }

    /// Keeps an error for the next call of [`fill`](Self::fill).
    pub(super) fn postpone(&mut self, error: UplinkError) {
        self.postponed = Some(error);
    }

    /// Reads the next frame, or notes that there is none; frames that cannot be replayed are counted.
    fn read(
        &mut self,
        max_frame: usize,
        statistics: &mut UplinkStatistics,
    ) -> Result<(), UplinkError> {
        self.state = State::Finished;
        let Some(result) = self.reader.next_raw_packet() else {
            return Ok(());
        };
        self.frames += 1;
        let frame = self.frames;
        let packet = result.map_err(|error| unreadable(&self.path, frame, error))?;
        let timestamp = check(&packet, self.header.ts_resolution).map_err(|problem| {
            UplinkError::CaptureCorrupt { path: self.path.clone(), frame, problem }
        })?;
        if packet.orig_len > packet.incl_len {
            statistics.received_incomplete += 1;
        } else if packet.data.len() > max_frame {
            statistics.received_too_long += 1;
        } else if packet.data.len() < ETHERNET_HEADER {
            statistics.received_too_short += 1;
        } else {
            self.next.clear();
            self.next.extend_from_slice(&packet.data);
            self.state = State::Holding(timestamp);
            return Ok(());
        }
        self.state = State::Reading;
        Ok(())
    }

    /// Sets the timer for the next frame; false if there is one already.
    pub(super) fn arm(&mut self) -> bool {
        let now = Instant::now();
        let (State::Holding(timestamp), Some(schedule)) = (self.state, &mut self.schedule) else {
            return self.is_finished();
        };
        let wait = schedule.wait(timestamp, now);
        if wait.is_zero() || self.postponed.is_some() {
            return false;
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value =
            Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let once = Itimerspec { it_interval: zero, it_value };
        // A timer that cannot be set leaves the worker polling.
        timerfd_settime(&schedule.timer, TimerfdTimerFlags::empty(), &once).is_ok()
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        let schedule = self.schedule.as_ref().filter(|_| !self.is_finished())?;
        Some(schedule.timer.as_fd())
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Finished && self.postponed.is_none()
    }
}

/// Checks a frame's header; returns its timestamp.
fn check(packet: &RawPcapPacket<'_>, resolution: TsResolution) -> Result<Duration, String> {
    let (unit, name) = match resolution {
        TsResolution::MicroSecond => (1000, "microseconds"),
        TsResolution::NanoSecond => (1, "nanoseconds"),
    };
    if packet.incl_len > MAX_CAPTURED {
        return Err(format!("it claims {} bytes", packet.incl_len));
    }
    if packet.incl_len > packet.orig_len {
        return Err(format!(
            "{} bytes were captured of a frame of {}",
            packet.incl_len, packet.orig_len
        ));
    }
    match packet.ts_frac.checked_mul(unit) {
        Some(nanoseconds) if nanoseconds < 1_000_000_000 => {
            Ok(Duration::new(packet.ts_sec.into(), nanoseconds))
        }
        _ => Err(format!("its time has {} {name} in a second", packet.ts_frac)),
    }
}

fn is_end_of_file(error: &PcapError) -> bool {
    match error {
        PcapError::IncompleteBuffer => true,
        PcapError::IoError(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        _ => false,
    }
}

fn unreadable(path: &Path, frame: u64, error: PcapError) -> UplinkError {
    let path = path.to_owned();
    match error {
        error if is_end_of_file(&error) => UplinkError::CaptureTruncated { path, frame },
        PcapError::IoError(source) => UplinkError::CaptureFile { path, action: "read it", source },
        error => UplinkError::CaptureCorrupt { path, frame, problem: error.to_string() },
    }
}

fn not_a_capture(path: &Path, error: PcapError) -> UplinkError {
    let path = path.to_owned();
    let problem = match error {
        error if is_end_of_file(&error) => "it is too short to be a pcap capture".to_owned(),
        PcapError::IoError(source) => {
            return UplinkError::CaptureFile { path, action: "read it", source };
        }
        error => format!(
            "it is not a pcap capture ({error}); pcapng can be converted with `editcap -F pcap`"
        ),
    };
    UplinkError::NotACapture { path, problem }
}
