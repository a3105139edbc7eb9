//! VM queues, which VPorts replace when SR-IOV is on (SPEC-NDIS-SRIOV §6.5, §15).

use zerocopy::little_endian::U32;

use crate::object::{
    ArrayLocation, FixedStructure, NdisStructure, ParseError, WireStructure, member, wire_structure,
};
use crate::{GroupAffinity, Name, NdisCountedString, NdisGroupAffinity, NdisStatus};

wire_structure! {
    /// NDIS_RECEIVE_QUEUE_PARAMETERS. Revision 1 is of NDIS 6.20, 2 of 6.30, 3 of later ones.
    NdisReceiveQueueParameters = "NDIS_RECEIVE_QUEUE_PARAMETERS", revisions [1084, 1092, 1096], sizeof 1096 {
        /// In a set request [`QueueChangeFlags`]; the low half are properties.
        4 flags: U32,
        /// [`QueueType`].
        8 queue_type: U32,
        /// The queue.
        12 queue_id: U32,
        /// Its group.
        16 queue_group_id: U32,
        /// Padding.
        20 padding: [u8; 4],
        /// Processors.
        24 processor_affinity: NdisGroupAffinity,
        /// Receive buffers.
        40 num_suggested_receive_buffers: U32,
        /// Interrupt.
        44 msix_table_entry: U32,
        /// Bytes.
        48 lookahead_size: U32,
        /// The VM.
        52 vm_name: NdisCountedString,
        /// The queue.
        568 queue_name: NdisCountedString,
        /// Revision 2: switch port.
        1084 port_id: U32,
        /// Revision 2: queues that share an interrupt.
        1088 interrupt_coalescing_domain_id: U32,
        /// Revision 3: QoS scheduler queue.
        1092 qos_sq_id: U32,
    }
}

bitflags::bitflags! {
    /// What a set request changes, the high half of the Flags member (SPEC-NDIS-SRIOV §6.5).
    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
    pub struct QueueChangeFlags: u32 {
        /// The low half of Flags.
        const FLAGS = 0x0001_0000;
        /// ProcessorAffinity.
        const PROCESSOR_AFFINITY = 0x0002_0000;
        /// NumSuggestedReceiveBuffers.
        const SUGGESTED_RECV_BUFFERS = 0x0004_0000;
        /// QueueName.
        const NAME = 0x0008_0000;
        /// InterruptCoalescingDomainId.
        const INTERRUPT_COALESCING_DOMAIN_ID = 0x0010_0000;
        /// QosSqId.
        const QOS_SQ_ID = 0x0020_0000;
    }
}

/// What a receive queue is for.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum QueueType {
    /// Not said.
    #[default]
    Unspecified,
    /// A VM.
    VmQueue,
}

impl QueueType {
    /// Reads the wire value.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Unspecified),
            1 => Some(Self::VmQueue),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Unspecified => 0,
            Self::VmQueue => 1,
        }
    }
}

/// Operational state of a receive queue.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum QueueState {
    /// Not said.
    #[default]
    Undefined,
    /// Receives.
    Running,
    /// Keeps what it has.
    Paused,
    /// Does no DMA any more; only on the way to being freed.
    DmaStopped,
}

impl QueueState {
    /// Reads the wire value.
    #[must_use]
    pub const fn from_wire(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Undefined),
            1 => Some(Self::Running),
            2 => Some(Self::Paused),
            3 => Some(Self::DmaStopped),
            _ => None,
        }
    }

    /// The wire value.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Undefined => 0,
            Self::Running => 1,
            Self::Paused => 2,
            Self::DmaStopped => 3,
        }
    }
}

/// What queue parameters and info have in common.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveQueue {
    /// Properties, and in a set request [`QueueChangeFlags`].
    pub flags: u32,
    /// What it is for.
    pub queue_type: QueueType,
    /// The queue.
    pub queue_id: u32,
    /// Its group.
    pub queue_group_id: u32,
    /// Processors that serve it.
    pub processor_affinity: GroupAffinity,
    /// Receive buffers.
    pub num_suggested_receive_buffers: u32,
    /// Interrupt.
    pub msix_table_entry: u32,
    /// Bytes.
    pub lookahead_size: u32,
    /// The VM.
    pub vm_name: Name,
    /// Name for people.
    pub queue_name: Name,
}

/// A receive queue as it is allocated, changed and queried.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveQueueParameters {
    /// Members of revision 1.
    pub queue: ReceiveQueue,
    /// Members of revision 2.
    pub coalescing: Option<ReceiveQueueCoalescing>,
}

/// Members of revisions 2 and 3 of a receive queue's parameters.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveQueueCoalescing {
    /// Switch port.
    pub port_id: u32,
    /// Queues that share an interrupt.
    pub interrupt_coalescing_domain_id: u32,
    /// QoS scheduler queue (revision 3).
    pub qos_sq_id: Option<u32>,
}

/// Reads the members that queue parameters and info share.
macro_rules! receive_queue {
    ($wire:ident) => {
        ReceiveQueue {
            flags: $wire.flags.get(),
            queue_type: QueueType::from_wire($wire.queue_type.get())
                .ok_or_else(|| member::<Self::Wire>("QueueType", $wire.queue_type))?,
            queue_id: $wire.queue_id.get(),
            queue_group_id: $wire.queue_group_id.get(),
            processor_affinity: GroupAffinity::from_wire(&$wire.processor_affinity),
            num_suggested_receive_buffers: $wire.num_suggested_receive_buffers.get(),
            msix_table_entry: $wire.msix_table_entry.get(),
            lookahead_size: $wire.lookahead_size.get(),
            vm_name: Name::from_member::<Self::Wire>("VmName", &$wire.vm_name)?,
            queue_name: Name::from_member::<Self::Wire>("QueueName", &$wire.queue_name)?,
        }
    };
}

impl FixedStructure for ReceiveQueueParameters {
    type Wire = NdisReceiveQueueParameters;

    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            queue: receive_queue!(wire),
            coalescing: (revision >= 2).then(|| ReceiveQueueCoalescing {
                port_id: wire.port_id.get(),
                interrupt_coalescing_domain_id: wire.interrupt_coalescing_domain_id.get(),
                qos_sq_id: (revision >= 3).then(|| wire.qos_sq_id.get()),
            }),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let queue = &self.queue;
        let coalescing = self.coalescing.unwrap_or_default();
        NdisReceiveQueueParameters {
            header: Default::default(),
            flags: U32::new(queue.flags),
            queue_type: U32::new(queue.queue_type.to_wire()),
            queue_id: U32::new(queue.queue_id),
            queue_group_id: U32::new(queue.queue_group_id),
            padding: [0; 4],
            processor_affinity: queue.processor_affinity.to_wire(),
            num_suggested_receive_buffers: U32::new(queue.num_suggested_receive_buffers),
            msix_table_entry: U32::new(queue.msix_table_entry),
            lookahead_size: U32::new(queue.lookahead_size),
            vm_name: queue.vm_name.to_wire(),
            queue_name: queue.queue_name.to_wire(),
            port_id: U32::new(coalescing.port_id),
            interrupt_coalescing_domain_id: U32::new(coalescing.interrupt_coalescing_domain_id),
            qos_sq_id: U32::new(coalescing.qos_sq_id.unwrap_or(0)),
        }
    }

    fn revision(&self) -> u8 {
        match self.coalescing {
            None => 1,
            Some(ReceiveQueueCoalescing { qos_sq_id: None, .. }) => 2,
            Some(ReceiveQueueCoalescing { qos_sq_id: Some(_), .. }) => 3,
        }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_QUEUE_INFO.
    NdisReceiveQueueInfo = "NDIS_RECEIVE_QUEUE_INFO", revisions [1084, 1092], sizeof 1096 {
        /// Properties.
        4 flags: U32,
        /// [`QueueType`].
        8 queue_type: U32,
        /// The queue.
        12 queue_id: U32,
        /// Its group.
        16 queue_group_id: U32,
        /// [`QueueState`].
        20 queue_state: U32,
        /// Processors.
        24 processor_affinity: NdisGroupAffinity,
        /// Receive buffers.
        40 num_suggested_receive_buffers: U32,
        /// Interrupt.
        44 msix_table_entry: U32,
        /// Bytes.
        48 lookahead_size: U32,
        /// The VM.
        52 vm_name: NdisCountedString,
        /// The queue.
        568 queue_name: NdisCountedString,
        /// Revision 2: receive filters set on the queue.
        1084 num_filters: U32,
        /// Revision 2: queues that share an interrupt.
        1088 interrupt_coalescing_domain_id: U32,
    }
}

/// A receive queue in an enumeration.
#[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveQueueInfo {
    /// Members that the parameters have, too.
    pub queue: ReceiveQueue,
    /// Operational state.
    pub queue_state: QueueState,
    /// Members of revision 2: receive filters set on the queue, and queues that share an interrupt.
    pub filters_and_domain: Option<(u32, u32)>,
}

impl FixedStructure for ReceiveQueueInfo {
    type Wire = NdisReceiveQueueInfo;

    fn from_wire(wire: &Self::Wire, revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            queue: receive_queue!(wire),
            queue_state: QueueState::from_wire(wire.queue_state.get())
                .ok_or_else(|| member::<Self::Wire>("QueueState", wire.queue_state))?,
            filters_and_domain: (revision >= 2)
                .then(|| (wire.num_filters.get(), wire.interrupt_coalescing_domain_id.get())),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        let queue = &self.queue;
        let (num_filters, domain) = self.filters_and_domain.unwrap_or_default();
        NdisReceiveQueueInfo {
            header: Default::default(),
            flags: U32::new(queue.flags),
            queue_type: U32::new(queue.queue_type.to_wire()),
            queue_id: U32::new(queue.queue_id),
            queue_group_id: U32::new(queue.queue_group_id),
            queue_state: U32::new(self.queue_state.to_wire()),
            processor_affinity: queue.processor_affinity.to_wire(),
            num_suggested_receive_buffers: U32::new(queue.num_suggested_receive_buffers),
            msix_table_entry: U32::new(queue.msix_table_entry),
            lookahead_size: U32::new(queue.lookahead_size),
            vm_name: queue.vm_name.to_wire(),
            queue_name: queue.queue_name.to_wire(),
            num_filters: U32::new(num_filters),
            interrupt_coalescing_domain_id: U32::new(domain),
        }
    }

    fn revision(&self) -> u8 {
        if self.filters_and_domain.is_some() { 2 } else { 1 }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_QUEUE_FREE_PARAMETERS.
    NdisReceiveQueueFreeParameters = "NDIS_RECEIVE_QUEUE_FREE_PARAMETERS", revisions [12], sizeof 12 {
        /// Reserved.
        4 flags: U32,
        /// The queue.
        8 queue_id: U32,
    }
}

/// Which receive queue to free.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct ReceiveQueueFreeParameters {
    /// The queue.
    pub queue_id: u32,
}

impl FixedStructure for ReceiveQueueFreeParameters {
    type Wire = NdisReceiveQueueFreeParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self { queue_id: wire.queue_id.get() })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveQueueFreeParameters {
            header: Default::default(),
            flags: U32::ZERO,
            queue_id: U32::new(self.queue_id),
        }
    }
}

wire_structure! {
    /// NDIS_RECEIVE_QUEUE_ALLOCATION_COMPLETE_PARAMETERS.
    NdisReceiveQueueAllocationCompleteParameters = "NDIS_RECEIVE_QUEUE_ALLOCATION_COMPLETE_PARAMETERS", revisions [16], sizeof 16 {
        /// Reserved.
        4 flags: U32,
        /// The queue.
        8 queue_id: U32,
        /// How its allocation ended.
        12 completion_status: U32,
    }
}

/// How the allocation of one receive queue ended.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct ReceiveQueueAllocationCompleteParameters {
    /// The queue.
    pub queue_id: u32,
    /// How its allocation ended.
    pub completion_status: NdisStatus,
}

impl FixedStructure for ReceiveQueueAllocationCompleteParameters {
    type Wire = NdisReceiveQueueAllocationCompleteParameters;

    fn from_wire(wire: &Self::Wire, _revision: u8) -> Result<Self, ParseError> {
        Ok(Self {
            queue_id: wire.queue_id.get(),
            completion_status: NdisStatus(wire.completion_status.get()),
        })
    }

    fn to_wire(&self) -> Self::Wire {
        NdisReceiveQueueAllocationCompleteParameters {
            header: Default::default(),
            flags: U32::ZERO,
            queue_id: U32::new(self.queue_id),
            completion_status: U32::new(self.completion_status.0),
        }
    }
}

/// Declares an array whose header has nothing but the location of its elements.
macro_rules! plain_array {
    (
        $(#[$wire_doc:meta])* $wire:ident = $name:literal,
        $(#[$doc:meta])* $type:ident of $element:ident as $element_wire:ident
    ) => {
        wire_structure! {
            $(#[$wire_doc])*
            $wire = $name, revisions [16], sizeof 16 {
                /// Where the first element starts, bytes from the array's header.
                4 first_element_offset: U32,
                /// How many there are.
                8 num_elements: U32,
                /// From one to the next, bytes.
                12 element_size: U32,
            }
        }

        $(#[$doc])*
        #[derive(Clone, Debug, Default, Eq, PartialEq, Hash)]
        pub struct $type {
            /// The elements.
            pub elements: Vec<$element>,
        }

        impl NdisStructure for $type {
            fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
                let (wire, revision) = $wire::read(bytes)?;
                let location = ArrayLocation {
                    first_element_offset: wire.first_element_offset.get(),
                    num_elements: wire.num_elements.get(),
                    element_size: wire.element_size.get(),
                };
                let elements = location
                    .elements::<$wire>(
                        bytes,
                        $wire::size_of_revision(revision),
                        $element_wire::size_of_revision(1),
                    )?
                    .into_iter()
                    .map($element::parse)
                    .collect::<Result<_, _>>()?;
                Ok(Self { elements })
            }

            fn emit(&self) -> Vec<u8> {
                let elements: Vec<_> = self.elements.iter().map($element::emit).collect();
                let location = ArrayLocation::after_header(16, &elements, $element_wire::SIZEOF);
                let mut bytes = $wire {
                    header: Default::default(),
                    first_element_offset: U32::new(location.first_element_offset),
                    num_elements: U32::new(location.num_elements),
                    element_size: U32::new(location.element_size),
                }
                .write(1);
                location.append(&mut bytes, &elements);
                bytes
            }
        }
    };
}

plain_array!(
    /// NDIS_RECEIVE_QUEUE_INFO_ARRAY.
    NdisReceiveQueueInfoArray = "NDIS_RECEIVE_QUEUE_INFO_ARRAY",
    /// The receive queues of an adapter.
    ReceiveQueueInfoArray of ReceiveQueueInfo as NdisReceiveQueueInfo
);
plain_array!(
    /// NDIS_RECEIVE_QUEUE_ALLOCATION_COMPLETE_ARRAY.
    NdisReceiveQueueAllocationCompleteArray = "NDIS_RECEIVE_QUEUE_ALLOCATION_COMPLETE_ARRAY",
    /// How the allocation of several receive queues ended.
    ReceiveQueueAllocationCompleteArray of ReceiveQueueAllocationCompleteParameters
        as NdisReceiveQueueAllocationCompleteParameters
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{any_name, structure_properties};
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    fn any_queue() -> impl Strategy<Value = ReceiveQueue> {
        (any::<[u32; 6]>(), any::<bool>(), any::<(u64, u16)>(), any_name(), any_name()).prop_map(
            |(n, vm, (mask, group), vm_name, queue_name)| ReceiveQueue {
                flags: n[0],
                queue_type: if vm { QueueType::VmQueue } else { QueueType::Unspecified },
                queue_id: n[1],
                queue_group_id: n[2],
                processor_affinity: GroupAffinity { mask, group },
                num_suggested_receive_buffers: n[3],
                msix_table_entry: n[4],
                lookahead_size: n[5],
                vm_name,
                queue_name,
            },
        )
    }

    fn any_coalescing() -> impl Strategy<Value = ReceiveQueueCoalescing> {
        any::<(u32, u32, Option<u32>)>().prop_map(|(port_id, domain, qos_sq_id)| {
            ReceiveQueueCoalescing { port_id, interrupt_coalescing_domain_id: domain, qos_sq_id }
        })
    }

    fn any_info() -> impl Strategy<Value = ReceiveQueueInfo> {
        (any_queue(), 0_u32..4, any::<Option<(u32, u32)>>()).prop_map(
            |(queue, state, filters_and_domain)| ReceiveQueueInfo {
                queue,
                queue_state: QueueState::from_wire(state).unwrap(),
                filters_and_domain,
            },
        )
    }

    fn any_completion() -> impl Strategy<Value = ReceiveQueueAllocationCompleteParameters> {
        any::<(u32, u32)>().prop_map(|(queue_id, status)| {
            ReceiveQueueAllocationCompleteParameters {
                queue_id,
                completion_status: NdisStatus(status),
            }
        })
    }

    structure_properties!(
        parameters,
        ReceiveQueueParameters,
        (any_queue(), of(any_coalescing()))
            .prop_map(|(queue, coalescing)| ReceiveQueueParameters { queue, coalescing })
    );
    structure_properties!(info, ReceiveQueueInfo, any_info());
    structure_properties!(
        free,
        ReceiveQueueFreeParameters,
        any::<u32>().prop_map(|queue_id| ReceiveQueueFreeParameters { queue_id })
    );
    structure_properties!(completion, ReceiveQueueAllocationCompleteParameters, any_completion());
    structure_properties!(
        completion_array,
        ReceiveQueueAllocationCompleteArray,
        vec(any_completion(), 0..5)
            .prop_map(|elements| ReceiveQueueAllocationCompleteArray { elements })
    );
    structure_properties!(
        info_array,
        ReceiveQueueInfoArray,
        vec(any_info(), 1..3).prop_map(|elements| ReceiveQueueInfoArray { elements })
    );

    #[test]
    fn the_three_revisions_have_the_published_sizes() {
        let mut parameters = ReceiveQueueParameters::default();
        assert_eq!(parameters.emit().len(), 1084);
        parameters.coalescing = Some(ReceiveQueueCoalescing::default());
        assert_eq!(parameters.emit().len(), 1092);
        parameters.coalescing =
            Some(ReceiveQueueCoalescing { qos_sq_id: Some(0), ..Default::default() });
        assert_eq!(parameters.emit().len(), 1096);
    }
}
