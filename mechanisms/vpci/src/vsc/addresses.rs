//! Where BARs are put.

use std::ops::Range;

use pcie_protocol::{Bar, BarIndex, BarKind, Bars};

use super::{BarPlace, VscError};

/// BARs do not share pages: they are mapped.
const PAGE: u64 = 4096;

/// Finds room for each BAR, the largest first, at multiples of its size.
pub(super) fn place(
    bars: &Bars<Option<Bar>>,
    aperture: &Range<u64>,
) -> Result<Bars<Option<BarPlace>>, VscError> {
    let mut order: Vec<(BarIndex, Bar)> =
        BarIndex::ALL.into_iter().filter_map(|index| Some((index, (*index.of(bars))?))).collect();
    order.sort_by_key(|(_, bar)| std::cmp::Reverse(bar.size()));
    let mut places = [None; 6];
    let mut next = aperture.start.max(PAGE);
    for (index, bar) in order {
        let size = bar.size();
        let align = size.max(PAGE);
        let limit = match bar.kind() {
            BarKind::Memory64 { .. } => aperture.end,
            BarKind::Memory32 { .. } => aperture.end.min(1 << 32),
            // No bus of this kind has I/O space.
            BarKind::Io => 0,
        };
        let room = next
            .checked_next_multiple_of(align)
            .and_then(|address| Some((address, address.checked_add(align)?)))
            .filter(|(_, end)| *end <= limit);
        let (address, end) = room.ok_or(VscError::NoRoom { size })?;
        next = end;
        *index.of_mut(&mut places) = Some(BarPlace { address, size });
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_aligned_and_apart_and_the_largest_comes_first() {
        let mut bars = [None; 6];
        bars[0] = Some(Bar::memory64(0x1_0000, true).unwrap());
        bars[2] = Some(Bar::memory32(0x80, false).unwrap());
        bars[3] = Some(Bar::memory64(0x4000, true).unwrap());
        let places = place(&bars, &(0xF000_1000..0xF010_0000)).unwrap();
        let at = |index: usize| places[index].map(|place| (place.address, place.size));
        assert_eq!(at(0), Some((0xF001_0000, 0x1_0000)));
        assert_eq!(at(3), Some((0xF002_0000, 0x4000)));
        assert_eq!(at(2), Some((0xF002_4000, 0x80)));
    }

    #[test]
    fn a_bar_that_does_not_fit_is_named() {
        let mut bars = [None; 6];
        bars[0] = Some(Bar::memory32(0x1000, false).unwrap());
        let above = (1 << 32)..(1 << 33);
        assert_eq!(place(&bars, &above), Err(VscError::NoRoom { size: 0x1000 }));
        bars[0] = Some(Bar::memory64(1 << 40, false).unwrap());
        assert_eq!(place(&bars, &above), Err(VscError::NoRoom { size: 1 << 40 }));
        assert_eq!(
            place(&bars, &(u64::MAX - 5..u64::MAX)),
            Err(VscError::NoRoom { size: 1 << 40 })
        );
    }
}
