//! The table: what the documentation shows is what the code has, and what holds for every row.

use super::*;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use table::{Do, Row, TRANSITIONS};

fn sentence(word: &str) -> String {
    let mut text = String::new();
    for (index, letter) in word.chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn list<T: std::fmt::Debug>(items: &[T]) -> String {
    items.iter().map(|item| sentence(&format!("{item:?}"))).collect::<Vec<_>>().join(", ")
}

/// The documented table, as the code has it.
fn table() -> String {
    let mut out =
        String::from("| from | on | when | to | does |\n| --- | --- | --- | --- | --- |\n");
    for Row { from, on, when, to, does } in TRANSITIONS {
        let to = if to == from { "(same)".to_owned() } else { to.to_string() };
        let on = sentence(&format!("{on:?}"));
        writeln!(out, "| {from} | {on} | {} | {to} | {} |", list(when), list(does)).unwrap();
    }
    out
}

#[test]
fn the_documented_table_is_the_code() {
    let documented = include_str!("transitions.md");
    if documented != table() {
        println!("{}", table());
        panic!(
            "src/network_adapter/transitions.md differs from the code; the table above is the right one"
        );
    }
}

#[test]
fn every_state_can_be_reached_and_left() {
    let mut reached = BTreeSet::from([State::START]);
    while {
        let more = TRANSITIONS.iter().filter(|row| reached.contains(&row.from)).map(|row| row.to);
        let before = reached.len();
        reached.extend(more.collect::<Vec<_>>());
        reached.len() > before
    } {}
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), {
        let mut all = State::ALL.to_vec();
        all.sort();
        all
    });
    for state in State::ALL {
        assert!(TRANSITIONS.iter().any(|row| row.from == state && row.to != state), "{state}");
    }
}

#[test]
fn no_row_hides_behind_one_above_it() {
    for (index, row) in TRANSITIONS.iter().enumerate() {
        let hidden = TRANSITIONS[..index].iter().any(|above| {
            above.from == row.from
                && above.on == row.on
                && above.when.iter().all(|condition| row.when.contains(condition))
        });
        assert!(!hidden, "{row:?}");
    }
}

/// Wherever a guest may hold the device, a NIC that is gone and a guest that is gone are noticed.
#[test]
fn a_lost_vf_and_an_urgent_end_are_noticed_wherever_the_guest_has_the_device() {
    for row in TRANSITIONS {
        let guest_has_it = matches!(row.from, State::Offered(_) | State::Active(_))
            || matches!(
                row.from,
                State::Revoking(RevokingStep::Switch | RevokingStep::Leaving | RevokingStep::Eject)
            );
        let upkeep = matches!(
            row.from,
            State::Offered(OfferedStep::Upkeep) | State::Active(ActiveStep::Upkeep)
        );
        if !guest_has_it || upkeep {
            continue;
        }
        let has = |condition| {
            TRANSITIONS.iter().any(|other| {
                other.from == row.from && other.on == On::Settle && other.when == [condition]
            })
        };
        assert!(has(When::VfGone) && has(When::Urgent), "{}", row.from);
    }
}

/// The published order of the teardown: filters before the device, the device before the VPort, then reset and free.
#[test]
fn the_teardown_has_one_order() {
    let order = [
        RevokingStep::Switch,
        RevokingStep::Leaving,
        RevokingStep::Eject,
        RevokingStep::Filter,
        RevokingStep::Device,
        RevokingStep::VPort,
        RevokingStep::Reset,
        RevokingStep::Vf,
    ];
    let position = |step| order.iter().position(|other| *other == step).unwrap();
    for row in TRANSITIONS {
        if let (State::Revoking(from), State::Revoking(to)) = (row.from, row.to) {
            let back = (from, to) == (RevokingStep::Eject, RevokingStep::Leaving);
            assert!(back || position(to) >= position(from), "{row:?}");
        }
        // Nothing but the start-up's own undoing skips what a guest has seen.
        if matches!(row.from, State::Offered(_) | State::Active(_))
            && let State::Revoking(to) = row.to
        {
            assert!(position(to) <= position(RevokingStep::Device), "{row:?}");
        }
    }
}

#[test]
fn a_guest_hears_that_its_vf_is_lost_before_its_device_goes() {
    for row in TRANSITIONS.iter().filter(|row| row.does.contains(&Do::RemoveDevice)) {
        let position = |action| row.does.iter().position(|other| *other == action);
        assert!(position(Do::ForceSynthetic) < position(Do::RemoveDevice), "{row:?}");
        if row.from != State::Revoking(RevokingStep::Eject) {
            assert!(position(Do::TellLost).is_some(), "{row:?}");
        }
    }
}

/// A path is granted only with every filter on the VPort where its frames belong.
#[test]
fn no_path_is_granted_and_no_device_offered_before_the_filters_are_there() {
    for row in TRANSITIONS {
        let needs =
            |action, condition| !row.does.contains(&action) || row.when.contains(&condition);
        assert!(needs(Do::GrantVf, When::FiltersOut), "{row:?}");
        assert!(needs(Do::OfferDevice, When::FiltersOut), "{row:?}");
        assert!(needs(Do::GrantSynthetic, When::FiltersHome), "{row:?}");
        let removes = row.does.contains(&Do::RemoveDevice);
        let safe = [When::FiltersHome, When::VfGone].iter().any(|safe| row.when.contains(safe));
        assert!(!removes || safe, "{row:?}");
    }
}
