//! Host and guest on a thread each, sleeping when there is nothing to do, on rings and buffers that run full.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const FRAMES: u64 = 20_000;
/// Nobody sleeps longer than this without a signal; a test that needs it has lost a wake-up.
const LIMIT: Duration = Duration::from_secs(20);

/// Waits for the channel's signal; false when it never came.
fn sleep(channel: &vmbus::Channel) -> bool {
    channel.interrupt().wait(LIMIT).unwrap()
}

#[test]
fn frames_pass_between_threads_that_sleep_and_no_wake_up_is_lost() {
    let pair = Pair::up();
    let host = pair.host.clone();
    let (mut server, mut client) = (pair.server, pair.client);
    let (echoed, returned) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // The host sends every frame back to its guest; what finds no buffer waits in `late`.
        scope.spawn(|| {
            let mut late: VecDeque<Vec<u8>> = VecDeque::new();
            while returned.load(Ordering::Acquire) < FRAMES {
                let mut got = Vec::new();
                server.poll(0, pair.now, |burst| {
                    for frame in burst.frames() {
                        let mut bytes = vec![0; frame.length as usize];
                        frame.read_into(&mut bytes);
                        got.push(bytes);
                    }
                });
                let any = !got.is_empty();
                late.extend(got);
                while let Some(bytes) = late.front() {
                    let slice = host.slice(0, bytes.len()).unwrap();
                    slice.write_from(bytes);
                    let metadata = ReceiveMetadata::default();
                    if server.deliver(0, head(bytes), &[slice], &metadata).is_err() {
                        break;
                    }
                    echoed.fetch_add(1, Ordering::Relaxed);
                    late.pop_front();
                }
                server.announce(0);
                if !any && server.prepare_to_wait(0) && returned.load(Ordering::Acquire) < FRAMES {
                    assert!(sleep(server.channel(0).unwrap()), "the host slept on");
                    server.woken(0);
                }
            }
        });
        let mut sent = 0;
        let mut expected = 0;
        while expected < FRAMES {
            let mut got = 0;
            client.poll(0, |burst| {
                for frame in burst.frames() {
                    let mut bytes = vec![0; frame.length as usize];
                    frame.read_into(&mut bytes);
                    assert_eq!(number(&bytes), expected);
                    assert_eq!(bytes.len(), 60 + (expected % 900) as usize);
                    expected += 1;
                    got += 1;
                }
            });
            returned.store(expected, Ordering::Release);
            let before = sent;
            while sent < FRAMES {
                let bytes = frame(sent, 60 + (sent % 900) as usize);
                if client.send(0, &bytes, &TransmitMetadata::default()).is_err() {
                    break;
                }
                sent += 1;
            }
            client.flush(0);
            if got == 0 && sent == before && client.prepare_to_wait(0) {
                assert!(sleep(client.channel(0).unwrap()), "the guest slept on");
                client.woken(0);
            }
        }
        // The host may sleep on nothing but our last completions.
        client.channel(0).unwrap().signal_peer();
    });
    assert_eq!(echoed.load(Ordering::Relaxed), FRAMES);
}
