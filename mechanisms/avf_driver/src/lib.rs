//! AVF driver in user space: poll mode, bursts, zero-copy buffers, over any vfio-user socket that serves AVF.
