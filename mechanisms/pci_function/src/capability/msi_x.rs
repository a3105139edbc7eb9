//! MSI-X: the capability, and its table and pending bits as memory of a BAR (PCIe 6.0 §6.1.4, §7.7.2).

use std::ops::Range;

use pcie_protocol::{
    Bar, BarIndex, Bars, CapabilityId, MSI_X_ENTRY_SIZE, MSI_X_MAX_VECTORS, MsiXControl,
    MsiXLocation, MsiXVectorControl, msi_x_pba_length,
};
use serde::{Deserialize, Serialize};

use super::{Id, Registers, Trigger};
use crate::{
    Effect, PciFunctionError, ResetKind,
    access::{DwordWrite, dword, dword_writes, read_bytes},
};

/// How many vectors a function has, and where their table and pending bits are.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct MsiXLayout {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// Where the table is: 16 bytes for each vector.
    pub table: MsiXLocation,
    /// Where the pending bit array is: 8 bytes for each 64 vectors.
    pub pba: MsiXLocation,
}

impl MsiXLayout {
    fn table_range(&self) -> Range<u64> {
        let start = u64::from(self.table.offset);
        start..start + u64::from(MSI_X_ENTRY_SIZE) * u64::from(self.vectors)
    }

    fn pba_range(&self) -> Range<u64> {
        let start = u64::from(self.pba.offset);
        start..start + u64::from(msi_x_pba_length(self.vectors))
    }

    /// Checks that table and pending bits lie inside `bars`, aligned and apart.
    pub(crate) fn check(&self, bars: &Bars<Option<Bar>>) -> Result<(), PciFunctionError> {
        let fits = |location: MsiXLocation, range: &Range<u64>| {
            location.bar.of(bars).is_some_and(|bar| range.end <= bar.size())
        };
        let (table, pba) = (self.table_range(), self.pba_range());
        let problem = if !fits(self.table, &table) {
            "the table is not inside a BAR of the function"
        } else if !fits(self.pba, &pba) {
            "the pending bits are not inside a BAR of the function"
        } else if self.table.bar == self.pba.bar && table.start < pba.end && pba.start < table.end {
            "table and pending bits overlap"
        } else {
            return Ok(());
        };
        Err(PciFunctionError::MsiXLayout(problem))
    }
}

/// An interrupt message: a 32-bit write.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct MsixMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// What becomes of an interrupt that the device wants to raise.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum MsixSignal {
    /// Send this message now.
    Message(MsixMessage),
    /// Masked, or the function may not send: the pending bit is set, and the message comes as an
    /// [`Effect::MsixMessage`] of the access that lets it out.
    Pending,
    /// MSI-X is off, and there is no other way: the interrupt is lost, as in hardware.
    Disabled,
    /// The function has no such vector.
    NoSuchVector,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Vector {
    message: MsixMessage,
    masked: bool,
    pending: bool,
}

impl Vector {
    const RESET: Self =
        Self { message: MsixMessage { address: 0, data: 0 }, masked: true, pending: false };
}

/// The MSI-X capability of a function, with its table and pending bits.
///
/// A vfio client that emulates the table for its guest (QEMU does) never writes to this one; its
/// interrupts go by eventfd, and of this object only [`MsiX::enabled`] and the pending bits matter.
#[derive(Clone, Debug)]
pub struct MsiX {
    layout: MsiXLayout,
    enabled: bool,
    function_masked: bool,
    vectors: Vec<Vector>,
}

/// The saved state of MSI-X.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct MsiXState {
    /// MSI-X Enable.
    pub enabled: bool,
    /// Function Mask.
    pub function_masked: bool,
    /// The table, one element for each vector.
    pub vectors: Vec<MsiXVectorState>,
}

/// The saved state of one MSI-X vector.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct MsiXVectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Masked by its entry.
    pub masked: bool,
    /// Its pending bit.
    pub pending: bool,
}

impl MsiX {
    /// MSI-X with that layout: off, every vector masked. Whether the layout fits the function's BARs is
    /// checked when the function is built.
    ///
    /// # Errors
    /// [`PciFunctionError::MsiXLayout`] for a number of vectors or an alignment that cannot be.
    pub fn new(layout: MsiXLayout) -> Result<Self, PciFunctionError> {
        if !(1..=MSI_X_MAX_VECTORS).contains(&layout.vectors) {
            return Err(PciFunctionError::MsiXLayout("a function has 1 to 2048 vectors"));
        }
        if (layout.table.offset | layout.pba.offset) & 7 != 0 {
            return Err(PciFunctionError::MsiXLayout(
                "table and pending bits start at multiples of 8",
            ));
        }
        let vectors = vec![Vector::RESET; usize::from(layout.vectors)];
        Ok(Self { layout, enabled: false, function_masked: false, vectors })
    }

    /// How many vectors there are, and where table and pending bits lie.
    pub fn layout(&self) -> &MsiXLayout {
        &self.layout
    }

    /// Whether interrupts are sent by MSI-X.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether all vectors are masked.
    pub fn function_masked(&self) -> bool {
        self.function_masked
    }

    /// Whether the vector is masked, by its entry or with all others. A vector that does not exist is.
    pub fn masked(&self, vector: u16) -> bool {
        self.function_masked || self.vector(vector).is_none_or(|vector| vector.masked)
    }

    /// Whether the vector's pending bit is set.
    pub fn pending(&self, vector: u16) -> bool {
        self.vector(vector).is_some_and(|vector| vector.pending)
    }

    /// Where the vector's message goes.
    pub fn message(&self, vector: u16) -> Option<MsixMessage> {
        self.vector(vector).map(|vector| vector.message)
    }

    /// Whether any byte of the range belongs to the table or the pending bits.
    pub fn is_memory(&self, bar: BarIndex, offset: u64, length: u64) -> bool {
        let hits = |location: MsiXLocation, range: Range<u64>| {
            location.bar == bar && offset < range.end && range.start < offset.saturating_add(length)
        };
        hits(self.layout.table, self.layout.table_range())
            || hits(self.layout.pba, self.layout.pba_range())
    }

    fn vector(&self, vector: u16) -> Option<&Vector> {
        self.vectors.get(usize::from(vector))
    }

    /// Raises an interrupt; `may_send` says whether the function may send messages at all.
    pub(crate) fn signal(&mut self, vector: u16, may_send: bool) -> MsixSignal {
        let open = may_send && !self.function_masked;
        match self.vectors.get_mut(usize::from(vector)) {
            None => MsixSignal::NoSuchVector,
            Some(_) if !self.enabled => MsixSignal::Disabled,
            Some(vector) if open && !vector.masked => MsixSignal::Message(vector.message),
            Some(vector) => {
                vector.pending = true;
                MsixSignal::Pending
            }
        }
    }

    /// Forgets that an interrupt is pending: its cause went away before it was sent.
    pub(crate) fn withdraw(&mut self, vector: u16) {
        if let Some(vector) = self.vectors.get_mut(usize::from(vector)) {
            vector.pending = false;
        }
    }

    /// Lets out the messages that nothing holds back any longer.
    pub(crate) fn release(&mut self, may_send: bool, effects: &mut Vec<Effect>) {
        if !may_send || !self.enabled || self.function_masked {
            return;
        }
        for (vector, entry) in (0..).zip(&mut self.vectors) {
            if entry.pending && !entry.masked {
                entry.pending = false;
                effects.push(Effect::MsixMessage { vector, message: entry.message });
            }
        }
    }

    /// Reads memory of a BAR; bytes that belong to neither table nor pending bits read zero.
    pub(crate) fn read_memory(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |register| self.read_memory_dword(bar, register));
    }

    fn read_memory_dword(&self, bar: BarIndex, register: u64) -> u32 {
        let MsiXLayout { table, pba, .. } = self.layout;
        if table.bar == bar && self.layout.table_range().contains(&register) {
            return self.read_entry(register - u64::from(table.offset));
        }
        if pba.bar == bar && self.layout.pba_range().contains(&register) {
            let first = usize::try_from(register - u64::from(pba.offset)).unwrap_or(usize::MAX);
            let pending = self.vectors.iter().skip(first.saturating_mul(8)).take(32);
            return (0..)
                .zip(pending)
                .fold(0, |word, (bit, vector)| word | u32::from(vector.pending) << bit);
        }
        0
    }

    /// The dword at `offset` of the table.
    fn read_entry(&self, offset: u64) -> u32 {
        let index = usize::try_from(offset / u64::from(MSI_X_ENTRY_SIZE)).unwrap_or(usize::MAX);
        let Some(vector) = self.vectors.get(index) else { return 0 };
        let [a0, a1, a2, a3, a4, a5, a6, a7] = vector.message.address.to_le_bytes();
        match offset % u64::from(MSI_X_ENTRY_SIZE) {
            0 => u32::from_le_bytes([a0, a1, a2, a3]),
            4 => u32::from_le_bytes([a4, a5, a6, a7]),
            8 => vector.message.data,
            _ => MsiXVectorControl::new().with_mask(vector.masked).into(),
        }
    }

    /// Writes memory of a BAR; pending bits, and bytes outside, are not changed.
    pub(crate) fn write_memory(
        &mut self,
        bar: BarIndex,
        offset: u64,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let table = self.layout.table_range();
        if self.layout.table.bar != bar {
            return;
        }
        for (register, write) in dword_writes(offset, data) {
            if table.contains(&register) {
                self.write_entry(register - table.start, write, effects);
            }
        }
    }

    fn write_entry(&mut self, offset: u64, write: DwordWrite, effects: &mut Vec<Effect>) {
        let old = self.read_entry(offset);
        let index = offset / u64::from(MSI_X_ENTRY_SIZE);
        let entry = usize::try_from(index).ok().and_then(|index| self.vectors.get_mut(index));
        let (Some(entry), Ok(vector)) = (entry, u16::try_from(index)) else { return };
        let before = *entry;
        let address = entry.message.address;
        match offset % u64::from(MSI_X_ENTRY_SIZE) {
            0 => {
                let low = write.merge(old, !0b11);
                entry.message.address = address & !0xFFFF_FFFF | u64::from(low);
            }
            4 => {
                let high = write.merge(old, u32::MAX);
                entry.message.address = u64::from(high) << 32 | address & 0xFFFF_FFFF;
            }
            8 => entry.message.data = write.merge(old, u32::MAX),
            _ => entry.masked = MsiXVectorControl::from(write.merge(old, 1)).mask(),
        }
        if *entry != before {
            let Vector { message, masked, .. } = *entry;
            effects.push(Effect::MsixVectorChanged { vector, masked, message });
        }
    }

    fn control(&self) -> MsiXControl {
        MsiXControl::new()
            .with_table_size_minus_one(self.layout.vectors - 1)
            .with_function_mask(self.function_masked)
            .with_enable(self.enabled)
    }
}

impl Registers for MsiX {
    type State = MsiXState;

    fn id(&self) -> Id {
        Id::Conventional(CapabilityId::MSI_X)
    }

    fn length(&self) -> u16 {
        12
    }

    fn read(&self, register: u16) -> u32 {
        match register {
            0 => dword(0, self.control().into()),
            4 => self.layout.table.register(),
            8 => self.layout.pba.register(),
            _ => 0,
        }
    }

    fn write(&mut self, register: u16, write: DwordWrite) -> Option<Trigger> {
        if register == 0 {
            let control = MsiXControl::from(write.high().merge(self.control().into(), 0xC000));
            self.enabled = control.enable();
            self.function_masked = control.function_mask();
        }
        None
    }

    fn reset(&mut self, _: ResetKind) {
        self.enabled = false;
        self.function_masked = false;
        self.vectors.fill(Vector::RESET);
    }

    fn save(&self) -> MsiXState {
        let vectors = self.vectors.iter().map(|&Vector { message, masked, pending }| {
            let MsixMessage { address, data } = message;
            MsiXVectorState { address, data, masked, pending }
        });
        MsiXState {
            enabled: self.enabled,
            function_masked: self.function_masked,
            vectors: vectors.collect(),
        }
    }

    fn restore(&mut self, state: &MsiXState) -> Result<(), PciFunctionError> {
        if state.vectors.len() != self.vectors.len() {
            return Err(PciFunctionError::SavedState("it has another number of MSI-X vectors"));
        }
        self.enabled = state.enabled;
        self.function_masked = state.function_masked;
        for (vector, saved) in self.vectors.iter_mut().zip(&state.vectors) {
            let MsiXVectorState { address, data, masked, pending } = *saved;
            let message = MsixMessage { address: address & !0b11, data };
            *vector = Vector { message, masked, pending };
        }
        Ok(())
    }
}
