//! Virtualization stack: the life of a VM network adapter, between its synthetic path and its VF.
