//! Input buffers of OIDs: the first byte chooses the structure. What parses is emitted as it was understood.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use ndis_protocol::*;

fn check<T: NdisStructure + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(structure) = T::parse(bytes) {
        let again = T::parse(&structure.emit()).expect("what was emitted is valid");
        assert_eq!(again, structure);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    match which {
        0 => check::<VfParameters>(bytes),
        1 => check::<VPortParameters>(bytes),
        2 => check::<ReceiveFilterParameters>(bytes),
        3 => check::<ReceiveFilterClearParameters>(bytes),
        4 => check::<ReceiveFilterMoveFilterParameters>(bytes),
        5 => check::<NicSwitchDeleteVPortParameters>(bytes),
        6 => check::<NicSwitchFreeVfParameters>(bytes),
        7 => check::<SriovResetVf>(bytes),
        8 => check::<VfInfoArray>(bytes),
        9 => check::<VPortInfoArray>(bytes),
        10 => check::<ReceiveFilterInfoArray>(bytes),
        11 => check::<NicSwitchInfoArray>(bytes),
        12 => check::<SriovProbedBars>(bytes),
        _ => {}
    }
});
