//! Interrupts: DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ProtocolError;

/// `struct vfio_irq_info`: payload of DEVICE_GET_IRQ_INFO and of its reply.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IrqInfo {
    /// In a request the largest reply payload wanted, in a reply the size of the full one, bytes.
    pub argsz: u32,
    /// See the constants.
    pub flags: u32,
    /// The interrupt index asked about; see [`crate::PciIrq`].
    pub index: u32,
    /// Interrupts of that index.
    pub count: u32,
}

const _: () = assert!(size_of::<IrqInfo>() == IrqInfo::SIZE as usize);

impl IrqInfo {
    /// Bytes of this structure, as `argsz` says them.
    pub const SIZE: u32 = 16;
    /// Signalled by eventfd.
    pub const FLAG_EVENTFD: u32 = 1 << 0;
    /// Can be masked and unmasked by DEVICE_SET_IRQS.
    pub const FLAG_MASKABLE: u32 = 1 << 1;
    /// Masks itself when triggered.
    pub const FLAG_AUTOMASKED: u32 = 1 << 2;
    /// Set up as a whole: more interrupts need the index disabled first.
    pub const FLAG_NORESIZE: u32 = 1 << 3;
}

/// `struct vfio_irq_set`: payload of DEVICE_SET_IRQS, before the data.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IrqSetHeader {
    /// Bytes of this structure and the data.
    pub argsz: u32,
    /// One data flag and one action flag.
    pub flags: u32,
    /// The interrupt index; see [`crate::PciIrq`].
    pub index: u32,
    /// First interrupt of the index.
    pub start: u32,
    /// How many.
    pub count: u32,
}

const _: () = assert!(size_of::<IrqSetHeader>() == 20);

impl IrqSetHeader {
    /// No data: the action is done to all.
    pub const DATA_NONE: u32 = 1 << 0;
    /// A byte for each interrupt says whether the action is done to it.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// An eventfd for each interrupt comes beside the message; none takes away those that were set.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// Mask.
    pub const ACTION_MASK: u32 = 1 << 3;
    /// Unmask.
    pub const ACTION_UNMASK: u32 = 1 << 4;
    /// Trigger.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// What DEVICE_SET_IRQS is about.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum IrqAction {
    /// Masking.
    Mask,
    /// Unmasking.
    Unmask,
    /// Triggering.
    Trigger,
}

/// To which interrupts of the range the action is done, or what signals them.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum IrqData<'a> {
    /// All of the range; with a count of 0 and [`IrqAction::Trigger`], disables the whole index.
    None,
    /// Those whose byte is not 0; as many bytes as the range has interrupts.
    Bool(&'a [u8]),
    /// The descriptors beside the message: one for each, or none to take them away.
    EventFd,
}

/// A DEVICE_SET_IRQS request.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct IrqSet<'a> {
    /// The interrupt index; see [`crate::PciIrq`].
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// What to do.
    pub action: IrqAction,
    /// To which, or by what.
    pub data: IrqData<'a>,
}

impl<'a> IrqSet<'a> {
    /// Parses the payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let truncated = ProtocolError::Payload { command: "DEVICE_SET_IRQS", size: payload.len() };
        let (header, data) =
            IrqSetHeader::read_from_prefix(payload).map_err(|_| truncated.clone())?;
        let flags = ProtocolError::Flags { what: "DEVICE_SET_IRQS", flags: header.flags };
        let action = match header.flags & !0b111 {
            IrqSetHeader::ACTION_MASK => IrqAction::Mask,
            IrqSetHeader::ACTION_UNMASK => IrqAction::Unmask,
            IrqSetHeader::ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(flags),
        };
        let data = match header.flags & 0b111 {
            IrqSetHeader::DATA_NONE => IrqData::None,
            IrqSetHeader::DATA_BOOL => {
                let count = usize::try_from(header.count).map_err(|_| truncated.clone())?;
                IrqData::Bool(data.get(..count).ok_or(truncated)?)
            }
            IrqSetHeader::DATA_EVENTFD => IrqData::EventFd,
            _ => return Err(flags),
        };
        Ok(Self { index: header.index, start: header.start, count: header.count, action, data })
    }

    /// Writes the payload.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let (data_flag, data): (u32, &[u8]) = match self.data {
            IrqData::None => (IrqSetHeader::DATA_NONE, &[]),
            IrqData::Bool(bytes) => (IrqSetHeader::DATA_BOOL, bytes),
            IrqData::EventFd => (IrqSetHeader::DATA_EVENTFD, &[]),
        };
        let action_flag = match self.action {
            IrqAction::Mask => IrqSetHeader::ACTION_MASK,
            IrqAction::Unmask => IrqSetHeader::ACTION_UNMASK,
            IrqAction::Trigger => IrqSetHeader::ACTION_TRIGGER,
        };
        let argsz = u32::try_from(size_of::<IrqSetHeader>() + data.len()).unwrap_or(u32::MAX);
        let header = IrqSetHeader {
            argsz,
            flags: data_flag | action_flag,
            index: self.index,
            start: self.start,
            count: self.count,
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_action_flags_are_exclusive() {
        let parse = |flags| {
            let header = IrqSetHeader { argsz: 20, flags, index: 2, start: 0, count: 1 };
            IrqSet::parse(header.as_bytes()).map(|set| set.action)
        };
        assert_eq!(parse(0x21).unwrap(), IrqAction::Trigger);
        assert_eq!(parse(0x24).unwrap(), IrqAction::Trigger);
        assert_eq!(parse(0x09).unwrap(), IrqAction::Mask);
        for flags in [0, 0x20, 0x01, 0x23, 0x31, 0x61, 0x25] {
            assert!(parse(flags).is_err(), "{flags:#x}");
        }
    }

    #[test]
    fn booleans_must_all_be_there() {
        let header = IrqSetHeader { argsz: 20, flags: 0x22, index: 2, start: 0, count: 3 };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([1, 0]);
        assert!(IrqSet::parse(&bytes).is_err());
        bytes.push(1);
        assert_eq!(IrqSet::parse(&bytes).unwrap().data, IrqData::Bool(&[1, 0, 1]));
    }
}
