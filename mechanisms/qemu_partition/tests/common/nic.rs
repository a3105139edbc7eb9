//! A real NIC.

use adapter::{AdapterConfig, AdapterServer, control_socket};
use device_control::{DeviceControlClient, DriverName, OidRequestKind};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::{
    FunctionId, MacAddress, Name, NdisStructure, NicSwitchDeleteVPortParameters,
    NicSwitchFreeVfParameters, Oid, SwitchId, VPortId, VPortParameters, VfId, VfOwner,
    VfParameters,
};
use tempfile::TempDir;
use vm_worker::control::OfferVf;

use super::LIMIT;

const ROOM: usize = 2048;

/// An adapter that listens, and a client of it.
pub struct Nic {
    pub client: DeviceControlClient,
    pub server: AdapterServer,
    pub directory: TempDir,
}

impl Nic {
    /// An adapter with VFs enabled, none of them allocated.
    pub fn start(vfs: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config =
            AdapterConfig { total_vfs: vfs, ..AdapterConfig::new("nic0", directory.path()) };
        let keywords =
            Keywords { sriov_preferred: true, num_vfs: Some(vfs), ..Keywords::default() };
        let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
        let server = AdapterServer::start(config, configuration).unwrap();
        let name = DriverName::new("stack").unwrap();
        let client =
            DeviceControlClient::connect(control_socket(directory.path()), &name, LIMIT).unwrap();
        Self { client, server, directory }
    }

    pub fn oid(&self, oid: Oid, kind: OidRequestKind, input: &[u8], room: usize) -> Vec<u8> {
        let done = self.client.oid(kind, oid.code(), input, room, LIMIT).unwrap();
        assert!(done.status.is_success(), "{oid}: {done:?}");
        done.output
    }

    /// Allocates a VF with a VPort of one queue pair.
    pub fn allocate(&self) -> u16 {
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]);
        let parameters = VfParameters {
            switch_id: SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: Name::new("web").unwrap(),
                vm_friendly_name: Name::new("web").unwrap(),
                nic_name: Name::new("net0").unwrap(),
                permanent_mac: mac,
                current_mac: mac,
            },
            vf_id: None,
            requestor_id: None,
        };
        let method = OidRequestKind::Method;
        let answer = self.oid(Oid::NicSwitchAllocateVf, method, &parameters.emit(), ROOM);
        let vf = VfParameters::parse(&answer).unwrap().vf_id.unwrap();
        let vport = VPortParameters::new(FunctionId::Vf(vf), 1).emit();
        self.oid(Oid::NicSwitchCreateVport, method, &vport, ROOM);
        vf.get()
    }

    /// Gives a VF back. Its VPort is the one after it.
    pub fn free(&self, vf: u16) {
        let set = OidRequestKind::Set;
        let vport_id = VPortId::new(u32::from(vf) + 1).unwrap();
        let vport = NicSwitchDeleteVPortParameters { vport_id }.emit();
        self.oid(Oid::NicSwitchDeleteVport, set, &vport, 0);
        let vf = NicSwitchFreeVfParameters { vf_id: VfId::new(vf).unwrap() }.emit();
        self.oid(Oid::NicSwitchFreeVf, set, &vf, 0);
    }

    pub fn offer(&self, serial: u32, vf: u16) -> OfferVf {
        OfferVf {
            adapter: 0,
            serial,
            vf_socket: self.directory.path().join(format!("vf{vf}.sock")),
            nic: control_socket(self.directory.path()),
            vf,
            mitigated_ranges: Default::default(),
            mac: None,
        }
    }
}
