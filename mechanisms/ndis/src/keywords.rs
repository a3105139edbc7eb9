//! The standardized keywords of an adapter and of its default switch, read from a configuration file
//! (SPEC-NDIS-SRIOV §2.4).
//!
//! The file is TOML; the keys are the published names, quoted, since they have `*` and `\` in them:
//!
//! ```toml
//! '*SRIOV' = 1
//! '*SriovPreferred' = 1
//! 'NicSwitches\0\*NumVFs' = 64
//! ```
//!
//! What is not a keyword is refused with its line and name, a value out of range with the range.

use std::fmt;
use std::ops::Range;

use ndis_protocol::Name;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What to prefer when there is no SR-IOV (*RssOrVmqPreference).
#[derive(Copy, Clone, Debug, Default, Eq, Hash, PartialEq)]
pub enum Preference {
    /// Receive side scaling of the host's traffic.
    #[default]
    Rss,
    /// Queues for VMs.
    Vmq,
}

/// The keywords of one adapter. [`Keywords::default`] has the published defaults, with which SR-IOV is enabled but
/// not preferred, hence not active.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Keywords {
    /// *SRIOV: SR-IOV may be used.
    pub sriov: bool,
    /// *SriovPreferred: SR-IOV and VMQ rather than RSS.
    pub sriov_preferred: bool,
    /// *VMQ: VM queues may be used.
    pub vmq: bool,
    /// *VMQLookaheadSplit: obsolete since NDIS 6.30, read and ignored.
    pub vmq_lookahead_split: bool,
    /// *VMQVlanFiltering: VLANs are filtered in hardware, also with SR-IOV.
    pub vmq_vlan_filtering: bool,
    /// *RssOrVmqPreference.
    pub rss_or_vmq_preference: Preference,
    /// *RSS: receive side scaling may be used.
    pub rss: bool,
    /// *RssOnHostVPorts: the PF's VPorts may have several queue pairs (VMMQ).
    pub rss_on_host_vports: bool,
    /// NicSwitches\0\*SwitchName.
    pub switch_name: Name,
    /// NicSwitches\0\*NumVFs: VFs of the default switch; `None` is as many as the card has.
    pub num_vfs: Option<u16>,
}

/// The published name of the default switch.
const DEFAULT_SWITCH_NAME: &str = "Default Switch";

impl Default for Keywords {
    fn default() -> Self {
        Self {
            sriov: true,
            sriov_preferred: false,
            vmq: true,
            vmq_lookahead_split: true,
            vmq_vlan_filtering: true,
            rss_or_vmq_preference: Preference::Rss,
            rss: true,
            rss_on_host_vports: true,
            switch_name: Name::new(DEFAULT_SWITCH_NAME).unwrap_or_default(),
            num_vfs: None,
        }
    }
}

/// The published keywords.
const KNOWN: [&str; 13] = [
    "*SRIOV",
    "*SriovPreferred",
    "*VMQ",
    "*VMQLookaheadSplit",
    "*VMQVlanFiltering",
    "*RssOrVmqPreference",
    "*RSS",
    "*RssOnHostVPorts",
    r"NicSwitches\0\*Flags",
    r"NicSwitches\0\*SwitchType",
    r"NicSwitches\0\*SwitchId",
    r"NicSwitches\0\*SwitchName",
    r"NicSwitches\0\*NumVFs",
];

/// The other published spelling of *RssOrVmqPreference (SPEC-NDIS-SRIOV §16.8).
const PREFERENCE_ALIAS: &str = "*VmqOrRssPreferrence";

/// Why keywords were refused. Lines count from 1.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum KeywordError {
    /// The text is not TOML.
    #[error("line {line}: {reason}")]
    Syntax {
        /// The line.
        line: usize,
        /// What the TOML parser says.
        reason: String,
    },
    /// A key that is not a keyword.
    #[error("line {line}: \"{key}\" is not a keyword; {hint}")]
    Unknown {
        /// The line.
        line: usize,
        /// The key.
        key: String,
        /// A likely spelling, or all the keywords.
        hint: String,
    },
    /// A value that the keyword may not have.
    #[error("line {line}: \"{key}\" may not be {found}; it takes {allowed}")]
    Value {
        /// The line.
        line: usize,
        /// The keyword.
        key: String,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The two spellings of one keyword, both there.
    #[error(
        "line {line}: \"{key}\" is another spelling of \"*RssOrVmqPreference\"; keep one of them"
    )]
    Twice {
        /// The line of the second.
        line: usize,
        /// The second.
        key: String,
    },
}

impl Keywords {
    /// Reads a file that has nothing but keywords.
    ///
    /// # Errors
    /// [`KeywordError`] for the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, KeywordError> {
        let table = DeTable::parse(text).map_err(|error| KeywordError::Syntax {
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            reason: error.message().to_owned(),
        })?;
        Self::from_table(text, table.get_ref())
    }

    /// Reads one table of a larger file, whose text is needed to tell lines. Every key of the table must be a
    /// keyword; what other tables have is the caller's business.
    ///
    /// # Errors
    /// [`KeywordError`] for the first thing that is wrong, in the order of the file.
    pub fn from_table(text: &str, table: &DeTable<'_>) -> Result<Self, KeywordError> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut keywords = Self::default();
        let mut preference_was_set = false;
        for (key, value) in entries {
            let line = line_of(text, key.span().start);
            let name = key.get_ref().as_ref();
            let entry = Entry { line, key: name, value };
            match name {
                "*SRIOV" => keywords.sriov = entry.switch()?,
                "*SriovPreferred" => keywords.sriov_preferred = entry.switch()?,
                "*VMQ" => keywords.vmq = entry.switch()?,
                "*VMQLookaheadSplit" => keywords.vmq_lookahead_split = entry.switch()?,
                "*VMQVlanFiltering" => keywords.vmq_vlan_filtering = entry.switch()?,
                "*RssOrVmqPreference" | PREFERENCE_ALIAS => {
                    if preference_was_set {
                        return Err(KeywordError::Twice { line, key: name.to_owned() });
                    }
                    preference_was_set = true;
                    let vmq = entry.one_of(0..2, "0 (RSS) or 1 (VMQ)")? == 1;
                    keywords.rss_or_vmq_preference =
                        if vmq { Preference::Vmq } else { Preference::Rss };
                }
                "*RSS" => keywords.rss = entry.switch()?,
                "*RssOnHostVPorts" => keywords.rss_on_host_vports = entry.switch()?,
                r"NicSwitches\0\*Flags" => {
                    entry.one_of(0..1, "0, and nothing else")?;
                }
                r"NicSwitches\0\*SwitchType" => {
                    entry.one_of(1..2, "1 (external), and nothing else")?;
                }
                r"NicSwitches\0\*SwitchId" => {
                    entry.one_of(0..1, "0 (the default switch), and nothing else")?;
                }
                r"NicSwitches\0\*SwitchName" => keywords.switch_name = entry.name()?,
                r"NicSwitches\0\*NumVFs" => {
                    keywords.num_vfs = Some(entry.one_of(0..0x1_0000, "0 to 65535")?);
                }
                _ => return Err(entry.unknown()),
            }
        }
        Ok(keywords)
    }
}

/// One key of the table, with its value.
struct Entry<'a> {
    line: usize,
    key: &'a str,
    value: &'a Spanned<DeValue<'a>>,
}

impl Entry<'_> {
    fn switch(&self) -> Result<bool, KeywordError> {
        Ok(self.one_of(0..2, "0 or 1")? == 1)
    }

    fn one_of(&self, range: Range<u32>, allowed: &'static str) -> Result<u16, KeywordError> {
        let DeValue::Integer(integer) = self.value.get_ref() else {
            return Err(self.bad_value(allowed));
        };
        let value = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        value
            .filter(|value| range.contains(value))
            .and_then(|value| u16::try_from(value).ok())
            .ok_or_else(|| self.bad_value(allowed))
    }

    fn name(&self) -> Result<Name, KeywordError> {
        let allowed = "a name of at most 256 UTF-16 units without control characters";
        let DeValue::String(text) = self.value.get_ref() else {
            return Err(self.bad_value(allowed));
        };
        Name::new(text).map_err(|_| self.bad_value(allowed))
    }

    fn bad_value(&self, allowed: &'static str) -> KeywordError {
        let found = match self.value.get_ref() {
            DeValue::String(text) => format!("the text \"{}\"", shortened(text)),
            DeValue::Integer(integer) => format!("{integer}"),
            DeValue::Float(float) => format!("{float}"),
            DeValue::Boolean(boolean) => format!("{boolean}"),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "an array".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        KeywordError::Value {
            line: self.line,
            key: self.key.to_owned(),
            found: shortened(&found),
            allowed,
        }
    }

    fn unknown(&self) -> KeywordError {
        let simple = |name: &str| {
            name.chars()
                .filter(char::is_ascii_alphanumeric)
                .map(|c| c.to_ascii_lowercase())
                .collect::<String>()
        };
        let wanted = simple(self.key);
        let hint = KNOWN.iter().find(|known| simple(known) == wanted).map_or_else(
            || format!("the keywords are {}", KNOWN.join(", ")),
            |known| format!("did you mean \"{known}\"?"),
        );
        KeywordError::Unknown { line: self.line, key: shortened(self.key), hint }
    }
}

/// The text, cut where an error message would become unreadable, with control characters made visible.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

/// The line, from 1, of a byte of the text.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

impl fmt::Display for Keywords {
    /// Writes all keywords as a file that [`Keywords::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preference = self.rss_or_vmq_preference == Preference::Vmq;
        for (key, value) in [
            ("*SRIOV", self.sriov),
            ("*SriovPreferred", self.sriov_preferred),
            ("*VMQ", self.vmq),
            ("*VMQLookaheadSplit", self.vmq_lookahead_split),
            ("*VMQVlanFiltering", self.vmq_vlan_filtering),
            ("*RssOrVmqPreference", preference),
            ("*RSS", self.rss),
            ("*RssOnHostVPorts", self.rss_on_host_vports),
        ] {
            writeln!(f, "'{key}' = {}", u8::from(value))?;
        }
        writeln!(f, r"'NicSwitches\0\*Flags' = 0")?;
        writeln!(f, r"'NicSwitches\0\*SwitchType' = 1")?;
        writeln!(f, r"'NicSwitches\0\*SwitchId' = 0")?;
        let name = self.switch_name.as_str().replace('\\', r"\\").replace('"', "\\\"");
        writeln!(f, "'NicSwitches\\0\\*SwitchName' = \"{name}\"")?;
        if let Some(num_vfs) = self.num_vfs {
            writeln!(f, r"'NicSwitches\0\*NumVFs' = {num_vfs}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
