//! The side of whoever starts VMs or talks to them.

mod client;
mod program;
mod run;
mod signals;
mod spawn;

pub use client::VmClient;
pub use program::{Program, ProgramOutput, RunningProgram};
pub use run::run;
pub use spawn::UserVm;
