//! Bad input and faults, end to end: the real `clearway` program is started, and things go wrong around it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;
mod configuration;
mod deaths;
mod dma;
mod exhaustion;
mod garbage;
mod instances;
mod traffic;
