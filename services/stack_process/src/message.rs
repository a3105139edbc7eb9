//! What the thread that owns the stack waits for.

use std::sync::Arc;
use std::task::{Wake, Waker};

use crossbeam_channel::Sender;
use device_control::{ClientId, DeviceControlClient, Request, RequestId};

use crate::control::PrivateControl;
use crate::event::Peer;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Message {
    /// A connection is there.
    Connected { peer: Peer, attempt: u64, client: DeviceControlClient },
    /// There is none, and the cause is another than before. Attempts go on.
    CannotConnect { peer: Peer, attempt: u64, error: String },
    /// A request to another process is done.
    Done(Ticket),
    /// Somebody asks something.
    Asked { client: ClientId, control: PrivateControl, request: Request },
    /// Somebody does not want to know any more.
    Cancelled { client: ClientId, request: RequestId },
    /// Read the configuration again.
    Reload,
    /// End.
    Stop,
}

/// Names a request to another process.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(pub(crate) u64);

/// Rings when a request is done: on the thread that receives its completion, without waiting.
struct Bell {
    ticket: Ticket,
    messages: Sender<Message>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // When the stack has ended nobody waits.
        let _ = self.messages.send(Message::Done(self.ticket));
    }
}

/// What a request is to call when it is done.
pub(crate) fn bell(ticket: Ticket, messages: Sender<Message>) -> Waker {
    Waker::from(Arc::new(Bell { ticket, messages }))
}
