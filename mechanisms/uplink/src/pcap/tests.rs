use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use pcap_file::{
    Endianness,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::UplinkError;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn capture(&self, header: PcapHeader, frames: &[(Duration, &[u8])]) -> PathBuf {
        let path = self.path("in.pcap");
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = PcapWriter::with_header(file, header).unwrap();
        for (time, frame) in frames {
            writer.write_packet(&PcapPacket::new(*time, frame.len() as u32, frame)).unwrap();
        }
        path
    }
}

fn header(resolution: pcap_file::TsResolution, endianness: Endianness) -> PcapHeader {
    PcapHeader {
        datalink: pcap_file::DataLink::ETHERNET,
        ts_resolution: resolution,
        endianness,
        ..Default::default()
    }
}

fn usual() -> PcapHeader {
    header(pcap_file::TsResolution::MicroSecond, Endianness::Little)
}

fn replay(path: &Path, timing: ReplayTiming) -> PcapUplink {
    PcapUplink::open(Some(path), None, timing, 1518).unwrap()
}

/// Receives until nothing comes; panics on errors.
fn drain(uplink: &mut PcapUplink) -> Vec<Vec<u8>> {
    let mut burst = FrameBurst::new(3, 1518);
    let mut frames = Vec::new();
    while uplink.receive(&mut burst).unwrap() > 0 {
        frames.extend(burst.iter().map(<[u8]>::to_vec));
    }
    frames
}

#[test]
fn a_capture_is_replayed_in_every_form_it_is_written_in() {
    let frames: Vec<Vec<u8>> = (0..10u8).map(|mark| vec![mark; 60 + usize::from(mark)]).collect();
    let timed: Vec<_> =
        frames.iter().map(|frame| (Duration::from_micros(5), frame.as_slice())).collect();
    for resolution in [pcap_file::TsResolution::MicroSecond, pcap_file::TsResolution::NanoSecond] {
        for endianness in [Endianness::Little, Endianness::Big] {
            let files = Files::new();
            let path = files.capture(header(resolution, endianness), &timed);
            let mut uplink = replay(&path, ReplayTiming::Fast);
            assert_eq!(uplink.replay_finished(), Some(false));
            assert!(!uplink.arm().unwrap());
            assert_eq!(drain(&mut uplink), frames);
            assert_eq!(uplink.replay_finished(), Some(true));
            assert!(uplink.link().up && uplink.arm().unwrap() && uplink.wait_fd().is_none());
            assert_eq!(uplink.statistics().received_frames, 10);
        }
    }
}

#[test]
fn original_timing_is_kept_and_can_be_slept_on() {
    let files = Files::new();
    let at = |ms| Duration::from_secs(1_700_000_000) + Duration::from_millis(ms);
    // The third was captured out of order, and is due with the second.
    let frames: [(Duration, &[u8]); 3] =
        [(at(100), &[1; 60]), (at(130), &[2; 60]), (at(120), &[3; 60])];
    let mut uplink = replay(&files.capture(usual(), &frames), ReplayTiming::Original);
    let start = Instant::now();
    assert_eq!(drain(&mut uplink), [vec![1; 60]]);
    assert_eq!(uplink.replay_finished(), Some(false));
    let mut rest = Vec::new();
    while rest.len() < 2 {
        if uplink.arm().unwrap() {
            let mut fds = [PollFd::from_borrowed_fd(uplink.wait_fd().unwrap(), PollFlags::IN)];
            let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1);
        }
        rest.extend(drain(&mut uplink));
    }
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(rest, [vec![2; 60], vec![3; 60]]);
    assert_eq!(uplink.replay_finished(), Some(true));
}

#[test]
fn what_is_recorded_can_be_replayed() {
    let files = Files::new();
    let path = files.path("out.pcap");
    let mut uplink = PcapUplink::open(None, Some(&path), ReplayTiming::Fast, 1518).unwrap();
    assert_eq!(uplink.replay_finished(), None);
    // An empty capture is a capture.
    assert!(drain(&mut replay(&path, ReplayTiming::Fast)).is_empty());

    let mut burst = FrameBurst::new(4, 2000);
    for frame in [&[1u8; 60][..], &[2; 1518], &[3; 1519], &[4; 13]] {
        burst.push(frame);
    }
    assert_eq!(uplink.transmit(&burst).unwrap(), 4);
    let expected = UplinkStatistics {
        transmitted_frames: 2,
        transmitted_bytes: 1578,
        transmit_bad_length: 2,
        ..Default::default()
    };
    assert_eq!(uplink.statistics(), expected);
    // Whole on disk when the worker goes to sleep, and when the uplink is dropped.
    assert!(uplink.arm().unwrap());
    assert_eq!(drain(&mut replay(&path, ReplayTiming::Fast)), [vec![1; 60], vec![2; 1518]]);
    burst.clear();
    burst.push(&[5; 100]);
    uplink.transmit(&burst).unwrap();
    drop(uplink);
    assert_eq!(drain(&mut replay(&path, ReplayTiming::Fast)).len(), 3);
}

#[test]
fn a_file_that_takes_no_more_ends_the_recording_with_one_error() {
    let full = PcapUplink::open(None, Some(Path::new("/dev/full")), ReplayTiming::Fast, 1518);
    assert!(matches!(full, Err(UplinkError::CaptureFile { action: "create it", .. })));

    // A pipe whose reader goes away.
    let files = Files::new();
    let path = files.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let reader = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
    let mut uplink = PcapUplink::open(None, Some(&path), ReplayTiming::Fast, 1518).unwrap();
    drop(reader);
    let mut burst = FrameBurst::new(1, 1518);
    burst.push(&[1; 60]);
    assert_eq!(uplink.transmit(&burst).unwrap(), 1);
    assert!(matches!(uplink.arm(), Err(UplinkError::CaptureFile { .. })));
    assert_eq!(uplink.transmit(&burst).unwrap(), 1);
    assert!(uplink.arm().unwrap() && uplink.link().up);
    assert_eq!(
        (uplink.statistics().transmitted_frames, uplink.statistics().transmit_errors),
        (1, 1)
    );
}

#[test]
fn frames_that_cannot_be_replayed_are_counted() {
    let files = Files::new();
    let zero = Duration::ZERO;
    let path = files.capture(usual(), &[(zero, &[1; 60]), (zero, &[2; 13]), (zero, &[3; 1519])]);
    let mut bytes = fs::read(&path).unwrap();
    // One more, of which 20 of 60 bytes were captured.
    bytes.extend([0; 8]);
    bytes.extend(20u32.to_le_bytes());
    bytes.extend(60u32.to_le_bytes());
    bytes.extend([4; 20]);
    fs::write(&path, bytes).unwrap();
    let mut uplink = replay(&path, ReplayTiming::Fast);
    assert_eq!(drain(&mut uplink).len(), 1);
    let expected = UplinkStatistics {
        received_frames: 1,
        received_bytes: 60,
        received_too_short: 1,
        received_too_long: 1,
        received_incomplete: 1,
        ..Default::default()
    };
    assert_eq!(uplink.statistics(), expected);
}

/// Receives until an error comes; returns the frames before it.
fn until_error(uplink: &mut PcapUplink) -> (usize, UplinkError) {
    let mut burst = FrameBurst::new(8, 1518);
    let mut frames = 0;
    loop {
        match uplink.receive(&mut burst) {
            Ok(count) => {
                assert!(count > 0, "ended without an error");
                frames += count;
            }
            Err(error) => {
                assert!(burst.is_empty());
                return (frames, error);
            }
        }
    }
}

#[test]
fn a_damaged_capture_is_told_with_the_number_of_the_frame_and_those_before_it_are_replayed() {
    let files = Files::new();
    let frames: [(Duration, &[u8]); 3] = [(Duration::ZERO, &[1; 60]); 3];
    let path = files.capture(usual(), &frames);
    let whole = fs::read(&path).unwrap();

    for cut in [1, 59, 60, 75] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let mut uplink = replay(&path, ReplayTiming::Fast);
        let (count, error) = until_error(&mut uplink);
        assert!(matches!(error, UplinkError::CaptureTruncated { frame: 3, .. }), "{error:?}");
        assert_eq!(count, 2);
        // Told once; then the replay is over and the link stays.
        assert!(drain(&mut uplink).is_empty() && uplink.link().up);
        assert_eq!(uplink.replay_finished(), Some(true));
    }

    // Second frame: more captured than there was; an impossible time; an impossible length.
    let second = 24 + 16 + 60;
    for (offset, value) in [(12, 59u32), (4, 1_000_000), (8, u32::MAX)] {
        let mut damaged = whole.clone();
        damaged[second + offset..second + offset + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, &damaged).unwrap();
        let (count, error) = until_error(&mut replay(&path, ReplayTiming::Fast));
        let frame = match error {
            UplinkError::CaptureCorrupt { frame, .. }
            | UplinkError::CaptureTruncated { frame, .. } => frame,
            other => panic!("{other:?}"),
        };
        assert_eq!((count, frame), (1, 2));
    }
}

#[test]
fn what_is_no_capture_of_ethernet_is_refused_at_once() {
    let files = Files::new();
    let path = files.path("file");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        PcapUplink::open(Some(&path), None, ReplayTiming::Fast, 1518).unwrap_err().to_string()
    };
    assert!(open(b"").contains("too short"));
    assert!(open(&[0x0a, 0x0d, 0x0d, 0x0a].repeat(10)).contains("pcapng"));
    let raw = PcapHeader { datalink: pcap_file::DataLink::RAW, ..usual() };
    let capture = fs::read(files.capture(raw, &[])).unwrap();
    assert!(open(&capture).contains("only Ethernet"));
    let missing = PcapUplink::open(Some(&files.path("no")), None, ReplayTiming::Fast, 1518);
    assert!(matches!(missing, Err(UplinkError::CaptureFile { .. })));
}

proptest! {
    #[test]
    fn any_bytes_after_a_header_are_replayed_or_refused(bytes: Vec<u8>) {
        let files = Files::new();
        let path = files.capture(usual(), &[]);
        let mut file = fs::read(&path).unwrap();
        file.extend(&bytes);
        fs::write(&path, file).unwrap();
        let mut uplink = replay(&path, ReplayTiming::Fast);
        let mut burst = FrameBurst::new(4, 1518);
        for _ in 0..bytes.len() + 2 {
            let _ = uplink.receive(&mut burst);
        }
        prop_assert_eq!(uplink.replay_finished(), Some(true));
    }
}
