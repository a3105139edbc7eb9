//! Device control: the framing that carries IOCTLs, interface callbacks and OIDs over a Unix socket, as types.
