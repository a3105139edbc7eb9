//! The results as text: what was measured, the ratios, and whether the aims are met.

use std::fmt::{self, Display, Formatter};

use super::{
    compare::{Results, Round},
    peers::Subject,
    sample::Spread,
    scale::{SCALES, Scale},
};

/// Where the copy limit itself spreads more, ratios say nothing.
const MOST_SPREAD: f64 = 0.25;
/// A frame's cost may grow by so much with VFs and filters.
const FLAT_WITHIN: f64 = 0.15;
/// A round trip may take so many ping-pongs.
const ROUND_TRIP_AIM: f64 = 2.0;
/// An idle adapter may take so much of a core, %.
const IDLE_AIM: f64 = 1.0;

/// What Clearway's rate is to be, at least, as a multiple of another's.
const AIMS: [(u16, Subject, f64); 7] = [
    (64, Subject::Testpmd, 2.2),
    (64, Subject::Ovs, 6.0),
    (64, Subject::CopyLimit, 0.65),
    (1500, Subject::Testpmd, 1.6),
    (1500, Subject::Ovs, 2.8),
    (1500, Subject::CopyLimit, 0.85),
    (9000, Subject::CopyLimit, 0.85),
];

const RATED: [Subject; 5] = [
    Subject::Clearway,
    Subject::Testpmd,
    Subject::Ovs,
    Subject::CopyLimit,
    Subject::HintedCopyLimit,
];
const TIMED: [Subject; 4] = [Subject::Clearway, Subject::Testpmd, Subject::Ovs, Subject::PingPong];

/// Whether an aim is met.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// The machine was too restless.
    None,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::None => "no verdict",
        })
    }
}

impl Results {
    pub(super) fn over_rounds(&self, value: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(value))
    }

    pub(super) fn rate(&self, subject: Subject, size: u16) -> Option<Spread> {
        self.over_rounds(|round| Some(round.rate(subject, size)?.frames_per_second))
    }

    /// Clearway's rate as a multiple of another's, round by round.
    fn ratio(&self, other: Subject, size: u16) -> Option<Spread> {
        self.over_rounds(|round| {
            let own = round.rate(Subject::Clearway, size)?.frames_per_second;
            Some(own / round.rate(other, size)?.frames_per_second)
        })
    }

    /// How much the copy limit differs between the rounds.
    fn limit_spread(&self, size: u16) -> Option<f64> {
        self.rate(Subject::CopyLimit, size).map(|limit| limit.relative())
    }

    pub(super) fn verdict(&self, size: u16, met: bool) -> Verdict {
        match self.limit_spread(size) {
            Some(spread) if spread <= MOST_SPREAD => {
                if met {
                    Verdict::Met
                } else {
                    Verdict::Missed
                }
            }
            _ => Verdict::None,
        }
    }

    fn rates(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Frames forwarded by one core\n")?;
        writeln!(
            f,
            "Frames that the sink has read, in millions a second: median (least–greatest).\n"
        )?;
        write!(f, "| bytes |")?;
        RATED.iter().try_for_each(|subject| write!(f, " {} |", subject.name()))?;
        writeln!(f, " Clearway, Gbit/s | copy limit spreads |")?;
        writeln!(f, "| ---: |{} ---: | ---: |", " ---: |".repeat(RATED.len()))?;
        for size in &self.sizes {
            write!(f, "| {size} |")?;
            for subject in RATED {
                cell(f, self.rate(subject, *size), 1e-6, 2)?;
            }
            let bits = self.over_rounds(|round| {
                Some(round.rate(Subject::Clearway, *size)?.bytes_per_second * 8.0)
            });
            match bits {
                Some(bits) => write!(f, " {:.1} |", bits.median / 1e9)?,
                None => write!(f, " – |")?,
            }
            match self.limit_spread(*size) {
                Some(spread) => writeln!(f, " {:.0} % |", spread * 100.0)?,
                None => writeln!(f, " – |")?,
            }
        }
        writeln!(f)
    }

    fn ratios(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Clearway as a multiple of the others\n")?;
        writeln!(f, "Median of the ratios within each round (least–greatest).\n")?;
        writeln!(f, "| bytes | against | ratio | aim | |\n| ---: | --- | ---: | ---: | --- |")?;
        for size in &self.sizes {
            for other in RATED.into_iter().filter(|other| *other != Subject::Clearway) {
                let Some(ratio) = self.ratio(other, *size) else { continue };
                write!(f, "| {size} | {} |", other.name())?;
                cell(f, Some(ratio), 1.0, 2)?;
                let aim = AIMS.iter().find(|(of, subject, _)| of == size && *subject == other);
                match aim {
                    Some((.., aim)) => {
                        let verdict = self.verdict(*size, ratio.median >= *aim);
                        writeln!(f, " ≥ {aim} | {verdict} |")?;
                    }
                    None => writeln!(f, " | |")?,
                }
            }
        }
        writeln!(f)
    }

    fn round_trips(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Round trip of one 64-byte frame\n")?;
        writeln!(
            f,
            "From the client's core through the forwarder's and back, one frame at a time; medians, ns.\n"
        )?;
        writeln!(f, "| | ns | in ping-pongs | aim | |\n| --- | ---: | ---: | ---: | --- |")?;
        for subject in TIMED {
            let median = |round: &Round, of| Some(round.round_trip(of)?.rtt_ns_median);
            let Some(trip) = self.over_rounds(|round| median(round, subject)) else { continue };
            write!(f, "| {} |", subject.name())?;
            cell(f, Some(trip), 1.0, 0)?;
            let ratio = self.over_rounds(|round| {
                Some(median(round, subject)? / median(round, Subject::PingPong)?)
            });
            cell(f, ratio, 1.0, 2)?;
            match ratio {
                Some(ratio) if subject == Subject::Clearway => {
                    let verdict = self.verdict(64, ratio.median <= ROUND_TRIP_AIM);
                    writeln!(f, " ≤ {ROUND_TRIP_AIM} | {verdict} |")?;
                }
                _ => writeln!(f, " | |")?,
            }
        }
        writeln!(f)
    }

    fn scales(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.rounds.iter().all(|round| round.scales.is_empty()) {
            return Ok(());
        }
        writeln!(f, "## Cost of a 64-byte frame as the adapter grows\n")?;
        writeln!(
            f,
            "Two VFs exchange frames, the others are up and silent. \"All addresses\": the frames go to every \
             filter's address in turn. The cost is held against the first line of its kind; the aim is \
             within {:.0} %.\n",
            FLAT_WITHIN * 100.0
        )?;
        writeln!(f, "| VFs | filters | sent to | ns a frame | growth | |")?;
        writeln!(f, "| ---: | ---: | --- | ---: | ---: | --- |")?;
        for scale in SCALES {
            let cost = |round: &Round, of| Some(round.scale(of)?.cost_ns());
            let base = base_of(scale);
            let Some(ns) = self.over_rounds(|round| cost(round, scale)) else { continue };
            let growth =
                self.over_rounds(|round| Some(cost(round, scale)? / cost(round, base)? - 1.0));
            let to = if scale.spread { "all addresses" } else { "one address" };
            write!(f, "| {} | {} | {to} |", scale.vfs, scale.filters)?;
            cell(f, Some(ns), 1.0, 1)?;
            match growth {
                _ if scale == base => writeln!(f, " | |")?,
                Some(growth) => {
                    let verdict = self.verdict(64, growth.median <= FLAT_WITHIN);
                    writeln!(f, " {:+.1} % | {verdict} |", growth.median * 100.0)?;
                }
                None => writeln!(f, " – | |")?,
            }
        }
        writeln!(f)
    }

    fn rest(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(idle) = &self.idle {
            let verdict = if idle.cpu_percent < IDLE_AIM { Verdict::Met } else { Verdict::Missed };
            writeln!(f, "## Idle\n")?;
            writeln!(
                f,
                "* CPU of the adapter with two VFs up, from one second after the last frame: {:.2} % of a \
                 core (aim: below {IDLE_AIM} %, {verdict})",
                idle.cpu_percent
            )?;
            let wake = idle.wake_up_us;
            writeln!(
                f,
                "* first frame after 50 ms of silence: {:.0} µs ({:.0}–{:.0})\n",
                wake.median, wake.least, wake.greatest
            )?;
        }
        if let Some(first) = &self.first_frame_ms {
            writeln!(f, "## From ALLOCATE_VF to the first frame\n")?;
            writeln!(
                f,
                "{:.2} ms ({:.2}–{:.2}): VF, VPort, filter, socket, the driver's mailbox and queues.\n",
                first.median, first.least, first.greatest
            )?;
        }
        if !self.failures.is_empty() {
            writeln!(f, "## Not measured\n")?;
            self.failures.iter().try_for_each(|failure| writeln!(f, "* {failure}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What a scale's cost is held against: the smallest of its kind.
fn base_of(scale: Scale) -> Scale {
    SCALES
        .into_iter()
        .find(|base| base.spread == scale.spread && base.filters == 16 && scale.vfs == 2)
        .filter(|_| scale.filters >= 16)
        .or_else(|| SCALES.first().copied())
        .unwrap_or(scale)
}

pub(super) fn cell(
    f: &mut Formatter<'_>,
    spread: Option<Spread>,
    unit: f64,
    digits: usize,
) -> fmt::Result {
    match spread {
        Some(Spread { median, least, greatest }) => write!(
            f,
            " {:.digits$} ({:.digits$}–{:.digits$}) |",
            median * unit,
            least * unit,
            greatest * unit
        ),
        None => write!(f, " – |"),
    }
}

impl Display for Results {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Results\n\n{}", self.machine)?;
        writeln!(
            f,
            "* taken {}, {} rounds, {} s a measurement, forwarder and client on CPUs {}",
            Date(self.taken_at),
            self.rounds.len(),
            self.seconds,
            self.cores
        )?;
        write!(f, "* Clearway's rings:")?;
        self.rings.iter().try_for_each(|(size, ring)| write!(f, " {ring} at {size} bytes;"))?;
        writeln!(f, " bursts of {}\n", super::forward::BURST)?;
        if !self.adapters_only {
            self.rates(f)?;
            self.ratios(f)?;
            self.round_trips(f)?;
        }
        self.vhost_user(f)?;
        self.kinds(f)?;
        self.scales(f)?;
        self.rest(f)
    }
}

/// Seconds since 1970 as a UTC date and time.
struct Date(u64);

impl Display for Date {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        // Days to a civil date, in 400-year eras that begin on 1 March.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute) = (seconds / 3600, seconds / 60 % 60);
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{machine::Machine, sample::Rate};
    use std::time::Duration;

    fn results(limits: &[u64]) -> Results {
        let rate =
            |subject, frames| (subject, Rate::of(64, frames, frames * 64, Duration::from_secs(1)));
        let rounds = limits
            .iter()
            .map(|limit| Round {
                rates: vec![rate(Subject::Clearway, 700), rate(Subject::CopyLimit, *limit)],
                ..Round::default()
            })
            .collect();
        Results {
            machine: Machine::look(),
            taken_at: 1_582_934_400,
            seconds: 1.0,
            cores: "0,1".into(),
            sizes: vec![64],
            rings: vec![(64, 1024)],
            rounds,
            idle: None,
            first_frame_ms: None,
            path_switches: None,
            instructions: Vec::new(),
            no_instructions: None,
            adapters_only: false,
            failures: vec!["OVS-DPDK: not there".into()],
        }
    }

    #[test]
    fn a_quiet_machine_gives_verdicts() {
        assert!(results(&[1000, 1010, 990]).to_string().contains("| ≥ 0.65 | met |"));
        assert!(results(&[1400, 1410, 1390]).to_string().contains("| ≥ 0.65 | missed |"));
    }

    #[test]
    fn a_restless_machine_gives_none() {
        assert!(results(&[1000, 1300, 990]).to_string().contains("| ≥ 0.65 | no verdict |"));
    }

    #[test]
    fn what_failed_is_said() {
        assert!(results(&[1000]).to_string().contains("* OVS-DPDK: not there"));
    }

    #[test]
    fn the_date_is_the_date() {
        assert_eq!(Date(1_582_934_400).to_string(), "2020-02-29 00:00 UTC");
        assert_eq!(Date(1_767_225_599).to_string(), "2025-12-31 23:59 UTC");
        assert_eq!(Date(0).to_string(), "1970-01-01 00:00 UTC");
    }

    #[test]
    fn a_cost_is_held_against_the_smallest_of_its_kind() {
        let of = |vfs, filters, spread| base_of(Scale { vfs, filters, spread });
        assert_eq!(of(256, 256, false), Scale { vfs: 2, filters: 2, spread: false });
        assert_eq!(of(2, 65_536, false), Scale { vfs: 2, filters: 16, spread: false });
        assert_eq!(of(2, 65_536, true), Scale { vfs: 2, filters: 16, spread: true });
        assert_eq!(of(2, 2, false), Scale { vfs: 2, filters: 2, spread: false });
    }
}
