//! NIC switch: decides, for one frame arriving at one VPort, where it goes.
//!
//! Pure: no I/O, no clock, no allocation per frame, no unsafe. It moves no bytes and counts nothing: the
//! decision is a [`Verdict`], and counters, events and tests are computed from it. One thread owns a switch;
//! control reaches it between bursts, which is what makes [`NicSwitch::move_filter`] atomic: no frame is
//! ever seen by both VPorts or by none.
//!
//! Follows SPEC-NDIS-SRIOV §4 (VPorts), §6 (receive filters) and DESIGN.md ("Rules of the NIC switch").
//! Layer: mechanisms. Used by the adapter's data path.
//!
//! The rules, in the order in which they are applied:
//!
//! 1. *Anti-spoofing*: a source address that is not one of the ingress VPort's own is dropped.
//! 2. *VLAN policy of the ingress VPort* places the frame in a VLAN, or drops it.
//! 3. *Unicast* goes to the VPort whose receive filter matches MAC and VLAN; else from a VPort to the
//!    uplink, and from the uplink to the default VPort.
//! 4. *Broadcast and multicast* go to every VPort that accepts them, and from a VPort also to the uplink.
//! 5. A VPort that cannot receive yet (its driver has enabled no receive queue) does not take frames: what
//!    its filters match goes to the default VPort, also if it came from there.
//! 6. A VPort that is *away* is reached by way of the uplink: see [`NicSwitch::set_away`].
//! 7. *VLAN policy of each egress VPort* decides whether the frame may leave there, and with which tag.
//!
//! Nothing else goes back out where it came in.

mod filter_table;
mod frame;
mod policy;
mod switch;
mod vlan_mode;

pub use frame::{FrameKey, MacKey};
pub use policy::{VPortPolicy, VlanPolicy, VlanSet};
pub use switch::{
    DropReason, Egress, EgressList, Ingress, NicSwitch, ReceiveFilter, SwitchError, Verdict,
    VlanMatch,
};
pub use vlan_mode::VlanMode;
