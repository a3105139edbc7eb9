//! The host side of VMs on VMBus: a virtual switch, and NetVSP offers that are served there.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use ndis_protocol::{MacAddress, VPortId};
use netvsp::server::{NetVsp, NicConfig, Upcall};
use nic_switch::{VPortPolicy, VlanMatch};
use partition::{
    Partition,
    host::{DeviceEvent, HostChannel, OpenedChannel, VmbusHost},
    user::{UserPartition, UserPartitionConfig},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use user_vm::{GuestInterfaceKind, StartFailureKind, UserVm, UserVmConfig, UserVmError};
use virtual_switch::{PortPolicy, SwitchHandle, SyntheticPort, VirtualSwitch, Worker};
use vmbus::server::{OfferParams, ServerConfig};
use vmbus_protocol::{GpadlId, Guid, INTERFACE_NETWORK};

/// Bytes of a VM's memory.
const MEMORY: usize = 48 << 20;

pub fn mac(number: u8) -> [u8; 6] {
    [0, 0x15, 0x5D, 0, 0, number]
}

/// A private virtual switch.
pub fn switch() -> Worker {
    Worker::start(VirtualSwitch::new(16).unwrap(), None).unwrap()
}

/// A VM on VMBus, with its host side.
pub struct Machine {
    pub vm: UserVm,
    pub host: Arc<VmbusHost>,
    pub partition: Arc<UserPartition>,
}

/// VM `number`, with address 10.0.0.(number + 1).
pub fn config(number: u8, kind: GuestInterfaceKind) -> UserVmConfig {
    let mut config = UserVmConfig::on_vmbus(format!("vm{number}"));
    config.addresses = vec![format!("10.0.0.{}/24", number + 1).parse().unwrap()];
    config.interface = kind;
    config
}

impl Machine {
    /// Starts a VM; `None`, with the reason printed, where the system forbids what it needs. `before` offers what is to be
    /// there from the start.
    pub fn start<T>(
        config: &UserVmConfig,
        before: impl FnOnce(&Arc<VmbusHost>) -> T,
    ) -> Option<(Self, T)> {
        let (partition, guest) =
            UserPartition::new(&UserPartitionConfig::with_memory(MEMORY)).unwrap();
        let partition = Arc::new(partition);
        let host = VmbusHost::start(partition.clone(), ServerConfig::default()).unwrap();
        let host = Arc::new(host);
        let offered = before(&host);
        match UserVm::spawn_on(config, guest) {
            Ok(vm) => Some((Self { vm, host, partition }, offered)),
            Err(UserVmError::Start { failure, .. })
                if failure.kind == StartFailureKind::NamespacesForbidden
                    || failure.message.contains("/dev/net/tun") =>
            {
                eprintln!("skipped: {failure}");
                None
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    /// A VM with one NIC, on the port of its number.
    pub fn with_nic(
        config: &UserVmConfig,
        switch: &SwitchHandle,
        number: u8,
        channels: u16,
    ) -> Option<(Self, Nic)> {
        Self::start(config, |host| Nic::offer(host, switch, 0, number, channels))
    }
}

/// What a NIC's host side was told by its NetVSP.
#[derive(Default)]
pub struct Told(Mutex<Vec<Upcall>>);

impl Told {
    pub fn any(&self, wanted: impl Fn(&Upcall) -> bool) -> bool {
        self.0.lock().unwrap().iter().any(wanted)
    }

    pub fn last_filter(&self) -> Option<netvsp_protocol::oid::PacketFilter> {
        self.0.lock().unwrap().iter().rev().find_map(|upcall| match upcall {
            Upcall::PacketFilter(filter) => Some(*filter),
            _ => None,
        })
    }
}

/// A NetVSP offer and the thread that serves it. Dropping it takes the NIC from the guest, as when the switch's process
/// ends.
pub struct Nic {
    pub told: Arc<Told>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Nic {
    /// Offers adapter `adapter` of a VM, on port and with address `number`.
    pub fn offer(
        host: &Arc<VmbusHost>,
        switch: &SwitchHandle,
        adapter: u32,
        number: u8,
        channels: u16,
    ) -> Self {
        let params = params(adapter, 0);
        let device = host.offer(params).unwrap();
        let told = Arc::new(Told::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut served = Served {
            device,
            adapter,
            number,
            channels,
            switch: switch.clone(),
            told: told.clone(),
            upcalls: None,
            subchannels: BTreeMap::new(),
        };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                served.turn();
            }
            served.leave();
        });
        Self { told, stop, thread: Some(thread) }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn params(adapter: u32, subchannel_index: u16) -> OfferParams {
    let instance = Guid::new(adapter, 0xC1EA, 0x4000, *b"clearway");
    OfferParams { subchannel_index, ..OfferParams::new(INTERFACE_NETWORK, instance) }
}

struct Served {
    device: HostChannel,
    adapter: u32,
    number: u8,
    channels: u16,
    switch: SwitchHandle,
    told: Arc<Told>,
    /// While the port is connected.
    upcalls: Option<Receiver<Upcall>>,
    subchannels: BTreeMap<u16, HostChannel>,
}

impl Served {
    fn port(&self) -> VPortId {
        VPortId::new(self.number.into()).unwrap()
    }

    fn turn(&mut self) {
        let mut set = vec![PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::IN)];
        set.extend(
            self.subchannels
                .values()
                .map(|sub| PollFd::from_borrowed_fd(sub.as_fd(), PollFlags::IN)),
        );
        let limit: Timespec = Duration::from_millis(1).try_into().unwrap();
        let _ = poll(&mut set, Some(&limit));
        while let Some(event) = self.device.next_event() {
            self.handle(0, event);
        }
        let indexes: Vec<u16> = self.subchannels.keys().copied().collect();
        for index in indexes {
            while let Some(event) = self.subchannels.get(&index).and_then(HostChannel::next_event) {
                self.handle(index, event);
            }
        }
        while let Some(upcall) = self.upcalls.as_ref().and_then(|upcalls| upcalls.try_recv().ok()) {
            self.upcall(upcall);
        }
    }

    fn handle(&mut self, index: u16, event: DeviceEvent) {
        match event {
            DeviceEvent::Open(opened) => {
                if index == 0 {
                    self.connect(&opened);
                }
                let (port, end) = (self.port(), opened.channel().unwrap());
                let open = move |nic: &mut NetVsp| nic.open(index, end);
                let opened = self.on_port(port, open);
                self.channel(index).opened(opened == Some(true)).unwrap();
            }
            DeviceEvent::Close => {
                if index == 0 {
                    self.disconnect();
                } else {
                    self.on_port(self.port(), move |nic| nic.close(index));
                }
                self.channel(index).closed().unwrap();
                if index == 0 {
                    self.subchannels.clear();
                }
            }
            DeviceEvent::GpadlTeardown(gpadl) => {
                self.device.gpadl_released(gpadl).unwrap();
            }
            DeviceEvent::Withdrawn => {
                self.subchannels.remove(&index);
            }
        }
    }

    fn channel(&self, index: u16) -> &HostChannel {
        if index == 0 { &self.device } else { &self.subchannels[&index] }
    }

    fn on_port<R: Send + 'static>(
        &self,
        port: VPortId,
        change: impl FnOnce(&mut NetVsp) -> R + Send + 'static,
    ) -> Option<R> {
        let changed = self.switch.run(move |switch| {
            let result =
                switch.port::<SyntheticPort>(port).map(|synthetic| change(synthetic.nic()));
            switch.refresh(port);
            result
        });
        changed.ok().flatten()
    }

    /// Connects the port to the switch.
    fn connect(&mut self, opened: &OpenedChannel) {
        let address = netvsp_protocol::MacAddress::new(mac(self.number));
        let nic = NicConfig { max_channels: self.channels, ..NicConfig::new(address) };
        let server = NetVsp::new(nic, opened.memory.map().clone());
        let (tell, upcalls) = channel();
        let synthetic = SyntheticPort::new(server, move |upcall| {
            let _ = tell.send(upcall);
        });
        let policy = PortPolicy {
            mac: MacAddress::new(mac(self.number)),
            receives: VlanMatch::UntaggedOrZero,
            vport: VPortPolicy::default(),
        };
        let port = self.port();
        let connected =
            self.switch.run(move |switch| switch.connect(port, policy, Box::new(synthetic)));
        connected.unwrap().unwrap();
        self.upcalls = Some(upcalls);
    }

    fn disconnect(&mut self) {
        if self.upcalls.take().is_some() {
            let port = self.port();
            let _ = self.switch.run(move |switch| drop(switch.disconnect(port)));
        }
    }

    fn upcall(&mut self, upcall: Upcall) {
        match &upcall {
            Upcall::MapGpadl { gpadl, kind } => {
                let memory = self.device.gpadl(GpadlId(*gpadl));
                let buffer = memory.and_then(|memory| memory.ranges.first().cloned());
                let kind = *kind;
                self.on_port(self.port(), move |nic| nic.gpadl_mapped(kind, buffer));
            }
            Upcall::OfferSubchannels { count } => {
                for index in 1..=*count {
                    let offered = self.device.offer(params(self.adapter, index)).unwrap();
                    self.subchannels.insert(index, offered);
                }
            }
            Upcall::Dead { error, .. } => panic!("the guest broke the protocol: {error}"),
            _ => {}
        }
        self.told.0.lock().unwrap().push(upcall);
    }

    /// The switch's process ends.
    fn leave(mut self) {
        self.disconnect();
        self.subchannels.clear();
    }
}

/// Cuts the guest off.
pub fn end_partition(machine: Machine) -> UserVm {
    let Machine { vm, host, partition } = machine;
    drop(host);
    assert_eq!(Arc::strong_count(&partition), 1, "somebody else holds the partition");
    assert!(partition.memory().regions().len() == 1);
    drop(partition);
    vm
}
