//! Two guests and a user-mode VM on one switch, on every mix of paths.

use anyhow::Result;

use super::{
    guest::LinuxGuest,
    lab::{DB, Lab, PEER, Station, WEB, is_synthetic, obeying},
    scene::Scene,
};

/// Which of the two has a VF; from each to the next one of them changes.
const MIXES: [(bool, bool); 5] =
    [(false, false), (true, false), (true, true), (false, true), (false, false)];

/// Has all three reach each other on every mix of paths, and measures TCP between the two.
pub(crate) fn run(scene: &Scene<'_>) -> Result<()> {
    let lab = Lab::start(scene)?;
    let _peer = lab.peer()?;
    // Both boot at once.
    let boot = |station| lab.boot(station, &obeying(station), &["-no-reboot"]);
    let (mut web, mut db) = (boot(&WEB)?, boot(&DB)?);
    is_synthetic(&mut web)?;
    is_synthetic(&mut db)?;
    web.ask("serves")?;
    db.ask("serves")?;
    scene.say("both have booted");
    let mut before = (false, false);
    for mix in MIXES {
        change(&lab, (&mut web, &WEB), (before.0, mix.0))?;
        change(&lab, (&mut db, &DB), (before.1, mix.1))?;
        before = mix;
        let (of_web, of_db) = (interface(mix.0), interface(mix.1));
        for peer in [DB, PEER] {
            web.ask(&format!("pings_by {of_web} {}", peer.address))?;
        }
        for peer in [WEB, PEER] {
            db.ask(&format!("pings_by {of_db} {}", peer.address))?;
        }
        let there = web.ask(&format!("throughput {}", DB.address))?;
        let back = db.ask(&format!("throughput {}", WEB.address))?;
        scene.say(&format!(
            "web by {}, db by {}: no ping was lost; TCP {there} there and {back} back",
            path(mix.0),
            path(mix.1)
        ));
    }
    web.end()?;
    db.end()
}

fn interface(vf: bool) -> &'static str {
    if vf { "eth2" } else { "eth1" }
}

fn path(vf: bool) -> &'static str {
    if vf { "its VF" } else { "its virtio-net" }
}

/// Gives a guest a VF, or takes it.
fn change(
    lab: &Lab<'_>,
    (guest, station): (&mut LinuxGuest, &Station),
    (before, vf): (bool, bool),
) -> Result<()> {
    match (before, vf) {
        (false, true) => {
            lab.give_vf(station)?;
            guest.ask("on_vf")?;
        }
        (true, false) => {
            lab.take_vf(station)?;
            guest.ask("off_vf")?;
        }
        _ => {}
    }
    Ok(())
}
