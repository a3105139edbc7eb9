//! A burst of frames, each contiguous, in memory that is allocated once.

/// Frames that travel together between an uplink and the NIC.
///
/// Room for `capacity` frames of up to `max_frame` bytes is allocated when the burst is made, and never
/// again. A producer clears and fills it, a consumer iterates and, if it could not take all,
/// [`advance`](Self::advance)s past what it took.
#[derive(Debug)]
pub struct FrameBurst {
    memory: Box<[u8]>,
    stride: usize,
    max_frame: usize,
    /// Where each filled slot's frame lies in `memory`.
    frames: Vec<Place>,
    /// Frames already advanced past.
    first: usize,
    capacity: usize,
}

/// A frame's place in the burst's memory.
#[derive(Copy, Clone, Debug)]
struct Place {
    start: usize,
    length: usize,
}

impl FrameBurst {
    /// A burst of up to `capacity` frames of up to `max_frame` bytes each.
    pub fn new(capacity: usize, max_frame: usize) -> Self {
        // Whole cache lines and an odd number of them, so that the frames do not all fall into the same
        // cache sets. One byte more than a frame, so that a longer one shows.
        let lines = (max_frame + 1).div_ceil(64) | 1;
        let stride = lines * 64;
        Self {
            memory: vec![0; stride * capacity].into_boxed_slice(),
            stride,
            max_frame,
            frames: Vec::with_capacity(capacity),
            first: 0,
            capacity,
        }
    }

    /// Frames that fit, filled or not.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of the longest frame that fits.
    pub fn max_frame(&self) -> usize {
        self.max_frame
    }

    /// Frames that are in the burst and not advanced past.
    pub fn len(&self) -> usize {
        self.frames.len() - self.first
    }

    /// Whether no frame is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no further frame fits before the next [`clear`](Self::clear).
    pub fn is_full(&self) -> bool {
        self.frames.len() == self.capacity
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.first = 0;
    }

    /// Passes over the first `count` frames.
    pub fn advance(&mut self, count: usize) {
        self.first = (self.first + count).min(self.frames.len());
    }

    /// Frame `index` of those left.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let place = self.frames.get(self.first.checked_add(index)?)?;
        self.memory.get(place.start..place.start + place.length)
    }

    /// The frames left, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let frames = self.frames.get(self.first..).unwrap_or_default();
        frames.iter().map(|place| {
            self.memory.get(place.start..place.start + place.length).unwrap_or_default()
        })
    }

    /// Appends a copy of `frame`; false if the burst is full or the frame longer than it takes.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        let Some(slot) = self.reserve().and_then(|slot| slot.get_mut(..frame.len())) else {
            return false;
        };
        slot.copy_from_slice(frame);
        self.commit(frame.len());
        true
    }

    /// The memory of the next frame, [`max_frame`](Self::max_frame) bytes with whatever was there before,
    /// to be written and then [`commit`](Self::commit)ted; `None` if the burst is full.
    pub fn reserve(&mut self) -> Option<&mut [u8]> {
        self.reserve_bytes(self.max_frame)
    }

    /// As [`reserve`](Self::reserve) with one byte more, which only a frame that is too long reaches.
    pub(crate) fn reserve_with_sentinel(&mut self) -> Option<&mut [u8]> {
        self.reserve_bytes(self.max_frame + 1)
    }

    fn reserve_bytes(&mut self, length: usize) -> Option<&mut [u8]> {
        let start = self.next_slot()?;
        self.memory.get_mut(start..start + length)
    }

    /// Appends the first `length` bytes of what [`reserve`](Self::reserve) gave as a frame.
    ///
    /// `length` is cut to [`max_frame`](Self::max_frame); on a full burst nothing happens.
    pub fn commit(&mut self, length: usize) {
        if let Some(start) = self.next_slot() {
            let length = length.min(self.max_frame);
            self.frames.push(Place { start, length });
        }
    }

    /// Start of the next free slot.
    fn next_slot(&self) -> Option<usize> {
        (!self.is_full()).then(|| self.frames.len() * self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut burst = FrameBurst::new(3, 100);
        assert!(burst.push(&[1; 60]));
        assert!(burst.push(&[2; 100]));
        burst.reserve().unwrap()[..2].copy_from_slice(&[3, 4]);
        burst.commit(2);
        assert!(burst.is_full() && !burst.push(&[5; 10]) && burst.reserve().is_none());
        let frames: Vec<_> = burst.iter().map(<[u8]>::to_vec).collect();
        assert_eq!(frames, [vec![1; 60], vec![2; 100], vec![3, 4]]);
    }

    #[test]
    fn advancing_leaves_the_rest_in_order() {
        let mut burst = FrameBurst::new(3, 100);
        for byte in 0..3 {
            assert!(burst.push(&[byte; 20]));
        }
        burst.advance(2);
        assert_eq!((burst.len(), burst.get(0), burst.get(1)), (1, Some(&[2u8; 20][..]), None));
        burst.advance(5);
        assert!(burst.is_empty() && burst.is_full());
        burst.clear();
        assert!(burst.push(&[9; 20]));
        assert_eq!(burst.get(0), Some(&[9u8; 20][..]));
    }

    #[test]
    fn a_frame_longer_than_the_burst_takes_is_refused() {
        let mut burst = FrameBurst::new(1, 100);
        assert!(!burst.push(&[0; 101]));
        assert!(burst.is_empty());
    }
}
