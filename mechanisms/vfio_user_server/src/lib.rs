//! vfio-user server: serves one PCI function to one client at a time on a Unix socket.
