//! Interrupts that a guest moves to other processors, on their way to the worker.

use partition::{Retarget, RetargetHandler};

use crate::{
    event::{Event, Events},
    reply::Reply,
};

/// Tells the worker.
pub(crate) struct Retargets(pub(crate) Events);

impl RetargetHandler for Retargets {
    fn retarget(&self, retarget: Retarget) -> bool {
        let (reply, answer) = Reply::new();
        self.0.send(Event::Retarget(retarget, reply));
        answer.wait().unwrap_or(false)
    }
}
