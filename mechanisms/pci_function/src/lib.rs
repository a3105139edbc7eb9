//! PCI Express functions in software: configuration space, BARs, MSI-X, power states, FLR and the SR-IOV capability.
