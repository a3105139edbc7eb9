//! Memory shared with guests: mappings, bounds-checked access, DMA maps, descriptor rings and frame copies.
//!
//! It decides nothing about devices: it maps file descriptors, translates DMA addresses and moves bytes.
//! Everything another process may change under our hands is touched only through this crate, which is
//! also where the workspace's `unsafe` for shared memory lives (`mapping`, `guard`, `slice`, `ring`, `doorbell`, `copy`).
//!
//! Layer: ground (ARCHITECTURE.md). Used by the AVF device and driver, the vfio-user server and the
//! adapter's data path.

mod copy;
mod dma;
mod doorbell;
mod error;
mod guard;
mod mapping;
mod ring;
mod slice;

pub use copy::{FrameCopy, copy_bytes, copy_frames, copy_method};
pub use dma::{Access, DmaAddress, DmaFault, DmaMap, DmaRegion, DmaWindow, TranslationCache};
pub use doorbell::DoorbellPage;
pub use error::MemoryError;
pub use guard::MemoryWatch;
pub use mapping::{PAGE_SIZE, PageSize, SharedMapping, create_memfd};
pub use ring::{DescriptorRing, DescriptorSlot};
pub use slice::SharedSlice;
