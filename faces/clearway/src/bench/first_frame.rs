//! How long after ALLOCATE_VF a VF receives its first frame.
//!
//! Counted from the request to allocate: the VF, its VPort, its filter, its driver's mailbox and queues, until
//! the driver has a frame in hand that another VF sends all the while.

use std::time::{Duration, Instant};

use adapter::Adapter;
use anyhow::{Context, bail, ensure};
use arrayvec::ArrayVec;
use avf_driver::{AvfDriver, DriverConfig, RxSegment, TxQueue, TxSegment};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};

use super::{
    cores::{Cores, apart, nanoseconds, pin},
    nic::{Nic, VfOptions, vport},
    sample::Spread,
    traffic::{headers, mac},
};

const TIMES: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(5);
const SIZE: u16 = 64;

/// Measures, in milliseconds.
pub(crate) fn measure(cores: Cores) -> anyhow::Result<Spread> {
    apart(|| run(cores))
}

fn run(cores: Cores) -> anyhow::Result<Spread> {
    let mut nic = Nic::start(2, cores)?;
    let generator = nic.allocate()?;
    let mut vf = nic.open(generator, VfOptions { ring: 64, buffer_size: 2048 })?;
    pin(cores.client)?;
    let mut took = Vec::new();
    for _ in 0..TIMES {
        took.push(once(&nic.adapter, &mut vf.pair.tx).context("a VF's first frame")?);
    }
    Spread::of(took).context("nothing was measured")
}

fn once(adapter: &Adapter, generator: &mut TxQueue) -> anyhow::Result<f64> {
    let start = Instant::now();
    let address = MacAddress::new(mac(1));
    let (vf, _) = adapter.allocate_vf(address)?;
    let vport = vport(vf.get().into())?;
    adapter.create_vport(vport, FunctionId::Vf(vf), 1, InterruptModeration::default())?;
    let id = FilterId::new(1000).context("a filter id")?;
    adapter
        .set_filter(id, ReceiveFilter { mac: address, vlan: VlanMatch::UntaggedOrZero, vport })?;
    let (control, mut pairs) =
        AvfDriver::open(DriverConfig::new(adapter.socket(FunctionId::Vf(vf))))?;
    let rx = &mut pairs.first_mut().context("the VF has no queue pair")?.rx;
    let mut arrived = ArrayVec::<RxSegment, 8>::new();
    while rx.receive(&mut arrived) == 0 {
        send(generator)?;
        if start.elapsed() > PATIENCE {
            bail!("no frame within {PATIENCE:?}");
        }
    }
    let took = nanoseconds(start) / 1e6;
    ensure!(arrived.iter().all(|segment| segment.length == SIZE), "another frame arrived");
    arrived.drain(..).for_each(|segment| rx.free(segment.buffer));
    control.close(pairs)?;
    release(adapter, vf, id)?;
    Ok(took)
}

fn send(generator: &mut TxQueue) -> anyhow::Result<()> {
    // A full ring is full of frames that have nobody to go to yet.
    let Some(buffer) = generator.reserve() else { return Ok(()) };
    let bytes = generator.memory().bytes(&buffer).context("a buffer")?;
    bytes.write_from(&headers(SIZE, mac(1), mac(0)));
    let mut burst = ArrayVec::<TxSegment, 1>::new();
    burst.push(TxSegment::frame(buffer, SIZE));
    generator.transmit(&mut burst);
    burst.drain(..).for_each(|segment| generator.free(segment.buffer));
    Ok(())
}

fn release(adapter: &Adapter, vf: VfId, filter: FilterId) -> anyhow::Result<()> {
    adapter.clear_filter(filter)?;
    adapter.delete_vport(vport(vf.get().into())?)?;
    adapter.free_vf(vf)?;
    Ok(())
}
