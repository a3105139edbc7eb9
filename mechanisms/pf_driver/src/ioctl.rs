//! The nine I/O controls (SPEC-PCIVIRT §3).

use crate::driver::{CompleteRequest, Finish, State, lock};
use crate::front::exactly;
use crate::pnp::{PnpEvent, RequestKey};
use crate::{MitigableDevice, PfDriver, SriovDevice};
use device_control_protocol::{
    ATTACH_REMOVAL_EVENTS, AttachOptions, ClientId, Completion, RequestId,
};
use pcivirt_protocol::{
    IoctlCode, NtStatus, PCI_TYPE0_ADDRESSES, SriovInvalidateBlock, SriovIoctl,
    SriovMitigatedRangeCountInput, SriovMitigatedRangeCountOutput, SriovMitigatedRangeUpdateInput,
    SriovMitigatedRangeUpdateOutput, SriovMitigatedRangesInput, SriovMitigatedRangesOutput,
    SriovPfEvent, SriovPnpEventComplete, SriovProxyQueryLuidOutput, VfIndex,
};
use zerocopy::{FromBytes, IntoBytes};

/// An I/O control on its way to the PF driver.
pub struct IoctlRequest {
    /// Who sent it.
    pub client: ClientId,
    /// Its name among the client's requests; none that is pending may have the same.
    pub id: RequestId,
    /// What it asks for.
    pub code: IoctlCode,
    /// Its input.
    pub input: Vec<u8>,
    /// Room for output, in bytes.
    pub output_capacity: usize,
    /// How it is completed: at once, or much later.
    pub complete: CompleteRequest,
}

/// How a request goes on after it was looked at.
enum Next {
    /// Completed at once.
    Done(Completion),
    /// Kept by the shared state, or completed by it.
    Pend(Pend),
}

/// The requests that may pend.
#[derive(Copy, Clone)]
enum Pend {
    Attach { removal_events: bool },
    Notification,
    InvalidateBlock { vf: Option<VfIndex> },
    MitigatedRangeUpdate { vf: VfIndex },
}

/// A structure at the start of the input; what follows is ignored, as a buffer may be longer than needed.
fn starts_with<T: FromBytes>(input: &[u8]) -> Result<T, NtStatus> {
    T::read_from_prefix(input).map(|(value, _)| value).map_err(|_| NtStatus::BUFFER_TOO_SMALL)
}

fn room_for<T>(capacity: usize) -> Result<(), Completion> {
    if capacity < size_of::<T>() {
        return Err(Completion::too_small(size_of::<T>()));
    }
    Ok(())
}

impl<D: SriovDevice + ?Sized> PfDriver<D> {
    /// Serves an I/O control. It is completed exactly once: before this returns, or later from any thread when it is one
    /// that pends (NOTIFICATION, INVALIDATE_BLOCK, MITIGATED_RANGE_UPDATE, and ATTACH while the device is stopped).
    pub fn ioctl(&self, request: IoctlRequest) {
        let IoctlRequest { client, id, code, input, output_capacity, complete } = request;
        let key = RequestKey { client, id };
        match self.look_at(key, code, &input, output_capacity).unwrap_or_else(Next::Done) {
            Next::Done(completion) => {
                tracing::debug!(%client, %code, status = %completion.status, "I/O control");
                // If nobody is there to receive it, nothing is lost.
                let _ = complete(completion);
            }
            Next::Pend(pend) => {
                let num_vfs = self.device.num_vfs();
                let mut finish = Finish::default();
                let mut state = lock(&self.state);
                state.num_vfs = num_vfs;
                if state.pending.contains_key(&key) {
                    drop(state);
                    let _ = complete(NtStatus::INVALID_PARAMETER.into());
                    return;
                }
                state.pending.insert(key, complete);
                state.pend(key, pend, &mut finish);
                drop(state);
                tracing::debug!(%client, %code, "I/O control");
                self.finish(finish);
            }
        }
    }

    fn look_at(
        &self,
        key: RequestKey,
        code: IoctlCode,
        input: &[u8],
        capacity: usize,
    ) -> Result<Next, Completion> {
        let Some(ioctl) = SriovIoctl::from_code(code) else {
            return Err(NtStatus::INVALID_DEVICE_REQUEST.into());
        };
        match ioctl {
            SriovIoctl::Attach => {
                let options =
                    if input.is_empty() { AttachOptions::default() } else { exactly(input)? };
                if options.flags & !ATTACH_REMOVAL_EVENTS != 0 {
                    return Err(NtStatus::INVALID_PARAMETER.into());
                }
                let removal_events = options.flags & ATTACH_REMOVAL_EVENTS != 0;
                Ok(Next::Pend(Pend::Attach { removal_events }))
            }
            SriovIoctl::Notification => {
                // Refused before it is queued, so that no event is spent on it (§3.4).
                room_for::<SriovPfEvent>(capacity)?;
                Ok(Next::Pend(Pend::Notification))
            }
            SriovIoctl::Detach => self.event(PnpEvent::Detach { client: key.client }),
            SriovIoctl::EventComplete => {
                let SriovPnpEventComplete { query_status } = starts_with(input)?;
                self.event(PnpEvent::EventComplete { client: key.client, status: query_status })
            }
            SriovIoctl::InvalidateBlock => {
                self.present()?;
                let vf = if input.is_empty() {
                    None
                } else {
                    starts_with::<SriovInvalidateBlock>(input)?.vf()
                };
                if let Some(vf) = vf {
                    self.existing(vf)?;
                }
                room_for::<SriovInvalidateBlock>(capacity)?;
                Ok(Next::Pend(Pend::InvalidateBlock { vf }))
            }
            SriovIoctl::QueryMitigatedRangeCount => {
                let mitigable = self.mitigable()?;
                let SriovMitigatedRangeCountInput { vf_index } = starts_with(input)?;
                self.existing_or_none_at_all(vf_index)?;
                room_for::<SriovMitigatedRangeCountOutput>(capacity)?;
                let mut output =
                    SriovMitigatedRangeCountOutput { range_count: [0; PCI_TYPE0_ADDRESSES] };
                for (bar, count) in (0..).zip(&mut output.range_count) {
                    let ranges = mitigable.mitigated_ranges(vf_index, bar)?;
                    *count = u32::try_from(ranges.len()).map_err(|_| NtStatus::UNSUCCESSFUL)?;
                }
                Ok(Next::Done(Completion::output(output.as_bytes(), capacity)))
            }
            SriovIoctl::QueryMitigatedRanges => {
                let mitigable = self.mitigable()?;
                let SriovMitigatedRangesInput { vf_index, bar_number, .. } = starts_with(input)?;
                self.existing_or_none_at_all(vf_index)?;
                if usize::from(bar_number) >= PCI_TYPE0_ADDRESSES {
                    return Err(NtStatus::INVALID_PARAMETER.into());
                }
                let ranges = mitigable.mitigated_ranges(vf_index, bar_number.into())?;
                let ranges: &[SriovMitigatedRangesOutput] = &ranges;
                Ok(Next::Done(Completion::output(ranges.as_bytes(), capacity)))
            }
            SriovIoctl::MitigatedRangeUpdate => {
                self.mitigable()?;
                let SriovMitigatedRangeUpdateInput { vf_index } = starts_with(input)?;
                self.existing(vf_index)?;
                room_for::<SriovMitigatedRangeUpdateOutput>(capacity)?;
                Ok(Next::Pend(Pend::MitigatedRangeUpdate { vf: vf_index }))
            }
            SriovIoctl::ProxyQueryLuid => {
                self.present()?;
                room_for::<SriovProxyQueryLuidOutput>(capacity)?;
                let output = SriovProxyQueryLuidOutput { device_luid: self.device.query_luid()? };
                Ok(Next::Done(Completion::output(output.as_bytes(), capacity)))
            }
        }
    }

    /// A request that the PnP machine answers at once.
    fn event(&self, event: PnpEvent) -> Result<Next, Completion> {
        let mut finish = Finish::default();
        let status = lock(&self.state).step(event, &mut finish);
        self.finish(finish);
        Ok(Next::Done(status.into()))
    }

    fn present(&self) -> Result<(), NtStatus> {
        if self.pnp_state().is_removed() { Err(NtStatus::DEVICE_REMOVED) } else { Ok(()) }
    }

    fn mitigable(&self) -> Result<&dyn MitigableDevice, NtStatus> {
        self.present()?;
        self.device.mitigable().ok_or(NtStatus::NOT_SUPPORTED)
    }

    fn existing(&self, vf: VfIndex) -> Result<(), NtStatus> {
        if vf.exists(self.device.num_vfs()) { Ok(()) } else { Err(NtStatus::INVALID_PARAMETER) }
    }

    /// Without VFs, ranges are asked for with index 0 (SPEC-PCIVIRT §6).
    fn existing_or_none_at_all(&self, vf: VfIndex) -> Result<(), NtStatus> {
        if vf.0 == 0 && self.device.num_vfs() == 0 { Ok(()) } else { self.existing(vf) }
    }
}

impl State {
    /// Takes over a request that may pend; it is in `pending` already.
    fn pend(&mut self, request: RequestKey, pend: Pend, finish: &mut Finish) {
        let removed = self.pnp.state().is_removed();
        match pend {
            Pend::Attach { removal_events } => {
                self.step(PnpEvent::Attach { request, removal_events }, finish);
            }
            Pend::Notification => {
                self.step(PnpEvent::Notification { request }, finish);
            }
            Pend::InvalidateBlock { .. } | Pend::MitigatedRangeUpdate { .. } if removed => {
                self.complete(request, NtStatus::DEVICE_REMOVED, finish);
            }
            Pend::InvalidateBlock { vf } => {
                self.invalidations.arm(request, vf);
                self.settle_polls(finish);
            }
            // One per VF (SPEC-PCIVIRT §6).
            Pend::MitigatedRangeUpdate { vf } if self.range_updates.is_armed(vf) => {
                self.complete(request, NtStatus::SHARING_VIOLATION, finish);
            }
            Pend::MitigatedRangeUpdate { vf } => {
                self.range_updates.arm(request, vf);
                self.settle_polls(finish);
            }
        }
    }
}
