//! vfio-user: message headers, commands and VFIO structures, as types.
