//! A burst of received frames, each in one piece, on its way to the guest.

use arrayvec::ArrayVec;
use linux_network::VnetHeader;

/// Frames of one burst, at most.
pub(super) const BURST: usize = 64;

/// Frames with what is known of their checksums, in memory that is allocated once.
#[derive(Debug)]
pub(crate) struct Frames {
    memory: Box<[u8]>,
    max_frame: usize,
    places: ArrayVec<(usize, VnetHeader), BURST>,
}

impl Frames {
    /// Room for [`BURST`] frames of up to `max_frame` bytes.
    pub(super) fn new(max_frame: usize) -> Self {
        Self {
            memory: vec![0; max_frame * BURST].into_boxed_slice(),
            max_frame,
            places: ArrayVec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.places.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of all frames.
    pub(super) fn bytes(&self) -> u64 {
        self.places.iter().map(|(length, _)| *length as u64).sum()
    }

    /// The memory of the next frame.
    pub(super) fn next(&mut self) -> Option<&mut [u8]> {
        let start = self.places.len() * self.max_frame;
        self.memory.get_mut(start..start + self.max_frame)
    }

    /// Appends the first `length` bytes of what [`next`](Self::next) gave.
    pub(super) fn commit(&mut self, length: usize, header: VnetHeader) {
        let _ = self.places.try_push((length.min(self.max_frame), header));
    }

    /// The frames in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&VnetHeader, &[u8])> {
        self.places.iter().enumerate().map(|(index, (length, header))| {
            let start = index * self.max_frame;
            (header, self.memory.get(start..start + length).unwrap_or_default())
        })
    }
}
