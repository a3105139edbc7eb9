//! Building a function from a header, BARs and capability objects.

use pcie_protocol::{
    Bar, BarIndex, Bars, CONFIG_SPACE_SIZE, CONVENTIONAL_CONFIG_SPACE_SIZE, header_offset,
};

use crate::{
    Capability, Identity, PciFunction, PciFunctionError,
    bar_registers::BarRegisters,
    capability::Id,
    function::Placed,
    header::{Header, HeaderKind},
};

/// Describes a function; made by [`PciFunction::builder`] or [`PciFunction::vf_builder`].
///
/// Capabilities come into their list in the order in which they are given, each at the next multiple of
/// 16 from 0x40 (or 0x100, for extended ones) that is free, unless an offset is given.
#[derive(Debug)]
pub struct FunctionBuilder {
    kind: HeaderKind,
    identity: Identity,
    multi_function: bool,
    bars: Bars<Option<Bar>>,
    capabilities: Vec<(Option<u16>, Capability)>,
    twice: Option<BarIndex>,
}

impl FunctionBuilder {
    pub(crate) fn new(kind: HeaderKind, identity: Identity) -> Self {
        Self {
            kind,
            identity,
            multi_function: false,
            bars: [None; 6],
            capabilities: Vec::new(),
            twice: None,
        }
    }

    /// The device has more functions than this one. (VFs do not count.)
    #[must_use]
    pub fn multi_function(mut self) -> Self {
        self.multi_function = true;
        self
    }

    /// Puts `bar` behind register `index`. In a VF behind its PF this is the memory of the VF, which the
    /// VF BARs of its PF address; its own BARs read zero.
    #[must_use]
    pub fn bar(mut self, index: BarIndex, bar: Bar) -> Self {
        if index.of_mut(&mut self.bars).replace(bar).is_some() {
            self.twice = Some(index);
        }
        self
    }

    /// Adds a capability at the next free place of its list.
    #[must_use]
    pub fn capability(mut self, capability: impl Into<Capability>) -> Self {
        self.capabilities.push((None, capability.into()));
        self
    }

    /// Adds a capability at `offset` of configuration space.
    #[must_use]
    pub fn capability_at(mut self, offset: u16, capability: impl Into<Capability>) -> Self {
        self.capabilities.push((Some(offset), capability.into()));
        self
    }

    /// Makes the function, as it is after a conventional reset.
    ///
    /// # Errors
    /// An error of [`PciFunctionError`] for BARs or capabilities that are there twice, do not fit, or need
    /// what is not there.
    pub fn build(self) -> Result<PciFunction, PciFunctionError> {
        if let Some(bar) = self.twice {
            return Err(PciFunctionError::BarTwice(bar));
        }
        let bars = BarRegisters::new(self.bars)?;
        let mut placed: Vec<Placed> = Vec::new();
        for (offset, capability) in self.capabilities {
            if let Capability::MsiX(msi_x) = &capability {
                msi_x.layout().check(&self.bars)?;
            }
            place(&mut placed, offset, capability)?;
        }
        let first = link(&mut placed);
        placed.sort_by_key(|placed| placed.offset);
        let header = Header::new(self.kind, self.identity, self.multi_function, first, bars);
        Ok(PciFunction::from_parts(header, placed))
    }
}

/// Gives `capability` its place, `wanted` or the next one.
fn place(
    placed: &mut Vec<Placed>,
    wanted: Option<u16>,
    capability: Capability,
) -> Result<(), PciFunctionError> {
    let id = capability.id();
    let (name, length) = (id.name(), capability.length());
    if placed.iter().any(|other| other.capability.id() == id) {
        return Err(PciFunctionError::CapabilityTwice(name));
    }
    let list = match id {
        Id::Conventional(_) => usize::from(header_offset::END)..CONVENTIONAL_CONFIG_SPACE_SIZE,
        Id::Extended(_) => CONVENTIONAL_CONFIG_SPACE_SIZE..CONFIG_SPACE_SIZE,
    };
    let next = || {
        let ends = placed.iter().map(|placed| usize::from(placed.end()));
        ends.filter(|end| list.contains(end)).max().unwrap_or(list.start).next_multiple_of(16)
    };
    let start = wanted.map_or_else(next, usize::from);
    let end = start + usize::from(length);
    let error = |offset| PciFunctionError::CapabilityDoesNotFit { name, offset, length };
    let offset = u16::try_from(start).map_err(|_| error(u16::MAX))?;
    let overlaps = placed
        .iter()
        .any(|other| start < usize::from(other.end()) && usize::from(other.offset) < end);
    // Extended capabilities are found from 0x100 on, so that the first must be there.
    let first_extended = matches!(id, Id::Extended(_))
        && start != list.start
        && !placed.iter().any(|other| usize::from(other.offset) == list.start);
    if start < list.start
        || end > list.end
        || !start.is_multiple_of(4)
        || overlaps
        || first_extended
    {
        return Err(error(offset));
    }
    placed.push(Placed { offset, next: 0, capability });
    Ok(())
}

/// Points each capability at the next one of its list; returns where the first conventional one is.
fn link(placed: &mut [Placed]) -> u8 {
    let (mut conventional, mut extended) = (0, 0);
    for placed in placed.iter_mut().rev() {
        let next = match placed.capability.id() {
            Id::Conventional(_) => &mut conventional,
            Id::Extended(_) => &mut extended,
        };
        placed.next = std::mem::replace(next, placed.offset);
    }
    u8::try_from(conventional).unwrap_or(0)
}
