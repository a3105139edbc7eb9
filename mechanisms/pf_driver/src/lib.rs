//! The PF driver contract (pcivirt.h): interface callbacks, IOCTLs and the PnP state machine, for any PF driver.
