//! Boots a Linux kernel under KVM as a guest of Hyper-V, with its serial console on standard output.
//!
//! `boot_kernel --kernel vmlinux [--initrd FILE] [--cmdline TEXT] [--memory-mib N] [--cpus N] [--worker SOCKET] [--name NAME]`
//!
//! With `--worker` a VM worker serves the guest at that socket, so that `clearway stack` can give it adapters and VFs.
//! Exits with 0 when the guest turned itself off or asked for a reset.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use kvm_partition::{KvmHost, KvmPartition, KvmPartitionConfig, RunOutcome, boot::Boot};
use partition::{Partition, host::VmbusHost};
use shared_memory::PageSize;
use vm_worker::{VmWorker, WorkerConfig};
use vmbus::server::ServerConfig;

type Error = Box<dyn std::error::Error>;

struct Arguments {
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
    memory_mib: u64,
    cpus: u16,
    worker: Option<String>,
    name: String,
}

fn arguments() -> Result<Arguments, Error> {
    let mut parsed = Arguments {
        kernel: String::new(),
        initrd: None,
        cmdline: "console=ttyS0".to_owned(),
        memory_mib: 256,
        cpus: 1,
        worker: None,
        name: "guest".to_owned(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--kernel" => parsed.kernel = value,
            "--initrd" => parsed.initrd = Some(value),
            "--cmdline" => parsed.cmdline = value,
            "--memory-mib" => parsed.memory_mib = value.parse()?,
            "--cpus" => parsed.cpus = value.parse()?,
            "--worker" => parsed.worker = Some(value),
            "--name" => parsed.name = value,
            _ => return Err(format!("{option} is no option").into()),
        }
    }
    if parsed.kernel.is_empty() { Err("--kernel is missing".into()) } else { Ok(parsed) }
}

fn main() -> Result<ExitCode, Error> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let arguments = arguments()?;
    let host = KvmHost::survey(Path::new(KvmHost::DEVICE))?;
    let config = KvmPartitionConfig {
        memory_bytes: arguments.memory_mib << 20,
        pages: PageSize::Base,
        processors: arguments.cpus,
        console: Box::new(io::stdout()),
    };
    let partition = Arc::new(KvmPartition::new(&host, config)?);
    let shared: Arc<dyn Partition> = partition.clone();
    let vmbus = VmbusHost::start(shared.clone(), ServerConfig::default())?;
    // What serves the guest, until it has ended.
    let (_worker, _vmbus) = match arguments.worker {
        Some(socket) => {
            let mut config = WorkerConfig::new(arguments.name, socket);
            config.apertures = partition.mmio_windows();
            config.processors = arguments.cpus;
            (Some(VmWorker::start(config, shared, vmbus)?), None)
        }
        None => (None, Some(vmbus)),
    };
    let initrd = arguments.initrd.map(File::open).transpose()?;
    let kernel = File::open(arguments.kernel)?;
    partition.boot(Boot { kernel, initrd, command_line: arguments.cmdline })?;
    let typing = Arc::downgrade(&partition);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let mut bytes = buffer.get(..count).unwrap_or_default();
            while !bytes.is_empty() {
                let Some(partition) = typing.upgrade() else { return };
                let taken = partition.console().input(bytes);
                bytes = bytes.get(taken..).unwrap_or_default();
                if taken == 0 {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    });
    while !partition.ended().wait(Duration::from_secs(3600))? {}
    let outcome = partition.outcome();
    eprintln!("the guest has ended: {outcome:?}");
    let good = matches!(outcome, Some(RunOutcome::Shutdown | RunOutcome::Reset));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
