//! What the switch is doing, for people and programs.

use ndis_protocol::VPortId;
use netvsp_protocol::nvsp;
use pcivirt_protocol::NtStatus;

use super::{Connections, SwitchUplink, ports::stopped};
use crate::{
    Port, PortStatistics, SwitchHandle, SyntheticPort, TulipPort, UplinkPort, VhostUserPort,
    VirtualSwitch,
    control::{
        DataPath, GuestState, HostStatus, PortConfig, PortReport, PortStatus, SwitchStatus,
        UplinkReport, UplinkStatus,
    },
};
use ::uplink::UplinkSpec;

/// What only the switch's thread knows of a port.
struct Seen {
    statistics: PortStatistics,
    channels: u64,
    away: bool,
    /// Whether a guest with an emulated adapter or a virtio-net receives.
    up: bool,
}

impl Seen {
    fn of(switch: &mut VirtualSwitch, id: VPortId) -> Self {
        let statistics = switch.statistics(id).unwrap_or_default();
        let port = switch.port::<SyntheticPort>(id);
        let path = port.as_ref().map(|port| port.nic_state().control().data_path());
        let mut channels = port.map_or(0, |port| port.open_channels());
        let mut away = path == Some(nvsp::DataPath::Vf);
        let mut up = switch.port::<TulipPort>(id).is_some_and(|port| port.is_receiving());
        if let Some(port) = switch.port::<VhostUserPort>(id) {
            (channels, up, away) = (port.open_pairs(), port.is_receiving(), port.is_away());
        }
        Self { statistics, channels, away, up }
    }
}

/// What it knows of an uplink that is not by way of an adapter.
struct Plain {
    link_up: bool,
    last_error: Option<String>,
    lost: u64,
}

/// Everything, as of one moment between two rounds.
pub(super) fn status(
    name: &str,
    spec: &SwitchUplink,
    connections: &Connections,
    (report, ports): (UplinkReport, Vec<(VPortId, PortConfig, PortReport)>),
    switch: &SwitchHandle,
) -> Result<SwitchStatus, NtStatus> {
    let ids: Vec<VPortId> = ports.iter().map(|(id, ..)| *id).collect();
    let looked = switch.run(move |switch| {
        let seen: Vec<Seen> = ids.iter().map(|id| Seen::of(switch, *id)).collect();
        let plain = switch.uplink::<UplinkPort>().map(|port| Plain {
            link_up: port.link().up,
            last_error: port.last_error().map(str::to_owned),
            lost: port.lost(),
        });
        let host = switch.statistics(VPortId::DEFAULT).unwrap_or_default();
        (seen, plain, switch.uplink_statistics(), host, switch.busy())
    });
    let (seen, plain, uplink_statistics, host_statistics, busy) = looked.map_err(stopped)?;
    let data_path_busy_us = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
    let mut uplink = UplinkStatus {
        spec: spec.to_string(),
        connected: false,
        link_up: false,
        report,
        last_error: None,
        statistics: uplink_statistics,
    };
    if let Some(adapter) = connections.adapter.get() {
        let state = adapter.state();
        (uplink.connected, uplink.link_up) = (state.connected, state.link_up);
        uplink.last_error = state.last_error;
    } else if let Some(Plain { link_up, last_error, lost }) = plain {
        // A cable that nobody has at its other end is connected to nobody.
        let cable = matches!(spec, SwitchUplink::Other(UplinkSpec::Cable { .. }));
        (uplink.connected, uplink.link_up) = (link_up || !cable, link_up);
        uplink.last_error = last_error;
        uplink.statistics.no_buffer += lost;
    }
    let host = connections.host.get().map(|host| HostStatus {
        interface: host.interface.clone(),
        mac: host.mac.to_string(),
        statistics: host_statistics,
    });
    let ports = ports.into_iter().zip(seen).map(|((_, config, report), seen)| PortStatus {
        port: config.port,
        kind: config.kind,
        mac: config.mac,
        vlan: config.vlan,
        guest: if seen.up { GuestState::Ready { sriov: false } } else { report.guest },
        vf: report.vf,
        data_path: if seen.away { DataPath::Vf } else { DataPath::Synthetic },
        channels: (0..64).filter(|index| seen.channels & 1 << index != 0).collect(),
        statistics: seen.statistics,
    });
    let ports = ports.collect();
    Ok(SwitchStatus { name: name.to_owned(), uplink, host, ports, data_path_busy_us })
}
