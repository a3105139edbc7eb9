//! Opcodes and status codes (SPEC-AVF §4.1, §4.2).

/// An opcode number that means nothing.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("virtchnl opcode {0} is not defined")]
pub struct UnknownOpcode(pub u32);

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// A virtchnl opcode (SPEC-AVF §4.2).
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
        #[repr(u32)]
        pub enum Opcode { $($(#[$doc])* $name = $value,)* }

        impl Opcode {
            /// Every opcode, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            pub const fn value(self) -> u32 {
                self as u32
            }
        }

        impl TryFrom<u32> for Opcode {
            type Error = UnknownOpcode;

            fn try_from(value: u32) -> Result<Self, UnknownOpcode> {
                match value {
                    $($value => Ok(Self::$name),)*
                    _ => Err(UnknownOpcode(value)),
                }
            }
        }
    };
}

opcodes! {
    /// Negotiates the version.
    Version = 1,
    /// Resets the VF; never answered.
    ResetVf = 2,
    /// Asks what the VF has.
    GetVfResources = 3,
    /// Configures one TX queue.
    ConfigTxQueue = 4,
    /// Configures one RX queue.
    ConfigRxQueue = 5,
    /// Configures queue pairs.
    ConfigVsiQueues = 6,
    /// Maps queues to vectors.
    ConfigIrqMap = 7,
    /// Starts queues.
    EnableQueues = 8,
    /// Stops queues.
    DisableQueues = 9,
    /// Adds MAC filters.
    AddEthAddr = 10,
    /// Removes MAC filters.
    DelEthAddr = 11,
    /// Adds VLAN filters.
    AddVlan = 12,
    /// Removes VLAN filters.
    DelVlan = 13,
    /// Sets promiscuous modes.
    ConfigPromiscuousMode = 14,
    /// Reads statistics.
    GetStats = 15,
    /// From the PF only: something happened.
    Event = 17,
    /// Chooses the RSS hash function.
    ConfigRssHfunc = 18,
    /// RDMA message.
    Rdma = 20,
    /// RDMA: configures an interrupt map.
    ConfigRdmaIrqMap = 21,
    /// RDMA: releases an interrupt map.
    ReleaseRdmaIrqMap = 22,
    /// Sets the RSS key.
    ConfigRssKey = 23,
    /// Sets the RSS lookup table.
    ConfigRssLut = 24,
    /// Asks which packet types can be hashed.
    GetRssHenaCaps = 25,
    /// Sets which packet types are hashed.
    SetRssHena = 26,
    /// Turns VLAN stripping on.
    EnableVlanStripping = 27,
    /// Turns VLAN stripping off.
    DisableVlanStripping = 28,
    /// Asks for another number of queue pairs; success is a reset and no reply.
    RequestQueues = 29,
    /// ADQ: enables channels.
    EnableChannels = 30,
    /// ADQ: disables channels.
    DisableChannels = 31,
    /// ADQ: adds a cloud filter.
    AddCloudFilter = 32,
    /// ADQ: removes a cloud filter.
    DelCloudFilter = 33,
    /// Inline IPsec.
    InlineIpsecCrypto = 34,
    /// DCF: command descriptor.
    DcfCommandDescriptor = 37,
    /// DCF: command buffer.
    DcfCommandBuffer = 38,
    /// DCF: disables the function.
    DcfDisable = 39,
    /// DCF: asks for the VSI map.
    DcfGetVsiMap = 40,
    /// DCF: asks for package information.
    DcfGetPackageInfo = 41,
    /// DCF: configures bandwidth.
    DcfConfigBandwidth = 42,
    /// DCF: VLAN offload.
    DcfVlanOffload = 43,
    /// Asks which RX descriptor formats there are.
    GetSupportedRxdids = 44,
    /// Adds an advanced RSS configuration.
    AddRssCfg = 45,
    /// Removes an advanced RSS configuration.
    DelRssCfg = 46,
    /// Adds a flow director filter.
    AddFdirFilter = 47,
    /// Removes a flow director filter.
    DelFdirFilter = 48,
    /// Large VF: asks for the largest RSS queue region.
    GetMaxRssQregion = 50,
    /// Asks for the VLAN capabilities.
    GetOffloadVlanV2Caps = 51,
    /// Adds VLAN filters, with ethertypes.
    AddVlanV2 = 52,
    /// Removes VLAN filters, with ethertypes.
    DelVlanV2 = 53,
    /// Turns VLAN stripping on, by ethertype.
    EnableVlanStrippingV2 = 54,
    /// Turns VLAN stripping off, by ethertype.
    DisableVlanStrippingV2 = 55,
    /// Turns VLAN insertion on, by ethertype.
    EnableVlanInsertionV2 = 56,
    /// Turns VLAN insertion off, by ethertype.
    DisableVlanInsertionV2 = 57,
    /// Turns VLAN filtering on, by ethertype.
    EnableVlanFilteringV2 = 58,
    /// Turns VLAN filtering off, by ethertype.
    DisableVlanFilteringV2 = 59,
    /// PTP: asks for capabilities.
    PtpGetCaps = 60,
    /// PTP: reads the clock.
    PtpGetTime = 61,
    /// PTP: sets the clock.
    PtpSetTime = 62,
    /// PTP: adjusts the clock.
    PtpAdjustTime = 63,
    /// PTP: adjusts the clock's frequency.
    PtpAdjustFrequency = 64,
    /// PTP: TX time stamp.
    PtpTxTimestamp = 65,
    /// Asks for the QoS capabilities.
    GetQosCaps = 66,
    /// Maps queues to traffic classes.
    ConfigQueueTcMap = 67,
    /// Large VF: starts queues.
    EnableQueuesV2 = 107,
    /// Large VF: stops queues.
    DisableQueuesV2 = 108,
    /// Large VF: maps queues to vectors.
    MapQueueVector = 111,
    /// Limits the bandwidth of queues.
    ConfigQueueBw = 112,
    /// Sets the scheduling quanta of queues.
    ConfigQuanta = 113,
}

/// The result of a request, in `cookie_low` (SPEC-AVF §4.1).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Status {
    /// 0.
    Success,
    /// −5: a parameter is wrong, or the message too short.
    Parameter,
    /// −18: out of memory.
    NoMemory,
    /// −38: the reply's opcode is not the request's.
    OpcodeMismatch,
    /// −39: control queue pair completion.
    CqpCompletion,
    /// −40: no such VF.
    InvalidVfId,
    /// −53: the admin queue failed; what PFs say of filters they cannot set.
    AdminQueue,
    /// −64: not supported, or not granted.
    NotSupported,
    /// Any other value.
    Other(i32),
}

impl Status {
    /// The number on the wire.
    pub const fn value(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::Parameter => -5,
            Self::NoMemory => -18,
            Self::OpcodeMismatch => -38,
            Self::CqpCompletion => -39,
            Self::InvalidVfId => -40,
            Self::AdminQueue => -53,
            Self::NotSupported => -64,
            Self::Other(value) => value,
        }
    }

    /// The status of a number.
    pub const fn of(value: i32) -> Self {
        match value {
            0 => Self::Success,
            -5 => Self::Parameter,
            -18 => Self::NoMemory,
            -38 => Self::OpcodeMismatch,
            -39 => Self::CqpCompletion,
            -40 => Self::InvalidVfId,
            -53 => Self::AdminQueue,
            -64 => Self::NotSupported,
            other => Self::Other(other),
        }
    }

    /// Whether the request succeeded.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_and_statuses_map_both_ways() {
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::try_from(opcode.value()), Ok(*opcode));
        }
        assert_eq!(Opcode::try_from(16), Err(UnknownOpcode(16)));
        for value in -100..=100 {
            assert_eq!(Status::of(value).value(), value);
        }
        assert!(Status::of(0).is_success() && !Status::of(-64).is_success());
    }
}
