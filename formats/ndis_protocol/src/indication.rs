//! Status indications of SR-IOV (SPEC-NDIS-SRIOV §14).

use core::fmt;

/// The code of a status indication: an open value, since miniport drivers may have their own.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct IndicationCode(pub u32);

macro_rules! indications {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl IndicationCode {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every indication that has a name here.
            pub const NAMED: &'static [Self] = &[$(Self::$name),*];

            /// The published name, such as "NDIS_STATUS_NIC_SWITCH_CURRENT_CAPABILITIES", if this list has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(concat!("NDIS_STATUS_", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

indications! {
    /// A receive queue stopped DMA on the way to being freed (VMQ mode).
    RECEIVE_QUEUE_STATE = 0x4002_000D;
    /// Not described publicly.
    VF_CONFIG_STATE = 0x4002_000E;
    /// Receive filter capabilities that are enabled changed; carries them.
    RECEIVE_FILTER_CURRENT_CAPABILITIES = 0x4002_0010;
    /// Receive filter capabilities of the card changed; carries them.
    RECEIVE_FILTER_HARDWARE_CAPABILITIES = 0x4002_0020;
    /// The interrupt coalescing domain of a queue changed (VMQ mode).
    RECEIVE_FILTER_QUEUE_PARAMETERS = 0x4002_0030;
    /// NIC switch capabilities that are enabled changed; carries them.
    NIC_SWITCH_CURRENT_CAPABILITIES = 0x4002_0040;
    /// NIC switch capabilities of the card changed; carries them.
    NIC_SWITCH_HARDWARE_CAPABILITIES = 0x4002_0050;
    /// The state of a queue changed (VMQ mode).
    RECEIVE_FILTER_QUEUE_STATE_CHANGE = 0x4002_0070;
    /// A forwarding extension wants a switch port's VF removed; carries nothing.
    SWITCH_PORT_REMOVE_VF = 0xC024_1001;
    /// Wraps another indication with the switch port and NIC it is about.
    SWITCH_NIC_STATUS = 0xC024_1002;
}

impl fmt::Display for IndicationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status indication 0x{:08X}", self.0),
        }
    }
}

impl fmt::Debug for IndicationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_indication_has_its_own_value_and_its_published_name() {
        assert_eq!(IndicationCode::NAMED.len(), 10);
        for (index, code) in IndicationCode::NAMED.iter().enumerate() {
            assert!(!IndicationCode::NAMED[..index].contains(code));
        }
        assert_eq!(
            IndicationCode::SWITCH_PORT_REMOVE_VF.to_string(),
            "NDIS_STATUS_SWITCH_PORT_REMOVE_VF"
        );
        assert_eq!(IndicationCode(7).to_string(), "status indication 0x00000007");
    }
}
