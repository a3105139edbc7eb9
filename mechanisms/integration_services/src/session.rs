//! A service's conversation with the guest: versions first.
//!
//! | phase | event | next | what happens |
//! |---|---|---|---|
//! | Offered | the guest opens the channel | Negotiating | the host's versions are sent |
//! | Negotiating | it chooses two of them | Ready | the service begins |
//! | Negotiating | it has none in common | Incompatible | |
//! | Negotiating, Ready | anything else | the same | it is ignored |
//! | any | the guest closes the channel | Offered | |
//! | any | the guest opens it again | Negotiating | as above |

use integration_protocol::{
    FRAMEWORK_VERSIONS, IntegrationProtocolError, Message, MessageType, Negotiate, Service, Status,
    Version, Versions,
};

/// Where a conversation is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Phase {
    /// The guest has not opened the channel.
    Offered,
    /// It has, and was told what the host speaks.
    Negotiating,
    /// They speak these.
    Ready(Versions),
    /// They have no version in common. Nothing follows until the guest opens the channel again.
    Incompatible,
}

/// Why a packet of the guest was ignored.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum Ignored {
    /// It is no message.
    #[error("it is no message")]
    Malformed(#[from] IntegrationProtocolError),
    /// It is no answer, and guests ask for nothing here.
    #[error("it is no answer")]
    NotAnAnswer,
    /// It is about something else.
    #[error("it is of type {0:?}, which is not what this channel is for, or not now")]
    OtherType(MessageType),
    /// Nobody waits for it: it comes twice, too late, or was never asked for.
    #[error("it answers nothing that was asked")]
    Unasked,
    /// It chooses versions that were not on the host's list.
    #[error("it chooses framework {} and messages {}, which were not offered", .0.framework, .0.message)]
    NotOffered(Versions),
}

/// What a packet means for the service.
pub(crate) enum Received<'p> {
    /// The conversation has become ready.
    Ready,
    /// It never will: there is nothing in common.
    Incompatible,
    /// An answer to a request of the service.
    Answer { transaction: u8, status: Status, body: &'p [u8] },
}

/// A service's conversation with the guest.
#[derive(Clone, Debug)]
pub struct Session {
    service: Service,
    versions: &'static [Version],
    phase: Phase,
    /// The list of versions is still to be sent.
    list_due: bool,
    /// The transaction of the list.
    negotiation: u8,
    /// The last transaction that was begun.
    transaction: u8,
    ignored: u64,
}

impl Session {
    /// A conversation that has not begun, about messages of these versions.
    pub(crate) fn new(service: Service, versions: &'static [Version]) -> Self {
        Self {
            service,
            versions,
            phase: Phase::Offered,
            list_due: false,
            negotiation: 0,
            transaction: 0,
            ignored: 0,
        }
    }

    /// Which service it is about.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What both ends speak, once they do.
    pub fn versions(&self) -> Option<Versions> {
        match self.phase {
            Phase::Ready(versions) => Some(versions),
            Phase::Offered | Phase::Negotiating | Phase::Incompatible => None,
        }
    }

    /// Packets of the guest that were ignored.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    pub(crate) fn opened(&mut self) {
        self.phase = Phase::Negotiating;
        self.list_due = true;
        self.negotiation = self.begin();
    }

    pub(crate) fn closed(&mut self) {
        self.phase = Phase::Offered;
        self.list_due = false;
    }

    fn begin(&mut self) -> u8 {
        self.transaction = self.transaction.wrapping_add(1);
        self.transaction
    }

    /// The list of versions, once.
    pub(crate) fn next_message(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.list_due) {
            return None;
        }
        let (framework, message) = (FRAMEWORK_VERSIONS.to_vec(), self.versions.to_vec());
        // A few versions, which always fit.
        let body = Negotiate { framework, message }.emit().ok()?;
        Message::request(MessageType::Negotiate, self.negotiation, &body).emit().ok()
    }

    /// Whether the list of versions is still to be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.list_due
    }

    /// A request of the service, and the transaction it begins. `None` while nothing was agreed upon.
    pub(crate) fn request(&mut self, body: &[u8]) -> Option<(u8, Vec<u8>)> {
        let Versions { framework, message } = self.versions()?;
        let transaction = self.begin();
        let request = Message::request(self.service.message_type(), transaction, body);
        let bytes = Message { framework, version: message, ..request }.emit().ok()?;
        Some((transaction, bytes))
    }

    /// Understands a packet.
    pub(crate) fn receive<'p>(&mut self, packet: &'p [u8]) -> Result<Received<'p>, Ignored> {
        let result = self.understand(packet);
        if let Err(ignored) = &result {
            self.ignore(*ignored);
        }
        result
    }

    /// A packet was of no use to the service.
    pub(crate) fn ignore(&mut self, why: Ignored) -> Ignored {
        self.ignored = self.ignored.saturating_add(1);
        why
    }

    fn understand<'p>(&mut self, packet: &'p [u8]) -> Result<Received<'p>, Ignored> {
        let message = Message::parse(packet)?;
        if !message.is_answer() {
            return Err(Ignored::NotAnAnswer);
        }
        let Message { message_type, transaction, status, body, .. } = message;
        match self.phase {
            // Answers to what was not sent yet are none.
            Phase::Negotiating if !self.list_due => {
                if message_type != MessageType::Negotiate {
                    return Err(Ignored::OtherType(message_type));
                }
                if transaction != self.negotiation {
                    return Err(Ignored::Unasked);
                }
                self.chosen(status, body)
            }
            Phase::Ready(_) if message_type == self.service.message_type() => {
                Ok(Received::Answer { transaction, status, body })
            }
            Phase::Ready(_) if message_type != MessageType::Negotiate => {
                Err(Ignored::OtherType(message_type))
            }
            Phase::Offered | Phase::Negotiating | Phase::Ready(_) | Phase::Incompatible => {
                Err(Ignored::Unasked)
            }
        }
    }

    fn chosen(&mut self, status: Status, body: &[u8]) -> Result<Received<'static>, Ignored> {
        let choice = match status {
            Status::SUCCESS => Negotiate::parse(body)?.choice()?,
            _ => None,
        };
        let Some(versions) = choice else {
            self.phase = Phase::Incompatible;
            return Ok(Received::Incompatible);
        };
        if !FRAMEWORK_VERSIONS.contains(&versions.framework)
            || !self.versions.contains(&versions.message)
        {
            return Err(Ignored::NotOffered(versions));
        }
        self.phase = Phase::Ready(versions);
        Ok(Received::Ready)
    }
}
