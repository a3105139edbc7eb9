//! Device control: serves and calls a PF driver over a Unix socket.
