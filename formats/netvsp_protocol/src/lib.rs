//! NVSP and RNDIS on the wire: the synthetic network adapter's messages, as types.
