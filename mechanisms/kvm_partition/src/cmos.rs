//! The real-time clock behind ports 0x70 and 0x71, which Linux reads at boot; a guest without one polls for seconds.
//!
//! Pure: the time comes in as an argument. It is UTC, in BCD, in 24 hours. Writes are forgotten.

/// The clock's index register.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
pub struct Cmos {
    index: u8,
}

impl Cmos {
    /// The guest chooses a register (port 0x70).
    pub fn select(&mut self, value: u8) {
        // Bit 7 disables NMIs.
        self.index = value & 0x7F;
    }

    /// The guest reads the register (port 0x71) at so many seconds since 1970.
    pub fn read(&self, now: u64) -> u8 {
        let (days, seconds) = (now / 86_400, now % 86_400);
        let (year, month, day) = date(days);
        let value = match self.index {
            0x00 => seconds % 60,
            0x02 => seconds / 60 % 60,
            0x04 => seconds / 3600,
            // Sunday is 1; 1970 began on a Thursday.
            0x06 => (days + 4) % 7 + 1,
            0x07 => day,
            0x08 => month,
            0x09 => year % 100,
            0x32 => year / 100 % 100,
            // A: 32768 Hz, no update is going on. B: 24 hours, BCD. D: the battery is good.
            0x0A => return 0x26,
            0x0B => return 0x02,
            0x0D => return 0x80,
            _ => return 0,
        };
        u8::try_from((value / 10 * 16) + value % 10).unwrap_or(0)
    }
}

/// Year, month and day of a day since 1970 in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Eras of 400 years, from March on, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(now: u64) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| {
            let mut cmos = Cmos::default();
            cmos.select(index | 0x80);
            cmos.read(now)
        })
    }

    #[test]
    fn the_time_is_read_in_bcd() {
        assert_eq!(read(0), [0x19, 0x70, 1, 1, 5, 0, 0, 0]);
        assert_eq!(read(951_827_696), [0x20, 0x00, 2, 0x29, 3, 0x12, 0x34, 0x56]);
        assert_eq!(read(4_102_444_799), [0x20, 0x99, 0x12, 0x31, 5, 0x23, 0x59, 0x59]);
    }

    #[test]
    fn the_clock_is_never_being_updated() {
        let mut cmos = Cmos::default();
        cmos.select(0x0A);
        assert_eq!(cmos.read(1) & 0x80, 0);
        cmos.select(0x0D);
        assert_eq!(cmos.read(1), 0x80);
        cmos.select(0x7F);
        assert_eq!(cmos.read(u64::MAX / 2), 0);
    }
}
