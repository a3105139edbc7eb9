//! A capture is replayed to the VMs, and every frame of it is accounted for.
//!
//! The VMs are ordinary Linux network stacks: they may answer what is replayed to them. What they send each other
//! meanwhile is told apart by counters, and what they send out by recording it.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use adapter::control::AdapterStatus;
use adapter::{FunctionStats, UplinkStats};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use uplink::UplinkSpec;
use user_vm::{UserVm, VmStatistics};

use super::{
    Demo, LOOK_AGAIN, PATIENCE, Vm,
    capture::{Contents, Recording, Share},
    in_vm,
};
use crate::nic::AttachedVf;

/// How a capture was replayed.
#[derive(Debug, Serialize)]
pub(crate) struct Replay {
    /// Frames that can be replayed.
    frames_in_capture: u64,
    /// Frames that cannot: cut off by the capture's snap length, or of no length that a NIC takes.
    not_replayable: u64,
    /// Frames that came in by the uplink.
    frames_on_the_uplink: u64,
    /// Of those, frames for none of the VMs, which the switch dropped.
    for_nobody: u64,
    /// Frames that the VMs sent out, by the uplink's counter and by its recording.
    sent_out: u64,
    sent_out_in_recording: u64,
    vms: Vec<ReplayedVm>,
    #[serde(skip)]
    for_nobody_expected: (u64, u64),
}

#[derive(Debug, Serialize)]
struct ReplayedVm {
    vm: String,
    mac: String,
    /// Frames of the capture that are for this VM.
    in_capture: Share,
    /// Frames that the other VM sent it meanwhile.
    from_other_vm: u64,
    /// Frames that its VF delivered, by address.
    delivered: Share,
    /// Frames lost because the VM had no buffer for them.
    without_a_buffer: u64,
    /// Frames that arrived at the VM's eth0, and those lost just before it.
    received_by_vm: u64,
    lost_before_eth0: u64,
    /// Fewest and most frames that there must be at the VF, by capture and counters.
    #[serde(skip)]
    expected: (u64, u64),
}

/// Where it takes place.
pub(crate) struct Setting<'a> {
    pub(crate) sockets: &'a Path,
    pub(crate) directory: &'a Path,
    pub(crate) vms: &'a [Vm],
    pub(crate) attached: &'a [AttachedVf],
    pub(crate) running: &'a [UserVm],
}

/// All counters at one time; exact while nothing moves.
struct Look {
    uplink: UplinkStats,
    functions: Vec<FunctionStats>,
    vms: Vec<VmStatistics>,
    groups: Vec<BTreeSet<[u8; 6]>>,
}

impl Look {
    fn at(status: &AdapterStatus, setting: &Setting<'_>) -> Result<Self> {
        let function = |attached: &AttachedVf| {
            let vf = status.vfs.iter().find(|vf| vf.vf == attached.vf);
            Ok(vf.with_context(|| format!("VF {} is gone", attached.vf))?.function.stats)
        };
        let groups = setting.running.iter().map(|vm| in_vm(vm, &["groups"]));
        Ok(Self {
            uplink: status.uplink.stats,
            functions: setting.attached.iter().map(function).collect::<Result<_>>()?,
            vms: setting.running.iter().map(UserVm::statistics).collect::<Result<_, _>>()?,
            groups: groups.collect::<Result<_>>()?,
        })
    }
}

impl Demo {
    pub(super) fn replay(
        &mut self,
        spec: &UplinkSpec,
        contents: &Contents,
        setting: &Setting<'_>,
    ) -> Result<()> {
        let UplinkSpec::Pcap { input, output, timing } = spec else {
            bail!("{spec} replays nothing")
        };
        // What the VMs send out is recorded in any case.
        let own = setting.directory.join("uplink.pcap");
        let recording = output.clone().unwrap_or_else(|| own.clone());
        let spec = UplinkSpec::Pcap {
            input: input.clone(),
            output: Some(recording.clone()),
            timing: *timing,
        };
        let before = Look::at(&self.status(setting.sockets)?, setting)?;
        let start = Instant::now();
        self.with_nic(setting.sockets, |nic| nic.set_uplink(&spec))?;
        self.wait_for_the_end(setting)?;
        let deadline = Instant::now() + PATIENCE;
        let replay = loop {
            let after = Look::at(&self.status(setting.sockets)?, setting)?;
            // While the adapter writes, the recording may end inside a frame.
            let recorded = Recording::of(&recording);
            let late = Instant::now() > deadline;
            if let Ok(recorded) = &recorded {
                let replay = account(contents, recorded, setting.vms, &before, &after);
                if replay.agrees() || late {
                    break replay;
                }
            } else if late {
                recorded?;
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        if output.is_none() {
            std::fs::remove_file(&own).context("removing the recording")?;
        }
        self.tell(replay, start);
        Ok(())
    }

    fn wait_for_the_end(&mut self, setting: &Setting<'_>) -> Result<()> {
        let mut progress = (Instant::now(), 0);
        loop {
            let uplink = self.status(setting.sockets)?.uplink;
            if let Some(error) = &uplink.last_error {
                bail!("the replay failed: {error}");
            }
            if uplink.replay_finished == Some(true) {
                return Ok(());
            }
            if uplink.stats.received != progress.1 {
                progress = (Instant::now(), uplink.stats.received);
            }
            // A capture that keeps its timing may be silent for long.
            ensure!(progress.0.elapsed() < PATIENCE * 10, "the replay does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn tell(&mut self, replay: Replay, start: Instant) {
        let detail = format!(
            "{} of {} frames of the capture came in, {} cannot be replayed; {} were for none of the VMs",
            replay.frames_on_the_uplink,
            replay.frames_in_capture,
            replay.not_replayable,
            replay.for_nobody
        );
        self.timeline.done("uplink", "replay", start, &detail);
        let word = |agrees| if agrees { "agree" } else { "DIFFER" };
        for vm in &replay.vms {
            let detail = format!(
                "{}: {} unicast, {} broadcast, {} multicast of {}, {} and {} in the capture, {} from the other VM; \
                 {} without a buffer, {} at eth0",
                vm.mac,
                vm.delivered.unicast,
                vm.delivered.broadcast,
                vm.delivered.multicast,
                vm.in_capture.unicast,
                vm.in_capture.broadcast,
                vm.in_capture.multicast,
                vm.from_other_vm,
                vm.without_a_buffer,
                vm.received_by_vm
            );
            let what = format!("{} received", vm.vm);
            self.timeline.entry("count", &what, word(vm.agrees()), 0, &detail);
        }
        let detail = format!(
            "{} frames of the VMs left by the uplink, {} were recorded",
            replay.sent_out, replay.sent_out_in_recording
        );
        let agrees = replay.sent_out == replay.sent_out_in_recording;
        self.timeline.entry("count", "VMs to uplink", word(agrees), 0, &detail);
        if !replay.agrees() {
            self.findings.problems.push(format!("frame counts of the replay differ: {replay:?}"));
        }
        self.findings.replay = Some(replay);
    }
}

impl Replay {
    fn agrees(&self) -> bool {
        let (fewest, most) = self.for_nobody_expected;
        self.frames_on_the_uplink == self.frames_in_capture
            && (fewest..=most).contains(&self.for_nobody)
            && self.sent_out == self.sent_out_in_recording
            && self.vms.iter().all(ReplayedVm::agrees)
    }
}

impl ReplayedVm {
    fn agrees(&self) -> bool {
        let (fewest, most) = self.expected;
        let lost = self.without_a_buffer;
        let at_the_vf = self.delivered.total() + lost;
        (fewest..=most).contains(&at_the_vf)
            && self.delivered.unicast + lost >= self.in_capture.unicast
            && self.delivered.broadcast + lost >= self.in_capture.broadcast
            && self.received_by_vm + self.lost_before_eth0 == self.delivered.total()
    }
}

/// Holds what was counted against what the capture holds.
///
/// Where there are two numbers, the VM joined or left a multicast group meanwhile, or sent to a group in the moment
/// before its frames were recorded: then there are a fewest and a most.
fn account(
    contents: &Contents,
    recorded: &Recording,
    vms: &[Vm],
    before: &Look,
    after: &Look,
) -> Replay {
    let (mut all_lasting, mut all_ever) = (BTreeSet::new(), BTreeSet::new());
    let mut to_vms = 0;
    let mut rows = Vec::new();
    for (number, vm) in vms.iter().enumerate() {
        let pair = |of: &dyn Fn(&Look) -> Option<u64>| {
            of(after).zip(of(before)).map_or(0, |(after, before)| after.saturating_sub(before))
        };
        let receive = |of: fn(&adapter::data_path::ReceiveStats) -> u64| {
            pair(&|look| look.functions.get(number).map(|stats| of(&stats.receive)))
        };
        let other = 1 - number.min(1);
        let sent = |of: fn(&adapter::data_path::TransmitStats) -> u64| {
            pair(&|look| look.functions.get(other).map(|stats| of(&stats.transmit)))
        };
        let arrived = |of: fn(&VmStatistics) -> u64| pair(&|look| look.vms.get(number).map(of));
        let groups = |look: &Look| look.groups.get(number).cloned().unwrap_or_default();
        let (first, last) = (groups(before), groups(after));
        let lasting: BTreeSet<_> = first.intersection(&last).copied().collect();
        let ever: BTreeSet<_> = first.union(&last).copied().collect();

        let station = vm.mac.octets();
        let peer = vms.get(other).map_or([0; 6], |vm| vm.mac.octets());
        let from_peer = recorded.from(peer);
        let unicast = sent(|sent| sent.unicast).saturating_sub(from_peer.to_one());
        let unrecorded =
            sent(|sent| sent.multicast + sent.broadcast).saturating_sub(from_peer.to_many());
        let of_peer = |groups| unicast + from_peer.broadcast() + from_peer.multicast(groups);
        let in_capture = contents.share(station, &ever);
        rows.push(ReplayedVm {
            vm: vm.name.to_owned(),
            mac: vm.mac.to_string(),
            in_capture,
            from_other_vm: of_peer(&ever),
            delivered: Share {
                unicast: receive(|stats| stats.unicast),
                broadcast: receive(|stats| stats.broadcast),
                multicast: receive(|stats| stats.multicast),
            },
            without_a_buffer: receive(adapter::data_path::ReceiveStats::discards),
            received_by_vm: arrived(|vm| vm.to_guest.frames),
            lost_before_eth0: arrived(|vm| vm.to_guest.drops.total()),
            expected: (
                contents.share(station, &lasting).total() + of_peer(&lasting),
                in_capture.total() + of_peer(&ever) + unrecorded,
            ),
        });
        to_vms += in_capture.unicast;
        all_lasting.extend(lasting);
        all_ever.extend(ever);
    }
    let to_one_or_all = to_vms + contents.broadcast();
    let uplink = |of: fn(&UplinkStats) -> u64| of(&after.uplink).saturating_sub(of(&before.uplink));
    let nobody =
        |groups| contents.frames.saturating_sub(to_one_or_all + contents.multicast(groups));
    Replay {
        frames_in_capture: contents.frames,
        not_replayable: contents.not_replayable,
        frames_on_the_uplink: uplink(|stats| stats.received),
        for_nobody: uplink(|stats| stats.received_dropped),
        sent_out: uplink(|stats| stats.sent),
        sent_out_in_recording: recorded.frames,
        vms: rows,
        for_nobody_expected: (nobody(&all_ever), nobody(&all_lasting)),
    }
}
