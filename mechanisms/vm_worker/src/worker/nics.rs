//! Connections to NICs: what the functions of their VFs ask their PF drivers, and what these have to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use device_control::{DriverName, Target};
use device_control_protocol::{
    CallbackCode, MitigatedRegisterAccess, ProbedBars, VendorAndDevice, VfArgument,
};
use pcivirt_protocol::{NtStatus, SriovInvalidateBlock, SriovIoctl, VfIndex};
use vpci::vsp::{PfRequest, PfRequestId};
use zerocopy::IntoBytes;

use crate::{
    control::DeviceName,
    event::{Event, Events},
    link::{Call, Link},
    reply::Reply,
    vf::RegisterAccess,
};

/// When an invalidation is asked for again that could not be had.
const RETRY: Duration = Duration::from_secs(1);

/// What an answer of a NIC is for.
pub(super) enum Wait {
    /// For nobody.
    Nothing,
    /// A device that is being opened: [`VendorAndDevice`].
    Ids(DeviceName, u64),
    /// A device that is being opened: [`ProbedBars`].
    Bars(DeviceName, u64),
    /// A device's function.
    Pf(DeviceName, u64, PfRequestId),
    /// Whoever has the VF now.
    Invalidation(u16),
    /// A processor of the guest that accesses a mitigated register; whether it reads.
    Mitigated(Reply<[u8; 8]>, bool),
}

/// One NIC.
struct Nic {
    path: PathBuf,
    link: Link,
    connected: bool,
    /// Devices that use it.
    users: usize,
    waits: BTreeMap<u64, Wait>,
    /// VFs about whose blocks the PF driver was asked.
    asked: BTreeSet<u16>,
    /// VFs whose blocks somebody wants to know of.
    wanted: BTreeSet<u16>,
    /// When those are asked for again that could not be.
    retry: Option<Duration>,
}

/// All NICs whose VFs the VM has.
#[derive(Default)]
pub(super) struct Nics {
    nics: BTreeMap<u64, Nic>,
    next: u64,
    next_tag: u64,
}

/// A NIC, as a device names it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct NicNumber(u64);

impl Nics {
    /// The NIC at this control socket, for one more device.
    pub(super) fn acquire(
        &mut self,
        path: &Path,
        name: &DriverName,
        events: &Events,
    ) -> std::io::Result<NicNumber> {
        if let Some((number, nic)) = self.nics.iter_mut().find(|(_, nic)| nic.path == path) {
            nic.users += 1;
            return Ok(NicNumber(*number));
        }
        self.next += 1;
        let (number, events) = (self.next, events.clone());
        let tell = move |event| events.send(Event::Nic(number, event));
        let nic = Nic {
            path: path.to_owned(),
            link: Link::start(path.to_owned(), name.clone(), tell)?,
            connected: false,
            users: 1,
            waits: BTreeMap::new(),
            asked: BTreeSet::new(),
            wanted: BTreeSet::new(),
            retry: None,
        };
        self.nics.insert(number, nic);
        Ok(NicNumber(number))
    }

    /// A device does not use the NIC any more.
    pub(super) fn release(&mut self, number: NicNumber) {
        if let Some(nic) = self.nics.get_mut(&number.0) {
            nic.users -= 1;
            if nic.users == 0 {
                self.nics.remove(&number.0);
            }
        }
    }

    fn call(&mut self, number: u64, wait: Wait, target: Target, input: Vec<u8>, capacity: usize) {
        // Without a NIC nobody is left who waits.
        let Some(nic) = self.nics.get_mut(&number) else { return };
        self.next_tag += 1;
        let tag = self.next_tag;
        nic.waits.insert(tag, wait);
        nic.link.call(Call { tag, target, input, fds: Vec::new(), capacity });
    }

    fn callback(
        &mut self,
        nic: NicNumber,
        wait: Wait,
        code: CallbackCode,
        input: Vec<u8>,
        capacity: usize,
    ) {
        self.call(nic.0, wait, Target::Callback(code.to_u32()), input, capacity);
    }

    /// Asks who a VF is, and for its BARs.
    pub(super) fn describe(&mut self, nic: NicNumber, name: DeviceName, number: u64, vf: u16) {
        let argument = VfArgument { vf_index: VfIndex(vf) }.as_bytes().to_vec();
        let ids = CallbackCode::GetVendorAndDevice;
        let capacity = size_of::<VendorAndDevice>();
        self.callback(nic, Wait::Ids(name, number), ids, argument.clone(), capacity);
        let bars = CallbackCode::QueryProbedBars2;
        self.callback(nic, Wait::Bars(name, number), bars, argument, size_of::<ProbedBars>());
    }

    /// Asks the PF driver for what a function wants.
    pub(super) fn request(
        &mut self,
        nic: NicNumber,
        (name, number): (DeviceName, u64),
        id: PfRequestId,
        request: &PfRequest,
        vf: u16,
    ) {
        let (code, input, capacity) = request.callback(VfIndex(vf));
        self.callback(nic, Wait::Pf(name, number, id), code, input, capacity);
    }

    /// Asks the PF driver to read or write a mitigated register.
    pub(super) fn mitigated(&mut self, nic: NicNumber, vf: u16, access: RegisterAccess) {
        let RegisterAccess { bar, offset, length, value, reply } = access;
        let argument = MitigatedRegisterAccess {
            vf_index: VfIndex(vf),
            read: u8::from(value.is_none()),
            reserved: 0,
            bar_index: bar.get().into(),
            reserved2: 0,
            offset,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            reserved3: 0,
        };
        let data = value.as_ref().and_then(|value| value.get(..length)).unwrap_or_default();
        let input = [argument.as_bytes(), data].concat();
        let reads = value.is_none();
        let capacity = if reads { length } else { 0 };
        let code = CallbackCode::ReadWriteMitigatedRegister;
        self.callback(nic, Wait::Mitigated(reply, reads), code, input, capacity);
    }

    /// Asks to be told, from now on, which configuration blocks of a VF are to be read again.
    pub(super) fn watch(&mut self, number: NicNumber, vf: u16) {
        if let Some(nic) = self.nics.get_mut(&number.0) {
            nic.wanted.insert(vf);
        }
        self.ask(number.0);
    }

    /// Nobody wants to know any more. What was asked stays open until the PF driver answers, and is for whoever has the
    /// VF then.
    pub(super) fn forget(&mut self, number: NicNumber, vf: u16) {
        if let Some(nic) = self.nics.get_mut(&number.0) {
            nic.wanted.remove(&vf);
        }
    }

    fn ask(&mut self, number: u64) {
        let Some(nic) = self.nics.get_mut(&number).filter(|nic| nic.connected) else { return };
        nic.retry = None;
        let missing: Vec<u16> = nic.wanted.difference(&nic.asked).copied().collect();
        nic.asked.extend(&missing);
        for vf in missing {
            let input = SriovInvalidateBlock::of_vf(VfIndex(vf), 0).as_bytes().to_vec();
            let target = Target::Ioctl(SriovIoctl::InvalidateBlock.code());
            let capacity = size_of::<SriovInvalidateBlock>();
            self.call(number, Wait::Invalidation(vf), target, input, capacity);
        }
    }

    /// The connection is there.
    pub(super) fn connected(&mut self, number: u64) {
        let Some(nic) = self.nics.get_mut(&number) else { return };
        nic.connected = true;
        // The table of callbacks is in use as long as the connection is there (SPEC-PCIVIRT §4.4).
        let code = CallbackCode::InterfaceReference;
        self.callback(NicNumber(number), Wait::Nothing, code, Vec::new(), 0);
        self.ask(number);
    }

    /// The connection is not there any more, or could not be had.
    pub(super) fn disconnected(&mut self, number: u64, reason: &str) {
        if let Some(nic) = self.nics.get_mut(&number) {
            if nic.connected {
                tracing::warn!(nic = %nic.path.display(), reason, "the connection to a NIC has ended");
            }
            nic.connected = false;
        }
    }

    /// An answer came; says for whom, and on which NIC.
    pub(super) fn answered(
        &mut self,
        number: u64,
        tag: u64,
        status: Result<(), NtStatus>,
        now: Duration,
    ) -> Option<(NicNumber, Wait)> {
        let nic = self.nics.get_mut(&number)?;
        let wait = nic.waits.remove(&tag)?;
        if let Wait::Invalidation(vf) = &wait {
            nic.asked.remove(vf);
            match status {
                Ok(()) => self.ask(number),
                Err(_) => nic.retry = Some(now + RETRY),
            }
        }
        Some((NicNumber(number), wait))
    }

    /// When [`Self::poll`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.nics.values().filter(|nic| nic.connected).filter_map(|nic| nic.retry).min()
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Duration) {
        let due = |nic: &Nic| nic.connected && nic.retry.is_some_and(|retry| retry <= now);
        let due: Vec<u64> =
            self.nics.iter().filter(|(_, nic)| due(nic)).map(|(number, _)| *number).collect();
        for number in due {
            self.ask(number);
        }
    }
}
