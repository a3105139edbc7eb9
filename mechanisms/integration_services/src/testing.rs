//! A played guest: answers as Linux's `hv_utils` does, into the bytes that came.

use integration_protocol::{
    Heartbeat, Message, MessageType, Negotiate, Service, ShutdownRequest, Status, TimeSync,
    Version, Versions,
};

/// A guest's driver for one service.
#[derive(Clone, Debug)]
pub struct GuestDriver {
    /// Versions of the framework that it speaks.
    pub framework: Vec<Version>,
    /// Versions of the service that it speaks.
    pub versions: Vec<Version>,
    /// How it answers what is asked of it.
    pub status: Status,
    /// What was agreed upon.
    pub agreed: Option<Versions>,
    /// How often versions were agreed upon, or not.
    pub negotiations: usize,
    /// Shutdowns that were asked for.
    pub shutdowns: Vec<ShutdownRequest>,
    /// Sequence numbers of heartbeats.
    pub beats: Vec<u64>,
    /// Times that were told.
    pub times: Vec<TimeSync>,
}

/// Where the message's header has its length, status and flags, behind the pipe's.
const LENGTH: usize = 8 + 10;
const STATUS: usize = 8 + 12;
const FLAGS: usize = 8 + 17;
const BODY: usize = 8 + 20;

impl GuestDriver {
    /// A driver that speaks all versions.
    pub fn new(service: Service) -> Self {
        Self::speaking(integration_protocol::FRAMEWORK_VERSIONS, service.versions())
    }

    /// A driver that speaks these.
    pub fn speaking(framework: &[Version], versions: &[Version]) -> Self {
        Self {
            framework: framework.to_vec(),
            versions: versions.to_vec(),
            status: Status::SUCCESS,
            agreed: None,
            negotiations: 0,
            shutdowns: Vec::new(),
            beats: Vec::new(),
            times: Vec::new(),
        }
    }

    /// The answer to a packet of the host. `None`: the packet is none that a host sends.
    pub fn answer(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let message = Message::parse(packet).ok()?;
        let mut answer = packet.to_vec();
        match message.message_type {
            MessageType::Negotiate => {
                self.negotiations += 1;
                let offered = Negotiate::parse(message.body).ok()?;
                let newest = |ours: &[Version], theirs: &[Version]| {
                    ours.iter().copied().filter(|version| theirs.contains(version)).max()
                };
                let framework = newest(&self.framework, &offered.framework);
                let version = newest(&self.versions, &offered.message);
                let (choice, agreed) = match (framework, version) {
                    (Some(framework), Some(message)) => {
                        let choice =
                            Negotiate { framework: vec![framework], message: vec![message] };
                        (choice, Some(Versions { framework, message }))
                    }
                    _ => (Negotiate::default(), None),
                };
                self.agreed = agreed;
                put(&mut answer, LENGTH, &16u16.to_le_bytes())?;
                put(&mut answer, BODY, &choice.emit().ok()?)?;
            }
            MessageType::Shutdown => {
                self.shutdowns.push(ShutdownRequest::parse(message.body).ok()?);
                put(&mut answer, STATUS, &self.status.0.to_le_bytes())?;
            }
            MessageType::Heartbeat => {
                let Heartbeat { sequence, .. } = Heartbeat::parse(message.body).ok()?;
                self.beats.push(sequence);
                put(&mut answer, BODY, &(sequence + 1).to_le_bytes())?;
            }
            MessageType::TimeSync => {
                self.times.push(TimeSync::parse(message.body, self.agreed?.message).ok()?);
            }
            _ => return None,
        }
        // A transaction's answer.
        put(&mut answer, FLAGS, &[5])?;
        Some(answer)
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + value.len())?.copy_from_slice(value);
    Some(())
}
