//! VMBus: the channel protocol's server and client, GPADLs and ring buffers, over a partition.
