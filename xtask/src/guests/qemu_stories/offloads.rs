//! What a guest leaves to its VF: to cut large segments, and to fill in checksums.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use etherparse::{SlicedPacket, TransportSlice};

use super::{
    guest::Hardware,
    scene::Scene,
    vf::{Then, up},
    wire::Wire,
};
use crate::guests::{
    checksums::is_sound,
    stack::{AdapterOptions, Stack},
};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The TCP port of the stream.
const PORT: u16 = 5001;
/// Bytes of the stream, and the least number of segments of the MTU that they are.
const STREAM: u64 = 1_000_000;
const SEGMENTS: usize = 690;
/// The longest frame with an MTU of 1,500 bytes.
const LONGEST: usize = 1514;

/// Has a guest send a stream to a VM of another adapter, and looks at each frame between the two physical ports.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cables = ["here", "there"].map(|name| folder.path().join(name));
    let start = |name, cable: &std::path::Path| {
        let uplink = Some(format!("cable:{}", cable.display()));
        Stack::start_as(scene.clearway, AdapterOptions { name, vfs: 1, uplink }, &scene.logs)
    };
    let here = start("adapter", &cables[0])?;
    let there = start("adapter-there", &cables[1])?;
    let wire = Wire::connect(&cables[0], &cables[1])?;
    let vf = here.attach("guest", "02:c1:ea:00:09:01", 1)?;
    let peer_vf = there.attach("peer", "02:c1:ea:00:09:02", 1)?;
    let received = folder.path().join("received");
    let busybox = scene.kernel.busybox().display();
    let script = format!("sleep infinity | {busybox} nc -l -p {PORT} > {}", received.display());
    let _peer = there.run_vm_with("peer", &peer_vf, &format!("{PEER}/24"), &script)?;
    let script = format!(
        "PEER={PEER}\nPORT={PORT}\nSTREAM={STREAM}\n{}obey\n",
        include_str!("scripts/offloads.guest.sh")
    );
    let modules = &["iavf", "af_packet"];
    let hardware = Hardware { modules, ..Hardware::vf(&vf.socket) };
    let mut guest = up(scene, hardware, GUEST, Then::Run(&script))?;
    guest.expect("obeys")?;
    guest.ask("reaches")?;
    let large = guest.ask("sends")?;
    scene.say(&format!("it has sent a stream, of which {large} segments were longer than its MTU"));
    guest.ask("reaches")?;
    let sent = guest.ask("checksum")?;
    guest.end()?;
    let whole = super::lab::md5(&received)?;
    ensure!(whole == sent, "what has arrived is {whole}, and not {sent}");
    let frames = wire.cut()?;
    let segments = judge(&frames)?;
    scene.say(&format!(
        "the stream is whole; of {} frames that left, {segments} are segments of it, none is longer than \
         {LONGEST} bytes, and all checksums are right",
        frames.len()
    ));
    Ok(())
}

/// Looks at all that has left: how many segments of the stream there are.
fn judge(frames: &[Vec<u8>]) -> Result<usize> {
    let mut segments = 0;
    for frame in frames {
        let length = frame.len();
        ensure!(length <= LONGEST, "a frame of {length} bytes has left");
        let packet = SlicedPacket::from_ethernet(frame).context("a frame that is none has left")?;
        ensure!(is_sound(&packet), "a wrong checksum is in {packet:?}");
        if let Some(TransportSlice::Tcp(tcp)) = &packet.transport {
            segments += usize::from(tcp.destination_port() == PORT && !tcp.payload().is_empty());
        }
    }
    ensure!(segments >= SEGMENTS, "{segments} segments of the stream are too few");
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn segment(bytes: usize) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 77, 0, 1], [10, 77, 0, 2], 64)
            .tcp(4000, PORT, 1, 1000)
            .write(&mut frame, &vec![7; bytes])
            .unwrap();
        frame
    }

    #[test]
    fn long_frames_wrong_checksums_and_missing_segments_are_found() {
        let good = vec![segment(1448); SEGMENTS];
        assert_eq!(judge(&good).unwrap(), SEGMENTS);
        let why = |more: Vec<u8>| judge(&[good.clone(), vec![more]].concat()).unwrap_err();
        assert!(why(segment(2000)).to_string().contains("of 2054 bytes has left"));
        let mut corrupt = segment(1448);
        *corrupt.last_mut().unwrap() ^= 1;
        assert!(why(corrupt).to_string().contains("wrong checksum"));
        assert!(judge(good.get(1..).unwrap()).unwrap_err().to_string().contains("too few"));
    }
}
