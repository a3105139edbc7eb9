//! Writing what the NIC sends into a capture.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use pcap_file::{DataLink, Endianness, PcapError, TsResolution, pcap::PcapHeader};

use crate::UplinkError;

/// Bytes collected before they are written to the file.
const BUFFER: usize = 256 << 10;
/// The longest that a frame stays in the buffer while traffic goes on.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// A capture being written. It is whole on disk whenever the worker goes to sleep.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    /// `None` after a failure: a capture with a hole would be worse than a short one.
    file: Option<BufWriter<File>>,
    /// When the oldest frame in the buffer was noticed there.
    dirty_since: Option<Instant>,
    dirty: bool,
}

impl Recorder {
    /// Creates the file with its header, so that even an empty capture is one.
    pub(super) fn create(path: &Path) -> Result<Self, UplinkError> {
        let failed = |source| UplinkError::CaptureFile {
            path: path.to_owned(),
            action: "create it",
            source,
        };
        let file = File::create(path).map_err(failed)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        let header = PcapHeader {
            snaplen: 262_144,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..Default::default()
        };
        match header.write_to(&mut file) {
            Err(PcapError::IoError(error)) => return Err(failed(error)),
            Err(error) => return Err(failed(io::Error::other(error))),
            Ok(_) => file.flush().map_err(failed)?,
        }
        Ok(Self { path: path.to_owned(), file: Some(file), dirty_since: None, dirty: false })
    }

    /// Appends a frame; false if recording has ended by an earlier failure.
    pub(super) fn write(&mut self, frame: &[u8], now: SystemTime) -> Result<bool, UplinkError> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // The format's seconds have 32 bits, unsigned, which last until 2106.
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let [s0, s1, s2, s3] = seconds.to_le_bytes();
        let [n0, n1, n2, n3] = time.subsec_nanos().to_le_bytes();
        let [l0, l1, l2, l3] = length.to_le_bytes();
        let header = [s0, s1, s2, s3, n0, n1, n2, n3, l0, l1, l2, l3, l0, l1, l2, l3];
        let result = file.write_all(&header).and_then(|()| file.write_all(frame));
        self.dirty = true;
        self.keep(result)?;
        Ok(true)
    }

    /// Writes out what is in the buffer.
    pub(super) fn flush(&mut self) -> Result<(), UplinkError> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        self.dirty_since = None;
        let result = self.file.as_mut().map_or(Ok(()), Write::flush);
        self.keep(result)
    }

    /// Writes out what has been in the buffer for long. A failure shows with the next frame.
    pub(super) fn flush_if_old(&mut self, now: Instant) {
        if self.dirty {
            let since = *self.dirty_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= FLUSH_INTERVAL {
                if let Some(file) = &mut self.file {
                    // What could not be written stays in the buffer.
                    let _ = file.flush();
                }
                self.dirty = false;
                self.dirty_since = None;
            }
        }
    }

    /// Ends the recording if a write failed.
    fn keep(&mut self, result: io::Result<()>) -> Result<(), UplinkError> {
        result.map_err(|source| {
            if let Some(file) = self.file.take() {
                // What could not be written must not be tried again when the buffer is dropped.
                let _ = file.into_parts();
            }
            UplinkError::CaptureFile {
                path: self.path.clone(),
                action: "record into it, so that recording ends here",
                source,
            }
        })
    }
}
