//! pcivirt.h: the PF driver contract's structures, IOCTL codes, GUIDs and status values, as types.
