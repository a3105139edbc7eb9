//! The adapter under a driver written from the manual, and under hostile ones.

mod driver;
mod hostile;
mod stories;
