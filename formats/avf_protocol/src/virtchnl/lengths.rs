//! Exact message lengths, as real PFs demand them (SPEC-AVF §4.7).
//!
//! The historical structures end in a one-element array and senders add n elements on top of that, so one
//! spare element at the end is the norm.

use super::Opcode;
use crate::admin_queue::MAX_MESSAGE;

/// A message that does not fit into an admin queue buffer.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error(
    "a {opcode:?} message of {length} bytes is longer than an admin queue buffer (4096); send fewer elements"
)]
pub struct MessageTooLong {
    /// Opcode of the message.
    pub opcode: Opcode,
    /// Its length, bytes.
    pub length: usize,
}

/// The exact length in bytes of a request with `elements` elements; `None` where the specification tells
/// no length. Messages without elements ignore `elements`, but GET_VF_RESOURCES is 4 bytes only with
/// one (virtchnl 1.1) and none without.
pub const fn exact_length(opcode: Opcode, elements: usize) -> Option<usize> {
    Some(match opcode {
        Opcode::Version => 8,
        Opcode::ResetVf => 0,
        Opcode::GetVfResources => {
            if elements == 0 {
                0
            } else {
                4
            }
        }
        Opcode::ConfigTxQueue => 24,
        Opcode::ConfigRxQueue => 40,
        Opcode::ConfigVsiQueues => 72 + 64 * elements,
        Opcode::ConfigIrqMap => 14 + 12 * elements,
        Opcode::EnableQueues | Opcode::DisableQueues | Opcode::GetStats => 12,
        Opcode::AddEthAddr | Opcode::DelEthAddr => 12 + 8 * elements,
        Opcode::AddVlan | Opcode::DelVlan => 6 + 2 * elements,
        Opcode::ConfigPromiscuousMode => 4,
        Opcode::ConfigRssHfunc | Opcode::SetRssHena => 8,
        Opcode::ConfigRssKey | Opcode::ConfigRssLut => 5 + elements,
        Opcode::RequestQueues => 2,
        Opcode::AddVlanV2 | Opcode::DelVlanV2 => 8 + 32 * elements,
        Opcode::EnableVlanStrippingV2
        | Opcode::DisableVlanStrippingV2
        | Opcode::EnableVlanInsertionV2
        | Opcode::DisableVlanInsertionV2
        | Opcode::EnableVlanFilteringV2
        | Opcode::DisableVlanFilteringV2 => 16,
        Opcode::EnableQueuesV2 | Opcode::DisableQueuesV2 => 16 + 8 * elements.saturating_sub(1),
        Opcode::MapQueueVector => 24 + 16 * elements.saturating_sub(1),
        Opcode::AddRssCfg | Opcode::DelRssCfg => 2444,
        Opcode::AddFdirFilter => 2616,
        Opcode::DelFdirFilter | Opcode::ConfigQuanta => 12,
        Opcode::ConfigQueueBw => 4 + 12 * elements,
        Opcode::PtpGetCaps => 48,
        Opcode::PtpGetTime => 16,
        Opcode::GetRssHenaCaps
        | Opcode::EnableVlanStripping
        | Opcode::DisableVlanStripping
        | Opcode::DisableChannels
        | Opcode::GetSupportedRxdids
        | Opcode::GetMaxRssQregion
        | Opcode::GetOffloadVlanV2Caps
        | Opcode::GetQosCaps => 0,
        _ => return None,
    })
}

/// Fills `out` up to the exact length, or says that it is too long.
pub(super) fn finish(
    opcode: Opcode,
    elements: usize,
    out: &mut Vec<u8>,
) -> Result<(), MessageTooLong> {
    let length = exact_length(opcode, elements).unwrap_or(out.len()).max(out.len());
    if length > MAX_MESSAGE {
        return Err(MessageTooLong { opcode, length });
    }
    out.resize(length, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_published_validation() {
        assert_eq!(exact_length(Opcode::ConfigVsiQueues, 16), Some(1096));
        assert_eq!(exact_length(Opcode::ConfigIrqMap, 5), Some(74));
        assert_eq!(exact_length(Opcode::AddEthAddr, 2), Some(28));
        assert_eq!(exact_length(Opcode::AddVlan, 1), Some(8));
        assert_eq!(exact_length(Opcode::AddVlanV2, 1), Some(40));
        assert_eq!(exact_length(Opcode::ConfigRssKey, 52), Some(57));
        assert_eq!(exact_length(Opcode::ConfigRssLut, 64), Some(69));
        assert_eq!(exact_length(Opcode::GetVfResources, 0), Some(0));
        assert_eq!(exact_length(Opcode::Event, 0), None);
        let mut too_long = vec![0; 8];
        assert!(finish(Opcode::AddVlanV2, 200, &mut too_long).is_err());
    }
}
