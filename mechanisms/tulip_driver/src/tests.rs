//! The driver against the adapter it is for, over a socket.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tulip_device::{FramePort, TulipConfig, TulipFunction};
use vfio_user_server::{ServerOptions, VfioUserServer};

use crate::{NotSent, TulipDriver, TulipDriverConfig};

const MAC: [u8; 6] = [0x00, 0x15, 0x5D, 0x00, 0x00, 0x21];

#[derive(Default)]
struct Wire(Vec<Vec<u8>>);

impl FramePort for Wire {
    fn send(&mut self, frame: &[u8]) {
        self.0.push(frame.to_vec());
    }
}

struct Bench {
    function: Arc<Mutex<TulipFunction<Wire>>>,
    driver: TulipDriver,
    server: VfioUserServer,
    _directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("tulip.sock");
        let config = TulipConfig { mac: MAC, subsystem: (0x1011, 0x500B) };
        let function = Arc::new(Mutex::new(TulipFunction::new(config, Wire::default())));
        let options = ServerOptions::new("tulip");
        let server = VfioUserServer::bind(&socket, Arc::clone(&function), options).unwrap();
        let mut config = TulipDriverConfig::new(socket);
        (config.receive_ring, config.transmit_ring) = (16, 8);
        let driver = TulipDriver::open(&config).unwrap();
        Self { function, driver, server, _directory: directory }
    }

    /// A register access that is answered: those before it have been done.
    fn settle(&self) {
        self.driver.link().unwrap();
    }
}

fn frame(to: [u8; 6], number: usize) -> Vec<u8> {
    let mut frame = [&to[..], &MAC, &[0x88, 0xB5]].concat();
    frame.resize(60 + number * 11, number as u8);
    frame
}

#[test]
fn the_driver_finds_address_and_link() {
    let bench = Bench::new();
    assert_eq!(bench.driver.mac(), MAC);
    assert!(bench.driver.link().unwrap());
    bench.function.lock().unwrap().set_link(false);
    assert!(!bench.driver.link().unwrap());
}

#[test]
fn frames_go_round_both_rings_several_times() {
    let mut bench = Bench::new();
    for number in 0..50 {
        let out = frame([2, 0, 0, 0, 0, 7], number);
        bench.driver.send(&out).unwrap();
        bench.driver.demand().unwrap();
        bench.settle();
        let into = frame(MAC, number);
        {
            let mut function = bench.function.lock().unwrap();
            assert_eq!(std::mem::take(&mut function.port_mut().0), [out]);
            function.deliver(&into).unwrap();
        }
        let mut seen = Vec::new();
        let count = bench.driver.receive(8, |frame| {
            seen.resize(frame.len(), 0);
            frame.read_into(&mut seen);
        });
        assert_eq!((count, seen), (1, into));
    }
    let statistics = bench.driver.statistics();
    assert_eq!((statistics.sent, statistics.received, statistics.damaged), (50, 50, 0));
}

#[test]
fn a_full_ring_is_told_and_empties() {
    let mut bench = Bench::new();
    for number in 0..8 {
        bench.driver.send(&frame([2, 0, 0, 0, 0, 7], number)).unwrap();
    }
    let more = frame([2, 0, 0, 0, 0, 7], 8);
    assert_eq!(bench.driver.send(&more), Err(NotSent::Full));
    assert_eq!(bench.driver.send(&[0; 13]), Err(NotSent::Length));
    assert_eq!(bench.driver.send(&[0; 1537]), Err(NotSent::Length));
    bench.driver.demand().unwrap();
    bench.settle();
    assert_eq!(bench.driver.send(&more), Ok(()));
    assert_eq!(bench.function.lock().unwrap().port_mut().0.len(), 8);
}

#[test]
fn only_what_the_filter_names_is_received() {
    let mut bench = Bench::new();
    let other = [0x33, 0x33, 0, 0, 0, 1];
    let takes = |bench: &mut Bench, to| {
        let _ = bench.function.lock().unwrap().deliver(&frame(to, 0));
        bench.driver.receive(1, |_| ()) == 1
    };
    assert!(takes(&mut bench, MAC) && takes(&mut bench, [0xFF; 6]));
    assert!(!takes(&mut bench, other));
    bench.driver.set_filter(&[MAC, other]).unwrap();
    assert!(takes(&mut bench, MAC) && takes(&mut bench, other));
    assert!(!takes(&mut bench, [0xFF; 6]));
}

#[test]
fn a_server_that_ends_is_noticed() {
    let Bench { driver, server, .. } = Bench::new();
    driver.check().unwrap();
    server.shutdown();
    let begin = Instant::now();
    while driver.check().is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(5), "still there");
        std::thread::yield_now();
    }
    assert!(driver.link().is_err());
}
