//! Mailbox messages of a guest: the first four bytes are the opcode. What parses is emitted as it was understood.
#![no_main]

use avf_protocol::virtchnl::{Opcode, Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((opcode, message)) = data.split_first_chunk::<4>() else { return };
    let opcode = u32::from_le_bytes(*opcode);
    if let Ok(request) = Request::parse(opcode, message) {
        let mut bytes = Vec::new();
        if request.emit(&mut bytes).is_ok() {
            let again = Request::parse(opcode, &bytes).expect("what was emitted is valid");
            let mut twice = Vec::new();
            again.emit(&mut twice).expect("it was emitted once");
            assert_eq!(bytes, twice);
        }
    }
    // The driver's side: a PF may lie as well.
    if let Ok(opcode) = Opcode::try_from(opcode) {
        let _ = Reply::parse(opcode, message);
    }
});
