//! The interface callbacks: what they answer, and that nothing reaches the device unless all arguments are right.

mod common;

use common::*;
use device_control_protocol::*;
use pcivirt_protocol::*;
use pf_driver::{InterfaceEntries, PfDriver};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, IntoBytes};

const CLIENT: ClientId = ClientId(1);

fn call(
    driver: &PfDriver<TestDevice>,
    callback: CallbackCode,
    input: &[u8],
    capacity: usize,
) -> Completion {
    driver.callback(CLIENT, callback.to_u32(), input, capacity)
}

fn config(vf: u16, offset: u32, length: u32) -> ConfigAccess {
    ConfigAccess { vf_index: VfIndex(vf), reserved: 0, offset, length }
}

fn block(vf: u16, block_id: u32, length: u32) -> BlockAccess {
    BlockAccess { vf_index: VfIndex(vf), reserved: 0, block_id, length }
}

fn register(vf: u16, read: u8, bar_index: u16, length: u32) -> MitigatedRegisterAccess {
    MitigatedRegisterAccess {
        vf_index: VfIndex(vf),
        read,
        reserved: 0,
        bar_index,
        reserved2: 0,
        offset: 0x1000,
        length,
        reserved3: 0,
    }
}

fn power(vf: u16, state: u32, wake: u8) -> SetPowerState {
    SetPowerState {
        vf_index: VfIndex(vf),
        reserved: 0,
        power_state: DevicePowerStateRaw(state),
        wake,
        reserved2: [0; 3],
    }
}

fn with(structure: &(impl IntoBytes + zerocopy::Immutable), data: &[u8]) -> Vec<u8> {
    [structure.as_bytes(), data].concat()
}

fn output(bytes: &[u8]) -> Completion {
    Completion::output(bytes, bytes.len())
}

fn status(status: NtStatus) -> Completion {
    Completion::status(status)
}

#[test]
fn every_callback_reaches_the_device_and_brings_back_its_answer() {
    let driver = driver();
    let device = Arc::clone(driver.device());
    let mut expected = device.snapshot();
    let vf = VfIndex(2).as_bytes();

    let write = with(&config(2, 0x3C, 2), &[0xAB, 0xCD]);
    assert_eq!(call(&driver, CallbackCode::WriteVfConfig, &write, 0), Completion::success());
    expected.config[2][0x3C..0x3E].copy_from_slice(&[0xAB, 0xCD]);
    let read = config(2, 0x3B, 4);
    assert_eq!(
        call(&driver, CallbackCode::ReadVfConfig, read.as_bytes(), 4),
        output(&[2, 0xAB, 0xCD, 2])
    );

    for length in [1, 128] {
        let data = vec![length; length.into()];
        let write = with(&block(1, 77, length.into()), &data);
        assert_eq!(
            call(&driver, CallbackCode::WriteVfConfigBlock, &write, 0),
            Completion::success()
        );
        let read = block(1, 77, length.into());
        assert_eq!(
            call(&driver, CallbackCode::ReadVfConfigBlock, read.as_bytes(), length.into()),
            output(&data)
        );
        expected.blocks.insert((VfIndex(1), 77), data);
    }

    assert_eq!(
        call(&driver, CallbackCode::QueryProbedBars, &[], 24),
        output([0xFFFF_000Cu32, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0].as_bytes())
    );
    assert_eq!(
        call(&driver, CallbackCode::QueryProbedBars2, vf, 24),
        output([0xFFFF_000Cu32, 0xFFFF_FFFF, 0, 0, 0, 2].as_bytes())
    );
    assert_eq!(
        call(&driver, CallbackCode::GetVendorAndDevice, vf, 4),
        output(&[0x86, 0x80, 0x8B, 0x18])
    );
    assert_eq!(call(&driver, CallbackCode::GetDeviceLocation, vf, 4), output(&[2, 0, 0x81, 3]));

    assert_eq!(call(&driver, CallbackCode::ResetVf, vf, 0), Completion::success());
    expected.resets.push(VfIndex(2));
    let d3 = power(2, 4, 1);
    assert_eq!(
        call(&driver, CallbackCode::SetVfPowerState, d3.as_bytes(), 0),
        Completion::success()
    );
    expected.power[2] = (DevicePowerState::D3, true);

    let bar = BarArgument { vf_index: VfIndex(2), bar_index: 0 };
    let resource =
        CmPartialResourceDescriptor::memory(0xE002_0000, 0x1_0000, cm_resource_memory::BAR);
    assert_eq!(
        call(&driver, CallbackCode::GetResourceForBar, bar.as_bytes(), 20),
        output(resource.unwrap().as_bytes())
    );

    let luid = device.luids.vf_luid(VfIndex(2)).unwrap();
    assert_eq!(
        call(&driver, CallbackCode::QueryLuid, &[], 8),
        output(device.luids.device().as_bytes())
    );
    assert_eq!(call(&driver, CallbackCode::QueryVfLuid, vf, 8), output(luid.as_bytes()));
    assert_eq!(call(&driver, CallbackCode::QueryLuidVf, luid.as_bytes(), 2), output(vf));

    let write = with(&register(3, 0, 5, 8), &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        call(&driver, CallbackCode::ReadWriteMitigatedRegister, &write, 0),
        Completion::success()
    );
    for (at, byte) in (0x1000..).zip(1..=8) {
        expected.registers.insert((VfIndex(3), 5, at), byte);
    }
    let read = register(3, 1, 5, 3);
    assert_eq!(
        call(&driver, CallbackCode::ReadWriteMitigatedRegister, read.as_bytes(), 3),
        output(&[1, 2, 3])
    );
    assert_eq!(device.snapshot(), expected);
}

#[test]
fn the_last_bytes_of_configuration_space_can_be_reached_and_none_beyond() {
    let driver = driver();
    let read = |offset, length| {
        call(&driver, CallbackCode::ReadVfConfig, config(0, offset, length).as_bytes(), 8192).status
    };
    assert_eq!(read(4095, 1), NtStatus::SUCCESS);
    assert_eq!(read(0, 4096), NtStatus::SUCCESS);
    assert_eq!(read(4095, 2), NtStatus::INVALID_PARAMETER);
    assert_eq!(read(4096, 1), NtStatus::INVALID_PARAMETER);
    assert_eq!(read(1, u32::MAX), NtStatus::INVALID_PARAMETER);
    assert_eq!(read(u32::MAX, u32::MAX), NtStatus::INVALID_PARAMETER);
    assert_eq!(read(0, 0), NtStatus::INVALID_PARAMETER);
}

#[test]
fn a_vf_that_is_not_there_gets_the_published_answer_of_each_callback() {
    let driver = driver();
    let before = driver.device().snapshot();
    let none = VfIndex(TOTAL_VFS);
    let cases: Vec<(CallbackCode, Vec<u8>, Completion)> = vec![
        (
            CallbackCode::ReadVfConfig,
            with(&config(4, 0, 4), &[]),
            status(NtStatus::INVALID_PARAMETER),
        ),
        (
            CallbackCode::WriteVfConfig,
            with(&config(4, 0, 1), &[0]),
            status(NtStatus::INVALID_PARAMETER),
        ),
        (
            CallbackCode::ReadVfConfigBlock,
            with(&block(4, 0, 4), &[]),
            status(NtStatus::INVALID_PARAMETER),
        ),
        (
            CallbackCode::WriteVfConfigBlock,
            with(&block(4, 0, 1), &[0]),
            status(NtStatus::INVALID_PARAMETER),
        ),
        (CallbackCode::QueryProbedBars2, with(&none, &[]), status(NtStatus::INVALID_PARAMETER)),
        // No error path: ids of nothing, and location zero.
        (CallbackCode::GetVendorAndDevice, with(&none, &[]), output(&[0xFF; 4])),
        (CallbackCode::GetDeviceLocation, with(&none, &[]), output(&[0; 4])),
        (CallbackCode::ResetVf, with(&none, &[]), status(NtStatus::INVALID_PARAMETER)),
        (
            CallbackCode::SetVfPowerState,
            with(&power(4, 1, 0), &[]),
            status(NtStatus::INVALID_PARAMETER),
        ),
        (
            CallbackCode::GetResourceForBar,
            with(&BarArgument { vf_index: none, bar_index: 0 }, &[]),
            status(NtStatus::INVALID_DEVICE_REQUEST),
        ),
        (CallbackCode::QueryVfLuid, with(&none, &[]), status(NtStatus::INVALID_PARAMETER)),
        (CallbackCode::QueryLuidVf, vec![9; 8], status(NtStatus::NOT_FOUND)),
        (
            CallbackCode::ReadWriteMitigatedRegister,
            with(&register(4, 1, 0, 4), &[]),
            status(NtStatus::INVALID_PARAMETER),
        ),
    ];
    for (callback, input, expected) in cases {
        assert_eq!(call(&driver, callback, &input, 64), expected, "{callback}");
    }
    assert_eq!(driver.device().snapshot(), before);

    // VFs that were switched off are not there either.
    driver.device().num_vfs.store(0, Ordering::Relaxed);
    let reset = call(&driver, CallbackCode::ResetVf, VfIndex(0).as_bytes(), 0);
    assert_eq!(reset, status(NtStatus::INVALID_PARAMETER));
}

#[test]
fn bad_arguments_get_a_status_and_change_nothing() {
    let driver = driver();
    let before = driver.device().snapshot();
    let invalid = status(NtStatus::INVALID_PARAMETER);
    let short = status(NtStatus::BUFFER_TOO_SMALL);
    let bar = |bar_index| with(&BarArgument { vf_index: VfIndex(0), bar_index }, &[]);
    let reserved = |change: fn(&mut MitigatedRegisterAccess)| {
        let mut access = register(0, 1, 0, 4);
        change(&mut access);
        with(&access, &[])
    };
    let cases: Vec<(CallbackCode, Vec<u8>, usize, &Completion)> = vec![
        (CallbackCode::ReadVfConfig, vec![0; 11], 64, &short),
        (CallbackCode::ReadVfConfig, vec![0; 13], 64, &invalid),
        (
            CallbackCode::ReadVfConfig,
            with(&ConfigAccess { reserved: 1, ..config(0, 0, 4) }, &[]),
            64,
            &invalid,
        ),
        (CallbackCode::WriteVfConfig, with(&config(0, 0, 4), &[1, 2, 3]), 0, &short),
        (CallbackCode::WriteVfConfig, with(&config(0, 0, 4), &[1, 2, 3, 4, 5]), 0, &invalid),
        (CallbackCode::WriteVfConfig, with(&config(0, 4094, 4), &[1, 2, 3, 4]), 0, &invalid),
        (CallbackCode::ReadVfConfigBlock, with(&block(0, 0, 0), &[]), 256, &invalid),
        (CallbackCode::ReadVfConfigBlock, with(&block(0, 0, 129), &[]), 256, &invalid),
        (CallbackCode::WriteVfConfigBlock, with(&block(0, 0, 0), &[]), 0, &invalid),
        (CallbackCode::WriteVfConfigBlock, with(&block(0, 0, 129), &[0; 129]), 0, &invalid),
        (CallbackCode::WriteVfConfigBlock, with(&block(0, 0, 4), &[1; 3]), 0, &short),
        (CallbackCode::WriteVfConfigBlock, with(&block(0, 0, 4), &[1; 5]), 0, &invalid),
        (CallbackCode::QueryProbedBars, vec![0], 24, &invalid),
        (CallbackCode::ResetVf, vec![0], 0, &short),
        (CallbackCode::ResetVf, vec![0; 3], 0, &invalid),
        (CallbackCode::SetVfPowerState, with(&power(0, 0, 0), &[]), 0, &invalid),
        (CallbackCode::SetVfPowerState, with(&power(0, 5, 0), &[]), 0, &invalid),
        (CallbackCode::SetVfPowerState, with(&power(0, 4, 2), &[]), 0, &invalid),
        (CallbackCode::SetVfPowerState, with(&power(0, 1, 1), &[]), 0, &invalid),
        (CallbackCode::GetResourceForBar, bar(6), 20, &invalid),
        (CallbackCode::QueryLuid, vec![0; 8], 8, &invalid),
        (CallbackCode::QueryLuidVf, vec![0; 7], 2, &short),
        (CallbackCode::ReadWriteMitigatedRegister, with(&register(0, 1, 6, 4), &[]), 8, &invalid),
        (CallbackCode::ReadWriteMitigatedRegister, with(&register(0, 1, 0, 0), &[]), 8, &invalid),
        (CallbackCode::ReadWriteMitigatedRegister, with(&register(0, 1, 0, 9), &[]), 16, &invalid),
        (CallbackCode::ReadWriteMitigatedRegister, with(&register(0, 2, 0, 4), &[]), 8, &invalid),
        (CallbackCode::ReadWriteMitigatedRegister, with(&register(0, 1, 0, 4), &[1]), 8, &invalid),
        (CallbackCode::ReadWriteMitigatedRegister, with(&register(0, 0, 0, 4), &[1; 3]), 0, &short),
        (CallbackCode::ReadWriteMitigatedRegister, reserved(|a| a.reserved3 = 1), 8, &invalid),
        (
            CallbackCode::ReadWriteMitigatedRegister,
            reserved(|a| a.offset = u64::MAX - 2),
            8,
            &invalid,
        ),
    ];
    for (callback, input, capacity, expected) in cases {
        assert_eq!(call(&driver, callback, &input, capacity), *expected, "{callback} {input:?}");
    }
    assert_eq!(driver.device().snapshot(), before);
}

#[test]
fn an_answer_without_room_says_what_it_needs() {
    let driver = driver();
    let vf = VfIndex(0).as_bytes();
    let bar = BarArgument { vf_index: VfIndex(0), bar_index: 0 };
    for (callback, input, needed) in [
        (CallbackCode::ReadVfConfig, config(0, 0, 64).as_bytes(), 64),
        (CallbackCode::ReadVfConfigBlock, block(0, 0, 128).as_bytes(), 128),
        (CallbackCode::QueryProbedBars, &[], 24),
        (CallbackCode::QueryProbedBars2, vf, 24),
        (CallbackCode::GetVendorAndDevice, vf, 4),
        (CallbackCode::GetDeviceLocation, vf, 4),
        (CallbackCode::GetResourceForBar, bar.as_bytes(), 20),
        (CallbackCode::QueryLuid, &[], 8),
        (CallbackCode::QueryVfLuid, vf, 8),
        (CallbackCode::QueryLuidVf, &[0; 8], 2),
        (CallbackCode::ReadWriteMitigatedRegister, register(0, 1, 0, 8).as_bytes(), 8),
    ] {
        let completion = call(&driver, callback, input, needed - 1);
        assert_eq!(completion, Completion::too_small(needed), "{callback}");
    }
}

#[test]
fn an_error_of_the_device_is_passed_on() {
    let read = block(0, 1, 4);
    assert_eq!(
        call(&driver(), CallbackCode::ReadVfConfigBlock, read.as_bytes(), 4),
        status(NtStatus::NOT_FOUND)
    );
}

#[test]
fn a_null_entry_is_not_supported() {
    let entries = InterfaceEntries::STANDARD.without(CallbackCode::GetResourceForBar);
    let driver = driver_of(TestDevice { entries, mitigable: false, ..TestDevice::new() });
    let bar = BarArgument { vf_index: VfIndex(0), bar_index: 0 };
    for callback in [
        CallbackCode::GetResourceForBar,
        CallbackCode::QueryProbedBars2,
        CallbackCode::QueryVfLuid,
        CallbackCode::QueryLuidVf,
        CallbackCode::ReadWriteMitigatedRegister,
        CallbackCode::MitigableInterfaceReference,
    ] {
        let completion = call(&driver, callback, bar.as_bytes(), 64);
        assert_eq!(completion, status(NtStatus::NOT_SUPPORTED), "{callback}");
    }
    assert_eq!(call(&driver, CallbackCode::QueryLuid, &[], 8).status, NtStatus::SUCCESS);
    let unknown = driver.callback(CLIENT, 0x20_0000, &[], 0);
    assert_eq!(unknown, status(NtStatus::INVALID_DEVICE_REQUEST));
}

fn query(interface_type: Guid, size: u16, version: u16) -> QueryInterface {
    QueryInterface { interface_type, size, version }
}

#[test]
fn query_interface_returns_the_table_that_the_caller_knows() {
    let driver = driver();
    let sriov = GUID_SRIOV_DEVICE_INTERFACE_STANDARD;
    let ask = |query: QueryInterface, capacity| {
        call(&driver, CallbackCode::QueryInterface, query.as_bytes(), capacity)
    };
    let full = ask(query(sriov, 144, 2), 144).output;
    let table = SriovDeviceInterfaceStandard2::read_from_bytes(&full).unwrap();
    assert_eq!((table.standard.header.size, table.standard.header.version), (144, 2));
    let slots: Vec<u64> =
        full[16..].chunks(8).map(|slot| u64::read_from_bytes(slot).unwrap()).collect();
    assert_eq!(slots, (16..144).step_by(8).collect::<Vec<u64>>());

    let first = ask(query(sriov, 120, 1), 120).output;
    let table = SriovDeviceInterfaceStandard::read_from_bytes(&first).unwrap();
    assert_eq!((table.header.size, table.header.version), (120, 1));
    assert_eq!(first[16..], full[16..120]);

    let mitigable = ask(query(GUID_MITIGABLE_DEVICE_INTERFACE, 40, 1), 40).output;
    let table = MitigableDeviceInterface::read_from_bytes(&mitigable).unwrap();
    assert_eq!((table.header.size, table.header.version), (40, 1));
    assert_eq!(table.read_write_mitigated_register, 0x1_0020);
    assert_eq!(driver.references(), 3);

    // What fails takes no reference.
    assert_eq!(ask(query(sriov, 144, 2), 143), Completion::too_small(144));
    assert_eq!(ask(query(sriov, 119, 1), 144), status(NtStatus::BUFFER_TOO_SMALL));
    assert_eq!(ask(query(sriov, 144, 0), 144), status(NtStatus::INVALID_PARAMETER));
    assert_eq!(ask(query(GUID_BUS_VPCI, 144, 1), 144), status(NtStatus::NOT_SUPPORTED));
    assert_eq!(driver.references(), 3);
}

#[test]
fn a_device_of_the_first_version_returns_the_short_table_with_its_null_entries() {
    let entries = InterfaceEntries::STANDARD.without(CallbackCode::GetResourceForBar);
    let driver = driver_of(TestDevice { entries, mitigable: false, ..TestDevice::new() });
    let input = query(GUID_SRIOV_DEVICE_INTERFACE_STANDARD, 144, 2);
    let table = call(&driver, CallbackCode::QueryInterface, input.as_bytes(), 144).output;
    let table = SriovDeviceInterfaceStandard::read_from_bytes(&table).unwrap();
    assert_eq!((table.header.size, table.get_resource_for_bar), (120, 0));
    assert_eq!(table.query_luid, 112);
    let input = query(GUID_MITIGABLE_DEVICE_INTERFACE, 40, 1);
    assert_eq!(
        call(&driver, CallbackCode::QueryInterface, input.as_bytes(), 40),
        status(NtStatus::NOT_SUPPORTED)
    );
}

#[test]
fn references_are_counted_per_client_and_end_with_it() {
    let driver = driver();
    let refer = |client, code: CallbackCode| {
        driver.callback(ClientId(client), code.to_u32(), &[], 0).status
    };
    assert_eq!(refer(1, CallbackCode::InterfaceReference), NtStatus::SUCCESS);
    assert_eq!(refer(1, CallbackCode::MitigableInterfaceReference), NtStatus::SUCCESS);
    assert_eq!(refer(2, CallbackCode::InterfaceReference), NtStatus::SUCCESS);
    assert_eq!(driver.references(), 3);
    driver.client_gone(ClientId(1));
    assert_eq!(driver.references(), 1);
    driver.surprise_removal();
    assert_eq!(refer(1, CallbackCode::InterfaceDereference), NtStatus::INVALID_DEVICE_STATE);
    assert_eq!(refer(2, CallbackCode::InterfaceDereference), NtStatus::SUCCESS);
    assert_eq!(driver.references(), 0);
    assert_eq!(refer(2, CallbackCode::InterfaceReference), NtStatus::DEVICE_REMOVED);
}

#[test]
fn after_removal_the_device_is_not_asked_any_more() {
    let driver = driver();
    driver.surprise_removal();
    for callback in CallbackCode::ALL {
        let completion = call(&driver, *callback, &[0; 2], 64);
        let expected = match callback {
            CallbackCode::InterfaceDereference | CallbackCode::MitigableInterfaceDereference => {
                NtStatus::INVALID_DEVICE_STATE
            }
            _ => NtStatus::DEVICE_REMOVED,
        };
        assert_eq!(completion, status(expected), "{callback}");
    }
}

proptest! {
    /// Random bytes for any callback: no panic, no output beyond its room, and no change unless it succeeds.
    #[test]
    fn random_arguments_are_served_or_refused(
        callback in prop::sample::select(CallbackCode::ALL.to_vec()),
        mut input in prop::collection::vec(any::<u8>(), 0..160),
        tame: bool,
        capacity in 0usize..200,
    ) {
        // Small numbers are right more often.
        if tame {
            input.iter_mut().for_each(|byte| *byte %= 3);
        }
        let driver = driver();
        let before = driver.device().snapshot();
        let completion = call(&driver, callback, &input, capacity);
        prop_assert!(completion.output.len() <= capacity);
        if !completion.status.is_success() {
            prop_assert!(completion.output.is_empty());
            prop_assert_eq!(driver.device().snapshot(), before);
            prop_assert_eq!(driver.references(), 0);
        }
    }
}
