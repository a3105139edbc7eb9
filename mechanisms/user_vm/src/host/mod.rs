//! The side of whoever starts VMs or talks to them.

mod client;
mod program;
mod run;
mod signals;
mod spawn;

/// How long a VM may take to answer what it can answer at once.
const ANSWER_TIME: std::time::Duration = std::time::Duration::from_secs(10);

pub use client::VmClient;
pub use program::{Program, ProgramOutput, RunningProgram};
pub use run::{run, run_on};
pub use spawn::UserVm;
