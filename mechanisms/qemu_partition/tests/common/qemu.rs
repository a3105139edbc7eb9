//! A QEMU that is played: its QMP socket, and the functions that it has, each connected to its relay as QEMU connects.

use std::{
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
};

use avf_driver::{
    AvfControl, AvfDriver, DriverConfig, MemorySource, QueuePair,
    transport::{Transport, VfioUser},
};
use pcie_protocol::{
    CapabilityId, CapabilityWalk, PowerManagementCapability, PowerManagementControl,
};
use serde_json::{Value, json};
use shared_memory::{Access, DmaAddress, PageSize, SharedMapping, create_memfd};

use super::LIMIT;

pub const ACPI: &str = "/machine/unattached/device[3]";

/// What this QEMU was started with, and what it has.
pub struct Machine {
    pub minor: u64,
    pub vfio_user: bool,
    pub shared: bool,
    pub acpi: bool,
    pub running: bool,
    /// Id, address, failover.
    pub nics: Vec<(&'static str, &'static str, bool)>,
    /// Id, power controller.
    pub ports: Vec<(&'static str, bool)>,
    pub devices: Vec<Device>,
    /// Why no device is added.
    pub refusal: Option<&'static str>,
    /// The guest has not agreed to have VFs: they are hidden from it.
    pub hides: bool,
    pub hidden: Vec<Device>,
    /// It is too early to press a button: so often.
    pub too_early: usize,
}

pub struct Device {
    pub id: String,
    pub bus: String,
    pub pair: Option<String>,
    pub socket: PathBuf,
    pub function: Option<Arc<VfioUser>>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            minor: 1,
            vfio_user: true,
            shared: true,
            acpi: false,
            running: true,
            nics: vec![("net0", "02:00:00:00:00:01", true), ("net1", "02:00:00:00:00:02", true)],
            ports: vec![("rp0", true), ("vfport0", false), ("vfport1", false)],
            devices: Vec::new(),
            refusal: None,
            hides: false,
            hidden: Vec::new(),
            too_early: 0,
        }
    }
}

pub struct Qemu {
    machine: Arc<Mutex<Machine>>,
    stream: Arc<Mutex<Option<UnixStream>>>,
    commands: Receiver<(String, Value)>,
    pub socket: PathBuf,
}

impl Qemu {
    pub fn start(folder: &Path, machine: Machine) -> Self {
        let socket = folder.join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let machine = Arc::new(Mutex::new(machine));
        let stream = Arc::new(Mutex::new(None));
        let (log, commands) = channel();
        let (its_machine, its_stream) = (machine.clone(), stream.clone());
        std::thread::spawn(move || {
            let Ok((mut connection, _)) = listener.accept() else { return };
            connection.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n").unwrap();
            *lock(&its_stream) = Some(connection.try_clone().unwrap());
            serve(connection, &its_machine, &log);
        });
        Self { machine, stream, commands, socket }
    }

    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    /// Waits for a command that changes something, which must be this one; its arguments.
    pub fn expect(&self, command: &str) -> Value {
        let (name, arguments) = self.commands.recv_timeout(LIMIT).unwrap();
        assert_eq!(name, command, "{arguments}");
        arguments
    }

    pub fn expect_del(&self, id: &str) {
        assert_eq!(self.expect("device_del"), json!({ "id": id }));
    }

    /// No command has come that was not expected.
    pub fn expect_nothing(&self) {
        assert_eq!(self.commands.try_recv().ok(), None);
    }

    pub fn say(&self, line: &str) {
        let mut stream = lock(&self.stream);
        stream.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub fn reset(&self) {
        self.say(r#"{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#);
    }

    /// The guest's virtio-net driver agrees to have VFs.
    pub fn negotiate(&self, id: &str) {
        let hidden = std::mem::take(&mut self.machine().hidden);
        for mut device in hidden {
            device.function = VfioUser::connect(&device.socket, LIMIT).ok().map(Arc::new);
            if device.function.is_some() {
                self.machine().devices.push(device);
            }
        }
        self.machine().hides = false;
        self.say(
            &json!({ "event": "FAILOVER_NEGOTIATED", "data": { "device-id": id } }).to_string(),
        );
    }

    /// It ends.
    pub fn kill(&self) {
        if let Some(stream) = &*lock(&self.stream) {
            stream.shutdown(Shutdown::Both).unwrap();
        }
        self.machine().devices.clear();
    }

    /// The function that the guest sees.
    pub fn function(&self, id: &str) -> Arc<VfioUser> {
        let machine = self.machine();
        let device = machine.devices.iter().find(|device| device.id == id).unwrap();
        device.function.clone().unwrap()
    }
}

/// Writes the command register as a guest does.
pub fn command(function: &VfioUser, bus_master: bool) {
    function.config_write(4, &[if bus_master { 6 } else { 0 }, 0]).unwrap();
}

/// Turns PME off, as Linux does right before it takes a function's driver from it.
pub fn pme_off(function: &VfioUser) {
    let mut config = [0; 256];
    for (offset, register) in (0..).step_by(4).zip(config.chunks_exact_mut(4)) {
        function.config_read(offset, register).unwrap();
    }
    let power =
        CapabilityWalk::new(&config).find(|found| found.id == CapabilityId::POWER_MANAGEMENT);
    let control = power.unwrap().offset + PowerManagementCapability::CONTROL_OFFSET;
    let off = u16::from(PowerManagementControl::new().with_pme_status(true));
    function.config_write(control, &off.to_le_bytes()).unwrap();
}

/// A driver of the guest, whose memory is in another place than that of others.
pub fn drive(function: &Arc<VfioUser>, place: u64) -> (AvfControl, Vec<QueuePair>) {
    let mut config = DriverConfig::without_socket();
    let length = config.memory_needed().unwrap().next_multiple_of(1 << 21);
    let fd = create_memfd("guest", length, PageSize::Base).unwrap();
    let mapping = SharedMapping::map(fd.as_fd(), 0, length, Access::ReadWrite).unwrap();
    let iova = DmaAddress(place << 32);
    config.memory = MemorySource::Given { mapping, fd, file_offset: 0, iova, offset: 0, length };
    AvfDriver::open_on(function.clone(), config).unwrap()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut connection: UnixStream, machine: &Mutex<Machine>, log: &Sender<(String, Value)>) {
    for line in BufReader::new(connection.try_clone().unwrap()).lines() {
        let Ok(line) = line else { return };
        let asked: Value = serde_json::from_str(&line).unwrap();
        let command = asked["execute"].as_str().unwrap();
        let arguments = &asked["arguments"];
        let answer = answer(&mut lock(machine), command, arguments);
        let changes =
            ["device_add", "device_del", "cont", "quit", "system_powerdown"].contains(&command);
        let answer = match answer {
            Ok(value) => json!({ "return": value, "id": asked["id"] }),
            Err(desc) => {
                json!({ "error": { "class": "GenericError", "desc": desc }, "id": asked["id"] })
            }
        };
        if connection.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
        if changes {
            let _ = log.send((command.to_owned(), arguments.clone()));
        }
        if command == "quit" {
            let _ = connection.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn answer(machine: &mut Machine, command: &str, arguments: &Value) -> Result<Value, String> {
    let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
    Ok(match command {
        "query-version" => json!({ "qemu": { "major": 11, "minor": machine.minor, "micro": 2 } }),
        "qom-list-types" if machine.vfio_user => json!([{ "name": "vfio-user-pci" }]),
        "qom-list-types" => json!([]),
        "query-memdev" => json!([{ "id": "mem", "share": machine.shared }]),
        "query-status" => json!({ "running": machine.running, "status": "running" }),
        "qom-list" if text("path").ends_with("-anon") => json!([]),
        "qom-list" => {
            let child =
                |name: &str, kind: &str| json!({ "name": name, "type": format!("child<{kind}>") });
            let mut all = vec![json!({ "name": "type", "type": "string" })];
            all.extend(machine.nics.iter().map(|(id, ..)| child(id, "virtio-net-pci")));
            all.extend(machine.ports.iter().map(|(id, _)| child(id, "pcie-root-port")));
            all.extend(machine.devices.iter().map(|device| child(&device.id, "vfio-user-pci")));
            Value::from(all)
        }
        "query-pci" => {
            let port = |(id, _): &(&str, bool)| {
                let behind = machine.devices.iter().filter(|device| device.bus == *id);
                let behind: Vec<_> = behind.map(|device| json!({ "qdev_id": device.id })).collect();
                json!({ "qdev_id": id, "pci_bridge": { "devices": behind } })
            };
            json!([{ "bus": 0, "devices": machine.ports.iter().map(port).collect::<Vec<_>>() }])
        }
        "qom-get" => return property(machine, &text("path"), &text("property")),
        "device_add" => {
            if let Some(refusal) = machine.refusal {
                return Err(refusal.to_owned());
            }
            let socket = PathBuf::from(arguments["socket"]["path"].as_str().unwrap());
            let pair = arguments["failover_pair_id"].as_str().map(str::to_owned);
            let (id, bus) = (text("id"), text("bus"));
            if machine.hides && pair.is_some() {
                machine.hidden.push(Device { id, bus, pair, socket, function: None });
                return Ok(json!({}));
            }
            let function = VfioUser::connect(&socket, LIMIT).map_err(|error| error.to_string())?;
            let function = Some(Arc::new(function));
            machine.devices.push(Device { id, bus, pair, socket, function });
            json!({})
        }
        "device_del" => {
            let id = text("id");
            if !machine.devices.iter().any(|device| device.id == id) {
                return Err(format!("Device '{id}' not found"));
            }
            if machine.too_early > 0 {
                machine.too_early -= 1;
                return Err(format!("Device {id} is already in the process of unplug"));
            }
            json!({})
        }
        _ => json!({}),
    })
}

fn property(machine: &Machine, path: &str, property: &str) -> Result<Value, String> {
    let id = path.rsplit('/').next().unwrap();
    let none = || format!("Property '{property}' not found");
    let nic = machine.nics.iter().find(|nic| nic.0 == id);
    let port = machine.ports.iter().find(|port| port.0 == id);
    let device = machine.devices.iter().find(|device| device.id == id);
    match property {
        "mac" => nic.map(|nic| json!(nic.1)),
        "failover" => nic.map(|nic| json!(nic.2)),
        "power_controller_present" => port.map(|port| json!(port.1)),
        "failover_pair_id" => device.map(|device| json!(device.pair)),
        "acpi-device" => Some(json!(ACPI)),
        "acpi-pci-hotplug-with-bridge-support" => (path == ACPI).then(|| json!(machine.acpi)),
        _ => None,
    }
    .ok_or_else(none)
}
