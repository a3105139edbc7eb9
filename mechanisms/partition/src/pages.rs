//! Pages of guest memory, handed out by the guest's own code.

use std::sync::Mutex;

use crate::GuestMemory;

/// Hands out page frames of guest memory. The guest's kernel, as it were.
#[derive(Debug)]
pub struct PageAllocator {
    /// Free runs: first frame and count, in order, not adjacent. Drivers contend, rarely.
    free: Mutex<Vec<(u64, u64)>>,
}

impl PageAllocator {
    /// All pages of guest memory, but for page frame 0.
    pub fn new(memory: &GuestMemory) -> Self {
        let mut free = Vec::new();
        for region in memory.regions() {
            let first = region.gpa / 4096;
            let count = region.length as u64 / 4096;
            let skip = u64::from(first == 0).min(count);
            if count > skip {
                free.push((first + skip, count - skip));
            }
        }
        Self { free: Mutex::new(free) }
    }

    fn free_runs(&self) -> std::sync::MutexGuard<'_, Vec<(u64, u64)>> {
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `count` adjacent pages; their frame numbers. `None` if there are not so many together.
    pub fn allocate(&self, count: usize) -> Option<Vec<u64>> {
        let wanted = u64::try_from(count).ok().filter(|count| *count > 0)?;
        let mut free = self.free_runs();
        let run = free.iter_mut().find(|run| run.1 >= wanted)?;
        let first = run.0;
        *run = (run.0 + wanted, run.1 - wanted);
        free.retain(|run| run.1 > 0);
        Some((first..first + wanted).collect())
    }

    /// Takes pages back that nobody uses any more.
    pub fn release(&self, frames: &[u64]) {
        let mut free = self.free_runs();
        for frame in frames {
            let at = free.partition_point(|run| run.0 < *frame);
            free.insert(at, (*frame, 1));
        }
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(free.len());
        for run in free.iter() {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 == run.0 => last.1 += run.1,
                _ => merged.push(*run),
            }
        }
        *free = merged;
    }

    /// Pages that are free.
    pub fn available(&self) -> u64 {
        self.free_runs().iter().map(|run| run.1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_memory::{PageSize, create_memfd};

    #[test]
    fn pages_are_had_once_and_again_when_released() {
        let fd = create_memfd("pages", 16 * 4096, PageSize::Base).unwrap();
        let memory = GuestMemory::empty().with(0, fd, 0, 16 * 4096).unwrap();
        let pages = PageAllocator::new(&memory);
        assert_eq!(pages.available(), 15);
        let first = pages.allocate(8).unwrap();
        let second = pages.allocate(4).unwrap();
        assert_eq!((first[0], second[0]), (1, 9));
        assert_eq!(pages.allocate(4), None);
        assert_eq!(pages.allocate(0), None);
        pages.release(&second);
        pages.release(&first);
        assert_eq!(pages.allocate(15).unwrap(), (1..16).collect::<Vec<_>>());
    }
}
