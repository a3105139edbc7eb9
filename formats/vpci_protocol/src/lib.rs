//! VPCI on the wire: the messages by which a guest is given a PCI function over VMBus, as types.
