//! What a function is given when it is made, and what its administrator may change later.

use avf_protocol::{MAX_FRAME_SIZE, MAX_QUEUE_PAIRS, MacAddress, virtchnl::Capabilities};

/// The most MSI-X vectors of a function: vector 0 and one for each queue pair.
pub const MAX_VECTORS: u16 = MAX_QUEUE_PAIRS + 1;

/// The capabilities that this device serves (SPEC-AVF §4.3).
pub const SERVED_CAPABILITIES: Capabilities = RECOMMENDED_CAPABILITIES
    .with(Capabilities::ENCAP)
    .with(Capabilities::ENCAP_CSUM)
    .with(Capabilities::RX_FLEX_DESC);

/// The set of SPEC-AVF §4.4, without tunnel offloads and flex descriptors. Of VLAN and VLAN_V2 only one is
/// ever granted.
pub const RECOMMENDED_CAPABILITIES: Capabilities = Capabilities::L2
    .with(Capabilities::RSS_PF)
    .with(Capabilities::WB_ON_ITR)
    .with(Capabilities::ADV_LINK_SPEED)
    .with(Capabilities::VLAN_V2)
    .with(Capabilities::VLAN)
    .with(Capabilities::USO)
    .with(Capabilities::RX_POLLING)
    .with(Capabilities::RSS_PCTYPE_V2)
    .with(Capabilities::REQ_QUEUES);

/// What one function is made of.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct VfConfig {
    /// Opaque id that drivers echo, not zero.
    pub vsi_id: u16,
    /// The most queue pairs REQUEST_QUEUES may ask for, 1–16.
    pub max_queue_pairs: u16,
    /// Queue pairs at power-on, 1–`max_queue_pairs`.
    pub queue_pairs: u16,
    /// MSI-X vectors, 2–17; vector 0 is the admin queue's.
    pub vectors: u16,
    /// MAC address at power-on; zero leaves the choice to the driver.
    pub mac: MacAddress,
    /// What may be granted; more than [`SERVED_CAPABILITIES`] is refused.
    pub capabilities: Capabilities,
    /// The largest frame, bytes without FCS and with all tags, 1518–9728.
    pub max_frame: u16,
    /// The most MAC filters besides the primary address.
    pub mac_filters: u16,
    /// The most VLAN filters.
    pub vlan_filters: u16,
}

impl VfConfig {
    /// A function with `queue_pairs` queue pairs (1–16) and as many vectors as it can use.
    pub const fn new(vsi_id: u16, queue_pairs: u16, mac: MacAddress) -> Self {
        Self {
            vsi_id,
            max_queue_pairs: queue_pairs,
            queue_pairs,
            vectors: queue_pairs + 1,
            mac,
            capabilities: RECOMMENDED_CAPABILITIES,
            max_frame: MAX_FRAME_SIZE,
            mac_filters: 64,
            vlan_filters: 64,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.vsi_id == 0 {
            return Err(ConfigError::VsiId);
        }
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.max_queue_pairs)
            || !(1..=self.max_queue_pairs).contains(&self.queue_pairs)
        {
            return Err(ConfigError::QueuePairs {
                initial: self.queue_pairs,
                maximum: self.max_queue_pairs,
            });
        }
        if !(2..=MAX_VECTORS).contains(&self.vectors) {
            return Err(ConfigError::Vectors(self.vectors));
        }
        if self.mac.is_multicast() {
            return Err(ConfigError::Mac(self.mac));
        }
        if !SERVED_CAPABILITIES.contains(self.capabilities) {
            return Err(ConfigError::Capabilities(self.capabilities.without(SERVED_CAPABILITIES)));
        }
        if !(1518..=MAX_FRAME_SIZE).contains(&self.max_frame) {
            return Err(ConfigError::MaxFrame(self.max_frame));
        }
        Ok(())
    }
}

/// What the administrator of a function has decided.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct AdminSettings {
    /// The only unicast address the VF may use, unless it is trusted.
    pub pinned_mac: Option<MacAddress>,
    /// The VF may be promiscuous and use any address.
    pub trusted: bool,
    /// The VF may be promiscuous, also if it is not trusted.
    pub allow_promiscuous: bool,
}

/// A function that cannot be made.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The VSI id is zero.
    #[error("a function's VSI id must not be zero")]
    VsiId,
    /// Numbers of queue pairs.
    #[error("{initial} queue pairs of at most {maximum} are not possible: give 1 to 16")]
    QueuePairs {
        /// At power-on.
        initial: u16,
        /// At most.
        maximum: u16,
    },
    /// Number of vectors.
    #[error("{0} MSI-X vectors are not possible: give 2 to 17")]
    Vectors(u16),
    /// Interrupts made for another number of vectors.
    #[error(
        "the function has {configured} MSI-X vectors and its interrupts {made}: make them equal"
    )]
    VectorsDiffer {
        /// In the configuration.
        configured: u16,
        /// In the [`crate::InterruptVectors`].
        made: u16,
    },
    /// A group address.
    #[error("{0} is a group address: give a unicast address or zero")]
    Mac(MacAddress),
    /// Capabilities without an implementation.
    #[error("the device does not serve the capabilities {:#010x}", .0.0)]
    Capabilities(Capabilities),
    /// Frame size.
    #[error("a largest frame of {0} bytes is not possible: give 1518 to 9728")]
    MaxFrame(u16),
}
