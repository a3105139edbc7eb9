//! In whatever order things come and go: when all is removed, nothing is left.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use common::{Vm, guest::Bus, nic::Nic, switch::Switch, wait_until};
use partition::guest::GuestChannel;
use proptest::prelude::*;
use vm_worker::control::{DeviceName, DeviceState};
use vmbus_protocol::INTERFACE_NETWORK;

#[derive(Copy, Clone, Debug)]
enum Step {
    SetAdapter(u32),
    RemoveAdapter(u32),
    Offer(u16),
    Eject(u16),
    Remove(u16),
    OpenNic,
    CloseNic,
    OpenBus,
    /// The guest's VPCI drivers do what there is to do.
    Turn,
    /// They give up what they are asked for.
    GiveUp,
    CloseBus,
    KillSwitch,
}

fn step() -> impl Strategy<Value = Step> {
    let vf = 0u16..3;
    prop_oneof![
        2 => (0u32..2).prop_map(Step::SetAdapter),
        1 => (0u32..2).prop_map(Step::RemoveAdapter),
        4 => vf.clone().prop_map(Step::Offer),
        2 => vf.clone().prop_map(Step::Eject),
        2 => vf.prop_map(Step::Remove),
        2 => Just(Step::OpenNic),
        1 => Just(Step::CloseNic),
        3 => Just(Step::OpenBus),
        5 => Just(Step::Turn),
        2 => Just(Step::GiveUp),
        1 => Just(Step::CloseBus),
        1 => Just(Step::KillSwitch),
    ]
}

fn run(nic: &Nic, steps: &[Step]) {
    let (mut vm, mut guest) = Vm::start();
    guest.connect();
    let mut switch = Switch::start(&["p0", "p1"]);
    let mut nics: Vec<GuestChannel> = Vec::new();
    let mut buses: Vec<Bus> = Vec::new();
    let mut serial = 0;
    // The device of each VF that was offered last.
    let mut devices: [Option<DeviceName>; 3] = [None; 3];
    for step in steps {
        match *step {
            Step::SetAdapter(number) => {
                let port = if serial % 2 == 0 { "p0" } else { "p1" };
                vm.client.set_adapter(&switch.adapter(number, port));
            }
            Step::RemoveAdapter(number) => drop(vm.client.remove_adapter(number)),
            Step::Offer(vf) => {
                if let Some(before) = devices[usize::from(vf)].take() {
                    vm.client.remove(before, true);
                }
                serial += 1;
                let offer = nic.offer(u32::from(vf), serial, vf);
                vm.client.offer(&offer).unwrap();
                devices[usize::from(vf)] = Some(DeviceName { adapter: vf.into(), serial });
            }
            Step::Eject(vf) => {
                if let Some(device) = devices[usize::from(vf)] {
                    let _ = vm.client.eject(device);
                }
            }
            Step::Remove(vf) => {
                if let Some(device) = devices[usize::from(vf)].take() {
                    vm.client.remove(device, serial % 2 == 0);
                    vm.client.expect(device, DeviceState::Removed);
                }
            }
            Step::OpenNic => {
                guest.drop_stale_offers();
                let offer = guest.take_offer(|offer| offer.interface_id == INTERFACE_NETWORK);
                // It may be gone by now.
                nics.extend(offer.and_then(|offer| guest.open(&offer).ok()));
            }
            Step::CloseNic => {
                if let Some(channel) = nics.pop() {
                    guest.bus.close(channel, common::LIMIT).unwrap();
                }
            }
            Step::OpenBus => {
                guest.drop_stale_offers();
                buses.extend(guest.try_open_bus());
            }
            Step::Turn => {
                for bus in &mut buses {
                    bus.turn(&mut guest);
                }
            }
            Step::GiveUp => {
                for bus in &mut buses {
                    if std::mem::take(&mut bus.eject_requested) {
                        bus.ejected(&guest);
                    }
                }
            }
            Step::CloseBus => {
                if let Some(bus) = buses.pop() {
                    guest.close_bus(bus);
                }
            }
            Step::KillSwitch => {
                switch.kill();
                switch.serve(&["p0", "p1"]);
            }
        }
    }
    for device in devices.into_iter().flatten() {
        vm.client.remove(device, true);
    }
    for number in 0..2 {
        let _ = vm.client.remove_adapter(number);
    }
    wait_until("the end of all", || {
        let status = vm.client.status();
        status.adapters.is_empty() && status.devices.is_empty()
    });
    assert_eq!(switch.channels(), 0);
    wait_until("the VFs' end", || (0..3).all(|vf| !nic.is_connected(vf)));
    // Every channel was taken back.
    for channel in nics {
        guest.let_go(channel);
    }
    for bus in buses {
        guest.leave_bus(bus);
    }
    wait_until("the last offer's end", || {
        guest.drop_stale_offers();
        !guest.has_offers()
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_left_when_all_is_removed(
        cases in proptest::collection::vec(proptest::collection::vec(step(), 1..25), 1..4),
    ) {
        let nic = Nic::start(3);
        for _ in 0..3 {
            nic.allocate();
        }
        for steps in &cases {
            run(&nic, steps);
        }
    }
}
