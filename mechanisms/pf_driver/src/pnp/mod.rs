//! The PnP state machine of a PF driver (SPEC-PCIVIRT §8): who is subscribed, which event waits for an answer, and who has
//! to wait for whom. Sans I/O: requests are keys, waiting is somebody else's business.
//!
//! [`PnpMachine::step`] takes one event and yields an answer and effects. Its heart is `transition`, a function of the
//! state and the event alone, whose whole table is below. Around it stand two queues (NOTIFICATIONs, and ATTACHes that
//! wait for a safe moment) and three rules applied after every transition:
//!
//! 1. *deliver*: an event that is new is handed to the first queued NOTIFICATION, once (CheckPending, §8.3);
//! 2. *admit*: when the state becomes `Detached`, the first waiting ATTACH succeeds and the others find it taken;
//! 3. *fail*: once the device is removed, everything queued is completed with STATUS_DEVICE_REMOVED.
//!
//! How the published variables (§8.1) map to the states: VspAttached is "the state has a subscriber"; Rebalancing is
//! `DetachedStopped`, `AttachedStopped` or `StopPending`; SafeToAttach is false in `DetachedStopped` alone, since only
//! a client that attaches during a rebalance would not know of it; EventPending and EventNew are the `…Pending` states
//! and their delivery. EventNew without EventPending cannot be expressed.
//!
//! A client other than the subscriber is answered as in `Detached`, except that it cannot attach.
//!
//! # Transitions
#![doc = include_str!("transitions.md")]

use device_control_protocol::{ClientId, RequestId};
use pcivirt_protocol::{NtStatus, SriovPfEvent};
use std::collections::VecDeque;

#[cfg(test)]
mod tests;

/// A request of a client: unique as long as the request is not completed.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestKey {
    /// Whose request.
    pub client: ClientId,
    /// Which of the client's.
    pub id: RequestId,
}

/// The client that is attached. There is at most one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Subscriber {
    /// Which client.
    pub client: ClientId,
    /// Whether it asked for the two removal events as well (SPEC-PCIVIRT §8.2).
    pub removal_events: bool,
}

/// Whether the pending event has been handed to a NOTIFICATION.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Not yet: the next NOTIFICATION gets it.
    New,
    /// Yes: further NOTIFICATIONs wait for the next event.
    Delivered,
}

/// State of the PF driver.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PnpState {
    /// Running, nobody attached.
    Detached,
    /// Stopped, or about to be, for a rebalance; nobody attached. ATTACH waits.
    DetachedStopped,
    /// Running, with a subscriber.
    Attached(Subscriber),
    /// The subscriber has answered the stop (allowed or vetoed it): until the device starts again, or the stop is
    /// called off.
    AttachedStopped(Subscriber),
    /// A stop was asked for; the PnP thread waits for the subscriber's answer, which may be a veto.
    StopPending(Subscriber, Delivery),
    /// Running again; the PnP thread waits until the subscriber has taken notice.
    RestartPending(Subscriber, Delivery),
    /// An orderly removal was asked for; the PnP thread waits for the answer, which may be a veto. Only with a
    /// subscriber that asked for removal events.
    RemovePending(Subscriber, Delivery),
    /// The device is gone. A subscriber that asked for removal events has, or still gets, one notification of it.
    SurpriseRemoved(Option<(Subscriber, Delivery)>),
    /// The device was removed, or its driver unloaded. Final.
    Removed,
}

/// What can happen to a PF driver.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PnpEvent {
    /// IOCTL_SRIOV_ATTACH. The request is completed by an effect, perhaps much later.
    Attach {
        /// The request.
        request: RequestKey,
        /// Whether the client asks for removal events.
        removal_events: bool,
    },
    /// IOCTL_SRIOV_DETACH. The answer is the request's status.
    Detach {
        /// Who detaches.
        client: ClientId,
    },
    /// IOCTL_SRIOV_NOTIFICATION. The request is completed by an effect, perhaps much later.
    Notification {
        /// The request.
        request: RequestKey,
    },
    /// IOCTL_SRIOV_EVENT_COMPLETE. The answer is the request's status.
    EventComplete {
        /// Who completes.
        client: ClientId,
        /// The event's status: an error is a veto.
        status: NtStatus,
    },
    /// A request is cancelled. If it still waits it is completed by an effect.
    Cancel {
        /// The request.
        request: RequestKey,
    },
    /// A client has gone without a word: its requests are cancelled, and it is detached.
    ClientGone {
        /// Which client.
        client: ClientId,
    },
    /// IRP_MN_QUERY_STOP_DEVICE.
    QueryStop,
    /// IRP_MN_STOP_DEVICE.
    Stop,
    /// IRP_MN_CANCEL_STOP_DEVICE.
    CancelStop,
    /// IRP_MN_START_DEVICE, after the lower drivers have completed it.
    Start,
    /// IRP_MN_QUERY_REMOVE_DEVICE.
    QueryRemove,
    /// IRP_MN_CANCEL_REMOVE_DEVICE.
    CancelRemove,
    /// IRP_MN_SURPRISE_REMOVAL.
    SurpriseRemoval,
    /// IRP_MN_REMOVE_DEVICE, or the driver is unloaded.
    Remove,
}

/// What has to be done after a step, in this order.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Complete this ATTACH or NOTIFICATION with a status and no output.
    Complete {
        /// The request.
        request: RequestKey,
        /// Its status.
        status: NtStatus,
    },
    /// Complete this NOTIFICATION successfully, with the event as output.
    Notify {
        /// The request.
        request: RequestKey,
        /// The event.
        event: SriovPfEvent,
    },
    /// The PnP thread that waits goes on, with this status.
    ReleasePnp {
        /// The status.
        status: NtStatus,
    },
}

/// What a step yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// For DETACH and EVENT_COMPLETE the request's status; for a PnP request its status, or STATUS_PENDING if its thread
    /// has to wait for [`Effect::ReleasePnp`]. ATTACH and NOTIFICATION are always completed by an effect; their answer is
    /// the status it has, or STATUS_PENDING if they were queued (and perhaps taken out again by an effect of this step).
    pub answer: NtStatus,
    /// What has to be done.
    pub effects: Vec<Effect>,
}

/// What a transition does besides changing the state.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Transition {
    pub(crate) next: PnpState,
    pub(crate) answer: NtStatus,
    /// Frees the waiting PnP thread with this status.
    pub(crate) release: Option<NtStatus>,
    /// Completes the queued NOTIFICATIONs with this status.
    pub(crate) flush: Option<NtStatus>,
}

impl PnpState {
    /// The client that is attached.
    pub const fn subscriber(&self) -> Option<Subscriber> {
        match *self {
            Self::Attached(subscriber)
            | Self::AttachedStopped(subscriber)
            | Self::StopPending(subscriber, _)
            | Self::RestartPending(subscriber, _)
            | Self::RemovePending(subscriber, _)
            | Self::SurpriseRemoved(Some((subscriber, _))) => Some(subscriber),
            Self::Detached
            | Self::DetachedStopped
            | Self::SurpriseRemoved(None)
            | Self::Removed => None,
        }
    }

    /// Whether the device is gone.
    pub const fn is_removed(&self) -> bool {
        matches!(self, Self::SurpriseRemoved(_) | Self::Removed)
    }

    /// The event a PnP thread waits for the subscriber to complete.
    pub const fn waits_for(&self) -> Option<SriovPfEvent> {
        match self {
            Self::StopPending(..) => Some(SriovPfEvent::QUERY_STOP_DEVICE),
            Self::RestartPending(..) => Some(SriovPfEvent::RESTART),
            Self::RemovePending(..) => Some(SriovPfEvent::QUERY_REMOVE_DEVICE),
            _ => None,
        }
    }

    /// The event that the next NOTIFICATION has to report.
    const fn undelivered(&self) -> Option<SriovPfEvent> {
        match self {
            Self::StopPending(_, Delivery::New) => Some(SriovPfEvent::QUERY_STOP_DEVICE),
            Self::RestartPending(_, Delivery::New) => Some(SriovPfEvent::RESTART),
            Self::RemovePending(_, Delivery::New) => Some(SriovPfEvent::QUERY_REMOVE_DEVICE),
            Self::SurpriseRemoved(Some((_, Delivery::New))) => {
                Some(SriovPfEvent::SURPRISE_REMOVE_DEVICE)
            }
            _ => None,
        }
    }

    /// The same state, its event delivered.
    const fn delivered(self) -> Self {
        match self {
            Self::StopPending(s, _) => Self::StopPending(s, Delivery::Delivered),
            Self::RestartPending(s, _) => Self::RestartPending(s, Delivery::Delivered),
            Self::RemovePending(s, _) => Self::RemovePending(s, Delivery::Delivered),
            Self::SurpriseRemoved(Some((s, _))) => {
                Self::SurpriseRemoved(Some((s, Delivery::Delivered)))
            }
            other => other,
        }
    }

    const fn is_subscriber(&self, client: ClientId) -> bool {
        matches!(self.subscriber(), Some(subscriber) if subscriber.client.0 == client.0)
    }

    const fn becomes(next: Self, answer: NtStatus) -> Transition {
        Transition { next, answer, release: None, flush: None }
    }

    const fn stays(self, answer: NtStatus) -> Transition {
        Self::becomes(self, answer)
    }

    /// The transition table. `Cancel` and `ClientGone` are about queues and are taken apart by [`PnpMachine::step`].
    pub(crate) fn transition(self, event: PnpEvent) -> Transition {
        match event {
            PnpEvent::Attach { request, removal_events } => {
                self.attach(Subscriber { client: request.client, removal_events })
            }
            PnpEvent::Detach { client } => self.detach(client),
            PnpEvent::Notification { request } => self.notification(request.client),
            PnpEvent::EventComplete { client, status } => self.event_complete(client, status),
            PnpEvent::Cancel { .. } => self.stays(NtStatus::SUCCESS),
            PnpEvent::ClientGone { client } => self.detach(client),
            PnpEvent::SurpriseRemoval => self.surprise_removal(),
            PnpEvent::Remove => Transition {
                release: self.waits_for().map(|_| NtStatus::DEVICE_REMOVED),
                ..Self::becomes(Self::Removed, NtStatus::SUCCESS)
            },
            _ if self.is_removed() => self.stays(NtStatus::DEVICE_REMOVED),
            // One PnP request at a time.
            _ if self.waits_for().is_some() => self.stays(NtStatus::INVALID_DEVICE_STATE),
            PnpEvent::QueryStop => self.query_stop(),
            PnpEvent::Stop => match self {
                Self::DetachedStopped | Self::AttachedStopped(_) => self.stays(NtStatus::SUCCESS),
                _ => self.stays(NtStatus::INVALID_DEVICE_STATE),
            },
            PnpEvent::CancelStop | PnpEvent::Start => self.restart(),
            PnpEvent::QueryRemove => self.query_remove(),
            PnpEvent::CancelRemove => self.stays(NtStatus::SUCCESS),
        }
    }

    /// SPEC-PCIVIRT §3.2.
    const fn attach(self, subscriber: Subscriber) -> Transition {
        match self {
            Self::Detached => Self::becomes(Self::Attached(subscriber), NtStatus::SUCCESS),
            Self::DetachedStopped => self.stays(NtStatus::PENDING),
            Self::SurpriseRemoved(_) | Self::Removed => self.stays(NtStatus::DEVICE_REMOVED),
            _ => self.stays(NtStatus::SHARING_VIOLATION),
        }
    }

    /// SPEC-PCIVIRT §3.3. Somebody who is not attached detaches without effect.
    fn detach(self, client: ClientId) -> Transition {
        if !self.is_subscriber(client) {
            return self.stays(NtStatus::SUCCESS);
        }
        let next = match self {
            Self::StopPending(..) | Self::AttachedStopped(_) => Self::DetachedStopped,
            Self::SurpriseRemoved(_) => Self::SurpriseRemoved(None),
            _ => Self::Detached,
        };
        Transition {
            next,
            answer: NtStatus::SUCCESS,
            release: self.waits_for().map(|_| NtStatus::SUCCESS),
            flush: Some(NtStatus::CANCELLED),
        }
    }

    /// SPEC-PCIVIRT §3.4. A request that is queued here may be taken out again at once by rule 1 or 3.
    const fn notification(self, client: ClientId) -> Transition {
        match self {
            Self::SurpriseRemoved(Some((_, Delivery::New))) if self.is_subscriber(client) => {
                self.stays(NtStatus::PENDING)
            }
            Self::SurpriseRemoved(_) | Self::Removed => self.stays(NtStatus::DEVICE_REMOVED),
            _ if self.is_subscriber(client) => self.stays(NtStatus::PENDING),
            _ => self.stays(NtStatus::INVALID_DEVICE_STATE),
        }
    }

    /// SPEC-PCIVIRT §3.5. An event that nobody has been told of cannot be completed. For a restart the event's status
    /// has no query to answer, and is ignored.
    fn event_complete(self, client: ClientId, status: NtStatus) -> Transition {
        let next = match self {
            _ if !self.is_subscriber(client) => {
                return self.stays(NtStatus::INVALID_DEVICE_STATE);
            }
            Self::StopPending(s, Delivery::Delivered) => Self::AttachedStopped(s),
            Self::RestartPending(s, Delivery::Delivered)
            | Self::RemovePending(s, Delivery::Delivered) => Self::Attached(s),
            Self::SurpriseRemoved(Some((_, Delivery::Delivered))) => Self::SurpriseRemoved(None),
            _ => return self.stays(NtStatus::INVALID_DEVICE_STATE),
        };
        let ignored = matches!(self, Self::RestartPending(..)) || status.is_success();
        let status = if ignored { NtStatus::SUCCESS } else { status };
        Transition {
            release: self.waits_for().map(|_| status),
            ..Self::becomes(next, NtStatus::SUCCESS)
        }
    }

    const fn query_stop(self) -> Transition {
        match self {
            Self::Detached => Self::becomes(Self::DetachedStopped, NtStatus::SUCCESS),
            Self::Attached(s) => {
                Self::becomes(Self::StopPending(s, Delivery::New), NtStatus::PENDING)
            }
            _ => self.stays(NtStatus::INVALID_DEVICE_STATE),
        }
    }

    /// CANCEL_STOP, or START once the lower drivers are done. Whoever attaches from now on does not get event 1: it did
    /// not see the device stop (flow F4).
    const fn restart(self) -> Transition {
        match self {
            Self::DetachedStopped => Self::becomes(Self::Detached, NtStatus::SUCCESS),
            Self::AttachedStopped(s) => {
                Self::becomes(Self::RestartPending(s, Delivery::New), NtStatus::PENDING)
            }
            _ => self.stays(NtStatus::SUCCESS),
        }
    }

    const fn query_remove(self) -> Transition {
        match self {
            Self::Attached(s) if s.removal_events => {
                Self::becomes(Self::RemovePending(s, Delivery::New), NtStatus::PENDING)
            }
            Self::Detached | Self::Attached(_) => self.stays(NtStatus::SUCCESS),
            _ => self.stays(NtStatus::INVALID_DEVICE_STATE),
        }
    }

    fn surprise_removal(self) -> Transition {
        if self.is_removed() {
            return self.stays(NtStatus::SUCCESS);
        }
        let notice = self.subscriber().filter(|s| s.removal_events).map(|s| (s, Delivery::New));
        Transition {
            release: self.waits_for().map(|_| NtStatus::DEVICE_REMOVED),
            ..Self::becomes(Self::SurpriseRemoved(notice), NtStatus::SUCCESS)
        }
    }
}

/// The state machine with its two queues.
#[derive(Debug)]
pub struct PnpMachine {
    state: PnpState,
    notifications: VecDeque<RequestKey>,
    attaches: VecDeque<(RequestKey, bool)>,
}

impl PnpMachine {
    /// A device that runs, with nobody attached.
    pub const fn new() -> Self {
        Self {
            state: PnpState::Detached,
            notifications: VecDeque::new(),
            attaches: VecDeque::new(),
        }
    }

    /// The state.
    pub const fn state(&self) -> PnpState {
        self.state
    }

    /// NOTIFICATIONs that wait, in order.
    pub fn queued_notifications(&self) -> impl Iterator<Item = RequestKey> + '_ {
        self.notifications.iter().copied()
    }

    /// ATTACHes that wait for the device to be safe, in order.
    pub fn waiting_attaches(&self) -> impl Iterator<Item = RequestKey> + '_ {
        self.attaches.iter().map(|(request, _)| *request)
    }

    /// One event. Illegal orders are answered with an error status and change nothing.
    pub fn step(&mut self, event: PnpEvent) -> Outcome {
        let mut effects = Vec::new();
        match event {
            PnpEvent::Cancel { request } => self.cancel(|waiting| waiting == request, &mut effects),
            PnpEvent::ClientGone { client } => {
                self.cancel(|waiting| waiting.client == client, &mut effects);
            }
            _ => {}
        }

        let transition = self.state.transition(event);
        self.state = transition.next;
        if let Some(status) = transition.flush {
            let flushed = self.notifications.drain(..);
            effects.extend(flushed.map(|request| Effect::Complete { request, status }));
        }
        if let Some(status) = transition.release {
            effects.push(Effect::ReleasePnp { status });
        }
        match event {
            PnpEvent::Attach { request, removal_events }
                if transition.answer == NtStatus::PENDING =>
            {
                self.attaches.push_back((request, removal_events));
            }
            PnpEvent::Notification { request } if transition.answer == NtStatus::PENDING => {
                self.notifications.push_back(request);
            }
            PnpEvent::Attach { request, .. } | PnpEvent::Notification { request } => {
                effects.push(Effect::Complete { request, status: transition.answer });
            }
            _ => {}
        }
        self.deliver(&mut effects);
        self.admit(&mut effects);
        self.fail(&mut effects);
        Outcome { answer: transition.answer, effects }
    }

    /// Rule 1, CheckPending.
    fn deliver(&mut self, effects: &mut Vec<Effect>) {
        if let Some(event) = self.state.undelivered()
            && let Some(request) = self.notifications.pop_front()
        {
            self.state = self.state.delivered();
            effects.push(Effect::Notify { request, event });
        }
    }

    /// Rule 2.
    fn admit(&mut self, effects: &mut Vec<Effect>) {
        if self.state != PnpState::Detached {
            return;
        }
        for (request, removal_events) in self.attaches.drain(..) {
            let attach = self.state.transition(PnpEvent::Attach { request, removal_events });
            self.state = attach.next;
            effects.push(Effect::Complete { request, status: attach.answer });
        }
    }

    /// Rule 3.
    fn fail(&mut self, effects: &mut Vec<Effect>) {
        if !self.state.is_removed() {
            return;
        }
        let attaches = self.attaches.drain(..).map(|(request, _)| request);
        let queued = self.notifications.drain(..).chain(attaches);
        let status = NtStatus::DEVICE_REMOVED;
        effects.extend(queued.map(|request| Effect::Complete { request, status }));
    }

    fn cancel(&mut self, concerns: impl Fn(RequestKey) -> bool, effects: &mut Vec<Effect>) {
        let mut keep = |request: RequestKey| {
            if concerns(request) {
                effects.push(Effect::Complete { request, status: NtStatus::CANCELLED });
            }
            !concerns(request)
        };
        self.notifications.retain(|request| keep(*request));
        self.attaches.retain(|(request, _)| keep(*request));
    }
}

impl Default for PnpMachine {
    fn default() -> Self {
        Self::new()
    }
}
