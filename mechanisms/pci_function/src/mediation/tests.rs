//! Stories of mediation.
