//! Configuration files and arguments that are wrong.

use crate::common::*;

/// Runs an adapter that must not start with a configuration file.
fn refused(text: &str, words: &[&str]) {
    let directory = User::Same.directory();
    let (sockets, file) = (directory.path().join("nic"), directory.path().join("adapter.toml"));
    std::fs::write(&file, text).unwrap();
    let (sockets, file) = (sockets.to_str().unwrap(), file.to_str().unwrap());
    let output = User::Same.clearway(&["adapter", "--directory", sockets, "--config", file]);
    let mut all = vec![file];
    all.extend(words);
    println!("{}", crate::common::text(&output.stderr).trim_end());
    assert_refused(&output, &all);
    assert!(!std::path::Path::new(sockets).exists(), "nothing was started");
}

#[test]
fn what_a_configuration_file_may_not_say_is_refused_with_its_place() {
    refused("[keywords\n", &["line 1"]);
    refused("[adapter]\nvfs = \n", &["line 2"]);
    refused("\n\n[adapter]\nmac = 'a'\nmac = 'b'\n", &["line 5"]);
    refused("[keywords]\n\n'*SRIOW' = 1\n", &["line 3", "*SRIOW", "*SRIOV"]);
    refused("[keywords]\n'*SRIOV' = 2\n", &["line 2", "*SRIOV", "2"]);
    refused("[keywords]\n'*SRIOV' = [1]\n", &["line 2", "*SRIOV"]);
    refused("[keywords]\n'NicSwitches\\0\\*NumVFs' = -1\n", &["line 2", "NumVFs"]);
    refused("\n[keyword]\n'*SRIOV' = 1\n", &["line 2", "[keyword]", "[keywords] and [adapter]"]);
    refused("sriov = 1\n", &["line 1", "sriov", "[keywords] and [adapter]"]);
    refused(
        "[keywords]\n'*SRIOV' = 1\n'NicSwitches\\0\\*NumVFs' = 257\n",
        &["line 3", r"NicSwitches\0\*NumVFs", "257", "at most 256"],
    );
    refused("[adapter]\nnumber_of_vfs = 1\n", &["line 2: [adapter]", "number_of_vfs", "total_vfs"]);
    refused("[adapter]\ncpu = 0\ntotal_vfs = 257\n", &["line 3: [adapter]", "257", "0 to 256"]);
    refused("[adapter]\nqueue_pairs = 3\ntotal_vfs = 8\n", &["queue_pairs = 3", "8 VFs", "raise"]);
    refused("[adapter]\ntotal_vfs = -1\n", &["[adapter]", "total_vfs"]);
    refused("[adapter]\ntotal_vfs = 'many'\n", &["[adapter]", "total_vfs", "not a number"]);
    refused("[adapter]\nqueue_pairs_per_vport = 3\n", &["queue_pairs_per_vport", "power of two"]);
    refused("[adapter]\nmac = 'here'\n", &["[adapter]", "mac"]);
    refused("[adapter]\nmac = 7\n", &["[adapter]", "mac", "not a text"]);
    refused("[adapter]\nuplink = 'fibre:1'\n", &["[adapter]", "uplink"]);
    refused("\u{0}\u{1}\u{2}", &["line 1"]);
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_refused_by_name() {
    let directory = User::Same.directory();
    let sockets = directory.path().join("nic");
    let binary = directory.path().join("binary.toml");
    std::fs::write(&binary, [0xFF, 0xFE, 0x00]).unwrap();
    for file in [directory.path().join("absent.toml"), binary, directory.path().to_owned()] {
        let (sockets, file) = (sockets.to_str().unwrap(), file.to_str().unwrap());
        let output = User::Same.clearway(&["adapter", "--directory", sockets, "--config", file]);
        assert_refused(&output, &[file]);
    }
}

#[test]
fn the_keyword_num_vfs_is_honoured_and_the_command_line_counts_more() {
    let directory = User::Same.directory();
    let file = directory.path().join("adapter.toml");
    std::fs::write(&file, "[keywords]\n'NicSwitches\\0\\*NumVFs' = 5\n").unwrap();
    let file = file.to_str().unwrap();
    let sockets = directory.path().join("nic");
    let adapter = Adapter::start_with(&sockets, &["--config", file]);
    assert_eq!(adapter.status().num_vfs, 5);
    drop(adapter);
    let adapter = Adapter::start_with(&sockets, &["--config", file, "--vfs", "3"]);
    assert_eq!(adapter.status().num_vfs, 3);
}

#[test]
fn every_vf_of_the_largest_switch_is_there() {
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, directory.path(), 256);
    assert_eq!(adapter.status().num_vfs, 256);
}

#[test]
fn more_vfs_than_a_pf_can_have_are_refused() {
    let directory = User::Same.directory();
    let path = directory.path().to_str().unwrap();
    let output = User::Same.clearway(&["adapter", "--directory", path, "--vfs", "257"]);
    assert_refused(&output, &["--vfs 257", "at most 256"]);
    assert_eq!(names_in(directory.path()), [""; 0]);
    for vfs in ["65536", "-1", "many"] {
        let vfs = format!("--vfs={vfs}");
        let output = User::Same.clearway(&["adapter", "--directory", path, &vfs]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}
