//! The registers of virtio-mmio version 2, and the block device's configuration behind them (VIRTIO 1.2 §4.2.2, §5.2.4).
//!
//! Pure: an access in, a value or an [`Effect`] out.

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    },
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
        VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_VERSION_1,
    },
    virtio_mmio as mmio,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use crate::image::{Access, SECTOR};

/// Bytes of the device's registers: a page, so that nothing else is near them.
pub const REGISTERS_LENGTH: u64 = 4096;
/// Where, in them, the driver notifies the device of requests. Any value is such a notification.
pub const NOTIFY_OFFSET: u64 = mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Descriptors of the request queue, at most.
pub const QUEUE_SIZE: u16 = 256;
/// Segments of data in one request, at most: a descriptor each, beside header and status.
pub const SEGMENTS: u16 = QUEUE_SIZE - 2;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const BLOCK_DEVICE: u32 = 2;
/// "CLRW".
const VENDOR: u32 = 0x5752_4C43;
/// Bytes of `struct virtio_blk_config` up to and with the fields of features that are not offered.
const CONFIG_BYTES: usize = 60;
/// What a shared memory region that is not there has as its length and address.
const NO_REGION: u32 = u32::MAX;

/// Status bits that a driver sets.
const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | VIRTIO_CONFIG_S_FAILED;
const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;

/// Features by their bits.
pub(crate) mod feature {
    use super::*;

    pub(crate) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    pub(crate) const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    pub(crate) const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    pub(crate) const READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;
    pub(crate) const SEG_MAX: u64 = 1 << VIRTIO_BLK_F_SEG_MAX;
    pub(crate) const BLOCK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
}

/// The request queue as the driver has set it up; nothing of it is checked yet.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
pub(crate) struct QueueSetup {
    pub(crate) size: u32,
    pub(crate) ready: bool,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What the driver's write asks for beyond the registers.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Effect {
    Nothing,
    /// Nothing of the guest's may be touched once the write is over, and no interrupt is pending.
    Reset,
    /// Requests may come by this queue.
    Start {
        queue: QueueSetup,
        features: u64,
    },
    /// The queue may not be touched once the write is over.
    Stop,
    /// Look for requests.
    Notify,
    /// These causes of the interrupt have been seen.
    Acknowledge(u32),
}

/// What changes without the driver.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
pub(crate) struct Live {
    /// Causes of the interrupt.
    pub(crate) interrupts: u32,
    /// Only a reset helps.
    pub(crate) needs_reset: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Registers {
    offered: u64,
    config: [u8; CONFIG_BYTES],
    state: State,
}

/// What a reset takes back.
#[derive(Clone, Default, Debug)]
struct State {
    status: u32,
    /// Which 32 features are read, and written.
    offered_word: u32,
    accepted_word: u32,
    accepted: u64,
    /// The driver has accepted features that have no bit here.
    accepted_more: bool,
    queue_index: u32,
    queue: QueueSetup,
}

impl Registers {
    /// Of a disk with so many bytes.
    pub(crate) fn new(bytes: u64, access: Access) -> Self {
        use feature::*;
        let mut offered = VERSION_1 | EVENT_IDX | INDIRECT | FLUSH | SEG_MAX | BLOCK_SIZE;
        if access == Access::ReadOnly {
            offered |= READ_ONLY;
        }
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = config.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &(bytes / SECTOR).to_le_bytes());
        put(12, &u32::from(SEGMENTS).to_le_bytes());
        put(20, &512u32.to_le_bytes());
        Self { offered, config, state: State::default() }
    }

    /// Reads a register, or bytes of the configuration.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8], live: Live) {
        data.fill(0);
        if offset >= u64::from(mmio::VIRTIO_MMIO_CONFIG) {
            let at = usize::try_from(offset - u64::from(mmio::VIRTIO_MMIO_CONFIG));
            let bytes = at.ok().and_then(|at| self.config.get(at..)).unwrap_or_default();
            for (to, from) in data.iter_mut().zip(bytes) {
                *to = *from;
            }
        } else if let (Ok(register), Ok(data)) =
            (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
        {
            *data = self.register(register, live).to_le_bytes();
        }
    }

    fn register(&self, register: u32, live: Live) -> u32 {
        let state = &self.state;
        let is_queue = state.queue_index == 0;
        match register {
            mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            mmio::VIRTIO_MMIO_VERSION => VERSION,
            mmio::VIRTIO_MMIO_DEVICE_ID => BLOCK_DEVICE,
            mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            mmio::VIRTIO_MMIO_DEVICE_FEATURES => word(self.offered, state.offered_word),
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX if is_queue => QUEUE_SIZE.into(),
            mmio::VIRTIO_MMIO_QUEUE_READY if is_queue => state.queue.ready.into(),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => live.interrupts,
            mmio::VIRTIO_MMIO_STATUS if live.needs_reset => {
                state.status | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            mmio::VIRTIO_MMIO_STATUS => state.status,
            mmio::VIRTIO_MMIO_SHM_LEN_LOW
            | mmio::VIRTIO_MMIO_SHM_LEN_HIGH
            | mmio::VIRTIO_MMIO_SHM_BASE_LOW
            | mmio::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            // The configuration never changes: its generation is 0, as all is that is not there.
            _ => 0,
        }
    }

    /// Writes a register. Accesses that are not of 32 bits, and the configuration, change nothing.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let (Ok(register), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return Effect::Nothing;
        };
        let value = u32::from_le_bytes(data);
        let state = &mut self.state;
        match register {
            mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => state.offered_word = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => state.accepted_word = value,
            // Once they are agreed on they stay.
            mmio::VIRTIO_MMIO_DRIVER_FEATURES if state.status & FEATURES_OK == 0 => {
                match state.accepted_word {
                    0 => set_low(&mut state.accepted, value),
                    1 => set_high(&mut state.accepted, value),
                    _ => state.accepted_more |= value != 0,
                }
            }
            mmio::VIRTIO_MMIO_QUEUE_SEL => state.queue_index = value,
            mmio::VIRTIO_MMIO_QUEUE_NOTIFY => return Effect::Notify,
            mmio::VIRTIO_MMIO_INTERRUPT_ACK => return Effect::Acknowledge(value),
            mmio::VIRTIO_MMIO_STATUS => return self.set_status(value),
            _ if state.queue_index == 0 => return state.write_queue(register, value),
            _ => {}
        }
        Effect::Nothing
    }

    /// VIRTIO 1.2 §3.1.1: bits are added in this order, and taken back by a reset alone.
    fn set_status(&mut self, value: u32) -> Effect {
        let state = &mut self.state;
        if value == 0 {
            *state = State::default();
            return Effect::Reset;
        }
        let before = state.status;
        let mut status = before | value & DRIVER_BITS;
        let accepted = state.accepted & !self.offered == 0
            && state.accepted & feature::VERSION_1 != 0
            && !state.accepted_more;
        let introduced = status & (ACKNOWLEDGE | DRIVER) == ACKNOWLEDGE | DRIVER;
        if before & FEATURES_OK == 0 && !(accepted && introduced) {
            status &= !FEATURES_OK;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        state.status = status;
        if status & !before & DRIVER_OK != 0 && state.queue.ready {
            Effect::Start { queue: state.queue, features: state.accepted }
        } else {
            Effect::Nothing
        }
    }
}

impl State {
    fn write_queue(&mut self, register: u32, value: u32) -> Effect {
        let queue = &mut self.queue;
        if register == mmio::VIRTIO_MMIO_QUEUE_READY && value & 1 == 0 {
            let was_ready = std::mem::take(&mut queue.ready);
            return if was_ready { Effect::Stop } else { Effect::Nothing };
        }
        // A queue is set up before it is ready, and made ready before the driver says it is.
        if queue.ready || self.status & DRIVER_OK != 0 {
            return Effect::Nothing;
        }
        match register {
            mmio::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            mmio::VIRTIO_MMIO_QUEUE_READY => queue.ready = true,
            mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
        Effect::Nothing
    }
}

/// 32 of 64 bits.
fn word(bits: u64, index: u32) -> u32 {
    let [low, high] = [bits & 0xFFFF_FFFF, bits >> 32];
    let bits = match index {
        0 => low,
        1 => high,
        _ => 0,
    };
    u32::try_from(bits).unwrap_or(0)
}

fn set_low(bits: &mut u64, value: u32) {
    *bits = *bits & !0xFFFF_FFFF | u64::from(value);
}

fn set_high(bits: &mut u64, value: u32) {
    *bits = *bits & 0xFFFF_FFFF | u64::from(value) << 32;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registers() -> Registers {
        Registers::new(1 << 20, Access::ReadWrite)
    }

    fn get(registers: &Registers, register: u32) -> u32 {
        let mut data = [0xFF; 4];
        registers.read(register.into(), &mut data, Live::default());
        u32::from_le_bytes(data)
    }

    fn set(registers: &mut Registers, register: u32, value: u32) -> Effect {
        registers.write(register.into(), &value.to_le_bytes())
    }

    fn offered(registers: &mut Registers) -> u64 {
        let mut features = 0;
        for (index, shift) in [(0, 0), (1, 32)] {
            set(registers, mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, index);
            features |= u64::from(get(registers, mmio::VIRTIO_MMIO_DEVICE_FEATURES)) << shift;
        }
        features
    }

    fn accept(registers: &mut Registers, features: u64) {
        for index in [0, 1] {
            set(registers, mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, index);
            set(registers, mmio::VIRTIO_MMIO_DRIVER_FEATURES, word(features, index));
        }
    }

    fn status(registers: &mut Registers, value: u32) -> u32 {
        set(registers, mmio::VIRTIO_MMIO_STATUS, value);
        get(registers, mmio::VIRTIO_MMIO_STATUS)
    }

    #[test]
    fn a_driver_finds_a_block_device_of_the_image_s_size() {
        let mut registers = registers();
        assert_eq!(get(&registers, 0), u32::from_le_bytes(*b"virt"));
        assert_eq!((get(&registers, 4), get(&registers, 8)), (2, 2));
        let mut config = [0; 60];
        for (at, byte) in config.iter_mut().enumerate() {
            registers.read(0x100 + at as u64, std::slice::from_mut(byte), Live::default());
        }
        let mut expected = [0; 60];
        expected[..8].copy_from_slice(&2048u64.to_le_bytes());
        expected[12] = 254;
        expected[21] = 2;
        assert_eq!(config, expected);
        let mut whole = [0; 8];
        registers.read(0x100, &mut whole, Live::default());
        assert_eq!(u64::from_le_bytes(whole), 2048);
        registers.read(0x100 + 59, &mut whole, Live::default());
        registers.read(0xFF8, &mut whole, Live::default());
        assert_eq!(whole, [0; 8]);
        use feature::*;
        let all = VERSION_1 | EVENT_IDX | INDIRECT | FLUSH | SEG_MAX | BLOCK_SIZE;
        assert_eq!(offered(&mut registers), all);
        let mut read_only = Registers::new(512, Access::ReadOnly);
        assert_eq!(offered(&mut read_only), all | READ_ONLY);
        set(&mut registers, mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
        assert_eq!(get(&registers, mmio::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }

    #[test]
    fn features_are_agreed_on_in_order_or_not_at_all() {
        let mut registers = registers();
        let all = offered(&mut registers);
        let (introduced, agreed) = (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for wrong in [0, feature::FLUSH, all | feature::READ_ONLY, all | 1 << 63] {
            accept(&mut registers, wrong);
            assert_eq!(status(&mut registers, agreed), introduced, "{wrong:#x}");
            assert_eq!(status(&mut registers, agreed | DRIVER_OK), introduced, "{wrong:#x}");
        }
        accept(&mut registers, feature::VERSION_1);
        assert_eq!(status(&mut registers, agreed), agreed);
        accept(&mut registers, 0);
        assert_eq!(status(&mut registers, agreed | DRIVER_OK), agreed | DRIVER_OK);
        assert_eq!(status(&mut registers, ACKNOWLEDGE), agreed | DRIVER_OK, "bits stay");
        assert_eq!(status(&mut registers, 0), 0);
        accept(&mut registers, feature::VERSION_1);
        assert_eq!(status(&mut registers, FEATURES_OK), 0, "it has not introduced itself");
        set(&mut registers, mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 7);
        set(&mut registers, mmio::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        assert_eq!(status(&mut registers, agreed), introduced, "features without a bit");
    }

    #[test]
    fn the_device_starts_with_the_queue_that_was_ready_and_a_reset_forgets_it() {
        let mut registers = registers();
        let setup = [
            (mmio::VIRTIO_MMIO_QUEUE_NUM, 64),
            (mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
            (mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
            (mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000),
            (mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 2),
            (mmio::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000),
            (mmio::VIRTIO_MMIO_QUEUE_USED_HIGH, 3),
            (mmio::VIRTIO_MMIO_QUEUE_READY, 1),
            // Too late.
            (mmio::VIRTIO_MMIO_QUEUE_NUM, 32),
        ];
        for (register, value) in setup {
            assert_eq!(set(&mut registers, register, value), Effect::Nothing);
        }
        accept(&mut registers, feature::VERSION_1);
        set(&mut registers, mmio::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        let queue = QueueSetup {
            size: 64,
            ready: true,
            descriptors: 0x1_0000_1000,
            available: 0x2_0000_2000,
            used: 0x3_0000_3000,
        };
        let start = Effect::Start { queue, features: feature::VERSION_1 };
        assert_eq!(set(&mut registers, mmio::VIRTIO_MMIO_STATUS, all), start);
        assert_eq!(set(&mut registers, mmio::VIRTIO_MMIO_STATUS, all), Effect::Nothing, "once");
        set(&mut registers, mmio::VIRTIO_MMIO_QUEUE_SEL, 1);
        assert_eq!(get(&registers, mmio::VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is one queue");
        assert_eq!(set(&mut registers, mmio::VIRTIO_MMIO_QUEUE_READY, 0), Effect::Nothing);
        set(&mut registers, mmio::VIRTIO_MMIO_QUEUE_SEL, 0);
        assert_eq!(get(&registers, mmio::VIRTIO_MMIO_QUEUE_READY), 1);
        assert_eq!(set(&mut registers, mmio::VIRTIO_MMIO_QUEUE_READY, 0), Effect::Stop);
        assert_eq!(get(&registers, mmio::VIRTIO_MMIO_QUEUE_READY), 0);
        assert_eq!(set(&mut registers, mmio::VIRTIO_MMIO_STATUS, 0), Effect::Reset);
        accept(&mut registers, feature::VERSION_1);
        set(&mut registers, mmio::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(set(&mut registers, mmio::VIRTIO_MMIO_STATUS, all), Effect::Nothing);
    }

    proptest! {
        #[test]
        fn whatever_is_written_the_status_is_one_that_the_driver_may_have(
            writes in prop::collection::vec((0u64..0x140, any::<u32>(), 1usize..=8), 0..200),
        ) {
            let mut registers = registers();
            for (offset, value, size) in writes {
                let bytes = u64::from(value).to_le_bytes();
                let effect = registers.write(offset & !3, &bytes[..size]);
                let status = get(&registers, mmio::VIRTIO_MMIO_STATUS);
                prop_assert_eq!(status & !DRIVER_BITS, 0);
                prop_assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0);
                if let Effect::Start { queue, features } = effect {
                    prop_assert!(queue.ready && features & feature::VERSION_1 != 0);
                    prop_assert_eq!(features & !registers.offered, 0);
                }
                let mut data = vec![0; size];
                registers.read(offset, &mut data, Live::default());
            }
        }
    }
}
