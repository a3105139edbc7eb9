//! NDIS: turns the PF driver contract and OIDs into typed requests to a PF miniport, validates, numbers and caches.
mod features;
mod keywords;
mod miniport;

pub use features::ActiveFeatures;
pub use keywords::{KeywordError, Keywords, Preference};
pub use miniport::*;
