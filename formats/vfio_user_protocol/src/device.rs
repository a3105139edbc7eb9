//! Device information and the PCI indices of regions and interrupts (vfio-user §VFIO_USER_DEVICE_GET_INFO).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct vfio_device_info` as vfio-user uses it.
#[repr(C)]
#[derive(
    Copy, Clone, Eq, PartialEq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceInfo {
    /// In a request the largest reply payload wanted, in a reply the size of the full one, bytes.
    pub argsz: u32,
    /// See the constants.
    pub flags: u32,
    /// Regions the device has.
    pub num_regions: u32,
    /// Interrupt indices (types) the device has.
    pub num_irqs: u32,
}

const _: () = assert!(size_of::<DeviceInfo>() == DeviceInfo::SIZE as usize);

impl DeviceInfo {
    /// Bytes of this structure, as `argsz` says them.
    pub const SIZE: u32 = 16;
    /// DEVICE_RESET is supported.
    pub const FLAG_RESET: u32 = 1 << 0;
    /// It is a PCI device.
    pub const FLAG_PCI: u32 = 1 << 1;
}

/// Regions of a PCI device (`VFIO_PCI_NUM_REGIONS`).
pub const PCI_REGION_COUNT: u32 = 9;

/// Interrupt indices of a PCI device (`VFIO_PCI_NUM_IRQS`).
pub const PCI_IRQ_COUNT: u32 = 5;

macro_rules! indices {
    ($(#[$doc:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$item])* $variant = $value,)*
        }

        impl $name {
            /// Every index, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The index of that number, if there is one.
            pub fn from_index(index: u32) -> Option<Self> {
                match index {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            pub fn index(self) -> u32 {
                match self {
                    $(Self::$variant => $value,)*
                }
            }
        }
    };
}

indices! {
    /// A region of a PCI device (`VFIO_PCI_*_REGION_INDEX`).
    PciRegion {
        /// BAR 0.
        Bar0 = 0,
        /// BAR 1.
        Bar1 = 1,
        /// BAR 2.
        Bar2 = 2,
        /// BAR 3.
        Bar3 = 3,
        /// BAR 4.
        Bar4 = 4,
        /// BAR 5.
        Bar5 = 5,
        /// The expansion ROM.
        Rom = 6,
        /// Configuration space; 4,096 bytes say PCI Express, 256 conventional PCI.
        Config = 7,
        /// Legacy VGA ranges.
        Vga = 8,
    }
}

indices! {
    /// An interrupt index (type) of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
    PciIrq {
        /// The INTx pin.
        Intx = 0,
        /// MSI.
        Msi = 1,
        /// MSI-X.
        Msix = 2,
        /// Uncorrected error notification.
        Err = 3,
        /// The server asks for the device back.
        Req = 4,
    }
}

const _: () = assert!(PciRegion::ALL.len() == 9);
const _: () = assert!(PciIrq::ALL.len() == 5);
