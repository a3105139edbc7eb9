//! Names of what the stack knows by number.

use std::collections::BTreeMap;

use virtualization_stack::{AdapterId, NicId, VmId, VmSwitchId};

/// Names by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) nics: BTreeMap<NicId, String>,
    pub(crate) switches: BTreeMap<VmSwitchId, String>,
    pub(crate) vms: BTreeMap<VmId, String>,
    /// As `VM/adapter`.
    pub(crate) adapters: BTreeMap<AdapterId, String>,
}

impl Names {
    pub(crate) fn nic(&self, id: NicId) -> String {
        self.nics.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    pub(crate) fn adapter(&self, id: AdapterId) -> String {
        self.adapters.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// A sentence of the stack, in which things have numbers, with their names: `NIC 0` becomes `NIC nic0`, `adapter 3`
    /// becomes `web/net0`. Only the stack's own words are looked at, never text of others.
    pub(crate) fn spell(&self, sentence: &str) -> String {
        let mut spelled = String::with_capacity(sentence.len() + 16);
        let mut rest = sentence;
        while !rest.is_empty() {
            let word_end = rest.find(' ').unwrap_or(rest.len());
            let (word, after) = rest.split_at(word_end);
            let number = after.strip_prefix(' ').unwrap_or_default();
            let digits = number.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = number.split_at(digits);
            let name = number.parse().ok().and_then(|number| self.find(word, number));
            if let Some((keep_word, name)) = name {
                if keep_word {
                    spelled.push_str(word);
                    spelled.push(' ');
                }
                spelled.push_str(name);
                rest = tail;
            } else {
                let end = (word_end + 1).min(rest.len());
                let (word, after) = rest.split_at(end);
                spelled.push_str(word);
                rest = after;
            }
        }
        spelled
    }

    fn find(&self, word: &str, number: u32) -> Option<(bool, &str)> {
        let (keep, name) = match word {
            "NIC" => (true, self.nics.get(&NicId(number))),
            "switch" => (true, self.switches.get(&VmSwitchId(number))),
            "VM" => (true, self.vms.get(&VmId(number))),
            "adapter" => (false, self.adapters.get(&AdapterId(number))),
            _ => (false, None),
        };
        Some((keep, name?.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names_where_they_are_known() {
        let names = Names {
            nics: [(NicId(0), "nic0".into())].into(),
            switches: [(VmSwitchId(12), "external".into())].into(),
            vms: [(VmId(1), "web".into())].into(),
            adapters: [(AdapterId(3), "web/net0".into())].into(),
        };
        for (sentence, spelled) in [
            ("adapter 3: VF 1 of NIC 0 is allocated", "web/net0: VF 1 of NIC nic0 is allocated"),
            ("switch 12 is not external: no", "switch external is not external: no"),
            ("VM 1 does not run", "VM web does not run"),
            ("NIC 7 is gone", "NIC 7 is gone"),
            ("3 adapters came first for NIC 0", "3 adapters came first for NIC nic0"),
            ("adapter", "adapter"),
            ("adapter ", "adapter "),
            ("NIC  0", "NIC  0"),
            ("", ""),
        ] {
            assert_eq!(names.spell(sentence), spelled);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_without_names_stays_as_it_is(text in ".*") {
            proptest::prop_assert_eq!(Names::default().spell(&text), text);
        }
    }
}
