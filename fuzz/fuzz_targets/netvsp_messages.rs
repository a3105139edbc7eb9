//! NVSP and RNDIS: what parses is emitted as it was understood, and what points somewhere points into the message.
//! The first byte chooses the parser.
#![no_main]

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use netvsp_protocol::{
    nvsp::{ClientMessage, NvspVersion, SendRndisPacket, ServerMessage},
    offload::{OffloadCapabilities, OffloadParameters, parse_encapsulation},
    oid::{ConfigParameter, LinkState},
    packet::{PacketLayout, RndisPacket},
    rndis::{Reply, Request},
    rss::{RssCapabilities, RssParameters, object_header},
};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0 => nvsp(input.rest()),
        1 => rndis(input.rest()),
        2 | 3 => packet(input),
        _ => oids(input),
    }
});

fn nvsp(bytes: &[u8]) {
    for version in NvspVersion::NEWEST_FIRST {
        if let Ok(message) = ClientMessage::parse(bytes)
            && message.since() <= version
        {
            assert_eq!(ClientMessage::parse(&message.emit(version)).as_ref(), Ok(&message));
        }
        if let Ok(message) = ServerMessage::parse(bytes)
            && version == NvspVersion::V61
        {
            assert_eq!(ServerMessage::parse(&message.emit(version)).as_ref(), Ok(&message));
        }
    }
    if let Some(bytes) = bytes.first_chunk::<{ SendRndisPacket::SIZE }>() {
        let packet = SendRndisPacket::parse(bytes);
        let halves = [&bytes[..8], &bytes[8..]];
        let words = halves.map(|half| u64::from_le_bytes(half.try_into().expect("eight bytes")));
        assert_eq!(SendRndisPacket::from_qwords(words), packet);
        if let Ok(packet) = packet {
            assert_eq!(SendRndisPacket::parse(&packet.emit()), Ok(packet));
        }
    }
}

fn rndis(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        assert_eq!(Request::parse(&request.emit()).as_ref(), Ok(&request));
    }
    if let Ok(reply) = Reply::parse(bytes) {
        assert_eq!(Reply::parse(&reply.emit()).as_ref(), Ok(&reply));
    }
}

fn packet(mut input: Input<'_>) {
    // Most say themselves how long they are, and lie elsewhere.
    let available = if input.bit() { u32::from(input.word()) } else { input.dword() };
    let mut bytes = input.rest().to_vec();
    if available % 3 != 0 {
        bytes.splice(0..0, [1u32.to_le_bytes(), available.to_le_bytes()].concat());
    }
    let Ok(packet) = RndisPacket::parse(&bytes, available) else { return };
    assert!(packet.message_length <= available);
    assert!(packet.data.start <= packet.data.end && packet.data.end <= packet.message_length);
    let length = packet.data.end - packet.data.start;
    if length > 1 << 16 {
        return;
    }
    let layout = PacketLayout::packed(&packet.info, length);
    let mut emitted = vec![0; layout.message_length as usize];
    layout.emit(&packet.info, &mut emitted).expect("room for it");
    let again = RndisPacket::parse(&emitted, layout.message_length).expect("what was emitted");
    assert_eq!(again.info, packet.info);
    assert_eq!(again.data, layout.data_offset..layout.data_offset + length);
}

fn oids(mut input: Input<'_>) {
    let which = input.byte() % 8;
    let bytes = input.rest();
    match which {
        0 => {
            if let Ok(state) = LinkState::parse(bytes) {
                let again = LinkState::parse(&state.emit());
                assert_eq!(again.as_ref().map(LinkState::emit), Ok(state.emit()));
            }
        }
        1 => {
            if let Ok(parameter) = ConfigParameter::parse(bytes) {
                assert_eq!(ConfigParameter::parse(&parameter.emit()).as_ref(), Ok(&parameter));
            }
        }
        2 => {
            if let Ok(capabilities) = OffloadCapabilities::parse(bytes) {
                let again = OffloadCapabilities::parse(&capabilities.emit());
                assert_eq!(again.as_ref(), Ok(&capabilities));
            }
        }
        3 => {
            let _ = OffloadParameters::parse(bytes);
            let _ = parse_encapsulation(bytes);
        }
        4 => {
            if let Ok(capabilities) = RssCapabilities::parse(bytes) {
                let again = RssCapabilities::parse(&capabilities.emit());
                assert_eq!(again.as_ref(), Ok(&capabilities));
            }
        }
        _ => {
            let _ = object_header(bytes);
            if let Ok(parameters) = RssParameters::parse(bytes) {
                let _ = parameters.fits(4);
                let again = RssParameters::parse(&parameters.emit());
                assert_eq!(again.as_ref(), Ok(&parameters));
            }
        }
    }
}
