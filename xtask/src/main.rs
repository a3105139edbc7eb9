//! Tasks of the repository that are not part of the product: `cargo xtask --help`.

mod guests;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Tests in which stock QEMU and stock Debian kernels are the other end.
    GuestTests(guests::GuestTests),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::GuestTests(tests) => guests::run(&tests),
    }
}
