//! Where frames were dropped, of all that count them.

use serde::Serialize;
use serde_json::Value;

/// Names of counters of frames that did not get any further.
const DROPS: [&str; 20] = [
    "no_buffer",
    "no_receiver",
    "no_room",
    "no_link",
    "not_wanted",
    "too_long",
    "malformed",
    "spoofed",
    "vlan_not_allowed",
    "dma_faults",
    "sent_dropped",
    "received_dropped",
    "receive_dropped",
    "transmit_dropped",
    "receive_error",
    "interface_error",
    "lost_in_rings",
    "timeouts",
    "receive_errors",
    "resets",
];

/// The counters in `report` that are not 0, each with its place.
pub(super) fn drops(whose: &str, report: &impl Serialize) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(report) = serde_json::to_value(report) {
        collect(whose.to_owned(), &report, &mut found);
    }
    found
}

fn collect(place: String, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value.as_u64() {
                    Some(count) if count > 0 && DROPS.contains(&name.as_str()) => {
                        found.push(format!("{place} {name} {count}"));
                    }
                    Some(_) => {}
                    None => collect(format!("{place} {name}"), value, found),
                }
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                collect(format!("{place} {index}"), element, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_named_with_its_place() {
        let report = serde_json::json!({
            "ports": [{"statistics": {"sent": 5, "no_buffer": 3, "spoofed": 0}}],
            "uplink": {"sent_dropped": 1},
        });
        assert_eq!(
            drops("switch", &report),
            ["switch ports 0 statistics no_buffer 3", "switch uplink sent_dropped 1"]
        );
    }
}
