//! The machine that measured.

use std::fs;

use serde::Serialize;

/// What a reader needs to judge the figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) l2: String,
    pub(crate) l3: String,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) hypervisor: bool,
    pub(crate) huge_pages: String,
    /// The copy that the data path uses on this CPU.
    pub(crate) copy: &'static str,
}

impl Machine {
    /// Looks at this machine; what cannot be seen is "unknown".
    pub(crate) fn look() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        let field = |text: &str, key: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| line.split_once(':'))
                .map_or_else(unknown, |(_, value)| value.trim().to_owned())
        };
        let kib = field(&meminfo, "MemTotal");
        let kib = kib.trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        Self {
            cpu: field(&cpuinfo, "model name"),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            l2: cache(2),
            l3: cache(3),
            memory_mib: kib / 1024,
            kernel: one_line("/proc/sys/kernel/osrelease"),
            system: read("/etc/os-release")
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))
                .map_or_else(unknown, |name| name.trim_matches('"').to_owned()),
            hypervisor: field(&cpuinfo, "flags").split(' ').any(|flag| flag == "hypervisor"),
            huge_pages: format!("{} of 2 MiB", field(&meminfo, "HugePages_Total")),
            copy: shared_memory::copy_method(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.hypervisor { "virtual machine" } else { "bare metal" };
        writeln!(f, "* CPU: {}, {} CPUs ({kind})", self.cpu, self.cpus)?;
        writeln!(f, "* caches: L2 {}, L3 {}", self.l2, self.l3)?;
        writeln!(f, "* memory: {} MiB, huge pages: {}", self.memory_mib, self.huge_pages)?;
        writeln!(f, "* system: {}, Linux {}", self.system, self.kernel)?;
        write!(f, "* copy below 2 KiB: {}", self.copy)
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn one_line(path: &str) -> String {
    match read(path).trim() {
        "" => unknown(),
        text => text.to_owned(),
    }
}

/// Size of the unified cache of a level, of the first CPU.
fn cache(level: u8) -> String {
    (0..8)
        .map(|index| format!("/sys/devices/system/cpu/cpu0/cache/index{index}"))
        .find(|path| one_line(&format!("{path}/level")) == level.to_string())
        .map_or_else(unknown, |path| one_line(&format!("{path}/size")))
}
