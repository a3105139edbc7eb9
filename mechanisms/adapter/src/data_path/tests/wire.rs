//! A wire in memory: an uplink whose other end is the test.

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};

use uplink::{FrameBurst, LinkState, Uplink, UplinkError, UplinkSpec, UplinkStatistics};

/// What is on the wire. The mutex is shared by the test and the uplink it made.
#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    to_nic: VecDeque<Vec<u8>>,
    from_nic: Vec<Vec<u8>>,
    /// Frames that the medium takes before it is congested.
    room: usize,
    statistics: UplinkStatistics,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { room: usize::MAX, ..State::default() })))
    }

    /// The NIC's end.
    pub(super) fn end(&self) -> impl Uplink + use<> {
        End(self.clone())
    }

    /// Puts a frame on the wire, towards the NIC.
    pub(super) fn send(&self, frame: &[u8]) {
        self.0.lock().unwrap().to_nic.push_back(frame.to_vec());
    }

    /// Takes all frames that the NIC has sent.
    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap().from_nic)
    }

    /// From now on the medium takes only so many frames.
    pub(super) fn set_room(&self, frames: usize) {
        self.0.lock().unwrap().room = frames;
    }
}

/// The NIC's end of a [`Wire`].
struct End(Wire);

impl Uplink for End {
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError> {
        let mut state = self.0.0.lock().unwrap();
        burst.clear();
        while !burst.is_full()
            && let Some(frame) = state.to_nic.pop_front()
        {
            if burst.push(&frame) {
                state.statistics.received_frames += 1;
                state.statistics.received_bytes += frame.len() as u64;
            } else {
                state.statistics.received_too_long += 1;
            }
        }
        Ok(burst.len())
    }

    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError> {
        let mut state = self.0.0.lock().unwrap();
        let count = burst.len().min(state.room);
        for frame in burst.iter().take(count) {
            state.statistics.transmitted_frames += 1;
            state.statistics.transmitted_bytes += frame.len() as u64;
            state.from_nic.push(frame.to_vec());
        }
        state.room -= count;
        Ok(count)
    }

    fn link(&mut self) -> LinkState {
        LinkState::up(10_000)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn statistics(&self) -> UplinkStatistics {
        self.0.0.lock().unwrap().statistics
    }

    fn spec(&self) -> &UplinkSpec {
        &UplinkSpec::None
    }
}
