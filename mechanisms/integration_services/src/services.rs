//! The services that one VM has.

use std::{
    collections::BTreeSet,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use integration_protocol::{Service, ShutdownRequest};
use partition::{
    Partition, ReferenceTime,
    host::{OfferError, VmbusHost},
};

use crate::{
    HeartbeatService, HostTime, IntegrationService, ServiceChannel, Session, ShutdownOutcome,
    ShutdownRefused, ShutdownService, TimeSyncService,
};

/// The services that are offered to one guest. Dropping it takes the offers back.
///
/// Driven by its owner's thread: it waits for [`Self::wait_on`]'s descriptors and until [`Self::deadline`], then calls
/// [`Self::work`]. Nothing here waits.
#[derive(Debug)]
pub struct IntegrationServices {
    partition: Arc<dyn Partition>,
    shutdown: Option<ServiceChannel<ShutdownService>>,
    heartbeat: Option<ServiceChannel<HeartbeatService>>,
    time_sync: Option<ServiceChannel<TimeSyncService>>,
}

impl IntegrationServices {
    /// Offers these services. `host` is `partition`'s.
    ///
    /// # Errors
    /// [`OfferError`]: none is offered then.
    pub fn offer(
        host: &VmbusHost,
        partition: Arc<dyn Partition>,
        which: &BTreeSet<Service>,
    ) -> Result<Self, OfferError> {
        let mut this = Self { partition, shutdown: None, heartbeat: None, time_sync: None };
        for service in which {
            match service {
                Service::Shutdown => {
                    this.shutdown = Some(ServiceChannel::offer(host, ShutdownService::new())?);
                }
                Service::Heartbeat => {
                    this.heartbeat = Some(ServiceChannel::offer(host, HeartbeatService::new())?);
                }
                Service::TimeSync => {
                    let has_reference = this.partition.reference_time().is_some();
                    let service = TimeSyncService::new(has_reference);
                    this.time_sync = Some(ServiceChannel::offer(host, service)?);
                }
            }
        }
        Ok(this)
    }

    /// Descriptors to wait for.
    pub fn wait_on<'s>(&'s self, readable: &mut Vec<BorrowedFd<'s>>) {
        self.shutdown.iter().for_each(|channel| channel.wait_on(readable));
        self.heartbeat.iter().for_each(|channel| channel.wait_on(readable));
        self.time_sync.iter().for_each(|channel| channel.wait_on(readable));
    }

    /// When [`Self::work`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let shutdown = self.shutdown.as_ref().and_then(ServiceChannel::deadline);
        let heartbeat = self.heartbeat.as_ref().and_then(ServiceChannel::deadline);
        let time_sync = self.time_sync.as_ref().and_then(ServiceChannel::deadline);
        [shutdown, heartbeat, time_sync].into_iter().flatten().min()
    }

    /// Does what there is to do, after its descriptors or its deadline. `now` is of a clock that never goes back, and
    /// always the same one.
    pub fn work(&mut self, now: Duration) {
        let Self { partition, shutdown, heartbeat, time_sync } = self;
        let mut time = || match partition.reference_time() {
            Some(ReferenceTime { count, at }) => HostTime::new(at, Some(count)),
            None => HostTime::new(SystemTime::now(), None),
        };
        shutdown.iter_mut().for_each(|channel| channel.work(now, &mut time));
        heartbeat.iter_mut().for_each(|channel| channel.work(now, &mut time));
        time_sync.iter_mut().for_each(|channel| channel.work(now, &mut time));
    }

    /// Asks the guest to shut down; [`Self::shutdown_outcome`] says what became of it. Followed by [`Self::work`].
    ///
    /// # Errors
    /// [`ShutdownRefused`]: it is not asked. `NotReady` also if the service is not offered.
    pub fn shut_down(
        &mut self,
        request: ShutdownRequest,
        limit: Duration,
        now: Duration,
    ) -> Result<(), ShutdownRefused> {
        let channel = self.shutdown.as_mut().ok_or(ShutdownRefused::NotReady)?;
        channel.service_mut().request(request, limit, now)
    }

    /// Nobody waits for the guest's answer any more.
    pub fn cancel_shut_down(&mut self) {
        if let Some(channel) = &mut self.shutdown {
            channel.service_mut().cancel();
        }
    }

    /// What became of [`Self::shut_down`], told once.
    pub fn shutdown_outcome(&mut self) -> Option<ShutdownOutcome> {
        self.shutdown.as_mut()?.service_mut().take_outcome()
    }

    /// Whether the shutdown service is offered.
    pub fn has_shutdown(&self) -> bool {
        self.shutdown.is_some()
    }

    /// The heartbeat, if it is offered.
    pub fn heartbeat(&self) -> Option<&HeartbeatService> {
        self.heartbeat.as_ref().map(ServiceChannel::service)
    }

    /// The guest has stood still: it is told to set its clock.
    pub fn resynchronize_time(&mut self, now: Duration) {
        if let Some(channel) = &mut self.time_sync {
            channel.service_mut().resynchronize(now);
        }
    }

    /// The conversations about all services that are offered.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        let shutdown = self.shutdown.iter().map(|channel| channel.service().session());
        let heartbeat = self.heartbeat.iter().map(|channel| channel.service().session());
        let time_sync = self.time_sync.iter().map(|channel| channel.service().session());
        shutdown.chain(heartbeat).chain(time_sync)
    }
}
