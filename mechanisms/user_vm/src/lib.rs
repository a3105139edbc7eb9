//! User-mode VM: an unprivileged process with its own memory and network namespace whose eth0 is carried by a VF.
