//! System calls that neither std nor rustix wraps for us.
//!
//! `unsafe` here: ioctls of the tun driver, socket calls of AF_PACKET (bind, options, sendmmsg), unshare and
//! fork. Each function takes and returns owned or borrowed Rust values; raw pointers live only
//! for the duration of the call that they are made for.
// Lengths of C structures and small constants, given in the kernel's types.
#![allow(unsafe_code, clippy::cast_possible_truncation)]

use std::{
    ffi::c_int,
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use rustix::{
    io::Errno,
    ioctl::{IntegerSetter, Opcode, Setter, opcode},
    thread::UnshareFlags,
};

use crate::NetworkError;

/// `struct ifreq` with its flags in use (linux/if.h).
#[repr(C)]
pub(crate) struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// The kernel's form of an interface's name.
pub(crate) fn interface_name(name: &str) -> Result<[u8; libc::IFNAMSIZ], NetworkError> {
    let bad =
        |byte: u8| byte == b'/' || byte == b':' || byte == b'%' || byte <= b' ' || byte == 127;
    let mut field = [0; libc::IFNAMSIZ];
    if name.is_empty()
        || name.len() >= field.len()
        || name == "."
        || name == ".."
        || name.bytes().any(bad)
    {
        return Err(NetworkError::BadName(name.to_owned()));
    }
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Ok(field)
}

// Numbers of linux/if_tun.h; the size in them is that of an int, whatever the argument is.
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const TUNSETCARRIER: Opcode = opcode::write::<c_int>(b'T', 226);

/// What the kernel may leave to us on a TAP device: checksums and TCP segmentation with ECN.
pub(crate) const TAP_OFFLOADS: usize =
    (libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN) as usize;

/// TUNSETIFF: makes `fd` the other side of the TAP device `name`.
pub(crate) fn tap_attach(
    fd: BorrowedFd<'_>,
    name: [u8; libc::IFNAMSIZ],
    vnet_header: bool,
) -> Result<(), Errno> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if vnet_header {
        flags |= libc::IFF_VNET_HDR;
    }
    let flags = i16::try_from(flags).map_err(|_| Errno::INVAL)?;
    let request = InterfaceRequest { name, flags, rest: [0; 22] };
    // SAFETY: TUNSETIFF reads one ifreq, whose layout and size are those of `InterfaceRequest`; writing
    // it back is of no interest to us and goes to the setter's own copy, which is as long.
    unsafe { rustix::ioctl::ioctl(fd, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }
}

/// TUNSETOFFLOAD: what the kernel may leave to the other side.
pub(crate) fn tap_set_offload(fd: BorrowedFd<'_>, offloads: usize) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes an integer in place of the pointer.
    unsafe { rustix::ioctl::ioctl(fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads)) }
}

/// TUNSETCARRIER: whether the interface has a carrier.
pub(crate) fn tap_set_carrier(fd: BorrowedFd<'_>, carrier: bool) -> Result<(), Errno> {
    // SAFETY: TUNSETCARRIER reads one int.
    unsafe { rustix::ioctl::ioctl(fd, Setter::<TUNSETCARRIER, c_int>::new(c_int::from(carrier))) }
}

/// Binds a packet socket to one interface and one protocol (in host byte order).
pub(crate) fn packet_bind(fd: BorrowedFd<'_>, index: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a sockaddr_ll of the length given, alive during the call.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    check(result)
}

/// Sets an option of level SOL_PACKET that takes an int.
pub(crate) fn packet_set_option(fd: BorrowedFd<'_>, option: c_int, value: c_int) -> io::Result<()> {
    set_option(fd, option, &value)
}

/// Makes the interface promiscuous for as long as the socket is open.
pub(crate) fn packet_set_promiscuous(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Turns the socket's receive queue into a ring of slots (PACKET_RX_RING).
pub(crate) fn packet_set_ring(
    fd: BorrowedFd<'_>,
    block_size: u32,
    blocks: u32,
    slot_size: u32,
    slots: u32,
) -> io::Result<()> {
    let request = libc::tpacket_req {
        tp_block_size: block_size,
        tp_block_nr: blocks,
        tp_frame_size: slot_size,
        tp_frame_nr: slots,
    };
    set_option(fd, libc::PACKET_RX_RING, &request)
}

fn set_option<T>(fd: BorrowedFd<'_>, option: c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is alive during the call and its own length is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result)
}

/// Packets that the kernel dropped on this socket since this was last asked (PACKET_STATISTICS).
pub(crate) fn packet_take_drops(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: `statistics` is writable for the `length` bytes given.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            ptr::from_mut(&mut statistics).cast(),
            &mut length,
        )
    };
    check(result).map(|()| statistics.tp_drops)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Most packets of one sendmmsg call.
pub(crate) const BURST: usize = 32;

/// sendmmsg with MSG_DONTWAIT: each element of `packets` as one packet, up to [`BURST`]; returns how many.
pub(crate) fn send_packets<const PARTS: usize>(
    fd: BorrowedFd<'_>,
    packets: &[[IoSlice<'_>; PARTS]],
) -> io::Result<usize> {
    // SAFETY: mmsghdr is plain data for which all zeros is a valid (empty) value.
    let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
    let count = packets.len().min(BURST);
    for (message, parts) in messages.iter_mut().zip(packets) {
        // IoSlice is guaranteed to have the layout of iovec; sendmmsg only reads through it.
        message.msg_hdr.msg_iov = parts.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_iovlen = PARTS;
    }
    // SAFETY: the first `count` headers point at parts that are readable, of the lengths given, and alive
    // until the call returns.
    let result = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT)
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// unshare, without CLONE_FILES.
pub(crate) fn unshare(namespaces: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: CLONE_FILES is the only flag that can break what other threads rely on.
    unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }
}

/// Runs `work` in a forked copy of this process, which must have one thread; returns the child's id.
///
/// The child exits with 0 or with the error number that `work` returned.
pub(crate) fn fork(work: impl FnOnce() -> io::Result<()>) -> io::Result<rustix::process::Pid> {
    // SAFETY: with one thread (the caller's promise, checked by it), the child is an ordinary copy of the
    // process, in which everything may be done; it leaves by _exit and so runs nobody's destructors.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = match work() {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        // SAFETY: _exit ends the process and touches nothing.
        unsafe { libc::_exit(code) };
    }
    check(child)?;
    rustix::process::Pid::from_raw(child).ok_or_else(|| io::ErrorKind::Other.into())
}
