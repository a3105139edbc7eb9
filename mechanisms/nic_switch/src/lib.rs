//! NIC switch: decides, for one frame arriving at one VPort, where it goes.
