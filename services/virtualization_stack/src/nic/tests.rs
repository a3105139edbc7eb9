//! The table of NICs.

use super::table::{Row, TRANSITIONS};
use super::*;
use std::fmt::Write as _;

/// The documented table, as the code has it.
fn table() -> String {
    let mut out =
        String::from("| from | on | when | to | does |\n| --- | --- | --- | --- | --- |\n");
    for Row { from, on, when, to, does } in TRANSITIONS {
        let from = from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let when = when.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(", ");
        let does = does.iter().map(|d| format!("{d:?}")).collect::<Vec<_>>().join(", ");
        let to = to.map_or("(same)".to_owned(), |to| to.to_string());
        writeln!(out, "| {from} | {on:?} | {when} | {to} | {does} |").unwrap();
    }
    out
}

#[test]
fn the_documented_table_is_the_code() {
    let documented = include_str!("transitions.md");
    if documented != table() {
        println!("{}", table());
        panic!("src/nic/transitions.md differs from the code; the table above is the right one");
    }
}

#[test]
fn a_nic_that_is_gone_is_forgotten_from_every_state() {
    for state in NicState::ALL.into_iter().filter(|state| *state != NicState::Absent) {
        let row = find(state, On::Gone, |_| false).unwrap();
        assert_eq!(row.to, Some(NicState::Absent), "{state}");
        assert!(row.does.contains(&Do::Forget), "{state}");
    }
}

#[test]
fn each_event_of_the_pf_is_answered_once() {
    let answers = |row: &Row| {
        let answers = [Do::Allow, Do::Veto, Do::Acknowledge];
        row.does.iter().filter(|action| answers.contains(action)).count()
    };
    for row in TRANSITIONS {
        let expected = match (row.on, row.to) {
            (On::Restart, _) => 1,
            (On::Settle, Some(NicState::Stopped | NicState::Released)) => 1,
            (On::TimedOut, _) if row.when == [When::MayVeto] => 1,
            _ => 0,
        };
        assert_eq!(answers(row), expected, "{row:?}");
    }
}
