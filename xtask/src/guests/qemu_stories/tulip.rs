//! A stock Debian kernel whose own tulip drives an emulated adapter, judged by what it prints.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{
    emulated_adapter::{self, EmulatedAdapter},
    guest::{Hardware, LinuxGuest, Slot},
    scene::Scene,
};
use crate::guests::PING_FUNCTIONS;

/// Bytes of data in a ping: from nearly none to all that a frame holds.
const PING_SIZES: [u32; 5] = [1, 56, 600, 1400, 1472];
/// How often the driver stops the receiver while the interface is up: when it first looks at the link's duplex, some
/// seconds after the interface has come up, and once more when it then finds that the transmitter has stopped. Each
/// time CSR5 says so, as it has to, and Linux may count a receive error; there is no frame to it.
const RESTARTS: u64 = 2;
/// Longer than the driver waits until it looks at the duplex, seconds.
const UNTIL_RESTART: u32 = 7;
/// Pings of each size.
const PINGS: u32 = 20;

/// Boots a guest whose own tulip drives an emulated adapter, has it ping the host behind that, take its driver out
/// and in again, and ping once more.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("emulated.sock");
    let adapter = EmulatedAdapter::serve(&socket)?;
    let script = script();
    let (slot, modules): (_, &[&str]) = (Slot::Conventional, &["tulip"]);
    let hardware = Hardware { slot, modules, ..Hardware::vf(&socket) };
    let mut guest = LinuxGuest::boot(scene, hardware, &script)?;
    guest.expect("booted")?;
    scene.say("the guest has booted");
    let mut sum = GuestCounters::default();
    for round in ["loaded", "loaded again"] {
        let driver = guest.expect("driver")?;
        ensure!(driver == "tulip", "the interface's driver is {driver}");
        let mac = guest.expect("mac")?;
        ensure!(mac == emulated_adapter::MAC, "the guest says its address is {mac}");
        scene.say(&format!("its tulip is {round}, MAC {mac}"));
        guest.expect("carrier")?;
        for size in PING_SIZES {
            guest.expect(&format!("pinged {size} bytes"))?;
        }
        guest.expect("pinged later")?;
        let text = guest.expect("counters")?;
        let counted = GuestCounters::parse(&text)
            .with_context(|| format!("the guest's counters read {text:?}"))?;
        scene.say(&format!(
            "its link is up; of {PINGS} pings with each of {PING_SIZES:?} bytes, and of those after its driver \
             has set the duplex, no answer was lost: {counted:?}"
        ));
        ensure!(counted.rx_errors <= RESTARTS, "errors were received");
        ensure!(counted.other_errors == 0, "the guest counts errors");
        sum = sum.plus(counted);
    }
    guest.expect("end")?;
    drop(guest);
    let (counted, host) = adapter.end();
    scene.say(&format!("the adapter counts {counted:?}, its host {host:?}"));
    ensure!(
        (sum.tx_packets, sum.rx_packets, sum.rx_bytes)
            == (counted.tx_frames, counted.rx_frames, counted.rx_bytes),
        "the guest counts {sum:?}"
    );
    ensure!(
        (counted.tx_frames, counted.rx_frames, counted.rx_bytes)
            == (host.received, host.sent, host.sent_bytes),
        "the host counts otherwise than the adapter"
    );
    ensure!(counted.bus_errors == 0, "a stock driver caused bus errors");
    Ok(())
}

/// Serves an emulated adapter until the process is ended.
pub(crate) fn serve(socket: &Path) -> Result<()> {
    let adapter = EmulatedAdapter::serve(socket)?;
    println!(
        "the guest's address is {}; {} answers",
        emulated_adapter::MAC,
        emulated_adapter::HOST
    );
    adapter.wait();
    Ok(())
}

fn script() -> String {
    let host = emulated_adapter::HOST;
    let sizes = PING_SIZES.map(|size| size.to_string()).join(" ");
    let counters = GuestCounters::FILES.join(" ");
    // Without IPv6 the guest sends nothing that it was not told to.
    format!(
        "{PING_FUNCTIONS}\
         round() {{\n\
         n=0; until [ -e /sys/class/net/eth0 ]; do n=$((n+1)); [ $n -gt 600 ] && break; usleep 100000; done\n\
         [ -e /sys/class/net/eth0 ] || {{ echo MARK failed no interface; dmesg; }}\n\
         echo MARK driver $(basename $(readlink /sys/class/net/eth0/device/driver))\n\
         echo MARK mac $(cat /sys/class/net/eth0/address)\n\
         echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6\n\
         ip link set eth0 up\n\
         ip addr add 10.0.0.2/24 dev eth0\n\
         n=0; until [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do n=$((n+1)); [ $n -gt 600 ] && break; usleep 100000; done\n\
         [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ] && echo MARK carrier || {{ echo MARK failed no carrier; dmesg; }}\n\
         for size in {sizes}; do\n\
         none_lost -A -c {PINGS} -s $size {host} && echo MARK pinged $size bytes || echo MARK failed ping $size\n\
         done\n\
         sleep {UNTIL_RESTART}\n\
         none_lost -c 3 {host} && echo MARK pinged later || echo MARK failed ping later\n\
         sleep 1\n\
         ip link set eth0 down\n\
         cd /sys/class/net/eth0/statistics\n\
         echo MARK counters $(cat {counters})\n\
         cd /\n\
         }}\n\
         round\n\
         grep eth0 /proc/interrupts\n\
         rmmod tulip || echo MARK failed rmmod\n\
         [ -e /sys/class/net/eth0 ] && echo MARK failed the interface stayed\n\
         insmod /modules/tulip.ko || echo MARK failed insmod\n\
         round\n"
    )
}

/// What Linux counts of an interface.
#[derive(Copy, Clone, Debug, Default)]
struct GuestCounters {
    tx_packets: u64,
    rx_packets: u64,
    rx_bytes: u64,
    rx_errors: u64,
    /// Errors and drops of all other kinds.
    other_errors: u64,
}

impl GuestCounters {
    const FILES: [&str; 14] = [
        "tx_packets",
        "rx_packets",
        "rx_bytes",
        "rx_errors",
        "tx_errors",
        "tx_dropped",
        "tx_carrier_errors",
        "rx_dropped",
        "rx_crc_errors",
        "rx_frame_errors",
        "rx_length_errors",
        "rx_fifo_errors",
        "rx_missed_errors",
        "collisions",
    ];

    fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let [tx_packets, rx_packets, rx_bytes, rx_errors, others @ ..] = numbers.as_slice() else {
            return None;
        };
        (numbers.len() == Self::FILES.len()).then(|| Self {
            tx_packets: *tx_packets,
            rx_packets: *rx_packets,
            rx_bytes: *rx_bytes,
            rx_errors: *rx_errors,
            other_errors: others.iter().sum(),
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            tx_packets: self.tx_packets + other.tx_packets,
            rx_packets: self.rx_packets + other.rx_packets,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            rx_errors: self.rx_errors + other.rx_errors,
            other_errors: self.other_errors + other.other_errors,
        }
    }
}
