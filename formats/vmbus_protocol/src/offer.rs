//! What a server tells of a channel it offers (SPEC-VMBUS §1.5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{ChannelId, Guid};

bitflags::bitflags! {
    /// Flags of an offer. Unknown bits are kept.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Hash)]
    pub struct OfferFlags: u16 {
        /// The guest is to enumerate it as a device interface.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// The rings lie in confidential memory.
        const CONFIDENTIAL_RING = 0x0002;
        /// Other memory of the channel is confidential.
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004;
        /// Other memory of the channel is pinned.
        const PINNED_EXTERNAL_MEMORY = 0x0008;
        /// Packets carry pipe headers.
        const NAMED_PIPE_MODE = 0x0010;
        /// An hvsocket.
        const TLNPI_PROVIDER = 0x2000;
        const _ = !0;
    }
}

/// Bytes of an offer that belong to the device, and of OPEN_CHANNEL that belong to its client.
pub const USER_DEFINED_SIZE: usize = 120;

/// The device's own bytes of an offer.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct UserDefined(pub [u8; USER_DEFINED_SIZE]);

impl Default for UserDefined {
    fn default() -> Self {
        Self([0; USER_DEFINED_SIZE])
    }
}

/// How a pipe's data is cut.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
#[repr(u32)]
pub enum PipeType {
    /// Not at all.
    Byte = 0,
    /// Into messages.
    Message = 4,
}

impl PipeType {
    fn from_wire(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Byte),
            4 => Some(Self::Message),
            _ => None,
        }
    }
}

/// The user-defined bytes of an offer in pipe mode.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct PipeUserDefined {
    /// How data is cut.
    pub pipe_type: PipeType,
    /// The provider's bytes.
    pub provider: [u8; 112],
    /// GPA-direct packets may be sent.
    pub gpa_direct: bool,
}

/// The user-defined bytes of an hvsocket's offer.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct HvsockUserDefined {
    /// How data is cut.
    pub pipe_type: PipeType,
    /// The guest accepts the connection, rather than having asked for it.
    pub is_for_guest_accept: bool,
    /// It is for a container in the guest.
    pub is_for_container: bool,
    /// 0 before RS5, 1 from then on.
    pub version: u32,
    /// The silo it belongs to.
    pub silo_id: Guid,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PipeWire {
    pipe_type: u32,
    provider: [u8; 112],
    flags: u32,
}

const _: () = assert!(size_of::<PipeWire>() == USER_DEFINED_SIZE);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct HvsockWire {
    pipe_type: u32,
    is_for_guest_accept: u8,
    is_for_container: u8,
    version: u32,
    silo_id: [u8; 16],
    pad: [u8; 2],
}

const _: () = {
    assert!(size_of::<HvsockWire>() == 28);
    assert!(core::mem::offset_of!(HvsockWire, version) == 6);
    assert!(core::mem::offset_of!(HvsockWire, silo_id) == 10);
};

impl UserDefined {
    /// As those of an offer in pipe mode, if the pipe type is known.
    pub fn pipe(&self) -> Option<PipeUserDefined> {
        let wire = PipeWire::read_from_bytes(&self.0).ok()?;
        let pipe_type = PipeType::from_wire(wire.pipe_type)?;
        Some(PipeUserDefined {
            pipe_type,
            provider: wire.provider,
            gpa_direct: wire.flags & 1 != 0,
        })
    }

    /// As those of an hvsocket, if the pipe type is known.
    pub fn hvsock(&self) -> Option<HvsockUserDefined> {
        let (wire, _) = HvsockWire::read_from_prefix(&self.0).ok()?;
        Some(HvsockUserDefined {
            pipe_type: PipeType::from_wire(wire.pipe_type)?,
            is_for_guest_accept: wire.is_for_guest_accept != 0,
            is_for_container: wire.is_for_container != 0,
            version: wire.version,
            silo_id: zerocopy::transmute!(wire.silo_id),
        })
    }
}

impl From<PipeUserDefined> for UserDefined {
    fn from(pipe: PipeUserDefined) -> Self {
        let wire = PipeWire {
            pipe_type: pipe.pipe_type as u32,
            provider: pipe.provider,
            flags: u32::from(pipe.gpa_direct),
        };
        Self(zerocopy::transmute!(wire))
    }
}

impl From<HvsockUserDefined> for UserDefined {
    fn from(socket: HvsockUserDefined) -> Self {
        let wire = HvsockWire {
            pipe_type: socket.pipe_type as u32,
            is_for_guest_accept: u8::from(socket.is_for_guest_accept),
            is_for_container: u8::from(socket.is_for_container),
            version: socket.version,
            silo_id: zerocopy::transmute!(socket.silo_id),
            pad: [0; 2],
        };
        let mut bytes = [0; USER_DEFINED_SIZE];
        let _ = wire.write_to_prefix(&mut bytes);
        Self(bytes)
    }
}

/// A channel as it is offered.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Offer {
    /// What kind of device.
    pub interface_id: Guid,
    /// Which device.
    pub instance_id: Guid,
    /// What the guest is to know about it.
    pub flags: OfferFlags,
    /// MMIO space the device needs, MiB.
    pub mmio_megabytes: u16,
    /// MMIO space the device would like, MiB.
    pub mmio_megabytes_optional: u16,
    /// The device's own bytes.
    pub user_defined: UserDefined,
    /// 0: the device's primary channel.
    pub subchannel_index: u16,
    /// Its name in this connection.
    pub channel: ChannelId,
    /// The bit of the monitor page by which it may be signalled.
    pub monitor_id: Option<u8>,
    /// It has an interrupt of its own: always so from 2.4 on.
    pub is_dedicated_interrupt: bool,
    /// The connection id by which the guest signals it.
    pub connection_id: u32,
}

/// OFFER_CHANNEL, behind the message header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OfferWire {
    interface_id: Guid,
    instance_id: Guid,
    reserved: [u8; 16],
    flags: u16,
    mmio_megabytes: u16,
    user_defined: [u8; USER_DEFINED_SIZE],
    subchannel_index: u16,
    mmio_megabytes_optional: u16,
    channel_id: u32,
    monitor_id: u8,
    monitor_allocated: u8,
    is_dedicated_interrupt: u16,
    connection_id: u32,
}

const _: () = {
    assert!(size_of::<OfferWire>() == 188);
    assert!(core::mem::offset_of!(OfferWire, flags) == 48);
    assert!(core::mem::offset_of!(OfferWire, user_defined) == 52);
    assert!(core::mem::offset_of!(OfferWire, channel_id) == 176);
    assert!(core::mem::offset_of!(OfferWire, connection_id) == 184);
};

impl From<&Offer> for OfferWire {
    fn from(offer: &Offer) -> Self {
        Self {
            interface_id: offer.interface_id,
            instance_id: offer.instance_id,
            reserved: [0; 16],
            flags: offer.flags.bits(),
            mmio_megabytes: offer.mmio_megabytes,
            user_defined: offer.user_defined.0,
            subchannel_index: offer.subchannel_index,
            mmio_megabytes_optional: offer.mmio_megabytes_optional,
            channel_id: offer.channel.0,
            monitor_id: offer.monitor_id.unwrap_or(0xFF),
            monitor_allocated: u8::from(offer.monitor_id.is_some()),
            is_dedicated_interrupt: u16::from(offer.is_dedicated_interrupt),
            connection_id: offer.connection_id,
        }
    }
}

impl From<OfferWire> for Offer {
    fn from(wire: OfferWire) -> Self {
        let has_monitor = wire.monitor_allocated != 0 && wire.monitor_id != 0xFF;
        Self {
            interface_id: wire.interface_id,
            instance_id: wire.instance_id,
            flags: OfferFlags::from_bits_retain(wire.flags),
            mmio_megabytes: wire.mmio_megabytes,
            mmio_megabytes_optional: wire.mmio_megabytes_optional,
            user_defined: UserDefined(wire.user_defined),
            subchannel_index: wire.subchannel_index,
            channel: ChannelId(wire.channel_id),
            monitor_id: has_monitor.then_some(wire.monitor_id),
            is_dedicated_interrupt: wire.is_dedicated_interrupt & 1 != 0,
            connection_id: wire.connection_id,
        }
    }
}
