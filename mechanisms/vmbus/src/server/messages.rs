//! What each message of the guest leads to (SPEC-VMBUS §1.5, §1.6).

use vmbus_protocol::{
    ClientMessage, ConnectionState, FeatureFlags, MessageType, Negotiated,
    STATUS_CONNECTION_REFUSED, ServerMessage, USER_DEFINED_SIZE, VMBUS_SINT, Version,
    channel_connection_id,
};

use super::{
    Connection, Effect, OpenRequest, Refusal, Server, channel::OpenKind, connection::Next,
};

impl Server {
    /// Acts upon a message of the guest. What is refused has changed nothing, though the guest may be told so;
    /// a log line about it must be rate-limited, since the guest chooses how often it comes.
    pub fn handle_message(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if !self.takes_messages() {
            return Err(Refusal::Busy);
        }
        let message = ClientMessage::parse(bytes, self.connection())?;
        let message_type = message.message_type();
        match (&self.connection, &message) {
            (_, ClientMessage::InitiateContact(contact)) => return self.initiate_contact(*contact),
            (Connection::Connected(connected), _) if connected.paused => match message {
                ClientMessage::Resume | ClientMessage::Unload => {}
                _ => return Err(Refusal::Paused(message_type)),
            },
            _ => {}
        }
        if let ClientMessage::CloseReservedChannel { channel, target_vp, target_sint } = message {
            let sint = u8::try_from(target_sint).unwrap_or(u8::MAX);
            return self.close_reserved(channel, target_vp, sint.min(15));
        }
        let Connection::Connected(connected) = &mut self.connection else {
            return Err(Refusal::Disconnecting(message_type));
        };
        let Negotiated { version, features } = connected.negotiated;
        match message {
            ClientMessage::RequestOffers => {
                if connected.offers_requested {
                    return Err(Refusal::OffersRequestedTwice);
                }
                connected.offers_requested = true;
                self.offer_waiting();
                self.post(&ServerMessage::AllOffersDelivered);
                Ok(())
            }
            ClientMessage::OpenChannel(open) => {
                let handle = self.named(open.channel)?;
                let chosen = open
                    .signal
                    .filter(|_| features.contains(FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS));
                let default = channel_connection_id(open.channel.0, VMBUS_SINT, 0);
                let request = OpenRequest {
                    channel: open.channel,
                    ring_gpadl: open.ring_gpadl,
                    downstream_page_offset: open.downstream_page_offset,
                    target_vp: open.target_vp,
                    connection_id: chosen.map_or(default, |signal| signal.connection_id),
                    event_flag: match chosen {
                        Some(signal) => signal.event_flag,
                        None => u16::try_from(open.channel.0).unwrap_or(u16::MAX),
                    },
                    user_data: open.user_data,
                };
                let kind = OpenKind::Usual { open_id: open.open_id };
                self.open_channel(handle, request, kind, message_type)
            }
            ClientMessage::OpenReservedChannel(open) => {
                let handle = self.named(open.channel)?;
                let request = OpenRequest {
                    channel: open.channel,
                    ring_gpadl: open.ring_gpadl,
                    downstream_page_offset: open.downstream_page_offset,
                    target_vp: None,
                    connection_id: channel_connection_id(open.channel.0, VMBUS_SINT, 0),
                    event_flag: u16::try_from(open.channel.0).unwrap_or(u16::MAX),
                    user_data: [0; USER_DEFINED_SIZE],
                };
                let target_sint = u8::try_from(open.target_sint).unwrap_or(u8::MAX).min(15);
                let kind = OpenKind::Reserved { target_vp: open.target_vp, target_sint };
                self.open_channel(handle, request, kind, message_type)
            }
            ClientMessage::CloseChannel(channel) => {
                let handle = self.named(channel)?;
                self.close_channel(handle, channel)
            }
            ClientMessage::GpadlHeader(header) => self.gpadl_header(&header),
            ClientMessage::GpadlBody(body) => self.gpadl_body(&body),
            ClientMessage::GpadlTeardown { channel, gpadl } => {
                let handle = self.named(channel)?;
                self.gpadl_teardown(handle, gpadl)
            }
            ClientMessage::RelIdReleased(channel) => {
                let handle = self.named(channel)?;
                self.release_channel(handle, channel)
            }
            ClientMessage::Unload => {
                self.begin_release(Next::UnloadComplete, false);
                self.settle();
                Ok(())
            }
            ClientMessage::TlConnectRequest(request) => {
                // There are no hvsockets here. Before 4.1 there is no way to say so.
                if version >= Version::Rs3_0 {
                    self.post(&ServerMessage::TlConnectResult {
                        endpoint_id: request.endpoint_id,
                        service_id: request.service_id,
                        status: STATUS_CONNECTION_REFUSED,
                    });
                }
                Ok(())
            }
            ClientMessage::ModifyChannel { channel, target_vp } => {
                let handle = self.named(channel)?;
                self.modify_channel(handle, channel, target_vp)
            }
            ClientMessage::ModifyConnection(pages) => {
                self.effects.push_back(Effect::MonitorPages(pages));
                let state = ConnectionState::Successful;
                self.post(&ServerMessage::ModifyConnectionResponse(state));
                Ok(())
            }
            ClientMessage::Pause => {
                self.post(&ServerMessage::PauseResponse);
                let waiting = self.messages.len();
                if let Connection::Connected(connected) = &mut self.connection {
                    connected.paused = true;
                    connected.messages_before_pause = waiting;
                }
                Ok(())
            }
            ClientMessage::Resume => {
                if !connected.paused {
                    return Err(Refusal::Message(vmbus_protocol::MessageError::BadField {
                        message: MessageType::Resume,
                        field: "state: the connection is not paused",
                    }));
                }
                connected.paused = false;
                Ok(())
            }
            ClientMessage::InitiateContact(_) | ClientMessage::CloseReservedChannel { .. } => {
                Err(Refusal::Disconnecting(message_type))
            }
        }
    }
}
