//! Everything measured interleaved, in rounds, on the same two CPUs.
//!
//! In each round every subject is measured at every size, each round beginning with another subject, so that
//! what a noisy machine does to one it does to all. Ratios are taken within a round; what is reported is their
//! median.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::{
    copy_limit,
    cores::Cores,
    emulated, first_frame, forward,
    idle::{self, Idle},
    instructions::{self, Instructions},
    machine::Machine,
    path_switch::{self, PathSwitches},
    peers::{Peers, Subject},
    ping_pong,
    primitives::{self, Primitives},
    sample::{Rate, RoundTrip, Spread},
    scale::{self, SCALES, Scale},
    synthetic,
};

/// What is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Of one measurement.
    pub(crate) duration: Duration,
    pub(crate) sizes: Vec<u16>,
    pub(crate) cores: Cores,
    /// The peers' scripts; without them Clearway and the limits alone are measured.
    pub(crate) peers: Option<PathBuf>,
    /// Measure also scaling, idling and the time to the first frame.
    pub(crate) all: bool,
    /// Measure nothing but the kinds of adapter, and testpmd if there are peers.
    pub(crate) adapters_only: bool,
    /// Moves of the data path; 0 for none.
    pub(crate) moves: u32,
}

impl Plan {
    /// What is measured of frames in each round.
    fn subjects(&self) -> Vec<Subject> {
        let mut subjects = vec![Subject::Clearway, Subject::Synthetic, Subject::Emulated];
        if !self.adapters_only {
            subjects.extend([Subject::CopyLimit, Subject::HintedCopyLimit]);
        }
        if self.peers.is_some() {
            subjects.push(Subject::Testpmd);
            subjects.push(Subject::VhostUser);
            if !self.adapters_only {
                subjects.push(Subject::Ovs);
            }
        }
        subjects
    }
}

/// One round.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) rates: Vec<(Subject, Rate)>,
    pub(crate) round_trips: Vec<(Subject, RoundTrip)>,
    pub(crate) scales: Vec<(Scale, Rate)>,
    pub(crate) primitives: Option<Primitives>,
}

impl Round {
    pub(crate) fn rate(&self, subject: Subject, size: u16) -> Option<&Rate> {
        self.rates
            .iter()
            .find(|(of, rate)| *of == subject && rate.size == size)
            .map(|(_, rate)| rate)
    }

    pub(crate) fn round_trip(&self, subject: Subject) -> Option<&RoundTrip> {
        self.round_trips.iter().find(|(of, _)| *of == subject).map(|(_, trip)| trip)
    }

    pub(crate) fn scale(&self, scale: Scale) -> Option<&Rate> {
        self.scales.iter().find(|(of, _)| *of == scale).map(|(_, rate)| rate)
    }
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    /// Seconds since 1970.
    pub(crate) taken_at: u64,
    pub(crate) seconds: f64,
    pub(crate) cores: String,
    pub(crate) sizes: Vec<u16>,
    /// Descriptors of Clearway's rings, by size.
    pub(crate) rings: Vec<(u16, u16)>,
    pub(crate) rounds: Vec<Round>,
    pub(crate) idle: Option<Idle>,
    /// Milliseconds from ALLOCATE_VF to the first frame.
    pub(crate) first_frame_ms: Option<Spread>,
    pub(crate) path_switches: Option<PathSwitches>,
    /// Instructions a frame, where they can be counted.
    pub(crate) instructions: Vec<(Subject, u16, Instructions)>,
    /// Why they cannot, if so.
    pub(crate) no_instructions: Option<String>,
    /// Nothing but the kinds of adapter was measured.
    pub(crate) adapters_only: bool,
    /// What could not be measured, and why.
    pub(crate) failures: Vec<String>,
}

/// Runs the plan; says on stderr what it is at.
pub(crate) fn run(plan: &Plan) -> Results {
    let taken_at = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut results = Results {
        machine: Machine::look(),
        taken_at,
        seconds: plan.duration.as_secs_f64(),
        cores: plan.cores.to_string(),
        sizes: plan.sizes.clone(),
        rings: plan.sizes.iter().map(|size| (*size, forward::ring(*size))).collect(),
        rounds: Vec::new(),
        idle: None,
        first_frame_ms: None,
        path_switches: None,
        instructions: Vec::new(),
        no_instructions: None,
        adapters_only: plan.adapters_only,
        failures: Vec::new(),
    };
    for number in 0..plan.rounds {
        eprintln!("round {} of {}", number + 1, plan.rounds);
        let round = one_round(plan, number, &mut results.failures);
        results.rounds.push(round);
    }
    count_instructions(plan, &mut results);
    if plan.moves > 0 {
        eprintln!("moves of the data path");
        match path_switch::measure(plan.moves, plan.cores) {
            Ok(moves) => results.path_switches = Some(moves),
            Err(error) => results.failures.push(format!("{error:#}")),
        }
    }
    if plan.all && !plan.adapters_only {
        eprintln!("idling, first frames");
        match idle::measure(plan.cores) {
            Ok(idle) => results.idle = Some(idle),
            Err(error) => results.failures.push(format!("idle: {error:#}")),
        }
        match first_frame::measure(plan.cores) {
            Ok(first) => results.first_frame_ms = Some(first),
            Err(error) => results.failures.push(format!("first frame: {error:#}")),
        }
    }
    results.failures.dedup();
    results
}

fn count_instructions(plan: &Plan, results: &mut Results) {
    if let Err(error) = instructions::can_be_counted() {
        results.no_instructions = Some(format!("{error:#}"));
        return;
    }
    for size in &plan.sizes {
        for kind in [Subject::Emulated, Subject::Synthetic, Subject::Clearway] {
            if kind == Subject::Emulated && *size > emulated::LONGEST {
                continue;
            }
            match instructions::measure(kind, *size, plan.cores) {
                Ok(counted) => results.instructions.push((kind, *size, counted)),
                Err(error) => results.failures.push(format!("{error:#}")),
            }
        }
    }
}

fn one_round(plan: &Plan, number: usize, failures: &mut Vec<String>) -> Round {
    let mut round = Round::default();
    let peers =
        plan.peers.as_ref().map(|folder| Peers { folder: folder.clone(), cores: plan.cores });
    let mut subjects = plan.subjects();
    let first = number % subjects.len();
    subjects.rotate_left(first);
    for size in &plan.sizes {
        for subject in &subjects {
            if *subject == Subject::Emulated && *size > emulated::LONGEST {
                continue;
            }
            match rate(plan, peers.as_ref(), *subject, *size) {
                Ok(rate) => round.rates.push((*subject, rate)),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
    }
    for subject in subjects.iter().chain([&Subject::PingPong]) {
        match round_trip(plan, peers.as_ref(), *subject) {
            Some(Ok(trip)) => round.round_trips.push((*subject, trip)),
            Some(Err(error)) => failures.push(format!("{error:#}")),
            None => {}
        }
    }
    match primitives::measure(plan.duration.min(Duration::from_secs(1)), plan.cores) {
        Ok(primitives) => round.primitives = Some(primitives),
        Err(error) => failures.push(format!("{error:#}")),
    }
    if plan.all && !plan.adapters_only {
        let duration = plan.duration.min(Duration::from_secs(1));
        for scale in SCALES {
            match scale::measure(scale, duration, plan.cores) {
                Ok(rate) => round.scales.push((scale, rate)),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
    }
    round
}

fn rate(plan: &Plan, peers: Option<&Peers>, subject: Subject, size: u16) -> anyhow::Result<Rate> {
    match (subject, peers) {
        (Subject::Clearway, _) => {
            Ok(forward::rate(size, forward::ring(size), plan.duration, plan.cores)?.0)
        }
        (Subject::Synthetic, _) => synthetic::rate(size, plan.duration, plan.cores),
        (Subject::Emulated, _) => emulated::rate(size, plan.duration, plan.cores),
        (Subject::Testpmd | Subject::Ovs | Subject::VhostUser, Some(peers)) => {
            peers.rate(subject, size, plan.duration.as_secs_f64())
        }
        _ => copy_limit::measure(
            size,
            subject == Subject::HintedCopyLimit,
            plan.duration.min(Duration::from_secs(1)),
            plan.cores,
        ),
    }
}

fn round_trip(
    plan: &Plan,
    peers: Option<&Peers>,
    subject: Subject,
) -> Option<anyhow::Result<RoundTrip>> {
    let duration = plan.duration.min(Duration::from_secs(1));
    match (subject, peers) {
        (Subject::Clearway, _) => Some(forward::round_trips(64, duration, plan.cores)),
        (Subject::Synthetic, _) => Some(synthetic::round_trips(64, duration, plan.cores)),
        (Subject::Emulated, _) => Some(emulated::round_trips(64, duration, plan.cores)),
        (Subject::Testpmd | Subject::Ovs | Subject::VhostUser, Some(peers)) => {
            Some(peers.round_trips(subject, 64, duration.as_secs_f64()))
        }
        (Subject::PingPong, _) => Some(ping_pong::measure(duration, plan.cores)),
        _ => None,
    }
}
