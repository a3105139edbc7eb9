//! NDIS: turns the PF driver contract and OIDs into typed requests to a PF miniport, validates, numbers and caches.
