//! Frame offloads: packet classification, checksums, segmentation and receive-side scaling hashes.
