//! PCI and PCI Express configuration registers and capabilities, as types.
