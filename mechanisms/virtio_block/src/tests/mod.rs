//! The whole device, driven by hand: what a driver asks for, and what only a hostile guest does.

mod driver;
mod hostile;
mod requests;
