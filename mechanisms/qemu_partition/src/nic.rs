//! A connection to the NIC of a VF, which says what the VF's driver does.

use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use adapter::control::{PrivateControl, VF_REPORT_CAPACITY, VfDriver, VfReport};
use device_control::{ClientError, DeviceControlClient, DriverName, SentRequest, Target};
use pcivirt_protocol::NtStatus;

/// How long a NIC has to welcome us.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reports that are taken in a row, of all VFs of the NIC.
const BURST: usize = 256;

/// Why a NIC says nothing more of a VF's driver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportsError {
    /// The connection has ended, or cannot be had.
    #[error(transparent)]
    Connection(#[from] ClientError),
    /// It does not tell.
    #[error("the NIC does not tell what the drivers of VFs do ({0})")]
    Refused(NtStatus),
    /// What it tells makes no sense.
    #[error("what the NIC tells of a VF cannot be read")]
    Unreadable(#[from] serde_json::Error),
}

/// What a VF's driver does, as its NIC says it.
pub(crate) struct VfDriverReports {
    client: DeviceControlClient,
    vf: u16,
    pending: Option<SentRequest>,
    waker: Waker,
}

struct Bell<F>(F);

impl<F: Fn() + Send + Sync> Wake for Bell<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

impl VfDriverReports {
    /// Connects to the NIC; `ring` is called, by another thread, whenever [`Self::next`] has something to say.
    pub(crate) fn of(
        nic: &Path,
        vf: u16,
        name: &DriverName,
        ring: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, ReportsError> {
        let client = DeviceControlClient::connect(nic, name, PATIENCE)?;
        let waker = Waker::from(Arc::new(Bell(ring)));
        Ok(Self { client, vf, pending: None, waker })
    }

    /// What the driver does, if that is news.
    ///
    /// # Errors
    /// The NIC says nothing more: the reason.
    pub(crate) fn next(&mut self) -> Result<Option<VfDriver>, ReportsError> {
        for _ in 0..BURST {
            let mut pending = match self.pending.take() {
                Some(pending) => pending,
                None => {
                    let target = Target::Private(PrivateControl::NextVfReport.code());
                    self.client.send(target, &[], VF_REPORT_CAPACITY)?
                }
            };
            match Pin::new(&mut pending).poll(&mut Context::from_waker(&self.waker)) {
                Poll::Pending => {
                    self.pending = Some(pending);
                    return Ok(None);
                }
                Poll::Ready(answer) => {
                    let completion = answer?;
                    if !completion.status.is_success() {
                        return Err(ReportsError::Refused(completion.status));
                    }
                    let report: VfReport = serde_json::from_slice(&completion.output)?;
                    if report.vf == self.vf {
                        return Ok(Some(report.driver));
                    }
                }
            }
        }
        // The others have their turn first.
        self.waker.wake_by_ref();
        Ok(None)
    }
}
