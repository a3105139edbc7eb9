//! Events for people and programs: those of the stack, and those of its process; numbered, and kept for a while.

use std::collections::VecDeque;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use virtualization_stack::{AdapterId, Event, Level, NicId, VmId, VmSwitchId};

use crate::control::{EVENTS_CAPACITY, EVENTS_KEPT};
use crate::names::Names;
use crate::nic_request::NicRequest;

/// Another process that the stack is connected to.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A NIC.
    Nic(NicId),
    /// A switch.
    Switch(VmSwitchId),
    /// The host side of a VM.
    Vm(VmId),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nic(id) => id.fmt(f),
            Self::Switch(id) => id.fmt(f),
            Self::Vm(id) => id.fmt(f),
        }
    }
}

/// Something that happened to the process of the stack.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProcessEvent {
    /// A connection came up.
    Connected {
        /// To whom.
        peer: Peer,
    },
    /// A connection ended.
    Disconnected {
        /// To whom.
        peer: Peer,
        /// How.
        error: String,
    },
    /// A connection could not be made. Attempts go on; the same cause is said once.
    CannotConnect {
        /// To whom.
        peer: Peer,
        /// Why not.
        error: String,
    },
    /// A switch or a VM refused what it was told.
    CommandRefused {
        /// Who.
        peer: Peer,
        /// About which adapter.
        adapter: Option<AdapterId>,
        /// What it was told.
        request: String,
        /// Published name of the status.
        status: String,
    },
    /// A NIC has completed a request.
    NicRequest(NicRequest),
    /// A VF that an earlier life of the stack has offered to a guest is taken away.
    StaleVfRemoved {
        /// Whose VF.
        adapter: Option<AdapterId>,
        /// The VM's host side.
        peer: Peer,
        /// Its serial number.
        serial: u32,
        /// Whether its guest has not agreed.
        surprise: bool,
    },
    /// Desired state of an adapter was changed.
    AdapterChanged {
        /// Which.
        adapter: AdapterId,
    },
    /// The configuration file was read again.
    ConfigurationReloaded {
        /// Objects that came, went or changed.
        changes: u32,
    },
}

impl fmt::Display for ProcessEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { peer } => write!(f, "{peer} is connected"),
            Self::Disconnected { peer, error } => {
                write!(f, "the connection to {peer} ended: {error}")
            }
            Self::CannotConnect { peer, error } => write!(f, "{peer} cannot be reached: {error}"),
            Self::CommandRefused { peer, adapter, request, status } => {
                if let Some(adapter) = adapter {
                    write!(f, "{adapter}: ")?;
                }
                write!(f, "{peer} refused {request} with {status}")
            }
            Self::NicRequest(request) => request.fmt(f),
            Self::StaleVfRemoved { adapter, peer, serial, surprise } => {
                if let Some(adapter) = adapter {
                    write!(f, "{adapter}: ")?;
                }
                let how = if *surprise { "taken by surprise from" } else { "given back by" };
                write!(
                    f,
                    "the VF with serial {serial}, of the stack's life before, is {how} {peer}"
                )
            }
            Self::AdapterChanged { adapter } => write!(f, "{adapter}: its settings were changed"),
            Self::ConfigurationReloaded { changes } => {
                write!(f, "the configuration was read again: {changes} change(s)")
            }
        }
    }
}

impl ProcessEvent {
    const fn level(&self) -> Level {
        match self {
            Self::Connected { .. }
            | Self::AdapterChanged { .. }
            | Self::ConfigurationReloaded { .. }
            | Self::StaleVfRemoved { surprise: false, .. } => Level::Notice,
            // What a refusal means is said by whoever asked.
            Self::NicRequest(_) => Level::Step,
            Self::Disconnected { .. }
            | Self::CannotConnect { .. }
            | Self::CommandRefused { .. }
            | Self::StaleVfRemoved { .. } => Level::Warning,
        }
    }

    const fn adapter(&self) -> Option<AdapterId> {
        match self {
            Self::AdapterChanged { adapter } => Some(*adapter),
            Self::NicRequest(request) => request.adapter,
            Self::CommandRefused { adapter, .. } | Self::StaleVfRemoved { adapter, .. } => *adapter,
            _ => None,
        }
    }
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnyEvent {
    /// In the stack.
    Stack(Event),
    /// In its process.
    Process(ProcessEvent),
}

/// An event with its number and time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its number: 1 for the first after the start, then one more each.
    pub sequence: u64,
    /// When: UTC, RFC 3339, microseconds.
    pub time: String,
    /// How much it matters.
    pub level: Level,
    /// The adapter it is about, as `VM/adapter`.
    pub adapter: Option<String>,
    /// The event as a sentence, with names.
    pub text: String,
    /// The event; NICs, switches, VMs and adapters by number.
    pub event: AnyEvent,
}

/// The latest events.
#[derive(Debug, Default)]
pub(crate) struct EventRing {
    kept: VecDeque<EventRecord>,
    last: u64,
}

impl EventRing {
    /// Number of the latest event.
    pub(crate) const fn last(&self) -> u64 {
        self.last
    }

    /// Writes an event down, and to the log.
    pub(crate) fn push(&mut self, event: AnyEvent, names: &Names) {
        let (level, adapter, text) = match &event {
            AnyEvent::Stack(event) => (event.level(), event.adapter(), event.to_string()),
            AnyEvent::Process(event) => (event.level(), event.adapter(), event.to_string()),
        };
        let text = names.spell(&text);
        match level {
            Level::Step => tracing::debug!("{text}"),
            Level::Notice => tracing::info!("{text}"),
            Level::Warning => tracing::warn!("{text}"),
        }
        self.last += 1;
        if self.kept.len() >= EVENTS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(EventRecord {
            sequence: self.last,
            time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            level,
            adapter: adapter.map(|id| names.adapter(id)),
            text,
            event,
        });
    }

    /// Events after `after`, as JSON: as many as an answer has room for; `None` if there is none. A number that was not
    /// given out yet is of an earlier life of the stack: everything is new to whoever knows that.
    pub(crate) fn after(&self, after: u64, room: usize) -> Option<Vec<u8>> {
        let after = if after > self.last { 0 } else { after };
        let first = self.kept.front()?.sequence;
        let missed = first.saturating_sub(after.saturating_add(1));
        let skip = usize::try_from(after.saturating_add(1).saturating_sub(first)).ok()?;
        let room = room.min(EVENTS_CAPACITY);
        let mut json = format!(r#"{{"missed":{missed},"events":["#).into_bytes();
        let mut any = false;
        for record in self.kept.iter().skip(skip) {
            let Ok(one) = serde_json::to_vec(record) else { continue };
            // The comma before it, and the two brackets after the last.
            if json.len() + one.len() + 3 > room {
                break;
            }
            if any {
                json.push(b',');
            }
            json.extend(one);
            any = true;
        }
        json.extend(b"]}");
        any.then_some(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Events;

    fn note(ring: &mut EventRing, number: u32) {
        let event = ProcessEvent::AdapterChanged { adapter: AdapterId(number) };
        ring.push(AnyEvent::Process(event), &Names::default());
    }

    fn read(ring: &EventRing, after: u64) -> Events {
        serde_json::from_slice(&ring.after(after, EVENTS_CAPACITY).unwrap()).unwrap()
    }

    #[test]
    fn whoever_comes_late_is_told_how_much_was_forgotten() {
        let mut ring = EventRing::default();
        assert_eq!(ring.after(0, EVENTS_CAPACITY), None);
        for number in 0..5000 {
            note(&mut ring, number);
        }
        let events = read(&ring, 0);
        assert_eq!(events.missed, 5000 - EVENTS_KEPT as u64);
        assert_eq!(events.events[0].sequence, events.missed + 1);
        let last = read(&ring, 4999);
        assert_eq!((last.missed, last.events.len()), (0, 1));
        assert_eq!(last.events[0].sequence, 5000);
        assert_eq!(ring.after(5000, EVENTS_CAPACITY), None);
    }

    #[test]
    fn an_answer_is_never_larger_than_its_room_and_loses_nothing() {
        let mut ring = EventRing::default();
        for number in 0..100 {
            note(&mut ring, number);
        }
        let (mut after, mut answers) = (0, 0);
        while after < 100 {
            let json = ring.after(after, 1000).unwrap();
            assert!(json.len() <= 1000);
            let events: Events = serde_json::from_slice(&json).unwrap();
            assert_eq!((events.missed, events.events[0].sequence), (0, after + 1));
            after = events.events.last().unwrap().sequence;
            answers += 1;
        }
        assert!(answers > 1);
        assert_eq!(ring.after(0, 10), None, "there is no room for one");
    }

    #[test]
    fn a_number_of_an_earlier_life_is_before_everything() {
        let mut ring = EventRing::default();
        note(&mut ring, 0);
        assert_eq!(read(&ring, 77).events.len(), 1);
    }

    #[test]
    fn both_kinds_of_events_are_told_apart_in_json() {
        let stack = AnyEvent::Stack(Event::PfRestarted { nic: NicId(3) });
        let peer = Peer::Vm(VmId(2));
        let process = AnyEvent::Process(ProcessEvent::Connected { peer });
        for event in [stack, process] {
            let json = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<AnyEvent>(&json).unwrap(), event, "{json}");
        }
    }
}
