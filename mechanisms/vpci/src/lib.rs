//! VPCI: the provider that exposes a PCI function to a guest over VMBus, and the guest's consumer.
