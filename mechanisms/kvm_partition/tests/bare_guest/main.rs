//! Hostile guests under a real KVM: bare machine code that posts garbage, floods, moves its pages while they are used,
//! and says nonsense to every hypercall and register. Each harms itself alone: this process goes on and holds no more than
//! before, and an honest guest beside it talks to its VMBus all the while.
//!
//! Without KVM every test says so and is skipped. `cargo xtask guest-tests kvm --only hostile` runs them anywhere.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod bus;
mod guest;
mod hypercalls;
mod machine;
mod puppet;
mod synic;
mod vmbus;
