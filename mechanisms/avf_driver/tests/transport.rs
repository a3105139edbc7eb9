//! The driver over a transport that is not its own: what it is asked, in which order, and what it may leave out.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use avf_driver::{
    AvfControl, AvfDriver, DriverConfig, DriverError, DriverMemory, Event, QueuePair, Result,
    State,
    transport::{Interrupt, REGISTER_PAGES, Transport, VfioUser},
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use shared_memory::DoorbellPage;

use common::*;

/// A transport that writes down what it is asked, and has the socket's do it.
#[derive(Debug)]
struct Witness {
    inner: VfioUser,
    calls: Mutex<Vec<&'static str>>,
    resets: bool,
    maps: bool,
    gone: AtomicBool,
    gone_event: OwnedFd,
}

impl Witness {
    fn new(loopback: &Loopback, resets: bool, maps: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: VfioUser::connect(&loopback.socket(), PATIENCE).unwrap(),
            calls: Mutex::default(),
            resets,
            maps,
            gone: AtomicBool::new(false),
            gone_event: rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        })
    }

    fn note(&self, call: &'static str) -> Result<()> {
        self.calls.lock().unwrap().push(call);
        if self.is_gone() { Err(DriverError::DeviceGone) } else { Ok(()) }
    }

    /// What was asked since the last time.
    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Pulls the function out.
    fn pull_out(&self) {
        self.gone.store(true, Ordering::Release);
        rustix::io::write(&self.gone_event, &1u64.to_ne_bytes()).unwrap();
    }
}

impl Transport for Witness {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        self.note("config_read")?;
        self.inner.config_read(offset, data)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        self.note("config_write")?;
        self.inner.config_write(offset, data)
    }

    fn reset(&self) -> Result<bool> {
        self.note("reset")?;
        if self.resets { self.inner.reset() } else { Ok(false) }
    }

    fn register_page(&self, page: usize) -> Result<Option<DoorbellPage>> {
        self.note("register_page")?;
        if self.maps { self.inner.register_page(page) } else { Ok(None) }
    }

    fn read(&self, offset: u32) -> Result<u32> {
        self.note("read")?;
        self.inner.read(offset)
    }

    fn write(&self, offset: u32, value: u32) -> Result<()> {
        self.note("write")?;
        self.inner.write(offset, value)
    }

    fn share_memory(&self, memory: &DriverMemory) -> Result<()> {
        self.note("share_memory")?;
        self.inner.share_memory(memory)
    }

    fn interrupts(&self, count: u16) -> Result<Vec<Arc<dyn Interrupt>>> {
        self.note("interrupts")?;
        self.inner.interrupts(count)
    }

    fn check(&self) -> Result<()> {
        self.note("check")?;
        self.inner.check()
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire) || self.inner.is_gone()
    }

    fn gone_fd(&self) -> Result<OwnedFd> {
        self.note("gone_fd")?;
        Ok(self.gone_event.try_clone().unwrap())
    }
}

fn open(transport: &Arc<Witness>) -> (AvfControl, QueuePair) {
    let config = DriverConfig { interrupts: true, ..DriverConfig::without_socket() };
    let (control, mut pairs) = AvfDriver::open_on(transport.clone(), config).unwrap();
    (control, pairs.remove(0))
}

#[test]
fn a_transport_is_asked_in_its_order_and_never_for_a_frame() {
    let loopback = Loopback::new();
    let transport = Witness::new(&loopback, true, true);
    let (control, mut pair) = open(&transport);
    assert!(control.has_doorbell_pages());
    let calls = transport.calls();
    let pages = ["register_page"; REGISTER_PAGES];
    let bring_up = ["share_memory", "gone_fd", "config_read", "config_write", "read"];
    let expected = [&["config_read", "reset"][..], &pages, &bring_up].concat();
    assert_eq!(calls[..expected.len()], expected);
    let count = |call| calls.iter().filter(|made| **made == call).count();
    assert_eq!((count("interrupts"), count("share_memory"), count("reset")), (1, 1, 1));
    loop_frames(&mut pair);
    assert_eq!(transport.calls(), Vec::<&str>::new(), "frames cost the transport nothing");
    // A sleeper costs one write: the interrupt is armed.
    assert!(!pair.rx.arm().unwrap(), "no frame waits");
    assert_eq!(transport.calls(), ["write"]);
    drop((control, pair));
    assert_eq!(Arc::strong_count(&transport), 1, "the transport goes with the driver");
}

#[test]
fn a_transport_that_neither_resets_nor_maps_leaves_both_to_the_driver() {
    let loopback = Loopback::new();
    let transport = Witness::new(&loopback, false, false);
    let (control, mut pair) = open(&transport);
    assert!(!control.has_doorbell_pages());
    assert_eq!(control.state(), State::Running);
    transport.calls();
    loop_frames(&mut pair);
    assert!(transport.calls().iter().all(|call| *call == "write"), "doorbells are written");
    control.close(vec![pair]).unwrap();
}

#[test]
fn a_function_is_gone_when_its_transport_says_so() {
    let loopback = Loopback::new();
    let transport = Witness::new(&loopback, true, true);
    let (mut control, mut pair) = open(&transport);
    loop_frames(&mut pair);
    let sleeper = std::thread::spawn(move || {
        while !pair.rx.is_stopped() {
            pair.rx.wait(Some(PATIENCE)).unwrap();
        }
        pair
    });
    transport.pull_out();
    let mut ready = [PollFd::from_borrowed_fd(control.server_fd(), PollFlags::IN)];
    let limit = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "a sleeper is told");
    wait_for_event(&mut control, Event::DeviceGone);
    let pair = sleeper.join().unwrap();
    assert_eq!(control.state(), State::Gone);
    assert!(control.poll_events(Instant::now()).unwrap().is_empty());
    assert!(matches!(control.stats(), Err(DriverError::DeviceGone)));
    assert!(matches!(control.close(vec![pair]), Err(DriverError::DeviceGone)));
}
