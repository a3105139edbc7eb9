//! An adapter as the virtualization stack sees it: OIDs and private controls over device control, each call
//! recorded as a step with its status and duration.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use adapter::control::{
    AdapterStatus, CAUSE_CAPACITY, PrivateControl, REBALANCE_CAPACITY, RebalanceOutcome,
    STATUS_CAPACITY, SetVPortPolicy, VfNumber,
};
use anyhow::{Context, Result, bail};
use device_control::{ClientError, DeviceControlClient, DriverName, OidRequestKind};
use ndis_protocol::{
    FilterId, FilterMatch, FunctionId, MacAddress, Name, NdisStatus, NdisStructure,
    NicSwitchDeleteVPortParameters, NicSwitchFreeVfParameters, Oid, ReceiveFilterClearParameters,
    ReceiveFilterMoveFilterParameters, ReceiveFilterParameters, RequestorId, SriovResetVf, VPortId,
    VPortParameters, VfId, VfOwner, VfParameters,
};
use pcivirt_protocol::NtStatus;
use serde::Serialize;
use uplink::UplinkSpec;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Room for the answer of any one OID here, bytes.
const ROOM: usize = 8192;

/// One request and how it ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// Name of the OID or control.
    pub(crate) request: String,
    /// What it did, in words.
    pub(crate) what: String,
    /// Name of the published status.
    pub(crate) status: String,
    /// Microseconds from sending to completion.
    pub(crate) microseconds: u64,
}

/// An allocated VF with its VPort and filter.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AttachedVf {
    pub(crate) vf: u16,
    pub(crate) vport: u32,
    pub(crate) filter: u32,
    pub(crate) mac: String,
    pub(crate) requestor_id: String,
    pub(crate) socket: String,
}

/// A connection to an adapter.
pub(crate) struct Nic<'o> {
    client: DeviceControlClient,
    observer: Box<dyn FnMut(&Step) + 'o>,
}

impl<'o> Nic<'o> {
    /// Connects to the adapter whose sockets are in `directory`, as the overlying driver `name`.
    pub(crate) fn connect(
        directory: &Path,
        name: &str,
        patience: Duration,
        observer: impl FnMut(&Step) + 'o,
    ) -> Result<Self> {
        let path = adapter::control_socket(directory);
        let name = DriverName::new(name).context("a name for this client")?;
        let client = DeviceControlClient::connect_when_ready(&path, &name, patience)
            .with_context(|| format!("there is no adapter in {}", directory.display()))?;
        Ok(Self { client, observer: Box::new(observer) })
    }

    fn oid(
        &mut self,
        oid: Oid,
        kind: OidRequestKind,
        what: String,
        input: &[u8],
        room: usize,
    ) -> Result<Vec<u8>> {
        let start = Instant::now();
        let completion = self.client.oid(kind, oid.code(), input, room, TIMEOUT)?;
        let status = NdisStatus(completion.status.0);
        self.record(oid.name(), &what, &status.to_string(), start);
        if status != NdisStatus::SUCCESS {
            bail!("{} ({what}) was refused: {status}", oid.name());
        }
        Ok(completion.output)
    }

    fn record(&mut self, request: &str, what: &str, status: &str, start: Instant) {
        let microseconds = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        (self.observer)(&Step {
            request: request.to_owned(),
            what: what.to_owned(),
            status: status.to_owned(),
            microseconds,
        });
    }

    /// OID_NIC_SWITCH_ALLOCATE_VF.
    pub(crate) fn allocate_vf(&mut self, vm: &str, mac: MacAddress) -> Result<(VfId, RequestorId)> {
        let parameters = VfParameters {
            switch_id: ndis_protocol::SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: Name::new(vm)?,
                vm_friendly_name: Name::new(vm)?,
                nic_name: Name::new("Network Adapter")?,
                permanent_mac: mac,
                current_mac: mac,
            },
            vf_id: None,
            requestor_id: None,
        };
        let what = format!("a VF for {vm}");
        let input = parameters.emit();
        let oid = Oid::NicSwitchAllocateVf;
        let answer = self.oid(oid, OidRequestKind::Method, what, &input, ROOM)?;
        let answer = VfParameters::parse(&answer).context("the answer to ALLOCATE_VF")?;
        match (answer.vf_id, answer.requestor_id) {
            (Some(vf), Some(requestor)) => Ok((vf, requestor)),
            _ => bail!("ALLOCATE_VF succeeded and named no VF"),
        }
    }

    /// OID_NIC_SWITCH_CREATE_VPORT.
    pub(crate) fn create_vport(&mut self, vf: VfId, queue_pairs: u16) -> Result<VPortId> {
        let parameters = VPortParameters::new(FunctionId::Vf(vf), queue_pairs.into());
        let what = format!("a VPort with {queue_pairs} queue pair(s), attached to VF {}", vf.get());
        let input = parameters.emit();
        let oid = Oid::NicSwitchCreateVport;
        let answer = self.oid(oid, OidRequestKind::Method, what, &input, ROOM)?;
        Ok(VPortParameters::parse(&answer).context("the answer to CREATE_VPORT")?.vport_id)
    }

    /// OID_RECEIVE_FILTER_SET_FILTER.
    pub(crate) fn set_filter(&mut self, vport: VPortId, matches: FilterMatch) -> Result<FilterId> {
        let parameters = ReceiveFilterParameters::new(vport, matches);
        let what = format!("{} to VPort {}", matches.mac, vport.get());
        let input = parameters.emit();
        let oid = Oid::ReceiveFilterSetFilter;
        let answer = self.oid(oid, OidRequestKind::Method, what, &input, ROOM)?;
        ReceiveFilterParameters::parse(&answer)
            .context("the answer to SET_FILTER")?
            .filter_id
            .context("SET_FILTER succeeded and named no filter")
    }

    /// OID_RECEIVE_FILTER_MOVE_FILTER.
    pub(crate) fn move_filter(&mut self, id: FilterId, from: VPortId, to: VPortId) -> Result<()> {
        let parameters = ReceiveFilterMoveFilterParameters::new(id, from, to);
        let what = format!("filter {} from VPort {} to VPort {}", id.get(), from.get(), to.get());
        self.set(Oid::ReceiveFilterMoveFilter, what, &parameters.emit())
    }

    /// OID_RECEIVE_FILTER_CLEAR_FILTER.
    pub(crate) fn clear_filter(&mut self, id: FilterId) -> Result<()> {
        let parameters = ReceiveFilterClearParameters { queue_id: 0, filter_id: Some(id) };
        self.set(Oid::ReceiveFilterClearFilter, format!("filter {}", id.get()), &parameters.emit())
    }

    /// OID_NIC_SWITCH_DELETE_VPORT.
    pub(crate) fn delete_vport(&mut self, vport_id: VPortId) -> Result<()> {
        let parameters = NicSwitchDeleteVPortParameters { vport_id };
        let what = format!("VPort {}", vport_id.get());
        self.set(Oid::NicSwitchDeleteVport, what, &parameters.emit())
    }

    /// OID_SRIOV_RESET_VF.
    pub(crate) fn reset_vf(&mut self, vf_id: VfId) -> Result<()> {
        let parameters = SriovResetVf { vf_id };
        self.set(Oid::SriovResetVf, format!("VF {}", vf_id.get()), &parameters.emit())
    }

    /// OID_NIC_SWITCH_FREE_VF.
    pub(crate) fn free_vf(&mut self, vf_id: VfId) -> Result<()> {
        let parameters = NicSwitchFreeVfParameters { vf_id };
        self.set(Oid::NicSwitchFreeVf, format!("VF {}", vf_id.get()), &parameters.emit())
    }

    fn set(&mut self, oid: Oid, what: String, input: &[u8]) -> Result<()> {
        self.oid(oid, OidRequestKind::Set, what, input, 0)?;
        Ok(())
    }

    /// The published start-up sequence (SPEC-NDIS-SRIOV §11.2) from the VM's filter on the default VPort to
    /// the VF that takes its frames. What was done is undone when a step fails.
    pub(crate) fn attach_vf(
        &mut self,
        vm: &str,
        matches: FilterMatch,
        queue_pairs: u16,
    ) -> Result<AttachedVf> {
        let mac = matches.mac;
        let filter = self.set_filter(VPortId::DEFAULT, matches)?;
        let (vf, requestor) = match self.allocate_vf(vm, mac) {
            Ok(allocated) => allocated,
            Err(error) => return Err(self.undo(error, |nic| nic.clear_filter(filter))),
        };
        let vport = match self.create_vport(vf, queue_pairs) {
            Ok(vport) => vport,
            Err(error) => {
                return Err(self.undo(error, |nic| {
                    nic.free_vf(vf)?;
                    nic.clear_filter(filter)
                }));
            }
        };
        if let Err(error) = self.move_filter(filter, VPortId::DEFAULT, vport) {
            return Err(self.undo(error, |nic| {
                nic.delete_vport(vport)?;
                nic.free_vf(vf)?;
                nic.clear_filter(filter)
            }));
        }
        let status = self.status()?;
        let socket = status.vfs.iter().find(|entry| entry.vf == vf.get());
        Ok(AttachedVf {
            vf: vf.get(),
            vport: vport.get(),
            filter: filter.get(),
            mac: mac.to_string(),
            requestor_id: requestor.to_string(),
            socket: socket.map(|entry| entry.function.socket.clone()).unwrap_or_default(),
        })
    }

    /// Undoes what a failed sequence did; the first error is the one to tell.
    fn undo(
        &mut self,
        error: anyhow::Error,
        steps: impl FnOnce(&mut Self) -> Result<()>,
    ) -> anyhow::Error {
        match steps(self) {
            Ok(()) => error,
            Err(second) => error.context(format!("and undoing it failed too: {second:#}")),
        }
    }

    /// The published teardown sequence (SPEC-NDIS-SRIOV §11.3), and the VM's filter with it.
    pub(crate) fn detach_vf(&mut self, attached: &AttachedVf) -> Result<()> {
        let (Some(vf), Some(vport), Some(filter)) =
            (VfId::new(attached.vf), VPortId::new(attached.vport), FilterId::new(attached.filter))
        else {
            bail!("no such VF, VPort or filter");
        };
        self.move_filter(filter, vport, VPortId::DEFAULT)?;
        self.delete_vport(vport)?;
        self.reset_vf(vf)?;
        self.free_vf(vf)?;
        self.clear_filter(filter)
    }

    fn private(&mut self, control: PrivateControl, what: &str, input: &[u8]) -> Result<()> {
        let start = Instant::now();
        let done = self.client.private(control.code(), input, CAUSE_CAPACITY, TIMEOUT);
        let status = match &done {
            Ok(_) => "STATUS_SUCCESS".to_owned(),
            Err(error) => error.status().to_string(),
        };
        self.record(&format!("{control:?}"), what, &status, start);
        done.with_context(|| format!("{control:?} ({what})"))?;
        Ok(())
    }

    /// What the adapter is doing.
    pub(crate) fn status(&mut self) -> Result<AdapterStatus> {
        let code = PrivateControl::Status.code();
        let answer = self.client.private(code, &[], STATUS_CAPACITY, TIMEOUT)?;
        serde_json::from_slice(&answer).context("the adapter's status")
    }

    /// Connects the physical port to something else. Paths are those of this process.
    pub(crate) fn set_uplink(&mut self, spec: &UplinkSpec) -> Result<()> {
        let spec = absolute(spec)?;
        let text = spec.to_string();
        self.private(PrivateControl::SetUplink, &text, text.as_bytes())
    }

    /// Changes what a VPort may do.
    pub(crate) fn set_policy(&mut self, policy: &SetVPortPolicy) -> Result<()> {
        let what = format!("VPort {}", policy.vport);
        self.private(PrivateControl::SetVPortPolicy, &what, &serde_json::to_vec(policy)?)
    }

    /// The PF resets a VF; its driver comes back by itself.
    pub(crate) fn pf_reset_vf(&mut self, vf: u16) -> Result<()> {
        let input = serde_json::to_vec(&VfNumber { vf })?;
        self.private(PrivateControl::ResetVf, &format!("VF {vf}"), &input)
    }

    /// Has the PF given other resources, as a PnP manager does it, and waits until the clients have answered.
    pub(crate) fn rebalance(&mut self, patience: Duration) -> Result<RebalanceOutcome> {
        let code = PrivateControl::Rebalance.code();
        let start = Instant::now();
        let done = self.client.private(code, &[], REBALANCE_CAPACITY, patience);
        let status = done.as_ref().err().map_or(NtStatus::SUCCESS, ClientError::status);
        self.record("Rebalance", "the PF", &status.to_string(), start);
        match done {
            Ok(output) => serde_json::from_slice(&output).context("the outcome of the rebalance"),
            Err(ClientError::Failed { status: NtStatus::DEVICE_BUSY, .. }) => {
                bail!("another rebalance is under way; `clearway nic show` says who is asked")
            }
            Err(ClientError::TimedOut { .. }) => {
                let client = self.status()?.pnp.client;
                let client = client.as_deref().unwrap_or("the client that is attached");
                bail!(
                    "{client} has not answered within {} s; the rebalance goes on when it does, or when it ends",
                    patience.as_secs()
                )
            }
            Err(error) => Err(error).context("rebalancing the PF"),
        }
    }

    /// The adapter ends.
    pub(crate) fn shutdown(&mut self) -> Result<()> {
        let code = PrivateControl::Shutdown.code();
        let start = Instant::now();
        // The adapter may be gone before its answer is.
        let status = match self.client.private(code, &[], 0, TIMEOUT) {
            Ok(_) | Err(ClientError::Disconnected { .. }) => "STATUS_SUCCESS",
            Err(error) => return Err(error).context("ending the adapter"),
        };
        self.record("Shutdown", "the adapter", status, start);
        Ok(())
    }
}

/// The same uplink for a process in another folder.
fn absolute(spec: &UplinkSpec) -> Result<UplinkSpec> {
    let whole = |path: &PathBuf| {
        std::path::absolute(path).with_context(|| format!("the whole path of {}", path.display()))
    };
    Ok(match spec {
        UplinkSpec::Pcap { input, output, timing } => UplinkSpec::Pcap {
            input: input.as_ref().map(whole).transpose()?,
            output: output.as_ref().map(whole).transpose()?,
            timing: *timing,
        },
        UplinkSpec::Cable { socket } => UplinkSpec::Cable { socket: whole(socket)? },
        other => other.clone(),
    })
}
