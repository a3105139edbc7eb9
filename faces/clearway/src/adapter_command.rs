//! `clearway adapter`: one software SR-IOV NIC, until it is told to end.

use std::{path::PathBuf, time::Duration};

use adapter::{AdapterConfig, AdapterServer, data_path::WorkerConfig};
use anyhow::{Context, Result, bail};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::MacAddress;
use toml::de::{DeTable, DeValue};
use uplink::UplinkSpec;

use crate::signals::SignalQueue;

/// The most VFs that a PF has.
const MAX_VFS: u16 = 256;
/// The keyword of their number.
const NUM_VFS: &str = r"NicSwitches\0\*NumVFs";

/// Run a software SR-IOV NIC: its PF, VFs, NIC switch and uplink.
#[derive(clap::Args, Debug)]
pub(crate) struct AdapterArguments {
    /// Folder of the adapter's sockets (control.sock, pf.sock, vf0.sock, …); made if missing.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Name of the adapter in logs and reports.
    #[arg(long, default_value = "adapter0")]
    name: String,
    /// Configuration file (TOML): table [keywords] with the standardized keywords of the default switch,
    /// table [adapter] with the hardware. What is given on the command line counts more.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// VFs of the default switch, 0 to 256.
    #[arg(long)]
    vfs: Option<u16>,
    /// What the physical port is connected to: none, tap:NAME, packet:INTERFACE, pcap:IN[,OUT],
    /// cable:SOCKET.
    #[arg(long, value_name = "SPEC")]
    uplink: Option<UplinkSpec>,
    /// CPU that the data path thread is bound to.
    #[arg(long)]
    cpu: Option<usize>,
}

/// Reads the configuration file; everything in it is checked, and what is not known is refused.
fn configure(arguments: &AdapterArguments) -> Result<(AdapterConfig, AdapterConfiguration)> {
    let mut config = AdapterConfig::new(&arguments.name, &arguments.directory);
    let mut keywords = Keywords { sriov_preferred: true, ..Keywords::default() };
    let mut num_vfs_line = None;
    if let Some(path) = &arguments.config {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the configuration file {}", path.display()))?;
        let table = DeTable::parse(&text).map_err(|error| {
            let line = line_of(&text, error.span().map_or(0, |span| span.start));
            anyhow::anyhow!("{}: line {line}: {}", path.display(), error.message())
        })?;
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let DeValue::Table(inner) = value.get_ref() else {
                bail!(
                    "{}: line {}: {name} is not a table; there are [keywords] and [adapter]",
                    path.display(),
                    line_of(&text, key.span().start)
                );
            };
            match name {
                "keywords" => {
                    keywords = Keywords::from_table(&text, inner)
                        .with_context(|| path.display().to_string())?;
                    // An adapter of VFs is what this program is for: off only when the file says so.
                    keywords.sriov_preferred |=
                        !inner.iter().any(|(key, _)| key.get_ref() == "*SriovPreferred");
                    num_vfs_line = inner
                        .iter()
                        .find(|(key, _)| key.get_ref() == NUM_VFS)
                        .map(|(key, _)| line_of(&text, key.span().start));
                }
                "adapter" => hardware(&mut config, &text, inner)
                    .with_context(|| path.display().to_string())?,
                other => {
                    bail!(
                        "{}: line {}: there is no table [{other}], but [keywords] and [adapter]",
                        path.display(),
                        line_of(&text, key.span().start)
                    )
                }
            }
        }
    }
    match (arguments.vfs, keywords.num_vfs, &arguments.config) {
        (Some(vfs), ..) if vfs > MAX_VFS => {
            bail!("--vfs {vfs}: a PF has at most {MAX_VFS} VFs");
        }
        (None, Some(vfs), Some(path)) if vfs > MAX_VFS => bail!(
            "{}: line {}: \"{NUM_VFS}\" is {vfs}, and a PF has at most {MAX_VFS} VFs",
            path.display(),
            num_vfs_line.unwrap_or_default()
        ),
        (vfs, ..) => keywords.num_vfs = vfs.or(keywords.num_vfs),
    }
    if let Some(vfs) = keywords.num_vfs {
        config.total_vfs = config.total_vfs.max(vfs);
    }
    if config.queue_pairs < config.vports() {
        let file = arguments.config.as_ref().map(|path| format!("{}: ", path.display()));
        bail!(
            "{}queue_pairs = {} is too few for {} VFs and the PF, of which each takes at least one; raise it to \
             {} or lower total_vfs",
            file.unwrap_or_default(),
            config.queue_pairs,
            config.total_vfs,
            config.vports()
        );
    }
    if let Some(uplink) = &arguments.uplink {
        config.uplink = uplink.clone();
    }
    config.worker = WorkerConfig { cpu: arguments.cpu.or(config.worker.cpu), ..config.worker };
    let configuration = AdapterConfiguration {
        keywords,
        default_vport_queue_pairs: Some(config.default_vport_queue_pairs.into()),
    };
    Ok((config, configuration))
}

/// The line, from 1, of a place in a text.
fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}

/// Table [adapter] of the configuration file, in the order of the file.
fn hardware(config: &mut AdapterConfig, text: &str, table: &DeTable<'_>) -> Result<()> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let name = key.get_ref().as_ref();
        setting(config, name, value.get_ref())
            .with_context(|| format!("line {}: [adapter]", line_of(text, key.span().start)))?;
    }
    Ok(())
}

/// One setting of table [adapter].
fn setting(config: &mut AdapterConfig, name: &str, value: &DeValue<'_>) -> Result<()> {
    let number = |range: std::ops::RangeInclusive<u32>| -> Result<u32> {
        let DeValue::Integer(integer) = value else { bail!("{name} is not a number") };
        let number: u32 =
            integer.as_str().parse().with_context(|| format!("the value of {name}"))?;
        if !range.contains(&number) {
            bail!("{name} = {number}, but {} to {} can be", range.start(), range.end());
        }
        Ok(number)
    };
    let text = || -> Result<&str> {
        match value {
            DeValue::String(text) => Ok(text.as_ref()),
            _ => bail!("{name} is not a text"),
        }
    };
    match name {
        "total_vfs" => config.total_vfs = u16::try_from(number(0..=256)?)?,
        "queue_pairs" => config.queue_pairs = number(1..=4352)?,
        "queue_pairs_per_vport" => {
            let pairs = u16::try_from(number(1..=16)?)?;
            if !pairs.is_power_of_two() {
                bail!("{name} = {pairs} is not a power of two");
            }
            config.queue_pairs_per_vport = pairs;
        }
        "default_vport_queue_pairs" => {
            config.default_vport_queue_pairs = u16::try_from(number(1..=16)?)?;
        }
        "receive_filters" => config.receive_filters = number(1..=1_048_576)?,
        "max_frame" => config.max_frame = u16::try_from(number(1518..=9728)?)?,
        "mac" => {
            config.mac =
                text()?.parse::<MacAddress>().with_context(|| format!("the value of {name}"))?;
        }
        "uplink" => config.uplink = text()?.parse()?,
        "cpu" => config.worker.cpu = Some(usize::try_from(number(0..=4095)?)?),
        "longest_sleep_us" => {
            let sleep = Duration::from_micros(number(1..=1_000_000)?.into());
            config.worker.idle.longest_sleep = sleep;
            config.worker.idle.shortest_sleep = config.worker.idle.shortest_sleep.min(sleep);
        }
        "spin_us" => {
            config.worker.idle.spin = Duration::from_micros(number(0..=10_000_000)?.into());
        }
        other => bail!(
            "there is no setting {other}; there are total_vfs, queue_pairs, queue_pairs_per_vport, \
             default_vport_queue_pairs, receive_filters, max_frame, mac, uplink, cpu, spin_us and \
             longest_sleep_us"
        ),
    }
    Ok(())
}

/// Runs the adapter until a signal or a client ends it.
pub(crate) fn run(arguments: &AdapterArguments) -> Result<()> {
    let signals = SignalQueue::take(&[])?;
    let (config, configuration) = configure(arguments)?;
    let server = AdapterServer::start(config, configuration)?;
    tracing::info!(
        directory = %arguments.directory.display(),
        vfs = server.adapter().pci().active_vfs(),
        copy = shared_memory::copy_method(),
        "the adapter is up"
    );
    signals.wait_for_end(server.shutdown_requested());
    Ok(())
}
