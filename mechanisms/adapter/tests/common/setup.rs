//! An adapter behind its control socket, and an overlying driver that manages it.

use std::time::Instant;

use adapter::{
    AdapterConfig, AdapterServer,
    control::{AdapterStatus, PrivateControl, STATUS_CAPACITY},
    control_socket,
};
use avf_driver::{DriverConfig, Event};
use device_control::{DeviceControlClient, DriverName, OidRequestKind};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::*;

use super::{End, PATIENCE, mac};

/// An adapter, and an overlying driver that manages it.
pub struct Setup {
    pub server: AdapterServer,
    pub host: DeviceControlClient,
    pub directory: tempfile::TempDir,
}

/// A VF with its VPort and filter.
pub struct AttachedVf {
    pub vf: VfId,
    pub vport: VPortId,
    pub filter: FilterId,
}

pub fn connect(directory: &std::path::Path, name: &str) -> DeviceControlClient {
    let name = DriverName::new(name).unwrap();
    DeviceControlClient::connect(control_socket(directory), &name, PATIENCE).unwrap()
}

impl Setup {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = AdapterConfig { total_vfs: 4, ..AdapterConfig::new("nic0", directory.path()) };
        let keywords = Keywords { sriov_preferred: true, num_vfs: Some(4), ..Keywords::default() };
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
        let server = AdapterServer::start(config, configuration).unwrap();
        let host = connect(directory.path(), "host");
        Self { server, host, directory }
    }

    pub fn oid<T: NdisStructure>(&self, oid: Oid, kind: OidRequestKind, input: &T) -> Vec<u8> {
        let completion = self.host.oid(kind, oid.code(), &input.emit(), 8192, PATIENCE).unwrap();
        assert_eq!(NdisStatus(completion.status.0), NdisStatus::SUCCESS, "{}", oid.name());
        completion.output
    }

    /// A VF without VPort, and its requestor id.
    pub fn allocate_vf(&self, number: u8) -> (VfId, RequestorId) {
        let parameters = VfParameters {
            switch_id: SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: Name::new("vm").unwrap(),
                vm_friendly_name: Name::new("vm").unwrap(),
                nic_name: Name::new("nic").unwrap(),
                permanent_mac: MacAddress::new(mac(number)),
                current_mac: MacAddress::new(mac(number)),
            },
            vf_id: None,
            requestor_id: None,
        };
        let answer = self.oid(Oid::NicSwitchAllocateVf, OidRequestKind::Method, &parameters);
        let answer = VfParameters::parse(&answer).unwrap();
        (answer.vf_id.unwrap(), answer.requestor_id.unwrap())
    }

    /// A VF with a VPort and a receive filter for its address, in the hands of a driver.
    pub fn guest(&self, number: u8) -> End {
        let AttachedVf { vf, .. } = self.attach_vf(number);
        let socket = self.server.adapter().socket(FunctionId::Vf(vf));
        End::open(DriverConfig::new(socket))
    }

    /// A VF with a VPort and a receive filter for its address.
    pub fn attach_vf(&self, number: u8) -> AttachedVf {
        let (vf, _) = self.allocate_vf(number);
        let vport = VPortParameters::new(FunctionId::Vf(vf), 1);
        let answer = self.oid(Oid::NicSwitchCreateVport, OidRequestKind::Method, &vport);
        let vport = VPortParameters::parse(&answer).unwrap().vport_id;
        let matches = FilterMatch::untagged(MacAddress::new(mac(number)));
        let filter = ReceiveFilterParameters::new(vport, matches);
        let answer = self.oid(Oid::ReceiveFilterSetFilter, OidRequestKind::Method, &filter);
        let filter = ReceiveFilterParameters::parse(&answer).unwrap().filter_id.unwrap();
        AttachedVf { vf, vport, filter }
    }

    /// Undoes that.
    pub fn detach_vf(&self, attached: &AttachedVf) {
        let AttachedVf { vf, vport, filter } = *attached;
        let clear = ReceiveFilterClearParameters { queue_id: 0, filter_id: Some(filter) };
        self.oid(Oid::ReceiveFilterClearFilter, OidRequestKind::Set, &clear);
        let delete = NicSwitchDeleteVPortParameters { vport_id: vport };
        self.oid(Oid::NicSwitchDeleteVport, OidRequestKind::Set, &delete);
        self.free_vf(vf);
    }

    pub fn free_vf(&self, vf_id: VfId) {
        let free = NicSwitchFreeVfParameters { vf_id };
        self.oid(Oid::NicSwitchFreeVf, OidRequestKind::Set, &free);
    }

    pub fn status(&self) -> AdapterStatus {
        let code = PrivateControl::Status.code();
        let answer = self.host.private(code, &[], STATUS_CAPACITY, PATIENCE).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }
}

/// A driver rebuilds what its PF has reset.
pub fn recover(end: &mut End) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "the driver was not told of a reset");
        let events = end.control.poll_events(Instant::now()).unwrap();
        if events.contains(&Event::ResetImpending) {
            break;
        }
        std::thread::yield_now();
    }
    end.pairs = end.control.rebuild(std::mem::take(&mut end.pairs)).unwrap();
}
