//! QEMU's vfio-user client, register by register.

use std::{
    path::Path,
    sync::{Arc, PoisonError},
    time::Instant,
};

use anyhow::{Result, ensure};
use vfio_user_server::{ServerOptions, VfioUserServer};

use super::{
    avf::{SHARE, Vf},
    copy_device::{self, CopyDevice},
    qemu::Qemu,
    qtest::{PciFunction, Qtest, message},
    stack::{AttachedVf, Frames, Stack},
};

/// Runs all of it; the AVF part against the VFs of two sockets, or of an adapter started here.
pub(crate) fn run(qemu: &Qemu, sockets: &[&Path]) -> Result<()> {
    println!("QEMU {}", qemu.version()?);
    step("a small device: registers, doorbell page, DMA, MSI-X, reset, another client", || {
        copy_device_under_qemu(qemu)
    })?;
    let frames = "two VFs: mailbox, virtchnl, a frame each way, MSI-X, reset";
    if let [first, second] = sockets {
        return step(frames, || frames_between_two_vfs(qemu, first, second));
    }
    ensure!(sockets.is_empty(), "the test needs two sockets, or none to start an adapter itself");
    let mut stack = Stack::start(4)?;
    let one = stack.attach("one", "02:c1:ea:00:01:01", 1)?;
    let two = stack.attach("two", "02:c1:ea:00:01:02", 1)?;
    step(frames, || {
        frames_between_two_vfs(qemu, &one.socket, &two.socket)?;
        let expected = Frames { received: 2, sent: 2, dma_faults: 0 };
        let (first, second) = (stack.frames(&one)?, stack.frames(&two)?);
        ensure!(
            (first, second) == (expected, expected),
            "the adapter counts {first:?} and {second:?}"
        );
        Ok(())
    })?;
    step("an address outside of the DMA map: a fault of that VF alone", || {
        dma_fault_of_one_vf(qemu, &stack, &one, &two)
    })?;
    step("kill -9 of the adapter: the device goes, a new adapter starts over stale sockets", || {
        adapter_dies(qemu, &mut stack, &one)
    })
}

fn step(what: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let result = test();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    println!("{verdict:6} {what} ({} ms)", start.elapsed().as_millis());
    result
}

fn copy_device_under_qemu(qemu: &Qemu) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("copy.sock");
    let device = CopyDevice::new()?;
    let server = VfioUserServer::bind(&path, Arc::clone(&device), ServerOptions::new("copy"))?;
    // The second round is another QEMU on the same socket.
    for _ in 0..2 {
        let mut qtest = Qtest::start(qemu, &[&path])?;
        let function = PciFunction::enable(&mut qtest, 0)?;
        ensure!(function.ids == copy_device::IDS, "{function:?}");
        ensure!(function.vectors() == copy_device::VECTORS, "{function:?}");
        let sizes: Vec<u64> =
            function.bars.iter().map(|bar| bar.map_or(0, |(_, size)| size)).collect();
        ensure!(sizes == [0x1_0000, 0, 0, 0x4000, 0, 0], "BAR sizes {sizes:x?}");
        let bar = function.bar(0)?;
        function.aim_msix(&mut qtest, 0x30_0000)?;
        qtest.write(0x10_0000, b"from the guest's memory and back")?;
        let go = |qtest: &mut Qtest, source: u32, vector: u16| {
            for (register, value) in [
                (copy_device::REG_SOURCE, source),
                (copy_device::REG_TARGET, 0x20_0000),
                (copy_device::REG_LENGTH, 32),
                (copy_device::REG_VECTOR, u32::from(vector)),
                (copy_device::REG_GO, 1),
            ] {
                qtest.write32(bar + register, value)?;
            }
            qtest.read32(bar + copy_device::REG_STATUS)
        };
        for vector in 0..copy_device::VECTORS {
            ensure!(go(&mut qtest, 0x10_0000, vector)? == 1);
            let target = 0x30_0000 + 4 * u64::from(vector);
            qtest.until("an interrupt", |qtest| {
                Ok((qtest.read32(target)? == message(vector)).then_some(()))
            })?;
        }
        ensure!(qtest.read(0x20_0000, 32)? == b"from the guest's memory and back");
        ensure!(go(&mut qtest, 0x8000_0000, 0)? == 2, "no memory there");
        function.bus_master(&mut qtest, false)?;
        ensure!(go(&mut qtest, 0x10_0000, 0)? == 2, "bus mastering is off");
        function.bus_master(&mut qtest, true)?;
        ensure!(go(&mut qtest, 0x10_0000, 0)? == 1);
        qtest.write32(bar + copy_device::DOORBELL, 0x1234)?;
        ensure!(qtest.read32(bar + copy_device::REG_DOORBELL)? == 0x1234, "the mapped doorbell");
        let wired = || device.lock().unwrap_or_else(PoisonError::into_inner).wired();
        ensure!(wired() == usize::from(copy_device::VECTORS));
        function.disable_msix(&mut qtest)?;
        ensure!(wired() == 0, "MSI-X is off");
    }
    let device = device.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(device.resets() >= 2, "QEMU resets a device at start");
    drop(device);
    server.shutdown();
    Ok(())
}

/// An Ethernet frame of an experimental type.
fn frame(to: &[u8; 6], from: &[u8; 6], text: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &[0x88, 0xB5], text].concat();
    frame.resize(64, 0);
    frame
}

fn frames_between_two_vfs(qemu: &Qemu, first: &Path, second: &Path) -> Result<()> {
    let mut qtest = Qtest::start(qemu, &[first, second])?;
    let mut vfs = [Vf::new(&mut qtest, 0, 0x10_0000)?, Vf::new(&mut qtest, 1, 0x10_0000 + SHARE)?];
    for round in ["first", "after a reset"] {
        for vf in &mut vfs {
            vf.open_mailbox(&mut qtest)?;
            vf.negotiate(&mut qtest)?;
            vf.start_queues(&mut qtest)?;
        }
        let [one, two] = &mut vfs;
        let (mac_one, mac_two) = (one.mac()?, two.mac()?);
        ensure!(mac_one != mac_two && !mac_one.is_zero(), "{mac_one:?} and {mac_two:?}");
        let there = frame(&mac_two.0, &mac_one.0, round.as_bytes());
        one.send(&mut qtest, &there)?;
        ensure!(two.receive_frame(&mut qtest)? == there, "the frame changed on its way");
        let back = frame(&mac_one.0, &mac_two.0, b"and back");
        two.send(&mut qtest, &back)?;
        ensure!(one.receive_frame(&mut qtest)? == back, "the frame changed on its way back");
        one.stop_queues(&mut qtest)?;
        one.reset(&mut qtest)?;
        two.reset(&mut qtest)?;
    }
    for vf in &vfs {
        vf.function().disable_msix(&mut qtest)?;
    }
    Ok(())
}

fn dma_fault_of_one_vf(
    qemu: &Qemu,
    stack: &Stack,
    one: &AttachedVf,
    two: &AttachedVf,
) -> Result<()> {
    let before = (stack.frames(one)?, stack.frames(two)?);
    let mut qtest = Qtest::start(qemu, &[&one.socket, &two.socket])?;
    let mut vfs = [Vf::new(&mut qtest, 0, 0x10_0000)?, Vf::new(&mut qtest, 1, 0x10_0000 + SHARE)?];
    for vf in &mut vfs {
        vf.open_mailbox(&mut qtest)?;
        vf.negotiate(&mut qtest)?;
        vf.start_queues(&mut qtest)?;
    }
    let [first, second] = &mut vfs;
    // Beyond the machine's 64 MiB: no memory was announced there.
    first.post(&mut qtest, 0x4000_0000, 64)?;
    qtest.until("the fault to be counted", |_| {
        Ok((stack.frames(one)?.dma_faults > before.0.dma_faults).then_some(()))
    })?;
    // The other VF does not notice, and the one itself is as new after a reset.
    let mac = (first.mac()?, second.mac()?);
    first.reset(&mut qtest)?;
    first.open_mailbox(&mut qtest)?;
    first.negotiate(&mut qtest)?;
    first.start_queues(&mut qtest)?;
    let there = frame(&mac.0.0, &mac.1.0, b"to the one that had a fault");
    second.send(&mut qtest, &there)?;
    ensure!(first.receive_frame(&mut qtest)? == there);
    let after = (stack.frames(one)?, stack.frames(two)?);
    ensure!(
        after.0.received == before.0.received + 1 && after.0.sent == before.0.sent,
        "{after:?}"
    );
    ensure!(after.1 == Frames { sent: before.1.sent + 1, ..before.1 }, "{after:?}");
    Ok(())
}

fn adapter_dies(qemu: &Qemu, stack: &mut Stack, vf: &AttachedVf) -> Result<()> {
    let mut qtest = Qtest::start(qemu, &[&vf.socket])?;
    let mut driver = Vf::new(&mut qtest, 0, 0x10_0000)?;
    driver.open_mailbox(&mut qtest)?;
    driver.negotiate(&mut qtest)?;
    stack.kill()?;
    ensure!(vf.socket.exists(), "kill -9 leaves the socket behind");
    qtest.until("the device to read as all ones", |qtest| {
        Ok((driver.status(qtest)? == u32::MAX).then_some(()))
    })?;
    stack.start_again()?;
    let again = stack.attach("one", "02:c1:ea:00:01:01", 1)?;
    ensure!(again.socket == vf.socket, "the same VF is on the same socket");
    let mut qtest = Qtest::start(qemu, &[&again.socket])?;
    let mut driver = Vf::new(&mut qtest, 0, 0x10_0000)?;
    driver.open_mailbox(&mut qtest)?;
    driver.negotiate(&mut qtest)?;
    Ok(())
}
