//! Which TX queues are polled when, and what an idle worker does.
//!
//! Doorbells are mapped memory: nobody tells the worker of a new tail, it looks. Looking at hundreds of
//! silent queues on every round would cost the busy ones, so queues are *hot* (looked at on every round) or
//! *cold* (a few of them on every round, in turn). The cost per frame thus does not grow with the number of
//! silent VFs.

use std::time::Duration;

/// A queue that found nothing for this many rounds turns cold.
const COLD_AFTER: u32 = 256;
/// Cold queues looked at on each round.
const COLD_PER_ROUND: usize = 4;

/// One enabled TX queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct QueueId {
    /// Slot of the function.
    pub(crate) function: usize,
    /// Number of the queue in the function.
    pub(crate) number: usize,
}

#[derive(Copy, Clone, Debug)]
struct Hot {
    queue: QueueId,
    empty_rounds: u32,
}

/// The order in which queues are polled.
#[derive(Default, Debug)]
pub(crate) struct Schedule {
    hot: Vec<Hot>,
    cold: Vec<QueueId>,
    next_cold: usize,
}

impl Schedule {
    /// Takes a queue in; it starts hot.
    pub(crate) fn add(&mut self, queue: QueueId) {
        self.remove(queue);
        self.hot.push(Hot { queue, empty_rounds: 0 });
    }

    /// Forgets a queue.
    pub(crate) fn remove(&mut self, queue: QueueId) {
        self.hot.retain(|hot| hot.queue != queue);
        self.cold.retain(|cold| *cold != queue);
    }

    /// The hot queue at `position`, for walking them all.
    #[inline]
    pub(crate) fn hot(&self, position: usize) -> Option<QueueId> {
        self.hot.get(position).map(|hot| hot.queue)
    }

    /// Says whether the hot queue at `position` had work; returns the position of the next one.
    #[inline]
    pub(crate) fn polled_hot(&mut self, position: usize, worked: bool) -> usize {
        let Some(hot) = self.hot.get_mut(position) else { return position + 1 };
        if worked {
            hot.empty_rounds = 0;
            return position + 1;
        }
        hot.empty_rounds += 1;
        if hot.empty_rounds <= COLD_AFTER {
            return position + 1;
        }
        let cooled = self.hot.swap_remove(position);
        self.cold.push(cooled.queue);
        position
    }

    /// How many cold queues to look at on this round; all of them when nothing is hot.
    pub(crate) fn cold_looks(&self) -> usize {
        if self.hot.is_empty() { self.cold.len() } else { COLD_PER_ROUND.min(self.cold.len()) }
    }

    /// The next cold queue in turn.
    #[inline]
    pub(crate) fn cold(&mut self) -> Option<QueueId> {
        if self.next_cold >= self.cold.len() {
            self.next_cold = 0;
        }
        self.cold.get(self.next_cold).copied()
    }

    /// Says whether the cold queue last given had work.
    #[inline]
    pub(crate) fn polled_cold(&mut self, worked: bool) {
        if worked && self.next_cold < self.cold.len() {
            let queue = self.cold.swap_remove(self.next_cold);
            self.hot.push(Hot { queue, empty_rounds: 0 });
        } else {
            self.next_cold += 1;
        }
    }
}

/// How long a worker without work keeps looking, and how it sleeps after that: the longer the silence, the
/// longer the sleep, so that whoever breaks the silence waits for a small part of it at most.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct IdlePolicy {
    /// Looks without pause for this long after the last frame.
    pub spin: Duration,
    /// Shortest sleep.
    pub shortest_sleep: Duration,
    /// Longest sleep, and so the longest time until a doorbell is seen.
    pub longest_sleep: Duration,
}

impl IdlePolicy {
    /// In between, a sleep lasts the silence divided by this.
    const PART_OF_SILENCE: u32 = 512;
}

impl Default for IdlePolicy {
    fn default() -> Self {
        Self {
            spin: Duration::from_micros(200),
            shortest_sleep: Duration::from_micros(20),
            longest_sleep: Duration::from_millis(2),
        }
    }
}

/// What the worker does next.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Idle {
    /// Look again at once.
    Spin,
    /// Sleep for at most so long, or until something wakes it.
    Sleep(Duration),
}

/// Counts idleness.
#[derive(Debug)]
pub(crate) struct IdleState {
    policy: IdlePolicy,
    idle_since_ns: Option<u64>,
}

impl IdleState {
    pub(crate) fn new(policy: IdlePolicy) -> Self {
        Self { policy, idle_since_ns: None }
    }

    /// After one round at `now_ns`.
    #[inline]
    pub(crate) fn after_round(&mut self, worked: bool, now_ns: u64) -> Idle {
        if worked {
            self.idle_since_ns = None;
            return Idle::Spin;
        }
        let since = *self.idle_since_ns.get_or_insert(now_ns);
        let silence = Duration::from_nanos(now_ns.saturating_sub(since));
        if silence < self.policy.spin {
            return Idle::Spin;
        }
        let IdlePolicy { shortest_sleep, longest_sleep, .. } = self.policy;
        let part = silence / IdlePolicy::PART_OF_SILENCE;
        Idle::Sleep(part.max(shortest_sleep).min(longest_sleep))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(function: usize) -> QueueId {
        QueueId { function, number: 0 }
    }

    #[test]
    fn silent_queues_turn_cold_and_come_back_when_they_have_work() {
        let mut schedule = Schedule::default();
        (0..3).for_each(|function| schedule.add(queue(function)));
        for _ in 0..=COLD_AFTER {
            let mut position = 0;
            while let Some(id) = schedule.hot(position) {
                position = schedule.polled_hot(position, id == queue(1));
            }
        }
        assert_eq!((schedule.hot(0), schedule.hot(1)), (Some(queue(1)), None));
        assert_eq!(schedule.cold_looks(), 2);
        let first = schedule.cold().unwrap();
        schedule.polled_cold(false);
        let second = schedule.cold().unwrap();
        assert_ne!(first, second);
        schedule.polled_cold(true);
        assert_eq!(schedule.hot(1), Some(second));
        schedule.remove(second);
        assert_eq!((schedule.hot(1), schedule.cold_looks()), (None, 1));
    }

    #[test]
    fn an_idle_worker_spins_then_sleeps_longer_and_longer() {
        let policy = IdlePolicy::default();
        let mut idle = IdleState::new(policy);
        assert_eq!(idle.after_round(false, 1_000), Idle::Spin);
        assert_eq!(idle.after_round(false, 200_999), Idle::Spin);
        let after = |silence_us: u64| 1_000 + silence_us * 1_000;
        for (silence_us, sleep_us) in
            [(200, 20), (10_000, 20), (51_200, 100), (512_000, 1_000), (2_000_000, 2_000)]
        {
            let sleep = Idle::Sleep(Duration::from_micros(sleep_us));
            assert_eq!(idle.after_round(false, after(silence_us)), sleep, "after {silence_us} µs");
        }
        assert_eq!(idle.after_round(true, after(3_000_000)), Idle::Spin);
        assert_eq!(idle.after_round(false, after(3_000_001)), Idle::Spin);
    }
}
