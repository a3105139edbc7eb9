//! A device that records everything, and a client of its PF driver, for the tests of this crate and of `device_control`.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub)]

use device_control_protocol::{ClientId, Completion, RequestId};
use pcivirt_protocol::*;
use pf_driver::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

pub const TOTAL_VFS: u16 = 4;
/// Long enough for anything that should happen.
pub const SOON: Duration = Duration::from_secs(10);

/// Everything a request can change in the device.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceState {
    pub config: Vec<Vec<u8>>,
    pub blocks: BTreeMap<(VfIndex, u32), Vec<u8>>,
    pub power: Vec<(DevicePowerState, bool)>,
    pub resets: Vec<VfIndex>,
    pub registers: BTreeMap<(VfIndex, u16, u64), u8>,
}

pub struct TestDevice {
    pub num_vfs: AtomicU16,
    pub state: Mutex<DeviceState>,
    pub luids: LuidTable,
    pub entries: InterfaceEntries,
    pub mitigable: bool,
    pub ranges: Mutex<Vec<SriovMitigatedRangesOutput>>,
}

impl TestDevice {
    pub fn new() -> Self {
        let vfs = usize::from(TOTAL_VFS);
        Self {
            num_vfs: AtomicU16::new(TOTAL_VFS),
            state: Mutex::new(DeviceState {
                config: (0u8..)
                    .take(vfs)
                    .map(|vf| vec![vf; PCI_EXPRESS_CONFIG_SPACE_SIZE])
                    .collect(),
                blocks: BTreeMap::new(),
                power: vec![(DevicePowerState::D0, false); vfs],
                resets: Vec::new(),
                registers: BTreeMap::new(),
            }),
            luids: LuidTable::new(&mut LuidGenerator::starting_at(100), TOTAL_VFS),
            entries: InterfaceEntries::STANDARD_2,
            mitigable: true,
            ranges: Mutex::new(vec![
                SriovMitigatedRangesOutput::new(1, 1, true, true),
                SriovMitigatedRangesOutput::new(8, 4, false, true),
            ]),
        }
    }

    pub fn snapshot(&self) -> DeviceState {
        self.state.lock().unwrap().clone()
    }
}

/// The resource of BAR 0 of all VFs.
pub fn bar_of_all_vfs() -> CmPartialResourceDescriptor {
    let length = u64::from(TOTAL_VFS) * 0x1_0000;
    CmPartialResourceDescriptor::memory(0xE000_0000, length, cm_resource_memory::BAR).unwrap()
}

impl SriovDevice for TestDevice {
    fn entries(&self) -> InterfaceEntries {
        self.entries
    }

    fn num_vfs(&self) -> u16 {
        self.num_vfs.load(Ordering::Relaxed)
    }

    fn read_vf_config(&self, vf: VfIndex, offset: u32, data: &mut [u8]) -> Result<(), NtStatus> {
        let offset = usize::try_from(offset).unwrap();
        let state = self.state.lock().unwrap();
        data.copy_from_slice(&state.config[usize::from(vf.0)][offset..offset + data.len()]);
        Ok(())
    }

    fn write_vf_config(&self, vf: VfIndex, offset: u32, data: &[u8]) -> Result<(), NtStatus> {
        let offset = usize::try_from(offset).unwrap();
        let mut state = self.state.lock().unwrap();
        state.config[usize::from(vf.0)][offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read_vf_config_block(
        &self,
        vf: VfIndex,
        block_id: u32,
        buffer: &mut [u8],
    ) -> Result<(), NtStatus> {
        let state = self.state.lock().unwrap();
        let block = state.blocks.get(&(vf, block_id)).ok_or(NtStatus::NOT_FOUND)?;
        for (to, from) in buffer.iter_mut().zip(block) {
            *to = *from;
        }
        Ok(())
    }

    fn write_vf_config_block(
        &self,
        vf: VfIndex,
        block_id: u32,
        buffer: &[u8],
    ) -> Result<(), NtStatus> {
        assert!((1..=128).contains(&buffer.len()));
        self.state.lock().unwrap().blocks.insert((vf, block_id), buffer.to_vec());
        Ok(())
    }

    fn query_probed_bars(&self) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        Ok([0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0])
    }

    fn query_probed_bars_2(&self, vf: VfIndex) -> Result<[u32; PCI_TYPE0_ADDRESSES], NtStatus> {
        Ok([0xFFFF_000C, 0xFFFF_FFFF, 0, 0, 0, vf.0.into()])
    }

    fn get_vendor_and_device(&self, vf: VfIndex) -> VendorAndDevice {
        VendorAndDevice { vendor_id: 0x8086, device_id: 0x1889 + vf.0 }
    }

    fn get_device_location(&self, vf: VfIndex) -> DeviceLocation {
        let function_number = u8::try_from(vf.0).unwrap() + 1;
        DeviceLocation { segment_number: 2, bus_number: 0x81, function_number }
    }

    fn reset_vf(&self, vf: VfIndex) -> Result<(), NtStatus> {
        self.state.lock().unwrap().resets.push(vf);
        Ok(())
    }

    fn set_vf_power_state(
        &self,
        vf: VfIndex,
        state: DevicePowerState,
        wake: bool,
    ) -> Result<(), NtStatus> {
        self.state.lock().unwrap().power[usize::from(vf.0)] = (state, wake);
        Ok(())
    }

    fn get_resource_for_bar(
        &self,
        vf: VfIndex,
        bar_index: u16,
    ) -> Result<CmPartialResourceDescriptor, NtStatus> {
        match bar_index {
            0 => vf_resource_for_bar(&bar_of_all_vfs(), self.num_vfs(), vf),
            _ => Ok(CmPartialResourceDescriptor::NULL),
        }
    }

    fn query_luid(&self) -> Result<Luid, NtStatus> {
        Ok(self.luids.device())
    }

    fn query_vf_luid(&self, vf: VfIndex) -> Result<Luid, NtStatus> {
        self.luids.vf_luid(vf)
    }

    fn query_luid_vf(&self, luid: Luid) -> Result<VfIndex, NtStatus> {
        self.luids.luid_vf(luid)
    }

    fn mitigable(&self) -> Option<&dyn MitigableDevice> {
        self.mitigable.then_some(self as &dyn MitigableDevice)
    }
}

impl MitigableDevice for TestDevice {
    fn mitigated_ranges(
        &self,
        _vf: VfIndex,
        bar_index: u16,
    ) -> Result<Vec<SriovMitigatedRangesOutput>, NtStatus> {
        assert!(bar_index < 6);
        Ok(if bar_index == 3 { self.ranges.lock().unwrap().clone() } else { Vec::new() })
    }

    fn read_mitigated_register(
        &self,
        vf: VfIndex,
        bar_index: u16,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), NtStatus> {
        let state = self.state.lock().unwrap();
        for (at, byte) in (offset..).zip(data) {
            *byte = state.registers.get(&(vf, bar_index, at)).copied().unwrap_or(0xEE);
        }
        Ok(())
    }

    fn write_mitigated_register(
        &self,
        vf: VfIndex,
        bar_index: u16,
        offset: u64,
        data: &[u8],
    ) -> Result<(), NtStatus> {
        let mut state = self.state.lock().unwrap();
        for (at, byte) in (offset..).zip(data) {
            state.registers.insert((vf, bar_index, at), *byte);
        }
        Ok(())
    }
}

pub fn driver_of(device: TestDevice) -> Arc<PfDriver<TestDevice>> {
    Arc::new(PfDriver::new(Arc::new(device)))
}

pub fn driver() -> Arc<PfDriver<TestDevice>> {
    driver_of(TestDevice::new())
}

/// A client in the same process: sends I/O controls, and collects their completions.
pub struct TestClient {
    pub driver: Arc<PfDriver<TestDevice>>,
    pub id: ClientId,
    next: AtomicU16,
}

/// A request on its way.
pub struct Sent {
    pub id: RequestId,
    completions: Receiver<Completion>,
}

impl Sent {
    /// The completion, which must come.
    pub fn completion(&self) -> Completion {
        self.completions.recv_timeout(SOON).expect("the request was not completed")
    }

    pub fn status(&self) -> NtStatus {
        self.completion().status
    }

    pub fn event(&self) -> SriovPfEvent {
        let completion = self.completion();
        assert_eq!(completion.status, NtStatus::SUCCESS);
        SriovPfEvent::read_from_bytes(&completion.output).unwrap()
    }

    /// It has not been completed.
    #[track_caller]
    pub fn assert_pending(&self) {
        assert!(self.completions.try_recv().is_err(), "the request has been completed");
    }
}

impl TestClient {
    pub fn new(driver: &Arc<PfDriver<TestDevice>>, id: u64) -> Self {
        Self { driver: Arc::clone(driver), id: ClientId(id), next: AtomicU16::new(0) }
    }

    pub fn send(&self, ioctl: SriovIoctl, input: &[u8], output_capacity: usize) -> Sent {
        self.send_code(ioctl.code(), input, output_capacity)
    }

    pub fn send_code(&self, code: IoctlCode, input: &[u8], output_capacity: usize) -> Sent {
        let (sender, completions): (Sender<Completion>, _) = channel();
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed).into());
        self.driver.ioctl(IoctlRequest {
            client: self.id,
            id,
            code,
            input: input.to_vec(),
            output_capacity,
            complete: Box::new(move |completion| {
                sender.send(completion).map_err(|unsent| unsent.0)
            }),
        });
        Sent { id, completions }
    }

    pub fn attach(&self) -> Sent {
        self.send(SriovIoctl::Attach, &[], 0)
    }

    pub fn attach_for_removal(&self) -> Sent {
        self.send(SriovIoctl::Attach, &1u32.to_le_bytes(), 0)
    }

    pub fn attached(driver: &Arc<PfDriver<TestDevice>>, id: u64) -> Self {
        let client = Self::new(driver, id);
        assert_eq!(client.attach().status(), NtStatus::SUCCESS);
        client
    }

    pub fn detach(&self) -> NtStatus {
        self.send(SriovIoctl::Detach, &[], 0).status()
    }

    pub fn notification(&self) -> Sent {
        self.send(SriovIoctl::Notification, &[], 4)
    }

    pub fn event_complete(&self, query_status: NtStatus) -> NtStatus {
        let input = SriovPnpEventComplete { query_status };
        self.send(SriovIoctl::EventComplete, input.as_bytes(), 0).status()
    }
}

/// A PnP request, or several that belong together, on a thread of their own.
pub struct PnpThread<R = NtStatus> {
    status: Receiver<R>,
}

impl<R: Send + 'static> PnpThread<R> {
    pub fn start(
        driver: &Arc<PfDriver<TestDevice>>,
        request: impl FnOnce(&PfDriver<TestDevice>) -> R + Send + 'static,
    ) -> Self {
        let (sender, status) = channel();
        let driver = Arc::clone(driver);
        std::thread::spawn(move || sender.send(request(&driver)));
        Self { status }
    }

    pub fn status(&self) -> R {
        self.status.recv_timeout(SOON).expect("the PnP thread is stuck")
    }

    #[track_caller]
    pub fn assert_waits(&self) {
        assert!(self.status.try_recv().is_err(), "the PnP thread did not wait");
    }
}

/// Waits until the driver waits for a client to complete this event.
pub fn wait_until_raised(driver: &PfDriver<TestDevice>, event: SriovPfEvent) {
    let start = Instant::now();
    while driver.pnp_state().waits_for() != Some(event) {
        assert!(start.elapsed() < SOON, "{event} was not raised");
        std::thread::yield_now();
    }
}
