//! Linux network interfaces and namespaces: TAP devices, packet sockets, rtnetlink, unprivileged namespaces.
