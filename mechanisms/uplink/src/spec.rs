//! How an uplink is named on a command line or in a configuration file.

use std::{
    fmt::{self, Display},
    path::PathBuf,
    str::FromStr,
};

/// The kinds, as every message about a bad spec lists them.
const KINDS: &str =
    "none, tap:NAME, packet:INTERFACE, pcap:IN[,OUT][?timing=original], cable:SOCKET";

/// Bytes of an interface name without its terminator (IFNAMSIZ - 1).
const MAX_INTERFACE_NAME: usize = 15;

/// When frames of a capture are replayed.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub enum ReplayTiming {
    /// As fast as the NIC takes them.
    #[default]
    Fast,
    /// With the distances in time that they were captured with.
    Original,
}

/// Which uplink to open.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum UplinkSpec {
    /// No cable: the link is down and all frames are dropped.
    None,
    /// A TAP device of this name, created if there is none.
    Tap {
        /// Name of the device.
        name: String,
    },
    /// An existing interface, through a packet socket in promiscuous mode.
    Packet {
        /// Name of the interface.
        interface: String,
    },
    /// Replay of one capture and record into another.
    Pcap {
        /// Capture to replay.
        input: Option<PathBuf>,
        /// Capture to write what the NIC transmits to; an existing file is replaced.
        output: Option<PathBuf>,
        /// When the frames are replayed.
        timing: ReplayTiming,
    },
    /// A cable to another NIC process; the same socket path names both of its ends.
    Cable {
        /// Path of the Unix socket at which the two ends meet.
        socket: PathBuf,
    },
}

/// Why a spec was refused.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("uplink \"{spec}\": {problem}; an uplink is one of {KINDS}")]
pub struct SpecError {
    /// The text that was refused.
    pub spec: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Display for UplinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "none"),
            Self::Tap { name } => write!(f, "tap:{name}"),
            Self::Packet { interface } => write!(f, "packet:{interface}"),
            Self::Pcap { input, output, timing } => {
                write!(f, "pcap:")?;
                if let Some(input) = input {
                    write!(f, "{}", input.display())?;
                }
                if let Some(output) = output {
                    write!(f, ",{}", output.display())?;
                }
                match timing {
                    ReplayTiming::Fast => Ok(()),
                    ReplayTiming::Original => write!(f, "?timing=original"),
                }
            }
            Self::Cable { socket } => write!(f, "cable:{}", socket.display()),
        }
    }
}

impl FromStr for UplinkSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        parse(spec).map_err(|problem| SpecError { spec: spec.to_owned(), problem })
    }
}

fn parse(spec: &str) -> Result<UplinkSpec, String> {
    if spec == "none" {
        return Ok(UplinkSpec::None);
    }
    let Some((kind, rest)) = spec.split_once(':') else {
        return Err("has no kind".to_owned());
    };
    match kind {
        "tap" => Ok(UplinkSpec::Tap { name: interface_name(rest)? }),
        "packet" => Ok(UplinkSpec::Packet { interface: interface_name(rest)? }),
        "pcap" => parse_pcap(rest),
        "cable" if rest.is_empty() => Err("names no socket".to_owned()),
        "cable" => Ok(UplinkSpec::Cable { socket: path(rest)? }),
        "none" => Err("\"none\" takes nothing after it".to_owned()),
        _ => Err(format!("kind \"{kind}\" is unknown")),
    }
}

/// The kernel's rules for interface names.
fn interface_name(name: &str) -> Result<String, String> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() {
        Err("names no interface".to_owned())
    } else if name.len() > MAX_INTERFACE_NAME {
        Err(format!("interface name \"{name}\" is longer than {MAX_INTERFACE_NAME} bytes"))
    } else if name == "." || name == ".." || name.contains(bad) || name.contains('%') {
        Err(format!("\"{name}\" cannot be the name of an interface"))
    } else {
        Ok(name.to_owned())
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        return Err("a path cannot hold a zero byte".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn parse_pcap(rest: &str) -> Result<UplinkSpec, String> {
    let (files, timing) = match rest.rsplit_once("?timing=") {
        None => (rest, ReplayTiming::Fast),
        Some((files, "fast")) => (files, ReplayTiming::Fast),
        Some((files, "original")) => (files, ReplayTiming::Original),
        Some((_, other)) => {
            return Err(format!("timing \"{other}\" is unknown: it is fast or original"));
        }
    };
    let (input, output) = files.split_once(',').unwrap_or((files, ""));
    if output.contains(',') {
        return Err("names more than two files (a comma cannot be part of a name)".to_owned());
    }
    let file = |name: &str| (!name.is_empty()).then(|| path(name)).transpose();
    let (input, output) = (file(input)?, file(output)?);
    match (&input, &output) {
        (None, None) => Err("names neither a capture to replay nor one to record".to_owned()),
        (None, _) if timing == ReplayTiming::Original => {
            Err("has a timing but no capture to replay".to_owned())
        }
        (Some(input), Some(output)) if input == output => {
            Err("would record into the capture that it replays".to_owned())
        }
        _ => Ok(UplinkSpec::Pcap { input, output, timing }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(spec: &str) -> String {
        spec.parse::<UplinkSpec>().unwrap_err().to_string()
    }

    #[test]
    fn every_kind_is_read() {
        let pcap = |input: Option<&str>, output: Option<&str>, timing| UplinkSpec::Pcap {
            input: input.map(PathBuf::from),
            output: output.map(PathBuf::from),
            timing,
        };
        for (text, spec) in [
            ("none", UplinkSpec::None),
            ("tap:up0", UplinkSpec::Tap { name: "up0".into() }),
            ("packet:enp1s0", UplinkSpec::Packet { interface: "enp1s0".into() }),
            ("pcap:a.pcap", pcap(Some("a.pcap"), None, ReplayTiming::Fast)),
            ("pcap:,b.pcap", pcap(None, Some("b.pcap"), ReplayTiming::Fast)),
            ("pcap:a,b", pcap(Some("a"), Some("b"), ReplayTiming::Fast)),
            ("pcap:a,b?timing=original", pcap(Some("a"), Some("b"), ReplayTiming::Original)),
            ("cable:/run/x.sock", UplinkSpec::Cable { socket: "/run/x.sock".into() }),
        ] {
            assert_eq!(text.parse(), Ok(spec));
        }
    }

    #[test]
    fn a_bad_spec_is_told_what_is_wrong_and_what_there_is() {
        for (spec, problem) in [
            ("", "has no kind"),
            ("eth0", "has no kind"),
            ("bridge:br0", "kind \"bridge\" is unknown"),
            ("tap:", "names no interface"),
            ("tap:a-name-that-is-far-too-long", "longer than 15 bytes"),
            ("packet:a/b", "cannot be the name"),
            ("pcap:", "neither a capture to replay nor one to record"),
            ("pcap:a,b,c", "more than two files"),
            ("pcap:a,a", "would record into the capture"),
            ("pcap:a?timing=slow", "timing \"slow\" is unknown"),
            ("pcap:,b?timing=original", "no capture to replay"),
            ("cable:", "names no socket"),
        ] {
            let text = refused(spec);
            assert!(text.contains(problem) && text.contains(KINDS), "{spec}: {text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_written_back(text in "(none|tap|packet|pcap|cable)?:?[ -~]{0,24}") {
            if let Ok(spec) = text.parse::<UplinkSpec>() {
                prop_assert_eq!(spec.to_string().parse::<UplinkSpec>(), Ok(spec));
            }
        }
    }
}
