//! Rules of the house that the compiler does not hold: layers, lints and licences.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use serde_json::Value;
use toml::de::DeTable;

/// The layers, lowest first; a crate may depend on its own layer and on those before it.
const LAYERS: [&str; 5] = ["ground", "formats", "mechanisms", "services", "faces"];

/// Licences that code linked into the program may have: those of `deny.toml`.
fn allowed_licences() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let file = DeTable::parse(&text).unwrap();
    let licences = file.get_ref()["licenses"].get_ref().get("allow").unwrap();
    let allowed = licences.get_ref().as_array().unwrap();
    allowed.iter().map(|licence| licence.get_ref().as_str().unwrap().to_owned()).collect()
}

fn metadata(extra: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(extra)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of the workspace's crates with the folder they lie in.
fn rooms(metadata: &Value) -> BTreeMap<String, String> {
    let root = Path::new(metadata["workspace_root"].as_str().unwrap());
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| package["source"].is_null())
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let room = manifest.strip_prefix(root).unwrap().iter().next().unwrap();
            (package["name"].as_str().unwrap().to_owned(), room.to_str().unwrap().to_owned())
        })
        .collect()
}

#[test]
fn no_crate_depends_upwards() {
    let metadata = metadata(&["--no-deps"]);
    let rooms = rooms(&metadata);
    let level = |room: &str| LAYERS.iter().position(|layer| *layer == room);
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(own) = level(&rooms[name]) else { continue };
        for dependency in package["dependencies"].as_array().unwrap() {
            // Tests may use whatever they need.
            if dependency["kind"] == "dev" {
                continue;
            }
            let on = dependency["name"].as_str().unwrap();
            if let Some(room) = rooms.get(on)
                && level(room).is_none_or(|other| other > own)
            {
                wrong.push(format!("{name} ({}) depends on {on} ({room})", rooms[name]));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(rooms.len() > 15, "the crates were found");
}

#[test]
fn formats_do_no_io() {
    // What a crate of types has no business with.
    const IO: [&str; 6] = ["rustix", "libc", "tokio", "mio", "crossbeam-channel", "tracing"];
    let metadata = metadata(&["--no-deps"]);
    let rooms = rooms(&metadata);
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if rooms[name] != "formats" {
            continue;
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            assert!(
                dependency["kind"] == "dev" || !IO.contains(&on),
                "{name} is a crate of types and depends on {on}"
            );
        }
    }
}

#[test]
fn every_crate_takes_the_workspace_lints_and_licence() {
    let metadata = metadata(&["--no-deps"]);
    for package in metadata["packages"].as_array().unwrap() {
        let path = package["manifest_path"].as_str().unwrap();
        let manifest = std::fs::read_to_string(path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{path} has lints of its own");
        assert_eq!(package["license"], "Apache-2.0 OR MIT", "{path}");
    }
}

#[test]
fn licences_of_all_dependencies_are_allowed() {
    // Those that are linked: cargo has not fetched what other systems need.
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let allowed_licences = allowed_licences();
    let is_allowed = |part: &str| {
        let part = part.trim().trim_matches(|c| c == '(' || c == ')');
        allowed_licences.iter().any(|licence| licence == part)
    };
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let licence = package["license"].as_str().unwrap_or("none");
        // "A OR B" and the older "A/B": one allowed choice is enough, if all its parts are allowed.
        let allowed = licence
            .replace('/', " OR ")
            .split(" OR ")
            .any(|choice| choice.split(" AND ").all(is_allowed));
        if !allowed {
            wrong.push(format!("{} {}: {licence}", package["name"], package["version"]));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let specification = std::fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let files = Command::new("git").args(["ls-files", "-z", "*.rs"]).current_dir(&root).output();
    let Some(files) = files.ok().filter(|output| output.status.success()) else {
        println!("skipped: this is no checkout of git");
        return;
    };
    let mut functions = BTreeSet::new();
    for file in String::from_utf8(files.stdout).unwrap().split_terminator('\0') {
        // A file may have been removed and that not been committed yet.
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        for line in text.lines() {
            let line =
                line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if let Some(rest) = line.strip_prefix("fn ") {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                functions.insert(rest[..end.unwrap_or(rest.len())].to_owned());
            }
        }
    }
    // Names of tests have several words; folders and commands have other characters as well.
    let is_test = |name: &str| {
        name.contains('_')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let named: BTreeSet<_> =
        specification.split('`').skip(1).step_by(2).filter(|n| is_test(n)).collect();
    let missing: Vec<_> = named.iter().filter(|name| !functions.contains(**name)).collect();
    assert_eq!(missing, Vec::<&&str>::new(), "SPECIFICATION.md names tests that are not there");
    assert!(named.len() > 200, "the names were found: {}", named.len());
}
