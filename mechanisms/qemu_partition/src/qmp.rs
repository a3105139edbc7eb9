//! QMP: QEMU's machine protocol, one JSON object to a line over a Unix socket.
//!
//! Why not the published crate `qapi`? Its types are those of one version of QEMU, and an event or member that a newer
//! one has ends the connection; and its blocking client hears of events only while it executes a command.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::{Value, json};

/// How long QEMU has to answer a command. It answers between two instructions of the guest, or while none runs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one answer, at most.
const MAX_LINE: u64 = 4 << 20;
/// Answers that nobody has waited for, at most: each comes after its command was given up.
const MAX_LATE: usize = 64;
/// Devices of which one can hear, at most.
const MAX_NICS: usize = 256;

/// An error of a QMP connection.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody serves the socket.
    #[error("QEMU's QMP socket {} cannot be used; it is made by QEMU's option -qmp unix:{},server=on,wait=off", socket.display(), socket.display())]
    Connect {
        /// Which one.
        socket: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// QEMU has ended, or closed the connection.
    #[error("QEMU has closed its QMP socket")]
    Gone,
    /// QEMU did not answer in time.
    #[error(
        "QEMU has not answered {command} within {PATIENCE:?}; another program may hold its QMP socket, which serves one at a time"
    )]
    TimedOut {
        /// What it was asked.
        command: &'static str,
    },
    /// QEMU said no.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// What it was asked.
        command: &'static str,
        /// Its own words.
        reason: String,
    },
    /// What QEMU said is no answer.
    #[error("QEMU's answer to {command} is not as its protocol has it")]
    Protocol {
        /// What it was asked.
        command: &'static str,
    },
}

/// What QEMU has said unasked since it was looked at last, as far as something follows here. A guest can have it say things
/// as often as it likes: this is all that is kept.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct QmpNews {
    /// So often the machine was reset: the guest has begun anew.
    pub(crate) resets: u64,
    /// The ids of the devices whose virtio-net drivers have agreed on VIRTIO_NET_F_STANDBY, after that.
    pub(crate) negotiated: BTreeSet<String>,
    /// QEMU has closed the connection, or ended.
    pub(crate) gone: bool,
}

impl QmpNews {
    /// Takes an event. Says whether something follows from it.
    fn take_in(&mut self, message: &Value) -> bool {
        match message.get("event").and_then(Value::as_str) {
            Some("RESET") => {
                self.resets = self.resets.saturating_add(1);
                self.negotiated.clear();
                true
            }
            Some("FAILOVER_NEGOTIATED") => {
                let device = message.pointer("/data/device-id").and_then(Value::as_str);
                let device = device.filter(|_| self.negotiated.len() < MAX_NICS);
                device.is_some_and(|device| self.negotiated.insert(device.to_owned()))
            }
            _ => false,
        }
    }
}

/// Where news are kept, and the bell that is rung when there are any.
struct News<F> {
    kept: Arc<Mutex<QmpNews>>,
    ring: F,
}

impl<F: Fn()> News<F> {
    /// Rings once for all that comes until somebody looks.
    fn tell(&self, change: impl FnOnce(&mut QmpNews) -> bool) {
        let mut kept = lock(&self.kept);
        let known = *kept != QmpNews::default();
        if change(&mut kept) && !known {
            (self.ring)();
        }
    }

    fn gone(&self) {
        self.tell(|news| !std::mem::replace(&mut news.gone, true));
    }
}

fn lock(news: &Mutex<QmpNews>) -> MutexGuard<'_, QmpNews> {
    news.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to a QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
    news: Arc<Mutex<QmpNews>>,
    /// Number of the last command, by which late answers are told from the one that is waited for.
    last: u64,
    reader: Option<JoinHandle<()>>,
}

impl Qmp {
    /// Connects, and has `ring` called when there are news, on a thread of its own, which keeps them: it must not wait,
    /// nor ask for them.
    pub(crate) fn connect(
        socket: &Path,
        ring: impl Fn() + Send + 'static,
    ) -> Result<Self, QmpError> {
        let wrong = |source| QmpError::Connect { socket: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(wrong)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(wrong)?;
        let source = stream.try_clone().map_err(wrong)?;
        let (answer, answers) = sync_channel(MAX_LATE);
        let news = Arc::new(Mutex::new(QmpNews::default()));
        let told = News { kept: Arc::clone(&news), ring };
        let reader = std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || read(source, &answer, &told))
            .map_err(wrong)?;
        let mut this = Self { stream, answers, news, last: 0, reader: Some(reader) };
        this.greeting()?;
        this.execute("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    fn greeting(&self) -> Result<(), QmpError> {
        let command = "the connection";
        match self.answers.recv_timeout(PATIENCE) {
            Ok(message) if message.get("QMP").is_some() => Ok(()),
            Ok(_) => Err(QmpError::Protocol { command }),
            Err(RecvTimeoutError::Timeout) => Err(QmpError::TimedOut { command }),
            Err(RecvTimeoutError::Disconnected) => Err(QmpError::Gone),
        }
    }

    /// Executes a command, and waits for what it returns.
    pub(crate) fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.last += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": self.last });
        let mut line = request.to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).map_err(|_| QmpError::Gone)?;
        loop {
            let mut answer = match self.answers.recv_timeout(PATIENCE) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => return Err(QmpError::TimedOut { command }),
                Err(RecvTimeoutError::Disconnected) => return Err(QmpError::Gone),
            };
            if answer.get("id").and_then(Value::as_u64) != Some(self.last) {
                continue;
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            let reason = answer.pointer("/error/desc").and_then(Value::as_str);
            let reason = reason.ok_or(QmpError::Protocol { command })?.to_owned();
            return Err(QmpError::Refused { command, reason });
        }
    }

    /// What QEMU has said unasked since this was called last.
    pub(crate) fn news(&self) -> QmpNews {
        std::mem::take(&mut lock(&self.news))
    }

    /// A property of one of QEMU's objects.
    pub(crate) fn property(&mut self, path: &str, property: &str) -> Result<Value, QmpError> {
        self.execute("qom-get", json!({ "path": path, "property": property }))
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            // A panic there has been reported already.
            let _ = reader.join();
        }
    }
}

/// Hands lines on until there are no more.
fn read<F: Fn()>(stream: UnixStream, answers: &SyncSender<Value>, news: &News<F>) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) || line.last() != Some(&b'\n') {
            return news.gone();
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else {
            return news.gone();
        };
        if message.get("event").is_some() {
            news.tell(|news| news.take_in(&message));
        } else if answers.try_send(message).is_err() {
            // It answers what it was not asked.
            return news.gone();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, sync::mpsc};

    use super::*;

    /// A QEMU that says these lines, each after it was told one; the first at once.
    fn played(lines: &'static [&'static str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut from = BufReader::new(stream.try_clone().unwrap());
            let mut to = stream;
            for line in lines {
                to.write_all(line.as_bytes()).unwrap();
                to.write_all(b"\n").unwrap();
                let mut said = String::new();
                if from.read_line(&mut said).unwrap() == 0 {
                    return;
                }
            }
        });
        (folder, path)
    }

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    const DONE: &str = r#"{"return": {}, "id": 1}"#;

    #[test]
    fn answers_are_told_from_events_and_from_late_answers() {
        let late = r#"{"event": "RESET", "data": {}}
{"return": "late", "id": 1}
{"event": "NIC_RX_FILTER_CHANGED", "data": {}}
{"event": "FAILOVER_NEGOTIATED", "data": {"device-id": "sb0"}}
{"return": 7, "id": 2}"#;
        let lines: &[&str] = Box::leak(Box::new([GREETING, DONE, late]));
        let (_folder, path) = played(lines);
        let (tell, told) = mpsc::channel();
        let ring = move || tell.send(()).unwrap_or_default();
        let mut qmp = Qmp::connect(&path, ring).unwrap();
        assert_eq!(qmp.execute("query-seven", json!({})).unwrap(), json!(7));
        told.recv().unwrap();
        let QmpNews { resets, negotiated, .. } = qmp.news();
        assert_eq!((resets, negotiated), (1, BTreeSet::from(["sb0".to_owned()])));
    }

    #[test]
    fn a_refusal_has_qemus_words_and_an_end_is_told() {
        let no = r#"{"error": {"class": "GenericError", "desc": "no such thing"}, "id": 2}"#;
        let lines: &[&str] = Box::leak(Box::new([GREETING, DONE, no]));
        let (_folder, path) = played(lines);
        let (tell, told) = mpsc::channel();
        let ring = move || tell.send(()).unwrap_or_default();
        let mut qmp = Qmp::connect(&path, ring).unwrap();
        let error = qmp.execute("device_add", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refuses device_add: no such thing");
        assert!(matches!(qmp.execute("quit", json!({})), Err(QmpError::Gone)));
        told.recv().unwrap();
        assert!(qmp.news().gone);
    }

    #[test]
    fn something_else_behind_the_socket_is_no_qemu() {
        let (_folder, path) = played(&["hello"]);
        assert!(matches!(Qmp::connect(&path, || {}), Err(QmpError::Gone)));
        let (_folder, path) = played(&["{}"]);
        assert!(matches!(Qmp::connect(&path, || {}), Err(QmpError::Protocol { .. })));
        let nobody = path.with_file_name("nobody");
        assert!(matches!(Qmp::connect(&nobody, || {}), Err(QmpError::Connect { .. })));
    }

    #[test]
    fn events_without_end_are_one_piece_of_news_in_the_order_that_matters() {
        let said = |event: &str, id: &str| json!({ "event": event, "data": { "device-id": id } });
        let kept = Arc::new(Mutex::new(QmpNews::default()));
        let rung = std::cell::Cell::new(0);
        let news = News { kept: Arc::clone(&kept), ring: || rung.set(rung.get() + 1) };
        for number in 0..1000 {
            let id = number.to_string();
            news.tell(|news| news.take_in(&said("FAILOVER_NEGOTIATED", &id)));
        }
        assert_eq!(lock(&kept).negotiated.len(), MAX_NICS);
        for _ in 0..1000 {
            news.tell(|news| news.take_in(&said("RESET", "")));
            news.tell(|news| news.take_in(&said("FAILOVER_NEGOTIATED", "net0")));
            news.tell(|news| news.take_in(&said("NIC_RX_FILTER_CHANGED", "net0")));
        }
        news.gone();
        assert_eq!(rung.get(), 1);
        let negotiated = BTreeSet::from(["net0".to_owned()]);
        let all = QmpNews { resets: 1000, negotiated, gone: true };
        assert_eq!(std::mem::take(&mut *lock(&kept)), all);
    }
}
