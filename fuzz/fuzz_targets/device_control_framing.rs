//! Device control: headers and greetings. What parses is emitted as it was.
#![no_main]

use device_control_protocol::{Hello, Message, MessageHeader, Welcome};
use libfuzzer_sys::fuzz_target;
use zerocopy::FromBytes;

fuzz_target!(|data: &[u8]| {
    if let Ok((header, payload)) = MessageHeader::read_from_prefix(data) {
        if let Ok(message) = Message::parse(&header) {
            let again = Message::parse(&message.header());
            assert_eq!(again.as_ref(), Ok(&message));
        }
        greetings(payload);
    }
    greetings(data);
});

fn greetings(payload: &[u8]) {
    let _ = Hello::parse_version(payload);
    if let Ok(hello) = Hello::parse(payload) {
        assert_eq!(Hello::parse(&hello.emit()).as_ref(), Ok(&hello));
    }
    if let Ok(welcome) = Welcome::parse(payload) {
        assert_eq!(Welcome::parse(&welcome.emit()).as_ref(), Ok(&welcome));
    }
}
