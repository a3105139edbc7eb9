//! Queues that are enabled before features are agreed on.
//!
//! QEMU enables a device's queues as soon as it has connected, for the back-end's feature that makes enabling possible is
//! one that it has seen offered. The `vhost` crate takes that message only once the feature was accepted, which QEMU does
//! with the driver's features, later. Until then such messages are taken here.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use rustix::net::{RecvFlags, recv};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VHOST_USER_SET_VRING_ENABLE.
const SET_VRING_ENABLE: u32 = 18;
/// Of a header's flags: the protocol's version, that this is a reply, that one is wanted.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The message (vhost-user "Message Specification", "Front-end message types").
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Message {
    request: u32,
    flags: u32,
    /// Bytes behind the header.
    size: u32,
    index: u32,
    enable: u32,
}

const _: () = assert!(size_of::<Message>() == 20);

/// The answer: 0 if it was done.
#[derive(Copy, Clone, IntoBytes, Immutable)]
#[repr(C)]
struct Answer {
    request: u32,
    flags: u32,
    size: u32,
    failed: [u32; 2],
}

const _: () = assert!(size_of::<Answer>() == 20);

/// A queue that is to be enabled, or disabled.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Enable {
    pub(crate) index: u32,
    pub(crate) enable: bool,
    needs_reply: bool,
}

impl Enable {
    /// Takes the next message, if it is such a one and all of it is there; else it stays.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn take(mut stream: &UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = [0; size_of::<Message>()];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let there = match recv(stream, &mut bytes, flags) {
            Ok((there, _)) => there,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        let message = Message::read_from_bytes(&bytes).ok().filter(|message| {
            there == bytes.len()
                && message.request == SET_VRING_ENABLE
                && message.flags & (VERSION_MASK | REPLY) == VERSION
                && message.size == 8
                && message.enable <= 1
        });
        let Some(message) = message else { return Ok(None) };
        stream.read_exact(&mut bytes)?;
        let (index, enable) = (message.index, message.enable == 1);
        Ok(Some(Self { index, enable, needs_reply: message.flags & NEED_REPLY != 0 }))
    }

    /// Says that it was done, if that is to be said.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) fn done(self, mut stream: &UnixStream) -> io::Result<()> {
        if !self.needs_reply {
            return Ok(());
        }
        let flags = VERSION | REPLY;
        let answer = Answer { request: SET_VRING_ENABLE, flags, size: 8, failed: [0; 2] };
        stream.write_all(answer.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_queue_is_enabled_and_that_is_said_to_whoever_wants_to_hear_it() {
        let (mut front_end, stream) = UnixStream::pair().unwrap();
        for needs_reply in [false, true] {
            let flags = if needs_reply { 9 } else { 1 };
            front_end.write_all(&words(&[18, flags, 8, 3, 1])).unwrap();
            let taken = Enable::take(&stream).unwrap().unwrap();
            assert_eq!(taken, Enable { index: 3, enable: true, needs_reply });
            taken.done(&stream).unwrap();
        }
        let mut answer = [0; 20];
        front_end.read_exact(&mut answer).unwrap();
        assert_eq!(answer.to_vec(), words(&[18, 5, 8, 0, 0]));
        front_end.set_nonblocking(true).unwrap();
        assert!(front_end.read(&mut answer).is_err(), "one answer");
    }

    #[test]
    fn all_else_stays_where_it_is() {
        let other: [&[u32]; 6] = [
            &[18, 1, 8, 3],
            &[2, 1, 8, 3, 1],
            &[18, 5, 8, 3, 1],
            &[18, 2, 8, 3, 1],
            &[18, 1, 12, 3, 1],
            &[18, 1, 8, 3, 2],
        ];
        for message in other {
            let (mut front_end, mut stream) = UnixStream::pair().unwrap();
            assert_eq!(Enable::take(&stream).unwrap(), None, "nothing is there");
            front_end.write_all(&words(message)).unwrap();
            assert_eq!(Enable::take(&stream).unwrap(), None, "{message:?}");
            let mut bytes = vec![0; 4 * message.len()];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, words(message));
        }
    }
}
