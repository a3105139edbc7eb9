//! The stack in a model of the world, ten thousand times, each run decided by its seed: an administrator who changes his
//! mind, guests well and ill behaved, processes that die, NICs that stop, restart, hang, refuse and disappear.
//!
//! After each step: no filter is on two VPorts, none is taken away that is wanted, no request reaches a NIC that NDIS would
//! refuse as senseless, no VPort goes before the guest's device, reasons and states agree. In the end, three times: with
//! the world as it is, with everything put right, and with everything off, it comes to rest in the state that desired
//! state and facts call for, and NICs hold what adapters hold and nothing else.
//!
//! A run that fails is made as short as it gets, and printed. `CLEARWAY_SIMULATION_SEED=n` runs one seed and prints it;
//! `CLEARWAY_SIMULATION_RUNS=n` runs so many; `CLEARWAY_SIMULATION_SHRINK=0` leaves a failing run as long as it is.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod check;
mod guest;
mod happening;
mod nic;
mod random;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use happening::Kind;
use world::World;

/// Runs of the test.
const RUNS: u64 = 10_000;
/// Steps of a run, before it is brought to rest.
const STEPS: usize = 100;
/// Seeds that found something once: run first, for good.
const RECORDED: &str = include_str!("seeds.txt");

/// A part of a run's end.
type Part = fn(&mut World);

fn run(seed: u64, steps: usize, without: &BTreeSet<Kind>, traced: bool) -> World {
    let mut world = World::new(seed, without.clone(), traced);
    if seed.is_multiple_of(2) {
        // Every other world is at its best before it begins.
        world.come_to_rest();
    }
    for _ in 0..steps {
        if world.failure.is_some() {
            return world;
        }
        world.step();
    }
    let in_the_end: [(&str, Part); 9] = [
        ("comes to rest", World::come_to_rest),
        ("rests", World::check_rest),
        ("is healed", World::heal),
        ("comes to rest", World::come_to_rest),
        ("rests", World::check_rest),
        ("is well", World::check_healed),
        ("is turned off", World::turn_off),
        ("comes to rest", World::come_to_rest),
        ("is empty", World::check_empty),
    ];
    for (what, part) in in_the_end {
        if world.failure.is_some() {
            return world;
        }
        world.note(|| format!("-- {what}"));
        part(&mut world);
    }
    world
}

/// The shortest run of a failing seed, with the fewest kinds of things happening in it, that still fails.
fn shrink(seed: u64) -> (usize, BTreeSet<Kind>) {
    let fails =
        |steps, without: &BTreeSet<Kind>| run(seed, steps, without, false).failure.is_some();
    let mut without = BTreeSet::new();
    let mut steps = STEPS;
    loop {
        let before = (steps, without.len());
        if let Some(fewer) = (0..steps).find(|fewer| fails(*fewer, &without)) {
            steps = fewer;
        }
        for kind in Kind::ALL {
            let mut fewer = without.clone();
            if fewer.insert(kind) && fails(steps, &fewer) {
                without = fewer;
            }
        }
        if before == (steps, without.len()) {
            return (steps, without);
        }
    }
}

fn report(seed: u64) -> String {
    if setting("CLEARWAY_SIMULATION_SHRINK") == Some(0) {
        return format!("seed {seed}");
    }
    let (steps, without) = shrink(seed);
    let world = run(seed, steps, &without, true);
    let happens: Vec<_> = Kind::ALL.into_iter().filter(|kind| !without.contains(kind)).collect();
    format!(
        "{}\nseed {seed}, {steps} steps, with {happens:?}: {}",
        world.trace.unwrap_or_default().join("\n"),
        world.failure.unwrap_or_default()
    )
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn whatever_happens_the_stack_settles_where_desired_state_and_facts_call_for() {
    if let Some(seed) = setting("CLEARWAY_SIMULATION_SEED") {
        let world = run(seed, STEPS, &BTreeSet::new(), true);
        match world.failure {
            Some(_) => panic!("{}", report(seed)),
            None => println!("{}", world.trace.unwrap_or_default().join("\n")),
        }
        return;
    }
    let recorded = RECORDED.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let runs = setting("CLEARWAY_SIMULATION_RUNS").unwrap_or(RUNS);
    let seeds: Vec<u64> = recorded.chain(1..=runs).collect();
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(8));
    let mut counts = BTreeMap::<_, u64>::new();
    let mut failed = BTreeSet::new();
    std::thread::scope(|scope| {
        let seeds = &seeds;
        let work = |part: usize| {
            let seeds = seeds.iter().skip(part).step_by(threads);
            let mut counts = BTreeMap::<_, u64>::new();
            for seed in seeds {
                let world = run(*seed, STEPS, &BTreeSet::new(), false);
                if world.failure.is_some() {
                    return (counts, Some(*seed));
                }
                for (what, count) in world.counts {
                    *counts.entry(what).or_default() += count;
                }
            }
            (counts, None)
        };
        let workers: Vec<_> = (0..threads).map(|part| scope.spawn(move || work(part))).collect();
        for worker in workers {
            let (its, failing) = worker.join().unwrap();
            failed.extend(failing);
            for (what, count) in its {
                *counts.entry(what).or_default() += count;
            }
        }
    });
    if let Some(seed) = failed.first() {
        println!("seed {seed} fails: {:?}", run(*seed, STEPS, &BTreeSet::new(), false).failure);
        panic!("{}", report(*seed));
    }
    println!("{runs} runs: {counts:?}");
    // A world in which nothing happens proves nothing.
    for what in [
        "VFs allocated",
        "data path switches",
        "surprise removals",
        "time-outs",
        "vetoes",
        "stops allowed",
        "sweeps",
        "changes of an uplink",
        "virtio-nets",
    ] {
        assert!(
            counts.get(what).is_some_and(|count| *count > runs / 50),
            "too few {what}: {counts:?}"
        );
    }
}
