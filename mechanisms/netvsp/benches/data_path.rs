//! Cost of a packet from ring to switch and back.
fn main() {}
