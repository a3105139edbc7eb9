//! Frames as a guest or a wire hands them over: packet types, checksums, tags.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offload::{
    EtherHeader, HashEnable, RssInput, VlanTag, classify, insert_vlan_tag, strip_vlan_tag, verify,
};

fuzz_target!(|data: &[u8]| {
    let header = &data[..data.len().min(256)];
    // Whole, and as the beginning of a frame that says to be longer.
    for length in [data.len(), usize::from(u16::MAX)] {
        let info = classify(header, length);
        assert!(info.l3_offset() <= info.l4_offset());
        let payload = data.get(header.len()..).unwrap_or_default();
        let _ = verify(header, &info, payload.chunks(7));
        let _ = RssInput::select(header, &info, HashEnable(u64::MAX));
    }
    let _ = EtherHeader::read(data);
    let mut buffer = data.to_vec();
    buffer.extend([0; 4]);
    let _ = strip_vlan_tag(&mut buffer, data.len());
    buffer[..data.len()].copy_from_slice(data);
    if let Some(length) = insert_vlan_tag(&mut buffer, data.len(), VlanTag::dot1q(7)) {
        assert_eq!(length, data.len() + 4);
        strip_vlan_tag(&mut buffer, length).expect("it was just put in");
        assert_eq!(&buffer[..data.len()], data);
    }
});
