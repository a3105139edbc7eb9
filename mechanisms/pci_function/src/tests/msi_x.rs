//! MSI-X: control, table, masks and pending bits.

use pcie_protocol::BarIndex;

use super::*;
use crate::{MsixMessage, MsixSignal, PciFunctionError, ResetKind, avf};

const BAR: BarIndex = avf::MSI_X_BAR;
const PBA: u64 = avf::MSI_X_PBA_OFFSET as u64;
const MESSAGE: MsixMessage = MsixMessage { address: 0x1_FEE0_1000, data: 0x4021 };

/// The bytes of a table entry.
fn entry(message: MsixMessage, masked: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&message.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&message.data.to_le_bytes());
    bytes[12] = u8::from(masked);
    bytes
}

/// A function that may send, with MSI-X on and vector 1 unmasked.
fn ready() -> PciFunction {
    let mut vf = avf::virtual_function(70).unwrap();
    vf.write_u16(at::COMMAND, 6);
    vf.write_u16(at::MSI_X_CONTROL, 0x8000);
    vf.msix_write(BAR, 16, &entry(MESSAGE, false)).unwrap();
    vf
}

fn pba(vf: &PciFunction) -> u128 {
    let mut bytes = [0; 16];
    vf.msix_read(BAR, PBA, &mut bytes).unwrap();
    u128::from_le_bytes(bytes)
}

#[test]
fn an_unmasked_vector_sends_its_message_each_time() {
    let mut vf = ready();
    assert_eq!(vf.signal_msix(1), MsixSignal::Message(MESSAGE));
    assert_eq!(vf.signal_msix(1), MsixSignal::Message(MESSAGE));
    assert_eq!(pba(&vf), 0);
}

#[test]
fn a_vector_that_does_not_exist_sends_nothing() {
    let mut vf = ready();
    assert_eq!(vf.signal_msix(70), MsixSignal::NoSuchVector);
    assert_eq!(vf.signal_msix(u16::MAX), MsixSignal::NoSuchVector);
}

#[test]
fn an_interrupt_while_msi_x_is_off_is_lost() {
    let mut vf = ready();
    vf.write_u16(at::MSI_X_CONTROL, 0);
    assert_eq!(vf.signal_msix(1), MsixSignal::Disabled);
    assert_eq!(
        vf.write_u16(at::MSI_X_CONTROL, 0x8000),
        [Effect::MsixControlChanged { enabled: true, masked: false }]
    );
}

#[test]
fn a_masked_vector_is_pending_and_sends_once_when_it_is_unmasked() {
    let mut vf = ready();
    assert_eq!(
        vf.msix_write(BAR, 28, &1u32.to_le_bytes()).unwrap(),
        [Effect::MsixVectorChanged { vector: 1, masked: true, message: MESSAGE }]
    );
    assert_eq!(vf.signal_msix(1), MsixSignal::Pending);
    assert_eq!(vf.signal_msix(1), MsixSignal::Pending);
    assert_eq!(pba(&vf), 1 << 1);
    assert_eq!(
        vf.msix_write(BAR, 28, &0u32.to_le_bytes()).unwrap(),
        [
            Effect::MsixVectorChanged { vector: 1, masked: false, message: MESSAGE },
            Effect::MsixMessage { vector: 1, message: MESSAGE }
        ]
    );
    assert_eq!(pba(&vf), 0);
}

#[test]
fn function_mask_holds_all_vectors_back() {
    let mut vf = ready();
    vf.msix_write(BAR, 69 * 16, &entry(MESSAGE, false)).unwrap();
    vf.write_u16(at::MSI_X_CONTROL, 0xC000);
    assert!(vf.msi_x().unwrap().masked(1));
    for vector in [1, 69, 2] {
        assert_eq!(vf.signal_msix(vector), MsixSignal::Pending);
    }
    assert_eq!(pba(&vf), 1 << 1 | 1 << 2 | 1 << 69);
    assert_eq!(
        vf.write_u16(at::MSI_X_CONTROL, 0x8000),
        [
            Effect::MsixControlChanged { enabled: true, masked: false },
            Effect::MsixMessage { vector: 1, message: MESSAGE },
            Effect::MsixMessage { vector: 69, message: MESSAGE }
        ]
    );
    assert_eq!(pba(&vf), 1 << 2, "vector 2 is masked by its entry");
}

#[test]
fn no_message_leaves_while_bus_mastering_is_off_or_the_function_sleeps() {
    let mut vf = ready();
    vf.write_u16(at::COMMAND, 2);
    assert_eq!(vf.signal_msix(1), MsixSignal::Pending);
    assert_eq!(
        vf.write_u16(at::COMMAND, 6),
        [
            Effect::BusMasterChanged { enabled: true },
            Effect::MsixMessage { vector: 1, message: MESSAGE }
        ]
    );
    vf.write_u16(at::POWER, 3);
    assert_eq!(vf.signal_msix(1), MsixSignal::Pending);
    let effects = vf.write_u16(at::POWER, 0);
    assert_eq!(effects[1..], [Effect::MsixMessage { vector: 1, message: MESSAGE }]);
}

#[test]
fn a_withdrawn_interrupt_is_not_sent() {
    let mut vf = ready();
    vf.write_u16(at::MSI_X_CONTROL, 0xC000);
    vf.signal_msix(1);
    assert!(vf.msi_x().unwrap().pending(1));
    vf.withdraw_msix(1);
    assert_eq!(
        vf.write_u16(at::MSI_X_CONTROL, 0x8000),
        [Effect::MsixControlChanged { enabled: true, masked: false }]
    );
}

#[test]
fn the_table_reads_as_it_was_written_but_for_its_reserved_bits() {
    let mut vf = ready();
    vf.msix_write(BAR, 32, &[0xFF; 16]).unwrap();
    let mut bytes = [0; 16];
    vf.msix_read(BAR, 32, &mut bytes).unwrap();
    let mut expected = [0xFF; 16];
    expected[0] = 0xFC;
    expected[12..].copy_from_slice(&[1, 0, 0, 0]);
    assert_eq!(bytes, expected);
    let message = vf.msi_x().unwrap().message(2).unwrap();
    assert_eq!(message, MsixMessage { address: !0b11, data: u32::MAX });
}

#[test]
fn pending_bits_and_the_rest_of_the_bar_cannot_be_written() {
    let mut vf = ready();
    assert_eq!(vf.msix_write(BAR, PBA, &[0xFF; 16]).unwrap(), []);
    assert_eq!(vf.msix_write(BAR, 70 * 16, &[0xFF; 64]).unwrap(), []);
    let mut bytes = [0xAA; 64];
    vf.msix_read(BAR, 70 * 16, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 64]);
    assert_eq!(pba(&vf), 0);
}

#[test]
fn accesses_beyond_the_bar_are_refused() {
    let mut vf = ready();
    for (bar, offset, length, size) in [
        (BAR, 0x4000, 1, 0x4000),
        (BAR, 0x3FFF, 2, 0x4000),
        (BAR, u64::MAX, 2, 0x4000),
        (BarIndex::BAR5, 0, 4, 0),
    ] {
        let error = PciFunctionError::OutsideBar { bar, offset, length, size };
        assert_eq!(vf.msix_read(bar, offset, &mut vec![0; length]), Err(error.clone()));
        assert_eq!(vf.msix_write(bar, offset, &vec![0; length]), Err(error));
    }
    let mut bytes = [1; 4];
    vf.msix_read(avf::REGISTER_BAR, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4], "nothing of MSI-X is in the register BAR");
}

#[test]
fn msi_x_memory_is_the_table_and_the_pending_bits() {
    let vf = ready();
    let msi_x = vf.msi_x().unwrap();
    assert!(msi_x.is_memory(BAR, 0, 1) && msi_x.is_memory(BAR, 70 * 16 - 1, 1));
    assert!(!msi_x.is_memory(BAR, 70 * 16, 4));
    assert!(msi_x.is_memory(BAR, 70 * 16, PBA), "the range reaches the pending bits");
    assert!(msi_x.is_memory(BAR, PBA + 15, 1) && !msi_x.is_memory(BAR, PBA + 16, 8));
    assert!(!msi_x.is_memory(avf::REGISTER_BAR, 0, 8));
}

#[test]
fn a_reset_forgets_table_and_pending_bits() {
    let mut vf = ready();
    vf.write_u16(at::MSI_X_CONTROL, 0xC000);
    vf.signal_msix(1);
    vf.reset(ResetKind::FunctionLevel);
    let msi_x = vf.msi_x().unwrap();
    assert!(!msi_x.enabled() && msi_x.masked(1) && !msi_x.pending(1));
    assert_eq!(msi_x.message(1), Some(MsixMessage::default()));
    vf.write_u16(at::COMMAND, 4);
    assert_eq!(
        vf.write_u16(at::MSI_X_CONTROL, 0x8000),
        [Effect::MsixControlChanged { enabled: true, masked: false }],
        "nothing of before the reset comes through"
    );
}

#[test]
fn avf_functions_have_2_to_512_vectors() {
    for vectors in [2, 17, 512] {
        assert_eq!(
            avf::virtual_function(vectors).unwrap().msi_x().unwrap().layout().vectors,
            vectors
        );
    }
    for vectors in [0, 1, 513, u16::MAX] {
        assert!(matches!(avf::virtual_function(vectors), Err(PciFunctionError::MsiXLayout(_))));
    }
}
