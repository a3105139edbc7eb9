//! Serves an emulated adapter on a socket, with a host behind it that answers ARP and pings as 10.0.0.1: for trying
//! stock drivers. Usage: `answering_host <socket>`; attach QEMU's `vfio-user-pci` to the socket (machine `pc`, guest
//! memory shared), and in the guest `ping 10.0.0.1` from 10.0.0.2.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    error::Error,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use tulip_device::{FramePort, TulipConfig, TulipFunction};
use vfio_user_server::{ServerOptions, VfioUserServer};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ADDRESS: [u8; 4] = [10, 0, 0, 1];

/// Hands frames to the main thread: a port may not wait, and may not call back.
struct Port(mpsc::Sender<Vec<u8>>);

impl FramePort for Port {
    fn send(&mut self, frame: &[u8]) {
        let _ = self.0.send(frame.to_vec());
    }
}

/// What the host says to a frame.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let mut reply = frame.to_vec();
    reply[..6].copy_from_slice(&frame[6..12]);
    reply[6..12].copy_from_slice(&MAC);
    match frame.get(12..14)? {
        // ARP: who has 10.0.0.1?
        [0x08, 0x06] if frame.get(20..22)? == [0, 1] && frame.get(38..42)? == ADDRESS => {
            reply[21] = 2;
            reply[22..28].copy_from_slice(&MAC);
            reply[28..32].copy_from_slice(&ADDRESS);
            reply[32..42].copy_from_slice(&frame[22..32]);
            Some(reply)
        }
        // An ICMP echo request in a packet without options.
        [0x08, 0x00] if frame.get(30..34)? == ADDRESS && *frame.get(34)? == 8 => {
            reply[26..30].copy_from_slice(&ADDRESS);
            reply[30..34].copy_from_slice(&frame[26..30]);
            reply[34] = 0;
            // The type was 8 in the upper half of a word: the checksum grows by as much.
            let (sum, carry) = u16::from_be_bytes([frame[36], frame[37]]).overflowing_add(0x0800);
            reply[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            Some(reply)
        }
        _ => None,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).ok_or("usage: answering_host <socket>")?;
    let (sender, frames) = mpsc::channel();
    let config = TulipConfig { mac: [0x00, 0x15, 0x5D, 0, 0, 0x40], subsystem: (0x1011, 0x500B) };
    let function = Arc::new(Mutex::new(TulipFunction::new(config, Port(sender))));
    let device = Arc::clone(&function);
    let _server = VfioUserServer::bind(socket.as_ref(), device, ServerOptions::new("tulip"))?;
    loop {
        let frame = frames.recv_timeout(Duration::from_millis(1));
        let mut function = function.lock().unwrap();
        match frame {
            Ok(frame) => {
                if let Some(reply) = answer(&frame) {
                    let delivered = function.deliver(&reply);
                    println!("{} bytes in, {} out: {delivered:?}", frame.len(), reply.len());
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => function.poll(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
