use proptest::prelude::*;

use super::*;

fn refused(text: &str) -> String {
    Keywords::parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_published_defaults() {
    let keywords = Keywords::parse("").unwrap();
    assert_eq!(keywords, Keywords::default());
    assert_eq!(keywords.switch_name.as_str(), "Default Switch");
    assert!(keywords.sriov && !keywords.sriov_preferred && keywords.vmq_vlan_filtering);
}

#[test]
fn the_keywords_are_read_by_their_published_names() {
    let keywords = Keywords::parse(
        r#"
# The PF of the demo.
'*SRIOV' = 1
"*SriovPreferred" = 1
'*VMQVlanFiltering' = 0
'*VmqOrRssPreferrence' = 1
'NicSwitches\0\*SwitchId' = 0
'NicSwitches\0\*SwitchType' = 0x1
"NicSwitches\\0\\*SwitchName" = "Upper \"deck\""
'NicSwitches\0\*NumVFs' = 64
"#,
    )
    .unwrap();
    assert_eq!(
        keywords,
        Keywords {
            sriov_preferred: true,
            vmq_vlan_filtering: false,
            rss_or_vmq_preference: Preference::Vmq,
            switch_name: Name::new("Upper \"deck\"").unwrap(),
            num_vfs: Some(64),
            ..Keywords::default()
        }
    );
}

#[test]
fn what_is_not_a_keyword_is_refused_with_line_and_name() {
    assert_eq!(
        refused("'*SRIOV' = 1\n\n'*sriovpreferred' = 1\n"),
        "line 3: \"*sriovpreferred\" is not a keyword; did you mean \"*SriovPreferred\"?"
    );
    let error = refused("'*SRIOV' = 1\nspeed = 9\n");
    assert!(error.starts_with("line 2: \"speed\" is not a keyword; the keywords are *SRIOV, "));
    assert!(error.contains(r"NicSwitches\0\*NumVFs"), "{error}");
}

#[test]
fn the_first_mistake_of_the_file_is_the_one_that_is_told() {
    let error = refused("zebra = 1\nant = 2\n");
    assert!(error.starts_with("line 1: \"zebra\""), "{error}");
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    for (text, message) in [
        ("'*SRIOV' = 2", "line 1: \"*SRIOV\" may not be 2; it takes 0 or 1"),
        ("\n'*VMQ' = true", "line 2: \"*VMQ\" may not be true; it takes 0 or 1"),
        ("'*RSS' = \"1\"", "line 1: \"*RSS\" may not be the text \"1\"; it takes 0 or 1"),
        ("'*RSS' = -1", "line 1: \"*RSS\" may not be -1; it takes 0 or 1"),
        (
            r"'NicSwitches\0\*NumVFs' = 65536",
            r#"line 1: "NicSwitches\0\*NumVFs" may not be 65536; it takes 0 to 65535"#,
        ),
        (
            r"'NicSwitches\0\*SwitchType' = 0",
            r#"line 1: "NicSwitches\0\*SwitchType" may not be 0; it takes 1 (external), and nothing else"#,
        ),
        (
            r"'*RssOrVmqPreference' = 9",
            r#"line 1: "*RssOrVmqPreference" may not be 9; it takes 0 (RSS) or 1 (VMQ)"#,
        ),
    ] {
        assert_eq!(refused(text), message);
    }
    assert!(refused("'NicSwitches\\0\\*SwitchName' = \"a\\nb\"").contains("control characters"));
}

#[test]
fn a_keyword_is_given_once() {
    assert!(refused("'*SRIOV' = 1\n'*SRIOV' = 0\n").starts_with("line 2: "));
    assert_eq!(
        refused("'*RssOrVmqPreference' = 1\n'*VmqOrRssPreferrence' = 1\n"),
        "line 2: \"*VmqOrRssPreferrence\" is another spelling of \"*RssOrVmqPreference\"; keep one of them"
    );
}

#[test]
fn a_table_of_a_larger_file_is_read_with_the_files_lines() {
    let text = "[adapter]\nuplink = \"tap0\"\n\n[ndis]\n'*SRIOV' = 1\n'*Sriof' = 1\n";
    let file = DeTable::parse(text).unwrap();
    let DeValue::Table(table) = file.get_ref().get("ndis").unwrap().get_ref() else {
        panic!("[ndis] is a table");
    };
    let error = Keywords::from_table(text, table).unwrap_err();
    assert!(matches!(&error, KeywordError::Unknown { line: 6, key, .. } if key == "*Sriof"));
}

proptest! {
    #[test]
    fn keywords_round_trip(
        bits in any::<[bool; 8]>(),
        name in "[^\\p{Cc}]{0,30}",
        num_vfs in any::<Option<u16>>(),
    ) {
        let keywords = Keywords {
            sriov: bits[0],
            sriov_preferred: bits[1],
            vmq: bits[2],
            vmq_lookahead_split: bits[3],
            vmq_vlan_filtering: bits[4],
            rss_or_vmq_preference: if bits[5] { Preference::Vmq } else { Preference::Rss },
            rss: bits[6],
            rss_on_host_vports: bits[7],
            switch_name: Name::new(&name).unwrap(),
            num_vfs,
        };
        prop_assert_eq!(Keywords::parse(&keywords.to_string()), Ok(keywords));
    }

    #[test]
    fn any_text_is_read_without_panic(text in "\\PC*", tail in "('\\*SRIOV'|[a-z]|=|[0-9]|\\[|\"|\n| ){0,40}") {
        let _ = Keywords::parse(&text);
        let _ = Keywords::parse(&tail);
    }
}
