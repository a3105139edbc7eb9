//! NDIS as its clients see it: requests as bytes above, a recording driver below.

mod enumeration;
mod exhaustion;
mod guards;
mod lifecycle;
mod ownership;
mod random;
mod sequences;
mod sriov_device;
