//! What a person types to the program instead of to the guest, as in ssh: at the start of a line, a tilde and a letter.

/// What the program is told.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Command {
    /// `~.`: leave, which ends the VM.
    Leave,
    /// `~?`: say what there is.
    Help,
}

/// What `~?` says.
pub(super) const HELP: &str = "
At the start of a line:
  ~.  ends the VM, as pulling its plug does
  ~~  types a ~
  ~?  says this
";

/// Where on its line the next key is.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
enum Place {
    #[default]
    Start,
    Inside,
    /// Behind a tilde that the guest has not been given.
    Tilde,
}

/// Finds commands in what is typed.
#[derive(Default, Debug)]
pub(super) struct Escapes {
    place: Place,
}

impl Escapes {
    /// Takes a key: `guest` gets what is for the guest, which may be a tilde from before, or nothing.
    pub(super) fn take(&mut self, key: u8, guest: &mut impl Extend<u8>) -> Option<Command> {
        let place = std::mem::replace(&mut self.place, after(key));
        let command = match (place, key) {
            (Place::Start, b'~') => {
                self.place = Place::Tilde;
                return None;
            }
            (Place::Tilde, b'.') => Some(Command::Leave),
            (Place::Tilde, b'?') => Some(Command::Help),
            (Place::Tilde, b'~') => None,
            (Place::Tilde, _) => {
                guest.extend([b'~']);
                None
            }
            (Place::Start | Place::Inside, _) => None,
        };
        if command.is_some() {
            // The guest has seen nothing: its line is where it was.
            self.place = Place::Start;
        } else {
            guest.extend([key]);
        }
        command
    }
}

/// Enter is a carriage return on a terminal in raw mode; pasted text may have line feeds.
fn after(key: u8) -> Place {
    if matches!(key, b'\r' | b'\n') { Place::Start } else { Place::Inside }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the guest gets of it, and the commands.
    fn typed(keys: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let (mut escapes, mut guest) = (Escapes::default(), Vec::new());
        let commands = keys.iter().filter_map(|key| escapes.take(*key, &mut guest)).collect();
        (guest, commands)
    }

    #[test]
    fn commands_are_found_at_the_start_of_a_line() {
        use Command::{Help, Leave};
        let cases: [(&[u8], &[u8], &[Command]); 14] = [
            (b"~.", b"", &[Leave]),
            (b"ls\r~.", b"ls\r", &[Leave]),
            (b"ls\n~.", b"ls\n", &[Leave]),
            (b"ls~.", b"ls~.", &[]),
            (b"cd ~/.\r", b"cd ~/.\r", &[]),
            (b"\r~~.\r", b"\r~.\r", &[]),
            (b"~~~.", b"~~.", &[]),
            (b"\r~?~.", b"\r", &[Help, Leave]),
            (b"~x.", b"~x.", &[]),
            (b"~\r~.", b"~\r", &[Leave]),
            (b"~\x03~.", b"~\x03~.", &[]),
            (b"~", b"", &[]),
            (b"\r\r~", b"\r\r", &[]),
            (b"", b"", &[]),
        ];
        for (keys, guest, commands) in cases {
            assert_eq!(typed(keys), (guest.to_vec(), commands.to_vec()), "{keys:?}");
        }
    }

    proptest! {
        #[test]
        fn without_a_tilde_at_the_start_of_a_line_every_byte_is_the_guest_s(
            lines in prop::collection::vec("[^~\r\n][^\r\n]*", 0..20),
        ) {
            let text = lines.join("\r");
            prop_assert_eq!(typed(text.as_bytes()), (text.into_bytes(), Vec::new()));
        }

        #[test]
        fn whatever_is_typed_the_guest_gets_it_but_for_tildes_and_commands(
            keys in prop::collection::vec(prop::sample::select(b"~.?\rx".as_slice()), 0..60),
        ) {
            let (guest, commands) = typed(&keys);
            let dropped = keys.len() - guest.len();
            prop_assert!(dropped >= 2 * commands.len());
            // Each tilde that was doubled, and one that is still held back.
            let tildes = keys.iter().filter(|key| **key == b'~').count();
            prop_assert!(dropped - 2 * commands.len() <= tildes);
            let mut rest = keys.iter();
            prop_assert!(guest.iter().all(|byte| rest.any(|key| key == byte)));
        }
    }
}
