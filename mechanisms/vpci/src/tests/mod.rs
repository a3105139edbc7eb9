//! Stories and properties of both cores.

mod channel;
mod hostile;
mod properties;
mod removal;
mod stories;
mod transitions;
mod world;
