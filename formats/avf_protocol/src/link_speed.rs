//! Link speeds as virtchnl encodes them (SPEC-AVF §4.6).

/// The legacy enumeration: each speed is one bit of a u32. It ends at 40 Gbit/s.
pub mod legacy {
    /// 2.5 Gbit/s.
    pub const MBPS_2500: u32 = 1 << 0;
    /// 100 Mbit/s.
    pub const MBPS_100: u32 = 1 << 1;
    /// 1 Gbit/s.
    pub const MBPS_1000: u32 = 1 << 2;
    /// 10 Gbit/s.
    pub const MBPS_10000: u32 = 1 << 3;
    /// 40 Gbit/s.
    pub const MBPS_40000: u32 = 1 << 4;
    /// 20 Gbit/s.
    pub const MBPS_20000: u32 = 1 << 5;
    /// 25 Gbit/s.
    pub const MBPS_25000: u32 = 1 << 6;
    /// 5 Gbit/s.
    pub const MBPS_5000: u32 = 1 << 7;
}

/// What an adaptive device announces when it can (SPEC-AVF §9.5): the highest speed that Linux scales its
/// interrupt moderation for, Mbit/s.
pub const ANNOUNCED_MBPS: u32 = 100_000;

/// The fastest legacy speed that is not above `mbps` Mbit/s; 0 if there is none.
pub const fn to_legacy(mbps: u32) -> u32 {
    match mbps {
        40_000.. => legacy::MBPS_40000,
        25_000.. => legacy::MBPS_25000,
        20_000.. => legacy::MBPS_20000,
        10_000.. => legacy::MBPS_10000,
        5_000.. => legacy::MBPS_5000,
        2_500.. => legacy::MBPS_2500,
        1_000.. => legacy::MBPS_1000,
        100.. => legacy::MBPS_100,
        _ => 0,
    }
}

/// A legacy speed in Mbit/s; 0 if the bit means nothing.
pub const fn from_legacy(speed: u32) -> u32 {
    match speed {
        legacy::MBPS_100 => 100,
        legacy::MBPS_1000 => 1_000,
        legacy::MBPS_2500 => 2_500,
        legacy::MBPS_5000 => 5_000,
        legacy::MBPS_10000 => 10_000,
        legacy::MBPS_20000 => 20_000,
        legacy::MBPS_25000 => 25_000,
        legacy::MBPS_40000 => 40_000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_speeds_map_both_ways_and_faster_links_are_cut() {
        for bit in 0..8 {
            assert_eq!(to_legacy(from_legacy(1 << bit)), 1 << bit);
        }
        assert_eq!(to_legacy(100_000), legacy::MBPS_40000);
        assert_eq!(to_legacy(10), 0);
        assert_eq!(from_legacy(3), 0);
    }
}
