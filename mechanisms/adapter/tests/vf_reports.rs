//! What the adapter tells of the drivers of its VFs, and that it is what the data path does.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use adapter::control::{
    PrivateControl, SetVPortPolicy, VF_REPORT_CAPACITY, VfDriver, VfNumber, VfReport, VlanMode,
};
use avf_driver::{
    AvfDriver, DriverConfig, DriverMemory, Result as DriverResult,
    transport::{Interrupt, Transport, VfioUser},
};
use avf_protocol::registers::ATQT;
use common::{
    End, PATIENCE, frame, mac,
    setup::{AttachedVf, Setup, connect, recover},
};
use crossbeam_channel::Receiver;
use device_control::{DeviceControlClient, OidRequestKind, SentRequest, Target};
use ndis_protocol::*;
use pcivirt_protocol::{DevicePowerState, NtStatus};
use shared_memory::DoorbellPage;

const COMMAND: u16 = 0x04;
const MEMORY_SPACE: [u8; 2] = [0x02, 0];
const MEMORY_SPACE_AND_BUS_MASTER: [u8; 2] = [0x06, 0];

/// A function whose driver stops, as one that is slow, before one of its messages to the PF.
#[derive(Debug)]
struct Slow {
    function: Arc<VfioUser>,
    messages: AtomicU32,
    /// Before the message of this number.
    stop: u32,
    go_on: Receiver<()>,
}

impl Transport for Slow {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> DriverResult<()> {
        self.function.config_read(offset, data)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> DriverResult<()> {
        self.function.config_write(offset, data)
    }

    fn reset(&self) -> DriverResult<bool> {
        self.function.reset()
    }

    fn register_page(&self, page: usize) -> DriverResult<Option<DoorbellPage>> {
        self.function.register_page(page)
    }

    fn read(&self, offset: u32) -> DriverResult<u32> {
        self.function.read(offset)
    }

    fn write(&self, offset: u32, value: u32) -> DriverResult<()> {
        // Writes of 0 are part of the mailbox's set-up.
        if offset == ATQT
            && value != 0
            && self.messages.fetch_add(1, Ordering::AcqRel) + 1 == self.stop
        {
            // Nobody is there to say so: the test has failed.
            let _ = self.go_on.recv_timeout(PATIENCE);
        }
        self.function.write(offset, value)
    }

    fn share_memory(&self, memory: &DriverMemory) -> DriverResult<()> {
        self.function.share_memory(memory)
    }

    fn interrupts(&self, count: u16) -> DriverResult<Vec<Arc<dyn Interrupt>>> {
        self.function.interrupts(count)
    }

    fn check(&self) -> DriverResult<()> {
        self.function.check()
    }

    fn is_gone(&self) -> bool {
        self.function.is_gone()
    }

    fn gone_fd(&self) -> DriverResult<OwnedFd> {
        self.function.gone_fd()
    }
}

/// A client that hears of VFs.
struct Listener(DeviceControlClient);

impl Listener {
    fn new(setup: &Setup, name: &str) -> Self {
        Self(connect(setup.directory.path(), name))
    }

    fn ask(&self, room: usize) -> SentRequest {
        let code = PrivateControl::NextVfReport.code();
        self.0.send(Target::Private(code), &[], room).unwrap()
    }

    fn next(&self) -> (u16, VfDriver) {
        report(self.ask(VF_REPORT_CAPACITY))
    }

    /// All reports until a driver runs with this address: none of them says that it does with another one.
    fn until_running(&self, address: [u8; 6]) {
        loop {
            match self.next().1 {
                VfDriver::Absent | VfDriver::Present => {}
                driver => break assert_eq!(driver, running(address)),
            }
        }
    }
}

fn report(request: SentRequest) -> (u16, VfDriver) {
    let output = request.wait_output(PATIENCE).unwrap();
    let VfReport { vf, driver } = serde_json::from_slice(&output).unwrap();
    (vf, driver)
}

fn running(address: [u8; 6]) -> VfDriver {
    VfDriver::Running { mac: MacAddress::new(address).to_string() }
}

impl Setup {
    fn function(&self, attached: &AttachedVf) -> Arc<VfioUser> {
        let socket = self.server.adapter().socket(FunctionId::Vf(attached.vf));
        Arc::new(VfioUser::connect(&socket, PATIENCE).unwrap())
    }

    fn pf(&self) -> End {
        let socket = self.server.adapter().socket(FunctionId::Pf);
        End::open(DriverConfig { queue_pairs: 1, ..DriverConfig::new(socket) })
    }

    fn private<T: serde::Serialize>(&self, control: PrivateControl, input: &T) {
        let input = serde_json::to_vec(input).unwrap();
        self.host.private(control.code(), &input, 0, PATIENCE).unwrap();
    }
}

fn open(function: &Arc<impl Transport + 'static>) -> End {
    let config = DriverConfig::new("reached by another way");
    let (control, pairs) = AvfDriver::open_on(Arc::clone(function) as _, config).unwrap();
    End { control, pairs }
}

fn rebuild(end: &mut End) {
    end.pairs = end.control.rebuild(std::mem::take(&mut end.pairs)).unwrap();
}

/// A frame for the VF goes to the VF.
fn takes_its_frames(pf: &mut End, vf: &mut End, content: u8) {
    let sent = frame(mac(0), mac(50), &[content; 60]);
    pf.send(&sent);
    assert_eq!(vf.receive(), sent);
}

/// A frame for the VF goes to the default VPort, from where it came.
fn leaves_its_frames(pf: &mut End, content: u8) {
    let sent = frame(mac(0), mac(50), &[content; 60]);
    pf.send(&sent);
    assert_eq!(pf.receive(), sent);
}

#[test]
fn reports_follow_a_driver_through_its_life_and_agree_with_where_frames_go() {
    let setup = Setup::new();
    let listener = Listener::new(&setup, "listener");
    let first = listener.ask(VF_REPORT_CAPACITY);
    let attached = setup.attach_vf(0);
    assert_eq!(report(first), (0, VfDriver::Absent));
    let mut pf = setup.pf();
    leaves_its_frames(&mut pf, 0);

    // It begins, and goes on.
    let (go_on, gate) = crossbeam_channel::bounded(1);
    let function = setup.function(&attached);
    let slow = Slow { function, messages: AtomicU32::new(0), stop: 3, go_on: gate };
    let mut end = std::thread::scope(|scope| {
        let opening = scope.spawn(|| open(&Arc::new(slow)));
        assert_eq!(listener.next(), (0, VfDriver::Present));
        leaves_its_frames(&mut pf, 1);
        go_on.send(()).unwrap();
        opening.join().unwrap()
    });
    assert_eq!(listener.next(), (0, running(mac(0))));
    takes_its_frames(&mut pf, &mut end, 2);
    assert_eq!(setup.status().vfs[0].driver, running(mac(0)));

    // It ends in order, with nobody asking meanwhile.
    end.control.close(end.pairs).unwrap();
    assert_eq!(listener.next(), (0, VfDriver::Absent));
    leaves_its_frames(&mut pf, 3);

    // Another one comes, and is cut off.
    let function = setup.function(&attached);
    let mut end = open(&function);
    drop(function);
    listener.until_running(mac(0));
    takes_its_frames(&mut pf, &mut end, 4);
    drop(end);
    let mut last = listener.next().1;
    while last == VfDriver::Present {
        last = listener.next().1;
    }
    assert_eq!(last, VfDriver::Absent);
    leaves_its_frames(&mut pf, 5);

    // The VF goes with its driver.
    let end = open(&setup.function(&attached));
    listener.until_running(mac(0));
    let next = listener.ask(VF_REPORT_CAPACITY);
    setup.detach_vf(&attached);
    assert_eq!(report(next), (0, VfDriver::Gone));
    drop(end);
    assert_eq!(setup.status().vfs, []);
    setup.attach_vf(0);
    assert_eq!(listener.next(), (0, VfDriver::Absent));
}

#[test]
fn reports_follow_resets_power_and_the_bus() {
    let setup = Setup::new();
    let attached = setup.attach_vf(0);
    let listener = Listener::new(&setup, "listener");
    let function = setup.function(&attached);
    let (mut pf, mut end) = (setup.pf(), open(&function));
    // After a function-level reset a guest restores the configuration space.
    let come_back = |end: &mut End| {
        function.config_write(COMMAND, &MEMORY_SPACE_AND_BUS_MASTER).unwrap();
        rebuild(end);
    };
    listener.until_running(mac(0));

    setup.private(PrivateControl::ResetVf, &VfNumber { vf: 0 });
    assert_eq!(listener.next(), (0, VfDriver::Absent));
    leaves_its_frames(&mut pf, 0);
    recover(&mut end);
    listener.until_running(mac(0));
    takes_its_frames(&mut pf, &mut end, 1);

    let reset = SriovResetVf { vf_id: attached.vf };
    setup.oid(Oid::SriovResetVf, OidRequestKind::Set, &reset);
    assert_eq!(listener.next(), (0, VfDriver::Absent));
    leaves_its_frames(&mut pf, 2);
    come_back(&mut end);
    listener.until_running(mac(0));

    // Its own.
    end.control.reset().unwrap();
    assert_eq!(listener.next(), (0, VfDriver::Absent));
    rebuild(&mut end);
    listener.until_running(mac(0));

    function.config_write(COMMAND, &MEMORY_SPACE).unwrap();
    assert_eq!(listener.next(), (0, VfDriver::Present));
    leaves_its_frames(&mut pf, 3);
    setup.oid(Oid::SriovResetVf, OidRequestKind::Set, &reset);
    assert_eq!(listener.next(), (0, VfDriver::Absent));
    come_back(&mut end);
    listener.until_running(mac(0));

    for (power_state, content) in [(DevicePowerState::D3, 4), (DevicePowerState::D0, 5)] {
        let power = SriovSetVfPowerState { vf_id: attached.vf, power_state, wake_enable: false };
        setup.oid(Oid::SriovSetVfPowerState, OidRequestKind::Set, &power);
        leaves_its_frames(&mut pf, content);
    }
    assert_eq!(listener.next(), (0, VfDriver::Present));
    setup.oid(Oid::SriovResetVf, OidRequestKind::Set, &reset);
    come_back(&mut end);
    listener.until_running(mac(0));
    takes_its_frames(&mut pf, &mut end, 6);

    // An address that the administrator permits.
    let policy = SetVPortPolicy {
        vport: attached.vport.get(),
        allow_spoofing: true,
        allow_promiscuous: false,
        vlan: VlanMode::Transparent,
    };
    setup.private(PrivateControl::SetVPortPolicy, &policy);
    end.control.set_mac(avf_protocol::MacAddress(mac(9))).unwrap();
    assert_eq!(listener.next(), (0, running(mac(9))));
}

#[test]
fn each_client_is_told_for_itself() {
    let setup = Setup::new();
    let [early, leaving] = ["early", "leaving"].map(|name| Listener::new(&setup, name));
    let pending = [&early, &leaving].map(|listener| listener.ask(VF_REPORT_CAPACITY));
    let second = early.ask(VF_REPORT_CAPACITY).wait(PATIENCE).unwrap();
    assert_eq!(second.status, NtStatus::DEVICE_BUSY);
    drop((leaving, pending));

    // A request that is given up takes nothing with it; nor does one without room.
    let request = early.ask(VF_REPORT_CAPACITY);
    request.cancel();
    assert_eq!(request.wait(PATIENCE).unwrap().status, NtStatus::CANCELLED);
    setup.allocate_vf(0);
    let small = early.ask(VF_REPORT_CAPACITY - 1).wait(PATIENCE).unwrap();
    assert_eq!(small.status, NtStatus::BUFFER_TOO_SMALL);
    assert_eq!(usize::try_from(small.needed).unwrap(), VF_REPORT_CAPACITY);
    let (one, _) = setup.allocate_vf(1);
    assert_eq!([early.next(), early.next()], [(0, VfDriver::Absent), (1, VfDriver::Absent)]);

    let late = Listener::new(&setup, "late");
    assert_eq!([late.next(), late.next()], [(0, VfDriver::Absent), (1, VfDriver::Absent)]);
    let pending = [&early, &late].map(|listener| listener.ask(VF_REPORT_CAPACITY));
    setup.free_vf(one);
    assert_eq!(pending.map(report), [(1, VfDriver::Gone), (1, VfDriver::Gone)]);

    // Nobody is left waiting when the adapter ends.
    let pending = late.ask(VF_REPORT_CAPACITY);
    drop(setup.server);
    if let Ok(completion) = pending.wait(PATIENCE) {
        assert_ne!(completion.status, NtStatus::SUCCESS);
    }
}
