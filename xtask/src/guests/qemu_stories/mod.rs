//! Stories of stock Linux in stock QEMU, whose own drivers drive what is ours.
//!
//! Each story is a function that starts what it needs, boots its guests under QEMU's emulator, and speaks with them by
//! their serial lines: they are judged by what they print there and by what our processes say, never by time. A story
//! whose machine ended or hung is told once more; what a guest itself says has failed is not.

mod churn;
mod daemons;
mod emulated_adapter;
mod failover;
mod features;
mod flr;
mod guest;
mod kill;
mod lab;
mod offloads;
mod pair;
mod reboot;
mod removal;
mod rss;
mod scene;
mod tulip;
mod vf;
mod wire;

use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use self::scene::{Scene, Wishes};
pub(crate) use self::tulip::serve;
use super::{
    Cache,
    kernel::{Kernel, Series},
    programs::Program,
    qemu::Qemu,
    telling::{Run, Telling, Titled, summary},
    tools::{Fetched, Tool},
    verdict::Verdict,
};

/// Which stories to tell, and on what.
#[derive(Args)]
pub(crate) struct QemuTests {
    #[command(flatten)]
    telling: Telling,
    /// The guests' kernels, one run each; those that a story cannot be told with are left out. Without it, each story
    /// takes the one that it is mostly about.
    #[arg(long = "kernel", value_enum, value_delimiter = ',')]
    kernels: Vec<Series>,
    /// A vfio-user socket that serves an AVF function: boots a guest on that, instead of telling stories.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// With --socket: the guest's own address.
    #[arg(long, default_value_t = GUEST_ADDRESS)]
    address: Ipv4Addr,
    /// With --socket: the address to ping; without it the guest only brings the interface up.
    #[arg(long)]
    ping: Option<Ipv4Addr>,
    /// Give the guest an IOMMU of its own; the ones with an emulated adapter or a virtio-net never have one.
    #[arg(long)]
    iommu: bool,
    /// How many times something is done that a story does again and again.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
}

const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

impl Default for QemuTests {
    fn default() -> Self {
        Self {
            telling: Telling::default(),
            kernels: Vec::new(),
            socket: None,
            address: GUEST_ADDRESS,
            ping: None,
            iommu: false,
            rounds: None,
        }
    }
}

/// A story.
struct Story {
    name: &'static str,
    about: &'static str,
    /// The kernels that it can be told with, first the one that it is mostly about.
    kernels: &'static [Series],
    /// What its guests have beside busybox and ethtool.
    tools: &'static [Tool],
    /// It is told with all of them, unless some are named.
    every_kernel: bool,
    tell: fn(&Scene<'_>) -> Result<()>,
}

impl Titled for Story {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }
}

/// Kernels of guests with a VF alone.
const ANY: &[Series] = &[Series::V6_12, Series::V6_1, Series::V7_2];
/// One whose iavf can be joined: that of 6.1 and 6.12 hangs when net_failover opens it.
const JOINABLE: &[Series] = &[Series::V7_2];

/// What most stories share.
const BASE: Story =
    Story { name: "", about: "", kernels: ANY, tools: &[], every_kernel: false, tell: |_| Ok(()) };

/// All of them.
const STORIES: &[Story] = &[
    Story {
        name: "vf",
        about: "a guest's own iavf drives a VF, and it pings a user-mode VM",
        every_kernel: true,
        tell: vf::run,
        ..BASE
    },
    Story {
        name: "churn",
        about: "a guest's iavf is loaded, unloaded and configured again and again under traffic",
        tell: churn::run,
        ..BASE
    },
    Story {
        name: "features",
        about: "guests change MTU and MAC address of their VFs, use VLANs, join groups, ask for all frames",
        tell: features::run,
        ..BASE
    },
    Story {
        name: "rss",
        about: "a guest receives many flows by several queues of its VF, those that its table names",
        tell: rss::run,
        ..BASE
    },
    Story {
        name: "offloads",
        about: "TCP in large segments: what leaves by the physical port is whole, in frames of the MTU, with right checksums",
        tools: &[Tool::Tcpdump],
        tell: offloads::run,
        ..BASE
    },
    Story {
        name: "flr",
        about: "a guest resets its VF by FLR again and again under traffic",
        tell: flr::run,
        ..BASE
    },
    Story {
        name: "removal",
        about: "the adapter is killed, and a guest unbinds its iavf",
        tell: removal::run,
        ..BASE
    },
    Story {
        name: "emulated-adapter",
        about: "a guest's own tulip drives an emulated adapter, and it pings the host behind it",
        tell: tulip::run,
        ..BASE
    },
    Story {
        name: "failover",
        about: "a guest's own net_failover joins its virtio-net with a VF, which is revoked and returned under pings and TCP",
        kernels: JOINABLE,
        tell: failover::run,
        ..BASE
    },
    Story {
        name: "cycles",
        about: "the same 100 times, which takes 20 minutes",
        kernels: JOINABLE,
        tell: failover::cycles,
        ..BASE
    },
    Story {
        name: "reboot",
        about: "a guest with both reboots on its VF, and comes back with both",
        kernels: JOINABLE,
        tell: reboot::run,
        ..BASE
    },
    Story {
        name: "kill",
        about: "QEMU is killed while its guest is on its VF: the VF is free, and the next QEMU of the VM gets one",
        kernels: JOINABLE,
        tell: kill::run,
        ..BASE
    },
    Story {
        name: "pair",
        about: "two guests and a user-mode VM reach each other on every mix of paths, and TCP between the two is measured",
        kernels: JOINABLE,
        tools: &[Tool::Iperf3],
        tell: pair::run,
        ..BASE
    },
    Story {
        name: "daemons",
        about: "stack, switch and adapter are killed and started anew while a guest is on its VF",
        kernels: JOINABLE,
        tell: daemons::run,
        ..BASE
    },
];

/// Tells the stories and prints a summary; an error if one did not pass.
pub(crate) fn run(tests: &QemuTests) -> Result<()> {
    let QemuTests { telling, kernels, socket, address, ping, iommu, rounds } = tests;
    if telling.list {
        Telling::print(STORIES);
        return Ok(());
    }
    let chosen = telling.choose(STORIES)?;
    let wishes = Wishes { iommu: *iommu, rounds: *rounds };
    let cache = Cache::open()?;
    let logs = cache.logs();
    let qemu = Qemu::fetch(&cache)?;
    println!("QEMU {}", qemu.version()?);
    if let Some(socket) = socket {
        let series = kernels.first().copied().unwrap_or_default();
        let kernel = Kernel::fetch(&cache, series)?;
        drop(cache);
        let clearway = PathBuf::new();
        let told = telling.tell(&logs, ("qemu", "by-hand", kernel.release()), |logs| {
            let scene = Scene::new("by-hand", (&qemu, &kernel, &[]), &clearway, wishes, logs);
            Ok(ended(&scene, &vf::run_on(&scene, socket, *address, *ping)))
        });
        return summary(&[told?]);
    }
    let mut parts = Vec::new();
    for story in &chosen {
        let series: Vec<Series> = match kernels.as_slice() {
            [] if story.every_kernel => story.kernels.to_vec(),
            [] => story.kernels.iter().take(1).copied().collect(),
            some => some.iter().filter(|one| story.kernels.contains(one)).copied().collect(),
        };
        parts.extend(series.into_iter().map(|series| (*story, series)));
    }
    if parts.is_empty() {
        bail!("no story that was asked for can be told with these kernels");
    }
    let clearway = Program::Clearway.find()?;
    let mut cast = Cast { qemu, kernels: Vec::new(), tools: Vec::new() };
    for (_, series) in &parts {
        if cast.kernel(*series).is_none() {
            cast.kernels.push((*series, Kernel::fetch(&cache, *series)?));
        }
    }
    let tools: BTreeSet<Tool> = chosen.iter().flat_map(|story| story.tools).copied().collect();
    cast.tools = tools.into_iter().map(|tool| tool.fetch(&cache)).collect::<Result<_>>()?;
    // Others may fetch while guests run.
    drop(cache);
    let told = telling.tell_all(&parts, |(story, series)| {
        let kernel = cast.kernel(*series).ok_or_else(|| anyhow::anyhow!("no kernel"))?;
        let of_story = |tool: &&Fetched| story.tools.contains(&tool.tool());
        let tools: Vec<Fetched> = cast.tools.iter().filter(of_story).cloned().collect();
        telling.tell(&logs, ("qemu", story.name, kernel.release()), |logs| {
            let with = (&cast.qemu, kernel, tools.as_slice());
            let scene = Scene::new(story.name, with, &clearway, wishes, logs);
            Ok(ended(&scene, &(story.tell)(&scene)))
        })
    });
    summary(&told?)
}

/// A run that has ended so.
fn ended(scene: &Scene<'_>, told: &Result<()>) -> Run {
    let (wall, cpu) = scene.times();
    Run { verdict: Verdict::of(told), wall, cpu }
}

/// What was fetched.
struct Cast {
    qemu: Qemu,
    kernels: Vec<(Series, Kernel)>,
    tools: Vec<Fetched>,
}

impl Cast {
    fn kernel(&self, series: Series) -> Option<&Kernel> {
        self.kernels.iter().find(|(one, _)| *one == series).map(|(_, kernel)| kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_have_names_of_their_own_and_a_kernel() {
        let names: BTreeSet<&str> = STORIES.iter().map(|story| story.name).collect();
        assert_eq!(names.len(), STORIES.len());
        assert!(STORIES.iter().all(|story| !story.kernels.is_empty() && !story.about.is_empty()));
    }
}
