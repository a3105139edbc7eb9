//! How a BAR is put together: which of its pages are mapped, and which are trapped by whom.

use std::ops::Range;

const PAGE: u64 = 4096;

/// What is behind pages of a BAR.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Kind {
    /// Pages of the VF's file, the area with this number.
    Mapped(usize),
    /// The worker.
    Trapped,
    /// The VF's server.
    Registers,
}

/// Pages of a BAR.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Segment {
    /// Of the first byte in the BAR.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
    pub(crate) kind: Kind,
}

/// All pages that the range touches.
fn outer(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE * PAGE..range.end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}

/// The pages that lie in the range.
fn inner(range: &Range<u64>) -> Range<u64> {
    range.start.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)..range.end / PAGE * PAGE
}

/// Puts a BAR of `size` bytes together: of `areas` that may be mapped those are that are in whole pages, and of which
/// nothing is in `trapped`.
pub(crate) fn segments(size: u64, areas: &[Range<u64>], trapped: &[Range<u64>]) -> Vec<Segment> {
    let areas: Vec<_> = areas.iter().map(inner).collect();
    let trapped: Vec<_> = trapped.iter().map(outer).collect();
    let mut edges: Vec<u64> = areas
        .iter()
        .chain(&trapped)
        .flat_map(|range| [range.start, range.end])
        .filter(|edge| *edge < size)
        .chain([0, size])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let mut segments: Vec<Segment> = Vec::new();
    for (offset, end) in edges.iter().zip(edges.iter().skip(1)) {
        let area = areas.iter().position(|area| area.contains(offset));
        let kind = match area {
            _ if trapped.iter().any(|range| range.contains(offset)) => Kind::Trapped,
            Some(area) => Kind::Mapped(area),
            None => Kind::Registers,
        };
        let length = end - offset;
        match segments.last_mut() {
            Some(last) if last.kind == kind => last.length += length,
            _ => segments.push(Segment { offset: *offset, length, kind }),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(offset: u64, length: u64, kind: Kind) -> Segment {
        Segment { offset, length, kind }
    }

    #[test]
    fn doorbells_are_mapped_and_all_else_is_not() {
        let doorbells = [0x2000..0x3000, 0x4000..0x5000];
        assert_eq!(
            segments(0x1_0000, &doorbells, &[]),
            [
                segment(0, 0x2000, Kind::Registers),
                segment(0x2000, 0x1000, Kind::Mapped(0)),
                segment(0x3000, 0x1000, Kind::Registers),
                segment(0x4000, 0x1000, Kind::Mapped(1)),
                segment(0x5000, 0xB000, Kind::Registers),
            ]
        );
    }

    #[test]
    fn a_byte_that_is_trapped_takes_its_page_from_what_is_mapped() {
        let (all, bytes) = (0..0x4000, 0x1FFF..0x2001);
        assert_eq!(
            segments(0x4000, &[all], &[bytes]),
            [
                segment(0, 0x1000, Kind::Mapped(0)),
                segment(0x1000, 0x2000, Kind::Trapped),
                segment(0x3000, 0x1000, Kind::Mapped(0)),
            ]
        );
    }

    #[test]
    fn part_of_a_page_is_not_mapped() {
        assert_eq!(
            segments(0x4000, &[0x800..0x2800, 0x3001..0x3002], &[]),
            [
                segment(0, 0x1000, Kind::Registers),
                segment(0x1000, 0x1000, Kind::Mapped(0)),
                segment(0x2000, 0x2000, Kind::Registers),
            ]
        );
    }

    proptest! {
        #[test]
        fn every_page_is_in_one_segment_and_no_trapped_one_is_mapped(
            areas in proptest::collection::vec((0u64..0x2_0000, 0u64..0x8000), 0..6),
            trapped in proptest::collection::vec((0u64..0x2_0000, 1u64..0x8000), 0..6),
        ) {
            let range = |(start, length): &(u64, u64)| *start..start + length;
            let areas: Vec<_> = areas.iter().map(range).collect();
            let trapped: Vec<_> = trapped.iter().map(range).collect();
            let parts = segments(0x1_0000, &areas, &trapped);
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.offset, at);
                prop_assert!(part.length > 0 && part.length.is_multiple_of(PAGE));
                at += part.length;
                for byte in (part.offset..at).step_by(512) {
                    let is_trapped = trapped.iter().any(|range| outer(range).contains(&byte));
                    prop_assert_eq!(is_trapped, part.kind == Kind::Trapped);
                    if let Kind::Mapped(area) = part.kind {
                        prop_assert!(areas[area].contains(&byte));
                    }
                }
            }
            prop_assert_eq!(at, 0x1_0000);
        }
    }
}
