//! The program under test, as a process of its own in a directory of its own.

use std::{
    io::Read,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use adapter::control::{AdapterStatus, PrivateControl, STATUS_CAPACITY};
use device_control::{DeviceControlClient, DriverName};
use serde::Deserialize;
use tempfile::TempDir;

/// How long anything may take before a test gives up. Nothing waits for this to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The program.
pub(crate) const CLEARWAY: &str = env!("CARGO_BIN_EXE_clearway");

/// An ordinary user: `nobody`.
const NOBODY: u32 = 65_534;

/// Who runs the program.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum User {
    /// Whoever runs the tests.
    Same,
    /// An ordinary user without any privilege. Only root can become one.
    Nobody,
}

impl User {
    /// All that can be played here.
    pub(crate) fn all() -> Vec<Self> {
        if rustix::process::geteuid().is_root() {
            vec![Self::Same, Self::Nobody]
        } else {
            println!("skipped as another user: the tests run as an ordinary user already");
            vec![Self::Same]
        }
    }

    fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self == Self::Nobody {
            // As root, this drops the supplementary groups as well.
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir("/");
        command
    }

    /// The program where this user can reach it: a checkout may be in a directory that is root's alone.
    fn program(self) -> &'static Path {
        static COPY: OnceLock<(Option<TempDir>, PathBuf)> = OnceLock::new();
        if self == Self::Same {
            return Path::new(CLEARWAY);
        }
        let (_, path) = COPY.get_or_init(|| {
            let direct = Path::new(CLEARWAY);
            if User::Nobody.command(direct).arg("--version").output().is_ok() {
                return (None, direct.to_owned());
            }
            let directory = self.directory();
            let path = directory.path().join("clearway");
            std::fs::copy(direct, &path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            (Some(directory), path)
        });
        path
    }

    /// An empty directory of this user's.
    pub(crate) fn directory(self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        if self == Self::Nobody {
            std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        directory
    }

    /// Runs the program to its end.
    pub(crate) fn clearway(self, arguments: &[&str]) -> Output {
        self.clearway_with(arguments, &[])
    }

    /// Runs the program to its end with these variables in its environment.
    pub(crate) fn clearway_with(self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = self.command(self.program());
        command.args(arguments).envs(variables.iter().copied()).output().unwrap()
    }

    /// Runs `clearway nic` on the adapter in a directory.
    pub(crate) fn nic(self, directory: &Path, arguments: &[&str]) -> Output {
        let mut all = vec!["nic", "--json", "--directory", directory.to_str().unwrap()];
        all.extend(arguments);
        self.clearway(&all)
    }
}

/// What a program wrote to a stream.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts that a program was refused with one line that has all of `words`.
pub(crate) fn assert_refused(output: &Output, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    assert_eq!(message.trim_end().lines().count(), 1, "more than one line: {message}");
    assert!(!message.contains("panicked"), "{message}");
}

/// What `clearway nic attach-vf` prints.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Attached {
    pub(crate) vf: u16,
    pub(crate) filter: u32,
    pub(crate) mac: String,
    pub(crate) socket: PathBuf,
}

/// A running `clearway adapter`. It is killed when this is dropped.
pub(crate) struct Adapter {
    pub(crate) directory: PathBuf,
    user: User,
    child: Child,
    log: Option<JoinHandle<String>>,
}

impl Adapter {
    /// Starts one with `vfs` VFs and waits until its control socket is served.
    pub(crate) fn start(user: User, directory: &Path, vfs: u16) -> Self {
        let program = user.program().to_owned();
        Self::start_command(user, directory, user.command(&program), &["--vfs", &vfs.to_string()])
    }

    /// Starts one with a limit on its file descriptors.
    pub(crate) fn start_with_descriptors(directory: &Path, vfs: u16, descriptors: u32) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), CLEARWAY]);
        Self::start_command(User::Same, directory, shell, &["--vfs", &vfs.to_string()])
    }

    /// Starts one with these arguments.
    pub(crate) fn start_with(directory: &Path, arguments: &[&str]) -> Self {
        let user = User::Same;
        Self::start_command(user, directory, user.command(user.program()), arguments)
    }

    fn start_command(user: User, directory: &Path, mut command: Command, more: &[&str]) -> Self {
        let mut child = command
            .args(["adapter", "--directory", directory.to_str().unwrap()])
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            text(&log)
        });
        let mut adapter = Self { directory: directory.to_owned(), user, child, log: Some(log) };
        wait_for("the adapter", || {
            if let Some(status) = adapter.child.try_wait().unwrap() {
                panic!("the adapter ended with {status}: {}", adapter.log());
            }
            DeviceControlClient::connect(
                adapter::control_socket(directory),
                &DriverName::new("test").unwrap(),
                PATIENCE,
            )
            .ok()
        });
        adapter
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn nic(&self, arguments: &[&str]) -> Output {
        self.user.nic(&self.directory, arguments)
    }

    /// A device control client.
    pub(crate) fn client(&self) -> DeviceControlClient {
        let name = DriverName::new("test").unwrap();
        let path = adapter::control_socket(&self.directory);
        DeviceControlClient::connect(path, &name, PATIENCE).unwrap()
    }

    /// Allocates a VF for the MAC address 02:00:00:00:00:`last`.
    pub(crate) fn attach(&self, last: u8) -> Attached {
        let mac = format!("02:00:00:00:00:{last:02x}");
        let output = self.nic(&["attach-vf", "--mac", &mac]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let attached: Attached = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(attached.mac.to_lowercase().replace('-', ":"), mac);
        attached
    }

    /// What the adapter says of itself.
    pub(crate) fn status(&self) -> AdapterStatus {
        status_of(&self.client())
    }

    /// The same, without what time alone changes.
    pub(crate) fn still_status(&self) -> AdapterStatus {
        AdapterStatus { data_path_slept_us: 0, ..self.status() }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for("the adapter's end", || self.child.try_wait().unwrap())
    }

    /// What it wrote to its standard error, once it has ended.
    pub(crate) fn log(&mut self) -> String {
        self.log.take().map(|log| log.join().unwrap()).unwrap_or_default()
    }

    /// Asserts that it has not ended.
    pub(crate) fn assert_lives(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the adapter ended with {status}: {}", self.log());
        }
    }

    /// Kills it as the OOM killer would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Resident memory, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the adapter wrote:\n{log}");
        } else {
            assert!(!log.contains("panicked"), "the adapter panicked: {log}");
        }
    }
}

pub(crate) fn status_of(client: &DeviceControlClient) -> AdapterStatus {
    let code = PrivateControl::Status.code();
    let answer = client.private(code, &[], STATUS_CAPACITY, PATIENCE).unwrap();
    serde_json::from_slice(&answer).unwrap()
}

/// Names in a directory, sorted.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Repeats `look` until it gives something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}
