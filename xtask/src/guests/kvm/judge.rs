//! What a story's serial line says.
//!
//! Both guests print on the one line. Marks are `MARK …` of the outer guest and `MARK L2 …` of the inner one.

use super::level0::End;
use crate::guests::verdict::{Verdict, is_fatal};

/// Judges what came on the serial line until the machine ended.
pub(super) fn judge(serial: &str, expected: &[&str], end: End) -> Verdict {
    let mut expected = expected.iter();
    let mut next = expected.next();
    let mut ended = false;
    for line in serial.lines().map(str::trim) {
        if let Some(mark) = mark(line) {
            if let Some(why) = mark.strip_prefix("failed") {
                return Verdict::Failed(why.trim().to_owned());
            }
            if let Some(why) = mark.strip_prefix("L2 failed") {
                return Verdict::Failed(format!("L2: {}", why.trim()));
            }
            ended |= mark == "end";
        }
        if next.is_some_and(|words| line.contains(words)) {
            next = expected.next();
        } else if is_fatal(line) {
            return Verdict::Failed(line.to_owned());
        }
    }
    match (ended, next) {
        (true, None) => Verdict::Passed,
        (true, Some(words)) => Verdict::Missing((*words).to_owned()),
        (false, _) => Verdict::CutShort(match (end, last_mark(serial)) {
            (_, None) => format!("{end} before the outer guest was up"),
            (_, Some(last)) => format!("{end} after {last:?}"),
        }),
    }
}

fn mark(line: &str) -> Option<&str> {
    line.split_once("MARK ").map(|(_, mark)| mark.trim())
}

fn last_mark(serial: &str) -> Option<&str> {
    serial.lines().filter_map(mark).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [&str; 2] = ["Detected: Hyper-V", "MARK L2 pinged"];

    #[test]
    fn a_story_passes_when_all_came_in_order_and_the_end_last() {
        let serial =
            "MARK booted\r\n[    0.0] Detected: Hyper-V\r\nMARK L2 pinged 5\r\nMARK end\r\n";
        assert_eq!(judge(serial, &EXPECTED, End::PoweredOff), Verdict::Passed);
        let turned = "MARK booted\nMARK L2 pinged\nDetected: Hyper-V\nMARK end\n";
        assert_eq!(
            judge(turned, &EXPECTED, End::PoweredOff),
            Verdict::Missing("MARK L2 pinged".to_owned())
        );
    }

    #[test]
    fn the_inner_guests_end_is_not_the_storys() {
        let serial = "MARK booted\nDetected: Hyper-V\nMARK L2 pinged\nMARK L2 end\n";
        assert_eq!(
            judge(serial, &EXPECTED, End::OutOfCpuTime),
            Verdict::CutShort("it used up its CPU time after \"L2 end\"".to_owned())
        );
        assert_eq!(
            judge("SeaBIOS\n", &EXPECTED, End::OutOfTime),
            Verdict::CutShort("it took too long before the outer guest was up".to_owned())
        );
    }

    #[test]
    fn a_panic_that_is_expected_is_none() {
        let serial = "MARK booted\nKernel panic - not syncing: sysrq\nMARK end\n";
        let judged = |expected: &[&str]| judge(serial, expected, End::PoweredOff);
        assert_eq!(judged(&["MARK booted", "Kernel panic", "MARK end"]), Verdict::Passed);
        assert!(matches!(judged(&["MARK booted"]), Verdict::Failed(_)));
        let why = Err("the captures differ".to_owned());
        assert_eq!(
            judged(&["Kernel panic"]).unless(why),
            Verdict::Failed("the captures differ".to_owned())
        );
    }

    #[test]
    fn what_failed_is_told_whoever_says_it() {
        let failed = |line: &str| {
            let serial = format!("MARK booted\n{line}\nMARK end\n");
            match judge(&serial, &[], End::PoweredOff) {
                Verdict::Failed(why) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failed("MARK failed no /dev/kvm"), "no /dev/kvm");
        assert_eq!(failed("half a lineMARK L2 failed ping"), "L2: ping");
        assert_eq!(
            failed("[ 1.0] Kernel panic - not syncing: VFS"),
            "[ 1.0] Kernel panic - not syncing: VFS"
        );
    }
}
