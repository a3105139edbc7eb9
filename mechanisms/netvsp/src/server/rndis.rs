//! RNDIS control messages and OIDs (SPEC-VMBUS §6).

use std::time::Instant;

use netvsp_protocol::{
    MacAddress, NdisStatus, ParseError,
    nvsp::{MAX_RECEIVE_TABLE_ENTRIES, NvspStatus, SEND_BUFFER_SECTION_SIZE, ServerMessage},
    offload::{
        ChecksumSetting, LargeSendSetting, OffloadCapabilities, OffloadParameters,
        parse_encapsulation,
    },
    oid::{ConfigParameter, ConfigValue, LinkState, Oid, PacketFilter},
    rndis::{
        MAJOR_VERSION, MAX_PACKETS_PER_MESSAGE, MAX_TRANSFER_SIZE, PACKET_ALIGNMENT, Reply,
        Request, STATUS_BAD_VERSION, STATUS_CURRENT_OFFLOAD, STATUS_LINK_SPEED_CHANGE,
        STATUS_MEDIA_CONNECT, STATUS_MEDIA_DISCONNECT,
    },
    rss::{RssCapabilities, RssParameters},
};

use super::{Upcall, control::Control, control::Rndis};
use crate::{Outgoing, Steering};

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// Multicast addresses that a guest may list.
const MAX_MULTICAST: u32 = 32;
/// Copies, sees its own frames not, transfers not pending, 802.1p and 802.1Q.
const MAC_OPTIONS: u32 = 0x01 | 0x08 | 0x10 | 0x40;
const VENDOR: &[u8] = b"Clearway\0";

/// OIDs that may be asked or set.
const SUPPORTED: [Oid; 36] = [
    Oid::GEN_SUPPORTED_LIST,
    Oid::GEN_HARDWARE_STATUS,
    Oid::GEN_MEDIA_SUPPORTED,
    Oid::GEN_MEDIA_IN_USE,
    Oid::GEN_MAXIMUM_LOOKAHEAD,
    Oid::GEN_MAXIMUM_FRAME_SIZE,
    Oid::GEN_LINK_SPEED,
    Oid::GEN_TRANSMIT_BUFFER_SPACE,
    Oid::GEN_RECEIVE_BUFFER_SPACE,
    Oid::GEN_TRANSMIT_BLOCK_SIZE,
    Oid::GEN_RECEIVE_BLOCK_SIZE,
    Oid::GEN_VENDOR_ID,
    Oid::GEN_VENDOR_DESCRIPTION,
    Oid::GEN_CURRENT_PACKET_FILTER,
    Oid::GEN_CURRENT_LOOKAHEAD,
    Oid::GEN_DRIVER_VERSION,
    Oid::GEN_MAXIMUM_TOTAL_SIZE,
    Oid::GEN_MAC_OPTIONS,
    Oid::GEN_MEDIA_CONNECT_STATUS,
    Oid::GEN_MAXIMUM_SEND_PACKETS,
    Oid::GEN_VENDOR_DRIVER_VERSION,
    Oid::GEN_NETWORK_LAYER_ADDRESSES,
    Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
    Oid::GEN_RECEIVE_SCALE_PARAMETERS,
    Oid::GEN_MAX_LINK_SPEED,
    Oid::GEN_LINK_STATE,
    Oid::GEN_RNDIS_CONFIG_PARAMETER,
    Oid::GEN_FRIENDLY_NAME,
    Oid::IEEE_802_3_PERMANENT_ADDRESS,
    Oid::IEEE_802_3_CURRENT_ADDRESS,
    Oid::IEEE_802_3_MULTICAST_LIST,
    Oid::IEEE_802_3_MAXIMUM_LIST_SIZE,
    Oid::OFFLOAD_ENCAPSULATION,
    Oid::TCP_OFFLOAD_CURRENT_CONFIG,
    Oid::TCP_OFFLOAD_PARAMETERS,
    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
];

fn status(error: ParseError) -> NdisStatus {
    error.status()
}

impl Control {
    /// An RNDIS control message, or why it could not be read.
    pub(super) fn rndis(
        &mut self,
        transaction: Option<u64>,
        bytes: Result<Vec<u8>, ParseError>,
        now: Instant,
    ) {
        let request = match &bytes {
            Ok(bytes) => Request::parse(bytes),
            Err(error) => Err(*error),
        };
        // The completion says that the message was taken; what is asked is answered by a message.
        let taken = match request {
            Ok(_) => NvspStatus::SUCCESS,
            Err(_) => NvspStatus::INVALID_RNDIS_PACKET,
        };
        self.answer(transaction, Some(ServerMessage::SendRndisPacketComplete { status: taken }));
        if let Ok(request) = request {
            self.request(request, now);
        }
    }

    fn reply(&mut self, reply: &Reply<'_>) {
        self.push(Outgoing::Rndis { bytes: reply.emit() });
    }

    fn request(&mut self, request: Request<'_>, now: Instant) {
        let up = self.session.rndis == Rndis::Up;
        match request {
            Request::Initialize { request_id, major, .. } => {
                let known = major == MAJOR_VERSION;
                let status = if known { NdisStatus::SUCCESS } else { STATUS_BAD_VERSION };
                self.reply(&Reply::InitializeComplete {
                    request_id,
                    status,
                    max_packets: MAX_PACKETS_PER_MESSAGE,
                    max_transfer: MAX_TRANSFER_SIZE,
                    alignment: PACKET_ALIGNMENT,
                });
                if known && !up {
                    self.initialized(now);
                }
            }
            Request::Halt { .. } => self.halted(),
            Request::Query { request_id, oid, .. } => {
                let value = if up { self.query(oid) } else { Err(NdisStatus::NOT_ACCEPTED) };
                let (status, info) = match &value {
                    Ok(info) => (NdisStatus::SUCCESS, info.as_slice()),
                    Err(status) => (*status, &[][..]),
                };
                self.reply(&Reply::QueryComplete { request_id, status, info });
            }
            Request::Set { request_id, oid, info } => {
                let result = if up { self.set(oid, info) } else { Err(NdisStatus::NOT_ACCEPTED) };
                let status = result.err().unwrap_or(NdisStatus::SUCCESS);
                self.reply(&Reply::SetComplete { request_id, status });
                if result.is_ok()
                    && matches!(oid, Oid::TCP_OFFLOAD_PARAMETERS | Oid::GEN_RNDIS_CONFIG_PARAMETER)
                {
                    let buffer = self.session.offloads.emit();
                    let status = STATUS_CURRENT_OFFLOAD;
                    self.reply(&Reply::IndicateStatus { status, buffer: &buffer });
                }
            }
            Request::Reset => {
                self.set_filter(PacketFilter::empty());
                let status = NdisStatus::SUCCESS;
                self.reply(&Reply::ResetComplete { status, addressing_reset: true });
            }
            Request::KeepAlive { request_id } => {
                let status = NdisStatus::SUCCESS;
                self.reply(&Reply::KeepAliveComplete { request_id, status });
            }
        }
    }

    /// The value of an OID.
    fn query(&self, oid: Oid) -> Result<Vec<u8>, NdisStatus> {
        let word = |value: u32| Ok(value.to_le_bytes().to_vec());
        let config = &self.config;
        let mtu = self.mtu();
        match oid {
            Oid::GEN_SUPPORTED_LIST => {
                Ok(SUPPORTED.iter().flat_map(|oid| oid.0.to_le_bytes()).collect())
            }
            // Ready; 802.3.
            Oid::GEN_HARDWARE_STATUS | Oid::GEN_MEDIA_SUPPORTED | Oid::GEN_MEDIA_IN_USE => word(0),
            Oid::GEN_MAXIMUM_LOOKAHEAD
            | Oid::GEN_CURRENT_LOOKAHEAD
            | Oid::GEN_MAXIMUM_FRAME_SIZE => word(mtu - ETHERNET),
            Oid::GEN_TRANSMIT_BLOCK_SIZE
            | Oid::GEN_RECEIVE_BLOCK_SIZE
            | Oid::GEN_MAXIMUM_TOTAL_SIZE => word(mtu),
            Oid::GEN_LINK_SPEED => word(u32::try_from(config.link_speed / 100).unwrap_or(u32::MAX)),
            Oid::GEN_TRANSMIT_BUFFER_SPACE => word(SEND_BUFFER_SECTION_SIZE * 64),
            Oid::GEN_RECEIVE_BUFFER_SPACE => word(mtu * 64),
            // No IEEE-assigned vendor code.
            Oid::GEN_VENDOR_ID => word(0x00FF_FFFF),
            Oid::GEN_VENDOR_DESCRIPTION => Ok(VENDOR.to_vec()),
            Oid::GEN_CURRENT_PACKET_FILTER => word(self.session.filter.bits()),
            Oid::GEN_DRIVER_VERSION => Ok(0x0600u16.to_le_bytes().to_vec()),
            Oid::GEN_VENDOR_DRIVER_VERSION => Ok(0x0100u16.to_le_bytes().to_vec()),
            Oid::GEN_MAC_OPTIONS => word(MAC_OPTIONS),
            Oid::GEN_MEDIA_CONNECT_STATUS => word(u32::from(!config.connected)),
            Oid::GEN_MAXIMUM_SEND_PACKETS => word(MAX_PACKETS_PER_MESSAGE),
            Oid::GEN_RECEIVE_SCALE_CAPABILITIES => Ok(self.rss_capabilities().emit().to_vec()),
            Oid::GEN_MAX_LINK_SPEED => {
                let speed = config.link_speed.to_le_bytes();
                Ok([speed, speed].concat())
            }
            Oid::GEN_LINK_STATE => Ok(self.link_state().emit().to_vec()),
            Oid::GEN_FRIENDLY_NAME => {
                let name = config.friendly_name.encode_utf16().take(255).chain([0]);
                Ok(name.flat_map(u16::to_le_bytes).collect())
            }
            Oid::IEEE_802_3_PERMANENT_ADDRESS | Oid::IEEE_802_3_CURRENT_ADDRESS => {
                Ok(config.mac.octets().to_vec())
            }
            Oid::IEEE_802_3_MAXIMUM_LIST_SIZE => word(MAX_MULTICAST),
            Oid::TCP_OFFLOAD_CURRENT_CONFIG => Ok(self.session.offloads.emit().to_vec()),
            Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => Ok(config.offloads.emit().to_vec()),
            _ => Err(NdisStatus::NOT_SUPPORTED),
        }
    }

    fn rss_capabilities(&self) -> RssCapabilities {
        RssCapabilities {
            flags: RssCapabilities::TOEPLITZ
                | RssCapabilities::TCP_IPV4
                | RssCapabilities::TCP_IPV6,
            interrupt_messages: u32::from(self.config.max_channels),
            receive_queues: u32::from(self.config.max_channels),
            table_entries: u16::try_from(MAX_RECEIVE_TABLE_ENTRIES).unwrap_or(u16::MAX),
        }
    }

    fn link_state(&self) -> LinkState {
        LinkState {
            connected: self.config.connected,
            transmit_speed: self.config.link_speed,
            receive_speed: self.config.link_speed,
        }
    }

    /// Takes the value of an OID.
    fn set(&mut self, oid: Oid, info: &[u8]) -> Result<(), NdisStatus> {
        match oid {
            Oid::GEN_CURRENT_PACKET_FILTER => {
                let filter = info.first_chunk().ok_or(NdisStatus::INVALID_LENGTH)?;
                self.set_filter(PacketFilter::from_bits_retain(u32::from_le_bytes(*filter)));
                Ok(())
            }
            Oid::GEN_NETWORK_LAYER_ADDRESSES | Oid::GEN_CURRENT_LOOKAHEAD => Ok(()),
            Oid::IEEE_802_3_MULTICAST_LIST => {
                if !info.len().is_multiple_of(6) || info.len() > MAX_MULTICAST as usize * 6 {
                    return Err(NdisStatus::INVALID_LENGTH);
                }
                let (addresses, _) = info.as_chunks::<6>();
                let list = addresses.iter().map(|address| MacAddress::new(*address)).collect();
                self.up(Upcall::MulticastList(list));
                Ok(())
            }
            Oid::GEN_RECEIVE_SCALE_PARAMETERS => {
                let parameters = RssParameters::parse(info).map_err(status)?;
                if !parameters.disable && !parameters.fits(u32::from(self.channels())) {
                    return Err(NdisStatus::INVALID_DATA);
                }
                self.steer(Steering::new(&parameters));
                Ok(())
            }
            Oid::TCP_OFFLOAD_PARAMETERS => {
                let wish = OffloadParameters::parse(info).map_err(status)?;
                self.set_offloads(&wish);
                Ok(())
            }
            Oid::OFFLOAD_ENCAPSULATION => match parse_encapsulation(info).map_err(status)? {
                true => Ok(()),
                false => Err(NdisStatus::NOT_SUPPORTED),
            },
            Oid::GEN_RNDIS_CONFIG_PARAMETER => {
                self.config_parameter(&ConfigParameter::parse(info).map_err(status)?)
            }
            _ => Err(NdisStatus::NOT_SUPPORTED),
        }
    }

    fn set_filter(&mut self, filter: PacketFilter) {
        self.session.filter = filter;
        self.update_queues();
        self.up(Upcall::PacketFilter(filter));
    }

    fn set_offloads(&mut self, wish: &OffloadParameters) {
        let offloads = self.config.offloads.with_parameters(&self.session.offloads, wish);
        self.session.offloads = offloads;
        self.up(Upcall::Offloads(offloads));
    }

    /// A keyword of the adapter's settings, as Linux and Windows guests set them.
    fn config_parameter(&mut self, parameter: &ConfigParameter) -> Result<(), NdisStatus> {
        if parameter.name == "NetworkAddress" {
            let ConfigValue::Text(text) = &parameter.value else {
                return Err(NdisStatus::INVALID_DATA);
            };
            let mac = parse_mac(text).ok_or(NdisStatus::INVALID_DATA)?;
            self.up(Upcall::MacAddressWish(mac));
            return Ok(());
        }
        let digit = match &parameter.value {
            ConfigValue::Integer(value) => *value,
            ConfigValue::Text(text) => text.parse().map_err(|_| NdisStatus::INVALID_DATA)?,
        };
        let sum = ChecksumSetting::from_keyword(digit).ok_or(NdisStatus::INVALID_DATA);
        let lso = match digit {
            0 => Ok(LargeSendSetting::Off),
            1 => Ok(LargeSendSetting::On),
            _ => Err(NdisStatus::INVALID_DATA),
        };
        let mut wish = OffloadParameters::default();
        match parameter.name.as_str() {
            "*IPChecksumOffloadIPv4" => wish.ipv4 = sum?,
            "*TCPChecksumOffloadIPv4" => wish.tcp4 = sum?,
            "*UDPChecksumOffloadIPv4" => wish.udp4 = sum?,
            "*TCPChecksumOffloadIPv6" => wish.tcp6 = sum?,
            "*UDPChecksumOffloadIPv6" => wish.udp6 = sum?,
            "*LsoV2IPv4" => wish.large_send_v4 = lso?,
            "*LsoV2IPv6" => wish.large_send_v6 = lso?,
            // Settings without a meaning here are taken and do nothing.
            _ => return Ok(()),
        }
        self.set_offloads(&wish);
        Ok(())
    }

    /// The link's state or speed changed.
    pub fn set_link(&mut self, connected: bool, link_speed: u64) {
        let config = &mut self.config;
        let (was, speed) = (config.connected, config.link_speed);
        (config.connected, config.link_speed) = (connected, link_speed);
        if self.session.rndis != Rndis::Up {
            return;
        }
        if was != connected {
            let status = if connected { STATUS_MEDIA_CONNECT } else { STATUS_MEDIA_DISCONNECT };
            self.indicate(&Reply::IndicateStatus { status, buffer: &[] });
        }
        if speed != link_speed {
            let [a, b] = [link_speed.to_le_bytes(); 2];
            let buffer = [a, b].concat();
            let status = STATUS_LINK_SPEED_CHANGE;
            self.indicate(&Reply::IndicateStatus { status, buffer: &buffer });
        }
    }

    /// The offloads that whoever forwards the frames can do changed.
    pub fn set_offload_capabilities(&mut self, offloads: OffloadCapabilities) {
        self.config.offloads = offloads;
        if self.session.rndis == Rndis::Up {
            self.set_offloads(&OffloadParameters::default());
            let buffer = self.session.offloads.emit();
            let status = STATUS_CURRENT_OFFLOAD;
            self.indicate(&Reply::IndicateStatus { status, buffer: &buffer });
        }
    }

    /// An indication that the guest did not ask for. One that says what is no longer so is taken out of those that
    /// wait, so that a guest that reads nothing makes nothing grow.
    fn indicate(&mut self, reply: &Reply<'_>) {
        let bytes = reply.emit();
        // Type, length, status: media connect and disconnect replace each other.
        let kind = |bytes: &[u8]| -> Option<(u32, u32)> {
            let word =
                |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
            let status = match word(8)? {
                value if value == STATUS_MEDIA_DISCONNECT.0 => STATUS_MEDIA_CONNECT.0,
                value => value,
            };
            Some((word(0)?, status))
        };
        let new = kind(&bytes);
        self.outputs.forget_if(|waiting| {
            matches!(waiting, Outgoing::Rndis { bytes } if new.is_some() && kind(bytes) == new
                && matches!(Reply::parse(bytes), Ok(Reply::IndicateStatus { .. })))
        });
        self.push(Outgoing::Rndis { bytes });
    }
}

/// "0022AABBCCDD", with or without separators.
fn parse_mac(text: &str) -> Option<MacAddress> {
    let digits = text.chars().filter(|c| !matches!(c, '-' | ':'));
    let digits: Vec<u8> =
        digits.map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let octets: [u8; 6] =
        pairs.iter().map(|[high, low]| high << 4 | low).collect::<Vec<_>>().try_into().ok()?;
    let mac = MacAddress::new(octets);
    (rest.is_empty() && mac.is_valid_unicast()).then_some(mac)
}

#[cfg(test)]
#[test]
fn mac_addresses_are_read_in_the_forms_that_guests_write() {
    let mac = MacAddress::new([0, 0x22, 0xAA, 0xBB, 0xCC, 0xDD]);
    assert_eq!(parse_mac("0022AABBCCDD"), Some(mac));
    assert_eq!(parse_mac("00-22-aa-bb-cc-dd"), Some(mac));
    for wrong in
        ["", "0022AABBCCD", "0022AABBCCDDE", "0122AABBCCDD", "0022AABBCCDG", "é022AABBCCDD"]
    {
        assert_eq!(parse_mac(wrong), None, "{wrong}");
    }
}
