//! The kinds of adapter side by side, as text.

use std::fmt::{self, Formatter};

use super::{
    compare::{Results, Round},
    path_switch::Took,
    peers::Subject,
    primitives::Primitives,
    sample::{Rate, Spread},
    table::{Verdict, cell},
};

const KINDS: [(Subject, &str); 3] =
    [(Subject::Emulated, "emulated"), (Subject::Synthetic, "synthetic"), (Subject::Clearway, "VF")];
/// The synthetic path is to be at least so fast as testpmd between two vhost ports.
const TESTPMD_AIM: f64 = 1.0;
/// The VF is to be so much faster than the synthetic path at 64 bytes, and to take so much of its CPU.
const VF_AIM: f64 = 2.0;
const VF_CPU_AIM: f64 = 0.5;
/// A packet through a ring, by bytes, ns.
const RING_AIMS: [(u16, f64, f64); 2] = [(40, 50.0, 50.0), (1500, 120.0, 120.0)];
const ROUND_TRIP_AIM_NS: f64 = 10_000.0;
const ROUND_TRIP_OPENVMM_NS: f64 = 18_000.0;
const TRANSMIT_AIM_NS: f64 = 150.0;
const TRANSMIT_OPENVMM_NS: f64 = 440.0;

fn aim(met: bool) -> Verdict {
    if met { Verdict::Met } else { Verdict::Missed }
}

impl Results {
    fn cpu(
        &self,
        subject: Subject,
        size: u16,
        of: impl Fn(&Rate) -> Option<f64>,
    ) -> Option<Spread> {
        self.over_rounds(|round| of(round.rate(subject, size)?))
    }

    fn host_cpu(&self, subject: Subject, size: u16) -> Option<Spread> {
        self.cpu(subject, size, |rate| rate.host_cpu_ns)
    }

    /// Everything about the kinds of adapter.
    pub(super) fn kinds(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let measured = |(subject, _): &(Subject, _)| {
            self.sizes.iter().any(|size| self.rate(*subject, *size).is_some())
        };
        if !KINDS.iter().skip(1).any(measured) {
            return Ok(());
        }
        self.side_by_side(f)?;
        self.aims_of_kinds(f)?;
        self.primitives(f)?;
        self.moves(f)
    }

    fn side_by_side(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "## The three kinds of adapter\n")?;
        writeln!(
            f,
            "From one guest's adapter to another's, each with its driver in a poll loop: a DEC 21140 over vfio-user, \
             told of each frame as stock drivers do; NetVSC over VMBus rings; the AVF driver on a VF. One switch or \
             adapter thread. CPU time of a frame, of all of the host's threads and of the thread that plays both \
             guests: both poll, so that it is what a frame takes where that side is the slower one, and waiting \
             included where it is not. Medians (least–greatest).\n"
        )?;
        writeln!(
            f,
            "| bytes | adapter | frames, M/s | Gbit/s | host CPU, ns | guests' CPU, ns | instructions |"
        )?;
        writeln!(f, "| ---: | --- | ---: | ---: | ---: | ---: | ---: |")?;
        for size in &self.sizes {
            for (subject, name) in KINDS {
                write!(f, "| {size} | {name} |")?;
                cell(f, self.rate(subject, *size), 1e-6, 3)?;
                let bits = self
                    .over_rounds(|round| Some(round.rate(subject, *size)?.bytes_per_second * 8.0));
                cell(f, bits, 1e-9, 2)?;
                cell(f, self.host_cpu(subject, *size), 1.0, 1)?;
                cell(f, self.cpu(subject, *size, |rate| rate.guest_cpu_ns), 1.0, 1)?;
                let mut counted = self.instructions.iter();
                match counted.find(|(of, at, _)| *of == subject && at == size) {
                    Some((.., of)) => writeln!(f, " {:.0} + {:.0} |", of.host, of.guests)?,
                    None => writeln!(f, " – |")?,
                }
            }
        }
        write!(f, "\nThe emulated adapter takes frames of up to 1518 bytes. ")?;
        match &self.no_instructions {
            Some(reason) => writeln!(f, "Instructions: {reason}.\n")?,
            None => writeln!(f, "Instructions in user space: the host's and the guests'.\n")?,
        }
        writeln!(f, "| | round trip of 64 bytes, ns |\n| --- | ---: |")?;
        for (subject, name) in KINDS {
            write!(f, "| {name} |")?;
            let trip = self.over_rounds(|round| Some(round.round_trip(subject)?.rtt_ns_median));
            cell(f, trip, 1.0, 0)?;
            writeln!(f)?;
        }
        writeln!(f)
    }

    fn aims_of_kinds(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let frames =
            |round: &Round, subject, size| Some(round.rate(subject, size)?.frames_per_second);
        let host = |round: &Round, subject, size| round.rate(subject, size)?.host_cpu_ns;
        let mut lines: Vec<(String, Option<Spread>, &str, Option<bool>)> = Vec::new();
        for size in &self.sizes {
            let ratio = self.over_rounds(|round| {
                let own = frames(round, Subject::Synthetic, *size)?;
                Some(own / frames(round, Subject::Testpmd, *size)?)
            });
            let met = ratio.map(|ratio| ratio.median >= TESTPMD_AIM);
            lines.push((
                format!("{size} bytes: frames of the synthetic path, in testpmd's vhost to vhost"),
                ratio,
                "≥ 1",
                met,
            ));
        }
        for size in &self.sizes {
            let ratio = self.over_rounds(|round| {
                let own = frames(round, Subject::Clearway, *size)?;
                Some(own / frames(round, Subject::Synthetic, *size)?)
            });
            let cpu = self.over_rounds(|round| {
                let own = host(round, Subject::Clearway, *size)?;
                Some(own / host(round, Subject::Synthetic, *size)?)
            });
            let aimed = *size == 64;
            let met = ratio.map(|ratio| ratio.median >= VF_AIM).filter(|_| aimed);
            let text = format!("{size} bytes: frames of the VF, in the synthetic path's");
            lines.push((text, ratio, if aimed { "≥ 2" } else { "" }, met));
            let met = cpu.map(|cpu| cpu.median <= VF_CPU_AIM).filter(|_| aimed);
            let text = format!("{size} bytes: host CPU a frame of the VF, in the synthetic path's");
            lines.push((text, cpu, if aimed { "≤ 0.5" } else { "" }, met));
        }
        writeln!(f, "| | ratio | aim | |\n| --- | ---: | ---: | --- |")?;
        for (text, ratio, aimed, met) in lines {
            if ratio.is_none() {
                continue;
            }
            write!(f, "| {text} |")?;
            cell(f, ratio, 1.0, 2)?;
            match met {
                Some(met) => writeln!(f, " {aimed} | {} |", aim(met))?,
                None => writeln!(f, " {aimed} | |")?,
            }
        }
        writeln!(f)
    }

    fn primitives(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all: Vec<Primitives> =
            self.rounds.iter().filter_map(|round| round.primitives.clone()).collect();
        let Some(all) = Primitives::median_of(&all) else { return Ok(()) };
        writeln!(f, "## What the synthetic path is made of\n")?;
        writeln!(
            f,
            "Medians over the rounds, ns. OpenVMM's figures are those that its own code gave on a machine such as \
             this.\n"
        )?;
        writeln!(f, "| | ns | aim | OpenVMM | |\n| --- | ---: | ---: | ---: | --- |")?;
        for (size, ns) in &all.ring {
            let known = RING_AIMS.iter().find(|(of, ..)| of == size);
            let (aimed, openvmm) =
                known.map_or((f64::MAX, 0.0), |(_, aimed, other)| (*aimed, *other));
            let verdict = aim(*ns <= aimed);
            writeln!(
                f,
                "| {size} bytes written to a ring and read | {ns:.1} | ≤ {aimed:.0} | {openvmm:.0} | {verdict} |"
            )?;
        }
        for (size, ns) in &all.ring_together {
            writeln!(f, "| {size} bytes, 32 packets together | {ns:.1} | | | |")?;
        }
        let verdict = aim(all.round_trip_asleep <= ROUND_TRIP_AIM_NS);
        writeln!(
            f,
            "| request and completion between two threads that sleep | {:.0} | ≤ {ROUND_TRIP_AIM_NS:.0} | \
             {ROUND_TRIP_OPENVMM_NS:.0} | {verdict} |",
            all.round_trip_asleep
        )?;
        writeln!(f, "| the same, polling | {:.0} | | | |", all.round_trip_polling)?;
        for (size, ns) in &all.transmit {
            let verdict = aim(*ns <= TRANSMIT_AIM_NS);
            writeln!(
                f,
                "| NetVSP: a frame of {size} bytes from ring to switch, one a packet | {ns:.1} | ≤ \
                 {TRANSMIT_AIM_NS:.0} | {TRANSMIT_OPENVMM_NS:.0} | {verdict} |"
            )?;
        }
        for (size, ns) in &all.transmit_together {
            writeln!(
                f,
                "| the same of {size} bytes, as many a packet as fit, 8 at most | {ns:.1} | | | |"
            )?;
        }
        writeln!(f)
    }

    fn moves(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(moves) = &self.path_switches else { return Ok(()) };
        writeln!(f, "## Moves of the data path\n")?;
        writeln!(
            f,
            "{} moves between synthetic adapter and VF, with {:.0} frames a second each way: {} frames, {} lost, {} \
             doubled. From the guest's request (NVSP 129) to the first frame by the other path, µs; filters are moved \
             by OIDs through the adapter's control socket.\n",
            moves.moves, moves.frames_per_second, moves.frames, moves.lost, moves.doubled
        )?;
        writeln!(
            f,
            "| to | first frame sent: median | worst | first frame received: median | worst |"
        )?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: |")?;
        for (to, Took { sent_us, arrived_us }) in
            [("the VF", moves.to_vf), ("synthetic", moves.to_synthetic)]
        {
            writeln!(
                f,
                "| {to} | {:.0} | {:.0} | {:.0} | {:.0} |",
                sent_us.0, sent_us.1, arrived_us.0, arrived_us.1
            )?;
        }
        writeln!(f)
    }
}
