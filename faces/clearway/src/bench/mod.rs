//! `clearway bench`: measures the data path, alone or against its peers.
//!
//! Two CPUs: one runs what is measured (the adapter's worker, or a peer's forwarding thread), the other both
//! ends of the traffic. Without a subcommand everything is measured in interleaved rounds and set out in
//! tables with ratios and aims; the subcommands measure one thing.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

mod compare;
mod copy_limit;
mod cores;
mod emulated;
mod first_frame;
mod forward;
mod guest;
mod idle;
mod instructions;
mod kinds;
mod machine;
mod nic;
mod path;
mod path_switch;
mod peers;
mod ping_pong;
mod primitives;
mod sample;
mod scale;
mod synthetic;
mod table;
mod traffic;
mod vhost_user;

use cores::Cores;

/// Measures the data path, alone or against its peers
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// The CPU that forwards and the CPU that sends and receives
    #[arg(long, global = true, default_value = "0,1", value_name = "FORWARDER,CLIENT")]
    cores: Cores,
    /// How long one measurement takes
    #[arg(long, global = true, default_value_t = 2.0, value_name = "SECONDS")]
    seconds: f64,
    /// Print data instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Rounds in which everything is measured once
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    /// Frame sizes, in bytes
    #[arg(long, global = true, value_delimiter = ',', default_values_t = [64, 512, 1500, 9000])]
    sizes: Vec<u16>,
    /// Measure also the peers that this folder has scripts for (`bench/peers`)
    #[arg(long, global = true, value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// Leave out scaling, idling, the time to the first frame, and moves of the data path
    #[arg(long, global = true)]
    brief: bool,
    /// Write the tables to this file as well, and the data beside it with the ending `json`
    #[arg(long, global = true, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The kinds of adapter.
#[derive(Copy, Clone, Eq, PartialEq, Debug, ValueEnum)]
enum Kind {
    /// The legacy network adapter
    Emulated,
    /// NetVSP over VMBus
    Synthetic,
    /// A VF of an SR-IOV adapter
    Vf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Frames from VF to VF
    Forward {
        /// Bytes of a frame
        #[arg(long, default_value_t = 64)]
        size: u16,
        /// Descriptors of each ring; by default what suits the size
        #[arg(long)]
        ring: Option<u16>,
    },
    /// The kinds of adapter side by side, in interleaved rounds; with testpmd, where `--peers` is given
    Adapters,
    /// Frames between two adapters of one kind
    Adapter {
        /// Which kind
        kind: Kind,
        /// Bytes of a frame
        #[arg(long, default_value_t = 64)]
        size: u16,
        /// The time of one frame instead
        #[arg(long)]
        round_trip: bool,
    },
    /// The time of one frame from VF to VF
    RoundTrip {
        /// Bytes of a frame
        #[arg(long, default_value_t = 64)]
        size: u16,
    },
    /// The same bytes copied by one core, from lines dirty in the other core to lines last read there
    CopyLimit {
        /// Bytes of a frame
        #[arg(long, default_value_t = 64)]
        size: u16,
        /// Ask for the lines of frames to come
        #[arg(long)]
        hints: bool,
    },
    /// What the synthetic path is made of: rings, completions, frames to the switch
    Primitives,
    /// Moves of the data path between a synthetic adapter and its VF, under load
    PathSwitch {
        /// How many
        #[arg(long, default_value_t = path_switch::MOVES)]
        moves: u32,
    },
    /// Two cache lines there and back between the two cores
    PingPong,
    /// The cost of a frame as VFs and receive filters grow
    Scale,
    /// CPU while nothing flows, and the time to wake up
    Idle,
    /// The time from ALLOCATE_VF to the first frame
    FirstFrame,
}

/// Runs `clearway bench`.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds must be above 0, up to 3600");
    let duration = Duration::from_secs_f64(args.seconds);
    match &args.what {
        None | Some(What::Adapters) => return compare_all(args, duration),
        Some(What::Forward { size, ring }) => {
            let ring = ring.unwrap_or_else(|| forward::ring(*size));
            let (rate, huge) = forward::rate(check(*size)?, ring, duration, args.cores)?;
            let pages = if huge { "2 MiB" } else { "base" };
            print(args, &rate, || {
                format!(
                    "{size} bytes: {:.3} million frames/s, {:.2} Gbit/s, {:.1} ns a frame (ring {ring}, {pages} \
                     pages; send ring full {:.0} %, receive ring empty {:.0} %)",
                    rate.frames_per_second / 1e6,
                    rate.bytes_per_second * 8.0 / 1e9,
                    rate.cost_ns(),
                    rate.send_ring_full * 100.0,
                    rate.receive_ring_empty * 100.0,
                )
            })?;
        }
        Some(What::Adapter { kind, size, round_trip: true }) => {
            let size = check(*size)?;
            let trip = match kind {
                Kind::Emulated => emulated::round_trips(size, duration, args.cores),
                Kind::Synthetic => synthetic::round_trips(size, duration, args.cores),
                Kind::Vf => forward::round_trips(size, duration, args.cores),
            }?;
            print(args, &trip, || trip_text(&trip))?;
        }
        Some(What::Adapter { kind, size, round_trip: false }) => {
            let size = check(*size)?;
            let rate = match kind {
                Kind::Emulated => emulated::rate(size, duration, args.cores),
                Kind::Synthetic => synthetic::rate(size, duration, args.cores),
                Kind::Vf => {
                    forward::rate(size, forward::ring(size), duration, args.cores).map(|of| of.0)
                }
            }?;
            print(args, &rate, || {
                format!(
                    "{size} bytes: {:.3} million frames/s, {:.2} Gbit/s; CPU a frame: host {:.1} ns, guests {:.1} ns \
                     (send ring full {:.0} %, receive ring empty {:.0} %)",
                    rate.frames_per_second / 1e6,
                    rate.bytes_per_second * 8.0 / 1e9,
                    rate.host_cpu_ns.unwrap_or_default(),
                    rate.guest_cpu_ns.unwrap_or_default(),
                    rate.send_ring_full * 100.0,
                    rate.receive_ring_empty * 100.0,
                )
            })?;
        }
        Some(What::PathSwitch { moves }) => {
            let all = path_switch::measure(*moves, args.cores)?;
            print(args, &all, || format!("{all:#?}"))?;
        }
        Some(What::Primitives) => {
            let all = primitives::measure(duration, args.cores)?;
            print(args, &all, || format!("{all:#?}"))?;
        }
        Some(What::RoundTrip { size }) => {
            let trip = forward::round_trips(check(*size)?, duration, args.cores)?;
            print(args, &trip, || trip_text(&trip))?;
        }
        Some(What::CopyLimit { size, hints }) => {
            let rate = copy_limit::measure(check(*size)?, *hints, duration, args.cores)?;
            print(args, &rate, || {
                format!(
                    "{size} bytes: {:.3} million copies/s, {:.2} Gbit/s, {:.1} ns a frame",
                    rate.frames_per_second / 1e6,
                    rate.bytes_per_second * 8.0 / 1e9,
                    rate.cost_ns(),
                )
            })?;
        }
        Some(What::PingPong) => {
            let trip = ping_pong::measure(duration, args.cores)?;
            print(args, &trip, || trip_text(&trip))?;
        }
        Some(What::Scale) => {
            for scale in scale::SCALES {
                let rate = scale::measure(scale, duration, args.cores)?;
                print(args, &(scale, rate), || {
                    let to = if scale.spread { "all addresses" } else { "one address" };
                    format!(
                        "{:3} VFs, {:5} filters, {to}: {:.1} ns a frame",
                        scale.vfs,
                        scale.filters,
                        rate.cost_ns()
                    )
                })?;
            }
        }
        Some(What::Idle) => {
            let idle = idle::measure(args.cores)?;
            print(args, &idle, || {
                let wake = idle.wake_up_us;
                format!(
                    "{:.2} % of a core; first frame after silence in {:.0} µs ({:.0}–{:.0})",
                    idle.cpu_percent, wake.median, wake.least, wake.greatest
                )
            })?;
        }
        Some(What::FirstFrame) => {
            let first = first_frame::measure(args.cores)?;
            print(args, &first, || {
                format!("{:.2} ms ({:.2}–{:.2})", first.median, first.least, first.greatest)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(size: u16) -> anyhow::Result<u16> {
    ensure!((64..=9600).contains(&size), "frames of 64 to 9600 bytes can be measured, not {size}");
    Ok(size)
}

fn trip_text(trip: &sample::RoundTrip) -> String {
    format!(
        "{:.0} ns (99 % within {:.0} ns; {} samples, {} lost)",
        trip.rtt_ns_median, trip.rtt_ns_p99, trip.samples, trip.lost
    )
}

fn print<T: Serialize>(
    args: &BenchArgs,
    data: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(data)?);
    } else {
        println!("{}", text());
    }
    Ok(())
}

fn compare_all(args: &BenchArgs, duration: Duration) -> anyhow::Result<ExitCode> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    for size in &args.sizes {
        check(*size)?;
    }
    let results = compare::run(&compare::Plan {
        rounds: args.rounds,
        duration,
        sizes: args.sizes.clone(),
        cores: args.cores,
        peers: args.peers.clone(),
        all: !args.brief,
        adapters_only: matches!(args.what, Some(What::Adapters)),
        moves: if args.brief { 0 } else { path_switch::MOVES },
    });
    let data = serde_json::to_string_pretty(&results)?;
    if let Some(path) = &args.out {
        let write = |path: &std::path::Path, text: &str| {
            std::fs::write(path, text)
                .with_context(|| format!("{} cannot be written", path.display()))
        };
        write(path, &results.to_string())?;
        write(&path.with_extension("json"), &data)?;
    }
    if args.json {
        println!("{data}");
    } else {
        println!("{results}");
    }
    // What could not be measured is said; it is no success.
    Ok(if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
