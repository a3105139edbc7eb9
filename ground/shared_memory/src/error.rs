//! What can go wrong when memory is mapped or touched.

/// An error of mapping or reaching shared memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused to create the memory file.
    #[error("creating a shared memory file of {length} bytes{}", if *.huge { " on 2 MiB pages" } else { "" })]
    Create {
        /// Bytes asked for.
        length: usize,
        /// Whether huge pages were asked for.
        huge: bool,
        /// The kernel's answer.
        #[source]
        source: rustix::io::Errno,
    },
    /// The kernel refused to map the file.
    #[error("mapping {length} bytes at file offset {offset}")]
    Map {
        /// Byte offset in the file.
        offset: u64,
        /// Bytes to map.
        length: usize,
        /// The kernel's answer.
        #[source]
        source: rustix::io::Errno,
    },
    /// The file can be made shorter by its owner, which would turn later accesses into SIGBUS.
    #[error(
        "the memory file can shrink under its user: it must be a memfd that carries or allows F_SEAL_SHRINK"
    )]
    CanShrink,
    /// The file is on a file system whose files may make their users wait.
    #[error("the file is not memory: it must be a memfd, or a file on tmpfs or hugetlbfs")]
    NotMemory,
    /// The file ends before the range does.
    #[error(
        "the range of {length} bytes at {offset} lies beyond the end of its memory ({available} bytes)"
    )]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        length: usize,
        /// Bytes there are.
        available: u64,
    },
    /// An empty range, or one not aligned as needed.
    #[error("range at {offset} of {length} bytes is empty or not aligned to {alignment} bytes")]
    Misaligned {
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        length: usize,
        /// Alignment asked for, bytes.
        alignment: usize,
    },
    /// A DMA range overlaps one that is mapped already, or wraps around the address space.
    #[error("DMA range {iova:#x}+{length:#x} overlaps a mapped range or wraps")]
    Overlap {
        /// First DMA address.
        iova: u64,
        /// Bytes.
        length: u64,
    },
    /// No DMA range starts there with that length.
    #[error("no DMA range {iova:#x}+{length:#x} is mapped")]
    NotMapped {
        /// First DMA address.
        iova: u64,
        /// Bytes.
        length: u64,
    },
}
