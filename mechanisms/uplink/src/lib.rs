//! Uplinks of a NIC: TAP, AF_PACKET, pcap replay and record, and a cable to another adapter.
