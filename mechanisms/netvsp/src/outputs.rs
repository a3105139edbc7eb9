//! What a control core has to say: effects, and messages to the other end.

use std::collections::VecDeque;

use crate::Outgoing;

/// What a control core wants done, as values: effects `E` in their order, all at once; and messages for the primary
/// channel, one at a time, as its ring has room.
#[derive(Debug)]
pub struct Outputs<E> {
    effects: Vec<E>,
    messages: VecDeque<Outgoing>,
}

impl<E> Outputs<E> {
    pub(crate) fn new() -> Self {
        Self { effects: Vec::new(), messages: VecDeque::new() }
    }

    /// What is to be done since the last time.
    pub fn take_effects(&mut self) -> Vec<E> {
        std::mem::take(&mut self.effects)
    }

    /// The message that the primary channel has to send next.
    #[must_use]
    pub fn waiting(&self) -> Option<&Outgoing> {
        self.messages.front()
    }

    /// That message was written to the ring.
    pub fn sent(&mut self) {
        self.messages.pop_front();
    }

    /// Messages that wait to be sent.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn effect(&mut self, effect: E) {
        self.effects.push(effect);
    }

    pub(crate) fn message(&mut self, message: Outgoing) {
        self.messages.push_back(message);
    }

    /// Takes messages that are no longer true out of those that wait. The first one stays: it may be half sent.
    pub(crate) fn forget_if(&mut self, stale: impl Fn(&Outgoing) -> bool) {
        let mut index = 0;
        self.messages.retain(|waiting| {
            index += 1;
            index == 1 || !stale(waiting)
        });
    }

    pub(crate) fn forget_messages(&mut self) {
        self.messages.clear();
    }
}
