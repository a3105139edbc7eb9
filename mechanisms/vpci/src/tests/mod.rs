//! Stories and properties of both cores.

mod channel;
mod function;
mod hostile;
mod properties;
mod removal;
mod stories;
mod transitions;
mod world;
